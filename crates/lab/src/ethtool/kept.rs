//! Where the settings of netdevs are kept.
//!
//! They are in the alias (IFLA_IFALIAS) of the card's end of the netdev's pair, in the card's network namespace. So they
//! live exactly as long as the netdev does, wherever it is moved, every lab of the card sees them, and they outlive the
//! daemon. Nobody else uses that alias. Two labs that change settings of one netdev at the same moment may lose one change;
//! within a lab they are made one after the other.
//!
//! What is too long for an alias is the lab's own: the receive side ([`Steering`]). It is remembered under a number
//! that the alias has.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lockdep::{Locked, Mutex};
use netlink::rtnl::{
    IFINFOMSG, IFLA_EXT_MASK, IFLA_IFALIAS, RTEXT_FILTER_SKIP_STATS, RTM_GETLINK, RTM_NEWLINK, RTM_SETLINK,
};
use netlink::{Builder, Errno, Flags, Header, errno_of, find, messages};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::settings::{Changed, Kind, Settings};
use super::steering::Steering;
use super::{CONSTANT, Refused};
use crate::card::Card;
use crate::lock_order::EthtoolSettings;
use crate::network;

/// How an alias with settings begins.
const MARK: &str = "ethtool";
/// The most bytes of an alias (IFALIASZ, less the zero at its end).
const ALIAS: usize = 255;
/// The most netdevs of a card of which the lab remembers the receive side.
const STEERINGS: usize = 4096;

/// The settings of all cards' netdevs.
pub(crate) struct Kept {
    cards: Mutex<EthtoolSettings, HashMap<usize, Place>>,
}

/// The network namespace of a card.
struct Place {
    namespace: Arc<OwnedFd>,
    /// A socket there. `None`: it cannot be opened, so every netdev has the settings at the start.
    socket: Option<OwnedFd>,
    sequence: u32,
    steerings: HashMap<(u32, u64), Steering>,
    next: u64,
}

/// What an alias has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Alias {
    settings: Settings,
    /// The number under which the receive side is remembered; 0 if it never was.
    steering: u64,
}

impl Alias {
    /// Settings of another mode of the E-Switch are void: the driver makes new ones with the mode. The card removes the
    /// alias when a PF's netdev becomes an uplink.
    fn parse(kind: Kind, text: &str) -> Self {
        let words =
            text.strip_prefix(MARK).and_then(|rest| rest.strip_prefix(if kind.in_switch { "/1" } else { "/0" }));
        let words = words.unwrap_or_default();
        let steering = words.split(' ').find_map(|word| u64::from_str_radix(word.strip_prefix("id=")?, 16).ok());
        Self { settings: Settings::from_text(kind, words), steering: steering.unwrap_or(0) }
    }

    fn text(&self) -> String {
        let mode = u8::from(self.settings.kind.in_switch);
        let steering = if self.steering == 0 { String::new() } else { format!(" id={:x}", self.steering) };
        match self.settings.to_text() {
            words if words.is_empty() && steering.is_empty() => String::new(),
            words => format!("{MARK}/{mode}{steering} {words}"),
        }
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self { cards: Mutex::new(HashMap::new()) }
    }
}

impl Kept {
    /// The settings of the netdev with a peer in the network namespace of card `n`.
    pub fn settings<L>(
        &self,
        cx: &mut Locked<'_, L>,
        (n, card): (usize, &dyn Card),
        peer: Option<u32>,
        kind: Kind,
    ) -> Settings {
        let start = || Settings::new(kind);
        let Some((peer, namespace)) = peer.zip(card.network()) else { return start() };
        let mut cards = self.cards.lock_leaf(cx);
        place(&mut cards, n, namespace).alias(peer, kind).map_or_else(|_| start(), |alias| alias.settings)
    }

    /// Has `work` change the settings and the receive side of a netdev, and keeps the settings as they are then, also if
    /// it is refused.
    ///
    /// # Errors
    /// Those of `work`. EOPNOTSUPP: the lab cannot keep anything of this netdev.
    pub fn change<L>(
        &self,
        cx: &mut Locked<'_, L>,
        (n, card): (usize, &dyn Card),
        peer: Option<u32>,
        kind: Kind,
        work: impl FnOnce(&mut Settings, &mut Steering) -> Changed,
    ) -> Changed {
        let Some((peer, namespace)) = peer.zip(card.network()) else { return Err(CONSTANT) };
        let mut cards = self.cards.lock_leaf(cx);
        let place = place(&mut cards, n, namespace);
        let failed = |error: io::Error| Refused(errno_of(&error), "".into());
        let before = place.alias(peer, kind).map_err(failed)?;
        let mut now = before.clone();
        let mut steering = place.steerings.get(&(peer, now.steering)).cloned().unwrap_or_default();
        let was = steering.clone();
        let outcome = work(&mut now.settings, &mut steering);
        if steering != was {
            place.steerings.remove(&(peer, now.steering));
            if place.steerings.len() >= STEERINGS {
                return Err(Refused(Errno::NOSPC, "".into()));
            }
            place.next += 1;
            now.steering = u64::from(std::process::id()) << 32 | place.next;
            place.steerings.insert((peer, now.steering), steering);
        }
        if now != before {
            place.set_alias(peer, &now.text()).map_err(failed)?;
        }
        outcome
    }

    /// The receive side of a netdev.
    pub fn steering<L>(
        &self,
        cx: &mut Locked<'_, L>,
        (n, card): (usize, &dyn Card),
        peer: Option<u32>,
        kind: Kind,
    ) -> Steering {
        let Some((peer, namespace)) = peer.zip(card.network()) else { return Steering::default() };
        let mut cards = self.cards.lock_leaf(cx);
        let place = place(&mut cards, n, namespace);
        let Ok(alias) = place.alias(peer, kind) else { return Steering::default() };
        place.steerings.get(&(peer, alias.steering)).cloned().unwrap_or_default()
    }
}

/// The place of card `n`, which has its netdevs in `namespace` now.
fn place(cards: &mut HashMap<usize, Place>, n: usize, namespace: Arc<OwnedFd>) -> &mut Place {
    if cards.get(&n).is_none_or(|place| !Arc::ptr_eq(&place.namespace, &namespace)) {
        let socket = network::within(&namespace, network::open_route).ok();
        cards.insert(
            n,
            Place { namespace: Arc::clone(&namespace), socket, sequence: 0, steerings: HashMap::new(), next: 0 },
        );
    }
    cards.entry(n).or_insert_with(|| Place { namespace, socket: None, sequence: 0, steerings: HashMap::new(), next: 0 })
}

impl Place {
    fn alias(&mut self, index: u32, kind: Kind) -> io::Result<Alias> {
        let mut text = String::new();
        self.ask(
            RTM_GETLINK,
            |to| {
                to.raw(&ifinfo(index)).u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
            },
            |content| {
                text = find(content, IFLA_IFALIAS).and_then(|alias| alias.string()).unwrap_or_default().to_owned();
            },
        )?;
        Ok(Alias::parse(kind, &text))
    }

    fn set_alias(&mut self, index: u32, text: &str) -> io::Result<()> {
        if text.len() > ALIAS {
            return Err(Errno::NOSPC.into());
        }
        self.ask(
            RTM_SETLINK,
            |to| {
                to.raw(&ifinfo(index)).put(IFLA_IFALIAS, text.as_bytes());
            },
            |_| {},
        )
    }

    /// Sends a request about one link, and passes the attributes of the link on, if the answer has one.
    fn ask(&mut self, kind: u16, fill: impl FnOnce(&mut Builder), mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or(Errno::OPNOTSUPP)?;
        self.sequence = self.sequence.wrapping_add(1);
        let header = Header::new(kind, Flags::REQUEST | Flags::ACK, self.sequence, 0);
        let request = netlink::message(header, fill).map_err(Errno::from)?;
        rustix::io::retry_on_intr(|| send(socket, &request, SendFlags::empty()))?;
        let mut buffer = vec![0; 16 << 10];
        loop {
            let (_, length) = rustix::io::retry_on_intr(|| recv(socket, &mut buffer[..], RecvFlags::empty()))?;
            for message in messages(&buffer[..length]).filter(|message| message.header.sequence == self.sequence) {
                if let Some(outcome) = message.outcome() {
                    return Ok(outcome.result?);
                }
                if let Some(content) = message.after(IFINFOMSG).filter(|_| message.header.kind == RTM_NEWLINK) {
                    take(content);
                }
            }
        }
    }
}

/// `struct ifinfomsg` for the netdev of an interface index.
fn ifinfo(index: u32) -> [u8; IFINFOMSG] {
    let mut header = [0; IFINFOMSG];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use devlink::view::Role;

    #[test]
    fn an_alias_is_of_one_mode_of_the_e_switch() {
        let kind = |in_switch| Kind { role: Role::Pf, in_switch, speed: 100_000 };
        let mut alias = Alias::parse(kind(true), "somebody's own");
        assert_eq!((&*alias.text(), alias.steering), ("", 0));
        alias.settings.set_rings(&[(6, 4096)]).unwrap();
        alias.steering = 0x1f;
        let text = alias.text();
        assert_eq!(text, "ethtool/1 id=1f rx=1000");
        assert_eq!(Alias::parse(kind(true), &text), alias);
        assert_eq!(Alias::parse(kind(false), &text).settings, Settings::new(kind(false)));
    }

    #[test]
    fn every_setting_fits_into_an_alias() {
        let kind = Kind { role: Role::Pf, in_switch: false, speed: 100_000 };
        let words: String = ["rx", "tx", "ru", "rf", "tu", "tf"].map(|name| format!(" {name}=ffff")).concat();
        let more: String =
            ["ra", "rc", "ta", "tc", "rp", "tp", "pr", "pt", "an", "ht"].map(|name| format!(" {name}=3")).concat();
        let alias =
            Alias::parse(kind, &format!("ethtool/0 id=ffffffffffffffff pf=97 fec=20 lm=7fffffffffffffff{words}{more}"));
        assert!(alias.text().len() <= ALIAS && alias.text().contains("lm=7f"), "{}", alias.text());
    }
}
