//! The sockets of programs that are told of changed settings: the members of ethtool's multicast group `monitor`.
//!
//! They are members at the kernel, too, which tells them of what it sets itself.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use lockdep::Mutex;

use super::Nic;
use crate::lock_order::{Cx, EthtoolMonitors};
use crate::network::NetworkId;
use crate::relay::Socket;

/// The members of the group.
pub(crate) struct Monitors {
    members: Mutex<EthtoolMonitors, Vec<Weak<Socket>>>,
    /// The number of the last notification (`ethnl_bcast_seq`).
    sequence: AtomicU32,
}

impl Default for Monitors {
    fn default() -> Self {
        Self { members: Mutex::new(Vec::new()), sequence: AtomicU32::new(0) }
    }
}

impl Monitors {
    /// Makes a socket a member, or ends its membership.
    pub fn join(&self, cx: Cx<'_, '_>, socket: &Arc<Socket>, on: bool) {
        let mut members = self.members.lock_leaf(cx);
        members.retain(|member| member.strong_count() > 0 && !std::ptr::eq(member.as_ptr(), Arc::as_ptr(socket)));
        if on {
            members.push(Arc::downgrade(socket));
        }
    }

    /// Tells the members in the network namespace of `socket` what a message has set there.
    pub fn publish(&self, cx: Cx<'_, '_>, family: u16, socket: impl AsFd, nic: &Nic, command: u8) {
        let members: Vec<Arc<Socket>> = self.members.lock_leaf(cx).iter().filter_map(Weak::upgrade).collect();
        let (false, Ok(here)) = (members.is_empty(), NetworkId::of_socket(socket)) else { return };
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let Some(notification) = super::notification(family, sequence, nic, command) else { return };
        for member in members {
            if NetworkId::of_socket(&member.kernel).is_ok_and(|id| id == here) {
                member.publish(cx, &notification);
            }
        }
    }
}
