//! Bonds over the PFs' netdevs: the kernel's own. They are watched, and made for the step `bond`.
//!
//! What makes a LAG is a bond or a team, and that is the kernel's and its administrator's. After every event that could
//! matter, everything that matters is looked at again: which netdev each PF has, which bond it is in, how that
//! sends, and which other netdevs are in it. So the contents and the order of events do not count, and events that were
//! lost are made up for by looking once more.
//!
//! Only the namespace is looked at where the card's netdevs appear: a PF whose netdev was moved elsewhere
//! has no port in any bond.

mod look;
mod manage;
mod team;
mod watch;

use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::sync::Arc;
use std::time::Duration;

use eswitch::card::CardError;
use eswitch::lag::BondPlan;
use eswitch::{CardConfig, PfIndex};
use lockdep::{Deadline, Locked, MayWait, Mutex, lock_classes};
use netlink::Errno;

use crate::refused::refused;

use self::manage::Manager;
pub use self::watch::BondWatch;

lock_classes! {
    /// The sockets that bonds are looked at and made with, and what was made.
    leaf BondManager = "bond manager";
}

/// The kernel's names of modes, in the order of their numbers.
const MODES: [&str; 7] =
    ["balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"];
const ACTIVE_BACKUP: u8 = 1;
const BALANCE_XOR: u8 = 2;
const LACP: u8 = 4;

/// The bonds of the namespace in which a card's netdevs appear.
///
/// The bond that was made here is deleted when this is dropped.
pub struct Bonds {
    manager: Mutex<BondManager, Manager>,
    wake: PipeWriter,
}

impl Bonds {
    /// The bonds of `home`, the namespace where the netdevs of the card `card` appear, and a watch on them.
    ///
    /// # Errors
    /// A socket or a pipe cannot be opened.
    pub(crate) fn new(config: CardConfig, card: &File, home: &File) -> io::Result<(Arc<Self>, BondWatch)> {
        let (woken, wake) = io::pipe()?;
        let manager = Manager::new(config.clone(), card, home)?;
        let bonds = Arc::new(Self { manager: Mutex::new(manager), wake });
        let watch = BondWatch::new(Arc::clone(&bonds), &config, home, woken)?;
        Ok((bonds, watch))
    }

    /// Why this kernel has no bonds, if it has none.
    pub fn missing<L>(&self, cx: &mut Locked<'_, L>) -> Option<String> {
        self.manager.lock_leaf(cx).probe().err()
    }

    /// Ends the [wait](BondWatch::wait) of the watch.
    pub fn wake(&self) {
        // It fails if the watch has been dropped, which then needs no waking.
        let _ = (&self.wake).write(&[0]);
    }

    /// Makes a bond, or changes the one of that name to be as planned. A PF whose netdev is removed and appears again
    /// is put back into the bond, until the bond is deleted.
    ///
    /// # Errors
    /// The name is taken by another netdev than a bond of this card; or the kernel refuses.
    pub fn set<L: MayWait>(&self, cx: &mut Locked<'_, L>, plan: &BondPlan) -> Result<(), CardError> {
        self.manager.lock_leaf(cx).set(plan)?;
        match plan.active {
            Some(active) if plan.mode == MODES[usize::from(ACTIVE_BACKUP)] => self.activate(cx, active),
            _ => Ok(()),
        }
    }

    /// Changes a bond that was [set](Self::set): `away` from its plan, or back to it. What changes is its
    /// active port, or if it has none, whether its last port is in it. What cannot be changed is passed over.
    pub fn flap<L>(&self, cx: &mut Locked<'_, L>, plan: &BondPlan, away: bool) {
        self.manager.lock_leaf(cx).flap(plan, away);
    }

    /// Deletes a bond of this card; returns whether there was one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete<L>(&self, cx: &mut Locked<'_, L>, name: &str) -> Result<bool, CardError> {
        self.manager.lock_leaf(cx).delete(name)
    }

    /// Makes a port the active one. Right after a netdev was brought up the kernel does not know yet that it has
    /// carrier, and refuses; so it is tried until it succeeds, for two seconds.
    fn activate<L: MayWait>(&self, cx: &mut Locked<'_, L>, active: PfIndex) -> Result<(), CardError> {
        const PATIENCE: Duration = Duration::from_secs(2);
        const BETWEEN: Duration = Duration::from_millis(5);
        let limit = Deadline::after(PATIENCE);
        loop {
            // The lock is released before the wait: other calls, and the watch, need it meanwhile.
            let tried = self.manager.lock_leaf(cx).activate(active);
            match tried {
                Ok(()) => return Ok(()),
                Err(failure) if failure.errno != Errno::INVAL || limit.has_passed() => {
                    let call = format!("making pf{} the active port", active.0);
                    return Err(refused(&call, &failure, None));
                }
                Err(_) => Deadline::after(BETWEEN).sleep(cx),
            }
        }
    }
}
