//! Numbers of generic netlink's family `team`, under the kernel's names: `linux/if_team.h`.
#![allow(missing_docs, reason = "the kernel's headers describe them")]

pub const TEAM_CMD_OPTIONS_GET: u8 = 2;
pub const TEAM_ATTR_TEAM_IFINDEX: u16 = 1;
pub const TEAM_ATTR_LIST_OPTION: u16 = 2;
/// In one option of [`TEAM_ATTR_LIST_OPTION`], as the following.
pub const TEAM_ATTR_OPTION_NAME: u16 = 1;
pub const TEAM_ATTR_OPTION_DATA: u16 = 4;
