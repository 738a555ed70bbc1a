# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Real Xen hosts in a virtual machine: their description, and the results of their boot."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import tarfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
TOP = HERE.parent.parent

# The Debian release of the host, from RELEASE= in the environment.
DEFAULT_RELEASE = "bookworm"
RELEASE = os.environ.get("RELEASE") or DEFAULT_RELEASE

# A boot takes 30 to 200 seconds, more on a busy machine. The host's watchdog reports before this timeout.
BOOT_TIMEOUT = 900
REPORT_SIZE = 64 << 20

# Mitigations slow down an emulated CPU more than a real one, so turn them off. But without them Xen switches the FPU
# lazily, and then QEMU 7.2 occasionally loses vector registers, and programs on the host crash.
SPEC_CTRL = "spec-ctrl=no,eager-fpu"


class Disk(NamedTuple):
    """A disk of the host, /dev/disk/by-id/virtio-NAME: empty, or with the data that another host left on it."""

    name: str
    mebibytes: int = 64
    left_by: Host | None = None


class Guest(NamedTuple):
    """A guest that starts at boot; its disks are written as in xl-disk-configuration(5)."""

    name: str
    disks: tuple[str, ...] = ()
    # Whether the guest should come up. If not, its report is not waited for.
    starts: bool = True
    more: str = ""
    # The path of its configuration, if not in the auto directory.
    at: str = ""

    def configuration(self) -> str:
        """Return the xl.cfg."""
        vdevs = ",".join(vdev for disk in self.disks for vdev in re.findall(r"\bxvd[a-z]\b", disk))
        return (
            f'name = "{self.name}"\ntype = "pv"\nkernel = "/boot/guest"\nramdisk = "/boot/guest.img"\nmemory = 160\n'
            f'extra = "console=hvc0 quiet mitigations=off vdevs={vdevs}"\n'
            f"disk = {json.dumps(self.disks)}\n{self.more}\n"
        )


class Host(NamedTuple):
    """The files and scripts of a scenario. The shell scripts can use the functions in dom0/dom0."""

    guests: tuple[Guest, ...] = ()
    disks: tuple[Disk, ...] = ()
    # Additional files by path, and whether our package is installed.
    files: Mapping[str, str] = {}
    package: bool = True
    # The initramfs. initrd-mdadm.img is the one that Debian creates if mdadm is installed; it assembles arrays.
    initrd: str = "initrd.img"
    # Run before systemd starts; before remote file systems are mounted; in the background; after guests have started.
    setup: str = ""
    early: str = ""
    late: str = ""
    after: str = ""
    # What the program waits for: paths of block devices, names passed to `ready`, or kernel messages.
    awaited: tuple[str, ...] = ()

    def all_files(self) -> dict[str, str]:
        """Return all files to put on the host, by path."""
        files = {guest.at or f"/etc/xen/auto/{guest.name}.cfg": guest.configuration() for guest in self.guests}
        files.update(self.files)
        files["/scenario/dom0"] = (HERE / "dom0" / "dom0").read_text()
        files["/scenario/guests"] = "".join(f"{guest.name}\n" for guest in self.guests if guest.starts)
        for unit in (HERE / "dom0" / "units").iterdir():
            files[f"/scenario/units/{unit.name}"] = unit.read_text()
        for stage in ("setup", "early", "late", "after"):
            if script := getattr(self, stage):
                files[f"/scenario/{stage}"] = script
        return files

    def identity(self) -> str:
        """Return a hash that differs between hosts."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


class Boot:
    """The result of booting a host. Times are in seconds since the start of the kernel."""

    def __init__(self, host: Host, directory: Path, report: Mapping[str, bytes]) -> None:
        self.host = host
        self.directory = directory
        self._report = report

    def text(self, name: str) -> str:
        """Return a file of the report."""
        return self._report[name].decode(errors="replace")

    def units(self, name: str = "units") -> dict[str, dict[str, str]]:
        """Return the unit properties recorded by `times NAME`, by unit name (without .service)."""
        units = {}
        for paragraph in self.text(name).strip().split("\n\n"):
            properties = dict(line.split("=", 1) for line in paragraph.splitlines())
            units[properties["Id"].removesuffix(".service")] = properties
        return units

    @cached_property
    def wait(self) -> dict[str, str]:
        """The properties of our unit after the boot."""
        return self.units()["xendomains-wait-disk"]

    @property
    def wait_started(self) -> float:
        """When our program was started."""
        return int(self.wait["ExecMainStartTimestampMonotonic"]) / 1e6

    @property
    def wait_ended(self) -> float:
        """When our program exited."""
        return int(self.wait["ExecMainExitTimestampMonotonic"]) / 1e6

    @property
    def waited(self) -> float:
        """How long our program ran."""
        return self.wait_ended - self.wait_started

    @property
    def first_logged(self) -> float:
        """When our program logged its first message, after the first check."""
        return next(
            int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6
            for entry in self._journal
            if entry.get("SYSLOG_IDENTIFIER") == "xendomains-wait-disk"
        )

    @property
    def xen_active(self) -> float:
        """When Xen's daemons were up."""
        return int(self.units()["xen"]["ActiveEnterTimestampMonotonic"]) / 1e6

    @property
    def xendomains_started(self) -> float:
        """When xendomains was started."""
        return int(self.units()["xendomains"]["InactiveExitTimestampMonotonic"]) / 1e6

    def ready_at(self, name: str) -> float:
        """Return when a script called `ready` with this name, or when the kernel logged it.

        For a path, return when udev first reported it as usable during the wait.
        """
        for line in self.text("stamps").splitlines() if "stamps" in self._report else ():
            if line.rsplit(" ", 1)[0] == name:
                return float(line.rsplit(" ", 1)[1])
        for entry in self._journal:
            if entry.get("_TRANSPORT") == "kernel" and name in entry["MESSAGE"]:
                seconds = int(entry["_SOURCE_MONOTONIC_TIMESTAMP"]) / 1e6
                if seconds > self.wait_started:
                    return seconds
        for seconds, event in self._events:
            if seconds < self.wait_started:
                continue  # created and removed by a script before the wait
            paths = [event.get("DEVNAME"), *event.get("DEVLINKS", "").split()]
            if name in paths and event["ACTION"] != "remove" and event.get("SYSTEMD_READY") != "0":
                return seconds
        raise LookupError(f"{name} was never ready. The udev events are in {self.directory}/report/events.")

    def last_event(self, path: str) -> float:
        """Return the time of the last udev event for a device before our program exited."""
        return max(
            seconds for seconds, event in self._events if event.get("DEVNAME") == path and seconds < self.wait_ended
        )

    @cached_property
    def _events(self) -> list[tuple[float, dict[str, str]]]:
        events = []
        for paragraph in self.text("events").split("\n\n"):
            if found := re.match(r"\s*UDEV +\[([0-9.]+)\]", paragraph):
                lines = paragraph.strip().splitlines()[1:]
                events.append((float(found[1]), dict(line.split("=", 1) for line in lines)))
        return events

    @property
    def released_after(self) -> float:
        """The time from when the last disk was ready until our program exited."""
        return self.wait_ended - max(self.ready_at(name) for name in self.host.awaited)

    @cached_property
    def start_of_python(self) -> float:
        """The duration of `python3 -I -c pass` on the host, in seconds, as a measure of its speed."""
        return float(self.text("start-of-python"))

    @property
    def soon(self) -> float:
        """The limit for immediate reactions: a second if Python starts in 0.28 s, proportionally longer otherwise."""
        return max(1, self.start_of_python / 0.28)

    @property
    def released_in_time(self) -> bool:
        """Whether our program exited soon after the last disk was ready, and not before.

        It reads udev's database, which udev writes a moment before it sends the event.
        """
        return -0.5 < self.released_after < self.soon

    @property
    def xendomains_followed(self) -> bool:
        """Whether xendomains was started soon after our program exited, and not before."""
        return 0 < self.xendomains_started - self.wait_ended < self.soon

    def messages(self, unit: str = "xendomains-wait-disk.service") -> list[str]:
        """Return the messages of a unit's processes, without those of systemd about it."""
        return [entry["MESSAGE"] for entry in self._journal if entry.get("_SYSTEMD_UNIT") == unit]

    @cached_property
    def _journal(self) -> list[dict[str, Any]]:
        entries = []
        for line in self.text("journal.json").splitlines():
            entry = json.loads(line)
            if isinstance(entry.get("MESSAGE"), list):  # a message that is not text is a list of bytes
                entry["MESSAGE"] = bytes(entry["MESSAGE"]).decode(errors="replace")
            if "MESSAGE" in entry:
                entries.append(entry)
        return entries

    def logged(self, pattern: str) -> bool:
        """Return whether a complete message of our program matches a pattern."""
        return any(re.fullmatch(pattern, message) for message in self.messages())

    def entry(self, pattern: str) -> dict[str, Any]:
        """Return the journal entry of the first message of our program that matches a pattern."""
        return next(
            entry
            for entry in self._journal
            if entry.get("SYSLOG_IDENTIFIER") == "xendomains-wait-disk" and re.fullmatch(pattern, entry["MESSAGE"])
        )

    def console(self, guest: str) -> str:
        """Return the console output of a guest."""
        return self._report.get(f"xen/console/guest-{guest}.log", b"").decode(errors="replace")

    def disks_of(self, guest: str) -> dict[str, float]:
        """Return the sizes in MiB, by vdev, of the disks that a guest could read to the end. KeyError if it is down."""
        console = self.console(guest)
        if "GUEST: up" not in console:
            raise KeyError(f"The guest {guest} did not come up. Its console is below {self.directory}/report/xen.")
        found = re.findall(r"GUEST: disk (\S+) has ([0-9]+) sectors, the last is readable", console)
        return {vdev: int(sectors) * 512 / (1 << 20) for vdev, sectors in found}

    def came_up(self, guest: str) -> bool:
        """Return whether a guest came up."""
        return "GUEST: up" in self.console(guest)


class BootFailed(Exception):
    """The host did not write its report, or could not be prepared."""


# The beginning of the watchdog's report in dom0/dom0.
WATCHDOG_REPORT = "The host is not done"


def last_words(directory: Path) -> str:
    """Return the end of the console log of the host: the watchdog's report, if there is one."""
    path = directory / "console.log"
    console = path.read_bytes().decode(errors="replace").replace("\r", "")
    _, watchdog, words = console.partition(WATCHDOG_REPORT)
    return f"The end of {path}:\n{watchdog + words if watchdog else console[-3000:]}"


class Machine:
    """Boots hosts in a virtual machine, with its images and the files of each boot in a directory.

    A release other than the default has its own subdirectory.
    """

    def __init__(self, directory: Path, release: str = RELEASE) -> None:
        self.release = release
        self.directory = directory if release == DEFAULT_RELEASE else directory / release
        self.image = self.directory / "image"
        self._with_package = self.directory / "with-package.img"

    def make_images(self) -> None:
        """Create the host's root file system, with and without our package as built from the work tree."""
        subprocess.run([HERE / "make-image", self.image, self.release], check=True)
        package = subprocess.run(
            [TOP / "packaging" / "debian" / "build", self.directory / "package"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout.strip()
        subprocess.run([HERE / "install-package", self.image / "root.img", package, self._with_package], check=True)

    def boot(self, host: Host, name: str) -> Boot:
        """Boot a host and return the result; its files are in the directory of this name."""
        directory = self.directory / "boots" / name
        subprocess.run(["rm", "-rf", directory], check=True)
        directory.mkdir(parents=True)
        disks = [self._disk(disk, directory) for disk in host.disks]
        return self._run(host, directory, disks)

    def _disk(self, disk: Disk, directory: Path) -> Path:
        if disk.left_by is not None:
            return self._left_by(disk.left_by) / f"{disk.name}.img"
        path = directory / f"{disk.name}.img"
        make_sparse(path, disk.mebibytes << 20)
        return path

    def _left_by(self, host: Host) -> Path:
        name = f"prepared-{host.identity()}"
        directory = self.directory / "boots" / name
        if not (directory / "done").exists():
            boot = self.boot(host, name)
            if "The script after failed." in boot.messages("scenario-report.service"):
                raise BootFailed(f"The disks could not be prepared; see {directory}/report/journal.txt.")
            (directory / "done").touch()
        return directory

    def _run(self, host: Host, directory: Path, disks: list[Path]) -> Boot:
        scenario, report = directory / "scenario.tar", directory / "report.img"
        write_tar(scenario, host.all_files())
        make_sparse(report, REPORT_SIZE)
        root = self._with_package if host.package else self.image / "root.img"
        drives = [(root, "root", True), (scenario, "scenario", True), (report, "report", False)]
        # Disks of this host keep their changes; those left by another host are not modified.
        drives += [(disk, disk.stem, disk.parent != directory) for disk in disks]
        command = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max,-smap,-svm", "-smp", "2", "-m", "3072"),
            *("-nodefaults", "-display", "none", "-no-reboot"),
            *("-serial", f"file:{directory / 'console.log'}"),
            *("-kernel", str(self.image / "xen")),
            *("-append", f"dom0_mem=1200M,max:1200M com1=115200,8n1 console=com1 noreboot=1 cpufreq=none {SPEC_CTRL}"),
            "-initrd",
            f"{self.image / 'vmlinux'} root=/dev/vda rw console=hvc0 mitigations=off quiet,{self.image / host.initrd}",
            *(argument for drive in drives for argument in drive_arguments(*drive)),
        ]
        (directory / "command").write_text(shlex.join(command) + "\n")
        try:
            subprocess.run(command, check=True, timeout=BOOT_TIMEOUT, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise BootFailed(f"The host did not power off in {BOOT_TIMEOUT} s. {last_words(directory)}") from None
        files = read_tar(report)
        if "units" not in files:
            raise BootFailed(f"The host crashed, or did not report. {last_words(directory)}")
        for name, data in files.items():
            path = directory / "report" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return Boot(host, directory, files)


def drive_arguments(path: Path, name: str, temporary: bool) -> list[str]:
    """Return QEMU's arguments for a disk; if temporary, changes are discarded."""
    snapshot = "on" if temporary else "off"
    return [
        "-drive",
        f"file={path},id={name},if=none,format=raw,cache=unsafe,snapshot={snapshot}",
        "-device",
        f"virtio-blk-pci,drive={name},serial={name}",
    ]


def make_sparse(path: Path, size: int) -> None:
    """Create a sparse file of this size."""
    with path.open("wb") as file:
        file.truncate(size)


def write_tar(path: Path, files: Mapping[str, str]) -> None:
    """Create an archive of these files; those that begin with #! are executable."""
    with tarfile.open(path, "w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name.lstrip("/"))
            data = text.encode()
            info.size = len(data)
            info.mode = 0o755 if text.startswith("#!") else 0o644
            archive.addfile(info, io.BytesIO(data))


def read_tar(path: Path) -> dict[str, bytes]:
    """Return the files in an archive by name; none if there is no archive."""
    files = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if (file := archive.extractfile(member)) is not None:
                    files[member.name.removeprefix("./")] = file.read()
    except tarfile.ReadError:
        pass
    return files
