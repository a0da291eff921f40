//! Where LAG is held off.
//!
//! A mode change, enabling VFs from 0 and disabling an E-Switch hold LAG off until they are done. A hold
//! defers evaluations; it blocks nobody. LAG itself is not built yet: what is here is what the
//! engine's other parts need of it, and a place for it to stand.

use lockdep::{Locked, Mutex};

use crate::lock_order::LagHolds;

/// The LAG of one card.
#[derive(Debug)]
pub struct Lag {
    holds: Mutex<LagHolds, u32>,
}

impl Default for Lag {
    fn default() -> Self {
        Self { holds: Mutex::new(0) }
    }
}

impl Lag {
    /// Holds evaluations off. Each hold must be released.
    pub fn hold<L>(&self, cx: &mut Locked<'_, L>) {
        *self.holds.lock_leaf(cx) += 1;
    }

    /// Releases a hold. With the last one, what was deferred may be evaluated.
    pub fn release<L>(&self, cx: &mut Locked<'_, L>) {
        *self.holds.lock_leaf(cx) -= 1;
    }

    /// Whether anybody holds LAG off.
    pub fn is_held_off<L>(&self, cx: &mut Locked<'_, L>) -> bool {
        *self.holds.lock_leaf(cx) > 0
    }
}
