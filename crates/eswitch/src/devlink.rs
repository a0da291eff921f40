//! The devlink instance of a PF: its lock, and what that protects.
//!
//! Everything that reconfigures a PF runs under this lock. A handler of the E-Switch's work queue must
//! not block on it, because teardown drains the queue with it held; [`Devlink::with_unless`] is how a
//! handler waits for "devlink free, or no longer worth waiting".

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

/// The lock of one devlink instance.
///
/// Whoever takes it to change something is counted as a change when the lock is let go of; whoever takes it to
/// [look](Self::look) is not, and cannot change what it protects.
#[derive(Debug)]
pub struct Devlink {
    state: Mutex<DevlinkClass, DevlinkState>,
    moved: EventCount<DevlinkMoved>,
    changes: Changes,
}

/// How much of a packet's header the sender must put into its descriptor, `inline-mode`.
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

/// What a devlink instance is, beside its E-Switch.
#[derive(Debug, Hash)]
pub struct DevlinkState {
    /// Whether commands may use it: from the end of probe to the start of removal.
    pub registered: bool,
    /// Enabled vports, the uplink and, on a DPU, the host's PF among them.
    pub vports: BTreeMap<Vport, VportInfo>,
    /// VFs enabled.
    pub num_vfs: u16,
    /// Whether VFs are bound when they are enabled.
    pub autoprobe: bool,
    /// VFs that are to be as they were when they are enabled again: those of a reload.
    pub kept: BTreeMap<Vport, VportInfo>,
    /// On a DPU: why the VFs the host has enabled are not all there.
    pub host_failure: Option<String>,
    /// SFs, by place.
    pub sfs: SfTable,
    /// Whether tunnels are encapsulated by the card: `encap-mode basic`.
    pub encap: bool,
    /// Transmit rates.
    pub rates: Rates,
    /// Parameters that are kept and shown.
    pub params: Params,
}

/// Parameters of a devlink instance that this card keeps and shows, and that decide nothing: its steering is
/// the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct Params {
    /// `esw_port_metadata`.
    pub port_metadata: bool,
    /// `flow_steering_mode`.
    pub steering: SteeringMode,
}

/// Who steers: `flow_steering_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub enum SteeringMode {
    /// `dmfs`: the device's firmware.
    Firmware,
    /// `smfs`: software.
    Software,
}

impl SteeringMode {
    /// Its name as a parameter's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Firmware => "dmfs",
            Self::Software => "smfs",
        }
    }
}

impl Default for Params {
    fn default() -> Self {
        Self { port_metadata: true, steering: SteeringMode::Software }
    }
}

/// What is known of an enabled vport.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VportInfo {
    /// The MAC address of its function.
    pub mac: MacAddr,
    /// Whether its function has RDMA.
    pub roce: bool,
    /// Its function, if that is a VF.
    pub vf: Option<VfInfo>,
}

impl DevlinkState {
    /// What is known of each VF.
    pub(crate) fn vfs(&self) -> BTreeMap<Vport, VportInfo> {
        let vfs = self.vports.iter().filter(|(_, info)| info.vf.is_some());
        vfs.map(|(vport, info)| (*vport, info.clone())).collect()
    }
}

impl VportInfo {
    /// A vport that has just been enabled.
    pub(crate) fn new(mac: MacAddr, vf: Option<VfInfo>) -> Self {
        Self { mac, roce: true, vf }
    }

    /// Whether its function is a VF that is bound to its driver.
    pub(crate) fn is_vf_bound(&self) -> bool {
        self.vf.as_ref().is_some_and(|vf| vf.bound)
    }
}

/// Which it is, not what it is now.
impl Hash for Devlink {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.state.hash(state);
    }
}

impl Devlink {
    /// The lock of an instance that is not registered yet.
    pub(crate) fn new(changes: Changes) -> Self {
        Self {
            state: Mutex::new(DevlinkState {
                registered: false,
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

    /// Takes the lock, runs `f`, lets go; then what `f` has changed has been counted.
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

    /// Takes the lock, has `f` look, lets go. Nothing is counted: `f` must change nothing that can be looked at.
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

    /// Takes the lock if it is free, runs `f`, lets go. `None`: somebody has it.
    ///
    /// It is for those who look, and can do with what they saw before. Nothing is counted, as by [`look`](Self::look).
    pub fn with_if_free<P, R>(
        &self,
        cx: &mut Locked<'_, P>,
        f: impl FnOnce(&DevlinkState, &mut Locked<'_, DevlinkClass>) -> R,
    ) -> Option<R> {
        let result = {
            let (state, mut cx) = self.state.try_lock(cx)?;
            f(&state, &mut cx)
        };
        // Who tried it meanwhile waits for this.
        self.moved.advance(cx);
        Some(result)
    }

    /// Takes the lock when it is free, unless `give_up` says that there is no point any more: it is
    /// asked before each try, whenever the lock has been let go of or [`stir`](Self::stir) was called,
    /// and once more when the lock is had. `None`: it gave up.
    ///
    /// Nothing is polled, and as the lock is only tried, nothing is ordered.
    /// It is for the handlers of the work queue.
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

    /// What handlers look at before they wait has changed.
    pub fn stir<L>(&self, cx: &mut Locked<'_, L>) {
        self.moved.advance(cx);
    }
}
