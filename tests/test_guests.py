# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Which guests start, how, and the messages about those that do not. See also test_xendomains_differential.py."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import NOBODY, FakeClock, Host, as_root

import xendomains_wait_disk as xwd

INCOMPLETE = "is incomplete, because saving failed or was interrupted, and cannot be restored"


@pytest.fixture
def debian(host: Host) -> Host:
    """A host with Debian's own xendomains."""
    settings = host.root / "default" / "xendomains"
    settings.parent.mkdir()
    host.settings.rename(settings)
    host.settings = settings
    host.configure("")
    (host.root / "init.d").mkdir()
    (host.root / "init.d" / "xendomains").write_text("#!/bin/bash\n. /etc/default/xendomains\n")
    return host


def cut(file: Path) -> Path:
    """Truncate the file of a saved guest, as if the host went down while saving it."""
    os.truncate(file, file.stat().st_size - len(xwd.SAVED_END))
    return file


def rows(host: Host) -> list[list[str]]:
    """Return the rows of the table, without its header."""
    return [re.split("  +", line) for line in host.run("list").output.splitlines()[1:]]


@pytest.mark.promise("Guests that xendomains does not start are not waited for, and the reason is given")
@pytest.mark.parametrize("name", ["web", "web.cfg"])
def test_restored_guest_waits_for_saved_disks_not_configured_ones(host: Host, name: str) -> None:
    """The configuration was changed after the guest was saved, and has a new disk."""
    saved = host.saved("web", host.image("a"))
    host.guest("web", host.images / "new").rename(host.auto / name)
    assert host.run().messages == ""
    assert rows(host) == [
        ["web", "restore", "xvda", f"{host.images}/a", "ready"],
        ["web", "none", "-", f"{host.auto}/{name}", "skipped", f"is restored from {saved}"],
    ]
    assert host.run("check").status == xwd.EXIT_READY


def test_configuration_is_used_once_the_saved_guest_is_gone(host: Host, clock: FakeClock) -> None:
    host.guest("web", host.images / "a")
    saved = host.saved("web", host.images / "b")
    watcher = host.watcher(clock)
    assert [one.path for one in watcher.look(math.inf).missing()] == [f"{host.images}/b"]
    saved.unlink()
    clock.pause(xwd.READ_INTERVAL)
    assert [one.path for one in watcher.look(math.inf).missing()] == [f"{host.images}/a"]


@pytest.mark.parametrize("other", ["web-old", "web.txt"])
def test_upstream_skips_guest_whose_name_is_part_of_a_saved_file_name(host: Host, other: str) -> None:
    (host.save / other).touch()
    host.guest("web", host.images / "a").rename(host.auto / "web")
    reason = f"is skipped by upstream's xendomains, because {host.save}/{other} contains its name"
    result = host.run()
    assert result.status == xwd.EXIT_READY
    assert result.messages == f"{host.auto}/web: {reason}.\n"
    assert host.run("-v").messages.endswith("No disk is missing, but these guests will not come up: web.\n")
    assert rows(host) == [["web", "none", "-", f"{host.auto}/web", "skipped", reason]]
    assert host.run("check").output.startswith(f"{host.auto}/web:\n  error: guest web: {reason}\n")
    assert host.run("check").status == host.run("list").status == xwd.EXIT_USAGE


def test_debian_skips_no_guest_for_a_saved_file_name(debian: Host) -> None:
    debian.saved("web-old", debian.image("a"))
    debian.guest("web", debian.image("b")).rename(debian.auto / "web")
    assert [row[:2] for row in rows(debian)] == [["web-old", "restore"], ["web", "create"]]


def test_upstream_creates_guest_whose_saved_file_is_incomplete(host: Host) -> None:
    saved = cut(host.saved("web", host.image("a")))
    host.guest("web", host.images / "b")
    result = host.run("--timeout", "0")
    assert f"{saved}: {INCOMPLETE}; xl will reject it.\n" in result.messages
    assert (
        f"will probably not come up: web; no guest starts from {saved} (once the disks are ready, start it with: "
        in result.messages
    )
    assert [row[:2] for row in rows(host)] == [["web", "restore"], ["web", "create"]]


@pytest.mark.promise("Guests that xendomains does not start are not waited for, and the reason is given")
def test_debian_does_not_start_guest_whose_saved_file_is_incomplete(debian: Host) -> None:
    saved = cut(debian.saved("web", debian.image("a")))
    config = debian.guest("web", debian.images / "b")
    reason = f"Debian's xendomains does not create it, because it fails to restore {saved}"
    result = debian.run("-v")
    assert result.status == xwd.EXIT_READY
    assert f"{config}: {reason}.\n" in result.messages
    assert result.messages.endswith(
        f"No disk is missing, but these guests will not come up: web; no guest starts from {saved}.\n"
    )
    check = debian.run("check")
    assert check.status == xwd.EXIT_USAGE
    assert f"{saved}:\n  error: {INCOMPLETE}; xl will reject it\n" in check.output
    assert f"{config}:\n  error: guest web: {reason}\n" in check.output


def test_debian_tries_to_restore_any_file(debian: Host) -> None:
    (debian.save / "README").write_text("Saved guests go here.\n")
    reason = "was not written by xl save, or is damaged; xl will reject it"
    assert f"{debian.save}/README:\n  error: {reason}\n" in debian.run("check").output


def test_guest_with_a_blank_in_its_file_name_does_not_start(host: Host) -> None:
    host.guest("my web", host.images / "a")
    reason = "cannot be started by xendomains, because its file name contains a blank"
    assert host.run("-v").messages.endswith("No disk is missing, but these guests will not come up: my web.\n")
    assert f"{host.auto}/my web.cfg:\n  error: guest my web: {reason}\n" in host.run("check").output


def test_copy_with_a_blank_in_its_file_name_does_not_keep_its_guest_down(host: Host) -> None:
    file = host.guest("web", host.image("a"))
    file.with_name("web copy.cfg").write_text(file.read_text())
    assert host.run("-v").messages.endswith("Everything is ready for 1 guest with 1 disk.\n")
    problem = "duplicate guest name; it cannot be started by xendomains, because its file name contains a blank"
    assert f"{host.auto}/web copy.cfg:\n  error: guest web: {problem}\n" in host.run("check").output


def test_file_that_is_not_a_guest_is_named_by_its_path(host: Host) -> None:
    host.guest("web", host.images / "a")
    (host.auto / "README").write_text("Guests that start at boot\n")
    (host.auto / "backup").mkdir()
    ends = (
        f"\nThese guests will probably not come up: web; no guest starts from {host.auto}/README, {host.auto}/backup ("
    )
    assert ends in host.run("--timeout", "0").messages


def test_missing_kernel_is_not_waited_for(host: Host) -> None:
    """An update may have removed it. It will not appear by itself if its file system is mounted."""
    kernel = host.images / "vmlinuz-6.1"
    (host.auto / "web").write_text(f'name="web"\nkernel="{kernel}"\ndisk=["{host.image("a")},,xvda"]\n')
    gone = f"{kernel} does not exist, although its file system is mounted"
    result = host.run("-v")
    assert result.status == xwd.EXIT_READY
    assert f"{host.auto}/web: {gone}.\n" in result.messages
    assert result.messages.endswith("No disk is missing, but these guests will not come up: web.\n")
    assert host.run("list").status == xwd.EXIT_USAGE


def test_missing_disk_image_is_waited_for(host: Host) -> None:
    host.guest("web", host.images / "late")
    assert host.run("--timeout", "0").status == xwd.EXIT_TIMED_OUT


@as_root
@pytest.mark.parametrize("closed", [lambda host: host.auto, lambda host: host.auto / "web.cfg"])
def test_unreadable_configuration_is_not_ready(host: Host, closed: Callable[[Host], Path]) -> None:
    host.guest("web", host.image("a"))
    closed(host).chmod(0)
    for path in (host.root, *host.root.parents):
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(0o755)
    child = os.fork()
    if child == 0:
        try:
            os.setuid(NOBODY)
            watcher, journal = host.watcher(), xwd.Journal(xwd.ERR, None, xwd.Clock())
            assert xwd.show_guests(watcher, xwd.Options("list"), journal, ()) == xwd.EXIT_USAGE
            table = "\n".join(xwd.table_of_disks(xwd.as_record(watcher.known), xwd.Screen(), with_hints=False))
            assert "cannot be read: Permission denied (run it as root)" in table
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_messages_name_start_command_if_a_disk_is_missing(host: Host) -> None:
    host.guest("web", host.images / "a")
    host.guest("it's", host.image("b"))
    later = "nce the disks are ready, start it with: xendomains-wait-disk start web"
    assert host.run("--timeout", "0", RUNTIME_DIRECTORY=str(host.root)).messages.endswith(f" (o{later}).\n")
    text, _, command = later.partition(" with: ")
    assert host.show("list").endswith(f"\nO{text} with:\n    {command}\n")
    last = host.run("last", RUNTIME_DIRECTORY=str(host.root)).output.splitlines()
    assert last[1:3] == [f"O{text} with:", f"    {command}"]
    host.image("a")
    assert "start it with" not in host.show("list").replace("\n", " ")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (set(), ("", "")),
        ({"web"}, ("xendomains-late.service will start web once the disks are ready", "")),
        ({"web", "db"}, ("xendomains-late.service will start db, web once the disks are ready", "")),
        (
            {"web", "other's"},
            (
                "xendomains-late.service will start web once the disks are ready; start the other with:",
                """xendomains-wait-disk start 'other'"'"'s'""",
            ),
        ),
        ({"1", "2", "3", "4", "5"}, ("once the disks are ready, start them with:", "xendomains-wait-disk start")),
    ],
)
def test_message_names_service_or_command_that_starts_guests_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: set[str], expected: tuple[str, str]
) -> None:
    wants = tmp_path / "systemd" / "system" / "xendomains.service.wants"
    wants.mkdir(parents=True)
    (wants / xwd.LATE_SERVICE).symlink_to("/nowhere")
    monkeypatch.setattr(xwd, "ETC", str(tmp_path))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    assert xwd.start_later(names, ("web", "db")) == expected


def test_service_that_is_enabled_but_not_running_starts_nothing_before_the_next_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xwd, "is_enabled", lambda names: True)
    monkeypatch.setattr(xwd, "RUN", str(tmp_path))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert xwd.start_later({"web"}, ("*",))[1] == "xendomains-wait-disk start web"


def test_no_start_command_while_guests_are_unknown(host: Host) -> None:
    host.auto.rmdir()
    host.auto.symlink_to("/nowhere")
    assert "later" not in host.run("--timeout", "0").messages + host.show("list")
