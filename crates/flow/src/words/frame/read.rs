//! Words made into headers.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::key::Mac;
use crate::parse::{ethertype as types, is_vlan, protocol};

use super::super::values::{self, ethertype, u8_of, u16_of, u32_of};
use super::super::{Parsed, Words};
use super::{DF, EVIL, FILLING, Ip, Layer, MF, TCP_FLAGS, Tcp};

const MAC_1: Mac = [2, 0, 0, 0, 0, 1];
const MAC_2: Mac = [2, 0, 0, 0, 0, 2];
const IP_1: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const IP_2: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const IP6_1: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const IP6_2: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

const LAYERS: [&str; 17] = [
    "eth", "vlan", "arp", "ip", "ip6", "ext", "frag", "tcp", "udp", "sctp", "icmp", "icmp6", "vxlan", "geneve", "gre",
    "data", "pad",
];

/// Reads headers with slashes between them.
pub(super) fn read(words: &mut Words<'_>) -> Parsed<Vec<Layer>> {
    let mut layers = Vec::new();
    loop {
        let layer = layer(words)?;
        let begins = layers.last().is_none_or(Layer::has_frame_inside);
        if begins && !matches!(layer, Layer::Eth { .. }) {
            layers.push(Layer::Eth { dst: MAC_2, src: MAC_1, kind: None });
        }
        match layers.last() {
            Some(Layer::Pad(_)) => return Err(words.wrong("nothing can stand behind pad")),
            Some(Layer::Data(_)) if !matches!(layer, Layer::Pad(_)) => {
                return Err(words.wrong("only pad can stand behind data"));
            }
            Some(_) if !begins && matches!(layer, Layer::Eth { .. }) => {
                return Err(words.wrong("eth stands at the beginning, or behind vxlan, geneve or gre"));
            }
            _ => layers.push(layer),
        }
        match words.next() {
            None => break,
            Some("/") => {}
            Some(_) => return Err(words.wrong("this is no word of the header, and no slash either")),
        }
    }
    if layers.last().is_some_and(Layer::has_frame_inside) {
        layers.push(Layer::Eth { dst: MAC_2, src: MAC_1, kind: None });
    }
    Ok(layers)
}

/// Reads a header with its values.
fn layer(words: &mut Words<'_>) -> Parsed<Layer> {
    let name = words.value("a header")?;
    match name {
        "eth" => eth(words),
        "vlan" => vlan(words),
        "arp" => arp(words),
        "ip" => ip(words),
        "ip6" => ip6(words),
        "ext" => extension(words),
        "frag" => fragment(words),
        "tcp" => tcp(words),
        "udp" => udp(words),
        "sctp" => sctp(words),
        "icmp" | "icmp6" => icmp(words, name == "icmp6"),
        "vxlan" | "geneve" | "gre" => tunnel(words, name),
        "data" => bytes_or_zeros(words).map(Layer::Data),
        "pad" => bytes_or_zeros(words).map(Layer::Pad),
        _ => Err(words.unknown(LAYERS.into_iter())),
    }
}

/// Takes the words of a header, each of which `value` reads, up to the next slash.
fn each(
    words: &mut Words<'_>,
    known: &[&str],
    mut value: impl FnMut(&str, &mut Words<'_>) -> Parsed<()>,
) -> Parsed<()> {
    while let Some(word) = words.peek().filter(|word| *word != "/") {
        words.next();
        if !known.contains(&word) {
            return Err(words.unknown(known.iter().copied()));
        }
        value(word, words)?;
    }
    Ok(())
}

fn byte(words: &mut Words<'_>) -> Parsed<u8> {
    words.read("a number from 0 to 255", |word| u8_of(word, 0))
}

fn short(words: &mut Words<'_>) -> Parsed<u16> {
    words.read("a number from 0 to 65535", |word| u16_of(word, 0))
}

fn long(words: &mut Words<'_>) -> Parsed<u32> {
    words.read("a number of 32 bits", |word| u32_of(word, 0))
}

fn below(words: &mut Words<'_>, bits: u32) -> Parsed<u32> {
    let what = format!("a number from 0 to {}", (1u32 << bits) - 1);
    words.read(&what, |word| u32_of(word, 0).filter(|number| *number < 1 << bits))
}

fn mac(words: &mut Words<'_>) -> Parsed<Mac> {
    words.read("a MAC address", values::mac)
}

fn ip4_address(words: &mut Words<'_>) -> Parsed<Ipv4Addr> {
    words.read("an address of IPv4", |word| word.parse().ok())
}

fn ip6_address(words: &mut Words<'_>) -> Parsed<Ipv6Addr> {
    words.read("an address of IPv6", |word| word.parse().ok())
}

fn type_of(words: &mut Words<'_>) -> Parsed<u16> {
    words.read("a protocol, as ip or 0x88b5,", ethertype)
}

/// Bytes in hexadecimal, of which there is a multiple of `unit` between `least` and `most`.
fn hex_bytes(words: &mut Words<'_>, unit: usize, least: usize, most: usize) -> Parsed<Vec<u8>> {
    let what = format!("0x and the digits of {least} to {most} bytes, a multiple of {unit} behind {}", least % unit);
    let fits = |bytes: &Vec<u8>| (least..=most).contains(&bytes.len()) && (bytes.len() - least).is_multiple_of(unit);
    words.read(&what, |word| values::bytes(word.strip_prefix("0x")?).filter(fits))
}

fn bytes_or_zeros(words: &mut Words<'_>) -> Parsed<Vec<u8>> {
    words.read("a number of bytes up to 65535, or 0x and hexadecimal digits,", |word| match word.strip_prefix("0x") {
        Some(digits) => values::bytes(digits),
        None => Some(vec![0; usize::from(u16_of(word, 10)?)]),
    })
}

/// An offset of a fragment, a multiple of 8 bytes, in units of 8 bytes.
fn offset(words: &mut Words<'_>) -> Parsed<u16> {
    words.read("a multiple of 8 from 0 to 65528", |word| {
        u16_of(word, 0).filter(|bytes| bytes.is_multiple_of(8)).map(|bytes| bytes / 8)
    })
}

fn eth(words: &mut Words<'_>) -> Parsed<Layer> {
    let (mut dst, mut src, mut kind) = (MAC_2, MAC_1, None);
    each(words, &["src", "dst", "type"], |word, words| {
        match word {
            "src" => src = mac(words)?,
            "dst" => dst = mac(words)?,
            _ => kind = Some(type_of(words)?),
        }
        Ok(())
    })?;
    Ok(Layer::Eth { dst, src, kind })
}

fn vlan(words: &mut Words<'_>) -> Parsed<Layer> {
    let id = below(words, 12)? as u16;
    let (mut priority, mut discard, mut tpid, mut kind) = (0, false, types::VLAN, None);
    each(words, &["prio", "dei", "tpid", "type"], |word, words| {
        match word {
            "prio" => priority = below(words, 3)? as u8,
            "dei" => discard = true,
            "tpid" => {
                tpid = words.read("802.1Q or 802.1ad", |word| ethertype(word).filter(|tpid| is_vlan(*tpid)))?;
            }
            _ => kind = Some(type_of(words)?),
        }
        Ok(())
    })?;
    Ok(Layer::Vlan { id, priority, discard, tpid, kind })
}

fn arp(words: &mut Words<'_>) -> Parsed<Layer> {
    let operation = words.read("request, reply or a number", |word| match word {
        "request" => Some(1),
        "reply" => Some(2),
        word => u16_of(word, 0),
    })?;
    let (mut sha, mut sip, mut tha, mut tip) = (MAC_1, IP_1, [0; 6], IP_2);
    each(words, &["sip", "tip", "sha", "tha"], |word, words| {
        match word {
            "sip" => sip = ip4_address(words)?,
            "tip" => tip = ip4_address(words)?,
            "sha" => sha = mac(words)?,
            _ => tha = mac(words)?,
        }
        Ok(())
    })?;
    Ok(Layer::Arp { operation, sha, sip, tha, tip })
}

fn ip(words: &mut Words<'_>) -> Parsed<Layer> {
    let (protocol, length, check) = (None, None, None);
    let (src, dst, options) = (IP_1, IP_2, Vec::new());
    let mut ip = Ip { src, dst, tos: 0, id: 0, fragment: 0, ttl: 64, options, protocol, length, check };
    let known = ["src", "dst", "tos", "ttl", "id", "df", "mf", "evil", "offset", "options", "proto", "len", "csum"];
    each(words, &known, |word, words| {
        match word {
            "src" => ip.src = ip4_address(words)?,
            "dst" => ip.dst = ip4_address(words)?,
            "tos" => ip.tos = byte(words)?,
            "ttl" => ip.ttl = byte(words)?,
            "id" => ip.id = short(words)?,
            "df" => ip.fragment |= DF,
            "mf" => ip.fragment |= MF,
            "evil" => ip.fragment |= EVIL,
            "offset" => ip.fragment = ip.fragment & !0x1fff | offset(words)?,
            "options" => ip.options = hex_bytes(words, 4, 4, 40)?,
            "proto" => ip.protocol = Some(byte(words)?),
            "len" => ip.length = Some(short(words)?),
            _ => ip.check = Some(short(words)?),
        }
        Ok(())
    })?;
    Ok(Layer::Ip(ip))
}

fn ip6(words: &mut Words<'_>) -> Parsed<Layer> {
    let (mut src, mut dst, mut class, mut label) = (IP6_1, IP6_2, 0, 0);
    let (mut hops, mut next, mut length) = (64, None, None);
    each(words, &["src", "dst", "tc", "label", "ttl", "next", "len"], |word, words| {
        match word {
            "src" => src = ip6_address(words)?,
            "dst" => dst = ip6_address(words)?,
            "tc" => class = byte(words)?,
            "label" => label = below(words, 20)?,
            "ttl" => hops = byte(words)?,
            "next" => next = Some(byte(words)?),
            _ => length = Some(short(words)?),
        }
        Ok(())
    })?;
    Ok(Layer::Ip6 { src, dst, class, label, hops, next, length })
}

fn extension(words: &mut Words<'_>) -> Parsed<Layer> {
    let kinds = [protocol::HOP_OPTIONS, protocol::ROUTING, protocol::DESTINATION_OPTIONS];
    let kind = words.read("0, 43 or 60", |word| u8_of(word, 0).filter(|kind| kinds.contains(kind)))?;
    let (mut body, mut next) = (FILLING.to_vec(), None);
    each(words, &["body", "next"], |word, words| {
        match word {
            "body" => body = hex_bytes(words, 8, 6, 2046)?,
            _ => next = Some(byte(words)?),
        }
        Ok(())
    })?;
    Ok(Layer::Extension { kind, body, next })
}

fn fragment(words: &mut Words<'_>) -> Parsed<Layer> {
    let (mut at, mut more, mut id, mut next) = (0, false, 0, None);
    each(words, &["offset", "mf", "id", "next"], |word, words| {
        match word {
            "offset" => at = offset(words)?,
            "mf" => more = true,
            "id" => id = long(words)?,
            _ => next = Some(byte(words)?),
        }
        Ok(())
    })?;
    Ok(Layer::Fragment { offset: at, more, id, next })
}

fn tcp(words: &mut Words<'_>) -> Parsed<Layer> {
    let (src, dst, sequence, acknowledged) = (0, 0, 0, 0);
    let (flags, window, urgent, options, check) = (0, 0xffff, 0, Vec::new(), None);
    let mut tcp = Tcp { src, dst, sequence, acknowledged, flags, window, urgent, options, check };
    let known = ["sport", "dport", "flags", "seq", "ack", "win", "urg", "options", "csum"];
    each(words, &known, |word, words| {
        match word {
            "sport" => tcp.src = short(words)?,
            "dport" => tcp.dst = short(words)?,
            "flags" => tcp.flags = words.read("letters of FSRPAUEW or a number up to 0xfff", tcp_flags)?,
            "seq" => tcp.sequence = long(words)?,
            "ack" => tcp.acknowledged = long(words)?,
            "win" => tcp.window = short(words)?,
            "urg" => tcp.urgent = short(words)?,
            "options" => tcp.options = hex_bytes(words, 4, 4, 40)?,
            _ => tcp.check = Some(short(words)?),
        }
        Ok(())
    })?;
    Ok(Layer::Tcp(tcp))
}

fn tcp_flags(word: &str) -> Option<u16> {
    if word.starts_with(|letter: char| letter.is_ascii_digit()) {
        return u16_of(word, 0).filter(|flags| *flags <= 0xfff);
    }
    word.chars().try_fold(0, |flags, letter| Some(flags | 1 << TCP_FLAGS.find(letter)?))
}

fn udp(words: &mut Words<'_>) -> Parsed<Layer> {
    let (mut src, mut dst, mut length, mut check) = (0, None, None, None);
    each(words, &["sport", "dport", "len", "csum"], |word, words| {
        match word {
            "sport" => src = short(words)?,
            "dport" => dst = Some(short(words)?),
            "len" => length = Some(short(words)?),
            _ => check = Some(short(words)?),
        }
        Ok(())
    })?;
    Ok(Layer::Udp { src, dst, length, check })
}

fn sctp(words: &mut Words<'_>) -> Parsed<Layer> {
    let (mut src, mut dst, mut tag, mut check) = (0, 0, 0, 0);
    each(words, &["sport", "dport", "tag", "csum"], |word, words| {
        match word {
            "sport" => src = short(words)?,
            "dport" => dst = short(words)?,
            "tag" => tag = long(words)?,
            _ => check = long(words)?,
        }
        Ok(())
    })?;
    Ok(Layer::Sctp { src, dst, tag, check })
}

fn icmp(words: &mut Words<'_>, v6: bool) -> Parsed<Layer> {
    let (mut kind, mut code, mut id, mut sequence, mut check) = (if v6 { 128 } else { 8 }, 0, 0, 0, None);
    each(words, &["type", "code", "id", "seq", "csum"], |word, words| {
        match word {
            "type" => kind = byte(words)?,
            "code" => code = byte(words)?,
            "id" => id = short(words)?,
            "seq" => sequence = short(words)?,
            _ => check = Some(short(words)?),
        }
        Ok(())
    })?;
    Ok(Layer::Icmp { v6, kind, code, id, sequence, check })
}

fn tunnel(words: &mut Words<'_>, name: &str) -> Parsed<Layer> {
    let (mut id, mut options) = (None, Vec::new());
    let known: &[&str] = if name == "geneve" { &["id", "options"] } else { &["id"] };
    each(words, known, |word, words| {
        match word {
            "id" if name == "gre" => id = Some(long(words)?),
            "id" => id = Some(below(words, 24)?),
            _ => options = hex_bytes(words, 4, 4, 252)?,
        }
        Ok(())
    })?;
    Ok(match name {
        "vxlan" => Layer::Vxlan { id: id.unwrap_or(0) },
        "geneve" => Layer::Geneve { id: id.unwrap_or(0), options },
        _ => Layer::Gre { key: id },
    })
}
