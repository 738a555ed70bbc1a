# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Fuzz the settings of xendomains, which bash sources.

This does not use libFuzzer: bash runs the content of the file, so the inputs must be harmless, and most of the time is
spent in bash, which does not report its coverage.
"""

from __future__ import annotations

import json

from harness import InMemory, Meter, check_sentences
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import xendomains_wait_disk as xwd

FILE = InMemory()
CLOCK = xwd.Clock()

assignments = st.builds(
    "{}{}={}".format,
    st.sampled_from(["", "", "export ", "readonly ", "local ", "declare -x "]),
    st.sampled_from(["XENDOMAINS_AUTO", "XENDOMAINS_SAVE", "XENDOMAINS_RESTORE", "status", "complaint", "BASH", "IFS"]),
    st.one_of(
        st.text(st.characters(blacklist_characters="$`/"), max_size=20),
        st.sampled_from(['"/a b"', "'x'", "$(", "${", "`", "(a b)", "true", "<<E", "$1", '"$0"', "$'\\n'", "$'\\xff'"]),
    ),
)
statements = st.sampled_from(
    [
        "exit 3", "return 3", "false", "set -u", "set -e", "set -f", "set --", "shift", "readonly XENDOMAINS_AUTO",
        "if", "fi", "}", "shopt -s extglob", "trap 'exit 1' EXIT", "unset PATH", "enable -n printf",
        "alias printf=false",
    ]
)  # fmt: skip
# The inputs must not write files.
files = st.lists(st.one_of(assignments, statements).filter(lambda line: not set(line) & set(">|&;")), max_size=6)


def check(content: bytes) -> bool:
    """Check that the file is sourced, or that Xen's defaults are used."""
    path = FILE.write(content)
    xendomains, problems = xwd.read_xendomains(xwd.Settings(xendomains=(path,)), CLOCK, 30.0)
    assert xendomains
    assert all(directory == "" or directory.startswith("/") for directory in (xendomains.auto, xendomains.save))
    check_sentences([problem.sentence() for problem in problems])
    return not problems


def main() -> None:
    """Check generated files until the time is over."""
    meter = Meter(check)

    @settings(
        max_examples=200,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(files)
    def one_batch(lines: list[str]) -> None:
        if not meter.is_over():
            meter.run("\n".join(lines).encode("utf-8", "replace"))

    while not meter.is_over():
        one_batch()
    print(json.dumps(meter.report()))


if __name__ == "__main__":
    main()
