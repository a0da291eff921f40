//! [`Engine::changes`] counts changes of the state that can be inspected: every command that changes something raises
//! it, and no query does.

use crate::common::{Bench, addr, story};
use eswitch::devlink::{InlineMode, SteeringMode};
use eswitch::lag::{Bond, TxType};
use eswitch::rate::{RateChange, RateObject};
use eswitch::vf::{LinkState, VfSetting, VfVlan};
use eswitch::{
    CardConfig, Engine, FunctionChange, MacAddr, Mode, PciAddress, PfIndex, PortHandle, PortIndex, Result, SfNum, Vport,
};
use lockdep::{Locked, Unlocked};

type Command = fn(&mut Locked<'_, Unlocked>, &Engine) -> Result<()>;

fn port(vport: Vport) -> PortHandle {
    PortHandle { device: addr(), index: PortIndex::new(PfIndex(0), vport) }
}

fn vf0(engine: &Engine) -> PciAddress {
    engine.config().vf_address(PfIndex(0), 0)
}

fn set(cx: &mut Locked<'_, Unlocked>, engine: &Engine, vport: Vport, change: FunctionChange) -> Result<()> {
    engine.set_function(cx, port(vport), change)
}

fn bond(ports: u8) -> Bond {
    Bond { name: "bond0".into(), tx: TxType::Hash, ports: (0..ports).map(PfIndex).collect(), foreign: vec![] }
}

const MAC: MacAddr = MacAddr([0, 0x11, 0x22, 0x33, 0x44, 0x55]);
const SF: Vport = Vport::Sf(0);

/// Commands that change something, in an order in which a user could type them, on a card of two PFs in legacy mode
/// with two VFs each.
const CHANGES: &[(&str, Command)] = &[
    ("ip link set vf mac", |cx, e| e.set_vf(cx, addr(), 0, VfSetting::Mac(MAC))),
    ("ip link set vf vlan", |cx, e| e.set_vf(cx, addr(), 0, VfSetting::Vlan(VfVlan { id: 5, ..VfVlan::default() }))),
    ("ip link set vf rate", |cx, e| e.set_vf(cx, addr(), 0, VfSetting::Rate { min: None, max: Some(100) })),
    ("ip link set vf spoofchk", |cx, e| e.set_vf(cx, addr(), 0, VfSetting::Spoofchk(true))),
    ("ip link set vf trust", |cx, e| e.set_vf(cx, addr(), 0, VfSetting::Trust(true))),
    ("ip link set vf state", |cx, e| e.set_vf(cx, addr(), 0, VfSetting::Link(LinkState::Enable))),
    ("ip link set netns", |cx, e| e.set_netns(cx, addr(), Some("blue"))),
    ("ip link set netns home", |cx, e| e.set_netns(cx, addr(), None)),
    ("param set esw_port_metadata", |cx, e| e.change_params(cx, addr(), |params| params.port_metadata = false)),
    ("param set flow_steering_mode", |cx, e| {
        e.change_params(cx, addr(), |params| params.steering = SteeringMode::Firmware)
    }),
    ("eswitch set mode", |cx, e| e.set_mode(cx, addr(), Mode::Switchdev)),
    ("eswitch set encap-mode", |cx, e| e.set_encap(cx, addr(), false)),
    ("function set hw_addr, a VF's", |cx, e| {
        set(cx, e, Vport::Vf(0), FunctionChange { hw_addr: Some(MAC), ..Default::default() })
    }),
    ("function set roce, a VF's", |cx, e| {
        set(cx, e, Vport::Vf(0), FunctionChange { roce: Some(false), ..Default::default() })
    }),
    ("rate add", |cx, e| e.add_rate_node(cx, addr(), "group", &RateChange::default())),
    ("rate set, a node's", |cx, e| {
        let change = RateChange { tx_max: Some(125_000_000), ..RateChange::default() };
        e.set_rate(cx, &RateObject::Node(addr(), "group".into()), &change)
    }),
    ("rate set, a leaf's", |cx, e| {
        let change = RateChange { tx_share: Some(125_000), ..RateChange::default() };
        e.set_rate(cx, &RateObject::Leaf(port(Vport::Vf(0))), &change)
    }),
    ("rate del", |cx, e| e.delete_rate_node(cx, addr(), "group")),
    ("port add", |cx, e| e.add_sf(cx, addr(), 0, SfNum(88)).map(|_| ())),
    ("function set hw_addr, an SF's", |cx, e| {
        set(cx, e, SF, FunctionChange { hw_addr: Some(MAC), ..Default::default() })
    }),
    ("function set roce, an SF's", |cx, e| set(cx, e, SF, FunctionChange { roce: Some(false), ..Default::default() })),
    ("function set state", |cx, e| set(cx, e, SF, FunctionChange { active: Some(true), ..Default::default() })),
    ("unbind, an SF", |cx, e| {
        let id = e.inspect(cx).pfs[0].ports.iter().find_map(|port| port.sf).unwrap().id;
        e.set_sf_bound(cx, id, false)
    }),
    ("port del", |cx, e| e.delete_port(cx, port(SF))),
    ("driver_override, a VF's", |cx, e| {
        let vf = vf0(e);
        e.set_driver_override(cx, vf, Some("vfio-pci".into()))
    }),
    ("unbind, a VF", |cx, e| e.unbind(cx, vf0(e))),
    ("modprobe, vfio-pci", |cx, e| e.load_module(cx, "vfio-pci")),
    ("unbind, a VF, from vfio-pci", |cx, e| e.unbind_vfio(cx, vf0(e))),
    ("sriov_vf_msix_count", |cx, e| e.set_vf_msix(cx, vf0(e), 12)),
    ("bind, a VF, to vfio-pci", |cx, e| e.bind_vfio(cx, vf0(e))),
    ("rmmod, vfio-pci", |cx, e| e.unload_module(cx, "vfio_pci")),
    ("driver_override, no more", |cx, e| e.set_driver_override(cx, vf0(e), None)),
    ("bind, a VF", |cx, e| e.bind(cx, vf0(e))),
    ("reset, a VF", |cx, e| e.reset(cx, vf0(e))),
    ("remove, a VF", |cx, e| e.remove(cx, vf0(e))),
    ("rescan", |cx, e| {
        e.rescan(cx);
        Ok(())
    }),
    ("param set esw_multiport", |cx, e| {
        e.set_mode(cx, e.addresses()[1], Mode::Switchdev)?;
        e.settle(cx, true);
        e.set_esw_multiport(cx, addr(), true)
    }),
    ("param set esw_multiport, off", |cx, e| e.set_esw_multiport(cx, addr(), false)),
    ("a bond", |cx, e| {
        e.bond_changed(cx, Some(bond(2)));
        Ok(())
    }),
    ("no bond", |cx, e| {
        e.bond_changed(cx, None);
        Ok(())
    }),
    ("sriov_drivers_autoprobe", |cx, e| e.set_autoprobe(cx, addr(), false)),
    ("sriov_numvfs", |cx, e| e.set_num_vfs(cx, addr(), 0)),
    ("reload", |cx, e| e.reload(cx, addr())),
    ("unbind", |cx, e| e.unbind(cx, addr())),
    ("driver_override", |cx, e| e.set_driver_override(cx, addr(), Some("vfio-pci".into()))),
    ("driver_override, none", |cx, e| e.set_driver_override(cx, addr(), None)),
    ("bind", |cx, e| e.bind(cx, addr())),
    ("remove", |cx, e| e.remove(cx, addr())),
    ("rescan, a PF", |cx, e| {
        e.rescan(cx);
        Ok(())
    }),
    ("modprobe", |cx, e| e.load_module(cx, "mlx5_ib")),
    ("rmmod", |cx, e| e.unload_module(cx, "mlx5_ib")),
    ("insmod", |cx, e| e.insert_module(cx, "mlx5_ib")),
];

/// Queries, and a command that changes nothing.
const QUERIES: &[(&str, Command)] = &[
    ("eswitch show", |cx, e| e.eswitch(cx, addr()).map(|_| ())),
    ("param show", |cx, e| e.params(cx, addr()).map(|_| ())),
    ("rate show", |cx, e| e.rates(cx, addr()).map(|_| ())),
    ("port show", |cx, e| {
        e.inspect(cx);
        Ok(())
    }),
    ("port show, one PF's", |cx, e| e.inspect_pf(cx, addr()).map(|_| ())),
    ("the agreed state", |cx, e| {
        e.agreed(cx);
        Ok(())
    }),
    ("invariants", |cx, e| {
        e.check(cx);
        Ok(())
    }),
    ("functions", |cx, e| {
        e.functions(cx);
        Ok(())
    }),
    ("the LAG", |cx, e| {
        e.lag(cx);
        Ok(())
    }),
    ("eswitch set inline-mode, to the present mode", |cx, e| e.set_inline_mode(cx, addr(), InlineMode::None)),
];

#[test]
fn every_command_that_changes_something_is_counted_and_no_query_is() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { pfs: 2, vfs: 2, vf_msix: 256, ..CardConfig::default() });
        let engine = &bench.engine;
        for (name, change) in CHANGES {
            // No background work changes anything from here on.
            engine.settle(cx, true);
            let before = engine.changes();
            change(cx, engine).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_ne!(engine.changes(), before, "{name} is not counted");
            engine.settle(cx, true);
            let before = engine.changes();
            for (name, query) in QUERIES {
                // A query of an unbound PF fails.
                let _ = query(cx, engine);
                assert_eq!(engine.changes(), before, "{name} is counted");
            }
        }
        bench.end(cx);
    });
}

#[test]
fn the_vfs_of_a_host_are_counted() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { dpu: true, ..CardConfig::default() });
        bench.engine.settle(cx, true);
        let before = bench.engine.changes();
        bench.engine.set_host_vfs(cx, addr(), 2).unwrap();
        assert_ne!(bench.engine.changes(), before);
        bench.end(cx);
    });
}
