#!/usr/bin/env bash
# An administrator makes a bond of the PFs' netdevs, and the card makes the matching LAG.
set -euo pipefail
config=$(mktemp)
trap 'rm -f "$config"' EXIT
echo 'pfs = 2' >"$config"
esw up --card linux --config "$config" --lockdep <<'END'
ip link add bond0 type bond mode active-backup
ip link set enp8s0f0np0 master bond0
wait until lag reason has 1 of the card's 2 ports
ip link set enp8s0f1np1 master bond0
ip link set bond0 up
wait until lag roce
devlink dev eswitch set pci/0000:08:00.0 mode switchdev
devlink dev eswitch set pci/0000:08:00.1 mode switchdev
wait until lag shared-fdb
ip link set bond0 down
ip link set bond0 name uplink
ip link set enp8s0f1np1 nomaster
wait until lag reason uplink: it has 1 of the card's 2 ports
ip link del uplink
wait until lag none
devlink dev param set pci/0000:08:00.0 name esw_multiport value true cmode runtime
ip link add bond1 type bond mode 802.3ad
ip link set enp8s0f0np0 down
ip link set enp8s0f0np0 master bond1
ip link set enp8s0f1np1 master bond1
wait until lag reason multiport
expect lag mpesw
devlink dev param set pci/0000:08:00.0 name esw_multiport value false cmode runtime
wait until lag shared-fdb
ip link del bond1
wait until lag none
check
END
