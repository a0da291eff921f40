//! The supervisor's process. It lives as long as a process of the lab does.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use lockdep::Domain;
use rustix::process::{Resource, Rlimit, Signal, chdir, getrlimit, pidfd_send_signal, setrlimit, setsid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_name};

use super::channel::{Word, receive, send};
use super::kept::{self, Keep};
use super::place::Inside;
use super::{Serve, high_descriptors};
use crate::cards::Cards;
use crate::supervisor::{self, Lab, Shared};
use crate::sys;
use crate::uevent::Uevents;

/// What the supervisor needs.
pub(super) struct Supervisor {
    pub cards: Arc<Cards>,
    pub serve: Option<Serve>,
    pub network: Option<OwnedFd>,
    pub uevents: Arc<Uevents>,
    pub exact_addresses: bool,
    /// The domain of all threads of the lab.
    pub domain: Arc<Domain>,
    /// The channel from the program's process.
    pub calls: OwnedFd,
    /// The channel to the front.
    pub front: OwnedFd,
    /// Of a lab that is kept, how it is reached; `None`: a lab of one program.
    pub keep: Option<Keep>,
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
        let shared = Arc::new(Shared::new(self.cards, self.exact_addresses, shows_sysfs, self.uevents, self.domain));
        match self.keep {
            None => serve_one(&shared, &self.calls, self.front)?,
            Some(keep) => serve_kept(shared, &self.calls, &self.front, keep)?,
        }
        drop(serving.map(thread::JoinHandle::<Box<dyn Any + Send>>::join));
        Ok(())
    }
}

/// Serves a lab of one program, and of what that leaves behind.
fn serve_one(shared: &Arc<Shared>, calls: &OwnedFd, front: OwnedFd) -> io::Result<()> {
    // If no program is started, the other end is closed. The mounts' server learns of that by its own channel.
    let (_, listener) = receive(calls)?;
    let listener = listener.ok_or(io::ErrorKind::UnexpectedEof)?;
    look_up_family(shared)?;
    let lab = Arc::new(Lab::new(listener, high_descriptors(), Arc::clone(shared)));
    serve_program(&lab, front)
}

/// Serves a lab until it is stopped, whatever programs are in it.
fn serve_kept(shared: Arc<Shared>, calls: &OwnedFd, front: &OwnedFd, keep: Keep) -> io::Result<()> {
    let descriptor = || receive(calls)?.1.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof));
    let inside = Inside { mounts: descriptor()?, root: descriptor()?, network: None };
    look_up_family(&shared)?;
    send(front, Word::Serving, None)?;
    // If the front has been killed, nobody has been told that there is a lab, and there is none.
    receive(front)?;
    kept::serve(shared, inside, keep)
}

/// Looks the family up before the first program needs it: a request to another family must not wait for a card.
fn look_up_family(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = Arc::clone(shared);
    let look_up = move || {
        lockdep::enter(&shared.domain, "lab-family", |cx| {
            shared.families.devlink(cx, &shared.cards);
        });
    };
    thread::Builder::new().name("lab-family".to_owned()).spawn(look_up).map(drop)
}

/// Tells the front of a program that the program is served, and serves it and what it starts, until the last of these processes has ended.
pub(super) fn serve_program(lab: &Arc<Lab>, front: OwnedFd) -> io::Result<()> {
    let _ = sys::wake_at_once(lab.listener.as_fd());
    let watched = Arc::clone(lab);
    let own = front.try_clone()?;
    thread::Builder::new().name("lab-front".to_owned()).spawn(move || watch(&watched, &own))?;
    send(&front, Word::Serving, None)?;
    drop(front);
    // Only the end of the last process stops it.
    let (stop, _stopper) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    supervisor::serve(lab, &stop);
    Ok(())
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
                // If no process is left, the end of this channel answers the front.
                if lab.has_processes() {
                    let _ = send(front, Word::Remains, None);
                }
                return;
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    if let Some(program) = program {
        let _ = pidfd_send_signal(program, Signal::KILL);
    }
}
