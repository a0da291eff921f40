//! What ties the PFs of one card together: the devcom component.
//!
//! Its lock is held for writing by every rescan and by adding or removing a PF. What a rescan looks at
//! and changes is inside it, so that a rescan can be done for a PF whose devlink lock is not held.

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

/// The component lock and what it protects.
pub type Devcom = RwLock<DevcomClass, Component>;

/// The PFs of a card, as far as rescans see them.
#[derive(Default, Hash)]
pub struct Component {
    members: Vec<Member>,
}

/// One PF.
#[derive(Hash)]
pub struct Member {
    pf: Arc<Pf>,
    /// The mode its auxiliary devices are to be those of. It is stored here, under the component lock,
    /// at the moment of a mode change at which no RDMA device exists.
    mode: Mode,
    /// RDMA devices are marked disabled: a rescan removes them.
    ib_disabled: bool,
    devices: Vec<Arc<AuxiliaryDevice<Auxiliary>>>,
    /// It is leaving: a LAG that is broken up now gives it nothing back.
    leaving: bool,
    num_vfs: u16,
    /// Its E-Switch is in switchdev mode and loaded, and so can be paired.
    pairable: bool,
    paired: BTreeSet<PfIndex>,
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
        self.members.push(Member {
            pf: Arc::clone(pf),
            mode: Mode::Legacy,
            ib_disabled: false,
            devices: Vec::new(),
            leaving: false,
            num_vfs: 0,
            pairable: false,
            paired: BTreeSet::new(),
        });
        self.members.sort_by_key(|m| m.pf.index());
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

    /// Marks a PF's RDMA devices disabled, or not, and rescans it.
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

    /// The same for several. What fails to be probed is tried again.
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

    /// A PF is leaving: it is no member any more that a LAG could be made of, or that gets anything back
    /// from one that is broken up.
    pub(crate) fn set_leaving(&mut self, pf: PfIndex) {
        if let Some(member) = self.member(pf) {
            member.leaving = true;
        }
    }

    /// The number of a PF's VFs, for LAG to look at.
    pub(crate) fn set_num_vfs(&mut self, pf: PfIndex, n: u16) {
        if let Some(member) = self.member(pf) {
            member.num_vfs = n;
        }
    }

    /// The PFs that are members and not leaving, the master first.
    pub(crate) fn pfs(&self) -> Vec<Arc<Pf>> {
        self.members.iter().filter(|m| !m.leaving).map(|m| Arc::clone(&m.pf)).collect()
    }

    /// The PFs whose E-Switches a PF's is paired with.
    pub(crate) fn paired(&self, pf: PfIndex) -> Vec<PfIndex> {
        let member = self.members.iter().find(|m| m.pf.index() == pf);
        member.map(|m| m.paired.iter().copied().collect()).unwrap_or_default()
    }

    /// Whether the RDMA device of each PF that is not leaving is marked disabled.
    pub(crate) fn ib_disabled(&self) -> impl Iterator<Item = (PfIndex, bool)> {
        self.members.iter().filter(|m| !m.leaving).map(|m| (m.pf.index(), m.ib_disabled))
    }

    /// What LAG looks at of them.
    pub(crate) fn lag_members(&self) -> Vec<lag::Member> {
        self.members
            .iter()
            .filter(|m| !m.leaving)
            .map(|m| lag::Member {
                pf: m.pf.index(),
                mode: m.mode,
                num_vfs: m.num_vfs,
                paired: m.paired.len() + 1 == self.members.len(),
            })
            .collect()
    }

    /// Pairs a PF's E-Switch, which is in switchdev mode and loaded, with every other that is. Loaded
    /// representors of both are told, one E-Switch's at a time.
    ///
    /// # Errors
    /// One of them could not follow: those two are not paired.
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
            let told = own.tell_representors(cx, other.index(), true).and_then(|()| {
                let told = other.tell_representors(cx, pf, true);
                if told.is_err() {
                    let _ = own.tell_representors(cx, other.index(), false);
                }
                told
            });
            match told {
                Ok(()) => {
                    self.note_pair(pf, other.index(), true);
                    shared.events.emit(cx, || Event::Paired(pf, other.index(), true));
                    // It may be what a LAG waits for.
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
            // Taking rules away cannot fail.
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
