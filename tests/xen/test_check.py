# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""check and last on a booted host: after a boot in which a disk never appeared, and with many problems."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
from xenhost import TOP, Boot, Disk, Guest, Host

pytestmark = [
    pytest.mark.promise("check finds what would break the next boot, and with --reboot what would not come up again"),
    pytest.mark.promise("There are no false alarms"),
    pytest.mark.promise("The outcome of a wait can be shown later, and is summed up in one journal message"),
]

TARGET = "iqn.2003-01.org.example:disk"
LUN = f"/dev/disk/by-path/ip-127.0.0.1:3260-iscsi-{TARGET}-lun-1"
DISKS = ("web", "mounted", "swap", "member", "pv", "group", "secret", "drbd", "shared", "plain", "whole")
# The examples in the manual page.
PAGE = (TOP / "man" / "xendomains-wait-disk.8").read_text().partition('.SS "Monitoring"\n')[2].replace("\\-", "-")
MONITORING = re.findall(r"^((?:! )?(?:systemctl|journalctl) .*)", PAGE, re.MULTILINE)


def by_id(name: str) -> str:
    return f"/dev/disk/by-id/virtio-{name}"


# These are put into the auto directory after the boot, and never start.
LATER = (
    Guest("mounted", (f"{by_id('mounted')},raw,xvda,w",)),
    Guest("whole", (f"{by_id('whole')},raw,xvda,w",)),
    Guest("swap", (f"{by_id('swap')},raw,xvda,w",)),
    Guest("member", (f"{by_id('member')},raw,xvda,w",)),
    Guest("pv", (f"{by_id('pv')},raw,xvda,w",)),
    Guest("volume", ("/dev/group/lv,raw,xvda,w",)),
    Guest("lun", (f"{LUN},raw,xvda,w",)),
    Guest("luks", ("/dev/mapper/secret,raw,xvda,w",)),
    Guest("drbd", ("drbd:one,xvda,w",)),
    Guest("loop", ("/dev/loop7,raw,xvda,w",)),
    Guest("image", ("/srv/mounted/image,raw,xvda,w",)),
    Guest("kernel", more='kernel = "/boot/gone"'),
    Guest("one", (f"{by_id('shared')},raw,xvda,w",)),
    Guest("two", (f"{by_id('shared')},raw,xvda,w",)),
    Guest("reader", (f"{by_id('shared')},raw,xvda,r",)),
    Guest("unstable", ("/dev/UNSTABLE,raw,xvda,w",)),
)

HOST = Host(
    disks=tuple(Disk(name, 32) for name in DISKS),
    guests=(
        Guest("web", (f"{by_id('web')},raw,xvda,w",)),
        Guest("gone", ("/dev/disk/by-id/virtio-gone,raw,xvda,w",), starts=False),
    ),
    files={
        "/etc/xen/auto/broken": "what is this\n",
        "/etc/xen-wait-disk.conf": "timeout = 20\n",
        **{f"/root/later/{guest.name}.cfg": guest.configuration() for guest in LATER},
        "/root/later/web.cfg.bak": Guest("web").configuration(),
        "/etc/tgt/conf.d/disk.conf": f"<target {TARGET}>\n  backing-store /srv/lun\n</target>\n",
        "/etc/drbd.d/one.res": f"""
            resource one {{
                device minor 1;
                disk {by_id("drbd")};
                meta-disk internal;
                on dom0 {{ address 127.0.0.1:7790; }}
                on elsewhere {{ address 127.0.0.9:7790; }}
            }}
        """,
    },
    after=f"""
        exec 9>&2
        BASH_XTRACEFD=9  # keep the trace out of the captured output
        say() {{ xendomains-wait-disk "$@" || echo "status $?"; }}
        say last >$report/last
        say last --json >$report/last.json
        ls -l /run/xendomains-wait-disk >$report/run
        {MONITORING[0]} >$report/is-failed
        {MONITORING[1]} >$report/summary
        say check --reboot >$report/healthy 2>&1

        mv /root/later/* /etc/xen/auto
        mkfs.ext4 -q {by_id("mounted")}
        mkdir /srv/mounted
        mount {by_id("mounted")} /srv/mounted
        truncate --size=1M /srv/mounted/image
        mkswap {by_id("swap")}
        swapon {by_id("swap")}
        addpart {by_id("whole")} 1 2048 16384
        udevadm settle
        mkfs.ext4 -q {by_id("whole")}-part1
        mkdir /srv/whole
        mount {by_id("whole")}-part1 /srv/whole
        mdadm --create /dev/md/array --run --force --level=1 --raid-devices=1 --metadata=1.2 {by_id("member")}
        vgcreate pv {by_id("pv")}
        lvcreate --yes --name=lv --size=8M pv
        vgcreate group {by_id("group")}
        lvcreate --yes --name=lv --size=8M group
        echo 'activation {{ auto_activation_volume_list = [ "pv" ] }}' >>/etc/lvm/lvm.conf
        echo secret >/root/key
        cryptsetup luksFormat --batch-mode --pbkdf=pbkdf2 --pbkdf-force-iterations=1000 {by_id("secret")} /root/key
        cryptsetup open --key-file=/root/key {by_id("secret")} secret
        truncate --size=16M /srv/lun /srv/loop
        losetup /dev/loop7 /srv/loop
        systemctl start tgt iscsid
        iscsiadm --mode discovery --type sendtargets --portal 127.0.0.1
        iscsiadm --mode node --login
        modprobe drbd
        drbdadm create-md --force one
        drbdadm up one
        drbdadm primary --force one
        udevadm settle
        sed -i "s|UNSTABLE|$(basename "$(realpath {by_id("plain")})")|" /etc/xen/auto/unstable.cfg
        systemctl disable xendomains.service xendomains-wait-disk.service
        say check --json >$report/check.json
        say check --reboot --json >$report/reboot.json
        say check --reboot web >$report/web 2>&1
        say list >$report/list
    """,
)


@cache
def answer(boot: Boot, name: str) -> tuple[Any, str]:
    """Return the JSON output of a command, and its exit status if it was not 0."""
    text, _, status = boot.text(name).partition("\nstatus ")
    return json.loads(text), status.strip()


def found(boot: Boot, name: str) -> set[tuple[str, str, str]]:
    """Return the severity, guest and problem of each finding."""
    findings = answer(boot, name)[0]["findings"]
    return {(one["severity"], one["guest"] or "", one["problem"]) for one in findings}


def warnings(problems: Iterable[tuple[str, str]]) -> set[tuple[str, str, str]]:
    return {("warning", guest, problem) for guest, problem in problems}


def test_last_shows_what_the_boot_waited_for(boot: Boot) -> None:
    last, status = answer(boot, "last.json")
    assert (last["version"], last["result"], last["timeout"], status) == (1, "timeout", 20, "1")
    assert 19 < last["waited"] < 30
    needed = [one for guest in last["guests"] for one in guest["disks"] + guest["boot_files"]]
    assert {one["path"]: one["state"] for one in needed} == {
        by_id("web"): "ready",
        by_id("gone"): "missing",
        "/boot/guest": "ready",
        "/boot/guest.img": "ready",
    }
    assert [one["source"] for one in last["guests"] if one["state"] == "refused"] == ["/etc/xen/auto/broken"]
    assert "missing" in boot.text("last") and boot.text("last").endswith("status 1\n")


def test_records_are_readable_only_by_root(boot: Boot) -> None:
    lines = boot.text("run").splitlines()[1:]
    assert all(line.startswith("-rw------- 1 root root ") for line in lines)
    assert [line.split()[-1] for line in lines] == ["last.json", "xl-logs.json"]


def test_boot_ends_with_a_summary(boot: Boot) -> None:
    useless = "no guest starts from /etc/xen/auto/broken"
    later = re.escape("(once the disks are ready, start it with: xendomains-wait-disk start gone)")
    entry = boot.entry(f"These guests will probably not come up: gone; {useless} {later}\\.")
    assert (entry["RESULT"], entry["MISSING"]) == ("timeout", "1")
    assert 19 < float(entry["WAITED_SEC"]) < 30


def test_metrics_give_the_outcome(boot: Boot) -> None:
    assert boot.text("is-failed") == "failed\n"
    entry = json.loads(boot.text("summary"))
    assert (entry["RESULT"], entry["MISSING"]) == ("timeout", "1")


def test_check_finds_only_the_broken_guest_on_a_well_configured_host(boot: Boot) -> None:
    lines = boot.text("healthy").splitlines()
    gone = next(line for line in lines if "guest gone" in line)
    assert gone.startswith("  error: guest gone, xvda: /dev/disk/by-id/virtio-gone is missing: ")
    broken = "  error: line 1: syntax error near 'is', expected = or +=; xl will reject it"
    totals = "2 errors, 0 warnings in 3 guests with 2 disks."
    files = [f"/etc/xen/auto/{name}:" for name in ("gone.cfg", "broken")]
    assert lines == [files[0], gone, files[1], broken, totals, "status 2"]


def test_check_finds_everything_that_would_break_the_next_boot(boot: Boot) -> None:
    assert answer(boot, "check.json")[1] == "2"
    findings = found(boot, "check.json")
    (unstable,) = (problem for _, guest, problem in findings if guest == "unstable")
    (part,) = (problem for _, guest, problem in findings if guest == "whole")
    assert part.endswith(f"1 on {by_id('whole')} is mounted on /srv/whole on this host")
    (gone,) = (problem for _, guest, problem in findings if guest == "gone")
    assert gone.startswith("/dev/disk/by-id/virtio-gone is missing: ")
    assert findings == {
        ("error", "", "line 1: syntax error near 'is', expected = or +=; xl will reject it"),
        ("error", "web", "duplicate guest name; it is created from /etc/xen/auto/web.cfg"),
        ("error", "gone", gone),
        ("error", "one", f"{by_id('shared')} is also written to by guest two, and Xen refuses to share it"),
        ("error", "two", f"{by_id('shared')} is also written to by guest one, and Xen refuses to share it"),
        ("error", "reader", f"{by_id('shared')} is also written to by guests one, two, and Xen refuses to share it"),
        ("error", "kernel", "/boot/gone does not exist, although its file system is mounted"),
        (
            "error",
            "mounted",
            f"{by_id('mounted')} is not ready: is mounted on /srv/mounted on this host, and Xen refuses to share it",
        ),
        ("error", "swap", f"{by_id('swap')} is swap space on this host"),
        ("error", "whole", part),
        *warnings(
            {
                ("", "xendomains.service is disabled, so it does not run at boot"),
                ("", "xendomains-wait-disk.service is disabled, so it does not run at boot"),
                ("member", f"{by_id('member')} is part of /dev/md127 on this host"),
                ("pv", f"{by_id('pv')} is part of /dev/mapper/pv-lv on this host"),
                ("loop", "/dev/loop7 may refer to a different disk after a reboot"),
                ("unstable", unstable),
            }
        ),
    }


def test_check_suggests_the_persistent_name(boot: Boot) -> None:
    (fix,) = (one["fix"] for one in answer(boot, "check.json")[0]["findings"] if one["guest"] == "unstable")
    assert fix == f"use {by_id('plain')}"


@pytest.mark.parametrize(
    ("guest", "path", "reason"),
    [
        (
            "volume",
            "/dev/group/lv",
            "auto_activation_volume_list in /etc/lvm/lvm.conf does not list volume group group",
        ),
        ("lun", LUN, f"the host does not log in to target {TARGET} at boot"),
        ("luks", "/dev/mapper/secret", "secret is not in /etc/crypttab"),
        ("drbd", "/dev/drbd/by-res/one/0", "no service that brings up DRBD is enabled"),
        ("loop", "/dev/loop7", "nothing sets up loop7 at boot"),
        ("image", "/srv/mounted/image", "the file system mounted on /srv/mounted is not in /etc/fstab"),
    ],
)
def test_check_reboot_finds_storage_that_would_not_come_back(boot: Boot, guest: str, path: str, reason: str) -> None:
    assert ("warning", guest, f"after a reboot, {path} will be missing: {reason}") in found(boot, "reboot.json")


def test_check_reboot_finds_nothing_else(boot: Boot) -> None:
    more = found(boot, "reboot.json") - found(boot, "check.json")
    assert {guest for _, guest, _ in more} == {"volume", "lun", "luks", "drbd", "loop", "image"}
    assert len(more) == 6


def test_check_of_one_guest_reports_only_its_findings(boot: Boot) -> None:
    file, finding, totals, status = boot.text("web").splitlines()
    assert file == "/etc/xen/auto/web.cfg.bak:" and "error: guest web: " in finding
    assert totals.startswith("1 error, 0 warnings in ") and status == "status 2"


def test_list_gives_status_2_for_a_refused_guest(boot: Boot) -> None:
    assert boot.text("list").endswith("status 2\n")
