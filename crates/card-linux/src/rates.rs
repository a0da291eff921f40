//! Limits the rates at which functions send.
//!
//! A PF some of whose functions are limited has a *shaper*: a netdev of the kind `ifb` inside the card with a tree of
//! `htb` classes. Leaves of devlink's rates are leaf classes and nodes are inner ones. What a limited function sends is
//! redirected there before anything else receives it, waits in its class, and goes on as if it had just arrived:
//!
//! ```text
//!   legacy       p0v0 ─ ingress ─► shaper0 ─► p0v0 ─► br0
//!   switchdev    p0v0 ─ tie ─► r0v0 ─ egress ─► shaper0 ─► r0v0 ─► enp8s0f0npf0vf0
//! ```
//!
//! Where flow rules may take frames before they come to the representor's end, they wait before the rules are asked. The
//! program of the rules sends them into a pair, whose egress leads to the same shaper, and goes on at the pair's other end:
//!
//! ```text
//!   p0v0 ─ rules ─► lane0 ─ egress ─► shaper0 ─► lane0 ~ lane0end ─ rules ─► where they go
//! ```
//!
//! They have a mark then, with which they pass by the representor's redirect.
//!
//! A function that nothing limits has no class, and its frames take the short way. The function cannot take its limit
//! away, as all of this is inside the card.
//!
//! As in mlx5, a share is a weight among the children of one node (`esw_qos_calc_bw_share` in `esw/qos.c`): it
//! guarantees something where a limit is shared. The link itself has no limit here, so a share alone has no effect.

mod classes;

use std::collections::{BTreeMap, BTreeSet};

use datapath_bpf::MARK_SHAPED;
use eswitch::card::{CardError, Resource};
use eswitch::rate::TxRates;
use eswitch::{PfIndex, Vport};
use netlink::Errno;

use crate::books::Books;
use crate::layout::{Inside, Slot};
use crate::operation::{Operation, Part};
use crate::refused::refused;
use crate::request::{acl, ingress, ingress_and_egress, inner_pair, rates as request, set_up};
use crate::socket::{Batch, Failure};
use crate::sys;

pub(crate) use self::classes::Class;
use self::classes::{Minors, minor};

/// What limits the functions of a PF.
#[derive(Debug, Default)]
pub(crate) struct Shaper {
    /// The rates that are enforced.
    rates: TxRates,
    /// The netdev exists.
    is_made: bool,
    /// A program finds the class of a frame. Otherwise each limited function has a filter of its own.
    has_program: bool,
    /// The way to it for frames that flow rules may take exists.
    has_lane: bool,
    minors: Minors,
    /// The classes that exist.
    classes: BTreeMap<u16, Class>,
}

/// Whether a request of a batch may fail.
const MAY_FAIL: usize = 1;

/// Whether what failed is a redirect that exists.
fn is_redirected(failure: &Failure) -> bool {
    failure.errno == Errno::NOSPC
}

/// The vports that rates limit.
fn limited(rates: &TxRates) -> BTreeSet<Vport> {
    rates.leaves.keys().copied().filter(|vport| rates.limit(*vport).is_some()).collect()
}

impl Books {
    /// Whether a slot's function is limited, so that its netdevs are to be redirected when they are made.
    fn is_limited(&self, slot: Slot) -> bool {
        let shaper = self.shapers.get(&slot.pf).filter(|shaper| shaper.is_made && self.inventory.is_none());
        shaper.is_some_and(|shaper| shaper.rates.limit(slot.vport).is_some())
    }

    /// The parts of the card that giving a PF these rates changes: the shaper, and the vports that are limited by the
    /// old rates or by the new ones and not by both.
    pub(crate) fn parts_of_rates(&self, pf: PfIndex, rates: &TxRates) -> Vec<Part> {
        let old = self.shapers.get(&pf).map(|shaper| limited(&shaper.rates)).unwrap_or_default();
        let new = limited(rates);
        let changed = old.symmetric_difference(&new).map(|vport| Part::Vport(Slot { pf, vport: *vport }));
        changed.chain([Part::Shaper(pf)]).collect()
    }

    /// The PFs of those ports in a batch that have a rate.
    pub(crate) fn pfs_with_rates(&self, batch: &[Resource]) -> BTreeSet<PfIndex> {
        let has_rate = |resource: &&Resource| match resource {
            Resource::Port(pf, vport) => {
                self.shapers.get(pf).is_some_and(|shaper| shaper.rates.leaves.contains_key(vport))
            }
            _ => false,
        };
        batch.iter().filter(has_rate).map(Resource::pf).collect()
    }

    /// Sends what a limited function sends to the shaper, at each end that exists. What is there already stays.
    fn push_redirects(&self, batch: &mut Batch, slot: Slot) {
        let (ends, shaper) = (self.ends(slot), Inside::Shaper(slot.pf).index());
        if ends.port {
            request::shape(batch, slot.port(), false, shaper);
        }
        if ends.inner {
            request::shape(batch, slot.inner(), true, shaper);
            // Without the classifier there are no flow rules either.
            batch.tag(MAY_FAIL);
            acl::pass_marked(batch, slot.inner(), MARK_SHAPED);
            batch.tag(0);
        }
    }

    fn push_no_redirects(&self, batch: &mut Batch, slot: Slot) {
        let ends = self.ends(slot);
        if ends.port {
            request::unshape(batch, slot.port(), false);
        }
        if ends.inner {
            request::unshape(batch, slot.inner(), true);
            acl::remove(batch, slot.inner(), acl::Place::Shaped);
        }
    }

    /// Has a limited function's frames wait in its class. They come from the representor's end, if there is one.
    fn push_classify(&self, batch: &mut Batch, slot: Slot) {
        if self.shapers.get(&slot.pf).is_some_and(|shaper| shaper.has_program) {
            return;
        }
        let shaper = Inside::Shaper(slot.pf).index();
        batch.tag(MAY_FAIL);
        request::unclassify(batch, shaper, minor(slot.vport));
        batch.tag(0);
        let ends = self.ends(slot);
        let from = if ends.inner { Inside::Inner(slot) } else { Inside::Port(slot) };
        if ends.inner || ends.port {
            request::classify(batch, shaper, minor(slot.vport), &from.name());
        }
    }
}

impl Operation<'_> {
    /// Gives a PF's functions these rates. While a card is taken over they are stored, and those that the card had stay
    /// in force until the takeover ends.
    pub(crate) fn set_rates(&mut self, pf: PfIndex, rates: &TxRates) -> Result<(), CardError> {
        let mut books = self.books();
        let is_taken_over = books.inventory.is_some();
        let shaper = books.shapers.entry(pf).or_default();
        if is_taken_over || !shaper.is_made && limited(rates).is_empty() {
            shaper.rates = rates.clone();
            return Ok(());
        }
        let (old, is_made) = (shaper.rates.clone(), shaper.is_made);
        drop(books);
        if !is_made {
            self.make_shaper(pf)?;
        }
        let set = self.change_rates(pf, rates);
        if set.is_err() {
            self.restore_rates(pf, &old, rates);
        }
        set
    }

    /// Makes what limits a PF's functions as it was, as far as the kernel lets that happen, after other rates were set in
    /// part.
    fn restore_rates(&mut self, pf: PfIndex, old: &TxRates, refused: &TxRates) {
        let slots = |rates| limited(rates).into_iter().map(|vport| Slot { pf, vport });
        let mut batch = Batch::default();
        let books = self.books();
        for slot in slots(refused).filter(|slot| old.limit(slot.vport).is_none()) {
            books.push_no_redirects(&mut batch, slot);
        }
        drop(books);
        self.run(batch);
        self.look_at_classes(pf, old);
        let _ = self.change_rates(pf, old);
        self.redirect_limited(slots(old));
    }

    fn make_shaper(&mut self, pf: PfIndex) -> Result<(), CardError> {
        let inside = Inside::Shaper(pf);
        let failures = self.run_built(|_, batch| request::shaper(batch, inside.index(), &inside.name()));
        if let Some(failure) = failures.first() {
            self.delete([inside.index()], None);
            let mut error = refused("making what limits rates", failure, None);
            if let CardError::Kernel { errno, hint, .. } = &mut error
                && [Errno::OPNOTSUPP, Errno::NOENT].map(Errno::raw_os_error).contains(errno)
            {
                // It is what mlx5 answers if a card cannot limit rates.
                *errno = Errno::OPNOTSUPP.raw_os_error();
                *hint = "; the kernel needs CONFIG_IFB and CONFIG_NET_SCH_HTB (`modprobe -a ifb sch_htb`)".to_owned();
            }
            return Err(error);
        }
        if let Some(shaper) = self.books().shapers.get_mut(&pf) {
            (shaper.is_made, shaper.minors, shaper.classes) = (true, Minors::default(), BTreeMap::new());
        }
        self.add_program(pf);
        self.add_lane(pf);
        Ok(())
    }

    /// Makes the way to the shaper for frames that flow rules may take. What has been made stays.
    fn add_lane(&mut self, pf: PfIndex) {
        if self.books().shapers.get(&pf).is_none_or(|shaper| !shaper.has_program) {
            // No program can be loaded, so there are no flow rules.
            return;
        }
        let (lane, end) = (Inside::Lane(pf), Inside::LaneEnd(pf));
        let failures = self.run_built(|_, batch| {
            inner_pair(batch, lane, end);
            ingress_and_egress(batch, lane.index());
            request::shape(batch, lane.index(), true, Inside::Shaper(pf).index());
            // A filter of flow rules needs it, where the kernel has no tcx.
            ingress(batch, end.index());
            set_up(batch, lane.index(), true);
            set_up(batch, end.index(), true);
        });
        let is_fine = |failure: &Failure| is_redirected(failure) || failure.errno == Errno::EXIST;
        if let Some(shaper) = self.books().shapers.get_mut(&pf) {
            shaper.has_lane = failures.iter().all(is_fine);
        }
    }

    /// Has a program find the classes of frames, where this process may load one: it takes the same time for any number of
    /// functions.
    fn add_program(&mut self, pf: PfIndex) {
        let Ok(program) = sys::load_classifier(&request::class_of_vport(minor(Vport::HostPf))) else { return };
        let index = Inside::Shaper(pf).index();
        let failures = self.run_built(|_, batch| request::classify_by(batch, index, &program));
        if let Some(shaper) = self.books().shapers.get_mut(&pf) {
            shaper.has_program = failures.is_empty();
        }
    }

    /// Makes the classes and redirects of a PF what rates require.
    fn change_rates(&mut self, pf: PfIndex, rates: &TxRates) -> Result<(), CardError> {
        let mut batch = Batch::default();
        let books = self.books();
        let Some(shaper) = books.shapers.get(&pf) else { return Ok(()) };
        let minors = shaper.minors.with(rates)?;
        let classes = classes::of(rates, &minors);
        let index = Inside::Shaper(pf).index();
        let slot = |vport: &Vport| Slot { pf, vport: *vport };
        let (old, new) = (limited(&shaper.rates), limited(rates));
        batch.tag(MAY_FAIL);
        old.difference(&new).for_each(|vport| books.push_no_redirects(&mut batch, slot(vport)));
        let change = classes::Change::between(&shaper.classes, &classes);
        for minor in &change.deleted {
            request::unclassify(&mut batch, index, *minor);
            request::delete_class(&mut batch, index, *minor);
        }
        batch.tag(0);
        for (minor, is_new) in &change.set {
            request::class(&mut batch, index, *minor, &classes[minor], *is_new);
        }
        let made: BTreeSet<u16> = change.set.iter().filter(|(_, is_new)| *is_new).map(|(minor, _)| *minor).collect();
        for vport in &new {
            if made.contains(&minor(*vport)) {
                books.push_classify(&mut batch, slot(vport));
            }
            if !old.contains(vport) {
                books.push_redirects(&mut batch, slot(vport));
            }
        }
        drop(books);
        let failures = self.run(batch);
        if let Some(failure) = failures.iter().find(|failure| failure.tag != MAY_FAIL && !is_redirected(failure)) {
            return Err(refused("limiting rates", failure, None));
        }
        if let Some(shaper) = self.books().shapers.get_mut(&pf) {
            (shaper.rates, shaper.minors, shaper.classes) = (rates.clone(), minors, classes);
        }
        self.use_lane(pf);
        Ok(())
    }

    /// Has the program of flow rules send what limited functions send into the lane first, if there is one.
    fn use_lane(&mut self, pf: PfIndex) {
        let functions = self.books().shapers.get(&pf).map(|shaper| limited(&shaper.rates)).unwrap_or_default();
        self.set_limited(pf, &functions);
        let books = self.books();
        let Some(shaper) = books.shapers.get(&pf).filter(|shaper| shaper.has_lane) else { return };
        let classes = limited(&shaper.rates).into_iter().map(|vport| (vport, request::handle(minor(vport)))).collect();
        drop(books);
        self.set_lanes(pf, &classes);
    }

    /// Notes which classes a PF's shaper has in the kernel. `rates`: those that it was given.
    fn look_at_classes(&mut self, pf: PfIndex, rates: &TxRates) {
        // If they cannot be looked at, there is nothing to go by but the books.
        let Ok(found) = request::classes(&mut self.sockets().inside, Inside::Shaper(pf).index()) else { return };
        if let Some(shaper) = self.books().shapers.get_mut(&pf) {
            shaper.classes = found.into_iter().collect();
            shaper.minors = Minors::recognised(rates, &shaper.classes);
        }
    }

    /// Has what limited functions send go through the shaper, when ends of their netdevs have been made or unmade.
    pub(crate) fn redirect_limited(&mut self, slots: impl IntoIterator<Item = Slot>) {
        let mut batch = Batch::default();
        let books = self.books();
        let slots: BTreeSet<Slot> = slots.into_iter().filter(|slot| books.is_limited(*slot)).collect();
        for slot in &slots {
            books.push_classify(&mut batch, *slot);
            books.push_redirects(&mut batch, *slot);
        }
        drop(books);
        let failures = self.run(batch);
        // A netdev that has been deleted from outside is made anew by the watcher.
        let is_fine = |failure: &Failure| is_redirected(failure) || failure.errno == Errno::NODEV;
        if let Some(failure) = failures.iter().find(|failure| failure.tag != MAY_FAIL && !is_fine(failure)) {
            let error = refused("limiting the rate of what has just been made", failure, None);
            self.books().complaints.push(error.to_string());
        }
    }

    /// Drops the rates of ports that are unmade.
    pub(crate) fn drop_rates(&mut self, ports: &[Resource]) {
        let pfs = self.books().pfs_with_rates(ports);
        for pf in pfs {
            let mut rates = self.books().shapers.get(&pf).map(|shaper| shaper.rates.clone()).unwrap_or_default();
            for port in ports.iter().filter(|port| port.pf() == pf) {
                port.vport().and_then(|vport| rates.leaves.remove(&vport));
            }
            if let Err(error) = self.set_rates(pf, &rates) {
                self.books().complaints.push(error.to_string());
            }
        }
    }

    /// Notes that a PF's shaper goes with its other netdevs. Returns the interface numbers that are to be deleted.
    pub(crate) fn forget_shaper(&mut self, pf: PfIndex) -> Vec<u32> {
        let Some(shaper) = self.books().shapers.remove(&pf) else { return Vec::new() };
        self.set_limited(pf, &BTreeSet::new());
        if shaper.has_lane {
            self.forget_lane(pf);
        }
        let made = [(shaper.is_made, Inside::Shaper(pf)), (shaper.has_lane, Inside::Lane(pf))];
        made.into_iter().filter(|(is_made, _)| *is_made).map(|(_, inside)| inside.index()).collect()
    }

    /// Takes over what limits a PF's functions, and makes it what was set meanwhile. `found`: a dead process has left a
    /// shaper.
    pub(crate) fn take_shaper_over(&mut self, pf: PfIndex, found: bool) {
        let mut books = self.books();
        let wanted = match books.shapers.get_mut(&pf) {
            Some(shaper) => std::mem::take(&mut shaper.rates),
            None => TxRates::default(),
        };
        if found {
            books.shapers.entry(pf).or_default().is_made = true;
            drop(books);
            self.add_program(pf);
            self.add_lane(pf);
            self.look_at_classes(pf, &wanted);
            let mut books = self.books();
            let Some(shaper) = books.shapers.get_mut(&pf) else { return };
            // Those that have a class are redirected already, as far as that process came.
            let had: Vec<Vport> = shaper.classes.keys().filter_map(|minor| classes::vport(*minor)).collect();
            let gone: Vec<Slot> =
                had.iter().filter(|v| wanted.limit(**v).is_none()).map(|v| Slot { pf, vport: *v }).collect();
            let mut batch = Batch::default();
            gone.iter().for_each(|slot| books.push_no_redirects(&mut batch, *slot));
            drop(books);
            self.run(batch);
        } else {
            drop(books);
        }
        if let Err(error) = self.set_rates(pf, &wanted) {
            self.books().complaints.push(error.to_string());
        }
        let slots: Vec<Slot> = limited(&wanted).into_iter().map(|vport| Slot { pf, vport }).collect();
        self.redirect_limited(slots);
    }
}
