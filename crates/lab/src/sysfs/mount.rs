//! How the file system gets to where programs look: one half in the lab, which mounts, and one in the
//! supervisor, which serves. They speak over a pair of sockets made before they part.
//!
//! The kernel's `/sys` stays where it is. Covered are the directories in which a card has something:
//! `bus`, `class`, `devices` and `module`. So relative links lead where they should, whichever side they
//! are on, `/sys` is a sysfs to those who ask, and everything else costs nothing.
//!
//! 1. The lab makes sure that `/sys` is the one of its network namespace, and keeps a copy of the mount
//!    which nothing will cover. It mounts the file system over `/sys`, sends the descriptors, and waits.
//! 2. The supervisor serves, and says so.
//! 3. The lab takes the directories it wants out of the file system, takes the file system away from `/sys`,
//!    and puts each directory into its place.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, openat, stat, statat};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsmount, fsopen, mount, move_mount, open_tree, unmount,
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::fs::SysFs;
use super::place::Scene;
use super::under::Beneath;
use crate::Card;

/// Directories of `/sys` in which a card has something.
const COVERED: [&str; 4] = ["bus", "class", "devices", "module"];
/// What in them is the kernel's alone, and read by every other program.
const KEPT: &str = "devices/system";
/// One would be faster by a fifth; but a read of the kernel's may wait while VFs come.
const THREADS: usize = 4;

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
        /// What came of it.
        source: io::Error,
    },
    /// The system refused something else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What came of it.
        source: io::Error,
    },
    /// What would be mounted here would be mounted elsewhere too.
    #[error("the mount at {0} is shared with other mount namespaces; make mounts private or slave first")]
    Shared(PathBuf),
    /// The other half failed, and said why where it is.
    #[error("the other side of the lab could not {0} its /sys")]
    OtherHalf(&'static str),
}

fn system(what: impl fmt::Display) -> impl FnOnce(Errno) -> SysfsError {
    move |source| SysfsError::System { what: what.to_string(), source: source.into() }
}

/// What the lab has to do, in its mount namespace.
pub struct Mounter {
    socket: OwnedFd,
}

/// What the supervisor has to do.
pub struct Server {
    socket: OwnedFd,
}

/// What a lab could not be given, as sentences for its user; `/sys` itself it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shortcomings(pub Vec<String>);

/// Opens the way between the two halves. After the fork each side drops the other's half.
///
/// # Errors
/// There is no FUSE here for this user.
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
            // If that fails too, the supervisor has gone, and nobody needs it.
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
        let sys = copy("/sys").map_err(system("copying the mount of /sys"))?;
        let kept = copy(format!("/sys/{KEPT}")).ok();
        let modules = Modules::find();
        mount_fuse(&fuse)?;
        let mut fds = vec![fuse.as_fd(), sys.as_fd()];
        fds.extend(modules.systems.as_ref().map(AsFd::as_fd));
        fds.extend(modules.made.as_ref().and_then(|made| made.0.as_ref()).map(AsFd::as_fd));
        let word: &[u8] = match (&modules.systems, &modules.made) {
            (None, _) => b"plain",
            (Some(_), None) => b"modules",
            (Some(_), Some(_)) => b"modules, made",
        };
        send(&self.socket, word, &fds).map_err(system("sending the mounts to the supervisor"))?;
        drop((fuse, sys));
        let mut answer = [0; 16];
        match receive(&self.socket, &mut answer) {
            Ok((length, _)) if answer.get(..length) == Some(b"serving") => {}
            _ => return Err(SysfsError::OtherHalf("serve")),
        }
        let missing = put_into_place(kept.as_ref(), &modules)?;
        if let Some(made) = modules.made {
            made.hand_over();
        }
        Ok(missing)
    }
}

/// A mount from which those of a lab would spread to where there is none.
fn shared_mount() -> Option<PathBuf> {
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let shared = |line: &str| {
        let mut fields = line.split(' ').skip(4);
        let path = fields.next()?;
        let concerned = ["/", "/sys", "/proc", "/lib", "/usr", "/usr/lib"].contains(&path) || path.starts_with("/sys/");
        let shared = fields.take_while(|field| *field != "-").any(|field| field.starts_with("shared:"));
        (concerned && shared).then(|| path.into())
    };
    text.lines().find_map(shared)
}

/// Makes `/sys` that of the calling thread's network namespace, where the kernel allows. What was mounted in
/// the old one is in the new one too.
fn own_sysfs() -> Result<(), SysfsError> {
    let new = || {
        let context = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags | MountAttrFlags::MOUNT_ATTR_NOEXEC)
    };
    // Where parts of /sys are covered the kernel gives no fresh one, and the old has to do.
    let Ok(new) = new() else { return Ok(()) };
    let failed = |error| system("looking at /sys")(error);
    let is = statat(&new, "", AtFlags::EMPTY_PATH).map_err(failed)?;
    // There is one file system for each network namespace, however often it is mounted.
    if stat("/sys").map_err(failed)?.st_dev == is.st_dev {
        return Ok(());
    }
    let within = mounts_in("/sys/");
    let copies: Vec<(PathBuf, OwnedFd)> =
        within.into_iter().filter_map(|path| copy(&path).ok().map(|mount| (path, mount))).collect();
    place(&new, "/sys").map_err(system("mounting a fresh /sys"))?;
    for (path, mount) in copies {
        // A directory that the other network namespace's has not.
        let _ = place(&mount, &path);
    }
    Ok(())
}

/// The outermost mounts below a path.
fn mounts_in(prefix: &str) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = Vec::new();
    for line in text.lines() {
        let Some(path) = line.split(' ').nth(4).filter(|path| path.starts_with(prefix)) else { continue };
        if !found.iter().any(|outer| Path::new(path).starts_with(outer)) {
            found.push(path.into());
        }
    }
    found
}

/// A copy of a mount, with what is mounted in it, that nothing will cover.
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
    mount("eswitch", "/sys", "fuse", flags, options.as_c_str()).map_err(|error| match error {
        Errno::NODEV => SysfsError::NoFuse {
            reason: "this kernel has no FUSE",
            remedy: "load the kernel module `fuse`",
            source: error.into(),
        },
        error => system("mounting FUSE")(error),
    })
}

/// Step 3. The file system is at `/sys` now.
fn put_into_place(kept: Option<&OwnedFd>, modules: &Modules) -> Result<Shortcomings, SysfsError> {
    let take = |path: &str| copy(format!("/sys/{path}")).map_err(system(format_args!("taking {path} out of FUSE")));
    let covered = COVERED.map(|name| (name, take(name)));
    let library = take(&modules.shown)?;
    let list = take("proc-modules")?;
    unmount("/sys", UnmountFlags::DETACH).map_err(system("taking FUSE away from /sys"))?;
    for (name, mount) in covered {
        place(&mount?, format!("/sys/{name}")).map_err(system(format_args!("covering /sys/{name}")))?;
    }
    if let Some(kept) = kept {
        // Without it everything is the same, if slower.
        let _ = place(kept, format!("/sys/{KEPT}"));
    }
    let mut missing = Shortcomings::default();
    if let Err(error) = place(&library, &*modules.covered) {
        let covered = &modules.covered;
        missing.0.push(format!("modprobe and modinfo do not find the card's modules: {covered}: {error}"));
    }
    match place(&list, "/proc/modules") {
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

/// `/lib/modules`, which need not be there: what is covered, with what, and what is seen through it.
struct Modules {
    systems: Option<OwnedFd>,
    covered: String,
    shown: String,
    /// It was made, to be covered.
    made: Option<Made>,
}

const MODULES: &str = "/lib/modules";

impl Modules {
    fn find() -> Self {
        let release = release();
        let own = format!("{MODULES}/{release}");
        let systems = copy(MODULES).ok();
        if Path::new(&own).is_dir() {
            return Self { systems, covered: own, shown: format!("lib-modules/{release}"), made: None };
        }
        let made = if systems.is_none() || is_made_by_a_lab(MODULES) { Made::new() } else { None };
        let systems = systems.or_else(|| copy(MODULES).ok());
        Self { systems, covered: MODULES.to_owned(), shown: "lib-modules".to_owned(), made }
    }
}

/// The mode of a directory that a lab has made, by which another lab knows it.
const MADE_BY_A_LAB: u32 = 0o555;

fn is_made_by_a_lab(path: &str) -> bool {
    let empty = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    empty && stat(path).is_ok_and(|status| status.st_mode & 0o7777 == MADE_BY_A_LAB)
}

/// A directory that a lab has made, this one or one before it, and that the last one removes: a lock on it,
/// which each has that uses it.
#[derive(Debug)]
struct Made(Option<OwnedFd>);

impl Made {
    /// Makes it, or finds it.
    fn new() -> Option<Self> {
        // It may be removed before it is locked, and then is made again.
        for _ in 0..100 {
            if std::fs::create_dir(MODULES).is_ok() {
                rustix::fs::chmod(MODULES, Mode::from_raw_mode(MADE_BY_A_LAB)).ok()?;
            }
            let dir = match open_dir(MODULES) {
                Err(Errno::NOENT) => continue,
                dir => dir.ok()?,
            };
            flock(&dir, FlockOperation::LockShared).ok()?;
            if stat(MODULES)
                .is_ok_and(|now| statat(&dir, "", AtFlags::EMPTY_PATH).is_ok_and(|s| s.st_ino == now.st_ino))
            {
                return Some(Self(Some(dir)));
            }
        }
        None
    }

    /// The other side of the lab has the lock from now on.
    fn hand_over(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let Some(dir) = self.0.take() else { return };
        // Unlocked first: of two that end at the same time, each would see the other's lock.
        let _ = flock(&dir, FlockOperation::Unlock);
        let Ok(again) = open_dir(MODULES) else { return };
        if flock(&again, FlockOperation::NonBlockingLockExclusive).is_ok() && is_made_by_a_lab(MODULES) {
            let _ = std::fs::remove_dir(MODULES);
        }
    }
}

fn open_dir(path: &str) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// What `uname -r` says.
fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn send(socket: &OwnedFd, word: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE);
    }
    sendmsg(socket, &[IoSlice::new(word)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

fn receive(socket: &OwnedFd, word: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::io::retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(word)], &mut control, flags))?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((received.bytes, fds))
}

impl Server {
    /// Waits until the lab has mounted, and serves from then on, in threads of its own.
    ///
    /// # Errors
    /// The lab could not mount, or has ended.
    pub fn serve(self, cards: Vec<Arc<dyn Card>>) -> Result<Serving, SysfsError> {
        let mut word = [0; 16];
        let (length, fds) = receive(&self.socket, &mut word).map_err(system("receiving from the lab"))?;
        let word = word.get(..length).unwrap_or_default();
        let mut fds = fds.into_iter();
        let (Some(fuse), Some(sys)) = (fds.next(), fds.next()) else {
            return Err(SysfsError::OtherHalf("mount"));
        };
        let modules = if word.starts_with(b"modules") { fds.next() } else { None };
        let made = if word.ends_with(b"made") { fds.next() } else { None }.map(|dir| Made(Some(dir)));
        let scene = Scene::new(cards, Beneath::new(sys, modules), release());
        let mut config = fuser::Config::default();
        config.acl = fuser::SessionACL::All;
        config.n_threads = Some(THREADS);
        let session = fuser::Session::from_fd(SysFs::new(scene), fuse, fuser::SessionACL::All, config);
        let failed = |source| SysfsError::System { what: "serving /sys".to_owned(), source };
        // Its threads end when the lab's mount namespace does.
        session.and_then(fuser::Session::spawn).map_err(failed)?;
        send(&self.socket, b"serving", &[]).map_err(system("answering the lab"))?;
        Ok(Serving { _made: made })
    }
}

/// What there is while `/sys` is served. It is to be dropped when the lab has ended.
#[derive(Debug)]
pub struct Serving {
    _made: Option<Made>,
}
