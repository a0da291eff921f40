//! Makes new inputs from known ones, the same for the same seed.

/// Makes new inputs from known ones. The same seed gives the same inputs.
#[derive(Clone, Debug)]
pub struct Mutator(u64);

/// Numbers at a limit: of an alignment, a length field, a sign.
const EDGES: [u32; 12] = [0, 1, 3, 4, 15, 16, 0x7fff, 0x8000, 0xfffc, 0xffff, 0x7fff_ffff, 0xffff_ffff];

impl Mutator {
    /// A mutator with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        // xorshift64*.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    /// Returns an input with one to four changes; `other`: an input to insert pieces of.
    pub fn mutate(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.below(256) as u8),
                2 | 3 => self.number_at(&mut bytes, at, 4),
                4 => self.number_at(&mut bytes, at, 2),
                5 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
                6 => {
                    let (from, to) = self.piece(other.len());
                    bytes.splice(at..at, other[from..to].iter().copied());
                }
                _ => {
                    let (from, to) = self.piece(bytes.len());
                    bytes.drain(from..to);
                }
            }
        }
        bytes
    }

    fn piece(&mut self, length: usize) -> (usize, usize) {
        let from = self.below(length + 1);
        (from, from + self.below(length - from + 1))
    }

    /// Writes one of [`EDGES`] at an aligned place, where a length or a number may be.
    fn number_at(&mut self, bytes: &mut [u8], at: usize, width: usize) {
        let edge = EDGES[self.below(EDGES.len())].to_ne_bytes();
        if let Some(place) = bytes.get_mut(at & !1..(at & !1) + width) {
            place.copy_from_slice(&edge[..width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_again() {
        let made = |seed| {
            let mut mutator = Mutator::new(seed);
            (0..200).map(|_| mutator.mutate(b"something to begin with", b"else")).collect::<Vec<_>>()
        };
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
    }
}
