//! `devlink health`: one reporter for each PF, `representors`, in error while one that should be loaded is
//! not.

use eswitch::PciAddress;
use eswitch::inspect::{PfView, RepState};
use netlink::{Builder, Errno};

use super::dev::{bound, put_device};
use crate::answer::Reply;
use crate::card::{Cx, Served};
use crate::numbers::{attribute as a, command as c, nla};
use crate::refusal::Refusal;
use crate::request::Attributes;

const REPORTER: &str = "representors";

/// DEVLINK_HEALTH_REPORTER_STATE_*.
const HEALTHY: u8 = 0;
const ERROR: u8 = 1;

/// What is not there that should be: port, type of representor, why.
fn failures(pf: &PfView) -> Vec<[String; 3]> {
    let mut found = Vec::new();
    for port in &pf.ports {
        for (name, state) in ["eth", "ib"].into_iter().zip(&port.reps) {
            if let RepState::Failed(failure) = state {
                found.push([port.handle.to_string(), name.to_owned(), failure.error.to_string()]);
            }
        }
    }
    if let Some(why) = &pf.host_failure {
        found.push([format!("pci/{}", pf.address), "host".to_owned(), why.clone()]);
    }
    found
}

fn reporter_message(to: &mut Builder, pf: &PfView) {
    put_device(to, pf.address);
    let failed = failures(pf).len() as u64;
    to.nest(a::HEALTH_REPORTER, |to| {
        to.text(a::HEALTH_REPORTER_NAME, REPORTER);
        to.u8(a::HEALTH_REPORTER_STATE, if failed == 0 { HEALTHY } else { ERROR });
        to.u64(a::HEALTH_REPORTER_ERR_COUNT, failed).u64(a::HEALTH_REPORTER_RECOVER_COUNT, 0);
        to.u64(a::HEALTH_REPORTER_GRACEFUL_PERIOD, 0).u8(a::HEALTH_REPORTER_AUTO_RECOVER, 1);
    });
}

/// The PF that is meant, if the reporter that is named is its.
fn named(served: &Served, cx: Cx<'_, '_>, asked: &Attributes<'_>) -> Result<PfView, Refusal> {
    let pf = served.card.engine().inspect_pf(cx, asked.device()?)?;
    let name = asked.text(a::HEALTH_REPORTER_NAME)?;
    if asked.has(a::PORT_INDEX) || name != Some(REPORTER) {
        return Err(Refusal::bare(Errno::INVAL));
    }
    Ok(pf)
}

pub(super) fn get(
    served: &Served,
    cx: Cx<'_, '_>,
    asked: &Attributes<'_>,
    reply: &mut Reply<'_>,
) -> Result<(), Refusal> {
    let pf = named(served, cx, asked)?;
    reply.add(c::HEALTH_GET, |to| reporter_message(to, &pf));
    Ok(())
}

pub(super) fn get_all(
    served: &Served,
    cx: Cx<'_, '_>,
    asked: &Attributes<'_>,
    reply: &mut Reply<'_>,
) -> Result<(), Refusal> {
    let devices: Vec<PciAddress> = match asked.handle()? {
        Some(handle) => vec![handle.device()?],
        None => bound(served, cx),
    };
    if asked.has(a::PORT_INDEX) {
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
    asked: &Attributes<'_>,
    _: &mut Reply<'_>,
) -> Result<(), Refusal> {
    let pf = named(served, cx, asked)?;
    Ok(served.card.engine().recover(cx, pf.address)?)
}

fn pair(to: &mut Builder, name: &str, value: &str) {
    to.flag(a::FMSG_PAIR_NEST_START).text(a::FMSG_OBJ_NAME, name);
    to.u8(a::FMSG_OBJ_VALUE_TYPE, nla::STRING).text(a::FMSG_OBJ_VALUE_DATA, value).flag(a::FMSG_NEST_END);
}

pub(super) fn diagnose(
    served: &Served,
    cx: Cx<'_, '_>,
    asked: &Attributes<'_>,
    reply: &mut Reply<'_>,
) -> Result<(), Refusal> {
    /// So many fit into one message whatever their words.
    const SHOWN: usize = 64;
    let pf = named(served, cx, asked)?;
    let failures = failures(&pf);
    reply.add(c::HEALTH_DIAGNOSE, |to| {
        to.nest(a::FMSG, |to| {
            to.flag(a::FMSG_OBJ_NEST_START);
            pair(to, "not loaded", &failures.len().to_string());
            to.flag(a::FMSG_PAIR_NEST_START).text(a::FMSG_OBJ_NAME, "representors").flag(a::FMSG_ARR_NEST_START);
            for [port, kind, why] in failures.iter().take(SHOWN) {
                to.flag(a::FMSG_OBJ_NEST_START);
                pair(to, "port", port);
                pair(to, "type", kind);
                pair(to, "error", why);
                to.flag(a::FMSG_NEST_END);
            }
            to.flag(a::FMSG_NEST_END).flag(a::FMSG_NEST_END).flag(a::FMSG_NEST_END);
        });
    });
    Ok(())
}
