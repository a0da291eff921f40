//! The filters of a card's netdevs, as tc has them.
//!
//! Programs ask for flows in the messages of rtnetlink: RTM_NEWTFILTER with the classifier `flower` or `matchall`. This
//! crate reads such messages ([`Request`]), says what a filter is for the card ([`Offload`]), keeps filters as the kernel
//! does ([`Tables`]), and shows them in the kernel's messages ([`Address`]). It has no sockets, threads or locks.
//!
//! What is refused is refused with the kernel's error number and text (`net/sched/cls_api.c`, `net/sched/cls_flower.c`,
//! `net/sched/act_*.c`); what the card cannot do, with mlx5's.

mod action;
mod attributes;
mod event;
mod keys;
pub mod numbers;
mod offload;
mod refusal;
mod request;
mod sample_groups;
mod shown;
mod stored;
mod tables;
#[cfg(test)]
mod tests;

pub use action::{Action, Kind as ActionKind, Target, Targets, Usage};
pub use attributes::Attr;
pub use event::{Event, Origin};
pub use keys::Keys;
pub use offload::Offload;
pub use refusal::Refusal;
pub use request::{Classifier, Netdev, Place, Request, Side, Spec, Verb, side_of};
pub use sample_groups::{GroupEvent, SampleGroup};
pub use shown::{Address, Answer, Rank, Shown, ShownFilter, rank};
pub use stored::{Record, Stored, StoredFilters};
pub use tables::{Entry, EntryFilter, NO_CHAIN, Outcome, Removed, Reserved, Tables};
