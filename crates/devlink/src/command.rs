//! The commands of the devlink family: which attributes each takes, and which function answers it.

mod absent;
mod dev;
mod health;
mod param;
mod port;
mod rate;
mod reload;
mod resource;
mod trap;

use eswitch::inspect::PfView;
use eswitch::{CardConfig, Touched};
use netlink::{Datagram, Errno};

use crate::card::{Cx, Served};
use crate::carried_out;
use crate::family::{CONFIG_GROUP, DEVLINK, Family, VERSION};
use crate::numbers::{attribute as a, command as c, control};
use crate::peer::Peer;
use crate::refusal::Refusal;
use crate::reply::ReplyWriter;
use crate::request::{Attributes, split};
use crate::view::DeviceName;

pub(crate) use dev::{device_message, instance_message};
pub(crate) use health::{NotLoaded, reporter_message};
pub(crate) use port::{function_port_message, port_message};
pub(crate) use reload::bring_home;

/// Adds the notifications of what an instance that is new has from its beginning: traps and parameters
/// (`devlink_notify_register` in `net/devlink/dev.c`). `pf`: the PF that it is or belongs to. `place`: as for
/// [`message`](crate::notify::message).
pub(crate) fn notify_new(
    served: &Served,
    cx: Cx<'_, '_>,
    (device, pf): (DeviceName, Option<&PfView>),
    place: Option<u64>,
    to: &mut Datagram,
) {
    trap::notify_new(served, cx, device, place, to);
    param::notify_new(served, cx, (device, pf), place, to);
}

/// Adds the notifications that they are gone, in the opposite order (`devlink_notify_unregister`).
pub(crate) fn notify_gone(is_pf: bool, device: DeviceName, place: Option<u64>, to: &mut Datagram) {
    param::notify_gone(is_pf, device, place, to);
    trap::notify_gone(device, place, to);
}

/// Answers a request: adds messages to the reply, or refuses it.
pub(crate) type Handler = fn(&Served, Cx<'_, '_>, &Attributes<'_>, &mut ReplyWriter<'_>) -> Result<(), Refusal>;

/// A command.
struct Command {
    number: u8,
    /// Whether it takes the right to change the card. As in the kernel, some commands that only query do.
    admin: bool,
    /// The attributes it takes.
    allowed: &'static [u16],
    /// Answers a request that is no dump.
    one: Option<Handler>,
    /// Answers a dump.
    all: Option<Handler>,
}

/// Refuses a command that devlink has and this card has not.
const UNSUPPORTED: &str = "this card does not support that devlink command";

/// A request of the devlink family, decoded.
pub(crate) struct Request<'a> {
    command: &'static Command,
    handler: Handler,
    attributes: Attributes<'a>,
}

impl<'a> Request<'a> {
    /// Decodes a request.
    ///
    /// # Errors
    /// EOPNOTSUPP: the card has no such command, or not as a dump, or only as a dump. EPERM: the peer may not make it.
    /// EINVAL: an attribute is malformed.
    pub fn parse(peer: &Peer, is_dump: bool, payload: &'a [u8]) -> Result<Self, Refusal> {
        let (number, attributes) = split(payload)?;
        let Some(command) = COMMANDS.iter().find(|command| command.number == number) else {
            return Err(match number {
                1..=c::MAX => Refusal::unsupported(UNSUPPORTED),
                _ => Refusal::bare(Errno::OPNOTSUPP),
            });
        };
        if command.admin && !peer.may_change {
            return Err(Refusal::bare(Errno::PERM));
        }
        let handler = if is_dump { command.all } else { command.one };
        let Some(handler) = handler else {
            let has_none = !is_dump && command.all.is_some_and(|all| std::ptr::fn_addr_eq(all, no_objects as Handler));
            return Err(if has_none { Refusal::unsupported(UNSUPPORTED) } else { Refusal::bare(Errno::OPNOTSUPP) });
        };
        Ok(Self { command, handler, attributes: Attributes::of_request(attributes, command.allowed)? })
    }

    /// Carries the request out and answers it.
    pub fn answer(&self, served: &Served, cx: Cx<'_, '_>, reply: &mut ReplyWriter<'_>) -> Result<(), Refusal> {
        let outcome = (self.handler)(served, cx, &self.attributes, reply);
        match self.command.admin {
            true => carried_out::devlink_command(served, cx, self.command.number, &self.attributes, outcome),
            false => outcome,
        }
    }

    /// What of the view the request may have changed.
    pub fn touched(&self, card: &CardConfig) -> Touched {
        match self.command.admin {
            true => carried_out::touched_view(card, self.command.number, &self.attributes),
            false => Touched::Nothing,
        }
    }
}

/// What `nlctrl` reports of the devlink family.
pub(crate) fn family() -> Family {
    let flags = |command: &Command| {
        let flag = |is: bool, flag: u32| if is { flag } else { 0 };
        flag(command.admin, control::ADMIN)
            | flag(command.one.is_some(), control::CAN_DO)
            | flag(command.all.is_some(), control::CAN_DUMP)
            | control::HAS_POLICY
    };
    Family {
        name: "devlink",
        number: DEVLINK,
        version: VERSION.into(),
        max_attribute: 180,
        operations: COMMANDS.iter().map(|command| (command.number, flags(command))).collect(),
        groups: &[("config", CONFIG_GROUP)],
    }
}

const DEVICE: &[u16] = &[a::BUS_NAME, a::DEV_NAME];
const REGION: &[u16] = &[a::BUS_NAME, a::DEV_NAME, a::REGION_NAME];
const REPORTER: &[u16] = &[a::BUS_NAME, a::DEV_NAME, a::PORT_INDEX, a::HEALTH_REPORTER_NAME];
const TRAP: &[u16] = &[a::BUS_NAME, a::DEV_NAME, a::TRAP_NAME, a::TRAP_ACTION];
const TRAP_GROUP: &[u16] = &[a::BUS_NAME, a::DEV_NAME, a::TRAP_GROUP_NAME, a::TRAP_ACTION, a::TRAP_POLICER_ID];
const PORT: &[u16] = &[a::BUS_NAME, a::DEV_NAME, a::PORT_INDEX];

/// Whether the kernel marks a command GENL_ADMIN_PERM (`devlink_nl_ops` in `net/devlink/netlink_gen.c`), so that it takes
/// CAP_NET_ADMIN in the initial user namespace; some commands that only query do. This holds also for commands that
/// devlink has and this card does not support: only a program with that capability learns that they are not supported.
#[must_use]
pub fn takes_admin(number: u8, is_dump: bool) -> bool {
    match COMMANDS.iter().find(|command| command.number == number) {
        Some(command) => command.admin && if is_dump { command.all.is_some() } else { command.one.is_some() },
        None => !is_dump && c::UNSUPPORTED_ADMIN.contains(&number),
    }
}

/// A dump of objects of which this card has none: it succeeds and is empty, as the kernel's dumps are
/// (`devlink_nl_dumpit` in `net/devlink/netlink.c` passes over instances without such objects). A request for one object
/// is refused as not supported.
const fn empty(number: u8) -> Command {
    Command { number, admin: false, allowed: PORT, one: None, all: Some(no_objects) }
}

fn no_objects(_: &Served, _: Cx<'_, '_>, _: &Attributes<'_>, _: &mut ReplyWriter<'_>) -> Result<(), Refusal> {
    Ok(())
}

/// Every command, by number.
const COMMANDS: &[Command] = &[
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
    empty(c::SB_GET),
    empty(c::SB_POOL_GET),
    empty(c::SB_PORT_POOL_GET),
    empty(c::SB_TC_POOL_BIND_GET),
    Command { number: c::ESWITCH_GET, admin: true, allowed: DEVICE, one: Some(dev::eswitch_get), all: None },
    Command {
        number: c::ESWITCH_SET,
        admin: true,
        allowed: &[a::BUS_NAME, a::DEV_NAME, a::ESWITCH_MODE, a::ESWITCH_INLINE_MODE, a::ESWITCH_ENCAP_MODE],
        one: Some(dev::eswitch_set),
        all: None,
    },
    Command { number: c::DPIPE_TABLE_GET, admin: false, allowed: DEVICE, one: Some(resource::dpipe_tables), all: None },
    Command {
        number: c::RESOURCE_SET,
        admin: true,
        allowed: &[a::BUS_NAME, a::DEV_NAME, a::RESOURCE_ID, a::RESOURCE_SIZE],
        one: Some(resource::set),
        all: None,
    },
    Command { number: c::RESOURCE_DUMP, admin: false, allowed: DEVICE, one: Some(resource::show), all: None },
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
        one: Some(reload::reload),
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
    Command { number: c::REGION_GET, admin: false, allowed: REGION, one: Some(absent::region), all: Some(no_objects) },
    Command { number: c::REGION_NEW, admin: true, allowed: REGION, one: Some(absent::new_snapshot), all: None },
    Command { number: c::REGION_DEL, admin: true, allowed: REGION, one: Some(absent::region), all: None },
    Command { number: c::REGION_READ, admin: true, allowed: REGION, one: None, all: Some(absent::region) },
    empty(c::PORT_PARAM_GET),
    Command { number: c::INFO_GET, admin: false, allowed: DEVICE, one: Some(dev::info), all: Some(dev::info_all) },
    Command {
        number: c::HEALTH_GET,
        admin: false,
        allowed: &[a::BUS_NAME, a::DEV_NAME, a::PORT_INDEX, a::HEALTH_REPORTER_NAME],
        one: Some(health::get),
        all: Some(health::get_all),
    },
    Command {
        number: c::HEALTH_SET,
        admin: true,
        allowed: &[
            a::BUS_NAME,
            a::DEV_NAME,
            a::PORT_INDEX,
            a::HEALTH_REPORTER_NAME,
            a::HEALTH_REPORTER_GRACEFUL_PERIOD,
            a::HEALTH_REPORTER_AUTO_RECOVER,
            a::HEALTH_REPORTER_AUTO_DUMP,
        ],
        one: Some(health::set),
        all: None,
    },
    Command { number: c::HEALTH_TEST, admin: true, allowed: REPORTER, one: Some(health::test), all: None },
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
    Command { number: c::HEALTH_DUMP_GET, admin: true, allowed: REPORTER, one: None, all: Some(health::dump) },
    Command { number: c::HEALTH_DUMP_CLEAR, admin: true, allowed: REPORTER, one: Some(health::dump_clear), all: None },
    Command {
        number: c::FLASH_UPDATE,
        admin: true,
        allowed: &[
            a::BUS_NAME,
            a::DEV_NAME,
            a::FLASH_UPDATE_FILE_NAME,
            a::FLASH_UPDATE_COMPONENT,
            a::FLASH_UPDATE_OVERWRITE_MASK,
        ],
        one: Some(absent::flash),
        all: None,
    },
    Command { number: c::TRAP_GET, admin: false, allowed: TRAP, one: Some(trap::get), all: Some(trap::get_all) },
    Command { number: c::TRAP_SET, admin: true, allowed: TRAP, one: Some(trap::set), all: None },
    Command {
        number: c::TRAP_GROUP_GET,
        admin: false,
        allowed: TRAP_GROUP,
        one: Some(trap::group_get),
        all: Some(trap::group_get_all),
    },
    Command { number: c::TRAP_GROUP_SET, admin: true, allowed: TRAP_GROUP, one: Some(trap::group_set), all: None },
    empty(c::TRAP_POLICER_GET),
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
    empty(c::LINECARD_GET),
    empty(c::SELFTESTS_GET),
];
