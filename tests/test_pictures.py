# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The output of list, check and last on a terminal with a given width, and in a pipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import FakeClock, Host, program_with

import xendomains_wait_disk as xwd

COLOURS = r"\x1b\[[0-9;]*m"


def without_colours(shown: str) -> str:
    return re.sub(COLOURS, "", shown)


def blocks(shown: str) -> list[str]:
    """Split the output at empty lines: the causes, the table, the footer."""
    return without_colours(shown).rstrip("\n").split("\n\n")


@pytest.fixture
def incident(host: Host) -> Host:
    """A host with a ZFS pool that is not imported, on which most guests have their disks, and other problems."""
    for number in range(1, 6):
        host.guest(f"web-{number}", f"/dev/zvol/tank/web-{number}")
    host.guest("db", host.image("db"), host.images / "data")
    host.guest("fine", host.image("fine"))
    host.configuration("broken", "what is this\n")
    return host


# Causes


@pytest.mark.promise("The reason names the layer at fault, with a command that helps")
def test_most_frequent_cause_comes_first_with_command_count_and_first_names(incident: Host) -> None:
    shown = incident.show("list", columns=200)
    assert blocks(shown)[0].splitlines() == [
        "[1] ZFS pool tank is not imported",
        "    try: zpool import tank",
        "    5 disks of 5 guests: /dev/zvol/tank/web-1 (web-1), /dev/zvol/tank/web-2 (web-2), "
        "/dev/zvol/tank/web-3 (web-3), 2 more",
    ]


def test_cause_of_one_disk_names_it(incident: Host) -> None:
    shown = without_colours(incident.show("list", columns=200))
    assert re.search(rf"^\[\d\] does not exist\n    {incident.images}/data \(db\)$", shown, re.M)


def test_table_names_missing_disks_of_a_guest_and_number_of_the_cause(incident: Host) -> None:
    *causes, table, _ = blocks(incident.show("list", columns=200))
    rows = {row.split()[0]: re.split("  +", row, maxsplit=3)[1:] for row in table.splitlines()}
    assert rows["GUEST"] == ["START", "STATE", "CAUSE"]
    assert rows["web-3"] == ["create", "waiting", "xvda: see [1]"]
    assert rows["fine"] == ["create", "ready"]
    (broken,) = (cause[:3] for cause in causes if "syntax error" in cause)
    (data,) = (cause[:3] for cause in causes if "/data (db)" in cause)
    assert rows["broken"] == ["create", "refused", f"see {broken}"]
    assert rows["db"] == ["create", "waiting", f"xvdb: see {data}"]


def test_guest_with_disks_missing_for_two_reasons_has_both_numbers(host: Host) -> None:
    host.guest("web", "/dev/zvol/tank/a", host.images / "b", "/dev/zvol/tank/c")
    *_, table, _ = blocks(host.show("list"))
    assert table.splitlines()[1].split(maxsplit=3)[3] == "xvda, xvdc: see [1]; xvdb: see [2]"


def test_table_and_footer_are_shown_without_problems(host: Host) -> None:
    host.guest("web", host.image("a"))
    table, footer = blocks(host.show("list", columns=500))
    assert table.splitlines() == ["GUEST  START   STATE  CAUSE", "web    create  ready"]
    assert footer == f"1 guest: 1 ready; read from {host.auto} and {host.save} (settings: {host.settings})."


def test_footer_names_the_directories_read_if_no_guest_starts_at_boot(host: Host) -> None:
    footer = f"0 guests; read from {host.auto} and {host.save} (settings: {host.settings})."
    assert host.show("list", columns=500) == f"{footer}\n"


def test_footer_counts_guests_by_state_and_gives_the_start_command(incident: Host) -> None:
    footer = blocks(incident.show("list", columns=500))[-1].splitlines()
    assert footer[0].startswith("8 guests: 1 refused, 6 waiting for disks, 1 ready; read from ")
    assert footer[1:] == ["Once the disks are ready, start them with:", "    xendomains-wait-disk start"]


def test_footer_names_the_service_that_starts_guests_later(
    incident: Host, tmp_path_factory: pytest.TempPathFactory
) -> None:
    units = tmp_path_factory.mktemp("run") / "systemd" / "units"
    units.mkdir(parents=True)
    (units / f"invocation:{xwd.LATE_SERVICE}").symlink_to("c0ffee")
    program = program_with(f"xwd.RUN = '{units.parents[1]}'")
    footer = blocks(incident.show("list", columns=500, program=program))[-1].splitlines()
    assert (
        footer[1]
        == "xendomains-late.service will start db, web-1, web-2, web-3, web-4, web-5 once the disks are ready."
    )


def test_problems_option_shows_guests_that_are_not_ready_and_counts_all(incident: Host) -> None:
    *_, table, footer = blocks(incident.show("list", "--problems", columns=500))
    assert "fine" not in table and "web-1" in table
    assert footer.startswith("8 guests: ")


def test_problems_option_shows_only_the_footer_without_problems(host: Host) -> None:
    host.guest("web", host.image("a"))
    assert host.show("list", "--problems", columns=500).startswith("1 guest: 1 ready; read from ")


def test_problems_option_also_applies_in_a_pipe_and_to_json(incident: Host) -> None:
    names = [line.split()[0] for line in incident.run("list", "--problems").output.splitlines()[1:]]
    assert sorted(names) == ["broken", "db", "db", "web-1", "web-2", "web-3", "web-4", "web-5"]
    assert '"name": "fine"' not in incident.run("list", "--problems", "--json").output


# Widths

LONG = "a-name-as-long-as-names-of-guests-may-be-" * 3


@pytest.fixture
def wide(incident: Host) -> Host:
    """The same host with long names and wide characters."""
    directory = incident.images / "日本語のディレクトリ" / LONG
    incident.guest("日本語の仮想マシン", directory / "ディスク", incident.image("ある"))
    incident.guest(LONG, "/dev/zvol/tank/long", directory / LONG)
    incident.guest("bu\u0308ro", *(directory / f"{LONG}{number}" for number in range(5)))  # u and a diaeresis
    return incident


ARGUMENTS = [["list"], ["list", "-v"], ["list", "--problems"], ["list", "--tree"], ["check"], ["last"]]


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=" ".join)
def test_no_line_is_wider_than_the_terminal(wide: Host, arguments: list[str], columns: int) -> None:
    wide.run("--timeout", "0", RUNTIME_DIRECTORY=str(wide.root))
    shown = wide.show(*arguments, columns=columns, RUNTIME_DIRECTORY=str(wide.root))
    lines = without_colours(shown).splitlines()
    assert len(lines) >= 10
    assert [line for line in lines if xwd.display_width(line) > columns] == []


def test_table_columns_are_aligned_after_wide_characters(wide: Host) -> None:
    *_, table, _ = blocks(wide.show("list", "--problems", columns=200))
    starts = {xwd.display_width(line[: match.start()]) for line in table.splitlines() if (match := STATES.search(line))}
    assert len(table.splitlines()) > 8 and len(starts) == 1


STATES = re.compile(r"(?<=  )(STATE|waiting|refused)\b")


def test_shortened_name_keeps_its_beginning_and_end(host: Host) -> None:
    host.guest(LONG, host.image("a"))
    (row,) = (line for line in host.show("list").splitlines() if "create" in line)
    assert re.match(r"a-name-as-long.*….*may-be- +create", row)


def test_long_reason_is_wrapped_within_its_column(host: Host) -> None:
    host.guest("web", "/dev/zvol/a-pool-with-a-long-name-that-nobody-has-imported/web")
    _, first, *more, command = without_colours(host.show("list", "-v")).splitlines()
    assert more and {len(line) - len(line.lstrip()) for line in more} == {first.index("ZFS pool")}
    assert command.lstrip() == "try: zpool import a-pool-with-a-long-name-that-nobody-has-imported"


@pytest.mark.parametrize("arguments", [["list"], ["list", "-v"], ["list", "--tree"], ["check"]], ids=" ".join)
@pytest.mark.parametrize("columns", [60, 80, 100, 120])
def test_command_is_never_wrapped(host: Host, arguments: list[str], columns: int) -> None:
    host.guest("web", "/dev/zvol/a-pool-with-a-long-name/web")
    lines = without_colours(host.show(*arguments, columns=columns)).splitlines()
    assert any(line.endswith(": zpool import a-pool-with-a-long-name") for line in lines)


@pytest.mark.parametrize(
    ("text", "columns"),
    [("web", 3), ("日本語", 6), ("ﾊﾝｶｸ", 4), ("ｗｅｂ", 6), ("bu\u0308ro", 4), ("größe", 5), ("…", 1)],
)
def test_text_width_is_measured_in_terminal_columns(text: str, columns: int) -> None:
    assert xwd.display_width(text) == columns


def test_causes_that_differ_only_in_names_are_one_block_and_the_table_names_the_paths(host: Host) -> None:
    for number in range(5):
        host.guest(f"web-{number}", f"/dev/drbd/by-res/r{number}/0")
    causes, table, _ = blocks(host.show("list", columns=200))
    assert causes.splitlines()[0].startswith("[1] no DRBD resource r0 in ")
    assert causes.splitlines()[0].endswith(" (4 more like this)")
    assert [line.split(maxsplit=3)[3] for line in table.splitlines()[1:]] == [
        f"/dev/drbd/by-res/r{number}/0: see [1]" for number in range(5)
    ]


def test_causes_of_many_disks_are_separate_blocks_each_with_its_command(host: Host) -> None:
    for pool in range(5):
        host.guest(f"web-{pool}", *(f"/dev/zvol/tank{pool}/disk{number}" for number in range(4)))
    shown = host.show("list", columns=200)
    assert "more like this" not in shown
    assert [f"try: zpool import tank{pool}" in shown for pool in range(5)] == [True] * 5


def test_few_similar_causes_keep_the_order_of_the_guests(host: Host) -> None:
    for name, path in (("a", "/dev/zvol/one/a"), ("b", "/nowhere/b"), ("c", "/dev/zvol/two/c")):
        host.guest(name, path)
    causes = [block.splitlines()[0] for block in blocks(host.show("list", columns=200)) if block.startswith("[")]
    assert [re.sub(" does not .*| is not .*", "", cause) for cause in causes] == [
        "[1] ZFS pool one",
        "[2]",
        "[3] ZFS pool two",
    ]


# Colours


def test_state_is_always_a_word_and_colour_is_only_added(incident: Host) -> None:
    coloured, plain = incident.show("list"), incident.show("list", NO_COLOR="1")
    assert re.search(rf"{COLOURS}waiting{COLOURS}", coloured)
    assert without_colours(coloured) == plain


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}], ids=str)
@pytest.mark.parametrize("command", ["list", "check"])
def test_colours_can_be_turned_off(incident: Host, command: str, environment: dict[str, Any]) -> None:
    shown = incident.show(command, **environment)
    assert "\x1b" not in shown
    assert "ZFS pool tank is not imported" in shown


def test_pipe_gets_one_line_per_disk_with_full_reason_and_no_colours(wide: Host) -> None:
    output = wide.run("list", TERM="xterm", COLUMNS="80").output
    head, *lines = output.splitlines()
    assert head.split() == ["GUEST", "START", "VDEV", "DISK", "STATE", "REASON"]
    assert len(lines) == 5 + 2 + 1 + 1 + 2 + 2 + 5
    assert "\x1b" not in output and "see [" not in output
    (line,) = (line for line in lines if "zvol/tank/long" in line)
    assert re.fullmatch(rf"{LONG} +create +xvda +/dev/zvol/tank/long +missing +ZFS pool tank is not imported", line)


# last


@pytest.fixture
def waited(host: Host, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host after a wait of 40 s: one disk was ready at once, two appeared, and one did not."""
    monkeypatch.setattr(xwd, "LAST_WAIT", str(host.root / "last.json"))
    host.guest("web", host.image("at-once"), host.images / "early", host.images / "late")
    host.guest("db", host.images / "late", "/dev/zvol/tank/db")
    clock.at(10, lambda: host.image("early"))
    clock.at(20, lambda: host.image("late"))
    clock.wait(host, timeout=40)
    return host


def last(host: Host) -> list[str]:
    return blocks(host.show("last", columns=200, RUNTIME_DIRECTORY=str(host.root)))


def test_last_shows_the_causes_of_what_was_missing_first(waited: Host) -> None:
    head, cause, _ = last(waited)
    assert head.endswith(
        ": timeout after 40s of 40s\nOnce the disks are ready, start it with:\n    xendomains-wait-disk start db"
    )
    assert cause.splitlines() == [
        "[1] ZFS pool tank is not imported",
        "    try: zpool import tank",
        "    /dev/zvol/tank/db (db)",
    ]


def test_last_shows_when_each_disk_appeared_slowest_first_with_a_bar(waited: Host) -> None:
    *_, table = last(waited)
    rows = [re.split("  +", row) for row in table.splitlines()]
    assert [row[1:4] for row in rows] == [
        ["DISK", "GUESTS", "STATE"],
        ["/dev/zvol/tank/db", "db", "missing"],
        [f"{waited.images}/late", "db, web", "ready"],
        [f"{waited.images}/early", "web", "ready"],
        [f"{waited.images}/at-once", "web", "ready"],
    ]
    assert [row[0] for row in rows] == ["AFTER", "-", "20s", "10s", "0s"]
    assert [row[4:] for row in rows[1:]] == [["see [1]"], ["#" * 15], ["#" * 8], []]


def test_last_prints_full_reason_and_command_into_a_pipe(waited: Host) -> None:
    output = waited.run("last", RUNTIME_DIRECTORY=str(waited.root)).output
    assert re.search(r"^- +/dev/zvol/tank/db +db +missing +ZFS pool tank is not imported; try: .+$", output, re.M)
    assert "#" not in output and "see [" not in output


@pytest.mark.promise("File and guest names can neither forge messages nor control the terminal")
def test_tampered_record_sends_no_escape_sequences_to_the_terminal(waited: Host) -> None:
    record = Path(waited.root, "last.json")
    record.write_text(record.read_text().replace("/dev/zvol/tank/db", "/dev/\\u001b[2J\\n/db"))
    assert "\x1b" not in waited.show("last", NO_COLOR="1", RUNTIME_DIRECTORY=str(waited.root))


def test_wide_and_combining_characters_in_one_text_do_not_widen_a_line() -> None:
    """Together they occupy as many columns as there are characters."""
    assert max(map(xwd.display_width, xwd.wrapped("\ub71c\u059c" * 40, 20))) <= 20


def test_last_disk_of_a_guest_has_the_last_branch(host: Host) -> None:
    host.configure("[ignore]\ndisks = *")
    host.guest("web", host.images / "a", host.images / "b")
    _, _, *disks = host.run("list", "--tree", PYTHONIOENCODING="utf-8").output.splitlines()
    assert [line[:6] for line in disks] == ["├─xvda", "└─xvdb"]
