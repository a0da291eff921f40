//! Ctrl-C: the first ends what runs and takes the card down, the second ends the command at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use host::Pulse;
use lockdep::Domain;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::exit_status::INTERRUPTED;

/// How late the thread that listens may be.
const LATE: Duration = Duration::from_millis(50);

/// While this is set, Ctrl-C is for a program in the foreground and not for us.
#[derive(Clone, Debug, Default)]
pub struct Elsewhere(Arc<AtomicBool>);

impl Elsewhere {
    /// Runs `f` while Ctrl-C is for somebody else.
    pub fn during<R>(&self, f: impl FnOnce() -> R) -> R {
        self.0.store(true, Ordering::SeqCst);
        let result = f();
        // A Ctrl-C that ended the program was sent to us too; the thread that listens may be late.
        thread::sleep(LATE);
        self.0.store(false, Ordering::SeqCst);
        result
    }
}

/// Starts the thread that listens for signals and stops the pulse.
///
/// # Errors
/// The system gives no handler or no thread.
pub fn listen(domain: &Arc<Domain>, pulse: &Arc<Pulse>) -> Result<Elsewhere> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("installing signal handlers")?;
    let elsewhere = Elsewhere::default();
    let (domain, pulse, theirs) = (Arc::clone(domain), Arc::clone(pulse), elsewhere.clone());
    let listen = move || {
        lockdep::enter(&domain, "signals", |cx| {
            for signal in signals.forever() {
                if signal == SIGINT && theirs.0.load(Ordering::SeqCst) {
                    continue;
                }
                if pulse.is_stopped(cx) {
                    std::process::exit(INTERRUPTED.into());
                }
                pulse.stop(cx);
            }
        });
    };
    thread::Builder::new().name("signals".to_owned()).spawn(listen)?;
    Ok(elsewhere)
}
