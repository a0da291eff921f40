//! `cargo xtask programs`: which unmodified programs the tests ran in a lab, for the table of `docs/compatibility.md`.
//!
//! It runs the tests in which programs that are not of this repository see the card. The tests append each command that
//! they run to a file (`RECORD_COMMANDS`); a row has the program's version and its subcommands among these.

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::docs::Generated;
use crate::page::{self, Section};
use crate::table::{self, Measured};
use crate::workspace::{cargo, output_of, root};

/// What to do with the rows.
#[derive(clap::Args)]
pub struct Args {
    /// Write the rows into the table of docs/compatibility.md. A program that is not installed, so that no test ran it,
    /// keeps its row
    #[arg(long)]
    write: bool,
}

/// The table on the page.
const SECTION: Section = Section { page: "docs/compatibility.md", name: "programs" };
/// Its columns.
const COLUMNS: &[&str] = &["program", "version", "commands that tests ran", "what it sees", "at"];

/// A program, or several with one version.
struct Program {
    name: &'static str,
    /// The commands that are this program's.
    commands: &'static [&'static str],
    /// The command that prints the version.
    version: &'static [&'static str],
    /// What it sees in a lab, in words.
    sees: &'static str,
}

const PROGRAMS: [Program; 8] = [
    Program {
        name: "devlink",
        commands: &["devlink"],
        version: &["devlink", "-V"],
        sees: "the same as on the hardware, line by line",
    },
    Program {
        name: "ip",
        commands: &["ip"],
        version: &["ip", "-V"],
        sees: "a PF with its VFs, switch ID, port name, parent device and limits; [what differs from mlx5](lab.md#attributes-of-a-netdev)",
    },
    Program {
        name: "rdma",
        commands: &["rdma"],
        version: &["rdma", "-V"],
        sees: "ports and their netdevs; `rdma resource` and `rdma statistic` have nothing to show",
    },
    Program {
        name: "ethtool",
        commands: &["ethtool"],
        version: &["ethtool", "--version"],
        sees: "the card's driver, firmware and bus, and [the answers of mlx5](lab.md#ethtool)",
    },
    Program {
        name: "lspci",
        commands: &["lspci"],
        version: &["lspci", "--version"],
        sees: "PFs and VFs with their capabilities, SR-IOV among them",
    },
    Program {
        name: "kmod",
        commands: &["modprobe", "modinfo", "rmmod", "lsmod"],
        version: &["modprobe", "--version"],
        sees: "the card's modules, by name and by alias; `lsmod` reads `/proc/modules`, which a kernel without modules lacks",
    },
    Program {
        name: "pyroute2",
        commands: &["python3"],
        version: &["python3", "-c", "import pyroute2; print(pyroute2.__version__)"],
        sees: "devices, ports and links",
    },
    Program {
        name: "Open vSwitch",
        commands: &["ovs-vswitchd", "ovsdb-server", "ovsdb-tool", "ovs-vsctl", "ovs-ofctl", "ovs-appctl", "ovs-dpctl"],
        version: &["ovs-vswitchd", "--version"],
        sees: "representors as ports of a bridge, in its userspace datapath",
    },
];

/// The tests that are run: a package and its test targets.
const TESTS: [(&str, &[&str]); 2] = [("lab", &["programs", "sysfs"]), ("esw", &["programs", "readme", "open_vswitch"])];

/// Runs the tests, and prints and writes the rows.
///
/// # Errors
/// A test fails, which shows why; cargo cannot be started; the page cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut table = Measured::parse(COLUMNS, &SECTION.read()?).context(SECTION.page)?;
    let at = page::stamp()?;
    let recorded = record()?;
    let mut printed = vec![["program", "version", "commands that tests ran"].map(str::to_owned)];
    for program in &PROGRAMS {
        let commands = commands_of(program, &recorded);
        if commands.is_empty() {
            eprintln!("{}: no test ran it: is it installed, and is this root with /dev/fuse?", program.name);
            continue;
        }
        let version = version(&output_of(program.version[0], &program.version[1..])?);
        let quoted: Vec<String> = commands.iter().map(|command| format!("`{command}`")).collect();
        table.replace(program.name, [vec![version.clone(), quoted.join(", "), program.sees.to_owned()]], &at);
        printed.push([program.name.to_owned(), version, commands.join(", ")]);
    }
    if args.write {
        SECTION.write(&table.text(&PROGRAMS.map(|program| program.name)))?;
    }
    print!("{}", table::aligned(&printed));
    Ok(ExitCode::SUCCESS)
}

/// Runs the tests, and returns the commands that they ran.
fn record() -> Result<String> {
    let file = std::env::temp_dir().join(format!("xtask-programs-{}", std::process::id()));
    let recorded = record_to(&file);
    let text = fs::read_to_string(&file).unwrap_or_default();
    let _ = fs::remove_file(&file);
    recorded.map(|()| text)
}

fn record_to(file: &std::path::Path) -> Result<()> {
    let examples = cargo().args(["build", "--quiet", "-p", "lab", "--examples"]).current_dir(root()).status();
    ensure!(examples.context("running cargo")?.success(), "the examples of the crate lab cannot be built");
    for (package, targets) in TESTS {
        let mut command = cargo();
        command.args(["test", "--quiet", "-p", package]).current_dir(root()).env("RECORD_COMMANDS", file);
        command.args(targets.iter().flat_map(|target| ["--test", target]));
        let status = command.status().context("running cargo")?;
        ensure!(status.success(), "tests of {package} failed; nothing is written");
    }
    Ok(())
}

/// The version in what a program prints: the first word of the first line that begins with a digit.
fn version(printed: &str) -> String {
    let mut words = printed.lines().next().unwrap_or_default().split([' ', ',', '-']);
    words.find(|word| word.starts_with(|c: char| c.is_ascii_digit())).unwrap_or("unknown").to_owned()
}

/// The subcommands of a program among commands of a shell, without what they are applied to, each once.
fn commands_of(program: &Program, recorded: &str) -> Vec<String> {
    if program.commands == ["python3"] {
        let imported = recorded.lines().filter_map(|line| line.strip_prefix("from pyroute2 import "));
        return imported
            .flat_map(|names| names.split(", "))
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
    }
    let simple = recorded.split(['\n', ';', '|', '&', '(', ')', '`', '"', '\'', '{', '}']);
    let commands = simple.filter_map(|command| {
        let mut words = command.split_whitespace().skip_while(|word| KEYWORDS.contains(word));
        let name = words.next().filter(|word| program.commands.contains(word))?;
        Some(subcommand(name, words))
    });
    commands.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Words of a shell that may stand before a command.
const KEYWORDS: [&str; 8] = ["if", "until", "while", "do", "then", "else", "exec", "!"];
/// Words that end a subcommand: what follows is what it is applied to.
const VERBS: [&str; 11] =
    ["show", "set", "add", "del", "exec", "list", "monitor", "reload", "info", "add-br", "add-port"];

/// A program's name with its options and the words up to its verb.
fn subcommand<'w>(name: &str, words: impl Iterator<Item = &'w str>) -> String {
    let mut kept = vec![name.to_owned()];
    let words: Vec<&str> = words.collect();
    let is_word = |word: &str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    for (at, word) in words.iter().enumerate() {
        if at > 0 && name == "ip" && words[at - 1] == "-n" {
            // The name of a network namespace.
            kept.push("…".to_owned());
            continue;
        }
        let is_option = word.starts_with('-');
        if !is_option && (!is_word(word) || !takes_words(name)) {
            break;
        }
        kept.push(word.split('=').next().unwrap_or_default().to_owned());
        if VERBS.contains(word) {
            break;
        }
    }
    if name == "ip" && words.contains(&"vf") {
        kept.push("… vf".to_owned());
    }
    kept.join(" ")
}

/// Whether a program has subcommands that are words, and not only options.
fn takes_words(name: &str) -> bool {
    ["devlink", "ip", "rdma"].contains(&name) || name.starts_with("ovs")
}

/// The section without rows of programs that are not listed any more; and the programs without rows.
///
/// # Errors
/// The page cannot be read, or has no such table.
pub fn documented() -> Result<Generated> {
    let table = Measured::parse(COLUMNS, &SECTION.read()?).context(SECTION.page)?;
    let names = PROGRAMS.map(|program| program.name);
    let text = table.text(&names);
    let missing = names.iter().filter(|name| !table.has(name)).map(|name| (*name).to_owned()).collect();
    Ok(Generated { section: SECTION, text, missing, measured_by: "cargo xtask programs --write" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, recorded: &str) -> Vec<String> {
        commands_of(PROGRAMS.iter().find(|program| program.name == name).unwrap(), recorded)
    }

    #[test]
    fn subcommands_are_found_in_commands_of_a_shell() {
        let recorded = "sleep 1; devlink port show en8f0pf0sf88\n\
            for n in {1..5}; do devlink port function rate set pci/0000:08:00.0/1 tx_share 1gbit && break; done\n\
            if ! devlink -j port show | grep -q x; then echo devlink; fi\ndevlink monitor > heard & m=$!\n\
            x=$(devlink dev show)\n";
        let found = ["devlink -j port show", "devlink dev show", "devlink monitor", "devlink port function rate set"];
        assert_eq!(of("devlink", recorded), [&found[..], &["devlink port show"]].concat());
        let recorded = "ip link set enp8s0f0np0 vf 1 mac 02:00:00:00:00:07\nip -d link show enp8s0f0np0 | grep x\nip -n one link set x up";
        assert_eq!(of("ip", recorded), ["ip -d link show", "ip -n … link set", "ip link set … vf"]);
        assert_eq!(of("lspci", "lspci -n -s 08:00\n"), ["lspci -n -s"]);
        assert_eq!(
            of("kmod", "modprobe --show-depends mlx5_ib\nrmmod mlx5_core"),
            ["modprobe --show-depends", "rmmod"]
        );
        assert_eq!(of("pyroute2", "python3 -c \"\nfrom pyroute2 import DL, IPRoute\n"), ["DL", "IPRoute"]);
    }

    #[test]
    fn a_version_is_the_number_in_the_first_line() {
        for (printed, number) in [
            ("devlink utility, iproute2-6.1.0", "6.1.0"),
            ("ip utility, iproute2-6.1.0, libbpf 1.1.2", "6.1.0"),
            ("ethtool version 6.1", "6.1"),
            ("ovs-vswitchd (Open vSwitch) 3.1.0\nDPDK 22.11", "3.1.0"),
        ] {
            assert_eq!(version(printed), number);
        }
    }
}
