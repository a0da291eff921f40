//! The control socket's answers, to a card in memory.

use std::sync::Arc;

use card_memory::MemoryCard;
use control::{Command, CommandTarget};
use devlink::view::Profile;
use devlink::wire::{self, Builder, Header, attributes, messages};
use devlink::{Cx, DEVLINK, ESWITCH, Peer, Served, Sink, eswitch_family, numbers};
use eswitch::inspect::Snapshot;
use eswitch::{CardConfig, Touched};
use host::{LiveCard, World};
use lockdep::{Domain, Locked, OnReport, Unlocked, enter};

/// Messages of an input that are looked at one by one at most: a datagram of headers alone has thousands.
const EACH: usize = 32;

/// Answers a datagram: from one who may only look, from one who may change things, and message by message.
///
/// # Panics
/// Somebody who may only look has changed the card; a message that was refused has; an answer is no netlink
/// message; an invariant does not hold.
pub fn answer(bytes: &[u8]) {
    // What is read is 64 KiB; and a fault that is planted, or a delay, is no fault of ours.
    if bytes.len() > 64 * 1024 || messages(bytes).any(|(header, payload)| plants(&header, payload)) {
        return;
    }
    let domain = Domain::checked(OnReport::Record);
    enter(&domain, "main", |cx| {
        let (served, live) = card(cx, &domain);
        let engine = served.card.engine();
        let before = at_rest(&served, cx);
        let onlooker = Peer::default();
        devlink::answer(&served, cx, &onlooker, bytes, &mut Answers::default());
        assert_eq!(before, at_rest(&served, cx), "one who may only look has changed the card");
        let owner = Peer { may_change: true, ..Peer::default() };
        let mut before = before;
        for (header, payload) in messages(bytes).take(EACH) {
            let mut answers = Answers::default();
            devlink::answer(&served, cx, &owner, &alone(&header, payload), &mut answers);
            let after = at_rest(&served, cx);
            if answers.refused == Some(true) && !has_parts(&header, payload) {
                assert_eq!(before, after, "a request was refused, and the card has changed: {header:?} {payload:?}");
            }
            assert_eq!(engine.check(cx), [], "after {header:?} {payload:?}");
            before = after;
        }
        devlink::answer(&served, cx, &owner, bytes, &mut Answers::default());
        engine.settle(cx, true);
        assert_eq!(engine.check(cx), [], "after all of it at once");
        assert_eq!(live.close(cx), []);
    });
    assert!(domain.take_reports().is_empty());
}

fn card(cx: &mut Locked<'_, Unlocked>, domain: &Arc<Domain>) -> (Served, Arc<LiveCard>) {
    let config = CardConfig { vfs: 2, modules: vec!["mlx5_ib".to_owned()], ..CardConfig::default() };
    let world = World::of(MemoryCard::new(config.clone()), domain);
    let live = match LiveCard::start(cx, config, world, None) {
        Ok(live) => Arc::new(live),
        Err(error) => panic!("a card in memory does not come up: {error}"),
    };
    (Served::new(Arc::clone(&live) as Arc<dyn CommandTarget>, Arc::clone(domain), Profile::mlx5()), live)
}

/// How the card is when all that was queued is done.
fn at_rest(served: &Served, cx: &mut Locked<'_, Unlocked>) -> Snapshot {
    let engine = served.card.engine();
    engine.settle(cx, true);
    let mut snapshot = engine.inspect(cx);
    // In how long is not how the card is.
    snapshot.pfs.iter_mut().for_each(|pf| pf.retry = pf.retry.map(|_| None));
    snapshot
}

/// One message with its own datagram, and with an end that can be seen.
fn alone(header: &Header, payload: &[u8]) -> Vec<u8> {
    let mut builder = Builder::default();
    builder.begin(header.kind, header.flags | wire::REQUEST | wire::ACK, header.sequence, header.port);
    builder.raw(payload).end();
    builder.bytes().to_vec()
}

/// Whether it is a command that makes the card fail or wait.
fn plants(header: &Header, payload: &[u8]) -> bool {
    let is_fault = |a: wire::Attribute<'_>| {
        let command = Command::decode(control::VERSION, a.value);
        matches!(command, Ok(Command::AddFault(_) | Command::FailAllocations { .. }))
    };
    header.kind == ESWITCH && attributes(payload.get(wire::GENL_HEADER..).unwrap_or_default()).flatten().any(is_fault)
}

/// Whether it is one of those that do one thing after the other, up to the first that is refused, as in the kernel.
fn has_parts(header: &Header, payload: &[u8]) -> bool {
    let in_parts = [numbers::command::ESWITCH_SET, numbers::command::PORT_SET, numbers::command::RATE_SET];
    match header.kind {
        DEVLINK => payload.first().is_some_and(|command| in_parts.contains(command)),
        ESWITCH => payload.first() == Some(&eswitch_family::PERFORM),
        _ => false,
    }
}

/// What came of a request.
#[derive(Default)]
struct Answers {
    refused: Option<bool>,
}

impl Sink for Answers {
    fn send(&mut self, datagram: &[u8]) {
        let mut read = 0;
        for (header, payload) in messages(datagram) {
            read += (header.length as usize).next_multiple_of(4);
            match header.kind {
                wire::DONE => self.refused = Some(false),
                wire::ERROR => self.refused = Some(payload.first_chunk::<4>() != Some(&[0; 4])),
                _ => {
                    let told = payload.get(wire::GENL_HEADER..).unwrap_or_default();
                    assert!(attributes(told).all(|a| a.is_ok()), "an answer has attributes that are none: {told:?}");
                }
            }
        }
        assert_eq!(read, datagram.len(), "an answer that is no netlink message");
    }

    fn done(&mut self, _: Cx<'_, '_>, _: Touched) {}
}
