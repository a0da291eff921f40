//! What a lock of `lockdep` costs beside the `parking_lot` lock inside it.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::Result;
use lockdep::{Domain, Locked, Mutex, OnReport, Unlocked, enter, lock_classes, lock_order};

use super::{Measurement, Part, Quantity, Row, Target, by_turns};
use crate::valgrind;

lock_classes! {
    class Outer = "outer";
    class Inner = "inner";
}

lock_order! {
    root Outer;
    Outer => Inner;
}

/// The measurements of this group.
pub const MEASUREMENTS: &[Measurement] = &[
    Measurement { name: "lockdep: uncontended", run: uncontended },
    Measurement { name: "lockdep: instructions", run: instructions },
    Measurement { name: "lockdep: contended", run: contended },
    Measurement { name: "lockdep: checked", run: checked },
];

const TARGET: Target = Target::RatioAtMost(1.15);
const TURNS: usize = 41;
const LOCKS: usize = 1_000_000;

type Ours = Mutex<Outer, u64>;
type Theirs = parking_lot::Mutex<u64>;

#[inline(never)]
fn ours_loop(cx: &mut Locked<'_, Unlocked>, lock: &Ours, n: usize) {
    for _ in 0..n {
        *black_box(lock).lock(cx).0 += 1;
    }
}

#[inline(never)]
fn theirs_loop(lock: &Theirs, n: usize) {
    for _ in 0..n {
        *black_box(lock).lock() += 1;
    }
}

fn timed(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

/// For the child process: `n` times ours, on an unchecked domain.
pub fn lock_ours(n: usize) {
    enter(&Domain::unchecked(), "main", |cx| ours_loop(cx, &Ours::new(0), n));
}

/// For the child process: `n` times theirs.
pub fn lock_theirs(n: usize) {
    theirs_loop(&Theirs::new(0), n);
}

fn uncontended() -> Result<Vec<Row>> {
    let (ours, theirs) = (Ours::new(0), Theirs::new(0));
    let turns = enter(&Domain::unchecked(), "main", |cx| {
        by_turns(TURNS, || timed(|| ours_loop(cx, &ours, LOCKS)), || timed(|| theirs_loop(&theirs, LOCKS)))
    });
    Ok(vec![
        Row::compared(
            "lock and unlock, uncontended, unchecked".to_owned(),
            Quantity::nanos_each(turns.ours, LOCKS),
            "parking_lot",
            Quantity::nanos_each(turns.theirs, LOCKS),
            turns.ratio,
        )
        .target(TARGET),
    ])
}

/// Instructions of one lock and unlock, as valgrind counts them: twice the work less once the work.
fn instructions() -> Result<Vec<Row>> {
    const N: usize = 100_000;
    let what = || "the same, counted".to_owned();
    let count = |part: Part| -> Result<Quantity> {
        let of = |n: usize| valgrind::instructions(&["bench-child", part.name(), &n.to_string()]);
        Ok(Quantity { value: (of(2 * N)? as f64 - of(N)? as f64) / N as f64, unit: "instructions" })
    };
    let row = match (count(Part::LockOurs), count(Part::LockTheirs)) {
        (Ok(ours), Ok(theirs)) => Row::compared(what(), ours, "parking_lot", theirs, ours.value / theirs.value)
            .target(Target::AtMost(Quantity { value: 24.0, unit: "instructions" })),
        (Err(error), _) | (_, Err(error)) => Row::unavailable(what(), format!("{error:#}")),
    };
    Ok(vec![row])
}

/// Two threads that take one lock at once, again and again, and do nothing else: for information, as it
/// says more of how the two processors lie and what else they do than of the locks.
fn contended() -> Result<Vec<Row>> {
    const EACH: usize = 200_000;
    let domain = Domain::unchecked();
    let ours = || {
        let lock = Arc::new(Ours::new(0));
        at_once(|| {
            let (lock, domain) = (Arc::clone(&lock), Arc::clone(&domain));
            move || enter(&domain, "t", |cx| ours_loop(cx, &lock, EACH))
        })
    };
    let theirs = || {
        let lock = Arc::new(Theirs::new(0));
        at_once(|| {
            let lock = Arc::clone(&lock);
            move || theirs_loop(&lock, EACH)
        })
    };
    let turns = by_turns(TURNS, ours, theirs);
    Ok(vec![Row::compared(
        "lock and unlock, 2 threads at once, unchecked".to_owned(),
        Quantity::nanos_each(turns.ours, 2 * EACH),
        "parking_lot",
        Quantity::nanos_each(turns.theirs, 2 * EACH),
        turns.ratio,
    )])
}

/// The time from when two threads are let go until both are done.
fn at_once<F: FnOnce() + Send>(mut work: impl FnMut() -> F) -> Duration {
    let barrier = Barrier::new(3);
    let work = [work(), work()];
    std::thread::scope(|scope| {
        let threads = work.map(|work| {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                work();
            })
        });
        barrier.wait();
        let start = Instant::now();
        for thread in threads {
            // A panic in there is one of this program, and ends it.
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        start.elapsed()
    })
}

/// What checking costs, when everything is right and has been seen before.
fn checked() -> Result<Vec<Row>> {
    const N: usize = LOCKS / 10;
    let unchecked = Domain::unchecked();
    let checked = Domain::checked(OnReport::Record);
    let locks = (Ours::new(0), Mutex::<Inner, u64>::new(0));
    let nested = |domain: &Arc<Domain>| {
        enter(domain, "main", |cx| {
            timed(|| {
                for _ in 0..N {
                    let (_outer, mut cx) = black_box(&locks.0).lock(cx);
                    *black_box(&locks.1).lock(&mut cx).0 += 1;
                }
            })
        })
    };
    let turns = by_turns(TURNS, || nested(&checked), || nested(&unchecked));
    Ok(vec![Row::compared(
        "two locks, one in the other, checked".to_owned(),
        Quantity::nanos_each(turns.ours, N),
        "unchecked",
        Quantity::nanos_each(turns.theirs, N),
        turns.ratio,
    )])
}
