//! The internet checksum: computed, corrected after a change, and checked.

use crate::parse::{Dissected, Fragment, Network, be16, dissect, protocol};

/// The sum of the 16-bit words of `bytes`, an odd last byte being followed by a zero.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2);
    words.map(|word| u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]))).sum()
}

/// The sum in one's complement.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of all that, of which all but the last have an even length.
pub(crate) fn of(parts: &[&[u8]]) -> u16 {
    !fold(parts.iter().map(|part| sum(part)).sum())
}

/// The checksum after the words `old` of what it covers became `new` (RFC 1624, equation 3).
fn corrected(check: u16, old: &[u8], new: &[u8]) -> u16 {
    let removed: u64 = old.chunks(2).map(|word| u64::from(!fold(sum(word)))).sum();
    !fold(u64::from(!check) + removed + sum(new))
}

/// A checksum in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CheckField {
    offset: usize,
    /// Whether 0 says that there is none, as in UDP.
    zero_is_none: bool,
}

/// The checksum of the IPv4 header.
pub(crate) fn of_header(network: &Network) -> Option<CheckField> {
    (network.version == 4).then_some(CheckField { offset: network.offset + 10, zero_is_none: false })
}

/// The checksum of TCP, UDP, ICMP or ICMPv6.
pub(crate) fn of_transport(network: &Network) -> Option<CheckField> {
    let (place, zero_is_none) = match (network.protocol, network.version) {
        (protocol::TCP, _) => (16, false),
        (protocol::UDP, _) => (6, true),
        (protocol::ICMP, 4) | (protocol::ICMPV6, 6) => (2, false),
        _ => return None,
    };
    let offset = network.transport()? + place;
    (offset + 2 <= network.end).then_some(CheckField { offset, zero_is_none })
}

/// The checksum of the transport that covers the addresses too.
pub(crate) fn of_pseudo_header(network: &Network) -> Option<CheckField> {
    of_transport(network).filter(|_| network.protocol != protocol::ICMP)
}

/// Writes `bytes` at `at` into the header or payload that begins at `start`, and corrects `checks`.
///
/// What does not fit into the frame is not written.
pub(crate) fn write(frame: &mut [u8], start: usize, at: usize, bytes: &[u8], checks: &[Option<CheckField>]) {
    let first = at - (at - start) % 2;
    let last = (start + (at + bytes.len() - start).next_multiple_of(2)).min(frame.len());
    if at + bytes.len() > frame.len() {
        return;
    }
    let old = frame[first..last].to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    let new = frame[first..last].to_vec();
    for check in checks.iter().flatten() {
        let Some(before) = be16(frame, check.offset) else { continue };
        if check.zero_is_none && before == 0 {
            continue;
        }
        put(frame, *check, corrected(before, &old, &new));
    }
}

fn put(frame: &mut [u8], check: CheckField, value: u16) {
    let value = if check.zero_is_none && value == 0 { 0xffff } else { value };
    frame[check.offset..check.offset + 2].copy_from_slice(&value.to_be_bytes());
}

/// The sum of the pseudo header, if the protocol has one.
fn pseudo_header(frame: &[u8], network: &Network) -> u64 {
    let addresses = match network.version {
        4 => network.offset + 12..network.offset + 20,
        _ => network.offset + 8..network.offset + 40,
    };
    let length = network.end - network.payload;
    sum(&frame[addresses]) + u64::from(network.protocol) + sum(&(length as u32).to_be_bytes())
}

/// The sum of everything that the checksum of the transport covers, the checksum included.
fn transport_sum(frame: &[u8], network: &Network) -> u64 {
    let payload = sum(&frame[network.payload..network.end]);
    match network.protocol {
        protocol::ICMP => payload,
        _ => payload + pseudo_header(frame, network),
    }
}

/// Computes the checksum of the IPv4 header anew.
pub(crate) fn compute_header(frame: &mut [u8], network: &Network) {
    let Some(check) = of_header(network) else { return };
    frame[check.offset..check.offset + 2].fill(0);
    let value = !fold(sum(&frame[network.offset..network.payload.min(frame.len())]));
    put(frame, check, value);
}

/// Computes the checksum of the transport anew, unless it is UDP's and there is none, or the frame is a fragment.
pub(crate) fn compute_transport(frame: &mut [u8], network: &Network) {
    let Some(check) = of_transport(network).filter(|_| network.fragment == Fragment::Whole) else { return };
    if check.zero_is_none && be16(frame, check.offset) == Some(0) {
        return;
    }
    frame[check.offset..check.offset + 2].fill(0);
    let value = !fold(transport_sum(frame, network));
    put(frame, check, value);
}

/// Whether the checksum of the IPv4 header and that of the transport are right, as far as the frame has them.
///
/// A UDP checksum of 0 is right, and so is that of a fragment, which cannot be checked.
pub fn is_right(frame: &[u8]) -> bool {
    let Dissected { network: Some(network), .. } = dissect(frame) else { return true };
    let header = match of_header(&network) {
        Some(_) => fold(sum(&frame[network.offset..network.payload.min(frame.len())])) == 0xffff,
        None => true,
    };
    let transport = match of_transport(&network).filter(|_| network.fragment == Fragment::Whole) {
        Some(check) if check.zero_is_none && be16(frame, check.offset) == Some(0) => true,
        Some(_) => fold(transport_sum(frame, &network)) == 0xffff,
        None => true,
    };
    header && transport
}

/// Makes the checksums of a frame right, as far as it has them.
pub fn make_right(frame: &mut [u8]) {
    let Dissected { network: Some(network), .. } = dissect(frame) else { return };
    compute_header(frame, &network);
    compute_transport(frame, &network);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)), 0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        assert_eq!(corrected(0xdd2f, &[0x55, 0x55], &[0x32, 0x85]), 0x0000);
    }

    #[test]
    fn a_change_at_an_odd_place_is_corrected() {
        let mut frame = [1, 2, 3, 4, 5, 0, 0];
        let check = CheckField { offset: 5, zero_is_none: false };
        let value = !fold(sum(&frame[1..5]));
        put(&mut frame, check, value);
        write(&mut frame, 1, 2, &[9, 8], &[Some(check)]);
        assert_eq!(frame[..5], [1, 2, 9, 8, 5]);
        assert_eq!(be16(&frame, 5), Some(!fold(sum(&frame[1..5]))));
    }
}
