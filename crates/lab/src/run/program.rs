//! The process that becomes the program.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use netlink::errno_of;
use rustix::process::{Signal, set_parent_process_death_signal};

use super::channel::{Step, Word, receive, send};
use super::place::Place;
use crate::sys;

/// What the process needs until it becomes the program.
pub(super) struct Program {
    pub command: Command,
    pub filter: Vec<sys::FilterOp>,
    pub place: Place,
    /// The channel to the supervisor.
    pub calls: OwnedFd,
}

impl Program {
    /// Becomes the program when the front sends `Go`. If the front ends first, so does this process: the channel
    /// `front` reports it, and a signal does wherever else this process waits.
    pub fn become_it(mut self, front: &OwnedFd) -> ! {
        let (step, error) = match self.try_become_it(front) {
            Ok(never) => match never {},
            Err(failed) => failed,
        };
        let _ = send(front, Word::Failed(step, errno_of(&error)), None);
        sys::exit(125)
    }

    fn try_become_it(&mut self, front: &OwnedFd) -> Result<Infallible, (Step, io::Error)> {
        // SIGKILL needs no handler and cannot be ignored. If the front has ended before this call, the channel reports
        // it below.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        self.prepare()?;
        let at = |error| (Step::Program, error);
        send(front, Word::Ready, None).map_err(at)?;
        match receive(front).map_err(at)? {
            (Word::Go, _) => Err(at(self.command.exec())),
            _ => Err(at(io::ErrorKind::InvalidData.into())),
        }
    }

    fn prepare(&mut self) -> Result<(), (Step, io::Error)> {
        let at = |error: io::Error| (Step::Filter, error);
        self.place.enter()?;
        if !self.place.is_privileged() {
            sys::no_new_privileges().map_err(at)?;
        }
        let listener = sys::listen(&self.filter).map_err(at)?;
        send(&self.calls, Word::Listener, Some(&listener)).map_err(at)
    }
}
