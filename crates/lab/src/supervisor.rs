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
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};

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
    /// It has failed, with a number that is positive.
    Errno(i32),
    /// It has been answered already, or will be.
    Later,
}

impl From<io::Result<Answer>> for Answer {
    fn from(result: io::Result<Answer>) -> Self {
        result.unwrap_or_else(|error| Self::Errno(error.raw_os_error().unwrap_or(libc::EIO)))
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
    pub fn refuse(&mut self, errno: i32) {
        if !std::mem::replace(&mut self.given, true) {
            self.lab.answer(self.id, &Answer::Errno(errno));
        }
    }
}

impl Drop for Reply {
    /// Nobody is left to carry out the request: its socket has been closed meanwhile.
    fn drop(&mut self) {
        self.refuse(libc::EBADF);
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
            Answer::Errno(errno) => libc::seccomp_notif_resp { id, val: 0, error: -errno, flags: 0 },
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
            let work = std::panic::AssertUnwindSafe(|| work(&lab, &call));
            // A program does not wait for ever because something went wrong here.
            let answer = std::panic::catch_unwind(work).unwrap_or(Answer::Errno(libc::EIO));
            lab.answer(call.id, &answer);
        });
        started.map_or(Answer::Errno(libc::EAGAIN), |_| Answer::Later)
    }
}

/// Before the next try if the system cannot even say whether there is something to hear.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// Hears and answers until `stop` can be read from, or no program is left.
pub(crate) fn serve(lab: &Arc<Lab>, stop: &OwnedFd) {
    loop {
        let mut polled = [PollFd::new(&lab.listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut polled, None) {
            Err(rustix::io::Errno::INTR) => continue,
            // No memory: there may be some again, and every program of the lab waits for this thread.
            Err(_) => {
                thread::sleep(PAUSE);
                continue;
            }
            Ok(_) => {}
        }
        let (heard, stopped) = (polled[0].revents(), polled[1].revents());
        if heard.contains(PollFlags::IN) {
            // Gone again: whose it was has been killed.
            if let Ok(call) = sys::next_notification(lab.listener.as_fd()) {
                let work = std::panic::AssertUnwindSafe(|| calls::answer(lab, &call));
                let answer = std::panic::catch_unwind(work).unwrap_or(Answer::Errno(libc::EIO));
                lab.answer(call.id, &answer);
            }
        } else if !stopped.is_empty() || !heard.is_empty() {
            return;
        }
    }
}
