# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Fuzz the parsers for the XML of libvirt's guests and for the header written by virsh managedsave."""

from __future__ import annotations

import io
import os
import sys

from harness import fuzz

import xendomains_wait_disk as xwd

PIECES = [
    b"<a>", b"<a/>", b"</a>", b"<a><a></a></a>", b"&", b"&lt;", b"&#10;", b"<!--", b"<![CDATA[", b'<a b="', b"<a ",
    b'a="" ', b"<?a?>", b"<!DOCTYPE ", b"\xff", b"\0", b" ", b"\n",
]  # fmt: skip


def check(content: bytes) -> bool:
    """Check that the input is either parsed or refused as XML, as a managed save, and as XML after a valid header."""
    texts = [os.fsdecode(content)]
    for saved in (content, with_header(content)):
        try:
            texts.append(xwd.saved_by_libvirt(io.BytesIO(saved)))
        except xwd.ConfigError as refused:
            assert str(refused)
    results = [is_domain(text) for text in texts]  # check all of them
    return any(results)


def is_domain(text: str) -> bool:
    """Return whether the XML is accepted. Each of its disks must need a path or have a reason why not."""
    try:
        domain = xwd.domain_from_libvirt_xml(text, "/etc/libvirt/libxl/autostart/fuzz.xml")
    except xwd.ConfigError as refused:
        assert str(refused)
        return False
    assert domain.name
    for required in map(xwd.required_by, domain.all_disks()):
        assert required.path.startswith("/") or required.reason
    return True


def with_header(xml: bytes) -> bytes:
    """Return the XML in a file like those of virsh managedsave."""
    words = b"".join(word.to_bytes(4, sys.byteorder) for word in (2, len(xml)))
    return (xwd.LIBVIRT_MAGIC + words).ljust(xwd.LIBVIRT_HEADER, b"\0") + xml + xwd.SAVED_END


if __name__ == "__main__":
    fuzz(check, PIECES, xwd.MAX_CONFIGURATION)
