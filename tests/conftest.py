# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Fixtures: a made-up Xen host in a temporary directory, on which the real command runs, and faults of a host.

No test may fail because the machine is slow: a command that hangs is killed after CAP seconds, preconditions are waited
for, and tests of timing use a fake clock (the fixture `clock`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from threading import Condition, Event, Thread
from typing import IO, Any, Literal

import hypothesis
import pytest

# Keep waits from writing a record on this machine.
os.environ["RUNTIME_DIRECTORY"] = "/nowhere"

from recorded import HostPaths

import xendomains_wait_disk as xwd

# Examples may take long on a busy machine.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

# Anything that takes longer than this many seconds is considered to hang.
CAP = 60.0

MODULE = Path(xwd.__file__)
SCRIPT = MODULE.parent / "bin" / "xendomains-wait-disk"
DATA = Path(__file__).parent / "data"
CORPUS = DATA / "xl-corpus"
NOBODY = 65534

# The program warns of files that others can write to.
os.umask(0o022)

# A process started in the background or by nohup(1) ignores these signals, and so do its children. A child of a process
# that handles them does not.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, lambda *_: None)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="requires root")


# ---------------------------------------------------------------------------------------------------------------------
# The host, and the command on it
# ---------------------------------------------------------------------------------------------------------------------


class Result:
    """The output and exit status of a command."""

    def __init__(self, status: int, output: str, messages: str) -> None:
        self.status = status
        self.output = output
        self.messages = messages
        assert "Traceback" not in messages and "internal error" not in messages, messages


class Running:
    """A running command. As a context manager, it kills the command on exit."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        self._output = b""
        self._messages = b""
        self._open = [stream.fileno() for stream in (process.stdout, process.stderr) if stream]

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill the command if it is still running."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        self._open = []

    @property
    def logged(self) -> str:
        """The messages so far."""
        while self._read(0):
            pass
        return text_of(self._messages)

    def wait_for(self, text: str) -> str:
        """Wait for a message that contains this text and return it."""
        deadline = time.monotonic() + CAP
        while True:
            line = next((line for line in self.logged.splitlines(keepends=True) if text in line), "")
            if line.endswith("\n"):
                return line
            if not self._open or time.monotonic() >= deadline:
                ended = f"exited with {self.process.poll()}" if not self._open else f"still runs after {CAP:.0f} s"
                pytest.fail(f"There was no message with {text!r}; the command {ended}, and printed:\n{self.logged}")
            self._read(1)

    def signal(self, number: int) -> None:
        """Send a signal to the command."""
        self.process.send_signal(number)

    def end(self) -> Result:
        """Wait for the command to exit."""
        deadline = time.monotonic() + CAP
        while self._open and time.monotonic() < deadline:
            self._read(1)
        try:
            status = self.process.wait(max(0.1, deadline - time.monotonic()) if not self._open else 0.1)
        except subprocess.TimeoutExpired:
            stacks = [path.read_text() for path in Path(f"/proc/{self.pid}/task").glob("*/wchan")]
            self.process.kill()
            pytest.fail(f"The command hangs (in {', '.join(stacks)}). It printed:\n{text_of(self._messages)}")
        messages = text_of(self._messages)
        self.kill()
        return Result(status, text_of(self._output), messages)

    def _read(self, seconds: float) -> bool:
        """Read what the command has printed; return whether there was anything."""
        ready, _, _ = select.select(self._open, [], [], seconds) if self._open else ([], [], [])
        for descriptor in ready:
            data = os.read(descriptor, 1 << 16)
            if not data:
                self._open.remove(descriptor)
            elif self.process.stderr and descriptor == self.process.stderr.fileno():
                self._messages += data
            else:
                self._output += data
        return bool(ready)


def text_of(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


class Host:
    """The directories of a Xen host: xendomains' settings, guests that start at boot, saved guests, and images."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.auto = root / "auto"
        self.save = root / "save"
        self.images = root / "images"
        self.libvirt: Path | None = None
        self.settings = root / "sysconfig" / "xendomains"
        self.conf = root / "xen-wait-disk.conf"
        self._started: list[Running] = []
        for directory in (self.auto, self.save, self.images, self.settings.parent):
            directory.mkdir()
        self.settings.write_text(
            f"XENDOMAINS_AUTO='{self.auto}'\nXENDOMAINS_SAVE='{self.save}'\nXENDOMAINS_RESTORE=true\n"
        )
        self.configure("")

    def configure(self, text: str) -> None:
        """Set the content of /etc/xen-wait-disk.conf, apart from [paths]."""
        self.conf.write_text(f"{text}\n[paths]\nxendomains = {self.settings}\nlibvirt = {self.libvirt or ''}\n")

    def guest(self, name: str, *disks: str | Path) -> Path:
        """Create a configuration in the auto directory; a disk is a path or a complete specification."""
        file = self.auto / f"{name}.cfg"
        specifications = [
            f"{disk},raw,{vdev(number)},rw" if "," not in str(disk) else disk for number, disk in enumerate(disks)
        ]
        disks_in_file = json.dumps([str(s) for s in specifications], ensure_ascii=False)
        file.write_text(f'name = "{name}"\ndisk = {disks_in_file}\n', encoding="utf-8")
        return file

    def configuration(self, name: str, text: str) -> Path:
        """Create a file with this text in the auto directory, old enough not to be taken for half-written."""
        file = self.auto / name
        file.write_text(text, encoding="utf-8")
        os.utime(file, (0, 0))
        return file

    def image(self, name: str) -> Path:
        """Create an image file."""
        file = self.images / name
        fill(file)
        return file

    def saved(self, name: str, *disks: Path) -> Path:
        """Create a saved guest."""
        file = self.save / name
        config = {"c_info": {"name": name}, "disks": [{"pdev_path": str(disk), "vdev": "xvda"} for disk in disks]}
        file.write_bytes(saved_file(json.dumps(config).encode() + b"\0"))
        return file

    def start(
        self,
        *arguments: str,
        prefix: Sequence[str | Path] = (),
        program: Sequence[str | Path] = (sys.executable, MODULE),
        options: Mapping[str, Any] | None = None,
        **environment: str,
    ) -> Running:
        """Start the command; `prefix` is a command to run it with, and `options` are passed to subprocess.Popen."""
        given = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": {**clean_environment(), **environment},
            **(options or {}),
        }
        running = Running(subprocess.Popen([*prefix, *program, "--config", self.conf, *arguments], **given))
        self._started.append(running)
        return running

    def run(
        self,
        *arguments: str,
        prefix: Sequence[str | Path] = (),
        program: Sequence[str | Path] = (sys.executable, MODULE),
        options: Mapping[str, Any] | None = None,
        **environment: str,
    ) -> Result:
        """Run the command and return the result."""
        return self.start(*arguments, prefix=prefix, program=program, options=options, **environment).end()

    def show(self, *arguments: str, columns: int = 80, **how: Any) -> str:
        """Return the output of the command on a terminal with this many columns. `how` is passed to start()."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        running = self.start(*arguments, options={"stdout": theirs}, **{"TERM": "xterm", **how})
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the command has exited, and the terminal is closed
            while select.select([ours], [], [], CAP)[0]:
                shown += os.read(ours, 1 << 16)
        os.close(ours)
        running.end()
        return text_of(shown).replace("\r\n", "\n")

    def list(self) -> dict[str, Any]:
        """Return the output of `list --json`."""
        answer: dict[str, Any] = json.loads(self.run("list", "--json").output)
        return answer

    def xendomains(self) -> xwd.Xendomains:
        """Return the settings of xendomains on this host."""
        libvirt = str(self.libvirt) if self.libvirt else ""
        return xwd.Xendomains(str(self.auto), str(self.save), libvirt=libvirt)

    def watcher(
        self, clock: xwd.Clock | None = None, settings: xwd.Settings | None = None, names: Sequence[str] = ()
    ) -> xwd.Watcher:
        """Return a Watcher for this host, for tests of a part of the program."""
        return xwd.Watcher(self.xendomains(), settings or xwd.Settings(), clock or xwd.Clock(), names)

    def end(self) -> None:
        """Kill all commands that are still running."""
        for running in self._started:
            running.kill()


@pytest.fixture(autouse=True)
def original_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the paths where the program looks for storage after each test."""
    for name in HostPaths._fields:
        monkeypatch.setattr(xwd, name.upper(), getattr(xwd, name.upper()))


# For threads that outlive their test, and wake its clock.
SPARE_PIPE = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


@pytest.fixture(autouse=True)
def closed_clocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the pipes of all clocks of a test: the program makes only one, and leaves it open until it exits."""
    clocks: list[xwd.Clock] = []
    make = xwd.Clock.__init__

    def made(clock: xwd.Clock) -> None:
        make(clock)
        clocks.append(clock)

    monkeypatch.setattr(xwd.Clock, "__init__", made)
    yield
    signal.set_wakeup_fd(-1)
    for clock in clocks:
        descriptors = clock._reading, clock._writing
        clock._reading, clock._writing = SPARE_PIPE
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    it = Host(tmp_path)
    yield it
    it.end()


@contextmanager
def waiting(host: Host, *arguments: str, **how: Any) -> Iterator[Running]:
    """Start the command and yield it once it reports that it is waiting. `how` is passed to Host.start()."""
    with host.start(*arguments, **how) as running:
        running.wait_for("still waiting for")
        yield running


def program_with(change: str) -> list[str]:
    """Return a command that runs the program after these lines of Python, which can modify its module as xwd."""
    return [sys.executable, "-c", f"import sys\nimport xendomains_wait_disk as xwd\n{change}\nxwd.run()\n"]


def clean_environment() -> dict[str, str]:
    """Return the environment without variables that affect messages or their destination."""
    messages = ("LOGLEVEL", "SYSTEMD_LOG_LEVEL", "NOTIFY_SOCKET", "JOURNAL_STREAM", "PYTHONUNBUFFERED")
    ours = (*messages, "COLUMNS", "NO_COLOR", "TERM")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    return {**environment, "PYTHONPATH": str(MODULE.parent)}


def saved_file(
    configuration: bytes,
    flags: int = xwd.SAVED_JSON | xwd.SAVED_STREAM_V2,
    order: Literal["little", "big"] = "little",
    image: bytes = b"LibxlFmt and the memory image" + xwd.SAVED_END,
    size: int | None = None,
    optional: int | None = None,
) -> bytes:
    """Return the content of a file written by xl save; `size` and `optional` are the lengths in its header."""
    size = len(configuration) if size is None else size
    optional = len(configuration) + 4 if optional is None else optional
    words = (0x01020304, flags, 0, optional, size)
    return xwd.SAVED_MAGIC + b"".join(word.to_bytes(4, order) for word in words) + configuration + image


def vdev(number: int) -> str:
    """Return the vdev for a guest's disk number."""
    return f"xvd{chr(97 + number)}" if number < 26 else f"d{number}p0"


def findings_text(findings: Iterable[xwd.Finding]) -> str:
    """Return the findings as text, one per line."""
    return "\n".join(finding.sentence() for finding in findings)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + CAP
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {CAP} seconds"
        time.sleep(0.005)


@contextmanager
def repeatedly(action: Callable[[], object], pause: float = 0.0) -> Iterator[None]:
    """Repeat an action in a thread while the context is active."""
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


def run_quietly(*command: str | Path) -> str:
    """Return the output of a command, which must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def no_pyudev(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pyudev look as if it were not installed."""
    modules: dict[str, Any] = sys.modules
    monkeypatch.setitem(modules, "pyudev", None)


class Systemctl:
    """A fake systemctl that reports which units are enabled."""

    def __init__(self, directory: Path) -> None:
        self._states = directory
        script = directory / "systemctl"
        script.write_text(
            "#!/bin/sh\n"
            f'case $1 in is-enabled) cat "{directory}/$2" ;; show) cat "{directory}/$3-conflicts" 2>/dev/null ;; esac\n'
        )
        script.chmod(0o755)
        for unit in ("xendomains", "xendomains-wait-disk"):
            self.set_state(f"{unit}.service", "enabled")

    def set_state(self, unit: str, state: str) -> None:
        """Set the state of a unit."""
        (self._states / unit).write_text(f"{state}\n")

    def set_conflicts(self, unit: str, *others: str) -> None:
        """Set the conflicts of a unit."""
        (self._states / f"{unit}-conflicts").write_text(f"Conflicts={' '.join(others)}\n")


@pytest.fixture
def systemctl(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    directory = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return Systemctl(directory)


# ---------------------------------------------------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------------------------------------------------


def process_state(pid: int) -> str:
    """Return the state of a process as in proc(5): S sleeping, T stopped, Z zombie; empty if there is no process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def session_members(session: int) -> list[str]:
    """Return the running processes of a session."""
    members = []
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat_file.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has just exited
        if int(its_session) == session and state not in "ZX":
            members.append(stat_file.parent.name)
    return members


def threads_of(pid: int) -> int:
    """Return the number of threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))


def peak_memory(pid: int) -> float:
    """Return the peak memory use of a process in MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) / 1024


def handles(pid: int, number: signal.Signals) -> bool:
    """Return whether the process has a handler for this signal."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def in_namespace(change: str) -> list[str]:
    """Return a prefix that runs the command in a mount namespace after this shell command has changed it."""
    try:
        run_quietly("unshare", "--mount", "true")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mount namespaces cannot be created here: {error}")
    return ["unshare", "--mount", "sh", "-c", f'{change} && exec "$@"', "sh"]


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """Create a control group that limits the memory of its processes, without swap space."""
    group = Path("/sys/fs/cgroup/memory") / f"xendomains-wait-disk-{os.getpid()}"
    limits = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    if not group.parent.is_dir():
        group, limits = group.parent.parent / group.name, ["memory.max"]
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"control groups cannot be created here: {error}")
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


# ---------------------------------------------------------------------------------------------------------------------
# Readers of messages
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """Yield both ends of a pipe that is full and that nobody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(writing, b"\n" * size)
    os.set_blocking(writing, True)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


class Receiver:
    """A datagram socket that receives messages, like the sockets of journald and sd_notify(3)."""

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address.replace("@", "\0", 1))
        self._socket.settimeout(CAP)

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def receive(self) -> str:
        """Wait for the next datagram and return it."""
        return self._socket.recv(1 << 20).decode()

    def receive_status(self) -> str:
        """Wait for the next datagram with STATUS= and return it."""
        while "STATUS=" not in (message := self.receive()):
            pass
        return message

    def receive_all(self) -> list[str]:
        """Return the datagrams received so far."""
        found = []
        while select.select([self._socket], [], [], 0)[0]:
            found.append(self.receive())
        return found

    def fill(self) -> int:
        """Send datagrams until the socket is full; return how many."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            other.connect(self.address.replace("@", "\0", 1))
            for number in count():
                try:
                    other.send(b"noise")
                except BlockingIOError:
                    return number
        raise AssertionError


class Journald(Receiver):
    """A fake journald: its socket, and a file for the command's standard error."""

    def __init__(self, host: Host) -> None:
        super().__init__(host.root / "journal")
        self._host = host
        self._stderr: IO[bytes] = (host.root / "stderr").open("wb")

    def start(self, *arguments: str, change: str = "", **environment: str) -> Running:
        """Start the command as systemd would start a service."""
        status = os.fstat(self._stderr.fileno())
        return self._host.start(
            *arguments,
            program=program_with(f"xwd.JOURNAL_SOCKET = {self.address!r}\n{change}"),
            options={"stderr": self._stderr},
            JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}",
            **environment,
        )

    def entry(self) -> dict[str, str]:
        """Wait for the next message and return its fields."""
        return fields_of(self.receive())

    def entries(self) -> list[dict[str, str]]:
        """Return the fields of the messages received so far."""
        return [fields_of(datagram) for datagram in self.receive_all()]

    def stderr(self) -> str:
        """Return what the command wrote to standard error."""
        return (self._host.root / "stderr").read_text()

    def stop(self) -> None:
        """Make journald exit."""
        self.__exit__()
        Path(self.address).unlink()


class Recorder(xwd.Journal):
    """A journal that also keeps its messages in a list."""

    def __init__(self, stream: IO[str] | None, clock: xwd.Clock) -> None:
        super().__init__(xwd.DEBUG, stream, clock)
        self.messages: list[xwd.Message] = []

    def log_all(self, messages: Sequence[xwd.Message], end: float, summary: xwd.Message | None = None) -> None:
        self.messages += [*messages, *([summary] if summary else [])]
        super().log_all(messages, end, summary)


def fields_of(datagram: str) -> dict[str, str]:
    """Parse a datagram like journald: https://systemd.io/JOURNAL_NATIVE_PROTOCOL, without binary fields."""
    assert datagram.endswith("\n")
    assert all("=" in line for line in datagram.splitlines())
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", datagram, re.M))


@pytest.fixture
def journald(host: Host) -> Iterator[Journald]:
    it = Journald(host)
    with it:
        yield it


# ---------------------------------------------------------------------------------------------------------------------
# File systems
# ---------------------------------------------------------------------------------------------------------------------


def bind_socket(path: Path) -> None:
    """Create a socket that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))


def fill(path: Path) -> None:
    """Create a file of one byte."""
    path.write_bytes(b"\0")


def sparse(path: Path, size: int = 1 << 30) -> None:
    """Create a sparse file of this size."""
    with path.open("wb") as file:
        file.truncate(size)


@contextmanager
def fuse_mount(directory: Path) -> Iterator[int]:
    """Mount a FUSE file system and yield the descriptor through which it is served."""
    libc = ctypes.CDLL(None, use_errno=True)
    directory.mkdir(exist_ok=True)
    try:
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        pytest.skip(f"FUSE is not available here: {error}")
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    try:
        if libc.mount(b"test", os.fsencode(directory), b"fuse", 0, options) != 0:
            pytest.skip(f"FUSE cannot be mounted here: {os.strerror(ctypes.get_errno())}")
        yield fuse
    finally:
        os.close(fuse)
        libc.umount2(os.fsencode(directory), 2)  # MNT_DETACH


@contextmanager
def hung_file_system(directory: Path) -> Iterator[Path]:
    """Mount a file system that never responds, like a hard NFS mount whose server is gone: stat() on it blocks."""
    with fuse_mount(directory):
        yield directory


class FuseServer(Thread):
    """Server of a FUSE directory of files, which answers each request after `delay` seconds, in parallel.

    A read returns at most `max_read` bytes. The protocol is described in the kernel's include/uapi/linux/fuse.h.
    """

    LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, INTERRUPT, BATCH_FORGET = (
        1, 2, 3, 14, 15, 18, 25, 26, 36, 42,
    )  # fmt: skip
    PARALLEL_LOOKUPS, DIRECT_IO = 1 << 18, 1

    def __init__(self, fuse: int, directory: Path, delay: float, max_read: int) -> None:
        super().__init__(daemon=True)
        self.directory = directory
        self.files: dict[str, bytes] = {}
        self.lookups = 0
        self.is_hanging = False  # if set, no request is answered
        self.pending: deque[tuple[float, bytes]] = deque()  # answers, and the times at which to send them
        self._nodes: list[bytes | None] = [None, None]  # the second is the root
        self._fuse = fuse
        self._delay = delay
        self._max_read = max_read
        self._is_over = False

    def run(self) -> None:
        while not self._is_over:
            if select.select([self._fuse], [], [], 0.01)[0]:
                with suppress(BlockingIOError):
                    self._take(os.read(self._fuse, 1 << 18))
            while self.pending and not self.is_hanging and self.pending[0][0] <= time.monotonic():
                with suppress(OSError):  # the caller is gone
                    os.write(self._fuse, self.pending.popleft()[1])

    def stop(self) -> None:
        self._is_over = True
        self.join()

    def _take(self, request: bytes) -> None:
        _, operation, unique, node = struct.unpack_from("=IIQQ", request)
        if operation in (self.FORGET, self.INTERRUPT, self.BATCH_FORGET):
            return
        try:
            number, body = 0, self._answer(operation, node, request[40:])
        except OSError as error:
            number, body = -(error.errno or errno.EIO), b""
        answer = struct.pack("=IiQ", 16 + len(body), number, unique) + body
        if operation == self.INIT:
            os.write(self._fuse, answer)  # the kernel sends no other requests before this
        else:
            self.pending.append((time.monotonic() + self._delay, answer))

    def _answer(self, operation: int, node: int, body: bytes) -> bytes:
        if operation == self.INIT:
            return struct.pack("=IIIIHHIIHHI28x", 7, 31, 1 << 17, self.PARALLEL_LOOKUPS, 100, 75, 1 << 17, 1, 32, 0, 0)
        if operation == self.LOOKUP:
            self.lookups += 1
            name = os.fsdecode(body.rstrip(b"\0"))
            if name not in self.files:
                raise FileNotFoundError(errno.ENOENT, "")
            self._nodes.append(self.files[name])
            node = len(self._nodes) - 1
            return struct.pack("=QQQQII", node, 0, 0, 0, 0, 0) + self._attributes(node)
        if operation == self.GETATTR:
            return struct.pack("=QII", 0, 0, 0) + self._attributes(node)
        if operation == self.OPEN:
            return struct.pack("=QII", 0, self.DIRECT_IO, 0)
        if operation == self.READ:
            _, offset, size = struct.unpack_from("=QQI", body)
            return (self._nodes[node] or b"")[offset : offset + min(size, self._max_read)]
        if operation in (self.RELEASE, self.FLUSH):
            return b""
        raise OSError(errno.ENOSYS, "")

    def _attributes(self, node: int) -> bytes:
        content = self._nodes[node]
        mode, size = (0o40755, 0) if content is None else (0o100644, len(content))
        return struct.pack("=QQQQQQIIIIIIIIII", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


@contextmanager
def slow_file_system(directory: Path, delay: float = 0.2, max_read: int = 1 << 17) -> Iterator[FuseServer]:
    """Mount a file system with a delay for each answer and short reads; a test sets its `files`."""
    with fuse_mount(directory) as fuse:
        server = FuseServer(fuse, directory, delay, max_read)
        server.start()
        try:
            yield server
        finally:
            server.stop()


# ---------------------------------------------------------------------------------------------------------------------
# Block devices and udev: a test that uses them belongs to an xdist_group
# ---------------------------------------------------------------------------------------------------------------------


def loop_device() -> Path:
    """Return a free loop device; skip the test if there is none."""
    try:
        device = Path(run_quietly("losetup", "--find"))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"loop devices are not available here: {error}")
    if not device.exists():
        pytest.skip(f"the kernel has a free loop device, but {device} does not exist here")
    return device


@contextmanager
def attached(device: Path, image: Path) -> Iterator[Path]:
    """Attach an image to a loop device."""
    run_quietly("losetup", device, image)
    try:
        if udev_answers():
            run_quietly("udevadm", "settle")
        yield device
    finally:
        run_quietly("losetup", "--detach", device)


UDEV_CONTROL = Path("/run/udev/control")
UDEVD = next((d for d in ("/lib/systemd/systemd-udevd", "/usr/lib/systemd/systemd-udevd") if Path(d).exists()), "")


@pytest.fixture(scope="session")
def udev() -> Iterator[None]:
    """A running udev: that of this machine, or one started for the tests."""
    if udev_answers():
        yield
        return
    if not UDEVD or os.geteuid() != 0:
        pytest.skip("udev is not running and cannot be started: not installed, or not root")
    if os.statvfs("/sys").f_flag & os.ST_RDONLY:
        pytest.skip("udev is not running and cannot be started: /sys is read-only")
    process = subprocess.Popen([UDEVD], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(udev_answers)
        run_quietly("udevadm", "trigger", "--type=all", "--subsystem-match=block", "--settle")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        UDEV_CONTROL.unlink(missing_ok=True)


def udev_answers() -> bool:
    """Return whether a udev daemon responds on its control socket."""
    ping = ["udevadm", "control", "--ping", "--timeout=2"]
    return UDEV_CONTROL.exists() and subprocess.run(ping, capture_output=True).returncode == 0


def pytest_sessionstart() -> None:
    """Remove the control socket left by the udev of a killed test run: the program would think that udev is running."""
    if os.geteuid() == 0 and not udev_answers():
        UDEV_CONTROL.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# The clock
# ---------------------------------------------------------------------------------------------------------------------


class FakeClock(xwd.Clock):
    """A clock on which time passes only while the main thread pauses, and then instantly.

    Before time passes, all threads finish, except those in a call that hangs (`hanging_call()`) or takes time on this
    clock (`slow_call()`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0  # that have passed
        self.threads_started = 0
        self.messages = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._actions: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self._changed = Condition()
        self._active = 0  # threads that are not hanging
        self._is_awake = False  # set by wake()

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        """Schedule an action for this many seconds after the start of the clock."""
        with self._changed:
            heappush(self._actions, (seconds, next(self._numbers), action))

    def hanging_call(self, answer: Any = None) -> Hang:
        """Return a call that does not return until its release()."""
        return Hang(self, answer)

    def slow_call(self, seconds: float, answer: Any = None) -> Callable[[], Any]:
        """Return a call that takes this many seconds."""

        def call() -> Any:
            hang = self.hanging_call(answer)
            self.at(self.seconds + seconds, hang.release)
            return hang()

        return call

    def add_active(self, number: int) -> None:
        """Change the number of threads that are not hanging."""
        with self._changed:
            self._active += number
            self._changed.notify_all()

    def now(self) -> float:
        return 1000 + self.seconds

    def wake(self) -> None:
        self._is_awake = True
        super().wake()

    def start_thread(self, function: Callable[[], None]) -> None:
        def run() -> None:
            try:
                function()
            finally:
                self.add_active(-1)

        self.add_active(1)
        self.threads_started += 1
        Thread(target=run, daemon=True).start()

    def pause(self, seconds: float, descriptor: int = -1, event: int = select.POLLIN) -> bool:
        end = self.seconds + max(0.0, min(seconds, xwd.MAX_TIME))
        while True:
            with self._changed:
                assert self._changed.wait_for(lambda: not self._active, CAP), "a thread hangs"
            woken, self._is_awake = self._is_awake, False
            is_ready = super().pause(0, descriptor, event)
            if woken or is_ready or self.seconds >= end:
                return is_ready
            with self._changed:
                is_due = bool(self._actions) and self._actions[0][0] <= end
                moment, _, action = heappop(self._actions) if is_due else (end, 0, lambda: None)
            moment = max(moment, self.seconds)
            self.slept += moment - self.seconds
            self.seconds = moment
            action()

    @property
    def logged(self) -> str:
        """The messages of wait() so far."""
        return os.pread(self.messages.fileno(), 1 << 24, 0).decode()

    def wait(self, host: Host, timeout: float = 300.0) -> Result:
        """Run a wait on this host with its settings and this timeout, and return the result."""
        settings = xwd.read_settings(str(host.conf))[0]._replace(timeout=timeout)
        journal = xwd.Journal(settings.log_level, self.messages, self)
        status = xwd.wait_for_disks(host.watcher(self, settings), journal, self.now())
        return Result(status, "", self.logged)


class Hang:
    """A call that hangs until release()."""

    def __init__(self, clock: FakeClock, answer: Any) -> None:
        self._clock = clock
        self._answer = answer
        self._released = Event()
        self._hanging = 0

    def __call__(self, *_: object) -> Any:
        if not self._released.is_set():
            self._hanging += 1
            self._clock.add_active(-1)
            self._released.wait()
        return self._answer

    def release(self) -> None:
        """Let the call return."""
        self._clock.add_active(self._hanging)
        self._hanging = 0
        self._released.set()


class Events:
    """A fake monitor for events of block devices, which a test triggers."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._reading

    def happen(self) -> None:
        """Trigger an event."""
        os.write(self._writing, b"event")

    def close(self) -> None:
        for descriptor in (self._reading, self._writing):
            os.close(descriptor)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[Events]:
    """Replace the events of block devices with those of the test."""
    with closing(Events()) as it:
        monkeypatch.setattr(xwd, "block_events", lambda: it)
        yield it


@pytest.fixture
def clock(events: Events) -> Iterator[FakeClock]:
    handlers = {number: signal.getsignal(number) for number in xwd.STOPPING_SIGNALS}
    yield FakeClock()
    for number, handler in handlers.items():
        signal.signal(number, handler)
