//! The auxiliary bus: what a PF or an SF publishes, and what binds to it.
//!
//! As in the kernel's driver core, probe and remove run under the auxiliary device's own lock, on the
//! thread that brought device and driver together: the one that adds the device, or the one that
//! loads the module.

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

/// What an auxiliary device is for; its driver goes by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuxKind {
    /// The function's netdev.
    Eth,
    /// Netdev representors; in switchdev mode.
    EthRep,
    /// The function's RDMA device; a PF's in legacy mode.
    Rdma,
    /// RDMA representors; in switchdev mode.
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

/// Whose auxiliary device it is.
#[derive(Clone)]
pub enum Function {
    /// A PF's.
    Pf(Arc<Pf>),
    /// An SF's.
    Sf(Arc<SfFunction>),
}

impl Function {
    /// The PF, the SF's parent if it is an SF's.
    pub fn pf(&self) -> &Arc<Pf> {
        match self {
            Self::Pf(pf) => pf,
            Self::Sf(sf) => sf.pf(),
        }
    }
}

/// A device on the bus; `C` is the class of its lock.
pub struct AuxiliaryDevice<C> {
    kind: AuxKind,
    id: u32,
    function: Function,
    state: Mutex<C, State>,
    seen: Shadow<Seen>,
}

/// What has become of a device, for invariants.
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
    /// That of a device that comes on the bus. Threads bring devices now and then and by turns.
    fn of_a_new<C: Class>(kind: AuxKind, id: u32) -> Mutex<C, Self> {
        Mutex::new(Self::default()).with_role(&("auxiliary device", kind, id)).with_state_digest(digest)
    }
}

/// Which driver is bound says what it does: there is one for a kind of device, and its resources are the
/// device's.
impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.bound.as_ref().map(|(driver, _)| driver.name()), &self.failed, self.removed).hash(state);
    }
}

/// Which it is, not what has become of it.
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
    /// What it is for.
    pub fn kind(&self) -> AuxKind {
        self.kind
    }

    /// Whose it is.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Its name on the bus, `mlx5_core.eth-rep.0`.
    pub fn name(&self) -> AuxiliaryName {
        AuxiliaryName::Part { kind: self.kind, id: self.id }
    }

    /// Whether a driver is bound, and the error of the last probe if it failed.
    pub fn status<P: LockBefore<C>>(&self, cx: &mut Locked<'_, P>) -> (bool, Option<Error>) {
        let (state, _cx) = self.state.lock(cx);
        (state.bound.is_some(), state.failed.clone())
    }

    /// Binds the driver for this kind of device, if one is loaded and none is bound.
    ///
    /// The driver is looked up under the device's lock. A module that is being unloaded takes its
    /// drivers off the list first and visits the devices after, so it either is not found here or
    /// finds what was bound here.
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
            Err(Error::Card { what: self.name().to_string(), source: CardError::Planned(self.place()) })
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

    /// The name of its probe among what can fail. An SF's goes by its vport: its number on the bus is
    /// that of who came first.
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

    /// A module has come: the device has its driver, or the error of its probe is listed.
    fn ensure_served<L>(&self, cx: &Locked<'_, L>, drivers: &[&'static dyn AuxiliaryDriver]) {
        let seen = || self.seen.with(|seen| *seen);
        let mine = || drivers.iter().any(|driver| driver.kind() == self.kind);
        cx.ensure(
            "true-success",
            || !mine() || seen().driver.is_some() || seen().failed || seen().removed,
            || format!("{} has no driver though its module is loaded, and no error", self.name()),
        );
    }

    /// A module has gone: the device has none of its drivers.
    fn ensure_left<L>(&self, cx: &Locked<'_, L>, gone: impl Fn(&str) -> bool) {
        let driver = || self.seen.with(|seen| seen.driver);
        cx.ensure(
            "true-success",
            || !driver().is_some_and(&gone),
            || format!("{} has the driver {:?} of a module that is unloaded", self.name(), driver()),
        );
    }

    /// Unbinds the driver if one is bound and `which` says so.
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

/// The bus: its devices, and the drivers of loaded modules.
pub struct Bus {
    lists: Mutex<BusLists, Lists>,
}

/// Devices by their number on the bus and their kind, which is their name.
type Devices<C> = BTreeMap<(u32, AuxKind), Arc<AuxiliaryDevice<C>>>;

struct Lists {
    pf: Devices<Auxiliary>,
    sf: Devices<SfAuxiliary>,
    drivers: Vec<&'static dyn AuxiliaryDriver>,
    /// The next SF's number on the bus; the PFs' are their places on the card.
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
    /// A number for an SF's auxiliary devices.
    pub(crate) fn new_id<L>(&self, cx: &mut Locked<'_, L>) -> u32 {
        let mut lists = self.lists.lock_leaf(cx);
        lists.next_id += 1;
        lists.next_id - 1
    }

    /// Puts a PF's device on the bus and binds its driver.
    ///
    /// The device stays even if its driver fails to probe, as in the kernel; the error is returned.
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
            state: State::of_a_new(kind, pf.index().0.into()),
            seen: Shadow::default(),
        });
        self.lists.lock_leaf(cx).pf.insert((device.id, kind), Arc::clone(&device));
        let bound = device.attach(cx, self, events);
        (device, bound)
    }

    /// Puts an SF's device on the bus and binds its driver.
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
            state: State::of_a_new(kind, sf.id()),
            seen: Shadow::default(),
        });
        self.lists.lock_leaf(cx).sf.insert((device.id, kind), Arc::clone(&device));
        let bound = device.attach(cx, self, events);
        (device, bound)
    }

    /// Binds a driver to a PF's device that has none.
    pub(crate) fn attach_pf<P: LockBefore<Auxiliary>>(
        &self,
        cx: &mut Locked<'_, P>,
        events: &Events,
        device: &AuxiliaryDevice<Auxiliary>,
    ) -> Result<()> {
        device.attach(cx, self, events)
    }

    /// Binds a driver to an SF's device that has none.
    pub(crate) fn attach_sf<P: LockBefore<SfAuxiliary>>(
        &self,
        cx: &mut Locked<'_, P>,
        events: &Events,
        device: &AuxiliaryDevice<SfAuxiliary>,
    ) -> Result<()> {
        device.attach(cx, self, events)
    }

    /// Takes a PF's device off the bus, unbinding its driver.
    pub(crate) fn remove_pf<P: LockBefore<Auxiliary>>(
        &self,
        cx: &mut Locked<'_, P>,
        device: &Arc<AuxiliaryDevice<Auxiliary>>,
    ) {
        device.detach(cx, true, |_| true);
        self.lists.lock_leaf(cx).pf.remove(&(device.id, device.kind));
    }

    /// Takes an SF's device off the bus, unbinding its driver.
    pub(crate) fn remove_sf<P: LockBefore<SfAuxiliary>>(
        &self,
        cx: &mut Locked<'_, P>,
        device: &Arc<AuxiliaryDevice<SfAuxiliary>>,
    ) {
        device.detach(cx, true, |_| true);
        self.lists.lock_leaf(cx).sf.remove(&(device.id, device.kind));
    }

    /// A module's drivers arrive: they are listed, then every device is visited. Returns the PFs
    /// of devices whose probe failed.
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
        pf.iter().for_each(|device| device.ensure_served(cx, drivers));
        sf.iter().for_each(|device| device.ensure_served(cx, drivers));
        failed
    }

    /// A module's drivers leave: they are taken off the list, then off every device, last first.
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
        pf.iter().for_each(|device| device.ensure_left(cx, gone));
        sf.iter().for_each(|device| device.ensure_left(cx, gone));
    }

    fn driver_for<L>(&self, cx: &mut Locked<'_, L>, kind: AuxKind) -> Option<&'static dyn AuxiliaryDriver> {
        self.lists.lock_leaf(cx).drivers.iter().copied().find(|d| d.kind() == kind)
    }

    /// Every SF's device on the bus.
    pub(crate) fn sf_devices<L>(&self, cx: &mut Locked<'_, L>) -> Vec<Arc<AuxiliaryDevice<SfAuxiliary>>> {
        self.lists.lock_leaf(cx).snapshot().1
    }

    /// Every PF's device on the bus.
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
