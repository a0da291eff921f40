//! `ethtool -i`: the driver of a card's netdev. The kernel would name that of a veth.

use std::fs;
use std::io;
use std::sync::Arc;

use devlink::view::{Netdev, Profile};

use crate::lock_order::Cx;
use crate::process;
use crate::supervisor::{Answer, Lab};
use crate::sys::{self, DriverInfo, Notification};

use super::{read, read_text, read_u32, write};

const GDRVINFO: u32 = 3;
/// The offsets of the texts in `struct ethtool_drvinfo`; each has 32 bytes.
const DRIVER: usize = 4;
const VERSION: usize = 36;
const FIRMWARE: usize = 68;
const BUS_INFO: usize = 100;
const TEXT: usize = 32;

/// `ioctl(SIOCETHTOOL)`.
pub(super) fn ioctl(cx: Cx<'_, '_>, lab: &Arc<Lab>, call: &Notification) -> Answer {
    // If this fails, the kernel carries the call out and reports its own error.
    answer(cx, lab, call).unwrap_or(Answer::Continue)
}

fn answer(cx: Cx<'_, '_>, lab: &Lab, call: &Notification) -> io::Result<Answer> {
    let request = call.data.args[2];
    let data = u64::from_ne_bytes(read(lab, call, request.wrapping_add(libc::IFNAMSIZ as u64))?);
    if read_u32(lab, call, data)? != GDRVINFO {
        return Ok(Answer::Continue);
    }
    let name = read_text(lab, call, request, libc::IFNAMSIZ)?;
    // Its network namespace is the one in which the kernel looks the name up.
    let socket = process::take_fd(call.pid, call.data.args[0] as u32)?;
    let Some(netdev) = lab.cards.netdev_named(cx, &socket, &name) else { return Ok(Answer::Continue) };
    // The kernel answers first: it fills in the numbers, and knows whether the netdev still exists.
    let mut info = sys::driver_info(&socket, &name)?;
    describe(&mut info, &netdev.view.card.profile, &netdev);
    write(lab, call, data, &info)?;
    Ok(Answer::Value(0))
}

/// Replaces the texts of the kernel's answer by the card's.
fn describe(info: &mut DriverInfo, profile: &Profile, netdev: &Netdev) {
    let mut put = |at: usize, text: &str| {
        let len = text.len().min(TEXT - 1);
        info[at..at + TEXT].fill(0);
        info[at..at + len].copy_from_slice(&text.as_bytes()[..len]);
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    put(DRIVER, &netdev.driver);
    put(VERSION, release.trim());
    put(FIRMWARE, &format!("{} ({})", profile.firmware, profile.board));
    put(BUS_INFO, &netdev.bus_info);
}
