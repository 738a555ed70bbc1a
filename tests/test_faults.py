# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Broken hosts: the problem is reported, and the disks of other guests are still waited for."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    MODULE,
    SCRIPT,
    Host,
    Recorder,
    as_root,
    clean_environment,
    fuse_mount,
    hung_file_system,
    in_namespace,
    memory_cgroup,
    program_with,
    saved_file,
    session_members,
    slow_file_system,
    wait_until,
    waiting,
)
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from recorded import HostPaths

import xendomains_wait_disk as xwd


@pytest.fixture
def waiting_host(host: Host) -> Host:
    """A host with one guest whose disk is ready, and one whose disk is missing."""
    host.guest("mail", host.image("mail"))
    host.guest("web", host.images / "web")
    return host


def assert_it_waits(host: Host, **how: Any) -> None:
    """Check that the missing disk, and no other, is waited for and found; `how` is passed to Host.start()."""
    with waiting(host, **how) as waiter:
        host.image("web")
        result = waiter.end()
    assert result.status == xwd.EXIT_READY
    assert f"still waiting for {host.images}/web for web... (does not exist)\n" in result.messages
    assert f"disk {host.images}/web found (after " in result.messages


# Resource limits


def limited(kind: int, limit: int) -> Mapping[str, Any]:
    """Return options for a child process with this limit."""
    return {"preexec_fn": lambda: resource.setrlimit(kind, (limit, limit))}


@pytest.mark.promise("File descriptors, memory or threads run short")
def test_16_file_descriptors_are_enough(waiting_host: Host) -> None:
    assert_it_waits(waiting_host, options=limited(resource.RLIMIT_NOFILE, 16))


# Python imports as little as possible, because with fewer descriptors it would not even start.
ISOLATED = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path = {sys.path}\nimport {MODULE.stem} as m; m.run()"]


@pytest.mark.parametrize("number", [6, 9])
def test_with_fewer_file_descriptors_it_waits_or_reports_the_error(waiting_host: Host, number: int) -> None:
    options = limited(resource.RLIMIT_NOFILE, number)
    messages = waiting_host.run("--timeout", "0", options=options, program=ISOLATED).messages
    missing = f"{waiting_host.images}/web for web is missing: does not exist\n"
    assert missing in messages or f"{waiting_host.settings}: cannot be read (Too many open files); " in messages


def test_too_few_file_descriptors_to_load_a_module_are_reported(host: Host) -> None:
    result = host.run("--timeout", "1", options=limited(resource.RLIMIT_NOFILE, 5), program=ISOLATED)
    assert "Too many open files" in result.messages


@pytest.mark.promise("File descriptors, memory or threads run short")
@as_root
def test_64_mib_of_memory_are_enough(waiting_host: Host) -> None:
    with memory_cgroup(64 << 20) as group:
        procs = group / "cgroup.procs"
        assert_it_waits(waiting_host, options={"preexec_fn": lambda: procs.write_text("0")})


def test_stack_of_128_kib_is_enough_for_deeply_nested_json(waiting_host: Host) -> None:
    """The limit for the stack also determines the stack size of threads."""
    (waiting_host.save / "deep").write_bytes(saved_file(b'{"a":' * 20_000 + b"\0"))
    disks = b'"disks":[{"pdev_path":"%b/web"}]' % os.fsencode(waiting_host.images)
    nested = b'{"c_info":{"name":"web"},"a":%b1%b,%b}' % (b"[" * 31, b"]" * 31, disks)
    (waiting_host.save / "web").write_bytes(saved_file(nested + b"\0"))
    (waiting_host.auto / "web.cfg").unlink()
    assert_it_waits(waiting_host, options=limited(resource.RLIMIT_STACK, 128 << 10))


@cache
def memory_to_load_the_module() -> int:
    """Return the minimum of MiB in which this Python can compile and import the module."""
    load = [sys.executable, "-c", f"import runpy; runpy.run_path({str(MODULE)!r})"]

    def is_enough(mib: int) -> bool:
        process = subprocess.run(
            load, stderr=subprocess.DEVNULL, env=clean_environment(), **limited(resource.RLIMIT_DATA, mib << 20)
        )
        return process.returncode == 0

    return next(filter(is_enough, range(4, 64, 2)))


@pytest.mark.parametrize("more", [1, 8, 18])
def test_with_less_memory_it_waits_or_reports_the_error_and_never_hangs(waiting_host: Host, more: int) -> None:
    mib = memory_to_load_the_module() + more
    process = subprocess.run(
        [sys.executable, MODULE, "--config", waiting_host.conf, "--timeout", "0"],
        capture_output=True,
        text=True,
        env=clean_environment(),
        **limited(resource.RLIMIT_DATA, mib << 20),
    )
    # Messages of Python about .pth files, such as coverage.py's, come before those of the program.
    remainder = process.stderr.rpartition("Remainder of file ignored\n")[2]
    assert "Traceback" not in remainder
    # Python does not always raise MemoryError, and prints its own message if it cannot run anything.
    ours = ("These guests will probably not come up", "xendomains-wait-disk: ", str(waiting_host.settings))
    assert remainder.splitlines()[-1].startswith((*ours, "Exception ignored in", "MemoryError"))


@contextmanager
def pids_cgroup(limit: int) -> Iterator[Path]:
    """Create a control group that limits the number of processes and threads."""
    group = Path("/sys/fs/cgroup/pids") / f"xendomains-wait-disk-{os.getpid()}"
    group = group if group.parent.is_dir() else group.parent.parent / group.name
    try:
        group.mkdir()
        (group / "pids.max").write_text(str(limit))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"control groups cannot be created here: {error}")
    try:
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@as_root
def test_timeout_holds_if_neither_a_process_nor_a_thread_can_be_started(waiting_host: Host) -> None:
    host = waiting_host
    host.conf.write_text(f"[paths]\nxendomains = {host.settings}\nauto = {host.auto}\nsave = {host.save}\n")
    with pids_cgroup(1) as group:
        procs = group / "cgroup.procs"
        result = host.run("--timeout", "1", options={"preexec_fn": lambda: procs.write_text("0")})
    assert result.status == xwd.EXIT_TIMED_OUT
    assert "cannot be read with /bin/bash and /dev/null (Resource temporarily unavailable)" in result.messages
    assert "still not ready after 1s: not checked yet\n" in result.messages


# Python


@pytest.mark.promise("A Python module is missing or broken")
def test_missing_python_module_is_named_if_needed(waiting_host: Host) -> None:
    result = waiting_host.run(program=program_with("sys.modules['tenacity'] = None"))
    assert result.status == xwd.EXIT_TIMED_OUT
    assert "xendomains-wait-disk: a Python module cannot be loaded (import of tenacity halted" in result.messages
    assert result.messages.endswith(" Missing disks are not waited for.\n")


def test_without_pyudev_it_waits(waiting_host: Host) -> None:
    assert_it_waits(waiting_host, program=program_with("sys.modules['pyudev'] = None"))


@pytest.mark.promise("A Python module is missing or broken")
def test_without_configobj_the_defaults_are_used_and_the_interpreter_is_named(host: Host) -> None:
    host.configure("timeout = 0")
    result = host.run("list", program=program_with("sys.modules['configobj'] = None"))
    assert f"{host.conf}: cannot be read without Python's configobj (import of configobj halted" in result.messages
    assert f"; this is {sys.executable}); the defaults are used." in result.messages


# Missing parts of a host


@pytest.mark.promise("It works without optional parts of a host, such as pyudev, bash or /proc")
@as_root
@pytest.mark.parametrize(
    "change",
    [
        "mount -t tmpfs none /sys",
        "mount -t tmpfs none /proc",
        "mount -t tmpfs none /run",
        "mount -t tmpfs -o ro none /run",
        "mount -t tmpfs -o size=4k,nr_inodes=2 none /run && ! dd if=/dev/zero of=/run/full 2>/dev/null",
    ],
    ids=["no /sys", "no /proc", "empty /run", "read-only /run", "full /run"],
)
def test_wait_works_on_a_host_with(waiting_host: Host, change: str) -> None:
    assert_it_waits(waiting_host, prefix=in_namespace(change))


def test_block_device_without_sysfs_is_not_ready_with_a_reason(tmp_path: Path) -> None:
    reason = f"is a device file, but {tmp_path}, which describes it, is not mounted"
    HostPaths(sys=str(tmp_path)).use()
    layer = xwd.check_block_device(os.makedev(7, 0), xwd.Required(), xwd.StorageFacts())
    assert layer.problem == xwd.Problem(reason)


@as_root
def test_without_bash_the_guests_of_xens_defaults_are_waited_for(host: Host) -> None:
    other = host.root / "default"
    other.mkdir()
    (other / "web.cfg").write_text(f'name = "web"\ndisk = ["{host.images}/web,raw,xvda,rw"]\n')
    bash = os.path.realpath("/bin/bash")
    if os.path.realpath("/bin/sh") == bash:
        pytest.skip("sh, which prepares this test, is bash here")
    steps = ("mkdir -p /etc/xen", "mount -t tmpfs none /etc/xen", f"ln -s {other} /etc/xen/auto")
    prefix = in_namespace(" && ".join((*steps, f"mount --bind /dev/null {bash}")))
    with waiting(host, prefix=prefix) as waiter:
        host.image("web")
        result = waiter.end()
    assert (
        f"{host.settings}: cannot be read with /bin/bash and /dev/null (Permission denied); "
        "waiting for the guests in /etc/xen/auto and /var/lib/xen/save instead.\n"
    ) in result.messages
    assert f"disk {host.images}/web found (after " in result.messages


@as_root
def test_without_dev_null_the_message_names_it(host: Host) -> None:
    messages = host.run("--timeout", "0", prefix=in_namespace("mount -t tmpfs none /dev")).messages
    assert "/dev/null" in messages


# The environment


@as_root
def test_hanging_directory_in_path_is_harmless(waiting_host: Host) -> None:
    with hung_file_system(waiting_host.root / "hung") as hung:
        assert_it_waits(waiting_host, PATH=f"{hung}:{os.environ['PATH']}")


# execve(2) accepts them; Python's os.execve() does not.
WITH_NAMELESS_VARIABLES = """
import ctypes, os, sys
arguments = [os.fsencode(argument) for argument in sys.argv[1:]]
environment = [b"=nothing", b"no equals sign", b"", *(b"%b=%b" % item for item in os.environb.items())]
array = lambda texts: (ctypes.c_char_p * (len(texts) + 1))(*texts, None)
ctypes.CDLL(None).execve(arguments[0], array(arguments), array(environment))
"""


def test_environment_variables_without_a_name_are_harmless(waiting_host: Host) -> None:
    assert_it_waits(waiting_host, prefix=[sys.executable, "-c", WITH_NAMELESS_VARIABLES])


# Unreadable settings of xendomains


class Failing(bytes):
    """The content of a file that cannot be read."""

    def __getitem__(self, _: Any) -> Any:
        raise OSError(errno.EIO, "")


class Stale(dict[str, bytes]):
    """A directory with a stale file handle."""

    def __contains__(self, _: object) -> bool:
        raise OSError(errno.ESTALE, "")


Spoil = Callable[[Host], "AbstractContextManager[object]"]


@contextmanager
def failing(host: Host) -> Iterator[None]:
    with slow_file_system(host.root / "nfs", delay=0) as nfs:
        nfs.files["xendomains"] = Failing(b"content")
        link_to(host, nfs.directory / "xendomains")
        yield


@contextmanager
def stale(host: Host) -> Iterator[None]:
    with slow_file_system(host.root / "nfs", delay=0) as nfs:
        nfs.files = Stale()
        link_to(host, nfs.directory / "xendomains")
        yield


@contextmanager
def disconnected(host: Host) -> Iterator[None]:
    with fuse_mount(host.root / "nfs") as fuse:
        hang_up(fuse)
        link_to(host, host.root / "nfs" / "xendomains")
        yield


@contextmanager
def directory_disconnected(host: Host) -> Iterator[None]:
    with fuse_mount(host.settings.parent) as fuse:
        hang_up(fuse)
        yield


def hang_up(fuse: int) -> None:
    """Disconnect the server of a file system."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fuse)
    os.close(null)


def dangling(host: Host) -> AbstractContextManager[None]:
    link_to(host, host.root / "nowhere")
    return nullcontext()


def link_to(host: Host, path: Path) -> None:
    host.settings.unlink()
    host.settings.symlink_to(path)


@contextmanager
def forbidden(host: Host) -> Iterator[None]:
    host.settings.chmod(0)
    yield


@contextmanager
def directory_forbidden(host: Host) -> Iterator[None]:
    host.settings.parent.chmod(0)
    yield
    host.settings.parent.chmod(0o755)


def loop_of_links(host: Host) -> AbstractContextManager[None]:
    link_to(host, host.settings)
    return nullcontext()


POWERS = "-dac_override,-dac_read_search"
# Root can read everything, unless it lacks these capabilities.
WITHOUT_POWER = ("setpriv", f"--bounding-set={POWERS}", f"--inh-caps={POWERS}")


@as_root
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (failing, "Input/output error"),
        (stale, "Stale file handle"),
        (disconnected, "Transport endpoint is not connected"),
        (directory_disconnected, "Transport endpoint is not connected"),
        (dangling, "No such file or directory"),
        (loop_of_links, "Too many levels of symbolic links"),
        (forbidden, "Permission denied"),
        (directory_forbidden, "Permission denied"),
    ],
)
def test_unreadable_settings_do_not_cancel_the_wait(waiting_host: Host, spoil: Spoil, why: str) -> None:
    host = waiting_host
    host.conf.write_text(f"[paths]\nxendomains = {host.settings}\nauto = {host.auto}\n")
    with spoil(host), waiting(host, "--timeout", "1h", prefix=WITHOUT_POWER) as waiter:
        message = waiter.wait_for(f"{host.settings}: cannot be read ({why}); ")
        assert message.endswith(f"; waiting for the guests in {host.auto} and /var/lib/xen/save instead.\n")
        waiter.wait_for(f"still waiting for {host.images}/web for web... (does not exist)")


def test_exit_status_is_6_only_if_all_settings_are_absent(host: Host) -> None:
    host.settings.unlink()
    host.conf.write_text(f"[paths]\nxendomains = {host.root}/nowhere, {host.conf}/below, {host.settings}\n")
    assert host.run().status == xwd.EXIT_NO_XENDOMAINS
    host.settings.symlink_to("nowhere")
    result = host.run("--timeout", "0")
    assert result.status != xwd.EXIT_NO_XENDOMAINS
    assert f"{host.settings}: cannot be read (No such file or directory); " in result.messages


# While bash runs


def test_settings_are_used_after_a_suspend_while_bash_reads_them(host: Host) -> None:
    """On this clock, an hour passes between any two calls of now()."""

    class Suspended(xwd.Clock):
        seconds = 0.0

        def now(self) -> float:
            self.seconds += 3600
            return self.seconds

    found, problems = xwd.read_xendomains(xwd.Settings(xendomains=(str(host.settings),)), Suspended(), 10)
    assert (found, problems) == (host.xendomains()._replace(file=str(host.settings)), [])


@pytest.mark.promise("A signal arrives at any moment")
@pytest.mark.parametrize("busy", ["sleep 1000", "while :; do :; done", "sleep 1000 & wait"])
def test_signal_while_bash_reads_the_settings_leaves_nothing_running(host: Host, busy: str) -> None:
    with host.settings.open("a") as file:
        file.write(f"touch {host.root}/reads\n{busy}\n")
    with host.start(options={"start_new_session": True}) as running:
        wait_until((host.root / "reads").exists)
        running.signal(signal.SIGTERM)
        assert running.end().status == -signal.SIGTERM
        wait_until(lambda: session_members(running.pid) == [])


def test_settings_that_exit_the_shell_leave_nothing_running(host: Host) -> None:
    host.settings.write_text("sleep 1000 &\nexit\n")
    with host.start("--timeout", "0", options={"start_new_session": True}) as running:
        assert f"{host.settings}: makes the shell that sources it exit; " in running.end().messages
        wait_until(lambda: session_members(running.pid) == [])


# The program's own settings


def test_odd_patterns_do_not_cancel_the_wait(waiting_host: Host) -> None:
    patterns = "'[z-a]', '[', '*[!]', '\\'"
    waiting_host.configure(f"[ignore]\ndomains = {patterns}\ndisks = {patterns}")
    assert_it_waits(waiting_host)


def test_bad_settings_are_quoted_on_one_line_without_escape_sequences(host: Host) -> None:
    host.conf.write_bytes(b'timeout = "\x1b[2J\x9b5\xff"\n\x1b]0;x\x07 = 1\nwhat\x1b[1m\n[paths]\nauto = "\x1b/x"\n')
    messages = host.run("list").messages
    assert messages.count("\n") >= 4
    assert all(line.isprintable() and line.startswith(f"{host.conf}") for line in messages.splitlines()[:4])
    first, *lines = host.run("check").output.splitlines()
    assert first == f"{host.conf}:"
    assert all(line.isprintable() and line.startswith("  error: ") for line in lines[:4])


def test_nul_in_a_directory_setting_is_reported_as_bad_setting(waiting_host: Host) -> None:
    host = waiting_host
    host.conf.write_bytes(f"[paths]\nxendomains = {host.settings}\nauto = /a\0b\n".encode())
    result = host.run("--timeout", "0")
    problem = r"line 3: [paths] auto is not an absolute path: '/a\x00b'; the default is used"
    assert f"{host.conf}: {problem}." in result.messages
    assert f"{host.images}/web for web is missing: does not exist\n" in result.messages


# Malicious names

UGLY = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("\n\r\t\x00\x07\x1b\x7f\x85\x9b\u200e\u202e\u2028\u2066\ufeff\udc1b\udcff\ud800<3>'\"\\,"),
    ),
    max_size=20,
)


def file_name(text: str) -> str:
    """Return a valid file name made from the text."""
    name = os.fsencode(re.sub("[\ud800-\udc7f\udd00-\udfff\0/]", "", text))[:100].lstrip(b".")
    return os.fsdecode(name or b"x")


@pytest.mark.promise("File and guest names can neither forge messages nor control the terminal")
@given(file=UGLY, name=UGLY, target=UGLY, vdev=UGLY, rest=UGLY)
@hypothesis_settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
    phases=[Phase.generate],  # shrinking an example would take minutes
)
def test_any_name_gives_one_line_messages_and_valid_json(
    tmp_path_factory: pytest.TempPathFactory, file: str, name: str, target: str, vdev: str, rest: str
) -> None:
    host = Host(tmp_path_factory.mktemp("host"))
    config = {"c_info": {"name": name}, "disks": [{"pdev_path": target, "vdev": vdev, "script": rest}]}
    (host.save / file_name(file)).write_bytes(saved_file(json.dumps(config).encode() + b"\0"))
    text = f'name="{name}"\ndisk=["/{target},raw,{vdev}"]\n{rest}\n'
    (host.auto / file_name(file)).write_bytes(text.encode("utf-8", "surrogatepass"))
    (host.auto / file_name(f"z{file}")).symlink_to(host.root / file_name(rest))
    (host.auto / file_name(f"zz{file}")).write_bytes(
        b'name="%b"\ndisk=["/x,raw,xvda"]\n' % os.fsencode(file_name(name)).replace(b'"', b"")
    )
    for path in (*host.save.iterdir(), *host.auto.iterdir()):
        os.utime(path, (0, 0), follow_symlinks=False)  # old enough not to be half-written

    clock = xwd.Clock()
    watcher = host.watcher(clock)
    found = watcher.look(clock.now() + 60)
    written = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
    journal = Recorder(written, clock)
    reporter = xwd.Reporter(journal, clock, clock.now(), 60)
    reporter.report(found)
    reporter.report(xwd.Snapshot())
    reporter.log_end(found)
    reporter.log_end(found, signal.SIGTERM)
    findings = xwd.findings_of(found, watcher, xwd.Options("check", reboot=True))

    lines = os.pread(written.fileno(), 1 << 24, 0).decode().splitlines(keepends=True)
    assert len(lines) == len(journal.messages)
    assert all(line.endswith("\n") and line[:-1].isprintable() for line in lines)
    entries = b"".join(xwd.journal_entry(*message) for message in journal.messages).decode().splitlines(keepends=True)
    assert len(entries) == sum(3 + len(fields) for _, _, fields in journal.messages)
    assert all(re.fullmatch("[A-Z_]+=.*\n", line) and line[:-1].isprintable() for line in entries)
    assert all(map(str.isprintable, (xwd.lines_of_finding(finding, xwd.Screen())[0] for finding in findings)))
    answer = xwd.as_record(found)
    assert len(answer["guests"]) == len(found.guests)
    table = xwd.table_of_disks(answer, xwd.Screen(), with_hints=True)
    assert len(table) == 1 + sum(max(1, len(guest.domain.disks)) for guest in found.guests.values())
    screen = xwd.Screen(80)
    pictures = xwd.picture_of_list(answer, screen) + xwd.picture_of_last(reporter.as_last_wait("timeout"), screen)
    assert all(line.isprintable() for line in table + pictures)
    assert max(map(xwd.display_width, pictures)) <= screen.columns
    last = reporter.as_last_wait("timeout")
    json.dumps([answer, last], ensure_ascii=False).encode()  # fails for lone surrogates


# The clock of the host


CLOCK_THAT_IS_SET = """
import os, time
really = time.time
time.time = lambda: really() + {seconds} * os.path.exists({jump!r})
"""


@pytest.mark.promise("The clock is changed, the host is suspended, or the process is stopped")
@pytest.mark.parametrize("days", [1, -1])
def test_setting_the_clock_does_not_affect_the_wait(host: Host, days: int) -> None:
    jump = host.root / "jump"
    host.guest("web", *(host.images / name for name in "abc"))
    program = program_with(CLOCK_THAT_IS_SET.format(seconds=days * 86400, jump=str(jump)))
    with waiting(host, "--timeout", "1h", program=program, RUNTIME_DIRECTORY=str(host.root)) as waiter:
        jump.touch()
        for name in "abc":  # each is found in a separate check
            host.image(name)
            found = waiter.wait_for(f"disk {host.images}/{name} found (after ")
            assert re.search(r"\(after [0-9]{1,2} seconds\)$", found)
        assert waiter.end().status == xwd.EXIT_READY
    day = time.strftime("%Y-%m-%d", time.localtime(time.time() + days * 86400))
    assert json.loads((host.root / "last.json").read_text())["started"].startswith(day)  # the clock was really set


# Signals


def test_sigint_while_the_module_loads_ends_without_a_traceback(tmp_path: Path) -> None:
    """The command resets SIGINT before it imports the module."""
    (tmp_path / MODULE.name).write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nrun = print\n")
    environment = {**clean_environment(), "PYTHONPATH": str(tmp_path)}
    process = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (-signal.SIGINT, "", "")


def test_command_imports_nothing_before_it_resets_sigint() -> None:
    first = next(line for line in SCRIPT.read_text().splitlines() if line and not line.startswith("#"))
    assert first == "import _signal"  # which is built in
