//! Events for subscribers, and the counter of changes.

mod published;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Weak};

use lockdep::{AtomicU64, Locked, Mutex, Shadow, tell};

use crate::card::{NetdevChange, Resource};
use crate::ids::{LagMode, Mode, PciAddress, PfIndex, PortHandle, RepType};
use crate::lock_order::Events as EventsClass;
use crate::text::escaped;

pub(crate) use published::{Instance, Published};

/// Something that has happened to the card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A PF or a VF was bound to its driver.
    DeviceBound(PciAddress),
    /// A PF or a VF was unbound.
    DeviceUnbound(PciAddress),
    /// The function of an SF was attached: the SF device of this number was bound to its driver.
    SfBound(u32),
    /// The function of an SF was detached: the SF device of this number was unbound.
    SfUnbound(u32),
    /// An E-Switch has entered a mode.
    Mode(PciAddress, Mode),
    /// A PF's number of VFs has changed.
    Vfs(PciAddress, u16),
    /// A devlink port was added.
    PortNew(PortHandle),
    /// A devlink port was deleted.
    PortDel(PortHandle),
    /// This number of representors of a type were loaded.
    Loaded(PciAddress, RepType, usize),
    /// This number of representors of a type were unloaded.
    Unloaded(PciAddress, RepType, usize),
    /// A representor failed to load; with the error.
    LoadFailed(PortHandle, RepType, String),
    /// Not all VFs that a DPU's host has enabled exist; with the error.
    HostVfsFailed(PciAddress, String),
    /// A driver failed to probe an auxiliary device, or a PCI function after a rescan: the device's name, and the
    /// error.
    ProbeFailed(String, String),
    /// Another program has renamed or moved a netdev of the card.
    Netdev(Resource, NetdevChange),
    /// Ops of a type were registered.
    Registered(PciAddress, RepType),
    /// Ops of a type were unregistered.
    Unregistered(PciAddress, RepType),
    /// Work was dropped because the generation had changed since it was queued.
    StaleWork(PciAddress, &'static str),
    /// Something failed and is retried after this number of milliseconds.
    Retry(PciAddress, u64),
    /// The LAG's mode, and the reason if there is a bond but no LAG.
    Lag(LagMode, Option<String>),
    /// Two E-Switches were paired (true) or unpaired (false).
    Paired(PfIndex, PfIndex, bool),
    /// A module was loaded.
    ModuleLoaded(&'static str),
    /// A module was unloaded.
    ModuleUnloaded(&'static str),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceBound(a) => write!(f, "pci/{a}: bound"),
            Self::DeviceUnbound(a) => write!(f, "pci/{a}: unbound"),
            Self::SfBound(id) => write!(f, "auxiliary/mlx5_core.sf.{id}: bound"),
            Self::SfUnbound(id) => write!(f, "auxiliary/mlx5_core.sf.{id}: unbound"),
            Self::Mode(a, mode) => write!(f, "pci/{a}: mode {mode}"),
            Self::Vfs(a, n) => write!(f, "pci/{a}: {n} VFs"),
            Self::PortNew(port) => write!(f, "{port}: new"),
            Self::PortDel(port) => write!(f, "{port}: del"),
            Self::Loaded(a, ty, n) => write!(f, "pci/{a}: {n} {ty} representors loaded"),
            Self::Unloaded(a, ty, n) => write!(f, "pci/{a}: {n} {ty} representors unloaded"),
            Self::LoadFailed(port, ty, why) => write!(f, "{port}: {ty} representor did not load: {}", escaped(why)),
            Self::HostVfsFailed(a, why) => write!(f, "pci/{a}: not all VFs of the host exist: {}", escaped(why)),
            Self::ProbeFailed(device, why) => write!(f, "{device}: probe failed: {}", escaped(why)),
            Self::Netdev(netdev, change) => write!(f, "{netdev}: {change}"),
            Self::Registered(a, ty) => write!(f, "pci/{a}: {ty} ops registered"),
            Self::Unregistered(a, ty) => write!(f, "pci/{a}: {ty} ops unregistered"),
            Self::StaleWork(a, work) => write!(f, "pci/{a}: stale work dropped: {work}"),
            Self::Retry(a, ms) => write!(f, "pci/{a}: retry in {ms} ms"),
            Self::Lag(mode, None) => write!(f, "lag: {mode}"),
            Self::Lag(mode, Some(why)) => write!(f, "lag: {mode}; {}", escaped(why)),
            Self::Paired(a, b, true) => write!(f, "pf{} and pf{} paired", a.0, b.0),
            Self::Paired(a, b, false) => write!(f, "pf{} and pf{} unpaired", a.0, b.0),
            Self::ModuleLoaded(name) => write!(f, "module {name} loaded"),
            Self::ModuleUnloaded(name) => write!(f, "module {name} unloaded"),
        }
    }
}

/// The largest number of events that are kept for one subscriber. The oldest are dropped first.
const KEPT: usize = 4096;

struct Buffer {
    kept: Mutex<EventsClass, Kept>,
    wake: Option<Wake>,
}

/// The callback that wakes a subscriber.
type Wake = Box<dyn Fn() + Send + Sync>;

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kept.fmt(f)
    }
}

/// The data that is kept for one subscriber.
#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Event>,
    /// The texts that the subscriber looks for among the events.
    watched: Vec<String>,
}

/// The publishing side: the subscribers, and the counter of changes.
#[derive(Debug)]
pub(crate) struct Events {
    subscribers: Mutex<EventsClass, Vec<Weak<Buffer>>>,
    changes: Changes,
    /// The addresses of the card's PFs. Any other address is a VF's.
    pfs: Vec<PciAddress>,
    published: Shadow<Published>,
}

/// Counts the changes that a view of the card may show.
///
/// Each lock under which commands run has the counter, and counts a change when it is released. So nothing that the
/// lock protects can change without being counted.
#[derive(Clone, Debug)]
pub(crate) struct Changes(Arc<AtomicU64>);

impl Default for Changes {
    fn default() -> Self {
        // No thread of the engine decides anything by the count, so an explorer need not see it.
        lockdep::unexplored(|| Self(Arc::new(AtomicU64::new(0))))
    }
}

impl Changes {
    /// The number of changes so far.
    pub fn now(&self) -> u64 {
        self.0.load()
    }

    /// Begins a change. It is counted when the returned value is dropped.
    pub fn begin(&self) -> Change<'_> {
        Change(&self.0)
    }
}

/// A change in progress, which is counted when this is dropped.
#[must_use]
pub(crate) struct Change<'a>(&'a AtomicU64);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1);
    }
}

/// The events for one subscriber. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription(Arc<Buffer>);

impl Events {
    /// Events of a card whose PFs have these addresses. There are no subscribers yet.
    pub fn new(pfs: Vec<PciAddress>) -> Self {
        // The engine publishes events and never reads them, so their order makes no difference to an explorer.
        lockdep::unexplored(|| Self {
            subscribers: Mutex::new(Vec::new()),
            changes: Changes::default(),
            pfs,
            published: Shadow::default(),
        })
    }

    /// Reads what the events so far have published, on a thread that is checked.
    pub fn published<R>(&self, f: impl FnOnce(&Published) -> R) -> R {
        self.published.with(|published| f(published))
    }

    pub fn subscribe<L>(&self, cx: &mut Locked<'_, L>) -> Subscription {
        self.subscribe_waking(cx, None)
    }

    pub fn subscribe_waking<L>(&self, cx: &mut Locked<'_, L>, wake: Option<Wake>) -> Subscription {
        let buffer = Arc::new(Buffer { kept: lockdep::unexplored(|| Mutex::new(Kept::default())), wake });
        self.subscribers.lock_leaf(cx).push(Arc::downgrade(&buffer));
        Subscription(buffer)
    }

    /// The counter of changes, for a lock that counts them.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// States that the event reports a change. Returns the event.
    #[track_caller]
    fn check<L>(&self, cx: &Locked<'_, L>, event: Event) -> Event {
        let applied = self.published.with(|published| published.apply(&event, |address| self.pfs.contains(&address)));
        cx.ensure("told-once", || applied.is_ok(), || applied.clone().err().unwrap_or_default());
        event
    }

    /// Counts a change, then gives the event to every subscriber. Without subscribers it costs one leaf lock, and
    /// `event` is called only on a thread that is checked.
    #[track_caller]
    pub fn emit<L>(&self, cx: &mut Locked<'_, L>, event: impl FnOnce() -> Event) {
        drop(self.changes.begin());
        if cx.is_checked() {
            let event = self.check(cx, event());
            self.give(cx, || event);
        } else {
            self.give(cx, event);
        }
    }

    /// Gives the event to every subscriber.
    fn give<L>(&self, cx: &mut Locked<'_, L>, event: impl FnOnce() -> Event) {
        let live: Vec<Arc<Buffer>> = {
            let mut subscribers = self.subscribers.lock_leaf(cx);
            if subscribers.is_empty() {
                return;
            }
            subscribers.retain(|s| s.strong_count() > 0);
            subscribers.iter().filter_map(Weak::upgrade).collect()
        };
        let event = event();
        for buffer in live {
            let found: Vec<String> = {
                let mut kept = buffer.kept.lock_leaf(cx);
                let text = if kept.watched.is_empty() { String::new() } else { event.to_string() };
                if kept.events.len() == KEPT {
                    kept.events.pop_front();
                }
                kept.events.push_back(event.clone());
                kept.watched.iter().filter(|watched| text.contains(*watched)).cloned().collect()
            };
            if let Some(wake) = &buffer.wake {
                wake();
            }
            for text in found {
                tell(&("event", text), &true);
                cx.learns(&());
            }
        }
    }
}

impl Subscription {
    /// Returns the events since the last call, but at most the last 4,096.
    pub fn take<L>(&self, cx: &mut Locked<'_, L>) -> Vec<Event> {
        self.0.kept.lock_leaf(cx).events.drain(..).collect()
    }

    /// Declares the texts that the subscriber will look for among the events. For an explorer, two states differ if a
    /// text has occurred in one of them only; it ignores all other events.
    pub fn watch_for<L>(&self, cx: &mut Locked<'_, L>, texts: Vec<String>) {
        self.0.kept.lock_leaf(cx).watched.extend(texts);
    }
}
