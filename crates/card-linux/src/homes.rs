//! Devlink instances that were reloaded into another network namespace (`devlink dev reload DEV netns NAME`).
//!
//! The netdevs of such an instance are made there: the kernel makes them where all of the card's appear, and the card
//! moves them before anybody has been told of them. In that namespace they are called `eth%d`, as mlx5e asks for that name
//! and udev, which gives others, acts in the initial namespace only. They count as netdevs that are
//! [elsewhere](crate::elsewhere), so their settings are followed.
//!
//! The card keeps no descriptor of that namespace, which must be able to die: only the ids by which two other namespaces
//! know it. When it dies the kernel frees these, and the instance is to be reloaded at home
//! (`devlink_pernet_pre_exit` in the kernel's `net/devlink/core.c`). For the process that takes the card over they are
//! written down where they last as long as the instance: in an alternative name of a netdev inside the card.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use eswitch::card::{MovedInstance, Resource};
use eswitch::{PfIndex, RepType, Vport};
use lockdep::Locked;
use netlink::Errno;
use netlink::rtnl::RTNLGRP_NSID;

use crate::books::Books;
use crate::layout::{Inside, Slot};
use crate::operation::{Operation, Shared};
use crate::request::{self, Link};
use crate::socket::{Batch, Socket};

/// The network namespace of a devlink instance that has left home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abroad {
    /// The id by which the card's own namespace knows it.
    inside: i32,
    /// The id by which it is known where the card's netdevs appear.
    outside: i32,
    /// SO_NETNS_COOKIE of a socket in it.
    cookie: u64,
    /// It has died, and the instance has not been reloaded yet.
    dead: bool,
}

impl Abroad {
    const ALTNAME: &str = "devlink-in-netns:";

    /// An alternative name of the netdev inside the card that stands for the instance. `index`: of that netdev, as a name
    /// can be given once.
    fn altname(&self, index: u32) -> String {
        format!("{}{}:{}:{}:{index}", Self::ALTNAME, self.inside, self.outside, self.cookie)
    }

    fn of_altname(altname: &str) -> Option<Self> {
        let mut numbers = altname.strip_prefix(Self::ALTNAME)?.split(':');
        let (inside, outside) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        Some(Self { inside, outside, cookie: numbers.next()?.parse().ok()?, dead: false })
    }
}

/// Where the instance of a function is, and whether it is being reloaded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Instance {
    /// `None`: where the card's netdevs appear.
    abroad: Option<Abroad>,
    /// How many reloads are under way. Meanwhile the instance exists although its function is being unmade.
    reloads: usize,
    /// Where it was before the reload that began last.
    before: Option<Abroad>,
}

/// Where a reload takes an instance.
#[derive(Clone, Copy, Debug)]
pub enum Destination<'a> {
    /// It stays in its network namespace.
    Same,
    /// To the namespace in which the card's netdevs appear.
    Home,
    /// To another namespace.
    Namespace(&'a OwnedFd),
}

/// Says, and sets, in which network namespaces the devlink instances of a card are.
#[derive(Clone)]
pub struct Homes {
    pub(crate) card: Arc<Shared>,
}

impl Homes {
    /// Notes that the instance of a function is about to be reloaded. From now on, until [`end_reload`](Self::end_reload),
    /// it keeps its namespace although its function is unmade.
    ///
    /// # Errors
    /// The destination is no network namespace, or the kernel gives it no id. Nothing has changed then.
    pub fn begin_reload<L>(
        &self,
        cx: &mut Locked<'_, L>,
        pf: PfIndex,
        vport: Vport,
        to: Destination<'_>,
    ) -> io::Result<()> {
        let slot = Slot { pf, vport };
        let mut operation = self.card.begin_query(cx);
        let new = match to {
            Destination::Namespace(netns) => Some(operation.abroad(&File::from(netns.try_clone()?))?),
            Destination::Home => Some(None),
            Destination::Same => None,
        };
        let mut books = operation.books();
        let instance = books.instances.entry(slot).or_default();
        instance.reloads += 1;
        instance.before = instance.abroad;
        if let Some(new) = new {
            instance.abroad = new;
        }
        Ok(())
    }

    /// Notes that a reload has ended. If it has not `succeeded`, the instance is where it was before.
    pub fn end_reload<L>(&self, cx: &mut Locked<'_, L>, pf: PfIndex, vport: Vport, succeeded: bool) {
        let slot = Slot { pf, vport };
        let mut books = self.card.books.lock_leaf(cx);
        // A reload may fail when the function has been unmade: then there is no instance.
        let whole = [Resource::Function(pf), Resource::VfNetdev(pf, vport), Resource::SfNetdev(pf, vport)];
        let exists = whole.iter().any(|part| instance_of(part) == Some(slot) && books.resources.contains_key(part));
        let Some(instance) = books.instances.get_mut(&slot) else { return };
        instance.reloads = instance.reloads.saturating_sub(1);
        if !succeeded {
            instance.abroad = instance.before.filter(|at| exists && !at.dead);
        }
        if instance.abroad.is_none() && instance.reloads == 0 {
            books.instances.remove(&slot);
        }
    }

    /// The functions whose instances are in a network namespace that has died.
    pub fn homeless<L>(&self, cx: &mut Locked<'_, L>) -> Vec<(PfIndex, Vport)> {
        let mut operation = self.card.begin_query(cx);
        let abroad: Vec<(Slot, Abroad)> = operation.books().abroad().collect();
        let dead: Vec<Slot> =
            abroad.into_iter().filter(|(_, at)| operation.has_died(at)).map(|(slot, _)| slot).collect();
        let mut books = operation.books();
        dead.iter().for_each(|slot| books.mark_dead(*slot));
        dead.into_iter().map(|slot| (slot.pf, slot.vport)).collect()
    }

    /// The cookie of a network namespace (SO_NETNS_COOKIE), and the id by which the card's own namespace knows it from now on.
    /// `None`: it is the one in which the card's netdevs appear.
    ///
    /// # Errors
    /// It is no network namespace, or the kernel gives it no id.
    pub fn identify<L>(&self, cx: &mut Locked<'_, L>, netns: &OwnedFd) -> io::Result<Option<(u64, i32)>> {
        let abroad = self.card.begin_query(cx).abroad(&File::from(netns.try_clone()?))?;
        Ok(abroad.map(|at| (at.cookie, at.inside)))
    }

    /// Whether no network namespace has an id any more by which the card's own one [knew](Self::identify) it.
    pub fn is_gone<L>(&self, cx: &mut Locked<'_, L>, id: i32) -> bool {
        request::netns_is_gone(&mut self.card.begin_query(cx).sockets().inside, id)
    }

    /// The cookie of the card's own network namespace (SO_NETNS_COOKIE).
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn cookie(&self) -> io::Result<u64> {
        Socket::listening(&self.card.inside, 0)?.cookie()
    }

    /// A netlink socket that becomes readable whenever a network namespace may have died in which an instance is.
    ///
    /// # Errors
    /// The kernel gives no socket.
    pub fn deaths(&self) -> io::Result<OwnedFd> {
        let socket = Socket::listening(&self.card.inside, 0)?;
        socket.join(RTNLGRP_NSID)?;
        socket.as_fd().try_clone_to_owned()
    }
}

impl Books {
    /// The instances that are abroad.
    fn abroad(&self) -> impl Iterator<Item = (Slot, Abroad)> + '_ {
        self.instances.iter().filter_map(|(slot, instance)| Some((*slot, instance.abroad?)))
    }

    /// The instances that are in another namespace, which is not known to have died.
    pub(crate) fn moved_instances(&self) -> Vec<MovedInstance> {
        let alive = self.abroad().filter(|(_, at)| !at.dead);
        alive.map(|(Slot { pf, vport }, at)| MovedInstance { pf, vport, netns: at.cookie }).collect()
    }

    fn mark_dead(&mut self, slot: Slot) {
        if let Some(at) = self.instances.get_mut(&slot).and_then(|instance| instance.abroad.as_mut()) {
            at.dead = true;
        }
    }

    /// The namespace in which the netdev of a resource is made, if that is another one than the card's.
    pub(crate) fn abroad_of(&self, resource: &Resource) -> Option<Abroad> {
        self.instances.get(&instance_of(resource)?)?.abroad.filter(|at| !at.dead)
    }

    /// Whether the namespace that the card's own knows by an id is the one of the instance to which a resource belongs.
    /// `None`: that instance is where the card's netdevs appear.
    pub(crate) fn is_with_instance(&self, resource: &Resource, id: Option<i32>) -> Option<bool> {
        Some(id == Some(self.abroad_of(resource)?.inside))
    }

    /// Notes where the instances are of a card that is taken over, whose netdevs inside it are `links`. If a namespace has
    /// died meanwhile, that is seen [later](Homes::homeless), unless another one has got its id.
    pub(crate) fn find_instances(&mut self, links: &[Link]) {
        for link in links {
            let slot = match Inside::of(link.index) {
                Some(Inside::Bridge(pf, 0)) => Slot { pf, vport: Vport::Uplink },
                Some(Inside::Port(slot)) if slot.vport != Vport::Uplink => slot,
                _ => continue,
            };
            let abroad = link.altnames.iter().find_map(|name| Abroad::of_altname(name));
            if abroad.is_some() {
                self.instances.insert(slot, Instance { abroad, ..Instance::default() });
            }
        }
    }

    /// Writes down, in an alternative name of a netdev inside the card, where the instance is of a function that has been made.
    pub(crate) fn push_home(&self, batch: &mut Batch, made: &Resource) {
        let netdev = match *made {
            Resource::Function(pf) => Inside::Bridge(pf, 0),
            Resource::VfNetdev(pf, vport) | Resource::SfNetdev(pf, vport) => Inside::Port(Slot { pf, vport }),
            _ => return,
        };
        if let Some(at) = self.abroad_of(made) {
            request::add_altname_to(batch, netdev.index(), &at.altname(netdev.index()));
        }
    }

    /// Forgets where the instances of functions are that are unmade and not reloaded: a driver that is bound makes an
    /// instance at home (`devlink_alloc`).
    pub(crate) fn forget_instances(&mut self, unmade: &[Resource]) {
        let is_whole = |resource: &&Resource| {
            matches!(resource, Resource::Function(_) | Resource::VfNetdev(..) | Resource::SfNetdev(..))
        };
        for slot in unmade.iter().filter(is_whole).filter_map(instance_of) {
            if self.instances.get(&slot).is_some_and(|instance| instance.reloads == 0) {
                self.instances.remove(&slot);
            }
        }
    }
}

/// The function to whose instance a resource belongs. Representors belong to the instance of their PF. `None`: it is the
/// host's of a DPU.
fn instance_of(resource: &Resource) -> Option<Slot> {
    match *resource {
        Resource::VfNetdev(pf, vport) | Resource::SfNetdev(pf, vport) => Some(Slot { pf, vport }),
        Resource::PfNetdev(pf) | Resource::Function(pf) | Resource::Representor(pf, _, RepType::Eth) => {
            Some(Slot { pf, vport: Vport::Uplink })
        }
        _ => None,
    }
}

impl Operation<'_> {
    /// The place of an instance in a namespace; `None` if that is where the card's netdevs appear.
    fn abroad(&mut self, netns: &File) -> io::Result<Option<Abroad>> {
        let cookie = Socket::open(netns)?.cookie()?;
        let card = self.card;
        if cookie == Socket::open(&card.home)?.cookie()? {
            return Ok(None);
        }
        let sockets = self.sockets();
        let [inside, outside] = [&mut sockets.inside, &mut sockets.outside].map(|socket| {
            let mut batch = Batch::default();
            request::assign_netns_id(&mut batch, netns);
            // It may have one already.
            socket.run(batch);
            request::netns_id(socket, netns)?.ok_or_else(|| io::Error::from(Errno::NOSPC))
        });
        Ok(Some(Abroad { inside: inside?, outside: outside?, cookie, dead: false }))
    }

    fn has_died(&mut self, at: &Abroad) -> bool {
        let inside = &mut self.sockets().inside;
        at.dead || request::netns_is_gone(inside, at.inside)
    }

    /// Whether the instance to which a resource belongs is in a namespace that has died.
    pub(crate) fn has_lost_home(&mut self, resource: &Resource) -> bool {
        let Some(slot) = instance_of(resource) else { return false };
        let Some(at) = self.books().instances.get(&slot).and_then(|instance| instance.abroad) else { return false };
        let died = self.has_died(&at);
        if died {
            self.books().mark_dead(slot);
        }
        died
    }

    /// Moves a netdev that was just made to the namespace of its instance. `near`: the number of the card's end. If that
    /// namespace has died meanwhile, the netdev stays, and the instance is about to be reloaded.
    pub(crate) fn send_abroad(&mut self, near: u32, to: Abroad) {
        let Some(outer) = self.index_at_home(near) else { return };
        let moved = self.sockets().outside.run_one(|batch| request::move_to_id(batch, outer, to.outside, "eth%d"));
        match moved {
            Ok(()) => self.note_arrival(near),
            Err(failure) if matches!(failure.errno, Errno::INVAL | Errno::NODEV) => {}
            Err(failure) => {
                let error = io::Error::from(failure.errno);
                let complaint = format!("a netdev was not moved to the namespace of its devlink instance: {error}");
                self.books().complaints.push(complaint);
            }
        }
    }
}
