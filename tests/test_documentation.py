# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The documentation lists everything the program has. The JSON schemas are covered by test_schema.py."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MODULE, run_quietly

import xendomains_wait_disk as xwd

ROOT = MODULE.parent
PAGES = sorted((ROOT / "man").glob("*.[1-9]"))
COMMAND_PAGE = ROOT / "man" / "xendomains-wait-disk.8"
SETTINGS_PAGE = ROOT / "man" / "xen-wait-disk.conf.5"
CONFFILE = ROOT / "etc" / "xen-wait-disk.conf"
UNITS = sorted((ROOT / "packaging" / "systemd").glob("*.service"))
CATALOG = ROOT / "packaging" / "systemd" / "xendomains-wait-disk.catalog"
pytestmark = pytest.mark.promise("The documentation matches the program")

TEXTS = [text for directory in (".", "docs", "tests", "tests/xen") for text in (ROOT / directory).glob("*.md")]


def plain(page: Path) -> str:
    """Return the source of a page without fonts and quotes."""
    text = page.read_text().replace("\\-", "-").replace("\\(aq", "'")
    return re.sub(r"\\f[BIR]|^\.[BIR]{1,2} |\"", "", text, flags=re.M)


def section(page: Path, title: str) -> str:
    """Return the text between a heading and the next one."""
    found = re.search(rf"^\.S[HS] {re.escape(title)}\n(.*?)(?=^\.S[HS] |\Z)", plain(page), re.M | re.S)
    assert found, f"{page.name} has no section {title}"
    return found[1]


def tags(text: str) -> list[str]:
    """Return the tags of tagged paragraphs."""
    return re.findall(r"^\.T[PQ].*\n(.*)", text, re.M)


# Commands, options, exit statuses, environment, files


def help_text(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit):
        xwd.parse_arguments([*command, "--help"])
    return capsys.readouterr().out


def options_in(lines: list[str]) -> set[str]:
    """Return the options in lines such as "-b, --boot OFFSET"."""
    return {option for line in lines for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line)}


def test_manual_has_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [help_text(capsys, *command) for command in ((), *((one,) for one in xwd.COMMANDS))]
    options = options_in([line for text in texts for line in re.findall(r"^  (-.*?)(?:  |$)", text, re.M)])
    assert options_in([tag for tag in tags(plain(COMMAND_PAGE)) if tag.startswith("-")]) == options


def test_manual_has_every_command_and_state() -> None:
    page = plain(COMMAND_PAGE)
    named = {tag.split()[0] for tag in tags(page)} | set(re.findall(r"^\.S[HS] (\w+)", page, re.M))
    assert {*xwd.COMMANDS, *(state.value for state in xwd.State)} <= named


def test_every_exit_status_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    statuses = {value for name, value in vars(xwd).items() if name.startswith("EXIT_")}
    assert {int(tag) for tag in tags(section(COMMAND_PAGE, "EXIT STATUS"))} == statuses
    in_help = re.findall(r"\b(\d) ", help_text(capsys).partition("Exit status:")[2])
    assert {int(status) for status in in_help} == statuses


def test_every_environment_variable_is_explained() -> None:
    variables = set(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", MODULE.read_text())) - {"TERM"}
    variables |= set(re.findall(r'"([A-Z_]+)"', inspect.getsource(xwd.log_level)))
    assert set(tags(section(COMMAND_PAGE, "ENVIRONMENT"))) == variables


def test_every_file_is_listed() -> None:
    files = section(COMMAND_PAGE, "FILES")
    for file in (xwd.CONFFILE, *xwd.Settings().xendomains, xwd.DEFAULT_AUTO, xwd.DEFAULT_SAVE, xwd.LAST_WAIT):
        assert file.replace("/nowhere", f"/run/{xwd.COMMAND}") in files


def settings_in(text: str, section_line: str, key_line: str) -> Iterator[tuple[str, str]]:
    """Yield the section and the name of each key."""
    at = ""
    for line in text.splitlines():
        if found := re.fullmatch(section_line, line):
            at = found[1]
        elif found := re.fullmatch(key_line, line):
            yield at, found[1]


def test_shipped_configuration_has_every_key_at_its_default(tmp_path: Path) -> None:
    assert set(settings_in(CONFFILE.read_text(), r"\[(\w+)\]", r"#(\w+) =.*")) == set(xwd.SETTINGS_KEYS)
    file = tmp_path / "all"
    file.write_text(re.sub(r"^#(\w+ =)", r"\1", CONFFILE.read_text(), flags=re.M))
    assert xwd.read_settings(str(file)) == (xwd.Settings(), [])


def test_manual_has_every_key() -> None:
    text = section(SETTINGS_PAGE, "OPTIONS") + plain(SETTINGS_PAGE).partition(".SH OPTIONS\n")[2]
    text = text.partition("\n.SH ")[0].replace(".TP\n", ".TP ")
    assert set(settings_in(text, r"\.SS \[(\w+)\]", r"\.TP (\w+).*")) == set(xwd.SETTINGS_KEYS)


# Reasons, messages, units


def test_every_reason_for_a_device_that_cannot_be_used_is_explained() -> None:
    reasons = {str(xwd.NoResponse()), xwd.UNKNOWN.reason}
    reasons.update(reason.partition(" {")[0] for *_, reason in xwd.DEVICE_STATES)
    reasons.update(re.findall(r'Problem\("([^"]+)"', inspect.getsource(xwd.check_udev)))
    pages = " ".join(" ".join(plain(page).split()) for page in PAGES)
    assert [reason for reason in sorted(reasons) if reason not in pages] == []


def catalog() -> dict[str, str]:
    """Return the entries of the catalog by ID."""
    parts = re.split(r"^-- ([0-9a-f]{32})\n", CATALOG.read_text(), flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2]))


def test_catalog_has_every_message() -> None:
    assert set(catalog()) == {value for name, value in vars(xwd).items() if name.startswith("MESSAGE_")}


def test_catalog_uses_fields_that_messages_have() -> None:
    for field in set(re.findall(r"@(\w+)@", CATALOG.read_text())):
        assert f'"{field}": ' in MODULE.read_text(), field


@pytest.mark.parametrize("text", catalog().values(), ids=catalog())
def test_each_entry_of_the_catalog_is_complete_and_fits_a_terminal(text: str) -> None:
    header, _, body = text.partition("\n\n")
    assert [line.split(":")[0] for line in header.splitlines()] == ["Subject", "Defined-By", "Documentation"]
    assert all(len(line) <= 80 for line in body.splitlines())


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="systemd is not installed")
def test_journalctl_reads_the_catalog(tmp_path: Path) -> None:
    directory = tmp_path / "usr" / "lib" / "systemd" / "catalog"
    directory.mkdir(parents=True)
    (tmp_path / "var" / "lib" / "systemd" / "catalog").mkdir(parents=True)
    shutil.copy(CATALOG, directory)
    run_quietly("journalctl", f"--root={tmp_path}", "--update-catalog")
    listed = run_quietly("journalctl", f"--root={tmp_path}", "--list-catalog").splitlines()
    assert {line.split()[0] for line in listed} == set(catalog())


def test_units_and_catalog_name_manual_pages_that_exist() -> None:
    named = {
        page for file in (*UNITS, CATALOG) for page in re.findall(r"man:(xen[\w.]*-[\w.-]+\(\d\))", file.read_text())
    }
    assert named and named <= {f"{page.stem}({page.suffix[1:]})" for page in PAGES}


def test_every_unit_has_a_manual_page() -> None:
    names = " ".join(section(page, "NAME") for page in PAGES)
    assert [unit.name for unit in UNITS if unit.name not in names] == []


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_finds_nothing_wrong(page: Path) -> None:
    process = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True)
    assert process.stdout + process.stderr == ""


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.relative_to(ROOT)))
def test_links_have_a_target(text: Path) -> None:
    for path, heading in re.findall(r"\]\((?![a-z]+:)([^)#]*)#?([^)]*)\)", text.read_text()):
        target = text.parent / path if path else text
        assert target.exists(), path
        headings = re.findall(r"^#+ (.*)", target.read_text(), re.M) if heading else []
        assert not heading or heading in [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings]


def test_each_license_names_the_copyright_holder() -> None:
    places = (ROOT / name for name in (".ci", "Makefile", "bin", "docs", "man", "packaging", "tests"))
    files = run_quietly("grep", "-rlE", "--exclude-dir=__pycache__", r"^\W*SPDX-License-Identifier: ", MODULE, *places)
    holder = "SPDX-FileCopyrightText: The xendomains-wait-disk authors"
    assert [file for file in files.splitlines() if holder not in Path(file).read_text()] == []


def test_packages_have_the_versions_and_changes_of_the_changelog() -> None:
    run_quietly(sys.executable, ROOT / "packaging" / "changelogs", "--check")
