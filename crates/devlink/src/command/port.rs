//! `devlink port`: ports, their functions, and adding and deleting SFs.

use eswitch::inspect::PortView;
use eswitch::{FunctionChange, MacAddr, PfIndex, PortHandle, SfNum, Vport};
use netlink::{Builder, Errno};

use super::dev::{bound, pf, put_device, put_instance};
use crate::card::{Cx, Served};
use crate::instance::{self, Instance, Named};
use crate::nests::nest;
use crate::numbers::{attribute as a, command as c, flavour, function};
use crate::refusal::Refusal;
use crate::reply::ReplyWriter;
use crate::request::Attributes;

/// DEVLINK_PORT_TYPE_*.
const NOTSET: u16 = 0;
const ETH: u16 = 2;

fn put_port(to: &mut Builder, port: PortHandle) {
    put_device(to, port.device);
    to.u32(a::PORT_INDEX, port.index.0);
}

/// Writes the type of a port, and its netdev if it has one. Of a netdev that is in another network namespace than
/// the instance, a port has the type and no more (`devlink_port_netdevice_event`).
fn put_netdev(served: &Served, to: &mut Builder, name: Option<&str>, elsewhere: bool) {
    let Some(name) = name else {
        to.u16(a::PORT_TYPE, NOTSET);
        return;
    };
    to.u16(a::PORT_TYPE, ETH);
    if elsewhere {
        return;
    }
    if let Some(index) = served.netdevs.as_ref().and_then(|netdevs| netdevs.index(name)) {
        to.u32(a::PORT_NETDEV_IFINDEX, index);
    }
    to.text(a::PORT_NETDEV_NAME, name);
}

/// The message that describes a port of a PF's instance.
pub(crate) fn port_message(served: &Served, to: &mut Builder, pf: PfIndex, port: &PortView) {
    put_port(to, port.handle);
    put_netdev(served, to, port.netdev.as_deref(), port.elsewhere);
    let dpu = served.card.engine().config().dpu;
    let (pfnum, controller) = (u16::from(pf.0), u32::from(dpu));
    let owner = |to: &mut Builder, kind: u16, controller: u32| {
        to.u16(a::PORT_FLAVOUR, kind).u32(a::PORT_CONTROLLER_NUMBER, controller).u16(a::PORT_PCI_PF_NUMBER, pfnum);
    };
    match port.vport {
        Vport::Uplink => {
            to.u16(a::PORT_FLAVOUR, flavour::PHYSICAL).u32(a::PORT_NUMBER, pfnum.into());
        }
        Vport::HostPf => {
            owner(to, flavour::PCI_PF, controller);
            to.u8(a::PORT_EXTERNAL, dpu.into());
        }
        Vport::Vf(vf) => {
            owner(to, flavour::PCI_VF, controller);
            to.u16(a::PORT_PCI_VF_NUMBER, vf).u8(a::PORT_EXTERNAL, dpu.into());
        }
        Vport::Sf(place) => {
            let external = served.card.engine().config().is_external_sf(port.vport);
            owner(to, flavour::PCI_SF, external.into());
            let sfnum = port.sf.map_or(place.into(), |sf| sf.sfnum.0);
            to.u32(a::PORT_PCI_SF_NUMBER, sfnum).u8(a::PORT_EXTERNAL, external.into());
        }
    }
    to.u8(a::PORT_SPLITTABLE, 0);
    if port.vport != Vport::Uplink {
        put_function(to, port);
    }
}

fn put_function(to: &mut Builder, port: &PortView) {
    nest(to, a::PORT_FUNCTION, |to| {
        let MacAddr(mac) = port.hw_addr.unwrap_or(MacAddr([0; 6]));
        to.put(function::HW_ADDR, &mac);
        if let Some(sf) = port.sf {
            to.u8(function::STATE, sf.active.into()).u8(function::OPSTATE, sf.attached.into());
        }
        if let Some(roce) = port.roce {
            to.bitfield(function::CAPS, u32::from(roce) * function::CAP_ROCE, function::CAP_ROCE);
        }
    });
}

/// The message that describes the port of a VF's or SF's instance.
pub(crate) fn function_port_message(served: &Served, to: &mut Builder, instance: &Instance) {
    put_instance(to, instance);
    to.u32(a::PORT_INDEX, instance.port);
    put_netdev(served, to, instance.netdev.as_deref(), instance.elsewhere);
    to.u16(a::PORT_FLAVOUR, flavour::VIRTUAL).u8(a::PORT_SPLITTABLE, 0);
}

pub(super) fn get(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    match instance::find(served, cx, attributes.required_handle()?)? {
        Named::Pf(_) => add_port(served, cx, attributes.port()?, reply),
        Named::Function(instance) => match attributes.u32(a::PORT_INDEX)?.ok_or(Refusal::missing(a::PORT_INDEX))? {
            index if index == instance.port => {
                reply.add(c::PORT_NEW, |to| function_port_message(served, to, &instance));
                Ok(())
            }
            _ => Err(Refusal::bare(Errno::NODEV)),
        },
    }
}

fn add_port(served: &Served, cx: Cx<'_, '_>, handle: PortHandle, reply: &mut ReplyWriter<'_>) -> Result<(), Refusal> {
    let pf = served.card.engine().inspect_pf(cx, handle.device)?;
    let port = pf.ports.iter().find(|port| port.handle == handle).ok_or(Refusal::bare(Errno::NODEV))?;
    reply.add(c::PORT_NEW, |to| port_message(served, to, pf.index, port));
    Ok(())
}

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
    // In a dump the kernel sends ports as DEVLINK_CMD_NEW (`devlink_nl_port_get_dump_one`).
    for device in devices {
        let Ok(pf) = served.card.engine().inspect_pf(cx, device) else { continue };
        for port in &pf.ports {
            reply.add(c::NEW, |to| port_message(served, to, pf.index, port));
        }
    }
    for instance in instances {
        reply.add(c::NEW, |to| function_port_message(served, to, &instance));
    }
    Ok(())
}

pub(super) fn set(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let port = attributes.port()?;
    let pf = served.card.engine().inspect_pf(cx, port.device)?;
    let found = pf.ports.iter().find(|p| p.handle == port).ok_or(Refusal::bare(Errno::NODEV))?;
    if attributes.has(a::PORT_TYPE) {
        return Err(Refusal::bare(Errno::OPNOTSUPP));
    }
    let allowed = [function::HW_ADDR, function::STATE, function::CAPS];
    let Some(attributes) = attributes.nested(a::PORT_FUNCTION, &allowed)? else { return Ok(()) };
    if found.vport == Vport::Uplink {
        return Err(Refusal::unsupported("Port doesn't support function attributes"));
    }
    let roce = match attributes.bitfield(function::CAPS)? {
        None => None,
        Some((value, selector)) => caps(value, selector)?,
    };
    let active = match attributes.u8(function::STATE)? {
        None => None,
        Some(state @ 0..=1) => Some(state == 1),
        Some(_) => return Err(Refusal::new(Errno::INVAL, "Attribute failed policy validation")),
    };
    let change =
        FunctionChange { hw_addr: attributes.bytes(function::HW_ADDR).map(hw_addr).transpose()?, active, roce };
    served.card.engine().set_function(cx, port, change)?;
    Ok(())
}

/// Whether a request enables or disables RoCE. A function has no other capability, so a request may only disable those.
fn caps(value: u32, selector: u32) -> Result<Option<bool>, Refusal> {
    let others = value & selector & !function::CAP_ROCE;
    let why = match others.trailing_zeros() {
        32 => return Ok((selector & function::CAP_ROCE != 0).then_some(value & function::CAP_ROCE != 0)),
        1 => "Port doesn't support migratable function attribute",
        2 => "Port doesn't support ipsec_crypto function attribute",
        _ => "Port doesn't support ipsec_packet function attribute",
    };
    Err(Refusal::unsupported(why))
}

fn hw_addr(bytes: &[u8]) -> Result<MacAddr, Refusal> {
    let mac: [u8; 6] =
        bytes.try_into().map_err(|_| Refusal::new(Errno::INVAL, "Address must be 6 bytes for Ethernet device"))?;
    if mac[0] & 1 != 0 {
        return Err(Refusal::new(Errno::INVAL, "Non-unicast hardware address unsupported"));
    }
    Ok(MacAddr(mac))
}

pub(super) fn add(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    // The driver of a VF or SF has no SFs (`mlx5_devlink_sf_port_new`).
    let device = pf(served, cx, attributes)?;
    let (kind, pfnum) = (attributes.u16(a::PORT_FLAVOUR)?, attributes.u16(a::PORT_PCI_PF_NUMBER)?);
    let (Some(kind), Some(pfnum)) = (kind, pfnum) else {
        return Err(Refusal::new(Errno::INVAL, "Port flavour or PCI PF are not specified"));
    };
    if kind != flavour::PCI_SF {
        return Err(Refusal::unsupported("mlx5_core: Driver supports only SF port addition"));
    }
    if attributes.has(a::PORT_INDEX) {
        return Err(Refusal::unsupported("mlx5_core: Driver does not support user defined port index assignment"));
    }
    let Some(sfnum) = attributes.u32(a::PORT_PCI_SF_NUMBER)? else {
        let why = "mlx5_core: User must provide unique sfnum. Driver does not support auto assignment";
        return Err(Refusal::unsupported(why));
    };
    let controller = attributes.u32(a::PORT_CONTROLLER_NUMBER)?.unwrap_or(0);
    let port = served.card.engine().add_sf_of(cx, device, controller, pfnum.into(), SfNum(sfnum))?;
    // Another command may have deleted the port again by now. The request has succeeded nevertheless.
    let _ = add_port(served, cx, port, reply);
    Ok(())
}

pub(super) fn delete(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    served.card.engine().delete_port(cx, attributes.port()?)?;
    Ok(())
}
