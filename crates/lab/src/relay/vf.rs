//! What is set of VFs: IFLA_VFINFO_LIST, as the shell commands that ask for it.

use netlink::{Attribute, attributes, find, u16_at, u32_at};

/// It says what nobody understands, or is cut short.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotUnderstood;

/// The commands, in order, for the netdev `name`.
pub(super) fn commands(name: &str, list: &[u8]) -> Result<Vec<String>, NotUnderstood> {
    let mut commands = Vec::new();
    for info in attributes(list).flatten() {
        for attribute in info.nested().flatten() {
            let vf = attribute.leading_u32().ok_or(NotUnderstood);
            let (vf, what) = match attribute.kind {
                12 => {
                    let vlan = find(attribute.value, 1).ok_or(NotUnderstood)?;
                    (vlan.leading_u32().ok_or(NotUnderstood)?, vlan_words(&vlan)?)
                }
                _ => (vf?, words(&attribute).ok_or(NotUnderstood)?),
            };
            commands.push(format!("ip link set {name} vf {vf} {what}"));
        }
    }
    Ok(commands)
}

fn words(attribute: &Attribute<'_>) -> Option<String> {
    let payload = attribute.value;
    let number = |n: usize| u32_at(payload, 4 * n);
    let switch = || Some(if number(1)? != 0 { "on" } else { "off" });
    Some(match attribute.kind {
        1 => {
            let bytes: Vec<_> = payload.get(4..10)?.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("mac {}", bytes.join(":"))
        }
        2 => format!("vlan {} qos {}", number(1)?, number(2)?),
        3 => format!("rate {}", number(1)?),
        4 => format!("spoofchk {}", switch()?),
        5 => format!("state {}", ["auto", "enable", "disable"].get(number(1)? as usize)?),
        6 => format!("max_tx_rate {} min_tx_rate {}", number(2)?, number(1)?),
        7 => format!("query_rss {}", switch()?),
        9 => format!("trust {}", switch()?),
        10 => format!("node_guid {}", guid(payload)?),
        11 => format!("port_guid {}", guid(payload)?),
        _ => return None,
    })
}

/// `struct ifla_vf_guid` has its number at the next multiple of eight.
fn guid(payload: &[u8]) -> Option<String> {
    let number = u64::from_ne_bytes(*payload.get(8..)?.first_chunk()?);
    let bytes: Vec<_> = number.to_be_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(bytes.join(":"))
}

fn vlan_words(vlan: &Attribute<'_>) -> Result<String, NotUnderstood> {
    let number = |n: usize| u32_at(vlan.value, 4 * n).ok_or(NotUnderstood);
    let proto = u16_at(vlan.value, 12).map(u16::from_be);
    let proto = match proto {
        Some(0x88a8) => " proto 802.1ad",
        Some(0x8100) => "",
        _ => return Err(NotUnderstood),
    };
    Ok(format!("vlan {} qos {}{proto}", number(1)?, number(2)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink::row;

    #[test]
    fn commands_say_what_was_set() {
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
        assert_eq!(
            commands("p0", &list.unwrap()).unwrap(),
            [
                "ip link set p0 vf 2 mac 02:00:00:00:00:01",
                "ip link set p0 vf 2 max_tx_rate 100 min_tx_rate 10",
                "ip link set p0 vf 2 state enable",
                "ip link set p0 vf 2 vlan 5 qos 3 proto 802.1ad",
            ]
        );
        let cut = row(|to| {
            to.nest_noflag(1, |info| {
                info.put(1, &[0; 5]);
            });
        });
        assert_eq!(commands("p0", &cut.unwrap()), Err(NotUnderstood));
    }
}
