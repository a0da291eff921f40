//! Numbers of the protocol, from the kernel's user space interface: `linux/devlink.h` and `linux/genetlink.h`.
#![allow(missing_docs)]

/// The family `nlctrl` (GENL_ID_CTRL).
pub const CONTROL: u16 = 0x10;

pub mod control {
    pub const NEWFAMILY: u8 = 1;
    pub const GETFAMILY: u8 = 3;
    pub const FAMILY_ID: u16 = 1;
    pub const FAMILY_NAME: u16 = 2;
    pub const VERSION: u16 = 3;
    pub const HEADER_SIZE: u16 = 4;
    pub const MAX_ATTRIBUTE: u16 = 5;
    pub const OPERATIONS: u16 = 6;
    pub const GROUPS: u16 = 7;
    pub const OPERATION_ID: u16 = 1;
    pub const OPERATION_FLAGS: u16 = 2;
    pub const GROUP_NAME: u16 = 1;
    pub const GROUP_ID: u16 = 2;
    /// The operation requires CAP_NET_ADMIN.
    pub const ADMIN: u32 = 1;
    pub const CAN_DO: u32 = 2;
    pub const CAN_DUMP: u32 = 4;
    pub const HAS_POLICY: u32 = 8;
}

pub mod command {
    pub const GET: u8 = 1;
    pub const NEW: u8 = 3;
    pub const DEL: u8 = 4;
    pub const PORT_GET: u8 = 5;
    pub const PORT_SET: u8 = 6;
    pub const PORT_NEW: u8 = 7;
    pub const PORT_DEL: u8 = 8;
    pub const SB_GET: u8 = 11;
    pub const SB_POOL_GET: u8 = 15;
    pub const SB_PORT_POOL_GET: u8 = 19;
    pub const SB_TC_POOL_BIND_GET: u8 = 23;
    pub const ESWITCH_GET: u8 = 29;
    pub const ESWITCH_SET: u8 = 30;
    pub const DPIPE_TABLE_GET: u8 = 31;
    pub const RESOURCE_SET: u8 = 35;
    pub const RESOURCE_DUMP: u8 = 36;
    pub const RELOAD: u8 = 37;
    pub const PARAM_GET: u8 = 38;
    pub const PARAM_SET: u8 = 39;
    pub const PARAM_NEW: u8 = 40;
    pub const PARAM_DEL: u8 = 41;
    pub const REGION_GET: u8 = 42;
    pub const REGION_NEW: u8 = 44;
    pub const REGION_DEL: u8 = 45;
    pub const REGION_READ: u8 = 46;
    pub const PORT_PARAM_GET: u8 = 47;
    pub const INFO_GET: u8 = 51;
    pub const HEALTH_GET: u8 = 52;
    pub const HEALTH_SET: u8 = 53;
    pub const HEALTH_RECOVER: u8 = 54;
    pub const HEALTH_DIAGNOSE: u8 = 55;
    pub const HEALTH_DUMP_GET: u8 = 56;
    pub const HEALTH_DUMP_CLEAR: u8 = 57;
    pub const FLASH_UPDATE: u8 = 58;
    pub const TRAP_GET: u8 = 61;
    pub const TRAP_SET: u8 = 62;
    pub const TRAP_NEW: u8 = 63;
    pub const TRAP_DEL: u8 = 64;
    pub const TRAP_GROUP_GET: u8 = 65;
    pub const TRAP_GROUP_SET: u8 = 66;
    pub const TRAP_GROUP_NEW: u8 = 67;
    pub const TRAP_GROUP_DEL: u8 = 68;
    pub const TRAP_POLICER_GET: u8 = 69;
    pub const HEALTH_TEST: u8 = 73;
    pub const RATE_GET: u8 = 74;
    pub const RATE_SET: u8 = 75;
    pub const RATE_NEW: u8 = 76;
    pub const RATE_DEL: u8 = 77;
    pub const LINECARD_GET: u8 = 78;
    pub const SELFTESTS_GET: u8 = 82;
    pub const MAX: u8 = 83;

    /// Commands that the kernel marks GENL_ADMIN_PERM and that are not supported here: splitting and unsplitting ports;
    /// shared buffers; the counters of dpipe; parameters of ports; policers of traps; line cards; self-tests.
    pub const UNSUPPORTED_ADMIN: [u8; 12] = [9, 10, 16, 20, 24, 27, 28, 34, 48, 70, 79, 83];
}

pub mod attribute {
    pub const BUS_NAME: u16 = 1;
    pub const DEV_NAME: u16 = 2;
    pub const PORT_INDEX: u16 = 3;
    pub const PORT_TYPE: u16 = 4;
    pub const PORT_NETDEV_IFINDEX: u16 = 6;
    pub const PORT_NETDEV_NAME: u16 = 7;
    pub const ESWITCH_MODE: u16 = 25;
    pub const ESWITCH_INLINE_MODE: u16 = 26;
    pub const DPIPE_TABLES: u16 = 27;
    pub const ESWITCH_ENCAP_MODE: u16 = 62;
    pub const RESOURCE_LIST: u16 = 63;
    pub const RESOURCE: u16 = 64;
    pub const RESOURCE_NAME: u16 = 65;
    pub const RESOURCE_ID: u16 = 66;
    pub const RESOURCE_SIZE: u16 = 67;
    pub const RESOURCE_SIZE_MIN: u16 = 70;
    pub const RESOURCE_SIZE_MAX: u16 = 71;
    pub const RESOURCE_SIZE_GRAN: u16 = 72;
    pub const RESOURCE_UNIT: u16 = 73;
    pub const PORT_FLAVOUR: u16 = 77;
    pub const PORT_NUMBER: u16 = 78;
    pub const PARAM: u16 = 80;
    pub const PARAM_NAME: u16 = 81;
    pub const PARAM_GENERIC: u16 = 82;
    pub const PARAM_TYPE: u16 = 83;
    pub const PARAM_VALUES_LIST: u16 = 84;
    pub const PARAM_VALUE: u16 = 85;
    pub const PARAM_VALUE_DATA: u16 = 86;
    pub const PARAM_VALUE_CMODE: u16 = 87;
    pub const REGION_NAME: u16 = 88;
    pub const INFO_DRIVER_NAME: u16 = 98;
    pub const INFO_VERSION_FIXED: u16 = 100;
    pub const INFO_VERSION_RUNNING: u16 = 101;
    pub const INFO_VERSION_STORED: u16 = 102;
    pub const INFO_VERSION_NAME: u16 = 103;
    pub const INFO_VERSION_VALUE: u16 = 104;
    pub const FMSG: u16 = 106;
    pub const FMSG_OBJ_NEST_START: u16 = 107;
    pub const FMSG_PAIR_NEST_START: u16 = 108;
    pub const FMSG_ARR_NEST_START: u16 = 109;
    pub const FMSG_NEST_END: u16 = 110;
    pub const FMSG_OBJ_NAME: u16 = 111;
    pub const FMSG_OBJ_VALUE_TYPE: u16 = 112;
    pub const FMSG_OBJ_VALUE_DATA: u16 = 113;
    pub const HEALTH_REPORTER: u16 = 114;
    pub const HEALTH_REPORTER_NAME: u16 = 115;
    pub const HEALTH_REPORTER_STATE: u16 = 116;
    pub const HEALTH_REPORTER_ERR_COUNT: u16 = 117;
    pub const HEALTH_REPORTER_RECOVER_COUNT: u16 = 118;
    pub const HEALTH_REPORTER_GRACEFUL_PERIOD: u16 = 120;
    pub const HEALTH_REPORTER_AUTO_RECOVER: u16 = 121;
    pub const FLASH_UPDATE_FILE_NAME: u16 = 122;
    pub const FLASH_UPDATE_COMPONENT: u16 = 123;
    pub const PORT_PCI_PF_NUMBER: u16 = 127;
    pub const PORT_PCI_VF_NUMBER: u16 = 128;
    pub const STATS: u16 = 129;
    pub const TRAP_NAME: u16 = 130;
    pub const TRAP_ACTION: u16 = 131;
    pub const TRAP_TYPE: u16 = 132;
    pub const TRAP_GENERIC: u16 = 133;
    pub const TRAP_METADATA: u16 = 134;
    pub const TRAP_GROUP_NAME: u16 = 135;
    pub const RELOAD_FAILED: u16 = 136;
    pub const NETNS_FD: u16 = 138;
    pub const NETNS_PID: u16 = 139;
    pub const NETNS_ID: u16 = 140;
    pub const HEALTH_REPORTER_AUTO_DUMP: u16 = 141;
    pub const TRAP_POLICER_ID: u16 = 142;
    pub const PORT_FUNCTION: u16 = 145;
    pub const PORT_SPLITTABLE: u16 = 148;
    pub const PORT_EXTERNAL: u16 = 149;
    pub const PORT_CONTROLLER_NUMBER: u16 = 150;
    pub const RELOAD_ACTION: u16 = 153;
    pub const RELOAD_ACTIONS_PERFORMED: u16 = 154;
    pub const RELOAD_LIMITS: u16 = 155;
    pub const FLASH_UPDATE_OVERWRITE_MASK: u16 = 152;
    pub const PORT_PCI_SF_NUMBER: u16 = 164;
    pub const RATE_TYPE: u16 = 165;
    pub const RATE_TX_SHARE: u16 = 166;
    pub const RATE_TX_MAX: u16 = 167;
    pub const RATE_NODE_NAME: u16 = 168;
    pub const RATE_PARENT_NODE_NAME: u16 = 169;
    pub const RATE_TX_PRIORITY: u16 = 177;
    pub const RATE_TX_WEIGHT: u16 = 178;
}

/// Attributes that the kernel does not have. A lab takes them off.
pub mod own {
    /// In a notification: the network namespace (SO_NETNS_COOKIE) whose programs it is for, if that is another one than the
    /// card's.
    pub const NETNS: u16 = 0x3fff;
}

/// The attributes of a port function.
pub mod function {
    pub const HW_ADDR: u16 = 1;
    pub const STATE: u16 = 2;
    pub const OPSTATE: u16 = 3;
    pub const CAPS: u16 = 4;
    /// The bit of RoCE in [`CAPS`].
    pub const CAP_ROCE: u32 = 1;
}

pub mod flavour {
    pub const PHYSICAL: u16 = 0;
    pub const PCI_PF: u16 = 3;
    pub const PCI_VF: u16 = 4;
    pub const VIRTUAL: u16 = 5;
    pub const PCI_SF: u16 = 7;
}

/// Types of values, as netlink numbers them (`NLA_*`).
pub mod nla {
    pub const U8: u8 = 1;
    pub const U32: u8 = 3;
    pub const U64: u8 = 4;
    pub const STRING: u8 = 5;
    pub const FLAG: u8 = 6;
}
