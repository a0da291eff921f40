//! Finds cards that are up, by their control sockets.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use anyhow::{Context as _, Result, bail};
use devlink::{Client, ClientError};

use crate::arguments::Which;
use crate::daemon::{folders, socket_of, sockets};
use crate::output::complain;

/// A card that is up.
#[derive(Debug)]
pub struct ConnectedCard {
    /// The card's name, which is that of its socket.
    pub name: String,
    /// Its control socket.
    pub path: PathBuf,
    /// A connection to it.
    pub client: Client,
}

/// Connects to each card that a command is for and that is up, in the order of their names.
///
/// # Errors
/// A card that was named does not answer, or no card is up.
pub fn connect(which: &Which) -> Result<Vec<ConnectedCard>> {
    if let Some(path) = &which.socket {
        return Ok(vec![found(path)?]);
    }
    if let Some(name) = &which.card {
        return Ok(vec![found(&socket_of(name)?)?]);
    }
    let mut cards = Vec::new();
    let mut refused = Vec::new();
    for found in all_at_once(sockets().context("looking for control sockets")?, |path| found(&path)) {
        match found {
            Ok(card) => cards.push(card),
            // The socket of a dead daemon is no card.
            Err(ClientError::NoCard { source, .. })
                if matches!(source.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {}
            Err(error) => refused.push(error),
        }
    }
    // A card that refuses must not look like one that does not exist.
    if !cards.is_empty() {
        refused.iter().for_each(|error| complain!("esw: {error}"));
    }
    match refused.pop() {
        Some(error) if cards.is_empty() => Err(error.into()),
        _ if cards.is_empty() => {
            bail!("{}", none_up())
        }
        _ => Ok(cards),
    }
}

/// That no card is up, with where it was looked, and the nodes on which cards are.
pub fn none_up() -> String {
    let nodes = folders::nodes().join(", ");
    let nodes = if nodes.is_empty() { nodes } else { format!("; there are cards with --node {nodes}") };
    let folder = folders::sockets();
    format!("no card is up; `esw up --daemon --detach` brings one up (looked in {}{nodes})", folder.display())
}

/// Calls `f` with each of several things, each on a thread of its own, as each call may wait; the results are in the
/// order of the things. A call for which the system gives no thread is done on the calling thread.
pub fn all_at_once<T: Send, R: Send>(things: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
    let f = &f;
    std::thread::scope(|scope| {
        let mut started = Vec::new();
        for thing in things {
            // The thing is sent when there is a thread: a thread that cannot be started would take it along.
            let (send, receive) = sync_channel(1);
            let run = move || receive.recv().ok().map(f);
            started.push(match std::thread::Builder::new().spawn_scoped(scope, run) {
                Ok(thread) => {
                    // The thread waits for it, so it is received.
                    let _ = send.send(thing);
                    Ok(thread)
                }
                Err(_) => Err(thing),
            });
        }
        let results = started.into_iter().filter_map(|started| match started {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(thing) => Some(f(thing)),
        });
        results.collect()
    })
}

fn found(path: &Path) -> Result<ConnectedCard, ClientError> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(ConnectedCard { name, path: path.to_owned(), client: Client::connect(path)? })
}
