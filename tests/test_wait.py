# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The wait: it ends when every disk is ready, at the timeout, or on a signal, and never later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import (
    MODULE,
    Events,
    FakeClock,
    Host,
    Receiver,
    as_root,
    fill,
    handles,
    hung_file_system,
    process_state,
    program_with,
    slow_file_system,
    threads_of,
    wait_until,
    waiting,
)

import xendomains_wait_disk as xwd

# ---------------------------------------------------------------------------------------------------------------------
# The end of the wait
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("If every disk is ready, it prints nothing and hardly delays the boot")
def test_wait_ends_silently_with_everything_ready(host: Host) -> None:
    host.guest("web", host.image("a"), host.image("b"))
    result = host.run()
    assert (result.status, result.output, result.messages) == (xwd.EXIT_READY, "", "")


@pytest.mark.promise("The wait ends when the last disk appears, and a udev event ends a pause")
def test_wait_ends_when_the_last_disk_appears(host: Host) -> None:
    host.guest("web", host.images / "a", host.images / "b")
    with waiting(host) as running:
        host.image("a")
        running.wait_for(f"disk {host.images}/a found (after ")
        host.image("b")
        result = running.end()
    assert result.status == xwd.EXIT_READY
    assert f"disk {host.images}/b found (after " in result.messages


def test_wait_does_not_end_before_the_last_disk_appears(host: Host, clock: FakeClock) -> None:
    host.guest("web", host.images / "a", host.images / "b")
    clock.at(10, lambda: host.image("a"))
    clock.at(200, lambda: host.image("b"))
    result = clock.wait(host)
    assert result.status == xwd.EXIT_READY
    assert 200 <= clock.seconds <= 201
    assert f"disk {host.images}/a found (after 10 seconds)\n" in result.messages
    assert result.messages.endswith(f"disk {host.images}/b found (after 200 seconds)\n")


@pytest.mark.promise("At the timeout, each missing disk is named with the reason, and the other guests start")
def test_timeout_names_each_disk_with_its_reason_and_gives_status_1(host: Host, clock: FakeClock) -> None:
    host.guest("web", host.images / "a", host.image("b"))
    host.guest("mail", host.images)
    result = clock.wait(host, timeout=300)
    assert result.status == xwd.EXIT_TIMED_OUT
    assert clock.seconds == 300
    assert f"{host.images}/a for web is still missing after 5min: does not exist\n" in result.messages
    assert f"{host.images} for mail is still not ready after 5min: is a directory, neither" in result.messages
    assert f"{host.images}/b" not in result.messages
    later = "once the disks are ready, start them with: xendomains-wait-disk start mail web"
    assert result.messages.endswith(f"\nThese guests will probably not come up: mail, web ({later}).\n")


def test_timeout_of_0_looks_once_and_takes_no_time(host: Host, clock: FakeClock) -> None:
    host.guest("web", host.images / "a")
    result = clock.wait(host, timeout=0)
    assert (result.status, clock.seconds) == (xwd.EXIT_TIMED_OUT, 0)
    assert f"{host.images}/a for web is missing: does not exist\n" in result.messages


def test_disk_that_appears_at_the_last_moment_counts(host: Host, clock: FakeClock) -> None:
    host.configure("[polling]\nfirst = 20s\nlongest = 20s\n")
    host.guest("web", host.images / "a")
    clock.at(29.9, lambda: host.image("a"))
    assert clock.wait(host, timeout=30).status == xwd.EXIT_READY
    assert clock.seconds == 30


# ---------------------------------------------------------------------------------------------------------------------
# Pauses
# ---------------------------------------------------------------------------------------------------------------------


def record_checks(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that records when disks are checked, in seconds."""
    checks: list[float] = []
    real = xwd.Watcher.check_disks

    def check_disks(watcher: xwd.Watcher, deadline: float, *, recheck_ready: bool = False) -> xwd.Snapshot:
        checks.append(round(clock.seconds, 3))
        return real(watcher, deadline, recheck_ready=recheck_ready)

    monkeypatch.setattr(xwd.Watcher, "check_disks", check_disks)
    return checks


def test_pauses_double_from_first_to_longest(host: Host, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = record_checks(clock, monkeypatch)
    host.guest("web", host.images / "a")
    clock.wait(host, timeout=4)
    # Once to report what is missing, then in the wait, and at the end once more to recheck ready disks.
    assert checks == [0, 0, 0.1, 0.3, 0.7, 1.5, 2.5, 3.5, 4, 4]


def test_settings_control_how_pauses_grow(host: Host, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = record_checks(clock, monkeypatch)
    host.configure("[polling]\nfirst = 200ms\nlongest = 5s\nfactor = 3")
    host.guest("web", host.images / "a")
    clock.wait(host, timeout=20)
    assert checks == [0, 0, 0.2, 0.8, 2.6, 7.6, 12.6, 17.6, 20, 20]


def test_file_without_an_event_is_noticed_within_the_longest_pause(host: Host, clock: FakeClock) -> None:
    host.configure("[polling]\nlongest = 500ms\n")
    host.guest("web", host.images / "a")
    clock.at(60, lambda: host.image("a"))
    assert clock.wait(host).status == xwd.EXIT_READY
    assert 60 <= clock.seconds <= 60.5


@pytest.mark.promise("The wait ends when the last disk appears, and a udev event ends a pause")
def test_event_ends_a_pause(host: Host, clock: FakeClock, events: Events) -> None:
    host.configure("[polling]\nfirst = 20s\nlongest = 20s\n")
    host.guest("web", host.images / "a")
    clock.at(3, lambda: host.image("a"))
    clock.at(3, events.happen)
    assert clock.wait(host).status == xwd.EXIT_READY
    assert 3 <= clock.seconds <= 3 + 2 * xwd.MIN_SLEEP


def test_events_are_collected_before_the_look_starts(
    host: Host, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, an event between a check and the pause after it would be missed."""
    happened = []

    def block_events() -> None:
        happened.append("listens")

    def check_disk(_: xwd.Required, facts: xwd.StorageFacts) -> xwd.Status:
        happened.append("explains" if facts.explains else "looks")
        return xwd.Status(xwd.State.MISSING)

    monkeypatch.setattr(xwd, "block_events", block_events)
    monkeypatch.setattr(xwd, "check_disk", check_disk)
    host.guest("web", host.images / "a")
    clock.wait(host, timeout=1)
    assert happened[:4] == ["looks", "explains", "listens", "looks"]


@pytest.mark.promise("udev events come in storms, are lost, or cannot be parsed")
def test_storm_of_events_leaves_time_between_two_looks(clock: FakeClock, events: Events) -> None:
    for _ in range(10):
        events.happen()
        xwd.sleep_until(clock.now() + 1, clock, events)
    assert clock.seconds == pytest.approx(10 * xwd.MIN_SLEEP)


def test_events_that_ended_a_pause_do_not_end_the_next(clock: FakeClock, events: Events) -> None:
    for _ in range(100):
        events.happen()
    xwd.sleep_until(clock.now() + 1, clock, events)
    before = clock.seconds
    xwd.sleep_until(clock.now() + 1, clock, events)
    assert clock.seconds == before + 1


@pytest.mark.promise("It works without optional parts of a host, such as pyudev, bash or /proc")
@pytest.mark.usefixtures("no_pyudev")
def test_without_pyudev_there_are_no_events() -> None:
    assert xwd.block_events() is None


def test_without_events_a_pause_has_its_full_length(clock: FakeClock) -> None:
    xwd.sleep_until(clock.now() + 0.2, clock, None)
    assert clock.seconds == pytest.approx(0.2)


# ---------------------------------------------------------------------------------------------------------------------
# Changes during the wait
# ---------------------------------------------------------------------------------------------------------------------


def test_configuration_behind_dangling_link_is_read_when_it_appears(host: Host) -> None:
    link = host.auto / "web.cfg"
    link.symlink_to(host.root / "later.cfg")
    with host.start() as running:
        running.wait_for(f"still waiting for {link} for web.cfg... (is a link to {host.root}/later.cfg, which does not")
        (host.root / "later.cfg").write_text(f'name="web"\ndisk=["{host.images}/a,raw,xvda,rw"]\n')
        running.wait_for(f"still waiting for {host.images}/a for web... (does not exist)\n")
        host.image("a")
        result = running.end()
    assert result.status == xwd.EXIT_READY
    assert f"configuration {link} found (after " in result.messages


def test_auto_directory_behind_dangling_link_is_read_when_it_appears(host: Host) -> None:
    host.auto.rmdir()
    host.auto.symlink_to(host.root / "later")
    with host.start() as running:
        running.wait_for(f"still waiting for {host.auto} for the guests in {host.auto}... (is a link to {host.root}/la")
        (host.root / "later").mkdir()
        result = running.end()
    assert result.status == xwd.EXIT_READY
    assert f"directory {host.auto} found (after " in result.messages


def test_new_configuration_is_read_during_the_wait(host: Host, clock: FakeClock) -> None:
    host.guest("web", host.images / "a")
    clock.at(10, lambda: host.guest("mail", host.images / "b"))
    clock.at(20, lambda: host.image("a"))
    clock.at(30, lambda: host.image("b"))
    result = clock.wait(host)
    assert (result.status, clock.seconds >= 30) == (xwd.EXIT_READY, True)
    assert f"still waiting for {host.images}/b for mail... (does not exist)\n" in result.messages


def test_another_guest_that_needs_the_same_disk_is_named_too(host: Host, clock: FakeClock) -> None:
    host.guest("web", host.images / "a")
    clock.at(2, lambda: host.guest("mail", host.images / "a"))
    clock.at(4, lambda: host.image("a"))
    lines = clock.wait(host).messages.splitlines()
    assert lines[:2] == [
        f"still waiting for {host.images}/a for web... (does not exist)",
        f"still waiting for {host.images}/a for mail... (does not exist)",
    ]
    assert len(lines) == 3


@pytest.mark.promise("A configuration is rewritten, truncated or removed during the wait")
def test_changed_configuration_is_read_again(host: Host, clock: FakeClock) -> None:
    host.guest("web", host.images / "a")
    clock.at(10, lambda: host.guest("web", host.image("another")))
    result = clock.wait(host)
    assert result.status == xwd.EXIT_READY
    assert result.messages.endswith(f"{host.images}/a is no longer needed (after 10 seconds)\n")


@pytest.mark.promise("A configuration is rewritten, truncated or removed during the wait")
def test_configuration_that_is_still_being_written_is_read_again(host: Host, clock: FakeClock) -> None:
    file = host.guest("web", host.images / "a")
    clock.at(10, lambda: file.write_text('name = "web"\ndisk = ['))
    clock.at(10.5, lambda: host.guest("web", host.images / "b"))
    clock.at(20, lambda: host.image("b"))
    host.guest("mail", host.images / "m")
    clock.at(30, lambda: host.image("m"))
    result = clock.wait(host)
    assert f"disk {host.images}/b found (after 20 seconds)\n" in result.messages


@pytest.mark.promise("A configuration is rewritten, truncated or removed during the wait")
def test_removed_configuration_is_dropped(host: Host, clock: FakeClock) -> None:
    file = host.guest("web", host.images / "a")
    clock.at(10, file.unlink)
    result = clock.wait(host)
    assert result.status == xwd.EXIT_READY
    assert result.messages.endswith(f"{host.images}/a is no longer needed (after 10 seconds)\n")


@pytest.mark.promise("Disks come and go")
def test_disk_that_comes_and_goes_is_waited_for_again(host: Host, clock: FakeClock) -> None:
    first, second = host.image("a"), host.images / "b"
    host.guest("web", first, second)
    clock.at(10, first.unlink)
    clock.at(20, partial(fill, second))
    clock.at(30, partial(fill, first))
    result = clock.wait(host)
    assert (result.status, clock.seconds >= 30) == (xwd.EXIT_READY, True)
    assert f"still waiting for {first} for web... (does not exist)\n" in result.messages


# ---------------------------------------------------------------------------------------------------------------------
# Hanging file systems
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("The wait ends at the timeout even if something hangs, and leaves no process behind")
@as_root
def test_timeout_holds_while_a_file_system_hangs(host: Host) -> None:
    with hung_file_system(host.root / "nfs") as nfs:
        host.guest("web", nfs / "web.img")
        host.guest("mail", host.image("mail"))
        result = host.run("--timeout", "1")
    assert result.status == xwd.EXIT_TIMED_OUT
    assert f"{nfs}/web.img for web is still not ready after 1s: no response" in result.messages
    assert "mail" not in result.messages


@pytest.mark.promise("A file system hangs (its NFS server is gone)")
@as_root
def test_single_look_finds_other_disks_while_a_file_system_hangs(host: Host) -> None:
    with hung_file_system(host.root / "nfs") as nfs:
        host.guest("hung", nfs / "web.img")
        host.guest("here", host.image("here"))
        result = host.run("--timeout", "0")
    assert result.status == xwd.EXIT_TIMED_OUT
    assert result.messages.endswith(
        "These guests will probably not come up: hung "
        "(once the disks are ready, start it with: xendomains-wait-disk start hung).\n"
    )


@as_root
def test_hanging_configuration_is_waited_for_and_delays_no_other(host: Host) -> None:
    with slow_file_system(host.root / "nfs", delay=0) as nfs:
        file = host.guest("web", host.image("a"))
        nfs.files["web.cfg"] = file.read_bytes()
        nfs.is_hanging = True
        file.unlink()
        file.symlink_to(nfs.directory / "web.cfg")
        host.guest("mail", host.images / "mail")
        with waiting(host, "-v") as running:
            running.wait_for(f"still waiting for {file} for web.cfg... (no response; is its file server down?)\n")
            host.image("mail")
            running.wait_for(f"disk {host.images}/mail found")
            nfs.is_hanging = False
            result = running.end()
    assert result.status == xwd.EXIT_READY
    assert result.messages.endswith("Everything is ready for 2 guests with 2 disks.\n")


def test_hanging_settings_file_does_not_outlast_the_timeout(host: Host) -> None:
    host.settings.write_text("sleep 1000\n")
    with host.start("--timeout", "0") as running:
        running.wait_for(f"{host.settings}: was not read within 500ms; waiting for the guests in ")


# ---------------------------------------------------------------------------------------------------------------------
# Signals
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("A signal ends it, and it never prints a traceback")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_wait_and_missing_disks_are_reported(host: Host, number: signal.Signals) -> None:
    host.guest("web", host.images / "a")
    with waiting(host, "--timeout", "5min") as running:
        running.signal(number)
        result = running.end()
    assert result.status == -number
    assert f"Stopped by {number.name} after " in result.messages
    assert f"still waiting for 1 disk of 1 guest: {host.images}/a for web (does not exist).\n" in result.messages


@as_root
def test_signal_ends_the_wait_while_a_file_system_hangs(host: Host) -> None:
    with hung_file_system(host.root / "nfs") as nfs:
        host.guest("web", nfs / "web.img")
        with host.start() as running:
            wait_until(lambda: handles(running.pid, signal.SIGTERM) and threads_of(running.pid) > 1)
            running.signal(signal.SIGTERM)
            assert running.end().status == -signal.SIGTERM


@pytest.mark.promise("A signal arrives at any moment")
def test_second_signal_also_ends_the_wait(host: Host) -> None:
    host.guest("web", host.images / "a")
    with waiting(host) as running:
        running.signal(signal.SIGINT)
        running.signal(signal.SIGTERM)
        assert running.end().status in (-signal.SIGINT, -signal.SIGTERM)


AT_A_MOMENT = """
import os, signal
moment, count = {moment}, 0
def trace(frame, event, _):
    global count
    count += 1
    if count == moment:
        os.kill(os.getpid(), signal.SIGTERM)
really_exit = os._exit
def exit(status):
    sys.setprofile(None)
    open({file!r}, "w").write(str(count))
    really_exit(status)
os._exit = exit
sys.setprofile(trace)
"""


@pytest.mark.promise("A signal ends it, and it never prints a traceback")
@pytest.mark.promise("A signal arrives at any moment")
def test_signal_at_any_moment_ends_the_wait_without_a_traceback(host: Host) -> None:
    """Try a dozen moments between start and exit, measured in function calls."""
    host.guest("web", host.images / "a")
    host.configuration("odd.cfg", "what is this\n")
    file = host.root / "count"
    host.run("--timeout", "200ms", program=program_with(AT_A_MOMENT.format(moment=0, file=str(file))))
    moments = 12
    calls = int(file.read_text())
    running = []
    for number in range(moments):
        moment = 1 + calls * number // moments
        program = program_with(AT_A_MOMENT.format(moment=moment, file=str(file)))
        running.append(host.start("--timeout", "200ms", program=program))
    statuses = [one.end().status for one in running]
    # After the last pause, a signal may have no effect, because the program exits anyway.
    assert set(statuses) <= {-signal.SIGTERM, xwd.EXIT_TIMED_OUT}
    assert statuses.count(-signal.SIGTERM) >= moments // 2


def test_signals_ignored_by_the_parent_stay_ignored(host: Host) -> None:
    host.guest("web", host.images / "a")
    with waiting(host, prefix=("nohup",)) as running:
        running.signal(signal.SIGHUP)
        host.image("a")
        assert running.end().status == xwd.EXIT_READY


@pytest.mark.promise("The clock is changed, the host is suspended, or the process is stopped")
def test_wait_continues_after_sigstop_and_sigcont(host: Host) -> None:
    host.guest("web", host.images / "a")
    with waiting(host) as running:
        running.signal(signal.SIGSTOP)
        wait_until(lambda: process_state(running.pid) == "T")
        host.image("a")
        running.signal(signal.SIGCONT)
        assert running.end().status == xwd.EXIT_READY


def test_suspend_longer_than_the_timeout_still_reports_missing_disks(host: Host, clock: FakeClock) -> None:
    host.guest("web", host.images / "a")

    def suspend() -> None:
        clock.seconds += 3600

    clock.at(10, suspend)
    result = clock.wait(host, timeout=1800)
    assert result.status == xwd.EXIT_TIMED_OUT
    assert f"{host.images}/a for web is still missing after 30min: does not exist\n" in result.messages


# ---------------------------------------------------------------------------------------------------------------------
# Cost
# ---------------------------------------------------------------------------------------------------------------------


def imported_by(statement: str) -> set[str]:
    """Return the modules imported by this statement, without those that Python itself needs at startup."""
    program = "\n".join(["import sys; before = {*sys.modules}", statement, "print(*{*sys.modules} - before)"])
    command = [sys.executable, "-c", program]
    # coverage.py imports many modules when it measures child processes.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    output = subprocess.run(command, capture_output=True, check=True, text=True, cwd=MODULE.parent, env=environment)
    return set(output.stdout.split())


SLOW_TO_IMPORT = {
    "argparse",
    "asyncio",
    "configobj",
    "logging",
    "pyudev",
    "shutil",
    "socket",
    "subprocess",
    "tenacity",
    "threading",
}


@pytest.mark.promise("If every disk is ready, it prints nothing and hardly delays the boot")
def test_nothing_slow_is_imported_with_everything_ready(host: Host) -> None:
    host.guest("web", host.image("a"))
    host.configure("")
    steps = f"""
import xendomains_wait_disk as xwd
settings = xwd.Settings(xendomains=({str(host.settings)!r},))
clock = xwd.Clock()
clock.take_signals()
xendomains = xwd.read_xendomains(settings, clock, 5)[0]
journal = xwd.Journal(xwd.INFO, sys.stderr, clock)
assert xwd.wait_for_disks(xwd.Watcher(xendomains, settings, clock), journal, clock.now()) == xwd.EXIT_READY
"""
    assert imported_by(steps) & SLOW_TO_IMPORT == set()


def test_only_configobj_is_imported_if_the_conf_sets_keys(host: Host) -> None:
    host.guest("web", host.image("a"))
    settings = f"xwd.read_settings({str(host.conf)!r})"
    modules = imported_by(f"import xendomains_wait_disk as xwd; assert {settings}[1] == []")
    assert "configobj" in modules
    assert modules & SLOW_TO_IMPORT <= imported_by("import configobj")


def test_configobj_is_not_imported_for_the_conf_as_shipped() -> None:
    settings = MODULE.parent / "etc" / "xen-wait-disk.conf"
    statement = f"import xendomains_wait_disk as xwd; xwd.read_settings({str(settings)!r})"
    assert "configobj" not in imported_by(statement)


def test_waiting_process_has_no_child_and_one_thread(host: Host) -> None:
    host.guest("web", host.images / "a")
    with waiting(host) as running:
        wait_until(lambda: threads_of(running.pid) == 1)
        assert Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text() == ""


# ---------------------------------------------------------------------------------------------------------------------
# systemd
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def systemd(host: Host) -> Receiver:
    """The notification socket of systemd: $NOTIFY_SOCKET."""
    return Receiver(host.root / "notify")


def test_systemd_gets_status_and_timeout_extension(host: Host, systemd: Receiver) -> None:
    host.guest("web", host.images / "a")
    with systemd, waiting(host, "--timeout", "1000", NOTIFY_SOCKET=systemd.address) as running:
        name, microseconds = systemd.receive().split("=")
        assert name == "EXTEND_TIMEOUT_USEC"
        assert 1000e6 < int(microseconds) <= 1030e6
        status, patience = systemd.receive().splitlines()
        assert status == f"STATUS=Waiting for 1 disk of 1 guest: {host.images}/a for web (does not exist)"
        assert patience.startswith("EXTEND_TIMEOUT_USEC=")
        host.image("a")
        assert systemd.receive().startswith("STATUS=All disks are ready.")
        assert running.end().status == xwd.EXIT_READY


@pytest.mark.promise("systemd temporarily accepts no notifications")
def test_systemd_status_is_resent_until_accepted(host: Host, systemd: Receiver) -> None:
    host.guest("web", host.images / "a")
    systemd.fill()
    with systemd, waiting(host, "--timeout", "1000", NOTIFY_SOCKET=systemd.address):
        while (message := systemd.receive()) == "noise":
            pass
    assert "EXTEND_TIMEOUT_USEC=" in message


@pytest.mark.parametrize("address", ["{}/notify", f"@xendomains-wait-disk-{os.getpid()}"], ids=["file", "abstract"])
def test_systemd_gets_status_at_the_timeout(host: Host, address: str) -> None:
    host.guest("web", host.images / "a")
    with Receiver(address.format(host.root)) as systemd:
        host.run("--timeout", "0", NOTIFY_SOCKET=systemd.address)
        last = systemd.receive_all()[-1]
    assert last == f"STATUS=Timed out waiting for 1 disk of 1 guest: {host.images}/a for web (does not exist)"


@pytest.mark.parametrize("address", ["/nowhere", "@", "vsock:2:1", "relative", "/a\nb", "/" + "x" * 200, "/\udcff"])
def test_bad_notify_socket_is_harmless(host: Host, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert xwd.notify("STATUS=Waiting") is True


def test_systemd_gets_only_timeout_extension_with_everything_ready(host: Host, systemd: Receiver) -> None:
    host.guest("web", host.image("a"))
    with systemd:
        host.run(NOTIFY_SOCKET=systemd.address)
        assert [message.partition("=")[0] for message in systemd.receive_all()] == ["EXTEND_TIMEOUT_USEC"]
