//! The view of a card in its various states.

use std::sync::Arc;

use card_memory::MemoryCard;
use devlink::view::{self, Appearance, Card, DeviceName, Profile, Role};
use eswitch::auxiliary::{AuxKind, AuxiliaryName};
use eswitch::card::Card as _;
use eswitch::{CardConfig, Engine, FunctionChange, Mode, PciAddress, SfNum};
use lockdep::{Domain, Locked, OnReport, Threads, Unlocked};

const PF: PciAddress = PciAddress { domain: 0, bus: 8, device: 0, function: 0 };

/// Runs `f` with a card in memory, and checks that nothing of it is left.
fn story(config: CardConfig, f: impl FnOnce(&mut Locked<'_, Unlocked>, &Engine)) {
    config.validate().unwrap();
    let domain = Domain::checked(OnReport::Panic);
    lockdep::enter(&domain, "story", |cx| {
        let card = Arc::new(MemoryCard::new(config.clone()));
        let threads = Arc::new(Threads(Arc::clone(&domain)));
        let engine = Engine::start(cx, config, Arc::clone(&card) as _, threads).unwrap();
        f(cx, &engine);
        engine.settle(cx, true);
        assert_eq!(engine.check(cx), []);
        engine.shutdown(cx);
        assert_eq!(card.resources(&mut cx.narrow()), []);
    });
}

fn card(vfs: u16) -> CardConfig {
    CardConfig { pfs: 2, vfs, modules: vec!["mlx5_ib".to_owned()], ..CardConfig::default() }
}

fn view_of(cx: &mut Locked<'_, Unlocked>, engine: &Engine) -> Card {
    engine.settle(cx, true);
    let view = view::of(engine, Appearance::from(&Profile::mlx5()), cx);
    for auxiliary in &view.auxiliary {
        assert_parent(&view, auxiliary.parent);
    }
    view.netdevs.iter().for_each(|netdev| assert_parent(&view, netdev.parent));
    view.rdma.iter().for_each(|device| assert_parent(&view, device.parent));
    view
}

/// Fails if a parent does not exist or has no driver.
fn assert_parent(view: &Card, parent: DeviceName) {
    let there = match parent {
        DeviceName::Pci(address) => view.functions.iter().any(|f| f.address == address && f.driver.is_some()),
        DeviceName::Auxiliary(name) => view.auxiliary.iter().any(|a| a.name == name && a.driver.is_some()),
    };
    assert!(there, "{parent:?} in {view:#?}");
}

/// Every netdev with its role, driver and port name.
fn netdevs(view: &Card) -> Vec<String> {
    let text = |n: &view::Netdev| format!("{:?} {} {} {:?}", n.role, n.name, n.driver, n.port_name);
    view.netdevs.iter().map(text).collect()
}

fn rdma(view: &Card) -> Vec<(&str, Vec<u32>)> {
    view.rdma.iter().map(|d| (d.name.as_str(), d.ports.iter().map(|p| p.number).collect())).collect()
}

#[test]
fn in_legacy_mode() {
    story(card(1), |cx, engine| {
        let view = view_of(cx, engine);
        assert_eq!((view.name.as_str(), view.profile.driver.as_str()), ("0000:08:00.0", "mlx5_core"));
        let addresses: Vec<_> = view.functions.iter().map(|f| f.address.to_string()).collect();
        assert_eq!(addresses, ["0000:08:00.0", "0000:08:00.1", "0000:08:00.2", "0000:08:01.2"]);
        let sriov = view.functions[1].sriov.as_ref().unwrap();
        assert_eq!((sriov.total, sriov.enabled, sriov.offset, sriov.autoprobe), (8, 1, 9, true));
        assert_eq!(sriov.vfs, ["0000:08:01.2".parse::<PciAddress>().unwrap()]);
        assert_eq!(view.functions[3].vf_of, Some(("0000:08:00.1".parse().unwrap(), 0)));
        assert_eq!(
            netdevs(&view),
            [
                "Pf enp8s0f0np0 mlx5_core Some(\"p0\")",
                "Vf enp8s0f0v0 mlx5_core None",
                "Pf enp8s0f1np1 mlx5_core Some(\"p1\")",
                "Vf enp8s0f1v0 mlx5_core None",
            ]
        );
        assert!(view.netdevs.iter().all(|netdev| !netdev.in_switch));
        assert_eq!(view.netdevs[0].vfs.len(), 1);
        assert_eq!(view.netdevs[0].port.as_ref().map(ToString::to_string).as_deref(), Some("pci/0000:08:00.0/65535"));
        let devices = ["rocep8s0f0", "rocep8s0f1", "rocep8s0f0v0", "rocep8s0f1v0"];
        assert_eq!(rdma(&view), devices.map(|name| (name, vec![1])));
        let auxiliary: Vec<_> = view.auxiliary.iter().map(|a| a.name.to_string()).collect();
        let expected = ["eth.0", "eth.1", "eth.1000000", "eth.1100000", "rdma.0", "rdma.1", "rdma.1000000"];
        assert_eq!(auxiliary[..7], expected.map(|name| format!("mlx5_core.{name}")));
        let modules: Vec<_> = view.modules.iter().map(|m| (m.name.as_str(), m.loaded, m.depends.len())).collect();
        assert_eq!(modules, [("mlx5_core", true, 0), ("mlx5_ib", true, 1), ("vfio_pci", false, 0)]);
    });
}

#[test]
fn in_switchdev_mode_with_vfs_and_sfs() {
    story(card(2), |cx, engine| {
        engine.set_mode(cx, PF, Mode::Switchdev).unwrap();
        let sf = engine.add_sf(cx, PF, 0, SfNum(88)).unwrap();
        engine.set_function(cx, sf, FunctionChange { active: Some(true), ..FunctionChange::default() }).unwrap();
        let view = view_of(cx, engine);
        let of_pf0: Vec<_> = view.netdevs.iter().take_while(|n| n.name != "enp8s0f1np1").collect();
        let roles: Vec<_> = of_pf0.iter().map(|n| (n.role, n.name.as_str(), n.in_switch)).collect();
        assert_eq!(
            roles,
            [
                (Role::Pf, "enp8s0f0np0", true),
                (Role::Representor, "enp8s0f0npf0vf0", true),
                (Role::Representor, "enp8s0f0npf0vf1", true),
                (Role::Representor, "en8f0pf0sf88", true),
                (Role::Vf, "enp8s0f0v0", false),
                (Role::Vf, "enp8s0f0v1", false),
                (Role::Sf, "enp8s0f0s88", false),
            ]
        );
        let representor = of_pf0[3];
        assert_eq!(representor.port_name.as_deref(), Some("pf0sf88"));
        assert_eq!((representor.driver.as_str(), representor.bus_info.as_str()), ("mlx5e_rep", "0000:08:00.0"));
        assert_eq!(representor.port.as_ref().map(ToString::to_string).as_deref(), Some("pci/0000:08:00.0/32768"));
        let of_sf = of_pf0[6];
        assert_eq!(
            (of_sf.parent, of_sf.bus_info.as_str()),
            (DeviceName::Auxiliary(AuxiliaryName::Sf { id: 4 }), "mlx5_core.sf.4")
        );
        let device = view.auxiliary.iter().find(|a| a.name == AuxiliaryName::Sf { id: 4 }).unwrap();
        assert_eq!((device.sfnum, device.driver.as_deref()), (Some(SfNum(88)), Some("mlx5_core.sf")));
        let rdma_of_sf = AuxiliaryName::Part { kind: AuxKind::Rdma, id: 4 };
        let own = view.auxiliary.iter().find(|a| a.name == rdma_of_sf).unwrap();
        assert_eq!(own.parent, of_sf.parent);
        // A port for each vport, with its representor's netdev; places for SFs come after those for VFs. Every port up to
        // the last exists.
        assert_eq!(rdma(&view)[0], ("rocep8s0f0", (1..=10).collect()));
        let with_netdev = view.rdma[0].ports.iter().filter(|port| port.netdev.is_some()).map(|port| port.number);
        assert_eq!(with_netdev.collect::<Vec<_>>(), [1, 2, 3, 10]);
        assert!(view.rdma[0].ports.iter().all(|port| !port.roce));
        assert_eq!(view.rdma[0].ports[1].netdev.as_deref(), Some("enp8s0f0npf0vf0"));
        assert!(rdma(&view).contains(&("rocep8s0f0s88", vec![1])));

        engine.unload_module(cx, "mlx5_ib").unwrap();
        let view = view_of(cx, engine);
        assert_eq!(rdma(&view), []);
        let undriven = view.auxiliary.iter().filter(|a| a.driver.is_none());
        assert!(undriven.clone().count() > 0 && undriven.clone().all(|a| a.name.match_name().contains(".rdma")));
    });
}

#[test]
fn an_unbound_pf_has_an_address_and_nothing_else() {
    story(card(2), |cx, engine| {
        engine.unbind(cx, PF).unwrap();
        let view = view_of(cx, engine);
        assert_eq!((view.functions[0].address, &view.functions[0].driver), (PF, &None));
        assert_eq!(view.functions[0].sriov.as_ref().unwrap().enabled, 0);
        assert_eq!(view.functions.len(), 4, "the other PF has its VFs");
        assert_eq!(view.netdevs[0].name, "enp8s0f1np1");
    });
}

#[test]
fn a_change_is_counted_and_a_view_is_not() {
    story(card(0), |cx, engine| {
        engine.settle(cx, true);
        let before = engine.changes();
        view::of(engine, Appearance::from(&Profile::mlx5()), cx);
        assert_eq!(engine.changes(), before, "making a view changes nothing");
        engine.set_encap(cx, PF, false).unwrap();
        assert_ne!(engine.changes(), before);
        let before = engine.changes();
        engine.set_num_vfs(cx, PF, 1).unwrap();
        assert_ne!(engine.changes(), before);
    });
}

#[test]
fn an_unbound_vf_has_an_address_a_representor_and_nothing_else() {
    story(card(2), |cx, engine| {
        engine.set_mode(cx, PF, Mode::Switchdev).unwrap();
        let vf = engine.config().vf_address(eswitch::PfIndex(0), 0);
        engine.unbind(cx, vf).unwrap();
        engine.set_driver_override(cx, vf, Some("vfio-pci".to_owned())).unwrap();
        let view = view_of(cx, engine);
        let function = view.functions.iter().find(|f| f.address == vf).unwrap();
        assert_eq!((function.driver.as_deref(), function.driver_override.as_deref()), (None, Some("vfio-pci")));
        let names: Vec<_> = view.netdevs.iter().map(|n| n.name.as_str()).collect();
        assert!(names.contains(&"enp8s0f0npf0vf0") && !names.contains(&"enp8s0f0v0"), "{names:?}");
        assert!(!view.auxiliary.iter().any(|a| a.parent == DeviceName::Pci(vf)));
        assert!(!view.rdma.iter().any(|d| d.parent == DeviceName::Pci(vf)));
        assert_eq!(view.netdevs[0].vfs.len(), 2, "ip link shows the VF nevertheless");

        engine.remove(cx, vf).unwrap();
        let view = view_of(cx, engine);
        assert!(!view.functions.iter().any(|f| f.address == vf));
        assert_eq!(view.functions[0].sriov.as_ref().unwrap().enabled, 2);
    });
}

#[test]
fn a_function_without_roce_has_no_rdma_device() {
    story(card(1), |cx, engine| {
        engine.set_mode(cx, PF, Mode::Switchdev).unwrap();
        let sf = engine.add_sf(cx, PF, 0, SfNum(88)).unwrap();
        let vf = eswitch::PortHandle { device: PF, index: eswitch::PortIndex(1) };
        let off = FunctionChange { roce: Some(false), ..FunctionChange::default() };
        engine.set_function(cx, vf, off).unwrap();
        engine.set_function(cx, sf, FunctionChange { active: Some(true), ..off }).unwrap();
        let view = view_of(cx, engine);
        let names: Vec<_> = view.rdma.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["rocep8s0f0", "rocep8s0f1", "rocep8s0f1v0"]);
        assert_eq!(engine.set_function(cx, sf, off).unwrap_err().errno(), eswitch::Errno::EBUSY);
    });
}
