//! Paths inside the engine that are walked often, for those who count the instructions of each: see
//! `cargo xtask instructions`. Nothing else uses them.

use lockdep::{HistoryMark, Locked, Unlocked};

use crate::error::Result;
use crate::event::{Event, Events};
use crate::ids::{Mode, PciAddress};
use crate::queue::{Next, Queue};

/// Tells of `n` events that nobody listens to.
pub fn emit_without_subscribers(cx: &mut Locked<'_, Unlocked>, of: PciAddress, n: usize) {
    let events = Events::default();
    for _ in 0..n {
        events.emit(cx, || Event::Mode(of, Mode::Switchdev));
    }
}

/// Puts `n` items through a queue, one after the other, each as its serving thread takes it.
///
/// # Errors
/// The queue refuses one, which is a bug.
pub fn items_through_a_queue(cx: &mut Locked<'_, Unlocked>, n: usize) -> Result<()> {
    let queue = Queue::new("counted".to_owned());
    for item in 0..n {
        queue.push(cx, item)?;
        let taken = queue.next(cx, HistoryMark::now());
        debug_assert_eq!(taken, Some(Next::Item(item)));
    }
    Ok(())
}
