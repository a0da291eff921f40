#!/usr/bin/env bash
# 802.1Q over representors: a VF's tagged packets arrive at its representor with the tag, and a VLAN-aware bridge of
# representors keeps two VLANs apart.
. "${0%/*}/card.bash"
card_up

say "a VLAN device on the VF and one on its representor"
ip -n one link add link enp8s0f0v0 name tagged up type vlan id 100
ip -n one addr add 10.1.0.1/24 dev tagged
ip link add link "$rep0" name tagged up type vlan id 100
ip addr add 10.1.0.2/24 dev tagged
ping_from one 10.1.0.2

say "the tag is on the wire between them"
timeout 60 tcpdump -Z root -i "$rep0" -c 1 -w "$folder/seen" 'vlan 100 and icmp' 2>"$folder/tcpdump" &
tcpdump=$!
until grep -q 'listening on' "$folder/tcpdump"; do sleep 0.1; done
ping_from one 10.1.0.2
wait "$tcpdump" || fail "no packet with tag 100 was seen at $rep0"

say "another tag is another network"
ip link del tagged
ip link add link "$rep0" name tagged up type vlan id 200
ip addr add 10.1.0.2/24 dev tagged
if ip netns exec one ping -c 2 -W 1 -q 10.1.0.2; then fail "VLAN 100 reached VLAN 200"; fi
ip link del tagged
ip -n one link del tagged

say "a bridge that filters VLANs, with both representors in VLAN 10"
ip link add br0 up type bridge vlan_filtering 1 vlan_default_pvid 0
for rep in "$rep0" "$rep1"; do
  ip link set "$rep" master br0
  bridge vlan add dev "$rep" vid 10 pvid untagged
done
ip -n one addr add 10.2.0.1/24 dev enp8s0f0v0
ip -n two addr add 10.2.0.2/24 dev enp8s0f0v1
ping_from one 10.2.0.2

say "and in two VLANs"
bridge vlan del dev "$rep1" vid 10
bridge vlan add dev "$rep1" vid 20 pvid untagged
if ip netns exec one ping -c 2 -W 1 -q 10.2.0.2; then fail "VLAN 10 reached VLAN 20"; fi
ip link del br0
