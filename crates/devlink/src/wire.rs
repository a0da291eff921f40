//! Netlink messages: put together, and taken apart without trusting a byte of them.
//!
//! What can be built can be parsed. Nothing here panics or reads past what it was given, whatever that is;
//! numbers are in the byte order of the machine, as with the kernel.

/// Bytes of a message's header.
pub const HEADER: usize = 16;
/// Bytes of a generic netlink header.
pub const GENL_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
/// The bits of an attribute's type that say how it is written.
const TYPE_FLAGS: u16 = 0xc000;
const NESTED: u16 = 0x8000;

/// NLMSG_ERROR: an error, or an acknowledgement if that is 0.
pub const ERROR: u16 = 2;
/// NLMSG_DONE: the end of a dump.
pub const DONE: u16 = 3;
/// The first type that is no control message.
pub const MIN_TYPE: u16 = 0x10;

/// NLM_F_REQUEST.
pub const REQUEST: u16 = 1;
/// NLM_F_MULTI.
pub const MULTI: u16 = 2;
/// NLM_F_ACK.
pub const ACK: u16 = 4;
/// NLM_F_DUMP, both bits of it.
pub const DUMP: u16 = 0x300;
/// NLM_F_CAPPED: the request is not repeated behind its header.
pub const CAPPED: u16 = 0x100;
/// NLM_F_ACK_TLVS: an extended acknowledgement follows.
pub const ACK_TLVS: u16 = 0x200;

fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

/// A message's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The length, header included.
    pub length: u32,
    /// What it is: a control message or, from [`MIN_TYPE`], a family.
    pub kind: u16,
    /// [`REQUEST`] and others.
    pub flags: u16,
    /// Chosen by who asks, repeated by who answers.
    pub sequence: u32,
    /// The netlink port it is of.
    pub port: u32,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<HEADER>()?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        Some(Self {
            length: u32::from_ne_bytes([a, b, c, d]),
            kind: u16::from_ne_bytes([e, f]),
            flags: u16::from_ne_bytes([g, h]),
            sequence: u32::from_ne_bytes([i, j, k, l]),
            port: u32::from_ne_bytes([m, n, o, p]),
        })
    }

    fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        bytes[12..].copy_from_slice(&self.port.to_ne_bytes());
        bytes
    }

    /// Whether a dump is asked for.
    pub fn is_dump(&self) -> bool {
        self.flags & DUMP == DUMP
    }
}

/// The header of the first message of a datagram, whether or not all of that is there.
pub fn header(bytes: &[u8]) -> Option<Header> {
    Header::parse(bytes)
}

/// The messages of a datagram, each with what follows its header. It ends where one is cut off or lies
/// about its length, as the kernel does.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let header = Header::parse(bytes)?;
        let length = header.length as usize;
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((header, payload))
    })
}

/// An attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type, without the bits that say how it is written.
    pub kind: u16,
    /// What it holds.
    pub value: &'a [u8],
    /// Where it starts, from the start of what was parsed.
    pub offset: usize,
}

/// Bytes that are no attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// How many bytes are left over.
    pub leftover: usize,
}

/// The attributes in a row of bytes, or where that is none.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<Attribute<'_>, Malformed>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
        let malformed = Some(Err(Malformed { leftover: rest.len() }));
        let Some([a, b, c, d]) = rest.first_chunk::<ATTRIBUTE_HEADER>().copied() else {
            at = bytes.len();
            return malformed;
        };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(value) = rest.get(ATTRIBUTE_HEADER..length) else {
            at = bytes.len();
            return malformed;
        };
        let attribute = Attribute { kind: u16::from_ne_bytes([c, d]) & !TYPE_FLAGS, value, offset: at };
        at += aligned(length);
        Some(Ok(attribute))
    })
}

impl<'a> Attribute<'a> {
    /// A number of one byte.
    pub fn u8(&self) -> Option<u8> {
        <[u8; 1]>::try_from(self.value).ok().map(|[byte]| byte)
    }

    /// A number of two bytes.
    pub fn u16(&self) -> Option<u16> {
        self.value.try_into().ok().map(u16::from_ne_bytes)
    }

    /// A number of four bytes.
    pub fn u32(&self) -> Option<u32> {
        self.value.try_into().ok().map(u32::from_ne_bytes)
    }

    /// A number of eight bytes.
    pub fn u64(&self) -> Option<u64> {
        self.value.try_into().ok().map(u64::from_ne_bytes)
    }

    /// Text that ends in a zero byte and has no other.
    pub fn text(&self) -> Option<&'a str> {
        std::ffi::CStr::from_bytes_with_nul(self.value).ok()?.to_str().ok()
    }

    /// The value and the selector of a bitfield of 32.
    pub fn bitfield(&self) -> Option<(u32, u32)> {
        let (value, selector) = self.value.split_first_chunk::<4>()?;
        Some((u32::from_ne_bytes(*value), u32::from_ne_bytes(selector.try_into().ok()?)))
    }
}

/// Messages that are being put together, one after the other.
#[derive(Debug, Default)]
pub struct Builder {
    bytes: Vec<u8>,
    /// Where the last message begins.
    begun: usize,
}

impl Builder {
    /// Begins a message.
    pub fn begin(&mut self, kind: u16, flags: u16, sequence: u32, port: u32) -> &mut Self {
        self.begun = self.bytes.len();
        self.header(&Header { length: 0, kind, flags, sequence, port })
    }

    /// Adds a header as it is: that of a request, in the answer to it.
    pub fn header(&mut self, header: &Header) -> &mut Self {
        self.bytes.extend(header.bytes());
        self
    }

    /// Adds a generic netlink header.
    pub fn genl(&mut self, command: u8, version: u8) -> &mut Self {
        self.bytes.extend([command, version, 0, 0]);
        self
    }

    /// Adds bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend(bytes);
        self.pad();
        self
    }

    /// Ends the message that was begun last.
    pub fn end(&mut self) {
        let length = (self.bytes.len() - self.begun) as u32;
        self.bytes[self.begun..self.begun + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }

    /// Adds an attribute. One that is too long for its length to be told is cut.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let value = &value[..value.len().min(usize::from(u16::MAX) - ATTRIBUTE_HEADER)];
        self.bytes.extend(((ATTRIBUTE_HEADER + value.len()) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
        self
    }

    /// Adds an attribute that says by being there.
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

    /// Adds text and its zero byte.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend(value.bytes().filter(|byte| *byte != 0));
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Adds a bitfield of 32.
    pub fn bitfield(&mut self, kind: u16, value: u32, selector: u32) -> &mut Self {
        let [a, b, c, d] = value.to_ne_bytes();
        let [e, f, g, h] = selector.to_ne_bytes();
        self.put(kind, &[a, b, c, d, e, f, g, h])
    }

    /// Adds an attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let begun = self.bytes.len();
        self.bytes.extend(0u16.to_ne_bytes());
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        fill(self);
        let length = (self.bytes.len() - begun).min(usize::from(u16::MAX)) as u16;
        self.bytes[begun..begun + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The messages.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets everything, but keeps its room.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.begun = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_built_is_what_is_parsed() {
        let mut built = Builder::default();
        built.begin(21, REQUEST | ACK, 7, 9).genl(5, 1).text(1, "pci").u16(4, 2).flag(6);
        built.nest(145, |b| {
            b.put(1, &[2, 0xe5, 8, 0, 0, 1]);
        });
        built.end();
        let all: Vec<_> = messages(built.bytes()).collect();
        let [(header, payload)] = all[..] else { panic!("{all:?}") };
        assert_eq!((header.kind, header.sequence, header.port), (21, 7, 9));
        let found: Vec<_> = attributes(&payload[GENL_HEADER..]).map(Result::unwrap).collect();
        assert_eq!(found.iter().map(|a| a.kind).collect::<Vec<_>>(), [1, 4, 6, 145]);
        assert_eq!(found[0].text(), Some("pci"));
        assert_eq!(found[1].u16(), Some(2));
        let inner: Vec<_> = attributes(found[3].value).map(Result::unwrap).collect();
        assert_eq!(inner[0].value, [2, 0xe5, 8, 0, 0, 1]);
    }

    #[test]
    fn what_is_cut_off_is_not_read() {
        let mut built = Builder::default();
        built.begin(21, REQUEST, 1, 0).genl(5, 1).text(1, "pci").end();
        for length in 0..built.len() {
            assert_eq!(messages(&built.bytes()[..length]).count(), 0, "{length}");
        }
        assert_eq!(attributes(&[3, 0, 1, 0]).next(), Some(Err(Malformed { leftover: 4 })), "shorter than its header");
        assert_eq!(attributes(&[9, 0, 1, 0]).next(), Some(Err(Malformed { leftover: 4 })), "longer than there is");
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes: Vec<u8>) {
            for (_, payload) in messages(&bytes) {
                for attribute in attributes(payload).flatten() {
                    let _ = (attribute.text(), attribute.u64(), attribute.bitfield());
                    attributes(attribute.value).for_each(drop);
                }
            }
        }
    }
}
