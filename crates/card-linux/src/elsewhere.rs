//! Netdevs that users have moved to other namespaces.
//!
//! The card knows the last state of such a netdev, to bring it home with that when its namespace dies: the kernel deletes
//! a veth there, and with it the card's end. What the kernel reports about that deletion comes too late: the
//! namespace has no id any more, so nothing of it is delivered. So each change is followed as it happens: a message about
//! the netdev in its new namespace, or, where it has just arrived and the kernel had no reason yet to give that
//! namespace an id, a query of the card's end, which makes the kernel give it one, and then of the netdev there
//! (`IFLA_TARGET_NETNSID`). If a netdev changes and its namespace dies before the card has looked at it, the last that
//! it was is what it had at home.

use std::collections::HashMap;

use eswitch::Vport;
use eswitch::card::NetdevChange;
use netlink::{Errno, errno_of};

use crate::books::{Change, Elsewhere};
use crate::layout::Inside;
use crate::operation::Operation;
use crate::request::{self, Link};

/// What the watcher has received about an outer end that is elsewhere.
pub(crate) enum Sighting {
    /// It has left the namespace where netdevs appear; how it was then.
    Left(Link),
    /// How it is, or was when it left, in the namespace that the card's own knows by this id.
    At(i32, Link),
    /// Nothing: events were lost.
    Missed,
}

/// Where the card's end shows that the outer end is.
enum Place {
    Home(u32),
    /// The namespace's id, and the interface number there.
    Away(i32, u32),
    Gone,
}

impl Operation<'_> {
    /// Notes where netdevs are and how they are there. `sightings`: by the interface number of the card's end. Returns
    /// those that have left or are back.
    pub(crate) fn follow_elsewhere(&mut self, sightings: &HashMap<u32, Sighting>) -> Vec<Change> {
        let mut changes = Vec::new();
        for (near, sighting) in sightings {
            let resource = Inside::of(*near).and_then(Inside::resource);
            let Some(resource) = resource.filter(|resource| self.books().resources.contains_key(resource)) else {
                continue;
            };
            if let Sighting::At(netns, link) = sighting
                && !link.has_left
                && self.is_known_at(*near, *netns, link.index)
            {
                let before = self.books().elsewhere.get(near).map(|before| before.link.mtu);
                self.note_elsewhere(*near, Some(*netns), link.clone(), before);
                continue;
            }
            let was_away = self.books().elsewhere.contains_key(near);
            if let Some(at_home) = self.look_for(*near, sighting) {
                let mut books = self.books();
                if let Some(Inside::Inner(slot)) = Inside::of(*near) {
                    books.note_return(slot, at_home.index);
                }
                changes.extend(books.update_names(std::iter::once(&at_home)));
            } else if !was_away && self.books().elsewhere.contains_key(near) {
                changes.push((resource, NetdevChange::Away));
            }
        }
        changes
    }

    /// Whether the netdev of an interface number in a namespace is known to be the outer end of a pair.
    fn is_known_at(&mut self, near: u32, netns: i32, index: u32) -> bool {
        let books = self.books();
        let known = books.elsewhere.get(&near);
        known.is_some_and(|known| (known.netns, known.link.index) == (Some(netns), index))
    }

    /// Notes how a netdev is that is elsewhere. If it is a representor and has another MTU than `before`, its function
    /// is given that.
    fn note_elsewhere(&mut self, near: u32, netns: Option<i32>, link: Link, before: Option<u32>) {
        self.note_xdp(near, &link);
        let mut books = self.books();
        let new_mtu = match Inside::of(near) {
            Some(Inside::Inner(slot)) if slot.vport != Vport::Uplink => {
                let differs = books.ends(slot).port && before.is_some_and(|before| before != link.mtu);
                differs.then_some((slot, link.mtu))
            }
            _ => None,
        };
        let mtu = link.mtu;
        books.elsewhere.insert(near, Elsewhere { netns, link });
        if let Some(Inside::Inner(slot)) = Inside::of(near)
            && let Some(ends) = books.ends.get_mut(&slot)
        {
            ends.outer = None;
        }
        drop(books);
        self.fit_card_mtus(vec![(near, mtu)]);
        if let Some((slot, mtu)) = new_mtu {
            self.pass_mtu_on(slot, mtu);
        }
    }

    /// Notes how a netdev is that the card itself has moved to another namespace.
    pub(crate) fn note_arrival(&mut self, near: u32) {
        self.look_for(near, &Sighting::Missed);
    }

    /// Looks where the outer end of a pair is, and notes how it is if that is elsewhere; returns it if it is where
    /// netdevs appear.
    fn look_for(&mut self, near: u32, sighting: &Sighting) -> Option<Link> {
        match self.place_of(near)? {
            Place::Home(index) => return request::link(&mut self.sockets().outside, index).ok(),
            Place::Away(netns, index) => match request::link_in(&mut self.sockets().inside, netns, index) {
                Ok(link) => {
                    let known = self.books().elsewhere.get(&near).map(|before| before.link.mtu);
                    let left = if let Sighting::Left(left) = sighting { Some(left.mtu) } else { None };
                    self.note_elsewhere(near, Some(netns), link, known.or(left));
                }
                // It has gone on, and there is another event; or it is deleted.
                Err(_) => self.note_departure(near, sighting),
            },
            Place::Gone => self.note_departure(near, sighting),
        }
        None
    }

    /// If a netdev has just left the namespace where netdevs appear and no more is known, notes how it was there.
    fn note_departure(&mut self, near: u32, sighting: &Sighting) {
        let mut books = self.books();
        let Sighting::Left(link) = sighting else { return };
        // Another card's netdevs have the same numbers at their other ends.
        let is_ours = books.inside_id.is_some() && link.peer == Some((near, books.inside_id));
        if is_ours && !books.elsewhere.contains_key(&near) {
            books.elsewhere.insert(near, Elsewhere { netns: None, link: link.clone() });
        }
    }

    /// The interface number of the outer end of a pair, if that is where netdevs appear.
    pub(crate) fn index_at_home(&mut self, near: u32) -> Option<u32> {
        match self.place_of(near)? {
            Place::Home(index) => Some(index),
            Place::Away(..) | Place::Gone => None,
        }
    }

    /// Where the outer end of a pair is. `None`: the kernel cannot be queried.
    fn place_of(&mut self, near: u32) -> Option<Place> {
        let home = &self.card.home;
        let inside = &mut self.sockets().inside;
        let peer = match request::link(inside, near) {
            Ok(link) => link.peer,
            Err(error) if errno_of(&error) == Errno::NODEV => return Some(Place::Gone),
            Err(_) => return None,
        };
        let home = request::netns_id(inside, home).ok()?;
        let (index, netns) = peer?;
        Some(if netns == home { Place::Home(index) } else { Place::Away(netns?, index) })
    }
}
