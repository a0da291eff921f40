//! A page that shows stories: swim-lanes of the threads with the locks that they hold, the resources over time, and
//! where the invariant broke. It is one file, and needs no server and no network.
//!
//! This module computes what the page shows, and the page's script draws it. `page/page.html` is the frame, with
//! placeholders named `{{…}}` for the rest.

use serde_json::{Value, json};

use crate::reading::Reading;
use crate::story::{RowKind, Story};

const FRAME: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// What a page shows beside its stories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageInfo {
    /// Its heading.
    pub title: String,
    /// The program that explored, with its version.
    pub version: String,
    /// Facts about the campaign, as pairs of a name and a value, in the order in which they are shown.
    pub summary: Vec<(String, String)>,
}

/// Makes the page, as HTML.
pub fn page(stories: &[Story], campaign: &PageInfo) -> String {
    let data = json!({
        "version": campaign.version,
        "summary": campaign.summary,
        "ordered": ordered(stories),
        "stories": stories.iter().map(told).collect::<Vec<_>>(),
    });
    // In a script element only `<` can end it or begin a comment. In JSON it occurs only in strings.
    let data = data.to_string().replace('<', "\\u003c");
    fill(FRAME, |place| match place {
        "title" => escape(&campaign.title),
        "style" => STYLE.to_owned(),
        "script" => SCRIPT.to_owned(),
        "data" => data.clone(),
        _ => String::new(),
    })
}

/// Replaces the placeholders of a frame. What is put in is not searched again.
fn fill(frame: &str, with: impl Fn(&str) -> String) -> String {
    let mut parts = frame.split("{{");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (place, rest) = part.split_once("}}").unwrap_or(("", part));
        out += &with(place);
        out += rest;
    }
    out
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            _ => out.push(c),
        }
    }
    out
}

/// Returns the classes that are always shown, from the first story that names some.
fn ordered(stories: &[Story]) -> &[&'static str] {
    stories.iter().map(|story| &story.ordered[..]).find(|ordered| !ordered.is_empty()).unwrap_or_default()
}

/// A list of texts, each of which it contains once.
#[derive(Default)]
struct Texts(Vec<String>, std::collections::HashMap<String, usize>);

impl Texts {
    fn at(&mut self, text: &str) -> usize {
        if let Some(at) = self.1.get(text) {
            return *at;
        }
        self.0.push(text.to_owned());
        self.1.insert(text.to_owned(), self.0.len() - 1);
        self.0.len() - 1
    }
}

/// Returns a story in the form that the script reads. Texts are numbers, indexes into one list.
fn told(story: &Story) -> Value {
    let reading = Reading::of(story);
    let mut texts = Texts::default();
    let rows: Vec<Value> = story
        .rows
        .iter()
        .map(|row| {
            let said = texts.at(&reading.sentence(story, row));
            let held = texts.at(&row.held.join(" > "));
            let at = texts.at(&row.at);
            json!([row.step, row.thread, row.kind, said, at, held, usize::from(reading.is_detail(row))])
        })
        .collect();
    let locks = reading.locks.iter().map(|lock| {
        let (class, name) = (texts.at(&lock.class), texts.at(&reading.lock_name(&lock.class, lock.object)));
        let small = usize::from(reading.is_small(&lock.class));
        json!([lock.thread, class, name, lock.from, lock.to, lock.depth, small])
    });
    let locks: Vec<Value> = locks.collect();
    let waits = reading.waits.iter().map(|wait| {
        let (class, said) = (texts.at(&wait.class), texts.at(&reading.waiting(story, wait)));
        json!([wait.thread, class, said, wait.from, wait.to, wait.kind as usize, usize::from(wait.forever)])
    });
    let waits: Vec<Value> = waits.collect();
    let steps = reading.steps.iter().map(|step| {
        let end = step.end.as_deref().map(|end| texts.at(end));
        json!([step.thread, texts.at(&step.text), end, step.from, step.to])
    });
    let steps: Vec<Value> = steps.collect();
    let switches = reading.switches.iter().map(|s| json!([s.at, s.from, s.to, usize::from(s.preempted)]));
    let lanes: Vec<usize> = (0..story.threads.len())
        .filter(|thread| story.rows.iter().any(|row| row.thread == *thread && row.kind != RowKind::Start))
        .collect();
    json!({
        "kind": story.tool.program, "program": story.program, "invariant": story.invariant, "detail": story.detail, "token": story.token, "again": story.replay_command(),
        "faults": story.faults, "after": story.schedules_before(), "preemptions": story.preemptions, "threads": story.threads, "lanes": lanes,
        "rows": rows, "locks": locks, "waits": waits, "steps": steps, "switches": switches.collect::<Vec<_>>(),
        "resources": reading.resources, "things": reading.things, "broken": reading.broken, "texts": texts.0,
    })
}
