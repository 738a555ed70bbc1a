# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Messages in the journal and on terminals, the table, JSON, and exit statuses."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import ANY

import pytest
from conftest import (
    CAP,
    MODULE,
    FakeClock,
    Host,
    Journald,
    Receiver,
    Recorder,
    Running,
    full_pipe,
    program_with,
    wait_until,
)

import xendomains_wait_disk as xwd


def test_json_has_exactly_the_documented_form(host: Host) -> None:
    host.guest("web", host.image("a"), host.images / "b", host.images, "backend=storage,vdev=xvdz,target=/dev/x")
    broken = host.configuration("zz.cfg", 'name="zz"\ndisk=["/dev/x"\n')
    saved = host.saved("old", host.image("c"))
    ready, missing = status("ready"), status("missing", "does not exist")
    no_disk = status("not-ready", "is a directory, neither a block device nor a regular file")
    assert host.list() == {
        "version": 1,
        "ready": False,
        "guests": [
            {
                "name": "old",
                "kind": "saved",
                "source": str(saved),
                "start": "restore",
                **ready,
                "disks": [disk("xvda", host.images / "c", ready)],
                "boot_files": [],
            },
            {
                "name": "web",
                "kind": "auto",
                "source": str(host.auto / "web.cfg"),
                "start": "create",
                **missing,
                "disks": [
                    disk("xvda", host.images / "a", ready),
                    disk("xvdb", host.images / "b", missing),
                    disk("xvdc", host.images, no_disk),
                    {"vdev": "xvdz", "target": "/dev/x", "path": None, **status("skipped", ANY)},
                ],
                "boot_files": [],
            },
            {
                "name": "zz.cfg",
                "kind": "auto",
                "source": str(broken),
                "start": "create",
                **status("refused", "line 3: syntax error near the end of the file, expected , or ]"),
                "disks": [],
                "boot_files": [],
            },
        ],
        "directories": [],
    }


def status(state: str, reason: str | None = None) -> dict[str, Any]:
    return {"state": state, "reason": reason, "hint": None}


def disk(vdev: str, path: Path, state: dict[str, Any]) -> dict[str, Any]:
    return {"vdev": vdev, "target": str(path), "path": str(path), **state}


def test_boot_files_are_not_among_the_disks_of_a_guest(host: Host) -> None:
    (host.auto / "web").write_text(f'name="web"\nkernel="{host.image("vmlinuz")}"\ndisk=["{host.image("a")},,xvda"]\n')
    (guest,) = host.list()["guests"]
    assert [one["vdev"] for one in guest["disks"]] == ["xvda"]
    assert [one["vdev"] for one in guest["boot_files"]] == ["kernel"]


def test_last_message_and_verbose_output_give_a_command_with_the_reason(host: Host) -> None:
    host.guest("web", "/dev/zvol/no-such-pool/web")
    reason, hint = "ZFS pool no-such-pool is not imported", "zpool import no-such-pool"
    messages = host.run("--timeout", "0").messages
    assert f"/dev/zvol/no-such-pool/web for web is missing: {reason}; try: {hint}\n" in messages
    assert f"missing  {reason}\n" in host.run("list").output
    assert f"missing  {reason}; try: {hint}\n" in host.run("list", "-v").output
    assert host.list()["guests"][0]["disks"][0]["hint"] == hint


def test_dangling_link_is_shown_as_missing(host: Host) -> None:
    (host.auto / "web.cfg").symlink_to("/nowhere/web.cfg")
    answer = host.list()
    assert answer["ready"] is False
    assert answer["guests"][0]["state"] == "missing"
    assert answer["guests"][0]["reason"] == "is a link to /nowhere/web.cfg, which does not exist"
    assert re.search(r"^web.cfg +create +- +\S+/web.cfg +missing +is a link to", host.run("list").output, re.M)


def test_unreadable_directory_is_shown_as_a_directory(host: Host) -> None:
    host.auto.rmdir()
    host.auto.symlink_to("/nowhere")
    reason = "is a link to /nowhere, which does not exist"
    assert host.list() == {
        "version": 1,
        "ready": False,
        "guests": [],
        "directories": [{"path": str(host.auto), "kind": "auto", **status("missing", reason)}],
    }
    assert re.search(rf"^- +- +- +{host.auto} +missing +{reason}$", host.run("list").output, re.M)


def test_table_shows_guests_disks_and_states(host: Host) -> None:
    host.guest("web", host.image("a"), host.images / "b")
    host.guest("idle")
    lines = host.run("list").output.splitlines()
    assert lines[0].split() == ["GUEST", "START", "VDEV", "DISK", "STATE", "REASON"]
    assert lines[1].split() == ["idle", "create", "-", "-", "ready", "no", "disks"]
    assert lines[2].split() == ["web", "create", "xvda", f"{host.images}/a", "ready"]
    assert lines[3].split() == ["web", "create", "xvdb", f"{host.images}/b", "missing", "does", "not", "exist"]


@pytest.mark.parametrize(("present", "status"), [(True, xwd.EXIT_READY), (False, xwd.EXIT_TIMED_OUT)])
def test_list_exits_with_1_if_something_is_missing(host: Host, present: bool, status: int) -> None:
    host.guest("web", host.image("a") if present else host.images / "a")
    assert host.run("list").status == status


@pytest.mark.parametrize(
    "arguments",
    [
        ["--colour"],
        ["walk"],
        ["--reboot"],
        ["list", "--reboot"],
        ["last", "web"],
        ["--timeout", "soon"],
        ["--timeout", "-5"],
        ["--json"],
        ["wait", "--json"],
    ],
)
def test_wrong_usage_gives_status_2_and_a_usage_line(host: Host, arguments: list[str]) -> None:
    result = host.run(*arguments)
    assert result.status == xwd.EXIT_USAGE
    assert result.messages.startswith("usage: xendomains-wait-disk")


def test_version_is_printed(host: Host) -> None:
    result = host.run("--version")
    assert (result.status, result.output) == (0, f"xendomains-wait-disk {xwd.__version__}\n")


def test_configuration_rejected_by_xl_is_reported_and_does_not_delay_the_boot(host: Host) -> None:
    file = host.configuration("web.cfg", 'name="web"\nimport os\n')
    result = host.run()
    assert result.status == xwd.EXIT_READY
    assert result.messages == (
        f"{file}: line 2: syntax error near 'os', expected = or +=; import is a leftover from xm "
        "(xl does not run Python); xl will reject it.\n"
    )


LEVELS = [
    ([], {}, "", "warning"),
    (["-q"], {}, "", "err"),
    (["-v"], {}, "", "info"),
    (["-vv"], {}, "", "debug"),
    ([], {}, "log_level = err", "err"),
    ([], {}, "log_level = 6", "info"),
    ([], {"LOGLEVEL": "3"}, "log_level = debug", "err"),
    ([], {"SYSTEMD_LOG_LEVEL": "info"}, "log_level = err", "info"),
    ([], {"SYSTEMD_LOG_LEVEL": "debug", "LOGLEVEL": "3"}, "", "err"),
    (["-v"], {"LOGLEVEL": "3"}, "log_level = err", "info"),
]


@pytest.mark.parametrize(("arguments", "environment", "configuration", "level"), LEVELS)
def test_log_level_comes_from_file_environment_and_command_line(
    arguments: list[str], environment: dict[str, str], configuration: str, level: str, tmp_path: Path
) -> None:
    file = tmp_path / "conf"
    file.write_text(configuration + "\n")
    settings, _ = xwd.read_settings(str(file))
    assert xwd.log_level(settings, xwd.parse_arguments(arguments), environment) == (xwd.LOG_LEVELS[level], [])


def test_bad_log_level_in_the_environment_is_reported(host: Host) -> None:
    assert "$LOGLEVEL is not a log level: 'loud'" in host.run(LOGLEVEL="loud").messages


def test_quiet_prints_only_what_is_missing_at_the_end(host: Host) -> None:
    host.guest("web", host.images / "a")
    assert host.run("-q", "--timeout", "0").messages == (
        f"{host.images}/a for web is missing: does not exist\n"
        "These guests will probably not come up: web "
        "(once the disks are ready, start it with: xendomains-wait-disk start web).\n"
    )


# ---------------------------------------------------------------------------------------------------------------------
# The journal
# ---------------------------------------------------------------------------------------------------------------------


def test_journal_gets_messages_with_fields(host: Host, journald: Journald) -> None:
    host.guest("web", host.images / "a")
    assert journald.start("--timeout", "0").end().status == xwd.EXIT_TIMED_OUT
    always = {"SYSLOG_IDENTIFIER": "xendomains-wait-disk"}
    about = {"DISK": f"{host.images}/a", "DOMAIN": "web", "STATE": "missing", "REASON": "does not exist", "HINT": ""}
    assert journald.entries() == [
        {
            "MESSAGE": f"{host.images}/a for web is missing: does not exist",
            "PRIORITY": "3",
            **always,
            **about,
            "MESSAGE_ID": xwd.MESSAGE_MISSING,
        },
        {
            "MESSAGE": "These guests will probably not come up: web "
            "(once the disks are ready, start it with: xendomains-wait-disk start web).",
            "PRIORITY": "3",
            **always,
            "MESSAGE_ID": xwd.MESSAGE_SUMMARY,
            "RESULT": "timeout",
            "WAITED_SEC": ANY,
            "MISSING": "1",
        },
    ]
    assert journald.stderr() == ""


GROUP = {"a", "b", "c", "d"}


def grouped(entries: list[dict[str, str]]) -> list[dict[str, str]]:
    """Check and return the entries for four disks with the same reason: first a message, then one entry per disk."""
    message, *each = (entry for entry in entries if entry.get("REASON") == "does not exist")
    assert ": does not exist (" in message["MESSAGE"] and "DISK" not in message
    assert {Path(entry["DISK"]).name for entry in each} == GROUP
    assert all((entry["DOMAIN"], entry["STATE"], entry["HINT"]) == ("web", "missing", "") for entry in each)
    return [message, *each]


@pytest.mark.promise("At the timeout, each missing disk is named with the reason, and the other guests start")
@pytest.mark.parametrize("level", [(), ("--quiet",)], ids=["warning", "err"])
def test_journal_has_an_entry_for_each_disk_of_a_group_at_every_log_level(
    host: Host, journald: Journald, level: tuple[str, ...]
) -> None:
    host.guest("web", *(host.images / name for name in sorted(GROUP)))
    journald.start("--timeout", "0", *level).end()
    message, *each = grouped(journald.entries())
    assert (message["PRIORITY"], message["MESSAGE_ID"]) == ("3", xwd.MESSAGE_MISSING)
    assert {entry["PRIORITY"] for entry in each} == {"6"}


def test_only_the_message_of_a_group_has_a_catalog_entry(host: Host, journald: Journald) -> None:
    host.guest("web", *(host.images / name for name in sorted(GROUP)))
    journald.start("--timeout", "0").end()
    _, *each = grouped(journald.entries())
    assert all("MESSAGE_ID" not in entry for entry in each)


def test_reminders_of_a_group_do_not_repeat_the_entries_of_its_disks(
    host: Host, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.guest("web", *(host.images / name for name in sorted(GROUP)))
    journal = Recorder(clock.messages, clock)
    xwd.wait_for_disks(host.watcher(clock, xwd.Settings(timeout=60.0)), journal, clock.now())
    texts = [text for level, text, fields in journal.messages if level <= xwd.WARNING and "REASON" in fields]
    reason = f"does not exist ({', '.join(f'{host.images}/{name}' for name in sorted(GROUP)[:3])}, 1 more)"
    assert texts == [
        f"waiting for 4 disks of 1 guest: {reason}",
        *[f"still waiting for 4 disks of 1 guest: {reason}"] * 3,  # after 5, 15 and 35 s
        f"4 disks of 1 guest are still missing after 1min: {reason}",
    ]
    entries = [fields["DISK"] for level, _, fields in journal.messages if level == xwd.INFO and "DISK" in fields]
    assert sorted(entries) == sorted(2 * [f"{host.images}/{name}" for name in GROUP])


def test_group_is_one_message_on_a_terminal_or_in_a_pipe(host: Host) -> None:
    host.guest("web", *(host.images / name for name in sorted(GROUP)))
    first, _ = host.run("--timeout", "0").messages.splitlines()
    assert first.startswith("4 disks of 1 guest are missing: does not exist (")


def test_messages_of_all_causes_precede_the_entries_of_a_group(host: Host, journald: Journald) -> None:
    """So no cause is lost if there are too many messages, or the reader is slow."""
    host.guest("web", *(host.images / name for name in sorted(GROUP)), host.images / "other" / "disk")
    journald.start("--timeout", "0").end()
    priorities = [entry["PRIORITY"] for entry in journald.entries() if "REASON" in entry]
    assert priorities == ["3", "3", "6", "6", "6", "6"]


def test_slow_journald_does_not_delay_the_boot_for_entries_of_a_group(host: Host, stuck_journal: Journald) -> None:
    host.guest("web", *(host.images / str(number) for number in range(900)))
    assert stuck_journal.start("--timeout", "0").end().status == xwd.EXIT_TIMED_OUT


@pytest.fixture
def stuck_journal(journald: Journald) -> Journald:
    """A journald that accepts no messages."""
    journald.fill()
    return journald


def test_journal_gets_configuration_that_xl_would_reject(host: Host, journald: Journald) -> None:
    file = host.configuration("web.cfg", "what is this\n")
    journald.start().end()
    entry = journald.entry()
    assert entry["MESSAGE"].startswith(f"{file}: line 1: ")
    assert (entry["SOURCE"], entry["DOMAIN"], entry["MESSAGE_ID"]) == (str(file), "web.cfg", xwd.MESSAGE_REFUSED)


def test_journal_gets_bad_settings(host: Host, journald: Journald) -> None:
    host.configure("timeout = soon")
    journald.start().end()
    entry = journald.entry()
    assert entry["MESSAGE"].startswith(f"{host.conf}: line 1: timeout is not a time span: 'soon'")
    assert (entry["PRIORITY"], entry["MESSAGE_ID"]) == ("3", xwd.MESSAGE_SETTINGS)


def test_long_message_or_field_is_cut_to_the_journals_limit(host: Host, journald: Journald) -> None:
    (host.auto / "web.cfg").write_text(f'name = "{"x" * 100_000}"\ndisk = ["/no,raw,xvda"]\n')
    journald.start("--timeout", "0").end()
    assert max(len(value) for entry in journald.entries() for value in entry.values()) < 48 << 10


def test_restarted_journald_gets_the_next_messages(host: Host, journald: Journald) -> None:
    host.guest("web", host.images / "a", host.images / "b", host.images / "c")
    running = journald.start()
    for _ in range(3):
        assert journald.entry()["MESSAGE"].startswith("still waiting for ")
    journald.stop()
    host.image("a")
    wait_until(lambda: f"<4>disk {host.images}/a found" in journald.stderr())
    with Receiver(journald.address) as restarted:
        host.image("b")
        assert f"disk {host.images}/b found" in restarted.receive()
        host.image("c")
        assert running.end().status == xwd.EXIT_READY


# ---------------------------------------------------------------------------------------------------------------------
# Readers that are slow, stuck or gone
# ---------------------------------------------------------------------------------------------------------------------


class StuckReader(NamedTuple):
    """A reader that does not read: how to start the command with it, and how to read the messages later."""

    start: Callable[..., Running]
    read: Callable[[], str]


def read_all(descriptor: int) -> str:
    """Read what is available."""
    data = b""
    while select.select([descriptor], [], [], 0)[0]:
        data += os.read(descriptor, 1 << 16)
    return data.decode()


@contextmanager
def stuck_pipe(host: Host) -> Iterator[StuckReader]:
    with full_pipe() as (reading, writing):
        yield StuckReader(partial(host.start, options={"stderr": writing}), lambda: read_all(reading))


@contextmanager
def stuck_terminal(host: Host) -> Iterator[StuckReader]:
    """A terminal accepts less than a pipe before it blocks."""
    reading, writing = pty.openpty()
    yield StuckReader(partial(host.start, options={"stderr": writing}), lambda: read_all(reading))
    os.close(reading)
    os.close(writing)


@contextmanager
def stuck_journald(host: Host) -> Iterator[StuckReader]:
    journald = Journald(host)
    with journald:
        journald.fill()
        yield StuckReader(journald.start, lambda: "".join(journald.receive_all()))


@pytest.fixture(params=[stuck_pipe, stuck_terminal, stuck_journald])
def stuck(request: pytest.FixtureRequest, host: Host) -> Iterator[StuckReader]:
    with request.param(host) as it:
        yield it


@pytest.fixture
def systemd(host: Host) -> Iterator[Receiver]:
    """The notification socket of systemd."""
    with Receiver(host.root / "notify") as it:
        yield it


@pytest.mark.promise("The reader of the journal or of a pipe is stuck")
def test_stuck_reader_does_not_delay_the_wait(host: Host, stuck: StuckReader) -> None:
    """At most for a moment in total: a moment for each of hundreds of messages would add up to minutes."""
    host.guest("web", *(host.images / str(number) for number in range(300)))
    assert stuck.start("--timeout", "1").end().status == xwd.EXIT_TIMED_OUT


def test_signal_ends_the_wait_while_the_reader_is_stuck(host: Host, stuck: StuckReader, systemd: Receiver) -> None:
    host.guest("web", *(host.images / str(number) for number in range(300)))
    running = stuck.start(NOTIFY_SOCKET=systemd.address)
    systemd.receive()
    running.signal(signal.SIGTERM)
    assert running.end().status == -signal.SIGTERM


@pytest.mark.promise("The reader of the journal or of a pipe is stuck")
@pytest.mark.parametrize("stuck", [stuck_pipe, stuck_journald], indirect=True)
def test_reader_that_resumes_is_told_that_messages_were_dropped(
    host: Host, stuck: StuckReader, systemd: Receiver
) -> None:
    host.guest("web", host.images / "a", host.images / "b")
    running = stuck.start(NOTIFY_SOCKET=systemd.address)
    assert "2 disks" in systemd.receive_status()  # by now it has tried to print what it waits for
    assert "still waiting" not in stuck.read()
    host.image("a")
    assert "1 disk" in systemd.receive_status()
    messages = stuck.read()
    host.image("b")
    assert running.end().status == xwd.EXIT_READY
    assert "2 messages dropped here because the reader was too slow." in messages
    assert f"disk {host.images}/a found (after " in messages


def test_error_to_a_stuck_reader_does_not_delay_the_boot(host: Host) -> None:
    with full_pipe() as (_, writing):
        result = host.run(program=program_with("xwd.main = lambda _: [][0]"), options={"stderr": writing})
    assert result.status == xwd.EXIT_TIMED_OUT


F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ exists only since Python 3.10


class SlowReader:
    """A reader that takes a message from a pipe every `seconds`."""

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        self.messages = ""
        reading, writing = os.pipe()
        fcntl.fcntl(writing, F_SETPIPE_SZ, 4096)  # one message
        self.stream = os.fdopen(writing, "w")

        def read() -> None:
            self.messages += read_all(reading)
            clock.at(clock.seconds + seconds, read)

        self.read = read
        read()

    def journal(self, clock: FakeClock) -> xwd.Journal:
        return xwd.Journal(xwd.WARNING, self.stream, clock)


def test_timeout_holds_within_a_second_though_messages_are_slow(host: Host, clock: FakeClock) -> None:
    for number in range(400):
        host.configuration(f"bad-{number}", "bad")
    host.guest("web", host.images / "a")
    reader = SlowReader(clock, 0.05)
    settings = xwd.Settings(timeout=3.0)
    assert xwd.wait_for_disks(host.watcher(clock, settings), reader.journal(clock), clock.now()) == xwd.EXIT_TIMED_OUT
    assert clock.seconds <= 4
    reader.read()
    *messages, still, last = reader.messages.splitlines()
    assert any(re.fullmatch(r"[0-9]+ messages dropped here because the reader was too slow\.", it) for it in messages)
    assert still.endswith("/a for web is still missing after 3s: does not exist")
    assert last.startswith("These guests will probably not come up: web; no guest starts from ")


def test_signal_ends_the_wait_within_a_second_though_messages_are_slow(host: Host, clock: FakeClock) -> None:
    for number in range(400):
        host.configuration(f"bad-{number}", "bad")
    host.guest("web", host.images / "a")
    reader = SlowReader(clock, 0.05)
    clock.take_signals()
    clock.at(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(xwd.Stopped):
        xwd.wait_for_disks(host.watcher(clock), reader.journal(clock), clock.now())
    assert clock.seconds <= 2
    reader.read()
    last = reader.messages.splitlines()[-1]
    assert last.startswith("Stopped by SIGTERM after 1 second, still waiting for 1 disk of 1 guest")


@pytest.mark.parametrize("command", ["check", "list"])
def test_signal_ends_a_command_blocked_on_output(host: Host, command: str) -> None:
    host.configure("nonsense = yes")
    with full_pipe() as (_, writing):
        running = host.start(command, options={"stdout": writing})
        wait_until(lambda: "pipe" in Path(f"/proc/{running.pid}/wchan").read_text())
        running.signal(signal.SIGTERM)
        assert running.end().status == -signal.SIGTERM


def test_check_waits_for_a_slow_reader(host: Host) -> None:
    for number in range(3):
        host.configuration(f"{number}.cfg", "what is this\n")
    messages = []
    with full_pipe() as (reading, writing):
        running = host.start("check", options={"stdout": writing})
        wait_until(lambda: "pipe" in Path(f"/proc/{running.pid}/wchan").read_text())
        while running.process.poll() is None:
            messages.append(read_all(reading))
        messages.append(read_all(reading))
    assert running.end().status == xwd.EXIT_USAGE
    assert "".join(messages).count("  error: line 1: ") == 3


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full"])
def test_closed_or_full_standard_error_is_harmless(host: Host, stream: str) -> None:
    host.guest("web", host.images / "a")
    assert host.run("--timeout", "0", prefix=("sh", "-c", f'exec "$@" {stream}', "sh")).status == xwd.EXIT_TIMED_OUT


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_other_closed_streams_are_harmless(host: Host, closed: str) -> None:
    host.guest("web", host.image("a"))
    for command in ("wait", "list"):
        result = host.run(command, prefix=("sh", "-c", f'exec "$@" {closed}', "sh"))
        assert (result.status, result.messages) == (xwd.EXIT_READY, "")


@pytest.mark.parametrize(("arguments", "stream"), [(["list"], "stdout"), (["wait", "--timeout", "0"], "stderr")])
def test_closed_pipe_gives_no_error_message(host: Host, arguments: list[str], stream: str) -> None:
    host.guest("web", host.images / "a")
    ours, theirs = os.pipe()
    os.close(ours)
    result = host.run(*arguments, options={stream: theirs})
    os.close(theirs)
    assert (result.status, result.messages) == (xwd.EXIT_TIMED_OUT, "")


def test_output_that_cannot_be_written_is_reported(host: Host) -> None:
    result = host.run("list", prefix=("sh", "-c", 'exec "$@" >/dev/full', "sh"))
    assert result.status == xwd.EXIT_USAGE
    assert result.messages == "xendomains-wait-disk: the output cannot be written: No space left on device.\n"


# ---------------------------------------------------------------------------------------------------------------------
# Reminders
# ---------------------------------------------------------------------------------------------------------------------


class Reported:
    """A reporter with a fake clock, and its messages."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._logged = ""
        self._reporter = xwd.Reporter(xwd.Journal(xwd.WARNING, clock.messages, clock), clock, clock.now(), 300)

    def report(self, **reasons: str) -> list[str]:
        """Return the messages for a snapshot in which each of these guests lacks a disk for this reason."""
        guests, disks = {}, {}
        for name, reason in reasons.items():
            disk = xwd.Disk("xvda", f"/{name}")
            domain = xwd.Domain(name, f"/auto/{name}.cfg", "auto", (disk,))
            guests[domain.source] = xwd.Guest(domain, required=(xwd.required_by(disk),))
            disks[disk.target] = xwd.Status(xwd.State.MISSING, reason)
        return self.report_snapshot(xwd.Snapshot({}, guests, disks))

    def report_snapshot(self, snapshot: xwd.Snapshot) -> list[str]:
        self._reporter.report(snapshot)
        before, self._logged = self._logged, self._clock.logged
        return self._logged[len(before) :].splitlines()


@pytest.fixture
def reported(clock: FakeClock) -> Reported:
    return Reported(clock)


def test_reminders_come_at_doubling_intervals(clock: FakeClock, reported: Reported) -> None:
    said_at = []
    for second in range(301):
        clock.seconds = second
        if messages := reported.report(web="does not exist"):
            assert messages == ["still waiting for /web for web... (does not exist)"]
            said_at.append(second)
    assert said_at == [0, 5, 15, 35, 75, 155]


def test_missing_disks_are_grouped_by_reason_at_first_and_in_reminders(clock: FakeClock, reported: Reported) -> None:
    reasons = {**dict.fromkeys("abcd", "does not exist"), "e": "md array is inactive"}
    assert reported.report(**reasons) == [
        "waiting for 4 disks of 4 guests: does not exist (/a, /b, /c, 1 more)",
        "still waiting for /e for e... (md array is inactive)",
    ]
    clock.seconds += 5
    assert reported.report(**reasons) == [
        "still waiting for 4 disks of 4 guests: does not exist (/a, /b, /c, 1 more)",
        "still waiting for /e for e... (md array is inactive)",
    ]


def test_up_to_three_disks_of_one_cause_are_named_as_in_the_script_of_2017(reported: Reported) -> None:
    assert reported.report(a="does not exist", b="does not exist", c="does not exist") == [
        f"still waiting for /{name} for {name}... (does not exist)" for name in "abc"
    ]


def test_flapping_disk_is_reported_once_per_reminder_interval(clock: FakeClock, reported: Reported) -> None:
    lines = 0
    for step in range(3_000):
        clock.seconds += 0.1
        lines += len(reported.report(**({"web": "does not exist"} if step % 2 else {})))
    assert 2 <= lines <= 4 * 6


def test_changing_configuration_is_reported_once_per_reminder_interval(clock: FakeClock, reported: Reported) -> None:
    domain = xwd.Domain("web", "/web.cfg", "auto")
    lines = 0
    for step in range(300):
        clock.seconds += 1
        status = xwd.Status(xwd.State.REFUSED, f"line {step}: syntax error")
        lines += len(reported.report_snapshot(xwd.Snapshot(guests={"/web.cfg": xwd.Guest(domain, status)})))
    assert 2 <= lines <= 6


def test_at_most_a_thousand_messages_are_shown_per_reminder_interval(reported: Reported) -> None:
    # Names and numbers alone do not make a reason a different one.
    others = {f"g{number}": f"reason {str(number).translate(LETTERS)}" for number in range(1100)}
    messages = reported.report(**others)
    assert len(messages) == xwd.MAX_LINES + 1
    assert messages[-1] == ("100 similar messages were left out; see `xendomains-wait-disk list`.")
    assert reported.report(**others, new="does not exist") == []
    del others["g0"]
    assert reported.report(**others, new="does not exist") == ["/g0 is no longer needed (after 0 seconds)"]


LETTERS = str.maketrans("0123456789", "abcdefghij")


# ---------------------------------------------------------------------------------------------------------------------
# Escaping and encoding
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("File and guest names can neither forge messages nor control the terminal")
def test_names_cannot_forge_messages_or_send_escapes_to_the_terminal(host: Host) -> None:
    evil = "web\n<0>all is well\x1b[2J\x9b\u202e"
    (host.auto / "web.cfg").write_text(
        f'name="{evil}"\ndisk=["/no/a\\tb\x1b]0;x\x07,raw,xvda"]\n'.replace("\n<", "\\n<")
    )
    for output in (host.run("--timeout", "0").messages, host.run("list").output, host.run("check").output):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", output)
        assert not re.search(r"^<0>", output, re.M)
    assert r"web\n<0>all is well\x1b[2J" in host.run("list").output
    assert host.list()["guests"][0]["name"] == evil


def test_invalid_utf8_is_shown_as_escapes(host: Host) -> None:
    file = Path(os.fsdecode(os.fsencode(host.auto) + b"/b\xfcro.cfg"))
    file.write_bytes(b'name="b\xfcro"\ndisk=["/no/b\xfcro.img,raw,xvda"]\nxen_platform_pci = nonsense\n')
    os.utime(file, (0, 0))
    assert rf"{host.auto}/b\xfcro.cfg:" in host.run("check").output
    file.write_bytes(b'name="b\xfcro"\ndisk=["/no/b\xfcro.img,raw,xvda"]\n')
    assert r"/no/b\xfcro.img" in host.run("list").output
    assert host.list()["guests"][0]["name"] == r"b\xfcro"
    assert r"/no/b\xfcro.img for b\xfcro is missing: does not exist" in host.run("--timeout", "0").messages


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "xx", "tr_TR.UTF-8", "en_US.ISO-8859-1"])
def test_output_is_the_same_in_every_locale(host: Host, locale: str) -> None:
    directory = host.images / "größe ☃"
    directory.mkdir()
    disks = f'["{directory}/a,raw,xvda,rw", "{directory}/b,raw,xvdb,rw"]'
    host.configuration("bücher.cfg", f'name="bücher"\ndisk={disks}\n')
    (directory / "a").write_text("x")
    environment: dict[str, Any] = {"LC_ALL": locale, "LANG": locale, "PYTHONUTF8": "", "PYTHONCOERCECLOCALE": ""}
    domain = json.loads(host.run("list", "--json", **environment).output)["guests"][0]
    assert domain["name"] == "bücher"
    assert [(d["path"], d["state"]) for d in domain["disks"]] == [
        (f"{directory}/a", "ready"),
        (f"{directory}/b", "missing"),
    ]
    assert "missing" in host.run("list", **environment, PYTHONIOENCODING="ascii").output
    messages = host.run("--timeout", "0", **environment, PYTHONIOENCODING="utf-8").messages
    assert f"{directory}/b for bücher is missing: does not exist\n" in messages


def test_interrupted_list_prints_nothing(host: Host) -> None:
    host.settings.write_text(f"touch {host.root}/sourced; sleep 1000\n")
    running = host.start("list")
    wait_until((host.root / "sourced").exists)
    running.signal(signal.SIGINT)
    result = running.end()
    assert (result.status, result.output, result.messages) == (-signal.SIGINT, "", "")


def test_internal_error_is_one_line_and_lets_the_boot_continue(host: Host) -> None:
    command = program_with("xwd.main = lambda _: [][0]")
    result = subprocess.run(command, capture_output=True, text=True, cwd=MODULE.parent, timeout=CAP)
    assert result.returncode == xwd.EXIT_TIMED_OUT
    assert result.stderr == (
        "xendomains-wait-disk: internal error, please report it: IndexError: list index out of range\n"
    )


def test_status_line_is_shown_on_a_terminal(host: Host) -> None:
    host.guest("web", host.images / "a")
    ours, theirs = pty.openpty()
    running = host.start("--timeout", "5min", options={"stderr": theirs})
    shown: list[str] = []

    def shows(text: str) -> bool:
        shown.append(read_all(ours))
        return text in "".join(shown)

    wait_until(lambda: shows("s of 5min: Waiting for 1 disk of 1 guest: "))
    assert f"still waiting for {host.images}/a for web... (does not exist)\r\n" in "".join(shown)
    host.image("a")
    assert running.end().status == xwd.EXIT_READY
    assert shows(f"\r\x1b[Kdisk {host.images}/a found (after ")
    assert re.search(r"\(after \d+ seconds\)\r\n$", "".join(shown))
    os.close(ours)
    os.close(theirs)
