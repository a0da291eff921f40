//! What may be tried: each row of the matrix, with the rule by which the kernel decides it.

use std::os::fd::AsFd;

use ::netlink::{Builder, Flags};
use devlink::numbers::{attribute as a, command as c, flavour, function};

use crate::netlink::request;

/// The card's PFs. The first is in switchdev mode with two VFs and two SFs, the second in legacy mode with one VF.
pub const PFS: [&str; 2] = ["0000:08:00.0", "0000:08:00.1"];
/// The card's netdevs that are changed.
pub const UPLINK: &str = "enp8s0f0np0";
pub const VF: &str = "enp8s0f0v0";
/// The netdev of the second PF, by which its VF is set.
const SECOND: &str = "enp8s0f1np1";
/// The port of the SF.
const SF_PORT: u32 = 32768;
/// What is not the card's: one end of a veth pair, and a bridge.
pub const HOST: &str = "host0";
pub const BRIDGE: &str = "hostbr";
/// A network namespace that netdevs are moved to, by the name `ip netns` gives it.
pub const ELSEWHERE: &str = "elsewhere";

/// How the kernel decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Nobody is refused.
    Anyone,
    /// CAP_NET_ADMIN in the user namespace that owns the network namespace.
    Network,
    /// CAP_NET_ADMIN in the initial user namespace, for which that of the lab stands.
    Initial,
    /// CAP_SYS_MODULE in the initial user namespace.
    Module,
    /// The mode and owner of a file of the card's.
    File,
    /// The same of a file that is the machine's: its owner is root of the machine.
    MachineFile,
    /// First the mode and owner of the file, then as [`Rule::Network`].
    FileThenNetwork,
    /// First the mode and owner of the file, then CAP_SYS_ADMIN in the initial user namespace, for which that of the lab
    /// stands.
    FileThenAdmin,
    /// First the mode and owner of the file, then CAP_NET_ADMIN in the machine's initial user namespace.
    FileThenMachine,
}

/// Where an attempt is made, and what it has to know.
pub struct Here {
    /// A process in the network namespace of the lab, and one in [`ELSEWHERE`].
    pub home: u32,
    pub elsewhere: u32,
    /// The device of the SF that is active.
    pub sf: String,
}

impl Here {
    /// The number of a netdev, 0 if there is none.
    fn index(name: &str) -> u32 {
        let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
        socket.and_then(|socket| rustix::net::netdevice::name_to_index(socket.as_fd(), name)).unwrap_or(0)
    }
}

pub type Fill = fn(&mut Builder);

/// What is tried.
pub enum Attempt {
    /// A command of the family devlink.
    Devlink {
        command: u8,
        flags: Flags,
        fill: Fill,
    },
    /// A message of rtnetlink, or the error number of what it takes.
    Route(fn(&Here) -> Result<Vec<u8>, i32>),
    /// `ETHTOOL_MSG_FEATURES_SET` of the family ethtool.
    EthtoolNetlink(&'static str),
    /// The same by `ioctl`.
    EthtoolIoctl(&'static str),
    /// `SIOCSIFMTU`.
    Mtu(&'static str),
    /// A command of RDMA_NL_NLDEV.
    Rdma {
        command: u16,
        flags: Flags,
        fill: Fill,
    },
    /// A multicast group of psample is joined.
    Psample(&'static str),
    /// A text is written to a file of `/sys`.
    Write(&'static str, &'static str),
    /// What a file of a netdev has is written to it again.
    WriteBack(&'static str, &'static str),
    /// `init_module`, `finit_module` of the card's module.
    InitModule,
    FinitModule,
    /// `delete_module` of it.
    DeleteModule,
    /// A program.
    Program(&'static [&'static str]),
}

impl Attempt {
    /// Whether it goes over a netlink socket that somebody else may have opened.
    pub fn is_message(&self) -> bool {
        matches!(self, Self::Devlink { .. } | Self::Route(_) | Self::EthtoolNetlink(_) | Self::Rdma { .. })
    }
}

/// What root does where nobody is in a lab.
#[derive(Clone, Copy)]
pub enum Step {
    /// A line of a shell, in the namespaces of the netdevs.
    Shell(&'static str),
    /// What the card is told to do. `SF` stands for the device of the SF that is active.
    Card(&'static str),
    /// The same, as a command of devlink.
    Devlink(u8, Fill),
}

/// Whether what is allowed can be seen by those who look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Seen,
    None,
    /// It may be over before anybody looks.
    Passing,
}

/// A row.
pub struct Row {
    /// The heading it stands under.
    pub group: &'static str,
    /// What it is called in the table.
    pub title: String,
    /// What stands before the titles of rows of which the table makes one, where they come out the same.
    pub alike: &'static str,
    /// Where the kernel decides.
    pub source: String,
    pub rule: Rule,
    pub attempt: Attempt,
    /// The error number that one has who may: not everything is supported.
    pub allowed: i32,
    /// The same on a card that an ordinary user has made, if it is another one there.
    pub allowed_own: Option<i32>,
    pub change: Change,
    /// What is done before each attempt, and after one that was allowed.
    pub setup: &'static [Step],
    pub undo: &'static [Step],
    /// Whether this kernel has the object outside a lab: then what it answers there is what is expected.
    pub outside: bool,
}

impl Row {
    fn new(group: &'static str, title: &str, source: &str, rule: Rule, attempt: Attempt) -> Self {
        let (title, source) = (title.to_owned(), source.to_owned());
        let change = if rule == Rule::Anyone { Change::None } else { Change::Seen };
        let (setup, undo) = (&[][..], &[][..]);
        Self {
            group,
            title,
            alike: "",
            source,
            rule,
            attempt,
            allowed: 0,
            allowed_own: None,
            change,
            setup,
            undo,
            outside: false,
        }
    }

    fn undo(mut self, undo: &'static [Step]) -> Self {
        self.undo = undo;
        self
    }

    fn setup(mut self, setup: &'static [Step]) -> Self {
        self.setup = setup;
        self
    }

    fn allowed(mut self, errno: i32) -> Self {
        self.allowed = errno;
        if errno != 0 {
            self.change = Change::None;
        }
        self
    }

    fn change(mut self, change: Change) -> Self {
        self.change = change;
        self
    }

    fn outside(mut self) -> Self {
        self.outside = true;
        self
    }
}

/// Every row.
pub fn rows() -> Vec<Row> {
    let mut rows = devlink_rows();
    rows.extend(unsupported_rows());
    rows.extend(link_rows());
    rows.extend(vf_rows());
    rows.extend(ethtool_rows());
    rows.extend(psample_rows());
    rows.extend(rdma_rows());
    rows.extend(sysfs_rows());
    rows.extend(netdev_file_rows());
    rows.extend(module_rows());
    rows
}

/// Names a PF.
pub fn handle(to: &mut Builder, pf: &str) {
    to.text(a::BUS_NAME, "pci").text(a::DEV_NAME, pf);
}

fn first(to: &mut Builder) -> &mut Builder {
    handle(to, PFS[0]);
    to
}

fn second(to: &mut Builder) -> &mut Builder {
    handle(to, PFS[1]);
    to
}

fn nothing(_: &mut Builder) {}

const DEVLINK: &str = "devlink";

/// A row of a devlink command. The first word of `name` is the kernel's for the command.
fn devlink(name: &str, title: &str, rule: Rule, command: u8, fill: Fill) -> Row {
    let flags = if rule == Rule::Anyone { Flags::DUMP } else { Flags::empty() };
    let marked = if rule == Rule::Anyone { "not marked" } else { "`GENL_ADMIN_PERM`" };
    let source = format!("`net/devlink/netlink_gen.c`: {name}, {marked}");
    Row::new(DEVLINK, title, &source, rule, Attempt::Devlink { command, flags, fill })
}

fn devlink_rows() -> Vec<Row> {
    use Rule::{Anyone, Initial};
    vec![
        devlink("GET", "`dev show`", Anyone, c::GET, nothing),
        devlink("PORT_GET", "`port show`", Anyone, c::PORT_GET, nothing),
        devlink("PARAM_GET", "`dev param show`", Anyone, c::PARAM_GET, nothing),
        devlink("INFO_GET", "`dev info`", Anyone, c::INFO_GET, nothing),
        devlink("HEALTH_REPORTER_GET", "`health show`", Anyone, c::HEALTH_GET, nothing),
        devlink("RATE_GET", "`port function rate show`", Anyone, c::RATE_GET, nothing),
        devlink("ESWITCH_GET", "`dev eswitch show`", Initial, c::ESWITCH_GET, |to| {
            first(to);
        })
        .change(Change::None),
        devlink("ESWITCH_SET", "`dev eswitch set … mode`", Initial, c::ESWITCH_SET, |to| {
            second(to).u16(a::ESWITCH_MODE, 1);
        })
        .undo(&[Step::Card("devlink dev eswitch set pci/0000:08:00.1 mode legacy")]),
        devlink("ESWITCH_SET", "`dev eswitch set … inline-mode`", Initial, c::ESWITCH_SET, |to| {
            second(to).u8(a::ESWITCH_INLINE_MODE, 1);
        })
        .allowed(libc::EOPNOTSUPP),
        devlink("ESWITCH_SET", "`dev eswitch set … encap-mode`", Initial, c::ESWITCH_SET, |to| {
            second(to).u8(a::ESWITCH_ENCAP_MODE, 0);
        })
        .undo(&[Step::Card("devlink dev eswitch set pci/0000:08:00.1 encap-mode basic")]),
        devlink("PORT_SET", "`port function set … hw_addr`", Initial, c::PORT_SET, |to| {
            first(to).u32(a::PORT_INDEX, SF_PORT).nest(a::PORT_FUNCTION, |to| {
                to.put(function::HW_ADDR, &[2, 0, 0, 0, 0, 0x77]);
            });
        })
        .undo(&[Step::Card("devlink port function set pci/0000:08:00.0/32768 hw_addr 00:00:00:00:00:00")]),
        devlink("PORT_SET", "`port function set … state`", Initial, c::PORT_SET, |to| {
            first(to).u32(a::PORT_INDEX, SF_PORT).nest(a::PORT_FUNCTION, |to| {
                to.u8(function::STATE, 1);
            });
        })
        .undo(&[Step::Card("devlink port function set pci/0000:08:00.0/32768 state inactive")]),
        devlink("PORT_SET", "`port function set … roce`", Initial, c::PORT_SET, |to| {
            first(to).u32(a::PORT_INDEX, SF_PORT).nest(a::PORT_FUNCTION, |to| {
                to.bitfield(function::CAPS, 0, function::CAP_ROCE);
            });
        })
        .undo(&[Step::Card("devlink port function set pci/0000:08:00.0/32768 roce enable")]),
        devlink("PORT_SET", "`port function set … migratable`", Initial, c::PORT_SET, |to| {
            first(to).u32(a::PORT_INDEX, 1).nest(a::PORT_FUNCTION, |to| {
                to.bitfield(function::CAPS, 2, 2);
            });
        })
        .allowed(libc::EOPNOTSUPP),
        devlink("PORT_NEW", "`port add`", Initial, c::PORT_NEW, |to| {
            let to = first(to).u16(a::PORT_FLAVOUR, flavour::PCI_SF).u16(a::PORT_PCI_PF_NUMBER, 0);
            to.u32(a::PORT_PCI_SF_NUMBER, 99);
        })
        .undo(&[Step::Card("devlink port del pci/0000:08:00.0/32770")]),
        devlink("PORT_DEL", "`port del`", Initial, c::PORT_DEL, |to| {
            first(to).u32(a::PORT_INDEX, SF_PORT + 2);
        })
        .setup(&[Step::Card("devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 99")])
        .undo(&[Step::Card("devlink port del pci/0000:08:00.0/32770")]),
        devlink("RATE_NEW", "`port function rate add`", Initial, c::RATE_NEW, |to| {
            first(to).text(a::RATE_NODE_NAME, "gold").u64(a::RATE_TX_MAX, 125_000_000);
        })
        .undo(&[Step::Devlink(c::RATE_DEL, |to| {
            first(to).text(a::RATE_NODE_NAME, "gold");
        })]),
        devlink("RATE_SET", "`port function rate set`", Initial, c::RATE_SET, |to| {
            first(to).u32(a::PORT_INDEX, 1).u64(a::RATE_TX_MAX, 125_000_000);
        })
        .undo(&[Step::Devlink(c::RATE_SET, |to| {
            first(to).u32(a::PORT_INDEX, 1).u64(a::RATE_TX_MAX, 0);
        })]),
        devlink("RATE_DEL", "`port function rate del`", Initial, c::RATE_DEL, |to| {
            first(to).text(a::RATE_NODE_NAME, "silver");
        })
        .setup(&[Step::Devlink(c::RATE_NEW, |to| {
            first(to).text(a::RATE_NODE_NAME, "silver");
        })])
        .undo(&[Step::Devlink(c::RATE_DEL, |to| {
            first(to).text(a::RATE_NODE_NAME, "silver");
        })]),
        devlink("PARAM_SET", "`dev param set`", Initial, c::PARAM_SET, |to| {
            let to =
                second(to).text(a::PARAM_NAME, "flow_steering_mode").u8(a::PARAM_TYPE, devlink::numbers::nla::STRING);
            to.text(a::PARAM_VALUE_DATA, "dmfs").u8(a::PARAM_VALUE_CMODE, RUNTIME);
        })
        .undo(&[Step::Devlink(c::PARAM_SET, |to| {
            let to =
                second(to).text(a::PARAM_NAME, "flow_steering_mode").u8(a::PARAM_TYPE, devlink::numbers::nla::STRING);
            to.text(a::PARAM_VALUE_DATA, "smfs").u8(a::PARAM_VALUE_CMODE, RUNTIME);
        })]),
        devlink("RELOAD", "`dev reload`", Initial, c::RELOAD, |to| {
            second(to).u8(a::RELOAD_ACTION, 1);
        })
        .change(Change::Passing),
        devlink("HEALTH_REPORTER_RECOVER", "`health recover`", Initial, c::HEALTH_RECOVER, |to| {
            first(to).text(a::HEALTH_REPORTER_NAME, "representors");
        })
        .change(Change::None),
        devlink("HEALTH_REPORTER_DIAGNOSE", "`health diagnose`", Initial, c::HEALTH_DIAGNOSE, |to| {
            first(to).text(a::HEALTH_REPORTER_NAME, "representors");
        })
        .change(Change::None),
        Row::new(
            DEVLINK,
            "iproute2: `devlink dev eswitch set … mode`",
            "as above",
            Initial,
            Attempt::Program(&["devlink", "dev", "eswitch", "set", "pci/0000:08:00.1", "mode", "switchdev"]),
        )
        .undo(&[Step::Card("devlink dev eswitch set pci/0000:08:00.1 mode legacy")]),
    ]
}

/// `DEVLINK_PARAM_CMODE_RUNTIME`.
const RUNTIME: u8 = 0;

/// What devlink has and the card does not support, and what these requests lack something for: they name only the device.
/// Who may not is told so all the same: the kernel asks that first.
fn unsupported_rows() -> Vec<Row> {
    // The numbers of `enum devlink_command`, and whether it is a dump.
    const MARKED: [(u8, &str, bool, i32); 23] = [
        (9, "PORT_SPLIT", false, libc::EOPNOTSUPP),
        (10, "PORT_UNSPLIT", false, libc::EOPNOTSUPP),
        (16, "SB_POOL_SET", false, libc::EOPNOTSUPP),
        (20, "SB_PORT_POOL_SET", false, libc::EOPNOTSUPP),
        (24, "SB_TC_POOL_BIND_SET", false, libc::EOPNOTSUPP),
        (27, "SB_OCC_SNAPSHOT", false, libc::EOPNOTSUPP),
        (28, "SB_OCC_MAX_CLEAR", false, libc::EOPNOTSUPP),
        (34, "DPIPE_TABLE_COUNTERS_SET", false, libc::EOPNOTSUPP),
        (35, "RESOURCE_SET", false, libc::EINVAL),
        (44, "REGION_NEW", false, libc::EINVAL),
        (45, "REGION_DEL", false, libc::EINVAL),
        (46, "REGION_READ", true, libc::EINVAL),
        (48, "PORT_PARAM_SET", false, libc::EOPNOTSUPP),
        (53, "HEALTH_REPORTER_SET", false, libc::EINVAL),
        (56, "HEALTH_REPORTER_DUMP_GET", true, libc::EINVAL),
        (57, "HEALTH_REPORTER_DUMP_CLEAR", false, libc::EINVAL),
        (58, "FLASH_UPDATE", false, libc::EINVAL),
        (62, "TRAP_SET", false, libc::ENOENT),
        (66, "TRAP_GROUP_SET", false, libc::ENOENT),
        (70, "TRAP_POLICER_SET", false, libc::EOPNOTSUPP),
        (73, "HEALTH_REPORTER_TEST", false, libc::EINVAL),
        (79, "LINECARD_SET", false, libc::EOPNOTSUPP),
        (83, "SELFTESTS_RUN", false, libc::EOPNOTSUPP),
    ];
    let row = |&(command, name, dump, errno): &(u8, &str, bool, i32)| {
        let fill: Fill = |to| {
            first(to);
        };
        let row = devlink(name, name, Rule::Initial, command, fill);
        let flags = if dump { Flags::DUMP } else { Flags::empty() };
        let source = "`net/devlink/netlink_gen.c`: `GENL_ADMIN_PERM`".to_owned();
        let alike = if errno == libc::EOPNOTSUPP { "not supported by the card: " } else { "of what there is not: " };
        Row { attempt: Attempt::Devlink { command, flags, fill }, source, alike, ..row }.allowed(errno)
    };
    MARKED.iter().map(row).collect()
}

const RTNETLINK: &str = "rtnetlink and tc";
const RTNL_SOURCE: &str = "`net/core/rtnetlink.c`: `rtnetlink_rcv_msg`, `netlink_net_capable`";

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const SETLINK: u16 = 19;
const CREATE: Flags = Flags::CREATE.union(Flags::EXCL);
const NONE: Flags = Flags::empty();
const UP: u32 = 1;

/// A message about a link: with its flags, and of these the ones that count.
fn link(kind: u16, flags: Flags, name: &str, (up, mask): (u32, u32), fill: impl FnOnce(&mut Builder)) -> Vec<u8> {
    let index = Here::index(name);
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&up.to_ne_bytes());
    header[12..16].copy_from_slice(&mask.to_ne_bytes());
    request(kind, flags, |to| {
        to.raw(&header);
        if index == 0 && !name.is_empty() {
            to.text(3, name);
        }
        fill(to);
    })
}

/// A message about something else of a netdev: its header has the netdev's number at some place.
fn of_netdev(kind: u16, header: &mut [u8], at: usize, name: &str, fill: impl FnOnce(&mut Builder)) -> Vec<u8> {
    header[at..at + 4].copy_from_slice(&Here::index(name).to_ne_bytes());
    request(kind, CREATE, |to| fill(to.raw(header)))
}

fn address(name: &str) -> Vec<u8> {
    of_netdev(20, &mut [2, 24, 0, 0, 0, 0, 0, 0], 4, name, |to| {
        to.put(2, &[10, 9, 8, 7]).put(1, &[10, 9, 8, 7]);
    })
}

fn route(name: &str) -> Vec<u8> {
    // To a network of 24 bits, in the main table, of the administrator, on the link, unicast.
    request(24, CREATE, |to| {
        to.raw(&[2, 24, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0]).put(1, &[10, 7, 7, 0]).u32(4, Here::index(name));
    })
}

fn neighbour(name: &str) -> Vec<u8> {
    of_netdev(28, &mut [2, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0], 4, name, |to| {
        to.put(1, &[10, 7, 7, 7]).put(2, &[2, 0, 0, 0, 0, 9]);
    })
}

fn qdisc(name: &str) -> Vec<u8> {
    let mut header = [0; 20];
    header[8..12].copy_from_slice(&0x0099_0000_u32.to_ne_bytes());
    header[12..16].copy_from_slice(&u32::MAX.to_ne_bytes());
    of_netdev(36, &mut header, 4, name, |to| {
        to.text(1, "pfifo");
    })
}

fn rename(name: &str) -> Vec<u8> {
    link(NEWLINK, NONE, name, (0, 0), |to| {
        to.text(3, "renamed");
    })
}

/// To the namespace of a process.
fn move_by_process(name: &str, here: &Here) -> Vec<u8> {
    link(NEWLINK, NONE, name, (0, 0), |to| {
        to.u32(19, here.elsewhere);
    })
}

/// To the namespace that a file stands for. The file stays open while the request is under way, as it is never
/// closed.
fn move_by_file(name: &str) -> Result<Vec<u8>, i32> {
    let file = std::fs::File::open(format!("/run/netns/{ELSEWHERE}")).map_err(|e| e.raw_os_error().unwrap_or(-1))?;
    let fd = std::os::fd::IntoRawFd::into_raw_fd(file) as u32;
    Ok(link(NEWLINK, NONE, name, (0, 0), |to| {
        to.u32(28, fd);
    }))
}

fn add(name: &str, kind: &str, fill: impl FnOnce(&mut Builder)) -> Vec<u8> {
    link(NEWLINK, CREATE, "", (0, 0), |to| {
        to.text(3, name);
        to.nest(18, |to| {
            to.text(1, kind);
        });
        fill(to);
    })
}

fn rtnetlink(title: &str, attempt: fn(&Here) -> Result<Vec<u8>, i32>, undo: &'static [Step]) -> Row {
    let kinds = ["a card's netdev: ", "a host's netdev: "];
    let kind = kinds.into_iter().find(|kind| title.starts_with(kind)).unwrap_or_default();
    let title = title.trim_start_matches(kind);
    let row = Row::new(RTNETLINK, title, RTNL_SOURCE, Rule::Network, Attempt::Route(attempt));
    Row { alike: kind, ..row.undo(undo).outside() }
}

fn link_rows() -> Vec<Row> {
    use Step::Shell;
    const TARGET: &str =
        "`net/core/rtnetlink.c`: the same, and for the namespace it goes to `rtnl_link_get_net_capable`";
    let mut rows = vec![
        rtnetlink(
            "a card's netdev: down",
            |_| Ok(link(NEWLINK, NONE, UPLINK, (0, UP), |_| {})),
            &[Shell("ip link set enp8s0f0np0 up")],
        ),
        rtnetlink(
            "a card's netdev: up",
            |_| Ok(link(NEWLINK, NONE, VF, (UP, UP), |_| {})),
            &[Shell("ip link set enp8s0f0v0 down")],
        ),
        rtnetlink("a card's netdev: another name", |_| Ok(rename(VF)), &[Shell("ip link set renamed name enp8s0f0v0")]),
        rtnetlink(
            "a card's netdev: MTU",
            |_| {
                Ok(link(NEWLINK, NONE, UPLINK, (0, 0), |to| {
                    to.u32(4, 1400);
                }))
            },
            &[Shell("ip link set enp8s0f0np0 mtu 1500")],
        ),
        rtnetlink(
            "a card's netdev: queue length and group",
            |_| {
                Ok(link(NEWLINK, NONE, UPLINK, (0, 0), |to| {
                    to.u32(13, 77).u32(27, 7);
                }))
            },
            &[Shell("ip link set enp8s0f0np0 txqueuelen 1000 group 0")],
        ),
        rtnetlink(
            "a card's netdev: address",
            |_| {
                Ok(link(NEWLINK, NONE, UPLINK, (0, 0), |to| {
                    to.put(1, &[2, 0, 0, 0, 0, 1]);
                }))
            },
            &[Shell("ip link set enp8s0f0np0 address 02:e5:08:00:ff:ff")],
        ),
        rtnetlink(
            "a card's netdev: into a bridge",
            |_| {
                Ok(link(NEWLINK, NONE, "enp8s0f0npf0vf0", (0, 0), |to| {
                    to.u32(10, Here::index(BRIDGE));
                }))
            },
            &[Shell("ip link set enp8s0f0npf0vf0 nomaster")],
        ),
        rtnetlink(
            "a card's netdev: IP address",
            |_| Ok(address(UPLINK)),
            &[Shell("ip addr del 10.9.8.7/24 dev enp8s0f0np0")],
        ),
        rtnetlink("a card's netdev: route", |_| Ok(route(UPLINK)), &[Shell("ip route del 10.7.7.0/24")]),
        rtnetlink(
            "a card's netdev: neighbour",
            |_| Ok(neighbour(UPLINK)),
            &[Shell("ip neigh del 10.7.7.7 dev enp8s0f0np0")],
        ),
        rtnetlink(
            "a card's netdev: `tc qdisc add`",
            |_| Ok(qdisc(UPLINK)),
            &[Shell("tc qdisc del dev enp8s0f0np0 root")],
        ),
        rtnetlink(
            "a card's netdev: to the namespace of a process",
            |here| Ok(move_by_process(VF, here)),
            &[Shell("ip -n elsewhere link set enp8s0f0v0 netns $$")],
        ),
        rtnetlink(
            "a card's netdev: to a namespace by its name",
            |_| move_by_file(VF),
            &[Shell("ip -n elsewhere link set enp8s0f0v0 netns $$")],
        ),
        // Outside a lab it is a veth, which can be deleted.
        Row {
            outside: false,
            ..rtnetlink("a card's netdev: deleted", |_| Ok(link(DELLINK, NONE, VF, (0, 0), |_| {})), &[])
                .allowed(libc::EOPNOTSUPP)
        },
        rtnetlink(
            "a host's netdev: down",
            |_| Ok(link(NEWLINK, NONE, HOST, (0, UP), |_| {})),
            &[Shell("ip link set host0 up")],
        ),
        rtnetlink("a host's netdev: another name", |_| Ok(rename("host1")), &[Shell("ip link set renamed name host1")]),
        rtnetlink(
            "a host's netdev: MTU",
            |_| {
                Ok(link(NEWLINK, NONE, HOST, (0, 0), |to| {
                    to.u32(4, 1400);
                }))
            },
            &[Shell("ip link set host0 mtu 1500")],
        ),
        rtnetlink(
            "a host's netdev: address",
            |_| {
                Ok(link(NEWLINK, NONE, HOST, (0, 0), |to| {
                    to.put(1, &[2, 0, 0, 0, 0, 1]);
                }))
            },
            &[Shell("ip link set host0 address 02:00:00:00:aa:00")],
        ),
        rtnetlink(
            "a host's netdev: into a bridge",
            |_| {
                Ok(link(NEWLINK, NONE, HOST, (0, 0), |to| {
                    to.u32(10, Here::index(BRIDGE));
                }))
            },
            &[Shell("ip link set host0 nomaster")],
        ),
        rtnetlink("a host's netdev: IP address", |_| Ok(address(HOST)), &[Shell("ip addr del 10.9.8.7/24 dev host0")]),
        rtnetlink("a host's netdev: route", |_| Ok(route(HOST)), &[Shell("ip route del 10.7.7.0/24")]),
        rtnetlink("a host's netdev: neighbour", |_| Ok(neighbour(HOST)), &[Shell("ip neigh del 10.7.7.7 dev host0")]),
        rtnetlink("a host's netdev: `tc qdisc add`", |_| Ok(qdisc(HOST)), &[Shell("tc qdisc del dev host0 root")]),
        rtnetlink(
            "a host's netdev: to the namespace of a process",
            |here| Ok(move_by_process("host1", here)),
            &[Shell("ip -n elsewhere link set host1 netns $$")],
        ),
        rtnetlink(
            "a host's netdev: to a namespace by its name",
            |_| move_by_file("host1"),
            &[Shell("ip -n elsewhere link set host1 netns $$")],
        ),
        rtnetlink(
            "a host's netdev: deleted",
            |_| Ok(link(DELLINK, NONE, HOST, (0, 0), |_| {})),
            &[Shell(crate::stage::HOST_NETDEVS)],
        ),
        rtnetlink(
            "a host's netdev: down by `RTM_SETLINK`",
            |_| Ok(link(SETLINK, NONE, HOST, (0, UP), |_| {})),
            &[Shell("ip link set host0 up")],
        ),
        // Who is in a namespace of its own adds it there.
        rtnetlink("a bridge is added", |_| Ok(add("added", "bridge", |_| {})), &[Shell("ip link del added")])
            .change(Change::Passing),
        rtnetlink(
            "a bridge is added where the card is, by a process there",
            |here| {
                Ok(add("added", "bridge", |to| {
                    to.u32(19, here.home);
                }))
            },
            &[Shell("ip link del added")],
        ),
    ];
    for row in &mut rows {
        if row.title.contains("to the namespace")
            || row.title.contains("to a namespace")
            || row.title.contains("by a process")
        {
            row.source = TARGET.to_owned();
        }
    }
    let program = |title, words, undo| {
        Row::new(RTNETLINK, title, "as above", Rule::Network, Attempt::Program(words)).undo(undo).outside()
    };
    rows.push(program(
        "iproute2: `ip link set host0 down`",
        &["ip", "link", "set", "host0", "down"],
        &[Step::Shell("ip link set host0 up")],
    ));
    rows.push(program(
        "iproute2: `ip link del host0`",
        &["ip", "link", "del", "host0"],
        &[Step::Shell(crate::stage::HOST_NETDEVS)],
    ));
    rows.push(program(
        "iproute2: `tc qdisc add dev host0`",
        &["tc", "qdisc", "add", "dev", "host0", "root", "handle", "99:", "pfifo"],
        &[Step::Shell("tc qdisc del dev host0 root")],
    ));
    rows
}

/// What is set of the first VF, as `IFLA_VF_INFO` has it.
fn vf_settings(message: u16, kind: u16, value: &[u32], rest: &[u8]) -> Result<Vec<u8>, i32> {
    Ok(link(message, NONE, SECOND, (0, 0), |to| {
        to.nest(22, |to| {
            to.nest(1, |to| {
                let mut bytes = 0_u32.to_ne_bytes().to_vec();
                bytes.extend(value.iter().flat_map(|number| number.to_ne_bytes()));
                bytes.extend(rest);
                to.put(kind, &bytes);
            });
        });
    }))
}

fn vf_rows() -> Vec<Row> {
    const SOURCE: &str = "`net/core/rtnetlink.c`: `rtnetlink_rcv_msg` before `do_setvfinfo`";
    type Message = fn(&Here) -> Result<Vec<u8>, i32>;
    let settings: [(&str, Message, &'static [Step]); 7] = [
        (
            "mac",
            |_| {
                let mut mac = [0; 32];
                mac[..6].copy_from_slice(&[2, 0, 0, 0, 0, 5]);
                vf_settings(NEWLINK, 1, &[], &mac)
            },
            &[Step::Card("ip link set enp8s0f1np1 vf 0 mac 00:00:00:00:00:00")],
        ),
        ("vlan", |_| vf_settings(NEWLINK, 2, &[7, 0], &[]), &[Step::Card("ip link set enp8s0f1np1 vf 0 vlan 0")]),
        (
            "rate",
            |_| vf_settings(NEWLINK, 6, &[0, 100], &[]),
            &[Step::Card("ip link set enp8s0f1np1 vf 0 max_tx_rate 0")],
        ),
        (
            "spoofchk",
            |_| vf_settings(NEWLINK, 4, &[1], &[]),
            &[Step::Card("ip link set enp8s0f1np1 vf 0 spoofchk off")],
        ),
        ("state", |_| vf_settings(NEWLINK, 5, &[2], &[]), &[Step::Card("ip link set enp8s0f1np1 vf 0 state auto")]),
        ("trust", |_| vf_settings(NEWLINK, 9, &[1], &[]), &[Step::Card("ip link set enp8s0f1np1 vf 0 trust off")]),
        (
            "rate` by `RTM_SETLINK",
            |_| vf_settings(SETLINK, 6, &[0, 100], &[]),
            &[Step::Card("ip link set enp8s0f1np1 vf 0 max_tx_rate 0")],
        ),
    ];
    let row = |(what, message, undo): (&str, Message, &'static [Step])| {
        let row = Row::new(RTNETLINK, &format!("`vf 0 {what}`"), SOURCE, Rule::Network, Attempt::Route(message));
        // A VLAN takes CAP_BPF, which the card of an ordinary user does not have.
        let allowed_own = (what == "vlan").then_some(libc::EOPNOTSUPP);
        Row { alike: "a card's netdev: ", allowed_own, ..row.undo(undo) }
    };
    settings.into_iter().map(row).collect()
}

fn ethtool_rows() -> Vec<Row> {
    const IOCTL: &str = "`net/ethtool/ioctl.c`: `__dev_ethtool`, `ns_capable(net->user_ns)`";
    const NETLINK: &str = "`net/ethtool/netlink.c`: `GENL_UNS_ADMIN_PERM`";
    const DEVICE: &str = "`net/core/dev_ioctl.c`: `dev_ioctl`, `ns_capable(net->user_ns)`";
    let row = |title, source, attempt, undo| {
        Row::new("ethtool and ioctl", title, source, Rule::Network, attempt).undo(undo).outside()
    };
    const UPLINK_BACK: &[Step] =
        &[Step::Shell("ip link set enp8s0f0np0 mtu 1500"), Step::Shell("$RIGHTS gso enp8s0f0np0")];
    const HOST_BACK: &[Step] = &[Step::Shell("ip link set host0 mtu 1500"), Step::Shell("$RIGHTS gso host0")];
    vec![
        row("a card's netdev: `ETHTOOL_SGSO`", IOCTL, Attempt::EthtoolIoctl(UPLINK), UPLINK_BACK),
        row("a card's netdev: `ETHTOOL_MSG_FEATURES_SET`", NETLINK, Attempt::EthtoolNetlink(UPLINK), UPLINK_BACK),
        row("a card's netdev: `SIOCSIFMTU`", DEVICE, Attempt::Mtu(UPLINK), UPLINK_BACK),
        row("a host's netdev: `ETHTOOL_SGSO`", IOCTL, Attempt::EthtoolIoctl(HOST), HOST_BACK),
        row("a host's netdev: `ETHTOOL_MSG_FEATURES_SET`", NETLINK, Attempt::EthtoolNetlink(HOST), HOST_BACK),
        row("a host's netdev: `SIOCSIFMTU`", DEVICE, Attempt::Mtu(HOST), HOST_BACK),
    ]
}

const RDMA: &str = "rdma";

fn rdma_rows() -> Vec<Row> {
    use Rule::{Anyone, Initial};
    let row = |name: &str, title: &str, rule, command, flags, fill: Fill| {
        let marked = if rule == Anyone { "not marked" } else { "`RDMA_NL_ADMIN_PERM`" };
        let source = format!("`drivers/infiniband/core/nldev.c`: {name}, {marked}");
        Row::new(RDMA, title, &source, rule, Attempt::Rdma { command, flags, fill })
    };
    let first: Fill = |to| {
        to.u32(1, 0);
    };
    vec![
        row("GET", "`rdma dev show`", Anyone, 1, Flags::DUMP, nothing),
        row("SYS_GET", "`rdma system show`", Anyone, 6, NONE, nothing),
        row("SYS_SET", "`rdma system set netns`", Initial, 7, NONE, |to| {
            // The mode that there is: another one is refused while there are several network namespaces (EBUSY).
            to.u8(66, 1);
        })
        .change(Change::None),
        row("SET", "`rdma dev set … name`", Initial, 2, NONE, |to| {
            // The name that it has.
            to.u32(1, 0).text(2, "rocep8s0f0");
        })
        .change(Change::None),
        row("SET", "`rdma dev set … netns`", Initial, 2, NONE, |to| {
            to.u32(1, 0).u32(68, 0);
        })
        .allowed(libc::EINVAL),
        row("NEWLINK", "`rdma link add`", Initial, 3, NONE, |to| {
            to.text(2, "rxe9").text(65, "rxe").text(51, UPLINK);
        })
        .allowed(libc::EINVAL),
        row("DELLINK", "`rdma link delete`", Initial, 4, NONE, first).allowed(libc::EINVAL),
        row("STAT_SET", "`rdma statistic … set`", Initial, 16, NONE, first).allowed(libc::EINVAL),
        row("STAT_DEL", "`rdma statistic … unbind`", Initial, 18, NONE, first).allowed(libc::EINVAL),
        row("RES_QP_GET_RAW", "`rdma resource show qp -r`", Initial, 19, Flags::DUMP, first).allowed(libc::EINVAL),
        Row::new(
            RDMA,
            "iproute2: `rdma system set netns shared`",
            "as above",
            Initial,
            Attempt::Program(&["rdma", "system", "set", "netns", "shared"]),
        )
        .change(Change::None),
    ]
}

/// Files of the card. `*` stands for the device's name where it is not always the same.
fn sysfs_rows() -> Vec<Row> {
    use Step::Card;
    const PCI: &str = "`drivers/pci/pci-sysfs.c`, `fs/kernfs/inode.c`: `kernfs_iop_permission`";
    const IOV: &str = "`drivers/pci/iov.c`, `fs/kernfs/inode.c`: `kernfs_iop_permission`";
    const BUS: &str = "`drivers/base/bus.c`, `fs/kernfs/inode.c`: `kernfs_iop_permission`";
    const UEVENT: &str = "`drivers/base/core.c`: `uevent_store`; `fs/kernfs/inode.c`: `kernfs_iop_permission`";
    let row = |title: &str, source, path, text| {
        Row::new("sysfs", &format!("`{title}`"), source, Rule::File, Attempt::Write(path, text))
    };
    const VF1: &str = "0000:08:00.3";
    // The override is set after the module was loaded, which binds what waits for its driver.
    const FOR_VFIO: [Step; 3] = [
        Card("modprobe vfio-pci"),
        Card("echo 0000:08:00.3 > /sys/bus/pci/drivers/mlx5_core/unbind"),
        Card("echo vfio-pci > /sys/bus/pci/devices/0000:08:00.3/driver_override"),
    ];
    const ON_VFIO: [Step; 4] = [
        Card("modprobe vfio-pci"),
        Card("echo 0000:08:00.3 > /sys/bus/pci/drivers/mlx5_core/unbind"),
        Card("echo vfio-pci > /sys/bus/pci/devices/0000:08:00.3/driver_override"),
        Card("echo 0000:08:00.3 > /sys/bus/pci/drivers/vfio-pci/bind"),
    ];
    const NOT_FOR_VFIO: [Step; 3] = [
        Card("modprobe -r vfio_pci"),
        Card("echo > /sys/bus/pci/devices/0000:08:00.3/driver_override"),
        Card("echo 0000:08:00.3 > /sys/bus/pci/drivers/mlx5_core/bind"),
    ];
    vec![
        row("PF/sriov_numvfs", IOV, "/sys/bus/pci/devices/0000:08:00.1/sriov_numvfs", "0")
            .undo(&[Card("echo 1 > /sys/bus/pci/devices/0000:08:00.1/sriov_numvfs")]),
        row("PF/sriov_drivers_autoprobe", IOV, "/sys/bus/pci/devices/0000:08:00.1/sriov_drivers_autoprobe", "0")
            .undo(&[Card("echo 1 > /sys/bus/pci/devices/0000:08:00.1/sriov_drivers_autoprobe")]),
        row("VF/sriov_vf_msix_count", IOV, "/sys/bus/pci/devices/0000:08:00.3/sriov_vf_msix_count", "8")
            .setup(&[Card("echo 0000:08:00.3 > /sys/bus/pci/drivers/mlx5_core/unbind")])
            .undo(&[
                Card("echo 0 > /sys/bus/pci/devices/0000:08:00.3/sriov_vf_msix_count"),
                Card("echo 0000:08:00.3 > /sys/bus/pci/drivers/mlx5_core/bind"),
            ]),
        row("…/driver_override", PCI, "/sys/bus/pci/devices/0000:08:00.3/driver_override", "vfio-pci")
            .undo(&[Card("echo > /sys/bus/pci/devices/0000:08:00.3/driver_override")]),
        row("…/remove", PCI, "/sys/bus/pci/devices/0000:08:00.3/remove", "1")
            .undo(&[Card("echo 1 > /sys/bus/pci/rescan")]),
        row("…/rescan", PCI, "/sys/bus/pci/devices/0000:08:00.0/rescan", "1")
            .setup(&[Card("echo 1 > /sys/bus/pci/devices/0000:08:00.3/remove")])
            .undo(&[Card("echo 1 > /sys/bus/pci/rescan")]),
        row("…/reset", PCI, "/sys/bus/pci/devices/0000:08:00.1/reset", "1").change(Change::Passing),
        row("…/uevent", UEVENT, "/sys/bus/pci/devices/0000:08:00.0/uevent", "change").change(Change::None),
        Row {
            rule: Rule::FileThenAdmin,
            source: "`drivers/pci/pci-sysfs.c`: the file's mode, then `capable(CAP_SYS_ADMIN)` in `msi_bus_store`"
                .to_owned(),
            ..row("…/msi_bus", PCI, "/sys/bus/pci/devices/0000:08:00.1/msi_bus", "1").change(Change::None)
        },
        row("…/d3cold_allowed", PCI, "/sys/bus/pci/devices/0000:08:00.1/d3cold_allowed", "1").change(Change::None),
        row("…/broken_parity_status", PCI, "/sys/bus/pci/devices/0000:08:00.1/broken_parity_status", "0")
            .change(Change::None),
        row("…/resource0", PCI, "/sys/bus/pci/devices/0000:08:00.0/resource0", "1").allowed(libc::EIO),
        row("…/resource0_wc", PCI, "/sys/bus/pci/devices/0000:08:00.0/resource0_wc", "1").allowed(libc::EIO),
        row(
            "…/hw_counters/lifespan",
            "`drivers/infiniband/core/sysfs.c`: `set_stats_lifespan`; `fs/kernfs/inode.c`: `kernfs_iop_permission`",
            "/sys/class/infiniband/rocep8s0f0/ports/1/hw_counters/lifespan",
            "20",
        )
        .change(Change::None),
        row(
            "…/infiniband/*/node_desc",
            "`drivers/infiniband/core/sysfs.c`: `node_desc_store`; `fs/kernfs/inode.c`: `kernfs_iop_permission`",
            "/sys/class/infiniband/rocep8s0f0v1/node_desc",
            "described",
        )
        // A device that is made anew has no description.
        .undo(&[
            Card("echo 0000:08:00.3 > /sys/bus/pci/drivers/mlx5_core/unbind"),
            Card("echo 0000:08:00.3 > /sys/bus/pci/drivers/mlx5_core/bind"),
        ]),
        row("bus/pci/rescan", PCI, "/sys/bus/pci/rescan", "1")
            .setup(&[Card("echo 1 > /sys/bus/pci/devices/0000:08:00.3/remove")])
            .undo(&[Card("echo 1 > /sys/bus/pci/rescan")]),
        row("bus/pci/drivers_probe", BUS, "/sys/bus/pci/drivers_probe", VF1)
            .setup(&[Card("echo 0000:08:00.3 > /sys/bus/pci/drivers/mlx5_core/unbind")])
            .undo(&[Card("echo 0000:08:00.3 > /sys/bus/pci/drivers/mlx5_core/bind")]),
        row("bus/pci/drivers/mlx5_core/unbind", BUS, "/sys/bus/pci/drivers/mlx5_core/unbind", VF1)
            .undo(&[Card("echo 0000:08:00.3 > /sys/bus/pci/drivers/mlx5_core/bind")]),
        row("bus/pci/drivers/mlx5_core/bind", BUS, "/sys/bus/pci/drivers/mlx5_core/bind", VF1)
            .setup(&[Card("echo 0000:08:00.3 > /sys/bus/pci/drivers/mlx5_core/unbind")])
            .undo(&[Card("echo 0000:08:00.3 > /sys/bus/pci/drivers/mlx5_core/bind")]),
        row("bus/pci/drivers/vfio-pci/bind", BUS, "/sys/bus/pci/drivers/vfio-pci/bind", VF1)
            .setup(&FOR_VFIO)
            .undo(&NOT_FOR_VFIO),
        row("bus/pci/drivers/vfio-pci/unbind", BUS, "/sys/bus/pci/drivers/vfio-pci/unbind", VF1)
            .setup(&ON_VFIO)
            .undo(&NOT_FOR_VFIO),
        row("bus/pci/drivers/mlx5_core/new_id", PCI, "/sys/bus/pci/drivers/mlx5_core/new_id", "15b3 ffff")
            .allowed(libc::ENODEV),
        row("bus/pci/drivers/mlx5_core/remove_id", PCI, "/sys/bus/pci/drivers/mlx5_core/remove_id", "15b3 ffff")
            .allowed(libc::ENODEV),
        row("bus/pci/drivers/mlx5_core/uevent", UEVENT, "/sys/bus/pci/drivers/mlx5_core/uevent", "change")
            .change(Change::None),
        row("bus/auxiliary/drivers_probe", BUS, "/sys/bus/auxiliary/drivers_probe", "SF")
            .setup(&[Card("echo SF > /sys/bus/auxiliary/drivers/mlx5_core.sf/unbind")])
            .undo(&[Card("echo SF > /sys/bus/auxiliary/drivers/mlx5_core.sf/bind")]),
        row("bus/auxiliary/drivers/mlx5_core.sf/unbind", BUS, "/sys/bus/auxiliary/drivers/mlx5_core.sf/unbind", "SF")
            .undo(&[Card("echo SF > /sys/bus/auxiliary/drivers/mlx5_core.sf/bind")]),
        row("bus/auxiliary/drivers/mlx5_core.sf/bind", BUS, "/sys/bus/auxiliary/drivers/mlx5_core.sf/bind", "SF")
            .setup(&[Card("echo SF > /sys/bus/auxiliary/drivers/mlx5_core.sf/unbind")])
            .undo(&[Card("echo SF > /sys/bus/auxiliary/drivers/mlx5_core.sf/bind")]),
        row("bus/auxiliary/drivers_autoprobe", BUS, "/sys/bus/auxiliary/drivers_autoprobe", "1").allowed(libc::ENODEV),
        row("bus/auxiliary/uevent", UEVENT, "/sys/bus/auxiliary/uevent", "change").change(Change::None),
        Row {
            rule: Rule::MachineFile,
            outside: true,
            ..row("bus/pci/drivers/virtio-pci/bind", BUS, "/sys/bus/pci/drivers/virtio-pci/bind", "ffff:ff:1f.7")
                .change(Change::None)
        },
    ]
}

/// The files of a netdev that may be written, and whether the kernel asks for the right over the network
/// namespace, or over the machine.
const NETDEV_FILES: [(&str, Rule); 12] = [
    ("flags", Rule::FileThenNetwork),
    ("ifalias", Rule::FileThenNetwork),
    ("mtu", Rule::FileThenNetwork),
    ("netdev_group", Rule::FileThenNetwork),
    ("proto_down", Rule::FileThenNetwork),
    ("threaded", Rule::FileThenNetwork),
    ("gro_flush_timeout", Rule::FileThenMachine),
    ("napi_defer_hard_irqs", Rule::FileThenMachine),
    ("queues/rx-0/rps_cpus", Rule::FileThenMachine),
    ("queues/rx-0/rps_flow_cnt", Rule::FileThenMachine),
    ("queues/tx-0/tx_maxrate", Rule::FileThenMachine),
    ("tx_queue_len", Rule::FileThenMachine),
];

/// Files that may be written, where the kernel says that there is nothing before it asks who it is: what netdevs with
/// one queue and no carrier of their own have not, and how devices save power.
pub const NOTHING_THERE: [&str; 5] = ["carrier", "xps_cpus", "xps_rxqs", "control", "autosuspend_delay_ms"];

fn netdev_file_rows() -> Vec<Row> {
    let netdevs = [("a card's netdev: ", UPLINK), ("a host's netdev: ", HOST)];
    let rows = netdevs.into_iter().flat_map(|(what, netdev)| {
        NETDEV_FILES.into_iter().map(move |(file, rule)| {
            let source = match rule {
                Rule::FileThenMachine => "`net/core/net-sysfs.c`: the file's mode, then `capable(CAP_NET_ADMIN)`",
                _ => "`net/core/net-sysfs.c`: the file's mode, then `ns_capable(net->user_ns)`",
            };
            let attempt = Attempt::WriteBack(netdev, file);
            let row = Row::new("files of netdevs", &format!("`{file}`"), source, rule, attempt);
            Row { alike: what, ..row.change(Change::None).outside() }
        })
    });
    rows.collect()
}

fn psample_rows() -> Vec<Row> {
    const PACKETS: &str =
        "`net/psample/psample.c`: `packets` is marked `GENL_MCAST_CAP_NET_ADMIN`, in Linux 6.7 and later";
    const CONFIG: &str = "`net/psample/psample.c`: `config` is not marked";
    let row = |title, source, rule, group| {
        Row::new("psample", title, source, rule, Attempt::Psample(group)).change(Change::None)
    };
    vec![
        row("joining `packets`", PACKETS, Rule::Network, "packets"),
        row("joining `config`", CONFIG, Rule::Anyone, "config"),
    ]
}

fn module_rows() -> Vec<Row> {
    use Step::Card;
    const SOURCE: &str = "`kernel/module/main.c`: `may_init_module`, `delete_module`: `capable(CAP_SYS_MODULE)`";
    let row = |title, attempt| Row::new("modules", title, SOURCE, Rule::Module, attempt);
    vec![
        row("`delete_module`", Attempt::DeleteModule).undo(&[Card("modprobe mlx5_ib")]),
        row("`init_module`", Attempt::InitModule)
            .setup(&[Card("modprobe -r mlx5_ib")])
            .undo(&[Card("modprobe mlx5_ib")]),
        row("`finit_module`", Attempt::FinitModule)
            .setup(&[Card("modprobe -r mlx5_ib")])
            .undo(&[Card("modprobe mlx5_ib")]),
    ]
}
