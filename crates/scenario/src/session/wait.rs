//! Steps that wait: for a barrier, a time, rest, an expectation.

use std::time::Duration;

use eswitch::RepType;
use eswitch::inspect::RepState;
use host::{GaveUp, Heeds};
use lockdep::{Deadline, Locked, Unlocked, is_explored};

use super::{Session, StepError};
use crate::expectation::Expectation;

/// How long to wait before an expectation is checked again: nothing signals that it may hold now.
const TICK: Duration = Duration::from_millis(1);

/// How often an expectation is checked under an explorer, where there is no time: it lets a tick pass when no other
/// thread can go on, and now and then before.
const LOOKS: usize = 200;

impl Session {
    /// The moment after which a wait has taken too long. Under an explorer there is none: its scheduler sees when no
    /// thread can go on.
    fn limit(&self) -> Option<Deadline> {
        (!is_explored()).then(|| Deadline::after(self.limit))
    }

    pub(super) fn gave_up(&self, why: GaveUp, what: String, found: String) -> StepError {
        match why {
            GaveUp::Stopped => StepError::Interrupted,
            GaveUp::TimedOut => StepError::TimedOut { what, limit: self.limit, found },
        }
    }

    pub(super) fn sync(&self, cx: &mut Locked<'_, Unlocked>, heeds: Heeds, name: &str) -> Result<(), StepError> {
        let thread = cx.thread_name().to_owned();
        let pulse = &self.world().pulse;
        let round = self.barriers.arrive(cx, pulse, name, &thread);
        let mut missing = Vec::new();
        let met = pulse.wait_for(
            cx,
            heeds,
            self.limit().as_ref(),
            || None,
            |cx| match self.barriers.is_over(cx, name, round) {
                Ok(()) => Some(()),
                Err(threads) => {
                    missing = threads;
                    None
                }
            },
        );
        met.map_err(|why| self.gave_up(why, format!("`sync {name}`"), format!("waiting for {}", missing.join(", "))))
    }

    pub(super) fn sleep(&self, cx: &mut Locked<'_, Unlocked>, heeds: Heeds, time: Duration) -> Result<(), StepError> {
        let over = Deadline::after(time);
        let slept: Result<(), GaveUp> = self.world().pulse.wait_for(cx, heeds, Some(&over), || None, |_| None);
        match slept {
            Err(GaveUp::Stopped) => Err(StepError::Interrupted),
            _ => Ok(()),
        }
    }

    /// Waits until the engine knows the state of the kernel's bonds and neighbours and the queues are at rest; with
    /// `retries`, until nothing is left to be tried again, too.
    ///
    /// # Errors
    /// The wait took too long, or was interrupted.
    pub(crate) fn wait_rest(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        heeds: Heeds,
        retries: bool,
    ) -> Result<(), StepError> {
        self.card.follow_kernel(cx, heeds, self.limit).map_err(|why| self.unseen(why))?;
        let Some(limit) = self.limit() else {
            self.engine().settle(cx, retries);
            return Ok(());
        };
        let look = Duration::from_millis(20);
        let rested = self.world().pulse.wait_for(
            cx,
            heeds,
            Some(&limit),
            || Some(Deadline::after(Duration::ZERO)),
            |cx| self.engine().settle_until(cx, retries, &Deadline::after(look)).then_some(()),
        );
        rested.map_err(|why| {
            let found = self.unrest(cx);
            let what = if retries { "the end of retries" } else { "rest of the queues" };
            self.gave_up(why, what.to_owned(), found)
        })
    }

    /// Describes what is still to be tried again, or is still queued.
    fn unrest(&self, cx: &mut Locked<'_, Unlocked>) -> String {
        let snapshot = self.engine().inspect(cx);
        let mut waiting = Vec::new();
        for pf in snapshot.pfs.iter().filter(|pf| pf.retry.is_pending()) {
            waiting.push(format!("pci/{} is trying again", pf.address));
            for port in &pf.ports {
                for (ty, state) in RepType::ALL.into_iter().zip(&port.reps) {
                    if let RepState::Failed(failure) = state {
                        waiting.push(format!("{} {ty}: {}", port.handle, failure.error));
                    }
                }
            }
            for device in &pf.auxiliary {
                waiting.extend(device.failed.iter().map(|error| format!("{}: {error}", device.name)));
            }
        }
        waiting.truncate(5);
        if waiting.is_empty() { "work is still queued or being done".to_owned() } else { waiting.join(", ") }
    }

    pub(super) fn wait_until(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        heeds: Heeds,
        expectation: &Expectation,
    ) -> Result<(), StepError> {
        let mut unmet = (String::new(), String::new());
        let mut looks = 0;
        let pulse = &self.world().pulse;
        let met = pulse.wait_for(
            cx,
            heeds,
            self.limit().as_ref(),
            || Some(Deadline::after(TICK)),
            |cx| match self.look(cx, expectation) {
                Ok(()) => Some(Ok(())),
                Err(instead) => {
                    unmet = instead;
                    looks += 1;
                    (is_explored() && looks > LOOKS).then_some(Err(GaveUp::TimedOut))
                }
            },
        );
        met.flatten().map_err(|why| self.gave_up(why, unmet.0, unmet.1))
    }
}
