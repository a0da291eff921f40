//! A card in memory that the devlink server can serve.

use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use card_memory::MemoryCard;
use control::CommandTarget;
use devlink::Served;
use devlink::view::Profile;
use eswitch::CardConfig;
use host::{LiveCard, World};
use lockdep::{Domain, Locked, Unlocked, enter};

/// Runs `work` with a card that has one PF and 8 VFs, and takes the card down.
///
/// # Errors
/// The card does not come up, `work` fails, or the take-down leaves resources on the card.
pub fn with_served<T>(work: impl FnOnce(&Arc<Served>, &mut Locked<'_, Unlocked>) -> Result<T>) -> Result<T> {
    let domain = Domain::unchecked();
    enter(&domain, "main", |cx| {
        let config = CardConfig { vfs: 8, ..CardConfig::default() };
        let world = World::of(MemoryCard::new(config.clone()), &domain);
        let live = LiveCard::start(cx, config, world, None).map_err(|error| anyhow!("{error}"))?;
        let live = Arc::new(live);
        let target = Arc::clone(&live) as Arc<dyn CommandTarget>;
        let served = Arc::new(Served::new(target, Arc::clone(&domain), Profile::mlx5()));
        let done = work(&served, cx);
        ensure!(live.close(cx).is_empty(), "resources are left on the card");
        done
    })
}
