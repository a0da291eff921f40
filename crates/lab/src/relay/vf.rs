//! Settings of VFs: IFLA_VFINFO_LIST, as commands to the card.

use control::Command;
use eswitch::vf::{ETH_P_8021AD, ETH_P_8021Q, LinkState, VfSetting, VfVlan};
use eswitch::{MacAddr, PciAddress};

use netlink::rtnl::IFLA_VF_VLAN_LIST;
use netlink::{Attribute, Errno, attributes, find, u16_at, u32_at};

/// Why a list gives no commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoCommands {
    /// It is cut short, or has an attribute that is not known: the kernel is to refuse it.
    NotUnderstood,
    /// The driver has no such setting, or refuses the value: the error number.
    Refused(Errno),
}

/// The commands for the VFs of a PF, in the order of the attributes.
///
/// # Errors
/// See [`NoCommands`].
pub(super) fn commands(device: PciAddress, list: &[u8]) -> Result<Vec<Command>, NoCommands> {
    let mut commands = Vec::new();
    for info in attributes(list).flatten() {
        for attribute in info.nested().flatten() {
            let (vf, setting) = match attribute.kind {
                IFLA_VF_VLAN_LIST => {
                    let vlan = find(attribute.value, 1).ok_or(NoCommands::NotUnderstood)?;
                    (vlan.leading_u32(), setting_of_vlan(&vlan)?)
                }
                _ => (attribute.leading_u32(), setting(&attribute)?),
            };
            let vf = vf.ok_or(NoCommands::NotUnderstood)?;
            commands.push(Command::SetVf { device, vf, settings: vec![setting] });
        }
    }
    Ok(commands)
}

fn setting(attribute: &Attribute<'_>) -> Result<VfSetting, NoCommands> {
    let payload = attribute.value;
    let number = |n: usize| u32_at(payload, 4 * n).ok_or(NoCommands::NotUnderstood);
    let switch = || Ok(number(1)? != 0);
    Ok(match attribute.kind {
        // IFLA_VF_MAC
        1 => {
            let bytes = payload.get(4..).and_then(|rest| rest.first_chunk()).ok_or(NoCommands::NotUnderstood)?;
            VfSetting::Mac(MacAddr::unicast(*bytes).ok_or(NoCommands::Refused(Errno::INVAL))?)
        }
        // IFLA_VF_VLAN
        2 => VfSetting::Vlan(vlan(number(1)?, number(2)?, ETH_P_8021Q)?),
        // IFLA_VF_TX_RATE
        3 => VfSetting::Rate { min: None, max: Some(number(1)?) },
        // IFLA_VF_SPOOFCHK
        4 => VfSetting::Spoofchk(switch()?),
        // IFLA_VF_LINK_STATE
        5 => VfSetting::Link(match number(1)? {
            0 => LinkState::Auto,
            1 => LinkState::Enable,
            2 => LinkState::Disable,
            _ => return Err(NoCommands::NotUnderstood),
        }),
        // IFLA_VF_RATE
        6 => VfSetting::Rate { min: Some(number(1)?), max: Some(number(2)?) },
        // IFLA_VF_TRUST
        9 => VfSetting::Trust(switch()?),
        // IFLA_VF_RSS_QUERY_EN, IFLA_VF_IB_NODE_GUID and IFLA_VF_IB_PORT_GUID: mlx5's Ethernet netdevs have no
        // `ndo_set_vf_rss_query_en` and no `ndo_set_vf_guid`.
        7 | 10 | 11 => return Err(NoCommands::Refused(Errno::OPNOTSUPP)),
        _ => return Err(NoCommands::NotUnderstood),
    })
}

fn setting_of_vlan(attribute: &Attribute<'_>) -> Result<VfSetting, NoCommands> {
    let number = |n: usize| u32_at(attribute.value, 4 * n).ok_or(NoCommands::NotUnderstood);
    let proto = u16_at(attribute.value, 12).map(u16::from_be);
    let proto = proto.filter(|proto| [ETH_P_8021Q, ETH_P_8021AD].contains(proto)).ok_or(NoCommands::NotUnderstood)?;
    Ok(VfSetting::Vlan(vlan(number(1)?, number(2)?, proto)?))
}

fn vlan(id: u32, qos: u32, proto: u16) -> Result<VfVlan, NoCommands> {
    match (id.try_into(), qos.try_into()) {
        (Ok(id), Ok(qos)) => Ok(VfVlan { id, qos, proto }),
        // Outside of the range that `mlx5_eswitch_set_vport_vlan` takes.
        _ => Err(NoCommands::Refused(Errno::INVAL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink::row;

    const PF: PciAddress = PciAddress { domain: 0, bus: 8, device: 0, function: 0 };

    #[test]
    fn each_attribute_becomes_a_command() {
        let list = row(|to| {
            to.nest_noflag(1, |info| {
                info.put(1, &[&[2, 0, 0, 0, 2, 0, 0, 0, 0, 1], &[0u8; 26][..]].concat());
                info.put(6, &[2u32, 10, 100].map(u32::to_ne_bytes).concat());
                info.put(5, &[2u32, 1].map(u32::to_ne_bytes).concat());
                info.nest_noflag(12, |list| {
                    list.put(1, &[&[2u32, 5, 3].map(u32::to_ne_bytes).concat()[..], &[0x88, 0xa8, 0, 0]].concat());
                });
            });
        });
        let settings = [
            VfSetting::Mac(MacAddr([2, 0, 0, 0, 0, 1])),
            VfSetting::Rate { min: Some(10), max: Some(100) },
            VfSetting::Link(LinkState::Enable),
            VfSetting::Vlan(VfVlan { id: 5, qos: 3, proto: ETH_P_8021AD }),
        ];
        let expected = settings.map(|setting| Command::SetVf { device: PF, vf: 2, settings: vec![setting] });
        assert_eq!(commands(PF, &list.unwrap()).unwrap(), expected);
        let of = |kind: u16, value: &[u8]| {
            let list = row(|to| {
                to.nest_noflag(1, |info| {
                    info.put(kind, value);
                });
            });
            commands(PF, &list.unwrap())
        };
        assert_eq!(of(1, &[0; 5]), Err(NoCommands::NotUnderstood));
        for (kind, value, expected) in [
            (7, 1, NoCommands::Refused(Errno::OPNOTSUPP)),
            (5, 3, NoCommands::NotUnderstood),
            (2, 1 << 16, NoCommands::Refused(Errno::INVAL)),
            (99, 0, NoCommands::NotUnderstood),
        ] {
            assert_eq!(of(kind, &[2u32, value, 0].map(u32::to_ne_bytes).concat()), Err(expected), "{kind}");
        }
    }
}
