//! What a developer runs beside cargo.

fn main() {}
