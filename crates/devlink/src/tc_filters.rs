//! The filters of the card's netdevs, as tc has them: kept here for all programs, and offloaded to the card.
//!
//! [`tc::Tables`] is what the kernel would keep. Its lock is held for each step alone: a filter gets its place, the card is
//! asked, and what came of it is noted. So two programs that change filters wait for each other only as the card's rules do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use eswitch::datapath::{pf_of, port};
use eswitch::{Engine, FlowChange, FlowDone, FlowError, PfIndex, Vport};
use flow::{Action, Block, Counter, MeterId, Port, Rule, RuleId};
use lockdep::{Locked, Mutex, Unlocked, lock_classes};
use netlink::Errno;
use tc::{
    Answer, Entry, GroupEvent, Netdev, Outcome, Place, Refusal, Removed, Request, Reserved, SampleGroup, Shown, Spec,
    Stored, Tables, Verb,
};

use crate::card::Host;
use crate::refusal::errno_of;

lock_classes! {
    /// The filters of a card's netdevs.
    pub leaf FiltersClass = "tc filters";
}

/// The filters of a card's netdevs.
pub struct TcFilters(Mutex<FiltersClass, tc::Tables>);

impl Default for TcFilters {
    fn default() -> Self {
        Self(Mutex::new(tc::Tables::default()))
    }
}

type Cx<'a, 'b> = &'a mut Locked<'b, Unlocked>;

/// Where requests are carried out.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) engine: &'a Engine,
    /// Who stores the filters, if anybody does.
    pub(crate) host: Option<&'a dyn Host>,
}

impl TcFilters {
    /// Takes filters in that were stored.
    pub(crate) fn restore(&self, cx: Cx<'_, '_>, engine: &Engine, filters: Vec<Stored>) {
        let ports: BTreeSet<Port> = filters.iter().map(|filter| filter.place.netdev.port).collect();
        let numbers: BTreeMap<Port, u64> =
            ports.into_iter().filter_map(|port| Some((port, engine.flow_port(cx, port)?))).collect();
        let mut tables = self.0.lock_leaf(cx);
        tables.restore(filters, |port| numbers.get(&port).copied(), now_ms(engine));
        // Their groups began in an earlier process, which has said so.
        tables.take_group_events();
    }

    /// Changes the tables. Whoever stores the filters is told of it in the order of the changes.
    fn change<R>(&self, cx: Cx<'_, '_>, at: At<'_>, change: impl FnOnce(&mut Tables) -> R) -> R {
        let mut tables = self.0.lock_leaf(cx);
        if at.host.is_some() {
            tables.record();
        }
        let changed = change(&mut tables);
        if let Some(host) = at.host {
            tables.take_records().into_iter().for_each(|record| host.filter_changed(record));
        }
        if tables.has_group_events() {
            match at.engine.sampler() {
                Some(sampler) => {
                    drop(tables);
                    sampler.wake(&mut cx.narrow());
                }
                // Nobody takes them.
                None => drop(tables.take_group_events()),
            }
        }
        changed
    }

    /// Forgets the filters of netdevs that are gone, if filters use psample groups: these have ended. Other filters are forgotten
    /// when the next netdev of their port is met.
    pub(crate) fn end_groups_of_gone(&self, cx: Cx<'_, '_>, at: At<'_>) {
        let mut ports = {
            let tables = self.0.lock_leaf(cx);
            if tables.sample_groups().is_empty() {
                return;
            }
            tables.ports()
        };
        // A netdev with a number does not come back, so those that have gone by now are gone for good.
        ports.retain(|port, number| at.engine.flow_port(cx, *port) != Some(*number));
        if ports.is_empty() {
            return;
        }
        self.change(cx, at, |tables| tables.forget_gone(&ports));
        if let Some(host) = at.host {
            host.filters_answered(cx);
        }
    }

    /// The psample groups that the filters use, in the order in which they began.
    pub(crate) fn sample_groups(&self, cx: Cx<'_, '_>) -> Vec<SampleGroup> {
        self.0.lock_leaf(cx).sample_groups()
    }

    /// Which psample groups have begun and ended since the last call, in order. The thread that reads the card's samples is
    /// woken when there are some.
    pub(crate) fn take_group_events(&self, cx: Cx<'_, '_>) -> Vec<GroupEvent> {
        self.0.lock_leaf(cx).take_group_events()
    }

    /// Carries a request out. The number of its netdev is not looked at: the card knows which one the port has.
    pub(crate) fn answer(&self, cx: Cx<'_, '_>, at: At<'_>, request: Request) -> Answer {
        let changes = !matches!(request.verb, Verb::Get { .. } | Verb::List);
        let answer = self.carry_out(cx, at, request);
        if let Some(host) = at.host.filter(|_| changes) {
            host.filters_answered(cx);
        }
        answer
    }

    fn carry_out(&self, cx: Cx<'_, '_>, at: At<'_>, request: Request) -> Answer {
        let engine = at.engine;
        let of = request.place.netdev.port;
        // In legacy mode there is no representor, and the uplink's filters are not the card's.
        let number = engine.flow_port(cx, of).unwrap_or(0);
        let netdev = Netdev { number, ..request.place.netdev };
        let place = Place { netdev, ..request.place };
        self.change(cx, at, |tables| tables.meet(netdev));
        let done = match request.verb {
            Verb::Add { spec, create, exclusive, software } => {
                self.add(cx, at, place, spec, (create, exclusive), software)
            }
            Verb::Delete { kind } => {
                let gone = self.change(cx, at, |tables| tables.remove(&place, kind.as_deref()));
                gone.map(|(entries, removed)| Answer::Gone(self.gone(cx, engine, entries, removed)))
            }
            Verb::Get { kind } => {
                let entry = self.0.lock_leaf(cx).get(&place, kind.as_deref());
                entry.map(|entry| Answer::Filters(counted(cx, engine, vec![entry])))
            }
            Verb::List => {
                let entries = self.0.lock_leaf(cx).list(&place);
                Ok(Answer::Filters(counted(cx, engine, entries)))
            }
            Verb::Forget => {
                let removed = self.change(cx, at, |tables| tables.forget(netdev, place.side));
                Ok(Answer::Gone(self.gone(cx, engine, Vec::new(), removed)))
            }
        };
        done.unwrap_or_else(Answer::Refused)
    }

    fn add(
        &self,
        cx: Cx<'_, '_>,
        at: At<'_>,
        place: Place,
        spec: Spec,
        flags: (bool, bool),
        software: bool,
    ) -> Result<Answer, Refusal> {
        let engine = at.engine;
        let of = place.netdev.port;
        let uplink = port(pf_of(of), Vport::Uplink);
        let now = now_ms(engine);
        let mut reserved = self.change(cx, at, |tables| tables.reserve(place, spec, flags, uplink, now))?;
        reserved.software = software;
        let (outcome, refusal) = match offload(cx, engine, of, &reserved) {
            Ok(outcome) => (outcome, None),
            Err(_) if software => (Outcome::NotInHw, None),
            Err(refusal) => (Outcome::Refused, Some(refusal)),
        };
        let (entry, removed) = self.change(cx, at, |tables| tables.settle(reserved, outcome, now));
        self.gone(cx, engine, Vec::new(), removed.into_iter().collect());
        match (refusal, entry) {
            (Some(refusal), _) => Err(refusal),
            (None, Some(entry)) => Ok(Answer::Filters(counted(cx, engine, vec![entry]))),
            (None, None) => Err(Refusal::new(Errno::NOENT, "the qdisc was deleted meanwhile")),
        }
    }

    /// Removes the rules and meters of filters that are gone. Returns how the filters are shown a last time.
    fn gone(&self, cx: Cx<'_, '_>, engine: &Engine, entries: Vec<Entry>, removed: Vec<Removed>) -> Vec<Shown> {
        let shown = counted(cx, engine, entries);
        let rules = removed.iter().filter_map(|removed| removed.rule).map(FlowChange::Remove);
        let meters = removed.iter().flat_map(|removed| &removed.meters);
        // A meter may be one of filters in several E-Switches.
        let pfs = || (0..engine.config().pfs).map(PfIndex);
        let meters = meters.flat_map(|meter| pfs().map(|pf| FlowChange::RemoveMeter { pf, id: MeterId(*meter) }));
        // A rule that has gone with a port is as good as removed, and so is a meter that another E-Switch has.
        let _ = engine.change_flows(cx, rules.chain(meters).collect());
        shown
    }
}

/// Asks the card to carry a filter out.
///
/// # Errors
/// It does not, and nobody else can.
fn offload(cx: Cx<'_, '_>, engine: &Engine, of: Port, reserved: &Reserved) -> Result<Outcome, Refusal> {
    let nobody = "; no filter is carried out by this kernel in place of the card";
    let offload = match &reserved.offload {
        Some(Ok(offload)) => offload,
        Some(Err(refusal)) => return Err(refusal.clone()),
        None => return Err(Refusal::unsupported(format!("skip_hw, or a filter at egress{nobody}"))),
    };
    let pf = carried_by(of, &offload.rule);
    let mut changes: Vec<FlowChange> =
        offload.meters.iter().map(|(id, meter)| FlowChange::SetMeter { pf, id: *id, meter: *meter }).collect();
    // A filter that is replaced by one that matches the same keeps its place, and no frame misses it. Its rule may have gone with
    // a port.
    let there = |rule: &RuleId| engine.flow_counters(cx, &[*rule]).iter().any(Option::is_some);
    let same = reserved.keeps.filter(there);
    changes.push(match same {
        Some(rule) => FlowChange::SetActions { rule, actions: offload.rule.actions.clone() },
        None => FlowChange::Add { pf, rule: Box::new(offload.rule.clone()) },
    });
    let mut done = engine.change_flows(cx, changes);
    let last = done.pop();
    if let Some(refused) = done.into_iter().find_map(Result::err) {
        if let Some(Ok(FlowDone::Added(rule))) = last {
            let _ = engine.change_flows(cx, vec![FlowChange::Remove(rule)]);
        }
        return Err(refusal_of(&refused));
    }
    match (last, same) {
        (Some(Ok(FlowDone::Added(rule))), _) => Ok(Outcome::InHw(rule, Counter::default())),
        (Some(Ok(FlowDone::Changed)), Some(rule)) => {
            let before = engine.flow_counters(cx, &[rule]).into_iter().flatten().next();
            Ok(Outcome::InHw(rule, before.unwrap_or_default()))
        }
        (Some(Err(refused)), _) => Err(refusal_of(&refused)),
        _ => Err(Refusal::unsupported("the card gave no answer")),
    }
}

/// The PF whose E-Switch carries out a filter of a port. Where a tunnel device is over several uplinks, it is the one to whose
/// ports the filter sends: the others have no such ports.
fn carried_by(of: Port, rule: &Rule) -> PfIndex {
    let target = rule.actions.iter().find_map(|action| match action {
        Action::Redirect(port) if matches!(rule.block, Block::Tunnel(_)) => Some(pf_of(*port)),
        _ => None,
    });
    target.unwrap_or(pf_of(of))
}

fn refusal_of(error: &FlowError) -> Refusal {
    Refusal::new(errno_of(error.errno()), error.to_string())
}

/// Entries with their counters.
fn counted(cx: Cx<'_, '_>, engine: &Engine, entries: Vec<Entry>) -> Vec<Shown> {
    let rule = |entry: &Entry| entry.filter.as_ref().and_then(|filter| filter.rule);
    let rules: Vec<RuleId> = entries.iter().filter_map(rule).collect();
    let mut counters = engine.flow_counters(cx, &rules).into_iter();
    let now = now_ms(engine);
    let shown = entries.into_iter().map(|entry| {
        let counter = rule(&entry).and_then(|_| counters.next().flatten());
        let used = counter.filter(|counter| counter.packets != 0).map(|counter| millis(counter.last_used));
        entry.shown(counter, used, now)
    });
    shown.collect()
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// The time on the clock of the card's counters, or since some moment if it has none.
fn now_ms(engine: &Engine) -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    millis(engine.flow_clock().unwrap_or_else(|| START.get_or_init(Instant::now).elapsed()))
}
