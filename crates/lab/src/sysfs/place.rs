//! What is where: the cards' tree first, and what is beneath seen through it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use netlink::Errno;
use parking_lot::{Mutex, RwLock};

use super::library::{Contents, Indexes, module_file};
use super::nodes::Nodes;
use super::tree::{
    Attribute, Base, Dir, Entry, Folder, Kind, LibraryFile, Netdevs, Shown, Tree, Under, follow, number, relative,
};
use super::under::{Beneath, Found, list};
use crate::Card;

/// Where a node is.
pub(super) enum Place<'t> {
    /// A directory of the tree.
    Dir(&'t Dir),
    /// One that each of its kind has.
    Folder(&'t Dir, &'static Folder),
    /// An attribute.
    Attribute(&'t Dir, &'static Attribute),
    /// A symbolic link.
    Link(&'t str),
    /// A file of `/lib/modules`.
    Library(LibraryFile),
    /// Something beneath.
    Under(Under),
}

/// What a directory has in it.
pub(super) struct Listed<'t> {
    pub(super) name: Box<OsStr>,
    pub(super) kind: Kind,
    /// Where it is, unless it is beneath.
    pub(super) place: Option<Place<'t>>,
}

/// What is in a directory, and what is beneath it.
type List<'t> = (Vec<Listed<'t>>, Option<OwnedFd>);

/// All that is shown, and what it is shown by.
pub(super) struct Scene {
    pub(super) cards: Vec<Arc<dyn Card>>,
    pub(super) beneath: Beneath,
    pub(super) nodes: Nodes,
    release: String,
    tree: RwLock<Arc<Tree>>,
    changing: Mutex<()>,
    indexes: Mutex<Option<(Contents, Arc<Indexes>)>>,
}

impl Scene {
    pub(super) fn new(cards: Vec<Arc<dyn Card>>, beneath: Beneath, release: String) -> Self {
        let nobody = Tree::new(vec![None; cards.len()], &release);
        Self {
            cards,
            beneath,
            nodes: Nodes::default(),
            release,
            tree: RwLock::new(Arc::new(nobody)),
            changing: Mutex::new(()),
            indexes: Mutex::new(None),
        }
    }

    /// The tree of now. It is made anew if a card has changed; of one that has gone nothing is in it.
    pub(super) fn tree(&self) -> Arc<Tree> {
        if let Some(tree) = self.current() {
            return tree;
        }
        let _one_at_a_time = self.changing.lock();
        if let Some(tree) = self.current() {
            return tree;
        }
        let views = self.cards.iter().map(|card| card.view().ok()).collect();
        let tree = Arc::new(Tree::new(views, &self.release));
        *self.tree.write() = Arc::clone(&tree);
        tree
    }

    /// The tree there is, if no card has changed since.
    fn current(&self) -> Option<Arc<Tree>> {
        let tree = Arc::clone(&self.tree.read());
        let same = self.cards.iter().zip(&tree.cards).all(|(card, shown)| match (card.view(), shown) {
            (Ok(view), Some(shown)) => Arc::ptr_eq(&view, shown),
            (Err(_), None) => true,
            _ => false,
        });
        same.then_some(tree)
    }

    /// What attributes of a directory are read and written with.
    pub(super) fn shown<'a>(&'a self, tree: &'a Tree, dir: &'a Dir) -> Shown<'a> {
        Shown { cards: &tree.cards, dir, kernel: &self.beneath }
    }

    /// Where a node is that the kernel holds.
    pub(super) fn locate<'t>(&self, tree: &'t Tree, at: u64) -> Result<Place<'t>, Errno> {
        if let Some(dir) = tree.dir(at) {
            return Ok(Place::Dir(dir));
        }
        let (parent, name) = self.nodes.of(at).ok_or(Errno::STALE)?;
        let parent = self.locate(tree, parent)?;
        self.child(tree, &parent, &name)
    }

    /// What is called `name` in a directory. Of what is beneath, it is not known yet whether it is there.
    pub(super) fn child<'t>(&self, tree: &'t Tree, parent: &Place<'t>, name: &OsStr) -> Result<Place<'t>, Errno> {
        match parent {
            Place::Dir(dir) => self.in_dir(tree, dir, name),
            Place::Folder(dir, folder) => {
                name.to_str().and_then(|name| in_folder(dir, folder, name)).ok_or(Errno::NOENT)
            }
            Place::Under(under) => Ok(Place::Under(below(under, name)?)),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn in_dir<'t>(&self, tree: &'t Tree, dir: &'t Dir, name: &OsStr) -> Result<Place<'t>, Errno> {
        let text = name.to_str().ok_or(Errno::NOENT)?;
        if let Some(place) = in_folder(dir, dir.folder, text) {
            return Ok(place);
        }
        if dir.netdevs == Netdevs::Hidden && tree.netdev(text).is_some() {
            return Err(Errno::NOENT);
        }
        let under = || Ok(Place::Under(below(dir.under.as_ref().ok_or(Errno::NOENT)?, name)?));
        match dir.entries.get(text) {
            Some(Entry::Dir) => {
                let path = number(dir.number, text.as_bytes(), Kind::Dir);
                tree.dir(path).map(Place::Dir).ok_or(Errno::NOENT)
            }
            Some(Entry::Link(_)) if dir.netdevs == Netdevs::Linked && !self.has_beneath(dir, name) => Err(Errno::NOENT),
            Some(Entry::Link(target)) => Ok(Place::Link(target)),
            Some(Entry::Library(LibraryFile::Filler(_))) if self.has_beneath(dir, name) => under(),
            Some(Entry::Library(file)) => Ok(Place::Library(*file)),
            None => under(),
        }
    }

    fn has_beneath(&self, dir: &Dir, name: &OsStr) -> bool {
        dir.under.as_ref().is_some_and(|under| self.beneath.status(under, name).is_ok())
    }

    /// Whether a directory of the tree is there now.
    pub(super) fn is_there(&self, dir: &Dir) -> bool {
        dir.needs.as_ref().is_none_or(|path| self.beneath.has(path))
    }

    /// What is in a directory; and, if something is beneath it, that.
    pub(super) fn list<'t>(&self, tree: &'t Tree, place: &Place<'t>) -> Result<List<'t>, Errno> {
        let (under, dir) = match place {
            Place::Dir(dir) => (dir.under.as_ref(), Some(*dir)),
            Place::Folder(dir, folder) => {
                let mut listed = Vec::new();
                list_folder(dir, folder, &mut listed);
                return Ok((listed, None));
            }
            Place::Under(under) => (Some(under), None),
            _ => return Err(Errno::NOTDIR),
        };
        let fd = match under.map(|under| self.beneath.open_dir(under)) {
            Some(Ok(fd)) => Some(fd),
            // Merged with nothing.
            Some(Err(Errno::NOENT | Errno::NOTDIR)) if dir.is_some() => None,
            Some(Err(error)) => return Err(error),
            None => None,
        };
        let beneath = fd.as_ref().map_or_else(|| Ok(Vec::new()), list)?;
        let mut listed = Vec::with_capacity(beneath.len() + 16);
        if let Some(dir) = dir {
            list_folder(dir, dir.folder, &mut listed);
            self.list_entries(tree, dir, &beneath, &mut listed);
        }
        let seen = beneath.into_iter().filter(|found| dir.is_none_or(|dir| !covers(tree, dir, &found.name)));
        listed.extend(seen.map(|found| Listed { name: found.name, kind: found.kind, place: None }));
        Ok((listed, fd))
    }

    fn list_entries<'t>(&self, tree: &'t Tree, dir: &'t Dir, beneath: &[Found], listed: &mut Vec<Listed<'t>>) {
        let linked = dir.netdevs == Netdevs::Linked;
        let only: HashSet<&OsStr> = beneath.iter().filter(|_| linked).map(|found| &*found.name).collect();
        for (name, entry) in &dir.entries {
            let name = OsStr::new(&**name);
            if linked && !only.contains(name) {
                continue;
            }
            let (kind, place) = match entry {
                Entry::Dir => {
                    let number = number(dir.number, name.as_encoded_bytes(), Kind::Dir);
                    match tree.dir(number).filter(|dir| self.is_there(dir)) {
                        Some(dir) => (Kind::Dir, Place::Dir(dir)),
                        None => continue,
                    }
                }
                Entry::Link(target) => (Kind::Link, Place::Link(target)),
                Entry::Library(LibraryFile::Filler(_)) if self.has_beneath(dir, name) => continue,
                Entry::Library(file) => (Kind::File, Place::Library(*file)),
            };
            listed.push(Listed { name: name.into(), kind, place: Some(place) });
        }
    }

    /// What is in a file of `/lib/modules`.
    pub(super) fn library(&self, tree: &Tree, file: LibraryFile) -> Result<Arc<[u8]>, Errno> {
        match file {
            LibraryFile::Module(card, at) => {
                let card = tree.cards.get(card).and_then(Option::as_ref).ok_or(Errno::NODEV)?;
                let module = card.modules.get(at).ok_or(Errno::NODEV)?;
                Ok(module_file(&card.profile, module, &self.release).into())
            }
            LibraryFile::Index(name) | LibraryFile::Filler(name) => Ok(self.indexes(tree).get(name)),
        }
    }

    fn indexes(&self, tree: &Tree) -> Arc<Indexes> {
        let contents = Contents::of(&tree.cards);
        let mut indexes = self.indexes.lock();
        match &*indexes {
            Some((of, found)) if *of == contents => Arc::clone(found),
            _ => {
                let read = |name: &str| self.beneath.read_modules(&format!("{}/{name}", self.release));
                let made = Arc::new(Indexes::new(&contents, read));
                *indexes = Some((contents, Arc::clone(&made)));
                made
            }
        }
    }

    /// What a symbolic link beneath says here. It leads to the same as beneath, but a card's netdev is
    /// elsewhere, as are links in its directory.
    pub(super) fn link_beneath(&self, tree: &Tree, at: u64, place: &Under) -> Result<String, Errno> {
        let target = self.beneath.link(place)?;
        if target.starts_with('/') || place.base != Base::Sys {
            return Ok(target);
        }
        let (parent, _) = self.nodes.of(at).ok_or(Errno::STALE)?;
        let here = self.path(tree, parent)?;
        let there = self.beneath_path(place.path.rsplit_once('/').map_or("", |(dir, _)| dir));
        let leads_to = follow(&there, &target);
        let shown_at = shown_at(tree, &leads_to);
        match shown_at {
            None if here == there => Ok(target),
            None => Ok(relative(&here, &leads_to)),
            Some(path) => Ok(relative(&here, &path)),
        }
    }

    /// The path of a directory here.
    fn path(&self, tree: &Tree, at: u64) -> Result<String, Errno> {
        if let Some(dir) = tree.dir(at) {
            return Ok(dir.path.clone());
        }
        let (parent, name) = self.nodes.of(at).ok_or(Errno::STALE)?;
        Ok(format!("{}/{}", self.path(tree, parent)?, name.to_string_lossy()))
    }

    /// The path of a directory beneath, without the link that `/sys/class/net/NAME` is.
    fn beneath_path(&self, dir: &str) -> String {
        let Some(rest) = dir.strip_prefix("class/net/") else { return dir.to_owned() };
        let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
        match self.beneath.link(&Under { base: Base::Sys, path: format!("class/net/{name}") }) {
            Ok(target) => follow(&follow("class/net", &target), rest),
            Err(_) => dir.to_owned(),
        }
    }
}

/// Where something of a card's netdev is shown that the kernel has at a path.
fn shown_at(tree: &Tree, path: &str) -> Option<String> {
    let rest = path.strip_prefix("devices/virtual/net/")?;
    let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
    Some(follow(tree.netdev(name)?, rest))
}

/// Whether what a directory has itself is in the way of something beneath.
fn covers(tree: &Tree, dir: &Dir, name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let constant = dir.folder.attribute(name).is_some() || dir.folder.folder(name).is_some();
    let entry = dir.entries.get(name).is_some_and(|entry| !matches!(entry, Entry::Library(LibraryFile::Filler(_))));
    constant || entry || (dir.netdevs == Netdevs::Hidden && tree.netdev(name).is_some())
}

fn in_folder<'t>(dir: &'t Dir, folder: &'static Folder, name: &str) -> Option<Place<'t>> {
    if let Some(attribute) = folder.attribute(name) {
        return Some(Place::Attribute(dir, attribute));
    }
    folder.folder(name).map(|folder| Place::Folder(dir, folder))
}

fn list_folder<'t>(dir: &'t Dir, folder: &'static Folder, listed: &mut Vec<Listed<'t>>) {
    for attribute in folder.attributes.iter().flat_map(|group| group.iter()) {
        let place = Some(Place::Attribute(dir, attribute));
        listed.push(Listed { name: OsStr::new(attribute.name).into(), kind: Kind::File, place });
    }
    for folder in folder.folders {
        let place = Some(Place::Folder(dir, folder));
        listed.push(Listed { name: OsStr::new(folder.name).into(), kind: Kind::Dir, place });
    }
}

fn below(under: &Under, name: &OsStr) -> Result<Under, Errno> {
    let name = name.to_str().ok_or(Errno::NOENT)?;
    let path = if under.path.is_empty() { name.to_owned() } else { format!("{}/{name}", under.path) };
    Ok(Under { base: under.base, path })
}
