//! What a developer runs beside cargo.

mod bench;
mod bpf;
mod dist;
mod docs;
mod exhaust;
mod instructions;
mod memory_card;
mod mutants;
mod ovs_tests;
mod page;
mod patched;
mod programs;
mod refresh;
mod series;
mod table;
mod torture;
mod valgrind;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// What a developer runs beside cargo.
#[derive(Parser)]
enum Command {
    /// Measure what things cost, side by side with what they are compared with. Never fails because of a time.
    Bench(bench::Args),
    /// Compile the eBPF program of crates/datapath-bpf, or check that the committed object is what its sources compile to.
    Bpf(bpf::Args),
    /// Make a static binary, manual pages, completions, a Debian package and a container image, with their sums.
    Dist(dist::Args),
    /// Check that the sections of the documentation that commands write agree with the code, or write them.
    Docs(docs::Args),
    /// Explore each scenario up to a bound, for the table in docs/verification.md. Fails if an invariant does not hold.
    Exhaust(exhaust::Args),
    /// Run the tests of unmodified programs in a lab, and list what they ran, for the table in docs/compatibility.md.
    Programs(programs::Args),
    /// Run NVIDIA's control-plane scripts in a lab, for the table in docs/compatibility.md.
    OvsTests(ovs_tests::Args),
    /// Count the instructions of frequent paths. Fails if one takes over 5 % more than the committed number.
    Instructions(instructions::Args),
    /// Plant bugs, one after the other, and check that each is caught: by the compiler, or by exploring the scenario that
    /// its patch names.
    Mutants(mutants::Args),
    /// Explore every scenario without the patches of the series and after each of them: which fail, and which patch repairs
    /// each.
    Series(series::Args),
    /// Run a command in a virtual machine with a distribution's kernel; without a command, run the scenarios for the Linux card
    /// there, and the tests that need the kernel's bonds.
    Vm(vm::Args),
    /// Attack the release binary from outside: kills, damaged state, full disks, hostile messages, programs without
    /// rights. Fails if something does not hold.
    Torture(torture::Args),
    /// A part of a measurement that needs a process of its own.
    #[command(hide = true)]
    BenchChild(bench::Child),
    /// A path whose instructions are counted.
    #[command(hide = true)]
    InstructionsChild(instructions::Child),
}

fn main() -> ExitCode {
    if vm::is_init() {
        vm::init();
        return ExitCode::SUCCESS;
    }
    run(Command::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Bench(args) => bench::run(&args)?,
        Command::Bpf(args) => bpf::run(&args)?,
        Command::Dist(args) => dist::run(&args)?,
        Command::Docs(args) => return docs::run(&args),
        Command::Exhaust(args) => return exhaust::run(&args),
        Command::Programs(args) => return programs::run(&args),
        Command::OvsTests(args) => return ovs_tests::run(&args),
        Command::Instructions(args) => return instructions::run(&args),
        Command::Mutants(args) => return mutants::run(&args),
        Command::Series(args) => return series::run(&args),
        Command::Vm(args) => return vm::run(&args),
        Command::Torture(args) => return torture::run(&args),
        Command::BenchChild(child) => child.run()?,
        Command::InstructionsChild(child) => child.run()?,
    }
    Ok(ExitCode::SUCCESS)
}
