//! The supervisor's process. It lives as long as a process of the lab does.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use lockdep::Domain;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, Signal, chdir, getrlimit, pidfd_send_signal, setrlimit, setsid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_name};

use super::Serve;
use super::channel::{Word, receive, send};
use crate::cards::Cards;
use crate::supervisor::{self, Lab};
use crate::sys;
use crate::uevent::Uevents;

/// What the supervisor needs.
pub(super) struct Supervisor {
    pub cards: Arc<Cards>,
    pub serve: Option<Serve>,
    pub network: Option<OwnedFd>,
    pub uevents: Arc<Uevents>,
    pub high: std::ops::Range<u32>,
    pub exact_addresses: bool,
    /// The domain of all threads of the lab.
    pub domain: Arc<Domain>,
    /// The channel from the program's process.
    pub calls: OwnedFd,
    /// The channel to the front.
    pub front: OwnedFd,
}

impl Supervisor {
    /// Serves until no process of the lab is left, and ends this process.
    pub fn run(self) -> ! {
        // The functions above on the stack belong to the front; the process must end here.
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve_all()));
        std::process::exit(i32::from(!matches!(ended, Ok(Ok(())))))
    }

    fn serve_all(self) -> io::Result<()> {
        detach()?;
        raise_limits();
        if let Some(network) = &self.network {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        let domain = Arc::clone(&self.domain);
        let shows_sysfs = self.serve.is_some();
        let serve =
            self.serve.map(|serve| thread::Builder::new().name("lab-files".to_owned()).spawn(move || serve(&domain)));
        let serving = serve.transpose()?;
        // If no program is started, the other end is closed. The mounts' server learns of that by its own channel.
        let (_, listener) = receive(&self.calls)?;
        drop(self.calls);
        let listener = listener.ok_or(io::ErrorKind::UnexpectedEof)?;
        let _ = sys::wake_at_once(listener.as_fd());
        let domain = Arc::clone(&self.domain);
        let lab = Arc::new(Lab::new(
            listener,
            self.cards,
            self.high,
            self.exact_addresses,
            shows_sysfs,
            self.uevents,
            domain,
        ));
        let watched = Arc::clone(&lab);
        let front = self.front.try_clone()?;
        thread::Builder::new().name("lab-front".to_owned()).spawn(move || watch(&watched, &front))?;
        // Before the first program needs it: a request to another family must not wait for a card.
        let lookup = Arc::clone(&lab);
        thread::Builder::new().name("lab-family".to_owned()).spawn(move || {
            lockdep::enter(&lookup.domain, "lab-family", |cx| {
                lookup.families.devlink(cx, &lookup.cards);
            });
        })?;
        send(&self.front, Word::Serving, None)?;
        // Only the end of the last process stops it.
        let (stop, _stopper) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        supervisor::serve(&lab, &stop);
        drop(serving.map(thread::JoinHandle::join));
        Ok(())
    }
}

/// Raises resource limits. A user limits programs, and does not mean the process that serves them all: every socket and
/// open file of a lab takes descriptors here, and the work for all programs counts as this process's.
fn raise_limits() {
    for resource in [Resource::Nofile, Resource::Cpu, Resource::As] {
        let limit = getrlimit(resource);
        // A limit that cannot be raised stays as it is.
        let _ = setrlimit(resource, Rlimit { current: limit.maximum, ..limit });
    }
}

/// Gives up all that belongs to the caller: its terminal and its signals, its directory, its files and pipes.
fn detach() -> io::Result<()> {
    setsid()?;
    sys::ignore_requests_to_end()?;
    chdir("/")?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    let _ = set_name(c"esw-lab");
    sys::close_what_was_inherited()
}

/// Handles the front's messages. If the front ends before its program, kills the program.
fn watch(lab: &Lab, front: &OwnedFd) {
    let mut program = None;
    loop {
        match receive(front) {
            Ok((Word::Program, process)) => program = process,
            Ok((Word::Ended, _)) => {
                program = None;
                // If no process is left, this process ends, which answers the front.
                if is_any_left(lab) {
                    let _ = send(front, Word::Remains, None);
                }
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    if let Some(program) = program {
        let _ = pidfd_send_signal(program, Signal::KILL);
    }
}

/// Whether any process still has the filter.
fn is_any_left(lab: &Lab) -> bool {
    let mut polled = [PollFd::new(&lab.listener, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let looked = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&now)));
    looked.is_ok() && !polled[0].revents().contains(PollFlags::HUP)
}
