//! Traffic between two VFs of a card of real netdevs by flow rules, and the same without a card or without rules.
//!
//! The VFs are in network namespaces of their own; frames are sent and received by sockets of one process, whose cost is in
//! every figure and the same in what is compared. What is compared takes turns.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use card_linux::{LinuxCard, Place, Wire};
use eswitch::datapath::port;
use eswitch::{CardConfig, Engine, FlowChange, FlowDone, MacAddr, Mode, PfIndex, Vport};
use flow::{Action, Block, Ct, Encap, Field, Match, Port, Protocol, Rule, RuleId, TunnelDevice, TunnelKind};
use lockdep::{Domain, Locked, Threads, Unlocked, enter};

use super::sockets::{Figures, Way};
use super::{masked, middle, to_address};
use crate::bench::{Part, Quantity, Row, Target, child};
use crate::workspace::{find_program, shell};

const ROUNDS: usize = 7;

/// A way for frames, and what carries them there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A rule for each direction, by which frames go from VF to VF.
    Rules,
    /// The same VFs without rules: what misses goes to the representors, which are on a Linux bridge.
    Representors,
    /// Two plain veth pairs on a Linux bridge, without a card.
    Veths,
    /// As by rules, behind those of 64 other masks.
    Masks,
    /// As by rules, among 250,000 others: about as many as a card has room for.
    ManyRules,
    /// From a VF of one PF into a VXLAN, over a bridge between the wires, and out of it to a VF of another PF.
    Vxlan,
    /// The same with the kernel's vxlan netdevs and bridges.
    KernelVxlan,
    /// By rules that track connections, and let those pass that are established.
    Tracked,
    /// Through a namespace that routes, with nftables' `ct state established accept`.
    Routed,
    /// One veth pair and nothing else: what is left if forwarding costs nothing. A VF has a pair of its own, so no card of
    /// netdevs can be faster.
    OnePair,
}

use Kind::*;

const KINDS: [Kind; 10] = [Rules, Representors, Veths, Masks, ManyRules, Vxlan, KernelVxlan, Tracked, Routed, OnePair];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Rules => "VF to VF by flow rules",
            Representors => "representors on a bridge, no rules",
            Veths => "two veths on a bridge",
            Masks => "by rules behind 64 masks",
            ManyRules => "by rules among 250,000",
            Vxlan => "VXLAN out and in by rules",
            KernelVxlan => "the kernel's vxlan over bridges",
            Tracked => "established connections by rules",
            OnePair => "one veth pair, nothing between",
            Routed => "a router with nft ct state established accept",
        }
    }

    /// Whether it goes by rules, which are there only while it is measured.
    fn rules(self) -> Option<Vec<(PfIndex, Rule)>> {
        match self {
            Rules => Some(redirects()),
            Masks => Some(redirects().into_iter().chain((0..64).map(other_mask)).collect()),
            ManyRules => Some(redirects().into_iter().chain((0..250_000).map(other_address)).collect()),
            Vxlan => Some(tunnelled()),
            Tracked => Some(tracked()),
            Representors | Veths | KernelVxlan | Routed | OnePair => None,
        }
    }

    fn way(self) -> Way {
        match self {
            Rules | Representors | Masks | ManyRules | Tracked => {
                Way { from: "a", to: "b", addresses: ["10.9.0.1", "10.9.0.2"] }
            }
            Veths => Way { from: "c", to: "d", addresses: ["10.8.0.1", "10.8.0.2"] },
            Vxlan => Way { from: "a", to: "e", addresses: ["10.7.0.1", "10.7.0.2"] },
            KernelVxlan => Way { from: "g", to: "h", addresses: ["10.6.0.1", "10.6.0.2"] },
            OnePair => Way { from: "l", to: "m", addresses: ["10.2.0.1", "10.2.0.2"] },
            Routed => Way { from: "i", to: "k", addresses: ["10.5.1.2", "10.5.2.2"] },
        }
    }
}

/// What is measured of each way, and the unit.
const FIGURES: [(&str, &str); 4] = [
    ("datagrams in frames of 64 bytes, received", "/s"),
    ("the same, for each second of CPU", "/s"),
    ("TCP, one stream", "Gbit/s"),
    ("a round trip of a datagram", "us"),
];

/// What is compared with what, and the target of each figure.
const COMPARED: [(Kind, Kind, [Option<Target>; 4]); 10] = {
    const fn least(times: f64) -> Option<Target> {
        Some(Target::RatioAtLeast(times))
    }
    [
        (Rules, Representors, [least(3.0), least(3.0), None, None]),
        (Rules, Veths, [least(1.5), least(1.5), least(1.0), Some(Target::RatioAtMost(0.9))]),
        (Masks, Rules, [least(0.62), least(0.62), None, None]),
        (ManyRules, Rules, [least(0.83), least(0.83), None, None]),
        (Vxlan, KernelVxlan, [least(1.2), least(1.2), least(1.2), None]),
        (Tracked, Routed, [least(1.2), least(1.2), least(1.2), None]),
        (OnePair, Representors, [None; 4]),
        (OnePair, Veths, [None; 4]),
        (OnePair, Routed, [None; 4]),
        (Rules, OnePair, [None; 4]),
    ]
};

/// The figures of each turn, by [`Kind::name`].
type Measured = BTreeMap<String, Vec<Figures>>;

pub(super) fn traffic() -> Result<Vec<Row>> {
    let alone = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let output = match child(&alone, Part::DataplaneTraffic, ROUNDS) {
        Ok(output) => output,
        Err(error) => return Ok(vec![Row::unavailable(Rules.name().to_owned(), format!("{error:#}"))]),
    };
    let figures: Measured = serde_json::from_slice(&output.stdout).context("reading what the child measured")?;
    let mut rows = Vec::new();
    for (ours, theirs, targets) in COMPARED {
        let (Some(of_ours), Some(of_theirs)) = (figures.get(ours.name()), figures.get(theirs.name())) else {
            rows.push(Row::unavailable(format!("{}, beside {}", ours.name(), theirs.name()), "no nft here".to_owned()));
            continue;
        };
        for (n, ((what, unit), target)) in FIGURES.into_iter().zip(targets).enumerate() {
            let middle_of = |all: &[Figures]| Quantity { value: middle(all.iter().map(|figures| figures[n])), unit };
            let ratio = middle(of_ours.iter().zip(of_theirs).map(|(ours, theirs)| ours[n] / theirs[n]));
            let what = format!("{}: {what}", ours.name());
            let row = Row::compared(what, middle_of(of_ours), theirs.name(), middle_of(of_theirs), ratio);
            rows.push(target.into_iter().fold(row, Row::target));
        }
    }
    Ok(rows)
}

/// Measures the traffic, in the namespaces this process was given.
///
/// # Errors
/// The card or what it is compared with cannot be made, or no frames pass.
pub fn measure(rounds: usize) -> Result<String> {
    shell("mount -t tmpfs tmpfs /run && mkdir /run/netns && mount -t sysfs sysfs /sys && ip link set lo up")?;
    let config = CardConfig { pfs: 2, total_vfs: 2, ..CardConfig::default() };
    let domain = Domain::unchecked();
    let figures = enter(&domain, "main", |cx| -> Result<_> {
        let card = Arc::new(LinuxCard::new(&Place::prepare()?, config.clone(), &domain)?);
        for pf in 0..2 {
            card.set_wire(cx, PfIndex(pf), &Wire::netdev(format!("w{pf}")))?;
        }
        let engine = Engine::start(cx, config, card, Arc::new(Threads(Arc::clone(&domain))))?;
        let pfs = engine.addresses();
        for (pf, vfs) in pfs.iter().zip([2, 1]) {
            engine.set_num_vfs(cx, *pf, vfs)?;
            engine.set_mode(cx, *pf, Mode::Switchdev)?;
        }
        for (n, pf) in pfs.iter().enumerate() {
            let next_hop = MacAddr([2, 0, 0, 0, 7, n as u8]);
            engine.set_next_hop(cx, *pf, IpAddr::V4(end(1 - n)), Some(next_hop))?;
        }
        let figures = measure_all(cx, &engine, rounds);
        engine.shutdown(cx);
        figures
    })?;
    Ok(serde_json::to_string(&figures)?)
}

/// Makes the namespaces and bridges of all ways.
fn make_ways() -> Result<()> {
    shell(
        "for bridge in hb vb wb ub; do ip link add $bridge type bridge mcast_snooping 0 && ip link set $bridge up; done
         for ns in a b c d e g h i j k l m g-host h-host; do ip netns add $ns; done
         for n in 0 1; do ip link set enp8s0f0npf0vf$n master hb up; ip link set w$n mtu 1600 master wb up; done
         ip link set enp8s0f1npf1vf0 up
         ip link set enp8s0f0np0 up; ip link set enp8s0f1np1 up
         ip link set enp8s0f0v0 netns a name eth0 && ip link set enp8s0f0v1 netns b name eth0
         ip link set enp8s0f1v0 netns e name eth0
         for ns in c d; do ip link add v$ns master vb up type veth peer name eth0 netns $ns; done
         ip -n a addr add 10.9.0.1/24 dev eth0 && ip -n b addr add 10.9.0.2/24 dev eth0
         ip -n c addr add 10.8.0.1/24 dev eth0 && ip -n d addr add 10.8.0.2/24 dev eth0
         ip -n a addr add 10.7.0.1/24 dev eth0 && ip -n e addr add 10.7.0.2/24 dev eth0
         ip link add eth0 netns l type veth peer name eth0 netns m
         ip -n l addr add 10.2.0.1/24 dev eth0 && ip -n m addr add 10.2.0.2/24 dev eth0
         mac() { ip -n $1 -br link show eth0 | tr -s ' ' | cut -d' ' -f3; }
         ip -n a neigh add 10.7.0.2 lladdr $(mac e) dev eth0; ip -n e neigh add 10.7.0.1 lladdr $(mac a) dev eth0
         n=0
         for ns in g h; do
             n=$((n + 1))
             ip link add u$ns mtu 1600 master ub up type veth peer name under mtu 1600 netns $ns-host
             ip -n $ns-host addr add 10.4.0.$n/24 dev under && ip -n $ns-host link set under up
             ip -n $ns-host link add bridge up type bridge mcast_snooping 0
             ip -n $ns-host link add tunnel master bridge up type vxlan id 5 dstport 4789 local 10.4.0.$n remote 10.4.0.$((3 - n))
             ip -n $ns-host link add guest master bridge up type veth peer name eth0 netns $ns
             ip -n $ns addr add 10.6.0.$n/24 dev eth0
         done
         n=0
         for ns in i k; do
             n=$((n + 1))
             ip link add to$ns netns j type veth peer name eth0 netns $ns
             ip -n j addr add 10.5.$n.1/24 dev to$ns && ip -n j link set to$ns up
             ip -n $ns addr add 10.5.$n.2/24 dev eth0
         done
         ip netns exec j sysctl -qw net.ipv4.ip_forward=1
         for ns in a b c d e g h i k l m; do ip -n $ns link set eth0 up; done
         ip -n i route add default via 10.5.1.1 && ip -n k route add default via 10.5.2.1
         for ns in a b c d e g h i k l m; do for n in $(seq 500); do
             ip -n $ns link show eth0 | grep -q LOWER_UP && break; sleep 0.01
         done; done; sleep 0.5",
    )?;
    if find_program("nft").is_some() {
        shell(
            "ip netns exec j nft 'add table ip t; add chain ip t c { type filter hook forward priority 0; policy drop; }
             add rule ip t c ct state established accept; add rule ip t c ct state new accept'",
        )?;
    }
    Ok(())
}

fn measure_all(cx: &mut Locked<'_, Unlocked>, engine: &Engine, rounds: usize) -> Result<Measured> {
    make_ways()?;
    let kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| *kind != Routed || find_program("nft").is_some()).collect();
    let mut figures = Measured::new();
    // The first round does not count.
    for round in 0..=rounds {
        for turn in 0..kinds.len() {
            let kind = kinds[(round + turn) % kinds.len()];
            let measured = measure_one(cx, engine, kind).with_context(|| kind.name())?;
            if round > 0 {
                figures.entry(kind.name().to_owned()).or_default().push(measured);
            }
        }
    }
    Ok(figures)
}

fn measure_one(cx: &mut Locked<'_, Unlocked>, engine: &Engine, kind: Kind) -> Result<Figures> {
    let Some(rules) = kind.rules() else { return kind.way().measure() };
    let changes = rules.into_iter().map(|(pf, rule)| FlowChange::Add { pf, rule: Box::new(rule) });
    let added = engine.change_flows(cx, changes.collect()).into_iter().map(|done| match done? {
        FlowDone::Added(id) => Ok(id),
        other => Err(anyhow!("a rule was not added: {other:?}")),
    });
    let rules = added.collect::<Result<Vec<RuleId>>>()?;
    let before = counted(cx, engine, &rules);
    let measured = kind.way().measure();
    let after = counted(cx, engine, &rules);
    for done in engine.change_flows(cx, rules.into_iter().map(FlowChange::Remove).collect()) {
        done?;
    }
    ensure!(after > before || measured.is_err(), "no frame has matched a rule");
    measured
}

fn counted(cx: &mut Locked<'_, Unlocked>, engine: &Engine, rules: &[RuleId]) -> u64 {
    engine.flow_counters(cx, rules).into_iter().flatten().map(|counter| counter.packets).sum()
}

fn vf(number: u16) -> Port {
    port(PfIndex(0), Vport::Vf(number))
}

/// IP from one VF to the other, in both directions. Neighbours are found over the representors.
fn redirects() -> Vec<(PfIndex, Rule)> {
    let rule = |from, to, address: [u8; 4]| {
        let rule = Rule::new(from, to_address(address), [Action::Redirect(to)]).with_priority(2, Protocol::All);
        (PfIndex(0), rule)
    };
    vec![rule(vf(0), vf(1), [10, 9, 0, 2]), rule(vf(1), vf(0), [10, 9, 0, 1])]
}

fn other_mask(number: u32) -> (PfIndex, Rule) {
    (PfIndex(0), Rule::new(vf(0), masked(number), [Action::Drop]).with_priority(1, Protocol::All))
}

fn other_address(number: u32) -> (PfIndex, Rule) {
    let address = to_address((0x0b00_0000 + number).to_be_bytes());
    (PfIndex(0), Rule::new(vf(0), address, [Action::Drop]).with_priority(2, Protocol::All))
}

/// The end of a PF's tunnel.
fn end(pf: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 3, 0, 1 + pf as u8)
}

/// From the first VF of each PF into a tunnel to the other PF, and out of it.
fn tunnelled() -> Vec<(PfIndex, Rule)> {
    let mut rules = Vec::new();
    for n in 0..2 {
        let pf = PfIndex(n as u8);
        let (guest, wire) = (port(pf, Vport::Vf(0)), port(pf, Vport::Uplink));
        let encap = Encap {
            kind: TunnelKind::Vxlan,
            id: Some(5),
            src: IpAddr::V4(end(n)),
            dst: IpAddr::V4(end(1 - n)),
            dst_port: 4789,
            tos: 0,
            ttl: 64,
            options: Vec::new(),
            neighbour: None,
        };
        let to_other = to_address([10, 7, 0, 2 - n as u8]);
        rules.push((pf, Rule::new(guest, to_other, [Action::TunnelSet(encap), Action::Redirect(wire)])));
        let came = Match::new().with(Field::EncKeyId, 5u32).with(Field::EncDstPort, 4789u16);
        let mut out = Rule::new(wire, came, [Action::TunnelUnset, Action::Redirect(guest)]);
        out.block = Block::Tunnel(TunnelDevice { kind: TunnelKind::Vxlan, udp_port: 4789 });
        rules.push((pf, out));
    }
    rules
}

/// Connections from the first VF to the second: tracked, and then by their state.
fn tracked() -> Vec<(PfIndex, Rule)> {
    let state = |flags| Match::new().with_ct_state(Field::CT_TRACKED | flags, Field::CT_TRACKED | flags);
    let ct = |commit| Action::Ct(Ct { zone: 1, commit, ..Ct::default() });
    let mut rules = Vec::new();
    for (from, to) in [(vf(0), vf(1)), (vf(1), vf(0))] {
        let ip = Match::new().with(Field::EthType, 0x0800u16);
        rules.push(Rule::new(from, ip, [ct(false), Action::Goto(1)]));
        rules.push(Rule::new(from, state(Field::CT_ESTABLISHED), [Action::Redirect(to)]).in_chain(1));
    }
    rules.push(Rule::new(vf(0), state(Field::CT_NEW), [ct(true), Action::Redirect(vf(1))]).in_chain(1));
    rules.into_iter().map(|rule| (PfIndex(0), rule)).collect()
}
