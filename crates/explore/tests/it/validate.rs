//! Tests of the state that a program reports to the explorer: each way to report too little is found.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use explore::{Found, Program, Run, StateMismatch, StatesReport, fingerprint, validate_states};
use lockdep::{Locked, Mutex, Unlocked, lock_classes, without_history};

lock_classes! {
    leaf Number = "number";
    leaf Other = "other lock";
}

/// The mistakes of two writers of a number, of which one is last.
#[derive(Clone, Copy, Debug)]
enum Writers {
    /// No mistake.
    Right,
    /// The digest of the lock omits the number.
    TellNothing,
    /// The number is stored where the explorer does not see it.
    HideIt,
    /// A thread forgets something and then uses it.
    ForgetTooMuch,
}

impl Program for Writers {
    fn name(&self) -> &str {
        "writers"
    }

    fn fingerprint(&self) -> u64 {
        fingerprint(&format!("{self:?}"))
    }

    fn run(&self, cx: &mut Locked<'_, Unlocked>, run: &Run<'_>) -> Vec<Found> {
        let how = *self;
        let told: fn(&u64) -> u64 = if matches!(how, Self::TellNothing) { |_| 0 } else { |number| *number };
        let (number, hidden) =
            (Arc::new(Mutex::<Number, u64>::new(0).with_state_digest(told)), Arc::new(AtomicU64::new(0)));
        let looked = Arc::new(Mutex::<Other, u64>::new(0).with_state_digest(|number| *number));
        let writers = [1, 2].map(|n| {
            let (number, hidden, looked) = (Arc::clone(&number), Arc::clone(&hidden), Arc::clone(&looked));
            cx.spawn("writer", move |cx| {
                without_history(|| match how {
                    Self::HideIt => {
                        drop(number.lock_leaf(cx));
                        hidden.store(n, Ordering::SeqCst);
                    }
                    _ => *number.lock_leaf(cx) = n,
                });
                let mut found = 0;
                without_history(|| {
                    found = *number.lock_leaf(cx);
                    if matches!(how, Self::ForgetTooMuch) { 0 } else { found }
                });
                *looked.lock_leaf(cx) += found * n;
            })
        });
        writers.into_iter().for_each(|writer| writer.join(cx).unwrap());
        let last = *number.lock_leaf(cx);
        run.set_result(|| format!("{last} {} {}", hidden.load(Ordering::SeqCst), *looked.lock_leaf(cx)));
        Vec::new()
    }
}

fn validated(how: Writers) -> Result<StatesReport, StateMismatch> {
    validate_states(&how, 7, 300)
}

#[test]
fn a_program_that_reports_everything_that_others_can_see_passes() {
    let report = validated(Writers::Right).unwrap_or_else(|mismatch| panic!("{mismatch}"));
    assert_eq!(report.schedules, 300);
    assert!(report.met_again > 100, "{report:?}");
}

#[test]
fn a_program_that_reports_too_little_does_not() {
    for how in [Writers::TellNothing, Writers::HideIt, Writers::ForgetTooMuch] {
        let mismatch = validated(how).expect_err("two states look like one");
        assert_eq!(mismatch.program, "writers");
        assert_ne!(mismatch.before, mismatch.now, "{how:?}");
        assert!(mismatch.to_string().contains("what the explorer takes for one state is two"), "{mismatch}");
    }
}
