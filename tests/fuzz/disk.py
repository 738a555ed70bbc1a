# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzzes the parser of disk specifications, and what a disk means for this host.

What it reads and then writes down is read as the same.
"""

from __future__ import annotations

import os

from harness import check_entry, fuzz

import xendomains_wait_disk as xwd


def check(content: bytes) -> bool:
    """The specification is read or refused."""
    try:
        disk = xwd.parse_disk(os.fsdecode(content))
    except xwd.Refusal as refusal:
        assert str(refusal)
        return False
    if "\n" not in disk.target:  # a line end cannot be written where anything else can
        assert xwd.parse_disk(as_specification(disk)) == disk
    domain = xwd.with_warnings(xwd.Domain("web", "/etc/xen/auto/web.cfg", "auto", (disk,)))
    want = xwd.wanted(disk)
    assert bool(want.paths) != bool(want.reason)
    return check_entry(xwd.Entry((), domain, (want,)))


def as_specification(disk: xwd.Disk) -> str:
    """The disk as a specification in which each parameter has its key."""
    parameters = {
        "vdev": disk.vdev,
        "format": disk.format,
        "backend": disk.backend,
        "backendtype": disk.backendtype,
        "script": disk.script,
        "devtype": "cdrom" if disk.cdrom else "disk",
    }
    given = [f"{key}={value}," for key, value in parameters.items() if value or key == "vdev"]
    return "".join([*given, f"target={disk.target},"])


if __name__ == "__main__":
    fuzz(check)
