# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Block devices as real Xen hosts showed them, healthy and in trouble, and layers that were made up after them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from recorded import unpack

import xendomains_wait_disk as xwd


def recorded(host: str, root: Path) -> xwd.HostPaths:
    """A recorded host, on which udev runs."""
    unpack(host, root)
    (root / "run" / "udev" / "control").touch()
    return xwd.HostPaths(str(root / "sys"), str(root / "run"))


def reason(name: str, host: xwd.HostPaths) -> str:
    """Why the device with this name in /sys, or for device-mapper with this name there, is not ready; or nothing."""
    for link in sorted(Path(host.sys, "dev", "block").iterdir()):
        kernel_name = os.path.basename(os.readlink(link))
        if name in (kernel_name, xwd.attribute(str(link), "dm/name")):
            major, minor = map(int, link.name.split(":"))
            return xwd.check_block_device(os.makedev(major, minor), host).reason
    raise LookupError(name)


PATH = "is one path of a multipath device; use the multipath device instead"


@pytest.mark.parametrize(
    ("host", "name", "why"),
    [
        ("md/inactive", "md127", "md array is inactive"),
        ("md/degraded", "md127", ""),
        ("luks/open", "secret", ""),
        ("lvm/active", "vg-lv", ""),
        ("iscsi/logged-in", "sda", ""),
        ("iscsi/logged-in", "vg-lv", ""),
        ("iscsi/blocked", "sda", "the kernel calls it blocked"),
        ("iscsi/blocked", "vg-lv", "sda below it: the kernel calls it blocked"),
        ("iscsi/failed", "sda", "the kernel calls it transport-offline"),
        ("iscsi/failed", "vg-lv", "sda below it: the kernel calls it transport-offline"),
        ("iscsi/failed", "mpatha", "sdc below it: the kernel calls it transport-offline"),
        ("multipath/map", "mpatha", ""),
        ("multipath/map", "sdc", PATH),
        ("multipath/no-map", "sda", PATH),
    ],
)
def test_what_real_hosts_showed(tmp_path: Path, host: str, name: str, why: str) -> None:
    assert reason(name, recorded(host, tmp_path)) == why


def test_a_lun_and_its_clone_as_a_real_host_showed_them(tmp_path: Path) -> None:
    (said,) = xwd.lvm_clones(recorded("lvm/clone", tmp_path))
    assert said.startswith("sda and sdb hold the same LVM physical volume")


class Layers:
    """Made-up devices in /sys, each on others."""

    def __init__(self, root: Path) -> None:
        self.host = xwd.HostPaths(str(root / "sys"), str(root / "run"))
        self._block = root / "sys" / "class" / "block"
        (root / "sys" / "dev" / "block").mkdir(parents=True)

    def device(self, name: str, *below: str, **attributes: str) -> None:
        """A device of usable size on these; in names of attributes, __ stands for a slash."""
        directory = self._block / name
        for key, value in {"size": "8", **attributes}.items():
            file = directory / key.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{value}\n")
        for one in below:
            (directory / "slaves" / one).mkdir(parents=True)

    def scsi(self, name: str, state: str) -> None:
        self.device(name, device__state=state)


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


LEGS = {
    "multipath": {"dm__uuid": "mpath-36001", "dm__suspended": "0"},
    "RAID1": {"md__level": "raid1", "md__array_state": "clean"},
    "RAID5": {"md__level": "raid5", "md__array_state": "clean"},
}


@pytest.mark.parametrize("attributes", LEGS.values(), ids=LEGS)
def test_what_needs_one_leg_is_ready_with_one(layers: Layers, attributes: dict[str, str]) -> None:
    name = "md0" if "md__level" in attributes else "dm-0"
    layers.scsi("sda", "offline")
    layers.scsi("sdb", "running")
    layers.device(name, "sda", "sdb", **attributes)
    assert xwd.why_not_ready_below(name, layers.host) == ""
    layers.scsi("sdb", "blocked")
    assert xwd.why_not_ready_below(name, layers.host) == "sda below it: the kernel calls it offline"


def test_a_mirrored_volume_needs_one_of_its_images(layers: Layers) -> None:
    layers.scsi("sda", "offline")
    layers.scsi("sdb", "running")
    layers.device("dm-1", "sda", dm__name="vg-web_rmeta_0")
    layers.device("dm-2", "sda", dm__name="vg-web_rimage_0")
    layers.device("dm-3", "sdb", dm__name="vg-web_rimage_1")
    layers.device("dm-4", "dm-1", "dm-2", "dm-3", dm__name="vg-web", dm__uuid="LVM-x")
    assert xwd.why_not_ready_below("dm-4", layers.host) == ""
    layers.scsi("sdb", "offline")
    assert xwd.why_not_ready_below("dm-4", layers.host) != ""


@pytest.mark.parametrize("attributes", [{"md__level": "raid0", "md__array_state": "clean"}, {"dm__uuid": "LVM-x"}])
def test_everything_else_needs_all_that_it_stands_on(layers: Layers, attributes: dict[str, str]) -> None:
    layers.scsi("sda", "running")
    layers.scsi("sdb", "offline")
    layers.device("dm-0", "sda", "sdb", **attributes)
    assert xwd.why_not_ready_below("dm-0", layers.host) == "sdb below it: the kernel calls it offline"


def test_layers_are_looked_at_down_to_the_last(layers: Layers) -> None:
    layers.scsi("sda", "transport-offline")
    layers.device("dm-0", "sda", dm__uuid="mpath-36001")
    layers.device("md0", "dm-0", md__level="linear", md__array_state="clean")
    layers.device("dm-1", "md0", dm__uuid="LVM-x")
    assert xwd.why_not_ready_below("dm-1", layers.host) == "sda below it: the kernel calls it transport-offline"


def test_a_layer_lacks_what_it_would_lack_as_a_disk(layers: Layers) -> None:
    layers.device("md0", md__array_state="inactive", size="0")
    layers.device("dm-0", "md0", dm__uuid="LVM-x")
    assert xwd.why_not_ready_below("dm-0", layers.host) == "md0 below it: md array is inactive"


def test_a_partition_stands_on_its_disk(layers: Layers, tmp_path: Path) -> None:
    disk = tmp_path / "sys" / "devices" / "sda"
    (disk / "sda1").mkdir(parents=True)
    (disk / "sda1" / "partition").write_text("1\n")
    layers.scsi("sda", "offline")
    (tmp_path / "sys" / "class" / "block" / "sda1").symlink_to(disk / "sda1")
    assert xwd.why_not_ready_below("sda1", layers.host) == "sda below it: the kernel calls it offline"


def test_a_circle_of_layers_ends(layers: Layers) -> None:
    layers.device("dm-0", "dm-1", dm__uuid="LVM-x")
    layers.device("dm-1", "dm-0", dm__uuid="LVM-x")
    assert xwd.why_not_ready_below("dm-0", layers.host) == ""
