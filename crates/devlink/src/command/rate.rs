//! `devlink port function rate`.

use eswitch::PciAddress;
use eswitch::rate::{Rate, RateChange, RateObject};
use netlink::{Builder, Errno};

use super::dev::{bound, put_device};
use crate::card::{Cx, Served};
use crate::numbers::{attribute as a, command as c};
use crate::refusal::Refusal;
use crate::reply::ReplyWriter;
use crate::request::Attributes;

/// DEVLINK_RATE_TYPE_*.
const LEAF: u16 = 0;
const NODE: u16 = 1;

/// The attributes of a request that sets or adds a rate.
pub(super) const CHANGE: &[u16] = &[
    a::BUS_NAME,
    a::DEV_NAME,
    a::PORT_INDEX,
    a::RATE_TYPE,
    a::RATE_NODE_NAME,
    a::RATE_TX_SHARE,
    a::RATE_TX_MAX,
    a::RATE_TX_PRIORITY,
    a::RATE_TX_WEIGHT,
    a::RATE_PARENT_NODE_NAME,
];

fn rate_message(to: &mut Builder, of: &RateObject, rate: &Rate) {
    put_device(to, of.device());
    match of {
        RateObject::Leaf(port) => to.u16(a::RATE_TYPE, LEAF).u32(a::PORT_INDEX, port.index.0),
        RateObject::Node(_, name) => to.u16(a::RATE_TYPE, NODE).text(a::RATE_NODE_NAME, name),
    };
    to.u64(a::RATE_TX_SHARE, rate.tx_share).u64(a::RATE_TX_MAX, rate.tx_max);
    to.u32(a::RATE_TX_PRIORITY, rate.tx_priority).u32(a::RATE_TX_WEIGHT, rate.tx_weight);
    if let Some(parent) = &rate.parent {
        to.text(a::RATE_PARENT_NODE_NAME, parent);
    }
}

fn of(attributes: &Attributes<'_>) -> Result<RateObject, Refusal> {
    match attributes.text(a::RATE_NODE_NAME)? {
        Some(name) => Ok(RateObject::Node(attributes.device()?, name.to_owned())),
        None => Ok(RateObject::Leaf(attributes.port()?)),
    }
}

fn node(attributes: &Attributes<'_>) -> Result<(PciAddress, String), Refusal> {
    let name = attributes.text(a::RATE_NODE_NAME)?.ok_or(Refusal::missing(a::RATE_NODE_NAME))?;
    Ok((attributes.device()?, name.to_owned()))
}

fn change(attributes: &Attributes<'_>) -> Result<RateChange, Refusal> {
    let parent = attributes.text(a::RATE_PARENT_NODE_NAME)?;
    Ok(RateChange {
        tx_share: attributes.u64(a::RATE_TX_SHARE)?,
        tx_max: attributes.u64(a::RATE_TX_MAX)?,
        tx_priority: attributes.u32(a::RATE_TX_PRIORITY)?,
        tx_weight: attributes.u32(a::RATE_TX_WEIGHT)?,
        parent: parent.map(|name| (!name.is_empty()).then(|| name.to_owned())),
    })
}

pub(super) fn get(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let of = of(attributes)?;
    let rates = served.card.engine().rates(cx, of.device())?;
    let (of, rate) = rates.iter().find(|(is, _)| *is == of).ok_or(Refusal::bare(Errno::NODEV))?;
    reply.add(c::RATE_NEW, |to| rate_message(to, of, rate));
    Ok(())
}

pub(super) fn get_all(
    served: &Served,
    cx: Cx<'_, '_>,
    _: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    for device in bound(served, cx) {
        for (of, rate) in served.card.engine().rates(cx, device).unwrap_or_default() {
            reply.add(c::RATE_NEW, |to| rate_message(to, &of, &rate));
        }
    }
    Ok(())
}

pub(super) fn set(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    Ok(served.card.engine().set_rate(cx, &of(attributes)?, &change(attributes)?)?)
}

pub(super) fn add(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let (device, name) = node(attributes)?;
    Ok(served.card.engine().add_rate_node(cx, device, &name, &change(attributes)?)?)
}

pub(super) fn delete(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let (device, name) = node(attributes)?;
    Ok(served.card.engine().delete_rate_node(cx, device, &name)?)
}
