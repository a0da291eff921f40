//! Receives trapped system calls and has them answered.
//!
//! A call that concerns no card is let through to the kernel. Between our look at a program's memory and the kernel's,
//! another thread of the program could change it. That does no harm: a lab forbids nothing, it shows a card to programs
//! that want to see one.
//!
//! A call that can be answered at once is answered on the thread that receives it. A call that may take long (loading a
//! module, receiving when nothing has arrived) is answered on a thread of its own, so that no program waits for
//! another.

use std::collections::HashMap;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use lockdep::{Domain, Mutex};
use netlink::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::calls;
use crate::cards::Cards;
use crate::lock_order::{Cx, Sockets};
use crate::process::{GoPrograms, UserNamespace, socket_inode};
use crate::relay::{Families, Socket};
use crate::sys::{self, Notification};
use crate::uevent::Uevents;

/// A program in a lab that is up, and all that it starts: the processes whose trapped calls are received together. It has
/// what all programs of the lab share.
pub(crate) struct Lab {
    /// The descriptor on which trapped calls are received.
    pub listener: OwnedFd,
    /// The descriptor numbers for sockets of programs that look at the family of an address.
    pub high: std::ops::Range<u32>,
    shared: Arc<Shared>,
}

impl Deref for Lab {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// What all programs of a lab share.
pub(crate) struct Shared {
    pub cards: Arc<Cards>,
    pub families: Arc<Families>,
    /// The sockets that the lab has given programs, by inode: a socket is recognised in whichever way a process got it.
    sockets: Mutex<Sockets, HashMap<u64, Arc<Socket>>>,
    pub go_programs: GoPrograms,
    /// Treats every program as one that looks at the family of an address.
    pub exact_addresses: bool,
    /// The uevents of the cards' devices.
    pub uevents: Arc<Uevents>,
    /// Whether the lab shows the cards in `/sys`.
    pub shows_sysfs: bool,
    /// The network namespace that the supervisor's threads are in.
    pub network: Option<Vec<u8>>,
    /// The user namespace in which administrative rights count.
    pub user_namespace: Arc<UserNamespace>,
    /// The domain of all threads of the lab.
    pub domain: Arc<Domain>,
}

/// The answer to a trapped call.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The kernel carries the call out.
    Continue,
    /// The call returns a value.
    Value(i64),
    /// The call fails.
    Errno(Errno),
    /// The call has been answered already, or will be.
    Later,
}

impl From<io::Result<Answer>> for Answer {
    fn from(result: io::Result<Answer>) -> Self {
        result.unwrap_or_else(|error| Self::Errno(netlink::errno_of(&error)))
    }
}

/// The answer for which a trapped call still waits.
pub(crate) struct Reply {
    lab: Arc<Lab>,
    id: u64,
    value: i64,
    given: bool,
}

impl Reply {
    /// The reply to the call `id`, which is to return `value`.
    pub fn new(lab: Arc<Lab>, id: u64, value: i64) -> Self {
        Self { lab, id, value, given: false }
    }

    /// Lets the call return, if it has not returned already.
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
    /// No thread is left that could carry out the request: its socket has been closed meanwhile.
    fn drop(&mut self) {
        self.refuse(Errno::BADF);
    }
}

impl Shared {
    pub fn new(
        cards: Arc<Cards>,
        exact_addresses: bool,
        shows_sysfs: bool,
        uevents: Arc<Uevents>,
        domain: Arc<Domain>,
    ) -> Self {
        Self {
            cards,
            families: Arc::default(),
            sockets: Mutex::new(HashMap::new()),
            go_programs: GoPrograms::default(),
            exact_addresses,
            shows_sysfs,
            uevents,
            network: crate::process::network("thread-self"),
            user_namespace: Arc::new(UserNamespace::ours()),
            domain,
        }
    }
}

impl Lab {
    pub fn new(listener: OwnedFd, high: std::ops::Range<u32>, shared: Arc<Shared>) -> Self {
        Self { listener, high, shared }
    }

    /// Whether any process still has the filter.
    pub fn has_processes(&self) -> bool {
        let mut polled = [PollFd::new(&self.listener, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let looked = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&now)));
        looked.is_ok() && !polled[0].revents().contains(PollFlags::HUP)
    }

    /// The lab's socket behind a descriptor of a thread. `None`: the descriptor is no socket of the lab.
    pub fn socket(&self, cx: Cx<'_, '_>, thread: u32, fd: u64) -> Option<Arc<Socket>> {
        let sockets = self.sockets.lock_leaf(cx);
        // Most calls concern sockets of other kinds; those of a lab without sockets cost no look into /proc.
        if sockets.is_empty() {
            return None;
        }
        sockets.get(&socket_inode(thread, u32::try_from(fd).ok()?)?).cloned()
    }

    pub fn add(&self, cx: Cx<'_, '_>, inode: u64, socket: Arc<Socket>) {
        self.sockets.lock_leaf(cx).insert(inode, socket);
    }

    pub fn remove(&self, cx: Cx<'_, '_>, inode: u64) {
        let removed = self.sockets.lock_leaf(cx).remove(&inode);
        // Without the lock: it may be the last reference, which closes descriptors.
        drop(removed);
    }

    /// Answers a call. If its process is gone meanwhile, the answer is lost and nobody misses it.
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

    /// Whether a call still waits for its answer. If so, what was read by its thread number was of that process.
    pub fn still_waits(&self, call: &Notification) -> bool {
        sys::still_waits(self.listener.as_fd(), call.id)
    }

    /// Answers a call on a thread of its own. EAGAIN if the system gives none.
    pub fn answer_later(
        self: &Arc<Self>,
        call: Notification,
        work: fn(Cx<'_, '_>, &Self, &Notification) -> Answer,
    ) -> Answer {
        let lab = Arc::clone(self);
        let started = thread::Builder::new().name("lab-call".to_owned()).spawn(move || {
            lockdep::enter(&lab.domain, "lab-call", |cx| lab.answer_or_eio(&call, || work(cx, &lab, &call)));
        });
        started.map_or(Answer::Errno(Errno::AGAIN), |_| Answer::Later)
    }

    /// Answers a call with what `work` returns, or with EIO if that panics: a program must not wait for ever.
    fn answer_or_eio(&self, call: &Notification, work: impl FnOnce() -> Answer) {
        let answer = catch_unwind(AssertUnwindSafe(work)).unwrap_or(Answer::Errno(Errno::IO));
        self.answer(call.id, &answer);
    }
}

/// How long to wait before the next attempt if the system cannot even poll.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a call may wait until it is received; after that, another thread is started that receives.
const UNRECEIVED: Duration = Duration::from_millis(5);

/// The most threads that receive calls.
const RECEIVERS: u64 = 256;

/// Receives and answers calls until `stop` can be read from, or no process with the filter is left.
///
/// One thread receives as long as it is never held up. But a program may keep what it sends where the kernel has to
/// wait to read it: in a file whose server does not answer. Then the thread waits with the program, and another
/// receives the other calls.
pub(crate) fn serve(lab: &Arc<Lab>, stop: &OwnedFd) {
    let receivers = Arc::new(Receivers::default());
    receivers.start(lab);
    let mut before = 0;
    loop {
        match wait_for_call(lab, Some(stop), None) {
            Waited::Call => {}
            Waited::Over => return,
            Waited::Nothing => continue,
        }
        // One of the receivers takes the call. If none has after a while, all of them are held up.
        thread::sleep(UNRECEIVED);
        let now = receivers.calls.load(Ordering::Relaxed);
        if now == before && matches!(wait_for_call(lab, None, Some(Duration::ZERO)), Waited::Call) {
            receivers.start(lab);
        }
        before = now;
    }
}

/// How a wait for a call ended.
enum Waited {
    /// A call can be received.
    Call,
    Nothing,
    /// No process with the filter is left, or the lab is to stop.
    Over,
}

fn wait_for_call(lab: &Lab, stop: Option<&OwnedFd>, limit: Option<Duration>) -> Waited {
    let mut polled = vec![PollFd::new(&lab.listener, PollFlags::IN)];
    polled.extend(stop.map(|stop| PollFd::new(stop, PollFlags::IN)));
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(&mut polled, limit.as_ref()) {
        Err(Errno::INTR) => return Waited::Nothing,
        // The system has no memory. It may have some again, and every program of the lab depends on this thread.
        Err(_) => {
            thread::sleep(PAUSE);
            return Waited::Nothing;
        }
        Ok(_) => {}
    }
    let flags = polled[0].revents();
    if flags.contains(PollFlags::IN) {
        Waited::Call
    } else if !flags.is_empty() || polled.get(1).is_some_and(|stop| !stop.revents().is_empty()) {
        Waited::Over
    } else {
        Waited::Nothing
    }
}

/// The threads that receive calls.
#[derive(Default)]
struct Receivers {
    threads: AtomicU64,
    /// How many calls have been received so far.
    calls: AtomicU64,
}

impl Receivers {
    /// Starts one more thread, unless there are [`RECEIVERS`] already. It ends with the lab.
    fn start(self: &Arc<Self>, lab: &Arc<Lab>) {
        if self.threads.fetch_add(1, Ordering::Relaxed) >= RECEIVERS {
            self.threads.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let (receivers, lab) = (Arc::clone(self), Arc::clone(lab));
        let started = thread::Builder::new().name("lab-calls".to_owned()).spawn(move || {
            lockdep::enter(&lab.domain, "lab-calls", |cx| receivers.receive(cx, &lab));
        });
        if started.is_err() {
            self.threads.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn receive(&self, cx: Cx<'_, '_>, lab: &Arc<Lab>) {
        loop {
            match wait_for_call(lab, None, None) {
                Waited::Call => {}
                Waited::Nothing => continue,
                Waited::Over => return,
            }
            // An error: the process of the call has been killed, or another thread has received the call.
            let Ok(call) = sys::next_notification(lab.listener.as_fd()) else { continue };
            self.calls.fetch_add(1, Ordering::Relaxed);
            lab.answer_or_eio(&call, || calls::answer(cx, lab, &call));
        }
    }
}
