//! The card: its life, and the trait it is known by.

use std::fs::File;
use std::io;
use std::sync::Arc;

use eswitch::card::{Card, CardError, Create, FailedCreate, OnRename, Resource};
use eswitch::lock_order::{CardCall, CardState};
use eswitch::{CardConfig, MacAddr, PfIndex, Vport};
use lockdep::{Locked, Mutex};
use netlink::Errno;

use crate::adopt::Hold;
use crate::bond::{BondWatch, Bonds};
use crate::layout::{Inside, Slot};
use crate::netns::{CardNetns, NetnsError};
use crate::place::Place;
use crate::request::{self, Outer};
use crate::socket::{Batch, Socket};
use crate::state::{State, Wire, refused};
use crate::watch::{self, Watcher};

/// A card made of real netdevs.
///
/// Dropping it deletes all of them, and its namespace with its name.
pub struct LinuxCard {
    // Dropped in this order: nobody makes anything again while everything is deleted.
    _watcher: Watcher,
    netns: CardNetns,
    home: File,
    config: CardConfig,
    state: Arc<Mutex<CardState, State>>,
}

/// Why there is no card.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// It cannot have a namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel lacks something a card is made of.
    #[error(
        "this kernel cannot make {what} ({answer}); it needs {needs}, built in or as a module (`modprobe {module}`)"
    )]
    Missing {
        /// What was tried.
        what: &'static str,
        /// What the kernel answered.
        answer: String,
        /// The kernel's configuration.
        needs: &'static str,
        /// The module.
        module: &'static str,
    },
    /// The card's netdevs may not appear where they should.
    #[error("this may not make netdevs in the network namespace it was started in; it takes root, or a place without")]
    Home,
    /// The system refused something else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What came of it.
        source: io::Error,
    },
}

impl LinuxCard {
    /// An empty card at a place. Its namespace can be looked into with `ip -n esw-ADDRESS link`.
    ///
    /// # Errors
    /// Another process has a card of that address, the kernel lacks what a card is made of, or the
    /// system refuses; nothing is left.
    pub fn new(place: &Place, config: CardConfig) -> Result<Self, SetupError> {
        Self::over(place, config, false)
    }

    /// A card that takes over what a dead process has left of it, if there is any. It is to be brought up to be
    /// what that was, and then [said to be](Hold::taken_over); should it be dropped before it [may go](Hold::may_go),
    /// what was found stays.
    ///
    /// # Errors
    /// As [`new`](Self::new); what was found is as it was.
    pub fn taking_over(place: &Place, config: CardConfig) -> Result<Self, SetupError> {
        Self::over(place, config, true)
    }

    fn over(place: &Place, config: CardConfig, find: bool) -> Result<Self, SetupError> {
        let system = |what| move |source| SetupError::System { what, source };
        let home = place.netns().try_clone().map_err(system("keeping the namespace"))?;
        let (netns, found) = CardNetns::make_or_find(config.address, find)?;
        let open = "opening netlink sockets";
        let mut state =
            State::new(config.clone(), home.try_clone().map_err(system("keeping the namespace"))?, netns.netns())
                .map_err(system(open))?;
        let inside = watch::listen_inside(netns.netns()).map_err(system(open))?;
        let outside = watch::listen_outside(place.netns()).map_err(system(open))?;
        match found {
            // Whoever has made all this could.
            true => state.begin_taking_over().map_err(system("looking at what was left of the card"))?,
            false => probe(netns.netns(), place.netns())?,
        }
        let state = Arc::new(Mutex::new(state));
        let watcher =
            Watcher::start(Arc::clone(&state), inside, outside).map_err(system("starting the card's watcher"))?;
        Ok(Self { _watcher: watcher, netns, home, config, state })
    }

    /// A hold on the card, for who decides what becomes of it.
    pub fn hold(&self) -> Hold {
        Hold { state: Arc::clone(&self.state), stays: Arc::clone(&self.netns.stays) }
    }

    /// The network namespace the card is.
    pub fn inside(&self) -> &File {
        self.netns.netns()
    }

    /// The bonds where the card's netdevs appear, and who watches them.
    ///
    /// # Errors
    /// Netlink sockets cannot be opened.
    pub fn bonds(&self) -> Result<(Arc<Bonds>, BondWatch), SetupError> {
        let made = Bonds::new(self.config.clone(), self.inside(), &self.home);
        made.map_err(|source| SetupError::System { what: "opening netlink sockets to watch bonds with", source })
    }

    /// Puts the other end of a PF's wire somewhere, at any time; it starts out nowhere.
    ///
    /// # Errors
    /// The name is taken, or the kernel refuses: then the wire leads nowhere.
    pub fn set_wire<L>(&self, cx: &mut Locked<'_, L>, pf: PfIndex, wire: Wire) -> Result<(), CardError> {
        let mut state = self.state.lock_leaf(cx);
        state.wires.insert(pf, wire);
        let slot = Slot { pf, vport: Vport::Uplink };
        if !state.ends(slot).port {
            return Ok(());
        }
        let made = state.make_wire_again(slot);
        if made.is_err() {
            state.wires.insert(pf, Wire::Nowhere);
            // If even that fails there is no wire: what is sent on it is lost, as it would be.
            let _ = state.make_wire_again(slot);
        }
        made
    }

    /// Deletes the card, as dropping it does.
    pub fn close(self) {}
}

impl State {
    /// Makes a PF's wire anew, in the place the old one had.
    pub(crate) fn make_wire_again(&mut self, slot: Slot) -> Result<(), CardError> {
        let ends = self.ends(slot);
        self.delete([slot.port()], None);
        if ends.tied {
            self.untie(&[slot], Slot::inner);
        }
        let mut batch = Batch::default();
        self.push_wire(&mut batch, slot);
        request::ingress(&mut batch, slot.port());
        request::join_bridge(&mut batch, slot.port(), Inside::Bridge(slot.pf, 0).index());
        if ends.tied {
            request::tie(&mut batch, slot.port(), slot.inner());
            request::tie(&mut batch, slot.inner(), slot.port());
        }
        let name = match self.wires.get(&slot.pf) {
            Some(Wire::Netdev(name)) => Some(eswitch::names::NetdevName { name: name.clone(), altname: None }),
            _ => None,
        };
        match self.card.run(batch).into_iter().next() {
            None => Ok(()),
            Some(failure) => Err(refused(&format!("making the wire of pf{}", slot.pf.0), &failure, name.as_ref())),
        }
    }
}

/// Makes one of everything inside the card, and deletes it again.
fn probe(card: &File, home: &File) -> Result<(), SetupError> {
    let open =
        |netns| Socket::open(netns).map_err(|source| SetupError::System { what: "opening a netlink socket", source });
    let mut socket = open(card)?;
    let [bridge, near, far] = [0, 1, 2].map(Inside::Probe);
    let outer = Outer { name: &far.name(), mac: None, mtu: request::OUTER_MTU, place: Err(far.index()) };
    type Step<'a> = (&'static str, &'static str, &'static str, &'a dyn Fn(&mut Batch));
    let steps: [Step<'_>; 4] = [
        ("a bridge", "CONFIG_BRIDGE", "bridge", &|batch| {
            request::bridge(batch, bridge.index(), &bridge.name(), false);
        }),
        ("a veth pair", "CONFIG_VETH", "veth", &|batch| {
            request::pair(batch, near.index(), &near.name(), 0, &outer);
        }),
        ("an ingress qdisc", "CONFIG_NET_SCH_INGRESS", "sch_ingress", &|batch| {
            request::ingress(batch, near.index());
        }),
        (
            "a u32 filter that redirects",
            "CONFIG_NET_CLS_U32, CONFIG_NET_CLS_ACT and CONFIG_NET_ACT_MIRRED",
            "-a cls_u32 act_mirred",
            &|batch| request::tie(batch, near.index(), far.index()),
        ),
    ];
    for (what, needs, module, build) in steps {
        socket.run_one(build).map_err(|failure| SetupError::Missing {
            what,
            answer: io::Error::from(failure.errno).to_string(),
            needs,
            module,
        })?;
    }
    let mut batch = Batch::default();
    request::doom(&mut batch, bridge.index());
    request::doom(&mut batch, near.index());
    request::delete_group(&mut batch, crate::layout::DOOMED);
    socket.run(batch);
    // Whether one may is answered before whether there is such a netdev.
    match open(home)?.run_one(|batch| request::set_up(batch, i32::MAX as u32, true)) {
        Err(failure) if failure.errno == Errno::PERM => Err(SetupError::Home),
        _ => Ok(()),
    }
}

impl Card for LinuxCard {
    fn create(&self, cx: &mut Locked<'_, CardCall>, batch: &[Create]) -> Vec<FailedCreate> {
        cx.might_wait();
        self.state.lock_leaf(cx).create(batch)
    }

    fn destroy(&self, cx: &mut Locked<'_, CardCall>, batch: &[Resource]) {
        cx.might_wait();
        self.state.lock_leaf(cx).destroy(batch);
    }

    fn name(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource) -> Option<String> {
        self.state.lock_leaf(cx).name(resource)
    }

    fn renamed(&self, cx: &mut Locked<'_, CardCall>) -> Vec<(Resource, String)> {
        self.state.lock_leaf(cx).renamed()
    }

    fn on_rename(&self, cx: &mut Locked<'_, CardCall>, told: OnRename) {
        self.state.lock_leaf(cx).on_rename = Some(told);
    }

    fn set_mac(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource, mac: MacAddr) -> Result<(), CardError> {
        cx.might_wait();
        self.state.lock_leaf(cx).set_mac(resource, mac)
    }

    fn set_netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, netns: Option<&str>) -> Result<(), CardError> {
        cx.might_wait();
        self.state.lock_leaf(cx).set_netns(pf, netns)
    }

    fn netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<String> {
        cx.might_wait();
        self.state.lock_leaf(cx).netns(pf)
    }

    fn resources(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Resource> {
        cx.might_wait();
        self.state.lock_leaf(cx).resources()
    }

    fn take_complaints(&self, cx: &mut Locked<'_, CardCall>) -> Vec<String> {
        std::mem::take(&mut self.state.lock_leaf(cx).complaints)
    }
}
