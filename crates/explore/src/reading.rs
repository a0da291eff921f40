//! The facts that a story shows when it is read as a whole: which thread held what from when to when, which thread
//! waited for which, and which steps and resources there were. All forms of output use them. A place in a story is
//! an index into its rows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use crate::story::{Row, RowKind, Story};

/// A lock, from when it is taken to when it is released. If it is never released, it ends at the story's last row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockSpan {
    pub thread: usize,
    pub class: String,
    pub object: usize,
    pub from: usize,
    pub to: usize,
    /// How many locks its thread held already.
    pub depth: usize,
}

/// The kinds of waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitKind {
    Lock,
    Notification,
    Time,
    End,
}

/// The states of a thing: for each state, the row in which it begins, the row in which it ends, and its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct States {
    pub name: String,
    pub states: Vec<(usize, usize, String)>,
}

/// A thread could not go on after row `from`, up to row `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WaitSpan {
    pub thread: usize,
    pub kind: WaitKind,
    /// The class of the lock; empty if the thread waits for something else.
    pub class: String,
    /// Which lock of the class.
    pub what: String,
    /// The thread that held it, or whose end was waited for.
    pub whose: Option<usize>,
    pub from: usize,
    pub to: usize,
    /// The story ends with this wait.
    pub forever: bool,
}

/// A step of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StepSpan {
    pub thread: usize,
    pub text: String,
    /// Its result, if there is more to it than its text.
    pub end: Option<String>,
    pub from: usize,
    pub to: usize,
}

/// Another thread goes on, from row `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Switch {
    pub at: usize,
    pub from: usize,
    pub to: usize,
    /// The thread before it could have gone on.
    pub preempted: bool,
}

/// A resource, and the ranges of rows in which it existed.
pub(crate) type Presence = (String, Vec<(usize, usize)>);

/// The facts of a story.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub locks: Vec<LockSpan>,
    pub waits: Vec<WaitSpan>,
    pub steps: Vec<StepSpan>,
    pub switches: Vec<Switch>,
    /// Every resource in natural order, and when it existed.
    pub resources: Vec<Presence>,
    /// The things that have states, and when each was in which state.
    pub things: Vec<States>,
    /// The row in which the invariant broke. `None`: it was found at the end.
    pub broken: Option<usize>,
    /// The program names no classes that are always shown, so nothing is a detail.
    is_small_program: bool,
    small: BTreeSet<String>,
    /// For each class, its objects in the order in which they are met.
    objects: BTreeMap<String, Vec<usize>>,
    lives: HashMap<usize, usize>,
}

impl Reading {
    pub(crate) fn of(story: &Story) -> Self {
        let broken = story.rows.iter().position(|row| row.kind == RowKind::Violation);
        let mut reading = Self { broken, is_small_program: story.ordered.is_empty(), ..Self::default() };
        reading.find_lives(story);
        reading.find_locks(story);
        reading.find_waits(story);
        reading.find_ends(story);
        reading.find_steps(story);
        reading.find_resources(story);
        reading.find_switches(story);
        reading.find_small(story);
        reading
    }

    /// Returns whether a lock of this class is a detail: no lock was taken under it, no thread waits for it for
    /// ever, and it is not among the classes that are always shown. Where no classes are named, all are shown.
    pub(crate) fn is_small(&self, class: &str) -> bool {
        self.small.contains(class)
    }

    /// Returns whether a row is a detail.
    pub(crate) fn is_detail(&self, row: &Row) -> bool {
        match row.kind {
            RowKind::Acquire | RowKind::AcquireShared | RowKind::Try | RowKind::Release => self.is_small(&row.what),
            RowKind::Read | RowKind::Write | RowKind::Notify | RowKind::Wait | RowKind::Expire => {
                !self.is_small_program
            }
            RowKind::Start | RowKind::Spawn | RowKind::Join | RowKind::Exit | RowKind::State => true,
            _ => false,
        }
    }

    /// Returns the name of a lock: its class, and its number within the class if there are several.
    pub(crate) fn lock_name(&self, class: &str, object: usize) -> String {
        match self.objects.get(class) {
            Some(objects) if objects.len() > 1 => {
                let place = objects.iter().position(|other| *other == object).map_or(0, |place| place + 1);
                format!("{class} #{place}")
            }
            _ => class.to_owned(),
        }
    }

    /// Returns a row as a sentence whose subject is the thread.
    pub(crate) fn sentence(&self, story: &Story, row: &Row) -> String {
        let what = &row.what;
        let lock = || row.object.map_or_else(|| what.clone(), |object| self.lock_name(what, object));
        let life = || self.whose_life(row.object).map_or("a thread", |thread| name(story, thread));
        match row.kind {
            RowKind::Start => "starts to run".to_owned(),
            RowKind::Acquire => format!("takes {}", lock()),
            RowKind::AcquireShared => format!("takes {} for reading", lock()),
            RowKind::Try if row.held.last() == Some(what) => format!("tries {} and gets it", lock()),
            RowKind::Try => match self.holder(story, row) {
                Some(holder) => format!("tries {} in vain, which {} holds", lock(), name(story, holder)),
                None => format!("tries {} in vain", lock()),
            },
            RowKind::Release => format!("releases {}", lock()),
            RowKind::Read => format!("reads {what}"),
            RowKind::Write => format!("writes {what}"),
            RowKind::Wait => "waits for a notification".to_owned(),
            RowKind::Notify => "notifies waiters".to_owned(),
            RowKind::Interrupt => "raises an interrupt, and runs its handler".to_owned(),
            RowKind::Expire => "sees its time run out".to_owned(),
            RowKind::Spawn => format!("starts {}", life()),
            RowKind::Join => format!("sees {} end", life()),
            RowKind::Exit => "ends".to_owned(),
            RowKind::StepBegin => what.clone(),
            RowKind::StepEnd => format!("done: {what}"),
            RowKind::Make => format!("makes {what}"),
            RowKind::Unmake => format!("unmakes {what}"),
            RowKind::State => what.clone(),
            RowKind::Fault => format!("fails as planned: {what}"),
            RowKind::Violation => {
                let detail = what.strip_prefix(&story.invariant).map(|rest| rest.trim_start_matches([':', ' ']));
                format!("breaks {}: {}", story.invariant, detail.unwrap_or(what))
            }
            RowKind::Preempted => "preempted".to_owned(),
        }
    }

    /// Returns the thread that holds the lock of a row.
    fn holder(&self, story: &Story, row: &Row) -> Option<usize> {
        let at = story.rows.iter().position(|other| std::ptr::eq(other, row))?;
        let held = |lock: &&LockSpan| Some(lock.object) == row.object && lock.from < at && at <= lock.to;
        self.locks.iter().find(held).map(|lock| lock.thread)
    }

    /// Returns a wait as a sentence whose subject is the thread.
    pub(crate) fn waiting(&self, story: &Story, wait: &WaitSpan) -> String {
        let what = match (wait.kind, wait.whose) {
            (WaitKind::Lock, Some(holder)) => format!("{}, which {} holds", wait.what, name(story, holder)),
            (WaitKind::End, Some(whose)) => format!("the end of {}", name(story, whose)),
            (WaitKind::End, None) => "a thread to end".to_owned(),
            (WaitKind::Notification, _) => "a notification".to_owned(),
            (WaitKind::Time, _) => "its time to run out".to_owned(),
            (WaitKind::Lock, None) => wait.what.clone(),
        };
        format!("waits for {what}{}", if wait.forever { ", for ever" } else { "" })
    }

    /// Returns the thread whose life an object is.
    pub(crate) fn whose_life(&self, object: Option<usize>) -> Option<usize> {
        object.and_then(|object| self.lives.get(&object).copied())
    }

    fn find_lives(&mut self, story: &Story) {
        let ends = story.rows.iter().filter(|row| matches!(row.kind, RowKind::Start | RowKind::Exit));
        self.lives = ends.filter_map(|row| Some((row.object?, row.thread))).collect();
    }

    fn find_locks(&mut self, story: &Story) {
        let mut open: Vec<Vec<usize>> = vec![Vec::new(); story.threads.len()];
        for (at, row) in story.rows.iter().enumerate() {
            let (Some(held), Some(object)) = (open.get_mut(row.thread), row.object) else { continue };
            match row.kind {
                kind if takes(kind) && row.held.len() > held.len() => {
                    held.push(self.locks.len());
                    let (thread, class, depth) = (row.thread, row.what.clone(), held.len() - 1);
                    self.locks.push(LockSpan { thread, class, object, from: at, to: story.rows.len() - 1, depth });
                }
                RowKind::Release => {
                    if let Some(place) = held.iter().rposition(|lock| self.locks[*lock].object == object) {
                        self.locks[held.remove(place)].to = at;
                    }
                }
                _ => {}
            }
        }
        for row in story.rows.iter().filter(|row| takes(row.kind)) {
            let objects = self.objects.entry(row.what.clone()).or_default();
            objects.extend(row.object.filter(|object| !objects.contains(object)));
        }
    }

    fn find_waits(&mut self, story: &Story) {
        let mut holds: HashMap<usize, Vec<(usize, usize, usize)>> = HashMap::new();
        for lock in &self.locks {
            holds.entry(lock.object).or_default().push((lock.from, lock.to, lock.thread));
        }
        let mut before: Vec<Option<usize>> = vec![None; story.threads.len()];
        let mut notified = vec![None; story.threads.len()];
        for (at, row) in story.rows.iter().enumerate() {
            let Some(last) = before.get_mut(row.thread) else { continue };
            let Some(from) = last.replace(at) else { continue };
            if matches!(row.kind, RowKind::Wait) {
                notified[row.thread] = Some(at);
            }
            let wait = |kind, class: &str, what: &str, whose, from, to| {
                let (class, what) = (class.to_owned(), what.to_owned());
                WaitSpan { thread: row.thread, kind, class, what, whose, from, to, forever: false }
            };
            let found = match row.kind {
                RowKind::Acquire | RowKind::AcquireShared => {
                    if let Some(waiting) = notified[row.thread].take().filter(|waiting| from <= waiting + 1) {
                        Some(wait(WaitKind::Notification, "", &story.rows[waiting].what, None, from, at))
                    } else {
                        let others = holds.get(&row.object.unwrap_or(usize::MAX)).into_iter().flatten();
                        let mut others = others.filter(|hold| hold.2 != row.thread && hold.1 < at && hold.1 > from);
                        let first = others.next();
                        let last = others.next_back().or(first);
                        first.zip(last).map(|(first, last)| {
                            let lock = self.lock_name(&row.what, row.object.unwrap_or_default());
                            wait(WaitKind::Lock, &row.what, &lock, Some(first.2), from.max(first.0), last.1)
                        })
                    }
                }
                RowKind::Expire => {
                    notified[row.thread] = None;
                    Some(wait(WaitKind::Time, "", "time", None, from, at))
                }
                RowKind::Join => {
                    let whose = self.whose_life(row.object);
                    let ended = |other: &Row| other.kind == RowKind::Exit && other.object == row.object;
                    let end = story.rows[from..at].iter().rposition(ended).map(|end| from + end);
                    end.map(|end| wait(WaitKind::End, "", "the end", whose, from, end))
                }
                _ => None,
            };
            self.waits.extend(found);
        }
    }

    /// A story that ends with threads that wait for each other has no rows for these waits. Its detail describes
    /// them.
    fn find_ends(&mut self, story: &Story) {
        let last = |thread: usize| story.rows.iter().rposition(|row| row.thread == thread);
        let name = |text: &str| story.threads.iter().position(|thread| thread == text);
        let mut told = BTreeSet::new();
        for part in story.detail.trim_start_matches("deadlock! ").split("; ") {
            let Some((who, what)) = part.split_once(" waits for ") else { continue };
            let mut threads = (0..story.threads.len()).filter(|thread| story.threads[*thread] == who);
            let Some(thread) = threads.find(|thread| !told.contains(thread)) else { continue };
            let Some(from) = last(thread).filter(|from| story.rows[*from].kind != RowKind::Exit) else { continue };
            told.insert(thread);
            let what = what.split_once(" at ").map_or(what, |(what, _)| what);
            let holder = what.split_once(", which ").map(|(what, by)| (what, by.trim_end_matches([',', ' '])));
            let holder = holder.map(|(what, by)| (what, by.trim_end_matches(" holds")));
            let (kind, what, whose) = match holder {
                Some((lock, by)) => (WaitKind::Lock, lock, name(by)),
                None if what.starts_with("the end of ") => {
                    (WaitKind::End, "the end", name(what["the end of ".len()..].trim_end_matches([',', ' '])))
                }
                None => (WaitKind::Notification, what, None),
            };
            let class = if kind == WaitKind::Lock { what } else { "" }.to_owned();
            let held = |lock: &&LockSpan| Some(lock.thread) == whose && lock.class == class;
            let from = self.locks.iter().rev().find(held).map_or(from, |lock| from.max(lock.from));
            let (what, to) = (what.to_owned(), story.rows.len() - 1);
            self.waits.push(WaitSpan { thread, kind, class, what, whose, from, to, forever: true });
        }
    }

    fn find_steps(&mut self, story: &Story) {
        let mut open: Vec<Vec<usize>> = vec![Vec::new(); story.threads.len()];
        for (at, row) in story.rows.iter().enumerate() {
            let Some(open) = open.get_mut(row.thread) else { continue };
            match row.kind {
                RowKind::StepBegin => {
                    open.push(self.steps.len());
                    let (thread, text, to) = (row.thread, row.what.clone(), story.rows.len() - 1);
                    self.steps.push(StepSpan { thread, text, end: None, from: at, to });
                }
                RowKind::StepEnd => {
                    let Some(step) = open.pop() else { continue };
                    let step = &mut self.steps[step];
                    step.to = at;
                    step.end = (row.what != step.text).then(|| row.what.clone());
                }
                _ => {}
            }
        }
    }

    fn find_resources(&mut self, story: &Story) {
        let mut found: BTreeMap<Vec<Natural>, Presence> = BTreeMap::new();
        let last = story.rows.len().saturating_sub(1);
        for (at, row) in story.rows.iter().enumerate() {
            let make = match row.kind {
                RowKind::Make => true,
                RowKind::Unmake => false,
                _ => continue,
            };
            let (_, spans) = found.entry(natural(&row.what)).or_insert_with(|| (row.what.clone(), Vec::new()));
            match spans.last_mut() {
                Some(span) if !make && span.1 == last => span.1 = at,
                // It existed before the story began.
                None if !make => spans.push((0, at)),
                _ if make => spans.push((at, last)),
                _ => {}
            }
        }
        self.find_states(story);
        // A thing with states exists while it is loaded.
        found.retain(|_, (name, _)| !self.things.iter().any(|thing| thing.name == *name));
        self.resources = found.into_values().collect();
    }

    fn find_states(&mut self, story: &Story) {
        let mut found: BTreeMap<Vec<Natural>, States> = BTreeMap::new();
        let last = story.rows.len().saturating_sub(1);
        for (at, row) in story.rows.iter().enumerate().filter(|(_, row)| row.kind == RowKind::State) {
            let (name, state) = row.what.split_once(": ").unwrap_or((&row.what, ""));
            let empty = || States { name: name.to_owned(), states: Vec::new() };
            let rep = found.entry(natural(name)).or_insert_with(empty);
            if let Some((_, to, _)) = rep.states.last_mut().filter(|(_, to, _)| *to == last) {
                *to = at;
            }
            if state != "gone" {
                rep.states.push((at, last, state.to_owned()));
            }
        }
        self.things = found.into_values().collect();
    }

    /// The row that marks a preemption is of the thread that stops, or of the one that goes on. If a story has
    /// preemptions and no such rows, they are where a thread stops that does not wait for anything.
    fn find_switches(&mut self, story: &Story) {
        let preempts = |row: &Row| row.kind == RowKind::Preempted;
        let told = story.rows.iter().any(preempts);
        for (at, pair) in story.rows.windows(2).enumerate() {
            let (from, to) = (pair[0].thread, pair[1].thread);
            if from == to {
                continue;
            }
            let waits = self.waits.iter().any(|wait| wait.thread == from && wait.from <= at && at <= wait.to);
            let stops = waits || pair[0].kind == RowKind::Exit;
            let guessed = story.preemptions > 0 && !told && !stops;
            let goes_on = story.rows.get(at + 2).is_none_or(|next| next.thread == to);
            let preempted = preempts(&pair[0]) || preempts(&pair[1]) && goes_on || guessed;
            self.switches.push(Switch { at: at + 1, from, to, preempted });
        }
    }

    fn find_small(&mut self, story: &Story) {
        if self.is_small_program {
            return;
        }
        let outer: BTreeSet<&str> =
            story.rows.iter().flat_map(|row| row.held.iter().rev().skip(1)).map(String::as_str).collect();
        let classes: BTreeSet<&str> = self.locks.iter().map(|lock| lock.class.as_str()).collect();
        let waited = |class: &str| self.waits.iter().any(|wait| wait.forever && wait.class == class);
        let small = classes.into_iter().filter(|class| !story.ordered.contains(class));
        self.small = small.filter(|class| !outer.contains(class) && !waited(class)).map(str::to_owned).collect();
    }
}

/// Returns a thread's name.
pub(crate) fn name(story: &Story, thread: usize) -> &str {
    story.threads.get(thread).map_or("?", String::as_str)
}

/// Returns whether an operation takes a lock.
pub(crate) fn takes(kind: RowKind) -> bool {
    matches!(kind, RowKind::Acquire | RowKind::AcquireShared | RowKind::Try)
}

/// Returns a place in the source, shortened: the file with its folder or crate. Empty for places in this project's
/// lock primitives.
pub(crate) fn short(at: &str) -> String {
    if at.starts_with("crates/lockdep/") {
        return String::new();
    }
    let parts: Vec<&str> = at.split('/').filter(|part| *part != "src").collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}

/// A part of a name, which sorts `vf10` after `vf9`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Natural {
    Text(String),
    Number(u64, String),
}

fn natural(name: &str) -> Vec<Natural> {
    let mut parts = Vec::new();
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let digits = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        parts.push(match digits {
            true => Natural::Number(part.parse().unwrap_or(u64::MAX), part.to_owned()),
            false => Natural::Text(part.to_owned()),
        });
        rest = after;
    }
    parts
}
