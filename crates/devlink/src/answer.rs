//! What a message is answered with. No I/O: bytes in, bytes out.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;

use eswitch::Touched;
use netlink::{BuildError, Builder, Datagram, Errno, Flags, GENL_HEADER, Header, NLMSG_MIN_TYPE, messages};

use crate::card::{Cx, Served};
use crate::carried_out;
use crate::command::{COMMANDS, Command};
use crate::eswitch_family;
use crate::numbers::{CONTROL, command, control};
use crate::refusal::Refusal;
use crate::request::Attributes;

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
    datagram: &'a mut Datagram,
    /// Why a message could not be added, of the first that could not.
    failed: Option<BuildError>,
    sink: &'a mut dyn Sink,
}

impl Reply<'_> {
    /// Adds a generic netlink message. If one cannot be built, the answer is an error.
    pub fn add(&mut self, command: u8, fill: impl FnOnce(&mut Builder)) {
        if self.datagram.len() >= DATAGRAM {
            self.flush();
        }
        let flags = if self.header.is_dump() { Flags::MULTI } else { Flags::empty() };
        let header = Header::new(self.family, flags, self.header.sequence, self.header.port);
        let added = self.datagram.message(header, |to| {
            to.genl(command, VERSION);
            fill(to);
        });
        self.failed = self.failed.or(added.err());
    }

    /// Gives a descriptor along with what is added next.
    pub fn attach(&mut self, file: OwnedFd) {
        self.sink.attach(file);
    }

    fn flush(&mut self) {
        if !self.datagram.is_empty() {
            self.sink.send(self.datagram.bytes());
            self.datagram.clear();
        }
    }

    /// The end of a dump.
    fn done(&mut self) {
        self.datagram.done(&self.header, self.header.port);
        self.flush();
    }

    /// An error, or an acknowledgement if there is none.
    fn acknowledge(&mut self, refusal: Option<&Refusal>) {
        let outcome = refusal.map_or(Ok(()), |refusal| Err(refusal.errno));
        self.datagram.ack_capped(&self.header, self.header.port, outcome, |to| {
            if let Some(refusal) = refusal {
                refusal.ext_ack().write(to);
            }
        });
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
    let mut datagram = Datagram::default();
    for message in messages(bytes) {
        let (header, payload) = (message.header, message.payload());
        // Nobody answers what is no request.
        if !header.flags.contains(Flags::REQUEST) {
            continue;
        }
        // Thousands of dumps fit into a datagram.
        if header.is_dump() && sink.is_gone() {
            continue;
        }
        let mut reply = Reply { family: header.kind, header, datagram: &mut datagram, failed: None, sink };
        let before = served.card.engine().changes();
        let done = match header.kind {
            kind if kind < NLMSG_MIN_TYPE => Ok(()),
            CONTROL => control(payload, &mut reply),
            DEVLINK => devlink(served, cx, peer, payload, &mut reply),
            ESWITCH => eswitch_family::answer(served, cx, peer, payload, &mut reply),
            _ => Err(Refusal::bare(Errno::NOENT)),
        };
        let touched = match served.card.engine().changes() == before {
            true => Touched::Nothing,
            false => touched(served, header.kind, payload),
        };
        reply.sink.done(cx, touched);
        match done.and(reply.failed.map_or(Ok(()), |error| Err(error.into()))) {
            Ok(()) if header.is_dump() && header.kind >= NLMSG_MIN_TYPE => reply.done(),
            // In one datagram with the answer: who asks is woken once.
            Ok(()) if header.flags.contains(Flags::ACK) => reply.acknowledge(None),
            Ok(()) => reply.flush(),
            Err(refusal) => {
                reply.datagram.clear();
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
                Ok(asked) => carried_out::touched_view(served.card.engine().config(), number, &asked),
                Err(_) => Touched::Nothing,
            },
        },
        ESWITCH => eswitch_family::touched(served, number, attributes),
        _ => Touched::Nothing,
    }
}

/// Answers a message that was cut off because it is too long.
pub fn answer_too_long(bytes: &[u8], sink: &mut dyn Sink) {
    let mut datagram = Datagram::default();
    let header = Header::parse(bytes).unwrap_or_default();
    let mut reply = Reply { family: header.kind, header, datagram: &mut datagram, failed: None, sink };
    reply.acknowledge(Some(&Refusal::new(Errno::MSGSIZE, "the message is too long for this socket")));
}

/// A message's command, and its attributes.
pub(crate) fn split(payload: &[u8]) -> Result<(u8, &[u8]), Refusal> {
    match payload.split_at_checked(GENL_HEADER) {
        Some(([command, ..], attributes)) => Ok((*command, attributes)),
        _ => Err(Refusal::bare(Errno::INVAL)),
    }
}

fn devlink(served: &Served, cx: Cx<'_, '_>, peer: &Peer, payload: &[u8], reply: &mut Reply<'_>) -> Result<(), Refusal> {
    let (number, attributes) = split(payload)?;
    let Some(found) = COMMANDS.iter().find(|command| command.number == number) else {
        return Err(match number {
            1..=command::MAX => Refusal::unsupported("this card does not support that devlink command"),
            _ => Refusal::bare(Errno::OPNOTSUPP),
        });
    };
    if found.admin && !peer.may_change {
        return Err(Refusal::bare(Errno::PERM));
    }
    let handler = if reply.header.is_dump() { found.all } else { found.one };
    let Some(handler) = handler else { return Err(Refusal::bare(Errno::OPNOTSUPP)) };
    let asked = Attributes::of_request(attributes, found.allowed)?;
    let outcome = handler(served, cx, &asked, reply);
    match found.admin {
        true => carried_out::devlink_command(served, cx, number, &asked, outcome),
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
        return Err(Refusal::bare(Errno::INVAL));
    }
    let is_meant = |family: &&(&str, u16, _)| id.is_none_or(|id| id == family.1) && name.is_none_or(|n| n == family.0);
    let (.., tell) = families.iter().find(is_meant).ok_or(Refusal::bare(Errno::NOENT))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Sink for Nobody {
        fn send(&mut self, _: &[u8]) {}

        fn done(&mut self, _: Cx<'_, '_>, _: Touched) {}
    }

    #[test]
    fn a_message_that_cannot_be_built_makes_an_error_of_the_answer() {
        // Given an answer of three messages,
        let (mut datagram, mut sink) = (Datagram::default(), Nobody);
        let header = Header::default();
        let mut reply = Reply { family: DEVLINK, header, datagram: &mut datagram, failed: None, sink: &mut sink };
        // when the second is longer than an attribute can be,
        for length in [1, 70_000, 1] {
            reply.add(1, |to| {
                to.nest(2, |to| {
                    to.put(3, &vec![0; length / 2]).put(4, &vec![0; length / 2]);
                });
            });
        }
        // then nothing of it is there, and the answer is to be EMSGSIZE.
        let failed = reply.failed.map(|error| Refusal::from(error).errno);
        assert_eq!((messages(datagram.bytes()).count(), failed), (2, Some(Errno::MSGSIZE)));
    }
}
