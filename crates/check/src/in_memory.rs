//! A scenario on the card in memory, as a program that can be explored.

use std::sync::Arc;
use std::time::Duration;

use card_memory::MemoryCard;
use eswitch::card::{FaultPlan, Faulty, Traced};
use explore::{Found, Part, Program, Run, StepId, Tool};
use host::{Pulse, World};
use lockdep::{ClassKey, Halt, Locked, Unlocked};
use scenario::{Scenario, Step};

/// The tool `esw`, with the words that its tokens and its output use.
pub const TOOL: Tool = Tool {
    name: "esw",
    version: env!("CARGO_PKG_VERSION"),
    program: "scenario",
    replay_command: ["esw check --replay ", ""],
    categories: ["card", "representor"],
};

/// The number of `setup`, in tokens that name threads.
pub const SETUP: u16 = u16::MAX;
/// The number of `finally`, in tokens that name threads.
pub const FINALLY: u16 = u16::MAX - 1;

/// A scenario as a program, with the same runner, engine and card in memory that `esw run` uses.
///
/// ```
/// use check::InMemory;
/// use explore::Program;
///
/// let scenario = scenario::parse("name = \"none\"\nwhy = \"An example.\"\n[card]\n[[thread]]\nname = \"one\"\nsteps = [\"modprobe mlx5_ib\"]\n");
/// assert_eq!(InMemory::from(&scenario.unwrap()).name(), "none");
/// ```
#[derive(Clone, Debug)]
pub struct InMemory {
    scenario: Arc<Scenario>,
    fingerprint: u64,
}

impl From<&Scenario> for InMemory {
    fn from(scenario: &Scenario) -> Self {
        Self { scenario: Arc::new(scenario.clone()), fingerprint: crate::fingerprint(scenario) }
    }
}

impl InMemory {
    /// Returns the scenario.
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }
}

impl Program for InMemory {
    fn name(&self) -> &str {
        &self.scenario.name
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn run(&self, cx: &mut Locked<'_, Unlocked>, run: &Run<'_>) -> Vec<Found> {
        let faults = Arc::new(FaultPlan::default());
        let card = Faulty::new(MemoryCard::new(self.scenario.card.clone()), Arc::clone(&faults));
        let world = World {
            card: if lockdep::is_recorded() { Arc::new(Traced::new(card, note_request)) } else { Arc::new(card) },
            faults,
            domain: Arc::clone(run.domain()),
            pulse: Arc::new(Pulse::new()),
            clock: Arc::new(|| Duration::ZERO),
            programs: None,
            bonds: None,
            neighbours: None,
        };
        let outcome = scenario::run(cx, &self.scenario, &world, &mut ());
        run.set_result(|| format!("{:?} {:?} {:?}", outcome.snapshot, outcome.verdicts, outcome.violations));
        // Steps and expectations describe the expected result only if nothing fails that they do not expect.
        let scripted = !run.has_faults() && !run.lacks_steps();
        let violations = if scripted { outcome.violations } else { outcome.beside_the_script() };
        violations.into_iter().map(|violation| Found::new(violation.invariant, violation.detail)).collect()
    }

    fn tool(&self) -> Tool {
        TOOL
    }

    fn parts(&self) -> Vec<Part> {
        let Scenario { setup, threads, finally, .. } = &*self.scenario;
        let part = |id, steps: &Vec<Step>, is_thread| Part { id, steps: steps.len() as u16, is_thread };
        let threads = threads.iter().zip(0..).map(|(thread, id)| part(id, &thread.steps, true));
        threads.chain([part(SETUP, setup, false), part(FINALLY, finally, false)]).collect()
    }

    fn without(&self, gone: &[StepId]) -> Self {
        let mut less = Scenario::clone(&self.scenario);
        let keep = |id: u16, steps: &mut Vec<Step>| {
            let mut index = 0..;
            steps.retain(|_| !index.next().is_some_and(|step: u16| gone.contains(&(id, step))));
        };
        keep(SETUP, &mut less.setup);
        keep(FINALLY, &mut less.finally);
        for (thread, id) in less.threads.iter_mut().zip(0..) {
            keep(id, &mut thread.steps);
        }
        less.threads.retain(|thread| !thread.steps.is_empty());
        Self::from(&less)
    }

    fn needs_every_step(&self, found: &Found) -> bool {
        is_about_the_script(found) || found.detail.contains("has not come within")
    }

    /// An invariant says more than a step or an expectation that fails as a consequence.
    fn is_consequence(&self, found: &Found) -> bool {
        is_about_the_script(found)
    }

    /// A panic counts as a command that does not end, too.
    fn halted(&self, halt: &Halt) -> Found {
        Found::new("progress", halt.to_string())
    }

    /// Notes about the script belong into the story only if the failure is one of the script.
    fn tells(&self, note: &str, found: Option<&Found>) -> bool {
        note != "script" || found.is_some_and(|found| is_about_the_script(found) || found.invariant == "progress")
    }

    fn is_focused(&self) -> bool {
        true
    }

    fn ordered_classes(&self) -> Vec<&'static str> {
        eswitch::lock_order::ordered().into_iter().map(ClassKey::name).collect()
    }
}

fn is_about_the_script(found: &Found) -> bool {
    ["expectation", "step"].contains(&&*found.invariant)
}

/// Notes a request to the card, for the story.
fn note_request(line: &str) {
    match line.split_once(' ') {
        Some(("create", resource)) if !resource.contains(':') => lockdep::note("make", || resource.to_owned()),
        Some(("destroy", resource)) => lockdep::note("unmake", || resource.to_owned()),
        _ => {}
    }
}
