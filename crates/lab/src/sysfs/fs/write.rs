//! Writing: what becomes of a text that is written to an attribute.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use control::Command;
use fuser::ReplyWrite;
use netlink::{Errno, errno_of};
use rustix::fs::OFlags;

use super::super::place::Scene;
use super::super::text::written;
use super::super::tree::{Act, Attribute, Dir, Under};
use super::{SysFs, errno};
use crate::process::{Caller, Home, SYS_ADMIN, with_rights};

/// Something that may take long.
pub(super) enum Job {
    Nothing,
    NothingOfAdministrators,
    Perform(Option<usize>, Command),
    Write(Arc<OwnedFd>, u64),
}

impl Job {
    /// Does it for a thread, which waits for it.
    pub(super) fn run(self, scene: &Scene, writer: u32, home: &Home, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::Nothing => Ok(bytes.len()),
            Self::NothingOfAdministrators => match Caller::of(writer, home) {
                Ok(caller) if caller.capabilities & SYS_ADMIN != 0 => Ok(bytes.len()),
                _ => Err(Errno::PERM),
            },
            // The kernel asks what whoever writes may do (`netdev_store` asks for CAP_NET_ADMIN), and is to ask it of
            // the program. One that cannot be looked at has no rights.
            Self::Write(fd, offset) => {
                let Caller { capabilities, user, .. } = Caller::of(writer, home).map_err(|_| Errno::PERM)?;
                let written = with_rights(capabilities, user, || rustix::io::pwrite(fd, bytes, offset));
                written.map_err(|error| errno_of(&error))?
            }
            Self::Perform(of, command) => {
                let meant = scene.cards.iter().enumerate().filter(|(at, _)| of.is_none_or(|of| of == *at));
                for (_, card) in meant {
                    card.perform(&command).map_err(|refusal| refusal.errno)?;
                }
                Ok(bytes.len())
            }
        }
    }
}

impl SysFs {
    /// What is to be done about something written to an attribute.
    pub(super) fn act(&self, dir: u64, attribute: &'static Attribute, bytes: &[u8]) -> Result<Job, Errno> {
        let tree = self.scene.tree();
        let dir = tree.dir(dir).ok_or(Errno::NODEV)?;
        let write = attribute.write.ok_or(Errno::IO)?;
        match write(&self.scene.shown(&tree, dir), written(bytes)?)? {
            Act::Nothing => Ok(Job::Nothing),
            Act::NothingOfAdministrators => Ok(Job::NothingOfAdministrators),
            Act::Perform { card, command } => Ok(Job::Perform(card, command)),
            Act::Kernel => Ok(Job::Write(self.kernels(dir, attribute)?, 0)),
        }
    }

    /// The kernel's file of the same path. If it has none, it has no such device either.
    pub(super) fn kernels(&self, dir: &Dir, attribute: &Attribute) -> Result<Arc<OwnedFd>, Errno> {
        let under = dir.under.as_ref().ok_or(Errno::NODEV)?;
        let place = Under { base: under.base, path: format!("{}/{}", under.path, attribute.name) };
        match self.scene.beneath.open(&place, OFlags::WRONLY) {
            Ok(fd) => Ok(Arc::new(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(Errno::NODEV),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn done(reply: ReplyWrite, result: Result<usize, Errno>) {
    match result {
        Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
        // An answer with a number that FUSE does not take would be refused, and whoever wrote would wait for ever.
        Err(error) => reply.error(errno(if error.raw_os_error() < 512 { error } else { Errno::IO })),
    }
}
