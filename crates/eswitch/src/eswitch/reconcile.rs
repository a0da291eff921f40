//! Reconcile: loads what should be loaded.
//!
//! What should be loaded is a function of state: the mode is switchdev, the vport is enabled and has a representor, the
//! type is registered. What is loaded is the representor table. One function makes the second equal to the first. It is
//! idempotent, so a missed event does no harm.

use std::sync::Arc;

use lockdep::Locked;

use crate::device::Pf;
use crate::devlink::DevlinkState;
use crate::eswitch::representor::LoadPolicy;
use crate::event::Event;
use crate::lock_order::Devlink;

impl Pf {
    /// Requests a reconcile. Cannot fail.
    pub(crate) fn want_reconcile<L>(&self, cx: &mut Locked<'_, L>) {
        self.eswitch.work.mark_reconcile(cx);
    }

    /// Does what is missing: binds drivers that should be bound, enables the VFs that the host has enabled, and loads
    /// the representors that should be loaded. What fails is tried again, with back-off, until it succeeds.
    pub(crate) fn reconcile(self: &Arc<Self>, state: &mut DevlinkState, cx: &mut Locked<'_, Devlink>) {
        self.eswitch.stated.ensure_fresh(cx, None);
        if !state.registered {
            return;
        }
        let mode = self.eswitch.mode.under_devlink(state, cx);
        let mut complete = {
            let (mut component, mut cx) = self.shared.devcom.write(cx);
            component.rescan(&mut cx, &self.shared, self.index()).is_ok()
        };
        if self.shared.config.dpu {
            let followed = self.follow_host_vfs(state, cx, mode);
            complete &= followed.is_ok();
            state.host_failure = followed.err().map(|error| error.to_string());
            if let Some(why) = state.host_failure.clone() {
                self.shared.events.emit(cx, || Event::HostVfsFailed(self.address(), why));
            }
        }
        if mode.is_switchdev() {
            complete &= self.load_all(cx, LoadPolicy::Lenient).is_ok();
            complete &= self.pair(cx).is_ok();
        }
        if complete {
            self.eswitch.work.inner().no_retry(cx);
        } else {
            self.retry_later(cx);
        }
    }

    fn retry_later(&self, cx: &mut Locked<'_, Devlink>) {
        let delay = self.eswitch.work.inner().retry(cx, |attempt| self.shared.config.retry_delay(attempt));
        self.shared.events.emit(cx, || Event::Retry(self.address(), delay.as_millis() as u64));
    }
}
