//! Follows the kernel's neighbours, by which rules that encapsulate find their next hops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use eswitch::{Engine, Error, MacAddr, PciAddress, PfIndex};
use flow::Neighbour;
use lockdep::{Locked, Unlocked};

use crate::follower::{Follower, Looks};
use crate::pulse::Pulse;
use crate::world::{NeighbourWatch, Neighbours};

/// How many counters are read at a time.
const BATCH: usize = 1024;

/// Reports the next hops to the ends of tunnels to the engine, on a thread of its own, which the engine wakes when rules
/// name other ends.
///
/// Like [`BondFollower`](crate::bonds::BondFollower) it reports the state that it finds when it looks. It holds no lock
/// while it asks the kernel.
pub(crate) struct NeighbourFollower {
    neighbours: Arc<dyn Neighbours>,
    follower: Follower,
}

impl NeighbourFollower {
    /// Starts to follow the neighbours.
    pub(crate) fn start(
        cx: &mut Locked<'_, Unlocked>,
        neighbours: Arc<dyn Neighbours>,
        engine: &Arc<Engine>,
        pulse: &Arc<Pulse>,
    ) -> Self {
        let waker = Arc::clone(&neighbours);
        engine.on_tunnel_ends(Arc::new(move || waker.wake()));
        let watch = neighbours.watch(cx);
        let follow = watch.map(|watch| {
            let (engine, pulse) = (Arc::clone(engine), Arc::clone(pulse));
            move |cx: &mut Locked<'_, Unlocked>, looks: &Looks| follow(cx, looks, watch, &engine, &pulse)
        });
        let waker = Arc::clone(&neighbours);
        let follower = Follower::start(cx, "neighbours", Arc::new(move || waker.wake()), follow);
        Self { neighbours, follower }
    }

    /// The thread.
    pub(crate) fn follower(&self) -> &Follower {
        &self.follower
    }

    /// Sets a neighbour in the kernel, or deletes it.
    ///
    /// # Errors
    /// There is no such PF, its netdev is not where netdevs appear, or the kernel refuses.
    pub(crate) fn set(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        engine: &Engine,
        device: PciAddress,
        to: IpAddr,
        mac: Option<MacAddr>,
    ) -> Result<(), Error> {
        let place = engine.addresses().iter().position(|known| *known == device).ok_or(Error::NoDevice(device))?;
        let set = self.neighbours.set(cx, PfIndex(place as u8), to, mac);
        set.map_err(|source| Error::Card { operation: format!("the neighbour {to}"), source })
    }
}

fn follow(
    cx: &mut Locked<'_, Unlocked>,
    looks: &Looks,
    mut watch: Box<dyn NeighbourWatch>,
    engine: &Engine,
    pulse: &Pulse,
) {
    let mut known = Known::default();
    while let Some(look) = looks.begin() {
        let ends = engine.tunnel_ends(cx);
        if let Some(found) = watch.look(cx, &ends) {
            known.report(cx, engine, found);
            looks.end(look);
        }
        pulse.beat(cx);
        if watch.wait(!ends.is_empty()) {
            let sent_to = known.sent_to(cx, engine, &ends);
            watch.use_neighbours(cx, &sent_to);
        }
    }
}

type End = (PfIndex, IpAddr);

/// What the engine has been told.
#[derive(Default)]
struct Known {
    neighbours: BTreeMap<End, Neighbour>,
    /// When a rule to an end counted a frame last, as far as is known.
    last_used: BTreeMap<End, Duration>,
}

impl Known {
    /// Tells the engine what has changed. `found`: every next hop that is known.
    fn report(&mut self, cx: &mut Locked<'_, Unlocked>, engine: &Engine, found: BTreeMap<End, Neighbour>) {
        for (pf, end) in self.neighbours.keys().filter(|end| !found.contains_key(end)) {
            engine.set_neighbour(cx, *pf, *end, None);
        }
        for ((pf, end), neighbour) in &found {
            if self.neighbours.get(&(*pf, *end)) != Some(neighbour) {
                engine.set_neighbour(cx, *pf, *end, Some(*neighbour));
            }
        }
        self.neighbours = found;
    }

    /// The ends whose rules have counted frames since the last call: one rule is enough, as in mlx5
    /// (`mlx5e_tc_update_neigh_used_value`).
    fn sent_to(&mut self, cx: &mut Locked<'_, Unlocked>, engine: &Engine, ends: &[End]) -> BTreeSet<End> {
        let mut sent_to = BTreeSet::new();
        let before = std::mem::take(&mut self.last_used);
        for end in ends {
            let last = before.get(end).copied().unwrap_or_default();
            let rules = engine.rules_to_tunnel_end(cx, end.0, end.1);
            let newer = rules.chunks(BATCH).find_map(|rules| {
                let counters = engine.flow_counters(cx, rules).into_iter().flatten();
                counters.map(|counter| counter.last_used).max().filter(|used| *used > last)
            });
            sent_to.extend(newer.map(|_| *end));
            self.last_used.insert(*end, newer.unwrap_or(last));
        }
        sent_to
    }
}
