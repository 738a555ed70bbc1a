# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""What may never come back costs a few threads and a moment, and nobody else anything; and what the main thread does.

On the fixture `clock` a call that hangs is `clock.hang()`, and one that is slow `clock.takes(seconds)`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import (
    MODULE,
    Clock,
    Hang,
    Host,
    as_root,
    clean_environment,
    deaf_file_system,
    fill,
    peak_memory,
    process_state,
    program_with,
    slow_file_system,
    threads_of,
    wait_until,
    waiting,
)

import xendomains_wait_disk as xwd

# Those that are stuck before anybody knows, those that find out where, and some that go there at the same time.
A_FEW_THREADS = 4 * xwd.MAX_THREADS


class Calls:
    """BlockingCalls on a clock of its own."""

    def __init__(self, clock: Clock, threads: int = xwd.MAX_THREADS) -> None:
        self.pauses = xwd.Pauses()
        self.calls = xwd.BlockingCalls(self.pauses, threads)
        self.clock = clock
        self.seconds = 0.0  # that the last run took

    def run(
        self,
        calls: Mapping[str, Callable[[], Any]],
        *,
        seconds: float = 1000,
        anew: bool = False,
        purpose: str = "check",
    ) -> dict[str, Any]:
        """What they bring, as plain values: for what has not come back, the reason."""
        started = self.clock.now
        answers = self.calls.run(purpose, calls, started + seconds, anew)
        self.seconds = self.clock.now - started
        return {path: str(a) if isinstance(a, xwd.NoAnswer) else a for path, a in answers.items()}


@pytest.fixture
def calls(clock: Clock) -> Calls:
    return Calls(clock)


def yes() -> str:
    return "yes"


# ---------------------------------------------------------------------------------------------------------------------
# Quick calls
# ---------------------------------------------------------------------------------------------------------------------


def test_one_thread_makes_a_thousand_quick_calls(calls: Calls) -> None:
    answers = calls.run({str(number): yes for number in range(1000)})
    assert set(answers.values()) == {"yes"}
    assert len(answers) == 1000
    assert calls.clock.threads_started == 1
    assert calls.seconds == 0


def test_calls_are_made_again_each_time(calls: Calls) -> None:
    numbers = iter(range(10))
    assert [calls.run({"a": lambda: next(numbers)})["a"] for _ in range(3)] == [0, 1, 2]


def test_an_exception_in_a_call_is_the_answer_for_its_path_only(calls: Calls) -> None:
    answers = calls.run({"wrong": lambda: 1 // 0, "right": yes})
    assert isinstance(answers["wrong"], ZeroDivisionError)
    assert answers["right"] == "yes"


def test_the_same_path_may_be_asked_for_two_purposes(calls: Calls) -> None:
    assert calls.run({"a": yes}, purpose="read") == {"a": "yes"}
    assert calls.run({"a": lambda: "no"}, purpose="check") == {"a": "no"}


def test_of_what_is_not_asked_for_any_more_nothing_is_kept(calls: Calls) -> None:
    calls.run({str(number): yes for number in range(1000)})
    calls.run({"a": yes})
    assert len(calls.calls._answers) == 1


def test_to_ask_for_nothing_takes_no_thread(calls: Calls) -> None:
    assert calls.run({}) == {}
    assert calls.clock.threads_started == 0


# ---------------------------------------------------------------------------------------------------------------------
# Slow calls
# ---------------------------------------------------------------------------------------------------------------------


def test_slow_calls_are_made_side_by_side(calls: Calls) -> None:
    one_by_one = 100 * 0.2
    answers = calls.run({str(number): calls.clock.takes(0.2, "yes") for number in range(100)})
    assert set(answers.values()) == {"yes"}
    assert calls.seconds < one_by_one / 5


def test_slow_calls_are_made_side_by_side_also_while_nobody_waits_for_them(calls: Calls) -> None:
    slow = {str(number): calls.clock.takes(0.2, "yes") for number in range(100)}
    calls.run(slow)
    started = calls.clock.threads_started
    calls.run(slow)
    assert calls.seconds == 0
    assert calls.clock.threads_started - started > xwd.MAX_THREADS / 2


def test_what_is_quick_does_not_wait_for_what_was_slow_the_last_time(calls: Calls) -> None:
    asked = {"slow": calls.clock.takes(1, "late"), "quick": yes}
    assert calls.run(asked) == {"slow": "late", "quick": "yes"}
    assert calls.run(asked) == {"slow": "late", "quick": "yes"}
    assert calls.seconds == 0


def test_of_a_slow_call_the_last_answer_counts_until_the_next(calls: Calls) -> None:
    calls.run({"slow": calls.clock.takes(0.3, "first")})
    slow = {"slow": calls.clock.takes(0.3, "second")}
    assert calls.run(slow) == {"slow": "first"}
    calls.pauses.pause(1)
    assert calls.run(slow) == {"slow": "second"}


def test_of_a_slow_call_that_is_stuck_the_last_answer_does_not_count(calls: Calls) -> None:
    calls.run({"slow": calls.clock.takes(0.3, "first")})
    hanging = {"slow": calls.clock.hang()}
    calls.run(hanging)
    while calls.pauses.paused < 10:
        calls.pauses.pause(1)
    assert calls.run(hanging) == {"slow": xwd.NOT_RESPONDING}


def test_what_was_slow_once_is_waited_for_again_when_it_is_quick(calls: Calls) -> None:
    calls.run({"a": calls.clock.takes(1)})
    calls.run({"a": yes})
    assert calls.run({"a": yes}) == {"a": "yes"}
    assert calls.run({"a": calls.clock.takes(1, "late")}) == {"a": "late"}


def test_a_parser_makes_one_call_at_a_time(clock: Clock) -> None:
    calls = Calls(clock, threads=1)
    answers = calls.run({str(number): clock.takes(0.2, "yes") for number in range(5)})
    assert set(answers.values()) == {"yes"}
    assert calls.seconds >= 5 * 0.2


# ---------------------------------------------------------------------------------------------------------------------
# Calls that hang
# ---------------------------------------------------------------------------------------------------------------------


def test_a_call_that_hangs_is_told_from_others_after_a_moment(calls: Calls) -> None:
    answers = calls.run({"hangs": calls.clock.hang(), "quick": yes})
    assert answers == {"hangs": xwd.NOT_RESPONDING, "quick": "yes"}
    assert calls.seconds == pytest.approx(xwd.MAX_SILENCE, abs=5 * xwd.SLICE)


def test_as_long_as_answers_keep_coming_nothing_hangs(clock: Clock) -> None:
    calls = Calls(clock, threads=1)
    answers = calls.run({str(number): clock.takes(0.4, "yes") for number in range(20)})
    assert set(answers.values()) == {"yes"}
    assert calls.seconds > 3 * xwd.MAX_SILENCE


def test_the_next_time_nobody_waits_for_what_hangs(calls: Calls) -> None:
    asked: dict[str, Callable[[], Any]] = {"hangs": calls.clock.hang(), "quick": yes}
    calls.run(asked)
    assert calls.run(asked) == {"hangs": xwd.NOT_RESPONDING, "quick": "yes"}
    assert calls.seconds == 0


def test_a_call_that_hangs_is_not_made_twice(calls: Calls) -> None:
    asked = {"hangs": calls.clock.hang()}
    for _ in range(10):
        calls.run(asked)
    assert len(calls.calls._since) == 1


def test_a_run_ends_at_its_deadline(calls: Calls) -> None:
    assert calls.run({"hangs": calls.clock.hang()}, seconds=0.7) == {"hangs": xwd.NOT_RESPONDING}
    assert calls.seconds == pytest.approx(0.7)


def test_what_comes_back_late_counts_the_next_time(calls: Calls) -> None:
    hang = calls.clock.hang("late")
    asked: dict[str, Callable[[], Any]] = {"hangs": hang, "quick": yes}
    calls.run(asked)
    hang.release()
    calls.pauses.pause(1)
    assert calls.run(asked) == {"hangs": "late", "quick": "yes"}


def test_what_comes_back_late_wakes_the_main_thread(calls: Calls) -> None:
    hang = calls.clock.hang("late")
    calls.run({"hangs": hang})
    before = calls.clock.seconds
    calls.clock.at(before + 3, hang.release)
    calls.pauses.pause(1000)
    assert calls.clock.seconds == before + 3


def hanging(clock: Clock, path: str, number: int) -> dict[str, Callable[[], Any]]:
    """So many calls that hang, for files in this directory."""
    return {f"{path}/{n}": clock.hang() for n in range(number)}


def test_a_thousand_calls_that_hang_in_one_place_cost_a_few_threads(calls: Calls) -> None:
    asked = hanging(calls.clock, "/proc/self", 1000)
    for _ in range(20):
        answers = calls.run(asked)
        calls.pauses.pause(1)
    assert set(answers.values()) <= {xwd.NOT_RESPONDING, xwd.NOT_CHECKED}
    assert len(calls.calls._since) <= A_FEW_THREADS


def test_what_hangs_in_one_place_keeps_nobody_from_another(calls: Calls, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "disk")
    answers = calls.run({**hanging(calls.clock, "/proc/self", 1000), elsewhere: yes})
    assert answers[elsewhere] == "yes"


def test_when_the_place_answers_again_all_of_its_calls_are_made(calls: Calls, tmp_path: Path) -> None:
    asked = hanging(calls.clock, str(tmp_path), 200)
    for _ in range(5):
        calls.run(asked)
        calls.pauses.pause(1)
    for call in asked.values():
        assert isinstance(call, Hang)
        call.release()
    calls.pauses.pause(1)
    for _ in range(3):
        answers = calls.run(asked)
        calls.pauses.pause(1)
    assert set(answers.values()) == {None}


def test_time_in_which_the_program_was_stopped_is_not_the_silence_of_others(calls: Calls) -> None:
    """As when the host was suspended for a minute."""

    def suspended() -> None:
        calls.clock.now += 60

    calls.clock.at(0.1, suspended)
    assert calls.run({"a": calls.clock.takes(0.3, "yes")}) == {"a": "yes"}


# ---------------------------------------------------------------------------------------------------------------------
# A fresh look, at the end
# ---------------------------------------------------------------------------------------------------------------------


def test_a_fresh_look_does_not_take_silence_for_the_answer_of_before(calls: Calls) -> None:
    assert calls.run({"a": yes}) == {"a": "yes"}
    assert calls.run({"a": calls.clock.hang()}, anew=True) == {"a": xwd.NOT_RESPONDING}


def test_a_fresh_look_that_has_no_time_does_not_take_the_answer_of_before_either(calls: Calls) -> None:
    calls.run({"a": yes})
    assert calls.run({"a": calls.clock.hang()}, anew=True, seconds=0.1) == {"a": xwd.NOT_RESPONDING}


def test_a_fresh_look_waits_for_what_was_slow_before(calls: Calls) -> None:
    calls.run({"a": calls.clock.takes(0.3, "first")})
    assert calls.run({"a": calls.clock.takes(0.3, "second")}, anew=True) == {"a": "second"}


def test_a_fresh_look_is_more_patient(calls: Calls) -> None:
    assert calls.run({"a": calls.clock.takes(5, "yes")}, anew=True) == {"a": "yes"}


def test_a_fresh_look_is_not_patient_for_ever(calls: Calls) -> None:
    calls.run({"a": calls.clock.hang()}, anew=True)
    assert calls.seconds == pytest.approx(xwd.MAX_SILENCE_AT_END, abs=5 * xwd.SLICE)


def test_a_disk_that_no_longer_answers_when_the_last_one_comes_is_not_ready(
    host: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies, comes = host.image("dies"), host.images / "comes"
    host.guest("web", dies, comes)
    hang = clock.hang(xwd.READY)
    look = xwd.check_disk

    def check_disk(required: xwd.Required, facts: xwd.StorageFacts) -> xwd.Status:
        status: xwd.Status = hang() if str(dies) == required.path and clock.seconds > 10 else look(required, facts)
        return status

    monkeypatch.setattr(xwd, "check_disk", check_disk)
    monkeypatch.setattr(xwd, "required_by", lambda disk: xwd.Required(disk.target))
    clock.at(20, partial(fill, comes))
    result = clock.wait(host, timeout=100)
    assert result.status == xwd.EXIT_TIMED_OUT
    assert f"still waiting for {dies} for web... (does not answer" in result.messages
    assert f"{dies} for web is still not ready after 1min 40s: does not answer" in result.messages


# ---------------------------------------------------------------------------------------------------------------------
# Threads that cannot be had
# ---------------------------------------------------------------------------------------------------------------------


def limit_threads(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """From now on only so many can be started."""
    start: Callable[..., int] = vars(xwd)["start_new_thread"]
    left = [number]

    def start_new_thread(*arguments: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        return start(*arguments)

    monkeypatch.setattr(xwd, "start_new_thread", start_new_thread)


def test_without_a_thread_to_be_had_nothing_is_checked_and_it_is_told(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_threads(monkeypatch, 0)
    assert calls.run({"a": yes, "b": yes}) == {"a": xwd.NOT_CHECKED, "b": xwd.NOT_CHECKED}
    assert calls.seconds == pytest.approx(xwd.MAX_SILENCE, abs=5 * xwd.SLICE)


def test_as_soon_as_a_thread_can_be_had_everything_is_checked(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        limit_threads(patch, 0)
        calls.run({"a": yes, "b": yes})
    calls.run({"a": yes, "b": yes})
    calls.pauses.pause(1)
    assert calls.run({"a": yes, "b": yes}) == {"a": "yes", "b": "yes"}


def test_with_one_thread_to_be_had_quick_calls_are_made(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_threads(monkeypatch, 1)
    assert calls.run({"a": yes, "b": yes}) == {"a": "yes", "b": "yes"}


def test_what_waits_for_a_thread_that_hangs_is_told_from_what_hangs(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_threads(monkeypatch, 1)
    assert calls.run({"a": calls.clock.hang(), "b": yes}) == {"a": xwd.NOT_RESPONDING, "b": xwd.NOT_CHECKED}


# ---------------------------------------------------------------------------------------------------------------------
# Real file systems
# ---------------------------------------------------------------------------------------------------------------------


def in_one_directory(host: Host, deaf: Path, number: int) -> Path:
    return deaf / str(number)


def in_many_directories(host: Host, deaf: Path, number: int) -> Path:
    return deaf / f"directory{number}" / "disk"


def behind_links(host: Host, deaf: Path, number: int) -> Path:
    link = host.images / f"link{number}"
    link.symlink_to(os.path.relpath(deaf / str(number), host.images))
    return link


@as_root
@pytest.mark.parametrize("place", [in_one_directory, in_many_directories, behind_links])
def test_a_dead_file_system_with_1024_disks_costs_a_few_threads_and_nobody_a_disk(
    host: Host, place: Callable[[Host, Path, int], Path]
) -> None:
    with deaf_file_system(host.root / "nfs") as nfs:
        host.guest("z", *(place(host, nfs, number) for number in range(1024)))
        host.guest("mail", host.images / "mail")
        host.guest("web", host.images / "web")
        with waiting(host, program=program_with("xwd.MAX_SILENCE = 0.2; xwd.MAX_LINES = 5000")) as running:
            host.image("mail")
            running.wait_for(f"disk {host.images}/mail found")
            host.image("web")
            running.wait_for(f"disk {host.images}/web found")
            assert threads_of(running.pid) <= A_FEW_THREADS
            assert peak_memory(running.pid) < 64
            running.signal(signal.SIGTERM)
            assert running.end().status == -signal.SIGTERM


@as_root
def test_two_dead_file_systems_and_one_that_lives(host: Host) -> None:
    with deaf_file_system(host.root / "one") as one, deaf_file_system(host.root / "two") as two:
        host.guest("a", *(directory / str(number) for number in range(100) for directory in (one, two)))
        host.guest("web", host.images / "web")
        with waiting(host, program=program_with("xwd.MAX_SILENCE = 0.2")) as running:
            host.image("web")
            running.wait_for(f"disk {host.images}/web found")


@as_root
def test_a_slow_file_system_is_looked_at_side_by_side(host: Host) -> None:
    with slow_file_system(host.root / "slow", delay=0) as slow:
        slow.is_deaf = True
        host.guest("web", *(slow.directory / str(number) for number in range(100)))
        host.start("--timeout", "5min")
        wait_until(lambda: len(slow.pending) >= 4)


@as_root
def test_a_slow_file_system_holds_nobody_up_and_its_disks_are_found(host: Host) -> None:
    with slow_file_system(host.root / "slow", delay=0.2) as slow:
        slow.files.update({str(number): b"x" for number in range(49)})
        host.guest("slow", *(slow.directory / str(number) for number in range(50)))
        host.guest("web", host.images / "web")
        with host.start("--timeout", "5min") as running:
            running.wait_for(f"still waiting for {slow.directory}/49 for slow... (does not exist)\n")
            host.image("web")
            running.wait_for(f"disk {host.images}/web found")
            slow.files["49"] = b"x"
            assert running.end().status == xwd.EXIT_READY


@as_root
def test_a_disk_whose_file_system_dies_during_the_wait_is_not_ready(host: Host) -> None:
    with slow_file_system(host.root / "nfs", delay=0) as nfs:
        nfs.files["disk"] = b"x"
        host.guest("web", nfs.directory / "disk", host.images / "b")
        program = program_with("xwd.MAX_SILENCE_AT_END = 0.5")
        with waiting(host, "--timeout", "5min", program=program) as running:
            nfs.is_deaf = True
            host.image("b")
            running.wait_for(f"still waiting for {nfs.directory}/disk for web... (does not answer; is the server of")
            nfs.is_deaf = False
            assert running.end().status == xwd.EXIT_READY


@as_root
def test_a_disk_on_a_file_system_that_answers_at_last_is_found(host: Host) -> None:
    with slow_file_system(host.root / "nfs", delay=0) as nfs:
        nfs.files["disk"] = b"x"
        nfs.is_deaf = True
        host.guest("web", nfs.directory / "disk")
        with host.start("--timeout", "5min") as running:
            running.wait_for(f"still waiting for {nfs.directory}/disk for web... (does not answer; is the server of")
            nfs.is_deaf = False
            result = running.end()
    assert result.status == xwd.EXIT_READY
    assert f"disk {nfs.directory}/disk found" in result.messages


@as_root
def test_a_configuration_that_comes_in_small_pieces_is_read_to_its_end(host: Host) -> None:
    with slow_file_system(host.root / "nfs", delay=0, most=100) as nfs:
        file = host.guest("web", *(host.images / str(number) for number in range(20)))
        nfs.files["web.cfg"] = file.read_bytes()
        file.unlink()
        file.symlink_to(nfs.directory / "web.cfg")
        disks = host.list()["domains"][0]["disks"]
    assert [disk["path"] for disk in disks] == [f"{host.images}/{number}" for number in range(20)]


@as_root
def test_a_stop_while_a_file_system_takes_its_time_changes_nothing(host: Host) -> None:
    with slow_file_system(host.root / "nfs", delay=0) as nfs:
        nfs.files["disk"] = b"x"
        nfs.is_deaf = True
        host.guest("web", nfs.directory / "disk")
        with host.start("--timeout", "5min") as running:
            wait_until(lambda: nfs.asked)
            running.signal(signal.SIGSTOP)
            wait_until(lambda: process_state(running.pid) == "T")
            nfs.is_deaf = False
            wait_until(lambda: not nfs.pending)
            running.signal(signal.SIGCONT)
            assert running.end().status == xwd.EXIT_READY


# ---------------------------------------------------------------------------------------------------------------------
# Pauses
# ---------------------------------------------------------------------------------------------------------------------


def test_a_pause_ends_when_somebody_wakes_the_main_thread() -> None:
    pauses = xwd.Pauses()
    pauses.wake()
    assert pauses.pause(1000) is False


def test_who_is_awake_can_be_woken_as_often_as_one_likes() -> None:
    pauses = xwd.Pauses()
    for _ in range(100_000):
        pauses.wake()
    pauses.pause(1000)


def test_a_pause_ends_when_there_is_something_to_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x")
    assert xwd.Pauses().pause(1000, reading) is True
    assert os.read(reading, 2) == b"x"


def test_a_pause_in_the_past_does_not_pause() -> None:
    assert xwd.Pauses().pause(-1) is False


def test_a_pause_counts_no_longer_than_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is an hour later each time it is looked at, as on a host that is suspended again and again."""
    hours = iter(range(100))
    monkeypatch.setattr(xwd, "time", SimpleNamespace(monotonic=lambda: 3600.0 * next(hours)))
    pauses = xwd.Pauses()
    pauses.pause(0.01)
    pauses.pause(0.02)
    assert pauses.paused == pytest.approx(0.03)


def test_a_pause_in_which_the_program_is_stopped_counts_no_longer_than_was_meant() -> None:
    program = """
import xendomains_wait_disk as xwd
pauses = xwd.Pauses()
print("now", flush=True)
pauses.pause(0.3)
print(pauses.paused, flush=True)
"""
    command = [sys.executable, "-c", program]
    environment = clean_environment()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=MODULE.parent) as process:
        assert process.stdout
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: process_state(process.pid) == "T")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGCONT)
        assert 0 < float(process.stdout.readline()) <= 0.3


def test_a_signal_that_came_before_the_pause_ends_it() -> None:
    pauses = xwd.Pauses()
    pauses._mark(signal.SIGHUP, None)
    pauses._mark(signal.SIGTERM, None)
    with pytest.raises(xwd.Stopped) as stopped:
        pauses.pause(1000)
    assert stopped.value.number == signal.SIGHUP
