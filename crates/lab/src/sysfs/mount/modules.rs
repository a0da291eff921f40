//! `/lib/modules`: what of it is covered, and the directory that is made where there is none.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, openat, stat, statat};
use rustix::io::Errno;

use super::copy;

/// `/lib/modules`, which need not be there: what is covered, with what, and what is seen through it.
pub(super) struct Modules {
    pub(super) systems: Option<OwnedFd>,
    pub(super) covered: String,
    pub(super) shown: String,
    /// It was made, to be covered.
    pub(super) made: Option<Made>,
}

const MODULES: &str = "/lib/modules";

impl Modules {
    pub(super) fn find() -> Self {
        let release = release();
        let own = format!("{MODULES}/{release}");
        let systems = copy(MODULES).ok();
        if Path::new(&own).is_dir() {
            return Self { systems, covered: own, shown: format!("lib-modules/{release}"), made: None };
        }
        let made = if systems.is_none() || is_made_by_a_lab(MODULES) { Made::new() } else { None };
        let systems = systems.or_else(|| copy(MODULES).ok());
        Self { systems, covered: MODULES.to_owned(), shown: "lib-modules".to_owned(), made }
    }
}

/// The mode of a directory that a lab has made, by which another lab knows it.
const MADE_BY_A_LAB: u32 = 0o555;

fn is_made_by_a_lab(path: &str) -> bool {
    let empty = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    empty && stat(path).is_ok_and(|status| status.st_mode & 0o7777 == MADE_BY_A_LAB)
}

/// A directory that a lab has made, this one or one before it, and that the last one removes: a lock on it,
/// which each has that uses it.
#[derive(Debug)]
pub(super) struct Made(pub(super) Option<OwnedFd>);

impl Made {
    /// Makes it, or finds it.
    fn new() -> Option<Self> {
        // It may be removed before it is locked, and then is made again.
        for _ in 0..100 {
            if std::fs::create_dir(MODULES).is_ok() {
                rustix::fs::chmod(MODULES, Mode::from_raw_mode(MADE_BY_A_LAB)).ok()?;
            }
            let dir = match open_dir(MODULES) {
                Err(Errno::NOENT) => continue,
                dir => dir.ok()?,
            };
            flock(&dir, FlockOperation::LockShared).ok()?;
            if stat(MODULES)
                .is_ok_and(|now| statat(&dir, "", AtFlags::EMPTY_PATH).is_ok_and(|s| s.st_ino == now.st_ino))
            {
                return Some(Self(Some(dir)));
            }
        }
        None
    }

    /// The other side of the lab has the lock from now on.
    pub(super) fn hand_over(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let Some(dir) = self.0.take() else { return };
        // Unlocked first: of two that end at the same time, each would see the other's lock.
        let _ = flock(&dir, FlockOperation::Unlock);
        let Ok(again) = open_dir(MODULES) else { return };
        if flock(&again, FlockOperation::NonBlockingLockExclusive).is_ok() && is_made_by_a_lab(MODULES) {
            let _ = std::fs::remove_dir(MODULES);
        }
    }
}

fn open_dir(path: &str) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// What `uname -r` says.
pub(super) fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}
