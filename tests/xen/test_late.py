# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Guests of xendomains-late@.service: one whose disk comes after the timeout, and some that are to be left alone."""

from __future__ import annotations

from xenhost import Boot, Disk, Guest, Host

NAMES = ("late", "ran", "saved", "never")
# As xl save does, but without memory.
MAKE_SAVED = """
import json, sys
config = json.dumps({'c_info': {'name': 'saved'}, 'disks': []}).encode() + bytes(1)
words = (0x01020304, 3, 0, 4 + len(config), len(config))
head = b'Xen saved domain, xl format' + bytes((10, 32, 0, 32, 13))
sys.stdout.buffer.write(head + b''.join(word.to_bytes(4, 'little') for word in words) + config)
"""
HOST = Host(
    disks=tuple(Disk(name, 32) for name in NAMES[:3]),
    guests=(
        Guest("late", ("/dev/mapper/late,raw,xvda,w",), starts=False),
        Guest("ran", ("/dev/disk/by-id/virtio-ran,raw,xvda,w",)),
        Guest("saved", ("/dev/mapper/saved,raw,xvda,w",), starts=False),
        Guest("never", ("/dev/mapper/never,raw,xvda,w",), starts=False),
    ),
    # The boot does not wait for one of them at all, and for the others not long enough.
    files={"/etc/xen-wait-disk.conf": "timeout = 5s\n[ignore]\ndomains = never\n"},
    setup="mkdir -p /var/lib/xen/save; systemctl --quiet enable xendomains-late@{late,ran,saved,never}.service",
    after="""
        map() { dmsetup create "$1" --table "0 65536 linear /dev/disk/by-id/virtio-$1 0"; }
        state() { systemctl show -p ActiveState,SubState,Result "xendomains-late@$1" >"$report/$1"; }

        ! xl domid late
        map late
        ready disk
        wait_for_guest late
        ready guest

        # Somebody shuts down what has run.
        xl destroy ran
        systemctl restart xendomains-late@ran
        state ran

        # A saved guest, whatever is in the file. Its disk comes; nobody is to create it from the configuration.
        systemctl stop xendomains-late@saved
        python3 -c "MAKE_SAVED" >/var/lib/xen/save/saved
        map saved
        systemctl start xendomains-late@saved
        state saved

        # What waits is gone at once when the host shuts down.
        state never
        now >"$report/stop-begins"
        systemctl stop xendomains-late@never
        now >"$report/stop-ends"
        systemctl show -p ActiveState xendomains-late@never >"$report/stopped"

        # xl stays to act when the guest reboots or crashes, also when the unit is stopped.
        systemctl stop xendomains-late@late
        xl list >"$report/guests"
    """.replace("MAKE_SAVED", MAKE_SAVED),
)


def test_a_guest_whose_disk_comes_after_the_timeout_comes_up(boot: Boot) -> None:
    assert boot.wait["ExecMainStatus"] == "1"
    assert boot.disks_of("late") == {"xvda": 32}
    assert "guest late is started: its disks are there." in boot.messages("xendomains-late@late.service")


def test_its_disk_is_noticed_at_once(boot: Boot) -> None:
    """How long xl takes then depends on the machine."""
    found = boot.entry(r"disk /dev/mapper/late found \(after [0-9]+ seconds\)")
    assert int(found["__MONOTONIC_TIMESTAMP"]) / 1e6 - boot.ready_at("disk") < 2 * boot.soon


def test_a_guest_that_was_shut_down_stays_down(boot: Boot) -> None:
    assert boot.came_up("ran")
    messages = boot.messages("xendomains-late@ran.service")
    assert "guest ran has been started since the host booted, and is left alone." in messages
    assert "ActiveState=failed" not in boot.text("ran")
    assert " ran " not in boot.text("guests")


def test_a_guest_that_was_saved_is_not_created_afresh(boot: Boot) -> None:
    file = "/var/lib/xen/save/saved"
    reason = f"guest saved was saved in {file}, and is not started from its configuration (fix: xl restore {file})."
    assert reason in boot.messages("xendomains-late@saved.service")
    assert not boot.came_up("saved")


def test_a_guest_that_the_boot_ignores_is_waited_for(boot: Boot) -> None:
    assert not any(" never" in message for message in boot.messages())
    waiting = "still waiting for /dev/mapper/never for never..."
    assert any(message.startswith(waiting) for message in boot.messages("xendomains-late@never.service"))
    assert "ActiveState=activating" in boot.text("never")


def test_to_be_stopped_is_no_failure(boot: Boot) -> None:
    assert "ActiveState=inactive" in boot.text("stopped")


def test_what_waits_is_gone_at_once_when_it_is_stopped(boot: Boot) -> None:
    assert float(boot.text("stop-ends")) - float(boot.text("stop-begins")) < 2 * boot.soon


def test_the_guest_and_its_xl_outlive_the_unit(boot: Boot) -> None:
    assert "late " in boot.text("guests")
    assert "(xl) remains running after unit stopped" in boot.text("journal.txt")
