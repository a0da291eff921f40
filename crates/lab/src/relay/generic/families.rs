//! Where the family `devlink` is: its numbers in the kernel, at the cards and for programs.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ::netlink::{
    Attribute, Awaited, Flags, GENL_HEADER, HEADER, Header, Message, Part, attributes, find, message, messages,
    overwrite,
};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};

use super::connections::Connections;
use super::{CTRL, DEVLINK, FAMILY_ID, FAMILY_NAME, GETFAMILY};
use crate::cards::Cards;
use crate::relay::ROOM;

const MCAST_GROUPS: u16 = 7;
const MCAST_GRP_ID: u16 = 2;
/// Where we look for a number of ours, downwards: the kernel gives out from the other end.
const HIGHEST: u16 = 0x3f0;

/// How long a card may take to say what it calls the family.
const PATIENCE: Duration = Duration::from_secs(5);

/// The family as programs see it.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    pub(super) id: u16,
    /// Its first multicast group; the others follow.
    group: u32,
    groups: u32,
    /// It is the kernel's own: what `nlctrl` says of it comes from there.
    pub(super) kernel: bool,
    /// Else what `nlctrl` says of it: a message.
    pub(super) answer: Vec<u8>,
}

/// What is known of the family, for all sockets of a lab.
#[derive(Default)]
pub(crate) struct Families {
    ours: OnceLock<Family>,
    /// The number a card's server has given it, by the card's number.
    theirs: Mutex<HashMap<usize, u16>>,
    looking: Mutex<()>,
    pub(super) connections: Connections,
}

impl Families {
    /// The family, once a card has been asked for it. `None`: there is no card that answers.
    pub fn devlink(&self, cards: &Cards) -> Option<&Family> {
        if let Some(family) = self.ours.get() {
            return Some(family);
        }
        let _one = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ours.get().is_none() {
            let family = self.look(cards)?;
            let _ = self.ours.set(family);
        }
        self.ours.get()
    }

    /// Whether a multicast group is the family's, and not for the kernel alone.
    pub fn is_group(&self, cards: &Cards, group: u32) -> bool {
        self.devlink(cards).is_some_and(|f| (f.group..f.group + f.groups).contains(&group))
    }

    /// Whether the kernel has the family, too.
    pub fn in_kernel(&self) -> bool {
        self.ours.get().is_some_and(|family| family.kernel)
    }

    fn look(&self, cards: &Cards) -> Option<Family> {
        let known = kernel_families().unwrap_or_default();
        let answer = (0..cards.len()).find_map(|n| {
            let socket = cards.card(n)?.connect().ok()?;
            self.ask(n, &socket).ok()
        })?;
        if let Some(kernel) = known.iter().find(|family| family.name == DEVLINK) {
            let group = kernel.groups.first().copied().unwrap_or(0);
            let groups = kernel.groups.len() as u32;
            return Some(Family { id: kernel.id, group, groups, kernel: true, answer });
        }
        let id = (CTRL..HIGHEST).rev().find(|id| known.iter().all(|family| family.id != *id))?;
        let group = known.iter().flat_map(|family| &family.groups).max().map_or(0, |most| *most);
        // Far from the next one that the kernel will give out.
        let group = group.max(u32::from(HIGHEST)) + 1;
        let mut answer = answer;
        let groups = renumber(&mut answer, id, group);
        Some(Family { id, group, groups, kernel: false, answer })
    }

    /// The number that a card's server has given the family.
    pub(super) fn of_card(&self, n: usize, socket: &OwnedFd) -> io::Result<u16> {
        let known = self.theirs.lock().unwrap_or_else(PoisonError::into_inner).get(&n).copied();
        match known {
            Some(id) => Ok(id),
            None => {
                self.ask(n, socket)?;
                let theirs = self.theirs.lock().unwrap_or_else(PoisonError::into_inner);
                theirs.get(&n).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }

    /// Asks a card's server for the family: the answer, as a message.
    fn ask(&self, n: usize, socket: &OwnedFd) -> io::Result<Vec<u8>> {
        let request = message(Header::new(CTRL, Flags::REQUEST, 0, 0), |to| {
            to.genl(GETFAMILY, 1).text(FAMILY_NAME, DEVLINK);
        });
        send(socket, &request?, SendFlags::NOSIGNAL)?;
        // Others wait for the same answer: a card that gives none is as good as gone.
        set_socket_timeout(socket, Timeout::Recv, Some(PATIENCE))?;
        let mut buffer = vec![0; ROOM];
        let (_, len) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
        let message = messages(&buffer[..len.min(ROOM)]).next().ok_or(io::ErrorKind::InvalidData)?;
        let family = KernelFamily::of(&message).ok_or(io::ErrorKind::InvalidData)?;
        self.theirs.lock().unwrap_or_else(PoisonError::into_inner).insert(n, family.id);
        Ok(message.bytes().to_vec())
    }
}

/// Gives a message of `nlctrl` our numbers; how many groups it has.
fn renumber(message: &mut [u8], id: u16, group: u32) -> u32 {
    let start = HEADER + GENL_HEADER;
    let Some(said) = message.get(start..).map(<[u8]>::to_vec) else { return 0 };
    let mut groups = 0;
    for attribute in attributes(&said).flatten() {
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

struct KernelFamily {
    name: String,
    id: u16,
    groups: Vec<u32>,
}

impl KernelFamily {
    fn of(message: &Message<'_>) -> Option<Self> {
        let said = message.after(GENL_HEADER).filter(|_| message.header.kind == CTRL)?;
        let groups = find(said, MCAST_GROUPS).map_or(&[][..], |groups| groups.value);
        let group = |entry: Attribute<'_>| find(entry.value, MCAST_GRP_ID)?.leading_u32();
        Some(Self {
            name: find(said, FAMILY_NAME)?.string()?.to_owned(),
            id: find(said, FAMILY_ID)?.leading_u16()?,
            groups: attributes(groups).flatten().filter_map(group).collect(),
        })
    }
}

/// Every family of the kernel.
fn kernel_families() -> io::Result<Vec<KernelFamily>> {
    let protocol = Some(rustix::net::netlink::GENERIC);
    let family = rustix::net::AddressFamily::NETLINK;
    let socket = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    let header = Header::new(CTRL, Flags::REQUEST | Flags::DUMP, 1, 0);
    let request = message(header, |to| {
        to.genl(GETFAMILY, 1);
    });
    send(&socket, &request?, SendFlags::empty())?;
    let mut awaited = Awaited::new(header.sequence);
    let (mut families, mut buffer) = (Vec::new(), vec![0; ROOM]);
    loop {
        let (_, len) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        for message in messages(&buffer[..len]) {
            match awaited.read(message) {
                Part::Data(message) => families.extend(KernelFamily::of(&message)),
                Part::End(_) => return Ok(families),
                Part::Other => {}
            }
        }
    }
}
