//! Telling a story: its threads, what came of each step, and what held at the end.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use eswitch::inspect::{Snapshot, Violation};
use host::{GaveUp, Heeds, World, left_on};
use lockdep::{Deadline, HistoryMark, Locked, Mutex, Unlocked, is_explored, lock_classes};

use crate::file::{Scenario, Settle};
use crate::session::{Session, StepError};
use crate::step::{Expected, Step};

lock_classes! {
    /// What the threads of a story hand to the one that tells it.
    pub leaf StageClass = "stage";
}

/// What a story came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What every thread did, in the order in which it was done.
    pub steps: Vec<StepRecord>,
    /// The card at rest, before it was taken down.
    pub snapshot: Option<Snapshot>,
    /// Each expectation, and what was found instead if it does not hold.
    pub verdicts: Vec<Verdict>,
    /// Everything that should not be, failed steps and expectations among it.
    pub violations: Vec<Violation>,
    /// How long it all took.
    pub elapsed: Duration,
    /// It was asked to stop.
    pub interrupted: bool,
    /// Something did not come to an end: the card could not be taken down.
    pub hung: bool,
}

impl Outcome {
    /// The violations that are not about the script: a step that failed, or an expectation that does not
    /// hold, says nothing against the engine when something was made to fail that the script knows nothing of.
    pub fn beside_the_script(&self) -> Vec<Violation> {
        let scripted = |violation: &&Violation| {
            let step = |record: &StepRecord| {
                let wrong = record.wrong.as_ref()?;
                Some(format!("{}: `{}`: {wrong}", record.thread, record.step) == violation.detail)
            };
            ["expectation", "step"].contains(&violation.invariant)
                || self.steps.iter().any(|record| step(record) == Some(true))
        };
        self.violations.iter().filter(|violation| !scripted(violation)).cloned().collect()
    }

    /// Whether everything held.
    pub fn ok(&self) -> bool {
        self.violations.is_empty() && !self.interrupted && !self.hung
    }
}

/// For who writes down what happens: what does not hold is seen here.
fn note_all(found: &[Violation]) {
    for Violation { invariant, detail } in found {
        lockdep::note("violation", || format!("{invariant}: {detail}"));
    }
}

/// A step that was taken.
#[derive(Clone, Debug)]
pub struct StepRecord {
    /// Who took it: a thread of the story, `setup` or `finally`.
    pub thread: String,
    /// As it was written.
    pub step: String,
    /// Whether what should come of it came.
    pub ok: bool,
    /// What it printed.
    pub output: Vec<String>,
    /// Its error, expected or not.
    pub error: Option<StepError>,
    /// What is wrong, if it is not ok.
    pub wrong: Option<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// An expectation and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// As it was written.
    pub expectation: String,
    /// What was found instead, if it does not hold.
    pub unmet: Option<String>,
}

/// Who watches a story being told.
pub trait Observer {
    /// A step was taken.
    fn step(&mut self, record: &StepRecord);
}

/// Nobody watches.
impl Observer for () {
    fn step(&mut self, _: &StepRecord) {}
}

/// Tells a story. The card is up only inside.
pub fn run(cx: &mut Locked<'_, Unlocked>, scenario: &Scenario, world: &World, observer: &mut dyn Observer) -> Outcome {
    let began = (world.clock)();
    let mut outcome = Outcome::default();
    let teller =
        Teller { scenario: Arc::new(scenario.clone()), world: world.clone(), stage: Arc::new(Stage::default()) };
    teller.tell(cx, &mut outcome, observer);
    outcome.interrupted = world.pulse.is_stopped(cx);
    // What was found at a step comes first: what does not hold at the end may come of it.
    let reports = world.domain.take_reports().into_iter();
    let reports = reports.map(|report| Violation { invariant: report.invariant(), detail: report.to_string() });
    outcome.violations.splice(0..0, reports);
    outcome.elapsed = (world.clock)().saturating_sub(began);
    outcome
}

impl Outcome {
    fn violate(&mut self, invariant: &'static str, detail: impl Into<String>) {
        self.violations.push(Violation { invariant, detail: detail.into() });
    }

    /// Notes a step; one that went wrong violates something.
    fn note(&mut self, record: StepRecord) {
        if let Some(wrong) = &record.wrong
            && record.error != Some(StepError::Interrupted)
        {
            let invariant = match &record.error {
                None => "step",
                Some(StepError::NeverCame { .. }) => "progress",
                Some(StepError::Unmet { .. }) => "expectation",
                Some(_) => "step",
            };
            self.violate(invariant, format!("{}: `{}`: {wrong}", record.thread, record.step));
        }
        self.steps.push(record);
    }
}

/// A thread of the teller's.
type Part = (String, Body);
type Body = Box<dyn FnOnce(&mut Locked<'_, Unlocked>) + Send>;

struct Teller {
    scenario: Arc<Scenario>,
    world: World,
    stage: Arc<Stage>,
}

impl Teller {
    fn tell(&self, cx: &mut Locked<'_, Unlocked>, outcome: &mut Outcome, observer: &mut dyn Observer) {
        let (scenario, world) = (&self.scenario, &self.world);
        let session = match Session::start(cx, scenario.card.clone(), world.clone(), scenario.limit) {
            Ok(session) => Arc::new(session),
            Err(error) => {
                outcome.violate("step", format!("the card did not come up: {error}"));
                return outcome.violations.extend(left_on(cx, &*world.card));
            }
        };
        session.asks_for(cx, scenario.asked_events());
        if is_explored() {
            // What coming up has queued is not what the story is about.
            session.engine().settle(cx, false);
        }
        for thread in &scenario.threads {
            for name in thread.steps.iter().flat_map(|step| step.action.barriers()) {
                session.barriers.join(cx, name, &thread.name);
            }
        }
        let setup = vec![self.part(&session, "setup", scenario.setup.clone(), Heeds::Stop)];
        let mut ended = self.perform(cx, setup, false, outcome, observer);
        if ended && outcome.violations.is_empty() {
            let threads = scenario.threads.iter();
            let parts = threads.map(|t| self.part(&session, &t.name, t.steps.clone(), Heeds::Stop));
            ended = self.perform(cx, parts.collect(), true, outcome, observer);
        }
        if ended {
            let finally = vec![self.part(&session, "finally", scenario.finally.clone(), Heeds::Nothing)];
            ended = self.perform(cx, finally, false, outcome, observer);
        }
        if ended {
            let look = self.epilogue(&session, outcome.violations.is_empty());
            ended = self.perform(cx, vec![look], true, outcome, observer);
        }
        if !ended {
            outcome.hung = true;
        }
    }

    /// A thread that takes these steps until one goes wrong or the story is to stop; if it heeds nothing,
    /// all of them.
    fn part(&self, session: &Arc<Session>, name: &str, steps: Vec<Step>, heeds: Heeds) -> Part {
        let (stage, session, thread) = (Arc::clone(&self.stage), Arc::clone(session), name.to_owned());
        let body = move |cx: &mut Locked<'_, Unlocked>| {
            let since = HistoryMark::now();
            let mut well = true;
            for (step, number) in steps.iter().zip(0..) {
                // A step knows nothing of the steps before it but what they have left.
                since.erase_except(&(number, well));
                if session.world().pulse.stops(cx, heeds) {
                    break;
                }
                stage.begin(cx, &thread, &step.text);
                lockdep::note("step", || step.text.clone());
                let record = take(cx, &session, &thread, heeds, step);
                lockdep::note("done", || match &record.error {
                    None => step.text.clone(),
                    Some(error) => format!("{}: {error}", step.text),
                });
                if let Some(wrong) = &record.wrong {
                    lockdep::note("script", || wrong.clone());
                }
                well &= record.ok;
                stage.tell(cx, Told::Step(record));
                session.world().pulse.beat_for_listener(cx);
                if !well && heeds == Heeds::Stop {
                    break;
                }
            }
            since.erase_except(&well);
            session.barriers.leave(cx, &session.world().pulse, &thread);
            since.erase_except(&well);
        };
        (name.to_owned(), Box::new(body))
    }

    /// The thread that waits for rest, looks, and takes the card down. After something went wrong, it
    /// does not wait for what was expected.
    fn epilogue(&self, session: &Arc<Session>, as_hoped: bool) -> Part {
        let (stage, session, scenario) = (Arc::clone(&self.stage), Arc::clone(session), Arc::clone(&self.scenario));
        let body = move |cx: &mut Locked<'_, Unlocked>| {
            let stopped = session.world().pulse.is_stopped(cx);
            let mut found = Vec::new();
            if !stopped {
                stage.begin(cx, "epilogue", "waiting for rest");
                let rested = session.wait_rest(cx, Heeds::Stop, as_hoped && scenario.settle == Settle::Retries);
                lockdep::focus(false);
                if let Err(error) = rested
                    && error != StepError::Interrupted
                {
                    found.push(Violation { invariant: "progress", detail: error.to_string() });
                }
                for expectation in &scenario.expect {
                    let unmet = session.expect(cx, &expectation.value).err().map(|error| error.to_string());
                    if let Some(unmet) = &unmet {
                        lockdep::note("script", || unmet.clone());
                    }
                    let expectation = expectation.text.clone();
                    stage.tell(cx, Told::Verdict(Verdict { expectation, unmet }));
                }
                found.extend(session.engine().check(cx));
                note_all(&found);
                let snapshot = session.engine().inspect(cx);
                stage.tell(cx, Told::Snapshot(snapshot));
            }
            stage.begin(cx, "epilogue", "taking the card down");
            let left = session.close(cx);
            note_all(&left);
            found.extend(left);
            stage.tell(cx, Told::Violations(found));
        };
        ("epilogue".to_owned(), Box::new(body))
    }

    /// Runs threads to their end and takes down what they tell. Whether all have ended. `focus`: this is
    /// what the story is about.
    fn perform(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        parts: Vec<Part>,
        focus: bool,
        outcome: &mut Outcome,
        observer: &mut dyn Observer,
    ) -> bool {
        let mut threads = Vec::new();
        self.stage.raise(cx, parts.len());
        for (name, body) in parts {
            let (stage, pulse, who) = (Arc::clone(&self.stage), Arc::clone(&self.world.pulse), name.clone());
            threads.push(cx.spawn(&name, move |cx| {
                let panic = run_part(cx, body);
                stage.end(cx, &who, panic);
                pulse.beat_for_listener(cx);
            }));
        }
        // Explored, what is told can be heard after: a thread that hangs is the explorer's to see.
        lockdep::focus(focus);
        let early = if is_explored() { true } else { self.listen(cx, outcome, observer) };
        if !early {
            return false;
        }
        for thread in threads {
            if let Err(panic) = thread.join(cx) {
                outcome.violate("progress", format!("a thread panicked: {}", describe_panic(&*panic)));
            }
        }
        lockdep::focus(false);
        self.listen(cx, outcome, observer)
    }

    /// Hands on what threads tell until all have ended. If none tells anything for longer than any wait
    /// may take, something hangs.
    fn listen(&self, cx: &mut Locked<'_, Unlocked>, outcome: &mut Outcome, observer: &mut dyn Observer) -> bool {
        let patience = self.scenario.limit * 2;
        loop {
            let limit = (!is_explored()).then(|| Deadline::after(patience));
            let told = self.stage.next(cx, &self.world, limit.as_ref());
            match told {
                Ok(Some(Told::Step(record))) => {
                    observer.step(&record);
                    outcome.note(record);
                }
                Ok(Some(Told::Verdict(verdict))) => {
                    if let Some(unmet) = &verdict.unmet {
                        outcome.violate("expectation", unmet.clone());
                    }
                    outcome.verdicts.push(verdict);
                }
                Ok(Some(Told::Violations(violations))) => outcome.violations.extend(violations),
                Ok(Some(Told::Snapshot(snapshot))) => outcome.snapshot = Some(snapshot),
                Ok(Some(Told::Panicked(thread, why))) => {
                    outcome.violate("progress", format!("{thread} panicked: {why}"));
                }
                Ok(None) => return true,
                Err(doing) => {
                    for (thread, step) in doing {
                        let s = patience.as_secs();
                        outcome.violate("progress", format!("{thread}: `{step}` has not come to an end within {s} s"));
                    }
                    return false;
                }
            }
        }
    }
}

/// Takes a step and says what came of it.
fn take(cx: &mut Locked<'_, Unlocked>, session: &Session, thread: &str, heeds: Heeds, step: &Step) -> StepRecord {
    let clock = &session.world().clock;
    let began = clock();
    let done = session.perform(cx, heeds, &step.action);
    let elapsed = clock().saturating_sub(began);
    session.listen(cx);
    let (output, error) = match done {
        Ok(output) => (output, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let wrong = match (&step.expected, &error) {
        (_, Some(StepError::Interrupted)) => Some("interrupted".to_owned()),
        (Expected::Success, None) | (Expected::Either, _) => None,
        (Expected::Success, Some(error)) => Some(error.to_string()),
        (Expected::Failure(meant), None) => Some(format!("it succeeded, and should have failed with {meant}")),
        (Expected::Failure(meant), Some(error)) if error.is(meant) => None,
        (Expected::Failure(meant), Some(error)) => Some(format!("it failed with another error than {meant}: {error}")),
    };
    StepRecord {
        thread: thread.to_owned(),
        step: step.text.clone(),
        ok: wrong.is_none(),
        output,
        error,
        wrong,
        elapsed,
    }
}

/// Runs a thread's body; its panic, if it panics. Explored, panics are the explorer's business.
fn run_part(cx: &mut Locked<'_, Unlocked>, body: Body) -> Option<String> {
    if is_explored() {
        body(cx);
        return None;
    }
    let result = catch_unwind(AssertUnwindSafe(|| body(cx)));
    result.err().map(|panic| describe_panic(&*panic))
}

fn describe_panic(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

/// Where the threads of a story leave what they have to tell.
struct Stage(Mutex<StageClass, StageState>);

#[derive(Default)]
struct StageState {
    running: usize,
    told: std::collections::VecDeque<Told>,
    doing: BTreeMap<String, String>,
}

enum Told {
    Step(StepRecord),
    Verdict(Verdict),
    Violations(Vec<Violation>),
    Snapshot(Snapshot),
    Panicked(String, String),
}

impl Default for Stage {
    fn default() -> Self {
        // Notes about the story, which nothing in it asks: not to be explored.
        Self(lockdep::unexplored(|| Mutex::new(StageState::default())))
    }
}

impl Stage {
    fn raise(&self, cx: &mut Locked<'_, Unlocked>, threads: usize) {
        self.0.lock_leaf(cx).running += threads;
    }

    fn begin(&self, cx: &mut Locked<'_, Unlocked>, thread: &str, step: &str) {
        self.0.lock_leaf(cx).doing.insert(thread.to_owned(), step.to_owned());
    }

    fn tell(&self, cx: &mut Locked<'_, Unlocked>, told: Told) {
        self.0.lock_leaf(cx).told.push_back(told);
    }

    fn end(&self, cx: &mut Locked<'_, Unlocked>, thread: &str, panic: Option<String>) {
        let mut state = self.0.lock_leaf(cx);
        state.running -= 1;
        state.doing.remove(thread);
        if let Some(why) = panic {
            state.told.push_back(Told::Panicked(thread.to_owned(), why));
        }
    }

    /// The next thing told, `None` once all threads have ended and nothing is left to tell. If nothing is
    /// told before the limit: who does what.
    fn next(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        world: &World,
        limit: Option<&Deadline>,
    ) -> Result<Option<Told>, Vec<(String, String)>> {
        let next = world.pulse.wait_for(
            cx,
            Heeds::Nothing,
            limit,
            || None,
            |cx| {
                let mut state = self.0.lock_leaf(cx);
                match state.told.pop_front() {
                    Some(told) => Some(Some(told)),
                    None if state.running == 0 => Some(None),
                    None => None,
                }
            },
        );
        next.map_err(|_: GaveUp| self.0.lock_leaf(cx).doing.clone().into_iter().collect())
    }
}
