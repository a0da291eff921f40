//! The events of one schedule, thread by thread. A failure is shown as a story.

use lockdep::{Happening, OpKind, What};
use serde::{Deserialize, Serialize};

use crate::program::Tool;
use crate::token::Token;

/// The events of one schedule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// The program's name. In JSON the field is called `scenario`, because scenarios were the first programs.
    #[serde(rename = "scenario")]
    pub program: String,
    /// The invariant that did not hold.
    pub invariant: String,
    /// What was found instead.
    pub detail: String,
    /// The tool that printed it, which knows how to run it again.
    #[serde(skip)]
    pub tool: Tool,
    /// The classes of locks that are always shown, outermost first.
    #[serde(skip)]
    pub ordered: Vec<&'static str>,
    /// The token that runs it again, with [`tool`](Self::tool).
    pub token: String,
    /// How many other schedules must be run first: if not 0, what does not hold is an order of locks that inverts
    /// one shown there.
    pub after: usize,
    /// The files of the token's programs; empty if they are not known.
    #[serde(default)]
    pub files: Vec<String>,
    /// The parts of the token that did not occur; empty if the token's schedule ran as it was printed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmet: Vec<String>,
    /// The planned failures.
    pub faults: Vec<String>,
    /// How many preemptions the schedule has.
    pub preemptions: usize,
    /// The threads' names, in the order in which they were started.
    pub threads: Vec<String>,
    /// The events, in order.
    pub rows: Vec<Row>,
}

impl Story {
    /// Returns the command that runs it again; empty if there is no token.
    pub fn replay_command(&self) -> String {
        if self.token.is_empty() { String::new() } else { replay_command(&self.tool, &self.token, &self.files) }
    }

    /// Describes the schedules that must be run first; empty if there are none.
    pub(crate) fn schedules_before(&self) -> String {
        let token: Option<Token> = self.token.parse().ok();
        let mut others: Vec<String> = Vec::new();
        for first in token.iter().flat_map(|token| &token.first) {
            let name = format!("`{}`", first.program);
            if first.program != self.program && !others.contains(&name) {
                others.push(name);
            }
        }
        let of = if others.is_empty() { String::new() } else { format!(" of {}", others.join(", ")) };
        match self.after {
            0 => String::new(),
            1 => format!("another schedule{of}, which shows one order of the locks; this one shows the other"),
            n => format!("{n} other schedules{of}, which show orders of the locks that this one inverts"),
        }
    }
}

/// Returns the command that runs a token's schedule again. `files`: the files of its programs, if they are known.
pub fn replay_command<S: AsRef<str>>(tool: &Tool, token: &str, files: &[S]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@".contains(c);
    let [before, after] = tool.replay_command;
    let mut command = format!("{before}{token}{after}");
    for file in files.iter().map(AsRef::as_ref) {
        // A name that begins with a dash would be taken for an option.
        let file = if file.starts_with('-') { format!("./{file}") } else { file.to_owned() };
        match file.chars().all(plain) {
            true => command += &format!(" {file}"),
            false => command += &format!(" '{}'", file.replace('\'', r"'\''")),
        }
    }
    command
}

/// An event of a story.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The step of the schedule, counted from 0; several rows may belong to one step.
    pub step: usize,
    /// The thread, as an index into [`Story::threads`].
    pub thread: usize,
    /// Its kind.
    pub kind: RowKind,
    /// The class of the lock, or the text of the event.
    pub what: String,
    /// Which object of that class: a small number, the same in every row.
    pub object: Option<usize>,
    /// `file:line`, for an operation.
    pub at: String,
    /// The classes of the locks that the thread holds after it, outermost first.
    pub held: Vec<String>,
}

/// The kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// The thread starts.
    Start,
    /// It takes a lock.
    Acquire,
    /// It takes a lock for reading.
    AcquireShared,
    /// It tries a lock. `held` shows whether it got the lock.
    Try,
    /// It releases a lock.
    Release,
    /// It reads an atomic.
    Read,
    /// It writes an atomic.
    Write,
    /// It waits for a notification, and releases the lock meanwhile.
    Wait,
    /// It wakes waiters.
    Notify,
    /// It raises an interrupt, and runs the handler.
    Interrupt,
    /// Its time-out fires.
    Expire,
    /// It starts a thread.
    Spawn,
    /// A thread that it waited for has ended.
    Join,
    /// It ends.
    Exit,
    /// It begins a step of the program: `what` is the step.
    StepBegin,
    /// It has ended a step: `what` is the step, and its error if it failed.
    StepEnd,
    /// It makes a resource: `what` is which, such as `buffer 1`.
    Make,
    /// It unmakes a resource.
    Unmake,
    /// A thing has entered the state that follows its name in `what`, such as `port 1: loaded`. A page shows the
    /// states `loaded`, `registered`, `unregistered`, `failed: …` and `gone` in special ways. In JSON the kind is
    /// called `representor`, because representors were the first things with states.
    #[serde(rename = "representor")]
    State,
    /// Something fails as planned.
    Fault,
    /// An invariant does not hold.
    Violation,
    /// It could go on, and the scheduler chose another thread: `what` is the name of that thread.
    Preempted,
}

impl RowKind {
    fn of(kind: OpKind) -> Self {
        match kind {
            OpKind::Start => Self::Start,
            OpKind::Acquire => Self::Acquire,
            OpKind::AcquireShared => Self::AcquireShared,
            OpKind::Try => Self::Try,
            OpKind::Release => Self::Release,
            OpKind::Read => Self::Read,
            OpKind::Write => Self::Write,
            OpKind::Wait => Self::Wait,
            OpKind::Notify => Self::Notify,
            OpKind::Interrupt => Self::Interrupt,
            OpKind::Expire => Self::Expire,
            OpKind::Spawn => Self::Spawn,
            OpKind::Join => Self::Join,
            OpKind::Exit => Self::Exit,
        }
    }

    fn of_note(kind: &str) -> Self {
        match kind {
            "step" => Self::StepBegin,
            "done" => Self::StepEnd,
            "make" => Self::Make,
            "unmake" => Self::Unmake,
            "state" => Self::State,
            "fault" => Self::Fault,
            "preempted" => Self::Preempted,
            _ => Self::Violation,
        }
    }
}

/// Turns recorded events into rows.
pub(crate) fn rows(happenings: &[Happening], threads: usize) -> Vec<Row> {
    let mut held: Vec<Vec<(usize, String)>> = vec![Vec::new(); threads];
    let mut rows = Vec::new();
    for happening in happenings {
        let held = &mut held[happening.thread];
        let (kind, what, object, at) = match &happening.what {
            What::Op(op) => {
                let object = op.object.index();
                match op.kind {
                    OpKind::Acquire | OpKind::AcquireShared => held.push((object, op.label.to_owned())),
                    OpKind::Release => held.retain(|(lock, _)| *lock != object),
                    OpKind::Try if op.done => held.push((object, op.label.to_owned())),
                    _ => {}
                }
                let at = format!("{}:{}", op.at.file(), op.at.line());
                (RowKind::of(op.kind), op.label.to_owned(), Some(object), at)
            }
            What::Note(kind, text) => (RowKind::of_note(kind), text.clone(), None, String::new()),
        };
        let held = held.iter().map(|(_, class)| class.clone()).collect();
        rows.push(Row { step: happening.step, thread: happening.thread, kind, what, object, at, held });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_takes_files_by_any_name() {
        let files = ["a/plain.toml", "-dash.toml", "-it's.toml"];
        let tool = Tool { replay_command: ["esw check --replay ", ""], ..Tool::default() };
        assert_eq!(
            replay_command(&tool, "esw2.x", &files),
            r"esw check --replay esw2.x a/plain.toml ./-dash.toml './-it'\''s.toml'"
        );
    }
}
