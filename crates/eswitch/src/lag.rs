//! LAG: link aggregation over the two to four PFs of a card, as mlx5 makes it of a bond.
//!
//! Changes of the bond over the ports are reported as events. Events are collected for a moment and evaluated once, on
//! the LAG queue. An evaluation decides under the LAG lock whether a LAG is to be enabled, changed or disabled, and
//! releases the lock. The decision is carried out under the devcom component, which is held for writing from before the
//! decision until the outcome has been recorded. So the members cannot change meanwhile: adding or removing a PF takes
//! the component for writing, and waits.
//!
//! Load callbacks report the *netdevs* of members. They hold a representor lock, for which a transition may be waiting.
//! So they take the LAG lock and no other, and never wait for a transition.

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

pub use transition::MemberState;

/// How a bond chooses the port on which it transmits. A command names ports by PCI address, the engine by PF number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TxType<Port = PfIndex> {
    /// Transmits on the active port, if there is one.
    ActiveBackup(Option<Port>),
    /// Chooses the port by a hash of the headers.
    Hash,
    /// Any other bond mode, by its name. The card cannot offload it.
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
    /// The bond's name.
    pub name: String,
    /// How the bond transmits.
    pub tx: TxType,
    /// The card's ports that are in the bond.
    pub ports: BTreeSet<PfIndex>,
    /// The names of other netdevs that are in the bond.
    pub foreign: Vec<String>,
}

/// A request to make a bond. In a command `Port` is a PCI address, on a card it is the PF's index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BondPlan<Port = PfIndex> {
    /// The bond's name.
    pub name: String,
    /// The bond's mode, by the kernel's name (`Documentation/networking/bonding.rst`).
    pub mode: String,
    /// The PFs whose netdevs are in the bond. If a PF has no netdev now, its netdev is added when it is made.
    pub ports: Vec<Port>,
    /// The names of other netdevs that are in the bond. A netdev that does not exist is made.
    pub with: Vec<String>,
    /// The PF whose netdev is the active one in the mode `active-backup`.
    pub active: Option<Port>,
}

impl<Port> BondPlan<Port> {
    /// The same request with each port converted by `name`.
    ///
    /// # Errors
    /// The first error that `name` returns.
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

/// The state of the LAG, for users of the crate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LagView {
    /// The mode of the LAG.
    pub mode: LagMode,
    /// The name of the bond, if there is one.
    pub bond: Option<String>,
    /// The reason for which there is no LAG although there is a bond.
    pub reason: Option<String>,
    /// The ports on which the LAG transmits.
    pub tx: Vec<PfIndex>,
}

/// The state that the LAG lock protects.
#[derive(Clone, Default, Hash)]
struct State {
    bond: Option<Bond>,
    /// The PFs whose netdev exists.
    netdevs: BTreeSet<PfIndex>,
    mode: LagMode,
    tx: Vec<PfIndex>,
    /// The members of the LAG, the master first, as they were when it was enabled. Disabling it uses these, even if the
    /// component has other members by then.
    members: Vec<PfIndex>,
    reason: Option<String>,
    evaluations: Unhashed<u64>,
    /// The peers of the master, while the shared RDMA device of the master is being made or exists.
    peers: BTreeMap<PfIndex, Arc<Pf>>,
    /// The mode of the LAG to which `peers` belong.
    sharing: LagMode,
}

/// A value that decides nothing. It is not hashed, so it is not part of the state that an explorer sees.
#[derive(Clone, Copy, Debug, Default)]
struct Unhashed<T>(T);

impl<T> Hash for Unhashed<T> {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl State {
    /// The members, and the ports on which the LAG transmits.
    fn transmits(&self) -> (Vec<PfIndex>, Vec<PfIndex>) {
        (self.members.clone(), self.tx.clone())
    }

    /// Whether an evaluation could change something: there is a bond, or a reason left of a bond that made no LAG. An
    /// evaluation neither enables nor disables multiport E-Switch, which is the only LAG that needs no bond.
    fn has_bond(&self) -> bool {
        self.bond.is_some() || self.reason.is_some()
    }
}

/// The LAG of one card.
pub struct Lag {
    /// Whether the card has only one port. Such a card has no LAG whatever the state of its PF is. So holds have no
    /// effect, and only a change of the bond is evaluated, to record the reason.
    one_port: bool,
    state: Mutex<LagClass, State>,
    holds: Mutex<LagHolds, u32>,
    queue: Queue<()>,
    map: WaitMap<LagQueueClass>,
    seen: Shadow<Seen>,
}

/// The time for which events are collected before they are evaluated.
const COLLECT: Duration = Duration::from_millis(10);

impl Lag {
    /// The LAG of a card with this number of ports.
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

    /// Holds evaluations off: an evaluation that starts while there is a hold does nothing. Each hold must be
    /// [released](Self::release).
    pub fn hold<L>(&self, cx: &mut Locked<'_, L>) {
        if self.one_port {
            return;
        }
        *self.holds.lock_leaf(cx) += 1;
    }

    /// Releases a hold. Releasing the last hold requests an evaluation.
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

    /// Whether there is a hold.
    pub fn is_held_off<L>(&self, cx: &mut Locked<'_, L>) -> bool {
        *self.holds.lock_leaf(cx) > 0
    }

    /// Stores the bond over the card's ports, which has changed, and requests an evaluation. `None` if there is no bond
    /// any more. Takes the LAG lock, and never waits for a transition.
    pub fn bond_changed<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>, bond: Option<Bond>) {
        self.state.lock(cx).0.bond = bond;
        self.evaluate_soon(cx);
    }

    /// Records that a PF's netdev exists. A load callback or the netdev's driver calls this after making it.
    pub(crate) fn netdev_added<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>, pf: PfIndex) {
        self.state.lock(cx).0.netdevs.insert(pf);
        self.members_changed(cx);
    }

    /// Records that a PF's netdev does not exist any more. Its driver calls this before unmaking it.
    pub(crate) fn netdev_removed<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>, pf: PfIndex) {
        self.state.lock(cx).0.netdevs.remove(&pf);
        self.members_changed(cx);
    }

    /// The peers of a PF and the mode of the LAG, if the PF is the master and its shared RDMA device exists or is being
    /// made.
    pub(crate) fn peers_of<P: LockBefore<LagClass>>(
        &self,
        cx: &mut Locked<'_, P>,
        master: PfIndex,
    ) -> Option<(LagMode, Vec<Arc<Pf>>)> {
        let (state, _cx) = self.state.lock(cx);
        let (first, _) = state.peers.first_key_value()?;
        (master < *first).then(|| (state.sharing, state.peers.values().cloned().collect()))
    }

    /// The mode of the LAG.
    pub fn mode<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>) -> LagMode {
        self.state.lock(cx).0.mode
    }

    /// The present state of the LAG.
    pub fn view<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>) -> LagView {
        let (state, _cx) = self.state.lock(cx);
        LagView {
            mode: state.mode,
            bond: state.bond.as_ref().map(|bond| bond.name.clone()),
            reason: state.reason.clone(),
            tx: state.tx.clone(),
        }
    }

    /// The number of evaluations so far. Several events that were collected are evaluated once.
    pub fn evaluations<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>) -> u64 {
        let evaluations = self.state.lock(cx).0.evaluations.0;
        cx.learns(&evaluations);
        evaluations
    }

    /// Requests an evaluation because the state of a member has changed, if there is a bond or a reason that it could
    /// affect. A change of the bond itself is always evaluated, see [`bond_changed`](Self::bond_changed).
    pub(crate) fn members_changed<P: LockBefore<LagClass>>(&self, cx: &mut Locked<'_, P>) {
        if !self.one_port && self.state.lock(cx).0.has_bond() {
            self.evaluate_soon(cx);
        }
    }

    /// Requests an evaluation after [`COLLECT`]. Further requests until then have no effect.
    fn evaluate_soon<L>(&self, cx: &mut Locked<'_, L>) {
        self.queue.collect(cx, COLLECT);
    }

    /// The LAG queue, to wait for it, to read its state or to close it.
    pub(crate) fn queue(&self) -> &Queue<()> {
        &self.queue
    }

    /// Declares to the lock checker that the thread is about to wait for what runs on the LAG queue.
    #[track_caller]
    pub(crate) fn about_to_drain<P: LockBefore<LagQueueClass>>(&self, cx: &mut Locked<'_, P>) {
        self.map.drain(cx);
    }
}

impl Shared {
    /// Serves the LAG queue until it is closed. This is the body of the queue's thread.
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
