# Shared by the checks, which source this file: a card with two VFs in switchdev mode, each VF in a namespace of its own.
set -euo pipefail

pf=pci/0000:08:00.0
rep0=enp8s0f0npf0vf0
rep1=enp8s0f0npf0vf1
folder=$(mktemp -d)

say() { printf '\n# %s\n' "$*"; }

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# Undoes what a check has done; a check may define its own.
at_end() { :; }

end() {
  local status=$?
  trap - EXIT
  at_end || status=1
  esw down || status=1
  # Only the netdevs of every new namespace may be left: any other netdev makes the check fail.
  local left
  left=$(ip -br link | grep -Ev '^(lo|tunl0|gre0|gretap0|erspan0|ip_vti0|ip6_vti0|sit0|ip6tnl0|ip6gre0|ovs-system)\b' || true)
  if [ -n "$left" ]; then
    echo "left behind: $left" >&2
    status=1
  fi
  rm -rf "$folder"
  exit "$status"
}

# Brings the card up as a daemon, as in docs/daemon.md. Its netdevs are in the namespace of the script, its VFs' in
# the namespaces `one` and `two`, up, without addresses.
card_up() {
  cat >"$folder/cards.toml" <<END
state_dir = "$folder/state"
[cards.card]
kind = "linux"
[cards.card.card]
vfs = 2
END
  trap end EXIT
  esw up --daemon --detach --config "$folder/cards.toml"
  esw dev eswitch set "$pf" mode switchdev
  local n=0 name
  for name in one two; do
    ip netns add "$name"
    ip link set "enp8s0f0v$n" netns "$name"
    ip -n "$name" link set lo up
    ip -n "$name" link set "enp8s0f0v$n" up
    n=$((n + 1))
  done
  ip link set "$rep0" up
  ip link set "$rep1" up
}

# Waits until Open vSwitch can count processors: it counts them every ten seconds, the first time ten seconds after the
# boot. Until then it counts none, and starts no thread for the upcalls of the kernel's datapath (`count_cpu_cores` in
# lib/ovs-thread.c).
switch_can_count() {
  while [ "$(cut -d. -f1 /proc/uptime)" -lt 11 ]; do sleep 0.2; done
}

# ping_from NAMESPACE ADDRESS
ping_from() { ip netns exec "$1" ping -c 3 -i 0.2 -W 5 -q "$2"; }

# into_a_lab ARGUMENT...: outside of a lab, brings up the card with an address for each VF (10.4.0.1 in the namespace `one`, 10.4.0.2 in
# `two`), runs the check again in a lab, and ends with it; there, returns. `before_the_lab` runs between: a check may define its own.
before_the_lab() { :; }
into_a_lab() {
  if [ "${1:-}" = inside ]; then
    rm -r "$folder"
    folder=$FOLDER
    return
  fi
  card_up
  ip -n one addr add 10.4.0.1/24 dev enp8s0f0v0
  ip -n two addr add 10.4.0.2/24 dev enp8s0f0v1
  before_the_lab
  FOLDER=$folder esw exec -- "$0" inside
  exit
}

switch_up() {
  ovs-vswitchd --pidfile --detach --log-file="$folder/ovs/vswitchd.log" -vconsole:off
}

# switch_start KEY=VALUE...: starts Open vSwitch with the kernel's datapath, in folders of its own and with these keys of `other_config`, and
# makes a bridge `br0` of both representors. It ends with the check, which shows what it knew if the check failed.
switch_start() {
  export OVS_RUNDIR=$folder/ovs OVS_DBDIR=$folder/ovs
  mkdir "$OVS_RUNDIR"
  trap switch_end EXIT
  switch_can_count
  ovsdb-tool create "$folder/ovs/conf.db" /usr/share/openvswitch/vswitch.ovsschema
  ovsdb-server "$folder/ovs/conf.db" --remote="punix:$folder/ovs/db.sock" --pidfile --detach --log-file="$folder/ovs/server.log" \
    -vconsole:off
  ovs-vsctl --no-wait init
  local pair
  for pair in "$@"; do ovs-vsctl --no-wait set Open_vSwitch . other_config:"$pair"; done
  switch_up
  ovs-vsctl --timeout=60 add-br br0 -- set bridge br0 datapath_type=system
  ovs-vsctl --timeout=60 add-port br0 "$rep0" -- add-port br0 "$rep1"
}

switch_end() {
  local status=$?
  trap - EXIT
  [ "$status" = 0 ] || { tail -20 "$folder/ovs/vswitchd.log"; ovs-appctl dpctl/dump-flows -m; esw rules; tc -s filter show dev "$rep0" ingress; } >&2
  ovs-vsctl --timeout=20 --if-exists del-br br0 || status=1
  ovs-appctl -T 20 exit --cleanup || status=1
  ovs-appctl -T 20 -t ovsdb-server exit || status=1
  exit "$status"
}

# switch_has_not_complained [WORDS]: but for a complaint with these words.
switch_has_not_complained() {
  if grep -E '\|(ERR|EMER)\|' "$folder/ovs/vswitchd.log" | grep -v "${1:-^$}"; then fail "the switch has complained"; fi
}

# offloaded PATTERN: whether a flow of the switch with this in it is carried out by the card, after a moment at most.
offloaded() {
  local n
  for n in $(seq 20); do
    if ovs-appctl dpctl/dump-flows -m type=offloaded | grep -E -- "$1" | grep -q 'offloaded:yes, dp:tc'; then return 0; fi
    sleep 0.3
  done
  fail "no offloaded flow has $1"
}
