//! `devlink dev`: instances, their E-Switches, and info.

use eswitch::devlink::InlineMode;
use eswitch::{Mode, PciAddress};
use netlink::{Builder, Errno};

use crate::card::{Cx, Served};
use crate::instance::{self, Instance, Named};
use crate::nests::nest;
use crate::numbers::{attribute as a, command as c};
use crate::refusal::Refusal;
use crate::reply::ReplyWriter;
use crate::request::Attributes;
use crate::view::{DeviceName, Profile};

/// Adds the handle of an instance (`devlink_nl_put_handle`).
pub(super) fn put_name(to: &mut Builder, device: DeviceName) {
    to.text(a::BUS_NAME, device.bus()).text(a::DEV_NAME, &device.to_string());
}

pub(super) fn put_device(to: &mut Builder, device: PciAddress) {
    put_name(to, DeviceName::Pci(device));
}

/// The message that describes the instance of a PF.
pub(crate) fn device_message(to: &mut Builder, device: PciAddress) {
    put_device(to, device);
    to.u8(a::RELOAD_FAILED, 0);
}

pub(crate) fn instance_message(to: &mut Builder, instance: &Instance) {
    put_instance(to, instance);
    to.u8(a::RELOAD_FAILED, 0);
}

pub(super) fn put_instance(to: &mut Builder, instance: &Instance) {
    put_name(to, instance.device);
}

/// The PF that a request names.
///
/// # Errors
/// ENODEV: no instance has that handle. EOPNOTSUPP: it is the instance of a VF or SF, which does not have the command.
pub(super) fn pf(served: &Served, cx: Cx<'_, '_>, attributes: &Attributes<'_>) -> Result<PciAddress, Refusal> {
    match instance::find(served, cx, attributes.required_handle()?)? {
        Named::Pf(device) => Ok(device),
        Named::Function(_) => Err(Refusal::bare(Errno::OPNOTSUPP)),
    }
}

/// The addresses of the PFs that are bound.
pub(super) fn bound(served: &Served, cx: Cx<'_, '_>) -> Vec<PciAddress> {
    let engine = served.card.engine();
    engine.addresses().into_iter().filter(|address| engine.pf(cx, *address).is_ok()).collect()
}

pub(super) fn get(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    match instance::find(served, cx, attributes.required_handle()?)? {
        Named::Pf(device) => reply.add(c::NEW, |to| device_message(to, device)),
        Named::Function(instance) => reply.add(c::NEW, |to| instance_message(to, &instance)),
    }
    Ok(())
}

pub(super) fn get_all(
    served: &Served,
    cx: Cx<'_, '_>,
    _: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    for device in bound(served, cx) {
        reply.add(c::NEW, |to| device_message(to, device));
    }
    for instance in instance::all_of(served, cx) {
        reply.add(c::NEW, |to| instance_message(to, &instance));
    }
    Ok(())
}

pub(super) fn eswitch_get(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let device = pf(served, cx, attributes)?;
    let (mode, encap) = served.card.engine().eswitch(cx, device)?;
    reply.add(c::ESWITCH_GET, |to| {
        put_device(to, device);
        to.u16(a::ESWITCH_MODE, mode.number());
        to.u8(a::ESWITCH_INLINE_MODE, 0);
        to.u8(a::ESWITCH_ENCAP_MODE, encap.into());
    });
    Ok(())
}

/// Sets the attributes in the order of `devlink_nl_eswitch_set_doit`: mode, inline mode, encapsulation mode. The first
/// failure ends it.
pub(super) fn eswitch_set(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let device = pf(served, cx, attributes)?;
    let engine = served.card.engine();
    let unknown = "mlx5_core: the E-Switch's modes are legacy, switchdev and switchdev_inactive";
    let mode = attributes.u16(a::ESWITCH_MODE)?;
    let mode = mode.map(|n| Mode::of_number(n).ok_or(Refusal::new(Errno::INVAL, unknown))).transpose()?;
    let inline = match attributes.u8(a::ESWITCH_INLINE_MODE)? {
        None => None,
        Some(0) => Some(InlineMode::None),
        Some(1) => Some(InlineMode::Link),
        Some(2) => Some(InlineMode::Network),
        Some(3) => Some(InlineMode::Transport),
        Some(_) => return Err(Refusal::new(Errno::INVAL, "mlx5_core: no such inline mode")),
    };
    let encap = match attributes.u8(a::ESWITCH_ENCAP_MODE)? {
        None => None,
        Some(encap @ 0..=1) => Some(encap == 1),
        Some(_) => return Err(Refusal::new(Errno::INVAL, "mlx5_core: no such encapsulation mode")),
    };
    if let Some(mode) = mode {
        engine.set_mode(cx, device, mode)?;
    }
    if let Some(inline) = inline {
        engine.set_inline_mode(cx, device, inline)?;
    }
    if let Some(encap) = encap {
        engine.set_encap(cx, device, encap)?;
    }
    // A request that changes nothing must still be refused if the instance does not exist.
    engine.pf(cx, device)?;
    Ok(())
}

fn info_message(to: &mut Builder, profile: &Profile, put: impl FnOnce(&mut Builder)) {
    put(to);
    to.text(a::INFO_DRIVER_NAME, &profile.driver);
    let mut version = |kind, name: &str, value: &str| {
        nest(to, kind, |to| {
            to.text(a::INFO_VERSION_NAME, name).text(a::INFO_VERSION_VALUE, value);
        });
    };
    version(a::INFO_VERSION_FIXED, "fw.psid", &profile.board);
    for name in ["fw.version", "fw"] {
        version(a::INFO_VERSION_RUNNING, name, &profile.firmware);
    }
    for name in ["fw.version", "fw"] {
        version(a::INFO_VERSION_STORED, name, &profile.firmware);
    }
}

pub(super) fn info(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    match instance::find(served, cx, attributes.required_handle()?)? {
        Named::Pf(device) => {
            reply.add(c::INFO_GET, |to| info_message(to, &served.profile, |to| put_device(to, device)))
        }
        Named::Function(instance) => {
            reply.add(c::INFO_GET, |to| info_message(to, &served.profile, |to| put_instance(to, &instance)))
        }
    }
    Ok(())
}

pub(super) fn info_all(
    served: &Served,
    cx: Cx<'_, '_>,
    _: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    for device in bound(served, cx) {
        reply.add(c::INFO_GET, |to| info_message(to, &served.profile, |to| put_device(to, device)));
    }
    for instance in instance::all_of(served, cx) {
        reply.add(c::INFO_GET, |to| info_message(to, &served.profile, |to| put_instance(to, &instance)));
    }
    Ok(())
}
