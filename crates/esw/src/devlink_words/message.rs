//! devlink commands as messages of the protocol.

use control::DevlinkCommand;
use control::devlink::{DevlinkOption, DevlinkVerb, HandlePart, ParamValue};
use devlink::numbers::{attribute as a, command as c, function, nla};
use netlink::Builder;

/// The number of the generic netlink command that a verb sends; `None`: it sends none.
pub fn number(verb: DevlinkVerb) -> Option<u8> {
    Some(match verb {
        DevlinkVerb::DevShow => c::GET,
        DevlinkVerb::DevInfo => c::INFO_GET,
        DevlinkVerb::DevReload => c::RELOAD,
        DevlinkVerb::EswitchShow => c::ESWITCH_GET,
        DevlinkVerb::EswitchSet => c::ESWITCH_SET,
        DevlinkVerb::ParamShow => c::PARAM_GET,
        DevlinkVerb::ParamSet => c::PARAM_SET,
        DevlinkVerb::PortShow => c::PORT_GET,
        DevlinkVerb::PortSet | DevlinkVerb::FunctionSet => c::PORT_SET,
        DevlinkVerb::PortAdd => c::PORT_NEW,
        DevlinkVerb::PortDel => c::PORT_DEL,
        DevlinkVerb::RateShow => c::RATE_GET,
        DevlinkVerb::RateSet => c::RATE_SET,
        DevlinkVerb::RateAdd => c::RATE_NEW,
        DevlinkVerb::RateDel => c::RATE_DEL,
        DevlinkVerb::HealthShow => c::HEALTH_GET,
        DevlinkVerb::HealthDiagnose => c::HEALTH_DIAGNOSE,
        DevlinkVerb::HealthRecover => c::HEALTH_RECOVER,
        DevlinkVerb::MonitorAll | DevlinkVerb::MonitorDev | DevlinkVerb::MonitorPort => return None,
    })
}

/// Writes the attributes of a command's message.
pub fn write(command: &DevlinkCommand, to: &mut Builder) {
    if let Some(handle) = &command.handle {
        to.text(a::BUS_NAME, &handle.bus).text(a::DEV_NAME, &handle.device);
        match &handle.part {
            None => {}
            Some(HandlePart::Port(index)) => {
                to.u32(a::PORT_INDEX, *index);
            }
            Some(HandlePart::RateNode(name)) => {
                to.text(a::RATE_NODE_NAME, name);
            }
        }
    }
    let mut of_function = Builder::default();
    for option in &command.options {
        write_option(option, to, &mut of_function);
    }
    if !of_function.is_empty() {
        to.nest(a::PORT_FUNCTION, |to| {
            to.append(&of_function);
        });
    }
}

/// Writes an option among the attributes of the message, or among those of its function.
fn write_option(option: &DevlinkOption, to: &mut Builder, of_function: &mut Builder) {
    match option {
        DevlinkOption::Mode(mode) => to.u16(a::ESWITCH_MODE, *mode),
        DevlinkOption::InlineMode(mode) => to.u8(a::ESWITCH_INLINE_MODE, *mode),
        DevlinkOption::EncapMode(mode) => to.u8(a::ESWITCH_ENCAP_MODE, *mode),
        // A descriptor of it goes along.
        DevlinkOption::Netns(_) => to.u32(a::NETNS_FD, 0),
        DevlinkOption::NetnsPid(pid) => to.u32(a::NETNS_PID, *pid),
        DevlinkOption::NetnsFd(fd) => to.u32(a::NETNS_FD, *fd),
        DevlinkOption::NetnsId(id) => to.u32(a::NETNS_ID, *id),
        DevlinkOption::ReloadAction(action) => to.u8(a::RELOAD_ACTION, *action),
        DevlinkOption::ReloadLimits(limits) => to.bitfield(a::RELOAD_LIMITS, *limits, *limits),
        DevlinkOption::ParamName(name) => to.text(a::PARAM_NAME, name),
        DevlinkOption::ParamValue(ParamValue::Flag(true)) => to.u8(a::PARAM_TYPE, nla::FLAG).flag(a::PARAM_VALUE_DATA),
        DevlinkOption::ParamValue(ParamValue::Flag(false)) => to.u8(a::PARAM_TYPE, nla::FLAG),
        DevlinkOption::ParamValue(ParamValue::Number(number)) => {
            to.u8(a::PARAM_TYPE, nla::U32).u32(a::PARAM_VALUE_DATA, *number)
        }
        DevlinkOption::ParamValue(ParamValue::Text(text)) => {
            to.u8(a::PARAM_TYPE, nla::STRING).text(a::PARAM_VALUE_DATA, text)
        }
        DevlinkOption::ParamValue(ParamValue::Bytes(bytes)) => to.put(a::PARAM_VALUE_DATA, bytes),
        DevlinkOption::ParamCmode(mode) => to.u8(a::PARAM_VALUE_CMODE, *mode),
        DevlinkOption::PortType(kind) => to.u16(a::PORT_TYPE, *kind),
        DevlinkOption::Flavour(flavour) => to.u16(a::PORT_FLAVOUR, *flavour),
        // The grammar takes no more than 16 bits.
        DevlinkOption::PfNum(number) => to.u16(a::PORT_PCI_PF_NUMBER, u16::try_from(*number).unwrap_or(u16::MAX)),
        DevlinkOption::SfNum(number) => to.u32(a::PORT_PCI_SF_NUMBER, *number),
        DevlinkOption::Controller(number) => to.u32(a::PORT_CONTROLLER_NUMBER, *number),
        DevlinkOption::TxShare(rate) => to.u64(a::RATE_TX_SHARE, *rate),
        DevlinkOption::TxMax(rate) => to.u64(a::RATE_TX_MAX, *rate),
        DevlinkOption::TxPriority(number) => to.u32(a::RATE_TX_PRIORITY, *number),
        DevlinkOption::TxWeight(number) => to.u32(a::RATE_TX_WEIGHT, *number),
        DevlinkOption::Parent(name) => to.text(a::RATE_PARENT_NODE_NAME, name),
        DevlinkOption::Reporter(name) => to.text(a::HEALTH_REPORTER_NAME, name),
        DevlinkOption::HwAddr(address) => of_function.put(function::HW_ADDR, address),
        DevlinkOption::Capability(bit, on) => of_function.bitfield(function::CAPS, u32::from(*on) << bit, 1 << bit),
        DevlinkOption::State(state) => of_function.u8(function::STATE, *state),
    };
}
