# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A guest that was saved with xl save by another host."""

from __future__ import annotations

from xenhost import Disk, Guest, Host

WEB = Guest("web", ("/dev/mapper/late,raw,xvda,w",), at="/root/web.cfg")
MAKE_DISK = "dmsetup create late --table '0 65536 linear /dev/disk/by-id/virtio-data 0'"
BEFORE = Host(
    disks=(Disk("data", 32), Disk("saved", 400)),
    guests=(WEB._replace(starts=False),),
    after=f"""
        mkfs.ext4 -q /dev/disk/by-id/virtio-saved
        mount /dev/disk/by-id/virtio-saved /mnt
        {MAKE_DISK}
        start_guest /root/web.cfg
        xl save web /mnt/web
        umount /mnt
    """,
)
