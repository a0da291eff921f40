//! `esw check`: explores scenarios, joins the parts of a campaign, tells a schedule again.

use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use check::{Options, Orders, PageInfo, Report, Story, Token, Watch};
use indicatif::{ProgressBar, ProgressStyle};
use scenario::Scenario;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::arguments::{Check, Faults, Strategy};
use crate::exit_status::{FAILED, HELD, INTERRUPTED, UNUSABLE};
use crate::output::{self, Style, complain, line, many, time};
use crate::run::{Story as Told, read_all};

/// How long for each scenario when nothing is said.
const TIME: Duration = Duration::from_secs(10);

/// Runs the command; its exit status.
///
/// # Errors
/// A file that cannot be read, a token or a report that cannot be used, a folder that is in the way.
pub fn check(arguments: &Check) -> Result<u8> {
    if !arguments.merge.is_empty() {
        return merge(arguments);
    }
    if let Some(token) = &arguments.replay {
        return replay(arguments, token);
    }
    refuse_what_makes_no_sense(arguments)?;
    let Some(stories) = read_all(&arguments.paths)? else {
        return Ok(UNUSABLE);
    };
    let style = Style::detect();
    let (memory, others): (Vec<_>, Vec<_>) = stories.into_iter().partition(in_memory);
    refuse_what_cannot_be_explored(&memory)?;
    for story in &others {
        complain!(
            "{} {}: it is for the card linux, and only the card memory is explored",
            style.faint("skipped"),
            story.scenario.name
        );
    }
    if memory.is_empty() {
        complain!("esw: nothing was explored; give a scenario that can be told on the card memory");
        return Ok(UNUSABLE);
    }
    if let Some(folder) = &arguments.report {
        // Before anything runs: what is found must not be lost for want of a place to put it.
        make_folder(folder)?;
    }
    let watch = Arc::new(Watch::default());
    stop_on_signal(&watch)?;
    let options = options(arguments);
    let scenarios: Vec<Scenario> = memory.iter().map(|told| told.scenario.clone()).collect();
    let (mut reports, mut orders, mut unwritten) = (Vec::new(), Orders::default(), false);
    for (index, Told { path, scenario }) in memory.iter().enumerate() {
        let progress = progress(arguments, scenario, (index + 1, memory.len()), &options, &watch);
        let mut report = check::check(scenario, &options, &watch);
        progress.finish();
        report.file = path.display().to_string();
        check::compare(&mut report, &mut orders, &scenarios);
        name_files(&mut report, |name| {
            let told = memory.iter().find(|told| told.scenario.name == name);
            told.map(|told| told.path.display().to_string())
        });
        print(arguments, style, &report)?;
        reports.push(report);
        // At once: a page is not to be lost to what comes later.
        if let Some(folder) = &arguments.report
            && let Err(error) = write_pages(folder, &reports, memory.len())
        {
            unwritten = true;
            let there = folder.join("index.html").exists();
            let before = if there { "what was found before is still there, and " } else { "" };
            complain!("esw: {error:#}; {before}exploring goes on");
        }
        if watch.stop.load(Ordering::Relaxed) || output::is_closed() {
            break;
        }
    }
    if arguments.json {
        // So that a part that was interrupted can be merged: it has a report of each scenario.
        for Told { path, scenario } in &memory[reports.len()..] {
            let report = Report { file: path.display().to_string(), ..check::not_explored(scenario, &options) };
            print(arguments, style, &report)?;
        }
    }
    let status = finish(arguments, style, &reports, memory.len());
    Ok(if unwritten && status == HELD { UNUSABLE } else { status })
}

/// Which files its violations are of: where the scenario of that name was read from.
fn name_files(report: &mut Report, file: impl Fn(&str) -> Option<String>) {
    for violation in &mut report.violations {
        let token: Option<Token> = violation.token.parse().ok();
        let mut files: Vec<String> = Vec::new();
        for file in token.iter().flat_map(Token::all).filter_map(|token| file(&token.program)) {
            if !file.is_empty() && !files.contains(&file) {
                files.push(file);
            }
        }
        violation.story.files = files;
    }
}

fn in_memory(story: &Told) -> bool {
    story.scenario.cards.iter().any(|card| card.name == "memory")
}

fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir(folder)
        .with_context(|| format!("{}: expected a folder that can be made and is not there yet", folder.display()))
}

/// What was found in two scenarios of one name could not be told apart, or joined; and an explorer has no room for many threads.
fn refuse_what_cannot_be_explored(stories: &[Told]) -> Result<()> {
    for (n, story) in stories.iter().enumerate() {
        let (path, Scenario { name, threads, .. }) = (story.path.display(), &story.scenario);
        if threads.len() > check::MOST_THREADS {
            let most = check::MOST_THREADS;
            bail!("{path}: `{name}` has {} threads; at most {most} can be explored: see `esw run`", threads.len());
        }
        if let Some(other) = stories[..n].iter().find(|other| other.scenario.name == *name) {
            let other = other.path.display();
            bail!(
                "{path}: `{name}` is the name of the scenario in {other}, too; give each once, with a name of its own"
            );
        }
    }
    Ok(())
}

/// Options that are for another strategy than the one chosen.
fn refuse_what_makes_no_sense(arguments: &Check) -> Result<()> {
    let random = arguments.strategy != Strategy::Bounded;
    if random && arguments.no_reduction {
        bail!("--no-reduction is for --strategy bounded: random schedules are not reduced");
    }
    if random && (arguments.preemptions.is_some() || arguments.fault_preemptions.is_some()) {
        bail!(
            "--preemptions and --fault-preemptions are for --strategy bounded: random schedules have as many as they have"
        );
    }
    if !random && arguments.seed.is_some() {
        bail!("--seed is for --strategy random, pct and urw: nothing is random in bounded");
    }
    if arguments.strategy != Strategy::Pct && arguments.depth.is_some() {
        bail!("--depth is for --strategy pct");
    }
    let of_shuttle = matches!(arguments.strategy, Strategy::Pct | Strategy::Urw);
    if of_shuttle && std::env::var_os("SHUTTLE_RANDOM_SEED").is_some() {
        bail!("SHUTTLE_RANDOM_SEED is set, which --strategy pct and urw would take instead of --seed: unset it");
    }
    if arguments.faults == Faults::None && arguments.fault_preemptions.is_some() {
        bail!("--fault-preemptions is for --faults each or pairs");
    }
    if arguments.jobs > 1024 {
        bail!("--jobs {}: expected at most 1024", arguments.jobs);
    }
    if let Some(shard) = arguments.shard
        && shard.of > 100_000
    {
        bail!("--shard {}/{}: expected at most 100000 parts", shard.index, shard.of);
    }
    Ok(())
}

fn options(arguments: &Check) -> Options {
    let cores = || thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let given = arguments.time.map(Duration::from_secs);
    Options {
        strategy: match arguments.strategy {
            Strategy::Bounded => check::Strategy::Bounded,
            Strategy::Random => check::Strategy::Random,
            Strategy::Pct => check::Strategy::Pct,
            Strategy::Urw => check::Strategy::Urw,
        },
        preemptions: arguments.preemptions.unwrap_or(2),
        preemptions_with_faults: arguments.fault_preemptions.unwrap_or(1),
        schedules: arguments.schedules,
        time: if arguments.schedules.is_none() { given.or(Some(TIME)) } else { given },
        seed: arguments.seed.unwrap_or(0),
        depth: arguments.depth.unwrap_or(3).into(),
        faults: match arguments.faults {
            Faults::None => check::Faults::None,
            Faults::Each => check::Faults::Each,
            Faults::Pairs => check::Faults::Pairs,
        },
        jobs: if arguments.jobs == 0 { cores() } else { arguments.jobs },
        shard: arguments.shard.map_or((0, 1), |shard| (shard.index - 1, shard.of)),
        whole: arguments.whole,
        reduce: !arguments.no_reduction,
        minimise: true,
    }
}

/// The first signal ends the campaign with what was found so far, the second the command.
fn stop_on_signal(watch: &Arc<Watch>) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).context("installing signal handlers")?;
    let watch = Arc::clone(watch);
    let listen = move || {
        for _ in signals.forever() {
            if watch.stop.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED.into());
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(listen)?;
    Ok(())
}

/// The line that moves while a scenario is explored.
struct Progress {
    bar: ProgressBar,
    done: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Progress {
    fn finish(mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}

fn progress(
    arguments: &Check,
    scenario: &Scenario,
    (index, of): (usize, usize),
    options: &Options,
    watch: &Arc<Watch>,
) -> Progress {
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    watch.schedules.store(0, Ordering::Relaxed);
    watch.preemptions.store(0, Ordering::Relaxed);
    watch.places.iter().for_each(|places| places.store(0, Ordering::Relaxed));
    if arguments.json || !std::io::stderr().is_terminal() {
        return Progress { bar: ProgressBar::hidden(), done, thread: None };
    }
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let name = scenario.name.clone();
    let (watch, theirs, ours, options) = (Arc::clone(watch), bar.clone(), Arc::clone(&done), options.clone());
    let began = std::time::Instant::now();
    let tell = move || {
        while !ours.load(Ordering::Relaxed) {
            let schedules = watch.schedules.load(Ordering::Relaxed);
            let elapsed = began.elapsed();
            let rate = schedules as f64 / elapsed.as_secs_f64().max(0.001);
            let [asked, places] = [0, 1].map(|i| watch.places[i].load(Ordering::Relaxed));
            let what = match (options.strategy, places) {
                (check::Strategy::Bounded, 0) => many(watch.preemptions.load(Ordering::Relaxed), "preemption"),
                (_, 0) => options.strategy.name().to_owned(),
                _ => format!("failure {asked} of {places}"),
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
    let thread = thread::Builder::new().name("progress".to_owned()).spawn(tell).ok();
    Progress { bar, done, thread }
}

/// What a scenario came to: a line, or a JSON object.
fn print(arguments: &Check, style: Style, report: &Report) -> Result<()> {
    if arguments.json {
        line(&serde_json::to_string(report)?);
        return Ok(());
    }
    let verdict = match (report.violations.is_empty(), report.interrupted) {
        (false, true) => style.bad("FAILED, interrupted"),
        (false, false) => style.bad("FAILED"),
        (true, true) => style.bad("interrupted"),
        (true, false) => style.good("ok"),
    };
    let rate = report.schedules as f64 / (report.elapsed_ms as f64 / 1e3).max(0.001);
    line(&format!(
        "{}: {verdict}; {}{} in {} ({rate:.0}/s)",
        style.strong(&report.program),
        how_far(report),
        forgotten(report),
        time(Duration::from_millis(report.elapsed_ms)),
    ));
    for violation in &report.violations {
        if violation.story.rows.is_empty() {
            // Read from the report of a part: the token tells the story.
            line(&format!("  {}  {}: {}", style.bad("FAILS"), violation.invariant, violation.detail));
            line(&format!("  {}", check::again(&violation.token, &violation.story.files)));
        } else {
            line(&check::columns(&violation.story, width()));
            if report.interrupted {
                line("interrupted while this was made small: it may not be as small as it gets");
            }
        }
    }
    Ok(())
}

/// The columns of the terminal, or enough to read where there is none.
fn width() -> usize {
    let terminal = rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| size.ws_col.into());
    if terminal == 0 { 140 } else { terminal }
}

/// A page with every story found so far, and a trace for each; and how far each scenario was explored.
fn write_pages(folder: &Path, reports: &[Report], of: usize) -> Result<()> {
    let violations = reports.iter().flat_map(|report| &report.violations);
    let stories: Vec<Story> = violations.map(|violation| violation.story.clone()).collect();
    let scenarios = if reports.len() < of { format!("{} of {of}", reports.len()) } else { of.to_string() };
    let mut summary = vec![
        ("scenarios".to_owned(), scenarios),
        ("schedules".to_owned(), schedules(reports).to_string()),
        ("did not hold".to_owned(), stories.len().to_string()),
    ];
    summary.extend(reports.iter().map(|report| {
        let ended = match (report.violations.is_empty(), report.interrupted) {
            (_, true) => ", interrupted",
            (false, false) => ", until it failed",
            (true, false) => "",
        };
        (report.program.clone(), how_far(report) + ended)
    }));
    write_stories(folder, &stories, summary)
}

fn schedules(reports: &[Report]) -> u64 {
    reports.iter().fold(0, |sum, report| sum.saturating_add(report.schedules))
}

/// Each file whole, or as it was.
fn write_stories(folder: &Path, stories: &[Story], summary: Vec<(String, String)>) -> Result<()> {
    let (title, version) = ("esw check".to_owned(), concat!("eswitch ", env!("CARGO_PKG_VERSION")).to_owned());
    let info = PageInfo { title, version, summary };
    let write = |name: &str, text: &str| {
        let (path, unfinished) = (folder.join(name), folder.join(format!(".{name}")));
        let written = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, &path));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written.with_context(|| format!("writing {}", path.display()))
    };
    for (story, number) in stories.iter().zip(1..) {
        let name = format!("trace-{number}.json");
        // One that is there is of the same story: the folder is new, and stories come one after the other.
        if !folder.join(&name).exists() {
            write(&name, &check::trace(story).to_string())?;
        }
    }
    write("index.html", &check::page(stories, &info))
}

/// What was explored, in words.
fn how_far(report: &Report) -> String {
    format!("{}{}{}", many(report.schedules, "schedule"), reached(report), with_faults(report))
}

fn reached(report: &Report) -> String {
    match (report.strategy.as_str(), report.exhaustive_preemptions) {
        ("bounded", Some(k)) => format!(", every one with at most {}", many(k.into(), "preemption")),
        ("bounded", None) => ", not every one without preemptions".to_owned(),
        (strategy, _) => format!(" ({strategy})"),
    }
}

fn with_faults(report: &Report) -> String {
    let faults = &report.faults;
    match (faults.mode.as_str(), faults.exhaustive_preemptions) {
        ("none", _) => String::new(),
        (mode, Some(k)) => format!(", {mode} of {} failures at {k}", faults.places),
        (_, None) if report.strategy == "bounded" && faults.plans == 0 => ", nothing made to fail yet".to_owned(),
        (mode, None) if report.strategy == "bounded" => {
            let pairs = if mode == "pairs" { "pairs with " } else { "" };
            format!(", {pairs}{} of {} failures at 0", faults.tried, faults.plans)
        }
        ("each", None) if faults.tried < faults.plans => format!(", {} of {} failures", faults.tried, faults.places),
        (mode, None) if faults.tried < faults.plans => {
            format!(", {} of {} {mode} of {} failures", faults.tried, faults.plans, faults.places)
        }
        (mode, None) => format!(", {mode} of {} failures", faults.places),
    }
}

fn forgotten(report: &Report) -> String {
    if report.forgotten == 0 { String::new() } else { format!(", {} searched again", many(report.forgotten, "state")) }
}

/// The end of a campaign: its summary, its pages, its exit status.
fn finish(arguments: &Check, style: Style, reports: &[Report], of: usize) -> u8 {
    let failed = reports.iter().filter(|report| !report.violations.is_empty()).count();
    let interrupted = reports.len() < of || reports.iter().any(|report| report.interrupted);
    let ended = reports.iter().filter(|report| report.violations.is_empty() && report.interrupted).count();
    let schedules = many(schedules(reports), "schedule");
    let mut summary = format!("{} held in {schedules}", reports.len() - failed - ended);
    if failed > 0 {
        summary += &format!(", {}", style.bad(&format!("{failed} failed")));
    }
    if ended > 0 {
        summary += &format!(", {ended} interrupted");
    }
    if reports.len() < of {
        summary += &format!(", {} not explored", of - reports.len());
    }
    if arguments.json {
        complain!("{summary}");
    } else if of > 1 {
        line(&summary);
    }
    match (failed, interrupted) {
        (1.., _) => FAILED,
        (0, true) => INTERRUPTED,
        (0, false) => HELD,
    }
}

fn merge(arguments: &Check) -> Result<u8> {
    let mut reports = Vec::new();
    for path in &arguments.merge {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        reports.extend(check::read(&path.display().to_string(), &text)?);
    }
    let mut reports = check::merge(reports)?;
    let files: Vec<_> = reports.iter().map(|report| (report.program.clone(), report.file.clone())).collect();
    for report in &mut reports {
        name_files(report, |name| files.iter().find(|(scenario, _)| scenario == name).map(|(_, file)| file.clone()));
    }
    let style = Style::detect();
    for report in &reports {
        print(arguments, style, report)?;
    }
    Ok(finish(arguments, style, &reports, reports.len()))
}

fn replay(arguments: &Check, token: &str) -> Result<u8> {
    let token = check::token(token)?;
    let default = [Path::new("scenarios").to_owned()];
    if arguments.paths.is_empty() && !default[0].exists() {
        bail!("there is no folder `scenarios` here: give the file of the scenario after the token");
    }
    let paths = if arguments.paths.is_empty() { &default[..] } else { &arguments.paths };
    let whence = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let Some(stories) = read_all(paths)? else {
        return Ok(UNUSABLE);
    };
    let scenarios: Vec<Scenario> = stories.iter().map(|story| story.scenario.clone()).collect();
    if let Some(folder) = &arguments.report {
        make_folder(folder)?;
    }
    let mut story = check::replay(&scenarios, &whence, &token).inspect_err(|_| {
        // Nothing is told, so nothing is left: it is empty, and was made here.
        let _ = arguments.report.as_ref().map(fs::remove_dir);
    })?;
    for token in token.all() {
        let told = stories.iter().find(|story| check::fingerprint(&story.scenario) == token.fingerprint);
        let file = told.map(|told| told.path.display().to_string());
        story.files.extend(file.filter(|file| !story.files.contains(file)));
    }
    if let Some(folder) = &arguments.report {
        let held = if story.invariant.is_empty() { "held" } else { "did not hold" };
        write_stories(folder, std::slice::from_ref(&story), vec![("told again".to_owned(), held.to_owned())])?;
    }
    if arguments.json {
        line(&serde_json::to_string(&story)?);
    } else if story.invariant.is_empty() {
        line(&format!("{}: held in the schedule of the token", story.program));
    } else {
        line(&check::columns(&story, width()));
    }
    Ok(if story.invariant.is_empty() { HELD } else { FAILED })
}
