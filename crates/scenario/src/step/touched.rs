//! What of what is agreed a step may change.

use eswitch::module::{CORE, find};
use eswitch::{CardConfig, PciAddress, Touched};

use super::{Action, EswitchOption};

impl Action {
    /// What of what is agreed about a card the step may change, whether it succeeds or not.
    pub fn touches(&self, card: &CardConfig) -> Touched {
        // A VF is its PF's.
        let pf_of = |address: &PciAddress| card.vf_at(*address).map_or(*address, |(pf, _)| card.pf_address(pf));
        match self {
            Self::DevShow
            | Self::EswitchShow(_)
            | Self::PortShow(_)
            | Self::SetNetns(..)
            | Self::Bond(_)
            | Self::Unbond(_)
            | Self::AddFault(_)
            | Self::FailAllocations(..)
            | Self::ClearFaults
            | Self::Sync(_)
            | Self::Sleep(_)
            | Self::WaitRest { .. }
            | Self::WaitUntil(_)
            | Self::Expect(_) => Touched::Nothing,
            Self::EswitchSet(device, options) => match options.iter().any(|o| matches!(o, EswitchOption::Mode(_))) {
                true => Touched::PfAndMultiport(*device),
                false => Touched::Pf(*device),
            },
            Self::AddSf { device, .. } | Self::NumVfs(device, _) | Self::HostVfs(device, _) => Touched::Pf(*device),
            Self::SetVf(device, ..) | Self::Autoprobe(device, _) => Touched::Pf(*device),
            Self::DeletePort(port) | Self::SetFunction(port, _) => Touched::Pf(port.device),
            Self::DriverOverride(address, _) => Touched::Pf(pf_of(address)),
            // With the mode of a PF that comes or goes a multiport E-Switch may end.
            Self::Bind(address)
            | Self::Unbind(address)
            | Self::Probe(address)
            | Self::Remove(address)
            | Self::Reset(address)
            | Self::Reload(address)
            | Self::EswMultiport(address, _) => Touched::PfAndMultiport(pf_of(address)),
            // The core module takes every PF with it. Loading another may load it, too: see `Engine::core_loads`.
            Self::LoadModule(name) | Self::InsertModule(name) | Self::UnloadModule(name) => match find(name) {
                Some(module) if module.name != CORE => Touched::Modules,
                _ => Touched::Everything,
            },
            // Which PF an SF's device belongs to is for the engine to find.
            Self::BindSf(..) | Self::Rescan | Self::Program(_) => Touched::Everything,
            Self::Repeat(_, action) => action.touches(card),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_to_a_pf_touches_no_other() {
        let card = CardConfig { pfs: 2, ..CardConfig::default() };
        let second = card.pf_address(eswitch::PfIndex(1));
        let vf = card.vf_address(eswitch::PfIndex(1), 0);
        for (words, touched) in [
            ("devlink port show".to_owned(), Touched::Nothing),
            (format!("devlink dev eswitch set pci/{second} encap-mode none"), Touched::Pf(second)),
            (format!("devlink dev eswitch set pci/{second} mode legacy"), Touched::PfAndMultiport(second)),
            (format!("devlink dev reload pci/{second}"), Touched::PfAndMultiport(second)),
            (format!("echo {vf} > /sys/bus/pci/drivers/mlx5_core/unbind"), Touched::PfAndMultiport(second)),
            (format!("echo 1 > /sys/bus/pci/devices/{second}/sriov_numvfs"), Touched::Pf(second)),
            ("modprobe mlx5_ib".to_owned(), Touched::Modules),
            ("insmod mlx5_ib".to_owned(), Touched::Modules),
            ("modprobe -r mlx5_ib".to_owned(), Touched::Modules),
            ("modprobe -r mlx5_core".to_owned(), Touched::Everything),
            ("echo 1 > /sys/bus/pci/rescan".to_owned(), Touched::Everything),
        ] {
            let action = Action::parse(&words, &card).unwrap_or_else(|error| panic!("{words}: {error}"));
            assert_eq!(action.touches(&card), touched, "{words}");
        }
    }
}
