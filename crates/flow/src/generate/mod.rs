//! Random tables and frames, to compare another data plane with this one, or to look for what goes wrong.
//!
//! Everything follows from a seed, on every machine. Rules are mostly such that the card accepts; they share masks, lead
//! from chain to chain, and draw their values from small pools. Frames are mostly such that a rule takes; the others are
//! cut, damaged or of any bytes. [`Options`] say which fields and which kinds of action there may be, so that a data
//! plane that does not do everything yet can be compared in what it does. A [`Coverage`] says what has been tried.
//!
//! ```
//! use flow::generate::{Coverage, Generator, Options};
//!
//! let options = Options { chains: 2, ..Options::like_mlx5() };
//! let mut coverage = Coverage::new(&options);
//! let mut generator = Generator::new(1, options);
//! let tables = generator.tables().tables;
//! let mut state = flow::State::new(1);
//! for arrival in generator.frames(&tables, 100) {
//!     let verdict = flow::process(&tables, &mut state, arrival.at, arrival.port, &arrival.frame);
//!     coverage.note(&tables, &verdict);
//! }
//! println!("{coverage}");
//! ```

mod coverage;
mod frames;
mod keys;
mod options;
mod random;
mod rules;

use crate::table::Tables;

pub use coverage::{Aspect, Coverage};
pub use frames::Arrival;
pub use options::{ActionKind, ActionSet, FieldSet, Options};
pub use random::Random;
pub use rules::Generated;

/// Makes tables and frames.
#[derive(Debug, Clone)]
pub struct Generator {
    random: Random,
    options: Options,
}

impl Generator {
    /// What follows from this seed.
    pub fn new(seed: u64, options: Options) -> Generator {
        Generator { random: Random::new(seed), options }
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Other tables at each call.
    pub fn tables(&mut self) -> Generated {
        rules::tables(&mut self.random, &self.options)
    }

    /// So many frames for these tables, which need not be generated ones. Times grow, from 1 second on.
    pub fn frames(&mut self, tables: &Tables, count: usize) -> Vec<Arrival> {
        frames::frames(&mut self.random, &self.options, tables, count)
    }
}
