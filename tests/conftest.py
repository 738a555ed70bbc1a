# SPDX-License-Identifier: GPL-3.0-or-later
"""A made-up Xen host in a temporary directory, on which the real command runs."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

import xendomains_wait_disk as xwd

MODULE = Path(xwd.__file__)
DATA = Path(__file__).parent / "data"
CORPUS = DATA / "xl-corpus"

# Settings that others may write are refused.
os.umask(0o022)

# What is started in the background or by nohup(1) ignores these, and so would all that it starts; but not what is
# started by a process that handles them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, lambda *_: None)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this")


class Host:
    """The directories of a Xen host: xendomains' settings, the guests that start at boot, the saved ones, images."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.auto = root / "auto"
        self.save = root / "save"
        self.images = root / "images"
        self.settings = root / "sysconfig" / "xendomains"
        self.conf = root / "xen-wait-disk.conf"
        for directory in (self.auto, self.save, self.images, self.settings.parent):
            directory.mkdir()
        self.settings.write_text(
            f"XENDOMAINS_AUTO='{self.auto}'\nXENDOMAINS_SAVE='{self.save}'\nXENDOMAINS_RESTORE=true\n"
        )
        self.configure("")

    def configure(self, text: str) -> None:
        """What /etc/xen-wait-disk.conf says, besides where xendomains' settings are."""
        self.conf.write_text(f"{text}\n[paths]\nxendomains = {self.settings}\n")

    def guest(self, name: str, *disks: str | Path) -> Path:
        """A configuration in the auto directory; a disk is a path or a whole specification."""
        file = self.auto / f"{name}.cfg"
        specifications = [
            f"{disk},raw,xvd{chr(97 + i)},rw" if "," not in str(disk) else disk for i, disk in enumerate(disks)
        ]
        file.write_text(f'name = "{name}"\ndisk = {json.dumps([str(s) for s in specifications])}\n')
        return file

    def image(self, name: str) -> Path:
        """An image file that is there."""
        file = self.images / name
        file.touch()
        return file

    def saved(self, name: str, *disks: Path) -> Path:
        """A saved domain."""
        file = self.save / name
        config = {"c_info": {"name": name}, "disks": [{"pdev_path": str(disk), "vdev": "xvda"} for disk in disks]}
        file.write_bytes(saved_file(json.dumps(config).encode() + b"\0"))
        return file

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """The command, running."""
        return subprocess.Popen(
            [sys.executable, MODULE, "--config", self.conf, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean_environment(), **environment},
        )

    def run(self, *arguments: str, **environment: str) -> Result:
        """The command, run to its end."""
        started = time.monotonic()
        process = self.start(*arguments, **environment)
        return finish(process, started)

    def list(self) -> dict[str, Any]:
        """What `list --json` says."""
        answer: dict[str, Any] = json.loads(self.run("list", "--json").output)
        return answer


class Result:
    """What the command printed, how it ended, and how many seconds it took."""

    def __init__(self, status: int, output: str, messages: str, seconds: float) -> None:
        self.status = status
        self.output = output
        self.messages = messages
        self.seconds = seconds
        assert "Traceback" not in messages and "internal error" not in messages, messages


def finish(process: subprocess.Popen[str], started: float) -> Result:
    """Waits for the end of the command."""
    try:
        output, messages = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Result(process.returncode, output or "", messages or "", time.monotonic() - started)


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line of the command's messages, and nothing of those behind it, which finish() could not see."""
    assert process.stderr
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(process.stderr.fileno(), 1)
        if not byte:
            break
        line += byte
    return line.decode()


def clean_environment() -> dict[str, str]:
    """The environment without what would change messages or where they go."""
    ours = ("LOGLEVEL", "SYSTEMD_LOG_LEVEL", "NOTIFY_SOCKET", "JOURNAL_STREAM", "PYTHONUNBUFFERED")
    return {name: value for name, value in os.environ.items() if name not in ours}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def no_pyudev(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where pyudev is not installed."""
    monkeypatch.setitem(sys.modules, "pyudev", None)  # type: ignore[misc]


def saved_file(
    configuration: bytes,
    flags: int = xwd.SAVED_JSON | xwd.SAVED_STREAM_V2,
    order: Literal["little", "big"] = "little",
    image: bytes = b"LibxlFmt and the memory image",
    size: int | None = None,
    optional: int | None = None,
) -> bytes:
    """A file as xl save writes it; `size` and `optional` are the lengths it claims."""
    size = len(configuration) if size is None else size
    optional = len(configuration) + 4 if optional is None else optional
    words = (xwd.SAVED_BYTE_ORDER, flags, 0, optional, size)
    return xwd.SAVED_MAGIC + b"".join(word.to_bytes(4, order) for word in words) + configuration + image


def wait_until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Returns as soon as the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not come true within {seconds} seconds"
        time.sleep(0.01)


def run_quietly(*command: str | Path) -> str:
    """The output of a command that must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def deaf_file_system(directory: Path) -> Iterator[Path]:
    """A FUSE file system that never answers, as a hard NFS mount whose server is gone: stat() on it blocks."""
    libc = ctypes.CDLL(None, use_errno=True)
    directory.mkdir(exist_ok=True)
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"deaf", os.fsencode(directory), b"fuse", 0, options) != 0:
        number = ctypes.get_errno()
        os.close(fuse)
        pytest.skip(f"FUSE cannot be mounted here: {os.strerror(number)}")
    try:
        yield directory
    finally:
        os.close(fuse)
        libc.umount2(os.fsencode(directory), 2)  # MNT_DETACH


def loop_device() -> Path:
    """A free loop device; skips the test if there can be none."""
    try:
        return Path(run_quietly("losetup", "--find"))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"there are no loop devices here: {error}")


@contextmanager
def attached(device: Path, image: Path) -> Iterator[Path]:
    """The loop device with the image behind it."""
    run_quietly("losetup", device, image)
    try:
        yield device
    finally:
        run_quietly("losetup", "--detach", device)


@pytest.fixture(scope="session")
def udev() -> Iterator[None]:
    """A running udev: the host's, or one started for the tests."""
    daemon = next(
        (d for d in ("/lib/systemd/systemd-udevd", "/usr/lib/systemd/systemd-udevd") if Path(d).exists()), None
    )
    if Path("/run/udev/control").exists() and udev_answers():
        yield
        return
    if daemon is None or os.geteuid() != 0:
        pytest.skip("udev does not run here, and cannot be started: not installed, or not root")
    process = subprocess.Popen([daemon], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(udev_answers)
        run_quietly("udevadm", "trigger", "--type=all", "--subsystem-match=block", "--settle")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        Path("/run/udev/control").unlink(missing_ok=True)


def udev_answers() -> bool:
    """Whether a udev daemon answers on its control socket."""
    return subprocess.run(["udevadm", "control", "--ping", "--timeout=2"], capture_output=True).returncode == 0


def texts(sentences: Sequence[str]) -> str:
    """Sentences in one piece, for a test that wants to find something in any of them."""
    return "\n".join(sentences)
