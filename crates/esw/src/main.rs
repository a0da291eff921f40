//! The command: arguments in, text or JSON out.

fn main() {}
