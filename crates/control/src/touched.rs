//! The parts of a card that a command may change.

use eswitch::module::{CORE, VFIO, find};
use eswitch::{CardConfig, PciAddress, Touched};

use crate::command::{Command, EswitchOption};

impl Command {
    /// The part of the [agreed](eswitch::Agreed) state of a card that the command may change, whether it succeeds or
    /// not.
    pub fn touches(&self, card: &CardConfig) -> Touched {
        // The state of a VF is part of its PF's.
        let pf_of = |address: &PciAddress| card.vf_at(*address).map_or(*address, |(pf, _)| card.pf_address(pf));
        match self {
            Self::SetNetns { .. }
            | Self::Bond { .. }
            | Self::DeleteBond(_)
            | Self::AddFault(_)
            | Self::ChangeFlows(_)
            | Self::SetNeighbour { .. }
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
            // A function that vfio-pci binds or unbinds is none of its card's driver: no mode changes.
            Self::SetVfMsix { device, .. }
            | Self::SetDriverOverride { device, .. }
            | Self::BindVfio(device)
            | Self::UnbindVfio(device) => Touched::Pf(pf_of(device)),
            // Each of these may change the mode of a PF, and with it end a multiport E-Switch.
            Self::Bind(device)
            | Self::Unbind(device)
            | Self::Probe(device)
            | Self::Remove(device)
            | Self::Reset(device)
            | Self::Reload(device)
            | Self::SetEswMultiport { device, .. } => Touched::PfAndMultiport(pf_of(device)),
            // The core module binds or unbinds every PF, and that of `vfio-pci` those that are for it. Loading another module may load it, too: see
            // `Engine::core_loads`.
            Self::LoadModule(name) | Self::InsertModule(name) | Self::UnloadModule(name) => match find(name) {
                Some(module) if ![CORE, VFIO].contains(&module.name) => Touched::Modules,
                _ => Touched::Everything,
            },
            // Only the engine knows which PF an SF's device belongs to.
            Self::SetSfBound { .. } | Self::Rescan => Touched::Everything,
        }
    }

    /// The part of the [inspected](eswitch::Engine::inspect) state that the command may change, which is more than the
    /// agreed state.
    pub fn touches_view(&self, card: &CardConfig) -> Touched {
        match self {
            Self::SetNetns { .. } | Self::Bond { .. } | Self::DeleteBond(_) => Touched::Everything,
            command => command.touches(card),
        }
    }
}
