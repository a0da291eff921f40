//! The bridges and bonds to which netdevs belong, in this process's network namespace.

use std::collections::HashMap;
use std::io;

use netlink::rtnl::{IFINFOMSG, IFLA_IFNAME, IFLA_MASTER, RTM_GETLINK};
use netlink::{Awaited, Flags, Header, Part, attributes, message, messages, u32_at};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

/// Where the index is in a `struct ifinfomsg`.
const INDEX_AT: usize = 4;

/// The netdev to which each netdev belongs, by their names. Empty if the kernel gives no answer.
pub fn masters() -> HashMap<String, String> {
    ask().unwrap_or_default()
}

fn ask() -> io::Result<HashMap<String, String>> {
    let kernel = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let header = Header::new(RTM_GETLINK, Flags::REQUEST | Flags::DUMP, 1, 0);
    let request = message(header, |to| {
        to.raw(&[0; IFINFOMSG]);
    });
    sendto(&kernel, &request.map_err(io::Error::other)?, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let (mut names, mut belongs) = (HashMap::new(), Vec::new());
    let (mut buffer, mut awaited) = (vec![0; 64 * 1024], Awaited::new(1));
    'all: loop {
        let (length, _) = recv(&kernel, &mut buffer[..], RecvFlags::empty())?;
        for message in messages(&buffer[..length]) {
            let link = match awaited.read(message) {
                Part::Data(link) => link,
                Part::End(_) => break 'all,
                Part::Other => continue,
            };
            let Some((fixed, rest)) = link.payload().split_at_checked(IFINFOMSG) else { continue };
            let Some(index) = u32_at(fixed, INDEX_AT) else { continue };
            let mut master = None;
            for attribute in attributes(rest).flatten() {
                match attribute.kind {
                    IFLA_IFNAME => drop(names.insert(index, attribute.text().unwrap_or_default().to_owned())),
                    IFLA_MASTER => master = attribute.u32(),
                    _ => {}
                }
            }
            belongs.extend(master.map(|master| (index, master)));
        }
    }
    let name = |index: &u32| names.get(index).cloned();
    Ok(belongs.iter().filter_map(|(netdev, master)| Some((name(netdev)?, name(master)?))).collect())
}
