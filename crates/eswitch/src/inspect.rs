//! Views: the state of a card at one moment, for users of the crate. The invariants over views are in `at_rest.rs`.

mod at_rest;
mod invariants;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lockdep::{Class, LockBefore, Locked, Unlocked};

use crate::auxiliary::{AuxKind, AuxiliaryDevice, AuxiliaryName, Function};
use crate::card::{MovedInstance, Resource};
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

/// A violation of an invariant: a state in which the engine must never be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The name of the invariant.
    pub invariant: &'static str,
    /// The state that violates it, in words.
    pub detail: String,
}

/// A devlink port with its representors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortView {
    /// The port's handle, for example `pci/0000:08:00.0/1`.
    pub handle: PortHandle,
    /// The vport to which the port belongs.
    pub vport: Vport,
    /// The devlink flavour: `physical`, `pcipf`, `pcivf` or `pcisf`.
    pub flavour: &'static str,
    /// The name of the netdev representor, if it exists. For the uplink it is the name of the PF's netdev.
    pub netdev: Option<String>,
    /// Whether this netdev is in another network namespace than the one in which it was made.
    pub elsewhere: bool,
    /// The name of the RDMA device, or of the port of one, if the IB representor is loaded.
    pub ibdev: Option<String>,
    /// The state of the representor of each type, in the order of [`RepType::ALL`].
    pub reps: [RepState; 2],
    /// The MAC address of the port's function.
    pub hw_addr: Option<MacAddr>,
    /// Whether the port's function has RDMA, if it is a VF or an SF.
    pub roce: Option<bool>,
    /// The state of the SF, if the port belongs to one.
    pub sf: Option<SfState>,
}

/// The state of one representor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepState {
    /// No ops of its type are registered.
    Unregistered,
    /// Ops are registered. The representor is not loaded, and at rest it should not be.
    Registered,
    /// The representor is loaded.
    Loaded,
    /// The representor should be loaded and failed to load. Loading is retried.
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
    /// The device's name on the bus, for example `mlx5_core.eth-rep.0`.
    pub name: AuxiliaryName,
    /// The kind of the device.
    pub kind: AuxKind,
    /// The SF that publishes the device; `None` if the PF does.
    pub sf: Option<Vport>,
    /// Whether a driver is bound.
    pub bound: bool,
    /// The error of the last probe, if that failed.
    pub failed: Option<String>,
}

/// A PF that is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PfView {
    /// The PF's PCI address.
    pub address: PciAddress,
    /// The PF's index on the card.
    pub index: PfIndex,
    /// The mode of the PF's E-Switch.
    pub mode: Mode,
    /// `encap-mode`: true for basic, false for none.
    pub encap: bool,
    /// Whether the parameters with which the PF was bound let it have RDMA devices.
    pub rdma: bool,
    /// The number of VFs that are enabled.
    pub num_vfs: u16,
    /// The VFs that are enabled.
    pub vfs: Vec<VfView>,
    /// Every devlink port, in the order of vports.
    pub ports: Vec<PortView>,
    /// The auxiliary devices of the PF and of its SFs.
    pub auxiliary: Vec<AuxiliaryView>,
    /// On a DPU: the number of VFs that the host has enabled.
    pub host_vfs: Option<u64>,
    /// The PFs with whose E-Switches this PF's is paired.
    pub paired: Vec<PfIndex>,
    /// The loaded representors whose record of the pairing differs from `paired`.
    pub misinformed: Vec<(PortHandle, RepType)>,
    /// On a DPU: the reason for which not all of `host_vfs` exist.
    pub host_failure: Option<String>,
    /// The number of loaded representors of each type, whether or not their vport has a devlink port now.
    pub loaded: [usize; 2],
    /// Whether a retry is pending.
    pub retry: PendingRetry,
    /// The violations of invariants that hold at rest, over state that a view does not show.
    pub hidden_violations: Vec<Violation>,
}

/// Whether a PF's queues have a pending retry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PendingRetry {
    /// No retry is pending.
    #[default]
    None,
    /// The next retry is due in this number of milliseconds.
    In(u64),
    /// A retry is pending, and the remaining time is unknown, because an explored run has no time.
    Unknown,
}

impl PendingRetry {
    /// Converts the result of [`pending_retry`](crate::queue::Queue::pending_retry).
    fn of(retry: Option<Option<Duration>>) -> Self {
        match retry {
            None => Self::None,
            Some(None) => Self::Unknown,
            Some(Some(left)) => Self::In(left.as_millis() as u64),
        }
    }

    /// Whether a retry is pending.
    pub fn is_pending(self) -> bool {
        self != Self::None
    }
}

/// The state of the whole card. The state of each PF is that of one moment, and the moments of two PFs may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The PFs that are bound.
    pub pfs: Vec<PfView>,
    /// The modules that are loaded.
    pub modules: Vec<&'static str>,
    /// The LAG.
    pub lag: LagView,
    /// The resources of the card, in order.
    pub resources: Vec<Resource>,
    /// The netdevs that have been renamed since they were made, and their present names, in order.
    pub renamed: Vec<(Resource, String)>,
    /// The netdevs that are in another network namespace than the one in which they were made, in order.
    pub elsewhere: Vec<Resource>,
    /// The devlink instances that are in another network namespace than the card's netdevs, in order.
    pub moved_instances: Vec<MovedInstance>,
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

/// The view of a vport's function, if that is a VF.
fn vf_view(pf: &Pf, (vport, info): (&Vport, &VportInfo)) -> Option<VfView> {
    let Vport::Vf(number) = *vport else { return None };
    let netdev_mac = info.netdev_mac(pf.mac_of(*vport));
    Some(VfView { number, mac: info.mac, netdev_mac, roce: info.roce, info: info.vf.clone()? })
}

impl Engine {
    /// Reads the state of the whole card. Waits for commands that are running.
    pub fn inspect(&self, cx: &mut Locked<'_, Unlocked>) -> Snapshot {
        let mut pfs = Vec::new();
        for address in self.addresses() {
            // A PF that is unbound meanwhile is left out.
            if let Ok(view) = self.inspect_pf(cx, address) {
                pfs.push(view);
            }
        }
        let modules = self.modules(cx);
        self.inspect_with(cx, pfs, modules)
    }

    /// The names of the modules that are loaded. Waits while one of them is being loaded or unloaded.
    pub fn modules(&self, cx: &mut Locked<'_, Unlocked>) -> Vec<&'static str> {
        self.shared.modules.list(cx)
    }

    /// The names of the modules that are loaded, or `None` if one of them is being loaded or unloaded. For a caller
    /// that can use an older result instead.
    pub fn modules_if_free(&self, cx: &mut Locked<'_, Unlocked>) -> Option<Vec<&'static str>> {
        self.shared.modules.list_if_free(cx)
    }

    /// Completes a snapshot from PFs and modules that the caller has read already. It does not wait for commands.
    pub fn inspect_with(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        pfs: Vec<PfView>,
        modules: Vec<&'static str>,
    ) -> Snapshot {
        let mut resources = self.shared.card.resources(&mut cx.narrow());
        resources.sort();
        let (renamed, elsewhere) = self.renamed_and_elsewhere(cx);
        let moved_instances = self.moved_instances(cx);
        Snapshot { pfs, modules, lag: self.lag(cx), resources, renamed, elsewhere, moved_instances }
    }

    /// The devlink instances that are in another network namespace than the card's netdevs, in order. It does not wait
    /// for commands.
    pub fn moved_instances(&self, cx: &mut Locked<'_, Unlocked>) -> Vec<MovedInstance> {
        let mut moved = self.shared.card.moved_instances(&mut cx.narrow());
        moved.sort();
        moved
    }

    /// The netdevs that other programs have renamed, with their present names, and those that they have moved to other
    /// network namespaces, both in order. It does not wait for commands.
    pub fn renamed_and_elsewhere(&self, cx: &mut Locked<'_, Unlocked>) -> (Vec<(Resource, String)>, Vec<Resource>) {
        let mut renamed = self.shared.card.renamed(&mut cx.narrow());
        let mut elsewhere = self.shared.card.elsewhere(&mut cx.narrow());
        renamed.sort();
        elsewhere.sort();
        (renamed, elsewhere)
    }

    /// Reads the state of one PF. Waits for a command that is running on it.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn inspect_pf(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<PfView> {
        self.query_devlink(cx, address, |pf, state, cx| Ok(self.look(pf, state, cx)))
    }

    /// Reads the state of one PF, or returns `None` if a command is running on it. For a caller that can use an older
    /// result instead.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn inspect_pf_if_free(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Option<Result<PfView>> {
        let pf = match self.device(address).map(|(device, _)| device.bound(cx)) {
            Ok(Slot::Bound(pf)) => pf,
            Ok(Slot::Reloading) => return None,
            Ok(Slot::Unbound) | Err(_) => return Some(Err(Error::NoDevice(address))),
        };
        // A PF whose instance is not registered is being bound or unbound.
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
        // The ops may be unregistered after the table has been read. Then the lookup finds no device.
        let with_ib = |(vport, reps): &(Vport, [RepState; 2])| (reps[1] == RepState::Loaded).then_some(*vport);
        let with_ib: Vec<Vport> = rows.iter().filter_map(with_ib).collect();
        let ib_devices = match with_ib[..] {
            [] => Vec::new(),
            _ => pf.eswitch.protocol_devices(cx, &with_ib, RepType::Ib),
        };
        let mut ib_devices: BTreeMap<_, _> = with_ib.into_iter().zip(ib_devices).collect();
        let elsewhere = self.shared.card.elsewhere(&mut cx.narrow());
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
                elsewhere: elsewhere.contains(&eth),
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
        let hidden_violations = pf.check_hidden(cx, state, &paired);
        PfView {
            hidden_violations,
            address: pf.address(),
            index: pf.index(),
            mode,
            rdma: state.params.in_effect.has_rdma(),
            encap: state.encap,
            num_vfs: state.num_vfs,
            vfs: state.vports.iter().filter_map(|vport| vf_view(pf, vport)).collect(),
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
