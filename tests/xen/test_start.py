# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""xendomains-late.service: two guests whose disks appear long after the timeout, and some that must be left alone."""

from __future__ import annotations

import pytest
from xenhost import Boot, Disk, Guest, Host

pytestmark = [
    pytest.mark.promise("xendomains-late starts a guest when its disk appears, and delays no other guest"),
    pytest.mark.promise("A guest that was shut down, was removed or may run on a peer stays down, unless it is named"),
    pytest.mark.promise("A saved guest is restored once and never created; an incomplete or outdated file is not used"),
]

NAMES = ("one", "two", "ran", "broken")
# As left behind by an xl save that was killed: the header and configuration, without the memory and the end record.
MAKE_BROKEN = """
import json, sys
config = json.dumps({'c_info': {'name': 'broken'}, 'disks': []}).encode() + bytes(1)
words = (0x01020304, 3, 0, 4 + len(config), len(config))
head = b'Xen saved domain, xl format' + bytes((10, 32, 0, 32, 13))
sys.stdout.buffer.write(head + b''.join(word.to_bytes(4, 'little') for word in words) + config + b'cut short')
"""
HOST = Host(
    disks=tuple(Disk(name, 32) for name in NAMES),
    guests=(
        Guest("one", ("/dev/mapper/one,raw,xvda,w",), starts=False),
        Guest("two", ("/dev/mapper/two,raw,xvda,w",), starts=False),
        Guest("ran", ("/dev/disk/by-id/virtio-ran,raw,xvda,w",)),
        Guest("broken", ("/dev/disk/by-id/virtio-broken,raw,xvda,w",), starts=False),
        Guest("never", ("/dev/mapper/never,raw,xvda,w",), starts=False),
    ),
    # At boot, one of them is not waited for at all, and the others not long enough.
    files={"/etc/xen-wait-disk.conf": "timeout = 5s\n[ignore]\ndomains = never\n"},
    setup=f"""
        mkdir -p /var/lib/xen/save
        python3 -c "{MAKE_BROKEN}" >/var/lib/xen/save/broken
        systemctl --quiet enable xendomains-late.service
    """,
    after="""
        map() { dmsetup create "$1" --table "0 65536 linear /dev/disk/by-id/virtio-$1 0"; }
        state() { systemctl show -p ActiveState,SubState,Result,StatusText xendomains-late.service >"$report/$1"; }

        # The boot has finished. The unit of the wait has failed because of the timeout, and so has the restore.
        for _ in $(seq 60); do
            [ "$(systemctl is-system-running)" = starting ] || break
            sleep 1
        done
        systemctl list-jobs >"$report/jobs"
        systemctl reset-failed
        systemctl is-system-running >"$report/running" || true
        state waiting
        xl list >"$report/at-first"

        # Shut down a running guest.
        xl destroy ran

        sleep 20
        ready one-disk
        map one
        wait_for_guest one
        sleep 20
        ready two-disk
        map two
        wait_for_guest two
        state still-waiting

        # When the service is stopped, it exits at once, and the guests it has started keep running.
        now >"$report/stop-begins"
        systemctl stop xendomains-late.service
        now >"$report/stop-ends"
        state stopped
        xl list >"$report/guests"

        # Starting the service again works like the first time.
        systemctl start xendomains-late.service
        state again
    """,
)
UNIT = "xendomains-late.service"


def test_guests_whose_disks_appear_after_the_timeout_come_up(boot: Boot) -> None:
    assert boot.wait["ExecMainStatus"] == "1"
    assert boot.disks_of("one") == boot.disks_of("two") == {"xvda": 32}
    assert "guest one has been started." in boot.messages(UNIT)
    assert "guest two has been started." in boot.messages(UNIT)


def test_late_disks_are_noticed_at_once(boot: Boot) -> None:
    """Only the reaction is measured, because the time that xl takes depends on the machine."""
    for name in ("one", "two"):
        found = boot.entry(rf"disk /dev/mapper/{name} found \(after [0-9]+ seconds\)")
        assert int(found["__MONOTONIC_TIMESTAMP"]) / 1e6 - boot.ready_at(f"{name}-disk") < 2 * boot.soon


def test_boot_finishes_while_the_service_waits(boot: Boot) -> None:
    assert boot.text("running") == "running\n"
    assert "ActiveState=active" in boot.text("waiting")
    assert "StatusText=Waiting for 3 disks of 3 guests: /dev/mapper/never for never" in boot.text("waiting")
    assert "ActiveState=active" in boot.text("still-waiting")
    assert "StatusText=Waiting for 1 disk of 1 guest: /dev/mapper/never for never" in boot.text("still-waiting")


def test_wait_at_boot_names_the_service_that_starts_guests_later(boot: Boot) -> None:
    # On a slow machine, the disk of the guest "ran" may be late as well.
    assert boot.logged(
        r"These guests .*\(xendomains-late.service will start one, (ran, )?two once the disks are ready\)."
    )


def test_guest_that_was_shut_down_stays_down(boot: Boot) -> None:
    assert boot.came_up("ran")
    assert "ran " in boot.text("at-first")
    assert "ran " not in boot.text("guests")


def test_incompletely_saved_guest_is_neither_restored_nor_created(boot: Boot) -> None:
    reason = "/var/lib/xen/save/broken: is incomplete, because saving failed or was interrupted"
    assert any(message.startswith(f"guest broken was not started: {reason}") for message in boot.messages(UNIT))
    assert not boot.came_up("broken")


def test_stopping_the_service_is_not_a_failure(boot: Boot) -> None:
    assert "ActiveState=inactive" in boot.text("stopped")
    assert "Result=success" in boot.text("stopped")


def test_waiting_process_ends_at_once_when_the_service_stops(boot: Boot) -> None:
    assert float(boot.text("stop-ends")) - float(boot.text("stop-begins")) < 2 * boot.soon


def test_guests_and_their_xl_outlive_the_unit(boot: Boot) -> None:
    assert "one " in boot.text("guests") and "two " in boot.text("guests")
    assert "(xl) remains running after unit stopped" in boot.text("journal.txt")
    assert "ActiveState=active" in boot.text("again")
