//! The cards' tree merged with the kernel's, as an overlay: the cards' tree is the upper one, and where it has nothing
//! the lower one (the kernel's `/sys`, the system's `/lib/modules`) is seen.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use devlink::view;
use lockdep::{LockBefore, Locked, Mutex};
use netlink::Errno;

use super::here::{Version, tree_now};
use super::library::{Contents, Indexes, module_file};
use super::lower::{Lower, list};
use super::nodes::Nodes;
use super::tree::{
    Attribute, AttributeContext, Dir, Entry, Kind, LibraryFile, LowerPath, LowerTree, Names, Template, Tree, follow,
    number, relative,
};
use crate::Card;
use crate::cards::Cards;
use crate::lock_order::{CurrentTree, ModuleIndexes, TreeRebuild};
use crate::network::{Network, NetworkSockets, Peer, Table};
use crate::uevent::Uevents;

/// What a node of the merged tree is.
pub(super) enum Node<'t> {
    /// A directory of the cards' tree.
    Dir(&'t Dir),
    /// A directory that each directory of a kind has in it.
    ConstantDir(&'t Dir, &'static Template),
    /// An attribute of a directory.
    Attribute(&'t Dir, &'static Attribute),
    /// A symbolic link, and its target.
    Link(&'t str),
    /// A file of `/lib/modules`.
    Library(LibraryFile),
    /// A node of the lower tree.
    Lower(LowerPath),
}

/// An entry of a directory.
pub(super) struct Listed<'t> {
    pub(super) name: Box<OsStr>,
    pub(super) kind: Kind,
    /// `None`: the entry is of the lower tree.
    pub(super) node: Option<Node<'t>>,
}

/// The entries of a directory, and the directory of the lower tree that is seen through it.
type List<'t> = (Vec<Listed<'t>>, Option<OwnedFd>);

/// The merged tree, and what it is made of.
pub(super) struct MergedTree {
    pub(super) cards: Cards,
    /// The netdevs in the network namespace that `/sys` shows.
    network: Network,
    pub(super) lower: Lower,
    pub(super) nodes: Nodes,
    pub(super) uevents: Arc<Uevents>,
    release: String,
    tree: Mutex<CurrentTree, Arc<Current>>,
    rebuild: Mutex<TreeRebuild, ()>,
    indexes: Mutex<ModuleIndexes, Option<(Contents, Arc<Indexes>)>>,
}

/// The tree that was made last.
struct Current {
    tree: Arc<Tree>,
    version: Version,
}

impl MergedTree {
    /// `release`: the kernel's release, as `uname -r` prints it.
    pub(super) fn new(
        cards: Vec<Arc<dyn Card>>,
        uevents: Arc<Uevents>,
        network: NetworkSockets,
        lower: Lower,
        release: String,
    ) -> Self {
        let version = Version::of_nothing(cards.len());
        let empty = Tree::new(vec![None; cards.len()], &release, &Names::NONE);
        Self {
            cards: Cards::new(cards),
            network: Network::new(network),
            lower,
            nodes: Nodes::default(),
            uevents,
            release,
            tree: Mutex::new(Arc::new(Current { tree: Arc::new(empty), version })),
            rebuild: Mutex::new(()),
            indexes: Mutex::new(None),
        }
    }

    /// The tree of the cards' current views. It is made again if a view has changed; a card that is gone has nothing in
    /// it.
    pub(super) fn tree<L>(&self, cx: &mut Locked<'_, L>) -> Arc<Tree>
    where
        L: LockBefore<TreeRebuild>,
    {
        if let Some(tree) = self.current(cx) {
            return tree;
        }
        let (_one_at_a_time, mut cx) = self.rebuild.lock(cx);
        if let Some(tree) = self.current(&mut cx) {
            return tree;
        }
        let made = self.make(&mut cx);
        let tree = Arc::clone(&made.tree);
        let replaced = std::mem::replace(&mut *self.tree.lock_leaf(&mut cx), Arc::new(made));
        // Without the lock: the tree of a card with many VFs takes a while to free.
        drop(replaced);
        tree
    }

    fn make<L>(&self, cx: &mut Locked<'_, L>) -> Current {
        let (tree, version) = tree_now(cx, &self.cards, &self.network, &self.release, |mut tree, table| {
            tree.hide(unpublished(&tree.cards, table));
            Arc::new(tree)
        });
        Current { tree, version }
    }

    /// The tree that was made last, if no view has changed since.
    fn current<L>(&self, cx: &mut Locked<'_, L>) -> Option<Arc<Tree>> {
        let current = Arc::clone(&*self.tree.lock_leaf(cx));
        current.version.is_current(cx, &self.cards, &self.network).then(|| Arc::clone(&current.tree))
    }

    /// What attributes of a directory are read and written with.
    pub(super) fn context<'a>(&'a self, tree: &'a Tree, dir: &'a Dir) -> AttributeContext<'a> {
        AttributeContext { cards: &tree.cards, dir, kernel: &self.lower }
    }

    /// The node with a number. ESTALE if the kernel does not hold it.
    pub(super) fn locate<'t, L>(&self, cx: &mut Locked<'_, L>, tree: &'t Tree, at: u64) -> Result<Node<'t>, Errno> {
        if let Some(dir) = tree.dir(at) {
            return Ok(Node::Dir(dir));
        }
        let (parent, name) = self.nodes.of(cx, at).ok_or(Errno::STALE)?;
        let parent = self.locate(cx, tree, parent)?;
        self.child(tree, &parent, &name)
    }

    /// The node called `name` in a directory. Whether a node of the lower tree exists is not checked.
    pub(super) fn child<'t>(&self, tree: &'t Tree, parent: &Node<'t>, name: &OsStr) -> Result<Node<'t>, Errno> {
        match parent {
            Node::Dir(dir) => self.in_dir(tree, dir, name),
            Node::ConstantDir(dir, template) => {
                name.to_str().and_then(|name| in_template(dir, template, name)).ok_or(Errno::NOENT)
            }
            Node::Lower(lower) => Ok(Node::Lower(join(lower, name)?)),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn in_dir<'t>(&self, tree: &'t Tree, dir: &'t Dir, name: &OsStr) -> Result<Node<'t>, Errno> {
        let text = name.to_str().ok_or(Errno::NOENT)?;
        if let Some(node) = in_template(dir, dir.template, text) {
            return Ok(node);
        }
        if dir.hides_netdevs && tree.hides(dir, text) {
            return Err(Errno::NOENT);
        }
        let lower = || Ok(Node::Lower(join(dir.lower.as_ref().ok_or(Errno::NOENT)?, name)?));
        match dir.entries.get(text) {
            Some(Entry::Dir) => {
                let path = number(dir.number, text.as_bytes(), Kind::Dir);
                tree.dir(path).map(Node::Dir).ok_or(Errno::NOENT)
            }
            Some(Entry::Link(target)) => Ok(Node::Link(target)),
            Some(Entry::Library(LibraryFile::Filler(_))) if self.has_lower(dir, name) => lower(),
            Some(Entry::Library(file)) => Ok(Node::Library(*file)),
            None => lower(),
        }
    }

    fn has_lower(&self, dir: &Dir, name: &OsStr) -> bool {
        dir.lower.as_ref().is_some_and(|lower| self.lower.status(lower, name).is_ok())
    }

    /// Lists a directory.
    pub(super) fn list<'t>(&self, tree: &'t Tree, node: &Node<'t>) -> Result<List<'t>, Errno> {
        let (lower, dir) = match node {
            Node::Dir(dir) => (dir.lower.as_ref(), Some(*dir)),
            Node::ConstantDir(dir, template) => {
                let mut listed = Vec::new();
                list_template(dir, template, &mut listed);
                return Ok((listed, None));
            }
            Node::Lower(lower) => (Some(lower), None),
            _ => return Err(Errno::NOTDIR),
        };
        let fd = match lower.map(|lower| self.lower.open_dir(lower)) {
            Some(Ok(fd)) => Some(fd),
            // The lower tree has no such directory; only the cards' is shown.
            Some(Err(Errno::NOENT | Errno::NOTDIR)) if dir.is_some() => None,
            Some(Err(error)) => return Err(error),
            None => None,
        };
        let found = fd.as_ref().map_or_else(|| Ok(Vec::new()), list)?;
        let mut listed = Vec::with_capacity(found.len() + 16);
        if let Some(dir) = dir {
            list_template(dir, dir.template, &mut listed);
            self.list_entries(tree, dir, &mut listed);
        }
        let seen = found.into_iter().filter(|found| dir.is_none_or(|dir| !covers(tree, dir, &found.name)));
        listed.extend(seen.map(|found| Listed { name: found.name, kind: found.kind, node: None }));
        Ok((listed, fd))
    }

    fn list_entries<'t>(&self, tree: &'t Tree, dir: &'t Dir, listed: &mut Vec<Listed<'t>>) {
        for (name, entry) in &dir.entries {
            let name = OsStr::new(&**name);
            let (kind, node) = match entry {
                Entry::Dir => {
                    let number = number(dir.number, name.as_encoded_bytes(), Kind::Dir);
                    match tree.dir(number) {
                        Some(dir) => (Kind::Dir, Node::Dir(dir)),
                        None => continue,
                    }
                }
                Entry::Link(target) => (Kind::Link, Node::Link(target)),
                Entry::Library(LibraryFile::Filler(_)) if self.has_lower(dir, name) => continue,
                Entry::Library(file) => (Kind::File, Node::Library(*file)),
            };
            listed.push(Listed { name: name.into(), kind, node: Some(node) });
        }
    }

    /// The content of a file of `/lib/modules`.
    pub(super) fn library<L>(
        &self,
        cx: &mut Locked<'_, L>,
        tree: &Tree,
        file: LibraryFile,
    ) -> Result<Arc<[u8]>, Errno> {
        match file {
            LibraryFile::Module(card, at) => {
                let card = tree.cards.get(card).and_then(Option::as_ref).ok_or(Errno::NODEV)?;
                let module = card.modules.get(at).ok_or(Errno::NODEV)?;
                Ok(module_file(&card.profile, module, &self.release).into())
            }
            LibraryFile::Index(name) | LibraryFile::Filler(name) => Ok(self.indexes(cx, tree).get(name)),
        }
    }

    fn indexes<L>(&self, cx: &mut Locked<'_, L>, tree: &Tree) -> Arc<Indexes> {
        let contents = Contents::of(&tree.cards);
        let mut indexes = self.indexes.lock_leaf(cx);
        match &*indexes {
            Some((of, found)) if *of == contents => Arc::clone(found),
            _ => {
                let read = |name: &str| self.lower.read_modules(&format!("{}/{name}", self.release));
                let made = Arc::new(Indexes::new(&contents, read));
                *indexes = Some((contents, Arc::clone(&made)));
                made
            }
        }
    }

    /// The target of a symbolic link of the lower tree, from where the link is in the merged tree. It leads to what it
    /// leads to in the lower tree; but a card's netdev is in another place here, and so are the links in its directory.
    pub(super) fn lower_link<L>(
        &self,
        cx: &mut Locked<'_, L>,
        tree: &Tree,
        at: u64,
        link: &LowerPath,
    ) -> Result<String, Errno> {
        let target = self.lower.link(link)?;
        if target.starts_with('/') || link.base != LowerTree::Sys {
            return Ok(target);
        }
        let (parent, _) = self.nodes.of(cx, at).ok_or(Errno::STALE)?;
        let here = self.path(cx, tree, parent)?;
        let there = self.real_lower_path(link.path.rsplit_once('/').map_or("", |(dir, _)| dir));
        let leads_to = follow(&there, &target);
        match shown_at(tree, &leads_to) {
            None if here == there => Ok(target),
            None => Ok(relative(&here, &leads_to)),
            Some(path) => Ok(relative(&here, &path)),
        }
    }

    /// The path of a directory in the merged tree.
    fn path<L>(&self, cx: &mut Locked<'_, L>, tree: &Tree, at: u64) -> Result<String, Errno> {
        if let Some(dir) = tree.dir(at) {
            return Ok(dir.path.clone());
        }
        let (parent, name) = self.nodes.of(cx, at).ok_or(Errno::STALE)?;
        Ok(format!("{}/{}", self.path(cx, tree, parent)?, name.to_string_lossy()))
    }

    /// The path of a directory of the lower tree, with the link `/sys/class/net/NAME` resolved.
    fn real_lower_path(&self, dir: &str) -> String {
        let Some(rest) = dir.strip_prefix("class/net/") else { return dir.to_owned() };
        let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
        match self.lower.link(&LowerPath { base: LowerTree::Sys, path: format!("class/net/{name}") }) {
            Ok(target) => follow(&follow("class/net", &target), rest),
            Err(_) => dir.to_owned(),
        }
    }
}

/// The path under which the merged tree shows what the kernel has of a card's netdev at `path`.
fn shown_at(tree: &Tree, path: &str) -> Option<String> {
    let rest = path.strip_prefix("devices/virtual/net/")?;
    let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
    Some(follow(tree.netdev(name)?, rest))
}

/// The names of the netdevs that a card is making or deleting.
fn unpublished(cards: &[Option<Arc<view::Card>>], table: &Table) -> HashSet<String> {
    let present = cards.iter().enumerate().filter_map(|(n, card)| Some((n, card.as_ref()?)));
    let known: HashSet<Peer> = present
        .flat_map(|(card, view)| {
            let peers = view.netdevs.iter().filter_map(|netdev| netdev.peer);
            peers.chain(view.host_peers.iter().copied()).map(move |index| Peer { card, index })
        })
        .collect();
    let is_gone = |peer: &Peer| cards.get(peer.card).is_none_or(Option::is_none);
    let hidden = table.each().filter(|(peer, _)| !known.contains(peer) && !is_gone(peer));
    hidden.map(|(_, name)| name.to_owned()).collect()
}

/// Whether a directory of the cards' tree hides the lower tree's entry `name`.
fn covers(tree: &Tree, dir: &Dir, name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let constant = dir.template.attribute(name).is_some() || dir.template.subdir(name).is_some();
    let entry = dir.entries.get(name).is_some_and(|entry| !matches!(entry, Entry::Library(LibraryFile::Filler(_))));
    constant || entry || (dir.hides_netdevs && tree.hides(dir, name))
}

fn in_template<'t>(dir: &'t Dir, template: &'static Template, name: &str) -> Option<Node<'t>> {
    if let Some(attribute) = template.attribute(name) {
        return Some(Node::Attribute(dir, attribute));
    }
    template.subdir(name).map(|subdir| Node::ConstantDir(dir, subdir))
}

fn list_template<'t>(dir: &'t Dir, template: &'static Template, listed: &mut Vec<Listed<'t>>) {
    for attribute in template.attributes.iter().flat_map(|group| group.iter()) {
        let node = Some(Node::Attribute(dir, attribute));
        listed.push(Listed { name: OsStr::new(attribute.name).into(), kind: Kind::File, node });
    }
    for subdir in template.subdirs {
        let node = Some(Node::ConstantDir(dir, subdir));
        listed.push(Listed { name: OsStr::new(subdir.name).into(), kind: Kind::Dir, node });
    }
}

/// The path of an entry of a directory of the lower tree.
fn join(dir: &LowerPath, name: &OsStr) -> Result<LowerPath, Errno> {
    let name = name.to_str().ok_or(Errno::NOENT)?;
    let path = if dir.path.is_empty() { name.to_owned() } else { format!("{}/{name}", dir.path) };
    Ok(LowerPath { base: dir.base, path })
}
