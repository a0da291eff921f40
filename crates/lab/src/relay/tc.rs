//! Filters of the card's netdevs: what a program asks of tc, the card is asked.
//!
//! The kernel sees each request first: it knows the qdisc and checks the request. What it refuses for another reason than that
//! it has no such classifier, or that nobody could carry out `skip_sw`, is refused. What it accepts has a software half in the
//! kernel, and the card is asked for the other half ([`tc`]); where the card refuses, the kernel's half is all there is. A list
//! is the kernel's and the card's together.

use std::collections::BTreeMap;
use std::sync::Arc;

use devlink::view::{self, Role};
use devlink::{ESWITCH, FILTERS_GROUP, eswitch_family};
use flow::Port;
use netlink::rtnl::RTM_DELLINK;
use netlink::{Errno, Flags, Message, find, messages};
use tc::numbers::{RTM_DELQDISC, RTM_DELTFILTER, RTM_GETTFILTER, RTM_NEWTFILTER, TCMSG, cls_flags, tca};
use tc::{Address, Answer, Event, Netdev, Origin, Place, Rank, Refusal, Request, Shown, Side, Target, Verb};

use super::route::{self, Route, index_in};
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

    /// Finds the netdev of a card's filter, and its interface index in the network namespace of a socket. `None`: it is not there.
    fn of_filter(cx: Cx<'_, '_>, relay: &Relay, card: usize, of: Netdev) -> Option<(Self, u32)> {
        let network = relay.network(cx)?;
        let view = relay.cards.now(cx).shared(card)?;
        let on = Self { card, view, of, network, offloads: true };
        let index = on.index_of(cx, relay, of.port)?;
        Some((on, of.tunnel.map_or(index, |(_, own)| own)))
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
pub(super) fn answer(cx: Cx<'_, '_>, route: &mut Route, relay: &mut Relay, message: &Message<'_>) -> bool {
    let deletes_link = message.header.kind == RTM_DELLINK && message.header.is_request();
    if !deletes_link && !concerns(message) {
        return false;
    }
    let Some(index) = index_in(relay, message) else { return false };
    let Some(on) = On::find(cx, relay, index) else { return false };
    if deletes_link || message.header.kind == RTM_DELQDISC {
        return Exchange { cx, route, relay, message, on }.delete_all();
    }
    let request = Request::read(message, on.of, &mut |index| on.target(cx, relay, index));
    let port = relay.socket.port_to_send_from(cx);
    let mut exchange = Exchange { cx, route, relay, message, on };
    let mut request = match request {
        Ok(Some(request)) => request,
        Ok(None) => return false,
        Err(refusal) => {
            let may_change = exchange.relay.may_administer();
            if may_change {
                exchange.refuse(&refusal);
            }
            return may_change;
        }
    };
    request.origin.port = port;
    match message.header.kind {
        RTM_NEWTFILTER => exchange.add(request),
        RTM_DELTFILTER => exchange.delete(&request),
        RTM_GETTFILTER => exchange.show(&request),
        _ => false,
    }
}

/// Sends the program what a card has published of filters that the kernel does not have, each in a datagram of its own, as the
/// kernel does.
pub(super) fn publish(cx: Cx<'_, '_>, relay: &mut Relay, card: usize, datagram: &[u8]) {
    let published = messages(datagram).filter(|message| message.header.kind == ESWITCH);
    let events = published.filter_map(|message| {
        let (_, content) = message.genl().filter(|(genl, _)| genl.command == eswitch_family::FILTER)?;
        serde_json::from_slice::<Event>(find(content, eswitch_family::FILTER_EVENT)?.value).ok()
    });
    for event in events.collect::<Vec<Event>>() {
        if !event.is_for(relay.socket.port()) {
            continue;
        }
        let Some((on, index)) = On::of_filter(cx, relay, card, event.shown.place.netdev) else { continue };
        let mut index_of = |port: Port| on.index_of(cx, relay, port);
        // One that does not fit in a message is lost, as in the kernel when there is no memory for it.
        if let Ok(built) = event.address(index).filter(&event.shown, event.gone, &mut index_of) {
            relay.queue.push([&built[..]]);
        }
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

/// A request about filters of a card's netdev, while it is carried out.
struct Exchange<'a, 'c, 'd> {
    cx: Cx<'c, 'd>,
    route: &'a mut Route,
    relay: &'a mut Relay,
    message: &'a Message<'a>,
    on: On,
}

impl Exchange<'_, '_, '_> {
    /// Has the kernel carry a message out. Its answers do not reach the program. `echo`: whether it is to show what it has made.
    fn ask_kernel(&mut self, echo: bool) -> Asked {
        let mut header = self.message.header;
        header.flags |= Flags::ACK;
        header.flags.set(Flags::ECHO, echo && !header.is_dump());
        let asked = netlink::message(header, |to| {
            to.raw(self.message.payload());
        });
        let Ok(asked) = asked else { return Asked::default() };
        self.route.asked = Asked { sequence: Some(header.sequence), ..Asked::default() };
        // Answers are read only while there is room.
        self.relay.make_room(self.cx);
        self.relay.pass_on(self.cx, &asked);
        // The kernel has answered when the call returns, and goes on with a list as it is read.
        let mut buffer = vec![0; ROOM];
        self.relay.drain(self.cx, self.route, &mut buffer);
        std::mem::take(&mut self.route.asked)
    }

    /// Makes or changes a filter: in the kernel, and in the card where the kernel has put it.
    fn add(&mut self, mut request: Request) -> bool {
        let asked = self.ask_kernel(true);
        let made = match asked.outcome {
            // The kernel has no such classifier or action, or would have to carry out `skip_sw`.
            Some(Err(Errno::NOENT | Errno::OPNOTSUPP)) if self.on.offloads => false,
            // `tc_setup_cb_call`: nobody has a half of it. (Without the classifier, the kernel does not come as far as that.)
            Some(Err(Errno::NOENT | Errno::OPNOTSUPP)) if skips_software(&request) => {
                self.refuse(&Refusal::unsupported(""));
                return true;
            }
            Some(Err(_)) => {
                self.relay.send_message(&asked.answer);
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
        let answer = if self.on.offloads { self.ask_card(&request) } else { Err(Refusal::unsupported("")) };
        match answer {
            // The kernel alone has it.
            Err(_) | Ok(Answer::Refused(_)) if made => {
                if self.hears() {
                    asked.shown.iter().for_each(|shown| self.relay.send_message(shown));
                }
                self.acknowledge();
            }
            Err(refusal) | Ok(Answer::Refused(refusal)) => self.refuse(&refusal),
            Ok(answer) => {
                // The kernel has told everybody else of its half, and the card tells the members of what only it has.
                if self.message.header.flags.contains(Flags::ECHO) || made && self.hears() {
                    self.tell(answer, asked.shown);
                }
                self.acknowledge();
            }
        }
        true
    }

    /// Whether the program is to hear of what the kernel has made at its request: it has asked to, or is a member of the group.
    fn hears(&mut self) -> bool {
        self.message.header.flags.contains(Flags::ECHO) || self.relay.socket.is_subscribed(self.cx, FILTERS_GROUP)
    }

    /// Deletes filters of the card, and the kernel's halves of them.
    fn delete(&mut self, request: &Request) -> bool {
        let flushes = request.place.priority == 0;
        if !self.relay.may_administer() {
            return false;
        }
        let answer = self.ask_card(request);
        match answer {
            // It is the kernel's, or nobody's.
            Ok(Answer::Refused(refusal)) if matches!(refusal.errno(), Errno::NOENT | Errno::INVAL) => {
                return self.leave_to_kernel(&refusal);
            }
            Err(refusal) | Ok(Answer::Refused(refusal)) => self.refuse(&refusal),
            // The kernel's own filters go, too, and it answers.
            Ok(answer) if flushes => {
                if self.message.header.flags.contains(Flags::ECHO) {
                    self.tell(answer, Vec::new());
                }
                return false;
            }
            Ok(answer) => {
                let asked = self.ask_kernel(false);
                if self.message.header.flags.contains(Flags::ECHO) {
                    self.tell(answer, Vec::new());
                } else {
                    // A member of the group hears of the kernel's half.
                    asked.shown.iter().for_each(|shown| self.relay.send_message(shown));
                }
                self.acknowledge();
            }
        }
        true
    }

    /// Shows the card's filters, and the kernel's.
    fn show(&mut self, request: &Request) -> bool {
        let is_list = request.verb == Verb::List;
        match self.ask_card(request) {
            Err(_) => return false,
            Ok(Answer::Refused(refusal)) => return !is_list && self.leave_to_kernel(&refusal),
            Ok(answer) => {
                let asked = self.ask_kernel(false);
                self.tell(answer, asked.shown);
                if is_list {
                    self.relay.end_dump(self.cx, self.message);
                } else {
                    self.acknowledge();
                }
            }
        }
        true
    }

    /// Asks the kernel for a filter that the card does not have. If it does not have it either, the one that knows more of the
    /// place says why.
    fn leave_to_kernel(&mut self, refusal: &Refusal) -> bool {
        let asked = self.ask_kernel(self.message.header.flags.contains(Flags::ECHO));
        asked.shown.iter().for_each(|shown| self.relay.send_message(shown));
        match asked.outcome {
            Some(Err(_)) if refusal.text != tc::NO_CHAIN => self.refuse(refusal),
            Some(outcome) if outcome.is_err() || self.message.header.flags.contains(Flags::ACK) => {
                self.relay.send_message(&asked.answer);
            }
            _ => {}
        }
        true
    }

    /// Passes the deletion of a qdisc or of a tunnel device on, and has the card forget its filters if it is gone.
    fn delete_all(&mut self) -> bool {
        let parent = netlink::u32_at(self.message.payload(), 12).unwrap_or(0);
        if self.message.header.kind == RTM_DELQDISC && Side::of_parent(parent) != Some(Side::Ingress) {
            return false;
        }
        let Asked { outcome, answer, .. } = self.ask_kernel(false);
        if outcome == Some(Ok(())) {
            for side in [Side::Ingress, Side::Egress] {
                let place = Place { netdev: self.on.of, side, chain: None, priority: 0, protocol: 0, handle: 0 };
                let request = Request { place, verb: Verb::Forget, origin: Origin::default() };
                // If the card is gone, so are its filters.
                let _ = self.relay.cards.card(self.on.card).map(|card| card.tc(&request));
            }
        }
        if outcome.is_some_and(|outcome| outcome.is_err()) || self.message.header.flags.contains(Flags::ACK) {
            self.relay.send_message(&answer);
        }
        true
    }

    /// Has the card carry a request out.
    fn ask_card(&self, request: &Request) -> Result<Answer, Refusal> {
        let gone = || Refusal::new(Errno::NODEV, "the card is gone");
        let card = self.relay.cards.card(self.on.card).ok_or_else(gone)?;
        card.tc(request).map_err(|refusal| Refusal::new(refusal.errno, refusal.message))
    }

    /// Sends the program the card's filters, and those that only the kernel has, in the order of a list. What the kernel shows of a
    /// filter of the card is added to what the card has counted.
    fn tell(&mut self, answer: Answer, kernel: Vec<Vec<u8>>) {
        let is_dump = self.message.header.is_dump();
        let payload = self.message.payload();
        let dump_flags = find(self.message.after(TCMSG).unwrap_or_default(), tca::DUMP_FLAGS);
        let terse = dump_flags.and_then(|flags| flags.bitfield()).map_or(0, |(value, selector)| value & selector);
        let address = Address {
            index: netlink::u32_at(payload, 4).unwrap_or(0),
            parent: netlink::u32_at(payload, 12).unwrap_or(0),
            // One that answers or echoes repeats the flags of the request (`tfilter_notify`).
            flags: if is_dump { Flags::MULTI } else { self.message.header.flags },
            sequence: self.message.header.sequence,
            port: self.relay.socket.port_to_send_from(self.cx),
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
                let index = self.on.index_of(self.cx, self.relay, port);
                known.push((port, index));
                index
            };
            let built = match entry {
                Entry::Card(shown) => address.filter(&shown, gone, &mut index_of),
                Entry::Kernel(shown) => Ok(shown),
            };
            // One that does not fit in a message is left out.
            if let Ok(built) = built {
                self.relay.make_room(self.cx);
                self.relay.send_message(&built);
            }
        }
    }

    /// Acknowledges the request, if that is asked for.
    fn acknowledge(&mut self) {
        if self.message.header.flags.contains(Flags::ACK) {
            self.relay.acknowledge(self.cx, self.message, Ok(()), |_| {});
        }
    }

    /// Answers the request with an error.
    fn refuse(&mut self, refusal: &Refusal) {
        route::refuse(self.cx, self.relay, self.message, refusal.errno(), &refusal.text);
    }
}

fn skips_software(request: &Request) -> bool {
    matches!(&request.verb, Verb::Add { spec, .. } if spec.flags & cls_flags::SKIP_SW != 0)
}

/// A filter in a list.
enum Entry {
    /// The card knows it.
    Card(Box<Shown>),
    /// Only the kernel does: its message.
    Kernel(Vec<u8>),
}
