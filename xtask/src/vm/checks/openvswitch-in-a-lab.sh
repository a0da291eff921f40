#!/usr/bin/env bash
# Open vSwitch with the kernel's datapath, in a lab: it finds the card's representors, is started, killed and started again, and
# one VF reaches the other each time. It sends requests and receives with MSG_DONTWAIT, so the answers must be there at once.
. "${0%/*}/card.bash"

into_a_lab "$@"

say "what a lab shows"
devlink port show | grep -q "netdev $rep0 flavour pcivf" || fail "devlink shows no port of $rep0"
ip -d link show "$rep0" | grep -q switchid || fail "$rep0 has no switch id"

say "the switch, with the kernel's datapath"
switch_start
for round in 1 2 3; do
  ping_from one 10.4.0.2
  ovs-dpctl show | grep -q "$rep0" || fail "round $round: the kernel's datapath has no port $rep0"
  switch=$(cat "$folder/ovs/ovs-vswitchd.pid")
  if [ $((round % 2)) = 1 ]; then kill -9 "$switch"; else ovs-appctl -T 20 exit; fi
  while [ -e "/proc/$switch" ]; do sleep 0.1; done
  switch_up
done
ping_from two 10.4.0.1
switch_has_not_complained
