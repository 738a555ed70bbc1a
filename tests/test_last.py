# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The record of a wait, which the command last shows, and its summary in the journal; also, selected guests."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import FakeClock, Host, Journald, Result, clean_environment, vdev, wait_until, waiting

import xendomains_wait_disk as xwd


@pytest.fixture
def run_directory(host: Host) -> Path:
    """The runtime directory that systemd creates for the service."""
    directory = host.root / "run"
    directory.mkdir()
    return directory


@pytest.fixture
def record_path(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the record, also for a wait in this process."""
    monkeypatch.setattr(xwd, "LAST_WAIT", str(run_directory / "last.json"))
    return run_directory / "last.json"


def read(record_path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(record_path.read_text())
    return record


def show(host: Host, run_directory: Path, *arguments: str) -> Result:
    return host.run("last", *arguments, RUNTIME_DIRECTORY=str(run_directory))


@pytest.mark.promise("The outcome of a wait can be shown later, and is summed up in one journal message")
def test_wait_leaves_a_record_of_its_outcome(host: Host, clock: FakeClock, record_path: Path) -> None:
    host.guest("web", host.image("a"), host.images / "b", host.images / "c")
    host.guest("db", host.images / "b")
    host.configuration("zz", "what is this\n")
    clock.at(7, lambda: host.image("b"))
    clock.wait(host, timeout=20)
    record = read(record_path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", record.pop("started"))
    assert record.pop("boot_id") == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    db, web, zz = record.pop("guests")
    found = [disk.pop("found_after") for guest in (db, web) for disk in guest["disks"]]
    assert found[0] == found[2] and 7 <= found[0] <= 8
    assert [found[1], found[3]] == [None, None]
    assert record == {
        "version": 1,
        "waited": 20,
        "timeout": 20,
        "result": "timeout",
        "directories": [],
    }
    ready = {"state": "ready", "reason": None, "hint": None}
    missing = {"state": "missing", "reason": "does not exist", "hint": None}
    refused = {"state": "refused", "reason": "line 1: syntax error near 'is', expected = or +=", "hint": None}

    def guest(name: str, file: str, state: dict[str, Any], **disks: dict[str, Any]) -> dict[str, Any]:
        paths = [f"{host.images}/{disk}" for disk in disks]
        rows = [
            {"vdev": vdev(number), "target": path, "path": path, **row}
            for number, (path, row) in enumerate(zip(paths, disks.values()))
        ]
        about = {"name": name, "kind": "auto", "source": f"{host.auto}/{file}", "start": "create"}
        return {**about, **state, "disks": rows, "boot_files": []}

    assert db == guest("db", "db.cfg", ready, b=ready)
    assert web == guest("web", "web.cfg", missing, a=ready, b=ready, c=missing)
    assert zz == guest("zz", "zz", refused)


def test_disk_that_vanished_is_not_recorded_as_found(host: Host, clock: FakeClock, record_path: Path) -> None:
    host.guest("web", host.images / "a", host.images / "b")
    clock.at(3, lambda: host.image("a"))
    clock.at(9, lambda: (host.images / "a").unlink())
    clock.wait(host, timeout=20)
    assert [disk["found_after"] for disk in read(record_path)["guests"][0]["disks"]] == [None, None]


def test_configuration_missing_at_the_end_is_in_the_record(host: Host, clock: FakeClock, record_path: Path) -> None:
    (host.auto / "web.cfg").symlink_to("/nowhere/web.cfg")
    clock.wait(host, timeout=20)
    (guest,) = read(record_path)["guests"]
    assert (guest["source"], guest["name"], guest["state"]) == (f"{host.auto}/web.cfg", "web.cfg", "missing")


@pytest.mark.parametrize("present", [True, False])
def test_record_is_written_when_ready_and_at_the_timeout(host: Host, run_directory: Path, present: bool) -> None:
    host.guest("web", host.image("a") if present else host.images / "a")
    host.run("--timeout", "0", RUNTIME_DIRECTORY=str(run_directory))
    assert read(run_directory / "last.json")["result"] == ("ready" if present else "timeout")
    assert [file.name for file in run_directory.iterdir()] == ["last.json"]


@pytest.mark.promise("The outcome of a wait can be shown later, and is summed up in one journal message")
def test_record_is_written_when_a_signal_ends_the_wait(host: Host, run_directory: Path) -> None:
    host.guest("web", host.images / "a")
    with waiting(host, RUNTIME_DIRECTORY=str(run_directory)) as running:
        running.signal(signal.SIGTERM)
        assert running.end().status == -signal.SIGTERM
    assert read(run_directory / "last.json")["result"] == "stopped"


def test_wait_run_by_hand_keeps_the_record_of_the_boot(
    host: Host, clock: FakeClock, record_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the service gets the runtime directory from systemd."""
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    host.guest("web", host.image("a"))
    clock.wait(host)
    assert not record_path.exists()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(record_path.parent))
    clock.wait(host)
    assert record_path.exists()


def test_wait_for_some_guests_keeps_the_record_of_all(host: Host, run_directory: Path) -> None:
    host.guest("web", host.image("a"))
    host.run("wait", "web", RUNTIME_DIRECTORY=str(run_directory))
    assert list(run_directory.iterdir()) == []


def test_reader_sees_either_old_or_new_record(host: Host, run_directory: Path) -> None:
    (run_directory / "last.json").write_text("the one before")
    host.guest("web", host.image("a"))
    with (run_directory / "last.json").open() as before:
        host.run(RUNTIME_DIRECTORY=str(run_directory))
        assert before.read() == "the one before"
    assert read(run_directory / "last.json")["result"] == "ready"


def test_two_waits_ending_together_leave_one_complete_record(run_directory: Path) -> None:
    record = {"disks": ["x" * 10_000]}
    program = f"import xendomains_wait_disk as xwd\nfor _ in range(300):\n    xwd.write_record(xwd.LAST_WAIT, {record})"
    environment = {**clean_environment(), "RUNTIME_DIRECTORY": str(run_directory)}
    waits = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(2)]
    wait_until((run_directory / "last.json").exists)
    while any(wait.poll() is None for wait in waits):
        assert read(run_directory / "last.json") == record
    assert [wait.returncode for wait in waits] == [0, 0]
    assert [file.name for file in run_directory.iterdir()] == ["last.json"]


@pytest.mark.promise("The record of the wait cannot be written")
@pytest.mark.parametrize("place", ["nowhere", "file", "full"])
def test_unwritable_record_is_reported_only_with_vv(host: Host, place: str) -> None:
    host.guest("web", host.image("a"))
    (host.root / "file").touch()
    (host.root / "full").mkdir()
    (host.root / "full" / "last.json").mkdir()
    result = host.run(RUNTIME_DIRECTORY=f"{host.root}/{place}")
    assert (result.status, result.messages) == (xwd.EXIT_READY, "")
    result = host.run("-vv", RUNTIME_DIRECTORY=f"{host.root}/{place}")
    assert f"{host.root}/{place}/last.json cannot be written (" in result.messages


def test_last_shows_the_record_as_a_table(host: Host, clock: FakeClock, record_path: Path) -> None:
    host.guest("web", host.images / "a", host.images / "b")
    host.configuration("zz", "what is this\n")
    clock.at(7, lambda: host.image("a"))
    clock.wait(host, timeout=90)
    result = show(host, record_path.parent)
    head, *later, _, _, _, _ = result.output.splitlines()
    rows = result.output.splitlines()[3:]
    assert result.status == xwd.EXIT_TIMED_OUT
    assert head.endswith(": timeout after 1min 30s of 1min 30s")
    assert later == ["Once the disks are ready, start it with:", "    xendomains-wait-disk start web"]
    assert rows[-1].startswith(("7s", "8s"))
    assert [re.split("  +", row) for row in rows] == [
        ["AFTER", "DISK", "GUESTS", "STATE"],
        ["-", f"{host.images}/b", "web", "missing", "does not exist"],
        ["-", f"{host.auto}/zz", "zz", "refused", "line 1: syntax error near 'is', expected = or +="],
        [rows[-1][:2], f"{host.images}/a", "web", "ready"],
    ]


def test_last_prints_the_record_as_json(host: Host, run_directory: Path) -> None:
    host.guest("web", host.image("a"))
    host.run(RUNTIME_DIRECTORY=str(run_directory))
    result = show(host, run_directory, "--json")
    assert result.status == xwd.EXIT_READY
    assert json.loads(result.output) == read(run_directory / "last.json")


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"guests": 1, "directories": []}', "\udcff"])
def test_last_reports_that_there_is_no_record(host: Host, run_directory: Path, text: str | None) -> None:
    if text is not None:
        (run_directory / "last.json").write_text(text, errors="surrogateescape")
    result = show(host, run_directory)
    assert result.status == xwd.EXIT_USAGE
    assert result.messages.startswith(f"No wait recorded since boot ({run_directory}/last.json: ")


# Prometheus metrics

NAME = "[a-zA-Z_:][a-zA-Z0-9_:]*"
# https://prometheus.io/docs/instrumenting/exposition_formats; only gauges are used.
SAMPLE = rf'({NAME})(?:\{{([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"\}})? (-?[0-9.e+-]+)'


def metrics(output: str) -> dict[tuple[str, str], float]:
    """Parse text in Prometheus' format, and return the samples by name and label value."""
    found: dict[tuple[str, str], float] = {}
    kinds: list[str] = []
    assert output.endswith("\n")
    for line in output.splitlines():
        if match := re.fullmatch(rf"# TYPE ({NAME}) gauge", line):
            assert match[1] not in kinds
            kinds.append(match[1])
        elif not line.startswith("# HELP "):
            match = re.fullmatch(SAMPLE, line)
            assert match and match[1] == kinds[-1], line
            assert (match[1], match[3] or "") not in found
            found[match[1], match[3] or ""] = float(match[4])
    return found


def test_metrics_give_result_and_numbers_of_guests_and_disks_by_state(
    host: Host, clock: FakeClock, record_path: Path
) -> None:
    host.guest("web", host.image("a"), host.images / "b")
    host.guest("db", host.images / "b", host.images / "c")
    host.configuration("zz", "what is this\n")
    clock.at(7, lambda: host.image("b"))
    clock.wait(host, timeout=90)
    result = show(host, record_path.parent, "--prometheus")
    found = metrics(result.output)
    assert result.status == xwd.EXIT_READY
    after = found.pop(("xendomains_wait_disk_found_after_seconds", f"{host.images}/b"))
    assert 7 <= after <= 8
    assert {key: value for key, value in found.items() if value} == {
        ("xendomains_wait_waited_seconds", ""): 90,
        ("xendomains_wait_timeout_seconds", ""): 90,
        ("xendomains_wait_guests", "ready"): 1,
        ("xendomains_wait_guests", "missing"): 1,
        ("xendomains_wait_guests", "refused"): 1,
        ("xendomains_wait_disks", "ready"): 2,
        ("xendomains_wait_disks", "missing"): 1,
    }
    assert found["xendomains_wait_ok", ""] == 0
    assert {label for name, label in found if name == "xendomains_wait_guests"} == {one.value for one in xwd.State}


def test_metrics_are_well_formed_for_any_path(host: Host, clock: FakeClock, record_path: Path) -> None:
    path = host.images / 'a "quote", a \\backslash, ☃'
    host.guest("web", f"vdev=xvda,target={path}")
    clock.at(7, lambda: host.image(path.name))
    clock.wait(host)
    found = metrics(show(host, record_path.parent, "--prometheus").output)
    label = str(path).replace("\\", "\\\\").replace('"', '\\"')
    assert ("xendomains_wait_disk_found_after_seconds", label) in found
    assert found["xendomains_wait_ok", ""] == 1


# Earlier boots, from the journal


def entry(boot: str, priority: int, message: str, **fields: str) -> dict[str, str]:
    """Return an entry as printed by `journalctl --output=json`."""
    always = {"__REALTIME_TIMESTAMP": "1790000000000000", "_BOOT_ID": boot, "SYSLOG_IDENTIFIER": "xendomains-wait-disk"}
    always["_UID"] = "0"
    return {**always, "PRIORITY": str(priority), "MESSAGE": message, **fields}


def summary_of(boot: str, priority: int, result: str, waited: str, missing: str, message: str) -> dict[str, str]:
    about = {"RESULT": result, "WAITED_SEC": waited, "MISSING": missing, "MESSAGE_ID": xwd.MESSAGE_SUMMARY}
    return entry(boot, priority, message, **about)


A, B = "a" * 32, "b" * 32
LOST = "These guests will probably not come up: web."
READY = "Everything is ready for 1 guest with 1 disk."
JOURNAL = [
    entry(A, 4, "waiting for 4 disks of 1 guest: does not exist"),
    entry(A, 6, "still waiting for /a for web... (does not exist)", DISK="/a"),
    entry(A, 3, "4 disks of 1 guest are still missing after 5min: does not exist"),
    summary_of(A, 3, "timeout", "300.250", "4", LOST),
    summary_of(B, 6, "ready", "0.120", "0", READY),
]


class Journalctl:
    """A fake journalctl that knows two boots and records its arguments."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        script = directory / "journalctl"
        script.write_text(
            f'#!/bin/sh\ncd {directory}\necho "$@" >>calls\n'
            'case "$*" in *--list-boots*) cat boots ;; *--boot=-1*) cat before ;; *--boot=*) ;; *) cat all ;; esac\n'
        )
        script.chmod(0o755)
        (directory / "boots").write_text(f" -1 {A} Mon 2026-09-21—Mon\n  0 {B} Tue 2026-09-22—Tue\n")
        self.set_entries(JOURNAL)

    def set_entries(self, entries: list[dict[str, str]]) -> None:
        """Set the entries of the journal."""
        for name, chosen in (("before", A), ("all", "")):
            lines = [json.dumps(one) for one in entries if one["_BOOT_ID"].startswith(chosen)]
            lines = [line for line in lines if chosen or xwd.MESSAGE_SUMMARY in line]
            (self._directory / name).write_text("".join(f"{line}\n" for line in lines))

    def calls(self) -> str:
        return (self._directory / "calls").read_text()


@pytest.fixture
def journalctl(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Journalctl:
    directory = tmp_path_factory.mktemp("journalctl")
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return Journalctl(directory)


@pytest.mark.promise("The outcome of a wait can be shown later, and is summed up in one journal message")
def test_list_has_one_line_with_the_outcome_of_each_boot(
    host: Host, run_directory: Path, journalctl: Journalctl
) -> None:
    result = show(host, run_directory, "--list")
    ended = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1790000000))
    assert result.status == xwd.EXIT_READY
    assert [re.split("  +", line) for line in result.output.splitlines()] == [
        ["BOOT", "ENDED", "RESULT", "WAITED", "MISSING"],
        ["-1", ended, "timeout", "5min 0.2s", "4"],
        ["0", ended, "ready", "120ms", "0"],
    ]
    assert f"MESSAGE_ID={xwd.MESSAGE_SUMMARY} SYSLOG_IDENTIFIER=xendomains-wait-disk" in journalctl.calls()


@pytest.mark.parametrize("arguments", [["-b", "-1"], ["--boot=-1"]])
def test_earlier_boot_shows_messages_without_entries_of_single_disks(
    host: Host, run_directory: Path, journalctl: Journalctl, arguments: list[str]
) -> None:
    result = show(host, run_directory, *arguments)
    assert result.output.splitlines() == [
        "waiting for 4 disks of 1 guest: does not exist",
        "4 disks of 1 guest are still missing after 5min: does not exist",
        LOST,
    ]
    assert result.status == xwd.EXIT_TIMED_OUT


def test_earlier_boot_with_everything_ready_shows_that(host: Host, run_directory: Path, journalctl: Journalctl) -> None:
    journalctl.set_entries([summary_of(A, 6, "ready", "0.120", "0", READY)])
    result = show(host, run_directory, "-b", "-1")
    assert (result.status, result.output) == (xwd.EXIT_READY, f"{READY}\n")


def test_boot_unknown_to_the_journal_is_reported(host: Host, run_directory: Path, journalctl: Journalctl) -> None:
    result = show(host, run_directory, "-b", "-7")
    assert (result.status, result.output) == (xwd.EXIT_USAGE, "")
    assert result.messages == "The journal has no messages of xendomains-wait-disk of boot -7.\n"


@pytest.mark.parametrize("line", ["", "what is this\n", "[1, 2", "\udcff\n"])
def test_unexpected_output_of_journalctl_is_reported(
    host: Host, run_directory: Path, journalctl: Journalctl, line: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("other")
    (directory / "text").write_text(line, errors="surrogateescape")
    (directory / "journalctl").write_text(f"#!/bin/sh\ncat {directory}/text\n")
    (directory / "journalctl").chmod(0o755)
    result = host.run("last", "--list", PATH=f"{directory}:{os.environ['PATH']}")
    assert (result.status, result.messages) == (
        xwd.EXIT_USAGE,
        "The journal has no messages of xendomains-wait-disk.\n",
    )


def test_escape_sequences_from_the_journal_are_not_printed(
    host: Host, run_directory: Path, journalctl: Journalctl
) -> None:
    journalctl.set_entries([summary_of(A, 3, "timeout", "1.000", "1", "web\x1b[2J\n is gone")])
    for arguments in (["--list"], ["-b", "-1"]):
        assert "\x1b" not in show(host, run_directory, *arguments).output


@pytest.mark.parametrize("form", ["--json", "--prometheus", "--list"])
def test_earlier_boot_cannot_be_combined_with_other_formats(host: Host, form: str) -> None:
    result = host.run("last", "-b", "-1", form)
    assert result.status == xwd.EXIT_USAGE
    assert "not allowed with argument" in result.messages


JOURNAL_REMOTE = "/lib/systemd/systemd-journal-remote"


@pytest.mark.skipif(not os.path.exists(JOURNAL_REMOTE), reason="systemd-journal-remote is not installed")
def test_output_of_real_journalctl_is_understood(host: Host, run_directory: Path, tmp_path: Path) -> None:
    """A journal with the messages of two boots, created from the format at https://systemd.io/JOURNAL_EXPORT_FORMATS."""
    if not shutil.which("journalctl"):
        pytest.skip("journalctl is not installed")
    file = tmp_path / "test.journal"
    entries = [{**one, "__REALTIME_TIMESTAMP": f"{1790000000 + number}000000"} for number, one in enumerate(JOURNAL)]
    long = entry(A, 4, "x" * 10_000)
    long["__REALTIME_TIMESTAMP"] = "1790000002500000"
    entries.insert(3, long)
    text = "".join(
        "".join(f"{key}={value}\n" for key, value in {"__MONOTONIC_TIMESTAMP": f"{n + 1}000000", **one}.items()) + "\n"
        for n, one in enumerate(entries)
    )
    subprocess.run([JOURNAL_REMOTE, f"--output={file}", "-"], input=text, text=True, check=True, capture_output=True)
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "journalctl").write_text(f'#!/bin/sh\nexec {shutil.which("journalctl")} --file={file} "$@"\n')
    (directory / "journalctl").chmod(0o755)
    environment: dict[str, Any] = {"PATH": f"{directory}:{os.environ['PATH']}", "RUNTIME_DIRECTORY": str(run_directory)}
    rows = [re.split("  +", line) for line in host.run("last", "--list", **environment).output.splitlines()]
    assert [[row[0], *row[2:]] for row in rows[1:]] == [
        ["-1", "timeout", "5min 0.2s", "4"],
        ["0", "ready", "120ms", "0"],
    ]
    before = host.run("last", "-b", "-1", **environment)
    assert before.output.splitlines() == [JOURNAL[0]["MESSAGE"], JOURNAL[2]["MESSAGE"], "x" * 10_000, LOST]


# The summary


def summary(journald: Journald) -> dict[str, str]:
    """Return the fields of the summary, of which there must be exactly one."""
    (entry,) = (entry for entry in journald.entries() if entry.get("MESSAGE_ID") == xwd.MESSAGE_SUMMARY)
    assert re.fullmatch(r"\d+\.\d{3}", entry["WAITED_SEC"])
    return {key: entry[key] for key in ("RESULT", "MISSING", "PRIORITY", "MESSAGE")}


@pytest.mark.promise("The outcome of a wait can be shown later, and is summed up in one journal message")
@pytest.mark.parametrize("arguments", [(), ("--quiet",)])
def test_journal_gets_ready_summary_at_every_log_level(
    host: Host, journald: Journald, arguments: tuple[str, ...]
) -> None:
    host.guest("web", host.image("a"))
    journald.start(*arguments).end()
    assert summary(journald) == {
        "RESULT": "ready",
        "MISSING": "0",
        "PRIORITY": "6",
        "MESSAGE": "Everything is ready for 1 guest with 1 disk.",
    }


def test_journal_gets_number_of_missing_disks(host: Host, journald: Journald) -> None:
    host.guest("web", host.images / "a", host.images / "b")
    journald.start("--timeout", "0").end()
    assert summary(journald) == {
        "RESULT": "timeout",
        "MISSING": "2",
        "PRIORITY": "3",
        "MESSAGE": "These guests will probably not come up: web "
        "(once the disks are ready, start it with: xendomains-wait-disk start web).",
    }


def test_journal_gets_summary_after_a_signal(host: Host, journald: Journald) -> None:
    host.guest("web", host.images / "a")
    running = journald.start()
    journald.entry()
    running.signal(signal.SIGTERM)
    running.end()
    fields = summary(journald)
    assert (fields["RESULT"], fields["MISSING"], fields["PRIORITY"]) == ("stopped", "1", "4")
    waiting = "still waiting for 1 disk of 1 guest: "
    assert re.match(rf"Stopped by SIGTERM after \d+ seconds, {waiting}", fields["MESSAGE"])


def test_ready_summary_outside_the_journal_needs_verbose(host: Host) -> None:
    host.guest("web", host.image("a"))
    assert host.run().messages == ""
    assert "Everything is ready for 1 guest with 1 disk.\n" in host.run("-v").messages


# Refused guests


def test_refused_guest_means_not_everything_is_ready(host: Host) -> None:
    host.guest("web", host.image("a"))
    host.configuration("zz", "what is this\n")
    result = host.run("-v")
    assert result.status == xwd.EXIT_READY
    assert "Everything is ready" not in result.messages
    assert result.messages.endswith(f"No disk is missing, but no guest starts from {host.auto}/zz.\n")


def test_refused_guest_is_listed_among_those_that_will_not_come_up(host: Host) -> None:
    host.guest("web", host.images / "a")
    host.configuration("zz", "what is this\n")
    ends = f"will probably not come up: web; no guest starts from {host.auto}/zz ("
    assert ends in host.run("--timeout", "0").messages


def test_list_exits_with_2_if_a_guest_is_refused(host: Host) -> None:
    host.guest("web", host.image("a"))
    host.configuration("zz", "what is this\n")
    assert host.run("list").status == xwd.EXIT_USAGE
    assert [guest["state"] for guest in host.list()["guests"]] == ["ready", "refused"]
    host.guest("db", host.images / "b")
    assert host.run("list").status == xwd.EXIT_USAGE


# Selected guests


@pytest.mark.usefixtures("systemctl")
@pytest.mark.parametrize("name", ["web", "web.cfg"])
def test_only_selected_guests_count(host: Host, name: str) -> None:
    host.guest("web", host.image("a"))
    host.guest("db", host.images / "b")
    assert host.run("wait", name).status == xwd.EXIT_READY
    listed = host.run("list", name)
    assert (listed.status, len(listed.output.splitlines())) == (xwd.EXIT_READY, 2)
    checked = host.run("check", name)
    assert checked.output == "No problems found (1 guest with 1 disk).\n"


@pytest.mark.parametrize(
    ("patterns", "guests"),
    [
        (["web-*"], ["web-1", "web-2"]),
        (["web-[!1]", "d?"], ["db", "web-2"]),
        (["web-?.cfg"], ["web-1", "web-2"]),
        (["[odd]"], ["[odd]"]),  # an exact name takes precedence over a pattern
        (["WEB-1*", "web-1"], []),  # every pattern must match a guest
    ],
)
def test_guests_can_be_selected_by_shell_patterns(host: Host, patterns: list[str], guests: list[str]) -> None:
    for name in ("db", "web-1", "web-2", "[odd]"):
        host.guest(name, host.image(name))
    result = host.run("list", *patterns)
    assert [line.split()[0] for line in result.output.splitlines()[1:]] == guests
    assert result.status == (xwd.EXIT_READY if guests else xwd.EXIT_USAGE)


def test_wait_with_a_pattern_waits_for_matching_guests(host: Host) -> None:
    host.guest("web-1", host.image("a"))
    host.guest("db", host.images / "b")
    assert host.run("wait", "web-*").status == xwd.EXIT_READY


def test_one_name_selects_saved_and_configured_form_of_a_guest(host: Host) -> None:
    host.guest("web", host.image("a"))
    host.saved("web", host.image("b"))
    answer = json.loads(host.run("list", "--json", "web").output)
    assert [guest["kind"] for guest in answer["guests"]] == ["saved", "auto"]


@pytest.mark.parametrize("command", ["wait", "list", "check"])
def test_unknown_guest_is_a_usage_error_with_a_suggestion(host: Host, command: str) -> None:
    host.guest("webserver", host.image("a"))
    host.guest("db", host.images / "b")
    result = host.run(command, "db", "wbserver")
    assert (result.status, result.output) == (xwd.EXIT_USAGE, "")
    assert result.messages == "'wbserver' is not the name of a guest that starts at boot (did you mean webserver?).\n"


def test_guest_with_configuration_not_yet_readable_is_selected_by_file_name(host: Host) -> None:
    (host.auto / "web.cfg").symlink_to(host.root / "late")
    with waiting(host, "wait", "web") as running:
        host.guest("web", host.image("a")).rename(host.root / "late")
        (host.auto / "web.cfg").symlink_to(host.root / "late")
        assert running.end().status == xwd.EXIT_READY


def test_guest_in_directory_not_yet_readable_is_waited_for(host: Host) -> None:
    host.auto.rmdir()
    host.auto.symlink_to(host.root / "late")
    with waiting(host, "wait", "web") as running:
        (host.root / "late").mkdir()
        host.guest("web", host.image("a"))
        assert running.end().status == xwd.EXIT_READY


def test_guest_not_found_in_late_directory_is_a_usage_error(host: Host) -> None:
    host.auto.rmdir()
    host.auto.symlink_to(host.root / "late")
    with waiting(host, "wait", "web") as running:
        (host.root / "late").mkdir()
        result = running.end()
    assert result.status == xwd.EXIT_USAGE
    assert result.messages.endswith("'web' is not the name of a guest that starts at boot (known: none).\n")


def test_no_guest_is_known_if_none_starts(host: Host) -> None:
    assert host.run("list", "web").messages == "'web' is not the name of a guest that starts at boot (known: none).\n"


# Boot files


@pytest.mark.parametrize(
    "lines",
    [
        'kernel="{}"',
        'kernel="{}"\ntype="pv"',
        'type="pvh"\nkernel="{}"',
        'builder="generic"\nkernel="{}"',
        'ramdisk="{}"',
        'bootloader="{}"',
        'bootloader="{}"\nkernel="/boot/not used"',
    ],
)
def test_boot_files_of_a_guest_are_waited_for(host: Host, lines: str) -> None:
    (host.auto / "web").write_text(f'name="web"\n{lines.format(host.images / "boot" / "late")}\n')
    with waiting(host) as running:
        (host.images / "boot").mkdir()
        host.image("boot/late")
        assert running.end().status == xwd.EXIT_READY


@pytest.mark.parametrize(
    "lines",
    [
        'bootloader="pygrub"',
        'type="hvm"\nkernel="/nowhere/hvmloader"',
        'builder="hvm"\nkernel="/nowhere/hvmloader"',
        'kernel=["/nowhere"]',
        'kernel=""',
        'kernel="vmlinuz"',
    ],
)
def test_boot_files_elsewhere_or_unused_are_not_waited_for(host: Host, lines: str) -> None:
    (host.auto / "web").write_text(f'name="web"\n{lines}\n')
    assert host.run("--timeout", "0").status == xwd.EXIT_READY


def test_boot_files_of_a_guest_are_listed(host: Host) -> None:
    (host.auto / "web").write_text(f'name="web"\nkernel="{host.images}/vmlinuz"\nramdisk="{host.image("initrd")}"\n')
    rows = [row.split()[2:5] for row in host.run("list").output.splitlines()[1:]]
    assert rows == [["kernel", f"{host.images}/vmlinuz", "refused"], ["ramdisk", f"{host.images}/initrd", "ready"]]
