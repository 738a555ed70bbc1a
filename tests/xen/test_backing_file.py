# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A qcow2 image whose backing files are on NFS, which is mounted late."""

from __future__ import annotations

import nfs
import pytest
from xenhost import Boot, Guest, Host

pytestmark = [
    pytest.mark.promise("Guests whose disks appear late are started, with their disks at full size"),
    pytest.mark.promise("The reason names the layer at fault, with a command that helps"),
]

HOST = Host(
    guests=(Guest("web", ("/srv/web.qcow2,qcow2,xvda,w",)),),
    files=nfs.FILES,
    setup="""
        mkdir -p /srv/export
        truncate --size=24M /srv/export/base.img
        qemu-img create -f qcow2 -F raw -b base.img /srv/export/middle.qcow2
        qemu-img create -f qcow2 -F qcow2 -u -b /mnt/images/middle.qcow2 /srv/web.qcow2 24M
    """,
    early=nfs.START,
    late=f"""
        until_said "still waiting for /srv/web.qcow2 for web..."
        {nfs.MOUNT}
        ready mounted
    """,
    awaited=("mounted",),
)


def test_guest_sees_the_image(boot: Boot) -> None:
    assert boot.disks_of("web") == {"xvda": 24}


def test_wait_lasts_until_the_backing_files_exist(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    # There is no udev event for a mount: it is noticed at the next check, within a second.
    assert -0.5 < boot.released_after < boot.soon + 1


def test_missing_backing_file_is_named(boot: Boot) -> None:
    waiting = boot.entry(r"still waiting for /srv/web\.qcow2 for web\.\.\. .*/mnt/images/middle\.qcow2.*")
    assert waiting["STATE"] == "not-ready"
