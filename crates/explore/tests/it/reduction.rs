//! The reductions lose nothing: on small random programs, the search with them meets exactly the outcomes that the search
//! without them meets, at every bound. An outcome is everything that every thread has found, and the final contents. The
//! threads write it down themselves, so it does not depend on the model. Where a thread forgets, it erases what it has
//! written down.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use explore::schedulers::{Bounded, Recorded, Replay, Shared};
use lockdep::{
    AtomicU64, Condvar, Deadline, Domain, EventCount, Explore, Halt, HistoryMark, LockBefore, Locked, Mutex, OnReport,
    RwLock, Unlocked, digest, lock_classes, lock_order, without_history,
};
use proptest::prelude::*;

lock_classes! {
    class A = "a";
    class B = "b";
    class C = "c";
    leaf L = "l";
    leaf Flag = "flag";
    leaf Slot = "slot";
    leaf Thing = "thing";
    leaf Count = "count";
    leaf irq Safe = "safe";
}

lock_order! {
    root A;
    A => C;
    C => B;
}

/// What a thread of a small program does.
#[derive(Clone, Debug)]
enum Do {
    /// Takes the first lock, does these, and releases it.
    WithA(Vec<Do>),
    /// Takes it and only looks.
    LookA,
    /// The same with the second.
    WithB(Vec<Do>),
    TryA,
    /// Does these with the third lock held for reading, or for writing.
    Shared(bool, Vec<Do>),
    Read(usize),
    Write(usize),
    Add(usize),
    /// Waits for a notification, or for time.
    Wait,
    NotifyOne,
    NotifyAll,
    Sleep,
    /// Turns the flag, whose lock has a digest, from 0 to 1 or back, or sets it to this.
    Flip(Option<u64>),
    /// The same without reading it.
    Blindly,
    /// Replaces the thing by a new one.
    Make,
    /// Uses the current thing and keeps it, or uses the one that it has kept.
    Use(bool),
    /// Notes the count, does these, and waits until it has advanced.
    Await(Vec<Do>),
    Advance,
    /// Raises an interrupt, whose handler does these.
    Interrupt(Vec<Do>),
    /// Does these with interrupts off.
    Off(Vec<Do>),
    /// Does these with the flag's lock held, and writes the flag.
    WithFlag(Vec<Do>),
    /// Counts under a lock that is taken with interrupts off.
    Safe,
    /// Forgets everything up to here.
    Forget,
}

struct World {
    a: Mutex<A, u64>,
    b: Mutex<B, u64>,
    c: RwLock<C, u64>,
    cells: [AtomicU64; 2],
    state: Mutex<L, u64>,
    moved: Condvar,
    flag: Mutex<Flag, u64>,
    slot: Mutex<Slot, Arc<Mutex<Thing, u64>>>,
    count: EventCount<Count>,
    safe: Mutex<Safe, u64>,
}

/// Makes a thing. A thread may replace it while another still uses it.
fn thing() -> Arc<Mutex<Thing, u64>> {
    Arc::new(Mutex::new(0).with_role(&"thing").with_state_digest(digest))
}

/// What a thread has found, in order.
type Log = Vec<u64>;

impl World {
    /// With `every_stop`, threads stop wherever an interrupt can land, whether or not the explorer needs that.
    fn new(every_stop: bool) -> Self {
        let flag = Mutex::new(0).with_state_digest(digest);
        Self {
            a: Mutex::new(0).with_try_lock(),
            b: Mutex::new(0),
            c: RwLock::new(0),
            cells: [AtomicU64::new(0), AtomicU64::new(0)],
            state: Mutex::new(0),
            moved: Condvar::new(),
            // Letting go of a lock that may be tried is a step of its own.
            flag: if every_stop { flag.with_try_lock() } else { flag },
            slot: Mutex::new(thing()).with_state_digest(digest),
            count: EventCount::new(),
            safe: Mutex::new(0),
        }
    }

    fn free(&self, cx: &mut Locked<'_, Unlocked>, me: u64, steps: &[Do], log: &mut Log) {
        let since = HistoryMark::now();
        let mut at_hand = None;
        for (at, step) in steps.iter().enumerate() {
            match step {
                Do::Interrupt(steps) => cx.interrupt(|cx| self.leaves(cx, me, steps, log)),
                Do::Off(steps) => cx.interrupts_off(|cx| self.leaves(cx, me, steps, log)),
                Do::Blindly => without_history(|| {
                    let mut flag = self.flag.lock_leaf(cx);
                    *flag = 1 - *flag;
                }),
                Do::Make => {
                    let old = std::mem::replace(&mut *self.slot.lock_leaf(cx), thing());
                    log.push(*old.lock_leaf(cx));
                }
                Do::Use(again) => {
                    let found = at_hand.take().filter(|_| *again);
                    let found = found.unwrap_or_else(|| Arc::clone(&*self.slot.lock_leaf(cx)));
                    {
                        let mut value = found.lock_leaf(cx);
                        log.push(*value);
                        *value = (*value + me) % 3;
                    }
                    at_hand = Some(found);
                }
                Do::Await(steps) => {
                    let seen = self.count.seen(cx);
                    self.simple(me, steps, log);
                    self.count.wait_past(cx, seen);
                }
                Do::Advance => self.count.advance(cx),
                Do::Forget => {
                    log.clear();
                    at_hand = None;
                    since.erase_except(&at);
                }
                Do::WithA(steps) => {
                    let (mut a, mut cx) = self.a.lock(cx);
                    log.push(*a);
                    self.under_a(&mut cx, me, steps, log);
                    // What is written depends on what was found, and not every thread writes.
                    if !steps.is_empty() {
                        *a = *a * 3 + me;
                    }
                }
                Do::LookA => log.push(*self.a.lock(cx).0),
                Do::WithB(steps) => self.with_b(cx, me, steps, log),
                Do::Shared(true, steps) => {
                    let (c, mut cx) = self.c.read(cx);
                    self.under_c(&mut cx, me, steps, log);
                    log.push(*c);
                }
                Do::Shared(false, steps) => {
                    let (mut c, mut cx) = self.c.write(cx);
                    self.under_c(&mut cx, me, steps, log);
                    *c = *c * 3 + me;
                }
                Do::TryA => match self.a.try_lock(cx) {
                    Some((mut a, _)) => {
                        log.push(*a);
                        *a = *a * 3 + me;
                    }
                    None => log.push(u64::MAX),
                },
                Do::Wait => {
                    let deadline = Deadline::after(Duration::from_secs(1));
                    let mut state = self.state.lock_leaf(cx);
                    self.moved.wait_until(&mut state, &deadline);
                    log.extend([*state, deadline.has_passed().into()]);
                }
                Do::NotifyOne => {
                    *self.state.lock_leaf(cx) += 1;
                    self.moved.notify_one();
                }
                Do::NotifyAll => {
                    // The release reports the value, which is the same in whatever order threads add to it.
                    let mut state = self.state.lock_leaf(cx);
                    *state += 1;
                    state.release_as(|state| *state);
                    self.moved.notify_all();
                }
                Do::Sleep => Deadline::after(Duration::from_secs(1)).sleep(cx),
                step => self.leaves(cx, me, std::slice::from_ref(step), log),
            }
        }
    }

    /// What takes leaf locks only, as an interrupt handler may.
    fn leaves<P>(&self, cx: &mut Locked<'_, P>, me: u64, steps: &[Do], log: &mut Log) {
        for step in steps {
            match step {
                Do::Flip(to) => {
                    let mut flag = self.flag.lock_leaf(cx);
                    log.push(*flag);
                    *flag = to.unwrap_or(1 - *flag);
                }
                Do::WithFlag(steps) => {
                    let mut flag = self.flag.lock_leaf(cx);
                    log.push(*flag);
                    self.simple(me, steps, log);
                    *flag = 1 - *flag;
                }
                Do::Safe => {
                    let mut safe = self.safe.lock_leaf(cx);
                    log.push(*safe);
                    *safe = *safe * 3 + me;
                }
                step => self.simple(me, std::slice::from_ref(step), log),
            }
        }
    }

    fn with_b<P: LockBefore<B>>(&self, cx: &mut Locked<'_, P>, me: u64, steps: &[Do], log: &mut Log) {
        let (mut b, _cx) = self.b.lock(cx);
        log.push(*b);
        self.simple(me, steps, log);
        if !steps.is_empty() {
            *b = *b * 3 + me;
        }
    }

    fn under_a(&self, cx: &mut Locked<'_, A>, me: u64, steps: &[Do], log: &mut Log) {
        for step in steps {
            match step {
                Do::WithB(steps) => self.with_b(cx, me, steps, log),
                step => self.simple(me, std::slice::from_ref(step), log),
            }
        }
    }

    fn under_c(&self, cx: &mut Locked<'_, C>, me: u64, steps: &[Do], log: &mut Log) {
        for step in steps {
            match step {
                Do::WithB(steps) => self.with_b(cx, me, steps, log),
                step => self.simple(me, std::slice::from_ref(step), log),
            }
        }
    }

    fn simple(&self, me: u64, steps: &[Do], log: &mut Log) {
        for step in steps {
            match step {
                Do::Read(cell) => log.push(self.cells[*cell].load()),
                Do::Write(cell) => self.cells[*cell].store(me),
                Do::Add(cell) => log.push(self.cells[*cell].fetch_add(1)),
                _ => {}
            }
        }
    }

    /// Returns the final contents.
    fn rest(&self, cx: &mut Locked<'_, Unlocked>) -> Log {
        let a = *self.a.lock(cx).0;
        let b = *self.b.lock(cx).0;
        let c = *self.c.read(cx).0;
        let state = *self.state.lock_leaf(cx);
        let thing = Arc::clone(&*self.slot.lock_leaf(cx));
        let thing = *thing.lock_leaf(cx);
        let flag = *self.flag.lock_leaf(cx);
        let safe = *self.safe.lock_leaf(cx);
        vec![a, b, c, self.cells[0].load(), self.cells[1].load(), state, flag, thing, safe]
    }
}

/// The outcome of a program: what all its threads found, or the deadlock.
type Outcome = Result<Vec<Log>, String>;

/// Returns every outcome that the search meets, and the number of schedules.
fn outcomes(program: &[Vec<Do>], bound: u8, reduce: bool) -> (BTreeSet<Outcome>, u64) {
    met_by(Bounded::new(bound, reduce), program, false)
}

fn met_by(search: Bounded, program: &[Vec<Do>], every_stop: bool) -> (BTreeSet<Outcome>, u64) {
    met_by_shared(&Shared::new(search), program, every_stop)
}

fn met_by_shared(search: &Shared<Bounded>, program: &[Vec<Do>], every_stop: bool) -> (BTreeSet<Outcome>, u64) {
    let seen = Arc::new(std::sync::Mutex::new(BTreeSet::new()));
    let (theirs, ours, program) = (Arc::clone(&seen), Arc::clone(&seen), program.to_vec());
    let ended = move |halt: Option<Halt>| {
        match halt {
            None => {}
            Some(Halt::Deadlock(who)) => drop(ours.lock().unwrap().insert(Err(who))),
            Some(other) => panic!("{other}"),
        }
        ControlFlow::Continue(())
    };
    Explore::default().run(search.clone(), ended, move || {
        let domain = Domain::checked(OnReport::Keep);
        lockdep::enter(&domain, "main", |cx| {
            let world = Arc::new(World::new(every_stop));
            let threads = program.iter().cloned().enumerate().map(|(index, steps)| {
                let world = Arc::clone(&world);
                cx.spawn("t", move |cx| {
                    let mut log = Log::new();
                    world.free(cx, index as u64 + 1, &steps, &mut log);
                    log
                })
            });
            let threads: Vec<_> = threads.collect();
            let mut logs: Vec<Log> = threads.into_iter().map(|thread| thread.join(cx).unwrap()).collect();
            logs.push(world.rest(cx));
            theirs.lock().unwrap().insert(Ok(logs));
        });
    });
    let search = search.borrow();
    assert_eq!(search.diverged, None);
    assert!(search.is_exhausted());
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (seen, search.counts().schedules)
}

fn simple() -> impl Strategy<Value = Do> {
    prop_oneof![(0..2usize).prop_map(Do::Read), (0..2usize).prop_map(Do::Write), (0..2usize).prop_map(Do::Add)]
}

/// Interrupts, and what their handlers may meet.
fn in_interrupts() -> impl Strategy<Value = Do> {
    let simples = || prop::collection::vec(simple(), 0..3);
    let leaf = || prop_oneof![simple(), simples().prop_map(Do::WithFlag), Just(Do::Flip(None)), Just(Do::Safe)];
    let leaves = move || prop::collection::vec(leaf(), 0..3);
    prop_oneof![
        3 => leaves().prop_map(Do::Interrupt),
        1 => leaves().prop_map(Do::Off),
        1 => simples().prop_map(Do::WithFlag),
        1 => Just(Do::Safe),
    ]
}

fn step() -> impl Strategy<Value = Do> {
    let simples = || prop::collection::vec(simple(), 0..2);
    let with_b = || simples().prop_map(Do::WithB);
    prop_oneof![
        2 => simple(),
        2 => prop::collection::vec(prop_oneof![simple(), with_b()], 0..3).prop_map(Do::WithA),
        2 => with_b(),
        1 => Just(Do::LookA),
        2 => (any::<bool>(), prop::collection::vec(prop_oneof![simple(), with_b()], 0..2)).prop_map(|(reads, steps)| Do::Shared(reads, steps)),
        1 => Just(Do::TryA),
        1 => Just(Do::Wait),
        1 => Just(Do::NotifyOne),
        1 => Just(Do::NotifyAll),
        1 => Just(Do::Sleep),
        2 => prop_oneof![Just(None), Just(Some(0)), Just(Some(1))].prop_map(Do::Flip),
        1 => Just(Do::Blindly),
        1 => Just(Do::Make),
        2 => any::<bool>().prop_map(Do::Use),
        1 => simples().prop_map(Do::Await),
        1 => Just(Do::Advance),
        4 => in_interrupts(),
        3 => Just(Do::Forget),
    ]
}

/// The number of random programs: the environment variable `PROGRAMS`, or 400.
fn programs() -> u32 {
    std::env::var("PROGRAMS").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: programs(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_reduced_search_meets_what_the_full_one_meets(
        program in prop::collection::vec(prop::collection::vec(step(), 0..4), 2..4)
    ) {
        for bound in 0..3 {
            let (full, schedules) = outcomes(&program, bound, false);
            let (reduced, fewer) = outcomes(&program, bound, true);
            prop_assert!(fewer <= schedules);
            prop_assert_eq!(full, reduced, "bound {}, {} against {} schedules", bound, schedules, fewer);
        }
    }
}

/// Programs of at most two threads with few steps: of these some have no schedule beyond a small bound.
fn few_steps() -> impl Strategy<Value = Vec<Vec<Do>>> {
    prop::collection::vec(prop::collection::vec(step(), 0..2), 1..3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: programs(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn beyond_a_complete_search_there_is_nothing(program in few_steps(), reduce in any::<bool>()) {
        for bound in 0..4 {
            let search = Shared::new(Bounded::new(bound, reduce));
            let met = met_by_shared(&search, &program, false);
            if search.borrow().is_complete() {
                prop_assert_eq!(&met, &outcomes(&program, 9, reduce), "bound {}", bound);
                prop_assert_eq!(&met.0, &outcomes(&program, 9, false).0, "bound {}", bound);
                break;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: programs() / 4, failure_persistence: None, ..ProptestConfig::default() })]

    /// With the usual lengths, programs as small as these would have only one block.
    #[test]
    fn searches_that_share_the_work_meet_what_one_search_meets(
        program in prop::collection::vec(prop::collection::vec(step(), 0..4), 2..4),
        points in 1..6usize,
        inner in prop::array::uniform3(1..4usize),
        jobs in prop::array::uniform3(1..4u32),
    ) {
        for bound in 0..3 {
            let (alone, _) = outcomes(&program, bound, true);
            // Each part has another number of searchers.
            let shares = (0..3).flat_map(|part| (0..jobs[part]).map(move |job| (part, job)));
            let share = |(part, job): (usize, u32)| {
                let bounded = Bounded::new(bound, true).share((part as u32, 3), (job, jobs[part]));
                met_by(bounded.in_blocks_of([points, inner[part]]), &program, false).0
            };
            let together: BTreeSet<Outcome> = shares.flat_map(share).collect();
            prop_assert_eq!(alone, together, "bound {}, blocks of {}", bound, points);
        }
    }
}

/// Programs of two threads, one of which raises interrupts.
fn interrupted() -> impl Strategy<Value = Vec<Vec<Do>>> {
    let step = || prop_oneof![1 => simple(), 2 => in_interrupts()];
    let raises = prop::collection::vec(step(), 0..2).prop_flat_map(|before| {
        prop::collection::vec(prop_oneof![Just(Do::Flip(None)), simple()], 1..3)
            .prop_map(move |handler| before.iter().cloned().chain([Do::Interrupt(handler)]).collect())
    });
    (raises, prop::collection::vec(step(), 1..3)).prop_map(|(raises, other)| vec![raises, other])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: programs(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_reduced_search_meets_what_the_full_one_meets_of_interrupts(program in interrupted()) {
        for bound in 0..3 {
            let (full, schedules) = outcomes(&program, bound, false);
            let (reduced, fewer) = outcomes(&program, bound, true);
            prop_assert!(fewer <= schedules);
            prop_assert_eq!(full, reduced, "bound {}, {} against {} schedules", bound, schedules, fewer);
        }
    }

    /// The explorer has a thread stop within a lock only where it must. With enough preemptions it meets what a search meets that
    /// has it stop everywhere.
    #[test]
    fn the_stops_within_a_lock_are_enough(program in interrupted()) {
        let (few, _) = met_by(Bounded::new(12, true), &program, false);
        let (all, _) = met_by(Bounded::new(12, true), &program, true);
        prop_assert_eq!(few, all);
    }
}

#[test]
fn a_higher_bound_meets_more_and_reduction_pays() {
    let thread = vec![Do::WithA(vec![Do::Write(0)]), Do::WithB(vec![Do::Write(1)]), Do::Read(0)];
    let program = vec![thread.clone(), thread.clone(), thread];
    let counts: Vec<(usize, u64, u64)> = (0..3)
        .map(|bound| {
            let (full, schedules) = outcomes(&program, bound, false);
            (full.len(), schedules, outcomes(&program, bound, true).1)
        })
        .collect();
    assert!(counts.windows(2).all(|pair| pair[0].0 < pair[1].0), "{counts:?}");
    assert!(counts.iter().all(|(_, full, reduced)| reduced < full), "{counts:?}");
}

#[test]
fn a_loop_without_end_is_a_livelock() {
    let program = || {
        let domain = Domain::checked(OnReport::Record);
        lockdep::enter(&domain, "main", |cx| {
            let world = Arc::new(World::new(false));
            let threads = [0, 1, 2].map(|me| {
                let world = Arc::clone(&world);
                cx.spawn("t", move |cx| {
                    let since = HistoryMark::now();
                    loop {
                        since.erase_except(&());
                        let mut flag = world.flag.lock_leaf(cx);
                        while *flag != me {
                            world.moved.wait_forgetting(&mut flag, None, since);
                        }
                        *flag = (me + 1) % 3;
                        world.moved.notify_all();
                    }
                })
            });
            threads.into_iter().for_each(|thread| thread.join(cx).unwrap());
        });
    };
    let (recorded, deviations) = Recorded::new(Bounded::new(1, true));
    let found = Explore::default().until_failure(recorded, program).unwrap_err();
    assert!(matches!(found, Halt::Livelock(..)), "{found:?}");
    // A replay recognises it at the same point.
    let replay = Replay::new(deviations.borrow().clone()).returning(true);
    assert_eq!(Explore::default().until_failure(replay, program).unwrap_err(), found);
}

#[test]
fn a_thread_that_only_reads_between_two_that_write() {
    let reads = || Do::WithA(vec![Do::Read(1)]);
    let program =
        [vec![Do::Shared(false, vec![Do::Add(1)])], vec![Do::WithA(vec![]), Do::WithA(vec![])], vec![reads(), reads()]];
    for bound in 0..4 {
        assert_eq!(outcomes(&program, bound, false).0, outcomes(&program, bound, true).0, "bound {bound}");
    }
}
