//! The header of generic netlink: `struct genlmsghdr`.

/// Bytes of a generic netlink header.
pub const GENL_HEADER: usize = 4;

/// The header of generic netlink, which follows a message's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenlHeader {
    /// The command of the family.
    pub command: u8,
    /// The version of the family.
    pub version: u8,
}

impl GenlHeader {
    /// The header at the start of a message's payload.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let [command, version, _, _] = *payload.first_chunk::<GENL_HEADER>()?;
        Some(Self { command, version })
    }

    /// The header as it is sent.
    pub fn to_bytes(&self) -> [u8; GENL_HEADER] {
        [self.command, self.version, 0, 0]
    }
}

/// Numbers of the family `nlctrl`, which describes the others, under the kernel's names: `linux/genetlink.h`.
#[allow(missing_docs, reason = "the kernel's headers describe them")]
pub mod ctrl {
    /// The type of the family's messages.
    pub const GENL_ID_CTRL: u16 = 16;

    pub const CTRL_CMD_GETFAMILY: u8 = 3;
    pub const CTRL_CMD_GETPOLICY: u8 = 10;

    pub const CTRL_ATTR_FAMILY_ID: u16 = 1;
    pub const CTRL_ATTR_FAMILY_NAME: u16 = 2;
    pub const CTRL_ATTR_MCAST_GROUPS: u16 = 7;

    /// In one group of [`CTRL_ATTR_MCAST_GROUPS`], as the following.
    pub const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
    pub const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
}
