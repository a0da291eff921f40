//! Views: what can be looked at of a card at one moment. The invariants over them are in `at_rest.rs`.

mod at_rest;
mod invariants;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lockdep::{Class, LockBefore, Locked, Unlocked};

use crate::auxiliary::{AuxKind, AuxiliaryDevice, Function};
use crate::card::Resource;
use crate::device::{Pf, Slot};
use crate::devlink::{DevlinkState, VportInfo};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::eswitch::RepFailure;
use crate::ids::{MacAddr, Mode, PciAddress, PfIndex, PortHandle, RepType, Vport};
use crate::lag::LagView;
use crate::lock_order::Devlink;
use crate::sf::SfState;
use crate::vf::VfView;

pub use invariants::{INVARIANTS, Invariant};

/// A state that the engine must never be in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The invariant's name.
    pub invariant: &'static str,
    /// What was found.
    pub detail: String,
}

/// A devlink port with its representors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortView {
    /// `pci/0000:08:00.0/1`.
    pub handle: PortHandle,
    /// Which vport.
    pub vport: Vport,
    /// The devlink flavour: `physical`, `pcipf`, `pcivf` or `pcisf`.
    pub flavour: &'static str,
    /// The netdev representor's name, if it is loaded.
    pub netdev: Option<String>,
    /// The RDMA device or port, if the IB representor is loaded.
    pub ibdev: Option<String>,
    /// For each type, in the order of [`RepType::ALL`].
    pub reps: [RepState; 2],
    /// The MAC address of its function.
    pub hw_addr: Option<MacAddr>,
    /// Whether its function has RDMA, if it is a VF or an SF.
    pub roce: Option<bool>,
    /// For an SF.
    pub sf: Option<SfState>,
}

/// The state of one representor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepState {
    /// No ops of its type are registered.
    Unregistered,
    /// Ops are registered, it is not loaded, and should not be.
    Registered,
    /// It is loaded.
    Loaded,
    /// It should be loaded and is not; it is tried again.
    Failed(RepFailure),
}

impl std::fmt::Display for RepState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unregistered => "unregistered",
            Self::Registered => "registered",
            Self::Loaded => "loaded",
            Self::Failed(_) => "failed",
        })
    }
}

/// An auxiliary device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuxiliaryView {
    /// `mlx5_core.eth-rep.0`.
    pub name: String,
    /// What it is for.
    pub kind: AuxKind,
    /// The SF it is of, if it is not the PF's own.
    pub sf: Option<Vport>,
    /// Whether a driver is bound.
    pub bound: bool,
    /// The error of the last probe, if that failed.
    pub failed: Option<String>,
}

/// A PF that is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PfView {
    /// Its address.
    pub address: PciAddress,
    /// Its place.
    pub index: PfIndex,
    /// The mode of its E-Switch.
    pub mode: Mode,
    /// `encap-mode`: basic rather than none.
    pub encap: bool,
    /// VFs enabled.
    pub num_vfs: u16,
    /// What is known of each.
    pub vfs: Vec<VfView>,
    /// Every devlink port, in the order of vports.
    pub ports: Vec<PortView>,
    /// Its auxiliary devices and those of its SFs.
    pub auxiliary: Vec<AuxiliaryView>,
    /// On a DPU: VFs that the host has enabled.
    pub host_vfs: Option<u64>,
    /// The PFs whose E-Switches this one's is paired with.
    pub paired: Vec<PfIndex>,
    /// Representors that know of another pairing than that.
    pub misinformed: Vec<(PortHandle, RepType)>,
    /// On a DPU: why they are not all there.
    pub host_failure: Option<String>,
    /// How many representors of each type are loaded, ports or not.
    pub loaded: [usize; 2],
    /// Whether something waits to be tried again.
    pub retry: PendingRetry,
    /// What does not hold at rest of what a view does not show.
    pub hidden: Vec<Violation>,
}

/// Whether a PF's queues have something that waits to be tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PendingRetry {
    /// Nothing waits.
    #[default]
    None,
    /// The next attempt is due in so many milliseconds.
    In(u64),
    /// Something waits, and the time left is unknown: an explorer has no time.
    Unknown,
}

impl PendingRetry {
    /// Of what a queue says: the time left, if there is time, of a pending retry, if there is one.
    fn of(retry: Option<Option<Duration>>) -> Self {
        match retry {
            None => Self::None,
            Some(None) => Self::Unknown,
            Some(Some(left)) => Self::In(left.as_millis() as u64),
        }
    }

    /// Whether something waits.
    pub fn is_pending(self) -> bool {
        self != Self::None
    }
}

/// All there is, at one moment for each PF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The PFs that are bound.
    pub pfs: Vec<PfView>,
    /// The modules that are loaded.
    pub modules: Vec<&'static str>,
    /// The LAG.
    pub lag: LagView,
    /// What the card holds.
    pub resources: Vec<Resource>,
    /// Netdevs that have another name than they were made with.
    pub renamed: Vec<(Resource, String)>,
}

impl AuxiliaryView {
    fn of<C: Class, P: LockBefore<C>>(cx: &mut Locked<'_, P>, device: &AuxiliaryDevice<C>) -> Self {
        let (bound, failed) = device.status(cx);
        Self {
            name: device.name(),
            kind: device.kind(),
            sf: match device.function() {
                Function::Pf(_) => None,
                Function::Sf(sf) => Some(sf.vport()),
            },
            bound,
            failed: failed.map(|error| error.to_string()),
        }
    }
}

/// A vport, if it is a VF's.
fn vf_view((vport, known): (&Vport, &VportInfo)) -> Option<VfView> {
    let Vport::Vf(number) = *vport else { return None };
    Some(VfView { number, mac: known.mac, roce: known.roce, info: known.vf.clone()? })
}

impl Engine {
    /// Looks at everything.
    pub fn inspect(&self, cx: &mut Locked<'_, Unlocked>) -> Snapshot {
        let mut pfs = Vec::new();
        for address in self.addresses() {
            // One that is unbound while we look is not there.
            if let Ok(view) = self.inspect_pf(cx, address) {
                pfs.push(view);
            }
        }
        let modules = self.modules(cx);
        self.inspect_with(cx, pfs, modules)
    }

    /// The modules that are loaded.
    pub fn modules(&self, cx: &mut Locked<'_, Unlocked>) -> Vec<&'static str> {
        self.shared.modules.list(cx)
    }

    /// The same, unless one of them is being loaded or unloaded: for those who can do with what they saw before.
    pub fn modules_if_free(&self, cx: &mut Locked<'_, Unlocked>) -> Option<Vec<&'static str>> {
        self.shared.modules.list_if_free(cx)
    }

    /// Everything, with PFs and modules that have been looked at already. It waits for no command.
    pub fn inspect_with(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        pfs: Vec<PfView>,
        modules: Vec<&'static str>,
    ) -> Snapshot {
        let mut resources = self.shared.card.resources(&mut cx.narrow());
        resources.sort();
        let renamed = self.shared.card.renamed(&mut cx.narrow());
        Snapshot { pfs, modules, lag: self.lag(cx), resources, renamed }
    }

    /// Looks at one PF.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn inspect_pf(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<PfView> {
        self.look_devlink(cx, address, |pf, state, cx| Ok(self.look(pf, state, cx)))
    }

    /// Looks at one PF, unless a command has it: for those who can do with what they saw before. `None`: one has.
    pub fn inspect_pf_if_free(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Option<Result<PfView>> {
        let pf = match self.device(address).map(|(device, _)| device.bound(cx)) {
            Ok(Slot::Bound(pf)) => pf,
            Ok(Slot::Reloading) => return None,
            Ok(Slot::Unbound) | Err(_) => return Some(Err(Error::NoDevice(address))),
        };
        // One that is not registered is coming or going.
        pf.devlink.with_if_free(cx, |state, cx| state.registered.then(|| self.look(&pf, state, cx)))?.map(Ok)
    }

    fn look(&self, pf: &Arc<Pf>, state: &DevlinkState, cx: &mut Locked<'_, Devlink>) -> PfView {
        let mode = pf.eswitch.mode.under_devlink(state, cx);
        let paired = self.shared.devcom.read(cx).0.paired(pf.index());
        let (rows, misinformed): (Vec<(Vport, [RepState; 2])>, _) = pf.eswitch.with_representors(cx, |table, cx| {
            let registered = pf.eswitch.registered(cx);
            let state = |vport: Vport, ty: RepType| match table.failures().get(&(vport, ty)) {
                _ if table.is_loaded(vport, ty) => RepState::Loaded,
                Some(failure) => RepState::Failed(failure.clone()),
                None if registered[ty.index()] => RepState::Registered,
                None => RepState::Unregistered,
            };
            let rows = table.vports().into_iter().map(|v| (v, RepType::ALL.map(|ty| state(v, ty)))).collect();
            let misinformed = table.misinformed(&pf.eswitch.ops(cx), paired.iter().copied().collect());
            (rows, misinformed.into_iter().map(|(v, ty)| (pf.port_handle(v), ty)).collect())
        });
        let count = |ty: RepType| rows.iter().filter(|(_, reps)| reps[ty.index()] == RepState::Loaded).count();
        let loaded = RepType::ALL.map(count);
        // What is unregistered meanwhile has none any more.
        let with_ib = |(vport, reps): &(Vport, [RepState; 2])| (reps[1] == RepState::Loaded).then_some(*vport);
        let with_ib: Vec<Vport> = rows.iter().filter_map(with_ib).collect();
        let ib_devices = match with_ib[..] {
            [] => Vec::new(),
            _ => pf.eswitch.protocol_devices(cx, &with_ib, RepType::Ib),
        };
        let mut ib_devices: BTreeMap<_, _> = with_ib.into_iter().zip(ib_devices).collect();
        let mut ports = Vec::new();
        for (vport, reps) in rows {
            if mode == Mode::Legacy && vport != Vport::Uplink {
                continue;
            }
            let sf = state.sfs.get(vport).map(|sf| sf.state(cx));
            let eth = match vport {
                Vport::Uplink => Resource::PfNetdev(pf.index()),
                _ => Resource::Representor(pf.index(), vport, RepType::Eth),
            };
            ports.push(PortView {
                handle: pf.port_handle(vport),
                vport,
                flavour: match vport {
                    Vport::Uplink => "physical",
                    Vport::HostPf => "pcipf",
                    Vport::Vf(_) => "pcivf",
                    Vport::Sf(_) => "pcisf",
                },
                netdev: self.shared.card.name(&mut cx.narrow(), &eth),
                ibdev: ib_devices.remove(&vport).flatten(),
                reps,
                hw_addr: match sf {
                    Some(sf) => Some(sf.mac),
                    None => state.vports.get(&vport).map(|info| info.mac),
                },
                roce: match sf {
                    Some(sf) => Some(sf.roce),
                    None => state.vports.get(&vport).filter(|info| info.vf.is_some()).map(|info| info.roce),
                },
                sf,
            });
        }
        let mut auxiliary = Vec::new();
        for device in self.shared.bus.pf_devices(cx) {
            if Arc::ptr_eq(device.function().pf(), pf) {
                auxiliary.push(AuxiliaryView::of(cx, &device));
            }
        }
        for device in self.shared.bus.sf_devices(cx) {
            if Arc::ptr_eq(device.function().pf(), pf) {
                auxiliary.push(AuxiliaryView::of(cx, &device));
            }
        }
        let retries = [pf.eswitch.work.inner().pending_retry(cx), pf.sf_queue.inner().pending_retry(cx)];
        // The sooner of the two.
        let retry = retries.into_iter().flatten().min();
        let hidden = pf.check_hidden(cx, state, &paired);
        PfView {
            hidden,
            address: pf.address(),
            index: pf.index(),
            mode,
            encap: state.encap,
            num_vfs: state.num_vfs,
            vfs: state.vports.iter().filter_map(vf_view).collect(),
            ports,
            auxiliary,
            paired,
            misinformed,
            host_failure: state.host_failure.clone(),
            loaded,
            host_vfs: self.shared.config.dpu.then(|| pf.host_vfs.load()),
            retry: PendingRetry::of(retry),
        }
    }
}
