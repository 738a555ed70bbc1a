# SPDX-License-Identifier: GPL-3.0-or-later
"""xendomains' own settings, sourced by bash as xendomains does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Host, texts, wait_until

import xendomains_wait_disk as xwd


def read(path: Path, text: str, limit: float = 5, **settings: Any) -> tuple[xwd.Xendomains, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    xendomains, problems = xwd.read_xendomains(xwd.Settings(xendomains=(str(path),))._replace(**settings), limit)
    assert xendomains is not None
    return xendomains, texts(problems)


@pytest.fixture
def sysconfig(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "sysconfig" / "xendomains"


@pytest.fixture
def default(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "default" / "xendomains"


ALL = "XENDOMAINS_AUTO=/etc/xen/auto\nXENDOMAINS_SAVE=/var/lib/xen/save\n"


def test_the_directories_are_taken_from_it(sysconfig: Path) -> None:
    xendomains, problems = read(sysconfig, ALL + "XENDOMAINS_RESTORE=true\n")
    assert (xendomains.auto, xendomains.save, problems) == ("/etc/xen/auto", "/var/lib/xen/save", "")


@pytest.mark.parametrize("directory", ["/etc/xen/auto/", "etc/xen/auto"])
def test_a_slash_too_many_or_too_few_does_not_matter(sysconfig: Path, directory: str) -> None:
    assert read(sysconfig, f"XENDOMAINS_AUTO={directory}\n")[0].auto == "/etc/xen/auto"


def test_bash_evaluates_it(sysconfig: Path) -> None:
    xendomains, _ = read(sysconfig, 'if true; then XENDOMAINS_AUTO="/etc/xen/$(echo "$((40 + 2))")"; fi\n')
    assert xendomains.auto == "/etc/xen/42"


@pytest.mark.parametrize("directory", ["/srv/my guests", "/srv/a\nb", "/srv/$x'\"", "/srv/bü"])
def test_directories_may_hold_any_character(sysconfig: Path, directory: str) -> None:
    quoted = directory.replace("'", "'\\''")
    assert read(sysconfig, f"XENDOMAINS_AUTO='{quoted}'\n")[0].auto == directory


@pytest.mark.parametrize("text", ["", "XENDOMAINS_AUTO=\nXENDOMAINS_SAVE=\nXENDOMAINS_RESTORE=true\n"])
def test_unset_and_empty_variables_mean_no_guests(sysconfig: Path, text: str) -> None:
    xendomains, problems = read(sysconfig, text)
    assert (xendomains.auto, xendomains.save, problems) == ("", "", "")


def test_variables_of_the_environment_do_not_count(sysconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENDOMAINS_AUTO", "/from/the/environment")
    assert read(sysconfig, "")[0].auto == ""


def test_bash_reads_no_other_file_first(sysconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env").write_text("XENDOMAINS_AUTO=/from/another/file\n")
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "env"))
    assert read(sysconfig, "")[0].auto == ""


def test_pipes_in_it_end_as_they_do_for_xendomains(sysconfig: Path) -> None:
    """Python ignores SIGPIPE, and what it starts would inherit that."""
    assert read(sysconfig, "yes | head -1\nXENDOMAINS_AUTO=/${PIPESTATUS[0]}\n")[0].auto == "/141"


@pytest.mark.parametrize(
    ("value", "restores"), [("true", True), ("yes", False), ("1", False), ("TRUE", False), ("", False)]
)
def test_upstream_restores_only_if_it_says_true(sysconfig: Path, value: str, restores: bool) -> None:
    assert bool(read(sysconfig, f"{ALL}XENDOMAINS_RESTORE={value}\n")[0].save) is restores


@pytest.mark.parametrize(("value", "restores"), [("true", True), ("false", True), ("no", True), ("", False)])
def test_debian_restores_if_it_says_anything(default: Path, value: str, restores: bool) -> None:
    assert bool(read(default, f"{ALL}XENDOMAINS_RESTORE={value}\n")[0].save) is restores


def test_upstreams_xendomains_may_read_etc_default_too(default: Path) -> None:
    script = default.parent.parent / "init.d" / "xendomains"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/bash\n. /etc/xen/scripts/hotplugpath.sh\n$LIBEXEC_BIN/xendomains start\n")
    assert read(default, f"{ALL}XENDOMAINS_RESTORE=false\n")[0].save == ""


def test_the_first_settings_file_that_exists_counts(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one", "two", "three")]
    files[1].write_text("XENDOMAINS_AUTO=/two\n")
    files[2].write_text("XENDOMAINS_AUTO=/three\n")
    xendomains, _ = xwd.read_xendomains(xwd.Settings(xendomains=tuple(map(str, files))), 5)
    assert xendomains and (xendomains.auto, xendomains.settings) == ("/two", str(files[1]))


def test_our_own_settings_go_before_its_directories(sysconfig: Path) -> None:
    xendomains, _ = read(sysconfig, ALL + "XENDOMAINS_RESTORE=true\n", auto="/a", save="/s")
    assert (xendomains.auto, xendomains.save) == ("/a", "/s")


def test_saved_domains_are_not_restored_wherever_they_are_if_xendomains_does_not(sysconfig: Path) -> None:
    assert read(sysconfig, ALL, save="/s")[0].save == ""


def test_a_syntax_error_is_named_with_its_line_and_what_comes_before_counts(sysconfig: Path) -> None:
    xendomains, problems = read(sysconfig, f"{ALL}if then\nXENDOMAINS_AUTO=/later\n")
    assert xendomains.auto == "/etc/xen/auto"
    assert f"{sysconfig} has a syntax error (line 3: syntax error near unexpected token `then')" in problems


def test_a_file_that_fails_is_told_of_but_counts(sysconfig: Path) -> None:
    xendomains, problems = read(sysconfig, ALL + "false\n")
    assert xendomains.auto == "/etc/xen/auto"
    assert xendomains.remark == f"{sysconfig} ends with status 1; xendomains goes on all the same."
    assert problems == ""


@pytest.mark.parametrize(
    "text", ["exit 3\n", "exit 0\n", "set -e\nfalse\n", "set -u\nx=$undefined\n", "exec true\n", "kill -9 $$\n"]
)
def test_a_file_that_ends_the_shell_is_told_of_and_xens_defaults_are_taken(sysconfig: Path, text: str) -> None:
    xendomains, problems = read(sysconfig, "XENDOMAINS_AUTO=/x\n" + text)
    assert xendomains.auto == "/etc/xen/auto"
    assert f"{sysconfig} ends the shell that reads it" in problems


@pytest.mark.parametrize(
    "text", ["sleep 60\n", "while :; do :; done\n", "read x </dev/zero\n", "trap '' TERM INT; sleep 60\n"]
)
def test_a_file_that_hangs_is_told_of_and_left(sysconfig: Path, text: str) -> None:
    started = time.monotonic()
    xendomains, problems = read(sysconfig, text, limit=0.3)
    assert time.monotonic() - started < 1.5
    assert xendomains.auto == "/etc/xen/auto"
    assert f"{sysconfig} was not read within 300ms" in problems


def test_what_a_file_that_hangs_has_started_is_ended_too(sysconfig: Path, tmp_path: Path) -> None:
    child = tmp_path / "child"
    read(sysconfig, f"sleep 60 & echo $! >{child}; wait\n", limit=0.5)
    wait_until(lambda: has_ended(int(child.read_text())))


def has_ended(process: int) -> bool:
    """Whether it is gone, or only waits for its parent to ask for its status."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return True
    return status.rpartition(") ")[2].startswith("Z")


def test_it_gets_no_input_and_its_output_is_dropped(sysconfig: Path, capfd: pytest.CaptureFixture[str]) -> None:
    xendomains, problems = read(sysconfig, f"echo noise; echo noise >&2; read line || {ALL.splitlines()[0]}\n")
    assert (xendomains.auto, problems) == ("/etc/xen/auto", "")
    assert capfd.readouterr() == ("", "")


def test_a_process_left_behind_does_not_hold_us(sysconfig: Path) -> None:
    started = time.monotonic()
    assert read(sysconfig, "sleep 60 &\n" + ALL)[0].auto == "/etc/xen/auto"
    assert time.monotonic() - started < 2


def test_a_directory_in_its_place_is_told_of(tmp_path: Path) -> None:
    xendomains, problems = xwd.read_xendomains(xwd.Settings(xendomains=(str(tmp_path),)), 5)
    assert xendomains and xendomains.auto == xwd.DEFAULT_AUTO
    assert f"{tmp_path} is a directory, not a regular file" in texts(problems)


def test_without_bash_xens_defaults_are_taken(sysconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    xendomains, problems = read(sysconfig, "XENDOMAINS_AUTO=/x\n")
    assert xendomains.auto == xwd.DEFAULT_AUTO
    assert f"{sysconfig} needs bash, which does not start (No such file or directory)" in problems


def test_without_any_settings_file_the_exit_status_is_6(host: Host) -> None:
    host.settings.unlink()
    result = host.run()
    assert result.status == xwd.EXIT_NO_XENDOMAINS
    assert result.messages.endswith(f": none of {host.settings} exists, so xendomains starts no guests.\n")


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({}, "This host does not run Xen"),
        ({"type": "xen", "properties/features": "00000705"}, "This is a Xen guest, not a Xen host"),
        ({"type": "xen", "properties/features": "00002f05"}, "This Xen host has no settings for xendomains"),
        ({"type": "xen"}, "This Xen host has no settings for xendomains"),
    ],
)
def test_the_message_tells_a_host_from_a_guest(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    for name, content in files.items():
        file = tmp_path / "hypervisor" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    assert xwd.kind_of_host(str(tmp_path)) == kind


def test_a_host_that_does_not_tell_what_it_is_may_be_a_xen_host(tmp_path: Path) -> None:
    (tmp_path / "hypervisor" / "type").mkdir(parents=True)  # opens, and cannot be read
    assert xwd.kind_of_host(str(tmp_path)) == "This Xen host has no settings for xendomains"


def test_the_boot_is_told_of_settings_that_end_with_a_status(host: Host) -> None:
    host.settings.write_text(f"{host.settings.read_text()}false\n")
    result = host.run()
    assert result.status == xwd.EXIT_READY
    assert result.messages == f"{host.settings} ends with status 1; xendomains goes on all the same.\n"


def test_a_file_in_place_of_a_directory_holds_no_guests(host: Host) -> None:
    host.auto.rmdir()
    host.auto.touch()
    assert host.list() == {"ready": True, "domains": []}


def test_hidden_files_do_not_count_and_backups_do(host: Host) -> None:
    host.guest("web", host.image("web"))
    (host.auto / ".gitkeep").touch()
    (host.auto / "web.cfg~").write_text('name = "old"\n')
    assert [domain["name"] for domain in host.list()["domains"]] == ["web", "old"]


def test_a_directory_that_is_a_file_system_of_its_own_has_nothing_wrong_in_it(host: Host) -> None:
    (host.auto / "lost+found").mkdir()
    (host.save / "lost+found").mkdir()
    assert host.run().messages == ""


def test_directories_that_do_not_exist_hold_no_guests(host: Host) -> None:
    host.settings.write_text("XENDOMAINS_AUTO=/nowhere\nXENDOMAINS_SAVE=/nowhere\nXENDOMAINS_RESTORE=true\n")
    assert host.list() == {"ready": True, "domains": []}
    assert host.run().status == xwd.EXIT_READY
