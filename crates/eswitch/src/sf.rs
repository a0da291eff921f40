//! Scalable functions (SFs): their devlink ports, and their functions, which a queue attaches and detaches.
//!
//! Adding an SF makes a devlink port with a representor, whose function is inactive. When the function is activated,
//! the SF queue adds the SF's auxiliary device, which is a devlink instance with auxiliary devices of its own. The
//! queue holds no representor lock and no PF's devlink lock. So probing the drivers of an SF cannot deadlock with a
//! thread that holds the devlink lock and waits until the SF is detached.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use lockdep::{HistoryMark, LockBefore, Locked, Mutex, Unlocked, WaitMap, digest};

use crate::auxiliary::{AuxKind, AuxiliaryDevice};
use crate::card::Resource;
use crate::device::Pf;
use crate::devlink::{DevlinkState, Parts};
use crate::error::{Error, Result};
use crate::eswitch::LoadPolicy;
use crate::event::Event;
use crate::ids::{MacAddr, Mode, PfIndex, SfNum, Vport};
use crate::lock_order::{Auxiliary, Devlink, SfAuxiliary, SfDevlink, SfQueue as SfQueueClass, SfWanted};
use crate::queue::{Next, Queue};

/// The SFs of a PF, by place. A new SF gets the lowest free place, which determines its vport number.
#[derive(Debug, Default)]
pub struct SfTable {
    sfs: BTreeMap<u16, Arc<SfFunction>>,
    /// The places by number, for the card's own controller and for its host's: each has numbers of its own.
    by_num: [HashMap<SfNum, u16>; 2],
    /// No place of a controller's below these is free.
    lowest_free: [u16; 2],
}

impl SfTable {
    fn contains(&self, external: bool, sfnum: SfNum) -> bool {
        self.by_num[usize::from(external)].contains_key(&sfnum)
    }

    /// The lowest free place of those of a controller.
    fn free_place(&mut self, external: bool, places: Range<u16>) -> Option<u16> {
        let lowest = &mut self.lowest_free[usize::from(external)];
        *lowest = (*lowest).max(places.start);
        while self.sfs.contains_key(lowest) {
            *lowest += 1;
        }
        places.contains(lowest).then_some(*lowest)
    }

    fn insert(&mut self, place: u16, sf: Arc<SfFunction>) {
        self.by_num[usize::from(sf.external)].insert(sf.sfnum, place);
        self.sfs.insert(place, sf);
    }

    fn remove(&mut self, vport: Vport) {
        if let Vport::Sf(place) = vport
            && let Some(sf) = self.sfs.remove(&place)
        {
            let controller = usize::from(sf.external);
            self.by_num[controller].remove(&sf.sfnum);
            self.lowest_free[controller] = self.lowest_free[controller].min(place);
        }
    }

    /// The SF of a vport.
    pub fn get(&self, vport: Vport) -> Option<&Arc<SfFunction>> {
        match vport {
            Vport::Sf(place) => self.sfs.get(&place),
            _ => None,
        }
    }

    /// Every SF, by place.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<SfFunction>> {
        self.sfs.values()
    }
}

/// The function of one SF.
pub struct SfFunction {
    pf: Arc<Pf>,
    vport: Vport,
    sfnum: SfNum,
    external: bool,
    id: u32,
    wanted: Mutex<SfWanted, Wanted>,
    /// The SF's auxiliary device, `mlx5_core.sf.N`: its lock, and whether its driver is bound.
    auxiliary: Mutex<Auxiliary, bool>,
    /// The SF's own devlink instance: its lock, and the auxiliary devices that the SF publishes.
    devlink: Mutex<SfDevlink, Vec<Arc<AuxiliaryDevice<SfAuxiliary>>>>,
}

/// The requested state of an SF's function, and whether the function is attached.
#[derive(Clone, Copy, Hash)]
struct Wanted {
    active: bool,
    /// Whether the user has unbound the SF's driver. Activating the SF again clears it.
    unbound: bool,
    mac: MacAddr,
    /// Whether the SF's function has RDMA.
    roce: bool,
    /// What its driver makes, until it is unbound.
    parts: Parts,
    /// Whether the function is attached. The queue sets this, and a command that binds or unbinds the driver.
    attached: bool,
}

impl Wanted {
    /// The state of a new SF, whose function has no address yet.
    fn new() -> Self {
        Self { active: false, unbound: false, mac: MacAddr::ZERO, roce: true, parts: Parts::default(), attached: false }
    }
}

/// The state of an SF, for users of the crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SfState {
    /// The number that the user gave to the SF.
    pub sfnum: SfNum,
    /// The number of the SF's auxiliary devices on the bus.
    pub id: u32,
    /// `state`: true for active, false for inactive.
    pub active: bool,
    /// `opstate`: true for attached, false for detached.
    pub attached: bool,
    /// The administrative MAC address of the SF's function: zero if nobody has set one.
    pub mac: MacAddr,
    /// Whether the SF's function has RDMA.
    pub roce: bool,
    /// What its driver makes. That of a DPU's host makes no RDMA device here.
    pub parts: Parts,
    /// Whether the user has unbound the SF's driver.
    pub unbound: bool,
}

impl SfFunction {
    /// The PF to which the SF belongs.
    pub fn pf(&self) -> &Arc<Pf> {
        &self.pf
    }

    /// The SF's vport.
    pub fn vport(&self) -> Vport {
        self.vport
    }

    /// The number that the user gave to the SF.
    pub fn sfnum(&self) -> SfNum {
        self.sfnum
    }

    /// The number of the SF's auxiliary devices on the bus.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether the SF is one of a DPU's host, so that its function has no device on the DPU.
    pub fn is_external(&self) -> bool {
        self.external
    }

    /// The present state of the SF.
    pub fn state<L>(&self, cx: &mut Locked<'_, L>) -> SfState {
        let wanted = *self.wanted.lock_leaf(cx);
        let Wanted { active, unbound, mac, roce, parts, attached } = wanted;
        let parts = Parts { rdma: parts.rdma && !self.external, ..parts };
        SfState { sfnum: self.sfnum, id: self.id, active, attached, mac, roce, parts, unbound }
    }

    /// The MAC address that the SF's netdev gets.
    pub(crate) fn mac<L>(&self, cx: &mut Locked<'_, L>) -> MacAddr {
        self.wanted.lock_leaf(cx).mac
    }

    /// Attaches the function if it is active and its driver is not unbound, and detaches it otherwise.
    ///
    /// An external SF is attached by the host's driver, which is always loaded here, and of which only the netdev is made.
    ///
    /// # Errors
    /// The error of the first probe that failed. Devices that were probed stay, and the caller must retry the rest.
    fn settle<P: LockBefore<Auxiliary>>(self: &Arc<Self>, cx: &mut Locked<'_, P>) -> Result<()> {
        let shared = &self.pf.shared;
        // The requested state is read with the device's lock held. The queue and a command that binds the driver may
        // both be here, and the last of them must act on the state that is requested then.
        let (mut bound, mut cx) = self.auxiliary.lock(cx);
        let was_bound = *bound;
        let (active, parts) = {
            let mut wanted = self.wanted.lock_leaf(&mut cx);
            // From here on drivers may use the SF: its address cannot change any more, because it is not detached.
            let active = wanted.active && !wanted.unbound;
            wanted.attached |= active;
            (active, Parts { rdma: wanted.roce && wanted.parts.rdma && !self.external, ..wanted.parts })
        };
        let mut result = Ok(());
        if active {
            let (mut devices, mut cx) = self.devlink.lock(&mut cx);
            let kinds = [(AuxKind::Eth, parts.eth), (AuxKind::Rdma, parts.rdma)];
            for kind in kinds.into_iter().filter_map(|(kind, has)| has.then_some(kind)) {
                let probed = if let Some(device) = devices.iter().find(|d| d.kind() == kind) {
                    shared.bus.attach_sf(&mut cx, &shared.events, device)
                } else {
                    let (device, probed) = shared.bus.add_sf(&mut cx, &shared.events, self, kind);
                    devices.push(device);
                    probed
                };
                result = result.and(probed);
            }
            *bound = true;
        } else if *bound {
            let (mut devices, mut cx) = self.devlink.lock(&mut cx);
            for device in devices.drain(..).rev() {
                shared.bus.remove_sf(&mut cx, &device);
            }
            *bound = false;
        }
        let attached = *bound;
        self.wanted.lock_leaf(&mut cx).attached = attached;
        if attached != was_bound && !self.external {
            shared.events.emit(&mut cx, || if attached { Event::SfBound(self.id) } else { Event::SfUnbound(self.id) });
        }
        result
    }
}

/// The queue that attaches and detaches the functions of a PF's SFs, and the SFs that it serves.
#[derive(Debug)]
pub(crate) struct SfQueue {
    queue: Queue<Arc<SfFunction>>,
    map: WaitMap<SfQueueClass>,
    all: Mutex<SfWanted, BTreeMap<Vport, Arc<SfFunction>>>,
}

/// The mark that requests that the queue settles every SF.
const LOOK_AT_ALL: u8 = 1;

impl SfQueue {
    pub fn new(pf: PfIndex) -> Self {
        Self {
            queue: Queue::new(format!("pf{} sf", pf.0)),
            map: WaitMap::new(),
            all: Mutex::new(BTreeMap::new()).with_state_digest(digest),
        }
    }

    /// Queues an SF whose requested state has changed. If there is no memory, requests that every SF is settled.
    fn kick<L: lockdep::MayWait>(&self, cx: &mut Locked<'_, L>, sf: &Arc<SfFunction>) {
        if self.queue.push(cx, Arc::clone(sf)).is_err() {
            self.queue.mark(cx, LOOK_AT_ALL);
        }
    }

    /// Waits until the queue has settled every SF that was queued. A settle that fails counts; its retry is not waited
    /// for.
    fn drain(&self, cx: &mut Locked<'_, Devlink>) {
        self.map.drain(cx);
        self.queue.wait_rested(cx, false, None);
    }

    /// The SFs that the queue serves, for invariants.
    pub fn known<L>(&self, cx: &mut Locked<'_, L>) -> Vec<Vport> {
        self.all.lock_leaf(cx).keys().copied().collect()
    }

    /// The queue itself, to wait for it or to read its state.
    pub fn inner(&self) -> &Queue<Arc<SfFunction>> {
        &self.queue
    }

    /// Declares to the lock checker that the thread is about to wait for what runs on the SF queue.
    #[track_caller]
    pub fn about_to_drain<P: LockBefore<SfQueueClass>>(&self, cx: &mut Locked<'_, P>) {
        self.map.drain(cx);
    }
}

/// A request to add an SF, as by `devlink port add`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SfRequest {
    /// `controller`: 0 for the card's own, 1 for the host of a DPU.
    pub controller: u32,
    /// `pfnum`.
    pub pfnum: u32,
    /// `sfnum`.
    pub sfnum: SfNum,
    /// The place of an SF that is restored. `None` for the lowest free place.
    pub place: Option<u16>,
    /// The number of its auxiliary devices, of an SF that is restored: its name stays what it was. `None` for the next one.
    pub id: Option<u32>,
}

impl Pf {
    /// `devlink port add … flavour pcisf pfnum P sfnum S [controller C]`: adds an inactive SF with a representor. The
    /// checks are in mlx5's order (`mlx5_sf_new_check_attr`, `mlx5_sf_alloc` in `sf/devlink.c`).
    ///
    /// # Errors
    /// The card has no SFs; the mode is legacy; the card has no such controller; `pfnum` is not that of this PF; the SF number is in use; all SFs are in
    /// use; or the first failure. Nothing has changed then.
    pub(crate) fn add_sf(
        self: &Arc<Self>,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        request: SfRequest,
    ) -> Result<Vport> {
        let config = &self.shared.config;
        if config.max_sfs == 0 {
            return Err(Error::NoSfs);
        }
        if self.eswitch.mode.under_devlink(state, cx) == Mode::Legacy {
            return Err(Error::SfInLegacy);
        }
        if request.controller != 0 && !config.dpu {
            return Err(Error::SfController);
        }
        if request.pfnum != self.index().0.into() {
            return Err(Error::SfPfnum { given: request.pfnum, own: self.index().0 });
        }
        if request.controller > 1 {
            return Err(Error::NoController(request.controller));
        }
        let external = request.controller == 1;
        if state.sfs.contains(external, request.sfnum) {
            return Err(Error::SfExists(request.sfnum));
        }
        let places = config.sf_places(external);
        let place = match request.place {
            Some(place) => {
                Some(place).filter(|place| places.contains(place) && state.sfs.get(Vport::Sf(*place)).is_none())
            }
            None => state.sfs.free_place(external, places.clone()),
        };
        let place = place.ok_or(Error::SfsFull(places.len() as u16))?;
        let vport = Vport::Sf(place);
        self.enable_vports(state, cx, Mode::Switchdev, &[vport], Some(request.sfnum), LoadPolicy::Strict)?;
        let sf = Arc::new(SfFunction {
            pf: Arc::clone(self),
            vport,
            sfnum: request.sfnum,
            external,
            id: self.shared.bus.new_id(cx, request.id),
            wanted: Mutex::new(Wanted::new()).with_role(&("sf wanted", self.index(), vport)).with_state_digest(digest),
            auxiliary: Mutex::new(false).with_role(&("sf device", self.index(), vport)).with_state_digest(digest),
            devlink: Mutex::new(Vec::new()).with_role(&("sf devlink", self.index(), vport)).with_state_digest(digest),
        });
        self.sf_queue.all.lock_leaf(cx).insert(vport, Arc::clone(&sf));
        state.sfs.insert(place, sf);
        self.ensure_ports(cx, state, &[vport], true);
        Ok(vport)
    }

    /// `devlink port function set … state` of an SF. If the SF has that state already, this succeeds.
    ///
    /// # Errors
    /// [`Error::SfAttached`]: the SF is to be activated while its function is still attached from before.
    pub(crate) fn set_sf_active(
        &self,
        sf: &Arc<SfFunction>,
        cx: &mut Locked<'_, Devlink>,
        active: bool,
        parts: Parts,
    ) -> Result<()> {
        {
            let mut wanted = sf.wanted.lock_leaf(cx);
            if wanted.active == active {
                return Ok(());
            }
            if active && wanted.attached {
                return Err(Error::SfAttached);
            }
            wanted.active = active;
            (wanted.unbound, wanted.parts) = (false, parts);
        }
        self.sf_queue.kick(cx, sf);
        Ok(())
    }

    /// Gives an SF that has just been added its agreed state. Both settings are made in one step, so that a driver that
    /// is to be unbound is never bound.
    pub(crate) fn restore_sf(
        &self,
        sf: &Arc<SfFunction>,
        cx: &mut Locked<'_, Devlink>,
        active: bool,
        unbound: bool,
        parts: Parts,
    ) {
        {
            let mut wanted = sf.wanted.lock_leaf(cx);
            (wanted.active, wanted.unbound, wanted.parts) = (active, unbound, parts);
        }
        if active {
            self.sf_queue.kick(cx, sf);
        }
    }

    /// `devlink port function set … hw_addr` of an SF.
    ///
    /// # Errors
    /// [`Error::SfActive`]: the SF is active or still attached.
    pub(crate) fn set_sf_mac(&self, sf: &Arc<SfFunction>, cx: &mut Locked<'_, Devlink>, mac: MacAddr) -> Result<()> {
        let handle = self.port_handle(sf.vport);
        let mut wanted = sf.wanted.lock_leaf(cx);
        if wanted.active || wanted.attached {
            return Err(Error::SfActive(handle));
        }
        wanted.mac = mac;
        drop(wanted);
        let netdev = Resource::SfNetdev(self.index(), sf.vport);
        let has_old = || format!("{handle} gets an address, and its netdev exists with the old one");
        cx.ensure("true-success", || !self.shared.has_made(&netdev), has_old);
        Ok(())
    }

    /// `devlink port function set … roce` of an SF.
    ///
    /// # Errors
    /// [`Error::SfActive`]: the SF is active or still attached.
    pub(crate) fn set_sf_roce(&self, sf: &Arc<SfFunction>, cx: &mut Locked<'_, Devlink>, roce: bool) -> Result<()> {
        let handle = self.port_handle(sf.vport);
        let mut wanted = sf.wanted.lock_leaf(cx);
        if wanted.active || wanted.attached {
            return Err(Error::SfActive(handle));
        }
        wanted.roce = roce;
        Ok(())
    }

    /// Binds an SF's device to its driver, or unbinds it. When this returns, the SF's netdev and RDMA device have been
    /// made or unmade.
    ///
    /// # Errors
    /// [`Error::NoSfDevice`]: the SF is not active, or is to be unbound and is not bound. [`Error::SfBound`]: it is to
    /// be bound and is bound. Or the error of a probe, which is retried.
    pub(crate) fn set_sf_bound(
        &self,
        sf: &Arc<SfFunction>,
        cx: &mut Locked<'_, Devlink>,
        bound: bool,
        parts: Parts,
    ) -> Result<()> {
        {
            let mut wanted = sf.wanted.lock_leaf(cx);
            if !wanted.active {
                return Err(Error::NoSfDevice(sf.id));
            }
            if wanted.unbound != bound {
                return Err(if bound { Error::SfBound(sf.id) } else { Error::NoSfDevice(sf.id) });
            }
            wanted.unbound = !bound;
            if !bound {
                wanted.parts = parts;
            }
        }
        let settled = sf.settle(cx);
        if settled.is_err() {
            self.want_sfs(cx);
        }
        settled
    }

    /// Sets what an SF's driver makes when it is bound next.
    ///
    /// # Errors
    /// [`Error::SfBound`]: it is bound.
    pub(crate) fn set_sf_parts(&self, sf: &Arc<SfFunction>, cx: &mut Locked<'_, Devlink>, parts: Parts) -> Result<()> {
        let mut wanted = sf.wanted.lock_leaf(cx);
        if wanted.active && !wanted.unbound {
            return Err(Error::SfBound(sf.id));
        }
        wanted.parts = parts;
        Ok(())
    }

    /// `devlink port del`: deactivates the SF, waits until its function is detached, and deletes its port.
    pub(crate) fn delete_sf(&self, state: &mut DevlinkState, cx: &mut Locked<'_, Devlink>, sf: &Arc<SfFunction>) {
        self.delete_sfs(state, cx, std::slice::from_ref(sf));
    }

    /// Deletes every SF, when the PF leaves switchdev mode or is unbound.
    pub(crate) fn delete_all_sfs(&self, state: &mut DevlinkState, cx: &mut Locked<'_, Devlink>) {
        let all: Vec<_> = state.sfs.iter().cloned().collect();
        self.delete_sfs(state, cx, &all);
    }

    fn delete_sfs(&self, state: &mut DevlinkState, cx: &mut Locked<'_, Devlink>, sfs: &[Arc<SfFunction>]) {
        if sfs.is_empty() {
            return;
        }
        for sf in sfs {
            sf.wanted.lock_leaf(cx).active = false;
            self.sf_queue.kick(cx, sf);
        }
        self.sf_queue.drain(cx);
        let vports: Vec<Vport> = sfs.iter().map(|sf| sf.vport).collect();
        let mode = self.eswitch.mode.under_devlink(state, cx);
        self.disable_vports(state, cx, mode, &vports);
        for vport in &vports {
            state.sfs.remove(*vport);
            self.sf_queue.all.lock_leaf(cx).remove(vport);
        }
        self.ensure_ports(cx, state, &vports, false);
        self.ensure_no_functions(cx, &vports);
    }

    /// States that nothing is left of the functions of SFs that have been deleted.
    fn ensure_no_functions(&self, cx: &Locked<'_, Devlink>, vports: &[Vport]) {
        let functions = vports.iter().flat_map(|vport| {
            let pf = self.index();
            [Resource::SfNetdev(pf, *vport), Resource::SfIbDevice(pf, *vport)]
        });
        cx.ensure(
            "true-success",
            || !functions.clone().any(|function| self.shared.has_made(&function)),
            || format!("{}: SFs {vports:?} are deleted, and resources of their functions exist", self.address()),
        );
    }

    /// Serves the SF queue until it is closed. This is the body of the queue's thread.
    pub(crate) fn serve_sfs(self: &Arc<Self>, cx: &mut Locked<'_, Unlocked>) {
        let sfs = &self.sf_queue;
        let since = HistoryMark::now();
        while let Some(next) = sfs.queue.next(cx, since) {
            let _change = self.shared.change();
            let (_inside, mut cx) = sfs.map.run(cx);
            let (some, all) = match next {
                Next::Item(sf) => (vec![sf], false),
                Next::Marks(_) | Next::Retry => (sfs.all.lock_leaf(&mut cx).values().cloned().collect(), true),
            };
            let failed = some.iter().filter(|sf| sf.settle(&mut cx).is_err()).count() > 0;
            if failed {
                sfs.queue.retry(&mut cx, |attempt| self.shared.config.retry_delay(attempt));
            } else if all {
                sfs.queue.no_retry(&mut cx);
            }
        }
    }

    /// Requests that the queue settles every SF, because a driver of one of them failed to probe.
    pub(crate) fn want_sfs<L>(&self, cx: &mut Locked<'_, L>) {
        self.sf_queue.queue.mark(cx, LOOK_AT_ALL);
    }
}

/// The hash of the SF's identity and lock, not of its present state.
impl Hash for SfFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.vport, self.sfnum, self.id, &self.wanted).hash(state);
    }
}

/// `by_num` is not hashed, because it follows from the other fields.
impl Hash for SfTable {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.sfs, self.lowest_free).hash(state);
    }
}

impl std::fmt::Debug for SfFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SfFunction").field("vport", &self.vport).field("sfnum", &self.sfnum).finish_non_exhaustive()
    }
}
