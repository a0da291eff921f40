//! What is set of a VF holds for its traffic: the programs' words, real frames.

mod lab;

use std::fs;

use lab::{Folder, compare, session};

/// Two VFs in namespaces, with nothing that sends by itself.
const STATIONS: &str = "for n in 0 1; do ip netns add v$n; ip link set enp8s0f0v$n netns v$n; \
    ip netns exec v$n sh -c \"echo 1 > /proc/sys/net/ipv6/conf/enp8s0f0v$n/disable_ipv6\"; \
    ip -n v$n addr add 10.0.0.$((n + 1))/24 dev enp8s0f0v$n; ip -n v$n link set enp8s0f0v$n up; done";

/// Whether VF 0 reaches VF 1. If it is to, it may take a moment.
const REACHES: &str = "reaches() { for i in 1 2 3 4 5 6 7 8 9 10; do \
    ip netns exec v0 ping -q -c 1 -W 0.3 10.0.0.2 > /dev/null && echo yes && return; done; echo no; }; \
    reached() { ip netns exec v0 ping -q -c 2 -i 0.1 -W 0.5 10.0.0.2 > /dev/null && echo yes || echo no; }";

/// Has VF 0 send datagrams to VF 1 for two seconds and more, and compares what arrives with a rate in Mbit/s, which may
/// be exceeded by 5 percent.
const RATE: &str = "rx() { ip -n v1 -s -j link show enp8s0f0v1 | sed 's/.*\"rx\":{\"bytes\":\\([0-9]*\\).*/\\1/'; }; \
    at_most() { mac=$(ip -n v1 -j link show enp8s0f0v1 | sed 's/.*\"address\":\"\\([^\"]*\\)\".*/\\1/'); \
    ip -n v0 neigh replace 10.0.0.77 lladdr $mac dev enp8s0f0v0; \
    timeout 3 ip netns exec v0 bash -c 'dd if=/dev/zero bs=1400 > /dev/udp/10.0.0.77/9' 2> /dev/null & \
    sleep 0.5; a=$(rx); t=$(date +%s%N); sleep 2; b=$(rx); t=$(( ($(date +%s%N) - t) / 1000 )); wait; \
    rate=$(( (b - a) * 8000 / t )); \
    if [ $rate -gt $(( $1 * 1050 )) ] || [ $rate -lt $(( $1 * 400 )) ]; then echo \"$rate kbit/s of $1 Mbit/s\"; fi; }";

#[test]
fn what_is_set_of_a_vf_holds_for_its_traffic() {
    if lab::skipped(&["bash", "devlink", "ping", "dd"]) {
        return;
    }
    let folder = Folder::make("enforced");
    let config = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\nvfs = 2\n";
    fs::write(folder.0.join("config"), config).unwrap();
    let script = [
        (STATIONS, ""),
        (REACHES, ""),
        (RATE, ""),
        ("reaches", "yes"),
        // The link state, in both directions.
        ("ip link set enp8s0f0np0 vf 0 state disable; reached", "no"),
        ("ip -n v0 link show enp8s0f0v0 | grep -c NO-CARRIER", "1"),
        ("ip netns exec v1 ping -q -c 1 -W 0.5 10.0.0.1 > /dev/null || echo no", "no"),
        ("ip link set enp8s0f0np0 vf 0 state enable; reaches", "yes"),
        // The spoof check is on the administrative address, which the netdev does not have before it is bound again.
        ("ip link set enp8s0f0np0 vf 0 mac 02:00:00:00:00:aa spoofchk on; reached", "no"),
        ("ip -s link show enp8s0f0np0 | grep -A4 'vf 0' | tail -1 | awk '{ print ($3 > 0) }'", "1"),
        ("ip -n v0 link set enp8s0f0v0 address 02:00:00:00:00:aa; ip -n v1 neigh flush all; reaches", "yes"),
        ("ip link set enp8s0f0np0 vf 0 spoofchk off", ""),
        // The VLAN.
        ("ip link set enp8s0f0np0 vf 0 vlan 5 qos 2; reached", "no"),
        ("ip link set enp8s0f0np0 vf 1 vlan 5; reaches", "yes"),
        ("ip link set enp8s0f0np0 vf 1 vlan 6; reached", "no"),
        ("for n in 0 1; do ip link set enp8s0f0np0 vf $n vlan 0; done; reaches", "yes"),
        // Rates.
        ("ip link set enp8s0f0np0 vf 0 max_tx_rate 20; at_most 20", ""),
        ("devlink dev eswitch set pci/0000:08:00.0 mode switchdev", ""),
        ("ip link add hb0 up type bridge; for n in 0 1; do ip link set enp8s0f0npf0vf$n master hb0 up; done", ""),
        ("reaches; at_most 20", "yes"),
        ("devlink port function rate set pci/0000:08:00.0/1 tx_max 40mbit; at_most 40", ""),
        ("ip link show enp8s0f0np0 | grep -o 'vf 0.*max_tx_rate [^,]*'", "vf 0 …max_tx_rate 40Mbps"),
        ("devlink port function rate add pci/0000:08:00.0/n tx_max 10mbit", ""),
        ("devlink port function rate set pci/0000:08:00.0/1 parent n; at_most 10", ""),
        ("devlink port function rate set pci/0000:08:00.0/n tx_max 30mbit; at_most 30", ""),
        ("devlink port function rate set pci/0000:08:00.0/1 noparent; at_most 40", ""),
        ("ip netns del v0; ip netns del v1", ""),
        // What does not hold is said.
        ("devlink port function rate del pci/0000:08:00.0/n", ""),
        ("devlink dev eswitch set pci/0000:08:00.0 mode legacy; ip link set enp8s0f0np0 vf 1 trust on", ""),
        ("$ESW status | grep ENFORCED", "    NOT ENFORCED  trust of VF 1"),
        ("cat $(find /var/lib/ -name esw.log) | grep -c 'not enforced.*setting=\\?.trust'", "1"),
    ];
    let commands: Vec<&str> = script.iter().map(|(command, _)| *command).collect();
    let printed = session(&folder, "bash", "--config $FOLDER/config", &commands);
    for ((command, expected), printed) in script.iter().zip(printed) {
        let expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        compare(command, &expected, &printed);
    }
}
