//! The generic netlink families of a control socket: their numbers, and how each is described to `nlctrl`.

use netlink::Builder;

use crate::nests::control_nest;
use crate::numbers::control;

/// The number of the devlink family on a control socket.
pub const DEVLINK: u16 = 21;
/// The number of the [`eswitch`](crate::eswitch_family) family on a control socket.
pub const ESWITCH: u16 = 22;
/// The number of devlink's multicast group `config` on a control socket.
pub const CONFIG_GROUP: u32 = 5;
/// The number of the multicast group on a control socket on which the card's samples are published.
pub const SAMPLES_GROUP: u32 = 6;
/// The number of the multicast group on a control socket on which it is published that psample groups begin and end.
pub const SAMPLE_GROUPS_GROUP: u32 = 7;
/// The number of the multicast group on a control socket on which changes to filters are published.
pub const FILTERS_GROUP: u32 = 8;
/// The version of the devlink family.
pub const VERSION: u8 = 1;

/// What `nlctrl` reports of a family.
pub(crate) struct Family {
    pub name: &'static str,
    pub number: u16,
    pub version: u32,
    /// The highest attribute type.
    pub max_attribute: u32,
    /// Command numbers, with the flags `GENL_*` of each.
    pub operations: Vec<(u8, u32)>,
    /// Multicast groups: name and number.
    pub groups: &'static [(&'static str, u32)],
}

impl Family {
    /// Writes the attributes of a CTRL_CMD_NEWFAMILY message.
    pub fn write(&self, to: &mut Builder) {
        to.text(control::FAMILY_NAME, self.name).u16(control::FAMILY_ID, self.number);
        to.u32(control::VERSION, self.version).u32(control::HEADER_SIZE, 0);
        to.u32(control::MAX_ATTRIBUTE, self.max_attribute);
        control_nest(to, control::OPERATIONS, |to| {
            for (at, (number, flags)) in (1u16..).zip(&self.operations) {
                to.nest_noflag(at, |to| {
                    to.u32(control::OPERATION_ID, (*number).into()).u32(control::OPERATION_FLAGS, *flags);
                });
            }
        });
        if self.groups.is_empty() {
            return;
        }
        control_nest(to, control::GROUPS, |to| {
            for (at, (name, id)) in (1u16..).zip(self.groups) {
                to.nest_noflag(at, |to| {
                    to.u32(control::GROUP_ID, *id).text(control::GROUP_NAME, name);
                });
            }
        });
    }
}
