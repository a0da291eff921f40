//! What a card has in `/sys`, as a tree: a pure function of what there is of the cards, without a file
//! system in it.
//!
//! Only what comes and goes with the card is made when the tree is: its directories and symbolic links. What
//! every directory of a kind has, its attributes above all, is in constant tables ([`Folder`]), and values
//! are made when they are read. A card with a thousand VFs has some ten thousand directories and half a
//! million attributes.
//!
//! A node's number is a hash of its path. It is the same in each tree, whatever came and went in between.

mod attribute;
mod path;
mod shown;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use devlink::view;

pub use attribute::{Act, Attribute, Folder, PLAIN, Read, Text, Write};
pub use path::{ByNumber, Hashed, Kind, ROOT, follow, number, number_of_dir, relative};
pub use shown::{Kernel, Shown, Subject};

/// Where in the kernel's trees something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Under {
    /// In which.
    pub base: Base,
    /// The path from there.
    pub path: String,
}

/// A tree of the kernel's, or of the system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// `/sys`.
    Sys,
    /// `/lib/modules`.
    Modules,
}

/// What a directory has that is not constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory: it is in the tree under its own number.
    Dir,
    /// A symbolic link, and what it says.
    Link(String),
    /// A file of `/lib/modules`.
    Library(LibraryFile),
}

/// A file that modules are looked up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibraryFile {
    /// A module: card, and place in the view's list.
    Module(usize, usize),
    /// An index, by its name, with what the system has in it too.
    Index(&'static str),
    /// An index that is the system's if it has it, and else empty.
    Filler(&'static str),
}

/// What a directory has to do with netdevs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Netdevs {
    /// Nothing.
    None,
    /// Each link in it is there if the kernel has one of that name.
    Linked,
    /// The kernel has those of the cards in it, which are shown elsewhere.
    Hidden,
}

/// A directory.
pub struct Dir {
    /// Its number.
    pub number: u64,
    /// Its path from the root.
    pub path: String,
    /// What of the kernel's is seen through it.
    pub under: Option<Under>,
    /// What it has as all of its kind have.
    pub folder: &'static Folder,
    /// What its attributes are about.
    pub subject: Subject,
    /// What else it has.
    pub entries: BTreeMap<Box<str>, Entry>,
    /// It is there for as long as the lab is.
    pub lasting: bool,
    /// It is there if the kernel has this.
    pub needs: Option<String>,
    /// What it has to do with netdevs.
    pub netdevs: Netdevs,
}

/// Everything that cards have in `/sys` and `/lib/modules`.
pub struct Tree {
    /// What it was made from.
    pub cards: Vec<Option<Arc<view::Card>>>,
    dirs: ByNumber<Dir>,
    netdevs: HashMap<String, String>,
}

impl Tree {
    /// Makes the tree. `release`: what `uname -r` says.
    pub fn new(cards: Vec<Option<Arc<view::Card>>>, release: &str) -> Self {
        let mut tree = Self { cards: cards.clone(), dirs: ByNumber::default(), netdevs: HashMap::new() };
        super::bus::root(&mut tree, release);
        for (at, card) in cards.iter().enumerate() {
            let Some(card) = card else { continue };
            let of = super::bus::Of::new(card, at, release);
            // Drivers first: devices are linked from them.
            super::bus::add_modules(&mut tree, &of);
            super::pci::add(&mut tree, &of);
            super::bus::add_auxiliary(&mut tree, &of);
            super::net::add(&mut tree, &of);
            super::rdma::add(&mut tree, &of);
        }
        tree
    }

    /// A directory by its number.
    pub fn dir(&self, number: u64) -> Option<&Dir> {
        self.dirs.get(&number)
    }

    /// A directory by its path from the root.
    pub fn dir_at(&self, path: &str) -> Option<&Dir> {
        self.dirs.get(&number_of_dir(path))
    }

    /// Where a netdev of a card is shown.
    pub fn netdev(&self, name: &str) -> Option<&str> {
        self.netdevs.get(name).map(String::as_str)
    }

    /// Makes a directory, or finds it, and says how to fill it in. Its parent must be there.
    pub(super) fn make(&mut self, path: &str, folder: &'static Folder, subject: Subject) -> &mut Dir {
        let number = match path.rsplit_once('/') {
            Some((parent, name)) => self.enter(number_of_dir(parent), name),
            None => self.enter(ROOT, path),
        };
        self.dirs.entry(number).or_insert_with(|| Dir {
            number,
            path: path.to_owned(),
            under: None,
            folder,
            subject,
            entries: BTreeMap::new(),
            lasting: false,
            needs: None,
            netdevs: Netdevs::None,
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

    /// Makes a directory through which the kernel's of the same path is seen.
    pub(super) fn make_over(&mut self, path: &str, folder: &'static Folder) -> &mut Dir {
        let dir = self.make(path, folder, Subject::Nothing);
        dir.under = Some(Under { base: Base::Sys, path: path.to_owned() });
        dir.lasting = true;
        dir
    }

    /// A directory that is there, to change it.
    pub(super) fn existing(&mut self, path: &str) -> Option<&mut Dir> {
        self.dirs.get_mut(&number_of_dir(path))
    }

    /// Makes a symbolic link in a directory that is there.
    pub(super) fn link(&mut self, dir: &str, name: &str, to: &str) {
        if let Some(found) = self.dirs.get_mut(&number_of_dir(dir)) {
            found.entries.insert(name.into(), Entry::Link(relative(dir, to)));
        }
    }

    pub(super) fn netdev_is_at(&mut self, name: &str, path: &str) {
        self.netdevs.insert(name.to_owned(), path.to_owned());
    }
}
