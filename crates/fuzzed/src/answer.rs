//! The answers of a control socket, for a card in memory.

use std::sync::Arc;

use card_memory::MemoryCard;
use control::{Command, CommandTarget};
use devlink::view::Profile;
use devlink::{Cx, DEVLINK, ESWITCH, Peer, Served, Sink, eswitch_family, numbers};
use eswitch::inspect::{PendingRetry, Snapshot};
use eswitch::{CardConfig, Touched};
use host::{LiveCard, World};
use lockdep::{Domain, Locked, OnReport, Unlocked, enter};
use netlink::{Attribute, Flags, GENL_HEADER, Header, Message, attributes, messages};

/// How many messages of an input are tried one by one: a datagram of headers alone has thousands.
const EACH: usize = 32;

/// Answers a datagram: from a peer that may only look, then message by message from a peer that may change things, and
/// last the whole of it from that peer.
///
/// # Panics
/// The peer that may only look, or a message that was refused, has changed the card; an answer is no netlink
/// message; an invariant does not hold.
pub fn answer(bytes: &[u8]) {
    // A server reads 64 KiB at most. Inputs that make the card fail or wait on request show nothing.
    if bytes.len() > 64 * 1024 || messages(bytes).any(|message| plants(&message)) {
        return;
    }
    let domain = Domain::checked(OnReport::Record);
    enter(&domain, "main", |cx| {
        let (served, live) = card(cx, &domain);
        let engine = served.card.engine();
        let before = at_rest(&served, cx);
        let onlooker = Peer::default();
        devlink::answer(&served, cx, &onlooker, bytes, &mut Answers::default());
        assert_eq!(before, at_rest(&served, cx), "a peer that may only look has changed the card");
        let owner = Peer { may_change: true, ..Peer::default() };
        let mut before = before;
        for message in messages(bytes).take(EACH) {
            let mut answers = Answers::default();
            devlink::answer(&served, cx, &owner, &alone(&message), &mut answers);
            let after = at_rest(&served, cx);
            if answers.refused == Some(true) && !has_parts(&message) {
                assert_eq!(before, after, "a request was refused, and the card has changed: {message:?}");
            }
            assert_eq!(engine.check(cx), [], "after {message:?}");
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

/// The state of the card once all queued work is done.
fn at_rest(served: &Served, cx: &mut Locked<'_, Unlocked>) -> Snapshot {
    let engine = served.card.engine();
    engine.settle(cx, true);
    let mut snapshot = engine.inspect(cx);
    // The time that is left until a retry is not part of the state.
    for pf in snapshot.pfs.iter_mut().filter(|pf| pf.retry.is_pending()) {
        pf.retry = PendingRetry::Unknown;
    }
    snapshot
}

/// One message in a datagram of its own, changed to be a request that is acknowledged, so that its end can be seen.
fn alone(message: &Message<'_>) -> Vec<u8> {
    let header = Header { flags: message.header.flags | Flags::REQUEST | Flags::ACK, ..message.header };
    let alone = netlink::message(header, |to| {
        to.raw(message.payload());
    });
    alone.expect("as long as it was received")
}

/// Whether a message is a command that makes the card fail or wait.
fn plants(message: &Message<'_>) -> bool {
    let is_fault = |a: Attribute<'_>| {
        let command = Command::decode(control::VERSION, a.value);
        matches!(command, Ok(Command::AddFault(_) | Command::FailAllocations { .. }))
    };
    let requested = message.after(GENL_HEADER).unwrap_or_default();
    message.header.kind == ESWITCH && attributes(requested).flatten().any(is_fault)
}

/// Whether a message makes several changes, one after the other up to the first that is refused, as in the kernel.
fn has_parts(message: &Message<'_>) -> bool {
    let in_parts = [numbers::command::ESWITCH_SET, numbers::command::PORT_SET, numbers::command::RATE_SET];
    let payload = message.payload();
    match message.header.kind {
        DEVLINK => payload.first().is_some_and(|command| in_parts.contains(command)),
        ESWITCH => payload.first() == Some(&eswitch_family::PERFORM),
        _ => false,
    }
}

/// Checks the answers, and notes how the request ended.
#[derive(Default)]
struct Answers {
    refused: Option<bool>,
}

impl Sink for Answers {
    fn send(&mut self, datagram: &[u8]) {
        let mut read = 0;
        for message in messages(datagram) {
            read += message.bytes().len().next_multiple_of(4);
            match message.outcome() {
                Some(outcome) => self.refused = Some(outcome.result.is_err()),
                None => {
                    let payload = message.after(GENL_HEADER).unwrap_or_default();
                    assert!(attributes(payload).all(|a| a.is_ok()), "an answer has malformed attributes: {payload:?}");
                }
            }
        }
        assert_eq!(read, datagram.len(), "an answer is no netlink message");
    }

    fn done(&mut self, _: Cx<'_, '_>, _: Touched) {}
}
