//! What is shown of a card, put together from its view and its status.

use std::collections::HashMap;

use devlink::view::{self, DeviceName, Role};
use eswitch::PciAddress;
use eswitch::auxiliary::AuxiliaryName;
use serde::Serialize;

use super::clean;
use crate::daemon::CardStatus;

/// The netdev to which a netdev belongs, by their names.
pub type Masters = HashMap<String, String>;

/// A card.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// `memory` or `linux`.
    pub kind: String,
    /// The name of the identity that it shows: `mlx5`.
    pub profile: String,
    /// `phys_switch_id`.
    pub switch_id: String,
    /// The number of flow rules.
    pub rules: usize,
    /// Every PF.
    pub pfs: Vec<Pf>,
}

/// A PF.
#[derive(Debug, Serialize)]
pub struct Pf {
    /// Its PCI address.
    pub address: String,
    /// The mode of its E-Switch; none if it is not bound to its driver.
    pub mode: Option<String>,
    /// Its netdev, which is also the representor of the uplink.
    pub uplink: Option<Netdev>,
    /// Its RDMA device.
    pub rdma: Option<String>,
    /// Its VFs, then its SFs, then the functions of a DPU's host.
    pub functions: Vec<Function>,
    /// What failed to load, and why.
    pub problems: Vec<String>,
    /// What is set and has no effect on traffic.
    pub not_enforced: Vec<String>,
}

/// A function, with the representor of its port.
#[derive(Debug, Serialize)]
pub struct Function {
    /// `VF 0`, `SF 88`; of a DPU's host, the name of its port.
    pub name: String,
    /// Its device: a PCI address, or a name on the auxiliary bus. None of a function that is the host's.
    pub device: Option<String>,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// Its netdev.
    pub netdev: Option<Netdev>,
    /// Its RDMA device.
    pub rdma: Option<String>,
    /// The netdev of its representor, in switchdev mode.
    pub representor: Option<Netdev>,
}

/// A netdev.
#[derive(Debug, Serialize)]
pub struct Netdev {
    /// Its name; of one that is elsewhere, the last one that it had here.
    pub name: String,
    /// Whether it is in another network namespace than the card's netdevs appear in.
    pub elsewhere: bool,
    /// The bridge or bond to which it belongs here.
    pub master: Option<String>,
}

impl Shown {
    /// Puts together what is shown. `rules`: the number of flow rules. `masters`: the netdev to which each netdev of this
    /// network namespace belongs, by their names.
    pub fn of(view: &view::Card, status: &CardStatus, rules: usize, masters: &Masters) -> Self {
        let pfs = view.functions.iter().filter(|function| function.vf_of.is_none()).enumerate();
        Self {
            name: status.name.clone(),
            kind: status.kind.clone(),
            profile: view.profile.name.clone(),
            switch_id: view.switch_id.to_string(),
            rules,
            pfs: pfs.map(|(index, function)| Pf::of(view, status, index, function.address, masters)).collect(),
        }
    }
}

impl Pf {
    fn of(view: &view::Card, status: &CardStatus, index: usize, address: PciAddress, masters: &Masters) -> Self {
        let netdev_of = |netdev: &view::Netdev| Netdev::of(netdev, masters);
        let device = DeviceName::Pci(address);
        let mut representors: Vec<&view::Netdev> =
            view.netdevs.iter().filter(|netdev| netdev.role == Role::Representor && netdev.parent == device).collect();
        let mut functions = Vec::new();
        let mut add = |name: String, port: String, device: DeviceName, driver: &Option<String>| {
            let representor = representors.iter().position(|netdev| netdev.port_name.as_deref() == Some(port.as_str()));
            let is_own = |netdev: &&view::Netdev| netdev.parent == device && netdev.role != Role::Representor;
            functions.push(Function {
                name,
                device: Some(device.to_string()),
                driver: driver.clone(),
                netdev: view.netdevs.iter().find(is_own).map(netdev_of),
                rdma: rdma_of(view, device),
                representor: representor.map(|at| netdev_of(representors.remove(at))),
            });
        };
        for function in &view.functions {
            if let Some((_, number)) = function.vf_of.filter(|(pf, _)| *pf == address) {
                let port = format!("pf{index}vf{number}");
                add(format!("VF {number}"), port, DeviceName::Pci(function.address), &function.driver);
            }
        }
        for sf in view.auxiliary.iter().filter(|sf| sf.parent == device && matches!(sf.name, AuxiliaryName::Sf { .. }))
        {
            if let Some(number) = sf.sfnum {
                let port = format!("pf{index}sf{}", number.0);
                add(format!("SF {}", number.0), port, DeviceName::Auxiliary(sf.name), &sf.driver);
            }
        }
        // What is left has no function on this machine.
        functions.extend(representors.into_iter().map(|netdev| Function {
            name: clean(netdev.port_name.as_deref().unwrap_or_default()),
            device: None,
            driver: None,
            netdev: None,
            rdma: None,
            representor: Some(netdev_of(netdev)),
        }));
        let status = status.pfs.iter().find(|pf| pf.address == address.to_string()).cloned().unwrap_or_default();
        let uplink = view.netdevs.iter().find(|netdev| netdev.role == Role::Pf && netdev.parent == device);
        Self {
            address: address.to_string(),
            mode: status.mode,
            uplink: uplink.map(netdev_of),
            rdma: rdma_of(view, device),
            functions,
            problems: status.failures.iter().map(|text| clean(text)).collect(),
            not_enforced: status.not_enforced,
        }
    }
}

fn rdma_of(view: &view::Card, device: DeviceName) -> Option<String> {
    view.rdma.iter().find(|rdma| rdma.parent == device).map(|rdma| clean(&rdma.name))
}

impl Netdev {
    fn of(netdev: &view::Netdev, masters: &Masters) -> Self {
        // A card in memory has names only, and another netdev may have such a name.
        let is_here = netdev.peer.is_some() && !netdev.elsewhere;
        let master = masters.get(&netdev.name).filter(|_| is_here).map(|master| clean(master));
        Self { name: clean(&netdev.name), elsewhere: netdev.elsewhere, master }
    }

    /// Its name, and where it is.
    pub fn text(&self) -> String {
        match (&self.master, self.elsewhere) {
            (_, true) => format!("{} (in another namespace)", self.name),
            (Some(master), false) => format!("{} (on {master})", self.name),
            (None, false) => self.name.clone(),
        }
    }
}
