//! Filters that `tc` adds to a card's netdevs, in a lab: the card has the rules that they say, they carry frames, and what `tc`
//! shows of them is what it shows on the hardware.

mod lab;

use std::fs;

use lab::{Folder, compare, session};

const R0: &str = "enp8s0f0npf0vf0";
const R1: &str = "enp8s0f0npf0vf1";

/// Runs commands in a lab around a card with two VFs in switchdev mode, whose representors have an ingress qdisc, and compares
/// what each prints.
fn run_session(name: &str, script: &[(String, String)]) {
    let folder = Folder::make(name);
    let config = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\nvfs = 2\n";
    fs::write(folder.0.join("config"), config).unwrap();
    let first = format!(
        "devlink dev eswitch set pci/0000:08:00.0 mode switchdev; \
         for r in enp8s0f0np0 {R0} {R1}; do tc qdisc add dev $r ingress; ip link set $r up; done"
    );
    let mut commands: Vec<&str> = vec![&first];
    commands.extend(script.iter().map(|(command, _)| &command[..]));
    let printed = session(&folder, "bash", "--config $FOLDER/config", &commands);
    assert_eq!(printed[0], Vec::<String>::new(), "the card comes up");
    for ((command, expected), printed) in script.iter().zip(&printed[1..]) {
        let expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        compare(command, &expected, printed);
    }
}

fn skipped() -> bool {
    if lab::skipped(&["bash", "devlink", "tc"]) {
        return true;
    }
    match card_linux::cannot_offload() {
        Some(why) => {
            println!("skipped: {why}");
            true
        }
        None => false,
    }
}

/// What follows `flower` in a filter on VF 0's representor, and the rule that the card has, if its words differ.
const FILTERS: &[(&str, &str, &str)] = &[
    ("ip", "action drop", ""),
    ("all", "action drop", ""),
    (
        "ip",
        "dst_mac 02:00:00:00:00:02 src_mac 02:00:00:00:00:01/ff:ff:ff:00:00:00 action drop",
        "dst_mac 02:00:00:00:00:02 src_mac 02:00:00:00:00:00/ff:ff:ff:00:00:00 action drop",
    ),
    ("ip", "dst_ip 10.0.0.0/8 src_ip 192.168.1.7 action drop", ""),
    ("ipv6", "ip_proto icmpv6 dst_ip fd00::/64 src_ip fd00::7 type 135 code 0 action drop", ""),
    (
        "ip",
        "ip_proto tcp dst_port 80 src_port 1000/0xff00 action drop",
        "ip_proto tcp dst_port 80 src_port 768/0xff00 action drop",
    ),
    ("ip", "ip_proto udp dst_port 53 src_port 1024-2048 action drop", "Error: Unsupported key."),
    (
        "ip",
        "ip_proto sctp dst_port 53 action drop",
        "Error: Only UDP and TCP transports are supported for L4 matching.",
    ),
    ("ip", "ip_proto icmp type 8 code 0 action drop", ""),
    ("ip", "ip_proto tcp tcp_flags 0x2/0x17 action drop", "ip_proto tcp tcp_flags 0x2/17 action drop"),
    ("ip", "ip_tos 0x10/0xfc ip_ttl 64 action drop", "ip_tos 0x10/fc ip_ttl 0x40 action drop"),
    ("ip", "ip_flags nofrag action drop", ""),
    ("ip", "ip_flags frag/firstfrag action drop", "Error: Match on frag first/later is not supported."),
    ("ip", "dst_ip 10.0.0.7 action drop hw_stats delayed", "dst_ip 10.0.0.7 action drop"),
    ("ip", "dst_ip 10.0.0.8 action drop hw_stats immediate", "Error: Driver does not support selected HW stats type."),
    ("ip", "dst_ip 10.0.0.8 action drop hw_stats disabled", "Error: Driver does not support selected HW stats type."),
    ("arp", "arp_op request arp_tip 10.0.0.2 action drop", "Error: Unsupported key."),
    (
        "802.1Q",
        "vlan_id 5 vlan_prio 3 vlan_ethtype ip dst_ip 10.0.0.2 action drop",
        "vlan_id 5 vlan_prio 3 eth_type ip dst_ip 10.0.0.2 action drop",
    ),
    ("802.1Q", "vlan_id 5 action vlan pop pipe action mirred egress redirect dev enp8s0f0np0", ""),
    (
        "802.1ad",
        "vlan_id 5 vlan_ethtype 802.1q cvlan_id 6 cvlan_prio 2 cvlan_ethtype ip action drop",
        "vlan_id 5 vlan_ethtype 802.1Q cvlan_id 6 cvlan_prio 2 eth_type ip action drop",
    ),
    ("ip", "action trap", ""),
    ("ip", "dst_ip 1.1.1.1 action goto chain 4", ""),
    (
        "ip",
        "dst_ip 1.1.1.2 action mirred egress mirror dev enp8s0f0npf0vf1 action mirred egress redirect dev enp8s0f0np0",
        "",
    ),
    (
        "ip",
        "dst_ip 1.1.1.3 action vlan push id 7 priority 2 pipe action mirred egress redirect dev enp8s0f0np0",
        "dst_ip 1.1.1.3 action vlan push id 7 protocol 802.1Q priority 2 pipe action mirred egress redirect dev enp8s0f0np0",
    ),
    (
        "ip",
        "dst_ip 1.1.1.4 action vlan push id 7 protocol 802.1ad pipe action mirred egress redirect dev enp8s0f0np0",
        "dst_ip 1.1.1.4 action vlan push id 7 protocol 802.1ad priority 0 pipe action mirred egress redirect dev enp8s0f0np0",
    ),
    (
        "802.1Q",
        "vlan_id 9 action vlan modify id 10 pipe action mirred egress redirect dev enp8s0f0np0",
        "vlan_id 9 action vlan modify id 10 protocol 802.1Q pipe action mirred egress redirect dev enp8s0f0np0",
    ),
    (
        "ip",
        "ip_proto tcp dst_ip 1.1.1.5 action pedit ex munge eth dst set 02:00:00:00:00:09 munge ip src set 9.9.9.9 munge tcp dport set 8080 pipe action csum iph and tcp pipe action mirred egress redirect dev enp8s0f0np0",
        "ip_proto tcp dst_ip 1.1.1.5 action pedit ex munge eth dst set 02:00:00:00:00:09 pipe action pedit ex munge ip src set 9.9.9.9 pipe action pedit ex munge tcp dport set 8080 pipe action csum iph and tcp pipe action mirred egress redirect dev enp8s0f0np0",
    ),
    (
        "ip",
        "dst_ip 1.1.1.6 action pedit ex munge ip ttl add 0xff pipe action csum iph pipe action mirred egress redirect dev enp8s0f0np0",
        "dst_ip 1.1.1.6 action pedit ex munge ip ttl add 255 pipe action csum iph pipe action mirred egress redirect dev enp8s0f0np0",
    ),
    (
        "ipv6",
        "dst_ip fd00::9 ip_proto tcp action pedit ex munge ip6 dst set fd00::10 pipe action mirred egress redirect dev enp8s0f0np0",
        "ip_proto tcp dst_ip fd00::9 action pedit ex munge ip6 dst set fd00::10 pipe action mirred egress redirect dev enp8s0f0np0",
    ),
    (
        "ip",
        "dst_ip 1.1.1.7 action police rate 10mbit burst 10k conform-exceed drop/pipe action mirred egress redirect dev enp8s0f0np0",
        "dst_ip 1.1.1.7 action police index 1 conform-exceed drop/pipe action mirred egress redirect dev enp8s0f0np0",
    ),
    (
        "ip",
        "dst_ip 1.1.1.8 action police pkts_rate 1000 pkts_burst 10 conform-exceed drop/pipe action mirred egress redirect dev enp8s0f0np0",
        "dst_ip 1.1.1.8 action police index 2 conform-exceed drop/pipe action mirred egress redirect dev enp8s0f0np0",
    ),
    (
        "ip",
        "dst_ip 1.1.1.9 action sample rate 10 group 5 trunc 64 action mirred egress redirect dev enp8s0f0np0",
        "dst_ip 1.1.1.9 action sample rate 10 group 5 trunc 64 pipe action mirred egress redirect dev enp8s0f0np0",
    ),
    ("ip", "dst_ip 1.1.2.3 action pass", "Error: The offload action is not supported on this card: accept."),
    (
        "ip",
        "dst_ip 1.1.2.4 action mirred egress redirect dev lo",
        "Error: devices are not on same switch HW, can't offload forwarding.",
    ),
    (
        "ip",
        "dst_ip 1.1.2.5 action skbedit mark 5 pipe action mirred egress redirect dev enp8s0f0np0",
        "Error: The offload action is not supported on this card: skbedit.",
    ),
    (
        "ip",
        "dst_ip 1.1.2.6 ip_proto tcp action pedit ex munge tcp dport set 7 pipe action drop",
        "Error: Drop with modify header action is not supported.",
    ),
];

#[test]
fn the_card_has_the_rules_that_tc_says() {
    if skipped() {
        return;
    }
    let mut script = Vec::new();
    for (at, (protocol, filter, expected)) in FILTERS.iter().enumerate() {
        let prio = at + 1;
        let add = format!("tc filter add dev {R0} ingress protocol {protocol} prio {prio} flower skip_sw {filter}");
        if expected.starts_with("Error") {
            script.push((add, format!("{expected}\nWe have an error talking to the kernel")));
            continue;
        }
        let rule = if expected.is_empty() { filter } else { expected };
        let listed = format!(
            "filter dev {R0} ingress protocol {protocol} prio {prio} chain 0 handle …flower {rule}\n  in_hw\n  Sent 0 bytes 0 \
             pkt, never used"
        );
        script.push((format!("{add}; $ESW rules | grep -A2 ' prio {prio} '"), listed));
    }
    // Nothing of what was refused is left.
    let accepted = FILTERS.iter().filter(|(_, _, expected)| !expected.starts_with("Error")).count();
    script.push((format!("tc filter show dev {R0} ingress | grep -c handle"), accepted.to_string()));
    script.push((format!("tc qdisc del dev {R0} ingress; $ESW rules"), String::new()));
    run_session("tc-rules", &script);
}

/// Two VFs in namespaces.
const STATIONS: &str = "for n in 0 1; do ip netns add v$n; ip link set enp8s0f0v$n netns v$n; \
    ip netns exec v$n sh -c \"echo 1 > /proc/sys/net/ipv6/conf/enp8s0f0v$n/disable_ipv6\"; \
    ip -n v$n addr add 10.0.0.$((n + 1))/24 dev enp8s0f0v$n; ip -n v$n link set enp8s0f0v$n up; done";

#[test]
fn frames_of_an_offloaded_filter_pass_the_representors_and_are_counted() {
    if skipped() || lab::skipped(&["ping"]) {
        return;
    }
    let redirect = |from: &str, to: &str| {
        ["arp", "ip"].map(|protocol| {
            format!("tc filter add dev {from} ingress protocol {protocol} flower skip_sw action mirred egress redirect dev {to}")
        })
    };
    let script = [
        (STATIONS.to_owned(), String::new()),
        (redirect(R0, R1).join("; "), String::new()),
        (redirect(R1, R0).join("; "), String::new()),
        (
            "ip netns exec v0 ping -q -c 3 -i 0.1 -W 2 10.0.0.2 | grep -o '[0-9] received'".to_owned(),
            "3 received".to_owned(),
        ),
        (format!("ip -s -j link show {R0} | grep -o 'rx\":{{\"bytes\":[0-9]*'"), "rx\":{\"bytes\":0".to_owned()),
        (
            format!(
                "tc -s filter show dev {R0} ingress protocol ip | sed 's/[0-9]* sec/N sec/g; s/index [0-9]*/index N/' | grep ."
            ),
            format!(
                "filter pref 49151 flower chain 0\n\
                 filter pref 49151 flower chain 0 handle 0x1\n\
                 \x20 eth_type ipv4\n\
                 \x20 skip_sw\n\
                 \x20 in_hw in_hw_count 1\n\
                 \taction order 1: mirred (Egress Redirect to device {R1}) stolen\n\
                 \tindex N ref 1 bind 1 installed N sec used N sec\n\
                 \tAction statistics:\n\
                 \tSent 294 bytes 3 pkt (dropped 0, overlimits 0 requeues 0)\n\
                 \tSent software 0 bytes 0 pkt\n\
                 \tSent hardware 294 bytes 3 pkt\n\
                 \tbacklog 0b 0p requeues 0\n\
                 \tused_hw_stats delayed\n"
            ),
        ),
        // Replaced, it has no gap and counts from zero.
        (
            format!("tc filter replace dev {R0} ingress protocol ip pref 49151 handle 1 flower skip_sw action drop"),
            String::new(),
        ),
        (
            "ip netns exec v0 ping -q -c 1 -W 0.3 10.0.0.2 | grep -o '[0-9] received'".to_owned(),
            "0 received".to_owned(),
        ),
        (
            format!("tc -s filter show dev {R0} ingress protocol ip | grep hardware"),
            "\tSent hardware 98 bytes 1 pkt".to_owned(),
        ),
        // The filters go with the representor, and those that send to it are not in the card any more.
        (
            format!(
                "devlink dev eswitch set pci/0000:08:00.0 mode legacy; $ESW rules; \
                     devlink dev eswitch set pci/0000:08:00.0 mode switchdev; tc filter show dev {R0} ingress; $ESW rules"
            ),
            String::new(),
        ),
        ("ip netns del v0; ip netns del v1".to_owned(), String::new()),
    ];
    run_session("tc-frames", &script);
}

/// A station at the other end of the wire, which takes frames of the tunnel if they are sent to its MAC address. `rx`: how many it
/// has taken out of the tunnel. `hop`: the outer MAC addresses of the card's rule. `until`: waits until a command prints a line.
const STATION: &str = "c=esw-0000:08:00.0; w=$(ip -n $c -o link show wire0 | sed 's/.*wire0@\\([^:]*\\):.*/\\1/'); \
    ip netns add far; ip -n $c link set $w netns far; ip -n far link set $w name eth0 address 02:00:00:00:00:99 up; \
    ip -n far addr add 192.0.2.2/24 dev eth0; ip -n far link add vx0 type vxlan id 5 dstport 4789; \
    ip netns exec far sh -c 'echo 1 > /proc/sys/net/ipv6/conf/vx0/disable_ipv6'; ip -n far link set vx0 up; \
    rx() { ip -n far -s -j link show vx0 | sed 's/.*\"rx\":{[^}]*\"packets\":\\([0-9]*\\).*/\\1/'; }; \
    hop() { $ESW rules | grep -o 'neighbour [0-9a-f:]*' || echo none; }; \
    until_hop() { for i in $(seq 100); do [ \"$(hop)\" = \"$1\" ] && echo yes && return; sleep 0.1; done; hop; ip neigh; ip route; }; \
    ping3() { ip netns exec v0 ping -q -c 3 -i 0.1 -W 0.1 10.0.0.2 > /dev/null; rx; }";

#[test]
fn frames_of_a_tunnel_follow_the_kernels_neighbour() {
    if skipped() || lab::skipped(&["ping"]) {
        return;
    }
    let made = std::process::Command::new("unshare")
        .args(["--net", "ip", "link", "add", "vx0", "type", "vxlan", "external", "dstport", "4789"])
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        println!("skipped: this kernel has no VXLAN (CONFIG_VXLAN)");
        return;
    }
    let known = "until_hop 'neighbour 02:00:00:00:00:99'";
    let script = [
        (STATION.to_owned(), ""),
        (
            "ip link add vx0 type vxlan external dstport 4789; ip link set vx0 up; ip link set enp8s0f0np0 up; \
             ip addr add 192.0.2.1/24 dev enp8s0f0np0; ip netns add v0; ip link set enp8s0f0v0 netns v0; \
             ip -n v0 link set enp8s0f0v0 up; ip -n v0 addr add 10.0.0.1/24 dev enp8s0f0v0; \
             ip -n v0 neigh add 10.0.0.2 lladdr 02:00:00:00:00:0b dev enp8s0f0v0"
                .to_owned(),
            "",
        ),
        (
            format!(
                "tc filter add dev {R0} ingress protocol ip prio 1 flower skip_sw action tunnel_key set src_ip 192.0.2.1 \
                 dst_ip 192.0.2.2 id 5 dst_port 4789 pipe action mirred egress redirect dev vx0"
            ),
            "",
        ),
        // The next hop is resolved, without a frame that the kernel would have sent.
        (format!("{known}; ping3"), "yes\n3"),
        // To another address the station does not listen.
        ("ip neigh replace 192.0.2.2 lladdr 02:00:00:00:00:07 dev enp8s0f0np0".to_owned(), ""),
        ("until_hop 'neighbour 02:00:00:00:00:07'; ping3".to_owned(), "yes\n3"),
        (format!("ip neigh del 192.0.2.2 dev enp8s0f0np0; {known}; ping3"), "yes\n6"),
        // A gateway.
        (
            "ip neigh add 192.0.2.3 lladdr 02:00:00:00:00:03 dev enp8s0f0np0; ip route add 192.0.2.2 via 192.0.2.3; \
             until_hop 'neighbour 02:00:00:00:00:03'; ping3"
                .to_owned(),
            "yes\n6",
        ),
        (format!("ip route del 192.0.2.2; {known}; ping3"), "yes\n9"),
        // Without the netdev the frames are the representor's, and the rule's counter keeps what it has.
        ("ip link set enp8s0f0np0 down; until_hop none; ping3".to_owned(), "yes\n9"),
        (format!("ip link set enp8s0f0np0 up; {known}; ping3"), "yes\n12"),
        ("ip netns del v0; ip netns del far".to_owned(), ""),
    ];
    let script = script.map(|(command, expected)| (command, expected.to_owned()));
    run_session("tc-neighbours", &script);
}

#[test]
fn what_tc_asks_wrongly_is_refused_as_the_kernel_does() {
    if skipped() || lab::skipped(&["ethtool"]) {
        return;
    }
    let error = |text: &str| format!("Error: {text}\nWe have an error talking to the kernel");
    let on = |words: &str| format!("tc filter {words}").replace("REP", R0);
    let script = [
        (on("add dev REP ingress prio 5 protocol ip flower skip_sw dst_ip 1.2.3.4 action drop"), String::new()),
        (
            on("add dev REP ingress prio 5 protocol ip flower skip_sw dst_ip 1.2.3.4 action drop"),
            "RTNETLINK answers: File exists\nWe have an error talking to the kernel".to_owned(),
        ),
        (
            on("add dev REP ingress prio 5 protocol ipv6 flower skip_sw action drop"),
            error("Filter with specified priority/protocol not found."),
        ),
        (
            on("add dev REP ingress prio 5 protocol ip matchall skip_sw action drop"),
            error("Specified filter kind does not match existing one."),
        ),
        (
            on("change dev REP ingress prio 5 handle 7 protocol ip flower skip_sw action drop"),
            error("Need both RTM_NEWTFILTER and NLM_F_CREATE to create a new filter."),
        ),
        (
            on("add dev REP ingress prio 5 handle 1 protocol ip flower skip_sw dst_ip 9.9.9.9 action drop"),
            error("Filter already exists."),
        ),
        (on("del dev REP ingress prio 5 handle 9 protocol ip flower"), error("Specified filter handle not found.")),
        (
            on("del dev REP ingress prio 6 protocol ip flower"),
            error("Filter with specified priority/protocol not found."),
        ),
        (on("show dev REP ingress | grep -c handle"), "1".to_owned()),
        (on("add dev REP egress prio 5 protocol ip flower skip_sw action drop"), error("…")),
        (on("add dev REP parent 1: prio 5 protocol ip flower skip_sw action drop"), error("…")),
        ("tc qdisc del dev enp8s0f0np0 ingress".to_owned(), String::new()),
        (
            "tc filter add dev enp8s0f0np0 ingress protocol ip flower skip_sw action drop".to_owned(),
            error("Parent Qdisc doesn't exists."),
        ),
        ("$ESW rules | grep -c ^filter".to_owned(), "1".to_owned()),
        // Without the feature, the card is not asked.
        (
            format!(
                "ethtool -K {R0} hw-tc-offload off; tc filter add dev {R0} ingress prio 9 flower skip_sw action drop"
            ),
            "RTNETLINK answers: Operation not supported\nWe have an error talking to the kernel".to_owned(),
        ),
        (
            format!(
                "ethtool -K {R0} hw-tc-offload on; tc filter add dev {R0} ingress prio 9 flower skip_sw action drop"
            ),
            String::new(),
        ),
        ("$ESW rules | grep -c ^filter".to_owned(), "2".to_owned()),
    ];
    run_session("tc-wrong", &script);
}

/// A script with a card of netdevs whose filters carry a ping from VF 0 to VF 1, and around which the daemon is killed.
const OUTLIVES: &str = r#"
mount -t tmpfs tmpfs /run; mkdir -p /run/state /run/netns; mount --bind /run/state /var/lib; ip link set lo up
up() { $ESW up --daemon --detach --config $FOLDER/config | sed -n 's/.*process \([0-9]*\),.*/\1/p'; }
first=$(up)
cat > $FOLDER/add <<'ADD'
devlink dev eswitch set pci/0000:08:00.0 mode switchdev
r0=enp8s0f0npf0vf0; r1=enp8s0f0npf0vf1
for n in 0 1; do
  tc qdisc add dev enp8s0f0npf0vf$n ingress; ip link set enp8s0f0npf0vf$n up
  ip netns add n$n; ip link set enp8s0f0v$n netns n$n
  ip -n n$n addr add 10.0.0.$((n+1))/24 dev enp8s0f0v$n; ip -n n$n link set enp8s0f0v$n up
done
for p in arp:1 ip:2; do
  tc filter add dev $r0 ingress protocol ${p%:*} prio ${p#*:} flower skip_sw action mirred egress redirect dev $r1
  tc filter add dev $r1 ingress protocol ${p%:*} prio ${p#*:} flower skip_sw \
    action police rate 1gbit burst 1m conform-exceed drop/pipe index 7 action mirred egress redirect dev $r0
done
tc filter add dev $r0 ingress protocol ip prio 3 handle 9 flower skip_sw dst_ip 9.9.9.9 action drop
tc filter add dev $r0 ingress protocol ip prio 4 flower skip_sw dst_ip 9.9.9.8 action drop
tc filter del dev $r0 ingress protocol ip prio 4
ADD
$ESW exec -- bash $FOLDER/add
list() { $ESW exec -- sh -c 'for n in 0 1; do tc filter show dev enp8s0f0npf0vf$n ingress; done'; }
list > $FOLDER/before
ip netns exec n0 ping -q -i 0.01 -c 300 10.0.0.2 > $FOLDER/ping &
sleep 0.5
kill -9 $first
ip netns exec n0 ping -q -c 3 -i 0.01 -W 1 10.0.0.2 > $FOLDER/alone
second=$(up)
wait %1
list > $FOLDER/after
$ESW exec -- tc -s filter show dev enp8s0f0npf0vf0 ingress prio 2 > $FOLDER/counted
$ESW exec -- tc filter del dev enp8s0f0npf0vf0 ingress prio 2
$ESW exec -- tc filter add dev enp8s0f0npf0vf0 ingress protocol ip prio 3 handle 9 flower skip_sw dst_ip 9.9.9.9 action drop \
  2> $FOLDER/again || true
ip netns exec n0 ping -q -c 2 -i 0.01 -W 0.2 10.0.0.2 > $FOLDER/removed || true
ip netns exec n0 ip route add 9.9.9.0/24 via 10.0.0.2
ip netns exec n0 ping -q -c 3 -i 0.01 -W 0.2 9.9.9.9 > /dev/null || true
$ESW rules --drops > $FOLDER/drops
kill -9 $second
up > /dev/null
list > $FOLDER/last
$ESW down > /dev/null
ls /var/lib/eswitch > $FOLDER/left
ip netns del n0; ip netns del n1
"#;

#[test]
fn filters_carry_frames_while_the_daemon_is_dead_and_the_next_one_has_them() {
    if skipped() {
        return;
    }
    let folder = Folder::make("tc-outlives");
    let config = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\nvfs = 2\n";
    fs::write(folder.0.join("config"), config).unwrap();
    let output = lab::apart(OUTLIVES, &folder.0);
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| fs::read_to_string(folder.0.join(name)).unwrap();
    let before = read("before");
    assert_eq!(before.matches("in_hw in_hw_count 1").count(), 5, "{before}");
    assert_eq!(read("after"), before);
    assert!(read("ping").contains("300 packets transmitted, 300 received"), "{}", read("ping"));
    assert!(read("alone").contains("3 received"), "{}", read("alone"));
    let sent = read("counted");
    let sent: Vec<u64> =
        sent.split("Sent hardware ").skip(1).filter_map(|of| of.split(' ').nth(2)?.parse().ok()).collect();
    assert!(sent.iter().all(|frames| *frames >= 303) && !sent.is_empty(), "{}", read("counted"));
    // They are as any others: one is there, another can be deleted, and that is not forgotten.
    assert!(read("again").contains("Filter already exists"), "{}", read("again"));
    assert!(read("removed").contains(" 0 received"), "{}", read("removed"));
    assert_eq!(read("drops"), "enp8s0f0npf0vf0 rule: 3 frames\n");
    assert_eq!(read("last").matches("in_hw in_hw_count 1").count(), 4, "{}", read("last"));
    assert!(!read("left").contains(".flows"), "a card that was taken down has no rules: {}", read("left"));
}

/// A lab with two monitors, the second one in a network namespace without the card; and labs that change filters.
const MONITORED: &str = r#"
mount -t tmpfs tmpfs /run; mkdir -p /run/state; mount --bind /run/state /var/lib; ip link set lo up
$ESW up --daemon --detach --config $FOLDER/config > /dev/null
r0=enp8s0f0npf0vf0
exec_in_lab() { $ESW exec -- "$@"; }
exec_in_lab sh -c "devlink dev eswitch set pci/0000:08:00.0 mode switchdev; tc qdisc add dev $r0 clsact"
monitor() { $ESW exec -- sh -c "echo \$\$ > $FOLDER/$1.pid; exec $2 timeout 300 stdbuf -oL tc monitor > $FOLDER/$1"; }
ip netns add elsewhere
touch $FOLDER/bound $FOLDER/elsewhere
monitor bound & monitor elsewhere "ip netns exec elsewhere" &
# Until something that is replaced again and again is heard of, a monitor may not listen yet.
probe() { exec_in_lab tc filter replace dev $r0 ingress protocol ip prio $1 handle 1 flower skip_sw action drop; }
for i in $(seq 1200); do grep -q 'pref 99 ' $FOLDER/bound && break; probe 99; done
for i in $(seq 1200); do [ -s $FOLDER/elsewhere ] && break; ip netns exec elsewhere tc qdisc replace dev lo root pfifo; sleep 0.05; done
cat > $FOLDER/change <<CHANGE
tc filter add dev $r0 ingress protocol ip prio 1 flower skip_sw dst_ip 10.0.0.2 action drop
tc filter replace dev $r0 ingress protocol ip prio 1 handle 1 flower skip_sw dst_ip 10.0.0.2 action mirred egress redirect dev enp8s0f0npf0vf1
tc filter add dev $r0 ingress protocol ip prio 1 flower skip_sw dst_ip 10.0.0.2 action drop 2> /dev/null || echo refused
tc filter add dev $r0 ingress protocol ip prio 1 flower skip_sw dst_ip 10.0.0.3 action drop
tc filter del dev $r0 ingress protocol ip prio 1 handle 2 flower
tc filter del dev $r0 ingress protocol ip prio 1
tc qdisc del dev $r0 clsact
tc qdisc add dev $r0 clsact
CHANGE
exec_in_lab bash $FOLDER/change
probe 98
for i in $(seq 1200); do grep -q 'pref 98 ' $FOLDER/bound && break; sleep 0.05; done
kill $(cat $FOLDER/bound.pid $FOLDER/elsewhere.pid); wait
$ESW down > /dev/null
ip netns del elsewhere
"#;

#[test]
fn members_of_the_group_hear_of_filters_that_only_the_card_has_whichever_lab_changes_them() {
    if skipped() || lab::skipped(&["stdbuf", "timeout"]) {
        return;
    }
    let folder = Folder::make("tc-monitor");
    let config = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\nvfs = 2\n";
    fs::write(folder.0.join("config"), config).unwrap();
    let output = lab::apart(MONITORED, &folder.0);
    let read = |name: &str| fs::read_to_string(folder.0.join(name)).unwrap_or_default();
    assert!(output.status.success(), "{output:?} {}", read("bound"));
    assert_eq!(output.stdout, b"refused\n", "{output:?}");
    let heard = read("bound");
    let is_told = |line: &&str| line.contains("filter dev") && line.contains("pref 1 ");
    let told: Vec<&str> = heard.lines().filter(is_told).map(str::trim_end).collect();
    let filter = format!("filter dev {R0} ingress protocol ip pref 1 flower chain 0");
    let expected = [
        format!("added {filter} handle 0x1"),
        format!("replaced {filter} handle 0x1"),
        format!("added {filter} handle 0x2"),
        format!("deleted {filter} handle 0x2"),
        // The priority as a whole. What goes with its qdisc is not told.
        format!("deleted {filter}"),
    ];
    assert_eq!(told, expected, "{}", read("bound"));
    assert_eq!(read("bound").matches("pref 98 ").count(), 1, "{}", read("bound"));
    assert!(read("bound").contains("  in_hw in_hw_count 1"), "{}", read("bound"));
    let elsewhere = read("elsewhere");
    assert!(elsewhere.contains("qdisc pfifo") && !elsewhere.contains("filter"), "{elsewhere}");
}
