# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Fuzz the parsers for the header written by xl save and the JSON or xl.cfg in it."""

from __future__ import annotations

import sys

from harness import InMemory, check_file, fuzz

import xendomains_wait_disk as xwd

FILE = InMemory()
PIECES = [b"[", b"]", b"{", b'"', b'\\"', b'"\\"', b"\\", b"9", b'"a",', b'{"a":', b"[[", b"[]", b"-", b"\xff", b" "]


def check(content: bytes) -> bool:
    """Check that the input is either parsed or refused, as a file and after a valid header (hard to find by chance)."""
    guests = [check_file(FILE.write(one), "saved") for one in (content, with_header(content))]
    return xwd.READY in [guest.status for guest in guests if guest]


def with_header(configuration: bytes) -> bytes:
    """Return the configuration in a file like those of xl save."""
    size = len(configuration)
    words = (0x01020304, xwd.SAVED_JSON | xwd.SAVED_STREAM_V2, 0, size + 4, size)
    return xwd.SAVED_MAGIC + b"".join(word.to_bytes(4, sys.byteorder) for word in words) + configuration + xwd.SAVED_END


if __name__ == "__main__":
    fuzz(check, PIECES, xwd.MAX_CONFIGURATION)
