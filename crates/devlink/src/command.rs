//! The commands of the devlink family: what each may be asked with, and what answers it.

mod dev;
mod health;
mod param;
mod port;
mod rate;

use crate::answer::Reply;
use crate::card::{Cx, Served};
use crate::numbers::{attribute as a, command as c};
use crate::refusal::Refusal;
use crate::request::Attributes;

pub(crate) use dev::device_message;
pub(crate) use port::port_message;

/// What answers a request: it adds replies, and says whether it could.
pub(crate) type Handler = fn(&Served, Cx<'_, '_>, &Attributes<'_>, &mut Reply<'_>) -> Result<(), Refusal>;

/// A command.
pub(crate) struct Command {
    pub number: u8,
    /// Whether it takes the right to change things, as with the kernel: also some that only look.
    pub admin: bool,
    /// The attributes it takes.
    pub allowed: &'static [u16],
    /// What answers a request for one.
    pub one: Option<Handler>,
    /// What answers a request for all.
    pub all: Option<Handler>,
}

const DEVICE: &[u16] = &[a::BUS_NAME, a::DEV_NAME];
const PORT: &[u16] = &[a::BUS_NAME, a::DEV_NAME, a::PORT_INDEX];

/// Whether a command is one that the kernel marks GENL_ADMIN_PERM (`devlink_nl_ops` in `net/devlink/netlink_gen.c`): it
/// takes CAP_NET_ADMIN in the initial user namespace, also some that only look. True also for what devlink has and this
/// card does not support, which is told only to those who may.
#[must_use]
pub fn takes_admin(number: u8, is_dump: bool) -> bool {
    match COMMANDS.iter().find(|command| command.number == number) {
        Some(command) => command.admin && if is_dump { command.all.is_some() } else { command.one.is_some() },
        None if is_dump => c::UNSUPPORTED_ADMIN_DUMPS.contains(&number),
        None => c::UNSUPPORTED_ADMIN.contains(&number),
    }
}

/// Every command there is, in the order of numbers.
pub(crate) const COMMANDS: &[Command] = &[
    Command { number: c::GET, admin: false, allowed: DEVICE, one: Some(dev::get), all: Some(dev::get_all) },
    Command { number: c::PORT_GET, admin: false, allowed: PORT, one: Some(port::get), all: Some(port::get_all) },
    Command {
        number: c::PORT_SET,
        admin: true,
        allowed: &[a::BUS_NAME, a::DEV_NAME, a::PORT_INDEX, a::PORT_TYPE, a::PORT_FUNCTION],
        one: Some(port::set),
        all: None,
    },
    Command {
        number: c::PORT_NEW,
        admin: true,
        allowed: &[
            a::BUS_NAME,
            a::DEV_NAME,
            a::PORT_INDEX,
            a::PORT_FLAVOUR,
            a::PORT_PCI_PF_NUMBER,
            a::PORT_PCI_SF_NUMBER,
            a::PORT_CONTROLLER_NUMBER,
        ],
        one: Some(port::add),
        all: None,
    },
    Command { number: c::PORT_DEL, admin: true, allowed: PORT, one: Some(port::delete), all: None },
    Command { number: c::ESWITCH_GET, admin: true, allowed: DEVICE, one: Some(dev::eswitch_get), all: None },
    Command {
        number: c::ESWITCH_SET,
        admin: true,
        allowed: &[a::BUS_NAME, a::DEV_NAME, a::ESWITCH_MODE, a::ESWITCH_INLINE_MODE, a::ESWITCH_ENCAP_MODE],
        one: Some(dev::eswitch_set),
        all: None,
    },
    Command {
        number: c::RELOAD,
        admin: true,
        allowed: &[
            a::BUS_NAME,
            a::DEV_NAME,
            a::RELOAD_ACTION,
            a::RELOAD_LIMITS,
            a::NETNS_PID,
            a::NETNS_FD,
            a::NETNS_ID,
        ],
        one: Some(dev::reload),
        all: None,
    },
    Command {
        number: c::PARAM_GET,
        admin: false,
        allowed: &[a::BUS_NAME, a::DEV_NAME, a::PARAM_NAME],
        one: Some(param::get),
        all: Some(param::get_all),
    },
    Command {
        number: c::PARAM_SET,
        admin: true,
        allowed: &[a::BUS_NAME, a::DEV_NAME, a::PARAM_NAME, a::PARAM_TYPE, a::PARAM_VALUE_DATA, a::PARAM_VALUE_CMODE],
        one: Some(param::set),
        all: None,
    },
    Command { number: c::INFO_GET, admin: false, allowed: DEVICE, one: Some(dev::info), all: Some(dev::info_all) },
    Command {
        number: c::HEALTH_GET,
        admin: false,
        allowed: &[a::BUS_NAME, a::DEV_NAME, a::PORT_INDEX, a::HEALTH_REPORTER_NAME],
        one: Some(health::get),
        all: Some(health::get_all),
    },
    Command {
        number: c::HEALTH_RECOVER,
        admin: true,
        allowed: &[a::BUS_NAME, a::DEV_NAME, a::PORT_INDEX, a::HEALTH_REPORTER_NAME],
        one: Some(health::recover),
        all: None,
    },
    Command {
        number: c::HEALTH_DIAGNOSE,
        admin: true,
        allowed: &[a::BUS_NAME, a::DEV_NAME, a::PORT_INDEX, a::HEALTH_REPORTER_NAME],
        one: Some(health::diagnose),
        all: None,
    },
    Command {
        number: c::RATE_GET,
        admin: false,
        allowed: &[a::BUS_NAME, a::DEV_NAME, a::PORT_INDEX, a::RATE_NODE_NAME],
        one: Some(rate::get),
        all: Some(rate::get_all),
    },
    Command { number: c::RATE_SET, admin: true, allowed: rate::CHANGE, one: Some(rate::set), all: None },
    Command { number: c::RATE_NEW, admin: true, allowed: rate::CHANGE, one: Some(rate::add), all: None },
    Command {
        number: c::RATE_DEL,
        admin: true,
        allowed: &[a::BUS_NAME, a::DEV_NAME, a::RATE_NODE_NAME],
        one: Some(rate::delete),
        all: None,
    },
];
