//! A live card that takes the steps of a story, one by one, from any thread.

use std::time::Duration;

use control::{Failure, Query, Reply};
use eswitch::inspect::{PortView, Snapshot, Violation};
use eswitch::{CardConfig, Engine, Errno, Error, PciAddress, PortHandle, RepType, Subscription};
use host::{GaveUp, Heeds, LiveCard, World};
use lockdep::{Deadline, HistoryMark, Locked, Mutex, Unlocked, is_explored, lock_classes};

use crate::barrier::Barriers;
use crate::expectation::{AuxState, Expectation, SfExpectation};
use crate::show;
use crate::step::Action;

lock_classes! {
    /// What has happened so far.
    pub leaf ChronicleClass = "chronicle";
}

/// How long to wait between two looks at something that does not say when it changes.
const TICK: Duration = Duration::from_millis(1);

/// How often to look where there is no time: an explorer lets a tick pass when nothing else can go on, or
/// now and then before.
const LOOKS: usize = 200;

/// How often a step is repeated at most where every order is tried: what two in a row can do to others, a
/// hundred can, only later.
const REPEATS: u32 = 2;

/// A live card, and what has happened to it.
pub struct Session {
    card: LiveCard,
    limit: Duration,
    subscription: Subscription,
    /// Every event so far, in words.
    chronicle: Mutex<ChronicleClass, Vec<String>>,
    pub(crate) barriers: Barriers,
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The engine refused, or could not.
    #[error("{0}")]
    Engine(#[from] Error),
    /// A program ended with another status than 0.
    #[error("exit status {status}{}{text}", if .text.is_empty() { "" } else { ": " })]
    Program {
        /// Its status.
        status: i32,
        /// What it complained of.
        text: String,
    },
    /// A program could not be run.
    #[error("{0}")]
    NoProgram(String),
    /// An expectation does not hold.
    #[error("expected {expected}, but {found}")]
    Unmet {
        /// What should hold.
        expected: String,
        /// What holds instead.
        found: String,
    },
    /// What was waited for did not come.
    #[error("{what} has not come within {} s: {found}", .limit.as_secs_f64())]
    NeverCame {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What there is instead.
        found: String,
    },
    /// It was asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl StepError {
    /// The error number, if the error has one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Engine(error) => Some(error.errno()),
            _ => None,
        }
    }

    /// Whether this is the error that was meant: by its name, or by a part of its text.
    pub fn is(&self, meant: &str) -> bool {
        self.errno().is_some_and(|errno| format!("{errno:?}") == meant) || self.to_string().contains(meant)
    }

    /// The error as devlink prints it.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Engine(error) => vec![
                format!("Error: mlx5_core: {}.", error.to_string().trim_end_matches('.')),
                format!("kernel answers: {}", error.errno().text()),
            ],
            Self::Program { status, text } => {
                let said = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned);
                [format!("exit status {status}")].into_iter().chain(said).collect()
            }
            other => vec![format!("Error: {other}.")],
        }
    }
}

type Done = Result<Vec<String>, StepError>;

impl Session {
    /// Brings a card up. `limit`: how long any wait may take.
    ///
    /// # Errors
    /// What failed; nothing is left.
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

    /// The engine.
    pub fn engine(&self) -> &Engine {
        self.card.engine()
    }

    /// The outside of the card.
    pub fn world(&self) -> &World {
        self.card.world()
    }

    /// Does a step and gives back what it prints. `heeds`: what ends it before its time.
    ///
    /// # Errors
    /// It failed.
    pub fn perform(&self, cx: &mut Locked<'_, Unlocked>, heeds: Heeds, action: &Action) -> Done {
        match action {
            Action::Query(query) => return self.answer(cx, *query),
            Action::Command(command) => {
                return match self.card.perform(cx, heeds, self.limit, command) {
                    Ok(Reply::Done) => Ok(Vec::new()),
                    Ok(Reply::Port(port)) => Ok(self.describe(cx, Some(port))),
                    Ok(Reply::Note(note)) => Ok(vec![note]),
                    Err(Failure::Engine(error)) => Err(error.into()),
                    Err(Failure::Interrupted) => Err(StepError::Interrupted),
                    Err(Failure::Unseen) => Err(self.unseen_bonds(GaveUp::TimedOut)),
                };
            }
            Action::Program(command) => return self.program(cx, heeds, command),
            Action::Sync(name) => self.sync(cx, heeds, name)?,
            Action::Sleep(time) => self.sleep(cx, heeds, *time)?,
            Action::WaitRest { retries } => self.wait_rest(cx, heeds, *retries)?,
            Action::WaitUntil(expectation) => self.wait_until(cx, heeds, expectation)?,
            Action::Expect(expectation) => self.expect(cx, expectation)?,
            Action::Repeat(times, action) => {
                let mut printed = Vec::new();
                // What threads meet at must be met as often by all of them.
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

    /// Which events are asked for: whether one has happened is part of what an explorer distinguishes.
    pub(crate) fn asks_for(&self, cx: &mut Locked<'_, Unlocked>, events: Vec<String>) {
        self.subscription.asks_for(cx, events);
    }

    fn unseen_bonds(&self, why: GaveUp) -> StepError {
        self.gave_up(why, "a look at the kernel's bonds".to_owned(), "still looking".to_owned())
    }

    /// Answers a query as devlink prints the answer.
    fn answer(&self, cx: &mut Locked<'_, Unlocked>, query: Query) -> Done {
        let device = match query {
            Query::Devices(None) => return Ok(show::devices(&self.engine().inspect(cx))),
            Query::Ports(port) => return self.show_ports(cx, port),
            Query::Devices(Some(device)) | Query::Eswitch(device) => device,
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

    /// The ports, or the one, as devlink shows them.
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
            let said = if finished.stderr.trim().is_empty() { &finished.stdout } else { &finished.stderr };
            return Err(StepError::Program { status: finished.status, text: said.trim().to_owned() });
        }
        Ok(finished.stdout.lines().map(str::to_owned).collect())
    }

    /// The moment after which a wait has taken too long. Explored, there is none: the scheduler sees for
    /// itself when nothing can go on.
    fn limit(&self) -> Option<Deadline> {
        (!is_explored()).then(|| Deadline::after(self.limit))
    }

    fn gave_up(&self, why: GaveUp, what: String, found: String) -> StepError {
        match why {
            GaveUp::Stopped => StepError::Interrupted,
            GaveUp::TimedOut => StepError::NeverCame { what, limit: self.limit, found },
        }
    }

    fn sync(&self, cx: &mut Locked<'_, Unlocked>, heeds: Heeds, name: &str) -> Result<(), StepError> {
        let thread = cx.thread_name().to_owned();
        let pulse = &self.world().pulse;
        let round = self.barriers.arrive(cx, pulse, name, &thread);
        let mut missing = Vec::new();
        let met = pulse.wait_for(
            cx,
            heeds,
            self.limit().as_ref(),
            || None,
            |cx| match self.barriers.is_over(cx, name, round) {
                Ok(()) => Some(()),
                Err(threads) => {
                    missing = threads;
                    None
                }
            },
        );
        met.map_err(|why| self.gave_up(why, format!("`sync {name}`"), format!("waiting for {}", missing.join(", "))))
    }

    fn sleep(&self, cx: &mut Locked<'_, Unlocked>, heeds: Heeds, time: Duration) -> Result<(), StepError> {
        let over = Deadline::after(time);
        let slept: Result<(), GaveUp> = self.world().pulse.wait_for(cx, heeds, Some(&over), || None, |_| None);
        match slept {
            Err(GaveUp::Stopped) => Err(StepError::Interrupted),
            _ => Ok(()),
        }
    }

    /// Waits until the engine knows of the kernel's bonds and the queues are at rest; with `retries`, until
    /// nothing is left to be tried again.
    ///
    /// # Errors
    /// It takes too long, or was interrupted.
    pub(crate) fn wait_rest(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        heeds: Heeds,
        retries: bool,
    ) -> Result<(), StepError> {
        self.card.follow_bonds(cx, heeds, self.limit).map_err(|why| self.unseen_bonds(why))?;
        let Some(limit) = self.limit() else {
            self.engine().settle(cx, retries);
            return Ok(());
        };
        let look = Duration::from_millis(20);
        let rested = self.world().pulse.wait_for(
            cx,
            heeds,
            Some(&limit),
            || Some(Deadline::after(Duration::ZERO)),
            |cx| self.engine().settle_until(cx, retries, &Deadline::after(look)).then_some(()),
        );
        rested.map_err(|why| {
            let found = self.unrest(cx);
            let what = if retries { "an end of retries" } else { "rest of the queues" };
            self.gave_up(why, what.to_owned(), found)
        })
    }

    /// What still waits to be tried again.
    fn unrest(&self, cx: &mut Locked<'_, Unlocked>) -> String {
        let snapshot = self.engine().inspect(cx);
        let mut waiting = Vec::new();
        for pf in snapshot.pfs.iter().filter(|pf| pf.retry.is_pending()) {
            waiting.push(format!("pci/{} is trying again", pf.address));
            for port in &pf.ports {
                for (ty, state) in RepType::ALL.into_iter().zip(&port.reps) {
                    if let eswitch::inspect::RepState::Failed(failure) = state {
                        waiting.push(format!("{} {ty}: {}", port.handle, failure.error));
                    }
                }
            }
            for device in &pf.auxiliary {
                waiting.extend(device.failed.iter().map(|error| format!("{}: {error}", device.name)));
            }
        }
        waiting.truncate(5);
        if waiting.is_empty() { "work is still queued or being done".to_owned() } else { waiting.join(", ") }
    }

    fn wait_until(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        heeds: Heeds,
        expectation: &Expectation,
    ) -> Result<(), StepError> {
        let mut unmet = (String::new(), String::new());
        let mut looks = 0;
        let pulse = &self.world().pulse;
        let met = pulse.wait_for(
            cx,
            heeds,
            self.limit().as_ref(),
            || Some(Deadline::after(TICK)),
            |cx| match self.look(cx, expectation) {
                Ok(()) => Some(Ok(())),
                Err(instead) => {
                    unmet = instead;
                    looks += 1;
                    (is_explored() && looks > LOOKS).then_some(Err(GaveUp::TimedOut))
                }
            },
        );
        met.flatten().map_err(|why| self.gave_up(why, unmet.0, unmet.1))
    }

    /// Says whether something holds now.
    ///
    /// # Errors
    /// [`StepError::Unmet`]: it does not, and what does.
    pub fn expect(&self, cx: &mut Locked<'_, Unlocked>, expectation: &Expectation) -> Result<(), StepError> {
        self.look(cx, expectation).map_err(|(expected, found)| StepError::Unmet { expected, found })
    }

    /// What should hold and what is found, if they differ.
    fn look(&self, cx: &mut Locked<'_, Unlocked>, expectation: &Expectation) -> Result<(), (String, String)> {
        let differ = |holds: bool, expected: String, found: String| if holds { Ok(()) } else { Err((expected, found)) };
        match expectation {
            Expectation::Event(text, wanted) => {
                self.listen(cx);
                let found = self.chronicle.lock_leaf(cx).iter().find(|event| event.contains(text)).cloned();
                cx.learns(&found.is_some());
                let (no, happened) = match &found {
                    Some(event) => ("no ", format!("`{event}` has happened")),
                    None => ("an ", "none has happened".to_owned()),
                };
                return differ(found.is_some() == *wanted, format!("{no}event `{text}`"), happened);
            }
            Expectation::Netdev(name, wanted) => {
                let there = self.has_netdev(cx, name);
                return differ(
                    there == *wanted,
                    format!("netdev {name} {}", presence(*wanted)),
                    format!("it is {}", presence(there)),
                );
            }
            _ => {}
        }
        let snapshot = self.engine().inspect(cx);
        let unbound = |device: &PciAddress| format!("pci/{device} is not bound");
        let of_pf = |device: &PciAddress, expected: String, f: &dyn Fn(&eswitch::inspect::PfView) -> (bool, String)| {
            match show::pf(&snapshot, *device) {
                Some(pf) => {
                    let (holds, found) = f(pf);
                    differ(holds, expected, found)
                }
                None => Err((expected, unbound(device))),
            }
        };
        let of_port = |port: &PortHandle, expected: String, f: &dyn Fn(&PortView) -> (bool, String)| match find_port(
            &snapshot, *port,
        ) {
            Some(view) => {
                let (holds, found) = f(view);
                differ(holds, expected, found)
            }
            None => Err((expected, format!("there is no port {port}"))),
        };
        match expectation {
            Expectation::Mode(device, mode) => of_pf(device, format!("mode {mode} on pci/{device}"), &|pf| {
                (pf.mode == *mode, format!("it is {}", pf.mode))
            }),
            Expectation::Vfs(device, n) => of_pf(device, format!("{n} VFs on pci/{device}"), &|pf| {
                (pf.num_vfs == *n, format!("there are {}", pf.num_vfs))
            }),
            Expectation::Bound(device, wanted) => {
                let bound = show::pf(&snapshot, *device).is_some() || self.is_vf_bound(&snapshot, *device);
                let word = |bound| if bound { "bound" } else { "unbound" };
                differ(bound == *wanted, format!("pci/{device} {}", word(*wanted)), format!("it is {}", word(bound)))
            }
            Expectation::Rep(port, ty, state) => {
                of_port(port, format!("{ty} representor of {port} {state}"), &|view| {
                    let found = &view.reps[usize::from(*ty == RepType::Ib)];
                    let why = match found {
                        eswitch::inspect::RepState::Failed(failure) => format!(" ({})", failure.error),
                        _ => String::new(),
                    };
                    (found.to_string() == *state, format!("it is {found}{why}"))
                })
            }
            Expectation::Reps(device, ty, state, n) => {
                of_pf(device, format!("{n} {ty} representors {state} on pci/{device}"), &|pf| {
                    let of_type = pf.ports.iter().map(|p| p.reps[usize::from(*ty == RepType::Ib)].to_string());
                    let found = of_type.filter(|found| found == state).count();
                    (found == *n, format!("there are {found}"))
                })
            }
            Expectation::Lag(mode) => {
                let found = snapshot.lag.mode;
                differ(found == *mode, format!("lag {mode}"), format!("it is {found}"))
            }
            Expectation::LagReason(text) => {
                let found = snapshot.lag.reason.clone().unwrap_or_else(|| "there is none".to_owned());
                let expected = format!("no LAG, for a reason with `{text}`");
                differ(found.contains(text.as_str()), expected, format!("the reason is: {found}"))
            }
            Expectation::Module(name, wanted) => {
                let module = eswitch::module::find(name).map_or("", |module| module.name);
                let loaded = snapshot.modules.contains(&module);
                let word = |loaded| if loaded { "loaded" } else { "absent" };
                differ(loaded == *wanted, format!("module {name} {}", word(*wanted)), format!("it is {}", word(loaded)))
            }
            Expectation::Aux(name, wanted) => {
                let mut all = snapshot.pfs.iter().flat_map(|pf| &pf.auxiliary);
                let found = match all.find(|device| device.name == *name) {
                    Some(device) if device.bound => AuxState::Bound,
                    Some(_) => AuxState::Unbound,
                    None => AuxState::Absent,
                };
                let word = |state: AuxState| format!("{state:?}").to_lowercase();
                differ(found == *wanted, format!("{name} {}", word(*wanted)), format!("it is {}", word(found)))
            }
            Expectation::Port(port, wanted) => {
                let there = find_port(&snapshot, *port).is_some();
                differ(
                    there == *wanted,
                    format!("port {port} {}", presence(*wanted)),
                    format!("it is {}", presence(there)),
                )
            }
            Expectation::Sf(port, wanted) => {
                of_port(port, format!("SF {port} {}", sf_words(*wanted)), &|view| match view.sf {
                    Some(sf) => {
                        let holds = wanted.active.is_none_or(|active| active == sf.active)
                            && wanted.attached.is_none_or(|attached| attached == sf.attached);
                        let found = SfExpectation { active: Some(sf.active), attached: Some(sf.attached) };
                        (holds, format!("it is {}", sf_words(found)))
                    }
                    None => (false, "that port is no SF's".to_owned()),
                })
            }
            Expectation::Event(..) | Expectation::Netdev(..) => Ok(()),
        }
    }

    /// Whether a VF of that address is bound.
    fn is_vf_bound(&self, snapshot: &Snapshot, address: PciAddress) -> bool {
        let Some((pf, number)) = self.engine().config().vf_at(address) else { return false };
        let mut vfs = snapshot.pfs.iter().filter(|view| view.index == pf).flat_map(|view| &view.vfs);
        vfs.any(|vf| vf.number == number && vf.info.bound)
    }

    fn has_netdev(&self, cx: &mut Locked<'_, Unlocked>, name: &str) -> bool {
        if let Some(programs) = &self.world().programs {
            return programs.has_netdev(name);
        }
        let mut cx = cx.narrow();
        let resources = self.world().card.resources(&mut cx);
        resources.iter().any(|r| self.world().card.name(&mut cx, r).as_deref() == Some(name))
    }

    /// Notes what has happened.
    pub(crate) fn listen(&self, cx: &mut Locked<'_, Unlocked>) {
        let news: Vec<String> = self.subscription.take(cx).iter().map(ToString::to_string).collect();
        self.chronicle.lock_leaf(cx).extend(news);
    }

    /// Everything that has happened so far.
    pub fn events(&self, cx: &mut Locked<'_, Unlocked>) -> Vec<String> {
        self.listen(cx);
        self.chronicle.lock_leaf(cx).clone()
    }

    /// Takes the card down and says what is left that should not be.
    pub fn close(&self, cx: &mut Locked<'_, Unlocked>) -> Vec<Violation> {
        self.card.close(cx)
    }
}

fn find_port(snapshot: &Snapshot, port: PortHandle) -> Option<&PortView> {
    snapshot.pfs.iter().flat_map(|pf| &pf.ports).find(|view| view.handle == port)
}

fn presence(there: bool) -> &'static str {
    if there { "present" } else { "absent" }
}

fn sf_words(sf: SfExpectation) -> String {
    let active = sf.active.map(|yes| if yes { "active" } else { "inactive" });
    let attached = sf.attached.map(|yes| if yes { "attached" } else { "detached" });
    let words: Vec<&str> = active.into_iter().chain(attached).collect();
    words.join(" ")
}
