//! `esw status`: the cards that daemons keep up.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::arguments::Status;
use crate::daemon::{CardStatus, DaemonConnection, NoAnswer, PATIENCE, PfStatus, socket_of, sockets};
use crate::exit_status::{FAILED, HELD};
use crate::output::{complain, line};
use crate::printable::{printable, printable_json};
use crate::sockets::{all_at_once, none_up};

/// Runs the command; its exit status.
///
/// # Errors
/// The folder of sockets cannot be read, or trusted.
pub fn status(arguments: &Status) -> Result<u8> {
    let named = match (&arguments.socket, &arguments.card) {
        (Some(socket), _) => Some(socket.clone()),
        (None, Some(card)) => Some(socket_of(card)?),
        (None, None) => None,
    };
    let is_named = named.is_some();
    let paths = match named {
        Some(path) => vec![path],
        None => sockets().context("looking for control sockets")?,
    };
    if paths.is_empty() && !arguments.json {
        line(&none_up());
    }
    let until = Instant::now() + PATIENCE;
    let mut status = HELD;
    for answer in all_at_once(paths, |path| ask(&path, until)) {
        match answer {
            Ok(card) => show(&card, arguments.json),
            // It has ended in good order since the sockets were listed.
            Err(NoAnswer::None(_)) if !is_named => {}
            Err(error) => {
                complain!("esw: {error}");
                status = FAILED;
            }
        }
    }
    Ok(status)
}

fn ask(path: &Path, until: Instant) -> Result<CardStatus, NoAnswer> {
    DaemonConnection::connect(path, until)?.status(path)
}

fn show(card: &CardStatus, json: bool) {
    if json {
        // The status has text and numbers only, so this cannot fail.
        line(&printable_json(&serde_json::to_string(card).unwrap_or_default()));
        return;
    }
    let up = duration(Duration::from_secs(card.uptime_seconds));
    let line = |text: String| line(&printable(&text));
    line(format!("{}  {} card, up {up}, process {}, {}", card.name, card.kind, card.pid, card.socket.display()));
    for pf in &card.pfs {
        line(format!("  {}", in_words(pf)));
        for failure in &pf.failures {
            line(format!("    FAILED  {failure}"));
        }
        for setting in &pf.not_enforced {
            line(format!("    NOT ENFORCED  {setting}"));
        }
    }
}

fn in_words(pf: &PfStatus) -> String {
    let Some(mode) = &pf.mode else { return format!("pci/{}  not bound to its driver", pf.address) };
    let count = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
    let mut words = vec![
        format!("pci/{}  {mode}", pf.address),
        count(pf.vfs.into(), "VF"),
        count(pf.sfs, "SF"),
        count(pf.representors, "representor"),
    ];
    if pf.rdma_representors > 0 {
        words.push(count(pf.rdma_representors, "RDMA representor"));
    }
    words.join(", ")
}

/// A time in words, in two units at most.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_in_two_units() {
        let printed = [7, 61, 3_700, 90_000].map(|seconds| duration(Duration::from_secs(seconds)));
        assert_eq!(printed, ["7 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }
}
