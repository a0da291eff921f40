//! What the card is told to let pass at the ports of VFs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::*;
use eswitch::card::{Acl, Resource, Tag};
use eswitch::vf::{VfSetting, VfVlan};
use eswitch::{CardConfig, Error, MacAddr, Mode, PfIndex, Vport};
use lockdep::{Domain, Explore, Locked, Oracle, Unlocked};
use shuttle::scheduler::RandomScheduler;

const OPEN: Acl = Acl { source: None, tag: None };

fn config(mode: Mode) -> CardConfig {
    CardConfig { vfs: 2, mode, ..CardConfig::default() }
}

fn vlan(id: u16, qos: u8) -> VfSetting {
    VfSetting::Vlan(VfVlan { id, qos, ..VfVlan::default() })
}

fn acl(bench: &Bench, cx: &mut Locked<'_, Unlocked>, vf: u16) -> Acl {
    bench.card.acl(cx, &Resource::Port(PfIndex(0), Vport::Vf(vf))).unwrap()
}

fn mac() -> MacAddr {
    "00:11:22:33:44:55".parse().unwrap()
}

#[test]
fn the_card_has_the_spoof_check_and_the_vlan_of_a_vf_in_legacy_mode() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, config(Mode::Legacy));
        let set = |cx: &mut Locked<'_, Unlocked>, setting| bench.engine.set_vf(cx, addr(), 0, setting).unwrap();
        set(cx, VfSetting::Spoofchk(true));
        // The check is on the administrative address, and there is none yet.
        assert_eq!(acl(&bench, cx, 0), Acl { source: Some(MacAddr::ZERO), ..OPEN });
        set(cx, VfSetting::Mac(mac()));
        let source = Some(mac());
        assert_eq!(acl(&bench, cx, 0), Acl { source, ..OPEN });
        set(cx, vlan(7, 2));
        let tag = Some(Tag { vlan: 7, priority: 2 });
        assert_eq!(acl(&bench, cx, 0), Acl { source, tag });
        set(cx, VfSetting::Spoofchk(false));
        assert_eq!(acl(&bench, cx, 0), Acl { tag, ..OPEN });
        // A priority alone is a tag, too.
        set(cx, vlan(0, 2));
        assert_eq!(acl(&bench, cx, 0), Acl { tag: Some(Tag { vlan: 0, priority: 2 }), ..OPEN });
        set(cx, vlan(0, 0));
        assert_eq!((acl(&bench, cx, 0), acl(&bench, cx, 1)), (OPEN, OPEN));
        bench.end(cx);
    });
}

#[test]
fn access_lists_are_those_of_legacy_mode_and_return_with_it() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, config(Mode::Legacy));
        let engine = &bench.engine;
        engine.set_vf(cx, addr(), 1, vlan(7, 0)).unwrap();
        let expected = Acl { tag: Some(Tag { vlan: 7, priority: 0 }), ..OPEN };
        engine.reload(cx, addr()).unwrap();
        assert_eq!((acl(&bench, cx, 1), acl(&bench, cx, 0)), (expected, OPEN));
        engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        assert_eq!(acl(&bench, cx, 1), OPEN);
        engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        assert_eq!(acl(&bench, cx, 1), expected);
        engine.set_num_vfs(cx, addr(), 0).unwrap();
        engine.set_num_vfs(cx, addr(), 2).unwrap();
        assert_eq!(acl(&bench, cx, 1), OPEN);
        bench.end(cx);
    });
}

/// An oracle under which the card refuses access lists while it is set.
#[derive(Debug, Default)]
struct RefusesAcls(AtomicBool);

impl Oracle for RefusesAcls {
    fn fails(&self, _: &str, place: &str) -> bool {
        place.starts_with("set the access list of") && self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn what_the_card_refuses_is_not_shown_as_set() {
    let once = || {
        let oracle = Arc::new(RefusesAcls::default());
        let refuse = |on: bool| oracle.0.store(on, Ordering::Relaxed);
        let domain = Domain::exploring(Some(Arc::clone(&oracle) as Arc<dyn Oracle>));
        lockdep::enter(&domain, "story", |cx| {
            let bench = Bench::start(cx, &domain, config(Mode::Legacy));
            let engine = &bench.engine;
            engine.set_vf(cx, addr(), 0, VfSetting::Spoofchk(true)).unwrap();
            let shown = |cx: &mut Locked<'_, Unlocked>| bench.pf0(cx).vfs[0].clone();
            let before = shown(cx);
            refuse(true);
            for setting in [VfSetting::Spoofchk(false), VfSetting::Mac(mac()), vlan(5, 0)] {
                assert!(matches!(engine.set_vf(cx, addr(), 0, setting), Err(Error::Card { .. })), "{setting:?}");
                assert_eq!(shown(cx), before);
            }
            // What changes nothing for the switch does not ask it.
            engine.set_vf(cx, addr(), 0, VfSetting::Trust(true)).unwrap();
            engine.set_vf(cx, addr(), 1, VfSetting::Mac(mac())).unwrap();
            refuse(false);
            engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
            refuse(true);
            engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
            assert!(!shown(cx).info.spoofchk);
            assert_eq!(acl(&bench, cx, 0), OPEN);
            refuse(false);
            bench.engine.settle(cx, true);
            assert_eq!(bench.engine.check(cx), []);
            bench.engine.shutdown(cx);
        });
    };
    if let Err(halt) = Explore::default().until_failure(RandomScheduler::new(1), once) {
        panic!("{halt}");
    }
}
