//! The folders of control sockets and of stored state, and who may write to them.

use std::fs::{DirBuilder, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
#[cfg(test)]
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, io};

use anyhow::{Context, Result};
use devlink::ControlSocket;
use eswitch::CardConfig;
use rustix::fs::{Mode, OFlags};
use rustix::process::geteuid;

/// The node that this process is for: set once, from the command line, before anything asks.
static NODE: OnceLock<String> = OnceLock::new();

/// The name of the node that this process is for, if the machine is several.
pub fn node() -> Option<&'static str> {
    NODE.get().map(String::as_str)
}

/// Sets the node that this process is for. Later calls have no effect.
pub fn set_node(name: String) {
    let _ = NODE.set(name);
}

/// The serial number of the cards of this node that have none in their configuration: a hash of the node's name, so that
/// nodes have different MAC addresses. 0 without a node.
pub fn serial() -> u32 {
    node().map_or(0, serial_of)
}

/// FNV-1a, folded into the bits that a serial number has.
fn serial_of(node: &str) -> u32 {
    let hash = node.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    // 0 is no serial number.
    ((hash >> 23 ^ hash) & CardConfig::SERIAL_MAX).max(1)
}

/// The name of a node: it is part of the names of folders and of network namespaces.
///
/// # Errors
/// It is none; the error says what one is.
pub fn node_name(text: &str) -> Result<String, String> {
    if is_name(text) {
        return Ok(text.to_owned());
    }
    Err("a node has a name of 1 to 32 letters, digits, `-`, `_` and `.`, which begins with a letter or a digit"
        .to_owned())
}

/// Whether a text can be the name of a node or a lab, and part of the names of files.
pub fn is_name(text: &str) -> bool {
    let is_usual = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    starts_well && text.len() <= 32 && text.chars().all(is_usual)
}

/// The folder of a node, in a default folder that nodes share.
fn of_node(folder: PathBuf) -> PathBuf {
    match node() {
        Some(node) => folder.join("nodes").join(node),
        None => folder,
    }
}

/// The default folder of control sockets: the one that the service manager names, `/run/eswitch`, or without root one of
/// the user's own; of a node, a folder in that.
pub fn sockets() -> PathBuf {
    from_service_manager("RUNTIME_DIRECTORY").unwrap_or_else(|| of_node(shared_sockets()))
}

/// The folder in which that of a node is, too.
fn shared_sockets() -> PathBuf {
    if geteuid().is_root() {
        return PathBuf::from("/run/eswitch");
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    match own {
        Some(own) => own.join("eswitch"),
        None => std::env::temp_dir().join(format!("eswitch-{}", geteuid().as_raw())),
    }
}

/// The names of the nodes that have control sockets, sorted.
pub fn nodes() -> Vec<String> {
    let folder = shared_sockets().join("nodes");
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let is_up = |name: &String| {
        let mut files = entries(&folder.join(name));
        node_name(name).is_ok() && files.any(|file| file.path().extension().is_some_and(|end| end == "sock"))
    };
    let mut names: Vec<String> =
        entries(&folder).map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(is_up).collect();
    names.sort();
    names
}

/// The default folder of stored state: the one that the service manager names, `/var/lib/eswitch`, or without root one of
/// the user's own; of a node, a folder in that.
///
/// # Errors
/// The environment does not name a folder of the user's own.
pub fn state() -> Result<PathBuf> {
    if let Some(folder) = from_service_manager("STATE_DIRECTORY") {
        return Ok(folder);
    }
    if geteuid().is_root() {
        return Ok(of_node(PathBuf::from("/var/lib/eswitch")));
    }
    let own = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = own("XDG_STATE_HOME").or_else(|| Some(own("HOME")?.join(".local/state")));
    let own = own.context("neither XDG_STATE_HOME nor HOME says where to keep state; give `state_dir`")?;
    Ok(of_node(own.join("eswitch")))
}

/// The mode of every file in the folder of stored state. Only the daemon's user may open them: another user could prevent a
/// start by holding a lock.
pub const OURS_ALONE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Opens a folder, so that files can be opened relative to it.
///
/// # Errors
/// The system's, with the path.
pub fn open(folder: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty()).with_context(|| folder.display().to_string())
}

/// The folder that systemd names in a variable of the environment. It may name several, of which the first is the unit's
/// own.
fn from_service_manager(name: &str) -> Option<PathBuf> {
    let value = std::env::var(name).ok()?;
    let first = PathBuf::from(value.split(':').next()?);
    first.is_absolute().then_some(first)
}

/// Checks that only this user and root can write to the default folder of control sockets, and to those that have that of a
/// node. Otherwise its sockets could be another user's. A folder that does not exist is no danger.
///
/// # Errors
/// One is another user's, others may write to it, or it is no folder; the error says what to do.
pub fn ensure_own(folder: &Path) -> io::Result<()> {
    let of_node = node().is_some() && from_service_manager("RUNTIME_DIRECTORY").is_none();
    let above = folder.ancestors().take(if of_node { 3 } else { 1 });
    above.collect::<Vec<_>>().into_iter().rev().try_for_each(ensure_own_one)
}

/// Checks that only this user and root can write to one folder, as [`ensure_own`] does.
///
/// # Errors
/// The same.
pub fn ensure_own_one(folder: &Path) -> io::Result<()> {
    // Without following a link, which another user could have put there.
    let found = match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let why = if found.is_symlink() {
        "it is a symbolic link".to_owned()
    } else if !found.is_dir() {
        "it is no folder".to_owned()
    } else if found.uid() != geteuid().as_raw() && found.uid() != 0 {
        format!("it belongs to another user, number {}", found.uid())
    } else if found.mode() & 0o022 != 0 {
        "others may write to it".to_owned()
    } else {
        return Ok(());
    };
    Err(io::Error::other(format!(
        "{} cannot be trusted with control sockets: {why}; remove it or put it right, or have RUNTIME_DIRECTORY name a \
         folder of your own, or say which socket is meant with --socket",
        folder.display()
    )))
}

/// Makes a folder, unless it exists, that other users may read and not write to, whatever the umask.
///
/// # Errors
/// The system refuses; or the existing folder is another user's, who could put any file into it.
pub fn make(folder: &Path) -> io::Result<()> {
    let builder = || {
        let mut builder = DirBuilder::new();
        builder.mode(0o755);
        builder
    };
    if let Some(parent) = folder.parent() {
        builder().recursive(true).create(parent)?;
    }
    match builder().create(folder) {
        Ok(()) => fs::set_permissions(folder, Permissions::from_mode(0o755))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let found = fs::metadata(folder)?;
    let own = geteuid();
    if found.uid() != own.as_raw() && !own.is_root() && found.uid() != 0 {
        return Err(io::Error::other("it belongs to another user"));
    }
    Ok(())
}

/// Opens a file to append to, or makes it. No other user may open it, whatever the umask: a user who can open a file can
/// hold a lock on it.
///
/// # Errors
/// The system refuses, or the path is a symbolic link.
pub fn open_private(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = File::options().read(true).append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    if file.metadata()?.mode() & 0o777 != 0o600 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Binds a card's control socket, and makes its folder. `mode` is that of the socket's file; members of `group` may
/// change things over it, beside root and the user who runs the daemon.
///
/// # Errors
/// The socket is taken, its folder cannot be trusted, or the system refuses.
pub fn bind(socket: &Path, mode: u32, group: Option<u32>) -> Result<ControlSocket> {
    let parent = socket.parent().with_context(|| format!("{} is no path for a socket", socket.display()))?;
    make(parent).with_context(|| format!("making {} for the control socket", parent.display()))?;
    if parent == sockets() {
        ensure_own(parent)?;
    }
    Ok(ControlSocket::bind(socket, mode, group)?)
}

/// A folder of a test's own, which is removed at its end; in memory if there is room for it: what is flushed there costs
/// nothing.
#[cfg(test)]
pub struct Temporary(PathBuf);

#[cfg(test)]
impl Temporary {
    /// An empty folder. `purpose`: a word for its name.
    pub fn new(purpose: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = parent.join(format!("esw-{purpose}-{}-{n}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_users_own_folder_is_trusted() {
        let folder = Temporary::new("folders");
        let (own, link, file) = (folder.path().join("own"), folder.path().join("link"), folder.path().join("file"));
        assert!(ensure_own(&own).is_ok(), "a folder that does not exist is no danger");
        make(&own).unwrap();
        assert!(ensure_own(&own).is_ok());
        std::os::unix::fs::symlink(&own, &link).unwrap();
        fs::write(&file, "").unwrap();
        for (path, why) in [(&link, "symbolic link"), (&file, "no folder")] {
            let refused = ensure_own(path).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
        for mode in [0o777, 0o1777, 0o775] {
            fs::set_permissions(&own, Permissions::from_mode(mode)).unwrap();
            let refused = ensure_own(&own).unwrap_err().to_string();
            assert!(refused.contains("others may write"), "{mode:o}: {refused}");
        }
        fs::set_permissions(&own, Permissions::from_mode(0o755)).unwrap();
        if geteuid().is_root() {
            std::os::unix::fs::chown(&own, Some(65_534), None).unwrap();
            let refused = ensure_own(&own).unwrap_err().to_string();
            assert!(refused.contains("another user, number 65534"), "{refused}");
        }
    }
}
