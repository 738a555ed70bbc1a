# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The path on this host that each disk needs, if any."""

from __future__ import annotations

import math

import pytest
from conftest import Host

import xendomains_wait_disk as xwd

DRBD = "/dev/drbd/by-res/r0/0"


@pytest.mark.parametrize(
    ("specification", "path"),
    [
        ("/dev/vg0/web,raw,xvda,rw", "/dev/vg0/web"),
        ("file:/srv/web.img,xvda,w", "/srv/web.img"),
        ("dmmd:/dev/vg0/web,xvda,w", "/dev/vg0/web"),
        ("backend=0,vdev=xvda,target=/dev/vg0/web", "/dev/vg0/web"),
        ("backend=Domain-0,vdev=xvda,target=/dev/vg0/web", "/dev/vg0/web"),
        ("script=block,vdev=xvda,target=/dev/vg0/web", "/dev/vg0/web"),
        ("backendtype=qdisk,vdev=xvda,target=/srv/web.qcow2", "/srv/web.qcow2"),
        ("/srv/install.iso,,hdc,cdrom", "/srv/install.iso"),
        ("drbd:r0,xvda,w", DRBD),
        ("script=block-drbd,vdev=xvda,target=r0", DRBD),
        ("script=/etc/xen/scripts/block-drbd,vdev=xvda,target=r0", DRBD),
        ("vg0/web,raw,xvda,rw", "/vg0/web"),
    ],
)
def test_required_path_comes_from_the_disk_specification(specification: str, path: str) -> None:
    assert xwd.required_by(xwd.parse_disk(specification)).path == path


@pytest.mark.parametrize(
    ("specification", "writes", "promotes"),
    [
        ("/dev/vg0/web,raw,xvda,rw", True, False),
        ("/dev/vg0/web,raw,xvda,w", True, False),
        ("/dev/vg0/web,raw,xvda", True, False),
        ("vdev=xvda,target=/dev/vg0/web", True, False),
        ("phy:/dev/vg0/web,xvda,r", False, False),
        ("access=ro,vdev=xvda,target=/dev/vg0/web", False, False),
        ("/srv/install.iso,,hdc,cdrom", False, False),
        ("drbd:r0,xvda,w", False, True),  # DRBD is read-only until Xen's script makes it Primary
        ("phy:/dev/drbd1,xvda,w", True, False),
    ],
)
def test_required_access_comes_from_the_disk_specification(specification: str, writes: bool, promotes: bool) -> None:
    required = xwd.required_by(xwd.parse_disk(specification))
    assert (required.writes, required.promotes) == (writes, promotes)


def test_disk_of_several_guests_must_suffice_for_all() -> None:
    reads = xwd.Required("/dev/web")
    writes, promotes = reads._replace(writes=True), reads._replace(promotes=True)
    guests = {
        name: xwd.Guest(xwd.Domain(name, name, "auto"), required=(required,))
        for name, required in (("a", reads), ("b", writes), ("c", promotes))
    }
    assert xwd.required_paths(guests) == {"/dev/web": reads._replace(writes=True)}


@pytest.mark.parametrize(
    ("specification", "reason"),
    [
        (",,hdc:cdrom,r", "the drive is empty"),
        ("vdev=hdc,devtype=cdrom,format=empty", "the drive is empty"),
        (",raw,xvda", "the drive is empty"),
        ("/srv/install.iso,empty,xvda", "the drive is empty"),
        ("backend=storage,vdev=xvda,target=/dev/vg0/web", "served by driver domain storage"),
        ("backend=3,vdev=xvda,target=/dev/vg0/web", "served by driver domain 3"),
        ("backend=storage,script=block-drbd,vdev=xvda,target=r0", "served by driver domain storage"),
        ("script=block-iscsi,vdev=xvda,target=iqn=x,portal=y", "attached by script block-iscsi"),
        ("iscsi:iqn.x:y,xvda,w", "attached by script block-iscsi"),
        ("script=block-x,vdev=xvda,target=/dev/vg0/web", "attached by script block-x"),
        ("script=block-dmmd,dmmd:md;/dev/md0,xvda,w", "attached by script block-dmmd"),
        ("backendtype=qdisk,vdev=xvda,target=rbd:pool/image", "opened by QEMU"),
    ],
)
def test_disk_not_provided_by_this_host_is_not_required(specification: str, reason: str) -> None:
    assert xwd.required_by(xwd.parse_disk(specification)) == xwd.Required(reason=reason)


@pytest.mark.promise("Guests with nothing to wait for do not delay the boot")
def test_guests_with_nothing_to_wait_for_do_not_delay_the_boot(host: Host) -> None:
    host.guest("diskless")
    host.guest("empty-drive", ",,hdc:cdrom,r")
    host.guest("driver-domain", "backend=storage,vdev=xvda,target=/dev/vg0/none")
    host.guest("scripted", "script=block-iscsi,vdev=xvda,target=iqn=x")
    host.guest("network", "backendtype=qdisk,vdev=xvda,target=rbd:pool/image")
    result = host.run()
    assert (result.status, result.messages) == (xwd.EXIT_READY, "")


def test_relative_target_causes_a_warning(host: Host) -> None:
    file = host.guest("web", "no/such/image,raw,xvda,rw")
    result = host.run("--timeout", "0")
    assert (
        f"{file}: the target 'no/such/image' of disk xvda is relative; libxl looks for /no/such/image."
        in result.messages
    )
    assert "/no/such/image for web is missing: " in result.messages


def test_path_used_by_two_guests_is_reported_for_both(host: Host) -> None:
    missing = host.images / "shared"
    host.guest("one", missing)
    host.guest("two", missing)
    messages = host.run("--timeout", "0").messages
    for guest in ("one", "two"):
        assert f"{missing} for {guest} is missing: does not exist\n" in messages


def test_read_only_guest_does_not_wait_for_a_writable_disk(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = host.image("shared")
    host.guest("reader", f"{shared},raw,xvda,r")
    host.guest("writer", f"{shared},raw,xvda,w")
    read_only = xwd.Status(xwd.State.NOT_READY, "is read-only", is_readable=True)
    monkeypatch.setattr(xwd, "check_disk", lambda *_: read_only)
    snapshot = host.watcher().look(math.inf)
    assert [one.guest for one in snapshot.missing()] == ["writer"]
    states = [snapshot.disk_status(guest.required[0]).state for guest in snapshot.guests.values()]
    assert states == [xwd.State.READY, xwd.State.NOT_READY]


def test_path_used_by_many_guests_is_checked_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        host.guest(name, host.images / "shared")
    looked = []

    def check_disk(required: xwd.Required, _: xwd.StorageFacts) -> xwd.Status:
        looked.append(required.path)
        return xwd.READY

    monkeypatch.setattr(xwd, "check_disk", check_disk)
    snapshot = host.watcher().look(math.inf)
    assert looked == [str(host.images / "shared")]
    assert snapshot.missing() == []


def test_ignored_guests_are_not_waited_for_and_shown_with_the_reason(host: Host) -> None:
    host.configure("[ignore]\ndomains = test-*, other\n")
    host.guest("test-1", host.images / "none")
    (disk,) = host.list()["guests"][0]["disks"]
    assert (disk["state"], disk["path"], disk["reason"]) == ("skipped", None, "ignored: guest matches [ignore] domains")
    assert host.run().status == xwd.EXIT_READY


def test_ignored_disks_are_not_waited_for_and_shown_with_the_reason(host: Host) -> None:
    host.configure(f"[ignore]\ndisks = {host.images}/scratch*\n")
    host.guest("web", host.images / "scratch1", host.image("web"))
    scratch, web = host.list()["guests"][0]["disks"]
    assert (scratch["state"], scratch["reason"]) == ("skipped", "ignored: matches [ignore] disks")
    assert web["state"] == "ready"


def required_unless_ignored(specification: str, **ignored: tuple[str, ...]) -> xwd.Required:
    domain = xwd.Domain("web", "/etc/xen/auto/10-web.cfg", "auto")
    return xwd.required_unless_ignored(domain, xwd.parse_disk(specification), xwd.Settings()._replace(**ignored))  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["web", "w?b", "10-web.cfg", "10-*"])
def test_guest_is_ignored_by_its_name_or_file_name(pattern: str) -> None:
    required = required_unless_ignored("/dev/x,raw,xvda", ignored_domains=("none", pattern))
    assert required == xwd.Required(reason="ignored: guest matches [ignore] domains")


@pytest.mark.parametrize("pattern", ["r0", "/dev/drbd/by-res/r0", "/dev/drbd/by-res/r0/0", "/dev/drbd/*"])
def test_disk_is_ignored_by_its_target_or_any_of_its_paths(pattern: str) -> None:
    assert required_unless_ignored("drbd:r0,xvda,w", ignored_disks=("none", pattern)) == xwd.Required(
        reason="ignored: matches [ignore] disks"
    )


@pytest.mark.parametrize("pattern", ["", "we", "WEB", "/etc/xen/auto/10-web.cfg", "drbd"])
def test_disk_without_a_matching_pattern_is_not_ignored(pattern: str) -> None:
    ignored = {"ignored_domains": (pattern,), "ignored_disks": (pattern,)}
    assert required_unless_ignored("drbd:r0,xvda,w", **ignored) == xwd.Required(DRBD, promotes=True)


def test_dangling_link_can_be_ignored_by_its_name(host: Host) -> None:
    host.configure("[ignore]\ndomains = web.cfg\n")
    (host.auto / "web.cfg").symlink_to("/nowhere")
    assert host.run().status == xwd.EXIT_READY
