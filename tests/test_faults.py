# SPDX-License-Identifier: GPL-3.0-or-later
"""A broken host: what is wrong is told of, the disks of the other guests are waited for, and nothing takes longer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import (
    MODULE,
    Host,
    Result,
    as_root,
    clean_environment,
    finish,
)

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
