# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A RAID5 with only one of three members: it never starts, and the other guests start at the timeout."""

from __future__ import annotations

import re

import pytest
from xenhost import Boot, Disk, Guest, Host

pytestmark = [
    pytest.mark.promise("The wait ends at the timeout even if something hangs, and leaves no process behind"),
    pytest.mark.promise("At the timeout, each missing disk is named with the reason, and the other guests start"),
]

MEMBERS = tuple(Disk(f"stripe-{letter}") for letter in "abc")
WHOLE = Host(
    disks=MEMBERS,
    after="""
        mdadm --create /dev/md/stripe --homehost=any --run --level=5 --assume-clean --bitmap=none --raid-devices=3 \
            /dev/disk/by-id/virtio-stripe-[abc]
        mdadm --stop /dev/md/stripe
    """,
)
HOST = Host(
    disks=(MEMBERS[0]._replace(left_by=WHOLE), Disk("data", 32)),
    guests=(
        Guest("broken", ("/dev/md127,raw,xvda,w",), starts=False),
        Guest("other", ("/dev/disk/by-id/virtio-data,raw,xvda,w",)),
    ),
    files={"/etc/xen-wait-disk.conf": "timeout = 30s\n"},
)


def test_timeout_ends_the_wait(boot: Boot) -> None:
    assert boot.wait["Result"] == "exit-code"
    assert boot.wait["ExecMainStatus"] == "1"
    assert boot.wait["ActiveState"] == "failed"
    assert boot.waited > 30
    assert boot.wait_ended - boot.first_logged < 30 + boot.soon


def test_other_guest_starts_after_the_timeout(boot: Boot) -> None:
    assert boot.xendomains_followed
    assert boot.disks_of("other") == {"xvda": 32}
    # Here, xl attaches a disk of size 0.
    assert boot.disks_of("broken") == {}


def test_reason_is_logged(boot: Boot) -> None:
    reason = "/dev/md127: md array is inactive (only vdd present); too few members to start"
    pattern = re.escape(reason)
    assert boot.logged(
        rf"/dev/md127 for broken is still not ready after 30s: {pattern}; try: mdadm --detail /dev/md127"
    )
    later = re.escape("(once the disks are ready, start it with: xendomains-wait-disk start broken)")
    assert boot.logged(f"These guests will probably not come up: broken {later}.")
    assert boot.wait["StatusText"] == f"Timed out waiting for 1 disk of 1 guest: /dev/md127 for broken ({reason})"
