//! The seam to the outside: what the engine needs of a card.
//!
//! A card makes and unmakes [`Resource`]s and nothing else; what should exist when is the engine's
//! business. Making can fail, each request for itself; unmaking cannot. Requests come in batches, so
//! that a card which talks to a kernel can send many at once and read the answers after.
//!
//! Middleware is a card around a card: [`Faulty`] refuses what a plan says, [`Traced`] tells what was
//! asked.

mod faulty;
mod traced;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use lockdep::{Locked, Unlocked};
use serde::{Deserialize, Serialize};

use crate::error::Errno;
use crate::ids::{MacAddr, ParseError, PfIndex, RepType, Vport};
use crate::lock_order::CardCall;
use crate::text::escaped;

pub use faulty::{Fault, FaultPlan, Faulty};
pub use traced::Traced;

/// Something a card can hold, named by what it is for. Two resources with one name are the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// A PF's part of the card: its legacy switch and its wire.
    Function(PfIndex),
    /// A PF's netdev, which is also the uplink's representor.
    PfNetdev(PfIndex),
    /// A PF's RDMA device in legacy mode.
    PfIbDevice(PfIndex),
    /// A vport's port in the switch. The netdev of a DPU's host PF comes with it.
    Port(PfIndex, Vport),
    /// The netdev of a VF that is bound to its driver. It stays through mode changes.
    VfNetdev(PfIndex, Vport),
    /// The netdev of an active SF.
    SfNetdev(PfIndex, Vport),
    /// The RDMA device of an active SF.
    SfIbDevice(PfIndex, Vport),
    /// The switchdev forwarding database of a PF. While it exists nothing is switched by MAC.
    SwitchdevFdb(PfIndex),
    /// A loaded representor.
    Representor(PfIndex, Vport, RepType),
    /// The LAG, by its master.
    Lag(PfIndex),
    /// What tells a PF's packets from the others' in multiport E-Switch mode.
    MpeswMetadata(PfIndex),
    /// A PF's rules for what comes from the E-Switch it is paired with.
    PeerRules(PfIndex, PfIndex),
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(pf) => write!(f, "function pf{}", pf.0),
            Self::PfNetdev(pf) => write!(f, "netdev pf{}", pf.0),
            Self::PfIbDevice(pf) => write!(f, "ibdev pf{}", pf.0),
            Self::Port(pf, v) => write!(f, "port pf{} {v}", pf.0),
            Self::VfNetdev(pf, v) | Self::SfNetdev(pf, v) => write!(f, "netdev pf{} {v}", pf.0),
            Self::SfIbDevice(pf, v) => write!(f, "ibdev pf{} {v}", pf.0),
            Self::SwitchdevFdb(pf) => write!(f, "fdb pf{}", pf.0),
            Self::Representor(pf, v, ty) => write!(f, "{ty} pf{} {v}", pf.0),
            Self::Lag(pf) => write!(f, "lag pf{}", pf.0),
            Self::MpeswMetadata(pf) => write!(f, "metadata pf{}", pf.0),
            Self::PeerRules(pf, peer) => write!(f, "pair pf{} pf{}", pf.0, peer.0),
        }
    }
}

/// The kind of a resource, for fault plans: what one would type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResourceKind {
    /// [`Resource::Function`].
    Function,
    /// A netdev of a PF, VF or SF.
    Netdev,
    /// An RDMA device of a PF or SF.
    IbDevice,
    /// A port in the switch.
    Port,
    /// The switchdev forwarding database.
    Fdb,
    /// A representor of a type.
    Representor(RepType),
    /// The LAG.
    Lag,
    /// [`Resource::MpeswMetadata`].
    Metadata,
    /// [`Resource::PeerRules`].
    Pair,
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Function => "function",
            Self::Netdev => "netdev",
            Self::IbDevice => "ibdev",
            Self::Port => "port",
            Self::Fdb => "fdb",
            Self::Representor(RepType::Eth) => "eth",
            Self::Representor(RepType::Ib) => "ib",
            Self::Lag => "lag",
            Self::Metadata => "metadata",
            Self::Pair => "pair",
        })
    }
}

impl FromStr for ResourceKind {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Ok(match text {
            "function" => Self::Function,
            "netdev" => Self::Netdev,
            "ibdev" => Self::IbDevice,
            "port" => Self::Port,
            "fdb" => Self::Fdb,
            "eth" => Self::Representor(RepType::Eth),
            "ib" => Self::Representor(RepType::Ib),
            "lag" => Self::Lag,
            "metadata" => Self::Metadata,
            "pair" => Self::Pair,
            _ => {
                return Err(ParseError::new(
                    text,
                    "something that can fail: eth, ib, port, fdb, netdev, ibdev, function, lag, metadata or pair",
                ));
            }
        })
    }
}

impl Resource {
    /// What kind it is.
    pub fn kind(&self) -> ResourceKind {
        match self {
            Self::Function(_) => ResourceKind::Function,
            Self::PfNetdev(_) | Self::VfNetdev(..) | Self::SfNetdev(..) => ResourceKind::Netdev,
            Self::PfIbDevice(_) | Self::SfIbDevice(..) => ResourceKind::IbDevice,
            Self::Port(..) => ResourceKind::Port,
            Self::SwitchdevFdb(_) => ResourceKind::Fdb,
            Self::Representor(_, _, ty) => ResourceKind::Representor(*ty),
            Self::Lag(_) => ResourceKind::Lag,
            Self::MpeswMetadata(_) => ResourceKind::Metadata,
            Self::PeerRules(..) => ResourceKind::Pair,
        }
    }

    /// The PF it belongs to.
    pub fn pf(&self) -> PfIndex {
        match self {
            Self::Function(pf)
            | Self::PfNetdev(pf)
            | Self::PfIbDevice(pf)
            | Self::SwitchdevFdb(pf)
            | Self::Port(pf, _)
            | Self::VfNetdev(pf, _)
            | Self::SfNetdev(pf, _)
            | Self::SfIbDevice(pf, _)
            | Self::Representor(pf, _, _)
            | Self::Lag(pf)
            | Self::MpeswMetadata(pf)
            | Self::PeerRules(pf, _) => *pf,
        }
    }

    /// The vport it is for, if it is for one.
    pub fn vport(&self) -> Option<Vport> {
        match self {
            Self::Port(_, v)
            | Self::VfNetdev(_, v)
            | Self::SfNetdev(_, v)
            | Self::SfIbDevice(_, v)
            | Self::Representor(_, v, _) => Some(*v),
            _ => None,
        }
    }
}

/// A request to make something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Create {
    /// What.
    pub resource: Resource,
    /// The MAC address of the function's netdev, where there is one.
    pub mac: MacAddr,
    /// The SF's number, for what is an SF's.
    pub sfnum: Option<u32>,
}

/// Why a card could not make something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CardError {
    /// A plan said so.
    #[error("failed as planned ({0})")]
    Planned(String),
    /// A name is taken outside the card.
    #[error("the name {name} is taken by another netdev; rename that one or use another PCI address", name = escaped(name))]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The card can hold no more.
    #[error("{0}")]
    Full(String),
    /// The kernel refused.
    #[error("{call}: {text} (errno {errno}){hint}", call = escaped(call), text = escaped(text))]
    Kernel {
        /// What was asked of it.
        call: String,
        /// What it answered, positive.
        errno: i32,
        /// In words.
        text: String,
        /// What to do about it, if known: starts with `; `.
        hint: String,
    },
}

impl CardError {
    /// The error number to hand on.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Planned(_) => Errno::EIO,
            Self::NameTaken { .. } => Errno::EEXIST,
            Self::Full(_) => Errno::ENOSPC,
            Self::Kernel { errno, .. } => match errno {
                1 | 13 => Errno::EPERM,
                2 => Errno::ENOENT,
                12 | 105 => Errno::ENOMEM,
                16 => Errno::EBUSY,
                17 => Errno::EEXIST,
                19 => Errno::ENODEV,
                28 => Errno::ENOSPC,
                95 => Errno::EOPNOTSUPP,
                _ => Errno::EIO,
            },
        }
    }
}

/// One of a batch that could not be made. Batches are long and refusals few, so a card tells only of
/// these: when all went well there is nothing to hand on and to look through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedCreate {
    /// Its place in the batch, from 0.
    pub at: usize,
    /// Why.
    pub error: CardError,
}

/// Whom a card tells that somebody has given a netdev of its another name, and which.
pub type OnRename = Arc<dyn Fn(&mut Locked<'_, Unlocked>, Resource, String) + Send + Sync>;

/// A card: real netdevs, or books in memory.
///
/// Every call comes with a token at [`CardCall`], so a card cannot call back into the engine.
pub trait Card: Send + Sync {
    /// Makes what is asked for, and returns what could not be made, in order. A request that fails
    /// leaves nothing behind and does not keep the others from being tried.
    fn create(&self, cx: &mut Locked<'_, CardCall>, batch: &[Create]) -> Vec<FailedCreate>;

    /// Unmakes resources that exist, in order. Cannot fail: what the outside has already taken away
    /// is as good as unmade. Nothing of them is remembered: a PF's netdev that was moved and is made
    /// again is made at home.
    fn destroy(&self, cx: &mut Locked<'_, CardCall>, batch: &[Resource]);

    /// The name of the netdev or RDMA device that a resource is to its users, if it is one and exists: as far as the
    /// card knows, the one it has now.
    fn name(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource) -> Option<String>;

    /// The netdevs that have been given another name than they were made with, and which.
    fn renamed(&self, cx: &mut Locked<'_, CardCall>) -> Vec<(Resource, String)> {
        let _ = cx;
        Vec::new()
    }

    /// Has `told` called whenever a netdev has been given another name. A card whose names are nobody's to change never
    /// calls it.
    fn on_rename(&self, cx: &mut Locked<'_, CardCall>, told: OnRename) {
        let _ = (cx, told);
    }

    /// Gives the netdev of a resource another MAC address.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_mac(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource, mac: MacAddr) -> Result<(), CardError>;

    /// Moves a PF's netdev to a network namespace: a name under which one is known, or `None` for
    /// where it was born.
    ///
    /// # Errors
    /// There is no such namespace, or the kernel refuses.
    fn set_netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, netns: Option<&str>) -> Result<(), CardError>;

    /// The network namespace a PF's netdev has been moved to, if it is not where it was born.
    fn netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<String>;

    /// Every resource that exists, in no order: the card's books, or what it finds.
    fn resources(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Resource>;

    /// What the card has noticed being done to it that should not be: making what exists, unmaking
    /// what does not. They are forgotten here.
    fn take_complaints(&self, cx: &mut Locked<'_, CardCall>) -> Vec<String>;
}

impl<C: Card + ?Sized> Card for Arc<C> {
    fn create(&self, cx: &mut Locked<'_, CardCall>, batch: &[Create]) -> Vec<FailedCreate> {
        (**self).create(cx, batch)
    }
    fn destroy(&self, cx: &mut Locked<'_, CardCall>, batch: &[Resource]) {
        (**self).destroy(cx, batch);
    }
    fn name(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource) -> Option<String> {
        (**self).name(cx, resource)
    }
    fn renamed(&self, cx: &mut Locked<'_, CardCall>) -> Vec<(Resource, String)> {
        (**self).renamed(cx)
    }
    fn on_rename(&self, cx: &mut Locked<'_, CardCall>, told: OnRename) {
        (**self).on_rename(cx, told);
    }
    fn set_mac(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource, mac: MacAddr) -> Result<(), CardError> {
        (**self).set_mac(cx, resource, mac)
    }
    fn set_netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, netns: Option<&str>) -> Result<(), CardError> {
        (**self).set_netns(cx, pf, netns)
    }
    fn netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<String> {
        (**self).netns(cx, pf)
    }
    fn resources(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Resource> {
        (**self).resources(cx)
    }
    fn take_complaints(&self, cx: &mut Locked<'_, CardCall>) -> Vec<String> {
        (**self).take_complaints(cx)
    }
}
