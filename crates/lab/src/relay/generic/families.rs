//! The generic netlink families `devlink` and `psample`: their numbers for programs, in the kernel, and at each card's server.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

use ::netlink::{
    Attribute, Awaited, Flags, GENL_HEADER, HEADER, Header, Message, Part, attributes, find, message, messages,
    overwrite,
};
use lockdep::{LockBefore, Locked, Mutex};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};

use super::connections::Connections;
use super::psample::Psample;
use super::{CTRL, DEVLINK, FAMILY_ID, FAMILY_NAME, GETFAMILY};
use crate::cards::Cards;
use crate::ethtool::{self, HW_TC};
use crate::lock_order::{CardFamilies, FamilyLookup};
use crate::relay::ROOM;

/// The version of `nlctrl` itself.
pub(super) const CTRL_VERSION: u8 = 2;
const MCAST_GROUPS: u16 = 7;
const MCAST_GRP_ID: u16 = 2;
/// The number from which a free one is searched for, downwards. The kernel assigns numbers upwards from
/// `GENL_MIN_ID`.
const HIGHEST: u16 = 0x3f0;

/// How long a card's server may take to answer with its number of the family.
const PATIENCE: Duration = Duration::from_secs(5);

/// The family as programs see it.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    pub(super) id: u16,
    /// The number of its first multicast group; the others follow.
    group: u32,
    groups: u32,
    /// Whether the kernel has the family too. Then the kernel answers what programs request of `nlctrl` about it.
    pub(super) in_kernel: bool,
    /// Else the answer of `nlctrl`, as a message.
    pub(super) answer: Vec<u8>,
}

/// What the lab knows of the family, for all sockets.
pub(crate) struct Families {
    family: OnceLock<Family>,
    /// The number that each card's server has given the family, by the card's index.
    at_cards: Mutex<CardFamilies, HashMap<usize, u16>>,
    lookup: Mutex<FamilyLookup, ()>,
    ethtool: OnceLock<Option<EthtoolFamily>>,
    psample: OnceLock<Option<Psample>>,
    pub(super) connections: Connections,
}

impl Default for Families {
    fn default() -> Self {
        Self {
            family: OnceLock::new(),
            at_cards: Mutex::new(HashMap::new()),
            lookup: Mutex::new(()),
            ethtool: OnceLock::new(),
            psample: OnceLock::new(),
            connections: Connections::default(),
        }
    }
}

impl Families {
    /// The family. The first caller requests it from a card; the others wait. `None`: no card answers.
    pub fn devlink<L>(&self, cx: &mut Locked<'_, L>, cards: &Cards) -> Option<&Family>
    where
        L: LockBefore<FamilyLookup>,
    {
        if let Some(family) = self.family.get() {
            return Some(family);
        }
        let (_one_at_a_time, mut cx) = self.lookup.lock(cx);
        if self.family.get().is_none() {
            let family = self.look_up(&mut cx, cards)?;
            let _ = self.family.set(family);
        }
        self.family.get()
    }

    /// The kernel's family `ethtool`. `None`: the kernel has none.
    pub fn ethtool(&self) -> Option<EthtoolFamily> {
        *self.ethtool.get_or_init(|| {
            let families = kernel_families().ok()?;
            let KernelFamily { id, groups, .. } = families.iter().find(|family| family.name == "ethtool")?;
            let monitor = groups.first().copied().unwrap_or(0);
            Some(EthtoolFamily { id: *id, monitor, hw_tc: feature_bit(*id, HW_TC).ok().flatten()? })
        })
    }

    /// The same, unless nothing has been sent to the family yet.
    pub fn ethtool_if_known(&self) -> Option<EthtoolFamily> {
        self.ethtool.get().copied().flatten()
    }

    /// The family `psample`. Which one it is, the kernel's or the lab's, is decided by the first call. `None`: no number is
    /// free.
    pub fn psample(&self) -> Option<Psample> {
        *self.psample.get_or_init(|| Psample::of(&kernel_families().ok()?))
    }

    /// The family `psample` if that is this number.
    pub fn psample_at(&self, number: u16) -> Option<Psample> {
        // A program has learned the number from the lab.
        self.psample.get().copied().flatten().filter(|family| family.id == number)
    }

    /// Whether a multicast group belongs to devlink.
    pub fn is_group<L>(&self, cx: &mut Locked<'_, L>, cards: &Cards, group: u32) -> bool
    where
        L: LockBefore<FamilyLookup>,
    {
        self.devlink(cx, cards).is_some_and(|f| (f.group..f.group + f.groups).contains(&group))
    }

    /// Whether programs have learned this number as devlink's.
    pub fn is_devlink(&self, number: u16) -> bool {
        self.family.get().is_some_and(|family| family.id == number)
    }

    /// Whether the kernel has the family too.
    pub fn is_in_kernel(&self) -> bool {
        self.family.get().is_some_and(|family| family.in_kernel)
    }

    fn look_up(&self, cx: &mut Locked<'_, FamilyLookup>, cards: &Cards) -> Option<Family> {
        let kernel_families = kernel_families().unwrap_or_default();
        let answer = (0..cards.len()).find_map(|n| {
            let socket = cards.card(n)?.connect().ok()?;
            self.request_family(cx, n, &socket).ok()
        })?;
        if let Some(kernel) = kernel_families.iter().find(|family| family.name == DEVLINK) {
            let group = kernel.groups.first().copied().unwrap_or(0);
            let groups = kernel.groups.len() as u32;
            return Some(Family { id: kernel.id, group, groups, in_kernel: true, answer });
        }
        let (mut ids, group) = free_numbers(&kernel_families);
        let id = ids.next()?;
        let mut answer = answer;
        let groups = renumber(&mut answer, id, group);
        Some(Family { id, group, groups, in_kernel: false, answer })
    }

    /// The number that the server of card `n` has given the family. `socket`: a connection to it.
    pub(super) fn number_at_card<L>(&self, cx: &mut Locked<'_, L>, n: usize, socket: &OwnedFd) -> io::Result<u16> {
        let known = self.at_cards.lock_leaf(cx).get(&n).copied();
        match known {
            Some(id) => Ok(id),
            None => {
                self.request_family(cx, n, socket)?;
                self.at_cards.lock_leaf(cx).get(&n).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }

    /// Requests the family from the server of card `n`, and stores its number. Returns the answer, a message.
    fn request_family<L>(&self, cx: &mut Locked<'_, L>, n: usize, socket: &OwnedFd) -> io::Result<Vec<u8>> {
        let request = message(Header::new(CTRL, Flags::REQUEST, 0, 0), |to| {
            to.genl(GETFAMILY, 1).text(FAMILY_NAME, DEVLINK);
        });
        send(socket, &request?, SendFlags::NOSIGNAL)?;
        // Other threads wait for the same answer, so a card that gives none counts as gone.
        set_socket_timeout(socket, Timeout::Recv, Some(PATIENCE))?;
        let mut buffer = vec![0; ROOM];
        let (_, len) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
        let message = messages(&buffer[..len.min(ROOM)]).next().ok_or(io::ErrorKind::InvalidData)?;
        let family = KernelFamily::of(&message).ok_or(io::ErrorKind::InvalidData)?;
        self.at_cards.lock_leaf(cx).insert(n, family.id);
        Ok(message.bytes().to_vec())
    }
}

/// The numbers that no family of the kernel has, in the order in which the lab uses them, and the first of many that no
/// multicast group has. Both are far from the next ones that the kernel will assign.
pub(super) fn free_numbers(kernel: &[KernelFamily]) -> (impl Iterator<Item = u16>, u32) {
    let ids = (CTRL..HIGHEST).rev().filter(|id| kernel.iter().all(|family| family.id != *id));
    let group = kernel.iter().flat_map(|family| &family.groups).max().map_or(0, |most| *most);
    (ids, group.max(u32::from(HIGHEST)) + 1)
}

/// Puts the lab's numbers into an answer of `nlctrl`: that of the family, and those of its groups from `group` on.
/// Returns how many groups the family has.
fn renumber(message: &mut [u8], id: u16, group: u32) -> u32 {
    let start = HEADER + GENL_HEADER;
    let Some(content) = message.get(start..).map(<[u8]>::to_vec) else { return 0 };
    let mut groups = 0;
    for attribute in attributes(&content).flatten() {
        let at = start + attribute.value_offset();
        match attribute.kind {
            FAMILY_ID => {
                overwrite(message, at, &id.to_ne_bytes());
            }
            MCAST_GROUPS => {
                for entry in attribute.nested().flatten() {
                    if let Some(found) = find(entry.value, MCAST_GRP_ID) {
                        let at = at + entry.value_offset() + found.value_offset();
                        overwrite(message, at, &(group + groups).to_ne_bytes());
                        groups += 1;
                    }
                }
            }
            _ => {}
        }
    }
    groups
}

/// The family `ethtool`, as the kernel has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EthtoolFamily {
    pub id: u16,
    /// The number of its multicast group `monitor`, its only one.
    pub monitor: u32,
    /// The number of the feature NETIF_F_HW_TC, which differs between kernels.
    pub hw_tc: u32,
}

/// The number of a feature, which ethtool knows by its name.
fn feature_bit(family: u16, feature: &str) -> io::Result<Option<u32>> {
    const STRINGSETS: u16 = 2;
    const STRINGSET: u16 = 1;
    // ETHTOOL_A_STRINGSET_ID and ETHTOOL_A_STRINGSET_STRINGS.
    const ID: u16 = 1;
    const STRINGS: u16 = 3;
    let header = Header::new(family, Flags::REQUEST | Flags::ACK, 1, 0);
    let request = message(header, |to| {
        to.genl(ethtool::message::STRSET_GET, 1).nest(1, |_| {}).nest(STRINGSETS, |sets| {
            sets.nest(STRINGSET, |set| {
                set.u32(ID, ethtool::SS_FEATURES);
            });
        });
    })?;
    let mut bit = None;
    of_kernel(&request, header.sequence, |message| {
        let sets = message.after(GENL_HEADER).and_then(|content| find(content, STRINGSETS));
        let set = sets.and_then(|sets| find(sets.value, STRINGSET));
        let Some(strings) = set.and_then(|set| find(set.value, STRINGS)) else { return };
        let is = |string: &Attribute<'_>| find(string.value, 2).and_then(|text| text.string()) == Some(feature);
        let found = strings.nested().flatten().find(is).and_then(|string| find(string.value, 1));
        bit = found.and_then(|index| index.leading_u32());
    })?;
    Ok(bit)
}

/// A family as `nlctrl` describes it.
pub(super) struct KernelFamily {
    pub(super) name: String,
    pub(super) id: u16,
    pub(super) groups: Vec<u32>,
}

impl KernelFamily {
    fn of(message: &Message<'_>) -> Option<Self> {
        let content = message.after(GENL_HEADER).filter(|_| message.header.kind == CTRL)?;
        let groups = find(content, MCAST_GROUPS).map_or(&[][..], |groups| groups.value);
        let group = |entry: Attribute<'_>| find(entry.value, MCAST_GRP_ID)?.leading_u32();
        Some(Self {
            name: find(content, FAMILY_NAME)?.string()?.to_owned(),
            id: find(content, FAMILY_ID)?.leading_u16()?,
            groups: attributes(groups).flatten().filter_map(group).collect(),
        })
    }
}

/// Every generic netlink family of the kernel.
fn kernel_families() -> io::Result<Vec<KernelFamily>> {
    let header = Header::new(CTRL, Flags::REQUEST | Flags::DUMP, 1, 0);
    let request = message(header, |to| {
        to.genl(GETFAMILY, 1);
    })?;
    let mut families = Vec::new();
    of_kernel(&request, header.sequence, |message| families.extend(KernelFamily::of(message)))?;
    Ok(families)
}

/// Sends the kernel a request of a sequence number, and takes each message of the answer.
fn of_kernel(request: &[u8], sequence: u32, mut take: impl FnMut(&Message<'_>)) -> io::Result<()> {
    let protocol = Some(rustix::net::netlink::GENERIC);
    let family = rustix::net::AddressFamily::NETLINK;
    let socket = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    send(&socket, request, SendFlags::empty())?;
    let mut awaited = Awaited::new(sequence);
    let mut buffer = vec![0; ROOM];
    loop {
        let (_, len) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        for message in messages(&buffer[..len]) {
            match awaited.read(message) {
                Part::Data(message) => take(&message),
                Part::End(_) => return Ok(()),
                Part::Other => {}
            }
        }
    }
}
