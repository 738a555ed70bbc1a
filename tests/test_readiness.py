# SPDX-License-Identifier: GPL-3.0-or-later
"""Ready, not merely present: real loop devices, and a made-up /sys and /run/udev for what there is no hardware for."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Host, as_root, attached, finish, loop_device, run_quietly, wait_until

import xendomains_wait_disk as xwd

NO_UDEV = xwd.Kernel(run_udev="/nowhere")


def look(path: Path, kernel: xwd.Kernel = NO_UDEV) -> xwd.Look:
    return xwd.look_at_path(str(path), kernel)


def not_ready(reason: str) -> xwd.Look:
    return xwd.Look(xwd.State.NOT_READY, reason)


def missing(reason: str) -> xwd.Look:
    return xwd.Look(xwd.State.MISSING, reason)


def test_a_regular_file_is_ready(tmp_path: Path) -> None:
    (tmp_path / "web.img").touch()
    assert look(tmp_path / "web.img") == xwd.READY


def test_a_link_to_a_regular_file_is_ready(tmp_path: Path) -> None:
    (tmp_path / "web.img").touch()
    (tmp_path / "link").symlink_to("web.img")
    assert look(tmp_path / "link") == xwd.READY


def test_what_does_not_exist_is_missing(tmp_path: Path) -> None:
    assert look(tmp_path / "web.img") == missing("does not exist")


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert look(tmp_path / "vg0" / "web") == missing(f"does not exist, nor does the directory {tmp_path}/vg0")


def test_a_link_to_nothing_is_missing_and_names_its_target(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/dm-99")
    assert look(tmp_path / "link") == missing("is a link to /dev/dm-99, which does not exist")


def test_a_link_to_a_link_to_nothing_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("/dev/dm-99")
    assert look(tmp_path / "one") == missing("is a link to /dev/dm-99, which does not exist")


def test_a_path_through_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert look(tmp_path / "file" / "web").state is xwd.State.MISSING


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"), [(Path.mkdir, "a directory"), (make_fifo, "a FIFO"), (make_socket, "a socket")]
)
def test_anything_else_is_not_ready_and_named(tmp_path: Path, make: Callable[[Path], None], kind: str) -> None:
    make(tmp_path / "it")
    assert look(tmp_path / "it") == not_ready(f"is {kind}, neither a block device nor a regular file")


def test_a_character_device_is_not_ready() -> None:
    assert "is a character device" in look(Path("/dev/null")).reason


def test_a_link_loop_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert look(tmp_path / "a") == not_ready("cannot be looked at: Too many levels of symbolic links")


def test_a_path_that_is_too_long_is_not_ready(tmp_path: Path) -> None:
    assert look(tmp_path / ("x" * 300)) == not_ready("cannot be looked at: File name too long")


def test_a_path_with_a_nul_byte_is_not_ready() -> None:
    assert "cannot be looked at" in look(Path("/dev/x\0y")).reason


def test_of_several_paths_one_is_enough(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    assert xwd.look_at((str(tmp_path / "new"), str(tmp_path / "old")), NO_UDEV) == xwd.READY
    assert xwd.look_at((str(tmp_path / "new"), str(tmp_path / "no")), NO_UDEV) == missing("does not exist")


class Machine:
    """A made-up /sys and /run/udev with one block device."""

    NUMBER = os.makedev(259, 77)

    def __init__(self, root: Path) -> None:
        self.sys = root / "sys"
        self.run_udev = root / "run" / "udev"
        self.run_udev.mkdir(parents=True)

    def device(self, name: str, size: int = 2048, number: str = "259:77", **attributes: str) -> None:
        directory = self.sys / "devices" / name
        for attribute, value in {"size": str(size), **attributes}.items():
            file = directory / attribute.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(value + "\n")
        link = self.sys / "dev" / "block" / number
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(directory)

    def udev(self, *properties: str, finished: bool = True, number: str = "259:77") -> None:
        (self.run_udev / "control").touch()
        if finished:
            database = self.run_udev / "data" / f"b{number}"
            database.parent.mkdir(exist_ok=True)
            database.write_text("".join(["S:disk/by-id/x\n", "I:1234\n", *(f"E:{p}\n" for p in properties), "V:1\n"]))

    def kernel(self) -> xwd.Kernel:
        return xwd.Kernel(str(self.sys), str(self.run_udev))

    def look(self) -> xwd.Look:
        return xwd.look_at_block_device(self.NUMBER, self.kernel())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("name", "attributes", "reason"),
    [
        ("md127", {"md__array_state": "inactive", "size": "0"}, "md array is inactive"),
        ("md127", {"md__array_state": "clear", "size": "0"}, "md array is empty"),
        ("md127", {"md__array_state": "suspended"}, "md array is suspended"),
        ("md0", {"md__array_state": "broken"}, "md array is broken"),
        ("dm-3", {"dm__suspended": "1"}, "device-mapper device is suspended"),
        ("nbd0", {}, "nbd device is not connected to a server"),
        ("drbd0", {"size": "0"}, "DRBD device has size 0: it has no disk and no peer"),
        ("loop7", {}, "loop device has no file"),
        ("sda", {"size": "0"}, "has size 0"),
        ("md127p1", {"size": "0"}, "has size 0"),
    ],
)
def test_what_the_kernel_says_is_not_ready(
    machine: Machine, name: str, attributes: dict[str, str], reason: str
) -> None:
    machine.device(name, **attributes)  # type: ignore[arg-type]
    assert machine.look() == not_ready(reason)


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
def test_what_the_kernel_says_is_ready(machine: Machine, name: str, attributes: dict[str, str]) -> None:
    machine.device(name, **attributes)  # type: ignore[arg-type]
    assert machine.look() == xwd.READY


def test_a_device_file_without_a_device_is_not_ready(machine: Machine) -> None:
    (machine.sys / "dev" / "block").mkdir(parents=True)
    assert machine.look() == not_ready("is a device file, but the kernel has no such block device")


def test_a_device_that_udev_has_not_finished_with_is_not_ready(machine: Machine) -> None:
    machine.device("sda")
    machine.udev(finished=False)
    assert machine.look() == not_ready("udev has not finished with it")


def test_a_device_that_udev_has_finished_with_is_ready(machine: Machine) -> None:
    machine.device("sda")
    machine.udev("ID_FS_TYPE=ext4", "SYSTEMD_READY=1")
    assert machine.look() == xwd.READY


def test_libudev_is_not_asked_about_what_its_database_calls_ready(machine: Machine) -> None:
    machine.device("sda")
    machine.udev("ID_FS_TYPE=ext4")
    kernel = xwd.Kernel(str(machine.sys), str(machine.run_udev), lambda _: pytest.fail("it was asked"))
    assert xwd.look_at_block_device(machine.NUMBER, kernel) == xwd.READY


def test_libudev_has_the_last_word_on_what_its_database_calls_not_ready(machine: Machine) -> None:
    machine.device("sda")
    machine.udev("SYSTEMD_READY=0")
    known: dict[int, dict[str, str]] = {machine.NUMBER: {"SYSTEMD_READY": "1"}}
    kernel = xwd.Kernel(str(machine.sys), str(machine.run_udev), known.get)
    assert xwd.look_at_block_device(machine.NUMBER, kernel) == xwd.READY
    known.clear()
    assert xwd.look_at_block_device(machine.NUMBER, kernel) == not_ready("udev has not finished with it")


def test_what_udev_says_is_read_to_its_end(machine: Machine) -> None:
    machine.device("sda")
    machine.udev(*(f"KEY_{number}={'x' * 1000}" for number in range(200)), "SYSTEMD_READY=0")
    assert machine.look() == not_ready("udev says that it is not ready (SYSTEMD_READY=0)")


def test_a_device_that_udev_calls_not_ready_is_not(machine: Machine) -> None:
    machine.device("dm-3", dm__suspended="0")
    machine.udev("DM_UUID=LVM-abc", "SYSTEMD_READY=0")
    assert machine.look() == not_ready("udev says that it is not ready (SYSTEMD_READY=0)")


def test_a_path_of_a_multipath_device_is_not_ready(machine: Machine) -> None:
    machine.device("sda")
    machine.udev("DM_MULTIPATH_DEVICE_PATH=1", "SYSTEMD_READY=0")
    assert machine.look() == not_ready("is one path of a multipath device; use the multipath device instead")


def test_an_opened_crypt_volume_without_content_is_ready_for_a_guest(machine: Machine) -> None:
    machine.device("dm-3", dm__suspended="0")
    machine.udev("DM_UUID=CRYPT-LUKS2-abc", "SYSTEMD_READY=0")
    assert machine.look() == xwd.READY


@pytest.mark.parametrize("content", ["ID_FS_USAGE=filesystem", "ID_PART_TABLE_TYPE=gpt"])
def test_an_opened_crypt_volume_with_content_is_ready_when_udev_says_so(machine: Machine, content: str) -> None:
    machine.device("dm-3", dm__suspended="0")
    machine.udev("DM_UUID=CRYPT-LUKS2-abc", content, "SYSTEMD_READY=0")
    assert machine.look().state is xwd.State.NOT_READY


def test_properties_in_udevs_database_may_hold_anything(machine: Machine) -> None:
    database = machine.run_udev / "data" / "b259:77"
    database.parent.mkdir()
    database.write_bytes(b"I:1\nE:ID_MODEL=a=b \nE:ID_SERIAL=\xfc\nE:EMPTY=\n")
    properties = xwd.read_udev_database(machine.NUMBER, str(machine.run_udev))
    assert properties == {"ID_MODEL": "a=b ", "ID_SERIAL": "\ufffd", "EMPTY": ""}


def test_a_loop_device_whose_file_has_a_name_that_is_no_utf8_is_ready(machine: Machine) -> None:
    machine.device("loop7", loop__backing_file="")
    (machine.sys / "devices" / "loop7" / "loop" / "backing_file").write_bytes(b"/srv/b\xfcro.img\n")
    assert machine.look() == xwd.READY


def test_a_member_of_a_btrfs_that_is_not_complete_is_ready_for_a_guest(machine: Machine) -> None:
    machine.device("sda")
    machine.udev("ID_BTRFS_READY=0", "SYSTEMD_READY=0")
    assert machine.look() == xwd.READY


def test_a_crypt_volume_that_is_being_made_is_not_ready(machine: Machine) -> None:
    machine.device("dm-3", dm__suspended="0")
    machine.udev("DM_UUID=CRYPT-TEMP-abc", "DM_UDEV_DISABLE_OTHER_RULES_FLAG=1", "SYSTEMD_READY=0")
    assert machine.look().state is xwd.State.NOT_READY


@as_root
def test_a_loop_device_becomes_ready_with_a_file_behind_it(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    device = loop_device()
    assert look(device) == not_ready("loop device has no file")
    with attached(device, image):
        assert look(device) == xwd.READY
    wait_until(lambda: look(device) == not_ready("loop device has no file"))


@as_root
def test_a_loop_device_of_size_0_is_not_ready(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    with attached(loop_device(), image) as device:
        assert look(device) == not_ready("has size 0")


@as_root
def test_a_device_file_for_nothing_is_not_ready(tmp_path: Path) -> None:
    os.mknod(tmp_path / "node", stat.S_IFBLK | 0o600, os.makedev(259, 0xFFFFF))
    assert look(tmp_path / "node") == not_ready("is a device file, but the kernel has no such block device")


@as_root
def test_an_error_in_sysfs_is_told_of(machine: Machine, tmp_path: Path) -> None:
    machine.device("sda")
    size = machine.sys / "devices" / "sda" / "size"
    size.unlink()
    size.mkdir()  # opens, and cannot be read
    os.mknod(tmp_path / "node", stat.S_IFBLK | 0o600, Machine.NUMBER)
    kernel = xwd.Kernel(str(machine.sys), str(machine.run_udev))
    assert look(tmp_path / "node", kernel) == not_ready("cannot be looked at: Is a directory")


@pytest.mark.usefixtures("no_pyudev")
def test_without_pyudev_there_is_nobody_to_ask_but_the_database() -> None:
    assert xwd.pyudev_lookup() is None


def test_libudev_knows_nothing_of_a_device_that_is_gone() -> None:
    pytest.importorskip("pyudev", reason="pyudev is not installed")
    lookup = xwd.pyudev_lookup()
    assert lookup and lookup(Machine.NUMBER) is None


@as_root
@pytest.mark.usefixtures("udev")
def test_reading_udevs_database_tells_what_libudev_tells(tmp_path: Path) -> None:
    pyudev = pytest.importorskip("pyudev", reason="pyudev is not installed")
    lookup = xwd.pyudev_lookup()
    assert lookup
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with attached(loop_device(), image):
        run_quietly("udevadm", "settle")
        numbers = [d.device_number for d in pyudev.Context().list_devices(subsystem="block")]
        assert numbers
        for number in numbers:
            read, asked = xwd.read_udev_database(number, "/run/udev"), lookup(number)
            assert (read is None) == (asked is None)
            assert read is None or asked is None or read.items() <= asked.items()


@as_root
@pytest.mark.usefixtures("udev")
@pytest.mark.parametrize("ask", [xwd.pyudev_lookup, lambda: None], ids=["pyudev", "database"])
def test_with_udev_a_loop_device_becomes_ready(tmp_path: Path, ask: Callable[[], xwd.UdevLookup | None]) -> None:
    kernel = xwd.Kernel(udev=ask())
    assert kernel.udev_runs()
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    device = loop_device()
    assert look(device, kernel).state is xwd.State.NOT_READY
    with attached(device, image):
        wait_until(lambda: look(device, kernel) == xwd.READY)


@as_root
@pytest.mark.usefixtures("udev")
def test_a_loop_device_that_becomes_ready_ends_the_wait_before_the_next_look_is_due(host: Host) -> None:
    pytest.importorskip("pyudev", reason="pyudev is not installed")
    host.configure("[polling]\nfirst = 20s\nlongest = 20s\n")
    image = host.image("image")
    image.write_bytes(bytes(1 << 20))
    device = loop_device()
    host.guest("web", device)
    started = time.monotonic()
    process = host.start("--timeout", "15")
    time.sleep(1.5)
    with attached(device, image):
        result = finish(process, started)
    assert result.status == xwd.EXIT_READY
    assert result.seconds < 5
    assert f"disk {device} found (after " in result.messages


def test_disks_with_the_same_lvm_identifier_are_clones(machine: Machine) -> None:
    for number, name, uuid in [("8:0", "sda", "one"), ("8:16", "sdb", "one"), ("8:32", "sdc", "other")]:
        machine.device(name, number=number)
        machine.udev("ID_FS_TYPE=LVM2_member", f"ID_FS_UUID={uuid}", number=number)
    assert xwd.lvm_clones(machine.kernel()) == [["sda", "sdb"]]


def test_the_paths_of_a_multipath_device_are_no_clones(machine: Machine) -> None:
    for number, name, more in [("8:0", "sda", "DM_MULTIPATH_DEVICE_PATH=1"), ("254:0", "dm-0", "DM_NAME=mpatha")]:
        machine.device(name, number=number)
        machine.udev("ID_FS_TYPE=LVM2_member", "ID_FS_UUID=one", more, number=number)
    assert xwd.lvm_clones(machine.kernel()) == []


def test_without_udev_no_clones_are_known(machine: Machine) -> None:
    assert xwd.lvm_clones(machine.kernel()) == []
