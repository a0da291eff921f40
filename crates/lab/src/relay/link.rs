//! Rewrites the kernel's RTM_NEWLINK and RTM_DELLINK of a card's netdev to what the kernel would send for hardware.
//!
//! The message gets the attributes of a physical port, function or representor, and loses those that only a veth has.

use devlink::view::{Netdev, VfInfo};
use netlink::rtnl::{
    IFINFOMSG as IFINFO, IFLA_DEVLINK_PORT, IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND, IFLA_LINK, IFLA_LINK_NETNSID,
    IFLA_LINKINFO, IFLA_NUM_VF, IFLA_PARENT_DEV_BUS_NAME, IFLA_PARENT_DEV_NAME, IFLA_PERM_ADDRESS, IFLA_PHYS_PORT_NAME,
    IFLA_PHYS_SWITCH_ID, IFLA_VFINFO_LIST,
};
use netlink::{Attribute, BuildError, Builder, Message, attributes, find};

use crate::cards::{CardNetdev, IndexedView};

const AF_UNSPEC: u8 = 0;
const DEVLINK_ATTR_BUS_NAME: u16 = 1;
const DEVLINK_ATTR_DEV_NAME: u16 = 2;
const DEVLINK_ATTR_PORT_INDEX: u16 = 3;
const RTEXT_FILTER_VF: u32 = 1;

/// What an RTM_GETLINK has requested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    /// IFLA_EXT_MASK.
    pub mask: u32,
    /// Only links of one kind are requested (IFLA_INFO_KIND); a card's netdev has none.
    pub by_kind: bool,
}

/// Whether a request names a kind of links (IFLA_INFO_KIND).
pub(super) fn names_kind(attributes: &[u8]) -> bool {
    let info = find(attributes, IFLA_LINKINFO);
    info.is_some_and(|info| find(info.value, IFLA_INFO_KIND).is_some())
}

/// The message as it is for a card's netdev. `None`: the card does not have it in its view, as it is being made or
/// deleted; then only what a netdev of hardware has not is left out.
///
/// # Errors
/// The attributes of the netdev are too long for a message.
pub(super) fn rewritten(
    message: &Message<'_>,
    netdev: Option<&CardNetdev>,
    query: Query,
) -> Result<Vec<u8>, BuildError> {
    let payload = message.payload();
    let (info, content) = payload.split_at(IFINFO.min(payload.len()));
    // Messages of other address families (AF_BRIDGE) have only the common part.
    let whole = info.first() == Some(&AF_UNSPEC);
    netlink::message(message.header, |to| {
        to.raw(info);
        attributes(content).flatten().for_each(|attribute| keep(to, &attribute, whole));
        if let (true, Some(netdev)) = (whole, netdev) {
            describe(to, &netdev.view, netdev, query);
        }
    })
}

/// Copies an attribute of the kernel's, unless a card's netdev has no such attribute, or has its own.
fn keep(to: &mut Builder, attribute: &Attribute<'_>, whole: bool) {
    match attribute.kind {
        IFLA_LINK | IFLA_LINK_NETNSID => {}
        IFLA_PHYS_SWITCH_ID..=IFLA_PHYS_PORT_NAME | IFLA_NUM_VF | IFLA_VFINFO_LIST if whole => {}
        IFLA_PARENT_DEV_NAME | IFLA_PARENT_DEV_BUS_NAME | IFLA_DEVLINK_PORT | IFLA_PERM_ADDRESS if whole => {}
        IFLA_LINKINFO if whole => without_kind(to, attribute),
        _ => {
            to.copy(attribute);
        }
    }
}

/// Copies IFLA_LINKINFO without the kind, which a netdev of hardware does not have. The attributes that a member of a
/// bridge or bond has (IFLA_INFO_SLAVE_*) stay.
fn without_kind(to: &mut Builder, info: &Attribute<'_>) {
    let of_member = || info.nested().flatten().filter(|attribute| attribute.kind >= IFLA_INFO_SLAVE_KIND);
    if of_member().next().is_some() {
        to.nest_noflag(info.raw_kind(), |nest| {
            for attribute in of_member() {
                nest.copy(&attribute);
            }
        });
    }
}

/// Adds the attributes that the card has for the netdev.
fn describe(to: &mut Builder, view: &IndexedView, netdev: &Netdev, query: Query) {
    if query.mask & RTEXT_FILTER_VF != 0 {
        to.u32(IFLA_NUM_VF, view.vfs_of(netdev.parent));
        if !netdev.vfs.is_empty() {
            // An attribute has room for some 400 VFs; of more there is no list.
            to.nest_noflag_if_it_fits(IFLA_VFINFO_LIST, |list| netdev.vfs.iter().for_each(|vf| vf_info(list, vf)));
        }
    }
    if let Some(name) = &netdev.port_name {
        to.text(IFLA_PHYS_PORT_NAME, name);
    }
    if netdev.in_switch {
        to.put(IFLA_PHYS_SWITCH_ID, &view.card.switch_id.0);
    }
    // Nothing is sent of an address that the kernel has not kept (`rtnl_fill_ifinfo`).
    if let Some(address) = netdev.permanent {
        to.put(IFLA_PERM_ADDRESS, &address);
    }
    to.text(IFLA_PARENT_DEV_NAME, &netdev.parent.to_string());
    to.text(IFLA_PARENT_DEV_BUS_NAME, netdev.parent.bus());
    if let Some(port) = &netdev.port {
        to.nest(IFLA_DEVLINK_PORT, |nest| {
            nest.text(DEVLINK_ATTR_BUS_NAME, "pci").text(DEVLINK_ATTR_DEV_NAME, &port.device.to_string());
            nest.u32(DEVLINK_ATTR_PORT_INDEX, port.index.0);
        });
    }
}

/// Adds IFLA_VF_INFO, with the attributes that mlx5 has (`rtnl_fill_vfinfo`).
fn vf_info(list: &mut Builder, vf: &VfInfo) {
    let numbers = |numbers: &[u32]| -> Vec<u8> {
        [vf.vf].iter().chain(numbers).flat_map(|number| number.to_ne_bytes()).collect()
    };
    let mut mac = numbers(&[]);
    mac.extend(vf.mac);
    mac.resize(4 + 32, 0);
    list.nest_noflag(1, |info| {
        info.put(1, &mac);
        info.put(2, &numbers(&[vf.vlan.into(), vf.qos.into()]));
        info.put(6, &numbers(&[vf.min_tx_rate, vf.max_tx_rate]));
        info.put(3, &numbers(&[vf.max_tx_rate]));
        info.put(4, &numbers(&[vf.spoofchk.into()]));
        info.put(5, &numbers(&[vf.link_state]));
        info.put(9, &numbers(&[vf.trust.into()]));
        info.nest_noflag(12, |vlans| {
            let mut vlan = numbers(&[vf.vlan.into(), vf.qos.into()]);
            vlan.extend(vf.vlan_proto.to_be_bytes());
            vlan.extend([0; 2]);
            vlans.put(1, &vlan);
        });
    });
}
