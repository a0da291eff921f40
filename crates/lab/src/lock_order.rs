//! The order of every lock of a lab, in one place.
//!
//! Outer to inner; a thread takes only a lock that is further down than those that it holds:
//!
//! ```text
//! UeventState       the programs' sockets for uevents, and the devices that they know of
//!
//! FamilyLookup      one thread requests the family `devlink` from a card's server, for all sockets
//!
//! OpenFile          the last content of one open file or directory of /sys
//! └─ TreeRebuild    one thread makes the tree of /sys again
//! ```
//!
//! All other locks are leaves: a thread may take one whatever it holds, and takes none under it.
//!
//! The locks of a [`Card`](crate::Card) are outside of this order. A card is called with any of these three held, and
//! its methods take no token, so the checker does not see the locks that it takes. A card never calls the lab, so no
//! cycle is possible.
//!
//! The threads are the supervisor's own, those that answer trapped calls, one for each netlink socket, and FUSE's. Each
//! begins with [`lockdep::enter`], in the one [`Domain`] of its lab. FUSE's threads are not the lab's, so each of their
//! requests begins with it. No lock is taken in a signal handler, or between `fork` and `exec`, and no lock is a
//! static.

use std::sync::Arc;

use lockdep::{Domain, Locked, OnReport, Unlocked, lock_classes, lock_order};

/// The right to take locks, of a thread that holds none.
pub(crate) type Cx<'a, 'b> = &'a mut Locked<'b, Unlocked>;

lock_classes! {
    /// Held by the one thread that requests the family `devlink` from a card's server; the others that
    /// want to know wait for it. It is the outermost lock of a socket's thread, and is held while a card is connected
    /// to.
    pub(crate) class FamilyLookup = "family lookup";

    /// The programs' sockets for uevents, and the devices that they know of. Held while events are sent, which waits for
    /// nothing. A write to a file `uevent` takes it, and holds nothing else.
    pub(crate) class UeventState = "uevents";

    /// The text of one open attribute, or the listing of one open directory, from when the file was last read from its
    /// beginning. It is taken first by a request that reads, and held while the text or the listing is made.
    pub(crate) class OpenFile = "open file";
    /// Held by the one thread that makes the tree again after a card has changed. Taken after `OpenFile`, as a read or
    /// a listing needs the tree of now.
    pub(crate) class TreeRebuild = "tree rebuild";

    /// The sockets that the lab has given programs, by inode.
    pub(crate) leaf Sockets = "sockets";
    /// The programs that have entered a lab that is kept. Held while it is looked whether processes of theirs are left,
    /// which waits for nothing.
    pub(crate) leaf Entries = "entered programs";
    /// The ports of the sockets for uevents that the lab has given programs, by inode.
    pub(crate) leaf UeventPorts = "uevent ports";
    /// Which executables were made by the Go compiler.
    pub(crate) leaf GoPrograms = "Go programs";
    /// The index that was made of a card's last view.
    pub(crate) leaf CardIndex = "card index";
    /// The network namespaces that programs look at.
    pub(crate) leaf KnownNetworks = "known networks";
    /// The netdevs of one network namespace. Held while the kernel is asked about them, which it answers at once.
    pub(crate) leaf NetworkTable = "network table";
    /// The settings of the cards' netdevs. Held while the kernel is asked for those of one, which it answers at once.
    pub(crate) leaf EthtoolSettings = "ethtool settings";
    /// The sockets of programs that are told of changed settings.
    pub(crate) leaf EthtoolMonitors = "ethtool monitors";
    /// What is to be sent to the program of one socket that is told of changed settings.
    pub(crate) leaf Published = "published notifications";
    /// The number that each card's server has given the family `devlink`. Taken after `FamilyLookup` as well.
    pub(crate) leaf CardFamilies = "card families";
    /// The idle connections to cards, and how many there are in all. A thread waits under it, by a condition variable,
    /// for a connection that is free.
    pub(crate) leaf Connections = "card connections";
    /// Held while one netlink socket is bound, so that it gets one port.
    pub(crate) leaf Binding = "socket binding";
    /// The requests that wait for the thread of one socket.
    pub(crate) leaf Inbox = "socket inbox";
    /// The connections over which the thread of one socket receives the notifications of cards.
    pub(crate) leaf Subscriptions = "socket subscriptions";

    /// The open files and directories of `/sys`, by their handle.
    pub(crate) leaf OpenFiles = "open files";
    /// The attributes of the files that the kernel has for any netdev.
    pub(crate) leaf NetdevFiles = "netdev files";
    /// The nodes of `/sys` that the kernel has looked up and not forgotten.
    pub(crate) leaf Nodes = "nodes";
    /// The tree of `/sys` that was made last. Replaced under `TreeRebuild`.
    pub(crate) leaf CurrentTree = "current tree";
    /// The indexes of `/lib/modules` that were made last, and what they were made from.
    pub(crate) leaf ModuleIndexes = "module indexes";
}

lock_order! {
    root OpenFile;
    OpenFile => TreeRebuild;
}

lock_order! {
    root FamilyLookup;
}

lock_order! {
    root UeventState;
}

/// The domain of one lab's threads. Their locks are checked in builds with debug assertions, and with `lockdep` in any.
///
/// A violation panics: the supervisor has no standard error to which it could be reported, and the code that
/// answers programs turns a panic into EIO, which the program and its test see.
pub(crate) fn domain(lockdep: bool) -> Arc<Domain> {
    if lockdep { Domain::checked(OnReport::Panic) } else { Domain::for_build(OnReport::Panic) }
}
