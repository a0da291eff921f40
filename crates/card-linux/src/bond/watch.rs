//! Waits for changes to bonds over the card's ports.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::sync::Arc;

use eswitch::card::Resource;
use eswitch::lag::Bond;
use eswitch::{CardConfig, PfIndex, names};
use lockdep::Locked;
use netlink::rtnl::RTMGRP_LINK;

use super::{Bonds, team};
use crate::request::Netdev;
use crate::socket::{BackOff, Socket};
use crate::sys;

/// How long after a look that failed the next is, in milliseconds.
const AGAIN_MS: u16 = 100;

/// Receives every change to a link, and reports which bond the card's ports are in.
pub struct BondWatch {
    bonds: Arc<Bonds>,
    woken: PipeReader,
    links: Socket,
    /// Receives changes to teams, once there is one.
    teams: Option<Socket>,
    /// The netdevs that were part of what the last look has found.
    known: HashSet<u32>,
    /// The names that the PFs' netdevs are made with.
    names: Vec<String>,
    last: Option<Bond>,
    overruns: u64,
    /// The last look failed, so that another is due soon.
    again: bool,
    back_off: BackOff,
}

impl BondWatch {
    /// # Errors
    /// A socket cannot be opened.
    pub(super) fn new(bonds: Arc<Bonds>, config: &CardConfig, home: &File, woken: PipeReader) -> io::Result<Self> {
        let names = (0..config.pfs).filter_map(|pf| names::netdev(config, &Resource::PfNetdev(PfIndex(pf)), None));
        Ok(Self {
            bonds,
            woken,
            links: Socket::listening(home, RTMGRP_LINK)?,
            teams: None,
            known: HashSet::new(),
            names: names.map(|netdev| netdev.name).collect(),
            last: None,
            overruns: 0,
            again: false,
            back_off: BackOff::default(),
        })
    }

    /// Waits until something has happened that may matter, or [`Bonds::wake`] was called. If no events can be
    /// received, waits for a while: something may have happened then.
    #[allow(clippy::disallowed_methods, reason = "no lock is held here: `look` takes one, and has released it")]
    pub fn wait(&mut self) {
        loop {
            match self.receive() {
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

    /// Waits until something has happened; returns whether it may matter.
    fn receive(&mut self) -> io::Result<bool> {
        let teams = self.teams.as_ref().map_or(self.woken.as_fd(), Socket::as_fd);
        let fds = [self.woken.as_fd(), self.links.as_fd(), teams];
        let [woken, links, teams] = sys::wait_readable(fds, self.again.then_some(AGAIN_MS))?;
        let mut matters = !(woken || links || teams);
        if woken {
            // Only this thread reads it, so there is something to read.
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

    /// The bond the card's ports are in now; if they are in several, the one with most of them. If the
    /// kernel cannot be queried, the bond of the last look, and [`wait`](Self::wait) ends soon so that it is queried
    /// again.
    pub fn look<L>(&mut self, cx: &mut Locked<'_, L>) -> Option<Bond> {
        let found = {
            let mut manager = self.bonds.manager.lock_leaf(cx);
            manager.look().and_then(|found| {
                if found.has_team && self.teams.is_none() {
                    // What the team did between the look and this moment was not received: look again.
                    self.teams = team::listen(&manager.netns)?;
                    return manager.look();
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

    /// How many times events were lost because the socket had no room for them.
    pub fn overruns(&self) -> u64 {
        self.overruns
    }
}

/// Whether an event about a netdev may matter to a bond over the card's ports.
fn concerns(netdev: &Netdev, known: &HashSet<u32>, names: &[String]) -> bool {
    let bond = |kind: &str| kind == "bond" || kind == "team";
    bond(&netdev.kind) || bond(&netdev.slave_kind) || known.contains(&netdev.index) || names.contains(&netdev.name)
}

#[cfg(test)]
mod tests {
    use super::*;

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
