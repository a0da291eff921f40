//! The RDMA devices of a view.
//!
//! In legacy mode a PF has one RDMA device. In switchdev mode that device has a port for each vport whose RDMA
//! representor is loaded. PFs that share the forwarding database of their master have no device; their vports are ports
//! of the master's device. VFs and SFs have one device each.

use eswitch::card::Resource;
use eswitch::inspect::PfView;
use eswitch::{PfIndex, RepType, Vport, names};

use super::build::{ViewBuilder, guid};
use super::{DeviceName, RdmaDevice, RdmaPort};

/// Every RDMA device.
pub(super) fn devices(builder: &ViewBuilder<'_>) -> Vec<RdmaDevice> {
    let mut devices = Vec::new();
    for pf in &builder.snapshot.pfs {
        devices.extend(of_pf(builder, pf));
        devices.extend(of_vfs(builder, pf));
        for port in &pf.ports {
            devices.extend(of_sf(builder, pf, port.vport));
        }
    }
    devices.sort_by_key(|device| device.index);
    devices
}

/// Whether a PF has an RDMA device of its own.
fn has_device(builder: &ViewBuilder<'_>, pf: PfIndex) -> bool {
    builder.is_made(&Resource::PfIbDevice(pf)) || is_multiport(builder, pf)
}

fn is_multiport(builder: &ViewBuilder<'_>, pf: PfIndex) -> bool {
    builder.is_made(&Resource::Representor(pf, Vport::Uplink, RepType::Ib))
}

fn of_pf(builder: &ViewBuilder<'_>, pf: &PfView) -> Option<RdmaDevice> {
    if !has_device(builder, pf.index) {
        return None;
    }
    let multiport = is_multiport(builder, pf.index);
    let netdev = builder.netdev_name(&Resource::PfNetdev(pf.index));
    let mut ports = vec![RdmaPort { number: 1, netdev, roce: !multiport }];
    if multiport {
        let master = builder.snapshot.pfs.iter().find(|pf| has_device(builder, pf.index));
        let is_master = master.is_some_and(|master| master.index == pf.index);
        let borrowers = builder.snapshot.pfs.iter().filter(|peer| is_master && !has_device(builder, peer.index));
        for member in [pf].into_iter().chain(borrowers) {
            ports.extend(representors(builder, pf, member));
        }
        ports = without_gaps(ports);
    }
    let name = names::ib_device(builder.config, &Resource::PfIbDevice(pf.index), None)?;
    let guid = guid(builder.config.mac(pf.index, Vport::Uplink));
    Some(RdmaDevice::new(pf.index.0.into(), name, DeviceName::Pci(pf.address), guid, ports))
}

/// The ports of the owner's device that stand for the vports of `pf`. Those of a peer come after all ports that the
/// owner can have.
fn representors(builder: &ViewBuilder<'_>, owner: &PfView, pf: &PfView) -> Vec<RdmaPort> {
    let span = names::ib_port(builder.config, Vport::Sf(builder.config.max_sfs + builder.config.external_sfs()));
    let first = if pf.index == owner.index { 0 } else { u32::from(pf.index.0) * span };
    let mut ports = Vec::new();
    for vport in pf.ports.iter().map(|port| port.vport).filter(|vport| *vport != Vport::Uplink) {
        if builder.is_made(&Resource::Representor(pf.index, vport, RepType::Ib)) {
            let netdev = builder.netdev_name(&Resource::Representor(pf.index, vport, RepType::Eth));
            ports.push(RdmaPort { number: first + names::ib_port(builder.config, vport), netdev, roce: false });
        }
    }
    ports
}

/// The ports with those in between that stand for no vport now. A device has every port up to the number that it says to
/// have (`rdma_for_each_port`); one without a representor has no netdev, and is down.
fn without_gaps(mut ports: Vec<RdmaPort>) -> Vec<RdmaPort> {
    ports.sort_by_key(|port| port.number);
    let mut all: Vec<RdmaPort> = Vec::with_capacity(ports.len());
    for port in ports {
        let next = all.last().map_or(1, |last| last.number + 1);
        all.extend((next..port.number).map(|number| RdmaPort { number, netdev: None, roce: false }));
        all.push(port);
    }
    all
}

fn of_vfs<'a>(builder: &'a ViewBuilder<'_>, pf: &'a PfView) -> impl Iterator<Item = RdmaDevice> + 'a {
    let driven = builder.vfs(pf).filter(|(_, vf)| builder.rdma_is_driven() && ViewBuilder::vf_has_rdma(vf));
    driven.map(move |(address, vf)| {
        let index = ViewBuilder::vf_id(pf.index, vf.number);
        let name = names::vf_ib_device(builder.config, pf.index, vf.number);
        let netdev = builder.netdev_name(&Resource::VfNetdev(pf.index, Vport::Vf(vf.number)));
        let ports = vec![RdmaPort { number: 1, netdev, roce: true }];
        RdmaDevice::new(index, name, DeviceName::Pci(address), guid(vf.netdev_mac), ports)
    })
}

fn of_sf(builder: &ViewBuilder<'_>, pf: &PfView, vport: Vport) -> Option<RdmaDevice> {
    let (sf, device) = (builder.sf(pf.index, vport)?, Resource::SfIbDevice(pf.index, vport));
    builder.is_made(&device).then_some(())?;
    let name = names::ib_device(builder.config, &device, Some(sf.sfnum.0))?;
    let guid = guid(sf.mac.or_own(builder.config.mac(pf.index, vport)));
    let netdev = builder.netdev_name(&Resource::SfNetdev(pf.index, vport));
    let ports = vec![RdmaPort { number: 1, netdev, roce: true }];
    Some(RdmaDevice::new(sf.id, name, builder.parent(pf, Some(vport)), guid, ports))
}
