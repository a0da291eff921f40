//! `esw up --daemon`: cards that stay up, each with its control socket, until told to go.

mod config;
pub mod folders;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use card_linux::Place;
use devlink::view::Profile;
use devlink::{Access, IfIndex, Served, Server};
use lockdep::{Locked, Unlocked};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index};
use scenario::{Pulse, Session};

use crate::arguments::{Card as Kind, Up};
use crate::cards::Cards;
use crate::interrupt;
use crate::output::line;
use crate::{FAILED, HELD};

use config::{CardEntry, Config};
use folders::Socket;

/// How long any wait of a command may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Connections to a card at a time at most.
const CLIENTS: usize = 1_024;

/// Runs the command; its exit status.
///
/// # Errors
/// A configuration that cannot be used, a socket that is taken, no place for the cards, or one that does
/// not come up. Nothing is left.
pub fn daemon(arguments: &Up) -> Result<u8> {
    let config = Config::read(arguments.config.as_deref(), arguments.card)?;
    // Before the place: without root it hides the folder the sockets are in.
    let mut sockets = Vec::new();
    for card in &config.cards {
        sockets.push(Socket::bind(card)?);
    }
    let place = match config.cards.iter().any(|card| card.kind == Kind::Linux) {
        true => Some(Place::prepare()?),
        false => None,
    };
    let domain = crate::domain(arguments.lockdep);
    let pulse = Arc::new(Pulse::new());
    interrupt::listen(&domain, &pulse)?;
    lockdep::enter(&domain, "main", |cx| {
        let cards = Cards::of(place);
        let mut up = Vec::new();
        for (card, socket) in config.cards.iter().zip(sockets) {
            up.push(bring_up(cx, &cards, card, socket, &domain, &pulse)?);
        }
        for card in &config.cards {
            line(&format!("{}: up, control socket {}", card.name, card.socket.display()));
        }
        pulse.wait_stopped(cx);
        let mut status = HELD;
        for card in up.into_iter().rev() {
            drop(card.server);
            for left in card.session.close(cx) {
                status = FAILED;
                eprintln!("{}: {}", left.invariant, left.detail);
            }
            drop(card.socket);
        }
        Ok(status)
    })
}

/// A card that is up.
struct Running {
    session: Arc<Session>,
    server: Server,
    socket: Socket,
}

fn bring_up(
    cx: &mut Locked<'_, Unlocked>,
    cards: &Cards,
    card: &CardEntry,
    mut socket: Socket,
    domain: &Arc<lockdep::Domain>,
    pulse: &Arc<Pulse>,
) -> Result<Running> {
    let listener: OwnedFd = socket.take_listener().context("the socket is served already")?;
    let world = cards.world_of(card.kind, &card.card, domain, pulse)?;
    let session = match Session::start(cx, card.card.clone(), world, LIMIT) {
        Ok(session) => Arc::new(session),
        Err(error) => bail!("{}: the card did not come up: {error}", card.name),
    };
    let ifindex = (card.kind == Kind::Linux).then(ifindex).transpose()?;
    let served = Arc::new(Served {
        session: Arc::clone(&session),
        domain: Arc::clone(domain),
        profile: Profile::mlx5(),
        ifindex,
    });
    let access = Access { group: socket.group(), clients: CLIENTS };
    let server = Server::start(cx, served, listener, access)?;
    Ok(Running { session, server, socket })
}

/// Numbers of netdevs in this process's namespace.
fn ifindex() -> Result<IfIndex> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(Box::new(move |name| name_to_index(&socket, name).ok()))
}
