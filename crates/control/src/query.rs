//! Queries to a card, as values.

use eswitch::{PciAddress, PortHandle};

use crate::command::Command;

/// A look at a card that changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query {
    /// `devlink dev show [DEV]`: one device, or all that are bound to their driver.
    Devices(Option<PciAddress>),
    /// `devlink dev eswitch show DEV`.
    Eswitch(PciAddress),
    /// `devlink port show [PORT]`: one port, or all.
    Ports(Option<PortHandle>),
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
