# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The guests that start, and how, are the same as with the two xendomains scripts, on hundreds of made-up hosts.

The scripts run unchanged, except for the paths in them, with a fake xl that records its calls. They are the installed
ones, or those in Debian's packages as unpacked by tests/setup: Debian's script is in xen-utils-common, upstream's
script, which Debian does not use, in xen-utils-4.17 and the like.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import CAP, MODULE, saved_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xendomains_wait_disk as xwd

EXAMPLES = 100

ROOTS = (Path("/"), MODULE.parent / ".venv" / "xen-utils")
NAME_PROGRAM = "usr/lib/xen-common/bin/xen-init-name"  # called by Debian's script
DEBIAN_ROOT = next((root for root in ROOTS if (root / NAME_PROGRAM).exists()), None)
UPSTREAM_SCRIPT = next((path for root in ROOTS for path in root.glob("usr/lib*/xen*/bin/xendomains")), None)

# A fake xl for both scripts: it lists running guests, and starts those of the files listed in `accepted`.
XL = r"""#!/bin/sh
cd "${0%/*}" || exit
action=$1 options= name=
shift
while [ "${1#-}" != "$1" ]; do options="$options $1"; shift; done
while IFS='	' read -r file guest; do [ "$file" != "${1-}" ] || name=$guest; done <accepted
case $action$options in
list) ;;
"list -l")
    echo '['
    while read -r guest; do
        printf '    {\n        "domid": 7,\n        "config": {\n            "name": "%s",\n        }\n    }\n' "$guest"
    done <running
    echo ']' ;;
domid) grep -qxF -e "$1" running ;;
*--dryrun*)
    [ "$name" ] && printf '{\n    "c_info": {\n        "name": "%s",\n        "uuid": "0"\n    }\n}\n' "$name" ;;
restore | create*)
    [ $# = 1 ] || exit 1  # an unquoted name with a blank
    printf '%s\t%s\n' "$action" "$1" >>calls
    [ "$name" ] && ! grep -qxF -e "$name" running && echo "$name" >>running ;;
esac
"""

LSB = 'for f in log_action_begin_msg log_action_end_msg log_action_msg; do eval "$f() { :; }"; done\n'
HOTPLUGPATH = "sbindir={root}/bin\nbindir={root}/bin\nXEN_LOCK_DIR={root}\n"


class File(NamedTuple):
    """A file in one of the directories."""

    name: str
    content: str  # a key of SAVED or CONFIGURED
    guest: str


FLAGS = xwd.SAVED_STREAM_V2
Contents = dict[str, tuple[Callable[[bytes], bytes], bool]]
# Possible files in the directory of saved guests, and whether xl restores them.
SAVED: Contents = {
    "good": (lambda guest: saved_file(b'name="%s"\n' % guest, FLAGS), True),
    "cut": (lambda guest: saved_file(b'name="%s"\n' % guest, FLAGS, image=b"LibxlFmt and half"), False),
    "foreign": (lambda guest: b"Xen saved domain, of another toolstack\n", False),
    "text": (lambda guest: b"Read me.\n", False),
    "empty": (lambda guest: b"", False),
}
CONFIGURED: Contents = {
    "good": (lambda guest: b'name="%s"\n' % guest, True),
    "refused": (lambda guest: b"name=%s\n" % guest, False),
    "empty": (lambda guest: b"", False),
}

GUESTS = st.sampled_from(["web", "web", "mail", "db", "web-old"])
saved_files = st.builds(
    File,
    st.sampled_from(["web", "web-old", "web.txt", "web.cfg", "web_2", "mail", "db", "db1", "my web", ".mail", "a.cfg"]),
    st.sampled_from([*SAVED, "good", "directory", "link"]),
    GUESTS,
)
configurations = st.builds(
    File,
    st.sampled_from(
        ["web", "web.cfg", "web.cfg~", "web-old", "mail", "mail.cfg", "db.web", "a-cfg", "1db", ".gitkeep"]
    ),
    st.sampled_from([*CONFIGURED, "good", "good", "directory", "link", "dangling"]),
    GUESTS,
)
# Debian's script cannot find out the name of such a guest, so no other guest may have the same name.
with_a_blank = st.sampled_from([File("my web.cfg", "good", "my"), File("my mail", "refused", "mine")])


def unique(files: st.SearchStrategy[File]) -> st.SearchStrategy[list[File]]:
    return st.lists(files, max_size=6, unique_by=lambda file: file.name)


RESTORE = st.sampled_from(["true", "true", "true", "True", "yes", "false", "1", "0", "", " ", " true"])


class XlCall(NamedTuple):
    """A call of xl that starts a guest."""

    how: str
    file: str


class Xen:
    """A made-up host with these files, a script and the fake xl."""

    def __init__(self, root: Path, leaf: str, saved: Sequence[File], configured: Sequence[File], restore: str) -> None:
        self.root = root
        self.save, self.auto, self.settings = root / "save", root / "auto", root / "etc" / leaf / "xendomains"
        (root / "bin").mkdir()
        (root / "etc" / "init.d").mkdir(parents=True)
        self.settings.parent.mkdir()
        self.settings.write_text(
            f"XENDOMAINS_SAVE={self.save}\nXENDOMAINS_AUTO={self.auto}\nXENDOMAINS_RESTORE='{restore}'\n"
        )
        for name in ("xl", "xen"):
            (root / "bin" / name).write_text(XL)
            (root / "bin" / name).chmod(0o755)
        for name in ("running", "calls", "accepted"):
            (root / "bin" / name).touch()
        self.accepted: dict[str, str] = {}
        self._put(self.save, saved, SAVED)
        self._put(self.auto, configured, CONFIGURED)
        lines = "".join(f"{file}\t{guest}\n" for file, guest in self.accepted.items())
        (root / "bin" / "accepted").write_text(lines)

    def _put(self, directory: Path, files: Sequence[File], contents: Contents) -> None:
        directory.mkdir()
        for number, (name, content, guest) in enumerate(files):
            path = directory / name
            if content == "directory":
                path.mkdir()
            elif content == "dangling":
                path.symlink_to("/nowhere/at/all")
            else:
                make, is_accepted = contents["good" if content == "link" else content]
                target = self.root / f"{directory.name}-{number}" if content == "link" else path
                target.write_bytes(make(guest.encode()))
                os.utime(target, (0, 0))  # old enough not to be half-written
                if content == "link":
                    path.symlink_to(target)
                if is_accepted:
                    self.accepted[str(path)] = guest

    def run(self, script: str) -> list[XlCall]:
        """Run a script and return its calls of xl."""
        file = self.root / "etc" / "init.d" / "xendomains"
        file.write_text(script)
        environment = {"PATH": f"{self.root}/bin:{os.environ['PATH']}", "LC_ALL": "C"}
        command = ["bash", str(file), "start"]
        subprocess.run(command, cwd="/", env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=CAP)
        return [XlCall(*line.split("\t")) for line in (self.root / "bin" / "calls").read_text().splitlines()]

    def predicted_calls(self) -> list[XlCall]:
        """Return the calls that the module predicts."""
        clock = xwd.Clock()
        ours = xwd.Settings(xendomains=(str(self.settings),))
        xendomains, problems = xwd.read_xendomains(ours, clock, CAP)
        assert xendomains and not problems
        snapshot = xwd.Watcher(xendomains, ours, clock).look(clock.now() + CAP)
        starts = {file: guest.start for file, guest in snapshot.guests.items()}
        return [XlCall(start.how, file) for file, start in starts.items() if start.how != "none"]


Script = Callable[[Xen], list[XlCall]]


@pytest.fixture(scope="module")
def count() -> Iterator[dict[str, int]]:
    yield (counted := dict.fromkeys(("hosts", "calls"), 0))
    print(f"{counted['hosts']} hosts compared, with {counted['calls']} calls of xl")


def compare(
    script: Script, count: dict[str, int], leaf: str, saved: list[File], configured: list[File], restore: str
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        xen = Xen(Path(directory), leaf, saved, configured, restore)
        init = xen.root / "etc" / "init.d" / "xendomains"
        init.write_text("$LIBEXEC_BIN/xendomains start\n" if leaf != "default" else "")
        predicted = xen.predicted_calls()
        calls = script(xen)
        assert predicted == calls
        count["hosts"] += 1
        count["calls"] += len(calls)


def debian_calls(xen: Xen) -> list[XlCall]:
    """Return the calls of Debian's script."""
    assert DEBIAN_ROOT
    script = (DEBIAN_ROOT / "etc/init.d/xendomains").read_text()
    (xen.root / "lsb").write_text(LSB)
    for path, ours in {
        "/etc/default/xendomains": xen.settings,
        "/lib/lsb/init-functions": xen.root / "lsb",
        "/lib/init/vars.sh": "/dev/null",
        "/proc/xen/privcmd": "/dev/null",
        "/usr/lib/xen-common/": DEBIAN_ROOT / "usr/lib/xen-common",
    }.items():
        assert path in script
        script = script.replace(path, f"{ours}/" if path.endswith("/") else str(ours))
    return xen.run(script)


def upstream_calls(xen: Xen) -> list[XlCall]:
    """Return the calls of upstream's script."""
    assert UPSTREAM_SCRIPT
    (xen.root / "hotplugpath").write_text(HOTPLUGPATH.format(root=xen.root))
    script = UPSTREAM_SCRIPT.read_text().replace("/dev/xen/privcmd", "/dev/null").replace("/lib/lsb/", "/nowhere/")
    for line, ours in {
        r"^\. .*/hotplugpath\.sh$": f". {xen.root}/hotplugpath",
        r"^XENDOM_CONFIG=.*$": f"XENDOM_CONFIG={xen.settings}",
    }.items():
        script, found = re.subn(line, ours, script, flags=re.MULTILINE)
        assert found == 1
    return xen.run(script)


examples = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.promise("Guests that xendomains does not start are not waited for, and the reason is given")
@pytest.mark.skipif(not DEBIAN_ROOT, reason="Debian's xendomains is not available (package xen-utils-common)")
@given(unique(saved_files), unique(configurations | with_a_blank), RESTORE)
@examples
def test_same_guests_start_as_with_debians_xendomains(
    count: dict[str, int], saved: list[File], configured: list[File], restore: str
) -> None:
    compare(debian_calls, count, "default", saved, configured, restore)


@pytest.mark.promise("Guests that xendomains does not start are not waited for, and the reason is given")
@pytest.mark.skipif(
    not UPSTREAM_SCRIPT, reason="upstream's xendomains is not available (package xen-utils-4.17 or the like)"
)
@given(unique(saved_files), unique(configurations | with_a_blank), RESTORE)
@examples
def test_same_guests_start_as_with_upstreams_xendomains(
    count: dict[str, int], saved: list[File], configured: list[File], restore: str
) -> None:
    compare(upstream_calls, count, "sysconfig", saved, configured, restore)
