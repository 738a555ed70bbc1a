# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""xendomains' settings contain a command and name a different directory, in which there is a dot file."""

from __future__ import annotations

import pytest
from xenhost import Boot, Guest, Host

pytestmark = pytest.mark.promise("A bad setting is reported but never cancels the wait")

HOST = Host(
    guests=(
        Guest("web", ("/dev/mapper/late,raw,xvda,w",), at="/srv/dom0/auto/web.cfg"),
        Guest("decoy", ("/dev/never,raw,xvda,w",), starts=False),
    ),
    files={
        "/etc/default/xendomains": 'XENDOMAINS_AUTO="/srv/$(hostname)/auto"\nXENDOMAINS_SAVE=/var/lib/xen/save\n',
        "/srv/dom0/auto/.gitkeep": "",
    },
    late="sleep 20; dmsetup create late --table '0 65536 zero'",
    awaited=("/dev/mapper/late",),
)


def test_guest_in_configured_directory_sees_its_disk(boot: Boot) -> None:
    assert boot.disks_of("web") == {"xvda": 32}


def test_only_the_configured_directory_is_read(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert boot.waited > 10
    assert boot.released_in_time
    assert not any("decoy" in message or "gitkeep" in message for message in boot.messages())
