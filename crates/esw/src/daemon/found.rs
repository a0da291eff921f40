//! Daemons from outside: where their sockets are, and how they are asked.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use devlink::eswitch_family::{END, STATUS, WORDS, joined};
use devlink::{Client, ClientError, ESWITCH, wire};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::process::Pid;

use super::folders;
use super::host::How;
use super::told::CardStatus;

/// A daemon that does not answer for so long does not answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A card's control socket with a daemon behind it.
pub struct Found {
    client: Client,
    /// The daemon's process.
    pub pid: Pid,
}

/// Why a card cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// No socket.
    #[error("there is no card at {0}; `esw status` lists those that are up")]
    None(PathBuf),
    /// A socket nobody listens on.
    #[error("the daemon of {0} has died; `esw up --daemon` finds what it has left")]
    Dead(PathBuf),
    /// No permission.
    #[error("{0}: permission denied; it belongs to another user, or is for members of a group")]
    Denied(PathBuf),
    /// It does not answer, or answers otherwise.
    #[error("{0}: {1}")]
    Other(PathBuf, String),
}

/// The control socket of a card of a name, where it is by default.
pub fn socket_of(card: &str) -> PathBuf {
    folders::sockets().join(format!("{card}.sock"))
}

/// Every control socket where they are by default.
///
/// # Errors
/// The folder cannot be read.
pub fn sockets() -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folders::sockets()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|end| end == "sock")).collect();
    paths.sort();
    Ok(paths)
}

impl Found {
    /// Connects to a card.
    ///
    /// # Errors
    /// Nobody answers there.
    pub fn connect(path: &Path) -> Result<Self, NotFound> {
        let client = Client::connect(path).map_err(|error| match error {
            ClientError::NoCard { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => NotFound::None(path.to_owned()),
                io::ErrorKind::ConnectionRefused => NotFound::Dead(path.to_owned()),
                io::ErrorKind::PermissionDenied => NotFound::Denied(path.to_owned()),
                _ => NotFound::Other(path.to_owned(), source.to_string()),
            },
            other => NotFound::Other(path.to_owned(), other.to_string()),
        })?;
        let other = |error: rustix::io::Errno| NotFound::Other(path.to_owned(), error.to_string());
        set_socket_timeout(client.socket(), Timeout::Recv, Some(PATIENCE)).map_err(other)?;
        let pid = socket_peercred(client.socket()).map_err(other)?.pid;
        Ok(Self { client, pid })
    }

    /// What the daemon tells of the card.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&mut self, path: &Path) -> Result<CardStatus, NotFound> {
        let other = |why: String| NotFound::Other(path.to_owned(), why);
        let answered =
            self.client.ask(ESWITCH, STATUS, wire::DUMP, |_| ()).map_err(|error| other(error.to_string()))?;
        serde_json::from_slice(&joined(&answered))
            .map_err(|error| other(format!("it tells of itself what is not understood: {error}")))
    }

    /// Asks the daemon to end. That it has not refused does not say that it has ended.
    ///
    /// # Errors
    /// It refuses.
    pub fn end(&mut self, path: &Path, how: How) -> Result<(), NotFound> {
        let asked = self.client.ask(ESWITCH, END, 0, |to| {
            to.text(WORDS, how.words());
        });
        match asked {
            Ok(_) => Ok(()),
            // It may be gone before the answer is sent.
            Err(ClientError::Broken(error)) if error.kind() != io::ErrorKind::WouldBlock => Ok(()),
            Err(ClientError::Refused(refusal)) if refusal.errno == 1 => Err(NotFound::Denied(path.to_owned())),
            Err(error) => Err(NotFound::Other(path.to_owned(), error.to_string())),
        }
    }
}
