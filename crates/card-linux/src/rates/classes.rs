//! Rates as a tree of `htb` classes.

use std::collections::{BTreeMap, BTreeSet};

use eswitch::Vport;
use eswitch::card::CardError;
use eswitch::rate::{LINK_SPEED, Rate, TxRates};

/// A class of a shaper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Class {
    /// The minor number of the class above it; 0: there is none.
    pub parent: u16,
    /// What it may always send, in bytes per second.
    pub rate: u64,
    /// What it may send at most, in bytes per second.
    pub ceil: u64,
    /// Of what it borrows from its parent: how many bytes are its turn.
    pub quantum: u32,
    /// The lower, the earlier it may borrow.
    pub priority: u32,
    /// Of a leaf: the bytes that wait at most. What comes then is dropped.
    pub queue: Option<u32>,
}

/// The minor number of the class of a DPU's host PF, whose vport number is 0. No vport has this number.
const HOST_PF: u16 = 0xfff1;
/// The minor numbers of nodes: no VF has such a vport number.
const NODES: std::ops::RangeInclusive<u16> = 32_001..=32_767;

/// The minor number of a vport's class.
pub(super) fn minor(vport: Vport) -> u16 {
    match vport {
        Vport::HostPf => HOST_PF,
        vport => vport.number(),
    }
}

/// The vport whose class has a minor number.
pub(super) fn vport(minor: u16) -> Option<Vport> {
    match minor {
        HOST_PF => Some(Vport::HostPf),
        minor if NODES.contains(&minor) => None,
        minor => Vport::from_number(minor, true),
    }
}

/// The minor numbers of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Minors(BTreeMap<String, u16>);

impl Minors {
    /// With numbers for the nodes of these rates, and for no others. Those that had one keep it.
    ///
    /// # Errors
    /// There are too many nodes.
    pub(super) fn with(&self, rates: &TxRates) -> Result<Self, CardError> {
        let mut minors: BTreeMap<String, u16> = self.0.clone();
        minors.retain(|name, _| rates.nodes.contains_key(name));
        let used: BTreeSet<u16> = minors.values().copied().collect();
        let mut free = NODES.filter(|minor| !used.contains(minor));
        for name in rates.nodes.keys() {
            if !minors.contains_key(name) {
                let full = || CardError::Full(format!("a card takes {} rate nodes for each PF", NODES.count()));
                minors.insert(name.clone(), free.next().ok_or_else(full)?);
            }
        }
        Ok(Self(minors))
    }

    /// The numbers that the nodes of these rates have in a tree that was made of them: the number of a node is that of the
    /// class above one of its children. One without children is not recognised.
    pub(super) fn recognised(rates: &TxRates, classes: &BTreeMap<u16, Class>) -> Self {
        let mut minors = BTreeMap::new();
        let mut known: Vec<(u16, &Rate)> = rates.leaves.iter().map(|(vport, rate)| (minor(*vport), rate)).collect();
        while let Some((child, rate)) = known.pop() {
            let above = classes.get(&child).map(|class| class.parent).filter(|above| NODES.contains(above));
            if let (Some(name), Some(above)) = (&rate.parent, above)
                && !minors.contains_key(name)
                && !minors.values().any(|minor| *minor == above)
                && let Some(node) = rates.nodes.get(name)
            {
                minors.insert(name.clone(), above);
                known.push((above, node));
            }
        }
        Self(minors)
    }
}

/// What is to be done so that a tree becomes another one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// The classes to delete, children before their parents. Some are made again below another parent.
    pub deleted: Vec<u16>,
    /// The classes to make (`true`) or to change, parents before their children.
    pub set: Vec<(u16, bool)>,
}

impl Change {
    /// The change from one tree to another.
    pub(super) fn between(old: &BTreeMap<u16, Class>, new: &BTreeMap<u16, Class>) -> Self {
        let mut deleted = by_depth(old);
        let mut going = BTreeSet::new();
        // With a class go its children: the kernel deletes none that has any.
        deleted.retain(|minor| {
            let parent = old[minor].parent;
            let goes = going.contains(&parent) || new.get(minor).is_none_or(|class| class.parent != parent);
            goes && going.insert(*minor)
        });
        deleted.reverse();
        let set = by_depth(new).into_iter().filter_map(|minor| match old.get(&minor) {
            Some(_) if going.contains(&minor) => Some((minor, true)),
            Some(before) => (*before != new[&minor]).then_some((minor, false)),
            None => Some((minor, true)),
        });
        let set = set.collect();
        Self { deleted, set }
    }
}

/// The numbers of classes, parents before their children.
fn by_depth(classes: &BTreeMap<u16, Class>) -> Vec<u16> {
    let depth = |minor: &u16| {
        let mut above = classes[minor].parent;
        let mut depth = 0;
        while let Some(class) = classes.get(&above)
            && depth < classes.len()
        {
            (above, depth) = (class.parent, depth + 1);
        }
        depth
    };
    let mut minors: Vec<u16> = classes.keys().copied().collect();
    minors.sort_by_cached_key(depth);
    minors
}

/// The weight of a child among those of its parent: as mlx5 has it, its share in Mbit/s, and 1 without a share.
fn weight(rate: &Rate) -> u64 {
    const MBIT: u64 = 125_000;
    (rate.tx_share / MBIT).max(1) * u64::from(rate.tx_weight.max(1))
}

/// The tree for rates: a class for each leaf that is limited, and for each node above one. The rates of a node's
/// children are never more than the node's own, as `htb` does not stop a class that stays within its rate.
pub(super) fn of(rates: &TxRates, minors: &Minors) -> BTreeMap<u16, Class> {
    let leaves: Vec<(Vport, &Rate, u64)> =
        rates.leaves.iter().filter_map(|(vport, rate)| Some((*vport, rate, rates.limit(*vport)?))).collect();
    let mut tree = Tree { rates, minors, weights: BTreeMap::new(), classes: BTreeMap::new() };
    let nodes = tree.nodes_above(leaves.iter().filter_map(|(_, rate, _)| rate.parent.as_deref()));
    let all = leaves.iter().map(|(_, rate, _)| *rate).chain(nodes.iter().map(|name| &rates.nodes[*name]));
    for rate in all {
        if let Some(parent) = &rate.parent {
            *tree.weights.entry(parent).or_default() += weight(rate);
        }
    }
    for name in nodes {
        tree.add_node(name, rates.nodes.len());
    }
    for (vport, rate, limit) in leaves {
        let ceil = if rate.tx_max == 0 { LINK_SPEED } else { rate.tx_max };
        let parent = tree.minor_of(rate.parent.as_deref());
        // Below a node a leaf always borrows, in turns that are as long as its weight: so what it gets follows from that
        // alone, and a leaf that comes or goes changes nothing of its siblings.
        let rate_of_its_own = if parent == 0 { ceil } else { 1 };
        let class = Class { queue: Some(queue(limit)), ..class(parent, rate_of_its_own, ceil, rate) };
        tree.classes.insert(minor(vport), class);
    }
    tree.classes
}

/// The bytes that wait at most for a leaf with a limit in bytes per second: what is sent in 20 ms, within bounds.
fn queue(limit: u64) -> u32 {
    /// Four of the longest frames.
    const LEAST: u64 = 256 << 10;
    const MOST: u64 = 4 << 20;
    (limit / 50).clamp(LEAST, MOST) as u32
}

fn class(parent: u16, rate: u64, ceil: u64, of: &Rate) -> Class {
    /// The longest frame that is not segmented later.
    const FRAME: u64 = 1514;
    // A turn takes 10 ms of its share.
    let quantum = (of.tx_share / 100).max(FRAME) * u64::from(of.tx_weight.max(1));
    // `htb` knows eight priorities and prefers the lowest, devlink the highest.
    let priority = 7 - of.tx_priority.min(7);
    Class { parent, rate, ceil, quantum: quantum.min(i32::MAX as u64) as u32, priority, queue: None }
}

/// A tree that is being built.
struct Tree<'a> {
    rates: &'a TxRates,
    minors: &'a Minors,
    /// The sum of the weights of a node's children, by its name.
    weights: BTreeMap<&'a str, u64>,
    classes: BTreeMap<u16, Class>,
}

impl<'a> Tree<'a> {
    fn minor_of(&self, node: Option<&str>) -> u16 {
        node.and_then(|name| self.minors.0.get(name)).copied().unwrap_or(0)
    }

    /// These nodes and all above them.
    fn nodes_above(&self, parents: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
        let mut nodes = BTreeSet::new();
        for mut name in parents {
            while let Some((key, node)) = self.rates.nodes.get_key_value(name)
                && nodes.insert(key.as_str())
            {
                let Some(above) = &node.parent else { break };
                name = above;
            }
        }
        nodes
    }

    /// Adds the class of a node and those above it. `depth`: how many can be above it. Returns what it may always send.
    fn add_node(&mut self, name: &str, depth: usize) -> u64 {
        let minor = self.minor_of(Some(name));
        if let Some(class) = self.classes.get(&minor) {
            return class.rate;
        }
        let Some(node) = self.rates.nodes.get(name) else { return LINK_SPEED };
        let ceil = if node.tx_max == 0 { LINK_SPEED } else { node.tx_max };
        let part = match &node.parent {
            Some(above) if depth > 0 => {
                let whole = u128::from(self.add_node(above, depth - 1)) * u128::from(weight(node));
                let weights = self.weights.get(above.as_str()).copied().unwrap_or(1);
                u64::try_from(whole / u128::from(weights.max(1))).unwrap_or(u64::MAX)
            }
            _ => ceil,
        };
        let rate = part.clamp(1, ceil);
        let parent = self.minor_of(node.parent.as_deref());
        self.classes.insert(minor, class(parent, rate, ceil, node));
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: u64 = 125_000;

    fn rate(max: u64, share: u64, parent: Option<&str>) -> Rate {
        Rate { tx_max: max * MBIT, tx_share: share * MBIT, parent: parent.map(str::to_owned), ..Rate::default() }
    }

    fn rates(leaves: &[(Vport, Rate)], nodes: &[(&str, Rate)]) -> TxRates {
        TxRates {
            leaves: leaves.iter().cloned().collect(),
            nodes: nodes.iter().map(|(name, rate)| ((*name).to_owned(), rate.clone())).collect(),
        }
    }

    fn tree(rates: &TxRates) -> (Minors, BTreeMap<u16, Class>) {
        let minors = Minors::default().with(rates).unwrap();
        let classes = of(rates, &minors);
        (minors, classes)
    }

    #[test]
    fn only_what_is_limited_has_a_class() {
        let leaves = [
            (Vport::Vf(0), rate(100, 0, None)),
            (Vport::Vf(1), rate(0, 50, None)),
            (Vport::Vf(2), rate(0, 0, Some("open"))),
            (Vport::Sf(3), rate(0, 0, Some("low"))),
            (Vport::HostPf, rate(10, 0, None)),
        ];
        let nodes = [
            ("open", rate(0, 0, None)),
            ("low", rate(0, 0, Some("high"))),
            ("high", rate(200, 0, None)),
            ("none", rate(5, 0, None)),
        ];
        let rates = rates(&leaves, &nodes);
        let (minors, classes) = tree(&rates);
        let [low, high] = ["low", "high"].map(|name| minors.0[name]);
        let numbers: Vec<u16> = classes.keys().copied().collect();
        let sf = Vport::Sf(3).number();
        let mut wanted = vec![1, sf, HOST_PF, low, high];
        wanted.sort_unstable();
        assert_eq!(numbers, wanted);
        assert_eq!((classes[&1].parent, classes[&1].rate, classes[&1].ceil), (0, 100 * MBIT, 100 * MBIT));
        assert_eq!((classes[&sf].parent, classes[&low].parent, classes[&high].parent), (low, high, 0));
        assert_eq!(rates.limit(Vport::Sf(3)), Some(200 * MBIT));
        for minor in numbers {
            assert_eq!(vport(minor).is_none(), minor == low || minor == high);
        }
    }

    #[test]
    fn the_children_of_a_node_are_never_promised_more_than_it_has() {
        let leaves = [(Vport::Vf(0), rate(0, 300, Some("top"))), (Vport::Vf(1), rate(0, 0, Some("sub")))];
        let nodes = [("top", rate(100, 0, None)), ("sub", rate(0, 100, Some("top")))];
        let (minors, classes) = tree(&rates(&leaves, &nodes));
        let sub = classes[&minors.0["sub"]];
        assert_eq!((sub.rate, sub.ceil), (25 * MBIT, LINK_SPEED));
        assert_eq!((classes[&1].rate, classes[&2].rate), (1, 1));
        assert_eq!(classes[&1].quantum, 375_000);
    }

    #[test]
    fn a_class_that_gets_another_parent_is_made_again_with_all_below_it() {
        let leaves = [(Vport::Vf(0), rate(0, 0, Some("b"))), (Vport::Vf(1), rate(7, 0, None))];
        let before = rates(&leaves, &[("a", rate(9, 0, None)), ("b", rate(0, 0, Some("a")))]);
        let after = rates(&leaves, &[("a", rate(9, 0, None)), ("b", rate(8, 0, None))]);
        let minors = Minors::default().with(&before).unwrap();
        let [a, b] = ["a", "b"].map(|name| minors.0[name]);
        let change = Change::between(&of(&before, &minors), &of(&after, &minors));
        assert_eq!(change, Change { deleted: vec![1, b, a], set: vec![(b, true), (1, true)] });
        let back = Change::between(&of(&after, &minors), &of(&before, &minors));
        assert_eq!(back, Change { deleted: vec![1, b], set: vec![(a, true), (b, true), (1, true)] });
        let limit = rates(&[leaves[0].clone(), (Vport::Vf(1), rate(6, 0, None))], &[("b", rate(8, 0, None))]);
        let change = Change::between(&of(&after, &minors), &of(&limit, &minors));
        assert_eq!(change, Change { deleted: vec![], set: vec![(2, false)] });
    }

    #[test]
    fn nodes_keep_their_numbers_and_are_recognised_by_their_children() {
        let leaves = [(Vport::Vf(0), rate(0, 0, Some("b")))];
        let first = rates(&leaves, &[("a", rate(9, 0, None)), ("b", rate(0, 0, Some("a"))), ("z", rate(1, 0, None))]);
        let mut minors = Minors::default().with(&rates(&[], &[("z", rate(1, 0, None))])).unwrap();
        minors = minors.with(&first).unwrap();
        assert_eq!(minors.0["z"], *NODES.start());
        let recognised = Minors::recognised(&first, &of(&first, &minors));
        assert_eq!((recognised.0["a"], recognised.0["b"], recognised.0.len()), (minors.0["a"], minors.0["b"], 2));
        assert_eq!(recognised.with(&first).unwrap().0.len(), 3);
    }
}
