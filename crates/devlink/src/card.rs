//! A card that is served on a control socket.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use control::CommandTarget;
use eswitch::card::Resource;
use eswitch::{PfIndex, Touched, Vport};
use lockdep::{Domain, Locked, Unlocked};

use crate::carried_out::CarriedOut;
use crate::last_view::LastView;
use crate::refusal::Refusal;
use crate::settings::Settings;
use crate::shared::SharedView;
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
        }
    }

    /// The view of the card as it is now.
    pub fn view(&self, cx: Cx<'_, '_>) -> Arc<view::Card> {
        self.last.get(cx, self.card.engine(), self.appearance())
    }

    fn appearance(&self) -> Appearance<'_> {
        Appearance { profile: &self.profile, netdevs: self.netdevs.as_deref() }
    }

    /// Updates the view in shared memory: see [`SharedView::publish`].
    pub(crate) fn publish(&self, cx: Cx<'_, '_>, touched: Touched) -> bool {
        self.shared.publish(cx, self.card.engine(), self.appearance(), touched)
    }

    /// Returns a descriptor of the view in shared memory: see [`SharedView::file`].
    pub(crate) fn share_view(&self, cx: Cx<'_, '_>) -> io::Result<OwnedFd> {
        self.shared.file(cx, self.card.engine(), self.appearance())
    }
}

/// The program that runs a card: a daemon that keeps what was agreed, and that answers requests about itself.
pub trait Host: Send + Sync {
    /// Is called when a command that may change the card has been carried out or refused. The command is answered when
    /// this returns.
    ///
    /// # Errors
    /// The error to answer the command with although it was carried out.
    fn carried_out(
        &self,
        cx: Cx<'_, '_>,
        command: &CarriedOut<'_>,
        outcome: Result<(), &Refusal>,
    ) -> Result<(), Refusal>;

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

    /// A socket that becomes readable whenever a network namespace may have died in which an instance is.
    ///
    /// # Errors
    /// The kernel gives no socket.
    fn deaths(&self) -> io::Result<OwnedFd>;
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
