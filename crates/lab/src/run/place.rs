//! The place of a program: its namespaces and its mounts, made for it or joined.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use netlink::Errno;
use rustix::fs::{Mode, OFlags, fstat, open, stat};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree};
use rustix::process::{chroot, fchdir};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Mounts;
use super::channel::Step;
use crate::mounts::{self, Mounted};
use crate::sys;

/// Where a program is to run.
pub(super) enum Place {
    /// In a mount namespace that is made for it.
    New {
        /// Whether this process may make a mount namespace, and keeps its privileges.
        privileged: bool,
        /// The network namespace; `None`: that of the caller.
        network: Option<OwnedFd>,
        /// The mount namespace that is copied; `None`: that of the caller.
        copied: Option<OwnedFd>,
        /// Mounts the files that show the card.
        mounts: Option<Mounts>,
    },
    /// In the namespaces of a lab that runs.
    Of(Inside),
}

/// The place of a lab that runs, in descriptors.
pub(super) struct Inside {
    /// The mount namespace.
    pub mounts: OwnedFd,
    /// The root directory in it, which a plain `chroot` may have changed.
    pub root: OwnedFd,
    /// The network namespace; `None`: that of the caller.
    pub network: Option<OwnedFd>,
}

impl Inside {
    /// The place of the calling thread. `None` for the network namespace: a process that enters the place gets that from
    /// the supervisor.
    ///
    /// # Errors
    /// There is no `/proc`, or no descriptor is left.
    pub fn of_this_thread() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mounts = std::fs::File::open("/proc/thread-self/ns/mnt")?.into();
        Ok(Self { mounts, root: open("/", flags, Mode::empty())?, network: None })
    }
}

impl Place {
    /// Whether a process that is there keeps its privileges.
    pub fn is_privileged(&self) -> bool {
        match self {
            Self::New { privileged, .. } => *privileged,
            Self::Of(_) => true,
        }
    }

    /// Moves the calling process there, which must have one thread.
    ///
    /// # Errors
    /// The step that failed, and why.
    pub fn enter(&mut self) -> Result<(), (Step, io::Error)> {
        let at = |step| move |error: io::Error| (step, error);
        match self {
            Self::New { privileged, network, copied, mounts } => {
                join(network.as_ref(), LinkNameSpaceType::Network).map_err(at(Step::Namespaces))?;
                if *privileged {
                    own_mounts(copied.as_ref()).map_err(at(Step::Namespaces))?;
                }
                mounts.as_mut().map_or(Ok(()), |mounts| mounts()).map_err(at(Step::Mounts))
            }
            Self::Of(inside) => inside.enter().map_err(at(Step::Join)),
        }
    }
}

impl Inside {
    fn enter(&self) -> io::Result<()> {
        join(self.network.as_ref(), LinkNameSpaceType::Network)?;
        let directory = WorkingDirectory::current();
        join(Some(&self.mounts), LinkNameSpaceType::Mount)?;
        fchdir(&self.root)?;
        chroot(".")?;
        directory.enter()
    }
}

fn join(namespace: Option<&OwnedFd>, kind: LinkNameSpaceType) -> io::Result<()> {
    let Some(namespace) = namespace else { return Ok(()) };
    Ok(move_into_link_name_space(namespace.as_fd(), Some(kind))?)
}

/// Makes a mount namespace. Mounts in it are not seen outside, but mounts outside are seen in it. `copied`: the namespace
/// of which it is a copy.
fn own_mounts(copied: Option<&OwnedFd>) -> io::Result<()> {
    if let Some(namespace) = copied {
        let directory = WorkingDirectory::current();
        join(Some(namespace), LinkNameSpaceType::Mount)?;
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
