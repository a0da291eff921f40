//! What ties the PFs of one card together: the devcom component.
//!
//! Its lock is held for writing by every rescan and by adding or removing a PF. What a rescan looks at
//! and changes is inside it, so that a rescan can be done for a PF whose devlink lock is not held.

use std::sync::Arc;

use lockdep::{Locked, RwLock};

use crate::auxiliary::{AuxKind, AuxiliaryDevice};
use crate::device::Pf;
use crate::engine::Shared;
use crate::error::Result;
use crate::ids::{Mode, PfIndex};
use crate::lock_order::{Auxiliary, Devcom as DevcomClass};

/// The component lock and what it protects.
pub type Devcom = RwLock<DevcomClass, Component>;

/// The PFs of a card, as far as rescans see them.
#[derive(Default)]
pub struct Component {
    members: Vec<Member>,
}

/// One PF.
pub struct Member {
    pf: Arc<Pf>,
    /// The mode its auxiliary devices are to be those of. It is stored here, under the component lock,
    /// at the moment of a mode change at which no RDMA device exists.
    mode: Mode,
    /// RDMA devices are marked disabled: a rescan removes them.
    ib_disabled: bool,
    devices: Vec<Arc<AuxiliaryDevice<Auxiliary>>>,
}

/// The order in which auxiliary devices are added; they are removed in the reverse.
const ORDER: [AuxKind; 4] = [AuxKind::Eth, AuxKind::EthRep, AuxKind::Rdma, AuxKind::RdmaRep];

impl Member {
    /// Whether a device of this kind should be there.
    fn wants(&self, kind: AuxKind) -> bool {
        let switchdev = self.mode == Mode::Switchdev;
        match kind {
            AuxKind::Eth => true,
            AuxKind::EthRep => switchdev,
            AuxKind::Rdma => !switchdev && !self.ib_disabled,
            AuxKind::RdmaRep => switchdev && !self.ib_disabled,
        }
    }
}

impl Component {
    /// A PF joins. Its devices come with the first rescan.
    pub(crate) fn join(&mut self, pf: &Arc<Pf>) {
        self.members.push(Member { pf: Arc::clone(pf), mode: Mode::Legacy, ib_disabled: false, devices: Vec::new() });
    }

    /// A PF leaves: its auxiliary devices are removed, on this thread.
    pub(crate) fn leave(&mut self, cx: &mut Locked<'_, DevcomClass>, shared: &Shared, pf: PfIndex) {
        if let Some(at) = self.members.iter().position(|m| m.pf.index() == pf) {
            let member = self.members.remove(at);
            for device in member.devices.iter().rev() {
                shared.bus.remove_pf(cx, device);
            }
        }
    }

    /// Brings a PF's auxiliary devices in line with its flags and mode: removes, then adds, probing and
    /// removing drivers on this thread. A device without a driver gets one if one is loaded.
    ///
    /// # Errors
    /// The last probe that failed. The others have been done all the same; the device that failed
    /// stays, without a driver.
    pub(crate) fn rescan(&mut self, cx: &mut Locked<'_, DevcomClass>, shared: &Shared, pf: PfIndex) -> Result<()> {
        let Some(member) = self.member(pf) else { return Ok(()) };
        let mut result = Ok(());
        for kind in ORDER.into_iter().rev() {
            if !member.wants(kind)
                && let Some(at) = member.devices.iter().position(|d| d.kind() == kind)
            {
                shared.bus.remove_pf(cx, &member.devices.remove(at));
            }
        }
        for kind in ORDER {
            if !member.wants(kind) {
                continue;
            }
            let probed = if let Some(device) = member.devices.iter().find(|d| d.kind() == kind) {
                shared.bus.attach_pf(cx, &shared.events, device)
            } else {
                let (device, probed) = shared.bus.add_pf(cx, &shared.events, &member.pf, kind);
                member.devices.push(device);
                probed
            };
            result = result.and(probed);
        }
        result
    }

    /// What a mode change does to the auxiliary devices: RDMA devices are removed, the mode is stored,
    /// and the devices of the new mode are added. On a multiport RoCE card one rescan does both.
    ///
    /// # Errors
    /// A probe failed; see [`rescan`](Self::rescan).
    pub(crate) fn rescan_into(
        &mut self,
        cx: &mut Locked<'_, DevcomClass>,
        shared: &Shared,
        pf: PfIndex,
        mode: Mode,
    ) -> Result<()> {
        let Some(member) = self.member(pf) else { return Ok(()) };
        if shared.config.multiport_roce || member.ib_disabled {
            member.mode = mode;
            return self.rescan(cx, shared, pf);
        }
        member.ib_disabled = true;
        // Nothing is probed here that has not been: an error would be an old one.
        let _ = self.rescan(cx, shared, pf);
        if let Some(member) = self.member(pf) {
            member.mode = mode;
            member.ib_disabled = false;
        }
        self.rescan(cx, shared, pf)
    }

    fn member(&mut self, pf: PfIndex) -> Option<&mut Member> {
        self.members.iter_mut().find(|m| m.pf.index() == pf)
    }
}
