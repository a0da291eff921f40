//! State beside the objects, and the parts of their history that threads forget.

use std::hash::Hash;
use std::panic::Location;

use super::digest::{digest, mix};
use super::object::intern;
use super::{Model, Touch, try_look};

/// Adds to the running thread's history something that it has learned, or written, by other means than an operation.
pub(crate) fn learns(what: u64) {
    try_look(|model| {
        let me = model.current;
        model.touched.push(Touch { thread: me, object: intern(1), reads: false });
        model.note_act(me);
        model.threads[me].seen = mix(mix(model.threads[me].seen, what), 6);
    });
}

/// Reports to an explorer state that threads share by other means than explored primitives: the state called `what` now
/// has the value `is`. It is part of the [state](crate::Model::state) from then on. A thread that reads or changes it must
/// also call [`Locked::learns`](crate::Locked::learns), where there is an example, unless a lock orders these threads.
pub fn tell(what: &impl Hash, is: &impl Hash) {
    if !crate::is_explored() {
        return;
    }
    let (what, is) = (digest(what), digest(is));
    try_look(|model| {
        let before = model.reported.insert(what, is).map_or(0, |before| mix(mix(what, 10), before));
        model.contents = model.contents.wrapping_sub(before).wrapping_add(mix(mix(what, 10), is));
    });
}

/// A point in the history of a thread, up to which the thread can forget what it has found.
///
/// ```
/// use lockdep::{AtomicU64, Domain, HistoryMark, OnReport, enter};
///
/// let jobs = AtomicU64::new(3);
/// enter(&Domain::checked(OnReport::Panic), "worker", |_| {
///     let since = HistoryMark::now();
///     while jobs.load() > 0 {
///         jobs.store(jobs.load() - 1);
///         // Which jobs there were makes no difference to the next one.
///         since.erase_except(&());
///     }
/// });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct HistoryMark {
    seen: u64,
    holds: u32,
}

impl HistoryMark {
    /// Marks the present point in the running thread's history.
    pub fn now() -> Self {
        let now = |model: &mut Model| {
            let thread = &model.threads[model.current];
            Self { seen: thread.seen, holds: thread.holds }
        };
        crate::is_explored().then(|| try_look(now)).flatten().unwrap_or(Self { seen: 0, holds: 0 })
    }

    /// Forgets what the running thread has found since the mark, except for `left`. Call it only if the thread's further
    /// actions depend on nothing else of that. They may depend on it by the thread's stack, and by what the thread
    /// has written to locks that it still holds.
    ///
    /// # Panics
    /// Explored, if the thread does not hold as many locks as at the mark, because its actions then depend on more.
    #[track_caller]
    pub fn erase_except(self, left: &impl Hash) {
        if crate::is_explored() {
            self.forget(digest(left), Location::caller());
        }
    }

    pub(super) fn forget(self, left: u64, at: &'static Location<'static>) {
        let place = mix((at.file().len() as u64) << 32 | u64::from(at.line()), at.column().into());
        let holds = try_look(|model| {
            let forgets = model.forgets;
            let thread = &mut model.threads[model.current];
            if forgets {
                thread.seen = mix(mix(self.seen, left), mix(place, 7));
            }
            thread.holds
        });
        assert!(
            holds.is_none_or(|holds| holds == self.holds) || std::thread::panicking(),
            "the history that is erased at {at} matters still: the thread has taken or released a lock since the mark"
        );
    }
}

/// Runs `f`, and forgets, for an explorer, what the thread has found in it except for the returned value. The thread's
/// further actions must depend only on that value. What `f` writes to objects is not affected.
///
/// ```
/// use lockdep::{Domain, Mutex, OnReport, enter, without_history, lock_classes};
///
/// lock_classes! {
///     leaf Items = "items";
/// }
///
/// enter(&Domain::checked(OnReport::Panic), "main", |cx| {
///     let items = Mutex::<Items, _>::new(vec![3, 1, 2]);
///     // Which items there were is forgotten, except for whether there were any.
///     let is_empty = without_history(|| items.lock_leaf(cx).is_empty());
///     assert!(!is_empty);
/// });
/// ```
#[track_caller]
pub fn without_history<R: Hash>(f: impl FnOnce() -> R) -> R {
    let since = HistoryMark::now();
    let result = f();
    since.erase_except(&result);
    result
}
