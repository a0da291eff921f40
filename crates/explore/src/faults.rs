//! Failures, each in a place of its own: what can fail is asked for by name, and the how manieth time.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lockdep::Oracle;
use serde::{Deserialize, Serialize};

/// A place where something can fail, such as the second time that `make eth pf0 vf1` is asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// What is asked for.
    pub name: String,
    /// The how manieth time in a telling, from 1.
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

/// How much is made to fail beside what the program itself has fail.
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
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Each => "each",
            Self::Pairs => "pairs",
        }
    }
}

/// Fails what a plan says, and notes every place it is asked about.
#[derive(Debug, Default)]
pub struct Planned(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    plan: Vec<Place>,
    asked: HashMap<String, u32>,
    /// Once the last of the plan has failed, in this telling.
    struck: usize,
    /// The places met after everything of the plan had failed.
    met: Vec<Place>,
    notes: bool,
}

impl Planned {
    /// Before a telling. `notes`: places are to be noted.
    pub fn begin(&self, plan: &[Place], notes: bool) {
        let mut state = self.state();
        state.plan.clear();
        state.plan.extend_from_slice(plan);
        state.asked.values_mut().for_each(|asked| *asked = 0);
        (state.struck, state.notes) = (0, notes);
        state.met.clear();
    }

    /// Which of the plan have not failed in the telling that has ended.
    pub fn unmet(&self) -> Vec<Place> {
        let state = self.state();
        let asked =
            |place: &&Place| state.asked.get(&place.name).is_none_or(|asked| *asked < place.nth || place.nth == 0);
        state.plan.iter().filter(asked).cloned().collect()
    }

    /// The places met since the last of the plan failed, in order.
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

    fn is_particular(&self, place: &str) -> bool {
        self.state().plan.iter().any(|planned| planned.name == place)
    }
}
