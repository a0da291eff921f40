//! Attributes: `struct nlattr`.

use crate::aligned;
use crate::bytes::{u16_at, u32_at};

/// Bytes of an attribute's header.
pub const ATTRIBUTE_HEADER: usize = 4;
/// Bytes of a value at most: a length field has 16 bits and counts the header.
pub const VALUE_MAX: usize = u16::MAX as usize - ATTRIBUTE_HEADER;
/// The flag of a type whose value is attributes.
pub const NLA_F_NESTED: u16 = 0x8000;
/// The flag of a type whose value is in network byte order.
pub const NLA_F_NET_BYTEORDER: u16 = 0x4000;
/// The bits of a type that are flags: the complement of NLA_TYPE_MASK.
const TYPE_FLAGS: u16 = NLA_F_NESTED | NLA_F_NET_BYTEORDER;

/// One attribute, as it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type, without flags.
    pub kind: u16,
    /// The flags of its type: [`NLA_F_NESTED`] and [`NLA_F_NET_BYTEORDER`].
    pub flags: u16,
    /// Its value, without padding.
    pub value: &'a [u8],
    /// Where its header begins, in bytes from the start of what was given to [`attributes`].
    pub offset: usize,
}

/// The rest of a row of bytes, which is no attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{leftover} bytes leftover after parsing attributes")]
pub struct Malformed {
    /// How many bytes are left over.
    pub leftover: usize,
}

/// A row of attributes. See [`attributes`].
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The attributes in a row of bytes. What is no whole attribute is the last item, an error; so `flatten` reads those
/// before it, as the kernel does where it is not strict.
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes { bytes, at: 0 }
}

/// The attribute of a type in a row of them. Of several the last counts, as with the kernel's `nla_parse`: code that
/// reads a request before the kernel does must read the same one.
pub fn find(bytes: &[u8], kind: u16) -> Option<Attribute<'_>> {
    attributes(bytes).flatten().filter(|attribute| attribute.kind == kind).last()
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let read = || {
            let length = usize::from(u16_at(rest, 0)?);
            let kind = u16_at(rest, 2)?;
            Some((kind, rest.get(ATTRIBUTE_HEADER..length)?))
        };
        let Some((kind, value)) = read() else {
            self.at = self.bytes.len();
            return Some(Err(Malformed { leftover: rest.len() }));
        };
        let attribute = Attribute { kind: kind & !TYPE_FLAGS, flags: kind & TYPE_FLAGS, value, offset: self.at };
        self.at += aligned(ATTRIBUTE_HEADER + value.len());
        Some(Ok(attribute))
    }
}

impl<'a> Attribute<'a> {
    /// Its type with its flags, as it was received.
    pub fn raw_kind(&self) -> u16 {
        self.kind | self.flags
    }

    /// Where its value begins, in bytes from the start of what was given to [`attributes`].
    pub fn value_offset(&self) -> usize {
        self.offset + ATTRIBUTE_HEADER
    }

    /// The attributes in its value.
    pub fn nested(&self) -> Attributes<'a> {
        attributes(self.value)
    }

    /// A number of exactly one byte.
    pub fn u8(&self) -> Option<u8> {
        <[u8; 1]>::try_from(self.value).ok().map(|[byte]| byte)
    }

    /// A number of exactly two bytes.
    pub fn u16(&self) -> Option<u16> {
        self.value.try_into().ok().map(u16::from_ne_bytes)
    }

    /// A number of exactly four bytes.
    pub fn u32(&self) -> Option<u32> {
        self.value.try_into().ok().map(u32::from_ne_bytes)
    }

    /// A number of exactly eight bytes.
    pub fn u64(&self) -> Option<u64> {
        self.value.try_into().ok().map(u64::from_ne_bytes)
    }

    /// The number of two bytes that its value begins with. The kernel reads it so where it only asks for the least
    /// length, as rtnetlink does.
    pub fn leading_u16(&self) -> Option<u16> {
        u16_at(self.value, 0)
    }

    /// The number of four bytes that its value begins with, as [`leading_u16`](Self::leading_u16).
    pub fn leading_u32(&self) -> Option<u32> {
        u32_at(self.value, 0)
    }

    /// Text as NLA_NUL_STRING has it: a zero byte ends it, and no other is in it.
    pub fn text(&self) -> Option<&'a str> {
        std::ffi::CStr::from_bytes_with_nul(self.value).ok()?.to_str().ok()
    }

    /// Text as NLA_STRING has it: up to the first zero byte, or all of it if there is none.
    pub fn string(&self) -> Option<&'a str> {
        std::str::from_utf8(self.string_bytes()).ok()
    }

    /// The bytes of [`string`](Self::string), which a netdev's name has even if it is no UTF-8.
    pub fn string_bytes(&self) -> &'a [u8] {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        &self.value[..end]
    }

    /// The value and the selector of NLA_BITFIELD32.
    pub fn bitfield(&self) -> Option<(u32, u32)> {
        let (value, selector) = self.value.split_first_chunk::<4>()?;
        Some((u32::from_ne_bytes(*value), u32::from_ne_bytes(selector.try_into().ok()?)))
    }
}
