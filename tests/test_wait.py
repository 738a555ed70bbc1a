# SPDX-License-Identifier: GPL-3.0-or-later
"""The wait: it ends when everything is ready, when time is over, or on a signal, and never later."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Timer, get_ident

import pytest
from conftest import MODULE, Host, Result, as_root, deaf_file_system, finish, next_line, wait_until

import xendomains_wait_disk as xwd


@contextmanager
def waiting(host: Host, *arguments: str, **environment: str) -> Iterator[Waiter]:
    """The command while it waits: it has said so."""
    process = host.start(*arguments, **environment)
    try:
        yield Waiter(process, next_line(process))
    finally:
        process.kill()
        process.wait()


class Waiter:
    def __init__(self, process: subprocess.Popen[str], first: str) -> None:
        self.process = process
        self._first = first
        self._started = time.monotonic()

    def end(self) -> Result:
        result = finish(self.process, self._started)
        result.messages = self._first + result.messages
        return result


def test_with_everything_ready_it_says_nothing_and_ends(host: Host) -> None:
    host.guest("web", host.image("a"), host.image("b"))
    result = host.run()
    assert (result.status, result.output, result.messages) == (xwd.EXIT_READY, "", "")


def test_it_ends_when_the_last_disk_comes(host: Host) -> None:
    host.guest("web", host.images / "a", host.images / "b")
    with waiting(host) as waiter:
        host.image("a")
        time.sleep(1.2)
        assert waiter.process.poll() is None
        host.image("b")
        result = waiter.end()
    assert result.status == xwd.EXIT_READY
    assert f"disk {host.images}/a found (after " in result.messages
    assert f"disk {host.images}/b found (after " in result.messages


def test_a_file_without_any_event_is_noticed_within_longest(host: Host) -> None:
    host.configure("[polling]\nlongest = 500ms\n")
    host.guest("web", host.images / "a")
    with waiting(host) as waiter:
        time.sleep(1.5)
        host.image("a")
        result = waiter.end()
    assert result.seconds < 1.5 + 0.5 + 0.5


def test_on_timeout_it_names_each_disk_and_why_and_the_status_is_1(host: Host) -> None:
    host.guest("web", host.images / "a", host.image("b"))
    host.guest("mail", host.images)
    result = host.run("--timeout", "1")
    assert result.status == xwd.EXIT_TIMED_OUT
    assert 1 <= result.seconds < 2
    assert f"{host.images}/a for web is still missing after 1s: does not exist\n" in result.messages
    assert f"{host.images} for mail is still not ready after 1s: is a directory, neither" in result.messages
    assert result.messages.endswith("xendomains starts now; these guests will probably not come up: mail, web.\n")


def test_a_timeout_of_0_looks_once(host: Host) -> None:
    host.guest("web", host.images / "a")
    result = host.run("--timeout", "0")
    assert result.status == xwd.EXIT_TIMED_OUT
    assert result.seconds < 1
    assert f"{host.images}/a for web is still missing: does not exist\n" in result.messages


def test_a_configuration_behind_a_link_that_dangles_is_read_when_it_comes(host: Host) -> None:
    link = host.auto / "web.cfg"
    link.symlink_to(host.root / "later.cfg")
    with waiting(host) as waiter:
        (host.root / "later.cfg").write_text(f'name="web"\ndisk=["{host.images}/a,raw,xvda,rw"]\n')
        time.sleep(1.2)
        assert waiter.process.poll() is None
        host.image("a")
        result = waiter.end()
    assert result.status == xwd.EXIT_READY
    assert f"still waiting for {link} for web.cfg...\n" in result.messages
    assert f"configuration {link} found (after " in result.messages
    assert f"still waiting for {host.images}/a for web...\n" in result.messages


def test_an_auto_directory_behind_a_link_that_dangles_is_read_when_it_comes(host: Host) -> None:
    host.auto.rmdir()
    host.auto.symlink_to(host.root / "later")
    with waiting(host) as waiter:
        (host.root / "later").mkdir()
        result = waiter.end()
    assert result.status == xwd.EXIT_READY
    assert f"still waiting for {host.auto} for auto...\n" in result.messages


def test_a_new_configuration_is_read_during_the_wait(host: Host) -> None:
    host.guest("web", host.images / "a")
    with waiting(host, "--timeout", "10") as waiter:
        host.guest("mail", host.images / "b")
        time.sleep(1.2)
        host.image("a")
        time.sleep(1.2)
        assert waiter.process.poll() is None
        host.image("b")
        result = waiter.end()
    assert result.status == xwd.EXIT_READY
    assert f"still waiting for {host.images}/b for mail...\n" in result.messages


def test_a_changed_configuration_is_read_again(host: Host) -> None:
    host.guest("web", host.images / "a")
    with waiting(host, "--timeout", "10") as waiter:
        host.guest("web", host.image("another"))
        result = waiter.end()
    assert result.status == xwd.EXIT_READY
    assert f"{host.images}/a is no longer needed" in result.messages


def test_a_removed_configuration_is_dropped(host: Host) -> None:
    file = host.guest("web", host.images / "a")
    with waiting(host, "--timeout", "10") as waiter:
        file.unlink()
        result = waiter.end()
    assert result.status == xwd.EXIT_READY
    assert f"{host.images}/a is no longer needed" in result.messages


def test_a_disk_that_comes_and_goes_is_waited_for_again(host: Host) -> None:
    first, second = host.image("a"), host.images / "b"
    host.guest("web", first, second)
    with waiting(host, "--timeout", "10") as waiter:
        first.unlink()
        second.touch()
        time.sleep(1.2)
        assert waiter.process.poll() is None
        first.touch()
        result = waiter.end()
    assert result.status == xwd.EXIT_READY
    assert f"still waiting for {first} for web...\n" in result.messages


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_at_once_and_says_what_was_missing(host: Host, number: signal.Signals) -> None:
    host.guest("web", host.images / "a")
    with waiting(host) as waiter:
        time.sleep(0.5)
        sent = time.monotonic()
        waiter.process.send_signal(number)
        result = waiter.end()
        assert time.monotonic() - sent < 0.5
    assert result.status == -number
    assert f"Stopped by {number.name} after " in result.messages
    assert f"still waiting for {host.images}/a for web (does not exist).\n" in result.messages


@as_root
def test_the_timeout_holds_while_a_file_system_does_not_answer(host: Host) -> None:
    with deaf_file_system(host.root / "nfs") as nfs:
        host.guest("web", nfs / "web.img")
        host.guest("mail", host.image("mail"))
        result = host.run("--timeout", "2")
    assert result.status == xwd.EXIT_TIMED_OUT
    assert 2 <= result.seconds < 3
    assert f"{nfs}/web.img for web is still not ready after 2s: does not answer" in result.messages
    assert "mail" not in result.messages


@as_root
def test_other_disks_are_waited_for_while_a_file_system_does_not_answer(host: Host) -> None:
    with deaf_file_system(host.root / "nfs") as nfs:
        for number in range(5):
            host.guest(f"web{number}", nfs / f"{number}.img")
        host.guest("mail", host.images / "mail")
        with waiting(host, "--timeout", "5") as waiter:
            host.image("mail")
            result = waiter.end()
    assert result.status == xwd.EXIT_TIMED_OUT
    assert result.seconds < 6
    assert f"disk {host.images}/mail found" in result.messages
    assert "mail" not in result.messages.splitlines()[-1]


@as_root
def test_a_configuration_that_does_not_answer_does_not_hold_the_others(host: Host) -> None:
    with deaf_file_system(host.root / "nfs") as nfs:
        (host.auto / "away.cfg").symlink_to(nfs / "away.cfg")
        host.guest("mail", host.images / "mail")
        result = host.run("--timeout", "2")
    assert 2 <= result.seconds < 3
    assert f"{host.auto}/away.cfg for away.cfg is still missing after 2s: does not answer" in result.messages
    assert f"{host.images}/mail for mail is still missing after 2s: does not exist" in result.messages


@as_root
def test_a_directory_that_does_not_answer_does_not_hold_the_boot(host: Host) -> None:
    with deaf_file_system(host.root / "nfs") as nfs:
        host.auto.rmdir()
        host.auto.symlink_to(nfs / "auto")
        assert 1 <= host.run("--timeout", "1").seconds < 2


@as_root
def test_looking_once_does_not_hang_either(host: Host) -> None:
    with deaf_file_system(host.root / "nfs") as nfs:
        host.guest("web", nfs / "web.img")
        assert host.run("--timeout", "0").seconds < 1


@as_root
def test_a_signal_ends_it_at_once_while_a_file_system_does_not_answer(host: Host) -> None:
    with deaf_file_system(host.root / "nfs") as nfs:
        host.guest("web", nfs / "web.img")
        process = host.start("--timeout", "20")
        started = time.monotonic()
        time.sleep(1.5)
        process.send_signal(signal.SIGTERM)
        assert finish(process, started).seconds < 2.5


def test_a_settings_file_that_hangs_does_not_outlast_the_timeout(host: Host) -> None:
    host.settings.write_text("sleep 60\n")
    result = host.run("--timeout", "1")
    assert result.seconds < 2
    assert f"{host.settings} was not read within 1s" in result.messages


def test_what_a_scout_brings_late_counts_the_next_time() -> None:
    scouts = xwd.Scouts()
    released = Event()
    calls = {"slow": released.wait, "quick": lambda: True}
    assert scouts.run("look", calls, time.monotonic() + 5) == {"quick": True}
    assert scouts.run("look", calls, time.monotonic() + 5) == {"quick": True}
    released.set()
    calls["slow"] = Event().wait
    wait_until(lambda: scouts.run("look", calls, time.monotonic() + 5) == {"slow": True, "quick": True})


def test_many_calls_that_hang_hold_up_others_for_a_moment_only() -> None:
    calls = {str(number): Event().wait for number in range(100)}
    started = time.monotonic()
    assert xwd.Scouts().run("look", {**calls, "quick": lambda: True}, started + 20) == {"quick": True}
    assert time.monotonic() - started < 2


def test_an_error_in_a_call_is_not_lost() -> None:
    with pytest.raises(ZeroDivisionError):
        xwd.Scouts().run("look", {"wrong": lambda: 1 // 0}, time.monotonic() + 5)


@as_root
def test_looking_once_finds_the_others_though_a_file_system_does_not_answer(host: Host) -> None:
    with deaf_file_system(host.root / "nfs") as nfs:
        host.guest("deaf", nfs / "web.img")
        host.guest("here", host.image("here"))
        messages = host.run("--timeout", "0").messages
    assert messages.endswith("these guests will probably not come up: deaf.\n")


def test_a_second_signal_ends_it_as_well(host: Host) -> None:
    host.guest("web", host.images / "a")
    with waiting(host) as waiter:
        time.sleep(0.5)
        waiter.process.send_signal(signal.SIGINT)
        waiter.process.send_signal(signal.SIGTERM)
        assert waiter.end().status in (-signal.SIGINT, -signal.SIGTERM)


def test_a_signal_while_it_tells_of_the_timeout_is_no_error(host: Host) -> None:
    for number in range(300):
        host.guest(f"web{number}", host.images / str(number))
    for delay in (0.05, 0.1, 0.15, 0.2, 0.3):
        process = host.start("--timeout", "0")
        started = time.monotonic()
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        assert finish(process, started).status in (-signal.SIGTERM, xwd.EXIT_TIMED_OUT)


def test_an_overrun_of_events_is_an_event_and_gets_a_new_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    class Overrun:
        def poll(self, timeout: float) -> None:
            raise OSError("Error while polling fd: 3")

    class Quiet:
        def poll(self, timeout: float) -> None:
            time.sleep(timeout)

    monitors: dict[str, list[Overrun | Quiet]] = {"/run/here": [Overrun(), Quiet()]}
    monkeypatch.setattr(xwd, "block_events", lambda kernel: monitors[kernel.run_udev].pop(0))
    alarm = xwd.UdevAlarm(xwd.Kernel(run_udev="/run/here"), time.monotonic() + 10)
    started = time.monotonic()
    alarm.sleep(1)
    assert xwd.UdevAlarm.SHORTEST <= time.monotonic() - started < 0.5
    alarm.sleep(0.3)
    assert time.monotonic() - started >= 0.3


@pytest.mark.usefixtures("no_pyudev")
def test_without_pyudev_a_pause_has_its_full_length() -> None:
    started = time.monotonic()
    xwd.UdevAlarm(xwd.Kernel(), started + 10).sleep(0.2)
    assert 0.2 <= time.monotonic() - started < 0.4


def test_a_storm_of_events_does_not_make_a_pause_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Storm:
        def poll(self, timeout: float) -> str:
            return "event"

    monkeypatch.setattr(xwd, "block_events", lambda kernel: Storm())
    started = time.monotonic()
    xwd.UdevAlarm(xwd.Kernel(), started + 10).sleep(0.2)
    assert 0.2 <= time.monotonic() - started < 0.4


def test_without_a_thread_to_be_had_the_caller_looks_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(xwd, "start_thread", no_thread)
    assert xwd.Scouts().run("look", {"a": get_ident}, time.monotonic() + 5) == {"a": get_ident()}


def test_without_more_threads_to_be_had_scouts_come_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_one_thread(function: Callable[[], None]) -> None:
        monkeypatch.setattr(xwd, "start_thread", no_thread)
        start_thread(function)

    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    start_thread = xwd.start_thread
    monkeypatch.setattr(xwd, "start_thread", only_one_thread)
    calls = {"slow": Event().wait, "a": lambda: True, "b": lambda: True}
    started = time.monotonic()
    assert xwd.Scouts(0.1).run("look", calls, started + 5) == {}
    assert time.monotonic() - started < 1


def test_a_pause_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xwd, "block_events", lambda kernel: None)
    started = time.monotonic()
    xwd.UdevAlarm(xwd.Kernel(), started + 0.2).sleep(5)
    assert 0.2 <= time.monotonic() - started < 0.4


def test_scouts_give_up_at_the_deadline() -> None:
    started = time.monotonic()
    assert xwd.Scouts().run("look", {"slow": Event().wait}, started + 0.2) == {}
    assert time.monotonic() - started < 0.4


def test_scouts_do_not_give_up_on_many_quick_calls() -> None:
    calls = {str(number): lambda: time.sleep(0.01) for number in range(100)}
    assert len(xwd.Scouts().run("look", calls, time.monotonic() + 5)) == 100


def imported_by(statement: str) -> set[str]:
    """The modules that are imported when this statement has run."""
    program = "\n".join(["import sys, xendomains_wait_disk as xwd", statement, "print(*sys.modules)"])
    command = [sys.executable, "-c", program]
    # coverage.py, where it measures child processes, imports a lot.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    output = subprocess.run(command, capture_output=True, check=True, text=True, cwd=MODULE.parent, env=environment)
    return set(output.stdout.split())


def test_with_everything_ready_nothing_slow_is_imported(host: Host) -> None:
    host.guest("web", host.image("a"))
    settings = f"xwd.Settings(xendomains=({str(host.settings)!r},))"
    journal = "xwd.Journal(xwd.INFO, sys.stderr)"
    xendomains = f"xwd.read_xendomains({settings}, 5)[0]"
    modules = imported_by(f"assert xwd.wait_and_tell({xendomains}, {settings}, {journal}, 0.0) == xwd.EXIT_READY")
    slow = {
        "argparse",
        "asyncio",
        "configobj",
        "json",
        "logging",
        "pyudev",
        "socket",
        "subprocess",
        "tenacity",
        "typing",
    }
    assert modules & slow == set()


def test_with_a_conf_that_sets_keys_only_configobj_is_added(host: Host) -> None:
    host.guest("web", host.image("a"))
    modules = imported_by(f"assert xwd.main(['--config', {str(host.conf)!r}]) == xwd.EXIT_READY")
    assert "configobj" in modules
    slow = {"asyncio", "json", "logging", "pyudev", "socket", "subprocess", "tenacity", "typing"}
    assert modules & slow <= imported_by("import configobj.validate")


def test_with_the_conf_as_shipped_configobj_is_not_imported() -> None:
    settings = MODULE.parent / "etc" / "xen-wait-disk.conf"
    assert "configobj" not in imported_by(f"xwd.read_settings({str(settings)!r})")


def test_the_wait_makes_no_child_processes(host: Host) -> None:
    host.guest("web", host.images / "a")
    with waiting(host) as waiter:
        time.sleep(1)
        assert Path(f"/proc/{waiter.process.pid}/task/{waiter.process.pid}/children").read_text() == ""


@pytest.fixture
def notify_socket(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
        unix.bind(str(tmp_path / "notify"))
        unix.settimeout(5)
        yield unix


def test_systemd_is_told_what_is_waited_for_and_to_be_patient(host: Host, notify_socket: socket.socket) -> None:
    host.guest("web", host.images / "a")
    with waiting(host, "--timeout", "100", NOTIFY_SOCKET=str(notify_socket.getsockname())) as waiter:
        status, patience = notify_socket.recv(4096).decode().splitlines()
        assert status == f"STATUS=Waiting for {host.images}/a for web (does not exist)"
        name, microseconds = patience.split("=")
        assert name == "EXTEND_TIMEOUT_USEC"
        assert 100 <= int(microseconds) / 1e6 <= 112
        host.image("a")
        assert notify_socket.recv(4096).decode().startswith("STATUS=Everything that the guests need is ready.")
        assert waiter.end().status == xwd.EXIT_READY


def test_systemd_is_told_of_a_timeout(host: Host, notify_socket: socket.socket) -> None:
    host.guest("web", host.images / "a")
    host.run("--timeout", "1", NOTIFY_SOCKET=str(notify_socket.getsockname()))
    notify_socket.recv(4096)
    assert notify_socket.recv(4096).decode() == f"STATUS=Timed out waiting for {host.images}/a for web (does not exist)"


def test_an_abstract_notify_socket_works_too(host: Host) -> None:
    host.guest("web", host.images / "a")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
        unix.bind(f"\0xendomains-wait-disk-{os.getpid()}")
        unix.settimeout(5)
        host.run("--timeout", "0", NOTIFY_SOCKET=f"@xendomains-wait-disk-{os.getpid()}")
        assert unix.recv(4096).startswith(b"STATUS=Waiting for ")


def test_a_notify_socket_that_is_gone_does_not_matter(host: Host) -> None:
    host.guest("web", host.images / "a")
    assert host.run("--timeout", "0", NOTIFY_SOCKET="/nowhere").status == xwd.EXIT_TIMED_OUT


def test_reminders_come_with_doubling_gaps(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.guest("web", host.images / "a")
    now = 0.0
    journal = xwd.Journal(xwd.WARNING, sys.stderr)
    herald = xwd.Herald(journal, now, 300)
    xendomains = xwd.Xendomains(str(host.settings), str(host.auto))
    found = xwd.survey(xendomains, xwd.Settings(), xwd.Kernel(), xwd.Scouts(), xwd.Survey(), float("inf"))
    reminded_at = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xendomains_wait_disk.time.monotonic", lambda: now)
        for second in range(301):
            now = float(second)
            herald.tell(found)
            if "still waiting" in capsys.readouterr().err:
                reminded_at.append(second)
    assert reminded_at == [0, 5, 15, 35, 75, 155]


def test_a_pause_is_not_longer_than_what_is_left(host: Host) -> None:
    host.configure("[polling]\nfirst = 20s\nlongest = 20s\n")
    host.guest("web", host.images / "a")
    assert 1 <= host.run("--timeout", "1").seconds < 2


def test_the_disk_that_comes_in_the_last_moment_counts(host: Host) -> None:
    host.configure("[polling]\nfirst = 20s\nlongest = 20s\n")
    host.guest("web", host.images / "a")
    Timer(1.0, host.image, ["a"]).start()
    assert host.run("--timeout", "2").status == xwd.EXIT_READY


def test_json_and_table_are_made_of_the_same(host: Host) -> None:
    host.guest("web", host.image("a"), host.images / "b")
    table = host.run("list").output
    for disk in host.list()["domains"][0]["disks"]:
        assert any(disk["path"] in line and disk["state"] in line for line in table.splitlines())
    assert json.loads(host.run("list", "--json").output) == host.list()
