//! System calls: bpf(2) and mmap(2), and the only file of this crate with `unsafe`. Each function is one call, whose
//! arguments are checked by their types and lengths and whose failure is an [`io::Error`].
//!
//! aya loads the object. What it has no way for is here: updates in batches, maps in memory, attaching that outlives the
//! process, finding again what is attached, and trial runs.

#![allow(unsafe_code, reason = "bpf(2) takes pointers")]

use std::collections::HashMap;
use std::ffi::{c_long, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Commands of bpf(2) (`enum bpf_cmd` of `include/uapi/linux/bpf.h`).
mod command {
    pub const MAP_LOOKUP_ELEM: u32 = 1;
    pub const MAP_UPDATE_ELEM: u32 = 2;
    pub const MAP_DELETE_ELEM: u32 = 3;
    pub const MAP_GET_NEXT_KEY: u32 = 4;
    pub const PROG_ATTACH: u32 = 8;
    pub const PROG_DETACH: u32 = 9;
    pub const PROG_TEST_RUN: u32 = 10;
    pub const PROG_GET_FD_BY_ID: u32 = 13;
    pub const MAP_GET_FD_BY_ID: u32 = 14;
    pub const OBJ_GET_INFO_BY_FD: u32 = 15;
    pub const PROG_QUERY: u32 = 16;
    pub const MAP_LOOKUP_BATCH: u32 = 24;
    pub const MAP_UPDATE_BATCH: u32 = 26;
}

/// BPF_TCX_INGRESS of `enum bpf_attach_type`.
const TCX_INGRESS: u32 = 46;

/// The argument of bpf(2), `union bpf_attr`, as words of 32 bits. Behind what a command has, it must be zero.
#[repr(C, align(8))]
struct Attr([u32; 32]);

impl Attr {
    fn new() -> Attr {
        Attr([0; 32])
    }

    fn with(mut self, word: usize, value: u32) -> Attr {
        self.0[word] = value;
        self
    }

    /// A pointer or another number of 64 bits, at an even word. The memory is named by the caller's own arguments.
    fn with_64(mut self, word: usize, value: u64) -> Attr {
        let [low, high] = if cfg!(target_endian = "little") { [0, 1] } else { [1, 0] };
        self.0[word + low] = value as u32;
        self.0[word + high] = (value >> 32) as u32;
        self
    }

    fn call(&mut self, command: u32) -> io::Result<c_long> {
        // SAFETY: the attribute is of the size given. Each caller keeps what its pointers name alive during the call, and
        // has checked that it is as long as the kernel reads or writes.
        let answer = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), size_of::<Attr>()) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
    }
}

fn owned(fd: c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made the descriptor for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to what a netdev of the calling thread's network namespace receives, behind those that are there. It
/// stays attached as long as the netdev exists.
pub(crate) fn attach_tcx(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<()> {
    tcx(program, ifindex).call(command::PROG_ATTACH).map(drop)
}

/// Takes a program away from a netdev.
pub(crate) fn detach_tcx(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<()> {
    tcx(program, ifindex).call(command::PROG_DETACH).map(drop)
}

fn tcx(program: BorrowedFd<'_>, ifindex: u32) -> Attr {
    Attr::new().with(0, ifindex).with(1, program.as_raw_fd() as u32).with(2, TCX_INGRESS)
}

/// The identifiers of the programs that are attached to what a netdev receives, in their order.
pub(crate) fn attached_tcx(ifindex: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let attr = Attr::new().with(0, ifindex).with(1, TCX_INGRESS).with_64(4, ids.as_mut_ptr() as u64);
    let mut attr = attr.with(6, ids.len() as u32);
    attr.call(command::PROG_QUERY)?;
    Ok(ids[..(attr.0[6] as usize).min(ids.len())].to_vec())
}

/// Opens the program with an identifier.
pub(crate) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    owned(Attr::new().with(0, id).call(command::PROG_GET_FD_BY_ID)?)
}

/// Opens the map with an identifier.
fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    owned(Attr::new().with(0, id).call(command::MAP_GET_FD_BY_ID)?)
}

/// What the kernel says of a program or a map: the first words, and more in memory that they name.
fn info<const WORDS: usize>(fd: BorrowedFd<'_>, mut info: [u32; WORDS]) -> io::Result<[u32; WORDS]> {
    let attr = Attr::new().with(0, fd.as_raw_fd() as u32).with(1, size_of_val(&info) as u32);
    attr.with_64(2, info.as_mut_ptr() as u64).call(command::OBJ_GET_INFO_BY_FD)?;
    Ok(info)
}

/// The name in an info, of which the kernel keeps 15 bytes.
fn name_in(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The name of a program.
pub(crate) fn program_name(program: BorrowedFd<'_>) -> io::Result<String> {
    // struct bpf_prog_info: 16 words, and the name in four.
    Ok(name_in(&info(program, [0u32; 24])?[16..20]))
}

/// The maps of a program, by their names.
pub(crate) fn maps_of(program: BorrowedFd<'_>) -> io::Result<HashMap<String, OwnedFd>> {
    let mut ids = [0u32; 64];
    // struct bpf_prog_info: nr_map_ids is word 13, map_ids are words 14 and 15.
    let mut asked = [0u32; 24];
    asked[13] = ids.len() as u32;
    let [first, second] = if cfg!(target_endian = "little") { [14, 15] } else { [15, 14] };
    let address = ids.as_mut_ptr() as u64;
    (asked[first], asked[second]) = (address as u32, (address >> 32) as u32);
    let count = info(program, asked)?[13] as usize;
    let named = ids[..count.min(ids.len())].iter().map(|id| {
        let map = map_by_id(*id)?;
        // struct bpf_map_info: six words, and the name in four.
        Ok((name_in(&info(map.as_fd(), [0u32; 24])?[6..10]), map))
    });
    named.collect()
}

/// Waits until no CPU runs a program that began before (`synchronize_rcu`).
pub(crate) fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: no pointers.
    let answer = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if answer < 0 {
        // A kernel with nohz_full does not have it. No program runs this long.
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// The time since boot by which programs note when a rule was used (CLOCK_MONOTONIC), in nanoseconds.
pub(crate) fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Runs a program on a frame without a netdev (BPF_PROG_TEST_RUN), `repeat` times, with `mark` as the frame's mark. Returns
/// what the program returned last, and how many nanoseconds a run took.
pub(crate) fn trial(program: BorrowedFd<'_>, frame: &[u8], mark: u32, repeat: u32) -> io::Result<(u32, u32)> {
    // struct __sk_buff: 48 words, of which only the mark is set.
    let mut context = [0u32; 48];
    context[2] = mark;
    let attr = Attr::new()
        .with(0, program.as_raw_fd() as u32)
        .with(2, frame.len() as u32)
        .with_64(4, frame.as_ptr() as u64)
        .with(8, repeat)
        .with(10, size_of_val(&context) as u32)
        .with_64(12, context.as_ptr() as u64);
    let mut attr = attr;
    attr.call(command::PROG_TEST_RUN)?;
    Ok((attr.0[1], attr.0[9]))
}

/// A map, and the lengths of its keys and values in bytes.
pub(crate) struct Map {
    fd: OwnedFd,
    pub(crate) key_size: usize,
    /// For a map of each CPU that of all values together.
    pub(crate) value_size: usize,
    pub(crate) max_entries: u32,
}

impl Map {
    /// The map behind a descriptor.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Map> {
        // struct bpf_map_info: type, id, key_size, value_size, max_entries, …
        let info = info(fd.as_fd(), [0u32; 24])?;
        // BPF_MAP_TYPE_PERCPU_HASH, …_ARRAY
        let per_cpu = matches!(info[0], 5 | 6);
        let value_size = info[3] as usize;
        let value_size = if per_cpu { value_size.next_multiple_of(8) * cpus()? } else { value_size };
        Ok(Map { fd, key_size: info[2] as usize, value_size, max_entries: info[4] })
    }

    fn element(&self, key: &[u8], value: *const u8) -> Attr {
        assert_eq!(key.len(), self.key_size, "a key of the map");
        Attr::new().with(0, self.fd.as_raw_fd() as u32).with_64(2, key.as_ptr() as u64).with_64(4, value as u64)
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_size];
        let answer = self.element(key, value.as_mut_ptr()).call(command::MAP_LOOKUP_ELEM);
        none_if_absent(answer).map(|found| found.map(|_| value))
    }

    /// Puts a value.
    pub(crate) fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!(value.len(), self.value_size, "a value of the map");
        self.element(key, value.as_ptr()).call(command::MAP_UPDATE_ELEM).map(drop)
    }

    /// Removes a key. Returns whether it was there.
    pub(crate) fn remove(&self, key: &[u8]) -> io::Result<bool> {
        let answer = self.element(key, std::ptr::null()).call(command::MAP_DELETE_ELEM);
        none_if_absent(answer).map(|found| found.is_some())
    }

    /// Puts many values, keys and values one behind the other. Returns how many were put before an error.
    pub(crate) fn put_batch(&self, keys: &[u8], values: &[u8]) -> Result<(), (usize, io::Error)> {
        let count = keys.len() / self.key_size;
        assert_eq!((keys.len(), values.len()), (count * self.key_size, count * self.value_size), "as many of both");
        if count == 0 {
            return Ok(());
        }
        // in_batch, out_batch, keys, values, count, map_fd, elem_flags, flags
        let mut attr = Attr::new()
            .with_64(4, keys.as_ptr() as u64)
            .with_64(6, values.as_ptr() as u64)
            .with(8, count as u32)
            .with(9, self.fd.as_raw_fd() as u32);
        attr.call(command::MAP_UPDATE_BATCH).map(drop).map_err(|error| (attr.0[8] as usize, error))
    }

    /// The values of an array from an index on, in one batch.
    pub(crate) fn array_batch(&self, first: u32, count: u32) -> io::Result<Vec<u8>> {
        let mut keys = vec![0; count as usize * self.key_size];
        let mut values = vec![0; count as usize * self.value_size];
        // A batch begins behind the key that is given, or at the start (`generic_map_lookup_batch` in `kernel/bpf/syscall.c`).
        let (behind, mut last) = (first.wrapping_sub(1), 0u32);
        let behind = if first == 0 { std::ptr::null() } else { &raw const behind };
        let mut attr = Attr::new()
            .with_64(0, behind as u64)
            .with_64(2, &raw mut last as u64)
            .with_64(4, keys.as_mut_ptr() as u64)
            .with_64(6, values.as_mut_ptr() as u64)
            .with(8, count)
            .with(9, self.fd.as_raw_fd() as u32);
        // The end of the array ends the batch.
        none_if_absent(attr.call(command::MAP_LOOKUP_BATCH))?;
        values.truncate(attr.0[8] as usize * self.value_size);
        Ok(values)
    }

    /// The key behind `key`, or the first one.
    pub(crate) fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.key_size];
        let key = match key {
            Some(key) => {
                assert_eq!(key.len(), self.key_size, "a key of the map");
                key.as_ptr()
            }
            None => std::ptr::null(),
        };
        let mut attr =
            Attr::new().with(0, self.fd.as_raw_fd() as u32).with_64(2, key as u64).with_64(4, next.as_mut_ptr() as u64);
        none_if_absent(attr.call(command::MAP_GET_NEXT_KEY)).map(|found| found.map(|_| next))
    }

    /// Every key. Keys that come or go meanwhile may be missing.
    pub(crate) fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        while let Some(key) = self.next_key(keys.last().map(Vec::as_slice))? {
            keys.push(key);
        }
        Ok(keys)
    }

    /// The values of an array as memory that the programs share.
    pub(crate) fn in_memory(&self, writable: bool) -> io::Result<Words> {
        let bytes = self.value_size.next_multiple_of(8) * self.max_entries as usize;
        Words::of(self.fd.as_fd(), 0, bytes, writable)
    }

    /// The two parts of a ring buffer (`kernel/bpf/ringbuf.c`): the page of its reader, and the page of its writer with the
    /// data behind it, twice.
    pub(crate) fn ring_in_memory(&self) -> io::Result<(Words, Words)> {
        let (fd, page) = (self.fd.as_fd(), page_size());
        let reader = Words::of(fd, 0, page, true)?;
        Ok((reader, Words::of(fd, page, page + 2 * self.max_entries as usize, false)?))
    }
}

/// The size of a page in bytes.
pub(crate) fn page_size() -> usize {
    // SAFETY: no pointers.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn none_if_absent(answer: io::Result<c_long>) -> io::Result<Option<c_long>> {
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        answer => answer.map(Some),
    }
}

/// How many CPUs there can be, which is how many values a map has that has one for each.
pub(crate) fn cpus() -> io::Result<usize> {
    let range = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = range.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| io::Error::other("no number of CPUs"))
}

/// Memory that is shared with programs, as words of 64 bits.
pub(crate) struct Words {
    start: NonNull<AtomicU64>,
    count: usize,
    writable: bool,
}

// SAFETY: the memory belongs to the mapping, and is only read and written as atomic words.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    fn of(fd: BorrowedFd<'_>, offset: usize, bytes: usize, writable: bool) -> io::Result<Words> {
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let length = bytes.next_multiple_of(page_size());
        let (any, descriptor) = (std::ptr::null_mut(), fd.as_raw_fd());
        // SAFETY: a new mapping at an address that the kernel chooses.
        let address =
            unsafe { libc::mmap(any, length, protection, libc::MAP_SHARED, descriptor, offset as libc::off_t) };
        let start = NonNull::new(address.cast()).filter(|_| address != libc::MAP_FAILED);
        let start = start.ok_or_else(io::Error::last_os_error)?;
        Ok(Words { start, count: bytes / 8, writable })
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.count, "a word of the map");
        // SAFETY: the word is within the mapping, which lives as long as `self`, and is aligned as the mapping is.
        unsafe { &*self.start.as_ptr().add(index) }
    }

    /// A word.
    pub(crate) fn get(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Relaxed)
    }

    /// A word, after which everything is read that was written before it.
    pub(crate) fn get_first(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    /// Sets a word. What was written before is visible to a program that reads it.
    pub(crate) fn set(&self, index: usize, value: u64) {
        assert!(self.writable, "the memory may be written");
        self.word(index).store(value, Ordering::Release);
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made in `of`, of which no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast::<c_void>(), (self.count * 8).next_multiple_of(page_size())) };
    }
}
