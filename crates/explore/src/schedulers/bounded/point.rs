//! The points of a schedule at which there is a choice, and the choices.

use lockdep::{Model, ObjectId, Touch};
use shuttle::scheduler::Task;

use super::objects::Objects;

/// A thread that could be chosen, and its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::schedulers) struct Choice {
    pub(in crate::schedulers) thread: u8,
    pub(in crate::schedulers) cost: u8,
    /// Its time-out fires.
    pub(super) timer: bool,
    /// The object of its next operation.
    pub(super) object: ObjectId,
}

/// An alternative that has been searched completely.
#[derive(Clone, Copy, Debug)]
pub(super) struct Searched {
    pub(super) choice: Choice,
    /// What threads other than the preempted one touch in it before that thread goes on, also in the alternatives
    /// searched before.
    pub(super) touched: Objects,
    /// What the thread touches if it runs until it can no longer go on.
    pub(super) run: Objects,
}

/// A thread that need not be chosen: to let it run here was searched at an earlier point, and nothing that it would
/// touch has been touched since. The cost of a time-out depends on which other threads could run, so a thread does
/// not sleep at a time-out, and after one fires no thread is asleep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asleep {
    pub(super) thread: u8,
    pub(super) run: Objects,
}

/// A point of the current schedule at which there was a choice.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// The thread that ran before, if it could go on: to choose another is a preemption.
    pub(super) current: Option<u8>,
    pub(super) choices: Vec<Choice>,
    /// The index of the present choice.
    pub(super) taken: usize,
    /// The preemptions before this point.
    pub(super) spent: u8,
    /// Only the first choice is to be tried from here, because the point is not new.
    pub(super) closed: bool,
    pub(super) searched: Vec<Searched>,
    pub(super) asleep: Vec<Asleep>,
    /// What the thread of the present choice touches until it can no longer go on.
    pub(super) run: Option<Objects>,
    /// The alternatives that were searched at the point after this one, if a preemption here could slide there.
    pub(super) after: Vec<Searched>,
    /// The step of the schedule, and how many threads could run. It is the same whenever the point is met again.
    pub(super) mark: (usize, usize),
    /// What was touched from here to the next point, and by which threads.
    pub(super) segment: Vec<Touch>,
    /// The state here, at points where joining is possible.
    pub(super) joins: Option<u64>,
    /// The state was met before: what can follow is known, or will be.
    pub(super) joined: bool,
    /// How many time-outs had fired by then.
    pub(super) fired: u64,
    /// It was met before in this schedule: what can follow is still being searched.
    pub(super) returns: bool,
    /// What is touched by the step with which the current thread goes on.
    pub(super) step: Objects,
    /// What is touched in the present alternative before the thread that was preempted here goes on.
    pub(super) meanwhile: Objects,
}

impl Node {
    /// Makes a new point of an unused one.
    pub(super) fn begin(&mut self, current: Option<u8>, mark: (usize, usize)) {
        let Self { mut choices, mut searched, mut asleep, mut after, mut segment, .. } = std::mem::take(self);
        choices.clear();
        searched.clear();
        asleep.clear();
        after.clear();
        segment.clear();
        *self = Self { current, mark, choices, searched, asleep, after, segment, ..Self::default() };
    }

    pub(super) fn is_asleep(&self, thread: u8) -> bool {
        self.asleep.iter().any(|asleep| asleep.thread == thread)
    }

    pub(super) fn asleep_bits(&self) -> u128 {
        self.asleep.iter().fold(0, |bits, asleep| bits | 1 << (asleep.thread % 128))
    }

    /// Adds the threads that are asleep at the next point: those that were asleep here, and those that have been
    /// searched here, unless the thread has run or something it would touch was touched.
    pub(super) fn still_asleep(&self, into: &mut Vec<Asleep>) {
        if self.choices[self.taken].timer {
            return;
        }
        let mut touched = Objects::NONE;
        self.segment.iter().for_each(|touch| touched.add(touch));
        let ran = |thread: u8| self.segment.iter().any(|touch| touch.thread == usize::from(thread));
        let searched = self.searched.iter().filter(|s| !s.choice.timer);
        let searched = searched.map(|s| Asleep { thread: s.choice.thread, run: s.run });
        let asleep = self.asleep.iter().copied().chain(searched);
        into.extend(asleep.filter(|asleep| !ran(asleep.thread) && !asleep.run.meets(&touched)));
    }
}

/// Lists the threads that can be chosen, the cheapest first. `current`: the thread that could go on, if there is
/// one.
pub(in crate::schedulers) fn choices(model: &Model, runnable: &[&Task], current: Option<u8>, into: &mut Vec<Choice>) {
    let threads = || runnable.iter().map(|task| usize::from(task.id()));
    let timers_only = threads().all(|thread| model.timer(thread).is_some());
    let oldest = threads().filter_map(|thread| model.timer(thread)).min();
    into.extend(threads().map(|thread| {
        let timer = model.timer(thread);
        let preempts = current.is_some_and(|current| usize::from(current) != thread);
        let early = timer.is_some() && !(timers_only && timer == oldest);
        Choice {
            thread: thread as u8,
            cost: u8::from(preempts) + u8::from(early),
            timer: timer.is_some(),
            object: model.pending(thread).object,
        }
    }));
    into.sort_unstable_by_key(|choice| (choice.cost, choice.thread));
}

/// Returns a number for the state, which also covers which time-outs are older.
pub(in crate::schedulers) fn state(model: &Model, runnable: &[&Task]) -> u64 {
    let mut state = model.state();
    let mut last = 0;
    let since = |task: &&&Task| model.timer(usize::from(task.id()));
    while let Some(next) = runnable.iter().filter(|task| since(task).is_some_and(|t| t > last)).min_by_key(since) {
        last = since(&next).unwrap_or_default();
        state = state.rotate_left(7).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (usize::from(next.id()) as u64 + 1);
    }
    state
}

pub(super) fn note_segment(node: &mut Node, touched: &[Touch]) {
    if node.segment.is_empty() {
        node.segment.extend_from_slice(touched);
    }
}
