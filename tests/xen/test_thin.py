# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Thin volumes: one with a pool that is activated late, and one with a pool that LVM activates only after a repair."""

from __future__ import annotations

import pytest
from lvm import PAUSE_ACTIVATION, RESUME_ACTIVATION
from xenhost import Boot, Guest, Host

pytestmark = [
    pytest.mark.promise("Guests whose disks appear late are started, with their disks at full size"),
    pytest.mark.promise("The reason names the layer at fault, with a command that helps"),
]

HOST = Host(
    guests=(
        Guest("whole", ("/dev/whole/lv,raw,xvda,w",)),
        Guest("torn", ("/dev/torn/lv,raw,xvda,w",)),
    ),
    # Block 1 of a pool's metadata is the index of its space map, which thin_repair(8) can recreate.
    early=f"""
        {PAUSE_ACTIVATION}
        for group in whole torn; do
            truncate --size=48M "/srv/$group"
            device=$(losetup --find --show "/srv/$group")
            vgcreate "$group" "$device"
            lvcreate --type=thin-pool --size=16M --poolmetadatasize=4M --name=pool "$group"
            lvcreate --thin --virtualsize=32M --name=lv "$group/pool"
            read -r _ _ _ _ sector <<<"$(dmsetup table "$group-pool_tmeta")"
            vgchange --activate=n "$group"
        done
        dd if=/dev/urandom of="$device" bs=512 seek=$((sector + 8)) count=8 conv=fsync
        udevadm settle
        {RESUME_ACTIVATION}
    """,
    late="""
        until_said "still waiting for /dev/torn/lv for torn..."
        vgchange --activate=y whole
        until_said "disk /dev/whole/lv found"
        take_advice /dev/torn/lv || lvconvert --yes --repair torn/pool
        vgchange --activate=y torn
    """,
    awaited=("/dev/torn/lv",),
)


def test_guests_see_their_disks_when_the_pools_are_active(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.disks_of("whole") == boot.disks_of("torn") == {"xvda": 32}


def test_message_gives_the_command_that_repairs_the_pool(boot: Boot) -> None:
    waiting = boot.entry(r"still waiting for /dev/torn/lv for torn\.\.\. .*\bpool\b.*")
    assert waiting["STATE"] == "missing"
    assert (waiting["HINT"], "lvconvert --repair torn/pool" in waiting["REASON"]) == ("lvchange -ay torn/pool", True)
