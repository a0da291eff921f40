//! The configuration with which a card is started.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{MacAddr, Mode, PciAddress, PfIndex, Vport};
use crate::text::escaped;

/// The configuration of a card. Every field has a default, so `{}` is valid: one PF at `0000:08:00.0` that can have 8
/// VFs, in legacy mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CardConfig {
    /// PCI address of the first PF, which must be function 0. The other PFs are functions 1 to 3 of the same device.
    #[serde(with = "as_text")]
    pub address: PciAddress,
    /// Tells cards of several machines apart that are at the same address: it is part of every MAC address and of the switch
    /// id. 0 to [`SERIAL_MAX`](Self::SERIAL_MAX).
    #[serde(skip_serializing_if = "is_zero")]
    pub serial: u32,
    /// Number of PFs: 1 to 4.
    pub pfs: u8,
    /// `sriov_totalvfs` of each PF, or on a DPU of the host's PF: 0 to 32,000.
    pub total_vfs: u16,
    /// The number of VFs that each PF has at the start. On a DPU, the number that the host has enabled.
    pub vfs: u16,
    /// `sriov_vf_total_msix`: the interrupt vectors that the VFs of a PF share, and that a program can distribute: 0 to
    /// 65,536. 0: the card cannot do so, and each VF has [`FIXED`](crate::msix::FIXED).
    pub vf_msix: u32,
    /// The largest number of SFs of a PF: 0 to 32,752. A DPU's host has as many ([`external_sfs`](Self::external_sfs)).
    pub max_sfs: u16,
    /// Whether the E-Switch manager is the card's own CPU (ECPF) rather than the host's PF.
    pub dpu: bool,
    /// The mode in which every PF starts.
    pub mode: Mode,
    /// Modules that are loaded at the start besides `mlx5_core`, in order.
    pub modules: Vec<String>,
    /// Whether the firmware makes one RDMA device of the card's two ports (multiport RoCE).
    pub multiport_roce: bool,
    /// Whether the PFs can share one forwarding database. If so, a LAG in switchdev mode shares it.
    pub shared_fdb: bool,
    /// The scheme of systemd by which the netdevs of VFs' representors are named.
    #[serde(skip_serializing_if = "NamingScheme::is_default")]
    pub naming_scheme: NamingScheme,
    /// Whether checksums of what representors and uplinks receive are complete, and segments as long as on the wire, as a
    /// physical card has them. Programs that read packets there (AF_PACKET) need it; the kernel forwards without it, and
    /// four times as fast. A card in memory has no packets.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub complete_checksums: bool,
    /// The largest number of channels of each netdev, which is how many queues it has in each direction: 1 to 128. A PF, a VF
    /// and an SF start with all of them, a representor with one. A card in memory has no queues.
    #[serde(skip_serializing_if = "is_one")]
    pub channels: u32,
    /// The delay before the first retry after a representor or a driver failed to load, in milliseconds: 1 to 60,000.
    /// The delay doubles with each further retry, up to `retry_max_ms`.
    pub retry_ms: u64,
    /// The longest delay before a retry, in milliseconds: at least `retry_ms`.
    pub retry_max_ms: u64,
}

/// A scheme by which systemd names netdevs (`systemd.net-naming-scheme`), as far as it matters for a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamingScheme {
    /// Up to v253: a VF's representor has its port name at the end (`enp8s0f0npf0vf0`).
    #[default]
    V252,
    /// Since v254 it has `r` and the number of the VF (`enp8s0f0r0`), unless it is of another controller.
    V254,
}

impl NamingScheme {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_one(number: &u32) -> bool {
    *number == 1
}

impl Default for CardConfig {
    fn default() -> Self {
        Self {
            address: PciAddress { domain: 0, bus: 8, device: 0, function: 0 },
            serial: 0,
            pfs: 1,
            total_vfs: 8,
            vfs: 0,
            vf_msix: 0,
            max_sfs: 256,
            dpu: false,
            mode: Mode::Legacy,
            modules: Vec::new(),
            multiport_roce: false,
            shared_fdb: true,
            naming_scheme: NamingScheme::default(),
            complete_checksums: false,
            channels: 1,
            retry_ms: 20,
            retry_max_ms: 5_000,
        }
    }
}

/// The number of routing ids of a PCI domain: 256 buses of 256 functions.
const ROUTING_IDS: u32 = 1 << 16;

/// The reason for which a configuration is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number out of its range.
    #[error("`{field}` is {value}; it must be {expected}")]
    Range {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The valid values, in words.
        expected: &'static str,
    },
    /// More VFs at the start than a PF can have.
    #[error("`vfs` is {vfs}, more than `total_vfs`, which is {total}")]
    TooManyVfs {
        /// `vfs`.
        vfs: u16,
        /// `total_vfs`.
        total: u16,
    },
    /// The first PF is not function 0.
    #[error("`address` is {0}; the first PF must be function 0")]
    Function(PciAddress),
    /// The address of the last VF would be beyond the last bus.
    #[error("the last VF would be at routing id {last:#x}, beyond the last bus, ff; choose a smaller `total_vfs`")]
    Buses {
        /// The routing id of the last VF.
        last: u32,
    },
    /// A module that the card does not have.
    #[error("`modules` names `{name}`; the card's modules are {known}", name = escaped(.0), known = crate::module::known())]
    Module(String),
}

impl CardConfig {
    /// The largest number of SFs that a PF of a DPU can add for its host's controller: as many as for its own, if there
    /// are vport numbers for them. 0 if the card is not on a DPU. mlx5 asks the firmware
    /// (`mlx5_esw_sf_max_hpf_functions` in `eswitch_offloads.c`).
    pub fn external_sfs(&self) -> u16 {
        if self.dpu { self.max_sfs.min(crate::ids::MAX_SFS.saturating_sub(self.max_sfs)) } else { 0 }
    }

    /// The places in a PF's table of SFs that SFs of a controller can have. As in mlx5, the range of its vport numbers
    /// says whose an SF is (`struct mlx5_sf_hwc_table` in `sf/hw_table.c`).
    pub(crate) fn sf_places(&self, external: bool) -> std::ops::Range<u16> {
        if external { self.max_sfs..self.max_sfs + self.external_sfs() } else { 0..self.max_sfs }
    }

    /// Whether a vport is that of an SF of a DPU's host. Its function is on the host, and has no device here.
    pub fn is_external_sf(&self, vport: Vport) -> bool {
        matches!(vport, Vport::Sf(place) if self.sf_places(true).contains(&place))
    }

    /// Checks whether the configuration is valid.
    ///
    /// # Errors
    /// The first field whose value is invalid.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let range = |field, value: u64, ok: bool, expected| {
            if ok { Ok(()) } else { Err(ConfigError::Range { field, value, expected }) }
        };
        range("serial", self.serial.into(), self.serial <= Self::SERIAL_MAX, "0 to 8388607")?;
        range("pfs", self.pfs.into(), (1..=4).contains(&self.pfs), "1 to 4")?;
        range("total_vfs", self.total_vfs.into(), self.total_vfs <= 32_000, "0 to 32000")?;
        range("vf_msix", self.vf_msix.into(), self.vf_msix <= 65_536, "0 to 65536")?;
        range("max_sfs", self.max_sfs.into(), self.max_sfs <= crate::ids::MAX_SFS, "0 to 32752")?;
        range("channels", self.channels.into(), (1..=128).contains(&self.channels), "1 to 128")?;
        range("retry_ms", self.retry_ms, (1..=60_000).contains(&self.retry_ms), "1 to 60000")?;
        range("retry_max_ms", self.retry_max_ms, self.retry_max_ms >= self.retry_ms, "at least `retry_ms`")?;
        if self.vfs > self.total_vfs {
            return Err(ConfigError::TooManyVfs { vfs: self.vfs, total: self.total_vfs });
        }
        if self.address.function != 0 {
            return Err(ConfigError::Function(self.address));
        }
        let last = self.first_vf_id() + u32::from(self.pfs) * u32::from(self.total_vfs);
        if !self.dpu && last > ROUTING_IDS {
            return Err(ConfigError::Buses { last: last - 1 });
        }
        if let Some(unknown) = self.modules.iter().find(|m| crate::module::find(m).is_none()) {
            return Err(ConfigError::Module(unknown.clone()));
        }
        Ok(())
    }

    /// The PCI address of a PF.
    pub fn pf_address(&self, pf: PfIndex) -> PciAddress {
        PciAddress { function: self.address.function + pf.0, ..self.address }
    }

    /// The routing id of the card's first VF. As on a ConnectX, the VFs of the first PF follow the PFs, and the VFs of
    /// each further PF follow those of the previous PF.
    fn first_vf_id(&self) -> u32 {
        self.address.routing_id() + u32::from(self.pfs)
    }

    /// `sriov_offset`: the routing id of a PF's VF 0 minus that of the PF. The stride is 1.
    pub fn vf_offset(&self, pf: PfIndex) -> u32 {
        let first = self.first_vf_id() + u32::from(pf.0) * u32::from(self.total_vfs);
        first - self.pf_address(pf).routing_id()
    }

    /// The PCI address of a VF, enabled or not. As SR-IOV counts, function 7 is followed by the next device, and device
    /// 1f by the next bus.
    pub fn vf_address(&self, pf: PfIndex, vf: u16) -> PciAddress {
        let id = self.pf_address(pf).routing_id() + self.vf_offset(pf) + u32::from(vf);
        PciAddress::of_routing_id(self.address.domain, id)
    }

    /// The PF and the number of the VF at a PCI address, enabled or not. `None` on a DPU, whose VFs are functions of
    /// its host and not of this machine.
    pub fn vf_at(&self, address: PciAddress) -> Option<(PfIndex, u16)> {
        if self.dpu || address.domain != self.address.domain {
            return None;
        }
        let nth = address.routing_id().checked_sub(self.first_vf_id())?;
        let pf = nth.checked_div(self.total_vfs.into())?;
        let vf = nth % u32::from(self.total_vfs);
        (pf < self.pfs.into()).then_some((PfIndex(pf as u8), vf as u16))
    }

    /// The largest serial number: it takes the 23 bits of a MAC address that nothing within a card is told apart by.
    pub const SERIAL_MAX: u32 = (1 << 23) - 1;

    /// The MAC address that the driver of a vport's function makes by itself. It is locally administered, unique among the
    /// cards of one address and different serial numbers, and the same at every start. mlx5 makes a random one, which is as good to its users; with this one a
    /// card that is brought up twice is the same twice.
    pub fn mac(&self, pf: PfIndex, vport: Vport) -> MacAddr {
        self.mac_with(0xe5, pf, vport)
    }

    /// The MAC address of a vport, with what its second byte begins as.
    fn mac_with(&self, kind: u8, pf: PfIndex, vport: Vport) -> MacAddr {
        // Eight bits are in place of the bus, five in that of the device, six above those that say which kind of address it is,
        // and four in the second byte.
        let part = |shift: u32, bits: u32| (self.serial >> shift & ((1 << bits) - 1)) as u8;
        let (bus, device) = (self.address.bus ^ part(0, 8), self.address.device ^ part(8, 5));
        let [high, low] = vport.number().to_be_bytes();
        MacAddr([0x02 | part(13, 6) << 2, kind ^ part(19, 4) << 4, bus, device << 3 | pf.0, high, low])
    }

    /// The MAC address of a vport's netdev representor.
    pub fn rep_mac(&self, pf: PfIndex, vport: Vport) -> MacAddr {
        self.mac_with(0xe6, pf, vport)
    }

    /// The delay before retry number `attempt`, counted from 0.
    pub fn retry_delay(&self, attempt: u32) -> Duration {
        let factor = 1u64.checked_shl(attempt).unwrap_or(u64::MAX);
        Duration::from_millis(self.retry_ms.saturating_mul(factor).min(self.retry_max_ms))
    }
}

/// Serialises a value as the text that its `Display` writes and its `FromStr` reads.
pub(crate) mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::{fmt::Display, str::FromStr};

    pub fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vfs_follow_the_pfs_and_continue_on_the_next_bus() {
        let card = |pfs, total_vfs| CardConfig { pfs, total_vfs, ..CardConfig::default() };
        let two = card(2, 8);
        let address = |config: &CardConfig, pf, vf| config.vf_address(PfIndex(pf), vf).to_string();
        assert_eq!([two.vf_offset(PfIndex(0)), two.vf_offset(PfIndex(1))], [2, 9]);
        assert_eq!(address(&two, 0, 0), "0000:08:00.2");
        assert_eq!(address(&two, 0, 7), "0000:08:01.1");
        assert_eq!(address(&two, 1, 0), "0000:08:01.2");
        assert_eq!(address(&card(1, 1000), 0, 255), "0000:09:00.0");
        assert_eq!(address(&card(1, 32_000), 0, 31_999), "0000:85:00.0");
        for config in [two, card(4, 300), card(1, 0)] {
            for pf in (0..config.pfs).map(PfIndex) {
                assert_eq!(config.vf_at(config.pf_address(pf)), None);
                for vf in 0..config.total_vfs {
                    assert_eq!(config.vf_at(config.vf_address(pf, vf)), Some((pf, vf)));
                }
            }
            assert_eq!(config.vf_at(config.vf_address(PfIndex(config.pfs), 0)), None);
        }
    }

    #[test]
    fn cards_of_different_serial_numbers_have_no_address_in_common() {
        let mut seen = std::collections::HashSet::new();
        // Every bit alone, and all of them.
        let serials = (0..23).map(|bit| 1 << bit).chain([0, CardConfig::SERIAL_MAX]);
        for serial in serials {
            let card = CardConfig { serial, pfs: 4, ..CardConfig::default() };
            assert_eq!(card.validate(), Ok(()));
            for pf in (0..card.pfs).map(PfIndex) {
                for vport in [Vport::Uplink, Vport::HostPf, Vport::Vf(0), Vport::Vf(7), Vport::Sf(255)] {
                    for mac in [card.mac(pf, vport), card.rep_mac(pf, vport)] {
                        assert_eq!(mac.0[0] & 3, 2, "{mac} is not locally administered, or of a group");
                        assert!(seen.insert(mac), "{mac} of {serial:#x} twice");
                    }
                }
            }
        }
    }

    #[test]
    fn vfs_beyond_the_last_bus_are_refused() {
        let card = CardConfig { total_vfs: 32_000, pfs: 2, ..CardConfig::default() };
        assert_eq!(card.validate(), Err(ConfigError::Buses { last: 0x801 + 64_000 }));
        assert_eq!(CardConfig { dpu: true, ..card.clone() }.validate(), Ok(()), "the VFs belong to the host");
        assert_eq!(CardConfig { pfs: 1, ..card }.validate(), Ok(()));
    }
}
