//! The rtnetlink requests, one function each, and what is read back.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use eswitch::MacAddr;
use netlink::{Attribute, Builder, Errno, Flags, Message, attributes, errno_of, find, u32_at};

use crate::layout::DOOMED;
use crate::socket::{Batch, Socket};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETNSID: u16 = 90;
const RTM_NEWLINKPROP: u16 = 108;

/// Made, and not there yet.
const NEW: Flags = Flags::CREATE.union(Flags::EXCL);
/// Made beside what is there.
const MORE: Flags = NEW.union(Flags::APPEND);
const NONE: Flags = Flags::empty();

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

/// `struct ifinfomsg`: of a netdev by its number, and up or down if that is to change.
fn ifinfo(index: u32, up: Option<bool>) -> [u8; IFINFOMSG] {
    let (flags, change) = match up {
        Some(true) => (IFF_UP, IFF_UP),
        Some(false) => (0, IFF_UP),
        None => (0, 0),
    };
    let mut header = [0; IFINFOMSG];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// Bytes of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;

/// A pair, both ends down. One queue an end: with one per processor it takes twice as long, and a
/// switch has no use for them.
pub(crate) fn pair(batch: &mut Batch, index: u32, name: &str, group: u32, outer: &Outer<'_>) {
    const VETH_INFO_PEER: u16 = 1;
    batch.push(RTM_NEWLINK, NEW, |to| {
        to.raw(&ifinfo(index, Some(false))).text(IFLA_IFNAME, name).u32(IFLA_GROUP, group).u32(IFLA_MTU, CARD_MTU);
        one_queue(to);
        linkinfo(to, "veth", |data| {
            data.nest(VETH_INFO_PEER, |peer| {
                // Up is not for us to say: the kernel refuses it here, and its user does it.
                peer.raw(&ifinfo(outer.place.err().unwrap_or(0), Some(false)));
                peer.text(IFLA_IFNAME, outer.name).u32(IFLA_MTU, outer.mtu);
                one_queue(peer);
                if let Some(mac) = outer.mac {
                    peer.put(IFLA_ADDRESS, &mac.0);
                }
                if let Ok(netns) = outer.place {
                    peer.u32(IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
                }
            });
        });
    });
}

fn one_queue(to: &mut Builder) {
    to.u32(IFLA_NUM_TX_QUEUES, 1).u32(IFLA_NUM_RX_QUEUES, 1);
}

/// What a netdev is, and what there is to say of one of its kind.
fn linkinfo(to: &mut Builder, kind: &str, data: impl FnOnce(&mut Builder)) {
    to.nest(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, kind).nest(IFLA_INFO_DATA, data);
    });
}

/// A bridge. It does not snoop: an E-Switch floods what it has not learnt.
pub(crate) fn bridge(batch: &mut Batch, index: u32, name: &str, up: bool) {
    const IFLA_BR_MCAST_SNOOPING: u16 = 23;
    batch.push(RTM_NEWLINK, NEW, |to| {
        to.raw(&ifinfo(index, Some(up))).text(IFLA_IFNAME, name);
        linkinfo(to, "bridge", |data| {
            data.u8(IFLA_BR_MCAST_SNOOPING, 0);
        });
    });
}

/// A bond, down or up.
pub(crate) fn bond(batch: &mut Batch, index: u32, name: &str, mode: u8, up: bool) {
    const IFLA_BOND_MIIMON: u16 = 3;
    /// How often a bond looks at its ports' carrier, in milliseconds. Left alone, some modes never do.
    const MIIMON: u32 = 100;
    batch.push(RTM_NEWLINK, NEW, |to| {
        to.raw(&ifinfo(index, Some(up))).text(IFLA_IFNAME, name);
        linkinfo(to, "bond", |data| {
            data.u8(IFLA_BOND_MODE, mode).u32(IFLA_BOND_MIIMON, MIIMON);
        });
    });
}

pub(crate) const IFLA_BOND_MODE: u16 = 1;
pub(crate) const IFLA_BOND_ACTIVE_SLAVE: u16 = 2;

/// Changes one thing about a bond.
pub(crate) fn change_bond(batch: &mut Batch, index: u32, what: u16, value: &[u8]) {
    batch.push(RTM_NEWLINK, NONE, |to| {
        linkinfo(to.raw(&ifinfo(index, None)), "bond", |data| {
            data.put(what, value);
        });
    });
}

/// A netdev that leads nowhere.
pub(crate) fn dummy(batch: &mut Batch, name: &str) {
    batch.push(RTM_NEWLINK, NEW, |to| {
        to.raw(&ifinfo(0, None)).text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "dummy");
        });
    });
}

/// Deletes one netdev.
pub(crate) fn delete(batch: &mut Batch, index: u32) {
    batch.push(RTM_DELLINK, NONE, |to| {
        to.raw(&ifinfo(index, None));
    });
}

fn set(batch: &mut Batch, index: u32, up: Option<bool>, what: impl FnOnce(&mut Builder)) {
    batch.push(RTM_SETLINK, NONE, |to| what(to.raw(&ifinfo(index, up))));
}

fn set_u32(batch: &mut Batch, index: u32, up: Option<bool>, kind: u16, value: u32) {
    set(batch, index, up, |to| {
        to.u32(kind, value);
    });
}

/// Up or down.
pub(crate) fn set_up(batch: &mut Batch, index: u32, up: bool) {
    set(batch, index, Some(up), |_| ());
}

/// Into another netdev, or with 0 out of the one it is in.
pub(crate) fn set_master(batch: &mut Batch, index: u32, master: u32) {
    set_u32(batch, index, None, IFLA_MASTER, master);
}

/// Onto a bridge, and up.
pub(crate) fn join_bridge(batch: &mut Batch, index: u32, bridge: u32) {
    set_u32(batch, index, Some(true), IFLA_MASTER, bridge);
}

/// Another MAC address.
pub(crate) fn set_mac(batch: &mut Batch, index: u32, mac: MacAddr) {
    set(batch, index, None, |to| {
        to.put(IFLA_ADDRESS, &mac.0);
    });
}

/// Another MTU.
pub(crate) fn set_mtu(batch: &mut Batch, index: u32, mtu: u32) {
    set_u32(batch, index, None, IFLA_MTU, mtu);
}

/// To another namespace.
pub(crate) fn move_to(batch: &mut Batch, index: u32, netns: &File) {
    set_u32(batch, index, None, IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
}

/// Into a group.
pub(crate) fn set_group(batch: &mut Batch, index: u32, group: u32) {
    set_u32(batch, index, None, IFLA_GROUP, group);
}

/// Marks for [`delete_group`].
pub(crate) fn doom(batch: &mut Batch, index: u32) {
    set_group(batch, index, DOOMED);
}

/// Deletes a group. One deletion costs two grace periods, however many go with it.
pub(crate) fn delete_group(batch: &mut Batch, group: u32) {
    batch.push(RTM_DELLINK, NONE, |to| {
        to.raw(&ifinfo(0, None)).u32(IFLA_GROUP, group);
    });
}

fn altname(to: &mut Builder, altname: &str) {
    to.nest(IFLA_PROP_LIST, |list| {
        list.text(IFLA_ALT_IFNAME, altname);
    });
}

/// Gives a netdev, by its name, another name to be known by.
pub(crate) fn add_altname(batch: &mut Batch, name: &str, another: &str) {
    batch.push(RTM_NEWLINKPROP, MORE, |to| altname(to.raw(&ifinfo(0, None)).text(IFLA_IFNAME, name), another));
}

/// The same by its number.
pub(crate) fn add_altname_to(batch: &mut Batch, index: u32, another: &str) {
    batch.push(RTM_NEWLINKPROP, MORE, |to| altname(to.raw(&ifinfo(index, None)), another));
}

const TC_H_INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

/// `struct tcmsg`.
fn tcm(index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut header = [0; 20];
    for (place, number) in header[4..].chunks_mut(4).zip([index, handle, parent, info]) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
    header
}

/// Priority 1, every protocol.
fn every_frame() -> u32 {
    1 << 16 | u32::from((libc::ETH_P_ALL as u16).to_be())
}

/// A place for ties on what a device receives. On a device that is up this waits for a grace period.
pub(crate) fn ingress(batch: &mut Batch, index: u32) {
    batch.push(RTM_NEWQDISC, NEW, |to| {
        to.raw(&tcm(index, INGRESS_HANDLE, TC_H_INGRESS, 0)).text(TCA_KIND, "ingress");
    });
}

/// Ties a device to another: what it receives goes out of that one. It is a filter that matches all,
/// which takes every frame before a bridge sees it.
pub(crate) fn tie(batch: &mut Batch, index: u32, to: u32) {
    push_tie(batch, NEW, 0, index, to);
}

/// The first rule of the first table, which a rule gets that is given no number of its own.
const FIRST_NODE: u32 = 0x8000_0800;

fn push_tie(batch: &mut Batch, flags: Flags, handle: u32, index: u32, to_index: u32) {
    const TCA_U32_SEL: u16 = 5;
    const TCA_U32_ACT: u16 = 7;
    const TC_U32_TERMINAL: u8 = 1;
    const TCA_ACT_KIND: u16 = 1;
    const TCA_ACT_OPTIONS: u16 = 2;
    const TCA_MIRRED_PARMS: u16 = 2;
    const TC_ACT_STOLEN: u32 = 4;
    const TCA_EGRESS_REDIR: u32 = 1;
    batch.push(RTM_NEWTFILTER, flags, |to| {
        to.raw(&tcm(index, handle, INGRESS_HANDLE, every_frame())).text(TCA_KIND, "u32").nest(TCA_OPTIONS, |options| {
            options.nest(TCA_U32_ACT, |actions| {
                actions.nest(1, |action| {
                    action.text(TCA_ACT_KIND, "mirred").nest(TCA_ACT_OPTIONS, |options| {
                        // index, capab, action, refcnt, bindcnt, eaction, ifindex
                        let parms = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to_index];
                        options.put(TCA_MIRRED_PARMS, parms.map(u32::to_ne_bytes).as_flattened());
                    });
                });
            });
            let mut no_keys = [0; 16];
            no_keys[0] = TC_U32_TERMINAL;
            options.put(TCA_U32_SEL, &no_keys);
        });
    });
}

/// Ties a device that may be tied already, perhaps to what is no more: one tie takes the other's place at once.
pub(crate) fn tie_again(batch: &mut Batch, index: u32, to: u32) {
    push_tie(batch, Flags::CREATE, FIRST_NODE, index, to);
}

/// Takes the tie off a device. The place for it stays: putting it there is what is dear.
pub(crate) fn untie(batch: &mut Batch, index: u32) {
    batch.push(RTM_DELTFILTER, NONE, |to| {
        to.raw(&tcm(index, 0, INGRESS_HANDLE, every_frame()));
    });
}

fn text(attribute: &Attribute<'_>) -> String {
    String::from_utf8_lossy(attribute.string_bytes()).into_owned()
}

/// A number of four bytes; 0 if there are fewer.
pub(crate) fn number(attribute: &Attribute<'_>) -> u32 {
    attribute.leading_u32().unwrap_or(0)
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
        const IFLA_LINK: u16 = 5;
        const IFLA_LINK_NETNSID: u16 = 37;
        let (index, flags, said) = about_link(message)?;
        let mut link = Self {
            index,
            name: String::new(),
            mtu: 0,
            up: flags & IFF_UP != 0,
            carrier: flags & IFF_LOWER_UP != 0,
            group: 0,
            master: None,
            peer: None,
        };
        let (mut peer, mut netns) = (None, None);
        for attribute in attributes(said).flatten() {
            match attribute.kind {
                IFLA_IFNAME => link.name = text(&attribute),
                IFLA_MTU => link.mtu = number(&attribute),
                IFLA_GROUP => link.group = number(&attribute),
                IFLA_MASTER => link.master = Some(number(&attribute)),
                IFLA_LINK => peer = Some(number(&attribute)),
                IFLA_LINK_NETNSID => netns = Some(number(&attribute) as i32),
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
        const IFLA_INFO_SLAVE_KIND: u16 = 4;
        let (index, flags, said) = about_link(message)?;
        let mut netdev = Self { index, up: flags & IFF_UP != 0, ..Self::default() };
        for attribute in attributes(said).flatten() {
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

/// Of an `RTM_NEWLINK` or `RTM_DELLINK` the netdev's number, its flags, and the attributes.
fn about_link<'a>(message: &Message<'a>) -> Option<(u32, u32, &'a [u8])> {
    if message.header.kind != RTM_NEWLINK && message.header.kind != RTM_DELLINK {
        return None;
    }
    let said = message.after(IFINFOMSG)?;
    Some((u32_at(message.payload(), 4)?, u32_at(message.payload(), 8)?, said))
}

fn netdev_of(socket: &mut Socket, body: impl FnOnce(&mut Builder)) -> io::Result<Option<Netdev>> {
    let mut found = None;
    match socket.get(RTM_GETLINK, body, |message| found = Netdev::read(message)) {
        Err(error) if errno_of(&error) == Errno::NODEV => Ok(None),
        outcome => outcome.map(|()| found),
    }
}

/// One netdev and what it is in, if there is one of that number.
pub(crate) fn netdev(socket: &mut Socket, index: u32) -> io::Result<Option<Netdev>> {
    netdev_of(socket, |to| without_statistics(to, index))
}

/// The same by its name.
pub(crate) fn netdev_named(socket: &mut Socket, name: &str) -> io::Result<Option<Netdev>> {
    netdev_of(socket, |to| {
        without_statistics(to, 0);
        to.text(IFLA_IFNAME, name);
    })
}

/// Every netdev that is in another. Kernels that know the attribute give no others; no kernel is relied on
/// for that.
pub(crate) fn netdevs_in(socket: &mut Socket, master: u32) -> io::Result<Vec<Netdev>> {
    let ask = |to: &mut Builder| {
        without_statistics(to, 0);
        to.u32(IFLA_MASTER, master);
    };
    let all = socket.dump(RTM_GETLINK, ask, Netdev::read)?;
    Ok(all.into_iter().filter(|netdev| netdev.master == Some(master)).collect())
}

fn without_statistics(to: &mut Builder, index: u32) {
    const IFLA_EXT_MASK: u16 = 29;
    const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
    to.raw(&ifinfo(index, None)).u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
}

/// Has the kernel act on a netdev's carrier now. It does so by itself, a hundred netdevs at a time, and
/// until it has, the netdev drops what it is given; asking about a netdev makes it its turn.
pub(crate) fn settle_carrier(batch: &mut Batch, index: u32) {
    batch.push(RTM_GETLINK, NONE, |to| without_statistics(to, index));
}

/// One netdev.
pub(crate) fn link(socket: &mut Socket, index: u32) -> io::Result<Link> {
    let mut found = None;
    socket.get(RTM_GETLINK, |to| without_statistics(to, index), |message| found = Link::read(message))?;
    found.ok_or_else(|| Errno::NODEV.into())
}

/// Every netdev of a namespace.
pub(crate) fn links(socket: &mut Socket) -> io::Result<Vec<Link>> {
    socket.dump(RTM_GETLINK, |to| without_statistics(to, 0), Link::read)
}

/// The id by which the socket's namespace knows another, if it does.
pub(crate) fn netns_id(socket: &mut Socket, netns: &File) -> io::Result<Option<i32>> {
    const RTGENMSG: usize = 4;
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
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
