# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Fuzz the parsers, one after the other: python tests/fuzz [--time SECONDS] [TARGET...]

Any input must be either parsed or refused, in limited time and without a memory leak. The corpus of libFuzzer and
inputs that fail are kept in .fuzz; the first failure ends the program with status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORK = HERE.parents[1] / ".fuzz"
DATA = HERE.parent / "data"

# The targets, and real files for their initial corpus.
TARGETS = {
    "xl_config": "xl-corpus/*.cfg",
    "disk": "",
    "saved": "xl-corpus/*.head",
    "libvirt": "libvirt/*.xml",
    "conffile": "",
    "xendomains": "",
}
MAX_LENGTH = 8192  # bytes of generated inputs; harness.py adds a few inputs of the maximum size


def main() -> None:
    """Run the targets and print a table."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Fuzz the parsers.")
    parser.add_argument("--time", type=float, default=60, metavar="SECONDS", help="for each target (default: 60)")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of {', '.join(TARGETS)} (default: all)")
    options = parser.parse_args()
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target {', '.join(unknown)} (known: {', '.join(TARGETS)})")
    print(row("target", "inputs", "per second", "refused", "edges", "slowest", "memory", "growth"), flush=True)
    for target in options.targets or TARGETS:
        print(fuzz(target, options.time), flush=True)


def fuzz(target: str, seconds: float) -> str:
    """Run one target and return its row of the table."""
    corpus = seeded(target)
    dictionary = HERE / "dictionaries" / target
    command = [
        sys.executable,
        str(HERE / f"{target}.py"),
        f"-max_len={MAX_LENGTH}",
        "-timeout=10",
        "-rss_limit_mb=512",
        f"-artifact_prefix={WORK}/{target}-",
        *([f"-dict={dictionary}"] if dictionary.exists() else []),
        str(corpus),
    ]
    log = WORK / f"{target}.log"
    with log.open("w") as messages:
        environment = {**os.environ, "FUZZ_TIME": str(seconds)}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=messages, text=True, env=environment)
    output = log.read_text(errors="replace")
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{output[-4000:]}\n{target} failed; see {log} and the input in {WORK}")
    inputs, refused, took, slowest, slowest_input, warm, grown = json.loads(done.stdout)
    with log.open("a") as messages:
        print(f"slowest: {slowest} s for {slowest_input}", file=messages)
    edges = re.findall(r" cov: (\d+) ", output)
    return row(
        target,
        inputs,
        f"{inputs / took:.0f}",
        f"{refused / inputs:.0%}",
        edges[-1] if edges else "-",
        f"{slowest * 1000:.1f} ms",
        f"{warm:.1f} MiB",
        f"{grown:.1f} MiB",
    )


def seeded(target: str) -> Path:
    """Return the directory with the corpus of a target, including the seeds."""
    corpus = WORK / target
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = [*(HERE / "corpus" / target).glob("*"), *(DATA.glob(TARGETS[target]) if TARGETS[target] else ())]
    for seed in seeds:
        shutil.copy(seed, corpus / seed.name)
    return corpus


def row(first: str, *others: Any) -> str:
    """Return a row of the table."""
    return f"{first:12}" + "".join(f"{other!s:>12}" for other in others)


if __name__ == "__main__":
    main()
