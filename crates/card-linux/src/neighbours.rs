//! The kernel's neighbours, by which rules that encapsulate find their next hops.
//!
//! A rule with a tunnel names the end of the tunnel. Where its frames go is the kernel's to say: the route to the end
//! leads out of a netdev, to a gateway or to the end itself, and that neighbour has a MAC address. After every event that
//! could matter all of this is looked at again. So the contents and the order of events do not count, and events that
//! were lost are made up for by looking once more.
//!
//! As mlx5 does (`en/tc_tun.c`, `en/rep/neigh.c`):
//!
//! * A route counts if it leads out of the PF's netdev, or out of the bond in which that netdev is, if the bond has
//!   further ports (`get_route_and_out_devs`). The frames' source address is that of the netdev out of which the route
//!   leads (`gen_eth_tnl_hdr`).
//! * An end for which a rule has just come is resolved (`mlx5e_tc_tun_create_header_ipv4`).
//! * A neighbour to which frames are sent that the kernel does not see is used in the kernel from time to time
//!   (`mlx5e_tc_update_neigh_used_value`), so that it is not forgotten.
//!
//! Unlike mlx5: the route is looked up by the end alone, without the tunnel's own address and TOS. A route out of a VLAN
//! netdev, for which mlx5 pushes a tag, does not count. Nor does one out of a netdev that has nothing to do with the
//! card, for which mlx5 sends out of the uplink all the same. A neighbour that could not be resolved is tried again while
//! rules name it; mlx5 waits until the kernel itself sends a packet there.
//!
//! Only the namespace is looked at where the card's netdevs appear.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use eswitch::card::CardError;
use eswitch::{MacAddr, PfIndex};
use flow::Neighbour;
use netlink::rtnl::{
    RTM_DELNEIGH, RTM_NEWNEIGH, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE, RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE, RTMGRP_LINK, RTMGRP_NEIGH, RTNLGRP_IPV6_RULE, RTNLGRP_NEXTHOP,
};
use netlink::{Errno, errno_of};

use crate::outer;
use crate::refused::{refused, refused_io};
use crate::request::neighbour::{self as request, Entry};
use crate::request::{link, netdev, netdevs_in};
use crate::socket::{BackOff, Batch, Socket};
use crate::sys;

/// How long after a look that failed the next is, in milliseconds.
const AGAIN_MS: u16 = 100;

/// How often neighbours are used: the time after which the kernel by default asks a neighbour that is used and has not
/// been heard of (`delay_first_probe_time`), which mlx5 takes, too (`mlx5e_rep_neigh_update_init_interval`).
const PERIOD: Duration = Duration::from_secs(5);

/// The groups of events that may concern a next hop, as a mask.
const GROUPS: i32 = RTMGRP_LINK
    | RTMGRP_NEIGH
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV4_RULE
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV6_ROUTE
    | 1 << (RTNLGRP_IPV6_RULE - 1);

/// The kernel's neighbours in the namespace in which a card's netdevs appear.
pub struct Neighbours {
    pfs: u8,
    card: File,
    home: File,
    wake: PipeWriter,
    /// Something is in the pipe that has not been read. So the pipe never fills up, and a call never waits.
    is_woken: AtomicBool,
}

impl Neighbours {
    /// The neighbours in `home`, the namespace where the netdevs of the card `card` appear, and a watch on them.
    ///
    /// # Errors
    /// A socket or a pipe cannot be opened.
    pub(crate) fn new(pfs: u8, card: &File, home: &File) -> io::Result<(Arc<Self>, NeighbourWatch)> {
        let (woken, wake) = io::pipe()?;
        let (card, home) = (card.try_clone()?, home.try_clone()?);
        let events = Socket::listening(&home, GROUPS)?;
        // A kernel before 5.3 has no such group, and no such objects.
        let _ = events.join(RTNLGRP_NEXTHOP);
        let (inside, outside) = (Socket::open(&card)?, Socket::open(&home)?);
        let neighbours = Arc::new(Self { pfs, card, home, wake, is_woken: AtomicBool::new(false) });
        let watch = NeighbourWatch {
            neighbours: Arc::clone(&neighbours),
            woken,
            events,
            card: inside,
            home: outside,
            hops: BTreeMap::new(),
            due: Instant::now() + PERIOD,
            overruns: 0,
            again: false,
            back_off: BackOff::default(),
        };
        Ok((neighbours, watch))
    }

    /// Ends the [wait](NeighbourWatch::wait) of the watch. Never waits.
    pub fn wake(&self) {
        if !self.is_woken.swap(true, Ordering::SeqCst) {
            // It fails if the watch has been dropped, which then needs no waking.
            let _ = (&self.wake).write(&[0]);
        }
    }

    /// Sets the MAC address of a neighbour behind a PF's netdev for good, or deletes the neighbour: `ip neigh replace`,
    /// `ip neigh del`.
    ///
    /// # Errors
    /// The netdev is not where netdevs appear, or the kernel refuses.
    pub fn set(&self, pf: PfIndex, to: IpAddr, mac: Option<MacAddr>) -> Result<(), CardError> {
        let call = format!("the neighbour {to} of pf{}", pf.0);
        let refused_io = |error: io::Error| refused_io(&call, &error);
        let mut card = Socket::open(&self.card).map_err(refused_io)?;
        let uplinks = outer::uplinks(&mut card, &self.home, self.pfs).map_err(refused_io)?;
        let netdev = uplinks.get(&pf).ok_or_else(|| refused_io(Errno::NODEV.into()))?;
        let mut home = Socket::open(&self.home).map_err(refused_io)?;
        let set = home.run_one(|batch| match mac {
            Some(mac) => request::set_neighbour(batch, *netdev, to, mac),
            None => request::delete_neighbour(batch, *netdev, to),
        });
        set.map_err(|failure| refused(&call, &failure, None))
    }
}

/// The next hop to the end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hop {
    /// The netdev out of which the route leads.
    netdev: u32,
    /// The gateway, or the end itself.
    to: IpAddr,
    /// Whether its MAC address is known.
    is_valid: bool,
}

/// Receives every change that may concern next hops, and looks them up.
pub struct NeighbourWatch {
    neighbours: Arc<Neighbours>,
    woken: PipeReader,
    events: Socket,
    /// Inside the card.
    card: Socket,
    home: Socket,
    /// What the last look has found, also of those that are not resolved.
    hops: BTreeMap<(PfIndex, IpAddr), Hop>,
    /// When neighbours are to be used next.
    due: Instant,
    overruns: u64,
    /// The last look failed, so that another is due soon.
    again: bool,
    back_off: BackOff,
}

impl NeighbourWatch {
    /// Waits until something has happened that may matter, or [`Neighbours::wake`] was called, or, with `in_use`, until
    /// neighbours are to be [used](Self::use_neighbours). Returns whether they are. If no events can be received, waits
    /// for a while: something may have happened then.
    #[allow(clippy::disallowed_methods, reason = "no lock is held here")]
    pub fn wait(&mut self, in_use: bool) -> bool {
        loop {
            match self.receive(in_use) {
                Ok(matters) => {
                    self.back_off.reset();
                    let is_due = in_use && Instant::now() >= self.due;
                    if is_due {
                        self.due = Instant::now() + PERIOD;
                    }
                    if matters || is_due {
                        return is_due;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    std::thread::sleep(self.back_off.after_failure());
                    return false;
                }
            }
        }
    }

    /// Waits until something has happened; returns whether it may matter.
    fn receive(&mut self, in_use: bool) -> io::Result<bool> {
        let until_due = self.due.saturating_duration_since(Instant::now()).as_millis();
        let limit = match (self.again, in_use) {
            (true, _) => Some(AGAIN_MS),
            // A millisecond more, as less than one is left out of the number.
            (false, true) => Some(until_due as u16 + 1),
            (false, false) => None,
        };
        let [woken, events] = sys::wait_readable([self.woken.as_fd(), self.events.as_fd()], limit)?;
        let mut matters = self.again && !(woken || events);
        if woken {
            // Only this thread reads it, so there is something to read.
            let _ = self.woken.read(&mut [0; 64]);
            // Afterwards: a call until now has written nothing, and what it was about is looked at after this.
            self.neighbours.is_woken.store(false, Ordering::SeqCst);
            matters = true;
        }
        if events {
            let known: BTreeSet<(u32, IpAddr)> = self.hops.values().map(|hop| (hop.netdev, hop.to)).collect();
            let lost = self.events.drain(|message| {
                matters |= match message.header.kind {
                    RTM_NEWNEIGH | RTM_DELNEIGH => {
                        Entry::read(message).is_some_and(|entry| known.contains(&(entry.netdev, entry.to)))
                    }
                    _ => in_use,
                };
            })?;
            self.overruns += u64::from(lost);
            matters |= lost;
        }
        Ok(matters)
    }

    /// The next hops to the ends of tunnels, of those that are known; the others are resolved. If the kernel cannot be
    /// queried, [`wait`](Self::wait) ends soon so that it is queried again.
    ///
    /// # Errors
    /// The kernel cannot be queried.
    pub fn look(&mut self, ends: &[(PfIndex, IpAddr)]) -> io::Result<BTreeMap<(PfIndex, IpAddr), Neighbour>> {
        let found = self.find(ends);
        self.again = found.is_err();
        found
    }

    fn find(&mut self, ends: &[(PfIndex, IpAddr)]) -> io::Result<BTreeMap<(PfIndex, IpAddr), Neighbour>> {
        let mut found = BTreeMap::new();
        if ends.is_empty() {
            self.hops.clear();
            return Ok(found);
        }
        let ways = self.ways()?;
        let mut hops = BTreeMap::new();
        let mut entries: BTreeMap<(u32, IpAddr), Option<Entry>> = BTreeMap::new();
        let mut unresolved = BTreeSet::new();
        for (pf, end) in ends {
            let Some(route) = request::route(&mut self.home, *end)? else { continue };
            let Some(src) = ways.get(&(*pf, route.netdev)) else { continue };
            let at = (route.netdev, route.gateway.unwrap_or(*end));
            let entry = match entries.get(&at) {
                Some(entry) => *entry,
                None => *entries.entry(at).or_insert(request::neighbour(&mut self.home, at.0, at.1)?),
            };
            let valid = entry.and_then(|entry| entry.valid());
            found.extend(valid.map(|dst| ((*pf, *end), Neighbour { dst: dst.0, src: src.0, from: route.source })));
            hops.insert((*pf, *end), Hop { netdev: at.0, to: at.1, is_valid: valid.is_some() });
            // One that has failed is tried again when neighbours are used.
            if entry.is_none() {
                unresolved.insert(at);
            }
        }
        self.hops = hops;
        self.use_all(unresolved);
        Ok(found)
    }

    /// The netdevs out of which frames leave by the uplinks of PFs, and their MAC addresses.
    fn ways(&mut self) -> io::Result<BTreeMap<(PfIndex, u32), MacAddr>> {
        let mut ways = BTreeMap::new();
        let uplinks = outer::uplinks(&mut self.card, &self.neighbours.home, self.neighbours.pfs)?;
        for (pf, index) in uplinks {
            let uplink = match link(&mut self.home, index) {
                Ok(uplink) => uplink,
                // It is gone meanwhile, and an event is on its way.
                Err(error) if errno_of(&error) == Errno::NODEV => continue,
                Err(error) => return Err(error),
            };
            ways.extend(uplink.mac.map(|mac| ((pf, index), mac)));
            let Some(master) = uplink.master else { continue };
            let Some(upper) = netdev(&mut self.home, master)? else { continue };
            // Without a further port it is on the same switch as the card, and mlx5 refuses it.
            let is_bond = upper.kind == "bond" || upper.kind == "team";
            if is_bond && netdevs_in(&mut self.home, master)?.len() > 1 {
                let mac = link(&mut self.home, master).ok().and_then(|upper| upper.mac);
                ways.extend(mac.map(|mac| ((pf, master), mac)));
            }
        }
        Ok(ways)
    }

    /// Has the kernel use the next hops to ends to which frames are sent, and resolve those of the last look that are not
    /// known.
    pub fn use_neighbours(&mut self, sent_to: &BTreeSet<(PfIndex, IpAddr)>) {
        let hops = self.hops.iter().filter(|(end, hop)| !hop.is_valid || sent_to.contains(end));
        let hops: BTreeSet<(u32, IpAddr)> = hops.map(|(_, hop)| (hop.netdev, hop.to)).collect();
        self.use_all(hops);
    }

    fn use_all(&mut self, hops: BTreeSet<(u32, IpAddr)>) {
        let mut batch = Batch::default();
        for (netdev, to) in hops {
            request::use_neighbour(&mut batch, netdev, to);
        }
        if !batch.is_empty() {
            // What is refused, as for a netdev that has just been deleted, is tried again when neighbours are used.
            self.home.run(batch);
        }
    }

    /// How many times events were lost because the socket had no room for them.
    pub fn overruns(&self) -> u64 {
        self.overruns
    }
}
