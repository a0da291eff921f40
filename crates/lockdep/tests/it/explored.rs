//! The primitives under an explorer: invariants hold in every schedule that is tried, and every possible choice is made
//! in some schedule.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use shuttle::scheduler::RandomScheduler;

use lockdep::{
    AtomicU64, Condvar, Deadline, Domain, EventCount, Explore, JoinHandle, Locked, Mutex, OnReport, ReportKind, RwLock,
    Unlocked, enter, lock_classes, lock_order,
};

lock_classes! {
    class A = "a";
    class B = "b";
    class Table = "table";
    leaf Count = "count";
    leaf Moved = "moved";
}

lock_order! {
    root A;
    A => B;
    B => Table;
}

const SCHEDULES: usize = 1_000;

/// Runs a program in many schedules, and returns every outcome.
fn outcomes<R: Ord + Send + 'static>(
    story: impl Fn(&mut Locked<'_, Unlocked>) -> R + Send + Sync + 'static,
) -> BTreeSet<R> {
    let seen = Arc::new(std::sync::Mutex::new(BTreeSet::new()));
    let theirs = Arc::clone(&seen);
    let explored = Explore::default().until_failure(RandomScheduler::new(SCHEDULES), move || {
        let domain = Domain::checked(OnReport::Panic);
        let outcome = enter(&domain, "main", &story);
        theirs.lock().unwrap().insert(outcome);
    });
    assert_eq!(explored.unwrap_or_else(|halt| panic!("{halt}")), SCHEDULES);
    std::mem::take(&mut *seen.lock().unwrap())
}

/// Returns the explorer's message about a program that fails in some schedule.
fn failure(story: impl Fn(&mut Locked<'_, Unlocked>) + Send + Sync + 'static) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| outcomes(story))).expect_err("some schedule fails");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().unwrap()).to_owned(),
    }
}

fn join_all(cx: &mut Locked<'_, Unlocked>, threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        thread.join(cx).unwrap();
    }
}

#[test]
fn a_mutex_excludes_and_without_it_updates_are_lost() {
    /// Reads and writes in two steps, with a point between at which others may run.
    fn bump(n: &AtomicU64) {
        let read = n.load();
        n.store(read + 1);
    }
    let story = |locked: bool| {
        move |cx: &mut Locked<'_, Unlocked>| {
            let shared = Arc::new((Mutex::<A, _>::new(()), AtomicU64::new(0)));
            let threads: Vec<_> = (0..3)
                .map(|i| {
                    let shared = Arc::clone(&shared);
                    cx.spawn(&format!("t{i}"), move |cx| {
                        let _held = locked.then(|| shared.0.lock(cx));
                        bump(&shared.1);
                    })
                })
                .collect();
            join_all(cx, threads);
            shared.1.load()
        }
    };
    assert_eq!(outcomes(story(true)), BTreeSet::from([3]));
    assert_eq!(outcomes(story(false)), BTreeSet::from([1, 2, 3]));
}

#[test]
fn a_try_succeeds_in_some_schedules_and_fails_in_others() {
    let had = outcomes(|cx| {
        let lock = Arc::new(Mutex::<A, _>::new(()).with_try_lock());
        let theirs = Arc::clone(&lock);
        let thread = cx.spawn("t", move |cx| theirs.try_lock(cx).is_some());
        drop(lock.lock(cx));
        thread.join(cx).unwrap()
    });
    assert_eq!(had, BTreeSet::from([false, true]));
}

#[test]
fn a_writer_writes_alone() {
    let sums = outcomes(|cx| {
        let table = Arc::new(RwLock::<Table, _>::new((0, 0)));
        let writers: Vec<_> = (0..2)
            .map(|i| {
                let table = Arc::clone(&table);
                cx.spawn(&format!("writer {i}"), move |cx| {
                    let (mut table, _cx) = table.write(cx);
                    table.0 += 1;
                    AtomicU64::new(0).load();
                    table.1 += 1;
                })
            })
            .collect();
        let (a, b) = *table.read(cx).0;
        assert_eq!(a, b, "a reader saw half of a write");
        join_all(cx, writers);
        *table.read(cx).0
    });
    assert_eq!(sums, BTreeSet::from([(2, 2)]));
}

#[test]
fn a_condition_variable_loses_no_wake_up() {
    // A bounded buffer of one place: every lost wake-up would be a deadlock.
    outcomes(|cx| {
        let shared = Arc::new((Mutex::<Count, _>::new(None), Condvar::new(), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let consumer = cx.spawn("consumer", move |cx| {
            let (place, full, empty) = &*theirs;
            for expected in 0..3 {
                let mut place = place.lock_leaf(cx);
                let got = loop {
                    match place.take() {
                        Some(item) => break item,
                        None => full.wait(&mut place),
                    }
                };
                drop(place);
                empty.notify_one();
                assert_eq!(got, expected);
            }
        });
        let (place, full, empty) = &*shared;
        for item in 0..3 {
            let mut place = place.lock_leaf(cx);
            while place.is_some() {
                empty.wait(&mut place);
            }
            *place = Some(item);
            drop(place);
            full.notify_one();
        }
        consumer.join(cx).unwrap();
    });
}

#[test]
fn a_wake_up_that_a_program_loses_is_found() {
    let text = failure(|cx| {
        let shared = Arc::new((Mutex::<Count, _>::new(false), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let thread = cx.spawn("waiter", move |cx| {
            let (flag, changed) = &*theirs;
            let set = *flag.lock_leaf(cx);
            // The mistake: the lock is released between the look and the wait.
            if !set {
                changed.wait(&mut flag.lock_leaf(cx));
            }
        });
        *shared.0.lock_leaf(cx) = true;
        shared.1.notify_all();
        thread.join(cx).unwrap();
    });
    assert!(text.contains("deadlock"), "{text}");
}

#[test]
fn a_timed_wait_ends_both_ways() {
    let ended = outcomes(|cx| {
        let shared = Arc::new((Mutex::<Count, _>::new(false), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let thread = cx.spawn("waiter", move |cx| {
            let deadline = Deadline::after(Duration::from_secs(1));
            let mut flag = theirs.0.lock_leaf(cx);
            let mut waits = 0;
            while !*flag && !deadline.has_passed() {
                theirs.1.wait_until(&mut flag, &deadline);
                waits += 1;
            }
            assert_eq!(deadline.remaining(), None);
            (waits, *flag, deadline.has_passed())
        });
        *shared.0.lock_leaf(cx) = true;
        shared.1.notify_one();
        thread.join(cx).unwrap()
    });
    let expected = [
        (0, true, false), // notified before it looked
        (1, true, false), // notified
        (1, false, true), // timed out
        (1, true, true),  // timed out, and notified before it had the lock again
    ];
    assert_eq!(ended, BTreeSet::from(expected));
}

#[test]
fn a_timed_wait_without_a_notification_times_out() {
    let passed = outcomes(|cx| {
        let (lock, condvar) = (Mutex::<Count, _>::new(()), Condvar::new());
        let deadline = Deadline::after(Duration::from_secs(3600));
        condvar.wait_until(&mut lock.lock_leaf(cx), &deadline);
        // An old timer wakes no thread: this one has to run out by itself.
        let again = Deadline::after(Duration::from_secs(3600));
        condvar.wait_until(&mut lock.lock_leaf(cx), &again);
        deadline.has_passed() && again.has_passed()
    });
    assert_eq!(passed, BTreeSet::from([true]));
}

#[test]
fn a_timer_left_over_ends_no_later_wait() {
    // Given a wait that was notified before its time was up,
    let early = outcomes(|cx| {
        let shared = Arc::new((Mutex::<Count, _>::new(0), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let thread = cx.spawn("waiter", move |cx| {
            let (count, changed) = &*theirs;
            let deadline = Deadline::after(Duration::from_secs(1));
            let mut count = count.lock_leaf(cx);
            while *count == 0 {
                changed.wait_until(&mut count, &deadline);
            }
            // when it waits again, without a deadline, then only a notification ends that wait.
            while *count == 1 {
                let before = *count;
                changed.wait(&mut count);
                assert_ne!(*count, before, "woken by nothing");
            }
        });
        for _ in 0..2 {
            *shared.0.lock_leaf(cx) += 1;
            shared.1.notify_all();
        }
        thread.join(cx).unwrap();
    });
    assert_eq!(early, BTreeSet::from([()]));
}

#[test]
fn a_notification_goes_to_any_one_waiter_and_to_no_more() {
    let woken = outcomes(|cx| {
        let shared = Arc::new((Mutex::<Count, _>::new((0, Vec::new())), Condvar::new(), Condvar::new()));
        let threads: Vec<_> = (0..3)
            .map(|i| {
                let shared = Arc::clone(&shared);
                cx.spawn(&format!("waiter {i}"), move |cx| {
                    let (state, go, woke) = &*shared;
                    let mut state = state.lock_leaf(cx);
                    state.0 += 1;
                    woke.notify_one();
                    go.wait(&mut state);
                    state.1.push(i);
                    woke.notify_one();
                })
            })
            .collect();
        let (state, go, woke) = &*shared;
        let mut held = state.lock_leaf(cx);
        while held.0 < 3 {
            woke.wait(&mut held);
        }
        drop(held);
        go.notify_one();
        let mut held = state.lock_leaf(cx);
        while held.1.is_empty() {
            woke.wait(&mut held);
        }
        let first = held.1.clone();
        drop(held);
        go.notify_all();
        join_all(cx, threads);
        first
    });
    assert_eq!(woken, BTreeSet::from([vec![0], vec![1], vec![2]]));
}

#[test]
fn an_event_count_loses_no_advance() {
    let looks = outcomes(|cx| {
        let shared = Arc::new((EventCount::<Moved>::new(), AtomicU64::new(0), AtomicU64::new(0)));
        let threads: Vec<_> = (0..2)
            .map(|i| {
                let shared = Arc::clone(&shared);
                cx.spawn(&format!("t{i}"), move |cx| {
                    let (count, a, b) = &*shared;
                    let _ = if i == 0 { a } else { b }.fetch_add(1);
                    count.advance(cx);
                })
            })
            .collect();
        let (count, a, b) = &*shared;
        let mut looks = 0;
        loop {
            let seen = count.seen(cx);
            looks += 1;
            if a.load() == 1 && b.load() == 1 {
                break;
            }
            count.wait_past(cx, seen);
        }
        join_all(cx, threads);
        looks
    });
    assert_eq!(looks, BTreeSet::from([1, 2, 3]));
}

#[test]
fn a_sleep_lets_others_run_and_ends() {
    let ran = outcomes(|cx| {
        let flag = Arc::new(AtomicU64::new(0));
        let theirs = Arc::clone(&flag);
        let thread = cx.spawn("t", move |_| theirs.store(1));
        let deadline = Deadline::after(Duration::from_secs(3600));
        deadline.sleep(cx);
        assert!(deadline.has_passed());
        let ran = flag.load();
        thread.join(cx).unwrap();
        ran
    });
    assert_eq!(ran, BTreeSet::from([0, 1]));
}

/// Takes `b`, then, with a token from a try, `a`: against the order.
fn against_the_order(cx: &mut Locked<'_, Unlocked>, a: &Mutex<B, ()>, b: &Mutex<Table, ()>) {
    let (_b, mut cx) = b.lock(cx);
    let way_round = Mutex::<A, _>::new(()).with_try_lock();
    let (_w, mut cx) = way_round.try_lock(&mut cx).expect("it is ours alone");
    drop(a.lock(&mut cx));
}

fn ab_ba(cx: &mut Locked<'_, Unlocked>, checked: bool) {
    let locks = Arc::new((Mutex::<B, _>::new(()), Mutex::<Table, _>::new(())));
    let theirs = Arc::clone(&locks);
    // A domain of its own knows only one of the two orders.
    let thread = if checked {
        cx.spawn("other", move |cx| against_the_order(cx, &theirs.0, &theirs.1))
    } else {
        let domain = Domain::checked(OnReport::Panic);
        lockdep::Spawn::spawn(
            &lockdep::Threads(domain),
            "other",
            std::panic::Location::caller(),
            Box::new(move |cx| against_the_order(cx, &theirs.0, &theirs.1)),
        )
        .unwrap()
    };
    {
        let (_a, mut cx) = locks.0.lock(cx);
        drop(locks.1.lock(&mut cx));
    }
    thread.join(cx).unwrap();
}

#[test]
fn locks_taken_both_ways_round_are_reported() {
    let text = failure(|cx| ab_ba(cx, true));
    assert!(text.contains("possible circular locking dependency"), "{text}");
}

#[test]
fn an_inversion_between_two_domains_deadlocks_in_some_schedule() {
    let text = failure(|cx| ab_ba(cx, false));
    assert!(text.contains("deadlock!"), "{text}");
}

#[test]
fn explored_threads_are_checked_in_an_unchecked_domain_too() {
    outcomes(|_| {
        let domain = Domain::unchecked();
        enter(&domain, "t", |cx| Mutex::<A, _>::new(()).assert_held(cx));
        let reports = domain.take_reports();
        assert!(matches!(reports[0].kind, ReportKind::NotHeld { class: "a", .. }));
    });
}

#[test]
fn a_deadlock_on_oneself_is_reported_before_it_happens() {
    let text = failure(|cx| {
        let (one, other) = (Mutex::<B, _>::new(()), Mutex::<A, _>::new(()).with_try_lock());
        let (_one, mut cx) = one.lock(cx);
        let (_other, mut cx) = other.try_lock(&mut cx).expect("it is ours alone");
        drop(one.lock(&mut cx));
    });
    assert!(text.contains("possible recursive locking"), "{text}");
}
