//! A card behind a control socket, as a lab takes it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use devlink::{CHANGES_GROUP, CONFIG_GROUP, Client, ClientError, ESWITCH, eswitch_family, view, wire};
use lab::{Card, Refusal};
use rustix::net::{RecvFlags, recv};

/// A card in another process.
pub struct Remote {
    path: PathBuf,
    seen: Mutex<Seen>,
}

/// What was seen of it last.
struct Seen {
    /// Where another view is told of.
    watcher: Client,
    /// Where it is asked for.
    asking: Client,
    view: Arc<view::Card>,
}

impl Remote {
    /// Connects to a card.
    ///
    /// # Errors
    /// It does not answer.
    pub fn connect(path: PathBuf) -> Result<Self, ClientError> {
        let mut watcher = Client::connect(&path)?;
        watcher.ask(ESWITCH, eswitch_family::JOIN, 0, |to| {
            to.u32(eswitch_family::GROUP, CHANGES_GROUP);
        })?;
        let mut asking = Client::connect(&path)?;
        let view = Arc::new(look(&mut asking)?);
        Ok(Self { path, seen: Mutex::new(Seen { watcher, asking, view }) })
    }
}

/// Asks for the view.
fn look(client: &mut Client) -> Result<view::Card, ClientError> {
    let pieces = client.ask(ESWITCH, eswitch_family::VIEW, wire::DUMP, |_| {})?;
    let json = eswitch_family::joined(&pieces);
    serde_json::from_slice(&json).map_err(|error| ClientError::Broken(io::Error::other(error)))
}

impl Seen {
    /// Whether another view has been told of since the last time.
    fn has_been_told(&self) -> io::Result<bool> {
        let (mut told, mut buffer) = (false, [0; 256]);
        loop {
            match recv(self.watcher.socket(), &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => told = true,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(told),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Card for Remote {
    fn view(&self) -> io::Result<Arc<view::Card>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.has_been_told()? {
            seen.view = Arc::new(look(&mut seen.asking).map_err(io::Error::other)?);
        }
        Ok(Arc::clone(&seen.view))
    }

    fn perform(&self, words: &str) -> Result<(), Refusal> {
        let broken = |error: ClientError| Refusal { errno: 19, message: error.to_string() };
        let mut client = Client::connect(&self.path).map_err(broken)?;
        let done = client.ask(ESWITCH, eswitch_family::PERFORM, 0, |to| {
            to.text(eswitch_family::WORDS, words);
        });
        match done {
            Ok(_) => Ok(()),
            Err(ClientError::Refused(refusal)) => {
                let message = refusal.message.unwrap_or_default();
                Err(Refusal { errno: refusal.errno, message })
            }
            Err(error) => Err(broken(error)),
        }
    }

    fn connect(&self) -> io::Result<OwnedFd> {
        devlink::connect(&self.path)
    }

    fn listen(&self) -> io::Result<OwnedFd> {
        let mut client = Client::connect(&self.path).map_err(io::Error::other)?;
        let joined = client.ask(ESWITCH, eswitch_family::JOIN, 0, |to| {
            to.u32(eswitch_family::GROUP, CONFIG_GROUP);
        });
        joined.map_err(io::Error::other)?;
        Ok(client.into_socket())
    }
}
