//! A card that is up and carries out commands.

use std::sync::Arc;
use std::time::Duration;

use control::{Command, CommandTarget, EswitchOption, Failure, Reply};
use eswitch::card::Card;
use eswitch::inspect::Violation;
use eswitch::{Agreed, CardConfig, Engine, Error};
use lockdep::{Deadline, Locked, Threads, Unlocked, is_explored};

use crate::bonds::{BondFollower, stand_in};
use crate::follower::Follower;
use crate::neighbours::NeighbourFollower;
use crate::pulse::{GaveUp, Heeds};
use crate::world::World;

/// A card that is up.
pub struct LiveCard {
    engine: Arc<Engine>,
    world: World,
    /// Reports the kernel's bonds to the engine, on a card of netdevs.
    bonds: Option<BondFollower>,
    /// Reports the kernel's neighbours to the engine, on a card of netdevs.
    neighbours: Option<NeighbourFollower>,
}

impl LiveCard {
    /// Brings a card up; as last agreed, if `agreed` is given.
    ///
    /// # Errors
    /// Something could not be made; nothing is left.
    pub fn start(
        cx: &mut Locked<'_, Unlocked>,
        config: CardConfig,
        world: World,
        agreed: Option<&Agreed>,
    ) -> Result<Self, Error> {
        let threads = Arc::new(Threads(Arc::clone(&world.domain)));
        let engine = Engine::start_as(cx, config, Arc::clone(&world.card), threads, agreed)?;
        let bonds = world.bonds.clone();
        let bonds = bonds.map(|bonds| BondFollower::start(cx, bonds, &engine, &world.pulse));
        let neighbours = world.neighbours.clone();
        let neighbours = neighbours.map(|of| NeighbourFollower::start(cx, of, &engine, &world.pulse));
        Ok(Self { engine, world, bonds, neighbours })
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The world of the card.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Carries out a command. `heeds`: what ends it early; `limit`: how long it may wait for the engine to
    /// see a bond or a neighbour that the kernel has made.
    ///
    /// # Errors
    /// It failed; or, with [`Failure::Unseen`], the kernel has carried it out and the engine has not seen that in time.
    pub fn perform(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        heeds: Heeds,
        limit: Duration,
        command: &Command,
    ) -> Result<Reply, Failure> {
        let engine = &self.engine;
        let done: Result<(), Error> = match command {
            Command::SetEswitch { device, options } => options.iter().try_for_each(|option| match option {
                EswitchOption::Mode(mode) => engine.set_mode(cx, *device, *mode),
                EswitchOption::InlineMode(mode) => engine.set_inline_mode(cx, *device, *mode),
                EswitchOption::EncapMode(encap) => engine.set_encap(cx, *device, *encap),
            }),
            Command::Reload(device) => engine.reload(cx, *device),
            Command::AddSf { device, pfnum, sfnum, controller } => {
                return Ok(Reply::Port(engine.add_sf_of(cx, *device, *controller, *pfnum, *sfnum)?));
            }
            Command::DeletePort(port) => engine.delete_port(cx, *port),
            Command::SetFunction { port, change } => engine.set_function(cx, *port, *change),
            Command::SetEswMultiport { device, value } => engine.set_esw_multiport(cx, *device, *value),
            Command::SetNumVfs { device, number } => engine.set_num_vfs(cx, *device, *number),
            Command::SetAutoprobe { device, on } => engine.set_autoprobe(cx, *device, *on),
            Command::Bind(device) => engine.bind(cx, *device),
            Command::Unbind(device) => engine.unbind(cx, *device),
            Command::BindVfio(device) => engine.bind_vfio(cx, *device),
            Command::UnbindVfio(device) => engine.unbind_vfio(cx, *device),
            Command::SetSfBound { id, bound } => engine.set_sf_bound(cx, *id, *bound),
            Command::Probe(device) => engine.probe(cx, *device),
            Command::SetDriverOverride { device, driver } => engine.set_driver_override(cx, *device, driver.clone()),
            Command::SetVfMsix { device, count } => engine.set_vf_msix(cx, *device, *count),
            Command::Remove(device) => engine.remove(cx, *device),
            Command::Rescan => {
                engine.rescan(cx);
                Ok(())
            }
            Command::Reset(device) => engine.reset(cx, *device),
            Command::SetVf { device, vf, settings } => {
                settings.iter().try_for_each(|setting| engine.set_vf(cx, *device, *vf, *setting))
            }
            Command::SetNetns { device, netns } => engine.set_netns(cx, *device, netns.as_deref()),
            Command::LoadModule(name) => engine.load_module(cx, name),
            Command::InsertModule(name) => engine.insert_module(cx, name),
            Command::UnloadModule(name) => engine.unload_module(cx, name),
            Command::Bond { plan, flap } => {
                let reply = match &self.bonds {
                    None => {
                        stand_in(cx, engine, plan, *flap)?;
                        return Ok(Reply::Done);
                    }
                    Some(bonds) => bonds.bond(cx, engine, plan, *flap, |cx| self.world.pulse.stops(cx, heeds))?,
                };
                self.follow_kernel(cx, heeds, limit).map_err(unseen)?;
                return Ok(reply);
            }
            Command::DeleteBond(name) => {
                match &self.bonds {
                    None => engine.unbond(cx, name)?,
                    Some(bonds) => bonds.unbond(cx, engine, name)?,
                }
                self.follow_kernel(cx, heeds, limit).map_err(unseen)?;
                return Ok(Reply::Done);
            }
            Command::ChangeFlows(changes) => {
                let results = engine.change_flows(cx, changes.clone());
                return Ok(Reply::Flows(results.into_iter().map(|result| result.map_err(Into::into)).collect()));
            }
            Command::SetNeighbour { device, end, mac } => match &self.neighbours {
                None => engine.set_next_hop(cx, *device, *end, *mac),
                Some(neighbours) => {
                    neighbours.set(cx, engine, *device, *end, *mac)?;
                    self.follow_kernel(cx, heeds, limit).map_err(unseen)?;
                    return Ok(Reply::Done);
                }
            },
            Command::SetHostVfs { device, number } => engine.set_host_vfs(cx, *device, *number),
            Command::AddFault(fault) => {
                self.world.faults.add(cx, fault.clone());
                Ok(())
            }
            Command::FailAllocations { device, times } => engine.fail_allocations(cx, *device, *times),
            Command::ClearFaults => {
                self.world.faults.clear(cx);
                Ok(())
            }
        };
        done?;
        Ok(Reply::Done)
    }

    /// The threads that follow the kernel.
    fn followers(&self) -> impl Iterator<Item = &Follower> {
        let bonds = self.bonds.iter().map(BondFollower::follower);
        bonds.chain(self.neighbours.iter().map(NeighbourFollower::follower))
    }

    /// Waits until the engine knows every bond that the kernel has, and every next hop to the end of a tunnel, for
    /// `limit` at most.
    ///
    /// # Errors
    /// It takes too long, or was stopped.
    pub fn follow_kernel(&self, cx: &mut Locked<'_, Unlocked>, heeds: Heeds, limit: Duration) -> Result<(), GaveUp> {
        let tickets: Vec<(&Follower, u64)> = self.followers().map(|of| (of, of.request_look())).collect();
        if tickets.is_empty() {
            return Ok(());
        }
        let ready =
            |_: &mut Locked<'_, Unlocked>| tickets.iter().all(|(of, ticket)| of.has_looked(*ticket)).then_some(());
        // An exploration has no time: its scheduler finds out when no thread can go on.
        let limit = (!is_explored()).then(|| Deadline::after(limit));
        self.world.pulse.wait_for(cx, heeds, limit.as_ref(), || None, ready)
    }

    /// Takes the card down; returns what is left that should not be.
    pub fn close(&self, cx: &mut Locked<'_, Unlocked>) -> Vec<Violation> {
        self.followers().for_each(|follower| follower.stop(cx));
        self.engine.shutdown(cx);
        left_on(cx, &*self.world.card)
    }
}

fn unseen(why: GaveUp) -> Failure {
    match why {
        GaveUp::Stopped => Failure::Interrupted,
        GaveUp::TimedOut => Failure::Unseen,
    }
}

/// How long a command of a program may wait for the engine to see a bond.
const LIMIT: Duration = Duration::from_secs(60);

impl CommandTarget for LiveCard {
    fn engine(&self) -> &Engine {
        &self.engine
    }

    fn carry_out(&self, cx: &mut Locked<'_, Unlocked>, command: &Command) -> Result<Reply, Failure> {
        self.perform(cx, Heeds::Stop, LIMIT, command)
    }
}

/// The resources of a card that should hold none, and the card's complaints.
pub fn left_on(cx: &mut Locked<'_, Unlocked>, card: &dyn Card) -> Vec<Violation> {
    let mut cx = cx.narrow();
    let complaints = card.take_complaints(&mut cx).into_iter();
    let mut found: Vec<Violation> = complaints.map(|detail| Violation { invariant: "load-once", detail }).collect();
    found.extend(card.resources(&mut cx).iter().map(|left| Violation {
        invariant: "no-leak",
        detail: format!("{left} is left after the card was taken down"),
    }));
    found
}
