# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Guests started by libvirt: their XML and managed saves, and how they are listed, checked and started."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import pytest
from conftest import DATA, FakeClock, Host, Systemctl
from hypothesis import given
from hypothesis import strategies as st
from test_start import Start, StartHost, create

import xendomains_wait_disk as xwd

pytestmark = pytest.mark.promise(
    "Guests of libvirt are listed, checked, waited for and, if libvirt could not start them, started late"
)

RECORDED = DATA / "libvirt"
FILE = "/etc/libvirt/libxl/autostart/web.xml"


def domain(*disks: str, name: str = "web", more: str = "") -> str:
    """Return the XML of a guest; `disks` are complete elements."""
    return f"<domain type='xen'>\n<name>{escape(name)}</name>\n{more}<devices>{''.join(disks)}</devices>\n</domain>\n"


def disk(source: str = "", kind: str = "block", device: str = "disk", vdev: str = "xvda", more: str = "") -> str:
    """Return the XML of a disk."""
    key = "dev" if kind == "block" else "file"
    from_where = f"<source {key}={quoteattr(source)}/>" if source else ""
    return f"<disk type='{kind}' device='{device}'>{from_where}<target dev='{vdev}'/>{more}</disk>"


def parse(text: str) -> xwd.Domain:
    return xwd.domain_from_libvirt_xml(text, FILE)


def refusal(text: str) -> str:
    with pytest.raises(xwd.ConfigError) as refused:
        parse(text)
    return str(refused.value)


# The XML


BOOT_FILES = ["/boot/guest", "/boot/guest.img"]


@pytest.mark.parametrize(
    ("name", "needed", "skipped"),
    [
        ("web", ["/dev/disk/by-id/virtio-web", *BOOT_FILES], []),
        ("image", ["/srv/image.img", "/srv/b.qcow2", *BOOT_FILES], []),
        ("grub", ["/dev/vg/grub", "/usr/lib/xen-4.17/bin/pygrub"], []),
        ("script", BOOT_FILES, ["opened by QEMU", "opened by QEMU"]),
        (
            "volume",
            ["/dev/vg/c", "/dev/sdb", "/boot/guest"],
            [
                "attached by libvirt (type volume)",
                "the drive is empty",
                "attached by libvirt (type network)",
                "attached by libvirt (type dir)",
                "the drive is empty",
            ],
        ),
    ],
)
def test_xml_written_by_real_virsh_is_read(name: str, needed: list[str], skipped: list[str]) -> None:
    guest = parse((RECORDED / f"{name}.xml").read_text())
    required = [xwd.required_by(disk) for disk in guest.all_disks()]
    assert guest.name == name
    assert [one.path for one in required if one.path] == needed
    assert [one.reason for one in required if not one.path] == skipped


@pytest.mark.parametrize(
    ("xml", "expected"),
    [
        (disk("/dev/vg/web"), xwd.Disk("xvda", "/dev/vg/web", "raw", writes=True)),
        (disk("/srv/web.img", "file"), xwd.Disk("xvda", "/srv/web.img", "raw", writes=True)),
        (disk("/dev/sdb", device="lun"), xwd.Disk("xvda", "/dev/sdb", "raw", writes=True)),
        (disk("/dev/vg/web", more="<readonly/>"), xwd.Disk("xvda", "/dev/vg/web", "raw")),
        (disk("/srv/a.iso", "file", "cdrom", "hdc"), xwd.Disk("hdc", "/srv/a.iso", "raw", cdrom=True)),
        (disk("", "file", "cdrom", "hdc"), xwd.Disk("hdc", "", "raw", cdrom=True)),
        (
            disk("/srv/web", "file", more="<driver name='qemu' type='qcow2'/>"),
            xwd.Disk("xvda", "/srv/web", "qcow2", backendtype="qdisk", writes=True),
        ),
        (
            disk("/dev/vg/web", more="<driver name='phy' type='raw'/>"),
            xwd.Disk("xvda", "/dev/vg/web", "raw", backendtype="phy", writes=True),
        ),
        (
            disk("/dev/vg/web", more="<backenddomain name='storage'/>"),
            xwd.Disk("xvda", "/dev/vg/web", "raw", "storage", writes=True),
        ),
    ],
)
def test_disk_is_read_as_by_libvirts_xen_driver(xml: str, expected: xwd.Disk) -> None:
    assert parse(domain(xml)).disks == (expected,)


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (
            "<disk type='network'><target dev='a'/><source protocol='rbd' name='pool/web'/></disk>",
            "attached by libvirt (type network)",
        ),
        (
            "<disk type='volume'><target dev='a'/><source pool='default' volume='web'/></disk>",
            "attached by libvirt (type volume)",
        ),
        ("<disk type='dir'><target dev='a'/><source dir='/srv'/></disk>", "attached by libvirt (type dir)"),
        (disk("/dev/vg/web", more="<backenddomain name='storage'/>"), "served by driver domain storage"),
        (disk("", "file", "cdrom"), "the drive is empty"),
    ],
)
def test_disk_not_provided_by_this_host_is_skipped_with_a_reason(xml: str, reason: str) -> None:
    (found,) = parse(domain(xml)).disks
    assert xwd.required_by(found) == xwd.Required(reason=reason)


def test_backing_chain_does_not_count_as_disks() -> None:
    more = "<backingStore type='file'><format type='raw'/><source file='/srv/base.img'/></backingStore>"
    assert [one.target for one in parse(domain(disk("/srv/web", "file", more=more))).disks] == ["/srv/web"]


@pytest.mark.parametrize(
    ("xml", "files"),
    [
        ("<os><type>linux</type><kernel>/boot/vm</kernel><initrd>/boot/rd</initrd></os>", ["/boot/vm", "/boot/rd"]),
        ("<os><type>xenpvh</type><kernel>/boot/vm</kernel></os>", ["/boot/vm"]),
        ("<os><type>hvm</type><kernel>/boot/vm</kernel></os>", []),
        ("<bootloader>/usr/bin/pygrub</bootloader><os><type>linux</type></os>", ["/usr/bin/pygrub"]),
        ("<bootloader>pygrub</bootloader><os><type>linux</type></os>", []),
    ],
)
def test_boot_files_of_a_guest_are_required(xml: str, files: list[str]) -> None:
    assert [one.target for one in parse(domain(more=xml)).boot_files] == files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid XML: line 1: no element found"),
        ("<domain>\n<name>web</nam>\n</domain>", "is not valid XML: line 2: mismatched tag"),
        ("<domain>\n<name>&web;</name>\n</domain>", "is not valid XML: line 2: undefined entity"),
        ("<domain><name>a\0b</name></domain>", "is not valid XML: line 1: not well-formed"),
        ("<domain><name>\udcff</name></domain>", "is not UTF-8"),
        ("<!DOCTYPE domain [<!ENTITY a 'b'>]><domain><name>&a;</name></domain>", "has a DOCTYPE"),
        ("<domain/>", "describes no guest"),
        ("<network><name>web</name></network>", "describes no guest"),
        ("<a>" * 40_000, "is not valid XML: line 1: no element found"),
    ],
)
def test_xml_that_is_not_a_guest_is_refused_with_its_line(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


def test_deeply_nested_xml_is_read() -> None:
    deep = "<a>" * 18_000 + "</a>" * 18_000
    assert parse(domain(more=deep)).name == "web"


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1), st.text("/abc&<>'\" ", min_size=1))
def test_any_name_and_path_is_read_unchanged(name: str, path: str) -> None:
    read = parse(domain(disk(path), name=name))
    assert (read.name, read.disks[0].target) == (name, path)


@given(st.text(), st.integers(0, 200))
def test_any_xml_is_either_read_or_refused(noise: str, keep: int) -> None:
    try:
        assert parse(domain(disk("/dev/vg/web"))[:keep] + noise).name
    except xwd.ConfigError as refused:
        assert str(refused)


# Managed saves


def managed_save(xml: str, version: int = 2, end: bytes = xwd.SAVED_END, size: int | None = None) -> bytes:
    """Return the content of a file written by virsh managedsave."""
    text = xml.encode() + b"\0"
    words = b"".join(word.to_bytes(4, sys.byteorder) for word in (version, len(text) if size is None else size))
    return (xwd.LIBVIRT_MAGIC + words).ljust(xwd.LIBVIRT_HEADER, b"\0") + text + b"the memory image" + end


def test_xml_in_a_managed_save_is_read() -> None:
    recorded = (RECORDED / "web.save.head").read_bytes() + xwd.SAVED_END
    assert parse(xwd.saved_by_libvirt(io.BytesIO(recorded))).disks[0].target == "/dev/disk/by-id/virtio-web"
    assert xwd.saved_by_libvirt(io.BytesIO(managed_save(domain()))) == domain()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "was not written by virsh managedsave"),
        (b"Xen saved domain, xl format\n \0 \r", "was not written by virsh managedsave"),
        (xwd.LIBVIRT_MAGIC, "was not written by virsh managedsave"),
        (managed_save(domain(), version=3), "has an unknown format version: 3"),
        (managed_save(domain(), size=2**32 - 1), "claims 4294967295 bytes of configuration"),
        (managed_save(domain(), size=10_000), "is truncated: it has only "),
        (managed_save(domain(), end=b"half of it"), "is incomplete, because saving failed or was interrupted"),
    ],
)
def test_damaged_managed_save_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(xwd.ConfigError) as refused:
        xwd.saved_by_libvirt(io.BytesIO(content))
    assert str(refused.value).startswith(message)


# Guests


class LibvirtHost(StartHost):
    """A host with guests of libvirt and a fake virsh, which behaves like the fake xl."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root, monkeypatch)
        self.managed = root / "managed"
        self.libvirt: Path = root / "autostart"
        for directory in (self.libvirt, self.managed, root / "libvirt-log"):
            directory.mkdir()
        self.configure("")
        self.places["LIBVIRT_SAVES"] = self.managed
        monkeypatch.setattr(xwd, "LIBVIRT_SAVES", str(self.managed))
        virsh = root / "bin" / "virsh"
        virsh.write_text(
            "#!/bin/sh\n"
            f'case $3 in list) [ ! -e "{root}/no-libvirt" ] && echo list ;;'
            f' *) echo "virsh $3 $4" >>"{root}/calls"; . "{root}/answer" ;; esac\n'
        )
        virsh.chmod(0o755)

    def libvirt_guest(self, name: str, *disks: Path) -> Path:
        """Create a guest that libvirt starts at boot; returns the link that libvirt would create."""
        config = self.root / f"{name}.xml"
        config.write_text(domain(*(disk(str(one), "file", vdev=f"xvd{c}") for one, c in zip(disks, "abc")), name=name))
        link = self.libvirt / config.name
        link.symlink_to(config)
        return link


@pytest.fixture
def libvirt_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LibvirtHost]:
    it = LibvirtHost(tmp_path, monkeypatch)
    yield it
    it.end()


@pytest.fixture
def start(libvirt_host: LibvirtHost, clock: FakeClock) -> Start:
    return Start(libvirt_host, clock)


def guests_of(host: Host) -> list[dict[str, Any]]:
    guests: list[dict[str, Any]] = json.loads(host.run("list", "--json").output)["guests"]
    return guests


def test_guest_of_libvirt_is_listed_with_its_disks(libvirt_host: LibvirtHost) -> None:
    file = libvirt_host.libvirt_guest("web", libvirt_host.image("web"), libvirt_host.images / "data")
    (guest,) = guests_of(libvirt_host)
    assert (guest["name"], guest["kind"], guest["source"], guest["start"]) == ("web", "libvirt", str(file), "create")
    assert [one["state"] for one in guest["disks"]] == ["ready", "missing"]


def test_boot_waits_for_disks_of_libvirt_guests(libvirt_host: LibvirtHost) -> None:
    libvirt_host.libvirt_guest("web", libvirt_host.images / "web")
    with libvirt_host.start() as running:
        running.wait_for(f"{libvirt_host.images}/web for web")
        libvirt_host.image("web")
        assert running.end().status == xwd.EXIT_READY


def test_without_settings_of_xendomains_guests_of_libvirt_are_waited_for(libvirt_host: LibvirtHost) -> None:
    libvirt_host.libvirt_guest("web", libvirt_host.images / "web")
    libvirt_host.settings.unlink()
    assert libvirt_host.run("--timeout=0").status == xwd.EXIT_TIMED_OUT


def test_exit_status_is_6_without_xendomains_settings_and_libvirt(host: Host) -> None:
    host.settings.unlink()
    assert host.run("--timeout=0").status == xwd.EXIT_NO_XENDOMAINS


def test_libvirt_setting_that_names_no_directory_is_an_error(libvirt_host: LibvirtHost) -> None:
    libvirt_host.libvirt.rename(libvirt_host.root / "other")
    assert f"{libvirt_host.libvirt}:\n  error: does not exist; correct [paths] libvirt, or create it\n" in (
        check(libvirt_host)
    )


def test_empty_libvirt_setting_disables_libvirt_guests(libvirt_host: LibvirtHost) -> None:
    libvirt_host.libvirt_guest("web", libvirt_host.images / "web")
    libvirt_host.conf.write_text(f"[paths]\nxendomains = {libvirt_host.settings}\nlibvirt =\n")
    assert guests_of(libvirt_host) == []


def test_files_that_libvirt_does_not_read_are_ignored(libvirt_host: LibvirtHost) -> None:
    (libvirt_host.libvirt / "web.xml~").write_text(domain())
    (libvirt_host.libvirt / "gone.xml").symlink_to(libvirt_host.root / "gone.xml")
    assert guests_of(libvirt_host) == []


def test_file_that_is_not_xml_is_refused_with_its_line(libvirt_host: LibvirtHost) -> None:
    link = libvirt_host.libvirt_guest("web")
    link.write_text("<domain>\n<name>web</nam>\n</domain>\n")
    os.utime(link, (0, 0))
    (guest,) = guests_of(libvirt_host)
    assert (guest["state"], guest["reason"]) == (
        "refused",
        "is not valid XML: line 2: mismatched tag",
    )


def test_managed_save_is_restored_with_its_own_disks(libvirt_host: LibvirtHost, clock: FakeClock) -> None:
    libvirt_host.libvirt_guest("web", libvirt_host.images / "now")
    watcher = libvirt_host.watcher(clock)
    assert [one.path for one in watcher.look(clock.now() + 9).missing()] == [f"{libvirt_host.images}/now"]
    save = libvirt_host.managed / "web.save"
    save.write_bytes(managed_save(domain(disk(f"{libvirt_host.images}/then", "file"))))
    snapshot = watcher.look(clock.now() + 9, recheck_ready=True)
    assert [one.path for one in snapshot.missing()] == [f"{libvirt_host.images}/then"]
    assert [guest.start.how for guest in snapshot.guests.values()] == ["restore"]
    save.write_bytes(managed_save(domain(), end=b""))
    os.utime(save, (0, 0))
    (guest,) = watcher.look(clock.now() + 9, recheck_ready=True).guests.values()
    assert guest.status.reason.startswith(f"its managed save {save} is incomplete")


def test_xml_parser_is_not_imported_without_libvirt_guests(host: Host) -> None:
    host.guest("web", host.image("web"))
    printed = "print([name for name in sys.modules if 'xml' in name])"
    code = f"import sys, xendomains_wait_disk as xwd\nxwd.os._exit = lambda _: {printed}\nxwd.run()"
    assert host.run(program=(sys.executable, "-c", code)).output == "[]\n"


# check


def check(host: Host) -> str:
    return host.run("check").output


def test_same_name_in_xendomains_and_libvirt_is_an_error(libvirt_host: LibvirtHost, systemctl: Systemctl) -> None:
    other = libvirt_host.guest("web", libvirt_host.image("a"))
    libvirt_host.libvirt_guest("web", libvirt_host.image("b"))
    assert f"xendomains also starts a guest with this name, from {other}" in check(libvirt_host)
    assert "virsh --connect xen:///system autostart --disable web" in check(libvirt_host)


def test_refused_configuration_of_xendomains_does_not_start_the_guest_of_libvirt_as_well(
    libvirt_host: LibvirtHost, systemctl: Systemctl
) -> None:
    libvirt_host.configuration("web", "what is this\n")
    libvirt_host.libvirt_guest("web", libvirt_host.image("b"))
    assert "xendomains also starts" not in check(libvirt_host)


def test_file_that_is_no_link_to_a_guest_of_libvirt_is_ignored(libvirt_host: LibvirtHost) -> None:
    link = libvirt_host.libvirt_guest("web", libvirt_host.image("a"))
    (libvirt_host.libvirt / "copy.xml").write_bytes(link.read_bytes())
    (libvirt_host.libvirt / "other.xml").symlink_to(link.resolve())
    assert [guest["source"] for guest in guests_of(libvirt_host)] == [str(link)]


def test_autostart_directory_may_be_a_symbolic_link(libvirt_host: LibvirtHost) -> None:
    libvirt_host.libvirt_guest("web", libvirt_host.image("a"))
    real = libvirt_host.root / "real"
    real.mkdir()
    libvirt_host.libvirt.rename(real / "autostart")
    libvirt_host.libvirt.symlink_to(real / "autostart")
    assert [guest["name"] for guest in guests_of(libvirt_host)] == ["web"]


def test_guests_of_libvirt_are_marked_in_the_table(libvirt_host: LibvirtHost) -> None:
    libvirt_host.libvirt_guest("web", libvirt_host.image("a"))
    assert "web    create (libvirt)  xvda" in libvirt_host.run("list").output


@pytest.mark.parametrize(
    ("xml", "problem"),
    [
        (disk("", "file"), "disk 'xvda' has no source, and only a CD or floppy drive may be empty"),
        ("<disk type='file'><source file='/srv/a'/></disk>", "has a disk without a target (<target dev=…/>)"),
    ],
)
def test_disk_that_libvirt_rejects_is_an_error(xml: str, problem: str) -> None:
    with pytest.raises(xwd.ConfigError, match=re.escape(problem)):
        parse(domain(xml))


def test_late_service_is_recommended_where_only_libvirt_starts_guests(
    libvirt_host: LibvirtHost, systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    libvirt_host.libvirt_guest("web", libvirt_host.image("a"))
    assert "xendomains-late.service is not enabled, so a guest of libvirt whose disk is late stays down" in check(
        libvirt_host
    )


def test_same_disk_in_xendomains_and_libvirt_is_an_error(libvirt_host: LibvirtHost, systemctl: Systemctl) -> None:
    image = libvirt_host.image("a")
    libvirt_host.guest("one", image)
    libvirt_host.libvirt_guest("two", image)
    assert libvirt_host.run("check").status == xwd.EXIT_USAGE
    assert "guest two" in check(libvirt_host)


def test_conflict_with_xendomains_is_not_reported_if_all_guests_are_libvirts(
    libvirt_host: LibvirtHost, systemctl: Systemctl
) -> None:
    libvirt_host.libvirt_guest("web", libvirt_host.image("a"))
    systemctl.set_state("libvirtd.service", "enabled")
    systemctl.set_conflicts("libvirtd.service", "xendomains.service")
    systemctl.set_state("xendomains.service", "disabled")
    assert libvirt_host.run("check").status == xwd.EXIT_READY
    libvirt_host.guest("db", libvirt_host.image("b"))
    assert "libvirtd.service conflicts with xendomains.service" in check(libvirt_host)


# start


def test_guest_is_started_with_virsh(libvirt_host: LibvirtHost, start: Start) -> None:
    libvirt_host.libvirt_guest("web", libvirt_host.image("web"))
    other = libvirt_host.guest("db", libvirt_host.image("db"))
    assert start() == xwd.EXIT_READY
    assert libvirt_host.calls() == [create(other), "virsh start web"]
    assert "guest web has been started.\n" in start.logged


def test_guest_with_a_managed_save_is_restored(libvirt_host: LibvirtHost, start: Start) -> None:
    libvirt_host.libvirt_guest("web", libvirt_host.image("web"))
    (libvirt_host.managed / "web.save").write_bytes(managed_save(domain()))
    assert start() == xwd.EXIT_READY
    assert libvirt_host.calls() == ["virsh start web"]
    assert "guest web has been restored.\n" in start.logged


def test_dry_run_quotes_virsh_command_for_a_shell(
    libvirt_host: LibvirtHost, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    libvirt_host.libvirt_guest("a b", libvirt_host.image("web"))
    start(dry_run=True)
    assert capsys.readouterr().out == "virsh --connect xen:///system start 'a b'\n"


def test_guest_is_not_started_before_libvirt_has_tried(libvirt_host: LibvirtHost, start: Start) -> None:
    libvirt_host.libvirt_guest("web", libvirt_host.image("web"))
    (libvirt_host.root / "no-libvirt").touch()
    start.clock.at(25, (libvirt_host.root / "no-libvirt").unlink)
    assert start() == xwd.EXIT_TIMED_OUT
    assert "guest web is still waiting for libvirt (`virsh --connect xen:///system list` fails).\n" in start.logged
    assert libvirt_host.calls() == []
    assert start(wait=60) == xwd.EXIT_READY
    assert libvirt_host.calls() == ["virsh start web"]


def test_guests_of_xendomains_do_not_wait_for_libvirt(libvirt_host: LibvirtHost, start: Start) -> None:
    libvirt_host.libvirt_guest("web", libvirt_host.image("web"))
    other = libvirt_host.guest("db", libvirt_host.image("db"))
    (libvirt_host.root / "no-libvirt").touch()
    assert start() == xwd.EXIT_TIMED_OUT
    assert libvirt_host.calls() == [create(other)]


def test_running_or_shut_down_guest_is_left_alone(libvirt_host: LibvirtHost, start: Start) -> None:
    for name in ("runs", "ran"):
        libvirt_host.libvirt_guest(name, libvirt_host.image(name))
    libvirt_host.running.write_text("runs\n")
    (libvirt_host.root / "libvirt-log" / "ran.log").write_text("Domain start\n")
    assert start() == xwd.EXIT_READY
    assert libvirt_host.calls() == []
    assert "guest runs is already running.\n" in start.logged
    assert "it has already been started since boot" in start.logged


def test_shut_down_guest_stays_down_if_the_logs_were_recorded_after_its_start(
    libvirt_host: LibvirtHost, start: Start
) -> None:
    """libvirt may start guests before the wait at boot records the logs."""
    libvirt_host.libvirt_guest("ran", libvirt_host.image("ran"))
    log = libvirt_host.root / "libvirt-log" / "ran.log"
    log.write_text("Domain start\n")
    status = log.stat()
    xwd.write_record(xwd.LOGS_AT_BOOT, {"ran": [status.st_ino, status.st_size, status.st_mtime_ns]})
    assert start() == xwd.EXIT_READY
    assert libvirt_host.calls() == []


def test_only_libvirt_guests_are_started_if_xendomains_has_not_run(libvirt_host: LibvirtHost) -> None:
    """The auto directory may contain old configurations."""
    libvirt_host.libvirt_guest("web", libvirt_host.image("web"))
    other = libvirt_host.guest("db", libvirt_host.image("db"))
    systemctl = libvirt_host.root / "bin" / "systemctl"
    systemctl.write_text("#!/bin/sh\necho inactive\n")
    systemctl.chmod(0o755)
    assert libvirt_host.start_process("--wait=5s").end().status == xwd.EXIT_READY
    assert libvirt_host.calls() == ["virsh start web"]
    assert libvirt_host.start_process().end().status == xwd.EXIT_READY
    assert libvirt_host.calls()[1:] == ["virsh start web", create(other)][::-1]
