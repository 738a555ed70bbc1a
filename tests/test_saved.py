# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Saved guests: the header written by xl save, and the configuration in it."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import CORPUS, Host, saved_file
from hypothesis import given
from hypothesis import strategies as st

import xendomains_wait_disk as xwd

REAL = (CORPUS / "saved-web.head").read_bytes()
XL_CONFIGURATION = b'name="web"\ndisk=["/dev/mapper/web,raw,xvda,rw"]\n'


def read(content: bytes) -> tuple[str, bool]:
    return xwd.saved_configuration(io.BytesIO(content))


def refusal(content: bytes) -> str:
    with pytest.raises(xwd.ConfigError) as refused:
        read(content)
    return str(refused.value)


def test_file_saved_by_real_xl_is_read() -> None:
    text, is_json = read(REAL)
    domain = xwd.domain_from_json(text, "/var/lib/xen/save/web", "saved")
    assert is_json
    assert domain.name == "web"
    assert domain.disks == (xwd.Disk("xvda", "/dev/mapper/web", "raw", writes=True),)


@pytest.mark.parametrize("order", ["little", "big"])
def test_both_byte_orders_are_read(order: Literal["little", "big"]) -> None:
    configuration = REAL[52 : 52 + 1041]
    assert read(saved_file(configuration, order=order)) == read(REAL)


def test_configuration_saved_as_text_is_read() -> None:
    text, is_json = read(saved_file(XL_CONFIGURATION, flags=xwd.SAVED_STREAM_V2))
    assert (text.encode(), is_json) == (XL_CONFIGURATION, False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "was not written by xl save, or is damaged"),
        (b"name = 'web'\n", "was not written by xl save, or is damaged"),
        (b"Xen saved domain, some other format\n", "was not written by xl save, or is damaged"),
        (REAL[:20], "was not written by xl save, or is damaged"),
        (REAL[:40], "ends within its header"),
        (REAL[:32] + b"\1\1\1\1" + REAL[36:], "has an unknown byte order: 01010101"),
        (saved_file(b"{}", flags=5), "has mandatory flags that xl does not know: 0x5"),
        (saved_file(b"{}", optional=0), "claims 0 bytes of configuration in 0 bytes of optional data"),
        (saved_file(b"{}", optional=3), "claims 0 bytes of configuration in 3 bytes of optional data"),
        (saved_file(b"{}", size=5, optional=4), "claims 5 bytes of configuration in 4 bytes of optional data"),
        (saved_file(b"{}", size=7), "claims 7 bytes of configuration in 6 bytes of optional data"),
        (saved_file(b"{}", size=2**32 - 5, optional=2**32 - 1), "claims 4294967291 bytes of configuration; at most"),
        (
            saved_file(b"{}", size=50, optional=54, image=b""),
            "is truncated: it has only 2 of 50 bytes of configuration",
        ),
        (
            saved_file(b"{}", image=b"LibxlFmt and half of the memory"),
            "is incomplete, because saving failed or was interrupted",
        ),
        (saved_file(b'{"name": "web"}', image=b""), "is incomplete, because saving failed or was interrupted"),
    ],
)
def test_damaged_file_is_refused(content: bytes, message: str) -> None:
    assert refusal(content).startswith(message)


def test_version_1_stream_needs_no_end_record() -> None:
    assert read(saved_file(b"{}", flags=xwd.SAVED_JSON, image=b"the memory image"))


def test_largest_configuration_is_read() -> None:
    assert len(read(saved_file(b" " * xwd.MAX_CONFIGURATION))[0]) == xwd.MAX_CONFIGURATION


def test_empty_configuration_is_read_and_then_refused() -> None:
    assert read(saved_file(b"")) == ("", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "contains invalid JSON"),
        ("", "contains invalid JSON"),
        ("[]", "contains JSON that does not describe a domain"),
        ("{}", "contains JSON that does not describe a domain"),
        ('{"c_info": {"name": 5}}', "contains JSON whose domain has no valid name"),
        ('{"c_info": {"name": "a\\u0000b"}}', "contains JSON whose domain has no valid name"),
        ('{"c_info": {"name": "\\ud800"}}', "contains JSON whose domain has no valid name"),
        ('{"c_info": {"name": "web"}, "disks": [5]}', "contains JSON that does not describe a domain"),
        ('{"c_info": {"name": "web"}, "disks": 5}', "contains JSON that does not describe a domain"),
        ("[" * 33, "contains JSON that is nested too deeply"),
        ("[" * 100_000, "contains JSON that is nested too deeply"),
        ('{"a":' * 33, "contains JSON that is nested too deeply"),
        ('"' + "[" * 100, "contains "),
        ("9" * 100_000, "contains"),
    ],
)
def test_json_that_is_not_a_domain_is_refused(text: str, message: str) -> None:
    with pytest.raises(xwd.ConfigError, match=message):
        xwd.domain_from_json(text, "/var/lib/xen/save/web", "saved")


def test_every_field_of_a_disk_is_taken_from_json() -> None:
    disk = {
        "pdev_path": "r0", "vdev": "hdc", "format": "qcow2", "backend_domname": "storage", "backend": "qdisk",
        "script": "block-drbd", "is_cdrom": 1, "readwrite": 1,
    }  # fmt: skip
    text = json.dumps({"c_info": {"name": "web"}, "disks": [disk, {"backend_domid": 3, "vdev": "xvdb"}]})
    first, second = xwd.domain_from_json(text, "/var/lib/xen/save/web", "saved").disks
    assert first == xwd.Disk("hdc", "r0", "qcow2", "storage", "qdisk", "block-drbd", True, True)
    assert second == xwd.Disk("xvdb", "", "", "3")


def test_fields_missing_in_json_are_empty() -> None:
    assert xwd.disk_from_json({}) == xwd.Disk("")


@pytest.mark.promise("No file can make it crash or hang")
@given(st.binary(), st.integers(0, len(REAL)))
def test_any_file_is_either_read_or_refused(noise: bytes, keep: int) -> None:
    try:
        text, is_json = read(REAL[:keep] + noise)
        parse = xwd.domain_from_json if is_json else xwd.domain_from_xl_config
        assert parse(text, "/save/web", "saved").name
    except xwd.ConfigError as refused:
        assert str(refused)


def nested(depth: int) -> str:
    return '{"c_info": {"name": "web"}, "events": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


def test_json_may_be_nested_as_deep_as_the_limit() -> None:
    assert xwd.domain_from_json(nested(xwd.MAX_JSON_DEPTH), "/var/lib/xen/save/web", "saved").name == "web"


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    text = json.dumps({"c_info": {"name": "web"}, "odd": ['"' + "[{" * 100, "\\"]})
    assert xwd.domain_from_json(text, "/var/lib/xen/save/web", "saved").name == "web"


@pytest.mark.promise("A configuration is slow to parse")
@pytest.mark.parametrize("piece", ['\\"', '"', '\\\\"', "[]", "{", '"\n', "\\"])
def test_json_takes_time_proportional_to_its_length(piece: str) -> None:
    """A regular expression with backtracking would take half a minute for the largest file and block signals."""
    text = ('"' + piece * 32_000)[:32_000]
    started = time.process_time()
    with pytest.raises(xwd.ConfigError):
        xwd.domain_from_json(text, "/var/lib/xen/save/web", "saved")
    whole = time.process_time() - started
    started = time.process_time()
    for _ in range(16):
        with pytest.raises(xwd.ConfigError):
            xwd.domain_from_json(text[: len(text) // 16], "/var/lib/xen/save/web", "saved")
    assert whole < 4 * (time.process_time() - started) + 0.2


class Pieces(io.BytesIO):
    """A file that returns one byte per read."""

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer)[:1])


@pytest.mark.promise("A file system returns short reads")
def test_header_from_short_reads_is_read() -> None:
    assert xwd.saved_configuration(io.BufferedReader(Pieces(REAL))) == read(REAL)


def test_huge_memory_image_is_not_read(host: Host) -> None:
    file = host.save / "web"
    file.write_bytes(REAL)
    with file.open("r+b") as image:
        image.truncate(100 << 30)
    tracemalloc.start()
    guest = xwd.read_guest(xwd.unread_guest(str(file), "saved"), xwd.Settings(), xwd.StorageFacts())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20
    assert guest and guest.domain.name == "web"


def test_disk_of_a_saved_guest_is_waited_for(host: Host) -> None:
    host.saved("web", host.images / "web")
    assert [(d["name"], d["kind"], d["disks"][0]["state"]) for d in host.list()["guests"]] == [
        ("web", "saved", "missing")
    ]


def test_saved_guests_come_first_as_in_xendomains(host: Host, tmp_path: Path) -> None:
    host.guest("auto", host.image("a"))
    host.saved("saved", host.image("b"))
    assert [domain["kind"] for domain in host.list()["guests"]] == ["saved", "auto"]
