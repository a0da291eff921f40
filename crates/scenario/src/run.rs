//! Runs a scenario: its threads, the outcome of each step, and what held at the end.

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
    /// What the threads of a scenario report to the thread that runs it.
    pub leaf StageClass = "stage";
}

/// The outcome of a scenario.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The steps of all threads, in the order in which they were taken.
    pub steps: Vec<StepRecord>,
    /// The card at rest, before it was taken down.
    pub snapshot: Option<Snapshot>,
    /// Every expectation at rest, and whether it held.
    pub verdicts: Vec<Verdict>,
    /// Everything that is not as it should be, with failed steps and expectations.
    pub violations: Vec<Violation>,
    /// How long the scenario took.
    pub elapsed: Duration,
    /// Whether it was interrupted.
    pub interrupted: bool,
    /// Whether a thread did not end, so that the card could not be taken down.
    pub hung: bool,
}

impl Outcome {
    /// The violations that are not about the script. When an explorer makes something fail that the script does not
    /// know of, a failed step or an expectation that does not hold is no fault of the engine.
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

    /// Whether everything held and the scenario ran to its end.
    pub fn ok(&self) -> bool {
        self.violations.is_empty() && !self.interrupted && !self.hung
    }
}

/// Notes violations at this point of the schedule, for an explorer that records it.
fn note_all(found: &[Violation]) {
    for Violation { invariant, detail } in found {
        lockdep::note("violation", || format!("{invariant}: {detail}"));
    }
}

/// A step that was taken.
#[derive(Clone, Debug)]
pub struct StepRecord {
    /// The thread that took it: one of the scenario's, `setup` or `finally`.
    pub thread: String,
    /// The step's text.
    pub step: String,
    /// Whether the outcome was the expected one.
    pub ok: bool,
    /// The lines that the step printed.
    pub output: Vec<String>,
    /// The step's error, expected or not.
    pub error: Option<StepError>,
    /// What is wrong with the outcome, if it is not ok.
    pub wrong: Option<String>,
    /// How long the step took.
    pub elapsed: Duration,
}

/// An expectation, and whether it held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The expectation's text.
    pub expectation: String,
    /// What was found instead, if it did not hold.
    pub unmet: Option<String>,
}

/// Is called while a scenario runs.
pub trait Observer {
    /// Is called after each step.
    fn step(&mut self, record: &StepRecord);
}

/// Does nothing.
impl Observer for () {
    fn step(&mut self, _: &StepRecord) {}
}

/// Runs a scenario: brings its card up, runs it, and takes the card down.
pub fn run(cx: &mut Locked<'_, Unlocked>, scenario: &Scenario, world: &World, observer: &mut dyn Observer) -> Outcome {
    let began = (world.clock)();
    let mut outcome = Outcome::default();
    let runner =
        Runner { scenario: Arc::new(scenario.clone()), world: world.clone(), stage: Arc::new(Stage::default()) };
    runner.run(cx, &mut outcome, observer);
    outcome.interrupted = world.pulse.is_stopped(cx);
    // The checker's reports come first: what does not hold at the end may be a consequence of them.
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

    /// Adds a step's record, with a violation if the outcome is not the expected one.
    fn note(&mut self, record: StepRecord) {
        if let Some(wrong) = &record.wrong
            && record.error != Some(StepError::Interrupted)
        {
            let invariant = match &record.error {
                None => "step",
                Some(StepError::TimedOut { .. }) => "progress",
                Some(StepError::Unmet { .. }) => "expectation",
                Some(_) => "step",
            };
            self.violate(invariant, format!("{}: `{}`: {wrong}", record.thread, record.step));
        }
        self.steps.push(record);
    }
}

/// A thread of a running scenario: its name, and what it runs.
type Part = (String, Body);
type Body = Box<dyn FnOnce(&mut Locked<'_, Unlocked>) + Send>;

struct Runner {
    scenario: Arc<Scenario>,
    world: World,
    stage: Arc<Stage>,
}

impl Runner {
    fn run(&self, cx: &mut Locked<'_, Unlocked>, outcome: &mut Outcome, observer: &mut dyn Observer) {
        let (scenario, world) = (&self.scenario, &self.world);
        let session = match Session::start(cx, scenario.card.clone(), world.clone(), scenario.limit) {
            Ok(session) => Arc::new(session),
            Err(error) => {
                outcome.violate("step", format!("the card did not come up: {error}"));
                return outcome.violations.extend(left_on(cx, &*world.card));
            }
        };
        session.watch_events(cx, scenario.event_texts());
        if is_explored() {
            // Work that bringing the card up has queued is not part of the scenario.
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

    /// A thread that takes these steps until the outcome of one is not the expected one, or the scenario is stopped. A
    /// thread that heeds nothing takes all of them.
    fn part(&self, session: &Arc<Session>, name: &str, steps: Vec<Step>, heeds: Heeds) -> Part {
        let (stage, session, thread) = (Arc::clone(&self.stage), Arc::clone(session), name.to_owned());
        let body = move |cx: &mut Locked<'_, Unlocked>| {
            let since = HistoryMark::now();
            let mut well = true;
            for (step, number) in steps.iter().zip(0..) {
                // A step depends on earlier steps only through the state that they have left.
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
                stage.report(cx, StageReport::Step(record));
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

    /// The thread that waits for rest, checks expectations and invariants, and takes the card down. `as_hoped`: nothing
    /// went wrong before, so that it is worth waiting for the end of retries.
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
                    stage.report(cx, StageReport::Verdict(Verdict { expectation, unmet }));
                }
                found.extend(session.engine().check(cx));
                note_all(&found);
                let snapshot = session.engine().inspect(cx);
                stage.report(cx, StageReport::Snapshot(snapshot));
            }
            stage.begin(cx, "epilogue", "taking the card down");
            let left = session.close(cx);
            note_all(&left);
            found.extend(left);
            stage.report(cx, StageReport::Violations(found));
        };
        ("epilogue".to_owned(), Box::new(body))
    }

    /// Runs threads to their end and records their reports; whether all have ended. `focus`: an explorer tries every
    /// order of these threads.
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
            let (stage, pulse, thread) = (Arc::clone(&self.stage), Arc::clone(&self.world.pulse), name.clone());
            threads.push(cx.spawn(&name, move |cx| {
                let panic = run_part(cx, body);
                stage.end(cx, &thread, panic);
                pulse.beat_for_listener(cx);
            }));
        }
        // Under an explorer the reports can be read afterwards: the explorer finds a thread that hangs.
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

    /// Records what threads report until all have ended; whether they have. If no thread reports anything for twice as
    /// long as any wait may take, something hangs.
    fn listen(&self, cx: &mut Locked<'_, Unlocked>, outcome: &mut Outcome, observer: &mut dyn Observer) -> bool {
        let patience = self.scenario.limit * 2;
        loop {
            let limit = (!is_explored()).then(|| Deadline::after(patience));
            let report = self.stage.next(cx, &self.world, limit.as_ref());
            match report {
                Ok(Some(StageReport::Step(record))) => {
                    observer.step(&record);
                    outcome.note(record);
                }
                Ok(Some(StageReport::Verdict(verdict))) => {
                    if let Some(unmet) = &verdict.unmet {
                        outcome.violate("expectation", unmet.clone());
                    }
                    outcome.verdicts.push(verdict);
                }
                Ok(Some(StageReport::Violations(violations))) => outcome.violations.extend(violations),
                Ok(Some(StageReport::Snapshot(snapshot))) => outcome.snapshot = Some(snapshot),
                Ok(Some(StageReport::Panicked(thread, why))) => {
                    outcome.violate("progress", format!("{thread} panicked: {why}"));
                }
                Ok(None) => return true,
                Err(doing) => {
                    for (thread, step) in doing {
                        let s = patience.as_secs();
                        outcome.violate("progress", format!("{thread}: `{step}` has not ended within {s} s"));
                    }
                    return false;
                }
            }
        }
    }
}

/// Takes a step; its record.
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
        (Expected::Failure(expected), None) => Some(format!("it succeeded, and should have failed with {expected}")),
        (Expected::Failure(expected), Some(error)) if error.is(expected) => None,
        (Expected::Failure(expected), Some(error)) => {
            Some(format!("it failed with another error than {expected}: {error}"))
        }
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

/// Runs a thread's body; its panic, if it panics. An explorer catches panics itself.
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

/// What the threads of a running scenario report.
struct Stage(Mutex<StageClass, StageState>);

#[derive(Default)]
struct StageState {
    running: usize,
    reports: std::collections::VecDeque<StageReport>,
    /// The step that each thread is taking.
    doing: BTreeMap<String, String>,
}

enum StageReport {
    Step(StepRecord),
    Verdict(Verdict),
    Violations(Vec<Violation>),
    Snapshot(Snapshot),
    Panicked(String, String),
}

impl Default for Stage {
    fn default() -> Self {
        // No step of a scenario depends on the reports, so an explorer need not order them.
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

    fn report(&self, cx: &mut Locked<'_, Unlocked>, report: StageReport) {
        self.0.lock_leaf(cx).reports.push_back(report);
    }

    fn end(&self, cx: &mut Locked<'_, Unlocked>, thread: &str, panic: Option<String>) {
        let mut state = self.0.lock_leaf(cx);
        state.running -= 1;
        state.doing.remove(thread);
        if let Some(why) = panic {
            state.reports.push_back(StageReport::Panicked(thread.to_owned(), why));
        }
    }

    /// Takes the next report, after waiting for it; `None` once all threads have ended and no report is left.
    ///
    /// # Errors
    /// No thread reports anything before the limit: the running threads, and the step that each is taking.
    fn next(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        world: &World,
        limit: Option<&Deadline>,
    ) -> Result<Option<StageReport>, Vec<(String, String)>> {
        let next = world.pulse.wait_for(
            cx,
            Heeds::Nothing,
            limit,
            || None,
            |cx| {
                let mut state = self.0.lock_leaf(cx);
                match state.reports.pop_front() {
                    Some(report) => Some(Some(report)),
                    None if state.running == 0 => Some(None),
                    None => None,
                }
            },
        );
        next.map_err(|_: GaveUp| self.0.lock_leaf(cx).doing.clone().into_iter().collect())
    }
}
