//! `esw up --daemon`: keeps cards up, each with its control socket, until it is told to end.

mod config;
mod connection;
mod descriptors;
mod detach;
mod ending;
mod flow_log;
pub mod folders;
mod host;
mod journal;
mod keeper;
mod log;
mod netdevs;
mod notify;
mod running;
mod status;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ::host::{Heeds, LiveCard, Pulse};
use anyhow::{Context, Result, bail};
use card_linux::{Hold, Place};
use control::{CommandTarget, Follower};
use devlink::{Access, ControlSocket, Cx, Kept as ServerState, KernelNetdevs, Served, Server};
use eswitch::{FlowRecord, PfIndex, StoredFlows, Touched};
use lockdep::{Domain, Locked, Unlocked};
use rustix::process::getegid;

use crate::arguments::Up;
use crate::cards::{CardKind, Cards, Leftovers};
use crate::exit_status::{FAILED, HELD};
use crate::interrupt;
use crate::lock_order;
use crate::output::line;

use config::{CardEntry, Config};
use descriptors::{clients_of_each, descriptors, ensure_descriptors_for_clients};
use ending::Ending;
use flow_log::FlowLog;
use host::CardHost;
use journal::{InUse, Journal, Part, Stored};
use keeper::{KeeperGuard, Kept};
use netdevs::Netdevs;
use notify::{Notify, Watchdog};
use running::{Running, Started, give_up_all, leave};

pub use connection::{DaemonConnection, NoAnswer, PATIENCE, socket_of, sockets};
pub use detach::detach;
pub use ending::How;
pub use keeper::keeper;
pub use status::{CardStatus, PfStatus};

/// How long a start waits for the next hops to ends of tunnels.
const NEXT_HOPS: Duration = Duration::from_secs(5);
/// How long a process that was killed may take to close its files.
const DYING: Duration = Duration::from_secs(2);

/// Runs the command; its exit status.
///
/// # Errors
/// The configuration cannot be used, a socket is taken, there is no place for the cards, a card does not come up, or this
/// is inside a lab. Nothing is left of what this start has made, and what existed before stays.
pub fn daemon(arguments: &Up) -> Result<u8> {
    log::begin(&arguments.service)?;
    if arguments.service.detached {
        // It fails only for the leader of a process group, and a process that was just started leads none.
        let _ = rustix::process::setsid();
    }
    if lab::is_inside().context("looking whether this is inside a lab")? {
        bail!(
            "this is inside a lab, where netlink sockets are not the kernel's: start the daemon outside of it (a \
             container whose engine answers system calls looks the same)"
        );
    }
    if let Some(netns) = &arguments.netns {
        Place::enter(netns)?;
    }
    let notify = Arc::new(Notify::from_environment());
    let config = Config::read(arguments.config.as_deref(), arguments.card)?;
    let clients = clients_of_each(descriptors(), config.cards.len());
    // Before the place, which without root hides the folder of the sockets. All sockets and all state are opened before
    // --fresh forgets any, so that a start that is refused has forgotten nothing.
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
        let flows = FlowLog::open(&config.state_dir, &card.name)?;
        doors.push(Door { socket, journal: Arc::new(journal), flows, stored });
    }
    let own_group = getegid().as_raw();
    let (place, keeper) = prepare(&config, &doors)?;
    let own_group = place.as_ref().is_some_and(Place::is_private).then_some(own_group);
    let domain = lock_order::domain(arguments.lockdep);
    let pulse = Arc::new(Pulse::new());
    interrupt::listen(&domain, &pulse)?;
    let daemon = Daemon {
        cards: Cards::of(place.map(|place| place.on_node(folders::node()))),
        ending: Arc::new(Ending::new(Arc::clone(&pulse), if config.keep { How::Keep } else { How::Down })),
        domain: Arc::clone(&domain),
        pulse,
        notify,
        clients,
        own_group,
    };
    lockdep::enter(&domain, "main", |cx| daemon.run(cx, &config, doors, keeper))
}

/// Has the wires of a card lead where its configuration says.
///
/// # Errors
/// There is no such network namespace, or the kernel refuses.
fn plug(cx: &mut Locked<'_, Unlocked>, hold: &Hold, card: &CardEntry) -> Result<()> {
    for pf in (0..card.card.pfs).map(PfIndex) {
        let wire = card.wires.get(usize::from(pf.0)).cloned().unwrap_or_default();
        hold.set_wire(cx, pf, &wire).with_context(|| format!("cards.{}: the wire of pf{}", card.name, pf.0))?;
    }
    Ok(())
}

/// Finds the stored state of a card. A daemon that has just been killed may have closed its socket and still have the
/// state open: the kernel closes one file after the other.
fn find_state(folder: &Path, card: &str, fresh: bool) -> Result<journal::FoundState> {
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

/// Prepares the place of the cards of netdevs, if there are any, and its keeper.
fn prepare(config: &Config, doors: &[Door]) -> Result<(Option<Place>, KeeperGuard)> {
    let linux = |(card, _): &(&CardEntry, &Door)| card.kind == CardKind::Linux;
    let with_netdevs: Vec<_> = config.cards.iter().zip(doors).filter(linux).collect();
    if with_netdevs.is_empty() {
        return Ok((None, KeeperGuard::none()));
    }
    let keeps = with_netdevs.iter().any(|(_, door)| door.stored.is_some());
    let sockets: Vec<&Path> = with_netdevs.iter().map(|(card, _)| card.socket.as_path()).collect();
    let (place, keeper) = Kept::prepare(&sockets, keeps)?.split();
    Ok((Some(place), keeper))
}

/// The cards of a configuration, if it can be used: for a fuzz target.
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
    /// The group that this process had before it went to a user namespace of its own, if it did.
    own_group: Option<u32>,
}

/// The socket and the state of a card, before the card comes up.
struct Door {
    // Dropped first: a daemon that gets the socket must get the state, too.
    journal: Arc<Journal>,
    /// Its flow rules and filters, with those that were stored.
    flows: (FlowLog, StoredFlows, Vec<tc::Stored>),
    /// What was stored when the state was opened.
    stored: Option<Stored>,
    socket: ControlSocket,
}

impl Daemon {
    fn run(&self, cx: &mut Locked<'_, Unlocked>, config: &Config, doors: Vec<Door>, keeper: KeeperGuard) -> Result<u8> {
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
        // From here on no failure ends this start: until here, what an earlier daemon had left stays.
        up.iter().filter_map(|running| running.card.hold.as_ref()).for_each(Hold::may_go);
        for card in &config.cards {
            line(&format!("{}: up, control socket {}", card.name, card.socket.display()));
        }
        let names: Vec<&str> = config.cards.iter().map(|card| card.name.as_str()).collect();
        self.notify.ready(&format!("up: {}", names.join(", ")));
        self.pulse.wait_stopped(cx);
        drop(watchdog);
        self.notify.stopping();
        tracing::info!(how = self.ending.how().word(), "stopping");
        if self.ending.how() == How::Keep {
            keeper.stay();
            leave(cx, up);
        }
        let mut status = HELD;
        for card in up.into_iter().rev() {
            if !card.take_down(cx, self.ending.how()) {
                status = FAILED;
            }
        }
        keeper.end();
        tracing::info!("stopped");
        Ok(status)
    }

    fn bring_up(&self, cx: &mut Locked<'_, Unlocked>, card: &CardEntry, door: Door) -> Result<Running> {
        let since = Instant::now();
        let Door { mut socket, journal, flows, stored } = door;
        let listener: OwnedFd = socket.take_listener().context("the socket is served already")?;
        // Netdevs without a stored state belong to no daemon.
        let leftovers = if stored.is_some() { Leftovers::TakenOver } else { Leftovers::Removed };
        let (world, hold) = self.cards.world_of(card.kind, &card.card, leftovers, &self.domain, &self.pulse)?;
        let restored = stored.is_some();
        let (agreed, kept) = stored.map(|Stored { agreed, kept, .. }| (agreed, kept)).unzip();
        let live = match LiveCard::start(cx, card.card.clone(), world, agreed.as_ref()) {
            Ok(live) => Arc::new(live),
            Err(error) => bail!("{}: the card did not come up: {error}", card.name),
        };
        let (flows, stored_flows, filters) = flows;
        let started = Started { name: card.name.clone(), journal, flows: Arc::new(flows), live, hold, restored };
        if !restored {
            started.flows.forget(cx);
        }
        restore_flows(cx, &started, if restored { stored_flows } else { StoredFlows::default() });
        let kept = (kept.unwrap_or_default(), if restored { filters } else { Vec::new() });
        match self.serve(cx, card, &started, kept, listener, since) {
            Ok((server, log)) => Ok(Running { card: started, server, log, socket }),
            Err(error) => {
                started.give_up(cx);
                Err(error)
            }
        }
    }

    /// Stores the agreed state of a card that has come up, and serves the card.
    fn serve(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        card: &CardEntry,
        started: &Started,
        (kept, filters): (ServerState, Vec<tc::Stored>),
        listener: OwnedFd,
        since: Instant,
    ) -> Result<(Server, Follower)> {
        let Started { journal, flows, live, hold, restored, .. } = started;
        if let Some(hold) = hold {
            hold.taken_over(cx);
            plug(cx, hold, card)?;
        }
        let collect = |cx: Cx<'_, '_>| Part {
            agreed: live.engine().agreed_part(cx, Touched::Everything),
            // The same as is stored.
            server: None,
        };
        match journal.store(cx, &card.card, collect) {
            // A card in use must not be taken down because a disk is full. Commands are answered with that error instead.
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
            flows: Arc::clone(flows),
            live: Arc::downgrade(live),
            ending: Arc::clone(&self.ending),
        };
        let served = Arc::new(Served {
            netdevs: hold.as_ref().map(netdevs_of).transpose()?,
            host: Some(Arc::new(host)),
            ..Served::new(Arc::clone(live) as Arc<dyn CommandTarget>, Arc::clone(&self.domain), card.profile.clone())
        });
        served.restore(cx, kept);
        served.restore_filters(cx, filters);
        let access = Access { group: self.group_of(card), clients: self.clients };
        Ok((Server::start(cx, served, listener, access)?, log))
    }

    /// The group whose members may change things, with the number that the kernel shows to this process. In a user
    /// namespace of its own that is root's for the user's own group, and one number for all others: so only the user's
    /// own group can be known.
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

/// Restores the flow rules of a card that has come up as it was, and has what changes of them stored from now on.
fn restore_flows(cx: &mut Locked<'_, Unlocked>, started: &Started, stored: StoredFlows) {
    let Started { name, flows, live, .. } = started;
    let engine = live.engine();
    let queue = Arc::clone(flows);
    engine.on_flow_record(cx, Arc::new(move |record| queue.note_flow(record)));
    let rules = stored.rules.len();
    let mut gone = engine.restore_flows(cx, stored);
    if rules > 0 {
        // The next hops to ends of tunnels are known then. If not, frames take the slow path.
        let _ = live.follow_kernel(cx, Heeds::Stop, NEXT_HOPS);
        gone.extend(engine.confirm_flows(cx));
        tracing::info!(card = name, restored = rules - gone.len(), gone = gone.len(), "flow rules");
    }
    gone.into_iter().for_each(|id| flows.note_flow(FlowRecord::Gone(id)));
    flows.flush(cx);
}

/// The netdevs of a card of netdevs.
fn netdevs_of(card: &Hold) -> Result<Arc<dyn KernelNetdevs>> {
    Ok(Arc::new(Netdevs::new(card)?))
}
