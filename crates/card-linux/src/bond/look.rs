//! Finds out which bond the card's ports are in.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;

use eswitch::PfIndex;
use eswitch::lag::{Bond, TxType};
use netlink::attributes;
use netlink::rtnl::{IFLA_BOND_ACTIVE_SLAVE, IFLA_BOND_MODE};

use super::manage::Manager;
use super::team::Team;
use super::{ACTIVE_BACKUP, BALANCE_XOR, LACP, MODES};
use crate::outer;
use crate::request;

/// What a look has found.
#[derive(Default)]
pub(super) struct Found {
    pub bond: Option<Bond>,
    /// The netdevs that are part of it.
    pub known: HashSet<u32>,
    /// A port is in a team.
    pub has_team: bool,
}

/// How a bond sends, read from the attributes of its kind.
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

/// The PF whose netdev has an interface number.
pub(super) fn port_of(ports: &BTreeMap<PfIndex, u32>, index: u32) -> Option<PfIndex> {
    ports.iter().find(|(_, netdev)| **netdev == index).map(|(pf, _)| *pf)
}

impl Manager {
    /// The interface numbers of those PFs' netdevs that are where netdevs appear.
    pub(super) fn ports(&mut self) -> io::Result<BTreeMap<PfIndex, u32>> {
        outer::uplinks(&mut self.card, &self.netns, self.config.pfs)
    }

    /// Looks at everything that matters.
    ///
    /// # Errors
    /// The kernel cannot be queried.
    pub(super) fn look(&mut self) -> io::Result<Found> {
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
            // If it has been deleted meanwhile, an event is on its way.
            let Some(netdev) = request::netdev(&mut self.home, master)? else { continue };
            let tx = match netdev.kind.as_str() {
                "bond" => read_bond(&netdev.data, &ports),
                "team" => {
                    found.has_team = true;
                    match Team::of(&self.netns, master) {
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
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use netlink::rtnl::RTM_NEWLINK;
    use netlink::{Flags, Header, messages};

    use super::*;
    use crate::request::Netdev;

    /// Reads a message that has this payload.
    fn read(payload: &[u8]) -> Option<Netdev> {
        let message = netlink::message(Header::new(RTM_NEWLINK, Flags::empty(), 0, 0), |to| {
            to.raw(payload);
        });
        messages(&message.unwrap()).next().and_then(|message| Netdev::read(&message))
    }

    fn recorded(payload: &[u8]) -> Netdev {
        read(payload).unwrap()
    }

    #[test]
    fn what_a_kernel_said_of_bonds_is_understood() {
        let ports = BTreeMap::from([(PfIndex(0), 18), (PfIndex(1), 20)]);
        let bond = recorded(include_bytes!("../recorded/bond-active-backup.bin"));
        assert_eq!((bond.index, bond.name.as_str(), bond.kind.as_str(), bond.up), (22, "bond0", "bond", false));
        assert_eq!(bond.master, None);
        assert_eq!(read_bond(&bond.data, &ports), TxType::ActiveBackup(Some(PfIndex(1))));
        assert_eq!(read_bond(&bond.data, &BTreeMap::new()), TxType::ActiveBackup(None), "a foreign one is active");
        let bond = recorded(include_bytes!("../recorded/bond-802.3ad.bin"));
        assert_eq!((bond.index, read_bond(&bond.data, &ports)), (4, TxType::Hash));
        let port = recorded(include_bytes!("../recorded/port-of-a-bond.bin"));
        assert_eq!((port.index, port.name.as_str(), port.master), (2, "enp8s0f0np0", Some(4)));
        assert_eq!((port.kind.as_str(), port.slave_kind.as_str()), ("veth", "bond"));
        assert_eq!(read_bond(&[5, 0, 1, 0, 6, 0, 0, 0], &ports), TxType::Other("balance-alb".to_owned()));
        assert_eq!(read_bond(&[5, 0, 1, 0, 9, 0, 0, 0], &ports), TxType::Other("9".to_owned()));
    }

    #[test]
    fn what_is_cut_short_is_no_panic() {
        let whole = include_bytes!("../recorded/bond-active-backup.bin");
        for len in 0..whole.len() {
            // What is missing of the last number is zeros.
            assert_eq!(read(&whole[..len]).is_some(), len > 12, "{len}");
            read_bond(&whole[len..], &BTreeMap::new());
        }
    }
}
