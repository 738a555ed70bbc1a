# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A RAID1 with a missing member, half assembled by Debian's initramfs with mdadm.

In this case, udev does not know that the member belongs to an array, and no timer starts the array degraded. The
program says so, and the command it suggests makes the guest come up.
"""

from __future__ import annotations

import pytest
from md import WHOLE
from xenhost import Boot, Disk, Guest, Host

pytestmark = pytest.mark.promise("The reason names the layer at fault, with a command that helps")

HOST = Host(
    disks=(Disk("mirror-a", left_by=WHOLE),),
    guests=(Guest("web", ("/dev/md/mirror,raw,xvda,w",)),),
    initrd="initrd-mdadm.img",
    late="""
        until_said "still waiting for /dev/md/mirror for web..."
        cp /run/udev/data/b254:48 $report/member
        take_advice /dev/md/mirror
    """,
    awaited=("/dev/md127",),
)


def test_message_says_that_nothing_will_start_the_array(boot: Boot) -> None:
    assert "MD_DEVICE" not in boot.text("member")
    waiting = boot.entry(r"still waiting for /dev/md/mirror for web\.\.\. .*\bmd127\b.* inactive .*\bvdd\b.*")
    assert waiting["HINT"] == "mdadm --run /dev/md127"


def test_suggested_command_starts_the_array_and_the_guest_comes_up(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.disks_of("web") == {"xvda": 63}
