//! The wires of PFs: where what leaves a card arrives.
//!
//! A wire is a veth pair. One end is in the card and is the port of the uplink; the other is nowhere, or a netdev that the user
//! sees, in any network namespace that has a name: there it is joined to the wires of other cards, by a bridge as by a switch.

use std::fs::File;

use eswitch::card::CardError;
use eswitch::names::NetdevName;
use eswitch::{PfIndex, Vport};

use crate::adopt::Hold;
use crate::layout::{Inside, Slot};
use crate::operation::Operation;
use crate::refused::{refused, refused_io};
use crate::socket::Socket;
use crate::{netns, request};

/// Where the other end of a PF's wire is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    /// It leads nowhere: what is sent on it is lost.
    #[default]
    Nowhere,
    /// A netdev, which the card makes. What is sent on that netdev comes from the network; what leaves the card
    /// arrives there.
    Netdev {
        /// Its name.
        name: String,
        /// The name of the network namespace that it is made in. `None`: where the card's other netdevs appear.
        netns: Option<String>,
    },
}

impl Wire {
    /// A netdev of this name, where the card's other netdevs appear.
    pub fn netdev(name: impl Into<String>) -> Self {
        Self::Netdev { name: name.into(), netns: None }
    }
}

/// The netdev that is the other end of a PF's wire.
#[derive(Debug)]
pub(crate) struct WireEnd {
    pub name: String,
    /// The network namespace, if it is not the one where the card's netdevs appear.
    pub netns: Option<File>,
}

impl WireEnd {
    /// The end that a wire asks for; `None` if it leads nowhere.
    ///
    /// # Errors
    /// There is no such network namespace, or it may not be opened.
    fn of(wire: &Wire) -> Result<Option<Self>, CardError> {
        let Wire::Netdev { name, netns } = wire else { return Ok(None) };
        let open = |netns: &String| {
            netns::open(netns).map_err(|error| {
                refused_io(&format!("opening the network namespace {netns} of the wire {name}"), &error)
            })
        };
        Ok(Some(Self { name: name.clone(), netns: netns.as_ref().map(open).transpose()? }))
    }
}

impl Hold {
    /// Sets where the other end of a PF's wire is, as [`set_wire`](crate::LinuxCard::set_wire) does; a wire that a card that
    /// was taken over has already stays as it is.
    ///
    /// # Errors
    /// As `set_wire`.
    pub fn set_wire<L>(&self, cx: &mut lockdep::Locked<'_, L>, pf: PfIndex, wire: &Wire) -> Result<(), CardError> {
        self.card.begin_on(cx, Slot { pf, vport: Vport::Uplink }).set_wire(pf, wire)
    }
}

impl Operation<'_> {
    /// Sets where the other end of a PF's wire is, and makes the wire anew if it is another one.
    pub(crate) fn set_wire(&mut self, pf: PfIndex, wire: &Wire) -> Result<(), CardError> {
        let slot = Slot { pf, vport: Vport::Uplink };
        let made = WireEnd::of(wire).and_then(|end| {
            let is_there = self.is_wired(slot, end.as_ref());
            self.put_end(pf, end);
            if is_there || !self.books().ends(slot).port { Ok(()) } else { self.make_wire_again(slot) }
        });
        if made.is_err() {
            self.unplug(slot);
        }
        made
    }

    /// Whether a PF's wire has this end already. If the kernel cannot be queried, it has not.
    fn is_wired(&mut self, slot: Slot, end: Option<&WireEnd>) -> bool {
        let port = slot.port();
        let Ok(link) = request::link(&mut self.sockets().inside, port) else { return false };
        let Some(end) = end else { return link.peer == Some((Inside::Cable(slot.pf).index(), None)) };
        let Some((peer, Some(at))) = link.peer else { return false };
        let home = self.books().home.try_clone();
        let found = end.netns.as_ref().map_or(home, File::try_clone).and_then(|netns| {
            let far = request::netdev_named(&mut Socket::open(&netns)?, &end.name)?;
            Ok((far.map(|far| far.index), request::netns_id(&mut self.sockets().inside, &netns)?))
        });
        found.is_ok_and(|found| found == (Some(peer), Some(at)))
    }

    fn put_end(&mut self, pf: PfIndex, end: Option<WireEnd>) {
        let mut books = self.books();
        match end {
            Some(end) => drop(books.wires.insert(pf, end)),
            None => drop(books.wires.remove(&pf)),
        }
    }

    /// Makes a PF's wire anew, in the place of the old one.
    fn make_wire_again(&mut self, slot: Slot) -> Result<(), CardError> {
        let tied = self.books().ends(slot).tied;
        self.delete([slot.port()], None);
        if tied {
            self.untie(&[slot], Slot::inner);
        }
        let failures = self.run_built(|books, batch| {
            books.push_wire(batch, slot);
            request::ingress(batch, slot.port());
            request::join_bridge(batch, slot.port(), Inside::Bridge(slot.pf, 0).index());
            if tied {
                books.push_ties(batch, slot);
            }
        });
        let name = self.books().wires.get(&slot.pf).map(|end| NetdevName { name: end.name.clone(), altname: None });
        match failures.into_iter().next() {
            None => Ok(()),
            Some(failure) => Err(refused(&format!("making the wire of pf{}", slot.pf.0), &failure, name.as_ref())),
        }
    }

    /// Has a PF's wire lead nowhere.
    fn unplug(&mut self, slot: Slot) {
        self.put_end(slot.pf, None);
        if self.books().ends(slot).port {
            // If this fails, too, there is no wire; what is sent on one that leads nowhere is lost as well.
            let _ = self.make_wire_again(slot);
        }
    }

    /// Makes a wire again whose other end a user has deleted: this unplugged it, so it leads nowhere.
    pub(crate) fn rewire(&mut self, slot: Slot) {
        if self.books().ends(slot).port && self.has_gone(slot.port()) {
            self.put_end(slot.pf, None);
            if let Err(error) = self.make_wire_again(slot) {
                self.books().complaints.push(error.to_string());
            }
        }
    }
}
