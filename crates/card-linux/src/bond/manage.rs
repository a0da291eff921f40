//! Makes and changes bonds over the card's ports.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use eswitch::card::CardError;
use eswitch::lag::BondPlan;
use eswitch::names::NetdevName;
use eswitch::{CardConfig, PfIndex};
use netlink::rtnl::{IFLA_BOND_ACTIVE_SLAVE, IFLA_BOND_MODE};
use netlink::{Errno, find, strerror};

use super::look::port_of;
use super::{ACTIVE_BACKUP, MODES};
use crate::layout::Inside;
use crate::refused::{refused, refused_io};
use crate::request::{self, Netdev};
use crate::socket::{Batch, Failure, Socket};

/// Makes and changes bonds as a network manager does, and looks at them.
pub(super) struct Manager {
    pub config: CardConfig,
    pub netns: File,
    /// Inside the card: the inner ends of the PFs' netdevs show where these are.
    pub card: Socket,
    pub home: Socket,
    /// Whether the kernel has bonds, and if not why, once it was tried.
    has_bonds: Option<Result<(), String>>,
    /// The bond that was made here and has not been deleted here.
    made: Option<Made>,
}

/// A bond that was made here.
struct Made {
    plan: BondPlan,
    bond: u32,
    /// Further netdevs that were made for it.
    dummies: Vec<String>,
    /// The PFs' netdevs when last looked at.
    seen: BTreeMap<PfIndex, u32>,
}

impl Manager {
    /// # Errors
    /// A socket cannot be opened.
    pub(super) fn new(config: CardConfig, card: &File, home: &File) -> io::Result<Self> {
        Ok(Self {
            netns: home.try_clone()?,
            card: Socket::open(card)?,
            home: Socket::open(home)?,
            has_bonds: None,
            made: None,
            config,
        })
    }

    /// Puts ports whose netdevs have appeared into the bond that they belong to.
    pub(super) fn put_back(&mut self, ports: &BTreeMap<PfIndex, u32>) -> io::Result<()> {
        let Some(made) = &mut self.made else { return Ok(()) };
        let new = |pf: &&PfIndex| ports.contains_key(pf) && ports.get(pf) != made.seen.get(pf);
        let appeared: Vec<PfIndex> = made.plan.ports.iter().filter(new).copied().collect();
        made.seen.clone_from(ports);
        let (bond, active) = (made.bond, made.plan.active);
        if appeared.is_empty() || request::netdev(&mut self.home, bond)?.is_none() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for index in appeared.iter().filter_map(|pf| ports.get(pf)) {
            push_slave(&mut batch, *index, bond);
        }
        // A netdev that is gone again, or that somebody has put into another one, is left alone.
        self.home.run(batch);
        if let Some(active) = active.filter(|active| appeared.contains(active)) {
            // If it is not up yet, the port that the kernel has chosen stays active.
            let _ = self.activate(active);
        }
        Ok(())
    }

    /// Finds out whether the kernel has bonds: makes one inside the card, where no user sees it, and deletes it again.
    ///
    /// # Errors
    /// Why it has none.
    pub(super) fn probe(&mut self) -> Result<(), String> {
        let card = &mut self.card;
        let try_it = || {
            let bond = Inside::Probe(3);
            let made = card.run_one(|batch| request::bond(batch, bond.index(), &bond.name(), 0, false));
            made.map_err(|failure| strerror(failure.errno))?;
            // Nothing else can have deleted it.
            let _ = card.run_one(|batch| request::delete(batch, bond.index()));
            Ok(())
        };
        self.has_bonds.get_or_insert_with(try_it).clone()
    }

    /// Has the kernel carry out requests. `name`: the name that they give to a netdev, if they do.
    ///
    /// # Errors
    /// The first refusal.
    fn run(&mut self, call: &str, name: Option<&str>, build: impl FnOnce(&mut Batch)) -> Result<(), CardError> {
        let mut batch = Batch::default();
        build(&mut batch);
        let name = name.map(|name| NetdevName { name: name.to_owned(), altname: None });
        match self.home.run(batch).into_iter().next() {
            None => Ok(()),
            Some(failure) => Err(refused(call, &failure, name.as_ref())),
        }
    }

    /// The bond of a name, if it is this card's: it was made here, has one of the card's ports in it, or is down and
    /// empty, as the module `bonding` makes one when it is loaded.
    ///
    /// # Errors
    /// The name is taken by another netdev, or the kernel cannot be queried.
    fn own_bond(&mut self, name: &str, ports: &BTreeMap<PfIndex, u32>) -> Result<Option<Netdev>, CardError> {
        let call = format!("looking at {name}");
        let refused = |error| refused_io(&call, &error);
        let Some(netdev) = request::netdev_named(&mut self.home, name).map_err(refused)? else { return Ok(None) };
        let slaves = request::netdevs_in(&mut self.home, netdev.index).map_err(refused)?;
        let made = self.made.as_ref().is_some_and(|made| made.bond == netdev.index);
        let has_ours = slaves.iter().any(|slave| port_of(ports, slave.index).is_some());
        if netdev.kind == "bond" && (made || has_ours || (slaves.is_empty() && !netdev.up)) {
            Ok(Some(netdev))
        } else {
            Err(CardError::NameTaken { name: name.to_owned() })
        }
    }

    /// Makes a bond, or changes the one of that name to be as planned.
    pub(super) fn set(&mut self, plan: &BondPlan) -> Result<(), CardError> {
        let name = plan.name.as_str();
        let mode = MODES.iter().position(|mode| *mode == plan.mode).unwrap_or(0) as u8;
        let ports = self.ports().map_err(|error| refused_io("looking at the PFs' netdevs", &error))?;
        let there = self.own_bond(name, &ports)?;
        if self.made.as_ref().is_some_and(|made| there.as_ref().is_none_or(|there| there.index != made.bond)) {
            // There is one bond at a time, as the card has one LAG.
            self.unmake();
        }
        let bond = match there {
            Some(there) => {
                if !there.data.is_empty() && mode_of(&there.data) != mode {
                    self.change_mode(name, there.index, mode)?;
                }
                there.index
            }
            None => {
                self.run(&format!("making {name}"), Some(name), |batch| request::bond(batch, 0, name, mode, true))?;
                let made = request::netdev_named(&mut self.home, name).map_err(|e| refused_io(name, &e))?;
                made.map_or(0, |netdev| netdev.index)
            }
        };
        let dummies = self.made.take().map(|made| made.dummies).unwrap_or_default();
        self.made = Some(Made { plan: plan.clone(), bond, dummies, seen: ports.clone() });
        let mut wanted: Vec<u32> = plan.ports.iter().filter_map(|pf| ports.get(pf).copied()).collect();
        for name in &plan.with {
            wanted.push(self.foreign(name)?);
        }
        let there = request::netdevs_in(&mut self.home, bond).map_err(|e| refused_io(name, &e))?;
        let mut batch = Batch::default();
        for slave in there.iter().filter(|slave| !wanted.contains(&slave.index)) {
            request::set_master(&mut batch, slave.index, 0);
        }
        for index in wanted.iter().filter(|index| !there.iter().any(|slave| slave.index == **index)) {
            push_slave(&mut batch, *index, bond);
        }
        request::set_up(&mut batch, bond, true);
        // A netdev that has been removed meanwhile is put in when it appears again.
        match self.home.run(batch).into_iter().find(|failure| failure.errno != Errno::NODEV) {
            None => Ok(()),
            Some(failure) => Err(refused(&format!("setting the ports of {name}"), &failure, None)),
        }
    }

    /// The interface number of a netdev that is no port of the card: the one of that name, or a new one.
    fn foreign(&mut self, name: &str) -> Result<u32, CardError> {
        let call = format!("making {name}");
        let find = |home: &mut Socket| request::netdev_named(home, name).map_err(|error| refused_io(&call, &error));
        if let Some(netdev) = find(&mut self.home)? {
            return Ok(netdev.index);
        }
        self.run(&call, Some(name), |batch| request::dummy(batch, name))?;
        if let Some(made) = &mut self.made {
            made.dummies.push(name.to_owned());
        }
        Ok(find(&mut self.home)?.map_or(0, |netdev| netdev.index))
    }

    /// Changes the mode of a bond. The kernel changes it only while the bond is down and empty.
    fn change_mode(&mut self, name: &str, bond: u32, mode: u8) -> Result<(), CardError> {
        let slaves = request::netdevs_in(&mut self.home, bond).map_err(|error| refused_io(name, &error))?;
        self.run(&format!("changing the mode of {name}"), None, |batch| {
            slaves.iter().for_each(|slave| request::set_master(batch, slave.index, 0));
            request::set_up(batch, bond, false);
            request::change_bond(batch, bond, IFLA_BOND_MODE, &[mode]);
        })
    }

    /// Makes a port the active one.
    pub(super) fn activate(&mut self, active: PfIndex) -> Result<(), Failure> {
        let made = self.made.as_ref();
        let Some((bond, index)) = made.and_then(|made| Some((made.bond, *made.seen.get(&active)?))) else {
            // A netdev that does not exist is made active when it appears.
            return Ok(());
        };
        self.home.run_one(|batch| request::change_bond(batch, bond, IFLA_BOND_ACTIVE_SLAVE, &index.to_ne_bytes()))
    }

    /// One change to a bond: `away` from its plan, or back to it.
    pub(super) fn flap(&mut self, plan: &BondPlan, away: bool) {
        if plan.mode == MODES[usize::from(ACTIVE_BACKUP)] && plan.ports.len() > 1 {
            let home = plan.active.or(plan.ports.first().copied());
            let other = plan.ports.iter().find(|pf| Some(**pf) != home).copied();
            if let Some(active) = if away { other } else { home } {
                // A port that has no carrier yet is passed over.
                let _ = self.activate(active);
            }
            return;
        }
        let made = self.made.as_ref();
        let last = made.and_then(|made| Some((made.bond, *made.seen.get(plan.ports.last()?)?)));
        if let Some((bond, index)) = last {
            let mut batch = Batch::default();
            if away {
                request::set_master(&mut batch, index, 0)
            } else {
                push_slave(&mut batch, index, bond)
            }
            // The netdev may have been removed.
            self.home.run(batch);
        }
    }

    /// Deletes a bond of this card; returns whether there was one.
    pub(super) fn delete(&mut self, name: &str) -> Result<bool, CardError> {
        let ports = self.ports().map_err(|error| refused_io("looking at the PFs' netdevs", &error))?;
        let found = match self.own_bond(name, &ports) {
            Ok(Some(found)) => found,
            Ok(None) | Err(CardError::NameTaken { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        if self.made.as_ref().is_some_and(|made| made.bond == found.index) {
            self.unmake();
            return Ok(true);
        }
        self.run(&format!("deleting {name}"), None, |batch| request::delete(batch, found.index)).map(|()| true)
    }

    /// Deletes the bond that was made here, and the netdevs that were made for it.
    fn unmake(&mut self) {
        let Some(made) = self.made.take() else { return };
        let mut batch = Batch::default();
        request::delete(&mut batch, made.bond);
        for name in &made.dummies {
            if let Ok(Some(netdev)) = request::netdev_named(&mut self.home, name) {
                request::delete(&mut batch, netdev.index);
            }
        }
        // What a user has deleted already is as good as deleted.
        self.home.run(batch);
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.unmake();
    }
}

fn mode_of(data: &[u8]) -> u8 {
    find(data, IFLA_BOND_MODE).and_then(|mode| mode.value.first().copied()).unwrap_or(0)
}

/// A bond takes no netdev that is up.
fn push_slave(batch: &mut Batch, index: u32, bond: u32) {
    request::set_up(batch, index, false);
    request::set_master(batch, index, bond);
}
