//! The generic netlink family `psample`: the samples that a card's flow rules take, and the groups of the filters that take them.
//!
//! If the kernel has the family, it answers what it knows, and the cards' groups and samples are added. Otherwise programs see a
//! family of the lab.
//!
//! As `net/psample/psample.c` and mlx5's `en/tc/sample.c`: a sample is published where the card's netdevs appear, whichever
//! namespace its filter is in, and says by IIFINDEX at which representor the frame came in.

use ::netlink::{BuildError, Builder, Errno, Flags, GENL_HEADER, HEADER, Header, Message, find, message};
use devlink::numbers::control;
use devlink::{ESWITCH, SAMPLE_GROUPS_GROUP, SAMPLES_GROUP, Sample, SampleGroup, eswitch_family};
use flow::Port;

use super::families::{CTRL_VERSION, KernelFamily, free_numbers};
use super::{CTRL, FAMILY_ID, FAMILY_NAME, GETFAMILY};
use crate::lock_order::Cx;
use crate::network::{NetworkId, Peer};
use crate::relay::{Relay, tc};

pub(super) const NAME: &str = "psample";
const VERSION: u8 = 1;

/// PSAMPLE_CMD_*.
mod command {
    pub const SAMPLE: u8 = 0;
    pub const GET_GROUP: u8 = 1;
    pub const NEW_GROUP: u8 = 2;
    pub const DEL_GROUP: u8 = 3;
}

/// PSAMPLE_ATTR_*.
mod attribute {
    pub const IIFINDEX: u16 = 0;
    pub const ORIGSIZE: u16 = 2;
    pub const SAMPLE_GROUP: u16 = 3;
    pub const GROUP_SEQ: u16 = 4;
    pub const SAMPLE_RATE: u16 = 5;
    pub const DATA: u16 = 6;
    pub const GROUP_REFCOUNT: u16 = 7;
    pub const TIMESTAMP: u16 = 13;
    pub const PROTO: u16 = 14;
    /// PSAMPLE_ATTR_MAX.
    pub const MAX: u32 = 15;
}

/// The names of its multicast groups, in their order.
const CONFIG: &str = "config";
const PACKETS: &str = "packets";

/// The family as programs see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Psample {
    pub(super) id: u16,
    /// The numbers of its multicast groups.
    config: u32,
    packets: u32,
    /// Whether the kernel has it, too.
    pub in_kernel: bool,
}

impl Psample {
    /// The kernel's, or one with numbers that no family has.
    pub(super) fn of(kernel: &[KernelFamily]) -> Option<Self> {
        if let Some(found) = kernel.iter().find(|family| family.name == NAME) {
            let &[config, packets, ..] = &found.groups[..] else { return None };
            return Some(Self { id: found.id, config, packets, in_kernel: true });
        }
        // The first free number is for devlink.
        let (mut ids, group) = free_numbers(kernel);
        let id = ids.nth(1)?;
        /// More groups than devlink has.
        const BEHIND_DEVLINK: u32 = 16;
        let config = group + BEHIND_DEVLINK;
        Some(Self { id, config, packets: config + 1, in_kernel: false })
    }

    /// The control socket's number of a multicast group, if that is one of the family.
    pub fn group_at_card(&self, group: u32) -> Option<u32> {
        match group {
            _ if group == self.config => Some(SAMPLE_GROUPS_GROUP),
            _ if group == self.packets => Some(SAMPLES_GROUP),
            _ => None,
        }
    }

    /// Whether only those may join a group that have CAP_NET_ADMIN (GENL_MCAST_CAP_NET_ADMIN).
    pub fn takes_admin(&self, group: u32) -> bool {
        group == self.packets
    }

    /// What `nlctrl` says of the family.
    pub(super) fn describe(&self, header: Header) -> Result<Vec<u8>, BuildError> {
        message(Header { kind: CTRL, ..header }, |to| {
            to.genl(control::NEWFAMILY, CTRL_VERSION);
            to.text(FAMILY_NAME, NAME).u16(FAMILY_ID, self.id);
            to.u32(control::VERSION, VERSION.into()).u32(control::HEADER_SIZE, 0);
            to.u32(control::MAX_ATTRIBUTE, attribute::MAX);
            to.nest(control::OPERATIONS, |to| {
                to.nest_noflag(1, |to| {
                    to.u32(control::OPERATION_ID, command::GET_GROUP.into());
                    to.u32(control::OPERATION_FLAGS, control::CAN_DUMP);
                });
            });
            to.nest(control::GROUPS, |to| {
                for (at, (name, id)) in (1u16..).zip([(CONFIG, self.config), (PACKETS, self.packets)]) {
                    to.nest_noflag(at, |to| {
                        to.u32(control::GROUP_ID, id).text(control::GROUP_NAME, name);
                    });
                }
            });
        })
    }

    /// Whether a request to `nlctrl` is about the family.
    pub(super) fn is_named(&self, content: &[u8]) -> bool {
        let id = find(content, FAMILY_ID).and_then(|id| id.leading_u16());
        let name = find(content, FAMILY_NAME);
        match id {
            Some(id) => id == self.id,
            None => name.and_then(|name| name.string()) == Some(NAME),
        }
    }

    /// Whether `nlctrl` describes the kernel's family of this name, which has come after the lab had taken numbers for its own.
    pub(super) fn hides(&self, message: &Message<'_>) -> bool {
        let content = message.after(GENL_HEADER).filter(|_| message.header.kind == CTRL && !self.in_kernel);
        content.and_then(|content| find(content, FAMILY_NAME)?.string()) == Some(NAME)
    }

    /// Answers a request to `nlctrl` about the family of the lab.
    pub(super) fn answer_control(&self, cx: Cx<'_, '_>, relay: &mut Relay, request: &Message<'_>) {
        let Header { sequence, .. } = request.header;
        let port = relay.socket.port_to_send_from(cx);
        if request.payload().first() != Some(&GETFAMILY) {
            // No command of the family has a policy (`ctrl_dumppolicy_start`), and there is no policy without a dump.
            let errno = if request.header.is_dump() { Errno::NODATA } else { Errno::OPNOTSUPP };
            return relay.acknowledge(cx, request, Err(errno), |_| {});
        }
        if let Ok(described) = self.describe(Header::new(CTRL, Flags::empty(), sequence, port)) {
            relay.send_message(&described);
        }
        if request.header.flags.contains(Flags::ACK) {
            relay.acknowledge(cx, request, Ok(()), |_| {});
        }
    }

    /// Answers a request to the family of the lab (`genl_family_rcv_msg`): there is none but the dump of groups.
    pub(super) fn answer(&self, cx: Cx<'_, '_>, relay: &mut Relay, request: &Message<'_>) {
        if !is_dump_of_groups(request) {
            let errno = if request.genl().is_some() { Errno::OPNOTSUPP } else { Errno::INVAL };
            return relay.acknowledge(cx, request, Err(errno), |_| {});
        }
        match groups(relay) {
            Ok(groups) => {
                for group in groups {
                    if let Some(shown) = self.dumped(cx, relay, request.header.sequence, &group) {
                        relay.make_room(cx);
                        relay.send_message(&shown);
                    }
                }
                relay.end_dump(cx, request);
            }
            Err(errno) => relay.acknowledge(cx, request, Err(errno), |_| {}),
        }
    }

    /// A group as a dump shows it.
    pub(super) fn dumped(&self, cx: Cx<'_, '_>, relay: &Relay, sequence: u32, group: &SampleGroup) -> Option<Vec<u8>> {
        let port = relay.socket.port_to_send_from(cx);
        let header = Header::new(self.id, Flags::MULTI, sequence, port);
        message(header, |to| fill_group(to, command::NEW_GROUP, group)).ok()
    }

    /// Sends the program what a card has published of samples and groups.
    pub(super) fn publish(&self, cx: Cx<'_, '_>, relay: &mut Relay, card: usize, published: &[Message<'_>]) {
        let here =
            NetworkId::of_socket(&relay.socket.kernel).is_ok_and(|network| relay.cards.is_home_of(card, network));
        if !here {
            return;
        }
        let mut known: Vec<(Port, Option<u32>)> = Vec::new();
        for message in published {
            let Some((genl, content)) = message.genl() else { continue };
            let built = match genl.command {
                eswitch_family::SAMPLE => Sample::parse(content).and_then(|sample| {
                    let index = match known.iter().find(|(port, _)| *port == sample.port) {
                        Some((_, index)) => *index,
                        None => {
                            let index = index_of(cx, relay, card, sample.port);
                            known.push((sample.port, index));
                            index
                        }
                    };
                    self.sample(&sample, index)
                }),
                eswitch_family::NEW_SAMPLE_GROUP => self.event(command::NEW_GROUP, content),
                eswitch_family::DEL_SAMPLE_GROUP => self.event(command::DEL_GROUP, content),
                _ => None,
            };
            // Each is a datagram of its own, as in the kernel.
            if let Some(built) = built {
                relay.queue.push([&built[..]]);
            }
        }
    }

    /// A group that has begun or ended: it has no user yet, or none any more (`psample_group_notify`).
    fn event(&self, command: u8, content: &[u8]) -> Option<Vec<u8>> {
        let number = |kind| find(content, kind)?.leading_u32();
        let (group, sequence) = (number(eswitch_family::sample::GROUP)?, number(eswitch_family::sample::SEQUENCE)?);
        let header = Header::new(self.id, Flags::MULTI, 0, 0);
        message(header, |to| fill_group(to, command, &SampleGroup { group, users: 0, sequence })).ok()
    }

    /// A sample (`psample_sample_packet`).
    fn sample(&self, sample: &Sample, index: Option<u32>) -> Option<Vec<u8>> {
        let built = message(Header::new(self.id, Flags::empty(), 0, 0), |to| {
            to.genl(command::SAMPLE, VERSION);
            if let Some(index) = index {
                // The kernel's attribute has 16 bits.
                to.u16(attribute::IIFINDEX, index as u16);
            }
            to.u32(attribute::SAMPLE_RATE, sample.rate).u32(attribute::ORIGSIZE, sample.length);
            to.u32(attribute::SAMPLE_GROUP, sample.group).u32(attribute::GROUP_SEQ, sample.sequence);
            to.u64(attribute::TIMESTAMP, sample.timestamp).u16(attribute::PROTO, protocol_of(&sample.frame));
            if !sample.frame.is_empty() {
                to.put(attribute::DATA, &sample.frame);
            }
        });
        built.ok()
    }
}

fn fill_group(to: &mut Builder, command: u8, group: &SampleGroup) {
    to.genl(command, VERSION).u32(attribute::SAMPLE_GROUP, group.group);
    to.u32(attribute::GROUP_REFCOUNT, group.users).u32(attribute::GROUP_SEQ, group.sequence);
}

/// Whether a request is the dump of groups. Its attributes are not looked at (GENL_DONT_VALIDATE_DUMP).
pub(super) fn is_dump_of_groups(request: &Message<'_>) -> bool {
    request.header.is_dump() && request.genl().is_some_and(|(genl, _)| genl.command == command::GET_GROUP)
}

/// The number of the group that a message of a dump is about.
pub(super) fn group_in(message: &Message<'_>) -> Option<u32> {
    find(message.after(GENL_HEADER)?, attribute::SAMPLE_GROUP)?.leading_u32()
}

/// Whether a datagram of a card is about samples: the card's other notifications are devlink's.
pub(super) fn is_published(message: &Message<'_>) -> bool {
    message.header.kind == ESWITCH && message.bytes().len() >= HEADER + GENL_HEADER
}

/// The groups of the cards whose netdevs appear in the network namespace of a socket.
///
/// # Errors
/// No card answers.
pub(super) fn groups(relay: &Relay) -> Result<Vec<SampleGroup>, Errno> {
    let Ok(network) = NetworkId::of_socket(&relay.socket.kernel) else { return Ok(Vec::new()) };
    let here = (0..relay.cards.len()).filter(|card| relay.cards.is_home_of(*card, network));
    let cards: Vec<usize> = here.collect();
    let (mut all, mut failed): (Vec<SampleGroup>, _) = (Vec::new(), None);
    let mut has_answered = cards.is_empty();
    for card in cards {
        match relay.cards.card(card).map(|card| card.sample_groups()) {
            Some(Ok(groups)) => {
                has_answered = true;
                for group in groups {
                    match all.iter_mut().find(|known| known.group == group.group) {
                        Some(known) => {
                            known.users = known.users.saturating_add(group.users);
                            known.sequence = known.sequence.max(group.sequence);
                        }
                        None => all.push(group),
                    }
                }
            }
            Some(Err(refusal)) => failed = Some(refusal.errno),
            None => {}
        }
    }
    if has_answered { Ok(all) } else { Err(failed.unwrap_or(Errno::NODEV)) }
}

/// The interface index of the netdev of a card's port, in the network namespace of a socket. `None`: it is not there.
fn index_of(cx: Cx<'_, '_>, relay: &Relay, card: usize, port: Port) -> Option<u32> {
    let views = relay.cards.now(cx);
    let netdev = views.view(card)?.card.netdevs.iter().find(|netdev| tc::port_of(netdev) == Some(port))?;
    let peer = Peer { card, index: netdev.peer? };
    relay.network(cx)?.look(cx, &relay.cards, |table| Some(table.netdev(peer)?.0))
}

/// The protocol that the kernel gives a frame which it receives (`eth_type_trans`).
fn protocol_of(frame: &[u8]) -> u16 {
    /// ETH_P_802_3_MIN, ETH_P_802_3 and ETH_P_802_2.
    const LEAST: u16 = 0x600;
    const RAW: u16 = 1;
    const LLC: u16 = 4;
    let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    match word(12) {
        Some(protocol) if protocol >= LEAST => protocol,
        Some(_) if word(14) == Some(0xffff) => RAW,
        _ => LLC,
    }
}

#[cfg(test)]
mod tests {
    use ::netlink::attributes;

    use super::*;

    #[test]
    fn a_sample_has_the_attributes_of_the_kernel_in_its_order() {
        let family = Psample { id: 40, config: 7, packets: 8, in_kernel: false };
        let frame = [&[2; 12][..], &[0x81, 0, 0, 9, 8, 0, 0x45]].concat();
        let sample = Sample { port: Port(1), group: 7, sequence: 3, rate: 10, length: 98, timestamp: 5, frame };
        let bytes = family.sample(&sample, Some(0x1_0005)).unwrap();
        let message = Message::first(&bytes).unwrap();
        let Header { kind, flags, sequence, port, .. } = message.header;
        assert_eq!((kind, flags, sequence, port), (40, Flags::empty(), 0, 0));
        let (genl, content) = message.genl().unwrap();
        assert_eq!((genl.command, genl.version), (0, 1));
        let found: Vec<(u16, &[u8])> = attributes(content).flatten().map(|found| (found.kind, found.value)).collect();
        let [three, five, seven, ten, length] = [3u32, 5, 7, 10, 98].map(u32::to_ne_bytes);
        let (five_ns, index, vlan) = (5u64.to_ne_bytes(), 5u16.to_ne_bytes(), 0x8100u16.to_ne_bytes());
        assert_ne!(five, three);
        let wanted: [(u16, &[u8]); 8] = [
            (0, &index),
            (5, &ten),
            (2, &length),
            (3, &seven),
            (4, &three),
            (13, &five_ns),
            (14, &vlan),
            (6, &sample.frame),
        ];
        assert_eq!(found, wanted);
        // Of a sample without a byte of the frame, and without a netdev, the attributes are not there.
        let bytes = family.sample(&Sample { frame: Vec::new(), ..sample }, None).unwrap();
        let content = Message::first(&bytes).unwrap().genl().unwrap().1;
        assert_eq!(attributes(content).flatten().map(|found| found.kind).collect::<Vec<_>>(), [5, 2, 3, 4, 13, 14]);
    }

    #[test]
    fn the_protocol_of_a_frame_is_its_ethertype_or_what_stands_for_a_length() {
        let frame = |rest: &[u8]| [&[2; 12][..], rest].concat();
        assert_eq!(protocol_of(&frame(&[0x86, 0xdd, 0, 0])), 0x86dd);
        assert_eq!(protocol_of(&frame(&[0, 40, 0xff, 0xff])), 1);
        assert_eq!(protocol_of(&frame(&[0, 40, 0x42, 0x42])), 4);
        assert_eq!(protocol_of(&frame(&[])), 4);
    }

    #[test]
    fn the_family_has_numbers_that_nobody_has_or_those_of_the_kernel() {
        let family =
            |name: &str, id, groups: &[u32]| KernelFamily { name: name.to_owned(), id, groups: groups.to_vec() };
        let ours = Psample::of(&[family("nlctrl", 16, &[16]), family("ethtool", 21, &[5])]).unwrap();
        assert!(!ours.in_kernel && ours.id > 21 && ours.config > 16 && ours.packets == ours.config + 1);
        assert_eq!(ours.group_at_card(ours.config), Some(SAMPLE_GROUPS_GROUP));
        assert_eq!((ours.group_at_card(ours.packets), ours.group_at_card(5)), (Some(SAMPLES_GROUP), None));
        assert!(ours.takes_admin(ours.packets) && !ours.takes_admin(ours.config));
        let kernels = Psample::of(&[family("psample", 30, &[9, 10])]).unwrap();
        assert!(kernels.in_kernel);
        assert_eq!((kernels.id, kernels.config, kernels.packets), (30, 9, 10));
    }
}
