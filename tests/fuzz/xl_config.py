# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Fuzz the parser of xl.cfg with the disks in it, including round trips."""

from __future__ import annotations

from disk import as_specification
from harness import InMemory, check_file, fuzz

import xendomains_wait_disk as xwd

FILE = InMemory()


PIECES = [
    b'a+="b"\n', b"a=[", b"a=1;", b'"', b"\\", b'a="\\0', b'a="\\n"\n', b"[", b"a=[1,", b"#", b"#\n", b";", b" ",
    b"a", b"\n", b'disk=["/x,raw,xvda"]\n', b'disk+=["/x,raw,xvda"]\n', b'disk=["' + b"a,", b"'", b"0", b"\xff", b"\0",
]  # fmt: skip


def check(content: bytes) -> bool:
    """Check that the file is either parsed or refused."""
    guest = check_file(FILE.write(content), "auto")
    if guest is None or guest.status != xwd.READY:
        return False
    written = as_xl_config(guest.domain)
    if len(written) < xwd.MAX_CONFIGURATION:
        again = xwd.domain_from_xl_config(written, FILE.path, "auto")
        assert (again.name, again.disks) == (guest.domain.name, guest.domain.disks)
    return True


def as_xl_config(domain: xwd.Domain) -> str:
    """Return the domain as an xl.cfg."""
    disks = ", ".join(as_string(as_specification(disk)) for disk in domain.disks)
    return f"name = {as_string(domain.name)}\ndisk = [{disks}]\n"


def as_string(text: str) -> str:
    """Return the text as a string in xl.cfg."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


if __name__ == "__main__":
    fuzz(check, PIECES, xwd.MAX_CONFIGURATION)
