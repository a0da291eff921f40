//! Measures what `/sys` of a lab costs: `ls /sys/class/net/*`, and reading one attribute of each netdev, compared with
//! the same tree in a minimal FUSE file system, without caching as in the lab, and with caching for a second. It needs
//! root.
//!
//! `cargo run --release -p lab --example sysfs_speed [-- NETDEVS [--json]]`

#[path = "../tests/sysfs_fixture/mod.rs"]
mod fixture;

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};

const ROUNDS: usize = 51;

fn main() {
    let netdevs = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(16);
    if let Some(missing) = fixture::what_is_missing() {
        return println!("it takes {missing}");
    }
    on_one_processor();
    let card = fixture::FakeCard::new(netdevs);
    let names: Vec<String> = (0..netdevs).map(|vf| format!("p0vf{vf}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let place = fixture::Place::new(&card, &names);
    let mounted = |name: &str, ttl| {
        let root = std::env::temp_dir().join(format!("sysfs-speed-{}-{name}", std::process::id()));
        place.within(move || {
            fs::create_dir_all(&root).expect("a directory in the temporary one");
            mount(Minimal::copy(Path::new("/sys"), &card_netdevs(), ttl), &root);
            root
        })
    };
    let (minimal, caching) = (mounted("minimal", Duration::ZERO), mounted("caching", Duration::from_secs(1)));
    let roots = [PathBuf::from("/sys"), minimal.clone(), caching.clone()];
    // In turns, and each is the first as often as the others, so that other load of the machine affects all alike.
    let mut rounds: Vec<[[f64; 3]; 3]> = place.within(move || {
        let round = |round: usize| {
            let mut times = [[0.0; 3]; 3];
            for turn in 0..roots.len() {
                let at = (round + turn) % roots.len();
                times[at] = measure(&roots[at]);
            }
            times
        };
        (0..=ROUNDS).map(round).collect()
    });
    // The first round only warms up.
    rounds.remove(0);
    let what = ["ls of each netdev's directory", "reading one attribute of each", "stat of each one's device"];
    let with = ["", "the least FUSE file system", "the same, where the kernel may believe it for a second"];
    if std::env::args().any(|argument| argument == "--json") {
        let mut measured = Vec::new();
        for (n, what) in what.iter().enumerate() {
            for (other, with) in with.iter().enumerate().skip(1) {
                let pairs: Vec<(f64, f64)> = rounds.iter().map(|round| (round[0][n], round[other][n])).collect();
                let most = (other == 1 && n < 2).then_some(1.5);
                let what = format!("{what} in /sys of a lab, {netdevs} netdevs");
                measured.push(serde_json::json!({ "what": what, "with": with, "most": most, "pairs": pairs }));
            }
        }
        println!("{}", serde_json::Value::from(measured));
    } else {
        println!("{netdevs} netdevs, medians of {ROUNDS} rounds, in ms: lab, minimal, caching");
        for (n, what) in what.iter().enumerate() {
            let times = [0, 1, 2].map(|root: usize| median(rounds.iter().map(|round| round[root][n]).collect()));
            let ratio = median(rounds.iter().map(|round| round[0][n] / round[1][n]).collect());
            println!("{what:30} {:8.3} {:8.3} {:8.3}  lab / minimal: {ratio:.2}", times[0], times[1], times[2]);
        }
    }
    drop(place);
    let _ = fs::remove_dir(minimal);
    let _ = fs::remove_dir(caching);
}

/// Restricts this process to one processor. On several processors, it makes a factor of ten whether the kernel wakes a
/// server's thread on the processor of the program that waits for it, and the kernel keeps to its first choice.
fn on_one_processor() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(all) = sched_getaffinity(None) else { return };
    let mut one = CpuSet::new();
    if let Some(last) = (0..CpuSet::MAX_CPU).rev().find(|cpu| all.is_set(*cpu)) {
        one.set(last);
        let _ = sched_setaffinity(None, &one);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn card_netdevs() -> Vec<PathBuf> {
    let is_cards = |path: &PathBuf| path.join("device").exists();
    let entries = fs::read_dir("/sys/class/net").expect("/sys/class/net");
    entries.flatten().map(|entry| entry.path()).filter(is_cards).collect()
}

/// The milliseconds of: `ls` of each netdev's directory; reading `phys_port_name` of each; following `device` of each.
fn measure(root: &Path) -> [f64; 3] {
    let net = root.join("class/net");
    let is_cards = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("p0vf"));
    let dirs = || fs::read_dir(&net).expect("class/net").flatten().map(|entry| entry.path()).filter(is_cards);
    let timed = |work: &dyn Fn()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64() * 1e3
    };
    [
        timed(&|| dirs().for_each(|dir| drop(fs::read_dir(dir).map(Iterator::count)))),
        timed(&|| dirs().for_each(|dir| drop(fs::read(dir.join("phys_port_name"))))),
        timed(&|| dirs().for_each(|dir| drop(fs::metadata(dir.join("device"))))),
    ]
}

enum What {
    Dir(Vec<(String, u64)>),
    Link(String),
    File,
}

/// A list of nodes, which never change, and for how long the kernel may cache them.
struct Minimal(Vec<What>, Duration);

impl Minimal {
    /// A copy of `class/net` and of the directories of netdevs that its links lead to.
    fn copy(sys: &Path, netdevs: &[PathBuf], ttl: Duration) -> Self {
        let mut tree = Self(vec![What::Dir(Vec::new())], ttl);
        for netdev in netdevs {
            let dir = fs::canonicalize(netdev).expect("a netdev's directory");
            tree.copy_all(&dir, dir.strip_prefix(sys).expect("below /sys"));
            let target = fs::read_link(netdev).expect("a link");
            let what = What::Link(target.to_string_lossy().into_owned());
            tree.put(netdev.strip_prefix(sys).expect("below /sys"), what);
        }
        tree
    }

    fn copy_all(&mut self, from: &Path, to: &Path) {
        self.put(to, What::Dir(Vec::new()));
        for entry in fs::read_dir(from).expect("a directory").flatten() {
            let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
            let to = to.join(entry.file_name());
            if kind.is_dir() {
                self.copy_all(&path, &to);
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).expect("a link");
                self.put(&to, What::Link(target.to_string_lossy().into_owned()));
            } else {
                self.put(&to, What::File);
            }
        }
    }

    fn put(&mut self, path: &Path, what: What) {
        let mut at = 0;
        let parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let last = parts.len() - 1;
        let mut what = Some(what);
        for (depth, part) in parts.into_iter().enumerate() {
            let found = self.child(at, &part);
            at = match found {
                Some(found) => found,
                None => {
                    let made = if depth == last { what.take() } else { None };
                    self.0.push(made.unwrap_or(What::Dir(Vec::new())));
                    let number = self.0.len() - 1;
                    if let What::Dir(children) = &mut self.0[at] {
                        children.push((part, number as u64));
                    }
                    number
                }
            };
        }
    }

    fn child(&self, at: usize, name: &str) -> Option<usize> {
        let What::Dir(children) = &self.0[at] else { return None };
        children.iter().find(|(other, _)| other == name).map(|(_, number)| *number as usize)
    }

    fn attr(&self, at: usize) -> FileAttr {
        let (kind, perm) = match &self.0[at] {
            What::Dir(_) => (FileType::Directory, 0o755),
            What::Link(_) => (FileType::Symlink, 0o777),
            What::File => (FileType::RegularFile, 0o444),
        };
        FileAttr {
            ino: INodeNo(at as u64 + 1),
            size: 4096,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Minimal {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let flags = [InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO, InitFlags::FUSE_PARALLEL_DIROPS];
        for flag in flags {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str().and_then(|name| self.child(parent.0 as usize - 1, name)) {
            Some(at) => reply.entry_with_ttls(&Duration::from_secs(9), &self.1, &self.attr(at), Generation(0)),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::from_secs(9), &self.attr(ino.0 as usize - 1));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match &self.0[ino.0 as usize - 1] {
            What::Link(target) => reply.data(target.as_bytes()),
            _ => reply.error(fuser::Errno::EINVAL),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(if offset == 0 { b"pf0vf0\n" } else { b"" });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if let What::Dir(children) = &self.0[ino.0 as usize - 1] {
            for (at, (name, number)) in children.iter().enumerate().skip(offset as usize) {
                let kind = self.attr(*number as usize).kind;
                if reply.add(INodeNo(*number + 1), at as u64 + 1, kind, name) {
                    break;
                }
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        if let What::Dir(children) = &self.0[ino.0 as usize - 1] {
            for (at, (name, number)) in children.iter().enumerate().skip(offset as usize) {
                let attr = self.attr(*number as usize);
                if reply.add(attr.ino, at as u64 + 1, name, &self.1, &attr, Generation(0)) {
                    break;
                }
            }
        }
        reply.ok();
    }
}

fn mount(tree: Minimal, at: &Path) {
    let fuse = fs::File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
    let options =
        format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", fuse.as_raw_fd());
    let options = CString::new(options).expect("no zero");
    let flags = rustix::mount::MountFlags::NOSUID;
    rustix::mount::mount("minimal", at, "fuse", flags, options.as_c_str()).expect("FUSE");
    let mut config = fuser::Config::default();
    config.n_threads = Some(4);
    let session = fuser::Session::from_fd(tree, fuse.into(), fuser::SessionACL::All, config).expect("a session");
    session.spawn().expect("threads");
}
