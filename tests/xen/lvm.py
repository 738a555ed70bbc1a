# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""An iSCSI target with a LUN that contains a volume group with one logical volume, /dev/vg/lv."""

from __future__ import annotations

TARGET = "iqn.2003-01.org.example:group"
TARGET_WITH_CLONE = f"<target {TARGET}>\n  backing-store /srv/lun\n  backing-store /srv/clone\n</target>\n"
TARGET_WITHOUT_CLONE = f"<target {TARGET}>\n  backing-store /srv/lun\n</target>\n"

# Keep udev from activating the volume group.
PAUSE_ACTIVATION = "mkdir -p /run/udev/rules.d; touch /run/udev/rules.d/69-lvm.rules; udevadm control --reload"
RESUME_ACTIVATION = "rm /run/udev/rules.d/69-lvm.rules; udevadm control --reload"

SERVE_VOLUME_GROUP = f"""
    truncate --size=64M /srv/lun
    {PAUSE_ACTIVATION}
    device=$(losetup --find --show /srv/lun)
    vgcreate vg "$device"
    lvcreate --name=lv --size=32M --activate=n --zero=n vg
    losetup --detach "$device"
    udevadm settle
    {RESUME_ACTIVATION}
    cp --sparse=always /srv/lun /srv/clone
    systemctl start tgt iscsid
    iscsiadm --mode discovery --type sendtargets --portal 127.0.0.1
"""
