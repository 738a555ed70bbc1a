# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Fuzzes the header that xl save writes, and the JSON or xl.cfg in it."""

from __future__ import annotations

import sys

from harness import InMemory, check_file, fuzz

import xendomains_wait_disk as xwd

FILE = InMemory()
PIECES = [b"[", b"]", b"{", b'"', b'\\"', b'"\\"', b"\\", b"9", b'"a",', b'{"a":', b"[[", b"[]", b"-", b"\xff", b" "]


def check(content: bytes) -> bool:
    """The file is read or refused, and so is one which has this behind a good header, whose lengths are hard to hit."""
    guests = [check_file(FILE.write(one), "saved") for one in (content, with_header(content))]
    return xwd.READY in [guest.status for guest in guests if guest]


def with_header(configuration: bytes) -> bytes:
    """The configuration in a file as xl save writes it."""
    size = len(configuration)
    words = (0x01020304, xwd.SAVED_JSON | xwd.SAVED_STREAM_V2, 0, size + 4, size)
    return xwd.SAVED_MAGIC + b"".join(word.to_bytes(4, sys.byteorder) for word in words) + configuration + xwd.SAVED_END


if __name__ == "__main__":
    fuzz(check, PIECES, xwd.MAX_CONFIGURATION)
