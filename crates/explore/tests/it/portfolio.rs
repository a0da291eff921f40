//! A portfolio of searches: which search finds what another one misses, how they share the schedules, and their report.

use std::sync::Arc;
use std::time::Duration;

use explore::{Closure, Faults, Options, Report, SearchReport, Strategy, Token, Tool, Watch, campaign, merge, replay};
use lockdep::{AtomicU64, Deadline, Locked, Unlocked};

fn portfolio(schedules: u64) -> Options {
    Options { strategy: Strategy::Portfolio, schedules: Some(schedules), ..Options::default() }
}

fn explored(program: &Closure, options: &Options) -> Report {
    campaign(program, options, &Arc::new(Watch::default()))
}

/// A report without its times.
fn timeless(mut report: Report) -> Report {
    report.elapsed_ms = 0;
    report.searches.iter_mut().for_each(|search| search.elapsed_ms = 0);
    report
}

fn schedules(report: &Report) -> Vec<u64> {
    report.searches.iter().map(|search| search.schedules).collect()
}

/// Which search has found the one thing that does not hold. Its token must show it, and no other search may have it.
fn finder(program: &Closure, report: &Report) -> String {
    let [violation] = &report.violations[..] else { panic!("one verdict: {:?}", report.violations) };
    let token = Token::read(&violation.token, &Tool::default()).unwrap();
    let story = replay(std::slice::from_ref(program), "here", &token).unwrap();
    assert_eq!((&story.invariant, &story.detail), (&violation.invariant, &violation.detail));
    violation.found_by.clone().expect("a search has found it")
}

/// Adds 1 to a number, again and again.
fn count(number: &AtomicU64, times: u64) {
    for _ in 0..times {
        number.fetch_add(1);
    }
}

/// Runs two threads to their end.
fn both(
    cx: &mut Locked<'_, Unlocked>,
    one: impl FnOnce(&mut Locked<'_, Unlocked>) + Send + 'static,
    two: impl FnOnce(&mut Locked<'_, Unlocked>) + Send + 'static,
) {
    let threads = [cx.spawn("one", one), cx.spawn("two", two)];
    threads.into_iter().for_each(|thread| thread.join(cx).unwrap());
}

/// Two threads that pass a turn to each other fail if it was passed six times: each has to be preempted at the right
/// moment, four times in all.
fn ping_pong() -> Closure {
    Closure::new("a turn is passed to and fro", |cx| {
        let turn = Arc::new(AtomicU64::new(0));
        let passes = |me: u64| {
            let turn = Arc::clone(&turn);
            move |_: &mut Locked<'_, Unlocked>| {
                for round in 0..3 {
                    if turn.load() == 2 * round + me {
                        turn.store(2 * round + me + 1);
                    }
                }
            }
        };
        both(cx, passes(0), passes(1));
        assert_ne!(turn.load(), 6, "it was passed every time");
    })
}

#[test]
fn what_needs_more_preemptions_than_the_bound_is_found_at_random() {
    let program = ping_pong();
    let bounded = explored(&program, &Options { schedules: None, ..Options::default() });
    assert_eq!(
        (bounded.exhaustive_preemptions, bounded.violations.len()),
        (Some(2), 0),
        "the bounded search misses it"
    );
    let report = explored(&program, &portfolio(40_000));
    assert_eq!(finder(&program, &report), "random");
    // What the bounded search has proved is reported all the same.
    assert_eq!((report.exhaustive_preemptions, report.searches[0].complete), (Some(2), false));
    assert_eq!(report.searches[0].schedules, bounded.schedules);
    assert_eq!(schedules(&report)[2..], [0, 0, 0], "what is found ends the campaign");
}

/// Fails if the second thread runs between the first two of many steps of the first. The bounded search tries
/// preemptions at late points first, and each of them leads to something new.
#[test]
fn what_the_bounded_search_would_reach_late_is_found_at_random() {
    let program = Closure::new("a gap at the beginning", |cx| {
        let (begun, done, sum) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(1));
        let [one, two] = {
            let all = Arc::new((begun, done, sum));
            [Arc::clone(&all), all]
        };
        let adds = |sum: &AtomicU64, by: u64| {
            for _ in 0..60 {
                sum.store(sum.load().wrapping_mul(31).wrapping_add(by));
            }
        };
        both(
            cx,
            move |_| {
                one.0.store(1);
                one.1.store(1);
                adds(&one.2, 1);
            },
            move |_| {
                assert!(two.0.load() == two.1.load(), "it was in the gap");
                adds(&two.2, 2);
            },
        );
    });
    let alone = explored(&program, &Options { schedules: Some(100), ..Options::default() });
    assert_eq!(alone.violations.len(), 0, "the bounded search misses it with the whole budget");
    let report = explored(&program, &portfolio(100));
    assert_eq!(finder(&program, &report), "random");
    assert_eq!(report.searches[0].schedules, 50);
    assert!(report.searches[1].schedules <= 25, "{:?}", report.searches);
}

/// Fails if the second thread does all of its forty steps at one of few points of the first. A random scheduler
/// switches at every other step, so it never lets one thread run for so long; PCT does.
#[test]
fn what_needs_one_thread_to_starve_is_found_by_pct() {
    let program = Closure::new("one runs while the other stands still", |cx| {
        let [one, two] = {
            let steps = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
            [Arc::clone(&steps), steps]
        };
        both(
            cx,
            move |_| count(&one[0], 40),
            move |_| {
                let since = two[0].load();
                count(&two[1], 40);
                assert!(since != two[0].load() || !(10..30).contains(&since), "the other stood still");
            },
        );
    });
    let random = Options { strategy: Strategy::Random, schedules: Some(5_000), ..Options::default() };
    assert_eq!(explored(&program, &random).violations.len(), 0, "at random it is not met");
    let options = Options { preemptions: 0, ..portfolio(2_400) };
    for seed in 0..4 {
        let report = explored(&program, &Options { seed, ..options.clone() });
        assert!(finder(&program, &report).starts_with("pct of depth "), "{:?}", report.searches);
        assert_eq!(report.exhaustive_preemptions, Some(0));
    }
}

/// Two threads that add to a number, each in one step.
fn correct(adds: u64) -> Closure {
    Closure::new(format!("{adds} additions"), move |cx| {
        let sum = Arc::new(AtomicU64::new(0));
        let add = || {
            let sum = Arc::clone(&sum);
            move |_: &mut Locked<'_, Unlocked>| count(&sum, adds)
        };
        both(cx, add(), add());
        assert_eq!(sum.load(), 2 * adds);
    })
}

#[test]
fn the_bound_is_proved_and_the_rest_of_the_schedules_searches_beyond_it() {
    let (program, options) = (correct(6), portfolio(1_000));
    let bounded = explored(&program, &Options { schedules: Some(500), ..Options::default() });
    let report = explored(&program, &options);
    assert_eq!((report.violations.len(), report.schedules), (0, 1_000));
    assert_eq!((report.exhaustive_preemptions, bounded.exhaustive_preemptions), (Some(2), Some(2)));
    // The bounded search does the same as alone, and what it leaves is divided as 3 to 1 to 1 to 1.
    let first = bounded.schedules;
    assert!(first < 500, "{first}");
    let left = 1_000 - first;
    let expected = [first, left / 2, left / 6, left / 6, left / 6];
    for (found, expected) in schedules(&report).into_iter().zip(expected) {
        assert!(found.abs_diff(expected) <= 2, "{:?} against {expected:?}", report.searches);
    }
    assert!(report.searches.iter().all(|search| !search.complete));
}

#[test]
fn where_every_schedule_was_run_nothing_is_left_for_the_others() {
    let nothing = |found: &[SearchReport]| found.iter().all(|search| search.schedules == 0 && !search.complete);
    for jobs in [1, 2, 3] {
        let options = Options { preemptions: 9, jobs, ..portfolio(1_000) };
        let report = explored(&correct(2), &options);
        assert_eq!((report.exhaustive_preemptions, report.violations.len()), (Some(9), 0));
        assert!(report.searches[0].complete && nothing(&report.searches[1..]), "{:?}", report.searches);
    }
    // A bound that something lies beyond proves less.
    let report = explored(&correct(2), &Options { preemptions: 1, ..portfolio(1_000) });
    assert_eq!((report.searches[0].complete, report.schedules), (false, 1_000));
}

#[test]
fn with_failures_all_places_are_known_only_without_preemptions() {
    let fails = |preempted: bool| {
        Closure::new(format!("an allocation fails, {preempted}"), move |cx| {
            let sum = Arc::new(AtomicU64::new(0));
            let theirs = Arc::clone(&sum);
            let other = cx.spawn("other", move |cx| {
                let _ = theirs.load() == 1 && cx.fails(|| "allocating".to_owned());
            });
            if preempted {
                sum.store(1);
                sum.store(2);
            }
            let _ = cx.fails(|| "sending".to_owned());
            other.join(cx).unwrap();
        })
    };
    // The second place is met only if main is preempted between its steps.
    let options = Options { faults: Faults::Each, preemptions: 9, preemptions_with_faults: 9, ..portfolio(400) };
    let report = explored(&fails(true), &options);
    assert_eq!((report.faults.places, report.searches[0].complete, report.schedules), (1, false, 400));
    // A thread alone is never preempted.
    let alone = Closure::new("one thread", |cx| {
        let _ = cx.fails(|| "sending".to_owned());
    });
    let report = explored(&alone, &options);
    assert_eq!((report.faults.places, report.searches[0].complete), (1, true));
    assert_eq!(schedules(&report)[1..], [0, 0, 0, 0]);
}

#[test]
fn the_same_seed_gives_the_same_result() {
    for program in [ping_pong(), correct(6)] {
        for jobs in [1, 2] {
            for faults in [Faults::None, Faults::Each] {
                let options = Options { jobs, faults, seed: 7, ..portfolio(3_000) };
                let report = || {
                    let mut report = timeless(explored(&program, &options));
                    // Which of several workers that find something is the first is a question of time.
                    if jobs > 1 && !report.violations.is_empty() {
                        report = Report { violations: Vec::new(), schedules: 0, searches: Vec::new(), ..report };
                        report.lock_orders.clear();
                    }
                    report
                };
                assert_eq!(report(), report());
            }
        }
    }
}

#[test]
fn parts_of_a_campaign_with_a_portfolio_are_merged_search_by_search() {
    let program = correct(6);
    let part = |index| explored(&program, &Options { shard: (index, 3), ..portfolio(1_000) });
    let parts = [0, 1, 2].map(part);
    let sums: Vec<u64> = (0..5).map(|at| parts.iter().map(|part| part.searches[at].schedules).sum()).collect();
    let whole = merge(parts.to_vec()).unwrap().remove(0);
    assert_eq!((schedules(&whole), whole.schedules, whole.exhaustive_preemptions), (sums, 1_000, Some(2)));
    // All of a small program is run only if all of each part is.
    let part = |index| explored(&correct(2), &Options { shard: (index, 2), preemptions: 9, ..portfolio(2_000) });
    let parts = [part(0), part(1)];
    assert!(parts.iter().all(|part| part.searches[0].complete), "{parts:?}");
    // A part does not know of the others, and goes on.
    assert_eq!(parts.iter().map(|part| part.schedules).sum::<u64>(), 2_000);
    assert!(merge(parts.to_vec()).unwrap()[0].searches[0].complete);
    let mut parts = parts.to_vec();
    parts[1].searches[0].complete = false;
    assert!(!merge(parts).unwrap()[0].searches[0].complete);
}

#[test]
fn one_strategy_is_a_campaign_of_one_search() {
    for (strategy, name) in [
        (Strategy::Bounded, "bounded"),
        (Strategy::Random, "random"),
        (Strategy::Pct, "pct of depth 3"),
        (Strategy::Urw, "urw"),
    ] {
        let program = Closure::new("an addition in two steps", |cx| {
            let sum = Arc::new(AtomicU64::new(0));
            let add = || {
                let sum = Arc::clone(&sum);
                move |_: &mut Locked<'_, Unlocked>| sum.store(sum.load() + 1)
            };
            both(cx, add(), add());
            assert_eq!(sum.load(), 2);
        });
        let report = explored(&program, &Options { strategy, schedules: Some(1_000), ..Options::default() });
        assert_eq!(finder(&program, &report), name);
        let [search] = &report.searches[..] else { panic!("{:?}", report.searches) };
        assert_eq!((&*search.search, search.schedules), (name, report.schedules));
        assert_eq!((&report.strategy, &search.faults), (&strategy.name().to_owned(), &report.faults));
    }
}

/// PCT asks in its first schedule how many choices there are, and cannot go on if there was none.
#[test]
fn a_program_whose_only_choice_is_a_time_out_can_be_searched_by_every_search() {
    let program = Closure::new("a time-out", |cx| {
        let sum = Arc::new(AtomicU64::new(0));
        let theirs = Arc::clone(&sum);
        let sleeper = cx.spawn("sleeper", move |cx| {
            Deadline::after(Duration::from_secs(1)).sleep(cx);
            theirs.fetch_add(1);
        });
        sum.fetch_add(1);
        sum.fetch_add(1);
        sleeper.join(cx).unwrap();
    });
    for seed in 0..50 {
        let report = explored(&program, &Options { seed, preemptions: 0, ..portfolio(60) });
        assert_eq!((report.violations.len(), report.schedules), (0, 60));
    }
}
