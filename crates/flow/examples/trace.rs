//! Says what rules in a file do with a frame.
//!
//! ```text
//! cat > rules <<END
//! dev port1 ingress protocol ip prio 1 flower ip_proto tcp action vlan push id 5 action mirred egress redirect dev port2
//! END
//! cargo run -p flow --example trace -- rules port1 "ip dst 10.0.0.2 / tcp dport 80 flags S"
//! ```
//!
//! A line of the file is a rule in the words of `tc filter add`, or begins with `#`. Ports are `port1` to `port64`, and the
//! uplink is `port65535`.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use flow::words::{Device, Names, frame, frame_summary};
use flow::{Port, PortKind, State, Tables, process};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rules, port, words] = &arguments[..] else {
        eprintln!("Usage: trace RULES PORT FRAME");
        return ExitCode::FAILURE;
    };
    match trace(rules, port, words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn trace(rules: &str, port: &str, words: &str) -> Result<(), Box<dyn Error>> {
    let names = Names::by_number();
    let Some(Device::Port(port)) = (names.device)(port) else { return Err(format!("there is no {port}").into()) };
    let tables = tables(&std::fs::read_to_string(rules)?, &names)?;
    let frame = frame(words)?;
    let verdict = process(&tables, &mut State::new(0), Duration::ZERO, port, &frame);
    for (id, rule) in tables.rules() {
        println!("{id}: {}", names.rule_words(rule));
    }
    println!("\n{}\n{}", frame_summary(&frame), verdict.trace);
    for output in &verdict.outputs {
        println!("{}: {}", output.port, frame_summary(&output.frame));
    }
    Ok(())
}

/// Tables with these rules.
fn tables(text: &str, names: &Names<'_>) -> Result<Tables, Box<dyn Error>> {
    let mut tables = Tables::default();
    tables.add_port(names.uplink, PortKind::Uplink);
    (1..=64).for_each(|port| tables.add_port(Port(port), PortKind::Vport));
    let mut names = *names;
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
    {
        let at = |error: &dyn Error| format!("line {}: {error}", index + 1);
        let filter = names.rule(line).map_err(|error| at(&error))?;
        for (id, meter) in filter.meters {
            names.free_meter = names.free_meter.max(id.0.saturating_add(1));
            tables.set_meter(id, meter).map_err(|error| at(&error))?;
        }
        tables.add(filter.rule).map_err(|error| at(&error))?;
    }
    Ok(tables)
}
