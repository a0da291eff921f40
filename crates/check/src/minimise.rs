//! Making a failure small: fewer failures asked for, fewer threads and steps, fewer switches.
//!
//! Each thing left out must leave the same invariant broken. Without a step the same switches may not
//! lead to the failure any more, though others would: so a few schedules are searched, too.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lockdep::{Explore, Halt, Happening, What};
use scenario::Scenario;
use shuttle::scheduler::Scheduler;

use crate::campaign::{Failure, Watch};
use crate::schedulers::{Bounded, Recorded, Replay};
use crate::story::{Row, RowKind, Story, rows};
use crate::telling::{Found, Lessons, Teller, Telling};
use crate::token::{FINALLY, SETUP, Token, fingerprint, without};

/// How long to go on making it smaller.
const PATIENCE: Duration = Duration::from_secs(20);
/// Schedules to search for the failure after something was left out.
const SEARCH: u64 = 400;

/// How a failure is told again.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub scenario: Scenario,
    pub gone: Vec<(u16, u16)>,
    pub failure: Failure,
    pub whole: bool,
}

impl Case {
    fn less(&self) -> Scenario {
        without(&self.scenario, &self.gone)
    }

    fn invariant(&self) -> &str {
        self.failure.found.first().map_or("", |found| &found.invariant)
    }

    /// Whether what went wrong is what the scenario says should come of its steps.
    fn is_about_the_script(&self) -> bool {
        let came = |found: &Found| !found.detail.contains("has not come within");
        ["expectation", "step"].contains(&self.invariant()) || !self.failure.found.first().is_none_or(came)
    }

    /// Tells it in the schedules of a scheduler, up to the first that breaks the same invariant.
    fn find<S: Scheduler + 'static>(&self, scheduler: S, budget: u64) -> Option<Failure> {
        let teller = Teller::new(Arc::new(self.less()), &self.failure.plan, false).lacking(&self.gone);
        let bound = self.failure.bound;
        let explore = Explore { bound, focused: !self.whole, ..Explore::default() };
        teller.learn(&self.failure.after, explore);
        let (recorded, deviations) = Recorded::new(scheduler);
        let result = Rc::new(RefCell::new(None));
        let (ours, listener, meant) = (Rc::clone(&result), teller.clone(), self.invariant().to_owned());
        let (mut schedules, mut lessons, plan) = (0, Lessons::default(), self.failure.plan.clone());
        let mut after = self.failure.after.clone();
        let ended = move |halt: Option<Halt>| {
            let returns = matches!(halt, Some(Halt::Livelock(..)));
            let (mut found, _) = listener.verdict(halt);
            schedules += 1;
            if let Some(at) = found.iter().position(|found| found.invariant == meant) {
                found.swap(0, at);
                let (deviations, plan) = (deviations.borrow().clone(), plan.clone());
                after.extend(lessons.before(&found));
                let after = std::mem::take(&mut after);
                *ours.borrow_mut() = Some(Failure { found, plan, deviations, bound, returns, after });
                return ControlFlow::Break(());
            }
            lessons.learn(&listener, &deviations.borrow(), bound);
            if schedules < budget { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        explore.run(recorded, ended, move || teller.tell(false));
        result.take()
    }

    /// Whether it still fails in the same way, in the same schedule or in one near it.
    fn fails(&mut self, search: bool) -> bool {
        let replay = Replay::new(self.failure.deviations.clone()).returning(self.failure.returns);
        let mut result = self.find(replay, 1);
        for bound in 0..=2 {
            if !search || result.is_some() {
                break;
            }
            result = self.find(Bounded::new(bound, true), SEARCH);
        }
        result.map(|failure| self.failure = failure).is_some()
    }
}

/// Makes it as small as it gets in a while, or until somebody wants an end of it.
pub(crate) fn minimise(mut case: Case, watch: &Watch) -> Case {
    let until = Instant::now() + PATIENCE;
    let mut again = case.clone();
    again.failure.after.clear();
    if !again.fails(false) {
        // What it takes is more than the schedule.
        again = case.clone();
        if !again.fails(false) {
            return case;
        }
    }
    case = again;
    let attempt = |case: &mut Case, change: &dyn Fn(&mut Case), search: bool| {
        if Instant::now() >= until || watch.stop.load(Ordering::Relaxed) {
            return false;
        }
        let mut smaller = case.clone();
        change(&mut smaller);
        let failed = smaller.fails(search);
        if failed {
            *case = smaller;
        }
        failed
    };
    for index in (0..case.failure.after.len()).rev() {
        attempt(&mut case, &|case| drop(case.failure.after.remove(index)), false);
    }
    for index in (0..case.failure.plan.len()).rev() {
        attempt(&mut case, &|case| drop(case.failure.plan.remove(index)), false);
    }
    // What was expected of the whole means nothing without a part.
    if !case.is_about_the_script() {
        let threads: Vec<(u16, usize)> =
            case.scenario.threads.iter().map(|t| t.steps.len()).zip(0..).map(|(n, t)| (t, n)).collect();
        for (thread, steps) in threads.iter().filter(|_| threads.len() > 1) {
            let all: Vec<(u16, u16)> = (0..*steps as u16).map(|step| (*thread, step)).collect();
            if case.less().threads.len() > 1 {
                attempt(&mut case, &|case| case.gone.extend(&all), true);
            }
        }
        let (setup, finally) = (case.scenario.setup.len(), case.scenario.finally.len());
        let parts: Vec<(u16, usize)> = threads.into_iter().chain([(SETUP, setup), (FINALLY, finally)]).collect();
        // What one step has done another may undo, so that only both can go; and with one gone another may be next.
        loop {
            let before = case.gone.len();
            for (part, size) in parts.iter().flat_map(|part| [3, 2, 1].map(|size| (part, size))) {
                for start in (0..(part.1 + 1).saturating_sub(size)).rev() {
                    let run = (start..start + size).map(|step| (part.0, step as u16));
                    let less: Vec<(u16, u16)> = run.filter(|step| !case.gone.contains(step)).collect();
                    let left = case.less().threads.iter().map(|thread| thread.steps.len()).sum::<usize>();
                    if less.len() == size && (left > size || part.0 >= FINALLY) {
                        attempt(&mut case, &|case| case.gone.extend(&less), true);
                    }
                }
            }
            if case.gone.len() == before {
                break;
            }
        }
    }
    // The fewest switches: of large parts first, then one by one, until none can go.
    let mut size = case.failure.deviations.len().max(1);
    loop {
        let mut smaller = false;
        let mut at = 0;
        while at < case.failure.deviations.len() {
            let end = (at + size).min(case.failure.deviations.len());
            let before = case.failure.deviations.len();
            let left_out = attempt(&mut case, &|case| drop(case.failure.deviations.drain(at..end)), false);
            if left_out && case.failure.deviations.len() < before {
                smaller = true;
            } else {
                at += size;
            }
        }
        if size > 1 {
            size = size.div_ceil(2);
        } else if !smaller {
            return case;
        }
    }
}

/// Tells it once more and writes down what happens.
pub(crate) fn story(case: &Case) -> Story {
    let scenario = case.less();
    let token = Token {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        scenario: scenario.name.clone(),
        fingerprint: fingerprint(&case.scenario),
        without: case.gone.clone(),
        faults: case.failure.plan.clone(),
        deviations: case.failure.deviations.clone(),
        whole: case.whole,
        bound: case.failure.bound,
        returns: case.failure.returns,
        after: case.failure.after.clone(),
        first: Vec::new(),
    };
    let (story, found) = tell(&[], &scenario, &token);
    let found = found.first().or(case.failure.found.first()).cloned();
    Story {
        invariant: found.as_ref().map_or_else(String::new, |found| found.invariant.clone()),
        detail: found.map_or_else(String::new, |found| found.detail),
        token: token.to_string(),
        ..story
    }
}

/// Tells the schedule of a token: what happens, and what did not hold. `first`: the scenarios of the schedules that are
/// told before it.
pub(crate) fn tell(first: &[Scenario], scenario: &Scenario, token: &Token) -> (Story, Vec<Found>) {
    let teller = Teller::new(Arc::new(scenario.clone()), &token.faults, true).lacking(&token.without);
    let result = Rc::new(RefCell::new((Story::default(), Vec::new())));
    let (ours, listener) = (Rc::clone(&result), teller.clone());
    let ended = move |halt: Option<Halt>| {
        let (found, _) = listener.verdict(halt);
        let (threads, happenings) = lockdep::look(|model| {
            let threads: Vec<String> = model.threads().iter().map(|thread| thread.name.clone()).collect();
            (threads, model.take_happenings())
        });
        // What is wrong with a step is what is wrong only where the script is what is looked at.
        let scripted =
            found.first().is_some_and(|found| ["expectation", "step", "progress"].contains(&&*found.invariant));
        let told = happenings.into_iter().filter(|h| scripted || !matches!(h.what, What::Note("script", _)));
        let happenings: Vec<Happening> = told.collect();
        let mut rows = rows(&happenings, threads.len());
        if let (Some(found), false) = (found.first(), rows.iter().any(|row| row.kind == RowKind::Violation)) {
            let step = rows.last().map_or(0, |row| row.step);
            // Of threads that have not ended, the last that did something.
            let ended: BTreeSet<usize> =
                rows.iter().filter(|row| row.kind == RowKind::Exit).map(|row| row.thread).collect();
            let thread = rows.iter().rev().map(|row| row.thread).find(|thread| !ended.contains(thread));
            let thread = thread.or(rows.last().map(|row| row.thread)).unwrap_or_default();
            let what = format!("{}: {}", found.invariant, found.detail);
            let kind = RowKind::Violation;
            rows.push(Row { step, thread, kind, what, object: None, at: String::new(), held: Vec::new() });
        }
        *ours.borrow_mut() = (Story { threads, rows, ..Story::default() }, found);
        ControlFlow::Break(())
    };
    let explore = |token: &Token| Explore { bound: token.bound, focused: !token.whole, ..Explore::default() };
    let mut came = true;
    for (scenario, token) in first.iter().zip(&token.first) {
        let telling = Telling { faults: token.faults.clone(), deviations: token.deviations.clone() };
        let teller = teller.of(Arc::new(scenario.clone()));
        came &= teller.learn(token.after.iter().chain([&telling]), explore(token));
    }
    came &= teller.learn(&token.after, explore(token));
    let explore = Explore { record: true, ..explore(token) };
    let replay = Replay::new(token.deviations.clone()).returning(token.returns);
    let (met, planned) = (replay.met(), teller.clone());
    explore.run(replay, ended, move || teller.tell(false));
    let switches = met.borrow().iter().filter(|met| !**met).count();
    let (mut story, found) = result.take();
    story.scenario = scenario.name.clone();
    story.unmet = planned.unmet().iter().map(ToString::to_string).collect();
    if switches > 0 {
        story.unmet.push(format!("{switches} of {} switches", token.deviations.len()));
    }
    if !came {
        story.unmet.push("something of what is told first".to_owned());
    }
    story.after = token.all().map(|token| token.after.len()).sum::<usize>() + token.first.len();
    story.faults = token.faults.iter().map(ToString::to_string).collect();
    story.token = token.to_string();
    story.preemptions = story.rows.iter().filter(|row| row.kind == RowKind::Preempted).count();
    if let Some(first) = found.first() {
        (story.invariant, story.detail) = (first.invariant.clone(), first.detail.clone());
    }
    (story, found)
}
