# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Hypothesis strategies for configurations: mostly valid, with typical human errors and disk corruption.

Texts represent bytes: each character (U+0000 to U+00FF) is one byte.
"""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "data" / "xl-corpus"

BYTES = st.characters(max_codepoint=255)

PREFIXES = [
    "phy:", "file:", "tap:", "tap2:", "tapdisk:", "aio:", "ioemu:", "raw:", "qcow:", "qcow2:", "vhd:",
    "iscsi:", "nbd:", "enbd:", "drbd:", "phony:", "rbd:", "a1:", "A:", "a-b:",
]  # fmt: skip
TARGETS = [
    "/dev/vg0/web", "/srv/with space.img", "/dev/disk/by-path/ip-192.0.2.10:3260-iscsi-iqn.x:y-lun-0",
    "relative/path", "pool/image", "", " ", "/a=b", "iqn.2001-05.com.example:y", "cdrom",
]  # fmt: skip
KEYS = [
    "format", "vdev", "access", "target", "backend", "backendtype", "script", "devtype", "specification",
    "colo-host", "colo-port", "colo-export", "active-disk", "hidden-disk", "unknown", "Upper", "a_b",
]  # fmt: skip
VALUES = [
    "raw", "qcow2", "vhd", "qed", "empty", "xvda", "hdc", "hdc:cdrom", "hdd:disk", "sda:tape", "r", "w", "ro", "rw",
    "phy", "tap", "qdisk", "standalone", "cdrom", "disk", "block-iscsi", "storage", "0", "Domain-0", "xen", "virtio",
    "8080", "", " ", "x=y",
]  # fmt: skip
FLAGS = ["cdrom", "direct-io-safe", "discard", "no-discard", "colo", "no-colo", "cdrom "]
BLANKS = ["", "", "", "", " ", "\t", "  ", " \t "]

parameter = st.one_of(
    st.sampled_from(TARGETS),
    st.sampled_from(VALUES),
    st.sampled_from(FLAGS),
    st.builds("{}{}".format, st.sampled_from(PREFIXES), st.sampled_from(TARGETS)),
    st.builds("{}={}".format, st.sampled_from(KEYS), st.one_of(st.sampled_from(VALUES), st.sampled_from(TARGETS))),
    st.text(st.one_of(BYTES, st.sampled_from("=,: \n/abz09-")), max_size=8),
)

loose_specification = st.lists(st.builds("{}{}".format, st.sampled_from(BLANKS), parameter), max_size=6).map(",".join)

good_specification = st.one_of(
    st.builds(
        "{},{},{},{}".format,
        st.sampled_from(TARGETS),
        st.sampled_from(["", "raw", "qcow2"]),
        st.sampled_from(["xvda", "hdc:cdrom", "xvdb", "sda:disk"]),
        st.sampled_from(["w", "rw", "r", "", "rw,discard", "cdrom"]),
    ),
    st.builds(
        "{}{},{},{}".format,
        st.sampled_from(PREFIXES[:14]),
        st.sampled_from(TARGETS),
        st.sampled_from(["xvda", "hdc:cdrom"]),
        st.sampled_from(["w", "r"]),
    ),
    st.builds(
        "{}{}{}target={}".format,
        st.permutations(["vdev=xvda,", "format=raw, ", "access=rw,", "script=block-x,"]).map("".join),
        st.sampled_from(["", "backendtype=qdisk,", "devtype=cdrom,", "backend=storage, "]),
        st.sampled_from(BLANKS),
        st.sampled_from(TARGETS),
    ),
)

specification = st.one_of(good_specification, loose_specification)


def quoted(text: str) -> str:
    """Return the text as a string in xl.cfg."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


ODD_STRINGS = [
    r'"\0 12"', r'"\012x"', r'"\01"', r'"\0-1"', r'"\0+12"', r'"\7123"', r'"\x41"', r'"\q"', r'"\t\'\"\\"',
    r"'it\'s'", "'a\"b'", '"open', "'open", '"a\\', '"\\', '"new\nline"', '"\0"', '"a\0b"', '""', "''", "'\x80\xff'",
    '"\\8"', '"\\0\t12"', '"\\0 + 1"', '"\\1\\2"', '"\\0\v\f\r"', '"\\012\\012"',
]  # fmt: skip
NUMBERS = ["0", "1", "512", "0x40", "0100", "0xfg", "12ab", "9x", "True", "4G", "None", "Falsehood"]
NAMES = ["name", "disk", "memory", "kernel", "a", "a.b_c9", "vcpus", "Name", "_x", "on_reboot"]

value = st.recursive(
    st.one_of(specification.map(quoted), st.sampled_from(ODD_STRINGS), st.sampled_from(NUMBERS)),
    lambda inner: st.builds(
        "[{}{}{}]".format,
        st.sampled_from(["", " ", "\n", " # c\n"]),
        st.lists(inner, max_size=4).flatmap(
            lambda items: st.sampled_from([", ", ",", ",\n", " ,\n\n", " "]).map(lambda comma: comma.join(items))
        ),
        st.sampled_from(["", ",", " ,\n", "\n", ",,"]),
    ),
    max_leaves=6,
)

assignment = st.builds(
    "{}{}{}".format,
    st.sampled_from(NAMES),
    st.sampled_from(["=", " = ", "+=", " += ", "=\n", " ", "=="]),
    value,
)

good_assignment = st.one_of(
    st.builds("name={}".format, st.sampled_from(['"web"', "'mail'", "17", '""'])),
    st.builds(
        "disk {} [{}]".format, st.sampled_from(["=", "+="]), st.lists(good_specification.map(quoted)).map(",".join)
    ),
    st.builds("{}={}".format, st.sampled_from(["memory", "vcpus"]), st.sampled_from(NUMBERS[:5])),
    st.sampled_from(["# a comment", "", "   ", 'kernel="/boot/vmlinuz"']),
)

ends = st.sampled_from(["\n", "\n", "\n", ";", "\n\n", " # c\n", "\r\n", "", " "])

configuration = st.one_of(
    st.lists(st.builds("{}{}".format, good_assignment, st.sampled_from(["\n", ";", "\n\n"])), max_size=6),
    st.lists(st.builds("{}{}".format, st.one_of(good_assignment, assignment), ends), max_size=6),
).map("".join)

corpus = st.sampled_from(sorted(path.read_bytes().decode("latin-1") for path in CORPUS.glob("*.cfg")))


@st.composite
def mutated(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> str:
    """Return one of the texts with a few pieces removed, doubled or replaced."""
    text = draw(texts)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 6)))
        piece = draw(
            st.one_of(
                st.sampled_from(
                    ["", text[start:end] * 2, "\n", '"', "'", "\\", "[", "]", ",", "=", "+=", "#", ";", "\r"]
                ),
                st.text(BYTES, max_size=3),
            )
        )
        text = text[:start] + piece + text[end:]
    return text


any_configuration = st.one_of(configuration, mutated(corpus), mutated(configuration))
