# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The documents say what the program does, where a change of one could leave the other behind."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MODULE, Host, Recorder, fields_of, run_quietly

import xendomains_wait_disk as xwd

ROOT = MODULE.parent
COMMAND_PAGE = ROOT / "man" / "xendomains-wait-disk.8"
SETTINGS_PAGE = ROOT / "man" / "xen-wait-disk.conf.5"
PAGES = [COMMAND_PAGE, SETTINGS_PAGE]
CONFFILE = ROOT / "etc" / "xen-wait-disk.conf"
CATALOG = ROOT / "packaging" / "systemd" / "xendomains-wait-disk.catalog"
TEXTS = [text for directory in (".", "docs", "tests", "tests/xen") for text in (ROOT / directory).glob("*.md")]
PROMISES = (ROOT / "tests" / "README.md").read_text()

needs_mandoc = pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
needs_groff = pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
needs_journalctl = pytest.mark.skipif(shutil.which("journalctl") is None, reason="systemd is not installed")


# What stands in a manual page


def plain(page: Path) -> str:
    """The source of a page, without fonts: `.BR -v ", " --verbose` is `-v, --verbose`."""

    def without_macro(line: re.Match[str]) -> str:
        words = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', line[2])]
        return (" " if len(line[1]) == 1 else "").join(words)

    text = page.read_text().replace("\\-", "-").replace("\\(aq", "'").replace("\\(dq", '"')
    return re.sub(r"^\.([BIR]{1,2}) (.*)", without_macro, re.sub(r"\\f[BIR]", "", text), flags=re.M)


def section(page: Path, title: str) -> str:
    """What stands below a heading of a page, up to the next one of the same rank or a higher."""
    found = re.search(rf'^\.S([HS]) "?{re.escape(title)}"?\n(.*?)(?=^\.S(?:H|\1) |\Z)', plain(page), re.M | re.S)
    assert found, f"{page.name} has no section {title}"
    return found[2]


def tags(text: str) -> list[str]:
    """The tags of the paragraphs."""
    return re.findall(r"^\.TP\n(.*)", text, re.M)


def example(text: str) -> Any:
    """The JSON in a part of a page."""
    return json.loads(text.partition(".EX\n")[2].partition(".EE\n")[0])


# The command line


def usage() -> str:
    """What --help prints."""
    return run_quietly(sys.executable, MODULE, "--help")


def options(text: str) -> dict[str, bool]:
    """The options in lines that begin with some, each with whether it takes a value."""
    found = {}
    for line in re.findall(r"^ *(-.*?)(?:  .*)?$", text, re.M):
        for option in line.split(", "):
            name, _, value = option.replace("=", " ").partition(" ")
            found[name] = bool(value)
    return found


def commands(text: str) -> set[str]:
    """The commands in a choice such as {wait,list} or [wait|list]."""
    (choice,) = set(re.findall(r"[{\[]([a-z]+(?:[,|][a-z]+)+)[}\]]", text))
    return set(re.split("[,|]", choice))


def test_the_page_has_every_option() -> None:
    page = "\n".join(tags(section(COMMAND_PAGE, "OPTIONS")))
    assert options(page) == options(usage()) != {}


def test_the_page_has_every_command_and_state() -> None:
    states = {state.value for state in xwd.State}
    assert set(tags(section(COMMAND_PAGE, "COMMANDS"))) == commands(usage()) | states | {"no disks"}
    assert commands(usage()) == commands(section(COMMAND_PAGE, "SYNOPSIS"))
    disks, directories = (
        set(re.findall(r"[a-z-]+", line)) - {"or"}
        for line in re.findall(r"^\.TP\nstate\n(.*)", section(COMMAND_PAGE, "list --json"), re.M)
    )
    assert disks == states - {"unreadable"}
    assert directories <= states


# Settings


def pages_defaults() -> Iterator[tuple[str, str]]:
    """Each key on the page of the settings, with the default that stands there."""
    for heading in ("Before the first section", "[paths]", "[polling]", "[ignore]", "[late]"):
        for paragraph in section(SETTINGS_PAGE, heading).split(".TP\n")[1:]:
            key, text = paragraph.split("\n", 1)
            found = re.search(r"^Defaults to[ \n](.*)\.$", text, re.M)
            assert found, f"no default for {key}"
            value = found[1] if found[1] != "empty" else ""
            yield f"{heading.strip('[]')}.{key}" if heading.startswith("[") else key, value


def shipped_defaults() -> Iterator[tuple[str, str]]:
    """Each key in the configuration as it is shipped, with the value that is commented out."""
    at = ""
    for line in CONFFILE.read_text().splitlines():
        header = re.fullmatch(r"\[(\w+)\]", line)
        if header:
            at = f"{header[1]}."
        setting = re.fullmatch(r"#(\w+) =(.*)", line)
        if setting:
            yield at + setting[1], setting[2].strip()


@pytest.mark.parametrize("defaults", [pages_defaults, shipped_defaults])
def test_every_key_and_its_default_are_told(tmp_path: Path, defaults: Callable[[], Iterator[tuple[str, str]]]) -> None:
    told = list(defaults())
    assert sorted(name for name, _ in told) == sorted(xwd.SETTINGS_KEYS)
    for name, value in told:
        at, _, key = name.rpartition(".")
        file = tmp_path / name
        file.write_text(f"[{at}]\n{key} = {value}\n" if at else f"{key} = {value}\n")
        assert xwd.read_settings(str(file)) == (xwd.Settings(), []), name


# Exit status, environment, files


def test_every_exit_status_is_told() -> None:
    statuses = {value for name, value in vars(xwd).items() if name.startswith("EXIT_")}
    assert {int(tag) for tag in tags(section(COMMAND_PAGE, "EXIT STATUS"))} == statuses
    assert {int(status) for status in re.findall(r"\b(\d) ", usage().partition("Exit status:")[2])} == statuses


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


def test_every_file_is_told() -> None:
    files = section(COMMAND_PAGE, "FILES")
    assert f"/run/{xwd.COMMAND}/last.json" in files
    for file in (xwd.CONFFILE, *xwd.Settings().xendomains, xwd.DEFAULT_AUTO, xwd.DEFAULT_SAVE):
        assert file in files


# States, reasons and JSON


def test_every_reason_for_a_device_that_cannot_be_used_is_told() -> None:
    reasons = {str(xwd.NoResponse()), xwd.UNKNOWN.reason}
    reasons.update(reason.partition(" {")[0] for *_, reason in xwd.DEVICE_STATES)
    reasons.update(re.findall(r'Problem\("([^"]+)"', inspect.getsource(xwd.check_udev)))
    assert len(reasons) > 8
    told = section(COMMAND_PAGE, "DIAGNOSTICS")
    assert [reason for reason in reasons if reason not in told] == []


def names(value: Any) -> list[str]:
    """The names in a JSON value, in their order; of what is in a list, those of the first."""
    if isinstance(value, list):
        return names(value[0]) if value else []
    if isinstance(value, dict):
        return [name for key, one in value.items() for name in (key, *names(one))]
    return []


@pytest.mark.parametrize("command", ["list", "check", "last"])
def test_the_form_of_the_json_is_told(host: Host, command: str) -> None:
    host.guest("web", "/dev/sdz")
    host.configuration("zz.cfg", "nonsense\n")
    host.save.rmdir()
    host.save.symlink_to("not there")
    host.run("--timeout", "0", RUNTIME_DIRECTORY=str(host.root))
    printed = json.loads(host.run(command, "--json", RUNTIME_DIRECTORY=str(host.root)).output)
    text = section(COMMAND_PAGE, f"{command} --json")
    assert names(printed) == names(example(text)) == tags(text)


@pytest.mark.parametrize("command", ["list", "check", "last", "start"])
def test_the_schemas_are_told(command: str) -> None:
    assert f"{command}.schema.json" in section(COMMAND_PAGE, "FILES")


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_lines_for_prometheus_work(host: Host, tmp_path: Path) -> None:
    host.guest("web", host.image("a"), host.images / "b")
    host.configuration("zz.cfg", "nonsense\n")
    host.run("--timeout", "0", RUNTIME_DIRECTORY=str(host.root))
    (script,) = re.findall(r"\.EX\n(jq .*?)\.EE", section(COMMAND_PAGE, "MONITORING"), re.S)
    script = script.replace("\\e", "\\").replace("/run/xendomains-wait-disk", str(host.root))
    script = script.replace("/var/lib/prometheus/node-exporter", str(tmp_path))
    run_quietly("sh", "-c", script)
    waited, missing, refused = (tmp_path / "xendomains_wait.prom").read_text().splitlines()
    assert re.fullmatch(r"xendomains_wait_seconds [0-9.]+", waited)
    assert (missing, refused) == ("xendomains_wait_missing 1", "xendomains_wait_refused 1")


def test_when_reminders_come_is_told() -> None:
    gaps = [xwd.FIRST_REMINDER * 2**n for n in range(5)]
    *times, last = (f"{seconds:.0f}" for seconds in itertools.accumulate(gaps))
    assert f"after {', '.join(times)} and {last} seconds" in section(COMMAND_PAGE, "DIAGNOSTICS")


def test_limits_are_told() -> None:
    text = section(COMMAND_PAGE, "How configurations are read")
    for limit in (f"{xwd.MAX_CONFIGURATION >> 10} KiB", f"{xwd.MAX_DISK_SPECIFICATION >> 10} KiB", f"{xwd.MAX_FILES} "):
        assert limit in text
    assert f"File systems get {xwd.MAX_FIRST_LOOK:.0f} seconds" in section(COMMAND_PAGE, "COMMANDS")
    assert f"more than {xwd.MAX_SETTINGS >> 10} KiB" in section(SETTINGS_PAGE, "DESCRIPTION")


# The catalog of messages


def recorded(host: Host) -> list[dict[str, str]]:
    """The messages about a disk that is missing, and a configuration that is refused."""
    host.guest("web", host.images / "not there")
    host.configuration("zz.cfg", "nonsense\n")
    clock = xwd.Clock()
    recorder = Recorder(None, clock)
    reporter = xwd.Reporter(recorder, clock, clock.now(), 60)
    found = host.watcher(clock).look(clock.now() + 60)
    reporter.report(found)
    reporter.log_end(found)
    return [fields_of(xwd.journal_entry(*message).decode()) for message in recorder.messages]


def catalog() -> dict[str, str]:
    """The entries of the catalog, by ID."""
    parts = re.split(r"^-- ([0-9a-f]{32})\n", CATALOG.read_text(), flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2]))


def test_the_catalog_has_every_message() -> None:
    assert set(catalog()) == {value for name, value in vars(xwd).items() if name.startswith("MESSAGE_")}


def test_the_catalog_uses_fields_that_messages_have(host: Host) -> None:
    by_id = {entry["MESSAGE_ID"]: entry for entry in recorded(host) if "MESSAGE_ID" in entry}
    assert set(by_id) == {xwd.MESSAGE_MISSING, xwd.MESSAGE_REFUSED, xwd.MESSAGE_SUMMARY}
    for message, text in catalog().items():
        assert set(re.findall(r"@(\w+)@", text)) <= set(by_id.get(message, ()))


def test_the_page_has_every_field_of_the_journal(host: Host) -> None:
    told = re.findall(r"(?<!\.)\b[A-Z]{2,}[A-Z_]*\b", section(COMMAND_PAGE, "Fields in the journal"))
    assert {name for entry in recorded(host) for name in entry} == set(told)


@pytest.mark.parametrize("text", catalog().values(), ids=catalog())
def test_each_entry_of_the_catalog_is_complete_and_fits_a_terminal(text: str) -> None:
    header, _, body = text.partition("\n\n")
    assert [line.split(":")[0] for line in header.splitlines()] == ["Subject", "Defined-By", "Documentation"]
    assert "What to do:" in body
    assert all(len(line) <= 80 for line in body.splitlines())


@needs_journalctl
def test_journalctl_reads_the_catalog(tmp_path: Path) -> None:
    directory = tmp_path / "usr" / "lib" / "systemd" / "catalog"
    directory.mkdir(parents=True)
    (tmp_path / "var" / "lib" / "systemd" / "catalog").mkdir(parents=True)
    shutil.copy(CATALOG, directory)
    process = subprocess.run(
        ["journalctl", f"--root={tmp_path}", "--update-catalog"], capture_output=True, text=True, check=True
    )
    assert process.stderr == ""
    listed = run_quietly("journalctl", f"--root={tmp_path}", "--list-catalog").splitlines()
    assert {line.split()[0] for line in listed} == set(catalog())


# Promises


def rows(heading: str) -> list[list[str]]:
    """The rows of the table below a heading of the README of the tests."""
    part = PROMISES.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")][2:]


def test_each_promise_is_held_by_tests_that_exist() -> None:
    code = "".join(file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
    tests = set(re.findall(r"^def (test_\w+)", code, re.M))
    scenarios = {file.stem.partition("_")[2] for file in (ROOT / "tests" / "xen").glob("test_*.py")}
    booted = set()
    for row in [*rows("Promises"), *rows("Faults")]:
        named, scenarios_named = re.findall(r"`(test_\w+)`", row[-1]), re.findall(r"\*(\w+)\*", row[-1])
        assert named or scenarios_named or "test_documentation.py" in row[-1], row
        assert set(named) <= tests
        booted.update(scenarios_named)
    assert booted == scenarios


# The texts as such


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 6 << 10


def test_beside_each_license_stands_the_holder() -> None:
    holder = "SPDX-FileCopyrightText: The xendomains-wait-disk authors"
    places = [ROOT, *(ROOT / name for name in (".ci", "bin", "man", "packaging", "tests"))]
    files = {file for place in places for file in place.glob("*" if place == ROOT else "**/*") if file.is_file()}
    for file in files:
        lines = iter(file.read_text(errors="replace").splitlines())
        if any(re.match(r"\W*SPDX-License-Identifier: ", line) for line in lines):
            assert holder in next(lines), file


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.relative_to(ROOT)))
def test_links_lead_somewhere(text: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", text.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        target = text.parent / path if path else text
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)", target.read_text(), re.M) if heading else []
        assert not heading or heading in [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings]


def test_what_packages_say_of_versions_and_changes_is_made_from_the_changelog() -> None:
    command = ROOT / "packaging" / "changelogs"
    process = subprocess.run([sys.executable, command, "--check"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@needs_mandoc
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_finds_nothing_wrong(page: Path) -> None:
    process = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True)
    assert process.stdout + process.stderr == ""


@needs_groff
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_groff_finds_nothing_wrong(page: Path) -> None:
    process = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", page], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr == ""
