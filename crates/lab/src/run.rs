//! Starts a program in a lab, stays beside it until it ends, and leaves nothing behind.
//!
//! The program runs in the foreground of our terminal, in a mount namespace of its own, where what a lab
//! shows of a card is mounted. With the power to make one (root's, or that of a user namespace that is
//! joined or made) it keeps all its privileges; without, it may gain none.

use std::any::Any;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread;

use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg,
};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, set_parent_process_death_signal};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, capabilities, move_into_link_name_space};
use signal_hook::consts;
use signal_hook::iterator::Signals;

use crate::card::Card;
use crate::cards::Cards;
use crate::supervisor::{self, Lab};
use crate::{filter, sys};

/// What mounts what a lab shows beside sockets: run once, in the program's mount namespace, before the
/// program. It runs between `fork` and `exec`: it may allocate, but wait for no other thread.
pub type Mounts = Box<dyn FnMut() -> io::Result<()> + Send + Sync>;

/// What serves the other side of the mounts.
pub type Serve = Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>;

/// How a lab is to be.
#[derive(Default)]
pub struct Options {
    /// Namespaces that the program is to be in, if not ours.
    pub join: Option<Join>,
    /// Mounts what is to be seen of the card in the file system.
    pub mounts: Option<Mounts>,
    /// Serves what is mounted: begun on a thread of its own before the mounting, which may wait for it. What it
    /// returns is kept until the program has ended.
    pub serve: Option<Serve>,
    /// Every program is given right addresses of what it receives, as those made by the Go compiler are in
    /// any case: at the cost of two switches of processes for each receipt.
    pub exact_addresses: bool,
}

/// Namespaces to be in.
#[derive(Debug, Default)]
pub struct Join {
    /// Joined by the whole process, which must have one thread.
    pub user: Option<OwnedFd>,
    /// Where the card's netdevs are.
    pub network: Option<OwnedFd>,
    /// Of which the program gets a copy.
    pub mounts: Option<OwnedFd>,
}

/// Why a program does not run in a lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// There is already a lab around.
    #[error("this is inside a lab already, and the kernel allows no lab in a lab: run it outside, or without `exec`")]
    Inside,
    /// The kernel cannot trap system calls, or this user may not.
    #[error("a lab needs seccomp's user notification, and the kernel refuses it ({source}); it takes Linux 5.14")]
    NoFilter {
        /// What the kernel said.
        source: io::Error,
    },
    /// The program cannot be started.
    #[error("{program}: {source}")]
    NoProgram {
        /// Its name.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The system refused something else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What came of it.
        source: io::Error,
    },
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> LabError {
    move |source| LabError::System { what, source: source.into() }
}

/// Runs a program in a lab with these cards and waits for it; its exit status, as a shell has it: 128 and
/// the signal's number if one ended it.
///
/// What the program has left running when it ends runs on, but outside: it can make no netlink socket any
/// more.
///
/// # Errors
/// The program was not started.
pub fn run(cards: Vec<Arc<dyn Card>>, command: Command, options: Options) -> Result<i32, LabError> {
    let Options { join, mounts, serve, exact_addresses } = options;
    let join = join.unwrap_or_default();
    if let Some(user) = &join.user {
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User)).map_err(system("joining the card"))?;
    }
    let privileged = has_power() || (join.user.is_none() && become_root().is_ok() && has_power());
    if !privileged && mounts.is_some() {
        let source = io::Error::from_raw_os_error(libc::EPERM);
        return Err(LabError::System { what: "a lab needs root, or a user namespace", source });
    }
    let plan = Plan { privileged, join, mounts, serve, cards: Arc::new(Cards::new(cards)), exact_addresses };
    // On a thread of its own, which changes its network namespace, and whose own threads are in it too.
    let lab = thread::Builder::new().name("lab".to_owned()).spawn(move || plan.run(command));
    let lab = lab.map_err(system("starting a thread"))?;
    lab.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Whether this thread may make mount namespaces and filters.
fn has_power() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Makes this process root in a user namespace of its own.
fn become_root() -> io::Result<()> {
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    sys::unshare_user()?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

struct Plan {
    privileged: bool,
    join: Join,
    mounts: Option<Mounts>,
    serve: Option<Serve>,
    cards: Arc<Cards>,
    exact_addresses: bool,
}

/// What the child was at when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Namespaces = 1,
    Mounts,
    Filter,
}

impl Plan {
    fn run(self, mut command: Command) -> Result<i32, LabError> {
        if let Some(network) = &self.join.network {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(network.as_fd(), kind).map_err(system("joining the card's network"))?;
        }
        let high = high_descriptors();
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.map_err(system("making a socket"))?;
        let program = command.get_program().to_string_lossy().into_owned();
        prepare(
            &mut command,
            Prepared {
                filter: filter::program(high.start),
                privileged: self.privileged,
                mounts: self.mounts,
                namespace: self.join.mounts,
                tell: theirs,
            },
        );
        let mut signals = Signals::new(HEARD).map_err(system("hearing signals"))?;
        let serve = self.serve.map(|serve| thread::Builder::new().name("lab-files".to_owned()).spawn(serve));
        let serving = serve.transpose().map_err(system("starting a thread"))?;
        let child = command.spawn();
        // The command holds what was prepared, and the child's end with it.
        drop(command);
        let child = child.map_err(|source| why(&ours, program, source))?;
        let (_, listener) = receive(ours.as_fd()).map_err(system("taking over the filter"))?;
        let listener = listener.ok_or(io::ErrorKind::UnexpectedEof).map_err(system("taking over the filter"))?;
        let _ = sys::wake_at_once(listener.as_fd());
        let lab = Arc::new(Lab::new(listener, self.cards, high, self.exact_addresses));
        let status = beside(&lab, child, &mut signals);
        drop(serving.map(thread::JoinHandle::join));
        status
    }
}

/// Serves the lab as long as the program runs.
fn beside(lab: &Arc<Lab>, child: Child, signals: &mut Signals) -> Result<i32, LabError> {
    let (stop, stopper) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(system("making a pipe"))?;
    let serving = Arc::clone(lab);
    let server = thread::Builder::new().name("lab-calls".to_owned()).spawn(move || supervisor::serve(&serving, &stop));
    let server = server.map_err(system("starting a thread"))?;
    let status = wait(child, signals).map_err(system("waiting for the program"));
    drop(stopper);
    let _ = server.join();
    status.map(|status| status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// What is heard while a program runs. An interrupt from the terminal has reached it already.
const HEARD: [i32; 7] = [
    consts::SIGCHLD,
    consts::SIGINT,
    consts::SIGQUIT,
    consts::SIGTERM,
    consts::SIGHUP,
    consts::SIGUSR1,
    consts::SIGUSR2,
];

/// Waits for the program; what ends us, or calls us, is passed on to it.
fn wait(mut child: Child, signals: &mut Signals) -> io::Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    for signal in signals.forever() {
        let pass_on = match signal {
            consts::SIGTERM => Some(Signal::TERM),
            consts::SIGHUP => Some(Signal::HUP),
            consts::SIGUSR1 => Some(Signal::USR1),
            consts::SIGUSR2 => Some(Signal::USR2),
            _ => None,
        };
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if let (Some(pid), Some(signal)) = (pid, pass_on) {
            let _ = kill_process(pid, signal);
        }
    }
    child.wait()
}

/// The descriptors from which on receiving is trapped: below where `select` ends, and far from where
/// programs have theirs.
fn high_descriptors() -> std::ops::Range<u32> {
    const SELECT: u64 = 1024;
    const MANY: u64 = 256;
    let end = getrlimit(Resource::Nofile).current.unwrap_or(SELECT).min(SELECT);
    let start = end - MANY.min(end / 4);
    start as u32..end as u32
}

/// What the child does before it becomes the program.
struct Prepared {
    filter: Vec<sys::FilterOp>,
    privileged: bool,
    mounts: Option<Mounts>,
    namespace: Option<OwnedFd>,
    tell: OwnedFd,
}

fn prepare(command: &mut Command, mut prepared: Prepared) {
    sys::before_exec(command, move || {
        prepared.be_ready().map_err(|(step, error)| {
            let _ = send(prepared.tell.as_fd(), step as u8, None);
            error
        })
    });
}

impl Prepared {
    fn be_ready(&mut self) -> Result<(), (Step, io::Error)> {
        let at = |step| move |error: io::Error| (step, error);
        // If we are killed, a program whose sockets lead nowhere is of no use.
        let _ = set_parent_process_death_signal(Some(Signal::TERM));
        if self.privileged {
            self.own_mounts().map_err(at(Step::Namespaces))?;
        }
        if let Some(mounts) = &mut self.mounts {
            mounts().map_err(at(Step::Mounts))?;
        }
        if !self.privileged {
            sys::no_new_privileges().map_err(at(Step::Filter))?;
        }
        let listener = sys::listen(&self.filter).map_err(at(Step::Filter))?;
        send(self.tell.as_fd(), 0, Some(listener.as_fd())).map_err(at(Step::Filter))
    }

    /// Gets a mount namespace from which nothing comes out, but into which what is mounted outside comes.
    fn own_mounts(&self) -> io::Result<()> {
        if let Some(namespace) = &self.namespace {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
        }
        sys::unshare_mounts()?;
        // What `ip netns` makes in a lab is to be there outside, if it is where others look for it.
        let named = if is_shared(NAMED) { Some(copy_of(NAMED)?) } else { None };
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        if let Some(named) = named {
            move_mount(named, "", rustix::fs::CWD, NAMED, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        }
        Ok(())
    }
}

/// Where `ip netns` keeps its namespaces.
const NAMED: &str = "/run/netns";

fn copy_of(path: &str) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(rustix::fs::CWD, path, flags)?)
}

/// Whether something is mounted there whose mounts are seen elsewhere, too.
fn is_shared(path: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(4);
        fields.next() == Some(path) && fields.any(|field| field.starts_with("shared:"))
    })
}

/// Sends where the child is, or that it is ready, with a descriptor.
fn send(to: BorrowedFd<'_>, step: u8, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let flags = SendFlags::from_bits_retain(filter::UNTRAPPED_SEND);
    sendmsg(to, &[IoSlice::new(&[step])], &mut ancillary, flags)?;
    Ok(())
}

fn receive(from: BorrowedFd<'_>) -> io::Result<(u8, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut step = [0];
    recvmsg(from, &mut [IoSliceMut::new(&mut step)], &mut ancillary, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)?;
    let mut fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((step[0], fds.next()))
}

/// Why the program was not started: what the child was at.
fn why(ours: &OwnedFd, program: String, source: io::Error) -> LabError {
    let step = receive(ours.as_fd()).map_or(0, |(step, _)| step);
    let is = |at: Step| step == at as u8;
    if is(Step::Filter) {
        match source.raw_os_error() {
            Some(libc::EBUSY) => LabError::Inside,
            _ => LabError::NoFilter { source },
        }
    } else if is(Step::Namespaces) {
        LabError::System { what: "making a mount namespace", source }
    } else if is(Step::Mounts) {
        LabError::System { what: "mounting what shows the card", source }
    } else {
        LabError::NoProgram { program, source }
    }
}
