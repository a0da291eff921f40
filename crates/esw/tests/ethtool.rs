//! ethtool in a lab: what it shows and sets of each kind of netdev, with the real program and by `ioctl`.

mod lab;

use std::fs;

use lab::{Folder, lines_are, session};

/// A PF in switchdev mode, a VF, an SF and a representor.
const ROLES: [&str; 4] = ["enp8s0f0np0", "enp8s0f0v0", "enp8s0f0s88", "enp8s0f0npf0vf0"];

/// The commands that make them.
const SETUP: [&str; 5] = [
    "echo 1 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs",
    "devlink dev eswitch set pci/0000:08:00.0 mode switchdev",
    "devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88 > $FOLDER/port",
    "devlink port function set en8f0pf0sf88 state active; until_attached en8f0pf0sf88 enp8s0f0s88",
    "for n in enp8s0f0np0 enp8s0f0v0 enp8s0f0s88 enp8s0f0npf0vf0 en8f0pf0sf88; do ip link set $n up; done; for n in enp8s0f0v0 enp8s0f0s88 enp8s0f0npf0vf0; do until_true \"ip link show $n | grep LOWER_UP\"; done",
];

/// Runs commands with their expected output, where `…` stands for anything, after the set-up.
fn run(name: &str, profile: &str, rows: &[(String, String)]) {
    run_with(name, "", profile, rows);
}

/// The same with keys of the card.
fn run_with(name: &str, card: &str, profile: &str, rows: &[(String, String)]) {
    let folder = Folder::make(name);
    let config =
        format!("[cards.card0]\nkind = \"linux\"\n[cards.card0.profile]\n{profile}\n[cards.card0.card]\n{card}\n");
    fs::write(folder.0.join("config"), config).unwrap();
    fs::write(folder.0.join("by_ioctl.py"), BY_IOCTL).unwrap();
    fs::write(folder.0.join("hw_tc.py"), HW_TC).unwrap();
    let setup = SETUP.map(|command| (command.to_owned(), String::new()));
    let all: Vec<&(String, String)> = setup.iter().chain(rows).collect();
    let commands: Vec<&str> = all.iter().map(|(command, _)| command.as_str()).collect();
    let printed = session(&folder, "bash", "--config $FOLDER/config", &commands);
    let mut wrong = String::new();
    for ((command, expected), printed) in all.into_iter().zip(printed) {
        let lines: Vec<String> = expected.lines().map(str::to_owned).collect();
        let found: Vec<&str> = printed.iter().map(String::as_str).collect();
        if !lines_are(&lines, &found) {
            wrong += &format!("$ {command}\n{}\nexpected:\n{expected}\n\n", found.join("\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Rows of one command for all kinds of netdevs. `{}` in the command is the netdev.
fn of_roles(command: &str, expected: [&str; 4]) -> Vec<(String, String)> {
    let rows = ROLES.iter().zip(expected);
    rows.map(|(name, expected)| (command.replace("{}", name), expected.to_owned())).collect()
}

/// The same answer for a PF, a VF and an SF, and another one for a representor.
fn functions(command: &str, function: &str, representor: &str) -> Vec<(String, String)> {
    of_roles(command, [function, function, function, representor])
}

const REFUSED: &str = "…netlink error: Operation not supported";
const INVALID: &str = "netlink error: Invalid argument";
const TOO_SMALL: &str = "netlink error: mlx5_core: rx (15) < min (16)\nnetlink error: Invalid argument";
const OUT_OF_RANGE: &str = "netlink error: Numerical result out of range";
const UNKNOWN: &str = "netlink error: cannot modify an unsupported parameter\nnetlink error: Invalid argument";
const RINGS_REFUSED: &str = "Cannot get RX ring count: Operation not supported…";
const BASER: &str = "Supported/Configured FEC encodings: BaseR\nActive FEC encoding: BaseR";

const NOT_PERMITTED: &str = "netlink error: Operation not permitted";

/// A command without the capability to administer netdevs.
fn without_rights(command: &str) -> String {
    format!("setpriv --bounding-set -net_admin {command}")
}

#[test]
fn each_command_has_the_answer_of_the_driver_for_each_kind_of_netdev() {
    if lab::skipped(&["bash", "devlink", "ethtool", "setpriv"]) {
        return;
    }
    let rings = "RX:\t\t8192\nTX:\t\t8192\nRX:\t\t1024\nTX:\t\t1024";
    let representor_rings = "RX:\t\t8192\nTX:\t\t8192\nRX:\t\t1024\nTX:\t\t128";
    let uplink_flags = "rx_striding_rq     : on";
    let flags = "rx_striding_rq     : on\nxdp_tx_mpwqe       : on\nskb_tx_mpwqe       : on";
    let sw = "     rx_packets: …\n     rx_bytes: …\n     tx_packets: …\n     tx_bytes: …";
    let phy = "     tx_packets_phy: …\n     rx_packets_phy: …\n     tx_bytes_phy: …\n     rx_bytes_phy: …";
    let vport = "     vport_rx_packets: …\n     vport_rx_bytes: …\n     vport_tx_packets: …\n     vport_tx_bytes: …";
    let statistics = |more: &str| format!("NIC statistics:\n{sw}{more}");
    let fec = "…\nSupported/Configured FEC encodings: Auto\nActive FEC encoding: RS";
    let moderation = "Adaptive RX: on  TX: on\nrx-usecs: 8\nrx-frames: 128\ntx-usecs: 8\ntx-frames: 128";
    let no_moderation = "Adaptive RX: on  TX: off\nrx-usecs: 0\nrx-frames: 0\ntx-usecs: 0\ntx-frames: 0";
    let cqe = "CQE mode RX: on  TX: off";
    let off_off = "RX:\t\toff\nTX:\t\toff";
    let rows = [
        functions("ethtool -i {} | grep driver", "driver: mlx5_core", "driver: mlx5e_rep"),
        of_roles(
            "ethtool -P {}",
            [
                "Permanent address: 02:e5:08:00:ff:ff",
                "Permanent address: 02:e5:08:00:00:01",
                "Permanent address: 02:e5:08:00:80:00",
                "Permanent address: not set",
            ],
        ),
        functions("ethtool {} | grep -E 'Speed|Duplex|Port:'", "\tSpeed: 25000Mb/s\n\tDuplex: Full\n\tPort: FIBRE", ""),
        functions("ethtool {} | grep -E '25000base' | head -1", "\tSupported link modes:   25000baseCR/Full", ""),
        functions("ethtool {} | grep 'Link detected'", "\tLink detected: yes", "\tLink detected: yes"),
        functions("ethtool {} 2>/dev/null | grep -c -E 'Wake-on|message level'", "2", "0"),
        functions("cat /sys/class/net/{}/speed", "25000", "cat: … Invalid argument"),
        functions("cat /sys/class/net/{}/duplex", "full", "cat: … Invalid argument"),
        functions("cat /sys/class/net/{}/addr_assign_type", "0", "1"),
        functions("ethtool -g {} | grep -v n/a | grep -E '^[RT]X:'", rings, representor_rings),
        functions("ethtool -G {} rx 1024", "", ""),
        functions("ethtool -G {} rx 2000 tx 64; ethtool -g {} | tail -8 | grep -E '^[RT]X:'", "RX:\t\t2048\nTX:\t\t64", "RX:\t\t2048\nTX:\t\t64"),
        functions("ethtool -G {} rx 8193 2>&1 | tail -1", INVALID, INVALID),
        functions("ethtool -G {} rx 15 2>&1", TOO_SMALL, TOO_SMALL),
        functions("ethtool -G {} rx-mini 1 2>&1 | tail -1", INVALID, INVALID),
        functions("ethtool -G {} tx-push on 2>&1 | head -1", "netlink error: setting tx push not supported", "netlink error: setting tx push not supported"),
        functions("ethtool -g {} | tail -8 | grep RX:", "RX:\t\t2048", "RX:\t\t2048"),
        functions("ethtool -l {} | grep Combined", "Combined:\t1\nCombined:\t1", "Combined:\t1\nCombined:\t1"),
        functions("ethtool -L {} combined 1", "", ""),
        functions(
            "ethtool -L {} combined 0 2>&1 | tail -1",
            "netlink error: Invalid argument",
            "netlink error: Invalid argument",
        ),
        functions(
            "ethtool -L {} combined 64 2>&1 | tail -1",
            "netlink error: Invalid argument",
            "netlink error: Invalid argument",
        ),
        functions(
            "ethtool -L {} rx 1 2>&1 | tail -1",
            "netlink error: Invalid argument",
            "netlink error: Invalid argument",
        ),
        of_roles("ethtool -c {} | grep -E 'Adaptive|[rt]x-usecs:|[rt]x-frames:'", [no_moderation, moderation, moderation, no_moderation]),
        of_roles("ethtool -c {} | grep CQE", [cqe, cqe, cqe, "CQE mode RX: n/a  TX: n/a"]),
        // The numbers count only without adaptation, which begins with those of the mode.
        functions("ethtool -C {} adaptive-rx off rx-usecs 33; ethtool -c {} | grep -E 'rx-usecs:|rx-frames:'", "rx-usecs: 33\nrx-frames: 32", "rx-usecs: 33\nrx-frames: 32"),
        functions("ethtool -C {} rx-usecs 4096 2>&1 | tail -1", OUT_OF_RANGE, OUT_OF_RANGE),
        functions("ethtool -C {} rx-frames 65536 2>&1 | tail -1", OUT_OF_RANGE, OUT_OF_RANGE),
        functions("ethtool -C {} rx-usecs-irq 1 2>&1", UNKNOWN, UNKNOWN),
        of_roles("ethtool -C {} cqe-mode-rx off 2>&1; ethtool -c {} | grep rx-usecs:", ["rx-usecs: 16", "rx-usecs: 16", "rx-usecs: 16", &format!("{UNKNOWN}\nrx-usecs: 33")]),
        of_roles("ethtool -a {} 2>&1 | grep -E '^[RT]X|error'", ["RX:\t\ton\nTX:\t\ton", off_off, off_off, REFUSED]),
        of_roles("ethtool -A {} autoneg on 2>&1 | tail -1", [INVALID, REFUSED, REFUSED, REFUSED]),
        of_roles("ethtool -A {} tx on rx off 2>&1; ethtool -a {} 2>&1 | grep -E '^[RT]X'", ["RX:\t\toff\nTX:\t\ton", &format!("{REFUSED}\n{off_off}"), &format!("{REFUSED}\n{off_off}"), REFUSED]),
        of_roles("ethtool --show-fec {}", [fec, REFUSED, REFUSED, REFUSED]),
        of_roles("ethtool --set-fec {} encoding baser; ethtool --show-fec {} 2>&1 | tail -2", [BASER, REFUSED, REFUSED, REFUSED].map(|text| if text == REFUSED { "…\nnetlink error: Operation not supported" } else { text })),
        of_roles("ethtool --set-fec {} encoding llrs 2>&1 | tail -1", [REFUSED; 4]),
        of_roles("ethtool --set-fec {} encoding rs encoding off 2>&1 | tail -1", [REFUSED; 4]),
        of_roles("ethtool --show-priv-flags {} 2>&1 | grep -E 'on$|error'", [uplink_flags, flags, flags, REFUSED].map(|text| text)),
        functions("ethtool --set-priv-flags {} rx_cqe_compress on rx_striding_rq off; ethtool --show-priv-flags {} 2>&1 | grep -E 'compress|striding'", "rx_cqe_compress    : on\nrx_striding_rq     : off", "netlink error: Operation not supported"),
        functions("ethtool --set-priv-flags {} tx_port_ts on 2>&1 | tail -1", REFUSED, REFUSED),
        of_roles("ethtool -s {} speed 1000 2>&1 | tail -1", [INVALID, REFUSED, REFUSED, REFUSED]),
        of_roles("ethtool -s {} autoneg off speed 25000; ethtool {} | grep Auto-neg", ["\tAuto-negotiation: off", "…\n\tAuto-negotiation: on", "…\n\tAuto-negotiation: on", REFUSED]),
        functions("ethtool -s {} wol g 2>&1 | tail -1", INVALID, REFUSED),
        of_roles(
            "ethtool -S {}",
            [&statistics(&format!("\n{phy}")), &statistics(""), &statistics(""), &statistics(&format!("\n{vport}"))],
        ),
        of_roles("ethtool -k {} | grep hw-tc", ["hw-tc-offload: on", "hw-tc-offload: off", "hw-tc-offload: off", "hw-tc-offload: on"]),
        of_roles("ethtool -K {} hw-tc-offload on; echo $?; ethtool -k {} | grep hw-tc", ["0\nhw-tc-offload: on"; 4]),
        of_roles("ethtool -K {} hw-tc-offload off; echo $?; ethtool -k {} | grep hw-tc", ["0\nhw-tc-offload: off"; 4]),
        // Without CAP_NET_ADMIN nothing is set, not even what it is already.
        functions(&without_rights("ethtool -G {} rx 1024 2>&1 | tail -1"), NOT_PERMITTED, NOT_PERMITTED),
        functions(&without_rights("ethtool -L {} combined 1 2>&1 | tail -1"), NOT_PERMITTED, NOT_PERMITTED),
        functions(&without_rights("ethtool -g {} | grep -c 8192"), "2", "2"),
        // What the card and the kernel have in one request.
        of_roles(
            "ethtool -K {} hw-tc-offload on gro off > /dev/null; ethtool -k {} | grep generic-receive",
            ["generic-receive-offload: off"; 4],
        ),
        functions("ethtool -x {} 2>&1 | grep -cE '^ +[0-9]+:( +0){8}$|not supported'", "32", "1"),
        functions("ethtool -x {} 2>&1 | grep toeplitz", "    toeplitz: on", ""),
        functions("ethtool -X {} hfunc xor hkey $(seq -s : 10 49) equal 1 2>&1; ethtool -x {} 2>&1 | grep -E 'xor|^10:'", "10:11:12:…\n    xor: on", RINGS_REFUSED),
        functions("ethtool -X {} equal 2 2>&1", "Cannot set RX flow hash configuration: Invalid argument", RINGS_REFUSED),
        functions("ethtool -X {} hfunc crc32 2>&1", "Cannot set RX flow hash configuration: Invalid argument", RINGS_REFUSED),
        functions("ethtool -N {} rx-flow-hash udp4 sd 2>&1; ethtool -n {} rx-flow-hash udp4 2>&1 | grep -E '^IP|^L4|Cannot'", "IP SA\nIP DA", "Cannot change …\nCannot get …"),
        functions("ethtool -n {} 2>&1 | grep -E 'Total|retrieval'", "Total 0 rules", "RX classification rule retrieval failed"),
        functions("ethtool -N {} flow-type tcp4 dst-port 80 action 0 loc 7 2>&1; ethtool -n {} 2>&1 | grep -E 'Filter|Dest port'", "Filter: 7\n\tDest port: 80 mask: 0x0", "rmgr: Cannot insert RX class rule: Operation not supported"),
        functions("ethtool -N {} flow-type tcp4 dst-port 80 action 1 loc 8 2>&1; ethtool -N {} flow-type tcp4 dst-port 80 action 0 loc 1024 2>&1", "rmgr: Cannot insert RX class rule: Invalid argument\nrmgr: Cannot insert RX class rule: No space left on device", "rmgr: …\nrmgr: …"),
        functions("ethtool -N {} flow-type sctp4 action 0 loc 8 2>&1", "rmgr: Cannot insert RX class rule: Unknown error 524", "rmgr: …"),
        functions("ethtool -N {} delete 7; ethtool -N {} delete 7 2>&1 | head -1", "rmgr: Cannot delete RX class rule: No such file or directory", "…\nrmgr: …"),
        of_roles("ethtool -t {} 2>&1 | grep -c Test", ["3", "4", "4", "0"]),
        functions("ethtool -t {} 2>&1 | head -1", "The test result is PASS", "Cannot test: Operation not supported"),
        functions("ethtool -m {} 2>&1 | tail -1", "netlink error: Input/output error", REFUSED),
        functions("ethtool --show-eee {} 2>&1 | tail -1", REFUSED, REFUSED),
        functions("ethtool -T {} | grep Clock", "PTP Hardware Clock: none", "PTP Hardware Clock: none"),
        functions("ethtool --phy-statistics {} 2>&1", "no stats available", "no stats available"),
        functions("ethtool -i {} | grep supports-test", "supports-test: yes", "supports-test: no"),
        // What mlx5 has not, or this card cannot have.
        ["-d", "-e", "-p", "-f"]
            .iter()
            .flat_map(|option| {
                let command = format!("ethtool {option} {{}} firmware 2>&1 | grep -c 'Operation not supported'");
                let command = if *option == "-f" { command } else { command.replace(" firmware", "") };
                functions(&command, "1", "1")
            })
            .collect(),
        // A netdev that is made again, and a PF in another mode, has nothing of what was set.
        of_roles("ethtool -G {} rx 512; ethtool -g {} | tail -8 | grep RX:", ["RX:\t\t512"; 4]),
        vec![
            ("echo 0 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs; echo 1 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs; ethtool -g enp8s0f0v0 | tail -8 | grep RX:".to_owned(), "RX:\t\t1024".to_owned()),
            ("devlink dev eswitch set pci/0000:08:00.0 mode legacy; ethtool -g enp8s0f0np0 | tail -8 | grep RX:; ethtool -k enp8s0f0np0 | grep hw-tc; devlink dev eswitch set pci/0000:08:00.0 mode switchdev; ethtool -g enp8s0f0np0 | tail -8 | grep RX:".to_owned(), "RX:\t\t1024\nhw-tc-offload: off\nRX:\t\t1024".to_owned()),
        ],
    ];
    run("ethtool", "speed = 25000", &rows.concat());
}

/// A request for all netdevs has the card's answers, and each once.
/// With the key `channels` a netdev has the queues, which the kernel shows.
#[test]
fn channels_are_set_up_to_the_number_of_the_configuration() {
    if lab::skipped(&["bash", "devlink", "ethtool"]) {
        return;
    }
    let count =
        "ethtool -l {} | grep -o 'Combined:.*' | tr -d '\\t' | tr '\\n' ' '; ls /sys/class/net/{}/queues | wc -l";
    let set = "ethtool -L {} combined 3 && ethtool -l {} | grep -o 'Combined:.*' | tail -1; ls /sys/class/net/{}/queues | wc -l";
    const ALL: &str = "Combined:4 Combined:4 8";
    let rows = [
        of_roles(count, ["Combined:4 Combined:1 2", ALL, ALL, "Combined:4 Combined:1 2"]),
        functions("ip -d link show {} | grep -o 'num.xqueues [0-9]*'", "numtxqueues 4\nnumrxqueues 4", "…4\n…4"),
        functions(set, "Combined:\t3\n6", "Combined:\t3\n6"),
        functions("ethtool -L {} combined 5 2>&1 | tail -1", INVALID, INVALID),
        // The default table is of the channels that there are. One that was set leads to no other.
        functions("ethtool -x {} 2>&1 | sed -n '3s/.*: *//p'", "2     0     1     2     0     1     2     0", ""),
        functions(
            "ethtool -X {} equal 3 2>&1; ethtool -L {} combined 2 2>&1 | grep -o 'too low.*'",
            "too low for existing indirection table settings…",
            "…",
        ),
        functions("ethtool -X {} default 2>/dev/null; ethtool -L {} combined 2 2>&1", "", ""),
        functions("ethtool -N {} flow-type udp4 dst-port 9 action 1 loc 5 2>&1", "", "…"),
        functions(
            "ethtool -L {} combined 1 2>&1 | grep -o 'too low.*'",
            "too low for existing ntuple filter settings…",
            "",
        ),
        functions(
            "python3 $FOLDER/by_ioctl.py {} 0x3d 36 0 0 0 0 0 0 0 1 | grep EINVAL; ethtool -l {} | tail -1",
            "EINVAL\nCombined:\t2",
            "Combined:\t1",
        ),
        // The driver begins anew with the mode.
        vec![(
            format!("devlink port del en8f0pf0sf88; devlink dev eswitch set pci/0000:08:00.0 mode legacy; {count}")
                .replace("{}", ROLES[0]),
            ALL.to_owned(),
        )],
    ];
    run_with("ethtool-channels", "channels = 4", "", &rows.concat());
}

#[test]
fn a_dump_has_the_cards_netdevs() {
    if lab::skipped(&["bash", "devlink", "ethtool"]) {
        return;
    }
    let count = |command: &str, number: &str| (command.to_owned(), number.to_owned());
    let rows = [
        count("ethtool -g '*' 2>&1 | grep -c 'Ring parameters for'", "5"),
        count("ethtool -a '*' 2>&1 | grep -c 'Pause parameters for'", "3"),
        count("ethtool -l '*' 2>&1 | grep -c 'Combined:.*1'", "10"),
        count("ethtool -k '*' 2>&1 | grep -c 'hw-tc-offload: on'", "3"),
        count("ethtool '*' 2>/dev/null | grep -c 'Speed: 100000Mb/s'", "3"),
        count(
            "ip link set enp8s0f0v0 address 02:00:00:00:00:09; ip link show enp8s0f0v0 | grep -c 'permaddr 02:e5:08:00:00:01'",
            "1",
        ),
        count("cat /sys/class/net/enp8s0f0v0/addr_assign_type", "3"),
        count("ip link show enp8s0f0np0 | grep -c permaddr", "0"),
    ];
    run("ethtool-dump", "", &rows);
}

/// The same by `ioctl`, as programs do that do not know of the netlink family.
#[test]
fn by_ioctl_the_answers_are_the_same() {
    if lab::skipped(&["bash", "devlink", "python3", "setpriv"]) {
        return;
    }
    let ioctl = |words: &str| format!("python3 $FOLDER/by_ioctl.py {{}} {words}");
    // EOPNOTSUPP, by the other of its names.
    let refused = "ENOTSUP";
    let rows = [
        // Command, bytes of the structure; then numbers that the structure has before the call.
        functions(&ioctl("0x10 36"), "16 8192 0 0 8192 1024 0 0 1024", "16 8192 0 0 8192 1024 0 0 128"),
        functions(&ioctl("0x11 36 0 0 0 0 1024 0 0 1024"), "17…", "17…"),
        functions(&ioctl("0x11 36 0 0 0 0 1024 0 0 2000"), "17…", "17…"),
        functions(&ioctl("0x10 36"), "16 8192 0 0 8192 1024 0 0 2048", "16 8192 0 0 8192 1024 0 0 2048"),
        functions(&ioctl("0x11 36 0 0 0 0 9000 0 0 1024"), "EINVAL", "EINVAL"),
        functions(&ioctl("0x3c 36"), "60 0 0 0 1 0 0 0 1", "60 0 0 0 1 0 0 0 1"),
        functions(&ioctl("0x3d 36 0 0 0 0 0 0 0 1"), "61…", "61…"),
        functions(&ioctl("0x3d 36 0 0 0 0 0 0 0 9999"), "EINVAL", "EINVAL"),
        of_roles(
            &ioctl("0xe 92"),
            [
                "14 0 0 0 0 0 0 0 0 0 1 0 0…",
                "14 8 128 0 0 8 128 0 0 0 1 1 0…",
                "14 8 128 0 0 8 128 0 0 0 1 1 0…",
                "14 0 0 0 0 0 0 0 0 0 1 0 0…",
            ],
        ),
        functions(&ioctl("0xf 92 9 10 0 0 8 128 0 0 0 0 1"), "15…", "15…"),
        functions(&ioctl("0xf 92 9 10 1"), refused, refused),
        functions(&ioctl("0xf 92 4096 10"), "ERANGE", "ERANGE"),
        of_roles(&ioctl("0x12 16"), ["18 0 1 1", "18 0 0 0", "18 0 0 0", refused]),
        of_roles(&ioctl("0x13 16 0 0 1"), ["19…", refused, refused, refused]),
        of_roles(&ioctl("0x12 16"), ["18 0 0 1", "18 0 0 0", "18 0 0 0", refused]),
        of_roles(&ioctl("0x27 8"), ["39 9", "39 105", "39 105", refused]),
        functions(&ioctl("0x28 8 4"), "40…", refused),
        functions(&ioctl("0x27 8"), "39 4", refused),
        functions(&ioctl("0x28 8 128"), refused, refused),
        functions(&ioctl("0x28 8 256"), "EINVAL", refused),
        of_roles(&ioctl("0x51 16 0 8"), ["81…", refused, refused, refused]),
        of_roles(&ioctl("0x51 16 0 1"), ["EINVAL", refused, refused, refused]),
        functions(&ioctl("0x7 8"), refused, refused),
        functions(&ioctl("0x5 20"), "5 0 0 0 0", refused),
        of_roles(&ioctl("0x50 16"), ["80 8 8 0", refused, refused, refused]),
        // Speed, duplex and port are 0x86a0, 1 and 3, then 1 in the high half.
        functions(&ioctl("0x1 44"), "1…", refused),
        functions(&ioctl("0x4c 256"), "76 0 0 4244635648 0…", refused),
        of_roles(&ioctl("0x20 16 6"), ["32 6 582914 65535…", "32 6 582914 256…", "32 6 582914 128…", "32 6 0 0…"]),
        functions(&ioctl("0x20 16 5"), "EINVAL", "EINVAL"),
        functions(&without_rights(&ioctl("0x11 36 0 0 0 0 1024 0 0 1024")), "EPERM", "EPERM"),
        functions(&without_rights(&ioctl("0x3d 36 0 0 0 0 0 0 0 1")), "EPERM", "EPERM"),
        functions(&without_rights(&ioctl("0x28 8 1")), "EPERM", "EPERM"),
        // How many statistics and private flags there are.
        of_roles(&ioctl("0x37 24 0 6 0"), ["55 0 6 0 8 8", "55 0 6 0 4 8", "55 0 6 0 4 8", "55 0 2 0 8 0"]),
        // NETIF_F_HW_TC before, switched on, switched off.
        of_roles("python3 $FOLDER/hw_tc.py {}", ["1 0 0", "0 0 0", "0 0 0", "1 0 0"]),
        of_roles("python3 $FOLDER/hw_tc.py {}", ["0 0 0"; 4]),
        of_roles(&ioctl("0x1d 80"), ["29 8…", "29 4…", "29 4…", "29 8…"]),
    ];
    run("ethtool-ioctl", "", &rows.concat());
}

/// What one lab has set another one sees, as long as the netdev lives, also after the daemon has been started again.
#[test]
fn every_lab_sees_what_was_set() {
    if lab::skipped(&["bash", "devlink", "ethtool"]) {
        return;
    }
    let folder = Folder::make("ethtool-labs");
    let script = "mount -t tmpfs tmpfs /run; mkdir -p /run/state; mount --bind /run/state /var/lib; ip link set lo up
        $ESW up --daemon --detach --card linux >&2
        $ESW exec -- bash -c 'echo 1 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs; ethtool -G enp8s0f0v0 rx 2048'
        $ESW exec -- bash -c 'ethtool -g enp8s0f0v0 | tail -8 | grep RX:; ethtool -C enp8s0f0v0 adaptive-rx off; devlink dev eswitch set pci/0000:08:00.0 mode switchdev; ethtool -G enp8s0f0np0 rx 512'
        $ESW down --keep >&2
        $ESW up --daemon --detach --card linux >&2
        $ESW exec -- bash -c 'ethtool -g enp8s0f0v0 | tail -8 | grep RX:; ethtool -c enp8s0f0v0 | grep Adaptive; ethtool -g enp8s0f0np0 | tail -8 | grep RX:'
        $ESW down >&2";
    let output = lab::apart(script, &folder.0);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        printed,
        "RX:\t\t2048\nRX:\t\t2048\nAdaptive RX: off  TX: on\nRX:\t\t512\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Members of the group `monitor` are told what has changed, by whichever way, and of nothing else.
#[test]
fn a_monitor_is_told_of_what_has_changed() {
    if lab::skipped(&["bash", "devlink", "ethtool", "python3", "stdbuf"]) {
        return;
    }
    let row = |command: &str, expected: &str| (command.to_owned(), expected.to_owned());
    let rows = [
        row("stdbuf -oL ethtool --monitor > $FOLDER/monitor 2>&1 & M=$!; until_idle $M", ""),
        row(
            "ethtool -G enp8s0f0v0 rx 2048; ethtool -G enp8s0f0v0 rx 2048; ethtool -G enp8s0f0v0 rx 1 2> /dev/null",
            "",
        ),
        row("ethtool -C enp8s0f0npf0vf0 adaptive-rx off; ethtool -A enp8s0f0np0 rx off", ""),
        row("ethtool --set-priv-flags enp8s0f0s88 rx_cqe_compress on; ethtool --set-fec enp8s0f0np0 encoding rs", ""),
        row(
            "ethtool -s enp8s0f0np0 autoneg off speed 100000; python3 $FOLDER/by_ioctl.py enp8s0f0v0 0x11 36 0 0 0 0 512 0 0 64",
            "17…",
        ),
        // In another network namespace nobody is told.
        row(
            "unshare --net sleep 600 & P=$!; until_true \"[ \\$(readlink /proc/$P/ns/net) != \\$(readlink /proc/self/ns/net) ]\"; ip link set enp8s0f0v0 netns $P; nsenter -t $P -n ethtool -G enp8s0f0v0 rx 64; kill $P; wait $P; until_idle $M",
            "",
        ),
        row(
            "kill $M; grep -E ' for |^RX:' $FOLDER/monitor | grep -v ' 8192\\|:.*8192'",
            "Ring parameters for enp8s0f0v0:\nRX:\t\t2048\nCoalesce parameters for enp8s0f0npf0vf0:\n\
             Pause parameters for enp8s0f0np0:\nRX:\t\toff\nPrivate flags for enp8s0f0s88:\n\
             FEC parameters for enp8s0f0np0:\nSettings for enp8s0f0np0:\nRing parameters for enp8s0f0v0:\nRX:\t\t512",
        ),
    ];
    run("ethtool-monitor", "", &rows);
}

/// Makes one call, and prints the structure as numbers of 32 bits, or the name of the error.
const BY_IOCTL: &str = r#"
import ctypes, errno, fcntl, socket, struct, sys
name, command, size, *numbers = sys.argv[1:]
numbers = [int(command, 0)] + [int(number, 0) for number in numbers]
data = ctypes.create_string_buffer(int(size))
struct.pack_into(f"={len(numbers)}I", data, 0, *numbers)
request = struct.pack("16sQ16x", name.encode(), ctypes.addressof(data))
try:
    fcntl.ioctl(socket.socket(), 0x8946, request)
    print(*struct.unpack(f"={int(size) // 4}I", data.raw))
except OSError as error:
    print(errno.errorcode[error.errno])
"#;

/// Prints whether the feature hw-tc-offload is on, and what the calls return that switch it on and off.
const HW_TC: &str = r#"
import ctypes, errno, fcntl, socket, struct, sys
def call(*numbers, size):
    data = ctypes.create_string_buffer(size)
    struct.pack_into(f"={len(numbers)}I", data, 0, *numbers)
    request = struct.pack("16sQ16x", sys.argv[1].encode(), ctypes.addressof(data))
    try:
        return fcntl.ioctl(socket.socket(), 0x8946, bytearray(request)), data.raw
    except OSError as error:
        return errno.errorcode[error.errno], b""
strings = call(0x1b, 4, 0, size=12 + 32 * 256)[1][12:]
names = [strings[at:at + 32].rstrip(b"\0") for at in range(0, len(strings), 32)]
block, bit = divmod(names.index(b"hw-tc-offload"), 32)
blocks = (len([name for name in names if name]) + 31) // 32
active = struct.unpack_from("=I", call(0x3a, blocks, size=8 + 16 * blocks)[1], 8 + 16 * block + 8)[0]
def switch(on):
    words = [0] * (2 * blocks)
    words[2 * block], words[2 * block + 1] = 1 << bit, on << bit
    return call(0x3b, blocks, *words, size=8 + 8 * blocks)[0]
print(active >> bit & 1, switch(1), switch(0))
"#;
