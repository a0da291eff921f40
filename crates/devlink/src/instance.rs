//! Devlink instances other than PFs': those of VFs and SFs that have a driver. Each has one port, of flavour
//! `virtual`, and nothing to be changed but by its PF.

use eswitch::PciAddress;
use netlink::Errno;

use crate::card::{Cx, Served};
use crate::refusal::Refusal;
use crate::request::Handle;
use crate::view::{self, DeviceName, Role};

/// The index of the port of such an instance.
pub(crate) const PORT: u32 = 1;

/// An instance of a VF or SF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Instance {
    /// Its device.
    pub device: DeviceName,
    /// Its netdev, if that is there.
    pub netdev: Option<String>,
}

/// Every instance of a VF or SF.
pub(crate) fn all(view: &view::Card) -> Vec<Instance> {
    let instance = |role: Role, device: DeviceName| {
        let netdev = view.netdevs.iter().find(|netdev| netdev.role == role && netdev.parent == device);
        Instance { netdev: netdev.map(|netdev| netdev.name.clone()), device }
    };
    let vfs = view.functions.iter().filter(|function| function.vf_of.is_some() && function.driver.is_some());
    let vfs = vfs.map(|function| instance(Role::Vf, DeviceName::Pci(function.address)));
    let sfs = view.auxiliary.iter().filter(|device| device.sfnum.is_some() && device.driver.is_some());
    let sfs = sfs.map(|device| instance(Role::Sf, DeviceName::Auxiliary(device.name)));
    vfs.chain(sfs).collect()
}

/// What a handle means.
pub(crate) enum Meant {
    /// A PF.
    Pf(PciAddress),
    /// A VF or SF.
    Other(Instance),
}

/// The instance that a handle means.
///
/// # Errors
/// ENODEV: there is none.
pub(crate) fn find(served: &Served, cx: Cx<'_, '_>, handle: Handle<'_>) -> Result<Meant, Refusal> {
    let device = handle.device_name()?;
    if let DeviceName::Pci(address) = device
        && served.card.engine().pf(cx, address).is_ok()
    {
        return Ok(Meant::Pf(address));
    }
    let found = all(&served.view(cx)).into_iter().find(|other| other.device == device);
    found.map(Meant::Other).ok_or(Refusal::bare(Errno::NODEV))
}
