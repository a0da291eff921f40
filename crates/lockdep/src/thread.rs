//! Threads: the roots of tokens.

use std::hash::Hash;
use std::io;
use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError};

use crate::task::Task;
use crate::{Domain, Locked, MayWait, Unlocked, is_explored, model};

/// Makes the current OS thread, or explored task, one of `domain`'s: the root token of `main`.
///
/// Call it where a thread starts and holds nothing. A second root inside the first would hide the
/// locks of the one from the other.
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

/// What a thread runs, from the root of the order on.
pub type ThreadMain = Box<dyn FnOnce(&mut Locked<'_, Unlocked>) + Send>;

/// Who gives the engine its threads. What it needs is in the trait, so that an owner can count
/// them, name them, or refuse.
pub trait Spawn: Send + Sync {
    /// Starts a thread that runs `f` at the root of the order. `at`: where in the source it is asked for.
    ///
    /// # Errors
    /// There is no thread to be had.
    fn spawn(&self, name: &str, at: &'static Location<'static>, f: ThreadMain) -> io::Result<JoinHandle<()>>;
}

/// Threads of this facade, in one domain.
#[derive(Debug, Clone)]
pub struct Threads(pub Arc<Domain>);

impl Spawn for Threads {
    fn spawn(&self, name: &str, at: &'static Location<'static>, f: ThreadMain) -> io::Result<JoinHandle<()>> {
        spawn(&self.0, name, at, f)
    }
}

impl<L: MayWait> Locked<'_, L> {
    /// Starts a thread in this thread's domain. If the system gives none, joining it says so.
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

/// A thread that can be waited for.
#[derive(Debug)]
pub struct JoinHandle<R>(Imp<R>);

#[derive(Debug)]
enum Imp<R> {
    Real(std::thread::JoinHandle<R>),
    Explored(usize, Arc<Mutex<Option<R>>>),
    None(io::Error),
}

/// Which thread it is, to an explorer.
impl<R> Hash for JoinHandle<R> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        if let Imp::Explored(thread, _) = &self.0 {
            model::thread_name(*thread).hash(state);
        }
    }
}

impl<R> JoinHandle<R> {
    /// Waits for the thread to end. What it waits for counts as waited for here: if the thread
    /// serves a queue, take the queue's [`WaitMap`](crate::WaitMap) first.
    ///
    /// # Errors
    /// The thread's panic, or a message that the system gave no thread.
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
