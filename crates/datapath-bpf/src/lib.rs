//! The flows of an E-Switch, carried out by the kernel.
//!
//! Rules are kept in maps, and an eBPF program that runs where frames enter the card asks them (`bpf/eswitch.bpf.c`). What it
//! does with a frame is defined by [`flow::process`], with which it is compared frame by frame. A rule that it could not
//! carry out is [`Refused`] with the name of what is missing, and never ignored.
//!
//! A card is a network namespace, in which each port has the inner end of a veth pair. [`Pipeline::attach`] puts the program
//! there, [`Pipeline::set_port`] says what the netdevs are, and [`Pipeline::commit`] changes rules and meters.
//!
//! # Guarantees
//! * A rule is installed whole or not at all, and traffic sees either the rule or none.
//! * Counters never go back as long as their rule is installed.
//! * What is attached stays so without a process, and goes with its netdev. Frames are forwarded meanwhile, and
//!   [`Pipeline::adopt`] finds everything again: nothing is pinned, the netdevs have it.

#![deny(unsafe_code)]

mod book;
mod commit;
mod compile;
mod encap;
mod layout;
mod maps;
mod pipeline;
mod samples;
mod slots;
mod sys;
mod track;
mod trial;

pub use compile::Refused;
pub use layout::MARK_SHAPED;
pub use maps::LoadError;
pub use pipeline::{Change, Counter, DropReason, Drops, Lane, Leftover, Mode, Options, Pipeline, PortConfig, Role};
pub use samples::Samples;
pub use track::Connection;
pub use trial::{Trial, TrialFate, TrialOutput};
