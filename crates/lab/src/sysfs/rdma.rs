//! RDMA devices: `/sys/class/infiniband/NAME`, with ports and their GIDs.
//!
//! A port is of RoCE: its GID is made from the address of its netdev, and is listed once for version 1 and once for
//! version 2.

use std::collections::HashMap;

use devlink::view;
use netlink::Errno;

use super::bus::AddedCard;
use super::net;
use super::text::{event, line, number};
use super::tree::{Act, Attribute, AttributeContext, EMPTY, Names, Subject, Template, Text, Tree};

static DEVICE: Template = Template::of(&[&[
    Attribute::ro("board_id", |s| line(&s.card()?.profile.board)),
    Attribute::ro("fw_ver", |s| line(&s.card()?.profile.firmware)),
    Attribute::ro("hca_type", |s| line(format_args!("MT{}", s.card()?.profile.device))),
    Attribute::ro("hw_rev", |s| line(format_args!("{:x}", s.card()?.profile.revision))),
    Attribute::rw("node_desc", node_desc, |s, _| match s.dir.subject {
        Subject::Rdma(card, _) => Ok(Act::DescribeRdma { card, index: s.rdma()?.index }),
        _ => Err(Errno::NODEV),
    }),
    Attribute::ro("node_guid", |s| line(guid(s.rdma()?.node_guid))),
    Attribute::ro("node_type", |_| line("1: CA")),
    Attribute::ro("sys_image_guid", |s| line(guid(sys_image_guid(s)?))),
    Attribute::rw("uevent", |s| Ok(format!("NAME={}\n", s.name()).into_bytes()), |_, text| event(text)),
]]);

static PORT: Template = Template {
    subdirs: &[
        Template { name: "gids", ..Template::of(&[&[Attribute::ro("0", gid), Attribute::ro("1", gid)]]) },
        Template { name: "gid_attrs", subdirs: GID_ATTRIBUTES, ..Template::of(&[]) },
        Template { name: "counters", ..Template::of(&[COUNTERS]) },
        Template { name: "hw_counters", ..Template::of(&[HW_COUNTERS]) },
        Template { name: "pkeys", ..Template::of(&[&[Attribute::ro("0", |_| line("0xffff"))]]) },
    ],
    ..Template::of(&[&[
        Attribute::ro("cap_mask", |_| line("0x04010000")),
        Attribute::ro("lid", |_| line("0x0")),
        Attribute::ro("lid_mask_count", |_| line(0)),
        Attribute::ro("link_layer", |_| line("Ethernet")),
        Attribute::ro("phys_state", |s| line(if is_up(s)? { "5: LinkUp" } else { "3: Disabled" })),
        Attribute::ro("rate", |s| line(rate(s.card()?.profile.speed))),
        Attribute::ro("sm_lid", |_| line("0x0")),
        Attribute::ro("sm_sl", |_| line(0)),
        Attribute::ro("state", |s| line(if is_up(s)? { "4: ACTIVE" } else { "1: DOWN" })),
    ]])
};

/// A counter of RDMA traffic. There is none on a card without a data path for RDMA.
const fn counter(name: &'static str) -> Attribute {
    Attribute::ro(name, |_| line(0))
}

/// The counters of a port (`port_attr_counters_ext`, `drivers/infiniband/core/sysfs.c`).
const COUNTERS: &[Attribute] = &[
    counter("VL15_dropped"),
    counter("excessive_buffer_overrun_errors"),
    counter("link_downed"),
    counter("link_error_recovery"),
    counter("local_link_integrity_errors"),
    counter("multicast_rcv_packets"),
    counter("multicast_xmit_packets"),
    counter("port_rcv_constraint_errors"),
    counter("port_rcv_data"),
    counter("port_rcv_errors"),
    counter("port_rcv_packets"),
    counter("port_rcv_remote_physical_errors"),
    counter("port_rcv_switch_relay_errors"),
    counter("port_xmit_constraint_errors"),
    counter("port_xmit_data"),
    counter("port_xmit_discards"),
    counter("port_xmit_packets"),
    counter("port_xmit_wait"),
    counter("symbol_error"),
    counter("unicast_rcv_packets"),
    counter("unicast_xmit_packets"),
];

/// The counters of the driver (`basic_q_cnts` and what follows it, `drivers/infiniband/hw/mlx5/counters.c`), and for how
/// long the kernel keeps them, in milliseconds (`rdma_alloc_hw_stats_struct`).
const HW_COUNTERS: &[Attribute] = &[
    counter("duplicate_request"),
    counter("implied_nak_seq_err"),
    Attribute::rw("lifespan", |_| line(10), |_, text| number(text).map(|_| Act::Nothing)),
    counter("local_ack_timeout_err"),
    counter("np_cnp_sent"),
    counter("np_ecn_marked_roce_packets"),
    counter("out_of_buffer"),
    counter("out_of_sequence"),
    counter("packet_seq_err"),
    counter("req_cqe_error"),
    counter("req_cqe_flush_error"),
    counter("req_remote_access_errors"),
    counter("req_remote_invalid_request"),
    counter("resp_cqe_error"),
    counter("resp_cqe_flush_error"),
    counter("resp_local_length_error"),
    counter("resp_remote_access_errors"),
    counter("rnr_nak_retry_err"),
    counter("roce_adp_retrans"),
    counter("roce_adp_retrans_to"),
    counter("roce_slow_restart"),
    counter("roce_slow_restart_cnps"),
    counter("roce_slow_restart_trans"),
    counter("rp_cnp_handled"),
    counter("rp_cnp_ignored"),
    counter("rx_atomic_requests"),
    counter("rx_dct_connect"),
    counter("rx_icrc_encapsulated"),
    counter("rx_read_requests"),
    counter("rx_write_requests"),
];

/// The rate of a port of a speed in Mb/s, in the words of the kernel's `rate_show`. The width and the speed of its
/// lanes are those of `translate_eth_ext_proto_oper`.
fn rate(speed: u32) -> String {
    let lanes = match speed {
        10_000 => "1X QDR",
        25_000 => "1X EDR",
        40_000 => "4X QDR",
        50_000 => "1X HDR",
        200_000 => "4X HDR",
        _ => "4X EDR",
    };
    format!("{} Gb/sec ({lanes})", speed / 1_000)
}

const GID_ATTRIBUTES: &[Template] = &[
    Template { name: "ndevs", ..Template::of(&[&[Attribute::ro("0", ndev), Attribute::ro("1", ndev)]]) },
    Template {
        name: "types",
        ..Template::of(&[&[
            Attribute::ro("0", |s| address(s).and_then(|_| line("IB/RoCE v1"))),
            Attribute::ro("1", |s| address(s).and_then(|_| line("RoCE v2"))),
        ]])
    },
];

/// The description that a program has written (`node_desc_show`); until then, the name.
fn node_desc(context: &AttributeContext<'_>) -> Text {
    let Some(written) = &context.rdma()?.node_desc else { return line(context.name()) };
    let mut text: Vec<u8> = written.iter().copied().take_while(|byte| *byte != 0).collect();
    text.push(b'\n');
    Ok(text)
}

fn guid(guid: u64) -> String {
    format!("{:04x}:{:04x}:{:04x}:{:04x}", guid >> 48, guid >> 32 & 0xffff, guid >> 16 & 0xffff, guid & 0xffff)
}

/// The system image GUID: all devices of a card have that of the first.
fn sys_image_guid(context: &AttributeContext<'_>) -> Result<u64, Errno> {
    Ok(context.card()?.rdma.first().unwrap_or(context.rdma()?).node_guid)
}

fn netdev_file(context: &AttributeContext<'_>, file: &str) -> Result<Option<String>, Errno> {
    let Some(netdev) = &context.dir.netdev else { return Ok(None) };
    let text = context.kernel.read(&format!("{}/{file}", net::kernels(netdev)));
    Ok(text.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
}

/// A port is up if its netdev is, as far as this network namespace shows.
fn is_up(context: &AttributeContext<'_>) -> Result<bool, Errno> {
    Ok(netdev_file(context, "operstate")?.is_some_and(|state| state == "up"))
}

/// The MAC address from which a port's GIDs are made. EINVAL if it has none: the attributes of an empty GID cannot be
/// read.
fn address(context: &AttributeContext<'_>) -> Result<[u8; 6], Errno> {
    if !context.rdma_port()?.roce {
        return Err(Errno::INVAL);
    }
    let text = netdev_file(context, "address")?.ok_or(Errno::INVAL)?;
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let mut address = [0; 6];
    for place in &mut address {
        *place = bytes.next().and_then(Result::ok).ok_or(Errno::INVAL)?;
    }
    Ok(address)
}

fn gid(context: &AttributeContext<'_>) -> Text {
    // Programs expect zeros for an empty entry.
    let Ok([a, b, c, d, e, f]) = address(context) else {
        return line("0000:0000:0000:0000:0000:0000:0000:0000");
    };
    let a = a ^ 2;
    line(format_args!("fe80:0000:0000:0000:{a:02x}{b:02x}:{c:02x}ff:fe{d:02x}:{e:02x}{f:02x}"))
}

fn ndev(context: &AttributeContext<'_>) -> Text {
    address(context)?;
    line(context.dir.netdev.as_ref().ok_or(Errno::INVAL)?)
}

/// The names that a card's netdevs have here, by those that the view has for them.
fn netdevs_here<'a>(added: &AddedCard<'a>, names: &Names<'_>) -> HashMap<&'a str, Box<str>> {
    let card: &'a view::Card = added.card;
    // The last name at home of a netdev that is elsewhere may be that of another one by now, which comes last.
    let elsewhere = card.netdevs.iter().filter(|netdev| netdev.elsewhere);
    let all = elsewhere.chain(card.netdevs.iter().filter(|netdev| !netdev.elsewhere));
    all.filter_map(|netdev| Some((&*netdev.name, (names.netdev)(added.at, netdev)?.into()))).collect()
}

/// Adds a card's RDMA devices to the tree.
pub(super) fn add(tree: &mut Tree, added: &AddedCard<'_>, names: &Names<'_>) {
    let netdevs = netdevs_here(added, names);
    for (at, rdma) in added.card.rdma.iter().enumerate() {
        let Some(device) = added.device(rdma.parent) else { continue };
        let above = format!("{device}/infiniband");
        tree.make(&above, &EMPTY, Subject::Nothing);
        let Some(name) = (names.rdma)(added.at, rdma) else { continue };
        let path = format!("{above}/{name}");
        tree.make(&path, &DEVICE, Subject::Rdma(added.at, at));
        tree.link("class/infiniband", &name, &path);
        tree.link(&path, "device", device);
        tree.link(&path, "subsystem", "class/infiniband");
        let ports = format!("{path}/ports");
        tree.make(&ports, &EMPTY, Subject::Nothing);
        for (port_at, port) in rdma.ports.iter().enumerate() {
            let subject = Subject::RdmaPort(added.at, at, port_at);
            let dir = tree.make(&format!("{ports}/{}", port.number), &PORT, subject);
            dir.netdev = port.netdev.as_deref().and_then(|name| netdevs.get(name)).cloned();
        }
    }
}
