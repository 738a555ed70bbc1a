# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A volume group that was activated before udev ran, as by an initramfs without udev.

udev marks it as not ready forever, but it is ready as soon as udev has processed it.
"""

from __future__ import annotations

import pytest
from xenhost import Boot, Guest, Host

pytestmark = pytest.mark.promise("A disk that can be used is not waited for, whatever udev says")

HOST = Host(
    guests=(Guest("web", ("/dev/vg/lv,raw,xvda,w",)),),
    setup="""
        mount -t proc proc /proc
        mount -t sysfs sysfs /sys
        mount -t devtmpfs devtmpfs /dev
        # Debian's initramfs has udev.
        kill $(grep --files-with-matches --line-regexp systemd-udevd /proc/[0-9]*/comm | cut -d / -f 3)
        truncate --size=64M /srv/disk
        modprobe loop
        modprobe dm-mod
        device=$(losetup --find --show /srv/disk)
        without_udev="activation { udev_sync=0 udev_rules=0 }"
        vgcreate --config="$without_udev" vg "$device"
        lvcreate --config="$without_udev" --name=lv --size=32M --zero=n --wipesignatures=n vg
        ls -la /dev/mapper /dev/vg
        umount /dev /sys /proc
        # Keep udev from making LVM activate the group again.
        ln -s /dev/null /etc/udev/rules.d/69-lvm.rules
    """,
    after="grep . /run/udev/data/b25[0-9]:*; cat /sys/class/block/dm-0/dm/suspended; ls -la /dev/vg /dev/mapper",
)


def test_udev_marks_volume_as_not_ready(boot: Boot) -> None:
    assert "E:SYSTEMD_READY=0" in boot.text("journal.txt") and "E:DM_NAME=" not in boot.text("journal.txt")


def test_volume_is_ready_and_the_guest_starts(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.disks_of("web") == {"xvda": 32}
