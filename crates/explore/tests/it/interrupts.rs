//! Interrupts that land on a thread which holds the lock that their handler takes.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex as StdMutex};

use explore::schedulers::Bounded;
use explore::{Closure, Options, Token, Tool, Watch, campaign, replay};
use lockdep::{AtomicBool, Domain, Explore, Halt, Locked, Mutex, Unlocked, lock_classes};

lock_classes! {
    /// Taken with interrupts on.
    leaf Events = "events";
    /// Taken with interrupts off, as `spin_lock_irqsave` does.
    leaf irq SafeEvents = "safe events";
}

/// The driver marks, with the lock held, that it awaits an event; the handler takes the lock only while it does. So the
/// two deadlock if the interrupt lands on the driver's thread, between the two writes, and in no other case.
fn driver_and_device(cx: &mut Locked<'_, Unlocked>) {
    let (events, is_awaited) = (Arc::new(Mutex::<Events, u32>::new(0)), Arc::new(AtomicBool::new(false)));
    let (theirs, its) = (Arc::clone(&events), Arc::clone(&is_awaited));
    let driver = cx.spawn("driver", move |cx| {
        let mut events = theirs.lock_leaf(cx);
        its.swap(true);
        *events += 1;
        its.swap(false);
    });
    let hardware = cx.spawn("hardware", move |cx| {
        cx.interrupt(|cx| {
            if is_awaited.load() {
                *events.lock_leaf(cx) += 1;
            }
        });
    });
    for thread in [driver, hardware] {
        thread.join(cx).unwrap();
    }
}

#[test]
fn a_handler_that_waits_for_what_its_interrupted_thread_holds_is_found_by_one_line() {
    let panic = catch_unwind(AssertUnwindSafe(|| explore::check(driver_and_device))).expect_err("there is a deadlock");
    let text = *panic.downcast::<String>().expect("a message");
    for part in [
        "progress does not hold",
        "hardware waits for events, which driver holds",
        "driver was interrupted by hardware before",
        "raises an interrupt, and runs its handler",
        "EXPLORE_TOKEN=",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn its_token_replays() {
    let program = Closure::new("driver and device", driver_and_device);
    let report = campaign(&program, &Options::default(), &Arc::new(Watch::default()));
    let violation = report.violations.first().expect("there is a deadlock");
    assert_eq!(violation.invariant, "progress");
    let token = Token::read(&violation.token, &Tool::default()).unwrap();
    let story = replay(&[program], "here", &token).unwrap();
    assert_eq!((&*story.invariant, &story.detail), ("progress", &violation.detail));
}

#[test]
fn without_preemptions_nothing_is_found() {
    let options = Options { preemptions: 0, ..Options::default() };
    let report = explore::check_with(&options, driver_and_device);
    assert_eq!(report.exhaustive_preemptions, Some(0));
}

/// Every way in which an execution ends, of those with at most so many preemptions.
fn ends(bound: u8, program: impl Fn(&mut Locked<'_, Unlocked>) + Send + Sync + 'static) -> Vec<String> {
    let ends = Arc::new(StdMutex::new(Vec::new()));
    let theirs = Arc::clone(&ends);
    let ended = move |halt: Option<Halt>| {
        let end = halt.map_or_else(|| "ended".to_owned(), |halt| halt.to_string());
        let mut ends = theirs.lock().unwrap();
        if !ends.contains(&end) {
            ends.push(end);
        }
        ControlFlow::Continue(())
    };
    Explore::default().run(Bounded::new(bound, true), ended, move || {
        lockdep::enter(&Domain::exploring(None), "main", |cx| program(cx));
    });
    let mut ends = std::mem::take(&mut *ends.lock().unwrap());
    ends.sort();
    ends
}

#[test]
fn a_lock_that_is_taken_and_released_at_once_is_interrupted_in_between() {
    let program = |cx: &mut Locked<'_, Unlocked>| {
        let events = Arc::new(Mutex::<Events, u32>::new(0));
        let theirs = Arc::clone(&events);
        let hardware = cx.spawn("hardware", move |cx| cx.interrupt(|cx| *theirs.lock_leaf(cx) += 1));
        *events.lock_leaf(cx) += 1;
        hardware.join(cx).unwrap();
    };
    let ends = ends(2, program);
    let [deadlock, ended] = &ends[..] else { panic!("{ends:?}") };
    assert_eq!(ended, "ended");
    assert!(deadlock.contains("hardware waits for events, which main holds"), "{deadlock}");
    assert!(deadlock.contains("main was interrupted by hardware"), "{deadlock}");
}

#[test]
fn a_lock_that_is_taken_with_interrupts_off_is_not() {
    let program = |cx: &mut Locked<'_, Unlocked>| {
        let safe = Arc::new(Mutex::<SafeEvents, u32>::new(0));
        let events = Arc::new(Mutex::<Events, u32>::new(0));
        let theirs = (Arc::clone(&safe), Arc::clone(&events));
        let hardware = cx.spawn("hardware", move |cx| {
            cx.interrupt(|cx| {
                *theirs.0.lock_leaf(cx) += 1;
                *theirs.1.lock_leaf(cx) += 1;
            });
        });
        *safe.lock_leaf(cx) += 1;
        cx.interrupts_off(|cx| *events.lock_leaf(cx) += 1);
        hardware.join(cx).unwrap();
    };
    assert_eq!(ends(3, program), ["ended"]);
}

#[test]
fn a_device_that_is_started_with_the_lock_held_interrupts_whoever_starts_it() {
    let program = |cx: &mut Locked<'_, Unlocked>| {
        let (events, is_started) = (Arc::new(Mutex::<Events, u32>::new(0)), Arc::new(AtomicBool::new(false)));
        let (theirs, its) = (Arc::clone(&events), Arc::clone(&is_started));
        let hardware = cx.spawn("hardware", move |cx| {
            if its.load() {
                cx.interrupt(|cx| *theirs.lock_leaf(cx) += 1);
            }
        });
        {
            let mut events = events.lock_leaf(cx);
            *events += 1;
            is_started.swap(true);
        }
        hardware.join(cx).unwrap();
    };
    let ends = ends(1, program);
    assert!(ends.iter().any(|end| end.contains("main was interrupted by hardware")), "{ends:?}");
}

#[test]
fn a_thread_that_has_gone_on_was_not_interrupted() {
    // The handler takes the lock only if the thread has taken a step since the handler began: then the thread
    // ran on another processor, and releases the lock.
    let program = |cx: &mut Locked<'_, Unlocked>| {
        let (events, flag) = (Arc::new(Mutex::<Events, u32>::new(0)), Arc::new(AtomicBool::new(false)));
        let (theirs, its) = (Arc::clone(&events), Arc::clone(&flag));
        let hardware = cx.spawn("hardware", move |cx| {
            cx.interrupt(|cx| {
                if !its.load() && its.load() {
                    *theirs.lock_leaf(cx) += 1;
                }
            });
        });
        let guard = events.lock_leaf(cx);
        flag.swap(true);
        drop(guard);
        hardware.join(cx).unwrap();
    };
    assert_eq!(ends(3, program), ["ended"]);
}
