//! Paths, links, and the numbers of nodes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// The number of the root.
pub const ROOT: u64 = 1;

/// The type of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A file.
    File,
    /// A symbolic link.
    Link,
}

/// The number of the node `name` in the directory `parent`. It depends on the node's kind too: a program that has a
/// directory open must not see it become a link.
pub fn number(parent: u64, name: &[u8], kind: Kind) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ parent.rotate_left(29);
    for byte in name.iter().chain(&[b'/', kind as u8]) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 29;
    if hash <= ROOT { hash + 2 } else { hash }
}

/// The number of the directory at a path from the root.
pub fn number_of_dir(path: &str) -> u64 {
    path.split('/').filter(|part| !part.is_empty()).fold(ROOT, |dir, name| number(dir, name.as_bytes(), Kind::Dir))
}

/// The target of a symbolic link in the directory `from` that leads to `to`. As the kernel's targets do, it ends with
/// the name of what it leads to: programs use that name.
pub fn relative(from: &str, to: &str) -> String {
    let same = from.bytes().zip(to.bytes()).take_while(|(a, b)| a == b).count();
    // Whole components, and never the last one of `to`.
    let common = match to.as_bytes().get(same) {
        Some(b'/') if same == from.len() && same > 0 => same + 1,
        _ => to.as_bytes()[..same].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1),
    };
    let above = from.get(common..).filter(|rest| !rest.is_empty());
    let ups = above.map_or(0, |rest| rest.bytes().filter(|byte| *byte == b'/').count() + 1);
    let mut path = String::with_capacity(3 * ups + to.len() - common);
    (0..ups).for_each(|_| path.push_str("../"));
    path.push_str(&to[common..]);
    path
}

/// The path to which a link in the directory `from` leads, if no component of `target` is a link itself.
pub fn follow(from: &str, target: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// A hasher for numbers that are hashes already.
#[derive(Default)]
pub struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// A map by the numbers of nodes.
pub type ByNumber<T> = HashMap<u64, T, BuildHasherDefault<Hashed>>;
