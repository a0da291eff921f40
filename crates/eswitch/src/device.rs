//! A PF: binding it to its driver, unbinding and reloading it, and the state that it has while it is bound.

use std::any::Any;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use lockdep::{AtomicU64, JoinHandle, LockBefore, Locked, Mutex, digest};
use serde::{Deserialize, Serialize};

use crate::card::Resource;
use crate::devlink::{Devlink, DevlinkState, Params, VportInfo};
use crate::error::{Error, Result};
use crate::eswitch::ESwitch;
use crate::event::{Changes, Event};
use crate::ids::{MacAddr, Mode, PciAddress, PfIndex, PortHandle, PortIndex, Vport};
use crate::lock_order::{Device as DeviceClass, DeviceSlot, Devlink as DevlinkClass};
use crate::pci::{OtherDriver, may_drive};
use crate::sf::SfQueue;
use crate::shared::Shared;

/// The place of a PF on the PCI bus. It exists whether the PF is bound or not.
pub(crate) struct Device {
    pub index: PfIndex,
    pub address: PciAddress,
    /// Makes `bind`, `unbind`, `reload` and `sriov_numvfs` exclude each other.
    lock: Mutex<DeviceClass, Threads>,
    bound: Mutex<DeviceSlot, SlotState>,
    changes: Changes,
}

/// The state of a device that can be read while another thread holds the device's lock.
#[derive(Default, Hash)]
struct SlotState {
    slot: Slot,
    pci: PciState,
}

/// The attributes of a PF that belong to the PCI bus and not to the card's driver. They survive binding and unbinding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct PciState {
    /// `driver_override`, if one is set.
    pub driver_override: Option<String>,
    /// The other driver to which the PF is bound. `None` while it is bound to the card's driver or to none.
    #[serde(default)]
    pub other_driver: Option<OtherDriver>,
    /// `sriov_drivers_autoprobe`: whether VFs are bound when they are enabled.
    pub autoprobe: bool,
    /// Whether the PF was removed from the bus with `remove`.
    pub removed: bool,
}

impl Default for PciState {
    fn default() -> Self {
        Self { driver_override: None, other_driver: None, autoprobe: true, removed: false }
    }
}

/// Whether a PF is bound, and the state of the bound PF.
#[derive(Clone, Default, Hash)]
pub(crate) enum Slot {
    /// No driver is bound.
    #[default]
    Unbound,
    /// The driver is bound.
    Bound(Arc<Pf>),
    /// The PF is being reloaded: it has been taken down, and the holder of the device's lock brings it up again.
    Reloading,
}

/// The threads that serve a bound PF's queues.
type Threads = Vec<JoinHandle<()>>;

/// A PF that is bound to the driver: its devlink instance, its E-Switch and its queues.
pub struct Pf {
    index: PfIndex,
    address: PciAddress,
    pub(crate) shared: Arc<Shared>,
    pub(crate) devlink: Devlink,
    pub(crate) eswitch: ESwitch,
    pub(crate) sf_queue: SfQueue,
    /// On a DPU: the number of VFs that the host has enabled.
    pub(crate) host_vfs: Arc<AtomicU64>,
}

/// The hash of the PF's identity. The lock is part of it because two PFs may have the same index: the one that is bound
/// and the one that was bound before.
impl Hash for Pf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.index, &self.devlink).hash(state);
    }
}

impl Pf {
    /// The PF's index on the card.
    pub fn index(&self) -> PfIndex {
        self.index
    }

    /// The PF's PCI address, which is also the name of its devlink instance.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// The PF's E-Switch.
    pub fn eswitch(&self) -> &ESwitch {
        &self.eswitch
    }

    /// The devlink port of a vport.
    pub fn port_handle(&self, vport: Vport) -> PortHandle {
        PortHandle { device: self.address, index: PortIndex::new(self.index, vport) }
    }

    pub(crate) fn mac_of(&self, vport: Vport) -> MacAddr {
        self.shared.config.mac(self.index, vport)
    }
}

impl Device {
    pub fn new(index: PfIndex, address: PciAddress, changes: Changes) -> Self {
        Self {
            index,
            address,
            changes,
            lock: Mutex::new(Vec::new()).with_state_digest(digest),
            bound: Mutex::new(SlotState::default()).with_state_digest(digest),
        }
    }

    /// The bound PF.
    ///
    /// # Errors
    /// [`Error::NoDevice`]: the PF is not bound, or is being reloaded.
    pub fn pf<L>(&self, cx: &mut Locked<'_, L>) -> Result<Arc<Pf>> {
        match self.bound(cx) {
            Slot::Bound(pf) => Ok(pf),
            Slot::Unbound | Slot::Reloading => Err(Error::NoDevice(self.address)),
        }
    }

    /// Whether the PF is bound.
    pub fn bound<L>(&self, cx: &mut Locked<'_, L>) -> Slot {
        self.bound.lock_leaf(cx).slot.clone()
    }

    /// Changes the attributes that belong to the bus.
    ///
    /// # Errors
    /// The PF was removed from the bus.
    pub fn set_pci<L>(&self, cx: &mut Locked<'_, L>, change: impl FnOnce(&mut PciState)) -> Result<()> {
        self.change_slot(cx, |state| {
            if state.pci.removed {
                return Err(Error::NoFunction(self.address));
            }
            change(&mut state.pci);
            Ok(())
        })
    }

    /// Unbinds the PF if it is bound, and removes it from the bus. The attributes that belong to the bus get their
    /// defaults.
    ///
    /// # Errors
    /// The PF was removed from the bus before.
    pub fn take_off_bus<P: LockBefore<DeviceClass>>(&self, cx: &mut Locked<'_, P>) -> Result<()> {
        self.change(cx, |threads, cx| {
            if let (Slot::Bound(_), _) = self.on_bus(cx) {
                self.remove(cx, threads, Slot::Unbound)?;
            }
            self.set_pci(cx, |pci| *pci = PciState { removed: true, ..PciState::default() })
        })
    }

    /// Sets the attributes that belong to the bus to an agreed state.
    pub fn restore_pci<L>(&self, cx: &mut Locked<'_, L>, pci: &PciState) {
        self.change_slot(cx, |state| state.pci.clone_from(pci));
    }

    /// Puts the PF back on the bus. Returns whether it was removed from the bus before.
    pub fn put_on_bus<L>(&self, cx: &mut Locked<'_, L>) -> bool {
        self.change_slot(cx, |state| std::mem::take(&mut state.pci.removed))
    }

    /// Whether the PF is bound, and the attributes that belong to the bus.
    pub fn on_bus<L>(&self, cx: &mut Locked<'_, L>) -> (Slot, PciState) {
        let state = self.bound.lock_leaf(cx);
        (state.slot.clone(), state.pci.clone())
    }

    /// Runs `f` under the device's lock, and counts a change afterwards.
    pub fn with<P: LockBefore<DeviceClass>, R>(
        &self,
        cx: &mut Locked<'_, P>,
        f: impl FnOnce(&mut Locked<'_, DeviceClass>) -> R,
    ) -> R {
        self.change(cx, |_, cx| f(cx))
    }

    /// Waits until the device's lock is free, so that a reload that was in progress has ended.
    pub fn wait<P: LockBefore<DeviceClass>>(&self, cx: &mut Locked<'_, P>) {
        drop(self.lock.lock(cx));
    }

    /// Runs `f` with the device's lock held, and counts a change after the lock has been released.
    #[track_caller]
    fn change<P: LockBefore<DeviceClass>, R>(
        &self,
        cx: &mut Locked<'_, P>,
        f: impl FnOnce(&mut Threads, &mut Locked<'_, DeviceClass>) -> R,
    ) -> R {
        let _change = self.changes.begin();
        let (mut threads, mut cx) = self.lock.lock(cx);
        f(&mut threads, &mut cx)
    }

    /// Changes the state that can be read without the device's lock, and counts a change.
    fn change_slot<L, R>(&self, cx: &mut Locked<'_, L>, f: impl FnOnce(&mut SlotState) -> R) -> R {
        let _change = self.changes.begin();
        f(&mut self.bound.lock_leaf(cx))
    }

    /// Binds the PF to its driver, in the mode of the configuration, with parameters that have their defaults.
    ///
    /// # Errors
    /// The PF is bound already, was removed from the bus, or is for another driver; the module is not loaded; or the
    /// first failure, after everything has been undone.
    pub fn bind<P: LockBefore<DeviceClass>>(
        &self,
        cx: &mut Locked<'_, P>,
        shared: &Arc<Shared>,
        host_vfs: &Arc<AtomicU64>,
    ) -> Result<()> {
        self.bind_with(cx, shared, host_vfs, Params::default())
    }

    /// Binds the PF to its driver with these parameters.
    ///
    /// # Errors
    /// As for [`bind`](Self::bind).
    pub fn bind_with<P: LockBefore<DeviceClass>>(
        &self,
        cx: &mut Locked<'_, P>,
        shared: &Arc<Shared>,
        host_vfs: &Arc<AtomicU64>,
        params: Params,
    ) -> Result<()> {
        self.change(cx, |threads, cx| self.probe(cx, threads, shared, host_vfs, params))
    }

    /// Binds the PF to another driver than the card's, which makes nothing on the card.
    ///
    /// # Errors
    /// The PF was removed from the bus, or is bound already; or the error of `may_bind`.
    pub fn bind_other<P: LockBefore<DeviceClass>>(
        &self,
        cx: &mut Locked<'_, P>,
        driver: OtherDriver,
        may_bind: impl FnOnce(Option<&str>) -> Result<()>,
    ) -> Result<()> {
        self.change(cx, |_, cx| {
            let (slot, pci) = self.on_bus(cx);
            if !pci.removed {
                may_bind(pci.driver_override.as_deref())?;
            }
            match slot {
                Slot::Unbound if pci.other_driver.is_none() => self.set_pci(cx, |pci| pci.other_driver = Some(driver)),
                _ => Err(Error::AlreadyBound(self.address)),
            }
        })
    }

    /// Unbinds the PF from another driver than the card's.
    ///
    /// # Errors
    /// The PF is not bound to that driver.
    pub fn unbind_other<P: LockBefore<DeviceClass>>(&self, cx: &mut Locked<'_, P>, driver: OtherDriver) -> Result<()> {
        self.change(cx, |_, cx| {
            self.change_slot(cx, |state| match state.pci.other_driver.take_if(|is| *is == driver) {
                Some(_) => Ok(()),
                None => Err(Error::NotBound(self.address)),
            })
        })
    }

    /// Unbinds the PF from its driver.
    ///
    /// # Errors
    /// The PF is not bound.
    pub fn unbind<P: LockBefore<DeviceClass>>(&self, cx: &mut Locked<'_, P>) -> Result<()> {
        self.change(cx, |threads, cx| self.remove(cx, threads, Slot::Unbound))
    }

    /// `devlink dev reload`: takes the PF down and brings it up again. Its VFs are enabled again, with the settings
    /// that they had, and those that were bound are bound again. The parameters stay, and the driverinit values that were
    /// set take effect. Commands that arrive meanwhile wait.
    ///
    /// # Errors
    /// The PF is not bound; it could not be bound again, and is now unbound; or its VFs could not be enabled again, and
    /// the PF is bound without VFs.
    pub fn reload<P: LockBefore<DeviceClass>>(
        &self,
        cx: &mut Locked<'_, P>,
        shared: &Arc<Shared>,
        host_vfs: &Arc<AtomicU64>,
    ) -> Result<()> {
        self.change(cx, |threads, cx| {
            let look = |state: &DevlinkState| (state.num_vfs, state.reloaded_vfs(), state.params.reloaded());
            let (vfs, kept, params) = self.pf(cx)?.devlink.look(cx, |state, _| look(state));
            self.remove(cx, threads, Slot::Reloading)?;
            let bound = self.probe(cx, threads, shared, host_vfs, params);
            if bound.is_err() {
                self.change_slot(cx, |state| state.slot = Slot::Unbound);
                shared.events.emit(cx, || Event::DeviceUnbound(self.address));
            }
            bound?;
            if shared.config.dpu {
                return Ok(());
            }
            let pf = self.pf(cx)?;
            pf.devlink.with(cx, |state, cx| {
                state.kept = kept;
                let enabled = pf.set_num_vfs(state, cx, vfs.into());
                state.kept.clear();
                enabled
            })
        })
    }

    fn probe(
        &self,
        cx: &mut Locked<'_, DeviceClass>,
        threads: &mut Threads,
        shared: &Arc<Shared>,
        host_vfs: &Arc<AtomicU64>,
        params: Params,
    ) -> Result<()> {
        let (slot, pci) = self.on_bus(cx);
        match slot {
            Slot::Bound(_) => return Err(Error::AlreadyBound(self.address)),
            Slot::Unbound if pci.other_driver.is_some() => return Err(Error::AlreadyBound(self.address)),
            Slot::Unbound if pci.removed => return Err(Error::NoFunction(self.address)),
            Slot::Unbound => may_drive(self.address, pci.driver_override.as_deref())?,
            // A reload keeps the driver that was bound, whatever `driver_override` is now.
            Slot::Reloading => {}
        }
        shared.core.may_bind(self.address)?;
        let pf = Arc::new(Pf {
            index: self.index,
            address: self.address,
            shared: Arc::clone(shared),
            devlink: Devlink::new(self.changes.clone()),
            eswitch: ESwitch::new(self.index, self.address),
            sf_queue: SfQueue::new(self.index),
            host_vfs: Arc::clone(host_vfs),
        });
        let function = Resource::Function(self.index);
        shared.create(cx, function, pf.mac_of(Vport::Uplink), None)?;
        let serve = |queue: &str, name: &str, serve: fn(&Arc<Pf>, &mut Locked<'_, lockdep::Unlocked>)| {
            let (of, name, served) = (self.index.0, format!("{name}-{}", self.address), Arc::clone(&pf));
            shared.start(cx, &format!("pf{of} {queue}"), &name, Box::new(move |cx| serve(&served, cx)))
        };
        let served = serve("work", "esw", Pf::serve_work).and_then(|work| {
            threads.push(work);
            threads.push(serve("sf", "sf", Pf::serve_sfs)?);
            Ok(())
        });
        let up = pf.devlink.with(cx, |state, cx| {
            served?;
            state.autoprobe = pci.autoprobe;
            state.params = params;
            state.vports.insert(Vport::Uplink, VportInfo::new(pf.mac_of(Vport::Uplink), None));
            {
                let (mut component, mut cx) = shared.devcom.write(cx);
                component.join(&pf, params.in_effect.has_rdma());
                component.rescan(&mut cx, shared, self.index)?;
            }
            if shared.config.dpu {
                let host = [Vport::HostPf];
                pf.enable_vports(state, cx, Mode::Legacy, &host, None, crate::eswitch::LoadPolicy::Strict)?;
                pf.follow_host_vfs(state, cx, Mode::Legacy)?;
            }
            pf.set_mode(state, cx, shared.config.mode)?;
            state.registered = true;
            pf.ensure_mode(cx, state, shared.config.mode);
            pf.ensure_up(cx);
            Ok(())
        });
        if let Err(error) = up {
            Self::take_down(&pf, cx, threads, false);
            return Err(error);
        }
        self.change_slot(cx, |state| state.slot = Slot::Bound(Arc::clone(&pf)));
        // Work and notifications that arrived before this did not find the PF and had no effect. The reconcile makes up
        // for them; those that arrive from now on find the PF.
        pf.want_reconcile(cx);
        let reloading = matches!(slot, Slot::Reloading);
        pf.devlink.with(cx, |state, cx| pf.announce(state, cx, reloading));
        Ok(())
    }

    /// Takes the PF down, and sets the slot to `slot`.
    fn remove(&self, cx: &mut Locked<'_, DeviceClass>, threads: &mut Threads, slot: Slot) -> Result<()> {
        let pf = self.pf(cx)?;
        let reloading = matches!(slot, Slot::Reloading);
        self.change_slot(cx, |state| state.slot = slot);
        Self::take_down(&pf, cx, threads, reloading);
        Ok(())
    }

    /// Takes everything of a PF down. The devlink lock is held while the queues are drained. The queues are closed and
    /// the generation is raised before that, so that no handler waits for the devlink lock.
    fn take_down(pf: &Arc<Pf>, cx: &mut Locked<'_, DeviceClass>, threads: &mut Threads, reloading: bool) {
        let shared = &pf.shared;
        let panics = pf.devlink.with(cx, |state, cx| {
            state.registered = false;
            shared.lag.hold(cx);
            shared.flows.clear(cx, &*shared.card, pf.index);
            {
                let (mut component, mut cx) = shared.devcom.write(cx);
                component.set_leaving(pf.index);
                shared.disable_lag(&mut component, &mut cx);
                component.unpair(&mut cx, shared, pf.index);
            }
            pf.delete_all_sfs(state, cx);
            pf.unload_all(cx);
            pf.eswitch.stated.note_teardown(cx);
            pf.eswitch.work.inner().close(cx);
            pf.sf_queue.inner().close(cx);
            pf.raise_generation(cx);
            let panics = Self::join(pf, cx, threads);
            let vports: Vec<Vport> = state.vports.keys().copied().filter(|v| *v != Vport::Uplink).collect();
            let mode = pf.eswitch.mode.under_devlink(state, cx);
            {
                let (mut component, mut cx) = shared.devcom.write(cx);
                component.leave(&mut cx, shared, pf.index);
            }
            pf.disable_vports(state, cx, mode, &vports);
            pf.withdraw(state, cx, mode, reloading);
            state.vports.clear();
            state.num_vfs = 0;
            if mode.is_switchdev() {
                shared.destroy(cx, &[Resource::SwitchdevFdb(pf.index)]);
                pf.eswitch.mode.finish(cx, Mode::Legacy);
            }
            pf.eswitch.with_representors(cx, |table, _| table.forget_all_failures());
            shared.destroy(cx, &[Resource::Function(pf.index)]);
            pf.ensure_gone(cx);
            shared.lag.release(cx);
            panics
        });
        // Everything has been taken down, so the panic of a queue's thread can be passed on now.
        if let Some(panic) = panics.into_iter().next() {
            std::panic::resume_unwind(panic);
        }
    }

    /// Waits for the threads of the queues to end, and returns the panics of those that panicked.
    fn join(pf: &Pf, cx: &mut Locked<'_, DevlinkClass>, threads: &mut Threads) -> Vec<Box<dyn Any + Send>> {
        pf.eswitch.work.about_to_drain(cx);
        pf.sf_queue.about_to_drain(cx);
        threads.drain(..).filter_map(|thread| thread.join(cx).err()).collect()
    }
}
