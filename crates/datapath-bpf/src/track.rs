//! How a connection is tracked (`struct ct`), and connections as they stand in the maps (`struct connection`).

use std::net::IpAddr;
use std::time::Duration;

use flow::{Ct, Nat, TcpPhase, Tuple};

use crate::layout::{Bytes, ENCAP, View};

/// A connection, as the program tracks it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Connection {
    /// The zone.
    pub zone: u16,
    /// The addresses of a frame in the original direction, before translation.
    pub original: Tuple,
    /// The addresses of a frame in the direction of the reply, before translation.
    pub reply: Tuple,
    /// Whether there has been a reply.
    pub seen_reply: bool,
    /// Whether both sides have agreed to talk, so that the long time-outs apply.
    pub assured: bool,
    /// Whether addresses were chosen for it.
    pub translated: bool,
    /// The mark.
    pub mark: u32,
    /// The label.
    pub label: u128,
    /// The time since boot at which it is over, unless another frame comes (CLOCK_MONOTONIC, as [`crate::Pipeline::now`]).
    pub expires: Duration,
    /// The phase of TCP, for TCP.
    pub tcp: Option<TcpPhase>,
}

/// The phases, by their number in the program (`enum phase`).
const PHASES: [TcpPhase; 10] = [
    TcpPhase::None,
    TcpPhase::SynSent,
    TcpPhase::SynRecv,
    TcpPhase::Established,
    TcpPhase::FinWait,
    TcpPhase::CloseWait,
    TcpPhase::LastAck,
    TcpPhase::TimeWait,
    TcpPhase::Close,
    TcpPhase::SynSent2,
];

const TCP: u8 = 6;

/// Flags of `connection.flags` and bits of `connection.state`.
mod flag {
    pub const REPLY: u32 = 1;
    pub const TRANSLATED: u32 = 4;
    pub const SEEN_REPLY: u64 = 1 << 10;
    pub const ASSURED: u64 = 1 << 11;
}

/// Where the fields of `struct connection` are.
mod at {
    pub const STATE: usize = 0;
    pub const EXPIRES: usize = 8;
    pub const OTHER: usize = 32;
    pub const LABEL: usize = 72;
    pub const MARK: usize = 88;
    pub const FLAGS: usize = 92;
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// A way to track, as it stands in `encaps`.
pub(crate) fn bytes(ct: &Ct) -> Vec<u8> {
    let (kind, range) = match &ct.nat {
        None => (0, None),
        Some(Nat::Restore) => (1, None),
        Some(Nat::Src(range)) => (2, Some(range)),
        Some(Nat::Dst(range)) => (3, Some(range)),
    };
    let ports = range.and_then(|range| range.ports.clone());
    let (first, count) = range.map_or(([0; 16], 0), |range| {
        let (first, last) = (range.addresses.start(), range.addresses.end());
        let number = |address: &IpAddr| match address {
            IpAddr::V4(address) => u128::from(u32::from(*address)),
            IpAddr::V6(address) => u128::from(*address),
        };
        let count = number(last).saturating_sub(number(first)).saturating_add(1);
        // Of 2^32 and more, one is chosen by a number of 32 bits as it is.
        (octets(*first), u32::try_from(count).unwrap_or(0))
    });
    let version = range.map_or(0, |range| if range.addresses.start().is_ipv4() { 4 } else { 6 });
    let changes = ct.mark.is_some() || ct.label.is_some();
    let ((mark, mark_mask), (label, label_mask)) = (ct.mark.unwrap_or_default(), ct.label.unwrap_or_default());
    let bytes = Bytes::default().u16(ct.zone).u8(ct.commit.into()).u8(ct.force.into());
    let bytes = bytes.u8(kind).u8(version).u8(ports.is_some().into()).u8(changes.into());
    let bytes = bytes.u32(mark).u32(mark_mask).bytes(&label.to_be_bytes()).bytes(&label_mask.to_be_bytes());
    let (first_port, last_port) = ports.map_or((0, 0), |ports| (*ports.start(), *ports.end()));
    bytes.bytes(&first).u32(count).u16(first_port).u16(last_port).up_to(ENCAP).0
}

/// A tuple, and its zone.
fn tuple(bytes: &[u8]) -> Option<(Tuple, u16)> {
    // The upper half is the number of the E-Switch.
    let (view, version) = (View(bytes), *bytes.get(39)? & 0xf);
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
        let [a, b, c, d, ..] = octets;
        Some(if version == 4 { [a, b, c, d].into() } else { octets.into() })
    };
    let (src, dst) = (address(0)?, address(16)?);
    let tuple = Tuple { src, dst, protocol: bytes[38], src_part: view.u16(32), dst_part: view.u16(34) };
    Some((tuple, view.u16(36)))
}

/// The connection of an entry, if that is the one of the original direction.
pub(crate) fn connection(key: &[u8], value: &[u8]) -> Option<Connection> {
    let view = View(value);
    let (flags, state) = (view.u32(at::FLAGS), view.u64(at::STATE));
    if flags & flag::REPLY != 0 {
        return None;
    }
    let (original, zone) = tuple(key)?;
    let (reply, _) = tuple(value.get(at::OTHER..at::LABEL)?)?;
    let label: [u8; 16] = value.get(at::LABEL..at::MARK)?.try_into().ok()?;
    Some(Connection {
        zone,
        original,
        reply,
        seen_reply: state & flag::SEEN_REPLY != 0,
        assured: state & flag::ASSURED != 0,
        translated: flags & flag::TRANSLATED != 0,
        mark: view.u32(at::MARK),
        label: u128::from_be_bytes(label),
        expires: Duration::from_nanos(view.u64(at::EXPIRES)),
        tcp: (original.protocol == TCP).then(|| PHASES.get((state & 15) as usize).copied()).flatten(),
    })
}
