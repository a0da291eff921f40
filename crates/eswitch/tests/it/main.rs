//! The tests of the engine, in one program: linked once, and its tests run beside each other.

mod acl;
mod agreed;
mod changes;
mod common;
mod explored;
mod flows;
mod flows_model;
mod lag;
mod life_cycle;
mod lock_graph;
mod lock_order;
mod places;
mod rates;
mod vf;
