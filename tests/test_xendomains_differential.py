# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Which guests start, and how, agrees with what the two xendomains scripts ask xl for, on hundreds of hosts.

The scripts run as they are, but for where they look for files, with an xl that records what it is asked for. They are
the installed ones, or those in Debian's packages, which tests/setup unpacks: Debian's is in xen-utils-common, and
upstream's, which Debian does not use, in xen-utils-4.17 and the like.
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

PLACES = (Path("/"), MODULE.parent / ".venv" / "xen-utils")
NAME_PROGRAM = "usr/lib/xen-common/bin/xen-init-name"  # which Debian's script calls
DEBIANS = next((place for place in PLACES if (place / NAME_PROGRAM).exists()), None)
UPSTREAMS = next((path for place in PLACES for path in place.glob("usr/lib*/xen*/bin/xendomains")), None)

# "xl" for both scripts: says which guests run, and starts those of the files named in `accepted`.
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
    [ $# = 1 ] || exit 1  # a name with a blank in it, which was not quoted
    printf '%s\t%s\n' "$action" "$1" >>asked
    [ "$name" ] && ! grep -qxF -e "$name" running && echo "$name" >>running ;;
esac
"""

LSB = 'for f in log_action_begin_msg log_action_end_msg log_action_msg; do eval "$f() { :; }"; done\n'
HOTPLUGPATH = "sbindir={root}/bin\nbindir={root}/bin\nXEN_LOCK_DIR={root}\n"


class File(NamedTuple):
    """A file in one of the directories."""

    name: str
    content: str  # what it is: a key of SAVED or CONFIGURED
    guest: str


FLAGS = xwd.SAVED_STREAM_V2
Contents = dict[str, tuple[Callable[[bytes], bytes], bool]]
# What can be in the directory of saved guests, and whether xl restores it.
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
# Debian's script does not get to know the guest's name then, and so none other may have it.
with_a_blank = st.sampled_from([File("my web.cfg", "good", "my"), File("my mail", "refused", "mine")])


def unique(files: st.SearchStrategy[File]) -> st.SearchStrategy[list[File]]:
    return st.lists(files, max_size=6, unique_by=lambda file: file.name)


RESTORE = st.sampled_from(["true", "true", "true", "True", "yes", "false", "1", "0", "", " ", " true"])


class Asked(NamedTuple):
    """What a script asks xl for, in its order."""

    how: str
    file: str


class Xen:
    """A made-up host with these files, the script and the xl."""

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
        for name in ("running", "asked", "accepted"):
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
                os.utime(target, (0, 0))  # a file that has just changed may be half written
                if content == "link":
                    path.symlink_to(target)
                if is_accepted:
                    self.accepted[str(path)] = guest

    def run(self, script: str) -> list[Asked]:
        """What this script asks for when it starts guests."""
        file = self.root / "etc" / "init.d" / "xendomains"
        file.write_text(script)
        environment = {"PATH": f"{self.root}/bin:{os.environ['PATH']}", "LC_ALL": "C"}
        command = ["bash", str(file), "start"]
        subprocess.run(command, cwd="/", env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=CAP)
        return [Asked(*line.split("\t")) for line in (self.root / "bin" / "asked").read_text().splitlines()]

    def ours(self) -> list[Asked]:
        """What we say that it does."""
        clock = xwd.Clock()
        ours = xwd.Settings(xendomains=(str(self.settings),))
        xendomains, problems = xwd.read_xendomains(ours, clock, CAP)
        assert xendomains and not problems
        snapshot = xwd.Watcher(xendomains, ours, clock).look(clock.now() + CAP)
        starts = {file: guest.start for file, guest in snapshot.guests.items()}
        return [Asked(start.how, file) for file, start in starts.items() if start.how != "none"]


Script = Callable[[Xen], list[Asked]]


@pytest.fixture(scope="module")
def count() -> Iterator[dict[str, int]]:
    yield (counted := dict.fromkeys(("hosts", "asked"), 0))
    print(f"{counted['hosts']} hosts compared, on which xl was asked {counted['asked']} times")


def compare(
    script: Script, count: dict[str, int], leaf: str, saved: list[File], configured: list[File], restore: str
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        xen = Xen(Path(directory), leaf, saved, configured, restore)
        init = xen.root / "etc" / "init.d" / "xendomains"
        init.write_text("$LIBEXEC_BIN/xendomains start\n" if leaf != "default" else "")
        predicted = xen.ours()
        asked = script(xen)
        assert predicted == asked
        count["hosts"] += 1
        count["asked"] += len(asked)


def debians(xen: Xen) -> list[Asked]:
    """What Debian's script asks for."""
    assert DEBIANS
    script = (DEBIANS / "etc/init.d/xendomains").read_text()
    (xen.root / "lsb").write_text(LSB)
    for path, ours in {
        "/etc/default/xendomains": xen.settings,
        "/lib/lsb/init-functions": xen.root / "lsb",
        "/lib/init/vars.sh": "/dev/null",
        "/proc/xen/privcmd": "/dev/null",
        "/usr/lib/xen-common/": DEBIANS / "usr/lib/xen-common",
    }.items():
        assert path in script
        script = script.replace(path, f"{ours}/" if path.endswith("/") else str(ours))
    return xen.run(script)


def upstreams(xen: Xen) -> list[Asked]:
    """What upstream's script asks for."""
    assert UPSTREAMS
    (xen.root / "hotplugpath").write_text(HOTPLUGPATH.format(root=xen.root))
    script = UPSTREAMS.read_text().replace("/dev/xen/privcmd", "/dev/null").replace("/lib/lsb/", "/nowhere/")
    for line, ours in {
        r"^\. .*/hotplugpath\.sh$": f". {xen.root}/hotplugpath",
        r"^XENDOM_CONFIG=.*$": f"XENDOM_CONFIG={xen.settings}",
    }.items():
        script, found = re.subn(line, ours, script, flags=re.MULTILINE)
        assert found == 1
    return xen.run(script)


examples = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.promise("Guests that xendomains does not start are not waited for, and the reason is given")
@pytest.mark.skipif(not DEBIANS, reason="Debian's xendomains is not here (package xen-utils-common)")
@given(unique(saved_files), unique(configurations | with_a_blank), RESTORE)
@examples
def test_same_guests_start_as_with_debians_xendomains(
    count: dict[str, int], saved: list[File], configured: list[File], restore: str
) -> None:
    compare(debians, count, "default", saved, configured, restore)


@pytest.mark.promise("Guests that xendomains does not start are not waited for, and the reason is given")
@pytest.mark.skipif(not UPSTREAMS, reason="upstream's xendomains is not here (package xen-utils-4.17 or the like)")
@given(unique(saved_files), unique(configurations | with_a_blank), RESTORE)
@examples
def test_same_guests_start_as_with_upstreams_xendomains(
    count: dict[str, int], saved: list[File], configured: list[File], restore: str
) -> None:
    compare(upstreams, count, "sysconfig", saved, configured, restore)
