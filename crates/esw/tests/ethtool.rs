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
    "devlink port function set en8f0pf0sf88 state active; sleep 1",
    "for n in enp8s0f0np0 enp8s0f0v0 enp8s0f0s88 enp8s0f0npf0vf0 en8f0pf0sf88; do ip link set $n up; done; sleep 1",
];

/// Runs commands with their expected output, where `…` stands for anything, after the set-up.
fn run(name: &str, profile: &str, rows: &[(String, String)]) {
    let folder = Folder::make(name);
    let config = format!("[cards.card0]\nkind = \"linux\"\n[cards.card0.profile]\n{profile}\n[cards.card0.card]\n");
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
const CONSTANT: &str = "netlink error: this card cannot change it\nnetlink error: Operation not supported";

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
    let flags = "…\nrx_cqe_moder       : on\n…\nrx_striding_rq     : on\n…\ntx_port_ts         : off";
    let sw = "     rx_packets: …\n     rx_bytes: …\n     tx_packets: …\n     tx_bytes: …";
    let phy = "     tx_packets_phy: …\n     rx_packets_phy: …\n     tx_bytes_phy: …\n     rx_bytes_phy: …";
    let vport = "     vport_rx_packets: …\n     vport_rx_bytes: …\n     vport_tx_packets: …\n     vport_tx_bytes: …";
    let statistics = |more: &str| format!("NIC statistics:\n{sw}{more}");
    let fec = "…\nSupported/Configured FEC encodings: Auto\nActive FEC encoding: RS";
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
        functions("ethtool -g {} | grep -v n/a | grep -E 'RX|TX'", rings, representor_rings),
        functions("ethtool -G {} rx 1024", "", ""),
        functions("ethtool -G {} tx 512", CONSTANT, CONSTANT),
        functions(
            "ethtool -G {} rx 8193 2>&1 | tail -1",
            "netlink error: Invalid argument",
            "netlink error: Invalid argument",
        ),
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
        functions(
            "ethtool -c {} | grep -E 'Adaptive|rx-usecs:'",
            "Adaptive RX: on  TX: on\nrx-usecs: 8",
            "Adaptive RX: on  TX: off\nrx-usecs: 8",
        ),
        functions("ethtool -C {} rx-usecs 8", "", ""),
        functions("ethtool -C {} rx-usecs 9", CONSTANT, CONSTANT),
        of_roles("ethtool -a {} 2>&1 | grep -E '^[RT]X|error'", ["RX:\t\ton\nTX:\t\ton", off_off, off_off, REFUSED]),
        functions(
            "ethtool -A {} autoneg on 2>&1 | tail -1",
            "netlink error: Operation not supported",
            "netlink error: Operation not supported",
        ),
        of_roles("ethtool --show-fec {}", [fec, REFUSED, REFUSED, REFUSED]),
        functions("ethtool --set-fec {} encoding rs 2>&1 | tail -1", REFUSED, REFUSED),
        functions("ethtool --show-priv-flags {}", flags, REFUSED),
        functions("ethtool --set-priv-flags {} tx_port_ts on 2>&1 | tail -1", REFUSED, REFUSED),
        functions("ethtool -s {} speed 1000 2>&1 | tail -1", REFUSED, REFUSED),
        of_roles(
            "ethtool -S {}",
            [&statistics(&format!("\n{phy}")), &statistics(""), &statistics(""), &statistics(&format!("\n{vport}"))],
        ),
        of_roles(
            "ethtool -k {} | grep hw-tc",
            [
                "hw-tc-offload: on [fixed]",
                "hw-tc-offload: off [fixed]",
                "hw-tc-offload: off [fixed]",
                "hw-tc-offload: on [fixed]",
            ],
        ),
        of_roles("ethtool -K {} hw-tc-offload on; echo $?", ["0", "…\n1", "…\n1", "0"]),
        of_roles(
            "ethtool -K {} hw-tc-offload off 2>&1 | head -1",
            ["netlink error: this card cannot change it", "", "", "netlink error: this card cannot change it"],
        ),
        // Without CAP_NET_ADMIN nothing is set, not even what it is already.
        functions(&without_rights("ethtool -G {} rx 1024 2>&1 | tail -1"), NOT_PERMITTED, NOT_PERMITTED),
        functions(&without_rights("ethtool -L {} combined 1 2>&1 | tail -1"), NOT_PERMITTED, NOT_PERMITTED),
        functions(&without_rights("ethtool -g {} | grep -c 8192"), "2", "2"),
        // What the card and the kernel have in one request.
        of_roles(
            "ethtool -K {} hw-tc-offload on gro off > /dev/null; ethtool -k {} | grep generic-receive",
            ["generic-receive-offload: off"; 4],
        ),
        // What mlx5 has not, or this card cannot have, as the kernel refuses it for a driver that has not the operation.
        ["-m", "--show-eee"]
            .iter()
            .flat_map(|option| functions(&format!("ethtool {option} {{}} 2>&1 | tail -1"), REFUSED, REFUSED))
            .collect(),
        ["-x", "-n", "-d", "-e", "-t", "-p"]
            .iter()
            .flat_map(|option| {
                let refused = "grep -q -E 'Operation not supported|no self-test|Cannot' && echo refused";
                functions(&format!("ethtool {option} {{}} 2>&1 | {refused}"), "refused", "refused")
            })
            .collect(),
    ];
    run("ethtool", "speed = 25000", &rows.concat());
}

/// A request for all netdevs has the card's answers, and each once.
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
        functions(&ioctl("0x11 36 0 0 0 0 1024 0 0 1024"), "17…", refused),
        functions(&ioctl("0x11 36 0 0 0 0 1024 0 0 2048"), refused, refused),
        functions(&ioctl("0x11 36 0 0 0 0 9000 0 0 1024"), "EINVAL", "EINVAL"),
        functions(&ioctl("0x3c 36"), "60 0 0 0 1 0 0 0 1", "60 0 0 0 1 0 0 0 1"),
        functions(&ioctl("0x3d 36 0 0 0 0 0 0 0 1"), "61…", "61…"),
        functions(&ioctl("0x3d 36 0 0 0 0 0 0 0 9999"), "EINVAL", "EINVAL"),
        functions(&ioctl("0xe 92"), "14 8 128 0 0 8 128 0 0 0 1 1 0…", "14 8 128 0 0 8 128 0 0 0 1 0 0…"),
        of_roles(&ioctl("0x12 16"), ["18 0 1 1", "18 0 0 0", "18 0 0 0", refused]),
        functions(&ioctl("0x27 8"), "39 105", refused),
        functions(&ioctl("0x28 8 1"), refused, refused),
        functions(&ioctl("0x7 8"), refused, refused),
        functions(&ioctl("0x5 20"), "5 0 0 0 0", refused),
        of_roles(&ioctl("0x50 16"), ["80 8 2 0", refused, refused, refused]),
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
        // NETIF_F_HW_TC before, switched on, switched off; the kernel says of a feature that is fixed ETHTOOL_F_UNSUPPORTED.
        of_roles("python3 $FOLDER/hw_tc.py {}", ["1 0 ENOTSUP", "0 1 1", "0 1 1", "1 0 ENOTSUP"]),
        of_roles(&ioctl("0x1d 80"), ["29 8…", "29 4…", "29 4…", "29 8…"]),
    ];
    run("ethtool-ioctl", "", &rows.concat());
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
