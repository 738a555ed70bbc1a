# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A RAID1 with a missing member: there is an inactive array of size 0 at once; systemd starts it after 30 seconds.

That is done by mdadm-last-resort@.timer; see mdadm's udev rule 64-md-raid-assembly.rules.
"""

from __future__ import annotations

import re

import pytest
from md import WHOLE
from xenhost import Boot, Disk, Guest, Host

pytestmark = [
    pytest.mark.promise("Guests whose disks appear late are started, with their disks at full size"),
    pytest.mark.promise("A disk that exists but cannot be used yet is not ready"),
]

HOST = Host(
    disks=(Disk("mirror-a", left_by=WHOLE),),
    guests=(
        Guest("by-name", ("/dev/md/mirror,raw,xvda,r",)),
        Guest("by-node", ("/dev/md127,raw,xvda,r",)),
    ),
    awaited=("/dev/md127",),
)


def test_guests_see_the_whole_disk(boot: Boot) -> None:
    assert boot.disks_of("by-name") == {"xvda": 63}
    assert boot.disks_of("by-node") == {"xvda": 63}


def test_wait_lasts_until_the_array_starts(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert 10 < boot.waited < 60
    assert boot.released_in_time
    assert boot.xendomains_followed


def test_inactive_array_is_logged(boot: Boot) -> None:
    reason = "/dev/md127: md array is inactive (only vdd present); mdadm will start it degraded after 30 s"
    pattern = re.escape(reason)
    assert boot.logged(rf"still waiting for /dev/md127 for by-node\.\.\. \({pattern}\)")
    assert boot.logged(rf"still waiting for /dev/md/mirror for by-name\.\.\. \({pattern}\)")
    assert boot.logged(r"disk /dev/md127 found \(after \d+ seconds\)")


def test_journal_entry_has_fields(boot: Boot) -> None:
    waiting = boot.entry(r"still waiting for /dev/md127 for by-node\.\.\. .*")
    assert (waiting["DISK"], waiting["DOMAIN"], waiting["PRIORITY"]) == ("/dev/md127", "by-node", "4")
    assert waiting["STATE"] in ("missing", "not-ready")
    assert waiting["MESSAGE"].endswith(f" ({waiting['REASON']})")
    found = boot.entry(r"disk /dev/md127 found .*")
    assert (found["DISK"], found["DOMAIN"], found["STATE"]) == ("/dev/md127", "by-node", "ready")
