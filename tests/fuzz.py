# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzzes the parsers with hypothesis: python tests/fuzz.py [SECONDS for each]

Whatever they are given, they return something or raise Refusal, in time that grows with the size of the input.
"""

from __future__ import annotations

import gc
import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import CORPUS, saved_file
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strategies import any_configuration, specification

import xendomains_wait_disk as xwd

SLOWEST = 0.5  # seconds for one input; the generated ones are some hundred bytes
REAL = (CORPUS / "saved-web.head").read_bytes()[:1200]


def conffile(lines: list[str]) -> None:
    """Our own settings."""
    xwd.parse_settings("xen-wait-disk.conf", lines)


def xl_configuration(text: str) -> None:
    """An xl.cfg with its disks."""
    xwd.domain_from_xl_config(text, "/etc/xen/auto/x", "auto")


def disk(text: str) -> None:
    """A disk specification, and what it means for this host."""
    xwd.wanted(xwd.parse_disk(text))


def saved_header(content: bytes) -> None:
    """A saved domain, header and configuration."""
    text, is_json = xwd.saved_configuration(io.BytesIO(content))
    (xwd.domain_from_json if is_json else xwd.domain_from_xl_config)(text, "/save/x", "saved")


def xendomains_settings(content: bytes) -> None:
    """A settings file of xendomains, sourced by bash without its directories' programs."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        xwd.source_xendomains(file.name, 1.0)


settings_lines = st.one_of(
    st.builds(
        "XENDOMAINS_{}={}".format,
        st.sampled_from(["AUTO", "SAVE", "RESTORE"]),
        st.one_of(
            st.text(st.characters(blacklist_characters="$`/"), max_size=20),
            st.sampled_from(['"/a b"', "'x'", "$(", "${", "`", "(a b)", "true", "<<E"]),
        ),
    ),
    st.sampled_from(
        ["exit 3", "false", "set -u", "set -e", "readonly XENDOMAINS_AUTO", "if", "fi", "}", "shopt -s extglob"]
    ),
).filter(lambda line: not set(line) & set(">|&;"))  # what bash runs must not write files

conffile_lines = st.lists(
    st.one_of(
        st.sampled_from(["[paths]", "[polling]", "[[polling]]", "[ignore]", "[timeout]", "# c", "'''"]),
        st.builds(
            "{} = {}".format,
            st.sampled_from([key for _, key, *_ in xwd.SETTINGS_KEYS]),
            st.one_of(st.sampled_from(["5min", "1, 2", '"a, b"', "/a, /b", "9" * 40 + "!", "2"]), st.text(max_size=12)),
        ),
        st.text(max_size=12),
    ),
    max_size=8,
)

TARGETS: list[tuple[Callable[..., None], st.SearchStrategy[object]]] = [
    (xendomains_settings, st.lists(settings_lines, max_size=6).map(lambda x: "\n".join(x).encode("utf-8", "replace"))),
    (conffile, conffile_lines),
    (xl_configuration, any_configuration),
    (disk, specification),
    (
        saved_header,
        st.one_of(
            st.builds(lambda at, noise: REAL[:at] + noise + REAL[at + len(noise) :], st.integers(0, 1200), st.binary()),
            st.builds(
                saved_file,
                st.binary(max_size=300),
                st.integers(0, 7),
                st.sampled_from(["little", "big"]),
                size=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
                optional=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
            ),
        ),
    ),
]


def fuzz(target: Callable[..., None], inputs: st.SearchStrategy[object], seconds: float) -> str:
    """Gives the target inputs for that long; returns a line for the table."""
    tried = refused = 0
    slowest = 0.0
    deadline = time.monotonic() + seconds

    @settings(
        max_examples=2000,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def one_batch(content: object) -> None:
        nonlocal tried, refused, slowest
        if time.monotonic() > deadline:
            return
        gc.disable()  # it has to clear up after hypothesis, which is not what is measured
        started = time.process_time()
        try:
            target(content)
        except xwd.Refusal:
            refused += 1
        finally:
            gc.enable()
        tried += 1
        slowest = max(slowest, time.process_time() - started)
        assert slowest < SLOWEST, f"{target.__name__} took {slowest} s for {content!r}"

    one_batch()  # hypothesis itself grows in its first batch
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while time.monotonic() < deadline:
        one_batch()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return f"{target.__name__:20} {tried:10} {refused:10} {slowest * 1000:10.1f} ms {grown:10.1f} MiB"


def main() -> None:
    """Fuzzes every target and prints a table; the first failure ends it with the input that caused it."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    print(f"{'target':20} {'inputs':>10} {'refused':>10} {'slowest':>13} {'memory grown':>14}", flush=True)
    for target, inputs in TARGETS:
        print(fuzz(target, inputs, seconds), flush=True)


if __name__ == "__main__":
    main()
