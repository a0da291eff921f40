//! What is kept of an execution, to be told.

use super::{Happening, Model, What, try_look};

impl Model {
    pub(super) fn record(&mut self, thread: usize, what: impl FnOnce() -> What) {
        let step = self.steps;
        if let Some(happenings) = &mut self.happenings {
            happenings.push(Happening { step, thread, what: what() });
        }
    }
}

/// What runs from here on is, or is not, what an exploration is about: if not, it has one order, the plain
/// one. Without [`Explore::focused`] everything is what it is about.
pub fn focus(on: bool) {
    if crate::is_explored() {
        try_look(|model| model.plain = model.focused && !on);
    }
}

/// Whether what happens here and now is kept, to be told.
pub fn is_recorded() -> bool {
    crate::is_explored() && try_look(|model| model.happenings.is_some()) == Some(true)
}

/// Notes something worth telling, if what happens is kept: of what kind, and in words.
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
