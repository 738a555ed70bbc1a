# SPDX-License-Identifier: GPL-3.0-or-later
"""The sandbox of our unit: in it the program sees all the disks, and can do nothing else."""

from __future__ import annotations

import json
from functools import cache

import pytest
from xenhost import HERE, Boot, Guest, Host

# As bits of /proc/self/status; see linux/capability.h.
CAP_DAC_READ_SEARCH = 1 << 2

HOST = Host(
    guests=(
        # Only root and kim may enter her directory, and root only with CAP_DAC_READ_SEARCH.
        Guest("kim", ("file:/home/kim/image,xvda,w",)),
        Guest("temporary", ("file:/var/tmp/image,xvda,w",)),
    ),
    setup="""
        useradd --create-home kim
        truncate --size=24M /home/kim/image /var/tmp/image
        chown kim:kim /home/kim/image
        chmod 0700 /home/kim
        chmod 0600 /home/kim/image
    """,
    files={
        "/scenario/probe": (HERE / "dom0" / "probe").read_text(),
        "/etc/systemd/system/xendomains-wait-disk.service.d/probe.conf": "[Service]\nExecStartPre=/scenario/probe\n",
    },
)


@cache
def found(boot: Boot) -> dict[str, str]:
    """What the probe found."""
    (answer,) = (message for message in boot.messages() if message.startswith("{"))
    found: dict[str, str] = json.loads(answer)
    return found


def test_the_program_sees_the_disks_of_other_users(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert [message for message in boot.messages() if not message.startswith("{")] == []
    assert boot.disks_of("kim") == boot.disks_of("temporary") == {"xvda": 24}


def test_it_has_one_capability_and_gets_no_more(boot: Boot) -> None:
    assert found(boot)["capabilities"] == f"{CAP_DAC_READ_SEARCH:016x}"
    assert found(boot)["no new privileges"] == "1"


def test_it_cannot_write_anything_anywhere(boot: Boot) -> None:
    outcomes = {name: outcome for name, outcome in found(boot).items() if name.startswith("write to ")}
    assert len(outcomes) == 15
    assert set(outcomes.values()) <= {"EROFS", "EACCES", "EPERM"}, outcomes


def test_it_has_no_network(boot: Boot) -> None:
    outcomes = {name: outcome for name, outcome in found(boot).items() if name.startswith(("connect", "send"))}
    assert set(outcomes.values()) == {"EAFNOSUPPORT"}, outcomes


@pytest.mark.parametrize(
    "attempt",
    [
        "read a disk",
        "read the memory",
        "make a device",
        "mount",
        "unmount",
        "make a namespace",
        "load a module",
        "set the clock",
        "set the name of the host",
        "reboot",
        "become another user",
        "give a file away",
    ],
)
def test_it_cannot(boot: Boot, attempt: str) -> None:
    assert found(boot)[attempt] in ("EPERM", "EACCES", "EROFS", "ENOENT")
