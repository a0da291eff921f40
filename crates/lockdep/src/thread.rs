//! Threads, and the root tokens with which they start.

use std::hash::Hash;
use std::io;
use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError};

use crate::task::Task;
use crate::{Domain, Locked, MayWait, Unlocked, is_explored, model};

/// Runs `f` with the root token of the current OS thread, or explored thread, as a thread of `domain` called `name`.
///
/// Call it where a thread starts and holds no lock. A second root inside the first would not know the locks that the
/// thread holds by the first.
///
/// ```
/// use lockdep::{Domain, OnReport, enter};
///
/// let sum = enter(&Domain::for_build(OnReport::Panic), "main", |cx| {
///     let threads: Vec<_> = (1..=3).map(|n| cx.spawn("worker", move |_| n * n)).collect();
///     threads.into_iter().map(|thread| thread.join(cx).unwrap()).sum::<u32>()
/// });
/// assert_eq!(sum, 14);
/// ```
pub fn enter<R>(domain: &Arc<Domain>, name: &str, f: impl FnOnce(&mut Locked<'_, Unlocked>) -> R) -> R {
    let task = Task::new(name.to_owned(), Arc::clone(domain));
    f(&mut Locked::at(&task))
}

/// The function that a thread runs, from the root of the order on.
pub type ThreadMain = Box<dyn FnOnce(&mut Locked<'_, Unlocked>) + Send>;

/// Starts threads for a program. As this is a trait, the program's owner can count its threads, name them, or refuse to
/// start one. [`Threads`] is the plain implementation.
pub trait Spawn: Send + Sync {
    /// Starts a thread that runs `f` at the root of the order. `at` is the place in the source that requests the thread.
    ///
    /// # Errors
    /// The system cannot start a thread.
    fn spawn(&self, name: &str, at: &'static Location<'static>, f: ThreadMain) -> io::Result<JoinHandle<()>>;
}

/// Starts threads of this crate, in one domain.
///
/// ```
/// use std::panic::Location;
///
/// use lockdep::{Domain, OnReport, Spawn, Threads, enter};
///
/// let domain = Domain::checked(OnReport::Panic);
/// let threads: Box<dyn Spawn> = Box::new(Threads(domain.clone()));
/// enter(&domain, "main", |cx| {
///     let body = Box::new(|cx: &mut lockdep::Locked<'_, lockdep::Unlocked>| assert_eq!(cx.thread_name(), "worker"));
///     let worker = threads.spawn("worker", Location::caller(), body).expect("a thread");
///     worker.join(cx).unwrap();
/// });
/// ```
#[derive(Debug, Clone)]
pub struct Threads(pub Arc<Domain>);

impl Spawn for Threads {
    fn spawn(&self, name: &str, at: &'static Location<'static>, f: ThreadMain) -> io::Result<JoinHandle<()>> {
        spawn(&self.0, name, at, f)
    }
}

impl<L: MayWait> Locked<'_, L> {
    /// Starts a thread in this thread's domain. If the system cannot start one, [joining](JoinHandle::join) it returns the
    /// error.
    #[track_caller]
    pub fn spawn<R: Send + 'static>(
        &self,
        name: &str,
        f: impl FnOnce(&mut Locked<'_, Unlocked>) -> R + Send + 'static,
    ) -> JoinHandle<R> {
        self.task.might_wait("starts a thread", Location::caller());
        spawn(self.task.domain(), name, Location::caller(), f).unwrap_or_else(|error| JoinHandle(Imp::None(error)))
    }
}

fn spawn<R: Send + 'static>(
    domain: &Arc<Domain>,
    name: &str,
    at: &'static Location<'static>,
    f: impl FnOnce(&mut Locked<'_, Unlocked>) -> R + Send + 'static,
) -> io::Result<JoinHandle<R>> {
    let (domain, owned) = (Arc::clone(domain), name.to_owned());
    let run = move || enter(&domain, &owned, f);
    Ok(JoinHandle(if is_explored() {
        let result = Arc::new(Mutex::new(None));
        let theirs = Arc::clone(&result);
        let leave = move || *theirs.lock().unwrap_or_else(PoisonError::into_inner) = Some(run());
        Imp::Explored(model::spawn(name, at, leave), result)
    } else {
        Imp::Real(std::thread::Builder::new().name(name.to_owned()).spawn(run)?)
    }))
}

/// A thread that was started, and can be joined.
#[derive(Debug)]
pub struct JoinHandle<R>(Imp<R>);

#[derive(Debug)]
enum Imp<R> {
    Real(std::thread::JoinHandle<R>),
    Explored(usize, Arc<Mutex<Option<R>>>),
    None(io::Error),
}

/// Hashes which thread it is, for an explorer.
impl<R> Hash for JoinHandle<R> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        if let Imp::Explored(thread, _) = &self.0 {
            model::thread_name(*thread).hash(state);
        }
    }
}

impl<R> JoinHandle<R> {
    /// Waits for the thread to end. What the thread waits for counts as waited for here: if it serves a queue, take the
    /// queue's [`WaitMap`](crate::WaitMap) first.
    ///
    /// # Errors
    /// The thread's panic, or a message that the system could not start the thread.
    #[track_caller]
    pub fn join<L: MayWait>(self, cx: &mut Locked<'_, L>) -> std::thread::Result<R> {
        cx.task.might_wait("joins a thread", Location::caller());
        match self.0 {
            Imp::Real(thread) => thread.join(),
            Imp::None(error) => Err(Box::new(format!("no thread: {error}"))),
            Imp::Explored(thread, result) => {
                model::join(thread, Location::caller());
                let result = result.lock().unwrap_or_else(PoisonError::into_inner).take();
                result.ok_or_else(|| Box::new("the thread panicked") as Box<dyn std::any::Any + Send>)
            }
        }
    }
}
