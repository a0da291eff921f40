//! `esw check`: explores scenarios, joins the parts of a campaign, runs the schedule of a token again.

mod generated;
mod options;
mod pages;
mod progress;
mod results;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use anyhow::{Context, Result, bail};
use check::{Orders, Report, Token, Watch};
use scenario::Scenario;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::arguments::Check;
use crate::exit_status::{FAILED, HELD, INTERRUPTED, UNUSABLE};
use crate::output::{self, Style, complain, line};
use crate::run::{ScenarioFile, read_all};

use options::{options, refuse_what_makes_no_sense};
use pages::{make_folder, write_pages, write_stories};
use progress::progress;
use results::{finish, print, width};

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
    if arguments.generate {
        return generated::explore(arguments);
    }
    refuse_what_makes_no_sense(arguments)?;
    let Some(scenarios) = read_all(&arguments.paths)? else {
        return Ok(UNUSABLE);
    };
    let style = Style::detect();
    let (memory, others): (Vec<_>, Vec<_>) = scenarios.into_iter().partition(in_memory);
    refuse_what_cannot_be_explored(&memory)?;
    for file in &others {
        complain!(
            "{} {}: it is for the card linux, and only the card memory is explored",
            style.faint("skipped"),
            file.scenario.name
        );
    }
    if memory.is_empty() {
        complain!("esw: nothing was explored; give a scenario for the card memory");
        return Ok(UNUSABLE);
    }
    if let Some(folder) = &arguments.report {
        // Before anything runs: no result must be lost because there is no folder for it.
        make_folder(folder)?;
    }
    let watch = Arc::new(Watch::default());
    stop_on_signal(&watch)?;
    let options = options(arguments);
    let scenarios: Vec<Scenario> = memory.iter().map(|file| file.scenario.clone()).collect();
    let (mut reports, mut orders, mut unwritten) = (Vec::new(), Orders::default(), false);
    for (index, ScenarioFile { path, scenario }) in memory.iter().enumerate() {
        let progress = progress(arguments, scenario, (index + 1, memory.len()), &options, &watch);
        let mut report = check::check(scenario, &options, &watch);
        progress.finish();
        report.file = path.display().to_string();
        check::compare(&mut report, &mut orders, &scenarios);
        name_files(&mut report, |name| {
            let file = memory.iter().find(|file| file.scenario.name == name);
            file.map(|file| file.path.display().to_string())
        });
        print(arguments, style, &report)?;
        reports.push(report);
        // At once, so that no page is lost if exploring ends early.
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
        // A part that was interrupted can be merged only if it has a report of each scenario.
        for ScenarioFile { path, scenario } in &memory[reports.len()..] {
            let report = Report { file: path.display().to_string(), ..check::not_explored(scenario, &options) };
            print(arguments, style, &report)?;
        }
    }
    let status = finish(arguments, style, &reports, memory.len());
    Ok(if unwritten && status == HELD { UNUSABLE } else { status })
}

/// Gives the violations of a report the files of their scenarios. `file` has the file of a scenario by its name.
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

fn in_memory(file: &ScenarioFile) -> bool {
    file.scenario.cards.iter().any(|card| card.name == "memory")
}

/// Refuses scenarios that cannot be explored: two of one name, whose results could not be told apart or joined; and one
/// with more threads than an explorer has room for.
fn refuse_what_cannot_be_explored(files: &[ScenarioFile]) -> Result<()> {
    for (n, file) in files.iter().enumerate() {
        let (path, Scenario { name, threads, .. }) = (file.path.display(), &file.scenario);
        if threads.len() > check::MOST_THREADS {
            let most = check::MOST_THREADS;
            bail!("{path}: `{name}` has {} threads; at most {most} can be explored: see `esw run`", threads.len());
        }
        if let Some(other) = files[..n].iter().find(|other| other.scenario.name == *name) {
            let other = other.path.display();
            bail!(
                "{path}: `{name}` is the name of the scenario in {other}, too; give each once, with a name of its own"
            );
        }
    }
    Ok(())
}

/// Has the first signal end the campaign with the results so far, and the second the command.
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
    let listed = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let Some(files) = read_all(paths)? else {
        return Ok(UNUSABLE);
    };
    let scenarios: Vec<Scenario> = files.iter().map(|file| file.scenario.clone()).collect();
    if let Some(folder) = &arguments.report {
        make_folder(folder)?;
    }
    let mut story = check::replay(&scenarios, &listed, &token).inspect_err(|_| {
        // Without a schedule there is no report: the folder is empty, and was made here.
        let _ = arguments.report.as_ref().map(fs::remove_dir);
    })?;
    for token in token.all() {
        let file = files.iter().find(|file| check::fingerprint(&file.scenario) == token.fingerprint);
        let file = file.map(|file| file.path.display().to_string());
        story.files.extend(file.filter(|file| !story.files.contains(file)));
    }
    if let Some(folder) = &arguments.report {
        let held = if story.invariant.is_empty() { "held" } else { "did not hold" };
        write_stories(folder, std::slice::from_ref(&story), vec![("run again".to_owned(), held.to_owned())])?;
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
