//! Numbers that represent values.

use std::hash::Hash;

pub(super) fn mix(a: u64, b: u64) -> u64 {
    let mut z = (a ^ b.rotate_left(32)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Computes a number that represents a value, for an explorer. Equal values have the same number in every run.
///
/// ```
/// assert_eq!(lockdep::digest(&(1, "one")), lockdep::digest(&(1, "one")));
/// assert_ne!(lockdep::digest(&(1, "one")), lockdep::digest(&(2, "two")));
/// ```
pub fn digest<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = Mixing(0);
    value.hash(&mut hasher);
    hasher.0
}

/// The hasher of the model's numbers: the same in every run.
#[derive(Default)]
pub(super) struct Mixing(u64);

impl std::hash::Hasher for Mixing {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }

    fn write_u16(&mut self, n: u16) {
        self.write_u64(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }

    #[inline]
    fn write_u64(&mut self, n: u64) {
        self.0 = mix(self.0, n);
    }
}
