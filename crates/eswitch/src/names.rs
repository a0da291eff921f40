//! What netdevs and RDMA devices are called, on every card alike.
//!
//! Netdevs are named as systemd names mlx5's: the path policy where the name fits into the kernel's 15
//! characters (`enp8s0f0np0`, `enp8s0f0v0`, `enp8s0f0npf0vf0`); where it does not, the name NVIDIA's
//! udev rules give, which leave the slot and the `n` out (`en8f0pf0sf88`); where even that does not,
//! the port name with the bus number. The full path name is then the alternative name.

use crate::card::Resource;
use crate::config::CardConfig;
use crate::ids::{PfIndex, RepType, Vport};

/// The kernel's limit for a netdev's name, without the terminating zero.
pub const IFNAME_MAX: usize = 15;

/// A netdev's name and, if that is not its full one, the full one as alternative name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetdevName {
    /// At most 15 characters.
    pub name: String,
    /// `altname`.
    pub altname: Option<String>,
}

/// The switch id of a card: the same for all its PFs.
pub fn switch_id(config: &CardConfig) -> [u8; 8] {
    let address = config.address;
    let [domain, of_domain] = address.domain.to_be_bytes();
    [0xe5, domain, of_domain, address.bus, address.device, 0, 0, 0]
}

/// `phys_port_name` of a vport's representor: `p0`, `pf0vf1`, `pf0sf88`, `c1pf0vf1` on a DPU.
pub fn phys_port_name(config: &CardConfig, pf: PfIndex, vport: Vport, sfnum: Option<u32>) -> String {
    let controller = if config.dpu { "c1" } else { "" };
    let pf = pf.0;
    match vport {
        Vport::Uplink => format!("p{pf}"),
        Vport::HostPf => format!("{controller}pf{pf}"),
        Vport::Vf(n) => format!("{controller}pf{pf}vf{n}"),
        Vport::Sf(place) => format!("pf{pf}sf{}", sfnum.unwrap_or(place.into())),
    }
}

/// The name of the netdev that a resource is, if it is one.
pub fn netdev(config: &CardConfig, resource: &Resource, sfnum: Option<u32>) -> Option<NetdevName> {
    let address = config.pf_address(resource.pf());
    let domain = if address.domain == 0 { String::new() } else { format!("P{}", address.domain) };
    let path = format!("en{domain}p{}s{}f{}", address.bus, address.device, address.function);
    let short = format!("en{}f{}", address.bus, address.function);
    let name = match *resource {
        Resource::PfNetdev(pf) | Resource::Representor(pf, Vport::Uplink, RepType::Eth) => {
            let port = phys_port_name(config, pf, Vport::Uplink, None);
            fitting([format!("{path}n{port}"), format!("{short}{port}"), format!("{port}b{}", address.bus)])
        }
        Resource::VfNetdev(pf, Vport::Vf(n)) => {
            fitting([format!("{path}v{n}"), format!("{short}v{n}"), format!("pf{}v{n}", pf.0)])
        }
        Resource::Port(_, Vport::HostPf) => {
            fitting([format!("{path}h"), format!("{short}h"), format!("h{}f{}", address.bus, address.function)])
        }
        Resource::SfNetdev(pf, vport) => {
            let n = sfnum.unwrap_or(vport.number().into());
            fitting([format!("{path}s{n}"), format!("{short}s{n}"), format!("pf{}s{n}", pf.0)])
        }
        Resource::Representor(pf, vport, RepType::Eth) => {
            let port = phys_port_name(config, pf, vport, sfnum);
            fitting([format!("{path}n{port}"), format!("{short}{port}"), port])
        }
        _ => return None,
    };
    Some(name)
}

/// The first that fits; if that is not the first, the first is the alternative name.
fn fitting(candidates: [String; 3]) -> NetdevName {
    let fits = candidates.iter().position(|c| c.len() <= IFNAME_MAX);
    let [full, ..] = &candidates;
    match fits {
        Some(0) => NetdevName { name: full.clone(), altname: None },
        Some(n) => NetdevName { name: candidates[n].clone(), altname: Some(full.clone()) },
        None => {
            let mut name = candidates[2].clone();
            name.truncate(IFNAME_MAX);
            NetdevName { name, altname: Some(full.clone()) }
        }
    }
}

/// The name of the RDMA device, or of the port of one, that a resource is, if it is one.
pub fn ib_device(config: &CardConfig, resource: &Resource, sfnum: Option<u32>) -> Option<String> {
    let address = config.pf_address(resource.pf());
    let path = format!("rocep{}s{}f{}", address.bus, address.device, address.function);
    match *resource {
        Resource::PfIbDevice(_) | Resource::Representor(_, Vport::Uplink, RepType::Ib) => Some(path),
        Resource::SfIbDevice(_, vport) => Some(format!("{path}s{}", sfnum.unwrap_or(vport.number().into()))),
        Resource::Representor(_, vport, RepType::Ib) => Some(format!("{path}/{}", ib_port(config, vport))),
        _ => None,
    }
}

/// The name of a VF's own RDMA device.
pub fn vf_ib_device(config: &CardConfig, pf: PfIndex, vf: u16) -> String {
    let address = config.pf_address(pf);
    format!("rocep{}s{}f{}v{vf}", address.bus, address.device, address.function)
}

/// The port of a PF's RDMA device in switchdev mode that a vport is: 1 for the uplink, then a DPU's host
/// PF, then VFs in order, then SFs.
pub fn ib_port(config: &CardConfig, vport: Vport) -> u32 {
    let host = u32::from(config.dpu);
    match vport {
        Vport::Uplink => 1,
        Vport::HostPf => 2,
        Vport::Vf(n) => 2 + host + u32::from(n),
        Vport::Sf(place) => 2 + host + u32::from(config.total_vfs) + u32::from(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(resource: Resource, sfnum: Option<u32>) -> (String, Option<String>) {
        let name = netdev(&CardConfig::default(), &resource, sfnum).unwrap();
        (name.name, name.altname)
    }

    #[test]
    fn names_are_systemds_where_they_fit() {
        let pf = PfIndex(0);
        let rep = |vport| Resource::Representor(pf, vport, RepType::Eth);
        for (resource, sfnum, expected, alt) in [
            (Resource::PfNetdev(pf), None, "enp8s0f0np0", None),
            (Resource::PfNetdev(PfIndex(1)), None, "enp8s0f1np1", None),
            (Resource::VfNetdev(pf, Vport::Vf(0)), None, "enp8s0f0v0", None),
            (Resource::VfNetdev(pf, Vport::Vf(12_345)), None, "enp8s0f0v12345", None),
            (rep(Vport::Vf(0)), None, "enp8s0f0npf0vf0", None),
            (rep(Vport::Vf(10)), None, "en8f0pf0vf10", Some("enp8s0f0npf0vf10")),
            (rep(Vport::Sf(0)), Some(88), "en8f0pf0sf88", Some("enp8s0f0npf0sf88")),
            (rep(Vport::Vf(31_999)), None, "en8f0pf0vf31999", Some("enp8s0f0npf0vf31999")),
            (Resource::SfNetdev(pf, Vport::Sf(0)), Some(88), "enp8s0f0s88", None),
        ] {
            assert_eq!(name(resource, sfnum), (expected.to_owned(), alt.map(str::to_owned)), "{resource}");
        }
    }

    #[test]
    fn no_name_is_too_long_and_none_is_given_twice() {
        let config = CardConfig {
            address: "ffff:ff:1f.0".parse().unwrap(),
            total_vfs: 32_000,
            dpu: true,
            ..CardConfig::default()
        };
        let mut seen = std::collections::HashSet::new();
        for pf in (0..4).map(PfIndex) {
            let vfs = (0..32_000).map(|n| Resource::Representor(pf, Vport::Vf(n), RepType::Eth));
            for resource in vfs.chain((0..32_000).map(|n| Resource::VfNetdev(pf, Vport::Vf(n)))) {
                let name = netdev(&config, &resource, None).unwrap().name;
                assert!(name.len() <= IFNAME_MAX, "{name}");
                assert!(seen.insert(name.clone()), "{name} twice");
            }
        }
    }
}
