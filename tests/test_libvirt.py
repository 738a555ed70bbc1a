# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Guests that libvirt starts: their XML, their managed saves, and how they are listed, checked and started."""

from __future__ import annotations

import io
import json
import os
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
    """The XML of a guest; `disks` are whole elements."""
    return f"<domain type='xen'>\n<name>{escape(name)}</name>\n{more}<devices>{''.join(disks)}</devices>\n</domain>\n"


def disk(source: str = "", kind: str = "block", device: str = "disk", vdev: str = "xvda", more: str = "") -> str:
    """The XML of a disk."""
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
        ("script", BOOT_FILES, ["QEMU opens it", "QEMU opens it"]),
        (
            "volume",
            ["/dev/vg/c", "/dev/sdb", "/boot/guest"],
            [
                "libvirt (type volume) attaches it",
                "the drive is empty",
                "libvirt (type network) attaches it",
                "libvirt (type dir) attaches it",
                "the drive is empty",
            ],
        ),
    ],
)
def test_xml_written_by_real_virsh_is_read(name: str, needed: list[str], skipped: list[str]) -> None:
    guest = parse((RECORDED / f"{name}.xml").read_text())
    required = [xwd.required_by(disk) for disk in guest.needs()]
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
        ("<disk type='network'><source protocol='rbd' name='pool/web'/></disk>", "libvirt (type network) attaches it"),
        ("<disk type='volume'><source pool='default' volume='web'/></disk>", "libvirt (type volume) attaches it"),
        ("<disk type='dir'><source dir='/srv'/></disk>", "libvirt (type dir) attaches it"),
        (disk("/dev/vg/web", more="<backenddomain name='storage'/>"), "the driver domain storage serves it"),
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
        ("", "line 1: no element found"),
        ("<domain>\n<name>web</nam>\n</domain>", "line 2: mismatched tag"),
        ("<domain>\n<name>&web;</name>\n</domain>", "line 2: undefined entity"),
        ("<domain><name>a\0b</name></domain>", "line 1: not well-formed"),
        ("<domain><name>\udcff</name></domain>", "is not UTF-8"),
        ("<!DOCTYPE domain [<!ENTITY a 'b'>]><domain><name>&a;</name></domain>", "has a DOCTYPE"),
        ("<domain/>", "describes no guest"),
        ("<network><name>web</name></network>", "describes no guest"),
        ("<a>" * 40_000, "line 1: no element found"),
    ],
)
def test_xml_that_is_no_guest_is_refused_with_its_line(text: str, message: str) -> None:
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


# The managed saves


def managed_save(xml: str, version: int = 2, end: bytes = xwd.SAVED_END, size: int | None = None) -> bytes:
    """A file as virsh managedsave writes it."""
    text = xml.encode() + b"\0"
    words = b"".join(word.to_bytes(4, sys.byteorder) for word in (version, len(text) if size is None else size))
    return (xwd.LIBVIRT_MAGIC + words).ljust(xwd.LIBVIRT_HEADER, b"\0") + text + b"the memory image" + end


def test_the_xml_in_a_managed_save_is_read() -> None:
    recorded = (RECORDED / "web.save.head").read_bytes() + xwd.SAVED_END
    assert parse(xwd.saved_by_libvirt(io.BytesIO(recorded))).disks[0].target == "/dev/disk/by-id/virtio-web"
    assert xwd.saved_by_libvirt(io.BytesIO(managed_save(domain()))) == domain()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "was not written by virsh managedsave"),
        (b"Xen saved domain, xl format\n \0 \r", "was not written by virsh managedsave"),
        (xwd.LIBVIRT_MAGIC, "was not written by virsh managedsave"),
        (managed_save(domain(), version=3), "is in an unknown version of libvirt's format: 3"),
        (managed_save(domain(), size=2**32 - 1), "claims 4294967295 bytes of configuration"),
        (managed_save(domain(), size=10_000), "is cut off within its configuration"),
        (managed_save(domain(), end=b"half of it"), "is incomplete, because saving failed or was interrupted"),
    ],
)
def test_a_damaged_managed_save_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(xwd.ConfigError) as refused:
        xwd.saved_by_libvirt(io.BytesIO(content))
    assert str(refused.value).startswith(message)


# The guests


class LibvirtHost(StartHost):
    """A host with guests of libvirt, whose virsh starts them as its xl does."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root, monkeypatch)
        self.managed = root / "managed"
        for directory in (self.libvirt, self.managed, root / "libvirt-log"):
            directory.mkdir()
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
        """A guest that libvirt starts, a link as it makes it."""
        config = self.root / f"{name}.xml"
        config.write_text(domain(*(disk(str(one), "file", vdev=f"xvd{c}") for one, c in zip(disks, "abc")), name=name))
        link = self.libvirt / config.name
        link.symlink_to(config)
        return link


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LibvirtHost]:
    it = LibvirtHost(tmp_path, monkeypatch)
    yield it
    it.end()


@pytest.fixture
def start(late: LibvirtHost, clock: FakeClock) -> Start:
    return Start(late, clock)


def guests_of(host: Host) -> list[dict[str, Any]]:
    guests: list[dict[str, Any]] = json.loads(host.run("list", "--json").output)["guests"]
    return guests


def test_a_guest_of_libvirt_is_listed_with_its_disks(late: LibvirtHost) -> None:
    file = late.libvirt_guest("web", late.image("web"), late.images / "data")
    (guest,) = guests_of(late)
    assert (guest["name"], guest["kind"], guest["source"], guest["start"]) == ("web", "libvirt", str(file), "create")
    assert [one["state"] for one in guest["disks"]] == ["ready", "missing"]


def test_boot_waits_for_disks_of_libvirt_guests(late: LibvirtHost) -> None:
    late.libvirt_guest("web", late.images / "web")
    with late.start() as running:
        running.wait_for(f"{late.images}/web for web")
        late.image("web")
        assert running.end().status == xwd.EXIT_READY


def test_without_settings_of_xendomains_guests_of_libvirt_are_waited_for(late: LibvirtHost) -> None:
    late.libvirt_guest("web", late.images / "web")
    late.settings.unlink()
    assert late.run("--timeout=0").status == xwd.EXIT_TIMED_OUT


def test_exit_status_is_6_without_xendomains_settings_and_libvirt(host: Host) -> None:
    host.settings.unlink()
    assert host.run("--timeout=0").status == xwd.EXIT_NO_XENDOMAINS


def test_empty_libvirt_setting_disables_libvirt_guests(late: LibvirtHost) -> None:
    late.libvirt_guest("web", late.images / "web")
    late.libvirt = Path()
    late.conf.write_text(f"[paths]\nxendomains = {late.settings}\nlibvirt =\n")
    assert guests_of(late) == []


def test_files_that_libvirt_does_not_read_are_ignored(late: LibvirtHost) -> None:
    (late.libvirt / "web.xml~").write_text(domain())
    (late.libvirt / "gone.xml").symlink_to(late.root / "gone.xml")
    assert guests_of(late) == []


def test_a_file_that_is_not_xml_is_refused_with_its_line(late: LibvirtHost) -> None:
    (late.libvirt / "web.xml").write_text("<domain>\n<name>web</nam>\n</domain>\n")
    os.utime(late.libvirt / "web.xml", (0, 0))
    (guest,) = guests_of(late)
    assert (guest["state"], guest["reason"]) == (
        "refused",
        "line 2: mismatched tag (virt-xml-validate FILE tells more)",
    )


def test_managed_save_is_restored_with_its_own_disks(late: LibvirtHost, clock: FakeClock) -> None:
    late.libvirt_guest("web", late.images / "now")
    watcher = late.watcher(clock)
    assert [one.path for one in watcher.look(clock.now() + 9).missing()] == [f"{late.images}/now"]
    save = late.managed / "web.save"
    save.write_bytes(managed_save(domain(disk(f"{late.images}/then", "file"))))
    snapshot = watcher.look(clock.now() + 9, recheck_ready=True)
    assert [one.path for one in snapshot.missing()] == [f"{late.images}/then"]
    assert [guest.start.how for guest in snapshot.guests.values()] == ["restore"]
    save.write_bytes(managed_save(domain(), end=b""))
    os.utime(save, (0, 0))
    (guest,) = watcher.look(clock.now() + 9, recheck_ready=True).guests.values()
    assert guest.status.reason.startswith(f"has the managed save {save}, which is incomplete")


def test_xml_parser_is_not_imported_without_libvirt_guests(host: Host) -> None:
    host.guest("web", host.image("web"))
    printed = "print([name for name in sys.modules if 'xml' in name])"
    code = f"import sys, xendomains_wait_disk as xwd\nxwd.os._exit = lambda _: {printed}\nxwd.run()"
    assert host.run(program=(sys.executable, "-c", code)).output == "[]\n"


# check


def check(host: Host) -> str:
    return host.run("check").output


def test_same_name_in_xendomains_and_libvirt_is_an_error(late: LibvirtHost, systemctl: Systemctl) -> None:
    other = late.guest("web", late.image("a"))
    late.libvirt_guest("web", late.image("b"))
    assert f"xendomains also starts a guest of this name, from {other}" in check(late)
    assert "virsh autostart --disable web" in check(late)


def test_same_disk_in_xendomains_and_libvirt_is_an_error(late: LibvirtHost, systemctl: Systemctl) -> None:
    image = late.image("a")
    late.guest("one", image)
    late.libvirt_guest("two", image)
    assert late.run("check").status == xwd.EXIT_USAGE
    assert "guest two" in check(late)


def test_conflict_with_xendomains_is_no_finding_if_all_guests_are_libvirts(
    late: LibvirtHost, systemctl: Systemctl
) -> None:
    late.libvirt_guest("web", late.image("a"))
    systemctl.says("libvirtd.service", "enabled")
    systemctl.has_conflicts("libvirtd.service", "xendomains.service")
    systemctl.says("xendomains.service", "disabled")
    assert late.run("check").status == xwd.EXIT_READY
    late.guest("db", late.image("b"))
    assert "libvirtd.service conflicts with xendomains.service" in check(late)


# start


def test_a_guest_is_started_with_virsh(late: LibvirtHost, start: Start) -> None:
    late.libvirt_guest("web", late.image("web"))
    other = late.guest("db", late.image("db"))
    assert start() == xwd.EXIT_READY
    assert late.calls() == [create(other), "virsh start web"]
    assert "guest web has been started.\n" in start.logged


def test_guest_with_a_managed_save_is_restored(late: LibvirtHost, start: Start) -> None:
    late.libvirt_guest("web", late.image("web"))
    (late.managed / "web.save").write_bytes(managed_save(domain()))
    assert start() == xwd.EXIT_READY
    assert late.calls() == ["virsh start web"]
    assert "guest web has been restored.\n" in start.logged


def test_dry_run_quotes_virsh_command_for_a_shell(
    late: LibvirtHost, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    late.libvirt_guest("a b", late.image("web"))
    start(dry_run=True)
    assert capsys.readouterr().out == "virsh --connect xen:///system start 'a b'\n"


def test_guest_is_not_started_before_libvirt_has_tried(late: LibvirtHost, start: Start) -> None:
    late.libvirt_guest("web", late.image("web"))
    (late.root / "no-libvirt").touch()
    start.clock.at(25, (late.root / "no-libvirt").unlink)
    assert start() == xwd.EXIT_TIMED_OUT
    assert "guest web is still waiting for libvirt (`virsh --connect xen:///system list` fails).\n" in start.logged
    assert late.calls() == []
    assert start(wait=60) == xwd.EXIT_READY
    assert late.calls() == ["virsh start web"]


def test_guests_of_xendomains_do_not_wait_for_libvirt(late: LibvirtHost, start: Start) -> None:
    late.libvirt_guest("web", late.image("web"))
    other = late.guest("db", late.image("db"))
    (late.root / "no-libvirt").touch()
    assert start() == xwd.EXIT_TIMED_OUT
    assert late.calls() == [create(other)]


def test_running_or_shut_down_guest_is_left_alone(late: LibvirtHost, start: Start) -> None:
    for name in ("runs", "ran"):
        late.libvirt_guest(name, late.image(name))
    late.running.write_text("runs\n")
    (late.root / "libvirt-log" / "ran.log").write_text("Domain start\n")
    assert start() == xwd.EXIT_READY
    assert late.calls() == []
    assert "guest runs is already running.\n" in start.logged
    assert "it has been started since the host booted" in start.logged


def test_it_is_left_alone_also_if_the_wait_has_noted_the_logs_later(late: LibvirtHost, start: Start) -> None:
    """libvirt does not wait for the wait at boot."""
    late.libvirt_guest("ran", late.image("ran"))
    log = late.root / "libvirt-log" / "ran.log"
    log.write_text("Domain start\n")
    status = log.stat()
    xwd.write_record(xwd.NOTED_LOGS, {"ran": [status.st_ino, status.st_size, status.st_mtime_ns]})
    assert start() == xwd.EXIT_READY
    assert late.calls() == []


def test_only_libvirt_guests_are_started_if_xendomains_has_not_run(late: LibvirtHost) -> None:
    """Whoever uses libvirt may have left configurations in the auto directory."""
    late.libvirt_guest("web", late.image("web"))
    other = late.guest("db", late.image("db"))
    systemctl = late.root / "bin" / "systemctl"
    systemctl.write_text("#!/bin/sh\necho inactive\n")
    systemctl.chmod(0o755)
    assert late.late("--wait=5s").end().status == xwd.EXIT_READY
    assert late.calls() == ["virsh start web"]
    assert late.late().end().status == xwd.EXIT_READY
    assert late.calls()[1:] == ["virsh start web", create(other)][::-1]
