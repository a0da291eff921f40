//! Tells whether this process is inside a lab.
//!
//! An environment variable would be no proof: programs clear them, and keep them when they leave a lab. A filter with a
//! listener above this process is a proof, and cannot be lost: the kernel allows one listener in a chain of filters,
//! and refuses another with `EBUSY`. So a child process tries to install one, and ends.

use std::io;
use std::process::{Command, Stdio};

use netlink::{Errno, errno_of};

use crate::sys;

/// Whether this process is inside a lab, or under another program that answers system calls for it. It starts a
/// process, which ends before this returns.
///
/// # Errors
/// The process cannot be started.
pub fn is_inside() -> io::Result<bool> {
    let mut child = Command::new("/proc/self/exe");
    child.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    sys::before_exec(&mut child, || {
        // A process without CAP_SYS_ADMIN may install a filter only with `no_new_privs`.
        sys::no_new_privileges()?;
        sys::listen(&[sys::ALLOW])?;
        // It succeeded, which is all that was to be found out.
        Err(Errno::CANCELED.into())
    });
    let refused = match child.spawn() {
        // Unreachable: the child always fails before `exec`.
        Ok(mut child) => {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        Err(error) => error,
    };
    match errno_of(&refused) {
        Errno::BUSY => Ok(true),
        // The last four are those of a kernel or a container in which a lab is impossible.
        Errno::CANCELED | Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::ACCESS => Ok(false),
        _ => Err(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_listener_above_it_is_inside() {
        // Each thread has its own filters, which the processes that it starts inherit.
        let inside = std::thread::spawn(|| {
            let before = is_inside()?;
            sys::no_new_privileges()?;
            let listener = sys::listen(&[sys::ALLOW])?;
            let inside = is_inside()?;
            drop(listener);
            io::Result::Ok((before, inside))
        });
        assert_eq!(inside.join().unwrap().unwrap(), (false, true));
        assert!(!is_inside().unwrap());
    }
}
