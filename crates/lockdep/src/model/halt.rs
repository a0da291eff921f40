//! Why an execution is given up.

use super::{Model, OpKind};

/// The reasons why an execution is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// No thread can go on, or a handler waits for the thread that it has interrupted. The text names the threads, the objects for
    /// which they wait, and the threads that hold these.
    Deadlock(String),
    /// A thread panicked, with this text.
    Panic(String),
    /// It has not ended within this number of steps.
    TooLong(usize),
    /// After the first number of steps everything is as it was the second number of steps before, without a preemption in
    /// between. So it can loop for ever.
    Livelock(usize, usize),
}

impl std::fmt::Display for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deadlock(who) => write!(f, "deadlock! {who}"),
            Self::Panic(text) => f.write_str(text),
            Self::TooLong(steps) => write!(f, "has not ended within {steps} steps"),
            Self::Livelock(steps, ago) => {
                write!(f, "livelock! after {steps} steps everything is as it was {ago} steps before")
            }
        }
    }
}

impl Model {
    /// Describes what each thread waits for, and which thread holds it.
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
