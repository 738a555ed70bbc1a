# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Changes during the wait: udev dies, directories are replaced, files grow, disks flap, and file systems hang.

Whatever happens, the disks of other guests are found, the wait ends, and the messages are correct.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    CAP,
    UDEVD,
    FakeClock,
    Host,
    Receiver,
    as_root,
    attached,
    bind_socket,
    fill,
    handles,
    hung_file_system,
    loop_device,
    peak_memory,
    repeatedly,
    run_quietly,
    saved_file,
    session_members,
    slow_file_system,
    sparse,
    wait_until,
    waiting,
)
from recorded import HostPaths

import xendomains_wait_disk as xwd

# ---------------------------------------------------------------------------------------------------------------------
# Tests for all faults
# ---------------------------------------------------------------------------------------------------------------------

Fault = Callable[[Host], "AbstractContextManager[object]"]


ODD_FILES: list[Callable[[Path], object]] = [
    lambda path: path.symlink_to(path.name),
    *(partial(os.symlink, f"/dev/{name}") for name in ("zero", "random", "tty", "stdin")),
    os.mkfifo,
    bind_socket,
    Path.mkdir,
]
ODD_CONTENTS: list[Callable[[Path], object]] = [partial(os.symlink, "/proc/self/environ"), sparse]


def everywhere(makers: Sequence[Callable[[Path], object]]) -> Fault:
    """Create odd files as configurations, as saved guests and as disks."""

    def make(host: Host) -> AbstractContextManager[None]:
        for directory in (host.auto, host.save, host.images):
            for number, make_file in enumerate(makers):
                make_file(directory / f"{directory.name}{number}")
        host.guest("odd", *sorted(host.images.iterdir()))
        return nullcontext()

    return make


def configurations(*texts: str) -> Fault:
    """Create a guest for each of these configurations."""

    def make(host: Host) -> AbstractContextManager[None]:
        for number, text in enumerate(texts):
            host.configuration(f"odd{number}", text)
        return nullcontext()

    return make


def of_maximum_length(text: str, around: str = "%s") -> str:
    """Return this text repeated to almost the maximum size of a configuration."""
    times = (xwd.MAX_CONFIGURATION - 1000) // len(text)
    return around % (text * times)


def saved(host: Host) -> AbstractContextManager[None]:
    """Create saved guests with 1 GiB after the header that are slow to parse or claim a huge configuration."""
    files = [
        saved_file(b"[" * 100_000),
        saved_file(b'\\"' * 65_000),
        saved_file(b"", size=xwd.MAX_CONFIGURATION, optional=0xFFFFFFFF),
        saved_file(b"", size=0xFFFFFFFF, optional=0xFFFFFFFF),
    ]
    for number, content in enumerate(files):
        file = host.save / f"odd{number}"
        file.write_bytes(content)
        os.truncate(file, 1 << 30)
        os.utime(file, (0, 0))
    return nullcontext()


def settings(host: Host) -> AbstractContextManager[None]:
    """Make xendomains' settings print endlessly and leave processes behind."""
    with host.settings.open("a") as file:
        file.write("yes &\nseq 1000000\nfor _ in {1..50}; do sleep 100 & done\n")
    return nullcontext()


def flapping(host: Host) -> AbstractContextManager[None]:
    disk = host.images / "flapping"
    host.guest("odd", disk, host.images / "never")

    def flap() -> None:
        fill(disk)
        disk.unlink()

    return repeatedly(flap, 0.0005)


def growing(host: Host) -> AbstractContextManager[None]:
    def grow() -> None:
        with (host.auto / "log").open("a") as file:
            file.write("what is this?\n")

    return repeatedly(grow, 0.001)


def replaced(host: Host) -> AbstractContextManager[None]:
    """Repeatedly rename the directory of configurations and back."""
    away = host.root / "away"
    return repeatedly(lambda: (host.auto.rename(away), away.rename(host.auto)), 0.0005)


def always_new_names(host: Host) -> AbstractContextManager[None]:
    """Repeatedly rename one file, next to a file that is waited for all the time."""
    (host.auto / "0").symlink_to("/nowhere")
    (host.auto / "never").symlink_to("/nowhere")
    numbers = count()

    def rename() -> None:
        number = next(numbers)
        (host.auto / str(number)).rename(host.auto / str(number + 1))

    return repeatedly(rename, 0.0005)


LONG = "x" * 100_000

# Texts that are slow to parse and do not define a guest.
SLOW = [
    of_maximum_length("[", "disk=%s\n"),
    of_maximum_length('a+="b"\n'),
    of_maximum_length('a+=["b"]\n'),
    of_maximum_length(" "),
]

# Name, fault, exit status of the wait, and a part of its messages.
FAULTS: list[tuple[str, Fault, int, str]] = [
    ("odd files", everywhere(ODD_FILES), xwd.EXIT_TIMED_OUT, "is a FIFO, neither a block device nor a regular file"),
    # /proc/self/environ is a regular file, like a disk image.
    ("odd contents", everywhere(ODD_CONTENTS), xwd.EXIT_TIMED_OUT, "is too large for a configuration"),
    (
        "many disks",
        configurations('name="odd"\ndisk=[' + ",".join(f'"/no,,d{n}p0"' for n in range(8000)) + "]\n"),
        xwd.EXIT_TIMED_OUT,
        "for odd",
    ),
    (
        "many other disks",
        configurations('name="odd"\ndisk=[' + ",".join(f'"/{n:x},,d{n}p0"' for n in range(900)) + "]\n"),
        xwd.EXIT_TIMED_OUT,
        "waiting for 90",
    ),
    ("slow to parse", configurations(*SLOW * 3), xwd.EXIT_READY, "odd11: does not name the domain"),
    ("saved", saved, xwd.EXIT_READY, "claims 4294967295 bytes"),
    ("settings", settings, xwd.EXIT_READY, ""),
    ("flapping", flapping, xwd.EXIT_TIMED_OUT, "never for odd"),
    ("growing", growing, xwd.EXIT_READY, "log: line 1"),
    ("replaced", replaced, xwd.EXIT_READY, ""),
    ("always new names", always_new_names, xwd.EXIT_TIMED_OUT, "is a link to /nowhere, which does not exist"),
]


def each(faults: list[tuple[str, Fault, int, str]]) -> list[Any]:
    return [pytest.param(*row[1:], id=row[0]) for row in faults]


@pytest.mark.promise("A problem with one guest does not delay the others")
@pytest.mark.promise("A file is not a configuration: a directory, device, FIFO, a gigabyte, nested lists, deep JSON")
@pytest.mark.promise("A configuration is slow to parse")
@pytest.mark.promise("A directory has thousands of files, or new ones all the time")
@pytest.mark.promise("Disks come and go")
@pytest.mark.parametrize(("fault", "status", "message"), each(FAULTS))
def test_other_disks_are_found_and_the_wait_ends_despite_any_fault(
    host: Host, fault: Fault, status: int, message: str
) -> None:
    good, last = host.images / "good", host.images / "last"
    host.saved("good", good, last)
    with ExitStack() as stack:
        stack.enter_context(fault(host))
        waiter = stack.enter_context(waiting(host, options={"start_new_session": True}))
        fill(good)
        waiter.wait_for(f"disk {good} found (after ")
        waiter.wait_for(message)
        assert peak_memory(waiter.pid) < 128
        if status == xwd.EXIT_READY:
            fill(last)
        else:
            waiter.signal(signal.SIGTERM)
        result = waiter.end()
        assert result.status == (xwd.EXIT_READY if status == xwd.EXIT_READY else -signal.SIGTERM)
        assert len(result.messages) < 500_000
        assert session_members(waiter.pid) == []


@pytest.mark.promise("The wait ends at the timeout even if something hangs, and leaves no process behind")
@pytest.mark.parametrize(("fault", "status", "_"), each([row for row in FAULTS if row[2] == xwd.EXIT_TIMED_OUT]))
def test_timeout_ends_the_wait_despite_any_fault(host: Host, fault: Fault, status: int, _: str) -> None:
    with fault(host):
        result = host.run("--timeout", "1", options={"start_new_session": True})
    assert result.status == status
    assert "These guests will probably not come up: " in result.messages.splitlines()[-1]


# ---------------------------------------------------------------------------------------------------------------------
# Directories and configurations that change
# ---------------------------------------------------------------------------------------------------------------------


def test_link_switched_to_another_directory_is_followed(host: Host, clock: FakeClock) -> None:
    for name in ("old", "new"):
        (host.root / name).mkdir()
    (host.root / "new" / "mail.cfg").write_text(f'name="mail"\ndisk=["{host.images}/b,,xvda"]\n')
    (host.root / "link").symlink_to("new")
    host.auto.rmdir()
    host.auto.symlink_to("old")
    host.guest("web", host.images / "a")
    clock.at(5, lambda: (host.root / "link").rename(host.auto))
    clock.at(10, lambda: host.image("b"))
    result = clock.wait(host)
    assert result.status == xwd.EXIT_READY
    assert f"still waiting for {host.images}/b for mail... (does not exist)\n" in result.messages
    assert f"{host.images}/a is no longer needed (after " in result.messages
    assert f"disk {host.images}/b found (after " in result.messages


@pytest.mark.parametrize("becomes", [None, Path.touch], ids=["nothing", "a file"])
def test_removed_directory_is_not_waited_for(
    host: Host, clock: FakeClock, becomes: Callable[[Path], None] | None
) -> None:
    host.guest("web", host.images / "a")
    clock.at(5, lambda: host.auto.rename(host.root / "away"))
    if becomes:
        clock.at(5, lambda: becomes(host.auto))
    result = clock.wait(host)
    assert (result.status, f"{host.images}/a is no longer needed" in result.messages) == (xwd.EXIT_READY, True)


@as_root
def test_directory_that_becomes_unreadable_is_reported(host: Host) -> None:
    """Root can read it anyway, unless it lacks these capabilities."""
    host.guest("web", host.images / "a")
    powers = "-dac_override,-dac_read_search"
    with waiting(host, prefix=["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"]) as waiter:
        host.auto.chmod(0)
        try:
            result = waiter.end()
        finally:
            host.auto.chmod(0o755)
    assert f"{host.auto}: cannot be read: Permission denied.\n" in result.messages
    assert result.status == xwd.EXIT_READY


@as_root
def test_directory_that_responds_again_is_found(host: Host) -> None:
    host.guest("web", host.images / "a")
    with ExitStack() as stack:
        with hung_file_system(host.auto):
            waiter = stack.enter_context(waiting(host))
            waiter.wait_for(f"{host.auto} for the guests in {host.auto}... (no response; is its file")
        waiter.wait_for(f"directory {host.auto} found (after ")
        waiter.wait_for(f"still waiting for {host.images}/a for web... (does not exist)\n")
        host.image("a")
        assert waiter.end().status == xwd.EXIT_READY


def test_awaited_directory_that_is_removed_is_not_reported_as_found(host: Host, clock: FakeClock) -> None:
    host.auto.rmdir()
    host.auto.symlink_to("later")
    clock.at(5, host.auto.unlink)
    messages = clock.wait(host).messages
    assert f"still waiting for {host.auto} for the guests in {host.auto}... (is a link to " in messages
    assert f"{host.auto} is no longer needed (after " in messages
    assert " found (after " not in messages


@pytest.mark.promise("A file system returns short reads")
@as_root
@pytest.mark.parametrize(("max_read", "disks"), [(4096, 200), (10, 2)])
def test_file_system_with_short_reads_hides_nothing(host: Host, max_read: int, disks: int) -> None:
    images = [host.images / str(number) for number in range(disks)]
    with slow_file_system(host.root / "slow", delay=0.0, max_read=max_read) as slow:
        for file in (host.saved("old", *images), host.guest("web", *images)):
            slow.files[file.name] = file.read_bytes()
            assert len(slow.files[file.name]) > 2 * max_read
            file.unlink()
            file.symlink_to(slow.directory / file.name)
        assert [len(domain["disks"]) for domain in host.list()["guests"]] == [disks, disks]


# ---------------------------------------------------------------------------------------------------------------------
# Large numbers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def crowded(host: Host) -> Host:
    """A host with thousands of files in the auto directory, and a saved guest."""
    (host.auto / "g").touch()
    for number in range(1, 4200):
        os.link(host.auto / "g", host.auto / f"g{number}")
    host.saved("a", host.images / "a")
    return host


def test_crowded_directory_is_read_up_to_the_limit_with_few_messages(crowded: Host) -> None:
    result = crowded.run("--timeout", "0")
    assert f"{crowded.auto}: contains more than 4096 files; only 4096 of them are read.\n" in result.messages
    assert result.messages.count(": does not name the domain") == xwd.MAX_LINES - 1
    assert "3097 similar messages were left out; see `xendomains-wait-disk list`." in result.messages
    assert f"{crowded.images}/a for a is missing: does not exist\n" in result.messages


def test_signal_ends_the_wait_while_it_reads_a_crowded_directory(crowded: Host) -> None:
    with crowded.start() as running:
        wait_until(lambda: handles(running.pid, signal.SIGTERM))
        running.signal(signal.SIGTERM)
        assert running.end().status == -signal.SIGTERM


def test_many_disks_missing_for_one_reason_give_one_line(host: Host) -> None:
    host.guest("web", *(host.images / str(number) for number in range(1100)))
    first, last = host.run("--timeout", "0").messages.splitlines()
    assert first.startswith("1100 disks of 1 guest are missing: does not exist (")
    assert last.startswith("These guests will probably not come up: web (")


def test_many_paths_that_differ_only_in_names_give_one_line(host: Host) -> None:
    for number in range(1100):
        host.guest(f"web{number}", host.images / str(number) / "a")
    first, last = host.run("--timeout", "0").messages.splitlines()
    assert first.startswith("1100 disks of 1100 guests are missing: does not exist, nor does the directory ")
    assert " (1099 more like this) (" in first and first.endswith(", 1097 more)")
    assert ", 1080 more (once the disks are ready, start them with: " in last


def test_many_problems_give_a_thousand_lines_and_the_number_of_the_rest(host: Host) -> None:
    for number in range(1100):
        host.configuration(f"web{number}", "bad")
    lines = host.run("--timeout", "0").messages.splitlines()
    assert sum("line 1: syntax error" in line for line in lines) == 1000
    assert lines[1000] == "100 similar messages were left out; see `xendomains-wait-disk list`."


def test_overlong_message_is_cut_in_the_middle(host: Host) -> None:
    (host.auto / "odd").write_text(f'name = "{LONG}"\ndisk = ["/no,,xvda"]\n')
    messages = host.run("--timeout", "0").messages
    assert max(map(len, messages.splitlines())) < 20_000
    assert messages.startswith("/no for xxx") and "xxx is missing: does not exist\n" in messages
    table = host.run("list").output
    assert max(map(len, table.splitlines())) < 2_000


def test_systemd_gets_timeout_extension_despite_long_names(host: Host) -> None:
    """A datagram can have about 200 KiB at most."""
    for name in "abc":
        (host.auto / name).write_text(f'name = "{LONG}{name}"\ndisk = ["/no,,xvda"]\n')
    with Receiver(host.root / "notify") as systemd, waiting(host, NOTIFY_SOCKET=systemd.address):
        assert "EXTEND_TIMEOUT_USEC=3" in systemd.receive()


# ---------------------------------------------------------------------------------------------------------------------
# Disks and names that come and go
# ---------------------------------------------------------------------------------------------------------------------


def test_disk_that_vanished_before_the_timeout_is_named(host: Host, clock: FakeClock) -> None:
    disk = host.images / "a"
    host.guest("web", disk, host.images / "never")
    clock.at(2, partial(fill, disk))
    clock.at(10, disk.unlink)
    messages = clock.wait(host, 20).messages
    assert f"disk {disk} found (after " in messages
    assert f"{disk} for web is still missing after 20s: does not exist\n" in messages


def test_wait_does_not_end_while_two_disks_are_never_present_together(host: Host, clock: FakeClock) -> None:
    names = [host.image("one"), host.images / "other"]
    host.guest("web", *names)

    def swap() -> None:
        names[0].rename(names[1])
        names.reverse()

    for step in range(200):
        clock.at(step * 0.3, swap)
    assert clock.wait(host, 50).status == xwd.EXIT_TIMED_OUT


# ---------------------------------------------------------------------------------------------------------------------
# udev
# ---------------------------------------------------------------------------------------------------------------------

block_devices = pytest.mark.xdist_group("block_devices")


SEND_EVENTS = """
import socket, sys, time
event = sys.stdin.buffer.read()
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15) as netlink:  # NETLINK_KOBJECT_UEVENT
    while True:
        netlink.sendto(event, (0, 2))  # to udev's listeners
        time.sleep(0.02)
"""


class Namespace:
    """A mount and network namespace with an empty /run/udev and its own udev events."""

    def __init__(self) -> None:
        script = "mount -t tmpfs tmpfs /run && mkdir -p /run/udev/data && echo made && exec sleep 1000"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--net", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
        self._udevd: subprocess.Popen[bytes] | None = None
        assert self._holder.stdout
        if self._holder.stdout.readline() != "made\n":
            pytest.skip("namespaces cannot be created here")
        self.prefix = ("nsenter", "-t", str(self._holder.pid), "--mount", "--net")
        self.udev = Path(f"/proc/{self._holder.pid}/root/run/udev")

    def start_udev(self) -> None:
        self._udevd = subprocess.Popen([*self.prefix, UDEVD], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ping = [*self.prefix, "udevadm", "control", "--ping", "--timeout=1"]
        wait_until(lambda: subprocess.run(ping, capture_output=True).returncode == 0)

    def stop_udev(self) -> None:
        if self._udevd:
            self._udevd.terminate()
            self._udevd.communicate()
            self._udevd = None

    def write(self, entry: str, content: bytes) -> None:
        """Write an entry to udev's database, and make udev look as if it were running."""
        (self.udev / "control").touch()
        (self.udev / "data" / "new").write_bytes(content)
        (self.udev / "data" / "new").rename(self.udev / "data" / entry)

    @contextmanager
    def sending(self, event: bytes) -> Iterator[None]:
        """Repeatedly send an event to all listeners of udev events."""
        with subprocess.Popen([*self.prefix, sys.executable, "-c", SEND_EVENTS], stdin=subprocess.PIPE) as process:
            assert process.stdin
            process.stdin.write(event)
            process.stdin.close()
            yield
            assert process.poll() is None  # sending has not failed
            process.kill()

    def end(self) -> None:
        self.stop_udev()
        self._holder.kill()
        self._holder.communicate()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("requires root, to create namespaces")
    it = Namespace()
    yield it
    it.end()


@pytest.fixture
def namespace_with_udev(namespace: Namespace) -> Namespace:
    """A namespace with a running udev."""
    if not UDEVD:
        pytest.skip("udev is not installed")
    namespace.start_udev()
    return namespace


@pytest.fixture
def loop(host: Host) -> tuple[Path, Path]:
    """A loop device that a guest needs, and an image to attach to it."""
    device = loop_device()
    host.guest("web", device)
    sparse(host.image("web"))
    return device, host.images / "web"


ONLY_EVENTS = "[polling]\nfirst = 1h\nlongest = 1h\n"  # only events end a pause


@block_devices
def test_event_is_received_after_udev_restarts_during_the_wait(
    host: Host, namespace_with_udev: Namespace, loop: tuple[Path, Path]
) -> None:
    pytest.importorskip("pyudev", reason="pyudev is not installed")
    host.configure(ONLY_EVENTS)
    with waiting(host, "--timeout", "1h", prefix=namespace_with_udev.prefix) as waiter:
        namespace_with_udev.stop_udev()
        namespace_with_udev.start_udev()
        with attached(*loop):
            assert waiter.end().status == xwd.EXIT_READY


@block_devices
def test_disk_appearing_while_udev_is_down_is_ready_once_udev_processed_it(
    host: Host, namespace_with_udev: Namespace, loop: tuple[Path, Path]
) -> None:
    host.guest("mail", host.images / "mail")
    with waiting(host, prefix=namespace_with_udev.prefix) as waiter:
        namespace_with_udev.stop_udev()
        with attached(*loop):
            host.image("mail")
            waiter.wait_for(f"disk {host.images}/mail found (after ")
            assert f"disk {loop[0]} found" not in waiter.logged
            namespace_with_udev.start_udev()
            run_quietly(*namespace_with_udev.prefix, "udevadm", "trigger", "--settle", loop[0])
            assert waiter.end().status == xwd.EXIT_READY


@block_devices
def test_disk_never_processed_by_udev_is_reported(host: Host, namespace: Namespace, loop: tuple[Path, Path]) -> None:
    (namespace.udev / "control").touch()
    with attached(*loop):
        result = host.run("--timeout", "0", prefix=namespace.prefix)
    why = f"udev has not finished processing it; try: udevadm trigger --settle /sys/class/block/{loop[0].name}"
    assert f"{loop[0]} for web is not ready: {why}\n" in result.messages


@block_devices
@pytest.mark.parametrize(
    "odd",
    [
        b"E:ID_FS_LABEL=b\xfccher\n",
        b"E:=\nE\n\nE:\nno line at all\0\x1b[2J\n",
        b"E:ID_FS_LABEL=\xff\n" * 3_000_000,
        b"E:A=" + b"x" * 50_000_000,
    ],
    ids=["Latin-1", "no properties", "many lines", "a long line"],
)
def test_odd_udev_entry_of_a_device_affects_no_other_disk(
    host: Host, namespace: Namespace, loop: tuple[Path, Path], odd: bytes
) -> None:
    device, _ = loop
    number = os.stat(device).st_rdev
    entry = f"b{os.major(number)}:{os.minor(number)}"
    host.guest("mail", host.images / "mail")
    namespace.write(entry, b"E:SYSTEMD_READY=0\n" + odd)
    with attached(*loop), waiting(host, prefix=namespace.prefix) as waiter:
        waiter.wait_for(f"still waiting for {device} for web... (udev has set SYSTEMD_READY=0 for it)")
        host.image("mail")
        waiter.wait_for(f"disk {host.images}/mail found (after ")
        assert peak_memory(waiter.pid) < 64
        namespace.write(entry, odd)
        assert waiter.end().status == xwd.EXIT_READY


@block_devices
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.mkdir, "cannot be checked: Is a directory"),
        (bind_socket, "cannot be checked: No such device or address"),
        (lambda path: path.symlink_to(path.name), "cannot be checked: Too many levels of symbolic links"),
    ],
    ids=["directory", "socket", "link to itself"],
)
def test_invalid_udev_entry_becomes_the_reason_of_its_disk(
    host: Host, namespace: Namespace, loop: tuple[Path, Path], make: Callable[[Path], None], message: str
) -> None:
    number = os.stat(loop[0]).st_rdev
    (namespace.udev / "control").touch()
    make(namespace.udev / "data" / f"b{os.major(number)}:{os.minor(number)}")
    host.guest("mail", host.images / "mail")
    with attached(*loop), waiting(host, prefix=namespace.prefix) as waiter:
        waiter.wait_for(f"still waiting for {loop[0]} for web... ({message})")
        host.image("mail")
        waiter.wait_for(f"disk {host.images}/mail found (after ")


EVENTS = {
    "no header": b"what is this",
    "no properties": b"change@/devices/virtual/block/loop0\0",
    "unknown action": b"explode@/devices/virtual/block/loop0\0ACTION=explode\0DEVPATH=/x\0SUBSYSTEM=block\0SEQNUM=0\0",
    "not UTF-8": b"change@/\xff\0ACTION=change\0DEVPATH=/\xff\0SUBSYSTEM=block\0SEQNUM=\xfc\0",
    "long": b"x" * 100_000,
}


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS.keys())
def test_malformed_event_counts_as_an_event(host: Host, namespace: Namespace, event: bytes) -> None:
    """libudev would drop it, but it still shows that something happened."""
    pytest.importorskip("pyudev", reason="pyudev is not installed")
    (namespace.udev / "control").touch()
    host.configure(ONLY_EVENTS)
    host.guest("web", host.images / "a", host.images / "b")
    with waiting(host, "--timeout", "1h", prefix=namespace.prefix) as waiter, namespace.sending(event):
        host.image("a")
        waiter.wait_for(f"disk {host.images}/a found (after ")
        host.image("b")
        assert waiter.end().status == xwd.EXIT_READY


@block_devices
@as_root
def test_event_overrun_ends_a_pause_and_so_does_the_next_event() -> None:
    """Uses the kernel's own events, which need no udev, and a buffer for only a few of them."""
    uevent = Path("/sys/block", loop_device().name, "uevent")
    HostPaths(run="/nowhere").use()
    events = xwd.block_events()
    clock = xwd.Clock()
    deadline = time.monotonic() + CAP
    if events is None:
        pytest.skip("pyudev is not installed, or netlink is not available here")
    events.set_receive_buffer_size(1)
    for _ in range(100):
        uevent.write_text("change")
    assert sum(dropped_events()) > 0
    for _ in range(2):
        xwd.sleep_until(deadline, clock, events)
        assert time.monotonic() < deadline
        uevent.write_text("change")


def dropped_events() -> Sequence[int]:
    """Return the number of dropped messages of each netlink socket."""
    lines = Path("/proc/self/net/netlink").read_text().splitlines()
    column = lines[0].split().index("Drops")
    return [int(line.split()[column]) for line in lines[1:]]


@pytest.fixture
def two_devices(tmp_path: Path) -> HostPaths:
    """A host with two devices in udev's database."""
    data = tmp_path / "udev" / "data"
    data.mkdir(parents=True)
    for number in (16, 32):
        (data / f"b8:{number}").write_text("E:ID_FS_TYPE=LVM2_member\nE:ID_FS_UUID=uuid\n")
        link = tmp_path / "sys" / "dev" / "block" / f"8:{number}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"8:{number}")
    paths = HostPaths(sys=str(tmp_path / "sys"), run=str(tmp_path))
    paths.use()
    return paths


def assert_they_are_known() -> None:
    devices = xwd.StorageFacts().devices_with("uuid", "ID_FS_UUID")
    assert [device.name for device in devices] == ["8:16", "8:32"]


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        sparse,
        lambda path: path.write_bytes(b"E:ID_FS_LABEL=\xff\n" * 3_000_000),
        Path.mkdir,
        bind_socket,
        lambda path: path.symlink_to(path.name),
    ],
    ids=["FIFO", "1 GiB", "not UTF-8", "directory", "socket", "link to itself"],
)
def test_odd_udev_entry_does_not_hide_devices(two_devices: HostPaths, make: Callable[[Path], object]) -> None:
    make(Path(two_devices.run, "udev", "data", "b8:0"))
    assert_they_are_known()


@pytest.mark.parametrize(
    "name",
    [b"b\xff", b"b8:0 ", b"b8:0\n", b"b8", b"b8:0:0", b"b" + b"9" * 200, b"b8:-1", b"+block:sda", b"b\xd9\xa1:1"],
)
def test_odd_name_in_udev_database_does_not_hide_devices(two_devices: HostPaths, name: bytes) -> None:
    (Path(two_devices.run, "udev", "data") / os.fsdecode(name)).mkdir()
    assert_they_are_known()
