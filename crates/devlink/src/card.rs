//! A card as the server answers for it.

use std::sync::Arc;

use control::CommandTarget;
use lockdep::{Domain, Locked, Unlocked};

use crate::carried_out::CarriedOut;
use crate::instance::LastView;
use crate::refusal::Refusal;
use crate::shared::SharedView;
use crate::view::Profile;

/// What is answered for: a card that is up, and how it presents itself.
pub struct Served {
    /// The card.
    pub card: Arc<dyn CommandTarget>,
    /// Where threads are born.
    pub domain: Arc<Domain>,
    /// What it presents itself as.
    pub profile: Profile,
    /// The number of a netdev where the card's netdevs are, if it has real ones.
    pub ifindex: Option<IfIndex>,
    /// The program that runs the card, if it wants to hear of commands.
    pub host: Option<Arc<dyn Host>>,
    /// The view that was made last.
    pub last: LastView,
    /// The view that others read.
    pub shared: SharedView,
}

impl Served {
    /// A card that is served, without a host that hears of commands and without netdevs that have numbers.
    pub fn new(card: Arc<dyn CommandTarget>, domain: Arc<Domain>, profile: Profile) -> Self {
        Self {
            card,
            domain,
            profile,
            ifindex: None,
            host: None,
            last: LastView::default(),
            shared: SharedView::default(),
        }
    }
}

/// The program that runs a card: a daemon that keeps what was agreed, and that can be asked about itself.
pub trait Host: Send + Sync {
    /// A command that may change the card has been carried out, or refused. It is answered when this returns.
    ///
    /// # Errors
    /// What to answer though it was carried out.
    fn carried_out(
        &self,
        cx: Cx<'_, '_>,
        command: &CarriedOut<'_>,
        outcome: Result<(), &Refusal>,
    ) -> Result<(), Refusal>;

    /// What there is to tell of the card and of who runs it, in JSON.
    fn status(&self, cx: Cx<'_, '_>) -> String;

    /// Asks it to end; `how` is in its own words.
    ///
    /// # Errors
    /// It does not know how to end so.
    fn end(&self, cx: Cx<'_, '_>, how: &str) -> Result<(), Refusal>;
}

/// The number of a netdev of a name.
pub type IfIndex = Box<dyn Fn(&str) -> Option<u32> + Send + Sync>;

/// The right to use the locks, with nothing held.
pub type Cx<'a, 'b> = &'a mut Locked<'b, Unlocked>;
