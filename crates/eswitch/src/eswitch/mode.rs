//! The mode of an E-Switch, and mode changes.
//!
//! The mode has a lock of its own, which is never held together with the representor lock: an operation marks itself as
//! in progress, releases the lock, does its work, and takes the lock again to store the outcome. An operation that
//! begins meanwhile is refused, as there is no mode to act on.

use std::sync::Arc;

use lockdep::{LockBefore, Locked, Mutex, digest};

use crate::card::Resource;
use crate::device::Pf;
use crate::devlink::DevlinkState;
use crate::error::{Error, Result};
use crate::eswitch::representor::LoadPolicy;
use crate::eswitch::stated::{Reps, Stated};
use crate::event::Event;
use crate::ids::{Mode, PfIndex, RepType, Vport};
use crate::lock_order::{Devcom, Devlink, Mode as ModeClass};

/// The mode, and the operation on it that is in progress.
pub struct ModeState {
    inner: Mutex<ModeClass, Inner>,
    stated: Arc<Stated>,
}

#[derive(Debug, Default, Hash)]
struct Inner {
    mode: Mode,
    in_progress: Option<&'static str>,
}

impl ModeState {
    pub(super) fn new(stated: Arc<Stated>) -> Self {
        Self { inner: Mutex::new(Inner::default()).with_state_digest(digest), stated }
    }

    /// The mode, for a caller that holds the devlink lock and does not change the mode. An operation that changes it
    /// holds that lock from before its first step until after its last. The argument proves that the caller holds the
    /// lock, so no other caller can read a mode to act on.
    pub(crate) fn under_devlink(&self, _held: &DevlinkState, cx: &mut Locked<'_, Devlink>) -> Mode {
        let (inner, cx) = self.inner.lock(cx);
        self.stated.ensure_mode_rests(&cx);
        inner.mode
    }

    /// Marks an operation as in progress, and returns the mode it starts from.
    ///
    /// # Errors
    /// [`Error::Busy`] with the name of the operation that is in progress already.
    pub(crate) fn begin<P: LockBefore<ModeClass>>(
        &self,
        cx: &mut Locked<'_, P>,
        operation: &'static str,
    ) -> Result<Mode> {
        let (mut inner, cx) = self.inner.lock(cx);
        match inner.in_progress {
            Some(other) => Err(Error::Busy(other)),
            None => {
                inner.in_progress = Some(operation);
                self.stated.note_begin(&cx);
                Ok(inner.mode)
            }
        }
    }

    /// Ends the operation and stores the mode.
    pub(crate) fn finish<P: LockBefore<ModeClass>>(&self, cx: &mut Locked<'_, P>, mode: Mode) {
        let (mut inner, cx) = self.inner.lock(cx);
        inner.mode = mode;
        inner.in_progress = None;
        self.stated.note_finish(&cx, mode);
    }
}

impl Pf {
    /// `devlink dev eswitch set … mode`. Setting the present mode succeeds and does nothing.
    ///
    /// # Errors
    /// The first failure. The change is undone, and what could not be restored is tried again until it succeeds.
    pub(crate) fn set_mode(
        self: &Arc<Self>,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        mode: Mode,
    ) -> Result<()> {
        let from = self.eswitch.mode.begin(cx, "a mode change")?;
        if from == mode {
            self.eswitch.mode.finish(cx, from);
            return Ok(());
        }
        if from.is_switchdev() && mode.is_switchdev() {
            let set = self.set_fdb_active(cx, mode == Mode::Switchdev);
            self.eswitch.mode.finish(cx, if set.is_ok() { mode } else { from });
            if set.is_ok() {
                self.publish(state, cx, || Event::Mode(self.address(), mode));
            }
            return set;
        }
        self.hold_lag_off(cx);
        let result = match mode {
            Mode::Switchdev | Mode::SwitchdevInactive => self.enter_switchdev(state, cx, mode),
            Mode::Legacy => self.leave_switchdev(state, cx, from),
        };
        let now = if result.is_ok() { mode } else { from };
        self.eswitch.mode.finish(cx, now);
        self.shared.lag.release(cx);
        if result.is_ok() {
            self.reset_vf_links(state, cx, mode);
            self.reset_acls(state, cx, mode);
            self.ensure_mode(cx, state, mode);
            let ports: Vec<_> = if cx.is_checked() { state.vports.keys().copied().collect() } else { Vec::new() };
            self.ensure_ports(cx, state, &ports, true);
            self.publish(state, cx, || Event::Mode(self.address(), mode));
        } else {
            self.want_reconcile(cx);
        }
        result
    }

    /// Lets frames pass the forwarding database, or drops every frame.
    fn set_fdb_active(&self, cx: &mut Locked<'_, Devlink>, active: bool) -> Result<()> {
        let set = self.shared.card.set_fdb_active(&mut cx.narrow(), self.index(), active);
        set.map_err(|source| {
            let word = if active { "activating" } else { "deactivating" };
            Error::Card { operation: format!("pci/{}: {word} the forwarding database", self.address()), source }
        })
    }

    fn enter_switchdev(
        self: &Arc<Self>,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        mode: Mode,
    ) -> Result<()> {
        if let Some(netns) = self.shared.card.netns(&mut cx.narrow(), self.index()) {
            return Err(Error::NetnsDiverged(netns));
        }
        let fdb = Resource::SwitchdevFdb(self.index());
        let entered = self.rescan_into(cx, mode).and_then(|()| {
            self.shared.create(cx, fdb, self.mac_of(Vport::Uplink), None)?;
            // Before there is a representor: no frame may pass.
            let active = if mode == Mode::Switchdev { Ok(()) } else { self.set_fdb_active(cx, false) };
            let loaded = active.and_then(|()| self.load_all(cx, LoadPolicy::Strict)).and_then(|()| {
                let paired = self.pair(cx);
                if paired.is_err() {
                    self.unpair(cx);
                    self.unload_all(cx);
                }
                paired
            });
            if loaded.is_err() {
                self.shared.destroy(cx, &[fdb]);
            }
            loaded
        });
        if entered.is_err() {
            // Probing the devices that were removed a moment ago may fail as well. Then it is tried again.
            let _ = self.rescan_into(cx, Mode::Legacy);
            self.eswitch.with_representors(cx, |table, _| table.forget_all_failures());
            return entered;
        }
        self.announce_ports(state, cx, true);
        Ok(())
    }

    fn leave_switchdev(
        self: &Arc<Self>,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        from: Mode,
    ) -> Result<()> {
        let loaded_before = self.eswitch.stated.loaded(cx);
        self.shared.flows.clear(cx, &*self.shared.card, self.index());
        self.unpair(cx);
        self.unload_all(cx);
        if let Err(error) = self.rescan_into(cx, Mode::Legacy) {
            // Goes back to switchdev mode. What fails of that is tried again.
            let _ = self.rescan_into(cx, from);
            self.restore(cx, &loaded_before);
            let _ = self.pair(cx);
            return Err(error);
        }
        self.delete_all_sfs(state, cx);
        self.announce_ports(state, cx, false);
        self.shared.destroy(cx, &[Resource::SwitchdevFdb(self.index())]);
        self.eswitch.with_representors(cx, |table, _| table.forget_all_failures());
        Ok(())
    }

    /// Disables an active LAG, and holds LAG off until it is [released](crate::lag::Lag::release).
    ///
    /// The hold is taken first: an evaluation that starts later finds it, and one that started earlier holds the
    /// component lock, which disabling waits for.
    pub(crate) fn hold_lag_off(&self, cx: &mut Locked<'_, Devlink>) {
        self.shared.lag.hold(cx);
        let (mut component, mut cx) = self.shared.devcom.write(cx);
        self.shared.disable_lag(&mut component, &mut cx);
    }

    /// Pairs the E-Switch, which is in switchdev mode and loaded, with the others. The representor lock is not held.
    pub(crate) fn pair(&self, cx: &mut Locked<'_, Devlink>) -> Result<()> {
        let (mut component, mut cx) = self.shared.devcom.write(cx);
        component.pair(&mut cx, &self.shared, self.index())
    }

    pub(crate) fn unpair(&self, cx: &mut Locked<'_, Devlink>) {
        let (mut component, mut cx) = self.shared.devcom.write(cx);
        component.unpair(&mut cx, &self.shared, self.index());
    }

    /// Notifies the representors, those that are loaded and those that will be, that their E-Switch was paired with a
    /// peer's, or unpaired.
    ///
    /// # Errors
    /// A representor refused the pairing: it has been taken back from all. Only pairing can fail.
    pub(crate) fn tell_representors(&self, cx: &mut Locked<'_, Devcom>, peer: PfIndex, paired: bool) -> Result<()> {
        self.eswitch.with_representors(cx, |table, cx| {
            let ops = self.eswitch.ops(cx);
            if paired {
                return table.pair(cx, &ops, peer);
            }
            table.unpair(cx, &ops, peer);
            Ok(())
        })
    }

    /// Rescans for a mode. The representor lock is not held, and with this token no representor lock can be: drivers
    /// register and unregister on this thread.
    fn rescan_into(&self, cx: &mut Locked<'_, Devlink>, mode: Mode) -> Result<()> {
        let (mut component, mut cx) = self.shared.devcom.write(cx);
        component.rescan_into(&mut cx, &self.shared, self.index(), mode)
    }

    pub(crate) fn load_all(&self, cx: &mut Locked<'_, Devlink>, policy: LoadPolicy) -> Result<()> {
        self.eswitch.with_representors(cx, |table, cx| {
            let ops = self.eswitch.ops(cx);
            let all = table.vports();
            table.load(cx, &self.shared.events, &ops, &all, policy)
        })
    }

    /// Loads the representors that were loaded before, as far as they can be loaded. It does so type by type, so that
    /// the failure of one type does not undo the other.
    fn restore(&self, cx: &mut Locked<'_, Devlink>, loaded_before: &Reps) {
        self.eswitch.with_representors(cx, |table, cx| {
            let ops = self.eswitch.ops(cx);
            let all = table.vports();
            for ty in RepType::ALL {
                let mut one = [None, None];
                one[ty.index()].clone_from(&ops[ty.index()]);
                // A failure is listed, and the load is tried again.
                let _ = table.load(cx, &self.shared.events, &one, &all, LoadPolicy::Lenient);
            }
            table.ensure_restored(cx, &ops, loaded_before);
        });
    }

    pub(crate) fn unload_all(&self, cx: &mut Locked<'_, Devlink>) {
        self.eswitch.with_representors(cx, |table, cx| {
            let ops = self.eswitch.ops(cx);
            let all = table.vports();
            table.unload(cx, &self.shared.events, &ops, &all);
        });
    }

    fn announce_ports(&self, state: &DevlinkState, cx: &mut Locked<'_, Devlink>, new: bool) {
        for vport in state.vports.keys().copied().filter(|v| *v != Vport::Uplink) {
            let handle = self.port_handle(vport);
            self.publish(state, cx, || if new { Event::PortNew(handle) } else { Event::PortDel(handle) });
        }
    }
}
