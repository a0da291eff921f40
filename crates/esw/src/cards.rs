//! Which card, and what a story needs beside it.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use card_linux::{Hold, LinuxCard, Place};
use card_memory::MemoryCard;
use eswitch::CardConfig;
use host::{Bonds, Pulse, World};
use lockdep::Domain;

use crate::bonds::KernelBonds;
use crate::programs::Here;

/// What a card is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CardKind {
    /// Books in memory: runs anywhere, no netdevs
    Memory,
    /// Real netdevs, in a namespace of their own without root
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

/// What is done with what a dead process has left of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is cleared away.
    Cleared,
    /// It becomes the card's.
    TakenOver,
}

/// Where cards are made.
pub enum Cards {
    /// Nowhere.
    Memory,
    /// Among real netdevs.
    Linux(Place),
}

impl Cards {
    /// Finds a place for cards of that kind. Call it before there is a second thread.
    ///
    /// # Errors
    /// There can be none here; says why, and what to do.
    pub fn prepare(kind: CardKind) -> Result<Self> {
        Ok(match kind {
            CardKind::Memory => Self::Memory,
            CardKind::Linux => Self::Linux(Place::prepare()?),
        })
    }

    /// Cards at a place that is prepared, or only in memory.
    pub fn of(place: Option<Place>) -> Self {
        place.map_or(Self::Memory, Self::Linux)
    }

    /// A card of a kind; one in memory can be had at any place.
    ///
    /// # Errors
    /// The system refuses.
    pub fn world_of(
        &self,
        kind: CardKind,
        config: &CardConfig,
        found: Found,
        domain: &Arc<Domain>,
        pulse: &Arc<Pulse>,
    ) -> Result<(World, Option<Hold>)> {
        match kind {
            CardKind::Memory => Self::Memory.world_with(config, found, domain, pulse),
            CardKind::Linux => self.world_with(config, found, domain, pulse),
        }
    }

    /// What they are called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Memory => CardKind::Memory.name(),
            Self::Linux(_) => CardKind::Linux.name(),
        }
    }

    /// A card that holds nothing yet, in a world of its own. The card is gone when the world is.
    ///
    /// # Errors
    /// The system refuses.
    pub fn world(&self, config: &CardConfig, domain: &Arc<Domain>, pulse: &Arc<Pulse>) -> Result<World> {
        Ok(self.world_with(config, Found::Cleared, domain, pulse)?.0)
    }

    fn world_with(
        &self,
        config: &CardConfig,
        found: Found,
        domain: &Arc<Domain>,
        pulse: &Arc<Pulse>,
    ) -> Result<(World, Option<Hold>)> {
        let mut hold = None;
        let config = config.clone();
        let mut world = match self {
            Self::Memory => World::of(MemoryCard::new(config), domain),
            Self::Linux(place) => {
                let card = match found {
                    Found::Cleared => LinuxCard::new(place, config)?,
                    Found::TakenOver => LinuxCard::taking_over(place, config)?,
                };
                hold = Some(card.hold());
                let bonds: Arc<dyn Bonds> = Arc::new(KernelBonds::of(&card)?);
                World { programs: Some(Arc::new(Here)), bonds: Some(bonds), ..World::of(card, domain) }
            }
        };
        let began = Instant::now();
        world.clock = Arc::new(move || began.elapsed());
        world.pulse = Arc::clone(pulse);
        Ok((world, hold))
    }
}
