//! A live card that takes the steps of a scenario one by one, from any thread.

mod error;
mod flows;
mod look;
mod wait;

use std::time::Duration;

use control::{Failure, Query, Reply};
use eswitch::inspect::Violation;
use eswitch::{CardConfig, Engine, Error, PortHandle, Subscription};
use host::{GaveUp, Heeds, LiveCard, World};
use lockdep::{HistoryMark, Locked, Mutex, Unlocked, is_explored, lock_classes};

use crate::barrier::Barriers;
use crate::show;
use crate::step::Action;

pub use error::StepError;

lock_classes! {
    /// The events so far.
    pub leaf ChronicleClass = "chronicle";
}

/// How often a step is repeated at most where every order is tried: a hundred in a row can do to other threads what two
/// in a row can do, only later.
const REPEATS: u32 = 2;

/// A live card, with its events and its barriers.
pub struct Session {
    card: LiveCard,
    limit: Duration,
    subscription: Subscription,
    /// Every event so far, as text.
    chronicle: Mutex<ChronicleClass, Vec<String>>,
    pub(crate) barriers: Barriers,
}

type Done = Result<Vec<String>, StepError>;

impl Session {
    /// Brings a card up. `limit` is the longest that any wait may take.
    ///
    /// # Errors
    /// The card does not come up; nothing of it is left.
    pub fn start(
        cx: &mut Locked<'_, Unlocked>,
        config: CardConfig,
        world: World,
        limit: Duration,
    ) -> Result<Self, Error> {
        let card = LiveCard::start(cx, config, world, None)?;
        let subscription = card.engine().subscribe(cx);
        Ok(Self {
            card,
            limit,
            subscription,
            chronicle: lockdep::unexplored(|| Mutex::new(Vec::new())),
            barriers: Barriers::default(),
        })
    }

    /// The card's engine.
    pub fn engine(&self) -> &Engine {
        self.card.engine()
    }

    /// What the card needs of the outside.
    pub fn world(&self) -> &World {
        self.card.world()
    }

    /// Takes a step; the lines that it prints. `heeds` is what may end the step early.
    ///
    /// # Errors
    /// The step failed.
    pub fn perform(&self, cx: &mut Locked<'_, Unlocked>, heeds: Heeds, action: &Action) -> Done {
        match action {
            Action::Query(query) => return self.answer(cx, query),
            Action::Command(command) => {
                return match self.card.perform(cx, heeds, self.limit, command) {
                    Ok(Reply::Done) => Ok(Vec::new()),
                    Ok(Reply::Flows(results)) => flows::show(results),
                    Ok(Reply::Port(port)) => Ok(self.describe(cx, Some(port))),
                    Ok(Reply::Note(note)) => Ok(vec![note]),
                    Err(Failure::Engine(error)) => Err(error.into()),
                    Err(Failure::Interrupted) => Err(StepError::Interrupted),
                    Err(Failure::Unseen) => Err(self.unseen(GaveUp::TimedOut)),
                };
            }
            Action::Program(command) => return self.program(cx, heeds, command),
            Action::Send { from, frame, arrives } => self.send(cx, *from, frame, arrives.as_deref())?,
            Action::Sync(name) => self.sync(cx, heeds, name)?,
            Action::Sleep(time) => self.sleep(cx, heeds, *time)?,
            Action::WaitRest { retries } => self.wait_rest(cx, heeds, *retries)?,
            Action::WaitUntil(expectation) => self.wait_until(cx, heeds, expectation)?,
            Action::Expect(expectation) => self.expect(cx, expectation)?,
            Action::Repeat(times, action) => {
                let mut printed = Vec::new();
                // Threads that meet at a barrier must all reach it as often.
                let reduced = is_explored() && action.barriers().is_empty();
                let since = HistoryMark::now();
                for n in 0..if reduced { (*times).min(REPEATS) } else { *times } {
                    // Only what the last one prints is printed.
                    since.erase_except(&n);
                    printed = self.perform(cx, heeds, action)?;
                    if self.world().pulse.stops(cx, heeds) {
                        return Err(StepError::Interrupted);
                    }
                }
                return Ok(printed);
            }
        }
        Ok(Vec::new())
    }

    /// Sets the texts of the events that the scenario is about: states that differ in whether one has happened are
    /// different states to an explorer.
    pub(crate) fn watch_events(&self, cx: &mut Locked<'_, Unlocked>, events: Vec<String>) {
        self.subscription.watch_for(cx, events);
    }

    fn unseen(&self, why: GaveUp) -> StepError {
        self.gave_up(why, "a look at the kernel's bonds and neighbours".to_owned(), "still looking".to_owned())
    }

    /// Answers a query as devlink, tc or `esw trace` prints the answer.
    fn answer(&self, cx: &mut Locked<'_, Unlocked>, query: &Query) -> Done {
        let device = match query {
            Query::Devices(None) => return Ok(show::devices(&self.engine().inspect(cx))),
            Query::Ports(port) => return self.show_ports(cx, *port),
            Query::Filters { on, with_counters } => return Ok(self.filters(cx, *on, *with_counters)),
            Query::Trace { port, frame } => return self.trace(cx, *port, frame),
            Query::Devices(Some(device)) | Query::Eswitch(device) => *device,
        };
        let snapshot = self.engine().inspect(cx);
        let pf = show::pf(&snapshot, device).ok_or(Error::NoDevice(device))?;
        Ok(vec![if matches!(query, Query::Eswitch(_)) { show::eswitch(pf) } else { show::device(pf) }])
    }

    fn show_ports(&self, cx: &mut Locked<'_, Unlocked>, port: Option<PortHandle>) -> Done {
        let lines = self.describe(cx, port);
        match port {
            Some(port) if lines.is_empty() => Err(Error::NoPort(port).into()),
            _ => Ok(lines),
        }
    }

    /// All ports, or one of them, as devlink prints them.
    fn describe(&self, cx: &mut Locked<'_, Unlocked>, only: Option<PortHandle>) -> Vec<String> {
        let snapshot = self.engine().inspect(cx);
        let mut lines = Vec::new();
        for pf in &snapshot.pfs {
            for port in pf.ports.iter().filter(|p| only.is_none_or(|handle| handle == p.handle)) {
                lines.extend(show::describe_port(self.engine().config(), pf.index.0, port));
            }
        }
        lines
    }

    fn program(&self, cx: &mut Locked<'_, Unlocked>, heeds: Heeds, command: &str) -> Done {
        let Some(programs) = &self.world().programs else {
            return Err(StepError::NoProgram(format!(
                "`{command}` is a program, and this card has no netdevs to run it among"
            )));
        };
        let pulse = &self.world().pulse;
        let finished =
            programs.run(command, self.limit, &mut || pulse.stops(cx, heeds)).map_err(StepError::NoProgram)?;
        if finished.status != 0 {
            let text = if finished.stderr.trim().is_empty() { &finished.stdout } else { &finished.stderr };
            return Err(StepError::Program { status: finished.status, text: text.trim().to_owned() });
        }
        Ok(finished.stdout.lines().map(str::to_owned).collect())
    }

    /// Adds the events since the last call to those so far.
    pub(crate) fn listen(&self, cx: &mut Locked<'_, Unlocked>) {
        let news: Vec<String> = self.subscription.take(cx).iter().map(ToString::to_string).collect();
        self.chronicle.lock_leaf(cx).extend(news);
    }

    /// The text of every event so far, in order.
    pub fn events(&self, cx: &mut Locked<'_, Unlocked>) -> Vec<String> {
        self.listen(cx);
        self.chronicle.lock_leaf(cx).clone()
    }

    /// Takes the card down; what is left of it and should not be.
    pub fn close(&self, cx: &mut Locked<'_, Unlocked>) -> Vec<Violation> {
        self.card.close(cx)
    }
}
