//! `devlink health`: each PF has one reporter, `representors`, which is in state `error` while a representor that
//! should be loaded is not.

use eswitch::eswitch::RepFailure;
use eswitch::inspect::{PfView, RepState};
use eswitch::{PciAddress, PortHandle, RepType};
use netlink::{Builder, Errno};

use super::dev::{bound, put_device};
use crate::card::{Cx, Served};
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
enum NotLoaded<'a> {
    /// A representor of a port.
    Representor(PortHandle, RepType, &'a RepFailure),
    /// On a DPU, the VFs of the host; with the error.
    HostVfs(PciAddress, &'a str),
}

impl NotLoaded<'_> {
    /// The values that the diagnosis reports for `port`, `type` and `error`.
    fn texts(&self) -> [String; 3] {
        match self {
            Self::Representor(port, ty, failure) => [port.to_string(), ty.to_string(), failure.error.to_string()],
            Self::HostVfs(pf, error) => [format!("pci/{pf}"), "host".to_owned(), (*error).to_owned()],
        }
    }
}

fn not_loaded(pf: &PfView) -> Vec<NotLoaded<'_>> {
    let mut found = Vec::new();
    for port in &pf.ports {
        for (ty, state) in RepType::ALL.into_iter().zip(&port.reps) {
            if let RepState::Failed(failure) = state {
                found.push(NotLoaded::Representor(port.handle, ty, failure));
            }
        }
    }
    found.extend(pf.host_failure.as_deref().map(|error| NotLoaded::HostVfs(pf.address, error)));
    found
}

fn reporter_message(to: &mut Builder, pf: &PfView) {
    put_device(to, pf.address);
    let failed = not_loaded(pf).len() as u64;
    nest(to, a::HEALTH_REPORTER, |to| {
        to.text(a::HEALTH_REPORTER_NAME, REPORTER);
        to.u8(a::HEALTH_REPORTER_STATE, if failed == 0 { HEALTHY } else { ERROR });
        to.u64(a::HEALTH_REPORTER_ERR_COUNT, failed).u64(a::HEALTH_REPORTER_RECOVER_COUNT, 0);
        to.u64(a::HEALTH_REPORTER_GRACEFUL_PERIOD, 0).u8(a::HEALTH_REPORTER_AUTO_RECOVER, 1);
    });
}

/// The PF that a request names.
///
/// # Errors
/// EINVAL: the request names another reporter, or a port. Those of [`eswitch::Engine::inspect_pf`].
fn named(served: &Served, cx: Cx<'_, '_>, attributes: &Attributes<'_>) -> Result<PfView, Refusal> {
    let pf = served.card.engine().inspect_pf(cx, attributes.device()?)?;
    let name = attributes.text(a::HEALTH_REPORTER_NAME)?;
    if attributes.has(a::PORT_INDEX) || name != Some(REPORTER) {
        return Err(Refusal::bare(Errno::INVAL));
    }
    Ok(pf)
}

pub(super) fn get(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let pf = named(served, cx, attributes)?;
    reply.add(c::HEALTH_GET, |to| reporter_message(to, &pf));
    Ok(())
}

pub(super) fn get_all(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let devices: Vec<PciAddress> = match attributes.handle()? {
        Some(handle) => vec![handle.device()?],
        None => bound(served, cx),
    };
    if attributes.has(a::PORT_INDEX) {
        return Ok(());
    }
    for device in devices {
        let Ok(pf) = served.card.engine().inspect_pf(cx, device) else { continue };
        reply.add(c::HEALTH_GET, |to| reporter_message(to, &pf));
    }
    Ok(())
}

pub(super) fn recover(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let pf = named(served, cx, attributes)?;
    Ok(served.card.engine().recover(cx, pf.address)?)
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
    let pf = named(served, cx, attributes)?;
    let not_loaded = not_loaded(&pf);
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
