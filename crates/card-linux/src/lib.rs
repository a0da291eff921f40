//! A card made of real netdevs.
//!
//! The card *is* a network namespace, named `esw-` and its PCI address, so users can look inside it with the
//! tools that they know. It holds, for a PF and one of its VFs (`~` is a veth pair, its outer end at
//! the right, where the user is):
//!
//! ```text
//!   legacy                               switchdev
//!
//!   br0 ─┬─ wire0 ~ the network          br0 (down)
//!        ├─ up0   ~ enp8s0f0np0          wire0 ⇄ up0  ~ enp8s0f0np0
//!        └─ p0v0  ~ enp8s0f0v0           p0v0  ⇄ r0v0 ~ enp8s0f0npf0vf0
//!                                          └──────────~ enp8s0f0v0
//! ```
//!
//! `⇄` is a tie: a filter at each end's ingress that sends every frame out of the other. So what a VF
//! sends arrives at its representor and nowhere else. Mode changes leave the VFs' netdevs as they are. A PF with more
//! than 256 vports has further bridges behind the first: a Linux bridge takes 1,023 ports, and its costs grow with
//! their square.
//!
//! What it guarantees beyond [`eswitch::card::Card`]: a request that fails leaves nothing behind; what
//! exists is checked against the kernel ([`resources`](eswitch::card::Card::resources)); when the card
//! is dropped nothing is left of it; and the next process clears away, or takes over, what a killed one has left.
//! A request for one port does not wait for a batch for others: see the module `operation`.
//!
//! Start at [`Place`], then [`LinuxCard`].

mod acl;
mod adopt;
mod bond;
mod books;
mod card;
mod create;
mod destroy;
mod elsewhere;
mod homes;
mod layout;
mod neighbours;
mod netns;
mod operation;
mod outer;
mod place;
mod plane;
mod program;
mod rates;
mod refused;
mod request;
mod socket;
mod sys;
mod ties;
mod watch;
mod wires;

pub use adopt::Hold;
pub use bond::{BondWatch, Bonds};
pub use books::near_end;
pub use card::{LinuxCard, SetupError};
pub use homes::{Destination, Homes};
pub use neighbours::{NeighbourWatch, Neighbours};
pub use netns::{NetnsError, card_netns_name};
pub use place::{Place, PlaceError};
pub use plane::cannot_offload;
pub use wires::Wire;

// The integration tests' card and namespaces, for those unit tests that need both.
#[cfg(test)]
extern crate self as card_linux;
#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]
#[path = "../tests/common/mod.rs"]
mod common;
