# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The command check: its findings, also with --reboot, and hosts without findings."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import CORPUS, Host, Systemctl, as_root, attached, hung_file_system, loop_device, run_quietly
from recorded import HOSTS, HostPaths, paths_below, unpack

import xendomains_wait_disk as xwd

block_devices = pytest.mark.xdist_group("block_devices")

TARGET = "iqn.2003-01.org.example"
RECORDED = sorted(str(path.relative_to(HOSTS).with_suffix("")) for path in HOSTS.glob("*/*.tree"))


pytestmark = pytest.mark.usefixtures("systemctl")


class HostFiles:
    """Files that describe the storage of a host, in a directory of their own; sysfs is the real one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = HostPaths("/sys", *(f"{root}/{name}" for name in HostPaths._fields[1:]))

    def write(self, file: str, text: str) -> None:
        """Write a file such as etc/fstab."""
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def mount(
        self,
        where: str | Path,
        kind: str = "ext4",
        source: str = "/dev/sdx1",
        number: str = "254:254",
        mode: str = "rw",
    ) -> None:
        """Add a mount to mountinfo, see proc(5)."""
        file = self.root / "proc/self/mountinfo"
        before = file.read_text() if file.exists() else ""
        self.write("proc/self/mountinfo", f"{before}40 1 {number} / {where} rw shared:1 - {kind} {source} {mode}\n")


@pytest.fixture
def files(tmp_path_factory: pytest.TempPathFactory) -> HostFiles:
    return HostFiles(tmp_path_factory.mktemp("host"))


def check(host: Host, files: HostFiles | None = None, *names: str, reboot: bool = False) -> list[str]:
    """Return the findings on this host: file, severity and problem, without the directory of the guests."""
    (files.paths if files else HostPaths()).use()
    watcher = host.watcher(names=names)
    snapshot = watcher.look(time.monotonic() + 60)
    options = xwd.Options("check", names, config=str(host.conf), reboot=reboot)
    found = xwd.findings_of(snapshot, watcher, options)
    lines = [
        f"{f'{one.file}: ' if one.file else ''}{xwd.lines_of_finding(one, xwd.Screen())[0].strip()}" for one in found
    ]
    return [line.replace(f"{host.auto}/", "") for line in lines]


def check_json(host: Host, *arguments: str) -> dict[str, Any]:
    """Return the output of `check --json`."""
    answer: dict[str, Any] = json.loads(host.run("check", "--json", *arguments).output)
    return answer


# Files and directories


@as_root
@block_devices
def test_finding_has_file_guest_disk_problem_and_fix(host: Host, loop: Path) -> None:
    host.guest("web", loop)
    result = host.run("check")
    problem = f"{loop} may refer to a different disk after a reboot"
    assert (result.status, result.messages) == (xwd.EXIT_READY, "")
    assert result.output == (
        f"{host.auto}/web.cfg:\n  warning: guest web, xvda: {problem}\n0 errors, 1 warning in 1 guest with 1 disk.\n"
    )
    assert check_json(host) == {
        "version": 1,
        "ok": True,
        "findings": [
            {
                "severity": "warning",
                "file": f"{host.auto}/web.cfg",
                "guest": "web",
                "vdev": "xvda",
                "problem": problem,
                "fix": None,
            }
        ],
    }


def test_exit_status_is_2_with_an_error_and_0_with_a_warning(host: Host) -> None:
    host.settings.chmod(0o666)
    assert host.run("check").status == xwd.EXIT_READY
    (host.auto / "db").write_text("what is this\n")
    assert host.run("check").status == xwd.EXIT_USAGE
    assert check_json(host)["ok"] is False


def test_problem_in_settings_is_in_json(host: Host) -> None:
    host.configure("timeout = soon")
    (finding,) = check_json(host)["findings"]
    assert (finding["severity"], finding["file"]) == ("error", str(host.conf))
    assert finding["problem"].startswith("line 1: timeout is not a time span: 'soon'")


def test_settings_writable_by_others_give_warning_in_json(host: Host) -> None:
    host.settings.chmod(0o666)
    (finding,) = check_json(host)["findings"]
    assert (finding["severity"], finding["file"]) == ("warning", str(host.settings))
    assert "it is writable by group or others" in finding["problem"]
    assert "No problems found" not in host.run("check").output


def test_missing_directory_is_an_error(host: Host) -> None:
    host.settings.write_text(f"XENDOMAINS_AUTO={host.root}/atuo\n")
    result = host.run("check")
    assert result.status == xwd.EXIT_USAGE
    assert f"{host.root}/atuo:\n  error: does not exist; correct XENDOMAINS_AUTO, or create it\n" in result.output


def test_missing_directory_from_own_settings_is_fixed_in_own_settings(host: Host) -> None:
    host.conf.write_text(f"[paths]\nxendomains = {host.settings}\nauto = {host.root}/atuo\n")
    assert "error: does not exist; correct [paths] auto, or create it\n" in host.run("check").output


def test_missing_save_directory_is_not_reported(host: Host) -> None:
    host.save.rmdir()
    assert check(host) == []


def test_settings_without_directories_are_an_error(host: Host) -> None:
    """As in the settings of Gentoo and Alpine, read by upstream's xendomains."""
    host.settings.write_text(f"AUTODIR={host.auto}\n")
    result = host.run("check")
    assert result.status == xwd.EXIT_USAGE
    assert result.output.startswith(
        f"{host.settings}:\n  error: sets no guest directory (XENDOMAINS_AUTO), so xendomains starts no guests\n"
    )


def test_dangling_link_is_an_error_because_boot_waits_for_it(host: Host) -> None:
    (host.auto / "web.cfg").symlink_to("/nowhere")
    assert check(host) == [
        "web.cfg: error: is a link to /nowhere, which does not exist; the next boot will wait for this"
    ]


def test_directory_behind_dangling_link_is_an_error(host: Host) -> None:
    host.auto.rmdir()
    host.auto.symlink_to("/nowhere")
    (finding,) = check(host)
    assert ": error: " in finding and "the next boot will wait for this" in finding


def test_configuration_rejected_by_xl_is_an_error(host: Host) -> None:
    (host.auto / "web.cfg").write_text("name=web\n")
    assert check(host) == [
        "web.cfg: error: line 1: syntax error near 'web', expected a string, a number or '['; xl will reject it"
    ]


@pytest.mark.promise("check finds what would break the next boot, and with --reboot what would not come up again")
def test_duplicate_guest_name_is_reported(host: Host) -> None:
    shutil.copy(host.guest("web"), host.auto / "web.cfg.bak")
    assert check(host) == ["web.cfg.bak: error: guest web: duplicate guest name; it is created from web.cfg"]


def test_saved_and_configured_form_of_a_guest_are_not_duplicates(host: Host) -> None:
    host.guest("web", host.image("a"))
    host.saved("web", host.images / "a")
    assert check(host) == []


GONE = "does not exist, although its file system is mounted"


@pytest.mark.parametrize("key", ["kernel", "ramdisk", "bootloader"])
def test_missing_kernel_is_an_error(host: Host, key: str) -> None:
    (host.auto / "web.cfg").write_text(f'name="web"\nkernel="{host.image("vmlinuz")}"\n{key}="{host.images}/gone"\n')
    assert check(host) == [f"web.cfg: error: guest web: {host.images}/gone {GONE}"]


def test_kernel_shared_by_guests_is_not_reported(host: Host) -> None:
    for name in ("web", "db"):
        (host.auto / name).write_text(f'name="{name}"\nkernel="{host.image("vmlinuz")}"\n')
    assert check(host) == []


# What is missing now


@pytest.mark.promise("check finds what would break the next boot, and with --reboot what would not come up again")
def test_missing_disk_is_an_error_with_a_fix(host: Host) -> None:
    host.guest("web", "/dev/zvol/tank/web")
    assert check(host) == [
        "web.cfg: error: guest web, xvda: /dev/zvol/tank/web is missing: ZFS pool tank is not imported "
        "(fix: zpool import tank)"
    ]


def test_disk_that_is_not_ready_is_an_error(host: Host) -> None:
    host.guest("web", host.images)
    assert check(host) == [
        f"web.cfg: error: guest web, xvda: {host.images} is not ready: is a directory, "
        "neither a block device nor a regular file"
    ]


def test_disks_missing_for_one_reason_are_one_finding_of_the_host(host: Host) -> None:
    for name in ("web", "db"):
        host.guest(name, f"/dev/zvol/tank/{name}-a", f"/dev/zvol/tank/{name}-b")
    assert check(host) == [
        "error: 4 disks of 2 guests missing: ZFS pool tank is not imported; "
        "disks: /dev/zvol/tank/db-a, /dev/zvol/tank/db-b, /dev/zvol/tank/web-a, 1 more (fix: zpool import tank)"
    ]


def test_many_mistyped_paths_are_one_finding_each(host: Host) -> None:
    for number in range(4):
        host.guest(f"web{number}", host.image(f"disk-{number}.img").with_name(f"disk-{number}.ing"))
    findings = check(host)
    assert len(findings) == 4
    assert findings[3] == (
        f"web3.cfg: error: guest web3, xvda: {host.images}/disk-3.ing is missing: does not exist "
        f"(fix: correct the path, perhaps to {host.images}/disk-3.img)"
    )


def test_other_path_is_not_suggested_where_the_fault_is_known(host: Host, files: HostFiles) -> None:
    files.write("etc/fstab", f"nas:/export {host.images} nfs defaults 0 0\n")
    host.image("web-2.img")
    host.guest("web", host.images / "web-1.img")
    (finding,) = check(host, files)
    assert finding.endswith(f"(fix: systemctl start {host.images})")


def test_one_path_is_not_suggested_to_two_guests(host: Host) -> None:
    host.image("root.img")
    for name in ("a", "b"):
        host.guest(name, host.images / f"root.img{name}")
    assert [
        finding.endswith(f"(fix: correct the path, perhaps to {host.images}/root.img)") for finding in check(host)
    ] == [
        True,
        False,
    ]


def test_unreadable_directory_is_reported_though_one_guest_is_selected(host: Host) -> None:
    host.guest("web", host.image("a"))
    host.save.rmdir()
    host.save.touch()
    assert check(host, None, "web") == [f"{host.save}: error: cannot be read: Not a directory"]


def test_fix_has_a_line_of_its_own_on_a_terminal(host: Host) -> None:
    host.guest("web", "/dev/zvol/a-pool-with-a-name-that-is-long/a-volume-with-a-name-that-is-long-as-well")
    assert "\n    fix: zpool import a-pool-with-a-name-that-is-long\n" in host.show("check", columns=40)


def test_directory_is_not_suggested_for_a_mistyped_path(host: Host) -> None:
    (host.images / "web_root.imgs").mkdir()
    host.guest("web", host.images / "web_root.img")
    (finding,) = check(host)
    assert finding.endswith("web_root.img is missing: does not exist")


def test_mistyped_path_gets_closest_match_as_suggestion(host: Host) -> None:
    host.guest("web", host.image("web-root.img").with_name("web-rooot.img"))
    assert check(host) == [
        f"web.cfg: error: guest web, xvda: {host.images}/web-rooot.img is missing: does not exist "
        f"(fix: correct the path, perhaps to {host.images}/web-root.img)"
    ]


def test_mistyped_directory_gets_suggestion(host: Host) -> None:
    host.guest("web", host.root / "imagse" / host.image("web.img").name)
    (finding,) = check(host)
    assert finding.endswith(f"(fix: correct the path, perhaps to {host.images}/web.img)")


def test_path_used_by_another_guest_is_not_suggested(host: Host) -> None:
    host.guest("web-1", host.image("web-1.img"))
    host.guest("web-2", host.images / "web-2.img")
    (finding,) = check(host)
    assert finding.endswith("web-2.img is missing: does not exist")


def test_no_suggestion_without_a_similar_path(host: Host) -> None:
    host.image("debian.iso")
    host.guest("web", host.images / "web.img")
    (finding,) = check(host)
    assert "perhaps to" not in finding


# Patterns of [ignore]


@pytest.mark.parametrize("key", ["domains", "disks"])
def test_pattern_without_match_is_a_warning(host: Host, key: str) -> None:
    host.guest("web", host.image("a"))
    host.configure(f"[ignore]\n{key} = 'wbe*', {'web' if key == 'domains' else host.images / 'a'}")
    result = host.run("check")
    warning = f"warning: [ignore] {key} 'wbe*' matches nothing (fix: correct or remove it)"
    assert (result.status, result.output.splitlines()[:2]) == (xwd.EXIT_READY, [f"{host.conf}:", f"  {warning}"])


def test_pattern_matches_a_name_a_file_a_path_or_a_target(host: Host) -> None:
    host.guest("web", host.image("a"), "drbd:r0,xvdz,w")
    host.configure(f"[ignore]\ndomains = web, web.cfg\ndisks = {host.images}/*, r0, /dev/drbd/by-res/r0")
    assert host.run("check").output.startswith("No problems found")


def test_pattern_that_may_match_unread_configuration_is_not_reported(host: Host) -> None:
    (host.auto / "web.cfg").symlink_to("/nowhere")
    host.configure("[ignore]\ndomains = db")
    assert "matches nothing" not in host.run("check").output


def test_patterns_are_compared_with_all_guests_even_if_one_is_named(host: Host) -> None:
    for name in ("web", "db"):
        host.guest(name, host.image(name))
    host.configure("[ignore]\ndomains = db")
    assert host.run("check", "web").output == "No problems found (1 guest with 1 disk).\n"


# The report


def test_report_lists_errors_first_each_file_once_and_totals_last(host: Host) -> None:
    host.settings.chmod(0o666)
    host.guest("web", host.images / "a").chmod(0o666)
    host.configuration("zz", "what is this\n")
    lines = host.run("check").output.splitlines()
    assert lines == [
        f"{host.auto}/web.cfg:",
        f"  error: guest web, xvda: {host.images}/a is missing: does not exist",
        f"  warning: it is writable by group or others (fix: chmod go-w {host.auto}/web.cfg); it is used anyway",
        f"{host.auto}/zz:",
        "  error: line 1: syntax error near 'is', expected = or +=; xl will reject it",
        f"{host.settings}:",
        f"  warning: it is writable by group or others (fix: chmod go-w {host.settings}); "
        "xendomains runs it as root anyway, so its settings are used",
        "2 errors, 2 warnings in 2 guests with 1 disk.",
    ]


def test_no_log_level_silences_the_report(host: Host) -> None:
    host.guest("web", host.images / "a")
    host.configure("log_level = emerg")
    assert " is missing: does not exist" in host.run("check").output


def test_json_is_printed_without_xendomains_settings(host: Host) -> None:
    host.settings.unlink()
    result = host.run("check", "--json")
    assert result.status == xwd.EXIT_NO_XENDOMAINS
    (finding,) = json.loads(result.output)["findings"]
    assert finding["problem"].startswith("xendomains has no settings file (")
    assert json.loads(host.run("list", "--json").output)["guests"] == []


# Monitoring

PERFORMANCE_DATA = r"ready=(\d+);;;0;(\d+) errors=(\d+);;;0 warnings=(\d+);;;0"


def nagios(host: Host, *arguments: str) -> tuple[int, str, list[int]]:
    """Return exit status, text and performance data of `check --nagios` (monitoring-plugins.org/doc/guidelines)."""
    result = host.run("check", "--nagios", *arguments)
    assert result.output.count("\n") == 1 and result.output.count("|") == 1
    text, _, data = result.output.rstrip("\n").partition(" | ")
    match = re.fullmatch(PERFORMANCE_DATA, data)
    assert match, data
    return result.status, text, [int(number) for number in match.groups()]


def test_nagios_ok_without_findings(host: Host) -> None:
    host.guest("web", host.image("a"))
    assert nagios(host) == (0, "XENDOMAINS OK - 1 of 1 guest ready", [1, 1, 0, 0])


def test_nagios_warning_for_a_warning(host: Host) -> None:
    host.guest("web", host.image("a")).chmod(0o666)
    status, text, numbers = nagios(host)
    assert (status, numbers) == (1, [1, 1, 0, 1])
    assert text.startswith(f"XENDOMAINS WARNING - 1 of 1 guest ready: {host.auto}/web.cfg: it is writable by group")


def test_nagios_critical_names_first_error(host: Host) -> None:
    host.guest("web", host.images / "a")
    host.guest("db", host.image("b"))
    assert nagios(host) == (
        2,
        f"XENDOMAINS CRITICAL - 1 of 2 guests ready: {host.auto}/web.cfg: {host.images}/a is missing: does not exist.",
        [1, 2, 1, 0],
    )


def test_nagios_does_not_know_if_a_directory_cannot_be_read(host: Host) -> None:
    host.auto.rmdir()
    host.auto.touch()
    status, text, _ = nagios(host)
    assert (status, text) == (
        3,
        f"XENDOMAINS UNKNOWN - 0 of 0 guests ready: {host.auto}: cannot be read: Not a directory.",
    )


def test_nagios_does_not_know_if_nothing_is_wrong_but_that_a_file_cannot_be_read(host: Host) -> None:
    host.guest("web", host.image("a"))
    file = host.configuration("large", "#" * (xwd.MAX_CONFIGURATION + 1))
    status, text, _ = nagios(host)
    assert status == 3
    assert text.startswith(f"XENDOMAINS UNKNOWN - 1 of 2 guests ready: {file}: is too large for a configuration")
    host.guest("db", host.images / "db")
    assert nagios(host)[0] == 2


def test_each_of_many_missing_paths_is_reported_with_its_file(host: Host) -> None:
    files = [host.guest(f"web-{number}", host.images / str(number)) for number in range(5)]
    assert [f"{file}:\n  error: guest {file.stem}, xvda: " in host.run("check").output for file in files] == [True] * 5


def test_nagios_reports_wrong_usage_as_unknown(host: Host) -> None:
    assert host.run("check", "--nagios", "--tree").status == 3


def test_nagios_reports_unknown_guest(host: Host) -> None:
    host.guest("web", host.image("a"))
    result = host.run("check", "--nagios", "wbe")
    assert (result.status, result.output) == (
        3,
        "XENDOMAINS UNKNOWN - 'wbe' is not the name of a guest that starts at boot (did you mean web?).\n",
    )


def test_nagios_critical_without_xendomains_settings(host: Host) -> None:
    host.settings.unlink()
    status, text, _ = nagios(host)
    assert status == 2 and "xendomains has no settings" in text


def test_nagios_text_replaces_bar_in_a_name(host: Host) -> None:
    host.guest("web", host.images / "a|b")
    status, text, _ = nagios(host)
    assert status == 2 and "a/b is missing" in text


# Units


@pytest.mark.parametrize("unit", ["xendomains.service", "xendomains-wait-disk.service"])
def test_unit_not_enabled_is_reported(host: Host, systemctl: Systemctl, unit: str) -> None:
    host.guest("web")
    systemctl.set_state(unit, "disabled")
    assert check(host) == [f"warning: {unit} is disabled, so it does not run at boot (fix: systemctl enable {unit})"]
    systemctl.set_state(unit, "masked")
    assert check(host) == [f"warning: {unit} is masked, so it does not run at boot (fix: systemctl unmask {unit})"]


@pytest.mark.parametrize("unit", ["libvirtd.service", "virtxend.service"])
def test_unit_conflicting_with_xendomains_is_reported(host: Host, systemctl: Systemctl, unit: str) -> None:
    """In Debian these units conflict, in SUSE they do not."""
    host.guest("web")
    systemctl.set_state(unit, "enabled")
    systemctl.set_conflicts(unit, "shutdown.target", "xendomains.service")
    assert check(host) == [
        f"error: {unit} conflicts with xendomains.service, so systemd may start only one of them at boot "
        f"(fix: systemctl disable {unit})"
    ]
    systemctl.set_state(unit, "disabled")
    assert check(host) == []
    systemctl.set_state(unit, "enabled")
    systemctl.set_conflicts(unit, "shutdown.target")
    assert check(host) == []


@pytest.mark.parametrize("state", ["enabled", "enabled-runtime", "static", "generated", "alias", "not-found", ""])
def test_unit_in_any_other_state_is_not_reported(host: Host, systemctl: Systemctl, state: str) -> None:
    host.guest("web")
    systemctl.set_state("xendomains.service", state)
    assert check(host) == []


def test_disabled_units_are_not_reported_if_no_guest_starts_at_boot(host: Host, systemctl: Systemctl) -> None:
    systemctl.set_state("xendomains.service", "disabled")
    assert check(host) == []


# Names


@pytest.mark.parametrize(
    "path",
    [
        "sdz",
        "sdaa3",
        "hdz1",
        "vdz",
        "nvme9n1",
        "nvme9n1p2",
        "dm-99",
        "md127",
        "md126p1",
        "loop99",
        "loop99p1",
        "nbd9p1",
    ],
)
def test_unstable_name_is_reported(files: HostFiles, path: str) -> None:
    assert check_use(files.paths, path, f"/dev/{path}") == [f"/dev/{path} may refer to a different disk after a reboot"]


@pytest.mark.parametrize(
    "path",
    [
        "vg/sda", "mapper/mpatha", "md/web", "md0", "md1270", "disk/by-id/wwn-0x5", "disk/by-path/pci-0",
        "drbd1", "drbd/by-res/web/0", "zvol/tank/web", "rbd/vms/web", "bcache/by-uuid/1", "loop-control", "sdcard",
    ],
)  # fmt: skip
def test_persistent_name_is_not_reported(files: HostFiles, path: str) -> None:
    assert check_use(files.paths, path, f"/dev/{path}") == []


def test_array_numbered_by_mdadm_conf_has_persistent_name(files: HostFiles) -> None:
    files.write("etc/mdadm/mdadm.conf", "ARRAY /dev/md127 metadata=1.2 UUID=1\n#ARRAY /dev/md126 UUID=2\n")
    assert check_use(files.paths, "md127", "/dev/md127") == []
    assert check_use(files.paths, "md126", "/dev/md126") == ["/dev/md126 may refer to a different disk after a reboot"]


@pytest.mark.parametrize(
    ("recorded", "name", "stable"),
    [
        ("lvm/active", "dm-0", "/dev/disk/by-id/dm-name-vg-lv"),
        ("multipath/map", "dm-1", "/dev/disk/by-id/dm-name-mpatha"),
        ("luks/open", "dm-0", "/dev/disk/by-id/dm-name-secret"),
        ("iscsi/logged-in", "sda", "/dev/disk/by-id/scsi-"),
    ],
)
def test_fix_for_unstable_name_is_a_persistent_udev_link(
    recorded: str, name: str, stable: str, recorded_host: Callable[[str], HostPaths]
) -> None:
    (finding,) = check_use(recorded_host(recorded), name, f"/dev/{name}")
    assert finding.startswith(f"/dev/{name} may refer to a different disk after a reboot (fix: use {stable}")


# Disks in use on this host


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 1 MiB."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with attached(loop_device(), image) as device:
        yield device


@pytest.mark.promise("check finds what would break the next boot, and with --reboot what would not come up again")
@as_root
@block_devices
def test_disk_mounted_on_this_host_is_reported(host: Host, loop: Path) -> None:
    host.guest("web", loop.parent / "." / loop.name)
    run_quietly("mke2fs", "-q", loop)
    run_quietly("mount", loop, host.root / "images")
    try:
        found = check(host)
    finally:
        run_quietly("umount", host.root / "images")
    fix = f"(fix: umount {host.images})"
    taken = f"is not ready: is mounted on {host.images} on this host, and Xen refuses to share it"
    assert f"web.cfg: error: guest web, xvda: {loop} {taken} {fix}" in found
    assert len(found) == len(check(host)) + 1  # the other finding is about the name loopN


@as_root
@block_devices
def test_read_only_disk_may_be_mounted_read_only_here(host: Host, files: HostFiles, loop: Path) -> None:
    link = host.root / "link"
    link.symlink_to(loop)
    host.guest("web", f"{link},raw,xvda,r")
    files.mount("/srv", number=loop_number(loop), mode="ro")
    assert check(host, files) == []
    files.mount("/mnt", number=loop_number(loop))
    assert check(host, files) == [
        f"web.cfg: error: guest web, xvda: {link} is not ready: is mounted on /mnt on this host, "
        "and Xen refuses to share it (fix: umount /mnt)"
    ]


@as_root
@block_devices
@pytest.mark.parametrize(("where", "planned"), [("/", "/srv"), ("/boot", "/boot")])
def test_guest_needs_another_disk_than_one_the_host_needs(
    host: Host, files: HostFiles, loop: Path, where: str, planned: str
) -> None:
    link = host.root / "link"
    link.symlink_to(loop)
    host.guest("web", link)
    files.mount(where, number=loop_number(loop))
    files.write("etc/fstab", f"/dev/sdx1 {planned} ext4 defaults 0 0\n")
    (finding,) = check(host, files)
    assert finding.endswith("and Xen refuses to share it (fix: give the guest its own disk)")


@as_root
@block_devices
def test_swap_space_of_this_host_is_reported(host: Host, files: HostFiles, loop: Path) -> None:
    link = host.root / "link"
    link.symlink_to(loop)
    host.guest("web", link)
    files.write("proc/swaps", f"Filename\tType\tSize\tUsed\tPriority\n{loop}\tpartition\t1020\t0\t-2\n")
    assert check(host, files) == [
        f"web.cfg: error: guest web, xvda: {link} is swap space on this host (fix: give the guest its own disk)"
    ]


@as_root
@block_devices
def test_mounted_btrfs_is_found_by_its_source(host: Host, files: HostFiles, loop: Path) -> None:
    link = host.root / "link"
    link.symlink_to(loop)
    host.guest("web", link)
    files.mount("/srv", kind="btrfs", source=str(loop), number="0:44")
    assert check(host, files) == [
        f"web.cfg: error: guest web, xvda: {link} is not ready: is mounted on /srv on this host, "
        "and Xen refuses to share it (fix: umount /srv)"
    ]


def loop_number(loop: Path) -> str:
    status = loop.stat()
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


class Sysfs:
    """A made-up sysfs with block devices stacked on each other."""

    def __init__(self, root: Path) -> None:
        self.paths = paths_below(root)
        self._root = root

    def device(self, name: str, number: int, **attributes: str) -> None:
        """Add a device, with attributes such as dm__uuid."""
        directory = self._root / "sys/class/block" / name
        for key, value in {"dev": f"252:{number}", "size": "2048", **attributes}.items():
            file = directory / key.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{value}\n")
        link = self._root / f"sys/dev/block/252:{number}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(directory)

    def stack(self, name: str, *above: str) -> None:
        """Stack devices on a device."""
        for one in above:
            for directory, other in ((f"{name}/holders", one), (f"{one}/slaves", name)):
                (self._root / "sys/class/block" / directory).mkdir(exist_ok=True)
                (self._root / "sys/class/block" / directory / other).touch()

    def partition(self, name: str, number: int, of: str) -> None:
        """Add a partition of a device."""
        self.device(name, number, partition="1")
        directory = self._root / "sys/class/block"
        (directory / of / name).mkdir()
        (directory / of / name / "partition").write_text("1\n")

    def mount(self, number: int, where: str) -> None:
        """Mount a device."""
        file = self._root / "proc/self/mountinfo"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as table:
            table.write(f"40 1 252:{number} / {where} rw - ext4 /dev/root rw\n")


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


def use(
    host: HostPaths, name: str, path: str, guest: str = "web", kind: str = "auto", writes: bool = True
) -> xwd.DiskUse:
    """Return a guest's use of a device, given by its kernel or device-mapper name."""
    host.use()
    directory = f"{host.sys}/class/block"
    names = {xwd.attribute(f"{directory}/{one}", "dm/name") or one: one for one in os.listdir(directory)}
    disk = xwd.Disk("xvda", path, writes=writes)
    domain = xwd.Domain(guest, f"/etc/xen/auto/{guest}", kind, (disk,))
    return xwd.DiskUse(xwd.Guest(domain), disk, xwd.required_by(disk), names.get(name, name))


def check_use(host: HostPaths, name: str, path: str) -> list[str]:
    """Return the findings for a guest that writes to this device."""
    host.use()
    facts, one = xwd.StorageFacts(), use(host, name, path)
    return texts(xwd.check_name(one, facts)) + texts(xwd.check_host_use(one, facts))


def texts(findings: Iterable[xwd.Finding]) -> list[str]:
    """Return the findings without file, guest and disk."""
    lines = [xwd.lines_of_finding(one._replace(guest="", vdev=""), xwd.Screen())[0] for one in findings]
    return [line.partition(": ")[2] for line in lines]


FIX = "(fix: give the guest its own disk)"


def test_disk_with_a_mounted_partition_is_reported(sysfs: Sysfs) -> None:
    sysfs.device("sda", 0)
    sysfs.partition("sda1", 1, of="sda")
    sysfs.mount(1, "/boot")
    assert check_use(sysfs.paths, "sda", "/dev/disk/by-id/a") == [
        f"/dev/sda1 on /dev/disk/by-id/a is mounted on /boot on this host {FIX}"
    ]


def test_physical_volume_with_a_mounted_volume_is_reported(sysfs: Sysfs) -> None:
    sysfs.device("sda", 0)
    sysfs.device("dm-0", 1, dm__name="vg-root", dm__uuid="LVM-1")
    sysfs.stack("sda", "dm-0")
    sysfs.mount(1, "/")
    assert check_use(sysfs.paths, "sda", "/dev/disk/by-id/a") == [
        f"/dev/mapper/vg-root on /dev/disk/by-id/a is mounted on / on this host {FIX}"
    ]


def test_array_member_and_physical_volume_of_this_host_are_reported(sysfs: Sysfs) -> None:
    for number, (holder, attributes) in enumerate(
        {"md127": {}, "dm-0": {"dm__name": "vg-lv", "dm__uuid": "LVM-1"}}.items()
    ):
        sysfs.device(f"sd{'ab'[number]}", 2 * number)
        sysfs.device(holder, 2 * number + 1, **attributes)
        sysfs.stack(f"sd{'ab'[number]}", holder)
    assert check_use(sysfs.paths, "sda", "/dev/disk/by-id/a") == [
        f"/dev/disk/by-id/a is part of /dev/md127 on this host {FIX}"
    ]
    assert check_use(sysfs.paths, "sdb", "/dev/disk/by-id/b") == [
        f"/dev/disk/by-id/b is part of /dev/mapper/vg-lv on this host {FIX}"
    ]


def test_single_path_of_a_multipath_map_is_reported(sysfs: Sysfs) -> None:
    sysfs.device("sda", 0)
    sysfs.device("dm-0", 1, dm__name="mpatha", dm__uuid="mpath-36001")
    sysfs.stack("sda", "dm-0")
    assert check_use(sysfs.paths, "sda", "/dev/disk/by-id/a") == [
        f"/dev/disk/by-id/a is part of /dev/mapper/mpatha on this host {FIX}"
    ]


def test_kpartx_partitions_of_a_map_are_not_in_use(sysfs: Sysfs) -> None:
    sysfs.device("dm-0", 0, dm__name="mpatha", dm__uuid="mpath-36001")
    sysfs.device("dm-1", 1, dm__name="mpatha-part1", dm__uuid="part1-mpath-36001")
    sysfs.stack("dm-0", "dm-1")
    assert check_use(sysfs.paths, "mpatha", "/dev/mapper/mpatha") == []
    sysfs.mount(1, "/srv")
    assert check_use(sysfs.paths, "mpatha", "/dev/mapper/mpatha") == [
        f"/dev/mapper/mpatha-part1 on /dev/mapper/mpatha is mounted on /srv on this host {FIX}"
    ]


def test_volume_group_inside_a_guests_volume_is_not_in_use(sysfs: Sysfs) -> None:
    sysfs.device("dm-0", 0, dm__name="vg-web", dm__uuid="LVM-1")
    sysfs.device("dm-1", 1, dm__name="guest-root", dm__uuid="LVM-2")
    sysfs.stack("dm-0", "dm-1")
    assert check_use(sysfs.paths, "vg-web", "/dev/vg/web") == []


# Disks of two guests


@pytest.mark.promise("check finds what would break the next boot, and with --reboot what would not come up again")
def test_disk_written_by_two_guests_is_reported(host: Host) -> None:
    shared = host.image("shared")
    host.guest("web", shared)
    host.guest("db", shared)
    assert check(host) == [
        f"{one}.cfg: error: guest {one}, xvda: {shared} is also written to by guest {other}, "
        "and Xen refuses to share it (fix: give each guest its own disk)"
        for one, other in (("db", "web"), ("web", "db"))
    ]


def test_disk_written_by_two_guests_under_different_names_is_reported(host: Host) -> None:
    (host.root / "link").symlink_to(host.image("shared"))
    host.guest("web", host.images / "shared")
    host.guest("db", host.root / "link")
    assert len(check(host)) == 2


@pytest.mark.parametrize("access", ["r", "ro"])
def test_read_only_disk_may_be_shared(host: Host, access: str) -> None:
    shared = host.image("shared")
    for name in ("web", "db"):
        host.guest(name, f"{shared},raw,xvda,{access}")
    assert check(host) == []


def test_disk_written_by_one_guest_and_read_by_another_is_reported(host: Host) -> None:
    shared = host.image("shared")
    host.guest("web", shared)
    host.guest("db", f"{shared},raw,xvda,r")
    problem = "and Xen refuses to share it (fix: give each guest its own disk)"
    assert check(host) == [
        f"db.cfg: error: guest db, xvda: {shared} is also written to by guest web, {problem}",
        f"web.cfg: error: guest web, xvda: {shared} is also used by guest db, {problem}",
    ]


def test_cd_may_be_in_two_drives(host: Host) -> None:
    cd = host.image("debian.iso")
    for name in ("web", "db"):
        host.guest(name, f"{cd},raw,xvdc,rw,cdrom")
    assert check(host) == []


def test_disk_and_its_partition_in_two_guests_are_reported(sysfs: Sysfs) -> None:
    sysfs.device("sda", 0)
    sysfs.partition("sda1", 1, of="sda")
    uses = [use(sysfs.paths, "sda", "/dev/disk/by-id/a"), use(sysfs.paths, "sda1", "/dev/disk/by-id/a-part1", "db")]
    (finding,) = texts(xwd.check_sharing(uses))
    assert (
        finding == "/dev/disk/by-id/a is also written to by guest db, and Xen refuses to share it "
        "(fix: give each guest its own disk)"
    )


def test_disks_of_driver_domains_and_scripts_and_ignored_disks_are_skipped(host: Host) -> None:
    for name in ("web", "db"):
        host.guest(
            name, "backend=storage,vdev=xvda,target=/dev/sda", "script=block-npiv,vdev=xvdb,target=/dev/sdb", "/dev/sdc"
        )
    host.configure("[ignore]\ndisks = /dev/sdc")
    result = host.run("check")
    assert (result.status, result.messages) == (xwd.EXIT_READY, "")


def test_hung_file_system_affects_only_its_own_disks(host: Host) -> None:
    host.image("shared")
    for name in ("web", "db"):
        host.guest(name, host.images / "shared")
    with hung_file_system(host.root / "nfs") as nfs:
        host.guest("hung", nfs / "disk")
        result = host.run("check", "--reboot")
    assert result.status == xwd.EXIT_USAGE
    assert f"{host.images}/shared is also written to by guest db, and Xen refuses to share it" in result.output


# Selected guests


def test_guest_can_be_selected_by_shell_pattern(host: Host) -> None:
    for name in ("web-1", "web-2", "db"):
        host.guest(name, host.images / name)
    assert [line.partition(":")[0] for line in check(host, None, "web-*")] == ["web-1.cfg", "web-2.cfg"]
    assert [line.partition(":")[0] for line in check(host, None, "web-[2-9]", "d?")] == ["db.cfg", "web-2.cfg"]


def test_selected_guests_get_all_their_findings_and_no_others(host: Host) -> None:
    shared = host.image("shared")
    host.guest("web", shared)
    host.guest("db", shared, "/dev/sdz")
    host.settings.chmod(0o600)
    for name in ("web", "web.cfg"):
        assert check(host, None, name) == [
            f"web.cfg: error: guest web, xvda: {shared} is also written to by guest db, and Xen refuses to share it "
            "(fix: give each guest its own disk)"
        ]


def test_duplicate_name_is_found_though_only_one_file_is_selected(host: Host) -> None:
    shutil.copy(host.guest("web"), host.auto / "copy")
    assert check(host, None, "web.cfg") == ["web.cfg: error: guest web: duplicate guest name; it is created from copy"]


# Storage lost on reboot


@pytest.fixture
def recorded_host(tmp_path: Path) -> Callable[[str], HostPaths]:
    """Return a function that unpacks a recorded host."""

    def paths(recorded: str) -> HostPaths:
        root = unpack(recorded, tmp_path / recorded)
        return paths_below(root)

    return cache(paths)


def check_reboot(host: HostPaths, name: str, path: str = "/dev/disk") -> list[str]:
    """Return why this device, or a device below it, would be missing after a reboot."""
    found = texts(xwd.check_reboot(use(host, name, path), xwd.StorageFacts()))
    found = list(dict.fromkeys(found))
    start = f"after a reboot, {path} will be missing: "
    assert all(one.startswith(start) for one in found)
    return [one[len(start) :] for one in found]


def write(host: HostPaths, file: str, text: str) -> None:
    """Write a file below /etc."""
    path = Path(host.etc) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def with_startup(host: HostPaths, startup: str, nodes: str = "**") -> None:
    """Set node.startup in open-iscsi's records."""
    for record in Path(host.etc).glob(f"iscsi/nodes/{nodes}/default"):
        record.write_text(record.read_text().replace("node.startup = manual", f"node.startup = {startup}"))


def no_login_at_boot(target: str) -> str:
    update = f"iscsiadm -m node -T {TARGET}:{target} -o update -n node.startup -v automatic"
    return f"the host does not log in to target {TARGET}:{target} at boot (fix: {update})"


@pytest.mark.promise("check finds what would break the next boot, and with --reboot what would not come up again")
@pytest.mark.parametrize(
    ("recorded", "name", "target"),
    [
        ("iscsi/logged-in", "sdb", "disk"),
        ("lvm/active", "vg-lv", "group"),
        ("multipath/map", "mpatha", "map"),
    ],
)
def test_reboot_reports_session_started_by_hand(
    recorded: str, name: str, target: str, recorded_host: Callable[[str], HostPaths]
) -> None:
    here = recorded_host(recorded)
    assert check_reboot(here, name) == [no_login_at_boot(target)]
    with_startup(here, "automatic")
    assert check_reboot(here, name) == []


def test_reboot_accepts_one_portal_with_automatic_login(recorded_host: Callable[[str], HostPaths]) -> None:
    here = recorded_host("multipath/map")
    with_startup(here, "onboot", f"{TARGET}:map/127.0.0.2,3260,1")
    assert check_reboot(here, "mpatha") == []


def test_reboot_accepts_session_without_a_record(
    recorded_host: Callable[[str], HostPaths],
) -> None:
    here = recorded_host("iscsi/logged-in")
    shutil.rmtree(f"{here.etc}/iscsi/nodes")
    assert check_reboot(here, "sdb") == []


def test_reboot_reports_luks_volume_that_nothing_opens(recorded_host: Callable[[str], HostPaths]) -> None:
    here = recorded_host("luks/open")
    assert check_reboot(here, "secret") == ["secret has the option noauto in /etc/crypttab (fix: remove noauto)"]
    write(here, "crypttab", "# secret UUID=x none luks\n")
    assert check_reboot(here, "secret") == ["secret is not in /etc/crypttab (fix: add a line for it)"]


@pytest.mark.parametrize("line", ["secret UUID=x none luks,nofail", "secret UUID=x", "secret /dev/sda /key x-noauto"])
def test_reboot_accepts_luks_volume_opened_at_boot(line: str, recorded_host: Callable[[str], HostPaths]) -> None:
    here = recorded_host("luks/open")
    write(here, "crypttab", f"{line}\n")
    assert check_reboot(here, "secret") == []


def test_reboot_accepts_luks_volume_opened_by_initramfs(recorded_host: Callable[[str], HostPaths]) -> None:
    here = recorded_host("luks/open")
    write(here, "crypttab", "")
    Path(here.proc, "cmdline").write_text("root=/dev/mapper/root rd.luks.name=0e6cd8b1=secret\n")
    assert check_reboot(here, "secret") == []


def test_reboot_accepts_integrity_device_below_luks_volume(sysfs: Sysfs) -> None:
    sysfs.device("dm-0", 0, dm__name="secret_dif", dm__uuid="CRYPT-SUBDEV-1-secret_dif")
    assert check_reboot(sysfs.paths, "secret_dif") == []


LVM_CONF = "activation {{\n\t# auto_activation_volume_list = [ ]\n\t{}\n}}\n"


@pytest.mark.parametrize("value", ["[ ]", '[ "other" ]', '[ "other", "vg2/lv" ]', '[\n"other",\n"another" ]'])
def test_reboot_reports_volume_group_without_autoactivation(
    value: str, recorded_host: Callable[[str], HostPaths]
) -> None:
    here = recorded_host("lvm/active")
    with_startup(here, "automatic")
    write(here, "lvm/lvm.conf", LVM_CONF.format(f"auto_activation_volume_list = {value}"))
    assert check_reboot(here, "vg-lv") == [
        "auto_activation_volume_list in /etc/lvm/lvm.conf does not list volume group vg (fix: add it)"
    ]


@pytest.mark.parametrize(
    "line",
    [
        "",
        'auto_activation_volume_list = [ "other", "vg" ]',
        'auto_activation_volume_list = [ "vg/lv" ]',
        'auto_activation_volume_list = [ "@*" ]',
    ],
)
def test_reboot_accepts_volume_group_with_autoactivation(line: str, recorded_host: Callable[[str], HostPaths]) -> None:
    here = recorded_host("lvm/active")
    with_startup(here, "automatic")
    write(here, "lvm/lvm.conf", LVM_CONF.format(line))
    assert check_reboot(here, "vg-lv") == []


def test_reboot_handles_hyphens_in_group_and_volume_names(sysfs: Sysfs) -> None:
    sysfs.device("dm-0", 0, dm__name="vg--two-lv--a", dm__uuid="LVM-1")
    write(sysfs.paths, "lvm/lvm.conf", 'auto_activation_volume_list = [ "vg-two" ]\n')
    assert check_reboot(sysfs.paths, "vg--two-lv--a") == []


def test_reboot_reports_drbd_without_a_service(recorded_host: Callable[[str], HostPaths]) -> None:
    here = recorded_host("drbd/one-secondary")
    fix = "(fix: systemctl enable drbd.service)"
    assert check_reboot(here, "drbd1") == [f"no service that brings up DRBD is enabled {fix}"]
    write(here, "rc3.d/K01drbd", "")
    assert len(check_reboot(here, "drbd1")) == 1


@pytest.mark.parametrize(
    "file",
    [
        "systemd/system/multi-user.target.wants/drbd.service",
        "systemd/system/multi-user.target.wants/drbd@one.target",
        "systemd/system/drbd-services.target.wants/drbd@one.target",
        "systemd/system/xendomains.service.requires/drbd@one.target",
        "rc3.d/S01drbd",
    ],
)
def test_reboot_accepts_drbd_with_a_service(file: str, recorded_host: Callable[[str], HostPaths]) -> None:
    here = recorded_host("drbd/one-secondary")
    write(here, file, "")
    assert check_reboot(here, "drbd1") == []


@as_root
@block_devices
def test_reboot_reports_loop_device_set_up_by_hand(host: Host, files: HostFiles, loop: Path) -> None:
    link = host.root / "link"
    link.symlink_to(loop)
    host.guest("web", link)
    assert check(host, files, reboot=True) == [
        f"web.cfg: warning: guest web, xvda: after a reboot, {link} will be missing: "
        f"nothing sets up {loop.name} at boot (fix: add a unit that does)"
    ]


@pytest.mark.parametrize("file", ["rc.local", "systemd/system/images.service"])
def test_reboot_accepts_loop_device_set_up_by_a_script(file: str, sysfs: Sysfs) -> None:
    sysfs.device("loop0", 0, loop__backing_file="/srv/web.img")
    write(sysfs.paths, file, "ExecStart=/sbin/losetup /dev/loop0 /srv/web.img\n")
    assert check_reboot(sysfs.paths, "loop0") == []


def test_reboot_accepts_nbd_device_in_nbdtab(sysfs: Sysfs) -> None:
    sysfs.device("nbd0", 0, pid="17")
    assert check_reboot(sysfs.paths, "nbd0") == ["nothing sets up nbd0 at boot (fix: add a unit that does)"]
    write(sysfs.paths, "nbdtab", "nbd0 server web persist\n")
    assert check_reboot(sysfs.paths, "nbd0") == []


def test_reboot_reports_every_problem_below_a_disk(sysfs: Sysfs) -> None:
    sysfs.device("loop0", 0)
    sysfs.device("dm-0", 1, dm__name="secret", dm__uuid="CRYPT-LUKS2-1-secret")
    sysfs.device("dm-1", 2, dm__name="vg-lv", dm__uuid="LVM-1")
    sysfs.stack("loop0", "dm-0")
    sysfs.stack("dm-0", "dm-1")
    assert check_reboot(sysfs.paths, "vg-lv") == [
        "secret is not in /etc/crypttab (fix: add a line for it)",
        "nothing sets up loop0 at boot (fix: add a unit that does)",
    ]


@pytest.mark.promise("check finds what would break the next boot, and with --reboot what would not come up again")
def test_reboot_reports_file_system_mounted_by_hand(host: Host, files: HostFiles) -> None:
    host.guest("web", host.image("a"))
    files.mount("/")
    files.mount(host.images)
    assert check(host, files, reboot=True) == [
        f"web.cfg: warning: guest web, xvda: after a reboot, {host.images}/a will be missing: "
        f"the file system mounted on {host.images} is not in /etc/fstab (fix: add a line for it)"
    ]
    files.write("etc/fstab", f"/dev/sdx1 {host.images}/ ext4 noauto 0 0\n")
    assert "has the option noauto in /etc/fstab" in check(host, files, reboot=True)[0]


@pytest.mark.parametrize("options", ["defaults", "_netdev,nofail", "noauto,x-systemd.automount", "x-noauto", ""])
def test_reboot_accepts_file_system_in_fstab(host: Host, files: HostFiles, options: str) -> None:
    host.guest("web", host.image("a"))
    files.mount(host.images)
    files.write("etc/fstab", f"/dev/sdx1 {host.images} ext4 {options}\n")
    assert check(host, files, reboot=True) == []


@pytest.mark.parametrize("directory", ["etc/systemd/system", "run/systemd/generator", "run/systemd/generator.late"])
def test_reboot_accepts_file_system_with_mount_unit(host: Host, files: HostFiles, directory: str) -> None:
    host.guest("web", host.image("a"))
    files.mount(host.images)
    files.write(f"{directory}/images.mount", f"[Mount]\nWhat=/dev/sdx1\nWhere={host.images}\n")
    assert check(host, files, reboot=True) == []


def test_reboot_accepts_automount_and_zfs(host: Host, files: HostFiles) -> None:
    host.guest("web", host.image("a"))
    files.mount(host.root, kind="autofs", source="/etc/auto.srv")
    files.mount(host.images, kind="nfs4", source="server:/images")
    assert check(host, files, reboot=True) == []
    files.write("proc/self/mountinfo", "")
    files.mount(host.images, kind="zfs", source="tank/images")
    assert check(host, files, reboot=True) == []


def test_reboot_accepts_subvolume_of_root_file_system(host: Host, files: HostFiles) -> None:
    host.guest("web", host.image("a"))
    files.mount("/", kind="btrfs")
    assert check(host, files, reboot=True) == []


def test_reboot_accepts_nested_mount_below_nfs_export(host: Host, files: HostFiles) -> None:
    host.guest("web", host.image("a"))
    files.mount("/")
    files.mount(host.root, kind="nfs4", source="server:/")
    files.mount(host.images, kind="nfs4", source="server:/images")
    assert f"the file system mounted on {host.root} is not in /etc/fstab" in check(host, files, reboot=True)[0]
    files.write("etc/fstab", f"server:/ {host.root} nfs4 _netdev 0 0\n")
    assert check(host, files, reboot=True) == []


@pytest.mark.parametrize("manager", ["pacemaker", "linstor-satellite", "ganeti"])
def test_reboot_checks_are_skipped_with_a_cluster_manager(host: Host, files: HostFiles, manager: str) -> None:
    host.guest("web", host.image("a"))
    files.mount(host.images)
    files.write(f"etc/systemd/system/multi-user.target.wants/{manager}.service", "")
    assert check(host, files, reboot=True) == []


def test_reboot_findings_need_the_option(host: Host, files: HostFiles) -> None:
    host.guest("web", host.image("a"))
    files.mount(host.images)
    assert check(host, files) == []


def test_reboot_adds_nothing_for_a_missing_disk(host: Host, files: HostFiles) -> None:
    host.guest("web", host.images / "not there")
    files.mount(host.images)
    (finding,) = check(host, files, reboot=True)
    assert f"{host.images}/not there is missing" in finding


# Hosts without findings


@pytest.mark.promise("There are no false alarms")
@pytest.mark.parametrize(
    "settings",
    [
        # Debian's /etc/default/xendomains and openSUSE's /etc/sysconfig/xendomains, as shipped.
        "XENDOMAINS_AUTO=/etc/xen/auto\nXENDOMAINS_SAVE=/var/lib/xen/save\nXENDOMAINS_RESTORE=true\n",
        'XENDOMAINS_RESTORE=false\nXENDOMAINS_SAVE=""\nXENDOMAINS_AUTO="/etc/xen/auto"\nXENDOMAINS_AUTO_ONLY=false\n',
    ],
)
def test_host_as_shipped_by_distributions_has_no_findings(host: Host, systemctl: Systemctl, settings: str) -> None:
    if Path(xwd.DEFAULT_AUTO).exists() or Path(xwd.DEFAULT_SAVE).exists():
        pytest.skip("this machine has its own guests")
    systemctl.set_state("xendomains.service", "disabled")
    host.settings.write_text(settings)
    result = host.run("check", "--reboot")
    assert (result.status, result.messages) == (xwd.EXIT_READY, "")
    assert result.output == "No problems found (0 guests with 0 disks).\n"


WORTH_A_WARNING = {
    "21": "disk is a string, not a list",
    "24": "is relative; libxl looks for /",
    "28": "/dev/md127 may refer to a different disk after a reboot",
}


@pytest.mark.promise("There are no false alarms")
@pytest.mark.parametrize("file", sorted(CORPUS.glob("*.json")), ids=lambda file: file.stem)
def test_configuration_accepted_by_xl_has_no_findings(host: Host, files: HostFiles, file: Path) -> None:
    text = file.with_suffix(".cfg").read_text()
    for name in ("vmlinuz", "initrd.img"):
        text = text.replace(f"/boot/{name}", str(host.image(name)))
    (host.auto / file.stem).write_text(text)
    found = [one for one in check(host, files, reboot=True) if " missing: " not in one]
    assert len(found) == (file.name[:2] in WORTH_A_WARNING)
    assert all(": warning: " in one and WORTH_A_WARNING[file.name[:2]] in one for one in found)


@pytest.mark.promise("There are no false alarms")
@pytest.mark.parametrize("recorded", RECORDED)
def test_recorded_hosts_have_no_findings_on_device_use(
    recorded: str, recorded_host: Callable[[str], HostPaths]
) -> None:
    here = recorded_host(recorded)
    here.use()
    for name in xwd.list_names(f"{here.sys}/class/block"):
        for directory in Path(f"{here.sys}/class/block/{name}/slaves").glob("*"):
            (holders := Path(here.sys, "class/block", directory.name, "holders")).mkdir(exist_ok=True)
            (holders / name).touch()
    tops = [one for one in xwd.list_names(f"{here.sys}/class/block") if not xwd.devices_above(one)]
    for name in tops:
        assert check_use(here, name, f"/dev/disk/by-id/{name}") == []


@pytest.mark.promise("There are no false alarms")
@pytest.mark.parametrize("recorded", RECORDED)
def test_recorded_hosts_set_up_for_reboot_have_no_findings(
    recorded: str, recorded_host: Callable[[str], HostPaths]
) -> None:
    here = recorded_host(recorded)
    with_startup(here, "automatic")
    write(here, "crypttab", "secret UUID=x none luks\n")
    write(here, "systemd/system/multi-user.target.wants/drbd.service", "")
    for name in xwd.list_names(f"{here.sys}/class/block"):
        assert [one for one in check_reboot(here, name) if "loop" not in one] == []


@pytest.mark.parametrize("name", ["zd0", "zd16p1", "rbd0", "bcache0", "mmcblk0p1", "sr0", "xvda1", "sda", "nvme0n1p1"])
def test_names_that_may_refer_to_a_different_disk_are_reported(sysfs: Sysfs, name: str) -> None:
    sysfs.device(name, 0)
    assert check_use(sysfs.paths, name, f"/dev/{name}") == [f"/dev/{name} may refer to a different disk after a reboot"]


@pytest.mark.parametrize(
    ("text", "instead", "found"),
    [
        (
            "\tflags = []",
            '\tflags = ["NOAUTOACTIVATE"]',
            "volume group vg is not activated automatically (fix: vgchange --setautoactivation y vg)",
        ),
        (
            "\t\t\tflags = []\n\t\t\tcreation_time",
            '\t\t\tflags = ["NOAUTOACTIVATE"]\n\t\t\tcreation_time',
            "vg/lv is not activated automatically (fix: lvchange --setautoactivation y vg/lv)",
        ),
        (
            "\t\t\tflags = []\n\t\t\tcreation_time",
            '\t\t\tflags = ["ACTIVATION_SKIP"]\n\t\t\tcreation_time',
            "vg/lv has the activation skip flag (fix: lvchange --setactivationskip n vg/lv)",
        ),
    ],
)
def test_reboot_reports_volume_with_flags_against_activation(
    text: str, instead: str, found: str, recorded_host: Callable[[str], HostPaths]
) -> None:
    here = recorded_host("lvm/active")
    with_startup(here, "automatic")
    backup = Path(here.etc, "lvm/backup/vg")
    assert text in backup.read_text()
    assert check_reboot(here, "vg-lv") == []
    backup.write_text(backup.read_text().replace(text, instead, 1))
    assert check_reboot(here, "vg-lv") == [found]


def test_reboot_accepts_mount_unit_of_a_package(host: Host, files: HostFiles) -> None:
    host.guest("web", host.image("a"))
    files.mount(host.images)
    files.write("usr/lib/systemd/system/images.mount", f"[Mount]\nWhat=/dev/sdx1\nWhere={host.images}\n")
    assert check(host, files, reboot=True) == []
