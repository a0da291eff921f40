//! Text from outside: names that a user, a configuration or another program has chosen.
//!
//! What such a text holds must not take effect where it is shown: on a terminal, in a log of lines, in what is told to
//! a service manager. So where a name is chosen, one with such characters is [refused](find_control), and where others
//! may have chosen it, it is [`escaped`].

use std::borrow::Cow;

/// Whether a character does something rather than show something: the control characters, and those that change the
/// order in which text is shown or are not to be seen at all.
pub fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The first such character of a text, and the byte at which it stands.
pub fn find_control(text: &str) -> Option<(usize, char)> {
    text.char_indices().find(|(_, c)| is_control(*c))
}

/// The text on one line, with such characters as Rust writes them: `\n`, `\u{1b}`. Others stay as they are.
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
    fn what_does_something_is_escaped_and_what_shows_something_stays() {
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
