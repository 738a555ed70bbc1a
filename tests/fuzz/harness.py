# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Shared by the fuzz targets: the instrumented module, checks of its results, and measurements.

A target is a program that fuzzes for $FUZZ_TIME seconds and prints a Report. __main__.py runs all of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import atheris

sys.path[1:1] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

# Import the instrumented modules before any target does; configobj, too, which the module imports late.
with atheris.instrument_imports(include=["xendomains_wait_disk", "configobj"]):
    import configobj.validate  # noqa: F401

    import xendomains_wait_disk as xwd

# CPU time for one input while coverage is collected, in seconds: a constant, plus an amount per byte.
MAX_SECONDS = 0.5
MAX_SECONDS_PER_BYTE = 50e-6
MAX_GROWTH = 32.0  # MiB, including libFuzzer's own corpus


class Report(NamedTuple):
    """The results of a target."""

    inputs: int
    refused: int
    seconds: float
    slowest: float  # seconds of CPU time
    slowest_input: str
    warm: float  # memory in MiB after a fifth of the time
    grown: float  # growth since then, in MiB


class Meter:
    """Counts the inputs, and measures their time and memory use."""

    def __init__(self, check: Callable[[bytes], bool]) -> None:
        self._check = check
        self._seconds = float(os.environ.get("FUZZ_TIME", "60"))
        self._started = time.monotonic()
        self._inputs = self._refused = 0
        self._slowest = self._warm = 0.0
        self._slowest_input = b""

    def run(self, content: bytes) -> None:
        """Check one input. Fail if it takes too long."""
        started = time.process_time()
        accepted = self._check(content)
        seconds = time.process_time() - started
        limit = MAX_SECONDS + MAX_SECONDS_PER_BYTE * len(content)
        assert seconds < limit, f"took {seconds:.3f} s for {len(content)} bytes: {content[:1000]!r}"
        self._inputs += 1
        self._refused += not accepted
        if seconds > self._slowest:
            self._slowest, self._slowest_input = seconds, content
        if not self._warm and time.monotonic() > self._started + self._seconds / 5:
            self._warm = resident()

    def is_over(self) -> bool:
        """Return whether the time is over."""
        return time.monotonic() > self._started + self._seconds

    def report(self) -> Report:
        """Return the results. Fail if memory has grown too much, or if the parser has accepted no input at all."""
        assert self._refused < self._inputs, "every input was refused"
        seconds = time.monotonic() - self._started
        grown = resident() - self._warm
        assert grown < MAX_GROWTH, f"grew by {grown:.1f} MiB in {seconds:.0f} seconds"
        slowest = repr(self._slowest_input[:200])
        return Report(self._inputs, self._refused, seconds, self._slowest, slowest, self._warm, grown)


def resident() -> float:
    """Return the memory use of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / (1 << 20)


def fuzz(check: Callable[[bytes], bool], pieces: Sequence[bytes], largest: int) -> NoReturn:
    """Call the check with inputs from libFuzzer until the time is over; the check returns whether it was accepted.

    The first inputs repeat each piece up to the maximum size and one byte more, which libFuzzer would hardly reach.
    libFuzzer takes its options from the command line. It never returns, and does not let Python exit normally.
    """
    meter = Meter(check)
    for piece in pieces:
        for size in (largest, largest + 1):
            meter.run((piece * size)[:size])

    def one_input(content: bytes) -> None:
        meter.run(content)
        if meter.is_over():
            print(json.dumps(meter.report()), flush=True)
            os._exit(0)

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
    raise AssertionError("libFuzzer does not return")


class InMemory:
    """A regular file in memory, which disappears with the process."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("fuzz")
        os.fchmod(self._descriptor, 0o600)  # avoids warnings that it is writable by others
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"  # bash can open this path, too

    def write(self, content: bytes) -> str:
        """Replace the content and return the path."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)
        return self.path


def check_file(path: str, kind: str) -> xwd.Guest | None:
    """Check and return the guest in a file, or None if xendomains would skip the file."""
    guest = xwd.read_guest_once(xwd.unread_guest(path, kind), xwd.Settings(), xwd.StorageFacts())
    return check_guest(guest) if guest else None


def check_guest(guest: xwd.Guest) -> xwd.Guest:
    """Check that a guest can be checked, shown on separate lines, and converted to valid JSON."""
    assert not guest.status.is_awaited(), "a readable file must not be waited for"
    assert len(guest.domain.all_disks()) == len(guest.required)
    disks = {r.path: xwd.check_disk(r, xwd.StorageFacts()) for r in guest.required if r.path}
    assert all(path.startswith("/") for path in disks)
    file = guest.domain.source
    snapshot = xwd.Snapshot({}, {file: guest}, disks)
    is_ready = guest.status == xwd.READY
    record = xwd.as_record(snapshot)
    assert json.loads(json.dumps(record, ensure_ascii=False).encode()) == record
    assert len(xwd.table_of_disks(record, xwd.Screen(), with_hints=True)) == 1 + max(1, len(guest.domain.all_disks()))
    check_picture(xwd.picture_of_list(record, xwd.Screen(80)), 80)
    findings = list(xwd.check_files(snapshot))
    assert findings or is_ready
    check_sentences([finding.sentence() for finding in findings])
    return guest


def check_picture(lines: Sequence[str], columns: int) -> None:
    """Check that lines can be printed and fit on a terminal; only commands, which must stay whole, may be wider."""
    for line in lines:
        assert line.isprintable(), line
        assert xwd.display_width(line) <= columns or line.lstrip().startswith("try: "), line


def check_sentences(sentences: Sequence[str]) -> None:
    """Check that messages are complete sentences and short enough for the journal."""
    for sentence in sentences:
        shown = xwd.printable(xwd.shortened(sentence, xwd.MAX_MESSAGE))
        assert shown.isprintable()
        assert shown.endswith((".", ")")), shown
