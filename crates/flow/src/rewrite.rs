//! Changes of frames: VLAN tags and header fields.

use crate::action::{Change, Csum, Edit, Header, VlanTag};
use crate::checksum::{self, CheckField};
use crate::parse::{Dissected, ETH_HLEN, Network, be16, dissect, is_vlan, protocol};

/// Where the outer VLAN tag is, or would be.
const TAG: usize = 12;

/// Whether the frame has a whole VLAN tag.
fn is_tagged(frame: &[u8]) -> bool {
    be16(frame, TAG).is_some_and(is_vlan) && frame.len() >= ETH_HLEN + 4
}

/// Puts a tag in front of those that are there (`skb_vlan_push`).
pub(crate) fn vlan_push(frame: &mut Vec<u8>, tag: VlanTag) {
    if frame.len() < ETH_HLEN {
        return;
    }
    let tci = tag.id & 0x0fff | u16::from(tag.priority & 7) << 13;
    let bytes = u32::from(tag.tpid) << 16 | u32::from(tci);
    frame.splice(TAG..TAG, bytes.to_be_bytes());
}

/// Takes the outer tag away. Returns whether there was one (`skb_vlan_pop`).
pub(crate) fn vlan_pop(frame: &mut Vec<u8>) -> bool {
    let tagged = is_tagged(frame);
    if tagged {
        frame.drain(TAG..TAG + 4);
    }
    tagged
}

/// Changes the outer tag. Returns whether there was one (TCA_VLAN_ACT_MODIFY in `tcf_vlan_act`).
pub(crate) fn vlan_modify(frame: &mut [u8], tpid: u16, id: u16, priority: Option<u8>) -> bool {
    let Some(tci) = be16(frame, TAG + 2).filter(|_| is_tagged(frame)) else { return false };
    let tci = tci & !0x0fff | id & 0x0fff;
    let tci = priority.map_or(tci, |priority| tci & 0x1fff | u16::from(priority & 7) << 13);
    frame[TAG..TAG + 2].copy_from_slice(&tpid.to_be_bytes());
    frame[TAG + 2..TAG + 4].copy_from_slice(&tci.to_be_bytes());
    true
}

/// Where a header begins, if the frame has it.
fn header_start(header: Header, dissected: &Dissected) -> Option<usize> {
    let network = dissected.network;
    let version = |version| network.filter(|network| network.version == version).map(|network| network.offset);
    let transport = |own| network.filter(|network| network.protocol == own).and_then(|network| network.transport());
    match header {
        Header::Eth => Some(0),
        Header::Ip4 => version(4),
        Header::Ip6 => version(6),
        Header::Tcp => transport(protocol::TCP),
        Header::Udp => transport(protocol::UDP),
    }
}

/// The checksums that cover a field of the header at `place`.
fn checks_over(header: Header, place: usize, network: Option<&Network>) -> [Option<CheckField>; 2] {
    let Some(network) = network else { return [None; 2] };
    match (header, place) {
        (Header::Eth, _) => [None; 2],
        (Header::Ip4, 12..) => [checksum::of_header(network), checksum::of_pseudo_header(network)],
        (Header::Ip4, _) => [checksum::of_header(network), None],
        (Header::Ip6, 8..) => [None, checksum::of_pseudo_header(network)],
        (Header::Ip6, _) => [None; 2],
        (Header::Tcp | Header::Udp, _) => [None, checksum::of_transport(network)],
    }
}

/// Rewrites a field. Returns whether the frame has it.
pub(crate) fn edit(frame: &mut [u8], edit: &Edit) -> bool {
    let dissected = dissect(frame);
    let (header, place, size) = edit.field.place();
    let Some(start) = header_start(header, &dissected) else { return false };
    // The kernel has taken the outer tag out of the frame, so its EtherType is what follows the tag.
    let behind_tag = if header == Header::Eth && place == TAG && is_tagged(frame) { 4 } else { 0 };
    let at = start + place + behind_tag;
    let Some(old) = frame.get(at..at + size) else { return false };
    let new = changed(old, &edit.change);
    let checks = checks_over(header, place, dissected.network.as_ref());
    checksum::write(frame, start, at, &new, &checks);
    true
}

fn changed(old: &[u8], change: &Change) -> Vec<u8> {
    match change {
        Change::Set { value, mask } => {
            let bytes = old.iter().zip(value.iter().zip(mask));
            bytes.map(|(old, (value, mask))| old & !mask | value & mask).collect()
        }
        Change::Add(value) => {
            let number = old.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
            let bytes = number.wrapping_add(*value).to_be_bytes();
            bytes[bytes.len() - old.len().min(4)..].to_vec()
        }
    }
}

/// What became of a time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ttl {
    Decremented,
    Expired,
    Absent,
}

/// Decrements the time to live or the hop limit, unless it is 0 or 1.
pub(crate) fn decrement_ttl(frame: &mut [u8]) -> Ttl {
    let Some(network) = dissect(frame).network else { return Ttl::Absent };
    let (header, place) = if network.version == 4 { (Header::Ip4, 8) } else { (Header::Ip6, 7) };
    let at = network.offset + place;
    match frame[at] {
        0 | 1 => Ttl::Expired,
        ttl => {
            let checks = checks_over(header, place, Some(&network));
            checksum::write(frame, network.offset, at, &[ttl - 1], &checks);
            Ttl::Decremented
        }
    }
}

/// Computes checksums anew, of what the frame has (`tcf_csum_act`).
pub(crate) fn compute_checksums(frame: &mut [u8], which: Csum) {
    let Some(network) = dissect(frame).network else { return };
    let wanted = match network.protocol {
        protocol::TCP => which.has(Csum::TCP),
        protocol::UDP => which.has(Csum::UDP),
        protocol::ICMP | protocol::ICMPV6 => which.has(Csum::ICMP),
        _ => false,
    };
    if wanted {
        checksum::compute_transport(frame, &network);
    }
    if which.has(Csum::IP4_HEADER) {
        checksum::compute_header(frame, &network);
    }
}
