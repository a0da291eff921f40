//! The auxiliary bus: the devices that a PF or an SF publishes, and the drivers that bind to them
//! (`Documentation/driver-api/auxiliary_bus.rst`).
//!
//! As in the kernel's driver core, probe and remove run under the auxiliary device's own lock. They run on the thread
//! that adds or removes the device, or on the thread that loads or unloads the module.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use lockdep::{Class, LockBefore, Locked, Mutex, Shadow, digest};

use crate::card::CardError;
use crate::device::Pf;
use crate::driver::{AuxiliaryDriver, BoundDriver};
use crate::error::{Error, Result};
use crate::event::{Event, Events};
use crate::ids::{ParseError, serde_as_text};
use crate::lock_order::{Auxiliary, BusLists, Probe, SfAuxiliary};
use crate::sf::SfFunction;

/// The purpose of an auxiliary device, which decides which driver binds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuxKind {
    /// The function's netdev.
    Eth,
    /// Netdev representors. Exists in switchdev mode.
    EthRep,
    /// The function's RDMA device. A PF has one in legacy mode.
    Rdma,
    /// RDMA representors. Exists in switchdev mode.
    RdmaRep,
}

impl AuxKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Eth, Self::EthRep, Self::Rdma, Self::RdmaRep];
}

impl fmt::Display for AuxKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eth => "eth",
            Self::EthRep => "eth-rep",
            Self::Rdma => "rdma",
            Self::RdmaRep => "rdma-rep",
        })
    }
}

/// The name of a device on the auxiliary bus. Names are ordered by kind, then by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuxiliaryName {
    /// A part of a function: `mlx5_core.eth.0`.
    Part {
        /// What the device is for.
        kind: AuxKind,
        /// Its number.
        id: u32,
    },
    /// An SF's own device: `mlx5_core.sf.4`.
    Sf {
        /// Its number, which the parts of the SF share.
        id: u32,
    },
}

impl AuxiliaryName {
    /// The name without its number, `mlx5_core.eth`: what a driver is matched by (`auxiliary_match_id` in
    /// `drivers/base/auxiliary.c`), and the name of the module alias.
    pub fn match_name(self) -> String {
        match self {
            Self::Part { kind, .. } => format!("mlx5_core.{kind}"),
            Self::Sf { .. } => "mlx5_core.sf".to_owned(),
        }
    }
}

impl fmt::Display for AuxiliaryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Part { kind, id } => write!(f, "mlx5_core.{kind}.{id}"),
            Self::Sf { id } => write!(f, "mlx5_core.sf.{id}"),
        }
    }
}

impl FromStr for AuxiliaryName {
    type Err = ParseError;

    fn from_str(text: &str) -> std::result::Result<Self, ParseError> {
        let read = || {
            let (kind, id) = text.strip_prefix("mlx5_core.")?.split_once('.')?;
            let id = id.parse().ok()?;
            let part = AuxKind::ALL.into_iter().find(|known| known.to_string() == kind);
            part.map(|kind| Self::Part { kind, id }).or_else(|| (kind == "sf").then_some(Self::Sf { id }))
        };
        // A number has one form only: no sign, no leading zeros.
        let name = read().filter(|name| name.to_string() == text);
        name.ok_or_else(|| ParseError::new(text, "an auxiliary device such as mlx5_core.eth.0"))
    }
}

serde_as_text!(AuxiliaryName);

/// The function that publishes an auxiliary device.
#[derive(Clone)]
pub enum Function {
    /// A PF.
    Pf(Arc<Pf>),
    /// An SF.
    Sf(Arc<SfFunction>),
}

impl Function {
    /// The PF; for an SF, the PF to which the SF belongs.
    pub fn pf(&self) -> &Arc<Pf> {
        match self {
            Self::Pf(pf) => pf,
            Self::Sf(sf) => sf.pf(),
        }
    }
}

/// A device on the auxiliary bus. `C` is the class of its lock.
pub struct AuxiliaryDevice<C> {
    kind: AuxKind,
    id: u32,
    function: Function,
    state: Mutex<C, State>,
    seen: Shadow<Seen>,
}

/// A copy of the state of a device, for invariants.
#[derive(Clone, Copy, Default)]
struct Seen {
    driver: Option<&'static str>,
    failed: bool,
    removed: bool,
}

#[derive(Default)]
struct State {
    bound: Option<(&'static dyn AuxiliaryDriver, Box<dyn BoundDriver>)>,
    failed: Option<Error>,
    removed: bool,
}

impl State {
    /// The state of a device that is about to be added to the bus. The role identifies the lock to an explorer
    /// whichever thread adds the device.
    fn for_new_device<C: Class>(kind: AuxKind, id: u32) -> Mutex<C, Self> {
        Mutex::new(Self::default()).with_role(&("auxiliary device", kind, id)).with_state_digest(digest)
    }
}

/// The name of the bound driver stands for all that the driver has made: each kind of device has one driver, and the
/// resources that it makes follow from the device.
impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.bound.as_ref().map(|(driver, _)| driver.name()), &self.failed, self.removed).hash(state);
    }
}

/// The hash of the device's identity and lock, not of its present state.
impl<C> Hash for AuxiliaryDevice<C> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.kind, self.id, &self.state).hash(state);
    }
}

impl Hash for Lists {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.pf, &self.sf, self.next_id).hash(state);
        self.drivers.iter().for_each(|driver| driver.name().hash(state));
    }
}

impl<C: Class> AuxiliaryDevice<C> {
    /// The kind of the device.
    pub fn kind(&self) -> AuxKind {
        self.kind
    }

    /// The function that publishes the device.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Its name on the bus, `mlx5_core.eth-rep.0`.
    pub fn name(&self) -> AuxiliaryName {
        AuxiliaryName::Part { kind: self.kind, id: self.id }
    }

    /// Whether a driver is bound, and the error of the last probe if that failed.
    pub fn status<P: LockBefore<C>>(&self, cx: &mut Locked<'_, P>) -> (bool, Option<Error>) {
        let (state, _cx) = self.state.lock(cx);
        (state.bound.is_some(), state.failed.clone())
    }

    /// Binds the driver for this kind of device, if its module is loaded and no driver is bound.
    ///
    /// The driver is looked up under the device's lock. Unloading a module removes its drivers from the list first and
    /// then visits the devices. So either the driver is not found here, or unloading finds it bound to this device.
    fn attach<P: LockBefore<C>>(&self, cx: &mut Locked<'_, P>, bus: &Bus, events: &Events) -> Result<()>
    where
        C: LockBefore<Probe>,
    {
        let (mut state, mut cx) = self.state.lock(cx);
        let bound = self.bind(&mut state, &mut cx, bus, events);
        self.note(&cx, &state);
        bound
    }

    fn bind(&self, state: &mut State, cx: &mut Locked<'_, C>, bus: &Bus, events: &Events) -> Result<()>
    where
        C: LockBefore<Probe>,
    {
        if state.removed || state.bound.is_some() {
            return Ok(());
        }
        let Some(driver) = bus.driver_for(cx, self.kind) else {
            state.failed = None;
            return Ok(());
        };
        let probed = if cx.fails(|| self.place()) {
            Err(Error::Card { operation: self.name().to_string(), source: CardError::Planned(self.place()) })
        } else {
            driver.probe(&mut cx.narrow(), &self.function)
        };
        match probed {
            Ok(bound) => {
                state.bound = Some((driver, bound));
                state.failed = None;
                Ok(())
            }
            Err(error) => {
                state.failed = Some(error.clone());
                events.emit(cx, || Event::ProbeFailed(self.name().to_string(), error.to_string()));
                Err(error)
            }
        }
    }

    /// The name of the device's probe as a place that can fail. For an SF it has the vport, because the SF's number on
    /// the bus depends on the order in which threads add SFs.
    fn place(&self) -> String {
        match &self.function {
            Function::Pf(_) => format!("probe {}", self.name()),
            Function::Sf(sf) => format!("probe mlx5_core.{} pf{} {}", self.kind, sf.pf().index().0, sf.vport()),
        }
    }

    fn note(&self, cx: &Locked<'_, C>, state: &State) {
        let driver = state.bound.as_ref().map(|(driver, _)| driver.name());
        let now = Seen { driver, failed: state.failed.is_some(), removed: state.removed };
        self.seen.note(cx, |seen| *seen = now);
    }

    /// States that a module has been loaded: the device has the module's driver, or the error of its probe is recorded.
    fn ensure_bound<L>(&self, cx: &Locked<'_, L>, drivers: &[&'static dyn AuxiliaryDriver]) {
        let seen = || self.seen.with(|seen| *seen);
        let mine = || drivers.iter().any(|driver| driver.kind() == self.kind);
        cx.ensure(
            "true-success",
            || !mine() || seen().driver.is_some() || seen().failed || seen().removed,
            || format!("{} has no driver though its module is loaded, and no error", self.name()),
        );
    }

    /// States that a module has been unloaded: the device has none of the module's drivers.
    fn ensure_unbound<L>(&self, cx: &Locked<'_, L>, gone: impl Fn(&str) -> bool) {
        let driver = || self.seen.with(|seen| seen.driver);
        cx.ensure(
            "true-success",
            || !driver().is_some_and(&gone),
            || format!("{} has the driver {:?} of a module that is unloaded", self.name(), driver()),
        );
    }

    /// Unbinds the driver if one is bound and `which` returns true for it.
    fn detach<P: LockBefore<C>>(
        &self,
        cx: &mut Locked<'_, P>,
        removed: bool,
        which: impl Fn(&dyn AuxiliaryDriver) -> bool,
    ) where
        C: LockBefore<Probe>,
    {
        let (mut state, mut cx) = self.state.lock(cx);
        state.removed |= removed;
        state.failed = None;
        if let Some((_, bound)) = state.bound.take_if(|(driver, _)| which(*driver)) {
            bound.remove(&mut cx.narrow());
        }
        self.note(&cx, &state);
    }
}

/// The auxiliary bus: its devices, and the drivers of loaded modules.
pub struct Bus {
    lists: Mutex<BusLists, Lists>,
}

/// Devices by their number on the bus and their kind, which together make the device's name.
type Devices<C> = BTreeMap<(u32, AuxKind), Arc<AuxiliaryDevice<C>>>;

struct Lists {
    pf: Devices<Auxiliary>,
    sf: Devices<SfAuxiliary>,
    drivers: Vec<&'static dyn AuxiliaryDriver>,
    /// The number on the bus of the next SF. The number of a PF is its index on the card, 0 to 3.
    next_id: u32,
}

impl Lists {
    #[allow(clippy::type_complexity)]
    fn snapshot(&self) -> (Vec<Arc<AuxiliaryDevice<Auxiliary>>>, Vec<Arc<AuxiliaryDevice<SfAuxiliary>>>) {
        (self.pf.values().cloned().collect(), self.sf.values().cloned().collect())
    }
}

impl Default for Bus {
    fn default() -> Self {
        let lists = Lists { pf: BTreeMap::new(), sf: BTreeMap::new(), drivers: Vec::new(), next_id: 4 };
        Self { lists: Mutex::new(lists).with_state_digest(digest) }
    }
}

impl Bus {
    /// Allocates a number for the auxiliary devices of an SF: this one if it is given, of an SF that is restored, else one
    /// that is greater than all.
    pub(crate) fn new_id<L>(&self, cx: &mut Locked<'_, L>, restored: Option<u32>) -> u32 {
        let mut lists = self.lists.lock_leaf(cx);
        let id = restored.unwrap_or(lists.next_id);
        lists.next_id = lists.next_id.max(id + 1);
        id
    }

    /// Adds a device of a PF to the bus and binds its driver. Returns the device and the result of the probe.
    ///
    /// The device stays on the bus even if its driver fails to probe, as in the kernel.
    pub(crate) fn add_pf<P: LockBefore<Auxiliary>>(
        &self,
        cx: &mut Locked<'_, P>,
        events: &Events,
        pf: &Arc<Pf>,
        kind: AuxKind,
    ) -> (Arc<AuxiliaryDevice<Auxiliary>>, Result<()>) {
        let device = Arc::new(AuxiliaryDevice {
            kind,
            id: pf.index().0.into(),
            function: Function::Pf(Arc::clone(pf)),
            state: State::for_new_device(kind, pf.index().0.into()),
            seen: Shadow::default(),
        });
        self.lists.lock_leaf(cx).pf.insert((device.id, kind), Arc::clone(&device));
        let bound = device.attach(cx, self, events);
        (device, bound)
    }

    /// Adds a device of an SF to the bus and binds its driver, as [`add_pf`](Self::add_pf) does for a PF.
    pub(crate) fn add_sf<P: LockBefore<SfAuxiliary>>(
        &self,
        cx: &mut Locked<'_, P>,
        events: &Events,
        sf: &Arc<SfFunction>,
        kind: AuxKind,
    ) -> (Arc<AuxiliaryDevice<SfAuxiliary>>, Result<()>) {
        let device = Arc::new(AuxiliaryDevice {
            kind,
            id: sf.id(),
            function: Function::Sf(Arc::clone(sf)),
            state: State::for_new_device(kind, sf.id()),
            seen: Shadow::default(),
        });
        self.lists.lock_leaf(cx).sf.insert((device.id, kind), Arc::clone(&device));
        let bound = device.attach(cx, self, events);
        (device, bound)
    }

    /// Binds a driver to a device of a PF, if the device has none.
    pub(crate) fn attach_pf<P: LockBefore<Auxiliary>>(
        &self,
        cx: &mut Locked<'_, P>,
        events: &Events,
        device: &AuxiliaryDevice<Auxiliary>,
    ) -> Result<()> {
        device.attach(cx, self, events)
    }

    /// Binds a driver to a device of an SF, if the device has none.
    pub(crate) fn attach_sf<P: LockBefore<SfAuxiliary>>(
        &self,
        cx: &mut Locked<'_, P>,
        events: &Events,
        device: &AuxiliaryDevice<SfAuxiliary>,
    ) -> Result<()> {
        device.attach(cx, self, events)
    }

    /// Unbinds the driver of a PF's device and removes the device from the bus.
    pub(crate) fn remove_pf<P: LockBefore<Auxiliary>>(
        &self,
        cx: &mut Locked<'_, P>,
        device: &Arc<AuxiliaryDevice<Auxiliary>>,
    ) {
        device.detach(cx, true, |_| true);
        self.lists.lock_leaf(cx).pf.remove(&(device.id, device.kind));
    }

    /// Unbinds the driver of an SF's device and removes the device from the bus.
    pub(crate) fn remove_sf<P: LockBefore<SfAuxiliary>>(
        &self,
        cx: &mut Locked<'_, P>,
        device: &Arc<AuxiliaryDevice<SfAuxiliary>>,
    ) {
        device.detach(cx, true, |_| true);
        self.lists.lock_leaf(cx).sf.remove(&(device.id, device.kind));
    }

    /// Registers the drivers of a module: first adds them to the list, then visits every device. Returns the functions
    /// whose devices failed to probe.
    pub(crate) fn add_drivers<P: LockBefore<Auxiliary> + LockBefore<SfAuxiliary>>(
        &self,
        cx: &mut Locked<'_, P>,
        events: &Events,
        drivers: &[&'static dyn AuxiliaryDriver],
    ) -> Vec<Function> {
        let (pf, sf) = {
            let mut lists = self.lists.lock_leaf(cx);
            lists.drivers.extend(drivers);
            lists.snapshot()
        };
        let mut failed = Vec::new();
        for device in &pf {
            if device.attach(cx, self, events).is_err() {
                failed.push(device.function.clone());
            }
        }
        for device in &sf {
            if device.attach(cx, self, events).is_err() {
                failed.push(device.function.clone());
            }
        }
        pf.iter().for_each(|device| device.ensure_bound(cx, drivers));
        sf.iter().for_each(|device| device.ensure_bound(cx, drivers));
        failed
    }

    /// Unregisters the drivers of a module: first removes them from the list, then unbinds them from every device, in
    /// the reverse order.
    pub(crate) fn remove_drivers<P: LockBefore<Auxiliary> + LockBefore<SfAuxiliary>>(
        &self,
        cx: &mut Locked<'_, P>,
        drivers: &[&'static dyn AuxiliaryDriver],
    ) {
        let gone = |driver: &dyn AuxiliaryDriver| drivers.iter().any(|d| d.name() == driver.name());
        let (pf, sf) = {
            let mut lists = self.lists.lock_leaf(cx);
            lists.drivers.retain(|d| !gone(*d));
            lists.snapshot()
        };
        for device in sf.iter().rev() {
            device.detach(cx, false, gone);
        }
        for device in pf.iter().rev() {
            device.detach(cx, false, gone);
        }
        let gone = |name: &str| drivers.iter().any(|d| d.name() == name);
        pf.iter().for_each(|device| device.ensure_unbound(cx, gone));
        sf.iter().for_each(|device| device.ensure_unbound(cx, gone));
    }

    fn driver_for<L>(&self, cx: &mut Locked<'_, L>, kind: AuxKind) -> Option<&'static dyn AuxiliaryDriver> {
        self.lists.lock_leaf(cx).drivers.iter().copied().find(|d| d.kind() == kind)
    }

    /// The devices of all SFs on the bus.
    pub(crate) fn sf_devices<L>(&self, cx: &mut Locked<'_, L>) -> Vec<Arc<AuxiliaryDevice<SfAuxiliary>>> {
        self.lists.lock_leaf(cx).snapshot().1
    }

    /// The devices of all PFs on the bus.
    pub(crate) fn pf_devices<L>(&self, cx: &mut Locked<'_, L>) -> Vec<Arc<AuxiliaryDevice<Auxiliary>>> {
        self.lists.lock_leaf(cx).snapshot().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_name_can_be_parsed_and_nothing_else() {
        for text in ["mlx5_core.eth.0", "mlx5_core.eth-rep.1", "mlx5_core.rdma-rep.3", "mlx5_core.sf.4294967295"] {
            assert_eq!(text.parse::<AuxiliaryName>().unwrap().to_string(), text);
        }
        for text in
            ["", "mlx5_core", "mlx5_core.eth", "mlx5_core.eth.", "mlx5_core.eth.+1", "mlx5_core.sf.04", "mlx5_ib.eth.0"]
        {
            assert!(text.parse::<AuxiliaryName>().is_err(), "{text}");
        }
        assert_eq!(AuxiliaryName::Part { kind: AuxKind::EthRep, id: 0 }.match_name(), "mlx5_core.eth-rep");
    }
}
