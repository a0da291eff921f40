//! Where a card's netdevs appear: decided once, at the start of `main`, before there is a second thread.
//!
//! With the needed capabilities, netdevs appear in the network namespace in which the process was started.
//! Without them, the process gets a user, a network and a mount namespace of its own, in which it is root:
//! it has an empty `/run` there, so that `ip netns` works, and nothing outside is touched.

use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use netlink::{Errno, errno_of, without_number};

use crate::socket::Socket;
use crate::{netns, request, sys};

/// The namespace in which a card's netdevs appear.
#[derive(Debug)]
pub struct Place {
    home: File,
    private: bool,
    node: Option<String>,
}

/// Why a place cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The kernel does not let this user make a user namespace.
    #[error("a card without root needs a user namespace, and {reason}; {remedy}, or run as root")]
    NoUserNamespace {
        /// What is in the way.
        reason: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A network namespace cannot be entered.
    #[error("the network namespace {name}: {why}; {remedy}")]
    NoNetns {
        /// Its name.
        name: String,
        /// The system's error.
        why: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The system refused something else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> PlaceError {
    move |source| PlaceError::System { what, source }
}

impl Place {
    /// Finds or makes the place. Call it before any thread is started: a process with several cannot
    /// change its user namespace.
    ///
    /// # Errors
    /// The kernel allows neither. The error names the setting that is in the way.
    pub fn prepare() -> Result<Self, PlaceError> {
        let home = netns::current().map_err(system("opening /proc/thread-self/ns/net"))?;
        if is_administered(&home)? {
            return Ok(Self { home, private: false, node: None });
        }
        make_private()?;
        let home = netns::current().map_err(system("opening the new network namespace"))?;
        let mut socket = Socket::open(&home).map_err(system("opening a netlink socket"))?;
        // Many programs need a loopback that is up; a card does not.
        let _ = socket.run_one(|batch| request::set_up(batch, 1, true));
        Ok(Self { home, private: true, node: None })
    }

    /// Moves the process to the network namespace of a name, in which [`prepare`](Self::prepare) then finds the place. Call it
    /// before any thread is started.
    ///
    /// # Errors
    /// There is none of that name, or this user may not enter it.
    pub fn enter(netns: &str) -> Result<(), PlaceError> {
        netns::open(netns).and_then(|opened| sys::enter_netns(&opened)).map_err(|source| PlaceError::NoNetns {
            name: netns.to_owned(),
            remedy: match source.kind() {
                io::ErrorKind::NotFound => "`ip netns add` makes one with a name",
                io::ErrorKind::PermissionDenied => "this takes root",
                _ => "`ip netns list` shows those that have names",
            },
            why: without_number(&source),
        })
    }

    /// Whether [`prepare`](Self::prepare) would make namespaces, rather than use the one this was started in.
    ///
    /// # Errors
    /// This cannot be found out.
    pub fn would_be_private() -> Result<bool, PlaceError> {
        let home = netns::current().map_err(system("opening /proc/thread-self/ns/net"))?;
        Ok(!is_administered(&home)?)
    }

    /// Joins the place that another process of the same user has made. Call it before any thread is started.
    ///
    /// # Errors
    /// The process has ended, or is not this user's.
    pub fn join(process: BorrowedFd<'_>) -> Result<Self, PlaceError> {
        sys::enter_all(process).map_err(system("entering the namespaces of a process"))?;
        let home = netns::current().map_err(system("opening /proc/thread-self/ns/net"))?;
        Ok(Self { home, private: true, node: None })
    }

    /// The same place, on a node of this name: nodes of one machine may have cards at the same PCI addresses.
    #[must_use]
    pub fn on_node(self, node: Option<&str>) -> Self {
        Self { node: node.map(str::to_owned), ..self }
    }

    /// The node that it is on.
    pub(crate) fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Whether the namespace was made for a process, rather than being the one in which it was started.
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// The network namespace in which netdevs appear.
    pub fn netns(&self) -> &File {
        &self.home
    }
}

/// Whether this thread may administer networks and mounts where it was started, if only in its own user namespace.
/// If this cannot be found out, that is an error: root without free descriptors must not be taken for a user without
/// root.
fn is_administered(home: &File) -> Result<bool, PlaceError> {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    let text = fs::read_to_string("/proc/thread-self/status").map_err(system("reading /proc/thread-self/status"))?;
    let effective = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let effective = effective.ok_or_else(|| io::Error::other("it does not show capabilities"));
    let effective = effective.map_err(system("reading /proc/thread-self/status"))?;
    if effective & NET_ADMIN == 0 || effective & SYS_ADMIN == 0 {
        return Ok(false);
    }
    sys::owns(home).map_err(system("looking at who owns the network namespace"))
}

fn make_private() -> Result<(), PlaceError> {
    let (user, group) = sys::user_and_group();
    sys::unshare_all().map_err(why_not)?;
    // Some systems make the namespace but give no capabilities in it: then these writes are refused.
    fs::write("/proc/self/setgroups", "deny").map_err(why_not)?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1")).map_err(why_not)?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1")).map_err(why_not)?;
    let nothing = Path::new("");
    sys::mount(nothing, Path::new("/"), "none", libc::MS_REC | libc::MS_PRIVATE).map_err(why_not)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    sys::mount(Path::new("tmpfs"), Path::new("/run"), "tmpfs", flags).map_err(system("mounting a fresh /run"))?;
    fs::create_dir_all("/run/netns").map_err(system("making /run/netns"))?;
    // The old sysfs shows the netdevs outside in /sys/class/net. In a container that covers parts of /sys
    // the kernel mounts no new one; a card works without.
    let _ = sys::mount(Path::new("sysfs"), Path::new("/sys"), "sysfs", flags | libc::MS_NOEXEC);
    Ok(())
}

fn setting(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Finds out why a user namespace was refused: looks at the known settings, the likeliest first.
fn why_not(error: io::Error) -> PlaceError {
    let no = |reason: &str, remedy| PlaceError::NoUserNamespace { reason: reason.to_owned(), remedy };
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    match errno_of(&error) {
        Errno::INVAL if threads > 1 => {
            no("this process has several threads already", "make the place before starting any")
        }
        Errno::INVAL => no("this kernel has none", "use one with CONFIG_USER_NS"),
        Errno::NOSPC | Errno::USERS => {
            no("user.max_user_namespaces, max_net_namespaces or max_mnt_namespaces is used up", "raise it with sysctl")
        }
        _ if setting("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) => {
            no("kernel.unprivileged_userns_clone is 0", "set it to 1 with sysctl")
        }
        _ if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) => no(
            "kernel.apparmor_restrict_unprivileged_userns is 1",
            "set it to 0 with sysctl, or give this program an AppArmor profile with `userns,`",
        ),
        _ if setting("/proc/sys/user/max_user_namespaces") == Some(0) => {
            no("user.max_user_namespaces is 0", "raise it with sysctl")
        }
        _ if filtered() => no(
            "a seccomp filter refuses it, as container engines' default ones do",
            "allow unshare and mount in the container's profile",
        ),
        _ => no(&format!("the kernel refuses it ({error})"), "allow user namespaces to this user"),
    }
}

fn filtered() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Seccomp:") && line.ends_with('2'))
}
