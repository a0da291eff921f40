//! Steps about flow rules: what a change of them prints, and frames that are sent.

use control::FlowRefusal;
use eswitch::datapath::{Arrival, pf_of};
use eswitch::{FlowDone, PortHandle, PortIndex};
use flow::{Block, Port, RuleId};
use lockdep::{Locked, Unlocked};

use super::{Done, Session, StepError};

/// The lines that a change of flow rules prints.
///
/// # Errors
/// The first refusal. The other changes have been made.
pub(super) fn show(results: Vec<Result<FlowDone, FlowRefusal>>) -> Result<Vec<String>, StepError> {
    let mut lines = Vec::new();
    for result in results {
        match result.map_err(StepError::Flow)? {
            FlowDone::Added(rule) => lines.push(format!("added {rule}")),
            FlowDone::Removed(counter) => {
                lines.push(format!("removed, after {} packets and {} bytes", counter.packets, counter.bytes));
            }
            FlowDone::Flushed(count) => lines.push(format!("removed {count} rules")),
            FlowDone::Changed | FlowDone::Meter => {}
        }
    }
    Ok(lines)
}

impl Session {
    /// Sends a frame into a port, and checks where it arrives.
    pub(super) fn send(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        from: PortHandle,
        frame: &[u8],
        arrives: Option<&[Arrival]>,
    ) -> Result<(), StepError> {
        let now = (self.world().clock)();
        let arrived = self.engine().send_frame(cx, Port(from.index.0), now, frame);
        let Some(expected) = arrives else { return Ok(()) };
        let mut found = arrived.map_err(|error| StepError::Flow(error.into()))?;
        let mut wanted = expected.to_vec();
        found.sort_unstable();
        wanted.sort_unstable();
        if found == wanted {
            return Ok(());
        }
        let (expected, found) = (self.places(&wanted), self.places(&found));
        Err(StepError::Unmet {
            expected: format!("the frame to arrive {expected}"),
            found: format!("it arrives {found}"),
        })
    }

    /// The flow rules on a port, as `tc filter show` prints them.
    pub(super) fn filters(&self, cx: &mut Locked<'_, Unlocked>, on: Port, with_counters: bool) -> Vec<String> {
        let engine = self.engine();
        let mut rules = engine.flow_rules(cx, pf_of(on));
        rules.retain(|(_, rule)| rule.block == Block::Port(on));
        let counters = with_counters.then(|| {
            let ids: Vec<RuleId> = rules.iter().map(|(id, _)| *id).collect();
            engine.flow_counters(cx, &ids)
        });
        let now = engine.flow_clock().unwrap_or_else(|| (self.world().clock)());
        control::shown::filters(engine.config(), &rules, counters.as_deref(), now)
    }

    /// What the rules would do with a frame, and why.
    pub(super) fn trace(&self, cx: &mut Locked<'_, Unlocked>, port: PortHandle, frame: &[u8]) -> Done {
        let now = (self.world().clock)();
        let traced = self.engine().trace_frame(cx, port, now, frame).map_err(StepError::Trace)?;
        Ok(control::shown::trace(self.engine().config(), frame, &traced))
    }

    /// Places in the words of a step.
    fn places(&self, places: &[Arrival]) -> String {
        let port = |of: &Port| {
            let device = self.engine().config().pf_address(pf_of(*of));
            PortHandle { device, index: PortIndex(of.0) }
        };
        let word = |place: &Arrival| match place {
            Arrival::Port(of) => format!("at {}", port(of)),
            Arrival::Representor(of) => format!("at rep {}", port(of)),
        };
        if places.is_empty() { "nowhere".to_owned() } else { places.iter().map(word).collect::<Vec<_>>().join(" and ") }
    }
}
