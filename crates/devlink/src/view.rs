//! The view of a card: all that a program can see of it, for a lab or a status page. The server of the card makes it
//! with [`of`], the only function here that uses the engine.
//!
//! Lists are in the order in which the kernel would show them.

mod build;
mod rdma;
mod switch_id;

pub(crate) use build::build;
pub use build::of;
pub use switch_id::SwitchId;

use std::fmt;

use eswitch::auxiliary::AuxiliaryName;
use eswitch::{PciAddress, PortHandle, SfNum};
use serde::{Deserialize, Serialize};

use crate::card::KernelNetdevs;

/// The identity that a card shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The name of the profile, `mlx5`.
    pub name: String,
    /// PCI vendor id, `0x15b3`.
    pub vendor: u16,
    /// PCI device id of a PF.
    pub device: u16,
    /// PCI device id of a VF.
    pub vf_device: u16,
    /// PCI subsystem vendor and device id.
    pub subsystem: (u16, u16),
    /// PCI revision.
    pub revision: u8,
    /// The name of the PCI driver and of its module: `mlx5_core`.
    pub driver: String,
    /// The firmware version that is shown.
    pub firmware: String,
    /// The board id, `psid`.
    pub board: String,
    /// The speed of the port in Mb/s: one of [`Profile::SPEEDS`].
    #[serde(default = "default_speed")]
    pub speed: u32,
    /// The NUMA node to which the card is attached: -1 for none, or 0 to [`Profile::LAST_NODE`].
    #[serde(default = "default_numa_node")]
    pub numa_node: i32,
}

/// The speed in a view that has none: that of a ConnectX-6 Dx.
fn default_speed() -> u32 {
    100_000
}

/// The NUMA node in a view that has none: NUMA_NO_NODE.
fn default_numa_node() -> i32 {
    -1
}

impl Profile {
    /// The largest number of a NUMA node: MAX_NUMNODES of a kernel for many processors, less 1.
    pub const LAST_NODE: i32 = 1023;

    /// The speeds that a port can have, in Mb/s, of those that `mlx5e_port_ptys2speed` knows.
    pub const SPEEDS: [u32; 6] = [10_000, 25_000, 40_000, 50_000, 100_000, 200_000];

    /// The identity of a card that is not given another. `dpu`: the card's own CPU manages the E-Switch.
    pub fn of(dpu: bool) -> Self {
        if dpu { Self::bluefield2() } else { Self::mlx5() }
    }

    /// A ConnectX-6 Dx.
    pub fn mlx5() -> Self {
        Self {
            name: "mlx5".to_owned(),
            vendor: 0x15b3,
            device: 0x101d,
            vf_device: 0x101e,
            subsystem: (0x15b3, 0x0083),
            revision: 0,
            driver: "mlx5_core".to_owned(),
            firmware: "22.45.1020".to_owned(),
            board: "MT_0000000436".to_owned(),
            speed: default_speed(),
            numa_node: default_numa_node(),
        }
    }

    /// A BlueField-2, whose network controller is that of a ConnectX-6 Dx with a device id and a firmware of its own
    /// (`mlx5_core_pci_table`). Its VFs have the same device id as those of a ConnectX-6 Dx.
    pub fn bluefield2() -> Self {
        Self { device: 0xa2d6, revision: 1, firmware: "24.45.1020".to_owned(), ..Self::mlx5() }
    }
}

/// How a card appears: what a view shows that is not state of the engine.
#[derive(Clone, Copy)]
pub struct Appearance<'a> {
    /// The identity that the card shows.
    pub profile: &'a Profile,
    /// The card's netdevs as the kernel has them; `None` for a card without netdevs.
    pub netdevs: Option<&'a dyn KernelNetdevs>,
}

impl<'a> From<&'a Profile> for Appearance<'a> {
    /// The appearance of a card without netdevs.
    fn from(profile: &'a Profile) -> Self {
        Self { profile, netdevs: None }
    }
}

/// A card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Its name: the address of its first PF, unless it was given another.
    pub name: String,
    /// The identity it shows.
    pub profile: Profile,
    /// `phys_switch_id`.
    pub switch_id: SwitchId,
    /// Every PCI function: PFs, then VFs, by address.
    pub functions: Vec<Function>,
    /// Every device on the auxiliary bus.
    pub auxiliary: Vec<Auxiliary>,
    /// Every netdev of the card, in whatever namespace it is.
    pub netdevs: Vec<Netdev>,
    /// The [peers](Netdev::peer) of netdevs that are none of this machine's: on a DPU, those of its host's functions.
    #[serde(default)]
    pub host_peers: Vec<u32>,
    /// Every RDMA device.
    pub rdma: Vec<RdmaDevice>,
    /// Whether each RDMA device is seen in its own network namespace only (`rdma system show`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rdma_exclusive: bool,
    /// Every module that contains drivers of the card, loaded or not.
    pub modules: Vec<Module>,
}

impl Card {
    /// The network namespace of the devlink instance of a device (SO_NETNS_COOKIE), if that is another one than that in
    /// which the card's netdevs appear.
    pub fn netns_of(&self, device: DeviceName) -> Option<u64> {
        match device {
            DeviceName::Pci(address) => self.functions.iter().find(|function| function.address == address)?.netns,
            DeviceName::Auxiliary(name) => self.auxiliary.iter().find(|device| device.name == name)?.netns,
        }
    }

    /// Whether a devlink instance is in a network namespace other than that in which the card's netdevs appear.
    pub fn has_instance_in(&self, netns: u64) -> bool {
        let functions = self.functions.iter().map(|function| function.netns);
        functions.chain(self.auxiliary.iter().map(|device| device.netns)).any(|is| is == Some(netns))
    }

    /// Whether any devlink instance is in another network namespace than that in which the card's netdevs appear.
    pub fn has_moved_instance(&self) -> bool {
        let functions = self.functions.iter().map(|function| function.netns);
        functions.chain(self.auxiliary.iter().map(|device| device.netns)).any(|is| is.is_some())
    }
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// `0000:08:00.0`.
    pub address: PciAddress,
    /// For a VF, its PF's address and its number.
    pub vf_of: Option<(PciAddress, u16)>,
    /// The driver it is bound to.
    pub driver: Option<String>,
    /// `driver_override`, if one is set.
    pub driver_override: Option<String>,
    /// The number of its interrupt vectors (MSI-X): 1 to 2048.
    #[serde(default = "default_msix")]
    pub msix: u16,
    /// For a PF: its `sriov_*` attributes.
    pub sriov: Option<Sriov>,
    /// The network namespace of its devlink instance (SO_NETNS_COOKIE), if that was reloaded into another one than that
    /// in which the card's netdevs appear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<u64>,
}

/// The number of interrupt vectors in a view that has none.
fn default_msix() -> u16 {
    eswitch::msix::FIXED
}

impl Function {
    /// Whether the card's driver is bound to it. Another driver, `vfio-pci`, leaves a function disabled until a program
    /// opens it (`vfio_pci_core_enable`).
    pub fn is_enabled(&self, profile: &Profile) -> bool {
        self.driver.as_ref() == Some(&profile.driver)
    }
}

/// The `sriov_*` attributes of a PF in sysfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sriov {
    /// `sriov_totalvfs`.
    pub total: u16,
    /// `sriov_numvfs`.
    pub enabled: u16,
    /// `sriov_drivers_autoprobe`.
    pub autoprobe: bool,
    /// `sriov_vf_total_msix`: 0 if the VFs' interrupt vectors cannot be distributed, or the card's driver is not bound.
    #[serde(default)]
    pub total_msix: u32,
    /// `sriov_offset`: the routing ID of VF 0 minus that of the PF. 0 on a DPU, whose VFs belong to another machine.
    pub offset: u16,
    /// The addresses of the enabled VFs, by number, including VFs that were removed from the bus.
    pub vfs: Vec<PciAddress>,
}

/// The name of a device on its bus (`dev_name` in the kernel): of a PCI function, or of a device on the auxiliary bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceName {
    /// The address of a PCI function.
    Pci(PciAddress),
    /// The name of an auxiliary device.
    Auxiliary(AuxiliaryName),
}

impl DeviceName {
    /// Parses a device's name on a bus. `None`: a card can have no such device, as it has none on that bus, or as its
    /// devices there have names of another form.
    pub fn parse(bus: &str, name: &str) -> Option<Self> {
        let device = match bus {
            "pci" => name.parse().map(Self::Pci).ok(),
            "auxiliary" => name.parse().map(Self::Auxiliary).ok(),
            _ => None,
        };
        // The kernel compares names byte by byte: an address in capitals names no device.
        device.filter(|device| device.to_string() == name)
    }

    /// The bus: `pci`, `auxiliary`.
    pub fn bus(&self) -> &'static str {
        match self {
            Self::Pci(_) => "pci",
            Self::Auxiliary(_) => "auxiliary",
        }
    }
}

impl fmt::Display for DeviceName {
    /// Its name without the bus: `0000:08:00.0`, `mlx5_core.sf.4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(address) => address.fmt(f),
            Self::Auxiliary(name) => name.fmt(f),
        }
    }
}

/// A device on the auxiliary bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Auxiliary {
    /// `mlx5_core.eth.0`.
    pub name: AuxiliaryName,
    /// Its parent device in sysfs.
    pub parent: DeviceName,
    /// The name of the bound driver, `mlx5_core.eth`.
    pub driver: Option<String>,
    /// For an SF's own device: the number of the SF, as given to `devlink port add`.
    pub sfnum: Option<SfNum>,
    /// For an SF's own device: the same as [`Function::netns`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<u64>,
}

/// The purpose of a netdev.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The netdev of a PF, which is also the representor of its uplink.
    Pf,
    /// The netdev of a VF.
    Vf,
    /// The netdev of an SF.
    Sf,
    /// The representor of a vport other than the uplink.
    Representor,
}

/// A netdev of the card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netdev {
    /// Its name, as known to the card. The card is notified of a rename in the namespace where its netdevs appear.
    pub name: String,
    /// The interface index of its other end, in the card's network namespace. It does not change as long as the netdev
    /// lives, wherever it is moved and however it is renamed. `None`: the kernel has no such netdev.
    #[serde(default)]
    pub peer: Option<u32>,
    /// Whether it is in another network namespace than the one where the card's netdevs appear. Its name is then the
    /// last one that it had there.
    #[serde(default)]
    pub elsewhere: bool,
    /// Its purpose.
    pub role: Role,
    /// `device` in sysfs, and IFLA_PARENT_DEV_NAME.
    pub parent: DeviceName,
    /// `phys_port_name`, if it has one.
    pub port_name: Option<String>,
    /// Whether it is a port of the E-Switch, in switchdev mode.
    pub in_switch: bool,
    /// `dev_port`.
    pub dev_port: u32,
    /// For a PF: what `ip link show` prints about its VFs.
    pub vfs: Vec<VfInfo>,
    /// The devlink port of the netdev, if it has one.
    pub port: Option<PortHandle>,
    /// The driver that `ethtool -i` prints: `mlx5_core`, for representors `mlx5e_rep`.
    pub driver: String,
    /// `bus-info` of `ethtool -i`, which is the name of the parent device.
    pub bus_info: String,
    /// The permanent address: the one with which the driver has registered the netdev (`register_netdevice`). `None`
    /// for a representor: the driver gives it a random address, and the kernel then keeps none.
    #[serde(default)]
    pub permanent: Option<[u8; 6]>,
}

impl Netdev {
    /// Whether it has the card's `phys_switch_id`. A PF, which manages the E-Switch, has it in either mode
    /// (`mlx5e_devlink_port_register`).
    pub fn has_switch_id(&self) -> bool {
        self.in_switch || self.role == Role::Pf
    }
}

/// What `ip link show` prints about a VF for the netdev of its PF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfInfo {
    /// The number of the VF.
    pub vf: u32,
    /// `mac`, six bytes: the administrative address, which is zero if nobody has set one.
    pub mac: [u8; 6],
    /// `vlan`: 0 for none.
    pub vlan: u16,
    /// `qos` of the vlan.
    pub qos: u8,
    /// `vlan proto`: 0x8100. mlx5 does not report it.
    pub vlan_proto: u16,
    /// `min_tx_rate` in Mbit/s.
    pub min_tx_rate: u32,
    /// `max_tx_rate` in Mbit/s; 0 for no limit.
    pub max_tx_rate: u32,
    /// `spoofchk`.
    pub spoofchk: bool,
    /// `trust`.
    pub trust: bool,
    /// IFLA_VF_LINK_STATE: 0 auto, 1 enable, 2 disable.
    pub link_state: u32,
    /// Node and port GUID.
    pub guids: (u64, u64),
}

/// An RDMA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaDevice {
    /// Its index, RDMA_NLDEV_ATTR_DEV_INDEX.
    pub index: u32,
    /// `rocep8s0f0`, unless it was renamed.
    pub name: String,
    /// The network namespace in which it is (SO_NETNS_COOKIE), if namespaces do not share the devices and that is another one
    /// than that in which the card's netdevs appear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<u64>,
    /// `node_desc`, if one was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_desc: Option<Vec<u8>>,
    /// Whether it moderates the interrupts of completion queues by itself.
    #[serde(default = "moderates", skip_serializing_if = "Clone::clone")]
    pub moderation: bool,
    /// `device` in sysfs.
    pub parent: DeviceName,
    /// `node_guid`.
    pub node_guid: u64,
    /// Its ports: each number from 1 to the last.
    pub ports: Vec<RdmaPort>,
}

impl RdmaDevice {
    /// A device of which nothing was changed by a program.
    pub fn new(index: u32, name: String, parent: DeviceName, node_guid: u64, ports: Vec<RdmaPort>) -> Self {
        Self { index, name, netns: None, node_desc: None, moderation: moderates(), parent, node_guid, ports }
    }
}

/// What a device does unless it is said (`mlx5_ib_stage_caps_init` sets `use_cq_dim`).
fn moderates() -> bool {
    true
}

/// A port of an RDMA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaPort {
    /// From 1.
    pub number: u32,
    /// The name of its netdev.
    pub netdev: Option<String>,
    /// Whether it does RoCE. A port of a PF's device in switchdev mode does not: it is for raw packets only, and has no
    /// GIDs (`raw_eth_profile` in mlx5_ib).
    #[serde(default = "does_roce")]
    pub roce: bool,
}

/// What a port does unless it is said.
fn does_roce() -> bool {
    true
}

/// A module that contains drivers of the card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// `mlx5_ib`.
    pub name: String,
    /// Whether it is loaded.
    pub loaded: bool,
    /// The names of the modules it depends on.
    pub depends: Vec<String>,
    /// `description` of `modinfo`.
    pub description: String,
    /// The drivers it registers: bus (`pci`, `auxiliary`) and name (`mlx5_core`, `mlx5_core.eth`).
    pub drivers: Vec<(String, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_json_are_the_text_that_programs_know() {
        let device = |bus, name| DeviceName::parse(bus, name).unwrap();
        for (name, json) in [
            (device("pci", "0000:08:00.0"), r#"{"pci":"0000:08:00.0"}"#),
            (device("auxiliary", "mlx5_core.sf.4"), r#"{"auxiliary":"mlx5_core.sf.4"}"#),
        ] {
            assert_eq!(serde_json::to_string(&name).unwrap(), json);
            assert_eq!(serde_json::from_str::<DeviceName>(json).unwrap(), name);
        }
        let auxiliary = Auxiliary {
            name: AuxiliaryName::Sf { id: 4 },
            parent: device("pci", "0000:08:00.0"),
            driver: None,
            sfnum: Some(SfNum(88)),
            netns: None,
        };
        let json = r#"{"name":"mlx5_core.sf.4","parent":{"pci":"0000:08:00.0"},"driver":null,"sfnum":88}"#;
        assert_eq!(serde_json::to_string(&auxiliary).unwrap(), json);
    }

    #[test]
    fn a_name_that_no_device_of_a_card_can_have_is_not_parsed() {
        for (bus, name) in [
            ("usb", "1-1"),
            ("pci", "0000:08:00"),
            ("pci", "0000:0A:00.0"),
            ("pci", "mlx5_core.sf.4"),
            ("auxiliary", "0000:08:00.0"),
        ] {
            assert_eq!(DeviceName::parse(bus, name), None, "{bus}/{name}");
        }
    }
}
