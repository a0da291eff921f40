//! Devlink instances of VFs and SFs that have a driver. Each has one port, of flavour `virtual`, and can be changed
//! only through its PF.

use eswitch::PciAddress;
use netlink::Errno;

use crate::card::{Cx, Served};
use crate::refusal::Refusal;
use crate::request::Handle;
use crate::view::{self, DeviceName, Role};

/// The index of the one port of such an instance.
pub(crate) const PORT: u32 = 1;

/// An instance of a VF or SF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Instance {
    /// Its device.
    pub device: DeviceName,
    /// The name of its netdev, if it has one.
    pub netdev: Option<String>,
    /// Whether the netdev is in another network namespace.
    pub elsewhere: bool,
}

/// The instances of all VFs and SFs.
pub(crate) fn all(view: &view::Card) -> Vec<Instance> {
    let instance = |role: Role, device: DeviceName| {
        let netdev = view.netdevs.iter().find(|netdev| netdev.role == role && netdev.parent == device);
        Instance {
            device,
            netdev: netdev.map(|netdev| netdev.name.clone()),
            elsewhere: netdev.is_some_and(|netdev| netdev.elsewhere),
        }
    };
    let vfs = view.functions.iter().filter(|function| function.vf_of.is_some() && function.driver.is_some());
    let vfs = vfs.map(|function| instance(Role::Vf, DeviceName::Pci(function.address)));
    let sfs = view.auxiliary.iter().filter(|device| device.sfnum.is_some() && device.driver.is_some());
    let sfs = sfs.map(|device| instance(Role::Sf, DeviceName::Auxiliary(device.name)));
    vfs.chain(sfs).collect()
}

/// A devlink instance that a request names.
pub(crate) enum Named {
    /// The instance of a PF.
    Pf(PciAddress),
    /// The instance of a VF or SF.
    Function(Instance),
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
    let found = all(&served.view(cx)).into_iter().find(|instance| instance.device == device);
    found.map(Named::Function).ok_or(Refusal::bare(Errno::NODEV))
}
