//! The E-Switch: its mode, its representor table, the representor ops of both types, and its work queue.

mod announce;
mod mode;
mod reconcile;
mod registrations;
mod representor;
mod stated;
mod vport;
mod work_queue;

use std::sync::Arc;

use lockdep::{LockBefore, Locked, Mutex, RwLock, digest};

use crate::error::{Error, Result};
use crate::event::{Event, Events};
use crate::ids::{PciAddress, PfIndex, RepType, Vport};
use crate::lock_order::{RepOps as RepOpsClass, Representors, RepresentorsNested};

use registrations::{OpsTable, Registrations};
use stated::Stated;

pub use mode::ModeState;
pub use representor::{LoadPolicy, RepEvent, RepFailure, RepOps, RepTable};
pub(crate) use work_queue::{Work, WorkQueue};

/// The E-Switch of one PF.
pub struct ESwitch {
    pf: PfIndex,
    address: PciAddress,
    pub(crate) mode: ModeState,
    /// The representor lock, which contains the table that it protects.
    representors: Mutex<Representors, RepTable>,
    /// The registered ops. They are written with the representor lock held, when ops are registered or unregistered.
    /// They are read by lookups, which hold no representor lock and cannot take one while they read.
    ops: RwLock<RepOpsClass, Registrations>,
    pub(crate) work: WorkQueue,
    pub(crate) stated: Arc<Stated>,
}

impl ESwitch {
    pub(crate) fn new(pf: PfIndex, address: PciAddress) -> Self {
        let stated = Arc::new(Stated::default());
        Self {
            pf,
            address,
            mode: ModeState::new(Arc::clone(&stated)),
            representors: Mutex::with_rank(RepTable::new(pf, address), pf.0.into()).with_state_digest(digest),
            ops: RwLock::new(Registrations::new(Arc::clone(stated.registrations()))).with_state_digest(digest),
            work: WorkQueue::new(pf, Arc::clone(&stated)),
            stated,
        }
    }

    /// Runs `f` on the representor table, with the representor lock held.
    #[track_caller]
    pub(crate) fn with_representors<P, R>(
        &self,
        cx: &mut Locked<'_, P>,
        f: impl FnOnce(&mut RepTable, &mut Locked<'_, Representors>) -> R,
    ) -> R
    where
        P: LockBefore<Representors>,
    {
        let (mut table, mut cx) = self.representors.lock(cx);
        let result = f(&mut table, &mut cx);
        self.stated.note_table(&cx, &table);
        result
    }

    /// A copy of the registered ops. If the caller holds the representor lock, they stay registered until it releases
    /// the lock.
    pub(crate) fn ops<P: LockBefore<RepOpsClass>>(&self, cx: &mut Locked<'_, P>) -> OpsTable {
        self.ops.read(cx).0.ops().clone()
    }

    /// Changes the registered ops. The caller must hold the representor lock, which is asserted: the ops do not change
    /// while another thread holds it.
    #[track_caller]
    fn change_ops<P: LockBefore<RepOpsClass>, R>(
        &self,
        cx: &mut Locked<'_, P>,
        change: impl FnOnce(&mut Registrations, &Locked<'_, RepOpsClass>) -> R,
    ) -> R {
        self.representors.assert_held(cx);
        let (mut registered, cx) = self.ops.write(cx);
        change(&mut registered, &cx)
    }

    /// Registers the ops of a type, and queues work that loads the representors that should be loaded now.
    ///
    /// Nothing is loaded here: the caller may be a driver's probe, which runs under the auxiliary device's lock and so
    /// cannot take the devlink lock, which loading needs. If there is no memory for the work, a mark is set instead,
    /// which has the same effect.
    ///
    /// # Errors
    /// [`Error::OpsRegistered`]: ops of that type are registered already.
    pub(crate) fn register<P>(
        &self,
        cx: &mut Locked<'_, P>,
        events: &Events,
        ty: RepType,
        ops: Arc<dyn RepOps>,
    ) -> Result<()>
    where
        P: LockBefore<Representors> + lockdep::MayWait,
    {
        self.with_representors(cx, |_table, cx| {
            let put = self.change_ops(cx, |registered, cx| registered.put(cx, self.pf, ty, ops));
            if put { Ok(()) } else { Err(Error::OpsRegistered(ty)) }
        })?;
        events.emit(cx, || Event::Registered(self.address, ty));
        self.work.queue_or_mark(cx, Work::LoadReps);
        Ok(())
    }

    /// Unregisters the ops of a type: unloads all loaded representors of the type, in any mode, then removes the ops.
    /// When this returns, none of the callbacks of these ops is running or will run: loading and unloading need the
    /// representor lock, and writing the ops waits for every lookup.
    ///
    /// This cannot take the devlink lock, as the documentation of the module `driver` explains. That is safe because
    /// unloading reaches only the table and the card, which the type of its token guarantees.
    pub(crate) fn unregister<P>(&self, cx: &mut Locked<'_, P>, events: &Events, ty: RepType)
    where
        P: LockBefore<Representors>,
    {
        self.with_representors(cx, |table, cx| {
            let ops = self.ops(cx);
            table.unload_type(cx, events, &ops, ty);
            table.forget_failures(ty);
            self.change_ops(cx, |registered, cx| {
                registered.take(cx, ty);
                let gone = || registered.ops()[ty.index()].is_none();
                cx.ensure("ops-quiesced", gone, || format!("{ty} ops of pf{} outlive unregistering", self.pf.0));
            });
        });
        events.emit(cx, || Event::Unregistered(self.address, ty));
    }

    /// Registers ops that a master lends to this E-Switch, its peer, and queues work that loads their representors. The
    /// caller holds the master's representor lock; the peer's is taken nested in it.
    ///
    /// # Errors
    /// [`Error::OpsRegistered`]: ops of that type are registered already.
    pub(crate) fn lend(
        &self,
        cx: &mut Locked<'_, Representors>,
        events: &Events,
        ty: RepType,
        ops: Arc<dyn RepOps>,
    ) -> Result<()> {
        {
            let (table, mut cx) = self.representors.lock_nested::<RepresentorsNested, _>(cx);
            let refused = cx.fails(|| format!("lend {ty} pf{}", self.pf.0));
            if refused || !self.change_ops(&mut cx, |registered, cx| registered.put(cx, self.pf, ty, ops)) {
                return Err(Error::OpsRegistered(ty));
            }
            self.stated.note_table(&cx, &table);
        }
        events.emit(cx, || Event::Registered(self.address, ty));
        self.work.queue_or_mark(cx, Work::LoadReps);
        Ok(())
    }

    /// Unregisters ops that a master has lent to this E-Switch, after unloading their representors.
    pub(crate) fn take_back(&self, cx: &mut Locked<'_, Representors>, events: &Events, ty: RepType) {
        {
            let (mut table, mut cx) = self.representors.lock_nested::<RepresentorsNested, _>(cx);
            let ops = self.ops(&mut cx);
            table.unload_lent(&mut cx, events, &ops, ty);
            table.forget_failures(ty);
            self.change_ops(&mut cx, |registered, cx| registered.take(cx, ty));
            self.stated.note_table(&cx, &table);
        }
        events.emit(cx, || Event::Unregistered(self.address, ty));
    }

    /// Looks up the name of the protocol device, which is a netdev or an RDMA device, of a vport's representor. `None`
    /// if no ops are registered or the representor has no device.
    ///
    /// Takes no representor lock, so a load callback may call this. If ops are registered, they stay registered until
    /// this returns.
    pub fn protocol_device<P>(&self, cx: &mut Locked<'_, P>, vport: Vport, ty: RepType) -> Option<String>
    where
        P: LockBefore<RepOpsClass>,
    {
        self.protocol_devices(cx, &[vport], ty).pop().flatten()
    }

    /// Does the same for several vports, with the same ops for all of them.
    pub fn protocol_devices<P>(&self, cx: &mut Locked<'_, P>, vports: &[Vport], ty: RepType) -> Vec<Option<String>>
    where
        P: LockBefore<RepOpsClass>,
    {
        let (ops, mut cx) = self.ops.read(cx);
        let ops = ops.ops()[ty.index()].as_ref();
        vports.iter().map(|vport| ops?.protocol_device(&mut cx, *vport)).collect()
    }

    /// Whether ops are registered, for each type in the order of [`RepType::ALL`].
    pub(crate) fn registered<P>(&self, cx: &mut Locked<'_, P>) -> [bool; 2]
    where
        P: LockBefore<RepOpsClass>,
    {
        let (ops, _cx) = self.ops.read(cx);
        RepType::ALL.map(|ty| ops.ops()[ty.index()].is_some())
    }

    /// The PF to which the E-Switch belongs.
    pub fn pf(&self) -> PfIndex {
        self.pf
    }
}
