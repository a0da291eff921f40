//! The recorded events of an execution, and the parts of it that are explored.

use super::{Happening, Model, What, try_look};

impl Model {
    pub(super) fn record(&mut self, thread: usize, what: impl FnOnce() -> What) {
        let step = self.steps;
        if let Some(happenings) = &mut self.happenings {
            happenings.push(Happening { step, thread, what: what() });
        }
    }
}

/// Turns exploring of the code from here on on or off. With `false` it runs in one order, the plain one. It has an effect only
/// with [`Explore::focused`](crate::Explore::focused); otherwise everything is explored.
///
/// ```
/// lockdep::focus(false);
/// // … bring up what the test needs …
/// lockdep::focus(true);
/// ```
pub fn focus(on: bool) {
    if crate::is_explored() {
        try_look(|model| model.plain = model.focused && !on);
    }
}

/// Returns whether the events of this execution are recorded.
pub fn is_recorded() -> bool {
    crate::is_explored() && try_look(|model| model.happenings.is_some()) == Some(true)
}

/// Records a note, if events are recorded: its kind and its text.
///
/// ```
/// lockdep::note("make", || "buffer 1".to_owned());
/// ```
///
/// A story of the crate `explore` knows the kinds `step` and `done` (a step begins, and has ended), `make` and `unmake` (a
/// resource), `state` (`name: state`), `fault` and `violation`.
pub fn note(kind: &'static str, text: impl FnOnce() -> String) {
    if !crate::is_explored() {
        return;
    }
    try_look(|model| {
        let me = model.current;
        model.record(me, || What::Note(kind, text()));
    });
}
