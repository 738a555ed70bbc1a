# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A saved guest whose disk appears late: it is restored."""

from __future__ import annotations

import pytest
from saved import BEFORE, MAKE_DISK, WEB
from xenhost import Boot, Disk, Host

pytestmark = pytest.mark.promise("Guests whose disks appear late are started, with their disks at full size")

HOST = Host(
    disks=(Disk("data", 32), Disk("saved", left_by=BEFORE)),
    guests=(WEB,),
    setup="""
        mkdir -p /var/lib/xen/save
        echo '/dev/disk/by-id/virtio-saved /var/lib/xen/save ext4 defaults 0 2' >>/etc/fstab
    """,
    late=f"sleep 20; {MAKE_DISK}",
    awaited=("/dev/mapper/late",),
)


def test_guest_is_restored_with_its_disk(boot: Boot) -> None:
    assert boot.disks_of("web") == {"xvda": 32}
    assert "Restoring Xen domain web" in boot.text("journal.txt")


def test_wait_lasts_until_the_disk_appears(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.waited > 10
    assert boot.released_in_time
