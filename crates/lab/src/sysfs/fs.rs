//! The scene as a file system.
//!
//! What can come and go at any time is looked up each time that a program asks for it: the daemon shares a view with a
//! number that grows, and sends no notification when that changes. What is there as long as the directory it is in is looked up once. Values are read from the
//! card whenever a file is read from its beginning, and none is kept by the kernel.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use control::Command;
use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use netlink::{Errno, errno_of};
use parking_lot::{Mutex, RwLock};
use rustix::fs::{AtFlags, OFlags, Stat, statat};

use crate::process::{Caller, Home, SYS_ADMIN, with_rights};

use super::place::{Place, Scene};
use super::text::written;
use super::tree::{Act, Attribute, ByNumber, Dir, Kind, LibraryFile, ROOT, Subject, Tree, Under, number};
use super::under;

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_secs(1);
const NEVER: Duration = Duration::ZERO;

/// An open file or directory.
enum Handle {
    /// An attribute: its directory, and what it said when it was last read from the beginning.
    Attribute(u64, &'static Attribute, Mutex<Option<Vec<u8>>>),
    /// A file that does not change.
    Whole(Arc<[u8]>),
    /// A file beneath.
    Beneath(Arc<OwnedFd>),
    /// A directory, and what was in it when it was last read from the beginning.
    Dir(u64, Mutex<Option<Listing>>),
}

struct Listing {
    entries: Vec<Item>,
    beneath: Option<OwnedFd>,
    of_netdev: bool,
}

struct Item {
    name: Box<OsStr>,
    number: u64,
    kind: Kind,
    /// What is known of it without a look beneath.
    attr: Option<(FileAttr, Duration)>,
}

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

    fn own(&self, number: u64, kind: Kind, perm: u16, size: u64) -> FileAttr {
        FileAttr {
            ino: INodeNo(number),
            size,
            blocks: 0,
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind: file_type(kind),
            perm,
            nlink: if kind == Kind::Dir { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn of_beneath(&self, number: u64, status: &Stat) -> FileAttr {
        let kind = under::kind(rustix::fs::FileType::from_raw_mode(status.st_mode));
        let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        FileAttr {
            atime: time(status.st_atime),
            mtime: time(status.st_mtime),
            ctime: time(status.st_ctime),
            nlink: u32::try_from(status.st_nlink).unwrap_or(1),
            uid: status.st_uid,
            gid: status.st_gid,
            blocks: u64::try_from(status.st_blocks).unwrap_or(0),
            ..self.own(number, kind, (status.st_mode & 0o7777) as u16, u64::try_from(status.st_size).unwrap_or(0))
        }
    }

    /// The attributes of a place in a directory, and for how long there will be something in it. The number is
    /// that of the place, or is made from its parent's.
    fn attr(
        &self,
        tree: &Tree,
        place: &Place<'_>,
        number_of: impl Fn(Kind) -> u64,
    ) -> Result<(FileAttr, Duration), Errno> {
        match place {
            Place::Dir(dir) if !self.scene.is_there(dir) => Err(Errno::NOENT),
            place => self.attr_there(tree, place, number_of),
        }
    }

    /// The same of a place that is known to be there.
    fn attr_there(
        &self,
        tree: &Tree,
        place: &Place<'_>,
        number_of: impl Fn(Kind) -> u64,
    ) -> Result<(FileAttr, Duration), Errno> {
        let own = |kind, perm, size| self.own(number_of(kind), kind, perm, size);
        Ok(match place {
            Place::Dir(dir) => (own(Kind::Dir, 0o755, 0), if dir.lasting { LONG } else { NEVER }),
            Place::Folder(..) => (own(Kind::Dir, 0o755, 0), LONG),
            Place::Attribute(_, attribute) => (own(Kind::File, attribute.mode, attribute.size), LONG),
            Place::Link(_) => (own(Kind::Link, 0o777, 0), NEVER),
            Place::Library(file) => {
                let size = self.scene.library(tree, *file)?.len() as u64;
                (own(Kind::File, 0o644, size), NEVER)
            }
            Place::Under(under) => {
                let status = self.scene.beneath.status_at(under)?;
                let kind = under::kind(rustix::fs::FileType::from_raw_mode(status.st_mode));
                (self.of_beneath(number_of(kind), &status), NEVER)
            }
        })
    }

    fn look_up(&self, parent: u64, name: &OsStr) -> Result<(FileAttr, Duration, Duration), Errno> {
        let tree = self.scene.tree();
        let place = self.scene.locate(&tree, parent)?;
        let place = self.scene.child(&tree, &place, name)?;
        let (attr, lasts) = self.attr(&tree, &place, |kind| number(parent, name.as_encoded_bytes(), kind))?;
        self.scene.nodes.hold(attr.ino.0, parent, name);
        Ok((attr, attr_lasts(&place), lasts))
    }

    fn attr_of(&self, at: u64) -> Result<(FileAttr, Duration), Errno> {
        let tree = self.scene.tree();
        let place = self.scene.locate(&tree, at)?;
        let (attr, _) = self.attr(&tree, &place, |_| at)?;
        Ok((attr, attr_lasts(&place)))
    }

    fn link(&self, at: u64) -> Result<String, Errno> {
        let tree = self.scene.tree();
        match self.scene.locate(&tree, at)? {
            Place::Link(target) => Ok(target.to_owned()),
            Place::Under(under) => self.scene.link_beneath(&tree, at, &under),
            _ => Err(Errno::INVAL),
        }
    }

    fn open_file(&self, at: u64, flags: OpenFlags, opener: u32) -> Result<(Handle, FopenFlags), Errno> {
        let tree = self.scene.tree();
        match self.scene.locate(&tree, at)? {
            Place::Attribute(dir, attribute) => {
                // As sysfs does, also for those who may override modes.
                let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
                let reads = flags.acc_mode() != OpenAccMode::O_WRONLY;
                if (writes && attribute.write.is_none()) || (reads && attribute.read.is_none()) {
                    return Err(Errno::ACCESS);
                }
                let handle = Handle::Attribute(dir.number, attribute, Mutex::new(None));
                Ok((handle, FopenFlags::FOPEN_DIRECT_IO))
            }
            // From memory, since `kmod` maps them.
            Place::Library(_) if flags.acc_mode() != OpenAccMode::O_RDONLY => Err(Errno::ACCESS),
            Place::Library(file) => Ok((Handle::Whole(self.scene.library(&tree, file)?), FopenFlags::empty())),
            Place::Under(under) => {
                let mode = match flags.acc_mode() {
                    OpenAccMode::O_RDONLY => OFlags::RDONLY,
                    OpenAccMode::O_WRONLY => OFlags::WRONLY,
                    OpenAccMode::O_RDWR => OFlags::RDWR,
                };
                // Some files show more to those who opened them with more rights (`pci_read_config`).
                let Caller { capabilities, user, .. } = Caller::of(opener, &self.home).map_err(|_| Errno::PERM)?;
                let opened = with_rights(capabilities, user, || self.scene.beneath.open(&under, mode));
                let file = Handle::Beneath(Arc::new(opened.map_err(|_| Errno::PERM)??));
                let in_sys = under.base == super::tree::Base::Sys;
                Ok((file, if in_sys { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() }))
            }
            _ => Err(Errno::ISDIR),
        }
    }

    /// Reads from an open file. `reply` is given what was read.
    fn read_open(&self, handle: FileHandle, offset: u64, size: u32, reply: &mut dyn FnMut(&[u8])) -> Result<(), Errno> {
        let size = size as usize;
        match &*self.handle(handle)? {
            Handle::Attribute(dir, attribute, text) => {
                let mut text = text.lock();
                let text = match &mut *text {
                    Some(text) if offset > 0 => text,
                    text => text.insert(self.value(*dir, attribute)?),
                };
                reply(part(text, offset, size));
            }
            Handle::Whole(bytes) => reply(part(bytes, offset, size)),
            Handle::Beneath(fd) => {
                let mut bytes = vec![0; size.min(1 << 20)];
                let read = rustix::io::pread(fd, &mut bytes, offset)?;
                reply(part(&bytes, 0, read));
            }
            Handle::Dir(..) => return Err(Errno::ISDIR),
        }
        Ok(())
    }

    /// The value of an attribute now.
    fn value(&self, dir: u64, attribute: &Attribute) -> Result<Vec<u8>, Errno> {
        let tree = self.scene.tree();
        let dir = tree.dir(dir).ok_or(Errno::NODEV)?;
        let read = attribute.read.ok_or(Errno::IO)?;
        read(&self.scene.shown(&tree, dir))
    }

    /// What is to be done about something written to an attribute.
    fn act(&self, dir: u64, attribute: &'static Attribute, bytes: &[u8]) -> Result<Job, Errno> {
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
    fn kernels(&self, dir: &Dir, attribute: &Attribute) -> Result<Arc<OwnedFd>, Errno> {
        let under = dir.under.as_ref().ok_or(Errno::NODEV)?;
        let place = Under { base: under.base, path: format!("{}/{}", under.path, attribute.name) };
        match self.scene.beneath.open(&place, OFlags::WRONLY) {
            Ok(fd) => Ok(Arc::new(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(Errno::NODEV),
            Err(error) => Err(error),
        }
    }

    fn list(&self, at: u64) -> Result<Listing, Errno> {
        let tree = self.scene.tree();
        let place = self.scene.locate(&tree, at)?;
        let (listed, beneath) = self.scene.list(&tree, &place)?;
        let above = self.scene.nodes.of(at).map_or(ROOT, |(parent, _)| parent);
        let dir = |name: &str, number| Item {
            name: OsStr::new(name).into(),
            number,
            kind: Kind::Dir,
            attr: Some((self.own(number, Kind::Dir, 0o755, 0), NEVER)),
        };
        let mut entries = vec![dir(".", at), dir("..", above)];
        for entry in listed {
            let number = number(at, entry.name.as_encoded_bytes(), entry.kind);
            let attr = match &entry.place {
                None => None,
                Some(place) => match self.attr_there(&tree, place, |_| number) {
                    Ok(attr) => Some(attr),
                    // It has gone meanwhile.
                    Err(_) => continue,
                },
            };
            entries.push(Item { name: entry.name, number, kind: entry.kind, attr });
        }
        let of_netdev = matches!(place, Place::Dir(Dir { subject: Subject::Netdev(..), .. }));
        Ok(Listing { entries, beneath, of_netdev })
    }

    /// Gives what is in an open directory from an offset on to `each`, until that says it has no room.
    fn walk(
        &self,
        handle: FileHandle,
        offset: u64,
        each: &mut dyn FnMut(u64, &Item, &Listing) -> bool,
    ) -> Result<(), Errno> {
        let handle = self.handle(handle)?;
        let Handle::Dir(at, listing) = &*handle else { return Err(Errno::NOTDIR) };
        let mut listing = listing.lock();
        let listing = match &mut *listing {
            Some(listing) if offset > 0 => listing,
            listing => listing.insert(self.list(*at)?),
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, item) in listing.entries.iter().enumerate().skip(from) {
            if each(place as u64 + 1, item, listing) {
                break;
            }
        }
        Ok(())
    }

    fn item_attr(&self, item: &Item, listing: &Listing) -> Option<(FileAttr, Duration)> {
        let known = item.attr.or_else(|| {
            // A netdev's files are the same as any other's of the namespace: one look is enough.
            let files = (listing.of_netdev && item.kind == Kind::File).then(|| self.netdev_files.read())?;
            Some((FileAttr { ino: INodeNo(item.number), ..*files.get(&item.name)? }, NEVER))
        });
        known.or_else(|| {
            let dir = listing.beneath.as_ref()?;
            let status = statat(dir, &*item.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            let attr = self.of_beneath(item.number, &status);
            if listing.of_netdev && item.kind == Kind::File {
                self.netdev_files.write().insert(item.name.clone(), attr);
            }
            Some((attr, NEVER))
        })
    }
}

/// For how long a node's mode is what it is: for ever, unless it is the kernel's.
fn attr_lasts(place: &Place<'_>) -> Duration {
    match place {
        Place::Under(_) => SHORT,
        Place::Library(LibraryFile::Module(..)) => NEVER,
        _ => LONG,
    }
}

fn part(bytes: &[u8], offset: u64, size: usize) -> &[u8] {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    &bytes[from..bytes.len().min(from.saturating_add(size))]
}

/// Something that may take long.
enum Job {
    Nothing,
    NothingOfAdministrators,
    Perform(Option<usize>, Command),
    Write(Arc<OwnedFd>, u64),
}

impl Job {
    /// Does it for a thread, which waits for it.
    fn run(self, scene: &Scene, writer: u32, home: &Home, bytes: &[u8]) -> Result<usize, Errno> {
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

fn done(reply: ReplyWrite, result: Result<usize, Errno>) {
    match result {
        Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
        // An answer with a number that FUSE does not take would be refused, and whoever wrote would wait for ever.
        Err(error) => reply.error(errno(if error.raw_os_error() < 512 { error } else { Errno::IO })),
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
