# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""All disks are present: the boot is the same as without the package."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xenhost import Boot, Disk, Guest, Host

pytestmark = pytest.mark.promise("If every disk is ready, it prints nothing and hardly delays the boot")

HOST = Host(
    disks=(Disk("data", 32),),
    guests=(Guest("web", ("/dev/disk/by-id/virtio-data,raw,xvda,w",)), Guest("image", ("/srv/image,raw,xvda,w",))),
    setup="truncate --size=16M /srv/image",
)


@pytest.fixture(scope="module")
def without_package(boot_host: Callable[[Host, str], Boot]) -> Boot:
    return boot_host(HOST._replace(package=False), "present-without-package")


def test_guests_see_their_disks(boot: Boot) -> None:
    assert boot.disks_of("web") == {"xvda": 32}
    assert boot.disks_of("image") == {"xvda": 16}


def test_wait_ends_before_xens_daemons_are_up(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.wait_ended < boot.xen_active


def test_only_the_summary_is_logged(boot: Boot) -> None:
    (summary,) = boot.messages()
    assert summary.startswith("Everything is ready for ")


def test_xendomains_starts_no_later_than_without_the_package(boot: Boot, without_package: Boot) -> None:
    # The duration of a boot varies, so compare with Xen's daemons, which xendomains waits for, and allow for variation.
    assert boot.xendomains_started - boot.xen_active < boot.soon
    assert boot.xendomains_started < without_package.xendomains_started * 1.1 + 1
    assert without_package.came_up("web")
