//! Finds daemons by their control sockets, and sends them requests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use devlink::eswitch_family::{END, STATUS, WORDS};
use devlink::{Client, ClientError, ESWITCH};
use netlink::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::process::Pid;

use super::ending::How;
use super::folders;
use super::status::CardStatus;

/// How long a daemon may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A card's control socket with a daemon behind it.
pub struct DaemonConnection {
    client: Client,
    /// The daemon's process.
    pub pid: Pid,
}

/// Why a card does not answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// There is no such socket.
    #[error("there is no card at {0}; `esw status` lists those that are up")]
    None(PathBuf),
    /// No process listens on the socket.
    #[error("the daemon of {0} has died; `esw up --daemon` finds what it has left")]
    Dead(PathBuf),
    /// This user may not connect to the socket.
    #[error("{0}: permission denied; it belongs to another user, or is for members of a group")]
    Denied(PathBuf),
    /// The daemon does not answer in time.
    #[error("{0}: the daemon does not answer; it may be stopped, or be busy")]
    Silent(PathBuf),
    /// Another error.
    #[error("{0}: {1}")]
    Other(PathBuf, String),
}

/// The control socket of the card of a name, in the default folder.
///
/// # Errors
/// The folder cannot be trusted.
pub fn socket_of(card: &str) -> io::Result<PathBuf> {
    let folder = folders::sockets();
    folders::ensure_own(&folder)?;
    Ok(folder.join(format!("{card}.sock")))
}

/// Every control socket in the default folder, sorted.
///
/// # Errors
/// The folder cannot be trusted, or cannot be read.
pub fn sockets() -> io::Result<Vec<PathBuf>> {
    let folder = folders::sockets();
    folders::ensure_own(&folder)?;
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "sock") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

impl DaemonConnection {
    /// Connects to a card. No request over the connection waits for an answer after `until`.
    ///
    /// # Errors
    /// No daemon answers there, or not in time.
    pub fn connect(path: &Path, until: Instant) -> Result<Self, NoAnswer> {
        let client = Client::connect_by(path, until).map_err(|error| match error {
            ClientError::NoCard { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => NoAnswer::None(path.to_owned()),
                io::ErrorKind::ConnectionRefused => NoAnswer::Dead(path.to_owned()),
                io::ErrorKind::PermissionDenied => NoAnswer::Denied(path.to_owned()),
                io::ErrorKind::TimedOut => NoAnswer::Silent(path.to_owned()),
                _ => NoAnswer::Other(path.to_owned(), source.to_string()),
            },
            other => NoAnswer::Other(path.to_owned(), other.to_string()),
        })?;
        let other = |error: rustix::io::Errno| NoAnswer::Other(path.to_owned(), error.to_string());
        let pid = socket_peercred(client.socket()).map_err(other)?.pid;
        Ok(Self { client, pid })
    }

    /// The card's status, from its daemon.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&mut self, path: &Path) -> Result<CardStatus, NoAnswer> {
        let other = |why: String| NoAnswer::Other(path.to_owned(), why);
        let answered = self.client.dump(ESWITCH, STATUS, |_| ()).map_err(|error| match error {
            ClientError::Broken(error) if error.kind() == io::ErrorKind::TimedOut => NoAnswer::Silent(path.to_owned()),
            error => other(error.to_string()),
        })?;
        serde_json::from_slice(&devlink::join_pieces(&answered))
            .map_err(|error| other(format!("its status cannot be read: {error}")))
    }

    /// Requests the end of the daemon. When this returns, the daemon may still be ending.
    ///
    /// # Errors
    /// The daemon refuses, or does not answer.
    pub fn end(&mut self, path: &Path, how: How) -> Result<(), NoAnswer> {
        let answer = self.client.ask(ESWITCH, END, |to| {
            to.text(WORDS, how.word());
        });
        match answer {
            Ok(_) => Ok(()),
            // The daemon may end before it has sent the answer.
            Err(ClientError::Broken(error)) if error.kind() != io::ErrorKind::TimedOut => Ok(()),
            Err(ClientError::Broken(_)) => Err(NoAnswer::Silent(path.to_owned())),
            Err(ClientError::Refused(refusal)) if refusal.errno == Errno::PERM => {
                Err(NoAnswer::Denied(path.to_owned()))
            }
            Err(error) => Err(NoAnswer::Other(path.to_owned(), error.to_string())),
        }
    }
}
