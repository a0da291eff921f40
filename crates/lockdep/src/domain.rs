//! The graph of classes that a set of threads has shown, and the reports that follow from it.

mod graph;

use std::collections::HashMap;
use std::io::Write;
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::class::ClassKey;
use crate::report::{HeldLock, Report, ReportKind};
use crate::task::{Held, Task};
use graph::Graph;

/// What happens with a report of the checker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnReport {
    /// The report is kept for [`Domain::take_reports`] and printed to standard error once, and the thread goes on. If the
    /// thread would wait for ever, it panics.
    Record,
    /// The report is kept and the thread panics with it. A thread that is already unwinding only keeps and prints it,
    /// because a second panic would abort the process and hide the first.
    Panic,
    /// The report is kept and nothing is printed. This is for a program that runs many executions and reports few. A
    /// thread that would wait for ever panics all the same.
    Keep,
}

/// Decides which operations fail. An operation that can fail asks it by [`Locked::fails`](crate::Locked::fails).
///
/// ```
/// use std::sync::Arc;
///
/// use lockdep::{Domain, Oracle, enter};
///
/// #[derive(Debug)]
/// struct NoMemory;
///
/// impl Oracle for NoMemory {
///     fn fails(&self, _thread: &str, place: &str) -> bool {
///         place.starts_with("allocating")
///     }
/// }
///
/// let domain = Domain::exploring(Some(Arc::new(NoMemory)));
/// enter(&domain, "main", |cx| {
///     assert!(cx.fails(|| "allocating a buffer".to_owned()));
///     assert!(!cx.fails(|| "starting a thread".to_owned()));
/// });
/// ```
pub trait Oracle: Send + Sync + std::fmt::Debug {
    /// Returns whether the operation called `place` fails this time, in this thread.
    fn fails(&self, thread: &str, place: &str) -> bool;

    /// Returns whether the order of the threads that ask makes a difference for this operation, because it fails for some
    /// and not for others.
    fn depends_on_order(&self, place: &str) -> bool {
        let _ = place;
        true
    }
}

/// One edge of the graph: the outer class was held while the inner one was waited for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EdgeInfo {
    /// The class that was held.
    pub outer: &'static str,
    /// The class that was waited for.
    pub inner: &'static str,
}

/// The checker's memory. A thread shares the domain of the thread that spawned it.
///
/// ```
/// use lockdep::{Domain, EdgeInfo, Mutex, OnReport, enter, lock_classes, lock_order};
///
/// lock_classes! {
///     class Outer = "outer";
///     class Inner = "inner";
/// }
/// lock_order! { root Outer; Outer => Inner; }
///
/// let domain = Domain::checked(OnReport::Keep);
/// let (outer, inner) = (Mutex::<Outer, _>::new(()), Mutex::<Inner, _>::new(()));
/// enter(&domain, "main", |cx| {
///     let (_outer, mut cx) = outer.lock(cx);
///     let (_inner, _cx) = inner.lock(&mut cx);
/// });
/// assert_eq!(domain.edges(), [EdgeInfo { outer: "outer", inner: "inner" }]);
/// assert_eq!(domain.take_reports(), []);
/// ```
#[derive(Debug)]
pub struct Domain {
    checked: bool,
    on_report: OnReport,
    oracle: Option<Arc<dyn Oracle>>,
    /// An edge for each class that was waited for while another was held.
    after: Graph,
    /// Edges from 0 to the classes that interrupt handlers take, and from 1 to those that are taken with interrupts on.
    interrupts: Graph,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The first time each edge was seen.
    edges: HashMap<(u32, u32), Witness>,
    /// By class: where an interrupt handler took it first, and where it was first taken with interrupts on, each with the
    /// thread.
    interrupts: HashMap<u32, [Option<(HeldLock, String)>; 2]>,
    reports: Vec<Report>,
}

/// The thread that showed an edge first, and where.
#[derive(Debug, Clone)]
pub(crate) struct Witness {
    pub thread: String,
    pub outer_at: &'static Location<'static>,
    pub inner_at: &'static Location<'static>,
}

impl Domain {
    /// Makes a domain that checks everything.
    pub fn checked(on_report: OnReport) -> Arc<Self> {
        Arc::new(Self::new(true, on_report))
    }

    /// Makes a domain whose threads check nothing on real locks. Explored threads are checked all the same.
    pub fn unchecked() -> Arc<Self> {
        Arc::new(Self::new(false, OnReport::Record))
    }

    /// Makes a domain for this build: [`checked`](Self::checked) with debug assertions, else
    /// [`unchecked`](Self::unchecked).
    pub fn for_build(on_report: OnReport) -> Arc<Self> {
        Arc::new(Self::new(cfg!(debug_assertions), on_report))
    }

    /// Makes a domain for an explorer. It checks everything and [keeps](OnReport::Keep) the reports. The oracle decides which
    /// operations fail.
    pub fn exploring(oracle: Option<Arc<dyn Oracle>>) -> Arc<Self> {
        Arc::new(Self { oracle, ..Self::new(true, OnReport::Keep) })
    }

    fn new(checked: bool, on_report: OnReport) -> Self {
        Self { checked, on_report, oracle: None, after: Graph::new(), interrupts: Graph::new(), seen: Mutex::default() }
    }

    /// Returns whether real locks are checked.
    pub fn is_checked(&self) -> bool {
        self.checked
    }

    /// Returns the oracle, if there is one.
    #[inline]
    pub(crate) fn oracle(&self) -> Option<&dyn Oracle> {
        self.oracle.as_deref()
    }

    /// Returns the edges that have been seen so far, sorted.
    pub fn edges(&self) -> Vec<EdgeInfo> {
        let mut edges: Vec<_> = self
            .seen()
            .edges
            .keys()
            .map(|&(outer, inner)| EdgeInfo {
                outer: ClassKey::by_id(outer).name(),
                inner: ClassKey::by_id(inner).name(),
            })
            .collect();
        edges.sort();
        edges
    }

    /// Returns the number of edges that have been seen so far.
    pub fn edge_count(&self) -> u32 {
        self.after.edge_count()
    }

    /// Returns a number that grows with every observation on which a later report may depend: every new edge, and every
    /// class that is taken for the first time by an interrupt handler, or with interrupts on.
    pub fn lesson_count(&self) -> u32 {
        self.after.edge_count() + self.interrupts.edge_count()
    }

    /// Removes and returns the reports made so far.
    pub fn take_reports(&self) -> Vec<Report> {
        std::mem::take(&mut self.seen().reports)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Adds the edges from the locks in `held` to `taking`, and reports the first edge that closes a cycle. The graph itself
    /// stays free of cycles. In the common case every edge is known, which reads one word per held lock. A leaf lock
    /// adds no edge: a lock under it is a report of its own.
    pub(crate) fn order(&self, task: &Task, taking: Held, held: &[Held]) {
        let inner = taking.class.id();
        let mut reported = false;
        for outer in held.iter().filter(|outer| !outer.class.is_leaf()) {
            let o = outer.class.id();
            if o == inner || self.after.has(o, inner) {
                continue;
            }
            let witness = Witness { thread: task.name().to_owned(), outer_at: outer.at, inner_at: taking.at };
            let back = {
                let mut seen = self.seen();
                let back = self.after.path(inner, o, ClassKey::count());
                if back.is_none() {
                    self.after.add(o, inner);
                    // Another thread may have added it since the look above.
                    seen.edges.entry((o, inner)).or_insert(witness);
                }
                back.map(|path| Self::describe(&seen, &path))
            };
            if let Some(chain) = back
                && !std::mem::replace(&mut reported, true)
            {
                self.report(ReportKind::Cycle { chain }, task, Some(taking), held);
            }
        }
    }

    /// Notes that a lock is taken by an interrupt handler, or otherwise with interrupts on. Reports a class that is taken in
    /// both ways. Handlers take only leaf locks, and no lock is taken under a leaf lock. So no chain of locks leads from one
    /// to the other.
    pub(crate) fn interrupts(&self, task: &Task, taking: Held, by_interrupt: bool, held: &[Held]) {
        let (class, way) = (taking.class.id(), u32::from(!by_interrupt));
        if self.interrupts.has(way, class) {
            return;
        }
        let both = {
            let mut seen = self.seen();
            self.interrupts.add(way, class);
            let ways = seen.interrupts.entry(class).or_default();
            let here = HeldLock { class: taking.class.name(), at: taking.at };
            // Another thread may have noted it since the look above.
            let is_new = ways[way as usize].is_none();
            ways[way as usize].get_or_insert((here, task.name().to_owned()));
            ways[0].clone().zip(ways[1].clone()).filter(|_| is_new)
        };
        if let Some((handler, with_interrupts_on)) = both {
            self.report(ReportKind::Interrupted { handler, with_interrupts_on }, task, Some(taking), held);
        }
    }

    fn describe(seen: &Seen, path: &[u32]) -> Vec<(HeldLock, HeldLock, String)> {
        path.windows(2)
            .filter_map(|edge| {
                let witness = seen.edges.get(&(edge[0], edge[1]))?;
                let lock = |id, at| HeldLock { class: ClassKey::by_id(id).name(), at };
                Some((lock(edge[0], witness.outer_at), lock(edge[1], witness.inner_at), witness.thread.clone()))
            })
            .collect()
    }

    pub(crate) fn report(&self, kind: ReportKind, task: &Task, taking: Option<Held>, held: &[Held]) {
        let lock = |h: &Held| HeldLock { class: h.class.name(), at: h.at };
        let panics = kind.is_fatal() || (self.on_report == OnReport::Panic && !std::thread::panicking());
        let report = Report {
            kind,
            thread: task.name().to_owned(),
            taking: taking.as_ref().map(lock),
            held: held.iter().map(lock).collect(),
        };
        let text = report.to_string();
        crate::model::note("violation", || format!("{}: {}", report.invariant(), report.summary()));
        let first = {
            let mut seen = self.seen();
            let first = !seen.reports.contains(&report);
            if first {
                seen.reports.push(report);
            }
            first
        };
        assert!(!panics, "{text}");
        if first && self.on_report != OnReport::Keep {
            // If standard error cannot be written to, the report is still kept.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }
}
