# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
# fish completion for xendomains-wait-disk(8)

function __xendomains_wait_disk_no_command
    not __fish_seen_subcommand_from wait list check last start
end

function __xendomains_wait_disk_guests
    for file in /etc/xen/auto/* /var/lib/xen/save/* /etc/libvirt/libxl/autostart/*
        string replace --regex '.*/' '' -- $file
    end
end

set -l option complete -c xendomains-wait-disk

$option -f
$option -s h -l help -d 'show help and exit'
$option -n __xendomains_wait_disk_no_command -l config -r -F -d 'read this file instead of /etc/xen-wait-disk.conf'
$option -n __xendomains_wait_disk_no_command -l version -d 'show the version and exit'
$option -n __xendomains_wait_disk_no_command -a wait -d 'wait for the disks of the guests that are about to start'
$option -n __xendomains_wait_disk_no_command -a list -d 'show guests, disks and their state'
$option -n __xendomains_wait_disk_no_command -a check -d 'report what would keep guests from starting at boot'
$option -n __xendomains_wait_disk_no_command -a last -d 'show how the wait at boot went'
$option -n __xendomains_wait_disk_no_command -a start -d 'start guests that are down and whose disks are ready'

$option -n '__fish_seen_subcommand_from wait' -l timeout -x -a '0 30s 5min 1h' -d 'wait at most this long; 0 checks once'
$option -n '__fish_seen_subcommand_from list' -s v -l verbose -d 'show each disk, and a command that helps'
$option -n '__fish_seen_subcommand_from list' -l problems -d 'show only guests that are not ready'
$option -n '__fish_seen_subcommand_from list' -l tree -d 'show the storage below each disk'
$option -n '__fish_seen_subcommand_from check' -l reboot -d 'also report what would not come up at the next boot'
$option -n '__fish_seen_subcommand_from check' -l nagios -d 'print one line for Nagios'
$option -n '__fish_seen_subcommand_from last' -s b -l boot -x -a '-1 -2 -3' -d 'an earlier boot, as in journalctl'
$option -n '__fish_seen_subcommand_from last' -l list -d 'show a line for each boot'
$option -n '__fish_seen_subcommand_from last' -l prometheus -d 'print metrics for the textfile collector'
$option -n '__fish_seen_subcommand_from start' -l dry-run -d 'print the commands without running them'
$option -n '__fish_seen_subcommand_from start' -l wait -d 'also wait for the disks of the other guests (--wait=TIME: at most)'
$option -n '__fish_seen_subcommand_from wait start' -s v -l verbose -d 'print more; twice: print everything'
$option -n '__fish_seen_subcommand_from wait start' -s q -l quiet -d 'print only what is missing or not started'
$option -n '__fish_seen_subcommand_from list check last start' -l json -d 'print JSON'
$option -n '__fish_seen_subcommand_from wait list check start' -a '(__xendomains_wait_disk_guests)' -d guest
