//! The E-Switch engine: devices, devlink instances, the auxiliary bus, the E-Switch with its vports and representors,
//! its work queue, SFs, and the component that connects the PFs of a card.
//!
//! It does no I/O, has no clock, and has no threads but those that its caller gives it. It reaches the outside through
//! two traits: [`card::Card`] makes what exists, [`datapath::Datapath`] carries frames by flow rules. The invariants that it guarantees are in [`inspect`], and the order in which it takes its
//! locks is in [`lock_order`], which the compiler enforces.
//!
//! Start with [`Engine`], which has the commands. [`eswitch`] is the central part.

#![forbid(unsafe_code)]

mod agreed;
pub mod auxiliary;
pub mod card;
mod config;
pub mod datapath;
pub mod devcom;
mod device;
pub mod devlink;
pub mod driver;
mod engine;
mod error;
pub mod eswitch;
mod event;
mod flows;
#[doc(hidden)]
pub mod hot_paths;
mod ids;
pub mod inspect;
pub mod lag;
pub mod lock_order;
pub mod module;
pub mod msix;
pub mod names;
mod pci;
mod queue;
pub mod rate;
pub mod sf;
mod shared;
pub mod text;
pub mod vf;

pub use agreed::{Agreed, AgreedPart, AgreedPf, Touched};
pub use config::{CardConfig, ConfigError, NamingScheme};
pub use device::{PciState, Pf};
pub use engine::{Engine, FunctionChange, PfFunction};
pub use error::{Errno, Error, Result};
pub use event::{Event, Subscription};
pub use flows::{
    FlowChange, FlowDone, FlowError, FlowRecord, OnFlowRecord, OnTunnelEnds, StoredFlows, TraceError, Traced,
};
pub use ids::{
    MAX_SFS, MacAddr, Mode, ParseError, PciAddress, PfIndex, PfSet, PortHandle, PortIndex, RepType, SF_VPORT_BASE,
    SfNum, Vport,
};
pub use pci::OtherDriver;
pub use shared::Shared;
