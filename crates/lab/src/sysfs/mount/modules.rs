//! `/lib/modules`: which directory is covered, and the directory that is made if it does not exist.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, openat, stat, statat};
use rustix::io::Errno;

use super::copy;

/// `/lib/modules`, which need not exist.
pub(super) struct Modules {
    /// The system's, which is seen through the cards' tree.
    pub(super) systems: Option<OwnedFd>,
    /// The path of the directory that is covered.
    pub(super) covered: String,
    /// The path in the file system of the directory that covers it.
    pub(super) shown: String,
    /// The directory that was made to be covered, if it did not exist.
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

/// The mode of a directory that a lab has made, by which another lab recognises it.
const MADE_BY_A_LAB: u32 = 0o555;

fn is_made_by_a_lab(path: &str) -> bool {
    let empty = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    empty && stat(path).is_ok_and(|status| status.st_mode & 0o7777 == MADE_BY_A_LAB)
}

/// A directory that this or an earlier lab has made, and that the last lab which uses it removes. Each of them holds a
/// shared lock on it (`flock`).
#[derive(Debug)]
pub(super) struct Made(pub(super) Option<OwnedFd>);

impl Made {
    /// Makes the directory, or finds it, and locks it.
    fn new() -> Option<Self> {
        // It may be removed before it is locked; then it is made again.
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

    /// Leaves the lock to the supervisor, which has got a copy of the descriptor.
    pub(super) fn hand_over(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let Some(dir) = self.0.take() else { return };
        // Unlocked first: if two labs end at the same time, each would see the other's lock, and neither would remove
        // it.
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

/// The kernel's release, as `uname -r` prints it.
pub(super) fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}
