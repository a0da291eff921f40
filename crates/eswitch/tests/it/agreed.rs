//! A card is brought up in the agreed state that another one had.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::common::{Bench, addr, story};
use card_memory::MemoryCard;
use eswitch::auxiliary::AuxKind;
use eswitch::card::Resource;
use eswitch::devlink::{Params, Parts};
use eswitch::sf::SfState;
use eswitch::{Agreed, CardConfig, Engine, FunctionChange, Mode, OtherDriver, PfIndex, SfNum};
use lockdep::{Domain, Locked, Threads, Unlocked};

/// Brings up a card in an agreed state.
fn start_as(cx: &mut Locked<'_, Unlocked>, domain: &Arc<Domain>, config: &CardConfig, agreed: &Agreed) -> Arc<Engine> {
    let card = Arc::new(MemoryCard::new(config.clone()));
    let threads = Arc::new(Threads(Arc::clone(domain)));
    Engine::start_as(cx, config.clone(), card, threads, Some(agreed)).unwrap()
}

fn sf(cx: &mut Locked<'_, Unlocked>, engine: &Engine) -> SfState {
    engine.inspect(cx).pfs[0].ports.iter().find_map(|port| port.sf).unwrap()
}

fn end(cx: &mut Locked<'_, Unlocked>, engine: &Engine) {
    engine.settle(cx, true);
    assert_eq!(engine.check(cx), []);
    engine.shutdown(cx);
}

#[test]
fn an_sf_that_was_unbound_by_hand_stays_unbound() {
    story(|cx, domain| {
        let config = CardConfig { mode: Mode::Switchdev, ..CardConfig::default() };
        let bench = Bench::start(cx, domain, config.clone());
        let port = bench.engine.add_sf(cx, addr(), 0, SfNum(88)).unwrap();
        let active = FunctionChange { active: Some(true), ..FunctionChange::default() };
        bench.engine.set_function(cx, port, active).unwrap();
        bench.engine.settle(cx, true);
        let id = sf(cx, &bench.engine).id;
        bench.engine.set_sf_bound(cx, id, false).unwrap();
        let agreed = bench.engine.agreed(cx);
        bench.end(cx);

        let stored = serde_json::to_value(&agreed).unwrap();
        let engine = start_as(cx, domain, &config, &serde_json::from_value(stored.clone()).unwrap());
        engine.settle(cx, true);
        let found = sf(cx, &engine);
        assert!(found.active && found.unbound && !found.attached, "{found:?}");
        assert_eq!(engine.agreed(cx), agreed, "and the agreed state is the same");
        engine.set_sf_bound(cx, found.id, true).unwrap();
        assert!(sf(cx, &engine).attached, "it can be bound again");
        end(cx, &engine);

        // The previous version stored no `unbound`.
        let mut before = stored;
        let sfs = before["pfs"][0]["bound"]["sfs"].as_object_mut().unwrap();
        assert_eq!(sfs.values_mut().map(|sf| sf.as_object_mut().unwrap().remove("unbound")).count(), 1);
        let engine = start_as(cx, domain, &config, &serde_json::from_value(before).unwrap());
        engine.settle(cx, true);
        let found = sf(cx, &engine);
        assert!(found.active && !found.unbound && found.attached, "{found:?}");
        end(cx, &engine);
    });
}

#[test]
fn sfs_of_the_card_and_of_a_dpus_host_have_their_names_places_and_parts_again() {
    story(|cx, domain| {
        let config = CardConfig { mode: Mode::Switchdev, dpu: true, max_sfs: 4, ..CardConfig::default() };
        let bench = Bench::start(cx, domain, config.clone());
        let engine = &bench.engine;
        let active = FunctionChange { active: Some(true), ..FunctionChange::default() };
        let gone = engine.add_sf(cx, addr(), 0, SfNum(1)).unwrap();
        let own = engine.add_sf(cx, addr(), 0, SfNum(2)).unwrap();
        let hosts = engine.add_sf_of(cx, addr(), 1, 0, SfNum(2)).unwrap();
        engine.delete_port(cx, gone).unwrap();
        for port in [own, hosts] {
            engine.set_function(cx, port, active).unwrap();
        }
        engine.settle(cx, true);
        let sfs = |cx: &mut Locked<'_, Unlocked>, engine: &Engine| -> Vec<_> {
            let ports = &engine.inspect(cx).pfs[0].ports;
            ports.iter().filter_map(|port| Some((port.handle, port.sf?))).collect()
        };
        let id = sfs(cx, engine).iter().find(|(port, _)| *port == own).unwrap().1.id;
        engine.set_sf_bound(cx, id, false).unwrap();
        engine.set_sf_parts(cx, id, Parts { eth: false, rdma: true }).unwrap();
        engine.set_sf_bound(cx, id, true).unwrap();
        let (agreed, before) = (engine.agreed(cx), sfs(cx, engine));
        assert_eq!(before.len(), 2);
        bench.end(cx);

        let stored = serde_json::to_value(&agreed).unwrap();
        let engine = start_as(cx, domain, &config, &serde_json::from_value(stored).unwrap());
        engine.settle(cx, true);
        assert_eq!(sfs(cx, &engine), before);
        assert_eq!(engine.agreed(cx), agreed);
        let netdevs = engine.inspect(cx).resources.iter().filter(|r| matches!(r, Resource::SfNetdev(..))).count();
        assert_eq!(netdevs, 1, "the host's, as the other's driver makes none");
        let next = engine.add_sf(cx, addr(), 0, SfNum(3)).unwrap();
        let ids: BTreeSet<u32> = sfs(cx, &engine).iter().map(|(_, sf)| sf.id).collect();
        assert_eq!((next, ids.len()), (gone, 3), "the lowest free place, and a number of its own");
        end(cx, &engine);
    });
}

#[test]
fn a_stored_module_without_its_dependency_is_loaded_with_it() {
    story(|cx, domain| {
        let config = CardConfig { modules: vec!["mlx5_ib".into()], ..CardConfig::default() };
        let bench = Bench::start(cx, domain, config.clone());
        bench.engine.unbind(cx, addr()).unwrap();
        let mut agreed = bench.engine.agreed(cx);
        bench.end(cx);
        agreed.core = false;
        let engine = start_as(cx, domain, &config, &agreed);
        assert_eq!(engine.inspect(cx).modules, ["mlx5_core", "mlx5_ib"]);
        assert!(engine.inspect(cx).pfs.is_empty(), "and no PF is bound that was unbound");
        end(cx, &engine);
    });
}

#[test]
fn driverinit_parameters_that_were_set_and_those_in_effect_are_both_kept() {
    story(|cx, domain| {
        let config = CardConfig { modules: vec!["mlx5_ib".into()], ..CardConfig::default() };
        let rdma = |cx: &mut Locked<'_, Unlocked>, engine: &Engine| {
            engine.inspect(cx).pfs[0].auxiliary.iter().any(|device| device.kind == AuxKind::Rdma)
        };
        // Given a PF without RDMA devices, on which RoCE has been turned on again, but which has not been reloaded since.
        let bench = Bench::start(cx, domain, config.clone());
        bench.engine.change_params(cx, addr(), |params| params.init.roce = false).unwrap();
        bench.engine.reload(cx, addr()).unwrap();
        bench.engine.change_params(cx, addr(), |params| params.init.roce = true).unwrap();
        assert!(!rdma(cx, &bench.engine));
        let agreed = bench.engine.agreed(cx);
        bench.end(cx);
        // When it is brought up again, then it has none, and a reload gives it one.
        let mut stored = serde_json::to_value(&agreed).unwrap();
        let engine = start_as(cx, domain, &config, &serde_json::from_value(stored.clone()).unwrap());
        assert!(!rdma(cx, &engine));
        assert_eq!(engine.agreed(cx), agreed, "and the agreed state is the same");
        engine.reload(cx, addr()).unwrap();
        assert!(rdma(cx, &engine));
        // Binding the driver again gives every parameter its default.
        engine.change_params(cx, addr(), |params| params.init.roce = false).unwrap();
        engine.unbind(cx, addr()).unwrap();
        engine.bind(cx, addr()).unwrap();
        assert_eq!(engine.params(cx, addr()).unwrap(), Params::default());
        end(cx, &engine);
        // The previous version stored no driverinit parameters.
        let params = stored["pfs"][0]["bound"]["params"].as_object_mut().unwrap();
        assert!(params.remove("init").is_some() && params.remove("in_effect").is_some());
        let engine = start_as(cx, domain, &config, &serde_json::from_value(stored).unwrap());
        assert!(rdma(cx, &engine));
        end(cx, &engine);
    });
}

#[test]
fn functions_that_are_bound_to_vfio_pci_stay_bound_to_it() {
    story(|cx, domain| {
        let config = CardConfig { pfs: 2, vfs: 2, ..CardConfig::default() };
        let bench = Bench::start(cx, domain, config.clone());
        let functions = [config.vf_address(PfIndex(0), 1), config.pf_address(PfIndex(1))];
        bench.engine.load_module(cx, "vfio_pci").unwrap();
        for function in functions {
            bench.engine.unbind(cx, function).unwrap();
            bench.engine.set_driver_override(cx, function, Some("vfio-pci".to_owned())).unwrap();
            bench.engine.probe(cx, function).unwrap();
            // The override decides only about the next time.
            bench.engine.set_driver_override(cx, function, None).unwrap();
        }
        let agreed = bench.engine.agreed(cx);
        bench.end(cx);

        let other = Some(OtherDriver::VfioPci);
        let stored = serde_json::to_value(&agreed).unwrap();
        let engine = start_as(cx, domain, &config, &serde_json::from_value(stored).unwrap());
        assert_eq!(engine.agreed(cx), agreed);
        let vfs: Vec<_> = engine.inspect(cx).pfs[0].vfs.iter().map(|vf| vf.info.other_driver).collect();
        assert_eq!((vfs, engine.functions(cx)[1].pci.other_driver), (vec![None, other], other));
        for function in functions {
            engine.unbind_vfio(cx, function).unwrap();
            engine.bind(cx, function).unwrap();
        }
        end(cx, &engine);
    });
}

#[test]
fn a_module_that_needs_no_other_lets_the_core_module_stay_unloaded() {
    story(|cx, domain| {
        let config = CardConfig { modules: vec!["vfio_pci".into()], ..CardConfig::default() };
        let bench = Bench::start(cx, domain, config.clone());
        bench.engine.unload_module(cx, "mlx5_core").unwrap();
        let agreed = bench.engine.agreed(cx);
        bench.end(cx);
        let engine = start_as(cx, domain, &config, &agreed);
        assert_eq!(engine.inspect(cx).modules, ["vfio_pci"]);
        end(cx, &engine);
    });
}
