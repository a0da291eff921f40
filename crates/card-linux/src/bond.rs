//! Bonds over the PFs' netdevs: the kernel's own, watched, and for the step `bond` made.
//!
//! What makes a LAG is a bond or a team, and that is the kernel's and its administrator's. Whatever happens to
//! a netdev that could matter has everything that matters looked at: which netdev each PF has, what it is
//! in, how that sends, and what else is in it. So what an event says, and in which order events come, does not
//! count, and events that were lost are made up for by looking once more.
//!
//! Only the namespace is looked at where the card's netdevs appear: a PF whose netdev was moved elsewhere
//! has no port in any bond.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use eswitch::card::{CardError, Resource};
use eswitch::lag::{Bond, BondPlan, TxType};
use eswitch::names::{self, NetdevName};
use eswitch::{CardConfig, PfIndex, Vport};
use lockdep::{Deadline, Locked, MayWait, Mutex, lock_classes};
use netlink::{Errno, attributes, errno_of, find, strerror};

use crate::layout::{Inside, Slot};
use crate::refused::{refused, refused_io};
use crate::request::{self, IFLA_BOND_ACTIVE_SLAVE, IFLA_BOND_MODE, Netdev};
use crate::socket::{BackOff, Batch, Failure, Socket};
use crate::sys;
use crate::team::{self, Team};
use crate::watch::RTMGRP_LINK;

lock_classes! {
    /// The sockets that bonds are looked at and made with, and what was made.
    leaf BondBooks = "bond books";
}

/// The kernel's names of modes, in the order of their numbers.
const MODES: [&str; 7] =
    ["balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"];
const ACTIVE_BACKUP: u8 = 1;
const BALANCE_XOR: u8 = 2;
const LACP: u8 = 4;

/// How long after a look that failed the next is.
const AGAIN_MS: u16 = 100;

/// The bonds of the namespace in which a card's netdevs appear.
///
/// What was made here is deleted when this is dropped.
pub struct Bonds {
    books: Mutex<BondBooks, Books>,
    wake: PipeWriter,
}

/// Hears of every change to a link, and says what bond the card's ports are in.
pub struct BondWatch {
    bonds: Arc<Bonds>,
    woken: PipeReader,
    links: Socket,
    /// Hears of changes to teams, from when there is one.
    teams: Option<Socket>,
    /// Netdevs that had a part in what was last seen.
    known: HashSet<u32>,
    names: Vec<String>,
    last: Option<Bond>,
    overruns: u64,
    again: bool,
    back_off: BackOff,
}

struct Books {
    config: CardConfig,
    netns: File,
    /// Inside the card, where it can be seen where PFs' netdevs are.
    card: Socket,
    home: Socket,
    can: Option<Result<(), String>>,
    /// What was made here, and has not been deleted here.
    made: Option<Made>,
}

struct Made {
    plan: BondPlan,
    bond: u32,
    /// Netdevs that were made to be in it.
    dummies: Vec<String>,
    /// The PFs' netdevs when last looked at.
    seen: BTreeMap<PfIndex, u32>,
}

/// What a look has found.
#[derive(Default)]
struct Found {
    bond: Option<Bond>,
    known: HashSet<u32>,
    has_team: bool,
}

impl Bonds {
    /// # Errors
    /// A socket or a pipe cannot be opened.
    pub(crate) fn new(config: CardConfig, card: &File, home: &File) -> io::Result<(Arc<Self>, BondWatch)> {
        let links = Socket::listening(home, RTMGRP_LINK)?;
        let (woken, wake) = io::pipe()?;
        let names = (0..config.pfs).filter_map(|pf| names::netdev(&config, &Resource::PfNetdev(PfIndex(pf)), None));
        let names = names.map(|netdev| netdev.name).collect();
        let books = Books {
            netns: home.try_clone()?,
            card: Socket::open(card)?,
            home: Socket::open(home)?,
            can: None,
            made: None,
            config,
        };
        let bonds = Arc::new(Self { books: Mutex::new(books), wake });
        let watch = BondWatch {
            bonds: Arc::clone(&bonds),
            woken,
            links,
            teams: None,
            known: HashSet::new(),
            names,
            last: None,
            overruns: 0,
            again: false,
            back_off: BackOff::default(),
        };
        Ok((bonds, watch))
    }

    /// Why this kernel can have no bond, if it cannot.
    pub fn missing<L>(&self, cx: &mut Locked<'_, L>) -> Option<String> {
        self.books.lock_leaf(cx).probe().err()
    }

    /// Ends the wait of who watches.
    pub fn wake(&self) {
        // It fails if nobody watches any more, who then needs no waking.
        let _ = (&self.wake).write(&[0]);
    }

    /// Makes a bond, or makes the one of that name so. A PF whose netdev goes and comes back is put
    /// back into it, until it is deleted.
    ///
    /// # Errors
    /// The name is taken by what is no bond of this card; or the kernel refuses.
    pub fn set<L: MayWait>(&self, cx: &mut Locked<'_, L>, plan: &BondPlan) -> Result<(), CardError> {
        self.books.lock_leaf(cx).set(plan)?;
        match plan.active {
            Some(active) if plan.mode == MODES[usize::from(ACTIVE_BACKUP)] => self.activate(cx, active),
            _ => Ok(()),
        }
    }

    /// Changes a bond that was [set](Self::set): away from how it should stand, or back. What changes is its
    /// active port, or if it has none, whether its last port is in it. What cannot be changed is passed over.
    pub fn flap<L>(&self, cx: &mut Locked<'_, L>, plan: &BondPlan, away: bool) {
        self.books.lock_leaf(cx).flap(plan, away);
    }

    /// Deletes a bond of this card; whether there was one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete<L>(&self, cx: &mut Locked<'_, L>, name: &str) -> Result<bool, CardError> {
        self.books.lock_leaf(cx).delete(name)
    }

    /// Makes a port the active one. Right after a netdev came up the kernel does not know yet that it has
    /// carrier, and refuses.
    fn activate<L: MayWait>(&self, cx: &mut Locked<'_, L>, active: PfIndex) -> Result<(), CardError> {
        const PATIENCE: Duration = Duration::from_secs(2);
        const BETWEEN: Duration = Duration::from_millis(5);
        let limit = Deadline::after(PATIENCE);
        loop {
            // The books are let go of before the wait: others, and who follows the bonds, need them meanwhile.
            let tried = self.books.lock_leaf(cx).activate(active);
            match tried {
                Ok(()) => return Ok(()),
                Err(failure) if failure.errno != Errno::INVAL || limit.has_passed() => {
                    let call = format!("making pf{} the active port", active.0);
                    return Err(refused(&call, &failure, None));
                }
                Err(_) => Deadline::after(BETWEEN).sleep(cx),
            }
        }
    }
}

impl BondWatch {
    /// Waits until something has happened that may matter, or somebody [wakes](Bonds::wake) us. Where nothing can be
    /// heard, for a while: something may have happened then.
    #[allow(clippy::disallowed_methods, reason = "the books are locked while they are looked at, and not here")]
    pub fn wait(&mut self) {
        loop {
            match self.hear() {
                Ok(matters) => {
                    self.back_off.reset();
                    if matters {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return std::thread::sleep(self.back_off.after_failure()),
            }
        }
    }

    /// Waits until something has happened; whether it may matter.
    fn hear(&mut self) -> io::Result<bool> {
        let teams = self.teams.as_ref().map_or(self.woken.as_fd(), Socket::as_fd);
        let fds = [self.woken.as_fd(), self.links.as_fd(), teams];
        let [woken, links, teams] = sys::wait_readable(fds, self.again.then_some(AGAIN_MS))?;
        let mut matters = !(woken || links || teams);
        if woken {
            // Nobody else reads it, so there is something to read.
            let _ = self.woken.read(&mut [0; 64]);
            matters = true;
        }
        if teams && let Some(teams) = &mut self.teams {
            teams.drain(|_| {})?;
            matters = true;
        }
        if links {
            let (known, names) = (&self.known, &self.names);
            let lost = self.links.drain(|message| {
                matters |= Netdev::read(message).is_some_and(|netdev| concerns(&netdev, known, names));
            })?;
            self.overruns += u64::from(lost);
            matters |= lost;
        }
        Ok(matters)
    }

    /// The bond the card's ports are in now. With ports in several, the one with most of them. If the
    /// kernel cannot be asked it is what it was, and asked again soon.
    pub fn look<L>(&mut self, cx: &mut Locked<'_, L>) -> Option<Bond> {
        let found = {
            let mut books = self.bonds.books.lock_leaf(cx);
            books.look().and_then(|found| {
                if found.has_team && self.teams.is_none() {
                    // Before it could be heard of, what it does was looked at.
                    self.teams = team::listen(&books.netns)?;
                    return books.look();
                }
                Ok(found)
            })
        };
        self.again = found.is_err();
        if let Ok(found) = found {
            self.known = found.known;
            self.last = found.bond;
        }
        self.last.clone()
    }

    /// How often the kernel had more to tell than there was room for.
    pub fn overruns(&self) -> u64 {
        self.overruns
    }
}

/// Whether what is told of a netdev may matter to a bond over the card's ports.
fn concerns(netdev: &Netdev, known: &HashSet<u32>, names: &[String]) -> bool {
    let bond = |kind: &str| kind == "bond" || kind == "team";
    bond(&netdev.kind) || bond(&netdev.slave_kind) || known.contains(&netdev.index) || names.contains(&netdev.name)
}

/// How a bond sends, from the attributes of its kind.
fn read_bond(data: &[u8], ports: &BTreeMap<PfIndex, u32>) -> TxType {
    let (mut mode, mut active) = (0, None);
    for attribute in attributes(data).flatten() {
        match attribute.kind {
            IFLA_BOND_MODE => mode = attribute.value.first().copied().unwrap_or(0),
            IFLA_BOND_ACTIVE_SLAVE => active = Some(request::number(&attribute)),
            _ => {}
        }
    }
    match mode {
        ACTIVE_BACKUP => TxType::ActiveBackup(active.and_then(|active| port_of(ports, active))),
        BALANCE_XOR | LACP => TxType::Hash,
        other => TxType::Other(MODES.get(usize::from(other)).map_or_else(|| other.to_string(), |m| (*m).to_owned())),
    }
}

/// Whose netdev a number is.
fn port_of(ports: &BTreeMap<PfIndex, u32>, index: u32) -> Option<PfIndex> {
    ports.iter().find(|(_, netdev)| **netdev == index).map(|(pf, _)| *pf)
}

impl Books {
    /// The number of each PF's netdev, of those that are here.
    fn ports(&mut self) -> io::Result<BTreeMap<PfIndex, u32>> {
        let here = request::netns_id(&mut self.card, &self.netns)?;
        let mut ports = BTreeMap::new();
        for pf in (0..self.config.pfs).map(PfIndex) {
            match request::link(&mut self.card, Slot { pf, vport: Vport::Uplink }.inner()) {
                Ok(link) => {
                    let outer = link.peer.filter(|(_, netns)| netns.is_some() && *netns == here);
                    ports.extend(outer.map(|(outer, _)| (pf, outer)));
                }
                Err(error) if errno_of(&error) == Errno::NODEV => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ports)
    }

    fn look(&mut self) -> io::Result<Found> {
        let ports = self.ports()?;
        self.put_back(&ports)?;
        let mut found = Found { known: ports.values().copied().collect(), ..Found::default() };
        let mut masters: BTreeMap<u32, BTreeSet<PfIndex>> = BTreeMap::new();
        for (pf, index) in &ports {
            let netdev = request::netdev(&mut self.home, *index)?;
            if let Some(master) = netdev.and_then(|netdev| netdev.master) {
                masters.entry(master).or_default().insert(*pf);
            }
        }
        let mut masters: Vec<_> = masters.into_iter().collect();
        masters.sort_by_key(|(_, members)| (usize::MAX - members.len(), members.first().copied()));
        for (master, members) in masters {
            // It may have gone meanwhile; then we hear of it.
            let Some(netdev) = request::netdev(&mut self.home, master)? else { continue };
            let tx = match netdev.kind.as_str() {
                "bond" => read_bond(&netdev.data, &ports),
                "team" => {
                    found.has_team = true;
                    match Team::ask(&self.netns, master) {
                        Ok(team) => team.tx(|index| port_of(&ports, index)),
                        Err(error) => TxType::Other(format!("of a team that cannot be asked ({error})")),
                    }
                }
                _ => continue,
            };
            found.known.insert(master);
            let mut foreign = Vec::new();
            for slave in request::netdevs_in(&mut self.home, master)? {
                found.known.insert(slave.index);
                if port_of(&ports, slave.index).is_none() {
                    foreign.push(slave.name);
                }
            }
            foreign.sort();
            let bond = Bond { name: netdev.name, tx, ports: members, foreign };
            found.bond.get_or_insert(bond);
        }
        Ok(found)
    }

    /// Does what a network manager does: puts ports whose netdevs have come into the bond they belong to.
    fn put_back(&mut self, ports: &BTreeMap<PfIndex, u32>) -> io::Result<()> {
        let Some(made) = &mut self.made else { return Ok(()) };
        let new = |pf: &&PfIndex| ports.contains_key(pf) && ports.get(pf) != made.seen.get(pf);
        let came: Vec<PfIndex> = made.plan.ports.iter().filter(new).copied().collect();
        made.seen.clone_from(ports);
        let (bond, active) = (made.bond, made.plan.active);
        if came.is_empty() || request::netdev(&mut self.home, bond)?.is_none() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for index in came.iter().filter_map(|pf| ports.get(pf)) {
            push_slave(&mut batch, *index, bond);
        }
        // One that is gone again, or that somebody has put elsewhere, is not ours to put anywhere.
        self.home.run(batch);
        if let Some(active) = active.filter(|active| came.contains(active)) {
            // Where it is not up yet the kernel's choice stands.
            let _ = self.activate(active);
        }
        Ok(())
    }

    /// Makes a bond inside the card, where nobody sees it, and deletes it again.
    fn probe(&mut self) -> Result<(), String> {
        let card = &mut self.card;
        let try_it = || {
            let bond = Inside::Probe(3);
            let made = card.run_one(|batch| request::bond(batch, bond.index(), &bond.name(), 0, false));
            made.map_err(|failure| strerror(failure.errno))?;
            // Nothing else can have deleted it.
            let _ = card.run_one(|batch| request::delete(batch, bond.index()));
            Ok(())
        };
        self.can.get_or_insert_with(try_it).clone()
    }

    /// Runs requests one after the other; the first refusal, if there is one.
    fn run(&mut self, call: &str, name: Option<&str>, build: impl FnOnce(&mut Batch)) -> Result<(), CardError> {
        let mut batch = Batch::default();
        build(&mut batch);
        let name = name.map(|name| NetdevName { name: name.to_owned(), altname: None });
        match self.home.run(batch).into_iter().next() {
            None => Ok(()),
            Some(failure) => Err(refused(call, &failure, name.as_ref())),
        }
    }

    /// The bond of a name, if it is this card's: made here, with one of the card's ports in it, or down and
    /// empty, as the module `bonding` makes one when it is loaded.
    fn ours(&mut self, name: &str, ports: &BTreeMap<PfIndex, u32>) -> Result<Option<Netdev>, CardError> {
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

    fn set(&mut self, plan: &BondPlan) -> Result<(), CardError> {
        let name = plan.name.as_str();
        let mode = MODES.iter().position(|mode| *mode == plan.mode).unwrap_or(0) as u8;
        let ports = self.ports().map_err(|error| refused_io("looking at the PFs' netdevs", &error))?;
        let there = self.ours(name, &ports)?;
        if self.made.as_ref().is_some_and(|made| there.as_ref().is_none_or(|there| there.index != made.bond)) {
            // There is one bond at a time, as there is for the card.
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
        // A netdev that has gone meanwhile is put in when it comes back.
        match self.home.run(batch).into_iter().find(|failure| failure.errno != Errno::NODEV) {
            None => Ok(()),
            Some(failure) => Err(refused(&format!("setting the ports of {name}"), &failure, None)),
        }
    }

    /// A netdev that is no port of the card: the one of that name, or a new one.
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

    /// A bond takes another mode while it is down and empty.
    fn change_mode(&mut self, name: &str, bond: u32, mode: u8) -> Result<(), CardError> {
        let slaves = request::netdevs_in(&mut self.home, bond).map_err(|error| refused_io(name, &error))?;
        self.run(&format!("changing the mode of {name}"), None, |batch| {
            slaves.iter().for_each(|slave| request::set_master(batch, slave.index, 0));
            request::set_up(batch, bond, false);
            request::change_bond(batch, bond, IFLA_BOND_MODE, &[mode]);
        })
    }

    fn activate(&mut self, active: PfIndex) -> Result<(), Failure> {
        let made = self.made.as_ref();
        let Some((bond, index)) = made.and_then(|made| Some((made.bond, *made.seen.get(&active)?))) else {
            // A netdev that is not there is made active when it comes.
            return Ok(());
        };
        self.home.run_one(|batch| request::change_bond(batch, bond, IFLA_BOND_ACTIVE_SLAVE, &index.to_ne_bytes()))
    }

    /// One change to a bond, away from how it should stand or back.
    fn flap(&mut self, plan: &BondPlan, away: bool) {
        if plan.mode == MODES[usize::from(ACTIVE_BACKUP)] && plan.ports.len() > 1 {
            let home = plan.active.or(plan.ports.first().copied());
            let other = plan.ports.iter().find(|pf| Some(**pf) != home).copied();
            if let Some(active) = if away { other } else { home } {
                // One that has no carrier yet is passed over.
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
            // It may have gone by itself.
            self.home.run(batch);
        }
    }

    fn delete(&mut self, name: &str) -> Result<bool, CardError> {
        let ports = self.ports().map_err(|error| refused_io("looking at the PFs' netdevs", &error))?;
        let found = match self.ours(name, &ports) {
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

    /// Deletes what was made here.
    fn unmake(&mut self) {
        let Some(made) = self.made.take() else { return };
        let mut batch = Batch::default();
        request::delete(&mut batch, made.bond);
        for name in &made.dummies {
            if let Ok(Some(netdev)) = request::netdev_named(&mut self.home, name) {
                request::delete(&mut batch, netdev.index);
            }
        }
        // What somebody else has deleted is as good as deleted.
        self.home.run(batch);
    }
}

impl Drop for Books {
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

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use netlink::{Flags, Header, messages};

    use super::*;
    use crate::request::RTM_NEWLINK;

    /// What is read of a message of which this is the payload.
    fn read(payload: &[u8]) -> Option<Netdev> {
        let told = netlink::message(Header::new(RTM_NEWLINK, Flags::empty(), 0, 0), |to| {
            to.raw(payload);
        });
        messages(&told.unwrap()).next().and_then(|message| Netdev::read(&message))
    }

    fn recorded(payload: &[u8]) -> Netdev {
        read(payload).unwrap()
    }

    #[test]
    fn what_a_kernel_said_of_bonds_is_understood() {
        let ports = BTreeMap::from([(PfIndex(0), 18), (PfIndex(1), 20)]);
        let bond = recorded(include_bytes!("recorded/bond-active-backup.bin"));
        assert_eq!((bond.index, bond.name.as_str(), bond.kind.as_str(), bond.up), (22, "bond0", "bond", false));
        assert_eq!(bond.master, None);
        assert_eq!(read_bond(&bond.data, &ports), TxType::ActiveBackup(Some(PfIndex(1))));
        assert_eq!(read_bond(&bond.data, &BTreeMap::new()), TxType::ActiveBackup(None), "a foreign one is active");
        let bond = recorded(include_bytes!("recorded/bond-802.3ad.bin"));
        assert_eq!((bond.index, read_bond(&bond.data, &ports)), (4, TxType::Hash));
        let port = recorded(include_bytes!("recorded/port-of-a-bond.bin"));
        assert_eq!((port.index, port.name.as_str(), port.master), (2, "enp8s0f0np0", Some(4)));
        assert_eq!((port.kind.as_str(), port.slave_kind.as_str()), ("veth", "bond"));
        assert_eq!(read_bond(&[5, 0, 1, 0, 6, 0, 0, 0], &ports), TxType::Other("balance-alb".to_owned()));
        assert_eq!(read_bond(&[5, 0, 1, 0, 9, 0, 0, 0], &ports), TxType::Other("9".to_owned()));
    }

    #[test]
    fn what_is_cut_short_is_no_panic() {
        let whole = include_bytes!("recorded/bond-active-backup.bin");
        for len in 0..whole.len() {
            // What is missing of the last number is zeros.
            assert_eq!(read(&whole[..len]).is_some(), len > 12, "{len}");
            read_bond(&whole[len..], &BTreeMap::new());
        }
    }

    #[test]
    fn only_what_may_matter_concerns_us() {
        let names = ["enp8s0f0np0".to_owned()];
        let (known, none) = (HashSet::from([7]), HashSet::new());
        let netdev = |index, name: &str, kind: &str, slave_kind: &str| Netdev {
            index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            slave_kind: slave_kind.to_owned(),
            ..Netdev::default()
        };
        assert!(concerns(&netdev(3, "b", "bond", ""), &none, &names));
        assert!(concerns(&netdev(3, "t", "team", ""), &none, &names));
        assert!(concerns(&netdev(3, "x", "veth", "bond"), &none, &names));
        assert!(concerns(&netdev(3, "enp8s0f0np0", "veth", ""), &none, &names));
        assert!(concerns(&netdev(7, "x", "veth", ""), &known, &names));
        assert!(!concerns(&netdev(7, "enp8s0f0npf0vf0", "veth", "bridge"), &none, &names));
    }
}
