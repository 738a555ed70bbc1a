# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""What the fuzz targets share: a module that reports its coverage, checks of what it returns, and the measuring.

A target is a program that fuzzes for $FUZZ_TIME seconds and prints a Report. __main__.py runs them all.
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

# Whoever imports these later gets them as they are here, configobj included, which the module imports late.
with atheris.instrument_imports(include=["xendomains_wait_disk", "configobj"]):
    import configobj.validate  # noqa: F401

    import xendomains_wait_disk as xwd

# Seconds for one input, while coverage is collected: some, and some for each byte.
SLOWEST = 0.5
SLOWEST_BYTE = 50e-6
MOST_GROWTH = 32.0  # MiB, of which libFuzzer's own corpus is a part


class Report(NamedTuple):
    """What a target has done."""

    inputs: int
    refused: int
    seconds: float
    slowest: float  # seconds of CPU time
    slowest_input: str
    warm: float  # MiB, after a fifth of the time
    grown: float  # MiB since then


class Meter:
    """Counts the inputs, and measures the time and the memory that they take."""

    def __init__(self, check: Callable[[bytes], bool]) -> None:
        self._check = check
        self._seconds = float(os.environ.get("FUZZ_TIME", "60"))
        self._started = time.monotonic()
        self._inputs = self._refused = 0
        self._slowest = self._warm = 0.0
        self._slowest_input = b""

    def run(self, content: bytes) -> None:
        """Checks one input. Fails if it takes too long, or if memory has grown too much."""
        started = time.process_time()
        accepted = self._check(content)
        seconds = time.process_time() - started
        slowest = SLOWEST + SLOWEST_BYTE * len(content)
        assert seconds < slowest, f"took {seconds:.3f} s for {len(content)} bytes: {content[:1000]!r}"
        self._inputs += 1
        self._refused += not accepted
        if seconds > self._slowest:
            self._slowest, self._slowest_input = seconds, content
        if not self._warm and time.monotonic() > self._started + self._seconds / 5:
            self._warm = resident()

    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self._started + self._seconds

    def report(self) -> Report:
        """What was measured. Fails if nothing was accepted: then something else keeps the parser from its work."""
        assert self._refused < self._inputs, "every input was refused"
        seconds = time.monotonic() - self._started
        grown = resident() - self._warm
        assert grown < MOST_GROWTH, f"grew by {grown:.1f} MiB in {seconds:.0f} seconds"
        slowest = repr(self._slowest_input[:200])
        return Report(self._inputs, self._refused, seconds, self._slowest, slowest, self._warm, grown)


def resident() -> float:
    """The memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / (1 << 20)


def fuzz(check: Callable[[bytes], bool], pieces: Sequence[bytes], largest: int) -> NoReturn:
    """Gives the check what libFuzzer makes up, until time is over; it returns whether the input was accepted.

    Before that come inputs as large as they may be, and larger by a byte, of each piece over and over: libFuzzer would
    hardly come to them. It takes its options from the command line, and does not return, nor lets Python end as usual.
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
    """A regular file for the functions that read one; it is gone with the process, however that ends."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("fuzz")
        os.fchmod(self._descriptor, 0o600)  # else it would be said each time that others may write it
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"  # which bash can open, too

    def write(self, content: bytes) -> str:
        """Replaces the content; returns the path."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)
        return self.path


def check_file(path: str, kind: str) -> xwd.Guest | None:
    """Whatever is in the file: it is a guest, or xl will reject it; or nothing, if xendomains passes it over."""
    guest = xwd.read_guest_once(xwd.unread_guest(path, kind), xwd.Settings(), xwd.StorageFacts())
    return check_guest(guest) if guest else None


def check_guest(guest: xwd.Guest) -> xwd.Guest:
    """It can be looked at, printed on lines of its own, and is valid JSON."""
    assert not guest.status.is_awaited(), "a file that can be read is nothing to wait for"
    assert len(guest.domain.all_disks()) == len(guest.required)
    disks = {r.path: xwd.check_disk(r, xwd.StorageFacts()) for r in guest.required if r.path}
    assert all(path.startswith("/") for path in disks)
    file = guest.domain.source
    snapshot = xwd.Snapshot({}, {file: guest}, disks)
    is_ready = guest.status == xwd.READY
    record = xwd.as_record(snapshot)
    assert json.loads(json.dumps(record, ensure_ascii=False).encode()) == record
    assert len(xwd.table_of_disks(record, xwd.Screen(), with_hints=True)) == 1 + max(1, len(guest.domain.all_disks()))
    picture = xwd.picture_of_list(record, xwd.Screen(80))
    assert max(map(xwd.display_width, picture)) <= 80 and all(map(str.isprintable, picture))
    findings = list(xwd.check_files(snapshot))
    assert findings or is_ready
    check_sentences([finding.sentence() for finding in findings])
    return guest


def check_sentences(sentences: Sequence[str]) -> None:
    """Messages are whole sentences, and each is short enough for a line in the journal."""
    for sentence in sentences:
        shown = xwd.printable(xwd.shortened(sentence, xwd.MAX_MESSAGE))
        assert shown.isprintable()
        assert shown.endswith((".", ")")), shown
