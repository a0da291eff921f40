//! The words of a command, one after the other.

use std::fmt::Display;
use std::str::FromStr;

use anyhow::{Result, anyhow, bail};

/// An instance or port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    pub bus: String,
    pub device: String,
    pub port: Option<u32>,
}

/// The words that are left.
pub struct Words<'a> {
    words: &'a [String],
}

impl<'a> Words<'a> {
    pub fn new(words: &'a [String]) -> Self {
        Self { words }
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    pub fn next(&mut self, expected: &str) -> Result<String> {
        match self.words.split_first() {
            Some((first, rest)) => {
                self.words = rest;
                Ok(first.clone())
            }
            None => bail!("{expected} is expected at the end"),
        }
    }

    /// One of these words, or the only one that begins so.
    pub fn choose(&mut self, among: &[&'static str], default: Option<&'static str>) -> Result<&'static str> {
        let Some(first) = self.words.first() else {
            return default.ok_or_else(|| anyhow!("one of {} is expected at the end", among.join(", ")));
        };
        let chosen = match among.iter().find(|word| *word == first) {
            Some(word) => Some(*word),
            None => {
                let mut begin = among.iter().filter(|word| word.starts_with(first.as_str()));
                begin.next().copied().filter(|_| begin.next().is_none())
            }
        };
        // What begins with a handle means what is done by default.
        match (chosen, default) {
            (Some(word), _) => {
                self.words = &self.words[1..];
                Ok(word)
            }
            (None, Some(default)) if first.contains('/') => Ok(default),
            _ => bail!("`{first}` is none of {}", among.join(", ")),
        }
    }

    /// The place of a word among these.
    pub fn number_of(&mut self, what: &str, among: &[&str]) -> Result<usize> {
        let word = self.next(what)?;
        let found = among.iter().position(|one| *one == word);
        found.ok_or_else(|| anyhow!("Unknown {what} \"{word}\"; it is one of {}", among.join(", ")))
    }

    /// Takes a word if it is there.
    pub fn has(&mut self, word: &str) -> bool {
        let is = self.words.first().is_some_and(|first| first == word);
        if is {
            self.words = &self.words[1..];
        }
        is
    }

    pub fn expect(&mut self, word: &str) -> Result<()> {
        if self.has(word) { Ok(()) } else { bail!("`{word}` is expected{}", self.instead()) }
    }

    fn instead(&self) -> String {
        self.words.first().map_or_else(|| " at the end".to_owned(), |found| format!(", found `{found}`"))
    }

    pub fn parse<T: FromStr<Err: Display>>(&mut self, expected: &str) -> Result<T> {
        let word = self.next(expected)?;
        word.parse().map_err(|_| anyhow!("`{word}` is not {expected}, or not within its range"))
    }

    /// A rate in bytes a second: `10mbit`, `1gbit`, `125kbps`, or bits without a unit.
    pub fn rate(&mut self) -> Result<u64> {
        const UNITS: [(&str, u64, u64); 8] = [
            ("bit", 1, 8),
            ("kbit", 1_000, 8),
            ("mbit", 1_000_000, 8),
            ("gbit", 1_000_000_000, 8),
            ("bps", 1, 1),
            ("kbps", 1_000, 1),
            ("mbps", 1_000_000, 1),
            ("gbps", 1_000_000_000, 1),
        ];
        let word = self.next("a rate such as 10mbit")?.to_lowercase();
        let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
        let (number, unit) = word.split_at(digits);
        let unit = if unit.is_empty() { "bit" } else { unit };
        let rate = UNITS
            .iter()
            .find(|(name, ..)| *name == unit)
            .and_then(|(_, times, bits)| number.parse::<u64>().ok()?.checked_mul(*times).map(|all| all / bits));
        rate.ok_or_else(|| {
            anyhow!("`{word}` is no rate; it is a number and bit, kbit, mbit, gbit, bps, kbps, mbps or gbps")
        })
    }

    pub fn device(&mut self) -> Result<Handle> {
        let word = self.next("a device such as pci/0000:08:00.0")?;
        match word.split('/').collect::<Vec<_>>()[..] {
            [bus, device] if !bus.is_empty() && !device.is_empty() => {
                Ok(Handle { bus: bus.to_owned(), device: device.to_owned(), port: None })
            }
            _ => bail!("`{word}` is no device; one looks like pci/0000:08:00.0"),
        }
    }

    pub fn device_or_all(&mut self) -> Result<Option<Handle>> {
        if self.is_empty() { Ok(None) } else { self.device().map(Some) }
    }

    pub fn port(&mut self) -> Result<Handle> {
        match self.port_or_node()? {
            (handle, None) => Ok(handle),
            (_, Some(name)) => bail!("Port index \"{name}\" is not a number or not within range"),
        }
    }

    pub fn port_or_all(&mut self) -> Result<Option<Handle>> {
        if self.is_empty() { Ok(None) } else { self.port().map(Some) }
    }

    /// A port, or an instance and the name of a rate node.
    pub fn port_or_node(&mut self) -> Result<(Handle, Option<String>)> {
        let word = self.next("a port such as pci/0000:08:00.0/1")?;
        match word.split('/').collect::<Vec<_>>()[..] {
            [bus, device, last] if !bus.is_empty() && !device.is_empty() && !last.is_empty() => {
                let port = last.parse().ok();
                let node = port.is_none().then(|| last.to_owned());
                Ok((Handle { bus: bus.to_owned(), device: device.to_owned(), port }, node))
            }
            _ => bail!("`{word}` is no port; one looks like pci/0000:08:00.0/1"),
        }
    }

    pub fn end(&self) -> Result<()> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => bail!("`{word}` is one word too many"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn words_may_be_shortened_but_not_beyond_what_is_clear() {
        let of = |text: &str| Words::new(&words(text)).choose(&["show", "set"], None).map_err(|e| e.to_string());
        assert_eq!(of("sh"), Ok("show"));
        assert_eq!(of("set"), Ok("set"));
        assert_eq!(of("s"), Err("`s` is none of show, set".to_owned()));
        assert_eq!(of(""), Err("one of show, set is expected at the end".to_owned()));
    }

    #[test]
    fn rates_are_bytes_a_second() {
        let of = |text: &str| Words::new(&words(text)).rate().ok();
        assert_eq!(of("10mbit"), Some(1_250_000));
        assert_eq!(of("10Mbps"), Some(10_000_000));
        assert_eq!(of("8"), Some(1));
        assert_eq!(of("10furlongs"), None);
        assert_eq!(of("99999999999999999999gbit"), None);
    }

    #[test]
    fn a_port_is_a_number_and_a_node_is_not() {
        let of = |text: &str| Words::new(&words(text)).port_or_node().map(|(h, node)| (h.port, node)).ok();
        assert_eq!(of("pci/0000:08:00.0/1"), Some((Some(1), None)));
        assert_eq!(of("pci/0000:08:00.0/gold"), Some((None, Some("gold".to_owned()))));
        assert_eq!(of("pci/0000:08:00.0"), None);
        assert_eq!(of("pci//1"), None);
    }
}
