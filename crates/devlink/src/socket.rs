//! A card's control socket in the file system, and the lock beside it.
//!
//! A process that binds, replaces or removes `NAME.sock` holds a lock on `NAME.sock.lock` meanwhile, and a daemon holds
//! that lock for as long as it lives. So of several daemons that start at once only one gets the socket, and none
//! removes another's. The kernel releases the lock when a daemon dies, in whatever way. The socket and the lock file
//! are left behind then, and the next daemon takes them over.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, chmod, chownat, fchmod, fstat, open, openat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The number of connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon has the socket.
    #[error("{path}: a daemon already listens there{by}; end it with `esw down`, or choose another socket")]
    InUse {
        /// The socket's path.
        path: String,
        /// The process of that daemon, if known: ` (process 7)`.
        by: String,
    },
    /// The path is that of something else than a socket.
    #[error("{0} is there and is no socket; remove it, or choose another path")]
    NotASocket(String),
    /// The lock file is no regular file of this user.
    #[error("{0} is there and is no lock of this user's; remove it, or choose another path for the socket")]
    NotALock(String),
    /// A system call failed.
    #[error("{path}: {source}")]
    System {
        /// The socket's path.
        path: String,
        /// Its error.
        source: io::Error,
    },
}

/// A control socket that listens. Dropping this removes the socket, if the path still is that of the socket that was
/// bound here.
#[derive(Debug)]
pub struct ControlSocket {
    listener: Option<OwnedFd>,
    /// The directory of the socket, whose path may be hidden from this process later.
    folder: OwnedFd,
    name: OsString,
    /// The file of the socket, once it is bound.
    bound: Option<Inode>,
    // Dropped last: the process that gets the lock next finds neither our socket nor our lock file.
    lock: Lock,
}

/// The identity of a file: its device and inode numbers.
type Inode = (u64, u64);

fn inode(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

impl ControlSocket {
    /// Binds a control socket and listens. A socket that a dead daemon has left is replaced. `mode`: the permissions of
    /// the socket, which decide who may connect. `group`: the ID of the group that it is to belong to. No process can
    /// connect before both are set.
    ///
    /// # Errors
    /// Another daemon has the socket, the path is that of something else, or a system call failed. An existing file
    /// stays.
    pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, SocketError> {
        let system = |source: Errno| SocketError::System { path: path.display().to_string(), source: source.into() };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(system(Errno::INVAL)) };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(parent, flags, Mode::empty()).map_err(system)?;
        let address = SocketAddrUnix::new(path).map_err(system)?;
        let lock = Lock::take(&folder, name, path)?;
        let mut socket = Self { listener: None, folder, name: name.to_owned(), bound: None, lock };
        socket.remove_dead(path, &address)?;
        let listener = seqpacket(SocketFlags::CLOEXEC).map_err(system)?;
        // `bind` gives the file the mode of the socket.
        fchmod(&listener, Mode::from_raw_mode(0o600)).map_err(system)?;
        net::bind(&listener, &address).map_err(system)?;
        socket.permit(mode, group).map_err(system)?;
        net::listen(&listener, BACKLOG).map_err(system)?;
        socket.listener = Some(listener);
        Ok(socket)
    }

    /// The listening socket. `None` if it was taken before.
    pub fn take_listener(&mut self) -> Option<OwnedFd> {
        self.listener.take()
    }

    /// Removes the file of a socket on which no process listens, if it exists.
    fn remove_dead(&self, path: &Path, address: &SocketAddrUnix) -> Result<(), SocketError> {
        let name = || path.display().to_string();
        let system = |source: Errno| SocketError::System { path: name(), source: source.into() };
        match statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(system(error)),
            Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::Socket => {
                return Err(SocketError::NotASocket(name()));
            }
            Ok(_) => {}
        }
        // A program that listens there may not have taken the lock.
        match net::connect(&seqpacket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).map_err(system)?, address) {
            Err(Errno::CONNREFUSED) => unlinkat(&self.folder, &self.name, AtFlags::empty()).map_err(system),
            Ok(()) | Err(Errno::AGAIN) => Err(SocketError::InUse { path: name(), by: String::new() }),
            Err(error) => Err(system(error)),
        }
    }

    /// Sets the group and mode of the file of the socket.
    fn permit(&mut self, mode: u32, group: Option<u32>) -> Result<(), Errno> {
        // By a descriptor: another file may be at the path by now.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.folder, &self.name, flags, Mode::empty())?;
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(Errno::NOTSOCK);
        }
        self.bound = Some(inode(&stat));
        if let Some(group) = group {
            chownat(&file, "", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
        }
        chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), Mode::from_raw_mode(mode))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // No daemon binds another socket while this one holds the lock, but a user may have removed both files.
        let found = statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        if self.bound.is_some() && found.ok().as_ref().map(inode) == self.bound {
            let _ = unlinkat(&self.folder, &self.name, AtFlags::empty());
        }
        self.lock.remove(&self.folder);
    }
}

fn seqpacket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// The lock on the lock file of a socket, held.
#[derive(Debug)]
struct Lock {
    file: File,
    name: OsString,
}

impl Lock {
    /// Takes the lock for the socket with a name in a directory.
    fn take(folder: &OwnedFd, socket: &std::ffi::OsStr, path: &Path) -> Result<Self, SocketError> {
        let mut name = socket.to_owned();
        name.push(".lock");
        let system = |source| SocketError::System { path: format!("{}.lock", path.display()), source };
        loop {
            // A link must not be followed, opening a pipe without a writer must not block, and another user's file must
            // not be used.
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let opened = openat(folder, &name, flags, Mode::from_raw_mode(0o600));
            let mut file = File::from(match opened {
                Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => {
                    return Err(SocketError::NotALock(format!("{}.lock", path.display())));
                }
                opened => opened.map_err(|error| system(error.into()))?,
            });
            let stat = fstat(&file).map_err(|error| system(error.into()))?;
            let is_ours = stat.st_uid == rustix::process::geteuid().as_raw();
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !is_ours {
                return Err(SocketError::NotALock(format!("{}.lock", path.display())));
            }
            // Another user that could open the file could hold the lock and keep every daemon from starting.
            if stat.st_mode & 0o777 != 0o600 {
                fchmod(&file, Mode::from_raw_mode(0o600)).map_err(|error| system(error.into()))?;
            }
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(SocketError::InUse { path: path.display().to_string(), by: holder(&mut file) });
                }
                Err(TryLockError::Error(error)) => return Err(system(error)),
            }
            // The previous holder may have removed the file before it released the lock. Then this is not the lock
            // file.
            match statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) if inode(&found) == inode(&stat) => {
                    let pid = std::process::id().to_string();
                    file.set_len(0).and_then(|()| file.write_all(pid.as_bytes())).map_err(system)?;
                    return Ok(Self { file, name });
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(error) => return Err(system(error.into())),
            }
        }
    }

    /// Removes the lock file, if it still is the locked one.
    fn remove(&self, folder: &OwnedFd) {
        let found = statat(folder, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        let own = fstat(self.file.as_fd());
        if let (Ok(found), Ok(own)) = (found, own)
            && inode(&found) == inode(&own)
        {
            let _ = unlinkat(folder, &self.name, AtFlags::empty());
        }
    }
}

/// The process that holds a lock, as ` (process 7)`. Empty if it has not written its number yet.
fn holder(file: &mut File) -> String {
    let mut pid = String::new();
    let read = file.rewind().and_then(|()| file.take(16).read_to_string(&mut pid));
    match pid.parse::<u32>() {
        Ok(pid) if read.is_ok() => format!(" (process {pid})"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::PathBuf;

    use super::*;

    /// A directory that is removed at the end of the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("esw-socket-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_socket_has_its_mode_and_leaves_no_file() {
        let folder = Folder::new("mode");
        let path = folder.0.join("a.sock");
        let socket = ControlSocket::bind(&path, 0o660, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(fs::metadata(folder.0.join("a.sock.lock")).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert_eq!(folder.names(), [""; 0]);
    }

    #[test]
    fn of_two_daemons_one_gets_the_socket_even_if_it_does_not_listen_yet() {
        let folder = Folder::new("two");
        let path = folder.0.join("a.sock");
        let socket = ControlSocket::bind(&path, 0o600, None).unwrap();
        let refused = ControlSocket::bind(&path, 0o600, None).unwrap_err();
        assert!(matches!(refused, SocketError::InUse { .. }), "{refused}");
        assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        // The daemon lives, but its socket was removed.
        fs::remove_file(&path).unwrap();
        let refused = ControlSocket::bind(&path, 0o600, None).unwrap_err();
        assert!(matches!(refused, SocketError::InUse { .. }), "{refused}");
        drop(socket);
        ControlSocket::bind(&path, 0o600, None).unwrap();
    }

    #[test]
    fn only_its_own_socket_and_lock_are_removed() {
        let folder = Folder::new("own");
        let path = folder.0.join("a.sock");
        let first = ControlSocket::bind(&path, 0o600, None).unwrap();
        for name in folder.names() {
            fs::remove_file(folder.0.join(name)).unwrap();
        }
        let second = ControlSocket::bind(&path, 0o600, None).unwrap();
        let number = fs::metadata(&path).unwrap().ino();
        drop(first);
        assert_eq!(fs::metadata(&path).unwrap().ino(), number);
        assert!(ControlSocket::bind(&path, 0o600, None).is_err(), "the second's lock is there, too");
        drop(second);
    }

    #[test]
    fn a_file_that_is_no_lock_is_left_alone() {
        let folder = Folder::new("lock");
        let path = folder.0.join("a.sock");
        let victim = folder.0.join("victim");
        fs::write(&victim, "mine").unwrap();
        std::os::unix::fs::symlink(&victim, folder.0.join("a.sock.lock")).unwrap();
        let refused = ControlSocket::bind(&path, 0o600, None).unwrap_err();
        assert!(matches!(refused, SocketError::NotALock(_)), "{refused}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    }

    #[test]
    fn a_program_that_listens_without_a_lock_is_left_alone() {
        let folder = Folder::new("other");
        let path = folder.0.join("a.sock");
        // It has another socket type, so our connection is refused although the program lives.
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(ControlSocket::bind(&path, 0o600, None).is_err());
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        drop(other);
        assert!(path.exists());
    }
}
