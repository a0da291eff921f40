//! VFs as PCI functions of their own: what each is, beside its port in the switch.
//!
//! A VF's driver is no thread and no lock of its own. What is known of it stands with its vport under its PF's
//! devlink lock, and what its driver makes is a resource of the card.

use crate::ids::MacAddr;

/// What `ip link` sets of a VF's link, `state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkState {
    /// As the wire's.
    #[default]
    Auto,
    /// Up whatever the wire is.
    Enable,
    /// Down.
    Disable,
}

/// The VLAN that a VF's frames are put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VfVlan {
    /// 0 for none, to 4095.
    pub id: u16,
    /// The priority, to 7.
    pub qos: u8,
    /// The protocol of the tag: 0x8100 or 0x88a8.
    pub proto: u16,
}

impl Default for VfVlan {
    fn default() -> Self {
        Self { id: 0, qos: 0, proto: ETH_P_8021Q }
    }
}

/// The protocol of an ordinary VLAN tag.
pub const ETH_P_8021Q: u16 = 0x8100;

/// The protocol of a service tag.
pub const ETH_P_8021AD: u16 = 0x88a8;

/// What there is of a VF beside its port. It is forgotten when VFs are disabled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfInfo {
    /// Whether it is bound to the driver.
    pub bound: bool,
    /// `driver_override`, if one is set.
    pub driver_override: Option<String>,
    /// Whether it was taken off the bus with `remove`.
    pub removed: bool,
    /// `vlan`, stored and shown.
    pub vlan: VfVlan,
    /// `min_tx_rate` in Mbit/s, stored and shown.
    pub min_tx_rate: u32,
    /// `max_tx_rate` in Mbit/s, 0 for no limit; stored and shown.
    pub max_tx_rate: u32,
    /// `spoofchk`, stored and shown.
    pub spoofchk: bool,
    /// `trust`, stored and shown.
    pub trust: bool,
    /// `state`.
    pub link: LinkState,
}

impl VfInfo {
    /// A VF that has just been enabled.
    pub(crate) fn new(bound: bool) -> Self {
        Self {
            bound,
            driver_override: None,
            removed: false,
            vlan: VfVlan::default(),
            min_tx_rate: 0,
            max_tx_rate: 0,
            spoofchk: false,
            trust: false,
            link: LinkState::default(),
        }
    }
}

/// A VF that is enabled, for those who look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfView {
    /// Its number.
    pub number: u16,
    /// The MAC address of its function.
    pub mac: MacAddr,
    /// Whether its function has RDMA.
    pub roce: bool,
    /// What else there is of it.
    pub info: VfInfo,
}
