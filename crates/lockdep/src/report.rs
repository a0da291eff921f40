//! The checker's reports, in the form of the kernel's lockdep: the lock that is being taken, the locks that are held,
//! the two chains, and the schedule that would deadlock, as two columns.

use std::fmt;
use std::panic::Location;

/// A lock, by its class and the place in the source where it was, or is about to be, taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// The class's name.
    pub class: &'static str,
    /// Where it was taken.
    pub at: &'static Location<'static>,
}

/// The kinds of errors that the checker reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportKind {
    /// The lock is already held by this thread.
    Recursion,
    /// Another lock of the class is held, and no nesting is declared.
    SameClass,
    /// Declared nesting from a higher rank, or an equal one, to a lower.
    NestingRank,
    /// A lock is taken under a leaf lock.
    UnderLeaf,
    /// The order contradicts an order that was seen before. The chain is the path from the lock that is being taken back to
    /// a lock that is held.
    Cycle {
        /// The edges of the path: the outer lock, the inner lock, and the thread that showed the edge first.
        chain: Vec<(HeldLock, HeldLock, String)>,
    },
    /// A lock that can block is taken where nothing may wait.
    WaitInAtomic {
        /// What the thread does.
        what: &'static str,
    },
    /// The thread waits, or allocates, where it may not.
    WaitInAtomicAt {
        /// What the thread does.
        what: &'static str,
        /// Where.
        at: &'static Location<'static>,
    },
    /// An interrupt handler takes a lock of this class, and elsewhere one is taken with interrupts on. The handler may
    /// interrupt the thread that holds the lock, and would wait for that thread for ever.
    Interrupted {
        /// Where a handler takes it, and in which thread that was first seen.
        handler: (HeldLock, String),
        /// Where it is taken with interrupts on, and in which thread that was first seen.
        with_interrupts_on: (HeldLock, String),
    },
    /// An assertion that a lock is held failed.
    NotHeld {
        /// The class asserted.
        class: &'static str,
        /// Where.
        at: &'static Location<'static>,
    },
    /// Locks are held where none may be.
    StillHeld {
        /// Where.
        at: &'static Location<'static>,
    },
    /// An invariant that must hold at this step does not.
    Broken {
        /// The invariant's name.
        invariant: &'static str,
        /// What was found.
        detail: String,
        /// Where it was stated.
        at: &'static Location<'static>,
    },
}

impl ReportKind {
    /// Returns whether the thread would block for ever if it went on.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(self, Self::Recursion)
    }

    fn title(&self) -> &'static str {
        match self {
            Self::Recursion | Self::SameClass => "possible recursive locking detected",
            Self::NestingRank => "nesting against its declared rank",
            Self::UnderLeaf => "lock taken under a leaf lock",
            Self::Cycle { .. } => "possible circular locking dependency detected",
            Self::WaitInAtomic { .. } | Self::WaitInAtomicAt { .. } => "sleeping in atomic context",
            Self::Interrupted { .. } => "inconsistent lock state",
            Self::NotHeld { .. } => "a lock that must be held is not",
            Self::StillHeld { .. } => "locks held where none may be",
            Self::Broken { .. } => "an invariant does not hold",
        }
    }
}

/// One finding of the checker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The kind of error.
    pub kind: ReportKind,
    /// The thread in which it was found.
    pub thread: String,
    /// The lock that is being taken, if the report is about taking one.
    pub taking: Option<HeldLock>,
    /// The locks that the thread holds, outermost first. Empty for a broken invariant.
    pub held: Vec<HeldLock>,
}

impl Report {
    /// Returns the name of the broken invariant: `lock-order`, or the one that was stated.
    pub fn invariant(&self) -> &'static str {
        match self.kind {
            ReportKind::Broken { invariant, .. } => invariant,
            _ => "lock-order",
        }
    }
}

impl Report {
    /// Returns a summary in one line.
    pub(crate) fn summary(&self) -> String {
        match (&self.kind, &self.taking) {
            (ReportKind::Broken { detail, .. }, _) => detail.clone(),
            (kind, None) => kind.title().to_owned(),
            (kind, Some(taking)) => {
                let held: Vec<&str> = self.held.iter().map(|lock| lock.class).collect();
                let held = if held.is_empty() { String::new() } else { format!(" with {} held", held.join(" > ")) };
                format!("{}: takes {}{held}", kind.title(), taking.class)
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { thread, .. } = self;
        writeln!(f, "lockdep: {}", self.kind.title())?;
        match (&self.kind, &self.taking) {
            (ReportKind::WaitInAtomicAt { what, at }, _) => {
                writeln!(f, "thread {thread} {what} in atomic context at {at}")?;
            }
            (ReportKind::NotHeld { class, at }, _) => writeln!(f, "thread {thread} must hold {class} at {at}")?,
            (ReportKind::StillHeld { at }, _) => writeln!(f, "thread {thread} must hold nothing at {at}")?,
            (ReportKind::Broken { invariant, detail, at }, _) => {
                writeln!(f, "{invariant}: {detail}")?;
                return write!(f, "in thread {thread} at {at}");
            }
            (_, Some(HeldLock { class, at })) => writeln!(f, "thread {thread} is trying to take {class} at {at}")?,
            (_, None) => writeln!(f, "in thread {thread}")?,
        }
        match &self.held[..] {
            [] => write!(f, "it holds nothing")?,
            _ => write!(f, "it holds, outermost first:")?,
        }
        for HeldLock { class, at } in &self.held {
            write!(f, "\n  {class:<24} taken at {at}")?;
        }
        if let ReportKind::Interrupted { handler, with_interrupts_on } = &self.kind {
            writeln!(f)?;
            fmt_interrupted(f, handler, with_interrupts_on)?;
        }
        if let (ReportKind::Cycle { chain }, Some(taking)) = (&self.kind, &self.taking) {
            writeln!(f)?;
            fmt_cycle(f, chain, taking)?;
        }
        Ok(())
    }
}

/// Prints the places that take the class in each way, and a schedule that deadlocks.
fn fmt_interrupted(f: &mut fmt::Formatter<'_>, handler: &(HeldLock, String), on: &(HeldLock, String)) -> fmt::Result {
    for (way, (lock, thread)) in [("by an interrupt handler", handler), ("with interrupts on", on)] {
        writeln!(f, "{} is taken {way}:", lock.class)?;
        writeln!(f, "  at {} in thread {thread}", lock.at)?;
    }
    let class = handler.0.class;
    write!(f, "possible schedule:\n  lock({class})\n  <interrupt>\n    lock({class})\n  *** deadlock ***")
}

/// Prints the other chain, and a schedule that deadlocks.
fn fmt_cycle(f: &mut fmt::Formatter<'_>, chain: &[(HeldLock, HeldLock, String)], taking: &HeldLock) -> fmt::Result {
    writeln!(f, "which is already depended on the other way round:")?;
    for (outer, inner, thread) in chain {
        writeln!(f, "  {} ({})", outer.class, outer.at)?;
        writeln!(f, "    then {} ({}) in thread {thread}", inner.class, inner.at)?;
    }
    let first = taking.class;
    let last = chain.last().map_or(first, |(_, inner, _)| inner.class);
    writeln!(f, "possible schedule:")?;
    for (this, other) in [
        ("this thread".to_owned(), "the other".to_owned()),
        (format!("lock({last})"), String::new()),
        (String::new(), format!("lock({first})")),
        (String::new(), format!("lock({last})")),
        (format!("lock({first})"), String::new()),
    ] {
        writeln!(f, "{}", format!("  {this:<32} {other}").trim_end())?;
    }
    write!(f, "  *** deadlock ***")
}
