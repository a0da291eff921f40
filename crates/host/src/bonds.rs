//! Follows the kernel's bonds, which make a LAG of the card's PFs. Where the kernel has no bonds, the command that
//! requests one reports it to the engine instead.

use std::sync::Arc;

use control::{Failure, Reply};
use eswitch::card::CardError;
use eswitch::lag::{BondPlan, LagMode, TxType};
use eswitch::{Engine, Error, PciAddress, PfIndex};
use lockdep::{AtomicBool, Locked, Unlocked, is_explored};

use crate::follower::{Follower, Looks};
use crate::pulse::Pulse;
use crate::world::{BondWatch, Bonds};

/// Reports the kernel's bonds to the engine, on a thread of its own.
///
/// It reports the state that it finds when it looks, not the events that it receives. So a caller can
/// [request a look](Follower::request_look), and once that has been done the engine knows every change made before.
pub(crate) struct BondFollower {
    bonds: Arc<dyn Bonds>,
    follower: Follower,
    /// Whether a reply has already said that the kernel has no bonds.
    has_noted_missing: AtomicBool,
}

impl BondFollower {
    /// Starts to follow the bonds; those that exist already are found at once.
    pub(crate) fn start(
        cx: &mut Locked<'_, Unlocked>,
        bonds: Arc<dyn Bonds>,
        engine: &Arc<Engine>,
        pulse: &Arc<Pulse>,
    ) -> Self {
        let watch = bonds.watch(cx);
        let follow = watch.map(|watch| {
            let (engine, pulse) = (Arc::clone(engine), Arc::clone(pulse));
            move |cx: &mut Locked<'_, Unlocked>, looks: &Looks| follow(cx, looks, watch, &engine, &pulse)
        });
        let waker = Arc::clone(&bonds);
        let follower = Follower::start(cx, "bonds", Arc::new(move || waker.wake()), follow);
        Self { bonds, follower, has_noted_missing: AtomicBool::new(false) }
    }

    /// The thread.
    pub(crate) fn follower(&self) -> &Follower {
        &self.follower
    }

    /// Makes the kernel's bond as planned, or reports such a bond to the engine where the kernel has none; then changes
    /// it `flap` more times, in turn away from the plan and back. `stops`: whether to end early.
    ///
    /// # Errors
    /// A port does not belong to the card; the card is in multiport E-Switch mode; the kernel refuses; or it was
    /// stopped.
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
            return Ok(match self.has_noted_missing.swap(true) {
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

fn follow(cx: &mut Locked<'_, Unlocked>, looks: &Looks, mut watch: Box<dyn BondWatch>, engine: &Engine, pulse: &Pulse) {
    let mut last = None;
    while let Some(look) = looks.begin() {
        let bond = watch.look(cx);
        if bond != last {
            engine.bond_changed(cx, bond.clone());
            last = bond;
        }
        looks.end(look);
        pulse.beat(cx);
        watch.wait();
    }
}

fn refused(name: &str, source: CardError) -> Error {
    Error::Card { operation: format!("the bond {name}"), source }
}

/// How often a bond changes at most where every order is explored. An odd number of changes stays odd, so that the bond
/// ends as it would, and may be one more.
const FLAPS: u32 = 4;

/// The plan with PFs by index instead of by address. Every port must be a PF of the card.
fn by_place(engine: &Engine, plan: &BondPlan<PciAddress>) -> Result<BondPlan, Error> {
    let addresses = engine.addresses();
    plan.with_ports(|address| {
        let place = addresses.iter().position(|known| known == address);
        place.map(|place| PfIndex(place as u8)).ok_or(Error::NoDevice(*address))
    })
}

/// Reports a bond to the engine that the kernel does not have, and then `flap` changes: it is deleted and made in turn.
pub(crate) fn stand_in(
    cx: &mut Locked<'_, Unlocked>,
    engine: &Engine,
    plan: &BondPlan<PciAddress>,
    flap: u32,
) -> Result<(), Error> {
    let tx = match plan.mode.as_str() {
        "active-backup" => TxType::ActiveBackup(plan.active),
        "balance-xor" | "802.3ad" => TxType::Hash,
        other => TxType::Other(other.to_owned()),
    };
    let flap = if is_explored() { flap.min(FLAPS + flap % 2) } else { flap };
    for event in (0..=flap).rev() {
        if event % 2 == 1 {
            engine.unbond(cx, &plan.name).or_else(|error| match error {
                // With an odd number of changes the first one deletes a bond that does not exist yet.
                Error::NoBond(_) => Ok(()),
                error => Err(error),
            })?;
        } else {
            engine.bond(cx, &plan.name, tx.clone(), &plan.ports, &plan.with)?;
        }
    }
    Ok(())
}
