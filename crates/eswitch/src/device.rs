//! A PF: binding it to its driver, unbinding it, and what it is in between.

use std::any::Any;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use lockdep::{AtomicU64, JoinHandle, LockBefore, Locked, Mutex, digest};
use serde::{Deserialize, Serialize};

use crate::card::Resource;
use crate::devlink::{Devlink, VportInfo};
use crate::error::{Error, Result};
use crate::eswitch::ESwitch;
use crate::event::{Changes, Event};
use crate::ids::{MacAddr, Mode, PciAddress, PfIndex, PortHandle, PortIndex, Vport};
use crate::lock_order::{Device as DeviceClass, DeviceSlot, Devlink as DevlinkClass};
use crate::pci::may_drive;
use crate::sf::SfQueue;
use crate::shared::Shared;

/// A PF on the PCI bus, bound to the driver or not.
pub(crate) struct Device {
    pub index: PfIndex,
    pub address: PciAddress,
    /// What `bind`, `unbind`, `reload` and `sriov_numvfs` exclude each other with.
    lock: Mutex<DeviceClass, Threads>,
    bound: Mutex<DeviceSlot, SlotState>,
    changes: Changes,
}

/// What can be looked at of a device whoever holds its lock.
#[derive(Default, Hash)]
struct SlotState {
    slot: Slot,
    pci: PciState,
}

/// What of a PF is the PCI bus's and not its driver's, so that it outlasts binding and unbinding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct PciState {
    /// `driver_override`, if one is set.
    pub driver_override: Option<String>,
    /// `sriov_drivers_autoprobe`: whether VFs are bound when they are enabled.
    pub autoprobe: bool,
    /// Whether it was taken off the bus with `remove`.
    pub removed: bool,
}

impl Default for PciState {
    fn default() -> Self {
        Self { driver_override: None, autoprobe: true, removed: false }
    }
}

/// What a device has of a PF.
#[derive(Clone, Default, Hash)]
pub(crate) enum Slot {
    /// No driver.
    #[default]
    Unbound,
    /// A PF.
    Bound(Arc<Pf>),
    /// One went and another is coming; whoever holds the device's lock sees to it.
    Reloading,
}

/// The threads that serve a bound PF's queues.
type Threads = Vec<JoinHandle<()>>;

/// A PF that is bound to the driver: its devlink instance, its E-Switch, its queues.
pub struct Pf {
    index: PfIndex,
    address: PciAddress,
    pub(crate) shared: Arc<Shared>,
    pub(crate) devlink: Devlink,
    pub(crate) eswitch: ESwitch,
    pub(crate) sf_queue: SfQueue,
    /// On a DPU: how many VFs the host has enabled.
    pub(crate) host_vfs: Arc<AtomicU64>,
}

/// Which it is: of one place there may be two, one that is bound and one that was.
impl Hash for Pf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.index, &self.devlink).hash(state);
    }
}

impl Pf {
    /// Its place on the card.
    pub fn index(&self) -> PfIndex {
        self.index
    }

    /// Its PCI address, which is its devlink instance's name.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Its E-Switch.
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

    /// The PF, if it is bound.
    ///
    /// # Errors
    /// It is not.
    pub fn pf<L>(&self, cx: &mut Locked<'_, L>) -> Result<Arc<Pf>> {
        match self.bound(cx) {
            Slot::Bound(pf) => Ok(pf),
            Slot::Unbound | Slot::Reloading => Err(Error::NoDevice(self.address)),
        }
    }

    /// What it has of a PF.
    pub fn bound<L>(&self, cx: &mut Locked<'_, L>) -> Slot {
        self.bound.lock_leaf(cx).slot.clone()
    }

    /// Changes what is the bus's of it.
    ///
    /// # Errors
    /// It is off the bus.
    pub fn set_pci<L>(&self, cx: &mut Locked<'_, L>, change: impl FnOnce(&mut PciState)) -> Result<()> {
        self.change_slot(cx, |held| {
            if held.pci.removed {
                return Err(Error::NoFunction(self.address));
            }
            change(&mut held.pci);
            Ok(())
        })
    }

    /// Unbinds the PF if it is bound, and takes it off the bus; what the bus knew of it is forgotten.
    ///
    /// # Errors
    /// It is off the bus.
    pub fn take_off_bus<P: LockBefore<DeviceClass>>(&self, cx: &mut Locked<'_, P>) -> Result<()> {
        self.change(cx, |threads, cx| {
            if let (Slot::Bound(_), _) = self.on_bus(cx) {
                self.remove(cx, threads, Slot::Unbound)?;
            }
            self.set_pci(cx, |pci| *pci = PciState { removed: true, ..PciState::default() })
        })
    }

    /// Makes what is the bus's of it what it was.
    pub fn restore_pci<L>(&self, cx: &mut Locked<'_, L>, pci: &PciState) {
        self.change_slot(cx, |state| state.pci.clone_from(pci));
    }

    /// Puts the PF back on the bus; whether it was off it.
    pub fn put_on_bus<L>(&self, cx: &mut Locked<'_, L>) -> bool {
        self.change_slot(cx, |held| std::mem::take(&mut held.pci.removed))
    }

    /// What is the bus's of it, beside what it has of a PF.
    pub fn on_bus<L>(&self, cx: &mut Locked<'_, L>) -> (Slot, PciState) {
        let held = self.bound.lock_leaf(cx);
        (held.slot.clone(), held.pci.clone())
    }

    /// Runs `f` under the device's lock; then what `f` has changed has been counted.
    pub fn with<P: LockBefore<DeviceClass>, R>(
        &self,
        cx: &mut Locked<'_, P>,
        f: impl FnOnce(&mut Locked<'_, DeviceClass>) -> R,
    ) -> R {
        self.change(cx, |_, cx| f(cx))
    }

    /// Waits until nobody has the device's lock: a reload that was under way is over.
    pub fn wait<P: LockBefore<DeviceClass>>(&self, cx: &mut Locked<'_, P>) {
        drop(self.lock.lock(cx));
    }

    /// Takes the device's lock, runs `f`, lets go; then what `f` has changed has been counted.
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

    /// Changes what can be looked at whoever holds the device's lock, and counts it.
    fn change_slot<L, R>(&self, cx: &mut Locked<'_, L>, f: impl FnOnce(&mut SlotState) -> R) -> R {
        let _change = self.changes.begin();
        f(&mut self.bound.lock_leaf(cx))
    }

    /// Binds the PF to its driver: it comes up in the mode the configuration says.
    ///
    /// # Errors
    /// It is bound; or the first thing that failed, with nothing left.
    pub fn bind<P: LockBefore<DeviceClass>>(
        &self,
        cx: &mut Locked<'_, P>,
        shared: &Arc<Shared>,
        host_vfs: &Arc<AtomicU64>,
    ) -> Result<()> {
        self.change(cx, |threads, cx| self.probe(cx, threads, shared, host_vfs))
    }

    /// Unbinds it. Unbinding what is not bound is an error.
    ///
    /// # Errors
    /// It is not bound.
    pub fn unbind<P: LockBefore<DeviceClass>>(&self, cx: &mut Locked<'_, P>) -> Result<()> {
        self.change(cx, |threads, cx| self.remove(cx, threads, Slot::Unbound))
    }

    /// `devlink dev reload`: takes the PF down and brings it up again, with its VFs, each bound or not and set
    /// as it was. Commands that come
    /// meanwhile wait.
    ///
    /// # Errors
    /// It is not bound; or it could not be bound again, and is not now; or its VFs could not be enabled
    /// again, and are not.
    pub fn reload<P: LockBefore<DeviceClass>>(
        &self,
        cx: &mut Locked<'_, P>,
        shared: &Arc<Shared>,
        host_vfs: &Arc<AtomicU64>,
    ) -> Result<()> {
        self.change(cx, |threads, cx| {
            let (vfs, kept) = self.pf(cx)?.devlink.look(cx, |state, _| (state.num_vfs, state.vfs()));
            self.remove(cx, threads, Slot::Reloading)?;
            let bound = self.probe(cx, threads, shared, host_vfs);
            if bound.is_err() {
                self.change_slot(cx, |state| state.slot = Slot::Unbound);
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
    ) -> Result<()> {
        let (slot, pci) = self.on_bus(cx);
        match slot {
            Slot::Bound(_) => return Err(Error::AlreadyBound(self.address)),
            Slot::Unbound if pci.removed => return Err(Error::NoFunction(self.address)),
            Slot::Unbound => may_drive(self.address, pci.driver_override.as_deref())?,
            // It has its driver.
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
            state.vports.insert(Vport::Uplink, VportInfo::new(pf.mac_of(Vport::Uplink), None));
            {
                let (mut component, mut cx) = shared.devcom.write(cx);
                component.join(&pf);
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
            Self::take_down(&pf, cx, threads);
            return Err(error);
        }
        self.change_slot(cx, |state| state.slot = Slot::Bound(Arc::clone(&pf)));
        // Whatever was queued or notified meanwhile found nothing to act on: look once more, now that
        // whoever comes next finds the PF.
        pf.want_reconcile(cx);
        shared.events.emit(cx, || Event::DeviceBound(self.address));
        Ok(())
    }

    /// Takes the PF down and leaves `slot` in its place.
    fn remove(&self, cx: &mut Locked<'_, DeviceClass>, threads: &mut Threads, slot: Slot) -> Result<()> {
        let pf = self.pf(cx)?;
        self.change_slot(cx, |state| state.slot = slot);
        Self::take_down(&pf, cx, threads);
        let shared = &pf.shared;
        shared.events.emit(cx, || Event::DeviceUnbound(self.address));
        Ok(())
    }

    /// Takes everything of a PF down. The devlink lock is held while the queues are drained; the
    /// generation is raised first, and the queues closed, so that no handler waits for that lock.
    fn take_down(pf: &Arc<Pf>, cx: &mut Locked<'_, DeviceClass>, threads: &mut Threads) {
        let shared = &pf.shared;
        let panics = pf.devlink.with(cx, |state, cx| {
            state.registered = false;
            shared.lag.hold(cx);
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
            state.vports.clear();
            state.num_vfs = 0;
            if mode == Mode::Switchdev {
                shared.destroy(cx, &[Resource::SwitchdevFdb(pf.index)]);
                pf.eswitch.mode.finish(cx, Mode::Legacy);
            }
            pf.eswitch.with_representors(cx, |table, _| table.forget_all_failures());
            shared.destroy(cx, &[Resource::Function(pf.index)]);
            pf.ensure_gone(cx);
            shared.lag.release(cx);
            panics
        });
        // Everything is down; what a thread died of is told now.
        if let Some(panic) = panics.into_iter().next() {
            std::panic::resume_unwind(panic);
        }
    }

    /// Waits for the queues' threads; what they died of, if they did.
    fn join(pf: &Pf, cx: &mut Locked<'_, DevlinkClass>, threads: &mut Threads) -> Vec<Box<dyn Any + Send>> {
        pf.eswitch.work.about_to_drain(cx);
        pf.sf_queue.about_to_drain(cx);
        threads.drain(..).filter_map(|thread| thread.join(cx).err()).collect()
    }
}
