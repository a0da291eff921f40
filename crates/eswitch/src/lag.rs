//! LAG: two to four PFs acting as one.
//!
//! What is there to be acted on, a bond over the ports, comes as events. They are collected, and
//! evaluated once, on LAG's own queue. An evaluation decides under the LAG lock what is to become of it and
//! drops that lock; what it decided is carried out under the devcom component, which is held for
//! writing from before the decision until after the outcome is recorded. So which devices are members
//! cannot change meanwhile: adding or removing one takes the component for writing, and waits.
//!
//! Load callbacks tell LAG of members' *netdevs*. They hold a representor lock, for which a transition may
//! be waiting, so they take the LAG lock and nothing else, and never wait for a transition.

mod mpesw;
mod transition;
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use lockdep::{HistoryMark, LockBefore, Locked, Mutex, Shadow, Unlocked, WaitMap, digest};
use serde::{Deserialize, Serialize};

use crate::device::Pf;
pub use crate::ids::LagMode;
use crate::ids::PfIndex;
use crate::lock_order::{Lag as LagClass, LagHolds, LagQueue as LagQueueClass};
use crate::queue::{Next, Queue};
use crate::shared::Shared;

use whole::Seen;

pub use transition::Member;

/// How a bond chooses the port it sends on. A command names ports by their PCI address, a card by their place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TxType<Port = PfIndex> {
    /// One port, the active one, if it has any.
    ActiveBackup(Option<Port>),
    /// By a hash of the headers.
    Hash,
    /// In a way that a card cannot follow: the bond's mode.
    Other(String),
}

impl<Port> TxType<Port> {
    /// The same choice with its port named otherwise.
    ///
    /// # Errors
    /// The error that `name` returns for the active port.
    pub fn with_ports<Other, E>(self, name: impl FnOnce(&Port) -> Result<Other, E>) -> Result<TxType<Other>, E> {
        Ok(match self {
            Self::ActiveBackup(active) => TxType::ActiveBackup(active.as_ref().map(name).transpose()?),
            Self::Hash => TxType::Hash,
            Self::Other(mode) => TxType::Other(mode),
        })
    }
}

/// A bond that has at least one of the card's ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bond {
    /// Its name.
    pub name: String,
    /// How it sends.
    pub tx: TxType,
    /// Which of the card's ports are in it.
    pub ports: BTreeSet<PfIndex>,
    /// What else is in it.
    pub foreign: Vec<String>,
}

/// A bond as a command asks for it. A command names ports by their PCI address, a card by their place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BondPlan<Port = PfIndex> {
    /// The bond's name.
    pub name: String,
    /// Its mode, by the kernel's name (Documentation/networking/bonding.rst).
    pub mode: String,
    /// The PFs whose netdevs are in it. One that has no netdev now is put in when it gets one.
    pub ports: Vec<Port>,
    /// Other netdevs that are in it; one that does not exist is made.
    pub with: Vec<String>,
    /// The PF whose netdev is the active one under `active-backup`.
    pub active: Option<Port>,
}

impl<Port> BondPlan<Port> {
    /// The same plan with its ports named otherwise.
    ///
    /// # Errors
    /// The first of `name`.
    pub fn with_ports<Other, E>(&self, name: impl Fn(&Port) -> Result<Other, E>) -> Result<BondPlan<Other>, E> {
        Ok(BondPlan {
            name: self.name.clone(),
            mode: self.mode.clone(),
            ports: self.ports.iter().map(&name).collect::<Result<_, E>>()?,
            with: self.with.clone(),
            active: self.active.as_ref().map(&name).transpose()?,
        })
    }
}

/// What of LAG can be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LagView {
    /// The mode.
    pub mode: LagMode,
    /// The bond, if there is one.
    pub bond: Option<String>,
    /// Why there is no LAG though there is a bond.
    pub reason: Option<String>,
    /// Which ports it sends on.
    pub tx: Vec<PfIndex>,
}

/// What the LAG lock protects.
#[derive(Clone, Default, Hash)]
struct State {
    bond: Option<Bond>,
    /// Members whose netdev exists.
    netdevs: BTreeSet<PfIndex>,
    mode: LagMode,
    tx: Vec<PfIndex>,
    /// Who was made one, the master first: it is they who are parted, whoever is a member then.
    members: Vec<PfIndex>,
    reason: Option<String>,
    evaluations: Untold<u64>,
    /// While one RDMA device is being made or exists on the master: who its peers are.
    peers: BTreeMap<PfIndex, Arc<Pf>>,
    /// The mode in which they are.
    sharing: LagMode,
}

/// A number that nothing is decided by, and so is no part of the state that an explorer sees.
#[derive(Clone, Copy, Debug, Default)]
struct Untold<T>(T);

impl<T> Hash for Untold<T> {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl State {
    /// Whether there is a bond, or a word left of one that was not followed. Multiport E-Switch, the one
    /// LAG that needs no bond, is not made or broken by an evaluation.
    fn has_bond(&self) -> bool {
        self.bond.is_some() || self.reason.is_some()
    }
}

/// The LAG of one card.
pub struct Lag {
    /// A card with one port makes no LAG, whatever its mode and its netdevs: there is nothing to hold
    /// off, and nothing to evaluate but why a bond is not followed.
    one_port: bool,
    state: Mutex<LagClass, State>,
    holds: Mutex<LagHolds, u32>,
    queue: Queue<()>,
    map: WaitMap<LagQueueClass>,
    seen: Shadow<Seen>,
}

/// How long events are collected before they are evaluated.
const COLLECT: Duration = Duration::from_millis(10);

impl Lag {
    /// That of a card with so many ports.
    pub(crate) fn new(ports: u8) -> Self {
        Self {
            one_port: ports < 2,
            state: Mutex::new(State::default()).with_state_digest(digest),
            holds: Mutex::new(0).with_state_digest(digest),
            queue: Queue::new("lag".to_owned()),
            map: WaitMap::new(),
            seen: Shadow::default(),
        }
    }

    /// Holds evaluations off: those that would start find the hold. Each hold must be released.
    pub fn hold<L>(&self, cx: &mut Locked<'_, L>) {
        if self.one_port {
            return;
        }
        *self.holds.lock_leaf(cx) += 1;
    }

    /// Releases a hold. With the last one, what there is is evaluated.
    pub fn release<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>) {
        if self.one_port {
            return;
        }
        let last = {
            let mut holds = self.holds.lock_leaf(cx);
            *holds -= 1;
            *holds == 0
        };
        if last {
            self.members_changed(cx);
        }
    }

    /// Whether anybody holds LAG off.
    pub fn is_held_off<L>(&self, cx: &mut Locked<'_, L>) -> bool {
        *self.holds.lock_leaf(cx) > 0
    }

    /// The bond over the card's ports has changed, or gone. Takes the LAG lock and never waits for a
    /// transition.
    pub fn bond_changed<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>, bond: Option<Bond>) {
        self.state.lock(cx).0.bond = bond;
        self.evaluate_soon(cx);
    }

    /// A load callback, or the netdev's driver, has made a member's netdev.
    pub(crate) fn netdev_added<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>, pf: PfIndex) {
        self.state.lock(cx).0.netdevs.insert(pf);
        self.members_changed(cx);
    }

    /// A member's netdev is going.
    pub(crate) fn netdev_removed<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>, pf: PfIndex) {
        self.state.lock(cx).0.netdevs.remove(&pf);
        self.members_changed(cx);
    }

    /// The peers of a PF, if it is the master of the one RDMA device there is or is to be, and the mode
    /// in which it is that.
    pub(crate) fn peers_of<P: LockBefore<LagClass>>(
        &self,
        cx: &mut Locked<'_, P>,
        master: PfIndex,
    ) -> Option<(LagMode, Vec<Arc<Pf>>)> {
        let (state, _cx) = self.state.lock(cx);
        let (first, _) = state.peers.first_key_value()?;
        (master < *first).then(|| (state.sharing, state.peers.values().cloned().collect()))
    }

    /// The mode.
    pub fn mode<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>) -> LagMode {
        self.state.lock(cx).0.mode
    }

    /// What of it can be looked at.
    pub fn view<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>) -> LagView {
        let (state, _cx) = self.state.lock(cx);
        LagView {
            mode: state.mode,
            bond: state.bond.as_ref().map(|bond| bond.name.clone()),
            reason: state.reason.clone(),
            tx: state.tx.clone(),
        }
    }

    /// Evaluations so far: how much work events have led to.
    pub fn evaluations<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>) -> u64 {
        let evaluations = self.state.lock(cx).0.evaluations.0;
        cx.learns(&evaluations);
        evaluations
    }

    /// What the members are or can do has changed: evaluates it, if there is a bond for which that could
    /// matter. One that comes or goes is evaluated anyway.
    pub(crate) fn members_changed<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>) {
        if !self.one_port && self.state.lock(cx).0.has_bond() {
            self.evaluate_soon(cx);
        }
    }

    /// Events are collected for a moment; however many come meanwhile, they are evaluated once.
    fn evaluate_soon<L>(&self, cx: &mut Locked<'_, L>) {
        self.queue.collect(cx, COLLECT);
    }

    /// The queue, for those who wait for it, look at it or close it.
    pub(crate) fn queue(&self) -> &Queue<()> {
        &self.queue
    }

    /// Says that the thread is about to wait for what runs here.
    #[track_caller]
    pub(crate) fn about_to_drain<P: LockBefore<LagQueueClass>>(&self, cx: &mut Locked<'_, P>) {
        self.map.drain(cx);
    }
}

impl Shared {
    /// Serves LAG's queue until it is closed: the body of its thread.
    pub(crate) fn serve_lag(self: &Arc<Self>, cx: &mut Locked<'_, Unlocked>) {
        let since = HistoryMark::now();
        while let Some(next) = self.lag.queue.next(cx, since) {
            let _change = self.change();
            let (_inside, mut cx) = self.lag.map.run(cx);
            match next {
                Next::Item(()) | Next::Marks(_) | Next::Retry => self.evaluate_lag(&mut cx),
            }
        }
    }
}
