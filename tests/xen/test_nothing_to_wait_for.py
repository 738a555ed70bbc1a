# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Guests without disks to wait for: no disk, an empty drive, or disks from a driver domain, a script or QEMU."""

from __future__ import annotations

import pytest
from xenhost import Boot, Guest, Host

pytestmark = pytest.mark.promise("Guests with nothing to wait for do not delay the boot")

HOST = Host(
    guests=(
        Guest("no-disk"),
        Guest("empty-drive", ("vdev=xvdz,cdrom,format=empty",), starts=False),
        Guest("driver-domain", ("vdev=xvda,backend=storage,target=/dev/vg/lv",), starts=False),
        Guest("script", ("vdev=xvda,script=block-none,target=somewhere",), starts=False),
        Guest("rbd", ("vdev=xvda,backendtype=qdisk,format=raw,target=rbd:pool/image",), starts=False),
    ),
    # xl takes a long time to fail for the guests that cannot start.
    files={"/etc/systemd/system/xendomains.service.d/timeout.conf": "[Service]\nTimeoutStartSec=40s\n"},
    after="wait_for_guest no-disk",
)


def test_wait_ends_before_xens_daemons_are_up(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.wait_ended < boot.xen_active
    (summary,) = boot.messages()
    assert summary.startswith("Everything is ready for ")


def test_guest_without_disks_starts(boot: Boot) -> None:
    assert boot.disks_of("no-disk") == {}
