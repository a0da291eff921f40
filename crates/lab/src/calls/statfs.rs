//! `fstatfs` and `statfs`: the file system that shows `/sys` says that it is a sysfs. libudev shows no device whose directory is in
//! another file system (`sd_device_set_syspath` asks each).

use std::io;
use std::sync::Arc;

use netlink::Errno;
use rustix::fs::{StatFs, fstatfs, statfs};

use crate::lock_order::Cx;
use crate::process;
use crate::supervisor::{Answer, Lab};
use crate::sys::Notification;
use crate::sysfs::is_ours;

use super::{PATH, read_text, write};

/// SYSFS_MAGIC.
const SYSFS: u64 = 0x6265_6572;
/// The size of a page, which `simple_statfs` gives as the size of a block.
const PAGE: u64 = 4096;
/// NAME_MAX.
const NAME: u64 = 255;

/// `fstatfs(fd, buffer)`.
pub(super) fn of_descriptor(_: Cx<'_, '_>, lab: &Lab, call: &Notification) -> Answer {
    let found = || Ok(fstatfs(process::take_fd(call.pid, call.data.args[0] as u32)?)?);
    // If this fails, the kernel carries the call out and reports its own error.
    answer_if_ours(lab, call, found).unwrap_or(Answer::Continue)
}

/// `statfs(path, buffer)`: of a path below `/sys`.
pub(super) fn of_path(lab: &Arc<Lab>, call: &Notification) -> Answer {
    let path = read_text(lab, call, call.data.args[0], PATH).unwrap_or_default();
    if !path.starts_with("/sys/") || path.split('/').any(|part| part == "..") {
        return Answer::Continue;
    }
    // A link there may lead to a file system that does not answer: then only this program waits.
    lab.answer_later(*call, |_, lab, call| {
        let found = || {
            let path = read_text(lab, call, call.data.args[0], PATH)?;
            let below = path.strip_prefix("/sys/").ok_or(Errno::NOENT)?;
            Ok(statfs(format!("/proc/{}/root/sys/{below}", call.pid))?)
        };
        answer_if_ours(lab, call, found).unwrap_or(Answer::Continue)
    })
}

fn answer_if_ours(lab: &Lab, call: &Notification, found: impl FnOnce() -> io::Result<StatFs>) -> io::Result<Answer> {
    let buffer = call.data.args[1];
    let found = found()?;
    if !is_ours(&found) {
        return Ok(Answer::Continue);
    }
    // `struct statfs` of a 64-bit machine: type, block size, blocks (total, free, available), files (total, free), the
    // identity, the longest name, the fragment size, flags, and four that are kept free.
    let mut words = [0u64; 15];
    (words[0], words[1], words[8], words[9], words[10]) = (SYSFS, PAGE, NAME, PAGE, found.f_flags as u64);
    write(lab, call, buffer, &words.map(u64::to_ne_bytes).concat())?;
    Ok(Answer::Value(0))
}
