//! The names of netdevs and RDMA devices, which are the same on every kind of card.
//!
//! Netdevs are named as systemd names those of mlx5. If it fits into the kernel's 15 characters, the name is that of
//! the path policy (`enp8s0f0np0`, `enp8s0f0v0`, `enp8s0f0npf0vf0` or, since v254, `enp8s0f0r0`). If it does not fit, the name is that of NVIDIA's
//! udev rules, which leave out the slot and the `n` (`en8f0pf0sf88`). If that does not fit either, the name is the port
//! name, for a PF with the number of the bus. In the last two cases the path name is the alternative name.

use crate::card::Resource;
use crate::config::{CardConfig, NamingScheme};
use crate::ids::{PfIndex, RepType, Vport};

/// The kernel's limit for a netdev's name, without the terminating zero.
pub const IFNAME_MAX: usize = 15;

/// The name of a netdev, and its alternative name if the name is not its path name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetdevName {
    /// At most 15 characters.
    pub name: String,
    /// `altname`: the path name.
    pub altname: Option<String>,
}

/// `phys_switch_id`: the switch id of a card, which is the same for all its PFs. The last bytes are its serial number.
pub fn switch_id(config: &CardConfig) -> [u8; 8] {
    let address = config.address;
    let [domain, of_domain] = address.domain.to_be_bytes();
    let [_, serial @ ..] = config.serial.to_be_bytes();
    let [a, b, c] = serial;
    [0xe5, domain, of_domain, address.bus, address.device, a, b, c]
}

/// `phys_port_name` of a vport's representor: `p0`, `pf0vf1`, `pf0sf88`, or on a DPU `c1pf0vf1`.
pub fn phys_port_name(config: &CardConfig, pf: PfIndex, vport: Vport, sfnum: Option<u32>) -> String {
    let controller = if config.dpu { "c1" } else { "" };
    let pf = pf.0;
    match vport {
        Vport::Uplink => format!("p{pf}"),
        Vport::HostPf => format!("{controller}pf{pf}"),
        Vport::Vf(n) => format!("{controller}pf{pf}vf{n}"),
        Vport::Sf(place) => {
            let controller = if config.is_external_sf(vport) { controller } else { "" };
            format!("{controller}pf{pf}sf{}", sfnum.unwrap_or(place.into()))
        }
    }
}

/// The name of a resource's netdev, or `None` if the resource has none.
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
            // Both kinds may have the same number, and the host is not another machine here.
            let h = if config.is_external_sf(vport) { "h" } else { "" };
            fitting([format!("{path}{h}s{n}"), format!("{short}{h}s{n}"), format!("pf{}{h}s{n}", pf.0)])
        }
        // `get_port_specifier` takes `pf0vf1` for a VF's, and no name that begins with a controller.
        Resource::Representor(pf, Vport::Vf(n), RepType::Eth)
            if config.naming_scheme == NamingScheme::V254 && !config.dpu =>
        {
            fitting([format!("{path}r{n}"), format!("{short}r{n}"), format!("pf{}r{n}", pf.0)])
        }
        Resource::Representor(pf, vport, RepType::Eth) => {
            let port = phys_port_name(config, pf, vport, sfnum);
            fitting([format!("{path}n{port}"), format!("{short}{port}"), port])
        }
        _ => return None,
    };
    Some(name)
}

/// The first candidate that fits into the kernel's limit. If that is not the first of all, the first of all is the
/// alternative name. If none fits, the last is cut.
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

/// The name of a resource's RDMA device, or of its port of one (`DEVICE/PORT`). `None` if the resource has neither.
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

/// The name of a VF's own RDMA device. `vf` counts from 0.
pub fn vf_ib_device(config: &CardConfig, pf: PfIndex, vf: u16) -> String {
    let address = config.pf_address(pf);
    format!("rocep{}s{}f{}v{vf}", address.bus, address.device, address.function)
}

/// The port number of a vport on the PF's RDMA device in switchdev mode: 1 for the uplink, then the host PF of a DPU,
/// then the VFs in order, then the SFs.
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
    fn names_are_those_of_systemd_if_they_fit() {
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
    fn representors_of_vfs_have_other_names_since_v254() {
        let rep = |vport| Resource::Representor(PfIndex(0), vport, RepType::Eth);
        let v254 = CardConfig { naming_scheme: NamingScheme::V254, ..CardConfig::default() };
        let name = |config: &CardConfig, resource| netdev(config, &resource, Some(88)).unwrap().name;
        assert_eq!(name(&v254, rep(Vport::Vf(10))), "enp8s0f0r10");
        assert_eq!(name(&v254, rep(Vport::Sf(0))), "en8f0pf0sf88");
        assert_eq!(name(&v254, rep(Vport::Uplink)), "enp8s0f0np0");
        let dpu = CardConfig { dpu: true, ..v254 };
        assert_eq!(name(&dpu, rep(Vport::Vf(10))), "en8f0c1pf0vf10");
    }

    #[test]
    fn no_name_is_too_long_or_used_twice() {
        let dpu = CardConfig {
            address: "ffff:ff:1f.0".parse().unwrap(),
            total_vfs: 32_000,
            dpu: true,
            ..CardConfig::default()
        };
        let new = CardConfig { dpu: false, naming_scheme: NamingScheme::V254, ..dpu.clone() };
        [dpu, new].iter().for_each(no_name_of_it_is_too_long_or_used_twice);
    }

    fn no_name_of_it_is_too_long_or_used_twice(config: &CardConfig) {
        let mut seen = std::collections::HashSet::new();
        for pf in (0..4).map(PfIndex) {
            let vfs = (0..32_000).map(|n| Resource::Representor(pf, Vport::Vf(n), RepType::Eth));
            for resource in vfs.chain((0..32_000).map(|n| Resource::VfNetdev(pf, Vport::Vf(n)))) {
                let name = netdev(config, &resource, None).unwrap().name;
                assert!(name.len() <= IFNAME_MAX, "{name}");
                assert!(seen.insert(name.clone()), "{name} twice");
            }
        }
    }
}
