//! Mounts the file system where programs look. One half runs in the lab and mounts; the other runs in the supervisor
//! and serves. They exchange messages over a pair of sockets that is made before the fork.
//!
//! The kernel's `/sys` stays mounted. Covered are only the directories in which a card has something: `bus`, `class`,
//! `devices` and `module`. So relative links lead where they should on both sides, `statfs` reports that `/sys` is a
//! sysfs, and all other files cost nothing.
//!
//! 1. The lab makes sure that `/sys` is the sysfs of its network namespace, and keeps a copy of the mount that nothing
//!    will cover. It mounts the file system over `/sys`, sends the descriptors, and waits.
//! 2. The supervisor serves, and reports it.
//! 3. The lab copies the mounts of the directories that it needs out of the file system, unmounts the file system from
//!    `/sys`, and mounts each directory where it belongs.

mod modules;
mod serve;

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, stat, statat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_change, mount_remount,
    move_mount, open_tree, unmount,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::mounts;
use crate::network::NetworkSockets;
use crate::passing::{receive, send};
use modules::Modules;

pub use serve::{Server, Serving};

/// Directories of `/sys` in which a card has something.
pub(crate) const COVERED: [&str; 4] = ["bus", "class", "devices", "module"];
/// A directory in them that is the kernel's alone, and that many programs read.
pub(crate) const KEPT: &str = "devices/system";
/// What the kernel lists as the source of the file system's mounts.
pub(crate) const SOURCE: &str = "eswitch";

/// Why `/sys` cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    /// There is no FUSE.
    #[error("a lab shows /sys through FUSE, and {reason}: {source}; {remedy}")]
    NoFuse {
        /// What is in the way.
        reason: &'static str,
        /// What to do about it.
        remedy: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The system refused something else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// A mount here would appear in other mount namespaces, too.
    #[error("the mount at {0} is shared with other mount namespaces; make mounts private or slave first")]
    Shared(PathBuf),
    /// The other half failed, and reported why in its own process.
    #[error("the other side of the lab could not {0} its /sys")]
    OtherHalf(&'static str),
}

fn system(what: impl fmt::Display) -> impl FnOnce(Errno) -> SysfsError {
    move |source| SysfsError::System { what: what.to_string(), source: source.into() }
}

/// The lab's half. It mounts, in the lab's mount namespace.
pub struct Mounter {
    socket: OwnedFd,
}

/// What a lab lacks although `/sys` is mounted, as sentences for its user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shortcomings(pub Vec<String>);

/// Makes the two halves, connected by a channel. After the fork each process must drop the other's half.
///
/// # Errors
/// This user cannot use FUSE here.
pub fn prepare() -> Result<(Mounter, Server), SysfsError> {
    open_fuse()?;
    let flags = SocketFlags::CLOEXEC;
    let (lab, supervisor) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(system("making a pair of sockets"))?;
    Ok((Mounter { socket: lab }, Server { socket: supervisor }))
}

fn open_fuse() -> Result<OwnedFd, SysfsError> {
    openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
        let (reason, remedy) = match error {
            Errno::NOENT => (
                "there is no /dev/fuse",
                "load the kernel module `fuse`; in a container, pass the device in (--device /dev/fuse)",
            ),
            Errno::NODEV | Errno::NXIO => ("this kernel has no FUSE", "load the kernel module `fuse`"),
            Errno::ACCESS | Errno::PERM => (
                "/dev/fuse may not be opened",
                "give it mode 0666, as distributions do, or run as root; in a container, pass the device in \
                 (--device /dev/fuse)",
            ),
            _ => ("/dev/fuse cannot be opened", "see whether the kernel module `fuse` is loaded"),
        };
        SysfsError::NoFuse { reason, remedy, source: error.into() }
    })
}

impl Mounter {
    /// Covers `/sys`, `/lib/modules` and `/proc/modules` in the calling thread's mount namespace, which must be
    /// the lab's own, and whose mounts must be private or slaves: nothing is undone if it fails half-way.
    ///
    /// # Errors
    /// The system refuses, or the supervisor does not serve.
    pub fn mount(&self) -> Result<Shortcomings, SysfsError> {
        let done = self.try_mount();
        if done.is_err() {
            // If this fails too, the supervisor is gone, and needs no message.
            let _ = send(&self.socket, b"no", &[]);
        }
        done
    }

    fn try_mount(&self) -> Result<Shortcomings, SysfsError> {
        let fuse = open_fuse()?;
        if let Some(path) = shared_mount() {
            return Err(SysfsError::Shared(path));
        }
        own_sysfs()?;
        let modules = Modules::find();
        let missing = self.cover(fuse, Some(&modules))?;
        if let Some(made) = modules.made {
            made.hand_over();
        }
        Ok(missing)
    }

    /// Makes a fresh sysfs of the calling thread's network namespace, with the cards in it, and returns the detached tree of
    /// its mounts. The calling thread must be in a mount namespace of its own, in which `/sys` is of no use afterwards.
    /// `source`: what the kernel lists as the mount's source. `attributes`: of each of its mounts.
    ///
    /// # Errors
    /// The system refuses, or the supervisor does not serve.
    pub(crate) fn mount_fresh(&self, source: &str, attributes: MountAttrFlags) -> Result<OwnedFd, SysfsError> {
        let made = self.try_mount_fresh(source, attributes);
        if made.is_err() {
            let _ = send(&self.socket, b"no", &[]);
        }
        made
    }

    fn try_mount_fresh(&self, source: &str, attributes: MountAttrFlags) -> Result<OwnedFd, SysfsError> {
        let fuse = open_fuse()?;
        make_private()?;
        let sys = fresh_sysfs(source, attributes).map_err(system("making a fresh sysfs"))?;
        place(&sys, "/sys").map_err(system("mounting a fresh /sys"))?;
        self.cover(fuse, None)?;
        // If the last fails, it has not been mounted.
        let _ = restrict(format!("/sys/{KEPT}"), attributes);
        for name in COVERED {
            restrict(format!("/sys/{name}"), attributes).map_err(system(format_args!("changing /sys/{name}")))?;
        }
        copy("/sys").map_err(system("copying the mount of /sys"))
    }

    /// Covers the directories of the sysfs that is mounted at `/sys`.
    fn cover(&self, fuse: OwnedFd, modules: Option<&Modules>) -> Result<Shortcomings, SysfsError> {
        let sys = copy("/sys").map_err(system("copying the mount of /sys"))?;
        let kept = copy(format!("/sys/{KEPT}")).ok();
        mount_fuse(&fuse)?;
        let network = NetworkSockets::open().map_err(|source| {
            let what = "opening netlink sockets".to_owned();
            SysfsError::System { what, source }
        })?;
        let [listener, query] = network.descriptors();
        let mut fds = vec![fuse.as_fd(), sys.as_fd(), listener, query];
        let systems = modules.and_then(|modules| modules.systems.as_ref());
        let made = modules.and_then(|modules| modules.made.as_ref());
        fds.extend(systems.map(AsFd::as_fd));
        fds.extend(made.and_then(|made| made.0.as_ref()).map(AsFd::as_fd));
        let word: &[u8] = match (systems, made) {
            (None, _) => b"plain",
            (Some(_), None) => b"modules",
            (Some(_), Some(_)) => b"modules, made",
        };
        send(&self.socket, word, &fds).map_err(system("sending the mounts to the supervisor"))?;
        drop((fuse, sys, network));
        let mut answer = [0; 16];
        match receive(&self.socket, &mut answer) {
            Ok((length, _)) if answer.get(..length) == Some(b"serving") => {}
            _ => return Err(SysfsError::OtherHalf("serve")),
        }
        put_into_place(kept.as_ref(), modules)
    }
}

/// A mount through which the lab's mounts would propagate to other mount namespaces.
fn shared_mount() -> Option<PathBuf> {
    let concerned =
        |path: &str| ["/", "/sys", "/proc", "/lib", "/usr", "/usr/lib"].contains(&path) || path.starts_with("/sys/");
    let mounts = mounts::of("thread-self").unwrap_or_default();
    mounts.into_iter().find(|mount| mount.is_shared && concerned(&mount.point)).map(|mount| mount.point.into())
}

/// Mounts the sysfs of the calling thread's network namespace at `/sys`, if the kernel allows it. Mounts in the old
/// `/sys` are mounted in the new one as well.
fn own_sysfs() -> Result<(), SysfsError> {
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    // If parts of /sys are covered, the kernel allows no fresh sysfs (`mount_too_revealing`), and the old one stays.
    let Ok(new) = fresh_sysfs("sysfs", flags | MountAttrFlags::MOUNT_ATTR_NOEXEC) else { return Ok(()) };
    let failed = |error| system("looking at /sys")(error);
    let is = statat(&new, "", AtFlags::EMPTY_PATH).map_err(failed)?;
    // Each network namespace has one sysfs, however often it is mounted.
    if stat("/sys").map_err(failed)?.st_dev == is.st_dev {
        return Ok(());
    }
    let within = mounts_in("/sys/");
    let copies: Vec<(PathBuf, OwnedFd)> =
        within.into_iter().filter_map(|path| copy(&path).ok().map(|mount| (path, mount))).collect();
    place(&new, "/sys").map_err(system("mounting a fresh /sys"))?;
    for (path, mount) in copies {
        // It fails if the new sysfs has no such directory.
        let _ = place(&mount, &path);
    }
    Ok(())
}

/// A detached mount of the sysfs of the calling thread's network namespace.
pub(crate) fn fresh_sysfs(source: &str, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let context = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Has what the calling thread mounts at `/sys` appear in no other mount namespace.
fn make_private() -> Result<(), SysfsError> {
    // The mount at `/sys`, if there is one, is what the new one is mounted on. In a plain `chroot` the root is no mount.
    let alone = mount_change("/sys", MountPropagationFlags::PRIVATE);
    alone
        .or_else(|_| mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC))
        .map_err(system("making the mounts private"))
}

/// The bits of RDONLY, NOSUID, NODEV and NOEXEC: the same in the flags of `mount` (MS_*), in those of `statvfs` (ST_*), and in
/// the attributes of a mount (MOUNT_ATTR_*).
const RESTRICTIONS: u32 = 0xf;

/// The attributes of a mount that has these flags of `mount` or of `statvfs`.
pub(crate) fn restrictions(flags: u64) -> MountAttrFlags {
    MountAttrFlags::from_bits_truncate(flags as u32 & RESTRICTIONS)
}

/// Gives a mount the attributes of another one.
fn restrict(path: impl rustix::path::Arg, attributes: MountAttrFlags) -> Result<(), Errno> {
    let flags = MountFlags::from_bits_truncate(attributes.bits() & RESTRICTIONS);
    mount_remount(path, MountFlags::BIND | flags, c"")
}

/// The outermost mounts below a path.
fn mounts_in(prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for mount in mounts::of("thread-self").unwrap_or_default() {
        if mount.point.starts_with(prefix) && !found.iter().any(|outer| Path::new(&mount.point).starts_with(outer)) {
            found.push(mount.point.into());
        }
    }
    found
}

/// A detached copy of a mount, and of the mounts in it, that nothing will cover.
fn copy(path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags)
}

fn place(mount: &OwnedFd, at: impl rustix::path::Arg) -> Result<(), Errno> {
    move_mount(mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn mount_fuse(fuse: &OwnedFd) -> Result<(), SysfsError> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let fd = std::os::fd::AsRawFd::as_raw_fd(fuse);
    let options = format!("fd={fd},rootmode=40000,user_id={user},group_id={group},allow_other,default_permissions");
    let options = CString::new(options).map_err(|_| system("mounting")(Errno::INVAL))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(SOURCE, "/sys", "fuse", flags, options.as_c_str()).map_err(|error| match error {
        Errno::NODEV => SysfsError::NoFuse {
            reason: "this kernel has no FUSE",
            remedy: "load the kernel module `fuse`",
            source: error.into(),
        },
        error => system("mounting FUSE")(error),
    })
}

/// Step 3. The file system is mounted at `/sys` when this is called.
fn put_into_place(kept: Option<&OwnedFd>, modules: Option<&Modules>) -> Result<Shortcomings, SysfsError> {
    let take = |path: &str| copy(format!("/sys/{path}")).map_err(system(format_args!("taking {path} out of FUSE")));
    let covered = COVERED.map(|name| (name, take(name)));
    let library = modules.map(|modules| take(&modules.shown)).transpose()?;
    let list = modules.map(|_| take("proc-modules")).transpose()?;
    unmount("/sys", UnmountFlags::DETACH).map_err(system("taking FUSE away from /sys"))?;
    for (name, mount) in covered {
        place(&mount?, format!("/sys/{name}")).map_err(system(format_args!("covering /sys/{name}")))?;
    }
    if let Some(kept) = kept {
        // Without it programs see the same, but more slowly.
        let _ = place(kept, format!("/sys/{KEPT}"));
    }
    let mut missing = Shortcomings::default();
    if let Some((modules, library)) = modules.zip(library)
        && let Err(error) = place(&library, &*modules.covered)
    {
        let covered = &modules.covered;
        missing.0.push(format!("modprobe and modinfo do not find the card's modules: {covered}: {error}"));
    }
    match list.map_or(Ok(()), |list| place(&list, "/proc/modules")) {
        Ok(()) => {}
        Err(Errno::NOENT) => missing.0.push(
            "lsmod shows nothing: this kernel is built without modules and has no /proc/modules; the card's are in \
             /sys/module"
                .to_owned(),
        ),
        Err(error) => missing.0.push(format!("lsmod does not show the card's modules: /proc/modules: {error}")),
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restrictions_have_the_same_bits_everywhere() {
        for (flag, status, attribute) in [
            (MountFlags::RDONLY, libc::ST_RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
            (MountFlags::NOSUID, libc::ST_NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
            (MountFlags::NODEV, libc::ST_NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
            (MountFlags::NOEXEC, libc::ST_NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        ] {
            assert_eq!((restrictions(flag.bits().into()), restrictions(status)), (attribute, attribute));
        }
        assert_eq!(restrictions(libc::MS_RELATIME | libc::MS_NODIRATIME), MountAttrFlags::empty());
    }
}
