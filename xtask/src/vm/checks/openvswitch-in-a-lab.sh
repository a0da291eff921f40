#!/usr/bin/env bash
# Open vSwitch with the kernel's datapath, in a lab: it finds the card's representors, is started, killed and started again, and
# one VF reaches the other each time. It sends requests and receives with MSG_DONTWAIT, so the answers must be there at once.
. "${0%/*}/card.bash"

if [ "${1:-}" != inside ]; then
  card_up
  ip -n one addr add 10.4.0.1/24 dev enp8s0f0v0
  ip -n two addr add 10.4.0.2/24 dev enp8s0f0v1
  FOLDER=$folder esw exec -- "$0" inside
  exit
fi

rm -r "$folder"
folder=$FOLDER
export OVS_RUNDIR=$folder/ovs OVS_DBDIR=$folder/ovs
mkdir "$OVS_RUNDIR"

all_down() {
  local status=$?
  trap - EXIT
  ovs-vsctl --timeout=20 --if-exists del-br br0 || status=1
  ovs-appctl -T 20 exit --cleanup || status=1
  ovs-appctl -T 20 -t ovsdb-server exit || status=1
  exit "$status"
}
trap all_down EXIT

switch_up() {
  ovs-vswitchd --pidfile --detach --log-file="$folder/ovs/vswitchd.log" -vconsole:off
}

say "what a lab shows"
devlink port show | grep -q "netdev $rep0 flavour pcivf" || fail "devlink shows no port of $rep0"
ip -d link show "$rep0" | grep -q switchid || fail "$rep0 has no switch id"

say "the switch, with the kernel's datapath"
switch_can_count
ovsdb-tool create "$folder/ovs/conf.db" /usr/share/openvswitch/vswitch.ovsschema
ovsdb-server "$folder/ovs/conf.db" --remote="punix:$folder/ovs/db.sock" --pidfile --detach --log-file="$folder/ovs/server.log" \
  -vconsole:off
ovs-vsctl --no-wait init
switch_up
ovs-vsctl --timeout=60 add-br br0 -- set bridge br0 datapath_type=system
ovs-vsctl --timeout=60 add-port br0 "$rep0" -- add-port br0 "$rep1"
for round in 1 2 3; do
  ping_from one 10.4.0.2
  ovs-dpctl show | grep -q "$rep0" || fail "round $round: the kernel's datapath has no port $rep0"
  switch=$(cat "$folder/ovs/ovs-vswitchd.pid")
  if [ $((round % 2)) = 1 ]; then kill -9 "$switch"; else ovs-appctl -T 20 exit; fi
  while [ -e "/proc/$switch" ]; do sleep 0.1; done
  switch_up
done
ping_from two 10.4.0.1
if grep -E '\|(ERR|EMER)\|' "$folder/ovs/vswitchd.log"; then fail "the switch has complained"; fi
