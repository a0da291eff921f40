//! Starts a program in a lab that is kept.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use rustix::fs::{fstat, stat};
use rustix::process::{WaitOptions, waitpid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::channel::pair;
use super::kept::{Connection, Entry};
use super::place::{Inside, Place};
use super::program::Program;
use super::{CHANNEL, Front, LabError, ensure_one_thread, high_descriptors, system};
use crate::{filter, sys};

/// Runs a program in a lab that is kept, and waits for it. Returns its exit status, as [`run`](super::run) does. What it
/// leaves in the background goes on in the lab.
///
/// The program is this process's child, with its terminal, its process group and its limits; it is in the namespaces of the
/// lab. It forks, so the calling process must have one thread.
///
/// # Errors
/// The program was not started.
pub fn enter(lab: Connection, command: Command) -> Result<i32, LabError> {
    ensure_one_thread()?;
    let high = high_descriptors();
    let Entry { front, calls, mounts, root, users, network } = lab.enter(high.clone())?;
    if !is_own(&users, "user").map_err(system("looking at the lab's user namespace"))? {
        let joined = move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User));
        joined.map_err(system("joining the lab's user namespace"))?;
    }
    let network = match is_own(&network, "net").map_err(system("looking at the lab's network namespace"))? {
        true => None,
        false => Some(network),
    };
    let place = Place::Of(Inside { mounts, root, network });
    let name = command.get_program().to_string_lossy().into_owned();
    let program = Program { command, filter: filter::program(high.start), place, calls };
    let (ours, theirs) = pair().map_err(system(CHANNEL))?;
    let Some(child) = sys::fork().map_err(system("starting a process"))? else {
        drop((front, ours));
        program.become_it(&theirs);
    };
    drop((program, theirs));
    let mut front = Front { supervisor: front, program: ours, child, remains: false };
    let status = front.run(name);
    drop(front);
    // It may be that no other process can wait for it.
    let _ = rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()));
    status
}

/// Whether a namespace of this kind is that of this process.
fn is_own(namespace: &OwnedFd, kind: &str) -> Result<bool, rustix::io::Errno> {
    let (theirs, ours) = (fstat(namespace)?, stat(format!("/proc/self/ns/{kind}"))?);
    Ok((theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino))
}
