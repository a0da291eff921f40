//! A card that tests connect to.

#![allow(dead_code, reason = "each of those who share it uses a part")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use card_memory::MemoryCard;
use control::CommandTarget;
use devlink::view::Profile;
use devlink::{Access, ControlSocket, Host, Served, Server};
use eswitch::inspect::{PendingRetry, Snapshot};
use eswitch::{CardConfig, Engine, PciAddress};
use host::{LiveCard, World};
use lockdep::{Domain, Locked, OnReport, Unlocked};

/// The card's first PF.
pub const PF: &str = "0000:08:00.0";

/// A card in memory whose control socket is served.
pub struct Up {
    pub path: PathBuf,
    server: Option<Server>,
    socket: Option<ControlSocket>,
    pub live: Arc<LiveCard>,
    domain: Arc<Domain>,
}

fn up(
    cx: &mut Locked<'_, Unlocked>,
    domain: &Arc<Domain>,
    access: Access,
    host: Option<Arc<dyn Host>>,
    config: CardConfig,
) -> Up {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("esw-protocol-{}-{number}.sock", std::process::id()));
    let world = World::of(MemoryCard::new(config.clone()), domain);
    let live = Arc::new(LiveCard::start(cx, config, world, None).unwrap());
    let served = Served {
        host,
        ..Served::new(Arc::clone(&live) as Arc<dyn CommandTarget>, Arc::clone(domain), Profile::mlx5())
    };
    let mut socket = ControlSocket::bind(&path, 0o600, None).unwrap();
    let server = Server::start(cx, Arc::new(served), socket.take_listener().unwrap(), access).unwrap();
    Up { path, server: Some(server), socket: Some(socket), live, domain: Arc::clone(domain) }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.server = None;
        self.socket = None;
        assert!(self.domain.take_reports().is_empty());
    }
}

impl Up {
    /// Whether a command holds a PF at the moment.
    pub fn is_busy(&self, pf: PciAddress) -> bool {
        thread::scope(|scope| {
            let inspect = || {
                lockdep::enter(&self.domain, "onlooker", |cx| self.live.engine().inspect_pf_if_free(cx, pf).is_none())
            };
            scope.spawn(inspect).join().unwrap()
        })
    }

    /// Runs something with the engine.
    pub fn with_engine<R: Send>(&self, run: impl FnOnce(&mut Locked<'_, Unlocked>, &Engine) -> R + Send) -> R {
        // In a thread of its own: this one has entered the lock order already.
        let with = || lockdep::enter(&self.domain, "onlooker", |cx| run(cx, self.live.engine()));
        thread::scope(|scope| scope.spawn(with).join().unwrap())
    }

    /// The state of the card when all queued work is done, without the times until retries.
    pub fn at_rest(&self) -> Snapshot {
        // In a thread of its own: this one has entered the lock order already.
        thread::scope(|scope| {
            let inspect = || {
                lockdep::enter(&self.domain, "onlooker", |cx| {
                    let engine = self.live.engine();
                    engine.settle(cx, true);
                    assert_eq!(engine.check(cx), []);
                    let mut snapshot = engine.inspect(cx);
                    // The time until a retry differs from run to run.
                    for pf in snapshot.pfs.iter_mut().filter(|pf| pf.retry.is_pending()) {
                        pf.retry = PendingRetry::Unknown;
                    }
                    snapshot
                })
            };
            scope.spawn(inspect).join().unwrap()
        })
    }
}

/// Runs a test with a card of this configuration.
pub fn with_card_of(config: CardConfig, test: impl FnOnce(&Up)) {
    with_all(Access { group: None, clients: 16 }, None, config, test);
}

/// Runs a test with a card that has places for 16 clients.
pub fn with_card(test: impl FnOnce(&Up)) {
    with_room_for(16, test);
}

/// Runs a test with a card that has places for this many clients.
pub fn with_room_for(clients: usize, test: impl FnOnce(&Up)) {
    with(Access { group: None, clients }, None, test);
}

/// Runs a test with a card.
pub fn with(access: Access, host: Option<Arc<dyn Host>>, test: impl FnOnce(&Up)) {
    with_all(access, host, CardConfig { vfs: 2, ..CardConfig::default() }, test);
}

fn with_all(access: Access, host: Option<Arc<dyn Host>>, config: CardConfig, test: impl FnOnce(&Up)) {
    let domain = Domain::checked(OnReport::Record);
    lockdep::enter(&domain, "main", |cx| {
        let up = up(cx, &domain, access, host, config);
        test(&up);
        let live = Arc::clone(&up.live);
        drop(up);
        assert!(live.close(cx).is_empty());
    });
}
