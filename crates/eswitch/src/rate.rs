//! Transmit rates of a PF's vports, as `devlink port function rate` sets them: a leaf for each vport that
//! has a representor, and nodes that leaves and other nodes hang on.
//!
//! They are kept and shown. Nothing is shaped by them: that is for the kernel's own queueing disciplines.

use std::collections::BTreeMap;

use lockdep::{Locked, Unlocked};
use serde::{Deserialize, Serialize};

use crate::device::Pf;
use crate::devlink::DevlinkState;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ids::{Mode, PciAddress, PortHandle, Vport};
use crate::lock_order::Devlink as DevlinkClass;

/// The card works in whole megabits a second: so many bytes.
const UNIT: u64 = 125_000;
/// The fastest there is: 100 Gbit/s, in bytes a second.
const LINK_SPEED: u64 = 12_500_000_000;

/// What a leaf or a node may send.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct Rate {
    /// `tx_share`: the least it gets, in bytes a second.
    pub tx_share: u64,
    /// `tx_max`: the most it gets, in bytes a second; 0 for no limit.
    pub tx_max: u64,
    /// `tx_priority` among those of one parent.
    pub tx_priority: u32,
    /// `tx_weight` among those of one priority.
    pub tx_weight: u32,
    /// The node it hangs on.
    pub parent: Option<String>,
}

/// What to change of a rate.
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
    /// The node to hang it on, or none.
    pub parent: Option<Option<String>>,
}

/// What a rate is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RateObject {
    /// A vport's.
    Leaf(PortHandle),
    /// A node, by name.
    Node(PciAddress, String),
}

impl RateObject {
    /// Whose it is.
    pub fn device(&self) -> PciAddress {
        match self {
            Self::Leaf(port) => port.device,
            Self::Node(device, _) => *device,
        }
    }
}

/// The rates of a PF. A leaf that is not here has never been set.
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

    /// Rates as they were agreed: nodes, and leaves that have been set.
    pub(crate) fn of(nodes: BTreeMap<String, Rate>, leaves: BTreeMap<Vport, Rate>) -> Self {
        Self { leaves, nodes }
    }

    /// Nodes, and leaves that have been set.
    pub(crate) fn all(&self) -> (&BTreeMap<String, Rate>, &BTreeMap<Vport, Rate>) {
        (&self.nodes, &self.leaves)
    }

    /// A vport has gone.
    pub fn forget(&mut self, vport: Vport) {
        self.leaves.remove(&vport);
    }

    /// What a change leads to.
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

/// A name made of digits alone would be taken for a port's index.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.bytes().all(|byte| byte.is_ascii_digit())
}

impl Engine {
    /// Every rate of a PF: nodes, then the leaves of its vports.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn rates(&self, cx: &mut Locked<'_, Unlocked>, device: PciAddress) -> Result<Vec<(RateObject, Rate)>> {
        self.query_devlink(cx, device, |pf, state, cx| {
            let nodes =
                state.rates.nodes.iter().map(|(name, rate)| (RateObject::Node(device, name.clone()), rate.clone()));
            let mut all: Vec<_> = nodes.collect();
            if pf.eswitch.mode.under_devlink(state, cx) == Mode::Switchdev {
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
    /// There is no such leaf or node, or no such parent; a rate is no whole number of Mbit/s or more than
    /// the link has; or it would hang on itself. Nothing is changed.
    pub fn set_rate(&self, cx: &mut Locked<'_, Unlocked>, of: &RateObject, change: &RateChange) -> Result<()> {
        self.with_devlink(cx, of.device(), |pf, state, cx| match of {
            RateObject::Leaf(port) => {
                let vport = leaf(pf, state, cx, *port)?;
                let old = state.rates.leaves.get(&vport).cloned().unwrap_or_default();
                let new = state.rates.changed(&old, None, change)?;
                state.rates.leaves.insert(vport, new);
                Ok(())
            }
            RateObject::Node(_, name) => {
                let old = state.rates.nodes.get(name).ok_or_else(|| Error::NoRateNode(name.clone()))?;
                let new = state.rates.changed(old, Some(name), change)?;
                state.rates.nodes.insert(name.clone(), new);
                Ok(())
            }
        })
    }

    /// `devlink port function rate add`.
    ///
    /// # Errors
    /// The E-Switch is in legacy mode, the name is taken or is none, or as for [`Self::set_rate`]. Nothing
    /// is changed.
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
            state.rates.nodes.insert(name.to_owned(), new);
            Ok(())
        })
    }

    /// `devlink port function rate del`.
    ///
    /// # Errors
    /// There is no such node, or something hangs on it.
    pub fn delete_rate_node(&self, cx: &mut Locked<'_, Unlocked>, device: PciAddress, name: &str) -> Result<()> {
        self.with_devlink(cx, device, |_, state, _| {
            if !state.rates.nodes.contains_key(name) {
                return Err(Error::NoRateNode(name.to_owned()));
            }
            if state.rates.has_children(name) {
                return Err(Error::RateNodeInUse);
            }
            state.rates.nodes.remove(name);
            Ok(())
        })
    }
}

/// The vport a leaf is of.
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
    fn nodes_do_not_hang_on_themselves() {
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
