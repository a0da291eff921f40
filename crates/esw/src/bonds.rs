//! The kernel's bonds, for a live card.

use std::sync::Arc;

use card_linux::{LinuxCard, SetupError};
use eswitch::card::CardError;
use eswitch::lag::{Bond, BondPlan};
use host::{BondWatch, Bonds};
use lockdep::{Locked, Mutex, Unlocked};

use crate::lock_order::BondWatchClass;

/// The bonds in the network namespace in which a card's netdevs appear.
pub struct KernelBonds {
    bonds: Arc<card_linux::Bonds>,
    /// The watcher, until it is taken.
    watch: Mutex<BondWatchClass, Option<card_linux::BondWatch>>,
}

impl KernelBonds {
    /// The bonds of a card.
    ///
    /// # Errors
    /// The system gives no sockets.
    pub fn of(card: &LinuxCard) -> Result<Self, SetupError> {
        let (bonds, watch) = card.bonds()?;
        Ok(Self { bonds, watch: Mutex::new(Some(watch)) })
    }
}

impl Bonds for KernelBonds {
    fn watch(&self, cx: &mut Locked<'_, Unlocked>) -> Option<Box<dyn BondWatch>> {
        let watch = self.watch.lock_leaf(cx).take();
        watch.map(|watch| Box::new(Watch(watch)) as Box<dyn BondWatch>)
    }

    fn wake(&self) {
        self.bonds.wake();
    }

    fn missing(&self, cx: &mut Locked<'_, Unlocked>) -> Option<String> {
        let answer = self.bonds.missing(cx)?;
        Some(format!("this kernel has no bonds ({answer}; it needs CONFIG_BONDING, `modprobe bonding`)"))
    }

    fn set(&self, cx: &mut Locked<'_, Unlocked>, plan: &BondPlan) -> Result<(), CardError> {
        self.bonds.set(cx, plan)
    }

    fn flap(&self, cx: &mut Locked<'_, Unlocked>, plan: &BondPlan, away: bool) {
        self.bonds.flap(cx, plan, away);
    }

    fn delete(&self, cx: &mut Locked<'_, Unlocked>, name: &str) -> Result<bool, CardError> {
        self.bonds.delete(cx, name)
    }
}

struct Watch(card_linux::BondWatch);

impl BondWatch for Watch {
    fn wait(&mut self) {
        self.0.wait();
    }

    fn look(&mut self, cx: &mut Locked<'_, Unlocked>) -> Option<Bond> {
        self.0.look(cx)
    }
}
