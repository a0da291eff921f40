//! `devlink trap`: mlx5's two traps, of packets that a filter of the receiving function drops (`mlx5_traps_arr` in
//! `drivers/net/ethernet/mellanox/mlx5/core/devlink.c`). Here no packet is dropped for these reasons, so an action is kept
//! and shown, and the counters are 0.

use netlink::{Builder, Datagram, Errno};

use super::dev::{bound, put_name};
use crate::card::{Cx, Served};
use crate::instance;
use crate::nests::nest;
use crate::notify::message;
use crate::numbers::{attribute as a, command as c};
use crate::refusal::Refusal;
use crate::reply::ReplyWriter;
use crate::request::Attributes;
use crate::view::DeviceName;

/// The traps, both of the one group, and both generic ones of devlink.
const TRAPS: [&str; 2] = ["ingress_vlan_filter", "dmac_filter"];
const GROUP: &str = "l2_drops";

/// DEVLINK_TRAP_ACTION_*.
const DROP: u8 = 0;
const TRAP: u8 = 1;
const MIRROR: u8 = 2;
/// DEVLINK_TRAP_TYPE_DROP.
const TYPE_DROP: u8 = 0;
/// DEVLINK_ATTR_TRAP_METADATA_TYPE_IN_PORT: a trapped packet is reported with the port that received it.
const METADATA_IN_PORT: u16 = 0;
/// DEVLINK_ATTR_STATS_*.
const RX_PACKETS: u16 = 0;
const RX_BYTES: u16 = 1;

fn put_counters(to: &mut Builder) {
    nest(to, a::STATS, |to| {
        to.u64(RX_PACKETS, 0).u64(RX_BYTES, 0);
    });
}

/// `devlink_nl_trap_fill` in `net/devlink/trap.c`.
fn trap_message(to: &mut Builder, device: DeviceName, trap: &str, action: u8) {
    put_name(to, device);
    to.text(a::TRAP_GROUP_NAME, GROUP).text(a::TRAP_NAME, trap);
    to.u8(a::TRAP_TYPE, TYPE_DROP).flag(a::TRAP_GENERIC).u8(a::TRAP_ACTION, action);
    nest(to, a::TRAP_METADATA, |to| {
        to.flag(METADATA_IN_PORT);
    });
    put_counters(to);
}

/// `devlink_nl_trap_group_fill`. The group has no policer.
fn group_message(to: &mut Builder, device: DeviceName) {
    put_name(to, device);
    to.text(a::TRAP_GROUP_NAME, GROUP).flag(a::TRAP_GENERIC);
    put_counters(to);
}

/// The device of the instance that a request names.
fn named(served: &Served, cx: Cx<'_, '_>, attributes: &Attributes<'_>) -> Result<DeviceName, Refusal> {
    Ok(instance::find(served, cx, attributes.required_handle()?)?.device())
}

/// The devices of all instances.
fn all(served: &Served, cx: Cx<'_, '_>) -> Vec<DeviceName> {
    let mut devices: Vec<DeviceName> = bound(served, cx).into_iter().map(DeviceName::Pci).collect();
    devices.extend(instance::all_of(served, cx).into_iter().map(|instance| instance.device));
    devices
}

fn trap_of(attributes: &Attributes<'_>) -> Result<&'static str, Refusal> {
    let name = attributes.text(a::TRAP_NAME)?;
    let found = TRAPS.into_iter().find(|trap| Some(*trap) == name);
    found.ok_or(Refusal::new(Errno::NOENT, "Device did not register this trap"))
}

fn check_group(attributes: &Attributes<'_>) -> Result<(), Refusal> {
    match attributes.text(a::TRAP_GROUP_NAME)? {
        Some(GROUP) => Ok(()),
        _ => Err(Refusal::new(Errno::NOENT, "Device did not register this trap group")),
    }
}

fn action(served: &Served, cx: Cx<'_, '_>, device: DeviceName, trap: &'static str) -> u8 {
    served.settings.trap(cx, device, trap).unwrap_or(DROP)
}

/// Adds the notifications of the trap group and the traps of an instance that is new (`devlink_notify_register` in
/// `net/devlink/dev.c`). `place`: as for [`message`].
pub(crate) fn notify_new(served: &Served, cx: Cx<'_, '_>, device: DeviceName, place: Option<u64>, to: &mut Datagram) {
    message(to, place, c::TRAP_GROUP_NEW, |to| group_message(to, device));
    for trap in TRAPS {
        let action = action(served, cx, device, trap);
        message(to, place, c::TRAP_NEW, |to| trap_message(to, device, trap, action));
    }
}

/// Adds the notifications that they are gone (`devlink_notify_unregister`).
pub(crate) fn notify_gone(device: DeviceName, place: Option<u64>, to: &mut Datagram) {
    for trap in TRAPS.into_iter().rev() {
        message(to, place, c::TRAP_DEL, |to| trap_message(to, device, trap, DROP));
    }
    message(to, place, c::TRAP_GROUP_DEL, |to| group_message(to, device));
}

pub(super) fn get(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let (device, trap) = (named(served, cx, attributes)?, trap_of(attributes)?);
    let action = action(served, cx, device, trap);
    reply.add(c::TRAP_NEW, |to| trap_message(to, device, trap, action));
    Ok(())
}

pub(super) fn get_all(
    served: &Served,
    cx: Cx<'_, '_>,
    _: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    for device in all(served, cx) {
        for trap in TRAPS {
            let action = action(served, cx, device, trap);
            reply.add(c::TRAP_NEW, |to| trap_message(to, device, trap, action));
        }
    }
    Ok(())
}

pub(super) fn group_get(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let device = named(served, cx, attributes)?;
    check_group(attributes)?;
    reply.add(c::TRAP_GROUP_NEW, |to| group_message(to, device));
    Ok(())
}

pub(super) fn group_get_all(
    served: &Served,
    cx: Cx<'_, '_>,
    _: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    for device in all(served, cx) {
        reply.add(c::TRAP_GROUP_NEW, |to| group_message(to, device));
    }
    Ok(())
}

/// Sets the action of traps, if the request has one (`mlx5_devlink_trap_action_set`).
fn set_action(
    served: &Served,
    cx: Cx<'_, '_>,
    device: DeviceName,
    traps: &[&'static str],
    attributes: &Attributes<'_>,
) -> Result<(), Refusal> {
    let action = match attributes.u8(a::TRAP_ACTION)? {
        None => return Ok(()),
        Some(action @ (DROP | TRAP | MIRROR)) => action,
        Some(_) => return Err(Refusal::new(Errno::INVAL, "Invalid trap action")),
    };
    if let DeviceName::Pci(address) = device
        && served.card.engine().pf(cx, address).is_ok()
        && served.card.engine().eswitch(cx, address)?.0.is_switchdev()
    {
        return Err(Refusal::unsupported("mlx5_core: Devlink traps can't be set in switchdev mode"));
    }
    if action == MIRROR {
        return Err(Refusal::bare(Errno::OPNOTSUPP));
    }
    traps.iter().for_each(|trap| served.settings.set_trap(cx, device, trap, action));
    Ok(())
}

pub(super) fn set(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let (device, trap) = (named(served, cx, attributes)?, trap_of(attributes)?);
    set_action(served, cx, device, &[trap], attributes)
}

pub(super) fn group_set(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let device = named(served, cx, attributes)?;
    check_group(attributes)?;
    set_action(served, cx, device, &TRAPS, attributes)?;
    match attributes.has(a::TRAP_POLICER_ID) {
        true => Err(Refusal::bare(Errno::OPNOTSUPP)),
        false => Ok(()),
    }
}
