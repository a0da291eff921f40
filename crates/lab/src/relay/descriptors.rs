//! Descriptors in requests: the kernel looks them up in the process that sends, which is ours.
//!
//! `ip link set … netns NAME` names a namespace by a descriptor of its own. We take a copy of it and put our
//! number in its place for as long as it takes the kernel to read it.

use std::borrow::Cow;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink::tc::RTM_NEWTFILTER;
use netlink::{HEADER, Message, overwrite};

use crate::process;

/// A step into a message: an attribute's type, and how many bytes its payload has before its own
/// attributes.
type Step = (u16, usize);

/// Where messages of some types have descriptors: the length of the family's header, and the way.
struct Place {
    types: std::ops::RangeInclusive<u16>,
    header: usize,
    way: &'static [Step],
}

const LINK: std::ops::RangeInclusive<u16> = 16..=19;
const PLACES: [Place; 5] = [
    // IFLA_NET_NS_FD.
    Place { types: LINK, header: 16, way: &[(28, 0)] },
    // The same of a veth's peer: IFLA_LINKINFO, IFLA_INFO_DATA, VETH_INFO_PEER with an ifinfomsg.
    Place { types: LINK, header: 16, way: &[(18, 0), (2, 0), (1, 16), (28, 0)] },
    // IFLA_XDP, IFLA_XDP_FD.
    Place { types: LINK, header: 16, way: &[(43, 0), (1, 0)] },
    // RTM_NEWNSID and its like: NETNSA_FD.
    Place { types: 88..=90, header: 4, way: &[(3, 0)] },
    // RTM_NEWTFILTER of kind `bpf`: TCA_OPTIONS, TCA_BPF_FD.
    Place { types: RTM_NEWTFILTER..=RTM_NEWTFILTER, header: 20, way: &[(2, 0), (6, 0)] },
];

/// Where a message has descriptors, and their numbers.
fn places(message: &Message<'_>) -> impl Iterator<Item = (usize, u32)> {
    PLACES.iter().filter(|place| place.types.contains(&message.header.kind)).filter_map(move |place| {
        let applies = match place.way.len() {
            4 => is_veth(message),
            _ => message.header.kind != RTM_NEWTFILTER || is_bpf(message),
        };
        find(message.bytes(), HEADER + place.header, place.way).filter(|_| applies)
    })
}

/// Whether a message has any.
pub(super) fn are_in(message: &Message<'_>) -> bool {
    places(message).next().is_some()
}

/// The message with our numbers, and what they stand for: to be held until it is sent.
pub(super) fn ours<'a>(message: &Message<'a>, sender: u32) -> (Cow<'a, [u8]>, Vec<OwnedFd>) {
    let mut bytes = Cow::Borrowed(message.bytes());
    let mut held = Vec::new();
    for (at, number) in places(message) {
        // One that the program has not is none of ours either: the kernel says so.
        let fd = process::take_fd(sender, number);
        let new = fd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        held.extend(fd);
        overwrite(bytes.to_mut(), at, &new.to_ne_bytes());
    }
    (bytes, held)
}

/// Where the number is, and which.
fn find(bytes: &[u8], start: usize, way: &[Step]) -> Option<(usize, u32)> {
    let ((kind, skip), rest) = way.split_first()?;
    let found = netlink::find(bytes.get(start..)?, *kind)?;
    let value = start + found.value_offset();
    if rest.is_empty() {
        return Some((value, found.leading_u32()?));
    }
    find(bytes.get(..value + found.value.len())?, value + skip, rest)
}

fn is_bpf(message: &Message<'_>) -> bool {
    let attributes = message.after(20).unwrap_or_default();
    netlink::find(attributes, 1).and_then(|kind| kind.string()) == Some("bpf")
}

fn is_veth(message: &Message<'_>) -> bool {
    let attributes = message.after(16).unwrap_or_default();
    let info = netlink::find(attributes, 18).map_or(&[][..], |info| info.value);
    netlink::find(info, 1).and_then(|kind| kind.string()) == Some("veth")
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink::{Flags, Header, messages, u32_at};

    #[test]
    fn the_descriptor_that_the_kernel_takes_is_ours() {
        // Given a request with two descriptors, of which the kernel takes the second,
        let bytes = netlink::message(Header::new(16, Flags::REQUEST, 0, 0), |to| {
            to.raw(&[0; 16]).u32(28, 5).u32(28, 7);
        });
        let bytes = bytes.unwrap();
        // when it is passed on for a process that has none such, then what the kernel takes is none of this process's.
        let (ours, _) = ours(&messages(&bytes).next().unwrap(), 0);
        assert_eq!(find(&ours, 32, PLACES[0].way).map(|(_, number)| number), Some(u32::MAX));
        assert_eq!(netlink::find(&ours[32..], 28).unwrap().u32(), Some(u32::MAX));
    }

    #[test]
    fn a_descriptor_is_found_where_it_may_be() {
        let bytes = netlink::message(Header::new(16, Flags::REQUEST, 0, 0), |to| {
            to.raw(&[0; 16]).nest_noflag(18, |info| {
                info.text(1, "veth").nest_noflag(2, |data| {
                    data.nest_noflag(1, |peer| {
                        peer.raw(&[0; 16]).u32(28, 77);
                    });
                });
            });
            to.u32(28, 5);
        });
        let bytes = bytes.unwrap();
        let message = messages(&bytes).next().unwrap();
        assert!(is_veth(&message));
        assert_eq!(find(&bytes, 32, PLACES[0].way).unwrap().1, 5);
        assert_eq!(find(&bytes, 32, PLACES[1].way).unwrap().1, 77);
        assert_eq!(find(&bytes, 32, PLACES[2].way), None);
        // Numbers that no process of this test has.
        let (ours, held) = ours(&message, 0);
        assert!(held.is_empty());
        assert_eq!(u32_at(&ours, find(&ours, 32, PLACES[1].way).unwrap().0), Some(u32::MAX));
        for len in 0..bytes.len() {
            let _ = find(&bytes[..len], 32, PLACES[1].way);
        }
    }
}
