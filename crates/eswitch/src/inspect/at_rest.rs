//! The invariants that hold when the card is at rest, over a [view](super) of the card.
//!
//! Each invariant has a name, which is the same in reports, in scenarios and in the documentation
//! (`docs/verification.md`).
//!
//! `check_pf` has the statements about what the view of one PF shows, `check_lag` those about all PFs under LAG.
//! `check_published` compares views with events, and `check_hidden` has the statements about state that no view shows.

use std::collections::{BTreeMap, BTreeSet};

use lockdep::{Locked, Unlocked};

use super::{PfView, PortView, RepState, Snapshot, Violation};
use crate::auxiliary::AuxKind;
use crate::card::Resource;
use crate::device::Pf;
use crate::devlink::{DevlinkState, VportInfo};
use crate::engine::Engine;
use crate::event::{Instance, Published};
use crate::ids::{Mode, PfIndex, RepType, Vport};
use crate::lag::{LagMode, LagView};
use crate::lock_order::Devlink;
use crate::module::CORE;

impl Engine {
    /// Checks the invariants that hold at rest, and returns the violations. The caller has called
    /// [`settle`](Self::settle), and no command is running. Errors that the card has noticed since the last check are
    /// violations too.
    pub fn check(&self, cx: &mut Locked<'_, Unlocked>) -> Vec<Violation> {
        let snapshot = self.inspect(cx);
        let mut found: Vec<Violation> = Vec::new();
        for detail in self.shared.card.take_complaints(&mut cx.narrow()) {
            found.push(Violation { invariant: "load-once", detail });
        }
        let mut expected = BTreeSet::new();
        if self.shared.lag.is_held_off(cx) {
            found.push(Violation {
                invariant: "lag-consistent",
                detail: "LAG is held off, and no command is running".to_owned(),
            });
        }
        for pf in &snapshot.pfs {
            found.extend(pf.hidden_violations.iter().cloned());
            self.check_pf(pf, &snapshot.modules, &snapshot.lag, &mut found);
            self.expect_resources(cx, pf, &snapshot.lag, &mut expected);
        }
        check_lag(&snapshot, &mut found);
        if cx.is_checked() {
            self.check_published(&snapshot, &mut found);
        }
        found.extend(self.shared.unevaluated_lag(cx).map(|detail| Violation { invariant: "lag-consistent", detail }));
        let actual: BTreeSet<Resource> = snapshot.resources.iter().copied().collect();
        for leaked in actual.difference(&expected) {
            found.push(Violation { invariant: "no-leak", detail: format!("{leaked} exists and should not") });
        }
        for missing in expected.difference(&actual) {
            found.push(Violation { invariant: "no-leak", detail: format!("{missing} should exist and does not") });
        }
        found
    }

    /// `told-once`: a subscriber that has received every event knows what a reader sees.
    fn check_published(&self, snapshot: &Snapshot, found: &mut Vec<Violation>) {
        let published = self.shared.events.published(Published::clone);
        let mut compare = |what: &str, seen: String, told: String| {
            if seen != told {
                let detail = format!("{what}: a reader sees {seen}, and events have published {told}");
                found.push(Violation { invariant: "told-once", detail });
            }
        };
        let pfs: BTreeMap<_, _> = snapshot
            .pfs
            .iter()
            .map(|pf| {
                let ports = pf.ports.iter().filter(|port| port.vport == Vport::Uplink || pf.mode.is_switchdev());
                let ports = ports.map(|port| port.handle).collect();
                (pf.address, Instance { mode: pf.mode, num_vfs: pf.num_vfs, ports })
            })
            .collect();
        compare("devlink instances", format!("{pfs:?}"), format!("{:?}", published.pfs));
        // The driver of an SF of a DPU's host is bound there, which is not told here.
        let ports = snapshot.pfs.iter().flat_map(|pf| &pf.ports);
        let sfs = ports.filter(|port| !self.shared.config.is_external_sf(port.vport)).filter_map(|port| port.sf);
        let sfs: BTreeSet<u32> = sfs.filter(|sf| sf.attached).map(|sf| sf.id).collect();
        compare("SFs that are bound", format!("{sfs:?}"), format!("{:?}", published.sfs));
        let modules: BTreeSet<&str> = snapshot.modules.iter().copied().collect();
        compare("modules", format!("{modules:?}"), format!("{:?}", published.modules));
        let paired =
            snapshot.pfs.iter().flat_map(|pf| pf.paired.iter().map(|peer| (pf.index.min(*peer), pf.index.max(*peer))));
        let paired: BTreeSet<_> = paired.collect();
        compare("pairs", format!("{paired:?}"), format!("{:?}", published.paired));
        let bound = |pf: &PfView| {
            let bound = pf.vfs.iter().filter(|vf| vf.info.bound);
            bound.map(|vf| self.shared.config.vf_address(pf.index, vf.number)).collect::<Vec<_>>()
        };
        let vfs: BTreeSet<_> = snapshot.pfs.iter().flat_map(bound).collect();
        compare("VFs that are bound", format!("{vfs:?}"), format!("{:?}", published.vfs));
    }

    fn check_pf(&self, pf: &PfView, modules: &[&'static str], lag: &LagView, found: &mut Vec<Violation>) {
        let mut violate = |invariant, detail| found.push(Violation { invariant, detail });
        let failed_rep = |port: &PortView| port.reps.iter().any(|state| matches!(state, RepState::Failed(_)));
        let excused = pf.ports.iter().any(failed_rep)
            || pf.auxiliary.iter().any(|device| device.failed.is_some())
            || pf.host_failure.is_some();
        // Something may be missing only if a retry is pending and the view shows the failure that is the reason.
        let rests = !pf.retry.is_pending() || !excused;
        if pf.mode == Mode::Legacy && pf.loaded != [0, 0] {
            let [eth, ib] = pf.loaded;
            violate("legacy-empty", format!("pci/{}: {eth} eth and {ib} ib loaded in legacy mode", pf.address));
        }
        for port in pf.ports.iter().filter(|_| pf.mode.is_switchdev()) {
            for (ty, state) in RepType::ALL.into_iter().zip(&port.reps) {
                match state {
                    RepState::Registered if rests => {
                        violate("switchdev-complete", format!("{}: {ty} is registered and not loaded", port.handle));
                    }
                    RepState::Failed(failure) if !pf.retry.is_pending() => {
                        let why = &failure.error;
                        violate(
                            "switchdev-complete",
                            format!("{}: {ty} failed and is not retried: {why}", port.handle),
                        );
                    }
                    _ => {}
                }
            }
        }
        for (port, ty) in &pf.misinformed {
            let paired = &pf.paired;
            violate("pairing-told", format!("{port}: {ty} has not been notified that it is paired with {paired:?}"));
        }
        for port in &pf.ports {
            if let Some(sf) = port.sf
                && (sf.active && !sf.unbound) != sf.attached
                && rests
            {
                violate(
                    "switchdev-complete",
                    format!("{}: active is {}, attached is {}", port.handle, sf.active, sf.attached),
                );
            }
        }
        for (kind, sf) in self.wanted_devices(pf, lag) {
            if rests && !pf.auxiliary.iter().any(|device| device.kind == kind && device.sf == sf) {
                let publisher = sf.map_or_else(|| "the PF".to_owned(), |vport| vport.to_string());
                violate(
                    "switchdev-complete",
                    format!("pci/{}: {kind} device of {publisher} should exist and does not", pf.address),
                );
            }
        }
        if let Some(host) = pf.host_vfs
            && host != pf.num_vfs.into()
            && rests
        {
            violate("switchdev-complete", format!("pci/{}: {} VFs, the host has {host}", pf.address, pf.num_vfs));
        }
        for device in &pf.auxiliary {
            let module = match device.kind {
                AuxKind::Rdma | AuxKind::RdmaRep => "mlx5_ib",
                AuxKind::Eth | AuxKind::EthRep => CORE,
            };
            let name = &device.name;
            match (device.bound, modules.contains(&module)) {
                (true, false) => {
                    violate("loaded-implies-registered", format!("{name} has a driver though {module} is not loaded"));
                }
                (false, true) if rests => {
                    let why = device.failed.as_deref().unwrap_or("it was passed over");
                    violate("switchdev-complete", format!("{name} has no driver and is not retried: {why}"));
                }
                _ => {}
            }
        }
    }

    /// The auxiliary devices that should exist. Those of the PF follow from its mode, except that only the master has
    /// an RDMA device if the PFs of a LAG share one. Each SF that is active has its own.
    fn wanted_devices(&self, pf: &PfView, lag: &LagView) -> Vec<(AuxKind, Option<Vport>)> {
        let mut wanted = vec![(AuxKind::Eth, None)];
        let master = self.devices.first().is_some_and(|d| d.index == pf.index);
        let rdma = pf.rdma && (master || matches!(lag.mode, LagMode::None | LagMode::Vf));
        match pf.mode {
            Mode::Legacy => wanted.extend(rdma.then_some((AuxKind::Rdma, None))),
            Mode::Switchdev | Mode::SwitchdevInactive => {
                wanted.push((AuxKind::EthRep, None));
                wanted.extend(rdma.then_some((AuxKind::RdmaRep, None)));
            }
        }
        for port in &pf.ports {
            let Some(sf) = port.sf.filter(|sf| sf.active && !sf.unbound) else { continue };
            wanted.extend(sf.parts.eth.then_some((AuxKind::Eth, Some(port.vport))));
            wanted.extend((sf.roce && sf.parts.rdma).then_some((AuxKind::Rdma, Some(port.vport))));
        }
        wanted
    }

    /// Adds the resources that the card should have for a PF, as they follow from the view of the PF and of the LAG.
    fn expect_resources(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        pf: &PfView,
        lag: &LagView,
        expected: &mut BTreeSet<Resource>,
    ) {
        let index = pf.index;
        expected.insert(Resource::Function(index));
        if pf.mode.is_switchdev() {
            expected.insert(Resource::SwitchdevFdb(index));
        }
        for device in pf.auxiliary.iter().filter(|d| d.bound) {
            expected.extend(match (device.kind, device.sf) {
                (AuxKind::Eth, None) => Some(Resource::PfNetdev(index)),
                (AuxKind::Rdma, None) => Some(Resource::PfIbDevice(index)),
                (AuxKind::Eth, Some(sf)) => Some(Resource::SfNetdev(index, sf)),
                (AuxKind::Rdma, Some(sf)) => Some(Resource::SfIbDevice(index, sf)),
                (AuxKind::EthRep | AuxKind::RdmaRep, _) => None,
            });
        }
        let vport = |(vport, info): (&Vport, &VportInfo)| (*vport, info.has_vf_netdev());
        let vports =
            self.query_devlink(cx, pf.address, |_, state, _| Ok(state.vports.iter().map(vport).collect::<Vec<_>>()));
        for (vport, has_netdev) in vports.unwrap_or_default() {
            if vport != Vport::Uplink {
                expected.insert(Resource::Port(index, vport));
            }
            if has_netdev {
                expected.insert(Resource::VfNetdev(index, vport));
            }
        }
        let master = self.devices.first().map(|d| d.index) == Some(index);
        for port in &pf.ports {
            for (ty, state) in RepType::ALL.into_iter().zip(&port.reps) {
                let uses_masters = ty == RepType::Ib && port.vport == Vport::Uplink && lag.mode == LagMode::SharedFdb;
                if *state == RepState::Loaded && (master || !uses_masters) {
                    expected.insert(Resource::Representor(index, port.vport, ty));
                }
            }
        }
        // If the uplink's representor failed to load, it makes the rules when it is loaded.
        let is_uplink = |port: &PortView| port.vport == Vport::Uplink && port.reps[0] == RepState::Loaded;
        if pf.ports.iter().any(is_uplink) {
            expected.extend(pf.paired.iter().map(|peer| Resource::PeerRules(index, *peer)));
        }
        if lag.mode == LagMode::Mpesw {
            expected.insert(Resource::MpeswMetadata(index));
        }
        if lag.mode != LagMode::None && master {
            expected.insert(Resource::Lag(index));
        }
    }
}

/// `lag-consistent`: the RDMA devices are those that the mode of the LAG requires.
fn check_lag(snapshot: &Snapshot, found: &mut Vec<Violation>) {
    let mut violate = |detail| found.push(Violation { invariant: "lag-consistent", detail });
    let rests = snapshot.pfs.iter().all(|pf| !pf.retry.is_pending());
    if !rests || !snapshot.modules.contains(&"mlx5_ib") {
        return;
    }
    let devices: BTreeSet<PfIndex> = snapshot
        .resources
        .iter()
        .filter(|r| matches!(r, Resource::PfIbDevice(_) | Resource::Representor(_, Vport::Uplink, RepType::Ib)))
        .map(Resource::pf)
        .collect();
    let all: BTreeSet<PfIndex> = snapshot.pfs.iter().map(|pf| pf.index).collect();
    let expected: BTreeSet<PfIndex> = match snapshot.lag.mode {
        LagMode::None | LagMode::Vf | LagMode::Mpesw => all,
        LagMode::Roce | LagMode::SharedFdb => all.into_iter().take(1).collect(),
    };
    // A PF whose parameters turn RDMA off has no device of its own, whichever place it has in a LAG.
    let rdma = |index: &PfIndex| snapshot.pfs.iter().any(|pf| pf.index == *index && pf.rdma);
    let expected: BTreeSet<PfIndex> = expected.into_iter().filter(rdma).collect();
    if devices != expected {
        violate(format!(
            "lag {}: RDMA devices or uplinks are on {devices:?}, and should be on {expected:?}",
            snapshot.lag.mode
        ));
    }
    if snapshot.lag.mode.is_shared() {
        for port in snapshot.pfs.iter().flat_map(|pf| &pf.ports) {
            if port.reps[0] == RepState::Loaded && port.reps[1] != RepState::Loaded {
                violate(format!("{}: is not a port of the shared RDMA device", port.handle));
            }
        }
    }
}

impl Pf {
    /// Checks the invariants that hold at rest over state that a view does not show.
    pub(super) fn check_hidden(
        &self,
        cx: &mut Locked<'_, Devlink>,
        state: &DevlinkState,
        paired: &[PfIndex],
    ) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut violate = |invariant, detail: String| {
            found.push(Violation { invariant, detail: format!("{}: {detail}", self.address()) });
        };
        let (served, sfs) = (self.sf_queue.known(cx), state.sfs.iter().map(|sf| sf.vport()).collect::<Vec<_>>());
        if served != sfs {
            violate("no-leak", format!("the SF queue serves {served:?}, and the SFs are {sfs:?}"));
        }
        if !state.kept.is_empty() {
            violate("no-leak", "settings of VFs that a reload has kept are still kept".to_owned());
        }
        for (vport, vf) in state.vports.iter().filter_map(|(vport, info)| Some((vport, info.vf.as_ref()?))) {
            if vf.removed && (vf.bound || vf.other_driver.is_some()) {
                violate("true-success", format!("{vport} is removed from the bus and bound"));
            }
            if vf.bound && vf.other_driver.is_some() {
                violate("true-success", format!("{vport} is bound to two drivers"));
            }
        }
        if state.host_failure.is_some() && self.eswitch.work.inner().pending_retry(cx).is_none() {
            violate("switchdev-complete", "enabling the host's VFs has failed and is not retried".to_owned());
        }
        let back_offs = [self.eswitch.work.inner().idle_back_off(cx), self.sf_queue.inner().idle_back_off(cx)];
        if let Some(failures) = back_offs.into_iter().flatten().next() {
            violate("switchdev-complete", format!("no retry is pending, and the back-off still counts {failures}"));
        }
        let mode = self.eswitch.mode.under_devlink(state, cx);
        let loaded = self.eswitch.with_representors(cx, |table, _| {
            table.vports().into_iter().filter(|vport| table.is_loaded(*vport, RepType::Eth)).collect()
        });
        let (flows, card) = (&self.shared.flows, &*self.shared.card);
        for detail in flows.check_at_rest(cx, card, self.index(), mode, &loaded, paired) {
            violate("flows-owned", detail);
        }
        for (invariant, detail) in self.eswitch.stated.check_at_rest(cx, mode, paired.iter().copied().collect()) {
            violate(invariant, detail);
        }
        found
    }
}
