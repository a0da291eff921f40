//! Looking nodes up: their attributes, and for how long the kernel may cache them.

use std::ffi::OsStr;
use std::time::{Duration, SystemTime};

use fuser::{FileAttr, INodeNo};
use lockdep::{LockBefore, Locked};
use netlink::Errno;
use rustix::fs::{FileType, Stat};

use super::{SysFs, file_type};
use crate::lock_order::{Cx, TreeRebuild};
use crate::sysfs::lower;
use crate::sysfs::merged::Node;
use crate::sysfs::tree::{Kind, LibraryFile, Tree, number};

/// For how long the kernel may cache what cannot change.
const LONG: Duration = Duration::from_secs(3600);
/// For how long it may cache the mode and owner of a file of the lower tree.
const SHORT: Duration = Duration::from_secs(1);
/// It may not cache this at all.
pub(super) const NEVER: Duration = Duration::ZERO;

impl SysFs {
    /// The attributes of a node of the cards' tree.
    pub(super) fn own_attr(&self, number: u64, kind: Kind, perm: u16, size: u64) -> FileAttr {
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

    /// The attributes of a node of the lower tree.
    pub(super) fn lower_attr(&self, number: u64, status: &Stat) -> FileAttr {
        let kind = lower::kind(FileType::from_raw_mode(status.st_mode));
        let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        FileAttr {
            atime: time(status.st_atime),
            mtime: time(status.st_mtime),
            ctime: time(status.st_ctime),
            nlink: u32::try_from(status.st_nlink).unwrap_or(1),
            uid: status.st_uid,
            gid: status.st_gid,
            blocks: u64::try_from(status.st_blocks).unwrap_or(0),
            ..self.own_attr(number, kind, (status.st_mode & 0o7777) as u16, u64::try_from(status.st_size).unwrap_or(0))
        }
    }

    /// The attributes of a node, and for how long the kernel may assume that it exists. `number_of` gives the node's
    /// number. ENOENT if the node does not exist.
    pub(super) fn attr<L>(
        &self,
        cx: &mut Locked<'_, L>,
        tree: &Tree,
        node: &Node<'_>,
        number_of: impl Fn(Kind) -> u64,
    ) -> Result<(FileAttr, Duration), Errno> {
        let own = |kind, perm, size| self.own_attr(number_of(kind), kind, perm, size);
        Ok(match node {
            Node::Dir(dir) => (own(Kind::Dir, 0o755, 0), if dir.lasting { LONG } else { NEVER }),
            Node::ConstantDir(..) => (own(Kind::Dir, 0o755, 0), LONG),
            Node::Attribute(_, attribute) => (own(Kind::File, attribute.mode, attribute.size), LONG),
            Node::Link(_) => (own(Kind::Link, 0o777, 0), NEVER),
            Node::Library(file) => {
                let size = self.merged.library(cx, tree, *file)?.len() as u64;
                (own(Kind::File, 0o644, size), NEVER)
            }
            Node::Lower(path) => {
                let status = self.merged.lower.status_at(path)?;
                let kind = lower::kind(FileType::from_raw_mode(status.st_mode));
                (self.lower_attr(number_of(kind), &status), NEVER)
            }
        })
    }

    /// Looks a name up. Returns the node's attributes, and for how long the kernel may cache these, and the name.
    pub(super) fn look_up(
        &self,
        cx: Cx<'_, '_>,
        parent: u64,
        name: &OsStr,
    ) -> Result<(FileAttr, Duration, Duration), Errno> {
        let tree = self.merged.tree(cx);
        let node = self.merged.locate(cx, &tree, parent)?;
        let node = self.merged.child(&tree, &node, name)?;
        let (attr, lasts) = self.attr(cx, &tree, &node, |kind| number(parent, name.as_encoded_bytes(), kind))?;
        self.merged.nodes.hold(cx, attr.ino.0, parent, name);
        Ok((attr, attr_lasts(&node), lasts))
    }

    /// The attributes of a node that the kernel holds, and for how long it may cache them.
    pub(super) fn attr_of<L>(&self, cx: &mut Locked<'_, L>, at: u64) -> Result<(FileAttr, Duration), Errno>
    where
        L: LockBefore<TreeRebuild>,
    {
        let tree = self.merged.tree(cx);
        let node = self.merged.locate(cx, &tree, at)?;
        let (attr, _) = self.attr(cx, &tree, &node, |_| at)?;
        Ok((attr, attr_lasts(&node)))
    }

    /// The target of a symbolic link.
    pub(super) fn link(&self, cx: Cx<'_, '_>, at: u64) -> Result<String, Errno> {
        let tree = self.merged.tree(cx);
        match self.merged.locate(cx, &tree, at)? {
            Node::Link(target) => Ok(target.to_owned()),
            Node::Lower(path) => self.merged.lower_link(cx, &tree, at, &path),
            _ => Err(Errno::INVAL),
        }
    }
}

/// For how long the kernel may cache a node's attributes: those of a card's files cannot change, those of the kernel's
/// can.
fn attr_lasts(node: &Node<'_>) -> Duration {
    match node {
        Node::Lower(_) => SHORT,
        Node::Library(LibraryFile::Module(..)) => NEVER,
        _ => LONG,
    }
}
