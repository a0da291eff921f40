//! The interface between the engine and a card's data plane, which carries frames by flow rules.
//!
//! It stands beside [`Card`](crate::card::Card): rules do not queue behind netdevs, and netdevs do not queue behind
//! rules. What a data plane does with a frame is defined by [`flow::process`]. A frame that no rule takes goes to the
//! representor of the port at which it came in, as it came in.
//!
//! The engine decides which rules exist at which time, and calls a data plane under the lock of its rules
//! ([`Flows`](crate::lock_order::Flows)). A data plane refuses what it cannot do, rule by rule.

use std::collections::BTreeSet;
use std::time::Duration;

use flow::{Capabilities, Counter, Meter, MeterId, Port, PortKind, Rule, RuleId, Sampled, State};
use lockdep::{Locked, Unlocked};

use crate::card::CardError;
use crate::ids::{PfIndex, PortIndex, Vport};
use crate::lock_order::CardCall;

/// The number of a vport's port in flow rules: that of its devlink port. It is one of a kind on a card.
pub fn port(pf: PfIndex, vport: Vport) -> Port {
    Port(PortIndex::new(pf, vport).0)
}

/// The PF of a port in flow rules. A port of no card gives the PF of some other number.
pub fn pf_of(port: Port) -> PfIndex {
    PfIndex(PortIndex(port.0).split().0 as u8)
}

/// The vport of a port in flow rules. `dpu`: whether vport 0 is the host's PF.
pub fn vport_of(port: Port, dpu: bool) -> Option<Vport> {
    Vport::from_number(PortIndex(port.0).split().1, dpu)
}

/// What is behind the port of a vport.
pub fn port_kind(vport: Vport) -> PortKind {
    match vport {
        Vport::Uplink => PortKind::Uplink,
        Vport::HostPf | Vport::Vf(_) | Vport::Sf(_) => PortKind::Vport,
    }
}

/// A change to the rules of an E-Switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Installs a rule behind those that are there. Its counter is zero, unless an earlier process has
    /// [left](Datapath::left) it: then it may keep the actions and the counter that it has.
    Install(RuleId, &'a Rule),
    /// Gives a rule other actions. Its place and its counter stay. A frame meets either the old or the new ones.
    SetActions(RuleId, &'a Rule),
    /// Removes a rule.
    Remove(RuleId),
    /// Makes a meter, or changes it.
    SetMeter(MeterId, Meter),
    /// Removes a meter that no rule uses.
    RemoveMeter(MeterId),
}

/// Where a frame has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arrival {
    /// At the function behind a port, or on the wire of an uplink.
    Port(Port),
    /// At the representor of a port.
    Representor(Port),
}

/// Frames that a card has dropped for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dropped {
    /// The port at which they came in, or which they could not reach.
    pub port: Port,
    /// Why, in one or two words with hyphens.
    pub reason: &'static str,
    /// How many, since the first rule was installed.
    pub frames: u64,
}

/// A card's data plane.
///
/// Every call has a token at [`CardCall`], so a data plane cannot call back into the engine.
pub trait Datapath: Send + Sync {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Begins with an E-Switch that has entered switchdev mode: it has no ports and no rules.
    fn open(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex);

    /// Ends with an E-Switch, and forgets its ports, rules and meters.
    fn close(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex);

    /// Makes ports known to the rules of an E-Switch: ports of its own whose representors exist, or ports of a peer.
    fn attach(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, ports: &[(Port, PortKind)]);

    /// Takes ports away again, which no rule of the E-Switch names any more.
    fn detach(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, ports: &[Port]);

    /// Removes every rule and meter of an E-Switch at once, in a time that hardly depends on their number.
    fn clear(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex);

    /// Sets on which wires frames leave that rules send to the uplink of a member of a LAG: on those of `tx`, one flow on
    /// the same. Without members each E-Switch uses its own wire, as at first. It replaces what was set before.
    fn set_lag(&self, cx: &mut Locked<'_, CardCall>, members: &[PfIndex], tx: &[PfIndex]);

    /// The members and ports that were set last.
    fn lag(&self, cx: &mut Locked<'_, CardCall>) -> (Vec<PfIndex>, Vec<PfIndex>);

    /// Carries out changes in their order. For each, the counter of its rule as it is then, the last one for a rule
    /// that is removed, zero for a meter; or why it was refused. What is refused leaves nothing behind, and the other
    /// changes are carried out all the same. Only [`Change::Install`], [`Change::SetActions`] and [`Change::SetMeter`]
    /// can be refused.
    fn commit(
        &self,
        cx: &mut Locked<'_, CardCall>,
        pf: PfIndex,
        batch: &[Change<'_>],
    ) -> Vec<Result<Counter, CardError>>;

    /// The counters of rules that are installed, in the same order.
    fn counters(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, rules: &[RuleId]) -> Vec<Counter>;

    /// How many frames the card has dropped, by port and reason, in order.
    fn drops(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Dropped>;

    /// The rules that are installed, in order, for an E-Switch that is open. `None`: it is not.
    fn installed(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<Vec<RuleId>>;

    /// The rules that an earlier process has left, of those that have not been installed again: only these can be
    /// [restored](crate::Engine::restore_flows). `None`: any can.
    fn left(&self, cx: &mut Locked<'_, CardCall>) -> Option<BTreeSet<RuleId>>;

    /// A copy of what frames have changed in an E-Switch: counters, meters, connections. `None`: it is not open, or its
    /// state cannot be copied.
    fn state(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<State>;

    /// The time with which [`Counter::last_used`] is compared, if the data plane has a clock of its own. `None`: it is
    /// the time that [`send`](Self::send) is told.
    fn clock(&self) -> Option<Duration>;

    /// Sends a frame into a port, and says where it arrived, in order.
    ///
    /// # Errors
    /// There is no such port, or this data plane cannot be asked to send.
    fn send(
        &self,
        cx: &mut Locked<'_, CardCall>,
        port: Port,
        now: Duration,
        frame: &[u8],
    ) -> Result<Vec<Arrival>, CardError>;

    /// The samples that rules take. `None`: this data plane takes none.
    fn sampler(&self) -> Option<&dyn Sampler>;
}

/// The samples that the rules of a card take ([`flow::Action::Sample`]), for one reader at a time.
///
/// They are on a way of their own: no rule and no frame waits for the reader. If it is slow, samples are lost.
pub trait Sampler: Send + Sync {
    /// Has rules take samples from now on, or none any more, as at first: then they cost frames nothing.
    fn want(&self, cx: &mut Locked<'_, CardCall>, wanted: bool);

    /// Waits until there are samples, or until it is [woken](Self::wake). It may also return for no reason.
    ///
    /// The token says that the thread holds no lock meanwhile.
    fn wait(&self, cx: &mut Locked<'_, Unlocked>);

    /// Ends the [wait](Self::wait), or the next one if nobody waits.
    fn wake(&self, cx: &mut Locked<'_, CardCall>);

    /// Some of the samples that were taken since the last call, in their order: 64 at most. None: there are no more.
    fn read(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Sampled>;
}
