//! What is printed of flow rules: `tc filter show`, and `esw trace`.

use std::time::Duration;

use eswitch::datapath::{Dropped, pf_of};
use eswitch::{CardConfig, PortHandle, PortIndex, Traced};
use flow::words::{Device, Filter, Names, frame_summary};
use flow::{Counter, Port, Rule, RuleId};

use crate::grammar::tc::{netdev_of_port, port_of_netdev};

/// Rules in the words of tc, each with `in_hw`, and with its counter if counters are given: one for each rule, or `None`
/// for a rule that has gone meanwhile, which is left out. `now` is the time with which the last use is compared.
pub fn filters(
    card: &CardConfig,
    rules: &[(RuleId, Rule)],
    counters: Option<&[Option<Counter>]>,
    now: Duration,
) -> Vec<String> {
    let mut lines = Vec::new();
    for (at, (id, rule)) in rules.iter().enumerate() {
        let counter = match counters.map(|counters| counters.get(at).copied().flatten()) {
            Some(None) => continue,
            Some(Some(counter)) => Some(counter),
            None => None,
        };
        lines.push(format!("filter {}", rule_words(card, rule, u32::try_from(id.0).ok())));
        lines.push("  in_hw".to_owned());
        lines.extend(counter.map(|counter| statistics(counter, now)));
    }
    lines
}

/// How many frames a card has dropped, by port and reason.
pub fn drops(card: &CardConfig, drops: &[Dropped]) -> Vec<String> {
    let shown = drops.iter().map(|Dropped { port, reason, frames }| {
        let plural = if *frames == 1 { "" } else { "s" };
        format!("{} {reason}: {frames} frame{plural}", netdev_of_port(card, *port))
    });
    shown.collect()
}

/// What the rules would do with a frame, and why.
pub fn trace(card: &CardConfig, frame: &[u8], traced: &Traced) -> Vec<String> {
    let verdict = &traced.verdict;
    let mut lines = vec![format!("frame: {}", frame_summary(frame))];
    lines.extend(verdict.trace.to_string().lines().map(str::to_owned));
    let mut shown: Vec<RuleId> = Vec::new();
    for (id, rule) in &traced.matched {
        if !shown.contains(id) {
            lines.push(format!("{id}: {}", rule_words(card, rule, None)));
            shown.push(*id);
        }
    }
    for output in &verdict.outputs {
        lines.push(format!("arrives at {}: {}", place(card, output.port), frame_summary(&output.frame)));
    }
    if verdict.goes_to_representor() {
        let port = Port(traced.port.index.0);
        lines.push(format!("arrives at the representor of {}, as it came", place(card, port)));
    } else if verdict.outputs.is_empty() {
        lines.push("arrives nowhere".to_owned());
    }
    if !traced.has_state {
        lines.push("meters and connections were taken as unused: those of this card cannot be copied".to_owned());
    }
    lines
}

/// A port, with the name of its netdev if it has one.
fn place(card: &CardConfig, of: Port) -> String {
    let handle = PortHandle { device: card.pf_address(pf_of(of)), index: PortIndex(of.0) }.to_string();
    let netdev = netdev_of_port(card, of);
    if netdev == handle { handle } else { format!("{handle} ({netdev})") }
}

fn rule_words(card: &CardConfig, rule: &Rule, handle: Option<u32>) -> String {
    let netdev = |of| netdev_of_port(card, of);
    let device = |name: &str| port_of_netdev(card, name).map(Device::Port);
    let names = Names { device: &device, port: &netdev, uplink: Port(0), block: None, free_meter: 0 };
    names.filter_words(&Filter { rule: rule.clone(), handle, meters: Vec::new() })
}

/// A counter in the words of `tc -s`, with the time since the last use.
fn statistics(counter: Counter, now: Duration) -> String {
    let used = match counter.packets {
        0 => "never used".to_owned(),
        _ => format!("used {} s ago", now.saturating_sub(counter.last_used).as_secs()),
    };
    format!("  Sent {} bytes {} pkt, {used}", counter.bytes, counter.packets)
}
