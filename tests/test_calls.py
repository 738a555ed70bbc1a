# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""BlockingCalls: calls that may hang take up only a few threads and little time. Also, the pauses of the main thread.

With the fixture `clock`, `clock.hanging_call()` makes a call that hangs, and `clock.slow_call(seconds)` a slow one.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from conftest import (
    MODULE,
    FakeClock,
    Host,
    as_root,
    clean_environment,
    hung_file_system,
    peak_memory,
    process_state,
    program_with,
    slow_file_system,
    wait_until,
    waiting,
)

import xendomains_wait_disk as xwd


class Calls:
    """BlockingCalls with a fake clock."""

    def __init__(self, clock: FakeClock) -> None:
        self.calls = xwd.BlockingCalls(clock)
        self.clock = clock
        self.seconds = 0.0  # duration of the last run

    def run(
        self,
        calls: Mapping[str, Callable[[], Any]],
        *,
        seconds: float = 1000,
        patience: float = xwd.STALL_TIMEOUT,
        purpose: str = "check",
    ) -> dict[str, Any]:
        """Return the results of the calls, None for those that are stuck."""
        started = self.clock.now()
        answers = self.calls.run(purpose, calls, started + seconds, patience)
        self.seconds = self.clock.now() - started
        return {path: None if isinstance(answer, xwd.NoResponse) else answer for path, answer in answers.items()}


@pytest.fixture
def calls(clock: FakeClock) -> Calls:
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


def test_exception_in_a_call_affects_only_its_path(calls: Calls) -> None:
    answers = calls.run({"wrong": lambda: 1 // 0, "right": yes})
    assert isinstance(answers["wrong"], ZeroDivisionError)
    assert answers["right"] == "yes"


def test_same_path_can_be_used_for_two_purposes(calls: Calls) -> None:
    assert calls.run({"a": yes}, purpose="read") == {"a": "yes"}
    assert calls.run({"a": lambda: "no"}, purpose="check") == {"a": "no"}


def test_empty_run_starts_no_thread(calls: Calls) -> None:
    assert calls.run({}) == {}
    assert calls.clock.threads_started == 0


# ---------------------------------------------------------------------------------------------------------------------
# Slow calls
# ---------------------------------------------------------------------------------------------------------------------


def test_slow_calls_run_in_parallel(calls: Calls) -> None:
    one_by_one = 100 * 0.2
    answers = calls.run({str(number): calls.clock.slow_call(0.2, "yes") for number in range(100)})
    assert set(answers.values()) == {"yes"}
    assert calls.seconds < one_by_one / 5


def test_run_continues_while_calls_keep_returning(calls: Calls) -> None:
    """A call returns at intervals of half the patience of a run."""
    answers = calls.run({str(n): calls.clock.slow_call(xwd.STALL_TIMEOUT / 2 * n, "yes") for n in range(20)})
    assert set(answers.values()) == {"yes"}


def test_late_result_is_returned_by_next_run(calls: Calls) -> None:
    assert calls.run({"slow": calls.clock.slow_call(5, "late")}) == {"slow": None}
    calls.clock.pause(5)
    assert calls.run({"slow": lambda: "too early"}) == {"slow": "late"}
    assert calls.run({"slow": yes}) == {"slow": "yes"}


def test_late_result_no_longer_needed_is_dropped(calls: Calls) -> None:
    calls.run({"slow": calls.clock.slow_call(5, "late")})
    calls.clock.pause(5)
    assert calls.run({"other": yes}) == {"other": "yes"}
    assert calls.run({"slow": yes}) == {"slow": "yes"}


def test_late_result_wakes_main_thread(calls: Calls) -> None:
    hang = calls.clock.hanging_call("late")
    calls.run({"hangs": hang})
    before = calls.clock.seconds
    calls.clock.at(before + 3, hang.release)
    calls.clock.pause(1000)
    assert calls.clock.seconds == before + 3


def test_late_result_wakes_main_thread_only_once(calls: Calls) -> None:
    calls.run({str(number): calls.clock.slow_call(0.2) for number in range(100)})
    before = calls.clock.seconds
    calls.clock.pause(10)
    assert calls.clock.seconds == before + 10


# ---------------------------------------------------------------------------------------------------------------------
# Calls that hang
# ---------------------------------------------------------------------------------------------------------------------


def test_hanging_call_is_reported_after_stall_timeout(calls: Calls) -> None:
    assert calls.run({"hangs": calls.clock.hanging_call(), "quick": yes}) == {"hangs": None, "quick": "yes"}
    assert calls.seconds == pytest.approx(xwd.STALL_TIMEOUT, abs=2 * xwd.POLL_INTERVAL)


def test_hanging_call_gets_the_requested_time(calls: Calls) -> None:
    assert calls.run({"slow": calls.clock.slow_call(5, "yes")}, patience=10) == {"slow": "yes"}
    calls.run({"hangs": calls.clock.hanging_call()}, patience=10)
    assert calls.seconds == pytest.approx(10, abs=2 * xwd.POLL_INTERVAL)


def test_next_run_does_not_wait_for_hanging_call(calls: Calls) -> None:
    asked: dict[str, Callable[[], Any]] = {"hangs": calls.clock.hanging_call(), "quick": yes}
    calls.run(asked)
    assert calls.run(asked) == {"hangs": None, "quick": "yes"}
    assert calls.seconds == 0


def test_hanging_call_is_not_repeated(calls: Calls) -> None:
    made = []
    hang = calls.clock.hanging_call()

    def call() -> None:
        made.append("once")
        hang()

    for _ in range(10):
        calls.run({"hangs": call})
    assert made == ["once"]


def test_hundreds_of_hanging_calls_do_not_block_others(calls: Calls) -> None:
    asked: dict[str, Callable[[], Any]] = {str(number): calls.clock.hanging_call() for number in range(500)}
    for _ in range(5):
        answers = calls.run({**asked, "last": yes})
    assert answers["last"] == "yes"


def test_run_ends_at_its_deadline(calls: Calls) -> None:
    assert calls.run({"hangs": calls.clock.hanging_call()}, seconds=0.7) == {"hangs": None}
    assert calls.seconds == pytest.approx(0.7)


def test_call_started_just_before_deadline_is_not_stuck(calls: Calls) -> None:
    assert calls.run({"slow": calls.clock.slow_call(1)}, seconds=xwd.STUCK_AFTER / 2) == {}


def test_call_without_a_turn_has_no_result_and_is_dropped(calls: Calls) -> None:
    made = []
    assert calls.run({"late": lambda: made.append("late")}, seconds=0) == {}
    calls.clock.pause(10)
    assert made == []


def test_time_while_suspended_does_not_count_as_stall(calls: Calls) -> None:
    """The host is suspended for a minute."""

    def suspend() -> None:
        calls.clock.seconds += 60

    calls.clock.at(0.1, suspend)
    assert calls.run({"a": calls.clock.slow_call(0.3, "yes")}) == {"a": "yes"}


# ---------------------------------------------------------------------------------------------------------------------
# Threads that cannot be started
# ---------------------------------------------------------------------------------------------------------------------


class FewThreads(FakeClock):
    """A clock in a process that can start only a limited number of further threads."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def start_thread(self, function: Callable[[], None]) -> None:
        if not self.left:
            raise RuntimeError("can't start new thread")
        self.left -= 1
        super().start_thread(function)


def test_no_call_is_made_if_no_thread_can_be_started() -> None:
    calls = Calls(FewThreads(0))
    assert calls.run({"a": yes, "b": yes}) == {}
    assert calls.seconds == pytest.approx(xwd.STALL_TIMEOUT, abs=2 * xwd.POLL_INTERVAL)


def test_all_calls_are_made_once_a_thread_can_be_started() -> None:
    clock = FewThreads(0)
    clock.at(1, lambda: setattr(clock, "left", 1))
    assert Calls(clock).run({"a": yes, "b": yes}) == {"a": "yes", "b": "yes"}


def test_one_available_thread_makes_all_quick_calls() -> None:
    assert Calls(FewThreads(1)).run({"a": yes, "b": yes}) == {"a": "yes", "b": "yes"}


def test_call_queued_behind_hanging_call_is_not_stuck() -> None:
    calls = Calls(FewThreads(1))
    assert calls.run({"a": calls.clock.hanging_call(), "b": yes}) == {"a": None}


# ---------------------------------------------------------------------------------------------------------------------
# Real file systems
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("A file system hangs (its NFS server is gone)")
@as_root
def test_hung_file_systems_with_hundreds_of_disks_take_little_memory_and_delay_no_other(host: Host) -> None:
    with hung_file_system(host.root / "one") as one, hung_file_system(host.root / "two") as two:
        for number in range(100):
            link = host.images / f"link{number}"
            link.symlink_to(os.path.relpath(one / f"link{number}", host.images))
            host.guest(f"a{number}", one / str(number), two / f"directory{number}" / "disk", link)
        host.guest("mail", host.images / "mail")
        host.guest("web", host.images / "web")
        with waiting(host) as running:
            running.wait_for(f"still waiting for {host.images}/mail for mail")
            host.image("mail")
            running.wait_for(f"disk {host.images}/mail found")
            host.image("web")
            running.wait_for(f"disk {host.images}/web found")
            assert peak_memory(running.pid) < 64


@as_root
def test_slow_file_system_is_checked_in_parallel_and_delays_no_other(host: Host) -> None:
    with slow_file_system(host.root / "slow", delay=0.2) as slow:
        slow.is_hanging = True
        slow.files.update({str(number): b"x" for number in range(49)})
        host.guest("slow", *(slow.directory / str(number) for number in range(50)))
        host.guest("web", host.images / "web")
        with host.start("--timeout", "5min") as running:
            wait_until(lambda: len(slow.pending) >= 4)
            slow.is_hanging = False
            running.wait_for(f"still waiting for {slow.directory}/49 for slow... (does not exist)\n")
            host.image("web")
            running.wait_for(f"disk {host.images}/web found")
            slow.files["49"] = b"x"
            assert running.end().status == xwd.EXIT_READY


@as_root
def test_disk_is_not_ready_if_its_file_system_hangs_during_wait(host: Host) -> None:
    with slow_file_system(host.root / "nfs", delay=0) as nfs:
        nfs.files["disk"] = b"x"
        host.guest("web", nfs.directory / "disk", host.images / "b")
        program = program_with("xwd.STALL_TIMEOUT_AT_END = 0.5")
        with waiting(host, "--timeout", "5min", program=program) as running:
            nfs.is_hanging = True
            host.image("b")
            running.wait_for(f"still waiting for {nfs.directory}/disk for web... (no response; is its file")
            nfs.is_hanging = False
            assert running.end().status == xwd.EXIT_READY


# ---------------------------------------------------------------------------------------------------------------------
# Pauses
# ---------------------------------------------------------------------------------------------------------------------


def test_pause_ends_when_main_thread_is_woken() -> None:
    clock = xwd.Clock()
    clock.wake()
    assert clock.pause(1000) is False


def test_repeated_wake_calls_do_not_block() -> None:
    clock = xwd.Clock()
    for _ in range(100_000):
        clock.wake()
    clock.pause(1000)


def test_pause_ends_when_descriptor_is_readable() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x")
    assert xwd.Clock().pause(1000, reading) is True
    assert os.read(reading, 2) == b"x"


def test_negative_pause_returns_at_once() -> None:
    assert xwd.Clock().pause(-1) is False


def test_pause_while_suspended_counts_only_its_intended_length() -> None:
    program = """
import xendomains_wait_disk as xwd
clock = xwd.Clock()
print("now", flush=True)
clock.pause(0.3)
print(clock.slept, flush=True)
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


def test_earlier_signal_ends_the_pause() -> None:
    clock = xwd.Clock()
    clock.take_signals()
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(xwd.Stopped) as stopped:
            clock.pause(1000)
    finally:
        signal.set_wakeup_fd(-1)
        clock.release_signals()
    assert stopped.value.number == signal.SIGHUP


def test_pause_ends_when_descriptor_is_writable() -> None:
    reading, writing = os.pipe()
    assert xwd.Clock().pause(1000, writing, select.POLLOUT) is True
    assert xwd.Clock().pause(0.01, reading, select.POLLIN) is False
