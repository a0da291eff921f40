#!/usr/bin/env bash
# Not among the checks yet: it has failed once in several runs, when the filter of ARP stayed not_in_hw 9 s after it was made.
# Open vSwitch over a card: VXLAN over the uplink is offloaded (`offloaded:yes, dp:tc`), and goes on while the card's daemon is killed and
# started again; TCP in a zone of conntrack, also to an address that is translated, passes through the switch. Flows of
# connections are not offloaded with this kernel: Open vSwitch wants CONFIG_NET_TC_SKB_EXT for them, which Debian's lacks.
. "${0%/*}/card.bash"

# A station at the other end of the wire, with a tunnel of its own. And somebody who starts the daemon again, which nobody can in a lab.
before_the_lab() {
  local wire
  wire=$(ip -n "esw-${pf#pci/}" -o link show wire0 | sed 's/.*wire0@\([^:]*\):.*/\1/')
  ip netns add far
  ip -n "esw-${pf#pci/}" link set "$wire" netns far
  ip -n far link set "$wire" name eth0 address 02:00:00:00:00:99 up
  ip -n far addr add 192.0.2.2/24 dev eth0
  ip -n far link add vx0 type vxlan id 5 dstport 4789 remote 192.0.2.1
  ip -n far addr add 10.4.0.3/24 dev vx0
  ip -n far link set vx0 up
  (
    until [ -e "$folder/kill" ]; do [ -d "$folder" ] || exit; sleep 0.2; done
    kill -9 "$(pgrep -f '[e]sw up --daemon')"
    until [ -e "$folder/again" ]; do [ -d "$folder" ] || exit; sleep 0.2; done
    esw up --daemon --detach --config "$folder/cards.toml" >"$folder/up.log" 2>&1
    touch "$folder/up"
  ) &
}
into_a_lab "$@"

# tcp_from NAMESPACE ADDRESS: sends over one connection for two seconds.
tcp_from() { ip netns exec "$1" iperf3 -c "$2" -t 2 -b 2M --connect-timeout 10000 >"$folder/iperf.log" || { cat "$folder/iperf.log"; fail "no TCP from $1 to $2"; }; }

say "the switch, with offload"
switch_start hw-offload=true
for name in two far; do ip netns exec "$name" iperf3 -s -D --pidfile "$folder/iperf.$name"; done

say "TCP in a zone of conntrack, and to an address that is translated"
there=$(ip -n two -br link show enp8s0f0v1 | awk '{ print $3 }')
ip -n one neigh add 10.4.0.100 lladdr "$there" dev enp8s0f0v0
cat >"$folder/flows" <<END
priority=1,actions=NORMAL
priority=100,tcp,in_port=$rep0,nw_dst=10.4.0.2,actions=ct(zone=5,table=1)
priority=100,tcp,in_port=$rep1,nw_dst=10.4.0.1,tp_src=5201,actions=ct(zone=5,nat,table=1)
priority=110,tcp,in_port=$rep0,nw_dst=10.4.0.100,actions=ct(zone=5,nat,table=1)
table=1,priority=100,tcp,ct_state=+new,in_port=$rep0,nw_dst=10.4.0.2,actions=ct(commit,zone=5),output:$rep1
table=1,priority=100,tcp,ct_state=+new,in_port=$rep0,nw_dst=10.4.0.100,actions=ct(commit,zone=5,nat(dst=10.4.0.2)),output:$rep1
table=1,priority=90,tcp,ct_state=+est,in_port=$rep0,actions=output:$rep1
table=1,priority=90,tcp,ct_state=+est,in_port=$rep1,actions=output:$rep0
END
ovs-ofctl -O OpenFlow13 --names replace-flows br0 "$folder/flows"
tcp_from one 10.4.0.2
tcp_from one 10.4.0.100
connections=$(ovs-appctl dpctl/dump-conntrack)
grep -q 'orig=(src=10.4.0.1,dst=10.4.0.2,.*zone=5' <<<"$connections" || fail "no connection in zone 5: $connections"
grep -q 'orig=(src=10.4.0.1,dst=10.4.0.100,.*reply=(src=10.4.0.2,' <<<"$connections" || fail "no translated connection: $connections"
ovs-ofctl -O OpenFlow13 replace-flows br0 - <<<"priority=1,actions=NORMAL"

say "VXLAN over the uplink"
ip link set enp8s0f0np0 up
ip addr add 192.0.2.1/24 dev enp8s0f0np0
ovs-vsctl --timeout=60 add-port br0 vx -- set interface vx type=vxlan options:remote_ip=192.0.2.2 options:key=5
ping_from one 10.4.0.3
ping_from one 10.4.0.3
offloaded 'eth_type\(0x0800\).*actions:set\(tunnel\(tun_id=0x5.*vxlan_sys_4789'
offloaded 'tunnel\(tun_id=0x5.*eth_type\(0x0800\).*actions:'"$rep0"
esw rules
ping_from one 10.4.0.3

say "the daemon is killed while the card forwards, and comes again"
touch "$folder/kill"
while pgrep -f '[e]sw up --daemon' >/dev/null; do sleep 0.1; done
ping_from one 10.4.0.3
touch "$folder/again"
until [ -e "$folder/up" ]; do sleep 0.2; done
pgrep -f '[e]sw up --daemon' >/dev/null || { cat "$folder/up.log"; fail "the daemon did not start again"; }
ping_from one 10.4.0.3
offloaded 'eth_type\(0x0800\).*actions:set\(tunnel\(tun_id=0x5.*vxlan_sys_4789'

for name in two far; do kill "$(tr -d '\0' <"$folder/iperf.$name")"; done
switch_has_not_complained 'recirc_id sharing not supported\|Dropped [0-9]* log messages'
