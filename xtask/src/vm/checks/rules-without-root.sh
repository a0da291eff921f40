#!/usr/bin/env bash
# Flow rules without root: the kernel refuses BPF, and its own classifier carries frames past the representors. Drops, VLAN
# tags, mirrors, rewritten headers, meters, chains; what it cannot do is refused by name; limits and links still hold.
. "${0%/*}/card.bash"

if [ "${1:-}" != inside ]; then
  card_is_gone() {
    local status=$?
    trap - EXIT
    as_user "$folder/esw" down || status=1
    if ip -br link | grep enp8s0f0; then status=1; fi
    rm -rf "$folder"
    exit "$status"
  }
  as_user() { setpriv --reuid=65534 --regid=65534 --clear-groups env HOME="$folder" XDG_RUNTIME_DIR="$folder" "$@"; }
  # An ordinary user could not read the program where it was built.
  cp "$(command -v esw)" "$folder"
  cp "$0" "${0%/*}/card.bash" "$folder"
  cat >"$folder/cards.toml" <<END
state_dir = "$folder/state"
[cards.card]
kind = "linux"
[cards.card.card]
vfs = 3
END
  chown -R 65534:65534 "$folder"
  cd "$folder"
  trap card_is_gone EXIT
  up=$(as_user "$folder/esw" up --daemon --detach --config "$folder/cards.toml")
  as_user "$folder/esw" exec -- bash "$folder/${0##*/}" inside
  say "the daemon is killed, and the next one takes the card over: the rules are there again"
  daemon=$(grep -o 'process [0-9]*' <<<"$up")
  kill -9 "${daemon#process }"
  while [ -e "/proc/${daemon#process }" ]; do sleep 0.1; done
  # What keeps the card's namespaces while no daemon runs.
  keeper=$(pgrep -U 65534 -f '^/proc/self/exe keeper')
  as_user nsenter -t "$keeper" --user --net --mount --preserve-credentials ip netns exec one ping -c 3 -i 0.2 -W 5 -q 10.0.0.2
  as_user "$folder/esw" up --daemon --detach --config "$folder/cards.toml"
  as_user "$folder/esw" exec -- bash "$folder/${0##*/}" inside again
  exit
fi

rm -r "$folder"
rep2=enp8s0f0npf0vf2
inside=esw-0000:08:00.0

# rx NETDEV [NAMESPACE]: how many frames a netdev has received.
rx() { ip ${2:+-n "$2"} -s link show "$1" | awk '/RX:/ { getline; print $2 }'; }
# hits NETDEV PRIO: how many frames the card's rule of this priority has counted.
hits() { tc -s filter show dev "$1" ingress prio "$2" | awk '/Sent hardware/ { print $5; exit }'; }
# bytes NETDEV PRIO: and their bytes.
bytes() { tc -s filter show dev "$1" ingress prio "$2" | awk '/Sent hardware/ { print $3; exit }'; }
# filters NETDEV: the filters at the card's end of a port, without what they have counted.
filters() { tc -n "$inside" filter show dev "$1" ingress; }
rule() { local dev=$1; shift; tc filter add dev "$dev" ingress "$@"; }
no_rule() { tc filter del dev "$1" ingress prio "$2"; }
# passes and fails: whether VF 0 reaches VF 1.
passes() { ip netns exec one ping -c "${1:-3}" -i 0.2 -W 5 -q 10.0.0.2; }
fails() { if ip netns exec one ping -c 2 -i 0.2 -W 1 -q 10.0.0.2; then fail "$*"; fi; }
same() { [ "$1" = "$2" ] || fail "$3: $1 and not $2"; }

if [ "${2:-}" = again ]; then
  grep -q 'pref 65535 flower chain 1' <<<"$(filters p0v0)" || fail "no rules are there"
  before=$(rx "$rep0")
  passes 4
  same "$(rx "$rep0")" "$before" "frames at the representor after the takeover"
  # With three frames before the takeover, three while no daemon ran, and addresses that are asked for.
  [ "$(hits "$rep0" 10)" -ge 10 ] || fail "the rule has counted $(hits "$rep0" 10) frames"
  devlink dev eswitch set "$pf" mode legacy
  for port in p0v0 p0v1 p0v2 wire0; do
    if filters "$port" | grep flower; then fail "$port has filters in legacy mode"; fi
  done
  # A namespace that is deleted gives its netdev back.
  for name in one two three; do ip netns del "$name"; done
  exit
fi

say "the kernel refuses BPF"
if bpftool prog show; then fail "bpf() is allowed"; fi

devlink dev eswitch set "$pf" mode switchdev
n=0
for name in one two three; do
  ip netns add "$name"
  ip link set "enp8s0f0v$n" netns "$name"
  # Nothing but what the check sends.
  ip -n "$name" link set "enp8s0f0v$n" addrgenmode none
  ip -n "$name" link set "enp8s0f0v$n" up
  n=$((n + 1))
done
ip -n one addr add 10.0.0.1/24 dev enp8s0f0v0
ip -n two addr add 10.0.0.2/24 dev enp8s0f0v1
for rep in "$rep0" "$rep1" "$rep2"; do
  tc qdisc add dev "$rep" ingress
  ip link set "$rep" addrgenmode none
  ip link set "$rep" up
done

say "from VF to VF by rules, and not by the representors"
fails "VFs reach each other without rules"
for prio in 10 11; do
  protocol=$([ "$prio" = 10 ] && echo ip || echo arp)
  rule "$rep0" protocol "$protocol" prio "$prio" flower skip_sw action mirred egress redirect dev "$rep1"
  rule "$rep1" protocol "$protocol" prio "$prio" flower skip_sw action mirred egress redirect dev "$rep0"
done
before=$(rx "$rep0") before1=$(rx "$rep1")
passes 5
same "$(hits "$rep0" 10) $(bytes "$rep0" 10)" "5 490" "frames and bytes of the rule at VF 0"
same "$(hits "$rep1" 10) $(bytes "$rep1" 10)" "5 490" "frames and bytes of the rule at VF 1"
same "$(rx "$rep0") $(rx "$rep1")" "$before $before1" "frames at the representors"
grep -q 'pref 10 flower chain 1' <<<"$(filters p0v0)" || fail "the kernel's classifier does not have the rule"

say "what is not supported is refused by name, and changes nothing"
before=$(filters p0v0)
refused() {
  local name=$1 answer
  shift
  if answer=$(rule "$rep0" "$@" 2>&1); then fail "$name was not refused"; fi
  echo "$answer"
  grep -q "this kernel's classifier has no $name" <<<"$answer" || fail "$name is not named"
}
refused ct_state protocol ip prio 1 flower skip_sw ct_state +trk+est action drop
refused ct protocol ip prio 1 flower skip_sw action ct zone 1 pipe action mirred egress redirect dev "$rep1"
refused 'priority 65535' protocol ip prio 65535 flower skip_sw action drop
same "$(filters p0v0)" "$before" "filters"
passes

say "a drop"
rule "$rep0" protocol ip prio 1 flower skip_sw ip_proto icmp dst_ip 10.0.0.2 action drop
fails "what is dropped arrives"
same "$(hits "$rep0" 1)" 2 "frames that were dropped"
no_rule "$rep0" 1
passes

say "VLAN tags are pushed and popped"
ip -n two link add link enp8s0f0v1 name vlan5 type vlan id 5
ip -n two addr add 10.5.0.2/24 dev vlan5
ip -n two link set vlan5 up
ip -n one addr add 10.5.0.1/24 dev enp8s0f0v0
lladdr() { ip -n "$1" link show "$2" | awk '/ether/ { print $2 }'; }
ip -n one neigh replace 10.5.0.2 lladdr "$(lladdr two enp8s0f0v1)" dev enp8s0f0v0
ip -n two neigh replace 10.5.0.1 lladdr "$(lladdr one enp8s0f0v0)" dev vlan5
rule "$rep0" protocol ip prio 2 flower skip_sw dst_ip 10.5.0.0/24 action vlan push id 5 pipe action mirred egress redirect dev "$rep1"
rule "$rep1" protocol 802.1Q prio 2 flower skip_sw vlan_id 5 vlan_ethtype ip action vlan pop pipe action mirred egress redirect dev "$rep0"
ip netns exec one ping -c 3 -i 0.2 -W 5 -q 10.5.0.2
same "$(hits "$rep0" 2) $(hits "$rep1" 2)" "3 3" "frames that got a tag, and lost one"
same "$(bytes "$rep0" 2) $(bytes "$rep1" 2)" "294 306" "their bytes before that"
no_rule "$rep0" 2
no_rule "$rep1" 2

say "a mirror: two ports"
rule "$rep0" protocol ip prio 3 flower skip_sw ip_proto icmp action mirred egress mirror dev "$rep2" pipe action mirred egress redirect dev "$rep1"
before=$(rx enp8s0f0v2 three)
passes 4
same "$(($(rx enp8s0f0v2 three) - before))" 4 "copies at VF 2"
no_rule "$rep0" 3

say "rewritten headers, with their checksums"
ip netns exec two python3 -m http.server 8080 --directory /proc/sys/net/ipv4 >/dev/null 2>&1 &
server=$!
until grep -q :8080 <<<"$(ip netns exec two ss -ltn)"; do sleep 0.2; done
rule "$rep0" protocol ip prio 4 flower skip_sw ip_proto tcp dst_port 80 action pedit ex munge tcp dport set 8080 pipe action csum ip4h and tcp pipe action mirred egress redirect dev "$rep1"
rule "$rep1" protocol ip prio 4 flower skip_sw ip_proto tcp src_port 8080 action pedit ex munge tcp sport set 80 pipe action csum ip4h and tcp pipe action mirred egress redirect dev "$rep0"
answer=$(ip netns exec one python3 -c 'import urllib.request as r; print(r.urlopen("http://10.0.0.2:80/tcp_wmem", timeout=20).status)')
same "$answer" 200 "the answer from another port"
kill "$server"
[ "$(hits "$rep1" 4)" -gt 3 ] || fail "the rule that rewrites has counted $(hits "$rep1" 4)"
no_rule "$rep0" 4
no_rule "$rep1" 4

say "a meter"
rule "$rep0" protocol ip prio 5 flower skip_sw ip_proto icmp action police rate 800bit burst 200 conform-exceed drop/pipe action mirred egress redirect dev "$rep1"
answer=$(ip netns exec one ping -c 8 -i 0.1 -W 1 -q 10.0.0.2 || true)
arrived=$(awk '/transmitted/ { print $4 }' <<<"$answer")
[ "$arrived" -ge 1 ] && [ "$arrived" -le 4 ] || fail "$arrived of 8 frames have passed a meter for two"
no_rule "$rep0" 5

say "another chain, and what no rule takes there"
before=$(rx "$rep0")
rule "$rep0" protocol ip prio 6 flower skip_sw ip_proto icmp action goto chain 7
fails "frames pass a chain without rules"
same "$(($(rx "$rep0") - before))" 2 "frames at the representor"
rule "$rep0" protocol ip prio 1 chain 7 flower skip_sw action mirred egress redirect dev "$rep1"
passes
tc filter del dev "$rep0" ingress chain 7
no_rule "$rep0" 6
passes

say "a function with a limited rate takes the slow path, where it waits"
before=$(rx "$rep0")
devlink port function rate set "$pf/1" tx_max 10mbit
fails "rules take what a limited function sends"
[ "$(rx "$rep0")" -gt "$before" ] || fail "nothing arrives at the representor"
devlink port function rate set "$pf/1" tx_max 0
passes

say "no link, no rule"
ip link set "$rep1" down
fails "a frame reaches a function without a link"
ip link set "$rep1" up
passes

say "without the rule, the slow path"
no_rule "$rep0" 10
before=$(rx "$rep0")
fails "frames pass without a rule"
[ "$(rx "$rep0")" -gt "$before" ] || fail "nothing arrives at the representor"
ip link add br0 up type bridge
ip link set "$rep0" master br0
ip link set "$rep1" master br0
passes
ip link del br0

say "a mode change leaves no filter"
devlink dev eswitch set "$pf" mode legacy
for port in p0v0 p0v1 p0v2 wire0; do
  if filters "$port" | grep flower; then fail "$port has filters in legacy mode"; fi
done
same "$(tc -n "$inside" actions ls action gact | grep -c index || true)" 0 "actions"
devlink dev eswitch set "$pf" mode switchdev
for rep in "$rep0" "$rep1"; do
  tc qdisc add dev "$rep" ingress
  ip link set "$rep" up
done
for pair in "$rep0 $rep1" "$rep1 $rep0"; do
  read -r from to <<<"$pair"
  rule "$from" protocol all prio 10 flower skip_sw action mirred egress redirect dev "$to"
done
passes
