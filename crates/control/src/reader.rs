//! A text taken word by word, with errors that say what was expected and where.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use eswitch::text::is_control;

/// Words that cannot be read: at which byte of the text, and what was expected there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WordError {
    /// The byte of the text, from 0.
    pub at: usize,
    /// What is wrong, and what was expected.
    pub message: String,
}

/// A word and where it starts.
pub type Word<'t> = (usize, &'t str);

/// A text that is read word by word.
#[derive(Clone, Debug)]
pub struct Words<'t> {
    text: &'t str,
    words: Vec<Word<'t>>,
    next: usize,
    /// Whether keywords may be shortened.
    may_be_shortened: bool,
}

impl<'t> Words<'t> {
    /// The words of a line as it is typed. White space separates words; so does a `>` at the start of one, as in a
    /// shell. Keywords are written in full: such lines are kept in files, and read by others.
    pub fn new(text: &'t str) -> Self {
        let mut words = Vec::new();
        for word in text.split_whitespace() {
            let at = word.as_ptr().addr() - text.as_ptr().addr();
            match word.strip_prefix('>') {
                Some(path) if !path.is_empty() => words.extend([(at, ">"), (at + 1, path)]),
                _ => words.push((at, word)),
            }
        }
        Self { text, words, next: 0, may_be_shortened: false }
    }

    /// The arguments of a program, each of which is one word. `text` is the arguments with a space between each two.
    /// [Keywords](Self::keyword) may be shortened.
    pub fn of_arguments(text: &'t str, arguments: &[String]) -> Self {
        let mut words = Vec::new();
        let mut at = 0;
        for argument in arguments {
            words.push((at, text.get(at..at + argument.len()).unwrap_or_default()));
            at += argument.len() + 1;
        }
        Self { text, words, next: 0, may_be_shortened: true }
    }

    /// Refuses control characters anywhere in the text, except those in `allowed`: the text is shown on terminals.
    ///
    /// # Errors
    /// The text has a control character, at this byte.
    pub fn ensure_shown(&self, allowed: &[char]) -> Result<(), WordError> {
        let is_refused = |c: char| is_control(c) && !allowed.contains(&c);
        match self.text.trim_end().char_indices().find(|(_, c)| is_refused(*c)) {
            None => Ok(()),
            Some((at, control)) => {
                let message = format!("expected text, found the control character {}", control.escape_default());
                Err(WordError { at, message })
            }
        }
    }

    /// The next word, which stays the next one.
    pub fn peek(&self) -> Option<&'t str> {
        self.words.get(self.next).map(|(_, word)| *word)
    }

    /// The byte at which the next word starts, or the text ends.
    pub fn at(&self) -> usize {
        let end = self.text.trim_end().len();
        self.words.get(self.next).map_or(end, |(at, _)| *at)
    }

    /// Takes the rest of the text, from the next word on.
    pub fn rest(&mut self) -> &'t str {
        let at = self.at();
        self.next = self.words.len();
        self.text[at..].trim_end()
    }

    /// Takes the words before the next one that is `word`, or all that are left if there is none: at which byte of the
    /// text they start, and the text itself.
    pub fn before(&mut self, word: &str) -> (usize, &'t str) {
        let start = self.at();
        let stop = self.words[self.next..].iter().position(|(_, found)| *found == word);
        self.next = stop.map_or(self.words.len(), |stop| self.next + stop);
        (start, self.text[start..self.at()].trim_end())
    }

    /// Takes the next word, with the byte of the text at which it starts.
    ///
    /// # Errors
    /// There is none; `expected` says for the message what was expected.
    pub fn next(&mut self, expected: &str) -> Result<Word<'t>, WordError> {
        let word = self.words.get(self.next).copied();
        let word = word.ok_or_else(|| self.expected(expected))?;
        self.next += 1;
        Ok(word)
    }

    /// Takes the next word if it is this one; whether it was.
    pub fn accept(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(word);
        self.next += usize::from(found);
        found
    }

    /// Takes the next word, which must be this one.
    ///
    /// # Errors
    /// It is another one, or there is none.
    pub fn literal(&mut self, word: &str) -> Result<(), WordError> {
        if self.accept(word) {
            return Ok(());
        }
        Err(self.expected_one_of(&[word]))
    }

    /// Takes the next word, which must be one of these; which one it is.
    ///
    /// # Errors
    /// It is none of them, or there is no word left.
    pub fn one_of(&mut self, words: &[&'static str]) -> Result<&'static str, WordError> {
        let found = words.iter().copied().find(|word| self.peek() == Some(word));
        let word = found.ok_or_else(|| self.expected_one_of(words))?;
        self.next += 1;
        Ok(word)
    }

    /// Takes the next word, which must be one of these; which one it is. Where keywords may be shortened, a word may
    /// also be the beginning of exactly one of them.
    ///
    /// # Errors
    /// It is none of them, or there is no word left.
    pub fn keyword(&mut self, keywords: &[&'static str]) -> Result<&'static str, WordError> {
        let word = self.peek().filter(|word| self.may_be_shortened && !keywords.contains(word));
        let Some(word) = word.filter(|word| !word.is_empty()) else { return self.one_of(keywords) };
        let mut meant = keywords.iter().filter(|keyword| keyword.starts_with(word));
        match (meant.next(), meant.next()) {
            (Some(only), None) => {
                self.next += 1;
                Ok(only)
            }
            _ => Err(self.expected_one_of(keywords)),
        }
    }

    /// Takes the next word, which must parse as a `T`. `expected` describes one for the message.
    ///
    /// # Errors
    /// It does not parse, or there is no word left.
    pub fn parse<T: FromStr>(&mut self, expected: &str) -> Result<T, WordError> {
        let (_, word) = self.next(expected)?;
        word.parse().map_err(|_| {
            self.next -= 1;
            self.expected(expected)
        })
    }

    /// As [`parse`](Self::parse), for types whose own error says what was expected.
    ///
    /// # Errors
    /// As for [`parse`](Self::parse).
    pub fn parse_saying<T: FromStr<Err: Display>>(&mut self, expected: &str) -> Result<T, WordError> {
        let (at, word) = self.next(expected)?;
        word.parse().map_err(|error: T::Err| WordError { at, message: error.to_string() })
    }

    /// Takes the next word, which must be a time: a whole number with `us`, `ms` or `s`.
    ///
    /// # Errors
    /// It is no time, or there is no word left.
    pub fn duration(&mut self) -> Result<Duration, WordError> {
        const EXPECTED: &str = "a time such as 5ms, 200us or 1s";
        let (_, word) = self.next(EXPECTED)?;
        let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
        let (number, unit) = word.split_at(digits);
        let duration = number.parse().ok().and_then(|number| match unit {
            "us" => Some(Duration::from_micros(number)),
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            _ => None,
        });
        duration.ok_or_else(|| {
            self.next -= 1;
            self.expected(EXPECTED)
        })
    }

    /// Checks that no word is left.
    ///
    /// # Errors
    /// There is one.
    pub fn end(&self) -> Result<(), WordError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.expected("nothing more")),
        }
    }

    /// The error that something else was expected where the next word is.
    pub fn expected(&self, expected: &str) -> WordError {
        WordError {
            at: self.at(),
            message: match self.peek() {
                Some(found) => format!("expected {expected}, found `{found}`"),
                None => format!("expected {expected}, found the end"),
            },
        }
    }

    /// The error that one of these words was expected where the next word is, with the one that was probably meant.
    pub fn expected_one_of(&self, words: &[&str]) -> WordError {
        let mut error = self.expected(&list(words));
        if let Some(guess) = self.peek().and_then(|word| did_you_mean(word, words)) {
            error.message.push_str(&format!("; did you mean `{guess}`?"));
        }
        error
    }
}

/// Joins words for a message: `a`, `b` or `c`.
pub fn list(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// The word of a list from which a word differs least, if it differs by no more than a slip of the fingers.
pub fn did_you_mean<'w>(word: &str, words: &[&'w str]) -> Option<&'w str> {
    let near = words.iter().map(|w| (distance(word, w), *w));
    let limit = if word.len() < 4 { 1 } else { 2 };
    near.filter(|(d, _)| *d <= limit).min_by_key(|(d, _)| *d).map(|(_, w)| w)
}

/// How many characters must be inserted, deleted, replaced or swapped with the next to make one of the
/// other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_recognised_and_others_are_not() {
        let words = ["legacy", "switchdev"];
        assert_eq!(did_you_mean("swichdev", &words), Some("switchdev"));
        assert_eq!(did_you_mean("legcay", &words), Some("legacy"));
        assert_eq!(did_you_mean("eht", &["ib", "eth"]), Some("eth"));
        assert_eq!(did_you_mean("banana", &words), None);
    }

    #[test]
    fn a_redirection_needs_no_space() {
        let words = Words::new("echo 2 >/sys/x");
        assert_eq!(words.words, [(0, "echo"), (5, "2"), (7, ">"), (8, "/sys/x")]);
    }
}
