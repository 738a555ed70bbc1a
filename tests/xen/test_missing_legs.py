# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Active arrays and volumes that have lost as many members as their redundancy covers, or more."""

from __future__ import annotations

import pytest
from lvm import PAUSE_ACTIVATION, RESUME_ACTIVATION
from xenhost import Boot, Guest, Host

pytestmark = pytest.mark.promise("A disk that exists but cannot be used yet is not ready")

# Devices that are still usable, and the others with a part of the reason.
USABLE = {"raid1": "/dev/mirror/lv", "raid5": "/dev/five/lv"}
BROKEN = {
    "array": ("/dev/md/stripe", "md array is broken"),
    "raid0": ("/dev/stripes/lv", "loop device has no file"),
    "linear": ("/dev/linear/lv", "loop device has no file"),
}
HOST = Host(
    guests=(
        *(Guest(name, (f"{path},raw,xvda,w",)) for name, path in USABLE.items()),
        *(Guest(name, (f"{path},raw,xvda,w",), starts=False) for name, (path, _) in BROKEN.items()),
    ),
    files={"/etc/xen-wait-disk.conf": "timeout = 30s\n"},
    # Each volume group loses its last physical volume.
    early=f"""
        {PAUSE_ACTIVATION}
        loops() {{
            for number in $(seq "$2"); do
                truncate --size=48M "/srv/$1-$number"
                losetup --find --show "/srv/$1-$number"
            done
        }}
        loop_of() {{
            losetup --noheadings --output=NAME --associated "/srv/$1"
        }}
        modprobe dm-raid
        mdadm --create /dev/md/stripe --homehost=any --run --level=5 --assume-clean --bitmap=none --raid-devices=3 \\
            $(loops member 3)
        vgcreate stripes $(loops stripes 2)
        vgcreate mirror $(loops mirror 2)
        vgcreate five $(loops five 3)
        vgcreate linear $(loops linear 2)
        lvcreate --type=raid0 --stripes=2 --extents=16 --name=lv stripes
        lvcreate --type=raid1 --mirrors=1 --nosync --size=16M --name=lv mirror
        lvcreate --type=raid5 --stripes=2 --nosync --extents=8 --name=lv five
        lvcreate --extents=20 --name=lv linear
        vgchange --activate=n
        losetup --detach "$(loop_of stripes-2)" "$(loop_of mirror-2)" "$(loop_of five-3)" "$(loop_of linear-2)"
        udevadm settle
        pvscan --cache
        lvchange --activate=y stripes/lv
        lvchange --activate=y --activationmode=degraded mirror/lv five/lv
        lvchange --activate=y --activationmode=partial linear/lv
        mdadm /dev/md/stripe --fail "$(loop_of member-2)"
        # The kernel returns EBUSY for this, because the array is then broken.
        mdadm /dev/md/stripe --fail "$(loop_of member-3)" || true
        dd if=/dev/urandom of=/dev/md/stripe bs=64k count=4 oflag=direct || true
        {RESUME_ACTIVATION}
        udevadm settle
    """,
)


def test_usable_degraded_device_is_ready(boot: Boot) -> None:
    for name in USABLE:
        assert [*boot.disks_of(name)] == ["xvda"]
        assert not boot.logged(rf"still waiting for {USABLE[name]} ")


@pytest.mark.parametrize("name", BROKEN)
def test_device_with_too_many_missing_members_is_not_ready_with_a_reason(boot: Boot, name: str) -> None:
    path, words = BROKEN[name]
    missing = boot.entry(f"{path} for {name} is still not ready after 30s: .*")
    assert words in missing["REASON"]
