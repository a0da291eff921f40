//! What a daemon logs: its start and end, what happens to its cards, the commands it refuses.

use std::env;
use std::io::{self, IsTerminal};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use eswitch::Event;
use lockdep::{Domain, Locked, Unlocked};
use scenario::{Follower, Session};
use tracing::level_filters::LevelFilter;

use crate::arguments::{Level, LogFormat, Service};
use crate::printable::printable;

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

/// Logs what happens to a card, until what is returned is dropped.
///
/// # Errors
/// The system gives no thread.
pub fn follow(
    cx: &mut Locked<'_, Unlocked>,
    card: &str,
    session: &Session,
    domain: &Arc<Domain>,
) -> io::Result<Follower> {
    let card = card.to_owned();
    Follower::start(cx, session.engine(), domain, "log", move |_, events| {
        events.iter().for_each(|event| tell(&card, event));
    })
}

fn tell(card: &str, event: &Event) {
    // Netdevs and rate nodes have the names that others give them.
    let text = event.to_string();
    let text = printable(&text);
    match event {
        Event::LoadFailed(..) | Event::HostVfsFailed(..) | Event::ProbeFailed(..) => tracing::warn!(card, "{text}"),
        Event::PortNew(_) | Event::PortDel(_) | Event::StaleWork(..) => tracing::debug!(card, "{text}"),
        _ => tracing::info!(card, "{text}"),
    }
}
