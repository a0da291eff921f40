//! Commands on the card's PCI functions, PFs and VFs: binding and unbinding, `driver_override`, removing a function
//! from the bus, rescanning the bus, and resetting a function. They follow the files of the kernel's PCI driver core in
//! sysfs (`Documentation/ABI/testing/sysfs-bus-pci`).

use std::sync::Arc;

use lockdep::{AtomicU64, Locked, Unlocked};
use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::ids::{PciAddress, PfIndex, Vport};
use crate::module::CORE;

/// Checks whether the card's driver may bind to a function.
///
/// # Errors
/// [`Error::Overridden`]: `driver_override` names another driver.
pub(crate) fn may_drive(address: PciAddress, driver_override: Option<&str>) -> Result<()> {
    match driver_override {
        Some(driver) if driver != CORE => Err(Error::Overridden { address, driver: driver.to_owned() }),
        _ => Ok(()),
    }
}

/// A driver that is not the card's, and to which a function of the card can be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
#[serde(rename_all = "kebab-case")]
pub enum OtherDriver {
    /// `vfio-pci`, which gives a function to a program or to a virtual machine. It knows no ids of its own and drives
    /// only functions whose `driver_override` names it (`PCI_DRIVER_OVERRIDE_DEVICE_VFIO`).
    VfioPci,
}

impl OtherDriver {
    /// The driver's name on the PCI bus.
    pub fn name(self) -> &'static str {
        match self {
            Self::VfioPci => "vfio-pci",
        }
    }
}

/// A PCI function of the card, as it is found by its address.
enum PciFunction<'a> {
    Pf(&'a Device, &'a Arc<AtomicU64>),
    Vf((PfIndex, u16)),
}

impl Engine {
    fn function(&self, address: PciAddress) -> Result<PciFunction<'_>> {
        if let Some(vf) = self.shared.config.vf_at(address) {
            return Ok(PciFunction::Vf(vf));
        }
        let (device, host_vfs) = self.device(address)?;
        Ok(PciFunction::Pf(device, host_vfs))
    }

    /// `echo ADDRESS > /sys/bus/pci/drivers/mlx5_core/bind`.
    ///
    /// # Errors
    /// No such function; it is bound already, to this or another driver; its `driver_override` names another driver; it is a VF and its PF's
    /// `sriov_drivers_autoprobe` is 0; or the first failure, after everything has been undone.
    pub fn bind(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        match self.function(address)? {
            PciFunction::Pf(device, host_vfs) => device.bind(cx, &self.shared, host_vfs),
            PciFunction::Vf(vf) => self.with_vf(cx, address, vf, |pf, state, cx, function| {
                let driver_override = state.vf(function)?.driver_override.clone();
                may_drive(address, driver_override.as_deref())?;
                // As in the kernel's `pci_device_can_probe`, a driver that `driver_override` names may bind all the
                // same.
                if !state.autoprobe && driver_override.is_none() {
                    return Err(Error::NoAutoprobe(address));
                }
                pf.bind_vf(state, cx, function)
            }),
        }
    }

    /// `echo ADDRESS > /sys/bus/pci/drivers/mlx5_core/unbind`.
    ///
    /// # Errors
    /// No such function, or it is not bound to this driver.
    pub fn unbind(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        match self.function(address)? {
            PciFunction::Pf(device, _) => device.unbind(cx),
            PciFunction::Vf(vf) => {
                self.with_vf(cx, address, vf, |pf, state, cx, function| pf.unbind_vf(state, cx, function))
            }
        }
    }

    /// `echo ADDRESS > /sys/bus/pci/drivers/vfio-pci/bind`. The function gets no netdev and no other devices, and the
    /// port of a VF in the switch and its representor stay.
    ///
    /// # Errors
    /// No such function; its `driver_override` does not name `vfio-pci`; the module is not loaded; or the function is
    /// bound already, to this or another driver.
    pub fn bind_vfio(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        let driver = OtherDriver::VfioPci;
        let may_bind = |driver_override: Option<&str>| match driver_override {
            _ if !self.shared.modules.is_vfio_loaded() => Err(Error::NoVfio(address)),
            Some(name) if name == driver.name() => Ok(()),
            _ => Err(Error::NotForVfio(address)),
        };
        match self.function(address)? {
            PciFunction::Pf(device, _) => device.bind_other(cx, driver, may_bind),
            PciFunction::Vf(vf) => self.with_vf(cx, address, vf, |_, state, _, function| {
                let vf = state.vf(function)?;
                may_bind(vf.driver_override.as_deref())?;
                if vf.bound || vf.other_driver.is_some() {
                    return Err(Error::AlreadyBound(address));
                }
                vf.other_driver = Some(driver);
                Ok(())
            }),
        }
    }

    /// `echo ADDRESS > /sys/bus/pci/drivers/vfio-pci/unbind`.
    ///
    /// # Errors
    /// No such function, or it is not bound to that driver.
    pub fn unbind_vfio(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        let driver = OtherDriver::VfioPci;
        match self.function(address)? {
            PciFunction::Pf(device, _) => device.unbind_other(cx, driver),
            PciFunction::Vf(vf) => self.with_vf(cx, address, vf, |_, state, _, function| {
                match state.vf(function)?.other_driver.take_if(|is| *is == driver) {
                    Some(_) => Ok(()),
                    None => Err(Error::NotBound(address)),
                }
            }),
        }
    }

    /// Every function that a program can bind: the PFs and the VFs that are enabled.
    pub(crate) fn bindable(&self, cx: &mut Locked<'_, Unlocked>) -> Vec<PciAddress> {
        let mut found = Vec::new();
        for device in &self.devices {
            found.push(device.address);
            // A PF that is not bound has no VFs.
            let vfs = self.query_devlink(cx, device.address, |_, state, _| Ok(state.num_vfs)).unwrap_or_default();
            found.extend((0..vfs).map(|vf| self.shared.config.vf_address(device.index, vf)));
        }
        found
    }

    /// `echo ADDRESS > /sys/bus/pci/drivers_probe`: binds the function to the driver that is for it. If it is bound
    /// already or no driver may bind to it, this succeeds and changes nothing.
    ///
    /// # Errors
    /// No such function; or the first failure, after everything has been undone.
    pub fn probe(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        let bound = match self.bind(cx, address) {
            Err(Error::Overridden { driver, .. }) if driver == OtherDriver::VfioPci.name() => {
                self.bind_vfio(cx, address)
            }
            result => result,
        };
        match bound {
            Err(
                Error::AlreadyBound(_)
                | Error::Overridden { .. }
                | Error::NotForVfio(_)
                | Error::NoVfio(_)
                | Error::NoAutoprobe(_),
            ) => Ok(()),
            result => result,
        }
    }

    /// `echo DRIVER > …/driver_override`: reserves the function for a driver, from the next time that it is bound.
    /// `None` clears the override.
    ///
    /// # Errors
    /// No such function.
    pub fn set_driver_override(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        driver: Option<String>,
    ) -> Result<()> {
        match self.function(address)? {
            PciFunction::Pf(device, _) => device.set_pci(cx, |pci| pci.driver_override = driver),
            PciFunction::Vf(vf) => self.with_vf(cx, address, vf, |_, state, _, function| {
                state.vf(function)?.driver_override = driver;
                Ok(())
            }),
        }
    }

    /// `echo 0|1 > …/sriov_drivers_autoprobe` of a PF: whether its VFs are bound when they are enabled. The attribute
    /// belongs to the bus and survives unbinding the PF.
    ///
    /// # Errors
    /// No such PF.
    pub fn set_autoprobe(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, on: bool) -> Result<()> {
        let (device, _) = self.device(address)?;
        device.with(cx, |cx| {
            device.set_pci(cx, |pci| pci.autoprobe = on)?;
            if let Ok(pf) = device.pf(cx) {
                pf.devlink.with(cx, |state, _| state.autoprobe = on);
            }
            Ok(())
        })
    }

    /// `echo 1 > …/remove`: unbinds the function and removes it from the bus, until [`rescan`](Self::rescan) finds it
    /// again.
    ///
    /// # Errors
    /// No such function.
    pub fn remove(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        match self.function(address)? {
            PciFunction::Pf(device, _) => device.take_off_bus(cx),
            PciFunction::Vf(vf) => self.with_vf(cx, address, vf, |pf, state, cx, function| {
                match pf.unbind_vf(state, cx, function) {
                    Ok(()) | Err(Error::NotBound(_)) => {}
                    Err(error) => return Err(error),
                }
                let vf = state.vf(function)?;
                (vf.removed, vf.driver_override, vf.other_driver) = (true, None, None);
                Ok(())
            }),
        }
    }

    /// `echo 1 > /sys/bus/pci/rescan`: puts functions that were removed back on the bus, and binds them as new ones
    /// are. A PF comes back without VFs. As in the kernel, a driver that fails does not fail the rescan.
    ///
    /// On hardware a removed VF comes back only with the next `sriov_numvfs` of its PF. Here a rescan finds it too.
    pub fn rescan(&self, cx: &mut Locked<'_, Unlocked>) {
        for (device, host_vfs) in self.devices.iter().zip(&self.host_vfs) {
            match device.put_on_bus(cx) {
                true => self.publish_failure(cx, device.address, |cx| device.bind(cx, &self.shared, host_vfs)),
                false => self.find_vfs(cx, device),
            }
        }
    }

    /// Puts the VFs of a PF that were removed back on the bus, and probes them.
    fn find_vfs(&self, cx: &mut Locked<'_, Unlocked>, device: &Device) {
        let found = self.with_devlink(cx, device.address, |_, state, _| {
            let mut found = Vec::new();
            for (vport, info) in &mut state.vports {
                if let (Vport::Vf(number), Some(vf)) = (vport, &mut info.vf)
                    && std::mem::take(&mut vf.removed)
                {
                    found.push(*number);
                }
            }
            Ok(found)
        });
        // A PF that is not bound has no VFs.
        for number in found.unwrap_or_default() {
            let address = self.shared.config.vf_address(device.index, number);
            self.publish_failure(cx, address, |cx| self.probe(cx, address));
        }
    }

    /// Runs `f`, and publishes its error as an event.
    fn publish_failure(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        f: impl FnOnce(&mut Locked<'_, Unlocked>) -> Result<()>,
    ) {
        if let Err(error) = f(cx) {
            self.shared.events.emit(cx, || Event::ProbeFailed(address.to_string(), error.to_string()));
        }
    }

    /// `echo 1 > …/reset`: takes a function that is bound down and brings it up again. For one that is not bound this
    /// succeeds and changes nothing.
    ///
    /// # Errors
    /// No such function; or it could not be brought up again.
    pub fn reset(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        match self.function(address)? {
            PciFunction::Pf(device, host_vfs) => {
                device.set_pci(cx, |_| {})?;
                match device.reload(cx, &self.shared, host_vfs) {
                    Err(Error::NoDevice(_)) => Ok(()),
                    result => result,
                }
            }
            PciFunction::Vf(vf) => {
                let unbound = self.with_vf(cx, address, vf, |pf, state, cx, f| pf.unbind_vf(state, cx, f));
                let bound =
                    unbound.and_then(|()| self.with_vf(cx, address, vf, |pf, state, cx, f| pf.bind_vf(state, cx, f)));
                match bound {
                    // The VF was not bound, or another thread has bound it meanwhile.
                    Err(Error::NotBound(_) | Error::AlreadyBound(_)) => Ok(()),
                    result => result,
                }
            }
        }
    }
}
