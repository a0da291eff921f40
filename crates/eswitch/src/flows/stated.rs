//! The invariants of flow rules that are checked at the steps where they must hold, and at rest.

use std::collections::{BTreeMap, BTreeSet};

use flow::{Counter, Port, RuleId};
use lockdep::{LockBefore, Locked};

use super::{Flows, State, is_for_peer};
use crate::card::Card;
use crate::datapath::port;
use crate::ids::{Mode, PfIndex, Vport};
use crate::lock_order::Flows as FlowsClass;

/// What has been read of counters, for `counters-grow`.
#[derive(Default)]
pub(super) struct Seen {
    counters: BTreeMap<RuleId, Counter>,
}

impl State {
    /// The ports that the rules of an E-Switch may name: its own, and those of its peers. Their uplinks only in a multiport
    /// E-Switch.
    fn nameable(&self, pf: PfIndex) -> BTreeSet<Port> {
        let Some(switch) = self.switches.get(&pf) else { return BTreeSet::new() };
        let own = switch.ports.iter().map(|vport| port(pf, *vport));
        let of_peer = |peer| self.switches.get(&peer).map(|of| (peer, of));
        let of_peers = switch.peers.iter().filter_map(of_peer);
        let is_for_us = |peer, vport: &Vport| is_for_peer(self.joined, (peer, *vport), pf);
        let of_peers = of_peers.flat_map(|(peer, of)| {
            of.ports.iter().filter(move |vport| is_for_us(peer, vport)).map(move |vport| port(peer, *vport))
        });
        own.chain(of_peers).collect()
    }

    /// What of `flows-owned` the tables violate.
    fn unowned(&self) -> Option<String> {
        self.switches.iter().find_map(|(pf, switch)| {
            let (nameable, known) = (self.nameable(*pf), switch.tables.ports().collect::<BTreeSet<_>>());
            if nameable != known {
                return Some(format!("pf{}: rules may name {known:?}, and there are {nameable:?}", pf.0));
            }
            let stray = |port: &Port| !nameable.contains(port);
            let rule = switch.tables.rules().find(|(_, rule)| rule.ports().any(|port| stray(&port)));
            rule.map(|(id, _)| format!("pf{}: {id} names a port that is not there", pf.0))
        })
    }
}

impl Flows {
    /// Checks, before the lock is released, that each rule names only ports that are there.
    #[track_caller]
    pub(super) fn ensure_owned<L>(&self, cx: &Locked<'_, L>, state: &State) {
        if !cx.is_checked() {
            return;
        }
        let unowned = state.unowned();
        cx.ensure("flows-owned", || unowned.is_none(), || unowned.clone().unwrap_or_default());
    }

    /// Checks a counter that was read against what was read before.
    #[track_caller]
    pub(super) fn ensure_grown<L>(&self, cx: &Locked<'_, L>, rule: RuleId, counter: Counter) {
        if !cx.is_checked() {
            return;
        }
        let before = self.seen.with(|seen| seen.counters.insert(rule, counter)).unwrap_or_default();
        let grown =
            before.packets <= counter.packets && before.bytes <= counter.bytes && before.last_used <= counter.last_used;
        cx.ensure("counters-grow", || grown, || format!("{rule}: {before:?} was read, and then {counter:?}"));
    }

    /// What of `flows-owned` is violated at rest, for the E-Switch of a PF with this mode, these vports with a loaded
    /// netdev representor, and these peers.
    pub(crate) fn check_at_rest<P: LockBefore<FlowsClass>>(
        &self,
        cx: &mut Locked<'_, P>,
        card: &dyn Card,
        pf: PfIndex,
        mode: Mode,
        loaded: &BTreeSet<Vport>,
        paired: &[PfIndex],
    ) -> Vec<String> {
        let found = self.with(cx, card, |state, cx, datapath| {
            let installed = datapath.installed(cx, pf);
            let Some(switch) = state.switches.get(&pf) else {
                let missing = mode.is_switchdev().then(|| "it has no tables in switchdev mode".to_owned());
                let left = installed.map(|rules| format!("its data plane is open in legacy mode, with {rules:?}"));
                return missing.into_iter().chain(left).collect();
            };
            let mut found = Vec::new();
            if !mode.is_switchdev() {
                found.push("it has tables in legacy mode".to_owned());
            }
            if switch.ports != *loaded {
                found.push(format!("representors of {loaded:?} are loaded, and rules may name {:?}", switch.ports));
            }
            let peers: Vec<PfIndex> = switch.peers.iter().collect();
            if switch.ports.contains(&Vport::Uplink) && peers != paired {
                found.push(format!("it is paired with {paired:?}, and its rules may name ports of {peers:?}"));
            }
            let told: Vec<RuleId> = switch.tables.rules().map(|(id, _)| id).collect();
            if installed.as_ref() != Some(&told) {
                found.push(format!("{told:?} were told to be installed, and {installed:?} are"));
            }
            found
        });
        found.unwrap_or_default()
    }
}
