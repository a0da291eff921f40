//! Operations on the card: what one call of a user, or one reaction of the watcher, does to the kernel.
//!
//! The card's lock protects its [`Books`] and is held only while they are read or written, never during a request to
//! the kernel. What keeps two operations apart is a claim: before an operation sends its first request it
//! claims the [parts](Part) of the card that it changes, all of them at once, and releases them when it ends. An
//! operation that needs a part which another one has claimed waits; all others go on. So a request for one port does
//! not wait for a batch of a thousand others.
//!
//! No two operations can wait for each other:
//!
//! * An operation claims once, when it begins, and holds nothing of the card's while it waits. (A
//!   [sweep](Operation::sweep) is claimed later, and only if it can be without waiting.)
//! * It keeps its thread's token, at [`LeafOnly`], until it ends. So while it has claims its thread can begin no second
//!   operation and can take no lock but leaf locks: the compiler sees to that.
//! * Each operation has sockets of its own, so that answers cannot be mixed up. A claim is never waited for with
//!   sockets in hand.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, PipeWriter, Write};

use eswitch::lock_order::CardState;
use eswitch::{PfIndex, Vport};
use flow::Port;
use lockdep::{Condvar, LeafOnly, Locked, Mutex, MutexGuard, lock_classes};

use crate::books::Books;
use crate::layout::Slot;
use crate::plane::Plane;
use crate::socket::{Batch, Failure, Socket};

lock_classes! {
    /// The sockets that no operation uses at the moment.
    leaf IdleSockets = "idle card sockets";
}

/// A part of the card that one operation at a time may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// What belongs to one vport: its port, its representor, their ties. The uplink's includes the wire.
    Vport(Slot),
    /// The bridges of a PF: which exist, and whether they are up.
    Bridges(PfIndex),
    /// The groups of a PF's netdevs: while this is claimed nothing may be added to them.
    Groups(PfIndex),
    /// What limits the rates of a PF's functions.
    Shaper(PfIndex),
}

/// Which operation has claimed which part.
#[derive(Default)]
pub(crate) struct Claims {
    held: HashMap<Part, u64>,
    last: u64,
    /// How many operations are comparing the books with the kernel.
    comparisons: usize,
    /// The vports that were released since the first of those began.
    released: HashSet<Slot>,
}

impl Claims {
    /// Claims all of these or none; the number of the operation that has them.
    fn claim(&mut self, parts: &[Part]) -> Option<u64> {
        if !parts.iter().all(|part| self.is_free(*part)) {
            return None;
        }
        self.last += 1;
        self.held.extend(parts.iter().map(|part| (*part, self.last)));
        Some(self.last)
    }

    /// Whether an operation that begins now could claim a part.
    pub(crate) fn is_free(&self, part: Part) -> bool {
        let swept = |slot: Slot| slot.vport != Vport::Uplink && self.held.contains_key(&Part::Groups(slot.pf));
        !self.held.contains_key(&part) && !matches!(part, Part::Vport(slot) if swept(slot))
    }

    /// Claims the groups of a PF for an operation, unless another operation has claimed a vport that may be in one.
    fn claim_groups(&mut self, operation: u64, pf: PfIndex) -> bool {
        let others = self.held.iter().any(|(part, holder)| {
            let in_groups = match part {
                Part::Vport(slot) => slot.pf == pf && slot.vport != Vport::Uplink,
                Part::Groups(of) => *of == pf,
                Part::Bridges(_) | Part::Shaper(_) => false,
            };
            in_groups && *holder != operation
        });
        if !others {
            self.held.insert(Part::Groups(pf), operation);
        }
        !others
    }

    fn release(&mut self, parts: &[Part]) {
        for part in parts {
            self.held.remove(part);
            if let (Part::Vport(slot), true) = (part, self.comparisons > 0) {
                self.released.insert(*slot);
            }
        }
    }

    /// The books are about to be compared with the kernel.
    pub(crate) fn begin_comparison(&mut self) {
        self.comparisons += 1;
    }

    /// Whether an operation has been changing a vport at any time since the comparison began.
    pub(crate) fn was_changing(&self, slot: Slot) -> bool {
        self.held.contains_key(&Part::Vport(slot)) || self.released.contains(&slot)
    }

    /// The comparison is over.
    pub(crate) fn end_comparison(&mut self) {
        self.comparisons -= 1;
        if self.comparisons == 0 {
            self.released = HashSet::new();
        }
    }
}

/// The sockets of one operation.
pub(crate) struct Sockets {
    /// Inside the card.
    pub inside: Socket,
    /// Where the netdevs appear.
    pub outside: Socket,
}

impl Sockets {
    /// # Errors
    /// A namespace may not be entered, or there is no memory.
    pub(crate) fn open(inside: &File, home: &File) -> io::Result<Self> {
        Ok(Self { inside: Socket::open(inside)?, outside: Socket::open(home)? })
    }
}

/// What the card's user, its watcher and its holds share.
pub(crate) struct Shared {
    /// Where the netdevs appear.
    pub home: File,
    /// The namespace that the card is.
    pub inside: File,
    pub books: Mutex<CardState, Books>,
    /// What carries frames by flow rules.
    pub plane: Plane,
    /// Notified when claims are released.
    released: Condvar,
    idle: Mutex<IdleSockets, Vec<Sockets>>,
    /// Notified when sockets are given back.
    returned: Condvar,
    /// Wakes the watcher when a vport is released for which it has events.
    wake_watcher: PipeWriter,
}

/// Sockets that are kept for the next operation. More are closed.
const IDLE_SOCKETS: usize = 4;

impl Shared {
    /// `sockets`: the first. They make it certain that an operation that cannot fail gets some, if it has to wait for
    /// them.
    pub(crate) fn new(
        home: File,
        inside: File,
        plane: Plane,
        books: Books,
        sockets: Sockets,
        wake_watcher: PipeWriter,
    ) -> Self {
        Self {
            home,
            inside,
            books: Mutex::new(books),
            plane,
            released: Condvar::new(),
            idle: Mutex::new(vec![sockets]),
            returned: Condvar::new(),
            wake_watcher,
        }
    }

    /// Begins an operation, once nothing that it claims is claimed. `parts` is called again after each wait, with the
    /// books as they are then.
    pub(crate) fn begin<'a, L>(
        &'a self,
        cx: &'a mut Locked<'_, L>,
        mut parts: impl FnMut(&mut Books) -> Vec<Part>,
    ) -> Operation<'a> {
        let mut cx = cx.leaf_only();
        let (number, parts) = {
            let mut books = self.books.lock_leaf(&mut cx);
            loop {
                let parts = parts(&mut books);
                match books.claims.claim(&parts) {
                    Some(number) => break (number, parts),
                    None => self.released.wait(&mut books),
                }
            }
        };
        Operation { card: self, cx, number, parts, sockets: None }
    }

    /// Begins an operation on one vport.
    pub(crate) fn begin_on<'a, L>(&'a self, cx: &'a mut Locked<'_, L>, slot: Slot) -> Operation<'a> {
        self.begin(cx, |_| vec![Part::Vport(slot)])
    }

    /// Begins an operation that changes nothing of the card: it waits for no other.
    pub(crate) fn begin_query<'a, L>(&'a self, cx: &'a mut Locked<'_, L>) -> Operation<'a> {
        self.begin(cx, |_| Vec::new())
    }

    /// Sockets for an operation. Where the system has no room for more, those of another operation, when it ends: it
    /// waits for nothing that this one has.
    fn take_sockets(&self, cx: &mut Locked<'_, LeafOnly>) -> Sockets {
        if let Some(idle) = self.idle.lock_leaf(cx).pop() {
            return idle;
        }
        if let Ok(new) = Sockets::open(&self.inside, &self.home) {
            return new;
        }
        let mut idle = self.idle.lock_leaf(cx);
        loop {
            match idle.pop() {
                Some(sockets) => return sockets,
                None => self.returned.wait(&mut idle),
            }
        }
    }

    fn give_back_sockets(&self, cx: &mut Locked<'_, LeafOnly>, sockets: Sockets) {
        let mut idle = self.idle.lock_leaf(cx);
        if idle.len() < IDLE_SOCKETS {
            idle.push(sockets);
        }
        drop(idle);
        self.returned.notify_one();
    }

    /// Has the next operation use these sockets.
    #[cfg(test)]
    pub(crate) fn use_next<L>(&self, cx: &mut Locked<'_, L>, sockets: Sockets) {
        self.idle.lock_leaf(cx).push(sockets);
    }
}

/// One operation. Its claims are released when it is dropped.
pub(crate) struct Operation<'a> {
    pub card: &'a Shared,
    cx: Locked<'a, LeafOnly>,
    number: u64,
    parts: Vec<Part>,
    sockets: Option<Sockets>,
}

impl Operation<'_> {
    /// The card's books. They are locked for as long as the result lives, so this operation cannot send requests
    /// meanwhile.
    #[track_caller]
    pub(crate) fn books(&mut self) -> MutexGuard<'_, Books> {
        self.card.books.lock_leaf(&mut self.cx)
    }

    /// Attaches flow rules to ends of ports that have just been made.
    pub(crate) fn attach_rules(&mut self, new_ends: impl IntoIterator<Item = Slot>) {
        self.card.plane.ends_made(&mut self.cx, new_ends);
    }

    /// Notes in which classes what functions of a PF send waits, before flow rules are asked.
    pub(crate) fn set_lanes(&mut self, pf: PfIndex, classes: &BTreeMap<Vport, u32>) {
        self.card.plane.set_lanes(&mut self.cx, pf, classes);
    }

    /// Notes which functions of a PF are limited.
    pub(crate) fn set_limited(&mut self, pf: PfIndex, functions: &BTreeSet<Vport>) {
        self.card.plane.set_limited(&mut self.cx, pf, functions);
    }

    /// Notes that the lane of a PF is about to be deleted.
    pub(crate) fn forget_lane(&mut self, pf: PfIndex) {
        self.card.plane.forget_lane(&mut self.cx, pf);
    }

    /// Notes whether the netdev of a function has a native XDP program.
    pub(crate) fn set_xdp(&mut self, slot: Slot, has_xdp: bool) {
        self.card.plane.set_xdp(&mut self.cx, slot, has_xdp);
    }

    /// The ports that have flow rules.
    pub(crate) fn ports_with_rules(&mut self) -> BTreeSet<Port> {
        self.card.plane.ports_with_rules(&mut self.cx)
    }

    /// Removes flow rules that were found and not asked for again.
    pub(crate) fn end_taking_rules_over(&mut self) {
        self.card.plane.end_taking_over(&mut self.cx);
    }

    /// The vports that this operation has claimed.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        let slot = |part: &Part| match part {
            Part::Vport(slot) => Some(*slot),
            Part::Bridges(_) | Part::Groups(_) | Part::Shaper(_) => None,
        };
        self.parts.iter().filter_map(slot).collect()
    }

    /// This operation's sockets.
    pub(crate) fn sockets(&mut self) -> &mut Sockets {
        let Self { card, cx, sockets, .. } = self;
        sockets.get_or_insert_with(|| card.take_sockets(cx))
    }

    /// Has the kernel carry out requests inside the card; returns those that failed.
    pub(crate) fn run(&mut self, batch: Batch) -> Vec<Failure> {
        if batch.is_empty() { Vec::new() } else { self.sockets().inside.run(batch) }
    }

    /// Has the kernel carry out requests inside the card that are built from the books.
    pub(crate) fn run_built(&mut self, build: impl FnOnce(&Books, &mut Batch)) -> Vec<Failure> {
        let mut batch = Batch::default();
        build(&self.books(), &mut batch);
        self.run(batch)
    }

    /// Whether this operation may delete a whole group of a PF's netdevs: whether all of the group are its own, as
    /// `is_whole` finds in the books, and no other operation is adding to it. Until this one ends, none will.
    pub(crate) fn sweep(&mut self, pf: PfIndex, is_whole: impl FnOnce(&Books) -> bool) -> bool {
        let number = self.number;
        let mut books = self.books();
        let may = is_whole(&books) && books.claims.claim_groups(number, pf);
        drop(books);
        if may && !self.parts.contains(&Part::Groups(pf)) {
            self.parts.push(Part::Groups(pf));
        }
        may
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        if let Some(sockets) = self.sockets.take() {
            self.card.give_back_sockets(&mut self.cx, sockets);
        }
        if self.parts.is_empty() {
            return;
        }
        let slots = self.slots();
        let books = self.books();
        let functions = slots.into_iter().filter(|slot| slot.vport != Vport::Uplink);
        let links: Vec<(Slot, bool)> = functions.map(|slot| (slot, books.ends(slot).port_up)).collect();
        drop(books);
        self.card.plane.set_links(&mut self.cx, &links);
        let mut books = self.card.books.lock_leaf(&mut self.cx);
        books.claims.release(&self.parts);
        let watcher_waits = std::mem::take(&mut books.watcher_waits);
        drop(books);
        self.card.released.notify_all();
        if watcher_waits {
            // The pipe holds one byte at most; the write fails if there is no watcher any more.
            let _ = (&self.card.wake_watcher).write(&[0]);
        }
    }
}
