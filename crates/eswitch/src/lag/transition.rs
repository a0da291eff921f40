//! Making, changing and breaking a LAG: each whole, or undone.
//!
//! Every function here that carries something out is handed the devcom component out of its lock, held
//! for writing, and a token that stands at it. None can be called with the LAG lock held: a rescan
//! probes drivers, drivers load representors, and loading takes the LAG lock.

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

/// What an evaluation looks at of one PF, taken from the devcom component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub pf: PfIndex,
    /// The mode of its E-Switch.
    pub mode: Mode,
    /// Its VFs.
    pub num_vfs: u16,
    /// Whether it is paired with every other.
    pub paired: bool,
}

/// What is to become of the LAG.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// It is as it should be.
    Keep,
    /// There is none, and this is what it should be.
    Enable(LagMode, Vec<PfIndex>),
    /// It stays, and sends on other ports.
    Change(Vec<PfIndex>),
    /// It goes.
    Disable,
}

/// Whether a reload of several members stops at the first that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnFailure {
    Stop,
    CarryOn,
}

impl State {
    /// What LAG the members and the bond make, and on which ports it sends; or why none.
    fn wanted(
        &self,
        members: &[Member],
        total: usize,
        shared_fdb: bool,
    ) -> Result<(LagMode, Vec<PfIndex>), Option<String>> {
        let Some(bond) = &self.bond else { return Err(None) };
        let no = |why: &str| Err(Some(format!("{}: {why}", bond.name)));
        if let Some(foreign) = bond.foreign.first() {
            return no(&format!("{foreign} is no port of this card; take it out of the bond"));
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
        let mode = if members.iter().all(|m| m.mode == Mode::Switchdev) {
            if !shared_fdb {
                LagMode::Vf
            } else if members.iter().all(|m| m.paired) {
                LagMode::SharedFdb
            } else {
                return no("the E-Switches are not paired yet");
            }
        } else if members.iter().any(|m| m.mode == Mode::Switchdev) {
            return no("some ports are in switchdev mode and some are not; set all to the same mode");
        } else if members.iter().any(|m| m.num_vfs > 0) {
            return no("a port in legacy mode has VFs; set switchdev mode, or 0 VFs");
        } else {
            LagMode::Roce
        };
        Ok((mode, tx))
    }

    /// What an evaluation would change, if it came now.
    pub(super) fn is_due(&self, members: &[Member], total: usize, shared_fdb: bool) -> Option<String> {
        let mut evaluated = self.clone();
        match evaluated.decide(members, total, shared_fdb) {
            Plan::Enable(mode, _) => Some(format!("make it {mode}")),
            Plan::Change(tx) => Some(format!("have it send on {tx:?}")),
            Plan::Disable => Some("break it".to_owned()),
            Plan::Keep if evaluated.reason == self.reason => None,
            Plan::Keep => Some(format!("say why there is none: {}", evaluated.reason.as_deref().unwrap_or("no bond"))),
        }
    }

    fn decide(&mut self, members: &[Member], total: usize, shared_fdb: bool) -> Plan {
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
    /// Brings the LAG in line with the bond and the members, unless it is held off; then whoever releases
    /// the hold asks again.
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
                    self.lag.state.lock(&mut cx).0.tx = tx;
                    self.emit_lag(&mut cx);
                    break Ok(());
                }
                // What should be instead is decided anew.
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

    /// Makes a LAG.
    ///
    /// # Errors
    /// What failed; everything is undone.
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
        {
            let (mut state, cx) = self.lag.state.lock(cx);
            state.mode = mode;
            state.tx = tx;
            state.members = members.iter().map(|pf| pf.index()).collect();
            self.lag.note(&cx, &state);
        }
        self.emit_lag(cx);
        Ok(())
    }

    /// Breaks the LAG there is, if there is one. Cannot fail: what does not come back is tried again.
    pub(crate) fn disable_lag(&self, component: &mut Component, cx: &mut Locked<'_, Devcom>) {
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

    /// Undoes the one RDMA device: the master's goes, with what it registered on its peers; then every
    /// member gets its own again.
    fn undo_shared(&self, component: &mut Component, cx: &mut Locked<'_, Devcom>, master: PfIndex) {
        // Removing a driver cannot fail, and nothing is probed here.
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

    /// Reloads the IB representors of every member but one that is leaving.
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
