//! The nests of devlink's and nlctrl's messages, and whether their type has NLA_F_NESTED.
//!
//! A nest that is older than the flag lacks it in the kernel (`nla_nest_start_noflag`), and there are programs that
//! compare types without masking the flag, so each nest has it exactly where the kernel's has it. All messages of this
//! crate open their nests here.

use netlink::Builder;

use crate::numbers::{attribute as a, control};

/// A nest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nest {
    /// The type of the attribute.
    pub kind: u16,
    /// Whether the type has NLA_F_NESTED: `nla_nest_start` rather than `nla_nest_start_noflag`.
    pub flagged: bool,
    /// The function of the kernel that opens it.
    pub source: &'static str,
}

const fn noflag(kind: u16, source: &'static str) -> Nest {
    Nest { kind, flagged: false, source }
}

const fn flagged(kind: u16, source: &'static str) -> Nest {
    Nest { kind, flagged: true, source }
}

/// The nests of devlink's messages.
pub const DEVLINK_NESTS: [Nest; 14] = [
    noflag(a::PORT_FUNCTION, "net/devlink/port.c: devlink_nl_port_function_attrs_put"),
    noflag(a::PARAM, "net/devlink/param.c: devlink_nl_param_fill"),
    noflag(a::PARAM_VALUES_LIST, "net/devlink/param.c: devlink_nl_param_fill"),
    noflag(a::PARAM_VALUE, "net/devlink/param.c: devlink_nl_param_value_fill_one"),
    noflag(a::INFO_VERSION_FIXED, "net/devlink/dev.c: devlink_info_version_put"),
    noflag(a::INFO_VERSION_RUNNING, "net/devlink/dev.c: devlink_info_version_put"),
    noflag(a::INFO_VERSION_STORED, "net/devlink/dev.c: devlink_info_version_put"),
    noflag(a::HEALTH_REPORTER, "net/devlink/health.c: devlink_nl_health_reporter_fill"),
    flagged(a::TRAP_METADATA, "net/devlink/trap.c: devlink_trap_metadata_put"),
    flagged(a::STATS, "net/devlink/trap.c: devlink_trap_stats_put"),
    noflag(a::RESOURCE_LIST, "net/devlink/resource.c: devlink_resource_fill"),
    noflag(a::RESOURCE, "net/devlink/resource.c: devlink_resource_put"),
    noflag(a::DPIPE_TABLES, "net/devlink/dpipe.c: devlink_dpipe_tables_fill"),
    noflag(a::FMSG, "net/devlink/health.c: devlink_fmsg_prepare_skb"),
];

/// The nests of nlctrl's messages. The entries of their lists are numbered, and lack the flag, too.
pub const CONTROL_NESTS: [Nest; 2] = [
    noflag(control::OPERATIONS, "net/netlink/genetlink.c: ctrl_fill_info"),
    noflag(control::GROUPS, "net/netlink/genetlink.c: ctrl_fill_info"),
];

/// Adds a nest of a devlink message.
///
/// # Panics
/// In debug builds, if the nest is not in [`DEVLINK_NESTS`].
pub(crate) fn nest(to: &mut Builder, kind: u16, fill: impl FnOnce(&mut Builder)) {
    add(to, &DEVLINK_NESTS, kind, fill);
}

/// Adds a nest of a nlctrl message, whose content is a list of nests.
pub(crate) fn control_nest(to: &mut Builder, kind: u16, fill: impl FnOnce(&mut Builder)) {
    add(to, &CONTROL_NESTS, kind, fill);
}

fn add(to: &mut Builder, nests: &[Nest], kind: u16, fill: impl FnOnce(&mut Builder)) {
    let nest = nests.iter().find(|nest| nest.kind == kind);
    debug_assert!(nest.is_some(), "attribute {kind} is not in the table of nests");
    if nest.is_some_and(|nest| nest.flagged) {
        to.nest(kind, fill);
    } else {
        to.nest_noflag(kind, fill);
    }
}
