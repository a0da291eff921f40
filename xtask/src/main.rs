//! What a developer runs beside cargo.

mod bench;

use clap::Parser;

/// What a developer runs beside cargo.
#[derive(Parser)]
enum Command {
    /// Measure, side by side with what each thing is to be compared with. Never fails on a time.
    Bench(bench::Args),
    /// A part of a measurement that needs a process of its own.
    #[command(hide = true)]
    BenchChild(bench::Child),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Bench(args) => bench::run(&args),
        Command::BenchChild(child) => child.run(),
    }
}
