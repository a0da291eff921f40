//! Numbers of tc, under the kernel's names: `linux/pkt_cls.h`, `linux/rtnetlink.h`, `linux/tc_act/*.h`,
//! `linux/gen_stats.h`.
#![allow(missing_docs, reason = "the kernel's headers describe them")]

pub const RTM_NEWQDISC: u16 = 36;
pub const RTM_DELQDISC: u16 = 37;
pub const RTM_NEWTFILTER: u16 = 44;
pub const RTM_DELTFILTER: u16 = 45;
pub const RTM_GETTFILTER: u16 = 46;

/// Bytes of `struct tcmsg`.
pub const TCMSG: usize = 20;

pub const TC_H_CLSACT: u32 = 0xffff_fff1;
pub const TC_H_INGRESS_QDISC: u32 = 0xffff_0000;
pub const TC_H_MIN_INGRESS: u32 = 0xffff_fff2;
pub const TC_H_MIN_EGRESS: u32 = 0xffff_fff3;

pub const ETH_P_ALL: u16 = 3;

pub mod tca {
    pub const KIND: u16 = 1;
    pub const OPTIONS: u16 = 2;
    pub const CHAIN: u16 = 11;
    pub const DUMP_FLAGS: u16 = 15;
    /// In DUMP_FLAGS.
    pub const DUMP_FLAGS_TERSE: u32 = 1;
}

/// TCA_CLS_FLAGS_*.
pub mod cls_flags {
    pub const SKIP_HW: u32 = 1;
    pub const SKIP_SW: u32 = 2;
    pub const IN_HW: u32 = 4;
    pub const NOT_IN_HW: u32 = 8;
    pub const VERBOSE: u32 = 16;
}

/// TC_ACT_*.
pub mod control {
    pub const UNSPEC: i32 = -1;
    pub const OK: i32 = 0;
    pub const SHOT: i32 = 2;
    pub const PIPE: i32 = 3;
    pub const STOLEN: i32 = 4;
    pub const TRAP: i32 = 8;
    pub const JUMP: i32 = 1 << 28;
    pub const GOTO_CHAIN: i32 = 2 << 28;
    pub const EXT_VALUE: i32 = (1 << 28) - 1;
}

/// TCA_ACT_*.
pub mod act {
    pub const KIND: u16 = 1;
    pub const OPTIONS: u16 = 2;
    pub const INDEX: u16 = 3;
    pub const STATS: u16 = 4;
    pub const COOKIE: u16 = 6;
    pub const FLAGS: u16 = 7;
    pub const HW_STATS: u16 = 8;
    pub const USED_HW_STATS: u16 = 9;
    pub const IN_HW_COUNT: u16 = 10;
    /// TCA_ACT_MAX_PRIO: how many actions a filter has at most.
    pub const MAX_PRIO: usize = 32;
    /// TC_COOKIE_MAX_SIZE.
    pub const MAX_COOKIE: usize = 16;
    /// All of TCA_ACT_HW_STATS_*.
    pub const HW_STATS_ANY: u32 = 3;
    pub const HW_STATS_DELAYED: u32 = 2;
}

/// TCA_STATS_*.
pub mod stats {
    pub const BASIC: u16 = 1;
    pub const QUEUE: u16 = 3;
    pub const BASIC_HW: u16 = 7;
    pub const PKT64: u16 = 8;
}

/// TCA_FLOWER_* that are no pair of a key and its mask.
pub mod flower {
    pub const CLASSID: u16 = 1;
    pub const INDEV: u16 = 2;
    pub const ACT: u16 = 3;
    pub const ETH_TYPE: u16 = 8;
    pub const FLAGS: u16 = 22;
    pub const VLAN_ID: u16 = 23;
    pub const VLAN_PRIO: u16 = 24;
    pub const VLAN_ETH_TYPE: u16 = 25;
    pub const KEY_FLAGS: u16 = 47;
    pub const KEY_FLAGS_MASK: u16 = 48;
    pub const CVLAN_ID: u16 = 77;
    pub const CVLAN_PRIO: u16 = 78;
    pub const CVLAN_ETH_TYPE: u16 = 79;
    pub const ENC_OPTS: u16 = 84;
    pub const ENC_OPTS_MASK: u16 = 85;
    pub const IN_HW_COUNT: u16 = 86;
    pub const PORT_SRC_MIN: u16 = 87;
    pub const PORT_SRC_MAX: u16 = 88;
    pub const PORT_DST_MIN: u16 = 89;
    pub const PORT_DST_MAX: u16 = 90;
    pub const CT_STATE: u16 = 91;
    pub const CT_STATE_MASK: u16 = 92;

    /// In ENC_OPTS.
    pub const OPTS_GENEVE: u16 = 1;
    /// In OPTS_GENEVE.
    pub const GENEVE_CLASS: u16 = 1;
    pub const GENEVE_TYPE: u16 = 2;
    pub const GENEVE_DATA: u16 = 3;
}

/// TCA_MATCHALL_*.
pub mod matchall {
    pub const CLASSID: u16 = 1;
    pub const ACT: u16 = 2;
    pub const FLAGS: u16 = 3;
}

/// TCA_CT_ACT_*.
pub mod ct {
    pub const COMMIT: u16 = 1;
    pub const FORCE: u16 = 2;
    pub const CLEAR: u16 = 4;
    pub const NAT: u16 = 8;
    pub const NAT_SRC: u16 = 16;
    pub const NAT_DST: u16 = 32;
}
