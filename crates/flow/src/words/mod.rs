//! Rules and frames in words.
//!
//! A rule is read and written as a flower filter in the words of `tc filter add`, with the ranges and the bases of numbers
//! of iproute2 (`tc/tc_filter.c`, `tc/f_flower.c`, `tc/m_*.c`):
//!
//! ```
//! use flow::words::Names;
//! use flow::{Action, Block, Field, Port};
//!
//! let names = Names::by_number();
//! let filter = names.rule(
//!     "dev port1 ingress protocol ip prio 1 chain 0 flower ip_proto tcp dst_ip 10.0.0.0/8 dst_port 80 \
//!      action vlan push id 5 action mirred egress redirect dev port2",
//! )?;
//! assert_eq!(filter.rule.block, Block::Port(Port(1)));
//! assert_eq!(filter.rule.matches.exact(Field::DstPort), Some(80));
//! assert_eq!(filter.rule.actions[1], Action::Redirect(Port(2)));
//! assert_eq!(
//!     names.rule("dev port1 flower dst_prot 80").unwrap_err().to_string(),
//!     "word 4, \"dst_prot\": no such word. Do you mean \"dst_port\"?"
//! );
//! # Ok::<(), flow::words::WordError>(())
//! ```
//!
//! The words before `flower` and those of keys can be abbreviated, as in tc, if only one begins so: `proto`, `ip_pro`. The
//! others are written out. What a rule can say and tc has no words for, has these:
//!
//! * `eth_type`, `vlan_tpid` and `cvlan_tpid` match on a type that does not follow from `protocol`, `vlan_ethtype` and
//!   `cvlan_ethtype`, and `any` instead of a type says that there is no match on it.
//! * `enc_src_port` is the tunnel's source port. A mask can follow every value, as in `vlan_id 4/0xffc`, and the mask of an
//!   address can be an address.
//! * `dec_ttl` is [`Action::DecTtl`]. `pedit … ip6 first_bytes` is the whole of [`EditField::Ip6TrafficClass`], and
//!   `retain` has bits for every field.
//! * `tunnel_key set … kind vxlan|geneve|gre` says the kind of tunnel where the output is no tunnel device, and
//!   `neighbour DST/SRC` has the outer MAC addresses.
//! * `police index N` alone uses a meter that is there, and drops what exceeds it.
//!
//! [`frame`] makes a frame of words, [`frame_words`] writes one so that it can be made again, and [`frame_summary`]
//! writes one for people.
//!
//! [`Action::DecTtl`]: crate::Action::DecTtl
//! [`EditField::Ip6TrafficClass`]: crate::EditField::Ip6TrafficClass

mod actions;
mod frame;
mod matches;
mod rule;
mod values;

use std::fmt;

use thiserror::Error;

use crate::rule::{Block, Port};
use crate::tunnel::{TunnelDevice, TunnelKind};

pub use frame::{frame, frame_summary, frame_words};
pub use rule::Filter;

/// What the name of a device stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A port of the card: its representor, or the uplink's.
    Port(Port),
    /// A tunnel device, whose frames come and go by the uplink.
    Tunnel(TunnelDevice),
}

/// What names of devices mean.
///
/// Open vSwitch's names of tunnel devices, such as `vxlan_sys_4789`, `genev_sys_6081` and `gre_sys`, are known without
/// being asked for.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    /// The device of this name.
    pub device: &'a dyn Fn(&str) -> Option<Device>,
    /// The name of a port.
    pub port: &'a dyn Fn(Port) -> String,
    /// The port by which tunnels leave.
    pub uplink: Port,
    /// The block of a rule that does not say one with `dev` or `block`.
    pub block: Option<Block>,
    /// The index of the first `police` that does not say one. The next ones have the numbers that follow.
    pub free_meter: u32,
}

impl fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("uplink", &self.uplink).field("block", &self.block).finish_non_exhaustive()
    }
}

impl Names<'static> {
    /// Names with the number of the port: `port1`. The uplink is `port65535`, and there is no block but what is said.
    pub fn by_number() -> Names<'static> {
        Names { device: &port_by_number, port: &number_of_port, uplink: Port(0xffff), block: None, free_meter: 1 }
    }
}

fn port_by_number(name: &str) -> Option<Device> {
    name.strip_prefix("port")?.parse().ok().map(|number| Device::Port(Port(number)))
}

fn number_of_port(port: Port) -> String {
    format!("port{}", port.0)
}

impl Names<'_> {
    /// The device of a name: what the caller says, or Open vSwitch's tunnel device.
    fn find(&self, name: &str) -> Option<Device> {
        (self.device)(name).or_else(|| {
            let port = |prefix| name.strip_prefix(prefix).and_then(|port| port.parse().ok());
            let (kind, udp_port) = match (port("vxlan_sys_"), port("genev_sys_"), name) {
                (Some(udp_port), ..) => (TunnelKind::Vxlan, udp_port),
                (_, Some(udp_port), _) => (TunnelKind::Geneve, udp_port),
                (.., "gre_sys") => (TunnelKind::Gre, 0),
                _ => return None,
            };
            Some(Device::Tunnel(TunnelDevice { kind, udp_port }))
        })
    }
}

/// Open vSwitch's name of a tunnel device (`vport_get_dpif_port` in `lib/netdev-vport.c`).
fn tunnel_name(device: TunnelDevice) -> String {
    match device.kind {
        TunnelKind::Vxlan => format!("vxlan_sys_{}", device.udp_port),
        TunnelKind::Geneve => format!("genev_sys_{}", device.udp_port),
        TunnelKind::Gre => "gre_sys".into(),
    }
}

/// A word that is wrong, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("word {place}, {}: {why}", quoted(.word))]
pub struct WordError {
    /// The word, or nothing if one is missing at the end.
    pub word: String,
    /// Which word it is, counted from 1.
    pub place: usize,
    /// What is wrong with it.
    pub why: String,
}

fn quoted(word: &str) -> String {
    if word.is_empty() { "the end".into() } else { format!("\"{word}\"") }
}

type Parsed<T> = Result<T, WordError>;

/// Words that are read one after the other.
struct Words<'t> {
    words: Vec<&'t str>,
    next: usize,
}

impl<'t> Words<'t> {
    fn of(text: &'t str) -> Words<'t> {
        Words { words: text.split_whitespace().collect(), next: 0 }
    }

    fn peek(&self) -> Option<&'t str> {
        self.words.get(self.next).copied()
    }

    fn next(&mut self) -> Option<&'t str> {
        let word = self.peek()?;
        self.next += 1;
        Some(word)
    }

    /// Takes the next word if it is this one.
    fn take(&mut self, word: &str) -> bool {
        let is_next = self.peek() == Some(word);
        self.next += usize::from(is_next);
        is_next
    }

    /// The word that must follow.
    fn value(&mut self, what: &str) -> Parsed<&'t str> {
        self.next().ok_or_else(|| self.wrong_next(format!("{what} is missing")))
    }

    /// Takes the next word, which must be this one.
    fn expect(&mut self, word: &str) -> Parsed<()> {
        if self.take(word) { Ok(()) } else { Err(self.wrong_next(format!("\"{word}\" must stand here"))) }
    }

    /// Takes the next word and makes a value of it.
    fn read<T>(&mut self, what: &str, make: impl FnOnce(&str) -> Option<T>) -> Parsed<T> {
        let word = self.value(what)?;
        make(word).ok_or_else(|| self.wrong(format!("{what} must stand here")))
    }

    /// An error about the word that was taken last.
    fn wrong(&self, why: impl Into<String>) -> WordError {
        let place = self.next.max(1);
        WordError { word: self.words.get(place - 1).copied().unwrap_or_default().into(), place, why: why.into() }
    }

    /// An error about the word that follows.
    fn wrong_next(&self, why: impl Into<String>) -> WordError {
        let word = self.peek().unwrap_or_default().into();
        WordError { word, place: self.next + 1, why: why.into() }
    }

    /// An error about the word that was taken last, which is none of these.
    fn unknown<'k>(&self, known: impl Iterator<Item = &'k str> + Clone) -> WordError {
        let word = self.words.get(self.next.max(1) - 1).copied().unwrap_or_default();
        let near = known
            .clone()
            .map(|known| (distance(word, known), known))
            .min()
            .filter(|(distance, _)| *distance <= 2 && distance * 2 <= word.len());
        let longer = known.clone().find(|known| word.len() > 1 && known.starts_with(word));
        match near.map(|(_, known)| known).or(longer) {
            Some(near) => self.wrong(format!("no such word. Do you mean \"{near}\"?")),
            None => self.wrong(format!("no such word. It can be {}", known.collect::<Vec<_>>().join(", "))),
        }
    }
}

/// The word of which this is the beginning, if there is only one, or the word itself.
fn in_full<'k>(word: &str, mut known: impl Iterator<Item = &'k str> + Clone) -> Option<&'k str> {
    if let Some(own) = known.clone().find(|known| *known == word) {
        return Some(own);
    }
    let mut longer = known.by_ref().filter(|known| !word.is_empty() && known.starts_with(word));
    let first = longer.next()?;
    longer.all(|other| other == first).then_some(first)
}

/// How many letters must be put in, taken out or changed to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.chars().enumerate() {
        let mut before = row[0];
        row[0] = index + 1;
        for place in 0..other.len() {
            let changed = before + usize::from(letter != other[place]);
            before = row[place + 1];
            row[place + 1] = changed.min(before + 1).min(row[place] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_of_words_is_what_must_be_typed() {
        for (one, other, expected) in [("dst_prot", "dst_port", 2), ("ct_stat", "ct_state", 1), ("", "abc", 3)] {
            assert_eq!((distance(one, other), distance(other, one)), (expected, expected), "{one} {other}");
        }
    }

    #[test]
    fn a_beginning_stands_for_its_only_word() {
        let known = ["ip_proto", "ip_tos", "dst_ip", "dst_ip", "type"];
        let cases =
            [("ip_p", Some("ip_proto")), ("ip", None), ("dst", Some("dst_ip")), ("type", Some("type")), ("", None)];
        for (word, expected) in cases {
            assert_eq!(in_full(word, known.into_iter()), expected, "{word}");
        }
    }

    #[test]
    fn tunnel_devices_have_the_names_of_open_vswitch() {
        for kind in [TunnelKind::Vxlan, TunnelKind::Geneve, TunnelKind::Gre] {
            let device = TunnelDevice { kind, udp_port: if kind == TunnelKind::Gre { 0 } else { 4789 } };
            assert_eq!(Names::by_number().find(&tunnel_name(device)), Some(Device::Tunnel(device)));
        }
        assert_eq!(Names::by_number().find("vxlan_sys_x"), None);
    }
}
