//! Commands to a card, as values.

use std::net::IpAddr;

use eswitch::card::Fault;
use eswitch::devlink::InlineMode;
use eswitch::lag::BondPlan;
use eswitch::vf::VfSetting;
use eswitch::{FlowChange, FunctionChange, MacAddr, Mode, PciAddress, PortHandle, SfNum};
use serde::{Deserialize, Serialize};

/// A change to a card.
///
/// Each variant names the command of devlink(8), the file below `/sys` or the program that has the same effect. Its
/// errors are those of the [`eswitch::Engine`] method that carries it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// `devlink dev eswitch set DEV`. The options are set one after the other, as in devlink: those before one that is
    /// refused stay set.
    SetEswitch {
        /// The PF's devlink instance.
        device: PciAddress,
        /// The options, in the order in which they are set.
        options: Vec<EswitchOption>,
    },
    /// `devlink dev reload DEV`.
    Reload(PciAddress),
    /// `devlink port add DEV flavour pcisf pfnum N sfnum N [controller N]`.
    AddSf {
        /// The PF's devlink instance.
        device: PciAddress,
        /// The index of the PF on the card, from 0.
        pfnum: u32,
        /// The number of the SF.
        sfnum: SfNum,
        /// 0 for the card's own controller, 1 for the host of a DPU.
        controller: u32,
    },
    /// `devlink port del PORT`.
    DeletePort(PortHandle),
    /// `devlink port function set PORT`.
    SetFunction {
        /// The port.
        port: PortHandle,
        /// The attributes of its function that are set.
        change: FunctionChange,
    },
    /// `devlink dev param set DEV name esw_multiport value BOOL cmode runtime`.
    SetEswMultiport {
        /// The PF's devlink instance.
        device: PciAddress,
        /// The parameter's value.
        value: bool,
    },
    /// `/sys/bus/pci/devices/ADDRESS/sriov_numvfs`.
    SetNumVfs {
        /// The PF.
        device: PciAddress,
        /// The number of VFs, from 0.
        number: u32,
    },
    /// `/sys/bus/pci/devices/ADDRESS/sriov_drivers_autoprobe`.
    SetAutoprobe {
        /// The PF.
        device: PciAddress,
        /// Whether a driver is bound to each VF when it is enabled.
        on: bool,
    },
    /// `/sys/bus/pci/drivers/mlx5_core/bind`.
    Bind(PciAddress),
    /// `/sys/bus/pci/drivers/mlx5_core/unbind`.
    Unbind(PciAddress),
    /// `/sys/bus/pci/drivers/vfio-pci/bind`.
    BindVfio(PciAddress),
    /// `/sys/bus/pci/drivers/vfio-pci/unbind`.
    UnbindVfio(PciAddress),
    /// `/sys/bus/auxiliary/drivers/mlx5_core.sf/bind` and `unbind`.
    SetSfBound {
        /// The number of the SF's auxiliary device: 2 for `mlx5_core.sf.2`.
        id: u32,
        /// Whether its driver is bound.
        bound: bool,
    },
    /// `/sys/bus/pci/drivers_probe`.
    Probe(PciAddress),
    /// `/sys/bus/pci/devices/ADDRESS/driver_override`.
    SetDriverOverride {
        /// The function.
        device: PciAddress,
        /// The name of the only driver that may be bound to it. `None`: any driver may be.
        driver: Option<String>,
    },
    /// `/sys/bus/pci/devices/ADDRESS/sriov_vf_msix_count`.
    SetVfMsix {
        /// The VF.
        device: PciAddress,
        /// The number of interrupt vectors. 0: as at the start.
        count: u32,
    },
    /// `/sys/bus/pci/devices/ADDRESS/remove`.
    Remove(PciAddress),
    /// `/sys/bus/pci/rescan`.
    Rescan,
    /// `/sys/bus/pci/devices/ADDRESS/reset`.
    Reset(PciAddress),
    /// `ip link set PFNETDEV vf N`. The settings are set one after the other.
    SetVf {
        /// The PF.
        device: PciAddress,
        /// The VF's number, from 0.
        vf: u32,
        /// The settings, in the order in which they are set.
        settings: Vec<VfSetting>,
    },
    /// `ip link set PFNETDEV netns NAME`.
    SetNetns {
        /// The PF.
        device: PciAddress,
        /// The name of the network namespace. `None`: the namespace of the card.
        netns: Option<String>,
    },
    /// `modprobe MODULE`: loads the module and those that it depends on.
    LoadModule(String),
    /// `insmod MODULE`: loads the module alone.
    InsertModule(String),
    /// `modprobe -r MODULE`, `rmmod MODULE`.
    UnloadModule(String),
    /// Creates a bond over the card's ports, or changes the bond of that name to match the plan.
    Bond {
        /// The bond.
        plan: BondPlan<PciAddress>,
        /// The number of further events that remove and add the bond by turns, so that at the end it exists: 0 to
        /// [`MAX_FLAP`].
        flap: u32,
    },
    /// Deletes the bond of this name.
    DeleteBond(String),
    /// `tc filter add`, `tc filter del`, and what programs ask of flow rules besides. The changes are made one after the
    /// other, and the refusal of one does not affect the others.
    ChangeFlows(Vec<FlowChange>),
    /// `ip neigh replace`, `ip neigh del`: the next hop from a PF to the end of a tunnel.
    SetNeighbour {
        /// The PF.
        device: PciAddress,
        /// The end of the tunnel.
        end: IpAddr,
        /// The MAC address of the next hop, if it is known.
        mac: Option<MacAddr>,
    },
    /// On a DPU, the host sets the number of its VFs.
    SetHostVfs {
        /// The PF.
        device: PciAddress,
        /// The number of VFs, from 0.
        number: u32,
    },
    /// Makes requests to the card fail or take longer.
    AddFault(Fault),
    /// Makes allocations fail in the notifier of the host's VF count.
    FailAllocations {
        /// The PF.
        device: PciAddress,
        /// The number of allocations that fail.
        times: u32,
    },
    /// Removes the faults that [`AddFault`](Self::AddFault) added.
    ClearFaults,
}

/// The maximum of `flap` in [`Command::Bond`].
pub const MAX_FLAP: u32 = 100_000;

/// An option of `devlink dev eswitch set`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EswitchOption {
    /// `mode`.
    Mode(Mode),
    /// `inline-mode`.
    InlineMode(InlineMode),
    /// `encap-mode`: whether it is `basic`.
    EncapMode(bool),
}
