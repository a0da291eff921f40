//! The primitives for real: on the system's threads and clock.

use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shuttle::scheduler::RandomScheduler;

use lockdep::{
    AtomicBool, AtomicU64, Condvar, Deadline, Domain, EventCount, Explore, Halt, Locked, Mutex, OnReport, RwLock,
    Spawn, Threads, Unlocked, enter, is_explored, lock_classes, lock_order,
};

lock_classes! {
    class Outer = "outer";
    class Table = "table";
    leaf Count = "count";
    leaf Moved = "moved";
}

lock_order! {
    root Outer;
    Outer => Table;
}

/// Runs a program in a checked domain, and checks that there are no reports.
fn quietly(story: impl FnOnce(&mut Locked<'_, Unlocked>)) {
    let domain = Domain::checked(OnReport::Panic);
    enter(&domain, "main", story);
    assert_eq!(domain.take_reports(), []);
}

#[test]
fn a_mutex_excludes() {
    quietly(|cx| {
        let count = Arc::new(Mutex::<Table, _>::new(0));
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let count = Arc::clone(&count);
                cx.spawn(&format!("t{n}"), move |cx| {
                    for _ in 0..1_000 {
                        *count.lock(cx).0 += 1;
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join(cx).unwrap();
        }
        assert_eq!(*count.lock(cx).0, 4_000);
    });
}

#[test]
fn a_try_fails_while_another_thread_holds_it() {
    quietly(|cx| {
        let lock = Arc::new(Mutex::<Table, _>::new(()));
        let (_held, mut inner) = lock.lock(cx);
        let theirs = Arc::clone(&lock);
        let had = inner.spawn("t", move |cx| theirs.try_lock(cx).is_some());
        assert!(!had.join(&mut inner).unwrap());
    });
}

#[test]
fn readers_read_together_and_a_writer_writes_alone() {
    quietly(|cx| {
        let table = Arc::new(RwLock::<Table, _>::new(1));
        let (read, mut inner) = table.read(cx);
        // A second reader gets in while the first is there.
        let theirs = Arc::clone(&table);
        let second = inner.spawn("reader", move |cx| *theirs.read(cx).0);
        assert_eq!(second.join(&mut inner).unwrap(), 1);
        assert_eq!(*read, 1);
        drop(read);
        *table.write(cx).0 = 2;
        assert_eq!(*table.read(cx).0, 2);
    });
}

#[test]
fn a_wait_times_out() {
    quietly(|cx| {
        let (lock, condvar) = (Mutex::<Count, _>::new(()), Condvar::new());
        let start = Instant::now();
        let deadline = Deadline::after(Duration::from_millis(20));
        assert!(!deadline.has_passed());
        let mut guard = lock.lock_leaf(cx);
        while !deadline.has_passed() {
            condvar.wait_until(&mut guard, &deadline);
        }
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert_eq!(deadline.remaining(), Some(Duration::ZERO));
    });
}

#[test]
fn a_sleep_lasts_until_the_deadline() {
    quietly(|cx| {
        let deadline = Deadline::after(Duration::from_millis(10));
        deadline.sleep(cx);
        assert!(deadline.has_passed());
    });
}

/// Starts `n` threads that each wait for a permit and take it, and waits until all of them wait.
struct Permits {
    state: Mutex<Count, State>,
    changed: Condvar,
    waiting: Condvar,
}

#[derive(Default)]
struct State {
    permits: u32,
    waiting: u32,
}

impl Permits {
    fn with_waiters(cx: &mut Locked<'_, Unlocked>, n: u32) -> (Arc<Self>, Vec<lockdep::JoinHandle<()>>) {
        let permits = Arc::new(Self {
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
            waiting: Condvar::default(),
        });
        let threads = (0..n)
            .map(|i| {
                let permits = Arc::clone(&permits);
                cx.spawn(&format!("waiter {i}"), move |cx| permits.take(cx))
            })
            .collect();
        let mut state = permits.state.lock_leaf(cx);
        while state.waiting < n {
            permits.waiting.wait(&mut state);
        }
        drop(state);
        (permits, threads)
    }

    fn take(&self, cx: &mut Locked<'_, Unlocked>) {
        let mut state = self.state.lock_leaf(cx);
        state.waiting += 1;
        self.waiting.notify_one();
        while state.permits == 0 {
            self.changed.wait(&mut state);
        }
        state.permits -= 1;
    }
}

#[test]
fn one_notification_a_permit_wakes_as_many() {
    quietly(|cx| {
        let (permits, threads) = Permits::with_waiters(cx, 3);
        for _ in 0..3 {
            permits.state.lock_leaf(cx).permits += 1;
            permits.changed.notify_one();
        }
        for thread in threads {
            thread.join(cx).unwrap();
        }
    });
}

#[test]
fn a_notification_to_all_wakes_all() {
    quietly(|cx| {
        let (permits, threads) = Permits::with_waiters(cx, 3);
        permits.state.lock_leaf(cx).permits = 3;
        permits.changed.notify_all();
        for thread in threads {
            thread.join(cx).unwrap();
        }
    });
}

#[test]
fn an_event_count_wakes_the_threads_that_saw_less() {
    quietly(|cx| {
        let (count, done) = (Arc::new(EventCount::<Moved>::new()), Arc::new(AtomicBool::new(false)));
        let seen = count.seen(cx);
        count.advance(cx);
        // The count has advanced since it was seen: no wait.
        count.wait_past(cx, seen);
        assert_ne!(count.seen(cx), seen);

        let theirs = (Arc::clone(&count), Arc::clone(&done));
        let waiter = cx.spawn("waiter", move |cx| {
            let (count, done) = theirs;
            loop {
                let seen = count.seen(cx);
                if done.load() {
                    return;
                }
                count.wait_past(cx, seen);
            }
        });
        done.swap(true);
        count.advance(cx);
        waiter.join(cx).unwrap();
    });
}

#[test]
fn a_panic_is_returned_by_join_and_poisons_nothing() {
    quietly(|cx| {
        let lock = Arc::new(Mutex::<Table, _>::new(7));
        let theirs = Arc::clone(&lock);
        let thread = cx.spawn("unlucky", move |cx| {
            let _held = theirs.lock(cx);
            panic!("as planned");
        });
        let panic = thread.join(cx).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"as planned"));
        assert_eq!(*lock.lock(cx).0, 7);
    });
}

#[test]
fn threads_of_a_domain_have_their_names() {
    quietly(|cx| {
        let told = Arc::new(Mutex::<Table, _>::new(String::new()));
        let theirs = Arc::clone(&told);
        let thread = Threads(Domain::unchecked()).spawn(
            "esw-0",
            Location::caller(),
            Box::new(move |cx| {
                let name = cx.thread_name().to_owned();
                *theirs.lock(cx).0 = name;
            }),
        );
        thread.unwrap().join(cx).unwrap();
        assert_eq!(*told.lock(cx).0, "esw-0");
    });
}

#[test]
fn atomics_return_the_values_that_they_hold() {
    let (number, flag) = (AtomicU64::new(1), AtomicBool::new(false));
    assert_eq!(number.fetch_add(2), 1);
    number.store(number.load() + 1);
    assert_eq!(number.load(), 4);
    assert!(!flag.swap(true));
    assert!(flag.load());
}

#[test]
fn real_and_explored_primitives_live_in_one_process() {
    quietly(|cx| {
        let real = Mutex::<Table, _>::new(0);
        let (mut held, _cx) = real.lock(cx);
        let explored = Explore::default().until_failure(RandomScheduler::new(20), || {
            assert!(is_explored());
            let domain = Domain::checked(OnReport::Panic);
            enter(&domain, "explored", |cx| {
                let lock = Arc::new(Mutex::<Outer, _>::new(0));
                let theirs = Arc::clone(&lock);
                let thread = cx.spawn("t", move |cx| *theirs.lock(cx).0 += 1);
                *lock.lock(cx).0 += 1;
                thread.join(cx).unwrap();
                assert_eq!(*lock.lock(cx).0, 2);
            });
        });
        assert_eq!(explored, Ok(20));
        assert!(!is_explored());
        *held += 1;
        // Primitives made from now on are real again, on this thread as on any other.
        let real_again = Mutex::<Count, _>::new(*held);
        drop((held, _cx));
        assert_eq!(*real_again.lock_leaf(cx), 1);
    });
}

#[test]
fn mixing_real_and_explored_primitives_panics() {
    let condvar = Condvar::new();
    let explored = Explore::default().until_failure(RandomScheduler::new(1), move || {
        enter(&Domain::unchecked(), "main", |cx| {
            let lock = Mutex::<Count, _>::new(());
            condvar.wait(&mut lock.lock_leaf(cx));
        });
    });
    assert!(matches!(explored, Err(Halt::Panic(text)) if text.contains("made for real")));
    assert!(!is_explored(), "the mark goes with the panic");
}
