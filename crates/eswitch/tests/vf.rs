//! VFs as PCI functions of their own.

mod common;

use card_memory::MemoryCard;
use common::{Bench, addr, fail, resources, story};
use eswitch::card::{Resource, ResourceKind};
use eswitch::vf::{ETH_P_8021AD, LinkState, VfSetting, VfView, VfVlan};
use eswitch::{CardConfig, Errno, Error, Mode, PciAddress, PfIndex, Vport};
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
        assert_eq!((vf.mac, vf.info.vlan, vf.info.link), (mac, vlan, LinkState::Disable));
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
        assert_eq!(errno(cx, 0, VfSetting::Rate { min: Some(2), max: Some(1) }), Err(Errno::EINVAL));
        engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        for setting in
            [vlan(5, 0x8100), VfSetting::Trust(true), VfSetting::Spoofchk(true), VfSetting::Link(LinkState::Enable)]
        {
            assert_eq!(errno(cx, 0, setting), Err(Errno::EOPNOTSUPP), "{setting:?}");
        }
        errno(cx, 0, vlan(0, 0x8100)).unwrap();
        errno(cx, 0, VfSetting::Rate { min: None, max: Some(1) }).unwrap();
        engine.unbind(cx, addr()).unwrap();
        assert_eq!(errno(cx, 0, VfSetting::Trust(true)), Err(Errno::ENODEV));
        bench.end(cx);
    });
}
