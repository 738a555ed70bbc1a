# SPDX-License-Identifier: GPL-3.0-or-later
"""While the wait goes on, udev dies, directories are replaced, files grow, disks flap, and file systems hang.

Whatever happens, the disks of the other guests are found, the wait ends on time, and it says what is so.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from threading import Event, Thread

import pytest
from conftest import (
    MODULE,
    Host,
    as_root,
    attached,
    clean_environment,
    deaf_file_system,
    finish,
    loop_device,
    next_line,
    saved_file,
    wait_until,
)
from test_wait import waiting

import xendomains_wait_disk as xwd

GIB = 1 << 30


@contextmanager
def again_and_again(action: Callable[[], object], pause: float = 0.0) -> Iterator[None]:
    """Does this over and over, beside the test."""
    over = Event()

    def run() -> None:
        while not over.wait(pause):
            action()

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# ---------------------------------------------------------------------------------------------------------------------
# Every fault, and what holds for all of them
# ---------------------------------------------------------------------------------------------------------------------

Fault = Callable[[Host], "AbstractContextManager[object]"]


def link_everywhere(target: str) -> Fault:
    """A link to this as a configuration, as a saved domain, and as a disk."""

    def make(host: Host) -> AbstractContextManager[None]:
        for directory in (host.auto, host.save, host.images):
            (directory / "odd").symlink_to(target)
        host.guest("odd", host.images / "odd")
        return nullcontext()

    return make


def everywhere(make_file: Callable[[Path], object]) -> Fault:
    """A file of this kind as a configuration, as a saved domain, and as a disk."""

    def make(host: Host) -> AbstractContextManager[None]:
        for directory in (host.auto, host.save, host.images):
            make_file(directory / "odd")
        host.guest("odd", host.images / "odd")
        return nullcontext()

    return make


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(GIB)


def configuration(text: str) -> Fault:
    def make(host: Host) -> AbstractContextManager[None]:
        (host.auto / "odd").write_text(text)
        return nullcontext()

    return make


def saved_lengths(size: int, optional: int) -> Fault:
    """A saved domain that claims these lengths, with 1 GiB behind its header."""

    def make(host: Host) -> AbstractContextManager[None]:
        file = host.save / "odd"
        file.write_bytes(saved_file(b"", size=size, optional=optional))
        os.truncate(file, GIB)
        return nullcontext()

    return make


def settings(text: str) -> Fault:
    def make(host: Host) -> AbstractContextManager[None]:
        with host.settings.open("a") as file:
            file.write(text)
        return nullcontext()

    return make


def hanging(paths: int) -> Fault:
    """That many guests whose disks lie on a file system that does not answer."""

    @contextmanager
    def make(host: Host) -> Iterator[None]:
        with deaf_file_system(host.root / "deaf") as deaf:
            for number in range(paths):
                host.guest(f"a{number}", deaf / str(number))
            yield

    return make


def crowd(host: Host) -> AbstractContextManager[None]:
    for number in range(5000):
        (host.auto / f"x{number}").symlink_to("/nowhere")
    return nullcontext()


def flapping(host: Host) -> AbstractContextManager[None]:
    disk = host.images / "flapping"
    host.guest("odd", disk, host.images / "never")

    def flap() -> None:
        disk.touch()
        disk.unlink()

    return again_and_again(flap)


def growing(host: Host) -> AbstractContextManager[None]:
    def grow() -> None:
        with (host.auto / "log").open("a") as file:
            file.write("what is this?\n")

    return again_and_again(grow, 0.001)


def replaced(host: Host) -> AbstractContextManager[None]:
    """The directory of configurations is renamed away and put back, time and again."""
    away = host.root / "away"
    return again_and_again(lambda: (host.auto.rename(away), away.rename(host.auto)), 0.0005)


MIB_OF_DISKS = ",".join(f'"/{number:x},,a"' for number in range(90_000))
MIB = "x" * 1_000_000

FAULTS: list[tuple[str, Fault, int]] = [
    ("link to itself", link_everywhere("odd"), xwd.EXIT_TIMED_OUT),
    ("/dev/zero", link_everywhere("/dev/zero"), xwd.EXIT_TIMED_OUT),
    ("/dev/random", link_everywhere("/dev/random"), xwd.EXIT_TIMED_OUT),
    ("/dev/tty", link_everywhere("/dev/tty"), xwd.EXIT_TIMED_OUT),
    ("/dev/stdin", link_everywhere("/dev/stdin"), xwd.EXIT_TIMED_OUT),
    # These call themselves regular files, and more is not known of a disk image either.
    ("/proc/self/mem", link_everywhere("/proc/self/mem"), xwd.EXIT_READY),
    ("/proc/kmsg", link_everywhere("/proc/kmsg"), xwd.EXIT_READY),
    ("/proc/self/environ", link_everywhere("/proc/self/environ"), xwd.EXIT_READY),
    ("FIFO", everywhere(os.mkfifo), xwd.EXIT_TIMED_OUT),
    ("socket", everywhere(bind_socket), xwd.EXIT_TIMED_OUT),
    ("directory", everywhere(Path.mkdir), xwd.EXIT_TIMED_OUT),
    ("1 GiB", everywhere(sparse), xwd.EXIT_READY),
    ("long name", configuration(f'name = "{MIB}"\ndisk = ["/no,,a", "/none,,b"]\n'), xwd.EXIT_TIMED_OUT),
    ("long target", configuration(f'name = "odd"\ndisk = ["/{MIB},,a"]\n'), xwd.EXIT_READY),
    ("long row of flags", configuration(f'name = "odd"\ndisk = ["{"cdrom," * 170_000}"]\n'), xwd.EXIT_READY),
    ("90,000 disks", configuration(f'name = "odd"\ndisk = [{MIB_OF_DISKS}]\n'), xwd.EXIT_TIMED_OUT),
    ("saved, all lengths", saved_lengths(0xFFFFFFFF, 0xFFFFFFFF), xwd.EXIT_READY),
    ("saved, longest read", saved_lengths(1 << 20, 0xFFFFFFFF), xwd.EXIT_READY),
    ("settings print", settings("yes &\nseq 1000000\n"), xwd.EXIT_READY),
    ("settings fork", settings("for _ in {1..50}; do sleep 100 & done\n"), xwd.EXIT_READY),
    ("saved domains beside a crowd", crowd, xwd.EXIT_TIMED_OUT),
    ("1 hanging", hanging(1), xwd.EXIT_TIMED_OUT),
    ("100 hanging", hanging(100), xwd.EXIT_TIMED_OUT),
    ("flapping", flapping, xwd.EXIT_TIMED_OUT),
    ("growing", growing, xwd.EXIT_READY),
    ("replaced", replaced, xwd.EXIT_READY),
]


def session_members(session: int) -> list[str]:
    """The processes of a session that have not ended."""
    members = []
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat_file.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has just ended
        if int(its_session) == session and state not in "ZX":
            members.append(stat_file.parent.name)
    return members


@pytest.mark.parametrize(("fault", "status"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_whatever_happens_others_are_found_and_it_ends_on_time(host: Host, fault: Fault, status: int) -> None:
    if fault.__qualname__.startswith("hanging") and os.geteuid() != 0:
        pytest.skip("only root may mount a file system that does not answer")
    timeout = 2
    good = host.images / "good"
    host.saved("good", good)
    with ExitStack() as stack:
        stack.enter_context(fault(host))
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, MODULE, "--config", host.conf, "--timeout", str(timeout)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
            start_new_session=True,
        )
        first = next_line(process)
        good.touch()
        result = finish(process, started)
        assert result.seconds < timeout + 1
        assert result.status == status
        assert f"disk {good} found (after " in first + result.messages
        assert len(result.messages) < 500_000
        assert session_members(process.pid) == []


# ---------------------------------------------------------------------------------------------------------------------
# Directories and configurations that change
# ---------------------------------------------------------------------------------------------------------------------


def test_a_directory_renamed_away_for_a_moment_is_not_taken_for_empty(host: Host) -> None:
    host.guest("web", host.images / "a")
    with waiting(host, "--timeout", "10") as waiter:
        away = host.auto.rename(host.root / "away")
        time.sleep(0.5)
        away.rename(host.auto)
        time.sleep(1.2)
        assert waiter.process.poll() is None
        host.image("a")
        assert waiter.end().status == xwd.EXIT_READY


def test_the_disks_of_a_directory_put_in_place_of_another_are_waited_for(host: Host) -> None:
    host.guest("web", host.images / "a")
    new = host.root / "new"
    new.mkdir()
    (new / "mail.cfg").write_text(f'name="mail"\ndisk=["{host.images}/b,,a"]\n')
    with waiting(host, "--timeout", "10") as waiter:
        host.auto.rename(host.root / "away")
        new.rename(host.auto)
        time.sleep(1.5)
        assert waiter.process.poll() is None
        host.image("b")
        result = waiter.end()
    assert result.status == xwd.EXIT_READY
    assert f"still waiting for {host.images}/b for mail...\n" in result.messages
    assert f"{host.images}/a is no longer needed" in result.messages


def test_a_link_switched_to_another_directory_is_followed(host: Host) -> None:
    for name in ("old", "new"):
        (host.root / name).mkdir()
    (host.root / "new" / "mail.cfg").write_text(f'name="mail"\ndisk=["{host.images}/b,,a"]\n')
    host.auto.rmdir()
    host.auto.symlink_to("old")
    host.guest("web", host.images / "a")
    with waiting(host, "--timeout", "10") as waiter:
        (host.root / "link").symlink_to("new")
        (host.root / "link").rename(host.auto)
        time.sleep(1.5)
        host.image("b")
        result = waiter.end()
    assert result.status == xwd.EXIT_READY
    assert f"disk {host.images}/b found" in result.messages


@pytest.mark.parametrize("becomes", [None, Path.touch])
def test_a_directory_that_is_gone_for_good_is_not_waited_for(
    host: Host, becomes: Callable[[Path], None] | None
) -> None:
    host.guest("web", host.images / "a")
    with waiting(host, "--timeout", "10") as waiter:
        host.auto.rename(host.root / "away")
        if becomes:
            becomes(host.auto)
        result = waiter.end()
    assert (result.status, f"{host.images}/a is no longer needed" in result.messages) == (xwd.EXIT_READY, True)
    assert result.seconds < 4


@as_root
def test_a_directory_whose_permission_is_taken_is_told_of(host: Host) -> None:
    """Root may enter it all the same, unless the capabilities for that are taken, too."""
    host.guest("web", host.images / "a")
    without = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    process = subprocess.Popen(
        [*without, sys.executable, MODULE, "--config", host.conf, "--timeout", "10"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    assert next_line(process).startswith("still waiting")
    started = time.monotonic()
    host.auto.chmod(0)
    try:
        result = finish(process, started)
    finally:
        host.auto.chmod(0o755)
    assert f"{host.auto}: cannot be read: Permission denied" in result.messages
    assert result.seconds < 4


def test_a_configuration_that_is_cut_and_written_anew_is_not_taken_for_broken(host: Host) -> None:
    file = host.guest("web", host.images / "a")
    with waiting(host, "--timeout", "10") as waiter:
        with file.open("w") as writer:
            time.sleep(0.4)
            writer.write('name = "web"\n')
            writer.flush()
            time.sleep(0.4)
            writer.write(f'disk = ["{host.images}/b,,a"]\n')
        time.sleep(1.5)
        assert waiter.process.poll() is None
        host.image("b")
        assert waiter.end().status == xwd.EXIT_READY


def test_a_file_that_always_changes_holds_the_boot_for_a_moment_only_and_is_told_of_a_few_times(host: Host) -> None:
    log = host.auto / "log"
    host.guest("web", host.images / "a")
    host.configure("[polling]\nlongest = 20ms\nfirst = 20ms\n")
    lengths = itertools.count()
    with (
        waiting(host, "--timeout", "10") as waiter,
        again_and_again(lambda: log.write_text("\n" * next(lengths) + "?\n"), 0.005),
    ):
        time.sleep(2)
        host.image("a")
        result = waiter.end()
    assert result.status == xwd.EXIT_READY
    assert result.seconds < 7
    assert result.messages.count(f"{log}: ") <= xwd.Herald.MOST_CHANGES
    assert f"{log} keeps changing; no more is said of that for a while.\n" in result.messages


def test_a_change_that_leaves_no_trace_in_time_and_size_is_noticed(host: Host) -> None:
    """As on a file system that tells the time in steps, where the second of two changes may look like the first."""
    file = host.guest("web", host.images / "a")
    known = xwd.read_entry(str(file), "auto", None, xwd.Settings())
    status = file.stat()
    host.guest("web", host.images / "b")
    assert file.stat().st_size == status.st_size
    with pytest.MonkeyPatch.context() as patch:
        real = os.stat
        patch.setattr("xendomains_wait_disk.os.stat", lambda path: status if path == str(file) else real(path))
        entry = xwd.read_entry(str(file), "auto", known, xwd.Settings())
    assert entry and [disk.target for disk in entry.domain.disks] == [f"{host.images}/b"]


def test_a_file_that_becomes_a_fifo_before_it_is_opened_is_refused(host: Host) -> None:
    file = host.guest("web")
    status = file.stat()
    file.unlink()
    os.mkfifo(file)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(xwd.Refusal, match="is a FIFO, not a regular file"):
        patch.setattr("xendomains_wait_disk.os.stat", lambda _: status)
        xwd.read_file(str(file))


def test_what_looks_empty_as_all_in_proc_does_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xendomains_wait_disk.os.open", pytest.fail)
    assert xwd.read_file("/proc/kmsg") == b""


# ---------------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd_of_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of 100,000 files."""
    directory = tmp_path_factory.mktemp("crowd")
    for number in range(100_000):
        os.close(os.open(f"{directory}/g{number:06}", os.O_CREAT | os.O_WRONLY))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def crowded(host: Host, crowd_of_files: Path) -> Host:
    """A host with 100,000 files where configurations should be, and a saved domain."""
    host.auto.rmdir()
    host.auto.symlink_to(crowd_of_files)
    host.saved("a", host.images / "a")
    return host


def test_of_a_directory_with_too_many_files_the_first_are_looked_at(crowded: Host) -> None:
    with waiting(crowded, "--timeout", "20") as waiter:
        peak = peak_memory(waiter.process.pid)
        crowded.image("a")
        result = waiter.end()
    assert result.status == xwd.EXIT_READY
    assert f"{crowded.auto}: holds more than 4096 files" in result.messages
    assert f"{crowded.auto}/g000000: names no domain" in result.messages
    assert len(result.messages.splitlines()) < 1100
    assert peak < 60


def peak_memory(process: int) -> float:
    """The most that a process has used so far, in MiB."""
    line = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("delay", [0.1, 0.3, 0.6])
def test_a_signal_ends_it_in_the_midst_of_a_hundred_thousand_files(crowded: Host, delay: float) -> None:
    process = crowded.start("--timeout", "20")
    time.sleep(delay)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    result = finish(process, sent)
    assert result.status == -signal.SIGTERM
    assert result.seconds < 0.5


def test_of_many_missing_disks_a_thousand_are_named_and_the_others_counted(host: Host) -> None:
    for number in range(1100):
        host.guest(f"web{number}", host.images / "a")
    lines = host.run("--timeout", "1").messages.splitlines()
    assert sum("still waiting for" in line for line in lines) == 1000
    assert sum("is still missing" in line for line in lines) == 1000
    assert lines.count("There are 100 more messages like these; `xendomains-wait-disk list` shows everything.") == 2
    assert lines[-1].endswith(", 1000 more.")


def test_what_is_too_long_for_a_line_is_cut_in_the_middle(host: Host) -> None:
    (host.auto / "odd").write_text(f'name = "{MIB}"\ndisk = ["/no,,a"]\n')
    messages = host.run("--timeout", "0").messages
    assert max(map(len, messages.splitlines())) < 20_000
    assert "still waiting for /no for xxx" in messages and "xxx is still missing: does not exist\n" in messages
    table = host.run("list").output
    assert max(map(len, table.splitlines())) < 2_000


def test_systemd_hears_how_long_to_wait_though_a_name_is_long(host: Host) -> None:
    (host.auto / "odd").write_text(f'name = "{MIB}"\ndisk = ["/no,,a"]\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
        unix.bind(str(host.root / "notify"))
        unix.settimeout(5)
        with waiting(host, "--timeout", "100", NOTIFY_SOCKET=str(host.root / "notify")):
            assert "EXTEND_TIMEOUT_USEC=1" in unix.recv(1 << 20).decode()


def test_settings_that_end_the_shell_leave_nothing_running(host: Host) -> None:
    host.settings.write_text("sleep 100 &\nexit\n")
    process = subprocess.Popen(
        [sys.executable, MODULE, "--config", host.conf, "--timeout", "1"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    process.wait()
    assert session_members(process.pid) == []


def test_settings_of_a_gigabyte_are_not_read(host: Host) -> None:
    sparse(host.settings)
    problems = xwd.read_xendomains(xwd.Settings(xendomains=(str(host.settings),)), 5)[1]
    assert [problem for problem in problems if f"{host.settings} has {GIB} bytes" in problem]


def test_a_directory_in_settings_that_is_endless_is_named_as_such(host: Host) -> None:
    host.settings.write_text("printf -v XENDOMAINS_AUTO %2000000s\n")
    problems = xwd.read_xendomains(xwd.Settings(xendomains=(str(host.settings),)), 5)[1]
    assert [problem for problem in problems if "makes bash print more than 1048576 bytes" in problem]


# ---------------------------------------------------------------------------------------------------------------------
# File systems that hang
# ---------------------------------------------------------------------------------------------------------------------


@as_root
def test_a_hundred_paths_that_hang_take_a_thread_each_and_a_signal_ends_it(host: Host) -> None:
    with deaf_file_system(host.root / "deaf") as deaf:
        for number in range(100):
            host.guest(f"a{number}", deaf / str(number))
        host.guest("web", host.images / "web")
        with waiting(host) as waiter:
            host.image("web")
            time.sleep(2)
            assert 100 <= len(os.listdir(f"/proc/{waiter.process.pid}/task")) <= 105
            sent = time.monotonic()
            waiter.process.send_signal(signal.SIGTERM)
            result = waiter.end()
        assert time.monotonic() - sent < 0.5
    assert f"disk {host.images}/web found" in result.messages
    assert result.status == -signal.SIGTERM


def test_no_more_than_a_thousand_threads_hang_and_what_is_not_looked_at_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(xwd.Scouts, "MOST_LOST", 5)
    monkeypatch.setattr(xwd.Scouts, "AT_ONCE", 2)
    release = Event()
    scouts = xwd.Scouts()
    calls = {str(number): release.wait for number in range(10)}
    scouts.run("look", calls, time.monotonic() + 5)
    silences = [scouts.silence("look", path) for path in calls]
    assert (silences.count(xwd.NO_ANSWER), silences.count(xwd.NOT_LOOKED_AT)) == (5, 5)
    release.set()


def test_a_directory_that_does_not_answer_in_the_last_look_is_not_taken_for_empty(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.guest("web", host.image("a"))
    release = Event()
    monkeypatch.setattr(xwd, "list_entries", lambda *_: release.wait())
    scouts, known = xwd.Scouts(), xwd.Survey()
    xendomains = xwd.Xendomains(str(host.settings), str(host.auto))
    for again in (False, True):
        deadline = time.monotonic() + 0.5
        known = xwd.survey(xendomains, xwd.Settings(), xwd.Kernel(), scouts, known, deadline, again)
        assert [one.path for one in known.missing()] == [str(host.auto)]
    release.set()


# ---------------------------------------------------------------------------------------------------------------------
# Disks that come and go
# ---------------------------------------------------------------------------------------------------------------------


def test_a_disk_that_has_gone_again_at_the_timeout_is_named(host: Host) -> None:
    a = host.images / "a"
    host.guest("web", a, host.images / "never")
    with waiting(host, "--timeout", "2") as waiter:
        a.touch()
        while "found" not in next_line(waiter.process):
            pass
        a.unlink()
        result = waiter.end()
    assert f"{a} for web is still missing after 2s: does not exist\n" in result.messages


def swapping(host: Host, pause: float) -> AbstractContextManager[None]:
    """Of the two disks of a guest, one is there, and then the other."""
    one, other = host.image("one"), host.images / "other"
    host.guest("web", one, other)
    host.configure("[polling]\nfirst = 10ms\nlongest = 10ms\n")
    names = [one, other]

    def swap() -> None:
        names[0].rename(names[1])
        names.reverse()

    return again_and_again(swap, pause)


def test_it_does_not_end_while_two_disks_are_never_there_together(host: Host) -> None:
    with swapping(host, 0.3):
        assert host.run("--timeout", "2").status == xwd.EXIT_TIMED_OUT


def test_disks_that_come_and_go_all_the_time_make_few_lines(host: Host) -> None:
    with swapping(host, 0.001):
        assert len(host.run("--timeout", "2").messages.splitlines()) < 40


def test_a_disk_that_flaps_for_five_minutes_makes_a_few_dozen_lines(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    disk = xwd.Disk("xvda", "/a")
    entry = xwd.Entry((), xwd.Domain("web", "/web.cfg", "auto", (disk,)), (xwd.wanted(disk),))
    herald = xwd.Herald(xwd.Journal(xwd.WARNING, sys.stderr), now, 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xendomains_wait_disk.time.monotonic", lambda: now)
        for step in range(30_000):
            now = step / 100
            look = xwd.READY if step % 2 else xwd.Look(xwd.State.MISSING, "does not exist")
            herald.tell(xwd.Survey({"/web.cfg": entry}, {"/a": look}))
    assert len(capsys.readouterr().err.splitlines()) < 90


# ---------------------------------------------------------------------------------------------------------------------
# udev
# ---------------------------------------------------------------------------------------------------------------------

UDEVD = next((d for d in ("/lib/systemd/systemd-udevd", "/usr/lib/systemd/systemd-udevd") if Path(d).exists()), "")


class Place:
    """A mount and a network namespace: an empty /run/udev, and events of udev that nobody else hears."""

    def __init__(self) -> None:
        script = "mount -t tmpfs tmpfs /run && mkdir /run/udev && echo made && exec sleep 1000"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--net", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
        self._udevd: subprocess.Popen[str] | None = None
        assert self._holder.stdout
        if self._holder.stdout.readline() != "made\n":
            pytest.skip("namespaces cannot be made here")

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["nsenter", "-t", str(self._holder.pid), "--mount", "--net", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )

    def start_udev(self) -> None:
        self._udevd = self.start(UDEVD)
        wait_until(lambda: self.start("udevadm", "control", "--ping", "--timeout=1").wait() == 0)

    def stop_udev(self) -> None:
        if self._udevd:
            self._udevd.terminate()
            self._udevd.communicate()
            self._udevd = None

    def trigger(self, device: Path) -> None:
        assert self.start("udevadm", "trigger", "--settle", device).wait() == 0

    @contextmanager
    def waiting(self, host: Host, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The command, after it has looked."""
        process = self.start(sys.executable, MODULE, "--config", host.conf, *arguments)
        try:
            assert next_line(process).startswith("still waiting for")
            time.sleep(0.5)
            yield process
        finally:
            process.kill()
            process.wait()

    def end(self) -> None:
        self.stop_udev()
        self._holder.kill()
        self._holder.communicate()


@pytest.fixture
def place() -> Iterator[Place]:
    if os.geteuid() != 0:
        pytest.skip("only root may start udev")
    if not UDEVD:
        pytest.skip("udev is not installed here")
    it = Place()
    yield it
    it.end()


@pytest.fixture
def loop(host: Host) -> tuple[Path, Path]:
    """A loop device that a guest needs, and an image for it."""
    device = loop_device()
    host.guest("web", device)
    sparse(host.image("web"))
    return device, host.images / "web"


def test_an_event_is_heard_though_udev_was_restarted_during_the_wait(
    host: Host, place: Place, loop: tuple[Path, Path]
) -> None:
    pytest.importorskip("pyudev", reason="pyudev is not installed")
    device, image = loop
    host.configure("[polling]\nfirst = 20s\nlongest = 20s\n")  # so that only an event can end a pause
    place.start_udev()
    with place.waiting(host) as process:
        place.stop_udev()
        place.start_udev()
        started = time.monotonic()
        with attached(device, image):
            result = finish(process, started)
    assert (result.status, result.seconds < 3) == (xwd.EXIT_READY, True)


def test_a_disk_that_comes_while_udev_is_down_is_ready_once_udev_has_looked_at_it(
    host: Host, place: Place, loop: tuple[Path, Path]
) -> None:
    device, image = loop
    place.start_udev()
    with place.waiting(host, "--timeout", "15") as process:
        place.stop_udev()
        with attached(device, image):
            time.sleep(1)
            assert process.poll() is None
            place.start_udev()
            place.trigger(device)
            result = finish(process, time.monotonic())
    assert (result.status, result.seconds < 3) == (xwd.EXIT_READY, True)


def test_a_disk_that_udev_never_looked_at_is_told_so(host: Host, place: Place, loop: tuple[Path, Path]) -> None:
    device, image = loop
    place.start_udev()
    with place.waiting(host, "--timeout", "4") as process:
        place.stop_udev()
        with attached(device, image):
            result = finish(process, time.monotonic())
    assert f"{device} for web is still not ready after 4s: udev has not finished with it" in result.messages


@as_root
def test_an_overrun_of_events_ends_a_pause_and_so_does_the_next_event() -> None:
    """The kernel's own events, for which no udev is needed, and a buffer that holds a few of them."""
    uevent = Path("/sys/block", loop_device().name, "uevent")
    alarm = xwd.UdevAlarm(xwd.Kernel(run_udev="/nowhere"), time.monotonic() + 60)
    if alarm._monitor is None:
        pytest.skip("pyudev is not installed, or there is no netlink here")
    alarm._monitor.set_receive_buffer_size(1)
    for _ in range(100):
        uevent.write_text("change")
    assert sum(dropped_events()) > 0
    for _ in range(2):
        started = time.monotonic()
        alarm.sleep(10)
        assert time.monotonic() - started < 2
        uevent.write_text("change")


def dropped_events() -> Sequence[int]:
    """How many messages each netlink socket has lost."""
    lines = Path("/proc/self/net/netlink").read_text().splitlines()
    column = lines[0].split().index("Drops")
    return [int(line.split()[column]) for line in lines[1:]]


def test_a_monitor_that_wakes_for_nothing_does_not_end_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    class Restless:
        def poll(self, timeout: float) -> None:
            time.sleep(0.001)

    monkeypatch.setattr(xwd, "block_events", lambda _: Restless())
    alarm = xwd.UdevAlarm(xwd.Kernel(), time.monotonic() + 10)
    started = time.monotonic()
    alarm.sleep(0.3)
    assert time.monotonic() - started >= 0.3
