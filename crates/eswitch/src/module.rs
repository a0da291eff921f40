//! Modules: what brings drivers, and comes and goes.

use lockdep::{LockBefore, Locked, Mutex, digest};

use crate::auxiliary::{AuxKind, Function};
use crate::card::Resource;
use crate::driver::{AuxiliaryDriver, ETH, ETH_REP, RDMA, RDMA_REP};
use crate::engine::Shared;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::ids::RepType;
use crate::lock_order::Module as ModuleClass;

/// A module the card knows.
pub struct ModuleInfo {
    /// Its name, as `modprobe` takes it.
    pub name: &'static str,
    drivers: &'static [&'static dyn AuxiliaryDriver],
}

impl ModuleInfo {
    /// Of what its drivers make, nothing is left.
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
            || format!("{} is unloaded and leaves {:?}", self.name, shared.made_of(mine)),
        );
    }
}

/// The core driver, which everything stands on.
pub const CORE: &str = "mlx5_core";

static MODULES: [ModuleInfo; 2] = [
    ModuleInfo { name: CORE, drivers: &[&ETH, &ETH_REP] },
    ModuleInfo { name: "mlx5_ib", drivers: &[&RDMA, &RDMA_REP] },
];

/// The module of a name.
pub fn find(name: &str) -> Option<&'static ModuleInfo> {
    // modprobe takes a dash for an underscore.
    let name = name.replace('-', "_");
    MODULES.iter().find(|m| m.name == name)
}

/// The names of all modules, for messages.
pub fn known() -> String {
    MODULES.iter().map(|m| m.name).collect::<Vec<_>>().join(", ")
}

/// Which modules are loaded. Loading and unloading one excludes loading and unloading the same.
#[derive(Debug)]
pub(crate) struct Modules {
    loaded: [Mutex<ModuleClass, bool>; MODULES.len()],
}

impl Default for Modules {
    fn default() -> Self {
        Self { loaded: std::array::from_fn(|_| Mutex::new(false).told(digest)) }
    }
}

impl Modules {
    fn get(&self, name: &str) -> Result<(&'static ModuleInfo, &Mutex<ModuleClass, bool>)> {
        let module = find(name).ok_or_else(|| Error::NoModule { name: name.to_owned() })?;
        let lock = MODULES.iter().zip(&self.loaded).find(|(m, _)| m.name == module.name);
        lock.ok_or_else(|| Error::NoModule { name: name.to_owned() })
    }

    /// Loads a module: its drivers bind, on this thread. Loading what is loaded succeeds.
    ///
    /// As with `modprobe`, a device whose probe fails does not fail the load; it is tried again.
    pub fn load<P: LockBefore<ModuleClass>>(&self, cx: &mut Locked<'_, P>, shared: &Shared, name: &str) -> Result<()> {
        let (module, lock) = self.get(name)?;
        let (mut loaded, mut cx) = lock.lock(cx);
        if *loaded {
            return Ok(());
        }
        *loaded = true;
        for function in shared.bus.add_drivers(&mut cx, &shared.events, module.drivers) {
            match function {
                Function::Pf(pf) => pf.want_reconcile(&mut cx),
                Function::Sf(sf) => sf.pf().want_sfs(&mut cx),
            }
        }
        shared.events.emit(&mut cx, || Event::ModuleLoaded(module.name));
        Ok(())
    }

    /// Unloads a module: its drivers unbind, on this thread. Unloading what is not loaded succeeds.
    pub fn unload<P: LockBefore<ModuleClass>>(
        &self,
        cx: &mut Locked<'_, P>,
        shared: &Shared,
        name: &str,
    ) -> Result<()> {
        let (module, lock) = self.get(name)?;
        if module.name == CORE && !shared.tearing_down.load() {
            return Err(Error::ModuleInUse(CORE));
        }
        let (mut loaded, mut cx) = lock.lock(cx);
        if !*loaded {
            return Ok(());
        }
        shared.bus.remove_drivers(&mut cx, module.drivers);
        *loaded = false;
        module.ensure_gone(&cx, shared);
        shared.events.emit(&mut cx, || Event::ModuleUnloaded(module.name));
        Ok(())
    }

    /// The names of the loaded modules.
    pub fn list<P: LockBefore<ModuleClass>>(&self, cx: &mut Locked<'_, P>) -> Vec<&'static str> {
        let mut names = Vec::new();
        for (module, lock) in MODULES.iter().zip(&self.loaded) {
            if *lock.lock(cx).0 {
                names.push(module.name);
            }
        }
        names
    }
}
