# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Xen's daemons, our unit and xendomains are restarted on the running host."""

from __future__ import annotations

import pytest
from xenhost import Boot, Disk, Guest, Host

pytestmark = pytest.mark.promise("Running guests are not touched")

HOST = Host(
    disks=(Disk("data", 32),),
    guests=(Guest("web", ("/dev/disk/by-id/virtio-data,raw,xvda,w",)),),
    after="""
        xl domid web >/scenario/report/domid-at-first
        systemctl restart xen
        times after-xen
        systemctl restart xendomains-wait-disk
        times after-wait
        xl domid web >/scenario/report/domid-at-last
        rm /var/log/xen/console/guest-web.log
        systemctl restart xendomains
        times after-xendomains
        wait_for_guest web
    """,
)


def test_restarts_of_the_daemons_and_of_the_wait_leave_the_guest_alone(boot: Boot) -> None:
    assert boot.text("domid-at-last") == boot.text("domid-at-first")
    assert boot.units("after-xen")["xendomains"] == boot.units()["xendomains"]
    assert boot.units("after-wait")["xendomains"] == boot.units()["xendomains"]


def test_wait_runs_again_each_time_it_is_started(boot: Boot) -> None:
    runs = [boot.units(when)["xendomains-wait-disk"] for when in ("units", "after-wait", "after-xendomains")]
    assert len({run["InvocationID"] for run in runs}) == 3
    assert [run["Result"] for run in runs] == ["success"] * 3


def test_restart_of_xendomains_brings_the_guest_back(boot: Boot) -> None:
    assert boot.disks_of("web") == {"xvda": 32}
