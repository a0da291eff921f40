//! What a message is answered with. No I/O: bytes in, bytes out.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;

use eswitch::Touched;

use crate::card::{Cx, Served};
use crate::command::{COMMANDS, Command};
use crate::eswitch_family;
use crate::numbers::{CONTROL, ack, command, control};
use crate::refusal::{Refusal, errno};
use crate::request::Attributes;
use crate::told;
use crate::wire::{self, Builder, GENL_HEADER, Header};

/// The number of the devlink family here.
pub const DEVLINK: u16 = 21;
/// The number of the family of our own.
pub const ESWITCH: u16 = 22;
/// The number of devlink's multicast group here.
pub const CONFIG_GROUP: u32 = 5;
/// The version of the devlink family.
pub const VERSION: u8 = 1;

/// Bytes of a datagram of a dump at most, but for a single message that is longer.
const DATAGRAM: usize = 16 * 1024;

/// Who asks.
#[derive(Debug, Default)]
pub struct Peer {
    /// Whether it may change things.
    pub may_change: bool,
    /// Whether it is told what happens to devices and ports.
    pub joined: AtomicBool,
}

/// Where replies to one request go.
pub struct Reply<'a> {
    family: u16,
    header: Header,
    /// The datagram that is being filled.
    builder: &'a mut Builder,
    sink: &'a mut dyn Sink,
}

impl Reply<'_> {
    /// Adds a generic netlink message.
    pub fn add(&mut self, command: u8, fill: impl FnOnce(&mut Builder)) {
        if self.builder.len() >= DATAGRAM {
            self.flush();
        }
        let flags = if self.header.is_dump() { wire::MULTI } else { 0 };
        self.builder.begin(self.family, flags, self.header.sequence, self.header.port).genl(command, VERSION);
        fill(self.builder);
        self.builder.end();
    }

    /// Gives a descriptor along with what is added next.
    pub fn attach(&mut self, file: OwnedFd) {
        self.sink.attach(file);
    }

    fn flush(&mut self) {
        if !self.builder.is_empty() {
            self.sink.send(self.builder.bytes());
            self.builder.clear();
        }
    }

    /// The end of a dump.
    fn done(&mut self) {
        self.builder.begin(wire::DONE, wire::MULTI, self.header.sequence, self.header.port);
        self.builder.raw(&0i32.to_ne_bytes()).end();
        self.flush();
    }

    /// An error, or an acknowledgement if there is none.
    fn acknowledge(&mut self, refusal: Option<&Refusal>) {
        let none = Refusal::default();
        let refusal = refusal.unwrap_or(&none);
        let tells = refusal.message.is_some() || refusal.offset.is_some() || refusal.missing.is_some();
        let flags = wire::CAPPED | if tells { wire::ACK_TLVS } else { 0 };
        self.builder.begin(wire::ERROR, flags, self.header.sequence, self.header.port);
        self.builder.raw(&(-refusal.errno).to_ne_bytes()).header(&self.header);
        if let Some(message) = &refusal.message {
            self.builder.text(ack::MESSAGE, message);
        }
        if let Some(offset) = refusal.offset {
            self.builder.u32(ack::OFFSET, offset);
        }
        if let Some(missing) = refusal.missing {
            self.builder.u32(ack::MISSING, missing.into());
        }
        self.builder.end();
        self.flush();
    }
}

/// Where an answer goes.
pub trait Sink {
    /// Takes a datagram of it.
    fn send(&mut self, datagram: &[u8]);

    /// Takes a descriptor, for who gets the next datagram.
    fn attach(&mut self, _file: OwnedFd) {}

    /// A request has been carried out, and is about to be answered.
    fn done(&mut self, cx: Cx<'_, '_>, touched: Touched);

    /// Whether nobody is there any more who could read. What was asked for is done all the same, but for what is
    /// only to be told.
    fn is_gone(&self) -> bool {
        false
    }
}

/// Answers every message of a datagram.
pub fn answer(served: &Served, cx: Cx<'_, '_>, peer: &Peer, bytes: &[u8], sink: &mut dyn Sink) {
    let mut builder = Builder::default();
    for (header, payload) in wire::messages(bytes) {
        // Nobody answers what is no request.
        if header.flags & wire::REQUEST == 0 {
            continue;
        }
        // Thousands of dumps fit into a datagram.
        if header.is_dump() && sink.is_gone() {
            continue;
        }
        let mut reply = Reply { family: header.kind, header, builder: &mut builder, sink };
        let before = served.card.engine().changes();
        let done = match header.kind {
            kind if kind < wire::MIN_TYPE => Ok(()),
            CONTROL => control(payload, &mut reply),
            DEVLINK => devlink(served, cx, peer, payload, &mut reply),
            ESWITCH => eswitch_family::answer(served, cx, peer, payload, &mut reply),
            _ => Err(Refusal::bare(errno::ENOENT)),
        };
        let touched = match served.card.engine().changes() == before {
            true => Touched::Nothing,
            false => touched(served, header.kind, payload),
        };
        reply.sink.done(cx, touched);
        match done {
            Ok(()) if header.is_dump() && header.kind >= wire::MIN_TYPE => reply.done(),
            // In one datagram with the answer: who asks is woken once.
            Ok(()) if header.flags & wire::ACK != 0 => reply.acknowledge(None),
            Ok(()) => reply.flush(),
            Err(refusal) => {
                reply.builder.clear();
                reply.acknowledge(Some(&refusal));
            }
        }
    }
}

/// What a message may have changed, if something has changed meanwhile.
fn touched(served: &Served, kind: u16, payload: &[u8]) -> Touched {
    let Ok((number, attributes)) = split(payload) else { return Touched::Nothing };
    match kind {
        DEVLINK => match COMMANDS.iter().find(|command| command.number == number && command.admin) {
            None => Touched::Nothing,
            Some(command) => match Attributes::of_request(attributes, command.allowed) {
                Ok(asked) => told::touched_view(served.card.engine().config(), number, &asked),
                Err(_) => Touched::Nothing,
            },
        },
        ESWITCH => eswitch_family::touched(served, number, attributes),
        _ => Touched::Nothing,
    }
}

/// Answers a message that was cut off because it is too long.
pub fn answer_too_long(bytes: &[u8], sink: &mut dyn Sink) {
    let mut builder = Builder::default();
    let header = wire::header(bytes).unwrap_or_default();
    let mut reply = Reply { family: header.kind, header, builder: &mut builder, sink };
    reply.acknowledge(Some(&Refusal::new(errno::EMSGSIZE, "the message is too long for this socket")));
}

/// A message's command, and its attributes.
pub(crate) fn split(payload: &[u8]) -> Result<(u8, &[u8]), Refusal> {
    match payload.split_at_checked(GENL_HEADER) {
        Some(([command, ..], attributes)) => Ok((*command, attributes)),
        _ => Err(Refusal::bare(errno::EINVAL)),
    }
}

fn devlink(served: &Served, cx: Cx<'_, '_>, peer: &Peer, payload: &[u8], reply: &mut Reply<'_>) -> Result<(), Refusal> {
    let (number, attributes) = split(payload)?;
    let Some(found) = COMMANDS.iter().find(|command| command.number == number) else {
        return Err(match number {
            1..=command::MAX => Refusal::unsupported("this card does not support that devlink command"),
            _ => Refusal::bare(errno::EOPNOTSUPP),
        });
    };
    if found.admin && !peer.may_change {
        return Err(Refusal::bare(errno::EPERM));
    }
    let handler = if reply.header.is_dump() { found.all } else { found.one };
    let Some(handler) = handler else { return Err(Refusal::bare(errno::EOPNOTSUPP)) };
    let asked = Attributes::of_request(attributes, found.allowed)?;
    let outcome = handler(served, cx, &asked, reply);
    match found.admin {
        true => told::devlink_command(served, cx, number, &asked, outcome),
        false => outcome,
    }
}

/// What tells of a family.
type Teller = fn(&mut Reply<'_>);

/// The family that tells of families.
fn control(payload: &[u8], reply: &mut Reply<'_>) -> Result<(), Refusal> {
    let (command, attributes) = split(payload)?;
    if command != control::GETFAMILY {
        return Err(Refusal::unsupported("this socket only tells which families it has"));
    }
    let families: [(&str, u16, Teller); 3] = [
        ("nlctrl", CONTROL, tell_control),
        ("devlink", DEVLINK, tell_devlink),
        (eswitch_family::NAME, ESWITCH, eswitch_family::tell),
    ];
    if reply.header.is_dump() {
        families.iter().for_each(|(.., tell)| tell(reply));
        return Ok(());
    }
    let asked = Attributes::of_request(attributes, &[control::FAMILY_ID, control::FAMILY_NAME])?;
    let (id, name) = (asked.u16(control::FAMILY_ID)?, asked.text(control::FAMILY_NAME)?);
    if id.is_none() && name.is_none() {
        return Err(Refusal::bare(errno::EINVAL));
    }
    let is_meant = |family: &&(&str, u16, _)| id.is_none_or(|id| id == family.1) && name.is_none_or(|n| n == family.0);
    let (.., tell) = families.iter().find(is_meant).ok_or(Refusal::bare(errno::ENOENT))?;
    tell(reply);
    Ok(())
}

/// Tells of a family: its operations with their flags, and its multicast groups.
pub(crate) fn tell_family(
    reply: &mut Reply<'_>,
    (name, id, version): (&str, u16, u32),
    max_attribute: u32,
    operations: &[(u8, u32)],
    groups: &[(&str, u32)],
) {
    reply.add(control::NEWFAMILY, |to| {
        to.text(control::FAMILY_NAME, name).u16(control::FAMILY_ID, id).u32(control::VERSION, version);
        to.u32(control::HEADER_SIZE, 0).u32(control::MAX_ATTRIBUTE, max_attribute);
        to.nest(control::OPERATIONS, |to| {
            for (at, (number, flags)) in (1u16..).zip(operations) {
                to.nest(at, |to| {
                    to.u32(control::OPERATION_ID, (*number).into()).u32(control::OPERATION_FLAGS, *flags);
                });
            }
        });
        if groups.is_empty() {
            return;
        }
        to.nest(control::GROUPS, |to| {
            for (at, (name, id)) in (1u16..).zip(groups) {
                to.nest(at, |to| {
                    to.u32(control::GROUP_ID, *id).text(control::GROUP_NAME, name);
                });
            }
        });
    });
}

fn tell_control(reply: &mut Reply<'_>) {
    let operations = [(control::GETFAMILY, control::CAN_DO | control::CAN_DUMP | control::HAS_POLICY)];
    tell_family(reply, ("nlctrl", CONTROL, 2), 10, &operations, &[]);
}

fn tell_devlink(reply: &mut Reply<'_>) {
    let flags = |command: &Command| {
        let flag = |is: bool, flag: u32| if is { flag } else { 0 };
        flag(command.admin, control::ADMIN)
            | flag(command.one.is_some(), control::CAN_DO)
            | flag(command.all.is_some(), control::CAN_DUMP)
            | control::HAS_POLICY
    };
    let operations: Vec<(u8, u32)> = COMMANDS.iter().map(|command| (command.number, flags(command))).collect();
    tell_family(reply, ("devlink", DEVLINK, VERSION.into()), 180, &operations, &[("config", CONFIG_GROUP)]);
}
