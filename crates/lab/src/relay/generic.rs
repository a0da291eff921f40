//! NETLINK_GENERIC: the kernel's families, and devlink, which is the cards'.
//!
//! The family has the kernel's number if the kernel has one, else one that no family of the kernel has.
//! Between here and a card's server it has the server's.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ::netlink::{
    Attribute, Awaited, Errno, Flags, GENL_HEADER, HEADER, Header, Message, NLMSG_DONE, NLMSG_MIN_TYPE, Part,
    attributes, errno_of, find, message, messages, nlmsgerr_attr, overwrite, rewrite, row,
};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};

use devlink::view::DeviceName;

use crate::cards::Cards;

use super::{Behind, Io, ROOM};

const DEVLINK: &str = "devlink";
/// The type of messages to and from `nlctrl`, and its commands and attributes.
const CTRL: u16 = 16;
const GETFAMILY: u8 = 3;
const GETPOLICY: u8 = 10;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const MCAST_GROUPS: u16 = 7;
const MCAST_GRP_ID: u16 = 2;
/// A device's address.
const BUS_NAME: u16 = 1;
const DEV_NAME: u16 = 2;
/// Where we look for a number of ours, downwards: the kernel gives out from the other end.
const HIGHEST: u16 = 0x3f0;

/// How long a card may take to say what it calls the family.
const PATIENCE: Duration = Duration::from_secs(5);

/// The family as programs see it.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    id: u16,
    /// Its first multicast group; the others follow.
    group: u32,
    groups: u32,
    /// It is the kernel's own: what `nlctrl` says of it comes from there.
    kernel: bool,
    /// Else what `nlctrl` says of it: a message.
    answer: Vec<u8>,
}

/// What is known of the family, for all sockets of a lab.
#[derive(Default)]
pub(crate) struct Families {
    ours: OnceLock<Family>,
    /// The number a card's server has given it, by the card's number.
    theirs: Mutex<HashMap<usize, u16>>,
    looking: Mutex<()>,
    connections: Connections,
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
    fn of_card(&self, n: usize, socket: &OwnedFd) -> io::Result<u16> {
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

/// Behind one socket.
pub(super) struct Generic {
    families: std::sync::Arc<Families>,
    /// Dumps of all families that the kernel has been asked for, and that are to have one more.
    dumps: Vec<u32>,
    buffer: Vec<u8>,
    /// Room for what the kernel says between two requests.
    drained: Vec<u8>,
}

/// Where a request goes.
enum To {
    Kernel,
    /// The program may not ask for it.
    Nobody,
    /// `nlctrl` is asked for the family.
    Family,
    /// `nlctrl` is asked for all families.
    Families,
    /// A card, or all of them.
    Card(usize),
    Cards,
}

/// How an answer ended.
struct End {
    result: Result<(), Errno>,
    /// The attributes of the extended acknowledgement.
    said: Vec<u8>,
}

impl End {
    fn bare(result: Result<(), Errno>) -> Self {
        Self { result, said: Vec::new() }
    }
}

/// Dumps that may be open at once on one socket; the kernel allows one.
const DUMPS: usize = 16;

impl Behind for Generic {
    fn request(&mut self, io: &mut Io, packet: &[u8]) {
        let mut kernel = std::mem::take(&mut self.drained);
        for message in messages(packet) {
            io.make_room();
            match self.destination(io, &message) {
                To::Nobody => self.tell_end(io, &message, End::bare(Err(Errno::PERM))),
                To::Kernel => io.pass_on(message.bytes()),
                To::Family => self.tell_family(io, &message),
                To::Families => {
                    if self.dumps.len() < DUMPS {
                        self.dumps.push(message.header.sequence);
                    }
                    io.pass_on(message.bytes());
                }
                To::Card(n) => self.ask_card(io, &message, n),
                To::Cards => self.ask_cards(io, &message),
            }
            io.drain(self, &mut kernel);
        }
        self.drained = kernel;
    }

    fn kernel(&mut self, io: &mut Io, datagram: &[u8]) {
        let port = io.shared.port();
        let mut family = None;
        let ended = |m: &Message<'_>| m.header.kind == NLMSG_DONE && self.dumps.contains(&m.header.sequence);
        if let Some(end) = messages(datagram).find(ended) {
            let sequence = end.header.sequence;
            self.dumps.retain(|dump| *dump != sequence);
            family = self.families.devlink(&io.cards).map(|f| addressed(&f.answer, Flags::MULTI, sequence, port));
        }
        // Before the end of the dump, which is the last message.
        let messages = messages(datagram).flat_map(|message| {
            let before = if message.header.kind == NLMSG_DONE { family.as_deref() } else { None };
            [before, Some(message.bytes())].into_iter().flatten()
        });
        io.queue.push(messages);
    }

    fn notification(&mut self, io: &mut Io, datagram: &[u8]) {
        let Some(family) = self.families.devlink(&io.cards) else { return };
        for message in messages(datagram).filter(|m| m.header.kind >= NLMSG_MIN_TYPE) {
            let mut bytes = message.bytes().to_vec();
            rewrite(&mut bytes, |header| (header.kind, header.port) = (family.id, 0));
            io.queue.push([&bytes[..]]);
        }
    }
}

/// A message with another header.
fn addressed(message: &[u8], flags: Flags, sequence: u32, port: u32) -> Vec<u8> {
    let mut bytes = message.to_vec();
    rewrite(&mut bytes, |header| *header = Header { flags, sequence, port, ..*header });
    bytes
}

impl Generic {
    pub fn new(families: std::sync::Arc<Families>) -> Self {
        Self { families, dumps: Vec::new(), buffer: vec![0; ROOM], drained: vec![0; ROOM] }
    }

    fn destination(&self, io: &Io, message: &Message<'_>) -> To {
        let Header { kind, .. } = message.header;
        let (Some(command), true) = (message.payload().first(), message.header.is_request()) else { return To::Kernel };
        // What neither is nor speaks of the family needs no card.
        if kind == CTRL && !matches!(*command, GETFAMILY | GETPOLICY) {
            return To::Kernel;
        }
        let Some(family) = self.families.devlink(&io.cards) else { return To::Kernel };
        let said = message.after(GENL_HEADER).unwrap_or_default();
        if kind == family.id {
            // As the kernel does it, before it looks at what the request says.
            if devlink::takes_admin(*command, message.header.is_dump()) && !io.may_administer() {
                return To::Nobody;
            }
            return self.device(io, family, message, said);
        }
        if kind != CTRL || family.kernel {
            return To::Kernel;
        }
        if *command == GETFAMILY && message.header.is_dump() {
            return To::Families;
        }
        let id = find(said, FAMILY_ID).and_then(|a| a.leading_u16());
        let name = find(said, FAMILY_NAME);
        let is_ours = id == Some(family.id) || name.and_then(|a| a.string()) == Some(DEVLINK);
        match (is_ours, *command) {
            (true, GETFAMILY) => To::Family,
            (true, _) => To::Card(0),
            (false, _) => To::Kernel,
        }
    }

    /// Where a request of the family itself goes: to whom the device is that it names.
    fn device(&self, io: &Io, family: &Family, message: &Message<'_>, said: &[u8]) -> To {
        let text = |kind| find(said, kind).and_then(|a| a.string());
        match (text(BUS_NAME), text(DEV_NAME)) {
            (Some(bus), Some(device)) => {
                match DeviceName::parse(bus, device).and_then(|device| io.cards.now().owner(device)) {
                    Some(card) => To::Card(card),
                    None if family.kernel => To::Kernel,
                    // Nobody's: the first says so as well as any.
                    None => To::Card(0),
                }
            }
            _ if message.header.is_dump() => To::Cards,
            _ => To::Card(0),
        }
    }

    fn tell_family(&self, io: &mut Io, request: &Message<'_>) {
        let port = io.shared.port_to_send_from();
        if let Some(family) = self.families.devlink(&io.cards) {
            io.tell(&addressed(&family.answer, Flags::empty(), request.header.sequence, port));
        }
        if request.header.flags.contains(Flags::ACK) {
            io.acknowledge(request, Ok(()), |_| {});
        }
    }

    fn ask_card(&mut self, io: &mut Io, request: &Message<'_>, n: usize) {
        let end = self.answer_of(io, request, n);
        self.tell_end(io, request, end);
    }

    /// A dump of everything: each card's, one after the other, then the kernel's own.
    fn ask_cards(&mut self, io: &mut Io, request: &Message<'_>) {
        let ends: Vec<End> = (0..io.cards.len()).map(|n| self.answer_of(io, request, n)).collect();
        let well = ends.iter().position(|end| end.result.is_ok());
        if self.families.in_kernel() {
            return io.pass_on(request.bytes());
        }
        // A card that cannot say what another can does not spoil the answer.
        let end = ends.into_iter().nth(well.unwrap_or(0)).unwrap_or(End::bare(Err(Errno::NODEV)));
        self.tell_end(io, request, end);
    }

    fn tell_end(&self, io: &mut Io, request: &Message<'_>, end: End) {
        if end.result.is_ok() && request.header.is_dump() {
            io.end_dump(request);
        } else if end.result.is_err() || request.header.flags.contains(Flags::ACK) {
            io.acknowledge(request, end.result, |to| {
                for attribute in attributes(&end.said).flatten() {
                    to.copy(&attribute);
                }
            });
        }
    }

    /// Asks a card and gives the program what it answers, up to the end, which is told by the caller.
    fn answer_of(&mut self, io: &mut Io, request: &Message<'_>, n: usize) -> End {
        match self.ask(io, request, n) {
            Ok(end) => end,
            Err(error) => {
                let errno = error.raw_os_error().map_or(Errno::NODEV, |_| errno_of(&error));
                let why = row(|to| {
                    to.text(nlmsgerr_attr::MSG, "the card does not answer");
                });
                End { result: Err(errno), said: why.unwrap_or_default() }
            }
        }
    }

    fn ask(&mut self, io: &mut Io, request: &Message<'_>, n: usize) -> io::Result<End> {
        let id = self.families.devlink(&io.cards).map_or(0, |family| family.id);
        let port = io.shared.port_to_send_from();
        // If this fails there may be an answer on its way still, and the connection is of no more use.
        let connection = self.families.connections.take(&io.cards, n)?;
        let socket = connection.socket()?;
        let theirs = self.families.of_card(n, socket)?;
        send(socket, &translated(request, id, theirs), SendFlags::NOSIGNAL)?;
        let mut awaited = Awaited::new(request.header.sequence);
        loop {
            let len = io.receive_from(socket.as_fd(), &mut self.buffer)?;
            let (mut answers, mut end) = (Vec::new(), None);
            for message in messages(&self.buffer[..len]) {
                match awaited.read(message) {
                    Part::Data(message) => answers.push(of_server(&message, theirs, id, port)),
                    Part::End(outcome) => {
                        end = Some(End { result: outcome.result, said: outcome.attributes.to_vec() });
                    }
                    Part::Other => {}
                }
            }
            io.queue.push(answers.iter().map(|bytes| &bytes[..]));
            io.flush();
            if let Some(end) = end {
                connection.give_back();
                return Ok(end);
            }
        }
    }
}

/// The connections of a lab to its cards. All programs share them, so that no user of the lab uses up the places that
/// a card has for whoever started it.
#[derive(Default)]
struct Connections {
    state: Mutex<Free>,
    /// One has been given back, or is no more.
    free: Condvar,
}

#[derive(Default)]
struct Free {
    /// By the card's number.
    idle: Vec<(usize, OwnedFd)>,
    /// How many there are, in use or not.
    all: usize,
}

/// Connections of a lab at most: requests that may be under way at once.
const CONNECTIONS: usize = 16;

/// A connection that is in use by one request.
struct Connection<'a> {
    of: &'a Connections,
    card: usize,
    /// `None`: it has been given back.
    socket: Option<OwnedFd>,
}

impl Connections {
    /// One to a card, which is made if there is none; if there are as many as there may be, as soon as one is free.
    fn take(&self, cards: &Cards, n: usize) -> io::Result<Connection<'_>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(at) = state.idle.iter().position(|(card, _)| *card == n) {
                let (_, socket) = state.idle.swap_remove(at);
                if is_open(&socket) {
                    return Ok(Connection { of: self, card: n, socket: Some(socket) });
                }
                state.all -= 1;
                continue;
            }
            if state.all < CONNECTIONS {
                break;
            }
            // One to another card makes room.
            match state.idle.pop() {
                Some(_) => state.all -= 1,
                None => state = self.free.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
        state.all += 1;
        drop(state);
        let connected = cards.card(n).ok_or_else(|| io::ErrorKind::NotFound.into()).and_then(|card| card.connect());
        match connected {
            Ok(socket) => Ok(Connection { of: self, card: n, socket: Some(socket) }),
            Err(error) => {
                self.state.lock().unwrap_or_else(PoisonError::into_inner).all -= 1;
                self.free.notify_one();
                Err(error)
            }
        }
    }
}

/// Whether the card's end is there still. Nothing comes on a connection that is not in use.
fn is_open(socket: &OwnedFd) -> bool {
    recv(socket, &mut [0; 1][..], RecvFlags::DONTWAIT) == Err(Errno::AGAIN)
}

impl Connection<'_> {
    fn socket(&self) -> io::Result<&OwnedFd> {
        self.socket.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Its answer has been received to its end: it can be used again.
    fn give_back(mut self) {
        if let Some(socket) = self.socket.take() {
            let mut state = self.of.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.idle.push((self.card, socket));
        }
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        if self.socket.is_some() {
            self.of.state.lock().unwrap_or_else(PoisonError::into_inner).all -= 1;
        }
        self.of.free.notify_one();
    }
}

/// A request as a card's server takes it: with its number of the family, and with an end that can be seen.
fn translated(request: &Message<'_>, id: u16, theirs: u16) -> Vec<u8> {
    let mut bytes = request.bytes().to_vec();
    let is_family = request.header.kind == id;
    if !is_family {
        put_family(&mut bytes, id, theirs);
    }
    rewrite(&mut bytes, |header| {
        header.kind = if is_family { theirs } else { header.kind };
        header.flags |= Flags::ACK;
    });
    bytes
}

/// A message of a card's server as the program takes it: with our number of the family, and the program's port.
fn of_server(message: &Message<'_>, theirs: u16, id: u16, port: u32) -> Vec<u8> {
    let mut bytes = message.bytes().to_vec();
    let kind = message.header.kind;
    if kind == CTRL {
        put_family(&mut bytes, theirs, id);
    }
    rewrite(&mut bytes, |header| {
        header.kind = if kind == theirs && kind != CTRL { id } else { kind };
        header.port = port;
    });
    bytes
}

/// In a message of `nlctrl`, one family's number for another's.
fn put_family(message: &mut [u8], from: u16, to: u16) {
    let start = HEADER + GENL_HEADER;
    let Some(said) = message.get(start..) else { return };
    let found = find(said, FAMILY_ID).filter(|a| a.leading_u16() == Some(from));
    if let Some(at) = found.map(|attribute| attribute.value_offset()) {
        overwrite(message, start + at, &to.to_ne_bytes());
    }
}
