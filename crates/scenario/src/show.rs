//! Queries answered as devlink(8) prints them, and ports as a table.

use eswitch::inspect::{PfView, PortView, Snapshot};
use eswitch::{CardConfig, PciAddress, Vport};

/// `devlink dev show`.
pub(crate) fn devices(snapshot: &Snapshot) -> Vec<String> {
    snapshot.pfs.iter().map(device).collect()
}

/// `devlink dev show DEV`.
pub(crate) fn device(pf: &PfView) -> String {
    format!("pci/{}", pf.address)
}

/// `devlink dev eswitch show`.
pub(crate) fn eswitch(pf: &PfView) -> String {
    let encap = if pf.encap { "basic" } else { "none" };
    format!("pci/{}: mode {} inline-mode none encap-mode {encap}", pf.address, pf.mode)
}

/// The lines that `devlink port show` prints of a port. `pfnum` is the PF's place on the card, from 0.
pub fn describe_port(config: &CardConfig, pfnum: u8, port: &PortView) -> Vec<String> {
    let netdev = match &port.netdev {
        Some(name) => format!("type eth netdev {name}"),
        None => "type notset".to_owned(),
    };
    let (controller, external) = (u8::from(config.dpu), config.dpu);
    let attributes = match port.vport {
        Vport::Uplink => format!("port {pfnum}"),
        Vport::HostPf => format!("controller {controller} pfnum {pfnum} external {external}"),
        Vport::Vf(n) => format!("controller {controller} pfnum {pfnum} vfnum {n} external {external}"),
        Vport::Sf(place) => {
            let sfnum = port.sf.map_or(place.into(), |sf| sf.sfnum.0);
            let external = config.is_external_sf(port.vport);
            format!("controller {} pfnum {pfnum} sfnum {sfnum} external {external}", u8::from(external))
        }
    };
    let mut lines = vec![format!("{}: {netdev} flavour {} {attributes} splittable false", port.handle, port.flavour)];
    if port.vport != Vport::Uplink {
        let mut function = "    hw_addr ".to_owned();
        match port.hw_addr {
            Some(mac) => function.push_str(&mac.to_string()),
            None => function.push_str("00:00:00:00:00:00"),
        }
        if let Some(roce) = port.roce {
            function.push_str(if roce { " roce enable" } else { " roce disable" });
        }
        if let Some(sf) = port.sf {
            let state = if sf.active { "active" } else { "inactive" };
            let opstate = if sf.attached { "attached" } else { "detached" };
            function.push_str(&format!(" state {state} opstate {opstate}"));
        }
        lines.extend(["  function:".to_owned(), function]);
    }
    lines
}

/// The ports of a card as rows of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(pub Vec<[String; 7]>);

impl Ports {
    /// The headings of the columns.
    pub const COLUMNS: [&str; 7] = ["handle", "flavour", "netdev", "eth", "ib", "hw_addr", "state"];

    /// Every port of every PF that is bound to its driver.
    pub fn of(snapshot: &Snapshot) -> Self {
        let ports = snapshot.pfs.iter().flat_map(|pf| &pf.ports);
        Self(ports.map(row).collect())
    }
}

fn row(port: &PortView) -> [String; 7] {
    let [eth, ib] = &port.reps;
    [
        port.handle.to_string(),
        port.flavour.to_owned(),
        port.netdev.clone().unwrap_or_default(),
        eth.to_string(),
        match &port.ibdev {
            Some(device) => format!("{ib} {device}"),
            None => ib.to_string(),
        },
        port.hw_addr.map(|mac| mac.to_string()).unwrap_or_default(),
        match port.sf {
            Some(sf) => {
                let state = if sf.active { "active" } else { "inactive" };
                let opstate = if sf.attached { "attached" } else { "detached" };
                format!("{state} {opstate}")
            }
            None => String::new(),
        },
    ]
}

/// The PF at an address, if it is bound to its driver.
pub(crate) fn pf(snapshot: &Snapshot, address: PciAddress) -> Option<&PfView> {
    snapshot.pfs.iter().find(|pf| pf.address == address)
}
