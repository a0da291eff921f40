//! Brings the flow rules of an earlier process back.
//!
//! The rules of a card are no part of its agreed state: they are many, change often, and go with their ports. Who runs a card
//! may store them beside it ([`StoredFlows`]) and restore them once the card is up as it was.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use flow::{Meter, MeterId, Rule, RuleId};
use lockdep::{LockBefore, Locked};
use serde::{Deserialize, Serialize};

use super::{BATCH, CardCx, FlowChange, State};
use crate::datapath::{Change, Datapath};
use crate::engine::Engine;
use crate::ids::PfIndex;
use crate::lock_order::Flows as FlowsClass;

/// The flow rules and meters of a card, as they are stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoredFlows {
    /// The rules, with the PFs in whose E-Switches they are.
    pub rules: Vec<(PfIndex, RuleId, Rule)>,
    /// The meters, in the same way.
    pub meters: Vec<(PfIndex, MeterId, Meter)>,
    /// The name of the last rule that there was. No other rule gets a name up to this one.
    pub last_rule: u64,
}

/// A change to what is stored of a card's flow rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowRecord {
    /// There is this rule, or it has other actions now.
    Rule(PfIndex, RuleId, Box<Rule>),
    /// The rule is gone.
    Gone(RuleId),
    /// There is this meter, or it lets something else through now.
    Meter(PfIndex, MeterId, Meter),
    /// The meter is gone.
    MeterGone(PfIndex, MeterId),
    /// All rules and meters of the E-Switch of a PF are gone.
    Cleared(PfIndex),
}

/// Called with each change to what is stored, see [`Engine::on_flow_record`].
pub type OnFlowRecord = Arc<dyn Fn(FlowRecord) + Send + Sync>;

/// Who is told of changes. It decides nothing here.
#[derive(Clone, Default)]
pub(super) struct Records(Option<OnFlowRecord>);

impl Records {
    pub(super) fn note(&self, record: impl FnOnce() -> FlowRecord) {
        if let Some(call) = &self.0 {
            call(record());
        }
    }
}

impl Hash for Records {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl State {
    /// Restores rules of one E-Switch. Returns those that the tables or the data plane refused.
    fn restore(
        &mut self,
        cx: CardCx<'_, '_>,
        datapath: &dyn Datapath,
        pf: PfIndex,
        rules: Vec<(RuleId, Rule)>,
    ) -> Vec<RuleId> {
        let (mut staged, mut refused) = (Vec::new(), Vec::new());
        for (id, mut rule) in rules {
            self.resolve(pf, &mut rule.actions);
            match self.switches.get_mut(&pf).is_some_and(|switch| switch.tables.add_as(id, rule).is_ok()) {
                true => staged.push(id),
                false => refused.push(id),
            }
        }
        let Some(switch) = self.switches.get_mut(&pf) else { return refused };
        let install = |id: &RuleId| switch.tables.rule(*id).map(|rule| Change::Install(*id, rule));
        let outcomes = datapath.commit(cx, pf, &staged.iter().filter_map(install).collect::<Vec<_>>());
        for (id, outcome) in staged.into_iter().zip(outcomes) {
            if outcome.is_err() {
                switch.tables.remove(id);
                refused.push(id);
            }
        }
        refused
    }
}

impl Engine {
    /// Restores flow rules that were stored, under their names, once the card is as it was when they were installed.
    /// Returns those that are gone: they went with a port before, or cannot be carried out any more.
    ///
    /// What an earlier process has left in the data plane stays as it is, with its counters. As the next hops to ends of
    /// tunnels are not known yet, [`confirm_flows`](Self::confirm_flows) is to follow when they are.
    pub fn restore_flows<P>(&self, cx: &mut Locked<'_, P>, stored: StoredFlows) -> Vec<RuleId>
    where
        P: LockBefore<FlowsClass>,
    {
        let StoredFlows { rules, meters, last_rule } = stored;
        let (flows, card) = (&self.shared.flows, &*self.shared.card);
        let set = |(pf, id, meter)| FlowChange::SetMeter { pf, id, meter };
        self.change_flows(cx, meters.into_iter().map(set).collect());
        let left = flows.with(cx, card, |state, cx, datapath| {
            state.last_rule = state.last_rule.max(last_rule);
            datapath.left(cx)
        });
        let left = left.flatten();
        let is_left = |id: &RuleId| left.as_ref().is_none_or(|left| left.contains(id));
        let (rules, gone): (Vec<_>, Vec<_>) = rules.into_iter().partition(|(_, id, _)| is_left(id));
        let mut gone: Vec<RuleId> = gone.into_iter().map(|(_, id, _)| id).collect();
        let mut rules = rules.into_iter().peekable();
        while let Some((pf, ..)) = rules.peek() {
            let pf = *pf;
            let of_pf = std::iter::from_fn(|| rules.next_if(|(of, ..)| *of == pf)).map(|(_, id, rule)| (id, rule));
            let batch: Vec<(RuleId, Rule)> = of_pf.take(BATCH).collect();
            let refused = flows.with(cx, card, |state, cx, datapath| {
                let last = batch.iter().map(|(id, _)| id.0).max();
                state.last_rule = state.last_rule.max(last.unwrap_or_default());
                state.restore(cx, datapath, pf, batch)
            });
            gone.extend(refused.unwrap_or_default());
        }
        gone
    }

    /// Has the data plane carry out every rule as it is known here. Returns the rules that it refuses, which are removed.
    pub fn confirm_flows<P>(&self, cx: &mut Locked<'_, P>) -> Vec<RuleId>
    where
        P: LockBefore<FlowsClass>,
    {
        let (flows, card) = (&self.shared.flows, &*self.shared.card);
        let all = flows.with(cx, card, |state, _, _| {
            let rules = state.switches.values().flat_map(|switch| switch.tables.rules().map(|(id, _)| id));
            rules.collect::<Vec<_>>()
        });
        let confirm = |batch: &[RuleId]| flows.with(cx, card, |state, cx, datapath| state.follow(cx, datapath, batch));
        all.unwrap_or_default().chunks(BATCH).filter_map(confirm).flatten().collect()
    }

    /// Has a function called with every change to what is stored of flow rules, in their order.
    ///
    /// It is called under the lock of the rules, so it must not wait, take locks or call the engine: it queues what it is
    /// given.
    pub fn on_flow_record<P>(&self, cx: &mut Locked<'_, P>, call: OnFlowRecord)
    where
        P: LockBefore<FlowsClass>,
    {
        self.shared.flows.with(cx, &*self.shared.card, |state, _, _| state.records = Records(Some(call)));
    }
}
