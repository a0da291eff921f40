//! Watches the card's netdevs for changes made from outside, and reacts to them.
//!
//! One thread receives every change to a link, inside the card and where its netdevs appear. It makes sure that
//!
//! * a function has carrier while its representor is up, and none while that is down,
//! * the MTU a representor is given becomes its function's, wherever the two are (see [`elsewhere`](crate::elsewhere)),
//! * a netdev that was deleted from under the card, as happens when the namespace it had been moved to
//!   is deleted, is back where it was born: only hardware can take functions and representors away,
//! * the callback for netdevs is called when one of the card's gets another name where netdevs appear, when it leaves
//!   for another namespace, and when it is back.
//!
//! A reaction is an [operation](crate::operation) on the vports that the events concern. The watcher never waits for
//! another operation: events for a vport that one is changing are kept until it has ended. If events were lost, the
//! watcher compares everything. When its sockets fail it does so too, at growing intervals.

use std::collections::{HashMap, HashSet};
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use eswitch::Vport;
use eswitch::card::{Create, NetdevChange, OnNetdevChange, Resource};
use lockdep::{Deadline, Domain, Locked, Unlocked};
use netlink::rtnl::{IFLA_LINK, RTM_DELLINK, RTM_NEWLINK, RTMGRP_LINK};
use netlink::{Errno, errno_of};

use crate::books::{Books, Change};
use crate::elsewhere::Sighting;
use crate::layout::{Inside, Slot};
use crate::operation::{Operation, Part, Shared};
use crate::request::{self, CARD_MTU, Link, OUTER_MTU};
use crate::socket::{BackOff, Batch, Socket};
use crate::sys::{self, FilterOp};

/// The watcher's thread. It ends, and has ended, when this is dropped.
pub(crate) struct Watcher {
    /// Closing it ends the thread, if the thread waits for events.
    stop: Option<PipeWriter>,
    /// Ends the thread, if it waits after an error.
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // If it has panicked there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

/// What the thread waits for.
pub(crate) struct Sources {
    /// Link events inside the card.
    pub inside: Socket,
    /// Link events where netdevs appear.
    pub outside: Socket,
    /// Link events in other namespaces, if this process may receive them.
    pub elsewhere: Option<Elsewhere>,
    /// Readable when an operation has released a vport for which events are kept.
    pub released: PipeReader,
}

impl Watcher {
    /// Starts the thread, in the lockdep domain of those who use the card.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(card: Arc<Shared>, domain: &Arc<Domain>, mut sources: Sources) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let is_stopping = Arc::clone(&stopping);
        let domain = Arc::clone(domain);
        let thread = std::thread::Builder::new().name("card-watch".to_owned()).spawn(move || {
            lockdep::enter(&domain, "card-watch", |cx| watch(cx, &card, &mut sources, &stopped, &is_stopping));
        })?;
        Ok(Self { stop: Some(stop), stopping, thread: Some(thread) })
    }
}

/// Reacts to events until `stopped` is closed.
fn watch(
    cx: &mut Locked<'_, Unlocked>,
    card: &Shared,
    sources: &mut Sources,
    stopped: &PipeReader,
    is_stopping: &AtomicBool,
) {
    let mut back_off = BackOff::default();
    let mut kept = Events::default();
    let mut retries = BackOff::default();
    loop {
        let elsewhere =
            sources.elsewhere.as_ref().map_or(sources.outside.as_fd(), |elsewhere| elsewhere.socket.as_fd());
        let own = [stopped.as_fd(), sources.released.as_fd()];
        let fds = [own[0], own[1], sources.inside.as_fd(), sources.outside.as_fd(), elsewhere];
        let mut new = Events::default();
        // What could not be made anew is tried again after a while, and with the next event.
        let again = !card.books.lock_leaf(cx).again.is_empty();
        let limit = again.then(|| retries.after_failure().as_millis() as u16);
        let received = match sys::wait_readable(fds, limit) {
            Ok([true, ..]) => return,
            Ok([_, released, ..]) => {
                if released {
                    // Only this thread reads it, so there is something to read.
                    let _ = sources.released.read(&mut [0; 64]);
                    new = std::mem::take(&mut kept);
                }
                new.receive(sources)
            }
            Err(error) => Err(error),
        };
        match received {
            Ok(()) => back_off.reset(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                Deadline::after(back_off.after_failure()).sleep(cx);
                if is_stopping.load(Ordering::Acquire) {
                    return;
                }
                new.lost = true;
            }
        }
        new.gone.append(&mut card.books.lock_leaf(cx).again);
        if new.is_empty() {
            continue;
        }
        let (changes, callback) = react(cx, card, new, &mut kept);
        if card.books.lock_leaf(cx).again.is_empty() {
            retries.reset();
        }
        for (resource, change) in changes {
            callback.iter().for_each(|callback| callback(cx, resource, change.clone()));
        }
    }
}

/// Reacts to those events that concern no vport which an operation is changing; the others are added to `kept`.
/// Returns what has happened to netdevs, and the callback for that.
fn react(
    cx: &mut Locked<'_, Unlocked>,
    card: &Shared,
    mut new: Events,
    kept: &mut Events,
) -> (Vec<Change>, Option<OnNetdevChange>) {
    if new.lost {
        new.look_at_everything(&mut card.begin_query(cx));
    }
    let mut ready = Events::default();
    let mut operation = card.begin(cx, |books| {
        let parts;
        (ready, parts) = std::mem::take(&mut new).split(books, kept);
        books.watcher_waits |= !kept.is_empty();
        parts
    });
    let changes = operation.follow(&ready);
    let callback = operation.books().on_netdev_change.clone();
    (changes, callback)
}

/// A socket inside the card that receives the events that the watcher needs: deletions, and changes to the inner ends
/// of representors. Of the thousands of messages of a mode change that is every fourth.
pub(crate) fn listen_inside(netns: &std::fs::File) -> io::Result<Socket> {
    let socket = Socket::listening(netns, RTMGRP_LINK)?;
    let representor = Inside::Inner(Slot { pf: eswitch::PfIndex(0), vport: Vport::HostPf });
    // The offsets of the low byte of the message's type and of the byte of `ifi_index` that has the kind.
    let (kind_at, index_at) = if cfg!(target_endian = "little") { (4, 22) } else { (5, 21) };
    let op = |code: u32, jt, jf, k| FilterOp { code: code as u16, jt, jf, k };
    let load_byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    let jump_if = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    socket.set_filter(&[
        op(load_byte, 0, 0, kind_at),
        op(jump_if, 3, 0, RTM_DELLINK.into()),
        op(load_byte, 0, 0, index_at),
        // The low two bits are the PF's.
        op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 0xfc),
        op(jump_if, 0, 1, representor.index() >> 16),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ])?;
    Ok(socket)
}

/// A socket for other namespaces, and what it needs.
pub(crate) struct Elsewhere {
    socket: Socket,
    /// The id by which the card's own namespace knows the one where netdevs appear.
    home: i32,
}

/// A socket inside the card that receives the changes to links which may be the outer ends of the card's pairs, from
/// every namespace that the card's own has given an id. The kernel gives one to each namespace that an outer end is in,
/// as soon as it reports the inner end (`rtnl_fill_link_netnsid`).
///
/// # Errors
/// `PERM`: this process may not; or the system refuses.
pub(crate) fn listen_elsewhere(inside: &std::fs::File, home: &std::fs::File) -> io::Result<Elsewhere> {
    /// Where the attributes begin: after `struct nlmsghdr` and `struct ifinfomsg`.
    const ATTRIBUTES: u32 = 32;
    let mut socket = Socket::listening_everywhere(inside, RTMGRP_LINK)?;
    let mut batch = Batch::default();
    request::assign_netns_id(&mut batch, home);
    // It may have one already.
    socket.run(batch);
    let home = request::netns_id(&mut socket, home)?.ok_or(io::ErrorKind::NotFound)?;
    let [port, inner] =
        [Slot::port, Slot::inner].map(|end| end(Slot { pf: eswitch::PfIndex(0), vport: Vport::Uplink }));
    // The offset in IFLA_LINK of the byte that has the kind, as in `listen_inside`.
    let kind_at = if cfg!(target_endian = "little") { 6 } else { 5 };
    let op = |code: u32, jt, jf, k| FilterOp { code: code as u16, jt, jf, k };
    let jump_if = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let attribute = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR) as u32;
    socket.set_filter(&[
        op(libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM, 0, 0, IFLA_LINK.into()),
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_IMM, 0, 0, ATTRIBUTES),
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, attribute),
        op(jump_if, 5, 0, 0),
        op(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0),
        op(libc::BPF_LD | libc::BPF_B | libc::BPF_IND, 0, 0, kind_at),
        op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 0xfc),
        op(jump_if, 2, 0, port >> 16 & 0xfc),
        op(jump_if, 1, 0, inner >> 16 & 0xfc),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ])?;
    Ok(Elsewhere { socket, home })
}

/// A socket that receives every change to a link where netdevs appear.
pub(crate) fn listen_outside(netns: &std::fs::File) -> io::Result<Socket> {
    Socket::listening(netns, RTMGRP_LINK)
}

/// What has happened to links: of each the last event.
#[derive(Default)]
pub(crate) struct Events {
    /// The inner ends of representors that have changed.
    inners: HashMap<Slot, Link>,
    /// The outer ends of the card's pairs that have changed, by the slot and the number there.
    outers: HashMap<u32, (Slot, Link)>,
    /// Outer ends that are elsewhere, or have left for there, by the number of the card's end.
    elsewhere: HashMap<u32, Sighting>,
    gone: Vec<Inside>,
    lost: bool,
}

/// The slot of the card's end of a pair.
fn slot_at(near: u32) -> Option<Slot> {
    match Inside::of(near)? {
        Inside::Port(slot) | Inside::Inner(slot) => Some(slot),
        _ => None,
    }
}

impl Events {
    /// Adds the events that have arrived, without waiting.
    ///
    /// # Errors
    /// A socket cannot be read. Events may have been lost.
    fn receive(&mut self, sources: &mut Sources) -> io::Result<()> {
        self.receive_once(sources)?;
        if !self.gone.is_empty() {
            // What happened to these netdevs before they went may have arrived after the other sockets were read.
            self.receive_once(sources)?;
        }
        Ok(())
    }

    fn receive_once(&mut self, sources: &mut Sources) -> io::Result<()> {
        // Outside first: for every event of a representor there, that of its inner end has arrived before.
        let lost = sources.outside.drain(|message| {
            let Some(link) = Link::read(message) else { return };
            match message.header.kind {
                RTM_NEWLINK => self.add_outer(link),
                _ => {
                    self.outers.remove(&link.index);
                    if link.has_left {
                        self.add_sighting(None, link);
                    }
                }
            }
        })?;
        self.lost |= lost;
        let lost = sources.inside.drain(|message| {
            let Some(link) = Link::read(message) else { return };
            match (message.header.kind, Inside::of(link.index)) {
                (RTM_DELLINK, Some(gone)) => self.gone.push(gone),
                (RTM_NEWLINK, Some(Inside::Inner(slot))) => drop(self.inners.insert(slot, link)),
                _ => {}
            }
        })?;
        self.lost |= lost;
        if let Some(Elsewhere { socket, home }) = &mut sources.elsewhere {
            let lost = socket.drain_everywhere(|message, netns| {
                // What comes from the card's own namespace, or from where netdevs appear, other sockets have received.
                let Some(netns) = netns.filter(|netns| *netns != *home) else { return };
                match (message.header.kind, Link::read(message)) {
                    (RTM_NEWLINK, Some(link)) => self.add_sighting(Some(netns), link),
                    (RTM_DELLINK, Some(link)) if link.has_left => self.add_sighting(Some(netns), link),
                    _ => {}
                }
            })?;
            self.lost |= lost;
        }
        Ok(())
    }

    fn add_sighting(&mut self, netns: Option<i32>, link: Link) {
        if let Some((near, _)) = link.peer.filter(|(near, _)| slot_at(*near).is_some()) {
            match (netns, self.elsewhere.get(&near)) {
                // Where it has just left for is looked up. Should that fail, this is the last that is known.
                (Some(_), Some(Sighting::Left(_))) => {}
                (Some(netns), _) => drop(self.elsewhere.insert(near, Sighting::At(netns, link))),
                (None, _) => drop(self.elsewhere.insert(near, Sighting::Left(link))),
            }
        }
    }

    fn add_outer(&mut self, link: Link) {
        if let Some(slot) = link.peer.and_then(|(near, _)| slot_at(near)) {
            self.outers.insert(link.index, (slot, link));
        }
    }

    fn is_empty(&self) -> bool {
        let Self { inners, outers, elsewhere, gone, lost } = self;
        inners.is_empty() && outers.is_empty() && elsewhere.is_empty() && gone.is_empty() && !lost
    }

    /// Makes up for events that were lost: adds one for everything that they may have been about.
    pub(crate) fn look_at_everything(&mut self, operation: &mut Operation<'_>) {
        self.lost = false;
        let inside = request::links(&mut operation.sockets().inside);
        let home = &operation.card.home;
        let home = request::netns_id(&mut operation.sockets().inside, home).ok().flatten();
        let outside = request::links(&mut operation.sockets().outside);
        if let Ok(links) = inside {
            for link in links.iter().filter(|link| slot_at(link.index).is_some()) {
                if let Some((_, Some(netns))) = link.peer
                    && Some(netns) != home
                {
                    self.elsewhere.insert(link.index, Sighting::Missed);
                }
            }
            let mut links: HashMap<u32, Link> = links.into_iter().map(|link| (link.index, link)).collect();
            for (slot, ends) in &operation.books().ends {
                if ends.port && !links.contains_key(&slot.port()) {
                    self.gone.push(Inside::Port(*slot));
                }
                match links.remove(&slot.inner()) {
                    Some(link) => drop(self.inners.insert(*slot, link)),
                    None if ends.inner => self.gone.push(Inside::Inner(*slot)),
                    None => {}
                }
            }
        }
        outside.unwrap_or_default().into_iter().for_each(|link| self.add_outer(link));
    }

    /// The events that can be followed now, with the parts of the card that this changes. The others, for vports that
    /// an operation is changing, are added to `kept`.
    fn split(self, books: &Books, kept: &mut Self) -> (Self, Vec<Part>) {
        let mut ready = Self::default();
        let mut parts = Vec::new();
        let mut is_free = |slot: Slot, may_make: bool| {
            let vport = Part::Vport(slot);
            let bridges =
                (may_make && !books.bridges.contains(&(slot.pf, slot.bridge()))).then_some(Part::Bridges(slot.pf));
            let free = books.claims.is_free(vport) && bridges.is_none_or(|bridges| books.claims.is_free(bridges));
            if free {
                parts.push(vport);
                parts.extend(bridges);
            }
            free
        };
        for (slot, link) in self.inners {
            let free = is_free(slot, false);
            // What was kept of it is older.
            kept.inners.remove(&slot);
            let to = if free { &mut ready } else { &mut *kept };
            to.inners.insert(slot, link);
        }
        for (index, (slot, link)) in self.outers {
            let free = is_free(slot, false);
            kept.outers.remove(&index);
            let to = if free { &mut ready } else { &mut *kept };
            to.outers.insert(index, (slot, link));
        }
        for (near, sighting) in self.elsewhere {
            let Some(slot) = slot_at(near) else { continue };
            let free = is_free(slot, false);
            kept.elsewhere.remove(&near);
            if let Sighting::Left(link) = &sighting {
                // It is where it was no more.
                kept.outers.remove(&link.index);
            }
            let to = if free { &mut ready } else { &mut *kept };
            to.elsewhere.insert(near, sighting);
        }
        for gone in self.gone {
            let free = match gone {
                Inside::Port(slot) | Inside::Inner(slot) => is_free(slot, true),
                _ => true,
            };
            let to = if free { &mut ready } else { &mut *kept };
            to.gone.push(gone);
        }
        if !ready.is_empty() {
            let stale = books.ends.iter().filter(|(slot, ends)| slot.vport != Vport::Uplink && ends.is_stale());
            let stale = stale.map(|(slot, _)| Part::Vport(*slot));
            parts.extend(stale.filter(|part| books.claims.is_free(*part)));
        }
        (ready, parts)
    }
}

impl Operation<'_> {
    /// Reacts to events for vports that this operation has claimed. Returns what has happened to netdevs.
    pub(crate) fn follow(&mut self, events: &Events) -> Vec<Change> {
        if !(events.outers.is_empty() && events.elsewhere.is_empty()) {
            self.learn_inside_id();
        }
        self.follow_inners(&events.inners);
        let mut changes = self.follow_elsewhere(&events.elsewhere);
        self.follow_outers(&events.outers);
        self.fit_card_ends(&events.outers);
        self.follow_xdp(&events.outers);
        changes.extend(self.follow_deletions(&events.gone));
        self.follow_carriers();
        changes.extend(self.books().update_names(events.outers.values().map(|(_, link)| link)));
        changes
    }

    fn learn_inside_id(&mut self) {
        if self.books().inside_id.is_none() {
            let inside = &self.card.inside;
            let id = request::netns_id(&mut self.sockets().outside, inside).ok().flatten();
            self.books().inside_id = id;
        }
    }

    /// Notes what the inner ends of representors show: where the representors are, and if that is not where netdevs
    /// appear, whether they are up.
    fn follow_inners(&mut self, inners: &HashMap<Slot, Link>) {
        if inners.is_empty() {
            return;
        }
        let home = &self.card.home;
        // If this fails it is not known where they are; then that stays as it was.
        let Ok(home) = request::netns_id(&mut self.sockets().inside, home) else { return };
        let books = &mut *self.books();
        for (slot, link) in inners {
            let representor = slot.vport != Vport::Uplink && books.represented(*slot);
            let Some(ends) = books.ends.get_mut(slot).filter(|ends| representor && ends.inner) else {
                continue;
            };
            match link.peer {
                Some((outer, netns)) if netns == home => {
                    if ends.outer.is_none_or(|(known, _)| known != outer) {
                        // What it had elsewhere its function has already.
                        let before = books.elsewhere.get(&slot.inner()).map_or(OUTER_MTU, |before| before.link.mtu);
                        ends.outer = Some((outer, before));
                        ends.carrier = link.carrier;
                    }
                }
                _ => (ends.outer, ends.carrier) = (None, link.carrier),
            }
        }
    }

    /// Reacts to what representors show that are where netdevs appear. The kernel sends an event at once when they go
    /// up or down; it sends one for their inner ends' carrier too, but after a mode change with many only seconds
    /// later.
    fn follow_outers(&mut self, outers: &HashMap<u32, (Slot, Link)>) {
        let mut new_mtus = Vec::new();
        let mut books = self.books();
        for (index, (slot, link)) in outers {
            if books.inside_id.is_some() && link.peer == Some((slot.inner(), books.inside_id)) {
                books.note_return(*slot, *index);
            }
            if let Some(ends) = books.ends.get_mut(slot)
                && let Some((outer, mtu)) = &mut ends.outer
                && outer == index
            {
                ends.carrier = link.up;
                if *mtu != link.mtu {
                    *mtu = link.mtu;
                    new_mtus.extend(ends.port.then_some((*slot, link.mtu)));
                }
            }
        }
        drop(books);
        new_mtus.into_iter().for_each(|(slot, mtu)| self.pass_mtu_on(slot, mtu));
    }

    /// Notes which functions' netdevs have native XDP programs, of those that are where netdevs appear.
    fn follow_xdp(&mut self, outers: &HashMap<u32, (Slot, Link)>) {
        let inside_id = self.books().inside_id;
        for (_, link) in outers.values() {
            if let Some((near, _)) = link.peer.filter(|(_, netns)| netns.is_some() && *netns == inside_id) {
                self.note_xdp(near, link);
            }
        }
    }

    /// Notes whether a netdev has a native XDP program. `near`: the interface number of the card's end.
    pub(crate) fn note_xdp(&mut self, near: u32, link: &Link) {
        if let Some(Inside::Port(slot)) = Inside::of(near).filter(|_| !link.has_left) {
            self.set_xdp(slot, link.has_xdp);
        }
    }

    /// Gives the card's ends of netdevs the MTUs that go with theirs.
    fn fit_card_ends(&mut self, outers: &HashMap<u32, (Slot, Link)>) {
        let mtus = {
            let books = self.books();
            let is_ours = |link: &&Link| books.inside_id.is_some() && link.peer.is_some_and(|p| p.1 == books.inside_id);
            let links = outers.values().map(|(_, link)| link).filter(is_ours);
            links.filter_map(|link| Some((link.peer?.0, link.mtu))).collect()
        };
        self.fit_card_mtus(mtus);
    }

    /// Gives the card's ends of netdevs the MTUs that go with theirs; `mtus`: of the netdevs, with the interface numbers
    /// of the card's ends.
    pub(crate) fn fit_card_mtus(&mut self, mut mtus: Vec<(u32, u32)>) {
        let books = self.books();
        mtus.iter_mut().for_each(|(_, mtu)| *mtu = request::card_mtu(*mtu));
        let is_wire = |near| matches!(Inside::of(near), Some(Inside::Port(Slot { vport: Vport::Uplink, .. })));
        mtus.retain(|(near, mtu)| !is_wire(*near) && books.card_mtus.get(near).is_some_and(|has| has != mtu));
        drop(books);
        let mut batch = Batch::default();
        for (n, (near, mtu)) in mtus.iter().enumerate() {
            batch.tag(n);
            request::set_mtu(&mut batch, *near, *mtu);
        }
        // The kernel refuses a larger one as long as a native XDP program is attached. It reports when that is detached.
        let refused: HashSet<usize> = self.run(batch).into_iter().map(|failure| failure.tag).collect();
        let set = mtus.into_iter().enumerate().filter(|(n, _)| !refused.contains(n)).map(|(_, set)| set);
        self.books().card_mtus.extend(set);
    }

    /// Gives a function the MTU that its representor was given.
    pub(crate) fn pass_mtu_on(&mut self, slot: Slot, mtu: u32) {
        if request::card_mtu(mtu) == CARD_MTU {
            // Before the function can send as much.
            self.fit_card_mtus(vec![(slot.port(), mtu)]);
        }
        let call = format!("giving {} of pf{} the MTU {mtu}", slot.vport, slot.pf.0);
        let set = self.run_on_outer(slot.port(), &call, |batch, outer| request::set_mtu(batch, outer, mtu));
        if let Err(error) = set {
            self.books().complaints.push(error.to_string());
        }
    }

    /// Gives functions carrier while their representors are up, and takes it away while they are not.
    fn follow_carriers(&mut self) {
        let mut batch = Batch::default();
        let mut brought_up = Vec::new();
        let slots = self.slots();
        let mut books = self.books();
        for slot in slots.into_iter().filter(|slot| slot.vport != Vport::Uplink) {
            if let Some(ends) = books.ends.get_mut(&slot).filter(|ends| ends.is_stale()) {
                ends.port_up = ends.carrier;
                request::set_up(&mut batch, slot.port(), ends.carrier);
                brought_up.extend(ends.carrier.then_some(slot));
            }
        }
        drop(books);
        // A port that is gone meanwhile needs no carrier.
        self.run(batch);
        self.settle_carriers(&brought_up);
    }

    /// Makes those of the netdevs anew that have been deleted from outside. All of them are taken out of the books first:
    /// those that were in one namespace may be tied to each other. The watcher tries those again that
    /// cannot be made now.
    fn follow_deletions(&mut self, gone: &[Inside]) -> Vec<Change> {
        // Of several events about one netdev the first is enough. The netdev that one is tied to may have been in the same
        // namespace, and the event about that has not arrived yet.
        let mut seen = HashSet::new();
        let both = gone.iter().flat_map(|gone| match *gone {
            Inside::Port(slot) if slot.vport != Vport::Uplink => [Some(*gone), Some(Inside::Inner(slot))],
            Inside::Inner(slot) if slot.vport != Vport::Uplink => [Some(*gone), Some(Inside::Port(slot))],
            _ => [Some(*gone), None],
        });
        let once = both.flatten().filter(|gone| seen.insert(gone.index()));
        let found: Vec<(Inside, Resource)> = once.filter_map(|gone| Some((gone, self.is_deleted(gone)?))).collect();
        // Those of an instance whose namespace has died are made as at first: the instance is reloaded.
        let fresh: HashSet<Resource> =
            found.iter().map(|(_, resource)| *resource).filter(|resource| self.has_lost_home(resource)).collect();
        let mut books = self.books();
        let mut wanted = Vec::new();
        for (inside, resource) in found {
            let Some(entry) = books.resources.get(&resource).copied() else { continue };
            let before = books.elsewhere.remove(&inside.index()).filter(|_| !fresh.contains(&resource));
            let mtu = before.as_ref().map(|before| before.link.mtu);
            books.coming_home.extend(before.map(|before| (inside.index(), before.link)));
            // Readers of the card miss nothing meanwhile.
            books.returning.insert(resource);
            wanted.push((inside, resource, entry, mtu));
        }
        drop(books);
        self.destroy(&wanted.iter().map(|(_, resource, ..)| *resource).collect::<Vec<_>>());
        let batch: Vec<Create> = wanted
            .iter()
            .map(|(_, resource, entry, _)| Create { resource: *resource, mac: entry.mac, sfnum: entry.sfnum })
            .collect();
        let failed = self.create(&batch);
        let mut changes = Vec::new();
        for (n, (inside, resource, entry, mtu)) in wanted.into_iter().enumerate() {
            if failed.iter().any(|failed| failed.at == n) {
                // It stays in the books: to the engine it exists, and the engine will unmake it.
                let mut books = self.books();
                books.resources.insert(resource, entry);
                books.again.push(inside);
                continue;
            }
            self.books().returning.remove(&resource);
            if let (Inside::Inner(slot), Some(mtu)) = (inside, mtu) {
                // That has reached its function when it was given to the representor.
                let outer = self.index_at_home(inside.index());
                self.books().ends.entry(slot).or_default().outer = outer.map(|outer| (outer, mtu));
            }
            changes.extend(self.books().name(&resource).map(|name| (resource, NetdevChange::Back(name))));
        }
        changes
    }

    /// The resource whose netdev has been deleted from outside. The event may be about an older netdev of that number.
    fn is_deleted(&mut self, gone: Inside) -> Option<Resource> {
        let has_gone = self.has_gone(gone.index());
        if has_gone && let Some(inventory) = &mut self.books().inventory {
            inventory.forget(gone.index());
        }
        if let Inside::Port(slot @ Slot { vport: Vport::Uplink, .. }) = gone {
            self.rewire(slot);
            return None;
        }
        gone.resource().filter(|_| has_gone)
    }

    /// Whether a netdev inside the card does not exist any more. If the kernel cannot be queried, it may exist and be
    /// in use.
    pub(crate) fn has_gone(&mut self, index: u32) -> bool {
        request::link(&mut self.sockets().inside, index).is_err_and(|error| errno_of(&error) == Errno::NODEV)
    }
}
