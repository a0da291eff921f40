//! Sets of objects that steps touch.

use lockdep::{ObjectId, Touch};

/// Sets of objects that were touched, and that were written, as bits. Two objects may share a bit: then less is
/// skipped, never more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Objects {
    pub(super) touched: [u64; WORDS],
    pub(super) written: [u64; WORDS],
    /// The same of [`ObjectId::INTERRUPTS`], which shares its bit with no other object.
    interrupts: [bool; 2],
}

const WORDS: usize = 4;

impl Objects {
    pub(super) const NONE: Self = Self { touched: [0; WORDS], written: [0; WORDS], interrupts: [false; 2] };
    pub(super) const ALL: Self = Self { touched: [u64::MAX; WORDS], written: [u64::MAX; WORDS], interrupts: [true; 2] };

    pub(super) fn add(&mut self, touch: &Touch) {
        if touch.object == ObjectId::INTERRUPTS {
            self.interrupts = [true, self.interrupts[1] || !touch.reads];
            return;
        }
        let bit = touch.object.index() % (64 * WORDS);
        let one = 1 << (bit % 64);
        self.touched[bit / 64] |= one;
        self.written[bit / 64] |= if touch.reads { 0 } else { one };
    }

    pub(super) fn join(&mut self, other: &Self) {
        self.touched.iter_mut().zip(other.touched).for_each(|(ours, theirs)| *ours |= theirs);
        self.written.iter_mut().zip(other.written).for_each(|(ours, theirs)| *ours |= theirs);
        self.interrupts.iter_mut().zip(other.interrupts).for_each(|(ours, theirs)| *ours |= theirs);
    }

    /// Returns whether the order of the two makes a difference: one writes what the other touches.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let ([touched, written], [touched_there, written_there]) = (self.interrupts, other.interrupts);
        let of_interrupts = touched && written_there || written && touched_there;
        of_interrupts
            || (0..WORDS).any(|i| self.written[i] & other.touched[i] | self.touched[i] & other.written[i] != 0)
    }
}

impl Default for Objects {
    fn default() -> Self {
        Self::NONE
    }
}
