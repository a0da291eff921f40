//! Delivers the events of a card to a callback, in a thread of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use eswitch::{Engine, Event};
use lockdep::{Domain, Locked, Unlocked};

/// A thread that passes the events of a card to a callback until this is dropped. Events from before the drop are
/// still delivered.
///
/// It is for callbacks that report events to others and change nothing: it is a thread of the system, which is not
/// explored.
#[derive(Debug)]
pub struct Follower {
    wake: SyncSender<()>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Calls `deliver` in a thread with this name whenever there are new events, with the events since the last call.
    /// If `deliver` has work left, it returns the time after which it is to be called again although no event has
    /// occurred.
    ///
    /// # Errors
    /// The system cannot create a thread.
    pub fn start(
        cx: &mut Locked<'_, Unlocked>,
        engine: &Engine,
        domain: &Arc<Domain>,
        name: &'static str,
        mut deliver: impl FnMut(&mut Locked<'_, Unlocked>, Vec<Event>) -> Option<Duration> + Send + 'static,
    ) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let stopping = Arc::new(AtomicBool::new(false));
        let events = {
            let wake = wake.clone();
            let wake = move || {
                // If the channel is full, the thread has a wake-up that it has not read yet.
                let _ = wake.try_send(());
            };
            engine.subscribe_waking(cx, wake)
        };
        let (domain, must_stop) = (Arc::clone(domain), Arc::clone(&stopping));
        let follow = move || {
            lockdep::enter(&domain, name, |cx| {
                let mut call_again_in = None;
                loop {
                    let woken = match call_again_in {
                        Some(time) => woken.recv_timeout(time),
                        None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    };
                    if woken == Err(RecvTimeoutError::Disconnected) {
                        return;
                    }
                    // Loaded before the events are taken, so that events from before the drop are still delivered.
                    let last = must_stop.load(Ordering::Acquire);
                    let events = events.take(cx);
                    call_again_in = deliver(cx, events);
                    if last {
                        return;
                    }
                }
            });
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(follow)?;
        Ok(Self { wake, stopping, thread: Some(thread) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        let _ = self.wake.try_send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
