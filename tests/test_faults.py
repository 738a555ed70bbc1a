# SPDX-License-Identifier: GPL-3.0-or-later
"""A broken host: what is wrong is told of, the disks of the other guests are waited for, and nothing takes longer."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import (
    MODULE,
    Host,
    Result,
    as_root,
    clean_environment,
    deaf_file_system,
    finish,
    run_quietly,
    saved_file,
    wait_until,
)
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import xendomains_wait_disk as xwd

NOBODY = 65534
SCRIPT = MODULE.parent / "bin" / "xendomains-wait-disk"


@pytest.fixture
def waiting_host(host: Host) -> Host:
    """A host with a guest whose disk is there, and one whose disk is missing."""
    host.guest("mail", host.image("mail"))
    host.guest("web", host.images / "web")
    return host


def command(host: Host, *arguments: str) -> list[str]:
    return [sys.executable, str(MODULE), "--config", str(host.conf), *arguments]


def run(host: Host, *arguments: str, **popen: Any) -> Result:
    """The command, run to its end with these arguments of Popen."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": clean_environment(), **popen}
    started = time.monotonic()
    return finish(subprocess.Popen(command(host, *arguments), text=True, **options), started)


def assert_waited(host: Host, result: Result) -> None:
    """It waited for one second, and then said which disk was missing."""
    assert result.status == xwd.EXIT_TIMED_OUT
    assert 1 <= result.seconds < 2.5  # the program takes a while to start
    assert result.messages.endswith(
        f"{host.images}/web for web is still missing after 1s: does not exist\n"
        "xendomains starts now; these guests will probably not come up: web.\n"
    )


# Files that somebody else may write


def give_away(file: Path) -> None:
    os.chown(file, NOBODY, -1)


def let_group_write(file: Path) -> None:
    file.chmod(0o664)


def let_everybody_write(file: Path) -> None:
    file.chmod(0o646)


DISTRUSTED = pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(give_away, "it belongs to user 65534, not to root (mend that with chown root)", marks=as_root),
        (let_group_write, "others than its owner may write it (mend that with chmod go-w)"),
        (let_everybody_write, "others than its owner may write it (mend that with chmod go-w)"),
    ],
    ids=["owner", "group", "everybody"],
)
Spoil = Callable[[Path], None]


@DISTRUSTED
def test_bash_does_not_run_settings_that_others_may_write(host: Host, spoil: Spoil, why: str) -> None:
    mark = host.root / "has run"
    host.settings.write_text(f"touch '{mark}'\n")
    host.run("check")
    assert mark.exists()
    mark.unlink()
    spoil(host.settings)
    result = host.run("check")
    assert not mark.exists()
    assert (
        f"{host.settings} is not trusted, because {why}; "
        "the guests in /etc/xen/auto and /var/lib/xen/save are taken instead.\n"
    ) in result.messages
    assert result.status == xwd.EXIT_USAGE


@DISTRUSTED
def test_a_conf_that_others_may_write_is_ignored(host: Host, spoil: Spoil, why: str) -> None:
    host.configure("timeout = 7")
    spoil(host.conf)
    settings, problems = xwd.read_settings(str(host.conf))
    assert settings == xwd.Settings()
    assert problems == [f"{host.conf} is not trusted, because {why}; the defaults are used."]


@DISTRUSTED
def test_a_guest_that_others_may_change_is_waited_for_with_a_warning(host: Host, spoil: Spoil, why: str) -> None:
    spoil(host.guest("web", host.images / "a"))
    spoil(host.saved("mail", host.images / "b"))
    messages = host.run("--timeout", "0").messages
    assert f"{host.auto}/web.cfg: {why}; xl uses it all the same.\n" in messages
    assert f"{host.save}/mail: {why}; xl uses it all the same.\n" in messages
    assert messages.endswith("these guests will probably not come up: mail, web.\n")


def test_a_link_is_as_trustworthy_as_the_file_it_points_to(host: Host) -> None:
    file = host.settings.rename(host.root / "elsewhere")
    host.settings.symlink_to(file)
    assert host.run("check").status == xwd.EXIT_READY
    let_everybody_write(file)
    assert f"{host.settings} is not trusted" in host.run("check").messages


@as_root
def test_a_user_may_list_with_files_of_her_own(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    give_away(host.settings)
    monkeypatch.setattr("xendomains_wait_disk.os.geteuid", lambda: NOBODY)
    assert xwd.source_xendomains(str(host.settings), 5).auto == str(host.auto)


def test_bash_runs_the_file_that_was_checked_and_not_one_put_in_its_place(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_trust = xwd.require_trust

    def replaced_meanwhile(status: os.stat_result) -> None:
        require_trust(status)
        (host.root / "evil").write_text("XENDOMAINS_AUTO=/evil\n")
        (host.root / "evil").rename(host.settings)

    monkeypatch.setattr(xwd, "require_trust", replaced_meanwhile)
    assert xwd.source_xendomains(str(host.settings), 5).auto == str(host.auto)


# Resources that run out


def limited(kind: int, limit: int) -> Callable[[], None]:
    """What makes a child process live with this limit."""
    return lambda: resource.setrlimit(kind, (limit, limit))


def test_16_file_descriptors_are_enough(waiting_host: Host) -> None:
    result = run(waiting_host, "--timeout", "1", preexec_fn=limited(resource.RLIMIT_NOFILE, 16))
    assert_waited(waiting_host, result)


def test_with_fewer_file_descriptors_it_waits_or_says_what_is_wrong(waiting_host: Host) -> None:
    for limit in (5, 6, 7, 8, 9, 12):  # with less Python itself does not start
        result = run(waiting_host, "--timeout", "1", preexec_fn=limited(resource.RLIMIT_NOFILE, limit))
        if result.status == xwd.EXIT_TIMED_OUT:
            assert_waited(waiting_host, result)
        else:
            settings = re.escape(str(waiting_host.settings))
            why = r"(cannot be read \(Too many open files\)|ends the shell that reads it)"
            assert re.match(f"{settings} {why}; the guests in ", result.messages)


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A control group whose processes together have no more memory than this, and no swap space."""
    group = Path("/sys/fs/cgroup/memory") / f"xendomains-wait-disk-{os.getpid()}"
    limits = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    if not group.parent.is_dir():
        group, limits = group.parent.parent / group.name, ["memory.max"]
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        for file in limits:
            if (group / file).exists():
                (group / file).write_text(str(limit))
        if not (group / limits[0]).exists():
            pytest.skip("control groups have no memory limit here")
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@as_root
def test_64_mib_of_memory_are_enough(waiting_host: Host) -> None:
    with memory_cgroup(64 << 20) as group:
        procs = group / "cgroup.procs"
        result = run(waiting_host, "--timeout", "1", preexec_fn=lambda: procs.write_text("0"))
    assert_waited(waiting_host, result)


def test_64_mib_of_data_are_enough(waiting_host: Host) -> None:
    """A limit that also counts what the stacks of threads might need."""
    result = run(waiting_host, "--timeout", "1", preexec_fn=limited(resource.RLIMIT_DATA, 64 << 20))
    assert_waited(waiting_host, result)


@pytest.mark.parametrize("mib", [13, 16, 22, 24, 26, 32])
def test_with_less_memory_it_waits_or_says_so_and_never_hangs(waiting_host: Host, mib: int) -> None:
    process = subprocess.run(
        command(waiting_host, "--timeout", "1"),
        capture_output=True,
        text=True,
        timeout=10,
        env=clean_environment(),
        preexec_fn=limited(resource.RLIMIT_DATA, mib << 20),
    )
    # What Python says of .pth files, such as coverage.py's, comes before anything of ours.
    said = process.stderr.rpartition("Remainder of file ignored\n")[2]
    assert "Traceback" not in said
    # Python itself does not always call it a lack of memory, and has its own words where it can run nothing at all.
    ours = ("xendomains starts now", "xendomains-wait-disk: ", str(waiting_host.settings))
    assert said.splitlines()[-1].startswith((*ours, "Exception ignored in", "MemoryError"))


def test_a_thread_that_finds_no_memory_to_begin_with_is_not_waited_for() -> None:
    program = """
import _thread, threading, time
threading._start_new_thread = _thread.start_new_thread = lambda *_, **__: None  # it dies before it has done anything
import xendomains_wait_disk as xwd
print(xwd.Scouts().run("look", {"path": lambda: True}, time.monotonic() + 1))
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=5, cwd=MODULE.parent)
    assert (result.stdout, result.stderr) == ("{}\n", "")


def test_where_no_thread_can_be_had_it_looks_without(waiting_host: Host) -> None:
    program = (
        "import sys, xendomains_wait_disk as x\n"
        'def start(*_): raise RuntimeError("can\'t start new thread")\n'
        "x.start_new_thread = start; sys.argv[0] = 'x'; x.run()"
    )
    assert_waited(waiting_host, run_program(waiting_host, program))


def run_program(host: Host, program: str) -> Result:
    """A program that changes something before it runs the command, with the arguments of the command."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--config", str(host.conf), "--timeout", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=MODULE.parent,
    )
    return finish(process, started)


@pytest.mark.parametrize(("module", "told"), [("tenacity", True), ("pyudev", False), ("systemd", False)])
def test_a_python_module_that_is_missing_is_named_if_it_is_needed(waiting_host: Host, module: str, told: bool) -> None:
    program = f"import sys; sys.modules['{module}'] = None; import xendomains_wait_disk as x; x.run()"
    result = run_program(waiting_host, program)
    if told:
        assert f"xendomains-wait-disk: a Python module cannot be loaded (import of {module} halted" in result.messages
    else:
        assert_waited(waiting_host, result)


def test_without_configobj_the_defaults_are_used(host: Host) -> None:
    program = (
        f"import sys; sys.path[:0] = [{str(MODULE.parent)!r}]; sys.modules['configobj'] = None\n"
        f"import xendomains_wait_disk as x; print(x.read_settings({str(host.conf)!r}))"
    )
    output = run_quietly(sys.executable, "-c", program)
    assert f"{host.conf} cannot be read without Python's configobj (import of configobj halted" in output


@as_root
def test_a_conf_that_does_not_answer_does_not_hold_the_boot(host: Host) -> None:
    host.conf.unlink()
    with deaf_file_system(host.root / "nfs") as nfs:
        host.conf.symlink_to(nfs / "conf")
        result = host.run("--timeout", "1")
    assert result.seconds < 2.5
    assert f"{host.conf} does not answer; is the server of its file system gone? The defaults" in result.messages


@as_root
def test_settings_that_do_not_answer_do_not_hold_the_boot(host: Host) -> None:
    host.conf.write_text(f"[paths]\nauto = {host.auto}\nxendomains = {host.settings}\n")
    host.guest("web", host.images / "web")
    host.settings.unlink()
    with deaf_file_system(host.root / "nfs") as nfs:
        host.settings.symlink_to(nfs / "xendomains")
        result = host.run("--timeout", "1")
    assert result.seconds < 2.5
    assert f"{host.settings}: does not answer; is the server of its file system gone? The guests" in result.messages
    assert result.messages.endswith("these guests will probably not come up: web.\n")


# Nobody listens


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that nobody reads, and into which nothing more goes."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for size in (4096, 1):
        try:
            while True:
                os.write(writing, b"\n" * size)
        except BlockingIOError:
            pass
    os.set_blocking(writing, True)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("guests", [1, 50])
def test_standard_error_that_nobody_reads_does_not_hold_it(waiting_host: Host, guests: int) -> None:
    for number in range(guests):
        waiting_host.guest(f"web{number}", waiting_host.images / f"web{number}")
    with full_pipe() as (_, writing):
        result = run(waiting_host, "--timeout", "1", stderr=writing, stdout=subprocess.DEVNULL)
    assert result.status == xwd.EXIT_TIMED_OUT
    assert 1 <= result.seconds < 2.5


def test_a_signal_ends_it_at_once_while_nobody_reads_standard_error(waiting_host: Host) -> None:
    with full_pipe() as (_, writing):
        process = subprocess.Popen(command(waiting_host, "--timeout", "20"), stderr=writing)
        time.sleep(1.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(1) == -signal.SIGTERM


def test_a_reader_who_comes_back_is_told_that_messages_were_lost(waiting_host: Host) -> None:
    for number in range(3):
        waiting_host.guest(f"web{number}", waiting_host.images / f"web{number}")
    with full_pipe() as (reading, writing):
        process = subprocess.Popen(command(waiting_host, "--timeout", "4"), stderr=writing)
        time.sleep(1)
        waiting_host.image("web0")
        time.sleep(1.5)
        os.set_blocking(reading, False)
        read = b""

        def ended() -> bool:
            nonlocal read
            with suppress(BlockingIOError):
                read += os.read(reading, 65536)
            return process.poll() is not None

        wait_until(ended)
        ended()
    messages = read.decode().lstrip("\n")
    assert messages.startswith("still waiting for ")
    assert "\nMessages were lost here, because nobody read them: 1.\n" in messages
    assert messages.endswith("these guests will probably not come up: web, web1, web2.\n")


def test_check_waits_for_a_reader_who_is_slow(host: Host) -> None:
    for number in range(3):
        (host.auto / f"{number}.cfg").write_text("what is this\n")
    with full_pipe() as (reading, writing):
        process = subprocess.Popen(command(host, "check"), stderr=writing)
        time.sleep(1.5)
        os.set_blocking(reading, False)
        read = b""
        deadline = time.monotonic() + 5
        while process.poll() is None and time.monotonic() < deadline:
            try:
                read += os.read(reading, 65536)
            except BlockingIOError:
                time.sleep(0.01)
        with suppress(BlockingIOError):
            read += os.read(reading, 65536)
    assert process.returncode == xwd.EXIT_USAGE
    assert read.decode().count(".cfg: line 1: ") == 3


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_device_does_not_matter(waiting_host: Host, stream: str) -> None:
    with open("/dev/full", "w") as full:
        result = run(waiting_host, "--timeout", "1", **{stream: full})
    assert (result.status, result.seconds < 2.5) == (xwd.EXIT_TIMED_OUT, True)


def test_standard_error_whose_reader_is_gone_does_not_matter(waiting_host: Host) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = run(waiting_host, "--timeout", "1", stderr=writing, stdout=subprocess.DEVNULL)
    os.close(writing)
    assert (result.status, result.seconds < 2.5) == (xwd.EXIT_TIMED_OUT, True)


def test_a_notify_socket_that_takes_no_more_does_not_hold_it(waiting_host: Host) -> None:
    address = str(waiting_host.root / "notify")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
    ):
        deaf.bind(address)
        other.connect(address)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.send(b"STATUS=noise")
        assert_waited(waiting_host, waiting_host.run("--timeout", "1", NOTIFY_SOCKET=address))


@pytest.mark.parametrize("address", ["@", "vsock:2:1", "relative", "/a\nb", "/" + "x" * 200, "/\udcff"])
def test_an_odd_notify_socket_does_not_matter(waiting_host: Host, address: str) -> None:
    assert_waited(waiting_host, waiting_host.run("--timeout", "1", NOTIFY_SOCKET=address))


# A host that lacks what every host has


def run_in_namespace(host: Host, change: str) -> Result:
    """The command, after this was done to the mounts that it sees."""
    try:
        run_quietly("unshare", "--mount", "true")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"there can be no mount namespace here: {error.stderr.strip()}")
    script = f'{change} && exec "$@"'
    started = time.monotonic()
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command(host, "--timeout", "1")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    return finish(process, started)


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
def test_it_needs_no(waiting_host: Host, change: str) -> None:
    assert_waited(waiting_host, run_in_namespace(waiting_host, change))


def test_a_block_device_without_sys_is_not_ready_and_the_reason_is_true(tmp_path: Path) -> None:
    kernel = xwd.Kernel(sys=str(tmp_path))
    reason = f"is a device file, but {tmp_path}, which tells of it, is not mounted"
    assert xwd.look_at_block_device(os.makedev(7, 0), kernel) == xwd.Look(xwd.State.NOT_READY, reason)


@as_root
def test_without_bash_the_guests_of_xens_defaults_are_waited_for(host: Host) -> None:
    """Whatever the shells of this host are called, none of them can be run."""
    other = host.root / "default"
    other.mkdir()
    (other / "web.cfg").write_text(f'name = "web"\ndisk = ["{host.images}/web,raw,xvda,rw"]\n')
    bash = run_quietly("sh", "-c", "readlink -f $(command -v bash)")
    steps = ("mkdir -p /etc/xen", "mount -t tmpfs none /etc/xen", f"ln -s {other} /etc/xen/auto")
    change = " && ".join((*steps, f"mount --bind /dev/null {bash}"))
    if run_quietly("readlink", "-f", "/bin/sh") == bash:
        pytest.skip("sh, which sets the stage, is bash here")
    result = run_in_namespace(host, change)
    assert (
        f"{host.settings} needs bash, which does not start (Permission denied); the guests in /etc" in result.messages
    )
    assert_waited(host, result)


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "xx", "tr_TR.UTF-8", "en_US.ISO-8859-1"])
def test_the_answers_are_the_same_in_every_locale(host: Host, locale: str) -> None:
    directory = host.images / "größe ☃"
    directory.mkdir()
    (host.auto / "bücher.cfg").write_text(
        f'name="bücher"\ndisk=["{directory}/a,raw,xvda,rw", "{directory}/b,raw,xvdb,rw"]\n', encoding="utf-8"
    )
    (directory / "a").touch()
    environment = {"LC_ALL": locale, "LANG": locale, "PYTHONUTF8": "", "PYTHONCOERCECLOCALE": ""}
    domain = json.loads(host.run("list", "--json", **environment).output)["domains"][0]
    assert domain["name"] == "bücher"
    assert [(d["path"], d["state"]) for d in domain["disks"]] == [
        (f"{directory}/a", "ready"),
        (f"{directory}/b", "missing"),
    ]
    environment["PYTHONIOENCODING"] = "utf-8"  # what is printed is compared, and not how it is encoded
    assert (
        f"{directory}/b for bücher is still missing: does not exist\n"
        in host.run("--timeout", "0", **environment).messages
    )


# Names that would like to be more than names

UGLY = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("\n\r\t\x00\x07\x1b\x7f\x85\x9b\u200e\u202e\u2028\u2066\ufeff\udc1b\udcff\ud800<3>'\"\\,"),
    ),
    max_size=20,
)


def file_name(text: str) -> str:
    """What is left of the text in the name of a file."""
    name = os.fsencode(re.sub("[\ud800-\udc7f\udd00-\udfff\0/]", "", text))[:100].lstrip(b".")
    return os.fsdecode(name or b"x")


class Recorder(xwd.Journal):
    """Keeps the messages with their fields."""

    def __init__(self) -> None:
        super().__init__(xwd.DEBUG, None, patient=True)
        self.sent: list[tuple[str, dict[str, str]]] = []

    def _send(self, level: int, text: str, fields: Any) -> None:
        self.sent.append((text, dict(fields)))


@given(file=UGLY, name=UGLY, target=UGLY, vdev=UGLY, rest=UGLY)
@hypothesis_settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
def test_whatever_a_name_holds_a_message_is_a_line_and_json_is_json(
    tmp_path_factory: pytest.TempPathFactory, file: str, name: str, target: str, vdev: str, rest: str
) -> None:
    root = tmp_path_factory.mktemp("host")
    auto, save = root / "auto", root / "save"
    auto.mkdir()
    save.mkdir()
    config = {"c_info": {"name": name}, "disks": [{"pdev_path": target, "vdev": vdev, "script": rest}]}
    (save / file_name(file)).write_bytes(saved_file(json.dumps(config).encode() + b"\0"))
    text = f'name="{name}"\ndisk=["/{target},raw,{vdev}"]\n{rest}\n'
    (auto / file_name(file)).write_bytes(text.encode("utf-8", "surrogatepass"))
    (auto / file_name(f"z{file}")).symlink_to(root / file_name(rest))
    (auto / file_name(f"zz{file}")).write_bytes(
        b'name="%b"\ndisk=["/%b,raw,xvda"]\n'
        % (file_name(name).encode("utf-8", "surrogateescape").replace(b'"', b""), b"x")
    )

    found = xwd.survey(
        xwd.Xendomains("", str(auto), str(save)),
        xwd.Settings(),
        xwd.Kernel(),
        xwd.Scouts(),
        xwd.Survey(),
        time.monotonic() + 5,
    )
    journal = Recorder()
    herald = xwd.Herald(journal, time.monotonic(), 1)
    herald.tell(found)
    herald.tell(xwd.Survey())
    herald.tell(found)
    herald.tell_timeout()
    herald.tell_stopped(signal.SIGTERM)
    xwd.tell_what_is_wrong(found, journal, [])

    assert journal.sent
    for message, fields in journal.sent:
        assert all(piece.isprintable() for piece in (message, *fields.values()))
    table = xwd.as_table(found).splitlines()
    assert all(line.isprintable() for line in table)
    assert len(table) == 1 + sum(max(1, len(domain.disks)) for domain in found.domains())
    answer = json.loads(xwd.as_json(found).encode("ascii"))
    assert len(answer["domains"]) == len(found.entries)
    json.dumps(answer, ensure_ascii=False).encode()  # there are no halves of characters in it


def test_wrong_settings_are_quoted_in_one_line_without_escape_sequences(host: Host) -> None:
    host.conf.write_bytes(b'timeout = "\x1b[2J\x9b5\xff"\n\x1b]0;x\x07 = 1\nwhat\x1b[1m\n[paths]\nauto = "\x1b/x"\n')
    messages = host.run("check").messages
    assert messages.count("\n") >= 4
    assert all(line.isprintable() and line.startswith(f"{host.conf}") for line in messages.splitlines()[:4])


def test_a_nul_in_a_directory_of_the_conf_is_an_error_of_the_conf(host: Host) -> None:
    host.conf.write_bytes(f"[paths]\nxendomains = {host.settings}\nauto = /a\0b\n".encode())
    host.guest("web", host.images / "a")
    result = host.run("--timeout", "0")
    assert rf"{host.conf}: paths.auto is no path: '/a\x00b'; the default is used." in result.messages
    assert result.messages.endswith("these guests will probably not come up: web.\n")


# The clock

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long jump(void) {
    return access(getenv("JUMP_FILE"), F_OK) == 0 ? atol(getenv("JUMP")) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += jump();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that sets the clock of a process by $JUMP seconds as soon as $JUMP_FILE exists."""
    directory = tmp_path_factory.mktemp("clock")
    (directory / "clock.c").write_text(CLOCK)
    run_quietly("gcc", "-shared", "-fPIC", "-o", directory / "clock.so", directory / "clock.c", "-ldl")
    return directory / "clock.so"


@pytest.mark.parametrize("days", [1, -1])
def test_setting_the_clock_changes_nothing_about_the_timeout(waiting_host: Host, clock: Path, days: int) -> None:
    jump = waiting_host.root / "jump"
    environment = {"LD_PRELOAD": str(clock), "JUMP_FILE": str(jump), "JUMP": str(days * 86400)}
    process = waiting_host.start("--timeout", "2", **environment)
    started = time.monotonic()
    time.sleep(1)
    jump.touch()
    result = finish(process, started)
    assert 2 <= result.seconds < 3.5
    assert "is still missing after 2s" in result.messages
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert abs(float(told.stdout) - time.time() - days * 86400) < 60  # the clock really was set


def test_after_a_sleep_longer_than_the_timeout_it_ends_and_tells_what_is_missing(waiting_host: Host) -> None:
    process = waiting_host.start("--timeout", "2")
    started = time.monotonic()
    time.sleep(1)
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    result = finish(process, started)
    assert 3 <= result.seconds < 4
    assert f"{waiting_host.images}/web for web is still missing after 2s: does not exist\n" in result.messages


# Signals


def handles(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Whether the process has a handler for this signal."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{process.pid}/status").read_text(), re.M)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


# What comes before is up to Python, which answers SIGINT with a traceback.
FROM_THE_FIRST_LINE = f"""
import runpy, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
print("now", flush=True)
runpy.run_path({str(SCRIPT)!r})
"""
MOMENTS = [0, 0.05, 0.1, 0.15, 0.25, 0.5, 0.95, 1.05, 1.15]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_at_any_moment_ends_it_without_a_traceback(waiting_host: Host, number: signal.Signals) -> None:
    for moment in MOMENTS:
        process = subprocess.Popen(
            [sys.executable, "-c", FROM_THE_FIRST_LINE, "--config", waiting_host.conf, "--timeout", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean_environment(), "PYTHONPATH": str(MODULE.parent)},
        )
        started = time.monotonic()
        assert process.stdout
        assert process.stdout.readline() == "now\n"
        time.sleep(moment)
        process.send_signal(number)
        sent = time.monotonic()
        result = finish(process, started)
        assert time.monotonic() - sent < 1
        assert result.status == -number or (result.status == xwd.EXIT_TIMED_OUT and moment >= 0.9)
        assert all(line.startswith((*TOLD, str(waiting_host.images))) for line in result.messages.splitlines())


def test_the_command_takes_sigint_out_of_pythons_hands_before_it_loads_the_module(tmp_path: Path) -> None:
    (tmp_path / MODULE.name).write_text("import signal; run = lambda: print(int(signal.getsignal(signal.SIGINT)))\n")
    environment = {**clean_environment(), "PYTHONPATH": str(tmp_path)}
    output = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True).stdout
    assert output == f"{int(signal.SIG_DFL)}\n"


TOLD = ("still waiting for ", "Stopped by ", "xendomains starts now")


def test_a_signal_that_is_raised_where_nothing_may_be_raised_is_not_lost() -> None:
    program = """
import os, signal, time, xendomains_wait_disk as xwd

class Fragile:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

xwd.stop_on_signals()
try:
    fragile = Fragile()
    del fragile
    time.sleep(5)
except xwd.Stopped as stopped:
    print(stopped.number)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=MODULE.parent,
    )
    result = finish(process, time.monotonic())
    assert (result.output, result.messages) == ("15\n", "")


def test_sigpipe_is_nothing_to_it(waiting_host: Host) -> None:
    process = waiting_host.start("--timeout", "1")
    started = time.monotonic()
    wait_until(lambda: handles(process, signal.SIGTERM))
    process.send_signal(signal.SIGPIPE)
    assert_waited(waiting_host, finish(process, started))


def test_with_nohup_it_goes_on_when_the_terminal_is_gone(waiting_host: Host) -> None:
    started = time.monotonic()
    process = subprocess.Popen(
        ["nohup", *command(waiting_host, "--timeout", "1")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    wait_until(lambda: handles(process, signal.SIGTERM))
    process.send_signal(signal.SIGHUP)
    assert_waited(waiting_host, finish(process, started))
