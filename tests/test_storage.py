# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Storage below a disk: the reasons for the recorded hosts in tests/data/hosts, made-up devices and bad evidence."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import pytest
from conftest import FakeClock, Host
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import HOSTS, HostPaths, entries, paths_below, unpack

import xendomains_wait_disk as xwd
from xendomains_wait_disk import Required

TARGET = "iqn.2003-01.org.example"
ALL_HOSTS = sorted(str(path.relative_to(HOSTS).with_suffix("")) for path in HOSTS.glob("*/*.tree"))
# Paths of every kind that exist or are missing on the recorded hosts.
PATHS = (
    "/dev/disk/by-id/dm-name-secret",
    f"/dev/disk/by-path/ip-127.0.0.1:3260-iscsi-{TARGET}:disk-lun-1",
    "/dev/disk/by-uuid/0e6cd8b1-7f1a-4a0e-9d70-54f4a1e9bd17",
    "/dev/drbd/by-res/one/0",
    "/dev/drbd2",
    "/dev/mapper/mpatha",
    "/dev/mapper/secret",
    "/dev/mapper/vg--two-lv--a",
    "/dev/md/mirror",
    "/dev/md127",
    "/dev/sdz",
    "/dev/vg/lv",
    "/dev/vg/typo",
    "/dev/zvol/tank/web",
    "/srv/data/web.img",
    "/srv/images/web.img",
)


READS = Required("")
WRITES = READS._replace(writes=True)
PROMOTES = READS._replace(promotes=True)


@pytest.fixture
def host(tmp_path: Path) -> Callable[[str], HostPaths]:
    """Return a function that unpacks a recorded host."""
    return cache(lambda name: paths_below(unpack(name, tmp_path / name)))


def usable(host: HostPaths, name: str, required: Required = WRITES) -> str:
    """Return the reason for a device, given by its kernel or device-mapper name; empty if it is ready."""
    return look(host, name, required)[0]


def look(host: HostPaths, name: str, required: Required) -> tuple[str, str]:
    host.use()
    for number in os.listdir(f"{host.sys}/dev/block"):
        kernel_name = os.path.basename(os.readlink(f"{host.sys}/dev/block/{number}"))
        if name in (kernel_name, xwd.attribute(f"{host.sys}/class/block/{kernel_name}", "dm/name")):
            device = os.makedev(*map(int, number.split(":")))
            problem = xwd.check_block_device(device, required, xwd.StorageFacts()).cause
            return (problem.reason, problem.hint) if problem else ("", "")
    raise LookupError(name)


def missing(host: HostPaths, path: str) -> tuple[str, str]:
    host.use()
    cause = xwd.explain_missing(path, xwd.StorageFacts()).cause
    assert cause
    return cause.reason, cause.hint


# iSCSI, and storage on it


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
def test_lun_with_failed_session_and_all_above_it_are_unusable(host: Callable[[str], HostPaths]) -> None:
    for recorded in ("iscsi/blocked", "iscsi/failed"):
        here = host(recorded)
        for name, target in (("sdb", "disk"), ("sda", "group"), ("vg-lv", "group"), ("mpatha", "map")):
            reason = f"the session with iSCSI target {TARGET}:{target} at 127.0.0.1:3260 has failed"
            assert look(here, name, WRITES) == (reason, "iscsiadm -m session -P 1")


def test_devices_on_logged_in_sessions_are_usable(host: Callable[[str], HostPaths]) -> None:
    here = host("multipath/map")
    assert [usable(here, name) for name in ("sda", "sdb", "vg-lv", "mpatha")] == [""] * 4


def test_one_path_is_enough_for_a_map(host: Callable[[str], HostPaths]) -> None:
    here = host("iscsi/failed")
    (state,) = Path(here.sys).glob("devices/platform/host*/session*/target4:0:0/4:0:0:1/state")
    state.write_text("running\n")
    assert usable(here, "mpatha") == "/dev/mapper/mpatha: multipathd uses none of its paths"
    udev = Path(here.run) / "udev" / "data" / "b253:1"
    udev.write_text(udev.read_text().replace("MPATH_DEVICE_READY=0", "MPATH_DEVICE_READY=1"))
    assert usable(here, "mpatha") == ""


def test_target_without_a_session_is_named(host: Callable[[str], HostPaths]) -> None:
    path = f"/dev/disk/by-path/ip-127.0.0.1:3260-iscsi-{TARGET}:disk-lun-1"
    here = host("iscsi/no-session")
    reason = f"no session with iSCSI target {TARGET}:disk at 127.0.0.1:3260 (node.startup is manual)"
    assert missing(here, path) == (reason, f"iscsiadm -m node -T {TARGET}:disk --login")
    assert missing(here, f"{path}-part1")[0] == reason
    adapter = "/dev/disk/by-path/pci-0000:04:00.1-ip-"  # that logs in by itself
    assert missing(here, path.replace("/dev/disk/by-path/ip-", adapter))[0] == reason
    elsewhere = f"/dev/disk/by-path/ip-10.0.0.7:3260-iscsi-{TARGET}:disk-lun-1"
    assert missing(here, elsewhere) == (
        f"no session with iSCSI target {TARGET}:disk at 10.0.0.7:3260 (open-iscsi has no record of it)",
        "iscsiadm -m discovery -t sendtargets -p 10.0.0.7:3260",
    )


def test_missing_lun_of_a_target_is_named(host: Callable[[str], HostPaths]) -> None:
    path = f"/dev/disk/by-path/ip-127.0.0.1:3260-iscsi-{TARGET}:disk-lun-7"
    assert missing(host("iscsi/logged-in"), path) == (
        f"iSCSI target {TARGET}:disk at 127.0.0.1:3260 has no LUN 7, though there is a session",
        "iscsiadm -m session --rescan",
    )


NO_SESSIONS = (
    f"no session with iSCSI targets {TARGET}:disk, {TARGET}:group, {TARGET}:map, one of which probably has the LUN"
)


def test_a_session_at_another_portal_of_the_target_does_not_count(host: Callable[[str], HostPaths]) -> None:
    path = f"/dev/disk/by-path/ip-127.0.0.2:3260-iscsi-{TARGET}:disk-lun-1"
    reason = f"no session with iSCSI target {TARGET}:disk at 127.0.0.2:3260 (node.startup is manual)"
    assert missing(host("iscsi/logged-in"), path)[0] == reason


def logs_in_at_boot(host: HostPaths) -> HostPaths:
    """Change open-iscsi's records so that the host logs in to all targets at boot, and return the host."""
    for record in Path(host.etc, "iscsi/nodes").glob("*/*/default"):
        record.write_text(record.read_text().replace("node.startup = manual", "node.startup = automatic"))
    return host


def test_missing_persistent_name_hints_at_targets_without_a_session(
    host: Callable[[str], HostPaths],
) -> None:
    here = logs_in_at_boot(host("iscsi/no-session"))
    for name in ("id/scsi-36001405", "id/wwn-0x6001405", "uuid/1234", "label/data"):
        assert missing(here, f"/dev/disk/by-{name}") == (NO_SESSIONS, "iscsiadm -m node --loginall=automatic")
    for name in ("ata-disk", "scsi-0ATA_disk", "scsi-35000c500a1b2c3d4", "wwn-0x5000c500a1b2c3d4"):
        assert "target" not in missing(here, f"/dev/disk/by-id/{name}")[0]


def test_target_without_automatic_login_is_not_blamed(host: Callable[[str], HostPaths]) -> None:
    assert missing(host("iscsi/no-session"), "/dev/sdz") == ("does not exist", "")
    assert missing(host("lvm/lacks-pv"), "/dev/vg/lv")[0].startswith("volume group vg lacks physical volume ")


def test_missing_partition_of_a_present_disk_is_named(host: Callable[[str], HostPaths]) -> None:
    here = logs_in_at_boot(host("iscsi/logged-in"))
    assert missing(here, "/dev/sda5") == ("/dev/sda has no partition 5", "lsblk /dev/sda")
    by_id = "/dev/disk/by-id/scsi-360000000000000000e00000000010001"
    assert missing(here, f"{by_id}-part1")[0] == f"{by_id} has no partition 1"


def test_missing_partition_of_an_array_or_map_is_named(host: Callable[[str], HostPaths]) -> None:
    assert missing(host("md/degraded"), "/dev/md127p1")[0] == "/dev/md127 has no partition 1"
    here = host("multipath/map")
    for part in ("-part2", "2", "p2"):  # as kpartx names it
        what = ("/dev/mapper/mpatha has no partition 2", "kpartx -av /dev/mapper/mpatha")
        assert missing(here, f"/dev/mapper/mpatha{part}") == what
    assert missing(host("md/inactive"), "/dev/md127p1")[0].startswith(f"{INACTIVE_ARRAY}; ")


def test_ipv6_portal_is_written_as_by_udev(tmp_path: Path) -> None:
    record = tmp_path / "etc/iscsi/nodes/iqn.x:disk/fe80::1,3260,1/default"
    record.parent.mkdir(parents=True)
    record.write_text(
        "node.name = iqn.x:disk\nnode.startup = automatic\nnode.conn[0].address = fe80::1\nnode.conn[0].port = 3260\n"
    )
    assert missing(paths_below(tmp_path), "/dev/disk/by-path/ip-[fe80::1]:3260-iscsi-iqn.x:disk-lun-1") == (
        "no session with iSCSI target iqn.x:disk at [fe80::1]:3260 (node.startup is automatic)",
        "iscsiadm -m node -T iqn.x:disk --login",
    )


# LVM


def pv_of(host: HostPaths, group: str) -> str:
    text = (Path(host.etc) / "lvm" / "backup" / group).read_text()
    return text.partition("physical_volumes")[2].partition('id = "')[2].partition('"')[0]


@pytest.mark.promise("The reason names the layer at fault, with a command that helps")
def test_group_without_its_lun_names_the_target(host: Callable[[str], HostPaths]) -> None:
    here = logs_in_at_boot(host("lvm/lacks-pv"))
    for name in ("disk", "map"):
        shutil.rmtree(f"{here.etc}/iscsi/nodes/{TARGET}:{name}")
    shutil.rmtree(f"{here.etc}/iscsi/nodes/{TARGET}:group/127.0.0.2,3260,1")
    reason = f"no session with iSCSI target {TARGET}:group at 127.0.0.1:3260 (node.startup is automatic)"
    for path in ("/dev/vg/lv", "/dev/mapper/vg-lv"):
        assert missing(here, path) == (reason, f"iscsiadm -m node -T {TARGET}:group --login")


def test_group_without_one_of_many_luns_blames_no_target(host: Callable[[str], HostPaths]) -> None:
    here = logs_in_at_boot(host("lvm/lacks-pv"))
    assert missing(here, "/dev/vg/lv") == (NO_SESSIONS, "iscsiadm -m node --loginall=automatic")


def test_missing_physical_volume_is_named_with_its_last_device(host: Callable[[str], HostPaths]) -> None:
    here = host("lvm/never-seen")
    reason = f"volume group vg-two lacks physical volume {pv_of(here, 'vg-two')} (last seen as /dev/loop1)"
    assert missing(here, "/dev/mapper/vg--two-lv--a") == (reason, "")
    assert missing(here, "/dev/vg-two/lv-a") == (reason, "")


def test_missing_physical_volume_never_seen_is_named_by_uuid(host: Callable[[str], HostPaths]) -> None:
    here = host("lvm/never-seen")
    backup = Path(here.etc) / "lvm" / "backup" / "vg"
    backup.write_text(backup.read_text().replace('"/dev/loop0"', '"[unknown]"'))
    reason = f"volume group vg lacks physical volume {pv_of(here, 'vg')}"
    assert missing(here, "/dev/vg/lv")[0] == reason


INACTIVE = "volume group vg is complete, but not all of its volumes are active"


def test_inactive_volume_is_named(host: Callable[[str], HostPaths]) -> None:
    assert missing(host("lvm/not-activated"), "/dev/vg/lv") == (
        INACTIVE,
        "vgchange -ay vg",
    )


def test_unknown_volume_and_group_are_named(host: Callable[[str], HostPaths]) -> None:
    here = host("lvm/active")
    reason, hint = missing(here, "/dev/vg/typo")
    assert reason.startswith("volume group vg has no volume typo (according to /etc/lvm/backup/vg of ")
    assert hint == "lvs vg"
    assert missing(here, "/dev/typo/lv") == (
        "volume group typo is unknown here (no /etc/lvm/backup/typo)",
        "vgs",
    )
    assert missing(here, "/dev/mapper/typo-lv")[1] == ""


@pytest.mark.promise("A LUN and its clone have the same LVM identifiers")
def test_clone_with_same_pv_uuid_is_named(host: Callable[[str], HostPaths]) -> None:
    assert missing(host("lvm/clone"), "/dev/vg/lv") == (
        "sda, sdb carry the same PV UUID (a LUN and its clone, or paths to one LUN)",
        "lsblk -o NAME,SERIAL,WWN /dev/sda /dev/sdb",
    )


def edit_backup(host: HostPaths, text: str, instead: str) -> None:
    """Change the first occurrence of a text in the backup of volume group vg."""
    backup = Path(host.etc) / "lvm" / "backup" / "vg"
    assert text in backup.read_text()
    backup.write_text(backup.read_text().replace(text, instead, 1))


@pytest.mark.parametrize(
    ("text", "instead", "reason", "hint"),
    [
        # As written by vgcfgbackup of LVM 2.03.
        (
            '"VISIBLE"]\n\t\t\tflags = []',
            '"VISIBLE"]\n\t\t\tflags = ["ACTIVATION_SKIP"]',
            "LVM volume vg/lv has the activation skip flag",
            "lvchange -ay -K vg/lv",
        ),
        (
            "\tflags = []",
            '\tflags = ["NOAUTOACTIVATE"]',
            "LVM volume vg/lv or its group is not activated automatically",
            "lvchange -ay vg/lv",
        ),
        ('status = ["RESIZEABLE"', 'status = ["EXPORTED", "RESIZEABLE"', "volume group vg is exported", "vgimport vg"),
        (
            "\tflags = []",
            '\tflags = []\n\tsystem_id = "dom1"',
            "volume group vg is activated only by the host with system ID dom1",
            "lvm systemid",
        ),
        (
            "\tflags = []",
            '\tflags = []\n\tlock_type = "sanlock"',
            "volume group vg is shared (sanlock) and not activated",
            "vgchange --lockstart vg",
        ),
        (
            '\t\t\t\ttype = "striped"',
            '\t\t\t\ttype = "thin"\n\t\t\t\tthin_pool = "pool"',
            "thin pool vg/pool is not active (if LVM refuses to activate it: lvconvert --repair vg/pool)",
            "lvchange -ay vg/pool",
        ),
    ],
)
def test_reason_why_a_volume_is_inactive_is_given(
    host: Callable[[str], HostPaths], text: str, instead: str, reason: str, hint: str
) -> None:
    here = host("lvm/not-activated")
    edit_backup(here, text, instead)
    assert missing(here, "/dev/vg/lv") == (reason, hint)


def test_physical_volume_hidden_from_lvm_is_named(host: Callable[[str], HostPaths]) -> None:
    here = host("lvm/not-activated")
    devices = Path(here.etc, "lvm/devices/system.devices")
    devices.parent.mkdir()
    devices.write_text("VERSION=1.1.2\nIDTYPE=sys_wwid IDNAME=naa.5000 DEVNAME=/dev/sdz PVID=other PART=0\n")
    reason = "/dev/sda is hidden from LVM (not in /etc/lvm/devices/system.devices)"
    assert missing(here, "/dev/vg/lv") == (reason, "lvmdevices --adddev /dev/sda")
    devices.write_text(f"IDTYPE=sys_wwid IDNAME=naa.5000 DEVNAME=/dev/sda PVID={pv_of(here, 'vg').replace('-', '')}\n")
    assert missing(here, "/dev/vg/lv")[0] == INACTIVE


def test_group_with_the_system_id_of_this_host_is_activated_here(host: Callable[[str], HostPaths]) -> None:
    here = host("lvm/not-activated")
    edit_backup(here, "creation_time", 'creation_host_system_id = "own"\ncreation_time')
    edit_backup(here, "\tflags = []", '\tflags = []\n\tsystem_id = "own"')
    assert missing(here, "/dev/vg/lv")[0] == INACTIVE
    edit_backup(here, '\tsystem_id = "own"', '\tsystem_id = "dom1"')
    assert missing(here, "/dev/vg/lv")[0] == "volume group vg is activated only by the host with system ID dom1"


FILTERS = ('[ "a|/dev/(sd[b-z]|vd.)|", "r|.*|" ]', '["r/./"]', '["r|^/dev/sda$|", "r|/dev/disk/|"]')
NO_FILTERS = (
    '[ "a|/dev/disk/by-id/|", "r|.*|" ]', '["r|^/dev/sda$|", "a|.*|"]', '["r|drbd|"]', '["a|sda|","r|.*|"]',
    '["a(/dev/sda)", "r|.*|"]', '["a{sda}", "r/.*/"]', '["r|*|"]',
)  # fmt: skip


@pytest.mark.parametrize("patterns", [*FILTERS, *NO_FILTERS])
def test_physical_volume_rejected_by_a_filter_is_named(host: Callable[[str], HostPaths], patterns: str) -> None:
    """The device is accepted if one of its names is: lvm.conf(5)."""
    here = host("lvm/not-activated")
    Path(here.etc, "lvm/lvm.conf").write_text(f'devices {{\n\t# filter = ["r|.*|"]\n\tglobal_filter = {patterns}\n}}\n')
    reason = "/dev/sda is hidden from LVM (by a filter in /etc/lvm/lvm.conf)"
    assert missing(here, "/dev/vg/lv")[0] == (reason if patterns in FILTERS else INACTIVE)
    devices = Path(here.etc, "lvm/devices/system.devices")
    devices.parent.mkdir()
    devices.write_text(f"IDTYPE=sys_wwid IDNAME=naa.5000 DEVNAME=/dev/sda PVID={pv_of(here, 'vg').replace('-', '')}\n")
    assert missing(here, "/dev/vg/lv")[0] == INACTIVE  # with a devices file, LVM ignores filters


def test_physical_volume_that_has_come_back_is_named(host: Callable[[str], HostPaths]) -> None:
    """LVM has marked it as missing, and refuses to activate what lies on it: vgextend(8)."""
    here = host("lvm/not-activated")
    edit_backup(here, 'status = ["ALLOCATABLE"]\n\t\t\tflags = []', 'status = []\n\t\t\tflags = ["MISSING"]')
    reason = "/dev/sda was missing when volume group vg was changed, so LVM does not use it"
    assert missing(here, "/dev/vg/lv") == (reason, "vgextend --restoremissing vg /dev/sda")


def test_volume_not_on_the_missing_disk_can_be_activated(host: Callable[[str], HostPaths]) -> None:
    here = host("lvm/not-activated")
    edit_backup(here, "\t\tpv0 {", '\t\tpv1 {\n\t\t\tid = "gone"\n\t\t\tdevice = "/dev/sdq"\n\t\t}\n\n\t\tpv0 {')
    assert missing(here, "/dev/vg/lv")[0] == INACTIVE
    edit_backup(here, '"pv0", 0', '"pv1", 0')
    assert missing(here, "/dev/vg/lv")[0].startswith(
        "volume group vg lacks physical volume gone (last seen as /dev/sdq)"
    )


def test_group_with_a_raid_can_be_activated_without_a_disk(host: Callable[[str], HostPaths]) -> None:
    """LVM does not do it at boot, where it waits until a group is complete."""
    here = host("lvm/never-seen")
    assert missing(here, "/dev/vg/lv")[1] == ""
    add_volume(here, "raid")
    edit_backup(here, 'type = "striped"', 'type = "raid1"')
    assert missing(here, "/dev/vg/raid")[1] == "vgchange -ay vg"
    assert missing(here, "/dev/vg/lv")[1] == ""  # it needs the disk


@pytest.mark.parametrize("ident", ["t10.ATA_Samsung_SSD", "eui.0025385", "naa.5000c500a1b2c3d4"])
def test_no_target_is_blamed_for_a_disk_that_was_no_lun(host: Callable[[str], HostPaths], ident: str) -> None:
    here = logs_in_at_boot(host("lvm/lacks-pv"))
    assert "targets" in missing(here, "/dev/vg/lv")[0]
    edit_backup(
        here,
        'device = "/dev/sda"',
        f'device = "/dev/sda"\n\t\t\tdevice_id_type = "sys_wwid"\n\t\t\tdevice_id = "{ident}"',
    )
    assert "target" not in missing(here, "/dev/vg/lv")[0]


def test_active_volume_without_a_link_is_named(host: Callable[[str], HostPaths]) -> None:
    here = host("lvm/active")
    (Path(here.run) / "udev/data/b253:0").write_text("I:1\nE:SYSTEMD_READY=0\n")
    reason = "vg-lv is active as dm-0, but udev has not created a link to it"
    for path in ("/dev/vg/lv", "/dev/mapper/vg-lv"):
        assert missing(here, path) == (reason, "udevadm trigger --action=change /sys/class/block/dm-0")
    (Path(here.run) / "udev" / "queue").touch()  # udev is busy
    assert missing(here, "/dev/vg/lv") == (f"{reason} yet", "udevadm settle")


@pytest.mark.parametrize("path", ["/dev/etherd/e0.1", "/dev/nbd/web", "/dev/raw/raw1", "/dev/bcache/by-uuid"])
def test_path_of_two_parts_is_not_always_lvm(host: Callable[[str], HostPaths], path: str) -> None:
    assert "volume group" not in missing(host("lvm/active"), path)[0]


def test_path_of_two_parts_is_no_volume_without_lvm(tmp_path: Path) -> None:
    assert missing(paths_below(tmp_path), "/dev/tank/web")[0] == "does not exist, nor does the directory /dev/tank"


# multipath


def test_map_without_paths_and_paths_without_a_map_are_named(host: Callable[[str], HostPaths]) -> None:
    here = host("multipath/no-map")
    wwid = (Path(here.etc) / "multipath" / "wwids").read_text().strip().strip("/")
    assert missing(here, "/dev/mapper/mpatha") == (
        f"no multipath map for {wwid}, though paths are present: sda, sdb",
        "multipath -v2",
    )
    names = ("mapper/mpatha-part1", "mapper/mpatha1", f"mapper/{wwid}-part1")
    by_id = (f"disk/by-id/dm-uuid-{part}mpath-{wwid}" for part in ("", "part1-"))
    assert reasons(here, *(f"/dev/{name}" for name in (*names, *by_id))) == {missing(here, "/dev/mapper/mpatha")}
    (Path(here.etc) / "multipath" / "wwids").unlink()  # multipathd has not seen it yet
    assert missing(here, f"/dev/mapper/{wwid}") == missing(here, "/dev/mapper/mpatha")
    here = host("multipath/no-path")
    assert missing(here, "/dev/mapper/mpatha") == (f"multipath map mpatha has no path to {wwid}", "multipath -v2")
    reason = missing(logs_in_at_boot(here), "/dev/mapper/mpatha")[0]
    assert reason == f"no session with iSCSI targets {TARGET}:group, {TARGET}:map, one of which probably has the LUN"


def test_map_is_known_by_its_alias(host: Callable[[str], HostPaths]) -> None:
    here = host("multipath/no-map")
    wwid = (Path(here.etc) / "multipath" / "wwids").read_text().strip().strip("/")
    for file in ("multipath.conf", "multipath/conf.d/web.conf"):
        (Path(here.etc) / file).parent.mkdir(exist_ok=True)
        (Path(here.etc) / file).write_text(f"multipaths {{\n\tmultipath {{\n\t\twwid {wwid}\n\t\talias web\n\t}}\n}}\n")
        assert missing(here, "/dev/mapper/web")[0] == f"no multipath map for {wwid}, though paths are present: sda, sdb"
        (Path(here.etc) / file).unlink()
        assert missing(here, "/dev/mapper/web")[1] == ""


# md


INACTIVE_ARRAY = "/dev/md127: md array is inactive (only vdd present)"


@pytest.mark.promise("The reason names the layer at fault, with a command that helps")
def test_inactive_array_is_named(host: Callable[[str], HostPaths]) -> None:
    here = host("md/inactive")
    what = (f"{INACTIVE_ARRAY}; mdadm will start it degraded after 30 s", "mdadm --run /dev/md127")
    assert look(here, "md127", READS) == what
    assert missing(here, "/dev/md/mirror") == missing(here, "/dev/md127") == what


def test_degraded_array_is_usable(host: Callable[[str], HostPaths]) -> None:
    assert usable(host("md/degraded"), "md127") == ""


def test_unassembled_or_missing_array_is_named(host: Callable[[str], HostPaths]) -> None:
    here = host("md/stopped")
    assert missing(here, "/dev/md/mirror") == (
        "md array mirror is not assembled (members present: vdd)",
        "mdadm --assemble --scan",
    )
    assert missing(here, "/dev/md/other") == (
        "no member of md array other found, and mdadm.conf does not list it",
        "mdadm --examine --scan",
    )
    (Path(here.etc) / "mdadm" / "mdadm.conf").write_text("ARRAY /dev/md/other metadata=1.2 UUID=1:2:3:4\n")
    assert missing(here, "/dev/md/other")[0] == "no member of md array other found, though mdadm.conf lists it"


def test_array_that_mdadm_conf_does_not_list_is_assembled_from_its_members(host: Callable[[str], HostPaths]) -> None:
    """--scan assembles only what mdadm.conf lists, unless it lists nothing."""
    here = host("md/stopped")
    (Path(here.etc) / "mdadm" / "mdadm.conf").write_text("ARRAY /dev/md/other metadata=1.2 UUID=1:2:3:4\n")
    assert missing(here, "/dev/md/mirror") == (
        "md array mirror is not assembled (members present: vdd)",
        "mdadm --assemble /dev/md/mirror /dev/vdd",
    )


def test_array_half_assembled_by_initramfs_is_named(host: Callable[[str], HostPaths]) -> None:
    """As on Debian with mdadm in the initramfs: udev does not know that the members belong to an array."""
    here = host("md/inactive")
    entry = Path(here.run) / "udev/data/b254:48"
    entry.write_text("".join(line for line in entry.read_text().splitlines(keepends=True) if "E:MD_" not in line))
    reason = f"{INACTIVE_ARRAY}; nothing will start it unless another member appears"
    assert "ID_FS_LABEL" in entry.read_text()
    assert missing(here, "/dev/md/mirror") == (reason, "mdadm --run /dev/md127")


def test_array_with_too_few_members_is_not_to_be_run(host: Callable[[str], HostPaths]) -> None:
    """mdadm --incremental tells udev so, as for a RAID 5 of three disks with one of them."""
    here = host("md/inactive")
    entry = Path(here.run) / "udev/data/b254:48"
    entry.write_text(entry.read_text().replace("E:MD_STARTED=unsafe", "E:MD_STARTED=no"))
    assert missing(here, "/dev/md/mirror") == (
        f"{INACTIVE_ARRAY}; too few members to start",
        "mdadm --detail /dev/md127",
    )


@pytest.mark.parametrize("file", ["etc/mdadm/mdadm.conf", "run/mdadm/map"])
def test_an_array_is_known_by_its_uuid(host: Callable[[str], HostPaths], file: str) -> None:
    here = host("md/inactive")
    entry = Path(here.run) / "udev/data/b254:48"
    lines = [line for line in entry.read_text().splitlines() if not line.startswith(("E:MD_", "E:ID_FS_LABEL"))]
    entry.write_text("\n".join([*lines, ""]))
    (uuid,) = (line[len("E:ID_FS_UUID=") :] for line in lines if line.startswith("E:ID_FS_UUID="))
    digits = uuid.replace("-", "")
    uuid = ":".join(digits[start : start + 8] for start in range(0, 32, 8))
    known = f"ARRAY /dev/md/data metadata=1.2 UUID={uuid}\n" if "conf" in file else f"md127 1.2 {uuid} /dev/md/data\n"
    path = Path(here.etc).parent / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(known)
    assert missing(here, "/dev/md/data")[0].startswith(f"{INACTIVE_ARRAY}; ")


@pytest.mark.parametrize(
    ("uptime", "expected"),
    [
        ("40.00", "mdadm will start it degraded after 30 s"),
        ("320.00", "mdadm has not started it degraded within 300 s"),
    ],
)
def test_inactive_array_shows_how_long_it_has_waited(
    host: Callable[[str], HostPaths], uptime: str, expected: str
) -> None:
    here = host("md/inactive")
    entry = Path(here.run) / "udev/data/b254:48"
    entry.write_text(f"I:20000000\n{entry.read_text()}")
    Path(here.proc, "uptime").write_text(f"{uptime} 1.00\n")
    os.utime(Path(here.run) / "mdadm/map", (0, 0))
    assert missing(here, "/dev/md127")[0] == f"{INACTIVE_ARRAY}; {expected}"


def test_inactive_array_waits_from_the_last_added_member(host: Callable[[str], HostPaths]) -> None:
    """That is long after udev saw it if the initramfs asked for a passphrase in between."""
    here = host("md/inactive")
    entry = Path(here.run) / "udev/data/b254:48"
    entry.write_text(f"I:20000000\n{entry.read_text()}")
    Path(here.proc, "uptime").write_text("320.00 1.00\n")
    (Path(here.run) / "mdadm/map").touch()
    assert missing(here, "/dev/md127")[0].endswith("; mdadm will start it degraded after 30 s")


def test_array_running_under_another_name_is_named(host: Callable[[str], HostPaths]) -> None:
    here = host("md/degraded")
    entry = Path(here.run) / "udev/data/b254:48"
    (uuid,) = re.findall("^E:ID_FS_UUID=(.*)", entry.read_text(), re.MULTILINE)
    Path(here.etc, "mdadm", "mdadm.conf").write_text(f"ARRAY /dev/md0 metadata=1.2 UUID={uuid.replace('-', '')}\n")
    reason = "md array md0 is running as md127"
    assert missing(here, "/dev/md0") == (reason, "mdadm --detail /dev/md127")


def test_volume_in_a_container_has_the_reason_of_its_container(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "mdadm.conf").write_text(
        "ARRAY metadata=imsm UUID=1:2:3:4 name=host:imsm0\n"
        "ARRAY /dev/md/Volume0 container=/dev/md/imsm0 member=0 UUID=5:6:7:8\n"
    )
    assert missing(paths_below(tmp_path), "/dev/md/Volume0")[0] == (
        "no member of md array imsm0 found, though mdadm.conf lists it"
    )


def test_volume_of_a_container_that_is_not_assembled_names_its_disks(tmp_path: Path) -> None:
    here = udev_entry(tmp_path, "ID_FS_TYPE=isw_raid_member")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/mdadm.conf").write_text("ARRAY /dev/md/Volume0 container=1:2:3:4 member=0 UUID=5:6:7:8\n")
    assert missing(here, "/dev/md/Volume0") == (
        "md array Volume0 is not assembled (members present: sda)",
        "mdadm --assemble --scan",
    )


@pytest.mark.parametrize("container", ["/dev/md/imsm0", "5ed2d4a1:22222222:33333333:44444444"])
def test_volume_not_started_in_its_container_is_named(tmp_path: Path, container: str) -> None:
    """`mdadm --examine --scan` gives the UUID of the container."""
    for file, text in (
        ("etc/mdadm.conf", f"ARRAY /dev/md/Volume0 container={container} member=0 UUID=5:6:7:8\n"),
        ("run/mdadm/map", "md127 imsm 5ed2d4a1:22222222:33333333:44444444 /dev/md/imsm0\n"),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert missing(paths_below(tmp_path), "/dev/md/Volume0") == (
        "md array Volume0 is not started in its container md127",
        "mdadm --incremental --run /dev/md127",
    )


def udev_entry(root: Path, *properties: str) -> HostPaths:
    """A host whose only disk is sda, with these properties."""
    here = made_up(root, sda={})
    (root / "run/udev/data").mkdir(parents=True)
    (root / "run/udev/data/b7:0").write_text("I:1\n" + "".join(f"E:{item}\n" for item in properties))
    return here


@pytest.mark.parametrize(
    ("label", "names"),
    [
        ("xen1:data", ("md/data", "md/xen1:data", "disk/by-id/md-name-xen1:data")),
        ("xen1:md0", ("md/md0", "md0", "md/0")),  # --name=md0
        ("xen1:mdata", ("md/mdata",)),
    ],
)
def test_array_is_known_by_each_of_its_names(tmp_path: Path, label: str, names: tuple[str, ...]) -> None:
    here = udev_entry(tmp_path, "ID_FS_TYPE=linux_raid_member", f"ID_FS_LABEL={label}")
    for name in names:
        assert missing(here, f"/dev/{name}")[0].endswith(" is not assembled (members present: sda)")


def test_array_is_known_by_the_link_with_its_uuid(tmp_path: Path) -> None:
    uuid = "c0ffee00-1111-2222-3333-444455556666"
    here = udev_entry(tmp_path, "ID_FS_TYPE=linux_raid_member", f"ID_FS_UUID={uuid}", f"ID_FS_UUID_ENC={uuid}")
    path = "/dev/disk/by-id/md-uuid-c0ffee00:11112222:33334444:55556666"
    assert missing(here, path)[0].endswith(" is not assembled (members present: sda)")
    (tmp_path / "etc").mkdir(exist_ok=True)
    (tmp_path / "etc/mdadm.conf").write_text("ARRAY /dev/md/data UUID=c0ffee00:11112222:33334444:55556666\n")
    assert missing(here, path)[1] == "mdadm --assemble --scan"
    # blkid prints the same for each member.
    assert missing(here, f"/dev/disk/by-uuid/{uuid}") == (
        f"sda has UUID {uuid}, but udev creates no such link for it",
        "lsblk -o NAME,UUID,FSTYPE",
    )


# LUKS, DRBD, read-only, mounts, ZFS, links


def test_closed_crypt_volume_is_named(host: Callable[[str], HostPaths]) -> None:
    here = host("luks/closed")
    hint = "systemctl start systemd-cryptsetup@secret"
    assert missing(here, "/dev/mapper/secret") == (
        "crypt volume secret is not open (it is in /etc/crypttab, with the option noauto)",
        hint,
    )
    (Path(here.etc) / "crypttab").write_text("secret UUID=1234 none luks\n")
    assert missing(here, "/dev/mapper/secret") == (
        "no block device has UUID 1234",
        "lsblk -o NAME,UUID",
    )
    assert usable(host("luks/open"), "secret") == ""


def test_drbd_resource_that_is_down_is_named(host: Callable[[str], HostPaths]) -> None:
    here = host("drbd/down")
    for path in ("/dev/drbd/by-res/one/0", "/dev/drbd/by-res/one", "/dev/drbd1", "/dev/drbd1p1"):
        assert missing(here, path) == ("DRBD resource one is not up", "drbdadm up one")
    reason = "no DRBD resource typo in /etc/drbd.conf or the files it includes"
    assert missing(here, "/dev/drbd/by-res/typo/0") == (reason, "drbdadm dump")


def test_drbd_include_with_a_nul_is_ignored(host: Callable[[str], HostPaths]) -> None:
    here = host("drbd/down")
    with (Path(here.etc) / "drbd.conf").open("a") as file:
        file.write('include "drbd\0.d/*.res";\n')
    assert missing(here, "/dev/drbd/by-res/one/0") == ("DRBD resource one is not up", "drbdadm up one")


def test_drbd_resource_that_is_up_without_a_link_is_named(host: Callable[[str], HostPaths]) -> None:
    here = host("drbd/one-secondary")
    reason = "DRBD resource one is active as drbd1, but udev has not created a link to it"
    hint = "udevadm trigger --action=change /sys/class/block/drbd1"
    assert missing(here, "/dev/drbd/by-res/one") == (reason, hint)
    assert missing(here, "/dev/drbd/by-res/one/7")[0].startswith("does not exist")  # no such volume


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
def test_drbd_8_is_usable_by_role_and_disk_state(host: Callable[[str], HostPaths]) -> None:
    promotes = PROMOTES
    here = host("drbd/one-secondary")
    assert look(here, "drbd1", READS) == (
        "DRBD is Secondary, and its peer, where the guest may be running, is not connected",
        "drbdadm primary one",
    )
    assert usable(here, "drbd1", promotes) == ""
    assert usable(here, "drbd2") == ""
    for recorded, disk in (("drbd/inconsistent", "Inconsistent"), ("drbd/one-diskless", "Diskless")):
        reason = f"/dev/drbd1: DRBD's disk is {disk}, and the peer is not connected"
        assert look(host(recorded), "drbd1", promotes) == (reason, "drbdadm status")
        assert usable(host(recorded), "drbd1") == reason


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        ("ro:Primary/Secondary ds:UpToDate/UpToDate", ""),
        ("ro:Primary/Secondary ds:Diskless/UpToDate", ""),
        ("ro:Primary/Secondary ds:Inconsistent/UpToDate", ""),
        ("ro:Secondary/Primary ds:UpToDate/UpToDate", "DRBD is Secondary, and its peer is Primary"),
        ("ro:Secondary/Secondary ds:UpToDate/UpToDate", "DRBD is Secondary"),
        (
            "ro:Secondary/Secondary ds:Inconsistent/Inconsistent",
            "/dev/drbd1: DRBD's disk is Inconsistent, and the peer's is Inconsistent",
        ),
    ],
)
def test_drbd_8_is_usable_depending_on_its_peer(host: Callable[[str], HostPaths], states: str, reason: str) -> None:
    here = host("drbd/one-secondary")
    Path(here.proc, "drbd").write_text(f"version: 8.4.11 (api:1/proto:86-101)\n\n 1: cs:Connected {states} C r-----\n")
    assert usable(here, "drbd1") == reason


def test_drbd_9_is_usable_by_its_status(host: Callable[[str], HostPaths], monkeypatch: pytest.MonkeyPatch) -> None:
    here = host("drbd9/secondary")
    status = (HOSTS / "drbd9" / "status.json").read_text()
    statuses = {"UpToDate and UpToDate": status}
    status = status.replace('"disk-state": "UpToDate"', '"disk-state": "Inconsistent"')
    statuses["Inconsistent, the peer UpToDate"] = status
    statuses["Inconsistent, the peer Outdated"] = status.replace("UpToDate", "Outdated")
    statuses["Primary on the peer"] = statuses["UpToDate and UpToDate"].replace(
        '"peer-role": "Secondary"', '"peer-role": "Primary"'
    )
    statuses["unknown"] = ""
    outdated = "and the peer's is Outdated"
    reasons = {}
    for name, text in statuses.items():
        monkeypatch.setattr(xwd, "output_of", lambda *_, text=text: text)
        reasons[name] = usable(here, "drbd1")
    assert reasons == {
        **dict.fromkeys(statuses, ""),
        "Inconsistent, the peer Outdated": f"/dev/drbd1: DRBD's disk is Inconsistent, {outdated}",
        "Primary on the peer": "DRBD is Secondary, and its peer is Primary",
    }


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
def test_read_only_device_is_ready_only_for_reading(host: Callable[[str], HostPaths]) -> None:
    here = host("read-only/read-only")
    reason = "is read-only, but the guest writes to it"
    assert look(here, "vdh", WRITES) == (reason, "blockdev --setrw /dev/vdh")
    assert usable(here, "vdh", READS) == ""
    assert usable(here, "vdg") == ""


@pytest.mark.promise("The reason names the layer at fault, with a command that helps")
def test_missing_file_below_an_unmounted_directory_names_the_mount(host: Callable[[str], HostPaths]) -> None:
    here = host("mount/failed")
    assert missing(here, "/srv/images/deep/web.img") == (
        "/srv/images is not mounted (/etc/fstab mounts 192.0.2.1:/srv/export there)",
        "systemctl start /srv/images",
    )
    reason, hint = missing(here, "/srv/data/web.img")
    assert reason.startswith("volume group vg has no volume data (") and hint == "lvs vg"
    with open(f"{here.proc}/self/mountinfo", "a") as file:
        file.write("99 25 0:99 / /srv/images rw,relatime shared:1 - autofs systemd-1 rw,fd=1\n")
    assert missing(here, "/srv/images/web.img")[0].startswith("/srv/images is not mounted ")
    with open(f"{here.proc}/self/mountinfo", "a") as file:
        file.write("98 99 0:98 / /srv/images rw,relatime shared:1 - nfs4 192.0.2.1:/srv/export rw\n")
    assert missing(here, "/srv/images/web.img")[1] == ""


def test_unmounted_directory_known_only_from_a_unit_is_named(host: Callable[[str], HostPaths]) -> None:
    here = host("mount/failed")
    (Path(here.etc) / "fstab").unlink()
    assert missing(here, "/srv/images/web.img")[0] == (
        "/srv/images is not mounted (srv-images.mount mounts 192.0.2.1:/srv/export there)"
    )


def test_missing_zvol_names_its_pool(host: Callable[[str], HostPaths]) -> None:
    here = host("zfs/imported")
    assert missing(here, "/dev/zvol/spare/web") == ("ZFS pool spare is not imported", "zpool import spare")
    assert missing(here, "/dev/zvol/tank/vm/web")[0] == "ZFS pool tank has no volume vm/web, or its key is not loaded"
    Path(here.proc, "spl/kstat/zfs/tank/state").write_text("SUSPENDED\n")
    assert missing(here, "/dev/zvol/tank/vm/web") == ("ZFS pool tank is SUSPENDED", "zpool clear tank")


def test_zvol_is_known_by_its_older_name_on_a_host_with_lvm(host: Callable[[str], HostPaths]) -> None:
    here = host("lvm/active")
    zfs = Path(here.etc, "zfs")
    zfs.mkdir()
    (zfs / "zpool.cache").write_bytes(b"\0\0\0\4tank\0\0\0\x13\0\0\0\x11/dev/typo/lv-part1")
    assert missing(here, "/dev/tank/web") == ("ZFS pool tank is not imported", "zpool import tank")
    Path(here.proc, "spl/kstat/zfs/tank").mkdir(parents=True)
    assert missing(here, "/dev/tank/vm/web-part1")[0] == "ZFS pool tank has no volume vm/web, or its key is not loaded"
    for path in ("/dev/vg/typo", "/dev/mapper/typo", "/dev/typo/lv"):
        assert "ZFS" not in missing(here, path)[0]


def test_link_that_no_device_has_is_named(host: Callable[[str], HostPaths]) -> None:
    here = host("luks/closed")
    for tag in ("UUID", "LABEL", "PARTUUID", "PARTLABEL"):
        expected = (f"no block device has {tag} nothing", f"lsblk -o NAME,{tag}")
        assert missing(here, f"/dev/disk/by-{tag.lower()}/nothing") == expected
    assert missing(here, "/dev/disk/by-id/wwn-0x5") == ("no block device has ID wwn-0x5", "ls /dev/disk/by-id")
    assert missing(here, "/dev/disk/by-id/dm-name-secret")[0].startswith("crypt volume secret is not open ")


def test_label_is_written_as_by_udev(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "fstab").write_text('LABEL="guest\\040data" /srv/images ext4 defaults 0 0\n')
    reason = missing(paths_below(tmp_path), "/srv/images/web.img")[0]
    assert reason == "no block device has LABEL guest\\x20data"
    assert xwd.path_of('LABEL="guest data"') == "/dev/disk/by-label/guest\\x20data"


@pytest.mark.parametrize(
    ("table", "line", "unit"),
    [
        ("crypttab", "vm/web UUID=1", "systemd-cryptsetup@vm-web"),
        ("integritytab", "web-1 PARTUUID=2", r"'systemd-integritysetup@web\x2d1'"),
        ("veritytab", "web UUID=3 UUID=4 hash", "systemd-veritysetup@web"),
    ],
)
def test_volume_from_a_systemd_table_names_its_unit(tmp_path: Path, table: str, line: str, unit: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / table).write_text(f"{line}\n")
    name, source, *_ = line.split()
    path, here = f"/dev/mapper/{name}", paths_below(tmp_path)
    assert missing(here, path)[0] == f"no block device has {source.replace('=', ' ')}"
    (tmp_path / "etc" / table).write_text(f"{name} /srv/image\n")
    reason, hint = missing(here, path)
    assert reason.endswith(f" volume {name} is not open (it is in /etc/{table})")
    assert hint == f"systemctl start {unit}"


def test_crypt_volume_needs_the_file_system_with_its_key(tmp_path: Path) -> None:
    here = udev_entry(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/crypttab").write_text("secret /dev/sda /mnt/keys/web.key luks\n")
    (tmp_path / "etc/fstab").write_text("LABEL=KEYS /mnt/keys ext4 nofail 0 0\n")
    assert missing(here, "/dev/mapper/secret")[0] == "no block device has LABEL KEYS"
    (tmp_path / "etc/crypttab").write_text("secret /dev/sda /web.key:LABEL=KEYS luks\n")
    assert missing(here, "/dev/mapper/secret")[0] == "no block device has LABEL KEYS"


def test_verity_volume_needs_the_device_with_its_hashes(tmp_path: Path) -> None:
    here = udev_entry(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/veritytab").write_text("web /dev/sda PARTUUID=4 c0ffee\n")
    assert missing(here, "/dev/mapper/web")[0] == "no block device has PARTUUID 4"


def test_linstor_resource_is_found(tmp_path: Path) -> None:
    directory = tmp_path / "linstor.d"
    for file, text in (
        ("etc/drbd.conf", 'include "drbd.d/global_common.conf";\ninclude "drbd.d/*.res";\n'),
        ("etc/drbd.d/linstor-resources.res", f'include "{directory}/*.res";\n'),
        (
            "linstor.d/web.res",
            'resource "web"\n{ volume 0 { disk /dev/vg/web_00000; device minor 1000; } }\n',
        ),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    here = paths_below(tmp_path)
    for path in ("/dev/drbd/by-res/web/0", "/dev/drbd1000", "/dev/drbd/by-disk/vg/web_00000"):
        assert missing(here, path) == ("DRBD resource web is not up", "drbdadm up web")


def test_missing_ceph_image_is_named(tmp_path: Path) -> None:
    here = paths_below(tmp_path)
    reason = "Ceph image vms/web is not mapped, and not listed in /etc/ceph/rbdmap"
    assert missing(here, "/dev/rbd/vms/web") == (reason, "rbd device map vms/web")
    assert missing(here, "/dev/rbd/vms/web-part1") == (reason, "rbd device map vms/web")
    (tmp_path / "etc/ceph").mkdir(parents=True)
    (tmp_path / "etc/ceph/rbdmap").write_text("# RbdDevice Parameters\nvms/web id=xen,keyring=/etc/ceph/xen.keyring\n")
    reason = "Ceph image vms/web is not mapped, though /etc/ceph/rbdmap lists it"
    assert missing(here, "/dev/rbd/vms/web") == (reason, "rbdmap map")
    (tmp_path / "etc/ceph/rbdmap").write_text("web\n")  # in the default pool, with the default user
    assert missing(here, "/dev/rbd/rbd/web")[0] == "Ceph image rbd/web is not mapped, though /etc/ceph/rbdmap lists it"


def test_missing_fibre_channel_lun_is_named(tmp_path: Path) -> None:
    here = paths_below(tmp_path)
    path = "/dev/disk/by-path/pci-0000:05:00.0-fc-0x50060e8010411f30-lun-1"
    for directory, state in (("fc_host/host5", "Linkdown"), ("fc_remote_ports/rport-5:0-1", "Blocked")):
        (tmp_path / "sys/class" / directory).mkdir(parents=True)
        (tmp_path / "sys/class" / directory / "port_state").write_text(f"{state}\n")
    assert missing(here, path)[0] == "Fibre Channel port 0x50060e8010411f30 is not visible (host5 is Linkdown)"
    port = tmp_path / "sys/class/fc_remote_ports/rport-5:0-1"
    (port / "port_name").write_text("0x50060e8010411f30\n")
    assert missing(here, path)[0] == "Fibre Channel port 0x50060e8010411f30 is Blocked"
    (port / "port_state").write_text("Online\n")
    assert missing(here, path)[0] == "Fibre Channel port 0x50060e8010411f30 has no LUN 1"


def test_bcache_device_without_its_cache_is_named(tmp_path: Path) -> None:
    here = made_up(tmp_path, sdb={"bcache/running": "0", "bcache/state": "clean"})
    (tmp_path / "run/udev/data").mkdir(parents=True)
    (tmp_path / "run/udev/data/b7:0").write_text("E:ID_FS_TYPE=bcache\n")
    reason = "bcache backing device sdb lacks its cache (start it without only if the cache is lost)"
    assert missing(here, "/dev/bcache/by-uuid/8d4f6e9c") == missing(here, "/dev/bcache0")
    assert missing(here, "/dev/bcache0") == (reason, "echo 1 >/sys/class/block/sdb/bcache/running")
    (tmp_path / "sys/class/block/sdb/bcache/state").write_text("dirty\n")
    reason = "bcache backing device sdb lacks its cache, which has data that was not written to it yet"
    assert missing(here, "/dev/bcache0") == (reason, "lsblk -f")


def test_image_in_a_dataset_names_the_pool_that_is_not_imported(tmp_path: Path) -> None:
    cache = tmp_path / "etc/zfs/zfs-list.cache/tank"
    cache.parent.mkdir(parents=True)
    cache.write_text("tank\t/tank\ton\ton\ntank/images\t/srv/images\ton\ton\n")
    here = paths_below(tmp_path)
    reason = "/srv/images is not mounted (/etc/zfs/zfs-list.cache/tank mounts tank/images there)"
    assert missing(here, "/srv/images/web.img") == ("ZFS pool tank is not imported", "zpool import tank")
    (tmp_path / "proc/spl/kstat/zfs/tank").mkdir(parents=True)
    assert missing(here, "/srv/images/web.img")[0] == reason


def test_legacy_dataset_in_fstab_names_the_pool_that_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/fstab").write_text("tank/images /srv/images zfs zfsutil 0 0\n")
    assert missing(paths_below(tmp_path), "/srv/images/web.img")[0] == "ZFS pool tank is not imported"


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.EHOSTDOWN, errno.ETIMEDOUT])
def test_a_mount_whose_server_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "fstab").write_text(f"nas:/images {tmp_path} nfs x-systemd.automount 0 0\n")
    paths_below(tmp_path).use()

    def check_file(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(xwd, "check_file", check_file)
    image = tmp_path / "web.img"
    image.touch()
    status = xwd.check_disk(Required(str(image)), xwd.StorageFacts())
    assert status.reason == f"{tmp_path}: {os.strerror(number)} (/etc/fstab mounts nas:/images there)"


def test_dangling_link_has_the_reason_of_its_target(host: Callable[[str], HostPaths], tmp_path: Path) -> None:
    link = tmp_path / "web.img"
    link.symlink_to("/srv/images/web.img")
    assert missing(host("mount/failed"), str(link))[0].startswith("/srv/images is not mounted ")


def test_reason_is_plain_if_no_more_is_known(tmp_path: Path) -> None:
    here = paths_below(tmp_path)
    assert missing(here, str(tmp_path / "image")) == ("does not exist", "")
    assert missing(here, str(tmp_path / "no" / "image"))[0].startswith("does not exist, nor does the directory ")


# Disks with the same cause must have the same reason, because they are grouped by it


def reasons(host: HostPaths, *paths: str) -> set[tuple[str, str]]:
    """Return the reasons for these missing paths."""
    return {missing(host, path) for path in paths}


def add_volume(host: HostPaths, name: str) -> None:
    """Add another volume on the same disk to volume group vg."""
    backup = Path(host.etc) / "lvm" / "backup" / "vg"
    head, mark, volume = backup.read_text().partition("\t\tlv {\n")
    own = mark + volume.partition("\n\t\t}\n")[0] + "\n\t\t}\n\n"
    backup.write_text(head + own.replace("lv {", f"{name} {{", 1) + mark + volume)


def test_all_volumes_of_a_group_name_the_target_without_a_session(
    host: Callable[[str], HostPaths],
) -> None:
    here = logs_in_at_boot(host("lvm/lacks-pv"))
    for name in ("disk", "map"):
        shutil.rmtree(f"{here.etc}/iscsi/nodes/{TARGET}:{name}")
    add_volume(here, "db")
    ((reason, hint),) = reasons(here, "/dev/vg/lv", "/dev/vg/db", "/dev/mapper/vg-db", "/dev/disk/by-id/scsi-3600")
    assert reason.startswith(f"no session with iSCSI target {TARGET}:group at ")
    assert hint == f"iscsiadm -m node -T {TARGET}:group --login"


@pytest.mark.parametrize("recorded", ["lvm/lacks-pv", "lvm/not-activated"])
def test_all_volumes_of_a_group_have_its_reason(host: Callable[[str], HostPaths], recorded: str) -> None:
    here = host(recorded)
    add_volume(here, "db")
    ((reason, _),) = reasons(here, "/dev/vg/lv", "/dev/vg/db", "/dev/mapper/vg-db")
    assert reason.startswith("volume group vg ")


def test_maps_on_the_portals_of_a_target_have_one_reason_whatever_the_order_of_their_paths(
    host: Callable[[str], HostPaths],
) -> None:
    here = host("iscsi/failed")
    reason = usable(here, "mpatha")
    sessions = [Path(here.sys, "class/iscsi_connection", f"connection{number}:0") for number in (4, 5)]
    one, other = (session / "persistent_address" for session in sessions)
    addresses = one.read_text(), other.read_text()
    other.write_text(addresses[0])
    one.write_text(addresses[1])
    assert usable(here, "mpatha") == reason


def test_all_files_below_a_mount_have_its_reason(host: Callable[[str], HostPaths], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/srv/images/three.img")
    paths = ("/srv/images/one.img", "/srv/images/deep/two.img", f"{tmp_path}/link")
    ((reason, hint),) = reasons(host("mount/failed"), *paths)
    assert reason == "/srv/images is not mounted (/etc/fstab mounts 192.0.2.1:/srv/export there)"
    assert hint == "systemctl start /srv/images"


def test_all_devices_above_an_array_have_its_reason(host: Callable[[str], HostPaths]) -> None:
    here = host("md/inactive")
    Path(here.etc, "crypttab").write_text("secret /dev/md/mirror none luks\n")
    paths = ("/dev/md127", "/dev/md/mirror", "/dev/md127p1", "/dev/mapper/secret")
    assert reasons(here, *paths) == {look(here, "md127", WRITES)}


def test_cyclic_crypttab_entries_terminate(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "crypttab").write_text("one /dev/mapper/two\ntwo /dev/mapper/one\n")
    assert missing(paths_below(tmp_path), "/dev/mapper/one")[0] == "/dev/mapper/one does not exist"


# The layers of a disk, as shown by list --tree


def tree(layer: xwd.Layer) -> list[str]:
    """Return the layers as lines with their problems; an arrow marks the layer at fault."""

    def lines(one: xwd.Layer, indent: str) -> Iterator[str]:
        reason = f": {one.problem.reason}" if one.problem else ""
        arrow = "-> " if one.problem and one.problem is layer.cause else ""
        yield f"{indent}{arrow}{one.kind} {one.name}{reason}"
        for below in one.below:
            yield from lines(below, indent + "  ")

    return [*lines(layer, "")]


def tree_of_device(host: HostPaths, number: str) -> list[str]:
    """Return the layers of the device with this number."""
    host.use()
    facts = xwd.StorageFacts()
    layer = xwd.check_block_device(os.makedev(*map(int, number.split(":"))), WRITES, facts)
    return tree(xwd.named_layer(layer.below[0], facts))


def tree_of_path(host: HostPaths, path: str) -> list[str]:
    """Return the layers expected at a path."""
    host.use()
    return tree(xwd.storage_of(Required(path), xwd.StorageFacts()))


def put_volume_on_map(host: HostPaths) -> None:
    """Make the map the physical volume of volume group vg."""
    slaves = Path(host.sys) / "devices/virtual/block/dm-0/slaves"
    if slaves.exists():
        (slaves / "sda").unlink()
        (slaves / "dm-1").mkdir()
    backup = Path(host.etc) / "lvm" / "backup" / "vg"
    backup.write_text(re.sub('device = ".*"', 'device = "/dev/mapper/mpatha"', backup.read_text()))


def test_tree_of_a_volume_on_multipath_on_iscsi(host: Callable[[str], HostPaths]) -> None:
    here = host("multipath/map")
    put_volume_on_map(here)
    assert tree_of_device(here, "253:0") == [
        "LVM volume /dev/vg/lv",
        "  volume group vg",
        "    multipath map /dev/mapper/mpatha",
        "      path /dev/sdc",
        f"        iSCSI session {TARGET}:map at 127.0.0.1:3260",
        "      path /dev/sdd",
        f"        iSCSI session {TARGET}:map at 127.0.0.2:3260",
    ]


def test_tree_of_a_volume_on_multipath_with_failed_sessions(host: Callable[[str], HostPaths]) -> None:
    here = host("iscsi/failed")
    put_volume_on_map(here)
    failed = f"the session with iSCSI target {TARGET}:map at {{}} has failed"
    assert tree_of_device(here, "253:0") == [
        "LVM volume /dev/vg/lv",
        "  volume group vg",
        "    multipath map /dev/mapper/mpatha: /dev/mapper/mpatha: no usable path",
        "      path /dev/sdc: /dev/sdc: SCSI device is transport-offline",
        f"        -> iSCSI session {TARGET}:map at 127.0.0.1:3260: {failed.format('127.0.0.1:3260')}",
        "      path /dev/sdd: /dev/sdd: SCSI device is transport-offline",
        f"        iSCSI session {TARGET}:map at 127.0.0.2:3260: {failed.format('127.0.0.2:3260')}",
    ]


def test_tree_of_a_volume_on_multipath_without_a_session(host: Callable[[str], HostPaths]) -> None:
    here = logs_in_at_boot(host("multipath/no-path"))
    shutil.rmtree(f"{here.etc}/iscsi/nodes/{TARGET}:group")
    shutil.rmtree(f"{here.etc}/iscsi/nodes/{TARGET}:map/127.0.0.2,3260,1")
    put_volume_on_map(here)
    physical_volume = f"{pv_of(here, 'vg')} (last seen as /dev/mapper/mpatha)"
    portal = "127.0.0.1:3260"
    assert tree_of_path(here, "/dev/vg/lv") == [
        "LVM volume /dev/vg/lv: does not exist",
        f"  volume group vg: volume group vg lacks physical volume {physical_volume}",
        f"    physical volume {physical_volume}: is missing",
        "      multipath map /dev/mapper/mpatha",
        f"        -> iSCSI session {TARGET}:map at {portal}: "
        f"no session with iSCSI target {TARGET}:map at {portal} (node.startup is automatic)",
    ]


def test_tree_of_an_array(host: Callable[[str], HostPaths]) -> None:
    assert tree_of_device(host("md/degraded"), "9:127") == ["md array /dev/md127", "  disk /dev/vdd"]
    assert tree_of_path(host("md/inactive"), "/dev/md/mirror") == [
        "md array /dev/md/mirror: does not exist",
        f"  -> md array /dev/md127: {INACTIVE_ARRAY}; mdadm will start it degraded after 30 s",
        "    disk /dev/vdd",
    ]


def test_tree_of_an_image_on_nfs(host: Callable[[str], HostPaths], tmp_path: Path) -> None:
    here = host("mount/failed")
    assert tree_of_path(here, "/srv/images/web.img") == [
        "file /srv/images/web.img: does not exist",
        "  -> mount /srv/images: /srv/images is not mounted (/etc/fstab mounts 192.0.2.1:/srv/export there)",
        "    file server 192.0.2.1",
    ]
    image = tmp_path / "images" / "web.img"
    image.parent.mkdir()
    image.write_text("content")
    with open(f"{here.proc}/self/mountinfo", "a") as file:
        file.write(f"98 25 0:98 / {image.parent} rw,relatime shared:1 - nfs4 192.0.2.1:/srv/export rw\n")
    assert tree_of_path(here, str(image)) == [
        f"file {image}",
        f"  mount {image.parent}",
        "    file server 192.0.2.1",
    ]


def test_tree_of_a_crypt_volume(host: Callable[[str], HostPaths]) -> None:
    here = host("luks/closed")
    reason = "crypt volume secret is not open (it is in /etc/crypttab, with the option noauto)"
    assert tree_of_path(here, "/dev/mapper/secret") == [
        f"-> crypt volume /dev/mapper/secret: {reason}",
        "  disk /dev/vde",
    ]


def test_tree_of_a_degraded_mirror_blames_nothing(tmp_path: Path) -> None:
    here = made_up(tmp_path, sda={"device/state": "offline"}, sdb={}, md0=array("raid1", "sda sdb"))
    assert tree_of_device(here, "7:2") == [
        "md array /dev/md0",
        "  disk /dev/sda: /dev/sda: SCSI device is offline",
        "  disk /dev/sdb",
    ]


def test_tree_of_an_unknown_map(tmp_path: Path) -> None:
    here = made_up(tmp_path, sda={}, dm_0={"dm/name": "vdo0", "dm/uuid": "VDO-21c1", "slaves": "sda"})
    assert tree_of_device(here, "7:1") == ["device-mapper device /dev/mapper/vdo0", "  disk /dev/sda"]


def test_tree_of_loop_device_and_partition(tmp_path: Path) -> None:
    here = made_up(
        tmp_path,
        loop0={"loop/backing_file": "/srv/web.img"},
        loop0p1={"parent": "loop0", "partition": "1"},
    )
    assert tree_of_device(here, "7:1") == [
        "partition /dev/loop0p1",
        "  loop device /dev/loop0",
        "    file /srv/web.img",
    ]


# Made-up devices, for states that no recorded host has


def made_up(root: Path, **devices: dict[str, str]) -> HostPaths:
    """Create a sysfs with these block devices: attributes by name, with the slaves separated by spaces."""
    for minor, (name, attributes) in enumerate(devices.items()):
        name = name.replace("_", "-")
        directory = root / "sys" / "devices" / attributes.pop("parent", "") / name
        directory.mkdir(parents=True)
        for link in (root / "sys" / "class" / "block" / name, root / "sys" / "dev" / "block" / f"7:{minor}"):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(directory)
        for slave in attributes.pop("slaves", "").split():
            (directory / "slaves" / slave).mkdir(parents=True)
        for attribute, value in {"size": "8", "dev": f"7:{minor}", **attributes}.items():
            (directory / attribute).parent.mkdir(parents=True, exist_ok=True)
            (directory / attribute).write_text(f"{value}\n")
    return paths_below(root)


def array(level: str, members: str, *states: str, **attributes: str) -> dict[str, str]:
    """Return the attributes of an md array; members are in sync unless states are given, and gone without a state."""
    names = members.split()
    states = states or ("in_sync",) * len(names)
    there = {slot: state for slot, state in enumerate(states) if state}
    return {
        "md/array_state": "clean",
        "md/level": level,
        "md/raid_disks": str(len(states)),
        "md/degraded": str(len(states) - [*there.values()].count("in_sync")),
        "slaves": " ".join(names[slot] for slot in there),
        **{
            f"md/dev-{names[slot]}/{key}": value
            for slot, state in there.items()
            for key, value in (("slot", str(slot)), ("state", state))
        },
        **attributes,
    }


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
@pytest.mark.parametrize(
    ("level", "states", "attributes", "reason"),
    [
        ("raid1", ("in_sync", "faulty"), {}, ""),
        ("raid1", ("in_sync", "spare"), {}, ""),
        ("raid1", ("", "spare"), {}, "no usable member"),
        ("raid5", ("in_sync", "in_sync", "faulty"), {}, ""),
        ("raid5", ("in_sync", "faulty", "faulty"), {}, "only 1 of 2 required members can be used"),
        # As observed on a booted host.
        (
            "raid5",
            ("in_sync", "faulty", "faulty"),
            {"md/array_state": "write-pending"},
            "only 1 of 2 required members can be used",
        ),
        ("raid4", ("in_sync", "", ""), {}, "only 1 of 2 required members can be used"),
        ("raid5", ("in_sync", "in_sync,write_mostly", "spare"), {}, ""),
        ("raid6", ("in_sync", "in_sync", "faulty", "faulty"), {}, ""),
        ("raid6", ("in_sync", "faulty", "faulty", "faulty"), {}, "only 1 of 2 required members can be used"),
        ("raid10", ("in_sync", "", "", "in_sync"), {"md/layout": "258"}, ""),
        (
            "raid10",
            ("in_sync", "in_sync", "", ""),
            {"md/layout": "258"},
            "only 1 of 2 required mirrored sets can be used",
        ),
        # near=2 of three, near=3, far=2, offset=2
        ("raid10", ("in_sync", "", "in_sync"), {"md/layout": "258"}, ""),
        ("raid10", ("in_sync", "", ""), {"md/layout": "258"}, "only 2 of 3 required mirrored sets can be used"),
        ("raid10", ("in_sync", "", ""), {"md/layout": "259"}, ""),
        ("raid10", ("in_sync", "", "in_sync", ""), {"md/layout": "513"}, ""),
        (
            "raid10",
            ("in_sync", "in_sync", "", ""),
            {"md/layout": "513"},
            "only 3 of 4 required mirrored sets can be used",
        ),
        (
            "raid10",
            ("", "in_sync", "in_sync", ""),
            {"md/layout": "66049"},
            "only 3 of 4 required mirrored sets can be used",
        ),
    ],
)
def test_an_array_needs_as_many_members_as_its_level_says(
    tmp_path: Path, level: str, states: tuple[str, ...], attributes: dict[str, str], reason: str
) -> None:
    here = made_up(tmp_path, sda={}, sdb={}, sdc={}, sdd={}, md0=array(level, "sda sdb sdc sdd", *states, **attributes))
    assert usable(here, "md0") == (f"/dev/md0: {reason}" if reason else "")


def test_array_member_counts_only_if_it_is_usable(tmp_path: Path) -> None:
    here = made_up(tmp_path, sda={}, sdb={"device/state": "offline"}, sdc={}, md0=array("raid5", "sda sdb sdc"))
    assert usable(here, "md0") == ""
    (tmp_path / "sys/devices/md0/md/dev-sda/state").write_text("faulty\n")
    assert usable(here, "md0") == "/dev/sdb: SCSI device is offline"


def test_partition_has_the_state_of_its_disk(tmp_path: Path) -> None:
    here = made_up(tmp_path, sda={"device/state": "offline"}, sda1={"parent": "sda", "partition": "1"})
    assert usable(here, "sda1") == "/dev/sda: SCSI device is offline"


def test_mirror_needs_one_leg_and_stripe_needs_all(tmp_path: Path) -> None:
    bad, good = {"device/state": "offline"}, {"device/state": "running"}
    here = made_up(
        tmp_path,
        sda=bad,
        sdb=good,
        md0=array("raid1", "sda sdb"),
        md1=array("raid0", "sda sdb"),
        dm_0={"dm/name": "vg-lv_rimage_0", "dm/uuid": "LVM-1", "slaves": "sda"},
        dm_1={"dm/name": "vg-lv_rimage_1", "dm/uuid": "LVM-2", "slaves": "sdb"},
        dm_2={"dm/name": "vg-lv", "dm/uuid": "LVM-3", "slaves": "dm-0 dm-1"},
        dm_3={"dm/name": "vg-linear", "dm/uuid": "LVM-4", "slaves": "sda sdb"},
    )
    assert [usable(here, name) for name in ("md0", "vg-lv")] == ["", ""]
    offline = "/dev/sda: SCSI device is offline"
    assert [usable(here, name) for name in ("md1", "vg-linear")] == [offline] * 2
    (tmp_path / "sys/devices/sdb/device/state").write_text("offline\n")
    assert [usable(here, name) for name in ("md0", "vg-lv")] == [offline] * 2


@pytest.mark.parametrize(
    ("name", "attributes", "reason"),
    [
        ("nvme0n1", {"device/state": "connecting"}, "no live NVMe controller"),
        ("nvme0n1", {"device/state": "live"}, ""),
        ("dm_0", {"dm/name": "web", "dm/suspended": "1"}, "device-mapper device is suspended"),
        ("dm_0", {"dm/name": "mpatha", "dm/uuid": "mpath-36000"}, "no usable path"),
        ("md0", {"md/array_state": "broken"}, "md array is broken"),
        ("loop0", {}, "loop device has no file"),
        ("loop0", {"loop/backing_file": "/srv/image"}, ""),
        ("loop0p1", {}, ""),
        ("nbd0", {}, "nbd device is not connected to a server"),
        ("vda", {"size": "0"}, "has size 0"),
        ("sr0", {"size": "0"}, ""),
        ("sr0", {"size": "0", "device/state": "offline"}, "SCSI device is offline"),
    ],
)
def test_kernel_state_decides_whether_a_device_is_usable(
    tmp_path: Path, name: str, attributes: dict[str, str], reason: str
) -> None:
    here, mapped = made_up(tmp_path, **{name: attributes}), attributes.get("dm/name")
    path = f"/dev/mapper/{mapped}" if mapped else f"/dev/{name}"
    assert usable(here, name.replace("_", "-")) == (f"{path}: {reason}" if reason else "")


def test_removed_layer_is_reported_as_missing(tmp_path: Path) -> None:
    """The kernel keeps the link to it as long as another device uses it."""
    here = made_up(tmp_path, sda={}, dm_0={"dm/name": "vg-lv", "dm/uuid": "LVM-1", "slaves": "sda"})
    assert usable(here, "vg-lv") == ""
    (tmp_path / "sys/class/block/sda").unlink()
    assert usable(here, "vg-lv") == "/dev/sda: has been removed"


def test_nvme_disk_needs_one_of_its_controllers(tmp_path: Path) -> None:
    states = {"device/nvme0/state": "connecting", "device/nvme1/state": "live"}
    here = made_up(tmp_path, nvme0n1=states)
    assert usable(here, "nvme0n1") == ""
    (tmp_path / "sys/devices/nvme0n1/device/nvme1/state").write_text("deleting\n")
    assert usable(here, "nvme0n1") == "/dev/nvme0n1: no live NVMe controller"


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        (("inaccessible", "optimized"), ""),
        (("non-optimized", "inaccessible"), ""),
        (("", ""), ""),  # without asymmetric access, the attribute does not exist
        (("inaccessible", "persistent-loss"), "/dev/nvme0n1: its NVMe paths are inaccessible, persistent-loss"),
        (("change", "inaccessible"), "/dev/nvme0n1: its NVMe paths are change, inaccessible"),
    ],
)
def test_nvme_disk_needs_an_accessible_path(tmp_path: Path, states: tuple[str, ...], reason: str) -> None:
    """The states are those in nvme's multipath.c, in the directories of the paths below the controllers."""
    attributes = {f"device/nvme{one}/state": "live" for one in (0, 1)}
    attributes |= {f"device/nvme{one}/nvme0c{one}n1/ana_state": state for one, state in enumerate(states)}
    assert usable(made_up(tmp_path, nvme0n1=attributes), "nvme0n1") == reason


def test_nvme_path_of_a_controller_that_is_not_live_does_not_count(tmp_path: Path) -> None:
    here = made_up(
        tmp_path,
        nvme0n1={
            "device/nvme0/state": "connecting",
            "device/nvme0/nvme0c0n1/ana_state": "optimized",
            "device/nvme1/state": "live",
            "device/nvme1/nvme0c1n1/ana_state": "inaccessible",
        },
    )
    assert usable(here, "nvme0n1") == "/dev/nvme0n1: its NVMe paths are inaccessible"


def volume(kind: str, legs: int, size: int, *missing: int) -> dict[str, dict[str, str]]:
    """Return vg-lv and its sub-volumes of 8 MiB, as LVM creates them with `--activationmode partial`."""
    devices: dict[str, dict[str, str]] = {"sda": {}}
    for leg in range(legs):
        mapped = f"vg-lv_{kind}_{leg}"
        below = "sda"
        if leg in missing:
            below = f"dm-{20 + leg}"
            devices[below] = {"dm/name": f"{mapped}-missing_0_0", "dm/uuid": f"LVM-x{leg}-missing_0_0", "size": "16384"}
        devices[f"dm-{leg}"] = {"dm/name": mapped, "dm/uuid": f"LVM-x{leg}", "size": "16384", "slaves": below}
    slaves = " ".join(f"dm-{leg}" for leg in range(legs))
    devices["dm-9"] = {"dm/name": "vg-lv", "dm/uuid": "LVM-x", "size": str(size * 16384), "slaves": slaves}
    return devices


LEG_GONE = "placeholder for a missing physical volume"


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
@pytest.mark.parametrize(
    ("volume", "needed", "left"),
    [
        (volume("rimage", 2, 2, 1), 2, 1),  # raid0: the default activation mode activates it without a leg
        (volume("rimage", 2, 1, 1), 1, 1),  # raid1
        (volume("rimage", 2, 1, 0, 1), 1, 0),
        (volume("mimage", 2, 1, 0), 1, 1),  # mirror
        (volume("rimage", 3, 2, 2), 2, 2),  # raid5
        (volume("rimage", 3, 2, 1, 2), 2, 1),
        (volume("rimage", 5, 3, 3, 4), 3, 3),  # raid6
        (volume("rimage", 5, 3, 2, 3, 4), 3, 2),
        (volume("rimage", 4, 2, 1, 3), 2, 2),  # raid10
        (volume("rimage", 4, 2, 2, 3), 2, 1),  # a pair
        (volume("rimage", 6, 2, 1, 2, 3, 5), 2, 2),  # raid10 with three copies
        (volume("rimage", 6, 2, 3, 4, 5), 2, 1),
    ],
    ids=["0", "1", "1-2", "mirror", "5", "5-2", "6", "6-3", "10", "10 pair", "10 with 3", "10 with 3, 3"],
)
def test_a_volume_needs_as_many_legs_as_hold_its_data(
    tmp_path: Path, volume: dict[str, dict[str, str]], needed: int, left: int
) -> None:
    reason = usable(made_up(tmp_path, **{name: {**one} for name, one in volume.items()}), "vg-lv")
    if left >= needed:
        assert reason == ""
    else:
        assert re.fullmatch(f"/dev/mapper/vg-lv_rimage_[0-9]-missing_0_0: {LEG_GONE}", reason)


def test_volume_that_is_being_set_up_has_size_0(tmp_path: Path) -> None:
    """It has its legs once its table is loaded, and its size when it is resumed."""
    assert usable(made_up(tmp_path, **volume("rimage", 2, 0)), "vg-lv") == "/dev/mapper/vg-lv: has size 0"


def test_linear_volume_activated_without_one_of_its_disks_is_unusable(tmp_path: Path) -> None:
    here = made_up(
        tmp_path,
        sda={},
        dm_0={"dm/name": "vg-lv-missing_1_0", "dm/uuid": "LVM-1-missing_1_0"},
        dm_1={"dm/name": "vg-lv", "dm/uuid": "LVM-1", "slaves": "sda dm-0"},
    )
    assert usable(here, "vg-lv") == f"/dev/mapper/vg-lv-missing_1_0: {LEG_GONE}"


def test_a_volume_may_be_called_missing(tmp_path: Path) -> None:
    assert usable(made_up(tmp_path, dm_1={"dm/name": "vg-missing_1", "dm/uuid": "LVM-1"}), "vg-missing_1") == ""


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("ONLINE", ""),
        ("DEGRADED", ""),
        ("SUSPENDED", "/dev/zd0: ZFS pool tank is SUSPENDED"),
        ("UNAVAIL", "/dev/zd0: ZFS pool tank is UNAVAIL"),  # with failmode=continue
    ],
)
def test_zvol_has_the_state_of_its_pool(tmp_path: Path, state: str, reason: str) -> None:
    here = made_up(tmp_path, zd0={})
    entry, pool = tmp_path / "run/udev/data/b7:0", tmp_path / "proc/spl/kstat/zfs/tank/state"
    for file, text in ((entry, "S:zvol/tank/vm/web\nI:1\n"), (pool, f"{state}\n")):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    assert look(here, "zd0", READS) == (reason, "zpool clear tank" if reason else "")


def image_status(root: Path, mount: str, options: str = "rw") -> xwd.Status:
    """The status of an image on what is mounted according to the end of a line of mountinfo, for a guest that reads."""
    (root / "images").mkdir()
    (root / "images/web.img").write_text("content")
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    number, _, source = mount.partition(" ")
    (root / "proc/self/mountinfo").write_text(f"40 1 {number} / {root}/images rw - {source} {options}\n")
    paths_below(root).use()
    return xwd.check_disk(Required(f"{root}/images/web.img"), xwd.StorageFacts(explains=False))


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
def test_image_needs_the_device_below_its_file_system(tmp_path: Path) -> None:
    made_up(tmp_path, sda={"device/state": "transport-offline"}, dm_0={"dm/name": "images", "slaves": "sda"})
    status = image_status(tmp_path, "7:1 ext4 /dev/mapper/images")
    assert (status.state, status.reason) == (xwd.State.NOT_READY, "/dev/sda: SCSI device is transport-offline")


def test_image_on_read_only_device_names_the_command_for_the_device(tmp_path: Path) -> None:
    """mount(8) refuses to remount its file system for writing."""
    made_up(tmp_path, sda={"ro": "1"})
    writes = Required(f"{tmp_path}/images/web.img", writes=True)
    assert image_status(tmp_path, "7:0 ext4 /dev/sda", "ro") == xwd.READY
    assert xwd.check_disk(writes, xwd.StorageFacts(explains=False)).hint == "blockdev --setrw /dev/sda"


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
def test_image_mounted_on_this_host_is_not_ready_for_xens_script(tmp_path: Path) -> None:
    """Xen's tools/hotplug/Linux/block: "File … is loopback-mounted through 7:0"."""
    image = tmp_path / "images/web.img"
    made_up(tmp_path, sda={}, loop0={"loop/backing_file": str(image)})
    image_status(tmp_path, "7:0 ext4 /dev/sda")
    with open(tmp_path / "proc/self/mountinfo", "a") as file:
        file.write("41 1 7:1 / /mnt rw - ext4 /dev/loop0 rw\n")
    required = Required(str(image), by_script=True)
    status = xwd.check_disk(required, xwd.StorageFacts(explains=False))
    assert (status.reason, status.hint) == (
        "is mounted on /mnt on this host, and Xen refuses to share it",
        "umount /mnt",
    )
    assert xwd.check_disk(required._replace(by_script=False), xwd.StorageFacts(explains=False)) == xwd.READY
    image.with_name("db.img").write_text("content")
    other = required._replace(path=str(image.with_name("db.img")))
    assert xwd.check_disk(other, xwd.StorageFacts(explains=False)) == xwd.READY


@pytest.mark.parametrize("mount", ["btrfs /dev/sda", "bcachefs /dev/sdb:/dev/sda"])
def test_image_may_do_without_one_of_several_devices(tmp_path: Path, mount: str) -> None:
    made_up(tmp_path, sda={"device/state": "offline"}, sdb={})
    assert image_status(tmp_path, f"0:40 {mount}") == xwd.READY


def test_fuse_is_no_block_device_below_an_image(tmp_path: Path) -> None:
    made_up(tmp_path, sda={})
    assert image_status(tmp_path, "0:40 fuse /dev/fuse") == xwd.READY


@pytest.mark.parametrize(("state", "reason"), [("ONLINE", ""), ("SUSPENDED", "ZFS pool tank is SUSPENDED")])
def test_image_in_a_dataset_has_the_state_of_its_pool(tmp_path: Path, state: str, reason: str) -> None:
    (tmp_path / "proc/spl/kstat/zfs/tank").mkdir(parents=True)
    (tmp_path / "proc/spl/kstat/zfs/tank/state").write_text(f"{state}\n")
    assert image_status(tmp_path, "0:50 zfs tank/images").reason == reason


def test_bind_mount_has_the_reason_of_its_source(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/fstab").write_text("nas:/data /data nfs defaults 0 0\n/data/images /srv/images none bind 0 0\n")
    assert missing(paths_below(tmp_path), "/srv/images/web.img") == (
        "/data is not mounted (/etc/fstab mounts nas:/data there)",
        "systemctl start /data",
    )


@pytest.mark.parametrize("protocol", ["C", " "])  # StandAlone, it has none
def test_drbd_8_with_suspended_io_is_unusable(host: Callable[[str], HostPaths], protocol: str) -> None:
    here = host("drbd/one-secondary")
    states = f"cs:WFConnection ro:Primary/Unknown ds:UpToDate/DUnknown {protocol} s-----"
    Path(here.proc, "drbd").write_text(f"version: 8.4.11 (api:1/proto:86-101)\n\n 1: {states}\n")
    assert look(here, "drbd1", READS) == ("/dev/drbd1: DRBD has stopped I/O: its I/O is suspended", "drbdadm status")


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
@pytest.mark.parametrize(
    ("says", "instead", "reason"),
    [
        ('"quorum": true', '"quorum": false', "/dev/drbd1: DRBD has stopped I/O: it has no quorum"),
        ('"suspended": false', '"suspended": true', "/dev/drbd1: DRBD has stopped I/O: its I/O is suspended"),
        (
            '"suspended": false',
            '"suspended": false, "force-io-failures": true',
            "/dev/drbd1: DRBD has stopped I/O: all I/O fails until nothing has it open",
        ),
    ],
)
def test_drbd_9_with_suspended_io_is_unusable(
    host: Callable[[str], HostPaths], monkeypatch: pytest.MonkeyPatch, says: str, instead: str, reason: str
) -> None:
    here = host("drbd9/secondary")
    status = (HOSTS / "drbd9" / "status.json").read_text()
    assert says in status
    monkeypatch.setattr(xwd, "output_of", lambda *_: status.replace(says, instead))
    assert usable(here, "drbd1") == reason
    assert usable(here, "drbd1", PROMOTES) == reason


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        ("allow-two-primaries;", ""),
        ("allow-two-primaries yes;", ""),
        ("allow-two-primaries no;", "DRBD is Secondary, and its peer is Primary"),
        ("allow-two-primaries; allow-two-primaries no;", "DRBD is Secondary, and its peer is Primary"),
        ("} } resource r1 { net { allow-two-primaries;", "DRBD is Secondary, and its peer is Primary"),
    ],
)
def test_drbd_is_shared_only_where_its_resource_allows_it(
    host: Callable[[str], HostPaths], monkeypatch: pytest.MonkeyPatch, net: str, reason: str
) -> None:
    here = host("drbd9/secondary")
    status = (HOSTS / "drbd9" / "status.json").read_text().replace('"peer-role": "Secondary"', '"peer-role": "Primary"')
    monkeypatch.setattr(xwd, "output_of", lambda *_: status)
    Path(here.etc, "drbd.conf").write_text(f"resource r0 {{ device /dev/drbd1 minor 1; net {{ {net} }} }}\n")
    assert usable(here, "drbd1") == reason


@pytest.mark.parametrize("no", ["no", '"no"'])
def test_drbd_9_without_auto_promote_is_unusable(
    host: Callable[[str], HostPaths], monkeypatch: pytest.MonkeyPatch, no: str
) -> None:
    here = host("drbd9/secondary")
    monkeypatch.setattr(xwd, "output_of", lambda *_: (HOSTS / "drbd9" / "status.json").read_text())
    resource = f"resource r0 {{\n  options {{ auto-promote {no}; }}\n  on alpha {{ device /dev/drbd1 minor 1; }}\n}}\n"
    Path(here.etc, "drbd.conf").write_text(resource)
    assert look(here, "drbd1", READS) == ("DRBD is Secondary", "drbdadm primary r0")
    assert usable(here, "drbd1", PROMOTES) == ""
    common = f"common {{ options {{ auto-promote {no}; }} }}\n"
    Path(here.etc, "drbd.conf").write_text(common + resource.replace(f"auto-promote {no}", "auto-promote yes"))
    assert usable(here, "drbd1", READS) == ""


def test_command_that_makes_a_device_writable_depends_on_its_type(tmp_path: Path) -> None:
    here = made_up(
        tmp_path,
        md0={"ro": "1", "md/array_state": "readonly"},
        dm_0={"ro": "1", "dm/name": "vg-lv", "dm/uuid": "LVM-1"},
        dm_1={"ro": "1", "dm/name": "secret", "dm/uuid": "CRYPT-LUKS2-1"},
        dm_2={"ro": "1", "dm/name": "mpatha-part1", "dm/uuid": "part1-mpath-1", "slaves": "sdb"},
        sda={"ro": "1"},
        sdb={},
        zd0={"ro": "1"},
        loop0={"ro": "1", "loop/backing_file": "/srv/web.img"},
    )
    names = ("md0", "vg-lv", "secret", "mpatha-part1", "sda", "zd0", "loop0")
    hints = {name: look(here, name, WRITES)[1] for name in names}
    assert hints == {
        "md0": "mdadm --readwrite /dev/md0",
        "vg-lv": "lvchange -prw /dev/mapper/vg-lv",
        "secret": "cryptsetup status /dev/mapper/secret",
        "mpatha-part1": "lsblk -s -o NAME,RO /dev/mapper/mpatha-part1",
        "zd0": "zfs get -t volume readonly",
        "sda": "blockdev --setrw /dev/sda",
        "loop0": "losetup --list /dev/loop0",
    }


def test_masked_mount_unit_is_ignored(tmp_path: Path) -> None:
    units = tmp_path / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    (units / "tmp.mount").symlink_to("/dev/null")
    assert missing(paths_below(tmp_path), "/nowhere/image") == (
        "does not exist, nor does the directory /nowhere",
        "",
    )


def test_an_array_of_mdadm_conf_may_go_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "mdadm.conf").write_text("ARRAY /dev/md/0 metadata=1.2 UUID=1:2:3:4\n")
    here = paths_below(tmp_path)
    assert missing(here, "/dev/md0")[0] == "no member of md array md0 found, though mdadm.conf lists it"


def test_other_udev_entries_do_not_crowd_out_block_devices(tmp_path: Path) -> None:
    here = made_up(tmp_path, sda={})
    data = tmp_path / "run" / "udev" / "data"
    data.mkdir(parents=True)
    (data / "b7:0").write_text("S:disk/by-id/wwn-1\nE:ID_FS_UUID=1234\n")
    for number in range(xwd.MAX_FILES):
        (data / f"+scsi:{number}").touch()
    here.use()
    assert xwd.StorageFacts().device_at("/dev/disk/by-id/wwn-1") == "sda"


def test_layer_still_processed_by_udev_is_named(tmp_path: Path) -> None:
    here = made_up(tmp_path, sda={}, dm_0={"dm/name": "web", "slaves": "sda"})
    data = tmp_path / "run" / "udev" / "data"
    data.mkdir(parents=True)
    (data / "b7:0").write_text("I:1\nE:ID_PROCESSING=1\nV:1\n")
    assert usable(here, "web") == "/dev/sda: udev has not finished processing it"
    assert usable(here, "sda") == "/dev/sda: udev has not finished processing it"


def test_all_layers_are_checked_and_the_one_at_fault_is_named(tmp_path: Path) -> None:
    here = made_up(
        tmp_path,
        sda={"device/state": "transport-offline"},
        dm_0={"dm/uuid": "mpath-1", "dm/name": "mpatha", "slaves": "sda"},
        dm_1={"dm/uuid": "LVM-1", "dm/name": "vg-lv", "slaves": "dm-0"},
        dm_2={"dm/uuid": "CRYPT-1", "dm/name": "secret", "slaves": "dm-1"},
    )
    reason = "/dev/sda: SCSI device is transport-offline"
    assert [usable(here, name) for name in ("mpatha", "vg-lv", "secret")] == [reason] * 3


def test_layer_shared_by_many_disks_is_checked_once(
    host: Callable[[str], HostPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = host("multipath/map")
    reads: list[str] = []
    attribute = xwd.attribute

    def counted(directory: str, name: str) -> str | None:
        reads.append(f"{os.path.basename(directory)} {name}")
        return attribute(directory, name)

    monkeypatch.setattr(xwd, "attribute", counted)
    here.use()
    facts = xwd.StorageFacts(explains=False)
    volume, mapped = (os.makedev(253, 0), os.makedev(253, 1))
    for number in (volume, mapped, volume, mapped):
        assert xwd.check_block_device(number, WRITES, facts).cause is None
    assert {one: reads.count(one) for one in reads if one.endswith("device/state")} == {
        f"sd{letter} device/state": 1 for letter in "acd"
    }
    # For each LUN: its state, size, number and udev entry. For each disk: less than that.
    assert len(reads) <= 3 * 4 + 2 * 4 + 4


def test_drbd_status_is_read_once_per_look_by_all_threads(
    host: Callable[[str], HostPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    host("drbd9/secondary").use()
    asked: list[str] = []

    def output_of(*command: str) -> str:
        asked.append(command[0])
        time.sleep(0.05)  # gives the other threads time to call this
        return (HOSTS / "drbd9" / "status.json").read_text()

    monkeypatch.setattr(xwd, "output_of", output_of)
    facts = xwd.StorageFacts(explains=False)
    number = os.makedev(147, 1)
    with ThreadPoolExecutor(8) as threads:
        layers = [*threads.map(lambda _: xwd.check_block_device(number, PROMOTES, facts), range(40))]
    assert asked == ["drbdsetup"]
    assert [layer.cause for layer in layers] == [None] * 40


def test_reason_is_updated_periodically_and_at_the_end(clock: FakeClock, tmp_path: Path) -> None:
    """Not at every check, because that takes longer than checking whether anything has changed."""
    guests = Host(tmp_path)
    directory = guests.images / "late"
    guests.guest("web", directory / "web.img")
    (tmp_path / "fstab").write_text(f"nas:/export {directory} nfs defaults 0 0\n")
    watcher = guests.watcher(clock)
    HostPaths(etc=str(tmp_path), proc=str(tmp_path)).use()

    def reason() -> str:
        return watcher.look(clock.now() + 60).disks[str(directory / "web.img")].reason

    not_mounted = f"{directory} is not mounted (/etc/fstab mounts nas:/export there)"
    plain = f"does not exist, nor does the directory {directory}"
    assert reason() == not_mounted
    (tmp_path / "fstab").unlink()
    clock.pause(xwd.MAX_REASON_AGE - 1)
    assert reason() == not_mounted
    clock.pause(2)
    assert reason() == plain


# Bad evidence


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("spoiled")


def everything(here: HostPaths) -> Iterator[str]:
    here.use()
    facts = xwd.StorageFacts()
    for number in os.listdir(f"{here.sys}/dev/block") if os.path.isdir(f"{here.sys}/dev/block") else ():
        for required in (READS, WRITES, PROMOTES):
            problem = xwd.check_block_device(os.makedev(*map(int, number.split(":"))), required, facts).cause
            yield problem.reason if problem else ""
    for path in PATHS:
        cause = xwd.explain_missing(path, facts).cause
        yield cause.reason if cause else ""


BAD = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [b"", b"\n", b"\0" * 5000, b"{" * 5000, b"=" * 5000, b'id = "' * 900, b"\xff\xfe\n" * 500, b"/" * 999]
    ),
)


@pytest.mark.promise("Files that would explain a missing disk are truncated, binary, huge, or not regular files")
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_corrupt_storage_facts_cause_no_error(data: st.DataObject, spoiled: Path) -> None:
    recorded = data.draw(st.sampled_from(ALL_HOSTS))
    shutil.rmtree(spoiled)
    here = paths_below(unpack(recorded, spoiled))
    files = [entry for entry in entries(recorded) if not entry.target and not entry.path.endswith("/dev")]
    for entry in data.draw(st.lists(st.sampled_from(files), max_size=6, unique=True)):
        text = entry.text.encode()
        cut = data.draw(st.integers(0, len(text)))
        bad = data.draw(st.one_of(BAD, st.just(text[:cut]), BAD.map(partial(bytes.replace, text, text[cut : cut + 1]))))
        (spoiled / entry.path).write_bytes(bad)
    for reason in everything(here):
        assert len(reason) <= 2 * xwd.MAX_ATTRIBUTE


def test_line_of_a_table_longer_than_any_name_is_ignored(tmp_path: Path) -> None:
    table = tmp_path / "bindings"
    table.write_text(f"mpatha {'0' * xwd.MAX_ATTRIBUTE}\nmpathb 3600\n")
    assert xwd.StorageFacts().table(str(table)) == [["mpathb", "3600"]]


@pytest.mark.promise("Files that would explain a missing disk are truncated, binary, huge, or not regular files")
@pytest.mark.parametrize("recorded", ALL_HOSTS)
def test_huge_or_special_files_are_ignored_as_storage_facts(recorded: str, tmp_path: Path) -> None:
    here = paths_below(unpack(recorded, tmp_path))
    for entry in entries(recorded):
        path = tmp_path / entry.path
        if entry.target or entry.path.startswith("sys/"):
            continue
        path.unlink()
        if path.name.startswith(("b", "f")):
            os.mkfifo(path)
        else:
            path.write_bytes(b"")
            os.truncate(path, 1 << 40)
    assert all(len(reason) < 200 for reason in everything(here))


@pytest.mark.parametrize(
    "junk", ["\n", " ", "#", "{", "=", "resource ", 'id = "', "ARRAY ", "multipath {", "alias ", "\\040"]
)
def test_large_storage_facts_are_read_quickly(junk: str, host: Callable[[str], HostPaths]) -> None:
    for recorded in ("lvm/lacks-pv", "multipath/no-map", "drbd/down", "mount/failed", "luks/closed", "md/stopped"):
        here = host(recorded)
        for entry in entries(recorded):
            if entry.path.startswith(("etc/", "proc/")):
                # Below the size limit, so it is read.
                (Path(here.etc).parent / entry.path).write_text(entry.text + junk * (400_000 // len(junk)) + "\n")
        start = time.process_time()
        assert len([*everything(here)]) > len(PATHS) - 1
        assert time.process_time() - start < 20


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "role", "devices", "connections", "peer_devices", "volume", "minor", "disk-state"]
            ),
            inner,
            max_size=5,
        )
    ),
)


@given(json_values)
def test_any_drbd_status_causes_no_error(value: object) -> None:
    xwd.drbd_states_from_json(json.dumps(value))


@given(st.text(max_size=30))
def test_any_text_as_drbd_status_causes_no_error(text: str) -> None:
    xwd.drbd_states_from_json(text)
    xwd.drbd_states_from_json("[" * 100000)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_path_causes_no_error(path: str) -> None:
    HostPaths(*["/nonexistent"] * 5).use()
    xwd.explain_missing(f"/{path}", xwd.StorageFacts())
    xwd.explain_missing(f"/dev/{path}", xwd.StorageFacts())
