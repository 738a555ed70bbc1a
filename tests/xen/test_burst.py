# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""200 guests with two disks each, which all appear late and at the same time, in a burst of 400 udev events."""

from __future__ import annotations

import pytest
from xenhost import Boot, Guest, Host

pytestmark = pytest.mark.promise("The wait ends when the last disk appears, and a udev event ends a pause")


def disks(guest: int) -> tuple[str, str]:
    """Return the two disks of a guest."""
    return (f"/dev/mapper/disk{2 * guest},raw,xvda,w", f"/dev/mapper/disk{2 * guest + 1},raw,xvdb,w")


HOST = Host(
    guests=tuple(Guest(f"guest{number}", disks(number), starts=number in (0, 199)) for number in range(200)),
    late="""
        sleep 20
        disks=$(printf ';disk%d,,,rw,0 16384 zero' $(seq 0 399))
        dmsetup create --noudevsync --concise "${disks#;}"
    """,
    # There is not enough memory for all guests, so only two are started.
    files={"/etc/systemd/system/xendomains.service.d/two.conf": "[Service]\nExecStart=\nExecStart=/scenario/two\n"}
    | {"/scenario/two": "#!/bin/sh\nfor guest in 0 199; do xl create -q /etc/xen/auto/guest$guest.cfg; done\n"},
    awaited=tuple(f"/dev/mapper/disk{number}" for number in range(400)),
)


def test_all_guests_are_released_within_a_second_of_the_last_disk(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.released_in_time
    assert boot.xendomains_started > boot.wait_ended


def test_guests_see_their_disks(boot: Boot) -> None:
    assert boot.disks_of("guest0") == boot.disks_of("guest199") == {"xvda": 8, "xvdb": 8}
