//! What `tc filter` and `ip neigh` do to flow rules of the card.

use std::net::IpAddr;

use eswitch::card::Resource;
use eswitch::datapath::{pf_of, port, vport_of};
use eswitch::{CardConfig, FlowChange, MacAddr, PciAddress, PfIndex, PortHandle, RepType, Vport, names};
use flow::words::{Device, Names};
use flow::{Block, Port};

use super::of_flow;
use crate::command::Command;
use crate::query::Query;
use crate::reader::{WordError, Words};

/// The port of a card's netdev: of an uplink's, or of a VF's or a host PF's representor. A port that has no such name, as
/// an SF's, is written as in devlink: `pci/0000:08:00.0/32768`.
pub(crate) fn port_of_netdev(card: &CardConfig, name: &str) -> Option<Port> {
    if let Ok(PortHandle { device, index }) = name.parse() {
        let of_card = (0..card.pfs).map(PfIndex).any(|pf| card.pf_address(pf) == device && pf == pf_of(Port(index.0)));
        return of_card.then_some(Port(index.0));
    }
    let vfs = || (0..card.total_vfs).map(Vport::Vf);
    let vports = || [Vport::Uplink, Vport::HostPf].into_iter().chain(vfs());
    let is_named = |pf, vport| {
        let resource = match vport {
            Vport::Uplink => Resource::PfNetdev(pf),
            vport => Resource::Representor(pf, vport, RepType::Eth),
        };
        let named = names::netdev(card, &resource, None);
        named.is_some_and(|named| named.name == name || named.altname.as_deref() == Some(name))
    };
    let of_pf = |pf| vports().find(|vport| is_named(pf, *vport)).map(|vport| port(pf, vport));
    (0..card.pfs).map(PfIndex).find_map(of_pf)
}

/// The name of a port's netdev, as [`port_of_netdev`] reads it.
pub(crate) fn netdev_of_port(card: &CardConfig, of: Port) -> String {
    let pf = pf_of(of);
    let resource = match vport_of(of, card.dpu) {
        Some(Vport::Uplink) => Some(Resource::PfNetdev(pf)),
        Some(vport @ (Vport::Vf(_) | Vport::HostPf)) => Some(Resource::Representor(pf, vport, RepType::Eth)),
        _ => None,
    };
    let name = resource.and_then(|resource| names::netdev(card, &resource, None)).map(|name| name.name);
    name.unwrap_or_else(|| format!("pci/{}/{}", card.pf_address(pf), of.0))
}

/// Reads `tc filter add|del dev NETDEV ingress …`, where NETDEV is the card's, and for `add` the classifier is flower. Takes
/// no words if it is about something else.
///
/// # Errors
/// It is about the card, and at some byte something else was expected.
pub(super) fn filter(words: &mut Words<'_>, card: &CardConfig) -> Result<Option<Command>, WordError> {
    let mut head = words.clone();
    let starts = head.accept("tc") && head.accept("filter");
    let Some(verb @ ("add" | "del")) = head.peek().filter(|_| starts) else { return Ok(None) };
    let mut rest = words.clone();
    let at = rest.at();
    let text = rest.rest();
    let mut named = text.split_whitespace().skip_while(|word| *word != "dev").skip(1);
    let Some(on) = named.next().and_then(|name| port_of_netdev(card, name)) else { return Ok(None) };
    let command = if verb == "del" {
        head.literal("del")?;
        let deleted = deletion(&mut head, on)?;
        head.end()?;
        deleted
    } else if text.split_whitespace().any(|word| word == "flower") {
        addition(card, on, text).map_err(|error| WordError { at: at + error.at, ..error })?
    } else {
        return Ok(None);
    };
    *words = rest;
    Ok(Some(command))
}

fn addition(card: &CardConfig, on: Port, text: &str) -> Result<Command, WordError> {
    let pf = pf_of(on);
    let device = |name: &str| port_of_netdev(card, name).map(Device::Port);
    let netdev = |of| netdev_of_port(card, of);
    let uplink = port(pf, Vport::Uplink);
    let names = Names { device: &device, port: &netdev, uplink, block: None, free_meter: free_meter(text) };
    let filter = names.rule(text).map_err(|error| of_flow(0, text, error))?;
    let meters = filter.meters.into_iter().map(|(id, meter)| FlowChange::SetMeter { pf, id, meter });
    let rule = FlowChange::Add { pf, rule: Box::new(filter.rule) };
    Ok(Command::ChangeFlows(meters.chain([rule]).collect()))
}

/// The number of a meter for a filter that does not say one: it follows from the filter, so that two runs of a scenario
/// are the same, and is far from numbers that people choose.
fn free_meter(text: &str) -> u32 {
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    0x4000_0000 | hash & 0x3fff_fff0
}

/// `dev NETDEV ingress [protocol P] [prio N] [chain N]`.
fn deletion(words: &mut Words<'_>, on: Port) -> Result<Command, WordError> {
    let (mut chain, mut priority) = (None, None);
    while words.peek().is_some() {
        match words.one_of(&["dev", "ingress", "protocol", "prio", "pref", "chain"])? {
            "dev" => drop(words.next("a netdev")?),
            "ingress" => {}
            // A priority has one protocol.
            "protocol" => drop(words.next("a protocol")?),
            "chain" => chain = Some(words.parse("the number of a chain")?),
            _ => priority = Some(words.parse("a priority")?),
        }
    }
    let flush = FlowChange::Flush { pf: pf_of(on), block: Block::Port(on), chain, priority };
    Ok(Command::ChangeFlows(vec![flush]))
}

/// Reads `tc [-s] filter show dev NETDEV ingress`, where NETDEV is the card's. Takes no words if it is about something
/// else.
///
/// # Errors
/// It is about the card, and at some byte something else was expected.
pub(super) fn show(words: &mut Words<'_>, card: &CardConfig) -> Result<Option<Query>, WordError> {
    let mut rest = words.clone();
    let is_tc = rest.accept("tc");
    let with_counters = ["-s", "-stats", "-statistics"].iter().any(|option| rest.accept(option));
    let starts = ["filter", "show", "dev"].iter().all(|word| rest.accept(word));
    let Some(on) = rest.peek().filter(|_| is_tc && starts).and_then(|name| port_of_netdev(card, name)) else {
        return Ok(None);
    };
    rest.next("a netdev")?;
    rest.literal("ingress")?;
    *words = rest;
    Ok(Some(Query::Filters { on, with_counters }))
}

/// Reads `ip neigh replace ADDRESS lladdr MAC dev PFNETDEV` and `ip neigh del ADDRESS dev PFNETDEV`: the next hop to the
/// end of a tunnel. Takes no words if it is about something else.
pub(super) fn neighbour(words: &mut Words<'_>, card: &CardConfig) -> Option<Command> {
    let mut rest = words.clone();
    for word in ["ip", "neigh"] {
        rest.literal(word).ok()?;
    }
    let verb = rest.one_of(&["replace", "del"]).ok()?;
    let end: IpAddr = rest.parse("an address").ok()?;
    let mac: Option<MacAddr> = match verb {
        "replace" => {
            rest.literal("lladdr").ok()?;
            Some(rest.parse("a MAC address").ok()?)
        }
        _ => None,
    };
    rest.literal("dev").ok()?;
    let (_, netdev) = rest.next("a netdev").ok()?;
    rest.end().ok()?;
    let on = port_of_netdev(card, netdev)?;
    let device = card.pf_address(pf_of(on));
    (on == port(pf_of(on), Vport::Uplink)).then(|| {
        *words = rest;
        Command::SetNeighbour { device, end, mac }
    })
}

/// Changes of flow rules in the words that [`filter`] reads.
pub(crate) fn in_words(card: &CardConfig, changes: &[FlowChange]) -> String {
    let netdev = |of| netdev_of_port(card, of);
    let device = |name: &str| port_of_netdev(card, name).map(Device::Port);
    let names = Names { device: &device, port: &netdev, uplink: Port(0), block: None, free_meter: 0 };
    let mut meters = Vec::new();
    let mut lines = Vec::new();
    for change in changes {
        match change {
            FlowChange::SetMeter { id, meter, .. } => meters.push((*id, *meter)),
            FlowChange::Add { rule, .. } => {
                let (rule, meters) = ((**rule).clone(), std::mem::take(&mut meters));
                let filter = flow::words::Filter { rule, meters, handle: None };
                lines.push(format!("tc filter add {}", names.filter_words(&filter)));
            }
            FlowChange::Flush { block, chain, priority, .. } => {
                let on = if let Block::Port(port) = block { netdev(*port) } else { block.to_string() };
                let chain = chain.map_or_else(String::new, |chain| format!(" chain {chain}"));
                let priority = priority.map_or_else(String::new, |priority| format!(" prio {priority}"));
                lines.push(format!("tc filter del dev {on} ingress{priority}{chain}"));
            }
            FlowChange::SetActions { rule, .. } => lines.push(format!("change the actions of {rule}")),
            FlowChange::Remove(rule) => lines.push(format!("remove {rule}")),
            FlowChange::RemoveMeter { id, .. } => lines.push(format!("remove meter {}", id.0)),
        }
    }
    lines.join("; ")
}

/// What [`neighbour`] reads.
pub(crate) fn neighbour_in_words(card: &CardConfig, device: PciAddress, end: IpAddr, mac: Option<MacAddr>) -> String {
    let pf = (0..card.pfs).map(PfIndex).find(|pf| card.pf_address(*pf) == device);
    let netdev = pf.map_or_else(|| device.to_string(), |pf| netdev_of_port(card, port(pf, Vport::Uplink)));
    match mac {
        Some(mac) => format!("ip neigh replace {end} lladdr {mac} dev {netdev}"),
        None => format!("ip neigh del {end} dev {netdev}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Command>, WordError> {
        filter(&mut Words::new(text), &CardConfig { total_vfs: 8, ..CardConfig::default() })
    }

    #[test]
    fn filters_of_the_card_are_read_and_written() {
        let card = CardConfig { total_vfs: 8, ..CardConfig::default() };
        for text in [
            "tc filter add dev enp8s0f0npf0vf0 ingress protocol ip prio 1 chain 0 flower ip_proto tcp dst_port 80 action mirred egress redirect dev enp8s0f0np0",
            "tc filter add dev enp8s0f0np0 ingress protocol all prio 3 chain 0 flower skip_sw action drop",
            "tc filter add dev pci/0000:08:00.0/32768 ingress protocol all prio 3 chain 2 flower action goto chain 3",
            "tc filter del dev enp8s0f0np0 ingress prio 3",
            "tc filter del dev enp8s0f0np0 ingress",
        ] {
            let command = read(text).unwrap().unwrap_or_else(|| panic!("{text}: not the card's"));
            let written = command.in_words(&card);
            assert_eq!(read(&written).unwrap().as_ref(), Some(&command), "{text}: {written}");
        }
    }

    #[test]
    fn what_is_not_the_cards_is_left_to_tc() {
        for text in ["tc filter add dev eth7 ingress flower action drop", "tc qdisc add dev enp8s0f0np0 ingress"] {
            assert_eq!(read(text), Ok(None), "{text}");
        }
        assert_eq!(read("tc filter add dev enp8s0f0np0 ingress u32 match u32 0 0 action drop"), Ok(None));
    }

    #[test]
    fn rules_are_shown_of_the_cards_netdevs_only() {
        let card = CardConfig { total_vfs: 8, ..CardConfig::default() };
        let read = |text: &str| show(&mut Words::new(text), &card);
        for text in ["tc filter show dev enp8s0f0npf0vf0 ingress", "tc -s filter show dev enp8s0f0np0 ingress"] {
            let query = read(text).unwrap().unwrap_or_else(|| panic!("{text}: not the card's"));
            assert_eq!(query.in_words(&card), text);
        }
        for text in ["tc filter show dev eth7 ingress", "tc -s qdisc show dev enp8s0f0np0", "tc -s"] {
            assert_eq!(read(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn an_error_says_where_it_is() {
        let text = "tc filter add dev enp8s0f0np0 ingress protocol ip prio 1 flower dst_prot 80 action drop";
        let error = read(text).unwrap_err();
        assert_eq!(&text[error.at..error.at + 8], "dst_prot", "{error}");
        assert!(error.message.contains("dst_port"), "{error}");
    }
}
