# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzzes the parser of xl.cfg, with the disks in it.

What it reads and then writes down is read as the same.
"""

from __future__ import annotations

from disk import as_specification
from harness import InMemory, check_entry, fuzz

import xendomains_wait_disk as xwd

FILE = InMemory()


def check(content: bytes) -> bool:
    """The file is read or refused."""
    entry = xwd.read_entry(FILE.write(content), "auto", None, xwd.Settings())
    assert entry
    if entry.domain.error or any("\n" in disk.target for disk in entry.domain.disks):
        return check_entry(entry)
    again = xwd.domain_from_xl_config(as_xl_config(entry.domain), FILE.path, "auto")
    assert (again.name, again.disks) == (entry.domain.name, entry.domain.disks)
    return check_entry(entry)


def as_xl_config(domain: xwd.Domain) -> str:
    """The domain as an xl.cfg."""
    disks = ", ".join(as_string(as_specification(disk)) for disk in domain.disks)
    return f"name = {as_string(domain.name)}\ndisk = [{disks}]\n"


def as_string(text: str) -> str:
    """The text as a string of xl.cfg."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


if __name__ == "__main__":
    fuzz(check)
