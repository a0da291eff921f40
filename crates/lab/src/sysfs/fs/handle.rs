//! Open files and directories: opening, reading, listing.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fuser::{FileAttr, FileHandle, FopenFlags, INodeNo, OpenAccMode, OpenFlags};
use netlink::Errno;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, OFlags, statat};

use super::super::place::Place;
use super::super::tree::{Attribute, Base, Dir, Kind, ROOT, Subject, number};
use super::SysFs;
use super::attr::NEVER;
use crate::process::{Caller, with_rights};

/// An open file or directory.
pub(super) enum Handle {
    /// An attribute: its directory, and what it said when it was last read from the beginning.
    Attribute(u64, &'static Attribute, Mutex<Option<Vec<u8>>>),
    /// A file that does not change.
    Whole(Arc<[u8]>),
    /// A file beneath.
    Beneath(Arc<OwnedFd>),
    /// A directory, and what was in it when it was last read from the beginning.
    Dir(u64, Mutex<Option<Listing>>),
}

pub(super) struct Listing {
    entries: Vec<Item>,
    beneath: Option<OwnedFd>,
    of_netdev: bool,
}

pub(super) struct Item {
    pub(super) name: Box<OsStr>,
    pub(super) number: u64,
    pub(super) kind: Kind,
    /// What is known of it without a look beneath.
    attr: Option<(FileAttr, Duration)>,
}

impl SysFs {
    pub(super) fn open_file(&self, at: u64, flags: OpenFlags, opener: u32) -> Result<(Handle, FopenFlags), Errno> {
        let tree = self.scene.tree();
        match self.scene.locate(&tree, at)? {
            Place::Attribute(dir, attribute) => {
                // As sysfs does, also for those who may override modes.
                let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
                let reads = flags.acc_mode() != OpenAccMode::O_WRONLY;
                if (writes && attribute.write.is_none()) || (reads && attribute.read.is_none()) {
                    return Err(Errno::ACCESS);
                }
                let handle = Handle::Attribute(dir.number, attribute, Mutex::new(None));
                Ok((handle, FopenFlags::FOPEN_DIRECT_IO))
            }
            // From memory, since `kmod` maps them.
            Place::Library(_) if flags.acc_mode() != OpenAccMode::O_RDONLY => Err(Errno::ACCESS),
            Place::Library(file) => Ok((Handle::Whole(self.scene.library(&tree, file)?), FopenFlags::empty())),
            Place::Under(under) => {
                let mode = match flags.acc_mode() {
                    OpenAccMode::O_RDONLY => OFlags::RDONLY,
                    OpenAccMode::O_WRONLY => OFlags::WRONLY,
                    OpenAccMode::O_RDWR => OFlags::RDWR,
                };
                // Some files show more to those who opened them with more rights (`pci_read_config`).
                let Caller { capabilities, user, .. } = Caller::of(opener, &self.home).map_err(|_| Errno::PERM)?;
                let opened = with_rights(capabilities, user, || self.scene.beneath.open(&under, mode));
                let file = Handle::Beneath(Arc::new(opened.map_err(|_| Errno::PERM)??));
                let in_sys = under.base == Base::Sys;
                Ok((file, if in_sys { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() }))
            }
            _ => Err(Errno::ISDIR),
        }
    }

    /// Reads from an open file. `reply` is given what was read.
    pub(super) fn read_open(
        &self,
        handle: FileHandle,
        offset: u64,
        size: u32,
        reply: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Errno> {
        let size = size as usize;
        match &*self.handle(handle)? {
            Handle::Attribute(dir, attribute, text) => {
                let mut text = text.lock();
                let text = match &mut *text {
                    Some(text) if offset > 0 => text,
                    text => text.insert(self.value(*dir, attribute)?),
                };
                reply(part(text, offset, size));
            }
            Handle::Whole(bytes) => reply(part(bytes, offset, size)),
            Handle::Beneath(fd) => {
                let mut bytes = vec![0; size.min(1 << 20)];
                let read = rustix::io::pread(fd, &mut bytes, offset)?;
                reply(part(&bytes, 0, read));
            }
            Handle::Dir(..) => return Err(Errno::ISDIR),
        }
        Ok(())
    }

    /// The value of an attribute now.
    pub(super) fn value(&self, dir: u64, attribute: &Attribute) -> Result<Vec<u8>, Errno> {
        let tree = self.scene.tree();
        let dir = tree.dir(dir).ok_or(Errno::NODEV)?;
        let read = attribute.read.ok_or(Errno::IO)?;
        read(&self.scene.shown(&tree, dir))
    }

    pub(super) fn list(&self, at: u64) -> Result<Listing, Errno> {
        let tree = self.scene.tree();
        let place = self.scene.locate(&tree, at)?;
        let (listed, beneath) = self.scene.list(&tree, &place)?;
        let above = self.scene.nodes.of(at).map_or(ROOT, |(parent, _)| parent);
        let dir = |name: &str, number| Item {
            name: OsStr::new(name).into(),
            number,
            kind: Kind::Dir,
            attr: Some((self.own(number, Kind::Dir, 0o755, 0), NEVER)),
        };
        let mut entries = vec![dir(".", at), dir("..", above)];
        for entry in listed {
            let number = number(at, entry.name.as_encoded_bytes(), entry.kind);
            let attr = match &entry.place {
                None => None,
                Some(place) => match self.attr_there(&tree, place, |_| number) {
                    Ok(attr) => Some(attr),
                    // It has gone meanwhile.
                    Err(_) => continue,
                },
            };
            entries.push(Item { name: entry.name, number, kind: entry.kind, attr });
        }
        let of_netdev = matches!(place, Place::Dir(Dir { subject: Subject::Netdev(..), .. }));
        Ok(Listing { entries, beneath, of_netdev })
    }

    /// Gives what is in an open directory from an offset on to `each`, until that says it has no room.
    pub(super) fn walk(
        &self,
        handle: FileHandle,
        offset: u64,
        each: &mut dyn FnMut(u64, &Item, &Listing) -> bool,
    ) -> Result<(), Errno> {
        let handle = self.handle(handle)?;
        let Handle::Dir(at, listing) = &*handle else { return Err(Errno::NOTDIR) };
        let mut listing = listing.lock();
        let listing = match &mut *listing {
            Some(listing) if offset > 0 => listing,
            listing => listing.insert(self.list(*at)?),
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, item) in listing.entries.iter().enumerate().skip(from) {
            if each(place as u64 + 1, item, listing) {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn item_attr(&self, item: &Item, listing: &Listing) -> Option<(FileAttr, Duration)> {
        let known = item.attr.or_else(|| {
            // A netdev's files are the same as any other's of the namespace: one look is enough.
            let files = (listing.of_netdev && item.kind == Kind::File).then(|| self.netdev_files.read())?;
            Some((FileAttr { ino: INodeNo(item.number), ..*files.get(&item.name)? }, NEVER))
        });
        known.or_else(|| {
            let dir = listing.beneath.as_ref()?;
            let status = statat(dir, &*item.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            let attr = self.of_beneath(item.number, &status);
            if listing.of_netdev && item.kind == Kind::File {
                self.netdev_files.write().insert(item.name.clone(), attr);
            }
            Some((attr, NEVER))
        })
    }
}

fn part(bytes: &[u8], offset: u64, size: usize) -> &[u8] {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    &bytes[from..bytes.len().min(from.saturating_add(size))]
}
