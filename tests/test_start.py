# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The command start, with a fake xl: guests that are down are started once their disks are ready, and never twice."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    MODULE,
    Events,
    FakeClock,
    Host,
    Receiver,
    Running,
    full_pipe,
    handles,
    hung_file_system,
    wait_until,
)

import xendomains_wait_disk as xwd

XL = """#!/bin/sh
root={root}
case $1 in
list)
    [ -e "$root/no-xen" ] && exit 1
    [ -e "$root/xenstored-hangs" ] && exec sleep 1000
    echo "Name                                        ID   Mem VCPUs      State   Time(s)"
    echo "Domain-0                                     0  1200     2     r-----     120.5"
    while read -r name; do
        printf '%-40s %5d %5d %5d     %s %8.1f\\n' "$name" 1 160 1 -b---- 0.5
    done <"$root/running"
    ;;
domid)
    echo "domid $2" >>"$root/asked"
    . "$root/domid"
    grep -nx -- "$2" "$root/running"
    ;;
*)
    echo "$*" >>"$root/calls"
    . "$root/answer"
    ;;
esac
"""


class StartHost(Host):
    """A host with a fake xl that records its calls and behaves as a test says."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root)
        self.logs = root / "log"
        self.state = root / "run"
        self.running = root / "running"
        for directory in (self.logs, self.state, root / "bin"):
            directory.mkdir()
        self.running.touch()
        (root / "domid").touch()
        self.let_xl("exit 0")
        xl = root / "bin" / "xl"
        xl.write_text(XL.format(root=root))
        xl.chmod(0o755)
        self.places = {
            "XL_LOGS": self.logs,
            "LIBVIRT_LOGS": root / "libvirt-log",
            "LOGS_AT_BOOT": self.state / "xl-logs.json",
            "LOCKS": self.state / "start",
        }
        monkeypatch.setenv("PATH", f"{root}/bin:{os.environ['PATH']}")
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        for name, path in self.places.items():
            monkeypatch.setattr(xwd, name, str(path))

    def let_xl(self, script: str) -> None:
        """Set the script that xl runs to start a guest; $2 is the saved file, $4 the configuration."""
        (self.root / "answer").write_text(f"{script}\n")

    def before_domid(self, script: str) -> None:
        """Set a script that runs just before `xl domid` checks whether the guest is running."""
        (self.root / "domid").write_text(f"{script}\n")

    def calls(self) -> list[str]:
        """Return the calls that start guests."""
        file = self.root / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def log(self, name: str, text: str = "Waiting for domain web (domid 1) to die\n", age: float = 0.0) -> Path:
        """Create the log that xl writes when it starts a guest."""
        file = self.logs / f"xl-{name}.log"
        file.write_text(text)
        then = time.time() - age
        os.utime(file, (then, then))
        return file

    def start_process(self, *arguments: str, change: str = "", **how: Any) -> Running:
        """Start the command in a separate process, with short pauses."""
        code = "m.os.geteuid = lambda: 0\nm.START_PAUSE = 0.1\n"
        code += "".join(f"m.{name} = {str(path)!r}\n" for name, path in self.places.items())
        start = f"import {MODULE.stem} as m\n{code}{change}\nm.run()"
        return self.start("start", *arguments, program=(sys.executable, "-c", start), **how)


AGES = 10 * 365 * 86400.0


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartHost]:
    it = StartHost(tmp_path, monkeypatch)
    yield it
    it.end()


class Start:
    """The command, run in this process with a fake clock."""

    def __init__(self, host: StartHost, clock: FakeClock) -> None:
        self.host = host
        self.clock = clock

    def __call__(self, *guests: str, wait: float = 0.0, dry_run: bool = False) -> int:
        """Run the command and return the exit status."""
        arguments = ["--config", str(self.host.conf), "start", *guests]
        arguments += [f"--wait={wait}s"] if wait else []
        arguments += ["--dry-run"] if dry_run else []
        options = xwd.parse_arguments(arguments)
        settings = xwd.read_settings(str(self.host.conf))[0]
        watcher = self.host.watcher(self.clock, settings)
        journal = xwd.Journal(xwd.INFO, self.clock.messages, self.clock)
        return xwd.start_guests(watcher, options, journal, self.clock.now())

    @property
    def logged(self) -> str:
        return self.clock.logged


@pytest.fixture
def start(host: StartHost, clock: FakeClock) -> Start:
    return Start(host, clock)


def create(file: Path) -> str:
    return f"create --quiet --defconfig {file}"


def test_status_says_that_a_directory_was_never_there(host: StartHost, start: Start) -> None:
    host.auto.rmdir()
    host.auto.symlink_to("/nowhere")
    assert (start(), start(wait=5)) == (xwd.EXIT_TIMED_OUT, xwd.EXIT_TIMED_OUT)
    assert f"{host.auto}: is a link to /nowhere, which does not exist; its guests are unknown." in start.logged


# Which guests


def test_guest_that_is_down_is_created_as_by_xendomains(host: StartHost, start: Start) -> None:
    file = host.guest("web", host.image("web"))
    assert start() == xwd.EXIT_READY
    assert host.calls() == [create(file)]
    assert start.logged == "guest web has been started.\nGuests: 1 started.\n"


def test_xl_runs_in_its_own_session_without_input(host: StartHost, start: Start) -> None:
    host.guest("web", host.image("web"))
    host.let_xl(f"{{ pwd; readlink /proc/$$/fd/0; cut -d' ' -f6 /proc/$$/stat; }} >{host.root}/seen")
    start()
    directory, stdin, session = (host.root / "seen").read_text().split()
    assert (directory, stdin) == ("/", "/dev/null")
    assert int(session) != os.getsid(0)


def test_guests_with_all_disks_ready_start_one_after_another(host: StartHost, start: Start) -> None:
    host.let_xl(f"[ ! -e {host.root}/busy ] || exit 9; touch {host.root}/busy; sleep 0.1; rm {host.root}/busy")
    files = [host.guest(name, host.image(name)) for name in ("a", "b", "c")]
    assert start() == xwd.EXIT_READY
    assert host.calls() == [create(file) for file in files]


def test_guest_waiting_for_its_disk_does_not_delay_another(host: StartHost, start: Start) -> None:
    host.guest("a", host.images / "a")
    file = host.guest("b", host.image("b"))
    assert start() == xwd.EXIT_TIMED_OUT
    assert host.calls() == [create(file)]
    assert f"guest a is still waiting for {host.images}/a (does not exist).\n" in start.logged


def test_guest_whose_kernel_is_missing_is_not_started(host: StartHost, start: Start) -> None:
    image = host.image("a")
    (host.auto / "web").write_text(f'name="web"\nkernel="{host.images}/vmlinuz"\ndisk=["{image},raw,xvda,w"]\n')
    assert start() == xwd.EXIT_USAGE
    assert host.calls() == []
    assert f"guest web was not started: {host.auto}/web: {host.images}/vmlinuz does not exist" in start.logged


def test_running_guest_is_left_alone(host: StartHost, start: Start) -> None:
    host.guest("web", host.image("web"))
    host.running.write_text("web\n")
    assert start() == start("web") == xwd.EXIT_READY
    assert host.calls() == []
    assert "guest web is already running.\n" in start.logged


def test_running_guest_with_a_bad_configuration_is_left_alone(host: StartHost, start: Start) -> None:
    (host.auto / "web").write_text("broken\n")
    host.running.write_text("web\n")
    assert start() == xwd.EXIT_READY


@pytest.mark.promise("A guest that was shut down, was removed or may run on a peer stays down, unless it is named")
def test_guest_shut_down_since_boot_stays_down(host: StartHost, start: Start) -> None:
    host.guest("web", host.image("web"))
    host.log("web")
    assert start() == xwd.EXIT_READY
    assert host.calls() == []
    reason = "it has already been started since boot (try: xendomains-wait-disk start web)"
    assert start.logged == f"guest web is skipped: {reason}.\nGuests: 1 skipped.\n"


@pytest.mark.promise("A guest that was shut down, was removed or may run on a peer stays down, unless it is named")
def test_guest_shut_down_since_boot_starts_if_named(host: StartHost, start: Start) -> None:
    file = host.guest("web", host.image("web"))
    host.guest("db", host.image("db"))
    host.log("web")
    assert start("web") == xwd.EXIT_READY
    assert host.calls() == [create(file)]


@pytest.mark.parametrize(("text", "age"), [("before the boot\n", AGES), ("", 0.0)])
def test_old_or_rotated_log_does_not_keep_a_guest_down(host: StartHost, start: Start, text: str, age: float) -> None:
    host.guest("web", host.image("web"))
    host.log("web", text, age)
    start()
    assert len(host.calls()) == 1


@pytest.mark.promise("The clock was behind at boot")
def test_log_unchanged_since_boot_is_ignored_whatever_its_mtime(
    host: StartHost, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was behind at boot, so the log looks newer than the boot."""
    monkeypatch.setattr(xwd, "MAX_BOOT", AGES)
    host.guest("web", host.image("web"))
    host.log("web")
    xwd.record_logs()
    start()
    assert len(host.calls()) == 1


@pytest.mark.promise("The clock was behind at boot")
@pytest.mark.parametrize("age", [0.0, AGES])
def test_log_changed_since_boot_keeps_the_guest_down(
    host: StartHost, start: Start, monkeypatch: pytest.MonkeyPatch, age: float
) -> None:
    """Its mtime does not matter: the clock was behind when xendomains started the guest, and was set later."""
    monkeypatch.setattr(xwd, "MAX_BOOT", AGES)
    host.guest("web", host.image("web"))
    host.log("web", "before the boot\n", AGES)
    xwd.record_logs()
    host.log("web").rename(host.logs / "xl-web.log.1")
    host.log("web", age=age)
    start()
    assert host.calls() == []


def test_logs_are_recorded_once_per_boot_and_only_at_boot(host: StartHost, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = Path(xwd.LOGS_AT_BOOT)
    monkeypatch.setattr(xwd, "MAX_BOOT", 0.0)
    xwd.record_logs()
    assert not noted.exists()
    monkeypatch.setattr(xwd, "MAX_BOOT", AGES)
    xwd.record_logs()
    host.log("web")
    xwd.record_logs()
    assert noted.read_text() == "{}"


def test_wait_at_boot_records_the_logs(host: StartHost, monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    monkeypatch.setattr(xwd, "MAX_BOOT", AGES)
    status = host.log("web").stat()
    clock.wait(host)
    noted = json.loads(Path(xwd.LOGS_AT_BOOT).read_text())
    assert noted == {"web": [status.st_ino, status.st_size, status.st_mtime_ns]}


def test_damaged_record_of_logs_is_ignored(host: StartHost, start: Start) -> None:
    Path(xwd.LOGS_AT_BOOT).write_text("[1]")
    host.guest("web", host.image("web"))
    host.log("web")
    start()
    assert host.calls() == []


def test_settings_select_the_guests_that_start_late(host: StartHost, start: Start) -> None:
    host.configure("[late]\ndomains = web*, 10-db.cfg\n")
    files = [host.guest("db", host.image("db")).rename(host.auto / "10-db.cfg"), host.guest("web1", host.image("web"))]
    host.guest("other", host.image("other"))
    assert start() == xwd.EXIT_READY
    assert host.calls() == [create(file) for file in files]
    assert "guest other is skipped: it does not match [late] domains.\n" in start.logged
    assert start("other") == xwd.EXIT_READY
    assert len(host.calls()) == 3


def test_guest_ignored_at_boot_is_started_late(host: StartHost) -> None:
    host.configure("[ignore]\ndomains = web\n")
    host.guest("web", host.images / "web")
    with host.start_process("--wait") as running:
        running.wait_for("still waiting for ")
        host.image("web")
        running.end()
    assert len(host.calls()) == 1


@pytest.mark.parametrize("name", ["web", "10-web.cfg", "10-web"])
def test_guest_is_selected_by_its_name_or_file_name(host: StartHost, start: Start, name: str) -> None:
    file = host.guest("web", host.image("web")).rename(host.auto / "10-web.cfg")
    host.guest("db", host.image("db"))
    start(name)
    assert host.calls() == [create(file)]


def test_guest_name_takes_precedence_over_file_name(host: StartHost, start: Start) -> None:
    host.guest("db", host.image("db")).rename(host.auto / "web.cfg")
    file = host.guest("web", host.image("web")).rename(host.auto / "zz.cfg")
    start("web")
    assert host.calls() == [create(file)]


def test_unknown_name_starts_nothing(host: StartHost) -> None:
    host.guest("web", host.image("web"))
    result = host.start_process("web", "wbe").end()
    assert (result.status, host.calls()) == (xwd.EXIT_USAGE, [])
    assert (
        result.messages
        == "xendomains-wait-disk: 'wbe' is not the name of a guest that starts at boot (did you mean web?).\n"
    )


def test_unread_configuration_is_not_waited_for_if_the_name_is_known(host: StartHost, start: Start) -> None:
    host.guest("web", host.image("web"))
    (host.auto / "other").symlink_to("/nowhere")
    assert start("web") == xwd.EXIT_READY
    assert start.logged.endswith("Guests: 1 started.\n")


def test_guest_that_xl_would_reject_is_not_started(host: StartHost, start: Start) -> None:
    (host.auto / "web.cfg").write_text('name = "web"\ndisk = [\n')
    file = host.guest("db", host.image("db"))
    assert start() == xwd.EXIT_USAGE
    assert host.calls() == [create(file)]
    assert f"guest web.cfg was not started: {host.auto}/web.cfg: line 3: syntax error" in start.logged


def test_guest_that_xendomains_would_not_start_is_not_started(host: StartHost, start: Start) -> None:
    host.guest("my web", host.image("web"))
    assert start() == xwd.EXIT_USAGE
    assert host.calls() == []
    assert "cannot be started by xendomains, because its file name contains a blank" in start.logged


def test_copy_with_a_blank_in_its_file_name_does_not_keep_its_guest_down(host: StartHost, start: Start) -> None:
    file = host.guest("web", host.image("web"))
    file.with_name("web copy.cfg").write_text(file.read_text())
    assert start() == xwd.EXIT_READY
    assert host.calls() == [create(file)]


def test_guest_waits_only_for_its_own_disks(host: StartHost, start: Start) -> None:
    shared = host.images / "shared.iso"
    for name in ("a", "b", "c", "d"):
        host.guest(name, shared, host.images / name)
    assert start() == xwd.EXIT_TIMED_OUT
    assert (
        f"guest d is still waiting for {shared} (does not exist), {host.images}/d (does not exist).\n" in start.logged
    )


# Saved guests


@pytest.mark.promise("A saved guest is restored once and never created; an incomplete or outdated file is not used")
def test_saved_guest_is_restored_and_its_file_removed(host: StartHost, start: Start) -> None:
    host.guest("web", host.image("web"))
    file = host.saved("web", host.image("a"))
    host.let_xl("[ -e $2 ]")
    assert start() == xwd.EXIT_READY
    assert host.calls() == [f"restore {file}"]
    assert not file.exists()
    assert start.logged == "guest web has been restored.\nGuests: 1 restored.\n"


def test_saved_guest_that_fails_to_restore_keeps_its_file(host: StartHost, start: Start) -> None:
    host.guest("web", host.image("web"))
    file = host.saved("web", host.image("a"))
    host.let_xl("exit 2")
    assert start() == xwd.EXIT_USAGE
    assert host.calls() == [f"restore {file}"]
    assert file.exists()


@pytest.mark.promise("A saved guest is restored once and never created; an incomplete or outdated file is not used")
@pytest.mark.parametrize("name", ["", "web01", "web.cfg", "web"])
def test_guest_waiting_to_be_restored_is_not_created(host: StartHost, start: Start, name: str) -> None:
    host.guest("web01", host.image("web")).rename(host.auto / "web.cfg")
    host.saved("web01", host.images / "a")
    assert start(*[name] if name else []) == xwd.EXIT_TIMED_OUT
    assert host.calls() == []
    assert f"guest web01 is still waiting for {host.images}/a (does not exist).\n" in start.logged


@pytest.mark.promise("A saved guest is restored once and never created; an incomplete or outdated file is not used")
@pytest.mark.parametrize("name", ["", "web"])
def test_incomplete_saved_guest_is_neither_restored_nor_created(host: StartHost, start: Start, name: str) -> None:
    host.guest("web", host.image("web"))
    file = host.saved("web", host.image("a"))
    os.truncate(file, file.stat().st_size - len(xwd.SAVED_END))
    assert start(*[name] if name else []) == xwd.EXIT_USAGE
    assert host.calls() == []
    assert f"guest web was not started: {file}: is incomplete, because saving failed or was interrupted" in start.logged


@pytest.mark.promise("A saved guest is restored once and never created; an incomplete or outdated file is not used")
def test_saved_guest_older_than_its_last_start_is_not_used(host: StartHost, start: Start) -> None:
    host.guest("web", host.image("web"))
    file = host.saved("web", host.image("a"))
    os.utime(file, (time.time() - AGES, time.time() - AGES))
    host.log("web", age=AGES - 2 * xwd.MAX_SAVE_END)
    assert start() == start("web") == xwd.EXIT_USAGE
    assert host.calls() == []
    assert (
        f"guest web was not started: {file} is older than the guest's last start (to discard it: rm {file}).\n"
        in start.logged
    )


def test_check_reports_saved_guest_older_than_its_last_start(host: StartHost) -> None:
    file = host.saved("web", host.image("a"))
    host.saved("db", host.image("b"))
    os.utime(file, (time.time() - AGES, time.time() - AGES))
    host.log("web")
    (finding,) = xwd.check_saved(host.watcher().look(math.inf))
    problem = "is older than the guest's last start, so restoring it would damage the guest's disks"
    assert (finding.file, finding.problem, finding.fix) == (str(file), problem, f"rm {file}")


def test_check_reports_guest_that_was_saved_twice(host: StartHost) -> None:
    first = host.saved("web", host.image("a"))
    second = first.with_name("web-2")
    second.write_bytes(first.read_bytes())
    os.utime(first, (0, 0))
    (finding,) = xwd.check_saved(host.watcher().look(math.inf))
    assert (finding.file, finding.guest) == (str(second), "web")
    assert finding.problem == f"{first} is the same guest, which can be restored only once"
    assert finding.fix == f"remove the older file, {first}"


def test_saved_guest_whose_end_was_logged_just_after_saving_is_used(host: StartHost, start: Start) -> None:
    file = host.saved("web", host.image("a"))
    os.utime(file, (time.time() - AGES, time.time() - AGES))
    host.log("web", age=AGES - 2)
    assert start() == xwd.EXIT_READY
    assert not file.exists()


def test_saved_guest_newer_than_its_last_start_is_used(host: StartHost, start: Start) -> None:
    file = host.saved("web", host.image("a"))
    os.utime(file, (time.time() - AGES + 60, time.time() - AGES + 60))
    host.log("web", age=AGES)
    start()
    assert host.calls() == [f"restore {file}"]


def test_saved_guest_is_used_only_if_xendomains_restores(host: StartHost) -> None:
    host.settings.write_text(host.settings.read_text().replace("=true", "=false"))
    host.guest("web", host.image("web"))
    host.saved("web", host.images / "web")
    host.start_process().end()
    assert len(host.calls()) == 1


def test_no_guest_is_created_while_saved_guests_are_unknown(host: StartHost, start: Start) -> None:
    host.guest("web", host.image("web"))
    host.save.rmdir()
    host.save.symlink_to("/nowhere")
    assert start() == xwd.EXIT_TIMED_OUT
    assert host.calls() == []
    assert f"guest web is still waiting for {host.save} (" in start.logged


def test_unread_saved_file_does_not_block_guests_of_other_names(host: StartHost, start: Start) -> None:
    file = host.guest("web", host.image("web"))
    (host.save / "db").symlink_to("/nowhere")
    assert start() == xwd.EXIT_TIMED_OUT
    assert host.calls() == [create(file)]


# DRBD


@pytest.fixture
def shared(host: StartHost, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DRBD disk of guest web that is Secondary here and Primary on the peer, with allow-two-primaries."""
    for name in ("SYS", "RUN", "PROC", "ETC"):
        monkeypatch.setattr(xwd, name, str(host.root / name))
    device = host.root / "SYS" / "devices" / "drbd1"
    for path in (device, host.root / "SYS" / "dev" / "block", host.root / "ETC" / "drbd.d", host.root / "PROC"):
        path.mkdir(parents=True)
    (device / "size").write_text("65536\n")
    (host.root / "PROC" / "drbd").write_text(
        "version: 8.4.11 (api:1/proto:86-101)\n 1: cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate C r-----\n"
    )
    (host.root / "ETC" / "drbd.conf").write_text("resource web { net { allow-two-primaries; } device /dev/drbd1; }\n")
    return device


@pytest.mark.promise("A guest that was shut down, was removed or may run on a peer stays down, unless it is named")
@pytest.mark.parametrize(("named", "ready"), [(False, False), (True, True)])
def test_guest_that_may_run_on_the_peer_starts_only_if_named(shared: Path, named: bool, ready: bool) -> None:
    facts = xwd.StorageFacts(shares=named)
    problem = xwd.check_drbd_role("drbd1", xwd.Required(promotes=True), facts)
    assert (problem is None) == ready
    assert ready or (problem and problem.reason == "DRBD is Secondary, and its peer is Primary")


def test_naming_guests_lets_the_disk_check_allow_sharing(host: StartHost) -> None:
    """main() passes this on to the watcher."""
    host.guest("web", host.image("web"))
    code = "was = m.check_disk\ndef look(required, facts):\n    print(facts.shares)\n    return was(required, facts)\n"
    for names, shares in ((), "False"), (("web",), "True"):
        result = host.start_process("--dry-run", *names, change=f"{code}m.check_disk = look").end()
        assert shares in result.output.splitlines()


# Waiting


@pytest.mark.promise("xendomains-late starts a guest when its disk appears, and delays no other guest")
def test_each_guest_starts_when_its_own_disk_appears(host: StartHost) -> None:
    files = [host.guest(name, host.images / name) for name in ("a", "b")]
    with host.start_process("--wait") as running:
        running.wait_for(f"still waiting for {host.images}/a for a... (does not exist)")
        assert host.calls() == []
        host.image("b")
        running.wait_for("guest b has been started.")
        assert host.calls() == [create(files[1])]
        host.image("a")
        result = running.end()
    assert result.status == xwd.EXIT_READY
    assert host.calls() == [create(files[1]), create(files[0])]
    assert f"disk {host.images}/a found (after " in result.messages
    assert result.messages.endswith("guest a has been started.\nGuests: 2 started.\n")


@pytest.mark.promise("xendomains-late starts a guest when its disk appears, and delays no other guest")
def test_event_ends_the_pause(host: StartHost, start: Start, events: Events) -> None:
    host.guest("web", host.images / "web")

    def come() -> None:
        host.image("web")
        events.happen()

    start.clock.at(201, come)
    assert start(wait=600) == xwd.EXIT_READY
    assert start.clock.seconds < 202


def test_disk_without_an_event_is_noticed_at_the_next_look(host: StartHost, start: Start) -> None:
    host.guest("web", host.images / "web")
    start.clock.at(201, lambda: host.image("web"))
    assert start(wait=600) == xwd.EXIT_READY
    assert start.clock.seconds < 201 + xwd.START_PAUSE + 1


def test_wait_with_a_time_limit_ends(host: StartHost, start: Start) -> None:
    host.guest("web", host.images / "web")
    assert start(wait=60) == xwd.EXIT_TIMED_OUT
    assert 60 <= start.clock.seconds < 62
    assert start.logged.endswith(
        f"guest web is still waiting for {host.images}/web (does not exist).\nGuests: 1 waiting.\n"
    )


def test_wait_option_does_not_take_a_guest_name_as_its_value(host: StartHost) -> None:
    host.guest("web", host.image("web"))
    host.guest("db", host.images / "db")
    assert host.start_process("--wait", "web").end().status == xwd.EXIT_READY
    assert host.start_process("--wait=100ms", "db").end().status == xwd.EXIT_TIMED_OUT


def test_guest_started_by_hand_during_the_wait_is_left_alone(host: StartHost, start: Start) -> None:
    host.guest("web", host.images / "web")

    def start_and_shut_down() -> None:
        host.log("web")
        host.image("web")

    start.clock.at(30, start_and_shut_down)
    assert start(wait=600) == xwd.EXIT_READY
    assert host.calls() == []
    assert start.clock.seconds < 60


def test_missing_configuration_is_waited_for(host: StartHost, start: Start) -> None:
    later = host.root / "later"
    (host.auto / "10.cfg").symlink_to(later)
    start.clock.at(30, lambda: host.guest("web", host.image("web")).rename(later))
    assert start(wait=600) == xwd.EXIT_READY
    assert host.calls() == [create(host.auto / "10.cfg")]


def test_guest_whose_configuration_is_removed_during_the_wait_is_not_started(host: StartHost, start: Start) -> None:
    file = host.guest("web", host.images / "web")
    start.clock.at(30, file.unlink)
    start.clock.at(30, lambda: host.image("web"))
    assert start(wait=600) == xwd.EXIT_READY
    assert host.calls() == []
    assert start.clock.seconds < 60


def test_vanished_disk_is_noticed_before_the_start(host: StartHost, start: Start) -> None:
    """One disk appears late; the other was ready at first, but has vanished in the meantime."""
    host.guest("web", host.image("a"), host.images / "b")

    def swap() -> None:
        (host.images / "a").unlink()
        host.image("b")

    start.clock.at(30, swap)
    assert start(wait=60) == xwd.EXIT_TIMED_OUT
    assert host.calls() == []
    assert f"guest web is still waiting for {host.images}/a (does not exist).\n" in start.logged


def test_systemd_gets_status_of_the_wait(host: StartHost, tmp_path: Path) -> None:
    host.guest("web", host.images / "web")
    with (
        Receiver(tmp_path / "notify") as systemd,
        host.start_process("--wait", NOTIFY_SOCKET=systemd.address) as running,
    ):
        status = systemd.receive_status()
        assert f"STATUS=Waiting for 1 disk of 1 guest: {host.images}/web for web (does not exist)" in status
        assert all(line.startswith(("STATUS=", "EXTEND_TIMEOUT_USEC=")) for line in status.splitlines())
        running.kill()


# Failures of xl


def test_failure_message_of_xl_is_reported(host: StartHost, start: Start) -> None:
    file = host.guest("web", host.image("web"))
    host.let_xl("echo 'libxl: error: no memory' >&2; echo 'more'; exit 3")
    assert start() == xwd.EXIT_USAGE
    command = f"`xl create --quiet --defconfig {file}`"
    words = "libxl: error: no memory; more"
    assert f"guest web could not be started: {command} failed with status 3: {words}.\n" in start.logged


def test_message_of_xl_from_an_earlier_try_is_not_reported(host: StartHost, start: Start) -> None:
    host.guest("web", host.image("web"))
    host.let_xl("echo once >&2; exit 3")
    start()
    host.let_xl("exit 4")
    start()
    assert start.logged.count("once") == 1


@pytest.mark.promise("xl fails to start a guest, or is killed")
def test_failed_start_is_retried_at_growing_intervals_and_then_given_up(host: StartHost, start: Start) -> None:
    host.guest("web", host.image("web"))
    host.let_xl("exit 3")
    tried: list[float] = []
    was = xwd.start_guest

    def note(guest: xwd.Guest, watcher: xwd.Watcher, limit: float) -> xwd.Outcome:
        tried.append(start.clock.seconds)
        return was(guest, watcher, limit)

    xwd.start_guest = note
    try:
        assert start(wait=7 * 86400) == xwd.EXIT_USAGE
    finally:
        xwd.start_guest = was
    pauses = [later - earlier for earlier, later in zip(tried, tried[1:])]
    assert [round(pause) for pause in pauses] == [30, 120, 600]
    assert "guest web is still waiting for another attempt in 2min, because `xl create " in start.logged
    assert start.logged.endswith("(no further attempts).\nGuests: 1 failed.\n")


def test_second_try_may_succeed(host: StartHost, start: Start) -> None:
    host.guest("web", host.image("web"))
    host.let_xl(f"[ -e {host.root}/tried ] || {{ touch {host.root}/tried; exit 1; }}")
    assert start(wait=600) == xwd.EXIT_READY
    assert start.logged.endswith("guest web has been started.\nGuests: 1 started.\n")


def test_failed_start_is_not_retried_without_wait(host: StartHost, start: Start) -> None:
    host.guest("web", host.image("web"))
    host.let_xl("exit 3")
    assert start() == xwd.EXIT_USAGE
    assert len(host.calls()) == 1


@pytest.mark.promise("xl fails to start a guest, or is killed")
def test_failed_start_is_retried_at_once_when_a_disk_comes_back(host: StartHost, start: Start, events: Events) -> None:
    host.guest("web", host.image("web"))
    host.let_xl(f"[ -e {host.root}/fixed ]")

    def go() -> None:
        (host.images / "web").unlink()
        events.happen()

    def come_back() -> None:
        host.image("web")
        (host.root / "fixed").touch()
        events.happen()

    start.clock.at(5, go)
    start.clock.at(8, come_back)
    assert start(wait=600) == xwd.EXIT_READY
    assert start.clock.seconds < 9


def test_retry_does_not_delay_another_guest(host: StartHost, start: Start) -> None:
    host.guest("a", host.image("a"))
    file = host.guest("b", host.image("b"))
    host.let_xl('case "$4" in */a.cfg) exit 1 ;; esac')
    start(wait=20)
    assert host.calls()[1] == create(file)
    assert "guest a is still waiting for another attempt in 30s, because `xl create " in start.logged


def test_guest_has_failed_if_time_is_up_before_the_next_try(host: StartHost, start: Start) -> None:
    file = host.guest("web", host.image("web"))
    host.let_xl("exit 3")
    assert start(wait=20) == xwd.EXIT_USAGE
    last = f"guest web could not be started: `xl create --quiet --defconfig {file}` failed with status 3: .\n"
    assert start.logged.endswith(f"{last}Guests: 1 failed.\n")


@pytest.mark.promise("xl hangs")
def test_hanging_xl_is_reported_and_does_not_delay_the_others(host: StartHost) -> None:
    first, second = host.guest("a", host.image("a")), host.guest("b", host.image("b"))
    host.let_xl('case "$4" in */a.cfg) sleep 1000 ;; esac')
    with host.start_process("--wait", change="m.MAX_TURN = 1.0") as running:
        running.wait_for(f"waiting for `xl create --quiet --defconfig {first}`, which is still running after 1s.\n")
        running.wait_for("guest b has been started.\n")
    assert host.calls() == [create(first), create(second)]
    # It may still succeed, and until then no other process starts the guest.
    assert is_locked(host, "a") and not is_locked(host, "b")
    again = host.start_process("a").end()
    assert again.status == xwd.EXIT_TIMED_OUT
    assert "guest a is still waiting for another process, which is starting it.\n" in again.messages
    end_of_xl(host)


def test_xl_has_30_seconds_with_wait_and_10_minutes_without() -> None:
    assert (xwd.MAX_TURN, xwd.MAX_XL) == (30, 600)


def test_late_success_of_xl_is_reported(host: StartHost) -> None:
    host.guest("web", host.image("web"))
    host.let_xl(f"while [ ! -e {host.root}/done ]; do sleep 0.05; done")
    host.before_domid(f"[ ! -e {host.root}/done ] || exit 0")  # then the guest is running
    with host.start_process("--wait", change="m.MAX_TURN = 0.6") as running:
        running.wait_for("which is still running")
        (host.root / "done").touch()
        result = running.end()
    assert (result.status, len(host.calls())) == (xwd.EXIT_READY, 1)
    assert "guest web has been started.\n" in result.messages


def test_success_is_reported_however_often_xl_was_still_running(
    host: StartHost, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.guest("web", host.image("web"))
    in_progress = ("waiting", "xl, which is still running", True)
    held = ("waiting", "another process, which is starting it", False)
    answers = iter([in_progress, held, held, ("running", "", False)])
    monkeypatch.setattr(xwd, "start_guest", lambda guest, *others: xwd.Outcome(guest, *next(answers)))
    assert start(wait=600) == xwd.EXIT_READY
    assert "guest web has been started.\n" in start.logged
    assert "another process" not in start.logged


def test_late_failure_of_xl_is_reported(host: StartHost) -> None:
    host.guest("web", host.image("web"))
    host.let_xl(f"while [ ! -e {host.root}/done ]; do sleep 0.05; done; echo no memory; exit 5")
    with host.start_process("--wait", change="m.MAX_TURN = 0.6\nm.RETRIES = ()") as running:
        running.wait_for("which is still running")
        (host.root / "done").touch()
        result = running.end()
    assert "failed with status 5: no memory" in result.messages
    assert len(host.calls()) == 1


def test_refused_guest_does_not_fail_a_wait_for_the_others(host: StartHost, start: Start) -> None:
    host.configuration("broken.cfg", "broken\n")
    assert start(wait=60) == xwd.EXIT_READY
    assert "guest broken.cfg was not started: " in start.logged
    assert start() == start("broken.cfg", wait=60) == xwd.EXIT_USAGE


@pytest.mark.promise("xl fails to start a guest, or is killed")
def test_killed_xl_counts_as_a_failure(host: StartHost, start: Start) -> None:
    host.guest("web", host.image("web"))
    host.let_xl("kill -9 $$")
    assert start() == xwd.EXIT_USAGE
    assert re.search(r"guest web could not be started: .* failed with status (-9|137): ", start.logged)


def is_locked(host: StartHost, name: str) -> bool:
    with (host.state / "start" / name).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def end_of_xl(host: StartHost) -> None:
    """Kill the processes left behind by xl, which have the lock open."""
    for link in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            if os.readlink(link).startswith(str(host.state)):
                os.kill(int(link.parts[2]), signal.SIGKILL)
        except OSError:
            continue


# Concurrent starts


@pytest.mark.promise("No guest is started twice")
def test_guest_being_started_by_another_process_is_not_started(host: StartHost) -> None:
    host.guest("web", host.image("web"))
    host.let_xl(f"touch {host.root}/begun; until [ -e {host.root}/go ]; do sleep 0.05; done; echo web >>{host.running}")
    with host.start_process("--wait") as first, host.start_process("--wait") as second:
        wait_until((host.root / "begun").exists)
        assert host.start_process().end().status == xwd.EXIT_TIMED_OUT
        (host.root / "go").touch()
        results = [first.end(), second.end()]
    assert [result.status for result in results] == [xwd.EXIT_READY] * 2
    assert len(host.calls()) == 1
    ends = sorted(result.messages.splitlines()[-1] for result in results)
    assert ends == ["Guests: 1 running.", "Guests: 1 started."]


@pytest.mark.promise("No guest is started twice")
def test_running_state_is_checked_under_the_lock(host: StartHost, start: Start) -> None:
    """The guest was not running at the time of xl list, but has been started since then."""
    host.guest("web", host.image("web"))
    host.before_domid(f"flock --nonblock {host.state}/start/web true || echo web >>{host.running}")
    assert start() == xwd.EXIT_READY
    assert host.calls() == []
    assert "guest web is already running.\n" in start.logged


def test_lock_works_for_names_that_are_not_valid_file_names(host: StartHost, start: Start) -> None:
    (host.auto / "web").write_text('name = "a/../b c"\n')
    assert start() == xwd.EXIT_READY
    assert os.listdir(host.state / "start") == ["a_.._b c"]


def test_guest_whose_lock_cannot_be_opened_does_not_keep_others_down(host: StartHost, start: Start) -> None:
    host.guest("a", host.image("a"))
    file = host.guest("b", host.image("b"))
    (host.state / "start" / "a").mkdir(parents=True)
    assert start() == xwd.EXIT_USAGE
    assert host.calls() == [create(file)]
    problem = f"its lock in {host.state}/start cannot be taken (Is a directory)"
    assert f"guest a could not be started: {problem}.\n" in start.logged


# Signals


@pytest.mark.promise("No guest is started twice")
def test_signal_ends_the_command_and_xl_keeps_running(host: StartHost) -> None:
    host.guest("web", host.images / "other")
    file = host.saved("web", host.image("web"))
    host.let_xl(f"touch {host.root}/begun; until [ -e {host.root}/go ]; do sleep 0.05; done; echo done; echo bad >&2")
    with host.start_process("--wait") as running:
        wait_until((host.root / "begun").exists)
        running.signal(signal.SIGTERM)
        assert running.end().status == -signal.SIGTERM
    assert is_locked(host, "web")
    (host.root / "go").touch()
    wait_until(lambda: not file.exists())
    wait_until(lambda: not is_locked(host, "web"))


@pytest.mark.parametrize("step", ["list", "domid", "wait", "look", "start", "journal"])
def test_signal_ends_the_command_at_every_step(host: StartHost, step: str) -> None:
    host.guest("web", host.images / "web" if step == "wait" else host.image("web"))
    with full_pipe() as (_, full):
        options = {"stderr": full} if step == "journal" else None
        if step == "list":
            (host.root / "xenstored-hangs").touch()
        if step in ("domid", "start"):
            hang = f"touch {host.root}/begun; exec sleep 1000"
            (host.before_domid if step == "domid" else host.let_xl)(hang)
        change = (
            f"def hang(*_, **__): open({str(host.root / 'begun')!r}, 'w'); m.time.sleep(1000)\nm.read_guest = hang\n"
        )
        with host.start_process("--wait", change=change if step == "look" else "", options=options) as running:
            if step in ("domid", "start", "look"):
                wait_until((host.root / "begun").exists)
            elif step == "wait":
                running.wait_for("still waiting")
            else:
                wait_until(lambda: handles(running.pid, signal.SIGTERM))
                time.sleep(0.2)
            sent = time.monotonic()
            running.signal(signal.SIGTERM)
            running.process.wait(60)
            assert running.process.returncode == -signal.SIGTERM or step == "journal"
            assert time.monotonic() - sent < 30
    end_of_xl(host)


def test_stuck_journal_delays_no_guest(host: StartHost) -> None:
    files = [host.guest(name, host.image(name)) for name in ("a", "b")]
    with full_pipe() as (_, full), host.start_process(options={"stderr": full}) as running:
        assert running.process.wait(60) == xwd.EXIT_READY
    assert host.calls() == [create(file) for file in files]


def test_hung_file_system_delays_no_other_guest(host: StartHost) -> None:
    with hung_file_system(host.root / "hung") as hung:
        host.guest("a", hung / "disk")
        files = [host.guest(name, host.image(name)) for name in ("b", "c")]
        result = host.start_process().end()
    assert result.status == xwd.EXIT_TIMED_OUT
    assert host.calls() == [create(file) for file in files]
    assert "(no response; is its file server down?)" in result.messages


# Errors


def test_start_requires_root(host: StartHost) -> None:
    result = host.start_process(change="m.os.geteuid = lambda: 1000").end()
    assert result.status == xwd.EXIT_USAGE
    assert result.messages == "xendomains-wait-disk: start must be run as root.\n"


@pytest.mark.parametrize("without", ["xl", "hypervisor"])
def test_missing_xl_or_xen_is_reported(host: StartHost, without: str) -> None:
    host.guest("web", host.image("web"))
    if without == "xl":
        (host.root / "bin" / "xl").unlink()
    else:
        (host.root / "no-xen").touch()
    result = host.start_process().end()
    assert result.status == xwd.EXIT_USAGE
    assert result.messages.startswith(
        "xendomains-wait-disk: `xl list` fails, so no guest can be started (is xl installed, "
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["list", "--dry-run"], "unrecognized arguments: --dry-run"),
        (["wait", "--wait"], "unrecognized arguments: --wait"),
        (["start", "--dry-run", "--wait"], "--dry-run cannot be combined with --wait"),
        (["start", "--wait=soon"], "is not a time span: 'soon'"),
    ],
)
def test_wrong_usage_is_rejected(host: StartHost, arguments: list[str], error: str) -> None:
    result = host.run(*arguments)
    assert result.status == xwd.EXIT_USAGE
    assert error in result.messages


def test_output_of_xl_may_be_invalid_utf8() -> None:
    """The name of a guest may be; the other guests are started anyway."""
    assert xwd.output_of("printf", r"b\374ro 1 256 1 -b---- 0.1\n") == "b\udcfcro 1 256 1 -b---- 0.1\n"


# Output


def test_dry_run_prints_shell_commands_and_starts_nothing(host: StartHost) -> None:
    first = host.guest("a", host.image("a")).rename(host.auto / "it's.cfg")
    saved = host.saved("b", host.image("b"))
    (host.auto / "c.cfg").write_text(f'name = "c\\n"\ndisk = ["{host.images}/c,raw,xvda,w"]\n')
    result = host.start_process("--dry-run").end()
    assert result.status == xwd.EXIT_TIMED_OUT
    assert host.calls() == []
    assert not (host.state / "start").exists()
    assert result.output.splitlines() == [
        f"xl restore {saved} && rm {saved}",
        f"xl create --quiet --defconfig {shlex.quote(str(first))}",
        f"# guest c\\n is still waiting for {host.images}/c (does not exist).",
    ]
    subprocess.run(["bash", "-e"], input=result.output, text=True, check=True)
    assert host.calls() == [f"restore {saved}", create(first)]
    assert not saved.exists()


@pytest.mark.parametrize("name", ["a\033[31m", "line\nbreak", "back\\slash\n'", os.fsdecode(b"\xff"), "日本\u202e"])
def test_command_can_be_printed_and_starts_any_file(host: StartHost, name: str) -> None:
    file = host.guest("web", host.image("a")).rename(host.save.parent / name)
    guest = xwd.Guest(xwd.Domain("web", str(file), "auto"))
    command = xwd.start_command(guest)
    assert command.isprintable()
    subprocess.run(["bash", "-c", command], check=True)
    assert (host.root / "calls").read_bytes() == os.fsencode(f"{create(file)}\n")


def test_text_that_is_no_path_can_be_quoted_too() -> None:
    assert xwd.shell_word("a\ud800\udfff\udcff") == r"$'a\134ud800\134udfff\134udcff'"


def test_command_that_cannot_be_run_has_failed(host: StartHost, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    host.guest("web", host.image("web"))
    monkeypatch.setattr(xwd, "BASH", "/nowhere/bash")
    assert start() == xwd.EXIT_USAGE
    assert "cannot be run (No such file or directory)" in start.logged


def test_quiet_start_prints_only_guests_that_are_not_started(host: StartHost) -> None:
    host.guest("a", host.image("a"))
    host.guest("b", host.images / "b")
    result = host.start_process("--quiet").end()
    assert result.messages == f"guest b is still waiting for {host.images}/b (does not exist).\n"


def test_start_without_settings_of_xendomains_is_no_success(host: StartHost) -> None:
    host.settings.unlink()
    assert host.start_process("--json").end().status == xwd.EXIT_NO_XENDOMAINS


def test_json_has_one_record_per_guest(host: StartHost) -> None:
    file = host.guest("a", host.image("a"))
    other = host.guest("b", host.images / "b")
    result = host.start_process("--json").end()
    assert json.loads(result.output) == {
        "version": 1,
        "guests": [
            {
                "name": "a",
                "kind": "auto",
                "source": str(file),
                "start": "create",
                "result": "started",
                "reason": None,
                "command": f"xl create --quiet --defconfig {file}",
            },
            {
                "name": "b",
                "kind": "auto",
                "source": str(other),
                "start": "create",
                "result": "waiting",
                "reason": f"{host.images}/b (does not exist)",
                "command": f"xl create --quiet --defconfig {other}",
            },
        ],
    }


def test_no_guests_to_start_is_reported(host: StartHost, start: Start) -> None:
    assert start() == xwd.EXIT_READY
    assert start.logged == "Guests: none.\n"


def test_service_reports_only_the_number_of_running_guests(host: StartHost, start: Start) -> None:
    for name in ("a", "b"):
        host.guest(name, host.image(name))
    host.running.write_text("a\nb\n")
    assert start(wait=60) == xwd.EXIT_READY
    assert start.clock.seconds == 0
    assert start.logged == "Guests: 2 running.\n"


# Cost


def test_idle_wait_for_many_guests_does_little_work(host: StartHost, start: Start) -> None:
    """It rarely reads files or looks for reasons. (tests/bench measures the CPU time.)"""
    for number in range(100):
        host.guest(f"g{number}", f"/dev/no-such/{number}")
    counts = {"read": 0, "explain": 0, "check": 0}
    was = xwd.BlockingCalls.run

    def count(self: Any, purpose: str, calls: Any, *rest: Any, **more: Any) -> Any:
        if purpose in counts:
            counts[purpose] += len(calls)
        return was(self, purpose, calls, *rest, **more)

    xwd.BlockingCalls.run = count  # type: ignore[method-assign]
    try:
        start(wait=60)
        begun = dict(counts)
        start(wait=660)
    finally:
        xwd.BlockingCalls.run = was  # type: ignore[method-assign]
    in_ten_minutes = {purpose: counts[purpose] - 2 * begun[purpose] for purpose in counts}
    assert in_ten_minutes["read"] <= 600
    assert in_ten_minutes["explain"] <= 600
    assert in_ten_minutes["check"] == 0


def test_json_matches_its_schema(host: StartHost) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="python3-jsonschema is not installed")
    for number in range(3):
        host.guest(f"g{number}", host.image(f"{number}"))
    host.guest("my web", host.image("web"))
    host.running.write_text("g0\n")
    host.log("g1")
    printed = json.loads(host.start_process("--json").end().output)
    schema = json.loads((MODULE.parent / "schema" / "start.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(printed)
    assert {row["result"] for row in printed["guests"]} == {"running", "skipped", "started", "refused"}
    row = schema["properties"]["guests"]["items"]
    assert set(row["properties"]) == set(row["required"]) == set(printed["guests"][0])
    assert row["properties"]["result"]["enum"] == list(xwd.OUTCOMES)
