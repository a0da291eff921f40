//! NETLINK_GENERIC: the kernel's families, and devlink, which is the cards'.
//!
//! The family has the kernel's number if the kernel has one, else one that no family of the kernel has.
//! Between here and a card's server it has the server's.

mod connections;
mod families;

use std::io;
use std::os::fd::AsFd;

use ::netlink::{
    Awaited, Errno, Flags, GENL_HEADER, HEADER, Header, Message, NLMSG_DONE, NLMSG_MIN_TYPE, Part, attributes,
    errno_of, find, messages, nlmsgerr_attr, overwrite, rewrite, row,
};
use rustix::net::{SendFlags, send};

use devlink::view::Parent;

use super::{Behind, Io, ROOM};
use families::Family;

pub(crate) use families::Families;

const DEVLINK: &str = "devlink";
/// The type of messages to and from `nlctrl`, and its commands and attributes.
const CTRL: u16 = 16;
const GETFAMILY: u8 = 3;
const GETPOLICY: u8 = 10;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// A device's address.
const BUS_NAME: u16 = 1;
const DEV_NAME: u16 = 2;

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
                match Parent::on_bus(bus, device).and_then(|device| io.cards.now().owner(&device)) {
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
