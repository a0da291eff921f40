//! What a subscriber that has received every event knows of the card, for the invariant `told-once`: every change that a
//! reader can see is published exactly once, before the command that made it is answered.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::Event;
use crate::ids::{Mode, PciAddress, PfIndex, PortHandle};

/// The state of the card that follows from the events so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Published {
    /// The devlink instances of PFs, with what each shows.
    pub pfs: BTreeMap<PciAddress, Instance>,
    /// The VFs that are bound to their driver.
    pub vfs: BTreeSet<PciAddress>,
    /// The SF devices, by number, that are bound to their driver.
    pub sfs: BTreeSet<u32>,
    /// The modules that are loaded.
    pub modules: BTreeSet<&'static str>,
    /// The pairs of E-Switches, the lower number first.
    pub paired: BTreeSet<(PfIndex, PfIndex)>,
}

/// What events have published of a PF's devlink instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Instance {
    pub mode: Mode,
    pub num_vfs: u16,
    pub ports: BTreeSet<PortHandle>,
}

impl Published {
    /// Applies an event.
    ///
    /// # Errors
    /// The event reports something that was known already; with the reason.
    pub fn apply(&mut self, event: &Event, is_pf: impl Fn(PciAddress) -> bool) -> Result<(), String> {
        let is_new = match event {
            Event::DeviceBound(pf) if is_pf(*pf) => self.pfs.insert(*pf, Instance::default()).is_none(),
            Event::DeviceUnbound(pf) if is_pf(*pf) => match self.pfs.remove(pf) {
                None => false,
                Some(instance) if instance.ports.is_empty() => true,
                Some(instance) => return Err(format!("pci/{pf} is gone, and its ports {:?} are not", instance.ports)),
            },
            Event::DeviceBound(vf) => self.vfs.insert(*vf),
            Event::DeviceUnbound(vf) => self.vfs.remove(vf),
            Event::SfBound(id) => self.sfs.insert(*id),
            Event::SfUnbound(id) => self.sfs.remove(id),
            Event::Mode(pf, mode) => std::mem::replace(&mut self.of(*pf)?.mode, *mode) != *mode,
            Event::Vfs(pf, number) => std::mem::replace(&mut self.of(*pf)?.num_vfs, *number) != *number,
            Event::PortNew(port) => self.of(port.device)?.ports.insert(*port),
            Event::PortDel(port) => self.of(port.device)?.ports.remove(port),
            Event::ModuleLoaded(name) => self.modules.insert(name),
            Event::ModuleUnloaded(name) => self.modules.remove(name),
            Event::Paired(one, other, paired) => {
                let pair = (*one.min(other), *one.max(other));
                if *paired { self.paired.insert(pair) } else { self.paired.remove(&pair) }
            }
            // These report what has been done or has failed, which may happen any number of times.
            Event::Loaded(..)
            | Event::Unloaded(..)
            | Event::LoadFailed(..)
            | Event::HostVfsFailed(..)
            | Event::ProbeFailed(..)
            | Event::Netdev(..)
            | Event::Registered(..)
            | Event::Unregistered(..)
            | Event::StaleWork(..)
            | Event::Retry(..)
            | Event::Lag(..) => true,
        };
        if is_new { Ok(()) } else { Err(format!("published twice: {event}")) }
    }

    fn of(&mut self, pf: PciAddress) -> Result<&mut Instance, String> {
        self.pfs.get_mut(&pf).ok_or_else(|| format!("published of a device that does not exist: pci/{pf}"))
    }
}
