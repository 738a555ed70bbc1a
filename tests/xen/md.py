# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A RAID1, /dev/md/mirror, with the members mirror-a and mirror-b, created by another host."""

from __future__ import annotations

from xenhost import Disk, Host

WHOLE = Host(
    disks=(Disk("mirror-a"), Disk("mirror-b")),
    after="""
        mdadm --create /dev/md/mirror --homehost=any --run --level=1 --metadata=1.2 --bitmap=none --raid-devices=2 \
            /dev/disk/by-id/virtio-mirror-a /dev/disk/by-id/virtio-mirror-b
        mdadm --wait /dev/md/mirror || true
        mdadm --stop /dev/md/mirror
    """,
)
