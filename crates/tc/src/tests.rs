use std::collections::BTreeMap;

use flow::{Counter, Port, RuleId};
use netlink::{Builder, Errno, Flags, Header, Message, attributes, find, message};
use proptest::prelude::*;

use crate::numbers::{RTM_NEWTFILTER, TC_H_MIN_INGRESS, TCMSG, act, cls_flags, control, flower, tca};
use crate::{
    Address, Answer, Event, GroupEvent, Netdev, Outcome, Place, Removed, Request, Side, Spec, StoredFilters, Tables,
    Target, Verb, rank,
};

const NETDEV: Netdev = Netdev { port: Port(1), tunnel: None, number: 1 };
const UPLINK: Port = Port(65535);

/// RTM_NEWTFILTER on NETDEV.
fn request(kind: &str, (priority, protocol, handle): (u16, u16, u32), fill: impl FnOnce(&mut Builder)) -> Vec<u8> {
    let info = u32::from(priority) << 16 | u32::from(protocol.to_be());
    let header = Header::new(RTM_NEWTFILTER, Flags::REQUEST | Flags::CREATE | Flags::EXCL, 1, 0);
    let built = message(header, |to| {
        let tcm = [0, 7, handle, TC_H_MIN_INGRESS, info];
        to.raw(&tcm.iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<u8>>());
        to.text(tca::KIND, kind).nest_noflag(tca::OPTIONS, fill);
    });
    built.unwrap()
}

/// Interface index 8 is port 2, and no other is a port.
fn target(index: u32) -> Target {
    if index == 8 { Target::Port(Port(2)) } else { Target::Other }
}

fn read(bytes: &[u8]) -> Result<Request, crate::Refusal> {
    Request::read(&Message::first(bytes).unwrap(), NETDEV, &mut target).map(Option::unwrap)
}

fn spec(bytes: &[u8]) -> (Place, Spec) {
    match read(bytes).unwrap() {
        Request { place, verb: Verb::Add { spec, .. }, .. } => (place, spec),
        other => panic!("{other:?}"),
    }
}

/// An action of a kind: parameters behind `tc_gen`, and other attributes.
fn action(to: &mut Builder, (kind, index, code): (&str, u32, i32), parms: &[u32], rest: &[(u16, Vec<u8>)]) {
    to.text(act::KIND, kind).nest_noflag(act::OPTIONS, |to| {
        let numbers = [index, 0, code.cast_unsigned(), 0, 0].into_iter().chain(parms.iter().copied());
        to.put(
            if kind == "csum" || kind == "ct" { 1 } else { 2 },
            &numbers.flat_map(u32::to_ne_bytes).collect::<Vec<u8>>(),
        );
        for (kind, value) in rest {
            to.put(*kind, value);
        }
    });
}

fn drop_to(address: [u8; 4], place: (u16, u16, u32)) -> Vec<u8> {
    request("flower", place, |to| {
        to.put(flower::ETH_TYPE, &[8, 0]).put(12, &address);
        to.nest_noflag(flower::ACT, |to| {
            to.nest_noflag(1, |to| action(to, ("gact", 0, control::SHOT), &[], &[]));
        });
    })
}

/// Adds a filter that the card carries out.
fn add(tables: &mut Tables, bytes: &[u8], rule: u64) -> Result<Place, crate::Refusal> {
    let (place, spec) = spec(bytes);
    let reserved = tables.reserve(place, spec, (true, true), UPLINK, 0)?;
    let place = reserved.place;
    reserved.offload.as_ref().unwrap().as_ref().unwrap();
    tables.settle(reserved, Outcome::InHw(RuleId(rule), Counter::default()), 0);
    Ok(place)
}

const IP: u16 = 0x0800;

#[test]
fn what_is_shown_is_what_was_read() {
    let bytes = request("flower", (1, 0x8100, 1), |to| {
        to.put(flower::ETH_TYPE, &[0x81, 0]).put(flower::VLAN_ID, &5_u16.to_ne_bytes());
        to.put(flower::VLAN_ETH_TYPE, &[8, 0]).put(9, &[6]).put(10, &[10, 0, 0, 5]).put(11, &[255, 0, 0, 0]);
        to.nest_noflag(flower::ACT, |to| {
            to.nest_noflag(1, |to| {
                action(to, ("vlan", 0, control::PIPE), &[2], &[(3, 7_u16.to_ne_bytes().to_vec())]);
            });
            to.nest_noflag(2, |to| action(to, ("mirred", 0, control::STOLEN), &[1, 8], &[]));
        });
    });
    let mut tables = Tables::default();
    let place = add(&mut tables, &bytes, 1).unwrap();
    let list = Place { priority: 0, protocol: 0, handle: 0, ..place };
    let entries = tables.list(&list);
    assert_eq!(entries.len(), 2, "the priority, and its filter");
    let shown = entries[1].clone().shown(Some(Counter { packets: 3, bytes: 294, ..Counter::default() }), None, 0);
    let address =
        Address { index: 7, parent: TC_H_MIN_INGRESS, flags: Flags::MULTI, sequence: 1, port: 2, is_terse: false };
    let written = address.filter(&shown, false, &mut |port| (port == Port(2)).then_some(8)).unwrap();
    let first = Message::first(&written).unwrap();
    assert_eq!(rank(&first), Some((0, 1, 1)));
    let options = find(first.after(TCMSG).unwrap(), tca::OPTIONS).unwrap();
    let of = |kind| find(options.value, kind).map(|attribute| attribute.value.to_vec());
    assert_eq!(of(flower::ETH_TYPE), Some(vec![8, 0]), "the type behind the tag");
    assert_eq!(
        (of(10), of(11)),
        (Some(vec![10, 0, 0, 5]), Some(vec![255, 0, 0, 0])),
        "bits outside the mask are shown"
    );
    assert_eq!(of(flower::FLAGS), Some(cls_flags::IN_HW.to_ne_bytes().to_vec()));
    let actions: Vec<_> =
        find(options.value, flower::ACT).unwrap().nested().flatten().map(|a| a.value.to_vec()).collect();
    let kinds: Vec<_> =
        actions.iter().map(|action| find(action, act::KIND).unwrap().string().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["vlan", "mirred"]);
    let protocol = find(find(&actions[0], act::OPTIONS).unwrap().value, 4).unwrap().value;
    assert_eq!(protocol, [0x81, 0], "what was not said is shown");
    let stats = find(&actions[1], act::STATS).unwrap();
    let hardware = find(stats.value, crate::numbers::stats::BASIC_HW).unwrap().value;
    assert_eq!(netlink::u32_at(hardware, 8), Some(3));
}

#[test]
fn priorities_and_handles_are_those_of_the_kernel() {
    let mut tables = Tables::default();
    let mut place =
        |n: u8, place| add(&mut tables, &drop_to([1, 1, 1, n], place), n.into()).map(|p| (p.priority, p.handle));
    assert_eq!(place(1, (0, IP, 0)), Ok((0xc000, 1)));
    assert_eq!(place(2, (0, IP, 0)), Ok((0xbfff, 1)), "each automatic priority is before the last");
    assert_eq!(place(3, (5, IP, 0)), Ok((5, 1)));
    assert_eq!(place(4, (5, IP, 0)), Ok((5, 2)));
    assert_eq!(place(5, (5, IP, 9)), Ok((5, 9)));
    assert_eq!(place(6, (5, IP, 0)), Ok((5, 3)), "the lowest that is free");
    assert_eq!(place(4, (5, IP, 0)).unwrap_err().errno(), Errno::EXIST, "the same match");
    assert_eq!(place(7, (5, IP, 9)).unwrap_err().text, "Filter already exists");
    assert_eq!(place(8, (5, 0x86dd, 0)).unwrap_err().text, "Filter with specified priority/protocol not found");
}

#[test]
fn a_filter_that_is_refused_leaves_nothing_and_nobody_sees_it_before() {
    let mut tables = Tables::default();
    let (place, spec) = spec(&drop_to([1, 1, 1, 1], (5, IP, 0)));
    let reserved = tables.reserve(place, spec, (true, true), UPLINK, 0).unwrap();
    let list = Place { priority: 0, protocol: 0, ..place };
    assert!(tables.list(&list).is_empty());
    assert_eq!(tables.get(&reserved.place, None).unwrap_err().text, "Specified filter handle not found");
    let (entry, gone) = tables.settle(reserved, Outcome::Refused, 0);
    assert!(entry.is_none());
    assert_eq!(gone, Some(Removed { rule: None, meters: vec![] }));
    let in_chain = Place { priority: 5, protocol: IP, handle: 1, ..list };
    assert_eq!(tables.get(&in_chain, None).unwrap_err().text, crate::NO_CHAIN, "no chain is left");
    assert!(add(&mut tables, &drop_to([1, 1, 1, 1], (5, 0x86dd, 0)), 1).is_ok(), "the priority is free again");
}

#[test]
fn a_filter_that_is_deleted_before_the_card_has_answered_lets_its_actions_go_once() {
    let mut tables = Tables::default();
    let shared = |address: u8| {
        request("flower", (5, IP, 0), |to| {
            to.put(flower::ETH_TYPE, &[8, 0]).put(12, &[1, 1, 1, address]);
            to.nest_noflag(flower::ACT, |to| {
                to.nest_noflag(1, |to| action(to, ("gact", 3, control::SHOT), &[], &[]));
            });
        })
    };
    // Another netdev has a filter with the same action, which stays.
    let (at, other) = spec(&shared(1));
    let elsewhere = Place { netdev: Netdev { port: Port(3), ..NETDEV }, ..at };
    let reserved = tables.reserve(elsewhere, other, (true, true), UPLINK, 0).unwrap();
    let stays = reserved.place;
    tables.settle(reserved, Outcome::InHw(RuleId(1), Counter::default()), 0);
    let (at, deleted) = spec(&shared(2));
    let reserved = tables.reserve(at, deleted, (true, true), UPLINK, 0).unwrap();
    tables.forget(NETDEV, Side::Ingress);
    let settled = tables.settle(reserved, Outcome::InHw(RuleId(2), Counter::default()), 0);
    assert!(settled.0.is_none());
    assert_eq!(settled.1, Some(Removed { rule: Some(RuleId(2)), meters: vec![] }), "its rule is to be removed");
    // Both have it: it was not taken away from the one that stays.
    add(&mut tables, &shared(3), 3).unwrap();
    let shown = tables.get(&stays, None).unwrap().shown(None, None, 0);
    assert_eq!(shown.filter.unwrap().usages[0].bound, 2);
}

#[test]
fn a_filter_in_the_place_of_one_that_was_deleted_is_not_settled_as_that() {
    for (outcome, rule) in [(Outcome::InHw(RuleId(1), Counter::default()), Some(RuleId(1))), (Outcome::Refused, None)] {
        let mut tables = Tables::default();
        let reserve = |tables: &mut Tables, address: u8| {
            let (place, spec) = spec(&drop_to([1, 1, 1, address], (5, IP, 7)));
            tables.reserve(place, spec, (true, true), UPLINK, 0).unwrap()
        };
        let first = reserve(&mut tables, 1);
        tables.forget(NETDEV, Side::Ingress);
        let second = reserve(&mut tables, 2);
        let (entry, gone) = tables.settle(first, outcome, 0);
        assert!(entry.is_none());
        assert_eq!(gone.and_then(|gone| gone.rule), rule, "the first one's rule is to be removed");
        let place = second.place;
        assert!(tables.get(&place, None).is_err(), "the second is not settled yet");
        tables.settle(second, Outcome::InHw(RuleId(2), Counter::default()), 0);
        assert_eq!(tables.get(&place, None).unwrap().filter.unwrap().rule, Some(RuleId(2)));
    }
}

/// A filter that samples for a group, by an action with this index, which is the kernel's to choose if it is 0.
fn sample(group: u32, index: u32, place: (u16, u16, u32)) -> Vec<u8> {
    request("flower", place, |to| {
        to.put(flower::ETH_TYPE, &[8, 0]).put(12, &[10, 1, group as u8, place.0 as u8]);
        let rest = [(3, 10_u32), (5, group)].map(|(kind, value)| (kind, value.to_ne_bytes().to_vec()));
        to.nest_noflag(flower::ACT, |to| {
            to.nest_noflag(1, |to| action(to, ("sample", index, control::PIPE), &[], &rest));
            to.nest_noflag(2, |to| action(to, ("gact", 0, control::SHOT), &[], &[]));
        });
    })
}

#[test]
fn a_psample_group_lasts_from_its_first_action_to_its_last() {
    let mut tables = Tables::default();
    let groups = |tables: &Tables| -> Vec<(u32, u32)> {
        tables.sample_groups().into_iter().map(|of| (of.group, of.users)).collect()
    };
    tables.record();
    let first = add(&mut tables, &sample(9, 0, (1, IP, 0)), 1).unwrap();
    let second = add(&mut tables, &sample(7, 0, (2, IP, 0)), 2).unwrap();
    let third = add(&mut tables, &sample(7, 0, (3, IP, 0)), 3).unwrap();
    assert_eq!(groups(&tables), [(9, 1), (7, 2)], "in the order in which they began");
    assert_eq!(tables.take_group_events(), [GroupEvent::Begun(9), GroupEvent::Begun(7)]);
    // Filters that share an action are one user.
    let shared = add(&mut tables, &sample(9, 1, (4, IP, 0)), 4).unwrap();
    assert_eq!((groups(&tables), tables.has_group_events()), (vec![(9, 1), (7, 2)], false));
    tables.remove(&first, None).unwrap();
    tables.remove(&second, None).unwrap();
    assert_eq!((groups(&tables), tables.take_group_events()), (vec![(9, 1), (7, 1)], vec![]));
    tables.remove(&shared, None).unwrap();
    assert_eq!((groups(&tables), tables.take_group_events()), (vec![(7, 1)], vec![GroupEvent::Ended(9)]));
    // A filter that is refused has had a group meanwhile, as in the kernel.
    let (place, spec) = spec(&sample(5, 0, (5, IP, 0)));
    let reserved = tables.reserve(place, spec, (true, true), UPLINK, 0).unwrap();
    tables.settle(reserved, Outcome::Refused, 0);
    assert_eq!(tables.take_group_events(), [GroupEvent::Begun(5), GroupEvent::Ended(5)]);
    // Stored filters bring their groups with them.
    let (mut stored, mut restored) = (StoredFilters::default(), Tables::default());
    tables.take_records().into_iter().for_each(|record| stored.apply(record));
    restored.restore(stored.into_filters(), |_| Some(NETDEV.number), 0);
    assert_eq!(groups(&restored), [(7, 1)]);
    // They end with the netdev, but not with one that was there before.
    tables.forget_gone(&BTreeMap::from([(NETDEV.port, NETDEV.number + 1)]));
    assert_eq!(groups(&tables), [(7, 1)]);
    let gone = tables.ports();
    assert_eq!(gone, BTreeMap::from([(NETDEV.port, NETDEV.number)]));
    tables.forget_gone(&gone);
    assert_eq!((groups(&tables), tables.take_group_events()), (vec![], vec![GroupEvent::Ended(7)]));
    assert!(tables.get(&third, None).is_err());
}

#[test]
fn filters_that_are_restored_from_their_records_are_as_they_were() {
    let mut before = Tables::default();
    before.record();
    for n in 1..=6_u8 {
        add(&mut before, &drop_to([10, 0, 0, n], (1, IP, 0)), n.into()).unwrap();
    }
    let gone = add(&mut before, &drop_to([10, 0, 1, 1], (2, IP, 0)), 7).unwrap();
    before.remove(&gone, None).unwrap();
    let third = Place { priority: 1, protocol: IP, handle: 3, ..gone };
    before.remove(&third, None).unwrap();
    let mut stored = StoredFilters::default();
    before.take_records().into_iter().for_each(|record| stored.apply(record));
    assert!(before.take_records().is_empty(), "each is told once");

    let all = Place { priority: 0, protocol: 0, handle: 0, ..gone };
    let shown = |tables: &Tables| -> Vec<_> {
        let entries = tables.list(&all).into_iter().filter_map(|entry| Some((entry.place, entry.filter?)));
        entries.map(|(place, filter)| (place.handle, filter.spec, filter.rule)).collect()
    };
    let mut after = Tables::default();
    after.restore(stored.into_filters(), |_| Some(NETDEV.number), 0);
    assert_eq!(shown(&after), shown(&before));
    // What comes next gets the same handles and indexes in both.
    for n in 11..=13 {
        let [one, other] = [&mut before, &mut after]
            .map(|tables| add(tables, &drop_to([10, 0, 0, n], (1, IP, 0)), n.into()).unwrap().handle);
        assert_eq!(one, other);
    }
    assert_eq!(shown(&after), shown(&before));
    // A port without a netdev has none of them; all of one that is forgotten are told to be gone.
    let mut nowhere = Tables::default();
    let mut stored = StoredFilters::default();
    before.take_records().into_iter().for_each(|record| stored.apply(record));
    nowhere.restore(stored.into_filters(), |_| None, 0);
    assert_eq!(shown(&nowhere), []);
    assert_eq!(before.forget(NETDEV, Side::Ingress).len(), 8);
    assert_eq!((shown(&before), before.take_records().len()), (vec![], 8));
}

#[test]
fn another_netdev_of_the_port_has_none_of_the_filters() {
    let mut tables = Tables::default();
    let place = add(&mut tables, &drop_to([1, 1, 1, 1], (5, IP, 0)), 1).unwrap();
    let next = Netdev { number: 2, ..NETDEV };
    tables.meet(next);
    assert!(tables.list(&Place { netdev: next, priority: 0, protocol: 0, handle: 0, ..place }).is_empty());
}

#[test]
fn filters_share_an_action_with_an_index() {
    let police = |index: u32, rate: u32, address: u8| {
        request("flower", (5, IP, 0), |to| {
            to.put(flower::ETH_TYPE, &[8, 0]).put(12, &[1, 1, 1, address]);
            to.nest_noflag(flower::ACT, |to| {
                to.nest_noflag(1, |to| {
                    let parms = [index, control::SHOT.cast_unsigned(), 0, rate, 0, 0, 0, rate, 0, 0, 0, 0, 0, 0];
                    to.text(act::KIND, "police").nest_noflag(act::OPTIONS, |to| {
                        to.put(1, &parms.iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<u8>>());
                    });
                });
                to.nest_noflag(2, |to| action(to, ("mirred", 0, control::STOLEN), &[1, 8], &[]));
            });
        })
    };
    let mut tables = Tables::default();
    let missing = read(&police(3, 0, 1)).map(|request| match request.verb {
        Verb::Add { spec, .. } => tables.reserve(request.place, spec, (true, true), UPLINK, 0).unwrap_err().errno(),
        _ => panic!(),
    });
    assert_eq!(missing, Ok(Errno::INVAL), "there is no such action");
    let first = add(&mut tables, &police(3, 1_000_000, 1), 1).unwrap();
    let second = add(&mut tables, &police(3, 0, 2), 2).unwrap();
    let (_, gone) = tables.remove(&first, None).unwrap();
    assert_eq!(gone, [Removed { rule: Some(RuleId(1)), meters: vec![] }], "the other one has it");
    let (_, gone) = tables.remove(&second, None).unwrap();
    assert_eq!(gone, [Removed { rule: Some(RuleId(2)), meters: vec![3] }]);
}

#[test]
fn an_answer_survives_its_encoding() {
    let mut tables = Tables::default();
    let place = add(&mut tables, &drop_to([1, 1, 1, 1], (5, IP, 0)), 1).unwrap();
    let shown = tables.get(&place, None).unwrap().shown(None, None, 5);
    assert!(!shown.filter.as_ref().unwrap().in_hw, "its rule is gone");
    let answer = Answer::Filters(vec![shown]);
    let json = serde_json::to_vec(&answer).unwrap();
    assert_eq!(serde_json::from_slice::<Answer>(&json).unwrap(), answer);
}

#[test]
fn an_event_repeats_the_request_and_leaves_out_whoever_has_its_echo() {
    let mut tables = Tables::default();
    let mut request = read(&drop_to([1, 1, 1, 1], (5, IP, 0))).unwrap();
    request.origin.port = 77;
    let place = add(&mut tables, &drop_to([1, 1, 1, 1], (5, IP, 0)), 1).unwrap();
    let answer = Answer::Filters(vec![tables.get(&place, None).unwrap().shown(None, None, 5)]);
    let [event] = &Event::all_of(&request, &answer)[..] else { panic!("one event") };
    assert!(event.is_for(77) && event.is_for(78));
    let bytes = event.address(9).filter(&event.shown, event.gone, &mut |_| None).unwrap();
    let Header { flags, sequence, port, .. } = Message::first(&bytes).unwrap().header;
    assert_eq!((flags, sequence, port), (Flags::REQUEST | Flags::CREATE | Flags::EXCL, 1, 77));
    request.origin.flags |= Flags::ECHO.bits();
    let [echoed] = &Event::all_of(&request, &answer)[..] else { panic!("one event") };
    assert!(!echoed.is_for(77) && echoed.is_for(78));
    // What a list shows is no change.
    let listed = Request { verb: Verb::List, ..request };
    assert_eq!(Event::all_of(&listed, &answer), []);
}

#[test]
fn a_priority_is_the_kernels_too_if_one_of_its_filters_is() {
    let mut tables = Tables::default();
    let first = add(&mut tables, &drop_to([1, 1, 1, 1], (5, IP, 0)), 1).unwrap();
    let (place, spec) = spec(&drop_to([1, 1, 1, 2], (5, IP, 0)));
    let mut reserved = tables.reserve(place, spec, (true, true), UPLINK, 2).unwrap();
    reserved.software = true;
    let second = reserved.place;
    let _ = tables.settle(reserved, Outcome::NotInHw, 2);
    let software = |tables: &Tables| tables.list(&first).iter().map(|entry| entry.software).collect::<Vec<bool>>();
    assert_eq!(software(&tables), [true, false, true]);
    let (gone, _) = tables.remove(&second, None).unwrap();
    assert!(gone[0].software);
    assert_eq!(software(&tables), [false, false]);
}

proptest! {
    #[test]
    fn no_message_is_too_strange(kind in "flower|matchall|[a-z]{0,6}", options in proptest::collection::vec(any::<u8>(), 0..300)) {
        let bytes = request(&kind, (1, IP, 0), |to| {
            to.raw(&options);
        });
        let _ = Request::read(&Message::first(&bytes).unwrap(), NETDEV, &mut target);
    }

    /// Attributes with the kernel's types, of any length.
    #[test]
    fn what_is_read_is_shown_and_read_as_the_same(
        keys in proptest::collection::vec((1_u16..111, proptest::collection::vec(any::<u8>(), 0..17)), 0..12),
        act in proptest::collection::vec((0_usize..10, proptest::collection::vec(any::<u8>(), 0..80), any::<[u8; 6]>()), 0..3),
    ) {
        let names = ["gact", "mirred", "vlan", "tunnel_key", "pedit", "csum", "skbedit", "ct", "police", "sample"];
        let bytes = request("flower", (1, IP, 1), |to| {
            for (kind, value) in &keys {
                to.put(*kind, value);
            }
            to.nest_noflag(flower::ACT, |to| {
                for (at, (kind, parms, rest)) in act.iter().enumerate() {
                    to.nest_noflag(at as u16 + 1, |to| {
                        to.text(act::KIND, names[*kind]).nest_noflag(act::OPTIONS, |to| {
                            for parm in [1, 2, 4] {
                                to.put(parm, parms);
                            }
                            to.put(3, rest).put(5, rest);
                        });
                    });
                }
            });
        });
        let Ok(Request { place, verb: Verb::Add { spec, .. }, .. }) = read(&bytes) else { return Ok(()) };
        let mut tables = Tables::default();
        let Ok(reserved) = tables.reserve(place, spec, (true, true), UPLINK, 0) else { return Ok(()) };
        let (entry, _) = tables.settle(reserved, Outcome::NotInHw, 0);
        let shown = entry.unwrap().shown(None, None, 0);
        let address = Address { index: 7, parent: TC_H_MIN_INGRESS, flags: Flags::empty(), sequence: 1, port: 2, is_terse: false };
        let written = address.filter(&shown, false, &mut |port| (port == Port(2)).then_some(8)).unwrap();
        let content = Message::first(&written).unwrap().after(TCMSG).unwrap().to_vec();
        prop_assert!(attributes(&content).all(|attribute| attribute.is_ok()));
        let shown = shown.filter.unwrap();
        prop_assert_eq!(shown.usages.len(), shown.spec.actions.len());
        prop_assert_eq!(place.side, Side::Ingress);
    }
}
