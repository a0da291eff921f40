//! What happened, for whoever watches.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Weak};

use lockdep::{Locked, Mutex, tell};

use crate::ids::{Mode, PciAddress, PfIndex, PortHandle, RepType};
use crate::lag::LagMode;
use crate::lock_order::Events as EventsClass;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A PF was bound to its driver.
    DeviceBound(PciAddress),
    /// A PF was unbound.
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
    /// An auxiliary device's driver did not probe.
    ProbeFailed(String, String),
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
            Self::LoadFailed(port, ty, why) => write!(f, "{port}: {ty} representor did not load: {why}"),
            Self::HostVfsFailed(a, why) => write!(f, "pci/{a}: the host's VFs are not all there: {why}"),
            Self::ProbeFailed(device, why) => write!(f, "{device}: probe failed: {why}"),
            Self::Registered(a, ty) => write!(f, "pci/{a}: {ty} ops registered"),
            Self::Unregistered(a, ty) => write!(f, "pci/{a}: {ty} ops unregistered"),
            Self::StaleWork(a, work) => write!(f, "pci/{a}: stale work dropped: {work}"),
            Self::Retry(a, ms) => write!(f, "pci/{a}: will try again in {ms} ms"),
            Self::Lag(mode, None) => write!(f, "lag: {mode}"),
            Self::Lag(mode, Some(why)) => write!(f, "lag: {mode}; {why}"),
            Self::Paired(a, b, true) => write!(f, "pf{} and pf{} paired", a.0, b.0),
            Self::Paired(a, b, false) => write!(f, "pf{} and pf{} unpaired", a.0, b.0),
            Self::ModuleLoaded(name) => write!(f, "module {name} loaded"),
            Self::ModuleUnloaded(name) => write!(f, "module {name} unloaded"),
        }
    }
}

/// Events kept for one subscriber at most; older ones are dropped first.
const KEPT: usize = 4096;

type Buffer = Mutex<EventsClass, Kept>;

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
}

/// The stream, seen by one who watches.
#[derive(Debug)]
pub struct Subscription(Arc<Buffer>);

impl Default for Events {
    fn default() -> Self {
        // The engine tells and never asks: to an explorer it makes no difference who tells first.
        Self { subscribers: lockdep::unexplored(|| Mutex::new(Vec::new())) }
    }
}

impl Events {
    pub fn subscribe<L>(&self, cx: &mut Locked<'_, L>) -> Subscription {
        let buffer = Arc::new(lockdep::unexplored(|| Mutex::new(Kept::default())));
        self.subscribers.lock_leaf(cx).push(Arc::downgrade(&buffer));
        Subscription(buffer)
    }

    /// Tells everybody. Costs one leaf lock when nobody watches.
    pub fn emit<L>(&self, cx: &mut Locked<'_, L>, event: impl FnOnce() -> Event) {
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
            let mut kept = buffer.lock_leaf(cx);
            let text = if kept.asked.is_empty() { String::new() } else { event.to_string() };
            let asked: Vec<String> = kept.asked.iter().filter(|asked| text.contains(*asked)).cloned().collect();
            if kept.events.len() == KEPT {
                kept.events.pop_front();
            }
            kept.events.push_back(event.clone());
            drop(kept);
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
        self.0.lock_leaf(cx).events.drain(..).collect()
    }

    /// These texts will be looked for among the events: to an explorer it makes a difference whether one was in any.
    pub fn asks_for<L>(&self, cx: &mut Locked<'_, L>, texts: Vec<String>) {
        self.0.lock_leaf(cx).asked.extend(texts);
    }
}
