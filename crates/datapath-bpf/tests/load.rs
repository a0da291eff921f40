//! The kernel takes the program.
use datapath_bpf::{Options, Pipeline};

#[test]
fn the_kernel_takes_the_program() {
    let pipeline = Pipeline::load(Options { max_rules: 1024, ..Options::default() });
    if let Err(error) = pipeline {
        panic!("{error}");
    }
}
