//! The line that shows how far exploring has come.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use check::{Options, Watch};
use indicatif::{ProgressBar, ProgressStyle};
use scenario::Scenario;

use crate::arguments::Check;
use crate::output::many;

/// A line that shows progress while a scenario is explored.
pub struct Progress {
    bar: ProgressBar,
    done: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Progress {
    pub fn finish(mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}

pub fn progress(
    arguments: &Check,
    scenario: &Scenario,
    (index, of): (usize, usize),
    options: &Options,
    watch: &Arc<Watch>,
) -> Progress {
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    watch.schedules.store(0, Ordering::Relaxed);
    watch.search.store(0, Ordering::Relaxed);
    watch.preemptions.store(0, Ordering::Relaxed);
    watch.places.iter().for_each(|places| places.store(0, Ordering::Relaxed));
    if arguments.json || !std::io::stderr().is_terminal() {
        return Progress { bar: ProgressBar::hidden(), done, thread: None };
    }
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let name = scenario.name.clone();
    let (watch, theirs, ours, options) = (Arc::clone(watch), bar.clone(), Arc::clone(&done), options.clone());
    let searches = options.searches();
    let began = std::time::Instant::now();
    let show = move || {
        while !ours.load(Ordering::Relaxed) {
            let schedules = watch.schedules.load(Ordering::Relaxed);
            let elapsed = began.elapsed();
            let rate = schedules as f64 / elapsed.as_secs_f64().max(0.001);
            let [tried, places] = [0, 1].map(|i| watch.places[i].load(Ordering::Relaxed));
            let search = searches[watch.search.load(Ordering::Relaxed) as usize];
            let what = match (search.strategy, places) {
                (check::Strategy::Bounded, 0) => many(watch.preemptions.load(Ordering::Relaxed), "preemption"),
                (_, 0) => search.name(),
                _ => format!("{}, failure {tried} of {places}", search.name()),
            };
            let left = match (options.time, options.schedules) {
                (_, Some(n)) => format!("{} left", many(n.saturating_sub(schedules), "schedule")),
                (Some(time), None) => format!("{} s left", time.saturating_sub(elapsed).as_secs()),
                (None, None) => String::new(),
            };
            theirs.set_message(format!(
                "[{index}/{of}] {name}: {what}, {}, {rate:.0}/s, {left}",
                many(schedules, "schedule")
            ));
            theirs.tick();
            thread::park_timeout(Duration::from_millis(100));
        }
    };
    let thread = thread::Builder::new().name("progress".to_owned()).spawn(show).ok();
    Progress { bar, done, thread }
}
