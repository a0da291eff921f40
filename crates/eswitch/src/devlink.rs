//! The devlink instance of a PF: its lock, and the state that the lock protects.
//!
//! Everything that reconfigures a PF runs under this lock. A handler of the E-Switch's work queue must not block on it,
//! because teardown holds the lock while it drains the queue. A handler uses [`Devlink::with_unless`], which waits
//! until the lock is free or the handler's work is not needed any more.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use lockdep::{EventCount, HistoryMark, LeafOnly, LockBefore, Locked, Mutex, digest};
use serde::{Deserialize, Serialize};

use crate::event::Changes;
use crate::ids::{MacAddr, Vport};
use crate::lock_order::{Devlink as DevlinkClass, DevlinkMoved, WorkQueue};
use crate::rate::Rates;
use crate::sf::SfTable;
use crate::vf::VfInfo;

/// The lock of one devlink instance, and the state that it protects.
///
/// A caller that takes the lock to change the state counts a change when the lock is released. A caller that takes it
/// to [read](Self::look) the state counts none, and cannot change the state.
#[derive(Debug)]
pub struct Devlink {
    state: Mutex<DevlinkClass, DevlinkState>,
    moved: EventCount<DevlinkMoved>,
    changes: Changes,
}

/// `inline-mode`: how much of a packet's header the driver must copy into the send descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum InlineMode {
    #[default]
    None,
    Link,
    Network,
    Transport,
}

/// The state of a devlink instance, without its E-Switch.
#[derive(Debug, Hash)]
pub struct DevlinkState {
    /// Whether commands may use the instance: from the end of probe to the start of removal.
    pub registered: bool,
    /// Whether subscribers know the instance: from the events that announce it to those that withdraw it. devlink
    /// likewise sends no notifications of an instance that is not registered (`devl_is_registered` in the kernel's
    /// `net/devlink`).
    pub announced: bool,
    /// The enabled vports. They include the uplink and, on a DPU, the host's PF.
    pub vports: BTreeMap<Vport, VportInfo>,
    /// The number of VFs that are enabled.
    pub num_vfs: u16,
    /// `sriov_drivers_autoprobe`: whether VFs are bound when they are enabled.
    pub autoprobe: bool,
    /// The settings that VFs get when they are enabled next. Empty except during a reload and during a restart in an
    /// agreed state.
    pub kept: BTreeMap<Vport, VportInfo>,
    /// On a DPU: the reason for which not all VFs that the host has enabled exist.
    pub host_failure: Option<String>,
    /// SFs, by their place.
    pub sfs: SfTable,
    /// Whether the card encapsulates tunnels: `encap-mode basic`.
    pub encap: bool,
    /// Transmit rates.
    pub rates: Rates,
    /// The parameters.
    pub params: Params,
}

/// Parameters of a devlink instance. Those that concern steering and sizes of queues are only stored and shown, because
/// the kernel does the steering and has the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct Params {
    /// `esw_port_metadata`.
    pub port_metadata: bool,
    /// `flow_steering_mode`.
    pub steering: SteeringMode,
    /// The driverinit parameters as they were last set. The default is for states that older versions wrote.
    #[serde(default)]
    pub init: InitParams,
    /// The driverinit parameters with which the PF was bound or reloaded last: those that have an effect.
    #[serde(default)]
    pub in_effect: InitParams,
}

impl Params {
    /// The parameters after a reload, which takes the driverinit values that were set
    /// (`devlink_params_driverinit_load_new` in `net/devlink/param.c`).
    pub(crate) fn reloaded(self) -> Self {
        Self { in_effect: self.init, ..self }
    }
}

/// The parameters of cmode driverinit: set at any time, and taken at the next reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
#[serde(default)]
pub struct InitParams {
    /// `enable_roce`.
    pub roce: bool,
    /// `enable_rdma`.
    pub rdma: bool,
    /// `enable_sfs_aux_devs`: whether the driver of an SF makes its parts at once, rather than when the SF's instance is
    /// reloaded.
    pub sfs_aux_devs: bool,
    /// `io_eq_size`, in entries.
    pub io_eq_size: u32,
    /// `event_eq_size`, in entries.
    pub event_eq_size: u32,
    /// `max_macs`: unicast addresses of a netdev that the card filters.
    pub max_macs: u32,
    /// `fdb_large_groups`.
    pub fdb_large_groups: u32,
    /// `hairpin_num_queues`.
    pub hairpin_num_queues: u32,
    /// `hairpin_queue_size`, in packets.
    pub hairpin_queue_size: u32,
}

/// What the driver of a VF or SF makes when it is bound: its parameters `enable_eth` and `enable_rdma`, as they were when its
/// instance was reloaded last. Unbinding the driver otherwise makes both true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Parts {
    /// A netdev.
    pub eth: bool,
    /// An RDMA device, if the function has RDMA.
    pub rdma: bool,
}

impl Default for Parts {
    fn default() -> Self {
        Self { eth: true, rdma: true }
    }
}

impl InitParams {
    /// Whether the PF has an auxiliary device for RDMA.
    pub fn has_rdma(&self) -> bool {
        self.roce && self.rdma
    }

    /// What the driver of an SF makes when it is bound for the first time, or by hand.
    pub(crate) fn sf_parts(&self) -> Parts {
        Parts { eth: self.sfs_aux_devs, rdma: self.sfs_aux_devs }
    }
}

impl Default for InitParams {
    /// mlx5's values: MLX5_COMP_EQ_SIZE, MLX5_NUM_ASYNC_EQE and ESW_OFFLOADS_DEFAULT_NUM_GROUPS; two hairpin queues, one
    /// for each 50 Gbit/s of a link of 100 Gbit/s (`mlx5_devlink_hairpin_params_init_values`).
    fn default() -> Self {
        Self {
            roce: true,
            rdma: true,
            sfs_aux_devs: true,
            io_eq_size: 1024,
            event_eq_size: 4096,
            max_macs: 128,
            fdb_large_groups: 15,
            hairpin_num_queues: 2,
            hairpin_queue_size: 1024,
        }
    }
}

/// `flow_steering_mode`: the part of a real card that manages the steering rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub enum SteeringMode {
    /// `dmfs`: the device's firmware.
    Firmware,
    /// `smfs`: software.
    Software,
}

impl SteeringMode {
    /// The name of the mode, as a value of the parameter.
    pub fn name(self) -> &'static str {
        match self {
            Self::Firmware => "dmfs",
            Self::Software => "smfs",
        }
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            port_metadata: true,
            steering: SteeringMode::Software,
            init: InitParams::default(),
            in_effect: InitParams::default(),
        }
    }
}

/// The settings of an enabled vport.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VportInfo {
    /// The administrative MAC address of the vport's function: zero for a VF until someone sets it.
    pub mac: MacAddr,
    /// Whether the function has RDMA.
    pub roce: bool,
    /// The settings of a VF, if the function is one.
    pub vf: Option<VfInfo>,
}

impl DevlinkState {
    /// The settings of each VF, as they are after a reload.
    pub(crate) fn reloaded_vfs(&self) -> BTreeMap<Vport, VportInfo> {
        let vfs = self.vports.iter().filter(|(_, info)| info.vf.is_some());
        vfs.map(|(vport, info)| (*vport, info.clone().reloaded())).collect()
    }
}

impl VportInfo {
    /// The settings of a vport that has just been enabled.
    pub(crate) fn new(mac: MacAddr, vf: Option<VfInfo>) -> Self {
        Self { mac, roce: true, vf }
    }

    /// Whether the function is a VF that is bound to its driver.
    pub(crate) fn is_vf_bound(&self) -> bool {
        self.vf.as_ref().is_some_and(|vf| vf.bound)
    }

    /// Whether the function is a VF whose driver has made a netdev.
    pub(crate) fn has_vf_netdev(&self) -> bool {
        self.vf.as_ref().is_some_and(|vf| vf.bound && vf.parts.eth)
    }
}

/// The hash of the lock's identity, not of the present state.
impl Hash for Devlink {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.state.hash(state);
    }
}

impl Devlink {
    /// Makes an instance that is not registered yet.
    pub(crate) fn new(changes: Changes) -> Self {
        Self {
            state: Mutex::new(DevlinkState {
                registered: false,
                announced: false,
                vports: BTreeMap::new(),
                num_vfs: 0,
                autoprobe: true,
                kept: BTreeMap::new(),
                host_failure: None,
                sfs: SfTable::default(),
                encap: true,
                rates: Rates::default(),
                params: Params::default(),
            })
            .with_try_lock()
            .with_state_digest(digest),
            moved: EventCount::new(),
            changes,
        }
    }

    /// Runs `f` with the lock held, and counts a change after the lock has been released.
    #[track_caller]
    pub fn with<P, R>(
        &self,
        cx: &mut Locked<'_, P>,
        f: impl FnOnce(&mut DevlinkState, &mut Locked<'_, DevlinkClass>) -> R,
    ) -> R
    where
        P: LockBefore<DevlinkClass>,
    {
        let _change = self.changes.begin();
        let result = {
            let (mut state, mut cx) = self.state.lock(cx);
            f(&mut state, &mut cx)
        };
        self.moved.advance(cx);
        result
    }

    /// Runs `f`, which reads, with the lock held. Counts no change, so `f` must change nothing that a view can show.
    #[track_caller]
    pub fn look<P, R>(
        &self,
        cx: &mut Locked<'_, P>,
        f: impl FnOnce(&DevlinkState, &mut Locked<'_, DevlinkClass>) -> R,
    ) -> R
    where
        P: LockBefore<DevlinkClass>,
    {
        let result = {
            let (state, mut cx) = self.state.lock(cx);
            f(&state, &mut cx)
        };
        self.moved.advance(cx);
        result
    }

    /// Runs `f`, which reads, with the lock held, if the lock is free. Returns `None` if another thread holds the lock.
    ///
    /// It is for readers that can use an older result instead. Like [`look`](Self::look) it counts no change.
    pub fn with_if_free<P, R>(
        &self,
        cx: &mut Locked<'_, P>,
        f: impl FnOnce(&DevlinkState, &mut Locked<'_, DevlinkClass>) -> R,
    ) -> Option<R> {
        let result = {
            let (state, mut cx) = self.state.try_lock(cx)?;
            f(&state, &mut cx)
        };
        // A handler that has tried the lock meanwhile waits for this.
        self.moved.advance(cx);
        Some(result)
    }

    /// Waits until the lock is free and runs `f` with the lock held, unless `give_up` returns true first; then it
    /// returns `None`.
    ///
    /// `give_up` is called before each try of the lock, and once more after the lock has been taken. A try follows each
    /// release of the lock and each call of [`stir`](Self::stir), so nothing is polled.
    ///
    /// It is for the handlers of the work queue. As the lock is only tried, the wait adds nothing to the lock order.
    /// mlx5's handler tries the lock too, and sleeps between tries.
    pub fn with_unless<R>(
        &self,
        cx: &mut Locked<'_, WorkQueue>,
        give_up: impl Fn(&mut Locked<'_, LeafOnly>) -> bool,
        f: impl FnOnce(&mut DevlinkState, &mut Locked<'_, DevlinkClass>) -> R,
    ) -> Option<R> {
        let mut f = Some(f);
        let since = HistoryMark::now();
        loop {
            since.erase_except(&());
            let seen = self.moved.seen(cx);
            if give_up(&mut cx.leaf_only()) {
                return None;
            }
            let had = match self.state.try_lock(cx) {
                Some((mut state, mut cx)) => {
                    let _change = self.changes.begin();
                    let f = if give_up(&mut cx.leaf_only()) { None } else { f.take() };
                    Some(f.map(|f| f(&mut state, &mut cx)))
                }
                None => None,
            };
            if let Some(result) = had {
                self.moved.advance(cx);
                return result;
            }
            self.moved.wait_past(cx, seen);
        }
    }

    /// Wakes handlers that wait in [`with_unless`](Self::with_unless), because the result of their `give_up` may have
    /// changed.
    pub fn stir<L>(&self, cx: &mut Locked<'_, L>) {
        self.moved.advance(cx);
    }
}
