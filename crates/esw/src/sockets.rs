//! Finding cards that are up: by their control sockets.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use devlink::{Client, ClientError};

use crate::daemon::{folders, socket_of, sockets};
use crate::output::complain;

/// Which cards are meant.
#[derive(Clone, Debug, Default, Args)]
pub struct Which {
    /// The card of this name alone, rather than all that are up
    #[arg(long, value_name = "NAME", conflicts_with = "socket")]
    pub card: Option<String>,
    /// The card behind this control socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// A card that is up.
#[derive(Debug)]
pub struct Found {
    /// Its name: that of its socket.
    pub name: String,
    /// Its control socket.
    pub path: PathBuf,
    /// A connection to it.
    pub client: Client,
}

impl Which {
    /// Connects to each card that is meant and up, by name.
    ///
    /// # Errors
    /// One that is named does not answer, or none is up at all.
    pub fn connect(&self) -> Result<Vec<Found>> {
        if let Some(path) = &self.socket {
            return Ok(vec![found(path)?]);
        }
        if let Some(name) = &self.card {
            return Ok(vec![found(&socket_of(name)?)?]);
        }
        let mut cards = Vec::new();
        let mut refused = Vec::new();
        for found in all_at_once(sockets().context("looking for control sockets")?, |path| found(&path)) {
            match found {
                Ok(card) => cards.push(card),
                // What a dead daemon has left is no card.
                Err(ClientError::NoCard { source, .. })
                    if matches!(source.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {}
                Err(error) => refused.push(error),
            }
        }
        // Without those it would look as if they were not there.
        if !cards.is_empty() {
            refused.iter().for_each(|error| complain!("esw: {error}"));
        }
        match refused.pop() {
            Some(error) if cards.is_empty() => Err(error.into()),
            _ if cards.is_empty() => {
                bail!("no card is up; `esw up --daemon` brings one up (looked in {})", folders::sockets().display())
            }
            _ => Ok(cards),
        }
    }
}

/// Does something with each of several things at once, as each may wait; what came of them is in their order. Where
/// the system gives no more threads, some come one after the other.
pub fn all_at_once<T: Send, R: Send>(things: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
    let things: Vec<Mutex<Option<T>>> = things.into_iter().map(|thing| Mutex::new(Some(thing))).collect();
    let take = &|thing: &Mutex<Option<T>>| thing.lock().unwrap_or_else(PoisonError::into_inner).take().map(&f);
    std::thread::scope(|scope| {
        let start = |thing| std::thread::Builder::new().spawn_scoped(scope, move || take(thing)).ok();
        let threads: Vec<_> = things.iter().map(|thing| (thing, start(thing))).collect();
        let done = threads.into_iter().filter_map(|(thing, thread)| match thread {
            Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => take(thing),
        });
        done.collect()
    })
}

fn found(path: &Path) -> Result<Found, ClientError> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Found { name, path: path.to_owned(), client: Client::connect(path)? })
}
