//! Exploring: a scheduler decides every interleaving, every time-out and every interrupt.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Once;

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::model::{self, Halt};

thread_local! {
    /// Explored threads are continuations on one OS thread. They share this flag and the model.
    static EXPLORED: Cell<bool> = const { Cell::new(false) };
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Returns whether a primitive that is made here and now is under an explorer's control.
#[inline]
pub fn is_explored() -> bool {
    EXPLORED.with(Cell::get)
}

/// Makes primitives in `f` real, even in an exploration. This is for what the explored code cannot see, such as a log
/// about it. No such lock may be held at a point where the scheduler chooses.
///
/// ```
/// use lockdep::{Mutex, lock_classes, unexplored};
///
/// lock_classes! {
///     leaf Log = "log";
/// }
///
/// let log: Mutex<Log, Vec<String>> = unexplored(|| Mutex::new(Vec::new()));
/// ```
pub fn unexplored<R>(f: impl FnOnce() -> R) -> R {
    let _mark = Mark::set(false);
    f()
}

struct Mark(bool);

impl Mark {
    fn set(explored: bool) -> Self {
        Self(EXPLORED.with(|mark| mark.replace(explored)))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        EXPLORED.with(|mark| mark.set(self.0));
    }
}

/// How to explore.
#[derive(Clone, Copy, Debug)]
pub struct Explore {
    /// Keep the events of each execution, for [`Model::take_happenings`](crate::Model::take_happenings).
    pub record: bool,
    /// The most steps of an execution. One with more is given up, see [`Halt::TooLong`].
    pub bound: usize,
    /// Only code between `focus(true)` and `focus(false)` runs in more than one order.
    pub focused: bool,
    /// What a thread has [forgotten](crate::HistoryMark) is no part of the [state](crate::Model::state). If `false`,
    /// everything that each thread has found since its start is part of the state.
    pub forgets: bool,
    /// Ask the scheduler also where there is only one choice: it counts the steps of each thread.
    pub asks_always: bool,
}

impl Default for Explore {
    fn default() -> Self {
        Self { record: false, bound: 1_000_000, focused: false, forgets: true, asks_always: false }
    }
}

impl Explore {
    /// Runs `f` repeatedly on this OS thread, once for each execution that the scheduler begins. `f` makes every
    /// primitive that it uses, or makes it in [`unexplored`].
    ///
    /// After each execution `ended` receives the reason why the execution was given up, if it was, and returns whether to
    /// go on. The model of the execution can still be [looked at](crate::look) then.
    ///
    /// The scheduler is asked only where two or more threads can run, unless [`asks_always`](Self::asks_always) is set. It
    /// is never asked for random numbers.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    ///
    /// use lockdep::{AtomicU64, Domain, Explore, enter};
    /// use shuttle::scheduler::RandomScheduler;
    ///
    /// let ended = |halt: Option<lockdep::Halt>| {
    ///     assert_eq!(halt, None);
    ///     // The last execution can be looked at.
    ///     assert!(lockdep::look(|model| model.threads().len()) == 2);
    ///     ControlFlow::Continue(())
    /// };
    /// Explore::default().run(RandomScheduler::new(10), ended, || {
    ///     enter(&Domain::exploring(None), "main", |cx| {
    ///         let sum = AtomicU64::new(0);
    ///         cx.spawn("other", move |_| sum.fetch_add(1)).join(cx).unwrap();
    ///     });
    /// });
    /// ```
    pub fn run<S: Scheduler + 'static>(
        self,
        scheduler: S,
        ended: impl FnMut(Option<Halt>) -> ControlFlow<()> + 'static,
        f: impl Fn() + Send + Sync + 'static,
    ) {
        keep_panics_quiet();
        let _mark = Mark::set(true);
        let watched = Rc::new(RefCell::new(Watched { scheduler, ended, running: false, over: false, how: self }));
        let f = std::sync::Arc::new(f);
        loop {
            let (shared, f) = (Shared(Rc::clone(&watched)), std::sync::Arc::clone(&f));
            let run = || Runner::new(shared, config()).run(move || model::live(|| f()));
            let Err(panic) = catch_unwind(AssertUnwindSafe(run)) else { break };
            // The panic is not of a thread of the program but of the explorer.
            let mut watched = watched.borrow_mut();
            let text = LAST_PANIC.take().unwrap_or_else(|| describe(&*panic));
            if watched.running {
                model::look(|model| model.stop(Halt::Panic(text)));
                watched.end();
            } else {
                drop(watched);
                std::panic::resume_unwind(panic);
            }
            if watched.over {
                break;
            }
        }
        model::end();
    }

    /// Runs like [`run`](Self::run), up to the first execution that is given up. Returns the number of executions.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use lockdep::{AtomicU64, Domain, Explore, Halt, enter};
    /// use shuttle::scheduler::RandomScheduler;
    ///
    /// let found = Explore::default().until_failure(RandomScheduler::new(1_000), || {
    ///     enter(&Domain::exploring(None), "main", |cx| {
    ///         let sum = Arc::new(AtomicU64::new(0));
    ///         let theirs = Arc::clone(&sum);
    ///         let other = cx.spawn("other", move |_| theirs.store(theirs.load() + 1));
    ///         sum.store(sum.load() + 1);
    ///         other.join(cx).unwrap();
    ///         assert_eq!(sum.load(), 2, "nothing is lost");
    ///     });
    /// });
    /// assert!(matches!(found, Err(Halt::Panic(text)) if text.contains("nothing is lost")));
    /// ```
    ///
    /// # Errors
    /// The reason why an execution was given up.
    pub fn until_failure<S: Scheduler + 'static>(
        self,
        scheduler: S,
        f: impl Fn() + Send + Sync + 'static,
    ) -> Result<usize, Halt> {
        let found = Rc::new(RefCell::new((0, None)));
        let ours = Rc::clone(&found);
        let ended = move |halt: Option<Halt>| {
            let mut found = ours.borrow_mut();
            found.0 += 1;
            found.1 = halt;
            if found.1.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        self.run(scheduler, ended, f);
        let (schedules, halt) = found.take();
        halt.map_or(Ok(schedules), Err)
    }
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = model::STACK;
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::None;
    config.silence_warnings = true;
    config
}

/// A scheduler between shuttle and the one that the caller gave.
struct Watched<S, E> {
    scheduler: S,
    ended: E,
    running: bool,
    over: bool,
    how: Explore,
}

struct Shared<T>(Rc<RefCell<T>>);

impl<S: Scheduler, E: FnMut(Option<Halt>) -> ControlFlow<()>> Watched<S, E> {
    fn end(&mut self) {
        if std::mem::take(&mut self.running) {
            let halt = model::look(model::Model::take_halt);
            self.over |= (self.ended)(halt).is_break();
        }
    }
}

impl<S: Scheduler, E: FnMut(Option<Halt>) -> ControlFlow<()>> Scheduler for Shared<Watched<S, E>> {
    fn new_execution(&mut self) -> Option<Schedule> {
        let mut this = self.0.borrow_mut();
        this.end();
        if this.over {
            return None;
        }
        let schedule = this.scheduler.new_execution();
        this.over = schedule.is_none();
        if schedule.is_some() {
            model::begin(&this.how);
            this.running = true;
        }
        schedule
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, _: bool) -> Option<TaskId> {
        let (halted, ending, yields, plain) = model::look(|model| {
            let ending = runnable.iter().find(|task| model.threads()[usize::from(task.id())].is_finished());
            let yields = current.is_some_and(|current| model.timer(current.into()).is_some());
            let threads = runnable.iter().map(|task| usize::from(task.id()));
            let plain = model.is_plain().then(|| model.plain_choice(threads, current.map(usize::from)));
            (model.halt().is_some(), ending, yields, plain)
        });
        let asks_always = self.0.borrow().how.asks_always;
        if asks_always && !halted && ending.is_none() && (plain.is_some() || runnable.len() == 1) {
            self.0.borrow_mut().scheduler.next_task(runnable, current, yields);
        }
        match runnable {
            _ if halted => None,
            [only] => Some(only.id()),
            // The thread has ended already; shuttle only unwinds its stack.
            _ if ending.is_some() => ending.map(|task| task.id()),
            _ if plain.is_some() => plain.map(TaskId::from),
            _ => self.0.borrow_mut().scheduler.next_task(runnable, current, yields),
        }
    }

    fn next_u64(&mut self) -> u64 {
        self.0.borrow_mut().scheduler.next_u64()
    }
}

/// Runs a function that may panic. Returns the panic's text with its place.
pub(crate) fn caught<R>(f: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| LAST_PANIC.take().unwrap_or_else(|| describe(&*panic)))
}

fn describe(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_owned()
}

/// Installs a panic hook: a panic inside an exploration is a result, which is kept for the report. Shuttle installs a hook
/// of its own, which prints schedules for every panic. This hook replaces it.
fn keep_panics_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let other = std::panic::take_hook();
        // Shuttle sets its hook once, when it first runs. Its random scheduler is not used here, because it reads a seed
        // from the environment.
        Runner::new(shuttle::scheduler::RoundRobinScheduler::new(1), config()).run(|| {});
        drop(std::panic::take_hook());
        std::panic::set_hook(Box::new(move |info| {
            if !is_explored() {
                return other(info);
            }
            let text = describe(info.payload());
            let place = info.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
            LAST_PANIC.set(Some(format!("{text}{}", place.unwrap_or_default())));
        }));
    });
}
