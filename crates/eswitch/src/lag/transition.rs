//! Transitions: enabling, changing and disabling a LAG. Each is completed or undone.
//!
//! Every function here that carries out a transition receives the devcom component, whose lock is held for writing, and
//! a token at the component. So none can be called with the LAG lock held. That would deadlock: a rescan probes
//! drivers, drivers load representors, and loading takes the LAG lock.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockdep::Locked;

use crate::card::Resource;
use crate::devcom::Component;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::ids::{Mode, PfIndex, Vport};
use crate::lag::{LagMode, State, TxType};
use crate::lock_order::{Devcom, LagQueue};
use crate::shared::Shared;

/// The state of one PF that an evaluation uses, taken from the devcom component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberState {
    /// The PF.
    pub pf: PfIndex,
    /// The mode of its E-Switch.
    pub mode: Mode,
    /// The number of its VFs.
    pub num_vfs: u16,
    /// Whether its E-Switch is paired with that of every other PF.
    pub paired: bool,
}

/// The decision of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// Leave the LAG as it is.
    Keep,
    /// Enable a LAG in this mode, which transmits on these ports. There is none now.
    Enable(LagMode, Vec<PfIndex>),
    /// Keep the LAG and transmit on these ports.
    Change(Vec<PfIndex>),
    /// Disable the LAG.
    Disable,
}

/// Whether a reload of several members stops at the first that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnFailure {
    Stop,
    CarryOn,
}

impl State {
    /// The mode of the LAG that the members and the bond should make, and the ports on which it should transmit. The
    /// error is the reason for which there should be none; `None` if there is no bond.
    fn wanted(
        &self,
        members: &[MemberState],
        total: usize,
        shared_fdb: bool,
    ) -> Result<(LagMode, Vec<PfIndex>), Option<String>> {
        let Some(bond) = &self.bond else { return Err(None) };
        let no = |why: &str| Err(Some(format!("{}: {why}", bond.name)));
        if let Some(foreign) = bond.foreign.first() {
            return no(&format!("{foreign} is not a port of this card; remove it from the bond"));
        }
        if total < 2 {
            return no("the card has one port; a LAG needs two");
        }
        if bond.ports.len() != total {
            return no(&format!("it has {} of the card's {total} ports; add the others", bond.ports.len()));
        }
        if members.len() != total {
            return no(&format!("{} of the card's {total} PFs are bound to a driver; bind the others", members.len()));
        }
        if !members.iter().all(|m| self.netdevs.contains(&m.pf)) {
            return no("a port's netdev is gone");
        }
        let tx = match &bond.tx {
            TxType::Other(mode) => {
                return no(&format!("bond mode {mode} cannot be offloaded; use active-backup, balance-xor or 802.3ad"));
            }
            TxType::Hash | TxType::ActiveBackup(None) => members.iter().map(|m| m.pf).collect(),
            TxType::ActiveBackup(Some(active)) => vec![*active],
        };
        let mode = if members.iter().all(|m| m.mode.is_switchdev()) {
            if !shared_fdb {
                LagMode::Vf
            } else if members.iter().all(|m| m.paired) {
                LagMode::SharedFdb
            } else {
                return no("the E-Switches are not paired yet");
            }
        } else if members.iter().any(|m| m.mode.is_switchdev()) {
            return no("some ports are in switchdev mode and some are not; set all to the same mode");
        } else if members.iter().any(|m| m.num_vfs > 0) {
            return no("a port in legacy mode has VFs; set switchdev mode, or 0 VFs");
        } else {
            LagMode::Roce
        };
        Ok((mode, tx))
    }

    /// What an evaluation would do now, in words. `None` if it would change nothing.
    pub(super) fn is_due(&self, members: &[MemberState], total: usize, shared_fdb: bool) -> Option<String> {
        let mut evaluated = self.clone();
        match evaluated.decide(members, total, shared_fdb) {
            Plan::Enable(mode, _) => Some(format!("enable {mode}")),
            Plan::Change(tx) => Some(format!("transmit on {tx:?}")),
            Plan::Disable => Some("disable it".to_owned()),
            Plan::Keep if evaluated.reason == self.reason => None,
            Plan::Keep => Some(format!("set the reason: {}", evaluated.reason.as_deref().unwrap_or("no bond"))),
        }
    }

    /// Decides whether the LAG is to be enabled, changed or disabled, and stores the reason if there should be none.
    fn decide(&mut self, members: &[MemberState], total: usize, shared_fdb: bool) -> Plan {
        self.evaluations.0 += 1;
        if self.mode == LagMode::Mpesw {
            let reason = |bond: &crate::lag::Bond| format!("{}: the card is in multiport E-Switch mode", bond.name);
            self.reason = self.bond.as_ref().map(reason);
            return Plan::Keep;
        }
        match self.wanted(members, total, shared_fdb) {
            Err(why) => {
                self.reason = why;
                if self.mode == LagMode::None { Plan::Keep } else { Plan::Disable }
            }
            Ok((mode, tx)) => {
                self.reason = None;
                match self.mode {
                    LagMode::None => Plan::Enable(mode, tx),
                    now if now != mode => Plan::Disable,
                    _ if self.tx != tx => Plan::Change(tx),
                    _ => Plan::Keep,
                }
            }
        }
    }
}

impl Shared {
    /// Makes the LAG what the bond and the members require. Does nothing while there is a hold; releasing the last hold
    /// requests another evaluation.
    pub(crate) fn evaluate_lag(&self, cx: &mut Locked<'_, LagQueue>) {
        let (mut component, mut cx) = self.devcom.write(cx);
        if self.lag.is_held_off(&mut cx) {
            return;
        }
        let before = self.lag_seen();
        let members = component.lag_members();
        let total = usize::from(self.config.pfs);
        let evaluated = loop {
            let plan = self.lag.state.lock(&mut cx).0.decide(&members, total, self.config.shared_fdb);
            match plan {
                Plan::Keep => break Ok(()),
                Plan::Change(tx) => {
                    let (mode, members) = {
                        let (state, _cx) = self.lag.state.lock(&mut cx);
                        (state.mode, state.members.clone())
                    };
                    self.transmit(&mut cx, mode, &members, &tx);
                    self.lag.state.lock(&mut cx).0.tx = tx;
                    self.emit_lag(&mut cx);
                    break Ok(());
                }
                // The next round decides whether another LAG is to be enabled.
                Plan::Disable => self.disable_lag(&mut component, &mut cx),
                Plan::Enable(mode, tx) => break self.enable_lag(&mut component, &mut cx, mode, tx),
            }
        };
        match evaluated {
            Ok(()) => self.lag.queue.reset_attempts(&mut cx),
            Err(error) => {
                self.lag.state.lock(&mut cx).0.reason = Some(format!("it could not be made: {error}"));
                self.lag.queue.retry(&mut cx, |attempt| self.config.retry_delay(attempt));
                self.emit_lag(&mut cx);
            }
        }
        self.ensure_lag_whole(&component, &cx);
        self.ensure_members(&component, &cx, &members);
        self.ensure_evaluated(&cx, before);
    }

    fn emit_lag(&self, cx: &mut Locked<'_, Devcom>) {
        let view = self.lag.view(cx);
        self.events.emit(cx, || Event::Lag(view.mode, view.reason));
    }

    /// Tells the data plane on which wires the LAG transmits, before anybody can see that it does. In a multiport E-Switch
    /// each port is used as rules name it.
    fn transmit(&self, cx: &mut Locked<'_, Devcom>, mode: LagMode, members: &[PfIndex], tx: &[PfIndex]) {
        if let Some(datapath) = self.card.datapath() {
            let (members, tx) = if mode == LagMode::Mpesw { (&[][..], &[][..]) } else { (members, tx) };
            datapath.set_lag(&mut cx.narrow(), members, tx);
        }
    }

    /// Enables a LAG. There must be none.
    ///
    /// # Errors
    /// The first failure, after everything has been undone.
    pub(crate) fn enable_lag(
        &self,
        component: &mut Component,
        cx: &mut Locked<'_, Devcom>,
        mode: LagMode,
        tx: Vec<PfIndex>,
    ) -> Result<()> {
        let members = component.pfs();
        let Some(master) = members.first().map(|pf| pf.index()) else { return Ok(()) };
        let resource = Resource::Lag(master);
        if mode == LagMode::Vf {
            self.create(cx, resource, self.config.mac(master, Vport::Uplink), None)?;
        } else {
            component.disable_ib(cx, self, &members, true);
            let peers = members.iter().skip(1).map(|pf| (pf.index(), Arc::clone(pf)));
            let peers: BTreeMap<_, _> = if mode.is_shared() { peers.collect() } else { BTreeMap::new() };
            let mac = self.config.mac(master, Vport::Uplink);
            let activated = self.create(cx, resource, mac, None).map(|()| {
                let (mut state, cx) = self.lag.state.lock(cx);
                state.peers = peers;
                state.sharing = mode;
                self.lag.note(&cx, &state);
            });
            if let Err(error) = activated {
                component.disable_ib(cx, self, &members, false);
                let _ = self.reload_ib_representors(component, cx, OnFailure::CarryOn);
                return Err(error);
            }
            let grown = component
                .set_ib_disabled(cx, self, master, false)
                .and_then(|()| self.reload_ib_representors(component, cx, OnFailure::Stop));
            if let Err(error) = grown {
                self.undo_shared(component, cx, master);
                return Err(error);
            }
        }
        let members: Vec<PfIndex> = members.iter().map(|pf| pf.index()).collect();
        self.transmit(cx, mode, &members, &tx);
        {
            let (mut state, cx) = self.lag.state.lock(cx);
            state.mode = mode;
            state.tx = tx;
            state.members = members;
            self.lag.note(&cx, &state);
        }
        self.emit_lag(cx);
        Ok(())
    }

    /// Disables the LAG, if there is one. Cannot fail: if a member's own RDMA device or representors fail to be made
    /// again, that is retried later.
    pub(crate) fn disable_lag(&self, component: &mut Component, cx: &mut Locked<'_, Devcom>) {
        self.transmit(cx, LagMode::None, &[], &[]);
        let (mode, members) = {
            let (mut state, cx) = self.lag.state.lock(cx);
            state.tx.clear();
            let was = (std::mem::take(&mut state.mode), std::mem::take(&mut state.members));
            self.lag.note(&cx, &state);
            was
        };
        let Some(master) = members.first().copied() else { return };
        match mode {
            LagMode::None => return,
            LagMode::Vf => self.destroy(cx, &[Resource::Lag(master)]),
            LagMode::Roce | LagMode::SharedFdb | LagMode::Mpesw => self.undo_shared(component, cx, master),
        }
        if mode == LagMode::Mpesw {
            self.give_metadata_back(&members, cx);
        }
        self.ensure_lag_whole(component, cx);
        self.emit_lag(cx);
    }

    /// Undoes the shared RDMA device: removes the master's, with the ops that it registered on its peers, and then
    /// gives every member a device of its own again.
    fn undo_shared(&self, component: &mut Component, cx: &mut Locked<'_, Devcom>, master: PfIndex) {
        // This only removes drivers, which cannot fail.
        let _ = component.set_ib_disabled(cx, self, master, true);
        {
            let (mut state, cx) = self.lag.state.lock(cx);
            state.peers.clear();
            self.lag.note(&cx, &state);
        }
        self.destroy(cx, &[Resource::Lag(master)]);
        let members = component.pfs();
        component.disable_ib(cx, self, &members, false);
        let _ = self.reload_ib_representors(component, cx, OnFailure::CarryOn);
    }

    /// Reloads the IB representors of every member that is not leaving.
    ///
    /// # Errors
    /// The first failure; with [`OnFailure::Stop`] the members after it have not been reloaded.
    pub(crate) fn reload_ib_representors(
        &self,
        component: &Component,
        cx: &mut Locked<'_, Devcom>,
        on_failure: OnFailure,
    ) -> Result<()> {
        let mut first: Result<(), Error> = Ok(());
        for pf in component.pfs() {
            let reloaded = pf.eswitch.with_representors(cx, |table, cx| {
                let ops = pf.eswitch.ops(cx);
                table.reload_ib(cx, &self.events, &ops)
            });
            if reloaded.is_err() {
                pf.want_reconcile(cx);
            }
            first = first.and(reloaded);
            if first.is_err() && on_failure == OnFailure::Stop {
                break;
            }
        }
        first
    }
}
