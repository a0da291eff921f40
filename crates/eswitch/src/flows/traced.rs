//! What the rules would do with a frame, without a frame.

use std::time::Duration;

use flow::{Rule, RuleId, State, Verdict, process};
use lockdep::{LockBefore, Locked};

use crate::datapath::port;
use crate::engine::Engine;
use crate::error::Errno;
use crate::ids::{PciAddress, PfIndex, PortHandle, Vport};
use crate::lock_order::Flows as FlowsClass;

/// The bytes of an Ethernet header.
const ETHERNET_HEADER: usize = 14;

/// What the rules would do with a frame.
#[derive(Clone, Debug)]
pub struct Traced {
    /// The port at which the frame would come in.
    pub port: PortHandle,
    /// Which rules were asked, and what became of the frame.
    pub verdict: Verdict,
    /// The rules that it matched, in the order in which it did.
    pub matched: Vec<(RuleId, Rule)>,
    /// Whether meters and connections were those of the card as they are now. Otherwise they were taken as unused.
    pub has_state: bool,
}

/// Why a frame cannot be traced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// The card has no data plane.
    #[error("this card offloads no flows, so no rule is asked")]
    NoOffload,
    /// The card has no such PF.
    #[error("there is no {0} on this card: `devlink port show` lists the ports")]
    NoPort(PortHandle),
    /// The E-Switch has no tables.
    #[error(
        "pci/{0} is not in switchdev mode and has no rules: `devlink dev eswitch set pci/{0} mode switchdev` enters it"
    )]
    NotSwitchdev(PciAddress),
    /// No netdev representor of the port is loaded, so the port has no rules.
    #[error(
        "{0} has no representor, so there are no rules for what comes in there: `devlink port show` lists the ports"
    )]
    NoRepresentor(PortHandle),
    /// What should be traced is shorter than an Ethernet header.
    #[error("this is no frame: it has {0} bytes, and an Ethernet header alone has {ETHERNET_HEADER}")]
    TooShort(usize),
}

impl TraceError {
    /// The error number for a program.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoOffload | Self::NotSwitchdev(_) => Errno::EOPNOTSUPP,
            Self::NoPort(_) => Errno::ENODEV,
            Self::NoRepresentor(_) => Errno::ENOENT,
            Self::TooShort(_) => Errno::EINVAL,
        }
    }
}

impl Engine {
    /// What the rules would do with a frame that comes in at a port: by [`flow::process`], with the rules as they are and
    /// on a copy of what frames have changed. Nothing changes. `now` is the time that
    /// [`send_frame`](Self::send_frame) is told.
    ///
    /// # Errors
    /// The port has no rules that could be asked, or this is no frame.
    pub fn trace_frame<P>(
        &self,
        cx: &mut Locked<'_, P>,
        at: PortHandle,
        now: Duration,
        frame: &[u8],
    ) -> Result<Traced, TraceError>
    where
        P: LockBefore<FlowsClass>,
    {
        let (pf, vport) = self.port_of_handle(at).ok_or(TraceError::NoPort(at))?;
        if frame.len() < ETHERNET_HEADER {
            return Err(TraceError::TooShort(frame.len()));
        }
        let traced = self.shared.flows.with(cx, &*self.shared.card, |state, cx, datapath| {
            let switch = state.switches.get(&pf).ok_or(TraceError::NotSwitchdev(at.device))?;
            if !switch.ports.contains(&vport) {
                return Err(TraceError::NoRepresentor(at));
            }
            let copy = datapath.state(cx, pf);
            let has_state = copy.is_some();
            let mut copy = copy.unwrap_or_else(|| State::new(0));
            let verdict = process(&switch.tables, &mut copy, now, port(pf, vport), frame);
            let matched = verdict.trace.0.iter().filter_map(|step| match step {
                flow::Step::Asked { matched, .. } => *matched,
                _ => None,
            });
            let matched = matched.filter_map(|id| Some((id, switch.tables.rule(id)?.clone()))).collect();
            Ok(Traced { port: at, verdict, matched, has_state })
        });
        traced.unwrap_or(Err(TraceError::NoOffload))
    }

    /// The time with which [`flow::Counter::last_used`] is compared, if the card's data plane has a clock of its own.
    /// `None`: it is the time that [`send_frame`](Self::send_frame) is told.
    pub fn flow_clock(&self) -> Option<Duration> {
        self.shared.card.datapath()?.clock()
    }

    /// The PF and the vport of a port's handle, if the card has that PF.
    fn port_of_handle(&self, handle: PortHandle) -> Option<(PfIndex, Vport)> {
        let pf = self.device(handle.device).ok()?.0.index;
        let (of, number) = handle.index.split();
        let vport = Vport::from_number(number, self.config().dpu)?;
        (of == u32::from(pf.0)).then_some((pf, vport))
    }
}
