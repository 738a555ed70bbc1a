# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""A host with missing storage of every kind: the reasons given by the unit in its sandbox, and by `list` outside of it.

Its /etc comes from the recorded hosts (tests/data/hosts), so the reasons are the same in every boot. None of the
storage ever appears, and no guest starts.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import pytest
from md import WHOLE
from recorded import entries
from xenhost import Boot, Disk, Guest, Host

pytestmark = pytest.mark.promise("The reason names the layer at fault, with a command that helps")

TARGET = "iqn.2003-01.org.example"
LUN = f"/dev/disk/by-path/ip-127.0.0.1:3260-iscsi-{TARGET}:disk-lun-1"
UUID = "0e6cd8b1-7f1a-4a0e-9d70-54f4a1e9bd17"
WWID = "360000000000000000e00000000020001"
OTHER_UUID = "2b5f7e8c-7c1f-4f3f-9a52-9d3f6f0f1d11"


def configured(*hosts: str) -> dict[str, str]:
    """Return the files in /etc of recorded hosts."""
    return {f"/{entry.path}": entry.text for host in hosts for entry in entries(host) if entry.path.startswith("etc/")}


class Row(NamedTuple):
    """The expected state, reason and command for a guest's disk."""

    path: str
    reason: str
    hint: str
    state: str = "missing"

    @property
    def advice(self) -> str:
        """The suggested command as in a message, if there is one."""
        return f"; try: {self.hint}" if self.hint else ""


LATER = "(once the disks are ready, start them with: xendomains-wait-disk start)"

# By guest, in the order of the files: md-absent.cfg comes before md.cfg.
ROWS = {
    "drbd": Row("/dev/drbd/by-res/one/0", "DRBD resource one is not up", "drbdadm up one"),
    "image-generated": Row(
        "/srv/more/web.img",
        "/srv/more is not mounted (srv-more.mount mounts 192.0.2.1:/srv/more there)",
        "systemctl start /srv/more",
    ),
    "image": Row(
        "/srv/images/web.img",
        "/srv/images is not mounted (/etc/fstab mounts 192.0.2.1:/srv/export there)",
        "systemctl start /srv/images",
    ),
    "iscsi": Row(
        LUN,
        f"no session with iSCSI target {TARGET}:disk at 127.0.0.1:3260 (node.startup is manual)",
        f"iscsiadm -m node -T {TARGET}:disk --login",
    ),
    "luks": Row(
        "/dev/mapper/secret",
        f"no block device has UUID {UUID}",
        "lsblk -o NAME,UUID",
    ),
    "lvm-mapper": Row(
        "/dev/mapper/vg--two-lv--a",
        "/dev/loop1: loop device has no file",
        "",
    ),
    "lvm-typo": Row(
        "/dev/vg/typo",
        "volume group vg has no volume typo (according to /etc/lvm/backup/vg of Wed Nov 25 14:56:23 2026)",
        "lvs vg",
    ),
    "lvm": Row(
        "/dev/vg/lv",
        "volume group vg lacks physical volume l2pcea-cHBF-0h8e-4byI-6WP3-iFcR-UCozmx (last seen as /dev/sda)",
        "",
    ),
    "md-absent": Row(
        "/dev/md/web", "no member of md array web found, though mdadm.conf lists it", "mdadm --examine --scan"
    ),
    "md": Row(
        "/dev/md/mirror",
        "/dev/md127: md array is inactive (only vdd present); mdadm will start it degraded after 30 s",
        "mdadm --run /dev/md127",
    ),
    "multipath-wwid": Row(
        f"/dev/mapper/{WWID}",
        f"multipath map {WWID} has no path to {WWID}",
        "multipath -v2",
    ),
    "multipath": Row(
        "/dev/mapper/mpatha",
        f"multipath map mpatha has no path to {WWID}",
        "multipath -v2",
    ),
    "uuid": Row(
        f"/dev/disk/by-uuid/{OTHER_UUID}",
        f"no block device has UUID {OTHER_UUID}",
        "lsblk -o NAME,UUID",
    ),
    "zfs": Row("/dev/zvol/tank/web", "ZFS pool tank is not imported", "zpool import tank"),
}
HOST = Host(
    disks=(Disk("mirror-a", left_by=WHOLE),),
    # HVM, because the table would also list the kernel of a PV guest.
    guests=tuple(
        Guest(name, (f"{row.path},raw,xvda,w",), starts=False, more='type = "hvm"') for name, row in ROWS.items()
    ),
    files={
        **configured("drbd/down", "luks/closed", "lvm/lacks-pv"),
        **{path: text for path, text in configured("multipath/no-path").items() if "/multipath/" in path},
        "/etc/mdadm/mdadm.conf": "ARRAY /dev/md/web metadata=1.2 UUID=2b5f7e8c:7c1f4f3f:9a529d3f:6f0f1d11\n",
        # The group was last seen on a loop device, which must exist.
        "/etc/modules-load.d/loop.conf": "loop\n",
        "/etc/xen-wait-disk.conf": "timeout = 20s\n",
        # The first messages must not depend on how far udev is.
        "/etc/systemd/system/xendomains-wait-disk.service.d/settled.conf": "[Unit]\n"
        "Wants=systemd-udev-settle.service\nAfter=systemd-udev-settle.service\n",
        "/etc/fstab": "/dev/vda / ext4 defaults 0 1\n192.0.2.1:/srv/export /srv/images nfs noauto 0 0\n",
        # Like systemd.mount-extra= on the kernel command line in systemd 254 and newer.
        "/etc/systemd/system-generators/more": "#!/bin/sh\n"
        'printf "[Mount]\\nWhat=192.0.2.1:/srv/more\\nWhere=/srv/more\\nType=nfs\\n" >"$1/srv-more.mount"\n',
    },
    # Give the files the same restrictive permissions as their tools do, and never let the array's 30 seconds expire.
    setup="""
        systemctl mask mdadm-last-resort@md127.timer
        mkdir -p /srv/images /srv/more
        chmod 700 /etc/lvm/backup /etc/iscsi/nodes
        chmod -R go-rwx /etc/lvm/backup/* /etc/iscsi/nodes/* /etc/multipath/*
    """,
    # Try the suggested commands. Only the one for the array works, but all must exist and know their options.
    after="""
        xendomains-wait-disk list >$report/list || true
        xendomains-wait-disk list -v >$report/list-v || true
        xendomains-wait-disk list --json >$report/list.json || true
        sed -n 's/.*"hint": "\\(.*\\)"$/\\1/p' $report/list.json | sort -u >$report/advice
        while read -r command; do
            echo "# $command"
            timeout 10 bash -c "$command" </dev/null 2>&1 && status=0 || status=$?
            echo "# $status"
        done <$report/advice >$report/advice-taken
    """,
)


def test_wait_ends_at_the_timeout(boot: Boot) -> None:
    assert boot.wait["ExecMainStatus"] == "1"
    assert boot.waited > 20
    assert boot.wait_ended - boot.first_logged < 20 + boot.soon


def test_last_messages_give_reason_and_command(boot: Boot) -> None:
    last = [message for message in boot.messages() if " is still missing after 20s: " in message]
    assert last == [
        f"{row.path} for {name} is still missing after 20s: {row.reason}{row.advice}" for name, row in ROWS.items()
    ]
    assert boot.messages()[-1] == (f"These guests will probably not come up: {', '.join(sorted(ROWS))} {LATER}.")


@pytest.mark.parametrize("name", ROWS)
def test_reason_is_logged_at_once_with_fields(boot: Boot, name: str) -> None:
    row = ROWS[name]
    waiting = boot.entry(f"still waiting for {re.escape(f'{row.path} for {name}... ({row.reason})')}")
    fields = {"DISK": row.path, "DOMAIN": name, "STATE": row.state, "REASON": row.reason, "HINT": row.hint}
    assert {key: waiting[key] for key in fields} == fields


def test_list_outside_the_sandbox_shows_the_same_reasons(boot: Boot) -> None:
    def table(name: str) -> list[list[str]]:
        return [re.split(" {2,}", line) for line in boot.text(name).splitlines()]

    header = ["GUEST", "START", "VDEV", "DISK", "STATE", "REASON"]
    rows = {name: [name, "create", "xvda", row.path, row.state, row.reason] for name, row in ROWS.items()}
    assert table("list") == [header, *rows.values()]
    advised = [[*rows[name][:-1], f"{row.reason}{row.advice}"] for name, row in ROWS.items()]
    assert table("list-v") == [header, *advised]


def test_json_has_the_same_reasons(boot: Boot) -> None:
    guests = json.loads(boot.text("list.json"))["guests"]
    shown = {guest["name"]: Row(*(guest["disks"][0][key] or "" for key in Row._fields)) for guest in guests}
    assert shown == ROWS


def test_suggested_commands_exist_and_have_these_options(boot: Boot) -> None:
    """Except for ZFS, which is not in Debian's main section."""
    taken = re.findall(r"^# (.+)\n((?:[^#\n].*\n|\n)*)# (\d+)$", boot.text("advice-taken"), re.MULTILINE)
    assert {command for command, _, _ in taken} == {row.hint for row in ROWS.values()} - {""}
    not_understood = {
        command
        for command, output, status in taken
        if status in ("126", "127") or re.search("usage|option|unrecogni[sz]ed|syntax|help", output, re.IGNORECASE)
    }
    assert not_understood == {"zpool import tank"}
