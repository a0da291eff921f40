//! The merged tree as a file system, served through FUSE.
//!
//! The kernel may cache nothing that can appear or disappear at any time, and looks it up again at every use: the lab
//! learns of a change only when it compares the number of the view in the memory that the daemon shares, so it cannot
//! invalidate the kernel's cache. What exists as long as its directory does is looked up once. A value is read from the
//! card whenever its file is read from the beginning, and the kernel caches none.

mod attr;
mod handle;
mod write;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use lockdep::{Domain, Mutex};
use netlink::Errno;

use super::merged::MergedTree;
use super::tree::{ByNumber, Kind};
use crate::lock_order::{Cx, NetdevFiles, OpenFiles};
use crate::process::UserNamespace;
use handle::Handle;
use write::{Job, reply_to};

/// The file system.
pub(super) struct SysFs {
    merged: Arc<MergedTree>,
    handles: Mutex<OpenFiles, ByNumber<Arc<Handle>>>,
    /// The number of the next handle.
    next: AtomicU64,
    /// The time of all nodes of the cards' tree.
    since: SystemTime,
    /// The attributes of the files that the kernel has for any netdev, by their names.
    netdev_files: Mutex<NetdevFiles, HashMap<Box<OsStr>, FileAttr>>,
    /// The user namespace in which rights count.
    user_namespace: Arc<UserNamespace>,
    domain: Arc<Domain>,
}

fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Dir => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Link => FileType::Symlink,
    }
}

impl SysFs {
    /// `domain`: that of the lab's threads.
    pub(super) fn new(merged: MergedTree, domain: Arc<Domain>) -> Self {
        Self {
            merged: Arc::new(merged),
            handles: Mutex::new(ByNumber::default()),
            next: AtomicU64::new(1),
            since: SystemTime::now(),
            netdev_files: Mutex::new(HashMap::new()),
            user_namespace: Arc::new(UserNamespace::ours()),
            domain,
        }
    }

    /// Does a part of a request that takes locks. FUSE's threads are not ours, so each request begins anew, holding
    /// nothing. A panic becomes EIO: the program must not wait for ever, and the thread must serve others.
    fn enter<T>(&self, work: impl FnOnce(Cx<'_, '_>) -> Result<T, Errno>) -> Result<T, Errno> {
        let work = AssertUnwindSafe(|| lockdep::enter(&self.domain, "lab-files", work));
        catch_unwind(work).unwrap_or(Err(Errno::IO))
    }

    /// Stores an open file.
    fn keep(&self, cx: Cx<'_, '_>, handle: Handle) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.handles.lock_leaf(cx).insert(number, Arc::new(handle));
        FileHandle(number)
    }

    fn handle(&self, cx: Cx<'_, '_>, handle: FileHandle) -> Result<Arc<Handle>, Errno> {
        self.handles.lock_leaf(cx).get(&handle.0).cloned().ok_or(Errno::BADF)
    }

    fn close(&self, handle: FileHandle) -> Result<(), Errno> {
        self.enter(|cx| {
            let closed = self.handles.lock_leaf(cx).remove(&handle.0);
            // Without the lock: a listing may be long.
            drop(closed);
            Ok(())
        })
    }
}

/// How many files the file system says to have, in all and free: by these numbers it is recognised, as nothing else that a
/// file system of FUSE reports is its own choice and the same at every mount.
const FILES: (u64, u64) = (0x6265_6572, 0x6573_7769);

/// Whether the status of a file system is that of one that shows `/sys`.
pub(crate) fn is_ours(status: &rustix::fs::StatFs) -> bool {
    const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
    (status.f_type as u64, (status.f_files, status.f_ffree)) == (FUSE_SUPER_MAGIC, FILES)
}

impl Filesystem for SysFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted =
            [InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO, InitFlags::FUSE_PARALLEL_DIROPS];
        for capability in wanted {
            // A kernel without it is slower, but works.
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_write(1 << 17);
        Ok(())
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, FILES.0, FILES.1, 4096, 255, 4096);
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.enter(|cx| self.look_up(cx, parent.0, name)) {
            Ok((attr, attr_lasts, lasts)) => reply.entry_with_ttls(&attr_lasts, &lasts, &attr, Generation(0)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        let _ = self.enter(|cx| {
            self.merged.nodes.forget(cx, ino.0, times);
            Ok(())
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.enter(|cx| self.attr_of(cx, ino.0)) {
            Ok((attr, lasts)) => reply.attr(&lasts, &attr),
            Err(error) => reply.error(errno(error)),
        }
    }

    /// Ignores a new size, as sysfs does: a shell truncates a file before it writes.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.enter(|cx| self.attr_of(cx, ino.0)) {
            Ok(_) if mode.is_some() || uid.is_some() || gid.is_some() => reply.error(fuser::Errno::EPERM),
            Ok((attr, lasts)) => reply.attr(&lasts, &attr),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.enter(|cx| self.link(cx, ino.0)) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.enter(|cx| {
            let (handle, how) = self.open_file(cx, ino.0, flags, request.pid())?;
            Ok((self.keep(cx, handle), how))
        });
        match opened {
            Ok((handle, how)) => reply.opened(handle, how),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut reply = Some(reply);
        let mut send = |bytes: &[u8]| {
            if let Some(reply) = reply.take() {
                reply.data(bytes);
            }
        };
        let result = self.enter(|cx| self.read_open(cx, handle, offset, size, &mut send));
        if let (Err(error), Some(reply)) = (result, reply) {
            reply.error(errno(error));
        }
    }

    /// Each write is one value, at whatever offset of the file, as in sysfs. A thread of its own carries it out: a
    /// command to a card can take long, and other programs read meanwhile.
    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let job = self.enter(|cx| match &*self.handle(cx, handle)? {
            Handle::Attribute(dir, attribute, _) => self.job_for(cx, *dir, attribute, data),
            Handle::Lower(fd) => Ok(Job::Write(Arc::clone(fd), offset)),
            _ => Err(Errno::BADF),
        });
        let job = match job {
            Ok(Job::Nothing) => return reply_to(reply, Ok(data.len())),
            Ok(job) => job,
            Err(error) => return reply.error(errno(error)),
        };
        let (merged, bytes) = (Arc::clone(&self.merged), data.to_vec());
        let (user_namespace, writer) = (Arc::clone(&self.user_namespace), request.pid());
        // If the system gives no thread, the reply is dropped, which answers with EIO.
        let _ = std::thread::Builder::new()
            .name("sysfs-write".to_owned())
            .spawn(move || reply_to(reply, job.run(&merged, writer, &user_namespace, &bytes)));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // After ENOSYS the kernel sends no more of these.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _ = self.close(handle);
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.enter(|cx| Ok(self.keep(cx, Handle::Dir(ino.0, Mutex::new(None))))) {
            Ok(handle) => reply.opened(handle, FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result = self.enter(|cx| {
            self.walk(cx, handle, offset, &mut |_, next, item, _| {
                reply.add(INodeNo(item.number), next, file_type(item.kind), &*item.name)
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let mut held: Vec<(u64, Box<OsStr>)> = Vec::new();
        let result = self.enter(|cx| {
            let walked = self.walk(cx, handle, offset, &mut |cx, next, item, listing| {
                let Some((attr, lasts)) = self.item_attr(cx, item, listing) else { return false };
                let full = reply.add(INodeNo(item.number), next, &*item.name, &lasts, &attr, Generation(0));
                if !full && next > 2 {
                    held.push((attr.ino.0, item.name.clone()));
                }
                full
            });
            // Before the reply, after which the kernel can forget them.
            self.merged.nodes.hold_all(cx, ino.0, held.iter().map(|(number, name)| (*number, &**name)));
            walked
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        let _ = self.close(handle);
        reply.ok();
    }

    // Programs can make and remove nothing.

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(fuser::Errno::EACCES);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(fuser::Errno::EACCES);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(fuser::Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EPERM);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EPERM);
    }
}
