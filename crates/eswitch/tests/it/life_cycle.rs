//! The life cycle of representors, on the card in memory.

use std::panic::Location;
use std::sync::Arc;

use crate::common::{Bench, addr, fail, resources, story};
use eswitch::card::Resource;
use eswitch::card::ResourceKind::{Fdb, IbDevice, Netdev, Port, Representor};
use eswitch::inspect::RepState;
use eswitch::{CardConfig, Engine, Errno, Error, Mode, PortHandle, PortIndex, RepType, SfNum, Vport};
use eswitch::{Event, PfIndex};

fn port(vport: Vport) -> PortHandle {
    PortHandle { device: addr(), index: PortIndex::new(PfIndex(0), vport) }
}

fn vfs(n: u16) -> CardConfig {
    CardConfig { vfs: n, ..CardConfig::default() }
}

fn with_ib(n: u16) -> CardConfig {
    CardConfig { modules: vec!["mlx5_ib".into()], ..vfs(n) }
}

#[test]
fn switchdev_mode_loads_the_uplink_and_every_vf_and_legacy_mode_unloads_them() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, with_ib(4));
        assert_eq!(bench.loaded(cx, RepType::Eth), 0);
        bench.engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        assert_eq!(bench.loaded(cx, RepType::Eth), 5);
        assert_eq!(bench.loaded(cx, RepType::Ib), 5);
        bench.engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        assert_eq!(bench.loaded(cx, RepType::Eth), 0);
        bench.end(cx);
    });
}

#[test]
fn a_module_that_is_loaded_late_loads_its_representors() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(3));
        bench.engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        bench.engine.settle(cx, true);
        assert_eq!(bench.loaded(cx, RepType::Ib), 0);
        bench.engine.load_module(cx, "mlx5_ib").unwrap();
        bench.engine.settle(cx, false);
        assert_eq!(bench.loaded(cx, RepType::Ib), 4);
        bench.engine.unload_module(cx, "mlx5_ib").unwrap();
        assert_eq!(bench.loaded(cx, RepType::Ib), 0);
        assert_eq!(bench.loaded(cx, RepType::Eth), 4, "the other type stays loaded");
        bench.end(cx);
    });
}

#[test]
fn a_mode_change_that_fails_anywhere_leaves_the_whole_as_it_was() {
    for (kind, vport) in [
        (Representor(RepType::Eth), Some(Vport::Uplink)),
        (Representor(RepType::Eth), Some(Vport::Vf(2))),
        (Representor(RepType::Ib), Some(Vport::Uplink)),
        (Representor(RepType::Ib), Some(Vport::Vf(0))),
        (Fdb, None),
    ] {
        story(|cx, domain| {
            let bench = Bench::start(cx, domain, with_ib(4));
            let before = bench.engine.inspect(cx);
            bench.fail(cx, kind, vport, 1);
            let error = bench.engine.set_mode(cx, addr(), Mode::Switchdev).unwrap_err();
            assert_eq!(error.errno(), Errno::EIO, "{kind:?} {vport:?}: {error}");
            bench.engine.settle(cx, true);
            assert_eq!(bench.engine.inspect(cx), before, "{kind:?} {vport:?}");
            bench.engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
            assert_eq!(bench.loaded(cx, RepType::Ib), 5);
            bench.end(cx);
        });
    }
}

#[test]
fn a_failure_to_leave_switchdev_mode_leaves_everything_as_it_was() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, with_ib(2));
        bench.engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        bench.engine.add_sf(cx, addr(), 0, SfNum(88)).unwrap();
        bench.engine.settle(cx, false);
        let before = bench.engine.inspect(cx);
        bench.fail(cx, IbDevice, None, 1);
        bench.engine.set_mode(cx, addr(), Mode::Legacy).unwrap_err();
        bench.engine.settle(cx, true);
        assert_eq!(bench.engine.inspect(cx), before, "the SF is still there, and everything is loaded");
        bench.engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        bench.end(cx);
    });
}

#[test]
fn a_failed_load_undoes_only_itself() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(3));
        bench.engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        bench.fail(cx, Representor(RepType::Ib), Some(Vport::Vf(1)), u32::MAX);
        bench.engine.load_module(cx, "mlx5_ib").unwrap();
        bench.engine.settle(cx, false);
        let view = bench.pf0(cx);
        let vf1 = view.ports.iter().find(|p| p.vport == Vport::Vf(1)).unwrap();
        assert_eq!(vf1.reps[0], RepState::Loaded, "what was loaded before stays");
        assert!(matches!(&vf1.reps[1], RepState::Failed(f) if f.attempts >= 1), "{:?}", vf1.reps);
        assert!(view.retry.is_pending());
        assert_eq!(bench.loaded(cx, RepType::Ib), 3, "the others are loaded");
        // Retries load the rest.
        bench.plan.clear(cx);
        bench.engine.settle(cx, true);
        assert_eq!(bench.loaded(cx, RepType::Ib), 4);
        bench.end(cx);
    });
}

#[test]
fn without_the_uplink_nothing_else_is_loaded() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(3));
        bench.engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        bench.fail(cx, Representor(RepType::Ib), Some(Vport::Uplink), u32::MAX);
        bench.engine.load_module(cx, "mlx5_ib").unwrap();
        bench.engine.settle(cx, false);
        assert_eq!(bench.loaded(cx, RepType::Ib), 0);
        bench.plan.clear(cx);
        bench.engine.settle(cx, true);
        assert_eq!(bench.loaded(cx, RepType::Ib), 4);
        bench.end(cx);
    });
}

#[test]
fn the_number_of_vfs_changes_from_0_to_n_and_back_and_in_no_other_way() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig::default());
        let engine = &bench.engine;
        engine.set_num_vfs(cx, addr(), 4).unwrap();
        engine.set_num_vfs(cx, addr(), 4).unwrap();
        assert_eq!(engine.set_num_vfs(cx, addr(), 2).unwrap_err().errno(), Errno::EBUSY);
        assert_eq!(engine.set_num_vfs(cx, addr(), 9).unwrap_err().errno(), Errno::ERANGE);
        assert_eq!(engine.set_num_vfs(cx, addr(), u32::MAX).unwrap_err().errno(), Errno::ERANGE);
        engine.set_num_vfs(cx, addr(), 0).unwrap();
        engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        bench.fail(cx, Representor(RepType::Eth), Some(Vport::Vf(3)), 1);
        let before = engine.inspect(cx);
        engine.set_num_vfs(cx, addr(), 4).unwrap_err();
        assert_eq!(engine.inspect(cx), before);
        bench.fail(cx, Port, Some(Vport::Vf(1)), 1);
        engine.set_num_vfs(cx, addr(), 4).unwrap_err();
        assert_eq!(engine.inspect(cx), before);
        engine.set_num_vfs(cx, addr(), 4).unwrap();
        assert_eq!(bench.loaded(cx, RepType::Eth), 5);
        bench.end(cx);
    });
}

#[test]
fn a_dpu_follows_its_host_from_any_count_to_any_other() {
    story(|cx, domain| {
        let config = CardConfig { dpu: true, mode: Mode::Switchdev, ..vfs(2) };
        let bench = Bench::start(cx, domain, config);
        let engine = &bench.engine;
        assert_eq!(bench.loaded(cx, RepType::Eth), 4, "uplink, host PF, two VFs");
        for n in [5, 3, 8, 0, 1] {
            engine.set_host_vfs(cx, addr(), n).unwrap();
            engine.settle(cx, true);
            assert_eq!(bench.loaded(cx, RepType::Eth), 2 + n as usize, "{n}");
        }
        assert!(matches!(engine.set_num_vfs(cx, addr(), 1), Err(Error::VfsOfHost)));
        // There is no memory for the work item, so the mark does its work.
        engine.fail_allocations(cx, addr(), 1).unwrap();
        engine.set_host_vfs(cx, addr(), 6).unwrap();
        engine.settle(cx, true);
        assert_eq!(bench.loaded(cx, RepType::Eth), 8);
        // Ports that cannot be made at first are made later.
        bench.fail(cx, Port, Some(Vport::Vf(7)), 2);
        engine.set_host_vfs(cx, addr(), 8).unwrap();
        engine.settle(cx, true);
        assert_eq!(bench.loaded(cx, RepType::Eth), 10);
        bench.end(cx);
    });
}

#[test]
fn an_sf_is_added_activated_and_deleted_as_devlink_documents() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, with_ib(0));
        let engine = &bench.engine;
        assert!(matches!(engine.add_sf(cx, addr(), 0, SfNum(88)), Err(Error::SfInLegacy)));
        engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        let sf = engine.add_sf(cx, addr(), 0, SfNum(88)).unwrap();
        assert_eq!(sf.index.0, 32_768);
        assert!(matches!(engine.add_sf(cx, addr(), 0, SfNum(88)), Err(Error::SfExists(_))));
        assert!(matches!(engine.add_sf(cx, addr(), 1, SfNum(89)), Err(Error::SfPfnum { .. })));
        let change = eswitch::FunctionChange {
            hw_addr: Some("00:11:22:33:44:55".parse().unwrap()),
            active: Some(true),
            roce: None,
        };
        engine.set_function(cx, sf, change).unwrap();
        engine.settle(cx, true);
        let state = bench.pf0(cx).ports.last().unwrap().sf.unwrap();
        assert!(state.active && state.attached);
        assert_eq!(engine.set_function(cx, sf, change).unwrap_err().errno(), Errno::EBUSY, "hw_addr while active");
        assert!(matches!(engine.delete_port(cx, port(Vport::Uplink)), Err(Error::NotSf(_))));
        assert!(matches!(engine.delete_port(cx, port(Vport::Vf(0))), Err(Error::NoPort(_))));
        engine.unload_module(cx, "mlx5_ib").unwrap();
        engine.load_module(cx, "mlx5_ib").unwrap();
        engine.settle(cx, true);
        assert_eq!(engine.check(cx), []);
        engine.delete_port(cx, sf).unwrap();
        assert_eq!(engine.add_sf(cx, addr(), 0, SfNum(7)).unwrap(), sf, "the lowest free place");
        engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        bench.end(cx);
    });
}

#[test]
fn an_sf_of_a_dpus_host_has_its_number_and_place_apart_and_no_device_on_the_dpu() {
    story(|cx, domain| {
        let config = CardConfig { dpu: true, mode: Mode::Switchdev, max_sfs: 4, ..with_ib(0) };
        let bench = Bench::start(cx, domain, config);
        let engine = &bench.engine;
        let own = engine.add_sf(cx, addr(), 0, SfNum(88)).unwrap();
        let hosts = engine.add_sf_of(cx, addr(), 1, 0, SfNum(88)).unwrap();
        assert_eq!((own, hosts), (port(Vport::Sf(0)), port(Vport::Sf(4))));
        assert!(matches!(engine.add_sf_of(cx, addr(), 1, 0, SfNum(88)), Err(Error::SfExists(_))));
        let no_controller = engine.add_sf_of(cx, addr(), 2, 0, SfNum(89)).unwrap_err();
        assert_eq!(no_controller.errno(), Errno::EINVAL, "{no_controller}");
        let active = eswitch::FunctionChange { active: Some(true), ..eswitch::FunctionChange::default() };
        engine.set_function(cx, hosts, active).unwrap();
        engine.settle(cx, true);
        let pf = bench.pf0(cx);
        let sf = pf.ports.iter().find(|port| port.handle == hosts).unwrap().sf.unwrap();
        assert!(sf.active && sf.attached && sf.roce && !sf.parts.rdma);
        assert_eq!(pf.auxiliary.iter().filter(|device| device.sf.is_some()).count(), 1, "its netdev only");
        assert!(matches!(engine.set_sf_bound(cx, sf.id, false), Err(Error::NoSfDevice(_))), "the host's driver");
        assert_eq!(engine.check(cx), []);
        for number in 0..3 {
            engine.add_sf_of(cx, addr(), 1, 0, SfNum(number)).unwrap();
        }
        assert!(matches!(engine.add_sf_of(cx, addr(), 1, 0, SfNum(9)), Err(Error::SfsFull(4))));
        engine.add_sf(cx, addr(), 0, SfNum(9)).unwrap();
        engine.delete_port(cx, hosts).unwrap();
        assert_eq!(engine.add_sf_of(cx, addr(), 1, 0, SfNum(10)).unwrap(), hosts, "the host's lowest free place");
        engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        bench.end(cx);
    });
}

#[test]
fn a_card_that_is_on_no_dpu_has_one_controller() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { mode: Mode::Switchdev, ..with_ib(0) });
        let refused = bench.engine.add_sf_of(cx, addr(), 1, 0, SfNum(88)).unwrap_err();
        assert!(matches!(refused, Error::SfController), "{refused}");
        assert_eq!(refused.errno(), Errno::EOPNOTSUPP);
        bench.end(cx);
    });
}

#[test]
fn an_sfs_netdev_that_cannot_be_made_is_made_later() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { mode: Mode::Switchdev, ..CardConfig::default() });
        let sf = bench.engine.add_sf(cx, addr(), 0, SfNum(1)).unwrap();
        bench.fail(cx, Netdev, Some(Vport::Sf(0)), 3);
        let activate = eswitch::FunctionChange { active: Some(true), ..Default::default() };
        bench.engine.set_function(cx, sf, activate).unwrap();
        bench.end(cx);
    });
}

#[test]
fn unbinding_removes_everything_and_binding_restores_it() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { mode: Mode::Switchdev, pfs: 2, ..with_ib(2) });
        let engine = &bench.engine;
        engine.add_sf(cx, addr(), 0, SfNum(3)).unwrap();
        engine.unbind(cx, addr()).unwrap();
        assert!(matches!(engine.unbind(cx, addr()), Err(Error::NoDevice(_))));
        assert!(matches!(engine.set_mode(cx, addr(), Mode::Legacy), Err(Error::NoDevice(_))));
        engine.settle(cx, true);
        assert_eq!(engine.check(cx), []);
        engine.bind(cx, addr()).unwrap();
        assert!(matches!(engine.bind(cx, addr()), Err(Error::AlreadyBound(_))));
        assert_eq!(bench.loaded(cx, RepType::Eth), 1, "in the mode it starts in");
        engine.reload(cx, addr()).unwrap();
        bench.end(cx);
    });
}

#[test]
fn a_card_that_cannot_be_brought_up_leaves_nothing() {
    for (kind, vport) in [(Netdev, None), (Representor(RepType::Eth), Some(Vport::Uplink)), (Port, Some(Vport::Vf(1)))]
    {
        story(|cx, domain| {
            let config = CardConfig { mode: Mode::Switchdev, ..vfs(2) };
            let plan = Arc::new(eswitch::card::FaultPlan::default());
            fail(&plan, cx, kind, vport, u32::MAX);
            let card = Arc::new(card_memory::MemoryCard::new(config.clone()));
            let faulty = Arc::new(eswitch::card::Faulty::new(Arc::clone(&card), plan));
            let threads = Arc::new(lockdep::Threads(Arc::clone(domain)));
            assert!(Engine::start(cx, config, faulty, threads).is_err());
            assert_eq!(resources(&card, cx), [], "{kind:?}");
        });
    }
}

#[test]
fn the_pfs_netdev_stays_in_its_namespace_in_switchdev_mode() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(1));
        let engine = &bench.engine;
        engine.set_netns(cx, addr(), Some("elsewhere")).unwrap();
        let error = engine.set_mode(cx, addr(), Mode::Switchdev).unwrap_err();
        assert!(matches!(&error, Error::NetnsDiverged(netns) if netns == "elsewhere"), "{error}");
        engine.set_netns(cx, addr(), None).unwrap();
        engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        assert!(matches!(engine.set_netns(cx, addr(), Some("elsewhere")), Err(Error::NetnsLocal)));
        bench.end(cx);
    });
}

#[test]
fn on_a_multiport_roce_card_the_mode_is_stored_and_rescanned_once() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { multiport_roce: true, ..with_ib(2) });
        let events = bench.engine.subscribe(cx);
        bench.engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        let registered = events.take(cx).into_iter().filter(|e| matches!(e, Event::Registered(..))).count();
        assert_eq!(registered, 2);
        bench.engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        bench.end(cx);
    });
}

#[test]
fn registering_twice_is_refused() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig::default());
        for name in ["mlx5_ib", "mlx5-ib", "mlx5_ib"] {
            bench.engine.load_module(cx, name).unwrap();
        }
        assert!(matches!(bench.engine.load_module(cx, "mlx4_en"), Err(Error::NoModule { .. })));
        assert!(matches!(bench.engine.unload_module(cx, "mlx5_core"), Err(Error::ModuleInUse(_))));
        bench.end(cx);
    });
}

#[test]
fn an_sf_whose_driver_is_unbound_has_no_netdev_until_it_is_bound_again() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { mode: Mode::Switchdev, ..CardConfig::default() });
        let address = bench.engine.addresses()[0];
        let port = bench.engine.add_sf(cx, address, 0, eswitch::SfNum(88)).unwrap();
        let sf = |cx: &mut _| bench.engine.inspect(cx).pfs[0].ports.iter().find_map(|port| port.sf).unwrap();
        let id = sf(cx).id;
        let active = |active| eswitch::FunctionChange { active: Some(active), ..Default::default() };
        assert!(matches!(bench.engine.set_sf_bound(cx, id, false), Err(Error::NoSfDevice(_))), "inactive");
        bench.engine.set_function(cx, port, active(true)).unwrap();
        bench.engine.settle(cx, true);
        assert!(matches!(bench.engine.set_sf_bound(cx, id, true), Err(Error::SfBound(_))));
        bench.engine.set_sf_bound(cx, id, false).unwrap();
        assert!(!sf(cx).attached && sf(cx).active);
        assert!(matches!(bench.engine.set_sf_bound(cx, id, false), Err(Error::NoSfDevice(_))));
        bench.engine.set_sf_bound(cx, id, true).unwrap();
        assert!(sf(cx).attached);
        bench.engine.set_sf_bound(cx, id, false).unwrap();
        bench.engine.set_function(cx, port, active(false)).unwrap();
        bench.engine.set_function(cx, port, active(true)).unwrap();
        bench.engine.settle(cx, true);
        assert!(sf(cx).attached, "activated anew it is bound");
        bench.end(cx);
    });
}

#[test]
fn without_the_core_module_no_pf_is_bound_and_with_it_all_are() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { pfs: 2, mode: Mode::Switchdev, ..vfs(2) });
        let bound = |cx: &mut _| bench.engine.inspect(cx).pfs.len();
        for _ in 0..2 {
            bench.engine.unload_module(cx, "mlx5_core").unwrap();
            assert_eq!(bound(cx), 0);
        }
        let address = bench.engine.addresses()[0];
        assert!(matches!(bench.engine.bind(cx, address), Err(Error::NoCore(_))));
        for _ in 0..2 {
            bench.engine.load_module(cx, "mlx5_core").unwrap();
            assert_eq!(bound(cx), 2);
        }
        bench.end(cx);
    });
}

#[test]
fn a_module_is_loaded_with_its_dependencies_or_refused() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(0));
        let engine = &bench.engine;
        assert_eq!(engine.insert_module(cx, "mlx5_core"), Err(Error::ModuleLoaded("mlx5_core")));
        engine.unload_module(cx, "mlx5_core").unwrap();
        let alone = engine.insert_module(cx, "mlx5_ib").unwrap_err();
        assert_eq!(alone, Error::ModuleNeeds { module: "mlx5_ib", needs: "mlx5_core" });
        assert_eq!(alone.errno(), Errno::ENOENT, "as for unknown symbols");
        assert_eq!(engine.inspect(cx).modules, [""; 0], "a refusal loads nothing");
        engine.load_module(cx, "mlx5-ib").unwrap();
        assert_eq!(engine.inspect(cx).modules, ["mlx5_core", "mlx5_ib"]);
        assert_eq!(engine.inspect(cx).pfs.len(), 1, "its PF is bound");
        assert!(matches!(engine.unload_module(cx, "mlx5_core"), Err(Error::ModuleInUse(_))));
        engine.unload_module(cx, "mlx5_ib").unwrap();
        engine.insert_module(cx, "mlx5_ib").unwrap();
        bench.engine.shutdown(cx);
        assert_eq!(bench.engine.load_module(cx, "mlx5_ib"), Err(Error::Teardown));
        assert_eq!(bench.engine.inspect(cx).modules, [""; 0]);
    });
}

#[test]
fn a_mode_change_that_fails_unloads_nothing_that_was_loaded() {
    for vport in [Vport::Uplink, Vport::Vf(0)] {
        story(|cx, domain| {
            let bench = Bench::start(cx, domain, CardConfig { mode: Mode::Switchdev, ..vfs(3) });
            bench.engine.settle(cx, true);
            bench.fail(cx, Representor(RepType::Ib), Some(vport), u32::MAX);
            bench.engine.load_module(cx, "mlx5_ib").unwrap();
            bench.engine.settle(cx, false);
            bench.fail(cx, IbDevice, None, 1);
            bench.engine.set_mode(cx, addr(), Mode::Legacy).unwrap_err();
            assert_eq!(bench.loaded(cx, RepType::Eth), 4, "netdev representors worked, and do");
            bench.plan.clear(cx);
            bench.end(cx);
        });
    }
}

#[test]
fn a_reload_keeps_the_vfs_and_returns_the_netdev_to_its_namespace() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { mode: Mode::Switchdev, ..vfs(2) });
        bench.engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        bench.engine.set_netns(cx, addr(), Some("elsewhere")).unwrap();
        bench.engine.reload(cx, addr()).unwrap();
        let view = bench.pf0(cx);
        assert_eq!((view.mode, view.num_vfs), (Mode::Switchdev, 2));
        bench.end(cx);
    });
}

#[test]
fn nothing_is_bound_after_shutdown() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, vfs(1));
        bench.engine.shutdown(cx);
        assert!(matches!(bench.engine.bind(cx, addr()), Err(Error::Teardown)));
        assert_eq!(bench.engine.set_num_vfs(cx, addr(), 1).unwrap_err().errno(), Errno::ENOENT);
        assert_eq!(resources(&bench.card, cx), []);
    });
}

#[test]
fn without_threads_there_is_no_pf_and_nothing_is_left() {
    struct NoThreads;
    impl lockdep::Spawn for NoThreads {
        fn spawn(
            &self,
            _: &str,
            _: &'static Location<'static>,
            _: lockdep::ThreadMain,
        ) -> std::io::Result<lockdep::JoinHandle<()>> {
            Err(std::io::Error::other("none left"))
        }
    }
    story(|cx, _| {
        let card = Arc::new(card_memory::MemoryCard::new(vfs(1)));
        let error = Engine::start(cx, vfs(1), card.clone(), Arc::new(NoThreads)).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::NoThread(_)), "{error}");
        assert_eq!(resources(&card, cx), []);
    });
}

#[test]
fn a_function_is_changed_completely_or_not_at_all() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { mode: Mode::Switchdev, ..vfs(1) });
        let mac = "00:11:22:33:44:55".parse().unwrap();
        let both = eswitch::FunctionChange { hw_addr: Some(mac), active: Some(true), roce: None };
        assert!(matches!(
            bench.engine.set_function(cx, port(Vport::Vf(0)), both),
            Err(Error::FunctionAttribute { attribute: "state", .. })
        ));
        let vf = Resource::VfNetdev(PfIndex(0), Vport::Vf(0));
        assert_ne!(bench.card.mac(cx, &vf), Some(mac));
        assert_eq!(bench.pf0(cx).vfs[0].mac, eswitch::MacAddr::ZERO);
        bench.engine.set_function(cx, port(Vport::Vf(0)), eswitch::FunctionChange { active: None, ..both }).unwrap();
        assert_eq!(bench.pf0(cx).vfs[0].mac, mac);
        bench.end(cx);
    });
}

#[test]
fn the_failure_of_the_hosts_vfs_is_reported() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { dpu: true, ..vfs(0) });
        bench.fail(cx, Port, Some(Vport::Vf(0)), u32::MAX);
        bench.engine.set_host_vfs(cx, addr(), 1).unwrap();
        bench.engine.settle(cx, false);
        assert!(bench.pf0(cx).host_failure.unwrap().contains("port pf0 vf0"));
        assert_eq!(bench.engine.check(cx), []);
        bench.plan.clear(cx);
        bench.end(cx);
    });
}

#[test]
fn a_vport_whose_second_type_fails_loses_what_the_same_attempt_loaded_for_it() {
    story(|cx, domain| {
        let config = CardConfig { dpu: true, mode: Mode::Switchdev, ..with_ib(0) };
        let bench = Bench::start(cx, domain, config);
        bench.engine.settle(cx, true);
        bench.fail(cx, Representor(RepType::Ib), Some(Vport::Vf(1)), u32::MAX);
        bench.engine.set_host_vfs(cx, addr(), 3).unwrap();
        bench.engine.settle(cx, false);
        let view = bench.pf0(cx);
        let reps = |vport| view.ports.iter().find(|p| p.vport == vport).unwrap().reps.clone();
        assert_eq!(reps(Vport::Vf(1))[0], RepState::Registered, "its netdev representor was of that attempt");
        assert!(matches!(reps(Vport::Vf(1))[1], RepState::Failed(_)));
        for other in [Vport::Vf(0), Vport::Vf(2)] {
            assert_eq!(reps(other), [RepState::Loaded, RepState::Loaded]);
        }
        bench.plan.clear(cx);
        bench.end(cx);
    });
}
