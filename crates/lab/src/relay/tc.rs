//! Filters of the card's netdevs: what a program asks of tc, the card is asked.
//!
//! The kernel sees each request first: it knows the qdisc and checks the request. What it refuses for another reason than that
//! it has no such classifier, or that nobody could carry out `skip_sw`, is refused. What it accepts has a software half in the
//! kernel, and the card is asked for the other half ([`tc`]); where the card refuses, the kernel's half is all there is. A list
//! is the kernel's and the card's together.

use std::collections::BTreeMap;
use std::sync::Arc;

use devlink::view::{self, Role};
use flow::Port;
use netlink::rtnl::RTM_DELLINK;
use netlink::{Errno, Flags, Message, find, messages};
use tc::numbers::{RTM_DELQDISC, RTM_DELTFILTER, RTM_GETTFILTER, RTM_NEWTFILTER, TCMSG, cls_flags, tca};
use tc::{Address, Answer, Netdev, Place, Rank, Refusal, Request, Shown, Side, Target, Verb};

use super::route::{self, index_in};
use super::{ROOM, Relay};
use crate::cards::IndexedView;
use crate::ethtool::settings::{Key, Kind};
use crate::lock_order::Cx;
use crate::network::{Network, Peer};

/// What the kernel is asked for in place of a program, and what it has answered.
#[derive(Default)]
pub(super) struct Asked {
    /// The number of the request.
    sequence: Option<u32>,
    /// How it ended.
    outcome: Option<Result<(), Errno>>,
    /// The message that says so.
    answer: Vec<u8>,
    /// What it has shown: RTM_NEWTFILTER.
    shown: Vec<Vec<u8>>,
}

impl Asked {
    /// Takes the answers to the request out of a datagram. Returns what is left for the program.
    pub fn take<'a>(&mut self, datagram: &'a [u8], own_port: u32) -> Vec<&'a [u8]> {
        let mut left = Vec::new();
        for message in messages(datagram) {
            let is_awaited = Some(message.header.sequence) == self.sequence && message.header.port == own_port;
            match message.outcome() {
                Some(outcome) if is_awaited => {
                    self.outcome = Some(outcome.result);
                    self.answer = message.bytes().to_vec();
                }
                None if is_awaited => self.shown.push(message.bytes().to_vec()),
                _ => left.push(message.bytes()),
            }
        }
        left
    }
}

/// Whether a message may be about filters of a card's netdev.
pub(super) fn concerns(message: &Message<'_>) -> bool {
    let is_qdisc = message.header.kind == RTM_DELQDISC && message.header.is_request();
    is_qdisc || tc::side_of(message).is_some()
}

/// A netdev whose filters the card may carry out, as a request has named it.
struct On {
    /// The index of the card.
    card: usize,
    view: Arc<IndexedView>,
    of: Netdev,
    network: Arc<Network>,
    /// Whether the card may carry filters out: NETIF_F_HW_TC of the netdev, for a tunnel device of the uplink.
    offloads: bool,
}

impl On {
    /// Finds the netdev with an interface index in the network namespace of a socket. `None`: it is neither a port's in an E-Switch
    /// nor a tunnel device where an uplink is.
    fn find(cx: Cx<'_, '_>, relay: &Relay, index: u32) -> Option<Self> {
        let network = relay.network(cx)?;
        if let Some(netdev) = relay.cards.netdev_at(cx, &network, index) {
            let of = Netdev { port: port_of(&netdev)?, tunnel: None, number: 0 };
            let offloads = offloads(cx, relay, netdev.card, &netdev.view, &netdev);
            return Some(Self { card: netdev.card, view: Arc::clone(&netdev.view), of, network, offloads });
        }
        let device = network.tunnel(cx, index)?;
        let views = relay.cards.now(cx);
        // Every card's uplink that is here could carry it out; the first one does.
        let mut uplinks = views.each().flat_map(|(card, view)| {
            let of_pf = view.card.netdevs.iter().filter(|netdev| netdev.role == Role::Pf);
            of_pf.filter_map(move |netdev| Some((card, port_of(netdev)?, netdev.peer?)))
        });
        let (card, port, uplink) = uplinks.find(|(card, _, peer)| {
            let peer = Peer { card: *card, index: *peer };
            network.look(cx, &relay.cards, |table| table.netdev(peer).is_some())
        })?;
        let view = views.shared(card)?;
        let of = Netdev { port, tunnel: Some((device, index)), number: 0 };
        let uplink = view.card.netdevs.iter().find(|netdev| netdev.peer == Some(uplink))?;
        let offloads = offloads(cx, relay, card, &view, uplink);
        Some(Self { card, view: Arc::clone(&view), of, network, offloads })
    }

    /// What a netdev to which frames are sent is to the card.
    fn target(&self, cx: Cx<'_, '_>, relay: &Relay, index: u32) -> Target {
        match relay.cards.netdev_at(cx, &self.network, index) {
            Some(other) if other.card == self.card => port_of(&other).map_or(Target::Other, Target::Port),
            Some(_) => Target::Other,
            None => self.network.tunnel(cx, index).map_or(Target::Other, Target::Tunnel),
        }
    }

    /// The interface index of the netdev of another port of the card.
    fn index_of(&self, cx: Cx<'_, '_>, relay: &Relay, port: Port) -> Option<u32> {
        let found = self.view.card.netdevs.iter().find(|netdev| port_of(netdev) == Some(port))?;
        let peer = Peer { card: self.card, index: found.peer? };
        self.network.look(cx, &relay.cards, |table| Some(table.netdev(peer)?.0))
    }
}

/// Answers a request about filters of a card's netdev in an E-Switch, or has the card follow it. Returns `false` for every
/// other message.
pub(super) fn answer(
    cx: Cx<'_, '_>,
    route: &mut super::route::Route,
    relay: &mut Relay,
    message: &Message<'_>,
) -> bool {
    let deletes_link = message.header.kind == RTM_DELLINK && message.header.is_request();
    if !deletes_link && !concerns(message) {
        return false;
    }
    let Some(index) = index_in(relay, message) else { return false };
    let Some(on) = On::find(cx, relay, index) else { return false };
    if deletes_link || message.header.kind == RTM_DELQDISC {
        return delete_all(cx, route, relay, message, &on);
    }
    let request = Request::read(message, on.of, &mut |index| on.target(cx, relay, index));
    let request = match request {
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
        RTM_NEWTFILTER => add(cx, route, relay, message, &on, request),
        RTM_DELTFILTER => delete(cx, route, relay, message, &on, request),
        RTM_GETTFILTER => show(cx, route, relay, message, &on, request),
        _ => false,
    }
}

/// Whether NETIF_F_HW_TC of a netdev is on.
fn offloads(cx: Cx<'_, '_>, relay: &Relay, card: usize, view: &IndexedView, netdev: &view::Netdev) -> bool {
    let kind = Kind::of(view, netdev);
    let settings = relay.cards.card(card).map(|of| relay.cards.ethtool.settings(cx, (card, &**of), netdev.peer, kind));
    settings.is_some_and(|settings| settings.is_on(Key::HwTc))
}

/// The port of a netdev in an E-Switch: a representor's, or the uplink's.
pub(super) fn port_of(netdev: &view::Netdev) -> Option<Port> {
    let is_in_switch = netdev.in_switch && matches!(netdev.role, Role::Pf | Role::Representor);
    netdev.port.filter(|_| is_in_switch).map(|handle| Port(handle.index.0))
}

/// Has the kernel carry a message out. Its answers do not reach the program. `echo`: whether it is to show what it has made.
fn ask_kernel(
    cx: Cx<'_, '_>,
    route: &mut super::route::Route,
    relay: &mut Relay,
    message: &Message<'_>,
    echo: bool,
) -> Asked {
    let mut header = message.header;
    header.flags |= Flags::ACK;
    header.flags.set(Flags::ECHO, echo && !header.is_dump());
    let asked = netlink::message(header, |to| {
        to.raw(message.payload());
    });
    let Ok(asked) = asked else { return Asked::default() };
    route.asked = Asked { sequence: Some(header.sequence), ..Asked::default() };
    // Answers are read only while there is room.
    relay.make_room(cx);
    relay.pass_on(cx, &asked);
    // The kernel has answered when the call returns, and goes on with a list as it is read.
    let mut buffer = vec![0; ROOM];
    relay.drain(cx, route, &mut buffer);
    std::mem::take(&mut route.asked)
}

fn add(
    cx: Cx<'_, '_>,
    route: &mut super::route::Route,
    relay: &mut Relay,
    message: &Message<'_>,
    on: &On,
    mut request: Request,
) -> bool {
    let asked = ask_kernel(cx, route, relay, message, true);
    let made = match asked.outcome {
        // The kernel has no such classifier or action, or would have to carry out `skip_sw`.
        Some(Err(Errno::NOENT | Errno::OPNOTSUPP)) if on.offloads => false,
        // `tc_setup_cb_call`: nobody has a half of it. (Without the classifier, the kernel does not come as far as that.)
        Some(Err(Errno::NOENT | Errno::OPNOTSUPP)) if skips_software(&request) => {
            refuse(cx, relay, message, &Refusal::unsupported(""));
            return true;
        }
        Some(Err(_)) => {
            relay.send_message(&asked.answer);
            return true;
        }
        Some(Ok(())) => {
            // The card's half is where the kernel's is.
            let shown = asked.shown.last().and_then(|shown| Message::first(shown));
            if let Some((chain, priority, handle)) = shown.and_then(|shown| tc::rank(&shown)) {
                let place = Place { chain: Some(chain), priority, handle, ..request.place };
                request.place = place;
            }
            if let Verb::Add { create, exclusive, software, .. } = &mut request.verb {
                (*create, *exclusive, *software) = (true, false, true);
            }
            true
        }
        None => return true,
    };
    let answer = if on.offloads { ask_card(relay, on, &request) } else { Err(Refusal::unsupported("")) };
    match answer {
        // The kernel alone has it.
        Err(_) | Ok(Answer::Refused(_)) if made => {
            if message.header.flags.contains(Flags::ECHO) {
                asked.shown.iter().for_each(|shown| relay.send_message(shown));
            }
            acknowledge(cx, relay, message);
        }
        Err(refusal) | Ok(Answer::Refused(refusal)) => refuse(cx, relay, message, &refusal),
        Ok(answer) => {
            if message.header.flags.contains(Flags::ECHO) {
                tell(cx, relay, message, on, answer, asked.shown);
            }
            acknowledge(cx, relay, message);
        }
    }
    true
}

fn skips_software(request: &Request) -> bool {
    matches!(&request.verb, Verb::Add { spec, .. } if spec.flags & cls_flags::SKIP_SW != 0)
}

fn delete(
    cx: Cx<'_, '_>,
    route: &mut super::route::Route,
    relay: &mut Relay,
    message: &Message<'_>,
    on: &On,
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
            ask_kernel(cx, route, relay, message, false);
            if message.header.flags.contains(Flags::ECHO) {
                tell(cx, relay, message, on, answer, Vec::new());
            }
            acknowledge(cx, relay, message);
        }
    }
    true
}

/// Shows the card's filters, and the kernel's.
fn show(
    cx: Cx<'_, '_>,
    route: &mut super::route::Route,
    relay: &mut Relay,
    message: &Message<'_>,
    on: &On,
    request: Request,
) -> bool {
    let is_list = request.verb == Verb::List;
    match ask_card(relay, on, &request) {
        Err(_) => return false,
        Ok(Answer::Refused(refusal)) => return !is_list && leave_to_kernel(cx, route, relay, message, &refusal),
        Ok(answer) => {
            let asked = ask_kernel(cx, route, relay, message, false);
            tell(cx, relay, message, on, answer, asked.shown);
            if is_list {
                relay.end_dump(cx, message);
            } else {
                acknowledge(cx, relay, message);
            }
        }
    }
    true
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
    let asked = ask_kernel(cx, route, relay, message, message.header.flags.contains(Flags::ECHO));
    asked.shown.iter().for_each(|shown| relay.send_message(shown));
    match asked.outcome {
        Some(Err(_)) if refusal.text != tc::NO_CHAIN => refuse(cx, relay, message, refusal),
        Some(outcome) if outcome.is_err() || message.header.flags.contains(Flags::ACK) => {
            relay.send_message(&asked.answer);
        }
        _ => {}
    }
    true
}

/// Passes the deletion of a qdisc or of a tunnel device on, and has the card forget its filters if it is gone.
fn delete_all(
    cx: Cx<'_, '_>,
    route: &mut super::route::Route,
    relay: &mut Relay,
    message: &Message<'_>,
    on: &On,
) -> bool {
    let parent = netlink::u32_at(message.payload(), 12).unwrap_or(0);
    if message.header.kind == RTM_DELQDISC && Side::of_parent(parent) != Some(Side::Ingress) {
        return false;
    }
    let Asked { outcome, answer, .. } = ask_kernel(cx, route, relay, message, false);
    if outcome == Some(Ok(())) {
        for side in [Side::Ingress, Side::Egress] {
            let place = Place { netdev: on.of, side, chain: None, priority: 0, protocol: 0, handle: 0 };
            let request = Request { place, verb: Verb::Forget };
            // If the card is gone, so are its filters.
            let _ = relay.cards.card(on.card).map(|card| card.tc(&request));
        }
    }
    if outcome.is_some_and(|outcome| outcome.is_err()) || message.header.flags.contains(Flags::ACK) {
        relay.send_message(&answer);
    }
    true
}

fn ask_card(relay: &Relay, on: &On, request: &Request) -> Result<Answer, Refusal> {
    let gone = || Refusal::new(Errno::NODEV, "the card is gone");
    let card = relay.cards.card(on.card).ok_or_else(gone)?;
    card.tc(request).map_err(|refusal| Refusal::new(refusal.errno, refusal.message))
}

/// Sends the program the card's filters, and those that only the kernel has, in the order of a list. What the kernel shows of a
/// filter of the card is added to what the card has counted.
fn tell(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>, on: &On, answer: Answer, kernel: Vec<Vec<u8>>) {
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
        Answer::Gone(shown) => (true, shown),
        Answer::Refused(_) => return,
    };
    let of_kernel = kernel.into_iter().filter_map(|shown| Some((tc::rank(&Message::first(&shown)?)?, shown)));
    let mut of_kernel: BTreeMap<Rank, Vec<u8>> = of_kernel.collect();
    let mut list: BTreeMap<Rank, Entry> = BTreeMap::new();
    for mut shown in shown {
        let software = of_kernel.remove(&shown.rank());
        if let Some(software) = software.as_deref().and_then(Message::first) {
            shown.add_software(&software);
        }
        list.insert(shown.rank(), Entry::Card(Box::new(shown)));
    }
    list.extend(of_kernel.into_iter().map(|(rank, shown)| (rank, Entry::Kernel(shown))));
    let mut known: Vec<(Port, Option<u32>)> = Vec::new();
    for entry in list.into_values() {
        let mut index_of = |port: Port| {
            if let Some((_, index)) = known.iter().find(|(own, _)| *own == port) {
                return *index;
            }
            let index = on.index_of(cx, relay, port);
            known.push((port, index));
            index
        };
        let built = match entry {
            Entry::Card(shown) => address.filter(&shown, gone, &mut index_of),
            Entry::Kernel(shown) => Ok(shown),
        };
        // One that does not fit in a message is left out.
        if let Ok(built) = built {
            relay.make_room(cx);
            relay.send_message(&built);
        }
    }
}

/// A filter in a list.
enum Entry {
    /// The card knows it.
    Card(Box<Shown>),
    /// Only the kernel does: its message.
    Kernel(Vec<u8>),
}

fn acknowledge(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>) {
    if message.header.flags.contains(Flags::ACK) {
        relay.acknowledge(cx, message, Ok(()), |_| {});
    }
}

fn refuse(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>, refusal: &Refusal) {
    route::refuse(cx, relay, message, refusal.errno(), &refusal.text);
}
