# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The units: their order, their sandbox, and that their failure keeps no guest down."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import MODULE

import xendomains_wait_disk as xwd

ROOT = MODULE.parent
DIRECTORY = ROOT / "packaging" / "systemd"
UNIT = DIRECTORY / "xendomains-wait-disk.service"
LATE = DIRECTORY / xwd.LATE_SERVICE
PRESET = DIRECTORY / "90-xendomains-wait-disk.preset"

MOST_EXPOSED = 1.5

needs_systemd_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def settings(unit: Path = UNIT) -> dict[str, list[str]]:
    """Return the settings of a unit, each as a list of words; repeated assignments add words."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(key, []).extend(value.split())
    return found


def systemd_version() -> int:
    found = re.match(
        r"systemd (\d+)", subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True).stdout
    )
    return int(found[1]) if found else 0


def test_unit_runs_the_command() -> None:
    assert settings()["ExecStart"] == [f"/usr/sbin/{xwd.COMMAND}"]
    assert "SBINDIR = $(PREFIX)/sbin" in (ROOT / "Makefile").read_text()


def test_unit_runs_before_xendomains_whenever_it_starts() -> None:
    unit = settings()
    assert unit["Before"] == unit["WantedBy"] == ["xendomains.service"]


def test_unit_failure_keeps_no_guest_down() -> None:
    assert not {"RequiredBy", "UpheldBy", "Requires", "Requisite", "BindsTo", "PartOf", "OnFailure", "Conflicts"} & set(
        settings()
    )


def test_unit_waits_only_for_remote_file_systems() -> None:
    assert settings()["After"] == ["remote-fs.target"]


def test_unit_runs_again_each_time_xendomains_starts() -> None:
    unit = settings()
    assert unit["Type"] == ["oneshot"]
    assert "RemainAfterExit" not in unit


def test_unit_timeout_is_longer_than_everything_before_the_first_look() -> None:
    (timeout,) = settings()["TimeoutStartSec"]
    assert xwd.parse_time_span(timeout) > xwd.MAX_SOURCING + xwd.MAX_FIRST_LOOK + 30
    assert settings()["NotifyAccess"] == ["main"]


def test_unit_has_the_alias_of_the_unit_it_replaces() -> None:
    assert settings()["Alias"] == ["xendomains-wait-disks.service"]


def test_unit_runs_only_on_xen_hosts() -> None:
    unit = settings()
    assert unit["ConditionPathExists"] == ["/sys/hypervisor/type"]
    assert unit["ConditionVirtualization"] == ["!xen", "!container"]


def test_unit_names_existing_manual_pages() -> None:
    for page in settings()["Documentation"]:
        found = re.fullmatch(r"man:(.+)\((\d)\)", page)
        assert found and (ROOT / "man" / f"{found[1]}.{found[2]}").exists()


def test_preset_enables_the_unit() -> None:
    lines = [line for line in PRESET.read_text().splitlines() if line and not line.startswith("#")]
    assert lines == [f"enable {UNIT.name}", f"disable {LATE.name}"]


@needs_systemd_analyze
@pytest.mark.parametrize("file", [UNIT, LATE], ids=lambda file: file.stem)
def test_systemd_finds_nothing_wrong(tmp_path: Path, file: Path) -> None:
    # The program and the manual pages are not installed.
    unit = tmp_path / file.name
    unit.write_text(file.read_text().replace(f"/usr/sbin/{xwd.COMMAND}", str(ROOT / "bin" / xwd.COMMAND)))
    process = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert (process.returncode, process.stdout + process.stderr) == (0, "")


@pytest.mark.promise("It writes only below /run, and has no network access and one capability: to read all files")
@needs_systemd_analyze
def test_unit_is_sandboxed() -> None:
    if systemd_version() < 250:
        pytest.skip("this systemd cannot judge a unit that is not loaded")
    process = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={MOST_EXPOSED * 10:.0f}", UNIT],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout


def test_sandbox_allows_what_the_wait_needs() -> None:
    unit = settings()
    # Home directories of other users, disks, images in temporary directories.
    assert unit["CapabilityBoundingSet"] == ["CAP_DAC_READ_SEARCH"]
    assert unit["BindReadOnlyPaths"][:3] == ["/dev", "-/tmp", "-/var/tmp"]
    assert unit["ProtectHome"] == ["read-only"]
    assert unit["ReadOnlyPaths"] == ["/run"]
    # The journal and sd_notify, udev's events.
    assert set(unit["RestrictAddressFamilies"]) == {"AF_UNIX", "AF_NETLINK"}
    assert not {"PrivateNetwork", "PrivateUsers", "User", "DynamicUser", "RootDirectory"} & set(unit)


def test_unit_may_write_only_its_runtime_directory_which_is_kept() -> None:
    unit = settings()
    assert unit["RuntimeDirectory"] == [xwd.COMMAND]
    assert unit["RuntimeDirectoryPreserve"] == ["yes"]
    assert not {"ReadWritePaths", "StateDirectory", "CacheDirectory", "LogsDirectory"} & set(unit)


def test_sandbox_exposes_only_the_systemd_sockets_it_uses() -> None:
    unit = settings()
    assert unit["TemporaryFileSystem"] == ["/run/systemd:ro"]
    assert [path for path in unit["BindReadOnlyPaths"] if "/run/" in path] == [
        f"-{xwd.JOURNAL_SOCKET}",
        "-/run/systemd/notify",
        "-/run/systemd/generator",
        "-/run/systemd/generator.late",
    ]
    assert unit["InaccessiblePaths"] == ["-/run/dbus", "-/run/initctl", "-/run/udev/control"]
    assert unit["PrivateIPC"] == ["yes"]


def test_late_service_waits_without_delaying_the_boot() -> None:
    late = settings(LATE)
    assert late["Type"] == ["exec"]
    assert late["ExecStart"] == [f"/usr/sbin/{xwd.COMMAND}", "start", "--wait"]
    assert late["NotifyAccess"] == ["main"]
    assert not {"Restart", "RemainAfterExit", "ExecCondition"} & set(late)


def test_late_service_starts_after_xendomains_and_stops_before_it() -> None:
    late = settings(LATE)
    assert late["After"] == ["xendomains.service", "libvirtd.service", "virtxend.service"]
    assert late["PartOf"] == ["xendomains.service"]
    assert "xendomains.service" not in late.get("Requires", [])


def test_guests_outlive_the_late_service() -> None:
    late = settings(LATE)
    assert late["KillMode"] == ["process"]
    assert late["OOMPolicy"] == ["continue"]


def test_late_service_runs_xl_with_the_hosts_devices_mounts_and_networks() -> None:
    """Each of these would also restrict xl, its scripts and device models, or put them in a mount namespace."""
    kinds = ("Private", "Protect", "ReadOnly", "ReadWrite", "Inaccessible", "Bind", "Temporary", "Device", "IPAddress")
    assert [
        key for key in settings(LATE) if key.startswith((*kinds, "SystemCall", "RestrictNamespaces", "NoNew"))
    ] == []


def test_late_service_runs_only_on_xen_hosts() -> None:
    boot, late = settings(), settings(LATE)
    for key in ("ConditionPathExists", "ConditionVirtualization"):
        assert late[key] == boot[key]


def test_late_service_is_disabled_by_default() -> None:
    assert f"disable {LATE.name}" in PRESET.read_text().splitlines()
    assert settings(LATE)["WantedBy"] == ["xendomains.service", "libvirtd.service", "virtxend.service"]
