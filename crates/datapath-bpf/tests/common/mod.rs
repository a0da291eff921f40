//! What the tests have in common.
#![allow(dead_code, reason = "each test uses a part")]

pub mod net;

use datapath_bpf::{LoadError, Options, Pipeline};

/// A pipeline, or nothing where the kernel lets this process load none: then a line says so. In CI that is a failure.
pub fn pipeline(options: Options) -> Option<Pipeline> {
    match Pipeline::load(options) {
        Ok(pipeline) => Some(pipeline),
        Err(error @ LoadError::NotAllowed(_)) => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}
