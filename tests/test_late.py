# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The command late: a guest whose disks come late starts when they are there, and no other, and never twice."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from conftest import MODULE, Host, Result, Running

import xendomains_wait_disk as xwd


class LateHost(Host):
    """A host whose xl records what it is asked for, and does what it is told."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.logs = root / "log"
        self.tried = root / "tried"
        self.calls = root / "calls"
        self.answer = root / "answer"
        for directory in (self.logs, self.tried, root / "bin"):
            directory.mkdir()
        self.let_xl("exit 0")
        self.running = root / "running"
        self.running.touch()
        xl = root / "bin" / "xl"
        xl.write_text(
            f'#!/bin/sh\n[ "$1" = domid ] && exec grep -x "$2" {self.running}\n'
            f'echo "$*" >>{self.calls}\n. {self.answer}\n'
        )
        xl.chmod(0o755)

    def let_xl(self, script: str) -> None:
        """What xl does when it is to create a guest."""
        self.answer.write_text(f"{script}\n")

    def created(self) -> list[str]:
        """What xl was asked to do."""
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def late(self, *arguments: str) -> Running:
        """The command, running."""
        places = {"LATE_DIRECTORY": self.tried, "XL_LOGS": self.logs}
        code = "m.LATE_PAUSE = 0.1\n" + "".join(f"m.{name} = {str(path)!r}\n" for name, path in places.items())
        start = f"import sys; sys.path.insert(0, {str(MODULE.parent)!r})\nimport {MODULE.stem} as m\n{code}m.run()"
        path = f"{self.root}/bin:{os.environ['PATH']}"
        return self.start("late", *arguments, program=(sys.executable, "-c", start), PATH=path)

    def log(self, name: str, text: str, age: float = 0.0) -> None:
        """What xl leaves once it has started a guest."""
        file = self.logs / f"xl-{name}.log"
        file.write_text(text)
        then = file.stat().st_mtime - age
        os.utime(file, (then, then))


@pytest.fixture
def late_host(tmp_path: Path) -> LateHost:
    return LateHost(tmp_path)


def assert_left_alone(host: LateHost, result: Result, status: int, reason: str) -> None:
    assert (result.status, host.created()) == (status, [])
    assert reason in result.messages


def test_a_guest_is_started_when_its_disk_is_there(late_host: LateHost) -> None:
    file = late_host.guest("web", late_host.images / "web")
    with late_host.late("web") as running:
        running.wait_for(f"still waiting for {late_host.images}/web for web... (does not exist)")
        assert late_host.created() == []
        late_host.image("web")
        result = running.end()
    assert result.status == xwd.EXIT_READY
    assert late_host.created() == [f"create --quiet --defconfig {file}"]


def test_a_guest_that_the_boot_ignores_is_waited_for_all_the_same(late_host: LateHost) -> None:
    late_host.configure("[ignore]\ndomains = web\n")
    late_host.guest("web", late_host.images / "web")
    with late_host.late("web") as running:
        running.wait_for("still waiting for ")
        late_host.image("web")
        running.end()
    assert len(late_host.created()) == 1


@pytest.mark.parametrize("name", ["web", "10-web.cfg", "10-web"])
def test_a_guest_goes_by_its_name_or_that_of_its_file(late_host: LateHost, name: str) -> None:
    file = late_host.guest("web", late_host.image("web")).rename(late_host.auto / "10-web.cfg")
    late_host.late(name).end()
    assert late_host.created() == [f"create --quiet --defconfig {file}"]


def test_a_guest_that_runs_is_left_alone(late_host: LateHost) -> None:
    late_host.guest("web", late_host.image("web"))
    late_host.running.write_text("web\n")
    assert_left_alone(late_host, late_host.late("web").end(), xwd.EXIT_READY, "guest web runs already.")


def test_a_guest_that_ran_since_the_boot_and_was_shut_down_stays_down(late_host: LateHost) -> None:
    late_host.guest("web", late_host.image("web"))
    late_host.log("web", "Waiting for domain web (domid 1) to die\n")
    reason = "guest web has been started since the host booted"
    assert_left_alone(late_host, late_host.late("web").end(), xwd.EXIT_READY, reason)


def test_a_guest_that_is_started_by_hand_during_the_wait_is_left_alone(late_host: LateHost) -> None:
    late_host.guest("web", late_host.images / "web")
    with late_host.late("web") as running:
        running.wait_for("still waiting for ")
        late_host.log("web", "Waiting for domain web (domid 1) to die\n")
        late_host.image("web")
        result = running.end()
    assert_left_alone(late_host, result, xwd.EXIT_READY, "guest web has been started since the host booted")


@pytest.mark.parametrize(("text", "age"), [("before the boot\n", 10 * 365 * 86400.0), ("", 0.0)])
def test_an_old_log_and_one_that_was_rotated_say_nothing(late_host: LateHost, text: str, age: float) -> None:
    late_host.guest("web", late_host.image("web"))
    late_host.log("web", text, age)
    late_host.late("web").end()
    assert len(late_host.created()) == 1


def test_a_guest_without_a_configuration_is_not_started(late_host: LateHost) -> None:
    late_host.guest("web", late_host.image("web"))
    result = late_host.late("wbe").end()
    reason = "'wbe' is not a guest that starts at boot (did you mean web?). It is not started.\n"
    assert_left_alone(late_host, result, xwd.EXIT_USAGE, reason)


def test_a_guest_whose_configuration_is_taken_away_during_the_wait_is_not_started(late_host: LateHost) -> None:
    file = late_host.guest("web", late_host.images / "web")
    with late_host.late("web") as running:
        running.wait_for("still waiting for ")
        file.unlink()
        late_host.image("web")
        result = running.end()
    assert_left_alone(late_host, result, xwd.EXIT_USAGE, "'web' is not a guest that starts at boot")


def test_a_guest_that_xl_would_reject_is_not_started(late_host: LateHost) -> None:
    (late_host.auto / "web.cfg").write_text('name = "web"\ndisk = [\n')
    result = late_host.late("web").end()
    assert_left_alone(late_host, result, xwd.EXIT_USAGE, f"{late_host.auto}/web.cfg: line 3: syntax error")


def test_a_guest_that_was_saved_is_not_created_afresh(late_host: LateHost) -> None:
    late_host.guest("web", late_host.image("web"))
    file = late_host.saved("web", late_host.images / "web")
    reason = f"guest web was saved in {file}, and is not started from its configuration (fix: xl restore {file}).\n"
    assert_left_alone(late_host, late_host.late("web").end(), xwd.EXIT_TIMED_OUT, reason)


@pytest.mark.parametrize("name", ["web", "web.cfg", "web01"])
def test_a_saved_guest_is_known_by_its_own_name(late_host: LateHost, name: str) -> None:
    file = late_host.guest("web01", late_host.image("web")).rename(late_host.auto / "web.cfg")
    saved = late_host.saved("web01", late_host.images / "web")
    reason = f"guest web01 was saved in {saved}, and is not started from its configuration"
    assert_left_alone(late_host, late_host.late(name).end(), xwd.EXIT_TIMED_OUT, reason)
    assert file.exists()


def test_a_name_is_that_of_a_guest_rather_than_of_a_file(late_host: LateHost) -> None:
    late_host.guest("db", late_host.image("db")).rename(late_host.auto / "web.cfg")
    file = late_host.guest("web", late_host.image("web")).rename(late_host.auto / "zz.cfg")
    late_host.late("web").end()
    assert late_host.created() == [f"create --quiet --defconfig {file}"]


def test_a_configuration_that_is_not_there_yet_is_waited_for(late_host: LateHost, tmp_path: Path) -> None:
    later = tmp_path / "later"
    (late_host.auto / "10.cfg").symlink_to(later)
    with late_host.late("-v", "web") as running:
        file = late_host.guest("web", late_host.image("web")).rename(later)
        assert running.end().status == xwd.EXIT_READY
    assert file == later and late_host.created() == [f"create --quiet --defconfig {late_host.auto}/10.cfg"]


def test_a_wait_with_a_timeout_ends(late_host: LateHost) -> None:
    late_host.guest("web", late_host.images / "web")
    assert late_host.late("--timeout", "200ms", "web").end().status == xwd.EXIT_TIMED_OUT
    assert late_host.created() == []


def test_what_has_failed_is_known_by_the_name_of_the_guest(late_host: LateHost) -> None:
    late_host.guest("web01", late_host.image("web")).rename(late_host.auto / "web.cfg")
    late_host.let_xl("exit 1")
    late_host.late("web").end()
    with late_host.late("--no-start", "-v", "web") as running:
        running.wait_for("xl has failed to start guest web01")


def test_a_saved_guest_counts_only_if_xendomains_restores(late_host: LateHost) -> None:
    late_host.settings.write_text(late_host.settings.read_text().replace("=true", "=false"))
    late_host.guest("web", late_host.image("web"))
    late_host.saved("web", late_host.images / "web")
    late_host.late("web").end()
    assert len(late_host.created()) == 1


def test_what_xl_says_of_a_failure_is_told(late_host: LateHost) -> None:
    file = late_host.guest("web", late_host.image("web"))
    late_host.let_xl("echo 'libxl: error: no memory' >&2; exit 3")
    result = late_host.late("web").end()
    assert result.status == xwd.EXIT_TIMED_OUT
    assert "xl: libxl: error: no memory\n" in result.messages
    assert f"guest web could not be started with {file}; xl's status is 3.\n" in result.messages


def test_after_a_failure_it_waits_until_a_disk_has_changed(late_host: LateHost) -> None:
    late_host.guest("web", late_host.image("web"))
    late_host.let_xl("exit 1")
    late_host.late("web").end()
    with late_host.late("--no-start", "-v", "web") as running:
        running.wait_for("xl has failed to start guest web; waiting until one of its disks has changed.")
        assert running.process.poll() is None
    (late_host.images / "web").write_text("changed")
    assert late_host.late("--no-start", "web").end().status == xwd.EXIT_READY
    late_host.let_xl("exit 0")
    assert late_host.late("web").end().status == xwd.EXIT_READY


def test_the_wait_and_the_start_can_be_two_commands(late_host: LateHost) -> None:
    """As in xendomains-late@.service, which takes the privileges of the one away, and not of the other."""
    late_host.guest("web", late_host.image("web"))
    assert late_host.late("--no-start", "web").end().status == xwd.EXIT_READY
    assert late_host.created() == []
    assert late_host.late("--timeout", "0", "web").end().status == xwd.EXIT_READY
    assert len(late_host.created()) == 1


def test_a_wait_that_ends_without_a_start_has_a_status_that_skips_the_start(late_host: LateHost) -> None:
    late_host.guest("web", late_host.image("web"))
    late_host.log("web", "Waiting for domain web (domid 1) to die\n")
    assert late_host.late("--no-start", "web").end().status == xwd.EXIT_TIMED_OUT


def test_the_start_does_not_wait(late_host: LateHost) -> None:
    late_host.guest("web", late_host.images / "web")
    assert late_host.late("--timeout", "0", "web").end().status == xwd.EXIT_TIMED_OUT
    assert late_host.created() == []


def test_a_signal_ends_the_wait(late_host: LateHost) -> None:
    late_host.guest("web", late_host.images / "web")
    with late_host.late("web") as running:
        running.wait_for("still waiting for ")
        running.signal(signal.SIGTERM)
        assert running.end().status == -signal.SIGTERM


@pytest.mark.parametrize("names", [(), ("one", "two")])
def test_it_takes_one_guest(late_host: LateHost, names: tuple[str, ...]) -> None:
    result = late_host.late(*names).end()
    assert result.status == xwd.EXIT_USAGE
    assert "late takes the name of one guest" in result.messages
