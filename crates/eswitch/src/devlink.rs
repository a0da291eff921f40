//! The devlink instance of a PF: its lock, and what that protects.
//!
//! Everything that reconfigures a PF runs under this lock. A handler of the E-Switch's work queue must
//! not block on it, because teardown drains the queue with it held; [`Devlink::with_unless`] is how a
//! handler waits for "devlink free, or no longer worth waiting".

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use lockdep::{EventCount, LeafOnly, LockBefore, Locked, Mutex, Since, digest};
use serde::{Deserialize, Serialize};

use crate::ids::{MacAddr, Vport};
use crate::lock_order::{Devlink as DevlinkClass, DevlinkMoved, WorkQueue};
use crate::sf::SfTable;

/// The lock of one devlink instance.
#[derive(Debug)]
pub struct Devlink {
    state: Mutex<DevlinkClass, DevlinkState>,
    moved: EventCount<DevlinkMoved>,
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
    /// On a DPU: why the VFs the host has enabled are not all there.
    pub host_failure: Option<String>,
    /// SFs, by place.
    pub sfs: SfTable,
    /// Whether tunnels are encapsulated by the card: `encap-mode basic`.
    pub encap: bool,
}

/// What is known of an enabled vport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VportInfo {
    /// The MAC address of its function.
    pub mac: MacAddr,
}

/// Which it is, not what it is now.
impl Hash for Devlink {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.state.hash(state);
    }
}

impl Default for Devlink {
    fn default() -> Self {
        Self {
            state: Mutex::new(DevlinkState {
                registered: false,
                vports: BTreeMap::new(),
                num_vfs: 0,
                host_failure: None,
                sfs: SfTable::default(),
                encap: true,
            })
            .tried()
            .told(digest),
            moved: EventCount::new(),
        }
    }
}

impl Devlink {
    /// Takes the lock, runs `f`, lets go.
    #[track_caller]
    pub fn with<P, R>(
        &self,
        cx: &mut Locked<'_, P>,
        f: impl FnOnce(&mut DevlinkState, &mut Locked<'_, DevlinkClass>) -> R,
    ) -> R
    where
        P: LockBefore<DevlinkClass>,
    {
        let result = {
            let (mut state, mut cx) = self.state.lock(cx);
            f(&mut state, &mut cx)
        };
        self.moved.advance(cx);
        result
    }

    /// Takes the lock when it is free, unless `give_up` says that there is no point any more: it is
    /// asked before each try, whenever the lock has been let go of or [`stir`](Self::stir) was called,
    /// and once more when the lock is had. `None`: it gave up.
    ///
    /// Nothing is polled, and as the lock is only tried, nothing is ordered.
    /// It is for the handlers of the work queue, and the one place in the engine that tries a lock.
    pub fn with_unless<R>(
        &self,
        cx: &mut Locked<'_, WorkQueue>,
        give_up: impl Fn(&mut Locked<'_, LeafOnly>) -> bool,
        f: impl FnOnce(&mut DevlinkState, &mut Locked<'_, DevlinkClass>) -> R,
    ) -> Option<R> {
        let mut f = Some(f);
        let since = Since::now();
        loop {
            since.forget_but(&());
            let seen = self.moved.seen(cx);
            if give_up(&mut cx.leaf_only()) {
                return None;
            }
            let had = match self.state.try_lock(cx) {
                Some((mut state, mut cx)) => {
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
