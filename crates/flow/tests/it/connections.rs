//! Connection tracking and address translation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::common::*;
use flow::{
    Action, Ct, DropReason, Fate, Field, Match, MissReason, Nat, NatRange, Rule, TcpPhase, Verdict, checksums_are_right,
};

/// A card on which port 1 and port 2 are tracked in zone 5 and sent to each other, with what `ct` says.
fn card_with(ct: Ct) -> Card {
    let mut card = Card::new();
    for (from, to) in [(ONE, TWO), (TWO, ONE)] {
        card.add(Rule::new(from, Match::new(), [Action::Ct(ct.clone()), Action::Redirect(to)]));
    }
    card
}

fn committed() -> Ct {
    Ct { zone: 5, commit: true, ..Ct::default() }
}

fn tracking() -> Card {
    card_with(committed())
}

/// The state in which the frame was tracked, in Open vSwitch's words.
fn state(verdict: &Verdict) -> String {
    let trace = verdict.trace.to_string();
    let words = trace.lines().filter_map(|line| line.split_once("tracks in zone 5: "));
    words.map(|(_, words)| words.to_owned()).next_back().unwrap_or_else(|| format!("{:?}", verdict.fate))
}

fn reply(protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4(IP_B, IP_A, protocol, payload)
}

fn tcp_reply(flags: u8) -> Vec<u8> {
    reply(TCP, &tcp(80, 1000, flags, b""))
}

fn phase(card: &Card) -> Option<TcpPhase> {
    card.state.connections().iter().next().and_then(|connection| connection.tcp).map(|tcp| tcp.phase)
}

#[test]
fn udp_is_new_until_there_is_a_reply() {
    let mut card = tracking();
    let answer = reply(UDP, &udp(2000, 1000, b""));
    assert_eq!(state(&card.send(&udp_frame())), "+trk+new");
    assert_eq!(state(&card.send(&udp_frame())), "+trk+new");
    assert_eq!(state(&card.send_to(TWO, &answer)), "+trk+est+rpl");
    assert_eq!(state(&card.send(&udp_frame())), "+trk+est");
    assert_eq!(card.state.connections().len(), 1);
}

#[test]
fn without_commit_nothing_is_remembered() {
    let mut card = card_with(Ct { commit: false, ..committed() });
    let before = card.state.connections().clone();
    for _ in 0..2 {
        assert_eq!(state(&card.send(&udp_frame())), "+trk+new");
    }
    assert_eq!(*card.state.connections(), before);
    assert_eq!(state(&card.send_to(TWO, &reply(UDP, &udp(2000, 1000, b"")))), "+trk+new");
}

#[test]
fn zones_have_nothing_to_do_with_each_other() {
    let mut card = Card::new();
    for (port, zone) in [(ONE, 5), (TWO, 6)] {
        let ct = Ct { zone, ..committed() };
        card.add(Rule::new(port, Match::new(), [Action::Ct(ct), Action::Redirect(THREE)]));
    }
    card.send(&udp_frame());
    let answer = card.send_to(TWO, &reply(UDP, &udp(2000, 1000, b"")));
    assert!(answer.trace.to_string().contains("zone 6: +trk+new"));
    assert_eq!(card.state.connections().len(), 2);
}

#[test]
fn a_udp_connection_ends_by_itself() {
    let answer = reply(UDP, &udp(2000, 1000, b""));
    let mut card = tracking();
    card.send(&udp_frame());
    card.wait(30);
    assert_eq!(state(&card.send_to(TWO, &answer)), "+trk+new", "30 seconds without a reply");
    let mut card = tracking();
    card.send(&udp_frame());
    card.send_to(TWO, &answer);
    card.wait(3);
    card.send(&udp_frame());
    card.wait(119);
    assert_eq!(state(&card.send_to(TWO, &answer)), "+trk+est+rpl", "120 seconds for a stream");
    card.wait(120);
    assert_eq!(card.state.expire_connections(card.now), 1);
    assert!(card.state.connections().is_empty());
}

#[test]
fn a_tcp_connection_goes_through_its_states() {
    use TcpPhase::{CloseWait, Established, FinWait, LastAck, SynRecv, SynSent, TimeWait};
    let mut card = tracking();
    let steps = [
        (ONE, SYN, SynSent, "+trk+new"),
        (TWO, SYN | ACK, SynRecv, "+trk+est+rpl"),
        (ONE, ACK, Established, "+trk+est"),
        (ONE, FIN | ACK, FinWait, "+trk+est"),
        (TWO, ACK, CloseWait, "+trk+est+rpl"),
        (TWO, FIN | ACK, LastAck, "+trk+est+rpl"),
        (ONE, ACK, TimeWait, "+trk+est"),
    ];
    for (port, flags, expected, words) in steps {
        let frame = if port == ONE { tcp_frame(flags) } else { tcp_reply(flags) };
        assert_eq!(state(&card.send_to(port, &frame)), words);
        assert_eq!(phase(&card), Some(expected));
    }
    assert_eq!(state(&card.send(&tcp_frame(SYN))), "+trk+new", "the addresses are used anew");
    assert_eq!((phase(&card), card.state.connections().len()), (Some(SynSent), 1));
}

#[test]
fn tcp_that_makes_no_sense_is_invalid() {
    let mut card = tracking();
    for flags in [0, SYN | FIN, SYN | RST, FIN, 0x3f, SYN | ACK, FIN | ACK, RST] {
        assert_eq!(state(&card.send(&tcp_frame(flags))), "+trk+inv", "{flags:#x}");
    }
    let mut short = tcp_frame(SYN);
    short[46] = 0x40;
    assert_eq!(state(&card.send(&short)), "+trk+inv");
    assert!(card.state.connections().is_empty());
}

#[test]
fn a_connection_is_picked_up_in_its_middle() {
    let mut card = tracking();
    assert_eq!(state(&card.send(&tcp_frame(ACK))), "+trk+new");
    assert_eq!(phase(&card), Some(TcpPhase::Established));
    card.wait(299);
    card.send_to(TWO, &tcp_reply(ACK));
    card.wait(299);
    assert_eq!(state(&card.send(&tcp_frame(ACK))), "+trk+est");
    let connection = card.state.connections().iter().next().expect("a connection");
    assert!(connection.assured, "both sides have acknowledged");
    card.wait(4 * 24 * 60 * 60);
    assert_eq!(state(&card.send(&tcp_frame(ACK))), "+trk+est");
}

#[test]
fn a_refused_connection_is_forgotten() {
    let mut card = tracking();
    card.send(&tcp_frame(SYN));
    assert_eq!(state(&card.send_to(TWO, &tcp_reply(RST | ACK))), "+trk+est+rpl");
    assert!(card.state.connections().is_empty());
}

#[test]
fn a_resent_syn_does_not_keep_a_connection_alive() {
    let mut card = tracking();
    for _ in 0..3 {
        card.send(&tcp_frame(SYN));
        card.wait(50);
    }
    assert_eq!(state(&card.send_to(TWO, &tcp_reply(SYN | ACK))), "+trk+inv", "it was over after 120 seconds");
}

#[test]
fn icmp_is_known_by_its_identifier_and_begins_with_a_question() {
    let echo = |kind, id| {
        if kind == 8 { ipv4(IP_A, IP_B, ICMP, &icmp(8, 0, id, b"")) } else { reply(ICMP, &icmp(0, 0, id, b"")) }
    };
    let mut card = tracking();
    assert_eq!(state(&card.send_to(TWO, &echo(0, 7))), "+trk+inv");
    assert_eq!(state(&card.send(&echo(8, 7))), "+trk+new");
    assert_eq!(state(&card.send_to(TWO, &echo(0, 8))), "+trk+inv");
    assert_eq!(state(&card.send_to(TWO, &echo(0, 7))), "+trk+est+rpl");
    let v6 = ipv6(IP6_A, IP6_B, ICMPV6, &icmp(128, 0, 7, b""));
    assert_eq!(state(&card.send(&v6)), "+trk+new");
    let neighbour = ipv6(IP6_A, IP6_B, ICMPV6, &icmp(135, 0, 0, &[0; 16]));
    assert_eq!(state(&card.send(&neighbour)), "+trk+inv");
}

#[test]
fn an_icmp_error_is_related() {
    let mut card = tracking();
    card.send(&udp_frame());
    let about = |inside: &[u8]| reply(ICMP, &icmp(3, 3, 0, inside));
    assert_eq!(state(&card.send_to(TWO, &about(&udp_frame()[14..42]))), "+trk+rel+rpl");
    let other = ipv4(IP_A, IP_B, UDP, &udp(1, 2, b""));
    assert_eq!(state(&card.send_to(TWO, &about(&other[14..42]))), "+trk+inv");
    assert_eq!(state(&card.send_to(TWO, &about(&udp_frame()[14..30]))), "+trk+inv", "cut off");
    card.send(&ipv6(IP6_A, IP6_B, UDP, &udp(1000, 2000, b"")));
    let inside = ipv6(IP6_A, IP6_B, UDP, &udp(1000, 2000, b""));
    let error = ipv6(IP6_B, IP6_A, ICMPV6, &icmp(1, 4, 0, &inside[14..62]));
    assert_eq!(state(&card.send_to(TWO, &error)), "+trk+rel+rpl");
}

#[test]
fn what_is_not_ip_is_dropped_and_a_fragment_goes_to_the_representor() {
    let mut card = tracking();
    assert_eq!(card.send(&arp(1, IP_A, IP_B)).fate, Fate::Dropped(DropReason::NotIp));
    let fragment = ipv4_with(IP_A, IP_B, UDP, &udp(1, 2, b""), |header| header[6] = 0x20);
    let before = card.state.clone();
    assert_eq!(card.send(&fragment).fate, Fate::Missed(MissReason::Fragment));
    assert_eq!(card.state, before);
}

#[test]
fn mark_and_label_change_in_the_bits_of_their_masks() {
    let mut card = card_with(Ct { mark: Some((0xffff, 0x00f0)), label: Some((u128::MAX, 1 << 100)), ..committed() });
    card.send(&udp_frame());
    let other = Ct { mark: Some((0x0005, 0x000f)), ..committed() };
    card.add(Rule::new(THREE, Match::new(), [Action::Ct(other), Action::Redirect(TWO)]));
    card.send_to(THREE, &udp_frame());
    let connection = card.state.connections().iter().next().expect("a connection");
    assert_eq!((connection.mark, connection.label), (0x00f5, 1 << 100));
}

#[test]
fn a_frame_is_tracked_again_only_in_another_zone() {
    let mut card = Card::new();
    card.rule(Match::new(), [Action::Ct(Ct { commit: false, ..committed() }), Action::Goto(1)]);
    let new = Match::new().with_ct_state(Field::CT_TRACKED | Field::CT_NEW, 0);
    card.add(Rule::new(ONE, new, [Action::Ct(committed()), Action::Redirect(TWO)]).in_chain(1));
    assert_eq!(card.send(&tcp_frame(SYN)).fate, Fate::Forwarded);
    assert_eq!((phase(&card), card.state.connections().len()), (Some(TcpPhase::SynSent), 1));
}

#[test]
fn a_forgotten_connection_is_no_key() {
    let mut card = Card::new();
    card.rule(Match::new(), [Action::Ct(committed()), Action::CtClear, Action::Goto(1)]);
    card.add(Rule::new(ONE, Match::new().with_ct_state(0, Field::CT_TRACKED), [Action::Drop]).in_chain(1));
    assert!(matches!(card.send(&udp_frame()).fate, Fate::Dropped(DropReason::Rule(_))));
}

#[test]
fn force_turns_a_connection_round() {
    let mut card = tracking();
    card.send(&udp_frame());
    let forced = Ct { force: true, ..committed() };
    let actions = [Action::Ct(Ct { commit: false, ..committed() }), Action::Ct(forced), Action::Redirect(ONE)];
    card.add(Rule::new(THREE, Match::new(), actions));
    assert_eq!(state(&card.send_to(THREE, &reply(UDP, &udp(2000, 1000, b"")))), "+trk+new");
    let connection = card.state.connections().iter().next().expect("a connection");
    assert_eq!((connection.original.src, card.state.connections().len()), (addr(IP_B), 1));
}

#[test]
fn a_full_table_takes_no_more_until_one_is_over() {
    let mut card = tracking();
    card.state = flow::State::new(1).with_connection_limit(2);
    let from = |port| ipv4(IP_A, IP_B, UDP, &udp(port, 2000, b""));
    assert!(card.send(&from(1)).fate == Fate::Forwarded && card.send(&from(2)).fate == Fate::Forwarded);
    assert_eq!(card.send(&from(3)).fate, Fate::Dropped(DropReason::TooManyConnections));
    assert_eq!(card.send(&from(2)).fate, Fate::Forwarded);
    card.wait(30);
    assert_eq!(card.send(&from(3)).fate, Fate::Forwarded);
    assert_eq!(card.state.connections().len(), 1);
}

fn range(first: impl Into<IpAddr>, last: impl Into<IpAddr>) -> NatRange {
    NatRange { addresses: first.into()..=last.into(), ports: None }
}

const PUBLIC: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A card that translates what port 1 sends, and translates the answers of port 2 back.
fn translating(nat: Nat) -> Card {
    let mut card = Card::new();
    let there = Ct { nat: Some(nat), ..committed() };
    let back = Ct { zone: 5, nat: Some(Nat::Restore), ..Ct::default() };
    card.rule(Match::new(), [Action::Ct(there), Action::Redirect(TWO)]);
    card.add(Rule::new(TWO, Match::new(), [Action::Ct(back), Action::Redirect(ONE)]));
    card
}

/// The one frame that was sent.
fn sent(verdict: Verdict) -> Vec<u8> {
    assert_eq!(verdict.outputs.len(), 1, "{}", verdict.trace);
    let frame = verdict.outputs[0].frame.clone();
    assert!(checksums_are_right(&frame));
    frame
}

#[test]
fn a_source_is_translated_and_the_answer_back() {
    let mut card = translating(Nat::Src(range(PUBLIC, PUBLIC)));
    for _ in 0..2 {
        assert_eq!(sent(card.send(&udp_frame())), ipv4(PUBLIC, IP_B, UDP, &udp(1000, 2000, b"data")));
        let answer = ipv4(IP_B, PUBLIC, UDP, &udp(2000, 1000, b"back"));
        assert_eq!(sent(card.send_to(TWO, &answer)), ipv4(IP_B, IP_A, UDP, &udp(2000, 1000, b"back")));
    }
    let tcp_out = ipv4(PUBLIC, IP_B, TCP, &tcp(1000, 80, SYN, b""));
    assert_eq!(sent(card.send(&tcp_frame(SYN))), tcp_out);
    let echo = ipv4(IP_A, IP_B, ICMP, &icmp(8, 0, 7, b"odd"));
    assert_eq!(sent(card.send(&echo)), ipv4(PUBLIC, IP_B, ICMP, &icmp(8, 0, 7, b"odd")));
    let answer = ipv4(IP_B, PUBLIC, ICMP, &icmp(0, 0, 7, b"odd"));
    assert_eq!(sent(card.send_to(TWO, &answer)), ipv4(IP_B, IP_A, ICMP, &icmp(0, 0, 7, b"odd")));
}

#[test]
fn a_destination_is_translated_and_the_answer_back() {
    let mut card = translating(Nat::Dst(NatRange { ports: Some(8080..=8080), ..range(PUBLIC, PUBLIC) }));
    assert_eq!(sent(card.send(&tcp_frame(SYN))), ipv4(IP_A, PUBLIC, TCP, &tcp(1000, 8080, SYN, b"")));
    let answer = ipv4(PUBLIC, IP_A, TCP, &tcp(8080, 1000, SYN | ACK, b""));
    assert_eq!(sent(card.send_to(TWO, &answer)), ipv4(IP_B, IP_A, TCP, &tcp(80, 1000, SYN | ACK, b"")));
}

#[test]
fn ipv6_is_translated() {
    let public: Ipv6Addr = "2001:db8:ffff::1".parse().expect("an address");
    let mut card = translating(Nat::Src(range(public, public)));
    let out = sent(card.send(&ipv6(IP6_A, IP6_B, UDP, &udp(1000, 2000, b"odd"))));
    assert_eq!(out, ipv6(public, IP6_B, UDP, &udp(1000, 2000, b"odd")));
    let answer = ipv6(IP6_B, public, UDP, &udp(2000, 1000, b""));
    assert_eq!(sent(card.send_to(TWO, &answer)), ipv6(IP6_B, IP6_A, UDP, &udp(2000, 1000, b"")));
}

#[test]
fn connections_that_would_be_alike_get_other_ports() {
    let mut card = translating(Nat::Src(NatRange { ports: Some(5000..=5002), ..range(PUBLIC, PUBLIC) }));
    let from = |last| ipv4(Ipv4Addr::new(10, 0, 0, last), IP_B, UDP, &udp(5000, 2000, b""));
    let mut ports: Vec<u8> = (10..13).map(|last| sent(card.send(&from(last)))[35]).collect();
    assert_eq!(ports[0], 0x88, "its own port is in the range and free");
    ports.sort_unstable();
    assert_eq!(ports, [0x88, 0x89, 0x8a]);
    assert_eq!(card.send(&from(13)).fate, Fate::Dropped(DropReason::NoFreePort));
    let mut card = translating(Nat::Src(range(PUBLIC, PUBLIC)));
    let first = sent(card.send(&from(10)));
    let second = sent(card.send(&from(11)));
    assert!(first[34..36] == [0x13, 0x88] && second[34..36] != [0x13, 0x88]);
}

#[test]
fn addresses_come_from_the_whole_range_and_stay() {
    let last = Ipv4Addr::new(192, 0, 2, 4);
    let mut card = translating(Nat::Src(range(PUBLIC, last)));
    let out = |card: &mut Card, port: u16| sent(card.send(&ipv4(IP_A, IP_B, UDP, &udp(port, 2000, b""))))[29];
    let mut chosen: Vec<u8> = (1000..1100).map(|port| out(&mut card, port)).collect();
    assert_eq!(out(&mut card, 1000), chosen[0]);
    chosen.sort_unstable();
    chosen.dedup();
    assert_eq!(chosen, [1, 2, 3, 4]);
}

#[test]
fn an_error_about_a_translated_connection_goes_to_the_representor() {
    let mut card = translating(Nat::Src(range(PUBLIC, PUBLIC)));
    let out = sent(card.send(&udp_frame()));
    let error = ipv4(IP_B, PUBLIC, ICMP, &icmp(3, 3, 0, &out[14..42]));
    assert_eq!(card.send_to(TWO, &error).fate, Fate::Missed(MissReason::TranslatedError));
}

#[test]
fn without_nat_an_agreed_translation_is_not_applied() {
    let mut card = translating(Nat::Src(range(PUBLIC, PUBLIC)));
    card.send(&udp_frame());
    card.add(Rule::new(THREE, Match::new(), [Action::Ct(Ct { zone: 5, ..Ct::default() }), Action::Redirect(TWO)]));
    assert_eq!(sent(card.send_to(THREE, &udp_frame())), udp_frame());
}

#[test]
fn a_range_of_the_other_version_of_ip_translates_nothing() {
    let mut card = translating(Nat::Src(range(IP6_A, IP6_B)));
    assert_eq!(sent(card.send(&udp_frame())), udp_frame());
}

#[test]
fn another_zone_tracks_again() {
    let mut card = Card::new();
    let other = Ct { zone: 6, ..committed() };
    card.rule(Match::new(), [Action::Ct(committed()), Action::Ct(other), Action::Redirect(TWO)]);
    card.send(&udp_frame());
    let zones: Vec<u16> = card.state.connections().iter().map(|connection| connection.zone).collect();
    assert_eq!(zones, [5, 6]);
}

#[test]
fn force_leaves_a_connection_that_has_the_direction() {
    let mut card = tracking();
    card.send(&udp_frame());
    card.send_to(TWO, &reply(UDP, &udp(2000, 1000, b"")));
    let forced = Ct { force: true, ..committed() };
    let actions = [Action::Ct(Ct { commit: false, ..committed() }), Action::Ct(forced), Action::Redirect(TWO)];
    card.add(Rule::new(THREE, Match::new(), actions));
    assert_eq!(state(&card.send_to(THREE, &udp_frame())), "+trk+est");
}

#[test]
fn udp_is_no_stream_in_its_first_two_seconds() {
    let mut card = tracking();
    card.send(&udp_frame());
    card.send_to(TWO, &reply(UDP, &udp(2000, 1000, b"")));
    card.send(&udp_frame());
    card.wait(30);
    assert_eq!(state(&card.send(&udp_frame())), "+trk+new");
}

#[test]
fn times_without_a_frame_depend_on_what_was_seen() {
    let open = [(ONE, SYN), (TWO, SYN | ACK), (ONE, ACK)];
    type Row<'a> = (&'a [(flow::Port, u8)], u64, bool);
    let rows: [Row<'_>; 5] = [
        (&[(ONE, ACK)], 300, false),
        (&open[..1], 120, false),
        (&open[..2], 60, false),
        (&open, 5 * 24 * 60 * 60, true),
        (&[open[0], open[1], open[2], (TWO, RST | ACK)], 10, true),
    ];
    for (segments, seconds, assured) in rows {
        let mut card = tracking();
        for (port, flags) in segments {
            card.send_to(*port, &if *port == ONE { tcp_frame(*flags) } else { tcp_reply(*flags) });
        }
        let connection = card.state.connections().iter().next().expect("a connection");
        assert_eq!(connection.assured, assured, "{segments:?}");
        card.wait(seconds - 1);
        assert_eq!(card.state.expire_connections(card.now), 0, "{segments:?}");
        card.wait(1);
        assert_eq!(card.state.expire_connections(card.now), 1, "{segments:?}");
    }
}

#[test]
fn a_connection_with_the_addresses_of_another_is_not_remembered() {
    let mut card = translating(Nat::Src(range(PUBLIC, PUBLIC)));
    card.send(&udp_frame());
    card.add(Rule::new(THREE, Match::new(), [Action::Ct(committed()), Action::Redirect(TWO)]));
    let alike = ipv4(PUBLIC, IP_B, UDP, &udp(1000, 2000, b""));
    assert_eq!(card.send_to(THREE, &alike).fate, Fate::Dropped(DropReason::ConnectionClash));
}

#[test]
fn a_translation_is_chosen_once() {
    let other = Ipv4Addr::new(192, 0, 2, 9);
    let to = |address, commit| Ct { nat: Some(Nat::Src(range(address, address))), commit, ..committed() };
    let mut card = Card::new();
    card.rule(Match::new(), [Action::Ct(to(PUBLIC, false)), Action::Ct(to(other, true)), Action::Redirect(TWO)]);
    assert_eq!(sent(card.send(&udp_frame())), ipv4(PUBLIC, IP_B, UDP, &udp(1000, 2000, b"data")));
}

#[test]
fn the_identifier_of_icmp_is_translated_for_either_address() {
    let ports = Some(50..=50);
    for nat in [
        Nat::Src(NatRange { ports: ports.clone(), ..range(IP_A, IP_A) }),
        Nat::Dst(NatRange { ports, ..range(IP_B, IP_B) }),
    ] {
        let mut card = translating(nat);
        let echo = |id| ipv4(IP_A, IP_B, ICMP, &icmp(8, 0, id, b""));
        assert_eq!(sent(card.send(&echo(7))), echo(50));
        assert_eq!(sent(card.send_to(TWO, &reply(ICMP, &icmp(0, 0, 50, b"")))), reply(ICMP, &icmp(0, 0, 7, b"")));
    }
}

#[test]
fn the_port_of_a_destination_stays_even_if_it_is_not_free() {
    let mut card = translating(Nat::Dst(range(PUBLIC, PUBLIC)));
    let to = |last| ipv4(IP_A, Ipv4Addr::new(10, 0, 0, last), UDP, &udp(1000, 80, b""));
    assert_eq!(sent(card.send(&to(20))), ipv4(IP_A, PUBLIC, UDP, &udp(1000, 80, b"")));
    assert_eq!(card.send(&to(21)).fate, Fate::Dropped(DropReason::NoFreePort));
}

#[test]
fn another_port_is_of_the_same_kind() {
    for (own, kind) in [(100, 1..=511), (700, 600..=1023), (5000, 1024..=65535)] {
        let mut card = translating(Nat::Src(range(PUBLIC, PUBLIC)));
        let from = |last| ipv4(Ipv4Addr::new(10, 0, 0, last), IP_B, UDP, &udp(own, 2000, b""));
        for last in 10..20 {
            let out = sent(card.send(&from(last)));
            let port = u16::from_be_bytes([out[34], out[35]]);
            assert!(kind.contains(&port) && (last == 10) == (port == own), "{port}");
        }
    }
}
