# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A RAID1 of which one member is missing, half assembled before systemd starts, as mdadm in an initramfs leaves it.

udev then does not know that the member belongs to an array, and no timer starts it degraded. The wait says so, and with
the command that it advises the guest comes up.
"""

from __future__ import annotations

import pytest
from md import WHOLE
from xenhost import Boot, Disk, Guest, Host

pytestmark = pytest.mark.promise("The reason names the layer at fault, with a command that helps")

REASON = "/dev/md127: md array is inactive (only vdd present); nothing will start it unless another member appears"
HOST = Host(
    disks=(Disk("mirror-a", left_by=WHOLE),),
    guests=(Guest("web", ("/dev/md/mirror,raw,xvda,w",)),),
    setup="""
        mount -t proc proc /proc
        mount -t sysfs sysfs /sys
        mount -t devtmpfs devtmpfs /dev
        modprobe raid1
        mdadm --incremental /dev/vdd
        cat /proc/mdstat
        umount /dev /sys /proc
    """,
    late=f"""
        until_said "{REASON}"
        mdadm --run /dev/md127
    """,
    after="cat /run/udev/data/b254:48 /run/mdadm/map; systemctl list-timers --all",
    awaited=("/dev/md127",),
)


def test_it_is_told_that_nothing_will_start_it(boot: Boot) -> None:
    waiting = boot.entry(r"still waiting for /dev/md/mirror for web\.\.\. .*")
    assert (waiting["REASON"], waiting["HINT"]) == (REASON, "mdadm --run /dev/md127")


def test_the_guest_comes_up_when_it_is_started(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.disks_of("web") == {"xvda": 63}
