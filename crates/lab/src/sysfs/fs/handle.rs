//! Open files and directories: opening, reading, listing.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fuser::{FileAttr, FileHandle, FopenFlags, INodeNo, OpenAccMode, OpenFlags};
use lockdep::{Locked, Mutex};
use netlink::Errno;
use rustix::fs::{AtFlags, OFlags, statat};

use super::SysFs;
use super::attr::NEVER;
use crate::lock_order::{Cx, OpenFile};
use crate::process::{Caller, with_rights};
use crate::sysfs::merged::Node;
use crate::sysfs::tree::{Attribute, Dir, Kind, LowerTree, ROOT, Subject, number};

/// An open file or directory.
pub(super) enum Handle {
    /// An attribute: the number of its directory, the attribute, and its text when it was last read from the beginning.
    Attribute(u64, &'static Attribute, Mutex<OpenFile, Option<Vec<u8>>>),
    /// A file whose content does not change.
    Whole(Arc<[u8]>),
    /// A file of the lower tree.
    Lower(Arc<OwnedFd>),
    /// A directory: its number, and its entries when it was last read from the beginning.
    Dir(u64, Mutex<OpenFile, Option<Listing>>),
}

/// The entries of a directory.
pub(super) struct Listing {
    entries: Vec<Item>,
    /// The directory of the lower tree.
    lower: Option<OwnedFd>,
    /// Whether it is the directory of a netdev.
    of_netdev: bool,
}

/// One entry.
pub(super) struct Item {
    pub(super) name: Box<OsStr>,
    pub(super) number: u64,
    pub(super) kind: Kind,
    /// Its attributes, if they are known without a look into the lower tree.
    attr: Option<(FileAttr, Duration)>,
}

/// Takes an entry, with the offset of the next one. Returns whether its buffer is full: then the entry was not taken.
type Visitor<'a> = dyn FnMut(&mut Locked<'_, OpenFile>, u64, &Item, &Listing) -> bool + 'a;

impl SysFs {
    /// Opens a file for a thread, `opener`.
    pub(super) fn open_file(
        &self,
        cx: Cx<'_, '_>,
        at: u64,
        flags: OpenFlags,
        opener: u32,
    ) -> Result<(Handle, FopenFlags), Errno> {
        let tree = self.merged.tree(cx);
        match self.merged.locate(cx, &tree, at)? {
            Node::Attribute(dir, attribute) => {
                // As sysfs does, even for a process that may override modes (`kernfs_fop_open`).
                let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
                let reads = flags.acc_mode() != OpenAccMode::O_WRONLY;
                if (writes && attribute.write.is_none()) || (reads && attribute.read.is_none()) {
                    return Err(Errno::ACCESS);
                }
                let handle = Handle::Attribute(dir.number, attribute, Mutex::new(None));
                Ok((handle, FopenFlags::FOPEN_DIRECT_IO))
            }
            // Not FOPEN_DIRECT_IO: `kmod` maps these files.
            Node::Library(_) if flags.acc_mode() != OpenAccMode::O_RDONLY => Err(Errno::ACCESS),
            Node::Library(file) => Ok((Handle::Whole(self.merged.library(cx, &tree, file)?), FopenFlags::empty())),
            Node::Lower(path) => {
                let mode = match flags.acc_mode() {
                    OpenAccMode::O_RDONLY => OFlags::RDONLY,
                    OpenAccMode::O_WRONLY => OFlags::WRONLY,
                    OpenAccMode::O_RDWR => OFlags::RDWR,
                };
                // What some files show depends on the rights of the process that opened them (`pci_read_config`).
                let Caller { capabilities, user, .. } =
                    Caller::of(opener, &self.user_namespace).map_err(|_| Errno::PERM)?;
                let opened = with_rights(capabilities, user, || self.merged.lower.open(&path, mode));
                let file = Handle::Lower(Arc::new(opened.map_err(|_| Errno::PERM)??));
                let in_sys = path.base == LowerTree::Sys;
                Ok((file, if in_sys { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() }))
            }
            _ => Err(Errno::ISDIR),
        }
    }

    /// Reads at most `size` bytes from an open file, from `offset` on, and passes them to `reply`.
    pub(super) fn read_open(
        &self,
        cx: Cx<'_, '_>,
        handle: FileHandle,
        offset: u64,
        size: u32,
        reply: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Errno> {
        let size = size as usize;
        match &*self.handle(cx, handle)? {
            Handle::Attribute(dir, attribute, text) => {
                let (mut text, mut cx) = text.lock(cx);
                let text = match &mut *text {
                    Some(text) if offset > 0 => text,
                    text => text.insert(self.value(&mut cx, *dir, attribute)?),
                };
                reply(part(text, offset, size));
            }
            Handle::Whole(bytes) => reply(part(bytes, offset, size)),
            Handle::Lower(fd) => {
                let mut bytes = vec![0; size.min(1 << 20)];
                let read = rustix::io::pread(fd, &mut bytes, offset)?;
                reply(part(&bytes, 0, read));
            }
            Handle::Dir(..) => return Err(Errno::ISDIR),
        }
        Ok(())
    }

    /// The current value of an attribute.
    fn value(&self, cx: &mut Locked<'_, OpenFile>, dir: u64, attribute: &Attribute) -> Result<Vec<u8>, Errno> {
        let tree = self.merged.tree(cx);
        let dir = tree.dir(dir).ok_or(Errno::NODEV)?;
        let read = attribute.read.ok_or(Errno::IO)?;
        read(&self.merged.context(&tree, dir))
    }

    fn list(&self, cx: &mut Locked<'_, OpenFile>, at: u64) -> Result<Listing, Errno> {
        let tree = self.merged.tree(cx);
        let node = self.merged.locate(cx, &tree, at)?;
        let (listed, lower) = self.merged.list(&tree, &node)?;
        let above = self.merged.nodes.of(cx, at).map_or(ROOT, |(parent, _)| parent);
        let dir = |name: &str, number| Item {
            name: OsStr::new(name).into(),
            number,
            kind: Kind::Dir,
            attr: Some((self.own_attr(number, Kind::Dir, 0o755, 0), NEVER)),
        };
        let mut entries = vec![dir(".", at), dir("..", above)];
        for entry in listed {
            let number = number(at, entry.name.as_encoded_bytes(), entry.kind);
            let attr = match &entry.node {
                None => None,
                Some(node) => match self.attr(cx, &tree, node, |_| number) {
                    Ok(attr) => Some(attr),
                    // It has been removed meanwhile.
                    Err(_) => continue,
                },
            };
            entries.push(Item { name: entry.name, number, kind: entry.kind, attr });
        }
        let of_netdev = matches!(node, Node::Dir(Dir { subject: Subject::Netdev(..), .. }));
        Ok(Listing { entries, lower, of_netdev })
    }

    /// Passes the entries of an open directory to `each`, from an offset on, until its buffer is full.
    pub(super) fn walk(
        &self,
        cx: Cx<'_, '_>,
        handle: FileHandle,
        offset: u64,
        each: &mut Visitor<'_>,
    ) -> Result<(), Errno> {
        let handle = self.handle(cx, handle)?;
        let Handle::Dir(at, listing) = &*handle else { return Err(Errno::NOTDIR) };
        let (mut listing, mut cx) = listing.lock(cx);
        let listing = match &mut *listing {
            Some(listing) if offset > 0 => listing,
            listing => listing.insert(self.list(&mut cx, *at)?),
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, item) in listing.entries.iter().enumerate().skip(from) {
            if each(&mut cx, place as u64 + 1, item, listing) {
                break;
            }
        }
        Ok(())
    }

    /// The attributes of an entry. `None`: it has been removed meanwhile.
    pub(super) fn item_attr(
        &self,
        cx: &mut Locked<'_, OpenFile>,
        item: &Item,
        listing: &Listing,
    ) -> Option<(FileAttr, Duration)> {
        if item.attr.is_some() {
            return item.attr;
        }
        // The kernel has the same files for every netdev of a namespace, so the attributes of one are those of all.
        let is_netdev_file = listing.of_netdev && item.kind == Kind::File;
        let known = is_netdev_file.then(|| self.netdev_files.lock_leaf(cx).get(&item.name).copied()).flatten();
        if let Some(attr) = known {
            return Some((FileAttr { ino: INodeNo(item.number), ..attr }, NEVER));
        }
        let status = statat(listing.lower.as_ref()?, &*item.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let attr = self.lower_attr(item.number, &status);
        if is_netdev_file {
            self.netdev_files.lock_leaf(cx).insert(item.name.clone(), attr);
        }
        Some((attr, NEVER))
    }
}

/// The part of `bytes` that is at most `size` long and begins at `offset`.
fn part(bytes: &[u8], offset: u64, size: usize) -> &[u8] {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    &bytes[from..bytes.len().min(from.saturating_add(size))]
}
