//! Nodes: what is where, and for how long the kernel may keep that.

use std::ffi::OsStr;
use std::time::{Duration, SystemTime};

use fuser::{FileAttr, INodeNo};
use netlink::Errno;
use rustix::fs::Stat;

use super::super::place::Place;
use super::super::tree::{Kind, LibraryFile, Tree, number};
use super::super::under;
use super::{SysFs, file_type};

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_secs(1);
pub(super) const NEVER: Duration = Duration::ZERO;

impl SysFs {
    pub(super) fn own(&self, number: u64, kind: Kind, perm: u16, size: u64) -> FileAttr {
        FileAttr {
            ino: INodeNo(number),
            size,
            blocks: 0,
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind: file_type(kind),
            perm,
            nlink: if kind == Kind::Dir { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    pub(super) fn of_beneath(&self, number: u64, status: &Stat) -> FileAttr {
        let kind = under::kind(rustix::fs::FileType::from_raw_mode(status.st_mode));
        let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        FileAttr {
            atime: time(status.st_atime),
            mtime: time(status.st_mtime),
            ctime: time(status.st_ctime),
            nlink: u32::try_from(status.st_nlink).unwrap_or(1),
            uid: status.st_uid,
            gid: status.st_gid,
            blocks: u64::try_from(status.st_blocks).unwrap_or(0),
            ..self.own(number, kind, (status.st_mode & 0o7777) as u16, u64::try_from(status.st_size).unwrap_or(0))
        }
    }

    /// The attributes of a place in a directory, and for how long there will be something in it. The number is
    /// that of the place, or is made from its parent's.
    pub(super) fn attr(
        &self,
        tree: &Tree,
        place: &Place<'_>,
        number_of: impl Fn(Kind) -> u64,
    ) -> Result<(FileAttr, Duration), Errno> {
        match place {
            Place::Dir(dir) if !self.scene.is_there(dir) => Err(Errno::NOENT),
            place => self.attr_there(tree, place, number_of),
        }
    }

    /// The same of a place that is known to be there.
    pub(super) fn attr_there(
        &self,
        tree: &Tree,
        place: &Place<'_>,
        number_of: impl Fn(Kind) -> u64,
    ) -> Result<(FileAttr, Duration), Errno> {
        let own = |kind, perm, size| self.own(number_of(kind), kind, perm, size);
        Ok(match place {
            Place::Dir(dir) => (own(Kind::Dir, 0o755, 0), if dir.lasting { LONG } else { NEVER }),
            Place::Folder(..) => (own(Kind::Dir, 0o755, 0), LONG),
            Place::Attribute(_, attribute) => (own(Kind::File, attribute.mode, attribute.size), LONG),
            Place::Link(_) => (own(Kind::Link, 0o777, 0), NEVER),
            Place::Library(file) => {
                let size = self.scene.library(tree, *file)?.len() as u64;
                (own(Kind::File, 0o644, size), NEVER)
            }
            Place::Under(under) => {
                let status = self.scene.beneath.status_at(under)?;
                let kind = under::kind(rustix::fs::FileType::from_raw_mode(status.st_mode));
                (self.of_beneath(number_of(kind), &status), NEVER)
            }
        })
    }

    pub(super) fn look_up(&self, parent: u64, name: &OsStr) -> Result<(FileAttr, Duration, Duration), Errno> {
        let tree = self.scene.tree();
        let place = self.scene.locate(&tree, parent)?;
        let place = self.scene.child(&tree, &place, name)?;
        let (attr, lasts) = self.attr(&tree, &place, |kind| number(parent, name.as_encoded_bytes(), kind))?;
        self.scene.nodes.hold(attr.ino.0, parent, name);
        Ok((attr, attr_lasts(&place), lasts))
    }

    pub(super) fn attr_of(&self, at: u64) -> Result<(FileAttr, Duration), Errno> {
        let tree = self.scene.tree();
        let place = self.scene.locate(&tree, at)?;
        let (attr, _) = self.attr(&tree, &place, |_| at)?;
        Ok((attr, attr_lasts(&place)))
    }

    pub(super) fn link(&self, at: u64) -> Result<String, Errno> {
        let tree = self.scene.tree();
        match self.scene.locate(&tree, at)? {
            Place::Link(target) => Ok(target.to_owned()),
            Place::Under(under) => self.scene.link_beneath(&tree, at, &under),
            _ => Err(Errno::INVAL),
        }
    }
}

/// For how long a node's mode is what it is: for ever, unless it is the kernel's.
fn attr_lasts(place: &Place<'_>) -> Duration {
    match place {
        Place::Under(_) => SHORT,
        Place::Library(LibraryFile::Module(..)) => NEVER,
        _ => LONG,
    }
}
