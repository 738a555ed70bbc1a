# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""What hosts told of their storage, kept as text in tests/data/hosts: reads it, and puts it on disk as it was there."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import xendomains_wait_disk as xwd

HOSTS = Path(__file__).parent / "data" / "hosts"


class HostPaths(NamedTuple):
    """Where a host tells about its storage."""

    sys: str = "/sys"
    run: str = "/run"
    proc: str = "/proc"
    etc: str = "/etc"
    var: str = "/var"
    usr: str = "/usr"

    def use(self) -> None:
        """Has the program look there, until the test ends (see conftest.py)."""
        for name, path in self._asdict().items():
            setattr(xwd, name.upper(), path)


def paths_below(root: Path) -> HostPaths:
    """A host that is in a directory."""
    return HostPaths(*(f"{root}/{name}" for name in HostPaths._fields))


class Entry(NamedTuple):
    """A file, or if target says so a symbolic link."""

    path: str
    text: str
    target: str = ""


def entries(host: str) -> list[Entry]:
    """What was recorded of a host, such as "lvm/active"."""
    found: list[Entry] = []
    for part in f"\n{(HOSTS / f'{host}.tree').read_text()}".split("\n== ")[1:]:
        header, _, text = part.partition("\n")
        path, _, target = header.partition(" -> ")
        # The newline that ends the last line went with the mark of the next file.
        found.append(Entry(path.lstrip("/"), f"{text}\n" if text and not text.endswith("\n") else text, target))
    return found


def unpack(host: str, root: Path) -> Path:
    """Puts it below a directory, and returns that."""
    for entry in entries(host):
        path = root / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.target:
            path.symlink_to(entry.target)
        else:
            path.write_text(entry.text)
    return root
