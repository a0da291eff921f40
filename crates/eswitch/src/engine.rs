//! The engine: one card's PFs, and the commands on them.

use std::sync::Arc;

use lockdep::{AtomicU64, Deadline, HistoryMark, Locked, Mutex, Shadow, Spawn, Unlocked, digest};
use serde::{Deserialize, Serialize};

use crate::agreed::Agreed;
use crate::auxiliary::Bus;
use crate::card::{Card, OnRename, Resource};
use crate::config::CardConfig;
use crate::devcom::{Component, Devcom};
use crate::device::{Device, PciState, Pf, Slot};
use crate::devlink::{DevlinkState, InlineMode, Params};
use crate::error::{Error, Result};
use crate::event::{Event, Events, Subscription};
use crate::ids::{MacAddr, Mode, PciAddress, PfIndex, PortHandle, SfNum, Vport};
use crate::lag::{Bond, Lag, LagMode, LagView, TxType};
use crate::lock_order::{CoreModule, Devlink as DevlinkClass};
use crate::module::{CORE, Core, CoreState, ModuleInfo, Modules};
use crate::sf::{SfFunction, SfRequest};
use crate::shared::Shared;

/// One card with its PFs. Every command may be called from any thread, at any time.
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) devices: Vec<Device>,
    pub(crate) host_vfs: Vec<Arc<AtomicU64>>,
}

/// A PF as the PCI bus has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PfFunction {
    /// Its place on the card.
    pub index: PfIndex,
    /// Its address.
    pub address: PciAddress,
    /// Whether it is bound to its driver; while it is being reloaded it is.
    pub bound: bool,
    /// What is the bus's of it.
    pub pci: PciState,
}

/// A change to a port's function, as `devlink port function set` takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionChange {
    /// `hw_addr`.
    pub hw_addr: Option<MacAddr>,
    /// `roce`: whether the function has RDMA.
    pub roce: Option<bool>,
    /// `state`: active or inactive. Applied last.
    pub active: Option<bool>,
}

impl Engine {
    /// Brings a card up: loads `mlx5_core` and the configured modules, binds every PF, enables the
    /// configured VFs. The configuration has been [validated](CardConfig::validate).
    ///
    /// # Errors
    /// The first thing that failed; nothing is left.
    pub fn start(
        cx: &mut Locked<'_, Unlocked>,
        config: CardConfig,
        card: Arc<dyn Card>,
        threads: Arc<dyn Spawn>,
    ) -> Result<Arc<Self>> {
        Self::start_as(cx, config, card, threads, None)
    }

    /// Brings a card up as it was last agreed, rather than as the configuration has it; without that, as
    /// [`start`](Self::start) does.
    ///
    /// # Errors
    /// The first thing that failed; nothing is left.
    pub fn start_as(
        cx: &mut Locked<'_, Unlocked>,
        config: CardConfig,
        card: Arc<dyn Card>,
        threads: Arc<dyn Spawn>,
        agreed: Option<&Agreed>,
    ) -> Result<Arc<Self>> {
        let host = if config.dpu { config.vfs } else { 0 };
        let pfs: Vec<PfIndex> = (0..config.pfs).map(PfIndex).collect();
        let lag = Lag::new(config.pfs);
        let events = Events::default();
        let device = |pf: &PfIndex| Device::new(*pf, config.pf_address(*pf), events.changes().clone());
        let engine = Arc::new(Self {
            devices: pfs.iter().map(device).collect(),
            host_vfs: pfs.iter().map(|_| Arc::new(AtomicU64::new(host.into()))).collect(),
            shared: Arc::new(Shared {
                config,
                card,
                bus: Bus::default(),
                modules: Modules::default(),
                devcom: Devcom::new(Component::default()).with_state_digest(digest),
                lag,
                events,
                threads,
                core: Core::default(),
                lag_thread: Mutex::new(None).with_state_digest(digest),
                made: Shadow::default(),
            }),
        });
        let shared = Arc::downgrade(&engine.shared);
        let told: OnRename = Arc::new(move |cx, resource, name| {
            if let Some(shared) = shared.upgrade() {
                shared.events.emit(cx, || Event::Renamed(resource, name));
            }
        });
        engine.shared.card.on_rename(&mut cx.narrow(), told);
        if let Err(error) = engine.bring_up(cx, agreed) {
            engine.shutdown(cx);
            return Err(error);
        }
        Ok(engine)
    }

    fn bring_up(&self, cx: &mut Locked<'_, Unlocked>, agreed: Option<&Agreed>) -> Result<()> {
        let config = &self.shared.config;
        let shared = Arc::clone(&self.shared);
        let serve = Box::new(move |cx: &mut Locked<'_, Unlocked>| shared.serve_lag(cx));
        let thread = self.shared.start(cx, "lag", "lag", serve)?;
        *self.shared.lag_thread.lock_leaf(cx) = Some(thread);
        self.shared.modules.load(cx, &self.shared, CORE)?;
        if let Some(agreed) = agreed {
            return self.restore(cx, agreed);
        }
        for module in &config.modules {
            self.shared.modules.load(cx, &self.shared, module)?;
        }
        for device in &self.devices {
            self.bind(cx, device.address)?;
        }
        if !config.dpu {
            for device in &self.devices {
                self.set_num_vfs(cx, device.address, config.vfs.into())?;
            }
        }
        Ok(())
    }

    /// Takes the card down: unbinds every PF, unloads every module.
    pub fn shutdown(&self, cx: &mut Locked<'_, Unlocked>) {
        let _change = self.shared.change();
        {
            let (_one, _cx) = self.shared.core.lock.lock(cx);
            self.shared.core.set(CoreState::Going);
        }
        for device in self.devices.iter().rev() {
            // Not bound is as good as unbound.
            let _ = device.unbind(cx);
        }
        for module in self.shared.modules.list(cx).into_iter().rev() {
            let _ = self.shared.modules.unload(cx, &self.shared, module);
        }
        self.shared.lag.queue().close(cx);
        self.shared.lag.about_to_drain(cx);
        let thread = self.shared.lag_thread.lock_leaf(cx).take();
        if let Some(Err(panic)) = thread.map(|thread| thread.join(cx)) {
            std::panic::resume_unwind(panic);
        }
    }

    /// The configuration the card came up with.
    pub fn config(&self) -> &CardConfig {
        &self.shared.config
    }

    /// The PCI addresses of the card's PFs, bound or not.
    pub fn addresses(&self) -> Vec<PciAddress> {
        self.devices.iter().map(|d| d.address).collect()
    }

    /// Moves whenever something that can be looked at may have changed: a command has moved it before it returns,
    /// and what the queues' threads do moves it too. Who reads it before it looks, and finds the same
    /// later, has seen what there is.
    ///
    /// It takes no lock. Of what is done to netdevs outside the engine only that one gets another name moves it, once the
    /// card has noticed.
    pub fn changes(&self) -> u64 {
        self.shared.events.changes().now()
    }

    /// How often the core module has been loaded since the card came up. Loading another module may load it, too, and
    /// binds every PF then: whoever keeps what is agreed looks at all of it if this has moved.
    pub fn core_loads(&self) -> u64 {
        self.shared.core.loads()
    }

    /// What the PCI bus has of each PF, bound or not.
    pub fn functions<L>(&self, cx: &mut Locked<'_, L>) -> Vec<PfFunction> {
        let mut functions = Vec::new();
        for device in &self.devices {
            let (slot, pci) = device.on_bus(cx);
            let bound = !matches!(slot, Slot::Unbound);
            functions.push(PfFunction { index: device.index, address: device.address, bound, pci });
        }
        functions
    }

    /// What happens from now on.
    pub fn subscribe<L>(&self, cx: &mut Locked<'_, L>) -> Subscription {
        self.shared.events.subscribe(cx)
    }

    /// Begins to watch what happens, and is told of each event by `wake`, which must not wait.
    pub fn subscribe_waking<L>(&self, cx: &mut Locked<'_, L>, wake: impl Fn() + Send + Sync + 'static) -> Subscription {
        self.shared.events.subscribe_waking(cx, Some(Box::new(wake)))
    }

    pub(crate) fn device(&self, address: PciAddress) -> Result<(&Device, &Arc<AtomicU64>)> {
        let found = self.devices.iter().zip(&self.host_vfs).find(|(d, _)| d.address == address);
        found.ok_or(Error::NoDevice(address))
    }

    /// The PF of an address, if it is bound.
    ///
    /// # Errors
    /// There is none, or it is not bound.
    pub fn pf<L>(&self, cx: &mut Locked<'_, L>, address: PciAddress) -> Result<Arc<Pf>> {
        self.device(address)?.0.pf(cx)
    }

    /// Runs a command under the devlink lock of a PF that is bound; then what it has changed has been counted. While
    /// the PF is being reloaded the command waits, as its devlink instance is there all the time.
    pub(crate) fn with_devlink<R>(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        f: impl FnOnce(&Arc<Pf>, &mut DevlinkState, &mut Locked<'_, DevlinkClass>) -> Result<R>,
    ) -> Result<R> {
        let mut f = Some(f);
        self.while_registered(cx, address, |pf, cx| {
            pf.devlink.with(cx, |state, cx| match f.take() {
                Some(f) if state.registered => {
                    let before = pf.before(cx, state);
                    let result = f(pf, state, cx);
                    pf.ensure_outcome(cx, state, &before, &result);
                    Some(result)
                }
                untold => {
                    f = untold;
                    None
                }
            })
        })
    }

    /// As [`with_devlink`](Self::with_devlink), for what looks and changes nothing: it is not counted as a change.
    pub(crate) fn look_devlink<R>(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        f: impl FnOnce(&Arc<Pf>, &DevlinkState, &mut Locked<'_, DevlinkClass>) -> Result<R>,
    ) -> Result<R> {
        let mut f = Some(f);
        self.while_registered(cx, address, |pf, cx| {
            pf.devlink.look(cx, |state, cx| match f.take() {
                Some(f) if state.registered => Some(f(pf, state, cx)),
                untold => {
                    f = untold;
                    None
                }
            })
        })
    }

    /// Asks `f` of the PF that is bound, and again of the one that is bound then, until it has an answer: a PF may be
    /// removed while `f` waits for its lock.
    fn while_registered<R>(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        mut f: impl FnMut(&Arc<Pf>, &mut Locked<'_, Unlocked>) -> Option<Result<R>>,
    ) -> Result<R> {
        let (device, _) = self.device(address)?;
        loop {
            match device.bound(cx) {
                Slot::Bound(pf) => {
                    if let Some(result) = f(&pf, cx) {
                        return result;
                    }
                }
                Slot::Unbound => return Err(Error::NoDevice(address)),
                Slot::Reloading => device.wait(cx),
            }
        }
    }

    /// `devlink dev reload`.
    ///
    /// # Errors
    /// No such PF, or it is not bound; or it could not be bound again.
    pub fn reload(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        let (device, host_vfs) = self.device(address)?;
        device.reload(cx, &self.shared, host_vfs)
    }

    /// `devlink dev eswitch set … mode`.
    ///
    /// # Errors
    /// See [`Error`]; everything is as it was.
    pub fn set_mode(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, mode: Mode) -> Result<()> {
        self.with_devlink(cx, address, |pf, state, cx| {
            if state.rates.has_nodes() {
                return Err(Error::RateNodesExist);
            }
            pf.set_mode(state, cx, mode)
        })
    }

    /// `devlink dev eswitch show`: the mode, and whether `encap-mode` is basic.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn eswitch(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<(Mode, bool)> {
        self.look_devlink(cx, address, |pf, state, cx| Ok((pf.eswitch.mode.under_devlink(state, cx), state.encap)))
    }

    /// Parameters that are kept and shown.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn params(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<Params> {
        self.look_devlink(cx, address, |_, state, _| Ok(state.params))
    }

    /// Changes parameters that are kept and shown, in one go: two that change one each both do.
    ///
    /// # Errors
    /// No such PF, or it is not bound; or one changes that may not in switchdev mode. Nothing is changed.
    pub fn change_params(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        change: impl FnOnce(&mut Params),
    ) -> Result<()> {
        self.with_devlink(cx, address, |pf, state, cx| {
            let mut params = state.params;
            change(&mut params);
            if pf.eswitch.mode.under_devlink(state, cx) == Mode::Switchdev {
                if params.port_metadata != state.params.port_metadata {
                    return Err(Error::MetadataInSwitchdev);
                }
                if params.steering != state.params.steering {
                    return Err(Error::SteeringInSwitchdev);
                }
            }
            state.params = params;
            Ok(())
        })
    }

    /// Looks for what is missing at once rather than after the next back-off.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn recover(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        self.pf(cx, address)?.want_reconcile(cx);
        Ok(())
    }

    /// `devlink dev eswitch set … inline-mode`. This card needs no inline headers: `none` is what it
    /// is, and nothing else can be set.
    ///
    /// # Errors
    /// Anything but `none`.
    pub fn set_inline_mode(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, mode: InlineMode) -> Result<()> {
        self.look_devlink(cx, address, |_, _, _| match mode {
            InlineMode::None => Ok(()),
            _ => Err(Error::InlineMode),
        })
    }

    /// `devlink dev eswitch set … encap-mode basic|none`. Stored, and shown again; tunnels are made by
    /// whoever forwards between representors, so the card has nothing to rebuild for it.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn set_encap(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, encap: bool) -> Result<()> {
        self.with_devlink(cx, address, |_, state, _| {
            state.encap = encap;
            Ok(())
        })
    }

    /// `echo N > …/sriov_numvfs`.
    ///
    /// # Errors
    /// ERANGE, EBUSY, or what failed, with nothing changed.
    pub fn set_num_vfs(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, n: u32) -> Result<()> {
        let (device, _) = self.device(address)?;
        device.with(cx, |cx| {
            let pf = device.pf(cx).map_err(|_| Error::NoDriver(address))?;
            pf.devlink.with(cx, |state, cx| pf.set_num_vfs(state, cx, n))
        })
    }

    /// On a DPU, what `sriov_numvfs` on the *host* leads to: the count changes, and the card is notified
    /// by an interrupt, in which nothing may wait or allocate.
    ///
    /// # Errors
    /// The card is no DPU, or the host cannot have as many.
    pub fn set_host_vfs(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, n: u32) -> Result<()> {
        let _change = self.shared.change();
        let (device, host_vfs) = self.device(address)?;
        let total = self.shared.config.total_vfs;
        if !self.shared.config.dpu {
            return Err(Error::NoHost(address));
        }
        if n > total.into() {
            return Err(Error::TooManyVfs { asked: n, total });
        }
        host_vfs.store(n.into());
        if let Ok(pf) = device.pf(cx) {
            cx.interrupt(|cx| pf.host_functions_changed(cx));
        }
        Ok(())
    }

    /// `modprobe NAME`: loads a module, and first those that it depends on. Loading what is loaded succeeds. With the
    /// core module every PF that is there is bound.
    ///
    /// # Errors
    /// No such module, or the card is going away.
    pub fn load_module(&self, cx: &mut Locked<'_, Unlocked>, name: &str) -> Result<()> {
        let module = self.module(name)?;
        self.with_modules(cx, |cx| self.load_with_dependencies(cx, module))
    }

    /// `insmod`, which is what the kernel itself does with a module: loads this one and no other.
    ///
    /// # Errors
    /// No such module, it is loaded, one that it depends on is not, or the card is going away.
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
        })
    }

    fn module(&self, name: &str) -> Result<&'static ModuleInfo> {
        crate::module::find(name).ok_or_else(|| Error::NoModule { name: name.to_owned() })
    }

    /// Runs `f` under the lock that orders all loading and unloading of modules: what one depends on is there from when
    /// it is looked at until the other has been loaded or unloaded. Then what `f` has changed has been counted.
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

    /// `rmmod NAME`, and `modprobe -r NAME`: unloads a module, and none that it depended on. The core module's drivers
    /// are unbound from every PF first.
    ///
    /// # Errors
    /// No such module, or another that is loaded depends on it.
    pub fn unload_module(&self, cx: &mut Locked<'_, Unlocked>, name: &str) -> Result<()> {
        let module = self.module(name)?;
        self.with_modules(cx, |cx| {
            let loaded = self.shared.modules.list(cx);
            let stands_on_it = |loaded: &ModuleInfo| loaded.depends.contains(&module.name);
            if loaded.iter().filter_map(|name| crate::module::find(name)).any(stands_on_it) {
                return Err(Error::ModuleInUse(module.name));
            }
            match module.name {
                CORE => self.unload_core(cx),
                name => self.shared.modules.unload(cx, &self.shared, name),
            }
        })
    }

    fn unload_core(&self, cx: &mut Locked<'_, CoreModule>) -> Result<()> {
        // Whoever binds from here on finds it gone; who was before, is unbound below.
        self.shared.core.set(CoreState::Unloaded);
        for device in self.devices.iter().rev() {
            // Not bound is as good as unbound.
            let _ = device.unbind(cx);
        }
        self.shared.modules.unload(cx, &self.shared, CORE)
    }

    /// `devlink port add pci/… flavour pcisf pfnum P sfnum S`.
    ///
    /// # Errors
    /// See [`Error`]; nothing is changed.
    pub fn add_sf(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        pfnum: u32,
        sfnum: SfNum,
    ) -> Result<PortHandle> {
        self.with_devlink(cx, address, |pf, state, cx| {
            let vport = pf.add_sf(state, cx, SfRequest { pfnum, sfnum, place: None })?;
            Ok(pf.port_handle(vport))
        })
    }

    /// `echo mlx5_core.sf.N > /sys/bus/auxiliary/drivers/mlx5_core.sf/bind`, or `…/unbind`.
    ///
    /// # Errors
    /// No such device, or it is so already; or a driver's probe failed, which is tried again.
    pub fn set_sf_bound(&self, cx: &mut Locked<'_, Unlocked>, id: u32, bound: bool) -> Result<()> {
        for address in self.addresses() {
            let done = self.with_devlink(cx, address, |pf, state, cx| {
                let sf = state.sfs.iter().find(|sf| sf.id() == id).cloned();
                sf.map(|sf| pf.set_sf_bound(&sf, cx, bound)).transpose()
            });
            match done {
                Ok(None) | Err(Error::NoDevice(_)) => {}
                done => return done.map(|_| ()),
            }
        }
        Err(Error::NoSfDevice(id))
    }

    /// `devlink port del`.
    ///
    /// # Errors
    /// No such port, or it is no SF's.
    pub fn delete_port(&self, cx: &mut Locked<'_, Unlocked>, port: PortHandle) -> Result<()> {
        self.with_port(cx, port, |pf, state, cx, vport| {
            let sf = state.sfs.get(vport).cloned().ok_or(Error::NotSf(port))?;
            pf.delete_sf(state, cx, &sf);
            Ok(())
        })
    }

    /// `devlink port function set`: `hw_addr` and `roce` of a VF or of an SF that is inactive, `state` of an SF.
    ///
    /// # Errors
    /// No such port; its function has no such attribute; or what failed. If two changes are asked for
    /// and the second fails, the first has been made, as with devlink. A VF's `roce` counts at once, as its
    /// address does.
    pub fn set_function(&self, cx: &mut Locked<'_, Unlocked>, port: PortHandle, change: FunctionChange) -> Result<()> {
        self.with_port(cx, port, |pf, state, cx, vport| {
            let sf: Option<Arc<SfFunction>> = state.sfs.get(vport).cloned();
            if change.active.is_some() && sf.is_none() {
                return Err(Error::FunctionAttribute { port, what: "state" });
            }
            if let Some(mac) = change.hw_addr {
                match (&sf, vport) {
                    (Some(sf), _) => pf.set_sf_mac(sf, cx, mac)?,
                    (None, Vport::Vf(_)) => pf.set_vf_mac(state, cx, vport, mac)?,
                    (None, Vport::HostPf) => {
                        let function = Resource::Port(pf.index(), vport);
                        self.shared
                            .card
                            .set_mac(&mut cx.narrow(), &function, mac)
                            .map_err(|source| Error::Card { what: format!("{port}: setting hw_addr"), source })?;
                        if let Some(info) = state.vports.get_mut(&vport) {
                            info.mac = mac;
                        }
                    }
                    _ => return Err(Error::FunctionAttribute { port, what: "hw_addr" }),
                }
            }
            if let Some(roce) = change.roce {
                match (&sf, state.vports.get_mut(&vport)) {
                    (Some(sf), _) => pf.set_sf_roce(sf, cx, roce)?,
                    (None, Some(info)) if info.vf.is_some() => info.roce = roce,
                    _ => return Err(Error::FunctionAttribute { port, what: "roce" }),
                }
            }
            match (change.active, sf) {
                (Some(active), Some(sf)) => pf.set_sf_active(&sf, cx, active),
                _ => Ok(()),
            }
        })
    }

    /// Runs a command on a port that exists: the uplink's always, the others' in switchdev mode.
    fn with_port<R>(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        port: PortHandle,
        f: impl FnOnce(&Arc<Pf>, &mut DevlinkState, &mut Locked<'_, DevlinkClass>, Vport) -> Result<R>,
    ) -> Result<R> {
        let dpu = self.shared.config.dpu;
        self.with_devlink(cx, port.device, |pf, state, cx| {
            let (pf_part, number) = port.index.split();
            let vport = Vport::from_number(number, dpu)
                .filter(|_| pf_part == pf.index().0.into())
                .filter(|vport| state.vports.contains_key(vport))
                .ok_or(Error::NoPort(port))?;
            if vport != Vport::Uplink && pf.eswitch.mode.under_devlink(state, cx) == Mode::Legacy {
                return Err(Error::NoPort(port));
            }
            f(pf, state, cx, vport)
        })
    }

    /// `ip link set … netns`: moves a PF's netdev, `None` for back where it was born.
    ///
    /// # Errors
    /// The E-Switch is in switchdev mode; or the card says no.
    pub fn set_netns(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, netns: Option<&str>) -> Result<()> {
        self.with_devlink(cx, address, |pf, state, cx| {
            if pf.eswitch.mode.under_devlink(state, cx) == Mode::Switchdev {
                return Err(Error::NetnsLocal);
            }
            self.shared
                .card
                .set_netns(&mut cx.narrow(), pf.index(), netns)
                .map_err(|source| Error::Card { what: format!("pci/{address}: moving the netdev"), source })
        })
    }

    /// What the card's ports have been put into has changed: a bond, or none. Events are collected, then
    /// evaluated once.
    pub fn bond_changed(&self, cx: &mut Locked<'_, Unlocked>, bond: Option<Bond>) {
        let _change = self.shared.change();
        self.shared.lag.bond_changed(cx, bond);
    }

    /// The step `bond`: what a bond over the PFs' netdevs leads to, for a card whose kernel has none.
    ///
    /// # Errors
    /// A port is none of the card's; or the card is in multiport E-Switch mode. Nothing is changed. A
    /// bond the card cannot follow is no error: it stands, and the card says why it does not act on it.
    pub fn bond(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        name: &str,
        tx: TxType<PciAddress>,
        ports: &[PciAddress],
        foreign: &[String],
    ) -> Result<()> {
        let index = |address: &PciAddress| Ok(self.device(*address)?.0.index);
        let tx = tx.with_ports(index)?;
        let ports = ports.iter().map(index).collect::<Result<_>>()?;
        if self.lag(cx).mode == LagMode::Mpesw {
            return Err(Error::BondUnderMpesw(name.to_owned()));
        }
        self.bond_changed(cx, Some(Bond { name: name.to_owned(), tx, ports, foreign: foreign.to_vec() }));
        Ok(())
    }

    /// The step `bond … del`.
    ///
    /// # Errors
    /// There is no such bond.
    pub fn unbond(&self, cx: &mut Locked<'_, Unlocked>, name: &str) -> Result<()> {
        if self.lag(cx).bond.as_deref() != Some(name) {
            return Err(Error::NoBond(name.to_owned()));
        }
        self.bond_changed(cx, None);
        Ok(())
    }

    /// The LAG as it is.
    pub fn lag(&self, cx: &mut Locked<'_, Unlocked>) -> LagView {
        self.shared.lag.view(cx)
    }

    /// How often a bond has been evaluated so far: however many events come at once, once.
    pub fn lag_evaluations(&self, cx: &mut Locked<'_, Unlocked>) -> u64 {
        self.shared.lag.evaluations(cx)
    }

    /// `devlink dev param set pci/… name esw_multiport value true|false cmode runtime`.
    ///
    /// # Errors
    /// It is to be turned on and a member is not in switchdev mode, there is a LAG, or the card has one
    /// port; or what failed, with everything undone.
    pub fn set_esw_multiport(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, on: bool) -> Result<()> {
        self.with_devlink(cx, address, |_, _, cx| {
            if on {
                self.shared.enable_mpesw(cx)
            } else {
                self.shared.disable_mpesw(cx);
                Ok(())
            }
        })
    }

    /// Makes the next `n` allocations for a PF's work queue fail.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn fail_allocations(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, n: u32) -> Result<()> {
        self.pf(cx, address)?.eswitch.work.inner().fail_allocations(cx, n);
        Ok(())
    }

    /// Waits until every queue is at rest; with `retries`, until nothing waits to be tried again
    /// either, which may be never. Returns at once for PFs that are not bound.
    pub fn settle(&self, cx: &mut Locked<'_, Unlocked>, retries: bool) {
        self.wait_settled(cx, retries, None);
    }

    /// As [`settle`](Self::settle), but no longer than until the deadline; whether it came to rest.
    pub fn settle_until(&self, cx: &mut Locked<'_, Unlocked>, retries: bool, deadline: &Deadline) -> bool {
        self.wait_settled(cx, retries, Some(deadline))
    }

    fn wait_settled(&self, cx: &mut Locked<'_, Unlocked>, retries: bool, deadline: Option<&Deadline>) -> bool {
        let since = HistoryMark::now();
        loop {
            since.erase_except(&deadline.map(Deadline::has_passed));
            for device in &self.devices {
                let Ok(pf) = device.pf(cx) else { continue };
                if !pf.eswitch.work.inner().wait_rested(cx, retries, deadline)
                    || !pf.sf_queue.inner().wait_rested(cx, retries, deadline)
                {
                    return false;
                }
            }
            // What LAG waits for is that events have been collected: that is not a retry.
            if !self.shared.lag.queue().wait_rested(cx, true, deadline) {
                return false;
            }
            // Each queue may have given another something to do.
            if self
                .devices
                .iter()
                .all(|d| d.pf(cx).is_ok_and(|pf| pf.eswitch.work.inner().rests(cx)) || d.pf(cx).is_err())
            {
                return true;
            }
        }
    }
}

impl Pf {
    /// The notifier: the host of a DPU has changed its functions. Runs where nothing may wait. If
    /// there is no room for the work, a mark is left that does the same.
    fn host_functions_changed(&self, cx: &mut Locked<'_, lockdep::AtomicContext>) {
        let _ = self.eswitch.work.queue_atomic(cx, crate::eswitch::Work::HostFunctions);
    }
}
