//! The supervisor of a lab that is kept: lets programs in, and ends the lab.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lockdep::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SocketFlags, accept_with, sockopt::socket_peercred};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, geteuid};

use super::{Answer, Keep, MESSAGE, ProgramInside, Request, Status, Stopped, programs};
use crate::lock_order::{Cx, Entries};
use crate::passing;
use crate::run::channel::{pair, receive};
use crate::run::place::Inside;
use crate::run::supervisor_process::serve_program;
use crate::supervisor::{Lab, Shared};

/// A lab that is kept.
struct Kept {
    shared: Arc<Shared>,
    inside: Inside,
    cards: Vec<String>,
    since: Instant,
    entries: Mutex<Entries, Entered>,
    /// Written to when the lab is to end.
    end: OwnedFd,
}

/// The programs that have entered.
#[derive(Default)]
struct Entered {
    /// Those of which a process may be left, by the number of their entry.
    labs: HashMap<u64, Arc<Lab>>,
    next: u64,
    /// The lab is ending: no program may enter.
    is_ending: bool,
}

impl Entered {
    fn is_any_left(&self) -> bool {
        self.labs.values().any(|lab| lab.has_processes())
    }
}

/// How long to wait before it is looked again, for what the kernel does not report.
const LOOK: Duration = Duration::from_millis(20);

/// How long programs may take to end after SIGKILL.
const KILLED: Duration = Duration::from_secs(10);

/// Serves requests until one to stop has been carried out.
pub(in crate::run) fn serve(shared: Arc<Shared>, inside: Inside, keep: Keep) -> io::Result<()> {
    let Keep { mut socket, cards } = keep;
    let listener = socket.take_listener().ok_or(io::ErrorKind::NotConnected)?;
    let (ended, end) = pipe_with(PipeFlags::CLOEXEC)?;
    let (since, entries) = (Instant::now(), Mutex::new(Entered::default()));
    let kept = Arc::new(Kept { shared, inside, cards, since, entries, end });
    loop {
        let mut polled = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
        if poll(&mut polled, None).is_err() {
            continue;
        }
        if !polled[1].revents().is_empty() {
            // With the socket removed, another lab of this name can be started.
            return Ok(());
        }
        let kept = Arc::clone(&kept);
        let started = accept_with(&listener, SocketFlags::CLOEXEC).map_err(io::Error::from).and_then(|connection| {
            let answer = move || lockdep::enter(&kept.shared.domain, "lab-request", |cx| kept.answer(cx, &connection));
            thread::Builder::new().name("lab-request".to_owned()).spawn(answer)
        });
        if started.is_err() {
            // No descriptor or thread is left. There may be one again.
            thread::sleep(LOOK);
        }
    }
}

impl Kept {
    /// Answers the one request of a connection.
    fn answer(&self, cx: Cx<'_, '_>, connection: &OwnedFd) {
        let answered = catch_unwind(AssertUnwindSafe(|| self.try_answer(cx, connection)));
        if let Ok(Err(error)) = answered {
            let _ = send(connection, &Answer::Refused(error.to_string()));
        }
    }

    fn try_answer(&self, cx: Cx<'_, '_>, connection: &OwnedFd) -> io::Result<()> {
        let peer = socket_peercred(connection)?;
        if peer.uid != geteuid() && !peer.uid.is_root() {
            return Err(io::Error::other("only the user who started a lab may use it, and root"));
        }
        let mut bytes = vec![0; MESSAGE];
        let (length, _) = passing::receive(connection, &mut bytes)?;
        match serde_json::from_slice(&bytes[..length.min(MESSAGE)])? {
            Request::Status => send(connection, &Answer::Status(self.status())),
            Request::Enter { high } => self.let_in(cx, connection, high),
            Request::Stop { force, patience } => {
                let requester = peer.pid.as_raw_pid().cast_unsigned();
                let stopped = self.stop(cx, requester, force, patience)?;
                let ends = !matches!(stopped, Stopped::Busy(_));
                let sent = send(connection, &Answer::Stopped(stopped));
                if ends {
                    rustix::io::write(&self.end, &[1])?;
                    // The end of the process closes the connection, which the other end waits for.
                    loop {
                        thread::park();
                    }
                }
                sent
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            pid: std::process::id(),
            uptime_seconds: self.since.elapsed().as_secs(),
            cards: self.cards.clone(),
            programs: self.programs(),
        }
    }

    fn programs(&self) -> Vec<ProgramInside> {
        programs::find(&self.inside.mounts)
    }

    /// Lets a program in, and serves it and what it starts until the last of these processes has ended.
    fn let_in(&self, cx: Cx<'_, '_>, connection: &OwnedFd, high: std::ops::Range<u32>) -> io::Result<()> {
        let (front, fronts) = pair()?;
        let (calls, programs) = pair()?;
        let users = File::open("/proc/self/ns/user")?;
        let network = File::open("/proc/thread-self/ns/net")?;
        let Inside { mounts, root, .. } = &self.inside;
        let fds = [fronts.as_fd(), programs.as_fd(), mounts.as_fd(), root.as_fd(), users.as_fd(), network.as_fd()];
        passing::send(connection, &serde_json::to_vec(&Answer::Entry)?, &fds)?;
        drop((fronts, programs, users, network));
        // If no program is started, the other end is closed.
        let Ok((_, Some(listener))) = receive(&calls) else { return Ok(()) };
        drop(calls);
        let lab = Arc::new(Lab::new(listener, high, Arc::clone(&self.shared)));
        let Some(number) = self.add(cx, &lab) else { return Ok(()) };
        // An error: the program has not been started.
        let _ = serve_program(&lab, front);
        self.entries.lock_leaf(cx).labs.remove(&number);
        Ok(())
    }

    /// Notes an entry; its number. `None`: the lab is ending.
    fn add(&self, cx: Cx<'_, '_>, lab: &Arc<Lab>) -> Option<u64> {
        let mut entered = self.entries.lock_leaf(cx);
        if entered.is_ending {
            return None;
        }
        entered.next += 1;
        let number = entered.next;
        entered.labs.insert(number, Arc::clone(lab));
        Some(number)
    }

    fn stop(&self, cx: Cx<'_, '_>, requester: u32, force: bool, patience: Duration) -> io::Result<Stopped> {
        let programs = self.programs();
        if programs.iter().any(|program| program.pid == requester) {
            return Err(io::Error::other("a program in the lab cannot stop it; stop it from outside"));
        }
        {
            let mut entered = self.entries.lock_leaf(cx);
            if !force && entered.is_any_left() {
                return Ok(Stopped::Busy(programs));
            }
            entered.is_ending = true;
        }
        if self.end_programs(cx, Signal::TERM, patience) || self.end_programs(cx, Signal::KILL, KILLED) {
            return Ok(Stopped::Yes);
        }
        Ok(Stopped::Without(self.programs()))
    }

    /// Ends the programs by a signal; whether all have ended within a time.
    fn end_programs(&self, cx: Cx<'_, '_>, signal: Signal, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut sent: Vec<u32> = Vec::new();
        while self.entries.lock_leaf(cx).is_any_left() {
            // A program may have been started by another since. None gets SIGTERM twice.
            let mut programs = self.programs();
            programs.retain(|program| !sent.contains(&program.pid));
            programs::send(&self.inside.mounts, &programs, signal);
            sent.extend(programs.iter().map(|program| program.pid));
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(LOOK);
        }
        true
    }
}

fn send(connection: &OwnedFd, answer: &Answer) -> io::Result<()> {
    Ok(passing::send(connection, &serde_json::to_vec(answer)?, &[])?)
}
