//! Netlink messages, as bytes: taken apart without trust, put together with right lengths.
//!
//! A card's messages come from a program, from the kernel or from a card's server. None of them is taken at
//! its word: what is not whole ends the reading, as it does in the kernel.

/// Length of a message's header.
pub(crate) const HEADER: usize = 16;
/// What a datagram has at most unless one message is longer: as much as the kernel puts into the first part
/// of a dump. Programs with a buffer of a page, as libmnl and glibc have, rely on it.
pub(crate) const DATAGRAM: usize = 3776;

pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_MULTI: u16 = 2;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_CAPPED: u16 = 0x100;
pub(crate) const NLM_F_ACK_TLVS: u16 = 0x200;
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
/// The first type that is a family's own.
pub(crate) const NLMSG_MIN_TYPE: u16 = 16;
pub(crate) const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE: u16 = 0x3fff;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Overwrites a few bytes, if they are there.
pub(crate) fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + new.len()) {
        place.copy_from_slice(new);
    }
}

/// One message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    /// All of it, header and all, without padding at its end.
    pub bytes: &'a [u8],
    pub kind: u16,
    pub flags: u16,
    pub seq: u32,
    pub pid: u32,
}

impl<'a> Message<'a> {
    /// What follows the header.
    pub fn body(&self) -> &'a [u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// Whether everything of a kind is asked for.
    pub fn is_dump(&self) -> bool {
        self.flags & NLM_F_DUMP == NLM_F_DUMP
    }

    /// Whether the kernel would look at it: a request, of a family.
    pub fn is_request(&self) -> bool {
        self.flags & NLM_F_REQUEST != 0 && self.kind >= NLMSG_MIN_TYPE
    }
}

/// The messages of a datagram. What is not whole ends it.
pub(crate) struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let len = u32_at(self.0, 0)? as usize;
        let bytes = self.0.get(..len)?;
        let message = Message {
            bytes,
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            seq: u32_at(bytes, 8)?,
            pid: u32_at(bytes, 12)?,
        };
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

/// One attribute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attribute<'a> {
    /// Its type without flags.
    pub kind: u16,
    /// Type and flags as they were.
    pub raw: u16,
    pub payload: &'a [u8],
    /// Where its payload begins in what was given to [`Attributes::of`].
    pub at: usize,
}

impl<'a> Attribute<'a> {
    /// Its text, up to the zero that ends it.
    pub fn text(&self) -> Option<&'a str> {
        let end = self.payload.iter().position(|b| *b == 0).unwrap_or(self.payload.len());
        std::str::from_utf8(&self.payload[..end]).ok()
    }

    pub fn u32(&self) -> Option<u32> {
        u32_at(self.payload, 0)
    }
}

/// Attributes in a row. What is not whole ends it.
pub(crate) struct Attributes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Attributes<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The first of a type.
    pub fn find(bytes: &'a [u8], kind: u16) -> Option<Attribute<'a>> {
        Self::of(bytes).find(|a| a.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.at..)?;
        let len = usize::from(u16_at(rest, 0)?);
        let raw = u16_at(rest, 2)?;
        let payload = rest.get(4..len)?;
        let at = self.at + 4;
        self.at += len.next_multiple_of(4);
        Some(Attribute { kind: raw & NLA_TYPE, raw, payload, at })
    }
}

/// A message that is being put together.
pub(crate) struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    pub fn new(kind: u16, flags: u16, seq: u32, pid: u32) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(seq.to_ne_bytes());
        bytes.extend(pid.to_ne_bytes());
        Self { bytes }
    }

    /// One with the header of another.
    pub fn like(message: &Message<'_>) -> Self {
        Self::new(message.kind, message.flags, message.seq, message.pid)
    }

    /// Bytes that are no attribute: a family's own header.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.extend(bytes);
        self
    }

    fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// An attribute, its type with flags. One that is too long for its length field is left out.
    pub fn attribute(&mut self, kind: u16, payload: &[u8]) {
        if let Ok(len) = u16::try_from(4 + payload.len()) {
            self.bytes.extend(len.to_ne_bytes());
            self.bytes.extend(kind.to_ne_bytes());
            self.extend(payload);
        }
    }

    /// A text, with the zero that ends it.
    pub fn text(&mut self, kind: u16, text: &str) {
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        self.attribute(kind, &payload);
    }

    /// An attribute of attributes, which says so.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.nest(kind | NLA_F_NESTED, fill);
    }

    /// An attribute of attributes; older ones do not say so. What does not fit its length field is cut off.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.bytes.extend(0u16.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        fill(self);
        match u16::try_from(self.bytes.len() - at) {
            Ok(len) => put(&mut self.bytes, at, &len.to_ne_bytes()),
            Err(_) => self.bytes.truncate(at),
        }
    }

    /// The message.
    pub fn done(mut self) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        put(&mut self.bytes, 0, &len.to_ne_bytes());
        self.bytes
    }
}

/// How a program wants to be told of errors.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ErrorStyle {
    /// `NETLINK_EXT_ACK`: with attributes.
    pub extended: bool,
    /// `NETLINK_CAP_ACK`: with no more of the request than its header.
    pub capped: bool,
}

/// An acknowledgement (`errno` 0) or a refusal of a request. `attributes` come after it, whole, if the
/// program takes them.
pub(crate) fn verdict(request: &Message<'_>, pid: u32, errno: i32, attributes: &[u8], style: ErrorStyle) -> Vec<u8> {
    let capped = errno == 0 || style.capped;
    let extended = style.extended && !attributes.is_empty();
    let flags = if capped { NLM_F_CAPPED } else { 0 } | if extended { NLM_F_ACK_TLVS } else { 0 };
    let quoted = if capped { request.bytes.get(..HEADER).unwrap_or_default() } else { request.bytes };
    let mut builder = Builder::new(NLMSG_ERROR, flags, request.seq, pid).raw(&(-errno).to_ne_bytes()).raw(quoted);
    if extended {
        builder = builder.raw(attributes);
    }
    builder.done()
}

/// The attribute that says why.
pub(crate) fn reason(text: &str) -> Vec<u8> {
    let mut builder = Builder { bytes: Vec::new() };
    if !text.is_empty() {
        builder.text(NLMSGERR_ATTR_MSG, text);
    }
    builder.bytes
}

/// What an error message says: the number, positive, and its attributes.
pub(crate) fn errno_of<'a>(message: &Message<'a>) -> (i32, &'a [u8]) {
    let body = message.body();
    let errno = u32_at(body, 0).map_or(libc::EIO, |n| (n as i32).saturating_neg());
    let quoted = if message.flags & NLM_F_CAPPED != 0 || errno == 0 {
        HEADER
    } else {
        u32_at(body, 4).map_or(HEADER, |len| (len as usize).max(HEADER).next_multiple_of(4))
    };
    let attributes = if message.flags & NLM_F_ACK_TLVS != 0 { body.get(4 + quoted..) } else { None };
    (errno, attributes.unwrap_or_default())
}

/// The end of a dump.
pub(crate) fn done(request: &Message<'_>, pid: u32) -> Vec<u8> {
    Builder::new(NLMSG_DONE, NLM_F_MULTI, request.seq, pid).raw(&0u32.to_ne_bytes()).done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_together_comes_apart() {
        let mut builder = Builder::new(20, NLM_F_REQUEST, 7, 8).raw(&[1, 2, 3, 4]);
        builder.text(1, "pci");
        builder.nested(5, |nest| nest.attribute(6, &[9]));
        let bytes = builder.done();
        let message = Messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.seq, message.pid), (20, 7, 8));
        let attributes: Vec<_> = Attributes::of(&message.body()[4..]).collect();
        assert_eq!((attributes[0].kind, attributes[0].text()), (1, Some("pci")));
        assert_eq!((attributes[1].kind, attributes[1].raw), (5, 0x8005));
        assert_eq!(Attributes::find(attributes[1].payload, 6).unwrap().payload, [9]);
        for len in 0..bytes.len() {
            assert_eq!(Messages(&bytes[..len]).count(), 0, "{len}");
        }
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        assert_eq!(Messages(&[0; 64]).count(), 0);
        assert_eq!(Messages(&[15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(Messages(&[0xff; 64]).count(), 0);
        assert_eq!(Attributes::of(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(Attributes::of(&[200, 0, 1, 0, 1]).count(), 0);
    }

    #[test]
    fn a_refusal_says_why_to_who_can_hear_it() {
        let request = Builder::new(20, NLM_F_REQUEST, 7, 0).raw(&[1, 2, 3, 4]).done();
        let request = Messages(&request).next().unwrap();
        for (extended, capped) in [(false, false), (false, true), (true, false), (true, true)] {
            let bytes = verdict(&request, 5, libc::EBUSY, &reason("no"), ErrorStyle { extended, capped });
            let message = Messages(&bytes).next().unwrap();
            let (errno, attributes) = errno_of(&message);
            assert_eq!((errno, message.pid, message.seq), (libc::EBUSY, 5, 7));
            let said = Attributes::find(attributes, NLMSGERR_ATTR_MSG).and_then(|a| a.text());
            assert_eq!(said, extended.then_some("no"));
        }
    }
}
