//! The reductions lose nothing: on small programs of every kind, the search with them meets exactly the
//! partial orders that the search without them meets, at every bound.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use check::schedulers::{Bounded, Shared};
use lockdep::{
    AtomicU64, Condvar, Deadline, Domain, Explore, Halt, Locked, Mutex, OnReport, Unlocked, lock_classes, lock_order,
};
use proptest::prelude::*;

lock_classes! {
    class A = "a";
    class B = "b";
    leaf L = "l";
}

lock_order! {
    root A;
    A => B;
}

/// What a thread of a small program does.
#[derive(Clone, Debug)]
enum Do {
    /// Takes the first lock, does these, and lets go of it.
    WithA(Vec<Do>),
    /// The same with the second.
    WithB(Vec<Do>),
    TryA,
    Read(usize),
    Write(usize),
    /// Waits for a notification, or for time.
    Wait,
    NotifyOne,
    NotifyAll,
    Sleep,
}

struct World {
    a: Mutex<A, ()>,
    b: Mutex<B, ()>,
    cells: [AtomicU64; 2],
    state: Mutex<L, u64>,
    moved: Condvar,
}

impl World {
    fn new() -> Self {
        Self {
            a: Mutex::new(()).tried(),
            b: Mutex::new(()),
            cells: [AtomicU64::new(0), AtomicU64::new(0)],
            state: Mutex::new(0),
            moved: Condvar::new(),
        }
    }

    fn free(&self, cx: &mut Locked<'_, Unlocked>, steps: &[Do]) {
        for step in steps {
            match step {
                Do::WithA(steps) => {
                    let (_a, mut cx) = self.a.lock(cx);
                    self.under_a(&mut cx, steps);
                }
                Do::WithB(steps) => {
                    let (_b, _cx) = self.b.lock(cx);
                    self.simple(steps);
                }
                Do::TryA => {
                    if self.a.try_lock(cx).is_some() {
                        self.cells[0].fetch_add(1);
                    }
                }
                Do::Wait => {
                    let deadline = Deadline::after(Duration::from_secs(1));
                    self.moved.wait_until(&mut self.state.lock_leaf(cx), &deadline);
                }
                Do::NotifyOne => {
                    *self.state.lock_leaf(cx) += 1;
                    self.moved.notify_one();
                }
                Do::NotifyAll => {
                    *self.state.lock_leaf(cx) += 1;
                    self.moved.notify_all();
                }
                Do::Sleep => Deadline::after(Duration::from_secs(1)).sleep(cx),
                step => self.simple(std::slice::from_ref(step)),
            }
        }
    }

    fn under_a(&self, cx: &mut Locked<'_, A>, steps: &[Do]) {
        for step in steps {
            match step {
                Do::WithB(steps) => {
                    let (_b, _cx) = self.b.lock(cx);
                    self.simple(steps);
                }
                step => self.simple(std::slice::from_ref(step)),
            }
        }
    }

    fn simple(&self, steps: &[Do]) {
        for step in steps {
            match step {
                Do::Read(cell) => drop(self.cells[*cell].load()),
                Do::Write(cell) => self.cells[*cell].store(1),
                _ => {}
            }
        }
    }
}

/// Every partial order that the search meets, and in how many schedules.
fn traces(program: &[Vec<Do>], bound: u8, reduce: bool) -> (BTreeSet<u64>, u64) {
    let search = Shared::new(Bounded::new(bound, reduce));
    let seen = Rc::new(RefCell::new(BTreeSet::new()));
    let (theirs, program) = (Rc::clone(&seen), program.to_vec());
    let ended = move |halt: Option<Halt>| {
        assert_eq!(halt, None);
        theirs.borrow_mut().insert(lockdep::look(|model| model.trace()));
        ControlFlow::Continue(())
    };
    Explore::default().run(search.clone(), ended, move || {
        let domain = Domain::checked(OnReport::Record);
        lockdep::enter(&domain, "main", |cx| {
            let world = Arc::new(World::new());
            let threads: Vec<_> = program
                .iter()
                .cloned()
                .map(|steps| {
                    let world = Arc::clone(&world);
                    cx.spawn("t", move |cx| world.free(cx, &steps))
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join(cx).unwrap());
        });
    });
    let search = search.borrow();
    assert_eq!(search.diverged, None);
    assert!(search.is_exhausted());
    (seen.take(), search.counts().schedules)
}

fn simple() -> impl Strategy<Value = Do> {
    prop_oneof![(0..2usize).prop_map(Do::Read), (0..2usize).prop_map(Do::Write)]
}

fn step() -> impl Strategy<Value = Do> {
    let simples = || prop::collection::vec(simple(), 0..2);
    let with_b = || simples().prop_map(Do::WithB);
    prop_oneof![
        2 => simple(),
        2 => prop::collection::vec(prop_oneof![simple(), with_b()], 0..3).prop_map(Do::WithA),
        2 => with_b(),
        1 => Just(Do::TryA),
        1 => Just(Do::Wait),
        1 => Just(Do::NotifyOne),
        1 => Just(Do::NotifyAll),
        1 => Just(Do::Sleep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_reduced_search_meets_what_the_full_one_meets(
        program in prop::collection::vec(prop::collection::vec(step(), 0..3), 2..4)
    ) {
        for bound in 0..3 {
            let (full, schedules) = traces(&program, bound, false);
            let (reduced, fewer) = traces(&program, bound, true);
            prop_assert!(fewer <= schedules);
            prop_assert_eq!(full, reduced, "bound {}, {} against {} schedules", bound, schedules, fewer);
        }
    }
}

#[test]
fn a_higher_bound_meets_more_and_reduction_pays() {
    let thread = vec![Do::WithA(vec![Do::Write(0)]), Do::WithB(vec![Do::Write(1)]), Do::Read(0)];
    let program = vec![thread.clone(), thread.clone(), thread];
    let counts: Vec<(usize, u64, u64)> = (0..3)
        .map(|bound| {
            let (full, schedules) = traces(&program, bound, false);
            (full.len(), schedules, traces(&program, bound, true).1)
        })
        .collect();
    assert!(counts.windows(2).all(|pair| pair[0].0 < pair[1].0), "{counts:?}");
    assert!(counts.iter().all(|(_, full, reduced)| reduced < full), "{counts:?}");
}
