//! The program at the other end of a control socket.

use std::sync::atomic::AtomicBool;

/// A program that sends requests.
#[derive(Debug, Default)]
pub struct Peer {
    /// Whether it may change the card.
    pub may_change: bool,
    /// Whether it has joined the multicast group that devlink notifies.
    pub joined: AtomicBool,
    /// Whether it has joined the one of samples.
    pub joined_samples: AtomicBool,
    /// Whether it has joined the one of psample groups that begin and end.
    pub joined_sample_groups: AtomicBool,
    /// Whether it has joined the one of changes to filters.
    pub joined_filters: AtomicBool,
}
