//! What the kernel says of a card's netdevs in a lab, compared with the tables of `docs/lab.md`, *Attributes of a netdev*.

mod lab;

use std::collections::BTreeMap;
use std::fs;

use lab::{Folder, session};

/// Requests RTM_GETLINK of each netdev that is named, with statistics and VFs, and prints its attributes, one a line: the
/// netdev, the number of the attribute, and its bytes. Then the same of the files in `/sys/class/net/NAME`.
const READ: &str = r#"
import errno, os, socket, struct, sys
route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
def padded(kind, value):
    return struct.pack('=HH', 4 + len(value), kind) + value + b'\0' * (-len(value) % 4)
for name in sys.argv[1:]:
    asked = padded(3, name.encode() + b'\0') + padded(29, struct.pack('=I', 1))
    route.send(struct.pack('=IHHII', 32 + len(asked), 18, 1, 1, 0) + struct.pack('=BxHiII', 0, 0, 0, 0, 0) + asked)
    answer = route.recv(1 << 16)
    length, = struct.unpack_from('=I', answer)
    hardware, index, flags = struct.unpack_from('=HiI', answer, 18)
    print('attribute', name, 'ifi_type', struct.pack('=I', hardware).hex())
    print('attribute', name, 'ifi_flags', struct.pack('=I', flags).hex())
    at = 32
    while at < length:
        size, kind = struct.unpack_from('=HH', answer, at)
        print('attribute', name, kind & 0x3fff, answer[at + 4:at + size].hex())
        at += size + 3 & ~3
    folder = '/sys/class/net/' + name
    for file in sorted(os.listdir(folder)):
        path = folder + '/' + file
        try:
            text = 'any' if os.path.isdir(path) else ' '.join(open(path).read().split('\n')).strip()
        except OSError as error:
            text = errno.errorcode[error.errno].replace('ENOTSUP', 'EOPNOTSUPP')
        print('file', name, file, text)
"#;

/// The numbers of the attributes (`include/uapi/linux/if_link.h`).
const NUMBERS: [(&str, u16); 50] = [
    ("ADDRESS", 1),
    ("BROADCAST", 2),
    ("IFNAME", 3),
    ("MTU", 4),
    ("LINK", 5),
    ("QDISC", 6),
    ("STATS", 7),
    ("TXQLEN", 13),
    ("MAP", 14),
    ("OPERSTATE", 16),
    ("LINKMODE", 17),
    ("LINKINFO", 18),
    ("NUM_VF", 21),
    ("VFINFO_LIST", 22),
    ("STATS64", 23),
    ("AF_SPEC", 26),
    ("GROUP", 27),
    ("PROMISCUITY", 30),
    ("NUM_TX_QUEUES", 31),
    ("NUM_RX_QUEUES", 32),
    ("CARRIER", 33),
    ("PHYS_PORT_ID", 34),
    ("CARRIER_CHANGES", 35),
    ("PHYS_SWITCH_ID", 36),
    ("LINK_NETNSID", 37),
    ("PHYS_PORT_NAME", 38),
    ("PROTO_DOWN", 39),
    ("GSO_MAX_SEGS", 40),
    ("GSO_MAX_SIZE", 41),
    ("XDP", 43),
    ("CARRIER_UP_COUNT", 47),
    ("CARRIER_DOWN_COUNT", 48),
    ("MIN_MTU", 50),
    ("MAX_MTU", 51),
    ("PROP_LIST", 52),
    ("PERM_ADDRESS", 54),
    ("PARENT_DEV_NAME", 56),
    ("PARENT_DEV_BUS_NAME", 57),
    ("GRO_MAX_SIZE", 58),
    ("TSO_MAX_SIZE", 59),
    ("TSO_MAX_SEGS", 60),
    ("ALLMULTI", 61),
    ("DEVLINK_PORT", 62),
    ("GSO_IPV4_MAX_SIZE", 63),
    ("GRO_IPV4_MAX_SIZE", 64),
    ("DPLL_PIN", 65),
    ("MAX_PACING_OFFLOAD_HORIZON", 66),
    ("NETNS_IMMUTABLE", 67),
    ("HEADROOM", 68),
    ("TAILROOM", 69),
];
/// The first attribute that kernels from 5.14 on may lack.
const NEWER: u16 = 58;

/// The netdevs, each with the column of the tables that describes it.
const NETDEVS: [(&str, usize); 5] =
    [("enp8s0f0np0", 0), ("enp8s0f0v0", 1), ("enp8s0f0s88", 1), ("enp8s0f0npf0vf0", 2), ("en8f0pf0sf88", 2)];

/// The table on the page whose head begins with this: the names in each first cell, and the cells for the three kinds of
/// netdevs.
fn table(head: &str) -> Vec<(Vec<String>, [String; 3])> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/lab.md");
    let page = fs::read_to_string(page).unwrap();
    let lines = page.lines().skip_while(|line| !line.starts_with(head)).skip(2);
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{line}");
        let names = cells[0].split(", ").map(|name| name.trim_matches('`').to_owned());
        (names.collect(), [1, 2, 3].map(|at| cells[at].to_owned()))
    };
    lines.take_while(|line| line.starts_with('|')).map(row).collect()
}

/// What a netdev has, by name: the text, or the bytes of an attribute.
type Found = BTreeMap<(String, String), String>;

/// Whether the bytes of an attribute are what a cell says.
fn says(cell: &str, bytes: &[u8]) -> bool {
    let number = match *bytes {
        [one] => Some(u32::from(one)),
        [a, b] => Some(u16::from_ne_bytes([a, b]).into()),
        [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d])),
        _ => None,
    };
    let text = std::str::from_utf8(bytes).ok().and_then(|text| text.strip_suffix('\0'));
    let address: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    number.is_some_and(|number| number.to_string() == cell) || text == Some(cell) || address.join(":") == cell
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// Reads what five netdevs of a card have in a lab.
fn found() -> (Found, Found) {
    let folder = Folder::make("attributes");
    let config = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\npfs = 1\nvfs = 2\n";
    fs::write(folder.0.join("config"), config).unwrap();
    fs::write(folder.0.join("read.py"), READ).unwrap();
    let names = NETDEVS.map(|(name, _)| name).join(" ");
    let commands = [
        "devlink dev eswitch set pci/0000:08:00.0 mode switchdev".to_owned(),
        "devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88 > /run/added".to_owned(),
        "devlink port function set en8f0pf0sf88 hw_addr 00:00:00:00:88:88 state active".to_owned(),
        "until_attached en8f0pf0sf88 enp8s0f0s88".to_owned(),
        format!("python3 {}/read.py {names}", folder.0.display()),
    ];
    let mut printed = session(&folder, "bash", "--config $FOLDER/config", &commands);
    let (mut attributes, mut files) = (Found::new(), Found::new());
    for line in printed.pop().unwrap() {
        let [what, netdev, name, rest @ ..] = &line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let to = match *what {
            "attribute" => &mut attributes,
            "file" => &mut files,
            _ => panic!("{line}"),
        };
        to.insert(((*netdev).to_owned(), (*name).to_owned()), rest.join(" "));
    }
    (attributes, files)
}

#[test]
fn a_netdev_has_the_attributes_and_files_that_the_page_lists() {
    if lab::skipped(&["bash", "devlink", "python3"]) {
        return;
    }
    let (attributes, mut files) = found();
    let mut wrong = Vec::new();
    let mut unlisted = attributes.clone();
    for (names, cells) in table("| attribute |") {
        for name in names {
            let number = name.strip_prefix("IFLA_").map(|name| {
                NUMBERS.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("what is IFLA_{name}?")).1
            });
            let key = number.map_or_else(|| name.clone(), |number| number.to_string());
            let kernel_lacks_it =
                number.is_some_and(|number| number >= NEWER) && !attributes.keys().any(|(_, kind)| *kind == key);
            for (netdev, column) in NETDEVS {
                let cell = &cells[column];
                let value = attributes.get(&(netdev.to_owned(), key.clone())).map(|hex| bytes(hex));
                unlisted.remove(&(netdev.to_owned(), key.clone()));
                let is_right = match (&value, &cell[..]) {
                    (Some(_), "any") | (None, "—") => true,
                    // Only an SF's representor has other names.
                    (None, "any") if name == "IFLA_PROP_LIST" && netdev != "en8f0pf0sf88" => true,
                    (None, _) => kernel_lacks_it,
                    (Some(value), cell) => says(cell, value),
                };
                if !is_right {
                    wrong.push(format!("{netdev}: {name} is {value:x?}, and the page says {cell:?}"));
                }
            }
        }
    }
    wrong.extend(unlisted.keys().map(|(netdev, kind)| format!("{netdev}: attribute {kind} is not on the page")));
    for (names, cells) in table("| file in ") {
        for name in names {
            for (netdev, column) in NETDEVS {
                let cell = &cells[column];
                let Some(text) = files.remove(&(netdev.to_owned(), name.clone())) else {
                    wrong.push(format!("{netdev}: the file {name} is missing"));
                    continue;
                };
                if cell != "any" && *cell != text {
                    wrong.push(format!("{netdev}: the file {name} is {text:?}, and the page says {cell:?}"));
                }
            }
        }
    }
    wrong.extend(files.keys().map(|(netdev, file)| format!("{netdev}: the file {file} is not on the page")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The port that a netdev names is the one that devlink shows of it.
#[test]
fn the_port_of_a_netdev_names_it() {
    if lab::skipped(&["bash", "devlink", "python3"]) {
        return;
    }
    let (attributes, _) = found();
    for (netdev, port) in [
        ("enp8s0f0np0", "pci/0000:08:00.0/65535"),
        ("enp8s0f0v0", "pci/0000:08:00.1/1"),
        ("enp8s0f0s88", "auxiliary/mlx5_core.sf.4/1"),
        ("enp8s0f0npf0vf0", "pci/0000:08:00.0/1"),
        ("en8f0pf0sf88", "pci/0000:08:00.0/32768"),
    ] {
        let value = bytes(&attributes[&(netdev.to_owned(), "62".to_owned())]);
        let text = |kind| netlink::find(&value, kind).and_then(|found| found.string().map(str::to_owned)).unwrap();
        let index = netlink::find(&value, 3).and_then(|found| found.u32()).unwrap();
        assert_eq!(format!("{}/{}/{index}", text(1), text(2)), port, "{netdev}");
    }
}

/// A value beyond a limit of the table is refused, on each way by which it can be set, and changes nothing.
#[test]
fn what_is_beyond_a_limit_is_refused() {
    if lab::skipped(&["bash", "devlink", "python3"]) {
        return;
    }
    let folder = Folder::make("limits");
    let config = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\npfs = 1\nvfs = 2\n";
    fs::write(folder.0.join("config"), config).unwrap();
    let ioctl = "import fcntl, socket, struct, sys\n\
        s = socket.socket()\n\
        try:\n    fcntl.ioctl(s, 0x8922, struct.pack('16si12x', b'enp8s0f0np0', int(sys.argv[1])))\n\
        except OSError as error:\n    print(error.strerror)\n";
    fs::write(folder.0.join("mtu.py"), ioctl).unwrap();
    let by_ioctl = |mtu| format!("python3 {}/mtu.py {mtu}", folder.0.display());
    let mtu = "cat /sys/class/net/enp8s0f0np0/mtu";
    let steps: Vec<(String, &str)> = vec![
        ("ip link set enp8s0f0np0 mtu 9979".to_owned(), "Error: mtu greater than device maximum."),
        ("echo 9979 2>&1 > /sys/class/net/enp8s0f0np0/mtu | grep -o 'Invalid argument'".to_owned(), "Invalid argument"),
        ("echo 0x26fb > /sys/class/net/enp8s0f0np0/mtu || echo refused".to_owned(), "…\nrefused"),
        (by_ioctl(9979), "Invalid argument"),
        (mtu.to_owned(), "1500"),
        ("ip link set enp8s0f0np0 mtu 9978".to_owned(), ""),
        (mtu.to_owned(), "9978"),
        ("echo 9000 > /sys/class/net/enp8s0f0np0/mtu".to_owned(), ""),
        (mtu.to_owned(), "9000"),
        (by_ioctl(1500), ""),
        (mtu.to_owned(), "1500"),
        ("ip link set enp8s0f0v0 vf 0 trust on".to_owned(), "RTNETLINK answers: Operation not permitted"),
        ("devlink dev eswitch set pci/0000:08:00.0 mode switchdev".to_owned(), ""),
        (
            "ip link set enp8s0f0npf0vf0 vf 0 mac 02:00:00:00:00:01".to_owned(),
            "RTNETLINK answers: Operation not supported",
        ),
        ("ip link set enp8s0f0npf0vf0 gso_max_size 65537".to_owned(), "RTNETLINK answers: Invalid argument"),
        ("ip link set enp8s0f0npf0vf0 gso_max_size 60000".to_owned(), ""),
        ("ip -d link show enp8s0f0npf0vf0 | grep -o 'gso_max_size [0-9]*'".to_owned(), "gso_max_size 60000"),
    ];
    compare_steps(&folder, &steps);
}

/// Those who listen hear of a VF's setting, as often as it is set, if the netdev of the PF is up.
#[test]
fn a_setting_of_a_vf_is_told() {
    if lab::skipped(&["bash"]) {
        return;
    }
    let folder = Folder::make("told");
    let config = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\npfs = 1\nvfs = 2\n";
    fs::write(folder.0.join("config"), config).unwrap();
    let listening = "timeout 60 ip monitor link > /run/heard & M=$!; until_idle $M";
    let heard = "until_idle $M; kill $M; wait 2> /run/waited; grep -c '^2: enp8s0f0np0' /run/heard";
    let steps: Vec<(String, &str)> = vec![
        (format!("{listening}; ip link set enp8s0f0np0 vf 0 trust on; {heard}"), "0"),
        ("ip link set enp8s0f0np0 up".to_owned(), ""),
        (
            format!(
                "{listening}; ip link set enp8s0f0np0 vf 0 trust off; ip link set enp8s0f0np0 vf 9 trust on; {heard}"
            ),
            "…\n1",
        ),
        ("ip link show enp8s0f0np0 | grep -c 'trust off'".to_owned(), "2"),
        // The rest of the message is carried out, too.
        (
            "ip link set enp8s0f0np0 vf 0 trust on mtu 1400; ip link show enp8s0f0np0 | grep -o 'mtu [0-9]*'"
                .to_owned(),
            "mtu 1400",
        ),
    ];
    compare_steps(&folder, &steps);
}

/// Runs commands in a lab, and compares what each prints.
fn compare_steps(folder: &Folder, steps: &[(String, &str)]) {
    let commands: Vec<&str> = steps.iter().map(|(command, _)| command.as_str()).collect();
    let printed = session(folder, "bash", "--config $FOLDER/config", &commands);
    for ((command, expected), printed) in steps.iter().zip(printed) {
        let expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        lab::compare(command, &expected, &printed);
    }
}

/// mlx5 gives the representors of a DPU short queues, and only these.
#[test]
fn a_representor_of_a_dpu_has_a_short_queue() {
    if lab::skipped(&["bash", "devlink"]) {
        return;
    }
    let folder = Folder::make("dpu");
    let config = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\npfs = 1\ndpu = true\n";
    fs::write(folder.0.join("config"), config).unwrap();
    let length = |netdev| format!("cat /sys/class/net/{netdev}/tx_queue_len");
    let steps = [
        ("devlink dev eswitch set pci/0000:08:00.0 mode switchdev".to_owned(), ""),
        (length("enp8s0f0nc1pf0"), "128"),
        ("ip link show enp8s0f0nc1pf0 | grep -o 'qlen [0-9]*'".to_owned(), "qlen 128"),
        (length("enp8s0f0np0"), "1000"),
    ];
    compare_steps(&folder, &steps);
}
