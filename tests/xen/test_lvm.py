# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A logical volume on a LUN, to which the host logs in late: udev's event for the LUN activates the volume group."""

from __future__ import annotations

from lvm import SERVE_VOLUME_GROUP, TARGET_WITHOUT_CLONE
from xenhost import Boot, Guest, Host

HOST = Host(
    guests=(Guest("web", ("/dev/vg/lv,raw,xvda,w",)),),
    files={"/etc/tgt/conf.d/group.conf": TARGET_WITHOUT_CLONE},
    early=SERVE_VOLUME_GROUP,
    late="sleep 20; iscsiadm --mode node --login",
    awaited=("/dev/vg/lv",),
)


def test_the_guest_sees_the_volume_not_the_lun(boot: Boot) -> None:
    assert boot.disks_of("web") == {"xvda": 32}


def test_the_wait_lasts_until_the_volume_is_active(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.waited > 10
    assert boot.released_in_time
