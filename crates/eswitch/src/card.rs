//! The interface between the engine and a card.
//!
//! A card makes and unmakes [`Resource`]s, and the engine decides which resources exist at which time. Making a
//! resource can fail, independently of the other requests of its batch. Unmaking cannot fail. Requests come in batches,
//! so that a card that talks to a kernel can send many requests at once and read the replies afterwards.
//!
//! Two cards wrap another card: [`Faulty`] makes requests fail or wait according to a plan, and [`Traced`] logs
//! requests.

mod faulty;
mod traced;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use lockdep::{Locked, Unlocked};
use serde::{Deserialize, Serialize};

use crate::datapath::Datapath;
use crate::error::Errno;
use crate::ids::{MacAddr, ParseError, PfIndex, RepType, Vport};
use crate::lock_order::CardCall;
use crate::rate::TxRates;
use crate::text::escaped;

pub use faulty::{Fault, FaultPlan, Faulty};
pub use traced::Traced;

/// Something that a card can make, identified by its purpose. Two equal values are the same resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// A PF's part of the card: its legacy switch and its wire.
    Function(PfIndex),
    /// A PF's netdev, which is also the uplink's representor.
    PfNetdev(PfIndex),
    /// A PF's RDMA device in legacy mode.
    PfIbDevice(PfIndex),
    /// A vport's port in the switch. For the host PF of a DPU it includes the netdev of that PF.
    Port(PfIndex, Vport),
    /// The netdev of a VF that is bound to its driver. A mode change does not affect it.
    VfNetdev(PfIndex, Vport),
    /// The netdev of an active SF.
    SfNetdev(PfIndex, Vport),
    /// The RDMA device of an active SF.
    SfIbDevice(PfIndex, Vport),
    /// The switchdev forwarding database of a PF. While it exists, no frame is switched by its MAC address.
    SwitchdevFdb(PfIndex),
    /// A loaded representor.
    Representor(PfIndex, Vport, RepType),
    /// The LAG, identified by its master.
    Lag(PfIndex),
    /// The metadata that marks a PF's packets in multiport E-Switch mode.
    MpeswMetadata(PfIndex),
    /// The rules of the first PF for traffic from the E-Switch of the second PF, with which its own is paired.
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

/// A devlink instance that was reloaded into another network namespace than the one in which its card's netdevs appear.
/// Its netdevs are made there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MovedInstance {
    /// The PF.
    pub pf: PfIndex,
    /// The vport of the function whose instance it is: the uplink for the PF itself.
    pub vport: Vport,
    /// The number that the kernel gives to no other network namespace (SO_NETNS_COOKIE).
    pub netns: u64,
}

/// The kind of a resource, by which a fault plan selects requests. [`Display`](fmt::Display) and [`FromStr`] use the
/// words of the step `fail`.
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
    /// A representor of the given type.
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
    /// The kind of the resource.
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

    /// The PF to which the resource belongs.
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

    /// The vport to which the resource belongs, if it belongs to one.
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

/// A request to make a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Create {
    /// The resource.
    pub resource: Resource,
    /// The MAC address of the netdev, if the resource is or has one.
    pub mac: MacAddr,
    /// The SF's number, if the resource belongs to an SF.
    pub sfnum: Option<u32>,
}

/// The reason for which a card could not carry out a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CardError {
    /// A fault plan or an [`Oracle`](lockdep::Oracle) made the request fail; with the request.
    #[error("failed as planned ({0})")]
    Planned(String),
    /// A netdev that is not the card's has the name already.
    #[error("the name {name} is taken by another netdev; rename that one or use another PCI address", name = escaped(name))]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The card has no room for the resource; with the reason.
    #[error("{0}")]
    Full(String),
    /// The card, or the kernel that it uses, cannot do this; with the reason.
    #[error("{0}")]
    Unsupported(String),
    /// The kernel refused a request.
    #[error("{call}: {text} (errno {errno}){hint}", call = escaped(call), text = escaped(text))]
    Kernel {
        /// The request.
        call: String,
        /// The error number, which is positive.
        errno: i32,
        /// The text of the error number, or the kernel's own message.
        text: String,
        /// Advice for the user, which starts with `; `, or an empty string.
        hint: String,
    },
}

impl CardError {
    /// The error number for the user. [`Errno`] has few of the kernel's numbers; any other is reported as EIO.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Planned(_) => Errno::EIO,
            Self::NameTaken { .. } => Errno::EEXIST,
            Self::Full(_) => Errno::ENOSPC,
            Self::Unsupported(_) => Errno::EOPNOTSUPP,
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

/// A request of a batch that failed. Batches are long and failures are few, so a card returns only the failures, and an
/// empty list when everything has been made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedCreate {
    /// The request's index in the batch, from 0.
    pub at: usize,
    /// The reason.
    pub error: CardError,
}

/// What another program has done to one of the card's netdevs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetdevChange {
    /// It has another name in the network namespace in which it was created; with the name.
    Renamed(String),
    /// It has left that namespace for another one.
    Away,
    /// It is in that namespace again; with its name.
    Back(String),
}

impl fmt::Display for NetdevChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Renamed(name) => write!(f, "renamed to {}", escaped(name)),
            Self::Away => f.write_str("moved to another network namespace"),
            Self::Back(name) => write!(f, "back as {}", escaped(name)),
        }
    }
}

/// The frames of a function: those that it has received and sent, seen from the function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Counters {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames that were to be received, and could not be.
    pub rx_dropped: u64,
    /// Frames that were sent, and dropped at the port.
    pub tx_dropped: u64,
}

impl Counters {
    /// The sum of two.
    pub fn plus(self, other: Self) -> Self {
        Self {
            rx_packets: self.rx_packets.wrapping_add(other.rx_packets),
            rx_bytes: self.rx_bytes.wrapping_add(other.rx_bytes),
            tx_packets: self.tx_packets.wrapping_add(other.tx_packets),
            tx_bytes: self.tx_bytes.wrapping_add(other.tx_bytes),
            rx_dropped: self.rx_dropped.wrapping_add(other.rx_dropped),
            tx_dropped: self.tx_dropped.wrapping_add(other.tx_dropped),
        }
    }
}

/// What a port of the legacy switch lets pass, as mlx5's ACLs of a vport have it (`esw_acl_ingress_lgcy_setup`,
/// `esw_acl_egress_lgcy_setup`). The default lets everything pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Acl {
    /// The function sends only frames with this source address. Others are dropped.
    pub source: Option<MacAddr>,
    /// The function is in a VLAN and does not know: it sends only frames without a tag, and these get this one. It
    /// receives only frames of this VLAN, without their tags.
    pub tag: Option<Tag>,
}

/// The tag of a VLAN, 802.1Q.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// The VLAN number, 0 to 4095. 0: the tag has a priority only.
    pub vlan: u16,
    /// The priority, 0 to 7.
    pub priority: u8,
}

/// The callback that a card calls when another program has renamed or moved one of the card's netdevs: with the
/// netdev's resource and what has happened.
pub type OnNetdevChange = Arc<dyn Fn(&mut Locked<'_, Unlocked>, Resource, NetdevChange) + Send + Sync>;

/// A card: its resources are netdevs of a kernel, or entries in memory.
///
/// Every call has a token at [`CardCall`], so a card cannot call back into the engine.
pub trait Card: Send + Sync {
    /// Makes the requested resources, and returns the requests that failed, in the order of the batch. A request that
    /// fails leaves nothing behind, and the other requests are carried out all the same.
    fn create(&self, cx: &mut Locked<'_, CardCall>, batch: &[Create]) -> Vec<FailedCreate>;

    /// Unmakes resources that exist, in the order of the batch. Cannot fail: a resource that has been removed from
    /// outside counts as unmade. The card keeps nothing of them: if a PF's netdev was moved to another network
    /// namespace and is made again, it is made in the namespace in which it was created first.
    fn destroy(&self, cx: &mut Locked<'_, CardCall>, batch: &[Resource]);

    /// The present name of the netdev or RDMA device that a resource appears as, as far as the card knows it. `None` if
    /// the resource does not exist or has no such device.
    fn name(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource) -> Option<String>;

    /// The card's data plane, which carries frames by flow rules. `None`: the card offloads no flows.
    fn datapath(&self) -> Option<&dyn Datapath> {
        None
    }

    /// The netdevs whose present name is not the one with which they were made, and their present names.
    fn renamed(&self, cx: &mut Locked<'_, CardCall>) -> Vec<(Resource, String)> {
        let _ = cx;
        Vec::new()
    }

    /// The netdevs that are in another network namespace than the one in which they were created. The name of such a
    /// netdev is the last one that it had where it was created.
    fn elsewhere(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Resource> {
        let _ = cx;
        Vec::new()
    }

    /// The devlink instances that were reloaded into another network namespace than the one in which the card's netdevs
    /// appear.
    fn moved_instances(&self, cx: &mut Locked<'_, CardCall>) -> Vec<MovedInstance> {
        let _ = cx;
        Vec::new()
    }

    /// Sets the callback that is called whenever another program has renamed or moved a netdev. A card whose netdevs
    /// cannot be renamed never calls it.
    fn on_netdev_change(&self, cx: &mut Locked<'_, CardCall>, callback: OnNetdevChange) {
        let _ = (cx, callback);
    }

    /// Sets the MAC address of the netdev of a resource.
    ///
    /// # Errors
    /// The kernel refuses the address.
    fn set_mac(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource, mac: MacAddr) -> Result<(), CardError>;

    /// Gives a port its link, as it has when it is made, or takes it away: then the netdev of its function, now and
    /// whenever it is made again, has no carrier, and nothing passes. While the port has a representor, that decides
    /// instead.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_link(&self, cx: &mut Locked<'_, CardCall>, port: &Resource, up: bool) -> Result<(), CardError>;

    /// Has a port pass only what an access list lets pass, from now on and whenever the netdev of its function is made
    /// again. At first it passes everything.
    ///
    /// # Errors
    /// The kernel refuses. The port passes what it passed before.
    fn set_acl(&self, cx: &mut Locked<'_, CardCall>, port: &Resource, acl: Acl) -> Result<(), CardError>;

    /// Limits what the functions of a PF send. `rates`: all of them; they replace those that were set before, and apply
    /// to the ports that exist, whenever their netdevs are made. When a port is unmade the card drops its leaf.
    ///
    /// # Errors
    /// The kernel refuses. The rates are as before.
    fn set_rates(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, rates: &TxRates) -> Result<(), CardError>;

    /// Moves a PF's netdev to a network namespace, by the namespace's name. `None` moves it back to the namespace in
    /// which it was created.
    ///
    /// # Errors
    /// No such namespace, or the kernel refuses.
    fn set_netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, netns: Option<&str>) -> Result<(), CardError>;

    /// The network namespace to which a PF's netdev has been moved. `None` if it is in the one in which it was created.
    fn netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<String>;

    /// The counters of those VFs of a PF that exist, from when their ports were made. Waits for no other request. A
    /// card that carries no frames has none.
    fn counters(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> BTreeMap<Vport, Counters> {
        let _ = (cx, pf);
        BTreeMap::new()
    }

    /// Every resource that exists, in no particular order: from the card's records, or from what it finds in the
    /// kernel.
    fn resources(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Resource>;

    /// Returns and clears the errors of the engine that the card has noticed: requests to make a resource that exists,
    /// or to unmake or change one that does not.
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
    fn datapath(&self) -> Option<&dyn Datapath> {
        (**self).datapath()
    }
    fn renamed(&self, cx: &mut Locked<'_, CardCall>) -> Vec<(Resource, String)> {
        (**self).renamed(cx)
    }
    fn elsewhere(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Resource> {
        (**self).elsewhere(cx)
    }
    fn moved_instances(&self, cx: &mut Locked<'_, CardCall>) -> Vec<MovedInstance> {
        (**self).moved_instances(cx)
    }
    fn on_netdev_change(&self, cx: &mut Locked<'_, CardCall>, callback: OnNetdevChange) {
        (**self).on_netdev_change(cx, callback);
    }
    fn set_mac(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource, mac: MacAddr) -> Result<(), CardError> {
        (**self).set_mac(cx, resource, mac)
    }
    fn set_link(&self, cx: &mut Locked<'_, CardCall>, port: &Resource, up: bool) -> Result<(), CardError> {
        (**self).set_link(cx, port, up)
    }
    fn set_acl(&self, cx: &mut Locked<'_, CardCall>, port: &Resource, acl: Acl) -> Result<(), CardError> {
        (**self).set_acl(cx, port, acl)
    }
    fn set_rates(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, rates: &TxRates) -> Result<(), CardError> {
        (**self).set_rates(cx, pf, rates)
    }
    fn set_netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, netns: Option<&str>) -> Result<(), CardError> {
        (**self).set_netns(cx, pf, netns)
    }
    fn netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<String> {
        (**self).netns(cx, pf)
    }
    fn counters(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> BTreeMap<Vport, Counters> {
        (**self).counters(cx, pf)
    }
    fn resources(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Resource> {
        (**self).resources(cx)
    }
    fn take_complaints(&self, cx: &mut Locked<'_, CardCall>) -> Vec<String> {
        (**self).take_complaints(cx)
    }
}
