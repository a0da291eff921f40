//! Numbers of rtnetlink's links, routes, neighbours and network namespaces, under the kernel's names:
//! `linux/rtnetlink.h`, `linux/if_link.h`, `linux/if.h`, `linux/neighbour.h`, `linux/net_namespace.h`, `linux/veth.h`.
#![allow(missing_docs, reason = "the kernel's headers describe them")]

pub const RTM_NEWLINK: u16 = 16;
pub const RTM_DELLINK: u16 = 17;
pub const RTM_GETLINK: u16 = 18;
pub const RTM_SETLINK: u16 = 19;
pub const RTM_NEWROUTE: u16 = 24;
pub const RTM_GETROUTE: u16 = 26;
pub const RTM_NEWNEIGH: u16 = 28;
pub const RTM_DELNEIGH: u16 = 29;
pub const RTM_GETNEIGH: u16 = 30;
pub const RTM_NEWNSID: u16 = 88;
pub const RTM_DELNSID: u16 = 89;
pub const RTM_GETNSID: u16 = 90;
pub const RTM_NEWLINKPROP: u16 = 108;

/// The multicast group of changes to links, in the mask of `struct sockaddr_nl`.
pub const RTMGRP_LINK: i32 = 1;
/// Those of changes to neighbours, addresses, routes and rules, in the same mask.
pub const RTMGRP_NEIGH: i32 = 4;
pub const RTMGRP_IPV4_IFADDR: i32 = 0x10;
pub const RTMGRP_IPV4_ROUTE: i32 = 0x40;
pub const RTMGRP_IPV4_RULE: i32 = 0x80;
pub const RTMGRP_IPV6_IFADDR: i32 = 0x100;
pub const RTMGRP_IPV6_ROUTE: i32 = 0x400;
pub const RTNLGRP_LINK: u32 = 1;
pub const RTNLGRP_IPV6_RULE: u32 = 19;
pub const RTNLGRP_NSID: u32 = 28;
pub const RTNLGRP_NEXTHOP: u32 = 32;

/// Bytes of `struct ifinfomsg`.
pub const IFINFOMSG: usize = 16;
pub const IFF_UP: u32 = 1;
pub const IFF_LOWER_UP: u32 = 1 << 16;

pub const IFLA_ADDRESS: u16 = 1;
pub const IFLA_IFNAME: u16 = 3;
pub const IFLA_MTU: u16 = 4;
pub const IFLA_LINK: u16 = 5;
pub const IFLA_MASTER: u16 = 10;
pub const IFLA_TXQLEN: u16 = 13;
pub const IFLA_LINKINFO: u16 = 18;
pub const IFLA_NET_NS_PID: u16 = 19;
pub const IFLA_IFALIAS: u16 = 20;
pub const IFLA_NUM_VF: u16 = 21;
pub const IFLA_VFINFO_LIST: u16 = 22;
pub const IFLA_STATS64: u16 = 23;
pub const IFLA_AF_SPEC: u16 = 26;
pub const IFLA_GROUP: u16 = 27;
pub const IFLA_NET_NS_FD: u16 = 28;
pub const IFLA_EXT_MASK: u16 = 29;
pub const IFLA_NUM_TX_QUEUES: u16 = 31;
pub const IFLA_NUM_RX_QUEUES: u16 = 32;
pub const IFLA_CARRIER_CHANGES: u16 = 35;
pub const IFLA_PHYS_SWITCH_ID: u16 = 36;
pub const IFLA_LINK_NETNSID: u16 = 37;
pub const IFLA_PHYS_PORT_NAME: u16 = 38;
pub const IFLA_GSO_MAX_SIZE: u16 = 41;
pub const IFLA_XDP: u16 = 43;
pub const IFLA_NEW_NETNSID: u16 = 45;
pub const IFLA_TARGET_NETNSID: u16 = 46;
pub const IFLA_CARRIER_DOWN_COUNT: u16 = 48;
pub const IFLA_MAX_MTU: u16 = 51;
pub const IFLA_PROP_LIST: u16 = 52;
pub const IFLA_ALT_IFNAME: u16 = 53;
pub const IFLA_PERM_ADDRESS: u16 = 54;
pub const IFLA_PARENT_DEV_NAME: u16 = 56;
pub const IFLA_PARENT_DEV_BUS_NAME: u16 = 57;
pub const IFLA_TSO_MAX_SIZE: u16 = 59;
pub const IFLA_DEVLINK_PORT: u16 = 62;
pub const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
pub const IFLA_NETNS_IMMUTABLE: u16 = 67;

/// In [`IFLA_EXT_MASK`]: add VFs.
pub const RTEXT_FILTER_VF: u32 = 1;
/// In [`IFLA_EXT_MASK`]: leave out statistics.
pub const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// In [`IFLA_XDP`].
pub const IFLA_XDP_FD: u16 = 1;

/// In [`IFLA_LINKINFO`], as the following.
pub const IFLA_INFO_KIND: u16 = 1;
pub const IFLA_INFO_DATA: u16 = 2;
pub const IFLA_INFO_SLAVE_KIND: u16 = 4;

/// In [`IFLA_INFO_DATA`] of a bond, as the following.
pub const IFLA_BOND_MODE: u16 = 1;
pub const IFLA_BOND_ACTIVE_SLAVE: u16 = 2;
pub const IFLA_BOND_MIIMON: u16 = 3;
/// In [`IFLA_INFO_DATA`] of a bridge.
pub const IFLA_BR_MCAST_SNOOPING: u16 = 23;
/// In [`IFLA_INFO_DATA`] of a veth: `struct ifinfomsg` and the attributes of the other end.
pub const VETH_INFO_PEER: u16 = 1;

/// In [`IFLA_VFINFO_LIST`].
pub const IFLA_VF_INFO: u16 = 1;

/// In [`IFLA_VF_INFO`], as the following.
pub const IFLA_VF_MAC: u16 = 1;
pub const IFLA_VF_VLAN: u16 = 2;
pub const IFLA_VF_TX_RATE: u16 = 3;
pub const IFLA_VF_SPOOFCHK: u16 = 4;
pub const IFLA_VF_LINK_STATE: u16 = 5;
pub const IFLA_VF_RATE: u16 = 6;
pub const IFLA_VF_RSS_QUERY_EN: u16 = 7;
pub const IFLA_VF_STATS: u16 = 8;
pub const IFLA_VF_TRUST: u16 = 9;
pub const IFLA_VF_IB_NODE_GUID: u16 = 10;
pub const IFLA_VF_IB_PORT_GUID: u16 = 11;
pub const IFLA_VF_VLAN_LIST: u16 = 12;
pub const IFLA_VF_BROADCAST: u16 = 13;

/// In [`IFLA_VF_VLAN_LIST`].
pub const IFLA_VF_VLAN_INFO: u16 = 1;

/// In [`IFLA_VF_STATS`], as the following.
pub const IFLA_VF_STATS_RX_PACKETS: u16 = 0;
pub const IFLA_VF_STATS_TX_PACKETS: u16 = 1;
pub const IFLA_VF_STATS_RX_BYTES: u16 = 2;
pub const IFLA_VF_STATS_TX_BYTES: u16 = 3;
pub const IFLA_VF_STATS_BROADCAST: u16 = 4;
pub const IFLA_VF_STATS_MULTICAST: u16 = 5;
pub const IFLA_VF_STATS_RX_DROPPED: u16 = 7;
pub const IFLA_VF_STATS_TX_DROPPED: u16 = 8;

/// Bytes of `struct rtmsg`.
pub const RTMSG: usize = 12;
/// A type of routes, in `struct rtmsg`: to a next hop.
pub const RTN_UNICAST: u8 = 1;
pub const RTA_DST: u16 = 1;
pub const RTA_OIF: u16 = 4;
pub const RTA_GATEWAY: u16 = 5;
pub const RTA_PREFSRC: u16 = 7;
/// `struct rtvia`: a gateway of another family.
pub const RTA_VIA: u16 = 18;

/// Bytes of `struct ndmsg`.
pub const NDMSG: usize = 12;
pub const NDA_DST: u16 = 1;
pub const NDA_LLADDR: u16 = 2;
/// A flag of `struct ndmsg`: the neighbour is to be resolved, as if a packet were sent to it.
pub const NTF_USE: u8 = 1;
/// States of `struct ndmsg`.
pub const NUD_REACHABLE: u16 = 0x02;
pub const NUD_STALE: u16 = 0x04;
pub const NUD_DELAY: u16 = 0x08;
pub const NUD_PROBE: u16 = 0x10;
pub const NUD_FAILED: u16 = 0x20;
pub const NUD_NOARP: u16 = 0x40;
pub const NUD_PERMANENT: u16 = 0x80;

/// Bytes of `struct rtgenmsg`.
pub const RTGENMSG: usize = 4;
pub const NETNSA_NSID: u16 = 1;
pub const NETNSA_FD: u16 = 3;

/// In [`IFLA_XDP`]: how programs are attached, one byte.
pub const IFLA_XDP_ATTACHED: u16 = 2;
/// The driver runs the program.
pub const XDP_ATTACHED_DRV: u8 = 1;
/// There are programs of several modes.
pub const XDP_ATTACHED_MULTI: u8 = 4;
