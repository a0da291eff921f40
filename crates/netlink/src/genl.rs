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
