//! Planned failures. An operation that can fail asks by name; a place is a name with a number that counts the
//! requests for it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lockdep::Oracle;
use serde::{Deserialize, Serialize};

/// A place where something can fail, such as the second request for `make eth pf0 vf1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The name of the request.
    pub name: String,
    /// Which request of this name it is in an execution, counted from 1.
    pub nth: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nth {
            1 => f.write_str(&self.name),
            n => write!(f, "{} (time {n})", self.name),
        }
    }
}

/// How much is made to fail, in addition to what the program itself makes fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Faults {
    /// Nothing.
    #[default]
    None,
    /// Each place, one at a time.
    Each,
    /// Each pair of places.
    Pairs,
}

impl Faults {
    /// Returns its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Each => "each",
            Self::Pairs => "pairs",
        }
    }
}

/// Makes fail what a plan contains, and notes every place that is asked for.
#[derive(Debug, Default)]
pub struct Planned(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    plan: Vec<Place>,
    asked: HashMap<String, u32>,
    /// The last place of the plan has failed in this execution.
    struck: usize,
    /// The places that were met after everything in the plan had failed.
    met: Vec<Place>,
    notes: bool,
}

impl Planned {
    /// Begins an execution. `notes`: places are noted.
    pub fn begin(&self, plan: &[Place], notes: bool) {
        let mut state = self.state();
        state.plan.clear();
        state.plan.extend_from_slice(plan);
        state.asked.values_mut().for_each(|asked| *asked = 0);
        (state.struck, state.notes) = (0, notes);
        state.met.clear();
    }

    /// Returns the places of the plan that did not fail in the execution that has ended.
    pub fn unmet(&self) -> Vec<Place> {
        let state = self.state();
        let asked =
            |place: &&Place| state.asked.get(&place.name).is_none_or(|asked| *asked < place.nth || place.nth == 0);
        state.plan.iter().filter(asked).cloned().collect()
    }

    /// Returns the places that were met since the last place of the plan failed, in order.
    pub fn take_met(&self) -> Vec<Place> {
        std::mem::take(&mut self.state().met)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Oracle for Planned {
    fn fails(&self, _: &str, place: &str) -> bool {
        let mut state = self.state();
        if state.plan.is_empty() && !state.notes {
            return false;
        }
        let nth = match state.asked.get_mut(place) {
            Some(asked) => {
                *asked += 1;
                *asked
            }
            None => {
                state.asked.insert(place.to_owned(), 1);
                1
            }
        };
        let planned = state.plan.iter().any(|planned| planned.name == place);
        if planned || state.notes {
            // How often it was asked for decides what fails, or which places are met.
            lockdep::tell(&("asked", place), &nth);
        }
        let fails = state.plan.iter().any(|planned| planned.nth == nth && planned.name == place);
        if fails {
            state.struck += 1;
            lockdep::note("fault", || place.to_owned());
        } else if state.notes && state.struck == state.plan.len() {
            let place = Place { name: place.to_owned(), nth };
            state.met.push(place);
        }
        fails
    }

    fn depends_on_order(&self, place: &str) -> bool {
        self.state().plan.iter().any(|planned| planned.name == place)
    }
}
