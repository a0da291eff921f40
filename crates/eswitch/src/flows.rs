//! The flow rules of a card's E-Switches.
//!
//! A rule is on a port of an E-Switch in switchdev mode, and names the ports to which it sends. It is installed only
//! while the representors of all these ports are loaded: it belongs to them, as a tc filter belongs to its netdev. A
//! representor that is unloaded takes its rules along, and an E-Switch that leaves switchdev mode takes all of them.
//! Rules are no part of what a failed command restores.
//!
//! One lock, [`Flows`](FlowsClass), protects the rules of all E-Switches of a card. A rule may name ports of a paired
//! E-Switch, so what removes a port of one removes rules of another; with a lock for each that would be an operation in
//! two steps, between which a rule sends to a port that is gone. It is held for one batch at a time.
//!
//! Ports come and go where resources are made and unmade, which is in one place
//! ([`Shared::make`](crate::shared::Shared::make)). So no path that loads or unloads a representor can forget them.

mod restored;
mod stated;
mod traced;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use flow::{Action, Block, Counter, Meter, MeterId, Neighbour, Port, Rule, RuleError, RuleId, Tables};
use lockdep::{LockBefore, Locked, Mutex, Shadow, digest};
use serde::{Deserialize, Serialize};

use crate::card::{Card, CardError, Resource};
use crate::datapath::{Arrival, Change, Datapath, Dropped, Sampler, pf_of, port, port_kind};
use crate::engine::Engine;
use crate::error::{Errno, Error};
use crate::ids::{MacAddr, PciAddress, PfIndex, PfSet, RepType, Vport};
use crate::lock_order::{CardCall, Flows as FlowsClass, ResourceCall};

use restored::Records;
use stated::Seen;

pub use restored::{FlowRecord, OnFlowRecord, StoredFlows};
pub use traced::{TraceError, Traced};

/// How many changes are made at most before the lock is released for others.
const BATCH: usize = 1024;

/// A change to the flow rules of a card.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowChange {
    /// Installs a rule in the E-Switch of a PF.
    ///
    /// A next hop that a rule names by [`flow::Encap::neighbour`] is ignored: it is the one that
    /// [`Engine::set_neighbour`] has told.
    Add {
        /// The PF.
        pf: PfIndex,
        /// The rule. Its ports are numbered by [`port`].
        rule: Box<Rule>,
    },
    /// Gives a rule other actions. Its counter stays.
    SetActions {
        /// The rule.
        rule: RuleId,
        /// The actions.
        actions: Vec<Action>,
    },
    /// Removes a rule.
    Remove(RuleId),
    /// Removes the rules of a block, or of one of its chains, or of one priority of a chain or of all chains: `tc filter
    /// del` without a handle.
    Flush {
        /// The PF.
        pf: PfIndex,
        /// The block.
        block: Block,
        /// Only the rules of this chain.
        chain: Option<u32>,
        /// Only the rules of this priority.
        priority: Option<u32>,
    },
    /// Makes a meter in the E-Switch of a PF, or changes it.
    SetMeter {
        /// The PF.
        pf: PfIndex,
        /// The meter.
        id: MeterId,
        /// What it lets through.
        meter: Meter,
    },
    /// Removes a meter from the E-Switch of a PF.
    RemoveMeter {
        /// The PF.
        pf: PfIndex,
        /// The meter.
        id: MeterId,
    },
}

/// What has been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowDone {
    /// The rule is installed, and has this name. No other rule of the card ever has it.
    Added(RuleId),
    /// The rule has these actions.
    Changed,
    /// The rule is removed. This was its counter.
    Removed(Counter),
    /// This many rules are removed.
    Flushed(usize),
    /// The meter is as asked.
    Meter,
}

/// Why a change to flow rules is refused. Nothing of it is left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// The card has no data plane that could carry out rules.
    #[error("this card offloads no flows")]
    NoOffload,
    /// The E-Switch has no tables.
    #[error("the E-Switch of pf{} is not in switchdev mode", .0.0)]
    NotSwitchdev(PfIndex),
    /// There is no such rule, or there is none any more.
    #[error("there is no {0}: it was removed, or went with one of its ports")]
    NoRule(RuleId),
    /// A rule of a block that several ports share.
    #[error("a rule of a shared block is added for each port of the block")]
    SharedBlock,
    /// The meter is used by a rule, or there is none.
    #[error("meter {} is used by a rule, or there is none", .0.0)]
    MeterInUse(MeterId),
    /// The card could not carry the rule out, or it makes no sense.
    #[error("{0}")]
    Refused(#[from] RuleError),
    /// The data plane refused it.
    #[error("{0}")]
    Datapath(CardError),
}

impl FlowError {
    /// The error number for a program. A rule that the card cannot carry out is EOPNOTSUPP, as in mlx5.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoOffload | Self::NotSwitchdev(_) | Self::SharedBlock => Errno::EOPNOTSUPP,
            Self::NoRule(_) => Errno::ENOENT,
            Self::MeterInUse(_) => Errno::EBUSY,
            Self::Refused(refused) => match refused {
                RuleError::Exists(_) => Errno::EEXIST,
                RuleError::TooManyRules | RuleError::TooManyMasks | RuleError::TooManyMeters => Errno::ENOSPC,
                RuleError::UnknownMeter(_) | RuleError::ProtocolOfPriority(_) => Errno::ENOENT,
                _ => Errno::EOPNOTSUPP,
            },
            Self::Datapath(error) => error.errno(),
        }
    }
}

/// Called when other ends of tunnels are named than before, see [`Engine::on_tunnel_ends`].
pub type OnTunnelEnds = Arc<dyn Fn() + Send + Sync>;

/// The rules of all E-Switches of a card, and their lock.
pub(crate) struct Flows {
    state: Mutex<FlowsClass, State>,
    /// Set once at most, before there is a rule.
    on_tunnel_ends: OnceLock<OnTunnelEnds>,
    seen: Shadow<Seen>,
}

/// What the lock protects.
#[derive(Default, Hash)]
struct State {
    /// Those in switchdev mode.
    switches: BTreeMap<PfIndex, Switch>,
    /// The members of a multiport E-Switch, whose rules may name each other's uplinks.
    joined: PfSet,
    /// The PF's next hops to the ends of tunnels.
    neighbours: BTreeMap<(PfIndex, IpAddr), Neighbour>,
    last_rule: u64,
    loadings: Loading,
    records: Records,
}

/// Tells the times apart at which a port's representor was loaded: it grows with each. It decides nothing here, so two states
/// that differ in it only are the same.
#[derive(Clone, Copy, Default)]
struct Loading(u64);

impl Hash for Loading {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// The rules of one E-Switch.
#[derive(Hash)]
struct Switch {
    /// Its rules, with every port that they may name.
    tables: Tables,
    /// Its own ports: those whose netdev representor is loaded.
    ports: BTreeSet<Vport>,
    /// When each of them was loaded last.
    loadings: BTreeMap<Vport, Loading>,
    /// The peers whose ports its rules may name.
    peers: PfSet,
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            state: Mutex::new(State::default()).with_state_digest(digest),
            on_tunnel_ends: OnceLock::new(),
            seen: Shadow::default(),
        }
    }
}

impl Flows {
    /// Runs `f` on the rules, if the card has a data plane.
    fn with<P: LockBefore<FlowsClass>, R>(
        &self,
        cx: &mut Locked<'_, P>,
        card: &dyn Card,
        f: impl FnOnce(&mut State, &mut Locked<'_, CardCall>, &dyn Datapath) -> R,
    ) -> Option<R> {
        let datapath = card.datapath()?;
        let (result, is_other) = {
            let (mut state, mut cx) = self.state.lock(cx);
            let before = state.tunnel_changes();
            let result = f(&mut state, &mut cx.narrow(), datapath);
            self.ensure_owned(&cx, &state);
            (result, state.tunnel_changes() != before)
        };
        if is_other && let Some(call) = self.on_tunnel_ends.get() {
            call();
        }
        Some(result)
    }

    /// Notes resources that have just been made.
    pub(crate) fn made(&self, cx: &mut Locked<'_, ResourceCall>, card: &dyn Card, resources: &[Resource]) {
        if !resources.iter().any(concerns_flows) {
            return;
        }
        self.with(cx, card, |state, cx, datapath| {
            for resource in resources {
                match *resource {
                    Resource::SwitchdevFdb(pf) => state.open(cx, datapath, pf),
                    Resource::PeerRules(pf, peer) => state.pair(cx, datapath, pf, peer),
                    Resource::MpeswMetadata(pf) => state.join(cx, datapath, pf),
                    _ => {}
                }
            }
            for (pf, vports) in representors(resources) {
                state.add_ports(cx, datapath, pf, &vports);
            }
        });
    }

    /// Notes resources that are about to be unmade.
    pub(crate) fn unmaking(&self, cx: &mut Locked<'_, ResourceCall>, card: &dyn Card, resources: &[Resource]) {
        if !resources.iter().any(concerns_flows) {
            return;
        }
        self.with(cx, card, |state, cx, datapath| {
            for (pf, vports) in representors(resources) {
                state.remove_ports(cx, datapath, pf, &vports);
            }
            for resource in resources {
                match *resource {
                    Resource::PeerRules(pf, peer) => state.unpair(cx, datapath, pf, peer),
                    Resource::MpeswMetadata(pf) => state.part(cx, datapath, pf),
                    Resource::SwitchdevFdb(pf) => state.close(cx, datapath, pf),
                    _ => {}
                }
            }
        });
    }

    /// Removes all rules of an E-Switch at once, before its representors are unloaded one by one.
    pub(crate) fn clear<P: LockBefore<FlowsClass>>(&self, cx: &mut Locked<'_, P>, card: &dyn Card, pf: PfIndex) {
        self.with(cx, card, |state, cx, datapath| state.clear(cx, datapath, pf));
    }
}

/// Whether rules depend on a resource.
fn concerns_flows(resource: &Resource) -> bool {
    matches!(
        resource,
        Resource::SwitchdevFdb(_)
            | Resource::PeerRules(..)
            | Resource::MpeswMetadata(_)
            | Resource::Representor(_, _, RepType::Eth)
    )
}

/// The vports of the netdev representors among resources, by PF.
fn representors(resources: &[Resource]) -> BTreeMap<PfIndex, Vec<Vport>> {
    let mut by_pf: BTreeMap<PfIndex, Vec<Vport>> = BTreeMap::new();
    for resource in resources {
        if let Resource::Representor(pf, vport, RepType::Eth) = resource {
            by_pf.entry(*pf).or_default().push(*vport);
        }
    }
    by_pf
}

type CardCx<'a, 'b> = &'a mut Locked<'b, CardCall>;

impl State {
    fn open(&mut self, cx: CardCx<'_, '_>, datapath: &dyn Datapath, pf: PfIndex) {
        let mut tables = Tables::new(datapath.capabilities());
        tables.join_uplinks(self.joined.contains(pf));
        self.switches
            .insert(pf, Switch { tables, ports: BTreeSet::new(), loadings: BTreeMap::new(), peers: PfSet::default() });
        datapath.open(cx, pf);
    }

    fn close(&mut self, cx: CardCx<'_, '_>, datapath: &dyn Datapath, pf: PfIndex) {
        self.switches.remove(&pf);
        self.records.note(|| FlowRecord::Cleared(pf));
        datapath.close(cx, pf);
    }

    fn clear(&mut self, cx: CardCx<'_, '_>, datapath: &dyn Datapath, pf: PfIndex) {
        let Some(switch) = self.switches.get_mut(&pf) else { return };
        switch.tables.clear();
        self.records.note(|| FlowRecord::Cleared(pf));
        datapath.clear(cx, pf);
    }

    /// Adds ports of an E-Switch to its own tables, and to those of the peers that know it.
    fn add_ports(&mut self, cx: CardCx<'_, '_>, datapath: &dyn Datapath, pf: PfIndex, vports: &[Vport]) {
        if let Some(switch) = self.switches.get_mut(&pf) {
            self.loadings.0 += 1;
            switch.ports.extend(vports);
            switch.loadings.extend(vports.iter().map(|vport| (*vport, self.loadings)));
            switch.attach(cx, datapath, pf, pf, vports.iter().copied());
        }
        let joined = self.joined;
        for (peer, switch) in self.switches.iter_mut().filter(|(_, switch)| switch.peers.contains(pf)) {
            let for_peer = vports.iter().copied().filter(|vport| is_for_peer(joined, (pf, *vport), *peer));
            switch.attach(cx, datapath, *peer, pf, for_peer);
        }
    }

    /// Removes ports of an E-Switch, with every rule that names one.
    fn remove_ports(&mut self, cx: CardCx<'_, '_>, datapath: &dyn Datapath, pf: PfIndex, vports: &[Vport]) {
        if let Some(switch) = self.switches.get_mut(&pf) {
            for vport in vports {
                switch.ports.remove(vport);
            }
            switch.detach(cx, datapath, &self.records, (pf, pf), vports.iter().copied());
        }
        let joined = self.joined;
        for (peer, switch) in self.switches.iter_mut().filter(|(_, switch)| switch.peers.contains(pf)) {
            let for_peer = vports.iter().copied().filter(|vport| is_for_peer(joined, (pf, *vport), *peer));
            switch.detach(cx, datapath, &self.records, (*peer, pf), for_peer);
        }
    }

    /// Lets the rules of an E-Switch name the ports of a peer.
    fn pair(&mut self, cx: CardCx<'_, '_>, datapath: &dyn Datapath, pf: PfIndex, peer: PfIndex) {
        let ports: Vec<Vport> = self.switches.get(&peer).into_iter().flat_map(|of| of.ports.iter().copied()).collect();
        let joined = self.joined;
        if let Some(switch) = self.switches.get_mut(&pf) {
            switch.peers.insert(peer);
            let for_peer = ports.into_iter().filter(|vport| is_for_peer(joined, (peer, *vport), pf));
            switch.attach(cx, datapath, pf, peer, for_peer);
        }
    }

    /// Lets the rules of the members of a multiport E-Switch, of which a PF is one now, name each other's uplinks.
    fn join(&mut self, cx: CardCx<'_, '_>, datapath: &dyn Datapath, pf: PfIndex) {
        self.joined.insert(pf);
        for (to, of) in self.joints(pf) {
            if let Some(switch) = self.switches.get_mut(&to) {
                switch.attach(cx, datapath, to, of, [Vport::Uplink].into_iter());
            }
        }
        if let Some(switch) = self.switches.get_mut(&pf) {
            switch.tables.join_uplinks(true);
        }
    }

    /// Ends that for a PF, and removes the rules that do.
    fn part(&mut self, cx: CardCx<'_, '_>, datapath: &dyn Datapath, pf: PfIndex) {
        for (to, of) in self.joints(pf) {
            if let Some(switch) = self.switches.get_mut(&to) {
                switch.detach(cx, datapath, &self.records, (to, of), [Vport::Uplink].into_iter());
            }
        }
        self.joined.remove(pf);
        if let Some(switch) = self.switches.get_mut(&pf) {
            switch.tables.join_uplinks(false);
        }
    }

    /// The pairs of which a member is one: the E-Switch whose rules may name an uplink, and whose uplink that is.
    fn joints(&self, pf: PfIndex) -> Vec<(PfIndex, PfIndex)> {
        let others = self.joined.iter().filter(|other| *other != pf && self.joined.contains(pf));
        let both = others.flat_map(|other| [(pf, other), (other, pf)]);
        let may = |(to, of): &(PfIndex, PfIndex)| {
            let knows = self.switches.get(to).is_some_and(|switch| switch.peers.contains(*of));
            knows && self.switches.get(of).is_some_and(|switch| switch.ports.contains(&Vport::Uplink))
        };
        both.filter(may).collect()
    }

    /// Ends that, and removes the rules that do.
    fn unpair(&mut self, cx: CardCx<'_, '_>, datapath: &dyn Datapath, pf: PfIndex, peer: PfIndex) {
        let Some(switch) = self.switches.get_mut(&pf) else { return };
        switch.peers.remove(peer);
        let ports: BTreeSet<Port> = switch.tables.ports().filter(|port| pf_of(*port) == peer).collect();
        switch.detach_ports(cx, datapath, &self.records, pf, &ports);
    }

    /// The PF in whose E-Switch a rule is.
    fn switch_of(&mut self, rule: RuleId) -> Option<(PfIndex, &mut Switch)> {
        let has = |(_, switch): &(&PfIndex, &mut Switch)| switch.tables.rule(rule).is_some();
        self.switches.iter_mut().find(has).map(|(pf, switch)| (*pf, switch))
    }

    /// The PF whose E-Switch a change is about; `None` if it is about a rule that is not there.
    fn pf_of_change(&mut self, change: &FlowChange) -> Option<PfIndex> {
        match change {
            FlowChange::Add { pf, .. }
            | FlowChange::Flush { pf, .. }
            | FlowChange::SetMeter { pf, .. }
            | FlowChange::RemoveMeter { pf, .. } => Some(*pf),
            FlowChange::SetActions { rule, .. } | FlowChange::Remove(rule) => self.switch_of(*rule).map(|(pf, _)| pf),
        }
    }

    /// Changes rules one after the other, with one call to the data plane for each row of changes to one E-Switch.
    fn change(
        &mut self,
        cx: CardCx<'_, '_>,
        datapath: &dyn Datapath,
        batch: Vec<FlowChange>,
    ) -> Vec<Result<FlowDone, FlowError>> {
        let mut results: Vec<Option<Result<FlowDone, FlowError>>> = Vec::with_capacity(batch.len());
        let mut row = Row::default();
        for change in batch {
            let at = results.len();
            if let FlowChange::Flush { pf, block, chain, priority } = change {
                self.flush(cx, datapath, std::mem::take(&mut row), &mut results);
                results.push(Some(self.remove_all(cx, datapath, pf, |rule| {
                    rule.block == block
                        && chain.is_none_or(|chain| chain == rule.chain)
                        && priority.is_none_or(|priority| priority == rule.priority)
                })));
                continue;
            }
            let pf = self.pf_of_change(&change);
            if !row.takes(pf, &change) {
                self.flush(cx, datapath, std::mem::take(&mut row), &mut results);
                row.takes(pf, &change);
            }
            match self.stage(change) {
                Ok(staged) => {
                    row.staged.push((at, staged));
                    results.push(None);
                }
                Err(refused) => results.push(Some(Err(refused))),
            }
        }
        self.flush(cx, datapath, row, &mut results);
        results.into_iter().flatten().collect()
    }

    /// Removes the rules of an E-Switch for which `which` returns true.
    fn remove_all(
        &mut self,
        cx: CardCx<'_, '_>,
        datapath: &dyn Datapath,
        pf: PfIndex,
        which: impl Fn(&Rule) -> bool,
    ) -> Result<FlowDone, FlowError> {
        let tables = &mut self.switch(pf)?.tables;
        let gone: Vec<RuleId> = tables.rules().filter(|(_, rule)| which(rule)).map(|(id, _)| id).collect();
        gone.iter().for_each(|id| drop(tables.remove(*id)));
        gone.iter().for_each(|id| self.records.note(|| FlowRecord::Gone(*id)));
        // Removing cannot be refused.
        let _ = datapath.commit(cx, pf, &gone.iter().copied().map(Change::Remove).collect::<Vec<_>>());
        Ok(FlowDone::Flushed(gone.len()))
    }

    /// Makes a change in the tables. The data plane has not been told yet.
    fn stage(&mut self, change: FlowChange) -> Result<Staged, FlowError> {
        match change {
            FlowChange::Add { rule, .. } if matches!(rule.block, Block::Shared(_)) => Err(FlowError::SharedBlock),
            FlowChange::Add { pf, mut rule } => {
                self.resolve(pf, &mut rule.actions);
                let id = RuleId(self.last_rule + 1);
                self.switch(pf)?.tables.add_as(id, *rule)?;
                self.last_rule = id.0;
                Ok(Staged::Added(id))
            }
            FlowChange::SetActions { rule: id, mut actions } => {
                let (pf, _) = self.switch_of(id).ok_or(FlowError::NoRule(id))?;
                self.resolve(pf, &mut actions);
                let before = self.switch(pf)?.tables.set_actions(id, actions)?;
                Ok(Staged::Changed(id, before.unwrap_or_default()))
            }
            FlowChange::Remove(id) => {
                let (_, switch) = self.switch_of(id).ok_or(FlowError::NoRule(id))?;
                switch.tables.remove(id);
                Ok(Staged::Removed(id))
            }
            // It is no single change: see `change`.
            FlowChange::Flush { pf, .. } => Err(FlowError::NotSwitchdev(pf)),
            FlowChange::SetMeter { pf, id, meter } => {
                let tables = &mut self.switch(pf)?.tables;
                let before = tables.meter(id);
                tables.set_meter(id, meter)?;
                Ok(Staged::MeterSet(id, before))
            }
            FlowChange::RemoveMeter { pf, id } => match self.switch(pf)?.tables.remove_meter(id) {
                true => Ok(Staged::MeterRemoved(id)),
                false => Err(FlowError::MeterInUse(id)),
            },
        }
    }

    /// Tells the data plane of changes to one E-Switch, and takes those back in the tables that it refuses.
    fn flush(
        &mut self,
        cx: CardCx<'_, '_>,
        datapath: &dyn Datapath,
        row: Row,
        results: &mut [Option<Result<FlowDone, FlowError>>],
    ) {
        let Some(pf) = row.pf else { return };
        let Some(switch) = self.switches.get_mut(&pf) else { return };
        let changes: Vec<Change<'_>> =
            row.staged.iter().filter_map(|(_, staged)| staged.change(&switch.tables)).collect();
        let outcomes = datapath.commit(cx, pf, &changes);
        for ((at, staged), outcome) in row.staged.into_iter().zip(outcomes).rev() {
            if outcome.is_ok() {
                staged.record(pf, &switch.tables, &self.records);
            }
            results[at] = Some(match outcome {
                Ok(counter) => {
                    let fresh = || counter == Counter::default() || !matches!(staged, Staged::Added(_));
                    cx.ensure("counters-grow", fresh, || format!("a new rule begins with {counter:?}"));
                    Ok(staged.done(counter))
                }
                Err(error) => {
                    staged.undo(&mut switch.tables);
                    Err(FlowError::Datapath(error))
                }
            });
            if let Some(Ok(FlowDone::Added(id))) = results[at] {
                let there = || switch.tables.rule(id).is_some();
                cx.ensure("true-success", there, || format!("{id} was reported as added, and is not there"));
            }
        }
    }

    fn switch(&mut self, pf: PfIndex) -> Result<&mut Switch, FlowError> {
        self.switches.get_mut(&pf).ok_or(FlowError::NotSwitchdev(pf))
    }

    /// Gives the tunnels of a rule the next hops that are known.
    fn resolve(&self, pf: PfIndex, actions: &mut [Action]) {
        for action in actions {
            if let Action::TunnelSet(encap) = action {
                encap.neighbour = self.neighbours.get(&(pf, encap.dst)).copied();
            }
        }
    }

    /// Tells apart which ends of tunnels are named: it differs after they have changed.
    fn tunnel_changes(&self) -> (usize, u64) {
        (self.switches.len(), self.switches.values().map(|switch| switch.tables.tunnel_changes()).sum())
    }

    /// Notes the next hop to the end of a tunnel. Returns the rules that encapsulate to it, which are to
    /// [follow](Self::follow).
    fn note_neighbour(&mut self, pf: PfIndex, end: IpAddr, neighbour: Option<Neighbour>) -> Vec<RuleId> {
        match neighbour {
            Some(neighbour) => self.neighbours.insert((pf, end), neighbour),
            None => self.neighbours.remove(&(pf, end)),
        };
        self.switches.get(&pf).into_iter().flat_map(|switch| switch.tables.rules_to(end)).collect()
    }

    /// Gives rules the next hops that are noted, those that are still there.
    ///
    /// A rule that the data plane refuses to change is removed: it must not send to a next hop that is not there. Its
    /// frames take the slow path, as if it had not been offloaded. Returns these rules.
    fn follow(&mut self, cx: CardCx<'_, '_>, datapath: &dyn Datapath, rules: &[RuleId]) -> Vec<RuleId> {
        let (mut ids, mut changes) = (Vec::new(), Vec::new());
        for id in rules {
            if let Some(rule) = self.switch_of(*id).and_then(|(_, switch)| switch.tables.rule(*id)) {
                changes.push(FlowChange::SetActions { rule: *id, actions: rule.actions.clone() });
                ids.push(*id);
            }
        }
        let outcomes = self.change(cx, datapath, changes);
        let refused = ids.into_iter().zip(outcomes).filter(|(_, outcome)| outcome.is_err());
        let refused: Vec<RuleId> = refused.map(|(id, _)| id).collect();
        self.change(cx, datapath, refused.iter().map(|id| FlowChange::Remove(*id)).collect());
        refused
    }
}

/// Whether the rules of a paired E-Switch may send to a vport of a PF: to an uplink, which is each E-Switch's own, only in a
/// multiport E-Switch of both.
fn is_for_peer(joined: PfSet, (pf, vport): (PfIndex, Vport), peer: PfIndex) -> bool {
    vport != Vport::Uplink || joined.contains(pf) && joined.contains(peer)
}

impl Switch {
    /// Makes ports of a PF known to these tables, which are those of `own`.
    fn attach(
        &mut self,
        cx: CardCx<'_, '_>,
        datapath: &dyn Datapath,
        own: PfIndex,
        pf: PfIndex,
        vports: impl Iterator<Item = Vport>,
    ) {
        let ports: Vec<_> = vports.map(|vport| (port(pf, vport), port_kind(vport))).collect();
        for (port, kind) in &ports {
            self.tables.add_port(*port, *kind);
        }
        if !ports.is_empty() {
            datapath.attach(cx, own, &ports);
        }
    }

    fn detach(
        &mut self,
        cx: CardCx<'_, '_>,
        datapath: &dyn Datapath,
        records: &Records,
        (own, pf): (PfIndex, PfIndex),
        vports: impl Iterator<Item = Vport>,
    ) {
        self.detach_ports(cx, datapath, records, own, &vports.map(|vport| port(pf, vport)).collect());
    }

    fn detach_ports(
        &mut self,
        cx: CardCx<'_, '_>,
        datapath: &dyn Datapath,
        records: &Records,
        own: PfIndex,
        ports: &BTreeSet<Port>,
    ) {
        let gone = self.tables.remove_ports(ports);
        gone.iter().for_each(|id| records.note(|| FlowRecord::Gone(*id)));
        if !gone.is_empty() {
            // Removing cannot be refused.
            let _ = datapath.commit(cx, own, &gone.into_iter().map(Change::Remove).collect::<Vec<_>>());
        }
        if !ports.is_empty() {
            datapath.detach(cx, own, &ports.iter().copied().collect::<Vec<_>>());
        }
    }
}

/// Changes to one E-Switch that the tables have, and of which the data plane is told in one call.
#[derive(Default)]
struct Row {
    /// The PF of the E-Switch.
    pf: Option<PfIndex>,
    /// The changes, with their places in the batch.
    staged: Vec<(usize, Staged)>,
    /// What the changes are about, where a second change to the same must be in another row: then each can be taken
    /// back by itself.
    touched: BTreeSet<(bool, u64)>,
    removes: bool,
}

impl Row {
    /// Whether a change to the E-Switch of a PF can be in this row: what is removed is not in a row with what is made.
    fn takes(&mut self, pf: Option<PfIndex>, change: &FlowChange) -> bool {
        let removes = matches!(change, FlowChange::Remove(_) | FlowChange::RemoveMeter { .. });
        if self.staged.is_empty() {
            *self = Self { pf, removes, ..Self::default() };
        }
        let touched = match change {
            FlowChange::SetActions { rule, .. } => Some((true, rule.0)),
            FlowChange::SetMeter { id, .. } => Some((false, u64::from(id.0))),
            _ => None,
        };
        (pf, removes) == (self.pf, self.removes) && touched.is_none_or(|touched| self.touched.insert(touched))
    }
}

/// A change that the tables have, with what it takes to take it back.
enum Staged {
    Added(RuleId),
    Changed(RuleId, Vec<Action>),
    Removed(RuleId),
    MeterSet(MeterId, Option<Meter>),
    MeterRemoved(MeterId),
}

impl Staged {
    /// The change for the data plane.
    fn change<'a>(&self, tables: &'a Tables) -> Option<Change<'a>> {
        Some(match self {
            Self::Added(id) => Change::Install(*id, tables.rule(*id)?),
            Self::Changed(id, _) => Change::SetActions(*id, tables.rule(*id)?),
            Self::MeterSet(id, _) => Change::SetMeter(*id, tables.meter(*id)?),
            Self::Removed(id) => Change::Remove(*id),
            Self::MeterRemoved(id) => Change::RemoveMeter(*id),
        })
    }

    /// Notes that the data plane has carried it out.
    fn record(&self, pf: PfIndex, tables: &Tables, records: &Records) {
        match self {
            Self::Added(id) | Self::Changed(id, _) => {
                // To give a rule the actions that it has is no change, as when all rules are confirmed after a start.
                let is_same = |rule: &Rule| matches!(self, Self::Changed(_, before) if *before == rule.actions);
                if let Some(rule) = tables.rule(*id).filter(|rule| !is_same(rule)) {
                    records.note(|| FlowRecord::Rule(pf, *id, Box::new(rule.clone())));
                }
            }
            Self::Removed(id) => records.note(|| FlowRecord::Gone(*id)),
            Self::MeterSet(id, _) => {
                if let Some(meter) = tables.meter(*id) {
                    records.note(|| FlowRecord::Meter(pf, *id, meter));
                }
            }
            Self::MeterRemoved(id) => records.note(|| FlowRecord::MeterGone(pf, *id)),
        }
    }

    /// Takes the change back in the tables.
    fn undo(self, tables: &mut Tables) {
        match self {
            Self::Added(id) => drop(tables.remove(id)),
            // What the tables had before, they take again.
            Self::Changed(id, before) => drop(tables.set_actions(id, before)),
            Self::MeterSet(id, Some(before)) => drop(tables.set_meter(id, before)),
            Self::MeterSet(id, None) => {
                tables.remove_meter(id);
            }
            // What is removed cannot be refused.
            Self::Removed(_) | Self::MeterRemoved(_) => {}
        }
    }

    fn done(&self, counter: Counter) -> FlowDone {
        match self {
            Self::Added(id) => FlowDone::Added(*id),
            Self::Changed(..) => FlowDone::Changed,
            Self::Removed(_) => FlowDone::Removed(counter),
            Self::MeterSet(..) | Self::MeterRemoved(_) => FlowDone::Meter,
        }
    }
}

impl Engine {
    /// Changes flow rules, one after the other. The result of each stands at its place; the refusal of one does not
    /// affect the others.
    ///
    /// Takes no lock of a PF. A change of a mode waits for at most one batch, and a rule that comes too late is refused.
    pub fn change_flows<P>(&self, cx: &mut Locked<'_, P>, changes: Vec<FlowChange>) -> Vec<Result<FlowDone, FlowError>>
    where
        P: LockBefore<FlowsClass>,
    {
        let mut results = Vec::with_capacity(changes.len());
        let mut changes = changes.into_iter();
        loop {
            let batch: Vec<FlowChange> = changes.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                return results;
            }
            let size = batch.len();
            let shared = &self.shared;
            let done = shared.flows.with(cx, &*shared.card, |state, cx, datapath| state.change(cx, datapath, batch));
            results.extend(done.unwrap_or_else(|| vec![Err(FlowError::NoOffload); size]));
        }
    }

    /// The counters of rules. `None` for a rule that is not there any more.
    pub fn flow_counters<P>(&self, cx: &mut Locked<'_, P>, rules: &[RuleId]) -> Vec<Option<Counter>>
    where
        P: LockBefore<FlowsClass>,
    {
        let flows = &self.shared.flows;
        let read = flows.with(cx, &*self.shared.card, |state, cx, datapath| {
            let mut counters = vec![None; rules.len()];
            for (pf, switch) in &state.switches {
                let here = rules.iter().enumerate().filter(|(_, rule)| switch.tables.rule(**rule).is_some());
                let (places, here): (Vec<usize>, Vec<RuleId>) = here.map(|(at, rule)| (at, *rule)).unzip();
                for ((at, rule), counter) in places.into_iter().zip(&here).zip(datapath.counters(cx, *pf, &here)) {
                    flows.ensure_grown(cx, *rule, counter);
                    counters[at] = Some(counter);
                }
            }
            counters
        });
        read.unwrap_or_else(|| vec![None; rules.len()])
    }

    /// How many frames the card has dropped, by port and reason, in order.
    pub fn flow_drops<P>(&self, cx: &mut Locked<'_, P>) -> Vec<Dropped>
    where
        P: LockBefore<CardCall>,
    {
        let datapath = self.shared.card.datapath();
        datapath.map(|datapath| datapath.drops(&mut cx.narrow())).unwrap_or_default()
    }

    /// The rules of the E-Switch of a PF, from the oldest. Empty if it is not in switchdev mode.
    pub fn flow_rules<P>(&self, cx: &mut Locked<'_, P>, pf: PfIndex) -> Vec<(RuleId, Rule)>
    where
        P: LockBefore<FlowsClass>,
    {
        let rules = self.shared.flows.with(cx, &*self.shared.card, |state, _, _| {
            let rules = state.switches.get(&pf).into_iter().flat_map(|switch| switch.tables.rules());
            rules.map(|(id, rule)| (id, rule.clone())).collect()
        });
        rules.unwrap_or_default()
    }

    /// A number that tells the times apart at which the representor of a port was loaded; `None` while it is not, and while
    /// the E-Switch is not in switchdev mode.
    pub fn flow_port<P>(&self, cx: &mut Locked<'_, P>, of: Port) -> Option<u64>
    where
        P: LockBefore<FlowsClass>,
    {
        let loading = self.shared.flows.with(cx, &*self.shared.card, |state, _, _| {
            let switch = state.switches.get(&pf_of(of))?;
            let vport = switch.ports.iter().find(|vport| port(pf_of(of), **vport) == of)?;
            switch.loadings.get(vport).map(|loading| loading.0)
        });
        loading.flatten()
    }

    /// Tells the next hop from a PF to the end of a tunnel by its MAC address, as [`set_neighbour`](Self::set_neighbour)
    /// does. Frames to it come from the address of the PF's netdev.
    ///
    /// # Errors
    /// There is no such PF.
    pub fn set_next_hop<P>(
        &self,
        cx: &mut Locked<'_, P>,
        device: PciAddress,
        end: IpAddr,
        mac: Option<MacAddr>,
    ) -> Result<(), Error>
    where
        P: LockBefore<FlowsClass>,
    {
        let pf = self.device(device)?.0.index;
        let src = self.config().mac(pf, Vport::Uplink);
        self.set_neighbour(cx, pf, end, mac.map(|mac| Neighbour { dst: mac.0, src: src.0, from: None }));
        Ok(())
    }

    /// Sends a frame into a port, as the function behind it would, or as it would come from the wire, and says where it
    /// arrived. `now` is the time since any moment that stays the same.
    ///
    /// # Errors
    /// [`FlowError::NoOffload`]: the card has no data plane. [`FlowError::Datapath`]: the frame cannot be sent.
    pub fn send_frame<P>(
        &self,
        cx: &mut Locked<'_, P>,
        port: Port,
        now: Duration,
        frame: &[u8],
    ) -> Result<Vec<Arrival>, FlowError>
    where
        P: LockBefore<CardCall>,
    {
        let datapath = self.shared.card.datapath().ok_or(FlowError::NoOffload)?;
        datapath.send(&mut cx.narrow(), port, now, frame).map_err(FlowError::Datapath)
    }

    /// The samples that flow rules take. `None`: the card takes none.
    pub fn sampler(&self) -> Option<&dyn Sampler> {
        self.shared.card.datapath()?.sampler()
    }

    /// Tells the next hop from a PF to the end of a tunnel, or that it is not known. Rules that encapsulate to there
    /// follow: while it is not known, their frames go to the representor. Returns the rules that could not follow, which
    /// have been removed.
    pub fn set_neighbour<P>(
        &self,
        cx: &mut Locked<'_, P>,
        pf: PfIndex,
        end: IpAddr,
        neighbour: Option<Neighbour>,
    ) -> Vec<RuleId>
    where
        P: LockBefore<FlowsClass>,
    {
        let shared = &self.shared;
        let mut left: Option<Vec<RuleId>> = None;
        let mut refused = Vec::new();
        loop {
            // What is added meanwhile has the next hop already.
            let more = shared.flows.with(cx, &*shared.card, |state, cx, datapath| {
                let left = left.get_or_insert_with(|| state.note_neighbour(pf, end, neighbour));
                let batch: Vec<RuleId> = left.drain(..left.len().min(BATCH)).collect();
                refused.extend(state.follow(cx, datapath, &batch));
                !left.is_empty()
            });
            if more != Some(true) {
                return refused;
            }
        }
    }

    /// The ends of tunnels to which rules encapsulate, with the PFs in whose E-Switches the rules are.
    pub fn tunnel_ends<P>(&self, cx: &mut Locked<'_, P>) -> Vec<(PfIndex, IpAddr)>
    where
        P: LockBefore<FlowsClass>,
    {
        let ends = self.shared.flows.with(cx, &*self.shared.card, |state, _, _| {
            let switches = state.switches.iter();
            switches.flat_map(|(pf, switch)| switch.tables.tunnel_ends().map(|end| (*pf, end))).collect()
        });
        ends.unwrap_or_default()
    }

    /// The rules in the E-Switch of a PF that encapsulate to the end of a tunnel, from the oldest.
    pub fn rules_to_tunnel_end<P>(&self, cx: &mut Locked<'_, P>, pf: PfIndex, end: IpAddr) -> Vec<RuleId>
    where
        P: LockBefore<FlowsClass>,
    {
        let rules = self.shared.flows.with(cx, &*self.shared.card, |state, _, _| {
            state.switches.get(&pf).into_iter().flat_map(|switch| switch.tables.rules_to(end)).collect()
        });
        rules.unwrap_or_default()
    }

    /// Has a function called whenever [`tunnel_ends`](Self::tunnel_ends) may have changed. Only the first call counts.
    ///
    /// It is called after the lock of the rules has been released, on the thread that has changed them. That thread may
    /// hold any lock that comes before, so the function must not wait, take locks or call the engine: it wakes a thread.
    pub fn on_tunnel_ends(&self, call: OnTunnelEnds) {
        let _ = self.shared.flows.on_tunnel_ends.set(call);
    }
}
