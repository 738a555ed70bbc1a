# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""iSCSI sessions that fail before the wait and recover during it: for a LUN, below a volume, below a multipath map.

The devices exist all the time, with their full size, and without udev events. One of the two paths of the map recovers.
"""

from __future__ import annotations

import re

import pytest
from xenhost import Boot, Guest, Host

pytestmark = [
    pytest.mark.promise("Guests whose disks appear late are started, with their disks at full size"),
    pytest.mark.promise("A disk that exists but cannot be used yet is not ready"),
    pytest.mark.promise("The reason names the layer at fault, with a command that helps"),
]

TARGET = "iqn.2003-01.org.example"
# Addresses reserved for documentation (RFC 5737). Removing them simulates a crashed server: a server that is stopped
# would close its connections.
FIRST, SECOND = "192.0.2.1", "192.0.2.2"
LUN = f"/dev/disk/by-path/ip-{FIRST}:3260-iscsi-{TARGET}:disk-lun-1"
HOST = Host(
    guests=(
        Guest("lun", (f"{LUN},raw,xvda,w",)),
        Guest("map", ("/dev/mapper/mpatha,raw,xvda,w",)),
        Guest("volume", ("/dev/vg/lv,raw,xvda,w",)),
    ),
    files={
        **{
            f"/etc/tgt/conf.d/{name}.conf": f"<target {TARGET}:{name}>\n  backing-store /srv/{name}\n</target>\n"
            for name in ("disk", "group", "map")
        },
        "/etc/multipath.conf": "defaults {\n  user_friendly_names yes\n  find_multipaths yes\n}\n",
    },
    setup="truncate --size=32M /srv/disk /srv/map; truncate --size=64M /srv/group",
    # All failures must be complete before the wait begins: devices no longer blocked, and noticed by multipathd.
    early=f"""
        ip address add {FIRST}/32 dev lo
        ip address add {SECOND}/32 dev lo
        systemctl start tgt iscsid multipathd
        for portal in {FIRST} {SECOND}; do
            iscsiadm --mode discovery --type sendtargets --portal "$portal"
        done
        for name in disk group map; do
            iscsiadm --mode node --targetname {TARGET}:$name --portal {FIRST} --login
        done
        iscsiadm --mode node --targetname {TARGET}:map --portal {SECOND} --login
        udevadm settle
        vgcreate vg /dev/disk/by-path/ip-{FIRST}:3260-iscsi-{TARGET}:group-lun-1
        lvcreate --name=lv --size=16M --zero=n vg
        until [ -e /dev/mapper/mpatha ]; do sleep 0.1; done
        dmsetup message mpatha 0 fail_if_no_path
        for session in /sys/class/iscsi_session/*; do echo 5 >$session/recovery_tmo; done
        ip address delete {FIRST}/32 dev lo
        ip address delete {SECOND}/32 dev lo
        while grep -q 'running\\|blocked' /sys/block/sd*/device/state; do sleep 0.2; done
        until grep -q MPATH_DEVICE_READY=0 /run/udev/data/b253:*; do sleep 0.2; done
        udevadm settle
    """,
    late=f"""
        until_said "still waiting for /dev/vg/lv for volume..."
        iscsiadm -m session -P 1 >$report/sessions
        ip address add {FIRST}/32 dev lo
        until [ "$(grep -l running /sys/block/sd*/device/state | wc -l)" = 3 ]; do sleep 0.1; done
        until grep -q MPATH_DEVICE_READY=1 /run/udev/data/b253:*; do sleep 0.1; done
        ready recovered
    """,
    awaited=("recovered",),
    after="multipath -ll >$report/multipath",
)


def test_guests_can_read_their_disks(boot: Boot) -> None:
    assert {name: boot.disks_of(name) for name in ("lun", "map", "volume")} == {
        "lun": {"xvda": 32},
        "map": {"xvda": 32},
        "volume": {"xvda": 16},
    }


def test_one_path_of_two_is_enough(boot: Boot) -> None:
    assert re.findall(r" (\w+) +\w+ +running", boot.text("multipath")).count("active") == 1


def test_wait_lasts_until_the_sessions_recover(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    # There is no event for the state of a LUN: it is noticed at the next check, within a second, and perhaps earlier
    # than by the script. The reads in the guests show that it was not too early.
    assert boot.released_after < boot.soon + 1


@pytest.mark.parametrize(
    ("guest", "path", "name"),
    [
        ("lun", LUN, "disk"),
        ("map", "/dev/mapper/mpatha", "map"),
        ("volume", "/dev/vg/lv", "group"),
    ],
)
def test_reason_and_command_are_logged(boot: Boot, guest: str, path: str, name: str) -> None:
    reason = rf"the session with iSCSI target {TARGET}:{name} at [0-9.]+:3260 has failed"
    waiting = boot.entry(rf"still waiting for {path} for {guest}\.\.\. \({reason}\)")
    assert (waiting["STATE"], waiting["HINT"]) == ("not-ready", "iscsiadm -m session -P 1")
    assert boot.logged(rf"disk {path} found \(after \d+ seconds\)")


def test_suggested_command_shows_the_sessions(boot: Boot) -> None:
    assert boot.text("sessions").count("Internal iscsid Session State: REOPEN") == 4
