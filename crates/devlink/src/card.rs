//! A card as the server answers for it.

use std::sync::Arc;

use lockdep::{Domain, Locked, Unlocked};
use scenario::Session;

use crate::view::Profile;

/// What is answered for: a card that is up, and how it presents itself.
pub struct Served {
    /// The card.
    pub session: Arc<Session>,
    /// Where threads are born.
    pub domain: Arc<Domain>,
    /// What it presents itself as.
    pub profile: Profile,
    /// The number of a netdev where the card's netdevs are, if it has real ones.
    pub ifindex: Option<IfIndex>,
}

/// The number of a netdev of a name.
pub type IfIndex = Box<dyn Fn(&str) -> Option<u32> + Send + Sync>;

/// The right to use the locks, with nothing held.
pub type Cx<'a, 'b> = &'a mut Locked<'b, Unlocked>;
