# SPDX-License-Identifier: GPL-3.0-or-later
"""An NFS server on the host itself, with what is in /srv/export."""

from __future__ import annotations

FILES = {"/etc/exports": "/srv/export localhost(rw,no_root_squash,no_subtree_check,insecure)\n"}
MOUNT = "mkdir -p /mnt/images && mount -t nfs -o hard,noac,lookupcache=none,vers=4.2 localhost:/srv/export /mnt/images"
