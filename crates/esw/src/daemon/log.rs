//! What a daemon logs: its start and end, what happens to its cards, the commands it refuses.

use std::env;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use eswitch::{Event, Subscription};
use lockdep::{Domain, Locked, Unlocked};
use scenario::Session;
use tracing::level_filters::LevelFilter;

use crate::arguments::{Level, LogFormat, Service};

/// Begins to log, to standard error.
///
/// # Errors
/// The environment asks for a level there is none of.
pub fn begin(service: &Service) -> Result<()> {
    let level = match (service.log, env::var("ESW_LOG")) {
        (Some(level), _) => level,
        (None, Ok(text)) if !text.is_empty() => Level::from_str(&text, true)
            .map_err(|_| anyhow!("ESW_LOG is `{text}`; it must be error, warn, info, debug or trace"))?,
        _ => Level::default(),
    };
    let filter = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let log = tracing_subscriber::fmt().with_max_level(filter).with_writer(io::stderr).with_target(false);
    let begun = match service.log_format.unwrap_or_default() {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    begun.map_err(|error| anyhow!("beginning to log: {error}"))
}

/// Who logs what happens to a card, until this is dropped.
pub struct Chronicler {
    wake: SyncSender<()>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Chronicler {
    /// Starts it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        cx: &mut Locked<'_, Unlocked>,
        card: &str,
        session: &Session,
        domain: &Arc<Domain>,
    ) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let stopping = Arc::new(AtomicBool::new(false));
        let subscription = {
            let wake = wake.clone();
            let wake = move || {
                // If it is full, whoever is woken has not looked yet.
                let _ = wake.try_send(());
            };
            session.engine().subscribe_waking(cx, wake)
        };
        let thread = {
            let (stopping, domain, card) = (Arc::clone(&stopping), Arc::clone(domain), card.to_owned());
            let tell = move || lockdep::enter(&domain, "log", |cx| follow(cx, &card, &subscription, &woken, &stopping));
            thread::Builder::new().name("log".to_owned()).spawn(tell)?
        };
        Ok(Self { wake, stopping, thread: Some(thread) })
    }
}

impl Drop for Chronicler {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        let _ = self.wake.try_send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn follow(
    cx: &mut Locked<'_, Unlocked>,
    card: &str,
    events: &Subscription,
    woken: &Receiver<()>,
    stopping: &AtomicBool,
) {
    while woken.recv().is_ok() {
        // Asked first: what happened before the word to stop is still told.
        let last = stopping.load(Ordering::Acquire);
        events.take(cx).iter().for_each(|event| tell(card, event));
        if last {
            return;
        }
    }
}

fn tell(card: &str, event: &Event) {
    match event {
        Event::LoadFailed(..) | Event::HostVfsFailed(..) | Event::ProbeFailed(..) => tracing::warn!(card, "{event}"),
        Event::PortNew(_) | Event::PortDel(_) | Event::StaleWork(..) => tracing::debug!(card, "{event}"),
        _ => tracing::info!(card, "{event}"),
    }
}
