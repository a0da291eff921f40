//! Identifiers as types of their own: PCI addresses, vports, devlink port handles, MAC addresses, types of representor,
//! modes. None of them is a plain integer or string.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text::escaped;

/// A PCI address, for example `0000:08:00.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// 0 to 0xffff.
    pub domain: u16,
    /// 0 to 0xff.
    pub bus: u8,
    /// 0 to 31.
    pub device: u8,
    /// 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// The routing id: bus, device and function as one number, 0 to 0xffff.
    pub fn routing_id(self) -> u32 {
        u32::from(self.bus) << 8 | u32::from(self.device) << 3 | u32::from(self.function)
    }

    /// The address of a routing id. Only the low 16 bits of `id` are used.
    pub fn of_routing_id(domain: u16, id: u32) -> Self {
        Self { domain, bus: (id >> 8) as u8, device: (id >> 3 & 31) as u8, function: (id & 7) as u8 }
    }
}

/// An error in text that was to be parsed. Its message has the text and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}", text = escaped(text))]
pub struct ParseError {
    text: String,
    expected: &'static str,
}

impl ParseError {
    /// An error for `text`, which is not what was `expected`: "a PCI address such as 0000:08:00.0".
    pub fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.to_owned(), expected }
    }
}

impl FromStr for PciAddress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new(text, "a PCI address such as 0000:08:00.0");
        let hex = |s: &str, width: usize| {
            (s.len() == width && s.bytes().all(|b| b.is_ascii_hexdigit()))
                .then(|| u16::from_str_radix(s, 16).ok())
                .flatten()
                .ok_or_else(error)
        };
        let (rest, function) = text.split_once('.').ok_or_else(error)?;
        let mut parts = rest.split(':');
        let (Some(domain), Some(bus), Some(device), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(error());
        };
        let address = Self {
            domain: hex(domain, 4)?,
            bus: hex(bus, 2)? as u8,
            device: hex(device, 2)? as u8,
            function: hex(function, 1)? as u8,
        };
        if address.device > 31 || address.function > 7 {
            return Err(error());
        }
        Ok(address)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Addresses are formatted in almost every message and path, and the formatting macros take ten times as long.
        let digit = |number: u8| b"0123456789abcdef"[usize::from(number & 0xf)];
        let [high, low] = self.domain.to_be_bytes();
        let mut text = *b"0000:00:00.0";
        for (at, byte) in [(0, high), (2, low), (5, self.bus), (8, self.device)] {
            text[at] = digit(byte >> 4);
            text[at + 1] = digit(byte);
        }
        text[11] = digit(self.function);
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The index of a PF on its card: 0 to 3. The index is also the PF's rank where representor locks nest: the master,
/// which has the lowest, is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PfIndex(pub u8);

/// A set of PFs of a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PfSet(u8);

impl PfSet {
    /// Adds a PF.
    pub fn insert(&mut self, pf: PfIndex) {
        self.0 |= 1 << pf.0;
    }

    /// Removes a PF.
    pub fn remove(&mut self, pf: PfIndex) {
        self.0 &= !(1 << pf.0);
    }

    /// Whether the set has a PF.
    pub fn contains(self, pf: PfIndex) -> bool {
        self.0 & 1 << pf.0 != 0
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The PFs of the set, the master first.
    pub fn iter(self) -> impl Iterator<Item = PfIndex> {
        (0..u8::BITS as u8).map(PfIndex).filter(move |pf| self.contains(*pf))
    }
}

impl FromIterator<PfIndex> for PfSet {
    fn from_iter<I: IntoIterator<Item = PfIndex>>(pfs: I) -> Self {
        let mut set = Self::default();
        pfs.into_iter().for_each(|pf| set.insert(pf));
        set
    }
}

/// `sfnum`: the number that the user gives to an SF. It is unique within a PF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SfNum(pub u32);

/// The vport number of the SF at place 0 of a PF's SF table. The vport number of another SF is this plus its place.
pub const SF_VPORT_BASE: u16 = 0x8000;

/// The largest number of SFs of one PF. Vport numbers from 0xfff0 are reserved.
pub const MAX_SFS: u16 = 0x7ff0;

/// A port of the E-Switch. Vports are ordered as their representors are loaded: the uplink first, then by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vport {
    /// The port of the wire. Its vport number is 0xffff.
    Uplink,
    /// On a DPU, the PF that the host sees. Its vport number is 0.
    HostPf,
    /// A VF of the PF itself, or on a DPU of the host's PF. Counted from 0; the vport number is one more.
    Vf(u16),
    /// An SF, by its place in the PF's table of SFs, counted from 0. Its vport number is [`SF_VPORT_BASE`] plus the
    /// place.
    Sf(u16),
}

impl Vport {
    /// The vport number, as a real card's firmware and devlink port indices have it.
    pub fn number(self) -> u16 {
        match self {
            Self::Uplink => 0xffff,
            Self::HostPf => 0,
            Self::Vf(n) => n + 1,
            Self::Sf(place) => SF_VPORT_BASE + place,
        }
    }

    /// The vport of a vport number, or `None` if the number is reserved. `dpu` is whether vport 0 is the host's PF. On
    /// a plain NIC vport 0 is the PF that manages the E-Switch, which has no representor, and this returns `None`.
    pub fn from_number(number: u16, dpu: bool) -> Option<Self> {
        match number {
            0xffff => Some(Self::Uplink),
            0 => dpu.then_some(Self::HostPf),
            1..SF_VPORT_BASE => Some(Self::Vf(number - 1)),
            SF_VPORT_BASE..0xfff0 => Some(Self::Sf(number - SF_VPORT_BASE)),
            _ => None,
        }
    }
}

impl fmt::Display for Vport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uplink => f.write_str("uplink"),
            Self::HostPf => f.write_str("hpf"),
            Self::Vf(n) => write!(f, "vf{n}"),
            Self::Sf(n) => write!(f, "sf@{n}"),
        }
    }
}

/// The index of a devlink port: the PF's index in the upper 16 bits and the vport number in the lower, as in mlx5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PortIndex(pub u32);

impl PortIndex {
    /// The devlink port index of a PF's vport.
    pub fn new(pf: PfIndex, vport: Vport) -> Self {
        Self(u32::from(pf.0) << 16 | u32::from(vport.number()))
    }

    /// The PF's index and the vport number.
    pub fn split(self) -> (u32, u16) {
        (self.0 >> 16, (self.0 & 0xffff) as u16)
    }
}

/// The handle of a devlink port as devlink prints it: `pci/0000:08:00.0/65535`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortHandle {
    /// The PCI address of the devlink instance.
    pub device: PciAddress,
    /// The index of the port in the instance.
    pub index: PortIndex,
}

impl fmt::Display for PortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pci/{}/{}", self.device, self.index.0)
    }
}

impl FromStr for PortHandle {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new(text, "a devlink port such as pci/0000:08:00.0/1");
        let (device, index) = text.strip_prefix("pci/").and_then(|t| t.rsplit_once('/')).ok_or_else(error)?;
        Ok(Self { device: device.parse().map_err(|_| error())?, index: PortIndex(index.parse().map_err(|_| error())?) })
    }
}

/// A MAC address that is no multicast address. [`ZERO`](Self::ZERO) stands for an address that nobody has set.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The address of a function that nobody has given one: its driver makes one of its own.
    pub const ZERO: Self = Self([0; 6]);

    /// The address of these bytes, or `None` if they are a multicast address, of which broadcast is one. All zeros are
    /// allowed, as in the kernel (`is_unicast_ether_addr`).
    pub fn unicast(bytes: [u8; 6]) -> Option<Self> {
        (bytes[0] & 1 == 0).then_some(Self(bytes))
    }

    /// This address, or `own` if this is [`ZERO`](Self::ZERO): the address that a driver gives its netdev
    /// (`mlx5e_set_netdev_dev_addr`), where `own` is the one that it makes by itself.
    pub fn or_own(self, own: Self) -> Self {
        if self == Self::ZERO { own } else { self }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Implements serde's traits for types, by the text that `Display` writes and `FromStr` reads.
macro_rules! serde_as_text {
    ($($type:ty),+) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                <String as serde::Deserialize>::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

pub(crate) use serde_as_text;

serde_as_text!(PciAddress, PortHandle, MacAddr);

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for MacAddr {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new(text, "a unicast MAC address such as 00:11:22:33:44:55");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        let address = Self::unicast(bytes).ok_or_else(error)?;
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(address)
    }
}

/// The type of a representor: the kind of device that it is on the host that manages the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepType {
    /// A netdev.
    Eth,
    /// An RDMA device for the uplink, and a port of that device for every other vport.
    Ib,
}

impl RepType {
    /// Both types, in the order in which representors are loaded.
    pub const ALL: [Self; 2] = [Self::Eth, Self::Ib];

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for RepType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eth => "eth",
            Self::Ib => "ib",
        })
    }
}

impl FromStr for RepType {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "eth" => Ok(Self::Eth),
            "ib" => Ok(Self::Ib),
            _ => Err(ParseError::new(text, "a representor type: eth or ib")),
        }
    }
}

/// The mode of an E-Switch, as `devlink dev eswitch` names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The card switches by MAC address and VLAN, and has no representors.
    #[default]
    Legacy,
    /// Each vport has representors, and the card forwards only what is configured through them.
    Switchdev,
    /// As [`Switchdev`](Self::Switchdev), but no frame passes the forwarding database: representors and rules are there
    /// and can be set up before the first frame (DEVLINK_ESWITCH_MODE_SWITCHDEV_INACTIVE, Linux 6.19).
    #[serde(rename = "switchdev_inactive")]
    SwitchdevInactive,
}

impl Mode {
    /// Every mode, at the place of its number in devlink (DEVLINK_ESWITCH_MODE_*).
    pub const ALL: [Self; 3] = [Self::Legacy, Self::Switchdev, Self::SwitchdevInactive];

    /// Its number in devlink.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The mode of a number in devlink.
    pub fn of_number(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether vports have representors in this mode.
    pub fn is_switchdev(self) -> bool {
        matches!(self, Self::Switchdev | Self::SwitchdevInactive)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy",
            Self::Switchdev => "switchdev",
            Self::SwitchdevInactive => "switchdev_inactive",
        })
    }
}

impl FromStr for Mode {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "legacy" => Ok(Self::Legacy),
            "switchdev" => Ok(Self::Switchdev),
            "switchdev_inactive" => Ok(Self::SwitchdevInactive),
            _ => Err(ParseError::new(text, "an E-Switch mode: legacy, switchdev or switchdev_inactive")),
        }
    }
}

/// The mode of the LAG over the PFs of a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LagMode {
    /// No LAG.
    #[default]
    None,
    /// The PFs are in legacy mode without VFs. They share one RDMA device over all ports.
    Roce,
    /// The PFs are in switchdev mode. Each has its own forwarding database and RDMA device.
    Vf,
    /// The PFs are in switchdev mode. They share one forwarding database and one RDMA device, which are the master's.
    SharedFdb,
    /// Multiport E-Switch: as with a shared forwarding database, but each port has an uplink of its own, and no bond is
    /// needed.
    Mpesw,
}

impl LagMode {
    /// Whether the PFs share a forwarding database in switchdev mode, and with it one RDMA device, on the master.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::SharedFdb | Self::Mpesw)
    }
}

impl fmt::Display for LagMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Roce => "roce",
            Self::Vf => "vf",
            Self::SharedFdb => "shared-fdb",
            Self::Mpesw => "mpesw",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_identifiers_can_be_parsed() {
        for text in ["0000:08:00.0", "ffff:ff:1f.7", "0001:0a:00.1"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        for text in ["00:11:22:33:44:55", "02:ff:00:00:00:01"] {
            assert_eq!(text.parse::<MacAddr>().unwrap().to_string(), text);
        }
        for text in ["pci/0000:08:00.0/65535", "pci/0000:08:00.1/98304"] {
            assert_eq!(text.parse::<PortHandle>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn invalid_text_is_refused_with_an_example() {
        for text in ["", "08:00.0", "0000:08:00", "0000:08:20.0", "0000:08:00.8", "0000:8:00.0", "0000:+8:00.0"] {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert!(error.to_string().contains("0000:08:00.0"), "{error}");
        }
        for text in
            ["", "00:11:22:33:44", "00:11:22:33:44:55:66", "01:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "0:1:2:3:4:5"]
        {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
        for text in ["", "pci/0000:08:00.0", "pci/0000:08:00.0/", "pci/0000:08:00.0/x", "0000:08:00.0/1"] {
            assert!(text.parse::<PortHandle>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_vport_has_one_number_and_a_number_one_vport() {
        for vport in [Vport::Uplink, Vport::HostPf, Vport::Vf(0), Vport::Vf(127), Vport::Sf(0), Vport::Sf(88)] {
            assert_eq!(Vport::from_number(vport.number(), true), Some(vport));
        }
        let numbers = [0, 1, 0x7fff, 0x8000, 0xffef];
        assert!(numbers.map(|n| Vport::from_number(n, true)).is_sorted(), "vports are in the order of their numbers");
        assert!(numbers.iter().all(|n| Vport::from_number(*n, true) > Some(Vport::Uplink)));
        assert_eq!(Vport::from_number(0, false), None, "a plain NIC's manager has no representor");
        assert_eq!(PortIndex::new(PfIndex(1), Vport::Uplink).0, 131_071);
        assert_eq!(PortIndex::new(PfIndex(0), Vport::Sf(0)).0, 32_768);
    }
}
