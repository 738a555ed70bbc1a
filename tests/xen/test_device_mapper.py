# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A LUKS volume that is opened late, and a suspended device-mapper device that is resumed even later."""

from __future__ import annotations

import pytest
from xenhost import Boot, Disk, Guest, Host

pytestmark = pytest.mark.promise("Guests whose disks appear late are started, with their disks at full size")

HOST = Host(
    disks=(Disk("luks", 48), Disk("data", 32)),
    guests=(
        Guest("secret", ("/dev/mapper/secret,raw,xvda,w",)),
        Guest("suspended", ("/dev/mapper/suspended,raw,xvda,w",)),
    ),
    early="""
        echo -n password >/root/key
        cryptsetup luksFormat --batch-mode --pbkdf=pbkdf2 --pbkdf-force-iterations=1000 \
            /dev/disk/by-id/virtio-luks /root/key
        dmsetup create suspended --table '0 65536 linear /dev/disk/by-id/virtio-data 0'
        dmsetup suspend suspended
    """,
    late="""
        sleep 15
        cryptsetup open --key-file=/root/key /dev/disk/by-id/virtio-luks secret
        sleep 10
        ready resumed
        dmsetup resume suspended
    """,
    awaited=("resumed",),
)


def test_guests_see_their_disks(boot: Boot) -> None:
    # The LUKS header takes 16 MiB.
    assert boot.disks_of("secret") == {"xvda": 32}
    assert boot.disks_of("suspended") == {"xvda": 32}


def test_wait_lasts_until_the_device_is_resumed(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.waited > 10
    assert boot.released_in_time


def test_open_crypt_volume_is_found_first(boot: Boot) -> None:
    messages = boot.messages()
    found = [message for message in messages if " found " in message]
    assert [message.split()[1] for message in found] == ["/dev/mapper/secret", "/dev/mapper/suspended"]
