# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A saved guest whose disk appears after the timeout: xendomains-late.service restores it."""

from __future__ import annotations

import pytest
from saved import BEFORE, MAKE_DISK, WEB
from xenhost import Boot, Disk, Host

pytestmark = pytest.mark.promise(
    "A saved guest is restored once and never created; an incomplete or outdated file is not used"
)

HOST = Host(
    disks=(Disk("data", 32), Disk("saved", left_by=BEFORE)),
    guests=(WEB._replace(starts=False),),
    files={"/etc/xen-wait-disk.conf": "timeout = 5s\n"},
    setup="""
        mkdir -p /var/lib/xen/save
        echo '/dev/disk/by-id/virtio-saved /var/lib/xen/save ext4 defaults 0 2' >>/etc/fstab
        systemctl --quiet enable xendomains-late.service
    """,
    after=f"""
        ls -A /var/lib/xen/save >"$report/before"
        sleep 20
        {MAKE_DISK}
        wait_for_guest web
        until [ ! -e /var/lib/xen/save/web ]; do sleep 1; done
        ls -A /var/lib/xen/save >"$report/after"
    """,
)


def test_guest_is_restored_with_its_disk(boot: Boot) -> None:
    assert boot.disks_of("web") == {"xvda": 32}
    assert "guest web has been restored." in boot.messages("xendomains-late.service")


def test_saved_file_is_removed_after_the_restore(boot: Boot) -> None:
    assert boot.text("before").split() == ["lost+found", "web"]
    assert boot.text("after").split() == ["lost+found"]
