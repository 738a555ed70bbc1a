# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Fuzz the parser of disk specifications, including round trips, and the required paths."""

from __future__ import annotations

import os

from harness import check_guest, fuzz

import xendomains_wait_disk as xwd

PIECES = [b",", b" ", b"=", b"cdrom,", b"/x", b"phy:", b"a:", b"a=", b"vdev=,", b"target=,", b":", b"a-", b"\t,"]


def check(content: bytes) -> bool:
    """Check that the specification is either parsed or refused."""
    try:
        disk = xwd.parse_disk(os.fsdecode(content))
    except xwd.ConfigError as refusal:
        assert str(refusal)
        return False
    if len(content) + 100 < xwd.MAX_DISK_SPECIFICATION:
        assert xwd.parse_disk(as_specification(disk)) == disk
    required = xwd.required_by(disk)
    assert bool(required.path) != bool(required.reason)
    domain = xwd.Domain("web", "/etc/xen/auto/web.cfg", "auto", (disk,))
    check_guest(xwd.Guest(domain, required=(required,)))
    return True


def as_specification(disk: xwd.Disk) -> str:
    """Return the disk as a specification with a key for each parameter."""
    parameters = {
        "vdev": disk.vdev,
        "format": disk.format,
        "backend": disk.backend,
        "backendtype": disk.backendtype,
        "script": disk.script,
        "devtype": "cdrom" if disk.cdrom else "disk",
        "access": "w" if disk.writes else "r",
    }
    given = [f"{key}={value}," for key, value in parameters.items() if value or key == "vdev"]
    return "".join([*given, f"target={disk.target},"])


if __name__ == "__main__":
    fuzz(check, PIECES, xwd.MAX_DISK_SPECIFICATION)
