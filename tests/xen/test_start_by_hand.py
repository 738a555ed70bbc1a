# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The command start, run by hand: ten guests that are down, and one that was saved since the boot."""

from __future__ import annotations

import pytest
from xenhost import Boot, Guest, Host

pytestmark = pytest.mark.promise(
    "A saved guest is restored once and never created; an incomplete or outdated file is not used"
)

NAMES = [f"g{number}" for number in range(10)]
HOST = Host(
    guests=tuple(Guest(name, (f"/dev/mapper/{name},raw,xvda,w",), starts=False, more="memory = 128") for name in NAMES),
    files={"/etc/xen-wait-disk.conf": "timeout = 5s\n"},
    setup="mkdir -p /var/lib/xen/save",
    after="""
        for number in $(seq 0 9); do
            dmsetup create "g$number" --table '0 65536 zero'
        done
        udevadm settle
        xendomains-wait-disk start --dry-run >"$report/dry-run"
        xl list >"$report/before"
        xendomains-wait-disk start --json >"$report/started.json" 2>"$report/started"
        xl list >"$report/after"
        xendomains-wait-disk start >"$report/again" 2>&1

        # xl writes to the log of a guest after it was saved, which may be later than to the file.
        wait_for_guest g0 200
        xl save g0 /var/lib/xen/save/g0
        stat -c '%n %y' /var/lib/xen/save/g0 /var/log/xen/xl-g0.log >"$report/times"
        xendomains-wait-disk start >"$report/not-named" 2>&1
        xendomains-wait-disk start g0 >"$report/named" 2>&1
        xl list >"$report/at-last"
        ls -A /var/lib/xen/save >"$report/saved"
    """,
)


def test_last_message_gives_the_start_command(boot: Boot) -> None:
    assert boot.logged(r"These guests .*\(once the disks are ready, start them with: xendomains-wait-disk start\).")


def test_dry_run_prints_the_commands_and_starts_nothing(boot: Boot) -> None:
    commands = [f"xl create --quiet --defconfig /etc/xen/auto/{name}.cfg" for name in NAMES]
    assert boot.text("dry-run").splitlines() == commands
    assert not any(f"{name} " in boot.text("before") for name in NAMES)


def test_all_guests_are_started_once(boot: Boot) -> None:
    assert all(f"{name} " in boot.text("after") for name in NAMES)
    assert boot.text("started").splitlines() == [
        *(f"guest {name} has been started." for name in NAMES),
        "Guests: 10 started.",
    ]
    assert boot.text("again").splitlines()[-1] == "Guests: 10 running."


def test_guest_saved_since_boot_is_restored_if_named(boot: Boot) -> None:
    assert "guest g0 is skipped: it has already been started since boot" in boot.text("not-named")
    assert boot.text("named").splitlines() == ["guest g0 has been restored.", "Guests: 1 restored."]
    assert "g0 " in boot.text("at-last")
    assert boot.text("saved") == ""
