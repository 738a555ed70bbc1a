# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Saved guests: one whose configuration has changed since it was saved, and one whose file is incomplete."""

from __future__ import annotations

import re

import pytest
from xenhost import Boot, Disk, Guest, Host

pytestmark = pytest.mark.promise("Guests that xendomains does not start are not waited for, and the reason is given")

WEB = Guest("web", ("/dev/disk/by-id/virtio-web,raw,xvda,w",), starts=False, at="/root/web.cfg")
DB = Guest("db", ("/dev/disk/by-id/virtio-db,raw,xvda,w",), starts=False, at="/root/db.cfg")
NEW = "/dev/disk/by-id/virtio-new"
SAVED = "/var/lib/xen/save/db"
BEFORE = Host(
    disks=(Disk("web", 32), Disk("db", 32), Disk("saved", 600)),
    guests=(WEB, DB),
    after="""
        mkfs.ext4 -q /dev/disk/by-id/virtio-saved
        mount /dev/disk/by-id/virtio-saved /mnt
        for each in web db; do
            start_guest /root/$each.cfg
            xl save $each /mnt/$each
        done
        truncate --size=1M /mnt/db
        echo 'a page that is not empty' >>/mnt/db
        umount /mnt
    """,
)
HOST = Host(
    disks=(Disk("web", 32), Disk("db", 32), Disk("saved", left_by=BEFORE)),
    guests=(
        WEB._replace(disks=(*WEB.disks, f"{NEW},raw,xvdb,w"), starts=True, at=""),
        DB._replace(at=""),
    ),
    setup="""
        mkdir -p /var/lib/xen/save
        echo '/dev/disk/by-id/virtio-saved /var/lib/xen/save ext4 defaults 0 2' >>/etc/fstab
    """,
    after="""
        xendomains-wait-disk check >$report/check 2>&1 || echo "status $?" >>$report/check
        xendomains-wait-disk list >$report/list || true
        xendomains-wait-disk last >$report/last || true
        xendomains-wait-disk last --list >$report/boots || true
    """,
)


def test_guest_is_restored_with_its_saved_disk(boot: Boot) -> None:
    assert boot.disks_of("web") == {"xvda": 32}
    assert "Restoring Xen domain web" in boot.text("journal.txt")


def test_new_disk_in_the_configuration_of_a_saved_guest_is_not_waited_for(boot: Boot) -> None:
    assert boot.wait["Result"] == "success"
    assert not boot.logged("still waiting for")
    assert boot.waited < 60


def test_last_message_names_incomplete_saved_guest(boot: Boot) -> None:
    text = f"No disk is missing, but these guests will not come up: db; no guest starts from {SAVED}."
    assert boot.entry(text)["RESULT"] == "ready"
    assert not boot.came_up("db")


def test_check_reports_incomplete_saved_guest_and_its_effect(boot: Boot) -> None:
    lines = boot.text("check").splitlines()
    saved, configured = (lines.index(f"{file}:") for file in (SAVED, "/etc/xen/auto/db.cfg"))
    assert lines[saved + 1].startswith("  error: is incomplete")
    assert lines[configured + 1] == (
        f"  error: guest db: Debian's xendomains does not create it, because it fails to restore {SAVED}"
    )
    assert lines[-1] == "status 2"


def test_list_shows_how_each_guest_starts(boot: Boot) -> None:
    starts = [line.split()[:2] for line in boot.text("list").splitlines()[1:]]
    assert ["db", "restore"] in starts and ["db", "none"] in starts and ["web", "create"] in starts


def test_record_and_journal_show_the_outcome_of_the_boot(boot: Boot) -> None:
    assert ": ready after " in boot.text("last").splitlines()[0]
    head, row = boot.text("boots").splitlines()
    assert head.split() == ["BOOT", "ENDED", "RESULT", "WAITED", "MISSING"]
    assert re.match(r"0 +20\d\d-\S+ \S+ +ready +\S+ +0$", row)
