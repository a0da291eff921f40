//! Digests of files, as hexadecimal digits.

use md5::Md5;
use sha2::{Digest, Sha256};

/// The SHA-256 of bytes: 64 digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The MD5 of bytes: 32 digits. Only for `md5sums` of a Debian package, which has no other.
pub fn md5(bytes: &[u8]) -> String {
    hex(&Md5::digest(bytes))
}

/// Lines as `sha256sum` and `md5sum` write and check them: digest, two spaces, name.
pub fn sums<'f>(files: impl IntoIterator<Item = (&'f str, &'f [u8])>, digest: fn(&[u8]) -> String) -> String {
    files.into_iter().map(|(name, bytes)| format!("{}  {name}\n", digest(bytes))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standards() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(md5(b"abc"), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(
            sums([("a", &b"abc"[..]), ("b/c", b"")], md5),
            "900150983cd24fb0d6963f7d28e17f72  a\nd41d8cd98f00b204e9800998ecf8427e  b/c\n"
        );
    }
}
