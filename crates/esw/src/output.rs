//! Prints lines, tables, and colours on a terminal.

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use scenario::Ports;

use crate::printable::{printable, printable_lines};

/// The first error of writing to standard output.
static NOT_WRITTEN: OnceLock<std::io::Error> = OnceLock::new();

/// Whether the reader of standard output has closed it.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Prints a line to standard output. That its reader has closed it is no error. Any other error is kept for
/// [`not_written`], as the card has to be taken down first.
pub fn line(text: &str) {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => CLOSED.store(true, Ordering::Relaxed),
        Err(error) => drop(NOT_WRITTEN.set(error)),
        Ok(()) => {}
    }
}

/// Whether the reader of standard output has closed it.
pub fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Prints lines to standard error, with control characters escaped. An error of writing them is ignored.
pub fn complaint(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable_lines(text));
}

/// [`complaint`] with the arguments of `format!`.
macro_rules! complain {
    ($($text:tt)*) => { $crate::output::complaint(&format!($($text)*)) };
}
pub(crate) use complain;

/// The first error of writing to standard output, if there was one.
pub fn not_written() -> Option<&'static std::io::Error> {
    NOT_WRITTEN.get()
}

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    on: bool,
}

impl Style {
    /// Colours if standard output is a terminal and neither `NO_COLOR` nor `TERM=dumb` is set.
    pub fn detect() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { on: !refused && !dumb && std::io::stdout().is_terminal() }
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

/// A table of ports: a line of headings, and a line for each port.
pub fn ports(style: Style, ports: &Ports) -> Vec<String> {
    let mut widths = Ports::COLUMNS.map(str::len);
    // Other programs can give netdevs any name.
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

/// A number of things: `1 port`, `2 ports`.
pub fn many(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A time in the unit in which it has at most three digits before the point: `µs`, `ms` or `s`.
pub fn time(elapsed: Duration) -> String {
    let us = elapsed.as_micros();
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}
