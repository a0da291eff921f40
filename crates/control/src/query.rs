//! Queries to a card, as values.

use eswitch::{PciAddress, PortHandle};
use flow::Port;

use crate::command::Command;

/// A look at a card that changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// `devlink dev show [DEV]`: one device, or all that are bound to their driver.
    Devices(Option<PciAddress>),
    /// `devlink dev eswitch show DEV`.
    Eswitch(PciAddress),
    /// `devlink port show [PORT]`: one port, or all.
    Ports(Option<PortHandle>),
    /// `tc [-s] filter show dev NETDEV ingress`: the flow rules on a port.
    Filters {
        /// The port.
        on: Port,
        /// Whether their counters are shown.
        with_counters: bool,
    },
    /// `trace PORT FRAME`: what the rules would do with a frame that comes in at a port.
    Trace {
        /// The port.
        port: PortHandle,
        /// The frame, without the frame check sequence.
        frame: Vec<u8>,
    },
}

/// A command or a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A change.
    Command(Command),
    /// A look.
    Query(Query),
}

impl From<Command> for Request {
    fn from(command: Command) -> Self {
        Self::Command(command)
    }
}

impl From<Query> for Request {
    fn from(query: Query) -> Self {
        Self::Query(query)
    }
}
