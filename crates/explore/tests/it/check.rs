//! `explore::check`, the one line that a test needs: its findings, its message, and the replay of its token.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use explore::{Closure, Faults, Options, Token, Tool, Watch, campaign, replay};
use lockdep::{AtomicBool, AtomicU64, Locked, Mutex, Unlocked, lock_classes, lock_order};

lock_classes! {
    class First = "first";
    class Left = "left";
    class Right = "right";
    leaf Account = "account";
}

lock_order! {
    root First;
    First => Left;
    Left => Right;
}

/// Returns the message with which a check panics.
#[track_caller]
fn fails(check: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(check)).expect_err("there is something to be found");
    *panic.downcast::<String>().expect("a message")
}

#[test]
fn what_holds_is_explored_up_to_the_bound() {
    let report = explore::check(|cx| {
        let sum = Arc::new(AtomicU64::new(0));
        let theirs = Arc::clone(&sum);
        let other = cx.spawn("other", move |_| {
            theirs.fetch_add(1);
        });
        sum.fetch_add(1);
        other.join(cx).unwrap();
        assert_eq!(sum.load(), 2);
    });
    assert_eq!(report.exhaustive_preemptions, Some(2));
    assert!(report.schedules > 1, "{}", report.schedules);
    assert!(report.program.starts_with("crates/explore/tests/it/check.rs:"), "{}", report.program);
}

/// Reads the balance, and pays if it was sufficient.
fn pays(cx: &mut Locked<'_, Unlocked>, balance: &Mutex<Account, u32>) {
    if *balance.lock_leaf(cx) >= 10 {
        let mut balance = balance.lock_leaf(cx);
        *balance = balance.checked_sub(10).expect("there is enough");
    }
}

#[test]
fn an_assertion_that_fails_in_some_schedule_is_reported_with_its_story() {
    let said = fails(|| {
        explore::check(|cx| {
            let balance = Arc::new(Mutex::new(10));
            let theirs = Arc::clone(&balance);
            let other = cx.spawn("other", move |cx| pays(cx, &theirs));
            pays(cx, &balance);
            other.join(cx).unwrap();
        });
    });
    for part in
        ["panic does not hold", "there is enough", "takes account", "EXPLORE_TOKEN=explore2.", "tests/it/check.rs"]
    {
        assert!(said.contains(part), "{part}\n{said}");
    }
    let token = said.split("EXPLORE_TOKEN=").nth(1).unwrap().split(' ').next().unwrap();
    let token = Token::read(token, &Tool::default()).expect("a token that was printed");
    assert!(!token.deviations.is_empty());
    // A token of another tool is rejected.
    let esw = Tool { name: "esw", ..Tool::default() };
    assert!(Token::read(&token.to_string(), &esw).is_err());
    let newer = Tool { version: "99.0.0", ..Tool::default() };
    assert!(Token::read(&token.to_string(), &newer).unwrap_err().to_string().contains("is from version"));
}

#[test]
fn an_inversion_of_locks_that_never_meet_is_found() {
    let said = fails(|| {
        explore::check(|cx| {
            let (left, right) = (Mutex::<Left, _>::new(()), Mutex::<Right, _>::new(()));
            let first = Mutex::<First, _>::new(()).with_try_lock();
            drop(right.lock(&mut left.lock(cx).1));
            let (_right, mut cx) = right.lock(cx);
            // A try is allowed anywhere, and its token does not show that the right lock is held.
            let (_first, mut cx) = first.try_lock(&mut cx).expect("nobody else knows it");
            let (_left, _cx) = left.lock(&mut cx);
        });
    });
    assert!(said.contains("lock-order does not hold"), "{said}");
}

#[test]
fn a_class_that_a_handler_takes_in_one_schedule_and_a_thread_in_another_is_found_and_replayed() {
    let program = Closure::new("an interrupt or not", |cx| {
        let (events, is_first) = (Arc::new(Mutex::<Account, u32>::new(0)), Arc::new(AtomicBool::new(true)));
        let threads = ["interrupted", "plain"].map(|name| {
            let (events, is_first) = (Arc::clone(&events), Arc::clone(&is_first));
            cx.spawn(name, move |cx| match (is_first.swap(false), name) {
                (true, "interrupted") => cx.interrupt(|cx| *events.lock_leaf(cx) += 1),
                (true, _) => *events.lock_leaf(cx) += 1,
                // The second thread does nothing: no schedule has both.
                (false, _) => {}
            })
        });
        threads.into_iter().for_each(|thread| thread.join(cx).unwrap());
    });
    let report = campaign(&program, &Options::default(), &Arc::new(Watch::default()));
    let violation = report.violations.first().expect("it is found between two schedules");
    assert!(violation.detail.contains("inconsistent lock state"), "{}", violation.detail);
    let token = Token::read(&violation.token, &Tool::default()).unwrap();
    assert_eq!(token.after.len(), 1, "the schedule that shows the other half");
    let story = replay(&[program], "here", &token).unwrap();
    assert_eq!((&*story.invariant, &story.detail), ("lock-order", &violation.detail));
}

#[test]
fn a_deadlock_is_found() {
    let said = fails(|| {
        explore::check(|cx| {
            let gate = Arc::new((Mutex::<Account, bool>::new(false), lockdep::Condvar::new()));
            let theirs = Arc::clone(&gate);
            let other = cx.spawn("other", move |cx| {
                *theirs.0.lock_leaf(cx) = true;
                // The mistake: it does not notify the waiter.
            });
            let mut open = gate.0.lock_leaf(cx);
            while !*open {
                gate.1.wait(&mut open);
            }
            drop(open);
            other.join(cx).unwrap();
        });
    });
    assert!(said.contains("progress does not hold"), "{said}");
    assert!(said.contains("deadlock! main waits for condition variable"), "{said}");
}

#[test]
fn each_operation_that_can_fail_fails() {
    let options = Options { faults: Faults::Each, ..Options::default() };
    let said = fails(|| {
        explore::check_with(&options, |cx| {
            let failed = cx.fails(|| "allocating a buffer".to_owned());
            assert!(!failed, "no buffer, and nobody looked");
        });
    });
    assert!(said.contains("faults       allocating a buffer"), "{said}");
}

#[test]
fn more_threads_than_the_limit_are_rejected() {
    let said = fails(|| {
        explore::check(|cx| {
            let threads: Vec<_> = (0..explore::MOST_THREADS).map(|_| cx.spawn("one of many", |_| ())).collect();
            threads.into_iter().for_each(|thread| thread.join(cx).unwrap());
        });
    });
    assert!(said.contains("129 threads were started; at most 128 can be explored"), "{said}");
}
