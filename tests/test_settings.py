# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The settings in /etc/xen-wait-disk.conf."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from conftest import MODULE, Host, findings_text
from hypothesis import given
from hypothesis import strategies as st

import xendomains_wait_disk as xwd

SHIPPED = MODULE.parent / "etc" / "xen-wait-disk.conf"


def read(tmp_path: Path, text: str) -> tuple[xwd.Settings, str]:
    file = tmp_path / "xen-wait-disk.conf"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    settings, problems = xwd.read_settings(str(file))
    return settings, findings_text(problems)


def test_every_key_can_be_set(tmp_path: Path) -> None:
    settings, problems = read(
        tmp_path,
        """
        timeout = 1min 30s
        log_level = debug
        [paths]
        xendomains = /a, /b
        auto = "/etc/xen/auto with, comma"
        save = /var/save
        [polling]
        first = 50ms
        longest = 2
        factor = 1.5
        [ignore]
        domains = test-*, scratch
        disks = /dev/sr?
        """,
    )
    assert problems == ""
    assert settings == xwd.Settings(
        timeout=90.0,
        log_level=xwd.DEBUG,
        xendomains=("/a", "/b"),
        auto="/etc/xen/auto with, comma",
        save="/var/save",
        first=0.05,
        longest=2.0,
        factor=1.5,
        ignored_domains=("test-*", "scratch"),
        ignored_disks=("/dev/sr?",),
    )


def test_empty_list_of_files_means_the_default(tmp_path: Path) -> None:
    assert read(tmp_path, "[paths]\nxendomains =\n") == (xwd.Settings(), "")


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufefftimeout = 5\n") == (xwd.Settings(timeout=5.0), "")


def test_shipped_file_changes_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, SHIPPED.read_text()) == (xwd.Settings(), "")


def test_shipped_file_shows_every_key_at_its_default(tmp_path: Path) -> None:
    uncommented = re.sub(r"(?m)^#\s?(\w+ *=)", r"\1", SHIPPED.read_text())
    keys = set(xwd.SETTINGS_KEYS)
    assert set(keys_in(uncommented)) == keys
    assert read(tmp_path, uncommented) == (xwd.Settings(), "")


def keys_in(text: str) -> list[tuple[str, str]]:
    keys, section = [], ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif match := re.match(r"(\w+) *=", line):
            keys.append((section, match.group(1)))
    return keys


def test_missing_file_means_defaults(tmp_path: Path) -> None:
    assert xwd.read_settings(str(tmp_path / "none")) == (xwd.Settings(), [])


def test_file_named_on_the_command_line_must_exist(tmp_path: Path) -> None:
    settings, problems = xwd.read_settings(str(tmp_path / "none"), must_exist=True)
    assert settings == xwd.Settings()
    assert "none: does not exist" in findings_text(problems)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("timeout = soon", "line 1: timeout is not a time span: 'soon'"),
        ("timeout = infinity", "line 1: timeout is not a time span: 'infinity'"),
        ("timeout = -5", "line 1: timeout is not a time span: '-5'"),
        ("timeout = 3 fortnights", "line 1: timeout has the unknown unit 'fortnights'"),
        ("timeout = 1, 2", "line 1: timeout is a list: '1, 2'"),
        ("timeout = 100w", "line 1: timeout is too long: '100w' (at most 1 week)"),
        ("log_level = loud", "line 1: log_level is not a log level: 'loud'"),
        ("[polling]\nfirst = 0", "line 2: [polling] first is too short: '0'"),
        ("[polling]\nfactor = 0.5", "line 2: [polling] factor is not a number from 1 to 100: '0.5'"),
        ("[polling]\nfactor = nan", "line 2: [polling] factor is not a number from 1 to 100: 'nan'"),
        ("[polling]\nfactor = x", "line 2: [polling] factor is not a number from 1 to 100: 'x'"),
        ("[paths]\nauto = xen/auto", "line 2: [paths] auto is not an absolute path: 'xen/auto'"),
        ("[paths]\nauto = /a, /b", "line 2: [paths] auto is a list: '/a, /b'"),
        ("paths = /a", "line 1: paths is unknown and ignored"),
        ("[timeout]\nx = 1", "line 2: [timeout] x is unknown and ignored"),
        ("[polling]\n[[first]]\nx = 1", "[polling] first is unknown and ignored"),
        ("timeuot = 5", "line 1: timeuot is unknown and ignored (did you mean timeout?)"),
        (
            "[polling]\ntimeout = 5",
            "line 2: [polling] timeout is unknown and ignored (it belongs before the first section)",
        ),
        ("[colour]\nred = 1", "line 2: [colour] red is unknown and ignored (known: "),
    ],
)
def test_bad_value_is_reported_and_its_default_used(tmp_path: Path, line: str, complaint: str) -> None:
    settings, problems = read(tmp_path, f"{line}\n")
    assert settings == xwd.Settings()
    assert problems.startswith(f"{tmp_path}/xen-wait-disk.conf: ")
    assert complaint in problems


@pytest.mark.promise("A pattern in [ignore] does not compile")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[paths]\ntimeout = 5",
            "line 2: [paths] timeout is unknown and ignored (it belongs before the first section)",
        ),
        ("auto = /etc/xen/auto", "line 1: auto is unknown and ignored (it belongs under [paths])"),
        ("[pathes]\nauto = /a", "line 2: [pathes] auto is unknown and ignored (it belongs under [paths])"),
        ("[polling]\nfrist = 1s", "line 2: [polling] frist is unknown and ignored (did you mean [polling] first?)"),
        ("[polling]\n[[first]]", "[polling] first is unknown and ignored (it is a key, not a section)"),
    ],
)
def test_unknown_key_gets_its_section_or_a_similar_key_as_suggestion(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in read(tmp_path, f"{text}\n")[1]


def test_bad_value_is_reported_with_its_line_despite_comments_and_sections(tmp_path: Path) -> None:
    text = "# timeout = 1\n\ntimeout = soon\n[polling]\n# first = 1\n  first = never\n[late]\ndomains = *\n"
    _, problems = read(tmp_path, text)
    assert "line 3: timeout is not a time span" in problems
    assert "line 6: [polling] first is not a time span" in problems


def test_pattern_that_does_not_compile_is_a_bad_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fnmatch.translate", lambda pattern: f"(?s:{pattern})\\Z")  # much like Python 3.9's
    settings, problems = read(tmp_path, "[ignore]\ndomains = web, [z-a]\n")
    assert settings == xwd.Settings()
    assert "[ignore] domains is not a shell pattern: '[z-a]'" in problems


def test_bad_value_does_not_affect_the_others(tmp_path: Path) -> None:
    settings, problems = read(tmp_path, "timeout = soon\nlog_level = info\n[polling]\nlongest = 2s\n")
    assert "timeout is not a time span" in problems
    assert settings == xwd.Settings(log_level=xwd.INFO, longest=2.0)


def test_malformed_line_is_reported_and_the_rest_is_used(tmp_path: Path) -> None:
    settings, problems = read(tmp_path, "timeout 5\nlog_level = info\n")
    assert "timeout 5" in problems and "line 1" in problems.replace('"1"', "1")
    assert settings.log_level == xwd.INFO


@pytest.mark.parametrize(
    "content", ["\0\1\2\udcff\udcfe\n" * 9, "[[[", "= =\n", "a = '''", '"', "[x\n", "%(x)s = $x\n"]
)
def test_binary_or_broken_file_only_causes_messages(tmp_path: Path, content: str) -> None:
    settings, problems = read(tmp_path, content)
    assert settings == xwd.Settings()
    assert "xen-wait-disk.conf" in problems


def test_oversized_file_is_reported_and_not_read(tmp_path: Path) -> None:
    settings, problems = read(tmp_path, "timeout = 1\n" + "# \n" * xwd.MAX_SETTINGS)
    assert settings == xwd.Settings()
    assert "is too large for a configuration: more than 32768 bytes; the defaults are used." in problems


def test_overlong_line_is_reported_and_not_read(tmp_path: Path) -> None:
    settings, problems = read(tmp_path, "timeout = 1\n" + "[" * (xwd.MAX_SETTINGS_LINE + 1) + "\n")
    assert settings == xwd.Settings()
    assert "has a line of more than 4096 characters; the defaults are used." in problems
    assert read(tmp_path, "timeout = 1\n#" + "x" * (xwd.MAX_SETTINGS_LINE - 1) + "\n")[0].timeout == 1


@pytest.mark.parametrize(
    "lines",
    [
        ["[" * depth + "x" + "]" * depth for depth in range(1, 180)],
        [f"[s{number}]\nk =" for number in range(2700)],
        [f"key{number} =" for number in range(3200)],
    ],
    ids=["nested sections", "many sections", "many keys"],
)
def test_largest_allowed_file_is_read_whatever_it_contains(tmp_path: Path, lines: list[str]) -> None:
    text = "\n".join(["timeout = 1", *lines])
    assert xwd.MAX_SETTINGS * 0.9 < len(text) <= xwd.MAX_SETTINGS
    settings, problems = read(tmp_path, text)
    assert (settings.timeout, problems != "") == (1, True)


def test_file_writable_by_others_is_accepted(tmp_path: Path) -> None:
    """The file is only data: someone who can change it can make the boot wait, but nothing else."""
    conf = tmp_path / "xen-wait-disk.conf"
    conf.write_text("timeout = 1\n")
    conf.chmod(0o666)
    assert xwd.read_settings(str(conf)) == (xwd.Settings(timeout=1), [])


def test_directory_instead_of_a_file_is_reported(tmp_path: Path) -> None:
    settings, problems = xwd.read_settings(str(tmp_path))
    assert settings == xwd.Settings()
    assert "is a directory, not a regular file" in findings_text(problems)


@pytest.mark.promise("A bad setting is reported but never cancels the wait")
def test_bad_value_does_not_cancel_the_wait_at_boot(host: Host) -> None:
    host.configure("timeout = soon")
    host.guest("web", host.image("web"))
    result = host.run()
    assert result.status == xwd.EXIT_READY
    assert "timeout is not a time span: 'soon'" in result.messages


@pytest.mark.parametrize("command", ["list", "check"])
def test_bad_value_is_an_error_when_not_at_boot(host: Host, command: str) -> None:
    host.configure("timeout = soon")
    host.guest("web", host.image("web"))
    result = host.run(command)
    assert result.status == xwd.EXIT_USAGE
    assert "line 1: timeout is not a time span: 'soon'" in (result.output if command == "check" else result.messages)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("5min", 300), ("1min 30s", 90), ("1min30s", 90), ("100ms", 0.1), ("2h", 7200), ("1.5s", 1.5),
        ("500us", 0.0005), ("1d", 86400), ("1 week", 604800), (" 5 ", 5), ("0", 0), ("2 min 3", 123), ("7µs", 7e-6),
    ],
)  # fmt: skip
def test_time_spans_are_parsed_as_by_systemd(text: str, seconds: float) -> None:
    assert xwd.parse_time_span(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", " ", "s", "5 minutos", "1..5s", "five", "1e3", "5,5", "٣"])
def test_invalid_time_span_is_refused(text: str) -> None:
    with pytest.raises(xwd.ConfigError):
        xwd.parse_time_span(text)


def test_long_row_of_digits_is_refused_quickly() -> None:
    """A regular expression with backtracking would take hours."""
    with pytest.raises(xwd.ConfigError):
        xwd.parse_time_span("3" * 1_000_000 + "!")


@given(st.integers(1, 600_000))
def test_time_span_is_unchanged_after_writing_and_reading(seconds: int) -> None:
    assert xwd.parse_time_span(xwd.format_time_span(seconds)) == seconds


@given(st.text())
def test_any_text_is_either_a_time_span_or_refused(text: str) -> None:
    with contextlib.suppress(xwd.ConfigError):
        assert xwd.parse_time_span(text) >= 0
