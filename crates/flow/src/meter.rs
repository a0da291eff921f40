//! Meters: token buckets of bytes or packets a second (`net/sched/act_police.c`).

use std::time::Duration;

/// The name of a meter: the index of a police action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeterId(pub u32);

/// How much a meter lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meter {
    /// The rate.
    pub rate: Rate,
    /// How much may come at once, in the rate's unit. [`Rate::Mtu`] has no burst.
    pub burst: u64,
}

/// A rate of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Bytes a second. A frame counts with its Ethernet header and without the frame check sequence.
    Bytes(u64),
    /// Packets a second.
    Packets(u64),
    /// No rate: frames of at most so many bytes conform, with their Ethernet header and tags (`police mtu`, which Open
    /// vSwitch makes of `check_pkt_larger`; `tcf_police_mtu_check`). At least 1.
    Mtu(u32),
}

impl Meter {
    /// Whether the meter can ever let a frame through.
    pub fn is_sensible(&self) -> bool {
        match self.rate {
            Rate::Bytes(rate) | Rate::Packets(rate) => rate != 0 && self.burst != 0,
            Rate::Mtu(mtu) => mtu != 0,
        }
    }
}

/// What is left in a meter, and what it has measured.
///
/// Tokens are kept in billionths, so that nothing is lost by rounding. (The kernel keeps nanoseconds, and rounds the
/// time that a frame takes.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    meter: Meter,
    tokens: u128,
    at: Duration,
    /// The frames that conformed.
    pub conformed: u64,
    /// The frames that exceeded the rate.
    pub exceeded: u64,
}

const NANO: u128 = 1_000_000_000;

impl Bucket {
    /// The full bucket of a meter.
    pub(crate) fn full(meter: Meter, now: Duration) -> Bucket {
        Bucket { meter, tokens: u128::from(meter.burst) * NANO, at: now, conformed: 0, exceeded: 0 }
    }

    /// Measures a frame of `bytes`. Returns whether it conforms.
    ///
    /// A frame that exceeds takes no tokens. If the meter was changed since the last frame, the bucket is full.
    pub(crate) fn measure(&mut self, meter: Meter, bytes: usize, now: Duration) -> bool {
        if self.meter != meter {
            let full = Bucket::full(meter, now);
            *self = Bucket { conformed: self.conformed, exceeded: self.exceeded, ..full };
        }
        let conforms = match meter.rate {
            Rate::Bytes(rate) => self.take(rate, bytes as u128, now),
            Rate::Packets(rate) => self.take(rate, 1, now),
            Rate::Mtu(mtu) => bytes as u128 <= u128::from(mtu),
        };
        let count = if conforms { &mut self.conformed } else { &mut self.exceeded };
        *count = count.saturating_add(1);
        conforms
    }

    /// Takes as many tokens as a frame costs. Returns whether there were so many.
    fn take(&mut self, rate: u64, cost: u128, now: Duration) -> bool {
        let elapsed = now.saturating_sub(self.at).as_nanos();
        let refilled = self.tokens.saturating_add(elapsed.saturating_mul(u128::from(rate)));
        let tokens = refilled.min(u128::from(self.meter.burst) * NANO);
        let rest = tokens.checked_sub(cost * NANO);
        if let Some(rest) = rest {
            (self.tokens, self.at) = (rest, self.at.max(now));
        }
        rest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(meter: Meter, frames: &[(u64, usize)]) -> Vec<bool> {
        let mut bucket = Bucket::full(meter, Duration::ZERO);
        frames.iter().map(|(ms, bytes)| bucket.measure(meter, *bytes, Duration::from_millis(*ms))).collect()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let meter = Meter { rate: Rate::Bytes(1_000), burst: 200 };
        let frames = [(0, 100), (0, 100), (0, 1), (50, 50), (50, 1), (1_000_000, 200), (1_000_000, 1)];
        assert_eq!(results(meter, &frames), [true, true, false, true, false, true, false]);
    }

    #[test]
    fn packets_count_one_each() {
        let meter = Meter { rate: Rate::Packets(10), burst: 1 };
        assert_eq!(results(meter, &[(0, 9_000), (99, 60), (100, 9_000)]), [true, false, true]);
    }

    #[test]
    fn an_mtu_is_the_longest_frame_that_conforms() {
        let meter = Meter { rate: Rate::Mtu(1514), burst: 0 };
        assert_eq!(results(meter, &[(0, 1514), (0, 1515), (0, 1), (0, 1514)]), [true, false, true, true]);
        assert!(meter.is_sensible() && !Meter { rate: Rate::Mtu(0), burst: 1 }.is_sensible());
    }

    #[test]
    fn what_exceeds_takes_no_tokens() {
        let meter = Meter { rate: Rate::Bytes(1_000), burst: 100 };
        assert_eq!(results(meter, &[(0, 101), (0, 100)]), [false, true]);
    }

    #[test]
    fn a_changed_meter_is_full() {
        let (slow, fast) = (Meter { rate: Rate::Packets(1), burst: 1 }, Meter { rate: Rate::Packets(2), burst: 2 });
        let mut bucket = Bucket::full(slow, Duration::ZERO);
        assert!(bucket.measure(slow, 60, Duration::ZERO) && !bucket.measure(slow, 60, Duration::ZERO));
        assert!(bucket.measure(fast, 60, Duration::ZERO) && bucket.measure(fast, 60, Duration::ZERO));
        assert_eq!((bucket.conformed, bucket.exceeded), (3, 1));
    }

    #[test]
    fn the_largest_rate_and_a_clock_that_stands_do_no_harm() {
        let meter = Meter { rate: Rate::Bytes(u64::MAX), burst: u64::MAX };
        let mut bucket = Bucket::full(meter, Duration::MAX);
        assert!(bucket.measure(meter, usize::MAX, Duration::MAX));
        bucket.measure(meter, usize::MAX, Duration::ZERO);
    }
}
