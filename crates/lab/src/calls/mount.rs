//! `mount` and `move_mount`: a sysfs that a program mounts shows the cards, as `/sys` does in which the program was started.
//! `ip netns exec` mounts one, and so does every container runtime.
//!
//! The supervisor makes the mount itself: a fresh sysfs of the program's network namespace, with the cards' directories on
//! top, appears at its place as a whole. It does so only for a program to which the kernel would give a fresh sysfs. In
//! every other case, and if anything fails on the way, the kernel carries the call out and has its own answer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use netlink::Errno;
use rustix::fs::{AtFlags, Statx, StatxFlags, fstatvfs, statx};
use rustix::mount::{
    MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_remount, move_mount, open_tree,
    unmount,
};
use rustix::process::fchdir;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{PATH, read_text};
use crate::mounts::Mounted;
use crate::network::within;
use crate::process::{self, Place, SYS_ADMIN};
use crate::supervisor::{Answer, Lab};
use crate::sys::{self, Notification};
use crate::sysfs;

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
    let mut attributes = sysfs::restrictions(flags);
    for (flag, attribute) in [
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
    let place = Place::of(call.pid, &lab.user_namespace)?;
    // A sysfs has no options.
    let has_options = data != 0 && !read_text(lab, call, data, PATH)?.is_empty();
    if has_options || !lab.still_waits(call) || !may_have_sysfs(lab, &place) {
        return Ok(None);
    }
    let target = inside(&place, || place.open(&target, true))?;
    let source = if source.is_empty() { "none" } else { &source };
    let tree = fresh(lab, &place, source, attributes(flags_of(call)))?;
    put_for(lab, call, &place, &tree, &target)
}

/// Mounts a tree for a program, if that still waits: then what was found out about it is still so.
fn put_for(lab: &Lab, call: &Notification, place: &Place, tree: &OwnedFd, target: &OwnedFd) -> io::Result<Option<()>> {
    if !lab.still_waits(call) {
        return Ok(None);
    }
    inside(place, || put(tree, target)).map(Some)
}

/// Whether the kernel would give a program a fresh sysfs (`do_new_mount`, `sysfs_init_fs_context`, `mount_too_revealing`).
fn may_have_sysfs(lab: &Lab, place: &Place) -> bool {
    let is_capable = |namespace| process::is_capable(place.thread, SYS_ADMIN, namespace);
    is_capable(place.mounts.as_fd())
        && is_capable(place.network.as_fd())
        && (is_trusted(lab, place) || shows_all_of_sysfs(place))
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

/// Whether a program sees a whole sysfs already, and may write to it, so that a fresh one reveals and allows nothing
/// (`mnt_already_visible`). What the lab has mounted in it hides nothing. This is stricter than the kernel: it gives a
/// read-only sysfs to those who see a read-only one, and counts only mounts that cannot be unmounted.
fn shows_all_of_sysfs(place: &Place) -> bool {
    let Ok(mounts) = place.mounts() else { return false };
    let is_whole = |sysfs: &&Mounted| sysfs.kind == "sysfs" && sysfs.root == "/" && !sysfs.is_read_only;
    mounts.iter().filter(is_whole).any(|sysfs| !mounts.iter().any(|mount| hides_part_of(sysfs, mount)))
}

/// Whether a mount hides a part of a sysfs.
fn hides_part_of(sysfs: &Mounted, mount: &Mounted) -> bool {
    if mount.id == sysfs.id {
        return false;
    }
    if mount.point == sysfs.point {
        return mount.parent == sysfs.id;
    }
    let base = sysfs.point.trim_end_matches('/');
    let Some(within) = mount.point.strip_prefix(base).and_then(|rest| rest.strip_prefix('/')) else { return false };
    let is_at_mount_point = MOUNT_POINTS
        .iter()
        .any(|point| within.strip_prefix(point).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    !is_at_mount_point && !mount.is_lab(within)
}

impl Mounted {
    /// Whether the lab has made the mount, in a sysfs: `within` is its path there.
    fn is_lab(&self, within: &str) -> bool {
        let is_cover = sysfs::COVERED.contains(&within)
            && (&*self.kind, &*self.source) == ("fuse", sysfs::SOURCE)
            && self.root.strip_prefix('/') == Some(within);
        let is_kept = within == sysfs::KEPT && self.kind == "sysfs" && self.root.strip_prefix('/') == Some(sysfs::KEPT);
        is_cover || is_kept
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
        let serving = server.serve_with(cards, Arc::clone(&lab.uevents), &lab.domain, THREADS);
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

/// Whether a mount is a sysfs on which the lab has mounted the cards' directories.
fn is_covered(mounts: &[Mounted], id: &str) -> bool {
    let sysfs = mounts.iter().find(|mount| mount.id == id && mount.kind == "sysfs" && mount.root == "/");
    let Some(base) = sysfs.map(|sysfs| sysfs.point.trim_end_matches('/')) else { return false };
    let covers = |name: &str| {
        let at = format!("{base}/{name}");
        mounts.iter().any(|mount| mount.parent == id && mount.point == at && mount.is_lab(name))
    };
    sysfs::COVERED.iter().all(|name| covers(name))
}

/// `mount --bind /sys TARGET`: what is bound has the cards' directories, too, which in hardware are in the sysfs itself.
fn bind(lab: &Lab, call: &Notification) -> io::Result<Option<()>> {
    let [source, target, ..] = call.data.args;
    let (source, target) = (read_text(lab, call, source, PATH)?, read_text(lab, call, target, PATH)?);
    let place = Place::of(call.pid, &lab.user_namespace)?;
    let mounts = place.mounts()?;
    if !lab.still_waits(call) || !process::is_capable(place.thread, SYS_ADMIN, place.mounts.as_fd()) {
        return Ok(None);
    }
    inside(&place, || {
        let source = place.open(&source, true)?;
        let (id, found) = look(&source)?;
        // The root of a sysfs has the number 1.
        if found.stx_ino != 1 || !is_covered(&mounts, &id) {
            return Ok(None);
        }
        let target = place.open(&target, true)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(&source, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?;
        if !lab.still_waits(call) {
            return Ok(None);
        }
        put(&tree, &target).map(Some)
    })
}

/// `mount -o remount,bind,ro /sys`: the cards' directories become what the sysfs becomes. The sysfs itself is the kernel's.
fn change(lab: &Lab, call: &Notification) -> io::Result<Option<()>> {
    let target = read_text(lab, call, call.data.args[1], PATH)?;
    let place = Place::of(call.pid, &lab.user_namespace)?;
    let mounts = place.mounts()?;
    if !lab.still_waits(call) || !process::is_capable(place.thread, SYS_ADMIN, place.mounts.as_fd()) {
        return Ok(None);
    }
    let flags = flags_of(call) & !(libc::MS_REMOUNT | libc::MS_BIND);
    // To make them less restricted may be forbidden (`can_change_locked_flags`), which the kernel knows of the sysfs alone.
    if flags & libc::MS_RDONLY == 0 && !is_trusted(lab, &place) {
        return Ok(None);
    }
    let flags = MountFlags::from_bits_truncate(flags as u32) | MountFlags::BIND;
    inside(&place, || {
        let target = place.open(&target, true)?;
        if is_covered(&mounts, &look(&target)?.0) && lab.still_waits(call) {
            fchdir(&target)?;
            for name in sysfs::COVERED {
                mount_remount(name, flags, c"")?;
            }
        }
        Ok(None)
    })
}

/// `move_mount(from, path, to, path, flags)`: what `fsmount` has made is put into place. A sysfs of the kernel's becomes one
/// with the cards.
pub(super) fn put_into_place(lab: &Arc<Lab>, call: &Notification) -> Answer {
    let flags = MoveMountFlags::from_bits_retain(call.data.args[4] as u32);
    if !lab.shows_sysfs || !flags.contains(MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH) {
        return Answer::Continue;
    }
    lab.answer_later(*call, |_, lab, call| by_lab(lab, call, move_detached))
}

fn move_detached(lab: &Lab, call: &Notification) -> io::Result<Option<()>> {
    let [from, from_path, to, to_path, flags, _] = call.data.args;
    let flags = MoveMountFlags::from_bits(flags as u32).ok_or(Errno::INVAL)?;
    let mount = process::take_fd(call.pid, from as u32)?;
    let place = Place::of(call.pid, &lab.user_namespace)?;
    let to_path = read_text(lab, call, to_path, PATH)?;
    let is_empty = read_text(lab, call, from_path, PATH)?.is_empty();
    if !is_empty || !lab.still_waits(call) || !is_trusted(lab, &place) || !may_have_sysfs(lab, &place) {
        return Ok(None);
    }
    let (id, found) = look(&mount)?;
    if place.mounts()?.iter().any(|mounted| mounted.id == id) || !is_own_sysfs(&place, &found)? {
        return Ok(None);
    }
    // A sysfs answers at once.
    let attributes = sysfs::restrictions(fstatvfs(&mount)?.f_flag.bits());
    let target = inside(&place, || {
        let follows = flags.contains(MoveMountFlags::MOVE_MOUNT_T_SYMLINKS);
        if to as i32 == libc::AT_FDCWD || to_path.starts_with('/') {
            return place.open(&to_path, follows);
        }
        let dir = process::take_fd(call.pid, to as u32)?;
        match &*to_path {
            "" if flags.contains(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH) => Ok(dir),
            path => place.open_in(&dir, path, follows),
        }
    })?;
    let tree = fresh(lab, &place, "sysfs", attributes)?;
    put_for(lab, call, &place, &tree, &target)
}

/// Whether a file is the root of the sysfs of a program's network namespace.
fn is_own_sysfs(place: &Place, found: &Statx) -> io::Result<bool> {
    let own = within(&place.network, || look(&sysfs::fresh_sysfs("sysfs", MountAttrFlags::empty())?))?;
    let of = |found: &Statx| (found.stx_dev_major, found.stx_dev_minor, found.stx_ino);
    Ok(of(&own.1) == of(found))
}

/// The number of the mount that a file is in, as `/proc/PID/mountinfo` has it, and what the kernel knows of the file without
/// asking its file system, which may be a server that does not answer.
fn look(file: impl AsFd) -> io::Result<(String, Statx)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(file, "", flags, StatxFlags::INO | StatxFlags::MNT_ID)?;
    Ok((found.stx_mnt_id.to_string(), found))
}

/// `umount2(target, flags)`: of a sysfs on which the lab has mounted the cards' directories. The kernel refuses to unmount what
/// something is mounted on; a program sees one mount.
pub(super) fn umount(lab: &Arc<Lab>, call: &Notification) -> Answer {
    if !lab.shows_sysfs || call.data.args[1] as i32 & libc::MNT_DETACH != 0 {
        return Answer::Continue;
    }
    lab.answer_later(*call, |_, lab, call| by_lab(lab, call, detach))
}

fn detach(lab: &Lab, call: &Notification) -> io::Result<Option<()>> {
    let target = read_text(lab, call, call.data.args[0], PATH)?;
    let place = Place::of(call.pid, &lab.user_namespace)?;
    let mounts = place.mounts()?;
    let last = mounts.iter().rev().find(|mounted| mounted.point == target.trim_end_matches('/'));
    let is_covered = last.is_some_and(|sysfs| is_covered(&mounts, &sysfs.id));
    if !is_covered || !lab.still_waits(call) || !process::is_capable(place.thread, SYS_ADMIN, place.mounts.as_fd()) {
        return Ok(None);
    }
    inside(&place, || {
        let target = place.open(&target, true)?;
        fchdir(&target)?;
        for name in sysfs::COVERED {
            unmount(name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        }
        Ok(())
    })?;
    // The rest is the kernel's.
    Ok(None)
}
