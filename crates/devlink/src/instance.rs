//! Devlink instances of VFs and SFs that have a driver. Each has one port, of flavour `virtual`, and can be changed
//! only through its PF.

use std::collections::HashMap;

use eswitch::auxiliary::AuxiliaryName;
use eswitch::{CardConfig, PciAddress};
use netlink::Errno;

use crate::card::{Cx, Served};
use crate::refusal::Refusal;
use crate::request::Handle;
use crate::view::{self, DeviceName, Role};

/// The index of the one port of the instance of a VF or SF: the number of its function in the card (`vhca_id`) in the upper
/// half, and in the lower half 0, as the function has one vport (`mlx5e_devlink_port_register`,
/// `mlx5_esw_vport_to_devlink_port_index`). The functions are numbered here in this order: PFs, VFs, and SFs as they are made.
fn port_index(config: &CardConfig, device: DeviceName) -> u32 {
    let (pfs, vfs) = (u32::from(config.pfs), u32::from(config.total_vfs));
    let number = match device {
        DeviceName::Pci(address) => {
            config.vf_at(address).map_or(0, |(pf, vf)| pfs + u32::from(pf.0) * vfs + u32::from(vf))
        }
        DeviceName::Auxiliary(AuxiliaryName::Sf { id }) => pfs + pfs * vfs + id,
        DeviceName::Auxiliary(AuxiliaryName::Part { .. }) => 0,
    };
    // The number has 16 bits on a card as well.
    number << 16
}

/// An instance of a VF or SF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Instance {
    /// Its device.
    pub device: DeviceName,
    /// The index of its one port.
    pub port: u32,
    /// The name of its netdev, if it has one.
    pub netdev: Option<String>,
    /// Whether the netdev is in another network namespace.
    pub elsewhere: bool,
}

impl Instance {
    /// The instance of a VF or SF without a netdev.
    pub fn new(config: &CardConfig, device: DeviceName) -> Self {
        Self { device, port: port_index(config, device), netdev: None, elsewhere: false }
    }

    /// The instance of a VF or SF with the netdev that it has in a view.
    pub fn of(view: &view::Card, config: &CardConfig, device: DeviceName) -> Self {
        let netdev = functions_netdevs(view).find(|netdev| netdev.parent == device);
        Self::with_netdev(config, device, netdev)
    }

    fn with_netdev(config: &CardConfig, device: DeviceName, netdev: Option<&view::Netdev>) -> Self {
        Self {
            netdev: netdev.map(|netdev| netdev.name.clone()),
            elsewhere: netdev.is_some_and(|netdev| netdev.elsewhere),
            ..Self::new(config, device)
        }
    }
}

/// The netdevs of VFs and SFs themselves.
fn functions_netdevs(view: &view::Card) -> impl Iterator<Item = &view::Netdev> {
    view.netdevs.iter().filter(|netdev| matches!(netdev.role, Role::Vf | Role::Sf))
}

/// The devices of all VFs and SFs that have a driver.
fn devices(view: &view::Card) -> impl Iterator<Item = DeviceName> {
    let vfs = view.functions.iter().filter(|function| function.vf_of.is_some() && function.driver.is_some());
    let sfs = view.auxiliary.iter().filter(|device| device.sfnum.is_some() && device.driver.is_some());
    let vfs = vfs.map(|function| DeviceName::Pci(function.address));
    vfs.chain(sfs.map(|device| DeviceName::Auxiliary(device.name)))
}

/// The instances of all VFs and SFs.
pub(crate) fn all(view: &view::Card, config: &CardConfig) -> Vec<Instance> {
    let netdevs: HashMap<DeviceName, &view::Netdev> =
        functions_netdevs(view).map(|netdev| (netdev.parent, netdev)).collect();
    devices(view).map(|device| Instance::with_netdev(config, device, netdevs.get(&device).copied())).collect()
}

/// The instances of all VFs and SFs of a card, as they are now.
pub(crate) fn all_of(served: &Served, cx: Cx<'_, '_>) -> Vec<Instance> {
    all(&served.view(cx), served.card.engine().config())
}

/// A devlink instance that a request names.
pub(crate) enum Named {
    /// The instance of a PF.
    Pf(PciAddress),
    /// The instance of a VF or SF.
    Function(Instance),
}

impl Named {
    /// The device of the instance.
    pub(crate) fn device(&self) -> DeviceName {
        match self {
            Self::Pf(address) => DeviceName::Pci(*address),
            Self::Function(instance) => instance.device,
        }
    }
}

/// Finds the instance with a handle.
///
/// # Errors
/// ENODEV: no instance has that handle.
pub(crate) fn find(served: &Served, cx: Cx<'_, '_>, handle: Handle<'_>) -> Result<Named, Refusal> {
    let device = handle.device_name()?;
    if let DeviceName::Pci(address) = device
        && served.card.engine().pf(cx, address).is_ok()
    {
        return Ok(Named::Pf(address));
    }
    let view = served.view(cx);
    let found = devices(&view).find(|found| *found == device).ok_or(Refusal::bare(Errno::NODEV))?;
    Ok(Named::Function(Instance::of(&view, served.card.engine().config(), found)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use eswitch::PfIndex;

    use super::*;

    #[test]
    fn every_function_has_a_port_index_of_its_own_with_vport_0() {
        let config = CardConfig { pfs: 2, total_vfs: 4, ..CardConfig::default() };
        let vfs = (0..2).flat_map(|pf| (0..4).map(move |vf| (PfIndex(pf), vf)));
        let vfs = vfs.map(|(pf, vf)| DeviceName::Pci(config.vf_address(pf, vf)));
        let sfs = (2..5).map(|id| DeviceName::Auxiliary(AuxiliaryName::Sf { id }));
        let indexes: Vec<u32> = vfs.chain(sfs).map(|device| port_index(&config, device)).collect();
        assert_eq!(indexes.iter().collect::<BTreeSet<_>>().len(), 11);
        // The PFs have the numbers 0 and 1.
        assert!(indexes.iter().all(|index| index & 0xffff == 0 && index >> 16 >= 2), "{indexes:x?}");
    }
}
