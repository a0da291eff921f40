//! Signals: the first SIGINT or SIGTERM stops what runs, so that the card is taken down; the second ends the command at
//! once.

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

/// How late the thread that receives signals may be.
const LATE: Duration = Duration::from_millis(50);

/// Whether Ctrl-C is for a program in the foreground rather than for this process.
#[derive(Clone, Debug, Default)]
pub struct ForegroundProgram(Arc<AtomicBool>);

impl ForegroundProgram {
    /// Runs `f`, and ignores Ctrl-C meanwhile.
    pub fn during<R>(&self, f: impl FnOnce() -> R) -> R {
        self.0.store(true, Ordering::SeqCst);
        let result = f();
        // A Ctrl-C that ended the program was sent to this process, too, and the thread that receives it may be late.
        thread::sleep(LATE);
        self.0.store(false, Ordering::SeqCst);
        result
    }
}

/// Starts the thread that receives signals and stops the pulse.
///
/// # Errors
/// The system gives no handler or no thread.
pub fn listen(domain: &Arc<Domain>, pulse: &Arc<Pulse>) -> Result<ForegroundProgram> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("installing signal handlers")?;
    let foreground = ForegroundProgram::default();
    let (domain, pulse, theirs) = (Arc::clone(domain), Arc::clone(pulse), foreground.clone());
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
    Ok(foreground)
}
