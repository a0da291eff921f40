//! The status of a card that a daemon keeps up, which `esw status` shows.

use std::path::PathBuf;

use eswitch::inspect::{PfView, RepState};
use eswitch::{Engine, Vport};
use lockdep::{Locked, Unlocked};
use serde::{Deserialize, Serialize};

/// The status of a card, with its daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardStatus {
    /// The card's name.
    pub name: String,
    /// `memory` or `linux`.
    pub kind: String,
    /// The number of the daemon's process.
    pub pid: u32,
    /// How long the card has been up, in seconds.
    pub uptime_seconds: u64,
    /// Its control socket.
    pub socket: PathBuf,
    /// The first file of the stored state.
    pub state: Option<PathBuf>,
    /// Every PF.
    pub pfs: Vec<PfStatus>,
}

/// The status of a PF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PfStatus {
    /// Its PCI address.
    pub address: String,
    /// The mode of its E-Switch; none if it is not bound to its driver.
    pub mode: Option<String>,
    /// The number of VFs that are enabled.
    pub vfs: u16,
    /// The number of SFs.
    pub sfs: usize,
    /// The number of netdev representors that are loaded.
    pub representors: usize,
    /// The number of RDMA representors that are loaded.
    pub rdma_representors: usize,
    /// What failed to load, and why.
    pub failures: Vec<String>,
    /// What is set and has no effect on traffic.
    #[serde(default)]
    pub not_enforced: Vec<String>,
}

impl PfStatus {
    /// Every PF of a card.
    pub fn all(engine: &Engine, cx: &mut Locked<'_, Unlocked>) -> Vec<Self> {
        let of = |address| match engine.inspect_pf(cx, address) {
            Ok(view) => Self::of(&view),
            Err(_) => Self { address: address.to_string(), ..Self::default() },
        };
        engine.addresses().into_iter().map(of).collect()
    }

    fn of(pf: &PfView) -> Self {
        let mut failures: Vec<String> = Vec::new();
        for port in &pf.ports {
            for state in &port.reps {
                if let RepState::Failed(failure) = state {
                    failures.push(format!("{}: {}", port.handle, failure.error));
                }
            }
        }
        for device in &pf.auxiliary {
            failures.extend(device.failed.iter().map(|error| format!("{}: {error}", device.name)));
        }
        failures.extend(pf.host_failure.clone());
        let trusted = pf.vfs.iter().filter(|vf| vf.info.trust);
        let [representors, rdma_representors] = pf.loaded;
        Self {
            address: pf.address.to_string(),
            mode: Some(pf.mode.to_string()),
            vfs: pf.num_vfs,
            sfs: pf.ports.iter().filter(|port| matches!(port.vport, Vport::Sf(_))).count(),
            representors,
            rdma_representors,
            failures,
            not_enforced: trusted.map(|vf| format!("trust of VF {}", vf.number)).collect(),
        }
    }
}
