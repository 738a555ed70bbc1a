# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzzes the header that xl save writes, and the JSON or xl.cfg in it."""

from __future__ import annotations

from harness import InMemory, check_entry, fuzz

import xendomains_wait_disk as xwd

FILE = InMemory()


def check(content: bytes) -> bool:
    """The file is read or refused."""
    return check_entry(xwd.read_entry(FILE.write(content), "saved", None, xwd.Settings()))


if __name__ == "__main__":
    fuzz(check)
