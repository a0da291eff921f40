//! Every schedule with at most a number of preemptions: iterative context bounding, after CHESS (Musuvathi and
//! Qadeer, PLDI 2007), with three reductions that lose no outcome. The argument for them is in
//! `docs/verification.md`. That they lose none is tested on random programs, by what the programs' threads find.
//!
//! A *preemption* is a switch away from a thread that could go on. When a thread blocks or ends, choosing the next
//! one is free. If a time-out fires while something else could run, this counts as one more, and also if only
//! time-outs are left and it is not the oldest. A thread that is about to raise an interrupt can be switched away
//! from for free, because the interrupt may arrive later.
//!
//! Two steps are *independent* if neither writes what the other touches: then they have the same result in either
//! order. A lock is only read if it is taken and released within one step and its guard was not lent out for
//! writing, or if it is taken for reading. Only threads that want to write it can see a difference then.
//!
//! The search is depth-first over choices, the latest first:
//!
//! * **Sliding.** A preemption before a step that is independent of everything that runs until the preempted thread
//!   goes on has the same result as a preemption after that step. The later one has been searched by then, so the
//!   earlier one is skipped. What runs meanwhile is known from that search. So every thread that could run before
//!   the step must be able to run after it; otherwise what it might have done is not known.
//! * **Joining.** Where a thread has blocked or ended, what can follow depends only on the state and on the
//!   preemptions left. Where both have been met before, nothing new can follow. The state consists of what threads
//!   have seen and of the contents of objects, see [`Model::state`]. In which order threads took a lock only to read
//!   is no part of it.
//! * **Sleeping.** A choice that was searched at a point need not be made later in the schedules that follow from
//!   that point, until something has touched what its thread would touch: to make the choice later has the same
//!   result as to have made it first.

mod objects;
mod point;

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use lockdep::{Halt, Touch, look};
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

use objects::Objects;
use point::{Node, Searched, note_segment};

pub(super) use point::{Choice, choices, state};

/// What is known of a state that was met before.
#[derive(Debug)]
struct Met {
    left: u8,
    /// The threads that were asleep, as bits.
    asleep: u128,
    /// For threads that were preempted when it was met: what other threads touch from there on before they go on.
    meanwhile: Vec<(u8, Objects)>,
}

/// A hasher of values that are hashes already.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

/// The most states that are kept, a few hundred megabytes. A state that is met after that is searched each time it
/// is met, which is slower and loses nothing.
const MOST_MET: usize = 4_000_000;

/// Counts of a search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Schedules run.
    pub schedules: u64,
    /// Preemptions that were skipped because they slide.
    pub slid: u64,
    /// Points that were skipped because their states were met before.
    pub joined: u64,
    /// Choices that were skipped because their thread was asleep.
    pub asleep: u64,
    /// States that did not fit into memory, counted each time they were met.
    pub forgotten: u64,
}

/// A scheduler that searches up to one bound.
///
/// ```
/// use explore::schedulers::{Bounded, Shared};
/// use lockdep::{AtomicU64, Domain, Explore, enter};
///
/// let search = Shared::new(Bounded::new(1, true));
/// let schedules = Explore::default().until_failure(search.clone(), || {
///     enter(&Domain::exploring(None), "main", |cx| {
///         let sum = std::sync::Arc::new(AtomicU64::new(0));
///         let theirs = sum.clone();
///         let other = cx.spawn("other", move |_| theirs.fetch_add(1));
///         sum.fetch_add(1);
///         other.join(cx).unwrap();
///         assert_eq!(sum.load(), 2);
///     });
/// });
/// assert!(schedules.is_ok() && search.borrow().is_exhausted());
/// ```
#[derive(Debug)]
pub struct Bounded {
    bound: u8,
    reduce: bool,
    path: Vec<Node>,
    depth: usize,
    met: HashMap<u64, Met, BuildHasherDefault<AsIs>>,
    counts: Counts,
    done: bool,
    /// A choice was left out because it costs more than the bound allows.
    refused: Cell<bool>,
    started: bool,
    touched: Vec<Touch>,
    /// Points that are no longer in use, kept for their memory.
    spare: Vec<Node>,
    /// Of several parts that share the work: the index of this one, and their number.
    part: (u32, u32),
    /// Of several searchers that share the part: the index of this one, and their number.
    job: (u32, u32),
    /// The lengths of the blocks in which parts share the work, and searchers a part.
    blocks: [usize; 2],
    /// What differed although the choices were the same: the program is not deterministic.
    pub diverged: Option<String>,
}

/// Returns the length of the blocks in which first preemptions are dealt out, in points. A preemption slides from
/// one point of a block to the next. After the last point of a block it is run, because what follows belongs to
/// another searcher. So blocks are long enough that most preemptions still slide, and short enough that every
/// searcher has some: `docs/campaign.md` has the measurements.
fn block(shares: u32) -> usize {
    (256 / u64::from(shares.max(1)).pow(2)).max(8) as usize
}

impl Bounded {
    /// Makes a search for every schedule with at most `bound` preemptions. Without `reduce`, equivalent schedules
    /// are run, too.
    pub fn new(bound: u8, reduce: bool) -> Self {
        Self {
            bound,
            reduce,
            path: Vec::new(),
            depth: 0,
            met: HashMap::default(),
            counts: Counts::default(),
            done: false,
            refused: Cell::new(false),
            started: false,
            touched: Vec::new(),
            spare: Vec::new(),
            part: (0, 1),
            job: (0, 1),
            blocks: [block(1); 2],
            diverged: None,
        }
    }

    /// Restricts the search to its share of the schedules with a preemption, divided by the point of the first
    /// preemption. The first searcher of all also has the schedules without one. `part`: the index of the part and
    /// the number of parts. `job`: the index of the searcher in that part, and their number, which may differ from
    /// part to part.
    pub fn share(mut self, part: (u32, u32), job: (u32, u32)) -> Self {
        (self.part, self.job) = ((part.0, part.1.max(1)), (job.0, job.1.max(1)));
        self.blocks = [block(self.part.1), block(self.part.1 * self.job.1)];
        self
    }

    /// Sets the lengths of the blocks in which first preemptions are dealt out, to parts and within a part. All
    /// searchers must agree on the first length, and all searchers of a part on both.
    pub fn in_blocks_of(mut self, points: [usize; 2]) -> Self {
        self.blocks = points.map(|points| points.max(1));
        self
    }

    /// Returns the counts so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns whether every schedule within the bound has been searched.
    pub fn is_exhausted(&self) -> bool {
        self.done
    }

    /// Returns whether every schedule of its share has been searched, whatever its number of preemptions: no choice
    /// was left out because of the bound. Then a search with a larger bound does the same.
    pub fn is_complete(&self) -> bool {
        self.done && !self.refused.get()
    }

    /// Returns whether the schedule that runs, or has just run, belongs to this searcher's share.
    pub fn is_mine(&self) -> bool {
        let first = self.path.iter().position(|node| node.choices[node.taken].cost > 0);
        match first {
            None => self.part.0 == 0 && self.job.0 == 0,
            Some(depth) => self.owns(depth),
        }
    }

    fn owns(&self, depth: usize) -> bool {
        let [block, inner] = self.blocks;
        let (part, of) = (self.part.0 as usize, self.part.1 as usize);
        if depth / block % of != part {
            return false;
        }
        // The points of the part, numbered consecutively.
        let place = depth / block / of * block + depth % block;
        place / inner % self.job.1 as usize == self.job.0 as usize
    }

    /// Returns whether a choice is within the bound, and in this searcher's share.
    fn affords(&self, node: &Node, choice: Choice, depth: usize) -> bool {
        if node.spent + choice.cost > self.bound {
            self.refused.set(true);
            return false;
        }
        let first = node.spent == 0 && choice.cost > 0;
        !first || self.owns(depth)
    }

    /// Ends the last schedule: adds what its steps show about preemptions that are still open.
    fn finish(&mut self) {
        for at in 0..self.path.len() {
            if self.path[at].run.is_none() {
                self.path[at].run = Some(self.run(at));
            }
            let node = &self.path[at];
            let Some(thread) = node.current else { continue };
            if node.choices[node.taken].thread == thread {
                continue;
            }
            let touched = self.meanwhile(at, thread);
            self.path[at].meanwhile.join(&touched);
        }
    }

    /// Returns what the thread that was chosen at a point touches until it can no longer go on, if it is not
    /// preempted.
    fn run(&self, from: usize) -> Objects {
        let thread = self.path[from].choices[self.path[from].taken].thread;
        let mut run = Objects::NONE;
        for (at, node) in self.path.iter().enumerate().skip(from) {
            if at > from && (node.current != Some(thread) || node.choices[node.taken].thread != thread) {
                break;
            }
            for touch in &node.segment {
                if touch.thread != usize::from(thread) {
                    return run;
                }
                run.add(touch);
            }
        }
        run
    }

    /// Returns what threads other than `thread` touch from a point on, until `thread` goes on.
    fn meanwhile(&mut self, from: usize, thread: u8) -> Objects {
        let mut end = from;
        let mut joined = Objects::NONE;
        while end < self.path.len() {
            if end > from && self.path[end].joined {
                // What is known of the joined point is used here.
                let met = self.path[end].joins.and_then(|state| self.met.get(&state));
                let asleep = self.path[end].asleep_bits();
                let met = met.filter(|met| met.asleep & !asleep == 0 && !self.path[end].returns);
                let known = met.and_then(|met| met.meanwhile.iter().find(|(t, _)| *t == thread));
                joined.join(&known.map_or(Objects::ALL, |(_, touched)| *touched));
            }
            end += 1;
            if self.path[end - 1].segment.iter().any(|touch| touch.thread == usize::from(thread)) {
                break;
            }
        }
        // Backwards, so that each point on the way learns what follows it.
        let mut touched = joined;
        for at in (from..end).rev() {
            let segment = std::mem::take(&mut self.path[at].segment);
            let theirs = segment.iter().take_while(|touch| touch.thread != usize::from(thread));
            theirs.for_each(|touch| touched.add(touch));
            self.path[at].segment = segment;
            if at > from
                && !self.path[at].joined
                && let Some(state) = self.path[at].joins
                && let Some(met) = self.met.get_mut(&state)
            {
                match met.meanwhile.iter_mut().find(|(t, _)| *t == thread) {
                    Some((_, known)) => known.join(&touched),
                    None => met.meanwhile.push((thread, touched)),
                }
            }
        }
        touched
    }

    /// Sets the next alternative, at the deepest point that has one left. Returns whether there is one.
    fn backtrack(&mut self) -> bool {
        while let Some(mut node) = self.path.pop() {
            let taken = node.choices[node.taken];
            let mut touched = node.meanwhile;
            node.searched.iter().for_each(|searched| touched.join(&searched.touched));
            node.searched.push(Searched { choice: taken, touched, run: node.run.take().unwrap_or(Objects::ALL) });
            if node.taken == 0 {
                node.segment.iter().for_each(|touch| node.step.add(touch));
            }
            let depth = self.path.len();
            while !node.closed && node.taken + 1 < node.choices.len() {
                node.taken += 1;
                let choice = node.choices[node.taken];
                if !self.affords(&node, choice, depth) {
                    continue;
                }
                if node.is_asleep(choice.thread) {
                    self.counts.asleep += 1;
                    continue;
                }
                if let Some(slides) = self.slides(&node, choice) {
                    self.counts.slid += 1;
                    node.searched.push(slides);
                    continue;
                }
                node.meanwhile = Objects::NONE;
                node.segment.clear();
                self.path.push(node);
                return true;
            }
            // What was searched here may serve the point before, if that point's thread just went on.
            if let Some(before) = self.path.last_mut()
                && node.current.is_some()
                && before.current == node.current
                && before.choices[before.taken].thread == before.current.unwrap_or(u8::MAX)
                // A thread that can no longer run there is not among what was searched, and might have run in
                // between.
                && before.choices.iter().all(|choice| node.choices.iter().any(|later| later.thread == choice.thread))
                && before.segment.iter().all(|touch| before.current.is_some_and(|by| touch.thread == usize::from(by)))
            {
                std::mem::swap(&mut before.after, &mut node.searched);
            }
            self.spare.push(node);
        }
        false
    }

    /// Returns the later alternative, which has been searched, if to preempt here has the same result as to preempt
    /// one step later.
    fn slides(&self, node: &Node, choice: Choice) -> Option<Searched> {
        if !self.reduce || choice.cost == 0 {
            return None;
        }
        // A thread that the step in between has woken is about to do something else there.
        let later = node.after.iter().find(|searched| searched.choice == choice)?;
        (Some(choice.thread) != node.current && !later.touched.meets(&node.step)).then_some(*later)
    }
}

impl Scheduler for Bounded {
    fn new_execution(&mut self) -> Option<Schedule> {
        if self.done || self.diverged.is_some() {
            return None;
        }
        if self.started {
            look_at_end(self);
            self.counts.schedules += u64::from(self.is_mine());
            self.finish();
            if !self.backtrack() {
                self.done = true;
                return None;
            }
        }
        self.started = true;
        self.depth = 0;
        Some(Schedule::new(0))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, _: bool) -> Option<TaskId> {
        let at = self.depth;
        self.depth += 1;
        look(|model| {
            model.take_touched(&mut self.touched);
            if at > 0 {
                note_segment(&mut self.path[at - 1], &self.touched);
            }
            let mark = (model.steps(), runnable.len());
            if let Some(node) = self.path.get(at) {
                let next = usize::from(node.choices[node.taken].thread);
                if node.mark != mark || !runnable.iter().any(|task| usize::from(task.id()) == next) {
                    let there = format!("step {} with {} threads", mark.0, mark.1);
                    self.diverged = Some(format!("point {at}: {there} where {:?} was before", node.mark));
                    return None;
                }
                return Some(TaskId::from(next));
            }
            let current = current.map(usize::from);
            let current = current.filter(|thread| model.goes_on(*thread));
            let mut node = self.spare.pop().unwrap_or_default();
            node.begin(current.map(|thread| thread as u8), mark);
            choices(model, runnable, node.current, &mut node.choices);
            if let Some(last) = self.path.last() {
                (node.spent, node.closed) = (last.spent + last.choices[last.taken].cost, last.closed);
            }
            if self.reduce && !node.closed {
                if let Some(last) = self.path.last() {
                    last.still_asleep(&mut node.asleep);
                }
                node.fired = model.fired();
                if node.current.is_none()
                    && let Some(before) = self.join(&mut node, state(model, runnable), mark.0)
                {
                    model.stop(Halt::Livelock(mark.0, mark.0 - before));
                    return None;
                }
                let awake = |choice: &Choice| self.affords(&node, *choice, at) && !node.is_asleep(choice.thread);
                match node.choices.iter().position(awake) {
                    Some(awake) => node.taken = awake,
                    None => node.closed = true,
                }
            }
            let first = node.choices[node.taken].thread;
            self.path.push(node);
            Some(TaskId::from(usize::from(first)))
        })
    }

    fn next_u64(&mut self) -> u64 {
        0
    }
}

impl Bounded {
    /// Joins the point, where the choice is free, if its state was met before with as many preemptions left. If it
    /// was met in this very schedule and nothing was spent since, the schedule can loop for ever. Then the result is
    /// the step in which it was met.
    fn join(&mut self, node: &mut Node, state: u64, step: usize) -> Option<usize> {
        let left = self.bound - node.spent;
        let asleep = node.asleep_bits();
        node.joins = Some(state);
        let full = self.met.len() >= MOST_MET;
        match self.met.get_mut(&state) {
            Some(met) if met.left >= left => {
                let before = self.path.iter().rev().find(|before| before.joins == Some(state));
                let round = before.filter(|before| before.spent == node.spent && before.mark.0 < step);
                if let Some(before) = round {
                    // A waiting thread gives up some time where time passes, and this is no part of the state.
                    return (before.fired == node.fired).then_some(before.mark.0);
                }
                (node.closed, node.joined, node.returns) = (true, true, before.is_some());
                self.counts.joined += 1;
            }
            // What was known of it was for fewer preemptions.
            Some(met) => *met = Met { left, asleep, meanwhile: Vec::new() },
            None if full => self.counts.forgotten += 1,
            None => {
                self.met.insert(state, Met { left, asleep, meanwhile: Vec::new() });
            }
        }
        None
    }
}

/// Adds what was touched after the last point of the schedule.
fn look_at_end(search: &mut Bounded) {
    look(|model| model.take_touched(&mut search.touched));
    if let Some(last) = search.path.last_mut() {
        note_segment(last, &search.touched);
    }
}
