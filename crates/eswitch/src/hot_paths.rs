//! Paths inside the engine that run often, for `cargo xtask instructions`, which counts the instructions of each.
//! Nothing else uses this module.

use lockdep::{HistoryMark, Locked, Unlocked};

use crate::error::Result;
use crate::event::{Event, Events};
use crate::ids::{Mode, PciAddress};
use crate::queue::{Next, Queue};

/// Publishes `n` events without subscribers.
pub fn emit_without_subscribers(cx: &mut Locked<'_, Unlocked>, of: PciAddress, n: usize) {
    let events = Events::new(vec![of]);
    for _ in 0..n {
        events.emit(cx, || Event::Mode(of, Mode::Switchdev));
    }
}

/// Puts `n` items into a queue, and takes each before the next as the serving thread would.
///
/// # Errors
/// The queue refuses an item, which is a bug.
pub fn items_through_a_queue(cx: &mut Locked<'_, Unlocked>, n: usize) -> Result<()> {
    let queue = Queue::new("counted".to_owned());
    for item in 0..n {
        queue.push(cx, item)?;
        let taken = queue.next(cx, HistoryMark::now());
        debug_assert_eq!(taken, Some(Next::Item(item)));
    }
    Ok(())
}
