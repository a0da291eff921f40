//! `esw down`: the end of a daemon.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::arguments::Down;
use crate::daemon::{Found, How, NotFound, socket_of, sockets};
use crate::output::{complain, line};
use crate::{FAILED, HELD};

/// Runs the command; its exit status.
///
/// # Errors
/// The folder of sockets cannot be read.
pub fn down(arguments: &Down) -> Result<u8> {
    let named = arguments.socket.clone().or_else(|| arguments.card.as_deref().map(socket_of));
    let daemons = match &named {
        Some(path) => match Found::connect(path) {
            Ok(found) => vec![Daemon { pid: found.pid, found, sockets: vec![path.clone()] }],
            Err(error) => return Ok(complain(&error)),
        },
        None => daemons()?,
    };
    if daemons.is_empty() {
        complain!("esw: no daemon runs");
        return Ok(if arguments.all { HELD } else { FAILED });
    }
    if daemons.len() > 1 && !arguments.all {
        complain!("esw: several daemons run; say which by --card or --socket, or --all:");
        daemons.iter().for_each(|daemon| complain!("  {}", daemon.in_words()));
        return Ok(FAILED);
    }
    let how = if arguments.keep { How::Keep } else { How::Forget };
    let limit = Duration::from_secs(arguments.timeout.into());
    let mut status = HELD;
    for daemon in daemons {
        let words = daemon.in_words();
        match daemon.end(how, limit)? {
            Ended::Yes => line(&format!("ended {words}")),
            Ended::Refused(error) => status = complain(&error),
            Ended::NotYet => {
                complain!("esw: {words} has not ended within {} s", limit.as_secs());
                status = FAILED;
            }
        }
    }
    Ok(status)
}

fn complain(error: &NotFound) -> u8 {
    complain!("esw: {error}");
    FAILED
}

/// A daemon with the sockets it was found by.
struct Daemon {
    found: Found,
    pid: Pid,
    sockets: Vec<PathBuf>,
}

/// What came of asking one to end.
enum Ended {
    Yes,
    Refused(NotFound),
    NotYet,
}

/// Every daemon that answers, with its sockets.
fn daemons() -> Result<Vec<Daemon>> {
    let mut daemons: BTreeMap<i32, Daemon> = BTreeMap::new();
    for path in sockets().context("looking for control sockets")? {
        let found = match Found::connect(&path) {
            Ok(found) => found,
            // What a dead one has left is no daemon.
            Err(NotFound::Dead(_) | NotFound::None(_)) => continue,
            Err(error) => {
                complain!("esw: {error}");
                continue;
            }
        };
        let pid = found.pid;
        let daemon = daemons.entry(pid.as_raw_pid()).or_insert(Daemon { found, pid, sockets: Vec::new() });
        daemon.sockets.push(path);
    }
    Ok(daemons.into_values().collect())
}

impl Daemon {
    fn in_words(&self) -> String {
        let name = |path: &PathBuf| path.display().to_string();
        let sockets: Vec<String> = self.sockets.iter().map(name).collect();
        format!("process {} with {}", self.pid.as_raw_pid(), sockets.join(", "))
    }

    fn end(mut self, how: How, limit: Duration) -> Result<Ended> {
        let path: &Path = self.sockets.first().map_or(Path::new(""), PathBuf::as_path);
        // Before it is asked: its number may be another's afterwards.
        let process = match pidfd_open(self.pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(Ended::Yes),
            process => process.context("looking at the daemon's process")?,
        };
        if let Err(error) = self.found.end(path, how) {
            return Ok(Ended::Refused(error));
        }
        Ok(if has_ended(&process, limit)? { Ended::Yes } else { Ended::NotYet })
    }
}

fn has_ended(process: &OwnedFd, limit: Duration) -> Result<bool> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the daemon's end"),
        }
    }
}
