# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A cached volume whose fast disk appears late: LVM activates the volume when both disks are present."""

from __future__ import annotations

import pytest
from lvm import PAUSE_ACTIVATION, RESUME_ACTIVATION
from xenhost import Boot, Guest, Host

pytestmark = pytest.mark.promise("Guests whose disks appear late are started, with their disks at full size")

HOST = Host(
    guests=(Guest("web", ("/dev/vg/lv,raw,xvda,w",)),),
    early=f"""
        {PAUSE_ACTIVATION}
        truncate --size=64M /srv/slow /srv/fast
        slow=$(losetup --find --show /srv/slow)
        fast=$(losetup --find --show /srv/fast)
        vgcreate vg "$slow" "$fast"
        lvcreate --size=32M --zero=n --name=lv vg "$slow"
        lvcreate --type=cache-pool --size=16M --poolmetadatasize=8M --name=cache vg "$fast"
        lvconvert --yes --type=cache --cachepool=cache vg/lv
        vgchange --activate=n vg
        losetup --detach "$slow" "$fast"
        udevadm settle
        {RESUME_ACTIVATION}
        losetup "$slow" /srv/slow
        echo "$fast" >$report/fast
    """,
    late="""
        until_said "still waiting for /dev/vg/lv for web..."
        losetup "$(cat $report/fast)" /srv/fast
    """,
    awaited=("/dev/vg/lv",),
    after="dmsetup table vg-lv >$report/table",
)


def test_guest_sees_the_cached_volume_when_it_is_active(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.disks_of("web") == {"xvda": 32}
    assert " cache " in boot.text("table")


def test_missing_fast_disk_is_named(boot: Boot) -> None:
    waiting = boot.entry(r"still waiting for /dev/vg/lv for web\.\.\. .*")
    assert waiting["STATE"] == "missing"
    # Either the group lacks it, or its loop device has no file.
    assert "physical volume" in waiting["REASON"] or boot.text("fast").strip() in waiting["REASON"]
