#!/usr/bin/env bash
# Open vSwitch offloads to the card (`hw-offload`): a flow between two VFs is carried out by the card, past their representors,
# and the switch counts it; VLAN tags, drops and mirrors; a switch that is killed, and a card that changes its mode under it.
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
  [ "$status" = 0 ] || { tail -20 "$folder/ovs/vswitchd.log"; ovs-appctl dpctl/dump-flows -m; esw rules; tc -s filter show dev "$rep0" ingress; } >&2
  ovs-vsctl --timeout=20 --if-exists del-br br0 || status=1
  ovs-appctl -T 20 exit --cleanup || status=1
  ovs-appctl -T 20 -t ovsdb-server exit || status=1
  exit "$status"
}
trap all_down EXIT

switch_up() {
  ovs-vswitchd --pidfile --detach --log-file="$folder/ovs/vswitchd.log" -vconsole:off
}

say "the switch, with offload"
switch_can_count
ovsdb-tool create "$folder/ovs/conf.db" /usr/share/openvswitch/vswitch.ovsschema
ovsdb-server "$folder/ovs/conf.db" --remote="punix:$folder/ovs/db.sock" --pidfile --detach --log-file="$folder/ovs/server.log" \
  -vconsole:off
ovs-vsctl --no-wait init
ovs-vsctl --no-wait set Open_vSwitch . other_config:hw-offload=true
switch_up
ovs-vsctl --timeout=60 add-br br0 -- set bridge br0 datapath_type=system
ovs-vsctl --timeout=60 add-port br0 "$rep0" -- add-port br0 "$rep1"
ping_from one 10.4.0.2
ping_from one 10.4.0.2

say "what is offloaded"
ovs-appctl dpctl/dump-flows -m type=offloaded
esw rules
ovs-appctl dpctl/dump-flows -m type=offloaded | grep 'eth_type(0x0800)' | grep -q 'offloaded:yes, dp:tc' || fail "no IPv4 flow is offloaded"
before=$(cat "/sys/class/net/$rep0/statistics/rx_packets")
ping_from one 10.4.0.2
after=$(cat "/sys/class/net/$rep0/statistics/rx_packets")
# Now and then a host asks again who has an address, and that may pass the representor.
[ $((after - before)) -lt 3 ] || fail "the representor has seen $((after - before)) frames of an offloaded flow"

# offloaded PATTERN: whether a flow of the switch with this in it is carried out by the card, after a moment at most.
offloaded() {
  local n
  for n in 1 2 3 4 5 6 7 8 9 10; do
    if ovs-appctl dpctl/dump-flows -m type=offloaded | grep -E -- "$1" | grep -q 'offloaded:yes, dp:tc'; then return 0; fi
    sleep 0.3
  done
  fail "no offloaded flow has $1"
}

say "VLAN tags: an access port and a trunk"
ovs-vsctl --timeout=60 set port "$rep0" tag=5
ip -n two link add link enp8s0f0v1 name vlan5 type vlan id 5
ip -n two addr add 10.5.0.2/24 dev vlan5
ip -n two link set vlan5 up
ip -n one addr add 10.5.0.1/24 dev enp8s0f0v0
ping_from one 10.5.0.2
ping_from one 10.5.0.2
offloaded 'push_vlan\(vid=5'
offloaded 'pop_vlan'
ovs-vsctl --timeout=60 clear port "$rep0" tag

say "an OpenFlow rule that drops, and one that mirrors"
ovs-ofctl add-flow br0 "priority=100,ip,nw_dst=10.4.0.2,actions=drop"
if ip netns exec one ping -c 3 -i 0.2 -W 1 -q 10.4.0.2; then fail "what is dropped arrives"; fi
offloaded 'actions:drop'
ovs-ofctl del-flows br0 "ip,nw_dst=10.4.0.2"
ping_from one 10.4.0.2
ovs-vsctl --timeout=60 -- --id=@to get port br0 -- --id=@from get port "$rep0" -- --id=@mirror create mirror name=m0 \
  select-dst-port=@from select-src-port=@from output-port=@to -- set bridge br0 mirrors=@mirror
ping_from one 10.4.0.2
ovs-vsctl --timeout=60 clear bridge br0 mirrors

say "the switch is killed while the card forwards, and comes again"
ping_from one 10.4.0.2
switch=$(cat "$folder/ovs/ovs-vswitchd.pid")
kill -9 "$switch"
while [ -e "/proc/$switch" ]; do sleep 0.1; done
ping_from one 10.4.0.2
switch_up
ping_from one 10.4.0.2
ping_from one 10.4.0.2
offloaded 'eth_type\(0x0800\).*actions:'"$rep1"

if grep -E '\|(ERR|EMER)\|' "$folder/ovs/vswitchd.log"; then fail "the switch has complained"; fi

say "the mode changes under the switch, whose ports are gone"
devlink dev eswitch set "$pf" mode legacy
[ -z "$(esw rules)" ] || fail "rules are left in legacy mode"
devlink dev eswitch set "$pf" mode switchdev
for rep in "$rep0" "$rep1"; do
  ip link set "$rep" up
  ovs-vsctl --timeout=60 --if-exists del-port br0 "$rep" -- add-port br0 "$rep"
done
ping_from one 10.4.0.2
ping_from one 10.4.0.2
offloaded 'eth_type\(0x0800\).*actions:'"$rep1"
