//! Teams: bonds whose mode the kernel does not report by rtnetlink but by generic netlink's family `team`.

use std::fs::File;
use std::io;

use eswitch::PfIndex;
use eswitch::lag::TxType;

use netlink::ctrl::{
    CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME, CTRL_ATTR_MCAST_GROUPS, CTRL_ATTR_MCAST_GRP_ID,
    CTRL_ATTR_MCAST_GRP_NAME, CTRL_CMD_GETFAMILY, GENL_ID_CTRL,
};
use netlink::team::{
    TEAM_ATTR_LIST_OPTION, TEAM_ATTR_OPTION_DATA, TEAM_ATTR_OPTION_NAME, TEAM_ATTR_TEAM_IFINDEX, TEAM_CMD_OPTIONS_GET,
};
use netlink::{GENL_HEADER, attributes, find};

use crate::request::number;
use crate::socket::Socket;

/// What matters of a team.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Team {
    mode: String,
    active: Option<u32>,
}

/// The numbers that this kernel has given to the family.
#[derive(Debug, Default)]
struct Family {
    id: u16,
    /// The multicast group of changes.
    changes: Option<u32>,
}

impl Family {
    fn find(socket: &mut Socket) -> io::Result<Self> {
        let mut family = Self::default();
        socket.get(
            GENL_ID_CTRL,
            |to| {
                to.genl(CTRL_CMD_GETFAMILY, 1).text(CTRL_ATTR_FAMILY_NAME, "team");
            },
            |message| family.read(message.after(GENL_HEADER).unwrap_or_default()),
        )?;
        Ok(family)
    }

    fn read(&mut self, payload: &[u8]) {
        for attribute in attributes(payload).flatten() {
            match attribute.kind {
                CTRL_ATTR_FAMILY_ID => self.id = attribute.leading_u16().unwrap_or(0),
                CTRL_ATTR_MCAST_GROUPS => {
                    for group in attribute.nested().flatten() {
                        let name = find(group.value, CTRL_ATTR_MCAST_GRP_NAME);
                        if name.and_then(|name| name.string()) == Some("change_event") {
                            self.changes = find(group.value, CTRL_ATTR_MCAST_GRP_ID).map(|id| number(&id));
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// A socket that receives every change to a team's options or ports.
///
/// # Errors
/// The kernel has no teams, or there is no memory.
pub(super) fn listen(netns: &File) -> io::Result<Option<Socket>> {
    let mut socket = Socket::generic(netns)?;
    let changes = Family::find(&mut socket)?.changes;
    changes.map(|group| socket.join(group).map(|()| socket)).transpose()
}

impl Team {
    /// Reads the team of an interface number.
    ///
    /// # Errors
    /// There is no such team, or we may not ask: it takes root outside of user namespaces.
    pub(super) fn of(netns: &File, index: u32) -> io::Result<Self> {
        let mut socket = Socket::generic(netns)?;
        let family = Family::find(&mut socket)?.id;
        let mut team = Self::default();
        socket.get(
            family,
            |to| {
                to.genl(TEAM_CMD_OPTIONS_GET, 1).u32(TEAM_ATTR_TEAM_IFINDEX, index);
            },
            |message| team.read(message.after(GENL_HEADER).unwrap_or_default()),
        )?;
        Ok(team)
    }

    fn read(&mut self, payload: &[u8]) {
        let lists = attributes(payload).flatten().filter(|attribute| attribute.kind == TEAM_ATTR_LIST_OPTION);
        for option in lists.flat_map(|list| list.nested().flatten()) {
            let name = find(option.value, TEAM_ATTR_OPTION_NAME).and_then(|name| name.string());
            match (name, find(option.value, TEAM_ATTR_OPTION_DATA)) {
                (Some("mode"), Some(data)) => self.mode = data.string().unwrap_or_default().to_owned(),
                (Some("activeport"), Some(data)) => self.active = Some(number(&data)),
                _ => {}
            }
        }
    }

    /// How it sends; `port` finds the PF whose netdev has an interface number.
    pub(super) fn tx(&self, port: impl FnOnce(u32) -> Option<PfIndex>) -> TxType {
        match self.mode.as_str() {
            "activebackup" => TxType::ActiveBackup(self.active.and_then(port)),
            "loadbalance" => TxType::Hash,
            other => TxType::Other(format!("{other} of a team")),
        }
    }
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_said_of_a_team_is_understood() {
        let mut family = Family::default();
        family.read(&include_bytes!("../recorded/team-family.bin")[GENL_HEADER..]);
        assert_eq!(family.id, 32);
        assert!(family.changes.is_some());
        let mut team = Team::default();
        team.read(&include_bytes!("../recorded/team-activebackup.bin")[GENL_HEADER..]);
        assert_eq!(team, Team { mode: "activebackup".to_owned(), active: Some(4) });
        assert_eq!(team.tx(|index| (index == 4).then_some(PfIndex(1))), TxType::ActiveBackup(Some(PfIndex(1))));
        let tx_of = |mode: &str| Team { mode: mode.to_owned(), active: None }.tx(|_| None);
        assert_eq!(tx_of("loadbalance"), TxType::Hash);
        assert_eq!(tx_of("random"), TxType::Other("random of a team".to_owned()));
    }

    #[test]
    fn what_is_cut_short_is_no_panic() {
        let whole = include_bytes!("../recorded/team-activebackup.bin");
        for len in 0..whole.len() {
            Team::default().read(&whole[..len]);
            Family::default().read(&whole[len..]);
        }
    }
}
