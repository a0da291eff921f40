//! What the cards have in `/sys` and `/lib/modules`, as a tree: a pure function of the cards' views, which knows of no
//! file system.
//!
//! The tree contains only what appears and disappears with a card: directories and symbolic links. What every directory
//! of a kind has, above all its attributes, is in constant tables ([`Template`]), and values are made when they are
//! read. A card with a thousand VFs has some ten thousand directories and half a million attributes.
//!
//! A node's number is a hash of its path. So it is the same in every tree, whatever has been added and removed in
//! between.

mod attribute;
mod context;
mod path;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use devlink::view;

pub use attribute::{Act, Attribute, EMPTY, Read, Template, Text, Write};
pub use context::{AttributeContext, Kernel, Subject};
pub use path::{ByNumber, Hashed, Kind, ROOT, follow, number, number_of_dir, relative};

/// A path in a lower tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowerPath {
    /// The tree.
    pub base: LowerTree,
    /// The path from the tree's root.
    pub path: String,
}

/// A tree that is seen where the cards' tree has nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LowerTree {
    /// The kernel's `/sys`.
    Sys,
    /// The system's `/lib/modules`.
    Modules,
}

/// An entry of a directory that is not in its template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory, which is in the tree under its own number.
    Dir,
    /// A symbolic link, and its target.
    Link(String),
    /// A file of `/lib/modules`.
    Library(LibraryFile),
}

/// A file of `/lib/modules`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibraryFile {
    /// A module: the index of the card, and the index in its view's list.
    Module(usize, usize),
    /// An index, by its name: the cards' modules and the system's.
    Index(&'static str),
    /// A file, by its name: the system's if it has one, else an empty one.
    Filler(&'static str),
}

/// A directory.
pub struct Dir {
    /// Its number.
    pub number: u64,
    /// Its path from the root.
    pub path: String,
    /// The directory of a lower tree that is seen through it.
    pub lower: Option<LowerPath>,
    /// What every directory of its kind has.
    pub template: &'static Template,
    /// What its attributes are about.
    pub subject: Subject,
    /// Of a port of an RDMA device: the name of its netdev in the network namespace that is shown, if it is there.
    pub netdev: Option<Box<str>>,
    /// What else it contains, by name.
    pub entries: BTreeMap<Box<str>, Entry>,
    /// Whether it exists as long as the lab does.
    pub lasting: bool,
    /// The kernel's directory contains the cards' netdevs. They are not seen through this one.
    pub hides_netdevs: bool,
}

/// The names that the netdevs and RDMA devices of the card with an index have in the network namespace which `/sys` shows.
/// `None`: it is not there.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    /// Of a netdev.
    pub netdev: &'a dyn Fn(usize, &view::Netdev) -> Option<String>,
    /// Of an RDMA device.
    pub rdma: &'a dyn Fn(usize, &view::RdmaDevice) -> Option<String>,
}

impl Names<'static> {
    /// Nothing is there.
    pub const NONE: Self = Self { netdev: &|_, _| None, rdma: &|_, _| None };
    /// Everything is there, under the names that the views have.
    pub const AS_IN_VIEW: Self =
        Self { netdev: &|_, netdev| Some(netdev.name.clone()), rdma: &|_, device| Some(device.name.clone()) };
}

/// Everything that cards have in `/sys` and `/lib/modules`.
pub struct Tree {
    /// The views from which it was made; `None`: the card is gone.
    pub cards: Vec<Option<Arc<view::Card>>>,
    dirs: ByNumber<Dir>,
    netdevs: HashMap<String, String>,
    /// The netdevs that a card is making or deleting.
    unpublished: HashSet<String>,
}

impl Tree {
    /// Makes the tree from the cards' views. `release`: the kernel's release, as `uname -r` prints it.
    pub fn new(cards: Vec<Option<Arc<view::Card>>>, release: &str, names: &Names<'_>) -> Self {
        let mut tree = Self {
            cards: cards.clone(),
            dirs: ByNumber::default(),
            netdevs: HashMap::new(),
            unpublished: HashSet::new(),
        };
        super::bus::root(&mut tree, release);
        for (at, card) in cards.iter().enumerate() {
            let Some(card) = card else { continue };
            let added = super::bus::AddedCard::new(card, at, release);
            // Drivers first: their directories link to devices.
            super::bus::add_modules(&mut tree, &added);
            super::pci::add(&mut tree, &added);
            super::bus::add_auxiliary(&mut tree, &added);
            super::net::add(&mut tree, &added, names.netdev);
            super::rdma::add(&mut tree, &added, names);
        }
        tree
    }

    /// Every directory.
    pub fn each(&self) -> impl Iterator<Item = &Dir> {
        self.dirs.values()
    }

    /// A directory by its number.
    pub fn dir(&self, number: u64) -> Option<&Dir> {
        self.dirs.get(&number)
    }

    /// A directory by its path from the root.
    pub fn dir_at(&self, path: &str) -> Option<&Dir> {
        self.dirs.get(&number_of_dir(path))
    }

    /// The path under which a card's netdev is shown.
    pub fn netdev(&self, name: &str) -> Option<&str> {
        self.netdevs.get(name).map(String::as_str)
    }

    /// Hides netdevs, by their names in the kernel.
    pub(super) fn hide(&mut self, names: HashSet<String>) {
        self.unpublished = names;
    }

    /// Whether the netdev of the kernel that has a name is not seen in a directory.
    pub(super) fn hides(&self, dir: &Dir, name: &str) -> bool {
        !dir.entries.contains_key(name) && (self.netdevs.contains_key(name) || self.unpublished.contains(name))
    }

    /// Makes a directory, unless it exists, and returns it. Its parent must exist.
    pub(super) fn make(&mut self, path: &str, template: &'static Template, subject: Subject) -> &mut Dir {
        let number = match path.rsplit_once('/') {
            Some((parent, name)) => self.enter(number_of_dir(parent), name),
            None => self.enter(ROOT, path),
        };
        self.dirs.entry(number).or_insert_with(|| Dir {
            number,
            path: path.to_owned(),
            lower: None,
            template,
            subject,
            netdev: None,
            entries: BTreeMap::new(),
            lasting: false,
            hides_netdevs: false,
        })
    }

    fn enter(&mut self, parent: u64, name: &str) -> u64 {
        if name.is_empty() {
            return ROOT;
        }
        if let Some(dir) = self.dirs.get_mut(&parent) {
            dir.entries.entry(name.into()).or_insert(Entry::Dir);
        }
        number(parent, name.as_bytes(), Kind::Dir)
    }

    /// Makes a directory through which the kernel's directory of the same path is seen.
    pub(super) fn make_over(&mut self, path: &str, template: &'static Template) -> &mut Dir {
        let dir = self.make(path, template, Subject::Nothing);
        dir.lower = Some(LowerPath { base: LowerTree::Sys, path: path.to_owned() });
        dir.lasting = true;
        dir
    }

    /// An existing directory, to change it.
    pub(super) fn existing(&mut self, path: &str) -> Option<&mut Dir> {
        self.dirs.get_mut(&number_of_dir(path))
    }

    /// Makes a symbolic link to the path `to` in an existing directory.
    pub(super) fn link(&mut self, dir: &str, name: &str, to: &str) {
        if let Some(found) = self.dirs.get_mut(&number_of_dir(dir)) {
            found.entries.insert(name.into(), Entry::Link(relative(dir, to)));
        }
    }

    pub(super) fn netdev_is_at(&mut self, name: &str, path: &str) {
        self.netdevs.insert(name.to_owned(), path.to_owned());
    }
}
