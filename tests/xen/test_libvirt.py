# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Guests of libvirt: one whose disk appears a minute late is started then, and one that was shut down stays down."""

from __future__ import annotations

import json

import pytest
from xenhost import Boot, Disk, Guest, Host

pytestmark = pytest.mark.promise(
    "Guests of libvirt are listed, checked, waited for and, if libvirt could not start them, started late"
)

NAMES = ("one", "late", "ran")
UNIT = "xendomains-late.service"
VIRSH = "virsh --connect xen:///system"


def definition(name: str, disk: str) -> str:
    """Return a definition as virsh define writes it to /etc/libvirt/libxl, without what libvirt adds by itself."""
    return (
        f"<domain type='xen'><name>{name}</name><uuid>7c88074f-93fa-4292-9f9c-00000000000{NAMES.index(name)}</uuid>"
        "<memory unit='MiB'>160</memory><vcpu>1</vcpu>"
        "<os><type arch='x86_64' machine='xenpv'>linux</type><kernel>/boot/guest</kernel>"
        "<initrd>/boot/guest.img</initrd><cmdline>console=hvc0 quiet mitigations=off vdevs=xvda</cmdline></os>"
        "<devices><disk type='block' device='disk'><driver name='phy' type='raw'/>"
        f"<source dev='{disk}'/><target dev='xvda' bus='xen'/></disk>"
        "<console type='pty'><target type='xen' port='0'/></console></devices></domain>\n"
    )


HOST = Host(
    disks=tuple(Disk(name, 32) for name in NAMES),
    files={
        "/etc/libvirt/libxl/one.xml": definition("one", "/dev/disk/by-id/virtio-one"),
        "/etc/libvirt/libxl/ran.xml": definition("ran", "/dev/disk/by-id/virtio-ran"),
        "/etc/libvirt/libxl/late.xml": definition("late", "/dev/mapper/late"),
        "/etc/xen-wait-disk.conf": "timeout = 5s\n",
        # Debian's libvirtd is not ordered after Debian's Xen, and would start without its Xen driver.
        "/etc/systemd/system/libvirtd.service.d/xen.conf": "[Unit]\nAfter=xen.service\n",
        # An old configuration in the auto directory of a host where xendomains is not enabled.
        "/etc/xen/auto/old.cfg": Guest("old", ("/dev/disk/by-id/virtio-one,raw,xvda,w",)).configuration(),
    },
    setup="""
        mkdir -p /etc/libvirt/libxl/autostart
        ln -s /etc/libvirt/libxl/*.xml /etc/libvirt/libxl/autostart
        # libvirt refuses a host whose CPU matches none of its models; under Xen, QEMU's CPU lacks this one feature.
        sed -i "/'sep'/d" /usr/share/libvirt/cpu_map/x86_kvm64.xml
        systemctl --quiet disable xendomains.service
        systemctl --quiet enable libvirtd.service xendomains-late.service
    """,
    after=f"""
        state() {{ systemctl show -p ActiveState,Result,StatusText {UNIT} >"$report/$1"; }}
        until_over() {{ while systemctl is-active {UNIT}; do sleep 1; done; }}

        for _ in $(seq 60); do
            {VIRSH} list && break
            sleep 1
        done
        wait_for_guest one
        wait_for_guest ran
        {VIRSH} list --all >"$report/at-first"
        xendomains-wait-disk list --json >"$report/list.json" || true
        systemctl start xendomains-wait-disk.service || true
        state waiting

        # Shut down a running guest.
        {VIRSH} destroy ran

        sleep 60
        ready late-disk
        dmsetup create late --table "0 65536 linear /dev/disk/by-id/virtio-late 0"
        wait_for_guest late 180
        until_over
        state at-last
        {VIRSH} list --all >"$report/guests"

        # A later start of libvirt also starts the service, which then changes nothing.
        systemctl restart libvirtd.service
        systemctl start {UNIT}
        until_over
        {VIRSH} list --all >"$report/later"
    """,
)


def test_libvirt_starts_guests_with_disks_and_gives_up_on_the_others(boot: Boot) -> None:
    assert boot.disks_of("one") == {"xvda": 32}
    assert boot.came_up("ran")
    assert any("Failed to autostart VM 'late'" in message for message in boot.messages("libvirtd.service"))


def test_libvirt_guests_are_listed(boot: Boot) -> None:
    guests = {guest["name"]: guest for guest in json.loads(boot.text("list.json"))["guests"]}
    assert {name: guests[name]["kind"] for name in NAMES} == dict.fromkeys(NAMES, "libvirt")
    assert guests["late"]["disks"][0]["state"] == "missing"
    assert guests["one"]["disks"][0]["state"] == "ready"


def test_wait_reads_libvirt_guests_in_its_sandbox(boot: Boot) -> None:
    assert boot.logged(r".*/dev/mapper/late for late.* still missing after 5s.*")


def test_late_guest_is_started_when_its_disk_appears(boot: Boot) -> None:
    assert "StatusText=Waiting for 1 disk of 1 guest: /dev/mapper/late for late" in boot.text("waiting")
    assert boot.disks_of("late") == {"xvda": 32}
    assert "guest late has been started." in boot.messages(UNIT)


def test_guest_that_was_shut_down_stays_down(boot: Boot) -> None:
    for moment in ("guests", "later"):
        states = dict(line.split(None, 2)[1:] for line in boot.text(moment).splitlines()[2:] if line.strip())
        assert states["ran"] == "shut off"
        assert states["one"] == states["late"] == "running"


def test_guests_left_in_xendomains_directories_are_not_started(boot: Boot) -> None:
    assert not boot.came_up("old")
    assert not any("guest old" in message for message in boot.messages(UNIT))


def test_service_ends_successfully_when_nothing_is_left_to_wait_for(boot: Boot) -> None:
    assert "ActiveState=inactive" in boot.text("at-last")
    assert "Result=success" in boot.text("at-last")
