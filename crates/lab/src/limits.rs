//! Limits of mlx5's netdevs that a veth does not have, and what the kernel answers beyond them.
//!
//! The kernel shows them of a netdev, and refuses what is beyond them before the driver is asked. It does so on three
//! ways: rtnetlink, `/sys`, and `ioctl`.

use devlink::view::{Netdev, Role};

/// The largest MTU: the port's, 10,000 bytes, without the headers of Ethernet and 802.1Q and the checksum
/// (`mlx5e_set_netdev_mtu_boundaries`, `MLX5E_HW2SW_MTU`).
pub(crate) const MAX_MTU: u32 = 9_978;

/// What the kernel says of a larger MTU (`dev_validate_mtu`).
pub(crate) const MTU_TOO_LARGE: &str = "mtu greater than device maximum";

/// TSO_LEGACY_MAX_SIZE, which the kernel gives to a netdev whose driver sets no other.
const TSO_LEGACY_MAX_SIZE: u32 = 65_536;
/// GSO_MAX_SIZE: 8 × 65,535.
const GSO_MAX_SIZE: u32 = 524_280;

/// The largest segment that the driver splits: `mlx5e_build_nic_netdev` sets it, `mlx5e_build_rep_netdev` does not.
pub(crate) fn tso_max_size(netdev: &Netdev) -> u32 {
    if netdev.role == Role::Representor { TSO_LEGACY_MAX_SIZE } else { GSO_MAX_SIZE }
}

/// Whether a netdev stays in its network namespace (`netns_immutable`): an uplink in switchdev mode (`mlx5e_fix_features`)
/// and every representor (`mlx5e_build_rep_netdev`).
pub(crate) fn is_netns_immutable(netdev: &Netdev) -> bool {
    match netdev.role {
        Role::Pf => netdev.in_switch,
        Role::Representor => true,
        Role::Vf | Role::Sf => false,
    }
}
