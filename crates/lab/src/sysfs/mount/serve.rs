//! The supervisor's half: it serves what the other half mounts.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::channel::{receive, send};
use super::modules::{Made, release};
use super::{SysfsError, system};
use crate::Card;
use crate::sysfs::fs::SysFs;
use crate::sysfs::place::Scene;
use crate::sysfs::under::Beneath;

/// One would be faster by a fifth; but a read of the kernel's may wait while VFs come.
const THREADS: usize = 4;

/// What the supervisor has to do.
pub struct Server {
    pub(super) socket: OwnedFd,
}

impl Server {
    /// Waits until the lab has mounted, and serves from then on, in threads of its own.
    ///
    /// # Errors
    /// The lab could not mount, or has ended.
    pub fn serve(self, cards: Vec<Arc<dyn Card>>) -> Result<Serving, SysfsError> {
        let mut word = [0; 16];
        let (length, fds) = receive(&self.socket, &mut word).map_err(system("receiving from the lab"))?;
        let word = word.get(..length).unwrap_or_default();
        let mut fds = fds.into_iter();
        let (Some(fuse), Some(sys)) = (fds.next(), fds.next()) else {
            return Err(SysfsError::OtherHalf("mount"));
        };
        let modules = if word.starts_with(b"modules") { fds.next() } else { None };
        let made = if word.ends_with(b"made") { fds.next() } else { None }.map(|dir| Made(Some(dir)));
        let scene = Scene::new(cards, Beneath::new(sys, modules), release());
        let mut config = fuser::Config::default();
        config.acl = fuser::SessionACL::All;
        config.n_threads = Some(THREADS);
        let session = fuser::Session::from_fd(SysFs::new(scene), fuse, fuser::SessionACL::All, config);
        let failed = |source| SysfsError::System { what: "serving /sys".to_owned(), source };
        // Its threads end when the lab's mount namespace does.
        session.and_then(fuser::Session::spawn).map_err(failed)?;
        send(&self.socket, b"serving", &[]).map_err(system("answering the lab"))?;
        Ok(Serving { _made: made })
    }
}

/// What there is while `/sys` is served. It is to be dropped when the lab has ended.
#[derive(Debug)]
pub struct Serving {
    _made: Option<Made>,
}
