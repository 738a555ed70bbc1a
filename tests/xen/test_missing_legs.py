# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Arrays and volumes that lost more or fewer members than they can do without, all of them active."""

from __future__ import annotations

import pytest
from lvm import PAUSE_ACTIVATION, RESUME_ACTIVATION
from xenhost import Boot, Guest, Host

# What can still be read, and of what cannot the words of the reason that matter.
USABLE = {"raid5-minus-1": "/dev/five/one", "raid1-minus-1": "/dev/mirror/one"}
BROKEN = {
    "array": ("/dev/md/stripe", "1 of the 2 members"),
    "raid0": ("/dev/stripes/lv", "missing"),
    "raid5-minus-2": ("/dev/five/two", "missing"),
    "linear": ("/dev/linear/lv", "missing"),
}
# Volume groups on loop devices of 48 MiB, and which of their volumes lose the last so many.
GROUPS = """
    loops() {
        for number in $(seq "$2"); do
            truncate --size=48M "/srv/$1-$number"
            losetup --find --show "/srv/$1-$number"
        done
    }
    forget() {
        vgchange --activate=n "$1"
        for number in $2; do
            losetup --detach "$(losetup --noheadings --output=NAME --associated "/srv/$1-$number")"
        done
        udevadm settle
        pvscan --cache
    }
"""
HOST = Host(
    guests=(
        *(Guest(name, (f"{path},raw,xvda,w",)) for name, path in USABLE.items()),
        *(Guest(name, (f"{path},raw,xvda,w",), starts=False) for name, (path, _) in BROKEN.items()),
    ),
    files={"/etc/xen-wait-disk.conf": "timeout = 30s\n"},
    early=f"""
        {PAUSE_ACTIVATION}
        {GROUPS}
        modprobe dm-raid
        mdadm --create /dev/md/stripe --homehost=any --run --level=5 --assume-clean --bitmap=none --raid-devices=3 \\
            $(loops member 3)
        vgcreate stripes $(loops stripes 2)
        lvcreate --type=raid0 --stripes=2 --extents=16 --name=lv stripes
        vgcreate mirror $(loops mirror 2)
        lvcreate --type=raid1 --mirrors=1 --nosync --size=16M --name=one mirror
        vgcreate five $(loops five 6)
        one=$(losetup --list --noheadings --output=NAME,BACK-FILE | awk '/five-[123]$/ {{ print $1 }}')
        two=$(losetup --list --noheadings --output=NAME,BACK-FILE | awk '/five-[456]$/ {{ print $1 }}')
        lvcreate --type=raid5 --stripes=2 --extents=8 --name=one five $one
        lvcreate --type=raid5 --stripes=2 --extents=8 --name=two five $two
        vgcreate linear $(loops linear 2)
        lvcreate --extents=20 --name=lv linear
        sleep 3
        forget stripes 2
        forget mirror 2
        forget five "3 5 6"
        forget linear 2
        lvchange --activate=y stripes/lv
        lvchange --activate=y --activationmode=degraded mirror/one
        lvchange --activate=y --activationmode=degraded five/one
        lvchange --activate=y --activationmode=partial five/two
        lvchange --activate=y --activationmode=partial linear/lv
        mdadm /dev/md/stripe --fail $(losetup --noheadings --output=NAME --associated /srv/member-2)
        mdadm /dev/md/stripe --fail $(losetup --noheadings --output=NAME --associated /srv/member-3)
        dd if=/dev/urandom of=/dev/md/stripe bs=64k count=4 oflag=direct || true
        {RESUME_ACTIVATION}
        udevadm settle
        lvs --all --options=+devices,segtype,lv_health_status
        ls -la /sys/class/block/dm-*/slaves
        grep . /sys/class/block/dm-*/dm/name /sys/class/block/dm-*/size /sys/class/block/md*/md/array_state
        grep . /sys/class/block/md*/md/degraded /sys/class/block/md*/md/dev-*/state
    """,
)


def test_what_can_be_read_is_ready(boot: Boot) -> None:
    for name in USABLE:
        assert [*boot.disks_of(name)] == ["xvda"]
        assert not boot.said(rf"still waiting for {USABLE[name]} ")


@pytest.mark.parametrize("name", BROKEN)
def test_what_lacks_too_much_is_not_and_it_is_told_why(boot: Boot, name: str) -> None:
    path, words = BROKEN[name]
    missing = boot.entry(f"{path} for {name} is still not ready after 30s: .*")
    assert words in missing["REASON"]
