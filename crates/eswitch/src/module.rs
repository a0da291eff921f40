//! The card's kernel modules, which bring drivers, and their loading and unloading.

use std::collections::BTreeSet;

use lockdep::{AtomicU64, LockBefore, Locked, Mutex, Shadow, digest};

use crate::auxiliary::{AuxKind, Function};
use crate::card::Resource;
use crate::driver::{AuxiliaryDriver, ETH, ETH_REP, RDMA, RDMA_REP};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::ids::{PciAddress, RepType};
use crate::lock_order::{CoreModule as CoreClass, Module as ModuleClass};
use crate::shared::Shared;

/// A kernel module of the card.
pub struct ModuleInfo {
    /// The module's name, as `modprobe` takes it.
    pub name: &'static str,
    /// The description that `modinfo` prints.
    pub description: &'static str,
    /// The card's modules on which it depends, which must be loaded before it.
    pub depends: &'static [&'static str],
    drivers: &'static [&'static dyn AuxiliaryDriver],
}

impl ModuleInfo {
    /// The drivers that the module registers on the auxiliary bus: their names, and the kinds of device to which they
    /// bind.
    pub fn drivers(&self) -> impl Iterator<Item = (&'static str, AuxKind)> {
        self.drivers.iter().map(|driver| (driver.name(), driver.kind()))
    }

    /// States that the module has been unloaded: nothing is left of what its drivers make.
    fn ensure_gone<L>(&self, cx: &Locked<'_, L>, shared: &Shared) {
        let made_by = |resource: &Resource| match resource {
            Resource::PfNetdev(_) | Resource::SfNetdev(..) => Some(AuxKind::Eth),
            Resource::PfIbDevice(_) | Resource::SfIbDevice(..) => Some(AuxKind::Rdma),
            Resource::Representor(_, _, RepType::Eth) => Some(AuxKind::EthRep),
            Resource::Representor(_, _, RepType::Ib) => Some(AuxKind::RdmaRep),
            _ => None,
        };
        let mine = |resource: &Resource| self.drivers.iter().any(|driver| Some(driver.kind()) == made_by(resource));
        cx.ensure(
            "true-success",
            || shared.made_of(mine).is_empty(),
            || format!("{} is unloaded, and {:?} are left", self.name, shared.made_of(mine)),
        );
    }
}

/// The core module, on which all other modules of the card depend.
pub const CORE: &str = "mlx5_core";

/// The module of RDMA devices.
pub const RDMA_MODULE: &str = "mlx5_ib";

/// The module of the driver `vfio-pci`. It is none of the card's own, and depends on none of them.
pub const VFIO: &str = "vfio_pci";

static MODULES: [ModuleInfo; 3] = [
    ModuleInfo {
        name: CORE,
        description: "Mellanox 5th generation network adapters (ConnectX series) core driver",
        depends: &[],
        drivers: &[&ETH, &ETH_REP],
    },
    ModuleInfo {
        name: RDMA_MODULE,
        description: "Mellanox 5th generation network adapters (ConnectX series) IB driver",
        depends: &[CORE],
        drivers: &[&RDMA, &RDMA_REP],
    },
    ModuleInfo { name: VFIO, description: "VFIO PCI - User Level meta-driver", depends: &[], drivers: &[] },
];

/// Every module of the card.
pub fn all() -> &'static [ModuleInfo] {
    &MODULES
}

/// Finds a module by its name. A dash in the name stands for an underscore, as for `modprobe`.
pub fn find(name: &str) -> Option<&'static ModuleInfo> {
    let name = name.replace('-', "_");
    MODULES.iter().find(|m| m.name == name)
}

/// The names of all modules of the card, separated by commas, for messages.
pub fn known() -> String {
    MODULES.iter().map(|m| m.name).collect::<Vec<_>>().join(", ")
}

/// The core module: whether devices can be bound to its driver, and the lock that orders all loading and unloading of
/// modules.
#[derive(Debug)]
pub(crate) struct Core {
    /// Held while any module is loaded or unloaded, and when the card is taken down. Binding a device reads `state`
    /// without it.
    pub lock: Mutex<CoreClass, ()>,
    state: AtomicU64,
    /// The number of times that the core module has been loaded. Nothing is decided by it.
    loads: AtomicU64,
}

/// The state of the core module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CoreState {
    Loaded = 0,
    Unloaded,
    /// The card is being taken down, and the core module with it.
    Going,
}

impl Default for Core {
    fn default() -> Self {
        let loads = lockdep::unexplored(|| AtomicU64::new(0));
        Self { lock: Mutex::new(()), state: AtomicU64::new(CoreState::Loaded as u64), loads }
    }
}

impl Core {
    pub fn state(&self) -> CoreState {
        match self.state.load() {
            state if state == CoreState::Loaded as u64 => CoreState::Loaded,
            state if state == CoreState::Unloaded as u64 => CoreState::Unloaded,
            _ => CoreState::Going,
        }
    }

    pub fn is_loaded(&self) -> bool {
        self.state() == CoreState::Loaded
    }

    /// The number of times that it has been loaded since the card was started.
    pub fn loads(&self) -> u64 {
        self.loads.load()
    }

    /// Checks whether a device may be bound.
    ///
    /// # Errors
    /// [`Error::NoCore`]: the core module is not loaded. [`Error::Teardown`]: the card is being taken down.
    pub fn may_bind(&self, address: PciAddress) -> Result<()> {
        match self.state() {
            CoreState::Loaded => Ok(()),
            CoreState::Unloaded => Err(Error::NoCore(address)),
            CoreState::Going => Err(Error::Teardown),
        }
    }

    /// Sets the state. The caller holds [`lock`](Self::lock).
    pub fn set(&self, state: CoreState) {
        if state == CoreState::Loaded {
            self.loads.fetch_add(1);
        }
        self.state.store(state as u64);
    }
}

/// Which modules are loaded. Each module has a lock, so that loading and unloading of the same module exclude each
/// other. A caller that needs the dependencies of a module to stay loaded meanwhile holds [`Core::lock`].
#[derive(Debug)]
pub(crate) struct Modules {
    loaded: [Mutex<ModuleClass, bool>; MODULES.len()],
    /// Whether functions can be bound to `vfio-pci`: 1 or 0. Binding a function reads it without a lock.
    vfio: AtomicU64,
    /// The names of the loaded modules, for invariants.
    seen: Shadow<BTreeSet<&'static str>>,
}

impl Default for Modules {
    fn default() -> Self {
        let loaded = std::array::from_fn(|_| Mutex::new(false).with_state_digest(digest));
        Self { loaded, vfio: AtomicU64::new(0), seen: Shadow::default() }
    }
}

impl Modules {
    /// Whether functions can be bound to `vfio-pci`.
    pub fn is_vfio_loaded(&self) -> bool {
        self.vfio.load() != 0
    }

    /// Lets no function be bound to `vfio-pci` from here on. The caller unbinds those that are, and
    /// [unloads](Self::unload) the module.
    pub fn stop_vfio(&self) {
        self.vfio.store(0);
    }

    fn get(&self, name: &str) -> Result<(&'static ModuleInfo, &Mutex<ModuleClass, bool>)> {
        let module = find(name).ok_or_else(|| Error::NoModule { name: name.to_owned() })?;
        let lock = MODULES.iter().zip(&self.loaded).find(|(m, _)| m.name == module.name);
        lock.ok_or_else(|| Error::NoModule { name: name.to_owned() })
    }

    /// Loads a module and binds its drivers, on this thread. If the module is loaded already, this succeeds.
    ///
    /// As with `modprobe`, a device whose probe fails does not fail the load. The probe is retried.
    ///
    /// # Errors
    /// No such module.
    pub fn load<P: LockBefore<ModuleClass>>(&self, cx: &mut Locked<'_, P>, shared: &Shared, name: &str) -> Result<()> {
        let (module, lock) = self.get(name)?;
        let (mut loaded, mut cx) = lock.lock(cx);
        if *loaded {
            return Ok(());
        }
        *loaded = true;
        if module.name == VFIO {
            self.vfio.store(1);
        }
        for function in shared.bus.add_drivers(&mut cx, &shared.events, module.drivers) {
            match function {
                Function::Pf(pf) => pf.want_reconcile(&mut cx),
                Function::Sf(sf) => sf.pf().want_sfs(&mut cx),
            }
        }
        self.seen.note(&cx, |seen| seen.extend([module.name]));
        self.ensure_dependencies(&cx);
        shared.events.emit(&mut cx, || Event::ModuleLoaded(module.name));
        Ok(())
    }

    /// Unbinds the drivers of a module and unloads it, on this thread. If the module is not loaded, this succeeds.
    ///
    /// # Errors
    /// No such module; or [`Error::ModuleInUse`]: it is the core module, whose state must be changed from
    /// [`CoreState::Loaded`] first.
    pub fn unload<P: LockBefore<ModuleClass>>(
        &self,
        cx: &mut Locked<'_, P>,
        shared: &Shared,
        name: &str,
    ) -> Result<()> {
        let (module, lock) = self.get(name)?;
        if module.name == CORE && shared.core.is_loaded() {
            return Err(Error::ModuleInUse(CORE));
        }
        let (mut loaded, mut cx) = lock.lock(cx);
        if !*loaded {
            return Ok(());
        }
        if module.name == VFIO {
            self.stop_vfio();
        }
        shared.bus.remove_drivers(&mut cx, module.drivers);
        *loaded = false;
        self.seen.note(&cx, |seen| seen.retain(|name| *name != module.name));
        module.ensure_gone(&cx, shared);
        self.ensure_dependencies(&cx);
        shared.events.emit(&mut cx, || Event::ModuleUnloaded(module.name));
        Ok(())
    }

    /// States that a module has been loaded or unloaded: the dependencies of every loaded module are loaded.
    #[track_caller]
    fn ensure_dependencies<L>(&self, cx: &Locked<'_, L>) {
        let incomplete = || {
            self.seen.with(|seen| {
                let lacks = |module: &&ModuleInfo| !module.depends.iter().all(|needs| seen.contains(needs));
                MODULES.iter().filter(|module| seen.contains(module.name)).find(lacks).map(|module| module.name)
            })
        };
        cx.ensure(
            "true-success",
            || incomplete().is_none(),
            || format!("{:?} is loaded, and not all of its dependencies are", incomplete()),
        );
    }

    /// The names of the loaded modules. Waits while one of them is being loaded or unloaded.
    pub fn list<P: LockBefore<ModuleClass>>(&self, cx: &mut Locked<'_, P>) -> Vec<&'static str> {
        let mut names = Vec::new();
        for (module, lock) in MODULES.iter().zip(&self.loaded) {
            if *lock.lock(cx).0 {
                names.push(module.name);
            }
        }
        names
    }

    /// The names of the loaded modules, or `None` if one of them is being loaded or unloaded.
    pub fn list_if_free<L>(&self, cx: &mut Locked<'_, L>) -> Option<Vec<&'static str>> {
        let mut names = Vec::new();
        for (module, lock) in MODULES.iter().zip(&self.loaded) {
            if *lock.try_lock(cx)?.0 {
                names.push(module.name);
            }
        }
        Some(names)
    }
}
