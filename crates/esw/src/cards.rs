//! Makes cards, with what they need of the outside.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use card_linux::{Hold, LinuxCard, Place};
use card_memory::MemoryCard;
use eswitch::CardConfig;
use host::{Bonds, Neighbours, Pulse, World};
use lockdep::Domain;

use crate::bonds::KernelBonds;
use crate::daemon::folders::node;
use crate::neighbours::KernelNeighbours;
use crate::programs::Here;

/// The kinds of card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CardKind {
    /// A card in memory, without netdevs: runs anywhere
    Memory,
    /// A card of real netdevs; without root, in a namespace of its own
    Linux,
}

impl CardKind {
    /// The name of the kind, as it is given on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Linux => "linux",
        }
    }
}

/// What to do with netdevs that a dead process has left of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// They are removed.
    Removed,
    /// They become the card's.
    TakenOver,
}

/// The place where cards are made.
pub enum Cards {
    /// Cards are made in memory.
    Memory,
    /// Cards are made of netdevs, in these namespaces.
    Linux(Place),
}

impl Cards {
    /// Prepares a place for cards of a kind. It must be called while the process has one thread.
    ///
    /// # Errors
    /// There can be no place here; the error has the reason, and what to do.
    pub fn prepare(kind: CardKind) -> Result<Self> {
        Ok(match kind {
            CardKind::Memory => Self::Memory,
            CardKind::Linux => Self::Linux(Place::prepare()?.on_node(node())),
        })
    }

    /// Cards in a prepared place; without one, only cards in memory can be made.
    pub fn of(place: Option<Place>) -> Self {
        place.map_or(Self::Memory, Self::Linux)
    }

    /// Makes a card of a kind, in a world of its own; one in memory can be made in any place.
    ///
    /// # Errors
    /// The system refuses.
    pub fn world_of(
        &self,
        kind: CardKind,
        config: &CardConfig,
        leftovers: Leftovers,
        domain: &Arc<Domain>,
        pulse: &Arc<Pulse>,
    ) -> Result<(World, Option<Hold>)> {
        match kind {
            CardKind::Memory => Self::Memory.world_with(config, leftovers, domain, pulse),
            CardKind::Linux => self.world_with(config, leftovers, domain, pulse),
        }
    }

    /// The name of the kind of card.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Memory => CardKind::Memory.name(),
            Self::Linux(_) => CardKind::Linux.name(),
        }
    }

    /// Why cards of this kind offload no flows here, if that is so.
    pub fn cannot_offload(&self) -> Option<String> {
        match self {
            Self::Memory => None,
            Self::Linux(_) => card_linux::cannot_offload(),
        }
    }

    /// Makes a card without resources, in a world of its own. The card is removed when the world is dropped.
    ///
    /// # Errors
    /// The system refuses.
    pub fn world(&self, config: &CardConfig, domain: &Arc<Domain>, pulse: &Arc<Pulse>) -> Result<World> {
        Ok(self.world_with(config, Leftovers::Removed, domain, pulse)?.0)
    }

    fn world_with(
        &self,
        config: &CardConfig,
        leftovers: Leftovers,
        domain: &Arc<Domain>,
        pulse: &Arc<Pulse>,
    ) -> Result<(World, Option<Hold>)> {
        let mut hold = None;
        let config = config.clone();
        let mut world = match self {
            Self::Memory => World::of(MemoryCard::new(config), domain),
            Self::Linux(place) => {
                let card = match leftovers {
                    Leftovers::Removed => LinuxCard::new(place, config, domain)?,
                    Leftovers::TakenOver => LinuxCard::taking_over(place, config, domain)?,
                };
                hold = Some(card.hold());
                let bonds: Arc<dyn Bonds> = Arc::new(KernelBonds::of(&card)?);
                let neighbours: Arc<dyn Neighbours> = Arc::new(KernelNeighbours::of(&card)?);
                World {
                    programs: Some(Arc::new(Here)),
                    bonds: Some(bonds),
                    neighbours: Some(neighbours),
                    ..World::of(card, domain)
                }
            }
        };
        let began = Instant::now();
        world.clock = Arc::new(move || began.elapsed());
        world.pulse = Arc::clone(pulse);
        Ok((world, hold))
    }
}
