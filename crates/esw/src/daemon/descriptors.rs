//! The descriptors of a daemon: how many it has, and how many each card's clients may use.

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The most connections to a card at a time, if there are enough descriptors.
const CLIENTS: usize = 1_024;
/// The descriptors for everything else: the cards' own sockets and namespaces, the journal, the log.
const OTHERS: u64 = 128;

/// Checks that a client can connect: a daemon that has used up its descriptors by coming up could not even be told to
/// end.
///
/// # Errors
/// Too few descriptors are left.
pub fn ensure_descriptors_for_clients() -> Result<()> {
    // For two clients, each with a shared view, and for a request for netdevs.
    const SPARE: usize = 8;
    // An eventfd needs no file, and no file exists everywhere.
    let spare: rustix::io::Result<Vec<_>> = (0..SPARE).map(|_| eventfd(0, EventfdFlags::CLOEXEC)).collect();
    spare.map(drop).context(
        "too few descriptors are left for clients to connect: allow more (`ulimit -n`, in a unit `LimitNOFILE=`), or \
         put fewer cards into one daemon",
    )
}

/// Raises the limit of descriptors as far as it can be raised; the limit.
pub fn descriptors() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let highest = Rlimit { current: limit.maximum, ..limit };
    if setrlimit(Resource::Nofile, highest).is_ok() {
        limit = highest;
    }
    limit.current.unwrap_or(u64::MAX)
}

/// The number of clients that each card accepts. A client that could not be accepted would wait for ever; one too many is
/// accepted, and its connection is closed.
pub fn clients_of_each(descriptors: u64, cards: usize) -> usize {
    let each = descriptors.saturating_sub(OTHERS) / (cards.max(1) as u64);
    usize::try_from(each).unwrap_or(CLIENTS).clamp(8, CLIENTS)
}
