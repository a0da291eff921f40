//! Escapes text that other programs have chosen, for a terminal, a log or the service manager.
//!
//! Names of netdevs, rate nodes, cards and files can be chosen by any program that may set them. A control character in
//! one could move a terminal's cursor, add a line to a log, or be a message to the service manager. So it is shown as
//! Rust would write it, `\u{1b}`, and everything else as it is.

use std::borrow::Cow;

pub use eswitch::text::{escaped as printable, is_control};

/// Text of several lines, with every other control character escaped.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_control(c) && c != '\n', |c, to| to.extend(c.escape_default()))
}

/// JSON with every control character escaped. JSON itself leaves some of them in strings, and has none elsewhere.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    // All control characters are among the first 65,536, so four digits are enough.
    escaped(json, is_control, |c, to| to.push_str(&format!("\\u{:04x}", u32::from(c))))
}

fn escaped(text: &str, is: impl Fn(char) -> bool, escape: impl Fn(char, &mut String)) -> Cow<'_, str> {
    if !text.contains(&is) {
        return Cow::Borrowed(text);
    }
    let mut to = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is(c) { escape(c, &mut to) } else { to.push(c) }
    }
    Cow::Owned(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_others_stay() {
        assert!(matches!(printable("Grüße, 卡 0"), Cow::Borrowed(_)));
        assert_eq!(printable("x\nREADY=1"), "x\\nREADY=1");
        assert_eq!(printable("\u{1b}]0;t\u{7}\u{9b}2J\u{7f}"), "\\u{1b}]0;t\\u{7}\\u{9b}2J\\u{7f}");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(printable_lines("one\ntwo\r"), "one\ntwo\\r");
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let text = "a\u{7f}\u{85}\u{1b}\n\u{202e}";
        let json = serde_json::to_string(text).unwrap();
        let shown = printable_json(&json);
        assert!(!shown.contains(is_control), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
    }
}
