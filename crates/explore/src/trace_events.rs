//! A story as trace events, which Perfetto's viewer (ui.perfetto.dev) and Chrome open. There is one track for every
//! thread, with the locks it holds and the program's steps as slices, and the making and unmaking of resources as
//! instants. A second track shows when the thread runs, with preemptions as arrows between these tracks.
//!
//! A step of the schedule is a microsecond. What happens within one step is spread over it, so that the order is
//! visible. Slices nest: a lock that outlives the lock under which it was taken is shown in two pieces.

use serde_json::{Value, json};

use crate::reading::{Reading, WaitKind, short};
use crate::story::{RowKind, Story};

/// The group of tracks that show when each thread runs.
const RUNS: usize = 2;

/// A slice of a track.
struct Slice {
    from: usize,
    to: usize,
    name: String,
    category: &'static str,
    details: Value,
}

/// Returns the story in the object format of Chrome's trace events.
pub fn trace(story: &Story) -> Value {
    let reading = Reading::of(story);
    let times = times(story);
    let group = |pid: usize, name: &str| json!({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}});
    let mut events = vec![group(1, &story.program), group(RUNS, "running threads")];
    for (thread, name) in story.threads.iter().enumerate() {
        let tid = thread + 1;
        for pid in [1, RUNS] {
            let meta = |what: &str, args: Value| json!({"ph": "M", "pid": pid, "tid": tid, "name": what, "args": args});
            events.push(meta("thread_name", json!({"name": name})));
            events.push(meta("thread_sort_index", json!({"sort_index": tid})));
        }
        events.extend(track(story, &reading, &times, thread));
    }
    events.extend(runs(story, &reading, &times));
    json!({
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {
            (story.tool.program): story.program, "invariant": story.invariant, "detail": story.detail,
            "faults": story.faults, "preemptions": story.preemptions, "replay": story.token,
        },
    })
}

/// Returns the time of each row, in microseconds, and the time at which the story ends.
fn times(story: &Story) -> Vec<f64> {
    let mut times = Vec::with_capacity(story.rows.len() + 1);
    for step in story.rows.chunk_by(|a, b| a.step == b.step) {
        let share = |place: usize| place as f64 / step.len() as f64;
        times.extend((0..step.len()).map(|place| step[0].step as f64 + share(place)));
    }
    times.push(story.rows.last().map_or(0.0, |row| row.step as f64 + 1.0));
    times
}

/// Returns the events of one thread, in order of time.
fn track(story: &Story, reading: &Reading, times: &[f64], thread: usize) -> Vec<Value> {
    let mut slices = slices(story, reading, thread);
    // Of two slices that begin together, the longer one is the outer one.
    slices.sort_by_key(|slice| (slice.from, std::cmp::Reverse(slice.to)));
    let mut waiting = slices.into_iter().rev().collect::<Vec<_>>();
    let mut open: Vec<Slice> = Vec::new();
    let mut events = Vec::new();
    let event = |ph: &str, at: usize, slice: &Slice| {
        let (name, cat, args) = (&slice.name, slice.category, &slice.details);
        json!({"ph": ph, "pid": 1, "tid": thread + 1, "ts": times[at], "name": name, "cat": cat, "args": args})
    };
    for at in 0..times.len() {
        // Ends the slices that end here, with those on top of them, which continue afterwards.
        if let Some(lowest) = open.iter().position(|slice| slice.to == at) {
            let mut above = open.split_off(lowest);
            events.extend(above.iter().rev().map(|slice| event("E", at, slice)));
            above.retain(|slice| slice.to != at);
            events.extend(above.iter().map(|slice| event("B", at, slice)));
            open.append(&mut above);
        }
        events.extend(instant(story, reading, times, thread, at));
        while let Some(slice) = waiting.pop_if(|slice| slice.from == at) {
            if slice.to > at {
                events.push(event("B", at, &slice));
                open.push(slice);
            }
        }
    }
    events
}

fn slices(story: &Story, reading: &Reading, thread: usize) -> Vec<Slice> {
    let last = story.rows.len().saturating_sub(1);
    // A slice that goes on to the end of the story includes its last row.
    let end = |to: usize, ends: bool| if to == last && !ends { to + 1 } else { to };
    let locks = reading.locks.iter().filter(|lock| lock.thread == thread).map(|lock| {
        let details = json!({"at": story.rows[lock.from].at, "held": story.rows[lock.from].held});
        let name = reading.lock_name(&lock.class, lock.object);
        let to = end(lock.to, story.rows[lock.to].kind == RowKind::Release);
        Slice { from: lock.from, to, name, category: "lock", details }
    });
    let steps = reading.steps.iter().filter(|step| step.thread == thread).map(|step| {
        let details = json!({"ended": step.end});
        let to = end(step.to, story.rows[step.to].kind == RowKind::StepEnd);
        Slice { from: step.from, to, name: step.text.clone(), category: "step", details }
    });
    let waits =
        reading.waits.iter().filter(|wait| wait.thread == thread && (wait.forever || wait.kind == WaitKind::Lock));
    let waits = waits.map(|wait| {
        let (name, to) = (reading.waiting(story, wait), end(wait.to, !wait.forever));
        Slice { from: wait.from, to, name, category: "wait", details: json!({}) }
    });
    locks.chain(steps).chain(waits).collect()
}

/// An event that takes no time.
fn instant(story: &Story, reading: &Reading, times: &[f64], thread: usize, at: usize) -> Option<Value> {
    let row = story.rows.get(at).filter(|row| row.thread == thread)?;
    let (category, scope) = match row.kind {
        RowKind::Make | RowKind::Unmake => (story.tool.categories[0], "t"),
        RowKind::State => (story.tool.categories[1], "t"),
        RowKind::Fault => ("fault", "t"),
        RowKind::Violation => ("violation", "g"),
        RowKind::Preempted => ("preemption", "t"),
        RowKind::Read | RowKind::Write | RowKind::Notify | RowKind::Expire => ("operation", "t"),
        _ => return None,
    };
    let (name, args) = (reading.sentence(story, row), json!({"at": short(&row.at), "held": row.held}));
    let (tid, ts) = (thread + 1, times[at]);
    Some(json!({"ph": "i", "s": scope, "pid": 1, "tid": tid, "ts": ts, "name": name, "cat": category, "args": args}))
}

/// Adds the slices that show when each thread runs, as a second group of tracks, and the preemptions, as arrows from
/// the slice in which a thread was stopped to the one that goes on. An arrow needs a slice at both of its ends, and
/// a thread may be stopped where it holds nothing.
fn runs(story: &Story, reading: &Reading, times: &[f64]) -> Vec<Value> {
    let preempted = |at: usize| reading.switches.iter().find(|switch| switch.preempted && switch.at == at);
    let mut events = Vec::new();
    let mut from = 0;
    for run in story.rows.chunk_by(|a, b| a.thread == b.thread) {
        let (to, thread) = (from + run.len(), run[0].thread);
        let event = |ph: &str, ts: f64| {
            let name = &story.threads[thread];
            json!({"ph": ph, "pid": RUNS, "tid": thread + 1, "ts": ts, "name": name, "cat": "run"})
        };
        let arrow = |ph: &str, id: usize, ts: f64| {
            let name = "preemption";
            json!({"ph": ph, "id": id, "pid": RUNS, "tid": thread + 1, "ts": ts, "name": name, "cat": name, "bp": "e"})
        };
        events.push(event("B", times[from]));
        if preempted(from).is_some() {
            events.push(arrow("f", from, times[from]));
        }
        if preempted(to).is_some() {
            events.push(arrow("s", to, times[to - 1]));
        }
        events.push(event("E", times[to]));
        from = to;
    }
    events
}
