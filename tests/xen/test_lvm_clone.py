# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A logical volume on a LUN whose clone, with the same LVM identifiers, is also attached: LVM activates neither."""

from __future__ import annotations

import pytest
from lvm import PAUSE_ACTIVATION, SERVE_VOLUME_GROUP, TARGET, TARGET_WITH_CLONE
from xenhost import Boot, Guest, Host

pytestmark = [
    pytest.mark.promise("A disk that exists but cannot be used yet is not ready"),
    pytest.mark.promise("A LUN and its clone have the same LVM identifiers"),
]

HOST = Host(
    guests=(Guest("web", ("/dev/vg/lv,raw,xvda,w",), starts=False),),
    files={"/etc/tgt/conf.d/group.conf": TARGET_WITH_CLONE, "/etc/xen-wait-disk.conf": "timeout = 40s\n"},
    early=SERVE_VOLUME_GROUP,
    # The group is not activated by an event, but by a command that sees both.
    late=f"""
        {PAUSE_ACTIVATION}
        iscsiadm --mode node --login
        udevadm settle
        vgchange --activate=ay vg || true
    """,
    after=f"""
        vgimportclone /dev/disk/by-path/ip-127.0.0.1:3260-iscsi-{TARGET}-lun-2
        vgs --noheadings -o vg_name >$report/groups
    """,
)


def test_neither_clone_is_activated_as_the_volume(boot: Boot) -> None:
    assert "duplicate" in boot.text("journal.txt")
    assert boot.wait["ExecMainStatus"] == "1"
    assert not boot.came_up("web")


def test_clone_is_reported(boot: Boot) -> None:
    assert boot.logged(
        "/dev/vg/lv for web is still missing after 40s: "
        r"sd[ab], sd[ab] carry the same PV UUID \(a LUN and its clone, or paths to one LUN\); try: lsblk .*"
    )


def test_suggested_command_gives_the_clone_its_own_group(boot: Boot) -> None:
    assert boot.text("groups").split() == ["vg", "vg1"]
