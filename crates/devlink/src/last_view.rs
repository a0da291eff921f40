//! Keeps the view that was made last, for as long as the card has not changed.

use std::sync::Arc;

use eswitch::Engine;
use lockdep::{Locked, Mutex, Unlocked, lock_classes};

use crate::view::{self, Appearance};

lock_classes! {
    /// The view that was made last.
    pub leaf ViewClass = "view of a card";
}

/// The view that was made last, with [`Engine::changes`] before it was made.
pub struct LastView(Mutex<ViewClass, Option<(u64, Arc<view::Card>)>>);

impl Default for LastView {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl LastView {
    /// The view of the card as it is now.
    pub(crate) fn get(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        engine: &Engine,
        appearance: Appearance<'_>,
    ) -> Arc<view::Card> {
        let changes = engine.changes();
        let last = self.0.lock_leaf(cx).clone();
        if let Some((_, view)) = last.filter(|(of, _)| *of == changes) {
            return view;
        }
        let view = Arc::new(view::of(engine, appearance, cx));
        *self.0.lock_leaf(cx) = Some((changes, Arc::clone(&view)));
        view
    }
}
