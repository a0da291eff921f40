//! The requests to rtnetlink, one function each. Those that change something are appended to a [`Batch`].

pub(crate) mod acl;
pub(crate) mod counted;
pub(crate) mod flower;
mod link;
pub(crate) mod neighbour;
pub(crate) mod rates;
mod tie;

use std::fs::File;
use std::os::fd::AsRawFd;

use eswitch::MacAddr;
use netlink::rtnl::{
    IFF_UP, IFINFOMSG, IFLA_ADDRESS, IFLA_ALT_IFNAME, IFLA_BOND_MIIMON, IFLA_BOND_MODE, IFLA_BR_MCAST_SNOOPING,
    IFLA_GROUP, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MASTER, IFLA_MTU,
    IFLA_NET_NS_FD, IFLA_NUM_RX_QUEUES, IFLA_NUM_TX_QUEUES, IFLA_PROP_LIST, IFLA_TARGET_NETNSID, IFLA_TXQLEN,
    RTM_DELLINK, RTM_NEWLINK, RTM_NEWLINKPROP, RTM_SETLINK, VETH_INFO_PEER,
};
use netlink::{Builder, Flags};

use crate::layout::{DOOMED, Inside};
use crate::socket::Batch;

pub(crate) use self::link::{
    Link, Netdev, all_counters, assign_netns_id, counters_of, link, link_in, links, netdev, netdev_named, netdevs_in,
    netns_id, netns_is_gone, number, settle_carrier,
};
pub(crate) use self::tie::{ingress, ingress_and_egress, tie, tie_again, untie};

/// It is made, and must not exist.
const NEW: Flags = Flags::CREATE.union(Flags::EXCL);
/// It is made in addition to what exists.
const MORE: Flags = NEW.union(Flags::APPEND);
const NONE: Flags = Flags::empty();

/// A veth drops what is longer than the *receiver's* MTU. The card's ends take everything, so that the
/// outer ends' MTUs are all that counts.
pub(crate) const CARD_MTU: u32 = 65_535;
/// The longest MTU of a netdev with which native XDP works without a program for fragments, as mlx5 has it
/// (`mlx5e_xdp_max_mtu` with 4 KiB pages).
const XDP_MTU: u32 = 3_498;
/// The MTU of the card's end of a netdev with no more than [`XDP_MTU`]: it takes a second VLAN tag, too. The kernel
/// refuses a native XDP program on a veth whose other end has an MTU above 3,506 with 4 KiB pages (`veth_xdp_set`).
const XDP_CARD_MTU: u32 = XDP_MTU + 4;

/// The MTU of the card's end of a netdev that has an MTU of `outer`.
pub(crate) fn card_mtu(outer: u32) -> u32 {
    if outer <= XDP_MTU { XDP_CARD_MTU } else { CARD_MTU }
}

/// The MTU that netdevs are made with.
pub(crate) const OUTER_MTU: u32 = 1_500;
/// `txqueuelen` of a DPU's representors: as many packets as mlx5's send queue has there (`mlx5e_build_rep_netdev`,
/// `MLX5E_REP_PARAMS_DEF_LOG_SQ_SIZE`).
pub(crate) const DPU_REPRESENTOR_QUEUE_LEN: u32 = 128;

/// The outer end of a pair.
pub(crate) struct Outer<'a> {
    /// The kernel replaces a `%d` in it with the first number whose name is free.
    pub name: &'a str,
    pub mac: Option<MacAddr>,
    pub mtu: u32,
    /// The namespace it is made in, or the interface number with which it stays inside the card.
    pub place: Result<&'a File, u32>,
    /// Of a netdev that is made in the namespace: what it had before, when it was in another one.
    pub before: Option<&'a Before>,
    /// How many queues it has in each direction.
    pub queues: u32,
    /// `txqueuelen`, in packets, if it is not the kernel's 1,000.
    pub tx_queue_len: Option<u32>,
}

/// What a netdev keeps when it changes its namespace, of what the request that makes a netdev can set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before {
    /// The interface number, or 0 if the kernel is to choose another.
    pub index: u32,
    pub group: u32,
}

/// `struct ifinfomsg` for the netdev of an interface number; `up`: whether it is to be up, if that is to change.
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

/// Makes a veth pair, both ends down. `mtu`: of the first end. The first end has one queue, and so has the other unless it is
/// told: with one for each processor this takes twice as long, and a switch has no use for them.
pub(crate) fn pair(batch: &mut Batch, index: u32, name: &str, group: u32, mtu: u32, outer: &Outer<'_>) {
    batch.push(RTM_NEWLINK, NEW, |to| {
        to.raw(&ifinfo(index, Some(false))).text(IFLA_IFNAME, name).u32(IFLA_GROUP, group).u32(IFLA_MTU, mtu);
        queues(to, 1);
        linkinfo(to, "veth", |data| {
            data.nest(VETH_INFO_PEER, |peer| {
                // The kernel refuses to bring it up here; the user does it.
                let index = outer.place.err().or(outer.before.map(|before| before.index)).unwrap_or(0);
                peer.raw(&ifinfo(index, Some(false)));
                peer.text(IFLA_IFNAME, outer.name).u32(IFLA_MTU, outer.mtu);
                queues(peer, outer.queues);
                if let Some(mac) = outer.mac {
                    peer.put(IFLA_ADDRESS, &mac.0);
                }
                if let Some(before) = outer.before {
                    peer.u32(IFLA_GROUP, before.group);
                }
                if let Some(len) = outer.tx_queue_len {
                    peer.u32(IFLA_TXQLEN, len);
                }
                if let Ok(netns) = outer.place {
                    peer.u32(IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
                }
            });
        });
    });
}

/// Makes a veth pair both of whose ends stay inside the card, down, for frames of any length.
pub(crate) fn inner_pair(batch: &mut Batch, near: Inside, far: Inside) {
    let outer = Outer {
        name: &far.name(),
        mac: None,
        mtu: CARD_MTU,
        place: Err(far.index()),
        before: None,
        queues: 1,
        tx_queue_len: None,
    };
    pair(batch, near.index(), &near.name(), 0, CARD_MTU, &outer);
}

fn queues(to: &mut Builder, count: u32) {
    to.u32(IFLA_NUM_TX_QUEUES, count).u32(IFLA_NUM_RX_QUEUES, count);
}

/// The kind of a netdev and the attributes of that kind.
fn linkinfo(to: &mut Builder, kind: &str, data: impl FnOnce(&mut Builder)) {
    to.nest(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, kind).nest(IFLA_INFO_DATA, data);
    });
}

/// Makes a bridge. It does not snoop multicast: an E-Switch floods what it has not learnt.
pub(crate) fn bridge(batch: &mut Batch, index: u32, name: &str, up: bool) {
    batch.push(RTM_NEWLINK, NEW, |to| {
        to.raw(&ifinfo(index, Some(up))).text(IFLA_IFNAME, name);
        linkinfo(to, "bridge", |data| {
            data.u8(IFLA_BR_MCAST_SNOOPING, 0);
        });
    });
}

/// Makes a bond, down or up.
pub(crate) fn bond(batch: &mut Batch, index: u32, name: &str, mode: u8, up: bool) {
    /// How often a bond looks at its ports' carrier, in milliseconds. By default, some modes never do.
    const MIIMON: u32 = 100;
    batch.push(RTM_NEWLINK, NEW, |to| {
        to.raw(&ifinfo(index, Some(up))).text(IFLA_IFNAME, name);
        linkinfo(to, "bond", |data| {
            data.u8(IFLA_BOND_MODE, mode).u32(IFLA_BOND_MIIMON, MIIMON);
        });
    });
}

/// Changes one attribute of a bond.
pub(crate) fn change_bond(batch: &mut Batch, index: u32, attribute: u16, value: &[u8]) {
    batch.push(RTM_NEWLINK, NONE, |to| {
        linkinfo(to.raw(&ifinfo(index, None)), "bond", |data| {
            data.put(attribute, value);
        });
    });
}

/// Makes a netdev that drops what is sent on it.
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

fn set(batch: &mut Batch, index: u32, up: Option<bool>, body: impl FnOnce(&mut Builder)) {
    batch.push(RTM_SETLINK, NONE, |to| body(to.raw(&ifinfo(index, up))));
}

fn set_u32(batch: &mut Batch, index: u32, up: Option<bool>, kind: u16, value: u32) {
    set(batch, index, up, |to| {
        to.u32(kind, value);
    });
}

/// Brings a netdev up or down.
pub(crate) fn set_up(batch: &mut Batch, index: u32, up: bool) {
    set(batch, index, Some(up), |_| ());
}

/// Puts a netdev into another one; `master` 0: takes it out of the one it is in.
pub(crate) fn set_master(batch: &mut Batch, index: u32, master: u32) {
    set_u32(batch, index, None, IFLA_MASTER, master);
}

/// Puts a netdev on a bridge, and brings it up.
pub(crate) fn join_bridge(batch: &mut Batch, index: u32, bridge: u32) {
    set_u32(batch, index, Some(true), IFLA_MASTER, bridge);
}

/// Sets the MAC address.
pub(crate) fn set_mac(batch: &mut Batch, index: u32, mac: MacAddr) {
    set(batch, index, None, |to| {
        to.put(IFLA_ADDRESS, &mac.0);
    });
}

/// Sets the MTU.
pub(crate) fn set_mtu(batch: &mut Batch, index: u32, mtu: u32) {
    set_u32(batch, index, None, IFLA_MTU, mtu);
}

/// Moves a netdev to another namespace.
pub(crate) fn move_to(batch: &mut Batch, index: u32, netns: &File) {
    set_u32(batch, index, None, IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
}

/// Moves a netdev to a namespace that the socket's own knows by an id, and gives it a name there.
pub(crate) fn move_to_id(batch: &mut Batch, index: u32, netns: i32, name: &str) {
    set(batch, index, None, |to| {
        to.u32(IFLA_TARGET_NETNSID, netns as u32).text(IFLA_IFNAME, name);
    });
}

/// Puts a netdev into a group.
pub(crate) fn set_group(batch: &mut Batch, index: u32, group: u32) {
    set_u32(batch, index, None, IFLA_GROUP, group);
}

/// Marks a netdev for [`delete_group`] of [`DOOMED`].
pub(crate) fn doom(batch: &mut Batch, index: u32) {
    set_group(batch, index, DOOMED);
}

/// Deletes all netdevs of a group. One deletion takes two grace periods, however many netdevs it deletes.
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

/// Gives an alternative name to the netdev of a name.
pub(crate) fn add_altname(batch: &mut Batch, name: &str, another: &str) {
    batch.push(RTM_NEWLINKPROP, MORE, |to| altname(to.raw(&ifinfo(0, None)).text(IFLA_IFNAME, name), another));
}

/// Sets the alias of the netdev of a name.
pub(crate) fn set_alias(batch: &mut Batch, name: &str, alias: &str) {
    set(batch, 0, None, |to| {
        to.text(IFLA_IFNAME, name).put(IFLA_IFALIAS, alias.as_bytes());
    });
}

/// Removes the alias of the netdev of an interface number.
pub(crate) fn remove_alias(batch: &mut Batch, index: u32) {
    set(batch, index, None, |to| {
        to.put(IFLA_IFALIAS, &[]);
    });
}

/// Gives an alternative name to the netdev of an interface number.
pub(crate) fn add_altname_to(batch: &mut Batch, index: u32, another: &str) {
    batch.push(RTM_NEWLINKPROP, MORE, |to| altname(to.raw(&ifinfo(index, None)), another));
}
