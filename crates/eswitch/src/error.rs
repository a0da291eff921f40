//! What can go wrong, as devlink would say it: an error number for programs and a sentence for people
//! that ends in what to do.

use crate::card::CardError;
use crate::ids::{LagMode, PciAddress, PortHandle, RepType, SfNum};
use crate::text::escaped;

/// The result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error numbers the kernel would answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Errno {
    EPERM,
    ENOENT,
    EIO,
    ENOMEM,
    EBUSY,
    EEXIST,
    ENODEV,
    EINVAL,
    ENOSPC,
    ERANGE,
    EPROTONOSUPPORT,
    EOPNOTSUPP,
}

impl Errno {
    /// The kernel's text for it.
    pub fn text(self) -> &'static str {
        match self {
            Self::EPERM => "Operation not permitted",
            Self::ENOENT => "No such file or directory",
            Self::EIO => "Input/output error",
            Self::ENOMEM => "Cannot allocate memory",
            Self::EBUSY => "Device or resource busy",
            Self::EEXIST => "File exists",
            Self::ENODEV => "No such device",
            Self::EINVAL => "Invalid argument",
            Self::ENOSPC => "No space left on device",
            Self::ERANGE => "Numerical result out of range",
            Self::EPROTONOSUPPORT => "Protocol not supported",
            Self::EOPNOTSUPP => "Operation not supported",
        }
    }

    /// Its number on Linux.
    pub fn number(self) -> i32 {
        match self {
            Self::EPERM => 1,
            Self::ENOENT => 2,
            Self::EIO => 5,
            Self::ENOMEM => 12,
            Self::EBUSY => 16,
            Self::EEXIST => 17,
            Self::ENODEV => 19,
            Self::EINVAL => 22,
            Self::ENOSPC => 28,
            Self::ERANGE => 34,
            Self::EPROTONOSUPPORT => 93,
            Self::EOPNOTSUPP => 95,
        }
    }
}

/// Why a command was refused or failed. In either case the card is as it was before.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Error {
    /// No PF of that address, or none bound to the driver.
    #[error("no devlink instance pci/{0}; `devlink dev show` lists what there is")]
    NoDevice(PciAddress),
    /// No function of that address on the PCI bus.
    #[error("no PCI function {0}: it is not enabled, or was taken off the bus")]
    NoFunction(PciAddress),
    /// Unbinding what is not bound.
    #[error("{0} is not bound to the driver")]
    NotBound(PciAddress),
    /// Binding what is for another driver.
    #[error("{address} is for the driver {driver}; clear its driver_override first", driver = escaped(driver))]
    Overridden {
        /// The function.
        address: PciAddress,
        /// The driver it is for.
        driver: String,
    },
    /// Binding a VF that is to have no driver.
    #[error("{0} is to have no driver; set its PF's sriov_drivers_autoprobe to 1, or its driver_override, first")]
    NoAutoprobe(PciAddress),
    /// No such VF for `ip link`.
    #[error("{pf} has no VF {vf} enabled; set sriov_numvfs first")]
    NoVf {
        /// The PF.
        pf: PciAddress,
        /// The VF's number.
        vf: u32,
    },
    /// `ip link set … vf` of what is the legacy switch's.
    #[error("{0} of a VF cannot be set in switchdev mode; its representor decides there")]
    VfInSwitchdev(&'static str),
    /// A VLAN that is none.
    #[error("a VF's vlan is 0 to 4095 and its qos 0 to 7")]
    VfVlan,
    /// A tag that the card does not set.
    #[error("a VF's vlan can be of protocol 802.1Q only")]
    VfVlanProto,
    /// Rates that contradict each other.
    #[error("min_tx_rate {min} is more than max_tx_rate {max}")]
    VfRate {
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// Binding what is bound.
    #[error("{0} is already bound to the driver")]
    AlreadyBound(PciAddress),
    /// No such port.
    #[error("no port {0}; `devlink port show` lists what there is")]
    NoPort(PortHandle),
    /// No such module.
    #[error("module {name} not found; the card's modules are {known}", name = escaped(name), known = crate::module::known())]
    NoModule {
        /// What was asked for.
        name: String,
    },
    /// Loading what is loaded, where that is an error.
    #[error("module {0} is loaded already")]
    ModuleLoaded(&'static str),
    /// Loading a module without what it depends on.
    #[error("module {module} needs {needs}, which is not loaded; load that first, or both with modprobe")]
    ModuleNeeds {
        /// What was to be loaded.
        module: &'static str,
        /// What it depends on.
        needs: &'static str,
    },
    /// Binding to what is not loaded.
    #[error("{0}: module mlx5_core is not loaded; load it first")]
    NoCore(PciAddress),
    /// A module that another stands on.
    #[error("module {0} is in use; unload the modules that depend on it first")]
    ModuleInUse(&'static str),
    /// Another operation is changing the E-Switch.
    #[error("Can't change mode, E-Switch is busy; try again once {0} is done")]
    Busy(&'static str),
    /// `sriov_numvfs` of what has no driver.
    #[error("{0} is not bound to a driver; bind it first")]
    NoDriver(PciAddress),
    /// Entering switchdev mode with the PF's netdev elsewhere.
    #[error(
        "Can't change E-Switch mode to switchdev when netdev net namespace has diverged from the devlink's; \
         move it back from `{netns}` first", netns = escaped(.0)
    )]
    NetnsDiverged(String),
    /// Moving the PF's netdev in switchdev mode.
    #[error("the uplink's netdev may not leave its network namespace in switchdev mode; set legacy mode first")]
    NetnsLocal,
    /// More VFs than there can be.
    #[error("{asked} VFs are more than sriov_totalvfs, which is {total}")]
    TooManyVfs {
        /// What was asked for.
        asked: u32,
        /// What there can be.
        total: u16,
    },
    /// From n VFs to m.
    #[error("{current} VFs already enabled; set 0 VFs before enabling {asked}")]
    VfsEnabled {
        /// How many there are.
        current: u16,
        /// What was asked for.
        asked: u16,
    },
    /// VFs of a DPU's PF.
    #[error("the VFs of a DPU are the host's; they are enabled there")]
    VfsOfHost,
    /// A host function event on what has no host.
    #[error("{0} is no DPU: it has no host of its own; use sriov_numvfs")]
    NoHost(PciAddress),
    /// An SF in legacy mode.
    #[error("SF ports are only supported in eswitch switchdev mode; set it with `devlink dev eswitch set`")]
    SfInLegacy,
    /// The card has no SFs.
    #[error("SF ports are not supported: this card's `max_sfs` is 0")]
    NoSfs,
    /// A number that is taken.
    #[error("SF already exist. Choose different sfnum than {}", .0.0)]
    SfExists(SfNum),
    /// Every SF is in use.
    #[error("all {0} SFs are in use; delete one first")]
    SfsFull(u16),
    /// A PF number that is not the device's.
    #[error("Invalid pfnum supplied: {given}; this device's is {own}")]
    SfPfnum {
        /// What was asked for.
        given: u32,
        /// What it must be.
        own: u8,
    },
    /// Adding a port that is no SF.
    #[error("Driver supports only SF port addition (flavour pcisf)")]
    PortFlavour,
    /// Deleting a port that is no SF.
    #[error("{0} is no SF; only SF ports can be deleted")]
    NotSf(PortHandle),
    /// Setting what a port's function has not.
    #[error("{port}: Function does not support {what} setting")]
    FunctionAttribute {
        /// The port.
        port: PortHandle,
        /// The attribute.
        what: &'static str,
    },
    /// Activating an SF whose old function is not gone yet.
    #[error("SF is inactivated but it is still attached; try again once its opstate is detached")]
    SfAttached,
    /// An address for a function that runs.
    #[error("{0} is active; set its state to inactive before its hw_addr or roce")]
    SfActive(PortHandle),
    /// No SF's device of that number on the auxiliary bus, or none with a driver.
    #[error("no device mlx5_core.sf.{0} with a driver on the auxiliary bus; an SF is there while its state is active")]
    NoSfDevice(u32),
    /// Binding what is bound.
    #[error("mlx5_core.sf.{0} is already bound to the driver")]
    SfBound(u32),
    /// Inline mode where the card has no use for it.
    #[error("Inline mode can't be set: this card needs no inline headers, only `none` is accepted")]
    InlineMode,
    /// Registering ops where some are.
    #[error("{0} representor ops are already registered")]
    OpsRegistered(RepType),
    /// The E-Switch is going away.
    #[error("the E-Switch is being torn down")]
    Teardown,
    /// The system gave no thread to serve a queue.
    #[error("no thread for a work queue: {0}; raise the limit on threads")]
    NoThread(String),
    /// No room in a queue.
    #[error("no memory to queue work for the E-Switch")]
    QueueFull,
    /// MPESW while a LAG is active.
    #[error("a LAG is active ({0}); take the bond apart before turning esw_multiport on")]
    LagActive(LagMode),
    /// MPESW on a card with one port.
    #[error("the card has one port; esw_multiport needs two")]
    MpeswOnePort,
    /// MPESW with a port in legacy mode.
    #[error("every port must be in switchdev mode before esw_multiport is turned on")]
    MpeswNeedsSwitchdev,
    /// A parameter that may not change in switchdev mode.
    #[error("E-Switch must either disabled or non switchdev mode")]
    MetadataInSwitchdev,
    /// The same, of who steers.
    #[error("Moving flow steering elsewhere is not supported when eswitch offloads enabled; set legacy mode first")]
    SteeringInSwitchdev,
    /// A mode change with rate nodes.
    #[error("Rate node(s) exists.")]
    RateNodesExist,
    /// No rate node of that name.
    #[error("no rate node {name}; `devlink port function rate show` lists what there is", name = escaped(.0))]
    NoRateNode(String),
    /// A rate node in legacy mode.
    #[error("rate nodes are only supported in eswitch switchdev mode; set it with `devlink dev eswitch set`")]
    RateInLegacy,
    /// A name that is taken.
    #[error("rate node {name} already exists", name = escaped(.0))]
    RateNodeExists(String),
    /// A name that is none.
    #[error("`{name}` is no name for a rate node: it must have something other than digits", name = escaped(.0))]
    RateNodeName(String),
    /// A node that others hang on.
    #[error("Node has children. Cannot delete node.")]
    RateNodeInUse,
    /// A parent that cannot be.
    #[error("{0}")]
    RateParent(&'static str),
    /// A rate that is no whole number of Mbit/s.
    #[error("TX rate value not in link units of 1Mbps: {0} bytes a second")]
    RateUnit(u64),
    /// A rate the link does not have.
    #[error("TX rate value exceed link maximum speed: {0} bytes a second; it has 12500000000")]
    RateTooHigh(u64),
    /// No bond of that name over the card's ports.
    #[error("no bond {name} over the card's ports", name = escaped(.0))]
    NoBond(String),
    /// A bond while MPESW is on.
    #[error("{name}: the card is in multiport E-Switch mode; turn esw_multiport off first", name = escaped(.0))]
    BondUnderMpesw(String),
    /// The card said no.
    #[error("{what}: {source}", what = escaped(what))]
    Card {
        /// What was being done.
        what: String,
        /// What the card said.
        source: CardError,
    },
}

impl Error {
    /// The error number the kernel would answer with.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoDevice(_)
            | Self::NoPort(_)
            | Self::Teardown
            | Self::NoRateNode(_)
            | Self::NoFunction(_)
            | Self::NoCore(_)
            | Self::NoSfDevice(_)
            | Self::NotBound(_)
            | Self::Overridden { .. }
            | Self::NoAutoprobe(_) => Errno::ENODEV,
            Self::NoModule { .. } | Self::ModuleNeeds { .. } | Self::NoDriver(_) | Self::NoBond(_) => Errno::ENOENT,
            Self::AlreadyBound(_)
            | Self::Busy(_)
            | Self::VfsEnabled { .. }
            | Self::SfAttached
            | Self::LagActive(_)
            | Self::BondUnderMpesw(_)
            | Self::SfActive(_)
            | Self::SfBound(_)
            | Self::MetadataInSwitchdev
            | Self::RateNodesExist
            | Self::RateNodeInUse
            | Self::ModuleInUse(_) => Errno::EBUSY,
            Self::NetnsDiverged(_)
            | Self::NetnsLocal
            | Self::NoVf { .. }
            | Self::VfVlan
            | Self::VfRate { .. }
            | Self::RateNodeName(_)
            | Self::RateParent(_)
            | Self::RateUnit(_)
            | Self::RateTooHigh(_) => Errno::EINVAL,
            Self::VfVlanProto => Errno::EPROTONOSUPPORT,
            Self::TooManyVfs { .. } => Errno::ERANGE,
            Self::SfExists(_) | Self::OpsRegistered(_) | Self::RateNodeExists(_) | Self::ModuleLoaded(_) => {
                Errno::EEXIST
            }
            Self::SfsFull(_) => Errno::ENOSPC,
            Self::QueueFull | Self::NoThread(_) => Errno::ENOMEM,
            Self::VfsOfHost
            | Self::NoHost(_)
            | Self::MpeswOnePort
            | Self::RateInLegacy
            | Self::SteeringInSwitchdev
            | Self::MpeswNeedsSwitchdev
            | Self::SfInLegacy
            | Self::NoSfs
            | Self::SfPfnum { .. }
            | Self::PortFlavour
            | Self::NotSf(_)
            | Self::FunctionAttribute { .. }
            | Self::VfInSwitchdev(_)
            | Self::InlineMode => Errno::EOPNOTSUPP,
            Self::Card { source, .. } => source.errno(),
        }
    }
}
