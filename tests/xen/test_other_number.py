# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""An array named /dev/md0 in mdadm.conf, but assembled as /dev/md127 by an initramfs without that line."""

from __future__ import annotations

import pytest
from md import WHOLE
from xenhost import Boot, Disk, Guest, Host

pytestmark = pytest.mark.promise("The reason names the layer at fault, with a command that helps")

HOST = Host(
    disks=(Disk("mirror-a", left_by=WHOLE), Disk("mirror-b", left_by=WHOLE)),
    guests=(Guest("web", ("/dev/md0,raw,xvda,w",)),),
    initrd="initrd-mdadm.img",
    early="""
        uuid=$(mdadm --detail --brief /dev/md127 | grep --only-matching 'UUID=.*')
        echo "ARRAY /dev/md0 $uuid" >>/etc/mdadm/mdadm.conf
    """,
    late="""
        until_said "still waiting for /dev/md0 for web..."
        mdadm --stop /dev/md127
        mdadm --assemble /dev/md0
    """,
    awaited=("/dev/md0",),
)


def test_guest_sees_the_array_when_it_has_its_number(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.disks_of("web") == {"xvda": 63}


def test_message_names_the_number_of_the_running_array(boot: Boot) -> None:
    waiting = boot.entry(r"still waiting for /dev/md0 for web\.\.\. .*\bmd127\b.*")
    assert (waiting["STATE"], waiting["HINT"]) == ("missing", "mdadm --detail /dev/md127")
