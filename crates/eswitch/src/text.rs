//! Text from outside: names that a user, a configuration or another program has chosen.
//!
//! Control characters in such a text must not take effect where the text is shown: on a terminal, in a log, in a message
//! to a service manager. So a command that sets a name [refuses](find_control) one with control characters, and text
//! whose origin is unknown is [`escaped`] before it is shown.

use std::borrow::Cow;

/// Whether a character has an effect instead of an appearance: control characters, and characters of Unicode that
/// change the direction of text or are invisible.
pub fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Finds the first such character of a text, and returns its byte offset and the character.
pub fn find_control(text: &str) -> Option<(usize, char)> {
    text.char_indices().find(|(_, c)| is_control(*c))
}

/// Returns the text on one line, with each such character replaced by the escape that Rust writes for it: `\n`,
/// `\u{1b}`. All other characters stay as they are.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if find_control(text).is_none() {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match is_control(c) {
            true => safe.extend(c.escape_default()),
            false => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_others_stay() {
        for (text, shown) in [
            ("enp8s0f0np0", "enp8s0f0np0"),
            ("zwölf \"x\" \\ 中", "zwölf \"x\" \\ 中"),
            ("x\nREADY=1", "x\\nREADY=1"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("a\u{85}b\u{7f}", "a\\u{85}b\\u{7f}"),
            ("a\u{202e}b\u{feff}", "a\\u{202e}b\\u{feff}"),
        ] {
            assert_eq!(escaped(text), shown);
            assert_eq!(find_control(&escaped(text)), None);
        }
        assert_eq!(find_control("ab\tc"), Some((2, '\t')));
    }
}
