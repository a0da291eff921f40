//! The supervisor's half: it serves what the other half mounts.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use lockdep::Domain;

use super::modules::{Made, release};
use super::{SysfsError, system};
use crate::Card;
use crate::network::NetworkSockets;
use crate::passing::{receive, send};
use crate::sysfs::fs::SysFs;
use crate::sysfs::lower::Lower;
use crate::sysfs::merged::MergedTree;
use crate::uevent::Uevents;

/// The threads that serve. A single one would be faster by a fifth; but a read of a kernel's file may wait while VFs
/// are created.
const THREADS: usize = 4;

/// The supervisor's half. It serves what the lab has mounted.
pub struct Server {
    pub(super) socket: OwnedFd,
}

impl Server {
    /// Waits until the lab has mounted, and serves from then on, on threads of its own, which end when the last mount namespace
    /// does that has the mounts. `domain`: that of the lab's threads. `uevents`: those of the lab.
    ///
    /// # Errors
    /// The lab could not mount, or has ended.
    pub fn serve(
        self,
        cards: Vec<Arc<dyn Card>>,
        uevents: Arc<Uevents>,
        domain: &Arc<Domain>,
    ) -> Result<Serving, SysfsError> {
        self.serve_with(cards, uevents, domain, THREADS)
    }

    /// The same with a number of threads.
    pub(crate) fn serve_with(
        self,
        cards: Vec<Arc<dyn Card>>,
        uevents: Arc<Uevents>,
        domain: &Arc<Domain>,
        threads: usize,
    ) -> Result<Serving, SysfsError> {
        let mut word = [0; 16];
        let (length, fds) = receive(&self.socket, &mut word).map_err(system("receiving from the lab"))?;
        let word = word.get(..length).unwrap_or_default();
        let mut fds = fds.into_iter();
        let (Some(fuse), Some(sys), Some(listener), Some(query)) = (fds.next(), fds.next(), fds.next(), fds.next())
        else {
            return Err(SysfsError::OtherHalf("mount"));
        };
        let network = NetworkSockets::received(listener, query);
        let modules = if word.starts_with(b"modules") { fds.next() } else { None };
        let made = if word.ends_with(b"made") { fds.next() } else { None }.map(|dir| Made(Some(dir)));
        let merged = MergedTree::new(cards, uevents, network, Lower::new(sys, modules), release());
        let mut config = fuser::Config::default();
        config.acl = fuser::SessionACL::All;
        config.n_threads = Some(threads);
        let session =
            fuser::Session::from_fd(SysFs::new(merged, Arc::clone(domain)), fuse, fuser::SessionACL::All, config);
        let failed = |source| SysfsError::System { what: "serving /sys".to_owned(), source };
        session.and_then(fuser::Session::spawn).map_err(failed)?;
        send(&self.socket, b"serving", &[]).map_err(system("answering the lab"))?;
        Ok(Serving { _made: made })
    }
}

/// What exists while `/sys` is served. To be dropped when the lab has ended.
#[derive(Debug)]
pub struct Serving {
    _made: Option<Made>,
}
