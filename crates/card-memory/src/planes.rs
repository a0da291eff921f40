//! The data plane of a card in memory: the reference pipeline, once for each E-Switch.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use eswitch::card::CardError;
use eswitch::datapath::{self, Arrival, Change, Datapath, Dropped, Sampler, pf_of};
use eswitch::lock_order::{CardCall, CardState};
use eswitch::{PfIndex, Vport};
use flow::{Capabilities, Counter, Fate, Port, PortKind, RuleId, Sampled, State, Tables, Verdict};
use lockdep::{EventCount, Locked, Mutex, Unlocked, digest, lock_classes};

lock_classes! {
    /// The samples that wait for their reader.
    leaf SamplesClass = "samples of a card in memory";
    /// How often something has happened that the reader of samples waits for.
    leaf SampleEvents = "sample events";
}

/// How many samples wait for a reader. Further ones are lost.
const SAMPLES_KEPT: usize = 1024;

/// How many samples are read at once.
const SAMPLES_READ: usize = 64;

/// The E-Switches in switchdev mode, each with its rules and what frames have changed.
pub struct Planes {
    planes: Mutex<CardState, All>,
    samples: Mutex<SamplesClass, Samples>,
    sample_events: EventCount<SampleEvents>,
}

/// What rules have sampled.
#[derive(Default)]
struct Samples {
    wanted: bool,
    /// The reader is to return from its wait.
    woken: bool,
    taken: VecDeque<Sampled>,
}

impl Default for Planes {
    fn default() -> Self {
        let planes = Mutex::new(All::default()).with_state_digest(digest);
        // They decide nothing: only a program that serves the card reads samples.
        let (samples, sample_events) = lockdep::unexplored(|| (Mutex::new(Samples::default()), EventCount::new()));
        Self { planes, samples, sample_events }
    }
}

#[derive(Default, Hash)]
struct All {
    planes: BTreeMap<PfIndex, Plane>,
    /// The members of the LAG, and those on whose wires it transmits.
    lag: (Vec<PfIndex>, Vec<PfIndex>),
    /// How many frames were dropped that came in at a port, by reason.
    drops: BTreeMap<(Port, &'static str), u64>,
}

impl All {
    /// The wire out of which a frame to a port goes, if that is the uplink of a member of the LAG; otherwise the port.
    fn leaves(&self, port: Port, frame: &[u8]) -> Port {
        let (members, tx) = &self.lag;
        let is_member = port == datapath::port(pf_of(port), Vport::Uplink) && members.contains(&pf_of(port));
        if !is_member || tx.is_empty() {
            return port;
        }
        let mut hasher = DefaultHasher::new();
        flow::dissect(frame).key.hash(&mut hasher);
        datapath::port(tx[hasher.finish() as usize % tx.len()], Vport::Uplink)
    }
}

#[derive(Hash)]
struct Plane {
    tables: Tables,
    state: State,
    active: bool,
    /// Rules that still named a port when it was taken away. A data plane is told of their removal before, so there are
    /// none, and [`Planes::installed`] shows them.
    strays: BTreeSet<RuleId>,
}

/// What became of a frame that came in at a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// The rules decided. If the frame [goes to the representor](Verdict::goes_to_representor), that has it now.
    Switched(Box<Verdict>),
    /// The E-Switch lets no frame pass.
    Inactive,
    /// The E-Switch is not in switchdev mode, or the port has no representor.
    NoTables,
}

impl Planes {
    /// Sends a frame into a port: what the function behind it sends, or what comes from the wire. `now` is the time since
    /// any moment that stays the same.
    pub fn forward<L>(&self, cx: &mut Locked<'_, L>, port: Port, now: Duration, frame: &[u8]) -> Forwarded {
        let mut planes = self.planes.lock_leaf(cx);
        let Some(plane) = planes.planes.get_mut(&pf_of(port)).filter(|plane| plane.tables.port(port).is_some()) else {
            return Forwarded::NoTables;
        };
        if !plane.active {
            *planes.drops.entry((port, "inactive")).or_default() += 1;
            return Forwarded::Inactive;
        }
        let verdict = flow::process(&plane.tables, &mut plane.state, now, port, frame);
        debug_assert!(
            verdict.fate != Fate::Forwarded || verdict.outputs.iter().all(|o| plane.tables.port(o.port).is_some())
        );
        if let Fate::Dropped(reason) = verdict.fate {
            *planes.drops.entry((port, reason.word())).or_default() += 1;
        }
        drop(planes);
        self.keep_samples(cx, &verdict.samples);
        Forwarded::Switched(Box::new(verdict))
    }

    /// Keeps samples for their reader, if there is one.
    fn keep_samples<L>(&self, cx: &mut Locked<'_, L>, new: &[Sampled]) {
        if new.is_empty() {
            return;
        }
        let mut samples = self.samples.lock_leaf(cx);
        if !samples.wanted {
            return;
        }
        let room = SAMPLES_KEPT.saturating_sub(samples.taken.len());
        samples.taken.extend(new.iter().take(room).cloned());
        drop(samples);
        self.sample_events.advance(cx);
    }

    /// Lets frames pass the tables of an E-Switch, as they do from the start, or drops every frame instead.
    pub(crate) fn set_active(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, active: bool) {
        self.with(cx, pf, |plane| plane.active = active);
    }

    fn with<R: Default>(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, f: impl FnOnce(&mut Plane) -> R) -> R {
        self.planes.lock_leaf(cx).planes.get_mut(&pf).map(f).unwrap_or_default()
    }
}

impl Plane {
    fn change(&mut self, change: &Change<'_>) -> Result<Counter, CardError> {
        let refused = |error: flow::RuleError| CardError::Full(error.to_string());
        match change {
            Change::Install(id, rule) => self.tables.add_as(*id, (*rule).clone()).map_err(refused)?,
            Change::SetActions(id, rule) => {
                self.tables.set_actions(*id, rule.actions.clone()).map_err(refused)?;
                return Ok(self.state.counter(*id));
            }
            Change::Remove(id) => {
                self.tables.remove(*id);
                self.strays.remove(id);
                let counter = self.state.counter(*id);
                self.state.forget_rule(*id);
                return Ok(counter);
            }
            Change::SetMeter(id, meter) => self.tables.set_meter(*id, *meter).map_err(refused)?,
            Change::RemoveMeter(id) => {
                self.tables.remove_meter(*id);
                self.state.forget_meter(*id);
            }
        }
        Ok(Counter::default())
    }
}

impl Datapath for Planes {
    fn capabilities(&self) -> Capabilities {
        Capabilities::connectx()
    }

    fn open(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) {
        let mut tables = Tables::new(self.capabilities());
        // The engine knows when that is so.
        tables.join_uplinks(true);
        self.planes
            .lock_leaf(cx)
            .planes
            .insert(pf, Plane { tables, state: State::new(0), active: true, strays: BTreeSet::new() });
    }

    fn close(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) {
        self.planes.lock_leaf(cx).planes.remove(&pf);
    }

    fn attach(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, ports: &[(Port, PortKind)]) {
        self.with(cx, pf, |plane| ports.iter().for_each(|(port, kind)| plane.tables.add_port(*port, *kind)));
    }

    fn detach(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, ports: &[Port]) {
        self.with(cx, pf, |plane| {
            let strays = plane.tables.remove_ports(&ports.iter().copied().collect());
            plane.strays.extend(strays);
        });
    }

    fn set_lag(&self, cx: &mut Locked<'_, CardCall>, members: &[PfIndex], tx: &[PfIndex]) {
        self.planes.lock_leaf(cx).lag = (members.to_vec(), tx.to_vec());
    }

    fn lag(&self, cx: &mut Locked<'_, CardCall>) -> (Vec<PfIndex>, Vec<PfIndex>) {
        self.planes.lock_leaf(cx).lag.clone()
    }

    fn clear(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) {
        self.with(cx, pf, |plane| {
            plane.tables.clear();
            plane.state.clear();
            plane.strays.clear();
        });
    }

    fn commit(
        &self,
        cx: &mut Locked<'_, CardCall>,
        pf: PfIndex,
        batch: &[Change<'_>],
    ) -> Vec<Result<Counter, CardError>> {
        self.with(cx, pf, |plane| batch.iter().map(|change| plane.change(change)).collect())
    }

    fn counters(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, rules: &[RuleId]) -> Vec<Counter> {
        self.with(cx, pf, |plane| rules.iter().map(|rule| plane.state.counter(*rule)).collect())
    }

    fn drops(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Dropped> {
        let planes = self.planes.lock_leaf(cx);
        let drops = planes.drops.iter();
        drops.map(|((port, reason), frames)| Dropped { port: *port, reason, frames: *frames }).collect()
    }

    fn state(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<State> {
        self.planes.lock_leaf(cx).planes.get(&pf).map(|plane| plane.state.clone())
    }

    fn clock(&self) -> Option<Duration> {
        None
    }

    fn send(
        &self,
        cx: &mut Locked<'_, CardCall>,
        port: Port,
        now: Duration,
        frame: &[u8],
    ) -> Result<Vec<Arrival>, CardError> {
        match self.forward(cx, port, now, frame) {
            Forwarded::Switched(verdict) => {
                let all = self.planes.lock_leaf(cx);
                let outputs =
                    verdict.outputs.iter().map(|output| Arrival::Port(all.leaves(output.port, &output.frame)));
                let representor = verdict.goes_to_representor().then_some(Arrival::Representor(port));
                Ok(outputs.chain(representor).collect())
            }
            Forwarded::Inactive => Ok(Vec::new()),
            Forwarded::NoTables => Err(CardError::Full(format!("{port} has no representor"))),
        }
    }

    fn sampler(&self) -> Option<&dyn Sampler> {
        Some(self)
    }

    fn installed(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<Vec<RuleId>> {
        let planes = self.planes.lock_leaf(cx);
        let installed =
            |plane: &Plane| plane.tables.rules().map(|(id, _)| id).chain(plane.strays.iter().copied()).collect();
        planes.planes.get(&pf).map(installed)
    }

    /// Nothing is left of a process, and nothing has happened to its rules since: all can be restored.
    fn left(&self, _: &mut Locked<'_, CardCall>) -> Option<BTreeSet<RuleId>> {
        None
    }
}

impl Sampler for Planes {
    fn want(&self, cx: &mut Locked<'_, CardCall>, wanted: bool) {
        let mut samples = self.samples.lock_leaf(cx);
        samples.wanted = wanted;
        if !wanted {
            samples.taken.clear();
        }
    }

    fn wait(&self, cx: &mut Locked<'_, Unlocked>) {
        loop {
            let seen = self.sample_events.seen(cx);
            let mut samples = self.samples.lock_leaf(cx);
            if std::mem::take(&mut samples.woken) || !samples.taken.is_empty() {
                return;
            }
            drop(samples);
            self.sample_events.wait_past(cx, seen);
        }
    }

    fn wake(&self, cx: &mut Locked<'_, CardCall>) {
        self.samples.lock_leaf(cx).woken = true;
        self.sample_events.advance(cx);
    }

    fn read(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Sampled> {
        let mut samples = self.samples.lock_leaf(cx);
        let count = samples.taken.len().min(SAMPLES_READ);
        samples.taken.drain(..count).collect()
    }
}
