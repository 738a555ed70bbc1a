# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A LUN given by its link in /dev/disk/by-path: the host logs in late, with the command that the program suggests."""

from __future__ import annotations

import pytest
from xenhost import Boot, Guest, Host

pytestmark = [
    pytest.mark.promise("Guests whose disks appear late are started, with their disks at full size"),
    pytest.mark.promise("The reason names the layer at fault, with a command that helps"),
]

TARGET = "iqn.2003-01.org.example:disk"
LUN = f"/dev/disk/by-path/ip-127.0.0.1:3260-iscsi-{TARGET}-lun-1"
ADVICE = f"iscsiadm -m node -T {TARGET} --login"
HOST = Host(
    guests=(Guest("web", (f"{LUN},raw,xvda,w",)),),
    files={"/etc/tgt/conf.d/disk.conf": f"<target {TARGET}>\n  backing-store /srv/lun\n</target>\n"},
    setup="truncate --size=32M /srv/lun",
    early="systemctl start tgt iscsid && iscsiadm --mode discovery --type sendtargets --portal 127.0.0.1",
    late=f"until_said 'still waiting for {LUN} for web...'; sleep 10; {ADVICE}",
    awaited=(LUN,),
)


def test_guest_sees_the_whole_disk(boot: Boot) -> None:
    assert boot.disks_of("web") == {"xvda": 32}


def test_wait_lasts_until_the_lun_appears(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.waited > 10
    assert boot.released_in_time
    assert boot.xendomains_followed


def test_reason_and_command_are_logged(boot: Boot) -> None:
    waiting = boot.entry(f"still waiting for {LUN} for web.*")
    assert waiting["REASON"] == f"no session with iSCSI target {TARGET} at 127.0.0.1:3260 (node.startup is manual)"
    assert waiting["HINT"] == ADVICE
