//! An archive of `ar`, as a Debian package is one: members one after the other, each after a header of 60 bytes.

use anyhow::{Result, ensure};

/// An archive with these members, in this order; root owns them, and each has this time.
///
/// # Errors
/// A name is longer than the 16 bytes of its field.
pub fn archive(members: &[(&str, &[u8])], mtime: u64) -> Result<Vec<u8>> {
    let mut archive = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        ensure!(name.len() <= 16, "`{name}` is longer than the 16 bytes that a name has in ar");
        let header = format!("{name:<16}{mtime:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, "100644", bytes.len());
        archive.extend(header.as_bytes());
        archive.extend(*bytes);
        // A member begins at an even place.
        if bytes.len() % 2 == 1 {
            archive.push(b'\n');
        }
    }
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_a_header_and_begins_at_an_even_place() {
        let archive = archive(&[("debian-binary", b"2.0\n"), ("odd", b"x"), ("last", b"yz")], 1_700_000_000).unwrap();
        let expected = "!<arch>\n\
            debian-binary   1700000000  0     0     100644  4         `\n2.0\n\
            odd             1700000000  0     0     100644  1         `\nx\n\
            last            1700000000  0     0     100644  2         `\nyz";
        assert_eq!(String::from_utf8(archive).unwrap(), expected);
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        assert!(super::archive(&[("a-name-of-17-byte", b"")], 0).unwrap_err().to_string().contains("16 bytes"));
    }
}
