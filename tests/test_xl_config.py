# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""xl.cfg and disk specifications: compared with the output of the real xl for 31 files, and the error messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CORPUS
from hypothesis import given
from hypothesis import strategies as st
from strategies import any_configuration, quoted, specification

import xendomains_wait_disk as xwd

# Refused by xl because of its usbdev, which the module ignores.
FOR_OTHER_REASONS = "25-nested-and-numbers"

CONFIGURATIONS = sorted(CORPUS.glob("*.cfg"))


def parse(text: str) -> xwd.Domain:
    return xwd.domain_from_xl_config(text, "/etc/xen/auto/web.cfg", "auto")


def refusal(text: str) -> str:
    with pytest.raises(xwd.ConfigError) as refused:
        parse(text)
    return str(refused.value)


def test_corpus_is_complete() -> None:
    assert len(CONFIGURATIONS) == 31


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: file.stem)
def test_corpus_is_read_as_xl_read_it(file: Path) -> None:
    answer = file.with_suffix(".json")
    text = file.read_bytes().decode()
    if not answer.exists() and file.stem != FOR_OTHER_REASONS:
        refusal(text)
        return
    domain = parse(text)
    if file.stem == FOR_OTHER_REASONS:
        assert [disk.target for disk in domain.disks] == ["/dev/vg0/nest", "/dev/vg0/nest2"]
        return
    xl = json.loads(answer.read_text())
    assert domain.name == xl["c_info"]["name"]
    # xl prints the same JSON as in a saved guest, so both parsers must give the same result.
    assert list(domain.disks) == [xwd.disk_from_json({"format": "raw", **disk}) for disk in xl.get("disks", [])]


def lines_xl_names() -> Iterator[tuple[str, str]]:
    """Yield the configurations for which xl reports the line of an error, and that line."""
    for file in CONFIGURATIONS:
        errors = file.with_suffix(".err")
        if errors.exists() and (line := re.match(r"[^:]+:(\d+): config parsing error", errors.read_text())):
            yield file.name, line.group(1)


@pytest.mark.parametrize(("name", "line"), list(lines_xl_names()))
def test_errors_name_the_line_that_xl_names(name: str, line: str) -> None:
    assert refusal((CORPUS / name).read_bytes().decode()).startswith(f"line {line}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name="a"\r\n', "line 1: lexical error near '\r': the file has Windows line endings"),
        ('name="a\n', "line 1: lexical error near '\"': a string that does not end on its line"),
        ('name="a"\n# end', "line 2: lexical error near '#': a comment on the last line needs a newline at its end"),
        ("import os\n", f"line 1: syntax error near 'os', expected = or +=; import is {xwd.PYTHON}"),
        ("def f():\n", f"line 1: syntax error near 'f', expected = or +=; def is {xwd.PYTHON}"),
        ("pae True\n", "line 1: lexical error near 'True': " + xwd.PYTHON + "; write 1 for True, and 0 for False"),
        ('a="x" + "y"\n', f"line 1: lexical error near '+': {xwd.PYTHON}"),
        ('a="%s" % 1\n', f"line 1: lexical error near '%': {xwd.PYTHON}"),
        ("memory=4G\n", "line 1: lexical error near 'G': xl does not know this character (memory is in MiB, "
         "without a unit)"),
        ("a=[1, \\\n2]\n", "line 1: lexical error near '\\': a backslash at the end of a line is a leftover from xm "
         "(xl does not run Python); a list may span lines without it"),
        ('\ufeffname="a"\n', "line 1: lexical error near '\ufeff': the file begins with a byte order mark; "
         "save it without one"),
        ('disk=["a"\nvcpus=1\n', "line 2: syntax error near 'vcpus', expected , or ]"),
        ('disk=["a"', "line 1: syntax error near the end of the file, expected , or ]"),
        ("a=1 b=2\n", "line 1: syntax error near 'b', expected the end of the line or ;"),
        ("a=\n1\n", "line 1: syntax error near the end of the line, expected a string, a number or '['"),
        ("a=[,]\n", "line 1: syntax error near ',', expected a string, a number or '['"),
        ('a="x"\na+=[1]\n', "line 2: += cannot join a list and a string"),
        ('\na="\\q"\n', "line 2: an invalid character 'q' after a backslash in '\"\\q\"'"),
        ('a="\\7"\n', "line 1: too few digits after a backslash in '\"\\7\"'"),
        ('a="\0"\n', "line 1: a NUL byte in the string '\"\0\"'"),
        ("memory=1\n", 'does not name the domain (name = "…" is missing)'),
        ('name=["a"]\n', "line 1: name is a list, not a string"),
        ('name="a"\ndisk=["/x"]\n', "disk '/x': no vdev given (the list ends on line 2)"),
    ],
)  # fmt: skip
def test_error_names_the_line_and_the_text(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("/dev/x,raw,xvda,rw,more", "too many positional parameters, at 'more'"),
        ("/dev/x,rw,xvda", "unknown format 'rw'"),
        ("/dev/x,raw,xvda,x", "unknown access 'x'"),
        ("/dev/x,raw,xvda:tape", "unknown devtype 'tape'"),
        ("phony:/dev/x,xvda", "unknown prefix 'phony:'"),
        ("colour=red,vdev=xvda,target=/x", "unknown parameter 'colour'"),
        ("vdev=xvda,vdev=xvdb,target=/x", "vdev is given twice, the second time as 'xvdb'"),
        ("raw:/dev/x,xvda,format=qcow2", "format is given twice, the second time as 'qcow2'"),
        ("drbd:x,xvda,w,script=other", "script is given twice, the second time as 'other'"),
        ("vdev=xvda", "no target given"),
        ("vdev=xvda,=,", "bad syntax at '=,'"),
        ("backendtype=floppy,vdev=xvda,target=/x", "unknown backendtype 'floppy'"),
        ("access=x,vdev=xvda,target=/x", "unknown access 'x'"),
        ("specification=vmware,vdev=xvda,target=/x", "unknown specification 'vmware'"),
        ("grant_usage=2,vdev=xvda,target=/x", "unknown grant_usage '2'"),
        ("vdev=xvda,target=/a\nb", "contains a line break; remove it"),
        ("colo-port=0,vdev=xvda,target=/x", "not a colo-port: '0'"),
    ],
)
def test_error_in_a_disk_names_the_problem(specification: str, message: str) -> None:
    written = specification.replace("\n", "\\n")
    assert refusal(f'name="web"\ndisk=["{written}"]\n').startswith(f"disk '{specification}': {message}")


@pytest.mark.parametrize(
    "parameter",
    [
        "access=rw",
        "grant_usage=0",
        "grant_usage=1",
        "colo-port=8080",
        "colo-port= +08",
        "specification=virtio",
        "untrusted",
    ],
)
def test_irrelevant_disk_parameters_are_accepted(parameter: str) -> None:
    assert xwd.parse_disk(f"{parameter},vdev=xvda,target=/x") == xwd.Disk("xvda", "/x", "raw", writes=True)


def test_lone_equals_sign_at_the_end_is_ignored_as_by_xl() -> None:
    assert xwd.parse_disk("/x,raw,xvda,w,=") == xwd.Disk("xvda", "/x", "raw", writes=True)


def test_adjacent_strings_are_joined() -> None:
    assert parse('name="we"\nname+="b"\n').name == "web"


@pytest.mark.parametrize("prefix", ["dmmd", "npiv"])
def test_suse_prefixes_are_dropped_and_an_explicit_script_is_kept(prefix: str) -> None:
    assert xwd.parse_disk(f"{prefix}:/dev/vg/lv,xvda,w") == xwd.parse_disk("phy:/dev/vg/lv,xvda,w")
    assert xwd.parse_disk(f"script=block-{prefix},{prefix}:md;/dev/md0,xvda,w").script == f"block-{prefix}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('type="PV"', "line 2: unknown type 'PV' (use hvm or pv or pvh)"),
        ('builder="linux"', "line 2: unknown builder 'linux' (use hvm or generic)"),
        ('type="pv"\nbuilder="hvm"', "type and builder contradict each other (remove builder)"),
        ('type="pvh"\nbuilder="generic"', "type and builder contradict each other (remove builder)"),
    ],
)
def test_guest_type_refused_by_xl_is_refused(text: str, message: str) -> None:
    assert refusal(f'name="web"\n{text}\n') == message


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "pv"),
        ('type="pv"', "pv"),
        ('type="pvh"', "pvh"),
        ('type="p"', "pv"),  # xl compares only as many letters as are given
        ('type="hvm"\nbuilder="hvm"', "hvm"),
        ('type="pv"\nbuilder="generic"', "pv"),
        ('builder="hvm"', "hvm"),
        ('type=["PV"]', "pv"),
    ],
)
def test_guest_type_accepted_by_xl_is_accepted(text: str, kind: str) -> None:
    assert xwd.type_in(xwd.parse_xl_config(f"{text}\n")) == kind


@pytest.mark.parametrize(
    ("disks", "message"),
    [
        (["phy:,xvda,w"], "disk 'xvda' has no target, and only a CD drive may be empty"),
        (["/srv/x.iso,empty,xvda"], "disk 'xvda' has no target, and only a CD drive may be empty"),
        (["/dev/vg/a,raw,vda,w"], "unknown vdev 'vda' (use for example xvda, hda or sda)"),
        (["/dev/vg/a,raw,hde,w"], "unknown vdev 'hde' (use for example xvda, hda or sda)"),
        (["/dev/vg/a,raw,sda16,w"], "unknown vdev 'sda16' (use for example xvda, hda or sda)"),
        (["/dev/vg/a,raw,xvda01,w"], "unknown vdev 'xvda01' (use for example xvda, hda or sda)"),
        (["/dev/vg/a,raw,xvda,w", "/dev/vg/b,raw,xvda,w"], "two disks have the vdev 'xvda'"),
    ],
)
def test_disk_refused_by_libxl_is_refused(disks: list[str], message: str) -> None:
    assert refusal(f'name="web"\ndisk={json.dumps(disks)}\n') == message


def test_vdevs_known_to_libxl_are_accepted() -> None:
    """See xen-vbd-interface(7)."""
    vdevs = ["xvda", "xvda1", "xvdb255", "xvdzz", "hdd63", "sdp15", "d0p3", "d16p0", "51713", "0xca02"]
    text = f'name="web"\ndisk={json.dumps([f"/dev/x,raw,{vdev},w" for vdev in vdevs])}\n'
    assert [disk.vdev for disk in parse(text).disks] == vdevs


def test_disk_of_a_driver_domain_or_script_needs_no_target() -> None:
    assert len(parse('name="web"\ndisk=["backend=storage,phy:,xvda,w", "script=block-x,phy:,xvdb,w"]\n').disks) == 2


def test_disk_given_as_a_string_is_ignored_with_a_warning() -> None:
    domain = parse('name="web"\ndisk="/dev/x,raw,xvda"\n')
    assert domain.disks == ()
    assert domain.warnings == ("line 2: disk is a string, not a list, so xl gives the domain no disks",)


def test_list_of_disks_ends_at_the_first_list_in_it() -> None:
    assert len(parse('name="web"\ndisk=["/a,raw,xvda", ["/b,raw,xvdb"], "/c,raw,xvdc"]\n').disks) == 1


def test_invalid_utf8_reaches_the_file_system_unchanged() -> None:
    target = parse(b'name="w"\ndisk=["/srv/b\xfcro.img,raw,xvda"]\n'.decode("utf-8", "surrogateescape")).disks[0].target
    assert target.encode("utf-8", "surrogateescape") == b"/srv/b\xfcro.img"


@pytest.mark.promise("No file can make it crash or hang")
@given(any_configuration)
def test_any_configuration_is_either_read_or_refused(text: str) -> None:
    try:
        assert parse(text).source == "/etc/xen/auto/web.cfg"
    except xwd.ConfigError as refused:
        assert str(refused)


@given(specification)
def test_any_disk_specification_is_either_read_or_refused(text: str) -> None:
    try:
        assert xwd.parse_disk(text) == xwd.parse_disk(text)
    except xwd.ConfigError as refused:
        assert str(refused)


@given(st.text(st.characters(blacklist_characters="\0\n\r"), max_size=30))
def test_any_target_in_a_configuration_is_read_unchanged(target: str) -> None:
    disk = parse(f'name="web"\ndisk=[{quoted(f"vdev=xvda,target=/{target}")}]\n').disks[0]
    assert disk.target == f"/{target}".removesuffix(",")
