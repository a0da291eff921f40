//! One codec for every netlink message.
//!
//! Layout, alignment and padding are those of `Documentation/userspace-api/netlink` and `include/net/netlink.h`;
//! numbers are in the byte order of the machine. The crate knows how a message is written, not what it means, and does
//! no I/O. It guarantees:
//!
//! * What can be built can be parsed. An attribute, a nest or a message that is longer than its length field can hold
//!   is an error ([`BuildError`]), never a wrong length, and leaves nothing behind in the [`Datagram`].
//! * No bytes cause a panic or a read past their end. Reading ends where something is not whole, as it does in the
//!   kernel.
//! * Reading copies nothing: messages and attributes borrow from what was received. Building allocates only when the
//!   datagram grows.
//! * An unknown attribute is not changed: [`Builder::copy`] keeps its type, its flags and its value.
//!
//! A [`Datagram`] is a row of messages that is being built, and a [`Builder`] writes the inside of one message.
//! [`messages`] and [`attributes`] read them again. [`Awaited`] follows the answer to a request up to its
//! acknowledgement or to the end of its dump.
//!
//! The numbers of message types and attributes are in a module for each family, under the kernel's names: [`rtnl`],
//! [`tc`], [`ctrl`], [`team`].

#![forbid(unsafe_code)]

mod ack;
mod answer;
mod attribute;
mod builder;
mod bytes;
mod datagram;
mod errno;
mod genl;
mod header;
mod message;
pub mod rtnl;
pub mod tc;
pub mod team;

pub use ack::{AckOptions, ExtAck, Outcome, nlmsgerr_attr};
pub use answer::{Awaited, Part};
pub use attribute::{
    ATTRIBUTE_HEADER, Attribute, Attributes, Malformed, NLA_F_NESTED, NLA_F_NET_BYTEORDER, VALUE_MAX, attributes, find,
};
pub use builder::{BuildError, Builder};
pub use bytes::{overwrite, u16_at, u32_at};
pub use datagram::{Datagram, message, row};
pub use errno::{Errno, errno_from_code, errno_of, strerror, without_number};
pub use genl::{GENL_HEADER, GenlHeader, ctrl};
pub use header::{Flags, HEADER, Header, NLMSG_DONE, NLMSG_ERROR, NLMSG_MIN_TYPE, NLMSG_NOOP, NLMSG_OVERRUN, rewrite};
pub use message::{Message, Messages, messages};

/// The next multiple of NLMSG_ALIGNTO and NLA_ALIGNTO, which are both 4.
const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}
