# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""An NFS server on the host itself that exports /srv/export, at an address that can be removed."""

from __future__ import annotations

# An address reserved for documentation (RFC 5737).
ADDRESS = "192.0.2.1"

FILES = {"/etc/exports": f"/srv/export {ADDRESS}(rw,no_root_squash,no_subtree_check,insecure)\n"}
START = f"ip address add {ADDRESS}/32 dev lo; systemctl start nfs-server"
MOUNT = f"mkdir -p /mnt/images && mount -t nfs -o hard,noac,lookupcache=none,vers=4.2 {ADDRESS}:/srv/export /mnt/images"
# Simulates a crashed server: a server that is stopped would close its connections.
TAKE_AWAY = f"ip address delete {ADDRESS}/32 dev lo"
