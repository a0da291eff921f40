//! `fstatfs`: the file system that shows `/sys` says that it is a sysfs. libudev shows no device whose directory is in
//! another file system (`sd_device_set_syspath` asks each).

use std::io;

use rustix::fs::fstatfs;

use crate::process;
use crate::supervisor::{Answer, Lab};
use crate::sys::Notification;
use crate::sysfs::is_ours;

use super::write;

/// SYSFS_MAGIC.
const SYSFS: u64 = 0x6265_6572;
/// The size of a page, which `simple_statfs` gives as the size of a block.
const PAGE: u64 = 4096;
/// NAME_MAX.
const NAME: u64 = 255;

/// `fstatfs(fd, buffer)`.
pub(super) fn answer(lab: &Lab, call: &Notification) -> Answer {
    // If this fails, the kernel carries the call out and reports its own error.
    answer_if_ours(lab, call).unwrap_or(Answer::Continue)
}

fn answer_if_ours(lab: &Lab, call: &Notification) -> io::Result<Answer> {
    let [fd, buffer, ..] = call.data.args;
    let found = fstatfs(process::take_fd(call.pid, fd as u32)?)?;
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
