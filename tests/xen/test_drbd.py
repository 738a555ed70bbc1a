# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""DRBD resources that are brought up late, one given as drbd:RESOURCE, the other by its link in /dev/drbd/by-res."""

from __future__ import annotations

import drbd
import pytest
from xenhost import Boot, Disk, Guest, Host

pytestmark = pytest.mark.promise("Guests whose disks appear late are started, with their disks at full size")

HOST = Host(
    disks=(Disk("one", 32), Disk("two", 32)),
    guests=(
        Guest("by-prefix", ("drbd:one,xvda,w",)),
        Guest("by-link", ("/dev/drbd/by-res/two/0,raw,xvda,w",)),
    ),
    files=drbd.FILES,
    early=f"""
        {drbd.MAKE_PRIMARY}
        drbdadm down one
        drbdadm down two
    """,
    late="""
        sleep 20
        drbdadm up one two
        drbdadm primary two
    """,
    # udev announces the device before it has a disk, and only much later that it has one. Xen's script for drbd: makes
    # the first resource Primary, the host itself the second.
    awaited=("drbd1: detected capacity change from 0", "drbd2: role( Secondary -> Primary )"),
)


def test_guests_see_their_disks(boot: Boot) -> None:
    # Slightly smaller than the underlying disk: DRBD keeps its metadata at the end.
    assert 31 < boot.disks_of("by-prefix")["xvda"] < 32
    assert 31 < boot.disks_of("by-link")["xvda"] < 32


def test_wait_lasts_until_the_resources_are_up(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.waited > 10
    # Becoming Primary is an event, and since systemd 256 (Debian 13) udev's database shows while it is being processed
    # (ID_PROCESSING).
    ready = max(*map(boot.ready_at, HOST.awaited), *map(boot.last_event, ("/dev/drbd1", "/dev/drbd2")))
    # On Debian 12 it is noticed at the next check, within a second.
    assert -0.5 < boot.wait_ended - ready < boot.soon + 1


def test_reason_and_command_are_logged(boot: Boot) -> None:
    waiting = boot.entry("still waiting for /dev/drbd/by-res/one/0 for by-prefix.*")
    assert (waiting["REASON"], waiting["HINT"]) == ("DRBD resource one is not up", "drbdadm up one")
