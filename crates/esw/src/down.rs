//! `esw down`: ends daemons.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::arguments::Down;
use crate::daemon::{DaemonConnection, How, NoAnswer, socket_of, sockets};
use crate::exit_status::{FAILED, HELD};
use crate::output::{complain, line};
use crate::printable::printable;
use crate::sockets::all_at_once;

/// Runs the command; its exit status. It takes no longer than `--timeout`, whatever the daemons do.
///
/// # Errors
/// The folder of sockets cannot be read, or trusted.
pub fn down(arguments: &Down) -> Result<u8> {
    let limit = Duration::from_secs(arguments.timeout.into());
    let until = Instant::now() + limit;
    let mut status = HELD;
    let daemons = match named(arguments)? {
        Some(path) => match DaemonConnection::connect(&path, until) {
            Ok(connection) => vec![Daemon { pid: connection.pid, connection, sockets: vec![path] }],
            Err(error) => return Ok(complain(&error)),
        },
        None => {
            let (daemons, errors) = daemons(until)?;
            errors.iter().for_each(|error| status = complain(error));
            daemons
        }
    };
    if daemons.is_empty() {
        if status == HELD {
            complain!("esw: no daemon runs");
        }
        return Ok(if arguments.all { status } else { FAILED });
    }
    if daemons.len() > 1 && !arguments.all {
        complain!("esw: several daemons run; say which by --card or --socket, or --all:");
        daemons.iter().for_each(|daemon| complain!("  {}", daemon.in_words()));
        return Ok(FAILED);
    }
    let how = if arguments.keep { How::Keep } else { How::Forget };
    // All at once: a daemon that does not end must not take the time of the others.
    let words: Vec<String> = daemons.iter().map(Daemon::in_words).collect();
    let ended = all_at_once(daemons, |daemon| daemon.end(how, until));
    for (words, ended) in words.iter().zip(ended) {
        match ended? {
            Ended::Yes => line(&printable(&format!("ended {words}"))),
            Ended::Refused(error) => status = complain(&error),
            Ended::NotYet => {
                complain!("esw: {words} has not ended within {} s", limit.as_secs());
                status = FAILED;
            }
        }
    }
    Ok(status)
}

/// The socket that the arguments name, if they name one.
fn named(arguments: &Down) -> Result<Option<PathBuf>> {
    Ok(match (&arguments.socket, &arguments.card) {
        (Some(socket), _) => Some(socket.clone()),
        (None, Some(card)) => Some(socket_of(card)?),
        (None, None) => None,
    })
}

fn complain(error: &NoAnswer) -> u8 {
    complain!("esw: {error}");
    FAILED
}

/// A daemon, with the sockets by which it was found.
struct Daemon {
    connection: DaemonConnection,
    pid: Pid,
    sockets: Vec<PathBuf>,
}

/// The outcome of a request to end.
enum Ended {
    Yes,
    Refused(NoAnswer),
    NotYet,
}

/// Every daemon that answers, with its sockets; and the errors of those that do not.
fn daemons(until: Instant) -> Result<(Vec<Daemon>, Vec<NoAnswer>)> {
    let paths = sockets().context("looking for control sockets")?;
    let mut daemons: BTreeMap<i32, Daemon> = BTreeMap::new();
    let mut errors = Vec::new();
    let all = all_at_once(paths, |path| DaemonConnection::connect(&path, until).map(|found| (found, path)));
    for found in all {
        match found {
            Ok((found, path)) => {
                let pid = found.pid;
                let daemon =
                    daemons.entry(pid.as_raw_pid()).or_insert(Daemon { connection: found, pid, sockets: Vec::new() });
                daemon.sockets.push(path);
            }
            // The socket of a dead daemon is no daemon.
            Err(NoAnswer::Dead(_) | NoAnswer::None(_)) => {}
            Err(error) => errors.push(error),
        }
    }
    Ok((daemons.into_values().collect(), errors))
}

impl Daemon {
    fn in_words(&self) -> String {
        let name = |path: &PathBuf| path.display().to_string();
        let sockets: Vec<String> = self.sockets.iter().map(name).collect();
        format!("process {} with {}", self.pid.as_raw_pid(), sockets.join(", "))
    }

    fn end(mut self, how: How, until: Instant) -> Result<Ended> {
        let path: &Path = self.sockets.first().map_or(Path::new(""), PathBuf::as_path);
        // Before the request: afterwards its number may be that of another process.
        let process = match pidfd_open(self.pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(Ended::Yes),
            process => process.context("looking at the daemon's process")?,
        };
        match self.connection.end(path, how) {
            // A daemon that does not answer in time may still end.
            Ok(()) | Err(NoAnswer::Silent(_)) => {}
            Err(error) => return Ok(Ended::Refused(error)),
        }
        Ok(if has_ended(&process, until)? { Ended::Yes } else { Ended::NotYet })
    }
}

fn has_ended(process: &OwnedFd, until: Instant) -> Result<bool> {
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
