# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""DRBD resources that are brought up late, one by drbd:RESOURCE and one by its name below /dev/drbd/by-res."""

from __future__ import annotations

from xenhost import Boot, Disk, Guest, Host


def resource(name: str, minor: int) -> str:
    """A resource of which this host is one of two nodes. The other is never there."""
    return f"""
resource {name} {{
    device minor {minor};
    disk /dev/disk/by-id/virtio-{name};
    meta-disk internal;
    on dom0 {{ address 127.0.0.1:{7789 + minor}; }}
    on elsewhere {{ address 127.0.0.9:{7789 + minor}; }}
}}
"""


HOST = Host(
    disks=(Disk("one", 32), Disk("two", 32)),
    guests=(
        Guest("by-prefix", ("drbd:one,xvda,w",)),
        Guest("by-link", ("/dev/drbd/by-res/two/0,raw,xvda,w",)),
    ),
    files={"/etc/drbd.d/one.res": resource("one", 1), "/etc/drbd.d/two.res": resource("two", 2)},
    early="""
        modprobe drbd
        for resource in one two; do
            drbdadm create-md --force "$resource"
            drbdadm up "$resource"
            drbdadm primary --force "$resource"
            drbdadm down "$resource"
        done
    """,
    late="""
        sleep 20
        drbdadm up one two
        drbdadm primary two
    """,
    # udev tells of the device before it has a disk, and only much later that it has one.
    awaited=("drbd1: detected capacity change from 0", "drbd2: detected capacity change from 0"),
)


def test_the_guests_see_their_disks(boot: Boot) -> None:
    # A little less than the disk below: DRBD keeps its metadata at the end.
    assert 31 < boot.disks_of("by-prefix")["xvda"] < 32
    assert 31 < boot.disks_of("by-link")["xvda"] < 32


def test_the_wait_lasts_until_the_resources_are_up(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.waited > 10
    # Being made primary is an event, and since systemd 256 (Debian 13) udev's database says while it has not finished
    # with that (ID_PROCESSING).
    ready = max(*map(boot.ready_at, HOST.awaited), *map(boot.last_event, ("/dev/drbd1", "/dev/drbd2")))
    assert -0.5 < boot.wait_ended - ready < boot.soon
