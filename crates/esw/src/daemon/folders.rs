//! Where daemons and those who look for them meet.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Mode, OFlags, chmod, chown, open, unlinkat};
use rustix::process::{Gid, geteuid};

use super::config::CardEntry;

/// Where control sockets are by default: what the service manager says, `/run/eswitch`, or without root the
/// user's own folder.
pub fn sockets() -> PathBuf {
    if let Some(given) = given("RUNTIME_DIRECTORY") {
        return given;
    }
    if geteuid().is_root() {
        return PathBuf::from("/run/eswitch");
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    match own {
        Some(own) => own.join("eswitch"),
        None => std::env::temp_dir().join(format!("eswitch-{}", geteuid().as_raw())),
    }
}

/// Where what was agreed is kept by default: what the service manager says, `/var/lib/eswitch`, or without root the
/// user's own folder.
///
/// # Errors
/// It is not known where the user's own things are.
pub fn state() -> Result<PathBuf> {
    if let Some(given) = given("STATE_DIRECTORY") {
        return Ok(given);
    }
    if geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/eswitch"));
    }
    let own = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = own("XDG_STATE_HOME").or_else(|| Some(own("HOME")?.join(".local/state")));
    let own = own.context("neither XDG_STATE_HOME nor HOME says where to keep state; give `state_dir`")?;
    Ok(own.join("eswitch"))
}

/// A folder that systemd names in the environment; it may name several, the first of which is the unit's own.
fn given(name: &str) -> Option<PathBuf> {
    let value = std::env::var(name).ok()?;
    let first = PathBuf::from(value.split(':').next()?);
    first.is_absolute().then_some(first)
}

/// Makes a folder that others may look into and not write to, unless it is there.
///
/// # Errors
/// The system refuses; or what is there is another user's, who could put anything in our way.
pub fn make(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let found = fs::metadata(folder)?;
    let own = geteuid();
    if found.uid() != own.as_raw() && !own.is_root() && found.uid() != 0 {
        return Err(io::Error::other("it belongs to another user"));
    }
    Ok(())
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
        make(parent).with_context(|| format!("making {} for the control socket", parent.display()))?;
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
