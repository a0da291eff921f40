//! Messages to the service manager, as sd_notify(3) sends them: ready, stopping, status, alive.
//!
//! The socket is opened at the start: a daemon without root hides the folder of the socket later.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::printable::printable;

/// How long the service manager may take until it has room for a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket of the service manager, if there is one.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<OwnedFd>,
}

impl Notify {
    /// Connects to the socket that `$NOTIFY_SOCKET` names: a path or, after `@`, an abstract name.
    pub fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        match connect(&name) {
            Ok(socket) => Self { socket: Some(socket) },
            Err(error) => {
                tracing::warn!(socket = %name.display(), %error, "the service manager cannot be notified");
                Self::default()
            }
        }
    }

    /// Sends that the cards are up.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", printable(status)));
    }

    /// Sends a status for people.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", printable(status)));
    }

    /// Sends that the daemon is ending.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=taking the cards down");
    }

    /// Sends that the daemon is alive, for the watchdog.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, text: &str) {
        if let Some(socket) = &self.socket {
            // A service manager that has closed its socket does not need the message.
            let _ = net::send(socket, text.as_bytes(), SendFlags::NOSIGNAL);
        }
    }
}

/// The address that a value of `$NOTIFY_SOCKET` names.
///
/// # Errors
/// It is too long, or no path.
pub fn address(name: &OsStr) -> Result<SocketAddrUnix, Errno> {
    match name.as_bytes() {
        [b'@', abstract_name @ ..] => SocketAddrUnix::new_abstract_name(abstract_name),
        [b'/', ..] => SocketAddrUnix::new(name),
        _ => Err(Errno::AFNOSUPPORT),
    }
}

fn connect(name: &OsString) -> Result<OwnedFd, Errno> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    net::connect(&socket, &address(name)?)?;
    // A service manager that does not read must not hold the daemon up for ever.
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    Ok(socket)
}

/// How often the service manager expects a message that the daemon is alive, if it does: half of the time it waits.
fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let is_for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let limit = number("WATCHDOG_USEC").filter(|limit| is_for_us && *limit > 1)?;
    Some(Duration::from_micros(limit / 2))
}

/// The thread that tells the service manager that the daemon is alive, if it expects that.
pub struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub fn start(notify: Arc<Notify>) -> Result<Self> {
        let Some(every) = watchdog() else { return Ok(Self { stop: None, thread: None }) };
        let (stop, stopped) = channel();
        let run = move || {
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                notify.alive();
            }
        };
        let thread = thread::Builder::new().name("watchdog".to_owned()).spawn(run)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line_whatever_it_contains() {
        let (ours, theirs) =
            net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
        let notify = Notify { socket: Some(ours) };
        notify.status("bringing x\nREADY=1 up");
        let mut text = [0; 256];
        let (_, length) = net::recv(&theirs, &mut text[..], net::RecvFlags::empty()).unwrap();
        assert_eq!(std::str::from_utf8(&text[..length]).unwrap().lines().count(), 1);
    }

    #[test]
    fn only_paths_and_abstract_names_are_addresses() {
        assert!(address(OsStr::new("@name")).is_ok());
        assert!(address(OsStr::new("/run/notify")).is_ok());
        assert!(address(OsStr::new("run/notify")).is_err());
        assert!(address(OsStr::new(&format!("/{}", "x".repeat(200)))).is_err());
    }
}
