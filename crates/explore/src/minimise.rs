//! Making a failure small: fewer planned failures, fewer threads and steps, fewer switches.
//!
//! After each part that is left out, the same invariant must still be broken. Without a step the same switches may
//! no longer lead to the failure, although others would. So a few schedules are searched, too.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lockdep::{Explore, Halt, Happening, What};
use shuttle::scheduler::Scheduler;

use crate::campaign::Failure;
use crate::execution::{Execution, Found, Lessons, Prepared};
use crate::options::Watch;
use crate::program::{Part, Program, StepId};
use crate::schedulers::{Bounded, Recorded, Replay};
use crate::story::{Row, RowKind, Story, rows};
use crate::token::Token;

/// How long to go on making the failure smaller.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many schedules are searched for the failure after something was left out.
const SEARCH: u64 = 400;

/// A failure, and how it is run again.
#[derive(Clone, Debug)]
pub(crate) struct Case<P> {
    pub program: P,
    pub gone: Vec<StepId>,
    pub failure: Failure,
    pub whole: bool,
}

impl<P: Program> Case<P> {
    fn less(&self) -> P {
        self.program.without(&self.gone)
    }

    /// Returns how many steps each thread has left.
    fn left(&self) -> Vec<usize> {
        let threads = self.program.parts().into_iter().filter(|part| part.is_thread);
        threads.map(|part| (0..part.steps).filter(|step| !self.gone.contains(&(part.id, *step))).count()).collect()
    }

    fn invariant(&self) -> &str {
        self.failure.found.first().map_or("", |found| &found.invariant)
    }

    /// Returns whether the failure only means something for a program with all its steps.
    fn needs_every_step(&self) -> bool {
        self.failure.found.first().is_some_and(|found| self.program.needs_every_step(found))
    }

    /// Runs it in the schedules of a scheduler, up to the first that breaks the same invariant.
    fn find<S: Scheduler + 'static>(&self, scheduler: S, budget: u64) -> Option<Failure> {
        let prepared = Prepared::new(Arc::new(self.less()), &self.failure.plan).lacking(&self.gone);
        let bound = self.failure.bound;
        let focused = !self.whole && self.program.is_focused();
        let explore = Explore { bound, focused, ..Explore::default() };
        prepared.learn(&self.failure.after, explore);
        let (recorded, deviations) = Recorded::new(scheduler);
        let result = Rc::new(RefCell::new(None));
        let (ours, listener, meant) = (Rc::clone(&result), prepared.clone(), self.invariant().to_owned());
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
        explore.run(recorded, ended, move || prepared.run(false));
        result.take()
    }

    /// Returns whether it still fails in the same way, in the same schedule or in a similar one.
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

/// Makes a failure as small as possible within the time limit, or until the caller stops it.
pub(crate) fn minimise<P: Program>(mut case: Case<P>, watch: &Watch) -> Case<P> {
    let until = Instant::now() + PATIENCE;
    let mut again = case.clone();
    again.failure.after.clear();
    if !again.fails(false) {
        // The failure needs more than one schedule.
        again = case.clone();
        if !again.fails(false) {
            return case;
        }
    }
    case = again;
    let attempt = |case: &mut Case<P>, change: &dyn Fn(&mut Case<P>), search: bool| {
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
    // An expectation of the whole program means nothing without a part of it.
    if !case.needs_every_step() {
        let parts = case.program.parts();
        let threads: Vec<Part> = parts.iter().copied().filter(|part| part.is_thread).collect();
        for thread in threads.iter().filter(|_| threads.len() > 1) {
            let all: Vec<StepId> = (0..thread.steps).map(|step| (thread.id, step)).collect();
            if case.left().into_iter().filter(|steps| *steps > 0).count() > 1 {
                attempt(&mut case, &|case| case.gone.extend(&all), true);
            }
        }
        // One step may undo what another has done, so that only both can be left out. If one is left out, another
        // may be next.
        loop {
            let before = case.gone.len();
            for (part, size) in parts.iter().flat_map(|part| [3, 2, 1].map(|size| (part, size))) {
                for start in (0..(part.steps + 1).saturating_sub(size)).rev() {
                    let run = (start..start + size).map(|step| (part.id, step));
                    let less: Vec<StepId> = run.filter(|step| !case.gone.contains(step)).collect();
                    let left: usize = case.left().into_iter().sum();
                    if less.len() == usize::from(size) && (left > less.len() || !part.is_thread) {
                        attempt(&mut case, &|case| case.gone.extend(&less), true);
                    }
                }
            }
            if case.gone.len() == before {
                break;
            }
        }
    }
    // Fewest switches: large groups of them are left out first, then single ones, until none can be.
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

/// Runs it once more and records what happens.
pub(crate) fn story<P: Program>(case: &Case<P>) -> Story {
    let program = case.less();
    let token = Token {
        without: case.gone.clone(),
        faults: case.failure.plan.clone(),
        deviations: case.failure.deviations.clone(),
        whole: case.whole,
        bound: case.failure.bound,
        returns: case.failure.returns,
        after: case.failure.after.clone(),
        ..Token::of(&case.program)
    };
    let (story, found) = run_token(&[], &program, &token);
    let found = found.first().or(case.failure.found.first()).cloned();
    Story {
        invariant: found.as_ref().map_or_else(String::new, |found| found.invariant.clone()),
        detail: found.map_or_else(String::new, |found| found.detail),
        token: token.to_string(),
        ..story
    }
}

/// Runs the schedule of a token, and returns what happens and what did not hold. `first`: the programs of the
/// schedules that are run before it.
pub(crate) fn run_token<P: Program>(first: &[P], program: &P, token: &Token) -> (Story, Vec<Found>) {
    let prepared = Prepared::new(Arc::new(program.clone()), &token.faults).lacking(&token.without);
    let result = Rc::new(RefCell::new((Story::default(), Vec::new())));
    let (ours, listener) = (Rc::clone(&result), prepared.clone());
    let ended = move |halt: Option<Halt>| {
        let (found, _) = listener.verdict(halt);
        let (threads, happenings) = lockdep::look(|model| {
            let threads: Vec<String> = model.threads().iter().map(|thread| thread.name.clone()).collect();
            (threads, model.take_happenings())
        });
        let program = listener.program();
        let told = happenings.into_iter().filter(|happening| match happening.what {
            What::Note(kind, _) => program.tells(kind, found.first()),
            What::Op(_) => true,
        });
        let happenings: Vec<Happening> = told.collect();
        let mut rows = rows(&happenings, threads.len());
        if let (Some(found), false) = (found.first(), rows.iter().any(|row| row.kind == RowKind::Violation)) {
            let step = rows.last().map_or(0, |row| row.step);
            // Of the threads that have not ended, the last that did something.
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
    let explore = |program: &P, token: &Token| {
        let focused = !token.whole && program.is_focused();
        Explore { bound: token.bound, focused, ..Explore::default() }
    };
    let mut came = true;
    for (program, token) in first.iter().zip(&token.first) {
        let execution = Execution { faults: token.faults.clone(), deviations: token.deviations.clone() };
        let prepared = prepared.of(Arc::new(program.clone()));
        came &= prepared.learn(token.after.iter().chain([&execution]), explore(program, token));
    }
    came &= prepared.learn(&token.after, explore(program, token));
    let explore = Explore { record: true, ..explore(program, token) };
    let replay = Replay::new(token.deviations.clone()).returning(token.returns);
    let (met, planned) = (replay.met(), prepared.clone());
    explore.run(replay, ended, move || prepared.run(false));
    let switches = met.borrow().iter().filter(|met| !**met).count();
    let (mut story, found) = result.take();
    story.program = program.name().to_owned();
    (story.tool, story.ordered) = (program.tool(), program.ordered_classes());
    story.unmet = planned.unmet().iter().map(ToString::to_string).collect();
    if switches > 0 {
        story.unmet.push(format!("{switches} of {} switches", token.deviations.len()));
    }
    if !came {
        story.unmet.push("a part of the schedules that are run first".to_owned());
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
