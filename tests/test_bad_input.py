# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Odd files in xendomains' directories: each is reported with its name and a reason, and affects no other."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from conftest import (
    CORPUS,
    NOBODY,
    FakeClock,
    Host,
    as_root,
    bind_socket,
    findings_text,
    sparse,
    wait_until,
)

import xendomains_wait_disk as xwd


def unknown_saved(path: Path) -> None:
    path.write_bytes((CORPUS / "saved-web.head").read_bytes()[:36] + b"\xff" * 500)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 100)


def truncated(path: Path) -> None:
    path.write_bytes((CORPUS / "saved-web.head").read_bytes()[:500])


def utf16(path: Path) -> None:
    path.write_bytes('name="web"\ndisk=["/x,raw,xvda"]\n'.encode("utf-16"))


CONFIGURATIONS: list[tuple[str, Callable[[Path], None], str]] = [
    ("binary", binary, "line 1: lexical error"),
    ("huge", sparse, "is too large for a configuration: more than 131072 bytes"),
    ("empty", Path.touch, "does not name the domain"),
    ("directory", Path.mkdir, "is a directory, not a regular file"),
    ("fifo", os.mkfifo, "is a FIFO, not a regular file"),
    ("socket", bind_socket, "is a socket, not a regular file"),
    ("device", link_to("/dev/zero"), "is a character device, not a regular file"),
    ("loop", link_to("bad"), "cannot be read: Too many levels of symbolic links"),
    ("utf16", utf16, "line 1: lexical error"),
    ("saved", truncated, "line 1: lexical error"),
    ("proc", link_to("/proc/version"), "line 1: lexical error"),
]

SAVED: list[tuple[str, Callable[[Path], None], str]] = [
    ("unknown", unknown_saved, "has mandatory flags that xl does not know: 0xffffffff"),
    ("loop", link_to("bad"), "cannot be read: Too many levels of symbolic links"),
    ("truncated", truncated, "is truncated: it has only 448 of 1041 bytes of configuration"),
]

# xendomains skips anything but regular files, and upstream's also files without the header of a saved domain.
NOT_SAVED = [binary, sparse, Path.touch, utf16, Path.mkdir, os.mkfifo, bind_socket, link_to("/dev/zero")]

# Reasons of ours that xl does not have.
OURS = ("is too large for a configuration", "cannot be read: Too many levels of symbolic links")

SILENT = xwd.Status(xwd.State.NOT_READY, str(xwd.NoResponse()))
FACTS = xwd.StorageFacts()


def snapshot(host: Host) -> xwd.Snapshot:
    """Return the result of one check of this host."""
    return host.watcher().look(math.inf)


def read(file: str | Path, kind: str = "auto", before: tuple[int, ...] = ()) -> xwd.Guest | None:
    """Return the guest read from a file whose last known signature is `before`."""
    guest = xwd.unread_guest(str(file), kind)._replace(signature=before)
    return xwd.read_guest_once(guest, xwd.Settings(), FACTS)


def names(found: xwd.Snapshot) -> list[str]:
    return [guest.domain.name for guest in found.guests.values()]


def missing(found: xwd.Snapshot) -> dict[str, xwd.Status]:
    return {one.path: one.status for one in found.missing()}


def guest_with(host: Host, directory: Path, make: Callable[[Path], None]) -> xwd.Guest:
    """Return the guest found for a bad file, next to a good guest that must be found anyway."""
    host.guest("good", host.image("good"))
    make(directory / "bad")
    os.utime(directory / "bad", (0, 0), follow_symlinks=False)  # old enough not to be half-written
    found = snapshot(host)
    assert names(found).count("good") == 1
    assert len(found.guests) == 2
    assert found.missing() == []
    return found.guests[f"{directory}/bad"]


def problem_of(guest: xwd.Guest) -> str:
    file = guest.domain.source
    return findings_text(xwd.check_files(xwd.Snapshot(guests={file: guest})))


@pytest.mark.promise("A file is not a configuration: a directory, device, FIFO, a gigabyte, nested lists, deep JSON")
@pytest.mark.parametrize(("make", "error"), [row[1:] for row in CONFIGURATIONS], ids=[row[0] for row in CONFIGURATIONS])
def test_bad_configuration_gives_reason(host: Host, make: Callable[[Path], None], error: str) -> None:
    check_problem(guest_with(host, host.auto, make), f"{host.auto}/bad", error)


@pytest.mark.promise("A file is not a configuration: a directory, device, FIFO, a gigabyte, nested lists, deep JSON")
@pytest.mark.parametrize(("make", "error"), [row[1:] for row in SAVED], ids=[row[0] for row in SAVED])
def test_bad_saved_guest_gives_reason(host: Host, make: Callable[[Path], None], error: str) -> None:
    check_problem(guest_with(host, host.save, make), f"{host.save}/bad", error)


def check_problem(guest: xwd.Guest, file: str, error: str) -> None:
    """Check that the reason and its consequence are reported."""
    assert error in guest.status.reason
    if error.startswith(OURS):
        assert guest.status.state is xwd.State.UNREADABLE
        assert problem_of(guest) == f"{file}: {guest.status.reason}; its disks are not waited for."
    else:
        assert guest.status.state is xwd.State.REFUSED
        assert problem_of(guest) == f"{file}: {guest.status.reason}; xl will reject it."


@pytest.mark.parametrize("make", NOT_SAVED)
def test_file_that_is_not_a_saved_guest_is_skipped_as_by_xendomains(host: Host, make: Callable[[Path], None]) -> None:
    make(host.save / "other")
    assert host.run().messages == ""
    assert host.list()["guests"] == []


@as_root
@pytest.mark.parametrize(("directory", "kind"), [("auto", "auto"), ("save", "saved")])
def test_unreadable_file_is_reported(host: Host, directory: str, kind: str) -> None:
    """This runs as another user, because root can read everything."""
    bad = host.root / directory / "bad"
    bad.write_text("secret")
    bad.chmod(0)
    for path in (host.root, *host.root.parents):
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(0o755)
    child = os.fork()
    if child == 0:
        os.setuid(NOBODY)
        status = xwd.Status(xwd.State.UNREADABLE, "cannot be read: Permission denied (run it as root)")
        guest = read(bad, kind)
        os._exit(0 if guest and guest.status == status else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.promise("A problem with one guest does not delay the others")
@pytest.mark.parametrize("name", ["parse_xl_config", "parse_disk", "required_by"])
def test_exception_in_one_configuration_becomes_its_reason(
    host: Host, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bad = host.guest("bad", "/bad")
    host.guest("web", host.images / "missing")
    real = getattr(xwd, name)

    def fail(it: Any) -> Any:
        if "bad" in str(it):
            raise RuntimeError("odd")
        return real(it)

    monkeypatch.setattr(xwd, name, fail)
    found = snapshot(host)
    assert found.guests[str(bad)].status == xwd.Status(xwd.State.UNREADABLE, "RuntimeError: odd")
    assert list(missing(found)) == [f"{host.images}/missing"]


@pytest.mark.promise("A problem with one guest does not delay the others")
def test_exception_in_one_disk_check_becomes_its_reason(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = host.image("bad"), host.image("good")
    host.guest("web", bad, good)
    check_disk = xwd.check_disk

    def fail(required: xwd.Required, facts: xwd.StorageFacts) -> xwd.Status:
        if str(bad) in required.path:
            raise RuntimeError("odd")
        return check_disk(required, facts)

    monkeypatch.setattr(xwd, "check_disk", fail)
    assert missing(snapshot(host)) == {str(bad): xwd.Status(xwd.State.NOT_READY, "RuntimeError: odd")}


def failing(number: int) -> Callable[..., Any]:
    """Return a system call that fails with this error."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.promise("A file system returns an error that may be temporary (EIO, ESTALE)")
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE])
@pytest.mark.parametrize("call", ["os.scandir", "os.stat", "open"])
def test_transient_error_is_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    host.guest("web", host.image("a"))
    watcher = host.watcher()
    with monkeypatch.context() as patch:
        patch.setattr(f"xendomains_wait_disk.{call}", failing(number), raising=False)
        found = watcher.look(math.inf)
    assert {status.reason for status in missing(found).values()} == {f"cannot be read: {os.strerror(number)}"}
    assert watcher.look(math.inf).is_complete()


def test_file_removed_before_it_is_read_is_dropped(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.guest("web", host.image("a"))
    file = host.guest("gone", host.images / "missing")
    list_directory = xwd.list_directory

    def list_and_remove(path: str, *others: Any) -> xwd.Directory | None:
        directory = list_directory(path, *others)
        if directory and str(file) in directory.files:
            file.unlink()
        return directory

    monkeypatch.setattr(xwd, "list_directory", list_and_remove)
    assert names(snapshot(host)) == ["web"]


def test_disk_listed_twice_by_a_guest_is_missing_once(host: Host) -> None:
    host.guest("web", host.images / "a", host.images / "a")
    assert [one.guest for one in snapshot(host).missing()] == ["web"]


def test_only_changed_configurations_are_read_again(host: Host, clock: FakeClock) -> None:
    web, mail = str(host.guest("web")), str(host.guest("mail"))
    watcher = host.watcher(clock)
    found = watcher.look(math.inf)
    host.guest("mail", host.image("a"))
    clock.pause(xwd.READ_INTERVAL)
    again = watcher.look(math.inf)
    assert again.guests[web] is found.guests[web]
    assert again.guests[mail] is not found.guests[mail]


def test_configurations_are_read_once_per_interval(host: Host, clock: FakeClock) -> None:
    host.guest("web", host.images / "missing")
    watcher = host.watcher(clock)
    found = watcher.look(math.inf)
    host.guest("mail")
    clock.pause(xwd.READ_INTERVAL / 2)
    assert watcher.look(math.inf) is found
    clock.pause(xwd.READ_INTERVAL / 2)
    assert names(watcher.look(math.inf)) == ["mail", "web"]


def test_configurations_are_read_at_each_look_while_one_is_missing(host: Host, clock: FakeClock) -> None:
    (host.auto / "web.cfg").symlink_to(host.root / "web.cfg")
    watcher = host.watcher(clock)
    watcher.look(math.inf)
    (host.root / "web.cfg").write_text('name = "web"\n')
    assert names(watcher.look(math.inf)) == ["web"]


def test_ready_disk_that_vanished_is_noticed_at_next_look(host: Host) -> None:
    image = host.image("a")
    host.guest("web", image)
    watcher = host.watcher()
    assert watcher.look(math.inf).is_complete()
    image.unlink()
    assert list(missing(watcher.look(math.inf))) == [str(image)]


def test_some_of_many_ready_disks_are_rechecked_at_each_look(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each disk has its turn; with recheck_ready, all are checked."""
    images = [str(host.image(name)) for name in "abcde"]
    host.guest("web", *images)
    watcher = host.watcher()
    watcher.look(math.inf)
    checked: list[str] = []

    def check_disk(required: xwd.Required, _: xwd.StorageFacts) -> xwd.Status:
        checked.append(required.path)
        return xwd.READY

    monkeypatch.setattr(xwd, "MAX_RECHECKED", 2)
    monkeypatch.setattr(xwd, "check_disk", check_disk)
    for _ in range(3):
        watcher.look(math.inf)
    assert sorted(checked) == images
    watcher.look(math.inf, recheck_ready=True)
    assert len(checked) == 2 * len(images)


def test_change_that_keeps_size_and_mtime_is_noticed(host: Host) -> None:
    file, other = host.guest("old"), host.root / "other"
    guest = read(file)
    assert guest
    before = file.stat()

    def has_ticked() -> bool:
        """The kernel's timestamps for files have a coarser resolution."""
        other.touch()
        return other.stat().st_ctime_ns > before.st_ctime_ns

    wait_until(has_ticked)
    file.write_text(file.read_text().replace("old", "new"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    again = read(file, before=guest.signature)
    assert again and again.domain.name == "new"


@pytest.mark.parametrize("number", [errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG])
def test_unreadable_directory_is_reported_and_not_waited_for(
    host: Host, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("xendomains_wait_disk.os.scandir", failing(number))
    found = snapshot(host)
    assert found.missing() == []
    reason = f"cannot be read: {os.strerror(number)}"
    assert list(xwd.check_files(found)) == [
        xwd.Finding(reason, is_error=True, file=str(directory)) for directory in (host.save, host.auto)
    ]


def test_known_guests_are_still_waited_for_while_their_directory_hangs(
    host: Host, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.guest("web", host.images / "missing")
    watcher = host.watcher(clock)
    watcher.look(math.inf)
    hang = clock.hanging_call()
    monkeypatch.setattr(
        xwd,
        "list_directory",
        lambda _, before, *__: hang() if before.kind == "auto" else before._replace(status=xwd.READY),
    )
    clock.pause(xwd.READ_INTERVAL)
    assert missing(watcher.look(math.inf)).keys() == {str(host.auto), f"{host.images}/missing"}
    host.image("missing")
    assert missing(watcher.look(math.inf)) == {str(host.auto): SILENT}


@pytest.mark.promise("A file system is slow")
def test_disk_that_always_responds_late_becomes_ready(
    host: Host, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = host.image("a")
    host.guest("web", image)
    monkeypatch.setattr(xwd, "check_disk", lambda *_: clock.slow_call(5, xwd.READY)())
    watcher = host.watcher(clock)
    assert missing(watcher.look(math.inf)) == {str(image): SILENT}
    clock.pause(10)
    assert watcher.look(math.inf).is_complete()


def test_hanging_configuration_leaves_time_for_other_disks(
    host: Host, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if little time is left, as at the timeout."""
    good, missing_disk = host.image("good"), host.images / "missing"
    web = str(host.guest("web"))
    host.guest("mail", good, missing_disk)
    hang, read_guest = clock.hanging_call(), xwd.read_guest
    monkeypatch.setattr(
        xwd, "read_guest", lambda guest, **more: hang() if guest.domain.source == web else read_guest(guest, **more)
    )
    found = host.watcher(clock).look(clock.now() + 0.9)
    assert found.disks[str(good)] == xwd.READY
    assert found.disks[str(missing_disk)].state is xwd.State.MISSING


def test_disk_without_a_turn_keeps_its_last_state(host: Host) -> None:
    image, gone = host.image("a"), host.images / "missing"
    host.guest("web", image, gone)
    watcher = host.watcher()
    found = watcher.look(math.inf)
    assert watcher.look(0, recheck_ready=True) is found


def test_disk_never_checked_is_unknown(host: Host) -> None:
    host.guest("web", host.image("a"))
    watcher = host.watcher()
    assert missing(watcher.look(0)) == dict.fromkeys([str(host.save), str(host.auto)], xwd.UNKNOWN)


@pytest.mark.promise("A file system hangs after its disks were ready")
def test_ready_disk_that_hangs_in_last_look_is_not_ready(
    host: Host, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = host.image("a")
    host.guest("web", image)
    watcher = host.watcher(clock)
    assert watcher.look(math.inf).is_complete()
    monkeypatch.setattr(xwd, "check_disk", clock.hanging_call())
    assert missing(watcher.check_disks(clock.now() + xwd.MAX_LAST_LOOK, recheck_ready=True)) == {str(image): SILENT}


def test_missing_disk_that_hangs_in_last_look_stays_missing(
    host: Host, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.guest("web", host.images / "a")
    watcher = host.watcher(clock)
    found = watcher.look(math.inf)
    monkeypatch.setattr(xwd, "check_disk", clock.hanging_call())
    assert watcher.check_disks(clock.now() + xwd.MAX_LAST_LOOK, recheck_ready=True).missing() == found.missing()


def test_missing_path_in_dev_is_detected_without_a_thread(host: Host, clock: FakeClock) -> None:
    host.guest("web", "/dev/no-such-group/volume", "/dev/no-such-disk")
    watcher = host.watcher(clock)
    watcher.look(math.inf)
    before = clock.threads_started
    watcher.look(math.inf)
    assert clock.threads_started == before


@pytest.mark.parametrize("path", ["/dev/null", "/dev/fd/x", "/dev/fd", "/dev/shm/x", "/dev/../x", "/dev/x\0", "/x"])
def test_path_that_exists_or_leads_out_of_dev_is_not_absent(path: str) -> None:
    """/dev/fd is a link, and /dev/shm is another file system."""
    assert xwd.absent_devices([path]) == set()


@pytest.mark.parametrize("path", ["/dev/no-such-disk", "/dev/no-such-group/volume", "/dev/null/volume"])
def test_missing_path_in_dev_is_absent(path: str) -> None:
    assert xwd.absent_devices([path]) == ({path} if "null" not in path else set())


def test_half_written_configuration_is_read_again_before_it_is_refused(host: Host) -> None:
    file = host.auto / "web.cfg"
    file.write_text('name = "web"\ndisk = [')
    writer = Timer(0.2, lambda: host.guest("web", host.image("a")))
    writer.start()
    assert names(snapshot(host)) == ["web"]
    writer.join()


@pytest.mark.promise("A directory has thousands of files, or new ones all the time")
def test_crowded_directory_is_read_in_order_up_to_the_limit(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xwd, "MAX_FILES", 3)
    for name in ("d", "b", "e", "a", "c"):
        host.guest(name)
    (host.auto / ".hidden").touch()
    directory = xwd.list_directory(str(host.auto), xwd.Directory("auto"), "XENDOMAINS_AUTO", FACTS)
    assert directory
    assert len(directory.files) == 3
    assert directory.files == sorted(directory.files)
    assert directory.warning == "contains more than 3 files; only 3 of them are read"
    (finding,) = xwd.check_files(xwd.Snapshot({"/etc/xen/auto": directory}))
    assert finding == xwd.Finding(directory.warning, file="/etc/xen/auto")
    monkeypatch.setattr(xwd, "MAX_FILES", 5)
    assert xwd.list_directory(str(host.auto), xwd.Directory("auto"), "XENDOMAINS_AUTO", FACTS) == xwd.Directory(
        "auto", [f"{host.auto}/{name}.cfg" for name in "abcde"]
    )


def test_configuration_is_read_up_to_the_size_limit(host: Host) -> None:
    file = host.auto / "web.cfg"
    file.write_text('name = "web"\n'.ljust(xwd.MAX_CONFIGURATION - 1) + "\n")
    assert names(snapshot(host)) == ["web"]
    with file.open("a") as end:
        end.write("\n")
    (guest,) = snapshot(host).guests.values()
    assert guest.status == xwd.Status(xwd.State.UNREADABLE, "is too large for a configuration: more than 131072 bytes")


@pytest.mark.promise("Files that are writable by others are used, with a warning")
def test_configuration_writable_by_others_is_used_with_a_warning(host: Host) -> None:
    file = host.guest("web", host.images / "missing")
    file.chmod(0o666)
    messages = host.run("--timeout", "0").messages
    assert f"{file}: it is writable by group or others (fix: chmod go-w {file}); it is used anyway.\n" in messages
    assert f"{host.images}/missing for web is missing" in messages
