//! What a command may change.

use eswitch::module::{CORE, find};
use eswitch::{CardConfig, PciAddress, Touched};

use crate::command::{Command, EswitchOption};

impl Command {
    /// What of what is [agreed](eswitch::Agreed) about a card the command may change, whether it succeeds or not.
    pub fn touches(&self, card: &CardConfig) -> Touched {
        // A VF is its PF's.
        let pf_of = |address: &PciAddress| card.vf_at(*address).map_or(*address, |(pf, _)| card.pf_address(pf));
        match self {
            Self::SetNetns { .. }
            | Self::Bond { .. }
            | Self::DeleteBond(_)
            | Self::AddFault(_)
            | Self::FailAllocations { .. }
            | Self::ClearFaults => Touched::Nothing,
            Self::SetEswitch { device, options } => {
                match options.iter().any(|option| matches!(option, EswitchOption::Mode(_))) {
                    true => Touched::PfAndMultiport(*device),
                    false => Touched::Pf(*device),
                }
            }
            Self::AddSf { device, .. }
            | Self::SetNumVfs { device, .. }
            | Self::SetHostVfs { device, .. }
            | Self::SetVf { device, .. }
            | Self::SetAutoprobe { device, .. } => Touched::Pf(*device),
            Self::DeletePort(port) | Self::SetFunction { port, .. } => Touched::Pf(port.device),
            Self::SetDriverOverride { device, .. } => Touched::Pf(pf_of(device)),
            // With the mode of a PF that comes or goes a multiport E-Switch may end.
            Self::Bind(device)
            | Self::Unbind(device)
            | Self::Probe(device)
            | Self::Remove(device)
            | Self::Reset(device)
            | Self::Reload(device)
            | Self::SetEswMultiport { device, .. } => Touched::PfAndMultiport(pf_of(device)),
            // The core module takes every PF with it. Loading another may load it, too: see `Engine::core_loads`.
            Self::LoadModule(name) | Self::InsertModule(name) | Self::UnloadModule(name) => match find(name) {
                Some(module) if module.name != CORE => Touched::Modules,
                _ => Touched::Everything,
            },
            // The engine finds out which PF an SF's device belongs to.
            Self::SetSfBound { .. } | Self::Rescan => Touched::Everything,
        }
    }

    /// What of what can be [looked at](eswitch::Engine::inspect) the command may change: more than what is agreed.
    pub fn touches_view(&self, card: &CardConfig) -> Touched {
        match self {
            Self::SetNetns { .. } | Self::Bond { .. } | Self::DeleteBond(_) => Touched::Everything,
            command => command.touches(card),
        }
    }
}
