//! The card: how it is made and dropped, and how it implements the engine's trait.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use eswitch::card::{Acl, Card, CardError, Counters, Create, FailedCreate, MovedInstance, OnNetdevChange, Resource};
use eswitch::datapath::Datapath;
use eswitch::lock_order::CardCall;
use eswitch::rate::TxRates;
use eswitch::{CardConfig, MacAddr, PfIndex, Vport};
use lockdep::{Domain, Locked};
use netlink::{Errno, errno_of};

use crate::adopt::Hold;
use crate::bond::{BondWatch, Bonds};
use crate::books::{Books, slot_of};
use crate::layout::{Inside, Slot};
use crate::neighbours::{NeighbourWatch, Neighbours};
use crate::netns::{CardNetns, NetnsError};
use crate::operation::{Part, Shared, Sockets};
use crate::place::Place;
use crate::plane::Plane;
use crate::request::{self, Outer};
use crate::socket::{Batch, Failure, Socket};
use crate::ties::Ties;
use crate::watch::{self, Sources, Watcher};
use crate::wires::Wire;
use crate::{create, destroy};

/// A card made of real netdevs.
///
/// Dropping it deletes all of them, and its namespace with its name.
pub struct LinuxCard {
    // Dropped in this order: the watcher must not make anything again while everything is deleted.
    _watcher: Watcher,
    netns: CardNetns,
    config: CardConfig,
    pub(crate) shared: Arc<Shared>,
}

/// Why a card cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Its namespace cannot be made.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel lacks something that a card needs.
    #[error(
        "this kernel cannot make {what} ({answer}); it needs {needs}, built in or as a module (`modprobe {module}`)"
    )]
    Missing {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        answer: String,
        /// The options of the kernel's configuration that it needs.
        needs: &'static str,
        /// The module that has it.
        module: &'static str,
    },
    /// This process may not make netdevs where they are to appear.
    #[error("this may not make netdevs in the network namespace it was started in; it takes root, or a place without")]
    Home,
    /// The system refused something else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl LinuxCard {
    /// An empty card at a place. Its namespace can be looked into with `ip -n esw-ADDRESS link`. `domain`: the lockdep
    /// domain of those who use the card, which its own thread joins.
    ///
    /// # Errors
    /// Another process has a card of that address, the kernel lacks what a card is made of, or the
    /// system refuses; nothing is left.
    pub fn new(place: &Place, config: CardConfig, domain: &Arc<Domain>) -> Result<Self, SetupError> {
        Self::over(place, config, domain, false)
    }

    /// A card that takes over what a dead process has left of it, if it has left anything. The caller brings the card
    /// up as that process had it, and then [ends the takeover](Hold::taken_over); should the card be dropped before it
    /// [may go](Hold::may_go), what was found stays.
    ///
    /// # Errors
    /// As [`new`](Self::new); what was found is as it was.
    pub fn taking_over(place: &Place, config: CardConfig, domain: &Arc<Domain>) -> Result<Self, SetupError> {
        Self::over(place, config, domain, true)
    }

    fn over(place: &Place, config: CardConfig, domain: &Arc<Domain>, find: bool) -> Result<Self, SetupError> {
        let system = |what| move |source| SetupError::System { what, source };
        let home = || place.netns().try_clone().map_err(system("keeping the namespace"));
        let mut books = Books::new(config.clone(), home()?);
        let (netns, found) = CardNetns::make_or_find(place.node(), config.address, find)?;
        let open = "opening netlink sockets";
        let inside = netns.netns().try_clone().map_err(system(open))?;
        let mut sockets = Sockets::open(&inside, &books.home).map_err(system(open))?;
        let (released, wake) = io::pipe().map_err(system("opening a pipe"))?;
        let sources = Sources {
            inside: watch::listen_inside(&inside).map_err(system(open))?,
            outside: watch::listen_outside(&books.home).map_err(system(open))?,
            elsewhere: match watch::listen_elsewhere(&inside, &books.home) {
                // Then netdevs that are elsewhere are looked at when they arrive there, and not again.
                Err(error) if errno_of(&error) == Errno::PERM => None,
                made => Some(made.map_err(system(open))?),
            },
            released,
        };
        match found {
            // The process that made all this was able to.
            true => {
                let begun = books.begin_taking_over(&mut sockets, &inside);
                begun.map_err(system("looking at what was left of the card"))?;
            }
            false => books.ties = probe(&mut sockets)?,
        }
        let plane_netns = inside.try_clone().map_err(system(open))?;
        let left = books.inventory.as_ref().map(|inventory| inventory.may_have_program());
        let plane = Plane::new(plane_netns, left.as_deref()).map_err(system(open))?;
        let shared = Arc::new(Shared::new(home()?, inside, plane, books, sockets, wake));
        let watcher = Watcher::start(Arc::clone(&shared), domain, sources);
        let watcher = watcher.map_err(system("starting the card's watcher"))?;
        Ok(Self { _watcher: watcher, netns, config, shared })
    }

    /// A hold on the card, for the caller that decides what becomes of it.
    pub fn hold(&self) -> Hold {
        Hold { card: Arc::clone(&self.shared), stays: Arc::clone(&self.netns.stays) }
    }

    /// The network namespace that the card is.
    pub fn inside(&self) -> &File {
        self.netns.netns()
    }

    /// The bonds where the card's netdevs appear, and a watch on them.
    ///
    /// # Errors
    /// Netlink sockets cannot be opened.
    pub fn bonds(&self) -> Result<(Arc<Bonds>, BondWatch), SetupError> {
        let made = Bonds::new(self.config.clone(), self.inside(), &self.shared.home);
        made.map_err(|source| SetupError::System { what: "opening netlink sockets to watch bonds with", source })
    }

    /// The kernel's neighbours where the card's netdevs appear, and a watch on them.
    ///
    /// # Errors
    /// Netlink sockets cannot be opened.
    pub fn neighbours(&self) -> Result<(Arc<Neighbours>, NeighbourWatch), SetupError> {
        let made = Neighbours::new(self.config.pfs, self.inside(), &self.shared.home);
        made.map_err(|source| SetupError::System { what: "opening netlink sockets to watch neighbours with", source })
    }

    /// Sets where the other end of a PF's wire is, at any time. At first it is nowhere.
    ///
    /// # Errors
    /// The name is taken, there is no such network namespace, or the kernel refuses: then the wire leads nowhere.
    pub fn set_wire<L>(&self, cx: &mut Locked<'_, L>, pf: PfIndex, wire: &Wire) -> Result<(), CardError> {
        self.shared.begin_on(cx, Slot { pf, vport: Vport::Uplink }).set_wire(pf, wire)
    }

    /// Deletes the card, as dropping it does.
    pub fn close(self) {}
}

/// Finds out whether the kernel has all that a card needs: makes one of everything inside the card, and deletes it
/// again.
fn probe(Sockets { inside, outside }: &mut Sockets) -> Result<Ties, SetupError> {
    let [bridge, near, far] = [0, 1, 2].map(Inside::Probe);
    let outer = Outer {
        name: &far.name(),
        mac: None,
        mtu: request::OUTER_MTU,
        place: Err(far.index()),
        before: None,
        queues: 1,
        tx_queue_len: None,
    };
    type Step<'a> = (&'static str, &'static str, &'static str, &'a dyn Fn(&mut Batch));
    let steps: [Step<'_>; 3] = [
        ("a bridge", "CONFIG_BRIDGE", "bridge", &|batch| {
            request::bridge(batch, bridge.index(), &bridge.name(), false);
        }),
        ("a veth pair", "CONFIG_VETH", "veth", &|batch| {
            request::pair(batch, near.index(), &near.name(), 0, request::CARD_MTU, &outer);
        }),
        ("an ingress qdisc", "CONFIG_NET_SCH_INGRESS", "sch_ingress", &|batch| {
            request::ingress(batch, near.index());
        }),
    ];
    let by_action: Step<'_> = (
        "a u32 filter that redirects",
        "CONFIG_NET_CLS_U32, CONFIG_NET_CLS_ACT and CONFIG_NET_ACT_MIRRED",
        "-a cls_u32 act_mirred",
        &|batch| request::tie(batch, near.index(), far.index()),
    );
    let run = |inside: &mut Socket, (what, needs, module, build): Step<'_>| {
        let missing = |failure: Failure| SetupError::Missing {
            what,
            answer: io::Error::from(failure.errno).to_string(),
            needs,
            module,
        };
        inside.run_one(build).map_err(missing)
    };
    steps.into_iter().try_for_each(|step| run(inside, step))?;
    let ties = Ties::new(inside, near.index());
    if !ties.has_program() {
        run(inside, by_action)?;
    }
    let mut batch = Batch::default();
    request::doom(&mut batch, bridge.index());
    request::doom(&mut batch, near.index());
    request::delete_group(&mut batch, crate::layout::DOOMED);
    inside.run(batch);
    // The kernel checks the permission before it looks for the netdev.
    match outside.run_one(|batch| request::set_up(batch, i32::MAX as u32, true)) {
        Err(failure) if failure.errno == Errno::PERM => Err(SetupError::Home),
        _ => Ok(ties),
    }
}

impl Card for LinuxCard {
    fn create(&self, cx: &mut Locked<'_, CardCall>, batch: &[Create]) -> Vec<FailedCreate> {
        cx.might_wait();
        self.shared.begin(cx, |books| create::parts(books, batch)).create(batch)
    }

    fn destroy(&self, cx: &mut Locked<'_, CardCall>, batch: &[Resource]) {
        cx.might_wait();
        let mut operation = self.shared.begin(cx, |books| destroy::parts(books, batch));
        let mut books = operation.books();
        books.returning.retain(|resource| !batch.contains(resource));
        books.forget_instances(batch);
        drop(books);
        operation.destroy(batch);
    }

    fn name(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource) -> Option<String> {
        self.shared.books.lock_leaf(cx).name(resource)
    }

    fn datapath(&self) -> Option<&dyn Datapath> {
        Some(&self.shared.plane)
    }

    fn renamed(&self, cx: &mut Locked<'_, CardCall>) -> Vec<(Resource, String)> {
        self.shared.books.lock_leaf(cx).renamed()
    }

    fn elsewhere(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Resource> {
        self.shared.books.lock_leaf(cx).elsewhere()
    }

    fn moved_instances(&self, cx: &mut Locked<'_, CardCall>) -> Vec<MovedInstance> {
        self.shared.books.lock_leaf(cx).moved_instances()
    }

    fn on_netdev_change(&self, cx: &mut Locked<'_, CardCall>, callback: OnNetdevChange) {
        self.shared.books.lock_leaf(cx).on_netdev_change = Some(callback);
    }

    fn set_mac(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource, mac: MacAddr) -> Result<(), CardError> {
        cx.might_wait();
        self.shared.begin_on(cx, slot_of(resource)).set_mac(resource, mac)
    }

    fn set_fdb_active(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, active: bool) -> Result<(), CardError> {
        cx.might_wait();
        self.shared.plane.set_active(cx, pf, active);
        let slots_of =
            |books: &mut Books| books.ends.keys().filter(|slot| slot.pf == pf).map(|s| Part::Vport(*s)).collect();
        self.shared.begin(cx, slots_of).set_fdb_active(pf, active);
        Ok(())
    }

    fn set_link(&self, cx: &mut Locked<'_, CardCall>, port: &Resource, up: bool) -> Result<(), CardError> {
        cx.might_wait();
        self.shared.begin_on(cx, slot_of(port)).set_link(port, up)
    }

    fn set_acl(&self, cx: &mut Locked<'_, CardCall>, port: &Resource, acl: Acl) -> Result<(), CardError> {
        cx.might_wait();
        self.shared.begin_on(cx, slot_of(port)).set_acl(port, acl)
    }

    fn set_rates(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, rates: &TxRates) -> Result<(), CardError> {
        cx.might_wait();
        self.shared.begin(cx, |books| books.parts_of_rates(pf, rates)).set_rates(pf, rates)
    }

    fn set_netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, netns: Option<&str>) -> Result<(), CardError> {
        cx.might_wait();
        self.shared.begin_on(cx, Slot { pf, vport: Vport::Uplink }).set_netns(pf, netns)
    }

    fn netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<String> {
        cx.might_wait();
        self.shared.begin_query(cx).netns(pf)
    }

    fn counters(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> BTreeMap<Vport, Counters> {
        cx.might_wait();
        self.shared.begin_query(cx).counters(pf)
    }

    fn resources(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Resource> {
        cx.might_wait();
        self.shared.begin_query(cx).resources()
    }

    fn take_complaints(&self, cx: &mut Locked<'_, CardCall>) -> Vec<String> {
        std::mem::take(&mut self.shared.books.lock_leaf(cx).complaints)
    }
}
