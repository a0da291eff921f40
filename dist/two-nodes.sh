#!/bin/sh
# Two nodes on this machine, each with a card at the same PCI address and a pod on it that crun starts. The pods ping each other;
# the frames pass both cards by rules that are offloaded, and a bridge between the wires stands for the switch.
#
# As root: sh two-nodes.sh. It needs esw, crun, ip, tc (iproute2) and ping (iputils-ping), removes what it makes, and prints what each
# card has counted. ESW names another esw.
set -eu
esw=${ESW:-esw}
for program in "$esw" crun ip tc ping; do
    command -v "$program" >/dev/null || { echo "two-nodes: there is no $program" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "two-nodes: this takes root" >&2; exit 1; }

id=two-nodes-$$
work=$(mktemp -d)
clean() {
    for n in 1 2; do
        crun --root "$work/crun" --cgroup-manager=disabled delete --force "$id-$n" 2>/dev/null || true
        "$esw" --node "$id-$n" down >/dev/null 2>&1 || true
        ip netns del "$id-pod$n" 2>/dev/null || true
        ip netns del "$id-$n" 2>/dev/null || true
    done
    ip netns del "$id-lan" 2>/dev/null || true
    rm -rf "$work" "/var/lib/eswitch/nodes/$id-1" "/var/lib/eswitch/nodes/$id-2" "/run/eswitch/nodes/$id-1" "/run/eswitch/nodes/$id-2"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The switch between the machines.
ip netns add "$id-lan"
ip -n "$id-lan" link add sw type bridge
ip -n "$id-lan" link set sw up

# What each node's programs do, in its lab: a VF for the pod, and rules that carry its frames past the representor.
cat >"$work/on-node" <<'NODE'
set -eu
n=$1 pod=$2
pf=enp8s0f0np0 rep=enp8s0f0npf0vf0 vf=enp8s0f0v0
echo 1 >/sys/bus/pci/devices/0000:08:00.0/sriov_numvfs
"$ESW" dev eswitch set pci/0000:08:00.0 mode switchdev
ip link set $pf up
ip link set $rep up
ip link set $vf netns "$pod" name eth0
ip -n "$pod" addr add "10.0.0.$n/24" dev eth0
ip -n "$pod" link set eth0 up
for pair in "$rep $pf" "$pf $rep"; do
    set -- $pair
    tc qdisc add dev "$1" clsact
    for protocol in arp:1 ip:2; do
        tc filter add dev "$1" ingress protocol "${protocol%:*}" prio "${protocol#*:}" \
            flower skip_sw action mirred egress redirect dev "$2"
    done
done
NODE
for n in 1 2; do
    node=$id-$n pod=$id-pod$n
    ip netns add "$node"
    ip netns add "$pod"
    printf '[cards.nic]\nkind = "linux"\nwires = ["port%s@%s"]\n' "$n" "$id-lan" >"$work/$n.toml"
    "$esw" --node "$node" up --daemon --detach --netns "$node" --config "$work/$n.toml"
    ip -n "$id-lan" link set "port$n" up master sw
    "$esw" --node "$node" exec -- env ESW="$esw" sh "$work/on-node" "$n" "$pod"
done

# A pod is a container in its network namespace, whose files are this machine's, to be read only.
pod() {
    mkdir -p "$work/pod$1/root"
    cat >"$work/pod$1/config.json" <<CONFIG
{
  "ociVersion": "1.0.0",
  "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["ping", "-q", "-c", "10", "-i", "0.1", "-W", "5", "10.0.0.$2"],
    "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
    "capabilities": { "bounding": ["CAP_NET_RAW"], "effective": ["CAP_NET_RAW"], "permitted": ["CAP_NET_RAW"] } },
  "root": { "path": "root", "readonly": true },
  "mounts": [ { "destination": "/proc", "type": "proc", "source": "proc" } ],
  "linux": { "namespaces": [ { "type": "mount" }, { "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
    { "type": "network", "path": "/run/netns/$id-pod$1" } ] }
}
CONFIG
    unshare --mount sh -ec 'mount --rbind / "$2/root"; exec crun --root "$1" --cgroup-manager=disabled run --bundle "$2" "$3"' \
        sh "$work/crun" "$work/pod$1" "$id-$1"
}
pod 1 2
pod 2 1

for n in 1 2; do
    echo "node $n:"
    "$esw" --node "$id-$n" rules
done
