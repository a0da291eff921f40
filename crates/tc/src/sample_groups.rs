//! The psample groups that actions `sample` use (`net/psample/psample.c`): a group begins with its first action and ends with
//! its last.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::action::{Action, Kind};

/// TCA_SAMPLE_PSAMPLE_GROUP.
const GROUP: u16 = 5;

/// A psample group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleGroup {
    /// Its number.
    pub group: u32,
    /// How many actions use it.
    pub users: u32,
}

/// A psample group that has begun or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    /// The group of this number has begun.
    Begun(u32),
    /// It has ended.
    Ended(u32),
}

/// Every group, and what has happened to them.
#[derive(Debug, Default)]
pub(crate) struct SampleGroups {
    /// By number: the users, and the number of the group among all that have begun.
    groups: BTreeMap<u32, (u32, u64)>,
    begun: u64,
    events: Vec<GroupEvent>,
}

/// The group of an action `sample`.
fn group_of(action: &Action) -> Option<u32> {
    if action.kind == Kind::Sample { action.number_u32(GROUP) } else { None }
}

impl SampleGroups {
    /// Notes that an action has been made.
    pub(crate) fn made(&mut self, action: &Action) {
        let Some(group) = group_of(action) else { return };
        let Self { groups, begun, events } = self;
        let (users, _) = groups.entry(group).or_insert_with(|| {
            *begun += 1;
            events.push(GroupEvent::Begun(group));
            (0, *begun)
        });
        *users += 1;
    }

    /// Notes that an action is gone.
    pub(crate) fn gone(&mut self, action: &Action) {
        let Some(group) = group_of(action) else { return };
        let Some((users, _)) = self.groups.get_mut(&group) else { return };
        *users -= 1;
        if *users == 0 {
            self.groups.remove(&group);
            self.events.push(GroupEvent::Ended(group));
        }
    }

    /// The groups in the order in which they began.
    pub(crate) fn list(&self) -> Vec<SampleGroup> {
        let mut groups: Vec<(u64, SampleGroup)> = self
            .groups
            .iter()
            .map(|(group, (users, at))| (*at, SampleGroup { group: *group, users: *users }))
            .collect();
        groups.sort_by_key(|(at, _)| *at);
        groups.into_iter().map(|(_, group)| group).collect()
    }

    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    pub(crate) fn take_events(&mut self) -> Vec<GroupEvent> {
        std::mem::take(&mut self.events)
    }
}
