//! Where daemons and those who look for them meet.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Mode, OFlags, chmod, chown, open, unlinkat};
use rustix::process::{Gid, geteuid};

use super::config::CardEntry;

/// Where control sockets are by default: `/run/eswitch`, or without root the user's own folder.
pub fn sockets() -> PathBuf {
    if geteuid().is_root() {
        return PathBuf::from("/run/eswitch");
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    match own {
        Some(own) => own.join("eswitch"),
        None => std::env::temp_dir().join(format!("eswitch-{}", geteuid().as_raw())),
    }
}

/// A control socket that is bound, and goes when this does.
#[derive(Debug)]
pub struct Socket {
    listener: Option<OwnedFd>,
    /// The folder it is in, which may be hidden from us by then.
    folder: OwnedFd,
    name: PathBuf,
    group: Option<u32>,
}

impl Socket {
    /// Binds a card's.
    ///
    /// # Errors
    /// It is taken, or the system refuses.
    pub fn bind(card: &CardEntry) -> Result<Self> {
        let path = &card.socket;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            anyhow::bail!("{} is no path for a socket", path.display());
        };
        std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(parent, flags, Mode::empty()).with_context(|| parent.display().to_string())?;
        let listener = devlink::listen(path)?;
        let bound = Self { listener: Some(listener), folder, name: name.into(), group: card.group };
        chmod(path, Mode::from_raw_mode(card.mode)).with_context(|| path.display().to_string())?;
        if let Some(group) = card.group {
            chown(path, None, Some(Gid::from_raw(group))).with_context(|| format!("{}: its group", path.display()))?;
        }
        Ok(bound)
    }

    /// What listens; once.
    pub fn take_listener(&mut self) -> Option<OwnedFd> {
        self.listener.take()
    }

    /// Whose members may change things.
    pub fn group(&self) -> Option<u32> {
        self.group
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = unlinkat(&self.folder, &self.name, AtFlags::empty());
    }
}
