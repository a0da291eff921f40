//! Tests whether what a program reports of its state to the explorer is correct.
//!
//! The reductions take two points of two schedules for the same if the [state](lockdep::Model::state) is the same.
//! The contents of a lock are part of the state as what their writer had seen, unless the lock has a
//! [digest](lockdep::Mutex::with_state_digest). What a thread has seen is part of it, unless the thread declares
//! that it has [forgotten](lockdep::without_history) it. There are three mistakes: a digest that omits something, a
//! thread that depends on what it declares to have forgotten, and shared state that the explorer does not know. Each
//! makes two states look like one. Then schedules are skipped that are not equivalent to those that were run.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use lockdep::{Domain, Explore, Halt, look};
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

use crate::program::{Program, Run};
use crate::schedulers::Random;

/// How much was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatesReport {
    /// Schedules run.
    pub schedules: u64,
    /// How often a choice was met that had been met before, and led to the same. If it is 0, nothing was tested.
    pub met_again: u64,
}

/// Two states that the explorer takes for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateMismatch {
    /// The program's name.
    pub program: String,
    /// The schedule in which it was seen, counted from 1.
    pub schedule: u64,
    /// What the thread's choice led to when the state was met first.
    pub before: String,
    /// What it led to in this schedule.
    pub now: String,
}

impl fmt::Display for StateMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, schedule, before, now } = self;
        writeln!(f, "{program}: what the explorer takes for one state is two, as schedule {schedule} shows.")?;
        writeln!(f, "The same thread was chosen in it twice, and it led")?;
        writeln!(f, "  once to {before}")?;
        writeln!(f, "  and then to {now}")?;
        write!(
            f,
            "A lock tells too little of what it protects, a thread depends on what it has forgotten, or something is shared \
             that the explorer is not told of."
        )
    }
}

impl std::error::Error for StateMismatch {}

/// What follows a choice: the number of steps until the next choice or the end, and what was found there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Comes {
    steps: usize,
    to: To,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum To {
    /// The next state, the threads that can run there, and the next operation of each.
    Next(u64, Vec<(String, String)>),
    /// The end, and the program's result.
    End(String),
}

impl fmt::Display for Comes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            To::Next(state, threads) => {
                write!(f, "state {state:016x} after {} steps", self.steps)?;
                threads.iter().try_for_each(|(thread, op)| write!(f, "; {thread}: {op}"))
            }
            To::End(text) => write!(f, "the end after {} steps: {text}", self.steps),
        }
    }
}

#[derive(Default)]
struct Seen {
    comes: HashMap<(u64, usize), Comes>,
    /// The state at the last choice, the thread that was chosen, and the number of steps by then.
    last: Option<((u64, usize), usize)>,
    report: StatesReport,
    wrong: Option<(Comes, Comes)>,
}

impl Seen {
    fn note(&mut self, steps: usize, to: To) {
        let Some((last, before)) = self.last.take() else { return };
        let comes = Comes { steps: steps - before, to };
        match self.comes.get(&last) {
            None => drop(self.comes.insert(last, comes)),
            Some(before) if *before == comes => self.report.met_again += 1,
            Some(before) => {
                let before = before.clone();
                self.wrong.get_or_insert((before, comes));
            }
        }
    }
}

/// Makes random choices, and compares what follows each. Now and then one thread runs for a while.
struct Noting(Random, Rc<RefCell<Seen>>);

impl Scheduler for Noting {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.0.new_execution()
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yields: bool) -> Option<TaskId> {
        let on = current.filter(|current| runnable.iter().any(|task| task.id() == *current));
        let (state, ops, steps) = look(|model| {
            let threads = runnable.iter().map(|task| usize::from(task.id()));
            let mut timers: Vec<_> = threads.clone().filter_map(|t| Some((model.timer(t)?, t))).collect();
            timers.sort_unstable();
            let timers: Vec<_> = timers.into_iter().map(|(_, thread)| thread).collect();
            let op = |thread: usize| {
                let op = model.pending(thread);
                let name = &model.threads()[thread].name;
                (format!("{name} #{thread}"), format!("{:?} {} at {}", op.kind, op.label, op.at))
            };
            (lockdep::digest(&(model.state(), timers)), threads.map(op).collect(), model.steps())
        });
        let mut seen = self.1.borrow_mut();
        seen.note(steps, To::Next(state, ops));
        let ready = on.filter(|on| look(|model| model.timer(usize::from(*on)).is_none()));
        let next = match ready {
            Some(on) if !self.0.next_u64().is_multiple_of(8) => Some(on),
            _ => self.0.next_task(runnable, current, yields),
        };
        seen.last = next.map(|next| ((state, usize::from(next)), steps));
        next
    }

    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
}

/// Tests that every state that the explorer distinguishes is one state of the program: wherever the same state is
/// met and the same thread is chosen, the same must follow, whatever led there. Compared are the number of steps to
/// the next choice, its state, what each thread is about to do there, and the [result](Run::set_result) of the run.
///
/// It runs the program in this number of random schedules. It shows nothing about states that these schedules do not
/// meet again: check how often they [did](StatesReport::met_again).
///
/// ```
/// use std::sync::Arc;
///
/// use explore::{Closure, validate_states};
/// use lockdep::{Mutex, lock_classes};
///
/// lock_classes! {
///     leaf Number = "number";
/// }
///
/// /// Two threads write a number with this digest, and it matters which of them is last.
/// fn writers(digest: fn(&u64) -> u64) -> Closure {
///     Closure::new("writers", move |cx| {
///         let number = Arc::new(Mutex::<Number, u64>::new(0).with_state_digest(digest));
///         let writers = [1, 2].map(|n| {
///             let number = Arc::clone(&number);
///             cx.spawn("writer", move |cx| {
///                 // What they write does not depend on what they find, and they use nothing of what they read.
///                 lockdep::without_history(|| *number.lock_leaf(cx) = n);
///                 lockdep::without_history(|| drop(number.lock_leaf(cx)));
///             })
///         });
///         writers.into_iter().for_each(|writer| writer.join(cx).unwrap());
///         let last = *number.lock_leaf(cx);
///         if last == 1 {
///             *number.lock_leaf(cx) = 0;
///         }
///     })
/// }
///
/// let report = validate_states(&writers(|number| *number), 1, 100).unwrap();
/// assert!(report.met_again > 0);
/// // The digest must distinguish what other code can distinguish.
/// validate_states(&writers(|_| 0), 1, 100).unwrap_err();
/// ```
///
/// # Errors
/// Two states that the explorer takes for one.
pub fn validate_states<P: Program>(program: &P, seed: u64, schedules: u64) -> Result<StatesReport, StateMismatch> {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let left = Arc::new(Mutex::new(String::new()));
    let (theirs, ours, by, judge) = (Rc::clone(&seen), Arc::clone(&left), program.clone(), program.clone());
    let domain = Domain::exploring(None);
    let reports = Arc::clone(&domain);
    let ended = move |halt: Option<Halt>| {
        let left = std::mem::take(&mut *left.lock().unwrap_or_else(PoisonError::into_inner));
        reports.take_reports();
        let mut seen = theirs.borrow_mut();
        let text = halt.map_or(left, |halt| judge.halted(&halt).detail);
        seen.note(look(|model| model.steps()), To::End(text));
        seen.report.schedules += 1;
        if seen.wrong.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let scheduler = Noting(Random::new(seed, schedules), Rc::clone(&seen));
    let focused = program.is_focused();
    Explore { focused, ..Explore::default() }.run(scheduler, ended, move || {
        let result = RefCell::new(String::new());
        let run = Run::new(&domain, false, false).with_result(&result);
        let found = lockdep::enter(&domain, "main", |cx| by.run(cx, &run));
        *ours.lock().unwrap_or_else(PoisonError::into_inner) = format!("{}{found:?}", result.into_inner());
    });
    let seen = seen.borrow();
    match &seen.wrong {
        None => Ok(seen.report),
        Some((before, now)) => Err(StateMismatch {
            program: program.name().to_owned(),
            schedule: seen.report.schedules,
            before: before.to_string(),
            now: now.to_string(),
        }),
    }
}
