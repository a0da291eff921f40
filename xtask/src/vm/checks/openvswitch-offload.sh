#!/usr/bin/env bash
# Open vSwitch offloads to the card (`hw-offload`): a flow between two VFs is carried out by the card, past their representors,
# and the switch counts it; VLAN tags, drops and mirrors; a switch that is killed, and a card that changes its mode under it.
. "${0%/*}/card.bash"

into_a_lab "$@"

say "the switch, with offload"
switch_start hw-offload=true
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

switch_has_not_complained

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
