//! Reports commands to the [host](crate::Host) of a card: in words for a log, with the state that they may have changed.

use std::fmt;

use control::devlink::{DevlinkHandle, DevlinkOption, DevlinkVerb, HandlePart, ParamValue};
use control::{Command, DevlinkCommand};
use eswitch::vf::VfSetting;
use eswitch::{CardConfig, PciAddress, Touched, Vport};

use crate::card::{Cx, Served};
use crate::numbers::{attribute as a, command, function, nla};
use crate::rdma_core::RdmaChange;
use crate::refusal::Refusal;
use crate::request::Attributes;

/// A command that has been carried out, or refused.
#[derive(Clone, Copy)]
pub struct CarriedOut<'a> {
    /// The command in the words that a person would type, for a log. They are made when they are formatted, so a command
    /// that is not logged costs nothing.
    pub words: &'a dyn fmt::Display,
    /// The part of the agreed state that the command may have changed.
    pub touched: Touched,
    /// Whether the command may have changed what the server [keeps](crate::Kept), besides what it forgets of what is gone.
    pub keeps: bool,
    /// What was set and has no effect on traffic, on any card.
    pub not_enforced: Option<&'static str>,
}

/// Words that are made when they are formatted.
struct Words<F>(F);

impl<F: Fn() -> String> fmt::Display for Words<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&(self.0)())
    }
}

/// Reports a devlink command to the host of the card. Returns the outcome with which the command is answered.
pub(crate) fn devlink_command(
    served: &Served,
    cx: Cx<'_, '_>,
    number: u8,
    asked: &Attributes<'_>,
    outcome: Result<(), Refusal>,
) -> Result<(), Refusal> {
    let Some(host) = &served.host else { return outcome };
    let touched = touched(served.card.engine().config(), number, asked);
    let words = Words(|| in_words(number, asked));
    let keeps =
        matches!(number, command::PARAM_SET | command::TRAP_SET | command::TRAP_GROUP_SET | command::HEALTH_SET);
    let done = CarriedOut { words: &words, touched, keeps, not_enforced: None };
    let stored = host.carried_out(cx, served, &done, outcome.as_ref().copied());
    // Of two failures the first is answered.
    outcome.and(stored)
}

/// Reports a command that a lab has sent to the host of the card. Returns the outcome with which it is answered.
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
    // Loading a module that depends on the core module has loaded the core module, which binds every PF.
    let touched = if engine.core_loads() == core_loads { command.touches(card) } else { Touched::Everything };
    let words = Words(|| command.in_words(card));
    let done = CarriedOut { words: &words, touched, keeps: false, not_enforced: not_enforced(command) };
    let stored = host.carried_out(cx, served, &done, outcome.as_ref().copied());
    outcome.and(stored)
}

/// What a command sets that has no effect on traffic.
fn not_enforced(command: &Command) -> Option<&'static str> {
    match command {
        Command::SetVf { settings, .. } if settings.contains(&VfSetting::Trust(true)) => Some("trust"),
        _ => None,
    }
}

/// Reports a change to what the RDMA core knows to the host of the card.
pub(crate) fn rdma_change(
    served: &Served,
    cx: Cx<'_, '_>,
    change: &RdmaChange,
    outcome: Result<(), Refusal>,
) -> Result<(), Refusal> {
    let Some(host) = &served.host else { return outcome };
    let words = Words(|| change.in_words());
    let done = CarriedOut { words: &words, touched: Touched::Nothing, keeps: true, not_enforced: None };
    let stored = host.carried_out(cx, served, &done, outcome.as_ref().copied());
    outcome.and(stored)
}

/// Reports to the host of the card that an instance was reloaded because its network namespace has died.
pub(crate) fn homecoming(served: &Served, cx: Cx<'_, '_>, pf: PciAddress, vport: Vport, outcome: Result<(), Refusal>) {
    let Some(host) = &served.host else { return };
    let words =
        Words(|| format!("the devlink instance of {vport} of pci/{pf} reloaded, as its network namespace died"));
    let done = CarriedOut { words: &words, touched: Touched::PfAndMultiport(pf), keeps: false, not_enforced: None };
    // Nobody waits for an answer. The host logs what it could not store.
    let _ = host.carried_out(cx, served, &done, outcome.as_ref().copied());
}

/// The part of the view that a devlink command may have changed, which is more than the part of the agreed state.
pub(crate) fn touched_view(card: &CardConfig, number: u8, asked: &Attributes<'_>) -> Touched {
    match (number, asked.device()) {
        // It may have loaded representors that were missing.
        (command::HEALTH_RECOVER, Ok(address)) => Touched::Pf(pf_of(card, address)),
        _ => touched(card, number, asked),
    }
}

/// The PF that an address belongs to: its own, or that of which it is a VF.
fn pf_of(card: &CardConfig, address: PciAddress) -> PciAddress {
    card.vf_at(address).map_or(address, |(pf, _)| card.pf_address(pf))
}

/// The part of the agreed state that a devlink command may have changed.
fn touched(card: &CardConfig, number: u8, asked: &Attributes<'_>) -> Touched {
    let of: fn(PciAddress) -> Touched = match number {
        command::ESWITCH_GET | command::HEALTH_RECOVER | command::HEALTH_DIAGNOSE => return Touched::Nothing,
        // What they set is kept by the server.
        command::HEALTH_SET | command::HEALTH_DUMP_GET | command::HEALTH_DUMP_CLEAR | command::HEALTH_TEST => {
            return Touched::Nothing;
        }
        command::TRAP_SET | command::TRAP_GROUP_SET | command::FLASH_UPDATE | command::RESOURCE_SET => {
            return Touched::Nothing;
        }
        command::REGION_NEW | command::REGION_DEL | command::REGION_READ => return Touched::Nothing,
        command::PORT_SET | command::PORT_NEW | command::PORT_DEL => Touched::Pf,
        command::RATE_SET | command::RATE_NEW | command::RATE_DEL => Touched::Pf,
        command::ESWITCH_SET | command::RELOAD | command::PARAM_SET => Touched::PfAndMultiport,
        _ => return Touched::Everything,
    };
    match asked.device() {
        Ok(address) => of(pf_of(card, address)),
        // The instance of an SF, whose PF only the engine knows; or no instance.
        Err(_) => Touched::Everything,
    }
}

/// A request in the words of devlink(8), for a log.
fn in_words(number: u8, request: &Attributes<'_>) -> String {
    let verb = match number {
        command::PORT_SET if request.has(a::PORT_FUNCTION) => DevlinkVerb::FunctionSet,
        command::PORT_SET => DevlinkVerb::PortSet,
        command::PORT_NEW => DevlinkVerb::PortAdd,
        command::PORT_DEL => DevlinkVerb::PortDel,
        command::ESWITCH_GET => DevlinkVerb::EswitchShow,
        command::ESWITCH_SET => DevlinkVerb::EswitchSet,
        command::RELOAD => DevlinkVerb::DevReload,
        command::PARAM_SET => DevlinkVerb::ParamSet,
        command::HEALTH_RECOVER => DevlinkVerb::HealthRecover,
        command::HEALTH_DIAGNOSE => DevlinkVerb::HealthDiagnose,
        command::RATE_SET => DevlinkVerb::RateSet,
        command::RATE_NEW => DevlinkVerb::RateAdd,
        command::RATE_DEL => DevlinkVerb::RateDel,
        _ => return format!("devlink command {number}"),
    };
    let mut options: Vec<DevlinkOption> = OPTIONS.iter().filter_map(|read| read(request)).collect();
    if let Ok(Some(request)) = request.nested(a::PORT_FUNCTION, &[function::HW_ADDR, function::STATE, function::CAPS]) {
        options.extend(of_function(&request));
    }
    DevlinkCommand { verb, handle: handle(request), options }.to_string()
}

/// The instance, port or rate node of a request.
fn handle(request: &Attributes<'_>) -> Option<DevlinkHandle> {
    let handle = request.handle().ok()??;
    let port = request.u32(a::PORT_INDEX).ok().flatten().map(HandlePart::Port);
    let node = || Some(HandlePart::RateNode(request.text(a::RATE_NODE_NAME).ok()??.to_owned()));
    Some(DevlinkHandle { bus: handle.bus.to_owned(), device: handle.device.to_owned(), part: port.or_else(node) })
}

/// Reads an option of a request; `None` if the request has none of the kind, or one with a value of another type.
type ReadOption = fn(&Attributes<'_>) -> Option<DevlinkOption>;

/// Every option but those of functions, in the order in which they are written.
const OPTIONS: &[ReadOption] = &[
    |request| Some(DevlinkOption::Mode(request.u16(a::ESWITCH_MODE).ok()??)),
    |request| Some(DevlinkOption::InlineMode(request.u8(a::ESWITCH_INLINE_MODE).ok()??)),
    |request| Some(DevlinkOption::EncapMode(request.u8(a::ESWITCH_ENCAP_MODE).ok()??)),
    |request| Some(DevlinkOption::NetnsPid(request.u32(a::NETNS_PID).ok()??)),
    |request| Some(DevlinkOption::NetnsFd(request.u32(a::NETNS_FD).ok()??)),
    |request| Some(DevlinkOption::NetnsId(request.u32(a::NETNS_ID).ok()??)),
    |request| Some(DevlinkOption::ReloadAction(request.u8(a::RELOAD_ACTION).ok()??)),
    |request| Some(DevlinkOption::ReloadLimits(request.bitfield(a::RELOAD_LIMITS).ok()??.0)),
    |request| Some(DevlinkOption::ParamName(request.text(a::PARAM_NAME).ok()??.to_owned())),
    |request| {
        Some(DevlinkOption::ParamValue(match request.u8(a::PARAM_TYPE).ok()?? {
            nla::FLAG => ParamValue::Flag(request.has(a::PARAM_VALUE_DATA)),
            nla::U32 => ParamValue::Number(request.u32(a::PARAM_VALUE_DATA).ok()??),
            nla::STRING => ParamValue::Text(request.text(a::PARAM_VALUE_DATA).ok()??.to_owned()),
            _ => ParamValue::Bytes(request.bytes(a::PARAM_VALUE_DATA)?.to_owned()),
        }))
    },
    |request| Some(DevlinkOption::ParamCmode(request.u8(a::PARAM_VALUE_CMODE).ok()??)),
    |request| Some(DevlinkOption::PortType(request.u16(a::PORT_TYPE).ok()??)),
    |request| Some(DevlinkOption::Flavour(request.u16(a::PORT_FLAVOUR).ok()??)),
    |request| Some(DevlinkOption::PfNum(request.u16(a::PORT_PCI_PF_NUMBER).ok()??.into())),
    |request| Some(DevlinkOption::SfNum(request.u32(a::PORT_PCI_SF_NUMBER).ok()??)),
    |request| Some(DevlinkOption::Controller(request.u32(a::PORT_CONTROLLER_NUMBER).ok()??)),
    |request| Some(DevlinkOption::TxShare(request.u64(a::RATE_TX_SHARE).ok()??)),
    |request| Some(DevlinkOption::TxMax(request.u64(a::RATE_TX_MAX).ok()??)),
    |request| Some(DevlinkOption::TxPriority(request.u32(a::RATE_TX_PRIORITY).ok()??)),
    |request| Some(DevlinkOption::TxWeight(request.u32(a::RATE_TX_WEIGHT).ok()??)),
    |request| Some(DevlinkOption::Parent(request.text(a::RATE_PARENT_NODE_NAME).ok()??.to_owned())),
    |request| Some(DevlinkOption::Reporter(request.text(a::HEALTH_REPORTER_NAME).ok()??.to_owned())),
];

/// What a request sets of a function.
fn of_function(request: &Attributes<'_>) -> Vec<DevlinkOption> {
    let address = request.bytes(function::HW_ADDR).map(|address| DevlinkOption::HwAddr(address.to_owned()));
    let (value, selector) = request.bitfield(function::CAPS).ok().flatten().unwrap_or_default();
    let bits = (0..u32::BITS).filter(|bit| selector & (1 << bit) != 0);
    let capabilities = bits.map(|bit| DevlinkOption::Capability(bit, value & (1 << bit) != 0));
    let state = request.u8(function::STATE).ok().flatten().map(DevlinkOption::State);
    address.into_iter().chain(capabilities).chain(state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink::{Builder, row};

    use crate::numbers::flavour;

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
