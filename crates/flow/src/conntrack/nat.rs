//! Address translation: which address and port a new connection gets, and the rewriting of its frames.
//!
//! Simpler than `net/netfilter/nf_nat_core.c`: addresses and ports follow from a hash of the connection instead of a
//! random number, a connection that is not translated is not kept apart from those that are (there is no null
//! binding), and only TCP, UDP and ICMP are translated by port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Connection, Connections, CtError, Direction, Tuple};
use crate::action::{Nat, NatRange};
use crate::checksum;
use crate::parse::{Network, dissect, protocol};

/// How many ports are tried (`max_attempts` in `nf_nat_l4proto_unique_tuple`).
const MAX_ATTEMPTS: u32 = 128;

/// Chooses addresses for a new connection (`nf_nat_setup_info`).
///
/// # Errors
/// [`CtError::NoFreePort`] if nothing in the range is free.
pub(super) fn choose(
    connections: &Connections,
    nat: &Nat,
    connection: &mut Connection,
    now: Duration,
) -> Result<(), CtError> {
    let (range, is_source) = match nat {
        Nat::Restore => return Ok(()),
        Nat::Src(range) => (range, true),
        Nat::Dst(range) => (range, false),
    };
    let wanted = connection.reply.inverse();
    let seed = hash(&connection.original);
    let with_address = match is_source {
        true => Tuple { src: pick_address(&range.addresses, wanted.src, seed), ..wanted },
        false => Tuple { dst: pick_address(&range.addresses, wanted.dst, seed), ..wanted },
    };
    let is_free = |tuple: &Tuple| connections.find(connection.zone, &tuple.inverse(), now).is_none();
    let mut candidates = ports(&with_address, range, is_source, seed);
    let chosen = candidates.find(|tuple| is_free(tuple)).ok_or(CtError::NoFreePort)?;
    connection.reply = chosen.inverse();
    connection.translated = connection.reply != connection.original.inverse();
    Ok(())
}

/// The tuples to try, in this order.
fn ports(tuple: &Tuple, range: &NatRange, is_source: bool, seed: u32) -> Box<dyn Iterator<Item = Tuple>> {
    let tuple = *tuple;
    if !matches!(tuple.protocol, protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6) {
        return Box::new(std::iter::once(tuple));
    }
    // The identifier of ICMP is the part of its source in both directions.
    let in_source = is_source || tuple.is_icmp();
    let own = if in_source { tuple.src_part } else { tuple.dst_part };
    let with = move |part| match in_source {
        true => Tuple { src_part: part, ..tuple },
        false => Tuple { dst_part: part, ..tuple },
    };
    let (first, last) = match &range.ports {
        Some(ports) => (*ports.start(), *ports.end()),
        None if !is_source => return Box::new(std::iter::once(tuple)),
        None if tuple.is_icmp() => (0, u16::MAX),
        None => default_ports(own),
    };
    let count = u32::from(last.saturating_sub(first)) + 1;
    let within = range.ports.as_ref().is_none_or(|ports| ports.contains(&own));
    let others =
        (0..count.min(MAX_ATTEMPTS)).map(move |step| first.wrapping_add((seed.wrapping_add(step) % count) as u16));
    Box::new(within.then_some(own).into_iter().chain(others).map(with))
}

/// Among which ports another one is looked for (`nf_nat_l4proto_unique_tuple`).
fn default_ports(own: u16) -> (u16, u16) {
    match own {
        0..512 => (1, 511),
        512..1024 => (600, 1023),
        _ => (1024, u16::MAX),
    }
}

/// The same address of a range for the same connection (`find_best_ips_proto`).
fn pick_address(addresses: &RangeInclusive<IpAddr>, own: IpAddr, seed: u32) -> IpAddr {
    match (own, addresses.start(), addresses.end()) {
        (IpAddr::V4(_), IpAddr::V4(first), IpAddr::V4(last)) => {
            let (first, last) = (u32::from(*first), u32::from(*last));
            let count = u64::from(last.saturating_sub(first)) + 1;
            Ipv4Addr::from(first.wrapping_add((u64::from(seed) % count) as u32)).into()
        }
        (IpAddr::V6(_), IpAddr::V6(first), IpAddr::V6(last)) => {
            let (first, last) = (u128::from(*first), u128::from(*last));
            let count = last.saturating_sub(first).saturating_add(1);
            Ipv6Addr::from(first.wrapping_add(u128::from(seed) % count)).into()
        }
        _ => own,
    }
}

/// A number that follows from the addresses and ports (FNV-1a).
fn hash(tuple: &Tuple) -> u32 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let ports = [tuple.src_part, tuple.dst_part].map(u16::to_be_bytes).concat();
    let bytes = [&address(tuple.src)[..], &address(tuple.dst)[..], &[tuple.protocol], &ports].concat();
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619))
}

/// Rewrites a frame of a translated connection so that it is the answer to the other direction's frames.
pub(super) fn apply(frame: &mut [u8], connection: &Connection, direction: Direction) {
    let (own, wanted) = (connection.tuple(direction), connection.tuple(direction.opposite()).inverse());
    let Some(network) = dissect(frame).network else { return };
    let addresses = if network.version == 4 { [12, 16] } else { [8, 24] };
    for (place, (old, new)) in addresses.into_iter().zip([(own.src, wanted.src), (own.dst, wanted.dst)]) {
        if old != new {
            write_address(frame, &network, network.offset + place, new);
        }
    }
    let parts = match own.is_icmp() {
        true => [(4, own.src_part, wanted.src_part), (0, 0, 0)],
        false => [(0, own.src_part, wanted.src_part), (2, own.dst_part, wanted.dst_part)],
    };
    for (place, old, new) in parts {
        if old != new {
            let checks = [checksum::of_transport(&network)];
            checksum::write(frame, network.payload, network.payload + place, &new.to_be_bytes(), &checks);
        }
    }
}

fn write_address(frame: &mut [u8], network: &Network, at: usize, address: IpAddr) {
    let checks = [checksum::of_header(network), checksum::of_pseudo_header(network)];
    match address {
        IpAddr::V4(address) => checksum::write(frame, network.offset, at, &address.octets(), &checks),
        IpAddr::V6(address) => checksum::write(frame, network.offset, at, &address.octets(), &checks),
    }
}
