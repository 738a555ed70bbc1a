# SPDX-License-Identifier: GPL-3.0-or-later
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

SLOWEST = 0.5  # seconds for one input, of which the largest has 8 KiB, while coverage is collected
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
        assert seconds < SLOWEST, f"took {seconds:.3f} s for {content!r}"
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


def fuzz(check: Callable[[bytes], bool]) -> NoReturn:
    """Gives the check what libFuzzer makes up, until time is over; it returns whether the input was accepted.

    libFuzzer takes its options from the command line, and does not return, nor lets Python end as usual.
    """
    meter = Meter(check)

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
        os.fchmod(self._descriptor, 0o600)  # settings that others may write would not be read
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"  # which bash can open, too

    def write(self, content: bytes) -> str:
        """Replaces the content; returns the path."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)
        return self.path


def check_entry(entry: xwd.Entry | None) -> bool:
    """Whatever was read: it can be looked at, printed on lines of its own, and is valid JSON."""
    assert entry is not None
    domain = entry.domain
    assert not domain.pending, "a file that can be read is nothing to wait for"
    looks = {want.paths[0]: xwd.look_at(want.paths, xwd.Kernel()) for want in entry.wants if want.paths}
    assert all(path.startswith("/") for path in looks)
    survey = xwd.Survey({domain.source: entry}, looks)
    assert (json.loads(xwd.as_json(survey).encode())["domains"][0]["error"] is None) == (not domain.error)
    assert len(xwd.as_table(survey).split("\n")) == 1 + max(1, len(domain.disks))
    check_sentences(xwd.problems_of(domain))
    return not domain.error


def check_sentences(sentences: Sequence[str]) -> None:
    """Messages are whole sentences, and each is short enough for a line in the journal."""
    for sentence in sentences:
        assert xwd.printable(sentence).isprintable()
        assert sentence.endswith((".", ")")), sentence
        assert len(sentence) < 20_000, sentence
