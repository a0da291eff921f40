//! What the maps hold, byte by byte: the other half of `bpf/layout.h`.

use flow::{Change, Edit, Field, Header, Key, Meter, MeterId, Rate};

/// The bytes of a map's key or value, written from the beginning. Numbers are in the machine's byte order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Bytes {
    pub(crate) fn u8(mut self, value: u8) -> Bytes {
        self.0.push(value);
        self
    }

    pub(crate) fn u16(self, value: u16) -> Bytes {
        self.bytes(&value.to_ne_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Bytes {
        self.bytes(&value.to_ne_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Bytes {
        self.bytes(&value.to_ne_bytes())
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Bytes {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Zeros up to `size` bytes.
    pub(crate) fn up_to(mut self, size: usize) -> Bytes {
        self.0.resize(size, 0);
        self
    }
}

/// A map's value, read at given places.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'b>(pub(crate) &'b [u8]);

impl View<'_> {
    fn array<const SIZE: usize>(&self, at: usize) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        if let Some(from) = self.0.get(at..at + SIZE) {
            bytes.copy_from_slice(from);
        }
        bytes
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_ne_bytes(self.array(at))
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.array(at))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.array(at))
    }
}

pub(crate) const SHORT_KEY: usize = 80;
/// How much of a key the cache has.
pub(crate) const CACHED_KEY: usize = 128;
pub(crate) const LONG_KEY: usize = 400;
pub(crate) const SHORT_LOOKUP: usize = 8 + SHORT_KEY;
pub(crate) const LONG_LOOKUP: usize = 8 + LONG_KEY;
pub(crate) const MAX_GROUPS_OF_CHAIN: usize = 256;
pub(crate) const MAX_ACTIONS: usize = 64;
pub(crate) const MAX_OUTPUTS: usize = 64;
pub(crate) const CACHE_SLOTS: usize = 8192;
pub(crate) const RULE: usize = 24;
pub(crate) const GROUP: usize = 40 + LONG_KEY;
pub(crate) const CHAIN: usize = 8 + 4 * MAX_GROUPS_OF_CHAIN;
pub(crate) const ACTION: usize = 56;
pub(crate) const MAX_ENCAP: usize = 344;
pub(crate) const ENCAP: usize = 8 + MAX_ENCAP;
pub(crate) const TUPLE: usize = 40;
pub(crate) const CONNECTION: usize = 96;
pub(crate) const CONNECTION_TABLE: usize = 32;
pub(crate) const MAX_CT_OF_RULE: usize = 4;
pub(crate) const COUNTER: usize = 24;
pub(crate) const METER: usize = 64;
/// The mark of frames in the card's network namespace that have waited in the class of their port
/// ([`PortConfig::lane`](crate::PortConfig::lane)).
pub const MARK_SHAPED: u32 = 0xe5e5_0001;
/// The mark with which the program removes connections that are over (`MARK_SWEEP`).
pub(crate) const MARK_SWEEP: u32 = 0xe5e5_0002;
/// The mark with which it removes all connections (`MARK_CLEAR`).
pub(crate) const MARK_CLEAR: u32 = 0xe5e5_0003;

/// The wires of a port.
pub(crate) const MAX_WIRES: usize = 4;
pub(crate) const PORT: usize = 56;
pub(crate) const CONTROL: usize = 56;
pub(crate) const OUTPUT: usize = OUTPUT_FRAME + 4096;
/// Where the frame begins in an output.
pub(crate) const OUTPUT_FRAME: usize = 24;
/// Where the frame begins in a sample.
pub(crate) const SAMPLE_FRAME: usize = 24;

/// `group.flags`
pub(crate) mod group_flag {
    pub(crate) const LONG: u16 = 1;
    pub(crate) const SRC_RANGE: u16 = 2;
    pub(crate) const DST_RANGE: u16 = 4;
    pub(crate) const ANY_PROTOCOL: u16 = 8;
}

/// CHAIN_CACHED
pub(crate) const CHAIN_CACHED: u32 = 1;

/// What a rule says last (`enum terminal`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminal {
    End,
    Drop,
    Trap,
    Redirect(u32),
    Goto(u32),
}

impl Terminal {
    fn parts(self) -> (u8, u32) {
        match self {
            Terminal::End => (0, 0),
            Terminal::Drop => (1, 0),
            Terminal::Trap => (2, 0),
            Terminal::Redirect(port) => (3, port),
            Terminal::Goto(chain) => (4, chain),
        }
    }
}

/// Where a list of actions goes on.
pub(crate) mod next {
    pub(crate) const TERMINAL: u32 = 0;
    pub(crate) const END: u32 = 0xffff_ffff;
    pub(crate) const DROP: u32 = 0xffff_fffe;
}

/// A rule as it stands in `rules`.
pub(crate) fn rule(id: u64, index: u32, first: u32, walk: bool, terminal: Terminal) -> [u8; RULE] {
    let (kind, arg) = terminal.parts();
    let mut bytes = [0; RULE];
    bytes[..8].copy_from_slice(&id.to_ne_bytes());
    bytes[8..12].copy_from_slice(&index.to_ne_bytes());
    bytes[12..16].copy_from_slice(&first.to_ne_bytes());
    (bytes[16], bytes[17]) = (kind, walk.into());
    bytes[20..].copy_from_slice(&arg.to_ne_bytes());
    bytes
}

/// The kinds of `enum action_kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ActionKind {
    Mirror = 1,
    VlanPush,
    VlanPop,
    VlanModify,
    Edit,
    Add,
    Csum,
    DecTtl,
    Police,
    Sample,
    Drop,
    Trap,
    Redirect,
    Goto,
    TunnelSet,
    TunnelUnset,
    Ct,
    CtClear,
}

/// An action as it stands in `actions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ActionEntry {
    pub(crate) kind: ActionKind,
    pub(crate) header: u8,
    pub(crate) field: u8,
    pub(crate) size: u8,
    pub(crate) next: u32,
    pub(crate) arg: u32,
    pub(crate) alternative: u32,
    pub(crate) place: u16,
    pub(crate) region: u16,
    pub(crate) value: [u8; 16],
    pub(crate) mask: [u8; 16],
}

impl ActionEntry {
    pub(crate) fn new(kind: ActionKind, arg: u32) -> ActionEntry {
        ActionEntry {
            kind,
            header: 0,
            field: 0,
            size: 0,
            next: next::TERMINAL,
            arg,
            alternative: next::TERMINAL,
            place: 0,
            region: 0,
            value: [0; 16],
            mask: [0; 16],
        }
    }

    /// A rewrite. A field of one byte is part of a region of two, at an even place, as checksums are of words.
    pub(crate) fn edit(edit: &Edit) -> ActionEntry {
        let (header, place, size) = edit.field.place();
        let start = place & !1;
        let shift = place - start;
        let mut entry = match &edit.change {
            Change::Set { .. } => ActionEntry::new(ActionKind::Edit, 0),
            Change::Add(value) => ActionEntry::new(ActionKind::Add, *value),
        };
        entry.header = match header {
            Header::Eth => 0,
            Header::Ip4 => 1,
            Header::Ip6 => 2,
            Header::Tcp => 3,
            Header::Udp => 4,
        };
        entry.field = edit.field as u8;
        entry.size = size as u8;
        entry.place = start as u16;
        entry.region = size.next_multiple_of(2) as u16;
        match &edit.change {
            Change::Set { value, mask } => {
                entry.value[shift..shift + size].copy_from_slice(value);
                entry.mask[shift..shift + size].copy_from_slice(mask);
            }
            Change::Add(_) => entry.mask[shift] = 0xff,
        }
        entry
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let bytes = Bytes::default().u8(self.kind as u8).u8(self.header).u8(self.field).u8(self.size);
        let bytes = bytes.u32(self.next).u32(self.arg).u32(self.alternative).u16(self.place).u16(self.region).u32(0);
        bytes.bytes(&self.value).bytes(&self.mask).0
    }
}

/// A meter as it stands in `meters`, full.
pub(crate) fn meter(id: MeterId, meter: Meter, capacity: u64, conformed: u64, exceeded: u64) -> Vec<u8> {
    let (kind, rate) = match meter.rate {
        Rate::Bytes(rate) => (0, rate),
        Rate::Packets(rate) => (1, rate),
        Rate::Mtu(mtu) => (2, mtu.into()),
    };
    let bytes = Bytes::default().u32(0).u32(kind).u64(rate).u64(capacity).u64(capacity).u64(0);
    bytes.u64(conformed).u64(exceeded).u32(id.0).u32(0).0
}

/// Where a field stands in `struct key`.
const fn place(field: Field) -> usize {
    use Field as F;
    match field {
        F::EthDst => 0,
        F::EthSrc => 6,
        F::EthType => 12,
        F::VlanEthType => 14,
        F::VlanTpid => 16,
        F::VlanId | F::VlanPrio => 18,
        F::CvlanTpid => 20,
        F::CvlanId | F::CvlanPrio => 22,
        F::CvlanEthType => 24,
        F::IpProto => 26,
        F::IpTos | F::ArpOp => 27,
        F::IpTtl => 28,
        F::IpFlags => 29,
        F::AddrType => 30,
        F::CtState => 31,
        F::InPort => 32,
        F::SrcPort | F::IcmpType => 36,
        F::IcmpCode => 37,
        F::DstPort => 38,
        F::TcpFlags => 40,
        F::CtZone => 42,
        F::CtMark => 44,
        F::Ip4Src | F::Ip6Src | F::ArpSip => 48,
        F::Ip4Dst | F::ArpTip => 52,
        F::ArpSha => 56,
        F::ArpTha => 62,
        F::Ip6Dst => 64,
        F::EncTos => 84,
        F::EncTtl => 85,
        F::EncAddrType => 86,
        F::EncOptsLen => 87,
        F::EncKeyId => 88,
        F::EncSrcPort => 92,
        F::EncDstPort => 94,
        F::EncIp4Src | F::EncIp6Src => 96,
        F::EncIp4Dst => 100,
        F::EncIp6Dst => 112,
        F::CtLabel => 128,
        F::EncOpts => 144,
    }
}

/// The bytes of some fields of a key, or of a mask, in the order of `struct key`.
///
/// Addresses of IPv4, IPv6 and ARP share a place, as do ports and what ICMP has, and the type of service and ARP's operation. [`flow`] lets a rule ask for one of
/// them only together with the protocol that says which it is.
pub(crate) fn key(key: &Key, fields: &[Field]) -> [u8; LONG_KEY] {
    let mut bytes = [0; LONG_KEY];
    for field in fields {
        let mut put = |own: &[u8]| {
            let place = place(*field);
            bytes[place..place + own.len()].iter_mut().zip(own).for_each(|(byte, own)| *byte |= own);
        };
        match field {
            Field::VlanId | Field::CvlanId => put(&(key.number(*field) as u16 & 0x0fff).to_be_bytes()),
            Field::VlanPrio | Field::CvlanPrio => put(&((key.number(*field) as u16 & 7) << 13).to_be_bytes()),
            // In the machine's byte order.
            Field::InPort | Field::CtMark | Field::EncKeyId => put(&key.number(*field).to_ne_bytes()),
            _ => put(key.get(*field)),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::EditField;

    #[test]
    fn a_key_has_its_fields_where_the_program_has_them() {
        let mut from = Key::default();
        from.set(Field::EthType, 0x0800u16);
        from.set(Field::VlanId, 5u16);
        from.set(Field::VlanPrio, 3u8);
        from.set(Field::InPort, 7u32);
        from.set(Field::DstPort, 80u16);
        from.set(Field::Ip4Dst, [10, 0, 0, 2]);
        from.set(Field::CtMark, 9u32);
        let bytes = key(&from, Field::ALL);
        assert_eq!(bytes.len(), LONG_KEY);
        assert_eq!((&bytes[12..14], &bytes[18..20]), (&[8, 0][..], &[0x60, 5][..]));
        assert_eq!((View(&bytes).u32(32), View(&bytes).u32(44)), (7, 9));
        assert_eq!((&bytes[38..40], &bytes[52..56]), (&[0, 80][..], &[10, 0, 0, 2][..]));
    }

    #[test]
    fn a_field_of_one_byte_is_part_of_a_word() {
        let flow::Action::Edit(edit) = Edit::set(EditField::Ip4Tos, 8u8) else { unreachable!() };
        let entry = ActionEntry::edit(&edit);
        assert_eq!((entry.place, entry.region, entry.value[..2].to_vec()), (0, 2, vec![0, 8]));
        assert_eq!(entry.bytes().len(), ACTION);
    }
}
