//! The family of our own, `eswitch`: what devlink has no message for. A lab shows what [`VIEW`] tells, and
//! does by [`PERFORM`] what a shell command would.

use std::sync::atomic::Ordering;

use ::control::{Command, Failure, Reply as CommandReply};
use eswitch::Touched;
use netlink::{Errno, attributes};

use crate::answer::{CONFIG_GROUP, ESWITCH, Peer, Reply, split, tell_family};
use crate::card::{Cx, Host, Served};
use crate::carried_out;
use crate::client::Answered;
use crate::numbers::control;
use crate::refusal::Refusal;
use crate::request::Attributes;

/// The family's name.
pub const NAME: &str = "eswitch";
/// Carries out a [`Command`]: takes [`COMMAND`] and [`VERSION`]; answers with [`REPLY`] if there is more to say
/// than that it was carried out.
pub const PERFORM: u8 = 1;
/// Tells what there is of the card, as [`crate::view::Card`] in JSON, in pieces: a dump.
pub const VIEW: u8 = 2;
/// Joins a multicast group, which the socket has no option for: takes [`GROUP`].
pub const JOIN: u8 = 3;
/// Gives a descriptor from which the view can be read as it changes: see [`crate::ViewReader`].
pub const SHARE: u8 = 4;
/// Tells of the card and of who runs it, in JSON, in pieces: a dump.
pub const STATUS: u8 = 16;
/// Asks who runs the card to end: takes [`WORDS`], which say how.
pub const END: u8 = 17;
/// How to end, in words that the host of the card understands.
pub const WORDS: u16 = 1;
/// A piece of JSON.
pub const PIECE: u16 = 3;
/// A multicast group: [`CONFIG_GROUP`].
pub const GROUP: u16 = 4;
/// A command, [encoded](Command::encode).
pub const COMMAND: u16 = 5;
/// The [version](::control::VERSION) of the command's encoding.
pub const VERSION: u16 = 6;
/// A [`Reply`](::control::Reply), encoded.
pub const REPLY: u16 = 7;

/// Bytes of a piece of JSON at most.
const PIECE_MAX: usize = 12 * 1024;

/// The JSON that came in pieces.
pub fn joined(answers: &[Answered]) -> Vec<u8> {
    let attributes = answers.iter().flat_map(|answer| attributes(&answer.attributes).flatten());
    attributes.filter(|attribute| attribute.kind == PIECE).flat_map(|piece| piece.value).copied().collect()
}

pub(crate) fn tell(reply: &mut Reply<'_>) {
    let operations = [
        (PERFORM, control::ADMIN | control::CAN_DO),
        (VIEW, control::CAN_DUMP),
        (JOIN, control::CAN_DO),
        (SHARE, control::CAN_DO),
        (STATUS, control::CAN_DUMP),
        (END, control::ADMIN | control::CAN_DO),
    ];
    tell_family(reply, (NAME, ESWITCH, 1), 4, &operations, &[]);
}

pub(crate) fn answer(
    served: &Served,
    cx: Cx<'_, '_>,
    peer: &Peer,
    payload: &[u8],
    reply: &mut Reply<'_>,
) -> Result<(), Refusal> {
    let (command, attributes) = split(payload)?;
    let asked = Attributes::of_request(attributes, &[WORDS, GROUP, COMMAND, VERSION])?;
    match command {
        PERFORM if !peer.may_change => Err(Refusal::bare(Errno::PERM)),
        PERFORM => {
            let command = command_of(&asked)?;
            let core_loads = served.card.engine().core_loads();
            let outcome = perform(served, cx, &command, reply);
            carried_out::card_command(served, cx, &command, core_loads, outcome)
        }
        STATUS => tell_pieces(STATUS, host(served)?.status(cx).as_bytes(), reply),
        END if !peer.may_change => Err(Refusal::bare(Errno::PERM)),
        END => host(served)?.end(cx, asked.text(WORDS)?.ok_or(Refusal::missing(WORDS))?),
        VIEW => view(served, cx, reply),
        JOIN => join(peer, &asked),
        SHARE => share(served, cx, reply),
        _ => Err(Refusal::bare(Errno::OPNOTSUPP)),
    }
}

fn join(peer: &Peer, asked: &Attributes<'_>) -> Result<(), Refusal> {
    match asked.u32(GROUP)?.ok_or(Refusal::missing(GROUP))? {
        CONFIG_GROUP => {
            peer.joined.store(true, Ordering::Relaxed);
            Ok(())
        }
        _ => Err(Refusal::bare(Errno::NOENT)),
    }
}

/// What a message of this family may have changed.
pub(crate) fn touched(served: &Served, command: u8, payload: &[u8]) -> Touched {
    if command != PERFORM {
        return Touched::Nothing;
    }
    let asked = Attributes::of_request(payload, &[COMMAND, VERSION]);
    let command = asked.and_then(|asked| command_of(&asked));
    command.map_or(Touched::Nothing, |command| command.touches_view(served.card.engine().config()))
}

fn command_of(asked: &Attributes<'_>) -> Result<Command, Refusal> {
    let bytes = asked.bytes(COMMAND).ok_or(Refusal::missing(COMMAND))?;
    let version = asked.u32(VERSION)?.ok_or(Refusal::missing(VERSION))?;
    Command::decode(version, bytes).map_err(|error| Refusal::new(Errno::INVAL, error.to_string()))
}

fn share(served: &Served, cx: Cx<'_, '_>, reply: &mut Reply<'_>) -> Result<(), Refusal> {
    let file = served.shared.file(cx, served);
    let file = file.map_err(|error| Refusal::new(Errno::IO, format!("the view cannot be shared: {error}")))?;
    reply.attach(file);
    reply.add(SHARE, |_| {});
    Ok(())
}

fn view(served: &Served, cx: Cx<'_, '_>, reply: &mut Reply<'_>) -> Result<(), Refusal> {
    let view = served.view(cx);
    let json = serde_json::to_vec(&*view).map_err(|error| Refusal::new(Errno::IO, error.to_string()))?;
    tell_pieces(VIEW, &json, reply)
}

fn host(served: &Served) -> Result<&dyn Host, Refusal> {
    served.host.as_deref().ok_or_else(|| Refusal::unsupported("nobody runs this card who could be asked"))
}

fn tell_pieces(command: u8, json: &[u8], reply: &mut Reply<'_>) -> Result<(), Refusal> {
    for piece in json.chunks(PIECE_MAX) {
        reply.add(command, |to| {
            to.put(PIECE, piece);
        });
    }
    Ok(())
}

fn perform(served: &Served, cx: Cx<'_, '_>, command: &Command, reply: &mut Reply<'_>) -> Result<(), Refusal> {
    match served.card.carry_out(cx, command) {
        Ok(CommandReply::Done) => Ok(()),
        Ok(more) => {
            reply.add(PERFORM, |to| {
                to.put(REPLY, &more.encode());
            });
            Ok(())
        }
        Err(Failure::Engine(error)) => Err(error.into()),
        Err(error) => Err(Refusal::new(Errno::IO, error.to_string())),
    }
}
