//! The scene as a file system.
//!
//! What can come and go at any time is looked up each time that a program asks for it: the daemon shares a view with a
//! number that grows, and sends no notification when that changes. What is there as long as the directory it is in is looked up once. Values are read from the
//! card whenever a file is read from its beginning, and none is kept by the kernel.

mod attr;
mod handle;
mod write;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use netlink::Errno;
use parking_lot::{Mutex, RwLock};

use super::place::Scene;
use super::tree::{ByNumber, Kind};
use crate::process::Home;
use handle::Handle;
use write::{Job, done};

/// The file system.
pub(super) struct SysFs {
    scene: Arc<Scene>,
    handles: RwLock<ByNumber<Arc<Handle>>>,
    next: AtomicU64,
    since: SystemTime,
    /// What the kernel's files of a netdev are like, by their names.
    netdev_files: RwLock<HashMap<Box<OsStr>, FileAttr>>,
    /// The user namespace in which rights count.
    home: Arc<Home>,
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
    pub(super) fn new(scene: Scene) -> Self {
        Self {
            scene: Arc::new(scene),
            handles: RwLock::default(),
            next: AtomicU64::new(1),
            since: SystemTime::now(),
            netdev_files: RwLock::default(),
            home: Arc::new(Home::ours()),
        }
    }

    fn keep(&self, handle: Handle) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.handles.write().insert(number, Arc::new(handle));
        FileHandle(number)
    }

    fn handle(&self, handle: FileHandle) -> Result<Arc<Handle>, Errno> {
        self.handles.read().get(&handle.0).cloned().ok_or(Errno::BADF)
    }
}

impl Filesystem for SysFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted =
            [InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO, InitFlags::FUSE_PARALLEL_DIROPS];
        for capability in wanted {
            // A kernel without it is slower, no more.
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_write(1 << 17);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.look_up(parent.0, name) {
            Ok((attr, attr_lasts, lasts)) => reply.entry_with_ttls(&attr_lasts, &lasts, &attr, Generation(0)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        self.scene.nodes.forget(ino.0, times);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr_of(ino.0) {
            Ok((attr, lasts)) => reply.attr(&lasts, &attr),
            Err(error) => reply.error(errno(error)),
        }
    }

    /// A size that is set is ignored, as by sysfs: a shell sets it before it writes.
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
        match self.attr_of(ino.0) {
            Ok(_) if mode.is_some() || uid.is_some() || gid.is_some() => reply.error(fuser::Errno::EPERM),
            Ok((attr, lasts)) => reply.attr(&lasts, &attr),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.link(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.open_file(ino.0, flags, request.pid()) {
            Ok((handle, how)) => reply.opened(self.keep(handle), how),
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
        let result = self.read_open(handle, offset, size, &mut |bytes| {
            if let Some(reply) = reply.take() {
                reply.data(bytes);
            }
        });
        if let (Err(error), Some(reply)) = (result, reply) {
            reply.error(errno(error));
        }
    }

    /// What is written at once is one value, wherever in the file it is written. It is done in a thread of
    /// its own: what a card is asked to do can take long, and others read meanwhile.
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
        let job = self.handle(handle).and_then(|handle| match &*handle {
            Handle::Attribute(dir, attribute, _) => self.act(*dir, attribute, data),
            Handle::Beneath(fd) => Ok(Job::Write(Arc::clone(fd), offset)),
            _ => Err(Errno::BADF),
        });
        let job = match job {
            Ok(Job::Nothing) => return done(reply, Ok(data.len())),
            Ok(job) => job,
            Err(error) => return reply.error(errno(error)),
        };
        let (scene, bytes) = (Arc::clone(&self.scene), data.to_vec());
        let (home, writer) = (Arc::clone(&self.home), request.pid());
        // Without a thread the reply is dropped, which is an answer: EIO.
        let _ = std::thread::Builder::new()
            .name("sysfs-write".to_owned())
            .spawn(move || done(reply, job.run(&scene, writer, &home, &bytes)));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // It is not asked again.
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
        self.handles.write().remove(&handle.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(self.keep(Handle::Dir(ino.0, Mutex::new(None))), FopenFlags::empty());
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result = self.walk(handle, offset, &mut |next, item, _| {
            reply.add(INodeNo(item.number), next, file_type(item.kind), &*item.name)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let mut held: Vec<(u64, Box<OsStr>)> = Vec::new();
        let result = self.walk(handle, offset, &mut |next, item, listing| {
            let Some((attr, lasts)) = self.item_attr(item, listing) else { return false };
            let full = reply.add(INodeNo(item.number), next, &*item.name, &lasts, &attr, Generation(0));
            if !full && next > 2 {
                held.push((attr.ino.0, item.name.clone()));
            }
            full
        });
        // Before the kernel can say that it forgets them.
        self.scene.nodes.hold_all(ino.0, held.iter().map(|(number, name)| (*number, &**name)));
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.handles.write().remove(&handle.0);
        reply.ok();
    }

    // Nothing can be made or removed by hand.

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
