//! Descriptors in requests. The kernel looks them up in the process that sends to it, which is the lab's.
//!
//! `ip link set … netns NAME` names a namespace by a descriptor of the program. It is copied into this process, and the
//! copy's number replaces the program's in the message; the copy is kept until the kernel has read the message.

use std::borrow::Cow;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink::tc::RTM_NEWTFILTER;
use netlink::{HEADER, Message, overwrite};

use crate::process;

/// A step into a message: an attribute's type, and how many bytes its payload has before its own
/// attributes.
type Step = (u16, usize);

/// Where messages of some types have a descriptor: the length of the family's header, and the nested attributes.
struct Position {
    types: std::ops::RangeInclusive<u16>,
    header: usize,
    path: &'static [Step],
}

const LINK: std::ops::RangeInclusive<u16> = 16..=19;
const POSITIONS: [Position; 5] = [
    // IFLA_NET_NS_FD.
    Position { types: LINK, header: 16, path: &[(28, 0)] },
    // The same of a veth's peer: IFLA_LINKINFO, IFLA_INFO_DATA, VETH_INFO_PEER with an ifinfomsg.
    Position { types: LINK, header: 16, path: &[(18, 0), (2, 0), (1, 16), (28, 0)] },
    // IFLA_XDP, IFLA_XDP_FD.
    Position { types: LINK, header: 16, path: &[(43, 0), (1, 0)] },
    // RTM_NEWNSID, RTM_DELNSID, RTM_GETNSID: NETNSA_FD.
    Position { types: 88..=90, header: 4, path: &[(3, 0)] },
    // RTM_NEWTFILTER of kind `bpf`: TCA_OPTIONS, TCA_BPF_FD.
    Position { types: RTM_NEWTFILTER..=RTM_NEWTFILTER, header: 20, path: &[(2, 0), (6, 0)] },
];

/// The offsets of the descriptors in a message, and their numbers.
fn positions(message: &Message<'_>) -> impl Iterator<Item = (usize, u32)> {
    POSITIONS.iter().filter(|position| position.types.contains(&message.header.kind)).filter_map(move |position| {
        let applies = match position.path.len() {
            4 => is_veth(message),
            _ => message.header.kind != RTM_NEWTFILTER || is_bpf(message),
        };
        find(message.bytes(), HEADER + position.header, position.path).filter(|_| applies)
    })
}

/// Whether a message has a descriptor in it.
pub(super) fn are_in(message: &Message<'_>) -> bool {
    positions(message).next().is_some()
}

/// The message with the numbers of this process, and the descriptors, which must be kept until it is sent.
pub(super) fn translated<'a>(message: &Message<'a>, sender: u32) -> (Cow<'a, [u8]>, Vec<OwnedFd>) {
    let mut bytes = Cow::Borrowed(message.bytes());
    let mut held = Vec::new();
    for (at, number) in positions(message) {
        // A number that is no descriptor of the program becomes -1, which the kernel refuses.
        let fd = process::take_fd(sender, number);
        let new = fd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        held.extend(fd);
        overwrite(bytes.to_mut(), at, &new.to_ne_bytes());
    }
    (bytes, held)
}

/// The offset of the number that is reached from `start` by `path`, and the number.
fn find(bytes: &[u8], start: usize, path: &[Step]) -> Option<(usize, u32)> {
    let ((kind, skip), rest) = path.split_first()?;
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
    fn the_descriptor_that_the_kernel_uses_is_translated() {
        // Given a request with two descriptors, of which the kernel uses the second,
        let bytes = netlink::message(Header::new(16, Flags::REQUEST, 0, 0), |to| {
            to.raw(&[0; 16]).u32(28, 5).u32(28, 7);
        });
        let bytes = bytes.unwrap();
        // when it is passed on for a process that has no such descriptor, then the kernel gets none of this process's.
        let (translated, _) = translated(&messages(&bytes).next().unwrap(), 0);
        assert_eq!(find(&translated, 32, POSITIONS[0].path).map(|(_, number)| number), Some(u32::MAX));
        assert_eq!(netlink::find(&translated[32..], 28).unwrap().u32(), Some(u32::MAX));
    }

    #[test]
    fn a_descriptor_is_found_in_nested_attributes() {
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
        assert_eq!(find(&bytes, 32, POSITIONS[0].path).unwrap().1, 5);
        assert_eq!(find(&bytes, 32, POSITIONS[1].path).unwrap().1, 77);
        assert_eq!(find(&bytes, 32, POSITIONS[2].path), None);
        // No process has the number 0, so no descriptor can be copied.
        let (translated, held) = translated(&message, 0);
        assert!(held.is_empty());
        assert_eq!(u32_at(&translated, find(&translated, 32, POSITIONS[1].path).unwrap().0), Some(u32::MAX));
        for len in 0..bytes.len() {
            let _ = find(&bytes[..len], 32, POSITIONS[1].path);
        }
    }
}
