//! A story in columns, for a terminal: one column for each thread that does something in it.
//!
//! Time runs downwards. Details are left out: everything before the first step and after the invariant broke; locks
//! under which no lock is taken and for which no thread waits; atomics and notifications. The number of omitted
//! operations is printed. If there are too many threads for the width, threads that follow one another share a
//! column. If that is still too wide, the story becomes a list.

use std::collections::BTreeSet;

use crate::reading::{Reading, StepSpan, WaitKind, WaitSpan, name, short, takes};
use crate::story::{Row, RowKind, Story};

/// The least width of a column, in characters. A narrower column cannot be read.
const NARROWEST: usize = 26;
/// The separator between two columns.
const BETWEEN: &str = " │ ";

/// Prints a story in lines of at most `width` characters. `width` is at least 40; a smaller one counts as 40.
pub fn columns(story: &Story, width: usize) -> String {
    let width = width.max(40);
    let mut page = Page { width, lines: Vec::new() };
    page.header(story);
    let entries = EntryList::of(story).entries;
    let gutter = story.rows.last().map_or(0, |row| row.step).to_string().len().max(4) + 2;
    match Columns::of(story, &entries, width - gutter) {
        Some(columns) => page.columns(story, &entries, columns, gutter),
        None => page.list(story, &entries, gutter),
    }
    page.lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// An entry of the output.
struct Entry {
    step: usize,
    what: Told,
}

impl Entry {
    fn thread(&self) -> Option<usize> {
        match self.what {
            Told::Does { thread, .. } => Some(thread),
            _ => None,
        }
    }
}

enum Told {
    /// An operation of a thread. `held`: what the thread holds after it, if that has changed.
    Does {
        thread: usize,
        text: String,
        held: Option<String>,
        at: String,
    },
    Preemption(String),
    Broken(String),
    Left(String),
}

/// Chooses the entries, row by row.
struct EntryList<'s> {
    story: &'s Story,
    reading: Reading,
    entries: Vec<Entry>,
    /// For each thread, how many operations were left out since its last entry.
    skipped: Vec<usize>,
    /// For each thread, the last list of held locks that was printed.
    held: Vec<String>,
    /// The last entry that is a lock taken and released at once.
    passed: Option<usize>,
    /// The end of the program. After it, code inspects and takes down what is left, and fewer details are shown.
    over: usize,
    /// The row of the last entry, if further rows of the same kind can join this entry.
    joinable: Option<usize>,
}

impl<'s> EntryList<'s> {
    fn of(story: &'s Story) -> Self {
        let threads = story.threads.len();
        let reading = Reading::of(story);
        let (skipped, held) = (vec![0; threads], vec![String::new(); threads]);
        let mut list =
            Self { story, reading, entries: Vec::new(), skipped, held, passed: None, over: 0, joinable: None };
        list.tell();
        list
    }

    fn tell(&mut self) {
        let rows = &self.story.rows;
        let marks = [RowKind::StepBegin, RowKind::Fault, RowKind::Violation, RowKind::Preempted];
        let first = match rows.iter().any(|row| row.kind == RowKind::StepBegin) {
            true => rows.iter().position(|row| marks.contains(&row.kind)).unwrap_or_default(),
            false => 0,
        };
        let end = self.reading.broken.map_or(rows.len(), |broken| broken + 1);
        let marks = [RowKind::StepEnd, RowKind::StepBegin, RowKind::Fault, RowKind::Preempted];
        let ends = self.reading.waits.iter().any(|wait| wait.forever);
        self.over = match rows.iter().rposition(|row| marks.contains(&row.kind)) {
            Some(last) if !ends && self.found_at_the_end() => last + 1,
            _ => rows.len(),
        };
        if let Some(row) = rows.get(first).filter(|_| first > 0) {
            self.add(row.step, Told::Left(format!("{} before the first step", operations(first))));
        }
        for (at, row) in rows.iter().enumerate().take(end).skip(first) {
            self.row(at, row);
        }
        self.entries.retain({
            let counted = |entry: &Entry| matches!(&entry.what, Told::Does { text, .. } if text.starts_with('…'));
            let says = |entry: &Entry| if counted(entry) { None } else { entry.thread() };
            let tells: BTreeSet<usize> = self.entries.iter().filter_map(says).collect();
            move |entry| entry.thread().is_none_or(|thread| tells.contains(&thread))
        });
        if end < rows.len() && !self.found_at_the_end() {
            self.add(rows[end].step, Told::Left(format!("{} after it", operations(rows.len() - end))));
        }
        if (self.reading.broken.is_none() || self.found_at_the_end()) && !self.story.invariant.is_empty() {
            let text = format!("{} DOES NOT HOLD, as found at the end: {}", self.story.invariant, self.story.detail);
            self.add(rows.last().map_or(0, |row| row.step), Told::Broken(text));
        }
    }

    fn row(&mut self, at: usize, row: &Row) {
        let switch = self.reading.switches.iter().find(|switch| switch.at == at).copied();
        if let Some(switch) = switch.filter(|switch| switch.preempted) {
            self.count(switch.from, self.story.rows[at - 1].step);
            // Print again what both threads hold.
            self.held[switch.from].clear();
            self.held[switch.to].clear();
            let (from, to) = (name(self.story, switch.from), name(self.story, switch.to));
            self.add(row.step, Told::Preemption(format!("preemption: {from} could go on, {to} does instead")));
        }
        // The last row before a preemption and the first after it. The row that marks the preemption is in between.
        let preempts = |at: usize| self.reading.switches.iter().any(|switch| switch.at == at && switch.preempted);
        let says = |at: Option<usize>| {
            at.and_then(|at| self.story.rows.get(at)).is_some_and(|row| row.kind == RowKind::Preempted)
        };
        let before = preempts(at + 1) || says(Some(at + 1)) && preempts(at + 2);
        let after = preempts(at) || says(at.checked_sub(1)) && preempts(at - 1);
        match row.kind {
            RowKind::Preempted => {}
            RowKind::State if row.what.contains(": failed") => self.does(at, row),
            RowKind::State => {}
            RowKind::Violation if self.found_at_the_end() => {}
            RowKind::Violation => {
                self.count(row.thread, row.step);
                let who = name(self.story, row.thread);
                let what = if self.story.detail.is_empty() { &row.what } else { &self.story.detail };
                let invariant = &self.story.invariant;
                self.add(
                    row.step,
                    Told::Broken(match who {
                        "epilogue" => format!("{invariant} DOES NOT HOLD, as found at rest: {what}"),
                        // No thread breaks it: none can go on.
                        _ if what.starts_with("deadlock!") => format!("{invariant} BREAKS HERE: {what}"),
                        who => format!("{invariant} BREAKS HERE, in {who}: {what}"),
                    }),
                );
            }
            _ if !self.reading.is_detail(row) && !self.is_aside(at, row) || before || after => self.does(at, row),
            // Releases are not printed.
            RowKind::Release => {}
            _ => self.skipped[row.thread] += 1,
        }
        let waits = self.reading.waits.iter().filter(|wait| wait.from == at);
        let told =
            |wait: &&WaitSpan| wait.forever || wait.kind == WaitKind::Lock && !self.reading.is_small(&wait.class);
        let waits: Vec<_> = waits.filter(told).cloned().collect();
        for wait in waits {
            self.count(wait.thread, row.step);
            let text = self.reading.waiting(self.story, &wait);
            self.add(row.step, Told::Does { thread: wait.thread, text, held: None, at: String::new() });
        }
    }

    /// Returns whether the failure was found only at the end, by the program's main thread.
    fn found_at_the_end(&self) -> bool {
        let rows = &self.story.rows;
        let has_steps = rows.iter().any(|row| row.kind == RowKind::StepBegin);
        self.reading.broken.is_some_and(|broken| {
            has_steps && rows[broken].thread == 0 && rows[broken..].iter().all(|row| row.kind != RowKind::StepBegin)
        })
    }

    /// Returns whether it is a lock of `main` or `epilogue`, the threads that inspect and take down what is left at
    /// the end.
    fn is_aside(&self, at: usize, row: &Row) -> bool {
        let aside = at >= self.over && ["main", "epilogue"].contains(&name(self.story, row.thread));
        aside && (takes(row.kind) || row.kind == RowKind::Release)
    }

    fn does(&mut self, at: usize, row: &Row) {
        let held = format!("[{}]", row.held.join(" > "));
        let changed = std::mem::replace(&mut self.held[row.thread], held.clone()) != held;
        if self.skipped[row.thread] == 0 && self.join(at, row) {
            return;
        }
        self.count(row.thread, row.step);
        let text = self.text(row);
        let held = (changed && !row.held.is_empty() && row.kind != RowKind::Release).then_some(held);
        self.add(row.step, Told::Does { thread: row.thread, text, held, at: short(&row.at) });
        self.joinable = Some(at);
    }

    /// Joins the row to the last entry: a lock that is released at once, or one more resource of the same kind.
    fn join(&mut self, at: usize, row: &Row) -> bool {
        let Some(before) = self.joinable.map(|at| &self.story.rows[at]) else { return false };
        let Some(Entry { what: Told::Does { text, held, .. }, .. }) = self.entries.last_mut() else { return false };
        let same = before.thread == row.thread;
        match (before.kind, row.kind) {
            (RowKind::Acquire | RowKind::AcquireShared, RowKind::Release) if same && before.object == row.object => {
                let lock = text.strip_prefix("takes ").unwrap_or(text).to_owned();
                (*text, *held) = (format!("takes and releases {lock}"), None);
                self.passed(row.thread, &lock);
            }
            (RowKind::Make, RowKind::Make) | (RowKind::Unmake, RowKind::Unmake) if same => {
                let (kind, one) = row.what.rsplit_once(' ').unwrap_or(("", &row.what));
                match before.what.rsplit_once(' ') {
                    Some((other, _)) if other == kind => *text += &format!(" {one}"),
                    _ => *text += &format!(", {}", row.what),
                }
                self.joinable = Some(at);
            }
            _ => return false,
        }
        true
    }

    /// Adds a lock to an entry of locks that are taken and released at once.
    fn passed(&mut self, who: usize, lock: &str) {
        self.joinable = None;
        let last = self.entries.len() - 1;
        let before = self.passed.filter(|passed| passed + 1 == last).and_then(|passed| self.entries.get_mut(passed));
        match before.map(|entry| &mut entry.what) {
            Some(Told::Does { thread, text, at, .. }) if *thread == who => {
                *text += &format!("; {lock}");
                at.clear();
                self.entries.pop();
            }
            _ => self.passed = Some(last),
        }
    }

    fn text(&self, row: &Row) -> String {
        match row.kind {
            RowKind::StepBegin => format!("▶ {}", row.what),
            RowKind::StepEnd => {
                let begun = |step: &&StepSpan| step.thread == row.thread && row.what.starts_with(&step.text);
                let step = self.reading.steps.iter().find(begun).map_or("", |step| step.text.as_str());
                match row.what[step.len()..].trim_start_matches([':', ' ']) {
                    "" => "■ done".to_owned(),
                    error => format!("■ failed: {error}"),
                }
            }
            RowKind::Fault => format!("✗ {}", self.reading.sentence(self.story, row)),
            _ => self.reading.sentence(self.story, row),
        }
    }

    fn count(&mut self, thread: usize, step: usize) {
        let count = self.skipped.get_mut(thread).map_or(0, std::mem::take);
        if count > 0 {
            let text = format!("… {}", operations(count));
            self.add(step, Told::Does { thread, text, held: None, at: String::new() });
        }
    }

    fn add(&mut self, step: usize, what: Told) {
        self.entries.push(Entry { step, what });
        self.joinable = None;
    }
}

fn operations(count: usize) -> String {
    format!("{count} {}", if count == 1 { "operation" } else { "operations" })
}

/// The assignment of threads to columns.
struct Columns {
    of: Vec<Option<usize>>,
    count: usize,
    width: usize,
}

impl Columns {
    /// Returns `None` if the width is too small for columns.
    fn of(story: &Story, entries: &[Entry], room: usize) -> Option<Self> {
        let mut seen: Vec<Option<(usize, usize)>> = vec![None; story.threads.len()];
        for (at, entry) in entries.iter().enumerate() {
            if let Some(thread) = entry.thread() {
                seen[thread] = Some((seen[thread].map_or(at, |seen| seen.0), at));
            }
        }
        let between = BETWEEN.chars().count();
        let fits = |count: usize| count * (NARROWEST + between) <= room + between;
        let shares = !fits(seen.iter().flatten().count());
        let mut ends: Vec<usize> = Vec::new();
        let mut threads: Vec<usize> = (0..seen.len()).filter(|thread| seen[*thread].is_some()).collect();
        if shares {
            threads.sort_by_key(|thread| seen[*thread]);
        }
        let mut of = vec![None; seen.len()];
        for thread in threads {
            let Some((first, last)) = seen[thread] else { continue };
            let free = ends.iter().position(|end| shares && *end < first);
            let column = free.unwrap_or_else(|| {
                ends.push(0);
                ends.len() - 1
            });
            ends[column] = last;
            of[thread] = Some(column);
        }
        let count = ends.len();
        let width = (room + between).checked_div(count)?.checked_sub(between)?;
        fits(count).then_some(Self { of, count, width })
    }
}

/// The output.
struct Page {
    width: usize,
    lines: Vec<String>,
}

impl Page {
    fn header(&mut self, story: &Story) {
        let faults = if story.faults.is_empty() { "none".to_owned() } else { story.faults.join("; ") };
        let again = story.replay_command();
        let after = story.schedules_before();
        let facts = [
            (story.tool.program, &story.program),
            ("invariant", &story.invariant),
            ("detail", &story.detail),
            ("run first", &after),
            ("faults", &faults),
            ("preemptions", &story.preemptions.to_string()),
            ("run again", &again),
        ];
        for (fact, value) in facts.into_iter().filter(|(_, value)| !value.is_empty()) {
            // The command is one line, so that it can be copied.
            let lines = match fact {
                "run again" => vec![clean(value)],
                _ => value.lines().flat_map(|line| wrap_indented(line, self.width - 13)).collect(),
            };
            for (at, line) in lines.into_iter().enumerate() {
                self.lines.push(format!("{:<13}{line}", if at == 0 { fact } else { "" }));
            }
        }
        self.lines.push(String::new());
    }

    fn columns(&mut self, story: &Story, entries: &[Entry], columns: Columns, gutter: usize) {
        let mut occupants: Vec<Option<usize>> = vec![None; columns.count];
        let (mut step, mut before) = (None, None);
        for thread in 0..columns.of.len() {
            if let Some(column) = columns.of[thread]
                && occupants[column].is_none_or(|other| first(entries, thread) < first(entries, other))
            {
                occupants[column] = Some(thread);
            }
        }
        let heads = occupants.iter().map(|thread| thread.map_or("", |thread| name(story, thread)));
        let heads: Vec<Vec<String>> = heads.map(|head| wrap(head, columns.width)).collect();
        self.cells("step", gutter, &columns, &heads);
        let rule = vec!["─".repeat(columns.width); columns.count].join("─┼─");
        self.lines.push(format!("{}{rule}", "─".repeat(gutter)));
        for entry in entries {
            let Told::Does { thread, text, held, at } = &entry.what else {
                self.across(entry, gutter);
                (step, before) = (Some(entry.step), None);
                continue;
            };
            let Some(column) = columns.of[*thread] else { continue };
            if occupants[column] != Some(*thread) {
                occupants[column] = Some(*thread);
                let mut cells = vec![Vec::new(); columns.count];
                let head = format!("{:─<1$}", format!("── {} ", clean(name(story, *thread))), columns.width);
                cells[column] = wrap(&head, columns.width);
                self.cells("", gutter, &columns, &cells);
            }
            let mut cells = vec![Vec::new(); columns.count];
            cells[column] = cell(text, held.as_deref(), at, columns.width);
            let switch = before.is_some_and(|before| before != *thread);
            self.cells(&number(&mut step, entry.step, switch, gutter), gutter, &columns, &cells);
            before = Some(*thread);
        }
    }

    /// Adds one line for every line that some column has.
    fn cells(&mut self, label: &str, gutter: usize, columns: &Columns, cells: &[Vec<String>]) {
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        for at in 0..height {
            let line = cells.iter().map(|cell| pad(cell.get(at).map_or("", String::as_str), columns.width));
            let label = if at == 0 { label } else { "" };
            self.lines.push(format!("{label:<gutter$}{}", line.collect::<Vec<_>>().join(BETWEEN)));
        }
    }

    fn across(&mut self, entry: &Entry, gutter: usize) {
        let room = self.width - gutter;
        match &entry.what {
            Told::Preemption(text) => {
                let lines = wrap(text, room - 8);
                let lines = lines.into_iter().map(|line| format!("{:╌<room$}", format!("╌╌╌ {line} ")));
                let indent = " ".repeat(gutter);
                self.lines.extend(lines.map(|line| format!("{indent}{line}")));
            }
            Told::Broken(text) => {
                self.lines.push("━".repeat(self.width));
                for (at, line) in wrap(text, room - 1).into_iter().enumerate() {
                    let label = if at == 0 { format!("{:>1$} ✗", entry.step, gutter - 2) } else { String::new() };
                    self.lines.push(format!("{}{line}", pad(&label, gutter + 1)));
                }
                self.lines.push("━".repeat(self.width));
            }
            Told::Left(text) => {
                let lines = wrap(&format!("… {text}"), room);
                self.lines.extend(lines.into_iter().map(|line| format!("{}{line}", " ".repeat(gutter))));
            }
            Told::Does { .. } => {}
        }
    }

    fn list(&mut self, story: &Story, entries: &[Entry], gutter: usize) {
        let (mut step, mut before) = (None, None);
        for entry in entries {
            let Told::Does { thread, text, held, at } = &entry.what else {
                self.across(entry, gutter);
                (step, before) = (Some(entry.step), None);
                continue;
            };
            if before != Some(*thread) {
                let label = number(&mut step, entry.step, before.is_some(), gutter);
                self.lines.push(format!("{label:<gutter$}{}:", clean(name(story, *thread))));
            }
            for line in cell(text, held.as_deref(), at, self.width - gutter - 2) {
                let label = number(&mut step, entry.step, false, gutter);
                self.lines.push(format!("{label:<gutter$}  {line}"));
            }
            before = Some(*thread);
        }
    }
}

fn first(entries: &[Entry], who: usize) -> Option<usize> {
    entries.iter().position(|entry| entry.thread() == Some(who))
}

/// Returns the step's number if it is a new one, and a mark if another thread goes on.
fn number(before: &mut Option<usize>, step: usize, switch: bool, gutter: usize) -> String {
    let new = before.replace(step) != Some(step);
    let number = if new { step.to_string() } else { String::new() };
    format!("{number:>0$}{1}", gutter - 2, if switch { '→' } else { ' ' })
}

/// Adds what a thread does, the locks that it then holds, and the place in the source if there is room.
fn cell(text: &str, held: Option<&str>, at: &str, width: usize) -> Vec<String> {
    let (mut lines, at) = (wrap(text, width), clean(at));
    let held = held.map(clean);
    let length = |lines: &[String]| lines.last().map_or(0, |line| line.chars().count());
    if let Some(held) = &held {
        match lines.last_mut() {
            Some(last) if last.chars().count() + 1 + held.chars().count() <= width => *last += &format!(" {held}"),
            _ => lines.extend(wrap(held, width - 2).into_iter().map(|line| format!("  {line}"))),
        }
    }
    let room = width.saturating_sub(length(&lines) + 2);
    if let Some(last) = lines.last_mut()
        && !at.is_empty()
        && at.chars().count() <= room
    {
        *last += &format!("  {at:>room$}");
    }
    lines
}

fn pad(text: &str, width: usize) -> String {
    format!("{text:<width$}")
}

/// Removes characters that would move a terminal's cursor.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Splits a text into lines of at most `width` characters, between words where possible.
/// Keeps a line as it is if it fits. Otherwise wraps its text, with the same indentation.
fn wrap_indented(line: &str, width: usize) -> Vec<String> {
    let line = clean(line);
    let line = line.trim_end();
    if line.chars().count() <= width {
        return vec![line.to_owned()];
    }
    let words = line.trim_start();
    let margin = " ".repeat((line.len() - words.len()).min(width / 2));
    wrap(words, width - margin.len()).into_iter().map(|line| format!("{margin}{line}")).collect()
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in clean(text).split(' ').filter(|word| !word.is_empty()) {
        let mut word: Vec<char> = word.chars().collect();
        if used > 0 && used + 1 + word.len() > width {
            lines.push(String::new());
            used = 0;
        }
        while word.len() > width {
            let rest = word.split_off(width);
            lines.extend([word.iter().collect(), String::new()]);
            word = rest;
        }
        let line = lines.last_mut().expect("there is a line");
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        used += word.len();
        line.extend(word);
    }
    lines.retain(|line| !line.is_empty());
    lines
}
