#!/usr/bin/env bash
# Open vSwitch with the kernel's datapath, outside of a lab: one VF reaches the other over a bridge of two representors, also after
# the switch has been started again.
. "${0%/*}/card.bash"

export OVS_RUNDIR=$folder/ovs OVS_DBDIR=$folder/ovs
mkdir "$OVS_RUNDIR"

switch_up() {
  ovs-vswitchd --pidfile --detach --log-file="$folder/ovs/vswitchd.log" -vconsole:off
}

at_end() {
  local status=0
  ovs-vsctl --timeout=20 --if-exists del-br br0 || status=1
  ovs-appctl -T 20 exit --cleanup || status=1
  ovs-appctl -T 20 -t ovsdb-server exit || status=1
  return "$status"
}

card_up
say "the switch, with the kernel's datapath"
switch_can_count
ovsdb-tool create "$folder/ovs/conf.db" /usr/share/openvswitch/vswitch.ovsschema
ovsdb-server "$folder/ovs/conf.db" --remote="punix:$folder/ovs/db.sock" --pidfile --detach --log-file="$folder/ovs/server.log" \
  -vconsole:off
ovs-vsctl --no-wait init
switch_up
ovs-vsctl --timeout=60 add-br br0 -- set bridge br0 datapath_type=system
ovs-vsctl --timeout=60 add-port br0 "$rep0" -- add-port br0 "$rep1"
ovs-vsctl show
[ -d /sys/module/openvswitch ] || fail "the kernel's module openvswitch is not loaded"
ip -d link show "$rep0" | grep -q openvswitch_slave || fail "$rep0 is not a port of the kernel's datapath"

ip -n one addr add 10.3.0.1/24 dev enp8s0f0v0
ip -n two addr add 10.3.0.2/24 dev enp8s0f0v1
ping_from one 10.3.0.2

say "the kernel has the flows"
flows=$(ovs-appctl dpctl/dump-flows)
echo "$flows"
grep -q 'eth_type(0x0800)' <<<"$flows" || fail "no flow of IPv4 is in the kernel's datapath"

say "after the switch was started again"
ovs-appctl -T 20 exit
until ! pgrep -x ovs-vswitchd >/dev/null; do sleep 0.1; done
switch_up
ping_from two 10.3.0.1

say "a rule that drops is one that is kept"
ovs-ofctl add-flow br0 'priority=100,icmp,actions=drop'
if ip netns exec one ping -c 2 -W 1 -q 10.3.0.2; then fail "what is to be dropped arrived"; fi
