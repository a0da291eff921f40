//! Changes to filters, as members of RTNLGRP_TC are told of them (`tfilter_notify`, `tfilter_del_notify`).

use netlink::{Flags, Message, u32_at};
use serde::{Deserialize, Serialize};

use crate::request::{Request, Verb};
use crate::shown::{Address, Answer, Shown};

/// Where a request came from. The kernel's notification of what it has changed repeats this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The port of the socket that sent it, which its network namespace has once.
    pub port: u32,
    /// The number of the request.
    pub sequence: u32,
    /// Its flags, NLM_F_*.
    pub flags: u16,
    /// The parent that it named.
    pub parent: u32,
}

impl Origin {
    /// The origin that a message about filters states. The port is that of the message, which many programs leave at 0.
    pub(crate) fn of(message: &Message<'_>) -> Self {
        let parent = u32_at(message.payload(), 12).unwrap_or(0);
        Self {
            port: message.header.port,
            sequence: message.header.sequence,
            flags: message.header.flags.bits(),
            parent,
        }
    }
}

/// A filter that was made or changed, or a filter or priority that is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Who asked for it.
    pub origin: Origin,
    /// Whether it is gone.
    pub gone: bool,
    /// What is shown of it.
    pub shown: Shown,
}

impl Event {
    /// What a request that was answered like this has changed, without the filters of which the kernel has a half: of these it
    /// tells itself. Nothing is told of filters that go with their qdisc, as in the kernel.
    pub fn all_of(request: &Request, answer: &Answer) -> Vec<Self> {
        let (gone, shown) = match (&request.verb, answer) {
            (Verb::Add { .. }, Answer::Filters(shown)) => (false, shown),
            (Verb::Delete { .. }, Answer::Gone(shown)) => (true, shown),
            _ => return Vec::new(),
        };
        let of_card = shown.iter().filter(|shown| !shown.software);
        of_card.map(|shown| Self { origin: request.origin, gone, shown: shown.clone() }).collect()
    }

    /// Whether a member of the group with a port hears of it. A program that has asked with NLM_F_ECHO has it in its answer
    /// (`nlmsg_notify`).
    pub fn is_for(&self, port: u32) -> bool {
        let echoes = Flags::from_bits_retain(self.origin.flags).contains(Flags::ECHO);
        !echoes || port != self.origin.port
    }

    /// How its message is addressed. `index`: the interface index of the netdev.
    pub fn address(&self, index: u32) -> Address {
        let Origin { port, sequence, flags, parent } = self.origin;
        let flags = Flags::from_bits_retain(flags);
        Address { index, parent, flags, sequence, port, is_terse: false }
    }
}
