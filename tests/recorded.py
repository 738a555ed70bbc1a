# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Recorded hosts: reads and unpacks the files in tests/data/hosts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import xendomains_wait_disk as xwd

HOSTS = Path(__file__).parent / "data" / "hosts"


class HostPaths(NamedTuple):
    """The directories that describe the storage of a host."""

    sys: str = "/sys"
    run: str = "/run"
    proc: str = "/proc"
    etc: str = "/etc"
    var: str = "/var"
    usr: str = "/usr"

    def use(self) -> None:
        """Make the program look there until the end of the test (see conftest.py)."""
        for name, path in self._asdict().items():
            setattr(xwd, name.upper(), path)


def paths_below(root: Path) -> HostPaths:
    """Return the paths of a host whose files are in a directory."""
    return HostPaths(*(f"{root}/{name}" for name in HostPaths._fields))


class Entry(NamedTuple):
    """A file, or a symbolic link if it has a target."""

    path: str
    text: str
    target: str = ""


def entries(host: str) -> list[Entry]:
    """Return the files recorded for a host, such as "lvm/active"."""
    found: list[Entry] = []
    for part in f"\n{(HOSTS / f'{host}.tree').read_text()}".split("\n== ")[1:]:
        header, _, text = part.partition("\n")
        path, _, target = header.partition(" -> ")
        # The separator of the next file has swallowed the newline at the end of the last line.
        found.append(Entry(path.lstrip("/"), f"{text}\n" if text and not text.endswith("\n") else text, target))
    return found


def unpack(host: str, root: Path) -> Path:
    """Unpack a recorded host into a directory and return that directory."""
    for entry in entries(host):
        path = root / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.target:
            path.symlink_to(entry.target)
        else:
            path.write_text(entry.text)
    return root
