//! A graph of numbers that grows. Whether it has an edge can be read without a lock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A list that grows and never moves its items: bucket `b` has `2^b` items.
#[derive(Debug)]
struct Growing<T>([OnceLock<Box<[T]>>; 32]);

impl<T: Default> Growing<T> {
    const fn new() -> Self {
        Self([const { OnceLock::new() }; 32])
    }

    /// Returns the bucket and the place in it.
    fn place(index: u32) -> (usize, usize) {
        let bucket = (index + 1).ilog2();
        (bucket as usize, (index + 1 - (1 << bucket)) as usize)
    }

    /// Returns the item, if its bucket exists.
    #[inline]
    fn get(&self, index: u32) -> Option<&T> {
        let (bucket, place) = Self::place(index);
        self.0[bucket].get().map(|bucket| &bucket[place])
    }

    fn get_or_grow(&self, index: u32) -> &T {
        let (bucket, place) = Self::place(index);
        &self.0[bucket].get_or_init(|| (0..1_usize << bucket).map(|_| T::default()).collect())[place]
    }
}

/// The numbers to which one number has edges, as bits.
#[derive(Debug)]
struct Row(Growing<AtomicU64>);

impl Default for Row {
    fn default() -> Self {
        Self(Growing::new())
    }
}

/// The graph. Edges are added and never removed.
#[derive(Debug)]
pub(crate) struct Graph {
    rows: Growing<Row>,
    edges: AtomicU32,
}

impl Graph {
    /// Makes a graph without edges.
    pub const fn new() -> Self {
        Self { rows: Growing::new(), edges: AtomicU32::new(0) }
    }

    /// Returns the number of edges.
    pub fn edge_count(&self) -> u32 {
        self.edges.load(Ordering::Relaxed)
    }

    /// Returns whether the graph has this edge.
    #[inline]
    pub fn has(&self, from: u32, to: u32) -> bool {
        let word = self.rows.get(from).and_then(|row| row.0.get(to / 64));
        word.is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (to % 64)) != 0)
    }

    /// Adds an edge, if the graph does not have it.
    pub fn add(&self, from: u32, to: u32) {
        let bit = 1 << (to % 64);
        let before = self.rows.get_or_grow(from).0.get_or_grow(to / 64).fetch_or(bit, Ordering::Relaxed);
        self.edges.fetch_add(u32::from(before & bit == 0), Ordering::Relaxed);
    }

    /// Returns a shortest path from one number to another, if one exists. Only numbers less than `among` are considered.
    pub fn path(&self, from: u32, to: u32, among: u32) -> Option<Vec<u32>> {
        let mut previous = BTreeMap::from([(from, None)]);
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            if at == to {
                let mut path = vec![to];
                let mut step = to;
                while let Some(before) = previous[&step] {
                    path.push(before);
                    step = before;
                }
                path.reverse();
                return Some(path);
            }
            for next in (0..among).filter(|next| self.has(at, *next)) {
                previous.entry(next).or_insert_with(|| {
                    queue.push_back(next);
                    Some(at)
                });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_what_was_added_and_nothing_else() {
        let graph = Graph::new();
        let edges = [(0, 0), (0, 63), (0, 64), (64, 0), (200, 1_000), (1_000, 200), (5, 5)];
        for (from, to) in edges {
            assert!(!graph.has(from, to));
            graph.add(from, to);
            graph.add(from, to);
        }
        assert_eq!(graph.edge_count(), 7);
        for (from, to) in (0..1_100).flat_map(|from| [0, 1, 5, 63, 64, 200, 999, 1_000].map(|to| (from, to))) {
            assert_eq!(graph.has(from, to), edges.contains(&(from, to)), "{from} {to}");
        }
    }

    #[test]
    fn a_path_is_the_shortest() {
        let graph = Graph::new();
        for (from, to) in [(1, 2), (2, 3), (3, 100), (1, 70), (70, 100)] {
            graph.add(from, to);
        }
        assert_eq!(graph.path(1, 100, 101), Some(vec![1, 70, 100]));
        assert_eq!(graph.path(100, 1, 101), None);
        assert_eq!(graph.path(4, 4, 101), Some(vec![4]));
    }
}
