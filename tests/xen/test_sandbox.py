# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The sandbox of our unit: the program sees all disks, and can do nothing else."""

from __future__ import annotations

import json
from functools import cache

import pytest
from xenhost import HERE, Boot, Guest, Host

pytestmark = [
    pytest.mark.promise("It writes only below /run, and has no network access and one capability: to read all files"),
    pytest.mark.promise("xendomains' settings try to escape from the sandbox"),
]

# The key of shared memory on the host, which does not exist in the sandbox.
SHARED_MEMORY = 0x70726F62

# A bit of the capability sets in /proc/self/status; see linux/capability.h.
CAP_DAC_READ_SEARCH = 1 << 2

HOST = Host(
    guests=(
        # Only kim and root can enter this directory, and root only with CAP_DAC_READ_SEARCH.
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
    # Shared memory outlives its creator.
    early=f"python3 -c 'import ctypes; ctypes.CDLL(None).shmget({SHARED_MEMORY}, 4096, 0o1600)'",
    after="ipcs --shmems >/scenario/report/shared-memory",
    files={
        "/scenario/probe": (HERE / "dom0" / "probe").read_text(),
        "/etc/systemd/system/xendomains-wait-disk.service.d/probe.conf": "[Service]\nExecStartPre=/scenario/probe\n",
    },
)


@cache
def found(boot: Boot) -> dict[str, str]:
    """Return the results of the probe."""
    (answer,) = (message for message in boot.messages() if message.startswith("{"))
    found: dict[str, str] = json.loads(answer)
    return found


def test_program_sees_the_disks_of_other_users(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    (summary,) = (message for message in boot.messages() if not message.startswith("{"))
    assert summary.startswith("Everything is ready for ")
    assert boot.disks_of("kim") == boot.disks_of("temporary") == {"xvda": 24}


def test_sandbox_has_one_capability_and_gains_no_more(boot: Boot) -> None:
    assert found(boot)["capabilities"] == f"{CAP_DAC_READ_SEARCH:016x}"
    assert found(boot)["no new privileges"] == "1"


def test_sandbox_cannot_write_anywhere(boot: Boot) -> None:
    outcomes = {name: outcome for name, outcome in found(boot).items() if name.startswith("write to ")}
    assert len(outcomes) == 15
    # /sys is the critical case: systemd 257 considers it mounted already, and then neither ProtectKernelTunables= nor
    # ReadOnlyPaths= makes it read-only.
    assert set(outcomes.values()) <= {"EROFS", "EACCES", "EPERM"}, outcomes


def test_sandbox_has_no_network(boot: Boot) -> None:
    outcomes = {name: outcome for name, outcome in found(boot).items() if name.startswith(("connect", "send raw"))}
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
        "have systemd run a command",
        "ask systemd by D-Bus",
        "set the environment of systemd",
        "tell init to change the runlevel",
        "control udev",
        "see what systemd does",
        "use System V IPC of the host",
    ],
)
def test_sandbox_denies(boot: Boot, attempt: str) -> None:
    assert found(boot)[attempt] in ("EPERM", "EACCES", "EROFS", "ENOENT")


def test_sandbox_reaches_only_the_journal_and_notify_sockets_of_systemd(boot: Boot) -> None:
    assert found(boot)["sockets of systemd"] == "/run/systemd/journal/socket, /run/systemd/notify"


def test_shared_memory_hidden_by_the_sandbox_exists_on_the_host(boot: Boot) -> None:
    assert f"{SHARED_MEMORY:#010x}" in boot.text("shared-memory")


def test_sandbox_allows_signals_to_systemd(boot: Boot) -> None:
    """The only remaining way out, see the comment in the unit. If this test fails, the unit can close it."""
    assert found(boot)["send signals to systemd"] == "done"
