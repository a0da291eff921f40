//! `mount`, and `fsmount` with `move_mount`: a sysfs that a program mounts shows the cards, as `/sys` does in which the program was started.
//! `ip netns exec` mounts one, and so does every container runtime.
//!
//! The supervisor makes the mount itself: a fresh sysfs of the program's network namespace, with the cards' directories on
//! top, appears at its place as a whole. It does so only for a program to which the kernel would give a fresh sysfs. In
//! every other case, and if anything fails on the way, the kernel carries the call out and has its own answer.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use netlink::{Errno, errno_of};
use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags, StatxFlags, fstatfs, fstatvfs, openat, statfs, statx};
use rustix::mount::{
    FsMountFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, fsmount as fsmount_here, mount_remount,
    move_mount, open_tree,
};
use rustix::process::fchdir;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::read_text;
use crate::lock_order::Cx;
use crate::process::{self, Place, SYS_ADMIN};
use crate::supervisor::{Answer, Lab};
use crate::sys::{self, Notification};
use crate::sysfs;

/// PATH_MAX.
const PATH: usize = 4096;
/// The longest name of a file system type that matters here, and its end.
const TYPE: usize = 16;
/// The threads that serve one fresh sysfs.
const THREADS: usize = 1;

/// MS_MGC_VAL: old programs set it in the upper half of the flags.
const MAGIC: u64 = 0xc0ed_0000;
const MAGIC_MASK: u64 = 0xffff_0000;

/// What `mount` does with such flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// Mounts a new file system.
    New,
    /// Mounts what is at another place, without what is mounted there.
    Bind,
    /// Changes the flags of one mount.
    Change,
    /// Something that concerns no mount of the lab, or all mounts below a place.
    Other,
}

impl Operation {
    /// In the order in which the kernel looks at the flags (`path_mount`).
    fn of(flags: u64) -> Self {
        let has = |flag: libc::c_ulong| flags & flag != 0;
        if has(libc::MS_REMOUNT) {
            return if has(libc::MS_BIND) { Self::Change } else { Self::Other };
        }
        if has(libc::MS_BIND) {
            return if has(libc::MS_REC) { Self::Other } else { Self::Bind };
        }
        if has(libc::MS_SHARED | libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_UNBINDABLE | libc::MS_MOVE) {
            return Self::Other;
        }
        Self::New
    }
}

fn flags_of(call: &Notification) -> u64 {
    let flags = call.data.args[3];
    if flags & MAGIC_MASK == MAGIC { flags & !MAGIC_MASK } else { flags }
}

/// `mount(source, target, type, flags, data)`.
pub(super) fn mount(lab: &Arc<Lab>, call: &Notification) -> Answer {
    let later = |work| lab.answer_later(*call, work);
    match Operation::of(flags_of(call)) {
        Operation::New if is_sysfs(lab, call) => later(|_, lab, call| by_lab(lab, call, mount_new)),
        Operation::Bind => later(|_, lab, call| by_lab(lab, call, bind)),
        Operation::Change => later(|_, lab, call| by_lab(lab, call, change)),
        _ => Answer::Continue,
    }
}

/// `fsmount(context, flags, attributes)`.
pub(super) fn fsmount(lab: &Arc<Lab>, call: &Notification) -> Answer {
    lab.answer_later(*call, |cx, lab, call| mount_context(cx, lab, call).into())
}

fn is_sysfs(lab: &Lab, call: &Notification) -> bool {
    lab.shows_sysfs && read_text(lab, call, call.data.args[2], TYPE).is_ok_and(|kind| kind == "sysfs")
}

/// Has the lab carry a call out. `None` and errors: it is the kernel's.
fn by_lab(lab: &Lab, call: &Notification, work: fn(&Lab, &Notification) -> io::Result<Option<()>>) -> Answer {
    match work(lab, call) {
        Ok(Some(())) => Answer::Value(0),
        _ => Answer::Continue,
    }
}

/// The attributes of a mount with these flags of `mount` (`path_mount`).
fn attributes(flags: u64) -> MountAttrFlags {
    let mut attributes = MountAttrFlags::empty();
    for (flag, attribute) in [
        (libc::MS_RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (libc::MS_NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (libc::MS_NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (libc::MS_NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (libc::MS_NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        (libc::MS_NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (libc::MS_STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
    ] {
        attributes.set(attribute, flags & flag != 0);
    }
    attributes
}

fn mount_new(lab: &Lab, call: &Notification) -> io::Result<Option<()>> {
    let [source, target, _, _, data, _] = call.data.args;
    let source = if source == 0 { String::new() } else { read_text(lab, call, source, PATH)? };
    let target = read_text(lab, call, target, PATH)?;
    let place = Place::of(call.pid)?;
    // A sysfs has no options.
    let has_options = data != 0 && !read_text(lab, call, data, PATH)?.is_empty();
    let flags = flags_of(call);
    let is_read_only = flags & libc::MS_RDONLY != 0;
    if has_options || !lab.still_waits(call) || !may_have_sysfs(lab, &place, is_read_only) {
        return Ok(None);
    }
    let source = if source.is_empty() { "none" } else { &source };
    let tree = fresh(lab, &place, source, attributes(flags))?;
    inside(&place, || {
        let target = place.open(&target, true)?;
        put(&tree, &target)
    })?;
    Ok(Some(()))
}

/// Whether the kernel would give a program a fresh sysfs (`do_new_mount`, `sysfs_init_fs_context`, `mount_too_revealing`).
fn may_have_sysfs(lab: &Lab, place: &Place, is_read_only: bool) -> bool {
    let is_capable = |namespace| process::is_capable(place.thread, SYS_ADMIN, namespace);
    is_capable(place.mounts.as_fd())
        && is_capable(place.network.as_fd())
        && (is_trusted(lab, place) || shows_all_of_sysfs(place, is_read_only))
}

/// Whether a program's mounts are those of the initial user namespace, to which the kernel refuses no sysfs.
fn is_trusted(lab: &Lab, place: &Place) -> bool {
    lab.user_namespace.is_initial() && lab.user_namespace.owns(place.mounts.as_fd())
}

/// Directories of a sysfs that are there to be mounted on, and so hide nothing if they are (`sysfs_create_mount_point`).
const MOUNT_POINTS: [&str; 12] = [
    "firmware/efi/efivars",
    "fs/bpf",
    "fs/cgroup",
    "fs/fuse/connections",
    "fs/pstore",
    "fs/resctrl",
    "fs/selinux",
    "fs/smackfs",
    "kernel/config",
    "kernel/debug",
    "kernel/security",
    "kernel/tracing",
];

/// Whether a program sees a whole sysfs already, so that a fresh one reveals nothing (`mnt_already_visible`). What the lab
/// has mounted in it hides nothing.
fn shows_all_of_sysfs(place: &Place, is_read_only: bool) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{}/mountinfo", place.thread)).unwrap_or_default();
    let mounts: Vec<Mounted<'_>> = text.lines().filter_map(Mounted::read).collect();
    mounts.iter().filter(|mount| mount.kind == "sysfs" && mount.root == "/").any(|sysfs| {
        let hides = |mount: &Mounted<'_>| {
            let within = mount.point.strip_prefix(sysfs.point).map_or("", |path| path.trim_start_matches('/'));
            mount.parent == sysfs.id && !mount.is_lab() && !MOUNT_POINTS.contains(&within)
        };
        (is_read_only || !sysfs.is_read_only) && !mounts.iter().any(hides)
    })
}

/// A line of `/proc/PID/mountinfo`.
struct Mounted<'a> {
    id: &'a str,
    parent: &'a str,
    root: &'a str,
    point: &'a str,
    is_read_only: bool,
    kind: &'a str,
    source: &'a str,
}

impl<'a> Mounted<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ');
        let (id, parent, _, root, point) = (mount.next()?, mount.next()?, mount.next()?, mount.next()?, mount.next()?);
        let is_read_only = mount.next()?.split(',').any(|option| option == "ro");
        let mut file_system = file_system.split(' ');
        Some(Self { id, parent, root, point, is_read_only, kind: file_system.next()?, source: file_system.next()? })
    }

    fn is_lab(&self) -> bool {
        (self.kind, self.source) == ("fuse", sysfs::SOURCE)
    }
}

/// Makes a fresh sysfs of a program's network namespace, in which the cards are seen.
fn fresh(lab: &Lab, place: &Place, source: &str, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let (mounter, server) = sysfs::prepare().map_err(io::Error::other)?;
    thread::scope(|scope| {
        let mounting = thread::Builder::new().spawn_scoped(scope, move || {
            sys::unshare_mounts()?;
            move_into_link_name_space(place.network.as_fd(), Some(LinkNameSpaceType::Network))?;
            mounter.mount_fresh(source, attributes).map_err(io::Error::other)
        })?;
        let cards = lab.cards.each().map(Arc::clone).collect();
        // Its threads are started here, outside of the namespaces of the program, which must not outlive the program.
        let serving =
            server.serve_with(cards, Arc::clone(&lab.cards.rdma), Arc::clone(&lab.uevents), &lab.domain, THREADS);
        let tree = mounting.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
        serving.map_err(io::Error::other)?;
        Ok(tree)
    })
}

/// Runs `work` on a thread in a program's mount namespace.
fn inside<T: Send>(place: &Place, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, || {
            sys::unshare_directories()?;
            move_into_link_name_space(place.mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
            work()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    })
}

/// Mounts a detached tree.
fn put(tree: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}

/// SYSFS_MAGIC.
const SYSFS: u64 = 0x6265_6572;

fn is_of_sysfs(dir: &OwnedFd) -> bool {
    fstatfs(dir).is_ok_and(|found| found.f_type as u64 == SYSFS)
}

/// Whether a directory is the root of a sysfs on which the lab has mounted the cards' directories.
fn is_covered(dir: &OwnedFd) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let class = || openat(dir, sysfs::COVERED[0], flags, Mode::empty());
    is_of_sysfs(dir) && class().is_ok_and(|class| fstatfs(class).is_ok_and(|found| sysfs::is_ours(&found)))
}

/// `mount --bind /sys TARGET`: what is bound has the cards' directories, too, which in hardware are in the sysfs itself.
fn bind(lab: &Lab, call: &Notification) -> io::Result<Option<()>> {
    let [source, target, ..] = call.data.args;
    let (source, target) = (read_text(lab, call, source, PATH)?, read_text(lab, call, target, PATH)?);
    let place = Place::of(call.pid)?;
    if !lab.still_waits(call) || !process::is_capable(place.thread, SYS_ADMIN, place.mounts.as_fd()) {
        return Ok(None);
    }
    inside(&place, || {
        let source = place.open(&source, true)?;
        if !is_covered(&source) {
            return Ok(None);
        }
        let target = place.open(&target, true)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(&source, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?;
        put(&tree, &target).map(Some)
    })
}

/// `mount -o remount,bind,ro /sys`: the cards' directories become what the sysfs becomes. The sysfs itself is the kernel's.
fn change(lab: &Lab, call: &Notification) -> io::Result<Option<()>> {
    let target = read_text(lab, call, call.data.args[1], PATH)?;
    let place = Place::of(call.pid)?;
    if !lab.still_waits(call) || !process::is_capable(place.thread, SYS_ADMIN, place.mounts.as_fd()) {
        return Ok(None);
    }
    let flags = flags_of(call) & !(libc::MS_REMOUNT | libc::MS_BIND);
    let flags = MountFlags::from_bits_truncate(flags as u32) | MountFlags::BIND;
    inside(&place, || {
        let target = place.open(&target, true)?;
        if is_covered(&target) {
            fchdir(&target)?;
            for name in sysfs::COVERED {
                if statfs(name).is_ok_and(|found| sysfs::is_ours(&found)) {
                    mount_remount(name, flags, c"")?;
                }
            }
        }
        Ok(None)
    })
}

/// Mounts that programs have made and not put into place yet.
///
/// A program of a user namespace of its own cannot have the kernel make the mount of a sysfs: what the lab has mounted over
/// `/sys` stands in the way (`mount_too_revealing`). So the lab makes it, and gives the program the mount's root directory:
/// the kernel passes no descriptor with O_PATH on (SECCOMP_IOCTL_NOTIF_ADDFD), as that of a mount is. The mount itself
/// waits here.
#[derive(Default)]
pub(crate) struct Detached(VecDeque<(u64, OwnedFd)>);

impl Detached {
    /// How many wait at most; beyond, the oldest is given up.
    const MOST: usize = 64;

    fn add(&mut self, id: u64, mount: OwnedFd) {
        self.0.push_back((id, mount));
        if self.0.len() > Self::MOST {
            self.0.pop_front();
        }
    }

    fn take(&mut self, id: u64) -> Option<OwnedFd> {
        let at = self.0.iter().position(|(detached, _)| *detached == id)?;
        self.0.remove(at).map(|(_, mount)| mount)
    }
}

/// The number of the mount that a descriptor is in.
fn mount_id(fd: impl AsFd) -> io::Result<u64> {
    // STATX_MNT_ID.
    let wanted = StatxFlags::MNT_ID;
    Ok(statx(fd, "", AtFlags::EMPTY_PATH, wanted)?.stx_mnt_id)
}

/// Makes the mount of a file system context on the program's behalf; if it is a sysfs, one with the cards.
fn mount_context(cx: Cx<'_, '_>, lab: &Lab, call: &Notification) -> io::Result<Answer> {
    let [context, flags, attributes, ..] = call.data.args;
    let Ok(place) = Place::of(call.pid) else { return Ok(Answer::Continue) };
    let Ok(context) = process::take_fd(call.pid, context as u32) else { return Ok(Answer::Continue) };
    let (Some(flags), Some(attributes)) =
        (FsMountFlags::from_bits(flags as u32), MountAttrFlags::from_bits(attributes as u32))
    else {
        return Ok(Answer::Continue);
    };
    let may_mount = process::is_capable(place.thread, SYS_ADMIN, place.mounts.as_fd());
    // Where the kernel refuses no sysfs, it makes the mount, and `move_mount` gets the cards.
    if !lab.shows_sysfs || !lab.still_waits(call) || !may_mount || is_trusted(lab, &place) {
        return Ok(Answer::Continue);
    }
    let make = || Ok(fsmount_here(&context, flags | FsMountFlags::FSMOUNT_CLOEXEC, attributes)?);
    let is_read_only = attributes.contains(MountAttrFlags::MOUNT_ATTR_RDONLY);
    let mount = match inside(&place, || Ok(make())) {
        // The thread cannot get there.
        Err(_) => return Ok(Answer::Continue),
        // What the lab has mounted over a sysfs must not be what refuses another one.
        Ok(Err(error)) if errno_of(&error) == Errno::PERM && may_have_sysfs(lab, &place, is_read_only) => {
            match make() {
                Ok(mount) if is_of_sysfs(&mount) => mount,
                _ => return Err(error),
            }
        }
        Ok(made) => made?,
    };
    let mount = if is_of_sysfs(&mount) && may_have_sysfs(lab, &place, is_read_only) {
        fresh(lab, &place, "sysfs", attributes).unwrap_or(mount)
    } else {
        mount
    };
    let root = openat(&mount, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    lab.detached.lock_leaf(cx).add(mount_id(&mount)?, mount);
    let cloexec = flags.contains(FsMountFlags::FSMOUNT_CLOEXEC);
    sys::respond_fd(lab.listener.as_fd(), call.id, root.as_fd(), None, cloexec)?;
    Ok(Answer::Later)
}

/// `move_mount(from, path, to, path, flags)`: what `fsmount` has made is put into place. A sysfs of the kernel's becomes one
/// with the cards.
pub(super) fn put_into_place(lab: &Arc<Lab>, call: &Notification) -> Answer {
    let flags = MoveMountFlags::from_bits_retain(call.data.args[4] as u32);
    if !lab.shows_sysfs || !flags.contains(MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH) {
        return Answer::Continue;
    }
    lab.answer_later(*call, |cx, lab, call| move_detached(cx, lab, call).unwrap_or(Answer::Continue))
}

fn move_detached(cx: Cx<'_, '_>, lab: &Lab, call: &Notification) -> io::Result<Answer> {
    let [from, from_path, to, to_path, flags, _] = call.data.args;
    let flags = MoveMountFlags::from_bits_retain(flags as u32);
    let mount = process::take_fd(call.pid, from as u32)?;
    let id = mount_id(&mount)?;
    let place = Place::of(call.pid)?;
    let to_path = read_text(lab, call, to_path, PATH)?;
    if !read_text(lab, call, from_path, PATH)?.is_empty() || !lab.still_waits(call) {
        return Ok(Answer::Continue);
    }
    let target = |place: &Place| {
        let follows = flags.contains(MoveMountFlags::MOVE_MOUNT_T_SYMLINKS);
        if to as i32 == libc::AT_FDCWD || to_path.starts_with('/') {
            return place.open(&to_path, follows);
        }
        let dir = process::take_fd(call.pid, to as u32)?;
        match &*to_path {
            "" if flags.contains(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH) => Ok(dir),
            path => place.open_in(&dir, path, follows),
        }
    };
    if let Some(tree) = { lab.detached.lock_leaf(cx).take(id) } {
        let moved = inside(&place, || put(&tree, &target(&place)?));
        if moved.is_err() {
            lab.detached.lock_leaf(cx).add(id, tree);
        }
        return moved.map_or_else(|error| Ok(Answer::Errno(errno_of(&error))), |()| Ok(Answer::Value(0)));
    }
    let status = fstatvfs(&mount)?;
    let is_read_only = status.f_flag.contains(StatVfsMountFlags::RDONLY);
    if !is_of_sysfs(&mount)
        || is_covered(&mount)
        || is_mounted(&place, id)
        || !may_have_sysfs(lab, &place, is_read_only)
    {
        return Ok(Answer::Continue);
    }
    let mut attributes = MountAttrFlags::empty();
    for (flag, attribute) in [
        (StatVfsMountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (StatVfsMountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (StatVfsMountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (StatVfsMountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ] {
        attributes.set(attribute, status.f_flag.contains(flag));
    }
    let tree = fresh(lab, &place, "sysfs", attributes)?;
    inside(&place, || put(&tree, &target(&place)?))?;
    Ok(Answer::Value(0))
}

/// Whether a mount, by its number, is one of those that a program sees.
fn is_mounted(place: &Place, id: u64) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{}/mountinfo", place.thread)).unwrap_or_default();
    text.lines().any(|line| line.split(' ').next().and_then(|number| number.parse().ok()) == Some(id))
}
