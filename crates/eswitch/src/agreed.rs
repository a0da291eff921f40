//! What was agreed with those who command a card: what is to be kept of it when its process ends, and how a
//! card is brought up to be that again.
//!
//! It is what commands have said, not what follows from that: representors, names, queues are made anew.

use std::collections::BTreeMap;

use lockdep::{AtomicU64, Locked, Unlocked};
use serde::{Deserialize, Serialize};

use crate::card::Resource;
use crate::device::{Device, PciState, Pf};
use crate::devlink::{DevlinkState, Params, VportInfo};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ids::{MacAddr, Mode, PciAddress, SfNum, Vport};
use crate::lag::LagMode;
use crate::lock_order::Devlink;
use crate::module::CORE;
use crate::rate::{Rate, Rates};
use crate::sf::{SfRequest, SfState};
use crate::vf::VfInfo;

/// What was agreed of a card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    /// Whether `mlx5_core` is loaded.
    pub core: bool,
    /// Modules that are loaded beside `mlx5_core`.
    pub modules: Vec<String>,
    /// Whether the card is one multiport E-Switch.
    pub esw_multiport: bool,
    /// Every PF, in order.
    pub pfs: Vec<AgreedPf>,
}

/// What a command may have changed of what is agreed.
///
/// Who stores what is agreed after a command looks at this and no more: what else there is may be in another command's
/// hands, which can take seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Nothing: it has only looked, or changed what is not agreed.
    Nothing,
    /// Which modules are loaded beside `mlx5_core`.
    Modules,
    /// One PF, by its address.
    Pf(PciAddress),
    /// One PF, by its address, and whether the card is one multiport E-Switch.
    PfAndMultiport(PciAddress),
    /// Any of it.
    Everything,
}

/// A part of what is agreed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgreedPart {
    /// Whether `mlx5_core` is loaded, and the modules beside it, if they are part of it.
    pub modules: Option<(bool, Vec<String>)>,
    /// Whether the card is one multiport E-Switch, if that is part of it.
    pub esw_multiport: Option<bool>,
    /// The PFs that are part of it, in order.
    pub pfs: Vec<AgreedPf>,
}

/// What was agreed of a PF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgreedPf {
    /// Its address.
    #[serde(with = "crate::config::as_text")]
    pub address: PciAddress,
    /// What is the bus's of it.
    pci: PciState,
    /// On a DPU: VFs that the host has enabled.
    host_vfs: u64,
    /// What its driver knows, if it is bound.
    bound: Option<Bound>,
}

/// What was agreed of a PF that is bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Bound {
    mode: Mode,
    encap: bool,
    params: Params,
    vfs: u16,
    /// Vports that are not as they would be when they are enabled, by number.
    vports: BTreeMap<u16, VportInfo>,
    /// By place.
    sfs: BTreeMap<u16, Sf>,
    nodes: BTreeMap<String, Rate>,
    /// By the vport's number.
    leaves: BTreeMap<u16, Rate>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sf {
    sfnum: u32,
    active: bool,
    mac: MacAddr,
    roce: bool,
    /// Whether its driver has been unbound by hand. States of versions that did not know that have it bound.
    #[serde(default)]
    unbound: bool,
}

impl Bound {
    fn of(pf: &Pf, state: &DevlinkState, cx: &mut Locked<'_, Devlink>) -> Self {
        let changed = |(vport, info): (&Vport, &VportInfo)| {
            (*info != pf.enabled_first(*vport)).then(|| (vport.number(), info.clone()))
        };
        let mut sfs = BTreeMap::new();
        for sf in state.sfs.iter() {
            let is = sf.state(cx);
            if let Vport::Sf(place) = sf.vport() {
                let SfState { sfnum, active, mac, roce, unbound, .. } = is;
                sfs.insert(place, Sf { sfnum: sfnum.0, active, mac, roce, unbound });
            }
        }
        let (nodes, leaves) = state.rates.all();
        let is_function = |(vport, _): &(&Vport, &VportInfo)| matches!(vport, Vport::Vf(_) | Vport::HostPf);
        Self {
            mode: pf.eswitch.mode.under_devlink(state, cx),
            encap: state.encap,
            params: state.params,
            vfs: state.num_vfs,
            vports: state.vports.iter().filter(is_function).filter_map(changed).collect(),
            sfs,
            nodes: nodes.clone(),
            leaves: leaves.iter().map(|(vport, rate)| (vport.number(), rate.clone())).collect(),
        }
    }

    /// By vport; what a card of this kind has not is passed over.
    fn by_vport<T: Clone>(numbered: &BTreeMap<u16, T>, dpu: bool) -> BTreeMap<Vport, T> {
        let vport = |(number, value): (&u16, &T)| Some((Vport::from_number(*number, dpu)?, value.clone()));
        numbered.iter().filter_map(vport).collect()
    }
}

impl Pf {
    /// What a vport is when it is enabled for the first time.
    fn enabled_first(&self, vport: Vport) -> VportInfo {
        VportInfo::new(self.mac_of(vport), matches!(vport, Vport::Vf(_)).then(|| VfInfo::new(true)))
    }
}

impl Engine {
    /// What is agreed now. Of a PF on which a command is running, what that leads to.
    pub fn agreed(&self, cx: &mut Locked<'_, Unlocked>) -> Agreed {
        let (core, modules) = self.agreed_modules(cx);
        let pfs =
            self.devices.iter().zip(&self.host_vfs).map(|(device, host)| self.agreed_pf(cx, device, host)).collect();
        Agreed { core, modules, esw_multiport: self.is_multiport(cx), pfs }
    }

    /// Of what is agreed now, the part that a command may have changed. It waits for no command that is running on
    /// another PF than the one that was touched.
    pub fn agreed_part(&self, cx: &mut Locked<'_, Unlocked>, touched: Touched) -> AgreedPart {
        let pf = |cx: &mut Locked<'_, Unlocked>, address| {
            let found = self.device(address).ok();
            found.map(|(device, host_vfs)| self.agreed_pf(cx, device, host_vfs)).into_iter().collect()
        };
        match touched {
            Touched::Nothing => AgreedPart::default(),
            Touched::Modules => AgreedPart { modules: Some(self.agreed_modules(cx)), ..AgreedPart::default() },
            Touched::Pf(address) => AgreedPart { pfs: pf(cx, address), ..AgreedPart::default() },
            Touched::PfAndMultiport(address) => {
                let pfs = pf(cx, address);
                AgreedPart { esw_multiport: Some(self.is_multiport(cx)), pfs, ..AgreedPart::default() }
            }
            Touched::Everything => {
                let Agreed { core, modules, esw_multiport, pfs } = self.agreed(cx);
                AgreedPart { modules: Some((core, modules)), esw_multiport: Some(esw_multiport), pfs }
            }
        }
    }

    fn agreed_pf(&self, cx: &mut Locked<'_, Unlocked>, device: &Device, host_vfs: &AtomicU64) -> AgreedPf {
        let bound = self.query_devlink(cx, device.address, |pf, state, cx| Ok(Bound::of(pf, state, cx)));
        let (_, pci) = device.on_bus(cx);
        // Whoever has taken it off the bus meanwhile has unbound it first.
        let bound = bound.ok().filter(|_| !pci.removed);
        AgreedPf { address: device.address, pci, host_vfs: host_vfs.load(), bound }
    }

    fn agreed_modules(&self, cx: &mut Locked<'_, Unlocked>) -> (bool, Vec<String>) {
        let loaded = self.shared.modules.list(cx);
        let modules = loaded.iter().copied().filter(|name| *name != CORE);
        (loaded.contains(&CORE), modules.map(str::to_owned).collect())
    }

    fn is_multiport(&self, cx: &mut Locked<'_, Unlocked>) -> bool {
        self.lag(cx).mode == LagMode::Mpesw
    }

    /// Makes a card that has just begun what was agreed.
    ///
    /// # Errors
    /// It is of another card; or the first thing that failed.
    pub(crate) fn restore(&self, cx: &mut Locked<'_, Unlocked>, agreed: &Agreed) -> Result<()> {
        for module in &agreed.modules {
            self.shared.modules.load(cx, &self.shared, module)?;
        }
        for pf in &agreed.pfs {
            let (device, host_vfs) = self.device(pf.address)?;
            host_vfs.store(pf.host_vfs);
            if let Some(bound) = &pf.bound {
                device.bind(cx, &self.shared, host_vfs)?;
                self.restore_bound(cx, device, bound)?;
            }
            // Last: it says how functions are bound from now on, and these are.
            device.restore_pci(cx, &pf.pci);
        }
        self.settle(cx, false);
        if agreed.esw_multiport
            && let Some(pf) = agreed.pfs.first()
        {
            self.set_esw_multiport(cx, pf.address, true)?;
        }
        // Versions before this one could lose the core module from under another. What is loaded keeps what it needs.
        if !agreed.core && agreed.modules.is_empty() {
            self.unload_module(cx, CORE)?;
        }
        Ok(())
    }

    fn restore_bound(&self, cx: &mut Locked<'_, Unlocked>, device: &Device, bound: &Bound) -> Result<()> {
        let (address, dpu) = (device.address, self.shared.config.dpu);
        let vports = Bound::by_vport(&bound.vports, dpu);
        self.with_devlink(cx, address, |pf, state, cx| {
            // Not by the command: there are parameters that may not be set in the mode it was bound in.
            (state.encap, state.params) = (bound.encap, bound.params);
            pf.set_mode(state, cx, bound.mode)?;
            state.kept.clone_from(&vports);
            Ok(())
        })?;
        if !dpu {
            self.set_num_vfs(cx, address, bound.vfs.into())?;
        }
        self.with_devlink(cx, address, |pf, state, cx| {
            state.kept.clear();
            if dpu {
                pf.restore_vports(state, cx, vports)?;
            }
            for (place, sf) in &bound.sfs {
                let pfnum = pf.index().0.into();
                let request = SfRequest { pfnum, sfnum: SfNum(sf.sfnum), place: Some(*place) };
                let vport = pf.add_sf(state, cx, request)?;
                let Some(function) = state.sfs.get(vport).cloned() else { continue };
                pf.set_sf_mac(&function, cx, sf.mac)?;
                pf.set_sf_roce(&function, cx, sf.roce)?;
                pf.restore_sf(&function, cx, sf.active, sf.unbound);
            }
            state.rates = Rates::of(bound.nodes.clone(), Bound::by_vport(&bound.leaves, dpu));
            Ok(())
        })
    }
}

impl Pf {
    /// On a DPU the host's functions are there before anybody could say what they should be.
    fn restore_vports(
        &self,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        vports: BTreeMap<Vport, VportInfo>,
    ) -> Result<()> {
        for (vport, info) in vports {
            let Some(is) = state.vports.get_mut(&vport) else { continue };
            let function = match vport {
                Vport::Vf(_) if is.is_vf_bound() => Resource::VfNetdev(self.index(), vport),
                _ => Resource::Port(self.index(), vport),
            };
            *is = VportInfo { vf: is.vf.clone(), ..info };
            let mac = is.mac;
            let set = self.shared.card.set_mac(&mut cx.narrow(), &function, mac);
            let operation = || format!("{}: setting the MAC address", self.port_handle(vport));
            set.map_err(|source| Error::Card { operation: operation(), source })?;
        }
        Ok(())
    }
}
