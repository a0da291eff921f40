//! Numbers of entries in arrays: which are free.

/// The numbers below a limit. One that was given back may still be read by a program that runs, so it is given out again
/// only after [`Slots::recycle`].
#[derive(Debug)]
pub(crate) struct Slots {
    next: u32,
    limit: u32,
    free: Vec<u32>,
    resting: Vec<u32>,
}

impl Slots {
    /// The numbers from `first` to `limit`, without the latter.
    pub(crate) fn new(first: u32, limit: u32) -> Slots {
        Slots { next: first, limit, free: Vec::new(), resting: Vec::new() }
    }

    /// The same, of which those of `taken` are in use.
    pub(crate) fn with_taken(first: u32, limit: u32, taken: &[u32]) -> Slots {
        let next = taken.iter().max().map_or(first, |last| (last + 1).max(first));
        let mut used = vec![false; next as usize];
        taken.iter().for_each(|number| used[*number as usize] = true);
        let free = (first..next).filter(|number| !used[*number as usize]).collect();
        Slots { next, limit, free: Vec::new(), resting: free }
    }

    /// How many can be taken before [`Slots::recycle`].
    pub(crate) fn ready(&self) -> usize {
        self.free.len() + (self.limit - self.next) as usize
    }

    pub(crate) fn take(&mut self) -> Option<u32> {
        if let Some(number) = self.free.pop() {
            return Some(number);
        }
        (self.next < self.limit).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    pub(crate) fn give_back(&mut self, number: u32) {
        self.resting.push(number);
    }

    /// Whether [`Slots::recycle`] would help.
    pub(crate) fn has_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Makes free what was given back. No program may still read it.
    pub(crate) fn recycle(&mut self) {
        self.free.append(&mut self.resting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_rests_before_it_is_used_again() {
        let mut slots = Slots::new(1, 3);
        assert_eq!((slots.take(), slots.take(), slots.take()), (Some(1), Some(2), None));
        slots.give_back(1);
        assert_eq!((slots.take(), slots.ready(), slots.has_resting()), (None, 0, true));
        slots.recycle();
        assert_eq!((slots.ready(), slots.take()), (1, Some(1)));
    }

    #[test]
    fn what_is_taken_is_not_given_out() {
        let mut slots = Slots::with_taken(1, 6, &[2, 4]);
        slots.recycle();
        let mut rest: Vec<u32> = std::iter::from_fn(|| slots.take()).collect();
        rest.sort_unstable();
        assert_eq!(rest, [1, 3, 5]);
    }
}
