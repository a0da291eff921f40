//! The devcom component, which connects the PFs of one card (mlx5's `devcom`).
//!
//! Every rescan of auxiliary devices holds the component's lock for writing, and so does adding or removing a PF.
//! Everything that a rescan reads and changes is protected by this lock, so a rescan of a PF is possible without the
//! PF's devlink lock.

use std::collections::BTreeSet;
use std::sync::Arc;

use lockdep::{Locked, RwLock};

use crate::auxiliary::{AuxKind, AuxiliaryDevice};
use crate::device::Pf;
use crate::error::Result;
use crate::event::Event;
use crate::ids::{Mode, PfIndex};
use crate::lag;
use crate::lock_order::{Auxiliary, Devcom as DevcomClass};
use crate::shared::Shared;

/// The component and its lock.
pub type Devcom = RwLock<DevcomClass, Component>;

/// The PFs of a card that are bound or being bound, with the state that rescans use.
#[derive(Default, Hash)]
pub struct Component {
    members: Vec<Member>,
}

/// One PF of the component, with the state that the component lock protects.
#[derive(Hash)]
pub struct Member {
    pf: Arc<Pf>,
    /// The mode for which the PF has auxiliary devices. During a mode change it is stored here, under the component
    /// lock, when no RDMA device exists.
    mode: Mode,
    /// Whether the PF's RDMA devices are marked as disabled. A rescan then removes them.
    ib_disabled: bool,
    /// Whether the parameters with which the PF was bound let it have RDMA devices.
    rdma: bool,
    devices: Vec<Arc<AuxiliaryDevice<Auxiliary>>>,
    /// Whether the PF is being unbound. Then disabling a LAG does not give it an RDMA device of its own again.
    leaving: bool,
    num_vfs: u16,
    /// Whether the PF's E-Switch can be paired: it is in switchdev mode and its representors are loaded.
    pairable: bool,
    /// The PFs with whose E-Switches this PF's is paired.
    paired: BTreeSet<PfIndex>,
}

/// The order in which auxiliary devices are added. They are removed in the reverse order.
const ORDER: [AuxKind; 4] = [AuxKind::Eth, AuxKind::EthRep, AuxKind::Rdma, AuxKind::RdmaRep];

impl Member {
    /// Whether the PF should have an auxiliary device of this kind.
    fn wants(&self, kind: AuxKind) -> bool {
        let switchdev = self.mode.is_switchdev();
        match kind {
            AuxKind::Eth => true,
            AuxKind::EthRep => switchdev,
            AuxKind::Rdma => self.rdma && !switchdev && !self.ib_disabled,
            AuxKind::RdmaRep => self.rdma && switchdev && !self.ib_disabled,
        }
    }
}

impl Component {
    /// Adds a PF. Its auxiliary devices are added by the first rescan. `rdma`: whether it may have RDMA devices.
    pub(crate) fn join(&mut self, pf: &Arc<Pf>, rdma: bool) {
        self.members.push(Member {
            pf: Arc::clone(pf),
            mode: Mode::Legacy,
            ib_disabled: false,
            rdma,
            devices: Vec::new(),
            leaving: false,
            num_vfs: 0,
            pairable: false,
            paired: BTreeSet::new(),
        });
        self.members.sort_by_key(|m| m.pf.index());
    }

    /// Removes a PF and its auxiliary devices. Their drivers are removed on this thread.
    pub(crate) fn leave(&mut self, cx: &mut Locked<'_, DevcomClass>, shared: &Shared, pf: PfIndex) {
        if let Some(at) = self.members.iter().position(|m| m.pf.index() == pf) {
            let member = self.members.remove(at);
            for device in member.devices.iter().rev() {
                shared.bus.remove_pf(cx, device);
            }
        }
    }

    /// Makes a PF's auxiliary devices those of its flags and mode: first removes devices, then adds devices. Drivers
    /// are removed and probed on this thread. A device without a driver is bound if its driver is loaded.
    ///
    /// # Errors
    /// The error of the first probe that failed. The other devices have been handled all the same, and the device whose
    /// probe failed stays without a driver.
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

    /// Changes the auxiliary devices of a PF to those of another mode: removes the RDMA device, stores the mode, and
    /// adds the devices of the new mode. On a multiport RoCE card, or if RDMA is disabled already, one rescan does it
    /// all.
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
        // This adds no device. An error can only be that of a device whose probe has failed before.
        let _ = self.rescan(cx, shared, pf);
        if let Some(member) = self.member(pf) {
            member.mode = mode;
            member.ib_disabled = false;
        }
        self.rescan(cx, shared, pf)
    }

    /// Marks a PF's RDMA devices as disabled, or as enabled, and rescans the PF.
    ///
    /// # Errors
    /// A probe failed; see [`rescan`](Self::rescan).
    pub(crate) fn set_ib_disabled(
        &mut self,
        cx: &mut Locked<'_, DevcomClass>,
        shared: &Shared,
        pf: PfIndex,
        disabled: bool,
    ) -> Result<()> {
        if let Some(member) = self.member(pf) {
            member.ib_disabled = disabled;
        }
        self.rescan(cx, shared, pf)
    }

    /// Does the same for several PFs. If a probe fails, it is retried later.
    pub(crate) fn disable_ib(
        &mut self,
        cx: &mut Locked<'_, DevcomClass>,
        shared: &Shared,
        pfs: &[Arc<Pf>],
        disabled: bool,
    ) {
        for pf in pfs {
            if self.set_ib_disabled(cx, shared, pf.index(), disabled).is_err() {
                pf.want_reconcile(cx);
            }
        }
    }

    /// Marks a PF as leaving. A LAG cannot include it any more, and disabling a LAG does not give it an RDMA device of
    /// its own again.
    pub(crate) fn set_leaving(&mut self, pf: PfIndex) {
        if let Some(member) = self.member(pf) {
            member.leaving = true;
        }
    }

    /// Stores a PF's number of VFs, for the evaluation of the LAG. The VFs of a DPU's host do not count: they are not
    /// VFs of the PF that makes the LAG (`mlx5_sriov_is_enabled`).
    pub(crate) fn set_num_vfs(&mut self, pf: PfIndex, n: u16) {
        if let Some(member) = self.member(pf) {
            member.num_vfs = n;
        }
    }

    /// The PFs that are not leaving, the master first.
    pub(crate) fn pfs(&self) -> Vec<Arc<Pf>> {
        self.members.iter().filter(|m| !m.leaving).map(|m| Arc::clone(&m.pf)).collect()
    }

    /// The PFs with whose E-Switches a PF's is paired.
    pub(crate) fn paired(&self, pf: PfIndex) -> Vec<PfIndex> {
        let member = self.members.iter().find(|m| m.pf.index() == pf);
        member.map(|m| m.paired.iter().copied().collect()).unwrap_or_default()
    }

    /// For each PF that is not leaving, whether its RDMA devices are marked as disabled.
    pub(crate) fn ib_disabled(&self) -> impl Iterator<Item = (PfIndex, bool)> {
        self.members.iter().filter(|m| !m.leaving).map(|m| (m.pf.index(), m.ib_disabled))
    }

    /// The state of each PF that is not leaving, for the evaluation of the LAG.
    pub(crate) fn lag_members(&self) -> Vec<lag::MemberState> {
        self.members
            .iter()
            .filter(|m| !m.leaving)
            .map(|m| lag::MemberState {
                pf: m.pf.index(),
                mode: m.mode,
                num_vfs: m.num_vfs,
                paired: m.paired.len() + 1 == self.members.len(),
            })
            .collect()
    }

    /// Pairs a PF's E-Switch, which is in switchdev mode and whose representors are loaded, with every other E-Switch
    /// of which that holds. The loaded representors of both are notified, those of one E-Switch at a time.
    ///
    /// # Errors
    /// The first error of a representor. The two E-Switches are not paired then; others may be.
    pub(crate) fn pair(&mut self, cx: &mut Locked<'_, DevcomClass>, shared: &Shared, pf: PfIndex) -> Result<()> {
        let mut result = Ok(());
        if let Some(member) = self.member(pf) {
            member.pairable = true;
        }
        let Some(own) = self.member(pf).map(|m| Arc::clone(&m.pf)) else { return Ok(()) };
        let others: Vec<_> = self
            .members
            .iter()
            .filter(|m| m.pf.index() != pf && m.pairable && !m.paired.contains(&pf))
            .map(|m| Arc::clone(&m.pf))
            .collect();
        for other in others {
            let notified = own.tell_representors(cx, other.index(), true).and_then(|()| {
                let notified = other.tell_representors(cx, pf, true);
                if notified.is_err() {
                    let _ = own.tell_representors(cx, other.index(), false);
                }
                notified
            });
            match notified {
                Ok(()) => {
                    self.note_pair(pf, other.index(), true);
                    shared.events.emit(cx, || Event::Paired(pf, other.index(), true));
                    // A LAG with a shared forwarding database needs every pair.
                    shared.lag.members_changed(cx);
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Unpairs a PF's E-Switch from every other.
    pub(crate) fn unpair(&mut self, cx: &mut Locked<'_, DevcomClass>, shared: &Shared, pf: PfIndex) {
        let Some(member) = self.member(pf) else { return };
        member.pairable = false;
        let own = Arc::clone(&member.pf);
        let paired = member.paired.clone();
        for other in paired {
            self.note_pair(pf, other, false);
            // Removing rules cannot fail.
            let _ = own.tell_representors(cx, other, false);
            if let Some(other) = self.member(other).map(|m| Arc::clone(&m.pf)) {
                let _ = other.tell_representors(cx, pf, false);
            }
            shared.events.emit(cx, || Event::Paired(pf, other, false));
        }
    }

    fn note_pair(&mut self, a: PfIndex, b: PfIndex, paired: bool) {
        for (one, other) in [(a, b), (b, a)] {
            if let Some(member) = self.member(one) {
                if paired {
                    member.paired.insert(other);
                } else {
                    member.paired.remove(&other);
                }
            }
        }
    }

    fn member(&mut self, pf: PfIndex) -> Option<&mut Member> {
        self.members.iter_mut().find(|m| m.pf.index() == pf)
    }
}
