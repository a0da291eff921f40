//! The process that becomes the program.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use netlink::{Errno, errno_of};
use rustix::fs::{Mode, OFlags, fstat, open, stat};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree};
use rustix::process::{Signal, chroot, fchdir, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Mounts;
use super::channel::{Step, Word, receive, send};
use crate::mounts::{self, Mounted};
use crate::sys;

/// What the process needs until it becomes the program.
pub(super) struct Program {
    pub command: Command,
    pub filter: Vec<sys::FilterOp>,
    /// Whether it may make a mount namespace, and keeps its privileges.
    pub privileged: bool,
    pub network: Option<OwnedFd>,
    pub namespace: Option<OwnedFd>,
    pub mounts: Option<Mounts>,
    /// The channel to the supervisor.
    pub calls: OwnedFd,
}

impl Program {
    /// Becomes the program when the front sends `Go`. If the front ends first, so does this process: the channel
    /// `front` reports it, and a signal does wherever else this process waits.
    pub fn become_it(mut self, front: &OwnedFd) -> ! {
        let (step, error) = match self.try_become_it(front) {
            Ok(never) => match never {},
            Err(failed) => failed,
        };
        let _ = send(front, Word::Failed(step, errno_of(&error)), None);
        sys::exit(125)
    }

    fn try_become_it(&mut self, front: &OwnedFd) -> Result<Infallible, (Step, io::Error)> {
        // SIGKILL needs no handler and cannot be ignored. If the front has ended before this call, the channel reports
        // it below.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        self.prepare()?;
        let at = |error| (Step::Program, error);
        send(front, Word::Ready, None).map_err(at)?;
        match receive(front).map_err(at)? {
            (Word::Go, _) => Err(at(self.command.exec())),
            _ => Err(at(io::ErrorKind::InvalidData.into())),
        }
    }

    fn prepare(&mut self) -> Result<(), (Step, io::Error)> {
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

    /// Makes a mount namespace. Mounts in it are not seen outside, but mounts outside are seen in it.
    fn own_mounts(&self) -> io::Result<()> {
        if let Some(namespace) = &self.namespace {
            let directory = WorkingDirectory::current();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
            directory.enter()?;
        }
        sys::unshare_mounts()?;
        // A namespace that `ip netns` makes in a lab must appear outside, where others look for it.
        let named = if is_shared(NAMED) { Some(copy_of(NAMED)?) } else { None };
        if !is_mounted("/") {
            enter_copy_of_root()?;
        }
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        if let Some(named) = named {
            move_mount(named, "", rustix::fs::CWD, NAMED, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        }
        Ok(())
    }
}

/// After a plain `chroot` the root is a directory of some mount, and only a mount can be kept from propagating. So the process
/// changes its root to a copy of it, which is a mount. A copy must be mounted somewhere: on the first mount below the root, of
/// which the copy has a copy of its own.
fn enter_copy_of_root() -> io::Result<()> {
    let copy = copy_of("/")?;
    let directory = WorkingDirectory::current();
    let is_directory = |mount: &Mounted| stat(&*mount.point).is_ok_and(|found| is_directory(&found));
    let place = mounts().into_iter().find(is_directory).ok_or(Errno::INVAL)?.point;
    // As long as the mount propagates, what is mounted on it is seen in other namespaces.
    mount_change(&*place, MountPropagationFlags::DOWNSTREAM)?;
    move_mount(&copy, "", rustix::fs::CWD, &*place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    fchdir(&copy)?;
    chroot(".")?;
    directory.enter()
}

fn is_directory(found: &rustix::fs::Stat) -> bool {
    rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::Directory
}

fn is_mounted(path: &str) -> bool {
    mounts().iter().any(|mount| mount.point == path)
}

fn mounts() -> Vec<Mounted> {
    mounts::of("thread-self").unwrap_or_default()
}

/// The directory in which a program is to start. The kernel puts a process that joins a mount namespace into its root.
struct WorkingDirectory {
    path: Option<PathBuf>,
    itself: Option<OwnedFd>,
}

impl WorkingDirectory {
    fn current() -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self { path: std::env::current_dir().ok(), itself: open(".", flags, Mode::empty()).ok() }
    }

    /// Changes to the directory: by its path, if that leads to the same directory in this namespace, else by its
    /// descriptor; then it is the same directory, but has no path here.
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

/// Where `ip netns` mounts its namespaces.
const NAMED: &str = "/run/netns";

fn copy_of(path: &str) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(rustix::fs::CWD, path, flags)?)
}

/// Whether a shared mount is at a path.
fn is_shared(path: &str) -> bool {
    mounts().iter().any(|mount| mount.point == path && mount.is_shared)
}
