//! Samples of flow rules, and the groups of filters, at a control socket.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use card_memory::MemoryCard;
use control::CommandTarget;
use devlink::view::Profile;
use devlink::{
    Answered, Client, ClientError, Cx, ESWITCH, FILTERS_GROUP, Peer, SAMPLE_GROUPS_GROUP, SAMPLES_GROUP, Sample,
    SampleGroup, Served, Sink, answer, eswitch_family as e,
};
use eswitch::datapath::port;
use eswitch::{CardConfig, FlowChange, Mode, PfIndex, Touched, Vport};
use flow::{Action, Match, Port, Rule};
use host::{LiveCard, World};
use lockdep::{Domain, OnReport};
use netlink::{Builder, Datagram, Errno, Flags, Header, Message, find, message, messages};
use tc::numbers::{
    RTM_DELTFILTER, RTM_NEWTFILTER, TC_H_MIN_INGRESS, act, cls_flags, control as tc_control, flower, tca,
};
use tc::{Answer, Event, Netdev, Request, Target, Verb};

use crate::common::{Up, with_card_of};

const PF0: PfIndex = PfIndex(0);

fn vf(n: u16) -> Port {
    port(PF0, Vport::Vf(n))
}

fn switchdev() -> CardConfig {
    CardConfig { vfs: 2, mode: Mode::Switchdev, ..CardConfig::default() }
}

fn join(up: &Up, group: u32) -> Client {
    let mut client = Client::connect(&up.path).unwrap();
    ask_to_join(&mut client, group).unwrap();
    client
}

fn ask_to_join(client: &mut Client, group: u32) -> Result<Vec<Answered>, ClientError> {
    client.ask(ESWITCH, e::JOIN, |to| {
        to.u32(e::GROUP, group);
    })
}

/// Has VF 0's frames sampled for a group.
fn sample_all(up: &Up, group: u32, truncate: Option<u32>) {
    let actions = [Action::Sample(flow::Sample { rate: 1, group, truncate }), Action::Redirect(vf(1))];
    let rule = Box::new(Rule::new(vf(0), Match::new(), actions));
    up.with_engine(|cx, engine| {
        assert!(engine.change_flows(cx, vec![FlowChange::Add { pf: PF0, rule }])[0].is_ok());
    });
}

/// Sends frames of this length from VF 0, each of which the rules have to carry.
fn send(up: &Up, count: usize, length: usize) {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
    frame.resize(length, 0x5a);
    up.with_engine(|cx, engine| {
        for _ in 0..count {
            assert_eq!(engine.send_frame(cx, vf(0), Duration::ZERO, &frame).unwrap().len(), 1);
        }
    });
}

/// The next datagram of samples.
fn receive(client: &mut Client) -> Vec<Sample> {
    let messages = client.receive_notification().unwrap();
    assert!(messages.iter().all(|message| message.command == e::SAMPLE));
    messages.iter().map(|message| Sample::parse(&message.attributes).unwrap()).collect()
}

#[test]
fn whoever_has_joined_receives_samples_with_their_numbers() {
    with_card_of(switchdev(), |up| {
        sample_all(up, 7, Some(20));
        // Before anybody has joined, nothing is sampled.
        send(up, 1, 60);
        let mut client = join(up, SAMPLES_GROUP);
        send(up, 1, 60);
        let [sample] = &receive(&mut client)[..] else { panic!("one sample") };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!((Duration::from_nanos(sample.timestamp)).abs_diff(now) < Duration::from_secs(60));
        let Sample { port, group, sequence, rate, length, .. } = *sample;
        assert_eq!((port, group, sequence, rate, length), (vf(0), 7, 0, 1, 60));
        assert_eq!(sample.frame[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        assert_eq!(sample.frame.len(), 20);
        send(up, 1, 60);
        assert_eq!(receive(&mut client)[0].sequence, 1);
        // Once all have left, nothing is sampled any more. Whoever comes then sees the numbers go on.
        drop(client);
        let mut quiet = 0;
        while quiet < 20 {
            std::thread::sleep(Duration::from_millis(1));
            send(up, 1, 60);
            let is_quiet = up.with_engine(|cx, engine| engine.sampler().unwrap().read(&mut cx.narrow()).is_empty());
            quiet = if is_quiet { quiet + 1 } else { 0 };
        }
        let mut client = join(up, SAMPLES_GROUP);
        send(up, 1, 60);
        assert!(receive(&mut client)[0].sequence >= 2);
        let unknown = ask_to_join(&mut client, 99);
        assert!(matches!(unknown, Err(ClientError::Refused(refusal)) if refusal.errno == Errno::NOENT));
    });
}

#[test]
fn a_client_that_does_not_read_loses_samples_and_stops_neither_frames_nor_others() {
    with_card_of(switchdev(), |up| {
        sample_all(up, 7, None);
        let (mut deaf, mut reader) = (join(up, SAMPLES_GROUP), join(up, SAMPLES_GROUP));
        let mut last = 0;
        for _ in 0..40 {
            send(up, 50, 1_400);
            // The card's own queue has room for what is sent at once, so this one gets everything.
            while last < 50 {
                for sample in receive(&mut reader) {
                    assert_eq!((sample.sequence % 50, sample.frame.len()), (last, 1_400));
                    last += 1;
                }
            }
            last = 0;
        }
        let mut heard = 0;
        while heard < 2_000 {
            let samples = receive(&mut deaf);
            let first = samples[0].sequence;
            if first > heard {
                break;
            }
            heard += samples.len() as u32;
            if heard >= 100 {
                // What the buffer had is read, and what comes next has a number that shows what is missing.
                send(up, 1, 60);
            }
        }
        assert!((10..2_000).contains(&heard), "{heard}");
    });
}

#[test]
fn frames_of_others_are_for_those_who_may_change_the_card() {
    struct Answers(Vec<u8>);
    impl Sink for Answers {
        fn send(&mut self, datagram: &[u8]) {
            self.0.extend(datagram);
        }

        fn done(&mut self, _: Cx<'_, '_>, _: Touched) {}
    }
    let domain = Domain::checked(OnReport::Record);
    lockdep::enter(&domain, "main", |cx| {
        let world = World::of(MemoryCard::new(switchdev()), &domain);
        let live = Arc::new(LiveCard::start(cx, switchdev(), world, None).unwrap());
        let served = Served::new(Arc::clone(&live) as Arc<dyn CommandTarget>, Arc::clone(&domain), Profile::mlx5());
        let mut ask = |group: u32, may_change: bool| {
            let request = message(Header::new(ESWITCH, Flags::REQUEST | Flags::ACK, 1, 0), |to| {
                to.genl(e::JOIN, 1).u32(e::GROUP, group);
            });
            let mut answers = Answers(Vec::new());
            answer(&served, cx, &Peer { may_change, ..Peer::default() }, &request.unwrap(), &mut answers);
            messages(&answers.0).next().unwrap().outcome().unwrap().result
        };
        assert_eq!(ask(SAMPLES_GROUP, false), Err(Errno::PERM));
        assert_eq!(ask(SAMPLE_GROUPS_GROUP, false), Ok(()));
        assert_eq!(ask(SAMPLES_GROUP, true), Ok(()));
        drop(served);
        assert!(live.close(cx).is_empty());
        assert!(domain.take_reports().is_empty());
    });
}

/// A request of tc about the filter with a priority on VF 0's representor.
fn filter(kind: u16, priority: u32, fill: impl FnOnce(&mut Builder)) -> Request {
    let header = Header::new(kind, Flags::REQUEST | Flags::CREATE | Flags::EXCL, 1, 0);
    let built = message(header, |to| {
        let tcm = [0, 7, 0, TC_H_MIN_INGRESS, priority << 16 | u32::from(0x0800_u16.to_be())];
        to.raw(&tcm.iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<u8>>());
        to.text(tca::KIND, "flower").nest_noflag(tca::OPTIONS, fill);
    });
    let netdev = Netdev { port: vf(0), tunnel: None, number: 0 };
    Request::read(&Message::first(&built.unwrap()).unwrap(), netdev, &mut |_| Target::Other).unwrap().unwrap()
}

fn add(up: &Up, priority: u32, group: u32) {
    let request = filter(RTM_NEWTFILTER, priority, |to| {
        to.put(flower::ETH_TYPE, &[8, 0]).u32(flower::FLAGS, cls_flags::SKIP_SW);
        to.nest_noflag(flower::ACT, |to| {
            to.nest_noflag(1, |to| {
                to.text(act::KIND, "sample").nest_noflag(act::OPTIONS, |to| {
                    let parms = [0, 0, tc_control::PIPE.cast_unsigned(), 0, 0];
                    to.put(2, &parms.into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<u8>>());
                    to.u32(3, 1).u32(5, group);
                });
            });
            to.nest_noflag(2, |to| {
                to.text(act::KIND, "gact").nest_noflag(act::OPTIONS, |to| {
                    let parms = [0, 0, tc_control::SHOT.cast_unsigned(), 0, 0];
                    to.put(2, &parms.into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<u8>>());
                });
            });
        });
    });
    let answer = Client::connect(&up.path).unwrap().tc(&request).unwrap();
    assert!(matches!(answer, Answer::Filters(_)), "{answer:?}");
}

#[test]
fn groups_begin_and_end_with_their_filters_and_with_the_netdev() {
    with_card_of(switchdev(), |up| {
        let mut client = Client::connect(&up.path).unwrap();
        let mut listener = join(up, SAMPLE_GROUPS_GROUP);
        let mut events = |count: usize| {
            let mut events = Vec::new();
            while events.len() < count {
                events.extend(listener.receive_notification().unwrap().into_iter().map(|message| {
                    let number = |kind| find(&message.attributes, kind).unwrap().u32().unwrap();
                    (message.command, number(e::sample::GROUP), number(e::sample::SEQUENCE))
                }));
            }
            events
        };
        assert_eq!(client.sample_groups().unwrap(), []);
        add(up, 1, 7);
        add(up, 2, 7);
        add(up, 3, 4);
        assert_eq!(events(2), [(e::NEW_SAMPLE_GROUP, 7, 0), (e::NEW_SAMPLE_GROUP, 4, 0)]);
        let group = |group, users, sequence| SampleGroup { group, users, sequence };
        assert_eq!(client.sample_groups().unwrap(), [group(7, 2, 0), group(4, 1, 0)]);
        let gone = client.tc(&filter(RTM_DELTFILTER, 3, |_| {})).unwrap();
        assert!(matches!(gone, Answer::Gone(_)), "{gone:?}");
        assert_eq!(events(1), [(e::DEL_SAMPLE_GROUP, 4, 0)]);
        // The representor goes, and nobody asks tc.
        up.with_engine(|cx, engine| engine.set_mode(cx, engine.addresses()[0], Mode::Legacy).unwrap());
        assert_eq!(events(1), [(e::DEL_SAMPLE_GROUP, 7, 0)]);
        assert_eq!(client.sample_groups().unwrap(), []);
    });
}

#[test]
fn whoever_has_joined_is_told_of_filters_that_only_the_card_has() {
    with_card_of(switchdev(), |up| {
        let mut client = Client::connect(&up.path).unwrap();
        let mut listener = join(up, FILTERS_GROUP);
        let mut next = || {
            let [message] = &listener.receive_notification().unwrap()[..] else { panic!("one event") };
            assert_eq!(message.command, e::FILTER);
            let event = find(&message.attributes, e::FILTER_EVENT).unwrap().value;
            let Event { origin, gone, shown } = serde_json::from_slice(event).unwrap();
            assert_eq!((origin.sequence, origin.parent), (1, TC_H_MIN_INGRESS));
            (gone, shown.place.priority, shown.filter.map(|filter| filter.in_hw))
        };
        add(up, 1, 7);
        assert_eq!(next(), (false, 1, Some(true)));
        // Of the filter of which the kernel has a half, and of a refused one, nothing is told.
        let mut with_software = filter(RTM_NEWTFILTER, 2, |to| {
            to.put(flower::ETH_TYPE, &[8, 0]);
        });
        if let Verb::Add { software, .. } = &mut with_software.verb {
            *software = true;
        }
        assert!(matches!(client.tc(&with_software).unwrap(), Answer::Filters(_)));
        assert!(matches!(client.tc(&filter(RTM_DELTFILTER, 2, |_| {})).unwrap(), Answer::Gone(_)));
        assert!(matches!(client.tc(&filter(RTM_DELTFILTER, 3, |_| {})).unwrap(), Answer::Refused(_)));
        // A whole priority is told as one.
        assert!(matches!(client.tc(&filter(RTM_DELTFILTER, 1, |_| {})).unwrap(), Answer::Gone(_)));
        assert_eq!(next(), (true, 1, None));
    });
}

#[test]
fn a_sample_without_all_of_its_attributes_is_none() {
    let whole = message(Header::new(ESWITCH, Flags::empty(), 0, 0), |to| {
        to.genl(e::SAMPLE, 1).u32(e::sample::PORT, 1).u32(e::sample::GROUP, 7).u32(e::sample::SEQUENCE, 2);
        to.u32(e::sample::RATE, 3).u32(e::sample::LENGTH, 4).u64(e::sample::TIMESTAMP, 5).put(e::sample::FRAME, &[6]);
    });
    let whole = whole.unwrap();
    let content = Message::first(&whole).unwrap().genl().unwrap().1.to_vec();
    let sample = Sample { port: Port(1), group: 7, sequence: 2, rate: 3, length: 4, timestamp: 5, frame: vec![6] };
    assert_eq!(Sample::parse(&content), Some(sample));
    // The last attribute has 4 bytes of header, a byte and its padding.
    for end in 0..content.len() - 3 {
        assert_eq!(Sample::parse(&content[..end]), None, "{end}");
    }
    let mut short = Datagram::default();
    let built = short.message(Header::new(ESWITCH, Flags::empty(), 0, 0), |to| {
        to.genl(e::SAMPLE, 1).u32(e::sample::PORT, 1).u32(e::sample::TIMESTAMP, 5);
    });
    built.unwrap();
    assert_eq!(Sample::parse(Message::first(short.bytes()).unwrap().genl().unwrap().1), None);
}
