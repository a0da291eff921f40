//! What can be done to a PCI function of the card, a PF or a VF: binding and unbinding, which driver it is for,
//! taking it off the bus and finding it again.

use std::sync::Arc;

use lockdep::{AtomicU64, Locked, Unlocked};

use crate::device::Device;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::ids::{PciAddress, PfIndex, Vport};
use crate::module::CORE;

/// Whether the driver may have a function.
///
/// # Errors
/// The function is for another one.
pub(crate) fn may_drive(address: PciAddress, driver_override: Option<&str>) -> Result<()> {
    match driver_override {
        Some(driver) if driver != CORE => Err(Error::Overridden { address, driver: driver.to_owned() }),
        _ => Ok(()),
    }
}

/// A function by its address.
enum Function<'a> {
    Pf(&'a Device, &'a Arc<AtomicU64>),
    Vf((PfIndex, u16)),
}

impl Engine {
    fn function(&self, address: PciAddress) -> Result<Function<'_>> {
        if let Some(vf) = self.shared.config.vf_at(address) {
            return Ok(Function::Vf(vf));
        }
        let (device, host_vfs) = self.device(address)?;
        Ok(Function::Pf(device, host_vfs))
    }

    /// `echo ADDRESS > /sys/bus/pci/drivers/mlx5_core/bind`.
    ///
    /// # Errors
    /// No such function; it is bound; it is for another driver, or it is a VF that is to have none; or what
    /// failed, with nothing left.
    pub fn bind(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        match self.function(address)? {
            Function::Pf(device, host_vfs) => device.bind(cx, &self.shared, host_vfs),
            Function::Vf(vf) => self.with_vf(cx, address, vf, |pf, state, cx, function| {
                let driver_override = state.vf(function)?.driver_override.clone();
                may_drive(address, driver_override.as_deref())?;
                // As the kernel has it: a driver that is asked for by name may have it all the same.
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
            Function::Pf(device, _) => device.unbind(cx),
            Function::Vf(vf) => {
                self.with_vf(cx, address, vf, |pf, state, cx, function| pf.unbind_vf(state, cx, function))
            }
        }
    }

    /// `echo ADDRESS > /sys/bus/pci/drivers_probe`: binds the function unless it is bound, or no driver of the
    /// card's may have it.
    ///
    /// # Errors
    /// No such function; or what failed, with nothing left.
    pub fn probe(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        match self.bind(cx, address) {
            Err(Error::AlreadyBound(_) | Error::Overridden { .. } | Error::NoAutoprobe(_)) => Ok(()),
            result => result,
        }
    }

    /// `echo DRIVER > …/driver_override`: from the next time it is bound on; `None` for any driver that knows
    /// the function.
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
            Function::Pf(device, _) => device.set_pci(cx, |pci| pci.driver_override = driver),
            Function::Vf(vf) => self.with_vf(cx, address, vf, |_, state, _, function| {
                state.vf(function)?.driver_override = driver;
                Ok(())
            }),
        }
    }

    /// `echo 0|1 > …/sriov_drivers_autoprobe` of a PF: whether its VFs are bound when they are enabled. It is the
    /// bus's, and outlasts unbinding the PF.
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

    /// `echo 1 > …/remove`: unbinds the function and takes it off the bus, until [`rescan`](Self::rescan) finds
    /// it again.
    ///
    /// # Errors
    /// No such function.
    pub fn remove(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        match self.function(address)? {
            Function::Pf(device, _) => device.take_off_bus(cx),
            Function::Vf(vf) => self.with_vf(cx, address, vf, |pf, state, cx, function| {
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

    /// `echo 1 > /sys/bus/pci/rescan`: functions that were taken off the bus are there again, and are bound as
    /// new ones are. A PF comes back without VFs. As with the kernel a driver that fails does not fail the
    /// rescan.
    ///
    /// Real VFs come back with their PF's next `sriov_numvfs` only; here a rescan finds them too.
    pub fn rescan(&self, cx: &mut Locked<'_, Unlocked>) {
        for (device, host_vfs) in self.devices.iter().zip(&self.host_vfs) {
            match device.put_on_bus(cx) {
                true => self.tell_failure(cx, device.address, |cx| device.bind(cx, &self.shared, host_vfs)),
                false => self.find_vfs(cx, device),
            }
        }
    }

    /// VFs of a PF that were taken off the bus are there again.
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
        // A PF that is not bound has none.
        for number in found.unwrap_or_default() {
            let address = self.shared.config.vf_address(device.index, number);
            self.tell_failure(cx, address, |cx| self.probe(cx, address));
        }
    }

    fn tell_failure(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        f: impl FnOnce(&mut Locked<'_, Unlocked>) -> Result<()>,
    ) {
        if let Err(error) = f(cx) {
            self.shared.events.emit(cx, || Event::ProbeFailed(address.to_string(), error.to_string()));
        }
    }

    /// `echo 1 > …/reset`. What is bound goes down and comes up again; what is not has nothing to reset.
    ///
    /// # Errors
    /// No such function; or it could not come up again.
    pub fn reset(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        match self.function(address)? {
            Function::Pf(device, host_vfs) => {
                device.set_pci(cx, |_| {})?;
                match device.reload(cx, &self.shared, host_vfs) {
                    Err(Error::NoDevice(_)) => Ok(()),
                    result => result,
                }
            }
            Function::Vf(vf) => {
                let unbound = self.with_vf(cx, address, vf, |pf, state, cx, f| pf.unbind_vf(state, cx, f));
                let bound =
                    unbound.and_then(|()| self.with_vf(cx, address, vf, |pf, state, cx, f| pf.bind_vf(state, cx, f)));
                match bound {
                    // Somebody else was quicker, or there was nothing to reset.
                    Err(Error::NotBound(_) | Error::AlreadyBound(_)) => Ok(()),
                    result => result,
                }
            }
        }
    }
}
