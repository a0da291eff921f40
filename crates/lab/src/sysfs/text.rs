//! Values as text: written for programs, and parsed from what programs write.

use netlink::Errno;

use super::tree::{Act, Text};
use crate::UeventAction;

/// A value, with a newline.
pub(super) fn line(value: impl std::fmt::Display) -> Text {
    Ok(format!("{value}\n").into_bytes())
}

/// Parses a number as `kstrtouint` does: decimal, or hexadecimal after `0x`, or octal after `0`.
pub(super) fn number(text: &str) -> Result<u64, Errno> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match digits.strip_prefix('0') {
        Some("") => (digits, 10),
        Some(rest) => match rest.strip_prefix(['x', 'X']) {
            Some(hex) => (hex, 16),
            None => (rest, 8),
        },
        None => (digits, 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(Errno::INVAL);
    }
    u64::from_str_radix(digits, radix).map_err(|_| Errno::RANGE)
}

/// Parses a boolean as `kstrtobool` does.
pub(super) fn boolean(text: &str) -> Result<bool, Errno> {
    match text.as_bytes() {
        [b'y' | b'Y' | b't' | b'T' | b'1', ..] => Ok(true),
        [b'n' | b'N' | b'f' | b'F' | b'0', ..] => Ok(false),
        [b'o' | b'O', b'n' | b'N', ..] => Ok(true),
        [b'o' | b'O', b'f' | b'F', ..] => Ok(false),
        _ => Err(Errno::INVAL),
    }
}

/// Checks the name of a device or driver: it has no character with a meaning to a shell.
pub(super) fn name(text: &str) -> Result<&str, Errno> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:-+@".contains(c);
    if !text.is_empty() && text.len() < 256 && text.chars().all(plain) { Ok(text) } else { Err(Errno::INVAL) }
}

/// The text that a program has written: up to the first NUL, as the kernel's files see it (`kernfs_fop_write_iter` ends the
/// text with a NUL), and without the one newline that `echo` adds and `kstrtou16`, `kstrtobool` and `sysfs_streq` ignore.
pub(super) fn written(bytes: &[u8]) -> Result<&str, Errno> {
    if bytes.len() > 4096 {
        return Err(Errno::INVAL);
    }
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|_| Errno::INVAL)
}

/// What a program writes to `uevent`: the name of an event (`kobject_synth_uevent`).
pub(super) fn event(text: &str) -> Result<Act, Errno> {
    let event = text.split(' ').next().unwrap_or_default();
    UeventAction::parse(event).map(Act::Uevent).ok_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_what_the_kernel_takes() {
        let good = [("0", 0), ("12", 12), ("0x10", 16), ("010", 8), ("+3", 3)];
        assert!(good.iter().all(|(text, value)| number(text) == Ok(*value)), "{good:?}");
        for bad in ["", "-1", "1 2", "0x", "x", "1k", "08", "++1", "٣"] {
            assert_eq!(number(bad), Err(Errno::INVAL), "{bad:?}");
        }
        assert_eq!(number("99999999999999999999"), Err(Errno::RANGE));
    }

    #[test]
    fn names_mean_nothing_to_a_shell() {
        assert_eq!(name("0000:08:00.0"), Ok("0000:08:00.0"));
        for bad in ["", "a b", "a;b", "$x", "a>b", "a/b", "`a`", "a\u{e9}"] {
            assert_eq!(name(bad), Err(Errno::INVAL), "{bad:?}");
        }
    }

    #[test]
    fn a_text_ends_as_the_kernel_ends_it() {
        for (bytes, text) in
            [(&b"2\n"[..], "2"), (b"", ""), (b"\0", ""), (b"2\0\0", "2"), (b"\n", ""), (b"2\n\n", "2\n")]
        {
            assert_eq!(written(bytes), Ok(text));
        }
        for bad in [b"\xff", &[b'1'; 4097][..]] {
            assert_eq!(written(bad), Err(Errno::INVAL));
        }
        // What comes after the newline that is ignored is not.
        assert_eq!((number("2\n"), boolean("\t"), name("a\n").is_err()), (Err(Errno::INVAL), Err(Errno::INVAL), true));
    }
}
