# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Fuzz the settings of the program: whatever is in the file, the result is usable, and problems are reported."""

from __future__ import annotations

from harness import InMemory, check_sentences, fuzz

import xendomains_wait_disk as xwd

FILE = InMemory()
PIECES = [
    b"[a]\n",
    b"[",
    b"a\n",
    b"a=1\n",
    b"a=,",
    b'"',
    b"'",
    b"timeout=1",
    b"1",
    b"timeout=1s\n",
    b"\0",
    b",",
    b"#\n",
]


def check(content: bytes) -> bool:
    """Check that the file is read and never refused."""
    settings, problems = xwd.read_settings(FILE.write(content))
    check_sentences([problem.sentence() for problem in problems])
    check_range(settings)
    assert (settings, problems) == xwd.read_settings(FILE.path)
    return not problems


def check_range(settings: xwd.Settings) -> None:
    """Check that every value can be used by the wait."""
    assert 0 <= settings.timeout <= xwd.MAX_TIME
    assert xwd.MIN_PAUSE <= settings.first <= xwd.MAX_TIME
    assert xwd.MIN_PAUSE <= settings.longest <= xwd.MAX_TIME
    assert 1 <= settings.factor <= 100
    assert settings.log_level in xwd.LOG_LEVELS.values()
    assert settings.xendomains
    for path in (*settings.xendomains, settings.auto or "/", settings.save or "/"):
        assert path.startswith("/")
    assert all(isinstance(p, str) and p for p in settings.ignored_domains + settings.ignored_disks)


if __name__ == "__main__":
    fuzz(check, PIECES, xwd.MAX_SETTINGS)
