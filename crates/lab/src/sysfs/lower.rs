//! The lower trees: the kernel's own `/sys`, and the system's `/lib/modules`, which are seen where the cards' tree has
//! nothing. They are accessed by directory descriptors that nothing covers, whatever is mounted in the lab.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use netlink::Errno;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, openat, readlinkat, statat};

use crate::process::with_rights;

use super::tree::{Kernel, Kind, LowerPath, LowerTree};

/// The lower trees.
pub(super) struct Lower {
    sys: OwnedFd,
    modules: Option<OwnedFd>,
}

/// An entry of a directory.
pub(super) struct Found {
    pub(super) name: Box<OsStr>,
    pub(super) kind: Kind,
}

/// The kind of node that a tree shows for a type of file.
pub(super) fn kind(file: FileType) -> Kind {
    match file {
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Link,
        _ => Kind::File,
    }
}

impl Lower {
    pub(super) fn new(sys: OwnedFd, modules: Option<OwnedFd>) -> Self {
        Self { sys, modules }
    }

    fn base(&self, base: LowerTree) -> Result<&OwnedFd, Errno> {
        match base {
            LowerTree::Sys => Ok(&self.sys),
            LowerTree::Modules => self.modules.as_ref().ok_or(Errno::NOENT),
        }
    }

    /// The status of the entry `name` of a directory.
    pub(super) fn status(&self, dir: &LowerPath, name: &OsStr) -> Result<Stat, Errno> {
        statat(self.base(dir.base)?, &*join(&dir.path, name), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The status of a file or directory.
    pub(super) fn status_at(&self, place: &LowerPath) -> Result<Stat, Errno> {
        let path = if place.path.is_empty() { "." } else { &place.path };
        statat(self.base(place.base)?, path, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Opens a file.
    pub(super) fn open(&self, place: &LowerPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(self.base(place.base)?, &place.path, flags, Mode::empty())
    }

    /// Opens a directory.
    pub(super) fn open_dir(&self, place: &LowerPath) -> Result<OwnedFd, Errno> {
        let path = if place.path.is_empty() { "." } else { &place.path };
        openat(self.base(place.base)?, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    }

    /// The target of a symbolic link.
    pub(super) fn link(&self, place: &LowerPath) -> Result<String, Errno> {
        let text = readlinkat(self.base(place.base)?, &place.path, Vec::new())?;
        text.into_string().map_err(|_| Errno::ILSEQ)
    }

    /// Reads a file of the system's `/lib/modules`.
    pub(super) fn read_modules(&self, path: &str) -> Option<Vec<u8>> {
        read(self.modules.as_ref()?, path)
    }
}

/// All entries of a directory, except `.` and `..`.
pub(super) fn list(dir: &OwnedFd) -> Result<Vec<Found>, Errno> {
    let mut found = Vec::new();
    let mut buffer = Vec::with_capacity(16 * 1024);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            found.push(Found { name: OsStr::from_bytes(name).into(), kind: kind(entry.file_type()) });
        }
    }
    Ok(found)
}

fn join(dir: &str, name: &OsStr) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir.as_bytes());
    if !dir.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.as_bytes());
    path
}

fn read(base: impl std::os::fd::AsFd, path: &str) -> Option<Vec<u8>> {
    let fd = openat(base, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    File::from(fd).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

impl Kernel for Lower {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        read(&self.sys, path)
    }

    fn proc_modules(&self) -> Option<Vec<u8>> {
        // The supervisor's own file, which nothing in the lab covers. The kernel hides the addresses of modules from
        // processes without capabilities, so it is read without.
        let user = rustix::process::geteuid().as_raw();
        with_rights(0, user, || read(CWD, "/proc/modules")).ok()?
    }
}
