//! The family of our own, `eswitch`: what devlink has no message for. A lab shows what [`VIEW`] tells, and
//! does by [`PERFORM`] what a shell command would.

use std::sync::atomic::Ordering;

use scenario::{Action, Heeds, StepError};

use crate::answer::{ESWITCH, Peer, Reply, split, tell_family};
use crate::card::{Cx, Served};
use crate::numbers::control;
use crate::refusal::{Refusal, errno};
use crate::request::Attributes;

/// The family's name.
pub const NAME: &str = "eswitch";
/// Performs a step: takes [`WORDS`].
pub const PERFORM: u8 = 1;
/// Tells what there is of the card, as [`crate::view::Card`] in JSON, in pieces: a dump.
pub const VIEW: u8 = 2;
/// Joins the multicast group of notifications; the socket has no option to do so: takes nothing.
pub const JOIN: u8 = 3;
/// A step in words, as `esw up` takes it.
pub const WORDS: u16 = 1;
/// A line that the step printed.
pub const LINE: u16 = 2;
/// A piece of JSON.
pub const PIECE: u16 = 3;

pub(crate) fn tell(reply: &mut Reply<'_>) {
    let operations = [(PERFORM, control::ADMIN | control::CAN_DO), (VIEW, control::CAN_DUMP), (JOIN, control::CAN_DO)];
    tell_family(reply, (NAME, ESWITCH, 1), 3, &operations, &[]);
}

pub(crate) fn answer(
    served: &Served,
    cx: Cx<'_, '_>,
    peer: &Peer,
    payload: &[u8],
    reply: &mut Reply<'_>,
) -> Result<(), Refusal> {
    let (command, attributes) = split(payload)?;
    let asked = Attributes::of_request(attributes, &[WORDS])?;
    match command {
        PERFORM if !peer.may_change => Err(Refusal::bare(errno::EPERM)),
        PERFORM => perform(served, cx, &asked, reply),
        JOIN => {
            peer.joined.store(true, Ordering::Relaxed);
            Ok(())
        }
        _ => Err(Refusal::bare(errno::EOPNOTSUPP)),
    }
}

fn perform(served: &Served, cx: Cx<'_, '_>, asked: &Attributes<'_>, reply: &mut Reply<'_>) -> Result<(), Refusal> {
    let words = asked.text(WORDS)?.ok_or(Refusal::missing(WORDS))?;
    let action = Action::parse(words, served.session.engine().config())
        .map_err(|error| Refusal::new(errno::EINVAL, error.to_string()))?;
    // A program would run as whoever serves, and a wait would hold its thread.
    if !action.is_command() {
        return Err(Refusal::unsupported(format!("`{words}` is no command to a card")));
    }
    match served.session.perform(cx, Heeds::Stop, &action) {
        Ok(lines) => {
            for line in lines {
                reply.add(PERFORM, |to| {
                    to.text(LINE, &line);
                });
            }
            Ok(())
        }
        Err(StepError::Engine(error)) => Err(error.into()),
        Err(error) => Err(Refusal::new(errno::EIO, error.to_string())),
    }
}
