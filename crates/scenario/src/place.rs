//! Places in a file, and errors with a place.

use std::fmt;
use std::ops::Range;

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl Place {
    /// The place of a byte of a text; a byte past the end has the place of the end.
    pub(crate) fn of(text: &str, byte: usize) -> Self {
        let before = &text[..text.floor_char_boundary(byte)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }
}

/// Input that cannot be used: its place, and what was expected there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct InputError {
    /// The place.
    pub place: Place,
    /// What is wrong, and what was expected.
    pub message: String,
}

/// The byte of the source that belongs to byte `offset` of the *value* of the TOML string at `span`. The two differ, as
/// quotes and escapes take room in the source that they do not take in the value.
pub(crate) fn inside_string(source: &str, span: &Range<usize>, offset: usize) -> usize {
    let raw = source.get(span.clone()).unwrap_or_default();
    let multi_line = raw.starts_with("\"\"\"") || raw.starts_with("'''");
    let mut at = match (multi_line, raw.starts_with(['"', '\''])) {
        (true, _) => 3,
        (false, true) => 1,
        (false, false) => 0,
    };
    if multi_line {
        let newline = raw[at..].strip_prefix("\r\n").map(|_| 2);
        at += newline.or(raw[at..].strip_prefix('\n').map(|_| 1)).unwrap_or(0);
    }
    let escapes = raw.starts_with('"');
    let mut left = offset;
    let mut chars = raw[at..].chars().peekable();
    while left > 0
        && let Some(c) = chars.next()
    {
        at += c.len_utf8();
        let mut value = c.len_utf8();
        if escapes && c == '\\' {
            let digits = match chars.next() {
                Some('x') => 2,
                Some('u') => 4,
                Some('U') => 8,
                _ => 0,
            };
            at += 1;
            let code: String = chars.by_ref().take(digits).collect();
            at += code.len();
            let escaped = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
            value = escaped.map_or(1, char::len_utf8);
        }
        left = left.saturating_sub(value);
    }
    span.start + at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_from_one_in_characters() {
        let text = "one\nzwölf x\n";
        for (byte, line, column) in [(0, 1, 1), (3, 1, 4), (4, 2, 1), (8, 2, 4), (11, 2, 7), (99, 3, 1)] {
            assert_eq!(Place::of(text, byte), Place { line, column }, "byte {byte}");
        }
    }

    #[test]
    fn quotes_and_escapes_take_room_only_in_the_source() {
        for (source, offset, expected) in [
            ("\"abc\"", 2, 3),
            ("'abc'", 2, 3),
            ("'''abc'''", 2, 5),
            ("\"\"\"\nabc\"\"\"", 2, 6),
            (r#""a\tbc""#, 2, 4),
            (r#""\u00fcx""#, 2, 7),
            (r#""a\"b""#, 2, 4),
        ] {
            assert_eq!(inside_string(source, &(0..source.len()), offset), expected, "{source}");
        }
    }
}
