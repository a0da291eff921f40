//! `esw up --daemon`: cards that stay up, each with its control socket, until told to go.

mod config;
mod detach;
pub mod folders;
mod found;
mod host;
mod journal;
mod keeper;
mod log;
mod notify;
mod told;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use card_linux::Place;
use devlink::{Access, IfIndex, Served, Server};
use eswitch::Touched;
use lockdep::{Domain, Locked, Unlocked};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scenario::{Follower, Pulse, Session};

use crate::arguments::{Card as Kind, Up};
use crate::cards::{Cards, Found as Left};
use crate::interrupt;
use crate::output::line;
use crate::{FAILED, HELD};

use config::{CardEntry, Config};
use folders::Socket;
use host::{CardHost, Ending};
use journal::Journal;
use keeper::{Kept, Letting};
use notify::Notify;

pub use detach::detach;
pub use found::{Found, NotFound, socket_of, sockets};
pub use host::How;
pub use keeper::keeper;
pub use told::{CardStatus, PfStatus};

/// How long any wait of a command may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Connections to a card at a time at most, if there are descriptors for so many.
const CLIENTS: usize = 1_024;
/// Descriptors for everything else: the cards' own sockets and namespaces, the journal, the log.
const OTHERS: u64 = 128;

/// Runs the command; its exit status.
///
/// # Errors
/// A configuration that cannot be used, a socket that is taken, no place for the cards, or one that does
/// not come up. Nothing is left.
pub fn daemon(arguments: &Up) -> Result<u8> {
    log::begin(&arguments.service)?;
    if arguments.service.detached {
        // It fails only for who leads a group already, which a process that was just started does not.
        let _ = rustix::process::setsid();
    }
    let notify = Arc::new(Notify::from_environment());
    let config = Config::read(arguments.config.as_deref(), arguments.card)?;
    let clients = clients_of_each(descriptors(), config.cards.len());
    // Before the place: without root it hides the folder the sockets are in.
    let mut doors = Vec::new();
    for card in &config.cards {
        let socket = Socket::bind(card)?;
        let journal = Journal::open(&config.state_dir, &card.name, arguments.service.fresh)?;
        if let Some(stored) = journal.last() {
            journal::ensure_fits(&stored.config, &card.card).with_context(|| format!("cards.{}", card.name))?;
        }
        doors.push(Door { socket, journal: Arc::new(journal) });
    }
    let (place, letting) = prepare(&config, &doors)?;
    let domain = crate::domain(arguments.lockdep);
    let pulse = Arc::new(Pulse::new());
    interrupt::listen(&domain, &pulse)?;
    let daemon = Daemon {
        cards: Cards::of(place),
        ending: Arc::new(Ending::new(Arc::clone(&pulse), if config.keep { How::Keep } else { How::Down })),
        domain: Arc::clone(&domain),
        pulse,
        notify,
        clients,
    };
    lockdep::enter(&domain, "main", |cx| daemon.run(cx, &config, doors, letting))
}

/// A place for cards of netdevs, if there are any, and who keeps it.
fn prepare(config: &Config, doors: &[Door]) -> Result<(Option<Place>, Letting)> {
    let linux = |(card, _): &(&CardEntry, &Door)| card.kind == Kind::Linux;
    let with_netdevs: Vec<_> = config.cards.iter().zip(doors).filter(linux).collect();
    let Some((first, _)) = with_netdevs.first() else { return Ok((None, Letting::none())) };
    let keeps = with_netdevs.iter().any(|(_, door)| door.journal.last().is_some());
    let (place, letting) = Kept::prepare(&first.socket, keeps)?.split();
    Ok((Some(place), letting))
}

/// The cards that a configuration asks for, if it can be used.
pub fn fuzzed(text: &str) -> Option<Vec<eswitch::CardConfig>> {
    let config = Config::parse(text, Kind::Memory).ok()?;
    Some(config.cards.into_iter().map(|entry| entry.card).collect())
}

/// What all cards of a daemon share.
struct Daemon {
    cards: Cards,
    ending: Arc<Ending>,
    domain: Arc<Domain>,
    pulse: Arc<Pulse>,
    notify: Arc<Notify>,
    /// Connections to a card at a time at most.
    clients: usize,
}

/// What a card has before there is a card.
struct Door {
    socket: Socket,
    journal: Arc<Journal>,
}

/// A card that is up.
struct Running {
    journal: Arc<Journal>,
    session: Arc<Session>,
    server: Server,
    log: Follower,
    socket: Socket,
    name: String,
}

impl Daemon {
    fn run(&self, cx: &mut Locked<'_, Unlocked>, config: &Config, doors: Vec<Door>, letting: Letting) -> Result<u8> {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), cards = config.cards.len(), "starting");
        let mut up = Vec::new();
        for (card, door) in config.cards.iter().zip(doors) {
            self.notify.status(&format!("bringing {} up", card.name));
            up.push(self.bring_up(cx, card, door)?);
        }
        for card in &config.cards {
            line(&format!("{}: up, control socket {}", card.name, card.socket.display()));
        }
        let names: Vec<&str> = config.cards.iter().map(|card| card.name.as_str()).collect();
        self.notify.ready(&format!("up: {}", names.join(", ")));
        let watchdog = Watchdog::start(Arc::clone(&self.notify))?;
        self.pulse.wait_stopped(cx);
        drop(watchdog);
        self.notify.stopping();
        tracing::info!(how = self.ending.how().words(), "stopping");
        if self.ending.how() == How::Keep {
            letting.stay();
            leave(up);
        }
        let mut status = HELD;
        for card in up.into_iter().rev() {
            if !card.take_down(cx, self.ending.how()) {
                status = FAILED;
            }
        }
        letting.end();
        tracing::info!("stopped");
        Ok(status)
    }

    fn bring_up(&self, cx: &mut Locked<'_, Unlocked>, card: &CardEntry, door: Door) -> Result<Running> {
        let since = Instant::now();
        let Door { mut socket, journal } = door;
        let stored = journal.last();
        let listener: OwnedFd = socket.take_listener().context("the socket is served already")?;
        // What was never agreed on is nobody's.
        let found = if stored.is_some() { Left::TakenOver } else { Left::Cleared };
        let (world, hold) = self.cards.world_of(card.kind, &card.card, found, &self.domain, &self.pulse)?;
        let agreed = stored.as_ref().map(|stored| &stored.agreed);
        let session = match Session::start_as(cx, card.card.clone(), world, LIMIT, agreed) {
            Ok(session) => Arc::new(session),
            Err(error) => bail!("{}: the card did not come up: {error}", card.name),
        };
        if let Some(hold) = &hold {
            hold.taken_over(cx);
        }
        match journal.store(&card.card, || session.engine().agreed_part(cx, Touched::Everything)) {
            // What is in use may not go because a disk is full: commands are answered with that until it is not.
            Err(error) if stored.is_some() => tracing::error!(card = card.name, "{error:#}"),
            stored => drop(stored?),
        }
        let (milliseconds, restored) = (since.elapsed().as_millis() as u64, stored.is_some());
        tracing::info!(card = card.name, milliseconds, restored, "up");
        let log = log::follow(cx, &card.name, &session, &self.domain)?;
        let host = CardHost {
            name: card.name.clone(),
            kind: card.kind,
            socket: card.socket.clone(),
            since,
            journal: Arc::clone(&journal),
            session: Arc::downgrade(&session),
            ending: Arc::clone(&self.ending),
        };
        let served = Arc::new(Served {
            ifindex: (card.kind == Kind::Linux).then(ifindex).transpose()?,
            host: Some(Arc::new(host)),
            ..Served::new(Arc::clone(&session), Arc::clone(&self.domain), card.profile.clone())
        });
        let access = Access { group: socket.group(), clients: self.clients };
        let server = Server::start(cx, served, listener, access)?;
        Ok(Running { journal, session, server, log, socket, name: card.name.clone() })
    }
}

impl Running {
    /// Takes the card down; whether nothing is left.
    fn take_down(self, cx: &mut Locked<'_, Unlocked>, how: How) -> bool {
        drop(self.server);
        // First: who is killed from here on has been asked to forget it.
        let forgotten = if how == How::Forget { self.journal.forget() } else { self.journal.catch_up().map(drop) };
        if let Err(error) = &forgotten {
            tracing::error!(card = self.name, "{error:#}");
        }
        let left = self.session.close(cx);
        for left in &left {
            tracing::error!(card = self.name, invariant = left.invariant, "{}", left.detail);
        }
        drop(self.log);
        // The netdevs go with the card, and only then may another daemon take its place.
        drop(self.session);
        drop(self.socket);
        left.is_empty() && forgotten.is_ok()
    }
}

/// Leaves the cards as they are, as if we had died, but for the sockets: the next daemon finds them.
fn leave(up: Vec<Running>) -> ! {
    for card in up {
        drop(card.server);
        // What the next daemon does not know of it would delete.
        if let Err(error) = card.journal.catch_up() {
            tracing::error!(card = card.name, "{error:#}");
        }
        drop(card.log);
        drop(card.socket);
    }
    tracing::info!("stopped; the cards' netdevs stay");
    std::process::exit(HELD.into())
}

/// How many descriptors this process may have, once it may have as many as it can.
fn descriptors() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let highest = Rlimit { current: limit.maximum, ..limit };
    if setrlimit(Resource::Nofile, highest).is_ok() {
        limit = highest;
    }
    limit.current.unwrap_or(u64::MAX)
}

/// How many clients each card takes. One that nobody could accept would wait for an answer for ever; one too many
/// is told so by the end of its connection.
fn clients_of_each(descriptors: u64, cards: usize) -> usize {
    let each = descriptors.saturating_sub(OTHERS) / (cards.max(1) as u64);
    usize::try_from(each).unwrap_or(CLIENTS).clamp(8, CLIENTS)
}

/// Numbers of netdevs in this process's namespace.
fn ifindex() -> Result<IfIndex> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(Box::new(move |name| name_to_index(&socket, name).ok()))
}

/// Who tells the service manager that we live, if it wants to hear.
struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn start(notify: Arc<Notify>) -> Result<Self> {
        let Some(every) = notify::watchdog() else { return Ok(Self { stop: None, thread: None }) };
        let (stop, stopped) = channel();
        let tell = move || {
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                notify.alive();
            }
        };
        let thread = thread::Builder::new().name("watchdog".to_owned()).spawn(tell)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
