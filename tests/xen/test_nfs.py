# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The image of a guest is on NFS, and its configuration is a link to a file on NFS, which is mounted late."""

from __future__ import annotations

import nfs
import pytest
from xenhost import Boot, Guest, Host

pytestmark = pytest.mark.promise("Guests whose disks appear late are started, with their disks at full size")

HOST = Host(
    guests=(Guest("web", ("file:/mnt/images/web.img,xvda,w",), at="/srv/export/web.cfg"),),
    files=nfs.FILES,
    setup="truncate --size=24M /srv/export/web.img; ln -s /mnt/images/web.cfg /etc/xen/auto/web.cfg",
    early=nfs.START,
    late=f"""
        sleep 20
        {nfs.MOUNT} &
        until grep -q " /mnt/images " /proc/self/mountinfo; do sleep 0.1; done
        ready mounted
    """,
    awaited=("mounted",),
)


def test_guest_sees_the_image(boot: Boot) -> None:
    assert boot.disks_of("web") == {"xvda": 24}


def test_wait_lasts_until_the_image_exists(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.waited > 10
    # There is no event for this: it is noticed at the next check, within a second.
    assert -0.5 < boot.released_after < boot.soon + 1


def test_configuration_is_waited_for_and_reported(boot: Boot) -> None:
    assert boot.logged(
        r"still waiting for /etc/xen/auto/web.cfg for web.cfg\.\.\. \(is a link to /mnt/images/web.cfg, .*\)"
    )
    assert boot.logged(r"configuration /etc/xen/auto/web.cfg found \(after \d+ seconds\)")
