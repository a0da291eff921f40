//! What happened, for whoever watches.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Weak};

use lockdep::{AtomicU64, Locked, Mutex, tell};

use crate::card::Resource;
use crate::ids::{LagMode, Mode, PciAddress, PfIndex, PortHandle, RepType};
use crate::lock_order::Events as EventsClass;
use crate::text::escaped;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A PF or a VF was bound to its driver.
    DeviceBound(PciAddress),
    /// A PF or a VF was unbound.
    DeviceUnbound(PciAddress),
    /// An E-Switch has entered a mode.
    Mode(PciAddress, Mode),
    /// A PF's number of VFs has changed.
    Vfs(PciAddress, u16),
    /// A devlink port came.
    PortNew(PortHandle),
    /// A devlink port went.
    PortDel(PortHandle),
    /// So many representors of a type were loaded.
    Loaded(PciAddress, RepType, usize),
    /// So many representors of a type were unloaded.
    Unloaded(PciAddress, RepType, usize),
    /// A representor did not load.
    LoadFailed(PortHandle, RepType, String),
    /// The VFs that a DPU's host has enabled are not all there, and why.
    HostVfsFailed(PciAddress, String),
    /// The driver of an auxiliary device did not probe, or that of a PCI function after a rescan.
    ProbeFailed(String, String),
    /// Somebody has given a netdev of the card another name, which is this.
    Renamed(Resource, String),
    /// Ops of a type were registered.
    Registered(PciAddress, RepType),
    /// Ops of a type were unregistered.
    Unregistered(PciAddress, RepType),
    /// Work was dropped because the generation had moved on.
    StaleWork(PciAddress, &'static str),
    /// What is missing will be tried again after so many milliseconds.
    Retry(PciAddress, u64),
    /// The LAG's mode, and why there is none though there is a bond.
    Lag(LagMode, Option<String>),
    /// Two E-Switches were paired, or unpaired.
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
            Self::Mode(a, mode) => write!(f, "pci/{a}: mode {mode}"),
            Self::Vfs(a, n) => write!(f, "pci/{a}: {n} VFs"),
            Self::PortNew(port) => write!(f, "{port}: new"),
            Self::PortDel(port) => write!(f, "{port}: del"),
            Self::Loaded(a, ty, n) => write!(f, "pci/{a}: {n} {ty} representors loaded"),
            Self::Unloaded(a, ty, n) => write!(f, "pci/{a}: {n} {ty} representors unloaded"),
            Self::LoadFailed(port, ty, why) => write!(f, "{port}: {ty} representor did not load: {}", escaped(why)),
            Self::HostVfsFailed(a, why) => write!(f, "pci/{a}: the host's VFs are not all there: {}", escaped(why)),
            Self::ProbeFailed(device, why) => write!(f, "{device}: probe failed: {}", escaped(why)),
            Self::Renamed(netdev, name) => write!(f, "{netdev}: is called {} now", escaped(name)),
            Self::Registered(a, ty) => write!(f, "pci/{a}: {ty} ops registered"),
            Self::Unregistered(a, ty) => write!(f, "pci/{a}: {ty} ops unregistered"),
            Self::StaleWork(a, work) => write!(f, "pci/{a}: stale work dropped: {work}"),
            Self::Retry(a, ms) => write!(f, "pci/{a}: will try again in {ms} ms"),
            Self::Lag(mode, None) => write!(f, "lag: {mode}"),
            Self::Lag(mode, Some(why)) => write!(f, "lag: {mode}; {}", escaped(why)),
            Self::Paired(a, b, true) => write!(f, "pf{} and pf{} paired", a.0, b.0),
            Self::Paired(a, b, false) => write!(f, "pf{} and pf{} unpaired", a.0, b.0),
            Self::ModuleLoaded(name) => write!(f, "module {name} loaded"),
            Self::ModuleUnloaded(name) => write!(f, "module {name} unloaded"),
        }
    }
}

/// Events kept for one subscriber at most; older ones are dropped first.
const KEPT: usize = 4096;

struct Buffer {
    kept: Mutex<EventsClass, Kept>,
    wake: Option<Wake>,
}

/// How to tell one who watches that there is something to see.
type Wake = Box<dyn Fn() + Send + Sync>;

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kept.fmt(f)
    }
}

/// What is kept for one subscriber.
#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Event>,
    /// Texts that this one asks for.
    asked: Vec<String>,
}

/// The stream, seen from where events are made.
#[derive(Debug)]
pub(crate) struct Events {
    subscribers: Mutex<EventsClass, Vec<Weak<Buffer>>>,
    changes: Changes,
}

/// Counts the changes to what can be looked at.
///
/// Each lock that commands are carried out under has it, and counts a change when it is let go of: what is changed
/// under it cannot be changed without being counted.
#[derive(Clone, Debug)]
pub(crate) struct Changes(Arc<AtomicU64>);

impl Default for Changes {
    fn default() -> Self {
        // Whoever decides something looks under the locks; to an explorer the count makes no difference.
        lockdep::unexplored(|| Self(Arc::new(AtomicU64::new(0))))
    }
}

impl Changes {
    /// How many there have been.
    pub fn now(&self) -> u64 {
        self.0.load()
    }

    /// Begins a change, which is counted when the result is dropped.
    pub fn begin(&self) -> Change<'_> {
        Change(&self.0)
    }
}

/// What may change something that can be looked at: once it is over, it has been counted.
#[must_use]
pub(crate) struct Change<'a>(&'a AtomicU64);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1);
    }
}

/// The stream, seen by one who watches.
#[derive(Debug)]
pub struct Subscription(Arc<Buffer>);

impl Default for Events {
    fn default() -> Self {
        // The engine tells and never asks: to an explorer it makes no difference who tells first.
        lockdep::unexplored(|| Self { subscribers: Mutex::new(Vec::new()), changes: Changes::default() })
    }
}

impl Events {
    pub fn subscribe<L>(&self, cx: &mut Locked<'_, L>) -> Subscription {
        self.subscribe_waking(cx, None)
    }

    pub fn subscribe_waking<L>(&self, cx: &mut Locked<'_, L>, wake: Option<Wake>) -> Subscription {
        let buffer = Arc::new(Buffer { kept: lockdep::unexplored(|| Mutex::new(Kept::default())), wake });
        self.subscribers.lock_leaf(cx).push(Arc::downgrade(&buffer));
        Subscription(buffer)
    }

    /// What counts the changes, for a lock that counts by itself.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Tells everybody, none before it has been counted as a change. Costs one leaf lock when nobody watches.
    pub fn emit<L>(&self, cx: &mut Locked<'_, L>, event: impl FnOnce() -> Event) {
        drop(self.changes.begin());
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
            let asked: Vec<String> = {
                let mut kept = buffer.kept.lock_leaf(cx);
                let text = if kept.asked.is_empty() { String::new() } else { event.to_string() };
                if kept.events.len() == KEPT {
                    kept.events.pop_front();
                }
                kept.events.push_back(event.clone());
                kept.asked.iter().filter(|asked| text.contains(*asked)).cloned().collect()
            };
            if let Some(wake) = &buffer.wake {
                wake();
            }
            for text in asked {
                tell(&("event", text), &true);
                cx.learns(&());
            }
        }
    }
}

impl Subscription {
    /// The events since the last call.
    pub fn take<L>(&self, cx: &mut Locked<'_, L>) -> Vec<Event> {
        self.0.kept.lock_leaf(cx).events.drain(..).collect()
    }

    /// These texts will be looked for among the events: to an explorer it makes a difference whether one was in any.
    pub fn watch_for<L>(&self, cx: &mut Locked<'_, L>, texts: Vec<String>) {
        self.0.kept.lock_leaf(cx).asked.extend(texts);
    }
}
