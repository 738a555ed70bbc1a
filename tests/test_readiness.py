# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Ready, not merely present: real loop devices, and a made-up /sys and /run/udev for other hardware."""

from __future__ import annotations

import os
import socket
import stat
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Host, as_root, attached, fill, loop_device, run_quietly, sparse, wait_until, waiting
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import HostPaths, paths_below

import xendomains_wait_disk as xwd

LABEL = "läbel"
INACTIVE = "md array is inactive; nothing will start it unless another member appears"
NOTHING = xwd.Required()
NO_UDEV = HostPaths(run="/nowhere")


def look(path: Path, host: HostPaths = NO_UDEV) -> xwd.Status:
    """Return the status of a path, without the hint."""
    host.use()
    return xwd.check_disk(xwd.Required(str(path)), xwd.StorageFacts())._replace(hint="")


def not_ready(reason: str) -> xwd.Status:
    return xwd.Status(xwd.State.NOT_READY, reason)


def missing(reason: str, *, is_unknown: bool = False) -> xwd.Status:
    return xwd.Status(xwd.State.MISSING, reason, is_unknown=is_unknown)


def test_a_regular_file_is_ready(tmp_path: Path) -> None:
    fill(tmp_path / "web.img")
    assert look(tmp_path / "web.img") == xwd.READY


def test_a_link_to_a_regular_file_is_ready(tmp_path: Path) -> None:
    fill(tmp_path / "web.img")
    (tmp_path / "link").symlink_to("web.img")
    assert look(tmp_path / "link") == xwd.READY


def test_an_empty_file_is_not_ready(tmp_path: Path) -> None:
    """It may be the result of a crash, or a copy may have just begun."""
    (tmp_path / "web.img").touch()
    assert look(tmp_path / "web.img") == not_ready("is empty (0 bytes)")


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
def test_file_without_write_permission_is_ready_only_for_reading(tmp_path: Path) -> None:
    """Xen's block script says so even of root; QEMU, which opens all but raw images, does not."""
    path = tmp_path / "web.img"
    fill(path)
    path.chmod(0o444)
    NO_UDEV.use()
    required = xwd.Required(str(path), writes=True, by_script=True)
    status = xwd.check_disk(required, xwd.StorageFacts(explains=False))
    assert status.reason == "has no write permission, but the guest writes to it"
    assert status.is_readable
    for other in (required._replace(writes=False), required._replace(by_script=False)):
        assert xwd.check_disk(other, xwd.StorageFacts(explains=False)) == xwd.READY


class Mounts:
    """The mounts of a made-up host, and those it should have."""

    def __init__(self, root: Path) -> None:
        self.paths = paths_below(root / "host")
        self._write("proc/self/mountinfo", "20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n")

    def _write(self, file: str, text: str) -> None:
        path = Path(self.paths.sys).parent / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as lines:
            lines.write(text)

    def mount(self, where: Path, options: str = "rw", number: str = "8:2", root: str = "/", kind: str = "ext4") -> None:
        """Add a mount as seen in our sandbox, where every mount is read-only; the options are the file system's."""
        line = f"{hash(where)} 20 {number} {root} {where} ro,relatime shared:1 - {kind} /dev/sdb {options}\n"
        self._write("proc/self/mountinfo", line)

    def plan(self, where: Path, options: str = "defaults") -> None:
        self._write("etc/fstab", f"nas:/images {where} nfs {options} 0 0\n")

    def unit(
        self, where: Path, wanted_by: str = "", more: str = "", what: str = "nas:/images", directory: str = "etc"
    ) -> None:
        text = f"[Unit]\n{more}\n[Mount]\nWhat = {what}\nWhere = {where}\n"
        self._write(f"{directory}/systemd/system/images.mount", text)
        if wanted_by:
            self._write(f"etc/systemd/system/{wanted_by}.wants/images.mount", "")


@pytest.fixture
def mounts(tmp_path: Path) -> Mounts:
    (tmp_path / "images").mkdir()
    fill(tmp_path / "images" / "web.img")
    return Mounts(tmp_path)


def image_status(mounts: Mounts, tmp_path: Path, *, writes: bool = True) -> xwd.Status:
    mounts.paths.use()
    return xwd.check_disk(xwd.Required(f"{tmp_path}/images/web.img", writes=writes), xwd.StorageFacts(explains=False))


@pytest.mark.parametrize("options", ["ro,errors=continue", "rw,emergency_ro,errors=remount-ro"])
def test_image_on_read_only_file_system_is_ready_only_for_reading(mounts: Mounts, tmp_path: Path, options: str) -> None:
    """Since Linux 6.15, ext4 shows that it has become so after an error by another word."""
    mounts.mount(tmp_path / "images", options)
    reason = f"{tmp_path}/images is mounted read-only, but the guest writes to it"
    status = image_status(mounts, tmp_path)
    assert (status.state, status.reason, status.is_readable) == (xwd.State.NOT_READY, reason, True)
    assert image_status(mounts, tmp_path, writes=False) == xwd.READY


def test_read_only_mount_by_the_sandbox_does_not_count(mounts: Mounts, tmp_path: Path) -> None:
    mounts.mount(tmp_path / "images", "rw,errors=remount-ro")
    assert image_status(mounts, tmp_path) == xwd.READY


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
def test_image_is_not_ready_until_its_file_system_is_mounted(mounts: Mounts, tmp_path: Path) -> None:
    mounts.plan(tmp_path / "images")
    reason = f"{tmp_path}/images is not mounted (/etc/fstab mounts nas:/images there)"
    assert image_status(mounts, tmp_path)[:2] == (xwd.State.NOT_READY, reason)
    mounts.mount(tmp_path / "images")
    assert image_status(mounts, tmp_path) == xwd.READY


@pytest.mark.parametrize("directory", ["etc", "usr/lib", "usr/local/lib"])
def test_mount_unit_started_at_boot_is_waited_for(mounts: Mounts, tmp_path: Path, directory: str) -> None:
    mounts.unit(tmp_path / "images", "multi-user.target", directory=directory)
    assert "(images.mount mounts nas:/images there)" in image_status(mounts, tmp_path).reason


def test_tmpfs_mount_unit_is_not_waited_for(mounts: Mounts, tmp_path: Path) -> None:
    """In a container, tmp.mount exists but has no effect."""
    mounts.unit(tmp_path / "images", "multi-user.target", what="tmpfs\nType=tmpfs")
    assert image_status(mounts, tmp_path) == xwd.READY


@pytest.mark.parametrize("options", ["noauto", "noauto,nofail"])
def test_noauto_file_system_is_not_waited_for(mounts: Mounts, tmp_path: Path, options: str) -> None:
    mounts.plan(tmp_path / "images", options)
    assert image_status(mounts, tmp_path) == xwd.READY


@pytest.mark.parametrize("option", ["x-systemd.automount", "x-systemd.wanted-by=xendomains.service"])
def test_noauto_file_system_that_systemd_mounts_is_waited_for(mounts: Mounts, tmp_path: Path, option: str) -> None:
    mounts.plan(tmp_path / "images", f"noauto,{option}")
    assert "(/etc/fstab mounts nas:/images there)" in image_status(mounts, tmp_path).reason


@pytest.mark.parametrize(("wanted_by", "more"), [("", ""), ("multi-user.target", "ConditionPathExists=/nowhere")])
def test_mount_unit_that_nothing_starts_is_not_waited_for(
    mounts: Mounts, tmp_path: Path, wanted_by: str, more: str
) -> None:
    mounts.unit(tmp_path / "images", wanted_by, more)
    assert image_status(mounts, tmp_path) == xwd.READY


def test_outer_mount_is_waited_for_if_the_inner_is_noauto(mounts: Mounts, tmp_path: Path) -> None:
    mounts.plan(tmp_path / "images", "noauto")
    mounts.plan(tmp_path)
    assert image_status(mounts, tmp_path).reason.startswith(f"{tmp_path} is not mounted ")


def test_directory_bound_to_itself_is_not_waited_for(mounts: Mounts, tmp_path: Path) -> None:
    """As it is done to make it a mount that is shared, and mountinfo shows it."""
    images = tmp_path / "images"
    mounts.unit(images, "multi-user.target", what=str(images))
    mounts.mount(images, number="8:1", root=str(images))
    assert image_status(mounts, tmp_path) == xwd.READY


def test_missing_mount_is_not_detected_without_proc(mounts: Mounts, tmp_path: Path) -> None:
    mounts.plan(tmp_path / "images")
    Path(mounts.paths.proc, "self", "mountinfo").unlink()
    assert image_status(mounts, tmp_path) == xwd.READY


def test_image_reachable_through_an_automount_is_ready(mounts: Mounts, tmp_path: Path) -> None:
    mounts.plan(tmp_path / "images", "noauto,x-systemd.automount")
    assert image_status(mounts, tmp_path).state is xwd.State.NOT_READY
    mounts.mount(tmp_path / "images", kind="autofs")
    assert image_status(mounts, tmp_path) == xwd.READY


def test_bind_mount_by_the_sandbox_does_not_count_as_the_planned_mount(mounts: Mounts, tmp_path: Path) -> None:
    """ProtectHome=read-only creates one for /home."""
    mounts.plan(tmp_path / "images")
    mounts.mount(tmp_path / "images", number="8:1", root=f"{tmp_path}/images")
    assert image_status(mounts, tmp_path).state is xwd.State.NOT_READY


# Images with backing files


def qcow2(path: Path, backing: str = "", backing_format: str = "", version: int = 3, features: int = 0) -> Path:
    """Create the first 4 KiB of an image like qemu-img, see QEMU's docs/interop/qcow2.rst."""
    extension = struct.pack(">II", 0xE2792ACA, len(backing_format)) + backing_format.encode() if backing_format else b""
    extension = extension.ljust(-(-len(extension) // 8) * 8, b"\0") + bytes(8)
    offset = 104 + len(extension) if backing else 0
    header = b"QFI\xfb" + struct.pack(">IQI", version, offset, len(backing.encode()))
    header = header.ljust(72, b"\0") + struct.pack(">Q", features)
    path.write_bytes((header.ljust(104, b"\0") + extension + backing.encode()).ljust(4096, b"\0"))
    return path


def image(path: Path, image_format: str = "qcow2", *, writes: bool = False) -> xwd.Status:
    NO_UDEV.use()
    required = xwd.Required(str(path), format=image_format, writes=writes)
    return xwd.check_disk(required, xwd.StorageFacts(explains=False))


def lacks_backing_file(path: Path) -> xwd.Status:
    return not_ready(f"backing file {path} does not exist")


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
def test_an_image_needs_its_backing_file(tmp_path: Path) -> None:
    web = qcow2(tmp_path / "web.qcow2", "base.img", "raw")
    assert image(web) == lacks_backing_file(tmp_path / "base.img")
    fill(tmp_path / "base.img")
    assert image(web) == xwd.READY


def test_backing_chain_is_followed(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    web = qcow2(tmp_path / "web.qcow2", "templates/one.qcow2", "qcow2")
    qcow2(tmp_path / "templates" / "one.qcow2", "two.qcow2", "qcow2")
    assert image(web) == lacks_backing_file(tmp_path / "templates" / "two.qcow2")
    qcow2(tmp_path / "templates" / "two.qcow2")
    assert image(web) == xwd.READY


def test_layers_of_an_image_are_its_mount_and_backing_chain(mounts: Mounts, tmp_path: Path) -> None:
    mounts.mount(tmp_path / "images")
    web = qcow2(tmp_path / "images" / "web.qcow2", "one.qcow2", "qcow2")
    one = qcow2(tmp_path / "images" / "one.qcow2", "base.img", "raw")
    base = tmp_path / "images" / "base.img"
    mounts.paths.use()
    layer = xwd.storage_of(xwd.Required(str(web), format="qcow2"), xwd.StorageFacts())
    mount, behind = layer.below
    its_mount, behind_that = behind.below
    assert [(one.kind, one.name) for one in (layer, mount, behind, its_mount, behind_that)] == [
        ("file", str(web)),
        ("mount", str(tmp_path / "images")),
        ("backing file", str(one)),
        ("mount", str(tmp_path / "images")),
        ("backing file", str(base)),
    ]
    assert layer.cause is behind_that.problem
    assert layer.cause == xwd.Problem(f"backing file {base} does not exist")


@pytest.mark.parametrize("backing_format", ["raw", "qcow2"])
def test_empty_backing_file_is_not_ready(tmp_path: Path, backing_format: str) -> None:
    """A copy of the template that has just begun."""
    (tmp_path / "base.img").touch()
    status = image(qcow2(tmp_path / "web.qcow2", "base.img", backing_format))
    assert status == not_ready(f"backing file {tmp_path}/base.img is empty (0 bytes)")


def test_backing_file_is_not_ready_until_its_file_system_is_mounted(mounts: Mounts, tmp_path: Path) -> None:
    mounts.plan(tmp_path / "images")
    web = qcow2(tmp_path / "web.qcow2", "file:images/web.img", "raw")
    mounts.paths.use()
    status = xwd.check_disk(xwd.Required(str(web), format="qcow2"), xwd.StorageFacts(explains=False))
    assert status.reason.startswith(f"{tmp_path}/images is not mounted ")


@as_root
def test_backing_device_is_checked_and_not_opened(machine: Machine, tmp_path: Path) -> None:
    machine.device("sda", device__state="offline")
    os.mknod(tmp_path / "base", stat.S_IFBLK | 0o600, Machine.NUMBER)
    web = qcow2(tmp_path / "web.qcow2", "base", "qcow2")
    machine.paths().use()
    state = machine.sys / "devices/sda/device/state"
    for text, reason in (("offline", "/dev/sda: SCSI device is offline"), ("running", "")):
        state.write_text(text)
        assert xwd.check_disk(xwd.Required(str(web), format="qcow2"), xwd.StorageFacts()).reason == reason


def test_backing_file_of_a_raw_image_is_not_followed(tmp_path: Path) -> None:
    qcow2(tmp_path / "base.img", "/nowhere")
    assert image(qcow2(tmp_path / "web.qcow2", "base.img", "raw")) == xwd.READY
    assert image(tmp_path / "base.img", "raw") == xwd.READY
    assert image(tmp_path / "base.img") == lacks_backing_file(Path("/nowhere"))


def test_image_that_is_not_qcow2_is_not_ready(tmp_path: Path) -> None:
    fill(tmp_path / "web.qcow2")
    assert image(tmp_path / "web.qcow2") == not_ready("is not a qcow2 image")
    assert image(qcow2(tmp_path / "web.qcow2", version=1)) == not_ready("is not a qcow2 image")
    assert image(tmp_path / "web.qcow2", "qcow") == xwd.READY
    assert image(qcow2(tmp_path / "web.qcow2"), "qcow") == not_ready("is not a qcow image")


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
def test_image_that_qemu_has_marked_as_corrupt_is_ready_only_for_reading(tmp_path: Path) -> None:
    dirty, corrupt = 1, 2
    assert image(qcow2(tmp_path / "web.qcow2", features=dirty), writes=True) == xwd.READY
    status = image(qcow2(tmp_path / "web.qcow2", features=corrupt), writes=True)
    assert (status.reason, status.hint, status.is_readable) == (
        "is marked as corrupt, so QEMU does not open it for writing",
        f"qemu-img check -r all {tmp_path}/web.qcow2",
        True,
    )
    assert image(tmp_path / "web.qcow2") == xwd.READY


@pytest.mark.parametrize("backing", ["nbd://server/base", 'json:{"driver":"rbd"}', "host_device:/dev/vg/web"])
def test_backing_that_is_not_a_file_is_left_to_qemu(tmp_path: Path, backing: str) -> None:
    assert image(qcow2(tmp_path / "web.qcow2", backing)) == xwd.READY


def test_cyclic_backing_chain_terminates(tmp_path: Path) -> None:
    assert image(qcow2(tmp_path / "web.qcow2", "web.qcow2", "qcow2")) == xwd.READY


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_image_header_is_handled(header: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"QFI\xfb" + header)
        file.flush()
        assert isinstance(image(Path(file.name)), xwd.Status)


def test_nonexistent_path_is_missing(tmp_path: Path) -> None:
    assert look(tmp_path / "web.img") == missing("does not exist", is_unknown=True)


def test_nonexistent_directory_is_named(tmp_path: Path) -> None:
    assert look(tmp_path / "vg0" / "web") == missing(
        f"does not exist, nor does the directory {tmp_path}/vg0", is_unknown=True
    )


def test_a_link_to_nothing_is_missing_and_names_its_target(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/dm-99")
    assert look(tmp_path / "link") == missing("is a link to /dev/dm-99, which does not exist")


def test_a_link_to_a_link_to_nothing_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("/dev/dm-99")
    assert look(tmp_path / "one") == missing("is a link to /dev/dm-99, which does not exist")


def test_a_path_through_a_file_is_missing(tmp_path: Path) -> None:
    fill(tmp_path / "file")
    assert look(tmp_path / "file" / "web").state is xwd.State.MISSING


def test_drbd_8_link_is_accepted_for_a_resource(tmp_path: Path) -> None:
    resources = tmp_path / "drbd" / "by-res"
    resources.mkdir(parents=True)
    path = resources / "web" / "0"
    assert look(path).state is xwd.State.MISSING
    fill(resources / "web")
    assert look(path) == xwd.READY


def test_drbd_directory_without_the_volume_is_not_ready(tmp_path: Path) -> None:
    path = tmp_path / "drbd" / "by-res" / "web" / "0"
    path.parent.mkdir(parents=True)
    assert look(path).state is xwd.State.MISSING


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"), [(Path.mkdir, "a directory"), (make_fifo, "a FIFO"), (make_socket, "a socket")]
)
def test_other_file_types_are_not_ready_and_named(tmp_path: Path, make: Callable[[Path], None], kind: str) -> None:
    make(tmp_path / "it")
    assert look(tmp_path / "it") == not_ready(f"is {kind}, neither a block device nor a regular file")


def test_a_character_device_is_not_ready() -> None:
    assert "is a character device" in look(Path("/dev/null")).reason


def test_a_link_loop_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert look(tmp_path / "a") == not_ready("cannot be checked: Too many levels of symbolic links")


def test_a_path_that_is_too_long_is_not_ready(tmp_path: Path) -> None:
    assert look(tmp_path / ("x" * 300)) == not_ready("cannot be checked: File name too long")


def test_a_path_with_a_nul_byte_is_not_ready() -> None:
    assert "cannot be checked" in look(Path("/dev/x\0y")).reason


class Machine:
    """A made-up /sys and /run/udev with one block device."""

    NUMBER = os.makedev(259, 77)

    def __init__(self, root: Path) -> None:
        self.sys = root / "sys"
        self.run = root / "run"
        self.database = self.run / "udev" / "data"
        self.database.mkdir(parents=True)

    def device(self, name: str, size: int = 2048, number: str = "259:77", **attributes: str) -> None:
        directory = self.sys / "devices" / name
        for attribute, value in {"size": str(size), "dev": number, **attributes}.items():
            file = directory / attribute.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(value + "\n")
        for link in (self.sys / "dev" / "block" / number, self.sys / "class" / "block" / name):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(directory)

    def udev(self, *properties: str, finished: bool = True, number: str = "259:77", initialized: int = 0) -> None:
        (self.run / "udev" / "control").touch()
        if finished:
            lines = ["S:disk/by-id/x\n", f"I:{initialized}000000\n", *(f"E:{p}\n" for p in properties), "V:1\n"]
            (self.database / f"b{number}").write_text("".join(lines))

    def paths(self) -> HostPaths:
        return HostPaths(str(self.sys), str(self.run), str(self.run))

    def look(self, required: xwd.Required = NOTHING) -> xwd.Status:
        self.paths().use()
        problem = xwd.check_block_device(self.NUMBER, required, xwd.StorageFacts()).cause
        return not_ready(problem.reason) if problem else xwd.READY


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
@pytest.mark.parametrize(
    ("name", "attributes", "reason"),
    [
        ("md127", {"md__array_state": "inactive", "size": "0"}, INACTIVE),
        ("md127", {"md__array_state": "clear", "size": "0"}, "md array is empty"),
        ("md127", {"md__array_state": "suspended"}, "md array is suspended"),
        ("md0", {"md__array_state": "broken"}, "md array is broken"),
        ("dm-3", {"dm__suspended": "1"}, "device-mapper device is suspended"),
        ("nbd0", {}, "nbd device is not connected to a server"),
        ("drbd0", {"size": "0"}, "DRBD device has size 0: it has no disk and no peer"),
        ("loop7", {}, "loop device has no file"),
        ("sda", {"size": "0"}, "has size 0"),
        ("md127p1", {"size": "0"}, "has size 0"),
        ("sda", {"device__state": "transport-offline"}, "SCSI device is transport-offline"),
        ("nvme0n1", {"device__state": "connecting"}, "no live NVMe controller"),
    ],
)
def test_device_with_unready_kernel_state_is_not_ready(
    machine: Machine, name: str, attributes: dict[str, str], reason: str
) -> None:
    machine.device(name, **attributes)  # type: ignore[arg-type]
    assert machine.look() == not_ready(f"/dev/{name}: {reason}")


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("md127", {"md__array_state": "clean"}),
        ("md127", {"md__array_state": "active-idle"}),
        ("md127", {"md__array_state": "read-auto"}),
        ("md127p1", {}),
        ("dm-3", {"dm__suspended": "0"}),
        ("nbd0", {"pid": "4711"}),
        ("nbd0p1", {}),
        ("drbd0", {}),
        ("loop7", {"loop__backing_file": "/srv/x.img"}),
        ("loop7p1", {}),
        ("sr0", {"size": "0"}),
        ("sda1", {}),
    ],
)
def test_device_with_ready_kernel_state_is_ready(machine: Machine, name: str, attributes: dict[str, str]) -> None:
    machine.device(name, **attributes)  # type: ignore[arg-type]
    assert machine.look() == xwd.READY


def test_device_node_without_a_device_is_not_ready(machine: Machine) -> None:
    (machine.sys / "dev" / "block").mkdir(parents=True)
    assert machine.look() == not_ready("is a device file, but the kernel has no such block device")


def test_device_still_processed_by_udev_is_not_ready(machine: Machine) -> None:
    machine.device("sda")
    machine.udev(finished=False)
    assert machine.look() == not_ready("udev has not finished processing it")


@pytest.mark.parametrize(
    ("queue", "hint"), [(True, "udevadm settle"), (False, "udevadm trigger --settle /sys/class/block/sda")]
)
def test_udev_is_asked_again_if_it_has_given_up(machine: Machine, queue: bool, hint: str) -> None:
    """It does so without an entry for the device when a program of a rule hangs for three minutes."""
    machine.device("sda")
    machine.udev(finished=False)
    if queue:
        (machine.run / "udev" / "queue").touch()
    machine.paths().use()
    cause = xwd.check_block_device(machine.NUMBER, NOTHING, xwd.StorageFacts()).cause
    assert cause == xwd.Problem("udev has not finished processing it", hint)


def test_device_processed_by_udev_is_ready(machine: Machine) -> None:
    machine.device("sda")
    machine.udev("ID_FS_TYPE=ext4", "SYSTEMD_READY=1")
    assert machine.look() == xwd.READY


def test_device_is_not_ready_while_udev_runs_its_programs(machine: Machine) -> None:
    """systemd 256 and newer write the entry before they run the programs."""
    machine.device("sda")
    machine.udev("ID_PROCESSING=1", "ID_FS_TYPE=ext4")
    assert machine.look() == not_ready("/dev/sda: udev has not finished processing it")


def test_device_is_ready_after_udev_has_run_its_programs(machine: Machine) -> None:
    machine.device("sda")
    machine.udev("ID_PROCESSING=0", "ID_FS_TYPE=ext4")
    assert machine.look() == xwd.READY


def test_udev_entry_is_read_up_to_a_limit(machine: Machine) -> None:
    machine.device("sda")
    machine.udev(*(f"KEY_{number}={'x' * 1000}" for number in range(60)), "SYSTEMD_READY=0")
    assert machine.look() == not_ready("udev has set SYSTEMD_READY=0 for it")
    sparse(machine.database / "b259:77")
    assert machine.look() == xwd.READY


@pytest.mark.promise("A disk that exists but cannot be used yet is not ready")
def test_device_with_systemd_ready_0_is_not_ready(machine: Machine) -> None:
    machine.device("dm-3", dm__suspended="0")
    machine.udev("DM_UUID=LVM-abc", "SYSTEMD_READY=0")
    assert machine.look() == not_ready("udev has set SYSTEMD_READY=0 for it")


WITHOUT_UDEV = ("SYSTEMD_READY=0", *(f"DM_UDEV_DISABLE_{what}_FLAG=1" for what in ("DM_RULES", "OTHER_RULES")))


@pytest.mark.promise("A disk that can be used is not waited for, whatever udev says")
@pytest.mark.parametrize(
    ("properties", "seen", "queue", "state"),
    [
        (WITHOUT_UDEV, 2, False, xwd.State.READY),
        (WITHOUT_UDEV, 99, False, xwd.State.NOT_READY),  # LVM may be setting it up
        (WITHOUT_UDEV, 2, True, xwd.State.NOT_READY),  # the event that changes this may be queued
        ((*WITHOUT_UDEV, "DM_NAME=web", "DM_UUID=CRYPT-TEMP-1"), 2, False, xwd.State.NOT_READY),
    ],
)
def test_volume_activated_by_initramfs_without_udev_is_ready(
    machine: Machine, properties: tuple[str, ...], seen: int, queue: bool, state: xwd.State
) -> None:
    machine.device("dm-3", dm__suspended="0", dm__name="vg-web", dm__uuid="LVM-abc")
    machine.udev(*properties, initialized=seen)
    (machine.run / "uptime").write_text("100.00 180.00\n")
    if queue:
        (machine.run / "udev" / "queue").touch()
    assert machine.look().state is state


def test_disk_mounted_on_this_host_is_not_ready_for_xens_script(machine: Machine) -> None:
    machine.device("sda")
    mountinfo = machine.run / "self" / "mountinfo"
    mountinfo.parent.mkdir()
    writes, reads = xwd.Required(writes=True, by_script=True), xwd.Required(by_script=True)
    refused = not_ready("is mounted on /mnt on this host, and Xen refuses to share it")
    for options, expected in (("rw", (refused, refused)), ("ro", (refused, xwd.READY))):
        mountinfo.write_text(f"40 1 259:77 / /mnt ro,relatime - ext4 /dev/sda {options}\n")
        assert (machine.look(writes), machine.look(reads)) == expected
    assert machine.look(xwd.Required(writes=True)) == xwd.READY


def test_single_path_of_a_multipath_map_is_not_ready(machine: Machine) -> None:
    machine.device("sda")
    machine.udev("DM_MULTIPATH_DEVICE_PATH=1", "SYSTEMD_READY=0")
    assert machine.look() == not_ready("is one path of a multipath device; use the multipath device instead")


def test_open_crypt_volume_without_content_is_ready(machine: Machine) -> None:
    machine.device("dm-3", dm__suspended="0")
    machine.udev("DM_UUID=CRYPT-LUKS2-abc", "SYSTEMD_READY=0")
    assert machine.look() == xwd.READY


@pytest.mark.parametrize("content", ["ID_FS_USAGE=filesystem", "ID_PART_TABLE_TYPE=gpt"])
def test_open_crypt_volume_with_content_is_ready_when_udev_says_so(machine: Machine, content: str) -> None:
    machine.device("dm-3", dm__suspended="0")
    machine.udev("DM_UUID=CRYPT-LUKS2-abc", content, "SYSTEMD_READY=0")
    assert machine.look().state is xwd.State.NOT_READY


@pytest.mark.promise("udev's database has unexpected content: labels that are not UTF-8, 50 MB")
def test_properties_in_udevs_database_may_hold_anything(machine: Machine) -> None:
    machine.device("sda")
    (machine.database / "b259:77").write_bytes(b"I:1\nE:ID_MODEL=a=b \nE:ID_SERIAL=\xfc\nE:EMPTY=\nQ:tag\n")
    machine.paths().use()
    device = xwd.StorageFacts().udev_entry("259:77")
    assert device and device.properties == {"ID_MODEL": "a=b ", "ID_SERIAL": "\ufffd", "EMPTY": ""}


def test_device_unknown_to_udev_has_no_properties(machine: Machine) -> None:
    machine.paths().use()
    assert xwd.StorageFacts().udev_entry("259:77") is None


def test_loop_device_on_file_name_with_invalid_utf8_is_ready(machine: Machine) -> None:
    machine.device("loop7", loop__backing_file="")
    (machine.sys / "devices" / "loop7" / "loop" / "backing_file").write_bytes(b"/srv/b\xfcro.img\n")
    assert machine.look() == xwd.READY


def test_empty_cd_drive_is_ready(machine: Machine) -> None:
    machine.device("sr0", size=0)
    machine.udev("ID_CDROM=1", "SYSTEMD_READY=0")
    assert machine.look() == xwd.READY


def test_array_holding_inactive_physical_volume_is_ready(machine: Machine) -> None:
    """The volume group may belong to the guest."""
    machine.device("md127", md__array_state="clean")
    machine.udev("ID_FS_TYPE=LVM2_member", "SYSTEMD_READY=0")
    assert machine.look() == xwd.READY


@pytest.mark.promise("A disk that can be used is not waited for, whatever udev says")
def test_member_of_incomplete_btrfs_is_ready(machine: Machine) -> None:
    machine.device("sda")
    machine.udev("ID_BTRFS_READY=0", "SYSTEMD_READY=0")
    assert machine.look() == xwd.READY


def test_crypt_volume_being_created_is_not_ready(machine: Machine) -> None:
    machine.device("dm-3", dm__suspended="0")
    machine.udev("DM_UUID=CRYPT-TEMP-abc", "DM_UDEV_DISABLE_OTHER_RULES_FLAG=1", "SYSTEMD_READY=0")
    assert machine.look().state is xwd.State.NOT_READY


@as_root
@pytest.mark.xdist_group("block_devices")
def test_loop_device_becomes_ready_when_a_file_is_attached(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    device = loop_device()
    assert look(device) == not_ready(f"{device}: loop device has no file")
    with attached(device, image):
        assert look(device) == xwd.READY
    wait_until(lambda: look(device) == not_ready(f"{device}: loop device has no file"))


@as_root
@pytest.mark.xdist_group("block_devices")
def test_layers_of_a_loop_device_begin_with_the_required_path(tmp_path: Path) -> None:
    image, link = tmp_path / "image", tmp_path / "link"
    image.write_bytes(bytes(1 << 20))
    NO_UDEV.use()
    with attached(loop_device(), image) as device:
        link.symlink_to(device)
        facts = xwd.StorageFacts()
        layers = [xwd.storage_of(xwd.Required(str(path)), facts) for path in (device, link)]
    expected = xwd.Layer(str(device), "loop device", None, (xwd.Layer(str(image), "file"),))
    assert layers == [expected, xwd.Layer(str(link), "link", None, (expected,))]


@as_root
@pytest.mark.xdist_group("block_devices")
def test_a_loop_device_of_size_0_is_not_ready(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    with attached(loop_device(), image) as device:
        assert look(device) == not_ready(f"{device}: has size 0")


@as_root
def test_stale_device_node_is_not_ready(tmp_path: Path) -> None:
    os.mknod(tmp_path / "node", stat.S_IFBLK | 0o600, os.makedev(259, 0xFFFFF))
    assert look(tmp_path / "node") == not_ready("is a device file, but the kernel has no such block device")


@as_root
def test_sysfs_error_is_reported(machine: Machine, tmp_path: Path) -> None:
    machine.device("sda")
    size = machine.sys / "devices" / "sda" / "size"
    size.unlink()
    size.mkdir()  # can be opened, but not read
    os.mknod(tmp_path / "node", stat.S_IFBLK | 0o600, Machine.NUMBER)
    host = machine.paths()
    assert look(tmp_path / "node", host) == not_ready("cannot be checked: Is a directory")


@as_root
@pytest.mark.usefixtures("udev")
@pytest.mark.xdist_group("block_devices")
def test_udev_database_is_read_as_pyudev_reads_it(tmp_path: Path) -> None:
    pyudev = pytest.importorskip("pyudev", reason="pyudev is not installed")
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    run_quietly("mkswap", "--label", LABEL, image)
    with attached(loop_device(), image) as device:
        run_quietly("udevadm", "settle")
        number = device.stat().st_rdev
        found = xwd.StorageFacts().udev_entry(f"{os.major(number)}:{os.minor(number)}")
        seen = dict(pyudev.Devices.from_device_number(pyudev.Context(), "block", number).properties)
    assert found and found.name == device.name and f"/dev/disk/by-label/{LABEL}" in found.links
    properties = found.properties
    assert properties.items() <= seen.items()
    # libudev adds properties from other lines, and from the kernel.
    assert {name for name in seen if name.startswith(("ID_", "DM_", "SYSTEMD_"))} <= properties.keys()
    assert properties["ID_FS_TYPE"] == "swap"


@as_root
@pytest.mark.usefixtures("udev")
@pytest.mark.xdist_group("block_devices")
def test_loop_device_becomes_ready_with_real_udev(tmp_path: Path) -> None:
    assert xwd.udev_runs()
    host = HostPaths()
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    device = loop_device()
    assert look(device, host).state is xwd.State.NOT_READY
    with attached(device, image):
        wait_until(lambda: look(device, host) == xwd.READY)


@as_root
@pytest.mark.usefixtures("udev")
@pytest.mark.xdist_group("block_devices")
def test_loop_device_event_ends_the_wait_before_the_next_look(host: Host, tmp_path: Path) -> None:
    pytest.importorskip("pyudev", reason="pyudev is not installed")
    host.configure("[polling]\nfirst = 1h\nlongest = 1h\n")
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    device = loop_device()
    host.guest("web", device)
    with waiting(host, "--timeout", "2h") as running, attached(device, image):
        result = running.end()
    assert result.status == xwd.EXIT_READY
    assert f"disk {device} found (after " in result.messages
