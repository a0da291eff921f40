//! Commands as the [host](crate::Host) of a card hears of them: in words for a log, with what they may have changed.

use control::Command;
use eswitch::{CardConfig, PciAddress, Touched};

use crate::card::{Cx, Served};
use crate::numbers::{attribute as a, command, flavour, function, nla};
use crate::refusal::Refusal;
use crate::request::Attributes;

/// A command that has been carried out, or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarriedOut<'a> {
    /// The command as one who reads a log would type it, with what it was asked with.
    pub words: &'a str,
    /// What of what is agreed it may have changed.
    pub touched: Touched,
}

/// Tells who runs the card of a devlink command; what to answer.
pub(crate) fn devlink_command(
    served: &Served,
    cx: Cx<'_, '_>,
    number: u8,
    asked: &Attributes<'_>,
    outcome: Result<(), Refusal>,
) -> Result<(), Refusal> {
    let Some(host) = &served.host else { return outcome };
    let touched = touched(served.card.engine().config(), number, asked);
    let stored =
        host.carried_out(cx, &CarriedOut { words: &in_words(number, asked), touched }, outcome.as_ref().copied());
    // What went wrong first is what is answered.
    outcome.and(stored)
}

/// Tells the host of a command that a lab has sent; what to answer.
///
/// `core_loads` is [`eswitch::Engine::core_loads`] before the command.
pub(crate) fn card_command(
    served: &Served,
    cx: Cx<'_, '_>,
    command: &Command,
    core_loads: u64,
    outcome: Result<(), Refusal>,
) -> Result<(), Refusal> {
    let Some(host) = &served.host else { return outcome };
    let engine = served.card.engine();
    let card = engine.config();
    // A module that needs the core module has loaded it, and so bound every PF.
    let touched = if engine.core_loads() == core_loads { command.touches(card) } else { Touched::Everything };
    let words = command.in_words(card);
    let stored = host.carried_out(cx, &CarriedOut { words: &words, touched }, outcome.as_ref().copied());
    outcome.and(stored)
}

/// What of the view a devlink command may have changed, which is more than what is agreed.
pub(crate) fn touched_view(card: &CardConfig, number: u8, asked: &Attributes<'_>) -> Touched {
    match (number, asked.device()) {
        // Representors that did not load may have been loaded.
        (command::HEALTH_RECOVER, Ok(address)) => Touched::Pf(pf_of(card, address)),
        _ => touched(card, number, asked),
    }
}

/// The PF that an address belongs to: its own, or that of which it is a VF.
fn pf_of(card: &CardConfig, address: PciAddress) -> PciAddress {
    card.vf_at(address).map_or(address, |(pf, _)| card.pf_address(pf))
}

/// What of what is agreed a devlink command may have changed.
fn touched(card: &CardConfig, number: u8, asked: &Attributes<'_>) -> Touched {
    let of: fn(PciAddress) -> Touched = match number {
        command::ESWITCH_GET | command::HEALTH_RECOVER | command::HEALTH_DIAGNOSE => return Touched::Nothing,
        command::PORT_SET | command::PORT_NEW | command::PORT_DEL => Touched::Pf,
        command::RATE_SET | command::RATE_NEW | command::RATE_DEL => Touched::Pf,
        command::ESWITCH_SET | command::RELOAD | command::PARAM_SET => Touched::PfAndMultiport,
        _ => return Touched::Everything,
    };
    match asked.device() {
        Ok(address) => of(pf_of(card, address)),
        // An SF's instance, whose PF is for the engine to find; or none at all.
        Err(_) => Touched::Everything,
    }
}

/// A command as one who reads a log knows it.
fn in_words(number: u8, asked: &Attributes<'_>) -> String {
    let name = match number {
        command::PORT_SET if asked.has(a::PORT_FUNCTION) => "port function set",
        command::PORT_SET => "port set",
        command::PORT_NEW => "port add",
        command::PORT_DEL => "port del",
        command::ESWITCH_GET => "dev eswitch show",
        command::ESWITCH_SET => "dev eswitch set",
        command::RELOAD => "dev reload",
        command::PARAM_SET => "dev param set",
        command::HEALTH_RECOVER => "health recover",
        command::HEALTH_DIAGNOSE => "health diagnose",
        command::RATE_SET => "port function rate set",
        command::RATE_NEW => "port function rate add",
        command::RATE_DEL => "port function rate del",
        _ => return format!("devlink command {number}"),
    };
    let mut words = format!("devlink {name}");
    if let Ok(Some(handle)) = asked.handle() {
        words.push_str(&format!(" {}/{}", handle.bus, handle.device));
        if let Ok(Some(port)) = asked.u32(a::PORT_INDEX) {
            words.push_str(&format!("/{port}"));
        } else if let Ok(Some(node)) = asked.text(a::RATE_NODE_NAME) {
            words.push_str(&format!("/{node}"));
        }
    }
    for (attribute, word, value) in OPTIONS {
        if let Some(value) = value(asked, *attribute) {
            words.push_str(&format!(" {word} {value}"));
        }
    }
    if let Ok(Some(asked)) = asked.nested(a::PORT_FUNCTION, &[function::HW_ADDR, function::STATE, function::CAPS]) {
        put_function(&asked, &mut words);
    }
    words
}

/// How an attribute's value is written; none if it is not there, or is none of its type.
type Written = fn(&Attributes<'_>, u16) -> Option<String>;

/// What a command may be asked with beside what it is for, as devlink(8) writes it.
const OPTIONS: &[(u16, &str, Written)] = &[
    (a::ESWITCH_MODE, "mode", |asked, kind| Some(named(asked.u16(kind).ok()??, &["legacy", "switchdev"]))),
    (a::ESWITCH_INLINE_MODE, "inline-mode", |asked, kind| {
        Some(named(asked.u8(kind).ok()??, &["none", "link", "network", "transport"]))
    }),
    (a::ESWITCH_ENCAP_MODE, "encap-mode", |asked, kind| Some(named(asked.u8(kind).ok()??, &["none", "basic"]))),
    (a::NETNS_PID, "netns", number),
    (a::NETNS_FD, "netns-fd", number),
    (a::NETNS_ID, "netns-id", number),
    (a::RELOAD_ACTION, "action", |asked, kind| {
        Some(named(asked.u8(kind).ok()??, &["unspecified", "driver_reinit", "fw_activate"]))
    }),
    (a::RELOAD_LIMITS, "limits", |asked, kind| Some(format!("{:#x}", asked.bitfield(kind).ok()??.0))),
    (a::PARAM_NAME, "name", text),
    (a::PARAM_TYPE, "value", |asked, kind| match asked.u8(kind).ok()?? {
        nla::FLAG => Some(asked.has(a::PARAM_VALUE_DATA).to_string()),
        nla::STRING => text(asked, a::PARAM_VALUE_DATA),
        _ => asked.bytes(a::PARAM_VALUE_DATA).map(|bytes| format!("{bytes:02x?}")),
    }),
    (a::PARAM_VALUE_CMODE, "cmode", |asked, kind| {
        Some(named(asked.u8(kind).ok()??, &["runtime", "driverinit", "permanent"]))
    }),
    (a::PORT_TYPE, "type", |asked, kind| Some(named(asked.u16(kind).ok()??, &["notset", "auto", "eth", "ib"]))),
    (a::PORT_FLAVOUR, "flavour", |asked, kind| match asked.u16(kind).ok()?? {
        flavour::PCI_PF => Some("pcipf".to_owned()),
        flavour::PCI_VF => Some("pcivf".to_owned()),
        flavour::PCI_SF => Some("pcisf".to_owned()),
        other => Some(other.to_string()),
    }),
    (a::PORT_PCI_PF_NUMBER, "pfnum", |asked, kind| Some(asked.u16(kind).ok()??.to_string())),
    (a::PORT_PCI_SF_NUMBER, "sfnum", number),
    (a::PORT_CONTROLLER_NUMBER, "controller", number),
    (a::RATE_TX_SHARE, "tx_share", rate),
    (a::RATE_TX_MAX, "tx_max", rate),
    (a::RATE_TX_PRIORITY, "tx_priority", number),
    (a::RATE_TX_WEIGHT, "tx_weight", number),
    (a::RATE_PARENT_NODE_NAME, "parent", text),
    (a::HEALTH_REPORTER_NAME, "reporter", text),
];

fn put_function(asked: &Attributes<'_>, words: &mut String) {
    if let Some(address) = asked.bytes(function::HW_ADDR) {
        let digits: Vec<String> = address.iter().map(|byte| format!("{byte:02x}")).collect();
        words.push_str(&format!(" hw_addr {}", digits.join(":")));
    }
    if let Ok(Some((value, selector))) = asked.bitfield(function::CAPS) {
        for bit in (0..u32::BITS).filter(|bit| selector & (1 << bit) != 0) {
            // `enum devlink_port_fn_attr_cap`.
            let name = named(bit as usize, &["roce", "migratable", "ipsec_crypto", "ipsec_packet"]);
            words.push_str(&format!(" {name} {}", if value & (1 << bit) != 0 { "enable" } else { "disable" }));
        }
    }
    if let Ok(Some(state)) = asked.u8(function::STATE) {
        words.push_str(&format!(" state {}", named(state, &["inactive", "active"])));
    }
}

/// A number by its name; one that has none is written as it is.
fn named(number: impl Into<usize>, names: &[&str]) -> String {
    let number = number.into();
    names.get(number).map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

fn number(asked: &Attributes<'_>, kind: u16) -> Option<String> {
    Some(asked.u32(kind).ok()??.to_string())
}

fn text(asked: &Attributes<'_>, kind: u16) -> Option<String> {
    Some(match asked.text(kind).ok()?? {
        "" => "\"\"".to_owned(),
        text => text.to_owned(),
    })
}

/// In bytes a second, which is what devlink(8) means by `bps`.
fn rate(asked: &Attributes<'_>, kind: u16) -> Option<String> {
    Some(format!("{}bps", asked.u64(kind).ok()??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink::{Builder, row};

    const ALL: &[u16] = &[
        a::BUS_NAME,
        a::DEV_NAME,
        a::PORT_INDEX,
        a::ESWITCH_MODE,
        a::ESWITCH_INLINE_MODE,
        a::ESWITCH_ENCAP_MODE,
        a::PARAM_NAME,
        a::PARAM_TYPE,
        a::PARAM_VALUE_DATA,
        a::PARAM_VALUE_CMODE,
        a::PORT_FLAVOUR,
        a::PORT_PCI_PF_NUMBER,
        a::PORT_PCI_SF_NUMBER,
        a::PORT_FUNCTION,
        a::RATE_NODE_NAME,
        a::RATE_TX_MAX,
        a::RATE_PARENT_NODE_NAME,
    ];

    fn words(number: u8, fill: impl FnOnce(&mut Builder)) -> String {
        let built = row(|to| {
            to.text(a::BUS_NAME, "pci").text(a::DEV_NAME, "0000:08:00.0");
            fill(to);
        });
        in_words(number, &Attributes::parse(&built.unwrap(), 0, ALL).unwrap())
    }

    #[test]
    fn nothing_that_was_asked_for_is_left_out() {
        const PF: &str = "pci/0000:08:00.0";
        let set = words(command::ESWITCH_SET, |to| {
            to.u16(a::ESWITCH_MODE, 1).u8(a::ESWITCH_INLINE_MODE, 2).u8(a::ESWITCH_ENCAP_MODE, 0);
        });
        assert_eq!(set, format!("devlink dev eswitch set {PF} mode switchdev inline-mode network encap-mode none"));
        let unknown = words(command::ESWITCH_SET, |to| {
            to.u16(a::ESWITCH_MODE, 7);
        });
        assert_eq!(unknown, format!("devlink dev eswitch set {PF} mode 7"));
        let flag = words(command::PARAM_SET, |to| {
            to.text(a::PARAM_NAME, "esw_multiport").u8(a::PARAM_TYPE, nla::FLAG).u8(a::PARAM_VALUE_CMODE, 0);
        });
        assert_eq!(flag, format!("devlink dev param set {PF} name esw_multiport value false cmode runtime"));
        let function = words(command::PORT_SET, |to| {
            to.u32(a::PORT_INDEX, 32_768).nest(a::PORT_FUNCTION, |to| {
                to.put(function::HW_ADDR, &[0, 0x11, 0x22, 0x33, 0x44, 0x55]).u8(function::STATE, 1);
                to.bitfield(function::CAPS, 2, function::CAP_ROCE | 2 | 1 << 9);
            });
        });
        let expected = "devlink port function set pci/0000:08:00.0/32768 hw_addr 00:11:22:33:44:55 roce disable \
             migratable enable 9 disable state active";
        assert_eq!(function, expected);
        let add = words(command::PORT_NEW, |to| {
            to.u16(a::PORT_FLAVOUR, flavour::PCI_SF).u16(a::PORT_PCI_PF_NUMBER, 0).u32(a::PORT_PCI_SF_NUMBER, 88);
        });
        assert_eq!(add, format!("devlink port add {PF} flavour pcisf pfnum 0 sfnum 88"));
        let rate = words(command::RATE_SET, |to| {
            to.text(a::RATE_NODE_NAME, "group1").u64(a::RATE_TX_MAX, 125).text(a::RATE_PARENT_NODE_NAME, "");
        });
        assert_eq!(rate, format!("devlink port function rate set {PF}/group1 tx_max 125bps parent \"\""));
    }

    #[test]
    fn a_command_to_a_pf_touches_no_other() {
        let card = CardConfig { pfs: 2, ..CardConfig::default() };
        let pf: PciAddress = "0000:08:00.0".parse().unwrap();
        let built = row(|to| {
            to.text(a::BUS_NAME, "pci").text(a::DEV_NAME, "0000:08:00.0");
        });
        let built = built.unwrap();
        let asked = Attributes::parse(&built, 0, ALL).unwrap();
        assert_eq!(touched(&card, command::ESWITCH_GET, &asked), Touched::Nothing);
        assert_eq!(touched(&card, command::PORT_SET, &asked), Touched::Pf(pf));
        assert_eq!(touched(&card, command::RELOAD, &asked), Touched::PfAndMultiport(pf));
    }
}
