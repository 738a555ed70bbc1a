# SPDX-License-Identifier: GPL-3.0-or-later
"""What it says, and where: journal, terminal, table, JSON, exit status."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import MODULE, Host, clean_environment, finish, wait_until

import xendomains_wait_disk as xwd


def test_json_has_exactly_the_documented_form(host: Host) -> None:
    host.guest("web", host.image("a"), host.images / "b", host.images, "backend=storage,vdev=xvdz,target=/dev/x")
    broken = host.auto / "zz.cfg"
    broken.write_text('name="zz"\ndisk=["/dev/x"\n')
    saved = host.saved("old", host.image("c"))
    assert host.list() == {
        "ready": False,
        "domains": [
            {
                "name": "old",
                "source": str(saved),
                "kind": "saved",
                "error": None,
                "disks": [disk("xvda", host.images / "c", "ready", None)],
            },
            {
                "name": "web",
                "source": str(host.auto / "web.cfg"),
                "kind": "auto",
                "error": None,
                "disks": [
                    disk("xvda", host.images / "a", "ready", None),
                    disk("xvdb", host.images / "b", "missing", "does not exist"),
                    disk("xvdc", host.images, "not-ready", "is a directory, neither a block device nor a regular file"),
                    {
                        "vdev": "xvdz",
                        "target": "/dev/x",
                        "path": None,
                        "state": "skipped",
                        "reason": "the driver domain storage holds it",
                    },
                ],
            },
            {
                "name": "zz.cfg",
                "source": str(broken),
                "kind": "auto",
                "error": "line 3: syntax error near the end of the file, expected , or ]",
                "disks": [],
            },
        ],
    }


def disk(vdev: str, path: Path, state: str, reason: str | None) -> dict[str, str | None]:
    return {"vdev": vdev, "target": str(path), "path": str(path), "state": state, "reason": reason}


def test_a_link_that_dangles_is_shown_as_something_to_wait_for(host: Host) -> None:
    (host.auto / "web.cfg").symlink_to("/nowhere/web.cfg")
    answer = host.list()
    assert answer["ready"] is False
    assert answer["domains"][0]["error"] == "is a link to /nowhere/web.cfg, which does not exist"
    assert re.search(r"^web.cfg +auto +- +\S+/web.cfg +missing +is a link to", host.run("list").output, re.M)


def test_the_table_shows_domains_disks_and_states(host: Host) -> None:
    host.guest("web", host.image("a"), host.images / "b")
    host.guest("idle")
    lines = host.run("list").output.splitlines()
    assert lines[0].split() == ["DOMAIN", "KIND", "VDEV", "DISK", "STATE", "REASON"]
    assert lines[1].split() == ["idle", "auto", "-", "-", "no", "disks"]
    assert lines[2].split() == ["web", "auto", "xvda", f"{host.images}/a", "ready"]
    assert lines[3].split() == ["web", "auto", "xvdb", f"{host.images}/b", "missing", "does", "not", "exist"]


@pytest.mark.parametrize(("present", "status"), [(True, xwd.EXIT_READY), (False, xwd.EXIT_TIMED_OUT)])
def test_list_ends_with_1_if_something_is_missing(host: Host, present: bool, status: int) -> None:
    host.guest("web", host.image("a") if present else host.images / "a")
    assert host.run("list").status == status


def test_check_finds_nothing_wrong(host: Host) -> None:
    host.guest("web", host.images / "a")
    host.guest("mail")
    result = host.run("check")
    assert result.status == xwd.EXIT_READY
    assert result.output == "Nothing is wrong in the configuration of 2 guests with 1 disk.\n"


def test_check_names_links_that_dangle_and_relative_targets(host: Host) -> None:
    (host.auto / "web.cfg").symlink_to("/nowhere")
    host.guest("mail", "vg0/mail,raw,xvda,rw")
    result = host.run("check")
    assert (result.status, result.output) == (xwd.EXIT_READY, "")
    assert "web.cfg: is a link to /nowhere, which does not exist. The boot would wait for it." in result.messages
    assert "the target 'vg0/mail' of disk xvda is relative" in result.messages


def test_check_names_what_xl_will_refuse(host: Host) -> None:
    file = host.auto / "web.cfg"
    file.write_text("name=web\n")
    result = host.run("check")
    assert result.status == xwd.EXIT_USAGE
    assert f"{file}: line 1: syntax error near 'web', expected a string, a number or [" in result.messages


@pytest.mark.parametrize(
    "arguments",
    [["--colour"], ["wait", "list"], ["--timeout", "soon"], ["--timeout", "-5"], ["--json"], ["wait", "--json"]],
)
def test_wrong_usage_ends_with_2_and_a_usage_line(host: Host, arguments: list[str]) -> None:
    result = host.run(*arguments)
    assert result.status == xwd.EXIT_USAGE
    assert result.messages.startswith("usage: xendomains-wait-disk")


def test_version(host: Host) -> None:
    result = host.run("--version")
    assert (result.status, result.output) == (0, f"xendomains-wait-disk {xwd.__version__}\n")


def test_help_names_commands_and_exit_statuses(host: Host) -> None:
    output = host.run("--help").output
    assert all(word in output for word in ("wait", "list", "check", "--timeout", "--config", "--json", "6 no settings"))


def test_a_configuration_that_xl_refuses_is_told_of_and_does_not_hold_the_boot(host: Host) -> None:
    file = host.auto / "web.cfg"
    file.write_text('name="web"\nimport os\n')
    result = host.run()
    assert result.status == xwd.EXIT_READY
    assert result.messages == (
        f"{file}: line 2: syntax error near 'os', expected = or +=. xl will not start it, and nothing is waited for.\n"
    )


LEVELS = [
    ([], {}, "", "warning"),
    (["-q"], {}, "", "err"),
    (["-v"], {}, "", "info"),
    (["-vv"], {}, "", "debug"),
    ([], {}, "log_level = err", "err"),
    ([], {}, "log_level = 6", "info"),
    ([], {"LOGLEVEL": "3"}, "log_level = debug", "err"),
    ([], {"SYSTEMD_LOG_LEVEL": "info"}, "log_level = err", "info"),
    ([], {"SYSTEMD_LOG_LEVEL": "debug", "LOGLEVEL": "3"}, "", "err"),
    (["-v"], {"LOGLEVEL": "3"}, "log_level = err", "info"),
]


@pytest.mark.parametrize(("arguments", "environment", "configuration", "level"), LEVELS)
def test_the_level_comes_from_file_environment_and_command_line(
    arguments: list[str], environment: dict[str, str], configuration: str, level: str, tmp_path: Path
) -> None:
    file = tmp_path / "conf"
    file.write_text(configuration + "\n")
    settings, _ = xwd.read_settings(str(file))
    assert xwd.log_level(settings, xwd.parse_arguments(arguments), environment) == (xwd.LOG_LEVELS[level], [])


def test_a_wrong_level_in_the_environment_is_told_of(host: Host) -> None:
    assert "$LOGLEVEL is no log level: 'loud'" in host.run(LOGLEVEL="loud").messages


def test_quiet_says_only_what_is_missing_in_the_end(host: Host) -> None:
    host.guest("web", host.images / "a")
    messages = host.run("-q", "--timeout", "1").messages
    assert "still waiting" not in messages
    assert f"{host.images}/a for web is still missing after 1s" in messages


def run_with_stderr_in(host: Host, file: Path, *arguments: str, forced_import_error: bool) -> str:
    """What the command writes to a file that it takes for the journal."""
    with file.open("wb") as stderr:
        status = os.fstat(stderr.fileno())
        program = [sys.executable, str(MODULE)]
        if forced_import_error:
            block = "import sys; sys.modules['systemd'] = None; import xendomains_wait_disk as x; x.run()"
            program = [sys.executable, "-c", block]
        environment = {**clean_environment(), "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        command = [*program, "--config", str(host.conf), *arguments]
        subprocess.run(command, stderr=stderr, env=environment, cwd=MODULE.parent, timeout=30)
    return file.read_text()


def test_under_systemd_lines_carry_their_priority(host: Host) -> None:
    host.guest("web", host.images / "a")
    text = run_with_stderr_in(host, host.root / "journal", "--timeout", "0", forced_import_error=True)
    assert text.splitlines() == [
        f"<4>still waiting for {host.images}/a for web...",
        f"<3>{host.images}/a for web is still missing: does not exist",
        "<3>xendomains starts now; these guests will probably not come up: web.",
    ]


def test_under_systemd_the_journal_gets_fields(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal_api = pytest.importorskip("systemd.journal", reason="python-systemd is not installed")
    sent = []
    monkeypatch.setattr(journal_api, "send", lambda text, **fields: sent.append((text, fields)))
    journal = xwd.Journal(xwd.WARNING, sys.stderr)
    monkeypatch.setattr(journal, "_is_journal", True)
    journal.say(xwd.WARNING, "still waiting", DISK="/dev/x", DOMAIN="web")
    fields = {"PRIORITY": "4", "SYSLOG_IDENTIFIER": "xendomains-wait-disk", "DISK": "/dev/x", "DOMAIN": "web"}
    assert sent == [("still waiting", fields)]
    assert capsys.readouterr().err == ""


def test_names_cannot_forge_messages_or_send_escapes_to_the_terminal(host: Host) -> None:
    evil = "web\n<0>all is well\x1b[2J\x9b\u202e"
    (host.auto / "web.cfg").write_text(
        f'name="{evil}"\ndisk=["/no/a\\tb\x1b]0;x\x07,raw,xvda"]\n'.replace("\n<", "\\n<")
    )
    for output in (host.run("--timeout", "0").messages, host.run("list").output, host.run("check").messages):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", output)
        assert not re.search(r"^<0>", output, re.M)
    assert r"web\n<0>all is well\x1b[2J" in host.run("list").output
    assert host.list()["domains"][0]["name"] == evil


def test_bytes_that_are_no_utf8_are_shown_as_escapes(host: Host) -> None:
    (host.auto / "web.cfg").write_bytes(b'name="b\xfcro"\ndisk=["/no/b\xfcro.img,raw,xvda"]\n')
    assert r"/no/b\xfcro.img" in host.run("list").output
    assert host.list()["domains"][0]["name"] == r"b\xfcro"
    assert r"still waiting for /no/b\xfcro.img for b\xfcro..." in host.run("--timeout", "0").messages


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1", "none"])
def test_any_locale_will_do(host: Host, locale: str) -> None:
    (host.auto / "web.cfg").write_text(f'name="büro"\ndisk=["{host.image("büro")},raw,xvda,rw"]\n', encoding="utf-8")
    assert host.run(LC_ALL=locale, LANG=locale).status == xwd.EXIT_READY
    assert json.loads(host.run("list", "--json", LC_ALL=locale).output)["ready"] is True
    assert "ready" in host.run("list", LC_ALL=locale, PYTHONIOENCODING="ascii").output


def test_a_closed_standard_error_does_not_matter(host: Host) -> None:
    host.guest("web", host.images / "a")
    command = f"exec {sys.executable} {MODULE} --config {host.conf} --timeout 1 2>&-"
    assert subprocess.run(["sh", "-c", command], timeout=30).returncode == xwd.EXIT_TIMED_OUT


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_other_closed_streams_do_not_matter(host: Host, closed: str) -> None:
    host.guest("web", host.image("a"))
    for command in ("wait", "list"):
        line = f"exec {sys.executable} {MODULE} --config {host.conf} {command} {closed}"
        result = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30)
        assert (result.returncode, result.stderr) == (xwd.EXIT_READY, "")


def test_output_that_cannot_be_written_is_told_of(host: Host) -> None:
    line = f"exec {sys.executable} {MODULE} --config {host.conf} list >/dev/full"
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30)
    assert result.returncode == xwd.EXIT_TIMED_OUT
    assert result.stderr == "xendomains-wait-disk: the output cannot be written: No space left on device.\n"


def test_a_reader_of_list_may_leave_early(host: Host) -> None:
    host.guest("web", host.image("a"))
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, str(MODULE), "--config", str(host.conf), "list"]
    result = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=30)
    os.close(theirs)
    assert (result.returncode, result.stderr) == (xwd.EXIT_READY, "")


def test_an_interrupted_list_says_nothing(host: Host) -> None:
    host.settings.write_text(f"touch {host.root}/sourced; sleep 3\n")
    process = host.start("list")
    wait_until((host.root / "sourced").exists)
    process.send_signal(signal.SIGINT)
    result = finish(process, time.monotonic())
    assert (result.status, result.output, result.messages) == (-signal.SIGINT, "", "")


def test_an_internal_error_is_one_line_and_lets_the_boot_go_on() -> None:
    program = "import xendomains_wait_disk as xwd; xwd.main = lambda: [][0]; xwd.run()"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=MODULE.parent, timeout=30)
    assert result.returncode == xwd.EXIT_TIMED_OUT
    assert result.stderr == (
        "xendomains-wait-disk: internal error, please report it: IndexError: list index out of range\n"
    )


class Terminal:
    """The command, running on a terminal."""

    def __init__(self, host: Host, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, MODULE, "--config", host.conf, *arguments], stderr=theirs, env=clean_environment()
        )
        os.close(theirs)

    def shown(self) -> str:
        """What is written to the terminal up to the end of the command."""
        shown = b""
        try:
            while data := os.read(self._ours, 4096):
                shown += data
        except OSError:
            pass  # the other side is closed
        os.close(self._ours)
        return shown.decode()


def test_on_a_terminal_the_line_is_gone_at_the_end(host: Host) -> None:
    host.guest("web", host.images / "a")
    terminal = Terminal(host, "--timeout", "1")
    assert f"\r\x1b[K{host.images}/a for web is still missing after 1s" in terminal.shown()
    assert terminal.process.wait(10) == xwd.EXIT_TIMED_OUT


def test_on_a_terminal_one_line_shows_how_things_stand(host: Host) -> None:
    host.guest("web", host.images / "a")
    terminal = Terminal(host, "--timeout", "10")
    time.sleep(1.5)
    host.image("a")
    assert terminal.process.wait(10) == xwd.EXIT_READY
    text = terminal.shown()
    assert f"still waiting for {host.images}/a for web...\r\n" in text
    assert re.search(r"\r\x1b\[K\d+s of 10s: Waiting for ", text)
    assert f"\r\x1b[Kdisk {host.images}/a found (after " in text
