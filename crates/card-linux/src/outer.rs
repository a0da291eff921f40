//! The outer ends of the card's pairs: the netdevs that users see, wherever they have moved them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;

use eswitch::card::{CardError, Counters, Resource};
use eswitch::{MacAddr, PfIndex, Vport};
use netlink::{Errno, errno_of};

use crate::books::{Entry, near_end, slot_of};
use crate::layout::{Inside, Slot};
use crate::netns;
use crate::operation::Operation;
use crate::refused::{refused, refused_io};
use crate::request;
use crate::socket::{Batch, Socket};

/// The interface numbers of those PFs' netdevs that are in `home`. `card`: a socket inside the card, where the inner ends
/// of these netdevs show where they are.
///
/// # Errors
/// The kernel cannot be queried.
pub(crate) fn uplinks(card: &mut Socket, home: &File, pfs: u8) -> io::Result<BTreeMap<PfIndex, u32>> {
    let here = request::netns_id(card, home)?;
    let mut uplinks = BTreeMap::new();
    for pf in (0..pfs).map(PfIndex) {
        match request::link(card, Slot { pf, vport: Vport::Uplink }.inner()) {
            Ok(link) => {
                let outer = link.peer.filter(|(_, netns)| netns.is_some() && *netns == here);
                uplinks.extend(outer.map(|(outer, _)| (pf, outer)));
            }
            Err(error) if errno_of(&error) == Errno::NODEV => {}
            Err(error) => return Err(error),
        }
    }
    Ok(uplinks)
}

/// Where the outer end of a pair is now: a user may have moved it.
enum Whereabouts {
    /// Where it was made.
    Home,
    /// In a namespace that has a name.
    Named(String, File),
    /// In a namespace without a name, which the card's own knows by this id.
    Unnamed(i32),
}

impl Operation<'_> {
    /// Where the outer end of a pair is, and its interface number there. `near`: the number of the card's end.
    ///
    /// # Errors
    /// There is no such pair.
    fn locate(&mut self, near: u32) -> io::Result<(Whereabouts, u32)> {
        let home = &self.card.home;
        let inside = &mut self.sockets().inside;
        let gone = || io::Error::from(Errno::NODEV);
        let (outer, id) = request::link(inside, near)?.peer.ok_or_else(gone)?;
        let id = id.ok_or_else(gone)?;
        if request::netns_id(inside, home)? == Some(id) {
            return Ok((Whereabouts::Home, outer));
        }
        Ok(match netns::find(inside, id)? {
            Some((name, netns)) => (Whereabouts::Named(name, netns), outer),
            None => (Whereabouts::Unnamed(id), outer),
        })
    }

    /// Has the kernel carry out a request on the outer end of a pair, wherever it is. `call`: what is being done, for
    /// an error.
    ///
    /// # Errors
    /// There is no such pair, its outer end is in a namespace that has no name and in which no process lives, or the
    /// kernel refuses.
    pub(crate) fn run_on_outer(
        &mut self,
        near: u32,
        call: &str,
        build: impl FnOnce(&mut Batch, u32),
    ) -> Result<(), CardError> {
        let (place, outer) = self.locate(near).map_err(|error| refused_io(call, &error))?;
        let netns = match place {
            Whereabouts::Home => {
                let outcome = self.sockets().outside.run_one(|batch| build(batch, outer));
                return outcome.map_err(|failure| refused(call, &failure, None));
            }
            Whereabouts::Named(_, netns) => Some(netns),
            Whereabouts::Unnamed(id) => {
                netns::find_by_process(&mut self.sockets().inside, id).map_err(|error| refused_io(call, &error))?
            }
        };
        let netns = netns.ok_or_else(|| CardError::Kernel {
            call: call.to_owned(),
            errno: Errno::NOENT.raw_os_error(),
            text: "the netdev is in a network namespace that has no name and in which no process lives".to_owned(),
            hint: "; move it back, or name the namespace with `ip netns attach`".to_owned(),
        })?;
        let mut socket = Socket::open(&netns).map_err(|error| refused_io(call, &error))?;
        socket.run_one(|batch| build(batch, outer)).map_err(|failure| refused(call, &failure, None))
    }

    /// Gives the netdev of a resource another MAC address, and notes it for when the netdev has to be made again.
    pub(crate) fn set_mac(&mut self, resource: &Resource, mac: MacAddr) -> Result<(), CardError> {
        let mut books = self.books();
        if !books.resources.contains_key(resource) {
            books.complaints.push(format!("{resource} given a MAC address and was not there"));
            return Ok(());
        }
        drop(books);
        if let Some(near) = near_end(resource) {
            let call = format!("giving {resource} the address {mac}");
            self.run_on_outer(near, &call, |batch, outer| request::set_mac(batch, outer, mac))?;
        }
        if let Some(entry) = self.books().resources.get_mut(resource) {
            entry.mac = mac;
        }
        Ok(())
    }

    /// Gives a port its link, or takes it away, and notes it for when the netdev of its function is made again. A port
    /// with a representor is up while that is.
    pub(crate) fn set_link(&mut self, port: &Resource, up: bool) -> Result<(), CardError> {
        let slot = slot_of(port);
        let mut books = self.books();
        if !books.resources.contains_key(port) {
            books.complaints.push(format!("{port} given a link state and was not there"));
            return Ok(());
        }
        let ends = books.ends(slot);
        drop(books);
        if ends.port && !ends.inner {
            let set = self.sockets().inside.run_one(|batch| request::set_up(batch, slot.port(), up));
            let call = || format!("bringing {port} {}", if up { "up" } else { "down" });
            set.map_err(|failure| refused(&call(), &failure, None))?;
            if up {
                self.settle_carriers(&[slot]);
            }
        }
        let mut books = self.books();
        if let Some(entry) = books.resources.get_mut(port) {
            entry.link_down = !up;
        }
        if let Some(ends) = books.ends.get_mut(&slot).filter(|ends| ends.port && !ends.inner) {
            ends.port_up = up;
        }
        Ok(())
    }

    /// Moves a PF's netdev to the namespace of a name, or back to where it was made.
    pub(crate) fn set_netns(&mut self, pf: PfIndex, name: Option<&str>) -> Result<(), CardError> {
        let near = Slot { pf, vport: Vport::Uplink }.inner();
        let to = name.unwrap_or("its first namespace");
        let call = format!("moving the netdev of pf{} to {to}", pf.0);
        let target = match name {
            Some(name) => netns::open(name),
            None => self.card.home.try_clone(),
        };
        let target = target.map_err(|error| refused_io(&call, &error))?;
        self.run_on_outer(near, &call, |batch, outer| request::move_to(batch, outer, &target))
    }

    /// The namespace that a PF's netdev has been moved to, if that is not the one of its devlink instance.
    pub(crate) fn netns(&mut self, pf: PfIndex) -> Option<String> {
        let near = Slot { pf, vport: Vport::Uplink }.inner();
        let (_, id) = request::link(&mut self.sockets().inside, near).ok()?.peer?;
        if self.books().is_with_instance(&Resource::PfNetdev(pf), id) == Some(true) {
            return None;
        }
        match self.locate(near).ok()?.0 {
            Whereabouts::Home if self.books().abroad_of(&Resource::PfNetdev(pf)).is_some() => {
                Some("the namespace where the card's netdevs appear".to_owned())
            }
            Whereabouts::Home => None,
            Whereabouts::Named(name, _) => Some(name),
            Whereabouts::Unnamed(_) => Some("a namespace without a name".to_owned()),
        }
    }

    /// The counters of a PF's VFs: of their netdevs, and of those that they had before.
    pub(crate) fn counters(&mut self, pf: PfIndex) -> BTreeMap<Vport, Counters> {
        let now = request::all_counters(&mut self.sockets().inside).unwrap_or_default();
        let mut now: HashMap<u32, Counters> = now.into_iter().collect();
        // What the filters of a port have dropped its function has sent.
        for (index, drops) in request::acl::all_drops(&mut self.sockets().inside).unwrap_or_default() {
            now.entry(index).and_modify(|counters| counters.tx_dropped += drops);
        }
        let of_port = |(resource, entry): (&Resource, &Entry)| match *resource {
            Resource::Port(of, vport @ Vport::Vf(_)) if of == pf => {
                let now = now.get(&slot_of(resource).port()).copied().unwrap_or_default();
                Some((vport, entry.counted.plus(now)))
            }
            _ => None,
        };
        self.books().resources.iter().filter_map(of_port).collect()
    }

    /// The resources that exist: those of the books that the kernel confirms, and those that the kernel has beside
    /// them. For what other operations are making or unmaking at the moment the books decide: what is being made does
    /// not exist yet, what is being unmade does not exist any more.
    pub(crate) fn resources(&mut self) -> Vec<Resource> {
        self.books().claims.begin_comparison();
        let links = request::links(&mut self.sockets().inside);
        let mut books = self.books();
        let found = match links {
            Ok(links) => {
                let inside: HashSet<u32> = links.iter().map(|link| link.index).collect();
                let exists = |resource: &Resource| {
                    let confirmed = match (near_end(resource), resource) {
                        // One that was deleted from outside is being made anew, as soon as that can be.
                        (Some(_), _) => true,
                        (None, Resource::Function(pf)) => inside.contains(&Inside::Bridge(*pf, 0).index()),
                        (None, _) => true,
                    };
                    confirmed || books.claims.was_changing(slot_of(resource))
                };
                let mut found: HashSet<Resource> = books.resources.keys().filter(|r| exists(r)).copied().collect();
                let beside = inside.into_iter().filter_map(|index| match Inside::of(index)? {
                    Inside::Port(Slot { pf, vport: Vport::Uplink }) | Inside::Bridge(pf, _) => {
                        Some(Resource::Function(pf))
                    }
                    inside => inside.resource(),
                });
                found.extend(beside.filter(|resource| !books.claims.was_changing(slot_of(resource))));
                found.extend(&books.returning);
                found.into_iter().collect()
            }
            Err(error) => {
                books.complaints.push(format!("the card cannot be looked at: {error}"));
                books.resources.keys().copied().collect()
            }
        };
        books.claims.end_comparison();
        found
    }
}
