# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Whatever lies in xendomains' directories: it is reported with its name and a reason, and all others are handled."""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import (
    CORPUS,
    NOBODY,
    Clock,
    Host,
    as_root,
    deaf_file_system,
    sparse,
    texts,
    wait_until,
    waiting,
)

import xendomains_wait_disk as xwd


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'name = "huge"\n' * (50_000_000 // 14))


def huge_saved(path: Path) -> None:
    path.write_bytes((CORPUS / "saved-web.head").read_bytes()[:36] + b"\xff" * 50_000_000)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 100)


def truncated(path: Path) -> None:
    path.write_bytes((CORPUS / "saved-web.head").read_bytes()[:500])


def utf16(path: Path) -> None:
    path.write_bytes('name="web"\ndisk=["/x,raw,xvda"]\n'.encode("utf-16"))


CONFIGURATIONS: list[tuple[str, Callable[[Path], None], str]] = [
    ("binary", binary, "line 1: lexical error"),
    ("huge", huge, "is too large for a configuration: more than 131072 bytes"),
    ("empty", Path.touch, "names no domain"),
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
    ("huge", huge_saved, "needs what xl does not know: mandatory flags 0xffffffff"),
    ("loop", link_to("bad"), "cannot be read: Too many levels of symbolic links"),
    ("truncated", truncated, "ends within its configuration: 448 of 1041 bytes"),
]

# xendomains passes over what is no file, and upstream's what does not begin as a saved domain does.
NOT_SAVED = [binary, huge, Path.touch, utf16, Path.mkdir, os.mkfifo, bind_socket, link_to("/dev/zero")]

# What xl would not say.
OURS = ("is too large for a configuration", "cannot be read: Too many levels of symbolic links")

NOTHING = xwd.Snapshot()
SILENT = xwd.Status(xwd.State.NOT_READY, xwd.NOT_RESPONDING)
NOT_CHECKED = xwd.Status(xwd.State.NOT_READY, xwd.NOT_CHECKED)


def snapshot(
    watch: xwd.Watch, known: xwd.Snapshot = NOTHING, anew: bool = False, deadline: float = math.inf
) -> xwd.Snapshot:
    return xwd.take_snapshot(watch, known, deadline, recheck_ready=anew)


def names(found: xwd.Snapshot) -> list[str]:
    return [guest.domain.name for guest in found.guests.values()]


def missing(found: xwd.Snapshot) -> dict[str, xwd.Status]:
    return {one.path: one.status for one in found.missing()}


def guest_with(host: Host, directory: Path, make: Callable[[Path], None]) -> xwd.Guest:
    """What is found for the bad file, next to a good guest that is found all the same."""
    host.guest("good", host.image("good"))
    make(directory / "bad")
    found = snapshot(host.watch())
    assert names(found).count("good") == 1
    assert len(found.guests) == 2
    assert found.missing() == []
    return found.guests[f"{directory}/bad"]


def problem_of(guest: xwd.Guest) -> str:
    file = guest.domain.source
    return texts(xwd.problems_of(xwd.Snapshot(guests={file: guest}))[file])


@pytest.mark.parametrize(("make", "error"), [row[1:] for row in CONFIGURATIONS], ids=[row[0] for row in CONFIGURATIONS])
def test_in_the_auto_directory(host: Host, make: Callable[[Path], None], error: str) -> None:
    check_problem(guest_with(host, host.auto, make), f"{host.auto}/bad", error)


@pytest.mark.parametrize(("make", "error"), [row[1:] for row in SAVED], ids=[row[0] for row in SAVED])
def test_in_the_directory_of_saved_domains(host: Host, make: Callable[[Path], None], error: str) -> None:
    check_problem(guest_with(host, host.save, make), f"{host.save}/bad", error)


def check_problem(guest: xwd.Guest, file: str, error: str) -> None:
    """Fails if it is not said what is wrong, and what comes of that."""
    assert error in guest.status.reason
    if error.startswith(OURS):
        assert guest.status.state is xwd.State.UNREADABLE
        assert problem_of(guest) == f"{file}: {guest.status.reason}. It is ignored; not waiting for its disks."
    else:
        assert guest.status.state is xwd.State.REFUSED
        assert problem_of(guest) == f"{file}: {guest.status.reason}. xl will reject it; not waiting for its disks."


@pytest.mark.parametrize("make", NOT_SAVED)
def test_what_is_not_a_saved_domain_is_passed_over_as_xendomains_does(host: Host, make: Callable[[Path], None]) -> None:
    make(host.save / "other")
    assert host.run().messages == ""
    assert host.list()["domains"] == []


@as_root
@pytest.mark.parametrize(("directory", "kind"), [("auto", "auto"), ("save", "saved")])
def test_a_file_that_may_not_be_read_is_told_of(host: Host, directory: str, kind: str) -> None:
    """Root may read everything, so this runs as somebody else."""
    bad = host.root / directory / "bad"
    bad.write_text("secret")
    bad.chmod(0)
    for path in (host.root, *host.root.parents):
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(0o755)
    child = os.fork()
    if child == 0:
        os.setuid(NOBODY)
        status = xwd.Status(xwd.State.UNREADABLE, "cannot be read: Permission denied")
        os._exit(0 if xwd.read_text(xwd.unread_guest(str(bad), kind)) == status else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_everything_at_once_holds_nothing_up(host: Host) -> None:
    host.guest("good", host.image("good"))
    for name, make, _ in CONFIGURATIONS:
        if name != "loop":
            make(host.auto / name)
    for name, make, _ in SAVED:
        if name != "loop":
            make(host.save / name)
    result = host.run()
    assert result.status == xwd.EXIT_READY
    for name, _, _ in CONFIGURATIONS:
        if name != "loop":
            assert f"{host.auto}/{name}: " in result.messages


@pytest.mark.parametrize("name", ["parse_xl_config", "parse_disk", "required_by"])
def test_whatever_goes_wrong_with_one_configuration_is_its_reason(
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
    found = snapshot(host.watch())
    assert found.guests[str(bad)].status == xwd.Status(xwd.State.UNREADABLE, "RuntimeError: odd")
    assert list(missing(found)) == [f"{host.images}/missing"]


def test_whatever_goes_wrong_with_one_disk_is_its_reason(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = host.image("bad"), host.image("good")
    host.guest("web", bad, good)
    check_disk = xwd.check_disk

    def fail(required: xwd.Required, evidence: xwd.Evidence) -> xwd.Status:
        if str(bad) in required.paths:
            raise RuntimeError("odd")
        return check_disk(required, evidence)

    monkeypatch.setattr(xwd, "check_disk", fail)
    assert missing(snapshot(host.watch())) == {str(bad): xwd.Status(xwd.State.NOT_READY, "RuntimeError: odd")}


def test_a_name_that_is_no_utf8_is_told_of(host: Host) -> None:
    Path(os.fsdecode(os.fsencode(host.auto) + b"/b\xfcro.cfg")).write_text("what is this\n")
    assert rf"{host.auto}/b\xfcro.cfg: line 1: " in host.run().messages


def test_one_guest_without_a_good_configuration_does_not_hold_up_one_that_waits(host: Host) -> None:
    (host.auto / "bad").mkdir()
    host.guest("web", host.images / "a")
    result = host.run("--timeout", "0")
    assert result.status == xwd.EXIT_TIMED_OUT
    assert result.messages.endswith("will probably not come up: bad, web.\n")


def failing(number: int) -> Callable[..., Any]:
    """A call of the operating system that fails."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE])
@pytest.mark.parametrize("call", ["os.scandir", "os.stat", "open"])
def test_an_error_that_may_pass_is_waited_for(
    host: Host, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    host.guest("web", host.image("a"))
    watch = host.watch()
    with monkeypatch.context() as patch:
        patch.setattr(f"xendomains_wait_disk.{call}", failing(number), raising=False)
        found = snapshot(watch)
    assert {status.reason for status in missing(found).values()} == {f"cannot be read: {os.strerror(number)}"}
    assert snapshot(watch, found).missing() == []


def test_a_file_that_is_removed_before_it_is_read_is_dropped(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.guest("web", host.image("a"))
    file = host.guest("gone", host.images / "missing")
    list_directory = xwd.list_directory

    def list_and_remove(path: str, kind: str) -> xwd.Directory | None:
        directory = list_directory(path, kind)
        if directory and str(file) in directory.files:
            file.unlink()
        return directory

    monkeypatch.setattr(xwd, "list_directory", list_and_remove)
    assert names(snapshot(host.watch())) == ["web"]


def test_a_disk_that_a_guest_has_twice_is_missing_once(host: Host) -> None:
    host.guest("web", host.images / "a", host.images / "a")
    assert [one.domains for one in snapshot(host.watch()).missing()] == [("web",)]


def test_a_link_that_dangles_is_waited_for_and_says_where_to(host: Host) -> None:
    (host.auto / "web.cfg").symlink_to("/nowhere/web.cfg")
    (guest,) = snapshot(host.watch()).guests.values()
    assert (guest.domain.name, guest.domain.kind, guest.status.is_awaited()) == ("web.cfg", "auto", True)
    assert guest.status.reason == "is a link to /nowhere/web.cfg, which does not exist"


@pytest.mark.parametrize("directory", ["auto", "save"])
def test_a_directory_that_is_a_link_to_nothing_is_waited_for_and_says_where_to(host: Host, directory: str) -> None:
    (host.root / directory).rmdir()
    (host.root / directory).symlink_to("/nowhere")
    assert missing(snapshot(host.watch())) == {
        f"{host.root}/{directory}": xwd.Status(xwd.State.MISSING, "is a link to /nowhere, which does not exist")
    }


def test_a_file_that_has_not_changed_is_not_read_again(host: Host) -> None:
    file = str(host.guest("web"))
    text = xwd.read_text(xwd.unread_guest(file, "auto"))
    assert isinstance(text, xwd.Text)
    guest = xwd.parse_guest(file, "auto", text, xwd.Settings())
    assert xwd.read_text(guest) is guest


def test_the_next_snapshot_reads_only_what_has_changed(host: Host) -> None:
    web, mail = str(host.guest("web")), str(host.guest("mail"))
    watch = host.watch()
    found = snapshot(watch)
    host.guest("mail", host.image("a"))
    again = snapshot(watch, found)
    assert again.guests[web] is found.guests[web]
    assert again.guests[mail] is not found.guests[mail]


def test_what_was_ready_is_looked_at_again_only_if_asked(host: Host) -> None:
    image = host.image("a")
    host.guest("web", image)
    watch = host.watch()
    found = snapshot(watch)
    image.unlink()
    assert snapshot(watch, found).missing() == []
    assert list(missing(snapshot(watch, found, anew=True))) == [str(image)]


def test_a_change_that_leaves_size_and_time_as_they_were_is_noticed(host: Host) -> None:
    file, other = host.guest("old"), host.root / "other"
    text = xwd.read_text(xwd.unread_guest(str(file), "auto"))
    assert isinstance(text, xwd.Text)
    before = file.stat()

    def has_ticked() -> bool:
        """The kernel's clock for files ticks more slowly than ours."""
        other.touch()
        return other.stat().st_ctime_ns > before.st_ctime_ns

    wait_until(has_ticked)
    file.write_text(file.read_text().replace("old", "new"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    again = xwd.read_text(xwd.unread_guest(str(file), "auto")._replace(signature=text.signature))
    assert isinstance(again, xwd.Text) and "new" in again.text


@pytest.mark.parametrize("number", [errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG])
def test_a_directory_that_will_not_be_read_is_told_of_and_not_waited_for(
    host: Host, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("xendomains_wait_disk.os.scandir", failing(number))
    found = snapshot(host.watch())
    assert found.missing() == []
    reason = f"cannot be read: {os.strerror(number)}"
    assert xwd.problems_of(found) == {
        str(directory): [f"{directory}: {reason}; not waiting for the guests in it."]
        for directory in (host.save, host.auto)
    }


def test_a_directory_whose_listing_hangs_is_waited_for_until_it_comes(
    host: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.guest("web", host.images / "missing")
    listing = xwd.list_directory(str(host.auto), "auto")
    hang = clock.hang(listing)
    monkeypatch.setattr(xwd, "list_directory", lambda path, kind: hang() if kind == "auto" else xwd.Directory(kind))
    watch = host.watch()
    found = snapshot(watch)
    assert missing(found) == {str(host.auto): SILENT}
    hang.release()
    clock.pause(xwd.Pauses(), 0)
    assert list(missing(snapshot(watch, found))) == [f"{host.images}/missing"]


def test_guests_that_are_known_are_still_waited_for_while_their_directory_hangs(
    host: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.guest("web", host.images / "missing")
    watch = host.watch()
    found = snapshot(watch)
    hang = clock.hang()
    monkeypatch.setattr(xwd, "list_directory", lambda path, kind: hang() if kind == "auto" else xwd.Directory(kind))
    found = snapshot(watch, found)
    assert missing(found).keys() == {str(host.auto), f"{host.images}/missing"}
    host.image("missing")
    assert missing(snapshot(watch, found)) == {str(host.auto): SILENT}


def test_a_disk_that_always_answers_late_becomes_ready(
    host: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = host.image("a")
    host.guest("web", image)
    monkeypatch.setattr(xwd, "check_disk", lambda *_: clock.takes(5, xwd.READY)())
    watch = host.watch()
    found = snapshot(watch)
    assert missing(found) == {str(image): SILENT}
    watch_pauses(watch).pause(10)
    assert snapshot(watch, found).missing() == []


def watch_pauses(watch: xwd.Watch) -> xwd.Pauses:
    return watch.files._pauses


def test_a_configuration_that_does_not_answer_is_waited_for_until_it_does(
    host: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    web, mail = str(host.guest("web", host.image("a"))), str(host.guest("mail"))
    hang = clock.hang(xwd.read_text(xwd.unread_guest(web, "auto")))
    read_text = xwd.read_text
    monkeypatch.setattr(xwd, "read_text", lambda guest: hang() if guest.domain.source == web else read_text(guest))
    watch = host.watch()
    found = snapshot(watch)
    assert found.guests[web] == xwd.Guest(xwd.Domain("web.cfg", web, "auto"), SILENT)
    assert found.guests[mail].domain.name == "mail"
    assert snapshot(watch, found).guests[web].status == SILENT
    hang.release()
    watch_pauses(watch).pause(1)
    found = snapshot(watch, found)
    assert found.guests[web].domain.name == "web"
    assert found.missing() == []


def test_without_time_to_look_nothing_is_taken_for_ready(host: Host) -> None:
    file = str(host.guest("web", host.image("a")))
    assert missing(snapshot(host.watch(), deadline=0)) == {str(host.save): NOT_CHECKED, str(host.auto): NOT_CHECKED}
    found = snapshot(host.watch())
    again = missing(snapshot(host.watch(), found, anew=True, deadline=0))
    assert again == dict.fromkeys([str(host.save), str(host.auto), file, f"{host.images}/a"], NOT_CHECKED)


def test_what_was_ready_and_does_not_answer_in_the_last_look_is_not_ready(
    host: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = host.image("a")
    host.guest("web", image)
    watch = host.watch()
    found = snapshot(watch)
    assert found.missing() == []
    hang = clock.hang()
    monkeypatch.setattr(xwd, "check_disk", hang)
    assert missing(snapshot(watch, found, anew=True)) == {str(image): SILENT}


def test_of_a_crowded_directory_as_many_as_there_may_be_are_read_in_order(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xwd, "MAX_FILES", 3)
    for name in ("d", "b", "e", "a", "c"):
        host.guest(name)
    (host.auto / ".hidden").touch()
    directory = xwd.list_directory(str(host.auto), "auto")
    assert directory
    assert len(directory.files) == 3
    assert directory.files == sorted(directory.files)
    assert directory.warning == "holds more than 3 files; only 3 of them are looked at"
    problems = xwd.problems_of(xwd.Snapshot({"/etc/xen/auto": directory}))
    assert problems == {"/etc/xen/auto": [f"/etc/xen/auto: {directory.warning}."]}
    monkeypatch.setattr(xwd, "MAX_FILES", 5)
    assert xwd.list_directory(str(host.auto), "auto") == xwd.Directory(
        "auto", [f"{host.auto}/{name}.cfg" for name in "abcde"]
    )


def test_a_file_is_read_to_its_end_however_little_of_it_comes_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 400  # more than a pipe holds
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb", buffering=0) as pipe:
            for start in range(0, len(content), 1000):
                pipe.write(content[start : start + 1000])

    thread = Thread(target=write)
    thread.start()
    file = tmp_path / "web.cfg"
    file.touch()
    monkeypatch.setattr(xwd, "open", lambda _, *how: os.fdopen(reading, *how), raising=False)
    assert xwd.read_file(str(file)) == content
    thread.join()


def test_the_largest_configuration_is_read_and_no_larger_one(host: Host) -> None:
    file = host.auto / "web.cfg"
    file.write_text('name = "web"\n'.ljust(xwd.MAX_CONFIGURATION - 1) + "\n")
    assert names(snapshot(host.watch())) == ["web"]
    with file.open("a") as end:
        end.write("\n")
    (guest,) = snapshot(host.watch()).guests.values()
    assert guest.status == xwd.Status(xwd.State.UNREADABLE, "is too large for a configuration: more than 131072 bytes")


def test_of_a_file_without_end_no_more_is_read_than_a_configuration_may_have(host: Host) -> None:
    sparse(host.auto / "web.cfg", 1 << 40)
    assert "is too large for a configuration" in host.run().messages


@as_root
def test_a_file_system_that_does_not_answer_hides_no_disk_on_the_one_that_it_is_mounted_on(host: Host) -> None:
    image = host.images / "web"
    host.guest("web", image)
    with deaf_file_system(host.root / "deaf") as deaf:
        for number in range(40):
            host.guest(f"deaf{number}", deaf / str(number))
        with waiting(host, "--timeout", "10min") as running:
            host.image("web")
            running.wait_for(f"disk {image} found")


def test_a_configuration_that_others_may_write_is_warned_of_and_counts(host: Host) -> None:
    file = host.guest("web", host.images / "missing")
    file.chmod(0o666)
    messages = host.run("--timeout", "0").messages
    assert (
        f"{file}: others than its owner may write it (fix: chmod go-w {file}); xl uses it all the same.\n" in messages
    )
    assert f"still waiting for {host.images}/missing for web" in messages
