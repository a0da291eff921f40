//! The E-Switch: its mode, its representor table with the ops of both types, its work queue.

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

/// One E-Switch.
pub struct ESwitch {
    pf: PfIndex,
    address: PciAddress,
    pub(crate) mode: ModeState,
    /// The representor lock. It is born and dies with the table it protects.
    representors: Mutex<Representors, RepTable>,
    /// Written with the representor lock held, by register and unregister; read by lookups, which
    /// hold no representor lock and can take none while they read.
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

    /// Takes the representor lock and runs `f` with the table and a copy of the ops.
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

    /// The ops registered now. They stay registered for as long as the representor lock is held,
    /// which the token proves.
    pub(crate) fn ops<P: LockBefore<RepOpsClass>>(&self, cx: &mut Locked<'_, P>) -> OpsTable {
        self.ops.read(cx).0.ops().clone()
    }

    /// Changes what is registered. Nothing does but with the representor lock held, so that who holds it finds
    /// the same ops until it lets go.
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

    /// Registers the ops of a type, and queues the work that loads what should now be loaded.
    ///
    /// Nothing is loaded here: the caller may be a driver's probe, which runs under the auxiliary
    /// device's lock and so cannot take the devlink lock that loading needs. If there is no memory for
    /// the work, a mark is left that the queue acts on.
    ///
    /// # Errors
    /// Ops of that type are registered.
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

    /// Unregisters the ops of a type: unloads whatever of it is loaded, in any mode, then clears the
    /// ops. When it returns, none of their callbacks runs or will run: loads and unloads need the
    /// representor lock, and writing the ops waits for every lookup.
    ///
    /// It holds no devlink lock, and cannot: see the module documentation of `driver`. It is safe
    /// because unloading reaches only the table and the card, as its token says.
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

    /// A master lends a peer ops: registers them under the peer's representor lock, nested in the
    /// master's, and queues the work that loads them.
    ///
    /// # Errors
    /// Ops of that type are registered.
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

    /// A master takes back what it has lent: what is loaded of it is unloaded first.
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

    /// Looks up the protocol device, a netdev or an RDMA device, of a vport's representor.
    ///
    /// Takes no representor lock, so a load callback may call it. The ops it asks stay registered until
    /// it is done, or there are none.
    pub fn protocol_device<P>(&self, cx: &mut Locked<'_, P>, vport: Vport, ty: RepType) -> Option<String>
    where
        P: LockBefore<RepOpsClass>,
    {
        self.protocol_devices(cx, &[vport], ty).pop().flatten()
    }

    /// The same for several, by the same ops.
    pub fn protocol_devices<P>(&self, cx: &mut Locked<'_, P>, vports: &[Vport], ty: RepType) -> Vec<Option<String>>
    where
        P: LockBefore<RepOpsClass>,
    {
        let (ops, mut cx) = self.ops.read(cx);
        let ops = ops.ops()[ty.index()].as_ref();
        vports.iter().map(|vport| ops?.protocol_device(&mut cx, *vport)).collect()
    }

    /// Which types have ops.
    pub(crate) fn registered<P>(&self, cx: &mut Locked<'_, P>) -> [bool; 2]
    where
        P: LockBefore<RepOpsClass>,
    {
        let (ops, _cx) = self.ops.read(cx);
        RepType::ALL.map(|ty| ops.ops()[ty.index()].is_some())
    }

    /// The PF it belongs to.
    pub fn pf(&self) -> PfIndex {
        self.pf
    }
}
