//! Following what happens to a card, in a thread of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use eswitch::{Engine, Event};
use lockdep::{Domain, Locked, Unlocked};

/// Who is told what happens to a card, until this is dropped. What happened before is told still.
///
/// It is for those who tell others and change nothing: its thread is the system's, and is not explored.
#[derive(Debug)]
pub struct Follower {
    wake: SyncSender<()>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Calls `tell` with the events since the last call, whenever there are some, in a thread of this name. It says
    /// how soon it is to be called again if nothing happens, if it has something left to do.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        cx: &mut Locked<'_, Unlocked>,
        engine: &Engine,
        domain: &Arc<Domain>,
        name: &'static str,
        mut tell: impl FnMut(&mut Locked<'_, Unlocked>, Vec<Event>) -> Option<Duration> + Send + 'static,
    ) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let stopping = Arc::new(AtomicBool::new(false));
        let events = {
            let wake = wake.clone();
            let wake = move || {
                // If it is full, whoever is woken has not looked yet.
                let _ = wake.try_send(());
            };
            engine.subscribe_waking(cx, wake)
        };
        let (domain, asked) = (Arc::clone(domain), Arc::clone(&stopping));
        let follow = move || {
            lockdep::enter(&domain, name, |cx| {
                let mut again = None;
                loop {
                    let woken = match again {
                        Some(soon) => woken.recv_timeout(soon),
                        None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    };
                    if woken == Err(RecvTimeoutError::Disconnected) {
                        return;
                    }
                    // Asked first: what happened before the word to stop is still told.
                    let last = asked.load(Ordering::Acquire);
                    let events = events.take(cx);
                    again = tell(cx, events);
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
