//! Numbers of traffic control, under the kernel's names: `linux/rtnetlink.h`, `linux/pkt_sched.h`, `linux/pkt_cls.h`,
//! `linux/tc_act/*.h`, `linux/gen_stats.h`.
#![allow(missing_docs, reason = "the kernel's headers describe them")]

pub const RTM_NEWQDISC: u16 = 36;
pub const RTM_NEWTFILTER: u16 = 44;
pub const RTM_DELTFILTER: u16 = 45;
pub const RTM_GETTFILTER: u16 = 46;

/// Bytes of `struct tcmsg`.
pub const TCMSG: usize = 20;
pub const TC_H_INGRESS: u32 = 0xffff_fff1;

pub const TCA_KIND: u16 = 1;
pub const TCA_OPTIONS: u16 = 2;

/// In [`TCA_OPTIONS`] of a `bpf` filter.
pub const TCA_BPF_FD: u16 = 6;
/// In [`TCA_OPTIONS`] of a `u32` filter, as the following.
pub const TCA_U32_SEL: u16 = 5;
pub const TCA_U32_ACT: u16 = 7;
/// In `struct tc_u32_sel`: a match ends the search.
pub const TC_U32_TERMINAL: u8 = 1;

/// In one action of a filter, as the following.
pub const TCA_ACT_KIND: u16 = 1;
pub const TCA_ACT_OPTIONS: u16 = 2;
pub const TC_ACT_STOLEN: u32 = 4;

/// In [`TCA_ACT_OPTIONS`] of a `mirred` action.
pub const TCA_MIRRED_PARMS: u16 = 2;
pub const TCA_EGRESS_REDIR: u32 = 1;

pub const RTM_DELQDISC: u16 = 37;
pub const RTM_NEWTCLASS: u16 = 40;
pub const RTM_DELTCLASS: u16 = 41;
pub const RTM_GETTCLASS: u16 = 42;

pub const TC_H_ROOT: u32 = 0xffff_ffff;
/// The parent of a filter for what a netdev receives, whether it has the qdisc `ingress` or `clsact`.
pub const TC_H_FILTER_INGRESS: u32 = 0xffff_fff2;
/// The parent of a filter for what is sent on a netdev that has the qdisc `clsact`.
pub const TC_H_FILTER_EGRESS: u32 = 0xffff_fff3;

/// In [`TCA_OPTIONS`] of a `u32` filter, as the following.
pub const TCA_U32_CLASSID: u16 = 1;
pub const TCA_U32_INDEV: u16 = 8;

/// In [`TCA_OPTIONS`] of the qdisc `htb` or of a class of it, as the following.
pub const TCA_HTB_PARMS: u16 = 1;
pub const TCA_HTB_INIT: u16 = 2;
pub const TCA_HTB_DIRECT_QLEN: u16 = 5;
pub const TCA_HTB_RATE64: u16 = 6;
pub const TCA_HTB_CEIL64: u16 = 7;
/// Bytes of `struct tc_htb_opt`.
pub const TC_HTB_OPT: usize = 44;
/// In `struct tc_htb_glob`.
pub const TC_HTB_PROTOVER: u32 = 3;
/// In `struct tc_ratespec`.
pub const TC_LINKLAYER_ETHERNET: u8 = 1;

/// In [`TCA_OPTIONS`] of a `bpf` filter, as [`TCA_BPF_FD`].
pub const TCA_BPF_OPS_LEN: u16 = 4;
pub const TCA_BPF_OPS: u16 = 5;
pub const TCA_BPF_FLAGS: u16 = 8;
/// The kernel's identifier of the program, if that is an eBPF program.
pub const TCA_BPF_ID: u16 = 11;
/// In [`TCA_BPF_FLAGS`]: what the program returns is a verdict.
pub const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
/// Verdicts of a `bpf` filter: the next filter decides; the frame goes on; it is dropped and counted.
pub const TC_ACT_UNSPEC: u32 = u32::MAX;
pub const TC_ACT_OK: u32 = 0;
pub const TC_ACT_SHOT: u32 = 2;

pub const RTM_GETQDISC: u16 = 38;
pub const TCA_STATS2: u16 = 7;
/// In [`TCA_STATS2`]: `struct gnet_stats_queue`.
pub const TCA_STATS_QUEUE: u16 = 3;

/// The chain of a filter. Without it, it is 0.
pub const TCA_CHAIN: u16 = 11;

/// Verdicts of actions: the next action decides; the action with this number, or the chain with this number, is next.
pub const TC_ACT_PIPE: u32 = 3;
pub const TC_ACT_GOTO_CHAIN: u32 = 2 << 28;
/// The highest number of a chain.
pub const TC_ACT_EXT_VAL_MASK: u32 = (1 << 28) - 1;
/// How many actions a filter has at most.
pub const TCA_ACT_MAX_PRIO: usize = 32;

/// In [`TCA_OPTIONS`] of a `flower` filter, as the following. Keys that are not named here are numbered where they are used.
pub const TCA_FLOWER_ACT: u16 = 3;
pub const TCA_FLOWER_KEY_ETH_TYPE: u16 = 8;
pub const TCA_FLOWER_KEY_IP_PROTO: u16 = 9;
pub const TCA_FLOWER_KEY_VLAN_ID: u16 = 23;
pub const TCA_FLOWER_KEY_VLAN_PRIO: u16 = 24;
pub const TCA_FLOWER_KEY_VLAN_ETH_TYPE: u16 = 25;
pub const TCA_FLOWER_KEY_FLAGS: u16 = 47;
pub const TCA_FLOWER_KEY_FLAGS_MASK: u16 = 48;
pub const TCA_FLOWER_KEY_CVLAN_ID: u16 = 77;
pub const TCA_FLOWER_KEY_CVLAN_PRIO: u16 = 78;
pub const TCA_FLOWER_KEY_CVLAN_ETH_TYPE: u16 = 79;
pub const TCA_FLOWER_KEY_PORT_SRC_MIN: u16 = 87;
pub const TCA_FLOWER_KEY_PORT_SRC_MAX: u16 = 88;
pub const TCA_FLOWER_KEY_PORT_DST_MIN: u16 = 89;
pub const TCA_FLOWER_KEY_PORT_DST_MAX: u16 = 90;

/// In [`TCA_MIRRED_PARMS`], as [`TCA_EGRESS_REDIR`].
pub const TCA_EGRESS_MIRROR: u32 = 2;
/// In [`TCA_ACT_OPTIONS`] of a `gact` action, as the following.
pub const TCA_GACT_TM: u16 = 1;
pub const TCA_GACT_PARMS: u16 = 2;
/// In [`TCA_ACT_OPTIONS`] of a `vlan` action, as the following.
pub const TCA_VLAN_PARMS: u16 = 2;
pub const TCA_VLAN_PUSH_VLAN_ID: u16 = 3;
pub const TCA_VLAN_PUSH_VLAN_PROTOCOL: u16 = 4;
pub const TCA_VLAN_PUSH_VLAN_PRIORITY: u16 = 6;
pub const TCA_VLAN_ACT_POP: u32 = 1;
pub const TCA_VLAN_ACT_PUSH: u32 = 2;
pub const TCA_VLAN_ACT_MODIFY: u32 = 3;
/// In [`TCA_ACT_OPTIONS`] of a `csum` action.
pub const TCA_CSUM_PARMS: u16 = 1;
/// In [`TCA_ACT_OPTIONS`] of a `pedit` action, as the following.
pub const TCA_PEDIT_PARMS_EX: u16 = 4;
pub const TCA_PEDIT_KEYS_EX: u16 = 5;
pub const TCA_PEDIT_KEY_EX: u16 = 6;
pub const TCA_PEDIT_KEY_EX_HTYPE: u16 = 1;
pub const TCA_PEDIT_KEY_EX_CMD: u16 = 2;
pub const TCA_PEDIT_KEY_EX_CMD_SET: u16 = 0;
pub const TCA_PEDIT_KEY_EX_CMD_ADD: u16 = 1;
/// In [`TCA_ACT_OPTIONS`] of a `police` action, as the following.
pub const TCA_POLICE_TBF: u16 = 1;
pub const TCA_POLICE_RATE: u16 = 2;
pub const TCA_POLICE_RESULT: u16 = 5;
pub const TCA_POLICE_RATE64: u16 = 8;
pub const TCA_POLICE_PKTRATE64: u16 = 10;
pub const TCA_POLICE_PKTBURST64: u16 = 11;
/// Bytes of the table in [`TCA_POLICE_RATE`].
pub const TC_RTAB_SIZE: usize = 1024;

pub const RTM_GETACTION: u16 = 50;
/// Bytes of `struct tcamsg`.
pub const TCAMSG: usize = 4;
/// In a message of actions.
pub const TCA_ACT_TAB: u16 = 1;
pub const TCA_ACT_STATS: u16 = 4;
/// In [`TCA_ACT_STATS`]: `struct gnet_stats_basic`, and the whole number of packets.
pub const TCA_STATS_BASIC: u16 = 1;
pub const TCA_STATS_PKT64: u16 = 8;
