//! Rewrites the kernel's RTM_NEWLINK and RTM_DELLINK of a card's netdev to what the kernel would send for hardware.
//!
//! The message gets the attributes of a physical port, function or representor, and loses those that only a veth has.

use std::collections::BTreeMap;

use devlink::view::{DeviceName, Netdev, Role, VfInfo};
use eswitch::PciAddress;
use eswitch::card::Counters;
use netlink::rtnl::{
    IFINFOMSG as IFINFO, IFLA_CARRIER_CHANGES, IFLA_CARRIER_DOWN_COUNT, IFLA_DEVLINK_PORT, IFLA_INFO_KIND,
    IFLA_INFO_SLAVE_KIND, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_LINKINFO, IFLA_MAX_MTU, IFLA_NETNS_IMMUTABLE, IFLA_NUM_VF,
    IFLA_PARENT_DEV_BUS_NAME, IFLA_PARENT_DEV_NAME, IFLA_PERM_ADDRESS, IFLA_PHYS_PORT_NAME, IFLA_PHYS_SWITCH_ID,
    IFLA_TSO_MAX_SIZE, IFLA_VF_BROADCAST, IFLA_VF_INFO, IFLA_VF_LINK_STATE, IFLA_VF_MAC, IFLA_VF_RATE,
    IFLA_VF_RSS_QUERY_EN, IFLA_VF_SPOOFCHK, IFLA_VF_STATS, IFLA_VF_STATS_BROADCAST, IFLA_VF_STATS_MULTICAST,
    IFLA_VF_STATS_RX_BYTES, IFLA_VF_STATS_RX_DROPPED, IFLA_VF_STATS_RX_PACKETS, IFLA_VF_STATS_TX_BYTES,
    IFLA_VF_STATS_TX_DROPPED, IFLA_VF_STATS_TX_PACKETS, IFLA_VF_TRUST, IFLA_VF_TX_RATE, IFLA_VF_VLAN,
    IFLA_VF_VLAN_INFO, IFLA_VF_VLAN_LIST, IFLA_VFINFO_LIST, RTEXT_FILTER_SKIP_STATS, RTEXT_FILTER_VF,
};
use netlink::{Attribute, BuildError, Builder, Message, attributes, find};

use crate::cards::{CardNetdev, IndexedView};
use crate::limits;

const AF_UNSPEC: u8 = 0;
const DEVLINK_ATTR_BUS_NAME: u16 = 1;
const DEVLINK_ATTR_DEV_NAME: u16 = 2;
const DEVLINK_ATTR_PORT_INDEX: u16 = 3;
/// The index of the one port of a VF's or SF's devlink instance, as the card's server numbers it.
const PORT_OF_FUNCTION: u32 = 1;
/// Bytes of an address in `struct ifla_vf_mac` (`netdevice.h`).
const MAX_ADDR_LEN: usize = 32;

/// What an RTM_GETLINK has requested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    /// IFLA_EXT_MASK.
    pub mask: u32,
    /// Only links of one kind are requested (IFLA_INFO_KIND); a card's netdev has none.
    pub by_kind: bool,
}

impl Query {
    /// The PF of whose VFs the answer about a netdev has statistics.
    pub fn wants_counters(self, netdev: &Netdev) -> Option<PciAddress> {
        let DeviceName::Pci(pf) = netdev.parent else { return None };
        let wanted = self.mask & (RTEXT_FILTER_VF | RTEXT_FILTER_SKIP_STATS) == RTEXT_FILTER_VF;
        (wanted && !netdev.vfs.is_empty()).then_some(pf)
    }
}

/// The counters of VFs, by number.
pub(super) type VfCounters = BTreeMap<u16, Counters>;

/// Whether a request names a kind of links (IFLA_INFO_KIND).
pub(super) fn names_kind(attributes: &[u8]) -> bool {
    let info = find(attributes, IFLA_LINKINFO);
    info.is_some_and(|info| find(info.value, IFLA_INFO_KIND).is_some())
}

/// The message as it is for a card's netdev. `None`: the card does not have it in its view, as it is being made or
/// deleted; then only what a netdev of hardware has not is left out. `counters`: those of its VFs, if the query
/// [wants](Query::wants_counters) them.
///
/// # Errors
/// The attributes of the netdev are too long for a message.
pub(super) fn rewritten(
    message: &Message<'_>,
    netdev: Option<&CardNetdev>,
    query: Query,
    counters: Option<&VfCounters>,
) -> Result<Vec<u8>, BuildError> {
    let payload = message.payload();
    let (info, content) = payload.split_at(IFINFO.min(payload.len()));
    // Messages of other address families (AF_BRIDGE) have only the common part.
    let whole = info.first() == Some(&AF_UNSPEC);
    netlink::message(message.header, |to| {
        to.raw(info);
        for attribute in attributes(content).flatten() {
            let is_changed = whole && netdev.is_some_and(|netdev| of_mlx5(to, &attribute, netdev));
            if !is_changed {
                keep(to, &attribute, whole);
            }
        }
        if let (true, Some(netdev)) = (whole, netdev) {
            describe(to, &netdev.view, netdev, query, counters);
        }
    })
}

/// Puts an attribute whose value the kernel has from the veth, with that of mlx5; returns whether it did.
fn of_mlx5(to: &mut Builder, attribute: &Attribute<'_>, netdev: &Netdev) -> bool {
    match attribute.kind {
        IFLA_MAX_MTU => to.u32(IFLA_MAX_MTU, limits::MAX_MTU),
        IFLA_TSO_MAX_SIZE => to.u32(IFLA_TSO_MAX_SIZE, limits::tso_max_size(netdev)),
        IFLA_NETNS_IMMUTABLE => to.u8(IFLA_NETNS_IMMUTABLE, limits::is_netns_immutable(netdev).into()),
        // `veth_newlink` takes the carrier away after the netdev is registered, which counts; `mlx5e_create_netdev` before.
        IFLA_CARRIER_CHANGES | IFLA_CARRIER_DOWN_COUNT => {
            to.u32(attribute.kind, attribute.u32().unwrap_or_default().saturating_sub(1))
        }
        _ => return false,
    };
    true
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
fn describe(to: &mut Builder, view: &IndexedView, netdev: &Netdev, query: Query, counters: Option<&VfCounters>) {
    if query.mask & RTEXT_FILTER_VF != 0 {
        to.u32(IFLA_NUM_VF, view.vfs_of(netdev.parent));
        add_vfs(to, netdev, counters);
    }
    if let Some(name) = &netdev.port_name {
        to.text(IFLA_PHYS_PORT_NAME, name);
    }
    if netdev.has_switch_id() {
        to.put(IFLA_PHYS_SWITCH_ID, &view.card.switch_id.0);
    }
    // Nothing is sent of an address that the kernel has not kept (`rtnl_fill_ifinfo`).
    if let Some(address) = netdev.permanent {
        to.put(IFLA_PERM_ADDRESS, &address);
    }
    to.text(IFLA_PARENT_DEV_NAME, &netdev.parent.to_string());
    to.text(IFLA_PARENT_DEV_BUS_NAME, netdev.parent.bus());
    let (device, index) = match (&netdev.port, netdev.role) {
        (Some(port), _) => (DeviceName::Pci(port.device), port.index.0),
        // The driver registers the port of each function (`mlx5e_devlink_port_register`).
        (None, Role::Vf | Role::Sf) => (netdev.parent, PORT_OF_FUNCTION),
        (None, Role::Pf | Role::Representor) => return,
    };
    to.nest(IFLA_DEVLINK_PORT, |nest| {
        nest.text(DEVLINK_ATTR_BUS_NAME, device.bus()).text(DEVLINK_ATTR_DEV_NAME, &device.to_string());
        nest.u32(DEVLINK_ATTR_PORT_INDEX, index);
    });
}

/// Adds IFLA_VFINFO_LIST, if the netdev has VFs. An attribute has room for some 220 VFs with statistics, and for some 330
/// without: a list that is too long has none, and one that is too long even so is left out.
fn add_vfs(to: &mut Builder, netdev: &Netdev, counters: Option<&VfCounters>) {
    if netdev.vfs.is_empty() {
        return;
    }
    let mut fits = |counters| {
        let all = |list: &mut Builder| netdev.vfs.iter().for_each(|vf| vf_info(list, vf, counters));
        to.nest_noflag_if_it_fits(IFLA_VFINFO_LIST, all)
    };
    let _ = fits(counters) || (counters.is_some() && fits(None));
}

/// Adds IFLA_VF_INFO, with the attributes that mlx5 has (`rtnl_fill_vfinfo`, `mlx5_eswitch_get_vport_config`).
fn vf_info(list: &mut Builder, vf: &VfInfo, counters: Option<&VfCounters>) {
    let numbers = |numbers: &[u32]| -> Vec<u8> {
        [vf.vf].iter().chain(numbers).flat_map(|number| number.to_ne_bytes()).collect()
    };
    let mut mac = numbers(&[]);
    mac.extend(vf.mac);
    mac.resize(4 + MAX_ADDR_LEN, 0);
    let mut broadcast = vec![0xff; vf.mac.len()];
    broadcast.resize(MAX_ADDR_LEN, 0);
    list.nest_noflag(IFLA_VF_INFO, |info| {
        info.put(IFLA_VF_MAC, &mac);
        // That of the PF's netdev.
        info.put(IFLA_VF_BROADCAST, &broadcast);
        info.put(IFLA_VF_VLAN, &numbers(&[vf.vlan.into(), vf.qos.into()]));
        info.put(IFLA_VF_RATE, &numbers(&[vf.min_tx_rate, vf.max_tx_rate]));
        info.put(IFLA_VF_TX_RATE, &numbers(&[vf.max_tx_rate]));
        info.put(IFLA_VF_SPOOFCHK, &numbers(&[vf.spoofchk.into()]));
        info.put(IFLA_VF_LINK_STATE, &numbers(&[vf.link_state]));
        // mlx5 clears all that it does not report.
        info.put(IFLA_VF_RSS_QUERY_EN, &numbers(&[0]));
        info.put(IFLA_VF_TRUST, &numbers(&[vf.trust.into()]));
        info.nest_noflag(IFLA_VF_VLAN_LIST, |vlans| {
            let mut vlan = numbers(&[vf.vlan.into(), vf.qos.into()]);
            // mlx5 reports no protocol.
            vlan.extend([0; 4]);
            vlans.put(IFLA_VF_VLAN_INFO, &vlan);
        });
        if let Some(counters) = counters {
            let counters = u16::try_from(vf.vf).ok().and_then(|vf| counters.get(&vf)).copied().unwrap_or_default();
            info.nest_noflag(IFLA_VF_STATS, |stats| vf_stats(stats, &counters));
        }
    });
}

/// Adds the attributes of IFLA_VF_STATS. The kernel pads them to eight bytes on processors that need it, of which none
/// runs a lab.
fn vf_stats(stats: &mut Builder, counters: &Counters) {
    stats.u64(IFLA_VF_STATS_RX_PACKETS, counters.rx_packets);
    stats.u64(IFLA_VF_STATS_TX_PACKETS, counters.tx_packets);
    stats.u64(IFLA_VF_STATS_RX_BYTES, counters.rx_bytes);
    stats.u64(IFLA_VF_STATS_TX_BYTES, counters.tx_bytes);
    // The kernel does not count these for a pair.
    stats.u64(IFLA_VF_STATS_BROADCAST, 0);
    stats.u64(IFLA_VF_STATS_MULTICAST, 0);
    stats.u64(IFLA_VF_STATS_RX_DROPPED, counters.rx_dropped);
    stats.u64(IFLA_VF_STATS_TX_DROPPED, counters.tx_dropped);
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink::row;

    const PF: PciAddress = PciAddress { domain: 0, bus: 8, device: 0, function: 0 };

    /// The netdev of a PF with so many VFs.
    fn netdev(vfs: u32) -> Netdev {
        let vf = |vf| VfInfo {
            vf,
            mac: [2, 0, 0, 0, 0, 1],
            vlan: 5,
            qos: 3,
            vlan_proto: 0x8100,
            min_tx_rate: 10,
            max_tx_rate: 100,
            spoofchk: true,
            trust: false,
            link_state: 1,
            guids: (1, 2),
        };
        Netdev {
            elsewhere: false,
            peer: None,
            permanent: None,
            name: "enp8s0f0np0".to_owned(),
            role: Role::Pf,
            parent: DeviceName::Pci(PF),
            port_name: None,
            in_switch: false,
            dev_port: 0,
            vfs: (0..vfs).map(vf).collect(),
            port: None,
            driver: String::new(),
            bus_info: String::new(),
        }
    }

    #[test]
    fn statistics_are_read_only_for_a_query_that_wants_them() {
        let skip = RTEXT_FILTER_SKIP_STATS;
        for (mask, vfs, wanted) in [
            (RTEXT_FILTER_VF, 1, true),
            (RTEXT_FILTER_VF | 2, 1, true),
            (RTEXT_FILTER_VF, 0, false),
            (RTEXT_FILTER_VF | skip, 1, false),
            (skip, 1, false),
            (0, 1, false),
        ] {
            let query = Query { mask, by_kind: false };
            assert_eq!(query.wants_counters(&netdev(vfs)).is_some(), wanted, "{mask:#x}, {vfs} VFs");
        }
    }

    /// The types of the attributes in a list, and their values.
    fn in_list(list: &[u8]) -> Vec<(u16, &[u8])> {
        attributes(list).flatten().map(|attribute| (attribute.kind, attribute.value)).collect()
    }

    #[test]
    fn a_vf_has_the_attributes_of_the_kernel_in_its_order_and_statistics_if_wanted() {
        let counters =
            Counters { rx_packets: 1, rx_bytes: 2, tx_packets: 3, tx_bytes: u64::MAX, rx_dropped: 5, tx_dropped: 6 };
        let netdev = netdev(1);
        let order = [1, 13, 2, 6, 3, 4, 5, 7, 9, 12];
        for (counters, with) in [(None, &[][..]), (Some(VfCounters::from([(0, counters)])), &[IFLA_VF_STATS])] {
            let list = row(|to| vf_info(to, &netdev.vfs[0], counters.as_ref())).unwrap();
            let [(IFLA_VF_INFO, info)] = in_list(&list)[..] else { panic!("{list:?}") };
            let info = in_list(info);
            let kinds: Vec<u16> = info.iter().map(|(kind, _)| *kind).collect();
            assert_eq!(kinds, [&order[..], with].concat());
            let Some((IFLA_VF_STATS, stats)) = info.last() else { continue };
            let value = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap());
            let stats: Vec<(u16, u64)> = in_list(stats).into_iter().map(|(kind, bytes)| (kind, value(bytes))).collect();
            assert_eq!(stats, [(0, 1), (1, 3), (2, 2), (3, u64::MAX), (4, 0), (5, 0), (7, 5), (8, 6)]);
        }
    }

    #[test]
    fn a_list_that_is_too_long_with_statistics_has_none() {
        let counters = VfCounters::new();
        for (vfs, with, without) in [(1, true, true), (200, true, true), (256, false, true), (400, false, false)] {
            let netdev = netdev(vfs);
            let built = row(|to| add_vfs(to, &netdev, Some(&counters))).unwrap();
            let list = find(&built, IFLA_VFINFO_LIST);
            assert_eq!(list.is_some(), without, "{vfs}");
            let first = list.and_then(|list| list.nested().flatten().next());
            let has_stats = first.is_some_and(|info| find(info.value, IFLA_VF_STATS).is_some());
            assert_eq!(has_stats, with, "{vfs}");
        }
    }
}
