//! How many descriptors a daemon has, and for whom.

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections to a card at a time at most, if there are descriptors for so many.
const CLIENTS: usize = 1_024;
/// Descriptors for everything else: the cards' own sockets and namespaces, the journal, the log.
const OTHERS: u64 = 128;

/// Makes sure that somebody can be let in: a daemon that has used up its descriptors by coming up could not even be told
/// to end.
pub fn ensure_descriptors_for_clients() -> Result<()> {
    // Two clients, each with what a view is shared by, and a look at netdevs.
    const SPARE: usize = 8;
    // Of no file: there may be none that is there everywhere.
    let spare: rustix::io::Result<Vec<_>> = (0..SPARE).map(|_| eventfd(0, EventfdFlags::CLOEXEC)).collect();
    spare.map(drop).context(
        "there are too few descriptors left to let anybody in: allow more (`ulimit -n`, in a unit `LimitNOFILE=`), or \
         put fewer cards into one daemon",
    )
}

/// How many descriptors this process may have, once it may have as many as it can.
pub fn descriptors() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let highest = Rlimit { current: limit.maximum, ..limit };
    if setrlimit(Resource::Nofile, highest).is_ok() {
        limit = highest;
    }
    limit.current.unwrap_or(u64::MAX)
}

/// How many clients each card takes. One that nobody could accept would wait for an answer for ever; one too many
/// is told so by the end of its connection.
pub fn clients_of_each(descriptors: u64, cards: usize) -> usize {
    let each = descriptors.saturating_sub(OTHERS) / (cards.max(1) as u64);
    usize::try_from(each).unwrap_or(CLIENTS).clamp(8, CLIENTS)
}
