//! A card as a drawing: functions on the left, the E-Switch of each PF in the middle, representors and the uplink on the right.

use super::model::{Function, Netdev, Pf, Shown};

/// Sizes, in pixels.
const WIDTH: u32 = 860;
const ROW: u32 = 46;
const BOX: u32 = 36;
const LEFT: u32 = 20;
const BOX_WIDTH: u32 = 290;
const SWITCH: u32 = 370;
const SWITCH_WIDTH: u32 = 120;
const RIGHT: u32 = 550;
const TITLE: u32 = 52;
const GAP: u32 = 24;
/// From the top of a box to the foot of its text, if that is one line.
const ONE_LINE: u32 = 23;

const STYLE: &str = "\
text { font: 13px ui-monospace, monospace; fill: #1f2328 }
.faint { fill: #59636e }
.title { font-weight: bold }
.bad { fill: #b3261e; font-weight: bold }
rect { fill: #f6f8fa; stroke: #59636e }
.switch { fill: #dbe9ff; stroke: #0b57d0 }
line { stroke: #59636e }
.away { stroke-dasharray: 4 3 }
.page { fill: #ffffff; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .faint { fill: #9da7b3 }
  .bad { fill: #ff8f85 }
  rect { fill: #161b22; stroke: #9da7b3 }
  .switch { fill: #12305c; stroke: #7cacf8 }
  line { stroke: #9da7b3 }
  .page { fill: #0d1117; stroke: none }
}";

/// The drawing, as the text of an SVG file.
pub fn svg(card: &Shown) -> String {
    let mut parts = Vec::new();
    let rules = if card.rules == 1 { "rule" } else { "rules" };
    let about = format!("{} card, switch {}, {} flow {rules}", card.kind, card.switch_id, card.rules);
    parts.push(text(LEFT, 30, "title", &card.name));
    parts.push(text(LEFT + 9 * card.name.chars().count() as u32 + 12, 30, "faint", &about));
    let mut top = TITLE;
    for pf in &card.pfs {
        top = draw_pf(&mut parts, pf, top) + GAP;
    }
    let body = parts.join("\n");
    let title = escape(&format!("The card {}", card.name));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" width=\"{WIDTH}\" height=\"{top}\" \
         role=\"img\">\n<title>{title}</title>\n<style>\n{STYLE}\n</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{top}\"/>\n{body}\n</svg>\n"
    )
}

/// Draws a PF below `top`; returns where it ends.
fn draw_pf(parts: &mut Vec<String>, pf: &Pf, top: u32) -> u32 {
    let rows = pf.functions.len() as u32 + 1;
    let height = rows * ROW;
    parts.push(rect(SWITCH, top, SWITCH_WIDTH, height - (ROW - BOX), "switch"));
    let middle = SWITCH + SWITCH_WIDTH / 2;
    let mode = pf.mode.as_deref().unwrap_or("no driver");
    for (n, (class, line)) in [("title", "E-Switch"), ("", mode), ("faint", &pf.address)].into_iter().enumerate() {
        // With the uplink alone there is room for one line.
        if rows > 1 || n == 1 {
            let lift = if rows > 1 { 18 * n as u32 } else { 0 };
            parts.push(centred(middle, top + 22 + lift, class, line));
        }
    }
    for (n, function) in pf.functions.iter().enumerate() {
        draw_function(parts, function, top + n as u32 * ROW);
    }
    let at = top + (rows - 1) * ROW;
    if let Some(uplink) = &pf.uplink {
        draw_netdev(parts, uplink, "uplink", pf.rdma.as_deref(), RIGHT, at);
        connect(parts, SWITCH + SWITCH_WIDTH, RIGHT, at);
    }
    let mut end = top + height;
    for problem in &pf.problems {
        end += 20;
        parts.push(text(LEFT, end, "bad", &format!("! {problem}")));
    }
    for what in &pf.not_enforced {
        end += 20;
        parts.push(text(LEFT, end, "faint", &format!("not enforced: {what}")));
    }
    end
}

fn draw_function(parts: &mut Vec<String>, function: &Function, top: u32) {
    match (&function.netdev, &function.device) {
        (Some(netdev), _) => draw_netdev(parts, netdev, &function.name, function.rdma.as_deref(), LEFT, top),
        (None, device) => {
            let why = match (device, &function.driver) {
                (None, _) => "on the host",
                (_, None) => "no driver",
                _ => "no netdev",
            };
            parts.push(rect(LEFT, top, BOX_WIDTH, BOX, "away"));
            parts.push(label(LEFT, top + ONE_LINE, &function.name, why, "faint"));
        }
    }
    connect(parts, LEFT + BOX_WIDTH, SWITCH, top);
    if let Some(representor) = &function.representor {
        draw_netdev(parts, representor, "", None, RIGHT, top);
        connect(parts, SWITCH + SWITCH_WIDTH, RIGHT, top);
    }
}

fn draw_netdev(parts: &mut Vec<String>, netdev: &Netdev, name: &str, rdma: Option<&str>, left: u32, top: u32) {
    parts.push(rect(left, top, BOX_WIDTH, BOX, if netdev.elsewhere { "away" } else { "" }));
    let place = match (&netdev.master, netdev.elsewhere) {
        (_, true) => " in a namespace".to_owned(),
        (Some(master), false) => format!(" on {master}"),
        (None, false) => String::new(),
    };
    // With an RDMA device there are two lines.
    let drop = if rdma.is_some() { 15 } else { ONE_LINE };
    parts.push(label(left, top + drop, name, &format!("{}{place}", netdev.name), ""));
    parts.extend(rdma.map(|rdma| text(left + 10, top + 30, "faint", rdma)));
}

/// A name in bold, and what it is.
fn label(left: u32, y: u32, name: &str, what: &str, class: &str) -> String {
    let indent = if name.is_empty() { 0 } else { 8 * name.chars().count() as u32 + 10 };
    let what = text(left + 10 + indent, y, class, what);
    if name.is_empty() { what } else { format!("{}\n{what}", text(left + 10, y, "title", name)) }
}

fn connect(parts: &mut Vec<String>, from: u32, to: u32, top: u32) {
    let y = top + BOX / 2;
    parts.push(format!("<line x1=\"{from}\" y1=\"{y}\" x2=\"{to}\" y2=\"{y}\"/>"));
}

fn rect(x: u32, y: u32, width: u32, height: u32, class: &str) -> String {
    format!("<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"5\"/>")
}

fn text(x: u32, y: u32, class: &str, content: &str) -> String {
    format!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>", escape(content))
}

fn centred(x: u32, y: u32, class: &str, content: &str) -> String {
    format!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", escape(content))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
