//! The engine under a scheduler that decides every interleaving: the same engine and locks, in the same binary, as in
//! the tests with real threads.

use std::sync::Arc;

use crate::common::{Bench, addr};
use eswitch::card::ResourceKind;
use eswitch::{CardConfig, Engine, Mode, PfIndex, RepType, SfNum, Vport};
use lockdep::{Domain, Explore, Halt, Locked, OnReport, Unlocked};
use shuttle::scheduler::{PctScheduler, RandomScheduler};

fn config() -> CardConfig {
    CardConfig { vfs: 2, total_vfs: 2, ..CardConfig::default() }
}

type Step = fn(&mut Locked<'_, Unlocked>, &Engine);

/// Explores `threads` that run concurrently on a fresh card. After each schedule, checks that every invariant holds at
/// rest, and that nothing is left after shutdown.
///
/// Half of the schedules are random walks, which switch between threads often but let short threads finish early. The
/// other half are those of PCT, which delays one thread while another runs far ahead.
fn explore(config: CardConfig, prepare: fn(&mut Locked<'_, Unlocked>, &Bench), threads: &[Step]) {
    let threads = threads.to_vec();
    let once = move || {
        let domain = Domain::checked(OnReport::Panic);
        lockdep::enter(&domain, "story", |cx| {
            let bench = Bench::start(cx, &domain, config.clone());
            // Work that was queued while the card was brought up would do what the test is about.
            bench.engine.settle(cx, true);
            prepare(cx, &bench);
            let running: Vec<_> = threads
                .iter()
                .enumerate()
                .map(|(n, step)| {
                    let (engine, step) = (Arc::clone(&bench.engine), *step);
                    cx.spawn(&format!("t{n}"), move |cx| step(cx, &engine))
                })
                .collect();
            for thread in running {
                thread.join(cx).unwrap();
            }
            bench.end(cx);
        });
    };
    let held = |explored: Result<usize, Halt>| explored.unwrap_or_else(|halt| panic!("{halt}"));
    held(Explore::default().until_failure(RandomScheduler::new(500), once.clone()));
    held(Explore::default().until_failure(PctScheduler::new(3, 1_000), once));
}

fn nothing(_: &mut Locked<'_, Unlocked>, _: &Bench) {}

#[test]
fn registration_against_a_mode_change() {
    explore(
        config(),
        nothing,
        &[
            |cx, engine| engine.set_mode(cx, addr(), Mode::Switchdev).unwrap(),
            |cx, engine| engine.load_module(cx, "mlx5_ib").unwrap(),
        ],
    );
}

#[test]
fn unregistration_against_a_mode_change_and_back() {
    let config = CardConfig { modules: vec!["mlx5_ib".into()], ..config() };
    explore(
        config,
        nothing,
        &[
            |cx, engine| {
                engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
                engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
            },
            |cx, engine| {
                engine.unload_module(cx, "mlx5_ib").unwrap();
                engine.load_module(cx, "mlx5_ib").unwrap();
            },
        ],
    );
}

#[test]
fn registration_against_a_vf_count_change() {
    let config = CardConfig { vfs: 0, mode: Mode::Switchdev, ..config() };
    explore(
        config,
        nothing,
        &[
            |cx, engine| {
                engine.set_num_vfs(cx, addr(), 2).unwrap();
                engine.set_num_vfs(cx, addr(), 0).unwrap();
                engine.set_num_vfs(cx, addr(), 1).unwrap();
            },
            |cx, engine| engine.load_module(cx, "mlx5_ib").unwrap(),
        ],
    );
}

#[test]
fn removal_of_a_device_while_work_is_queued() {
    let config = CardConfig { mode: Mode::Switchdev, ..config() };
    explore(
        config,
        nothing,
        &[
            |cx, engine| engine.load_module(cx, "mlx5_ib").unwrap(),
            |cx, engine| {
                engine.unbind(cx, addr()).unwrap();
                engine.bind(cx, addr()).unwrap();
            },
        ],
    );
}

#[test]
fn sfs_against_a_mode_change() {
    let config = CardConfig { mode: Mode::Switchdev, vfs: 0, ..config() };
    explore(
        config,
        nothing,
        &[
            |cx, engine| {
                let Ok(sf) = engine.add_sf(cx, addr(), 0, SfNum(88)) else {
                    return;
                };
                let active = eswitch::FunctionChange { active: Some(true), ..Default::default() };
                let _ = engine.set_function(cx, sf, active);
            },
            |cx, engine| engine.set_mode(cx, addr(), Mode::Legacy).unwrap(),
            |cx, engine| engine.load_module(cx, "mlx5_ib").unwrap(),
        ],
    );
}

#[test]
fn the_hosts_vf_count_against_everything() {
    let config = CardConfig { dpu: true, mode: Mode::Switchdev, vfs: 1, ..config() };
    explore(
        config,
        nothing,
        &[
            |cx, engine| {
                engine.fail_allocations(cx, addr(), 1).unwrap_or(());
                engine.set_host_vfs(cx, addr(), 2).unwrap();
                engine.set_host_vfs(cx, addr(), 0).unwrap();
            },
            |cx, engine| engine.load_module(cx, "mlx5_ib").unwrap(),
            |cx, engine| engine.reload(cx, addr()).unwrap(),
        ],
    );
}

#[test]
fn two_orchestrators_and_a_load_that_fails() {
    let config = CardConfig { modules: vec!["mlx5_ib".into()], ..config() };
    let fail = |cx: &mut Locked<'_, Unlocked>, bench: &Bench| {
        bench.fail(cx, ResourceKind::Representor(RepType::Ib), Some(Vport::Vf(1)), 1);
    };
    explore(
        config,
        fail,
        &[
            |cx, engine| {
                let _ = engine.set_mode(cx, addr(), Mode::Switchdev);
            },
            |cx, engine| {
                let _ = engine.set_mode(cx, addr(), Mode::Legacy);
                let _ = engine.set_mode(cx, addr(), Mode::Switchdev);
            },
            |cx, engine| engine.set_num_vfs(cx, addr(), 0).unwrap_or(()),
        ],
    );
}

#[test]
fn moving_the_netdev_against_a_mode_change() {
    explore(
        config(),
        nothing,
        &[
            |cx, engine| {
                let _ = engine.set_mode(cx, addr(), Mode::Switchdev);
            },
            |cx, engine| {
                if engine.set_netns(cx, addr(), Some("elsewhere")).is_ok() {
                    // The E-Switch cannot be in switchdev mode while the netdev is in another namespace.
                    let view = engine.inspect(cx).pfs.remove(0);
                    assert_eq!(view.mode, Mode::Legacy);
                }
            },
        ],
    );
}

#[test]
fn a_lookup_against_unregistering() {
    let config = CardConfig { modules: vec!["mlx5_ib".into()], mode: Mode::Switchdev, ..config() };
    explore(
        config,
        nothing,
        &[
            |cx, engine| {
                // It finds the device or none, but never one of ops that are unregistered.
                let pf = engine.pf(cx, addr()).unwrap();
                for vport in [Vport::Uplink, Vport::Vf(0), Vport::Vf(1)] {
                    let _ = pf.eswitch().protocol_device(cx, vport, RepType::Ib);
                }
            },
            |cx, engine| engine.unload_module(cx, "mlx5_ib").unwrap(),
        ],
    );
}

#[test]
fn unloading_a_module_in_the_middle_of_a_mode_change() {
    let config = CardConfig { modules: vec!["mlx5_ib".into()], ..config() };
    explore(
        config,
        nothing,
        &[
            |cx, engine| engine.set_mode(cx, addr(), Mode::Switchdev).unwrap(),
            |cx, engine| engine.unload_module(cx, "mlx5_ib").unwrap(),
        ],
    );
}

#[test]
fn a_notifier_without_memory_against_binding() {
    let config = CardConfig { dpu: true, mode: Mode::Switchdev, vfs: 0, ..config() };
    explore(
        config,
        nothing,
        &[
            |cx, engine| {
                engine.fail_allocations(cx, addr(), 1).unwrap_or(());
                engine.set_host_vfs(cx, addr(), 2).unwrap();
            },
            |cx, engine| {
                engine.unbind(cx, addr()).unwrap();
                engine.bind(cx, addr()).unwrap();
            },
        ],
    );
}

#[test]
fn a_late_module_whose_loads_fail_against_a_mode_change() {
    let config = CardConfig { mode: Mode::Switchdev, ..config() };
    let fail = |cx: &mut Locked<'_, Unlocked>, bench: &Bench| {
        bench.fail(cx, ResourceKind::Representor(RepType::Ib), Some(Vport::Uplink), 1);
        bench.fail(cx, ResourceKind::Representor(RepType::Ib), Some(Vport::Vf(1)), 1);
        bench.fail(cx, ResourceKind::IbDevice, None, 1);
    };
    explore(
        config,
        fail,
        &[
            |cx, engine| engine.load_module(cx, "mlx5_ib").unwrap(),
            |cx, engine| {
                let _ = engine.set_mode(cx, addr(), Mode::Legacy);
            },
        ],
    );
}

#[test]
fn commands_against_the_removal_of_their_device() {
    let config = CardConfig { mode: Mode::Switchdev, vfs: 0, ..config() };
    explore(
        config,
        nothing,
        &[
            |cx, engine| engine.unbind(cx, addr()).unwrap(),
            |cx, engine| {
                let _ = engine.add_sf(cx, addr(), 0, SfNum(1));
                let _ = engine.set_num_vfs(cx, addr(), 1);
            },
            |cx, engine| {
                let _ = engine.set_mode(cx, addr(), Mode::Legacy);
                let _ = engine.load_module(cx, "mlx5_ib");
            },
        ],
    );
}

#[test]
fn commands_during_a_reload_wait_for_it() {
    explore(
        config(),
        nothing,
        &[
            |cx, engine| engine.reload(cx, addr()).unwrap(),
            |cx, engine| engine.set_mode(cx, addr(), Mode::Switchdev).unwrap(),
            |cx, engine| engine.set_netns(cx, addr(), None).unwrap_or(()),
        ],
    );
}

#[test]
fn an_sfs_address_is_the_one_that_its_netdev_was_made_with() {
    let config = CardConfig { mode: Mode::Switchdev, vfs: 0, ..config() };
    explore(
        config,
        nothing,
        &[|cx, engine| {
            let sf = engine.add_sf(cx, addr(), 0, SfNum(1)).unwrap();
            let set = |hw_addr, active| eswitch::FunctionChange { hw_addr, active, roce: None };
            engine.set_function(cx, sf, set(None, Some(true))).unwrap();
            engine.set_function(cx, sf, set(None, Some(false))).unwrap();
            let mac = Some("00:11:22:33:44:55".parse().unwrap());
            let _ = engine.set_function(cx, sf, set(mac, Some(true)));
        }],
    );
}

fn two_ports() -> CardConfig {
    CardConfig { pfs: 2, vfs: 1, mode: Mode::Switchdev, ..config() }
}

fn bond() -> Option<eswitch::lag::Bond> {
    Some(eswitch::lag::Bond {
        name: "bond0".into(),
        tx: eswitch::lag::TxType::Hash,
        ports: [PfIndex(0), PfIndex(1)].into(),
        foreign: Vec::new(),
    })
}

fn bonded(cx: &mut Locked<'_, Unlocked>, bench: &Bench) {
    bench.engine.bond_changed(cx, bond());
    bench.engine.settle(cx, true);
}

#[test]
fn a_shared_fdb_made_while_the_module_loads() {
    explore(
        two_ports(),
        nothing,
        &[|cx, engine| engine.bond_changed(cx, bond()), |cx, engine| engine.load_module(cx, "mlx5_ib").unwrap()],
    );
}

#[test]
fn a_shared_fdb_broken_while_the_module_is_loaded_and_unloaded() {
    let config = CardConfig { modules: vec!["mlx5_ib".into()], ..two_ports() };
    explore(
        config,
        bonded,
        &[
            |cx, engine| engine.bond_changed(cx, None),
            |cx, engine| {
                engine.unload_module(cx, "mlx5_ib").unwrap();
                engine.load_module(cx, "mlx5_ib").unwrap();
            },
        ],
    );
}

#[test]
fn a_mode_change_of_one_member_against_its_lag() {
    let config = CardConfig { modules: vec!["mlx5_ib".into()], ..two_ports() };
    explore(
        config,
        nothing,
        &[
            |cx, engine| engine.bond_changed(cx, bond()),
            |cx, engine| {
                let peer = engine.config().pf_address(PfIndex(1));
                engine.set_mode(cx, peer, Mode::Legacy).unwrap();
                engine.set_mode(cx, peer, Mode::Switchdev).unwrap();
            },
        ],
    );
}

#[test]
fn a_member_removed_and_added_again_during_a_transition() {
    let config = CardConfig { modules: vec!["mlx5_ib".into()], ..two_ports() };
    explore(
        config,
        nothing,
        &[
            |cx, engine| engine.bond_changed(cx, bond()),
            |cx, engine| {
                engine.unbind(cx, addr()).unwrap();
                engine.bind(cx, addr()).unwrap();
            },
        ],
    );
}

#[test]
fn multiport_eswitch_against_a_mode_change_and_a_bond() {
    let config = CardConfig { modules: vec!["mlx5_ib".into()], ..two_ports() };
    explore(
        config,
        nothing,
        &[
            |cx, engine| {
                if engine.set_esw_multiport(cx, addr(), true).is_ok() {
                    engine.set_esw_multiport(cx, addr(), false).unwrap();
                }
            },
            |cx, engine| {
                let peer = engine.config().pf_address(PfIndex(1));
                let _ = engine.set_mode(cx, peer, Mode::Legacy);
            },
            |cx, engine| engine.bond_changed(cx, bond()),
        ],
    );
}

#[test]
fn pairing_against_a_late_load_and_unregistering() {
    let config = CardConfig { vfs: 0, modules: vec!["mlx5_ib".into()], ..two_ports() };
    explore(
        config,
        nothing,
        &[
            |cx, engine| {
                let peer = engine.config().pf_address(PfIndex(1));
                engine.set_mode(cx, peer, Mode::Legacy).unwrap();
                engine.set_mode(cx, peer, Mode::Switchdev).unwrap();
            },
            |cx, engine| {
                engine.set_num_vfs(cx, addr(), 2).unwrap();
                engine.set_num_vfs(cx, addr(), 0).unwrap();
                let _ = engine.add_sf(cx, addr(), 0, SfNum(1));
            },
            |cx, engine| engine.unload_module(cx, "mlx5_ib").unwrap(),
        ],
    );
}

#[test]
fn a_pairing_that_fails_against_the_removal_of_one_side_and_a_late_load() {
    let fail = |cx: &mut Locked<'_, Unlocked>, bench: &Bench| {
        bench.fail(cx, ResourceKind::Pair, None, 2);
    };
    explore(
        CardConfig { vfs: 0, ..two_ports() },
        fail,
        &[
            |cx, engine| {
                let peer = engine.config().pf_address(PfIndex(1));
                engine.set_mode(cx, peer, Mode::Legacy).unwrap();
                let _ = engine.set_mode(cx, peer, Mode::Switchdev);
            },
            |cx, engine| {
                engine.unbind(cx, addr()).unwrap();
                engine.bind(cx, addr()).unwrap_or(());
            },
            |cx, engine| {
                let _ = engine.set_num_vfs(cx, addr(), 1);
            },
        ],
    );
}

#[test]
fn an_sf_that_was_deleted_is_gone() {
    let config = CardConfig { mode: Mode::Switchdev, vfs: 0, ..config() };
    explore(
        config,
        nothing,
        &[|cx, engine| {
            let sf = engine.add_sf(cx, addr(), 0, SfNum(1)).unwrap();
            let active = eswitch::FunctionChange { hw_addr: None, active: Some(true), roce: None };
            engine.set_function(cx, sf, active).unwrap();
            engine.delete_port(cx, sf).unwrap();
            let resources = engine.inspect(cx).resources;
            assert!(resources.iter().all(|r| r.vport() != Some(Vport::Sf(0))), "{resources:?}");
        }],
    );
}
