//! A card as a tree in a terminal.

use super::model::{Function, Netdev, Pf, Shown};
use crate::output::{Style, many};

/// The lines of a card.
pub fn lines(card: &Shown, style: Style) -> Vec<String> {
    let Shown { name, kind, profile, switch_id, rules, pfs } = card;
    let mut lines = vec![format!(
        "{}  {kind} card, {profile}, switch {switch_id}, {}",
        style.strong(name),
        many(*rules as u64, "flow rule")
    )];
    for (n, pf) in pfs.iter().enumerate() {
        add_pf(&mut lines, pf, n + 1 == pfs.len(), style);
    }
    lines
}

/// What is below a PF: a row of the table, or a remark.
enum Row {
    Cells([String; 4]),
    Bad(String),
    Remark(String),
}

fn add_pf(lines: &mut Vec<String>, pf: &Pf, is_last: bool, style: Style) {
    let (branch, below) = if is_last { ("└─", "  ") } else { ("├─", "│ ") };
    let mode = pf.mode.as_deref().unwrap_or("no driver");
    lines.push(format!("{} {}  {mode}", style.faint(branch), style.strong(&format!("PF pci/{}", pf.address))));
    let mut rows = Vec::new();
    if let Some(uplink) = &pf.uplink {
        let own = pf.rdma.clone().unwrap_or_default();
        rows.push(Row::Cells(["uplink".to_owned(), uplink.text(), own, String::new()]));
    }
    rows.extend(pf.functions.iter().map(|function| Row::Cells(cells(function))));
    rows.extend(pf.problems.iter().cloned().map(Row::Bad));
    rows.extend(pf.not_enforced.iter().map(|what| Row::Remark(format!("not enforced: {what}"))));
    let mut widths = [0; 4];
    for row in &rows {
        if let Row::Cells(cells) = row {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
    }
    for (n, row) in rows.iter().enumerate() {
        let branch = if n + 1 == rows.len() { "└─" } else { "├─" };
        let text = match row {
            Row::Cells(cells) => {
                let padded = cells.iter().zip(widths).filter(|(_, width)| *width > 0);
                let padded: Vec<String> = padded.map(|(cell, width)| format!("{cell:width$}")).collect();
                padded.join("  ").trim_end().to_owned()
            }
            Row::Bad(text) => style.bad(text),
            Row::Remark(text) => style.faint(text),
        };
        lines.push(format!("{} {text}", style.faint(&format!("{below} {branch}"))));
    }
}

fn cells(function: &Function) -> [String; 4] {
    let Function { name, device, driver, netdev, rdma, representor } = function;
    let what = match (netdev, driver, device) {
        (Some(netdev), ..) => netdev.text(),
        (None, Some(driver), _) => format!("no netdev, {driver}"),
        (None, None, Some(_)) => "no driver".to_owned(),
        (None, None, None) => "on the host".to_owned(),
    };
    let representor = representor.as_ref().map(|netdev: &Netdev| format!("↔ {}", netdev.text()));
    [name.clone(), what, rdma.clone().unwrap_or_default(), representor.unwrap_or_default()]
}
