//! Whether this process is inside a lab.
//!
//! An environment variable would be no proof: programs clear them, and keep them when they leave. That a filter with a
//! listener is above this process is one, and cannot be lost: the kernel allows one listener in a chain of filters, and
//! says `EBUSY` to whoever asks for another. So a child asks, and ends.

use std::io;
use std::process::{Command, Stdio};

use netlink::{Errno, errno_of};

use crate::sys;

/// Says whether this process is inside a lab, or under another program that answers system calls for it. It starts a
/// process, which ends before this returns.
///
/// # Errors
/// The system gives no process.
pub fn is_inside() -> io::Result<bool> {
    let mut child = Command::new("/proc/self/exe");
    child.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    sys::before_exec(&mut child, || {
        // Without power a process may have no filter unless it gives up to gain any.
        sys::no_new_privileges()?;
        sys::listen(&[sys::ALLOW])?;
        // It could: that is all we wanted to know.
        Err(Errno::CANCELED.into())
    });
    let refused = match child.spawn() {
        // It cannot have been started.
        Ok(mut child) => {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        Err(error) => error,
    };
    match errno_of(&refused) {
        Errno::BUSY => Ok(true),
        // The last three are those of a kernel, or a container, where there can be no lab.
        Errno::CANCELED | Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::ACCESS => Ok(false),
        _ => Err(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_listener_above_is_inside() {
        // A thread has filters of its own, and what it starts has them, too.
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
