//! Starts a program in a lab, waits for it, and leaves nothing behind.
//!
//! A lab has three processes.
//!
//! - **The front** is the process that calls [`run`], `esw exec`. It waits for the program and passes signals on.
//! - **The program** is the front's child, so that its terminal, its process group, its exit status and its processor
//!   time are where they would be without a lab. It has a mount namespace of its own, in which the files are mounted
//!   that show the card. With CAP_SYS_ADMIN (root's, or that of a user namespace that is joined or made) it keeps all
//!   its privileges; without, it may gain none.
//! - **The supervisor** answers trapped calls and serves the mounts. It is a separate process, in a session of its own,
//!   and keeps nothing of the caller's, so that it can outlive the front. It ends when the kernel reports that no process
//!   has the filter any more.
//!
//! The supervisor is the program's sibling, not its parent. A parent would have to report the program's exit status,
//! and if the parent were killed, nobody would know that status. Instead, the supervisor needs the right to inspect
//! processes that are not its descendants: `CAP_SYS_PTRACE` where Yama is in force. Root has it, and so has every
//! process in a user namespace of its own.
//!
//! What is left if one of the processes is killed:
//!
//! | killed | before the program is started | later |
//! | --- | --- | --- |
//! | the front | nothing | the program is killed: by its parent's death, and by the supervisor, whatever user the program has become; what it left in the background goes on, in a working lab |
//! | the supervisor | nothing: the front reports that there is no lab | programs go on and get errors: ENOSYS from trapped calls, the end of their netlink sockets, ENOTCONN from `/sys` |
//! | the program | nothing | its status is 137, as always |
//!
//! A lab that is [kept](start) has a supervisor alone, which lives until it is stopped. Each program that [enters](enter)
//! has a front and a filter of its own; the supervisor gets its calls on a descriptor of its own, too.
//!
//! Before it becomes the program, its process has no signal handlers of ours, dies with the front, and becomes the
//! program only when the front tells it to. Wherever it waits, the end of the front wakes it.

mod channel;
mod enter;
mod kept;
mod place;
mod program;
mod supervisor_process;

use std::any::Any;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lockdep::Domain;
use netlink::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Signal, WaitOptions, WaitStatus, getrlimit, kill_process, pidfd_open, waitpid,
};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, capabilities, move_into_link_name_space};
use signal_hook::consts;
use signal_hook::iterator::Signals;

use crate::card::Card;
use crate::cards::Cards;
use crate::uevent::Uevents;
use crate::{filter, lock_order, sys};
use channel::{Step, Word, pair, receive, send};
use place::{Inside, Place};
use program::Program;
use supervisor_process::Supervisor;

pub use enter::enter;
pub use kept::{Connection, Keep, KeptError, ProgramInside, Status, Stopped};

/// Mounts the files that show the card. It is called once, in the program's process and mount namespace, before the
/// program is started.
pub type Mounts = Box<dyn FnMut() -> io::Result<()> + Send + Sync>;

/// Serves the mounts. It gets the domain of the lab's threads.
pub type Serve = Box<dyn FnOnce(&Arc<Domain>) -> Box<dyn Any + Send> + Send>;

/// The options of a lab.
#[derive(Default)]
pub struct Options {
    /// The namespaces in which the program is to run; `None`: those of the caller.
    pub join: Option<Join>,
    /// Mounts the files that show the card.
    pub mounts: Option<Mounts>,
    /// Serves the mounts. It is called in the supervisor, on a thread of its own, before the mounting, which may wait
    /// for it. What it returns is kept until the lab ends.
    pub serve: Option<Serve>,
    /// The uevents of the lab, to which a write to a file `uevent` in `/sys` adds one.
    pub uevents: Arc<Uevents>,
    /// Gives every program exact addresses of the messages that it receives, as programs of the Go compiler always get
    /// them. Each receipt then costs two switches of processes.
    pub exact_addresses: bool,
    /// Checks the order of the lab's locks in release builds, too. Builds with debug assertions always check it.
    pub lockdep: bool,
}

/// The namespaces that a lab joins; `None`: that of the caller.
#[derive(Debug, Default)]
pub struct Join {
    /// The user namespace. The whole process joins it, and must have one thread.
    pub user: Option<OwnedFd>,
    /// The network namespace, in which the card's netdevs are.
    pub network: Option<OwnedFd>,
    /// The mount namespace. The program gets a copy of it.
    pub mounts: Option<OwnedFd>,
}

/// Why a program was not started in a lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The process is inside a lab already.
    #[error("this is inside a lab already, and the kernel allows no lab in a lab: run it outside")]
    Inside,
    /// The kernel cannot trap system calls, or does not allow it to this user.
    #[error("a lab needs seccomp's user notification, and the kernel refuses it ({source}); it takes Linux 5.14")]
    NoFilter {
        /// The kernel's error.
        source: io::Error,
    },
    /// The program cannot be started.
    #[error("{program}: {source}")]
    NoProgram {
        /// Its name.
        program: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The supervisor has no right to read the program's memory.
    #[error(
        "a lab looks into its programs' memory, and kernel.yama.ptrace_scope is {scope}, which takes CAP_SYS_PTRACE; give \
         it (in a container, --cap-add SYS_PTRACE), or set it to 0 with sysctl"
    )]
    NoTracing {
        /// The setting.
        scope: u8,
    },
    /// This process has several threads.
    #[error("a lab is made by a process of one thread, and this has {0}")]
    Threads(usize),
    /// The lab does not let this process in.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// The supervisor ended before the program was started.
    #[error("the lab's supervisor has ended before it began to serve; see whether descriptors or memory are used up")]
    NoSupervisor,
    /// The root is no mount, and nothing is mounted below it.
    #[error(
        "the root directory of this process is no mount, as after a plain chroot, and nothing is mounted in it: mount proc and \
         sysfs there, or bind the directory to itself (mount --bind DIR DIR) before chroot"
    )]
    NoRoot,
    /// The system refused something else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> LabError {
    move |source| LabError::System { what, source: source.into() }
}

/// Runs a program in a lab with these cards, and waits for it. Returns its exit status as a shell reports it: 128 plus
/// the number of the signal if one ended it.
///
/// Processes that the program has left running go on, in a lab that is served until the last of them ends.
///
/// It forks, so the calling process must have one thread. The cards are used in the supervisor: threads that a card
/// needs must be started by [`Options::serve`].
///
/// # Errors
/// The program was not started.
pub fn run(cards: Vec<Arc<dyn Card>>, command: Command, options: Options) -> Result<i32, LabError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let Parts { supervisor, place, calls, front } = prepare(cards, options, None)?;
    let program = Program { command, filter: filter::program(high_descriptors().start), place, calls };
    // Each of the three processes drops what belongs to the others, so that each learns of the others' end.
    let Some(apart) = sys::fork().map_err(system("starting the supervisor"))? else {
        drop((front, program));
        supervisor.run();
    };
    drop(supervisor);
    let (ours, theirs) = pair().map_err(system(CHANNEL))?;
    let Some(child) = sys::fork().map_err(system("starting a process"))? else {
        drop((front, ours));
        program.become_it(&theirs);
    };
    drop((program, theirs));
    let mut front = Front { supervisor: front, program: ours, child, remains: false };
    let status = front.run(name);
    let remains = front.remains;
    drop(front);
    if !remains {
        // Both are ending, and it may be that no other process can wait for them.
        for process in [child, apart] {
            let _ = rustix::io::retry_on_intr(|| waitpid(Some(process), WaitOptions::empty()));
        }
    }
    status
}

/// Starts a lab that is kept: it lives until it is stopped, whether or not programs are in it. Returns the supervisor's
/// process when programs can [`enter`].
///
/// It forks, as [`run`] does.
///
/// # Errors
/// There is no such lab. Nothing is left of it.
pub fn start(cards: Vec<Arc<dyn Card>>, options: Options, keep: Keep) -> Result<Pid, LabError> {
    let Parts { mut supervisor, mut place, calls, front } = prepare(cards, options, Some(keep))?;
    let Some(apart) = sys::fork().map_err(system("starting the supervisor"))? else {
        drop((front, place));
        supervisor.run();
    };
    supervisor.keep.take().into_iter().for_each(Keep::leave_to_supervisor);
    drop(supervisor);
    let (ours, theirs) = pair().map_err(system(CHANNEL))?;
    let Some(child) = sys::fork().map_err(system("starting a process"))? else {
        drop((front, ours));
        make_place(&mut place, &calls, &theirs);
    };
    drop((place, calls, theirs));
    let made = match receive(&ours) {
        Ok((Word::Failed(step, errno), _)) => Err(error_of(step, errno, String::new())),
        _ => match receive(&front) {
            Ok((Word::Serving, _)) => send(&front, Word::Go, None).map_err(|_| LabError::NoSupervisor),
            _ => Err(LabError::NoSupervisor),
        },
    };
    drop(front);
    let _ = rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()));
    if made.is_err() {
        let _ = rustix::io::retry_on_intr(|| waitpid(Some(apart), WaitOptions::empty()));
    }
    made.map(|()| apart)
}

/// In a process of its own: makes the place of a lab that is kept, and hands it over to the supervisor, which keeps it.
fn make_place(place: &mut Place, calls: &OwnedFd, front: &OwnedFd) -> ! {
    let at = |error| (Step::Namespaces, error);
    let made = place.enter().and_then(|()| {
        let inside = Inside::of_this_thread().map_err(at)?;
        send(calls, Word::Mounts, Some(&inside.mounts)).map_err(at)?;
        send(calls, Word::Root, Some(&inside.root)).map_err(at)
    });
    let word = made.map_or_else(|(step, error)| Word::Failed(step, netlink::errno_of(&error)), |()| Word::Ready);
    let _ = send(front, word, None);
    sys::exit(0)
}

/// What the processes of a lab are made of, before they are forked.
struct Parts {
    supervisor: Supervisor,
    place: Place,
    /// The channel from the process of the place to the supervisor.
    calls: OwnedFd,
    /// The front's channel to the supervisor.
    front: OwnedFd,
}

fn prepare(cards: Vec<Arc<dyn Card>>, options: Options, keep: Option<Keep>) -> Result<Parts, LabError> {
    let Options { join, mounts, serve, uevents, exact_addresses, lockdep } = options;
    let join = join.unwrap_or_default();
    ensure_one_thread()?;
    if let Some(user) = &join.user {
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User)).map_err(system("joining the card"))?;
    }
    let privileged = may_isolate() || (join.user.is_none() && become_root().is_ok() && may_isolate());
    if !privileged && (mounts.is_some() || keep.is_some()) {
        let source = Errno::PERM.into();
        return Err(LabError::System { what: "a lab needs root, or a user namespace", source });
    }
    ensure_tracing()?;
    let network = join.network.as_ref().map(OwnedFd::try_clone).transpose().map_err(system("copying a descriptor"))?;
    let (front, supervisors) = pair().map_err(system(CHANNEL))?;
    let (calls, supervisors_calls) = pair().map_err(system(CHANNEL))?;
    let supervisor = Supervisor {
        cards: Arc::new(Cards::new(cards)),
        serve,
        network,
        uevents,
        exact_addresses,
        domain: lock_order::domain(lockdep),
        calls: supervisors_calls,
        front: supervisors,
        keep,
    };
    let place = Place::New { privileged, network: join.network, copied: join.mounts, mounts };
    Ok(Parts { supervisor, place, calls, front })
}

const CHANNEL: &str = "making a pair of sockets";

fn ensure_one_thread() -> Result<(), LabError> {
    // A thread that has been joined is listed for a moment longer, until the kernel has removed it.
    const ENDING: Duration = Duration::from_secs(2);
    let until = Instant::now() + ENDING;
    loop {
        let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        if threads <= 1 {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(LabError::Threads(threads));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether this thread has a capability in its user namespace.
fn has(capability: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// Whether this thread may make mount namespaces, and filters without `no_new_privs`.
fn may_isolate() -> bool {
    has(CapabilitySet::SYS_ADMIN)
}

/// Makes sure that the supervisor may inspect processes that are not its descendants.
fn ensure_tracing() -> Result<(), LabError> {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match scope.trim().parse().unwrap_or(0) {
        0 => Ok(()),
        1 | 2 if has(CapabilitySet::SYS_PTRACE) => Ok(()),
        scope => Err(LabError::NoTracing { scope }),
    }
}

/// Moves this process into a new user namespace, and makes it root there.
fn become_root() -> io::Result<()> {
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    sys::unshare_user()?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

/// The front, once the other two processes have been started.
struct Front {
    supervisor: OwnedFd,
    program: OwnedFd,
    child: Pid,
    /// Whether the supervisor stays, because the program has left processes running.
    remains: bool,
}

impl Front {
    fn run(&mut self, name: String) -> Result<i32, LabError> {
        match receive(&self.program) {
            Ok((Word::Ready, _)) => {}
            Ok((Word::Failed(step, errno), _)) => return Err(error_of(step, errno, name)),
            // The process was killed.
            _ => return self.wait(&mut self.signals()?),
        }
        match receive(&self.supervisor) {
            Ok((Word::Serving, _)) => {}
            _ => return Err(LabError::NoSupervisor),
        }
        // Until here a signal ends this process, and with it the lab. From here on signals are passed on to the
        // program.
        let mut signals = self.signals()?;
        let process = pidfd_open(self.child, PidfdFlags::empty()).map_err(system("looking at the program"))?;
        send(&self.supervisor, Word::Program, Some(&process)).map_err(|_| LabError::NoSupervisor)?;
        let _ = send(&self.program, Word::Go, None);
        // The other end is closed when the process has become the program, or has ended.
        if let Ok((Word::Failed(step, errno), _)) = receive(&self.program) {
            return Err(error_of(step, errno, name));
        }
        let status = self.wait(&mut signals)?;
        // If the program was the last process of the lab, the supervisor ends before this process does.
        if send(&self.supervisor, Word::Ended, None).is_ok() {
            self.remains = matches!(receive(&self.supervisor), Ok((Word::Remains, _)));
        }
        Ok(status)
    }

    fn signals(&self) -> Result<Signals, LabError> {
        Signals::new(SIGNALS).map_err(system("receiving signals"))
    }

    /// Waits for the program, and passes signals on to it.
    fn wait(&self, signals: &mut Signals) -> Result<i32, LabError> {
        loop {
            if let Some(status) = self.status().map_err(system("waiting for the program"))? {
                return Ok(status);
            }
            for signal in signals.wait() {
                let pass_on = match signal {
                    consts::SIGTERM => Signal::TERM,
                    consts::SIGHUP => Signal::HUP,
                    consts::SIGUSR1 => Signal::USR1,
                    consts::SIGUSR2 => Signal::USR2,
                    _ => continue,
                };
                // The program has not been waited for, so no other process has its number.
                let _ = kill_process(self.child, pass_on);
            }
        }
    }

    /// The program's exit status, if it has ended.
    fn status(&self) -> io::Result<Option<i32>> {
        let ended = rustix::io::retry_on_intr(|| waitpid(Some(self.child), WaitOptions::NOHANG))?;
        let code =
            |status: WaitStatus| status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0));
        Ok(ended.map(|(_, status)| code(status)))
    }
}

/// The error for a step that failed in the program's process.
fn error_of(step: Step, errno: Errno, program: String) -> LabError {
    let source = io::Error::from(errno);
    match step {
        Step::Filter if errno == Errno::BUSY => LabError::Inside,
        Step::Filter => LabError::NoFilter { source },
        Step::Namespaces if errno == Errno::INVAL => LabError::NoRoot,
        Step::Namespaces => LabError::System { what: "making a mount namespace", source },
        Step::Mounts => LabError::System { what: "mounting what shows the card", source },
        Step::Join => LabError::System { what: "joining the lab's namespaces", source },
        Step::Program => LabError::NoProgram { program, source },
    }
}

/// The signals that are received while a program runs. Those that a terminal sends reach the program by themselves.
const SIGNALS: [i32; 7] = [
    consts::SIGCHLD,
    consts::SIGINT,
    consts::SIGQUIT,
    consts::SIGTERM,
    consts::SIGHUP,
    consts::SIGUSR1,
    consts::SIGUSR2,
];

/// The descriptor numbers for which receiving is trapped: below the limit of `select`, and far from those that programs
/// use.
fn high_descriptors() -> std::ops::Range<u32> {
    const SELECT: u64 = 1024;
    const MANY: u64 = 256;
    let end = getrlimit(Resource::Nofile).current.unwrap_or(SELECT).min(SELECT);
    let start = end - MANY.min(end / 4);
    start as u32..end as u32
}
