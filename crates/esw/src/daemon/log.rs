//! The daemon's log: its start and end, events of its cards, commands and refusals.
//!
//! Nothing depends on the log. A line that cannot be written is left out and counted, whether the disk is full, the pipe is
//! closed, or its reader has not read for a while. The number of lines left out is logged first when there is room again.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use control::Follower;
use eswitch::Event;
use host::LiveCard;
use lockdep::{Domain, Locked, Unlocked};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::arguments::{Level, LogFormat, Service};
use crate::printable::printable;

/// Begins to log, to standard error.
///
/// # Errors
/// `ESW_LOG` is no level; or the system gives no signal handler.
pub fn begin(service: &Service) -> Result<()> {
    let level = match (service.log, env::var("ESW_LOG")) {
        (Some(level), _) => level,
        (None, Ok(text)) if !text.is_empty() => Level::from_str(&text, true)
            .map_err(|_| anyhow!("ESW_LOG is `{text}`; it must be error, warn, info, debug or trace"))?,
        _ => Level::default(),
    };
    let filter = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    // Where files may not grow any more (`ulimit -f`), writing must fail rather than end the process.
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    let format = service.log_format.unwrap_or_default();
    let log = tracing_subscriber::fmt().with_max_level(filter).with_target(false).log_internal_errors(false);
    let log = log.with_writer(Lines(Arc::new(Mutex::new(LogOutput::new(io::stderr(), format)))));
    let begun = match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    begun.map_err(|error| anyhow!("beginning to log: {error}"))
}

/// Logs the events of a card, until the returned follower is dropped.
///
/// # Errors
/// The system gives no thread.
pub fn follow(
    cx: &mut Locked<'_, Unlocked>,
    card: &str,
    live: &LiveCard,
    domain: &Arc<Domain>,
) -> io::Result<Follower> {
    let card = card.to_owned();
    Follower::start(cx, live.engine(), domain, "log", move |_, events| {
        events.iter().for_each(|event| log_event(&card, event));
        None
    })
}

fn log_event(card: &str, event: &Event) {
    // Other programs can give netdevs and rate nodes any name.
    let text = event.to_string();
    let text = printable(&text);
    match event {
        Event::LoadFailed(..) | Event::HostVfsFailed(..) | Event::ProbeFailed(..) => tracing::warn!(card, "{text}"),
        Event::PortNew(_) | Event::PortDel(_) | Event::StaleWork(..) => tracing::debug!(card, "{text}"),
        _ => tracing::info!(card, "{text}"),
    }
}

/// Where the log's lines go.
///
/// Its lock is none of `lockdep`'s: `tracing` calls it from any thread, with whatever locks that holds, and passes no
/// token. Nothing is taken while it is held, and no line takes longer than [`PATIENCE`].
struct Lines<W>(Arc<Mutex<LogOutput<W>>>);

/// One line, which is written in one piece.
struct Line<W>(Arc<Mutex<LogOutput<W>>>);

/// The output of a log, and what is known of the lines that were written to it.
struct LogOutput<W> {
    to: W,
    format: LogFormat,
    /// The number of lines that were left out since the last one that was written.
    left_out: u64,
    /// Why the last of them was left out.
    why: String,
    /// Whether only a part of the last line was written.
    cut: bool,
}

/// A destination of a log that can tell whether writing would have to wait.
trait Output: Write {
    /// Whether there is room, or will be within this number of milliseconds.
    fn has_room(&self, milliseconds: u32) -> bool;
}

impl Output for io::Stderr {
    fn has_room(&self, milliseconds: u32) -> bool {
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(milliseconds) * 1_000_000 };
        let mut fds = [PollFd::new(self, PollFlags::OUT)];
        // If the system does not tell, writing shows it.
        poll(&mut fds, Some(&timeout)).map_or(true, |ready| ready > 0)
    }
}

impl<'a, W: Output + 'static> MakeWriter<'a> for Lines<W> {
    type Writer = Line<W>;

    fn make_writer(&'a self) -> Line<W> {
        Line(Arc::clone(&self.0))
    }
}

impl<W: Output> Write for Line<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long a line waits for room, in milliseconds. After one that was left out, the next ones do not wait.
const PATIENCE: u32 = 100;

/// The most bytes that a pipe with room takes without waiting: PIPE_BUF.
const PIECE: usize = 4096;

impl<W: Output> LogOutput<W> {
    fn new(to: W, format: LogFormat) -> Self {
        Self { to, format, left_out: 0, why: String::new(), cut: false }
    }

    /// Writes a line, or counts it as left out.
    fn put(&mut self, line: &[u8]) {
        let counted = if self.left_out > 0 { self.write_all(self.left_out_line().as_bytes()) } else { Ok(()) };
        if counted.is_ok() {
            self.left_out = 0;
        }
        if let Err(error) = counted.and_then(|()| self.write_all(line)) {
            self.left_out += 1;
            self.why = error.to_string();
        }
    }

    /// The line that reports how many lines were left out.
    fn left_out_line(&self) -> String {
        let (lines, why) = (self.left_out, &self.why);
        match self.format {
            LogFormat::Text => format!(" WARN lines of the log are missing lines={lines} why={why:?}\n"),
            LogFormat::Json => {
                let object = serde_json::json!({
                    "level": "WARN", "message": "lines of the log are missing", "lines": lines, "why": why,
                });
                format!("{object}\n")
            }
        }
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        if self.cut {
            self.write_piece(b"\n")?;
            self.cut = false;
        }
        for (number, piece) in line.chunks(PIECE).enumerate() {
            let written = self.write_piece(piece);
            self.cut = self.cut || (written.is_err() && number > 0);
            written?;
        }
        Ok(())
    }

    fn write_piece(&mut self, mut piece: &[u8]) -> io::Result<()> {
        let patience = if self.left_out == 0 { PATIENCE } else { 0 };
        while !piece.is_empty() {
            if !self.to.has_room(patience) {
                return Err(io::Error::other("it is not read"));
            }
            match self.to.write(piece) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => {
                    piece = &piece[length..];
                    self.cut = !piece.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with limited room, and a pipe that may not be read.
    struct Disk {
        written: Vec<u8>,
        room: usize,
        is_read: bool,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let length = bytes.len().min(self.room);
            if length == 0 {
                return Err(io::Error::from_raw_os_error(28));
            }
            self.room -= length;
            self.written.extend(&bytes[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output for Disk {
        fn has_room(&self, _: u32) -> bool {
            self.is_read
        }
    }

    fn log(format: LogFormat) -> LogOutput<Disk> {
        LogOutput::new(Disk { written: Vec::new(), room: usize::MAX, is_read: true }, format)
    }

    #[test]
    fn lines_that_a_full_disk_does_not_take_are_counted_and_reported_when_there_is_room() {
        let mut log = log(LogFormat::Text);
        log.put(b"one\n");
        log.to.room = 2;
        for _ in 0..3 {
            log.put(b"two\n");
        }
        log.to.room = usize::MAX;
        log.put(b"three\n");
        let text = String::from_utf8(log.to.written).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[1], lines[3]), ("one", "tw", "three"), "{text}");
        assert!(lines[2].contains("lines=3") && lines[2].contains("No space left"), "{text}");
    }

    #[test]
    fn a_pipe_that_is_not_read_holds_nothing_up() {
        let mut log = log(LogFormat::Json);
        log.to.is_read = false;
        log.put(b"{}\n");
        log.put(b"{}\n");
        assert_eq!(log.to.written, b"");
        log.to.is_read = true;
        log.put(b"{}\n");
        let text = String::from_utf8(log.to.written).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["lines"], lines.len()), (&2.into(), 2), "{text}");
    }
}
