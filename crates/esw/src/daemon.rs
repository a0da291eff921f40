//! `esw up --daemon`: cards that stay up, each with its control socket, until told to go.

mod config;
mod descriptors;
mod detach;
mod ending;
pub mod folders;
mod found;
mod host;
mod journal;
mod keeper;
mod log;
mod notify;
mod running;
mod told;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ::host::{LiveCard, Pulse};
use anyhow::{Context, Result, bail};
use card_linux::{Hold, Place};
use control::{CommandTarget, Follower};
use devlink::{Access, ControlSocket, IfIndex, Served, Server};
use eswitch::Touched;
use lockdep::{Domain, Locked, Unlocked};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index};
use rustix::process::getegid;

use crate::arguments::Up;
use crate::cards::{CardKind, Cards, Found as Left};
use crate::exit_status::{FAILED, HELD};
use crate::interrupt;
use crate::lock_order;
use crate::output::line;

use config::{CardEntry, Config};
use descriptors::{clients_of_each, descriptors, ensure_descriptors_for_clients};
use ending::Ending;
use host::CardHost;
use journal::{InUse, Journal, Stored};
use keeper::{Kept, Letting};
use notify::{Notify, Watchdog};
use running::{Running, Started, give_up_all, leave};

pub use detach::detach;
pub use ending::How;
pub use found::{Found, NotFound, PATIENCE, socket_of, sockets};
pub use keeper::keeper;
pub use told::{CardStatus, PfStatus};

/// How long a process that was killed may take to let go of its files.
const DYING: Duration = Duration::from_secs(2);
/// Runs the command; its exit status.
///
/// # Errors
/// A configuration that cannot be used, a socket that is taken, no place for the cards, or one that does
/// not come up; or this is inside a lab. Nothing is left of what this start has made, and what was there stays.
pub fn daemon(arguments: &Up) -> Result<u8> {
    log::begin(&arguments.service)?;
    if arguments.service.detached {
        // It fails only for who leads a group already, which a process that was just started does not.
        let _ = rustix::process::setsid();
    }
    if lab::is_inside().context("looking whether this is inside a lab")? {
        bail!(
            "this is inside a lab, where netlink sockets are not the kernel's: start the daemon outside of it (a \
             container whose engine answers system calls looks the same)"
        );
    }
    let notify = Arc::new(Notify::from_environment());
    let config = Config::read(arguments.config.as_deref(), arguments.card)?;
    let clients = clients_of_each(descriptors(), config.cards.len());
    // Before the place: without root it hides the folder the sockets are in. And all of them, and all state, before
    // --fresh forgets any: a start that is refused has forgotten nothing.
    let sockets = config
        .cards
        .iter()
        .map(|card| folders::bind(&card.socket, card.mode, card.group))
        .collect::<Result<Vec<_>>>()?;
    let fresh = arguments.service.fresh;
    let find = |card: &CardEntry| find_state(&config.state_dir, &card.name, fresh);
    let states = config.cards.iter().map(find).collect::<Result<Vec<_>>>()?;
    let mut doors = Vec::new();
    for ((card, socket), state) in config.cards.iter().zip(sockets).zip(states) {
        let (journal, stored) = Journal::open(state)?;
        if let Some(stored) = &stored {
            journal::ensure_fits(&stored.config, &card.card).with_context(|| format!("cards.{}", card.name))?;
        }
        doors.push(Door { socket, journal: Arc::new(journal), stored });
    }
    let own_group = getegid().as_raw();
    let (place, letting) = prepare(&config, &doors)?;
    let own_group = place.as_ref().is_some_and(Place::is_private).then_some(own_group);
    let domain = lock_order::domain(arguments.lockdep);
    let pulse = Arc::new(Pulse::new());
    interrupt::listen(&domain, &pulse)?;
    let daemon = Daemon {
        cards: Cards::of(place),
        ending: Arc::new(Ending::new(Arc::clone(&pulse), if config.keep { How::Keep } else { How::Down })),
        domain: Arc::clone(&domain),
        pulse,
        notify,
        clients,
        own_group,
    };
    lockdep::enter(&domain, "main", |cx| daemon.run(cx, &config, doors, letting))
}

/// Finds what is kept of a card. A daemon that has just been killed may have let go of its socket and not of that yet:
/// the kernel closes one file after the other.
fn find_state(folder: &Path, card: &str, fresh: bool) -> Result<journal::Found> {
    let until = Instant::now() + DYING;
    loop {
        match Journal::found(folder, card, fresh) {
            Err(error) if error.downcast_ref::<InUse>().is_some() && Instant::now() < until => {
                thread::sleep(Duration::from_millis(10));
            }
            opened => return opened,
        }
    }
}

/// A place for cards of netdevs, if there are any, and who keeps it.
fn prepare(config: &Config, doors: &[Door]) -> Result<(Option<Place>, Letting)> {
    let linux = |(card, _): &(&CardEntry, &Door)| card.kind == CardKind::Linux;
    let with_netdevs: Vec<_> = config.cards.iter().zip(doors).filter(linux).collect();
    if with_netdevs.is_empty() {
        return Ok((None, Letting::none()));
    }
    let keeps = with_netdevs.iter().any(|(_, door)| door.stored.is_some());
    let sockets: Vec<&Path> = with_netdevs.iter().map(|(card, _)| card.socket.as_path()).collect();
    let (place, letting) = Kept::prepare(&sockets, keeps)?.split();
    Ok((Some(place), letting))
}

/// The cards that a configuration asks for, if it can be used.
pub fn fuzzed(text: &str) -> Option<Vec<eswitch::CardConfig>> {
    let config = Config::parse(text, CardKind::Memory).ok()?;
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
    /// The group that was ours before we went to a user namespace of our own, if we did.
    own_group: Option<u32>,
}

/// What a card has before there is a card.
struct Door {
    // Dropped first: who gets the socket is to get the state, too.
    journal: Arc<Journal>,
    /// What was stored when the state was opened.
    stored: Option<Stored>,
    socket: ControlSocket,
}

impl Daemon {
    fn run(&self, cx: &mut Locked<'_, Unlocked>, config: &Config, doors: Vec<Door>, letting: Letting) -> Result<u8> {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), cards = config.cards.len(), "starting");
        let mut up = Vec::new();
        for (card, door) in config.cards.iter().zip(doors) {
            self.notify.status(&format!("bringing {} up", card.name));
            match self.bring_up(cx, card, door) {
                Ok(running) => up.push(running),
                Err(error) => return give_up_all(cx, up, error),
            }
        }
        let watchdog = match Watchdog::start(Arc::clone(&self.notify)) {
            Ok(watchdog) => watchdog,
            Err(error) => return give_up_all(cx, up, error),
        };
        if let Err(error) = ensure_descriptors_for_clients() {
            return give_up_all(cx, up, error);
        }
        // Nothing can fail any more that would have us end: until here, what an earlier daemon had left stays.
        up.iter().filter_map(|running| running.card.hold.as_ref()).for_each(Hold::may_go);
        for card in &config.cards {
            line(&format!("{}: up, control socket {}", card.name, card.socket.display()));
        }
        let names: Vec<&str> = config.cards.iter().map(|card| card.name.as_str()).collect();
        self.notify.ready(&format!("up: {}", names.join(", ")));
        self.pulse.wait_stopped(cx);
        drop(watchdog);
        self.notify.stopping();
        tracing::info!(how = self.ending.how().words(), "stopping");
        if self.ending.how() == How::Keep {
            letting.stay();
            leave(cx, up);
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
        let Door { mut socket, journal, stored } = door;
        let listener: OwnedFd = socket.take_listener().context("the socket is served already")?;
        // What was never agreed on is nobody's.
        let found = if stored.is_some() { Left::TakenOver } else { Left::Cleared };
        let (world, hold) = self.cards.world_of(card.kind, &card.card, found, &self.domain, &self.pulse)?;
        let agreed = stored.as_ref().map(|stored| &stored.agreed);
        let live = match LiveCard::start(cx, card.card.clone(), world, agreed) {
            Ok(live) => Arc::new(live),
            Err(error) => bail!("{}: the card did not come up: {error}", card.name),
        };
        let started = Started { name: card.name.clone(), journal, live, hold, restored: stored.is_some() };
        match self.serve(cx, card, &started, listener, since) {
            Ok((server, log)) => Ok(Running { card: started, server, log, socket }),
            Err(error) => {
                started.give_up(cx);
                Err(error)
            }
        }
    }

    /// Stores what is agreed of a card that has come up, and serves it.
    fn serve(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        card: &CardEntry,
        started: &Started,
        listener: OwnedFd,
        since: Instant,
    ) -> Result<(Server, Follower)> {
        let Started { journal, live, hold, restored, .. } = started;
        if let Some(hold) = hold {
            hold.taken_over(cx);
        }
        match journal.store(cx, &card.card, |cx| live.engine().agreed_part(cx, Touched::Everything)) {
            // What is in use may not go because a disk is full: commands are answered with that until it is not.
            Err(error) if *restored => tracing::error!(card = card.name, "{error:#}"),
            stored => drop(stored?),
        }
        let milliseconds = since.elapsed().as_millis() as u64;
        tracing::info!(card = card.name, milliseconds, restored, "up");
        let log = log::follow(cx, &card.name, live, &self.domain)?;
        let host = CardHost {
            name: card.name.clone(),
            kind: card.kind,
            socket: card.socket.clone(),
            since,
            journal: Arc::clone(journal),
            live: Arc::downgrade(live),
            ending: Arc::clone(&self.ending),
        };
        let served = Arc::new(Served {
            ifindex: (card.kind == CardKind::Linux).then(ifindex).transpose()?,
            host: Some(Arc::new(host)),
            ..Served::new(Arc::clone(live) as Arc<dyn CommandTarget>, Arc::clone(&self.domain), card.profile.clone())
        });
        let access = Access { group: self.group_of(card), clients: self.clients };
        Ok((Server::start(cx, served, listener, access)?, log))
    }

    /// Whose members may change things, as the kernel tells this process of groups. In a user namespace of our own
    /// it tells of ours, as root's, and of all others as one: so it can be no other.
    fn group_of(&self, card: &CardEntry) -> Option<u32> {
        const ROOT: u32 = 0;
        let (group, Some(own)) = (card.group?, self.own_group) else { return card.group };
        if group != own {
            let card = card.name.as_str();
            tracing::warn!(card, group, "without root only this user's own group can be known as `socket_group`");
        }
        (group == own).then_some(ROOT)
    }
}

/// Numbers of netdevs in this process's namespace.
fn ifindex() -> Result<IfIndex> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(Box::new(move |name| name_to_index(&socket, name).ok()))
}
