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
