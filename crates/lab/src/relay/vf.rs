//! Settings of VFs: IFLA_VFINFO_LIST, as commands to the card.
//!
//! The kernel reads the list in `do_setlink`, checks each IFLA_VF_INFO against `ifla_vf_policy`, and carries it out in
//! `do_setvfinfo`. What it has carried out before something is refused stays.

use control::Command;
use eswitch::vf::{ETH_P_8021Q, LinkState, VfSetting, VfVlan};
use eswitch::{MacAddr, PciAddress};

use netlink::rtnl::{
    IFLA_VF_BROADCAST, IFLA_VF_IB_NODE_GUID, IFLA_VF_IB_PORT_GUID, IFLA_VF_INFO, IFLA_VF_LINK_STATE, IFLA_VF_MAC,
    IFLA_VF_RATE, IFLA_VF_RSS_QUERY_EN, IFLA_VF_SPOOFCHK, IFLA_VF_STATS, IFLA_VF_TRUST, IFLA_VF_TX_RATE, IFLA_VF_VLAN,
    IFLA_VF_VLAN_INFO, IFLA_VF_VLAN_LIST,
};
use netlink::{Attribute, Errno, attributes, find, u16_at, u32_at};

/// Bytes of the header of an attribute (`NLA_HDRLEN`).
const HEADER: usize = 4;

/// Bytes of `struct ifla_vf_vlan_info` without the two bytes of padding at its end, as pyroute2 sends it. Kernels before
/// May 2024 require four bytes at least and read these 14; later ones require the padding, too.
const VLAN_INFO: usize = 14;

/// The attributes of a VF in the order in which `do_setvfinfo` acts on them.
const ORDER: [u16; 11] = [
    IFLA_VF_MAC,
    IFLA_VF_VLAN,
    IFLA_VF_VLAN_LIST,
    IFLA_VF_TX_RATE,
    IFLA_VF_RATE,
    IFLA_VF_SPOOFCHK,
    IFLA_VF_LINK_STATE,
    IFLA_VF_RSS_QUERY_EN,
    IFLA_VF_TRUST,
    IFLA_VF_IB_NODE_GUID,
    IFLA_VF_IB_PORT_GUID,
];

/// The commands for the VFs of a PF, in the order in which the kernel would carry them out, and the error number if
/// something after the last of them is refused.
pub(super) fn commands(device: PciAddress, list: &[u8]) -> (Vec<Command>, Result<(), Errno>) {
    let mut commands = Vec::new();
    let outcome = attributes(list).flatten().try_for_each(|info| {
        if info.kind != IFLA_VF_INFO || info.value.len() < HEADER {
            return Err(Errno::INVAL);
        }
        info.nested().flatten().try_for_each(|attribute| check(&attribute))?;
        of_one(info.value, |vf, setting| commands.push(Command::SetVf { device, vf, settings: vec![setting] }))
    });
    (commands, outcome)
}

/// Checks the length of an attribute of a VF (`ifla_vf_policy`).
///
/// # Errors
/// ERANGE: it is too short. EINVAL: it cannot be set.
fn check(attribute: &Attribute<'_>) -> Result<(), Errno> {
    let least = match attribute.kind {
        IFLA_VF_BROADCAST => return Err(Errno::INVAL),
        // Lists, which may be empty.
        IFLA_VF_VLAN_LIST | IFLA_VF_STATS if attribute.value.is_empty() => 0,
        IFLA_VF_VLAN_LIST | IFLA_VF_STATS => HEADER,
        // `struct ifla_vf_mac`: the number of the VF, and 32 bytes for the address.
        IFLA_VF_MAC => 36,
        IFLA_VF_VLAN | IFLA_VF_RATE => 12,
        IFLA_VF_TX_RATE | IFLA_VF_SPOOFCHK | IFLA_VF_LINK_STATE | IFLA_VF_RSS_QUERY_EN | IFLA_VF_TRUST => 8,
        IFLA_VF_IB_NODE_GUID | IFLA_VF_IB_PORT_GUID => 16,
        _ => 0,
    };
    if attribute.value.len() < least { Err(Errno::RANGE) } else { Ok(()) }
}

/// Passes the settings of one IFLA_VF_INFO to `add`, each with the number of its VF.
///
/// # Errors
/// Something is refused, or there is nothing to set. What comes before it has been passed on.
fn of_one(info: &[u8], mut add: impl FnMut(u32, VfSetting)) -> Result<(), Errno> {
    let mut present = ORDER.into_iter().filter_map(|kind| find(info, kind)).peekable();
    if present.peek().is_none() {
        return Err(Errno::INVAL);
    }
    present.try_for_each(|attribute| {
        let attribute = match attribute.kind {
            IFLA_VF_VLAN_LIST => only_vlan(&attribute)?,
            _ => attribute,
        };
        let vf = attribute.leading_u32().filter(|vf| *vf < i32::MAX as u32).ok_or(Errno::INVAL)?;
        add(vf, setting(&attribute)?);
        Ok(())
    })
}

/// The only VLAN of a list.
///
/// # Errors
/// EINVAL: the list is empty or holds something else. EOPNOTSUPP: it has more than `MAX_VLAN_LIST_LEN`, which is 1.
fn only_vlan<'a>(list: &Attribute<'a>) -> Result<Attribute<'a>, Errno> {
    let mut only = None;
    for vlan in list.nested().flatten() {
        if vlan.kind != IFLA_VF_VLAN_INFO || vlan.value.len() < VLAN_INFO {
            return Err(Errno::INVAL);
        }
        if only.is_some() {
            return Err(Errno::OPNOTSUPP);
        }
        only = Some(Attribute { kind: IFLA_VF_VLAN_LIST, ..vlan });
    }
    only.ok_or(Errno::INVAL)
}

/// The setting in an attribute that is long enough.
///
/// # Errors
/// mlx5 has no such setting, or refuses the value in every mode and for every VF.
fn setting(attribute: &Attribute<'_>) -> Result<VfSetting, Errno> {
    let payload = attribute.value;
    let number = |n: usize| u32_at(payload, 4 * n).ok_or(Errno::RANGE);
    let switch = || Ok::<_, Errno>(number(1)? != 0);
    // The driver's functions take the number in 16 bits and the priority in 8: the rest is lost.
    let vlan = |proto| Ok::<_, Errno>(VfVlan { id: number(1)? as u16, qos: number(2)? as u8, proto });
    Ok(match attribute.kind {
        IFLA_VF_MAC => {
            let bytes = payload.get(4..).and_then(|rest| rest.first_chunk()).ok_or(Errno::RANGE)?;
            // `mlx5_esw_set_vport_mac_locked`
            VfSetting::Mac(MacAddr::unicast(*bytes).ok_or(Errno::INVAL)?)
        }
        IFLA_VF_VLAN => VfSetting::Vlan(vlan(ETH_P_8021Q)?),
        IFLA_VF_VLAN_LIST => VfSetting::Vlan(vlan(u16::from_be(u16_at(payload, 12).ok_or(Errno::INVAL)?))?),
        IFLA_VF_TX_RATE => VfSetting::Rate { min: None, max: Some(number(1)?) },
        IFLA_VF_RATE => VfSetting::Rate { min: Some(number(1)?), max: Some(number(2)?) },
        IFLA_VF_SPOOFCHK => VfSetting::Spoofchk(switch()?),
        // `mlx5_ifla_link2vport`, which takes eight bits.
        IFLA_VF_LINK_STATE => VfSetting::Link(match number(1)? as u8 {
            1 => LinkState::Enable,
            2 => LinkState::Disable,
            _ => LinkState::Auto,
        }),
        IFLA_VF_TRUST => VfSetting::Trust(switch()?),
        // IFLA_VF_RSS_QUERY_EN, IFLA_VF_IB_NODE_GUID and IFLA_VF_IB_PORT_GUID: mlx5's Ethernet netdevs have no
        // `ndo_set_vf_rss_query_en` and no `ndo_set_vf_guid`.
        _ => return Err(Errno::OPNOTSUPP),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use eswitch::vf::ETH_P_8021AD;
    use netlink::{Builder, row};

    const PF: PciAddress = PciAddress { domain: 0, bus: 8, device: 0, function: 0 };

    fn command(vf: u32, setting: VfSetting) -> Command {
        Command::SetVf { device: PF, vf, settings: vec![setting] }
    }

    fn numbers(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    fn vlan_info(vf: u32, vlan: u32, qos: u32, proto: u16) -> Vec<u8> {
        [&numbers(&[vf, vlan, qos])[..], &proto.to_be_bytes(), &[0; 2]].concat()
    }

    fn mac(vf: u32, address: [u8; 6]) -> Vec<u8> {
        [&numbers(&[vf])[..], &address, &[0; 26]].concat()
    }

    /// What becomes of one IFLA_VF_INFO.
    fn info(fill: impl FnOnce(&mut Builder)) -> (Vec<Command>, Result<(), Errno>) {
        let list = row(|to| {
            to.nest_noflag(IFLA_VF_INFO, fill);
        });
        commands(PF, &list.unwrap())
    }

    fn attribute(kind: u16, value: &[u8]) -> (Vec<Command>, Result<(), Errno>) {
        info(|to| {
            to.put(kind, value);
        })
    }

    #[test]
    fn the_attributes_become_commands_in_the_order_of_the_kernel() {
        let outcome = info(|info| {
            info.put(IFLA_VF_TRUST, &numbers(&[2, 1]));
            info.put(IFLA_VF_RATE, &numbers(&[2, 10, 100]));
            info.put(IFLA_VF_LINK_STATE, &numbers(&[2, 1]));
            info.nest_noflag(IFLA_VF_VLAN_LIST, |list| {
                list.put(IFLA_VF_VLAN_INFO, &vlan_info(2, 5, 3, ETH_P_8021AD));
            });
            // Of several the last counts.
            info.put(IFLA_VF_MAC, &mac(3, [2, 0, 0, 0, 0, 1]));
            info.put(IFLA_VF_MAC, &mac(2, [0; 6]));
        });
        let settings = [
            VfSetting::Mac(MacAddr::ZERO),
            VfSetting::Vlan(VfVlan { id: 5, qos: 3, proto: ETH_P_8021AD }),
            VfSetting::Rate { min: Some(10), max: Some(100) },
            VfSetting::Link(LinkState::Enable),
            VfSetting::Trust(true),
        ];
        assert_eq!(outcome, (settings.map(|setting| command(2, setting)).to_vec(), Ok(())));
    }

    #[test]
    fn values_become_those_that_the_driver_sees() {
        let vlan = |id, qos, proto| VfSetting::Vlan(VfVlan { id, qos, proto });
        let link = VfSetting::Link;
        for (kind, value, expected) in [
            (IFLA_VF_VLAN, numbers(&[0, 4095, 7]), vlan(4095, 7, ETH_P_8021Q)),
            (IFLA_VF_VLAN, numbers(&[0, 0x1_0005, 0x103]), vlan(5, 3, ETH_P_8021Q)),
            (IFLA_VF_LINK_STATE, numbers(&[0, 0]), link(LinkState::Auto)),
            (IFLA_VF_LINK_STATE, numbers(&[0, 2]), link(LinkState::Disable)),
            (IFLA_VF_LINK_STATE, numbers(&[0, 3]), link(LinkState::Auto)),
            (IFLA_VF_LINK_STATE, numbers(&[0, 0x101]), link(LinkState::Enable)),
            (IFLA_VF_SPOOFCHK, numbers(&[0, 0x100]), VfSetting::Spoofchk(true)),
            (IFLA_VF_TRUST, numbers(&[0, 0]), VfSetting::Trust(false)),
            (IFLA_VF_TX_RATE, numbers(&[0, 9]), VfSetting::Rate { min: None, max: Some(9) }),
        ] {
            assert_eq!(attribute(kind, &value), (vec![command(0, expected)], Ok(())), "{kind}: {value:?}");
        }
        let swapped = info(|info| {
            info.nest_noflag(IFLA_VF_VLAN_LIST, |list| {
                list.put(IFLA_VF_VLAN_INFO, &vlan_info(0, 5, 0, 0x0081)[..VLAN_INFO]);
            });
        });
        assert_eq!(swapped, (vec![command(0, vlan(5, 0, 0x0081))], Ok(())), "the card refuses this protocol");
    }

    #[test]
    fn what_the_kernel_refuses_is_refused_with_its_error_number() {
        for (kind, value, errno) in [
            (IFLA_VF_MAC, mac(0, [0; 6])[..35].to_vec(), Errno::RANGE),
            (IFLA_VF_MAC, mac(0, [1, 0, 0x5e, 0, 0, 1]), Errno::INVAL),
            (IFLA_VF_MAC, mac(0, [0xff; 6]), Errno::INVAL),
            (IFLA_VF_MAC, mac(i32::MAX as u32, [2, 0, 0, 0, 0, 1]), Errno::INVAL),
            (IFLA_VF_VLAN, numbers(&[0, 5]), Errno::RANGE),
            (IFLA_VF_VLAN_LIST, vec![], Errno::INVAL),
            (IFLA_VF_VLAN_LIST, vec![0; 3], Errno::RANGE),
            (IFLA_VF_TX_RATE, numbers(&[0]), Errno::RANGE),
            (IFLA_VF_RATE, numbers(&[0, 5]), Errno::RANGE),
            (IFLA_VF_SPOOFCHK, numbers(&[0]), Errno::RANGE),
            (IFLA_VF_LINK_STATE, numbers(&[0]), Errno::RANGE),
            (IFLA_VF_TRUST, numbers(&[u32::MAX, 1]), Errno::INVAL),
            (IFLA_VF_RSS_QUERY_EN, numbers(&[0, 1]), Errno::OPNOTSUPP),
            (IFLA_VF_IB_NODE_GUID, numbers(&[0, 0, 1, 1]), Errno::OPNOTSUPP),
            (IFLA_VF_IB_PORT_GUID, numbers(&[0, 0, 1]), Errno::RANGE),
            (IFLA_VF_BROADCAST, vec![0xff; 32], Errno::INVAL),
            (IFLA_VF_STATS, vec![], Errno::INVAL),
            (99, numbers(&[0, 0, 0]), Errno::INVAL),
        ] {
            assert_eq!(attribute(kind, &value), (vec![], Err(errno)), "{kind}: {value:?}");
        }
        let other = row(|to| {
            to.put(2, &[0; 12]);
        });
        assert_eq!(commands(PF, &other.unwrap()), (vec![], Err(Errno::INVAL)), "no IFLA_VF_INFO");
        assert_eq!(commands(PF, &[]), (vec![], Ok(())), "nothing is set");
    }

    #[test]
    fn a_list_has_one_vlan_and_nothing_else() {
        let good = vlan_info(0, 5, 0, ETH_P_8021Q);
        for (list, errno) in [
            (vec![(2, good.clone())], Errno::INVAL),
            (vec![(IFLA_VF_VLAN_INFO, good[..13].to_vec())], Errno::INVAL),
            (vec![(IFLA_VF_VLAN_INFO, good.clone()), (IFLA_VF_VLAN_INFO, good.clone())], Errno::OPNOTSUPP),
            (vec![(IFLA_VF_VLAN_INFO, good.clone()), (2, good)], Errno::INVAL),
        ] {
            let outcome = info(|info| {
                info.put(IFLA_VF_MAC, &mac(0, [2, 0, 0, 0, 0, 1]));
                info.nest_noflag(IFLA_VF_VLAN_LIST, |to| {
                    for (kind, value) in &list {
                        to.put(*kind, value);
                    }
                });
                info.put(IFLA_VF_TRUST, &numbers(&[0, 1]));
            });
            let before = command(0, VfSetting::Mac(MacAddr([2, 0, 0, 0, 0, 1])));
            assert_eq!(outcome, (vec![before], Err(errno)), "what comes before is carried out: {list:?}");
        }
    }
}
