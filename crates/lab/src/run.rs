//! Starts a program in a lab, and leaves nothing behind.
//!
//! There are three processes.
//!
//! - **The front** is the process that [`run`] is called in, `esw exec`: it waits for the program and passes
//!   signals on.
//! - **The program** is the front's child, so that its terminal, its process group, its exit status and the
//!   processor time it took are where they would be without a lab. It has a mount namespace of its own, where what
//!   a lab shows of a card is mounted. With the power to make one (root's, or that of a user namespace that is
//!   joined or made) it keeps all its privileges; without, it may gain none.
//! - **The supervisor** answers trapped calls and serves the mounts. It is a process apart, in a session of its
//!   own, with nothing of the caller's, so that it can outlive the front: it ends when the kernel says that no
//!   process has the filter any more.
//!
//! The supervisor is the program's sibling, not its parent. A parent would have to report its exit status, and if it
//! was killed nobody would know that. What it takes instead is the right to look into processes that are not its
//! descendants, `CAP_SYS_PTRACE` where Yama is in force. Root has it, and so has everybody in a user namespace.
//!
//! What is left if one of them is killed:
//!
//! | killed | before the program was started | later |
//! | --- | --- | --- |
//! | the front | nothing | the program is killed, by its parent's death and by the supervisor, which does it whatever user the program has become; what it left in the background goes on, in a working lab |
//! | the supervisor | nothing: the front says that there is no lab | programs go on and get errors: ENOSYS from trapped calls, the end of their netlink sockets, ENOTCONN from `/sys` |
//! | the program | nothing | its status is 137, as always |
//!
//! Before it is the program, its process has none of our handlers of signals, dies with the front, and becomes
//! the program only when the front tells it to. It waits nowhere where the front's end would not wake it.

mod apart;
mod channel;
mod program;

use std::any::Any;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use netlink::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Signal, WaitOptions, WaitStatus, getrlimit, kill_process, pidfd_open, waitpid,
};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, capabilities, move_into_link_name_space};
use signal_hook::consts;
use signal_hook::iterator::Signals;

use crate::card::Card;
use crate::cards::Cards;
use crate::{filter, sys};
use apart::Supervisor;
use channel::{Step, Word, pair, receive, send};
use program::Program;

/// What mounts what a lab shows beside sockets: run once, in the program's mount namespace and process, before
/// the program.
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
    /// Serves what is mounted: begun in the supervisor, on a thread of its own, before the mounting, which may wait
    /// for it. What it returns is kept until the lab ends.
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
    /// The supervisor may not look into the program's memory.
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
    /// The supervisor ended before the program was started.
    #[error("the lab's supervisor has ended before it began to serve; see whether descriptors or memory are used up")]
    NoSupervisor,
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
/// What the program has left running when it ends runs on, in a lab that is served until the last of it ends.
///
/// Call it in a process of one thread, as it forks. The cards are used in the supervisor: threads that serve one of
/// them are to be started by [`Options::serve`].
///
/// # Errors
/// The program was not started.
pub fn run(cards: Vec<Arc<dyn Card>>, command: Command, options: Options) -> Result<i32, LabError> {
    let Options { join, mounts, serve, exact_addresses } = options;
    let join = join.unwrap_or_default();
    ensure_one_thread()?;
    if let Some(user) = &join.user {
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User)).map_err(system("joining the card"))?;
    }
    let privileged = has_power() || (join.user.is_none() && become_root().is_ok() && has_power());
    if !privileged && mounts.is_some() {
        let source = Errno::PERM.into();
        return Err(LabError::System { what: "a lab needs root, or a user namespace", source });
    }
    ensure_tracing()?;
    let name = command.get_program().to_string_lossy().into_owned();
    let high = high_descriptors();
    let network = join.network.as_ref().map(OwnedFd::try_clone).transpose().map_err(system("copying a descriptor"))?;
    let (front, supervisors) = pair().map_err(system(CHANNEL))?;
    let (calls, heard) = pair().map_err(system(CHANNEL))?;
    let supervisor = Supervisor {
        cards: Arc::new(Cards::new(cards)),
        serve,
        network,
        high: high.clone(),
        exact_addresses,
        calls: heard,
        front: supervisors,
    };
    let program = Program {
        command,
        filter: filter::program(high.start),
        privileged,
        network: join.network,
        namespace: join.mounts,
        mounts,
        calls,
    };
    // Each of the three drops what is the others', so that each hears of the others' end.
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
        // Both are ending. Nobody else may be there to wait for them.
        for process in [child, apart] {
            let _ = rustix::io::retry_on_intr(|| waitpid(Some(process), WaitOptions::empty()));
        }
    }
    status
}

const CHANNEL: &str = "making a pair of sockets";

fn ensure_one_thread() -> Result<(), LabError> {
    // A thread that has been joined is still there for a moment, until the kernel has put it away.
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

/// Whether this thread may make mount namespaces and filters.
fn has_power() -> bool {
    has(CapabilitySet::SYS_ADMIN)
}

/// Makes sure that the supervisor may look into processes that are not its descendants.
fn ensure_tracing() -> Result<(), LabError> {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match scope.trim().parse().unwrap_or(0) {
        0 => Ok(()),
        1 | 2 if has(CapabilitySet::SYS_PTRACE) => Ok(()),
        scope => Err(LabError::NoTracing { scope }),
    }
}

/// Makes this process root in a user namespace of its own.
fn become_root() -> io::Result<()> {
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    sys::unshare_user()?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

/// `esw exec` itself, once there are the others.
struct Front {
    supervisor: OwnedFd,
    program: OwnedFd,
    child: Pid,
    /// Whether the supervisor stays, for what the program has left.
    remains: bool,
}

impl Front {
    fn run(&mut self, name: String) -> Result<i32, LabError> {
        match receive(&self.program) {
            Ok((Word::Ready, _)) => {}
            Ok((Word::Failed(step, errno), _)) => return Err(why(step, errno, name)),
            // Killed by somebody.
            _ => return self.wait(&mut self.signals()?),
        }
        match receive(&self.supervisor) {
            Ok((Word::Serving, _)) => {}
            _ => return Err(LabError::NoSupervisor),
        }
        // Until here what is sent to us ends us, and with us everything. From here on it is for the program.
        let mut signals = self.signals()?;
        let process = pidfd_open(self.child, PidfdFlags::empty()).map_err(system("looking at the program"))?;
        send(&self.supervisor, Word::Program, Some(&process)).map_err(|_| LabError::NoSupervisor)?;
        let _ = send(&self.program, Word::Go, None);
        // The other end is closed when the process has become the program, or has ended.
        if let Ok((Word::Failed(step, errno), _)) = receive(&self.program) {
            return Err(why(step, errno, name));
        }
        let status = self.wait(&mut signals)?;
        // If it was the last, nothing is left when we end.
        if send(&self.supervisor, Word::Ended, None).is_ok() {
            self.remains = matches!(receive(&self.supervisor), Ok((Word::Remains, _)));
        }
        Ok(status)
    }

    fn signals(&self) -> Result<Signals, LabError> {
        Signals::new(HEARD).map_err(system("hearing signals"))
    }

    /// Waits for the program; what ends us, or calls us, is passed on to it.
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
                // It has not been waited for, so the number is its own.
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

/// Why the program was not started.
fn why(step: Step, errno: Errno, program: String) -> LabError {
    let source = io::Error::from(errno);
    match step {
        Step::Filter if errno == Errno::BUSY => LabError::Inside,
        Step::Filter => LabError::NoFilter { source },
        Step::Namespaces => LabError::System { what: "making a mount namespace", source },
        Step::Mounts => LabError::System { what: "mounting what shows the card", source },
        Step::Program => LabError::NoProgram { program, source },
    }
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

/// The descriptors from which on receiving is trapped: below where `select` ends, and far from where
/// programs have theirs.
fn high_descriptors() -> std::ops::Range<u32> {
    const SELECT: u64 = 1024;
    const MANY: u64 = 256;
    let end = getrlimit(Resource::Nofile).current.unwrap_or(SELECT).min(SELECT);
    let start = end - MANY.min(end / 4);
    start as u32..end as u32
}
