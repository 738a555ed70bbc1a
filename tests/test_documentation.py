# SPDX-License-Identifier: GPL-3.0-or-later
"""Manual pages, README, completion, catalogue and shipped configuration say what the code does."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MODULE, Host, run_quietly

import xendomains_wait_disk as xwd

ROOT = MODULE.parent
COMMAND_PAGE = ROOT / "man" / "xendomains-wait-disk.8"
SETTINGS_PAGE = ROOT / "man" / "xen-wait-disk.conf.5"
PAGES = [COMMAND_PAGE, SETTINGS_PAGE]
README = (ROOT / "README.md").read_text()
SHIPPED = (ROOT / "etc" / "xen-wait-disk.conf").read_text()
COMPLETION = ROOT / "packaging" / "bash-completion" / "xendomains-wait-disk"
CATALOGUE = ROOT / "packaging" / "systemd" / "xendomains-wait-disk.catalog"

COMMANDS = {"wait", "list", "check"}
KEYS = {f"{section}.{key}".lstrip(".") for section, key, *_ in xwd.SETTINGS_KEYS}
STATES = {state.value for state in xwd.State}

needs_mandoc = pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
needs_man = pytest.mark.skipif(shutil.which("groff") is None or shutil.which("man") is None, reason="no man-db, groff")
needs_journalctl = pytest.mark.skipif(shutil.which("journalctl") is None, reason="systemd is not installed")


# What stands where


def roff(page: Path) -> str:
    """The source of a page, with plain hyphens, quotes and fonts."""
    text = page.read_text().replace("\\-", "-").replace("\\(aq", "'").replace("\\(dq", '"')
    return re.sub(r"\\f[BIR]", "", text)


def section(page: Path, title: str) -> str:
    """What stands below a heading of a page, up to the next one of the same rank or a higher."""
    text = roff(page)
    found = re.search(rf'^\.(SH|SS) "?{re.escape(title)}"?\n', text, re.M)
    assert found, f"{page.name} has no section {title}"
    rest = text[found.end() :]
    return re.split(r"^\.SH " if found[1] == "SH" else r"^\.S[HS] ", rest, maxsplit=1, flags=re.M)[0]


def tags(text: str, depth: int = 0) -> list[str]:
    """The tags of the paragraphs (.TP) at this depth of indentation (.RS)."""
    found = []
    level = 0
    lines = text.splitlines()
    for line, following in zip(lines, lines[1:]):
        level += line.startswith(".RS")
        level -= line.startswith(".RE")
        if line == ".TP" and level == depth:
            found.append(without_macro(following))
    return found


def without_macro(line: str) -> str:
    """The text of a line in bold or italics: `.BR -v ", " --verbose` is `-v, --verbose`."""
    macro, _, rest = line.partition(" ")
    if not macro.startswith("."):
        return line
    words = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', rest)]
    return ("" if len(macro) == 3 else " ").join(words)


def example(text: str) -> str:
    """The first example (.EX) in a part of a page."""
    return text.split(".EX\n")[1].split(".EE\n")[0]


def readme_table(heading: str) -> list[list[str]]:
    """The rows of the table in the README whose first cell of all is this; cells are without blanks around them."""
    table = README.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def readme_json() -> Any:
    """The example in the README of what list --json prints."""
    text = README.split("`list --json` prints:", 1)[1].split("`kind` is", 1)[0]
    return json.loads(text)


def complete(*words: str, directory: Path = ROOT) -> list[str]:
    """What bash offers for the last of these words."""
    line = " ".join(words)
    script = f'. "{COMPLETION}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _xendomains_wait_disk' + (
        '; (( ${#COMPREPLY[@]} )) && printf "%s\\n" "${COMPREPLY[@]}"; complete -p xendomains-wait-disk >&2'
    )
    process = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", xwd.COMMAND, *words],
        capture_output=True, text=True, cwd=directory, check=True,
    )  # fmt: skip
    assert process.stderr == "complete -F _xendomains_wait_disk xendomains-wait-disk\n", line
    return process.stdout.splitlines()


# The command line


def options() -> dict[str, bool]:
    """The options of the command, each with whether it takes a value."""
    parser = xwd.argument_parser()
    return {name: action.nargs is None for action in parser._actions for name in action.option_strings}


def test_commands_are_those_of_the_parser() -> None:
    (choices,) = (set(action.choices) for action in xwd.argument_parser()._actions if action.choices)
    assert choices == COMMANDS


def test_the_page_has_every_option() -> None:
    documented: dict[str, bool] = {}
    for tag in tags(section(COMMAND_PAGE, "OPTIONS").split("\n.SS ")[0]):
        for option in tag.split(", "):
            name, equals, _ = option.partition("=")
            documented[name.strip()] = bool(equals)
    assert documented == options()


def test_the_page_has_every_command() -> None:
    commands = tags(section(COMMAND_PAGE, "COMMANDS"))
    assert set(commands) == COMMANDS
    assert f".RB [ {' | '.join(commands)} ]\n" in section(COMMAND_PAGE, "SYNOPSIS")


def test_the_readme_has_every_option_and_command() -> None:
    parser = xwd.argument_parser()
    spans = " ".join(re.findall(r"`([^`]+)`", README)).split()
    for action in parser._actions:
        if action.option_strings:
            assert set(action.option_strings) & set(spans), action.option_strings
    assert "`xendomains-wait-disk` without a command waits" in README
    assert COMMANDS - {"wait"} <= set(spans)


def test_completion_has_every_option_and_command() -> None:
    assert sorted(complete("-")) == sorted(options())
    assert sorted(complete("")) == sorted(COMMANDS)


def test_completion_completes_what_was_begun() -> None:
    assert complete("--ti") == ["--timeout"]
    assert complete("--json", "l") == ["list"]
    assert complete("list", "--j") == ["--json"]


def test_completion_offers_one_command_only() -> None:
    assert complete("list", "") == []


def test_completion_offers_files_for_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "a file.conf").touch()
    assert complete("--config", "a", directory=tmp_path) == ["a file.conf"]
    assert complete("--config", "=", directory=tmp_path) == ["a file.conf"]
    assert complete("--config", "=", "a", directory=tmp_path) == ["a file.conf"]


def test_completion_offers_times_that_are_times() -> None:
    offered = complete("--timeout", "")
    assert offered and all(xwd.parse_time_span(time_span) >= 0 for time_span in offered)


# Settings


def pages_defaults() -> Iterator[tuple[str, str]]:
    """Each key on the page of the settings, with the default that stands there."""
    for title, text in re.findall(r'^\.SS "?([^\n"]+)"?\n(.*?)(?=^\.S[HS] )', roff(SETTINGS_PAGE), re.M | re.S):
        if not title.startswith(("[", "Before")):
            continue
        for paragraph in text.split(".TP\n")[1:]:
            key = without_macro(paragraph.splitlines()[0])
            found = re.search(r"^Defaults to(?: empty|\n\.BR (?:\"([^\"]*)\"|(\S+)) )\.$", paragraph, re.M)
            assert found, f"no default for {key}"
            yield f"{title.strip('[]')}.{key}" if title.startswith("[") else key, found[1] or found[2] or ""


def readmes_defaults() -> Iterator[tuple[str, str]]:
    """Each key in the README, with the default that stands there."""
    at = ""
    for cells in readme_table("key | default"):
        keys = re.findall(r"`([^`]+)`", cells[0])
        if keys[0].startswith("["):
            at = f"{keys.pop(0)[1:-1]}."
        values = re.findall(r"`([^`]+)`", cells[1])
        if cells[1] == "empty":
            values = [""] * len(keys)
        elif len(keys) == 1:
            values = [", ".join(values)]
        assert len(keys) == len(values), cells
        yield from zip([at + key for key in keys], values)


def shipped_defaults() -> Iterator[tuple[str, str]]:
    """Each key in the configuration as it is shipped, with the value that is commented out."""
    at = ""
    for line in SHIPPED.splitlines():
        header = re.fullmatch(r"\[(\w+)\]", line)
        if header:
            at = f"{header[1]}."
        setting = re.fullmatch(r"#(\w+) =(.*)", line)
        if setting:
            yield at + setting[1], setting[2].strip()


@pytest.mark.parametrize("defaults", [pages_defaults, readmes_defaults, shipped_defaults])
def test_every_key_and_its_default_are_told(tmp_path: Path, defaults: Callable[[], Iterator[tuple[str, str]]]) -> None:
    told = list(defaults())
    assert sorted(name for name, _ in told) == sorted(KEYS)
    for name, value in told:
        at, _, key = name.rpartition(".")
        file = tmp_path / name
        file.write_text(f"[{at}]\n{key} = {value}\n" if at else f"{key} = {value}\n")
        assert xwd.read_settings(str(file)) == (xwd.Settings(), []), name


def test_the_page_has_every_level_and_unit() -> None:
    levels = section(SETTINGS_PAGE, "OPTIONS").split("\n.B log_level\n")[1].split("One of\n")[1].splitlines()[0]
    assert set(re.findall(r"[a-z]+", levels.replace('" and "', " "))) == set(xwd.LOG_LEVELS)
    units = section(SETTINGS_PAGE, "DESCRIPTION").split("The units are\n.BR ")[1].splitlines()[0]
    seconds = {xwd.TIME_UNITS[unit] for unit in re.findall(r"[a-z]+", units.replace('" and "', " "))}
    assert seconds == set(xwd.TIME_UNITS.values())


# Exit status, environment, files


def exit_statuses() -> set[int]:
    return {value for name, value in vars(xwd).items() if name.startswith("EXIT_")}


def test_every_exit_status_is_told() -> None:
    assert {int(tag) for tag in tags(section(COMMAND_PAGE, "EXIT STATUS"))} == exit_statuses()
    assert {int(cells[0]) for cells in readme_table("exit status")} == exit_statuses()
    epilog = xwd.argument_parser().epilog or ""
    assert {int(status) for status in re.findall(r"\b(\d) ", epilog)} == exit_statuses()


def test_every_variable_of_the_environment_is_told() -> None:
    class Recorder(dict[str, str]):
        """Notes what is asked for."""

        asked: set[str] = set()  # noqa: RUF012

        def get(self, name: str, default: Any = None) -> Any:
            self.asked.add(name)
            return default

    xwd.log_level(xwd.Settings(), xwd.Options(), Recorder())
    others = set(re.findall(r"os\.environ(?:\.get\(|\[)\"(\w+)\"", MODULE.read_text()))
    assert set(tags(section(COMMAND_PAGE, "ENVIRONMENT"))) == Recorder.asked | others
    assert all(f"`{name}`" in README for name in Recorder.asked)


def test_every_file_is_told() -> None:
    files = section(COMMAND_PAGE, "FILES")
    for file in (xwd.CONFFILE, *xwd.Settings().xendomains, xwd.DEFAULT_AUTO, xwd.DEFAULT_SAVE):
        assert file in files


# Promises


def test_each_promise_is_held_by_tests_that_exist() -> None:
    promises = README.partition("## What it promises\n")[2].partition("\n## ")[0]
    code = "".join(file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
    tests = set(re.findall(r"^def (test_\w+)", code, flags=re.M))
    scenarios = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "xen").glob("test_*.py")}
    for row in [line for line in promises.splitlines() if line.startswith("| ")][2:]:
        held_by = row.split(" | ")[-1]
        named, booted = set(re.findall(r"`(test_\w+)`", held_by)), set(re.findall(r"\*(\w+)\*", held_by))
        assert named | booted
        assert named <= tests
        assert booted <= scenarios
    assert all(f"*{scenario}*" in promises for scenario in scenarios)


# States and JSON


def test_every_state_is_told() -> None:
    assert set(tags(section(COMMAND_PAGE, "COMMANDS"), depth=1)) == {*STATES, "refused", "no disks"}
    assert {cells[0].strip("`") for cells in readme_table("state")} == {*STATES, "refused"}
    json_states = section(COMMAND_PAGE, "The form of list --json").split("\n.B state\n.BR ")[1].splitlines()[0]
    assert set(re.findall(r"[a-z-]+", json_states.replace('" or "', " "))) == STATES


def form(value: Any) -> Any:
    """The names in a JSON value, without what they stand for."""
    if isinstance(value, dict):
        return {name: form(one) for name, one in value.items()}
    return [form(one) for one in value[:1]] if isinstance(value, list) else None


def test_the_form_of_the_json_is_told(host: Host) -> None:
    host.guest("web", host.images / "not there")
    printed = form(host.list())
    text = section(COMMAND_PAGE, "The form of list --json")
    assert form(json.loads(example(text))) == printed
    assert form(readme_json()) == printed
    names = {*printed, *printed["domains"][0], *printed["domains"][0]["disks"][0]}
    assert set(tags(text)) == names - {"domains", "disks"}


# Messages


class Recorder(xwd.Journal):
    """Keeps the fields of the messages that have an ID."""

    def __init__(self) -> None:
        super().__init__(xwd.DEBUG, None)
        self.fields: dict[str, set[str]] = {}

    def say_all(self, level: int, messages: Iterable[xwd.Message]) -> None:
        for _, fields in messages:
            if "MESSAGE_ID" in fields:
                self.fields[fields["MESSAGE_ID"]] = set(fields) - {"MESSAGE_ID"}


def catalogue() -> dict[str, str]:
    """The entries of the catalogue, by ID."""
    parts = re.split(r"^-- ([0-9a-f]{32})\n", CATALOGUE.read_text(), flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2]))


def test_the_catalogue_has_every_message() -> None:
    assert set(catalogue()) == {value for name, value in vars(xwd).items() if name.startswith("MESSAGE_")}


def test_the_catalogue_uses_fields_that_messages_have(host: Host) -> None:
    host.guest("web", host.images / "not there")
    (host.auto / "zz.cfg").write_text("nonsense\n")
    found = xwd.survey(
        xwd.Xendomains("", str(host.auto)), xwd.Settings(), xwd.Kernel(), xwd.Scouts(), xwd.Survey(),
        time.monotonic() + 10,
    )  # fmt: skip
    recorder = Recorder()
    herald = xwd.Herald(recorder, time.monotonic(), 0)
    herald.tell(found)
    herald.tell_timeout()
    assert set(recorder.fields) == {xwd.MESSAGE_MISSING, xwd.MESSAGE_REFUSED}
    for message, text in catalogue().items():
        assert set(re.findall(r"@(\w+)@", text)) <= recorder.fields.get(message, set())


@pytest.mark.parametrize("text", catalogue().values(), ids=catalogue())
def test_each_entry_of_the_catalogue_is_complete_and_fits_a_terminal(text: str) -> None:
    header, _, body = text.partition("\n\n")
    assert [line.split(":")[0] for line in header.splitlines()] == ["Subject", "Defined-By", "Documentation"]
    assert "What to do:" in body
    assert all(len(line) <= 80 for line in body.splitlines())


@needs_journalctl
def test_journalctl_reads_the_catalogue(tmp_path: Path) -> None:
    directory = tmp_path / "usr" / "lib" / "systemd" / "catalog"
    directory.mkdir(parents=True)
    (tmp_path / "var" / "lib" / "systemd" / "catalog").mkdir(parents=True)
    shutil.copy(CATALOGUE, directory)
    process = subprocess.run(
        ["journalctl", f"--root={tmp_path}", "--update-catalog"], capture_output=True, text=True, check=True
    )
    assert process.stderr == ""
    listed = run_quietly("journalctl", f"--root={tmp_path}", "--list-catalog").splitlines()
    assert {line.split()[0] for line in listed} == set(catalogue())


def test_when_reminders_come_is_told() -> None:
    gaps = [xwd.Herald.FIRST_REMINDER * 2**n for n in range(5)]
    *times, last = (f"{seconds:.0f}" for seconds in itertools.accumulate(gaps))
    sentence = f"after {', '.join(times)} and {last} seconds"
    assert sentence in README
    assert sentence in section(COMMAND_PAGE, "What it says")


def test_the_page_says_how_long_a_look_takes() -> None:
    assert f"File systems get {xwd.ONE_LOOK:.0f} seconds" in section(COMMAND_PAGE, "COMMANDS")


# The pages as such


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_in_order(page: Path) -> None:
    title = roff(page).split("\n.TH ")[1].splitlines()[0]
    name, number = page.name.rsplit(".", 1)
    assert title.startswith(f"{name.upper()} {number} ")
    assert f'"{xwd.COMMAND} {xwd.__version__}"' in title
    wanted = ["NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES"]
    wanted += ["EXAMPLES", "TROUBLESHOOTING", "SEE ALSO"]
    found = re.findall(r'^\.SH "?([A-Z ]+)', roff(page), re.M)
    assert found == ([one for one in wanted if one in found] if number == "5" else wanted)


@needs_mandoc
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_finds_nothing_wrong(page: Path) -> None:
    process = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True)
    assert process.stdout + process.stderr == ""


@needs_man
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_groff_finds_nothing_wrong(page: Path) -> None:
    process = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", page], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr == ""
