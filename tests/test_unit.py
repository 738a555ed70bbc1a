# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The unit: runs before xendomains, never holds it up, and may do no more than it has to."""

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
    """The settings of a unit, with the words of each; an assignment after another adds words."""
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


def test_it_runs_the_command() -> None:
    assert settings()["ExecStart"] == [f"/usr/sbin/{xwd.COMMAND}"]
    assert "SBINDIR = $(PREFIX)/sbin" in (ROOT / "Makefile").read_text()


def test_it_runs_before_xendomains_and_with_it() -> None:
    unit = settings()
    assert unit["Before"] == unit["WantedBy"] == ["xendomains.service"]


def test_its_failure_keeps_no_guest_down() -> None:
    assert not {"RequiredBy", "UpheldBy", "Requires", "Requisite", "BindsTo", "PartOf", "OnFailure", "Conflicts"} & set(
        settings()
    )


def test_it_waits_for_remote_file_systems_only() -> None:
    assert settings()["After"] == ["remote-fs.target"]


def test_it_runs_again_each_time_xendomains_starts() -> None:
    unit = settings()
    assert unit["Type"] == ["oneshot"]
    assert "RemainAfterExit" not in unit


def test_its_timeout_is_longer_than_what_comes_before_the_first_look() -> None:
    (timeout,) = settings()["TimeoutStartSec"]
    assert xwd.parse_time_span(timeout) > xwd.MAX_SOURCING + xwd.MAX_FIRST_LOOK + 30
    assert settings()["NotifyAccess"] == ["main"]


def test_it_goes_by_the_name_of_the_one_it_replaces() -> None:
    assert settings()["Alias"] == ["xendomains-wait-disks.service"]


def test_it_is_for_hosts_only() -> None:
    unit = settings()
    assert unit["ConditionPathExists"] == ["/sys/hypervisor/type"]
    assert unit["ConditionVirtualization"] == ["!xen", "!container"]


def test_it_names_pages_that_exist() -> None:
    for page in settings()["Documentation"]:
        found = re.fullmatch(r"man:(.+)\((\d)\)", page)
        assert found and (ROOT / "man" / f"{found[1]}.{found[2]}").exists()


def test_the_preset_enables_it() -> None:
    lines = [line for line in PRESET.read_text().splitlines() if line and not line.startswith("#")]
    assert lines == [f"enable {UNIT.name}", f"disable {LATE.name}"]


@needs_systemd_analyze
@pytest.mark.parametrize("file", [UNIT, LATE], ids=lambda file: file.stem)
def test_systemd_finds_nothing_wrong(tmp_path: Path, file: Path) -> None:
    # The program and the pages are not where they will be installed.
    unit = tmp_path / file.name
    unit.write_text(file.read_text().replace(f"/usr/sbin/{xwd.COMMAND}", str(ROOT / "bin" / xwd.COMMAND)))
    process = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert (process.returncode, process.stdout + process.stderr) == (0, "")


@pytest.mark.promise("It writes only below /run, and has no network and one capability: to read all files")
@needs_systemd_analyze
def test_it_is_locked_down() -> None:
    if systemd_version() < 250:
        pytest.skip("this systemd cannot judge a unit that is not loaded")
    process = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={MOST_EXPOSED * 10:.0f}", UNIT],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout


def test_it_still_sees_what_it_has_to() -> None:
    unit = settings()
    # Home directories of others, the disks themselves, images in temporary directories.
    assert unit["CapabilityBoundingSet"] == ["CAP_DAC_READ_SEARCH"]
    assert unit["BindReadOnlyPaths"][:3] == ["/dev", "-/tmp", "-/var/tmp"]
    assert unit["ProtectHome"] == ["read-only"]
    assert unit["ReadOnlyPaths"] == ["/run"]
    # The journal and sd_notify, udev's events.
    assert set(unit["RestrictAddressFamilies"]) == {"AF_UNIX", "AF_NETLINK"}
    assert not {"PrivateNetwork", "PrivateUsers", "User", "DynamicUser", "RootDirectory"} & set(unit)


def test_it_may_write_one_directory_which_stays_until_the_next_boot() -> None:
    unit = settings()
    assert unit["RuntimeDirectory"] == [xwd.COMMAND]
    assert unit["RuntimeDirectoryPreserve"] == ["yes"]
    assert not {"ReadWritePaths", "StateDirectory", "CacheDirectory", "LogsDirectory"} & set(unit)


def test_of_what_systemd_listens_on_it_sees_only_what_it_speaks_to() -> None:
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


def test_the_service_for_late_guests_waits_without_holding_up_the_boot() -> None:
    late = settings(LATE)
    assert late["Type"] == ["exec"]
    assert late["ExecStart"] == [f"/usr/sbin/{xwd.COMMAND}", "start", "--wait"]
    assert late["NotifyAccess"] == ["main"]
    assert not {"Restart", "RemainAfterExit", "ExecCondition"} & set(late)


def test_it_starts_after_xendomains_and_is_over_before_that_stops() -> None:
    late = settings(LATE)
    assert late["After"] == ["xendomains.service", "libvirtd.service", "virtxend.service"]
    assert late["PartOf"] == ["xendomains.service"]
    assert "xendomains.service" not in late.get("Requires", [])


def test_what_it_starts_outlives_it() -> None:
    late = settings(LATE)
    assert late["KillMode"] == ["process"]
    assert late["OOMPolicy"] == ["continue"]


def test_what_it_starts_sees_the_hosts_own_devices_mounts_and_networks() -> None:
    """Each of these would go for xl, its scripts and device models as well, or make a mount namespace for them."""
    kinds = ("Private", "Protect", "ReadOnly", "ReadWrite", "Inaccessible", "Bind", "Temporary", "Device", "IPAddress")
    assert [
        key for key in settings(LATE) if key.startswith((*kinds, "SystemCall", "RestrictNamespaces", "NoNew"))
    ] == []


def test_it_is_for_hosts_only_as_the_wait_is() -> None:
    boot, late = settings(), settings(LATE)
    for key in ("ConditionPathExists", "ConditionVirtualization"):
        assert late[key] == boot[key]


def test_late_guests_are_taken_care_of_only_if_somebody_asks_for_it() -> None:
    assert f"disable {LATE.name}" in PRESET.read_text().splitlines()
    assert settings(LATE)["WantedBy"] == ["xendomains.service", "libvirtd.service", "virtxend.service"]
