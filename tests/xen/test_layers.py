# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Storage of each kind with a layer that comes up late. The suggested commands are run verbatim, and work."""

from __future__ import annotations

import re
from typing import NamedTuple

import drbd
import nfs
import pytest
from md import WHOLE
from xenhost import Boot, Disk, Guest, Host

pytestmark = [
    pytest.mark.promise("Guests whose disks appear late are started, with their disks at full size"),
    pytest.mark.promise("A disk that exists but cannot be used yet is not ready"),
    pytest.mark.promise("The reason names the layer at fault, with a command that helps"),
]

UUID = "0e6cd8b1-7f1a-4a0e-9d70-54f4a1e9bd17"


class Expected(NamedTuple):
    """The state, reason and command for a guest's disk while it is not ready, and its size once it is."""

    guest: str
    path: str
    state: str
    reason: str
    hint: str
    mebibytes: float


EXPECTED = {
    "md": Expected(
        "array",
        "/dev/md/mirror",
        "missing",
        "/dev/md127: md array is inactive (only vdd present); mdadm will start it degraded after 30 s",
        "mdadm --run /dev/md127",
        63,
    ),
    # 16 MiB are LUKS' own.
    "luks": Expected(
        "crypt",
        "/dev/mapper/secret",
        "missing",
        "crypt volume secret is not open (it is in /etc/crypttab, with the option noauto)",
        "systemctl start systemd-cryptsetup@secret",
        32,
    ),
    # DRBD keeps its metadata at the end.
    "drbd secondary": Expected(
        "drbd",
        "/dev/drbd1",
        "not-ready",
        "DRBD is Secondary, and its peer, where the guest may be running, is not connected",
        "drbdadm primary one",
        31.9609375,
    ),
    "drbd down": Expected(
        "drbd", "/dev/drbd/by-res/two/0", "missing", "DRBD resource two is not up", "drbdadm up two", 31.9609375
    ),
    "nfs": Expected(
        "image",
        "/srv/images/web.img",
        "missing",
        f"/srv/images is not mounted (/etc/fstab mounts {nfs.ADDRESS}:/srv/export there)",
        "systemctl start /srv/images",
        24,
    ),
    "read-only": Expected(
        "writer",
        "/dev/disk/by-id/virtio-data",
        "not-ready",
        "is read-only, but the guest writes to it",
        "blockdev --setrw /dev/vdh",
        32,
    ),
}
HOST = Host(
    # vdd to vdi, in this order.
    disks=(
        Disk("mirror-a", left_by=WHOLE),
        Disk("luks", 48),
        Disk("one", 32),
        Disk("two", 32),
        Disk("data", 32),
        Disk("archive", 32),
    ),
    guests=(
        Guest("array", ("/dev/md/mirror,raw,xvda,w",)),
        Guest("crypt", ("/dev/mapper/secret,raw,xvda,w",)),
        Guest("drbd", ("phy:/dev/drbd1,xvda,w", "drbd:two,xvdb,w")),
        Guest("image", ("file:/srv/images/web.img,xvda,w",)),
        # A read-only disk is ready for a guest that only reads.
        Guest("writer", ("/dev/disk/by-id/virtio-data,raw,xvda,w", "/dev/disk/by-id/virtio-archive,raw,xvdb,r")),
    ),
    files={
        **nfs.FILES,
        **drbd.FILES,
        "/etc/crypttab": f"secret UUID={UUID} /root/key luks,noauto\n",
        "/etc/fstab": f"/dev/vda / ext4 defaults 0 1\n{nfs.ADDRESS}:/srv/export /srv/images nfs noauto 0 0\n",
    },
    # The array's timer of 30 seconds might expire before the wait begins.
    setup="""
        mkdir -p /srv/images /srv/export
        truncate --size=24M /srv/export/web.img
        systemctl mask mdadm-last-resort@md127.timer
    """,
    early=f"""
        echo -n password >/root/key
        chmod 600 /root/key
        cryptsetup luksFormat --batch-mode --pbkdf=pbkdf2 --pbkdf-force-iterations=1000 --uuid={UUID} \\
            /dev/disk/by-id/virtio-luks /root/key
        udevadm trigger --settle --action=change /dev/disk/by-id/virtio-luks
        {drbd.MAKE_PRIMARY}
        drbdadm secondary one
        drbdadm down two
        blockdev --setro /dev/disk/by-id/virtio-data
        blockdev --setro /dev/disk/by-id/virtio-archive
        udevadm settle
        {nfs.START}
    """,
    # Start after the last of the first messages. The disk without udev events comes last.
    late=f"""
        until_said "still waiting for {EXPECTED["read-only"].path} for writer..."
        {EXPECTED["md"].hint}
        {EXPECTED["luks"].hint}
        {EXPECTED["drbd secondary"].hint}
        {EXPECTED["drbd down"].hint}
        {EXPECTED["nfs"].hint} || true
        systemctl start srv-images.mount
        until_said "disk {EXPECTED["nfs"].path} found"
        ready writable
        {EXPECTED["read-only"].hint}
    """,
    awaited=("writable",),
)


def test_guests_come_up_with_their_disks(boot: Boot) -> None:
    for guest in HOST.guests:
        sizes = [expected.mebibytes for expected in EXPECTED.values() if expected.guest == guest.name]
        assert [*boot.disks_of(guest.name).values()] == sizes + [32] * (guest.name == "writer")


def test_wait_lasts_until_the_last_layer_is_ready(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    # There is no event when a device becomes writable: it is noticed at the next check, within a second.
    assert -0.5 < boot.released_after < boot.soon + 1


@pytest.mark.parametrize("kind", EXPECTED)
def test_reason_and_command_are_logged(boot: Boot, kind: str) -> None:
    expected = EXPECTED[kind]
    waiting = boot.entry(
        rf"still waiting for {re.escape(f'{expected.path} for {expected.guest}... ({expected.reason})')}"
    )
    fields = {"STATE": expected.state, "REASON": expected.reason, "HINT": expected.hint}
    assert {key: waiting[key] for key in fields} == fields
    assert boot.logged(rf"disk {re.escape(expected.path)} found \(after \d+ seconds\)")


def test_read_only_guest_does_not_wait(boot: Boot) -> None:
    assert not any("virtio-archive" in message for message in boot.messages())
