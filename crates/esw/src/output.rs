//! What is printed: lines, tables, colours on a terminal.

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use scenario::Ports;

use crate::printable::{printable, printable_lines};

/// The first error of writing to standard output.
static NOT_WRITTEN: OnceLock<std::io::Error> = OnceLock::new();

/// Nobody reads standard output any more.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Prints a line to standard output. Whoever reads may have gone: that is not our error. Any other is
/// kept for [`not_written`], as the card has to be taken down first.
pub fn line(text: &str) {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => CLOSED.store(true, Ordering::Relaxed),
        Err(error) => drop(NOT_WRITTEN.set(error)),
        Ok(()) => {}
    }
}

/// Whether whoever read standard output has gone.
pub fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Prints lines to standard error, with what could do something to a terminal escaped. What cannot be said there is
/// not said, and nothing ends for it.
pub fn complaint(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable_lines(text));
}

/// [`complaint`] of what is formatted.
macro_rules! complain {
    ($($text:tt)*) => { $crate::output::complaint(&format!($($text)*)) };
}
pub(crate) use complain;

/// Why what should have been printed was not, if it was not.
pub fn not_written() -> Option<&'static std::io::Error> {
    NOT_WRITTEN.get()
}

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    on: bool,
}

impl Style {
    /// Colours if standard output is a terminal and nobody minds.
    pub fn detect() -> Self {
        let minded = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { on: !minded && !dumb && std::io::stdout().is_terminal() }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }
    pub fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }
}

/// A table of ports, a line each under a line of headings.
pub fn ports(style: Style, ports: &Ports) -> Vec<String> {
    let mut widths = Ports::COLUMNS.map(str::len);
    // Netdevs have the names that others give them.
    let rows: Vec<[String; 7]> = ports.0.iter().map(|row| row.each_ref().map(|cell| printable(cell).into())).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let line = |cells: [&str; 7]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![style.strong(&line(Ports::COLUMNS))];
    lines.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    lines
}

/// So many of something.
pub fn many(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A time in the unit it is best read in.
pub fn time(elapsed: Duration) -> String {
    let us = elapsed.as_micros();
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}
