//! The command: all of it is in the library of the same name, where tests and fuzz targets reach it, too.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    esw::main()
}
