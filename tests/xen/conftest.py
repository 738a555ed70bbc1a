# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Fixtures for scenarios: each file here is a host and tests of its boot. README.md says how to write one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xenhost import TOP, Boot, Host, Machine

rows = pytest.StashKey[dict[str, Boot]]()


@pytest.fixture(scope="session")
def machine() -> Machine:
    """The machine that boots hosts; its directory is kept between runs."""
    if os.geteuid() != 0:
        pytest.exit("Creating the image of a host requires root: sudo make check-xen", 2)
    machine = Machine(Path(os.environ.get("XEN_DIRECTORY", TOP / "build" / "xen")))
    machine.make_images()
    return machine


@pytest.fixture(scope="module")
def boot_host(request: pytest.FixtureRequest, machine: Machine) -> Callable[[Host, str], Boot]:
    """Return a function that boots a host of this scenario under a name."""

    def boot(host: Host, name: str) -> Boot:
        boot = machine.boot(host, name)
        request.config.stash.setdefault(rows, {})[name] = boot
        return boot

    return boot


@pytest.fixture(scope="module")
def boot(request: pytest.FixtureRequest, boot_host: Callable[[Host, str], Boot]) -> Boot:
    """The result of booting HOST in this file."""
    return boot_host(request.module.HOST, scenario_of(request.path))


def scenario_of(path: Path) -> str:
    """Return the name of the scenario in a file."""
    return path.stem.removeprefix("test_").replace("_", "-")


@pytest.hookimpl(hookwrapper=True)  # type: ignore[untyped-decorator,unused-ignore]
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """If a test failed, report where the logs of the boot are."""
    outcome: Any = yield
    report = outcome.get_result()
    boots = item.config.stash.get(rows, {})
    name = scenario_of(item.path)
    if report.failed and name in boots:
        report.sections.append(("Logs", f"{boots[name].directory}: console.log, report/journal.txt, report/xen"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table, with a row for each boot."""
    failed = {scenario_of(Path(report.fspath)) for report in terminalreporter.getreports("failed")}
    failed |= {scenario_of(Path(report.fspath)) for report in terminalreporter.getreports("error")}
    boots = config.stash.get(rows, {})
    if not boots:
        return
    terminalreporter.section("scenarios")
    table = [("scenario", "waited", "released after", "disks of guests (MiB)", "unit", "result")]
    for name, boot in boots.items():
        table.append((name, *cells(boot), "FAILED" if name in failed else "passed"))
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def cells(boot: Boot) -> tuple[str, str, str, str]:
    """Return the cells of the table for a boot."""
    disks = ", ".join(f"{guest.name} {describe(boot, guest.name)}" for guest in boot.host.guests if guest.starts)
    if not boot.host.package:
        return "-", "-", disks, "-"
    released = f"{boot.released_after:.2f} s" if boot.host.awaited else "-"
    return f"{boot.waited:.1f} s", released, disks, boot.wait["Result"]


def describe(boot: Boot, guest: str) -> str:
    """Return the sizes of a guest's disks."""
    try:
        return "+".join(f"{size:g}" for size in boot.disks_of(guest).values()) or "none"
    except KeyError:
        return "DOWN"
