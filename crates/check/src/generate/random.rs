//! Random choices that follow from a seed alone, the same on every machine.

/// A source of random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// Returns the source for one story of a seed. Neighbouring numbers give unrelated sources.
    pub(super) fn new(seed: u64, number: u64) -> Self {
        let mut mixed = Self(seed);
        let seed = mixed.next();
        Self(seed ^ number.wrapping_mul(0xD1B5_4A32_D192_ED03))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Returns a number below `n`, which is not 0.
    pub(super) fn below(&mut self, n: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u32
    }

    /// Returns true `n` times in 100.
    pub(super) fn percent(&mut self, n: u32) -> bool {
        self.below(100) < n
    }

    /// Returns one of these, of which there is at least one. What is to be chosen more often is listed more often.
    pub(super) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_follow_from_the_seed_and_the_number() {
        let first = |seed, number| Random::new(seed, number).below(1_000_000);
        assert_eq!(first(1, 7), first(1, 7));
        assert_ne!(first(1, 7), first(1, 8));
        assert_ne!(first(1, 7), first(2, 7));
    }

    #[test]
    fn every_choice_is_made_sooner_or_later() {
        let mut random = Random::new(0, 0);
        let mut met = [0; 5];
        (0..1_000).for_each(|_| met[random.one_of(&[0, 1, 2, 3, 4])] += 1);
        assert!(met.iter().all(|times| (100..300).contains(times)), "{met:?}");
    }
}
