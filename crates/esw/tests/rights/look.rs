//! The state of the kernel and of the card, read by root outside any lab.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use ::netlink::{Flags, attributes, find};
use devlink::numbers::{attribute, command};
use devlink::{Client, ClientError, DEVLINK, ESWITCH, eswitch_family};

use crate::netlink::{Protocol, Sockets, request};
use crate::sys;

const IFF_UP: u32 = 1;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    ::netlink::u32_at(bytes, at).unwrap_or(0)
}

/// All of one kind that the kernel has in this network namespace.
fn dump(kind: u16, header: &[u8]) -> Vec<Vec<u8>> {
    let request = request(kind, Flags::DUMP, |to| {
        to.raw(header);
    });
    let answers = Sockets::default().ask(Protocol::Route, &request).expect("a dump of the kernel's");
    answers.into_iter().map(|(_, body)| body).collect()
}

/// Netdevs, addresses, routes, neighbours and queueing disciplines of this network namespace: a line for each.
/// IPv6 gives out addresses by itself, so it is left out.
pub fn kernel() -> String {
    const INET: u8 = 2;
    let links = dump(18, &[0; 16]);
    let text = |link: &[u8], kind| find(&link[16..], kind).and_then(|a| a.text().map(str::to_owned));
    let names: BTreeMap<u32, String> =
        links.iter().map(|link| (u32_at(link, 4), text(link, 3).unwrap_or_default())).collect();
    let name = |index: u32| names.get(&index).map_or("", String::as_str);
    let mut lines = Vec::new();
    for link in &links {
        let (this, number) = (name(u32_at(link, 4)), |kind| find(&link[16..], kind).and_then(|a| a.u32()));
        let address = find(&link[16..], 1).map(|a| a.value.to_vec());
        let (mtu, master, length, group) = (number(4), number(10).map(name), number(13), number(27));
        let (_, gso) = sys::ethtool(this, sys::GET_SEGMENTATION, 0);
        lines.push(format!(
            "link {this} up {} mtu {mtu:?} address {address:x?} master {master:?} txqlen {length:?} group {group:?} alias \
             {:?} gso {gso}",
            u32_at(link, 8) & IFF_UP != 0,
            text(link, 20)
        ));
    }
    for address in dump(22, &[INET, 0, 0, 0, 0, 0, 0, 0]) {
        let local = find(&address[8..], 2).map(|a| a.value.to_vec());
        lines.push(format!("addr {} {local:?}/{}", name(u32_at(&address, 4)), address[1]));
    }
    for route in dump(26, &[INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) {
        let (to, out) = (find(&route[12..], 1), find(&route[12..], 4).and_then(|a| a.u32()).map(name));
        lines.push(format!("route {:?}/{} table {} dev {out:?}", to.map(|a| a.value.to_vec()), route[1], route[4]));
    }
    for neighbour in dump(30, &[INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) {
        let to = find(&neighbour[12..], 1).map(|a| a.value.to_vec());
        lines.push(format!("neigh {to:?} dev {}", name(u32_at(&neighbour, 4))));
    }
    for qdisc in dump(38, &[0; 20]) {
        // A netdev that was once up has this one, that does nothing.
        if let Some(kind) = find(&qdisc[20..], 1).and_then(|a| a.text()).filter(|kind| *kind != "noqueue") {
            lines.push(format!("qdisc {kind} {:x} dev {}", u32_at(&qdisc, 8), name(u32_at(&qdisc, 4))));
        }
    }
    lines.sort();
    lines.join("\n")
}

/// The whole state of a card: its view, and what devlink shows of it.
pub fn card(client: &mut Client) -> Result<String, ClientError> {
    let pieces = client.dump(ESWITCH, eswitch_family::VIEW, |_| {})?;
    let view = String::from_utf8_lossy(&devlink::join_pieces(&pieces)).into_owned();
    let mut said = without_numbers(&view).replace(",{", ",\n{");
    for dump in [command::PORT_GET, command::RATE_GET, command::PARAM_GET] {
        for answer in client.dump(DEVLINK, dump, |_| {})? {
            let _ = write!(said, "\ndevlink {dump}");
            // What is made anew gets another number.
            let lasting = attributes(&answer.attributes).flatten().filter(|a| a.kind != attribute::PORT_NETDEV_IFINDEX);
            for attribute in lasting {
                let _ = write!(said, " {}={:x?}", attribute.kind, attribute.value);
            }
        }
    }
    for pf in crate::rows::PFS {
        let answers = client.ask(DEVLINK, command::ESWITCH_GET, |to| crate::rows::handle(to, pf));
        // A PF that is unbound, or off the bus, has none.
        let answers = answers.map(|answers| answers.into_iter().map(|a| a.attributes).collect::<Vec<_>>());
        let _ = write!(said, "\neswitch {pf} {:x?}", answers.ok());
    }
    Ok(said)
}

/// JSON without the numbers of RDMA devices, which are others when a device is made anew.
fn without_numbers(json: &str) -> String {
    let mut parts = json.split("\"index\":");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// The device of the SF that is active, on the auxiliary bus.
pub fn sf_of(card: &str) -> Option<String> {
    const NAME: &str = "mlx5_core.sf.";
    let (_, rest) = card.split_once(NAME)?;
    Some(format!("{NAME}{}", rest.split('"').next()?))
}

/// Every file below these folders that any user may write, except those of the machine's own devices.
pub fn writable(folder: &str, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let (path, Ok(meta)) = (entry.path().to_string_lossy().into_owned(), entry.metadata()) else { continue };
        if meta.is_dir() {
            writable(&path, found);
        } else if meta.is_file() && std::os::unix::fs::MetadataExt::mode(&meta) & 0o222 != 0 {
            found.push(path);
        }
    }
}
