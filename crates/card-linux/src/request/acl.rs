//! Requests of traffic control: what a port lets pass.

use std::io;
use std::os::fd::AsRawFd;

use eswitch::MacAddr;
use netlink::tc::{
    RTM_DELTFILTER, RTM_GETQDISC, RTM_GETTFILTER, RTM_NEWTFILTER, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC,
    TC_H_FILTER_EGRESS, TC_H_FILTER_INGRESS, TC_H_INGRESS, TCA_BPF_FD, TCA_BPF_FLAG_ACT_DIRECT, TCA_BPF_FLAGS,
    TCA_BPF_ID, TCA_BPF_OPS, TCA_BPF_OPS_LEN, TCA_KIND, TCA_OPTIONS, TCA_STATS_QUEUE, TCA_STATS2, TCMSG,
};
use netlink::{Builder, Flags, Message, find, u32_at};

use super::NONE;
use super::tie::{every_frame, tcm};
use crate::socket::{Batch, Socket};
use crate::sys::FilterOp;

/// Before ties.
const RULES_PRIORITY: u32 = 1;

/// Of ties by the program: after those that are u32 filters, so that a netdev may have both for a moment.
const TIE_PRIORITY: u32 = 3;

/// A filter of a port. In this order; the rules come before ties, the others after ties and before what limits rates.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// Carries out flow rules, where the kernel has no tcx.
    Rules,
    /// Ties ([`Ties`](crate::ties::Ties)).
    Tie,
    /// Looks at the source addresses of what the function sends.
    Source,
    /// Gives what the function sends its tag.
    Push,
    /// Takes the tag from what the function receives.
    Pop,
    /// Lets what has waited in its class already pass by what limits rates.
    Shaped,
}

impl Place {
    fn header(self, index: u32, handle: u32) -> [u8; TCMSG] {
        let (parent, priority) = match self {
            Self::Rules => (TC_H_FILTER_INGRESS, RULES_PRIORITY),
            Self::Tie => (TC_H_FILTER_INGRESS, TIE_PRIORITY),
            Self::Source => (TC_H_FILTER_INGRESS, 16),
            Self::Push => (TC_H_FILTER_INGRESS, 17),
            Self::Pop => (TC_H_FILTER_EGRESS, 17),
            Self::Shaped => (TC_H_FILTER_EGRESS, 63),
        };
        tcm(index, handle, parent, every_frame(priority))
    }
}

/// The number of a filter's program: with it, another program replaces the one that is there at once.
const ONLY_PROGRAM: u32 = 1;

/// Drops what a netdev receives with another source address. The program is a classic one, which needs no rights beyond
/// those over the namespace.
pub(crate) fn only_source(batch: &mut Batch, index: u32, mac: MacAddr) {
    let [a, b, c, d, e, f] = mac.0;
    let op = |code: u32, jt, jf, k| FilterOp { code: code as u16, jt, jf, k };
    let load = |size| libc::BPF_LD | libc::BPF_ABS | size;
    let (equal, end) = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::BPF_RET | libc::BPF_K);
    // The source address is at offset 6 of a frame.
    let program = [
        op(load(libc::BPF_W), 0, 0, 6),
        op(equal, 0, 3, u32::from_be_bytes([a, b, c, d])),
        op(load(libc::BPF_H), 0, 0, 10),
        op(equal, 0, 1, u32::from_be_bytes([0, 0, e, f])),
        op(end, 0, 0, TC_ACT_UNSPEC),
        op(end, 0, 0, TC_ACT_SHOT),
    ];
    classic(batch, index, Place::Source, &program);
}

/// Has a classic program decide.
fn classic(batch: &mut Batch, index: u32, place: Place, program: &[FilterOp]) {
    let mut bytes = Vec::with_capacity(size_of_val(program));
    for FilterOp { code, jt, jf, k } in program {
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&[*jt, *jf]);
        bytes.extend_from_slice(&k.to_ne_bytes());
    }
    set(batch, index, place, |options| {
        options.u16(TCA_BPF_OPS_LEN, program.len() as u16).put(TCA_BPF_OPS, &bytes);
    });
}

/// Lets frames with this mark pass what comes behind in a netdev's egress. The program is a classic one.
pub(crate) fn pass_marked(batch: &mut Batch, index: u32, mark: u32) {
    let op = |code: u32, jt, jf, k| FilterOp { code: code as u16, jt, jf, k };
    let (equal, end) = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::BPF_RET | libc::BPF_K);
    // SKF_AD_OFF + SKF_AD_MARK of `include/uapi/linux/filter.h`: the mark, in place of a part of the frame.
    const MARK: u32 = 0xffff_f000 + 20;
    let program = [
        op(libc::BPF_LD | libc::BPF_ABS | libc::BPF_W, 0, 0, MARK),
        op(equal, 0, 1, mark),
        op(end, 0, 0, TC_ACT_OK),
        op(end, 0, 0, TC_ACT_UNSPEC),
    ];
    classic(batch, index, Place::Shaped, &program);
}

/// Has a program that is loaded decide.
pub(crate) fn decide(batch: &mut Batch, index: u32, place: Place, program: &impl AsRawFd) {
    set(batch, index, place, |options| {
        options.u32(TCA_BPF_FD, program.as_raw_fd() as u32);
    });
}

fn set(batch: &mut Batch, index: u32, place: Place, program: impl FnOnce(&mut Builder)) {
    batch.push(RTM_NEWTFILTER, Flags::CREATE | Flags::REPLACE, |to| {
        to.raw(&place.header(index, ONLY_PROGRAM)).text(TCA_KIND, "bpf").nest(TCA_OPTIONS, |options| {
            program(options);
            options.u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
        });
    });
}

/// The identifier of the eBPF program that is in a place.
///
/// # Errors
/// The kernel cannot be queried.
pub(crate) fn program_at(socket: &mut Socket, index: u32, place: Place) -> io::Result<Option<u32>> {
    let header = place.header(index, 0);
    let info = u32_at(&header, 16);
    let body = |to: &mut Builder| {
        to.raw(&header);
    };
    let read = |message: &Message<'_>| {
        let is_here = u32_at(message.payload(), 4) == Some(index) && u32_at(message.payload(), 16) == info;
        let options = find(message.after(TCMSG)?, TCA_OPTIONS).filter(|_| is_here)?;
        u32_at(find(options.value, TCA_BPF_ID)?.value, 0)
    };
    Ok(socket.dump(RTM_GETTFILTER, body, read)?.into_iter().next())
}

/// The interface number of a netdev, and how many frames its filters have dropped, from a message about its qdisc for
/// what it receives. `None`: the message is about another qdisc.
fn drops(message: &Message<'_>) -> Option<(u32, u64)> {
    let at = |n| u32_at(message.payload(), n);
    let (index, parent) = (at(4)?, at(12)?);
    let statistics = find(message.after(TCMSG)?, TCA_STATS2).filter(|_| parent == TC_H_INGRESS)?;
    // qlen, backlog, drops, requeues, overlimits
    let drops = u32_at(find(statistics.value, TCA_STATS_QUEUE)?.value, 8)?;
    Some((index, drops.into()))
}

/// How many frames the filters of each netdev have dropped, by the interface number.
///
/// # Errors
/// The kernel cannot be queried.
pub(crate) fn all_drops(socket: &mut Socket) -> io::Result<Vec<(u32, u64)>> {
    let body = |to: &mut Builder| {
        to.raw(&tcm(0, 0, 0, 0));
    };
    socket.dump(RTM_GETQDISC, body, drops)
}

/// Removes what is in a place.
pub(crate) fn remove(batch: &mut Batch, index: u32, place: Place) {
    batch.push(RTM_DELTFILTER, NONE, |to| {
        to.raw(&place.header(index, 0));
    });
}
