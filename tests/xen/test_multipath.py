# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A multipath device: multipathd creates it when the second path appears, and only then claims the first path."""

from __future__ import annotations

import pytest
from xenhost import Boot, Guest, Host

pytestmark = pytest.mark.promise("Guests whose disks appear late are started, with their disks at full size")

TARGET = "iqn.2003-01.org.example:disk"
HOST = Host(
    guests=(Guest("web", ("/dev/mapper/mpatha,raw,xvda,w",)),),
    files={
        "/etc/tgt/conf.d/disk.conf": f"<target {TARGET}>\n  backing-store /srv/lun\n</target>\n",
        "/etc/multipath.conf": "defaults {\n  user_friendly_names yes\n  find_multipaths yes\n}\n",
    },
    setup="truncate --size=32M /srv/lun",
    early="""
        systemctl start tgt iscsid multipathd
        for portal in 127.0.0.1 127.0.0.2; do
            iscsiadm --mode discovery --type sendtargets --portal "$portal"
        done
    """,
    late="""
        sleep 5
        iscsiadm --mode node --portal 127.0.0.1 --login
        sleep 15
        iscsiadm --mode node --portal 127.0.0.2 --login
    """,
    awaited=("/dev/mapper/mpatha",),
    after="multipath -ll >/scenario/report/multipath",
)


def test_guest_sees_the_disk(boot: Boot) -> None:
    assert boot.disks_of("web") == {"xvda": 32}
    assert boot.text("multipath").count("active ready running") == 2


def test_wait_lasts_until_the_multipath_map_appears(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.waited > 10
    assert boot.released_in_time
