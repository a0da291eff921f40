//! Every kind of report, each from the smallest program that causes it, with its text.
//!
//! Types prevent nearly all of these. These tests bypass the types in the allowed way: a try is allowed anywhere and
//! returns a token at the class of the tried lock, whatever else is held.

use std::sync::Arc;

use lockdep::{
    Condvar, Domain, EdgeInfo, Locked, Mutex, MutexGuard, OnReport, Oracle, Report, ReportKind, RwLock, Shadow,
    Unlocked, WaitMap, enter, lock_classes, lock_order,
};

lock_classes! {
    class Root = "root";
    class Outer = "outer";
    class Queue = "queue";
    class Middle = "middle";
    class Inner = "inner";
    class InnerNested = "inner, nested" nested in Inner;
    leaf Leaf = "leaf";
    leaf OtherLeaf = "other leaf";
    leaf irq IrqLeaf = "leaf of interrupts";
}

lock_order! {
    root Root;
    Root => Outer;
    Outer => Queue;
    Queue => Middle;
    Middle => Inner;
    Inner => InnerNested;
}

/// One lock of each class.
#[derive(Default)]
struct Locks {
    root: Lock<Root>,
    outer: Lock<Outer>,
    middle: Lock<Middle>,
    inner: Lock<Inner>,
    leaf: Lock<Leaf>,
    other_leaf: Lock<OtherLeaf>,
}

struct Lock<C>(Mutex<C, ()>);

impl<C: lockdep::Class> Default for Lock<C> {
    fn default() -> Self {
        Self(Mutex::new(()))
    }
}

fn domain() -> Arc<Domain> {
    Domain::checked(OnReport::Record)
}

/// Runs a program on a thread called `main` and returns the checker's reports.
fn reports(domain: &Arc<Domain>, story: impl FnOnce(&mut Locked<'_, Unlocked>)) -> Vec<Report> {
    enter(domain, "main", story);
    domain.take_reports()
}

#[track_caller]
fn only(reports: Vec<Report>) -> Report {
    assert_eq!(reports.len(), 1, "{reports:#?}");
    reports.into_iter().next().unwrap()
}

/// The report's text, with places in this file as lines counted from `base`.
fn text(report: &Report, base: u32) -> String {
    let here = format!("{}:", file!());
    let text = report.to_string();
    let mut parts = text.split(&here);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // `LINE:COLUMN` and what follows.
        let end = part.find(|c: char| c != ':' && !c.is_ascii_digit()).unwrap_or(part.len());
        let line: u32 = part[..end].split(':').next().unwrap().parse().unwrap();
        out.push_str(&format!("+{}{}", line - base, &part[end..]));
    }
    out
}

fn edges(of: &[(&'static str, &'static str)]) -> Vec<EdgeInfo> {
    of.iter().map(|&(outer, inner)| EdgeInfo { outer, inner }).collect()
}

#[test]
fn a_cycle_of_two_threads_that_never_met_is_reported() {
    let (domain, locks) = (domain(), Locks::default());
    // Given a thread that took `outer`, then `inner`, and ended,
    let base = line!();
    enter(&domain, "first", |cx| {
        let (_o, mut cx) = locks.outer.0.lock(cx);
        let _i = locks.inner.0.lock(&mut cx);
    });
    // when another thread holds `inner` and has a token that reaches `outer`,
    enter(&domain, "second", |cx| {
        let (_i, mut cx) = locks.inner.0.lock(cx);
        let (_r, mut cx) = locks.root.0.try_lock(&mut cx).unwrap();
        let _o = locks.outer.0.lock(&mut cx);
    });
    // then both chains are reported, with threads and places.
    let report = only(domain.take_reports());
    assert_eq!(
        text(&report, base),
        "\
lockdep: possible circular locking dependency detected
thread second is trying to take outer at +9
it holds, outermost first:
  inner                    taken at +7
  root                     taken at +8
which is already depended on the other way round:
  outer (+2)
    then inner (+3) in thread first
possible schedule:
  this thread                      the other
  lock(inner)
                                   lock(outer)
                                   lock(inner)
  lock(outer)
  *** deadlock ***"
    );
}

#[test]
fn a_cycle_through_a_third_class_names_every_edge() {
    let (domain, locks) = (domain(), Locks::default());
    let base = line!();
    enter(&domain, "a", |cx| {
        let (_o, mut cx) = locks.outer.0.lock(cx);
        let _m = locks.middle.0.lock(&mut cx);
    });
    enter(&domain, "b", |cx| {
        let (_m, mut cx) = locks.middle.0.lock(cx);
        let _i = locks.inner.0.lock(&mut cx);
    });
    enter(&domain, "c", |cx| {
        let (_i, mut cx) = locks.inner.0.lock(cx);
        let (_r, mut cx) = locks.root.0.try_lock(&mut cx).unwrap();
        let _o = locks.outer.0.lock(&mut cx);
    });
    let text = text(&only(domain.take_reports()), base);
    let chain = "\
  outer (+2)
    then middle (+3) in thread a
  middle (+6)
    then inner (+7) in thread b
";
    assert!(text.contains(chain), "{text}");
}

#[test]
fn a_cycle_is_reported_once_and_the_edge_that_closes_it_is_not_kept() {
    let (domain, locks) = (domain(), Locks::default());
    let story = |cx: &mut Locked<'_, Unlocked>| {
        {
            let (_o, mut cx) = locks.outer.0.lock(cx);
            let (_m, mut cx) = locks.middle.0.lock(&mut cx);
            let _i = locks.inner.0.lock(&mut cx);
        }
        // Both held locks contradict the order; the first is reported.
        let (_m, mut cx) = locks.middle.0.lock(cx);
        let (_i, mut cx) = locks.inner.0.lock(&mut cx);
        let (_r, mut cx) = locks.root.0.try_lock(&mut cx).unwrap();
        let _o = locks.outer.0.lock(&mut cx);
    };
    enter(&domain, "main", |cx| {
        story(cx);
        story(cx);
    });
    let report = only(domain.take_reports());
    assert!(matches!(report.kind, ReportKind::Cycle { .. }));
    assert_eq!(
        domain.edges(),
        edges(&[("middle", "inner"), ("outer", "inner"), ("outer", "middle"), ("root", "outer")])
    );
}

#[test]
fn recursion_on_one_instance_panics_rather_than_hang() {
    let (domain, locks) = (domain(), Locks::default());
    let base = line!();
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        enter(&domain, "main", |cx| {
            let (_i, mut cx) = locks.inner.0.lock(cx);
            let (_m, mut cx) = locks.middle.0.try_lock(&mut cx).unwrap();
            let _again = locks.inner.0.lock(&mut cx);
        });
    }));
    let expected = "\
lockdep: possible recursive locking detected
thread main is trying to take inner at +5
it holds, outermost first:
  inner                    taken at +3
  middle                   taken at +4";
    let report = only(domain.take_reports());
    assert_eq!(text(&report, base), expected);
    assert_eq!(panic.unwrap_err().downcast_ref::<String>(), Some(&report.to_string()));
    // Nothing stays locked, neither in fact nor in the checker's records.
    assert!(reports(&domain, |cx| drop(locks.inner.0.lock(cx))).is_empty());
}

#[test]
fn reading_twice_is_recursion_too() {
    // A writer that waits in between would stop the second read.
    let (domain, locks) = (domain(), Locks::default());
    let table = RwLock::<Inner, _>::new(());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        enter(&domain, "main", |cx| {
            let (_t, mut cx) = table.read(cx);
            let (_m, mut cx) = locks.middle.0.try_lock(&mut cx).unwrap();
            let _again = table.read(&mut cx);
        });
    }));
    assert!(panic.is_err());
    assert_eq!(only(domain.take_reports()).kind, ReportKind::Recursion);
}

#[test]
fn two_locks_of_a_class_need_declared_nesting() {
    let (domain, one, two) = (domain(), Locks::default(), Locks::default());
    let base = line!();
    let reports = reports(&domain, |cx| {
        let (_i, mut cx) = one.inner.0.lock(cx);
        let (_m, mut cx) = one.middle.0.try_lock(&mut cx).unwrap();
        let _other = two.inner.0.lock(&mut cx);
    });
    let report = only(reports);
    assert_eq!(report.kind, ReportKind::SameClass);
    assert_eq!(
        text(&report, base),
        "\
lockdep: possible recursive locking detected
thread main is trying to take inner at +4
it holds, outermost first:
  inner                    taken at +2
  middle                   taken at +3"
    );
}

/// Takes one lock of the class, then the other as nested in it.
fn nest(cx: &mut Locked<'_, Unlocked>, first: &Mutex<Inner, ()>, second: &Mutex<Inner, ()>) {
    let (_first, mut cx) = first.lock(cx);
    let _second = second.lock_nested::<InnerNested, _>(&mut cx);
}

#[test]
fn declared_nesting_goes_from_lower_to_higher_rank() {
    let domain = domain();
    let ranked = |rank| Mutex::<Inner, _>::with_rank((), rank);
    let (low, high, low_too) = (ranked(1), ranked(2), ranked(1));
    assert!(reports(&domain, |cx| nest(cx, &low, &high)).is_empty());
    assert_eq!(domain.edges(), edges(&[("inner", "inner, nested")]));

    for (first, second) in [(&high, &low), (&low, &low_too)] {
        let report = only(reports(&domain, |cx| nest(cx, first, second)));
        assert_eq!(report.kind, ReportKind::NestingRank);
        let text = report.to_string();
        assert!(
            text.starts_with(
                "lockdep: nesting against its declared rank\nthread main is trying to take inner, nested at "
            ),
            "{text}"
        );
    }
}

#[test]
fn nothing_is_taken_under_a_leaf() {
    // Given a leaf that was only tried, whose token is at the leaf,
    let (domain, locks) = (domain(), Locks::default());
    let base = line!();
    let reports = reports(&domain, |cx| {
        let (_l, mut cx) = locks.leaf.0.try_lock(cx).unwrap();
        let _other = locks.other_leaf.0.lock_leaf(&mut cx);
    });
    let report = only(reports);
    assert_eq!(report.kind, ReportKind::UnderLeaf);
    assert_eq!(
        text(&report, base),
        "\
lockdep: lock taken under a leaf lock
thread main is trying to take other leaf at +3
it holds, outermost first:
  leaf                     taken at +2"
    );
    // then there is no other report about it: leaves have no place in the order.
    assert_eq!(domain.edges(), []);
}

#[test]
fn locking_in_atomic_context_is_reported_and_trying_and_leaves_are_not() {
    let (domain, locks) = (domain(), Locks::default());
    let base = line!();
    let reports = reports(&domain, |cx| {
        cx.atomic(|cx| {
            drop(locks.leaf.0.lock_leaf(cx));
            let (_r, mut cx) = locks.root.0.try_lock(cx).unwrap();
            let _o = locks.outer.0.lock(&mut cx);
        });
        // Outside of it everything is as before.
        drop(locks.outer.0.lock(cx));
    });
    let report = only(reports);
    assert_eq!(
        text(&report, base),
        "\
lockdep: sleeping in atomic context
thread main is trying to take outer at +5
it holds, outermost first:
  root                     taken at +4"
    );
}

#[test]
fn every_kind_of_wait_in_atomic_context_is_reported() {
    let (domain, locks, condvar) = (domain(), Locks::default(), Condvar::new());
    let past = lockdep::Deadline::after(std::time::Duration::ZERO);
    let base = line!();
    let reports = reports(&domain, |cx| {
        cx.atomic(|cx| {
            cx.might_wait();
            condvar.wait_until(&mut locks.leaf.0.lock_leaf(cx), &past);
            let (_r, cx) = locks.root.0.try_lock(cx).unwrap();
            drop(cx.spawn("thread", |_| ()));
        });
    });
    let texts: Vec<_> = reports.iter().map(|r| text(r, base)).collect();
    assert_eq!(
        texts,
        [
            "lockdep: sleeping in atomic context\nthread main waits in atomic context at +3\nit holds nothing",
            "lockdep: sleeping in atomic context\nthread main waits for a condition in atomic context at +4\n\
             it holds, outermost first:\n  leaf                     taken at +4",
            "lockdep: sleeping in atomic context\nthread main starts a thread in atomic context at +6\n\
             it holds, outermost first:\n  root                     taken at +5",
        ]
    );
}

#[test]
fn draining_a_queue_with_what_a_handler_takes_is_a_cycle() {
    let (domain, locks, map) = (domain(), Locks::default(), WaitMap::<Queue>::new());
    // Given a handler that takes `outer`, as a handler may once it has tried its way to a token,
    let base = line!();
    enter(&domain, "handler", |cx| {
        let (_map, mut cx) = map.run(cx);
        let (_r, mut cx) = locks.root.0.try_lock(&mut cx).unwrap();
        let _o = locks.outer.0.lock(&mut cx);
    });
    assert_eq!(domain.take_reports(), []);
    // when a thread drains the queue with `outer` held, and no handler runs,
    let reports = reports(&domain, |cx| {
        let (_o, mut cx) = locks.outer.0.lock(cx);
        map.drain(&mut cx);
    });
    // then the deadlock is reported that would happen if one did.
    let text = text(&only(reports), base);
    assert!(
        text.starts_with(
            "\
lockdep: possible circular locking dependency detected
thread main is trying to take queue at +10
it holds, outermost first:
  outer                    taken at +9
which is already depended on the other way round:
  queue (+2)
    then outer (+4) in thread handler
"
        ),
        "{text}"
    );
}

#[test]
fn a_handler_that_drains_its_own_queue_is_stopped() {
    let (domain, locks, map) = (domain(), Locks::default(), WaitMap::<Queue>::new());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        enter(&domain, "handler", |cx| {
            let (_map, mut cx) = map.run(cx);
            let (_r, mut cx) = locks.root.0.try_lock(&mut cx).unwrap();
            map.drain(&mut cx);
        });
    }));
    assert!(panic.is_err());
    assert_eq!(only(domain.take_reports()).kind, ReportKind::Recursion);
}

#[test]
fn draining_with_a_lock_that_no_handler_takes_is_allowed() {
    let (domain, locks, map) = (domain(), Locks::default(), WaitMap::<Queue>::new());
    let reports = reports(&domain, |cx| {
        {
            let (_map, mut cx) = map.run(cx);
            drop(locks.inner.0.lock(&mut cx));
        }
        let (_o, mut cx) = locks.outer.0.lock(cx);
        map.drain(&mut cx);
    });
    assert_eq!(reports, []);
    assert_eq!(domain.edges(), edges(&[("outer", "queue"), ("queue", "inner")]));
}

#[test]
fn a_handler_starts_with_nothing_held() {
    let (domain, locks, map) = (domain(), Locks::default(), WaitMap::<Queue>::new());
    let base = line!();
    let reports = reports(&domain, |cx| {
        // A guard that is forgotten is held for ever, though the token is free again.
        std::mem::forget(locks.outer.0.lock(cx).0);
        let _map = map.run(cx);
    });
    assert_eq!(
        text(&only(reports), base),
        "\
lockdep: locks held where none may be
thread main must hold nothing at +4
it holds, outermost first:
  outer                    taken at +3"
    );
}

#[test]
fn an_assertion_that_a_lock_is_held_is_about_the_instance() {
    let (domain, one, two) = (domain(), Locks::default(), Locks::default());
    let base = line!();
    let reports = reports(&domain, |cx| {
        let (_i, cx) = one.inner.0.lock(cx);
        one.inner.0.assert_held(&cx);
        two.inner.0.assert_held(&cx);
    });
    assert_eq!(
        text(&only(reports), base),
        "\
lockdep: a lock that must be held is not
thread main must hold inner at +4
it holds, outermost first:
  inner                    taken at +2"
    );
}

#[test]
fn a_try_adds_no_order_but_what_is_taken_under_it_does() {
    let (domain, locks) = (domain(), Locks::default());
    let reports = reports(&domain, |cx| {
        let (_i, mut cx) = locks.inner.0.lock(cx);
        let (_m, mut cx) = locks.middle.0.try_lock(&mut cx).unwrap();
        drop(locks.leaf.0.lock_leaf(&mut cx));
    });
    assert_eq!(reports, []);
    assert_eq!(domain.edges(), edges(&[("inner", "leaf"), ("middle", "leaf")]));
}

#[test]
fn a_try_of_a_lock_that_the_thread_holds_fails_without_a_report() {
    let (domain, locks) = (domain(), Locks::default());
    let reports = reports(&domain, |cx| {
        let (_i, mut cx) = locks.inner.0.lock(cx);
        assert!(locks.inner.0.try_lock(&mut cx).is_none());
    });
    assert_eq!(reports, []);
}

#[test]
fn waiting_with_a_lock_that_was_taken_under_the_released_one_is_a_cycle() {
    // A wait releases `middle` and takes it again: with `inner` held, here.
    let (domain, locks, condvar) = (domain(), Locks::default(), Condvar::new());
    let past = lockdep::Deadline::after(std::time::Duration::ZERO);
    let base = line!();
    let reports = reports(&domain, |cx| {
        let (_o, mut cx) = locks.outer.0.lock(cx);
        let (mut middle, mut cx) = locks.middle.0.lock(&mut cx);
        condvar.wait_until(&mut middle, &past);
        let _i = locks.inner.0.lock(&mut cx);
        condvar.wait_until(&mut middle, &past);
    });
    let text = text(&only(reports), base);
    assert!(
        text.starts_with(
            "\
lockdep: possible circular locking dependency detected
thread main is trying to take middle at +6
it holds, outermost first:
  outer                    taken at +2
  inner                    taken at +5
which is already depended on the other way round:
  middle (+3)
    then inner (+5) in thread main
"
        ),
        "{text}"
    );
}

#[test]
fn a_domain_that_panics_keeps_the_report_too() {
    let (domain, locks) = (Domain::checked(OnReport::Panic), Locks::default());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        enter(&domain, "main", |cx| locks.inner.0.assert_held(cx));
    }));
    let report = only(domain.take_reports());
    assert_eq!(panic.unwrap_err().downcast_ref::<String>(), Some(&report.to_string()));
}

#[test]
fn a_thread_that_unwinds_is_not_made_to_panic_again() {
    struct Cleanup<'a, 't>(&'a Locks, Option<(MutexGuard<'t, ()>, Locked<'t, Inner>)>);
    impl Drop for Cleanup<'_, '_> {
        fn drop(&mut self) {
            if let Some((_guard, cx)) = &self.1 {
                self.0.outer.0.assert_held(cx);
            }
        }
    }
    let (domain, locks) = (Domain::checked(OnReport::Panic), Locks::default());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        enter(&domain, "main", |cx| {
            let _cleanup = Cleanup(&locks, Some(locks.inner.0.lock(cx)));
            panic!("first");
        });
    }));
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"first"));
    assert!(matches!(only(domain.take_reports()).kind, ReportKind::NotHeld { .. }));
}

#[test]
fn an_unchecked_domain_reports_nothing_and_keeps_nothing() {
    let (domain, locks, other) = (Domain::unchecked(), Locks::default(), Locks::default());
    let reports = reports(&domain, |cx| {
        cx.might_wait();
        locks.inner.0.assert_held(cx);
        cx.atomic(|cx| {
            let (_i, mut cx) = locks.inner.0.try_lock(cx).unwrap();
            let (_r, mut cx) = locks.root.0.try_lock(&mut cx).unwrap();
            drop(locks.outer.0.lock(&mut cx));
            let _same = other.inner.0.lock(&mut cx);
        });
    });
    assert_eq!(reports, []);
    assert_eq!(domain.edges(), []);
}

#[test]
fn threads_share_the_domain_of_the_thread_that_started_them() {
    let (domain, locks) = (domain(), Arc::new(Locks::default()));
    enter(&domain, "main", |cx| {
        let theirs = Arc::clone(&locks);
        let thread = cx.spawn("theirs", move |cx| {
            let name = cx.thread_name().to_owned();
            let (_m, mut cx) = theirs.middle.0.lock(cx);
            let _i = theirs.inner.0.lock(&mut cx);
            name
        });
        assert_eq!(thread.join(cx).unwrap(), "theirs");
    });
    assert_eq!(domain.edges(), edges(&[("middle", "inner")]));
}

#[test]
fn a_stated_invariant_that_does_not_hold_is_reported_by_its_name() {
    let (domain, locks) = (domain(), Locks::default());
    let base = line!();
    let reports = reports(&domain, |cx| {
        let (_i, cx) = locks.inner.0.lock(cx);
        cx.ensure("load-once", || true, || unreachable!("it holds"));
        cx.ensure("load-once", || false, || "pf0 vf1 is loaded".to_owned());
    });
    let report = only(reports);
    assert_eq!(report.invariant(), "load-once");
    assert_eq!(
        text(&report, base),
        "lockdep: an invariant does not hold\nload-once: pf0 vf1 is loaded\nin thread main at +4"
    );
}

#[test]
fn reports_about_locks_break_the_invariant_lock_order() {
    let (domain, locks) = (domain(), Locks::default());
    let reports = reports(&domain, |cx| locks.inner.0.assert_held(cx));
    assert_eq!(only(reports).invariant(), "lock-order");
}

#[test]
fn nothing_is_computed_for_an_invariant_where_nothing_is_checked() {
    let domain = Domain::unchecked();
    let reports = reports(&domain, |cx| {
        assert!(!cx.is_checked());
        cx.ensure("load-once", || unreachable!("nobody checks"), || unreachable!("nobody checks"));
    });
    assert_eq!(reports, []);
    let shadow = Shadow::new(1);
    enter(&domain, "main", |cx| shadow.note(cx, |value| *value = 2));
    assert_eq!(shadow.with(|value| *value), 1);
    enter(&self::domain(), "main", |cx| {
        assert!(cx.is_checked());
        shadow.note(cx, |value| *value = 2);
    });
    assert_eq!(shadow.with(|value| *value), 2);
}

#[test]
fn a_broken_invariant_panics_where_reports_panic() {
    let domain = Domain::checked(OnReport::Panic);
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        enter(&domain, "main", |cx| cx.ensure("no-leak", || false, || "a port".to_owned()));
    }));
    let report = only(domain.take_reports());
    assert_eq!(panic.unwrap_err().downcast_ref::<String>(), Some(&report.to_string()));
}

#[test]
fn an_explorers_domain_keeps_reports_and_goes_on() {
    let (domain, locks) = (Domain::exploring(None), Locks::default());
    let reports = reports(&domain, |cx| {
        locks.inner.0.assert_held(cx);
        cx.ensure("no-leak", || false, || "a port".to_owned());
        assert!(!cx.fails(|| unreachable!("nobody decides what fails")));
    });
    let invariants: Vec<_> = reports.iter().map(Report::invariant).collect();
    assert_eq!(invariants, ["lock-order", "no-leak"]);
    // A thread that would wait for ever panics all the same.
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        enter(&domain, "main", |cx| {
            let (_m, mut cx) = locks.inner.0.lock(cx);
            let (_r, mut cx) = locks.root.0.try_lock(&mut cx).unwrap();
            let _again = locks.inner.0.lock(&mut cx);
        });
    }));
    assert!(panic.is_err());
}

#[test]
fn the_oracle_receives_the_name_and_the_thread_of_what_can_fail() {
    #[derive(Debug)]
    struct Once(&'static str);
    impl Oracle for Once {
        fn fails(&self, thread: &str, place: &str) -> bool {
            thread == "main" && place == self.0
        }
    }
    let domain = Domain::exploring(Some(Arc::new(Once("load ib pf0 vf1"))));
    let fails = |cx: &mut Locked<'_, Unlocked>| ["vf0", "vf1"].map(|vf| cx.fails(|| format!("load ib pf0 {vf}")));
    assert_eq!(enter(&domain, "main", fails), [false, true]);
    assert_eq!(enter(&domain, "other", fails), [false, false]);
}

#[test]
fn a_class_that_a_handler_takes_must_be_taken_with_interrupts_off() {
    let (domain, locks) = (domain(), Locks::default());
    let base = line!();
    let takes = |cx: &mut Locked<'_, Unlocked>| drop(locks.leaf.0.lock_leaf(cx));
    let interrupts = |cx: &mut Locked<'_, Unlocked>| cx.interrupt(|cx| drop(locks.leaf.0.lock_leaf(cx)));
    assert_eq!(reports(&domain, takes), [], "it may be taken with interrupts on");
    let report = only(reports(&domain, interrupts));
    assert_eq!(report.invariant(), "lock-order");
    assert_eq!(
        text(&report, base),
        "lockdep: inconsistent lock state\n\
         thread main is trying to take leaf at +2\n\
         it holds nothing\n\
         leaf is taken by an interrupt handler:\n  at +2 in thread main\n\
         leaf is taken with interrupts on:\n  at +1 in thread main\n\
         possible schedule:\n  lock(leaf)\n  <interrupt>\n    lock(leaf)\n  *** deadlock ***"
    );
    // It is reported once.
    assert_eq!(reports(&domain, interrupts), []);
}

#[test]
fn it_is_reported_whichever_way_is_seen_first() {
    let (domain, locks) = (domain(), Locks::default());
    assert_eq!(reports(&domain, |cx| cx.interrupt(|cx| drop(locks.leaf.0.lock_leaf(cx)))), []);
    let report = only(reports(&domain, |cx| drop(locks.leaf.0.try_lock(cx))));
    assert!(matches!(report.kind, ReportKind::Interrupted { .. }), "{report}");
}

#[test]
fn a_handler_may_take_a_lock_that_is_always_taken_with_interrupts_off() {
    let (domain, locks, irq) = (domain(), Locks::default(), Lock::<IrqLeaf>::default());
    let reports = reports(&domain, |cx| {
        drop(irq.0.lock_leaf(cx));
        cx.interrupt(|cx| drop(irq.0.lock_leaf(cx)));
        cx.interrupts_off(|cx| drop(locks.leaf.0.lock_leaf(cx)));
        // A try waits for no other thread.
        cx.interrupt(|cx| drop(locks.other_leaf.0.try_lock(cx)));
        drop(locks.other_leaf.0.lock_leaf(cx));
        cx.interrupt(|cx| drop(locks.leaf.0.lock_leaf(cx)));
    });
    assert_eq!(reports, []);
}

#[test]
fn nothing_waits_in_an_interrupt_or_with_interrupts_off() {
    let domain = domain();
    for section in [
        |cx: &mut Locked<'_, Unlocked>| cx.interrupt(|cx| cx.might_wait()),
        |cx: &mut Locked<'_, Unlocked>| cx.interrupts_off(|cx| cx.might_wait()),
    ] {
        let report = only(reports(&domain, section));
        assert!(matches!(report.kind, ReportKind::WaitInAtomicAt { .. }), "{report}");
    }
}
