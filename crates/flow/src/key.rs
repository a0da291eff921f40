//! The key of a frame: every field that a rule can match on, at a fixed place in one row of bytes.
//!
//! This is what `struct fl_flow_key` is in `net/sched/cls_flower.c`. A mask is a key too, and a frame's key is compared
//! with a rule's by bytes. A field that a frame does not have is zero, as there. Numbers are in network byte order.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub type Mac = [u8; 6];

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $size:literal, $word:literal;)*) => {
        /// A field of a frame, or of what the card knows about a frame.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Field { $($(#[$doc])* $name,)* }

        impl Field {
            /// Every field, in the order in which they stand in a key.
            pub const ALL: &[Field] = &[$(Field::$name,)*];

            const SIZES: &[usize] = &[$($size,)*];

            /// The word of iproute2's `tc filter … flower` for this field.
            pub const fn word(self) -> &'static str {
                match self { $(Field::$name => $word,)* }
            }
        }
    };
}

fields! {
    /// The number of the port at which the frame came in.
    InPort: 4, "indev";
    /// The destination MAC address.
    EthDst: 6, "dst_mac";
    /// The source MAC address.
    EthSrc: 6, "src_mac";
    /// The EtherType behind all VLAN tags.
    EthType: 2, "eth_type";
    /// The EtherType of the outer VLAN tag: 0x8100 or 0x88a8.
    VlanTpid: 2, "vlan_tpid";
    /// The VLAN of the outer tag, 12 bits.
    VlanId: 2, "vlan_id";
    /// The priority of the outer tag, 3 bits.
    VlanPrio: 1, "vlan_prio";
    /// The EtherType that follows the outer tag.
    VlanEthType: 2, "vlan_ethtype";
    /// The EtherType of the inner VLAN tag.
    CvlanTpid: 2, "cvlan_tpid";
    /// The VLAN of the inner tag, 12 bits.
    CvlanId: 2, "cvlan_id";
    /// The priority of the inner tag, 3 bits.
    CvlanPrio: 1, "cvlan_prio";
    /// The EtherType that follows the inner tag.
    CvlanEthType: 2, "cvlan_ethtype";
    /// The operation of ARP: 1 for a request, 2 for a reply.
    ArpOp: 1, "arp_op";
    /// The sender's IPv4 address in ARP.
    ArpSip: 4, "arp_sip";
    /// The target's IPv4 address in ARP.
    ArpTip: 4, "arp_tip";
    /// The sender's MAC address in ARP.
    ArpSha: 6, "arp_sha";
    /// The target's MAC address in ARP.
    ArpTha: 6, "arp_tha";
    /// The version of IP whose addresses the key has: 4, 6 or 0. A match on an address sets it.
    AddrType: 1, "addr_type";
    /// The source address of IPv4.
    Ip4Src: 4, "src_ip";
    /// The destination address of IPv4.
    Ip4Dst: 4, "dst_ip";
    /// The source address of IPv6.
    Ip6Src: 16, "src_ip";
    /// The destination address of IPv6.
    Ip6Dst: 16, "dst_ip";
    /// The protocol of IP behind the extension headers.
    IpProto: 1, "ip_proto";
    /// The type of service of IPv4, or the traffic class of IPv6.
    IpTos: 1, "ip_tos";
    /// The time to live of IPv4, or the hop limit of IPv6.
    IpTtl: 1, "ip_ttl";
    /// Fragments: [`Field::FRAG`] and [`Field::FIRST_FRAG`].
    IpFlags: 1, "ip_flags";
    /// The source port of TCP, UDP or SCTP.
    SrcPort: 2, "src_port";
    /// The destination port of TCP, UDP or SCTP.
    DstPort: 2, "dst_port";
    /// The twelve flags of TCP.
    TcpFlags: 2, "tcp_flags";
    /// The type of ICMP or ICMPv6.
    IcmpType: 1, "type";
    /// The code of ICMP or ICMPv6.
    IcmpCode: 1, "code";
    /// The identifier of the tunnel (the VNI, or the key of GRE), 0 without one.
    EncKeyId: 4, "enc_key_id";
    /// The version of IP of the tunnel: 4, 6 or 0. A match on an address sets it.
    EncAddrType: 1, "enc_addr_type";
    /// The tunnel's source address of IPv4.
    EncIp4Src: 4, "enc_src_ip";
    /// The tunnel's destination address of IPv4.
    EncIp4Dst: 4, "enc_dst_ip";
    /// The tunnel's source address of IPv6.
    EncIp6Src: 16, "enc_src_ip";
    /// The tunnel's destination address of IPv6.
    EncIp6Dst: 16, "enc_dst_ip";
    /// The tunnel's source port of UDP.
    EncSrcPort: 2, "enc_src_port";
    /// The tunnel's destination port of UDP.
    EncDstPort: 2, "enc_dst_port";
    /// The tunnel's type of service or traffic class.
    EncTos: 1, "enc_tos";
    /// The tunnel's time to live or hop limit.
    EncTtl: 1, "enc_ttl";
    /// The length of the Geneve options in bytes.
    EncOptsLen: 1, "geneve_opts_len";
    /// The Geneve options as they stand in the frame, followed by zeros.
    EncOpts: 252, "geneve_opts";
    /// The state of the connection: the bits `CT_*` of [`Field`].
    CtState: 1, "ct_state";
    /// The zone in which the frame was tracked.
    CtZone: 2, "ct_zone";
    /// The mark of the connection.
    CtMark: 4, "ct_mark";
    /// The label of the connection.
    CtLabel: 16, "ct_label";
}

impl Field {
    /// In [`Field::IpFlags`]: the frame is a fragment.
    pub const FRAG: u8 = 1;
    /// In [`Field::IpFlags`]: the frame is the first fragment.
    pub const FIRST_FRAG: u8 = 2;

    /// In [`Field::CtState`]: the first frames of a connection, before a reply (TCA_FLOWER_KEY_CT_FLAGS_NEW).
    pub const CT_NEW: u8 = 1;
    /// In [`Field::CtState`]: part of a connection that has had a reply.
    pub const CT_ESTABLISHED: u8 = 2;
    /// In [`Field::CtState`]: related to a connection, as an ICMP error is.
    pub const CT_RELATED: u8 = 4;
    /// In [`Field::CtState`]: tracked.
    pub const CT_TRACKED: u8 = 8;
    /// In [`Field::CtState`]: tracked, but part of no connection.
    pub const CT_INVALID: u8 = 16;
    /// In [`Field::CtState`]: in the direction of the reply.
    pub const CT_REPLY: u8 = 32;

    const OFFSETS: [usize; Field::SIZES.len()] = {
        let mut offsets = [0; Field::SIZES.len()];
        let mut index = 1;
        while index < offsets.len() {
            offsets[index] = offsets[index - 1] + Field::SIZES[index - 1];
            index += 1;
        }
        offsets
    };

    /// The field's length in bytes.
    pub const fn size(self) -> usize {
        Field::SIZES[self as usize]
    }

    /// Where the field begins in a key.
    pub const fn offset(self) -> usize {
        Field::OFFSETS[self as usize]
    }

    const fn range(self) -> std::ops::Range<usize> {
        self.offset()..self.offset() + self.size()
    }
}

/// A value for a field: a number, an address, or bytes in network byte order.
pub trait FieldValue {
    /// The bytes as they stand in a key.
    fn field_bytes(&self) -> Vec<u8>;
}

macro_rules! number_values {
    ($($number:ty),*) => {$(
        impl FieldValue for $number {
            fn field_bytes(&self) -> Vec<u8> {
                self.to_be_bytes().to_vec()
            }
        }
    )*};
}
number_values!(u8, u16, u32, u128);

impl<const SIZE: usize> FieldValue for [u8; SIZE] {
    fn field_bytes(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl FieldValue for &[u8] {
    fn field_bytes(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl FieldValue for Ipv4Addr {
    fn field_bytes(&self) -> Vec<u8> {
        self.octets().to_vec()
    }
}

impl FieldValue for Ipv6Addr {
    fn field_bytes(&self) -> Vec<u8> {
        self.octets().to_vec()
    }
}

/// A value for every field; or, as a mask, the bits of each that count.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; Key::SIZE]);

impl Default for Key {
    fn default() -> Key {
        Key([0; Key::SIZE])
    }
}

impl Key {
    /// The length of a key in bytes.
    pub const SIZE: usize = {
        let last = Field::SIZES.len() - 1;
        Field::OFFSETS[last] + Field::SIZES[last]
    };

    /// The bytes of the whole key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes of a field.
    pub fn get(&self, field: Field) -> &[u8] {
        &self.0[field.range()]
    }

    /// Sets a field. Of a value that is too long the end is left out; behind one that is too short there are zeros.
    pub fn set(&mut self, field: Field, value: impl FieldValue) {
        self.set_bytes(field, &value.field_bytes());
    }

    pub(crate) fn set_bytes(&mut self, field: Field, bytes: &[u8]) {
        let place = &mut self.0[field.range()];
        let size = bytes.len().min(place.len());
        place.fill(0);
        place[..size].copy_from_slice(&bytes[..size]);
    }

    /// The value of a field as a number: its last four bytes.
    pub fn number(&self, field: Field) -> u32 {
        self.get(field).iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
    }

    /// Whether any bit of the field is set.
    pub fn has(&self, field: Field) -> bool {
        const ZEROS: [u8; Key::SIZE] = [0; Key::SIZE];
        self.get(field) != &ZEROS[..field.size()]
    }

    /// This key with only those bits that are set in `mask`.
    pub fn masked(&self, mask: &Key) -> Key {
        let mut masked = self.clone();
        masked.0.iter_mut().zip(&mask.0).for_each(|(byte, mask)| *byte &= mask);
        masked
    }

    /// The fields of which any bit is set.
    pub fn fields(&self) -> impl Iterator<Item = Field> {
        Field::ALL.iter().copied().filter(|field| self.has(*field))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.fields().map(|field| (field, self.get(field)))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_one_behind_the_other() {
        let mut end = 0;
        for field in Field::ALL {
            assert_eq!(field.offset(), end, "{field:?}");
            end += field.size();
        }
        assert_eq!(end, Key::SIZE);
    }

    #[test]
    fn a_value_touches_only_its_field() {
        let mut key = Key::default();
        key.set(Field::EthDst, [0xff; 6]);
        key.set(Field::VlanId, 5u16);
        assert_eq!(key.fields().collect::<Vec<_>>(), [Field::EthDst, Field::VlanId]);
        assert_eq!((key.get(Field::EthDst), key.number(Field::VlanId)), (&[0xff; 6][..], 5));
        key.set(Field::EthDst, [0; 6]);
        assert!(!key.has(Field::EthDst));
    }

    #[test]
    fn a_mask_takes_bits_away() {
        let (mut key, mut mask) = (Key::default(), Key::default());
        key.set(Field::Ip4Src, Ipv4Addr::new(10, 1, 2, 3));
        key.set(Field::IpProto, 6u8);
        mask.set(Field::Ip4Src, Ipv4Addr::new(255, 0, 0, 0));
        assert_eq!(key.masked(&mask).get(Field::Ip4Src), [10, 0, 0, 0]);
        assert!(!key.masked(&mask).has(Field::IpProto));
    }
}
