//! What makes a LAG: the kernel's bond, followed by a thread; or where the kernel has none, the command that asks for one.

use std::sync::Arc;

use control::{Failure, Reply};
use eswitch::card::CardError;
use eswitch::lag::{BondPlan, LagMode};
use eswitch::{Engine, Error, PciAddress, PfIndex, Tx};
use lockdep::{AtomicBool, AtomicU64, JoinHandle, Locked, Mutex, Unlocked, is_explored, lock_classes};

use crate::pulse::Pulse;
use crate::world::{BondWatch, Bonds};

lock_classes! {
    /// The thread that follows the kernel's bonds.
    pub leaf FollowerClass = "bond follower";
}

/// Tells the engine of the kernel's bonds.
///
/// What it tells is what it finds when it looks, not what it hears: so it can be [asked](Self::ask) to look, and
/// once it has, the engine knows of everything that was done before.
pub(crate) struct BondFollower {
    bonds: Arc<dyn Bonds>,
    shared: Arc<Shared>,
    thread: Mutex<FollowerClass, Option<JoinHandle<()>>>,
    /// Whether a user has been told that there are no bonds.
    has_said_so: AtomicBool,
}

struct Shared {
    over: AtomicBool,
    asked: AtomicU64,
    looked: AtomicU64,
}

impl BondFollower {
    /// Follows them from now on; what there is already is found at once.
    pub(crate) fn start(
        cx: &mut Locked<'_, Unlocked>,
        bonds: Arc<dyn Bonds>,
        engine: &Arc<Engine>,
        pulse: &Arc<Pulse>,
    ) -> Self {
        let shared =
            Arc::new(Shared { over: AtomicBool::new(false), asked: AtomicU64::new(0), looked: AtomicU64::new(0) });
        let watch = bonds.watch(cx);
        let thread = watch.map(|watch| {
            let (shared, engine, pulse) = (Arc::clone(&shared), Arc::clone(engine), Arc::clone(pulse));
            cx.spawn("bonds", move |cx| shared.follow(cx, watch, &engine, &pulse))
        });
        // With nobody to look there is nothing to wait for.
        shared.over.swap(thread.is_none());
        Self { bonds, shared, thread: Mutex::new(thread), has_said_so: AtomicBool::new(false) }
    }

    /// Asks for a look. It has been had once [`has_looked`](Self::has_looked) says so.
    pub(crate) fn ask(&self) -> u64 {
        let ticket = self.shared.asked.fetch_add(1) + 1;
        self.bonds.wake();
        ticket
    }

    /// Whether what was asked for has been done. Once nobody follows any more, it has.
    pub(crate) fn has_looked(&self, ticket: u64) -> bool {
        self.shared.over.load() || self.shared.looked.load() >= ticket
    }

    /// Ends the thread.
    pub(crate) fn stop(&self, cx: &mut Locked<'_, Unlocked>) {
        self.shared.over.swap(true);
        self.bonds.wake();
        let thread = self.thread.lock_leaf(cx).take();
        if let Some(Err(panic)) = thread.map(|thread| thread.join(cx)) {
            std::panic::resume_unwind(panic);
        }
    }

    /// Makes the kernel's bond what the plan says, or stands in for one where the kernel has none; then `flap` further
    /// events take it away and bring it back. `stops`: whether to do no more.
    ///
    /// # Errors
    /// A port is none of the card's; the card is in multiport E-Switch mode; the kernel refuses; or it was stopped.
    pub(crate) fn bond(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        engine: &Engine,
        plan: &BondPlan<PciAddress>,
        flap: u32,
        stops: impl Fn(&mut Locked<'_, Unlocked>) -> bool,
    ) -> Result<Reply, Failure> {
        if let Some(why) = self.bonds.missing(cx) {
            stand_in(cx, engine, plan, flap)?;
            return Ok(match self.has_said_so.swap(true) {
                true => Reply::Done,
                false => Reply::Note(format!("{why}; the step stands in for one")),
            });
        }
        let plan = &by_place(engine, plan)?;
        if engine.lag(cx).mode == LagMode::Mpesw {
            return Err(Error::BondUnderMpesw(plan.name.clone()).into());
        }
        self.bonds.set(cx, plan).map_err(|source| refused(&plan.name, source))?;
        for left in (0..flap).rev() {
            if stops(cx) {
                return Err(Failure::Interrupted);
            }
            self.bonds.flap(cx, plan, left % 2 == 1);
        }
        if flap > 0 {
            self.bonds.set(cx, plan).map_err(|source| refused(&plan.name, source))?;
        }
        Ok(Reply::Done)
    }

    /// Deletes a bond.
    ///
    /// # Errors
    /// There is no such bond, or the kernel refuses.
    pub(crate) fn unbond(&self, cx: &mut Locked<'_, Unlocked>, engine: &Engine, name: &str) -> Result<(), Error> {
        if self.bonds.missing(cx).is_some() {
            return engine.unbond(cx, name);
        }
        match self.bonds.delete(cx, name) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::NoBond(name.to_owned())),
            Err(source) => Err(refused(name, source)),
        }
    }
}

impl Drop for BondFollower {
    fn drop(&mut self) {
        // It has ended if this was stopped; if something hangs it is not waited for.
        self.shared.over.swap(true);
        self.bonds.wake();
    }
}

impl Shared {
    fn follow(&self, cx: &mut Locked<'_, Unlocked>, mut watch: Box<dyn BondWatch>, engine: &Engine, pulse: &Pulse) {
        let mut last = None;
        while !self.over.load() {
            let asked = self.asked.load();
            let bond = watch.look(cx);
            if bond != last {
                engine.bond_changed(cx, bond.clone());
                last = bond;
            }
            self.looked.store(asked);
            pulse.beat(cx);
            watch.wait();
        }
    }
}

fn refused(name: &str, source: CardError) -> Error {
    Error::Card { what: format!("the bond {name}"), source }
}

/// How often a bond changes at most where every order is tried, or once more: it has to end as it would.
const FLAPS: u32 = 4;

/// The plan as a card takes it. Every port of it must be a PF of the card.
fn by_place(engine: &Engine, plan: &BondPlan<PciAddress>) -> Result<BondPlan, Error> {
    let addresses = engine.addresses();
    plan.with_ports(|address| {
        let place = addresses.iter().position(|known| known == address);
        place.map(|place| PfIndex(place as u8)).ok_or(Error::NoDevice(*address))
    })
}

/// Tells the engine of a bond that the kernel does not have, then as often as asked for that it goes and comes.
pub(crate) fn stand_in(
    cx: &mut Locked<'_, Unlocked>,
    engine: &Engine,
    plan: &BondPlan<PciAddress>,
    flap: u32,
) -> Result<(), Error> {
    let tx = match plan.mode.as_str() {
        "active-backup" => Tx::ActiveBackup(plan.active),
        "balance-xor" | "802.3ad" => Tx::Hash,
        other => Tx::Other(other.to_owned()),
    };
    let flap = if is_explored() { flap.min(FLAPS + flap % 2) } else { flap };
    for event in (0..=flap).rev() {
        if event % 2 == 1 {
            engine.unbond(cx, &plan.name).or_else(|error| match error {
                // The first event of an odd number takes away what is not there yet.
                Error::NoBond(_) => Ok(()),
                error => Err(error),
            })?;
        } else {
            engine.bond(cx, &plan.name, tx.clone(), &plan.ports, &plan.with)?;
        }
    }
    Ok(())
}
