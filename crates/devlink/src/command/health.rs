//! `devlink health`. Each PF has a reporter of this card's own, `representors`, which is in state `error` while a
//! representor that should be loaded is not. The other reporters are mlx5's, in `reporters`, and always healthy, because
//! this card has no firmware and no queues that could fail.

mod reporters;

use eswitch::eswitch::RepFailure;
use eswitch::inspect::{PfView, RepState};
use eswitch::{PciAddress, PortHandle, RepType};
use netlink::{Builder, Errno};

use self::reporters::Reporter;
use super::dev::{bound, put_device};
use crate::card::{Cx, Served};
use crate::instance::{self, Named};
use crate::nests::nest;
use crate::numbers::{attribute as a, command as c, nla};
use crate::refusal::Refusal;
use crate::reply::ReplyWriter;
use crate::request::Attributes;

const REPORTER: &str = "representors";

/// DEVLINK_HEALTH_REPORTER_STATE_*.
const HEALTHY: u8 = 0;
const ERROR: u8 = 1;

/// What should be loaded and is not.
pub(crate) enum NotLoaded<'a> {
    /// A representor of a port.
    Representor(PortHandle, RepType, &'a RepFailure),
    /// On a DPU, the VFs of the host; with the error.
    HostVfs(PciAddress, &'a str),
}

impl<'a> NotLoaded<'a> {
    /// All that a PF should have loaded and has not.
    pub(crate) fn of(pf: &'a PfView) -> Vec<Self> {
        let mut found = Vec::new();
        for port in &pf.ports {
            for (ty, state) in RepType::ALL.into_iter().zip(&port.reps) {
                if let RepState::Failed(failure) = state {
                    found.push(Self::Representor(port.handle, ty, failure));
                }
            }
        }
        found.extend(pf.host_failure.as_deref().map(|error| Self::HostVfs(pf.address, error)));
        found
    }

    /// The values that the diagnosis reports for `port`, `type` and `error`.
    fn texts(&self) -> [String; 3] {
        match self {
            Self::Representor(port, ty, failure) => [port.to_string(), ty.to_string(), failure.error.to_string()],
            Self::HostVfs(pf, error) => [format!("pci/{pf}"), "host".to_owned(), (*error).to_owned()],
        }
    }
}

/// The message that describes the reporter of what is not loaded.
pub(crate) fn reporter_message(to: &mut Builder, pf: &PfView) {
    put_device(to, pf.address);
    let failed = NotLoaded::of(pf).len() as u64;
    nest(to, a::HEALTH_REPORTER, |to| {
        to.text(a::HEALTH_REPORTER_NAME, REPORTER);
        to.u8(a::HEALTH_REPORTER_STATE, if failed == 0 { HEALTHY } else { ERROR });
        to.u64(a::HEALTH_REPORTER_ERR_COUNT, failed).u64(a::HEALTH_REPORTER_RECOVER_COUNT, 0);
        to.u64(a::HEALTH_REPORTER_GRACEFUL_PERIOD, 0).u8(a::HEALTH_REPORTER_AUTO_RECOVER, 1);
    });
}

/// A reporter that a request names.
enum Found {
    /// The reporter of what is not loaded.
    Representors(Box<PfView>),
    /// One of mlx5's.
    Mlx5(Reporter),
}

/// The reporter that a request names.
///
/// # Errors
/// ENODEV: no instance has that handle. EINVAL: the instance, or its port if the request has one, has no such reporter
/// (`devlink_health_reporter_get_from_attrs` in `net/devlink/health.c`).
fn named(served: &Served, cx: Cx<'_, '_>, attributes: &Attributes<'_>) -> Result<Found, Refusal> {
    let found = instance::find(served, cx, attributes.required_handle()?)?;
    let port = attributes.u32(a::PORT_INDEX)?;
    let name = attributes.text(a::HEALTH_REPORTER_NAME)?.ok_or(Refusal::bare(Errno::INVAL))?;
    let reporters = match found {
        Named::Pf(device) => {
            let pf = served.card.engine().inspect_pf(cx, device)?;
            if port.is_none() && name == REPORTER {
                return Ok(Found::Representors(Box::new(pf)));
            }
            reporters::of_pf(&pf, served.card.engine().config().dpu)
        }
        Named::Function(instance) => reporters::of_instance(&instance),
    };
    let reporter = reporters.into_iter().find(|reporter| reporter.port == port && reporter.kind.name() == name);
    reporter.map(Found::Mlx5).ok_or(Refusal::bare(Errno::INVAL))
}

pub(super) fn get(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    match named(served, cx, attributes)? {
        Found::Representors(pf) => reply.add(c::HEALTH_GET, |to| reporter_message(to, &pf)),
        Found::Mlx5(reporter) => {
            let settings = served.settings.reporter(cx, reporter.key());
            reply.add(c::HEALTH_GET, |to| reporter.put(to, settings));
        }
    }
    Ok(())
}

/// Reports the reporters of each instance, first those of the instance and then those of its ports. If the request has
/// a port, only those of that port.
pub(super) fn get_all(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let (devices, instances) = match attributes.handle()? {
        None => (bound(served, cx), instance::all_of(served, cx)),
        Some(handle) => match instance::find(served, cx, handle)? {
            Named::Pf(device) => (vec![device], Vec::new()),
            Named::Function(instance) => (Vec::new(), vec![instance]),
        },
    };
    let port = attributes.u32(a::PORT_INDEX)?;
    let mut add = |cx: Cx<'_, '_>, reporters: Vec<Reporter>| {
        for reporter in reporters.into_iter().filter(|reporter| port.is_none() || reporter.port == port) {
            let settings = served.settings.reporter(cx, reporter.key());
            reply.add(c::HEALTH_GET, |to| reporter.put(to, settings));
        }
    };
    let mut own = Vec::new();
    for device in devices {
        let Ok(pf) = served.card.engine().inspect_pf(cx, device) else { continue };
        add(cx, reporters::of_pf(&pf, served.card.engine().config().dpu));
        own.push(pf);
    }
    instances.iter().for_each(|instance| add(cx, reporters::of_instance(instance)));
    for pf in own.iter().filter(|_| port.is_none()) {
        reply.add(c::HEALTH_GET, |to| reporter_message(to, pf));
    }
    Ok(())
}

/// A reporter that is healthy has nothing to recover from, and the kernel does not call its driver
/// (`devlink_health_reporter_recover` in `net/devlink/health.c`).
pub(super) fn recover(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    match named(served, cx, attributes)? {
        Found::Representors(pf) => Ok(served.card.engine().recover(cx, pf.address)?),
        Found::Mlx5(_) => Ok(()),
    }
}

/// Changes the settings of a reporter that its driver's operations give a sense
/// (`devlink_nl_health_reporter_set_doit`).
pub(super) fn set(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let Found::Mlx5(reporter) = named(served, cx, attributes)? else {
        return Err(Refusal::unsupported("the reporter `representors` is this card's own, and its settings are fixed"));
    };
    let grace_period = attributes.u64(a::HEALTH_REPORTER_GRACEFUL_PERIOD)?;
    let auto_recover = attributes.u8(a::HEALTH_REPORTER_AUTO_RECOVER)?.map(|on| on != 0);
    let auto_dump = attributes.u8(a::HEALTH_REPORTER_AUTO_DUMP)?.map(|on| on != 0);
    let of_recovery = grace_period.is_some() || auto_recover.is_some();
    if (of_recovery && !reporter.recovers()) || (auto_dump.is_some() && !reporter.kind.has_dump()) {
        return Err(Refusal::bare(Errno::OPNOTSUPP));
    }
    served.settings.set_reporter(cx, reporter.key(), |settings| {
        settings.grace_period = grace_period.or(settings.grace_period);
        settings.auto_recover = auto_recover.or(settings.auto_recover);
        settings.auto_dump = auto_dump.or(settings.auto_dump);
    });
    Ok(())
}

/// Refuses a dump as mlx5 does on a card that has nothing to dump.
pub(super) fn dump(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    // In a dump an instance that there is not is as bad as a reporter that there is not.
    let found = named(served, cx, attributes).map_err(|_| Refusal::bare(Errno::INVAL))?;
    match found {
        Found::Representors(_) => Err(Refusal::bare(Errno::OPNOTSUPP)),
        Found::Mlx5(reporter) => Err(Refusal::bare(reporter.no_dump())),
    }
}

/// Clears the last dump of a reporter, of which there is none.
pub(super) fn dump_clear(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    match named(served, cx, attributes)? {
        Found::Mlx5(reporter) if reporter.kind.has_dump() => Ok(()),
        Found::Mlx5(_) | Found::Representors(_) => Err(Refusal::bare(Errno::OPNOTSUPP)),
    }
}

/// Refuses a test: no reporter of mlx5 has one.
pub(super) fn test(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    named(served, cx, attributes)?;
    Err(Refusal::bare(Errno::OPNOTSUPP))
}

fn pair(to: &mut Builder, name: &str, value: &str) {
    to.flag(a::FMSG_PAIR_NEST_START).text(a::FMSG_OBJ_NAME, name);
    to.u8(a::FMSG_OBJ_VALUE_TYPE, nla::STRING).text(a::FMSG_OBJ_VALUE_DATA, value).flag(a::FMSG_NEST_END);
}

pub(super) fn diagnose(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    /// As many as fit into one message, however long their texts are.
    const SHOWN: usize = 64;
    let pf = match named(served, cx, attributes)? {
        Found::Representors(pf) => pf,
        Found::Mlx5(reporter) => return reporter.diagnose(reply),
    };
    let not_loaded = NotLoaded::of(&pf);
    reply.add(c::HEALTH_DIAGNOSE, |to| {
        nest(to, a::FMSG, |to| {
            to.flag(a::FMSG_OBJ_NEST_START);
            pair(to, "not loaded", &not_loaded.len().to_string());
            to.flag(a::FMSG_PAIR_NEST_START).text(a::FMSG_OBJ_NAME, "representors").flag(a::FMSG_ARR_NEST_START);
            for [port, ty, error] in not_loaded.iter().take(SHOWN).map(NotLoaded::texts) {
                to.flag(a::FMSG_OBJ_NEST_START);
                pair(to, "port", &port);
                pair(to, "type", &ty);
                pair(to, "error", &error);
                to.flag(a::FMSG_NEST_END);
            }
            to.flag(a::FMSG_NEST_END).flag(a::FMSG_NEST_END).flag(a::FMSG_NEST_END);
        });
    });
    Ok(())
}
