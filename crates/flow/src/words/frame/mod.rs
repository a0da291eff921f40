//! Frames in words: `eth / vlan 5 / ip src 10.0.0.1 dst 10.0.0.2 / tcp dport 80 flags S / data 20`.

mod build;
mod dissect;
mod read;
mod show;

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::key::Mac;

use super::values::{self, hex};
use super::{WordError, Words};

use build::build;
use dissect::dissected;

/// A header, or what stands behind the headers. What is an option follows from the rest if it is not said.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Layer {
    Eth { dst: Mac, src: Mac, kind: Option<u16> },
    Vlan { id: u16, priority: u8, discard: bool, tpid: u16, kind: Option<u16> },
    Arp { operation: u16, sha: Mac, sip: Ipv4Addr, tha: Mac, tip: Ipv4Addr },
    Ip(Ip),
    Ip6 { src: Ipv6Addr, dst: Ipv6Addr, class: u8, label: u32, hops: u8, next: Option<u8>, length: Option<u16> },
    Extension { kind: u8, body: Vec<u8>, next: Option<u8> },
    Fragment { offset: u16, more: bool, id: u32, next: Option<u8> },
    Tcp(Tcp),
    Udp { src: u16, dst: Option<u16>, length: Option<u16>, check: Option<u16> },
    Sctp { src: u16, dst: u16, tag: u32, check: u32 },
    Icmp { v6: bool, kind: u8, code: u8, id: u16, sequence: u16, check: Option<u16> },
    Vxlan { id: u32 },
    Geneve { id: u32, options: Vec<u8> },
    Gre { key: Option<u32> },
    Data(Vec<u8>),
    Pad(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Ip {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    tos: u8,
    id: u16,
    /// The three bits before the offset, and the offset in units of 8 bytes.
    fragment: u16,
    ttl: u8,
    options: Vec<u8>,
    protocol: Option<u8>,
    length: Option<u16>,
    check: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tcp {
    src: u16,
    dst: u16,
    sequence: u32,
    acknowledged: u32,
    flags: u16,
    window: u16,
    urgent: u16,
    options: Vec<u8>,
    check: Option<u16>,
}

/// An option that fills an extension header of 8 bytes (PadN).
const FILLING: [u8; 6] = [1, 4, 0, 0, 0, 0];

/// The flags of TCP by letter, from the lowest bit.
const TCP_FLAGS: &str = "FSRPAUEW";

/// Bits before the offset of a fragment of IPv4.
const DF: u16 = 0x4000;
const MF: u16 = 0x2000;
const EVIL: u16 = 0x8000;

/// The ports of UDP at which tunnels are known.
const VXLAN_PORT: u16 = 4789;
const GENEVE_PORT: u16 = 6081;

/// Makes a frame of words.
///
/// Headers stand in their order, with a slash between them; `eth` may be left out at the beginning. What is not said has a
/// value that fits: lengths, checksums, types and protocols follow from the headers. `csum`, `len`, `type`, `proto` and
/// `next` say other ones. Numbers are as in C.
///
/// | header | its words |
/// | --- | --- |
/// | `eth` | `src MAC`, `dst MAC`, `type T` |
/// | `vlan ID` | `prio N`, `dei`, `tpid 802.1Q`, `type T` |
/// | `arp request`, `arp reply`, `arp N` | `sip A`, `tip A`, `sha MAC`, `tha MAC` |
/// | `ip` | `src A`, `dst A`, `tos N`, `ttl N`, `id N`, `df`, `mf`, `offset BYTES`, `options 0xHEX`, `proto N`, `len N`, `csum N` |
/// | `ip6` | `src A`, `dst A`, `tc N`, `label N`, `ttl N`, `next N`, `len N` |
/// | `ext KIND` | an extension header of IPv6: `body 0xHEX`, `next N` |
/// | `frag` | the one for fragments: `offset BYTES`, `mf`, `id N`, `next N` |
/// | `tcp` | `sport N`, `dport N`, `flags SA`, `seq N`, `ack N`, `win N`, `urg N`, `options 0xHEX`, `csum N` |
/// | `udp` | `sport N`, `dport N`, `len N`, `csum N` |
/// | `sctp` | `sport N`, `dport N`, `tag N`, `csum N` |
/// | `icmp`, `icmp6` | `type N`, `code N`, `id N`, `seq N`, `csum N` |
/// | `vxlan`, `geneve`, `gre` | `id N`, `options 0xHEX`; a frame stands behind |
/// | `data N`, `data 0xHEX` | so many zeros, or bytes |
/// | `pad N`, `pad 0xHEX` | bytes behind the packet, that no length counts |
///
/// `hex 0200…` alone is a frame byte for byte.
///
/// # Errors
/// The word that is wrong, and what would be right.
///
/// ```
/// use flow::words::{frame, frame_words};
///
/// let syn = frame("vlan 5 / ip dst 10.0.0.9 / tcp sport 1000 dport 80 flags S")?;
/// assert_eq!(syn.len(), 58);
/// assert!(flow::checksums_are_right(&syn));
/// assert_eq!(
///     frame_words(&syn),
///     "eth src 02:00:00:00:00:01 dst 02:00:00:00:00:02 / vlan 5 / ip src 10.0.0.1 dst 10.0.0.9 / \
///      tcp sport 1000 dport 80 flags S"
/// );
/// # Ok::<(), flow::words::WordError>(())
/// ```
pub fn frame(text: &str) -> Result<Vec<u8>, WordError> {
    let mut words = Words::of(text);
    if words.take("hex") {
        let digits: String = std::iter::from_fn(|| words.next()).collect();
        return values::bytes(&digits).ok_or_else(|| words.wrong("hexadecimal digits must stand here, two for a byte"));
    }
    let layers = read::read(&mut words)?;
    build(&layers).ok_or_else(|| words.wrong("the frame is too long for the lengths in its headers"))
}

/// Writes a frame in the words of which [`frame`] makes the same bytes.
pub fn frame_words(frame: &[u8]) -> String {
    match dissected(frame) {
        Some(layers) => layers.iter().map(Layer::to_string).collect::<Vec<_>>().join(" / "),
        None => format!("hex {}", hex(frame)),
    }
}

/// Writes a frame in a line for people: as [`frame_words`], but of data and padding only the length.
pub fn frame_summary(frame: &[u8]) -> String {
    let Some(layers) = dissected(frame) else { return format!("{} bytes that are no whole frame", frame.len()) };
    let words = layers.iter().map(|layer| match layer {
        Layer::Data(bytes) => format!("data {}", bytes.len()),
        Layer::Pad(bytes) => format!("pad {}", bytes.len()),
        layer => layer.to_string(),
    });
    words.collect::<Vec<_>>().join(" / ")
}

impl Layer {
    /// Whether a frame stands behind it.
    fn has_frame_inside(&self) -> bool {
        matches!(self, Layer::Vxlan { .. } | Layer::Geneve { .. } | Layer::Gre { .. })
    }
}
