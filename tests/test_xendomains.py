# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The settings of xendomains, sourced by bash as xendomains does."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import mock_open

import pytest
from conftest import CAP, NOBODY, Host, as_root, findings_text, wait_until

import xendomains_wait_disk as xwd


def read_first(*paths: Path, **settings: Any) -> tuple[xwd.Xendomains, str]:
    """Read the first of these files that exists."""
    ours = xwd.Settings(xendomains=tuple(map(str, paths)))._replace(**settings)
    xendomains, problems = xwd.read_xendomains(ours, xwd.Clock(), CAP)
    assert xendomains is not None
    return xendomains, findings_text(problems)


def read(path: Path, text: str, **settings: Any) -> tuple[xwd.Xendomains, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return read_first(path, **settings)


@pytest.fixture
def sysconfig(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "sysconfig" / "xendomains"


@pytest.fixture
def default(tmp_path: Path) -> Path:
    """The settings file on a host with Debian's own xendomains."""
    script = tmp_path / "etc" / "init.d" / "xendomains"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/bash\n. /etc/default/xendomains\nxen create\n")
    return tmp_path / "etc" / "default" / "xendomains"


ALL = "XENDOMAINS_AUTO=/etc/xen/auto\nXENDOMAINS_SAVE=/var/lib/xen/save\n"


def test_directories_come_from_the_settings_file(sysconfig: Path) -> None:
    xendomains, problems = read(sysconfig, ALL + "XENDOMAINS_RESTORE=true\n")
    assert (xendomains.auto, xendomains.save, problems) == ("/etc/xen/auto", "/var/lib/xen/save", "")


@pytest.mark.parametrize("directory", ["/etc/xen/auto/", "etc/xen/auto"])
def test_extra_or_missing_slash_makes_no_difference(sysconfig: Path, directory: str) -> None:
    assert read(sysconfig, f"XENDOMAINS_AUTO={directory}\n")[0].auto == "/etc/xen/auto"


def test_settings_file_is_evaluated_by_bash(sysconfig: Path) -> None:
    xendomains, _ = read(sysconfig, 'if true; then XENDOMAINS_AUTO="/etc/xen/$(echo "$((40 + 2))")"; fi\n')
    assert xendomains.auto == "/etc/xen/42"


@pytest.mark.parametrize("directory", ["/srv/my guests", "/srv/a\nb", "/srv/$x'\"", "/srv/bü"])
def test_directories_may_hold_any_character(sysconfig: Path, directory: str) -> None:
    quoted = directory.replace("'", "'\\''")
    assert read(sysconfig, f"XENDOMAINS_AUTO='{quoted}'\n")[0].auto == directory


@pytest.mark.parametrize("text", ["", "XENDOMAINS_AUTO=\nXENDOMAINS_SAVE=\nXENDOMAINS_RESTORE=true\n"])
def test_unset_and_empty_variables_mean_no_guests(sysconfig: Path, text: str) -> None:
    xendomains, problems = read(sysconfig, text)
    assert (xendomains.auto, xendomains.save) == ("", "")
    assert problems == f"{sysconfig}: sets no guest directory (XENDOMAINS_AUTO), so xendomains starts no guests."


def test_environment_variables_are_ignored(sysconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENDOMAINS_AUTO", "/from/the/environment")
    assert read(sysconfig, "")[0].auto == ""


def test_bash_reads_no_other_file_first(sysconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env").write_text("XENDOMAINS_AUTO=/from/another/file\n")
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "env"))
    assert read(sysconfig, "")[0].auto == ""


@pytest.mark.promise("The environment is odd (PATH, BASH_ENV, SHELLOPTS), or SIGCHLD is ignored")
def test_environment_does_not_affect_bash(sysconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELLOPTS", "noexec")
    monkeypatch.setenv("BASH_FUNC_printf%%", "() { echo mine; }")
    monkeypatch.setenv("PATH", "/nowhere")
    exported = 'XENDOMAINS_AUTO="/$(compgen -e | xargs)"\n'
    assert read(sysconfig, exported)[0].auto == "/PATH PWD SHLVL"


def test_pipes_in_settings_end_as_they_do_for_xendomains(sysconfig: Path) -> None:
    """Python ignores SIGPIPE, and its child processes would inherit that."""
    assert read(sysconfig, "yes | head -1\nXENDOMAINS_AUTO=/${PIPESTATUS[0]}\n")[0].auto == "/141"


@pytest.mark.parametrize(
    ("value", "restores"), [("true", True), ("yes", False), ("1", False), ("TRUE", False), ("", False)]
)
def test_upstream_restores_only_if_the_variable_is_true(sysconfig: Path, value: str, restores: bool) -> None:
    assert bool(read(sysconfig, f"{ALL}XENDOMAINS_RESTORE={value}\n")[0].save) is restores


@pytest.mark.parametrize(("value", "restores"), [("true", True), ("false", True), ("no", True), ("", False)])
def test_debian_restores_if_the_variable_is_not_empty(default: Path, value: str, restores: bool) -> None:
    assert bool(read(default, f"{ALL}XENDOMAINS_RESTORE={value}\n")[0].save) is restores


def test_upstream_may_also_read_etc_default(default: Path) -> None:
    script = default.parent.parent / "init.d" / "xendomains"
    script.write_text("#!/bin/bash\n. /etc/xen/scripts/hotplugpath.sh\n$LIBEXEC_BIN/xendomains start\n")
    assert read(default, f"{ALL}XENDOMAINS_RESTORE=false\n")[0].save == ""


def test_etc_default_belongs_to_upstream_without_an_init_script(default: Path) -> None:
    """As on NixOS, or if Xen was built with this path."""
    (default.parent.parent / "init.d" / "xendomains").unlink()
    assert read(default, f"{ALL}XENDOMAINS_RESTORE=false\n")[0].save == ""


def test_first_existing_settings_file_is_used(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one", "two", "three")]
    files[1].write_text("XENDOMAINS_AUTO=/two\n")
    files[2].write_text("XENDOMAINS_AUTO=/three\n")
    xendomains, _ = read_first(*files)
    assert xendomains.auto == "/two"


def test_own_settings_override_the_directories_of_xendomains(sysconfig: Path) -> None:
    xendomains, _ = read(sysconfig, ALL + "XENDOMAINS_RESTORE=true\n", auto="/a", save="/s")
    assert (xendomains.auto, xendomains.save) == ("/a", "/s")


def test_save_directory_of_own_settings_is_unused_if_xendomains_does_not_restore(sysconfig: Path) -> None:
    assert read(sysconfig, ALL, save="/s")[0].save == ""


def test_syntax_error_is_reported_with_its_line_and_earlier_settings_are_used(sysconfig: Path) -> None:
    xendomains, problems = read(sysconfig, f"{ALL}if then\nXENDOMAINS_AUTO=/later\n")
    assert xendomains.auto == "/etc/xen/auto"
    assert f"{sysconfig}: has a syntax error (line 3: syntax error near unexpected token `then')" in problems


@pytest.mark.parametrize("last", ["false", "return 3", "/nowhere/command", "readonly x=1; x=2"])
def test_exit_status_of_settings_file_is_ignored(sysconfig: Path, last: str) -> None:
    """xendomains ignores it as well."""
    xendomains, problems = read(sysconfig, f"{ALL}{last}\n")
    assert (xendomains.auto, problems) == ("/etc/xen/auto", "")


@pytest.mark.promise("xendomains' settings hang, exit the shell, fork, or print endlessly")
@pytest.mark.parametrize(
    "text", ["exit 3\n", "exit 0\n", "set -e\nfalse\n", "set -u\nx=$undefined\n", "exec true\n", "kill -9 $$\n"]
)
def test_file_that_exits_the_shell_is_reported_and_xens_defaults_are_used(sysconfig: Path, text: str) -> None:
    xendomains, problems = read(sysconfig, "XENDOMAINS_AUTO=/x\n" + text)
    assert xendomains.auto == "/etc/xen/auto"
    assert f"{sysconfig}: makes the shell that sources it exit; waiting for the guests in /etc/xen/auto" in problems


@pytest.mark.promise("xendomains' settings hang, exit the shell, fork, or print endlessly")
@pytest.mark.parametrize(
    "text",
    [
        "sleep 600",
        "while :; do :; done",
        "read x </dev/zero",
        "trap '' TERM INT; sleep 600",
        "exec 1>&-; sleep 600",
    ],
)
def test_hanging_file_is_reported_and_abandoned(host: Host, text: str) -> None:
    host.configure("timeout = 500ms")
    host.conf.write_text(f"{host.conf.read_text()}auto = {host.auto}\nsave = {host.save}\n")
    host.settings.write_text(f"{text}\n")
    result = host.run()
    assert result.status == xwd.EXIT_READY
    assert result.messages == (
        f"{host.settings}: was not read within 500ms; waiting for the guests in {host.auto} and {host.save} instead.\n"
    )


@pytest.mark.promise("xendomains' settings hang, exit the shell, fork, or print endlessly")
def test_processes_started_by_a_hanging_file_are_killed(host: Host, tmp_path: Path) -> None:
    child = tmp_path / "child"
    host.settings.write_text(f"sleep 600 & echo $! >{child}.new; mv {child}.new {child}; wait\n")
    assert "was not read within 2s" in host.run("--timeout", "2").messages
    wait_until(lambda: not child.exists() or has_ended(int(child.read_text())))


def test_signal_also_kills_processes_started_by_the_file(host: Host, tmp_path: Path) -> None:
    child = tmp_path / "child"
    host.settings.write_text(f"sleep 600 & echo $! >{child}.new; mv {child}.new {child}; wait\n")
    with host.start("--timeout", "600") as running:
        wait_until(child.exists)
        running.signal(signal.SIGTERM)
        assert running.end().status == -signal.SIGTERM
    wait_until(lambda: has_ended(int(child.read_text())))


def has_ended(process: int) -> bool:
    """Return whether the process is gone or a zombie."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return True
    return status.rpartition(") ")[2].startswith("Z")


def test_file_gets_no_input_and_its_output_is_dropped(sysconfig: Path, capfd: pytest.CaptureFixture[str]) -> None:
    xendomains, problems = read(sysconfig, f"echo noise; echo noise >&2; read line || {ALL.splitlines()[0]}\n")
    assert (xendomains.auto, problems) == ("/etc/xen/auto", "")
    assert capfd.readouterr() == ("", "")


def test_process_left_behind_causes_no_delay(host: Host) -> None:
    host.settings.write_text(f"sleep 600 &\n{host.settings.read_text()}")
    host.guest("web", host.image("web"))
    assert [domain["name"] for domain in host.list()["guests"]] == ["web"]


@pytest.mark.promise("xendomains' settings hang, exit the shell, fork, or print endlessly")
def test_endless_output_causes_no_delay(host: Host) -> None:
    host.settings.write_text(f"yes &\n{host.settings.read_text()}")
    assert host.run().messages == ""


def test_oversized_file_is_reported(sysconfig: Path) -> None:
    xendomains, problems = read(sysconfig, ALL + "# \n" * xwd.MAX_CONFIGURATION)
    assert xendomains.auto == xwd.DEFAULT_AUTO
    assert f"{sysconfig}: is too large for a configuration: more than 131072 bytes" in problems


def ignore_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


@pytest.mark.promise("The environment is odd (PATH, BASH_ENV, SHELLOPTS), or SIGCHLD is ignored")
def test_settings_are_read_though_the_parent_ignores_sigchld(host: Host) -> None:
    """A process inherits an ignored SIGCHLD, and then the kernel does not keep the status of its children."""
    host.guest("web", host.images / "missing")
    result = host.run("--timeout", "0", options={"preexec_fn": ignore_children})
    assert result.status == xwd.EXIT_TIMED_OUT
    assert "cannot be read" not in result.messages


@pytest.mark.promise("Files that are writable by others are used, with a warning")
@as_root
@pytest.mark.parametrize(
    ("mode", "owner", "why"),
    [
        (0o664, 0, "it is writable by group or others (fix: chmod go-w {})"),
        (0o646, 0, "it is writable by group or others (fix: chmod go-w {})"),
        (0o644, NOBODY, f"it is owned by user {NOBODY}, not root (fix: chown root {{}})"),
    ],
)
def test_file_writable_by_others_is_used_with_a_warning(sysconfig: Path, mode: int, owner: int, why: str) -> None:
    """xendomains sources it as root anyway."""
    read(sysconfig, ALL)
    sysconfig.chmod(mode)
    os.chown(sysconfig, owner, -1)
    xendomains, findings = xwd.read_xendomains(xwd.Settings(xendomains=(str(sysconfig),)), xwd.Clock(), CAP)
    problem = f"{why.format(sysconfig)}; xendomains runs it as root anyway, so its settings are used"
    assert xendomains and xendomains.auto == "/etc/xen/auto"
    assert findings == [xwd.Finding(problem, file=str(sysconfig))]


def test_boot_logs_warning_for_settings_writable_by_others(host: Host) -> None:
    host.settings.chmod(0o666)
    result = host.run()
    assert result.status == xwd.EXIT_READY
    assert result.messages.startswith(f"{host.settings}: it is writable by group or others (fix: chmod go-w ")


@pytest.mark.promise("xendomains' settings cannot be read (EIO, EACCES, a dangling link)")
def test_directory_instead_of_a_file_is_reported(tmp_path: Path) -> None:
    xendomains, problems = read_first(tmp_path)
    assert xendomains.auto == xwd.DEFAULT_AUTO
    assert f"{tmp_path}: is a directory, not a regular file; waiting for the guests in /etc/xen/auto" in problems


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES])
@pytest.mark.parametrize("call", ["lstat", "stat", "open", "read"])
def test_existing_file_that_cannot_be_read_is_reported(
    sysconfig: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    sysconfig.parent.mkdir(parents=True)
    sysconfig.symlink_to("/nowhere")
    if call != "lstat":
        sysconfig.unlink()
        sysconfig.touch()
    if call in ("open", "read"):
        opened = mock_open()
        (opened if call == "open" else opened.return_value.read).side_effect = fail
        monkeypatch.setattr(xwd, "open", opened, raising=False)
    else:
        monkeypatch.setattr(f"xendomains_wait_disk.os.{call}", fail)
    xendomains, problems = read_first(sysconfig)
    monkeypatch.undo()
    assert (xendomains.auto, xendomains.save) == ("/etc/xen/auto", "/var/lib/xen/save")
    reason = os.strerror(number if call != "lstat" else errno.ENOENT)
    assert f"{sysconfig}: cannot be read ({reason}); waiting for the guests in /etc/xen/auto" in problems


@pytest.mark.promise("xendomains' settings cannot be read (EIO, EACCES, a dangling link)")
def test_dangling_link_instead_of_a_file_is_reported(sysconfig: Path) -> None:
    """xendomains would find it once the file system with the target is mounted."""
    sysconfig.parent.mkdir(parents=True)
    sysconfig.symlink_to("/nowhere/xendomains")
    xendomains, problems = read_first(sysconfig)
    assert xendomains.auto == xwd.DEFAULT_AUTO
    assert f"{sysconfig}: cannot be read (No such file or directory); waiting for the guests in" in problems


def test_own_settings_are_used_if_the_file_cannot_be_read(tmp_path: Path) -> None:
    xendomains, problems = read_first(tmp_path, auto="/a", save="/s")
    assert (xendomains.auto, xendomains.save) == ("/a", "/s")
    assert "; waiting for the guests in /a and /s instead." in problems


@pytest.mark.promise("It works without optional parts of a host, such as pyudev, bash or /proc")
def test_xens_defaults_are_used_without_bash(sysconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xwd, "BASH", "/nowhere/bash")
    xendomains, problems = read(sysconfig, "XENDOMAINS_AUTO=/x\n")
    assert xendomains.auto == xwd.DEFAULT_AUTO
    assert f"{sysconfig}: cannot be read with /nowhere/bash and /dev/null (No such file or directory)" in problems


def test_exit_status_is_6_without_any_settings_file(host: Host) -> None:
    host.settings.unlink()
    result = host.run()
    assert result.status == xwd.EXIT_NO_XENDOMAINS
    assert result.messages == f"xendomains has no settings file ({host.settings}), so it starts no guests.\n"


def test_file_in_place_of_a_directory_holds_no_guests(host: Host) -> None:
    host.auto.rmdir()
    host.auto.touch()
    reason = "cannot be read: Not a directory"
    directory = {"path": str(host.auto), "kind": "auto", "state": "unreadable", "reason": reason, "hint": None}
    assert host.list() == {"version": 1, "ready": False, "guests": [], "directories": [directory]}


def test_hidden_files_are_ignored_and_backups_are_not(host: Host) -> None:
    host.guest("web", host.image("web"))
    (host.auto / ".gitkeep").touch()
    (host.auto / "web.cfg~").write_text('name = "old"\n')
    assert [domain["name"] for domain in host.list()["guests"]] == ["web", "old"]


def test_lost_and_found_directory_causes_no_message(host: Host) -> None:
    (host.auto / "lost+found").mkdir()
    (host.save / "lost+found").mkdir()
    assert host.run().messages == ""


def test_directories_that_do_not_exist_hold_no_guests(host: Host) -> None:
    host.settings.write_text("XENDOMAINS_AUTO=/nowhere\nXENDOMAINS_SAVE=/not/here\nXENDOMAINS_RESTORE=true\n")
    reason = "does not exist; correct XENDOMAINS_AUTO, or create it"
    directory = {"path": "/nowhere", "kind": "auto", "state": "unreadable", "reason": reason, "hint": None}
    assert host.list() == {"version": 1, "ready": False, "guests": [], "directories": [directory]}
    assert host.run("list").status == xwd.EXIT_USAGE
    result = host.run()
    assert result.status == xwd.EXIT_READY
    assert result.messages == f"/nowhere: {reason}.\n"
