//! The nodes that the kernel holds: each node that it has looked up and not forgotten, with its parent and its name. A
//! node's number is the hash of its path, so a node that is looked up again gets the same number.

use std::ffi::OsStr;

use lockdep::{Locked, Mutex};

use super::tree::ByNumber;
use crate::lock_order;

/// A node that the kernel holds.
#[derive(Debug)]
struct Node {
    parent: u64,
    name: Box<OsStr>,
    /// How often the kernel has looked it up, less how often it has forgotten it.
    lookups: u64,
}

/// All nodes that the kernel holds, by number.
pub(super) struct Nodes(Mutex<lock_order::Nodes, ByNumber<Node>>);

impl Default for Nodes {
    fn default() -> Self {
        Self(Mutex::new(ByNumber::default()))
    }
}

impl Nodes {
    /// Counts a lookup of a node.
    pub(super) fn hold<L>(&self, cx: &mut Locked<'_, L>, number: u64, parent: u64, name: &OsStr) {
        self.hold_all(cx, parent, std::iter::once((number, name)));
    }

    /// Counts lookups of several nodes of one directory.
    pub(super) fn hold_all<'a, L>(
        &self,
        cx: &mut Locked<'_, L>,
        parent: u64,
        found: impl Iterator<Item = (u64, &'a OsStr)>,
    ) {
        let mut nodes = self.0.lock_leaf(cx);
        for (number, name) in found {
            let node = nodes.entry(number).or_insert_with(|| Node { parent, name: name.into(), lookups: 0 });
            node.lookups += 1;
        }
    }

    /// Counts that the kernel has forgotten a node `times` times.
    pub(super) fn forget<L>(&self, cx: &mut Locked<'_, L>, number: u64, times: u64) {
        let mut nodes = self.0.lock_leaf(cx);
        let Some(node) = nodes.get_mut(&number) else { return };
        if node.lookups > times {
            node.lookups -= times;
        } else {
            nodes.remove(&number);
        }
    }

    /// A node's parent, and its name there. `None`: the kernel does not hold it.
    pub(super) fn of<L>(&self, cx: &mut Locked<'_, L>, number: u64) -> Option<(u64, Box<OsStr>)> {
        self.0.lock_leaf(cx).get(&number).map(|node| (node.parent, node.name.clone()))
    }

    /// How many nodes the kernel holds.
    #[cfg(test)]
    pub(super) fn count<L>(&self, cx: &mut Locked<'_, L>) -> usize {
        self.0.lock_leaf(cx).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_gone_once_it_was_forgotten_as_often_as_it_was_looked_up() {
        lockdep::enter(&lock_order::domain(true), "test", |cx| {
            let nodes = Nodes::default();
            nodes.hold(cx, 7, 1, OsStr::new("a"));
            nodes.hold(cx, 7, 1, OsStr::new("a"));
            nodes.hold_all(cx, 1, [(7, OsStr::new("a")), (8, OsStr::new("b"))].into_iter());
            nodes.forget(cx, 7, 2);
            assert_eq!(nodes.of(cx, 7), Some((1, OsStr::new("a").into())));
            nodes.forget(cx, 7, 1);
            nodes.forget(cx, 9, 1);
            assert_eq!(nodes.count(cx), 1);
        });
    }
}
