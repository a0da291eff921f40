//! Commands on the card's PCI functions, PFs and VFs: binding and unbinding, `driver_override`, removing a function
//! from the bus, rescanning the bus, and resetting a function. They follow the files of the kernel's PCI driver core in
//! sysfs (`Documentation/ABI/testing/sysfs-bus-pci`).

use std::sync::Arc;

use lockdep::{AtomicU64, Locked, Unlocked};

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
    /// No such function; it is bound already; its `driver_override` names another driver; it is a VF and its PF's
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
    /// No such function, or it is not bound.
    pub fn unbind(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        match self.function(address)? {
            PciFunction::Pf(device, _) => device.unbind(cx),
            PciFunction::Vf(vf) => {
                self.with_vf(cx, address, vf, |pf, state, cx, function| pf.unbind_vf(state, cx, function))
            }
        }
    }

    /// `echo ADDRESS > /sys/bus/pci/drivers_probe`: binds the function. If it is bound already or the card's driver may
    /// not bind to it, this succeeds and changes nothing.
    ///
    /// # Errors
    /// No such function; or the first failure, after everything has been undone.
    pub fn probe(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        match self.bind(cx, address) {
            Err(Error::AlreadyBound(_) | Error::Overridden { .. } | Error::NoAutoprobe(_)) => Ok(()),
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
                (vf.removed, vf.driver_override) = (true, None);
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
