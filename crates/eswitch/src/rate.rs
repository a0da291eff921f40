//! Transmit rates of a PF's vports, as `devlink port function rate` sets them. There is a leaf for each vport other
//! than the uplink. Leaves and nodes can have a node as their parent.
//!
//! For mlx5 a vport has one rate, whether a leaf or `ip link set … vf` sets it (`mlx5_esw_qos_set_vport_rate` and the
//! callbacks of a leaf in `esw/qos.c` set the same): the later one applies, and `ip link` shows it. A leaf shows what was
//! set of the leaf.
//!
//! The card enforces the rates: it has them as [`TxRates`].

use std::collections::BTreeMap;

use lockdep::{Locked, Unlocked};
use serde::{Deserialize, Serialize};

use crate::device::Pf;
use crate::devlink::{DevlinkState, VportInfo};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ids::{Mode, PciAddress, PortHandle, Vport};
use crate::lock_order::Devlink as DevlinkClass;

/// The unit of rates: 1 Mbit/s, in bytes per second.
const UNIT: u64 = 125_000;
/// The speed of the link, which is the highest rate: 100 Gbit/s, in bytes per second.
pub const LINK_SPEED: u64 = 12_500_000_000;

/// The settings of a leaf or a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct Rate {
    /// `tx_share`: the guaranteed rate, in bytes per second.
    pub tx_share: u64,
    /// `tx_max`: the highest rate, in bytes per second; 0 for no limit.
    pub tx_max: u64,
    /// `tx_priority`: the priority among the children of one parent.
    pub tx_priority: u32,
    /// `tx_weight`: the weight among the children of one parent with the same priority.
    pub tx_weight: u32,
    /// The name of the parent node, if there is one.
    pub parent: Option<String>,
}

/// A change of the settings of a leaf or a node. A field that is `None` leaves the setting as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RateChange {
    /// See [`Rate::tx_share`].
    pub tx_share: Option<u64>,
    /// See [`Rate::tx_max`].
    pub tx_max: Option<u64>,
    /// See [`Rate::tx_priority`].
    pub tx_priority: Option<u32>,
    /// See [`Rate::tx_weight`].
    pub tx_weight: Option<u32>,
    /// The new parent node; `Some(None)` removes the parent.
    pub parent: Option<Option<String>>,
}

/// A rate object of devlink: a leaf or a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RateObject {
    /// The leaf of a vport, by its devlink port.
    Leaf(PortHandle),
    /// A node, by its devlink instance and name.
    Node(PciAddress, String),
}

impl RateObject {
    /// The PCI address of the devlink instance.
    pub fn device(&self) -> PciAddress {
        match self {
            Self::Leaf(port) => port.device,
            Self::Node(device, _) => *device,
        }
    }
}

/// The transmit rates of a PF as the card has them: those of its vports, and the nodes above them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TxRates {
    /// Those vports that exist and have a rate or a parent.
    pub leaves: BTreeMap<Vport, Rate>,
    /// The nodes. The parents of leaves and nodes are among them.
    pub nodes: BTreeMap<String, Rate>,
}

impl TxRates {
    /// The lowest of the limits of a leaf and of the nodes above it, in bytes per second. `None`: nothing limits it.
    pub fn limit(&self, leaf: Vport) -> Option<u64> {
        let mut rate = self.leaves.get(&leaf)?;
        let mut limits = vec![rate.tx_max];
        // No ring of nodes can be set. Should there be one, this ends all the same.
        while let Some(above) = rate.parent.as_ref().and_then(|name| self.nodes.get(name))
            && limits.len() <= self.nodes.len()
        {
            limits.push(above.tx_max);
            rate = above;
        }
        limits.into_iter().filter(|max| *max != 0).min()
    }
}

/// The rates of a PF. A leaf that has never been set is not stored.
#[derive(Debug, Default, Hash)]
pub struct Rates {
    leaves: BTreeMap<Vport, Rate>,
    nodes: BTreeMap<String, Rate>,
}

impl Rates {
    /// Whether a node exists.
    pub fn has_nodes(&self) -> bool {
        !self.nodes.is_empty()
    }

    /// Makes the rates of an agreed state: nodes, and leaves that have been set.
    pub(crate) fn of(nodes: BTreeMap<String, Rate>, leaves: BTreeMap<Vport, Rate>) -> Self {
        Self { leaves, nodes }
    }

    /// The nodes, and the leaves that have been set.
    pub(crate) fn all(&self) -> (&BTreeMap<String, Rate>, &BTreeMap<Vport, Rate>) {
        (&self.nodes, &self.leaves)
    }

    /// Removes the leaf of a vport that has been disabled.
    pub fn forget(&mut self, vport: Vport) {
        self.leaves.remove(&vport);
    }

    /// The settings after a change. `own` is the name of the node that is changed, or `None` for a leaf.
    fn changed(&self, old: &Rate, own: Option<&str>, change: &RateChange) -> Result<Rate> {
        for rate in [change.tx_share, change.tx_max].into_iter().flatten() {
            if rate % UNIT != 0 {
                return Err(Error::RateUnit(rate));
            }
            if rate > LINK_SPEED {
                return Err(Error::RateTooHigh(rate));
            }
        }
        let parent = match &change.parent {
            None => old.parent.clone(),
            Some(None) => None,
            Some(Some(name)) => {
                self.ensure_no_ring(own, name)?;
                Some(name.clone())
            }
        };
        Ok(Rate {
            tx_share: change.tx_share.unwrap_or(old.tx_share),
            tx_max: change.tx_max.unwrap_or(old.tx_max),
            tx_priority: change.tx_priority.unwrap_or(old.tx_priority),
            tx_weight: change.tx_weight.unwrap_or(old.tx_weight),
            parent,
        })
    }

    /// Checks that making `parent` the parent of the node `own` makes no loop.
    fn ensure_no_ring(&self, own: Option<&str>, parent: &str) -> Result<()> {
        if own == Some(parent) {
            return Err(Error::RateParent("Parent to self is not allowed"));
        }
        let mut node = self.nodes.get(parent).ok_or_else(|| Error::NoRateNode(parent.to_owned()))?;
        while let Some(above) = &node.parent {
            if own == Some(above) {
                return Err(Error::RateParent("Node is already a parent of parent node"));
            }
            let Some(next) = self.nodes.get(above) else { break };
            node = next;
        }
        Ok(())
    }

    fn has_children(&self, name: &str) -> bool {
        self.leaves.values().chain(self.nodes.values()).any(|rate| rate.parent.as_deref() == Some(name))
    }
}

impl DevlinkState {
    /// The rates for the card: those of VFs as they were set last, by `ip link` or by a leaf.
    fn tx_rates(&self) -> TxRates {
        let rate = |(vport, info): (&Vport, &VportInfo)| {
            let mut rate = self.rates.leaves.get(vport).cloned().unwrap_or_default();
            if let Some(vf) = &info.vf {
                (rate.tx_share, rate.tx_max) = (u64::from(vf.min_tx_rate) * UNIT, u64::from(vf.max_tx_rate) * UNIT);
            }
            (rate != Rate::default()).then_some((*vport, rate))
        };
        TxRates { leaves: self.vports.iter().filter_map(rate).collect(), nodes: self.rates.nodes.clone() }
    }
}

impl Pf {
    /// Has the card enforce the rates that are stored.
    ///
    /// # Errors
    /// [`Error::Card`]: the card could not; it enforces what it did before.
    pub(crate) fn enforce_rates(&self, state: &DevlinkState, cx: &mut Locked<'_, DevlinkClass>) -> Result<()> {
        let set = self.shared.card.set_rates(&mut cx.narrow(), self.index(), &state.tx_rates());
        set.map_err(|source| Error::Card { operation: format!("{}: setting transmit rates", self.address()), source })
    }

    /// Has the card enforce the rates of vports that have just been enabled with rates that were kept for them.
    ///
    /// # Errors
    /// As [`enforce_rates`](Self::enforce_rates).
    pub(crate) fn keep_rates(
        &self,
        state: &DevlinkState,
        cx: &mut Locked<'_, DevlinkClass>,
        vports: &[Vport],
    ) -> Result<()> {
        let has_rate = |vport: &Vport| {
            let vf = state.vports.get(vport).and_then(|info| info.vf.as_ref());
            vf.is_some_and(|vf| (vf.min_tx_rate, vf.max_tx_rate) != (0, 0))
        };
        if vports.iter().any(has_rate) { self.enforce_rates(state, cx) } else { Ok(()) }
    }

    /// Stores the settings of a leaf, and has the card enforce them. Those of a VF are the VF's, too.
    ///
    /// # Errors
    /// As [`enforce_rates`](Self::enforce_rates); nothing has changed then.
    fn set_leaf(
        &self,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, DevlinkClass>,
        vport: Vport,
        new: Rate,
        change: &RateChange,
    ) -> Result<()> {
        let before = (state.rates.leaves.insert(vport, new), state.vports.get(&vport).and_then(|info| info.vf.clone()));
        if let Some(vf) = state.vports.get_mut(&vport).and_then(|info| info.vf.as_mut()) {
            // At most the link's 100 Gbit/s.
            let mbits = |rate: u64| u32::try_from(rate / UNIT).unwrap_or(u32::MAX);
            vf.min_tx_rate = change.tx_share.map_or(vf.min_tx_rate, mbits);
            vf.max_tx_rate = change.tx_max.map_or(vf.max_tx_rate, mbits);
        }
        let enforced = self.enforce_rates(state, cx);
        if enforced.is_err() {
            let (leaf, vf) = before;
            match leaf {
                Some(leaf) => state.rates.leaves.insert(vport, leaf),
                None => state.rates.leaves.remove(&vport),
            };
            if let Some(info) = state.vports.get_mut(&vport) {
                info.vf = vf;
            }
        }
        enforced
    }

    /// Stores the settings of a node or, with `None`, removes it, and has the card enforce that.
    ///
    /// # Errors
    /// As [`enforce_rates`](Self::enforce_rates); nothing has changed then.
    fn set_node(
        &self,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, DevlinkClass>,
        name: &str,
        new: Option<Rate>,
    ) -> Result<()> {
        let replace = |nodes: &mut BTreeMap<String, Rate>, new: Option<Rate>| match new {
            Some(new) => nodes.insert(name.to_owned(), new),
            None => nodes.remove(name),
        };
        let before = replace(&mut state.rates.nodes, new);
        let enforced = self.enforce_rates(state, cx);
        if enforced.is_err() {
            replace(&mut state.rates.nodes, before);
        }
        enforced
    }
}

/// Whether a text can be the name of a node. A name that consists of digits would be taken for the index of a port.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.bytes().all(|byte| byte.is_ascii_digit())
}

impl Engine {
    /// Every rate object of a PF, with its settings: first the nodes, then the leaves. In legacy mode there are no
    /// leaves.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn rates(&self, cx: &mut Locked<'_, Unlocked>, device: PciAddress) -> Result<Vec<(RateObject, Rate)>> {
        self.query_devlink(cx, device, |pf, state, cx| {
            let nodes =
                state.rates.nodes.iter().map(|(name, rate)| (RateObject::Node(device, name.clone()), rate.clone()));
            let mut all: Vec<_> = nodes.collect();
            if pf.eswitch.mode.under_devlink(state, cx).is_switchdev() {
                let vports = state.vports.keys().filter(|v| **v != Vport::Uplink);
                all.extend(vports.map(|vport| {
                    let rate = state.rates.leaves.get(vport).cloned().unwrap_or_default();
                    (RateObject::Leaf(pf.port_handle(*vport)), rate)
                }));
            }
            Ok(all)
        })
    }

    /// `devlink port function rate set`.
    ///
    /// # Errors
    /// No such leaf or node, or no such parent; a rate is not a whole number of Mbit/s, or is higher than that of the
    /// link; a node would be its own ancestor; or the card could not enforce it. Nothing has changed then.
    pub fn set_rate(&self, cx: &mut Locked<'_, Unlocked>, of: &RateObject, change: &RateChange) -> Result<()> {
        self.with_devlink(cx, of.device(), |pf, state, cx| match of {
            RateObject::Leaf(port) => {
                let vport = leaf(pf, state, cx, *port)?;
                let old = state.rates.leaves.get(&vport).cloned().unwrap_or_default();
                let new = state.rates.changed(&old, None, change)?;
                pf.set_leaf(state, cx, vport, new, change)
            }
            RateObject::Node(_, name) => {
                let old = state.rates.nodes.get(name).ok_or_else(|| Error::NoRateNode(name.clone()))?;
                let new = state.rates.changed(old, Some(name), change)?;
                pf.set_node(state, cx, name, Some(new))
            }
        })
    }

    /// `devlink port function rate add`.
    ///
    /// # Errors
    /// The E-Switch is in legacy mode; the name is in use or invalid; or as for [`set_rate`](Self::set_rate). Nothing
    /// has changed then.
    pub fn add_rate_node(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        device: PciAddress,
        name: &str,
        change: &RateChange,
    ) -> Result<()> {
        self.with_devlink(cx, device, |pf, state, cx| {
            if pf.eswitch.mode.under_devlink(state, cx) == Mode::Legacy {
                return Err(Error::RateInLegacy);
            }
            if !is_name(name) {
                return Err(Error::RateNodeName(name.to_owned()));
            }
            if state.rates.nodes.contains_key(name) {
                return Err(Error::RateNodeExists(name.to_owned()));
            }
            let new = state.rates.changed(&Rate::default(), Some(name), change)?;
            pf.set_node(state, cx, name, Some(new))
        })
    }

    /// `devlink port function rate del`.
    ///
    /// # Errors
    /// No such node, or it is the parent of a leaf or of another node; or the card could not be changed.
    pub fn delete_rate_node(&self, cx: &mut Locked<'_, Unlocked>, device: PciAddress, name: &str) -> Result<()> {
        self.with_devlink(cx, device, |pf, state, cx| {
            if !state.rates.nodes.contains_key(name) {
                return Err(Error::NoRateNode(name.to_owned()));
            }
            if state.rates.has_children(name) {
                return Err(Error::RateNodeInUse);
            }
            pf.set_node(state, cx, name, None)
        })
    }
}

/// The vport of a leaf.
fn leaf(pf: &Pf, state: &DevlinkState, cx: &mut Locked<'_, DevlinkClass>, port: PortHandle) -> Result<Vport> {
    let (pf_part, number) = port.index.split();
    let legacy = pf.eswitch.mode.under_devlink(state, cx) == Mode::Legacy;
    Vport::from_number(number, pf.shared.config.dpu)
        .filter(|_| pf_part == pf.index().0.into() && !legacy)
        .filter(|vport| *vport != Vport::Uplink && state.vports.contains_key(vport))
        .ok_or(Error::NoPort(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_cannot_be_its_own_ancestor() {
        let mut rates = Rates::default();
        for name in ["a", "b", "c"] {
            rates.nodes.insert(name.to_owned(), Rate::default());
        }
        let under = |name: &str| RateChange { parent: Some(Some(name.to_owned())), ..RateChange::default() };
        rates.nodes.insert("b".to_owned(), rates.changed(&Rate::default(), Some("b"), &under("a")).unwrap());
        rates.nodes.insert("c".to_owned(), rates.changed(&Rate::default(), Some("c"), &under("b")).unwrap());
        assert!(matches!(rates.changed(&Rate::default(), Some("a"), &under("a")), Err(Error::RateParent(_))));
        assert!(matches!(rates.changed(&Rate::default(), Some("a"), &under("c")), Err(Error::RateParent(_))));
        assert!(matches!(rates.changed(&Rate::default(), None, &under("d")), Err(Error::NoRateNode(_))));
        assert!(rates.has_children("a") && !rates.has_children("c"));
    }

    #[test]
    fn rates_are_whole_megabits_and_fit_the_link() {
        let rates = Rates::default();
        let max = |tx_max| RateChange { tx_max: Some(tx_max), ..RateChange::default() };
        let changed = |tx_max| rates.changed(&Rate::default(), None, &max(tx_max));
        assert_eq!(changed(125_000).unwrap().tx_max, 125_000);
        assert_eq!(changed(1), Err(Error::RateUnit(1)));
        assert_eq!(changed(LINK_SPEED + UNIT), Err(Error::RateTooHigh(LINK_SPEED + UNIT)));
    }
}
