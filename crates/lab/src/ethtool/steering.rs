//! How a netdev distributes what it receives: the hash, the table of channels and the rules (`ethtool -x`, `-n`).
//!
//! Facts are those of Linux 6.12: `en_fs_ethtool.c`, `en/rss.c` and `en/rqt.c` of mlx5, and `net/ethtool/ioctl.c`. A
//! structure is as `include/uapi/linux/ethtool.h` has it, as bytes. Nothing is distributed by it: what a netdev receives is
//! received by the queues of the kernel's netdev.

use std::collections::BTreeMap;
use std::fs;

use netlink::{Errno, u32_at};

use super::Refused;

/// MLX5E_INDIR_MIN_RQT_SIZE and MLX5E_UNIFORM_SPREAD_RQT_FACTOR (`mlx5e_rqt_size`).
const TABLE_MIN: u32 = 256;
const SPREAD: u32 = 2;
/// Bytes of the key of the hash (`mlx5e_rss_params_hash::toeplitz_hash_key`).
pub(crate) const KEY: usize = 40;

/// The key of the example in the specification of receive side scaling (NDIS, "Verifying the RSS Hash Calculation").
const EXAMPLE_KEY: [u8; KEY] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b,
    0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac,
    0x01, 0xfa,
];

/// ETH_RSS_HASH_TOP and ETH_RSS_HASH_XOR.
const TOEPLITZ: u8 = 1;
const XOR: u8 = 2;

/// MAX_NUM_OF_ETHTOOL_RULES.
const RULES: u32 = 1 << 10;

/// FLOW_EXT, FLOW_MAC_EXT and FLOW_RSS.
const FLOW_EXT: u32 = 0x8000_0000;
const FLOW_MAC_EXT: u32 = 0x4000_0000;
const FLOW_RSS: u32 = 0x2000_0000;
/// RX_CLS_FLOW_DISC.
const DISCARD: u64 = u64::MAX;
/// ENOTSUPP, which is no number of the C library's.
const NOTSUPP: i32 = 524;

/// Offsets in `struct ethtool_rx_flow_spec`, and its length.
const HEADER: usize = 4;
const HEADER_EXT: usize = 56;
const MASK: usize = 76;
const MASK_EXT: usize = 128;
const RING: usize = 152;
const LOCATION: usize = 160;
pub(crate) const FLOW_SPEC: usize = 168;

/// The receive side of one netdev, as far as it differs from the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Steering {
    table: Option<Vec<u32>>,
    key: Option<Vec<u8>>,
    function: Option<u8>,
    /// The fields of the hash by the type of the flow.
    fields: BTreeMap<u32, u64>,
    /// `struct ethtool_rx_flow_spec` by location.
    rules: BTreeMap<u32, Vec<u8>>,
}

impl Steering {
    /// The table of channels (`mlx5e_ethtool_get_rxfh_indir_size`).
    pub fn table(&self, channels: u32) -> Vec<u32> {
        let size = table_size(channels) as usize;
        match &self.table {
            Some(table) if table.len() == size => table.clone(),
            _ => (0..size as u32).map(|at| at % channels.max(1)).collect(),
        }
    }

    /// Whether there may be so many channels: the table, if it was set, and the rules lead to none beyond
    /// (`ethtool_check_max_channel` in `net/ethtool/common.c`).
    ///
    /// # Errors
    /// EINVAL, and the kernel's words.
    pub fn allows(&self, channels: u32) -> Result<(), Refused> {
        let refused = |what| {
            let why = format!("requested channel counts are too low for existing {what} settings");
            Err(Refused(Errno::INVAL, why.into()))
        };
        let rings = self.rules.values().map(|rule| u64_at(rule, RING)).filter(|ring| *ring != DISCARD);
        if rings.max().is_some_and(|ring| ring >= channels.into()) {
            return refused("ntuple filter");
        }
        if self.table.iter().flatten().max().is_some_and(|channel| *channel >= channels) {
            return refused("indirection table");
        }
        Ok(())
    }

    /// The key: that of the machine, unless another one was set (`netdev_rss_key_fill`). A machine without hardware that
    /// hashes has none yet; then it is [`EXAMPLE_KEY`].
    pub fn key(&self) -> Vec<u8> {
        self.key.clone().unwrap_or_else(|| {
            let text = fs::read_to_string("/proc/sys/net/core/netdev_rss_key").unwrap_or_default();
            let bytes = text.trim().split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok());
            let mut key: Vec<u8> = bytes.take(KEY).collect();
            key.resize(KEY, 0);
            if key == [0; KEY] { EXAMPLE_KEY.to_vec() } else { key }
        })
    }

    /// The function of the hash (ETH_RSS_HASH_*).
    pub fn function(&self) -> u8 {
        self.function.unwrap_or(TOEPLITZ)
    }

    /// `ethtool_set_rxfh`, then `mlx5e_rss_set_rxfh`. `table`: `None` leaves it as it is, an empty one resets it.
    ///
    /// # Errors
    /// EINVAL: a size is not the driver's, a channel is not there, or the function is unknown.
    pub fn set_hash(
        &mut self,
        channels: u32,
        function: u8,
        table: Option<&[u32]>,
        key: Option<&[u8]>,
    ) -> Result<(), Errno> {
        let fits = |table: &[u32]| {
            table.is_empty() || (table.len() == table_size(channels) as usize && table.iter().all(|at| *at < channels))
        };
        if !table.is_none_or(fits) || key.is_some_and(|key| key.len() != KEY) || ![0, TOEPLITZ, XOR].contains(&function)
        {
            return Err(Errno::INVAL);
        }
        if function != 0 {
            self.function = Some(function);
        }
        if let Some(table) = table {
            self.table = (!table.is_empty()).then(|| table.to_vec());
        }
        if let Some(key) = key {
            self.key = Some(key.to_vec());
        }
        Ok(())
    }

    /// The fields of the hash for a type of flow (RXH_*; `mlx5e_get_rss_hash_opt`).
    ///
    /// # Errors
    /// EINVAL: such flows are not told apart.
    pub fn fields(&self, flow: u32) -> Result<u64, Errno> {
        const IP: u64 = 0x30;
        const IP_AND_PORTS: u64 = 0xf0;
        let start = match flow & !FLOW_RSS {
            1 | 2 | 5 | 6 => IP_AND_PORTS,
            // AH_V4_FLOW, ESP_V4_FLOW, AH_V6_FLOW, ESP_V6_FLOW, IPV4_FLOW and IPV6_FLOW.
            9..=12 | 0x10 | 0x11 => IP,
            _ => return Err(Errno::INVAL),
        };
        Ok(self.fields.get(&flow).copied().unwrap_or(start))
    }

    /// `mlx5e_set_rss_hash_opt`.
    ///
    /// # Errors
    /// EINVAL: such flows are not told apart. EOPNOTSUPP: the fields of this type of flow cannot be chosen, or the hash has
    /// not such a field.
    pub fn set_fields(&mut self, flow: u32, fields: u64) -> Result<(), Errno> {
        self.fields(flow)?;
        if ![1, 2, 5, 6].contains(&flow) || fields & !0xf0 != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        self.fields.insert(flow, fields);
        Ok(())
    }

    /// How many rules there are.
    pub fn count(&self) -> u32 {
        self.rules.len() as u32
    }

    /// A rule, as `struct ethtool_rx_flow_spec` (`mlx5e_ethtool_get_flow`).
    ///
    /// # Errors
    /// EINVAL: there is no such location. ENOENT: there is no rule.
    pub fn rule(&self, location: u32) -> Result<&[u8], Errno> {
        if location >= RULES {
            return Err(Errno::INVAL);
        }
        self.rules.get(&location).map(Vec::as_slice).ok_or(Errno::NOENT)
    }

    /// How many locations there are, and the locations of `count` rules (`mlx5e_ethtool_get_all_flows`).
    ///
    /// # Errors
    /// EINVAL: there are fewer rules.
    pub fn locations(&self, count: u32) -> Result<(u64, Vec<u32>), Errno> {
        if count > self.count() {
            return Err(Errno::INVAL);
        }
        Ok((RULES.into(), self.rules.keys().copied().take(count as usize).collect()))
    }

    /// Adds a rule, or replaces the one at its location (`mlx5e_ethtool_flow_replace`).
    ///
    /// # Errors
    /// ENOSPC: there is no such location. EINVAL: it sends to a channel that there is not, matches nothing, or matches a
    /// field that cannot be matched. ENOTSUPP (524): there is no such type of flow.
    pub fn insert(&mut self, channels: u32, rule: &[u8]) -> Result<(), Errno> {
        let location = u32_at(rule, LOCATION).filter(|_| rule.len() == FLOW_SPEC).ok_or(Errno::INVAL)?;
        if location >= RULES {
            return Err(Errno::NOSPC);
        }
        let ring = u64_at(rule, RING);
        if ring != DISCARD && ring >= channels.into() {
            return Err(Errno::INVAL);
        }
        if matched(rule)? == 0 {
            return Err(Errno::INVAL);
        }
        self.rules.insert(location, rule.to_vec());
        Ok(())
    }

    /// `mlx5e_ethtool_flow_remove`.
    ///
    /// # Errors
    /// ENOSPC: there is no such location. ENOENT: there is no rule.
    pub fn remove(&mut self, location: u32) -> Result<(), Errno> {
        if location >= RULES {
            return Err(Errno::NOSPC);
        }
        self.rules.remove(&location).map(|_| ()).ok_or(Errno::NOENT)
    }
}

/// `mlx5e_rqt_size`.
fn table_size(channels: u32) -> u32 {
    TABLE_MIN.max((channels * SPREAD).next_power_of_two())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_ne_bytes(*word))
}

/// How many fields a rule matches (`validate_flow`).
fn matched(rule: &[u8]) -> Result<u32, Errno> {
    let flow = u32_at(rule, 0).unwrap_or(0);
    let part = |from: usize, range: std::ops::Range<usize>| &rule[from + range.start..from + range.end];
    let is_set = |range: std::ops::Range<usize>| part(MASK, range).iter().any(|byte| *byte != 0);
    let count =
        |ranges: &[std::ops::Range<usize>]| ranges.iter().filter(|range| is_set((*range).clone())).count() as u32;
    let mut fields = match flow & !(FLOW_EXT | FLOW_MAC_EXT | FLOW_RSS) {
        // ETHER_FLOW.
        0x12 => count(&[0..6, 6..12, 12..14]),
        // TCP_V4_FLOW and UDP_V4_FLOW: no type of service.
        1 | 2 if is_set(12..13) => return Err(Errno::INVAL),
        1 | 2 => 1 + count(&[0..4, 4..8, 8..10, 10..12]),
        // TCP_V6_FLOW and UDP_V6_FLOW.
        5 | 6 if is_set(36..37) => return Err(Errno::INVAL),
        5 | 6 => 1 + count(&[0..16, 16..32, 32..34, 34..36]),
        // IP_USER_FLOW, for which `ip_ver` must be ETH_RX_NFC_IP4.
        0xd if is_set(8..12) || is_set(12..13) || rule[HEADER + 13] != 1 => return Err(Errno::INVAL),
        0xd => 1 + count(&[0..4, 4..8, 14..15]),
        // IPV6_USER_FLOW.
        0xe if is_set(32..36) || is_set(36..37) => return Err(Errno::INVAL),
        0xe => 1 + count(&[0..16, 16..32, 37..38]),
        _ => return Err(Errno::from_raw_os_error(NOTSUPP)),
    };
    if flow & FLOW_EXT != 0 {
        let tci = |from| u16::from_be_bytes([part(from, 10..12)[0], part(from, 10..12)[1]]);
        // `validate_vlan`: the whole number of the VLAN and nothing else.
        if part(MASK_EXT, 8..10) != [0; 2] || tci(MASK_EXT) != 0xfff || tci(HEADER_EXT) >= 4096 {
            return Err(Errno::INVAL);
        }
        fields += 1;
    }
    if flow & FLOW_MAC_EXT != 0 && part(MASK_EXT, 2..8) != [0; 6] {
        fields += 1;
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(flow: u32, ring: u64, location: u32, mask: &[usize]) -> Vec<u8> {
        let mut rule = vec![0; FLOW_SPEC];
        rule[..4].copy_from_slice(&flow.to_ne_bytes());
        rule[RING..RING + 8].copy_from_slice(&ring.to_ne_bytes());
        rule[LOCATION..LOCATION + 4].copy_from_slice(&location.to_ne_bytes());
        mask.iter().for_each(|at| rule[MASK + at] = 0xff);
        rule
    }

    #[test]
    fn rules_are_refused_as_mlx5_refuses_them() {
        let mut steering = Steering::default();
        for (rule, expected) in [
            (rule(1, 0, 5, &[11]), Ok(())),
            (rule(1, u64::MAX, 6, &[]), Ok(())),
            (rule(1, 1, 7, &[11]), Err(Errno::INVAL)),
            (rule(1, 0, 1024, &[11]), Err(Errno::NOSPC)),
            (rule(1, 0, 7, &[12]), Err(Errno::INVAL)),
            (rule(0x12, 0, 7, &[]), Err(Errno::INVAL)),
            (rule(0x12, 0, 7, &[0]), Ok(())),
            (rule(3, 0, 8, &[]), Err(Errno::from_raw_os_error(NOTSUPP))),
            (rule(0xd, 0, 8, &[]), Err(Errno::INVAL)),
            (rule(1 | FLOW_EXT, 0, 8, &[]), Err(Errno::INVAL)),
        ] {
            assert_eq!(steering.insert(1, &rule), expected, "{:?}", u32_at(&rule, 0));
        }
        assert_eq!(steering.locations(3), Ok((1024, vec![5, 6, 7])));
        assert_eq!(steering.locations(4), Err(Errno::INVAL));
        assert_eq!((steering.remove(6), steering.remove(6), steering.count()), (Ok(()), Err(Errno::NOENT), 2));
        assert_eq!(steering.rule(6), Err(Errno::NOENT));
    }

    #[test]
    fn the_hash_has_the_sizes_of_mlx5() {
        let mut steering = Steering::default();
        assert_eq!(steering.table(3)[..5], [0, 1, 2, 0, 1]);
        assert_eq!((steering.table(1).len(), steering.table(200).len(), steering.key().len()), (256, 512, KEY));
        let table = vec![1; 256];
        assert_eq!(steering.set_hash(1, 0, Some(&table), None), Err(Errno::INVAL));
        assert_eq!(steering.set_hash(2, 4, None, None), Err(Errno::INVAL));
        assert_eq!(steering.set_hash(2, 0, None, Some(&[1; 39])), Err(Errno::INVAL));
        assert_eq!(steering.set_hash(2, XOR, Some(&table), Some(&[7; KEY])), Ok(()));
        assert_eq!((steering.table(2), steering.key(), steering.function()), (table, vec![7; KEY], XOR));
        assert_eq!(steering.set_hash(2, 0, Some(&[]), None), Ok(()));
        assert_eq!(steering.table(2)[..2], [0, 1]);
        assert_eq!((steering.fields(1), steering.fields(3)), (Ok(0xf0), Err(Errno::INVAL)));
        assert_eq!((steering.set_fields(1, 0x30), steering.fields(1)), (Ok(()), Ok(0x30)));
        assert_eq!(steering.set_fields(0x10, 0x30), Err(Errno::OPNOTSUPP));
        assert_eq!(steering.set_fields(1, 1), Err(Errno::OPNOTSUPP));
    }
}
