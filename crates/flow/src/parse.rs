//! Reading frames: the key of a frame, and where its headers are.
//!
//! It follows `__skb_flow_dissect` (`net/core/flow_dissector.c`) with FLOW_DISSECTOR_F_STOP_BEFORE_ENCAP, as flower calls
//! it. What cannot be read has no key: it is zero.
//!
//! Not looked into, unlike there: PPPoE, MPLS, HSR, batman-adv, TIPC. Such a frame has its EtherType and no more.

use crate::key::{Field, Key};

/// EtherTypes (`include/uapi/linux/if_ether.h`).
pub(crate) mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const TRANSPARENT_ETHERNET: u16 = 0x6558;
    pub const RARP: u16 = 0x8035;
    pub const VLAN: u16 = 0x8100;
    pub const IPV6: u16 = 0x86dd;
    pub const QINQ: u16 = 0x88a8;
    /// What the kernel calls a frame with a length in the place of the EtherType.
    pub const IEEE_802_2: u16 = 0x0004;
    /// The same, with Novell's raw format.
    pub const IEEE_802_3: u16 = 0x0001;
}

/// Protocols of IP (`include/uapi/linux/in.h`).
pub(crate) mod protocol {
    pub const HOP_OPTIONS: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const GRE: u8 = 47;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
}

/// The length of an Ethernet header without tags.
pub(crate) const ETH_HLEN: usize = 14;

/// The most headers that are read of one frame (MAX_FLOW_DISSECT_HDRS).
const MAX_HEADERS: usize = 15;

/// Whether an EtherType is that of a VLAN tag (`eth_type_vlan`).
pub(crate) fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, ethertype::VLAN | ethertype::QINQ)
}

/// The place of the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Where the header begins.
    pub offset: usize,
    /// 4 or 6.
    pub version: u8,
    /// Where the packet ends: by its own length if that is within the frame, else where the frame ends.
    pub end: usize,
    /// Whether the frame is a fragment, and which.
    pub fragment: Fragment,
    /// The protocol behind the extension headers that could be read.
    pub protocol: u8,
    /// Where the header of that protocol begins, which may be behind the end of the frame.
    pub payload: usize,
}

/// Which part of a packet a frame has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The first part, with the header of the transport.
    First,
    /// A later part, without one.
    Later,
}

impl Network {
    /// Where the header of TCP, UDP and so on begins, if the frame has one.
    pub fn transport(&self) -> Option<usize> {
        (self.fragment != Fragment::Later && self.payload < self.end).then_some(self.payload)
    }
}

/// A frame as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dissected {
    /// The key, as far as it follows from the frame alone.
    pub key: Key,
    /// The EtherType that tc compares with the protocol of a filter: that of the outermost tag, if there is one.
    pub protocol: u16,
    /// How many VLAN tags there are.
    pub tags: usize,
    /// The IP header, if there is one.
    pub network: Option<Network>,
}

/// Reads `frame`.
pub fn dissect(frame: &[u8]) -> Dissected {
    let mut reader = Reader { frame, key: Key::default(), tags: 0, network: None };
    let protocol = reader.ethernet();
    Dissected { key: reader.key, protocol, tags: reader.tags, network: reader.network }
}

/// The two bytes at `offset`, as a number.
pub(crate) fn be16(frame: &[u8], offset: usize) -> Option<u16> {
    let bytes = frame.get(offset..offset.checked_add(2)?)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// The four bytes at `offset`, as a number.
pub(crate) fn be32(frame: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from(be16(frame, offset)?) << 16 | u32::from(be16(frame, offset.checked_add(2)?)?))
}

struct Reader<'f> {
    frame: &'f [u8],
    key: Key,
    tags: usize,
    network: Option<Network>,
}

impl Reader<'_> {
    fn bytes(&self, offset: usize, size: usize) -> Option<&[u8]> {
        self.frame.get(offset..offset.checked_add(size)?)
    }

    fn copy(&mut self, field: Field, offset: usize) {
        if let Some(bytes) = self.frame.get(offset..offset + field.size()) {
            self.key.set_bytes(field, bytes);
        }
    }

    /// Reads the frame from its beginning. Returns the outermost EtherType.
    fn ethernet(&mut self) -> u16 {
        let Some(first) = be16(self.frame, 12) else { return 0 };
        self.copy(Field::EthDst, 0);
        self.copy(Field::EthSrc, 6);
        let outermost = self.without_length(first, ETH_HLEN);
        let (mut ethertype, mut offset) = (outermost, ETH_HLEN);
        for _ in 0..=MAX_HEADERS {
            if !is_vlan(ethertype) {
                break;
            }
            let (Some(tci), Some(next)) = (be16(self.frame, offset), be16(self.frame, offset + 2)) else { break };
            // The kernel takes the outermost tag out before tc sees the frame (vlan_set_encap_proto).
            let next = if self.tags == 0 { self.without_length(next, offset + 4) } else { next };
            self.tag(ethertype, tci, next);
            (ethertype, offset) = (next, offset + 4);
        }
        self.key.set(Field::EthType, ethertype);
        match ethertype {
            ethertype::ARP | ethertype::RARP => self.arp(offset),
            ethertype::IPV4 => self.ipv4(offset),
            ethertype::IPV6 => self.ipv6(offset),
            _ => {}
        }
        outermost
    }

    /// What stands for an EtherType that is a length (`eth_type_trans`).
    fn without_length(&self, ethertype: u16, payload: usize) -> u16 {
        match ethertype {
            0x0600.. => ethertype,
            _ if be16(self.frame, payload) == Some(0xffff) => ethertype::IEEE_802_3,
            _ => ethertype::IEEE_802_2,
        }
    }

    fn tag(&mut self, tpid: u16, tci: u16, next: u16) {
        let fields = match self.tags {
            0 => [Field::VlanTpid, Field::VlanId, Field::VlanPrio, Field::VlanEthType],
            1 => [Field::CvlanTpid, Field::CvlanId, Field::CvlanPrio, Field::CvlanEthType],
            _ => {
                self.tags += 1;
                return;
            }
        };
        self.tags += 1;
        self.key.set(fields[0], tpid);
        self.key.set(fields[1], tci & 0x0fff);
        self.key.set(fields[2], (tci >> 13) as u8);
        self.key.set(fields[3], next);
    }

    /// Reads ARP of IPv4 over Ethernet, requests and replies (`__skb_flow_dissect_arp`).
    fn arp(&mut self, offset: usize) {
        let Some(header) = self.bytes(offset, 28) else { return };
        if header[..6] != [0, 1, 8, 0, 6, 4] || header[6] != 0 || !matches!(header[7], 1 | 2) {
            return;
        }
        self.copy(Field::ArpOp, offset + 7);
        self.copy(Field::ArpSha, offset + 8);
        self.copy(Field::ArpSip, offset + 14);
        self.copy(Field::ArpTha, offset + 18);
        self.copy(Field::ArpTip, offset + 24);
    }

    fn ipv4(&mut self, offset: usize) {
        let Some(header) = self.bytes(offset, 20) else { return };
        let (header_length, protocol) = (usize::from(header[0] & 0x0f) * 4, header[9]);
        if header_length < 20 {
            return;
        }
        let flags = u16::from_be_bytes([header[6], header[7]]);
        let fragment = match (flags & 0x1fff, flags & 0x2000) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        };
        let total = match usize::from(u16::from_be_bytes([header[2], header[3]])) {
            total if total < header_length => usize::MAX,
            total => total,
        };
        self.key.set(Field::AddrType, 4u8);
        self.copy(Field::Ip4Src, offset + 12);
        self.copy(Field::Ip4Dst, offset + 16);
        self.copy(Field::IpTos, offset + 1);
        self.copy(Field::IpTtl, offset + 8);
        self.transport(Network {
            offset,
            version: 4,
            end: offset.saturating_add(total).min(self.frame.len()),
            fragment,
            protocol,
            payload: offset + header_length,
        });
    }

    fn ipv6(&mut self, offset: usize) {
        let Some(header) = self.bytes(offset, 40) else { return };
        let traffic_class = header[0] << 4 | header[1] >> 4;
        let length = match usize::from(u16::from_be_bytes([header[4], header[5]])) {
            0 => usize::MAX - 40,
            length => length,
        };
        let mut network = Network {
            offset,
            version: 6,
            end: offset.saturating_add(40 + length).min(self.frame.len()),
            fragment: Fragment::Whole,
            protocol: header[6],
            payload: offset + 40,
        };
        self.key.set(Field::AddrType, 6u8);
        self.key.set(Field::IpTos, traffic_class);
        self.copy(Field::Ip6Src, offset + 8);
        self.copy(Field::Ip6Dst, offset + 24);
        self.copy(Field::IpTtl, offset + 7);
        let readable = self.extensions(&mut network);
        match readable {
            true => self.transport(network),
            false => {
                self.key.set(Field::IpProto, network.protocol);
                network.payload = self.frame.len();
                self.network = Some(network);
            }
        }
    }

    /// Goes past the extension headers. Returns whether what follows can be read.
    fn extensions(&self, network: &mut Network) -> bool {
        for _ in 0..MAX_HEADERS {
            match network.protocol {
                protocol::HOP_OPTIONS | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                    let Some(header) = self.bytes(network.payload, 2) else { return false };
                    network.protocol = header[0];
                    network.payload += (usize::from(header[1]) + 1) * 8;
                }
                protocol::FRAGMENT => {
                    let Some(header) = self.bytes(network.payload, 8) else { return false };
                    network.protocol = header[0];
                    network.payload += 8;
                    let later = u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0;
                    network.fragment = if later { Fragment::Later } else { Fragment::First };
                    return true;
                }
                _ => return true,
            }
        }
        true
    }

    /// Reads ports, flags, type and code; of a fragment none, as flower does not ask for those of the first.
    fn transport(&mut self, network: Network) {
        self.key.set(Field::IpProto, network.protocol);
        let flags = match network.fragment {
            Fragment::Whole => 0,
            Fragment::First => Field::FRAG | Field::FIRST_FRAG,
            Fragment::Later => Field::FRAG,
        };
        self.key.set(Field::IpFlags, flags);
        self.network = Some(network);
        if network.fragment != Fragment::Whole {
            return;
        }
        let offset = network.payload;
        match network.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP if self.bytes(offset, 4).is_some() => {
                self.copy(Field::SrcPort, offset);
                self.copy(Field::DstPort, offset + 2);
            }
            protocol::ICMP | protocol::ICMPV6 if self.bytes(offset, 8).is_some() => {
                self.copy(Field::IcmpType, offset);
                self.copy(Field::IcmpCode, offset + 1);
            }
            _ => {}
        }
        if network.protocol == protocol::TCP
            && let Some(header) = self.bytes(offset, 20)
            && header[12] >> 4 >= 5
        {
            let flags = u16::from_be_bytes([header[12], header[13]]) & 0x0fff;
            self.key.set(Field::TcpFlags, flags);
        }
    }
}
