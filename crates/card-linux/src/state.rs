//! What the card holds: its books, what stands behind them in the kernel, and how the two are compared.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;

use eswitch::card::{CardError, OnRename, Resource};
use eswitch::names::{self, NetdevName};
use eswitch::{CardConfig, MacAddr, PfIndex, RepType, Vport};
use netlink::{Errno, errno_of, strerror, without_number};

use crate::adopt::Inventory;
use crate::layout::{DOOMED, Inside, Slot};
use crate::socket::{Batch, Failure, Socket};
use crate::{netns, request};

/// Where the other end of a PF's wire is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    /// Nowhere: what is sent on it is lost.
    #[default]
    Nowhere,
    /// A netdev of this name, which the card makes where its other netdevs appear. What is sent on
    /// that netdev comes from the network; what leaves the card arrives there.
    Netdev(String),
}

/// What is known of a resource.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub mac: MacAddr,
    pub sfnum: Option<u32>,
}

/// What stands behind a slot, as far as we have made it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ends {
    /// There is a port.
    pub port: bool,
    /// The port is administratively up: its function's netdev can have carrier.
    pub port_up: bool,
    /// There is a representor's end, or the PF netdev's.
    pub inner: bool,
    /// Port and inner end are tied.
    pub tied: bool,
    /// The inner end has carrier: the representor is up.
    pub carrier: bool,
    /// The representor's number where it was born, and its MTU there.
    pub outer: Option<(u32, u32)>,
}

/// Everything behind the card's lock.
pub(crate) struct State {
    pub config: CardConfig,
    pub home: File,
    /// Inside the card.
    pub card: Socket,
    /// Where the netdevs appear.
    pub outside: Socket,
    pub books: HashMap<Resource, Entry>,
    pub ends: HashMap<Slot, Ends>,
    pub bridges: BTreeSet<(PfIndex, u16)>,
    pub wires: HashMap<PfIndex, Wire>,
    pub complaints: Vec<String>,
    /// Netdevs that others have given another name, by their ends inside.
    pub renamed: HashMap<u32, String>,
    /// Whom to tell of that.
    pub on_rename: Option<OnRename>,
    /// The card's own namespace, and the id by which it is known where netdevs appear, once it is.
    pub inside: (File, Option<i32>),
    /// What was found, while a card is being taken over.
    pub inventory: Option<Inventory>,
}

/// Where the outer end of a pair is now: a user may have moved it.
pub(crate) enum Whereabouts {
    Home,
    Named(String, File),
    /// In a namespace without a name: out of our reach.
    Unnamed,
}

impl State {
    /// An empty card.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub(crate) fn new(config: CardConfig, home: File, card: &File) -> io::Result<Self> {
        Ok(Self {
            config,
            card: Socket::open(card)?,
            outside: Socket::open(&home)?,
            home,
            books: HashMap::new(),
            ends: HashMap::new(),
            bridges: BTreeSet::new(),
            wires: HashMap::new(),
            complaints: Vec::new(),
            renamed: HashMap::new(),
            on_rename: None,
            inside: (card.try_clone()?, None),
            inventory: None,
        })
    }

    /// What stands behind a slot.
    pub(crate) fn ends(&self, slot: Slot) -> Ends {
        self.ends.get(&slot).copied().unwrap_or_default()
    }

    /// Whether a slot's representor is loaded.
    pub(crate) fn represented(&self, slot: Slot) -> bool {
        let representor = Resource::Representor(slot.pf, slot.vport, RepType::Eth);
        self.books.contains_key(&representor)
    }

    /// The number of a resource's SF: its own, or its port's.
    fn sfnum(&self, resource: &Resource) -> Option<u32> {
        let own = self.books.get(resource).and_then(|entry| entry.sfnum);
        own.or_else(|| {
            let port = Resource::Port(resource.pf(), resource.vport()?);
            self.books.get(&port)?.sfnum
        })
    }

    /// The netdev's name of a resource that exists or is about to.
    pub(crate) fn netdev_name(&self, resource: &Resource, sfnum: Option<u32>) -> Option<NetdevName> {
        names::netdev(&self.config, resource, sfnum.or_else(|| self.sfnum(resource)))
    }

    /// The netdevs that have another name than they were made with.
    pub(crate) fn renamed(&self) -> Vec<(Resource, String)> {
        let of = |(near, name): (&u32, &String)| Some((Inside::of(*near)?.resource()?, name.clone()));
        self.renamed.iter().filter_map(of).filter(|(resource, _)| self.books.contains_key(resource)).collect()
    }

    /// The name a resource has, as far as it is known.
    pub(crate) fn name(&self, resource: &Resource) -> Option<String> {
        self.books.get(resource)?;
        if let Some(name) = self.near_end(resource).and_then(|near| self.renamed.get(&near)) {
            return Some(name.clone());
        }
        match self.netdev_name(resource, None) {
            Some(netdev) => Some(netdev.name),
            None => names::ib_device(&self.config, resource, self.sfnum(resource)),
        }
    }

    /// The card's end of the netdev that a resource is, if it is one.
    pub(crate) fn near_end(&self, resource: &Resource) -> Option<u32> {
        let slot = |vport| Slot { pf: resource.pf(), vport };
        match *resource {
            Resource::PfNetdev(_) => Some(slot(Vport::Uplink).inner()),
            Resource::Port(_, Vport::Vf(_) | Vport::Sf(_)) => None,
            Resource::Port(_, vport) | Resource::VfNetdev(_, vport) | Resource::SfNetdev(_, vport) => {
                Some(slot(vport).port())
            }
            Resource::Representor(_, vport, RepType::Eth) if vport != Vport::Uplink => Some(slot(vport).inner()),
            _ => None,
        }
    }

    /// Where the other end of a pair is, and its number there.
    ///
    /// # Errors
    /// There is no such pair.
    pub(crate) fn locate(&mut self, near: u32) -> io::Result<(Whereabouts, u32)> {
        let gone = || io::Error::from(Errno::NODEV);
        let (outer, id) = request::link(&mut self.card, near)?.peer.ok_or_else(gone)?;
        let id = id.ok_or_else(gone)?;
        if request::netns_id(&mut self.card, &self.home)? == Some(id) {
            return Ok((Whereabouts::Home, outer));
        }
        Ok(match netns::find(&mut self.card, id)? {
            Some((name, netns)) => (Whereabouts::Named(name, netns), outer),
            None => (Whereabouts::Unnamed, outer),
        })
    }

    /// Asks something of the other end of a pair, wherever it is.
    ///
    /// # Errors
    /// There is no such pair, it is out of reach, or the kernel refuses.
    pub(crate) fn ask_outer(
        &mut self,
        near: u32,
        call: &str,
        build: impl FnOnce(&mut Batch, u32),
    ) -> Result<(), CardError> {
        let (place, outer) = self.locate(near).map_err(|error| refused_io(call, &error))?;
        let answer = match place {
            Whereabouts::Home => self.outside.run_one(|batch| build(batch, outer)),
            Whereabouts::Named(_, netns) => {
                Socket::open(&netns).map_err(|error| refused_io(call, &error))?.run_one(|batch| build(batch, outer))
            }
            Whereabouts::Unnamed => {
                return Err(CardError::Kernel {
                    call: call.to_owned(),
                    errno: Errno::NOENT.raw_os_error(),
                    text: "the netdev is in a network namespace without a name".to_owned(),
                    hint: "; move it back, or name the namespace with `ip netns attach`".to_owned(),
                });
            }
        };
        answer.map_err(|failure| refused(call, &failure, None))
    }

    pub(crate) fn set_mac(&mut self, resource: &Resource, mac: MacAddr) -> Result<(), CardError> {
        if !self.books.contains_key(resource) {
            let complaint = format!("{resource} given a MAC address and was not there");
            self.complaints.push(complaint);
            return Ok(());
        }
        if let Some(near) = self.near_end(resource) {
            let call = format!("giving {resource} the address {mac}");
            self.ask_outer(near, &call, |batch, outer| request::set_mac(batch, outer, mac))?;
        }
        if let Some(entry) = self.books.get_mut(resource) {
            entry.mac = mac;
        }
        Ok(())
    }

    pub(crate) fn set_netns(&mut self, pf: PfIndex, name: Option<&str>) -> Result<(), CardError> {
        let near = Slot { pf, vport: Vport::Uplink }.inner();
        let to = name.unwrap_or("its first namespace");
        let call = format!("moving the netdev of pf{} to {to}", pf.0);
        let target = match name {
            Some(name) => netns::open(name),
            None => self.home.try_clone(),
        };
        let target = target.map_err(|error| refused_io(&call, &error))?;
        self.ask_outer(near, &call, |batch, outer| request::move_to(batch, outer, &target))
    }

    pub(crate) fn netns(&mut self, pf: PfIndex) -> Option<String> {
        let near = Slot { pf, vport: Vport::Uplink }.inner();
        match self.locate(near).ok()?.0 {
            Whereabouts::Home => None,
            Whereabouts::Named(name, _) => Some(name),
            Whereabouts::Unnamed => Some("a namespace without a name".to_owned()),
        }
    }

    /// What exists: of the books, what the kernel confirms, and what the kernel has beside them.
    pub(crate) fn resources(&mut self) -> Vec<Resource> {
        let links = match request::links(&mut self.card) {
            Ok(links) => links,
            Err(error) => {
                self.complaints.push(format!("the card cannot be looked at: {error}"));
                return self.books.keys().copied().collect();
            }
        };
        let inside: HashSet<u32> = links.iter().map(|link| link.index).collect();
        let is_there = |resource: &Resource| match (self.near_end(resource), resource) {
            (Some(near), _) => inside.contains(&near),
            (None, Resource::Function(pf)) => inside.contains(&Inside::Bridge(*pf, 0).index()),
            (None, _) => true,
        };
        let mut found: HashSet<Resource> = self.books.keys().filter(|r| is_there(r)).copied().collect();
        for index in inside {
            found.extend(match Inside::of(index) {
                Some(Inside::Port(Slot { pf, vport: Vport::Uplink }) | Inside::Bridge(pf, _)) => {
                    Some(Resource::Function(pf))
                }
                inside => inside.and_then(Inside::resource),
            });
        }
        found.into_iter().collect()
    }

    /// Deletes netdevs of the card, and with them their other ends; `all`: the group that this is all of.
    pub(crate) fn delete(&mut self, indexes: impl IntoIterator<Item = u32>, all: Option<u32>) {
        let mut batch = Batch::default();
        if all.is_none() {
            indexes.into_iter().for_each(|index| request::doom(&mut batch, index));
        }
        request::delete_group(&mut batch, all.unwrap_or(DOOMED));
        // What the outside has taken away already is as good as deleted.
        self.card.run(batch);
    }
}

/// What the kernel's refusal means.
pub(crate) fn refused(call: &str, failure: &Failure, name: Option<&NetdevName>) -> CardError {
    let hint = match failure.errno {
        Errno::EXIST if name.is_some() => {
            let name = name.map(|n| n.name.clone()).unwrap_or_default();
            return CardError::NameTaken { name };
        }
        Errno::XFULL => {
            let text = format!("{call}: a Linux bridge takes 1023 ports and this one has them; ask for fewer VFs");
            return CardError::Full(text);
        }
        Errno::PERM | Errno::ACCESS => "; this takes root, or a place made without root",
        Errno::OPNOTSUPP => "; the kernel needs veth, bridge, sch_ingress, cls_u32 and act_mirred, perhaps as modules",
        Errno::NOBUFS | Errno::NOMEM => "; the kernel is out of memory for this: try with fewer",
        _ => "",
    };
    CardError::Kernel {
        call: call.to_owned(),
        errno: failure.errno.raw_os_error(),
        text: if failure.message.is_empty() { strerror(failure.errno) } else { failure.message.clone() },
        hint: hint.to_owned(),
    }
}

/// The same for what is not an answer to a request.
pub(crate) fn refused_io(call: &str, error: &io::Error) -> CardError {
    CardError::Kernel {
        call: call.to_owned(),
        errno: errno_of(error).raw_os_error(),
        text: without_number(error),
        hint: if error.kind() == io::ErrorKind::NotFound {
            "; `ip netns list` shows the namespaces that have names".to_owned()
        } else {
            String::new()
        },
    }
}
