//! Waiting until the card is at rest.

use lockdep::{Deadline, HistoryMark, Locked, Unlocked};

use super::Engine;
use crate::error::Result;
use crate::ids::PciAddress;

impl Engine {
    /// Makes the next `n` allocations for a PF's work queue fail.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn fail_allocations(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, n: u32) -> Result<()> {
        self.pf(cx, address)?.eswitch.work.inner().fail_allocations(cx, n);
        Ok(())
    }

    /// Waits until every queue is at rest. With `retries` it also waits until no retry is pending, which may never be
    /// the case. PFs that are not bound are passed over.
    pub fn settle(&self, cx: &mut Locked<'_, Unlocked>, retries: bool) {
        self.wait_settled(cx, retries, None);
    }

    /// The same as [`settle`](Self::settle), up to a deadline. Returns whether the card is at rest.
    pub fn settle_until(&self, cx: &mut Locked<'_, Unlocked>, retries: bool, deadline: &Deadline) -> bool {
        self.wait_settled(cx, retries, Some(deadline))
    }

    fn wait_settled(&self, cx: &mut Locked<'_, Unlocked>, retries: bool, deadline: Option<&Deadline>) -> bool {
        let since = HistoryMark::now();
        loop {
            since.erase_except(&deadline.map(Deadline::has_passed));
            for device in &self.devices {
                let Ok(pf) = device.pf(cx) else { continue };
                if !pf.eswitch.work.inner().wait_rested(cx, retries, deadline)
                    || !pf.sf_queue.inner().wait_rested(cx, retries, deadline)
                {
                    return false;
                }
            }
            // Even without `retries`: the pending retry of the LAG queue may be the delay for which it collects events.
            if !self.shared.lag.queue().wait_rested(cx, true, deadline) {
                return false;
            }
            // A queue may have queued work on another meanwhile.
            if self
                .devices
                .iter()
                .all(|d| d.pf(cx).is_ok_and(|pf| pf.eswitch.work.inner().rests(cx)) || d.pf(cx).is_err())
            {
                return true;
            }
        }
    }
}
