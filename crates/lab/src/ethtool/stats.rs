//! Statistics: `ethtool -S`. Of mlx5e's names there are those whose numbers the kernel counts for the netdev.

use devlink::view::{Netdev, Role};

/// A number that the kernel counts for every netdev, by its column in `/proc/net/dev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    RxBytes = 0,
    RxPackets = 1,
    TxBytes = 8,
    TxPackets = 9,
}

use Counter::{RxBytes, RxPackets, TxBytes, TxPackets};

/// The group `sw` of every netdev (`sw_stats_desc`, `sw_rep_stats_desc`).
const SW: [(&str, Counter); 4] =
    [("rx_packets", RxPackets), ("rx_bytes", RxBytes), ("tx_packets", TxPackets), ("tx_bytes", TxBytes)];

/// The group `pport_802_3` of a port (`pport_802_3_stats_desc`).
const PORT: [(&str, Counter); 4] = [
    ("tx_packets_phy", TxPackets),
    ("rx_packets_phy", RxPackets),
    ("tx_bytes_phy", TxBytes),
    ("rx_bytes_phy", RxBytes),
];

/// The group `vport_rep` of a representor (`vport_rep_stats_desc`).
const VPORT: [(&str, Counter); 4] = [
    ("vport_rx_packets", RxPackets),
    ("vport_rx_bytes", RxBytes),
    ("vport_tx_packets", TxPackets),
    ("vport_tx_bytes", TxBytes),
];

/// The statistics of a netdev, in mlx5e's order.
///
/// Everything that a vport sends and receives passes its representor, so the counters of the representor are those of
/// the vport. In the same way the counters of an uplink in switchdev mode are those of its port; in legacy mode the
/// packets of VFs pass the port too, and nothing counts them.
pub(crate) fn of(netdev: &Netdev) -> Vec<(&'static str, Counter)> {
    let more: &[_] = match netdev.role {
        Role::Representor => &VPORT,
        Role::Pf if netdev.in_switch => &PORT,
        _ => &[],
    };
    SW.iter().chain(more).copied().collect()
}

/// The values of counters of a netdev, from the text of `/proc/net/dev`. `None`: the netdev is not there.
pub(crate) fn values(text: &str, name: &str, counters: &[(&str, Counter)]) -> Option<Vec<u64>> {
    let numbers = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    counters.iter().map(|(_, counter)| numbers.get(*counter as usize).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_is_its_column_of_the_netdev_with_the_whole_name() {
        let text = "Inter-|   Receive\n face |bytes\n  p0_1: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n    p0: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n";
        assert_eq!(values(text, "p0", &SW), Some(vec![2, 1, 4, 3]));
        assert_eq!(values(text, "p", &SW), None);
    }
}
