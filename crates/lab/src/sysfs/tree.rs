//! What a card has in `/sys`, as a tree: a pure function of what there is of the cards, without a file
//! system in it.
//!
//! Only what comes and goes with the card is made when the tree is: its directories and symbolic links. What
//! every directory of a kind has, its attributes above all, is in constant tables ([`Folder`]), and values
//! are made when they are read. A card with a thousand VFs has some ten thousand directories and half a
//! million attributes.
//!
//! A node's number is a hash of its path. It is the same in each tree, whatever came and went in between.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use control::Command;
use devlink::view;
use netlink::Errno;

/// The number of the root.
pub const ROOT: u64 = 1;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A file.
    File,
    /// A symbolic link.
    Link,
}

/// The number of what is called `name` in a directory. It depends on the kind too: a program that holds a
/// directory must not see it become a link.
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

/// What a symbolic link in the directory `from` must say to lead to `to`. As the kernel's do, it ends with the
/// name of what it leads to: programs look at that.
pub fn relative(from: &str, to: &str) -> String {
    let same = from.bytes().zip(to.bytes()).take_while(|(a, b)| a == b).count();
    // Whole components, of which the last of `to` is none.
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

/// The path that a link in the directory `from` leads to, if no component is a link itself.
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

/// Files of the kernel's own: what a value may depend on besides the card.
pub trait Kernel {
    /// Reads a file by its path under `/sys`.
    fn read(&self, path: &str) -> Option<Vec<u8>>;
    /// `/proc/modules`, if this kernel has modules.
    fn proc_modules(&self) -> Option<Vec<u8>>;
}

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

/// What an attribute is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Nothing in particular.
    Nothing,
    /// A driver on a bus: the directory says which.
    Driver,
    /// A PCI function: card, and place in the view's list.
    Function(usize, usize),
    /// A device on the auxiliary bus.
    Auxiliary(usize, usize),
    /// A netdev.
    Netdev(usize, usize),
    /// An RDMA device.
    Rdma(usize, usize),
    /// A port of an RDMA device: its place in the list.
    RdmaPort(usize, usize, usize),
    /// A module.
    Module(usize, usize),
}

/// What a read or a write of an attribute may look at.
pub struct Shown<'a> {
    /// The cards.
    pub cards: &'a [Option<Arc<view::Card>>],
    /// The directory.
    pub dir: &'a Dir,
    /// The rest of the world.
    pub kernel: &'a dyn Kernel,
}

impl<'a> Shown<'a> {
    fn at(&self, card: usize) -> Result<&'a view::Card, Errno> {
        self.cards.get(card).and_then(Option::as_deref).ok_or(Errno::NODEV)
    }

    /// The card the subject is of.
    pub fn card(&self) -> Result<&'a view::Card, Errno> {
        self.at(self.card_index()?)
    }

    /// The place of that card.
    pub fn card_index(&self) -> Result<usize, Errno> {
        match self.dir.subject {
            Subject::Nothing | Subject::Driver => Err(Errno::NODEV),
            Subject::Function(card, _)
            | Subject::Auxiliary(card, _)
            | Subject::Netdev(card, _)
            | Subject::Rdma(card, _)
            | Subject::RdmaPort(card, ..)
            | Subject::Module(card, _) => Ok(card),
        }
    }

    /// The subject, a PCI function.
    pub fn function(&self) -> Result<&'a view::Function, Errno> {
        let Subject::Function(card, at) = self.dir.subject else { return Err(Errno::NODEV) };
        self.at(card)?.functions.get(at).ok_or(Errno::NODEV)
    }

    /// The subject, a PF: what it has of SR-IOV.
    pub fn sriov(&self) -> Result<&'a view::Sriov, Errno> {
        self.function()?.sriov.as_ref().ok_or(Errno::NODEV)
    }

    /// The subject, a device on the auxiliary bus.
    pub fn auxiliary(&self) -> Result<&'a view::Auxiliary, Errno> {
        let Subject::Auxiliary(card, at) = self.dir.subject else { return Err(Errno::NODEV) };
        self.at(card)?.auxiliary.get(at).ok_or(Errno::NODEV)
    }

    /// The subject, a netdev.
    pub fn netdev(&self) -> Result<&'a view::Netdev, Errno> {
        let Subject::Netdev(card, at) = self.dir.subject else { return Err(Errno::NODEV) };
        self.at(card)?.netdevs.get(at).ok_or(Errno::NODEV)
    }

    /// The subject, an RDMA device or a port of it.
    pub fn rdma(&self) -> Result<&'a view::RdmaDevice, Errno> {
        match self.dir.subject {
            Subject::Rdma(card, at) | Subject::RdmaPort(card, at, _) => self.at(card)?.rdma.get(at).ok_or(Errno::NODEV),
            _ => Err(Errno::NODEV),
        }
    }

    /// The subject, a port of an RDMA device.
    pub fn rdma_port(&self) -> Result<&'a view::RdmaPort, Errno> {
        let Subject::RdmaPort(_, _, port) = self.dir.subject else { return Err(Errno::NODEV) };
        self.rdma()?.ports.get(port).ok_or(Errno::NODEV)
    }

    /// The subject, a module.
    pub fn module(&self) -> Result<&'a view::Module, Errno> {
        let Subject::Module(card, at) = self.dir.subject else { return Err(Errno::NODEV) };
        self.at(card)?.modules.get(at).ok_or(Errno::NODEV)
    }

    /// Every card that is up, with its place.
    pub fn every_card(&self) -> impl Iterator<Item = (usize, &'a view::Card)> {
        self.cards.iter().enumerate().filter_map(|(at, card)| Some((at, card.as_deref()?)))
    }
}

/// What is to be done about something written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing; it is fine.
    Nothing,
    /// Nothing, of whoever has CAP_SYS_ADMIN; others are refused.
    NothingOfAdministrators,
    /// A card is to carry out a command, or each of them.
    Perform {
        /// Which card, counted from 0; `None`: each.
        card: Option<usize>,
        /// The command.
        command: Command,
    },
    /// It is for the kernel's file of the same path.
    Kernel,
}

/// What a read gives.
pub type Text = Result<Vec<u8>, Errno>;

/// Makes a value.
pub type Read = fn(&Shown<'_>) -> Text;

/// Says what is to be done about a text, which is without the newline at its end.
pub type Write = fn(&Shown<'_>, &str) -> Result<Act, Errno>;

/// An attribute: a file with a value.
pub struct Attribute {
    /// Its name.
    pub name: &'static str,
    /// Its permissions.
    pub mode: u16,
    /// How long it says it is.
    pub size: u64,
    /// What reading gives.
    pub read: Option<Read>,
    /// What writing does.
    pub write: Option<Write>,
}

const PAGE: u64 = 4096;

impl Attribute {
    /// One that can be read.
    pub const fn ro(name: &'static str, read: Read) -> Self {
        Self { name, mode: 0o444, size: PAGE, read: Some(read), write: None }
    }

    /// One that can be read and written.
    pub const fn rw(name: &'static str, read: Read, write: Write) -> Self {
        Self { name, mode: 0o644, size: PAGE, read: Some(read), write: Some(write) }
    }

    /// One that can be written.
    pub const fn wo(name: &'static str, write: Write) -> Self {
        Self { name, mode: 0o200, size: PAGE, read: None, write: Some(write) }
    }
}

/// What each directory of a kind has.
pub struct Folder {
    /// Its name, where it is in another folder.
    pub name: &'static str,
    /// Its attributes, in groups.
    pub attributes: &'static [&'static [Attribute]],
    /// Directories in it that have nothing but attributes.
    pub folders: &'static [Folder],
}

impl Folder {
    /// One with attributes.
    pub const fn of(attributes: &'static [&'static [Attribute]]) -> Self {
        Self { name: "", attributes, folders: &[] }
    }

    /// An attribute.
    pub fn attribute(&self, name: &str) -> Option<&'static Attribute> {
        self.attributes.iter().flat_map(|group| group.iter()).find(|attribute| attribute.name == name)
    }

    /// A directory.
    pub fn folder(&self, name: &str) -> Option<&'static Folder> {
        self.folders.iter().find(|folder| folder.name == name)
    }
}

/// A directory without anything constant in it.
pub static PLAIN: Folder = Folder::of(&[]);

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

/// For numbers that are hashes already.
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

/// A map by node numbers.
pub type ByNumber<T> = HashMap<u64, T, BuildHasherDefault<Hashed>>;

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
