//! The devlink protocol, as a server, and what a card looks like to those who connect.

pub mod view;
