//! What the model calls a state is one: in every scenario, wherever the same state is met and the same thread is chosen,
//! the same comes of it, whatever led there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use card_memory::MemoryCard;
use host::World;
use lockdep::{Domain, Explore, Halt, look};
use scenario::Scenario;
use shuttle::scheduler::{RandomScheduler, Schedule, Scheduler, Task, TaskId};

/// What comes of a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Comes {
    /// The next state, and who can run there and what each is about to do.
    Next(u64, Vec<(usize, String)>),
    /// The end, and what there was.
    End(String),
}

#[derive(Default)]
struct Seen {
    comes: HashMap<(u64, usize), Comes>,
    last: Option<(u64, usize)>,
    again: usize,
    wrong: Option<String>,
}

impl Seen {
    fn note(&mut self, comes: Comes) {
        let Some(last) = self.last.take() else { return };
        match self.comes.get(&last) {
            None => drop(self.comes.insert(last, comes)),
            Some(before) if *before == comes => self.again += 1,
            Some(before) => self.wrong = Some(format!("{before:?} before, and now {comes:?}")),
        }
    }
}

/// Random choices, each with what came of it. Now and then a thread runs for a while.
struct Noting(RandomScheduler, Rc<RefCell<Seen>>);

impl Scheduler for Noting {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.0.new_execution()
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yields: bool) -> Option<TaskId> {
        let on = current.filter(|current| runnable.iter().any(|task| task.id() == *current));
        let (state, ops) = look(|model| {
            let threads = runnable.iter().map(|task| usize::from(task.id()));
            let mut timers: Vec<_> = threads.clone().filter_map(|t| Some((model.timer(t)?, t))).collect();
            timers.sort_unstable();
            let timers: Vec<_> = timers.into_iter().map(|(_, thread)| thread).collect();
            let op = |thread| {
                let op = model.pending(thread);
                (thread, format!("{:?} {} {}", op.kind, op.label, op.at))
            };
            (lockdep::digest(&(model.state(), timers)), threads.map(op).collect())
        });
        let mut seen = self.1.borrow_mut();
        seen.note(Comes::Next(state, ops));
        let ready = on.filter(|on| look(|model| model.timer(usize::from(*on)).is_none()));
        let next = match ready {
            Some(on) if !self.0.next_u64().is_multiple_of(8) => Some(on),
            _ => self.0.next_task(runnable, current, yields),
        };
        seen.last = next.map(|next| (state, usize::from(next)));
        next
    }

    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
}

fn tell(domain: &Arc<Domain>, scenario: &Scenario) -> String {
    let world = World::of(MemoryCard::new(scenario.card.clone()), domain);
    let outcome = lockdep::enter(domain, "main", |cx| scenario::run(cx, scenario, &world, &mut ()));
    format!("{:?} {:?} {:?}", outcome.snapshot, outcome.verdicts, outcome.violations)
}

/// Tells it so often; how often a choice was met again.
fn again(scenario: &Scenario, schedules: usize) -> usize {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let left = Arc::new(std::sync::Mutex::new(String::new()));
    let (theirs, ours, left_by) = (Rc::clone(&seen), Arc::clone(&left), scenario.clone());
    let domain = Domain::exploring(None);
    let ended = move |halt: Option<Halt>| {
        let left = std::mem::take(&mut *left.lock().unwrap());
        let mut seen = theirs.borrow_mut();
        seen.note(Comes::End(halt.map_or(left, |halt| halt.to_string())));
        if seen.wrong.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let scheduler = Noting(RandomScheduler::new_from_seed(1, schedules), Rc::clone(&seen));
    Explore { focused: true, ..Explore::default() }.run(scheduler, ended, move || {
        *ours.lock().unwrap() = tell(&domain, &left_by);
    });
    let seen = seen.borrow();
    assert_eq!(seen.wrong, None, "{}", scenario.name);
    seen.again
}

#[test]
fn the_same_state_leads_to_the_same() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let schedules = std::env::var("SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let mut total = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let scenario = scenario::parse(&std::fs::read_to_string(file.unwrap().path()).unwrap()).unwrap();
        if scenario.cards.iter().any(|card| card.name == "memory") {
            let again = again(&scenario, schedules);
            println!("{}: {again}", scenario.name);
            total += again;
        }
    }
    assert!(total > 1_000, "states were to be met in several ways: {total}");
}
