//! A card that is served on a control socket.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use control::CommandTarget;
use eswitch::card::Resource;
use eswitch::{PfIndex, Touched, Vport};
use lockdep::{Domain, Locked, Unlocked};
use netlink::{Errno, errno_of};
use serde::{Deserialize, Serialize};

use crate::carried_out::CarriedOut;
use crate::kept::Kept;
use crate::last_view::LastView;
use crate::rdma_core::{RdmaChange, RdmaCore};
use crate::refusal::Refusal;
use crate::sampling::Sampling;
use crate::settings::Settings;
use crate::shared::SharedView;
use crate::tc_filters::TcFilters;
use crate::view::{self, Appearance, Profile};

/// A card that is up, and what is needed to answer requests about it.
pub struct Served {
    /// The card.
    pub card: Arc<dyn CommandTarget>,
    /// The domain of the server's threads.
    pub domain: Arc<Domain>,
    /// The identity that the card shows.
    pub profile: Profile,
    /// The card's netdevs as the kernel has them; `None` for a card without netdevs.
    pub netdevs: Option<Arc<dyn KernelNetdevs>>,
    /// The program that runs the card, if it wants to be notified of commands.
    pub host: Option<Arc<dyn Host>>,
    /// The view that was made last.
    pub last: LastView,
    /// The view in memory that other processes read.
    pub shared: SharedView,
    /// The settings of traps and health reporters.
    pub settings: Settings,
    /// The filters of the card's netdevs.
    pub tc: TcFilters,
    /// What is known of samples.
    pub sampling: Sampling,
}

impl Served {
    /// A card without a host, and without netdevs of the kernel.
    pub fn new(card: Arc<dyn CommandTarget>, domain: Arc<Domain>, profile: Profile) -> Self {
        Self {
            card,
            domain,
            profile,
            netdevs: None,
            host: None,
            last: LastView::default(),
            shared: SharedView::default(),
            settings: Settings::default(),
            tc: TcFilters::default(),
            sampling: Sampling::default(),
        }
    }

    /// What this server knows of the card and the card does not, to be stored. It does not wait for a command.
    pub fn kept(&self, cx: Cx<'_, '_>) -> Kept {
        let rdma = self.shared.rdma(cx);
        let network = if rdma.abroad().is_empty() { None } else { self.own_cookie() };
        Kept { settings: self.settings.all(cx), rdma, network }
    }

    fn own_cookie(&self) -> Option<u64> {
        self.netdevs.as_ref()?.cookie().ok()
    }

    /// Takes over what an earlier server of the card knew, before this one is started.
    pub fn restore(&self, cx: Cx<'_, '_>, mut kept: Kept) {
        if kept.network.is_none() || kept.network != self.own_cookie() {
            // The card was taken down meanwhile, and what was abroad came home with it.
            kept.rdma.bring_all_home();
        }
        self.settings.restore(cx, kept.settings);
        self.shared.restore_rdma(cx, kept.rdma);
    }

    /// Takes over the filters of the card's netdevs that an earlier server had, once the flow rules are there that carry
    /// them out.
    pub fn restore_filters(&self, cx: Cx<'_, '_>, filters: Vec<tc::Stored>) {
        self.tc.restore(cx, self.card.engine(), filters);
    }

    /// The view of the card as it is now.
    pub fn view(&self, cx: Cx<'_, '_>) -> Arc<view::Card> {
        let view = self.last.get(cx, self.card.engine(), self.appearance());
        self.shared.with_rdma(cx, view)
    }

    fn appearance(&self) -> Appearance<'_> {
        Appearance { profile: &self.profile, netdevs: self.netdevs.as_deref() }
    }

    /// Updates the view in shared memory: see [`SharedView::publish`].
    pub(crate) fn publish(&self, cx: Cx<'_, '_>, touched: Touched) -> bool {
        self.shared.publish(cx, self.card.engine(), self.appearance(), touched)
    }

    /// Changes what the RDMA core knows of the card's devices, and publishes it. `network`: where a device is to be moved.
    ///
    /// # Errors
    /// As for [`RdmaCore::change`](crate::rdma_core::RdmaCore::change). EOPNOTSUPP: a device is to be moved, and the card has
    /// no netdevs. Or the network namespace cannot be used.
    pub(crate) fn change_rdma(
        &self,
        cx: Cx<'_, '_>,
        change: &RdmaChange,
        network: Option<&OwnedFd>,
    ) -> Result<(), Refusal> {
        let network = match (change, network, &self.netdevs) {
            (RdmaChange::Move { .. }, Some(network), Some(netdevs)) => {
                netdevs.identify(cx, network).map_err(|error| Refusal::bare(errno_of(&error)))?
            }
            (RdmaChange::Move { .. }, _, None) => return Err(Refusal::bare(Errno::OPNOTSUPP)),
            (RdmaChange::Move { .. }, None, _) => return Err(Refusal::bare(Errno::INVAL)),
            _ => None,
        };
        self.shared
            .change_rdma(cx, self.card.engine(), self.appearance(), |core, card| core.change(card, change, network))
    }

    /// Brings RDMA devices home whose network namespace has died.
    pub(crate) fn bring_rdma_home(&self, cx: Cx<'_, '_>) {
        let (abroad, Some(netdevs)) = (self.shared.rdma_abroad(cx), &self.netdevs) else { return };
        let died: Vec<_> = abroad.into_iter().filter(|network| netdevs.has_died(cx, *network)).collect();
        if !died.is_empty() {
            let home = |core: &mut RdmaCore, _: &view::Card| {
                core.bring_home(&died);
                Ok(())
            };
            // It fails in no way but that nothing has been published yet, and then nothing is abroad.
            let _ = self.shared.change_rdma(cx, self.card.engine(), self.appearance(), home);
        }
    }

    /// Returns a descriptor of the view in shared memory: see [`SharedView::file`].
    pub(crate) fn share_view(&self, cx: Cx<'_, '_>) -> io::Result<OwnedFd> {
        self.shared.file(cx, self.card.engine(), self.appearance())
    }
}

/// The program that runs a card: a daemon that keeps what was agreed, and that answers requests about itself.
pub trait Host: Send + Sync {
    /// Is called when a command that may change the card has been carried out or refused. The command is answered when
    /// this returns. `served`: the card, of which what is [kept](Served::kept) is to be stored.
    ///
    /// # Errors
    /// The error to answer the command with although it was carried out.
    fn carried_out(
        &self,
        cx: Cx<'_, '_>,
        served: &Served,
        command: &CarriedOut<'_>,
        outcome: Result<(), &Refusal>,
    ) -> Result<(), Refusal>;

    /// Is called with each change to the filters of the card's netdevs, in their order, to be stored.
    ///
    /// It is called under their lock, so it must not wait or take locks: it queues what it is given.
    fn filter_changed(&self, record: tc::Record);

    /// Is called before a request that may have changed filters is answered: what was queued is to be stored now.
    fn filters_answered(&self, cx: Cx<'_, '_>);

    /// The status of the card and of this program, as JSON.
    fn status(&self, cx: Cx<'_, '_>) -> String;

    /// Asks this program to end. `how` is one of its own words.
    ///
    /// # Errors
    /// It does not know that word.
    fn end(&self, cx: Cx<'_, '_>, how: &str) -> Result<(), Refusal>;
}

/// The netdevs of a card as the kernel has them. Each is one end of a veth pair, whose other end, its *peer*, is in a
/// network namespace that only the card has.
pub trait KernelNetdevs: Send + Sync {
    /// The interface index of the netdev with a name, where the card's netdevs appear.
    fn index(&self, name: &str) -> Option<u32>;

    /// The interface index of a netdev's peer, in the card's network namespace. `None`: the resource is no netdev, or one
    /// without a peer.
    fn peer(&self, netdev: &Resource) -> Option<u32>;

    /// A descriptor of the card's network namespace.
    ///
    /// # Errors
    /// The process has no descriptors left.
    fn network(&self) -> io::Result<OwnedFd>;

    /// A socket in the network namespace in which the card's netdevs appear.
    ///
    /// # Errors
    /// The process has no descriptors left.
    fn home(&self) -> io::Result<OwnedFd>;

    /// Notes that the devlink instance of a function is about to be reloaded. Its netdevs are made at the destination from
    /// now on. `vport`: the function's; the uplink for a PF itself.
    ///
    /// # Errors
    /// EINVAL: the destination is no network namespace. Or the system refuses. Nothing has changed then.
    fn begin_reload(&self, cx: Cx<'_, '_>, pf: PfIndex, vport: Vport, to: Destination<'_>) -> io::Result<()>;

    /// Notes that the reload has ended. If it has not `succeeded`, the instance is in the namespace in which it was
    /// before.
    fn end_reload(&self, cx: Cx<'_, '_>, pf: PfIndex, vport: Vport, succeeded: bool);

    /// The functions whose devlink instances are in a network namespace that has died.
    fn homeless(&self, cx: Cx<'_, '_>) -> Vec<(PfIndex, Vport)>;

    /// Identifies a network namespace to which something of the card is moved, so that its death can be noticed. `None`: it
    /// is the one in which the card's netdevs appear.
    ///
    /// # Errors
    /// EINVAL: it is no network namespace. Or the system refuses.
    fn identify(&self, cx: Cx<'_, '_>, network: &OwnedFd) -> io::Result<Option<NetworkRef>>;

    /// Whether a network namespace has died since it was [identified](Self::identify).
    fn has_died(&self, cx: Cx<'_, '_>, network: NetworkRef) -> bool;

    /// The number that the kernel gives to the card's own network namespace and to no other (SO_NETNS_COOKIE). Only in that
    /// namespace an [id](NetworkRef::id) means something.
    ///
    /// # Errors
    /// The process has no descriptors left.
    fn cookie(&self) -> io::Result<u64>;

    /// A socket that becomes readable whenever a network namespace may have died in which an instance is, or which was
    /// identified.
    ///
    /// # Errors
    /// The kernel gives no socket.
    fn deaths(&self) -> io::Result<OwnedFd>;
}

/// A network namespace, of which no descriptor is kept: it must be able to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRef {
    /// The number that the kernel gives to no other (SO_NETNS_COOKIE).
    pub cookie: u64,
    /// The id by which the card's own network namespace knows it. The kernel gives it to another one when it has died.
    pub id: i32,
}

/// Where a reload takes a devlink instance.
#[derive(Clone, Copy, Debug)]
pub enum Destination<'a> {
    /// It stays in its network namespace.
    Same,
    /// To the one in which the card's netdevs appear.
    Home,
    /// To another network namespace.
    Namespace(&'a OwnedFd),
}

/// The token of a thread that holds no lock.
pub type Cx<'a, 'b> = &'a mut Locked<'b, Unlocked>;
