//! Rules that encapsulate follow what a watch on neighbours finds, however it finds it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use card_memory::MemoryCard;
use control::Command;
use eswitch::card::CardError;
use eswitch::datapath::port;
use eswitch::{CardConfig, FlowChange, FlowDone, MacAddr, Mode, PfIndex, Vport};
use flow::{Action, Encap, Field, Match, Neighbour, Rule, RuleId, TunnelKind};
use host::{Heeds, LiveCard, NeighbourWatch, Neighbours, World};
use lockdep::{Domain, Locked, OnReport, Unlocked};

const PF: PfIndex = PfIndex(0);
const LIMIT: Duration = Duration::from_secs(10);

type End = (PfIndex, IpAddr);

/// A kernel.
#[derive(Default)]
struct Kernel {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    hops: BTreeMap<End, Neighbour>,
    /// The ends that were looked up last.
    asked: Vec<End>,
    /// The ends whose next hops were used last.
    used: Option<BTreeSet<End>>,
    is_woken: bool,
    is_due: bool,
    cannot_be_asked: bool,
}

impl Kernel {
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap();
        change(&mut state);
        state.is_woken = true;
        self.changed.notify_all();
    }

    fn learns(&self, end: End, hop: Neighbour) {
        self.change(|state| {
            state.hops.insert(end, hop);
        });
    }

    /// Waits until something is so.
    fn until(&self, what: &str, is_so: impl Fn(&State) -> bool) {
        let state = self.state.lock().unwrap();
        let (state, _) = self.changed.wait_timeout_while(state, LIMIT, |state| !is_so(state)).unwrap();
        assert!(is_so(&state), "{what} never happened");
    }
}

struct Faked(Arc<Kernel>);

impl Neighbours for Faked {
    fn watch(&self, _: &mut Locked<'_, Unlocked>) -> Option<Box<dyn NeighbourWatch>> {
        Some(Box::new(Self(Arc::clone(&self.0))))
    }

    fn wake(&self) {
        self.0.change(|_| {});
    }

    fn set(
        &self,
        _: &mut Locked<'_, Unlocked>,
        pf: PfIndex,
        to: IpAddr,
        mac: Option<MacAddr>,
    ) -> Result<(), CardError> {
        self.0.change(|state| {
            match mac {
                Some(mac) => state.hops.insert((pf, to), Neighbour { dst: mac.0, src: [4; 6], from: None }),
                None => state.hops.remove(&(pf, to)),
            };
        });
        Ok(())
    }
}

impl NeighbourWatch for Faked {
    fn wait(&mut self, _: bool) -> bool {
        let state = self.0.state.lock().unwrap();
        let mut state = self.0.changed.wait_while(state, |state| !state.is_woken).unwrap();
        state.is_woken = false;
        std::mem::take(&mut state.is_due)
    }

    fn look(&mut self, _: &mut Locked<'_, Unlocked>, ends: &[End]) -> Option<BTreeMap<End, Neighbour>> {
        let mut state = self.0.state.lock().unwrap();
        state.asked = ends.to_vec();
        self.0.changed.notify_all();
        let named = |end: &End| ends.contains(end);
        let found = state.hops.iter().filter(|(end, _)| named(end)).map(|(end, hop)| (*end, *hop)).collect();
        (!state.cannot_be_asked).then_some(found)
    }

    fn use_neighbours(&mut self, _: &mut Locked<'_, Unlocked>, sent_to: &BTreeSet<End>) {
        self.0.state.lock().unwrap().used = Some(sent_to.clone());
        self.0.changed.notify_all();
    }
}

fn end(last: u8) -> End {
    (PF, [192, 0, 2, last].into())
}

fn hop(last: u8) -> Neighbour {
    Neighbour { dst: [2, 0, 0, 0, 0, last], src: [4; 6], from: None }
}

/// A rule of VF 0 that encapsulates to an end.
fn tunnel(to: End) -> FlowChange {
    let encap = Encap {
        kind: TunnelKind::Vxlan,
        id: Some(5),
        src: [192, 0, 2, 1].into(),
        dst: to.1,
        dst_port: 4789,
        tos: 0,
        ttl: 64,
        options: Vec::new(),
        neighbour: None,
    };
    let IpAddr::V4(address) = to.1 else { panic!("{to:?}") };
    let matches = Match::new().with(Field::EthDst, [2, 0, 0, 0, 9, address.octets()[3]]);
    let actions = [Action::TunnelSet(encap), Action::Redirect(port(PF, Vport::Uplink))];
    FlowChange::Add { pf: PF, rule: Box::new(Rule::new(port(PF, Vport::Vf(0)), matches, actions)) }
}

fn add(cx: &mut Locked<'_, Unlocked>, card: &LiveCard, to: End) -> RuleId {
    match card.engine().change_flows(cx, vec![tunnel(to)]).pop() {
        Some(Ok(FlowDone::Added(id))) => id,
        other => panic!("{other:?}"),
    }
}

/// The next hop that a rule has, once the card has looked at the kernel.
fn followed(cx: &mut Locked<'_, Unlocked>, card: &LiveCard, rule: RuleId) -> Option<Neighbour> {
    card.follow_kernel(cx, Heeds::Nothing, LIMIT).unwrap();
    let rules = card.engine().flow_rules(cx, PF);
    let (_, rule) = rules.iter().find(|(id, _)| *id == rule).unwrap();
    match &rule.actions[0] {
        Action::TunnelSet(encap) => encap.neighbour,
        other => panic!("{other:?}"),
    }
}

fn story(tell: impl FnOnce(&mut Locked<'_, Unlocked>, &LiveCard, &Kernel)) {
    let (domain, kernel) = (Domain::checked(OnReport::Panic), Arc::new(Kernel::default()));
    lockdep::enter(&domain, "story", |cx| {
        let config = CardConfig { total_vfs: 1, vfs: 1, mode: Mode::Switchdev, ..CardConfig::default() };
        let neighbours: Arc<dyn Neighbours> = Arc::new(Faked(Arc::clone(&kernel)));
        let world = World { neighbours: Some(neighbours), ..World::of(MemoryCard::new(config.clone()), &domain) };
        let card = LiveCard::start(cx, config, world, None).unwrap();
        tell(cx, &card, &kernel);
        assert_eq!(card.close(cx), []);
    });
}

#[test]
fn rules_follow_what_the_kernel_has() {
    story(|cx, card, kernel| {
        let first = add(cx, card, end(2));
        assert_eq!(followed(cx, card, first), None);
        for last in [1, 2] {
            kernel.learns(end(2), hop(last));
            assert_eq!(followed(cx, card, first), Some(hop(last)));
        }
        let other = add(cx, card, end(3));
        assert_eq!(followed(cx, card, other), None);
        kernel.change(|state| state.hops.clear());
        assert_eq!(followed(cx, card, first), None);

        // While the kernel cannot be asked, the last answer holds.
        kernel.learns(end(2), hop(1));
        assert_eq!(followed(cx, card, first), Some(hop(1)));
        kernel.change(|state| {
            state.hops.clear();
            state.cannot_be_asked = true;
        });
        assert!(card.follow_kernel(cx, Heeds::Nothing, Duration::from_millis(50)).is_err(), "it was never asked");
        kernel.change(|state| state.cannot_be_asked = false);
        assert_eq!(followed(cx, card, first), None);
    });
}

#[test]
fn the_follower_is_woken_when_rules_name_other_ends() {
    story(|cx, card, kernel| {
        let first = add(cx, card, end(2));
        kernel.until("a look for the first rule", |state| state.asked == [end(2)]);
        add(cx, card, end(3));
        kernel.until("a look for the second rule", |state| state.asked == [end(2), end(3)]);
        card.engine().change_flows(cx, vec![FlowChange::Remove(first)]);
        kernel.until("a look without the first rule", |state| state.asked == [end(3)]);
        let device = card.engine().addresses()[0];
        card.engine().set_mode(cx, device, Mode::Legacy).unwrap();
        kernel.until("a look after the change of the mode", |state| state.asked.is_empty());
    });
}

#[test]
fn next_hops_of_rules_that_count_are_used() {
    story(|cx, card, kernel| {
        add(cx, card, end(2));
        kernel.learns(end(2), hop(1));
        card.follow_kernel(cx, Heeds::Nothing, LIMIT).unwrap();
        let due = |kernel: &Kernel| {
            kernel.change(|state| (state.is_due, state.used) = (true, None));
            kernel.until("use", |state| state.used.is_some());
            kernel.state.lock().unwrap().used.clone().unwrap()
        };
        assert_eq!(due(kernel), BTreeSet::new(), "no frame was sent");
        let mut frame = vec![2, 0, 0, 0, 9, 2, 2, 0, 0, 0, 0, 0xff, 0x88, 0xb5];
        frame.resize(60, 0);
        for second in 1..3 {
            let now = Duration::from_secs(second);
            card.engine().send_frame(cx, port(PF, Vport::Vf(0)), now, &frame).unwrap();
            assert_eq!(due(kernel), BTreeSet::from([end(2)]));
            assert_eq!(due(kernel), BTreeSet::new(), "none since");
        }
    });
}

#[test]
fn a_step_sets_the_kernels_neighbour() {
    story(|cx, card, kernel| {
        let rule = add(cx, card, end(2));
        let device = card.engine().addresses()[0];
        for mac in [Some(MacAddr([2, 0, 0, 0, 0, 7])), None] {
            let step = Command::SetNeighbour { device, end: end(2).1, mac };
            card.perform(cx, Heeds::Nothing, LIMIT, &step).unwrap();
            assert_eq!(kernel.state.lock().unwrap().hops.get(&end(2)).copied(), mac.map(|_| hop(7)));
            assert_eq!(followed(cx, card, rule), mac.map(|_| hop(7)));
        }
        let device = "0000:99:00.0".parse().unwrap();
        let step = Command::SetNeighbour { device, end: end(2).1, mac: None };
        assert!(card.perform(cx, Heeds::Nothing, LIMIT, &step).is_err(), "there is no such PF");
    });
}
