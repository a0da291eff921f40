//! The rtnetlink requests, one function each, and what is read back.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use eswitch::MacAddr;
use netlink_bindings::rt_link::{Ifinfomsg, PushLinkAttrs};
use netlink_bindings::tc::Tcmsg;
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};

use crate::layout::DOOMED;
use crate::netlink::{Attributes, Batch, Message, Socket, int};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETNSID: u16 = 90;
const RTM_NEWLINKPROP: u16 = 108;

const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

const IFF_UP: u32 = 1;
const IFF_LOWER_UP: u32 = 1 << 16;

/// A veth drops what is longer than the *receiver's* MTU. The card's ends take everything, so that the
/// outer ends' MTUs are all that counts.
pub(crate) const CARD_MTU: u32 = 65_535;
/// What netdevs are born with.
pub(crate) const OUTER_MTU: u32 = 1_500;

/// The outer end of a pair.
pub(crate) struct Outer<'a> {
    pub name: &'a str,
    pub mac: Option<MacAddr>,
    pub mtu: u32,
    /// The namespace it goes to, or the number under which it stays in the card.
    pub place: Result<&'a File, u32>,
}

fn ifinfo(index: u32, up: Option<bool>) -> Ifinfomsg {
    let mut header = Ifinfomsg { ifi_index: index as i32, ..Ifinfomsg::default() };
    if let Some(up) = up {
        header.ifi_flags = if up { IFF_UP } else { 0 };
        header.ifi_change = IFF_UP;
    }
    header
}

fn nested(bytes: &mut Vec<u8>, kind: u16, inside: impl FnOnce(&mut Vec<u8>)) {
    let at = push_nested_header(bytes, kind);
    inside(bytes);
    finalize_nested_header(bytes, at);
}

pub(crate) fn attribute(bytes: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    push_header(bytes, kind, payload.len() as u16);
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;

/// A pair, both ends down. One queue an end: with one per processor it takes twice as long, and a
/// switch has no use for them.
pub(crate) fn pair(batch: &mut Batch, index: u32, name: &str, group: u32, outer: &Outer<'_>) {
    const VETH_INFO_PEER: u16 = 1;
    batch.push(RTM_NEWLINK, CREATE | EXCL, |bytes| {
        bytes.extend(ifinfo(index, Some(false)).as_slice());
        PushLinkAttrs::new(&mut *bytes)
            .push_ifname_bytes(name.as_bytes())
            .push_group(group)
            .push_mtu(CARD_MTU)
            .push_num_tx_queues(1)
            .push_num_rx_queues(1);
        nested(bytes, IFLA_LINKINFO, |bytes| {
            attribute(bytes, IFLA_INFO_KIND, b"veth");
            nested(bytes, IFLA_INFO_DATA, |bytes| {
                nested(bytes, VETH_INFO_PEER, |bytes| {
                    // Up is not for us to say: the kernel refuses it here, and its user does it.
                    bytes.extend(ifinfo(outer.place.err().unwrap_or(0), Some(false)).as_slice());
                    let mut attrs = PushLinkAttrs::new(&mut *bytes)
                        .push_ifname_bytes(outer.name.as_bytes())
                        .push_mtu(outer.mtu)
                        .push_num_tx_queues(1)
                        .push_num_rx_queues(1);
                    if let Some(mac) = outer.mac {
                        attrs = attrs.push_address(&mac.0);
                    }
                    if let Ok(netns) = outer.place {
                        attrs.push_net_ns_fd(netns.as_raw_fd() as u32);
                    }
                });
            });
        });
    });
}

/// A bridge. It does not snoop: an E-Switch floods what it has not learnt.
pub(crate) fn bridge(batch: &mut Batch, index: u32, name: &str, up: bool) {
    const IFLA_BR_MCAST_SNOOPING: u16 = 23;
    batch.push(RTM_NEWLINK, CREATE | EXCL, |bytes| {
        bytes.extend(ifinfo(index, Some(up)).as_slice());
        PushLinkAttrs::new(&mut *bytes).push_ifname_bytes(name.as_bytes());
        nested(bytes, IFLA_LINKINFO, |bytes| {
            attribute(bytes, IFLA_INFO_KIND, b"bridge");
            nested(bytes, IFLA_INFO_DATA, |bytes| attribute(bytes, IFLA_BR_MCAST_SNOOPING, &[0]));
        });
    });
}

/// A bond, down or up.
pub(crate) fn bond(batch: &mut Batch, index: u32, name: &str, mode: u8, up: bool) {
    const IFLA_BOND_MIIMON: u16 = 3;
    /// How often a bond looks at its ports' carrier, in milliseconds. Left alone, some modes never do.
    const MIIMON: u32 = 100;
    batch.push(RTM_NEWLINK, CREATE | EXCL, |bytes| {
        bytes.extend(ifinfo(index, Some(up)).as_slice());
        PushLinkAttrs::new(&mut *bytes).push_ifname_bytes(name.as_bytes());
        nested(bytes, IFLA_LINKINFO, |bytes| {
            attribute(bytes, IFLA_INFO_KIND, b"bond");
            nested(bytes, IFLA_INFO_DATA, |bytes| {
                attribute(bytes, IFLA_BOND_MODE, &[mode]);
                attribute(bytes, IFLA_BOND_MIIMON, &MIIMON.to_ne_bytes());
            });
        });
    });
}

pub(crate) const IFLA_BOND_MODE: u16 = 1;
pub(crate) const IFLA_BOND_ACTIVE_SLAVE: u16 = 2;

/// Changes one thing about a bond.
pub(crate) fn change_bond(batch: &mut Batch, index: u32, what: u16, value: &[u8]) {
    batch.push(RTM_NEWLINK, 0, |bytes| {
        bytes.extend(ifinfo(index, None).as_slice());
        nested(bytes, IFLA_LINKINFO, |bytes| {
            attribute(bytes, IFLA_INFO_KIND, b"bond");
            nested(bytes, IFLA_INFO_DATA, |bytes| attribute(bytes, what, value));
        });
    });
}

/// A netdev that leads nowhere.
pub(crate) fn dummy(batch: &mut Batch, name: &str) {
    batch.push(RTM_NEWLINK, CREATE | EXCL, |bytes| {
        bytes.extend(ifinfo(0, None).as_slice());
        PushLinkAttrs::new(&mut *bytes).push_ifname_bytes(name.as_bytes());
        nested(bytes, IFLA_LINKINFO, |bytes| attribute(bytes, IFLA_INFO_KIND, b"dummy"));
    });
}

/// Into another netdev, or with 0 out of the one it is in.
pub(crate) fn set_master(batch: &mut Batch, index: u32, master: u32) {
    set(batch, index, None, |attrs| drop(attrs.push_master(master)));
}

/// Deletes one netdev.
pub(crate) fn delete(batch: &mut Batch, index: u32) {
    batch.push(RTM_DELLINK, 0, |bytes| bytes.extend(ifinfo(index, None).as_slice()));
}

fn set(batch: &mut Batch, index: u32, up: Option<bool>, attrs: impl FnOnce(PushLinkAttrs<&mut Vec<u8>>)) {
    batch.push(RTM_SETLINK, 0, |bytes| {
        bytes.extend(ifinfo(index, up).as_slice());
        attrs(PushLinkAttrs::new(bytes));
    });
}

/// Up or down.
pub(crate) fn set_up(batch: &mut Batch, index: u32, up: bool) {
    set(batch, index, Some(up), |_| ());
}

/// Onto a bridge, and up.
pub(crate) fn join_bridge(batch: &mut Batch, index: u32, bridge: u32) {
    set(batch, index, Some(true), |attrs| drop(attrs.push_master(bridge)));
}

/// Another MAC address.
pub(crate) fn set_mac(batch: &mut Batch, index: u32, mac: MacAddr) {
    set(batch, index, None, |attrs| drop(attrs.push_address(&mac.0)));
}

/// Another MTU.
pub(crate) fn set_mtu(batch: &mut Batch, index: u32, mtu: u32) {
    set(batch, index, None, |attrs| drop(attrs.push_mtu(mtu)));
}

/// To another namespace.
pub(crate) fn move_to(batch: &mut Batch, index: u32, netns: &File) {
    set(batch, index, None, |attrs| {
        drop(attrs.push_net_ns_fd(netns.as_raw_fd() as u32));
    });
}

/// Into a group.
pub(crate) fn set_group(batch: &mut Batch, index: u32, group: u32) {
    set(batch, index, None, |attrs| drop(attrs.push_group(group)));
}

/// Marks for [`delete_group`].
pub(crate) fn doom(batch: &mut Batch, index: u32) {
    set(batch, index, None, |attrs| drop(attrs.push_group(DOOMED)));
}

/// Deletes a group. One deletion costs two grace periods, however many go with it.
pub(crate) fn delete_group(batch: &mut Batch, group: u32) {
    batch.push(RTM_DELLINK, 0, |bytes| {
        bytes.extend(ifinfo(0, None).as_slice());
        PushLinkAttrs::new(bytes).push_group(group);
    });
}

/// Gives a netdev, by its name, another name to be known by.
pub(crate) fn add_altname(batch: &mut Batch, name: &str, altname: &str) {
    batch.push(RTM_NEWLINKPROP, CREATE | EXCL | APPEND, |bytes| {
        bytes.extend(ifinfo(0, None).as_slice());
        PushLinkAttrs::new(bytes)
            .push_ifname_bytes(name.as_bytes())
            .nested_prop_list()
            .push_alt_ifname_bytes(altname.as_bytes())
            .end_nested();
    });
}

/// The same by its number.
pub(crate) fn add_altname_to(batch: &mut Batch, index: u32, altname: &str) {
    batch.push(RTM_NEWLINKPROP, CREATE | EXCL | APPEND, |bytes| {
        bytes.extend(ifinfo(index, None).as_slice());
        PushLinkAttrs::new(bytes).nested_prop_list().push_alt_ifname_bytes(altname.as_bytes()).end_nested();
    });
}

const TC_H_INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

fn tcm(index: u32, handle: u32, parent: u32, info: u32) -> Tcmsg {
    Tcmsg { ifindex: index as i32, handle, parent, info, ..Tcmsg::default() }
}

/// Priority 1, every protocol.
fn every_frame() -> u32 {
    1 << 16 | u32::from((libc::ETH_P_ALL as u16).to_be())
}

/// A place for ties on what a device receives. On a device that is up this waits for a grace period.
pub(crate) fn ingress(batch: &mut Batch, index: u32) {
    batch.push(RTM_NEWQDISC, CREATE | EXCL, |bytes| {
        bytes.extend(tcm(index, INGRESS_HANDLE, TC_H_INGRESS, 0).as_slice());
        attribute(bytes, TCA_KIND, b"ingress\0");
    });
}

/// Ties a device to another: what it receives goes out of that one. It is a filter that matches all,
/// which takes every frame before a bridge sees it.
pub(crate) fn tie(batch: &mut Batch, index: u32, to: u32) {
    push_tie(batch, CREATE | EXCL, 0, index, to);
}

/// The first rule of the first table, which a rule gets that is given no number of its own.
const FIRST_NODE: u32 = 0x8000_0800;

fn push_tie(batch: &mut Batch, flags: u16, handle: u32, index: u32, to: u32) {
    const TCA_U32_SEL: u16 = 5;
    const TCA_U32_ACT: u16 = 7;
    const TC_U32_TERMINAL: u8 = 1;
    const TCA_ACT_KIND: u16 = 1;
    const TCA_ACT_OPTIONS: u16 = 2;
    const TCA_MIRRED_PARMS: u16 = 2;
    const TC_ACT_STOLEN: u32 = 4;
    const TCA_EGRESS_REDIR: u32 = 1;
    batch.push(RTM_NEWTFILTER, flags, |bytes| {
        bytes.extend(tcm(index, handle, INGRESS_HANDLE, every_frame()).as_slice());
        attribute(bytes, TCA_KIND, b"u32\0");
        nested(bytes, TCA_OPTIONS, |bytes| {
            nested(bytes, TCA_U32_ACT, |bytes| {
                nested(bytes, 1, |bytes| {
                    attribute(bytes, TCA_ACT_KIND, b"mirred\0");
                    nested(bytes, TCA_ACT_OPTIONS, |bytes| {
                        // index, capab, action, refcnt, bindcnt, eaction, ifindex
                        let parms = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to];
                        attribute(bytes, TCA_MIRRED_PARMS, &parms.map(u32::to_ne_bytes).concat());
                    });
                });
            });
            let mut no_keys = [0; 16];
            no_keys[0] = TC_U32_TERMINAL;
            attribute(bytes, TCA_U32_SEL, &no_keys);
        });
    });
}

/// Ties a device that may be tied already, perhaps to what is no more: one tie takes the other's place at once.
pub(crate) fn tie_again(batch: &mut Batch, index: u32, to: u32) {
    push_tie(batch, CREATE, FIRST_NODE, index, to);
}

/// Takes the tie off a device. The place for it stays: putting it there is what is dear.
pub(crate) fn untie(batch: &mut Batch, index: u32) {
    batch.push(RTM_DELTFILTER, 0, |bytes| {
        bytes.extend(tcm(index, 0, INGRESS_HANDLE, every_frame()).as_slice());
    });
}

const IFLA_IFNAME: u16 = 3;

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// What the kernel says about a netdev.
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
    /// The other end's number and the id of its namespace, `None` if it is this one.
    pub peer: Option<(u32, Option<i32>)>,
}

impl Link {
    /// Reads an `RTM_NEWLINK` or `RTM_DELLINK`.
    pub(crate) fn read(message: &Message<'_>) -> Option<Self> {
        const IFINFOMSG: usize = 16;
        const IFLA_MTU: u16 = 4;
        const IFLA_LINK: u16 = 5;
        const IFLA_LINK_NETNSID: u16 = 37;
        const IFLA_GROUP: u16 = 27;
        if message.kind != RTM_NEWLINK && message.kind != RTM_DELLINK {
            return None;
        }
        let header = message.body.get(..IFINFOMSG)?;
        let flags = int(&header[8..12]) as u32;
        let mut link = Self {
            index: int(&header[4..8]) as u32,
            name: String::new(),
            mtu: 0,
            up: flags & IFF_UP != 0,
            carrier: flags & IFF_LOWER_UP != 0,
            group: 0,
            master: None,
            peer: None,
        };
        let (mut peer, mut netns) = (None, None);
        for (kind, value) in Attributes(&message.body[IFINFOMSG..]) {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_MTU => link.mtu = int(value) as u32,
                IFLA_GROUP => link.group = int(value) as u32,
                IFLA_MASTER => link.master = Some(int(value) as u32),
                IFLA_LINK => peer = Some(int(value) as u32),
                IFLA_LINK_NETNSID => netns = Some(int(value)),
                _ => {}
            }
        }
        link.peer = peer.map(|peer| (peer, netns));
        Some(link)
    }
}

/// What the kernel says about a netdev that is in something, or is what others are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Netdev {
    pub index: u32,
    pub name: String,
    /// What it is in.
    pub master: Option<u32>,
    pub kind: String,
    /// The attributes of its kind.
    pub data: Vec<u8>,
    /// The kind of what it is in, if that takes note of it.
    pub slave_kind: String,
    pub up: bool,
}

impl Netdev {
    /// Reads an `RTM_NEWLINK` or `RTM_DELLINK`.
    pub(crate) fn read(message: &Message<'_>) -> Option<Self> {
        const IFINFOMSG: usize = 16;
        const IFLA_INFO_SLAVE_KIND: u16 = 4;
        if message.kind != RTM_NEWLINK && message.kind != RTM_DELLINK {
            return None;
        }
        let header = message.body.get(..IFINFOMSG)?;
        let mut netdev =
            Self { index: int(&header[4..8]) as u32, up: int(&header[8..12]) as u32 & IFF_UP != 0, ..Self::default() };
        for (kind, value) in Attributes(&message.body[IFINFOMSG..]) {
            match kind {
                IFLA_IFNAME => netdev.name = text(value),
                IFLA_MASTER => netdev.master = Some(int(value) as u32),
                IFLA_LINKINFO => {
                    for (kind, value) in Attributes(value) {
                        match kind {
                            IFLA_INFO_KIND => netdev.kind = text(value),
                            IFLA_INFO_DATA => netdev.data = value.to_vec(),
                            IFLA_INFO_SLAVE_KIND => netdev.slave_kind = text(value),
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

fn netdev_of(socket: &mut Socket, body: impl FnOnce(&mut Vec<u8>)) -> io::Result<Option<Netdev>> {
    let mut found = None;
    match socket.get(RTM_GETLINK, body, |message| found = Netdev::read(message)) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        outcome => outcome.map(|()| found),
    }
}

/// One netdev and what it is in, if there is one of that number.
pub(crate) fn netdev(socket: &mut Socket, index: u32) -> io::Result<Option<Netdev>> {
    netdev_of(socket, |bytes| without_statistics(bytes, index))
}

/// The same by its name.
pub(crate) fn netdev_named(socket: &mut Socket, name: &str) -> io::Result<Option<Netdev>> {
    netdev_of(socket, |bytes| {
        without_statistics(bytes, 0);
        PushLinkAttrs::new(bytes).push_ifname_bytes(name.as_bytes());
    })
}

/// Every netdev that is in another. Kernels that know the attribute give no others; no kernel is relied on
/// for that.
pub(crate) fn netdevs_in(socket: &mut Socket, master: u32) -> io::Result<Vec<Netdev>> {
    let ask = |bytes: &mut Vec<u8>| {
        without_statistics(bytes, 0);
        attribute(bytes, IFLA_MASTER, &master.to_ne_bytes());
    };
    let all = socket.dump(RTM_GETLINK, ask, Netdev::read)?;
    Ok(all.into_iter().filter(|netdev| netdev.master == Some(master)).collect())
}

fn without_statistics(bytes: &mut Vec<u8>, index: u32) {
    const IFLA_EXT_MASK: u16 = 29;
    const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
    bytes.extend(ifinfo(index, None).as_slice());
    attribute(bytes, IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
}

/// Has the kernel act on a netdev's carrier now. It does so by itself, a hundred netdevs at a time, and
/// until it has, the netdev drops what it is given; asking about a netdev makes it its turn.
pub(crate) fn settle_carrier(batch: &mut Batch, index: u32) {
    batch.push(RTM_GETLINK, 0, |bytes| without_statistics(bytes, index));
}

/// One netdev.
pub(crate) fn link(socket: &mut Socket, index: u32) -> io::Result<Link> {
    let mut found = None;
    socket.get(RTM_GETLINK, |bytes| without_statistics(bytes, index), |message| found = Link::read(message))?;
    found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

/// Every netdev of a namespace.
pub(crate) fn links(socket: &mut Socket) -> io::Result<Vec<Link>> {
    socket.dump(RTM_GETLINK, |bytes| without_statistics(bytes, 0), Link::read)
}

/// The id by which the socket's namespace knows another, if it does.
pub(crate) fn netns_id(socket: &mut Socket, netns: &File) -> io::Result<Option<i32>> {
    const RTGENMSG: usize = 4;
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
    let mut id = None;
    socket.get(
        RTM_GETNSID,
        |bytes| {
            bytes.extend([0; RTGENMSG]);
            attribute(bytes, NETNSA_FD, &netns.as_raw_fd().to_ne_bytes());
        },
        |message| {
            let attributes = message.body.get(RTGENMSG..).unwrap_or_default();
            id = Attributes(attributes).find(|(kind, _)| *kind == NETNSA_NSID).map(|(_, v)| int(v));
        },
    )?;
    Ok(id.filter(|id| *id >= 0))
}
