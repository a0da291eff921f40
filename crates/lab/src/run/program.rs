//! The process that becomes the program.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use netlink::errno_of;
use rustix::fs::{Mode, OFlags, fstat, open, stat};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree};
use rustix::process::{Signal, fchdir, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Mounts;
use super::channel::{Step, Word, receive, send};
use crate::sys;

/// What the process does before it is the program.
pub(super) struct Program {
    pub command: Command,
    pub filter: Vec<sys::FilterOp>,
    /// Whether it may have a mount namespace, and keeps what privileges it has.
    pub privileged: bool,
    pub network: Option<OwnedFd>,
    pub namespace: Option<OwnedFd>,
    pub mounts: Option<Mounts>,
    /// The way to the supervisor.
    pub calls: OwnedFd,
}

impl Program {
    /// Becomes the program when `front` says so. If it ends first, so does this process: it learns of that by
    /// the other end of `front`, and by a signal wherever else it waits.
    pub fn become_it(mut self, front: &OwnedFd) -> ! {
        let (step, error) = match self.try_become_it(front) {
            Ok(never) => match never {},
            Err(failed) => failed,
        };
        let _ = send(front, Word::Failed(step, errno_of(&error)), None);
        sys::exit(125)
    }

    fn try_become_it(&mut self, front: &OwnedFd) -> Result<Infallible, (Step, io::Error)> {
        // It reaches who has no handlers, and cannot be ignored. That `front` ended before this is heard of
        // by what follows.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        self.be_ready()?;
        let at = |error| (Step::Program, error);
        send(front, Word::Ready, None).map_err(at)?;
        match receive(front).map_err(at)? {
            (Word::Go, _) => Err(at(self.command.exec())),
            _ => Err(at(io::ErrorKind::InvalidData.into())),
        }
    }

    fn be_ready(&mut self) -> Result<(), (Step, io::Error)> {
        let at = |step| move |error: io::Error| (step, error);
        if let Some(network) = &self.network {
            let joined = move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network));
            joined.map_err(io::Error::from).map_err(at(Step::Namespaces))?;
        }
        if self.privileged {
            self.own_mounts().map_err(at(Step::Namespaces))?;
        }
        if let Some(mounts) = &mut self.mounts {
            mounts().map_err(at(Step::Mounts))?;
        }
        if !self.privileged {
            sys::no_new_privileges().map_err(at(Step::Filter))?;
        }
        let listener = sys::listen(&self.filter).map_err(at(Step::Filter))?;
        send(&self.calls, Word::Listener, Some(&listener)).map_err(at(Step::Filter))
    }

    /// Gets a mount namespace from which nothing comes out, but into which what is mounted outside comes.
    fn own_mounts(&self) -> io::Result<()> {
        if let Some(namespace) = &self.namespace {
            let folder = Folder::current();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
            folder.enter()?;
        }
        sys::unshare_mounts()?;
        // What `ip netns` makes in a lab is to be there outside, if it is where others look for it.
        let named = if is_shared(NAMED) { Some(copy_of(NAMED)?) } else { None };
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        if let Some(named) = named {
            move_mount(named, "", rustix::fs::CWD, NAMED, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        }
        Ok(())
    }
}

/// The folder that a program is to start in. The kernel puts who joins a mount namespace into its root.
struct Folder {
    path: Option<PathBuf>,
    itself: Option<OwnedFd>,
}

impl Folder {
    fn current() -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self { path: std::env::current_dir().ok(), itself: open(".", flags, Mode::empty()).ok() }
    }

    /// Goes there by its name if that leads to the same folder here. If something else is in its place, the
    /// folder is the one that it was all the same, though it has no name here.
    fn enter(&self) -> io::Result<()> {
        let Some(itself) = &self.itself else { return Ok(()) };
        let found = fstat(itself)?;
        let same =
            |path: &Path| stat(path).is_ok_and(|there| (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino));
        match &self.path {
            Some(path) if same(path) => std::env::set_current_dir(path),
            _ => Ok(fchdir(itself)?),
        }
    }
}

/// Where `ip netns` keeps its namespaces.
const NAMED: &str = "/run/netns";

fn copy_of(path: &str) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(rustix::fs::CWD, path, flags)?)
}

/// Whether something is mounted there whose mounts are seen elsewhere, too.
fn is_shared(path: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(4);
        fields.next() == Some(path) && fields.any(|field| field.starts_with("shared:"))
    })
}
