//! Requests about routes and neighbours, and how their answers are read.

use std::io;
use std::net::IpAddr;

use eswitch::MacAddr;
use netlink::rtnl::{
    NDA_DST, NDA_LLADDR, NDMSG, NTF_USE, NUD_DELAY, NUD_NOARP, NUD_PERMANENT, NUD_PROBE, NUD_REACHABLE, NUD_STALE,
    RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PREFSRC, RTA_VIA, RTM_DELNEIGH, RTM_GETNEIGH, RTM_GETROUTE, RTM_NEWNEIGH,
    RTM_NEWROUTE, RTMSG, RTN_UNICAST,
};
use netlink::{Attribute, Errno, Flags, Message, attributes, errno_of};

use super::{NONE, number};
use crate::socket::{Batch, Socket};

/// Where packets to an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The netdev out of which they go.
    pub netdev: u32,
    /// The gateway, if there is one.
    pub gateway: Option<IpAddr>,
    /// The address from which they go.
    pub source: Option<IpAddr>,
}

/// A neighbour as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The netdev behind which it is.
    pub netdev: u32,
    /// Its address.
    pub to: IpAddr,
    /// The state: a bit of `NUD_*`.
    pub state: u16,
    pub mac: Option<MacAddr>,
}

impl Entry {
    /// Its MAC address, if that holds: `NUD_VALID` in `net/neighbour.h`.
    pub(crate) fn valid(&self) -> Option<MacAddr> {
        const VALID: u16 = NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_PROBE | NUD_STALE | NUD_DELAY;
        self.mac.filter(|_| self.state & VALID != 0)
    }

    /// Reads an `RTM_NEWNEIGH` or `RTM_DELNEIGH`. `None` if it is about something else than a neighbour of a netdev.
    pub(crate) fn read(message: &Message<'_>) -> Option<Self> {
        if message.header.kind != RTM_NEWNEIGH && message.header.kind != RTM_DELNEIGH {
            return None;
        }
        let header = message.payload().get(..NDMSG)?;
        let netdev = u32::from_ne_bytes(*header.get(4..)?.first_chunk()?);
        let state = u16::from_ne_bytes(*header.get(8..)?.first_chunk()?);
        let (mut to, mut mac) = (None, None);
        for attribute in attributes(message.after(NDMSG)?).flatten() {
            match attribute.kind {
                NDA_DST => to = address(header[0], attribute.value),
                NDA_LLADDR => mac = attribute.value.try_into().ok().map(MacAddr),
                _ => {}
            }
        }
        Some(Self { netdev, to: to?, state, mac })
    }
}

/// The kernel's number of an address's family.
fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        libc::AF_INET6 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `struct ndmsg`.
fn ndmsg(netdev: u32, to: IpAddr, state: u16, flags: u8) -> [u8; NDMSG] {
    let mut header = [0; NDMSG];
    header[0] = family(to);
    header[4..8].copy_from_slice(&netdev.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

/// Reads an `RTM_NEWROUTE`: a route that leads out of a netdev to a next hop.
fn read_route(message: &Message<'_>) -> Option<Route> {
    let header = message.payload().get(..RTMSG)?;
    if message.header.kind != RTM_NEWROUTE || header[7] != RTN_UNICAST {
        return None;
    }
    let (mut netdev, mut gateway, mut source) = (None, None, None);
    for attribute in attributes(message.after(RTMSG)?).flatten() {
        match attribute.kind {
            RTA_OIF => netdev = Some(number(&attribute)),
            RTA_GATEWAY => gateway = address(header[0], attribute.value),
            RTA_VIA => gateway = via(&attribute),
            RTA_PREFSRC => source = address(header[0], attribute.value),
            _ => {}
        }
    }
    Some(Route { netdev: netdev?, gateway, source })
}

/// Reads a `struct rtvia`.
fn via(attribute: &Attribute<'_>) -> Option<IpAddr> {
    let (family, bytes) = attribute.value.split_first_chunk()?;
    address(u8::try_from(u16::from_ne_bytes(*family)).ok()?, bytes)
}

/// The route to an address, if packets to it go out of a netdev.
///
/// # Errors
/// The kernel cannot be queried.
pub(crate) fn route(socket: &mut Socket, to: IpAddr) -> io::Result<Option<Route>> {
    let mut header = [0; RTMSG];
    let bytes = bytes(to);
    header[0] = family(to);
    header[1] = 8 * bytes.len() as u8;
    let mut found = None;
    let asked = socket.get(
        RTM_GETROUTE,
        |body| {
            body.raw(&header).put(RTA_DST, &bytes);
        },
        |message| found = read_route(message),
    );
    match asked {
        Ok(()) => Ok(found),
        Err(error) if is_no_memory(&error) => Err(error),
        // No route is an error in its own way for each of its reasons: ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL for a
        // route of type `blackhole`, EAFNOSUPPORT without IPv6.
        Err(_) => Ok(None),
    }
}

/// Whether a query failed for a reason that has nothing to do with what was asked.
fn is_no_memory(error: &io::Error) -> bool {
    matches!(errno_of(error), Errno::NOMEM | Errno::NOBUFS)
}

/// A neighbour, if the kernel has an entry for it.
///
/// # Errors
/// The kernel cannot be queried.
pub(crate) fn neighbour(socket: &mut Socket, netdev: u32, to: IpAddr) -> io::Result<Option<Entry>> {
    let mut found = None;
    let asked = socket.get(
        RTM_GETNEIGH,
        |body| {
            body.raw(&ndmsg(netdev, to, 0, 0)).put(NDA_DST, &bytes(to));
        },
        |message| found = Entry::read(message),
    );
    match asked {
        Err(error) if errno_of(&error) == Errno::NOENT || errno_of(&error) == Errno::NODEV => Ok(None),
        outcome => outcome.map(|()| found),
    }
}

/// Has the kernel treat a neighbour as if a packet had just been sent to it: one that is not known is resolved, one
/// that has not been heard of for a while is asked.
pub(crate) fn use_neighbour(batch: &mut Batch, netdev: u32, to: IpAddr) {
    batch.push(RTM_NEWNEIGH, Flags::CREATE, |body| {
        body.raw(&ndmsg(netdev, to, 0, NTF_USE)).put(NDA_DST, &bytes(to));
    });
}

/// Sets a neighbour for good, as `ip neigh replace` does.
pub(crate) fn set_neighbour(batch: &mut Batch, netdev: u32, to: IpAddr, mac: MacAddr) {
    batch.push(RTM_NEWNEIGH, Flags::CREATE | Flags::REPLACE, |body| {
        body.raw(&ndmsg(netdev, to, NUD_PERMANENT, 0)).put(NDA_DST, &bytes(to)).put(NDA_LLADDR, &mac.0);
    });
}

/// Deletes a neighbour, as `ip neigh del` does.
pub(crate) fn delete_neighbour(batch: &mut Batch, netdev: u32, to: IpAddr) {
    batch.push(RTM_DELNEIGH, NONE, |body| {
        body.raw(&ndmsg(netdev, to, 0, 0)).put(NDA_DST, &bytes(to));
    });
}

#[cfg(test)]
mod tests {
    use netlink::rtnl::NUD_FAILED;
    use netlink::{Header, messages};

    use super::*;

    fn message(kind: u16, header: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let written = netlink::message(Header::new(kind, NONE, 0, 0), |to| {
            to.raw(header);
            for (kind, value) in attributes {
                to.put(*kind, value);
            }
        });
        written.unwrap()
    }

    #[test]
    fn only_a_valid_neighbour_has_a_mac_address() {
        let mac = [2, 0, 0, 0, 0, 7];
        let to = IpAddr::from([10, 0, 0, 2]);
        let entry = |state: u16| {
            let header = ndmsg(7, to, state, 0);
            let bytes = message(RTM_NEWNEIGH, &header, &[(NDA_DST, &[10, 0, 0, 2]), (NDA_LLADDR, &mac)]);
            messages(&bytes).next().and_then(|message| Entry::read(&message)).unwrap()
        };
        assert_eq!(entry(NUD_STALE), Entry { netdev: 7, to, state: NUD_STALE, mac: Some(MacAddr(mac)) });
        for valid in [NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE, NUD_NOARP, NUD_PERMANENT] {
            assert_eq!(entry(valid).valid(), Some(MacAddr(mac)), "{valid:#x}");
        }
        for invalid in [0, 1, NUD_FAILED] {
            assert_eq!(entry(invalid).valid(), None, "{invalid:#x}");
        }
    }

    #[test]
    fn routes_are_read_with_gateways_of_both_families() {
        let read = |kind: u8, attributes: &[(u16, &[u8])]| {
            let header = [libc::AF_INET as u8, 32, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0];
            let bytes = message(RTM_NEWROUTE, &header, attributes);
            messages(&bytes).next().and_then(|message| read_route(&message))
        };
        let oif = 7u32.to_ne_bytes();
        let gateway = Some(IpAddr::from([10, 0, 0, 1]));
        assert_eq!(read(RTN_UNICAST, &[(RTA_OIF, &oif)]), Some(Route { netdev: 7, gateway: None, source: None }));
        let with = [(RTA_OIF, &oif[..]), (RTA_GATEWAY, &[10, 0, 0, 1]), (RTA_PREFSRC, &[10, 0, 0, 7])];
        let source = Some(IpAddr::from([10, 0, 0, 7]));
        assert_eq!(read(RTN_UNICAST, &with), Some(Route { netdev: 7, gateway, source }));
        let v6 = [0xfe; 16];
        let via = [&(libc::AF_INET6 as u16).to_ne_bytes()[..], &v6].concat();
        let with = read(RTN_UNICAST, &[(RTA_OIF, &oif), (RTA_VIA, &via)]);
        assert_eq!(with, Some(Route { netdev: 7, gateway: Some(IpAddr::from(v6)), source: None }));
        assert_eq!(read(2, &[(RTA_OIF, &oif)]), None, "an address of this machine");
        assert_eq!(read(RTN_UNICAST, &[]), None);
    }

    #[test]
    fn what_is_cut_short_is_no_panic() {
        for kind in [RTM_NEWNEIGH, RTM_NEWROUTE] {
            for len in 0..12 {
                let bytes = message(kind, &vec![0; len], &[]);
                for message in messages(&bytes) {
                    assert_eq!((Entry::read(&message), read_route(&message)), (None, None), "{len}");
                }
            }
        }
    }
}
