//! Several nodes on one machine: daemons whose cards have the same PCI addresses, wired to each other.

mod lab;

use std::process::Output;

use lab::Folder;

/// Two nodes, each in a network namespace of its own, whose cards are the same, and a switch between them in a third. `up`
/// brings a node up, `on` runs a command in its lab.
const NODES: &str = r#"
mount -t tmpfs tmpfs /run; mkdir -p /run/state; mount --bind /run/state /var/lib; ip link set lo up
up() { $ESW --node node$1 up --daemon --detach --netns node$1 --config $FOLDER/node$1; }
on() { n=$1; shift; $ESW --node node$n exec -- "$@"; }
# Nothing is left if a command fails.
trap '[ $? = 0 ] || for n in 1 2; do $ESW --node node$n down > /dev/null 2>&1; done' EXIT
ip netns add lan; ip -n lan link add sw type bridge; ip -n lan link set sw up
for n in 1 2; do
    printf '[cards.nic]\nkind = "linux"\nwires = ["port%d@lan"]\n' $n > $FOLDER/node$n
    ip netns add node$n; up $n >&2; ip -n lan link set port$n up master sw
done
down() {
    for n in 1 2; do $ESW --node node$n down >&2; ip netns del node$n; done
    ip netns del lan; ip netns list; find /run/eswitch -type s
}
"#;

/// A VF on each node, whose frames its card puts into a tunnel to the other node: `/run/pod` pings it.
const PODS: &str = r#"
cat > $FOLDER/pod <<'POD'
n=$1; other=$((3 - n)); r=enp8s0f0npf0vf0; v=enp8s0f0v0
echo 1 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs
devlink dev eswitch set pci/0000:08:00.0 mode switchdev
ip link set enp8s0f0np0 up; ip addr add 192.0.2.$n/24 dev enp8s0f0np0; ip link set $r up
ip netns add pod$n; ip link set $v netns pod$n
ip -n pod$n link set $v address 02:00:00:00:00:0$n up; ip -n pod$n addr add 10.0.0.$n/24 dev $v
ip -n pod$n neigh add 10.0.0.$other lladdr 02:00:00:00:00:0$other dev $v
ip link add vx0 type vxlan external dstport 4789; ip link set vx0 up
for d in $r vx0; do tc qdisc add dev $d ingress; done
tc filter add dev $r ingress protocol ip prio 1 flower skip_sw dst_ip 10.0.0.$other \
    action tunnel_key set src_ip 192.0.2.$n dst_ip 192.0.2.$other id 5 dst_port 4789 pipe action mirred egress redirect dev vx0
tc filter add dev vx0 ingress protocol ip prio 1 flower skip_sw enc_src_ip 192.0.2.$other enc_dst_ip 192.0.2.$n enc_key_id 5 \
    enc_dst_port 4789 action tunnel_key unset pipe action mirred egress redirect dev $r
POD
for n in 1 2; do on $n sh -e $FOLDER/pod $n; done
for n in 1 2; do
    for i in $(seq 600); do $ESW --node node$n rules | grep -q 'neighbour [0-9a-f]' && break; sleep 0.1; done
done
pings() { ip netns exec pod1 ping -q -c $1 -i 0.02 -W 5 10.0.0.2 | grep -o '[0-9]* received'; }
"#;

fn run(folder: &Folder, script: &str) -> (String, Output) {
    let output = lab::apart(&format!("{NODES}{script}"), &folder.0);
    (String::from_utf8_lossy(&output.stdout).into_owned(), output)
}

#[test]
fn pods_of_two_nodes_reach_each_other_through_tunnels_that_their_cards_carry() {
    if lab::skipped(&["devlink", "tc", "ping"]) {
        return;
    }
    let made = std::process::Command::new("unshare")
        .args(["--net", "ip", "link", "add", "vx0", "type", "vxlan", "external", "dstport", "4789"])
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        println!("skipped: this kernel has no VXLAN (CONFIG_VXLAN)");
        return;
    }
    let folder = Folder::make("nodes");
    // The daemon of a node is killed while frames pass, and started again: its card and its wire are as before.
    let script = format!(
        "{PODS}
        pings 3
        for n in 1 2; do on $n tc -s filter show dev enp8s0f0npf0vf0 ingress | grep 'Sent hardware'; done
        ip -n lan -o link show port1 | cut -d: -f1,2 > $FOLDER/before
        pings 100 & kill -9 $($ESW --node node1 status --json | grep -o '\"pid\":[0-9]*' | head -1 | cut -d: -f2)
        up 1 >&2; wait $!
        ip -n lan -o link show port1 | cut -d: -f1,2 | diff $FOLDER/before - && echo the same wire
        on 1 sh -c 'echo $ESW_NODE; devlink dev; ip -br link show type vxlan | cut -c1-3'
        for n in 1 2; do ip netns del pod$n; done
        down"
    );
    let (printed, output) = run(&folder, &script);
    // Of each of the filter's two actions.
    let sent = "\tSent hardware 294 bytes 3 pkt\n".repeat(2);
    let expected = format!(
        "3 received\n{sent}{sent}100 received\nthe same wire\nnode1\npci/0000:08:00.0\npci/0000:08:00.1\nvx0\n"
    );
    assert_eq!(printed, expected, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
}

#[test]
fn what_is_wrong_about_a_node_is_said_and_changes_nothing() {
    if lab::skipped(&["devlink"]) {
        return;
    }
    let folder = Folder::make("nodes-wrong");
    let script = r#"
    wrong() { "$@" 2>&1 | grep -v INFO | head -1; }
    wrong $ESW --node ../x status
    wrong $ESW --node node3 status
    wrong $ESW --node node3 up --daemon --detach --netns node3 --config $FOLDER/node1
    printf '[cards.nic]\nkind = "linux"\nwires = ["port3@nothing"]\n' > $FOLDER/node3
    ip netns add node3
    wrong $ESW --node node3 up --daemon --detach --netns node3 --config $FOLDER/node3
    printf '[cards.nic]\nkind = "linux"\nwires = ["port1@lan"]\n' > $FOLDER/node3
    wrong $ESW --node node3 up --daemon --detach --netns node3 --config $FOLDER/node3
    ip -n node3 -br link | grep -v '^lo ' || true
    printf '[cards.nic]\nkind = "linux"\nwires = ["a", "b"]\n' > $FOLDER/node3
    wrong $ESW --node node3 up --daemon --detach --netns node3 --config $FOLDER/node3
    # The same address, without a name: a node of its own.
    wrong $ESW --node node1 up --daemon --detach --netns node1 --config $FOLDER/node1
    for n in 1 2; do $ESW --node node$n status | grep -c 'linux card, up'; ip -n lan -br link show port$n | cut -c1-5; done
    ip netns del node3; down
    "#;
    let (printed, output) = run(&folder, script);
    let lines: Vec<&str> = printed.lines().collect();
    let expected = [
        "error: invalid value '../x' for '--node <NAME>': a node has a name of 1 to 32 letters, digits, `-`, `_` and `.`, \
         which begins with a letter or a digit",
        "no card is up; `esw up --daemon --detach` brings one up (looked in /run/eswitch/nodes/node3; there are cards \
         with --node node1, node2)",
        "esw: the network namespace node3: No such file or directory; `ip netns add` makes one with a name",
        "…opening the network namespace nothing of the wire port3: No such file or directory…; `ip netns list` shows the \
         namespaces that have names",
        "…the name port1 is taken…",
        "…`wires` has 2 wires, and the card has 1 PFs",
        "…node1/nic.sock…",
        "1",
        "port1",
        "1",
        "port2",
    ];
    for (expected, found) in expected.iter().zip(&lines) {
        assert!(lab::line_is(expected, found), "{found}\nexpected:\n{expected}\n{printed}");
    }
    assert_eq!(lines.len(), expected.len(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
}
