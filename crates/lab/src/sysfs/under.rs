//! The kernel's own `/sys`, and the system's `/lib/modules`: what is seen through the cards' tree. They are
//! reached by directory descriptors that nothing covers, whatever is mounted in the lab.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use netlink::Errno;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, openat, readlinkat, statat};

use crate::process::with_rights;

use super::tree::{Base, Kernel, Kind, Under};

/// The trees beneath.
pub(super) struct Beneath {
    sys: OwnedFd,
    modules: Option<OwnedFd>,
}

/// What a directory beneath has in it.
pub(super) struct Found {
    pub(super) name: Box<OsStr>,
    pub(super) kind: Kind,
}

/// What of the kinds of files a tree shows.
pub(super) fn kind(file: FileType) -> Kind {
    match file {
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Link,
        _ => Kind::File,
    }
}

impl Beneath {
    pub(super) fn new(sys: OwnedFd, modules: Option<OwnedFd>) -> Self {
        Self { sys, modules }
    }

    fn base(&self, base: Base) -> Result<&OwnedFd, Errno> {
        match base {
            Base::Sys => Ok(&self.sys),
            Base::Modules => self.modules.as_ref().ok_or(Errno::NOENT),
        }
    }

    /// The status of what is called `name` in a directory.
    pub(super) fn status(&self, dir: &Under, name: &OsStr) -> Result<Stat, Errno> {
        statat(self.base(dir.base)?, &*join(&dir.path, name), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The status of what is at a place.
    pub(super) fn status_at(&self, place: &Under) -> Result<Stat, Errno> {
        let path = if place.path.is_empty() { "." } else { &place.path };
        statat(self.base(place.base)?, path, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Whether there is something at a path under `/sys`.
    pub(super) fn has(&self, path: &str) -> bool {
        statat(&self.sys, path, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Opens a file.
    pub(super) fn open(&self, place: &Under, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(self.base(place.base)?, &place.path, flags, Mode::empty())
    }

    /// Opens a directory.
    pub(super) fn open_dir(&self, place: &Under) -> Result<OwnedFd, Errno> {
        let path = if place.path.is_empty() { "." } else { &place.path };
        openat(self.base(place.base)?, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    }

    /// What a symbolic link says.
    pub(super) fn link(&self, place: &Under) -> Result<String, Errno> {
        let text = readlinkat(self.base(place.base)?, &place.path, Vec::new())?;
        text.into_string().map_err(|_| Errno::ILSEQ)
    }

    /// Reads a file of the system's `/lib/modules`.
    pub(super) fn read_modules(&self, path: &str) -> Option<Vec<u8>> {
        read(self.modules.as_ref()?, path)
    }
}

/// Everything that is in a directory, but itself and the one above it.
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

impl Kernel for Beneath {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        read(&self.sys, path)
    }

    fn proc_modules(&self) -> Option<Vec<u8>> {
        // The supervisor's own: nothing of the lab covers it. Where modules lie in memory is not for everybody to see, and
        // the kernel hides it from those without capabilities.
        let user = rustix::process::geteuid().as_raw();
        with_rights(0, user, || read(CWD, "/proc/modules")).ok()?
    }
}
