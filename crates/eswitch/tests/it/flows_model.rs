//! What the engine reports of changes of flow rules is what tables by themselves report, over random batches.

use crate::common::{Bench, addr, story};
use eswitch::{CardConfig, FlowChange, FlowDone, FlowError, Mode, PfIndex};
use flow::generate::{Generator, Options, Random};
use flow::{Action, Block, Capabilities, Counter, Meter, MeterId, PortKind, Rule, RuleId, Tables};

const PF: PfIndex = PfIndex(0);

/// Tables, and the name that the engine gave last.
struct Model {
    tables: Tables,
    last: u64,
}

impl Model {
    fn new(options: &Options) -> Self {
        let mut tables = Tables::new(Capabilities::connectx());
        for port in options.ports() {
            tables.add_port(port, if port == options.uplink { PortKind::Uplink } else { PortKind::Vport });
        }
        Self { tables, last: 0 }
    }

    /// What a change must report.
    fn change(&mut self, change: FlowChange) -> Result<FlowDone, FlowError> {
        match change {
            FlowChange::Add { mut rule, .. } => {
                without_neighbours(&mut rule.actions);
                let id = RuleId(self.last + 1);
                self.tables.add_as(id, *rule)?;
                self.last = id.0;
                Ok(FlowDone::Added(id))
            }
            FlowChange::SetActions { rule, mut actions } => {
                without_neighbours(&mut actions);
                self.tables.set_actions(rule, actions)?.map(|_| FlowDone::Changed).ok_or(FlowError::NoRule(rule))
            }
            FlowChange::Remove(rule) => {
                let removed = self.tables.remove(rule).map(|_| FlowDone::Removed(Counter::default()));
                removed.ok_or(FlowError::NoRule(rule))
            }
            FlowChange::Flush { block, chain, priority, .. } => {
                let is_meant = |rule: &Rule| {
                    rule.block == block
                        && chain.is_none_or(|chain| chain == rule.chain)
                        && priority.is_none_or(|priority| priority == rule.priority)
                };
                let gone: Vec<RuleId> =
                    self.tables.rules().filter(|(_, rule)| is_meant(rule)).map(|(id, _)| id).collect();
                gone.iter().for_each(|id| drop(self.tables.remove(*id)));
                Ok(FlowDone::Flushed(gone.len()))
            }
            FlowChange::SetMeter { id, meter, .. } => {
                self.tables.set_meter(id, meter)?;
                Ok(FlowDone::Meter)
            }
            FlowChange::RemoveMeter { id, .. } => match self.tables.remove_meter(id) {
                true => Ok(FlowDone::Meter),
                false => Err(FlowError::MeterInUse(id)),
            },
        }
    }
}

/// The engine ignores the next hops that rules bring, and nobody has told it any.
fn without_neighbours(actions: &mut [Action]) {
    for action in actions {
        if let Action::TunnelSet(encap) = action {
            encap.neighbour = None;
        }
    }
}

/// What changes are made of.
struct Pool {
    rules: Vec<Rule>,
    meters: Vec<(MeterId, Meter)>,
}

impl Pool {
    fn new(options: &Options) -> Self {
        let (mut rules, mut meters) = (Vec::new(), Vec::new());
        for seed in 0..8 {
            let generated = Generator::new(seed, options.clone()).tables();
            rules.extend(generated.tables.rules().map(|(_, rule)| rule.clone()));
            rules.extend(generated.refused.into_iter().map(|(rule, _)| rule));
            meters.extend((1..=options.meters).filter_map(|n| Some((MeterId(n), generated.tables.meter(MeterId(n))?))));
        }
        Self { rules, meters }
    }

    /// A change. Names are those of rules that are there, or were, or will be.
    fn change(&self, random: &mut Random, last: u64) -> FlowChange {
        let rule = random.pick(&self.rules).cloned().expect("there are rules");
        let (id, meter) = random.pick(&self.meters).copied().expect("there are meters");
        let named = RuleId(last.saturating_sub(30) + random.below(36) as u64);
        match random.below(100) {
            0..55 => FlowChange::Add { pf: PF, rule: Box::new(rule) },
            55..70 => FlowChange::SetActions { rule: named, actions: rule.actions },
            70..85 => FlowChange::Remove(named),
            85..92 => FlowChange::SetMeter { pf: PF, id, meter },
            92..95 => FlowChange::RemoveMeter { pf: PF, id },
            _ => {
                let Block::Port(_) = rule.block else { return FlowChange::Remove(named) };
                let chain = random.chance(70).then_some(rule.chain);
                let priority = random.chance(70).then_some(rule.priority);
                FlowChange::Flush { pf: PF, block: rule.block, chain, priority }
            }
        }
    }
}

#[test]
fn random_batches_are_reported_as_tables_by_themselves_report_them() {
    story(|cx, domain| {
        let options = Options { shared_blocks: false, ..Options::like_mlx5() };
        let vfs = options.vports as u16;
        let bench = Bench::start(cx, domain, CardConfig { vfs, mode: Mode::Switchdev, ..CardConfig::default() });
        let (mut model, pool, mut random) = (Model::new(&options), Pool::new(&options), Random::new(7));
        let (mut done, mut refused) = (0, 0);
        for number in 0..2_000 {
            let size = 1 + random.below(12);
            let batch: Vec<FlowChange> = (0..size).map(|_| pool.change(&mut random, model.last)).collect();
            let expected: Vec<_> = batch.iter().cloned().map(|change| model.change(change)).collect();
            let found = bench.engine.change_flows(cx, batch.clone());
            assert_eq!(found, expected, "batch {number}: {batch:?}");
            done += found.iter().filter(|found| found.is_ok()).count();
            refused += found.iter().filter(|found| found.is_err()).count();
            if number % 50 == 0 {
                let rules: Vec<_> = model.tables.rules().map(|(id, rule)| (id, rule.clone())).collect();
                assert_eq!(bench.engine.flow_rules(cx, PF), rules, "batch {number}");
            }
        }
        assert!(done > 4_000 && refused > 1_000, "{done} were done and {refused} refused");
        bench.engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        bench.engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        bench.end(cx);
    });
}
