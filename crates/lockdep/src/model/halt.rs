//! Why an execution is given up.

use super::{Model, OpKind};

/// Why an execution was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// No thread can go on; who waits for what, and who holds it.
    Deadlock(String),
    /// A thread panicked, and what it said.
    Panic(String),
    /// It has not come to an end within the bound.
    TooLong(usize),
    /// After so many steps everything is as it was so many steps before, and nothing has been held up for it: so it
    /// can go on for ever.
    Livelock(usize, usize),
}

impl std::fmt::Display for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deadlock(who) => write!(f, "deadlock! {who}"),
            Self::Panic(text) => f.write_str(text),
            Self::TooLong(steps) => write!(f, "has not come to an end within {steps} steps"),
            Self::Livelock(steps, ago) => {
                write!(f, "livelock! after {steps} steps everything is as it was {ago} steps before")
            }
        }
    }
}

impl Model {
    /// Who waits for what, and who holds it.
    pub(super) fn describe_deadlock(&self) -> String {
        let waiting = self.threads.iter().filter(|thread| !thread.finished).map(|thread| {
            let op = thread.pending;
            let place = format!("{}:{}", op.at.file(), op.at.line());
            let holder = self.objects.iter().find(|o| o.id == op.object).and_then(|o| o.owner);
            match (op.kind, holder) {
                (OpKind::Acquire | OpKind::AcquireShared, Some(holder)) => format!(
                    "{} waits for {}, which {} holds, at {place}",
                    thread.name, op.label, self.threads[holder].name
                ),
                (OpKind::Join, _) => {
                    let me = |joiner: &usize| self.threads[*joiner].id == thread.id;
                    let whose = self.threads.iter().find(|other| other.joiners.iter().any(me));
                    let whose = whose.map_or("a thread", |other| &other.name);
                    format!("{} waits for the end of {whose}, at {place}", thread.name)
                }
                _ => format!("{} waits for {} at {place}", thread.name, op.label),
            }
        });
        waiting.collect::<Vec<_>>().join("; ")
    }
}
