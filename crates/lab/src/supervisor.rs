//! Hears of trapped calls and has them answered.
//!
//! A call that concerns no card is let through to the kernel. Between our look at a program's memory and
//! the kernel's, another thread of the program could change it; that is no matter here, because a lab
//! keeps nobody from anything: it shows a card to programs that want to see one.
//!
//! What is quick is answered on the thread that hears; what may take its time (a module, a receipt with
//! nothing to receive) on one of its own, so that nobody waits for somebody else.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use netlink::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::calls;
use crate::cards::Cards;
use crate::process::{Exacting, Home, socket_inode};
use crate::relay::{Families, Shared};
use crate::sys::{self, Notification};

/// A lab that is up.
pub(crate) struct Lab {
    /// Where trapped calls are heard of.
    pub listener: OwnedFd,
    pub cards: Arc<Cards>,
    pub families: Arc<Families>,
    /// The sockets that programs have of us, by inode: so they are known however they were passed on.
    sockets: Mutex<HashMap<u64, Arc<Shared>>>,
    /// Descriptors from here to there are for programs that look at addresses.
    pub high: std::ops::Range<u32>,
    pub exacting: Exacting,
    /// As if every program did.
    pub exact_addresses: bool,
    /// The network namespace that our own threads are in.
    pub network: Option<Vec<u8>>,
    /// The user namespace in which administrative rights count.
    pub home: Arc<Home>,
}

/// What becomes of a call.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The kernel does it.
    Continue,
    /// It is done.
    Value(i64),
    /// It has failed.
    Errno(Errno),
    /// It has been answered already, or will be.
    Later,
}

impl From<io::Result<Answer>> for Answer {
    fn from(result: io::Result<Answer>) -> Self {
        result.unwrap_or_else(|error| Self::Errno(netlink::errno_of(&error)))
    }
}

/// The answer that a trapped call still waits for.
pub(crate) struct Reply {
    lab: Arc<Lab>,
    id: u64,
    value: i64,
    given: bool,
}

impl Reply {
    /// Of a call, with what it is to return.
    pub fn new(lab: Arc<Lab>, id: u64, value: i64) -> Self {
        Self { lab, id, value, given: false }
    }

    /// Lets the call return, if it has not already.
    pub fn give(&mut self) {
        if !std::mem::replace(&mut self.given, true) {
            self.lab.answer(self.id, &Answer::Value(self.value));
        }
    }

    /// Has the call fail, if it has not returned already.
    pub fn refuse(&mut self, errno: Errno) {
        if !std::mem::replace(&mut self.given, true) {
            self.lab.answer(self.id, &Answer::Errno(errno));
        }
    }
}

impl Drop for Reply {
    /// Nobody is left to carry out the request: its socket has been closed meanwhile.
    fn drop(&mut self) {
        self.refuse(Errno::BADF);
    }
}

impl Lab {
    pub fn new(listener: OwnedFd, cards: Arc<Cards>, high: std::ops::Range<u32>, exact_addresses: bool) -> Self {
        Self {
            listener,
            cards,
            families: Arc::default(),
            sockets: Mutex::default(),
            high,
            exacting: Exacting::default(),
            exact_addresses,
            network: crate::process::network("thread-self"),
            home: Arc::new(Home::ours()),
        }
    }

    /// The socket of ours that a descriptor of a thread is.
    pub fn socket(&self, thread: u32, fd: u64) -> Option<Arc<Shared>> {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        // Most programs ask about sockets of other kinds only.
        if sockets.is_empty() {
            return None;
        }
        sockets.get(&socket_inode(thread, u32::try_from(fd).ok()?)?).cloned()
    }

    pub fn add(&self, inode: u64, socket: Arc<Shared>) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).insert(inode, socket);
    }

    pub fn remove(&self, inode: u64) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).remove(&inode);
    }

    /// Answers a call. That its process is gone meanwhile is nobody's trouble.
    pub fn answer(&self, id: u64, answer: &Answer) {
        let flag = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        let response = match answer {
            Answer::Later => return,
            Answer::Continue => libc::seccomp_notif_resp { id, val: 0, error: 0, flags: flag },
            Answer::Value(val) => libc::seccomp_notif_resp { id, val: *val, error: 0, flags: 0 },
            Answer::Errno(errno) => libc::seccomp_notif_resp { id, val: 0, error: -errno.raw_os_error(), flags: 0 },
        };
        let _ = sys::respond(self.listener.as_fd(), response);
    }

    /// Whether what was read of a process was that process's: it still waits.
    pub fn still_waits(&self, call: &Notification) -> bool {
        sys::still_waits(self.listener.as_fd(), call.id)
    }

    /// Answers a call on a thread of its own.
    pub fn answer_later(self: &Arc<Self>, call: Notification, work: fn(&Self, &Notification) -> Answer) -> Answer {
        let lab = Arc::clone(self);
        let started = thread::Builder::new().name("lab-call".to_owned()).spawn(move || {
            let work = AssertUnwindSafe(|| work(&lab, &call));
            // A program does not wait for ever because something went wrong here.
            let answer = catch_unwind(work).unwrap_or(Answer::Errno(Errno::IO));
            lab.answer(call.id, &answer);
        });
        started.map_or(Answer::Errno(Errno::AGAIN), |_| Answer::Later)
    }
}

/// Before the next try if the system cannot even say whether there is something to hear.
const PAUSE: Duration = Duration::from_millis(20);

/// For how long a call may wait to be heard before another thread is started to hear.
const UNHEARD: Duration = Duration::from_millis(5);

/// Threads that hear, at most.
const HEARERS: u64 = 256;

/// Hears and answers until `stop` can be read from, or no program is left.
///
/// One thread hears as long as it is never held up. But a program may say that what it sends lies where the kernel has to
/// wait to read it: in a file whose server does not answer. Its thread waits with it, and another hears the others.
pub(crate) fn serve(lab: &Arc<Lab>, stop: &OwnedFd) {
    let hearing = Arc::new(Hearing::default());
    hearing.start(lab);
    let mut seen = 0;
    loop {
        match wait_to_hear(lab, Some(stop), None) {
            Heard::Call => {}
            Heard::Over => return,
            Heard::Nothing => continue,
        }
        // Whoever hears next takes it. If nobody has after a while, all are held up.
        thread::sleep(UNHEARD);
        let now = hearing.calls.load(Ordering::Relaxed);
        if now == seen && matches!(wait_to_hear(lab, None, Some(Duration::ZERO)), Heard::Call) {
            hearing.start(lab);
        }
        seen = now;
    }
}

/// What a wait has ended with.
enum Heard {
    Call,
    Nothing,
    /// No program is left, or it is to stop.
    Over,
}

fn wait_to_hear(lab: &Lab, stop: Option<&OwnedFd>, limit: Option<Duration>) -> Heard {
    let mut polled = vec![PollFd::new(&lab.listener, PollFlags::IN)];
    polled.extend(stop.map(|stop| PollFd::new(stop, PollFlags::IN)));
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(&mut polled, limit.as_ref()) {
        Err(Errno::INTR) => return Heard::Nothing,
        // No memory: there may be some again, and every program of the lab waits for this.
        Err(_) => {
            thread::sleep(PAUSE);
            return Heard::Nothing;
        }
        Ok(_) => {}
    }
    let flags = polled[0].revents();
    if flags.contains(PollFlags::IN) {
        Heard::Call
    } else if !flags.is_empty() || polled.get(1).is_some_and(|stop| !stop.revents().is_empty()) {
        Heard::Over
    } else {
        Heard::Nothing
    }
}

/// The threads that hear.
#[derive(Default)]
struct Hearing {
    threads: AtomicU64,
    /// How many calls have been taken so far.
    calls: AtomicU64,
}

impl Hearing {
    /// Starts one more, unless there are as many as there may be. It ends with the lab.
    fn start(self: &Arc<Self>, lab: &Arc<Lab>) {
        if self.threads.fetch_add(1, Ordering::Relaxed) >= HEARERS {
            self.threads.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let (hearing, lab) = (Arc::clone(self), Arc::clone(lab));
        let started = thread::Builder::new().name("lab-calls".to_owned()).spawn(move || hearing.hear(&lab));
        if started.is_err() {
            self.threads.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn hear(&self, lab: &Arc<Lab>) {
        loop {
            match wait_to_hear(lab, None, None) {
                Heard::Call => {}
                Heard::Nothing => continue,
                Heard::Over => return,
            }
            // Gone again: whose it was has been killed, or another thread has taken it.
            let Ok(call) = sys::next_notification(lab.listener.as_fd()) else { continue };
            self.calls.fetch_add(1, Ordering::Relaxed);
            let work = AssertUnwindSafe(|| calls::answer(lab, &call));
            let answer = catch_unwind(work).unwrap_or(Answer::Errno(Errno::IO));
            lab.answer(call.id, &answer);
        }
    }
}
