//! Every schedule with at most so many preemptions: iterative context bounding, after CHESS (Musuvathi
//! and Qadeer, PLDI 2007), with two reductions that lose no behaviour. The argument for them is in
//! `docs/verification.md`.
//!
//! A *preemption* is a switch away from a thread that could go on. When a thread blocks or ends, to
//! choose the next is free. That a time-out fires while something else could run counts as one more,
//! and so does, where nothing but time-outs is left, that it is not the oldest.
//!
//! The search is depth-first over choices, the latest first:
//!
//! * **Sliding.** A preemption before a step that has nothing to do with what runs until the preempted
//!   thread goes on is as good as one after that step. The later one has been searched by then, so the
//!   earlier one is passed over.
//! * **Joining.** Where a thread has blocked or ended, what can follow depends only on what has happened,
//!   as a partial order of what depends on one another, and on the preemptions left. Where both have
//!   been met before, nothing new can follow.

use std::collections::HashMap;

use lockdep::{Model, ObjectId, look};
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

/// Objects, as bits. Two objects may share a bit: then less is passed over, never more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Objects([u64; 8]);

impl Objects {
    const NONE: Self = Self([0; 8]);
    const ALL: Self = Self([u64::MAX; 8]);

    fn add(&mut self, object: ObjectId) {
        let bit = object.index() % 512;
        self.0[bit / 64] |= 1 << (bit % 64);
    }

    fn join(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(ours, theirs)| *ours |= theirs);
    }

    fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).any(|(ours, theirs)| ours & theirs != 0)
    }
}

/// What a thread that could be chosen costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    thread: u8,
    cost: u8,
    /// Its time-out fires.
    timer: bool,
    /// What it is about to do something to.
    object: ObjectId,
}

/// An alternative that has been searched to its end.
#[derive(Clone, Copy, Debug)]
struct Searched {
    choice: Choice,
    /// What threads other than the preempted one touch in it before that one goes on; and in those
    /// searched before it.
    touched: Objects,
    /// What the thread touches if it runs until it can no longer.
    run: Objects,
}

/// A thread that need not be chosen: to let it run here was searched at an earlier point, and nothing
/// that it would touch has been touched since. What a time-out costs depends on who else could run, so
/// none sleeps, and none leaves anybody asleep.
#[derive(Clone, Copy, Debug)]
struct Asleep {
    thread: u8,
    run: Objects,
}

/// A point of the current schedule where there was a choice.
#[derive(Debug)]
struct Node {
    /// The thread that ran before, if it could go on: to choose another is a preemption of it.
    current: Option<u8>,
    choices: Vec<Choice>,
    /// Which of them is taken now.
    taken: usize,
    /// Preemptions before this point.
    spent: u8,
    /// Nothing but the first choice is to be tried from here: it is not new.
    closed: bool,
    searched: Vec<Searched>,
    asleep: Vec<Asleep>,
    /// What the thread taken now touches until it can no longer go on.
    run: Option<Objects>,
    /// From the point after: what became of the alternatives there, if preempting here could slide there.
    after: Vec<Searched>,
    /// What was touched from here to the next point, by whom.
    segment: Vec<(u8, ObjectId)>,
    /// The trace up to here, at points where joining is looked for.
    joins: Option<u64>,
    /// It was met before: what can follow is known.
    joined: bool,
    /// What the step touches that goes on with the current thread.
    step: Objects,
    /// What is touched in the alternative taken now before the thread preempted here goes on.
    meanwhile: Objects,
}

/// What is known of a point that was met before.
#[derive(Debug)]
struct Met {
    left: u8,
    /// The threads that were asleep, as bits.
    asleep: u64,
    /// For threads preempted when it was met: what others touch from there on before they go on.
    meanwhile: Vec<(u8, Objects)>,
}

/// How the search went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Schedules run.
    pub schedules: u64,
    /// Preemptions passed over because they slide.
    pub slid: u64,
    /// Points passed over because they were met before.
    pub joined: u64,
    /// Choices passed over because their thread was asleep.
    pub asleep: u64,
}

/// The scheduler: one bound.
#[derive(Debug)]
pub struct Bounded {
    bound: u8,
    reduce: bool,
    path: Vec<Node>,
    depth: usize,
    met: HashMap<u64, Met>,
    counts: Counts,
    done: bool,
    started: bool,
    touched: Vec<(usize, ObjectId)>,
    /// Of several searchers that share the work: which, and of how many.
    share: (u32, u32),
    /// What went otherwise than before with the same choices.
    pub diverged: Option<String>,
}

/// First preemptions are dealt out in blocks of so many points, so that most still slide.
const BLOCK: usize = 64;

impl Bounded {
    /// Searches every schedule with at most `bound` preemptions. Without `reduce`, equivalent ones too.
    pub fn new(bound: u8, reduce: bool) -> Self {
        Self {
            bound,
            reduce,
            path: Vec::new(),
            depth: 0,
            met: HashMap::new(),
            counts: Counts::default(),
            done: false,
            started: false,
            touched: Vec::new(),
            share: (0, 1),
            diverged: None,
        }
    }

    /// Searches only its share: the `of`-th part of all schedules with a preemption, by where the first
    /// one is; and, the first of them, those without.
    pub fn share(mut self, index: u32, of: u32) -> Self {
        self.share = (index, of.max(1));
        self
    }

    /// How it went so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether every schedule within the bound has been searched.
    pub fn is_exhausted(&self) -> bool {
        self.done
    }

    /// Whether the schedule that runs, or has just run, is of this searcher's share.
    pub fn is_mine(&self) -> bool {
        let first = self.path.iter().position(|node| node.choices[node.taken].cost > 0);
        match first {
            None => self.share.0 == 0,
            Some(depth) => self.owns(depth),
        }
    }

    fn owns(&self, depth: usize) -> bool {
        (depth / BLOCK) as u32 % self.share.1 == self.share.0
    }

    /// Whether a choice is within the bound, and of this searcher's share.
    fn affords(&self, node: &Node, choice: Choice, depth: usize) -> bool {
        let first = node.spent == 0 && choice.cost > 0;
        node.spent + choice.cost <= self.bound && (!first || self.owns(depth))
    }

    /// Ends the last schedule: what its steps tell about preemptions still open.
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

    /// What the thread taken at a point touches until it can no longer go on, if it is let.
    fn run(&self, from: usize) -> Objects {
        let thread = self.path[from].choices[self.path[from].taken].thread;
        let mut run = Objects::NONE;
        for (at, node) in self.path.iter().enumerate().skip(from) {
            if at > from && (node.current != Some(thread) || node.choices[node.taken].thread != thread) {
                break;
            }
            for (by, object) in &node.segment {
                if *by != thread {
                    return run;
                }
                run.add(*object);
            }
        }
        run
    }

    /// What threads other than `thread` touch from a point on, until `thread` goes on.
    fn meanwhile(&mut self, from: usize, thread: u8) -> Objects {
        let mut end = from;
        let mut joined = Objects::NONE;
        'walk: while end < self.path.len() {
            if end > from && self.path[end].joined {
                // What is known of what can follow is what counts here.
                let met = self.path[end].joins.and_then(|trace| self.met.get(&trace));
                let asleep = self.path[end].asleep_bits();
                let met = met.filter(|met| met.asleep & !asleep == 0);
                let known = met.and_then(|met| met.meanwhile.iter().find(|(t, _)| *t == thread));
                joined.join(&known.map_or(Objects::ALL, |(_, touched)| *touched));
            }
            for (by, _) in &self.path[end].segment {
                if *by == thread {
                    end += 1;
                    break 'walk;
                }
            }
            end += 1;
        }
        // Backwards, so that each point met on the way learns what follows it.
        let mut touched = joined;
        for at in (from..end).rev() {
            let segment = std::mem::take(&mut self.path[at].segment);
            let until = segment.iter().position(|(by, _)| *by == thread).unwrap_or(segment.len());
            segment[..until].iter().for_each(|(_, object)| touched.add(*object));
            self.path[at].segment = segment;
            if at > from
                && !self.path[at].joined
                && let Some(trace) = self.path[at].joins
                && let Some(met) = self.met.get_mut(&trace)
            {
                match met.meanwhile.iter_mut().find(|(t, _)| *t == thread) {
                    Some((_, known)) => known.join(&touched),
                    None => met.meanwhile.push((thread, touched)),
                }
            }
        }
        touched
    }

    /// The next alternative of the deepest point that has one left; whether there is one.
    fn backtrack(&mut self) -> bool {
        while let Some(mut node) = self.path.pop() {
            let taken = node.choices[node.taken];
            let mut touched = node.meanwhile;
            node.searched.iter().for_each(|searched| touched.join(&searched.touched));
            node.searched.push(Searched { choice: taken, touched, run: node.run.take().unwrap_or(Objects::ALL) });
            if node.taken == 0 {
                node.segment.iter().for_each(|(_, object)| node.step.add(*object));
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
            // What was searched here may serve the point before, if that one's thread just went on.
            if let Some(before) = self.path.last_mut()
                && node.current.is_some()
                && before.current == node.current
                && before.choices[before.taken].thread == before.current.unwrap_or(u8::MAX)
                && before.segment.iter().all(|(by, _)| Some(*by) == before.current)
            {
                before.after = node.searched;
            }
        }
        false
    }

    /// Whether preempting here is as good as preempting one step later, which has been searched.
    fn slides(&self, node: &Node, choice: Choice) -> Option<Searched> {
        if !self.reduce || choice.cost == 0 {
            return None;
        }
        // A thread that the step between has woken is about to do something else there.
        let later = node.after.iter().find(|searched| searched.choice == choice)?;
        (Some(choice.thread) != node.current && !later.touched.meets(&node.step)).then_some(*later)
    }
}

impl Node {
    fn is_asleep(&self, thread: u8) -> bool {
        self.asleep.iter().any(|asleep| asleep.thread == thread)
    }

    fn asleep_bits(&self) -> u64 {
        self.asleep.iter().fold(0, |bits, asleep| bits | 1 << (asleep.thread % 64))
    }

    /// Who is asleep at the next point: who was, and who has been searched here, unless it has run or
    /// something it would touch was touched.
    fn still_asleep(&self) -> Vec<Asleep> {
        if self.choices[self.taken].timer {
            return Vec::new();
        }
        let mut touched = Objects::NONE;
        self.segment.iter().for_each(|(_, object)| touched.add(*object));
        let ran = |thread: u8| self.segment.iter().any(|(by, _)| *by == thread);
        let searched = self.searched.iter().filter(|s| !s.choice.timer);
        let searched = searched.map(|s| Asleep { thread: s.choice.thread, run: s.run });
        let asleep = self.asleep.iter().copied().chain(searched);
        asleep.filter(|asleep| !ran(asleep.thread) && !asleep.run.meets(&touched)).collect()
    }
}

/// What can be chosen, the cheapest first; `current` could go on if it is given.
fn choices(model: &Model, runnable: &[&Task], current: Option<u8>) -> Vec<Choice> {
    let threads = || runnable.iter().map(|task| usize::from(task.id()));
    let timers_only = threads().all(|thread| model.timer(thread).is_some());
    let oldest = threads().filter_map(|thread| model.timer(thread)).min();
    let mut choices: Vec<Choice> = threads()
        .map(|thread| {
            let timer = model.timer(thread);
            let preempts = current.is_some_and(|current| usize::from(current) != thread);
            let early = timer.is_some() && !(timers_only && timer == oldest);
            Choice {
                thread: thread as u8,
                cost: u8::from(preempts) + u8::from(early),
                timer: timer.is_some(),
                object: model.pending(thread).object,
            }
        })
        .collect();
    choices.sort_by_key(|choice| (choice.cost, choice.thread));
    choices
}

/// What has happened, and which time-outs are the older ones.
fn state(model: &Model, runnable: &[&Task]) -> u64 {
    let timers = runnable.iter().filter_map(|task| Some((model.timer(task.id().into())?, usize::from(task.id()))));
    let mut timers: Vec<(u64, usize)> = timers.collect();
    timers.sort_unstable();
    timers.iter().fold(model.trace(), |state, (_, thread)| state.rotate_left(7).wrapping_add(*thread as u64 + 1))
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
        let current = current.map(usize::from);
        let (current, choices, trace) = look(|model| {
            model.take_touched(&mut self.touched);
            let current =
                current.filter(|thread| model.threads()[*thread].is_enabled() && model.timer(*thread).is_none());
            let current = current.map(|thread| thread as u8);
            let choices = choices(model, runnable, current);
            (current, choices, state(model, runnable))
        });
        let at = self.depth;
        self.depth += 1;
        if at > 0 {
            note_segment(&mut self.path[at - 1], &self.touched);
        }
        if let Some(node) = self.path.get(at) {
            if node.choices != choices {
                self.diverged = Some(format!("point {at}: {choices:?} where {:?} was before", node.choices));
                return None;
            }
            return Some(TaskId::from(usize::from(node.choices[node.taken].thread)));
        }
        let (spent, closed) = match self.path.last() {
            None => (0, false),
            Some(last) => (last.spent + last.choices[last.taken].cost, last.closed),
        };
        let mut node = Node {
            current,
            choices,
            taken: 0,
            spent,
            closed,
            searched: Vec::new(),
            asleep: Vec::new(),
            run: None,
            after: Vec::new(),
            segment: Vec::new(),
            joins: None,
            joined: false,
            step: Objects::NONE,
            meanwhile: Objects::NONE,
        };
        if self.reduce && !closed {
            if let Some(last) = self.path.last() {
                node.asleep = last.still_asleep();
            }
            if current.is_none() {
                self.join(&mut node, trace);
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
    }

    fn next_u64(&mut self) -> u64 {
        0
    }
}

impl Bounded {
    /// Whether this point, where the choice is free, was met before with as much left.
    fn join(&mut self, node: &mut Node, trace: u64) {
        let left = self.bound - node.spent;
        let asleep = node.asleep_bits();
        node.joins = Some(trace);
        match self.met.get_mut(&trace) {
            Some(met) if met.left >= left => {
                (node.closed, node.joined) = (true, true);
                self.counts.joined += 1;
            }
            // What was known of it was for fewer preemptions.
            Some(met) => *met = Met { left, asleep, meanwhile: Vec::new() },
            None => {
                self.met.insert(trace, Met { left, asleep, meanwhile: Vec::new() });
            }
        }
    }
}

fn note_segment(node: &mut Node, touched: &[(usize, ObjectId)]) {
    if node.segment.is_empty() {
        node.segment.extend(touched.iter().map(|(thread, object)| (*thread as u8, *object)));
    }
}

/// What was touched after the last point of the schedule.
fn look_at_end(search: &mut Bounded) {
    look(|model| model.take_touched(&mut search.touched));
    if let Some(last) = search.path.last_mut() {
        note_segment(last, &search.touched);
    }
}
