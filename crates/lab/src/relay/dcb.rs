//! Data center bridging (`net/dcb/dcbnl.c`): what `dcb` and `mlnx_qos` show of a PF.
//!
//! A PF has the settings with which mlx5 starts (`mlx5e_ets_init`, `mlx5e_dcbnl_initialize` in `en_dcbnl.c`), and they
//! cannot be changed: the card has one queue for all priorities. The driver of a VF, an SF or a representor has no DCB, nor has
//! a veth: there the kernel answers.

use devlink::view::Role;
use netlink::{Errno, Flags, Header, Message, find, message};

use super::Relay;
use crate::lock_order::Cx;

/// RTM_GETDCB and RTM_SETDCB.
pub(super) const GET: u16 = 78;
pub(super) const SET: u16 = 79;

/// `struct dcbmsg`: a family, a command, and two bytes that are not used.
const DCBMSG: usize = 4;

/// `enum dcbnl_commands`.
mod command {
    pub const IEEE_SET: u8 = 20;
    pub const IEEE_GET: u8 = 21;
    pub const GET_DCBX: u8 = 22;
    pub const SET_DCBX: u8 = 23;
    pub const IEEE_DEL: u8 = 27;
}

/// `enum dcbnl_attrs`, and `enum ieee_attrs` for what is in `IEEE`.
mod attribute {
    pub const IFNAME: u16 = 1;
    pub const IEEE: u16 = 13;
    pub const DCBX: u16 = 14;
    pub const ETS: u16 = 1;
    pub const PFC: u16 = 2;
    pub const APP_TABLE: u16 = 3;
    pub const MAXRATE: u16 = 7;
}

/// Traffic classes, and priorities: IEEE_8021QAZ_MAX_TCS.
const CLASSES: usize = 8;
/// IEEE_8021QAZ_TSA_VENDOR.
const VENDOR: u8 = 255;
/// MLX5E_MAX_BW_ALLOC, in percent.
const ALL: u8 = 100;
/// MLX5E_DEFAULT_CABLE_LEN, in metres.
const CABLE: u16 = 7;
/// DCB_CAP_DCBX_HOST, DCB_CAP_DCBX_VER_CEE and DCB_CAP_DCBX_VER_IEEE: the operating system does DCBX, not the firmware.
const DCBX: u8 = 0x01 | 0x04 | 0x08;

/// `struct ieee_ets`. Priority 0 is in class 1 and priority 1 in class 0, and every other in the class of its number: class 0
/// is the lowest.
fn ets() -> Vec<u8> {
    let mut classes = [0, 1, 2, 3, 4, 5, 6, 7];
    classes.swap(0, 1);
    let none = [0; CLASSES];
    let header = [0, CLASSES as u8, 0];
    [&header[..], &[ALL; CLASSES], &none, &[VENDOR; CLASSES], &classes, &none, &none, &none].concat()
}

/// `struct ieee_pfc`: no priority is paused, and nothing was.
fn pfc() -> Vec<u8> {
    let mut bytes = vec![0; 8 + 2 * 8 * CLASSES];
    bytes[0] = CLASSES as u8;
    bytes[4..6].copy_from_slice(&CABLE.to_ne_bytes());
    bytes
}

/// Answers a request about a PF, and returns `true`. Every other is the kernel's.
pub(super) fn answer(cx: Cx<'_, '_>, relay: &mut Relay, request: &Message<'_>) -> bool {
    let kind = request.header.kind;
    if !matches!(kind, GET | SET) || !request.header.is_request() || !is_of_pf(cx, relay, request) {
        return false;
    }
    let Some(&[_, command, ..]) = request.payload().get(..DCBMSG) else { return false };
    let outcome = match command {
        _ if kind == SET && !relay.may_administer() => Err(Errno::PERM),
        command::IEEE_SET | command::IEEE_DEL | command::SET_DCBX => Err(Errno::OPNOTSUPP),
        command::IEEE_GET | command::GET_DCBX => {
            let port = relay.socket.port_to_send_from(cx);
            show(request, command, port).map(|answer| relay.send_message(&answer)).map_err(Errno::from)
        }
        _ => return false,
    };
    if outcome.is_err() || request.header.flags.contains(Flags::ACK) {
        relay.acknowledge(cx, request, outcome, |_| {});
    }
    true
}

fn show(request: &Message<'_>, command: u8, port: u32) -> Result<Vec<u8>, netlink::BuildError> {
    let name = name_in(request).unwrap_or_default();
    message(Header::new(GET, Flags::empty(), request.header.sequence, port), |to| {
        to.raw(&[0, command, 0, 0]).text(attribute::IFNAME, name);
        if command == command::IEEE_GET {
            to.nest_noflag(attribute::IEEE, |ieee| {
                ieee.put(attribute::ETS, &ets()).put(attribute::MAXRATE, &[0; 8 * CLASSES]);
                ieee.put(attribute::PFC, &pfc()).nest_noflag(attribute::APP_TABLE, |_| {});
            });
        }
        to.u8(attribute::DCBX, DCBX);
    })
}

fn name_in<'a>(request: &Message<'a>) -> Option<&'a str> {
    find(request.after(DCBMSG)?, attribute::IFNAME)?.string()
}

fn is_of_pf(cx: Cx<'_, '_>, relay: &Relay, request: &Message<'_>) -> bool {
    let index = || rustix::net::netdevice::name_to_index(&relay.socket.kernel, name_in(request)?).ok();
    let Some((index, network)) = index().zip(relay.network(cx)) else { return false };
    relay.cards.netdev_at(cx, &network, index).is_some_and(|netdev| netdev.role == Role::Pf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!((ets().len(), pfc().len()), (59, 136));
    }
}
