//! What was agreed of a card is what the next one is brought up to be.

mod common;

use std::sync::Arc;

use card_memory::MemoryCard;
use common::{Bench, addr, story};
use eswitch::sf::SfState;
use eswitch::{Agreed, CardConfig, Engine, FunctionChange, Mode, SfNum};
use lockdep::{Domain, Locked, Threads, Unlocked};

/// Brings a card up as it was agreed.
fn again(cx: &mut Locked<'_, Unlocked>, domain: &Arc<Domain>, config: &CardConfig, agreed: &Agreed) -> Arc<Engine> {
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
        let engine = again(cx, domain, &config, &serde_json::from_value(stored.clone()).unwrap());
        engine.settle(cx, true);
        let is = sf(cx, &engine);
        assert!(is.active && is.unbound && !is.attached, "{is:?}");
        assert_eq!(engine.agreed(cx), agreed, "and it is what is agreed then");
        engine.set_sf_bound(cx, is.id, true).unwrap();
        assert!(sf(cx, &engine).attached, "it can be bound again");
        end(cx, &engine);

        // As the version before stored it, which did not know.
        let mut before = stored;
        let sfs = before["pfs"][0]["bound"]["sfs"].as_object_mut().unwrap();
        assert_eq!(sfs.values_mut().map(|sf| sf.as_object_mut().unwrap().remove("unbound")).count(), 1);
        let engine = again(cx, domain, &config, &serde_json::from_value(before).unwrap());
        engine.settle(cx, true);
        let is = sf(cx, &engine);
        assert!(is.active && !is.unbound && is.attached, "{is:?}");
        end(cx, &engine);
    });
}

#[test]
fn a_module_without_the_one_it_needs_was_once_agreed_and_has_it_now() {
    story(|cx, domain| {
        let config = CardConfig { modules: vec!["mlx5_ib".into()], ..CardConfig::default() };
        let bench = Bench::start(cx, domain, config.clone());
        bench.engine.unbind(cx, addr()).unwrap();
        let mut agreed = bench.engine.agreed(cx);
        bench.end(cx);
        agreed.core = false;
        let engine = again(cx, domain, &config, &agreed);
        assert_eq!(engine.inspect(cx).modules, ["mlx5_core", "mlx5_ib"]);
        assert!(engine.inspect(cx).pfs.is_empty(), "and no PF is bound that was not");
        end(cx, &engine);
    });
}
