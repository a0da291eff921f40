//! Writing: what becomes of a text that a program writes to a file.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use control::Command;
use devlink::{NODE_DESC_MAX, RdmaChange};
use fuser::ReplyWrite;
use netlink::{Errno, errno_of};
use rustix::fs::OFlags;

use super::{SysFs, errno};
use crate::lock_order::Cx;
use crate::process::{Caller, SYS_ADMIN, UserNamespace, with_rights};
use crate::rdma_system;
use crate::sysfs::merged::MergedTree;
use crate::sysfs::text::written;
use crate::sysfs::tree::{Act, Attribute, Dir, LowerPath};

/// What a write does. It may take long.
pub(super) enum Job {
    /// Succeeds, and does nothing.
    Nothing,
    /// Succeeds for a process with CAP_SYS_ADMIN, and does nothing.
    NothingForAdministrators,
    /// Has one card, or all (`None`), carry out a command.
    Perform(Option<usize>, Command),
    /// Has a card keep the description of an RDMA device: the card's index, and the device's.
    DescribeRdma(usize, u32),
    /// Writes to a file of the lower tree, at an offset.
    Write(Arc<OwnedFd>, u64),
}

impl Job {
    /// Does it on behalf of a thread, `writer`, which waits for it. Returns how many bytes were written.
    pub(super) fn run(
        self,
        merged: &MergedTree,
        writer: u32,
        user_namespace: &UserNamespace,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        match self {
            Self::Nothing => Ok(bytes.len()),
            Self::NothingForAdministrators => match Caller::of(writer, user_namespace) {
                Ok(caller) if caller.capabilities & SYS_ADMIN != 0 => Ok(bytes.len()),
                _ => Err(Errno::PERM),
            },
            // Some files of the kernel check the capabilities of the process that writes (`netdev_store`:
            // CAP_NET_ADMIN), and must check those of the program. A program that cannot be inspected has no rights.
            Self::Write(fd, offset) => {
                let Caller { capabilities, user, .. } = Caller::of(writer, user_namespace).map_err(|_| Errno::PERM)?;
                let written = with_rights(capabilities, user, || rustix::io::pwrite(fd, bytes, offset));
                written.map_err(|error| errno_of(&error))?
            }
            // `node_desc_store` keeps the newline.
            Self::DescribeRdma(card, index) => {
                let change = RdmaChange::Describe { index, text: bytes.iter().copied().take(NODE_DESC_MAX).collect() };
                rdma_system::change(&merged.cards, card, &change, None).map(|()| bytes.len())
            }
            Self::Perform(of, command) => {
                let meant = merged.cards.each().enumerate().filter(|(at, _)| of.is_none_or(|of| of == *at));
                for (_, card) in meant {
                    card.perform(&command).map_err(|refusal| refusal.errno)?;
                }
                Ok(bytes.len())
            }
        }
    }
}

impl SysFs {
    /// Decides what a write to an attribute does. `dir`: the number of its directory.
    pub(super) fn job_for(
        &self,
        cx: Cx<'_, '_>,
        dir: u64,
        attribute: &'static Attribute,
        bytes: &[u8],
    ) -> Result<Job, Errno> {
        let tree = self.merged.tree(cx);
        let dir = tree.dir(dir).ok_or(Errno::NODEV)?;
        let write = attribute.write.ok_or(Errno::IO)?;
        match write(&self.merged.context(&tree, dir), written(bytes)?)? {
            Act::Nothing => Ok(Job::Nothing),
            Act::NothingForAdministrators => Ok(Job::NothingForAdministrators),
            Act::Perform { card, command } => Ok(Job::Perform(card, command)),
            Act::DescribeRdma { card, index } => Ok(Job::DescribeRdma(card, index)),
            Act::Uevent(action) => {
                self.merged.uevents.write(cx, &dir.path, action);
                Ok(Job::Nothing)
            }
            Act::Kernel => Ok(Job::Write(self.open_lower(dir, attribute)?, 0)),
        }
    }

    /// Opens the kernel's file of the same path. ENODEV if it has none: then it has no such device either.
    fn open_lower(&self, dir: &Dir, attribute: &Attribute) -> Result<Arc<OwnedFd>, Errno> {
        let lower = dir.lower.as_ref().ok_or(Errno::NODEV)?;
        let path = LowerPath { base: lower.base, path: format!("{}/{}", lower.path, attribute.name) };
        match self.merged.lower.open(&path, OFlags::WRONLY) {
            Ok(fd) => Ok(Arc::new(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(Errno::NODEV),
            Err(error) => Err(error),
        }
    }
}

/// Answers a write.
pub(super) fn reply_to(reply: ReplyWrite, result: Result<usize, Errno>) {
    match result {
        Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
        // FUSE refuses an answer with a larger number, and the program that wrote would wait for ever.
        Err(error) => reply.error(errno(if error.raw_os_error() < 512 { error } else { Errno::IO })),
    }
}
