//! Loading and unloading the card's kernel modules.

use lockdep::{Locked, Unlocked};

use super::Engine;
use crate::error::{Error, Result};
use crate::lock_order::CoreModule;
use crate::module::{CORE, CoreState, ModuleInfo, VFIO};

impl Engine {
    /// `modprobe NAME`: loads a module, after the modules that it depends on. If it is loaded, this succeeds. Loading
    /// the core module binds every PF that is on the bus.
    ///
    /// # Errors
    /// No such module, or the card is being taken down.
    pub fn load_module(&self, cx: &mut Locked<'_, Unlocked>, name: &str) -> Result<()> {
        let module = self.module(name)?;
        self.with_modules(cx, |cx| self.load_with_dependencies(cx, module))?;
        self.attach_vfio(cx, module);
        Ok(())
    }

    /// `insmod` (`finit_module(2)`): loads this module and no other.
    ///
    /// # Errors
    /// No such module; it is loaded; a module that it depends on is not loaded; or the card is being taken down.
    pub fn insert_module(&self, cx: &mut Locked<'_, Unlocked>, name: &str) -> Result<()> {
        let module = self.module(name)?;
        self.with_modules(cx, |cx| {
            let loaded = self.shared.modules.list(cx);
            if loaded.contains(&module.name) {
                return Err(Error::ModuleLoaded(module.name));
            }
            if let Some(needs) = module.depends.iter().find(|needs| !loaded.contains(needs)) {
                return Err(Error::ModuleNeeds { module: module.name, needs });
            }
            self.load_with_dependencies(cx, module)
        })?;
        self.attach_vfio(cx, module);
        Ok(())
    }

    /// If the module is that of `vfio-pci`, binds the functions that wait for this driver, as the kernel does when a
    /// driver is registered (`driver_attach`).
    fn attach_vfio(&self, cx: &mut Locked<'_, Unlocked>, module: &ModuleInfo) {
        if module.name == VFIO {
            for address in self.bindable(cx) {
                // Most functions are for another driver, or have one.
                let _ = self.bind_vfio(cx, address);
            }
        }
    }

    fn module(&self, name: &str) -> Result<&'static ModuleInfo> {
        crate::module::find(name).ok_or_else(|| Error::NoModule { name: name.to_owned() })
    }

    /// Runs `f` under the lock that orders all loading and unloading of modules, so that dependencies that `f` has
    /// checked hold until `f` returns. Counts a change afterwards.
    fn with_modules<R>(&self, cx: &mut Locked<'_, Unlocked>, f: impl FnOnce(&mut Locked<'_, CoreModule>) -> R) -> R {
        let _change = self.shared.change();
        let (_one, mut cx) = self.shared.core.lock.lock(cx);
        f(&mut cx)
    }

    fn load_with_dependencies(&self, cx: &mut Locked<'_, CoreModule>, module: &ModuleInfo) -> Result<()> {
        for name in module.depends {
            self.load_with_dependencies(cx, self.module(name)?)?;
        }
        match module.name {
            CORE => self.load_core(cx),
            name => self.shared.modules.load(cx, &self.shared, name),
        }
    }

    fn load_core(&self, cx: &mut Locked<'_, CoreModule>) -> Result<()> {
        match self.shared.core.state() {
            CoreState::Loaded => return Ok(()),
            CoreState::Going => return Err(Error::Teardown),
            CoreState::Unloaded => {}
        }
        self.shared.modules.load(cx, &self.shared, CORE)?;
        self.shared.core.set(CoreState::Loaded);
        for (device, host_vfs) in self.devices.iter().zip(&self.host_vfs) {
            // As with `modprobe`, a device that cannot be bound does not fail the load.
            let _ = device.bind(cx, &self.shared, host_vfs);
        }
        Ok(())
    }

    /// `rmmod NAME` and `modprobe -r NAME`: unloads a module, but none of its dependencies. The core module's drivers
    /// are first unbound from every PF.
    ///
    /// # Errors
    /// No such module, or a loaded module depends on it.
    pub fn unload_module(&self, cx: &mut Locked<'_, Unlocked>, name: &str) -> Result<()> {
        let module = self.module(name)?;
        if module.name == VFIO {
            // A function that is bound from here on finds the module unloaded; those that are bound are unbound here.
            self.shared.modules.stop_vfio();
            for address in self.bindable(cx) {
                let _ = self.unbind_vfio(cx, address);
            }
        }
        self.with_modules(cx, |cx| {
            let loaded = self.shared.modules.list(cx);
            let depends_on_it = |loaded: &ModuleInfo| loaded.depends.contains(&module.name);
            if loaded.iter().filter_map(|name| crate::module::find(name)).any(depends_on_it) {
                return Err(Error::ModuleInUse(module.name));
            }
            match module.name {
                CORE => self.unload_core(cx),
                name => self.shared.modules.unload(cx, &self.shared, name),
            }
        })
    }

    fn unload_core(&self, cx: &mut Locked<'_, CoreModule>) -> Result<()> {
        // A device that binds from here on finds the module unloaded; those that are bound are unbound below.
        self.shared.core.set(CoreState::Unloaded);
        for device in self.devices.iter().rev() {
            // A PF that is not bound needs no unbinding.
            let _ = device.unbind(cx);
        }
        self.shared.modules.unload(cx, &self.shared, CORE)
    }
}
