# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzzes the header that xl save writes, and the JSON or xl.cfg in it."""

from __future__ import annotations

import sys

from harness import InMemory, check_entry, fuzz

import xendomains_wait_disk as xwd

FILE = InMemory()


def check(content: bytes) -> bool:
    """The file is read or refused, and so is one which has this behind a good header, whose lengths are hard to hit."""
    accepted = [check_file(content), check_file(with_header(content))]
    return any(accepted)


def with_header(configuration: bytes) -> bytes:
    """The configuration in a file as xl save writes it."""
    size = len(configuration)
    words = (xwd.SAVED_BYTE_ORDER, xwd.SAVED_JSON | xwd.SAVED_STREAM_V2, 0, size + 4, size)
    return xwd.SAVED_MAGIC + b"".join(word.to_bytes(4, sys.byteorder) for word in words) + configuration


def check_file(content: bytes) -> bool:
    """The file is read or refused."""
    return check_entry(xwd.read_entry(FILE.write(content), "saved", None, xwd.Settings()))


if __name__ == "__main__":
    fuzz(check)
