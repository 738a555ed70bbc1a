# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""xl.cfg and disk specifications are parsed like by Xen's own library, on thousands of made-up files.

There are two deliberate differences: a line break in a disk specification is refused, and lists may be nested deeper.
Checks that libxl makes after parsing (check_vdevs) are not part of the library used here, so they are turned off.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import TARGETS, any_configuration, parameter, quoted, specification

import xendomains_wait_disk as xwd

HEADER = Path("/usr/include/libxlutil.h")
EXAMPLES = 1500

pytestmark = [
    pytest.mark.skipif(
        not HEADER.exists() or not shutil.which("cc"),
        reason=f"{HEADER} (Debian's package libxen-dev) or a C compiler is missing",
    ),
    pytest.mark.xdist_group("oracle"),  # the last test checks the number of questions of the others
]

Answer = tuple[str, ...]
REFUSED: Answer = ("refused",)
LINE_BREAK = "contains a line break; remove it"


class Oracle:
    """libxlutil, behind tests/xlu_oracle.c."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin and self._process.stdout
        self._questions, self._answers = self._process.stdin, self._process.stdout
        self.asked = self.accepted = 0

    def ask(self, configuration: bytes) -> Answer:
        """Return "refused", or the domain's name followed by vdev, target and access of each disk."""
        self._questions.write(struct.pack("<I", len(configuration)) + configuration)
        self._questions.flush()
        verdict, *words = self._answers.readline().decode().split()
        self.asked += 1
        if verdict == "refused":
            return REFUSED
        self.accepted += 1
        return tuple(os.fsdecode(bytes.fromhex(word[1:])) for word in words)

    def close(self) -> None:
        self._questions.close()
        assert self._process.wait() == 0


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    program = tmp_path_factory.mktemp("oracle") / "xlu_oracle"
    source = Path(__file__).with_name("xlu_oracle.c")
    subprocess.run(["cc", "-O1", "-o", program, source, "-lxlutil", "-lxenlight"], check=True)
    oracle = Oracle(program)
    yield oracle
    oracle.close()


@pytest.fixture(autouse=True, scope="module")
def parser_alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(xwd, "check_vdevs", lambda _: None)
        monkeypatch.setattr(xwd, "type_in", lambda _: "pv")
        yield


def ours(configuration: bytes) -> Answer:
    """Return the answer of our parser. Raise ConfigError for a line break in a disk specification."""
    try:
        domain = xwd.domain_from_xl_config(os.fsdecode(configuration), "configuration", "auto")
    except xwd.ConfigError as error:
        if LINE_BREAK in str(error):
            raise
        return REFUSED
    return (domain.name, *(word for disk in domain.disks for word in (disk.vdev, disk.target, "rw"[disk.writes])))


def compare(oracle: Oracle, configuration: bytes) -> None:
    """Check that xl parses a configuration like the module does."""
    try:
        answer = ours(configuration)
    except xwd.ConfigError:
        return
    assert answer == oracle.ask(configuration)


def check(examples: int = EXAMPLES) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.promise("Configurations are read as xl reads them, with the exceptions in the manual")
@given(any_configuration)
@check()
def test_configurations_are_read_as_xl_reads_them(oracle: Oracle, text: str) -> None:
    configuration = text.encode("latin-1")
    compare(oracle, configuration)


@pytest.mark.promise("Configurations are read as xl reads them, with the exceptions in the manual")
@given(specification)
@check()
def test_disk_specifications_are_read_as_xl_reads_them(oracle: Oracle, text: str) -> None:
    configuration = f'name="web"\ndisk=[{quoted(text)}]\n'.encode("latin-1")
    compare(oracle, configuration)


# SUSE's extensions, and upstream syntax with the same effect here. With xen.libxl.dmmd.patch in SUSE's xen package,
# dmmd: and npiv: are dropped like phy:. libxl.add-option-to-disable-disk-cache-flushes-in-qdisk.patch adds a flag that
# only concerns QEMU, like direct-io-safe.
SUSES = {"dmmd:": "phy:", "npiv:": "phy:", "suse-diskcache-disable-flush": "direct-io-safe"}
suses_parameter = st.one_of(
    st.just("suse-diskcache-disable-flush"),
    st.builds("{}{}".format, st.sampled_from(["dmmd:", "npiv:"]), st.sampled_from([*TARGETS, "md;/dev/md0", "id"])),
)


def as_upstreams(text: str) -> str:
    """Replace SUSE's extensions with upstream syntax of the same effect."""
    for suses, same in SUSES.items():
        text = text.replace(suses, same)
    return text


@pytest.mark.promise("Configurations are read as xl reads them, with the exceptions in the manual")
@given(st.lists(st.one_of(suses_parameter, suses_parameter, parameter), min_size=1, max_size=6).map(",".join))
@check()
def test_disk_specifications_are_read_as_suses_xl_reads_them(oracle: Oracle, text: str) -> None:
    with suppress(xwd.ConfigError):
        answer = ours(f'name="web"\ndisk=[{quoted(text)}]\n'.encode("latin-1"))
        configuration = f'name="web"\ndisk=[{quoted(as_upstreams(text))}]\n'
        # A target may contain the same words, without a special meaning.
        assert tuple(map(as_upstreams, answer)) == oracle.ask(configuration.encode("latin-1"))


@pytest.mark.parametrize(
    "suses",
    [
        "/dev/x,raw,xvda,w,suse-diskcache-disable-flush", "suse-diskcache-disable-flush,vdev=xvda,target=/x",
        "script=block-dmmd,dmmd:md;/dev/md0,xvda,w", "dmmd:/dev/vg/lv,xvda,w", "npiv:/dev/vg/lv,hdc:cdrom,r",
    ],
)  # fmt: skip
def test_suse_extensions_to_disk_syntax_are_accepted(oracle: Oracle, suses: str) -> None:
    assert ours(f'name="web"\ndisk=["{suses}"]\n'.encode()) != REFUSED


ESCAPES = (
    r"\7", r"\12", r"\101", r"\1010", r"\1a", r"\18", r"\8", r"\1 2x", r"\1+2", r"\1+", r"\12-", r"\123456", r"\1  ",
    r"\12 3", r"\a", r"\n", r"\\", r"\'", r"\x41",
)  # fmt: skip


@pytest.mark.parametrize("escape", ESCAPES)
def test_escapes_are_read_as_xl_reads_them(oracle: Oracle, escape: str) -> None:
    for text in (escape, f"a{escape}b", f"{escape}9", f"{escape}{escape}"):
        compare(oracle, f'name="{text}"\n'.encode())


SPECIFICATIONS = (
    "vdev=xvda,target=/x,", "vdev=xvda,target=/x,,", "vdev=xvda,target=,", "colour=,vdev=xvda,target=/x",
    "colour=,,xvda", "colour=", "colour=x", "vdev=,target=/x", "vdev=", "/x=y,raw,xvda", "a=b=c,raw,xvda",
    ",hdc:cdrom", ",a:hdc:cdrom", ",hdc:cdrom,r", ",hdc:cdrom,r,r", ",hdc:cdrom,ro,x", ",hdc:", ",:cdrom",
    "/x,raw,xvda,w,w", "/x,,xvda,,", "phy:/x,xvda,w", "phy:/x,hdc:cdrom,r", "new:a,xvda", "new:,xvda",
)  # fmt: skip


@pytest.mark.parametrize("specification", SPECIFICATIONS)
def test_odd_disk_specifications_are_read_as_xl_reads_them(oracle: Oracle, specification: str) -> None:
    compare(oracle, f'name="web"\ndisk=[{quoted(specification)}]\n'.encode())


@pytest.mark.parametrize(
    "specification",
    ["vdev=xvda,target=/x\n,ro", "vdev=xvda,\ntarget=/x", "/x\n,raw,xvda", "/x,raw,xvda\n", "\n/x,raw,xvda"],
)
def test_line_break_in_a_disk_specification_is_refused_though_xl_may_accept_it(
    oracle: Oracle, specification: str
) -> None:
    configuration = f'name="web"\ndisk=[{quoted(specification)}]\n'.encode()
    assert oracle.ask(configuration) != REFUSED
    with pytest.raises(xwd.ConfigError, match=LINE_BREAK):
        ours(configuration)


def nested(depth: int) -> bytes:
    return b'name="web"\nnested=' + b"[" * depth + b"]" * depth + b"\n"


@pytest.mark.parametrize("depth", [1, 100, 4995, 4996])
def test_lists_nested_within_xls_limit_are_read_as_by_xl(oracle: Oracle, depth: int) -> None:
    assert ours(nested(depth)) == oracle.ask(nested(depth)) == ("web",)


@pytest.mark.parametrize("depth", [4997, 60_000])
def test_lists_nested_deeper_than_xls_limit_are_read(oracle: Oracle, depth: int) -> None:
    assert oracle.ask(nested(depth)) == REFUSED
    assert ours(nested(depth)) == ("web",)


def test_thousands_of_configurations_were_compared_and_many_of_them_accepted(oracle: Oracle) -> None:
    assert oracle.asked >= 3 * EXAMPLES - 100
    assert oracle.accepted >= oracle.asked // 10
    print(f"{oracle.asked} configurations compared, {oracle.accepted} of them accepted by xl")
