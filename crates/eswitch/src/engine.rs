//! The engine: the PFs of one card, and the commands on them.
//!
//! The commands are in the files below, each of one concept; those on VFs, rates and the PCI bus are in [`crate::vf`],
//! [`crate::rate`] and `crate::pci`.

mod devlink;
mod lag;
mod modules;
mod ports;
mod settle;
mod vf_count;

use std::sync::Arc;

use lockdep::{AtomicU64, Locked, Mutex, Shadow, Spawn, Unlocked, digest};

use crate::agreed::Agreed;
use crate::auxiliary::Bus;
use crate::card::{Card, OnNetdevChange};
use crate::config::CardConfig;
use crate::devcom::{Component, Devcom};
use crate::device::{Device, PciState, Pf, Slot};
use crate::error::{Error, Result};
use crate::event::{Event, Events, Subscription};
use crate::flows::Flows;
use crate::ids::{PciAddress, PfIndex};
use crate::lag::Lag;
use crate::module::{CORE, Core, CoreState, Modules};
use crate::shared::Shared;

pub use ports::FunctionChange;

/// One card with its PFs. Any thread may call any command at any time.
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) devices: Vec<Device>,
    pub(crate) host_vfs: Vec<Arc<AtomicU64>>,
}

/// A PF as the PCI bus has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PfFunction {
    /// Its number on the card.
    pub index: PfIndex,
    /// Its address.
    pub address: PciAddress,
    /// Whether a driver is bound to it. During a reload this stays true.
    pub bound: bool,
    /// The attributes that belong to the bus.
    pub pci: PciState,
}

impl Engine {
    /// Brings a card up: loads `mlx5_core` and the configured modules, binds every PF and enables the configured VFs.
    /// The caller has [validated](CardConfig::validate) the configuration.
    ///
    /// # Errors
    /// The first failure. Everything is undone.
    pub fn start(
        cx: &mut Locked<'_, Unlocked>,
        config: CardConfig,
        card: Arc<dyn Card>,
        threads: Arc<dyn Spawn>,
    ) -> Result<Arc<Self>> {
        Self::start_as(cx, config, card, threads, None)
    }

    /// Brings a card up in an agreed state, which takes the place of the configured one. Without an agreed state it
    /// does the same as [`start`](Self::start).
    ///
    /// # Errors
    /// The first failure. Everything is undone.
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
        let events = Events::new(pfs.iter().map(|pf| config.pf_address(*pf)).collect());
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
                flows: Flows::default(),
                events,
                threads,
                core: Core::default(),
                lag_thread: Mutex::new(None).with_state_digest(digest),
                made: Shadow::default(),
            }),
        });
        let shared = Arc::downgrade(&engine.shared);
        let changed: OnNetdevChange = Arc::new(move |cx, resource, change| {
            if let Some(shared) = shared.upgrade() {
                shared.events.emit(cx, || Event::Netdev(resource, change));
            }
        });
        engine.shared.card.on_netdev_change(&mut cx.narrow(), changed);
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

    /// Takes the card down: unbinds every PF and unloads every module.
    pub fn shutdown(&self, cx: &mut Locked<'_, Unlocked>) {
        let _change = self.shared.change();
        {
            let (_one, _cx) = self.shared.core.lock.lock(cx);
            self.shared.core.set(CoreState::Going);
        }
        for device in self.devices.iter().rev() {
            // A PF that is not bound needs no unbinding.
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

    /// The configuration with which the card was started.
    pub fn config(&self) -> &CardConfig {
        &self.shared.config
    }

    /// The PCI addresses of the card's PFs, bound or not.
    pub fn addresses(&self) -> Vec<PciAddress> {
        self.devices.iter().map(|d| d.address).collect()
    }

    /// A counter of changes that a view may show. A command increments it before it returns, and so do the threads of
    /// the queues. A reader that finds the same value before and after its look has seen the present state.
    ///
    /// Takes no lock. Of the changes that are made to netdevs outside the engine it counts only new names and moves to
    /// other network namespaces, once the card has noticed them.
    pub fn changes(&self) -> u64 {
        self.shared.events.changes().now()
    }

    /// The number of times that the core module has been loaded since the card was started. Loading another module can
    /// load the core module too, which binds every PF. A caller that stores the agreed state reads all of it again when
    /// this number has changed.
    pub fn core_loads(&self) -> u64 {
        self.shared.core.loads()
    }

    /// What the PCI bus knows of each PF, bound or not.
    pub fn functions<L>(&self, cx: &mut Locked<'_, L>) -> Vec<PfFunction> {
        let mut functions = Vec::new();
        for device in &self.devices {
            let (slot, pci) = device.on_bus(cx);
            let bound = !matches!(slot, Slot::Unbound);
            functions.push(PfFunction { index: device.index, address: device.address, bound, pci });
        }
        functions
    }

    /// Subscribes to the events from now on.
    pub fn subscribe<L>(&self, cx: &mut Locked<'_, L>) -> Subscription {
        self.shared.events.subscribe(cx)
    }

    /// Subscribes to the events from now on. `wake` is called for each; it must not block.
    pub fn subscribe_waking<L>(&self, cx: &mut Locked<'_, L>, wake: impl Fn() + Send + Sync + 'static) -> Subscription {
        self.shared.events.subscribe_waking(cx, Some(Box::new(wake)))
    }

    pub(crate) fn device(&self, address: PciAddress) -> Result<(&Device, &Arc<AtomicU64>)> {
        let found = self.devices.iter().zip(&self.host_vfs).find(|(d, _)| d.address == address);
        found.ok_or(Error::NoDevice(address))
    }

    /// The PF at an address.
    ///
    /// # Errors
    /// [`Error::NoDevice`]: no such PF, or it is not bound.
    pub fn pf<L>(&self, cx: &mut Locked<'_, L>, address: PciAddress) -> Result<Arc<Pf>> {
        self.device(address)?.0.pf(cx)
    }
}
