//! `devlink dev reload`: takes an instance down and brings it up again, in its network namespace or in another one.

use std::os::fd::OwnedFd;

use eswitch::auxiliary::AuxiliaryName;
use eswitch::lag::LagMode;
use eswitch::{PfIndex, Vport};
use netlink::{Errno, errno_of};

use super::dev::{put_device, put_instance};
use super::param::parts_of;
use super::trap;
use crate::card::{Cx, Destination, Served};
use crate::instance::{self, Instance, Named};
use crate::numbers::{attribute as a, command as c};
use crate::refusal::Refusal;
use crate::reply::ReplyWriter;
use crate::request::Attributes;
use crate::view::DeviceName;

/// DEVLINK_RELOAD_ACTION_*.
const DRIVER_REINIT: u8 = 1;
const FW_ACTIVATE: u8 = 2;
/// DEVLINK_RELOAD_LIMIT_NO_RESET.
const NO_RESET: u32 = 1;

/// Checks the action and the limit of a request in the order of `devlink_nl_reload_doit` (`net/devlink/dev.c`). Returns the
/// action, and whether the firmware may not be reset.
fn action(attributes: &Attributes<'_>) -> Result<(u8, bool), Refusal> {
    let action = attributes.u8(a::RELOAD_ACTION)?.unwrap_or(DRIVER_REINIT);
    if !matches!(action, DRIVER_REINIT | FW_ACTIVATE) {
        return Err(Refusal::unsupported("Requested reload action is not supported by the driver"));
    }
    let Some((value, selector)) = attributes.bitfield(a::RELOAD_LIMITS)? else { return Ok((action, false)) };
    let limits = value & selector;
    match limits {
        0 => Err(Refusal::new(Errno::INVAL, "Invalid limit selected")),
        limits if !limits.is_power_of_two() => Err(Refusal::unsupported("Multiselection of limit is not supported")),
        limits if limits != 1 << NO_RESET => {
            Err(Refusal::unsupported("Requested limit is not supported by the driver"))
        }
        _ if action == DRIVER_REINIT => Err(Refusal::new(Errno::INVAL, "Requested limit is invalid for this action")),
        _ => Ok((action, true)),
    }
}

/// The network namespace to which a request moves the instance (`devlink_netns_get`). A control socket carries no number
/// that means anything in another process, so a program sends a descriptor of the namespace along, whichever of the three
/// attributes it uses.
fn destination(attributes: &Attributes<'_>, reply: &mut ReplyWriter<'_>) -> Result<Option<OwnedFd>, Refusal> {
    let received = reply.received();
    match [a::NETNS_PID, a::NETNS_FD, a::NETNS_ID].iter().filter(|kind| attributes.has(**kind)).count() {
        0 => Ok(None),
        1 => received.map(Some).ok_or(Refusal::new(Errno::INVAL, "Unknown network namespace")),
        _ => Err(Refusal::new(Errno::INVAL, "multiple netns identifying attributes specified")),
    }
}

pub(super) fn reload(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let meant = instance::find(served, cx, attributes.required_handle()?)?;
    let (action, no_reset) = action(attributes)?;
    let netns = destination(attributes, reply)?;
    if netns.is_some() && action != DRIVER_REINIT {
        let why = "devlink: Changing namespace is only supported for reinit action";
        return Err(Refusal::unsupported(why));
    }
    may_go_down(served, cx, &meant, (action, no_reset))?;
    if let Named::Pf(device) = &meant
        && served.card.engine().inspect_pf(cx, *device)?.num_vfs > 0
    {
        reply.warn("mlx5_core: reload while VFs are present is unfavorable");
    }
    let to = netns.as_ref().map_or(Destination::Same, Destination::Namespace);
    reload_to(served, cx, &meant, to)?;
    if let Named::Pf(_) = meant
        && netns.is_none()
    {
        // Its traps have been made anew (`mlx5_unload`, `mlx5_load`). What else concerns it is notified as it happens.
        let (device, place) = (meant.device(), served.shared.netns_of(cx, meant.device()));
        trap::notify_gone(device, place, reply.notices());
        trap::notify_new(served, cx, device, place, reply.notices());
    }
    if attributes.has(a::RELOAD_ACTION) || attributes.has(a::RELOAD_LIMITS) {
        reply.add(c::RELOAD, |to| {
            match &meant {
                Named::Pf(device) => put_device(to, *device),
                Named::Function(instance) => put_instance(to, instance),
            }
            to.bitfield(a::RELOAD_ACTIONS_PERFORMED, 1 << DRIVER_REINIT, 1 << DRIVER_REINIT);
        });
    }
    Ok(())
}

/// `mlx5_devlink_reload_down`. This card has no firmware that could be activated: that is refused as by a card whose
/// firmware can be changed by a reset of the machine only.
fn may_go_down(served: &Served, cx: Cx<'_, '_>, meant: &Named, (action, no_reset): (u8, bool)) -> Result<(), Refusal> {
    match meant {
        Named::Pf(_) if served.card.engine().lag(cx).mode != LagMode::None => {
            Err(Refusal::unsupported("mlx5_core: reload is unsupported in Lag mode"))
        }
        _ if action == DRIVER_REINIT => Ok(()),
        // A function whose driver was bound without its parts ("lightweight") gives no reason; others give this one.
        Named::Function(_) => Err(Refusal::unsupported("mlx5_core: FW activate is unsupported for this function")),
        Named::Pf(_) if no_reset => {
            let why = "mlx5_core: FW upgrade to the stored FW can't be done by FW live patching";
            Err(Refusal::new(Errno::INVAL, why))
        }
        Named::Pf(_) => Err(Refusal::new(Errno::INVAL, "mlx5_core: FW activate requires reboot")),
    }
}

/// Reloads an instance.
fn reload_to(served: &Served, cx: Cx<'_, '_>, meant: &Named, to: Destination<'_>) -> Result<(), Refusal> {
    let place = place_of(served, cx, meant);
    let netdevs = served.netdevs.as_ref();
    let (Some(netdevs), Some((pf, vport))) = (netdevs, place) else {
        return match to {
            Destination::Namespace(_) => Err(Refusal::unsupported("mlx5_core: this card has no netdevs")),
            Destination::Same | Destination::Home => carry_out(served, cx, meant),
        };
    };
    netdevs.begin_reload(cx, pf, vport, to).map_err(|error| match errno_of(&error) {
        Errno::INVAL => Refusal::new(Errno::INVAL, "Unknown network namespace"),
        errno => Refusal::new(errno, format!("mlx5_core: the network namespace cannot be used: {error}")),
    })?;
    let outcome = carry_out(served, cx, meant);
    netdevs.end_reload(cx, pf, vport, outcome.is_ok());
    outcome
}

fn carry_out(served: &Served, cx: Cx<'_, '_>, meant: &Named) -> Result<(), Refusal> {
    let device = match meant {
        Named::Pf(device) => {
            served.card.engine().reload(cx, *device)?;
            DeviceName::Pci(*device)
        }
        Named::Function(instance) => {
            reload_instance(served, cx, instance)?;
            instance.device
        }
    };
    served.settings.reloaded(cx, device);
    served.shared.forget_rdma(cx, |parent| parent == device);
    if let Named::Pf(pf) = meant {
        // Its VFs have been enabled anew.
        let config = served.card.engine().config();
        let vf_of = |address| config.vf_at(address).is_some_and(|(of, _)| config.pf_address(of) == *pf);
        let is_vf = |device| matches!(device, DeviceName::Pci(address) if vf_of(address));
        served.settings.forget(cx, is_vf);
        served.shared.forget_rdma(cx, is_vf);
    }
    Ok(())
}

/// Unbinds the driver of a VF or SF and binds it again.
fn reload_instance(served: &Served, cx: Cx<'_, '_>, instance: &Instance) -> Result<(), Refusal> {
    let engine = served.card.engine();
    let parts = parts_of(served, cx, instance.device);
    match instance.device {
        DeviceName::Pci(address) => {
            engine.unbind(cx, address)?;
            engine.set_vf_parts(cx, address, parts)?;
            Ok(engine.bind(cx, address)?)
        }
        DeviceName::Auxiliary(AuxiliaryName::Sf { id }) => {
            engine.set_sf_bound(cx, id, false)?;
            engine.set_sf_parts(cx, id, parts)?;
            Ok(engine.set_sf_bound(cx, id, true)?)
        }
        // Only PCI functions and SFs have a devlink instance.
        DeviceName::Auxiliary(AuxiliaryName::Part { .. }) => Err(Refusal::bare(Errno::NODEV)),
    }
}

/// The function of an instance.
fn place_of(served: &Served, cx: Cx<'_, '_>, meant: &Named) -> Option<(PfIndex, Vport)> {
    let engine = served.card.engine();
    match meant {
        Named::Pf(device) => Some((engine.pf(cx, *device).ok()?.index(), Vport::Uplink)),
        Named::Function(Instance { device: DeviceName::Pci(address), .. }) => {
            engine.config().vf_at(*address).map(|(pf, vf)| (pf, Vport::Vf(vf)))
        }
        Named::Function(Instance { device: DeviceName::Auxiliary(AuxiliaryName::Sf { id }), .. }) => {
            engine.addresses().into_iter().find_map(|address| {
                let pf = engine.inspect_pf(cx, address).ok()?;
                let port = pf.ports.iter().find(|port| port.sf.is_some_and(|sf| sf.id == *id))?;
                Some((pf.index, port.vport))
            })
        }
        Named::Function(_) => None,
    }
}

/// Reloads at home the instance of a function whose network namespace has died (`devlink_pernet_pre_exit`).
///
/// # Errors
/// The card refuses. The instance is at home nevertheless.
pub(crate) fn bring_home(served: &Served, cx: Cx<'_, '_>, pf: PfIndex, vport: Vport) -> Result<(), Refusal> {
    let address = served.card.engine().config().pf_address(pf);
    let all: Vec<Named> = match vport {
        Vport::Uplink => vec![Named::Pf(address)],
        _ => instance::all_of(served, cx).into_iter().map(Named::Function).collect(),
    };
    let meant = all.into_iter().find(|named| place_of(served, cx, named) == Some((pf, vport)));
    match (meant, &served.netdevs) {
        (Some(meant), _) => reload_to(served, cx, &meant, Destination::Home)?,
        // The function has no driver any more, and so no instance.
        (None, Some(netdevs)) => {
            let begun = netdevs.begin_reload(cx, pf, vport, Destination::Home);
            netdevs.end_reload(cx, pf, vport, begun.is_ok());
        }
        (None, None) => {}
    }
    Ok(())
}
