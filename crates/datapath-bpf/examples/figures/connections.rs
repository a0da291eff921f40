//! An established connection: through a card that tracks it, and through the kernel's conntrack in a router.

use std::io;
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::net::{Card, Namespace, before_others, run};
use datapath_bpf::Change;
use flow::{Action, Ct, Field, Match, Port, Protocol, Rule, RuleId};

/// Datagrams a second that arrived, measured one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// Through a card whose rules let established connections pass.
    pub offloaded: f64,
    /// Through a namespace that routes, with nftables' `ct state established accept`.
    pub routed: f64,
}

/// Two namespaces, the address of the second one, and what is between them.
struct Way<'w> {
    from: &'w Namespace,
    to: &'w Namespace,
    netdev: &'static str,
    address: &'static str,
}

/// Rules by which a VF's connections are answered by the other one: tracked, and then by their state.
fn rules() -> Vec<Rule> {
    let rule =
        |port, matches, actions: Vec<Action>| Rule::new(Port(port), matches, actions).with_priority(1, Protocol::All);
    let state = |flags| Match::new().with_ct_state(Field::CT_TRACKED | flags, Field::CT_TRACKED | flags);
    let ct = |commit| Action::Ct(Ct { zone: 1, commit, ..Ct::default() });
    let mut rules = Vec::new();
    for (from, to) in [(1, 2), (2, 1)] {
        let arp = Match::new().with(Field::EthType, 0x0806u16);
        rules.push(rule(from, arp, vec![Action::Redirect(Port(to))]));
        let ip = Match::new().with(Field::EthType, 0x0800u16);
        rules.push(rule(from, ip, vec![ct(false), Action::Goto(1)]));
        rules.push(rule(from, state(Field::CT_ESTABLISHED), vec![Action::Redirect(Port(to))]).in_chain(1));
    }
    rules.push(rule(1, state(Field::CT_NEW), vec![ct(true), Action::Redirect(Port(2))]).in_chain(1));
    rules
}

fn nft(router: &Namespace, words: &str) -> io::Result<()> {
    let output = Command::new("nsenter").args(["-t", &router.id().to_string(), "-n", "nft", words]).output()?;
    let error = || io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned());
    if output.status.success() { Ok(()) } else { Err(error()) }
}

/// A router between two namespaces, which it returns.
fn router() -> io::Result<[Namespace; 3]> {
    let [left, router, right] = [Namespace::new(), Namespace::new(), Namespace::new()];
    for (side, namespace, net) in [("left", &left, 1), ("right", &right, 2)] {
        run(&format!("ip link add {side} type veth peer name to{side}"));
        run(&format!("ip link set {side} netns {}", namespace.id()));
        run(&format!("ip link set to{side} netns {}", router.id()));
        router.ip(&format!("link set to{side} up"));
        router.ip(&format!("addr add 10.1.{net}.1/24 dev to{side}"));
        namespace.ip(&format!("link set {side} up"));
        namespace.ip(&format!("addr add 10.1.{net}.2/24 dev {side}"));
        namespace.ip(&format!("route add default via 10.1.{net}.1"));
    }
    router.with(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?;
    nft(&router, "add table ip t; add chain ip t c { type filter hook forward priority 0 ; policy drop ; }")?;
    nft(&router, "add rule ip t c ct state established accept; add rule ip t c ct state new accept")?;
    Ok([left, router, right])
}

/// How many packets a netdev has received, of the calling thread's namespace.
fn received(netdev: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let line = table.lines().find_map(|line| line.trim().strip_prefix(netdev)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

impl Way<'_> {
    /// Makes a connection on which both sides have sent.
    fn connect(&self) -> io::Result<(UdpSocket, UdpSocket)> {
        let receiver = self.to.with(|| UdpSocket::bind((self.address, 9000)))?;
        let sender = self
            .from
            .with(|| UdpSocket::bind("0.0.0.0:8000").and_then(|own| own.connect((self.address, 9000)).map(|()| own)))?;
        receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
        sender.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut bytes = [0; 64];
        sender.send(b"question")?;
        let (_, back) = receiver.recv_from(&mut bytes)?;
        receiver.send_to(b"answer", back)?;
        sender.recv(&mut bytes)?;
        Ok((sender, receiver))
    }

    /// How many datagrams of 18 bytes a second arrive at the netdev, in frames of 60 bytes.
    fn rate(&self, sender: &UdpSocket, time: Duration) -> f64 {
        let before = self.to.with(|| received(self.netdev));
        before_others(true);
        let begin = Instant::now();
        while begin.elapsed() < time {
            // A queue that is full is no failure.
            (0..64).for_each(|_| drop(sender.send(&[7; 18])));
        }
        let taken = begin.elapsed();
        before_others(false);
        (self.to.with(|| received(self.netdev)) - before) as f64 / taken.as_secs_f64()
    }
}

/// Measures both side by side, so often and each for this time. Nothing where there is no right to make a card.
///
/// The calling thread leaves its network namespace.
///
/// # Errors
/// No nftables, or a connection that cannot be made.
pub fn established(rounds: usize, time: Duration) -> io::Result<Option<Vec<Round>>> {
    let Some(mut card) = Card::new(2) else { return Ok(None) };
    let rules = rules();
    let changes: Vec<_> = rules.iter().zip(1..).map(|(rule, id)| Change::Add { id: RuleId(id), rule }).collect();
    if let Some(Err(refused)) = card.pipeline.commit(&changes).into_iter().find(Result::is_err) {
        return Err(io::Error::other(refused.to_string()));
    }
    let [left, _router, right] = router()?;
    let offloaded = Way { from: card.vf(1), to: card.vf(2), netdev: "vf2", address: "10.0.0.2" };
    let routed = Way { from: &left, to: &right, netdev: "right", address: "10.1.2.2" };
    let (through_card, through_router) = (offloaded.connect()?, routed.connect()?);
    let round =
        |_| Round { offloaded: offloaded.rate(&through_card.0, time), routed: routed.rate(&through_router.0, time) };
    Ok(Some((0..rounds).map(round).collect()))
}
