# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The server of a hard NFS mount is gone for good: any access to an image there hangs."""

from __future__ import annotations

import nfs
import pytest
from xenhost import Boot, Disk, Guest, Host

pytestmark = [
    pytest.mark.promise("The wait ends at the timeout even if something hangs, and leaves no process behind"),
    pytest.mark.promise("A file system hangs (its NFS server is gone)"),
]

HOST = Host(
    disks=(Disk("data", 32),),
    guests=(
        Guest("other", ("/dev/disk/by-id/virtio-data,raw,xvda,w",)),
        Guest("web", ("file:/mnt/images/web.img,xvda,w",), starts=False),
    ),
    files={
        **nfs.FILES,
        "/srv/export/placeholder": "",
        "/etc/xen-wait-disk.conf": "timeout = 30s\n",
        # xl hangs, too.
        "/etc/systemd/system/xendomains.service.d/timeout.conf": "[Service]\nTimeoutStartSec=1min\n",
    },
    setup="truncate --size=24M /srv/export/web.img",
    early=f"""
        {nfs.START}
        {nfs.MOUNT}
        ls -l /mnt/images
        {nfs.TAKE_AWAY}
    """,
)


def test_timeout_holds(boot: Boot) -> None:
    assert boot.wait["Result"] == "exit-code"
    assert boot.wait["ExecMainStatus"] == "1"
    assert boot.waited > 30
    assert boot.wait_ended - boot.first_logged < 30 + boot.soon


def test_other_guest_starts_after_the_timeout(boot: Boot) -> None:
    assert boot.xendomains_followed
    assert boot.disks_of("other") == {"xvda": 32}


def test_reason_is_logged(boot: Boot) -> None:
    assert boot.logged("/mnt/images/web.img for web is still not ready after 30s: .*no response.*")
