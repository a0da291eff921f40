//! Checks of a whole scenario: whether it can be run to its end.

use std::collections::{BTreeMap, BTreeSet};

use super::Scenario;
use crate::place::{InputError, Place};
use crate::step::Step;

/// Checks that a scenario with programs is only for cards that can run them.
///
/// # Errors
/// The first step that runs a program.
pub(super) fn ensure_programs_have_a_card(scenario: &Scenario) -> Result<(), InputError> {
    let steps = scenario.threads.iter().flat_map(|thread| &thread.steps);
    let mut steps = scenario.setup.iter().chain(steps).chain(&scenario.finally);
    let Some(step) = steps.find(|step| step.action.is_program()) else {
        return Ok(());
    };
    match scenario.cards.iter().find(|card| !card.has_programs) {
        None => Ok(()),
        Some(card) => Err(InputError {
            place: step.place,
            message: format!(
                "`{}` is a program, and a card `{}` has no netdevs to run it among; \
                 add `cards = [\"linux\"]` to the scenario",
                step.text, card.name
            ),
        }),
    }
}

/// Checks that every barrier can be passed, by going through the barriers as the threads would: all threads that name
/// a barrier must reach it.
///
/// # Errors
/// A step that waits at a barrier that is never passed.
pub(super) fn ensure_barriers_can_be_met(scenario: &Scenario) -> Result<(), InputError> {
    for step in scenario.setup.iter().chain(&scenario.finally) {
        if !step.action.barriers().is_empty() {
            return Err(InputError {
                place: step.place,
                message: "`sync` is for threads: no other thread runs at the same time as this step".to_owned(),
            });
        }
    }
    let mut left: Vec<Vec<(&str, &Step)>> = Vec::new();
    let mut members: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (index, thread) in scenario.threads.iter().enumerate() {
        let barriers =
            thread.steps.iter().flat_map(|step| step.action.barriers().into_iter().map(move |name| (name, step)));
        let barriers: Vec<_> = barriers.collect();
        for (name, _) in &barriers {
            members.entry(name).or_default().insert(index);
        }
        left.push(barriers.into_iter().rev().collect());
    }
    for (name, threads) in &members {
        if let (1, Some(only)) = (threads.len(), threads.first()) {
            let step = left[*only].iter().find(|(barrier, _)| barrier == name);
            let message = format!(
                "`sync {name}` can never be passed: no other thread than `{}` names it",
                scenario.threads[*only].name
            );
            return Err(InputError {
                place: step.map_or(Place { line: 1, column: 1 }, |(_, step)| step.place),
                message,
            });
        }
    }
    loop {
        let met = members
            .iter()
            .find(|(name, threads)| threads.iter().all(|t| left[*t].last().is_some_and(|(next, _)| next == *name)));
        if let Some((_, threads)) = met {
            for thread in threads {
                left[*thread].pop();
            }
            continue;
        }
        let stuck = left.iter().filter_map(|barriers| barriers.last()).min_by_key(|(_, s)| s.place);
        return match stuck {
            None => Ok(()),
            Some((name, step)) => Err(InputError {
                place: step.place,
                message: format!(
                    "`sync {name}` can never be passed: the threads that name it reach their barriers in another order, \
                     or another number of times"
                ),
            }),
        };
    }
}
