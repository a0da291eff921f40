//! The errors of commands.
//!
//! Each has an error number for programs and a sentence for people, as devlink's extended acknowledgements have. Where
//! the user can do something about the error, the sentence ends with that. Some sentences are those of the kernel, word
//! for word.

use crate::card::CardError;
use crate::ids::{LagMode, PciAddress, PortHandle, RepType, SfNum};
use crate::text::escaped;

/// The result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error number with which the kernel would answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Errno {
    EPERM,
    ENOENT,
    EIO,
    EAGAIN,
    ENOMEM,
    EBUSY,
    EEXIST,
    ENODEV,
    EINVAL,
    ENOSPC,
    ERANGE,
    EOVERFLOW,
    EPROTONOSUPPORT,
    EOPNOTSUPP,
}

impl Errno {
    /// Every number of this type.
    pub const ALL: [Self; 14] = [
        Self::EPERM,
        Self::ENOENT,
        Self::EIO,
        Self::EAGAIN,
        Self::ENOMEM,
        Self::EBUSY,
        Self::EEXIST,
        Self::ENODEV,
        Self::EINVAL,
        Self::ENOSPC,
        Self::ERANGE,
        Self::EOVERFLOW,
        Self::EPROTONOSUPPORT,
        Self::EOPNOTSUPP,
    ];

    /// The error of a number on Linux, which is positive, if this type has it.
    pub fn of_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|errno| errno.number() == number)
    }

    /// The text that the C library has for the number (`strerror`).
    pub fn text(self) -> &'static str {
        match self {
            Self::EPERM => "Operation not permitted",
            Self::ENOENT => "No such file or directory",
            Self::EIO => "Input/output error",
            Self::EAGAIN => "Resource temporarily unavailable",
            Self::ENOMEM => "Cannot allocate memory",
            Self::EBUSY => "Device or resource busy",
            Self::EEXIST => "File exists",
            Self::ENODEV => "No such device",
            Self::EINVAL => "Invalid argument",
            Self::ENOSPC => "No space left on device",
            Self::ERANGE => "Numerical result out of range",
            Self::EOVERFLOW => "Value too large for defined data type",
            Self::EPROTONOSUPPORT => "Protocol not supported",
            Self::EOPNOTSUPP => "Operation not supported",
        }
    }

    /// The number on Linux, which is positive.
    pub fn number(self) -> i32 {
        match self {
            Self::EPERM => 1,
            Self::ENOENT => 2,
            Self::EIO => 5,
            Self::EAGAIN => 11,
            Self::ENOMEM => 12,
            Self::EBUSY => 16,
            Self::EEXIST => 17,
            Self::ENODEV => 19,
            Self::EINVAL => 22,
            Self::ENOSPC => 28,
            Self::ERANGE => 34,
            Self::EOVERFLOW => 75,
            Self::EPROTONOSUPPORT => 93,
            Self::EOPNOTSUPP => 95,
        }
    }
}

/// The reason for which a command was refused or failed. In either case the card is in the state that it had before,
/// unless the command's documentation says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Error {
    /// The card has no PF at that address, or the PF is not bound to the driver.
    #[error("no devlink instance pci/{0}; `devlink dev show` lists those that exist")]
    NoDevice(PciAddress),
    /// No function at that address on the PCI bus.
    #[error("no PCI function {0}: it is not enabled, or was removed from the bus")]
    NoFunction(PciAddress),
    /// Unbinding a function that is not bound.
    #[error("{0} is not bound to the driver")]
    NotBound(PciAddress),
    /// Binding a function whose `driver_override` names another driver.
    #[error("{address} is for the driver {driver}; clear its driver_override first", driver = escaped(driver))]
    Overridden {
        /// The function.
        address: PciAddress,
        /// The driver that `driver_override` names.
        driver: String,
    },
    /// Binding a VF whose PF has `sriov_drivers_autoprobe` 0.
    #[error("{0}: its PF's sriov_drivers_autoprobe is 0; set that to 1, or set the driver_override of {0}, first")]
    NoAutoprobe(PciAddress),
    /// Binding a function to `vfio-pci`, whose `driver_override` does not name that driver.
    #[error("{0} is not for the driver vfio-pci; write that name to its driver_override first")]
    NotForVfio(PciAddress),
    /// Binding a function to `vfio-pci` while that driver's module is not loaded.
    #[error("{0} cannot be bound to vfio-pci: the module vfio_pci is not loaded")]
    NoVfio(PciAddress),
    /// Setting the number of interrupt vectors of a VF on a card whose `vf_msix` is 0.
    #[error("{0}: the card cannot change how many MSI-X vectors a VF has; its `vf_msix` is 0")]
    NoDynamicMsix(PciAddress),
    /// Setting the number of interrupt vectors of a VF that is bound to a driver.
    #[error("{0} is bound to a driver, which has counted the MSI-X vectors; unbind it first")]
    MsixInUse(PciAddress),
    /// Too few interrupt vectors for a VF.
    #[error("a VF needs {min} MSI-X vectors or more", min = crate::msix::MIN)]
    MsixTooFew,
    /// Too many interrupt vectors for a VF.
    #[error("a VF can have {max} MSI-X vectors at most", max = crate::msix::MAX)]
    MsixTooMany,
    /// More interrupt vectors than the other VFs of the PF leave.
    #[error("{left} MSI-X vectors are left for {address} by the other VFs of its PF; take some from them first")]
    MsixUsedUp {
        /// The VF.
        address: PciAddress,
        /// The vectors that it can have.
        left: u32,
    },
    /// `ip link set … vf N` for a VF that is not enabled.
    #[error("{pf} has no VF {vf} enabled; set sriov_numvfs first")]
    NoVf {
        /// The PF.
        pf: PciAddress,
        /// The VF's number.
        vf: u32,
    },
    /// `ip link set … vf` in switchdev mode, of a setting that the legacy switch acts on.
    #[error("{0} of a VF cannot be set in switchdev mode; configure the VF's representor instead")]
    VfInSwitchdev(&'static str),
    /// A VLAN number or priority out of its range.
    #[error("the vlan of a VF must be 0 to 4095 and its qos 0 to 7")]
    VfVlan,
    /// A VLAN protocol other than 802.1Q.
    #[error("the vlan protocol of a VF must be 802.1Q")]
    VfVlanProto,
    /// `min_tx_rate` is greater than `max_tx_rate`.
    #[error("min_tx_rate {min} is more than max_tx_rate {max}")]
    VfRate {
        /// `min_tx_rate`, in Mbit/s.
        min: u32,
        /// `max_tx_rate`, in Mbit/s.
        max: u32,
    },
    /// Binding a function that is bound.
    #[error("{0} is already bound to a driver")]
    AlreadyBound(PciAddress),
    /// No such port.
    #[error("no port {0}; `devlink port show` lists those that exist")]
    NoPort(PortHandle),
    /// No such module.
    #[error("module {name} not found; the card's modules are {known}", name = escaped(name), known = crate::module::known())]
    NoModule {
        /// The requested name.
        name: String,
    },
    /// Loading a module that is loaded, by a request for which that is an error (`insmod`).
    #[error("module {0} is already loaded")]
    ModuleLoaded(&'static str),
    /// Loading a module while a module that it depends on is not loaded.
    #[error("module {module} needs {needs}, which is not loaded; load that first, or both with modprobe")]
    ModuleNeeds {
        /// The module to be loaded.
        module: &'static str,
        /// The module that it depends on.
        needs: &'static str,
    },
    /// Binding a function while the driver's module is not loaded.
    #[error("{0}: module mlx5_core is not loaded; load it first")]
    NoCore(PciAddress),
    /// Unloading a module while a loaded module depends on it.
    #[error("module {0} is in use; unload the modules that depend on it first")]
    ModuleInUse(&'static str),
    /// Another operation is changing the E-Switch.
    #[error("Can't change mode, E-Switch is busy; try again once {0} is done")]
    Busy(&'static str),
    /// `sriov_numvfs` of a PF that is not bound.
    #[error("{0} is not bound to a driver; bind it first")]
    NoDriver(PciAddress),
    /// Entering switchdev mode while the PF's netdev is in another network namespace than its devlink instance.
    #[error(
        "Can't change E-Switch mode to switchdev when netdev net namespace has diverged from the devlink's; \
         move it back from `{netns}` first", netns = escaped(.0)
    )]
    NetnsDiverged(String),
    /// Moving the PF's netdev in switchdev mode.
    #[error("the uplink's netdev may not leave its network namespace in switchdev mode; set legacy mode first")]
    NetnsLocal,
    /// More VFs than the PF can have.
    #[error("{requested} VFs are more than sriov_totalvfs, which is {total}")]
    TooManyVfs {
        /// The requested number of VFs.
        requested: u32,
        /// `sriov_totalvfs`.
        total: u16,
    },
    /// Changing the number of VFs from one number to another, neither of which is 0.
    #[error("{current} VFs already enabled; set 0 VFs before enabling {requested}")]
    VfsEnabled {
        /// The number of VFs that are enabled.
        current: u16,
        /// The requested number of VFs.
        requested: u16,
    },
    /// `sriov_numvfs` of a PF of a DPU.
    #[error("the VFs of a DPU belong to its host; enable them there")]
    VfsOfHost,
    /// A change of the host's number of VFs, on a card that is not a DPU.
    #[error("{0} is not on a DPU: it has no host of its own; use sriov_numvfs")]
    NoHost(PciAddress),
    /// Adding an SF in legacy mode.
    #[error("SF ports are only supported in eswitch switchdev mode; set it with `devlink dev eswitch set`")]
    SfInLegacy,
    /// The card has no SFs.
    #[error("SF ports are not supported: this card's `max_sfs` is 0")]
    NoSfs,
    /// The requested SF number is in use.
    #[error("SF already exist. Choose different sfnum than {}", .0.0)]
    SfExists(SfNum),
    /// Adding an SF for another controller, on a card that is not on a DPU.
    #[error("External controller is unsupported")]
    SfController,
    /// Adding an SF for a controller that a DPU does not have.
    #[error("Invalid controller number {0}; that of the host is 1")]
    NoController(u32),
    /// Every SF is in use.
    #[error("all {0} SFs are in use; delete one first")]
    SfsFull(u16),
    /// Adding an SF with a PF number that is not the device's.
    #[error("Invalid pfnum supplied: {given}; the pfnum of this device is {own}")]
    SfPfnum {
        /// The requested PF number.
        given: u32,
        /// The PF number of the device.
        own: u8,
    },
    /// Adding a port of another flavour than `pcisf`.
    #[error("Driver supports only SF port addition (flavour pcisf)")]
    PortFlavour,
    /// Deleting a port that does not belong to an SF.
    #[error("{0} is not an SF; only SF ports can be deleted")]
    NotSf(PortHandle),
    /// Setting an attribute that the port's function does not have.
    #[error("{port}: Function does not support {attribute} setting")]
    FunctionAttribute {
        /// The port.
        port: PortHandle,
        /// The attribute, by devlink's name.
        attribute: &'static str,
    },
    /// Activating an SF while its function is still attached from before.
    #[error("SF is inactivated but it is still attached; try again once its opstate is detached")]
    SfAttached,
    /// Setting `hw_addr` or `roce` of an SF that is active.
    #[error("{0} is active; set its state to inactive before its hw_addr or roce")]
    SfActive(PortHandle),
    /// No SF has a device of that number on the auxiliary bus, or no driver is bound to the device.
    #[error(
        "no device mlx5_core.sf.{0} with a driver on the auxiliary bus; an SF has its device while its state is active"
    )]
    NoSfDevice(u32),
    /// Binding an SF's device that is bound.
    #[error("mlx5_core.sf.{0} is already bound to the driver")]
    SfBound(u32),
    /// Setting an inline mode other than `none`.
    #[error("Inline mode can't be set: this card needs no inline headers and accepts only `none`")]
    InlineMode,
    /// Registering ops of a type of which ops are registered.
    #[error("{0} representor ops are already registered")]
    OpsRegistered(RepType),
    /// The E-Switch, or the whole card, is being taken down.
    #[error("the E-Switch is being torn down")]
    Teardown,
    /// The system could not start a thread to serve a queue.
    #[error("cannot start a thread for a work queue: {0}; raise the limit on threads")]
    NoThread(String),
    /// A queue has no room, and none could be allocated.
    #[error("no memory to queue work for the E-Switch")]
    QueueFull,
    /// Turning `esw_multiport` on while a LAG is active.
    #[error("a LAG is active ({0}); delete the bond before turning esw_multiport on")]
    LagActive(LagMode),
    /// Turning `esw_multiport` on for a card with one port.
    #[error("the card has one port; esw_multiport needs two")]
    MpeswOnePort,
    /// Turning `esw_multiport` on while a port is in legacy mode.
    #[error("every port must be in switchdev mode before esw_multiport is turned on")]
    MpeswNeedsSwitchdev,
    /// Changing `esw_port_metadata` in switchdev mode.
    #[error("E-Switch must either disabled or non switchdev mode")]
    MetadataInSwitchdev,
    /// Changing `flow_steering_mode` in switchdev mode.
    #[error("Moving flow steering elsewhere is not supported when eswitch offloads enabled; set legacy mode first")]
    SteeringInSwitchdev,
    /// Changing the mode while rate nodes exist.
    #[error("Rate node(s) exists.")]
    RateNodesExist,
    /// No rate node of that name.
    #[error("no rate node {name}; `devlink port function rate show` lists those that exist", name = escaped(.0))]
    NoRateNode(String),
    /// Adding a rate node in legacy mode.
    #[error("rate nodes are only supported in eswitch switchdev mode; set it with `devlink dev eswitch set`")]
    RateInLegacy,
    /// Adding a rate node with the name of another.
    #[error("rate node {name} already exists", name = escaped(.0))]
    RateNodeExists(String),
    /// Adding a rate node with a name that is empty or consists of digits, as a port index does.
    #[error("`{name}` cannot name a rate node: a name needs a character other than a digit", name = escaped(.0))]
    RateNodeName(String),
    /// Deleting a node that is the parent of a leaf or of another node.
    #[error("Node has children. Cannot delete node.")]
    RateNodeInUse,
    /// Setting a parent that would make a loop of parents; the text says how.
    #[error("{0}")]
    RateParent(&'static str),
    /// A rate, in bytes per second, that is not a whole number of Mbit/s.
    #[error("TX rate value not in link units of 1Mbps: {0} bytes per second")]
    RateUnit(u64),
    /// A rate, in bytes per second, that is higher than that of the link.
    #[error("TX rate value exceed link maximum speed: {0} bytes per second; the link has 12500000000")]
    RateTooHigh(u64),
    /// No bond of that name over the card's ports.
    #[error("no bond {name} over the card's ports", name = escaped(.0))]
    NoBond(String),
    /// Making a bond while the card is in multiport E-Switch mode.
    #[error("{name}: the card is in multiport E-Switch mode; turn esw_multiport off first", name = escaped(.0))]
    BondUnderMpesw(String),
    /// The card could not do something.
    #[error("{operation}: {source}", operation = escaped(operation))]
    Card {
        /// The operation that failed.
        operation: String,
        /// The error of the card.
        source: CardError,
    },
}

impl Error {
    /// The error number with which the kernel would answer.
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
            | Self::NotForVfio(_)
            | Self::NoVfio(_)
            | Self::NoAutoprobe(_) => Errno::ENODEV,
            Self::MsixTooMany => Errno::EOVERFLOW,
            Self::MsixUsedUp { .. } => Errno::EAGAIN,
            Self::NoDynamicMsix(_) => Errno::EOPNOTSUPP,
            Self::MsixTooFew => Errno::EINVAL,
            Self::NoModule { .. } | Self::ModuleNeeds { .. } | Self::NoDriver(_) | Self::NoBond(_) => Errno::ENOENT,
            Self::AlreadyBound(_)
            | Self::MsixInUse(_)
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
            | Self::NoController(_)
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
            | Self::SfController
            | Self::PortFlavour
            | Self::NotSf(_)
            | Self::FunctionAttribute { .. }
            | Self::VfInSwitchdev(_)
            | Self::InlineMode => Errno::EOPNOTSUPP,
            Self::Card { source, .. } => source.errno(),
        }
    }
}
