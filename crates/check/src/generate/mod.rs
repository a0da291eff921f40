//! Generated stories: random scenarios, explored for the invariants alone.
//!
//! A story is a small card, some steps that prepare it, and one to three threads with a few steps each. All of them are
//! drawn from a [grammar] of the commands that a scenario can have. Each story uses only a few families of commands, so
//! that those meet often ("swarm testing", Groce and others, ISSTA 2012). A step may fail: a refusal is a legal
//! outcome. Before the invariants are checked at rest, everything that was made to fail is allowed to succeed again.

mod grammar;
mod hunt;
mod random;

pub use hunt::{Hunt, HuntReport, Kept, hunt};

use scenario::{InputError, Scenario};

use grammar::{Family, SmallCard};
use random::Random;

/// The most steps of a thread.
const MOST_STEPS: u32 = 4;

/// Returns a story of a seed, by its number: the same on every machine.
///
/// ```
/// let story = check::generate(1, 7).unwrap();
/// assert_eq!(story.name, "generated 1-7");
/// assert_eq!(story, check::generate(1, 7).unwrap());
/// ```
///
/// # Errors
/// The grammar has made a step that a scenario cannot have, which is a mistake of the grammar.
pub fn generate(seed: u64, number: u64) -> Result<Scenario, InputError> {
    scenario::parse(&text(seed, number))
}

/// Returns the story as the text of a scenario file.
fn text(seed: u64, number: u64) -> String {
    let mut random = Random::new(seed, number);
    let card = SmallCard::draw(&mut random);
    let families = Family::draw_some(&mut random, &card);
    let mut setup = Vec::new();
    for family in &families {
        if random.percent(65) {
            setup.extend(family.preparation(&card, &mut random));
        }
    }
    if !setup.is_empty() && random.percent(60) {
        setup.push("wait settled".to_owned());
    }
    let threads = random.one_of(&[1, 1, 2, 2, 2, 2, 2, 3, 3]);
    let most = if threads == 3 { MOST_STEPS / 2 } else { MOST_STEPS };
    let mut text = format!("name = \"generated {seed}-{number}\"\nwhy = \"Made by `esw check --generate`.\"\n");
    text += "cards = [\"memory\"]\n";
    text += &format!("setup = [\n{}]\nfinally = [\n  \"fail clear\",\n]\n\n{}", list(&setup), card.to_toml());
    for thread in ["one", "two", "three"].iter().take(threads) {
        let steps: Vec<String> =
            (0..=random.below(most)).map(|_| random.one_of(&families).step(&card, &mut random)).collect();
        text += &format!("\n[[thread]]\nname = \"{thread}\"\nsteps = [\n{}]\n", list(&steps));
    }
    text
}

fn list(steps: &[String]) -> String {
    let line = |step: &String| format!("  {{ run = \"{}\", may_fail = true }},\n", step.replace('"', "\\\""));
    steps.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_story_is_a_scenario() {
        for seed in 0..3 {
            for number in 0..2_000 {
                let story = generate(seed, number);
                assert!(story.is_ok(), "{}\n{}", story.unwrap_err(), text(seed, number));
            }
        }
    }

    #[test]
    fn every_family_is_drawn() {
        let mut drawn = BTreeSet::new();
        for number in 0..500 {
            let mut random = Random::new(0, number);
            let card = SmallCard::draw(&mut random);
            drawn.extend(Family::draw_some(&mut random, &card));
        }
        assert_eq!(drawn.len(), 19, "{drawn:?}");
    }

    #[test]
    fn no_step_has_to_succeed_but_the_last() {
        let story = generate(3, 5).unwrap();
        let threads = story.threads.iter().flat_map(|thread| &thread.steps);
        assert!(story.setup.iter().chain(threads).all(|step| step.expected == scenario::Expected::Either));
        assert!(story.expect.is_empty());
    }
}
