//! Queries for links and namespaces, and how their answers are read.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use eswitch::MacAddr;
use eswitch::card::Counters;
use netlink::rtnl::{
    IFF_LOWER_UP, IFF_UP, IFINFOMSG, IFLA_ADDRESS, IFLA_ALT_IFNAME, IFLA_EXT_MASK, IFLA_GROUP, IFLA_IFALIAS,
    IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_LINKINFO,
    IFLA_MASTER, IFLA_MTU, IFLA_NEW_NETNSID, IFLA_PROP_LIST, IFLA_STATS64, IFLA_TARGET_NETNSID, IFLA_TXQLEN, IFLA_XDP,
    IFLA_XDP_ATTACHED, NETNSA_FD, NETNSA_NSID, RTEXT_FILTER_SKIP_STATS, RTGENMSG, RTM_DELLINK, RTM_GETLINK,
    RTM_GETNSID, RTM_NEWLINK, RTM_NEWNSID, XDP_ATTACHED_DRV, XDP_ATTACHED_MULTI,
};
use netlink::{Attribute, Builder, Errno, Message, attributes, errno_of, find, u32_at};

use super::{NONE, ifinfo};
use crate::socket::{Batch, Socket};

fn text(attribute: &Attribute<'_>) -> String {
    String::from_utf8_lossy(attribute.string_bytes()).into_owned()
}

/// The number in an attribute of four bytes; 0 if it has fewer.
pub(crate) fn number(attribute: &Attribute<'_>) -> u32 {
    attribute.leading_u32().unwrap_or(0)
}

/// A netdev as the kernel reports it: where its pair's other end is.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub up: bool,
    pub carrier: bool,
    pub group: u32,
    /// The bridge it is on.
    pub master: Option<u32>,
    /// The other end's interface number, and the id of its namespace unless that is this one.
    pub peer: Option<(u32, Option<i32>)>,
    pub mac: Option<MacAddr>,
    /// `txqueuelen`, in packets.
    pub tx_queue_len: Option<u32>,
    pub alias: Option<String>,
    pub altnames: Vec<String>,
    /// It has a native XDP program.
    pub has_xdp: bool,
    /// In an `RTM_DELLINK`: the netdev was not deleted, but has left for another namespace.
    pub has_left: bool,
}

impl Link {
    /// Reads an `RTM_NEWLINK` or `RTM_DELLINK`.
    pub(crate) fn read(message: &Message<'_>) -> Option<Self> {
        let (index, flags, payload) = link_attributes(message)?;
        let mut link = Self {
            index,
            name: String::new(),
            mtu: 0,
            up: flags & IFF_UP != 0,
            carrier: flags & IFF_LOWER_UP != 0,
            group: 0,
            master: None,
            peer: None,
            mac: None,
            tx_queue_len: None,
            alias: None,
            altnames: Vec::new(),
            has_xdp: false,
            has_left: false,
        };
        let (mut peer, mut netns) = (None, None);
        for attribute in attributes(payload).flatten() {
            match attribute.kind {
                IFLA_IFNAME => link.name = text(&attribute),
                IFLA_MTU => link.mtu = number(&attribute),
                IFLA_GROUP => link.group = number(&attribute),
                IFLA_MASTER => link.master = Some(number(&attribute)),
                IFLA_LINK => peer = Some(number(&attribute)),
                IFLA_LINK_NETNSID => netns = Some(number(&attribute) as i32),
                IFLA_ADDRESS => link.mac = <[u8; 6]>::try_from(attribute.value).ok().map(MacAddr),
                IFLA_TXQLEN => link.tx_queue_len = Some(number(&attribute)),
                IFLA_IFALIAS => link.alias = Some(text(&attribute)),
                IFLA_PROP_LIST => {
                    let names = attribute.nested().flatten().filter(|name| name.kind == IFLA_ALT_IFNAME);
                    link.altnames = names.map(|name| text(&name)).collect();
                }
                IFLA_XDP => {
                    let mode = attribute.nested().flatten().find(|of| of.kind == IFLA_XDP_ATTACHED);
                    let mode = mode.and_then(|mode| mode.value.first().copied());
                    link.has_xdp = matches!(mode, Some(XDP_ATTACHED_DRV | XDP_ATTACHED_MULTI));
                }
                IFLA_NEW_NETNSID => link.has_left = true,
                _ => {}
            }
        }
        link.peer = peer.map(|peer| (peer, netns));
        Some(link)
    }
}

/// A netdev as the kernel reports it: its kind, and the bond, team or bridge that it is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Netdev {
    pub index: u32,
    pub name: String,
    /// The netdev that it is in.
    pub master: Option<u32>,
    pub kind: String,
    /// The attributes of its kind.
    pub data: Vec<u8>,
    /// The kind of the netdev that it is in, if that kind reports it.
    pub slave_kind: String,
    pub up: bool,
}

impl Netdev {
    /// Reads an `RTM_NEWLINK` or `RTM_DELLINK`.
    pub(crate) fn read(message: &Message<'_>) -> Option<Self> {
        let (index, flags, payload) = link_attributes(message)?;
        let mut netdev = Self { index, up: flags & IFF_UP != 0, ..Self::default() };
        for attribute in attributes(payload).flatten() {
            match attribute.kind {
                IFLA_IFNAME => netdev.name = text(&attribute),
                IFLA_MASTER => netdev.master = Some(number(&attribute)),
                IFLA_LINKINFO => {
                    for info in attribute.nested().flatten() {
                        match info.kind {
                            IFLA_INFO_KIND => netdev.kind = text(&info),
                            IFLA_INFO_DATA => netdev.data = info.value.to_vec(),
                            IFLA_INFO_SLAVE_KIND => netdev.slave_kind = text(&info),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Some(netdev)
    }
}

/// The interface number, the flags and the attributes of an `RTM_NEWLINK` or `RTM_DELLINK`.
fn link_attributes<'a>(message: &Message<'a>) -> Option<(u32, u32, &'a [u8])> {
    if message.header.kind != RTM_NEWLINK && message.header.kind != RTM_DELLINK {
        return None;
    }
    let attributes = message.after(IFINFOMSG)?;
    Some((u32_at(message.payload(), 4)?, u32_at(message.payload(), 8)?, attributes))
}

fn query_netdev(socket: &mut Socket, body: impl FnOnce(&mut Builder)) -> io::Result<Option<Netdev>> {
    let mut found = None;
    match socket.get(RTM_GETLINK, body, |message| found = Netdev::read(message)) {
        Err(error) if errno_of(&error) == Errno::NODEV => Ok(None),
        outcome => outcome.map(|()| found),
    }
}

/// The netdev of an interface number, if there is one.
pub(crate) fn netdev(socket: &mut Socket, index: u32) -> io::Result<Option<Netdev>> {
    query_netdev(socket, |to| without_statistics(to, index))
}

/// The netdev of a name, if there is one.
pub(crate) fn netdev_named(socket: &mut Socket, name: &str) -> io::Result<Option<Netdev>> {
    query_netdev(socket, |to| {
        without_statistics(to, 0);
        to.text(IFLA_IFNAME, name);
    })
}

/// Every netdev that is in another. Kernels that know the attribute report only those; this does not rely on it.
pub(crate) fn netdevs_in(socket: &mut Socket, master: u32) -> io::Result<Vec<Netdev>> {
    let request = |to: &mut Builder| {
        without_statistics(to, 0);
        to.u32(IFLA_MASTER, master);
    };
    let all = socket.dump(RTM_GETLINK, request, Netdev::read)?;
    Ok(all.into_iter().filter(|netdev| netdev.master == Some(master)).collect())
}

fn without_statistics(to: &mut Builder, index: u32) {
    to.raw(&ifinfo(index, None)).u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
}

/// Has the kernel act on a change of a netdev's carrier now. By itself the kernel does so for a hundred netdevs at a
/// time, and until it has, the netdev drops what it is sent; a query about the netdev makes it do so at once.
pub(crate) fn settle_carrier(batch: &mut Batch, index: u32) {
    batch.push(RTM_GETLINK, NONE, |to| without_statistics(to, index));
}

/// The link of an interface number.
///
/// # Errors
/// `NODEV`: there is none; or the kernel cannot be queried.
pub(crate) fn link(socket: &mut Socket, index: u32) -> io::Result<Link> {
    let mut found = None;
    socket.get(RTM_GETLINK, |to| without_statistics(to, index), |message| found = Link::read(message))?;
    found.ok_or_else(|| Errno::NODEV.into())
}

/// The link of an interface number in a namespace that the socket's namespace knows by an id.
///
/// # Errors
/// `NODEV`: there is none; `INVAL`: there is no such namespace any more; or the kernel cannot be queried.
pub(crate) fn link_in(socket: &mut Socket, netns: i32, index: u32) -> io::Result<Link> {
    let mut found = None;
    let body = |to: &mut Builder| {
        without_statistics(to, index);
        to.u32(IFLA_TARGET_NETNSID, netns as u32);
    };
    socket.get(RTM_GETLINK, body, |message| found = Link::read(message))?;
    found.ok_or_else(|| Errno::NODEV.into())
}

/// Every link of the socket's namespace.
pub(crate) fn links(socket: &mut Socket) -> io::Result<Vec<Link>> {
    socket.dump(RTM_GETLINK, |to| without_statistics(to, 0), Link::read)
}

/// Has the socket's namespace know another one by an id, if it does not yet.
pub(crate) fn assign_netns_id(batch: &mut Batch, netns: &File) {
    /// `NETNSA_NSID_NOT_ASSIGNED`: the kernel chooses the id.
    const ANY: u32 = u32::MAX;
    batch.push(RTM_NEWNSID, NONE, |to| {
        to.raw(&[0; RTGENMSG]).u32(NETNSA_FD, netns.as_raw_fd() as u32).u32(NETNSA_NSID, ANY);
    });
}

/// The counters of the function at the other end of a pair, from a message about the card's end: what one end has sent
/// the other has received. `None`: the message has none.
fn counters(message: &Message<'_>) -> Option<(u32, Counters)> {
    let (index, _, payload) = link_attributes(message)?;
    // `struct rtnl_link_stats64`
    let of_port = find(payload, IFLA_STATS64)?.value;
    let nth = |n: usize| Some(u64::from_ne_bytes(*of_port.get(8 * n..)?.first_chunk()?));
    let counters = Counters {
        tx_packets: nth(0)?,
        rx_packets: nth(1)?,
        tx_bytes: nth(2)?,
        rx_bytes: nth(3)?,
        tx_dropped: nth(6)?,
        rx_dropped: nth(7)?,
    };
    Some((index, counters))
}

/// The counters of the functions at the other ends of all pairs, by the interface numbers of the card's ends.
pub(crate) fn all_counters(socket: &mut Socket) -> io::Result<Vec<(u32, Counters)>> {
    let request = |to: &mut Builder| {
        to.raw(&ifinfo(0, None));
    };
    socket.dump(RTM_GETLINK, request, counters)
}

/// The counters of the function at the other end of a pair.
///
/// # Errors
/// There is no such pair, or the kernel cannot be queried.
pub(crate) fn counters_of(socket: &mut Socket, index: u32) -> io::Result<Counters> {
    let mut found = None;
    let request = |to: &mut Builder| {
        to.raw(&ifinfo(index, None));
    };
    socket.get(RTM_GETLINK, request, |message| found = counters(message))?;
    found.map(|(_, counters)| counters).ok_or_else(|| Errno::NODEV.into())
}

/// The id by which the socket's namespace knows another one, if it has one.
pub(crate) fn netns_id(socket: &mut Socket, netns: &File) -> io::Result<Option<i32>> {
    let mut id = None;
    socket.get(
        RTM_GETNSID,
        |to| {
            to.raw(&[0; RTGENMSG]).u32(NETNSA_FD, netns.as_raw_fd() as u32);
        },
        |message| {
            let nsid = find(message.after(RTGENMSG).unwrap_or_default(), NETNSA_NSID);
            id = nsid.map(|nsid| number(&nsid) as i32);
        },
    )?;
    Ok(id.filter(|id| *id >= 0))
}

/// Whether the socket's namespace knows no other one by an id: it has died, and its netdevs are being deleted. `false` if
/// the kernel cannot be queried.
pub(crate) fn netns_is_gone(socket: &mut Socket, id: i32) -> bool {
    let body = |to: &mut Builder| {
        to.raw(&[0; RTGENMSG]).u32(NETNSA_NSID, id as u32);
    };
    socket.get(RTM_GETNSID, body, |_| {}).is_err_and(|error| errno_of(&error) == Errno::NOENT)
}
