//! Telling the service manager: ready, stopping, alive, as `sd_notify` does.
//!
//! The socket is opened first thing: a daemon without root hides the folder it is in.

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

/// How long the service manager may take to have room for a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who is told, if anybody wants to be.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<OwnedFd>,
}

impl Notify {
    /// Finds who wants to be told: `$NOTIFY_SOCKET`, a path or, after `@`, an abstract name.
    pub fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        match connect(&name) {
            Ok(socket) => Self { socket: Some(socket) },
            Err(error) => {
                tracing::warn!(socket = %name.display(), %error, "the service manager cannot be told");
                Self::default()
            }
        }
    }

    /// Tells that the cards are up.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", printable(status)));
    }

    /// Tells how it goes.
    pub fn status(&self, status: &str) {
        self.tell(&format!("STATUS={}", printable(status)));
    }

    /// Tells that the end has begun.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=taking the cards down");
    }

    /// Tells that we live.
    pub fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    fn tell(&self, text: &str) {
        if let Some(socket) = &self.socket {
            // Who does not listen any more need not know.
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
    // A service manager that does not read is not waited for for ever.
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    Ok(socket)
}

/// How often the service manager wants to hear that we live, if it does: half of what it waits for.
fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let limit = number("WATCHDOG_USEC").filter(|limit| meant && *limit > 1)?;
    Some(Duration::from_micros(limit / 2))
}

/// Who tells the service manager that we live, if it wants to hear.
pub struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub fn start(notify: Arc<Notify>) -> Result<Self> {
        let Some(every) = watchdog() else { return Ok(Self { stop: None, thread: None }) };
        let (stop, stopped) = channel();
        let tell = move || {
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                notify.alive();
            }
        };
        let thread = thread::Builder::new().name("watchdog".to_owned()).spawn(tell)?;
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
    fn a_status_is_one_line_whatever_is_in_it() {
        let (ours, theirs) =
            net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
        let notify = Notify { socket: Some(ours) };
        notify.status("bringing x\nREADY=1 up");
        let mut text = [0; 256];
        let (_, length) = net::recv(&theirs, &mut text[..], net::RecvFlags::empty()).unwrap();
        assert_eq!(std::str::from_utf8(&text[..length]).unwrap().lines().count(), 1);
    }

    #[test]
    fn only_what_can_be_an_address_is_one() {
        assert!(address(OsStr::new("@name")).is_ok());
        assert!(address(OsStr::new("/run/notify")).is_ok());
        assert!(address(OsStr::new("run/notify")).is_err());
        assert!(address(OsStr::new(&format!("/{}", "x".repeat(200)))).is_err());
    }
}
