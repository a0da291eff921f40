//! The locks of this crate: every class, and where it is in the order.
//!
//! Below the classes of [`eswitch`], which have their order in `eswitch/src/lock_order.rs`, all of these are leaves:
//! nothing is taken while one is held, and each can be taken while any lock of the engine is held.
//!
//! Four locks are not `lockdep`'s, as no token can reach them. Each is a leaf too, and says at its declaration why:
//! the programs left behind (`programs.rs`, a static), the log's writer (`daemon/log.rs`, called by `tracing`), the
//! memory of an old database and its panic hook (`daemon/journal/database.rs`, called by redb; a static), and what a lab
//! knows of a card (`remote.rs`, in processes that are no threads of a domain).

use std::sync::Arc;

use lockdep::{Domain, OnReport, lock_classes};

lock_classes! {
    /// The watcher of the kernel's bonds, until the card's follower takes it. It is taken when the card comes up, with
    /// no lock held.
    pub leaf BondWatchClass = "bond watch";

    /// The watcher of the kernel's neighbours, likewise.
    pub leaf NeighbourWatchClass = "neighbour watch";

    /// What is agreed of a card, and the two files that it is stored in. It comes after every lock of the engine: what
    /// is stored is collected before it is taken. It is held while the files are written and flushed, so that of two
    /// commands the later one waits until the earlier one is on the disk.
    pub leaf JournalClass = "journal";

    /// The file with the flow rules of a card, and what is to be appended to it. It is held while that is written, so that
    /// what is answered stands in the file.
    pub leaf FlowLogClass = "flow log";
}

/// The domain of a command's threads: with the lock checker if `--lockdep` asks for it, or in a debug build.
pub fn domain(lockdep: bool) -> Arc<Domain> {
    if lockdep { Domain::checked(OnReport::Record) } else { Domain::for_build(OnReport::Record) }
}
