//! The agreed state of a card: what commands have requested and got, which is kept when the card's process ends, and
//! how a new process brings the card up in that state again.
//!
//! It contains what commands have set, not what follows from that: representors, names and queues are made anew.

use std::collections::BTreeMap;

use lockdep::{AtomicU64, Locked, Unlocked};
use serde::{Deserialize, Serialize};

use crate::card::Resource;
use crate::device::{Device, PciState, Pf};
use crate::devlink::{DevlinkState, Params, Parts, VportInfo};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ids::{MacAddr, Mode, PciAddress, SfNum, Vport};
use crate::lag::LagMode;
use crate::lock_order::Devlink;
use crate::module::{CORE, find};
use crate::rate::{Rate, Rates};
use crate::sf::{SfRequest, SfState};
use crate::vf::VfInfo;

/// The agreed state of a card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    /// Whether `mlx5_core` is loaded.
    pub core: bool,
    /// Modules that are loaded besides `mlx5_core`.
    pub modules: Vec<String>,
    /// Whether the card is in multiport E-Switch mode.
    pub esw_multiport: bool,
    /// Every PF, in order.
    pub pfs: Vec<AgreedPf>,
}

/// The part of the agreed state that a command may have changed.
///
/// A caller that stores the agreed state after a command reads this part and no more: to read another PF's part it
/// might have to wait for a command on that PF, which can take seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Nothing: the command was a query, or has changed only what the agreed state does not contain.
    Nothing,
    /// Which modules are loaded besides `mlx5_core`.
    Modules,
    /// One PF, by its address.
    Pf(PciAddress),
    /// One PF, by its address, and whether the card is in multiport E-Switch mode.
    PfAndMultiport(PciAddress),
    /// Any part.
    Everything,
}

/// A part of the agreed state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgreedPart {
    /// Whether `mlx5_core` is loaded, and the other modules that are, if this part has them.
    pub modules: Option<(bool, Vec<String>)>,
    /// Whether the card is in multiport E-Switch mode, if this part has that.
    pub esw_multiport: Option<bool>,
    /// The PFs that this part has, in order.
    pub pfs: Vec<AgreedPf>,
}

/// The agreed state of a PF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgreedPf {
    /// The PF's address.
    #[serde(with = "crate::config::as_text")]
    pub address: PciAddress,
    /// The attributes that belong to the PCI bus.
    pci: PciState,
    /// On a DPU: the number of VFs that the host has enabled.
    host_vfs: u64,
    /// The state that the PF's driver has, if the PF is bound.
    bound: Option<Bound>,
}

/// The agreed state of a PF that is bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Bound {
    mode: Mode,
    encap: bool,
    params: Params,
    vfs: u16,
    /// The vports whose state differs from that of a vport that has just been enabled, by vport number.
    vports: BTreeMap<u16, VportInfo>,
    /// By their place in the PF's table of SFs.
    sfs: BTreeMap<u16, Sf>,
    nodes: BTreeMap<String, Rate>,
    /// By vport number.
    leaves: BTreeMap<u16, Rate>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sf {
    sfnum: u32,
    active: bool,
    mac: MacAddr,
    roce: bool,
    /// Whether the user has unbound its driver. The default is for states that older versions wrote without this field.
    #[serde(default)]
    unbound: bool,
    #[serde(default)]
    parts: Parts,
    /// The number of its auxiliary devices, which names the SF and its settings.
    #[serde(default)]
    id: Option<u32>,
}

impl Bound {
    fn of(pf: &Pf, state: &DevlinkState, cx: &mut Locked<'_, Devlink>) -> Self {
        let changed = |(vport, info): (&Vport, &VportInfo)| {
            (*info != pf.new_info(*vport, true)).then(|| (vport.number(), info.clone()))
        };
        let mut sfs = BTreeMap::new();
        for sf in state.sfs.iter() {
            let is = sf.state(cx);
            if let Vport::Sf(place) = sf.vport() {
                let SfState { sfnum, id, active, mac, roce, unbound, parts, .. } = is;
                sfs.insert(place, Sf { sfnum: sfnum.0, active, mac, roce, unbound, parts, id: Some(id) });
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

    /// The same values by vport. Leaves out numbers of vports that a card of this kind does not have.
    fn by_vport<T: Clone>(numbered: &BTreeMap<u16, T>, dpu: bool) -> BTreeMap<Vport, T> {
        let vport = |(number, value): (&u16, &T)| Some((Vport::from_number(*number, dpu)?, value.clone()));
        numbered.iter().filter_map(vport).collect()
    }
}

impl Engine {
    /// The present agreed state. If a command is running on a PF, this waits for it and has the state that it leads to.
    pub fn agreed(&self, cx: &mut Locked<'_, Unlocked>) -> Agreed {
        let (core, modules) = self.agreed_modules(cx);
        let pfs =
            self.devices.iter().zip(&self.host_vfs).map(|(device, host)| self.agreed_pf(cx, device, host)).collect();
        Agreed { core, modules, esw_multiport: self.is_multiport(cx), pfs }
    }

    /// The part of the present agreed state that a command may have changed. It does not wait for commands that are
    /// running on other PFs than the one that was touched.
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
        // If the PF has been removed from the bus meanwhile, it was unbound first, and `bound` is older than that.
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

    /// Brings a card that has just been started into the agreed state.
    ///
    /// # Errors
    /// The agreed state has a PF that this card does not have; or the first failure.
    pub(crate) fn restore(&self, cx: &mut Locked<'_, Unlocked>, agreed: &Agreed) -> Result<()> {
        for module in &agreed.modules {
            self.shared.modules.load(cx, &self.shared, module)?;
        }
        for pf in &agreed.pfs {
            let (device, host_vfs) = self.device(pf.address)?;
            host_vfs.store(pf.host_vfs);
            if let Some(bound) = &pf.bound {
                device.bind_with(cx, &self.shared, host_vfs, bound.params)?;
                self.restore_bound(cx, device, bound)?;
            }
            // Last, because it decides how functions are bound from now on, and these have been bound already.
            device.restore_pci(cx, &pf.pci);
        }
        self.settle(cx, false);
        if agreed.esw_multiport
            && let Some(pf) = agreed.pfs.first()
        {
            self.set_esw_multiport(cx, pf.address, true)?;
        }
        // Older versions could record that the core module is not loaded while a module that depends on it is. Then the
        // core module stays.
        let needs_core = |name: &String| find(name).is_some_and(|module| module.depends.contains(&CORE));
        if !agreed.core && !agreed.modules.iter().any(needs_core) {
            self.unload_module(cx, CORE)?;
        }
        Ok(())
    }

    fn restore_bound(&self, cx: &mut Locked<'_, Unlocked>, device: &Device, bound: &Bound) -> Result<()> {
        let (address, dpu) = (device.address, self.shared.config.dpu);
        let vports = Bound::by_vport(&bound.vports, dpu);
        self.with_devlink(cx, address, |pf, state, cx| {
            // Not by the command that changes parameters: some may not be changed in the mode in which the PF was
            // bound.
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
                let controller = u32::from(self.shared.config.is_external_sf(Vport::Sf(*place)));
                let request = SfRequest { controller, pfnum, sfnum: SfNum(sf.sfnum), place: Some(*place), id: sf.id };
                let vport = pf.add_sf(state, cx, request)?;
                let Some(function) = state.sfs.get(vport).cloned() else { continue };
                pf.set_sf_mac(&function, cx, sf.mac)?;
                pf.set_sf_roce(&function, cx, sf.roce)?;
                pf.restore_sf(&function, cx, sf.active, sf.unbound, sf.parts);
            }
            state.rates = Rates::of(bound.nodes.clone(), Bound::by_vport(&bound.leaves, dpu));
            let has_rates = !(bound.nodes.is_empty() && bound.leaves.is_empty());
            if has_rates { pf.enforce_rates(state, cx) } else { Ok(()) }
        })
    }
}

impl Pf {
    /// Gives the vports of a DPU's host their agreed state. They are enabled when the PF is bound, so their state
    /// cannot be prepared in `DevlinkState::kept` as it is for VFs.
    fn restore_vports(
        &self,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        vports: BTreeMap<Vport, VportInfo>,
    ) -> Result<()> {
        for (vport, info) in vports {
            let Some(is) = state.vports.get_mut(&vport) else { continue };
            let function = match vport {
                Vport::Vf(_) if is.has_vf_netdev() => Resource::VfNetdev(self.index(), vport),
                _ => Resource::Port(self.index(), vport),
            };
            let permanent = info.vf.as_ref().and_then(|vf| vf.permanent);
            *is = VportInfo { vf: is.vf.clone().map(|vf| VfInfo { permanent, ..vf }), ..info };
            let mac = is.netdev_mac(self.mac_of(vport));
            let set = self.shared.card.set_mac(&mut cx.narrow(), &function, mac);
            let operation = || format!("{}: setting the MAC address", self.port_handle(vport));
            set.map_err(|source| Error::Card { operation: operation(), source })?;
        }
        Ok(())
    }
}
