//! Headers made into words.

use std::fmt;

use crate::parse::ethertype as types;

use super::super::values::{self, ethertype_word, hex};
use super::{DF, EVIL, FILLING, Ip, Layer, MF, TCP_FLAGS, Tcp};

/// Words that are written only if a value is not the one that is taken else.
struct Line<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Line<'_, '_> {
    fn say(&mut self, word: &str, value: impl fmt::Display) -> fmt::Result {
        write!(self.0, " {word} {value}")
    }

    fn unless<T: fmt::Display + PartialEq>(&mut self, word: &str, value: T, usual: T) -> fmt::Result {
        if value == usual { Ok(()) } else { self.say(word, value) }
    }

    fn given<T: fmt::LowerHex>(&mut self, word: &str, value: Option<T>) -> fmt::Result {
        value.map_or(Ok(()), |value| write!(self.0, " {word} {value:#x}"))
    }

    fn number<T: fmt::Display>(&mut self, word: &str, value: Option<T>) -> fmt::Result {
        value.map_or(Ok(()), |value| self.say(word, value))
    }

    fn flag(&mut self, word: &str, is_set: bool) -> fmt::Result {
        if is_set { write!(self.0, " {word}") } else { Ok(()) }
    }

    fn bytes(&mut self, word: &str, bytes: &[u8]) -> fmt::Result {
        if bytes.is_empty() { Ok(()) } else { self.say(word, format!("0x{}", hex(bytes))) }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Layer::Eth { .. } => "eth".into(),
            Layer::Vlan { id, .. } => format!("vlan {id}"),
            Layer::Arp { operation: 1, .. } => "arp request".into(),
            Layer::Arp { operation: 2, .. } => "arp reply".into(),
            Layer::Arp { operation, .. } => format!("arp {operation}"),
            Layer::Ip(_) => "ip".into(),
            Layer::Ip6 { .. } => "ip6".into(),
            Layer::Extension { kind, .. } => format!("ext {kind}"),
            Layer::Fragment { .. } => "frag".into(),
            Layer::Tcp(_) => "tcp".into(),
            Layer::Udp { .. } => "udp".into(),
            Layer::Sctp { .. } => "sctp".into(),
            Layer::Icmp { v6, .. } => (if *v6 { "icmp6" } else { "icmp" }).into(),
            Layer::Vxlan { id } => format!("vxlan id {id}"),
            Layer::Geneve { id, .. } => format!("geneve id {id}"),
            Layer::Gre { .. } => "gre".into(),
            Layer::Data(bytes) => format!("data {}", bytes_word(bytes)),
            Layer::Pad(bytes) => format!("pad {}", bytes_word(bytes)),
        };
        f.write_str(&name)?;
        self.values(&mut Line(f))
    }
}

/// So many zeros, or the bytes.
fn bytes_word(bytes: &[u8]) -> String {
    let is_zero = bytes.iter().all(|byte| *byte == 0) && bytes.len() <= 0xffff;
    if is_zero { bytes.len().to_string() } else { format!("0x{}", hex(bytes)) }
}

impl Layer {
    /// Writes the values behind the name.
    fn values(&self, line: &mut Line<'_, '_>) -> fmt::Result {
        match self {
            Layer::Eth { dst, src, kind } => {
                line.say("src", values::mac_word(src))?;
                line.say("dst", values::mac_word(dst))?;
                line.number("type", kind.map(ethertype_word))
            }
            Layer::Vlan { priority, discard, tpid, kind, .. } => {
                line.unless("prio", *priority, 0)?;
                line.flag("dei", *discard)?;
                line.unless("tpid", ethertype_word(*tpid), ethertype_word(types::VLAN))?;
                line.number("type", kind.map(ethertype_word))
            }
            Layer::Arp { sha, sip, tha, tip, .. } => {
                line.say("sip", sip)?;
                line.say("tip", tip)?;
                line.say("sha", values::mac_word(sha))?;
                line.say("tha", values::mac_word(tha))
            }
            Layer::Ip(ip) => ip.values(line),
            Layer::Ip6 { src, dst, class, label, hops, next, length } => {
                line.say("src", src)?;
                line.say("dst", dst)?;
                line.unless("tc", *class, 0)?;
                line.unless("label", *label, 0)?;
                line.unless("ttl", *hops, 64)?;
                line.number("next", *next)?;
                line.number("len", *length)
            }
            Layer::Extension { body, next, .. } => {
                line.bytes("body", if body[..] == FILLING { &[] } else { body })?;
                line.number("next", *next)
            }
            Layer::Fragment { offset, more, id, next } => {
                line.unless("offset", u32::from(*offset) * 8, 0)?;
                line.flag("mf", *more)?;
                line.unless("id", *id, 0)?;
                line.number("next", *next)
            }
            Layer::Tcp(tcp) => tcp.values(line),
            Layer::Udp { src, dst, length, check } => {
                line.say("sport", src)?;
                line.number("dport", *dst)?;
                line.number("len", *length)?;
                line.given("csum", *check)
            }
            Layer::Sctp { src, dst, tag, check } => {
                line.say("sport", src)?;
                line.say("dport", dst)?;
                line.unless("tag", *tag, 0)?;
                line.given("csum", Some(*check).filter(|check| *check != 0))
            }
            Layer::Icmp { kind, code, id, sequence, check, .. } => {
                line.say("type", kind)?;
                line.say("code", code)?;
                line.unless("id", *id, 0)?;
                line.unless("seq", *sequence, 0)?;
                line.given("csum", *check)
            }
            Layer::Geneve { options, .. } => line.bytes("options", options),
            Layer::Gre { key } => line.number("id", *key),
            Layer::Vxlan { .. } | Layer::Data(_) | Layer::Pad(_) => Ok(()),
        }
    }
}

impl Ip {
    fn values(&self, line: &mut Line<'_, '_>) -> fmt::Result {
        line.say("src", self.src)?;
        line.say("dst", self.dst)?;
        line.unless("tos", self.tos, 0)?;
        line.unless("ttl", self.ttl, 64)?;
        line.unless("id", self.id, 0)?;
        line.flag("df", self.fragment & DF != 0)?;
        line.flag("mf", self.fragment & MF != 0)?;
        line.flag("evil", self.fragment & EVIL != 0)?;
        line.unless("offset", u32::from(self.fragment & 0x1fff) * 8, 0)?;
        line.bytes("options", &self.options)?;
        line.number("proto", self.protocol)?;
        line.number("len", self.length)?;
        line.given("csum", self.check)
    }
}

impl Tcp {
    fn values(&self, line: &mut Line<'_, '_>) -> fmt::Result {
        line.say("sport", self.src)?;
        line.say("dport", self.dst)?;
        let letters = TCP_FLAGS.chars().enumerate().filter(|(bit, _)| self.flags >> bit & 1 == 1);
        match self.flags {
            0 => {}
            1..=0xff => line.say("flags", letters.map(|(_, letter)| letter).collect::<String>())?,
            flags => line.given("flags", Some(flags))?,
        }
        line.unless("seq", self.sequence, 0)?;
        line.unless("ack", self.acknowledged, 0)?;
        line.unless("win", self.window, 0xffff)?;
        line.unless("urg", self.urgent, 0)?;
        line.bytes("options", &self.options)?;
        line.given("csum", self.check)
    }
}
