//! Numbers of traffic control, under the kernel's names: `linux/rtnetlink.h`, `linux/pkt_sched.h`, `linux/pkt_cls.h`,
//! `linux/tc_act/tc_mirred.h`.
#![allow(missing_docs, reason = "the kernel's headers describe them")]

pub const RTM_NEWQDISC: u16 = 36;
pub const RTM_NEWTFILTER: u16 = 44;
pub const RTM_DELTFILTER: u16 = 45;

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
