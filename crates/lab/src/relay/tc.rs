//! Filters of the card's netdevs: what a program asks of tc, the card is asked.
//!
//! The kernel sees each request first: it knows the qdisc and checks the request. What it refuses for another reason than that
//! it has no such classifier, or that nobody could carry out `skip_sw`, is refused. What it accepts has a software half in the
//! kernel, and the card is asked for the other half ([`tc`]).

use devlink::view::Role;
use flow::Port;
use netlink::{Errno, Flags, Message, find, messages, nlmsgerr_attr};
use tc::numbers::{RTM_DELQDISC, RTM_DELTFILTER, RTM_GETTFILTER, RTM_NEWTFILTER, TCMSG, tca};
use tc::{Address, Answer, Netdev, Place, Refusal, Request, Side, Target, Verb};

use super::{ROOM, Relay};
use crate::cards::CardNetdev;
use crate::lock_order::Cx;
use crate::network::{Network, Peer};

/// The handler's part of the protocol: what it waits for of the kernel.
#[derive(Default)]
pub(super) struct Asked {
    /// The number of the request that the kernel is asked to judge.
    sequence: Option<u32>,
    /// What it answered.
    outcome: Option<Result<(), Errno>>,
    /// The answer, as it is.
    answer: Vec<u8>,
}

impl Asked {
    /// Takes the answer to the request that the kernel is asked to judge, and what it shows of the filter, out of a datagram.
    /// Returns what is left for the program.
    pub fn take<'a>(&mut self, datagram: &'a [u8], own_port: u32) -> Vec<&'a [u8]> {
        let mut left = Vec::new();
        for message in messages(datagram) {
            let is_awaited = Some(message.header.sequence) == self.sequence && message.header.port == own_port;
            match message.outcome() {
                Some(outcome) if is_awaited => {
                    self.outcome = Some(outcome.result);
                    self.answer = message.bytes().to_vec();
                }
                _ => left.push(message.bytes()),
            }
        }
        left
    }
}

/// Whether a message may be about filters of a card's netdev.
pub(super) fn concerns(message: &Message<'_>) -> bool {
    let is_qdisc = message.header.kind == RTM_DELQDISC && message.header.is_request();
    is_qdisc || tc::header(message).is_some_and(|header| Side::of_parent(header.parent).is_some())
}

/// Answers a request about filters of a card's netdev in an E-Switch, or has the card follow it. Returns `false` for every
/// other message.
pub(super) fn answer(
    cx: Cx<'_, '_>,
    route: &mut super::route::Route,
    relay: &mut Relay,
    message: &Message<'_>,
) -> bool {
    if !concerns(message) {
        return false;
    }
    let index = netlink::u32_at(message.payload(), 4).unwrap_or(0);
    let Some(network) = relay.network(cx) else { return false };
    let Some(netdev) = relay.cards.netdev_at(cx, &network, index) else { return false };
    let Some(port) = port_of(&netdev) else { return false };
    let of = Netdev { port, number: 0 };
    if message.header.kind == RTM_DELQDISC {
        return delete_qdisc(cx, route, relay, message, (&netdev, of));
    }
    let mut targets = |target| match relay.cards.netdev_at(cx, &network, target) {
        Some(other) if other.card == netdev.card => port_of(&other).map_or(Target::Other, Target::Port),
        _ => Target::Other,
    };
    let request = match Request::read(message, of, &mut targets) {
        Ok(Some(request)) => request,
        Ok(None) => return false,
        Err(refusal) => {
            if relay.may_administer() {
                refuse(cx, relay, message, &refusal);
                return true;
            }
            return false;
        }
    };
    match message.header.kind {
        RTM_NEWTFILTER => add(cx, route, relay, message, (&netdev, &network), request),
        RTM_DELTFILTER => delete(cx, route, relay, message, (&netdev, &network), request),
        RTM_GETTFILTER => show(cx, route, relay, message, (&netdev, &network), request),
        // Chains that are made by themselves are the kernel's.
        _ => false,
    }
}

/// The port of a netdev in an E-Switch: a representor's, or the uplink's.
fn port_of(netdev: &CardNetdev) -> Option<Port> {
    let is_in_switch = netdev.in_switch && matches!(netdev.role, Role::Pf | Role::Representor);
    netdev.port.filter(|_| is_in_switch).map(|handle| Port(handle.index.0))
}

type On<'a> = (&'a CardNetdev, &'a Network);

/// Has the kernel judge a message. Its answer does not reach the program.
fn ask_kernel(
    cx: Cx<'_, '_>,
    route: &mut super::route::Route,
    relay: &mut Relay,
    message: &Message<'_>,
) -> (Option<Result<(), Errno>>, Vec<u8>) {
    let mut header = message.header;
    header.flags |= Flags::ACK;
    header.flags &= !Flags::ECHO;
    let asked = netlink::message(header, |to| {
        to.raw(message.payload());
    });
    let Ok(asked) = asked else { return (None, Vec::new()) };
    route.asked = Asked { sequence: Some(header.sequence), ..Asked::default() };
    relay.pass_on(cx, &asked);
    // The kernel has answered when the call returns.
    let mut buffer = vec![0; ROOM];
    relay.drain(cx, route, &mut buffer);
    let asked = std::mem::take(&mut route.asked);
    (asked.outcome, asked.answer)
}

fn add(
    cx: Cx<'_, '_>,
    route: &mut super::route::Route,
    relay: &mut Relay,
    message: &Message<'_>,
    on: On<'_>,
    request: Request,
) -> bool {
    let (outcome, answer) = ask_kernel(cx, route, relay, message);
    match outcome {
        // The kernel has no such classifier or action, or would have to carry out `skip_sw`.
        Some(Err(Errno::NOENT | Errno::OPNOTSUPP)) => {}
        Some(Err(_)) => {
            relay.send_message(&answer);
            return true;
        }
        Some(Ok(())) => {
            if message.header.flags.contains(Flags::ACK) {
                relay.send_message(&answer);
            }
            return true;
        }
        None => return true,
    }
    match ask_card(relay, on, &request) {
        Err(refusal) | Ok(Answer::Refused(refusal)) => refuse(cx, relay, message, &refusal),
        Ok(answer) => {
            if message.header.flags.contains(Flags::ECHO) {
                tell(cx, relay, message, on, &answer);
            }
            acknowledge(cx, relay, message);
        }
    }
    true
}

fn delete(
    cx: Cx<'_, '_>,
    route: &mut super::route::Route,
    relay: &mut Relay,
    message: &Message<'_>,
    on: On<'_>,
    request: Request,
) -> bool {
    let flushes = request.place.priority == 0;
    if !relay.may_administer() {
        return false;
    }
    let answer = ask_card(relay, on, &request);
    match answer {
        // It is the kernel's, or nobody's.
        Ok(Answer::Refused(refusal)) if matches!(refusal.errno(), Errno::NOENT | Errno::INVAL) => {
            return leave_to_kernel(cx, route, relay, message, &refusal);
        }
        Err(refusal) | Ok(Answer::Refused(refusal)) => refuse(cx, relay, message, &refusal),
        // The kernel's own filters go, too, and it answers.
        Ok(_) if flushes => return false,
        Ok(answer) => {
            let _ = ask_kernel(cx, route, relay, message);
            if message.header.flags.contains(Flags::ECHO) {
                tell(cx, relay, message, on, &answer);
            }
            acknowledge(cx, relay, message);
        }
    }
    true
}

/// Shows the card's filters. The kernel shows its own behind them, and ends a list.
fn show(
    cx: Cx<'_, '_>,
    route: &mut super::route::Route,
    relay: &mut Relay,
    message: &Message<'_>,
    on: On<'_>,
    request: Request,
) -> bool {
    let is_list = request.verb == Verb::List;
    match ask_card(relay, on, &request) {
        Err(_) => false,
        Ok(Answer::Refused(refusal)) => !is_list && leave_to_kernel(cx, route, relay, message, &refusal),
        Ok(answer) => {
            tell(cx, relay, message, on, &answer);
            if !is_list && message.header.flags.contains(Flags::ACK) {
                acknowledge(cx, relay, message);
            }
            !is_list
        }
    }
}

/// Asks the kernel for a filter that the card does not have. If it does not have it either, the one that knows more of the
/// place says why.
fn leave_to_kernel(
    cx: Cx<'_, '_>,
    route: &mut super::route::Route,
    relay: &mut Relay,
    message: &Message<'_>,
    refusal: &Refusal,
) -> bool {
    let (outcome, answer) = ask_kernel(cx, route, relay, message);
    match outcome {
        Some(Err(_)) if refusal.text != tc::NO_CHAIN => refuse(cx, relay, message, refusal),
        Some(outcome) if outcome.is_err() || message.header.flags.contains(Flags::ACK) => relay.send_message(&answer),
        _ => {}
    }
    true
}

/// Passes the deletion of a qdisc on, and has the card forget its filters if it is gone.
fn delete_qdisc(
    cx: Cx<'_, '_>,
    route: &mut super::route::Route,
    relay: &mut Relay,
    message: &Message<'_>,
    (netdev, of): (&CardNetdev, Netdev),
) -> bool {
    let parent = netlink::u32_at(message.payload(), 12).unwrap_or(0);
    if Side::of_parent(parent) != Some(Side::Ingress) {
        return false;
    }
    let (outcome, answer) = ask_kernel(cx, route, relay, message);
    if outcome == Some(Ok(())) {
        for side in [Side::Ingress, Side::Egress] {
            let place = Place { netdev: of, side, chain: None, priority: 0, protocol: 0, handle: 0 };
            let request = Request { place, verb: Verb::Forget };
            // If the card is gone, so are its filters.
            let _ = relay.cards.card(netdev.card).map(|card| card.tc(&request));
        }
    }
    if outcome.is_some_and(|outcome| outcome.is_err()) || message.header.flags.contains(Flags::ACK) {
        relay.send_message(&answer);
    }
    true
}

fn ask_card(relay: &Relay, (netdev, _): On<'_>, request: &Request) -> Result<Answer, Refusal> {
    let gone = || Refusal::new(Errno::NODEV, "the card is gone");
    let card = relay.cards.card(netdev.card).ok_or_else(gone)?;
    card.tc(request).map_err(|refusal| Refusal::new(refusal.errno, refusal.message))
}

/// Sends the program filters.
fn tell(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>, (netdev, network): On<'_>, answer: &Answer) {
    let is_dump = message.header.is_dump();
    let payload = message.payload();
    let dump_flags = find(message.after(TCMSG).unwrap_or_default(), tca::DUMP_FLAGS);
    let terse = dump_flags.and_then(|flags| flags.bitfield()).map_or(0, |(value, selector)| value & selector);
    let address = Address {
        index: netlink::u32_at(payload, 4).unwrap_or(0),
        parent: netlink::u32_at(payload, 12).unwrap_or(0),
        flags: if is_dump { Flags::MULTI } else { Flags::empty() },
        sequence: message.header.sequence,
        port: relay.socket.port_to_send_from(cx),
        is_terse: terse & tca::DUMP_FLAGS_TERSE != 0,
    };
    let (gone, shown) = match answer {
        Answer::Filters(shown) => (false, shown),
        Answer::Gone(shown) | Answer::ChainGone(_, shown) => (true, shown),
        Answer::Chains(_) | Answer::Refused(_) => return,
    };
    let mut known: Vec<(Port, Option<u32>)> = Vec::new();
    for shown in shown {
        let cards = std::sync::Arc::clone(&relay.cards);
        let mut index_of = |port: Port| {
            if let Some((_, index)) = known.iter().find(|(own, _)| *own == port) {
                return *index;
            }
            let peer = peer_of(netdev, port);
            let index = peer.and_then(|peer| network.look(cx, &cards, |table| Some(table.netdev(peer)?.0)));
            known.push((port, index));
            index
        };
        let built = address.filter(shown, gone, &mut index_of);
        // One that does not fit in a message is left out.
        if let Ok(built) = built {
            relay.make_room(cx);
            relay.send_message(&built);
        }
    }
}

/// The netdev of another port of the same card.
fn peer_of(netdev: &CardNetdev, port: Port) -> Option<Peer> {
    let netdevs = &netdev.view.card.netdevs;
    let is_of = |handle: eswitch::PortHandle| handle.index.0 == port.0;
    let found = netdevs.iter().find(|other| other.in_switch && other.port.is_some_and(is_of))?;
    Some(Peer { card: netdev.card, index: found.peer? })
}

fn acknowledge(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>) {
    if message.header.flags.contains(Flags::ACK) {
        relay.acknowledge(cx, message, Ok(()), |_| {});
    }
}

fn refuse(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>, refusal: &Refusal) {
    relay.acknowledge(cx, message, Err(refusal.errno()), |to| {
        if !refusal.text.is_empty() {
            to.text(nlmsgerr_attr::MSG, &refusal.text);
        }
    });
}
