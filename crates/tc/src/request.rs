//! What programs ask for, out of the messages of rtnetlink.

use flow::{Block, Port, Protocol, TunnelDevice};
use netlink::{Errno, Flags, Message, attributes, find, u32_at};
use serde::{Deserialize, Serialize};

use crate::action::{self, Action, Targets};
use crate::event::Origin;
use crate::keys::Keys;
use crate::numbers::{
    ETH_P_ALL, RTM_DELTFILTER, RTM_GETTFILTER, RTM_NEWTFILTER, TC_H_CLSACT, TC_H_INGRESS_QDISC, TC_H_MIN_EGRESS,
    TC_H_MIN_INGRESS, TCMSG, cls_flags, control, flower, matchall, tca,
};
use crate::refusal::Refusal;

/// A netdev that has filters which the card may carry out: that of a port, or a tunnel device over an uplink; and which of the
/// netdevs that the port has had. A port whose representor was unloaded and loaded again has another netdev, which has none of
/// the filters of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Netdev {
    /// The port; for a tunnel device the uplink.
    pub port: Port,
    /// The tunnel device, and its interface index, which no other netdev of its network namespace has.
    pub tunnel: Option<(TunnelDevice, u32)>,
    /// The number of the netdev: no other netdev of the port has it. The card gives it.
    pub number: u64,
}

impl Netdev {
    /// The block that the rules of its filters are in.
    pub(crate) fn block(&self) -> Block {
        self.tunnel.map_or(Block::Port(self.port), |(device, _)| Block::Tunnel(device))
    }
}

/// Where on a netdev a filter is: at what comes in, or at what goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Side {
    /// The ingress of the netdev: what its function sends, for a representor.
    Ingress,
    /// The egress, which the card does not carry out.
    Egress,
}

impl Side {
    /// The side that a parent of filters stands for. `None`: another qdisc.
    pub fn of_parent(parent: u32) -> Option<Self> {
        match parent {
            TC_H_MIN_INGRESS | TC_H_INGRESS_QDISC | TC_H_CLSACT => Some(Self::Ingress),
            TC_H_MIN_EGRESS => Some(Self::Egress),
            _ => None,
        }
    }
}

/// Where a filter, a priority or a chain is, with what the kernel compares. 0 is for what was not said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The netdev.
    pub netdev: Netdev,
    /// The side.
    pub side: Side,
    /// The chain; `None` is 0 for a filter and every chain in a list.
    pub chain: Option<u32>,
    /// The priority, 1 to 65535.
    pub priority: u16,
    /// The EtherType.
    pub protocol: u16,
    /// The handle of the filter.
    pub handle: u32,
}

impl Place {
    /// The protocol of a flow rule.
    pub(crate) fn flow_protocol(&self) -> Protocol {
        if self.protocol == ETH_P_ALL { Protocol::All } else { Protocol::Is(self.protocol) }
    }
}

/// A classifier with what it matches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Classifier {
    /// `flower`
    Flower(Keys),
    /// `matchall`
    Matchall,
}

impl Classifier {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Flower(_) => "flower",
            Self::Matchall => "matchall",
        }
    }
}

/// What a filter is asked to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Spec {
    /// Which frames.
    pub classifier: Classifier,
    /// What to do with them.
    pub actions: Vec<Action>,
    /// The class, or 0.
    pub classid: u32,
    /// TCA_CLS_FLAGS_*: who is to carry it out.
    pub flags: u32,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verb {
    /// Make or change a filter.
    Add {
        /// The filter.
        spec: Spec,
        /// Whether it may be made (NLM_F_CREATE).
        create: bool,
        /// Whether it must not be there (NLM_F_EXCL).
        exclusive: bool,
        /// Whether the kernel has its own half of it, so that the card need not have one.
        software: bool,
    },
    /// Delete a filter, a priority or a chain's filters.
    Delete {
        /// The kind that was named.
        kind: Option<String>,
    },
    /// Show one filter.
    Get {
        /// The kind that was named.
        kind: Option<String>,
    },
    /// Show all filters, or those of a chain, a priority, a protocol.
    List,
    /// The qdisc is gone, and with it everything of this side.
    Forget,
}

impl Verb {
    /// Whether it changes anything.
    pub fn changes(&self) -> bool {
        !matches!(self, Self::Get { .. } | Self::List)
    }
}

/// A request about the filters of a card's netdev.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Request {
    /// Where.
    pub place: Place,
    /// What.
    pub verb: Verb,
    /// Who asks.
    #[serde(default)]
    pub origin: Origin,
}

/// The kinds of classifier that are read here.
const KINDS: [&str; 2] = ["flower", "matchall"];

/// The side of a netdev whose filters a message is about: to make, delete or show some. `None`: it is about something else.
pub fn side_of(message: &Message<'_>) -> Option<Side> {
    let kinds = [RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER];
    let is_one = kinds.contains(&message.header.kind) && message.header.is_request();
    let payload = Some(message.payload()).filter(|payload| is_one && payload.len() >= TCMSG)?;
    Side::of_parent(u32_at(payload, 12)?)
}

impl Request {
    /// Reads a message about filters of a card's netdev. `None`: it is about a kind of filter that is the kernel's.
    ///
    /// # Errors
    /// The kernel would refuse it.
    pub fn read(message: &Message<'_>, netdev: Netdev, targets: Targets<'_>) -> Result<Option<Self>, Refusal> {
        let payload = message.payload();
        let attributes = message.after(TCMSG).unwrap_or_default();
        let number = |at| u32_at(payload, at).unwrap_or(0);
        let Some(side) = side_of(message) else { return Ok(None) };
        let chain = find(attributes, tca::CHAIN).and_then(|chain| chain.leading_u32());
        if chain.is_some_and(|chain| chain > control::EXT_VALUE.cast_unsigned()) {
            return Err(Refusal::new(Errno::INVAL, "Specified chain index exceeds upper limit"));
        }
        let info = number(16);
        let place = Place {
            netdev,
            side,
            chain,
            priority: (info >> 16) as u16,
            protocol: u16::from_be(info as u16),
            handle: number(8),
        };
        let kind = find(attributes, tca::KIND).and_then(|kind| kind.string()).map(str::to_owned);
        let flags = message.header.flags;
        let (create, exclusive) = (flags.contains(Flags::CREATE), flags.contains(Flags::EXCL));
        let is_dump = message.header.is_dump();
        if kind.as_deref().is_some_and(|kind| !KINDS.contains(&kind)) && !is_dump {
            return Ok(None);
        }
        let verb = match message.header.kind {
            RTM_NEWTFILTER => {
                let Some(kind) = kind else { return Ok(None) };
                let options = find(attributes, tca::OPTIONS).map_or(&[][..], |options| options.value);
                Verb::Add { spec: Spec::read(&kind, options, targets)?, create, exclusive, software: false }
            }
            RTM_DELTFILTER => Verb::Delete { kind },
            RTM_GETTFILTER if is_dump => Verb::List,
            RTM_GETTFILTER => Verb::Get { kind },
            _ => return Ok(None),
        };
        Ok(Some(Self { place, verb, origin: Origin::of(message) }))
    }
}

impl Spec {
    fn read(kind: &str, options: &[u8], targets: Targets<'_>) -> Result<Self, Refusal> {
        let is_flower = kind == "flower";
        let (classid, act, flags) = if is_flower {
            (flower::CLASSID, flower::ACT, flower::FLAGS)
        } else {
            (matchall::CLASSID, matchall::ACT, matchall::FLAGS)
        };
        if attributes(options).any(|attribute| attribute.is_err()) {
            return Err(Refusal::new(Errno::INVAL, "Attribute failed policy validation"));
        }
        let of = |kind| find(options, kind).and_then(|attribute| attribute.leading_u32()).unwrap_or(0);
        let flags = of(flags);
        // `tc_flags_valid`
        let known = cls_flags::SKIP_HW | cls_flags::SKIP_SW | cls_flags::VERBOSE;
        let both = cls_flags::SKIP_HW | cls_flags::SKIP_SW;
        if flags & !known != 0 || flags & both == both {
            return Err(Refusal::new(Errno::INVAL, ""));
        }
        if is_flower && find(options, flower::INDEV).is_some() {
            return Err(Refusal::unsupported(
                "matching on the name of a netdev is not supported: use that netdev's ingress",
            ));
        }
        let classifier = if is_flower { Classifier::Flower(Keys::read(options)?) } else { Classifier::Matchall };
        let actions = find(options, act).map_or(&[][..], |actions| actions.value);
        Ok(Self { classifier, actions: action::read(actions, targets)?, classid: of(classid), flags })
    }
}
