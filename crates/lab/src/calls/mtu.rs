//! `ioctl(SIOCSIFMTU)` on a card's netdev, by which `ifconfig` sets the MTU. The kernel does it, up to the limit of a veth.

use std::io;
use std::sync::Arc;

use netlink::Errno;
use rustix::net::netdevice::name_to_index;

use crate::limits::MAX_MTU;
use crate::lock_order::Cx;
use crate::process::{self, Caller, NET_ADMIN};
use crate::supervisor::{Answer, Lab};
use crate::sys::Notification;

use super::{read_text, read_u32};

/// `ioctl(SIOCSIFMTU)`.
pub(super) fn set(cx: Cx<'_, '_>, lab: &Arc<Lab>, call: &Notification) -> Answer {
    // If this fails, the kernel carries the call out and reports its own error.
    match is_refused(cx, lab, call) {
        Ok(true) => Err::<Answer, io::Error>(Errno::INVAL.into()).into(),
        Ok(false) | Err(_) => Answer::Continue,
    }
}

/// Whether the MTU is larger than mlx5's limit for a card's netdev (`dev_validate_mtu`), and the caller may set one.
fn is_refused(cx: Cx<'_, '_>, lab: &Lab, call: &Notification) -> io::Result<bool> {
    let request = call.data.args[2];
    let mtu = read_u32(lab, call, request.wrapping_add(libc::IFNAMSIZ as u64))? as i32;
    if i64::from(mtu) <= i64::from(MAX_MTU) {
        return Ok(false);
    }
    let name = read_text(lab, call, request, libc::IFNAMSIZ)?;
    let socket = process::take_fd(call.pid, call.data.args[0] as u32)?;
    let is_the_cards = lab.cards.netdev_at_socket(cx, &socket, name_to_index(&socket, &name)?).is_some();
    Ok(is_the_cards && Caller::of(call.pid, &lab.user_namespace)?.capabilities & NET_ADMIN != 0)
}
