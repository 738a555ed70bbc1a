# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever lies in xendomains' directories: it is reported with its name and a reason, and all others are handled."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from conftest import CORPUS, Host, as_root, wait_until

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


NOTHING = xwd.Survey()

CONFIGURATIONS: list[tuple[str, Callable[[Path], None], str]] = [
    ("binary", binary, "line 1: lexical error"),
    ("huge", huge, "bytes; more than 1048576 are no configuration"),
    ("empty", Path.touch, "names no domain"),
    ("directory", Path.mkdir, "is a directory, not a regular file"),
    ("fifo", os.mkfifo, "is a FIFO, not a regular file"),
    ("socket", bind_socket, "is a socket, not a regular file"),
    ("device", link_to("/dev/zero"), "is a character device, not a regular file"),
    ("loop", link_to("bad"), "Too many levels of symbolic links"),
    ("utf16", utf16, "line 1: lexical error"),
    ("saved", truncated, "line 1: lexical error"),
    ("proc", link_to("/proc/version"), "names no domain"),
]

SAVED: list[tuple[str, Callable[[Path], None], str]] = [
    ("binary", binary, "is no saved domain"),
    ("huge", huge, "is no saved domain"),
    ("huge saved", huge_saved, "needs what xl does not know: mandatory flags 0xffffffff"),
    ("empty", Path.touch, "is no saved domain"),
    ("directory", Path.mkdir, "is a directory, not a regular file"),
    ("fifo", os.mkfifo, "is a FIFO, not a regular file"),
    ("socket", bind_socket, "is a socket, not a regular file"),
    ("device", link_to("/dev/zero"), "is a character device, not a regular file"),
    ("loop", link_to("bad"), "Too many levels of symbolic links"),
    ("truncated", truncated, "ends within its configuration: 448 of 1041 bytes"),
    ("utf16", utf16, "is no saved domain"),
]


def survey_of(
    host: Host, known: xwd.Survey = NOTHING, scouts: xwd.Scouts | None = None, again: bool = False, limit: float = 5
) -> xwd.Survey:
    xendomains = xwd.Xendomains(str(host.settings), str(host.auto), str(host.save))
    deadline = time.monotonic() + limit
    return xwd.survey(xendomains, xwd.Settings(), xwd.Kernel(), scouts or xwd.Scouts(), known, deadline, again)


def survey_with(host: Host, directory: Path, make: Callable[[Path], None]) -> xwd.Domain:
    """The domain found for the bad file, next to a good guest that is found all the same."""
    host.guest("good", host.image("good"))
    make(directory / "bad")
    found = survey_of(host)
    domains = {domain.name: domain for domain in found.domains()}
    assert domains["good"].error == ""
    assert len(domains) == 2
    assert found.missing() == []
    return domains["bad"]


@pytest.mark.parametrize(("make", "error"), [row[1:] for row in CONFIGURATIONS], ids=[row[0] for row in CONFIGURATIONS])
def test_in_the_auto_directory(host: Host, make: Callable[[Path], None], error: str) -> None:
    domain = survey_with(host, host.auto, make)
    assert domain.error and error in domain.error
    assert xwd.problems_of(domain)[0].startswith(f"{host.auto}/bad: {domain.error}")


@pytest.mark.parametrize(("make", "error"), [row[1:] for row in SAVED], ids=[row[0] for row in SAVED])
def test_in_the_directory_of_saved_domains(host: Host, make: Callable[[Path], None], error: str) -> None:
    domain = survey_with(host, host.save, make)
    assert error in domain.error
    assert xwd.problems_of(domain)[0].startswith(f"{host.save}/bad: {domain.error}")


@as_root
@pytest.mark.parametrize("directory", ["auto", "save"])
def test_a_file_that_may_not_be_read_is_told_of(host: Host, directory: str) -> None:
    """Root may read everything, so this runs as somebody else."""
    host.guest("good", host.image("good"))
    bad = host.root / directory / "bad"
    bad.write_text("secret")
    bad.chmod(0)
    for path in (host.root, *host.root.parents):
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(0o755)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        entry = xwd.read_entry(str(bad), "auto" if directory == "auto" else "saved", None, xwd.Settings())
        os._exit(0 if entry and entry.domain.error == "cannot be read: Permission denied" else 1)
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
    assert result.seconds < 3
    for name, _, _ in CONFIGURATIONS:
        if name != "loop":
            assert f"{host.auto}/{name}: " in result.messages


def test_a_name_that_is_no_utf8_is_told_of(host: Host) -> None:
    Path(os.fsdecode(os.fsencode(host.auto) + b"/b\xfcro.cfg")).write_text("what is this\n")
    assert rf"{host.auto}/b\xfcro.cfg: line 1: " in host.run().messages


def test_one_guest_without_a_good_configuration_does_not_hold_up_one_that_waits(host: Host) -> None:
    (host.auto / "bad").mkdir()
    host.guest("web", host.images / "a")
    result = host.run("--timeout", "1")
    assert result.status == xwd.EXIT_TIMED_OUT
    assert result.messages.endswith("will probably not come up: web.\n")


def failing(number: int) -> Callable[..., Any]:
    """A call of the operating system that fails."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE])
@pytest.mark.parametrize("call", ["scandir", "stat", "open"])
def test_an_error_that_may_pass_is_waited_for(
    host: Host, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    host.guest("web", host.image("a"))
    with monkeypatch.context() as patch:
        patch.setattr(f"xendomains_wait_disk.os.{call}", failing(number))
        found = survey_of(host)
    assert [missing.reason for missing in found.missing()]
    assert all(missing.reason == f"cannot be read: {os.strerror(number)}" for missing in found.missing())
    assert survey_of(host, found).missing() == []


def test_a_file_that_is_removed_before_it_is_read_is_dropped(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.guest("web", host.image("a"))
    file = host.guest("gone", host.images / "missing")
    list_entries = xwd.list_entries

    def list_and_remove(directory: str, kind: str, settings: xwd.Settings) -> xwd.Listing:
        listing = list_entries(directory, kind, settings)
        if str(file) in listing.files:
            file.unlink()
        return listing

    monkeypatch.setattr(xwd, "list_entries", list_and_remove)
    assert [domain.name for domain in survey_of(host).domains()] == ["web"]


def test_a_disk_that_a_guest_has_twice_is_missing_once(host: Host) -> None:
    host.guest("web", host.images / "a", host.images / "a")
    assert [missing.domains for missing in survey_of(host).missing()] == [("web",)]


def test_a_link_that_dangles_is_waited_for_and_says_where_to(host: Host) -> None:
    (host.auto / "web.cfg").symlink_to("/nowhere/web.cfg")
    (domain,) = survey_of(host).domains()
    assert (domain.name, domain.kind, domain.pending) == ("web.cfg", "auto", True)
    assert domain.error == "is a link to /nowhere/web.cfg, which does not exist"


@pytest.fixture
def settled_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every file had last been written long ago."""
    monkeypatch.setattr(xwd, "GRANULARITY", 0.0)


@pytest.mark.usefixtures("settled_files")
def test_a_file_that_has_not_changed_is_not_read_again(host: Host) -> None:
    file = str(host.guest("web"))
    entry = xwd.read_entry(file, "auto", None, xwd.Settings())
    assert entry is not None
    assert xwd.read_entry(file, "auto", entry, xwd.Settings()) is entry


@pytest.mark.usefixtures("settled_files")
def test_the_next_survey_reads_only_what_has_changed(host: Host) -> None:
    web, mail = str(host.guest("web")), str(host.guest("mail"))
    found = survey_of(host)
    host.guest("mail", host.image("a"))
    again = survey_of(host, found)
    assert again.entries[web] is found.entries[web]
    assert again.entries[mail] is not found.entries[mail]


def test_what_was_ready_is_looked_at_again_only_if_asked(host: Host) -> None:
    image = host.image("a")
    host.guest("web", image)
    found = survey_of(host)
    image.unlink()
    assert survey_of(host, found).missing() == []
    assert [missing.path for missing in survey_of(host, found, again=True).missing()] == [str(image)]


def test_a_change_that_leaves_size_and_time_as_they_were_is_noticed(host: Host) -> None:
    file = host.guest("old")
    entry = xwd.read_entry(str(file), "auto", None, xwd.Settings())
    before = file.stat()
    time.sleep(0.05)  # the kernel's clock for files ticks more slowly than ours
    host.guest("new").replace(host.root / "new")
    file.write_text((host.root / "new").read_text())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    again = xwd.read_entry(str(file), "auto", entry, xwd.Settings())
    assert again and again.domain.name == "new"


def test_a_directory_that_may_not_be_read_is_told_of(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xendomains_wait_disk.os.scandir", failing(errno.EACCES))
    errors = [domain.error for domain in survey_of(host).domains()]
    assert errors == ["cannot be read: Permission denied"] * 2


def test_a_directory_whose_listing_comes_late_is_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.guest("web", host.images / "missing")
    scouts = xwd.Scouts()
    list_entries = xwd.list_entries

    def slow(directory: str, kind: str, settings: xwd.Settings) -> xwd.Listing:
        time.sleep(0.5)
        return list_entries(directory, kind, settings)

    monkeypatch.setattr(xwd, "list_entries", slow)
    found = survey_of(host, scouts=scouts)
    assert {missing.path for missing in found.missing()} == {str(host.auto), str(host.save)}
    time.sleep(0.6)
    found = survey_of(host, found, scouts)
    assert [missing.path for missing in found.missing()] == [f"{host.images}/missing"]
    forgetful = survey_of(host, found, scouts)
    assert f"{host.images}/missing" in {missing.path for missing in forgetful.missing()}
    time.sleep(0.6)
    host.image("missing")
    found = survey_of(host, found, scouts)
    assert found.missing() == []
    assert survey_of(host, found, scouts, again=True).missing() == []


def test_a_disk_that_always_answers_late_becomes_ready(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.guest("web", host.image("a"))
    scouts = xwd.Scouts()
    look_at = xwd.look_at

    def slow(paths: tuple[str, ...], kernel: xwd.Kernel) -> xwd.Look:
        time.sleep(0.5)
        return look_at(paths, kernel)

    monkeypatch.setattr(xwd, "look_at", slow)
    found = survey_of(host, scouts=scouts)
    assert [missing.reason for missing in found.missing()] == [xwd.NO_ANSWER.reason]
    time.sleep(0.6)
    assert survey_of(host, found, scouts).missing() == []


def test_a_configuration_that_does_not_answer_is_waited_for_until_it_does(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    web, mail = str(host.guest("web", host.image("a"))), str(host.guest("mail"))
    release, scouts, read_entry = Event(), xwd.Scouts(), xwd.read_entry

    def slow(path: str, *others: Any) -> xwd.Entry | None:
        if path == web:
            release.wait()
        return read_entry(path, *others)

    monkeypatch.setattr(xwd, "read_entry", slow)
    silent = xwd.Domain("web.cfg", web, "auto", error=xwd.NO_ANSWER.reason, pending=True)
    found = survey_of(host, scouts=scouts)
    assert (found.entries[web].domain, found.entries[mail].domain.name) == (silent, "mail")
    found = survey_of(host, found, scouts)
    assert found.entries[web].domain == silent
    release.set()
    wait_until(lambda: not survey_of(host, found, scouts).missing())


def test_without_time_to_look_nothing_is_taken_for_ready(host: Host) -> None:
    web = str(host.guest("web", host.image("a")))
    errors = {domain.source: domain.error for domain in survey_of(host, limit=0).domains()}
    assert errors == {str(host.save): xwd.NOT_LOOKED_AT.reason, str(host.auto): xwd.NOT_LOOKED_AT.reason}
    found = survey_of(host)
    missing = survey_of(host, found._replace(looks={}), limit=0, again=True).missing()
    assert missing == [xwd.Missing(f"{host.images}/a", *xwd.NOT_LOOKED_AT, ("web",))]
    assert web in survey_of(host, found, limit=0).entries


def test_what_was_ready_and_does_not_answer_in_the_last_look_stays_ready(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.guest("web", host.image("a"))
    found = survey_of(host)
    release = Event()
    monkeypatch.setattr(xwd, "look_at", lambda *_: release.wait())
    assert survey_of(host, found, again=True).missing() == []
    release.set()


def test_of_a_crowded_directory_the_first_in_order_are_read(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xwd, "MOST_GUESTS", 3)
    for name in ("d", "b", "e", "a", "c"):
        host.guest(name)
    (host.auto / ".hidden").touch()
    listing = xwd.list_entries(str(host.auto), "auto", xwd.Settings())
    assert listing.files == [f"{host.auto}/{name}.cfg" for name in "abc"]
    assert listing.trouble and listing.trouble.domain.warnings[0].startswith("holds more than 3 files")
    monkeypatch.setattr(xwd, "MOST_GUESTS", 5)
    listing = xwd.list_entries(str(host.auto), "auto", xwd.Settings())
    assert (len(listing.files), listing.trouble) == (5, None)
