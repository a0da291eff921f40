//! Filters in the kernel's messages (`tcf_fill_node`, `fl_dump`, `mall_dump`).

use netlink::{BuildError, Builder, Flags, Header, Message, find, message, u32_at};
use serde::{Deserialize, Serialize};

use crate::action::{Usage, counted};
use crate::numbers::{RTM_DELTFILTER, RTM_NEWTFILTER, TCMSG, cls_flags, flower, matchall, tca};
use crate::refusal::Refusal;
use crate::request::{Classifier, Place, Spec};

/// A filter, or the priority that has filters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// Where it is.
    pub place: Place,
    /// The name of its classifier.
    pub kind: String,
    /// The filter; `None` for the priority itself.
    pub filter: Option<ShownFilter>,
    /// Whether the kernel has it, too.
    #[serde(default)]
    pub software: bool,
}

/// A filter with its counters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShownFilter {
    /// What it was asked to be.
    pub spec: Spec,
    /// The use of each of its actions.
    pub usages: Vec<Usage>,
    /// Whether the card carries it out.
    pub in_hw: bool,
}

/// Where a filter stands in a list: its chain, its priority, its handle, which is 0 for the priority itself.
pub type Rank = (u32, u16, u32);

/// Where a filter stands that the kernel shows, in RTM_NEWTFILTER.
pub fn rank(message: &Message<'_>) -> Option<Rank> {
    let payload = message.payload();
    let chain = find(message.after(TCMSG)?, tca::CHAIN).and_then(|chain| chain.leading_u32()).unwrap_or(0);
    Some((chain, (u32_at(payload, 16)? >> 16) as u16, u32_at(payload, 8)?))
}

impl Shown {
    /// Where it stands in a list.
    pub fn rank(&self) -> Rank {
        (self.place.chain.unwrap_or(0), self.place.priority, self.place.handle)
    }

    /// Adds what the kernel has counted for the same filter, as it shows it.
    pub fn add_software(&mut self, message: &Message<'_>) {
        let Some(filter) = &mut self.filter else { return };
        let act = match filter.spec.classifier {
            Classifier::Flower(_) => flower::ACT,
            Classifier::Matchall => matchall::ACT,
        };
        let actions = message.after(TCMSG).and_then(|content| find(find(content, tca::OPTIONS)?.value, act));
        let Some(actions) = actions else { return };
        for (action, usage) in actions.nested().flatten().zip(&mut filter.usages) {
            let (software, idle) = counted(action.value);
            usage.software = software;
            usage.idle_ms = usage.idle_ms.min(idle.unwrap_or(u64::MAX));
        }
    }
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// Filters that were made, or that are shown.
    Filters(Vec<Shown>),
    /// Filters and priorities that are gone.
    Gone(Vec<Shown>),
    /// It is refused.
    Refused(Refusal),
}

/// How a message is addressed.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// The interface index of the netdev.
    pub index: u32,
    /// The parent that is shown.
    pub parent: u32,
    /// Flags of the message.
    pub flags: Flags,
    /// The number of the request.
    pub sequence: u32,
    /// The port of the program's socket.
    pub port: u32,
    /// Only what is asked for with TCA_DUMP_FLAGS_TERSE.
    pub is_terse: bool,
}

impl Address {
    fn header(&self, kind: u16) -> Header {
        Header::new(kind, self.flags, self.sequence, self.port)
    }

    fn tcmsg(&self, handle: u32, info: u32) -> Vec<u8> {
        [0, self.index, handle, self.parent, info].iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    /// RTM_NEWTFILTER, or RTM_DELTFILTER if it is `gone`. `netdev`: the interface index of a port's netdev.
    ///
    /// # Errors
    /// The filter is too long for a message.
    pub fn filter(
        &self,
        shown: &Shown,
        gone: bool,
        netdev: &mut dyn FnMut(flow::Port) -> Option<u32>,
    ) -> Result<Vec<u8>, BuildError> {
        let place = &shown.place;
        let info = u32::from(place.priority) << 16 | u32::from(place.protocol.to_be());
        message(self.header(if gone { RTM_DELTFILTER } else { RTM_NEWTFILTER }), |to| {
            to.raw(&self.tcmsg(place.handle, info)).text(tca::KIND, &shown.kind);
            to.u32(tca::CHAIN, place.chain.unwrap_or(0));
            if let Some(filter) = &shown.filter {
                to.nest_noflag(tca::OPTIONS, |to| filter.write(to, self.is_terse, netdev));
            }
        })
    }
}

impl ShownFilter {
    fn write(&self, to: &mut Builder, is_terse: bool, netdev: &mut dyn FnMut(flow::Port) -> Option<u32>) {
        let spec = &self.spec;
        let state = if self.in_hw { cls_flags::IN_HW } else { cls_flags::NOT_IN_HW };
        let flags = spec.flags | state;
        let (classid, act, flags_kind) = match &spec.classifier {
            Classifier::Flower(_) => (flower::CLASSID, flower::ACT, flower::FLAGS),
            Classifier::Matchall => (matchall::CLASSID, matchall::ACT, matchall::FLAGS),
        };
        if spec.classid != 0 && !is_terse {
            to.u32(classid, spec.classid);
        }
        if let Classifier::Flower(keys) = &spec.classifier
            && !is_terse
        {
            for (kind, value) in keys.shown() {
                to.put(kind, &value);
            }
        }
        to.u32(flags_kind, flags);
        if matches!(spec.classifier, Classifier::Flower(_)) && !is_terse {
            to.u32(flower::IN_HW_COUNT, u32::from(self.in_hw));
        }
        if spec.actions.is_empty() {
            return;
        }
        to.nest_noflag(act, |to| {
            for (at, action) in spec.actions.iter().enumerate() {
                let usage = self.usages.get(at).copied().unwrap_or_default();
                to.nest_noflag(at as u16 + 1, |to| action.write(to, &usage, is_terse, netdev));
            }
        });
    }
}
