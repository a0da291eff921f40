//! The inside of a message, as it is written.

use std::io;

use crate::aligned;
use crate::attribute::{ATTRIBUTE_HEADER, Attribute, NLA_F_NESTED, VALUE_MAX};
use crate::errno::Errno;
use crate::genl::GenlHeader;
use crate::header::Header;

/// Bytes for which there is room when a message begins: most are shorter.
const MESSAGE: usize = 256;

/// Why a message cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// An attribute or a nest is longer than 65,535 bytes with its header.
    #[error("attribute {kind} has {length} bytes; a netlink attribute has at most 65,531")]
    AttributeTooLong {
        /// Its type, without flags.
        kind: u16,
        /// Bytes of its value.
        length: usize,
    },
    /// The message is longer than 4,294,967,295 bytes.
    #[error("the message has {length} bytes, more than its length field can hold")]
    MessageTooLong {
        /// Its bytes, with the header.
        length: usize,
    },
    /// A text has a zero byte in it, at which it would end for its reader.
    #[error("the text of attribute {kind} has a zero byte in it")]
    ZeroInText {
        /// The attribute's type.
        kind: u16,
    },
}

impl From<BuildError> for Errno {
    /// EMSGSIZE, as the kernel answers when a message has no room for its contents; EINVAL for text with a zero byte.
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::AttributeTooLong { .. } | BuildError::MessageTooLong { .. } => Self::MSGSIZE,
            BuildError::ZeroInText { .. } => Self::INVAL,
        }
    }
}

impl From<BuildError> for io::Error {
    fn from(error: BuildError) -> Self {
        Errno::from(error).into()
    }
}

/// Writes the inside of one message: a family's own header, then attributes. One that was made by itself holds what
/// [`append`](Self::append) adds to a message later.
///
/// After the first error nothing more is written, and whatever builds the message returns that error. So calls can be
/// chained without a look at each.
#[derive(Debug, Default)]
pub struct Builder {
    bytes: Vec<u8>,
    error: Option<BuildError>,
}

impl Builder {
    /// Adds the header of generic netlink.
    pub fn genl(&mut self, command: u8, version: u8) -> &mut Self {
        self.raw(&GenlHeader { command, version }.to_bytes())
    }

    /// Adds bytes that are no attribute, and padding: a family's own header.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        if self.error.is_none() {
            self.bytes.extend_from_slice(bytes);
            self.pad();
        }
        self
    }

    /// Adds the header of another message as it is: that of a request, in the acknowledgement of it.
    pub fn header(&mut self, header: &Header) -> &mut Self {
        self.raw(&header.to_bytes())
    }

    /// Adds an attribute. `kind` is its type with the flags that it is to have.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        if self.open(kind, value.len()) {
            self.bytes.extend_from_slice(value);
            self.pad();
        }
        self
    }

    /// Adds an attribute that was received, with its type, flags and value unchanged.
    pub fn copy(&mut self, attribute: &Attribute<'_>) -> &mut Self {
        self.put(attribute.raw_kind(), attribute.value)
    }

    /// Adds all that another one wrote; its error, if it has one, is this one's.
    pub fn append(&mut self, other: &Self) -> &mut Self {
        match other.error {
            Some(error) => self.fail(error),
            None => self.raw(&other.bytes),
        }
    }

    /// Adds NLA_FLAG: an attribute without a value.
    pub fn flag(&mut self, kind: u16) -> &mut Self {
        self.put(kind, &[])
    }

    /// Adds a number of one byte.
    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.put(kind, &[value])
    }

    /// Adds a number of two bytes.
    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a number of four bytes.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a number of eight bytes.
    pub fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds NLA_NUL_STRING: text and the zero byte that ends it.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        if value.as_bytes().contains(&0) {
            return self.fail(BuildError::ZeroInText { kind });
        }
        if self.open(kind, value.len() + 1) {
            self.bytes.extend_from_slice(value.as_bytes());
            self.bytes.push(0);
            self.pad();
        }
        self
    }

    /// Adds NLA_BITFIELD32.
    pub fn bitfield(&mut self, kind: u16, value: u32, selector: u32) -> &mut Self {
        let [a, b, c, d] = value.to_ne_bytes();
        let [e, f, g, h] = selector.to_ne_bytes();
        self.put(kind, &[a, b, c, d, e, f, g, h])
    }

    /// Adds a nest: an attribute of what `fill` writes, with [`NLA_F_NESTED`], as `nla_nest_start` does.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.nest_noflag(kind | NLA_F_NESTED, fill)
    }

    /// Adds a nest whose type has the flags of `kind` and no others. Families that are older than the flag have it so:
    /// `nla_nest_start_noflag`.
    pub fn nest_noflag(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        match self.try_nest(kind, fill) {
            Ok(()) => self,
            Err(error) => self.fail(error),
        }
    }

    /// As [`nest_noflag`](Self::nest_noflag), but a nest that is too long is left out and is no error. Returns whether
    /// it is there.
    pub fn nest_noflag_if_it_fits(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> bool {
        self.try_nest(kind, fill).is_ok() && self.error.is_none()
    }

    fn try_nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> Result<(), BuildError> {
        let begun = self.bytes.len();
        if !self.open(kind, 0) {
            return Ok(());
        }
        fill(self);
        let length = self.bytes.len() - begun;
        match u16::try_from(length) {
            Ok(length) => {
                self.bytes[begun..begun + 2].copy_from_slice(&length.to_ne_bytes());
                Ok(())
            }
            Err(_) => {
                self.bytes.truncate(begun);
                Err(too_long(kind, length - ATTRIBUTE_HEADER))
            }
        }
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes the header of an attribute. Returns whether its value can follow.
    fn open(&mut self, kind: u16, length: usize) -> bool {
        if length > VALUE_MAX {
            self.fail(too_long(kind, length));
        }
        if self.error.is_some() {
            return false;
        }
        self.bytes.extend_from_slice(&((ATTRIBUTE_HEADER + length) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        true
    }

    fn pad(&mut self) {
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }

    fn fail(&mut self, error: BuildError) -> &mut Self {
        self.error.get_or_insert(error);
        self
    }

    /// Begins a message at the end of the datagram; returns where.
    pub(crate) fn begin(&mut self, header: &Header) -> usize {
        let begun = self.bytes.len();
        self.error = None;
        // One allocation for most messages, in place of one for each time that their length doubles.
        self.bytes.reserve(MESSAGE);
        self.raw(&header.to_bytes());
        begun
    }

    /// Ends the message that begins at `begun`, or removes it.
    pub(crate) fn end(&mut self, begun: usize) -> Result<(), BuildError> {
        let ended = match self.error.take() {
            Some(error) => Err(error),
            None => message_length(self.bytes.len() - begun),
        };
        match ended {
            Ok(length) => self.bytes[begun..begun + 4].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.bytes.truncate(begun),
        }
        ended.map(drop)
    }

    /// Takes the error, if there is one.
    pub(crate) fn take_error(&mut self) -> Option<BuildError> {
        self.error.take()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

fn too_long(kind: u16, length: usize) -> BuildError {
    BuildError::AttributeTooLong { kind: kind & !NLA_F_NESTED, length }
}

fn message_length(length: usize) -> Result<u32, BuildError> {
    u32::try_from(length).map_err(|_| BuildError::MessageTooLong { length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_longer_than_its_length_field_can_hold_is_an_error() {
        assert_eq!(message_length(u32::MAX as usize), Ok(u32::MAX));
        let length = u32::MAX as usize + 1;
        assert_eq!(message_length(length), Err(BuildError::MessageTooLong { length }));
    }
}
