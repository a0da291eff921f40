//! Rules, and the names of what they are about.

use std::fmt;

use crate::action::Action;
use crate::key::Field;
use crate::matching::Match;
use crate::tunnel::TunnelDevice;

/// A port of the E-Switch: the uplink or a vport. The representor of a port has the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Port(pub u32);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {}", self.0)
    }
}

/// The name of a rule. It is never given to another rule of the same [`Tables`](crate::Tables).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RuleId(pub u64);

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}", self.0)
    }
}

/// A set of chains, as a tc block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Block {
    /// What comes in at one port: the filters of its representor's ingress.
    Port(Port),
    /// A block that several ports share, by its index: `tc qdisc add … ingress_block INDEX`.
    Shared(u32),
    /// What a tunnel device takes out of frames of the uplink. Its rules see the inner frame and the tunnel's keys.
    Tunnel(TunnelDevice),
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Block::Port(port) => port.fmt(f),
            Block::Shared(index) => write!(f, "block {index}"),
            Block::Tunnel(device) => device.fmt(f),
        }
    }
}

/// The protocol of a filter, which is the same for all rules of a priority: `tc filter add … protocol PROTOCOL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Protocol {
    /// Every frame is looked at (ETH_P_ALL).
    All,
    /// Only frames whose outermost EtherType is this one.
    Is(u16),
}

impl Protocol {
    /// Whether a frame with this outermost EtherType is looked at (`__tcf_classify` in `net/sched/cls_api.c`).
    pub fn takes(self, ethertype: u16) -> bool {
        match self {
            Protocol::All => true,
            Protocol::Is(own) => own == ethertype,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::All => f.write_str("all"),
            Protocol::Is(0x0800) => f.write_str("ip"),
            Protocol::Is(0x0806) => f.write_str("arp"),
            Protocol::Is(0x8100) => f.write_str("802.1Q"),
            Protocol::Is(0x86dd) => f.write_str("ipv6"),
            Protocol::Is(0x88a8) => f.write_str("802.1ad"),
            Protocol::Is(other) => write!(f, "{other:#06x}"),
        }
    }
}

/// What to do with which frames: a flower filter with its actions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Rule {
    /// The block that has the rule.
    pub block: Block,
    /// The chain. A frame begins in chain 0.
    pub chain: u32,
    /// The priority, 1 or more. A lower one is asked first.
    pub priority: u32,
    /// The protocol of the priority.
    pub protocol: Protocol,
    /// Which frames.
    pub matches: Match,
    /// What to do, in this order.
    pub actions: Vec<Action>,
}

impl Rule {
    /// A rule for what comes in at `port`, in chain 0, with priority 1 and any protocol.
    pub fn new(port: Port, matches: Match, actions: impl Into<Vec<Action>>) -> Rule {
        Rule {
            block: Block::Port(port),
            chain: 0,
            priority: 1,
            protocol: Protocol::All,
            matches,
            actions: actions.into(),
        }
    }

    /// The ports that the rule names: the one that it is on, the one that it matches on, those to which it sends.
    pub fn ports(&self) -> impl Iterator<Item = Port> {
        let on = match self.block {
            Block::Port(port) => Some(port),
            Block::Shared(_) | Block::Tunnel(_) => None,
        };
        let matched = self.matches.exact(Field::InPort).map(Port);
        on.into_iter().chain(matched).chain(self.actions.iter().filter_map(Action::port))
    }

    /// The same rule in another block.
    pub fn in_block(self, block: Block) -> Rule {
        Rule { block, ..self }
    }

    /// The same rule in another chain.
    pub fn in_chain(self, chain: u32) -> Rule {
        Rule { chain, ..self }
    }

    /// The same rule with another priority and protocol.
    pub fn with_priority(self, priority: u32, protocol: Protocol) -> Rule {
        Rule { priority, protocol, ..self }
    }
}
