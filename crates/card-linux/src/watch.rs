//! What happens to the card's netdevs from outside, and what follows from it.
//!
//! One thread hears of every change to a link, inside the card and where its netdevs appear. It sees to
//! it that
//!
//! * a function has carrier while its representor is up, and none while that is down,
//! * the MTU a representor is given becomes its function's, as long as the representor is where it was
//!   born and the function's netdev there or in a namespace with a name,
//! * a netdev that was deleted from under the card, as happens when the namespace it had been moved to
//!   is deleted, is back where it was born: functions and representors are hardware's to take away.
//!
//! * who has asked is told when one of its netdevs gets another name where netdevs appear.
//!
//! It acts on what the books say at that moment, under their lock. Events it has missed are made up for
//! by looking at everything. Where it cannot listen it looks now and then, ever more rarely.

use std::collections::HashMap;
use std::io::{self, PipeWriter};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use eswitch::Vport;
use eswitch::card::{Create, FailedCreate, Resource};
use eswitch::lock_order::CardState;
use lockdep::{Deadline, Domain, Mutex, OnReport};
use netlink::{Errno, errno_of};

use crate::layout::{Inside, Slot};
use crate::request::{self, Link, OUTER_MTU, RTM_DELLINK, RTM_NEWLINK};
use crate::socket::{BackOff, Batch, Socket};
use crate::state::{State, Wire};
use crate::sys::{self, FilterOp};

pub(crate) const RTMGRP_LINK: i32 = 1;

/// The thread. It ends, and has ended, when this is dropped.
pub(crate) struct Watcher {
    /// Closing it is the word to stop, for a thread that waits.
    stop: Option<PipeWriter>,
    /// The same, for one that cannot.
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

impl Watcher {
    /// Starts to watch. `inside` and `outside` are in the card and where its netdevs appear.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(
        state: Arc<Mutex<CardState, State>>,
        mut inside: Socket,
        mut outside: Socket,
    ) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let is_stopping = Arc::clone(&stopping);
        let thread = std::thread::Builder::new().name("card-watch".to_owned()).spawn(move || {
            let domain = Domain::for_build(OnReport::Panic);
            lockdep::enter(&domain, "card-watch", |cx| {
                let mut back_off = BackOff::default();
                loop {
                    let ready = sys::wait_readable([stopped.as_fd(), inside.as_fd(), outside.as_fd()], None);
                    let heard = match ready {
                        Ok([true, ..]) => return,
                        Ok(_) => Events::read(&mut inside, &mut outside),
                        Err(error) => Err(error),
                    };
                    let events = match heard {
                        Ok(events) => {
                            back_off.reset();
                            events
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(_) => {
                            Deadline::after(back_off.after_failure()).sleep(cx);
                            if is_stopping.load(Ordering::Acquire) {
                                return;
                            }
                            Events::missed()
                        }
                    };
                    if events.is_empty() {
                        continue;
                    }
                    let (renamed, told) = {
                        let mut state = state.lock_leaf(cx);
                        (state.follow(events), state.on_rename.clone())
                    };
                    for (resource, name) in renamed {
                        told.iter().for_each(|told| told(cx, resource, name.clone()));
                    }
                }
            });
        })?;
        Ok(Self { stop: Some(stop), stopping, thread: Some(thread) })
    }
}

/// A socket inside the card that hears what a watcher has a use for: deletions, and what happens to
/// representors' ends. Of the thousands of messages of a mode change that is every fourth.
pub(crate) fn listen_inside(netns: &std::fs::File) -> io::Result<Socket> {
    let socket = Socket::listening(netns, RTMGRP_LINK)?;
    let representor = Inside::Inner(Slot { pf: eswitch::PfIndex(0), vport: Vport::HostPf });
    // Where the low byte of the message's type is, and the byte of `ifi_index` that has the kind.
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

/// A socket that hears of every change to a link.
pub(crate) fn listen_outside(netns: &std::fs::File) -> io::Result<Socket> {
    Socket::listening(netns, RTMGRP_LINK)
}

/// What has happened since the last look: of each netdev the last.
#[derive(Default)]
pub(crate) struct Events {
    inners: HashMap<Slot, Link>,
    outers: HashMap<u32, Link>,
    gone: Vec<Inside>,
    lost: bool,
}

impl Events {
    fn read(inside: &mut Socket, outside: &mut Socket) -> io::Result<Self> {
        let mut events = Self::default();
        // Outside first: whatever is heard there of a representor, its inner end was heard of before.
        events.lost = outside.drain(|message| {
            let Some(link) = Link::read(message) else { return };
            match message.header.kind {
                RTM_NEWLINK => drop(events.outers.insert(link.index, link)),
                _ => drop(events.outers.remove(&link.index)),
            }
        })?;
        events.lost |= inside.drain(|message| {
            let Some(link) = Link::read(message) else { return };
            match (message.header.kind, Inside::of(link.index)) {
                (RTM_DELLINK, Some(gone)) => events.gone.push(gone),
                (RTM_NEWLINK, Some(Inside::Inner(slot))) => drop(events.inners.insert(slot, link)),
                _ => {}
            }
        })?;
        Ok(events)
    }

    /// Something has happened, and it is not known what.
    pub(crate) fn missed() -> Self {
        Self { lost: true, ..Self::default() }
    }

    fn is_empty(&self) -> bool {
        self.inners.is_empty() && self.outers.is_empty() && self.gone.is_empty() && !self.lost
    }
}

impl State {
    /// Does what follows from events. The netdevs that have got another name.
    pub(crate) fn follow(&mut self, mut events: Events) -> Vec<(Resource, String)> {
        if events.lost {
            self.look_at_everything(&mut events);
        }
        self.follow_inners(&events.inners);
        self.follow_outers(&events.outers);
        for gone in events.gone {
            self.follow_deletion(gone);
        }
        self.follow_carriers();
        self.follow_names(events.outers.values())
    }

    /// Which of the card's netdevs that are here have another name than is known.
    pub(crate) fn follow_names<'a>(&mut self, outers: impl Iterator<Item = &'a Link>) -> Vec<(Resource, String)> {
        let mut renamed = Vec::new();
        for link in outers {
            let Some((near, Some(netns))) = link.peer else { continue };
            let Some(resource) = Inside::of(near).and_then(Inside::resource) else { continue };
            if self.inside.1.is_none() {
                self.inside.1 = request::netns_id(&mut self.outside, &self.inside.0).ok().flatten();
            }
            // Another card's netdevs have the same numbers at their other ends.
            if self.inside.1 != Some(netns) {
                continue;
            }
            let Some(made) = self.netdev_name(&resource, None) else { continue };
            let is_new = match self.renamed.get(&near) {
                Some(known) => *known != link.name,
                None => made.name != link.name,
            };
            if made.name == link.name {
                self.renamed.remove(&near);
            } else {
                self.renamed.insert(near, link.name.clone());
            }
            if is_new && self.books.contains_key(&resource) {
                renamed.push((resource, link.name.clone()));
            }
        }
        renamed
    }

    fn look_at_everything(&mut self, events: &mut Events) {
        if let Ok(links) = request::links(&mut self.card) {
            let there: HashMap<u32, Link> = links.into_iter().map(|link| (link.index, link)).collect();
            for (slot, ends) in &self.ends {
                if ends.port && !there.contains_key(&slot.port()) {
                    events.gone.push(Inside::Port(*slot));
                }
                match there.get(&slot.inner()) {
                    Some(link) => drop(events.inners.insert(*slot, link.clone())),
                    None if ends.inner => events.gone.push(Inside::Inner(*slot)),
                    None => {}
                }
            }
        }
        let outside = request::links(&mut self.outside).unwrap_or_default();
        events.outers.extend(outside.into_iter().map(|link| (link.index, link)));
    }

    /// What representors' inner ends tell: where the representors are, and if that is somewhere else
    /// than here, whether they are up.
    fn follow_inners(&mut self, inners: &HashMap<Slot, Link>) {
        if inners.is_empty() {
            return;
        }
        // Where they are cannot be told then, and is as it was.
        let Ok(home) = request::netns_id(&mut self.card, &self.home) else { return };
        for (slot, link) in inners {
            let representor = slot.vport != Vport::Uplink && self.represented(*slot);
            let Some(ends) = self.ends.get_mut(slot).filter(|ends| representor && ends.inner) else {
                continue;
            };
            match link.peer {
                Some((outer, netns)) if netns == home => {
                    if ends.outer.is_none_or(|(known, _)| known != outer) {
                        ends.outer = Some((outer, OUTER_MTU));
                        ends.carrier = link.carrier;
                    }
                }
                _ => (ends.outer, ends.carrier) = (None, link.carrier),
            }
        }
    }

    /// What representors tell that are here. The kernel says at once when they go up or down; of their
    /// inner ends' carrier it says so too, but after a mode change with many only seconds later.
    fn follow_outers(&mut self, outers: &HashMap<u32, Link>) {
        let mut told = Vec::new();
        for (slot, ends) in &mut self.ends {
            if let Some((outer, mtu)) = &mut ends.outer
                && let Some(link) = outers.get(outer)
            {
                ends.carrier = link.up;
                if *mtu != link.mtu {
                    *mtu = link.mtu;
                    told.extend(ends.port.then_some((*slot, link.mtu)));
                }
            }
        }
        for (slot, mtu) in told {
            let call = format!("giving {} of pf{} the MTU {mtu}", slot.vport, slot.pf.0);
            let asked = self.ask_outer(slot.port(), &call, |batch, outer| request::set_mtu(batch, outer, mtu));
            if let Err(error) = asked {
                self.complaints.push(error.to_string());
            }
        }
    }

    /// A function has carrier while its representor is up.
    fn follow_carriers(&mut self) {
        let mut batch = Batch::default();
        let mut brought_up = Vec::new();
        for (slot, ends) in &mut self.ends {
            let ruled = slot.vport != Vport::Uplink && ends.tied;
            if ruled && ends.port_up != ends.carrier {
                ends.port_up = ends.carrier;
                request::set_up(&mut batch, slot.port(), ends.carrier);
                brought_up.extend(ends.carrier.then_some(*slot));
            }
        }
        // A port that is gone meanwhile needs no carrier.
        self.card.run(batch);
        self.settle_carriers(&brought_up);
    }

    /// What was deleted and should be there is made again.
    fn follow_deletion(&mut self, gone: Inside) {
        let has_gone = self.has_gone(gone.index());
        if has_gone && let Some(inventory) = &mut self.inventory {
            inventory.forget(gone.index());
        }
        if let Inside::Port(slot @ Slot { vport: Vport::Uplink, .. }) = gone {
            return self.rewire(slot);
        }
        let Some(resource) = gone.resource() else { return };
        // The news may be of an older one of that number.
        if !self.books.contains_key(&resource) || !has_gone {
            return;
        }
        let Some(entry) = self.books.get(&resource).copied() else { return };
        let noted = self.complaints.len();
        self.destroy(&[resource]);
        self.complaints.truncate(noted);
        let again = Create { resource, mac: entry.mac, sfnum: entry.sfnum };
        if let Some(FailedCreate { error, .. }) = self.create(&[again]).pop() {
            // It stays in the books: the engine believes in it, and will unmake it.
            self.books.insert(resource, entry);
            let complaint = format!("{resource} was deleted from outside and cannot be made again: {error}");
            self.complaints.push(complaint);
        }
    }

    /// Whether a netdev inside the card is not there any more. That it cannot be looked at does not say so, and it may
    /// be in use.
    fn has_gone(&mut self, index: u32) -> bool {
        request::link(&mut self.card, index).is_err_and(|error| errno_of(&error) == Errno::NODEV)
    }

    /// Whoever deletes the other end of a wire has unplugged it.
    fn rewire(&mut self, slot: Slot) {
        if self.ends(slot).port && self.has_gone(slot.port()) {
            self.wires.insert(slot.pf, Wire::Nowhere);
            if let Err(error) = self.make_wire_again(slot) {
                self.complaints.push(error.to_string());
            }
        }
    }
}
