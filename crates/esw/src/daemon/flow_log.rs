//! The flow rules of a card and the filters of its netdevs, in a file beside the [journal](super::journal).
//!
//! They are many and change often, so they are no part of the agreed state, which is written as a whole. Each change is a
//! line of JSON at the end of `NAME.flows`, which is written before the change is answered. The file is not flushed: the kernel has
//! it when the process is killed, and rules do not outlive the kernel, whose boot the first line names. When most
//! of the lines are about what is gone, the file is written anew.
//!
//! The file says what a rule is, not that it is still there: on a card of netdevs the kernel has the rules, and the next daemon
//! takes only those over that it finds there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result};
use eswitch::{FlowRecord, PfIndex, StoredFlows};
use flow::{Meter, MeterId, Rule, RuleId};
use lockdep::{Locked, Mutex};
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tc::StoredFilters;

use super::folders::{self, OURS_ALONE};
use crate::lock_order::FlowLogClass;

/// The version of the lines.
const VERSION: u32 = 1;
/// So many lines more than there are rules and filters are not worth writing the file anew.
const SLACK: usize = 4096;

/// The first line.
#[derive(PartialEq, Serialize, Deserialize)]
struct Head {
    version: u32,
    boot: String,
}

/// Every other line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Flow(FlowRecord),
    Filter(tc::Record),
}

/// The rules and filters of a card, with their file.
pub struct FlowLog {
    queue: Sender<Line>,
    written: Mutex<FlowLogClass, Written>,
}

struct Written {
    place: Place,
    queued: Receiver<Line>,
    /// The file, unless there is none yet.
    file: Option<Whole>,
    /// Lines that are not in it yet.
    pending: Vec<u8>,
    /// How many lines it has, and how many it had when it was written anew.
    lines: (usize, usize),
    /// It could not be written, and that was told.
    is_failing: bool,
}

/// A file with the length of its whole lines. What is behind them was left by a write that failed.
struct Whole {
    file: File,
    length: u64,
}

/// Where the file is. It is opened relative to the folder: by the time of a write the path may be hidden from the process.
struct Place {
    folder: OwnedFd,
    name: String,
    /// For messages.
    path: PathBuf,
}

/// What lines have come to.
#[derive(Default)]
struct Content {
    lines: usize,
    rules: BTreeMap<RuleId, (PfIndex, Box<Rule>)>,
    meters: BTreeMap<(PfIndex, MeterId), Meter>,
    last_rule: u64,
    filters: StoredFilters,
}

impl Content {
    fn apply(&mut self, line: Line) {
        self.lines += 1;
        match line {
            Line::Filter(record) => self.filters.apply(record),
            Line::Flow(FlowRecord::Rule(pf, id, rule)) => {
                self.last_rule = self.last_rule.max(id.0);
                self.rules.insert(id, (pf, rule));
            }
            Line::Flow(FlowRecord::Gone(id)) => {
                self.last_rule = self.last_rule.max(id.0);
                self.rules.remove(&id);
            }
            Line::Flow(FlowRecord::Meter(pf, id, meter)) => drop(self.meters.insert((pf, id), meter)),
            Line::Flow(FlowRecord::MeterGone(pf, id)) => drop(self.meters.remove(&(pf, id))),
            Line::Flow(FlowRecord::Cleared(pf)) => {
                self.rules.retain(|_, (of, _)| *of != pf);
                self.meters.retain(|(of, _), _| *of != pf);
            }
        }
    }

    /// The lines that make it.
    fn into_lines(self) -> impl Iterator<Item = Line> {
        let last = FlowRecord::Gone(RuleId(self.last_rule));
        let meters = self.meters.into_iter().map(|((pf, id), meter)| FlowRecord::Meter(pf, id, meter));
        let rules = self.rules.into_iter().map(|(id, (pf, rule))| FlowRecord::Rule(pf, id, rule));
        let flows = std::iter::once(last).chain(meters).chain(rules).map(Line::Flow);
        flows.chain(self.filters.into_records().map(Line::Filter))
    }

    /// The rules and filters that can be restored.
    fn into_stored(self) -> (StoredFlows, Vec<tc::Stored>) {
        let flows = StoredFlows {
            rules: self.rules.into_iter().map(|(id, (pf, rule))| (pf, id, *rule)).collect(),
            meters: self.meters.into_iter().map(|((pf, id), meter)| (pf, id, meter)).collect(),
            last_rule: self.last_rule,
        };
        (flows, self.filters.into_filters())
    }
}

impl FlowLog {
    /// The file of a card in the folder of its state, and what is in it. What cannot be read is as good as not there: then the
    /// card comes up without those rules.
    ///
    /// # Errors
    /// The folder cannot be opened.
    pub fn open(folder: &Path, card: &str) -> Result<(Self, StoredFlows, Vec<tc::Stored>)> {
        let name = format!("{card}.flows");
        let place = Place { folder: folders::open(folder)?, path: folder.join(&name), name };
        let (content, file) = read(&place).unwrap_or_else(|error| {
            tracing::warn!("the flow rules of {card} cannot be read, and are not restored: {error:#}");
            (Content::default(), None)
        });
        let lines = content.lines;
        let (flows, filters) = content.into_stored();
        let (queue, queued) = channel();
        let live = flows.rules.len() + flows.meters.len() + filters.len();
        let written = Written { place, queued, file, pending: Vec::new(), lines: (lines, live), is_failing: false };
        Ok((Self { queue, written: Mutex::new(written) }, flows, filters))
    }

    /// Queues a change to the rules.
    pub fn note_flow(&self, record: FlowRecord) {
        // The other end lives as long as this one.
        let _ = self.queue.send(Line::Flow(record));
    }

    /// Queues a change to the filters.
    pub fn note_filter(&self, record: tc::Record) {
        let _ = self.queue.send(Line::Filter(record));
    }

    /// Writes what is queued. An error is told in the log, once, and what is missing is written when that is possible.
    pub fn flush<L>(&self, cx: &mut Locked<'_, L>) {
        self.written.lock_leaf(cx).flush();
    }

    /// Removes the file: the rules have gone with the card, or are to be forgotten.
    pub fn forget<L>(&self, cx: &mut Locked<'_, L>) {
        let written = &mut *self.written.lock_leaf(cx);
        written.queued.try_iter().for_each(drop);
        (written.file, written.pending, written.lines) = (None, Vec::new(), (0, 0));
        let Place { folder, name, .. } = &written.place;
        let _ = unlinkat(folder, name.as_str(), AtFlags::empty());
    }
}

impl Written {
    fn flush(&mut self) {
        for line in self.queued.try_iter() {
            if serde_json::to_writer(&mut self.pending, &line).is_ok() {
                self.pending.push(b'\n');
                self.lines.0 += 1;
            }
        }
        match self.write() {
            Ok(()) => self.is_failing = false,
            Err(error) if !std::mem::replace(&mut self.is_failing, true) => {
                let path = self.place.path.display();
                tracing::error!("{path}: a restart will not know of the latest flow rules: {error:#}");
            }
            Err(_) => {}
        }
    }

    fn write(&mut self) -> Result<()> {
        let whole = match &mut self.file {
            Some(whole) => whole,
            // Nobody needs a file without rules.
            None if self.pending.is_empty() => return Ok(()),
            none => none.insert(write_anew(&self.place, Content::default())?.0),
        };
        whole.file.write_all_at(&self.pending, whole.length)?;
        whole.length += self.pending.len() as u64;
        self.pending.clear();
        if self.lines.0 > 2 * self.lines.1 + SLACK {
            let (content, _) = read(&self.place)?;
            let (whole, lines) = write_anew(&self.place, content)?;
            (self.file, self.lines) = (Some(whole), (lines, lines));
        }
        Ok(())
    }
}

/// Writes the file anew. Returns it with the number of its lines after the first.
fn write_anew(Place { folder, name, .. }: &Place, content: Content) -> io::Result<(Whole, usize)> {
    let new = format!("{name}-new");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(folder, new.as_str(), flags, OURS_ALONE)?;
    let (mut writer, mut lines) = (BufWriter::new(File::from(file)), 0);
    serde_json::to_writer(&mut writer, &Head { version: VERSION, boot: boot() })?;
    writer.write_all(b"\n")?;
    for line in content.into_lines() {
        serde_json::to_writer(&mut writer, &line)?;
        writer.write_all(b"\n")?;
        lines += 1;
    }
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    renameat(folder, new.as_str(), folder, name.as_str())?;
    Ok((Whole { length: file.metadata()?.len(), file }, lines))
}

/// What names this boot of the machine.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Reads the file, if it is one of this boot.
fn read(place: &Place) -> Result<(Content, Option<Whole>)> {
    let (mut content, path) = (Content::default(), &place.path);
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match openat(&place.folder, place.name.as_str(), flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok((content, None)),
        file => File::from(file.with_context(|| path.display().to_string())?),
    };
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    let mut length = reader.read_until(b'\n', &mut line)? as u64;
    let head: Head = serde_json::from_slice(&line).with_context(|| format!("{}: the first line", path.display()))?;
    if head != (Head { version: VERSION, boot: boot() }) {
        tracing::info!("{}: of another version or another boot of the machine", path.display());
        return Ok((content, None));
    }
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)? as u64;
        // The process may have been killed in the middle of the last one.
        let whole = line.strip_suffix(b"\n").unwrap_or_default();
        let Ok(line) = serde_json::from_slice(whole) else { break };
        content.apply(line);
        length += read;
    }
    Ok((content, Some(Whole { file, length })))
}

#[cfg(test)]
mod tests {
    use flow::{Action, Match, Port};

    use super::*;
    use crate::daemon::folders::Temporary;

    fn rule(port: u32) -> FlowRecord {
        let rule = Rule::new(Port(port), Match::new(), [Action::Drop]);
        FlowRecord::Rule(PfIndex(0), RuleId(port.into()), Box::new(rule))
    }

    /// Opens the file, applies records, and returns what it had before.
    fn append(folder: &Path, records: impl IntoIterator<Item = FlowRecord>) -> Vec<u64> {
        let (log, flows, _) = FlowLog::open(folder, "card").unwrap();
        records.into_iter().for_each(|record| log.note_flow(record));
        let domain = crate::lock_order::domain(true);
        lockdep::enter(&domain, "test", |cx| log.flush(cx));
        flows.rules.into_iter().map(|(_, id, _)| id.0).collect()
    }

    #[test]
    fn what_is_written_is_read_and_a_torn_line_is_not() {
        let folder = Temporary::new("flow-log");
        assert_eq!(append(folder.path(), [rule(1), rule(2), rule(3), FlowRecord::Gone(RuleId(2))]), [0; 0]);
        assert_eq!(append(folder.path(), [rule(9)]), [1, 3]);
        let path = folder.path().join("card.flows");
        let whole = fs::read(&path).unwrap();
        for length in [whole.len() - 1, whole.len() - 20] {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(append(folder.path(), []), [1, 3]);
        }
        fs::write(&path, "no JSON\n").unwrap();
        assert_eq!(append(folder.path(), [FlowRecord::Cleared(PfIndex(0))]), [0; 0]);
        // Another boot has none of them.
        let other = String::from_utf8(whole).unwrap().replace(&boot(), "another");
        fs::write(&path, other).unwrap();
        assert_eq!(append(folder.path(), []), [0; 0]);
    }

    #[test]
    fn the_file_does_not_grow_with_what_is_gone() {
        let folder = Temporary::new("flow-log");
        for round in 0..20 {
            let records = (0..SLACK as u32).flat_map(|n| [rule(n + 2), FlowRecord::Gone(RuleId(u64::from(n) + 2))]);
            append(folder.path(), records.chain([rule(1)]));
            let length = fs::metadata(folder.path().join("card.flows")).unwrap().len();
            assert!(length < 1 << 20, "{length} bytes in round {round}");
        }
        let (_, flows, _) = FlowLog::open(folder.path(), "card").unwrap();
        // No name is given again.
        assert_eq!((flows.rules.len(), flows.last_rule), (1, SLACK as u64 + 1));
    }
}
