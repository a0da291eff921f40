//! The supervisor's process. It is there as long as a process of the lab is, and no longer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, Signal, chdir, getrlimit, pidfd_send_signal, setrlimit, setsid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_name};

use super::Serve;
use super::channel::{Word, receive, send};
use crate::cards::Cards;
use crate::supervisor::{self, Lab};
use crate::sys;

/// What the supervisor is made of.
pub(super) struct Supervisor {
    pub cards: Arc<Cards>,
    pub serve: Option<Serve>,
    pub network: Option<OwnedFd>,
    pub high: std::ops::Range<u32>,
    pub exact_addresses: bool,
    /// The way from the program's process.
    pub calls: OwnedFd,
    /// The way to `esw exec`.
    pub front: OwnedFd,
}

impl Supervisor {
    /// Serves until nobody is left, and ends this process.
    pub fn run(self) -> ! {
        // What called us is another process's.
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve_all()));
        std::process::exit(i32::from(!matches!(ended, Ok(Ok(())))))
    }

    fn serve_all(self) -> io::Result<()> {
        detach()?;
        raise_limits();
        if let Some(network) = &self.network {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        let serve = self.serve.map(|serve| thread::Builder::new().name("lab-files".to_owned()).spawn(serve));
        let serving = serve.transpose()?;
        // If there will be no program, the other end is closed, and what serves is told the same.
        let (_, listener) = receive(&self.calls)?;
        drop(self.calls);
        let listener = listener.ok_or(io::ErrorKind::UnexpectedEof)?;
        let _ = sys::wake_at_once(listener.as_fd());
        let lab = Arc::new(Lab::new(listener, self.cards, self.high, self.exact_addresses));
        let watched = Arc::clone(&lab);
        let front = self.front.try_clone()?;
        thread::Builder::new().name("lab-front".to_owned()).spawn(move || watch(&watched, &front))?;
        // Before the first program asks: what it asks of other families is not to wait for a card.
        let learning = Arc::clone(&lab);
        thread::Builder::new().name("lab-family".to_owned()).spawn(move || {
            learning.families.devlink(&learning.cards);
        })?;
        send(&self.front, Word::Serving, None)?;
        // Nothing stops it but that nobody is left.
        let (stop, _stopper) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        supervisor::serve(&lab, &stop);
        drop(serving.map(thread::JoinHandle::join));
        Ok(())
    }
}

/// What a user limits for programs is not meant for what serves them all: every socket and open file of a lab takes
/// descriptors here, and the work for all programs counts as this process's.
fn raise_limits() {
    for resource in [Resource::Nofile, Resource::Cpu, Resource::As] {
        let limit = getrlimit(resource);
        // It is as it was if it cannot be raised.
        let _ = setrlimit(resource, Rlimit { current: limit.maximum, ..limit });
    }
}

/// Keeps nothing of the caller's: its terminal and its signals, its folder, its files and pipes.
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

/// Heeds what `esw exec` says. If it ends before its program, the program is ended.
fn watch(lab: &Lab, front: &OwnedFd) {
    let mut program = None;
    loop {
        match receive(front) {
            Ok((Word::Program, process)) => program = process,
            Ok((Word::Ended, _)) => {
                program = None;
                // If nobody is left, that this process ends is the answer.
                if is_somebody_left(lab) {
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

/// Whether a process has the filter still.
fn is_somebody_left(lab: &Lab) -> bool {
    let mut polled = [PollFd::new(&lab.listener, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let looked = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&now)));
    looked.is_ok() && !polled[0].revents().contains(PollFlags::HUP)
}
