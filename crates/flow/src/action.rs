//! What a rule does with the frames that it matches.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::key::FieldValue;
use crate::meter::MeterId;
use crate::rule::Port;
use crate::tunnel::Encap;

/// One action, in the terms of tc. A rule's actions are done in their order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Action {
    /// Drops the frame. The rule ends.
    Drop,
    /// Passes the frame to the representor as it came in, but counted. The rule ends.
    Trap,
    /// Sends the frame to a port. The rule ends (`mirred egress redirect`).
    Redirect(Port),
    /// Sends a copy to a port (`mirred egress mirror`).
    Mirror(Port),
    /// Goes on in a chain of the same block. The rule ends.
    Goto(u32),
    /// Puts a VLAN tag in front (`vlan push`).
    VlanPush(VlanTag),
    /// Takes the outer VLAN tag away, if there is one (`vlan pop`).
    VlanPop,
    /// Changes the outer VLAN tag, if there is one (`vlan modify`).
    VlanModify {
        /// The EtherType of the tag.
        tpid: u16,
        /// The VLAN, 0 to 4095.
        id: u16,
        /// The priority, 0 to 7. Without it, it stays.
        priority: Option<u8>,
    },
    /// Rewrites a field of a header, and corrects the checksums that cover it (`pedit`).
    Edit(Edit),
    /// Computes checksums anew: the bits of [`Csum`] (`csum`).
    Csum(Csum),
    /// Decrements the time to live or the hop limit. A frame that has one of 0 or 1 is dropped.
    DecTtl,
    /// Encapsulates what the next [`Action::Redirect`] or [`Action::Mirror`] sends (`tunnel_key set`).
    ///
    /// Only that one, as in mlx5 (`parse_mirred_encap`): in the kernel the key would stay on the frame.
    TunnelSet(Encap),
    /// Forgets the tunnel out of which the frame came (`tunnel_key unset`).
    TunnelUnset,
    /// Tracks the frame's connection (`ct`).
    Ct(Ct),
    /// Forgets that the frame has been tracked (`ct clear`).
    CtClear,
    /// Measures the frame (`police`).
    Police(Police),
    /// Samples one frame of so many (`sample`).
    Sample(Sample),
}

impl Action {
    /// The port to which the action sends.
    pub fn port(&self) -> Option<Port> {
        match self {
            Action::Redirect(port) | Action::Mirror(port) => Some(*port),
            _ => None,
        }
    }

    /// The meter that the action uses.
    pub fn meter(&self) -> Option<MeterId> {
        match self {
            Action::Police(police) => Some(police.meter),
            _ => None,
        }
    }

    /// Whether no action of the rule is done after this one.
    pub fn ends_rule(&self) -> bool {
        matches!(self, Action::Drop | Action::Trap | Action::Redirect(_) | Action::Goto(_))
    }

    /// Whether the action changes the headers of the frame.
    pub fn rewrites(&self) -> bool {
        matches!(self, Action::Edit(_) | Action::DecTtl | Action::VlanModify { .. })
    }
}

/// A VLAN tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VlanTag {
    /// The EtherType of the tag: 0x8100 or 0x88a8.
    pub tpid: u16,
    /// The VLAN, 0 to 4095.
    pub id: u16,
    /// The priority, 0 to 7.
    pub priority: u8,
}

/// A header that can be rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Header {
    /// Ethernet.
    Eth,
    /// IPv4.
    Ip4,
    /// IPv6.
    Ip6,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A field that can be rewritten: those that mlx5 can (`fields` in `en_tc.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum EditField {
    /// The destination MAC address.
    EthDst,
    /// The source MAC address.
    EthSrc,
    /// The EtherType, behind the outer VLAN tag if there is one.
    EthType,
    /// The source address of IPv4.
    Ip4Src,
    /// The destination address of IPv4.
    Ip4Dst,
    /// The type of service of IPv4.
    Ip4Tos,
    /// The time to live of IPv4.
    Ip4Ttl,
    /// The source address of IPv6.
    Ip6Src,
    /// The destination address of IPv6.
    Ip6Dst,
    /// The first two bytes of IPv6: the traffic class is in the bits 0x0ff0.
    Ip6TrafficClass,
    /// The hop limit of IPv6.
    Ip6HopLimit,
    /// The source port of TCP.
    TcpSrc,
    /// The destination port of TCP.
    TcpDst,
    /// The lower eight flags of TCP.
    TcpFlags,
    /// The source port of UDP.
    UdpSrc,
    /// The destination port of UDP.
    UdpDst,
}

impl EditField {
    /// Every field.
    pub const ALL: [EditField; 16] = [
        EditField::EthDst,
        EditField::EthSrc,
        EditField::EthType,
        EditField::Ip4Src,
        EditField::Ip4Dst,
        EditField::Ip4Tos,
        EditField::Ip4Ttl,
        EditField::Ip6Src,
        EditField::Ip6Dst,
        EditField::Ip6TrafficClass,
        EditField::Ip6HopLimit,
        EditField::TcpSrc,
        EditField::TcpDst,
        EditField::TcpFlags,
        EditField::UdpSrc,
        EditField::UdpDst,
    ];

    /// The header, and where in it the field begins and how many bytes it has.
    pub const fn place(self) -> (Header, usize, usize) {
        match self {
            EditField::EthDst => (Header::Eth, 0, 6),
            EditField::EthSrc => (Header::Eth, 6, 6),
            EditField::EthType => (Header::Eth, 12, 2),
            EditField::Ip4Tos => (Header::Ip4, 1, 1),
            EditField::Ip4Ttl => (Header::Ip4, 8, 1),
            EditField::Ip4Src => (Header::Ip4, 12, 4),
            EditField::Ip4Dst => (Header::Ip4, 16, 4),
            EditField::Ip6TrafficClass => (Header::Ip6, 0, 2),
            EditField::Ip6HopLimit => (Header::Ip6, 7, 1),
            EditField::Ip6Src => (Header::Ip6, 8, 16),
            EditField::Ip6Dst => (Header::Ip6, 24, 16),
            EditField::TcpSrc => (Header::Tcp, 0, 2),
            EditField::TcpDst => (Header::Tcp, 2, 2),
            EditField::TcpFlags => (Header::Tcp, 13, 1),
            EditField::UdpSrc => (Header::Udp, 0, 2),
            EditField::UdpDst => (Header::Udp, 2, 2),
        }
    }

    /// The field's length in bytes.
    pub const fn size(self) -> usize {
        self.place().2
    }
}

/// A field and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Edit {
    /// The field.
    pub field: EditField,
    /// Its new value.
    pub change: Change,
}

/// How a field changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Change {
    /// Takes the bits of the value that are set in the mask, both as long as the field.
    Set {
        /// The value, in network byte order.
        value: Vec<u8>,
        /// The bits of the field that change.
        mask: Vec<u8>,
    },
    /// Adds, without a carry out of the field. Only for fields of at most four bytes.
    Add(u32),
}

impl Edit {
    /// Sets a whole field.
    pub fn set(field: EditField, value: impl FieldValue) -> Action {
        let mask = vec![0xff; field.size()];
        Action::Edit(Edit { field, change: Change::Set { value: value.field_bytes(), mask } })
    }

    /// Sets some bits of a field.
    pub fn set_masked<V: FieldValue>(field: EditField, value: V, mask: V) -> Action {
        let change = Change::Set { value: value.field_bytes(), mask: mask.field_bytes() };
        Action::Edit(Edit { field, change })
    }

    /// Adds to a field.
    pub fn add(field: EditField, value: u32) -> Action {
        Action::Edit(Edit { field, change: Change::Add(value) })
    }
}

/// Which checksums to compute: the bits TCA_CSUM_UPDATE_FLAG_* of `include/uapi/linux/tc_act/tc_csum.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Csum(pub u32);

impl Csum {
    /// The header of IPv4.
    pub const IP4_HEADER: Csum = Csum(1);
    /// ICMP and ICMPv6.
    pub const ICMP: Csum = Csum(2);
    /// IGMP, which cannot be computed here.
    pub const IGMP: Csum = Csum(4);
    /// TCP.
    pub const TCP: Csum = Csum(8);
    /// UDP.
    pub const UDP: Csum = Csum(16);
    /// UDP-Lite, which cannot be computed here.
    pub const UDPLITE: Csum = Csum(32);
    /// SCTP, which cannot be computed here.
    pub const SCTP: Csum = Csum(64);

    /// These and those.
    pub const fn and(self, other: Csum) -> Csum {
        Csum(self.0 | other.0)
    }

    /// Whether any of those is among these.
    pub const fn has(self, other: Csum) -> bool {
        self.0 & other.0 != 0
    }
}

/// How the connection of a frame is tracked (`net/sched/act_ct.c`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Ct {
    /// The zone. Connections of different zones have nothing to do with each other.
    pub zone: u16,
    /// Remembers a new connection. Without it, a new connection is only looked at.
    pub commit: bool,
    /// Makes the direction of this frame the original one, if it has been tracked in the other direction.
    pub force: bool,
    /// With `commit`: the mark, and which bits of it change.
    pub mark: Option<(u32, u32)>,
    /// With `commit`: the label, and which bits of it change.
    pub label: Option<(u128, u128)>,
    /// Address translation.
    pub nat: Option<Nat>,
}

/// Address translation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Nat {
    /// As it was agreed for the connection, if it was.
    Restore,
    /// Translates the source of a new connection.
    Src(NatRange),
    /// Translates the destination of a new connection.
    Dst(NatRange),
}

/// What an address is translated to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NatRange {
    /// The addresses from which one is chosen. If they are of the other version of IP, the frame's stays.
    pub addresses: RangeInclusive<IpAddr>,
    /// The ports from which one is chosen. Without it, the port stays if it can.
    pub ports: Option<RangeInclusive<u16>>,
}

/// A measurement and what follows from it (`net/sched/act_police.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Police {
    /// The meter, which several rules may use.
    pub meter: MeterId,
    /// What follows if there are enough tokens.
    pub conform: Control,
    /// What follows if there are not.
    pub exceed: Control,
}

/// What follows from a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Control {
    /// The next action. (mlx5 takes tc's `ok` for the same.)
    Pipe,
    /// The frame is dropped.
    Drop,
    /// The action with this number, counted from 0, which must be a later one (`jump` of `tcf_action_exec`).
    Jump(usize),
}

/// A sampling (`net/sched/act_sample.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Sample {
    /// One frame of so many is sampled, at random. At least 1.
    pub rate: u32,
    /// The psample group.
    pub group: u32,
    /// How many bytes of the frame are kept. Without it, all.
    pub truncate: Option<u32>,
}
