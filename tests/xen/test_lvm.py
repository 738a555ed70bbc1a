# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A logical volume on a LUN that the host logs in to late: the udev event for the LUN activates the volume group.

LVM last saw the physical volume on that LUN.
"""

from __future__ import annotations

import pytest
from lvm import PAUSE_ACTIVATION, RESUME_ACTIVATION, SERVE_VOLUME_GROUP, TARGET, TARGET_WITHOUT_CLONE
from xenhost import Boot, Guest, Host

pytestmark = [
    pytest.mark.promise("Guests whose disks appear late are started, with their disks at full size"),
    pytest.mark.promise("The reason names the layer at fault, with a command that helps"),
]

HOST = Host(
    guests=(Guest("web", ("/dev/vg/lv,raw,xvda,w",)),),
    files={"/etc/tgt/conf.d/group.conf": TARGET_WITHOUT_CLONE},
    early=f"""
        {SERVE_VOLUME_GROUP}
        {PAUSE_ACTIVATION}
        iscsiadm --mode node --login
        udevadm settle
        vgcfgbackup vg
        iscsiadm --mode node --logout
        {RESUME_ACTIVATION}
    """,
    late=f"until_said 'still waiting for /dev/vg/lv for web...'; sleep 10; iscsiadm -m node -T {TARGET} --login",
    awaited=("/dev/vg/lv",),
)


def test_guest_sees_the_volume_not_the_lun(boot: Boot) -> None:
    assert boot.disks_of("web") == {"xvda": 32}


def test_wait_lasts_until_the_volume_is_active(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.waited > 10
    assert boot.released_in_time


def test_reason_names_missing_physical_volume(boot: Boot) -> None:
    """It does not blame the target, because the host does not log in to it automatically (node.startup)."""
    waiting = boot.entry(
        r"still waiting for /dev/vg/lv for web\.\.\. \(volume group vg lacks physical volume [\w-]+ "
        r"\(last seen as /dev/sda\)\)"
    )
    assert waiting["STATE"] == "missing"
