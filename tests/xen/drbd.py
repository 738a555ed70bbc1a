# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Two DRBD resources, one and two, on disks of these names. This host is one of two nodes; the other never appears."""

from __future__ import annotations


def resource(name: str, minor: int) -> str:
    """Return the configuration of a resource."""
    return f"""
resource {name} {{
    device minor {minor};
    disk /dev/disk/by-id/virtio-{name};
    meta-disk internal;
    on dom0 {{ address 127.0.0.1:{7789 + minor}; }}
    on elsewhere {{ address 127.0.0.9:{7789 + minor}; }}
}}
"""


FILES = {"/etc/drbd.d/one.res": resource("one", 1), "/etc/drbd.d/two.res": resource("two", 2)}
MAKE_PRIMARY = """
    modprobe drbd
    for resource in one two; do
        drbdadm create-md --force "$resource"
        drbdadm up "$resource"
        drbdadm primary --force "$resource"
    done
"""
