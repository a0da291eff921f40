//! Answers requests. No I/O: bytes in, bytes out.

use eswitch::{CardConfig, Touched};
use netlink::{Datagram, Errno, Flags, Header, NLMSG_MIN_TYPE, messages};

use crate::card::{Cx, Served};
use crate::command;
use crate::eswitch_family;
use crate::family::{DEVLINK, ESWITCH};
use crate::nlctrl;
use crate::numbers::CONTROL;
use crate::peer::Peer;
use crate::refusal::Refusal;
use crate::reply::{ReplyWriter, Sink};

/// A request, decoded.
enum Request<'a> {
    /// A message of netlink itself, such as NLMSG_NOOP: nothing is to be done.
    Netlink,
    Nlctrl(nlctrl::Request),
    Devlink(command::Request<'a>),
    Eswitch(eswitch_family::Request<'a>),
}

impl<'a> Request<'a> {
    /// Decodes a request, and checks that the peer may make it.
    fn parse(peer: &Peer, header: &Header, payload: &'a [u8]) -> Result<Self, Refusal> {
        match header.kind {
            kind if kind < NLMSG_MIN_TYPE => Ok(Self::Netlink),
            CONTROL => nlctrl::Request::parse(header.is_dump(), payload).map(Self::Nlctrl),
            DEVLINK => command::Request::parse(peer, header.is_dump(), payload).map(Self::Devlink),
            ESWITCH => eswitch_family::Request::parse(peer, payload).map(Self::Eswitch),
            _ => Err(Refusal::bare(Errno::NOENT)),
        }
    }

    fn answer(&self, served: &Served, cx: Cx<'_, '_>, peer: &Peer, reply: &mut ReplyWriter<'_>) -> Result<(), Refusal> {
        match self {
            Self::Netlink => Ok(()),
            Self::Nlctrl(request) => {
                request.answer(reply);
                Ok(())
            }
            Self::Devlink(request) => request.answer(served, cx, reply),
            Self::Eswitch(request) => request.answer(served, cx, peer, reply),
        }
    }

    /// What of the view the request may have changed, if the card has changed at all while it was carried out.
    fn touched(&self, card: &CardConfig) -> Touched {
        match self {
            Self::Netlink | Self::Nlctrl(_) => Touched::Nothing,
            Self::Devlink(request) => request.touched(card),
            Self::Eswitch(request) => request.touched(card),
        }
    }
}

/// Answers every request in a datagram.
pub fn answer(served: &Served, cx: Cx<'_, '_>, peer: &Peer, bytes: &[u8], sink: &mut dyn Sink) {
    let mut datagram = Datagram::default();
    let engine = served.card.engine();
    for message in messages(bytes) {
        let header = message.header;
        // As in the kernel (`netlink_rcv_skb`), a message that is no request gets no answer.
        if !header.flags.contains(Flags::REQUEST) {
            continue;
        }
        // A datagram has room for thousands of dumps.
        if header.is_dump() && sink.is_gone() {
            continue;
        }
        let mut reply = ReplyWriter::new(header, &mut datagram, sink);
        let before = engine.changes();
        let (touched, outcome) = match Request::parse(peer, &header, message.payload()) {
            Ok(request) => {
                let outcome = request.answer(served, cx, peer, &mut reply);
                let has_changed = engine.changes() != before;
                (if has_changed { request.touched(engine.config()) } else { Touched::Nothing }, outcome)
            }
            Err(refusal) => (Touched::Nothing, Err(refusal)),
        };
        reply.finish(cx, touched, outcome);
    }
}

/// Answers a message of which only the first bytes were received, as it is too long.
pub fn answer_too_long(bytes: &[u8], sink: &mut dyn Sink) {
    let mut datagram = Datagram::default();
    let header = Header::parse(bytes).unwrap_or_default();
    let reply = ReplyWriter::new(header, &mut datagram, sink);
    reply.refuse(&Refusal::new(Errno::MSGSIZE, "the message is too long for this socket"));
}
