//! What threads learn beside operations, and what they forget.

use std::hash::Hash;
use std::panic::Location;

use super::digest::{digest, mix};
use super::object::intern;
use super::{Model, Touch, try_look};

/// The running thread has learned something in another way than by an operation, or made something known.
pub(crate) fn learns(what: u64) {
    try_look(|model| {
        let me = model.current;
        model.touched.push(Touch { thread: me, object: intern(1), reads: false });
        model.note_act(me);
        model.threads[me].seen = mix(mix(model.threads[me].seen, what), 6);
    });
}

/// Tells an explorer of what threads share in another way than by explored primitives: `what` of it is this
/// now. It is part of the state from then on. Who finds it must be [told of](crate::Locked::learns), too,
/// and so must who changes it, unless a lock orders them.
pub fn tell(what: &impl Hash, is: &impl Hash) {
    if !crate::is_explored() {
        return;
    }
    let (what, is) = (digest(what), digest(is));
    try_look(|model| {
        let before = model.told.insert(what, is).map_or(0, |before| mix(mix(what, 10), before));
        model.held = model.held.wrapping_sub(before).wrapping_add(mix(mix(what, 10), is));
    });
}

/// A moment in what a thread has seen, see [`without_history`].
#[derive(Clone, Copy, Debug)]
pub struct HistoryMark {
    seen: u64,
    holds: u32,
}

impl HistoryMark {
    /// Now.
    pub fn now() -> Self {
        let now = |model: &mut Model| {
            let thread = &model.threads[model.current];
            Self { seen: thread.seen, holds: thread.holds }
        };
        crate::is_explored().then(|| try_look(now)).flatten().unwrap_or(Self { seen: 0, holds: 0 })
    }

    /// What the running thread has found since then is forgotten, but for `left`: what it does from here on
    /// depends on nothing else of that. It depends on that by what is on its stack and what it has
    /// written to locks that it still holds, and by nothing else.
    ///
    /// # Panics
    /// Explored, if the thread has taken a lock since and still holds it, or has let go of one: then it does.
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
            "what is forgotten at {at} is in hand by a lock"
        );
    }
}

/// Runs `f`, and has an explorer forget what the thread has found in it, but for what it returns: whatever that
/// was, the thread goes on in the same way. What `f` has written is told where it has written it.
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
///     // Which items there were is forgotten, but for whether there were any.
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
