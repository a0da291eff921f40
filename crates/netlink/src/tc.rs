//! Numbers of traffic control, under the kernel's names: `linux/rtnetlink.h`, `linux/pkt_sched.h`, `linux/pkt_cls.h`,
//! `linux/tc_act/tc_mirred.h`.
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
