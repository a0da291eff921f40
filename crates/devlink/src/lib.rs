//! The devlink protocol as a server, and the view of a card.
//!
//! The control socket of a card is a Unix socket of type SOCK_SEQPACKET. It carries generic netlink messages, each
//! datagram as the kernel would receive or send it. So a program that speaks devlink to the kernel can speak it to a
//! card if its datagrams get there, which is what a lab does. The socket has three families: `nlctrl`, which describes
//! the others; `devlink`; and [`eswitch_family`], for what devlink has no message for.
//!
//! [`answer`] is the protocol without a socket: bytes in, bytes out. [`ControlSocket`] is the socket, and [`Server`]
//! serves it.

mod answer;
mod card;
mod carried_out;
mod client;
mod clients;
mod command;
pub mod eswitch_family;
mod family;
mod homecoming;
mod instance;
mod kept;
mod last_view;
pub mod nests;
mod nlctrl;
mod notify;
pub mod numbers;
mod peer;
mod rdma_core;
mod refusal;
mod reply;
mod request;
mod sampling;
mod server;
mod settings;
mod shared;
mod socket;
mod sys;
mod tc_filters;
pub mod view;

pub use answer::answer;
pub use card::{Cx, Destination, Host, KernelNetdevs, NetworkRef, Served};
pub use carried_out::CarriedOut;
pub use client::{Answered, Client, ClientError, connect, join_pieces};
pub use command::takes_admin;
pub use family::{CONFIG_GROUP, DEVLINK, ESWITCH, FILTERS_GROUP, SAMPLE_GROUPS_GROUP, SAMPLES_GROUP};
pub use kept::Kept;
pub use last_view::LastView;
pub use peer::Peer;
pub use rdma_core::{NODE_DESC_MAX, RdmaChange};
pub use refusal::Refusal;
pub use reply::Sink;
pub use sampling::{Sample, SampleGroup, Sampling};
pub use server::{Access, Server};
pub use settings::Settings;
pub use shared::{SharedView, ViewReader};
pub use socket::{ControlSocket, SocketError};
pub use tc_filters::TcFilters;
