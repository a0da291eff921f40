//! Makes a view from the state of an engine.
//!
//! The engine has no drivers for VFs. Whether a VF has auxiliary and RDMA devices follows from whether it is bound and
//! which modules are loaded. Everything else is state of the engine.

use std::collections::{BTreeMap, BTreeSet};

use eswitch::auxiliary::{AuxKind, AuxiliaryName};
use eswitch::card::Resource;
use eswitch::inspect::{AuxiliaryView, PfView, Snapshot};
use eswitch::module::{self, CORE, VFIO};
use eswitch::msix;
use eswitch::sf::SfState;
use eswitch::vf::{LinkState, VfView};
use eswitch::{CardConfig, Engine, MacAddr, OtherDriver, PciAddress, PfFunction, PfIndex, RepType, Vport, names};
use lockdep::{Locked, Unlocked};

use crate::card::KernelNetdevs;

use super::{
    Appearance, Auxiliary, Card, DeviceName, Function, Module, Netdev, Profile, Role, Sriov, SwitchId, VfInfo, rdma,
};

/// The view of a card as it is now. Each PF is inspected at one moment.
pub fn of(engine: &Engine, appearance: Appearance<'_>, cx: &mut Locked<'_, Unlocked>) -> Card {
    let functions = engine.functions(cx);
    let snapshot = engine.inspect(cx);
    build(engine.config(), appearance, &functions, &snapshot)
}

/// The view of a card in an inspected state.
pub(crate) fn build(
    config: &CardConfig,
    appearance: Appearance<'_>,
    functions: &[PfFunction],
    snapshot: &Snapshot,
) -> Card {
    let builder = ViewBuilder::new(config, appearance, functions, snapshot);
    Card {
        name: config.address.to_string(),
        profile: appearance.profile.clone(),
        switch_id: SwitchId(names::switch_id(config)),
        functions: builder.functions(),
        auxiliary: builder.auxiliary(),
        netdevs: builder.netdevs(),
        host_peers: builder.host_peers(),
        rdma: rdma::devices(&builder),
        rdma_exclusive: false,
        modules: builder.modules(),
    }
}

/// The number on the auxiliary bus of the devices of the first VF of PF 0. These numbers are computed from the VF, and
/// are larger than any that an SF gets, as SFs are numbered one after the other.
const FIRST_VF_ID: u32 = 1_000_000;

/// The distance between the numbers of one PF's VFs and those of the next PF's.
const VF_IDS: u32 = 100_000;

/// The state from which a view is made, indexed.
pub(super) struct ViewBuilder<'a> {
    pub config: &'a CardConfig,
    pub snapshot: &'a Snapshot,
    profile: &'a Profile,
    netdevs: Option<&'a dyn KernelNetdevs>,
    pci: &'a [PfFunction],
    /// Every SF.
    sfs: BTreeMap<(PfIndex, Vport), SfState>,
    /// Every resource on the card.
    made: BTreeSet<Resource>,
    /// The present names of netdevs that were renamed.
    renamed: BTreeMap<Resource, &'a str>,
    /// The registered auxiliary drivers, by the kind of device they serve.
    drivers: BTreeMap<AuxKind, &'static str>,
}

impl<'a> ViewBuilder<'a> {
    fn new(config: &'a CardConfig, appearance: Appearance<'a>, pci: &'a [PfFunction], snapshot: &'a Snapshot) -> Self {
        let ports = snapshot.pfs.iter().flat_map(|pf| pf.ports.iter().map(move |port| (pf.index, port)));
        let loaded = module::all().iter().filter(|module| snapshot.modules.contains(&module.name));
        Self {
            config,
            snapshot,
            profile: appearance.profile,
            netdevs: appearance.netdevs,
            pci,
            sfs: ports.filter_map(|(pf, port)| Some(((pf, port.vport), port.sf?))).collect(),
            made: snapshot.resources.iter().copied().collect(),
            renamed: snapshot.renamed.iter().map(|(resource, name)| (*resource, name.as_str())).collect(),
            drivers: loaded.flat_map(|module| module.drivers().map(|(name, kind)| (kind, name))).collect(),
        }
    }

    pub(super) fn is_made(&self, resource: &Resource) -> bool {
        self.made.contains(resource)
    }

    pub(super) fn sf(&self, pf: PfIndex, vport: Vport) -> Option<&SfState> {
        self.sfs.get(&(pf, vport))
    }

    /// The name of a netdev, if it exists.
    pub(super) fn netdev_name(&self, resource: &Resource) -> Option<String> {
        let given = self.given_name(resource)?;
        Some(self.renamed.get(resource).map_or(given, |name| (*name).to_owned()))
    }

    /// The name with which a netdev was made, if it exists.
    fn given_name(&self, resource: &Resource) -> Option<String> {
        if !self.is_made(resource) {
            return None;
        }
        let sfnum = resource.vport().and_then(|vport| self.sf(resource.pf(), vport)).map(|sf| sf.sfnum.0);
        names::netdev(self.config, resource, sfnum).map(|netdev| netdev.name)
    }

    /// The VFs of a PF that are functions on the PCI bus of this machine, with their addresses. On a DPU they are not:
    /// they are functions of the host.
    pub(super) fn vfs<'s>(&'s self, pf: &'s PfView) -> impl Iterator<Item = (PciAddress, &'s VfView)> {
        let vfs = pf.vfs.iter().filter(|vf| !self.config.dpu && !vf.info.removed);
        vfs.map(|vf| (self.config.vf_address(pf.index, vf.number), vf))
    }

    /// The number of a VF's auxiliary devices.
    pub(super) fn vf_id(pf: PfIndex, vf: u16) -> u32 {
        FIRST_VF_ID + u32::from(pf.0) * VF_IDS + u32::from(vf)
    }

    /// Whether the driver of a VF has made an auxiliary device for RDMA.
    pub(super) fn vf_has_rdma(vf: &VfView) -> bool {
        vf.info.bound && vf.roce && vf.info.parts.rdma
    }

    /// Whether a driver for RDMA devices is loaded.
    pub(super) fn rdma_is_driven(&self) -> bool {
        self.drivers.contains_key(&AuxKind::Rdma)
    }

    fn functions(&self) -> Vec<Function> {
        let mut functions = Vec::new();
        for pf in self.pci.iter().filter(|pf| !pf.pci.removed) {
            functions.push(Function {
                address: pf.address,
                vf_of: None,
                driver: self.driver(pf.bound, pf.pci.other_driver),
                driver_override: pf.pci.driver_override.clone(),
                msix: msix::FIXED,
                sriov: Some(self.sriov(pf)),
                netns: self.netns(pf.index, Vport::Uplink),
            });
        }
        for pf in &self.snapshot.pfs {
            for (address, vf) in self.vfs(pf) {
                functions.push(Function {
                    address,
                    vf_of: Some((pf.address, vf.number)),
                    driver: self.driver(vf.info.bound, vf.info.other_driver),
                    driver_override: vf.info.driver_override.clone(),
                    msix: vf.info.msix.unwrap_or_else(|| self.config.default_vf_msix(pf.num_vfs)),
                    sriov: None,
                    netns: self.netns(pf.index, Vport::Vf(vf.number)),
                });
            }
        }
        functions
    }

    /// The network namespace of the devlink instance of a function, if that is another than the card's.
    fn netns(&self, pf: PfIndex, vport: Vport) -> Option<u64> {
        let mut moved = self.snapshot.moved_instances.iter();
        moved.find(|moved| (moved.pf, moved.vport) == (pf, vport)).map(|moved| moved.netns)
    }

    /// The name of the driver of a function that is bound to the card's driver, or to another, or to none.
    fn driver(&self, bound: bool, other: Option<OtherDriver>) -> Option<String> {
        if bound { Some(self.profile.driver.clone()) } else { other.map(|other| other.name().to_owned()) }
    }

    fn sriov(&self, function: &PfFunction) -> Sriov {
        let config = self.config;
        if config.dpu {
            // The VFs belong to the PF of the host.
            let autoprobe = function.pci.autoprobe;
            return Sriov { total: 0, enabled: 0, autoprobe, total_msix: 0, offset: 0, vfs: Vec::new() };
        }
        let enabled = self.snapshot.pfs.iter().find(|pf| pf.index == function.index).map_or(0, |pf| pf.num_vfs);
        let address = |vf| config.vf_address(function.index, vf);
        Sriov {
            total: config.total_vfs,
            enabled,
            autoprobe: function.pci.autoprobe,
            total_msix: if function.bound { config.vf_msix } else { 0 },
            offset: config.vf_offset(function.index) as u16,
            vfs: (0..enabled).map(address).collect(),
        }
    }

    fn auxiliary(&self) -> Vec<Auxiliary> {
        let mut devices: Vec<Auxiliary> = Vec::new();
        for pf in &self.snapshot.pfs {
            let is_here = |vport: Vport| !self.config.is_external_sf(vport);
            let ports = pf.ports.iter().filter(|port| is_here(port.vport));
            devices.extend(ports.filter_map(|port| self.sf_device(pf, port.vport, port.sf.as_ref()?)));
            let parts = pf.auxiliary.iter().filter(|device| device.sf.is_none_or(is_here));
            devices.extend(parts.map(|device| self.auxiliary_device(pf, device)));
            for (address, vf) in self.vfs(pf).filter(|(_, vf)| vf.info.bound) {
                let kinds = [(AuxKind::Eth, vf.info.parts.eth), (AuxKind::Rdma, Self::vf_has_rdma(vf))];
                for kind in kinds.into_iter().filter_map(|(kind, has)| has.then_some(kind)) {
                    devices.push(Auxiliary {
                        name: AuxiliaryName::Part { kind, id: Self::vf_id(pf.index, vf.number) },
                        parent: DeviceName::Pci(address),
                        driver: self.drivers.get(&kind).map(|name| (*name).to_owned()),
                        sfnum: None,
                        netns: None,
                    });
                }
            }
        }
        devices.sort_by_key(|device| device.name);
        devices
    }

    /// The SF's own device, which exists while the SF is active. Its driver can be unbound.
    fn sf_device(&self, pf: &PfView, vport: Vport, sf: &SfState) -> Option<Auxiliary> {
        (sf.active || sf.attached).then(|| Auxiliary {
            name: sf_name(sf),
            parent: DeviceName::Pci(pf.address),
            driver: sf.attached.then(|| SF_DRIVER.to_owned()),
            sfnum: Some(sf.sfnum),
            netns: self.netns(pf.index, vport),
        })
    }

    fn auxiliary_device(&self, pf: &PfView, device: &AuxiliaryView) -> Auxiliary {
        let driver = self.drivers.get(&device.kind).filter(|_| device.bound);
        Auxiliary {
            name: device.name,
            parent: self.parent(pf, device.sf),
            driver: driver.map(|name| (*name).to_owned()),
            sfnum: None,
            netns: None,
        }
    }

    /// The parent device of a device of a PF or, if `sf` is given, of that SF.
    pub(super) fn parent(&self, pf: &PfView, sf: Option<Vport>) -> DeviceName {
        match sf.and_then(|vport| self.sf(pf.index, vport)) {
            Some(sf) => DeviceName::Auxiliary(sf_name(sf)),
            None => DeviceName::Pci(pf.address),
        }
    }

    fn netdevs(&self) -> Vec<Netdev> {
        let mut netdevs = Vec::new();
        for pf in &self.snapshot.pfs {
            netdevs.extend(self.pf_netdev(pf));
            netdevs.extend(pf.ports.iter().filter_map(|port| self.representor(pf, port.vport)));
            netdevs.extend(self.vfs(pf).filter_map(|(address, vf)| self.vf_netdev(pf, address, vf)));
            let sfs = pf.ports.iter().filter(|port| port.sf.is_some() && !self.config.is_external_sf(port.vport));
            netdevs.extend(sfs.filter_map(|port| self.sf_netdev(pf, port.vport)));
        }
        netdevs
    }

    /// The peers of the netdevs of a DPU's host.
    fn host_peers(&self) -> Vec<u32> {
        let is_hosts = |resource: &&Resource| match resource {
            Resource::Port(_, vport) => *vport == Vport::HostPf,
            Resource::VfNetdev(..) => self.config.dpu,
            Resource::SfNetdev(_, vport) => self.config.is_external_sf(*vport),
            _ => false,
        };
        let hosts = self.snapshot.resources.iter().filter(is_hosts);
        hosts.filter_map(|resource| self.netdevs?.peer(resource)).collect()
    }

    /// A netdev of a function, with the attributes that do not depend on the E-Switch.
    fn netdev(&self, resource: &Resource, role: Role, parent: DeviceName) -> Option<Netdev> {
        let bus_info = parent.to_string();
        Some(Netdev {
            name: self.netdev_name(resource)?,
            peer: self.netdevs.and_then(|netdevs| netdevs.peer(resource)),
            elsewhere: self.snapshot.elsewhere.contains(resource),
            role,
            parent,
            port_name: None,
            in_switch: false,
            // Each function has one port.
            dev_port: 0,
            vfs: Vec::new(),
            port: None,
            driver: self.profile.driver.clone(),
            bus_info,
            permanent: None,
        })
    }

    fn pf_netdev(&self, pf: &PfView) -> Option<Netdev> {
        let netdev = self.netdev(&Resource::PfNetdev(pf.index), Role::Pf, DeviceName::Pci(pf.address))?;
        let uplink = pf.ports.iter().find(|port| port.vport == Vport::Uplink);
        Some(Netdev {
            port_name: Some(names::phys_port_name(self.config, pf.index, Vport::Uplink, None)),
            in_switch: pf.mode.is_switchdev(),
            vfs: if self.config.dpu { Vec::new() } else { pf.vfs.iter().map(vf_info).collect() },
            port: uplink.map(|port| port.handle),
            permanent: Some(self.config.mac(pf.index, Vport::Uplink).0),
            ..netdev
        })
    }

    fn representor(&self, pf: &PfView, vport: Vport) -> Option<Netdev> {
        let resource = Resource::Representor(pf.index, vport, RepType::Eth);
        if vport == Vport::Uplink {
            return None;
        }
        let netdev = self.netdev(&resource, Role::Representor, DeviceName::Pci(pf.address))?;
        let sfnum = self.sf(pf.index, vport).map(|sf| sf.sfnum.0);
        let port = pf.ports.iter().find(|port| port.vport == vport);
        Some(Netdev {
            port_name: Some(names::phys_port_name(self.config, pf.index, vport, sfnum)),
            in_switch: true,
            port: port.map(|port| port.handle),
            driver: REP_DRIVER.to_owned(),
            ..netdev
        })
    }

    fn vf_netdev(&self, pf: &PfView, address: PciAddress, vf: &VfView) -> Option<Netdev> {
        let resource = Resource::VfNetdev(pf.index, Vport::Vf(vf.number));
        let netdev = self.netdev(&resource, Role::Vf, DeviceName::Pci(address))?;
        Some(Netdev { permanent: Some(vf.netdev_mac.0), ..netdev })
    }

    fn sf_netdev(&self, pf: &PfView, vport: Vport) -> Option<Netdev> {
        let netdev = self.netdev(&Resource::SfNetdev(pf.index, vport), Role::Sf, self.parent(pf, Some(vport)))?;
        Some(Netdev {
            permanent: self.sf(pf.index, vport).map(|sf| sf.mac.or_own(self.config.mac(pf.index, vport)).0),
            ..netdev
        })
    }

    fn modules(&self) -> Vec<Module> {
        let of = |module: &module::ModuleInfo| {
            let own: &[(&str, &str)] = match module.name {
                CORE => &[("pci", &self.profile.driver), ("auxiliary", SF_DRIVER)],
                VFIO => &[("pci", OtherDriver::VfioPci.name())],
                _ => &[],
            };
            let own = own.iter().map(|(bus, name)| ((*bus).to_owned(), (*name).to_owned()));
            let drivers = module.drivers().map(|(name, _)| ("auxiliary".to_owned(), name.to_owned()));
            Module {
                name: module.name.to_owned(),
                loaded: self.snapshot.modules.contains(&module.name),
                depends: module.depends.iter().map(|name| (*name).to_owned()).collect(),
                description: module.description.to_owned(),
                drivers: own.chain(drivers).collect(),
            }
        };
        module::all().iter().map(of).collect()
    }
}

/// The driver of the SFs' own devices.
const SF_DRIVER: &str = "mlx5_core.sf";

/// The driver that `ethtool -i` prints for representors.
const REP_DRIVER: &str = "mlx5e_rep";

/// The name of an SF's own device.
fn sf_name(sf: &SfState) -> AuxiliaryName {
    AuxiliaryName::Sf { id: sf.id }
}

/// The line about a VF in `ip link show`.
fn vf_info(vf: &VfView) -> VfInfo {
    let guid = guid(vf.netdev_mac);
    VfInfo {
        vf: vf.number.into(),
        mac: vf.mac.0,
        vlan: vf.info.vlan.id,
        qos: vf.info.vlan.qos,
        vlan_proto: vf.info.vlan.proto,
        min_tx_rate: vf.info.min_tx_rate,
        max_tx_rate: vf.info.max_tx_rate,
        spoofchk: vf.info.spoofchk,
        trust: vf.info.trust,
        link_state: match vf.info.link {
            LinkState::Auto => 0,
            LinkState::Enable => 1,
            LinkState::Disable => 2,
        },
        guids: (guid, guid),
    }
}

/// The GUID of a function with a MAC address: its EUI-64.
pub(super) fn guid(mac: MacAddr) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
