//! VFs as PCI functions of their own.

use crate::common::{Bench, addr, fail, resources, story};
use card_memory::MemoryCard;
use eswitch::card::{Resource, ResourceKind};
use eswitch::vf::{ETH_P_8021AD, LinkState, VfSetting, VfView, VfVlan};
use eswitch::{CardConfig, Errno, Error, FunctionChange, MacAddr, Mode, OtherDriver, PciAddress, PfIndex, Vport};
use lockdep::{Locked, Unlocked};

fn vfs(vfs: u16) -> CardConfig {
    CardConfig { vfs, ..CardConfig::default() }
}

fn address(n: u16) -> PciAddress {
    CardConfig::default().vf_address(PfIndex(0), n)
}

/// The VFs that have a netdev.
fn netdevs(card: &MemoryCard, cx: &mut Locked<'_, Unlocked>) -> Vec<Vport> {
    let of_vf = |resource: &Resource| matches!(resource, Resource::VfNetdev(..)).then(|| resource.vport());
    resources(card, cx).iter().filter_map(of_vf).flatten().collect()
}

fn bound(bench: &Bench, cx: &mut Locked<'_, Unlocked>) -> Vec<bool> {
    bench.pf0(cx).vfs.iter().map(|vf| vf.info.bound).collect()
}

fn vf0(bench: &Bench, cx: &mut Locked<'_, Unlocked>) -> VfView {
    bench.pf0(cx).vfs.remove(0)
}

#[test]
fn unbinding_removes_the_netdev_and_leaves_port_and_representor() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { mode: Mode::Switchdev, ..vfs(2) });
        let engine = &bench.engine;
        engine.unbind(cx, address(0)).unwrap();
        assert_eq!(netdevs(&bench.card, cx), [Vport::Vf(1)]);
        assert_eq!(bench.loaded(cx, eswitch::RepType::Eth), 3);
        assert_eq!(engine.unbind(cx, address(0)).unwrap_err().errno(), Errno::ENODEV);
        assert_eq!(engine.bind(cx, address(1)), Err(Error::AlreadyBound(address(1))));
        assert_eq!(engine.bind(cx, address(2)), Err(Error::NoFunction(address(2))), "it is not enabled");
        engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        engine.reload(cx, addr()).unwrap();
        assert_eq!(bound(&bench, cx), [false, true], "none of these commands binds it");
        engine.bind(cx, address(0)).unwrap();
        assert_eq!(netdevs(&bench.card, cx), [Vport::Vf(0), Vport::Vf(1)]);
        engine.unbind(cx, address(1)).unwrap();
        engine.set_num_vfs(cx, addr(), 0).unwrap();
        engine.set_num_vfs(cx, addr(), 2).unwrap();
        assert_eq!(bound(&bench, cx), [true, true]);
        bench.end(cx);
    });
}

#[test]
fn a_vf_whose_netdev_cannot_be_made_stays_unbound() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(1));
        let engine = &bench.engine;
        engine.unbind(cx, address(0)).unwrap();
        fail(&bench.plan, cx, ResourceKind::Netdev, Some(Vport::Vf(0)), 2);
        assert_eq!(engine.bind(cx, address(0)).unwrap_err().errno(), Errno::EIO);
        assert_eq!(bound(&bench, cx), [false]);
        engine.set_num_vfs(cx, addr(), 0).unwrap();
        assert_eq!(engine.set_num_vfs(cx, addr(), 1).unwrap_err().errno(), Errno::EIO);
        assert_eq!(netdevs(&bench.card, cx), []);
        engine.set_num_vfs(cx, addr(), 1).unwrap();
        bench.end(cx);
    });
}

#[test]
fn a_function_is_bound_only_to_the_driver_in_its_override() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(0));
        let engine = &bench.engine;
        engine.set_autoprobe(cx, addr(), false).unwrap();
        engine.set_num_vfs(cx, addr(), 2).unwrap();
        assert_eq!(bound(&bench, cx), [false, false]);
        assert_eq!(engine.bind(cx, address(0)), Err(Error::NoAutoprobe(address(0))), "as with the kernel");
        engine.probe(cx, address(0)).unwrap();
        engine.set_driver_override(cx, address(0), Some("mlx5_core".to_owned())).unwrap();
        engine.probe(cx, address(0)).unwrap();
        assert_eq!(bound(&bench, cx), [true, false]);
        engine.unbind(cx, addr()).unwrap();
        assert_eq!(engine.bind(cx, address(0)), Err(Error::NoFunction(address(0))), "it went with its PF");
        engine.set_driver_override(cx, addr(), Some("vfio-pci".to_owned())).unwrap();
        assert_eq!(engine.bind(cx, addr()).unwrap_err().errno(), Errno::ENODEV);
        engine.probe(cx, addr()).unwrap();
        assert!(engine.inspect(cx).pfs.is_empty());
        engine.set_driver_override(cx, addr(), None).unwrap();
        engine.probe(cx, addr()).unwrap();
        engine.set_num_vfs(cx, addr(), 1).unwrap();
        assert_eq!(bound(&bench, cx), [false], "the setting of the bus outlasts the driver");
        bench.end(cx);
    });
}

/// The other driver of each VF.
fn others(bench: &Bench, cx: &mut Locked<'_, Unlocked>) -> Vec<Option<OtherDriver>> {
    bench.pf0(cx).vfs.iter().map(|vf| vf.info.other_driver).collect()
}

const VFIO: Option<OtherDriver> = Some(OtherDriver::VfioPci);

#[test]
fn a_vf_that_is_bound_to_vfio_pci_has_no_netdev_and_keeps_its_representor() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { mode: Mode::Switchdev, ..vfs(2) });
        let engine = &bench.engine;
        let vfio = || Some("vfio-pci".to_owned());
        assert_eq!(engine.bind_vfio(cx, address(0)), Err(Error::NoVfio(address(0))));
        engine.load_module(cx, "vfio-pci").unwrap();
        assert_eq!(engine.bind_vfio(cx, address(0)), Err(Error::NotForVfio(address(0))), "it knows no ids");
        engine.set_driver_override(cx, address(0), vfio()).unwrap();
        assert_eq!(engine.bind_vfio(cx, address(0)), Err(Error::AlreadyBound(address(0))));
        engine.probe(cx, address(0)).unwrap();
        assert_eq!(bound(&bench, cx), [true, true], "a function keeps the driver that it has");

        engine.unbind(cx, address(0)).unwrap();
        engine.probe(cx, address(0)).unwrap();
        assert_eq!((others(&bench, cx), bound(&bench, cx)), (vec![VFIO, None], vec![false, true]));
        assert_eq!(netdevs(&bench.card, cx), [Vport::Vf(1)]);
        assert_eq!(bench.loaded(cx, eswitch::RepType::Eth), 3);
        engine.set_driver_override(cx, address(0), None).unwrap();
        assert_eq!(engine.bind(cx, address(0)), Err(Error::AlreadyBound(address(0))));
        assert_eq!(engine.unbind(cx, address(0)), Err(Error::NotBound(address(0))), "not from the card's driver");
        assert_eq!(engine.unbind_vfio(cx, address(1)), Err(Error::NotBound(address(1))));
        engine.reset(cx, address(0)).unwrap();
        engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        engine.reload(cx, addr()).unwrap();
        assert_eq!(others(&bench, cx), [VFIO, None], "none of these commands unbinds it");

        engine.unbind_vfio(cx, address(0)).unwrap();
        engine.probe(cx, address(0)).unwrap();
        assert_eq!((others(&bench, cx), bound(&bench, cx)), (vec![None, None], vec![true, true]));
        assert_eq!(netdevs(&bench.card, cx), [Vport::Vf(0), Vport::Vf(1)]);
        bench.end(cx);
    });
}

#[test]
fn the_module_of_vfio_pci_binds_what_waits_for_it_and_unbinds_it_when_it_goes() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(3));
        let engine = &bench.engine;
        for vf in [address(0), address(1)] {
            engine.set_driver_override(cx, vf, Some("vfio-pci".to_owned())).unwrap();
        }
        engine.unbind(cx, address(0)).unwrap();
        engine.unbind(cx, address(2)).unwrap();
        engine.probe(cx, address(0)).unwrap();
        assert_eq!(others(&bench, cx), [None, None, None], "the module is not loaded");
        engine.insert_module(cx, "vfio_pci").unwrap();
        assert_eq!(others(&bench, cx), [VFIO, None, None]);
        assert_eq!(bound(&bench, cx), [false, true, false]);
        engine.unload_module(cx, "vfio_pci").unwrap();
        assert_eq!(others(&bench, cx), [None, None, None]);
        engine.load_module(cx, "vfio_pci").unwrap();
        assert_eq!(others(&bench, cx), [VFIO, None, None]);

        // A function that is removed from the bus loses its driver and its override.
        engine.remove(cx, address(0)).unwrap();
        assert_eq!(engine.bind_vfio(cx, address(0)), Err(Error::NoFunction(address(0))));
        engine.rescan(cx);
        assert_eq!((others(&bench, cx), bound(&bench, cx)), (vec![None, None, None], vec![true, true, false]));
        bench.end(cx);
    });
}

#[test]
fn the_vfs_of_a_pf_share_its_interrupt_vectors() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { vf_msix: 100, ..vfs(3) });
        let engine = &bench.engine;
        let vectors = |cx: &mut Locked<'_, Unlocked>| -> Vec<_> {
            let vfs = bench.pf0(cx).vfs;
            vfs.iter().map(|vf| vf.info.msix.unwrap_or(engine.config().default_vf_msix(3))).collect()
        };
        assert_eq!(vectors(cx), [33, 33, 33]);
        assert_eq!(engine.set_vf_msix(cx, address(0), 8), Err(Error::MsixInUse(address(0))));
        assert_eq!(engine.set_vf_msix(cx, address(3), 8), Err(Error::NoFunction(address(3))));
        assert_eq!(engine.set_vf_msix(cx, addr(), 8), Err(Error::NoFunction(addr())), "a PF");
        for vf in 0..3 {
            engine.unbind(cx, address(vf)).unwrap();
        }
        for (vf, count, errno) in [
            (0, 1, Some(Errno::EINVAL)),
            (0, 129, Some(Errno::EOVERFLOW)),
            (0, 65_536 + 8, Some(Errno::EOVERFLOW)),
            (0, 35, Some(Errno::EAGAIN)),
            (0, 34, None),
            (1, 8, None),
            (0, 59, None),
            (0, 60, Some(Errno::EAGAIN)),
            (1, 0, Some(Errno::EAGAIN)),
            (2, 33, None),
        ] {
            let set = engine.set_vf_msix(cx, address(vf), count).map_err(|error| error.errno());
            assert_eq!(set.err(), errno, "{count} for VF {vf}");
        }
        assert_eq!(vectors(cx), [59, 8, 33]);
        engine.bind(cx, address(0)).unwrap();
        engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        assert_eq!(vectors(cx), [59, 8, 33]);
        engine.reload(cx, addr()).unwrap();
        assert_eq!(vectors(cx), [33, 33, 33], "the driver distributes them again");
        bench.end(cx);

        let bench = Bench::start(cx, domain, vfs(1));
        bench.engine.unbind(cx, address(0)).unwrap();
        assert_eq!(bench.engine.set_vf_msix(cx, address(0), 8).unwrap_err().errno(), Errno::EOPNOTSUPP);
        bench.end(cx);
    });
}

#[test]
fn a_pf_that_is_bound_to_vfio_pci_is_none_of_the_cards_drivers() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(1));
        let engine = &bench.engine;
        let other = |cx: &mut Locked<'_, Unlocked>| engine.functions(cx)[0].pci.other_driver;
        engine.load_module(cx, "vfio_pci").unwrap();
        engine.set_driver_override(cx, addr(), Some("vfio-pci".to_owned())).unwrap();
        assert_eq!(engine.bind_vfio(cx, addr()), Err(Error::AlreadyBound(addr())));
        engine.unbind(cx, addr()).unwrap();
        engine.probe(cx, addr()).unwrap();
        assert_eq!(other(cx), VFIO);
        assert!(engine.inspect(cx).pfs.is_empty());
        engine.set_driver_override(cx, addr(), None).unwrap();
        assert_eq!(engine.bind(cx, addr()), Err(Error::AlreadyBound(addr())));
        engine.load_module(cx, "mlx5_core").unwrap();
        engine.rescan(cx);
        assert_eq!(other(cx), VFIO);
        engine.unbind_vfio(cx, addr()).unwrap();
        assert_eq!(engine.unbind_vfio(cx, addr()), Err(Error::NotBound(addr())));
        engine.probe(cx, addr()).unwrap();
        assert_eq!((other(cx), bench.pf0(cx).num_vfs), (None, 0));
        bench.end(cx);
    });
}

#[test]
fn a_function_that_was_removed_from_the_bus_is_added_again_by_a_rescan() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(2));
        let engine = &bench.engine;
        engine.remove(cx, address(1)).unwrap();
        assert_eq!(netdevs(&bench.card, cx), [Vport::Vf(0)]);
        for refused in [engine.bind(cx, address(1)), engine.remove(cx, address(1)), engine.reset(cx, address(1))] {
            assert_eq!(refused, Err(Error::NoFunction(address(1))));
        }
        engine.rescan(cx);
        assert_eq!(bound(&bench, cx), [true, true]);
        engine.reset(cx, address(0)).unwrap();
        engine.remove(cx, addr()).unwrap();
        assert_eq!(resources(&bench.card, cx), []);
        assert_eq!(engine.bind(cx, addr()), Err(Error::NoFunction(addr())));
        assert_eq!(engine.set_autoprobe(cx, addr(), true), Err(Error::NoFunction(addr())));
        engine.rescan(cx);
        assert_eq!(bench.pf0(cx).num_vfs, 0);
        engine.reset(cx, addr()).unwrap();
        engine.unbind(cx, addr()).unwrap();
        engine.reset(cx, addr()).unwrap();
        assert!(engine.inspect(cx).pfs.is_empty(), "there is nothing to reset");
        bench.end(cx);
    });
}

#[test]
fn settings_of_ip_link_are_kept_until_the_vfs_are_disabled() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(2));
        let engine = &bench.engine;
        let mac = "00:11:22:33:44:55".parse().unwrap();
        let vlan = VfVlan { id: 100, qos: 3, ..VfVlan::default() };
        let rates = VfSetting::Rate { min: Some(10), max: Some(100) };
        engine.unbind(cx, address(0)).unwrap();
        let settings = [VfSetting::Mac(mac), VfSetting::Vlan(vlan), rates, VfSetting::Trust(true)];
        for setting in settings.into_iter().chain([VfSetting::Spoofchk(true), VfSetting::Link(LinkState::Disable)]) {
            engine.set_vf(cx, addr(), 0, setting).unwrap();
        }
        engine.set_vf(cx, addr(), 0, VfSetting::Rate { min: None, max: Some(50) }).unwrap();
        engine.bind(cx, address(0)).unwrap();
        assert_eq!(bench.card.mac(cx, &Resource::VfNetdev(PfIndex(0), Vport::Vf(0))), Some(mac));
        engine.reload(cx, addr()).unwrap();
        let vf = vf0(&bench, cx);
        // The link state alone is as at first after a reload (`esw_legacy_enable`).
        assert_eq!((vf.mac, vf.info.vlan, vf.info.link), (mac, vlan, LinkState::Auto));
        assert_eq!((vf.info.min_tx_rate, vf.info.max_tx_rate), (10, 50));
        assert!(vf.info.trust && vf.info.spoofchk);
        engine.set_num_vfs(cx, addr(), 0).unwrap();
        engine.set_num_vfs(cx, addr(), 1).unwrap();
        let vf = vf0(&bench, cx);
        assert_eq!((vf.info.vlan, vf.info.max_tx_rate, vf.info.trust), (VfVlan::default(), 0, false));
        assert_ne!(vf.mac, mac);
        bench.end(cx);
    });
}

#[test]
fn invalid_settings_of_ip_link_are_refused() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(1));
        let engine = &bench.engine;
        let errno =
            |cx: &mut Locked<'_, Unlocked>, vf, setting| engine.set_vf(cx, addr(), vf, setting).map_err(|e| e.errno());
        let vlan = |id, proto| VfSetting::Vlan(VfVlan { id, qos: 0, proto });
        assert_eq!(errno(cx, 1, VfSetting::Trust(true)), Err(Errno::EINVAL));
        assert_eq!(errno(cx, 0, vlan(4096, 0x8100)), Err(Errno::EINVAL));
        assert_eq!(errno(cx, 0, vlan(5, ETH_P_8021AD)), Err(Errno::EPROTONOSUPPORT));
        assert_eq!(errno(cx, 0, vlan(4096, 0x0081)), Err(Errno::EPROTONOSUPPORT), "the protocol is looked at first");
        let with_qos = |id, qos| VfSetting::Vlan(VfVlan { id, qos, ..VfVlan::default() });
        assert_eq!(errno(cx, 0, with_qos(5, 8)), Err(Errno::EINVAL));
        assert_eq!(errno(cx, 0, VfSetting::Rate { min: Some(2), max: Some(1) }), Err(Errno::EINVAL));
        engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        for setting in
            [vlan(5, 0x8100), VfSetting::Trust(true), VfSetting::Spoofchk(true), VfSetting::Link(LinkState::Enable)]
        {
            assert_eq!(errno(cx, 0, setting), Err(Errno::EOPNOTSUPP), "{setting:?}");
        }
        assert_eq!(errno(cx, 0, vlan(5000, 0x8100)), Err(Errno::EOPNOTSUPP), "the mode is looked at before the range");
        assert_eq!(errno(cx, 0, vlan(0, ETH_P_8021AD)), Err(Errno::EPROTONOSUPPORT), "and after the protocol");
        for none in [with_qos(0, 0), with_qos(0, 3), with_qos(0, 9)] {
            errno(cx, 0, none).unwrap();
            assert_eq!(vf0(&bench, cx).info.vlan, VfVlan::default(), "it changes nothing");
        }
        errno(cx, 0, VfSetting::Rate { min: None, max: Some(1) }).unwrap();
        engine.unbind(cx, addr()).unwrap();
        assert_eq!(errno(cx, 0, VfSetting::Trust(true)), Err(Errno::ENODEV));
        bench.end(cx);
    });
}

const SET: MacAddr = MacAddr([0, 0x11, 0x22, 0x33, 0x44, 0x55]);

/// Both commands that set the address of VF 0.
fn set_mac(bench: &Bench, cx: &mut Locked<'_, Unlocked>, by_devlink: bool, mac: MacAddr) {
    let engine = &bench.engine;
    let port = bench.pf0(cx).ports.iter().find(|port| port.vport == Vport::Vf(0)).map(|port| port.handle);
    match port.filter(|_| by_devlink) {
        Some(port) => {
            let change = FunctionChange { hw_addr: Some(mac), ..FunctionChange::default() };
            engine.set_function(cx, port, change).unwrap();
        }
        None => engine.set_vf(cx, addr(), 0, VfSetting::Mac(mac)).unwrap(),
    }
}

#[test]
fn the_address_of_a_vf_is_zero_at_first_and_its_driver_takes_it_when_it_is_bound() {
    let modes = [(Mode::Legacy, false), (Mode::Switchdev, false), (Mode::Switchdev, true)];
    for (mode, by_devlink) in modes {
        story(|cx, domain| {
            let bench = Bench::start(cx, domain, CardConfig { mode, ..vfs(1) });
            let engine = &bench.engine;
            let netdev = Resource::VfNetdev(PfIndex(0), Vport::Vf(0));
            let own = CardConfig::default().mac(PfIndex(0), Vport::Vf(0));
            // What is set while the VF is bound; what is shown then; what its netdev has then, and when it is bound anew.
            for (set, before, after) in [(None, own, own), (Some(SET), own, SET), (Some(MacAddr::ZERO), SET, own)] {
                if let Some(mac) = set {
                    set_mac(&bench, cx, by_devlink, mac);
                }
                let shown = set.unwrap_or(MacAddr::ZERO);
                let vf = vf0(&bench, cx);
                assert_eq!((vf.mac, vf.netdev_mac), (shown, before), "{mode:?}");
                let snapshot = engine.inspect(cx);
                let port = snapshot.pfs[0].ports.iter().find(|port| port.vport == Vport::Vf(0));
                assert!(port.is_none_or(|port| port.hw_addr == Some(shown)), "devlink shows the same");
                assert_eq!(bench.card.mac(cx, &netdev), Some(before), "{mode:?}");
                engine.unbind(cx, address(0)).unwrap();
                engine.bind(cx, address(0)).unwrap();
                assert_eq!(bench.card.mac(cx, &netdev), Some(after), "{mode:?}");
                assert_eq!((vf0(&bench, cx).mac, vf0(&bench, cx).netdev_mac), (shown, after));
            }
            bench.end(cx);
        });
    }
}

#[test]
fn a_vf_without_a_link_has_none_until_the_mode_changes() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(1));
        let engine = &bench.engine;
        let port = Resource::Port(PfIndex(0), Vport::Vf(0));
        for (link, up) in [
            (LinkState::Auto, true),
            (LinkState::Disable, false),
            (LinkState::Enable, true),
            (LinkState::Disable, false),
            (LinkState::Auto, true),
            (LinkState::Disable, false),
        ] {
            engine.set_vf(cx, addr(), 0, VfSetting::Link(link)).unwrap();
            assert_eq!((vf0(&bench, cx).info.link, bench.card.link(cx, &port)), (link, Some(up)));
        }
        engine.unbind(cx, address(0)).unwrap();
        engine.bind(cx, address(0)).unwrap();
        assert_eq!(bench.card.link(cx, &port), Some(false), "its port has no link for a driver that is bound anew");
        let agreed = engine.agreed(cx);
        engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        assert_eq!(vf0(&bench, cx).info.link, LinkState::Disable, "the representor decides");
        assert_eq!(bench.card.link(cx, &port), Some(true));
        engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        assert_eq!((vf0(&bench, cx).info.link, bench.card.link(cx, &port)), (LinkState::Auto, Some(true)));
        bench.end(cx);

        let card = std::sync::Arc::new(MemoryCard::new(vfs(1)));
        let threads = std::sync::Arc::new(lockdep::Threads(std::sync::Arc::clone(domain)));
        let engine = eswitch::Engine::start_as(cx, vfs(1), card.clone(), threads, Some(&agreed)).unwrap();
        assert_eq!(card.link(cx, &port), Some(false), "the next process of the card keeps it");
        engine.shutdown(cx);
    });
}
