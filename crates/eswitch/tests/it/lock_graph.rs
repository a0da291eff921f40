//! The graph of lock classes in which the engine takes its locks, kept in `docs/lock-graph.md`.
//!
//! `lock_order.rs` declares which order is allowed; this graph shows which is used. The test runs every command of the
//! engine, so that a new or a missing edge changes the page. `cargo xtask docs --write` writes the page, by running this
//! test with `UPDATE=1`.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::common::{Bench, addr, story};
use eswitch::card::ResourceKind;
use eswitch::datapath::port;
use eswitch::lag::TxType;
use eswitch::{CardConfig, FlowChange, FunctionChange, Mode, PfIndex, RepType, SfNum, Vport};
use flow::{Action, Match, Port, Rule};
use lockdep::{Locked, Unlocked};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/lock-graph.md");

/// The lines around the table, which is the part of the page that this test writes.
const BEGIN: &str = "<!-- lock-graph: begin -->\n";
const END: &str = "<!-- lock-graph: end -->\n";

/// Every class that can be held, from the outermost. The mode is last: it is a branch of its own with nothing under it.
/// A handler of the work queue takes it under the devlink lock, which it only tries.
const ORDER: [&str; 17] = [
    "core module",
    "device",
    "devlink",
    "work queue",
    "SF queue",
    "LAG queue",
    "devcom component",
    "module",
    "auxiliary device",
    "devlink of an SF",
    "auxiliary device of an SF",
    "representors",
    "representors, nested",
    "rep ops",
    "lag",
    "flows",
    "mode",
];

/// Classes that may be taken under any other, and under which none is taken.
const LEAVES: [&str; 9] = [
    "device slot",
    "devlink moved",
    "queue items",
    "bus lists",
    "SF wanted",
    "LAG holds",
    "events",
    "lent ops",
    "card state",
];

/// Runs every command.
fn run_every_command(cx: &mut Locked<'_, Unlocked>, bench: &Bench) {
    let engine = &bench.engine;
    let peer = engine.config().pf_address(PfIndex(1));
    let both = [addr(), peer];
    engine.load_module(cx, "mlx5_ib").unwrap();
    for pf in both {
        engine.set_mode(cx, pf, Mode::Switchdev).unwrap();
    }
    engine.set_num_vfs(cx, addr(), 2).unwrap();
    let sf = engine.add_sf(cx, addr(), 0, SfNum(1)).unwrap();
    engine.set_function(cx, sf, FunctionChange { hw_addr: None, active: Some(true), roce: None }).unwrap();
    engine.settle(cx, true);
    let to_sf = Rule::new(port(PfIndex(0), Vport::Vf(0)), Match::new(), [Action::Redirect(Port(sf.index.0))]);
    let added = engine.change_flows(cx, vec![FlowChange::Add { pf: PfIndex(0), rule: Box::new(to_sf) }]);
    assert!(added[0].is_ok(), "{added:?}");
    engine.bond(cx, "bond0", TxType::Hash, &both, &[]).unwrap();
    engine.settle(cx, true);
    engine.unload_module(cx, "mlx5_ib").unwrap();
    bench.fail(cx, ResourceKind::Representor(RepType::Ib), Some(Vport::Vf(0)), 1);
    engine.load_module(cx, "mlx5_ib").unwrap();
    engine.settle(cx, true);
    engine.unbond(cx, "bond0").unwrap();
    engine.settle(cx, true);
    engine.set_esw_multiport(cx, addr(), true).unwrap();
    engine.settle(cx, true);
    engine.pf(cx, peer).unwrap().eswitch().protocol_device(cx, Vport::Uplink, RepType::Ib).unwrap();
    engine.set_esw_multiport(cx, addr(), false).unwrap();
    engine.delete_port(cx, sf).unwrap();
    engine.set_num_vfs(cx, addr(), 0).unwrap();
    for pf in both {
        engine.set_mode(cx, pf, Mode::Legacy).unwrap();
        engine.set_netns(cx, pf, None).unwrap();
        engine.reload(cx, pf).unwrap();
    }
    engine.unload_module(cx, "mlx5_ib").unwrap();
    engine.unload_module(cx, "mlx5_core").unwrap();
    engine.load_module(cx, "mlx5_ib").unwrap();
    engine.settle(cx, true);
    assert_eq!(engine.check(cx), []);
}

#[test]
fn the_graph_is_the_documented_one() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { pfs: 2, ..CardConfig::default() });
        run_every_command(cx, &bench);
        bench.end(cx);

        let mut rows: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for edge in domain.edges().iter().filter(|edge| !LEAVES.contains(&edge.inner)) {
            let place =
                |class| ORDER.iter().position(|c| *c == class).unwrap_or_else(|| panic!("{class} has no place"));
            let (outer, inner) = (place(edge.outer), place(edge.inner));
            assert!(outer < inner, "{} under {}", edge.inner, edge.outer);
            assert_ne!(edge.outer, "mode", "the mode is a branch of its own");
            rows.entry(outer).or_default().push(inner);
        }
        let mut table = "\n| while this is held | these are waited for |\n| --- | --- |\n".to_owned();
        for (outer, mut inner) in rows {
            inner.sort_unstable();
            let inner: Vec<&str> = inner.into_iter().map(|place| ORDER[place]).collect();
            writeln!(table, "| {} | {} |", ORDER[outer], inner.join("; ")).unwrap();
        }
        table.push('\n');
        let page = std::fs::read_to_string(PAGE).unwrap();
        let (before, rest) = page.split_once(BEGIN).expect("the page has the begin mark");
        let (kept, after) = rest.split_once(END).expect("the page has the end mark");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(PAGE, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        } else {
            assert_eq!(table, kept, "run `cargo xtask docs --write` and look at what has changed");
        }
    });
}
