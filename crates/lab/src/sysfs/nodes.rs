//! What the kernel holds of the tree: for each node it has looked up and not forgotten, its parent and its
//! name. A node's number is the hash of its path, so that it gets the same one again.

use std::ffi::OsStr;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::tree::ByNumber;

/// A node that the kernel holds.
#[derive(Debug)]
struct Node {
    parent: u64,
    name: Box<OsStr>,
    held: AtomicU64,
}

/// All of them.
#[derive(Default)]
pub(super) struct Nodes(RwLock<ByNumber<Node>>);

impl Nodes {
    /// The kernel gets to know a node, once more.
    pub(super) fn hold(&self, number: u64, parent: u64, name: &OsStr) {
        if let Some(node) = self.0.read().get(&number) {
            node.held.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut nodes = self.0.write();
        let node = nodes.entry(number).or_insert_with(|| Node { parent, name: name.into(), held: AtomicU64::new(0) });
        node.held.fetch_add(1, Ordering::Relaxed);
    }

    /// The kernel gets to know several, in one directory.
    pub(super) fn hold_all<'a>(&self, parent: u64, found: impl Iterator<Item = (u64, &'a OsStr)>) {
        let mut nodes = self.0.write();
        for (number, name) in found {
            let node =
                nodes.entry(number).or_insert_with(|| Node { parent, name: name.into(), held: AtomicU64::new(0) });
            node.held.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The kernel forgets a node as often as it says.
    pub(super) fn forget(&self, number: u64, times: u64) {
        let left = |node: &Node| node.held.load(Ordering::Relaxed) > times;
        {
            let nodes = self.0.read();
            let Some(node) = nodes.get(&number) else { return };
            if left(node) {
                node.held.fetch_sub(times, Ordering::Relaxed);
                return;
            }
        }
        let mut nodes = self.0.write();
        let Some(node) = nodes.get(&number) else { return };
        if left(node) {
            node.held.fetch_sub(times, Ordering::Relaxed);
        } else {
            nodes.remove(&number);
        }
    }

    /// Where a node is: its parent, and its name there.
    pub(super) fn of(&self, number: u64) -> Option<(u64, Box<OsStr>)> {
        self.0.read().get(&number).map(|node| (node.parent, node.name.clone()))
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.read().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_as_often_as_it_was_looked_up_is_gone() {
        let nodes = Nodes::default();
        nodes.hold(7, 1, OsStr::new("a"));
        nodes.hold(7, 1, OsStr::new("a"));
        nodes.hold_all(1, [(7, OsStr::new("a")), (8, OsStr::new("b"))].into_iter());
        nodes.forget(7, 2);
        assert_eq!(nodes.of(7), Some((1, OsStr::new("a").into())));
        nodes.forget(7, 1);
        nodes.forget(9, 1);
        assert_eq!(nodes.count(), 1);
    }
}
