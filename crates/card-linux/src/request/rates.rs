//! Requests of traffic control: what limits the rate at which functions send.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink::Flags;
use netlink::rtnl::{IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_TXQLEN, RTM_NEWLINK};
use netlink::tc::{
    RTM_DELTCLASS, RTM_DELTFILTER, RTM_GETTCLASS, RTM_NEWQDISC, RTM_NEWTCLASS, RTM_NEWTFILTER, TC_H_FILTER_EGRESS,
    TC_H_FILTER_INGRESS, TC_H_ROOT, TC_HTB_OPT, TC_HTB_PROTOVER, TC_LINKLAYER_ETHERNET, TC_U32_TERMINAL, TCA_BPF_FD,
    TCA_HTB_CEIL64, TCA_HTB_DIRECT_QLEN, TCA_HTB_INIT, TCA_HTB_PARMS, TCA_HTB_RATE64, TCA_KIND, TCA_OPTIONS,
    TCA_U32_CLASSID, TCA_U32_INDEV, TCA_U32_SEL, TCMSG,
};
use netlink::{Message, attributes, u32_at};

use super::tie::{every_frame, put_redirect, tcm};
use super::{NEW, NONE, ifinfo};
use crate::program::{EXIT, keep_bits, load, set, set_bits, skip_unless};
use crate::rates::Class;
use crate::socket::{Batch, Socket};
use crate::sys::Instruction;

/// The handle of the qdisc `htb` on a shaper.
const SHAPER: u32 = 1 << 16;
/// The priority of the filters that redirect to a shaper. They come after those of ties, and after any that drop.
const REDIRECT_PRIORITY: u32 = 64;

/// The number of a filter's rule within the table that the kernel gives to the filter.
const ONLY_NODE: u32 = 1;

/// The handle of a class; 0: of the qdisc.
pub(crate) fn handle(minor: u16) -> u32 {
    SHAPER | u32::from(minor)
}

/// Makes a shaper: a netdev of the kind `ifb`, up, with an empty `htb`. What is redirected to it waits in the class that
/// a filter finds, and then goes on as if it had just arrived where it was redirected from. What no filter matches does
/// not wait.
pub(crate) fn shaper(batch: &mut Batch, index: u32, name: &str) {
    /// Frames that the netdev itself keeps, and that wait without a class.
    const QUEUE: u32 = 1000;
    batch.push(RTM_NEWLINK, NEW, |to| {
        to.raw(&ifinfo(index, Some(true))).text(IFLA_IFNAME, name).u32(IFLA_TXQLEN, QUEUE);
        super::queues(to, 1);
        to.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "ifb");
        });
    });
    batch.push(RTM_NEWQDISC, NEW, |to| {
        to.raw(&tcm(index, SHAPER, TC_H_ROOT, 0)).text(TCA_KIND, "htb").nest(TCA_OPTIONS, |options| {
            // version, rate2quantum, defcls, debug, direct_pkts
            let init = [TC_HTB_PROTOVER, 10, 0, 0, 0];
            options.put(TCA_HTB_INIT, init.map(u32::to_ne_bytes).as_flattened()).u32(TCA_HTB_DIRECT_QLEN, QUEUE);
        });
    });
}

/// Makes a class of a shaper or, unless `is_new`, changes it.
pub(crate) fn class(batch: &mut Batch, index: u32, minor: u16, class: &Class, is_new: bool) {
    batch.push(RTM_NEWTCLASS, if is_new { NEW } else { NONE }, |to| {
        to.raw(&tcm(index, handle(minor), handle(class.parent), 0)).text(TCA_KIND, "htb").nest(
            TCA_OPTIONS,
            |options| {
                options.put(TCA_HTB_PARMS, &htb_opt(class));
                options.put(TCA_HTB_RATE64, &class.rate.to_ne_bytes()).put(TCA_HTB_CEIL64, &class.ceil.to_ne_bytes());
            },
        );
    });
    if let Some(limit) = class.queue {
        batch.push(RTM_NEWQDISC, Flags::CREATE | Flags::REPLACE, |to| {
            to.raw(&tcm(index, 0, handle(minor), 0)).text(TCA_KIND, "bfifo").put(TCA_OPTIONS, &limit.to_ne_bytes());
        });
    }
}

/// Deletes a class of a shaper, which has no children and no filter.
pub(crate) fn delete_class(batch: &mut Batch, index: u32, minor: u16) {
    batch.push(RTM_DELTCLASS, NONE, |to| {
        to.raw(&tcm(index, handle(minor), 0, 0));
    });
}

/// The frames that a shaper was given by the netdev `from`, a name, wait in a class.
pub(crate) fn classify(batch: &mut Batch, index: u32, minor: u16, from: &str) {
    batch.push(RTM_NEWTFILTER, NEW, |to| {
        let header = tcm(index, ONLY_NODE, SHAPER, every_frame(minor.into()));
        to.raw(&header).text(TCA_KIND, "u32").nest(TCA_OPTIONS, |options| {
            options.u32(TCA_U32_CLASSID, handle(minor)).text(TCA_U32_INDEV, from);
            let mut no_keys = [0; 16];
            no_keys[0] = TC_U32_TERMINAL;
            options.put(TCA_U32_SEL, &no_keys);
        });
    });
}

/// Has a program find the class of every frame that no other filter finds one for.
pub(crate) fn classify_by(batch: &mut Batch, index: u32, program: &OwnedFd) {
    batch.push(RTM_NEWTFILTER, Flags::CREATE | Flags::REPLACE, |to| {
        let header = tcm(index, ONLY_NODE, SHAPER, every_frame(u16::MAX.into()));
        to.raw(&header).text(TCA_KIND, "bpf").nest(TCA_OPTIONS, |options| {
            options.u32(TCA_BPF_FD, program.as_raw_fd() as u32);
        });
    });
}

/// The program for [`classify_by`]. The card's ends of netdevs have numbers whose lower half is that of the vport, which is
/// the minor number of the class. `host_pf`: the minor number for vport 0.
pub(crate) fn class_of_vport(host_pf: u16) -> [Instruction; 6] {
    /// The offset of `ingress_ifindex` in `struct __sk_buff`: the netdev where the frame was redirected.
    const FROM: i16 = 36;
    [load(0, FROM), keep_bits(0, 0xffff), skip_unless(0, 0, 1), set(0, host_pf.into()), set_bits(0, SHAPER), EXIT]
}

/// Removes what [`classify`] has added.
pub(crate) fn unclassify(batch: &mut Batch, index: u32, minor: u16) {
    batch.push(RTM_DELTFILTER, NONE, |to| {
        to.raw(&tcm(index, 0, SHAPER, every_frame(minor.into())));
    });
}

fn parent_of_filter(egress: bool) -> u32 {
    if egress { TC_H_FILTER_EGRESS } else { TC_H_FILTER_INGRESS }
}

/// Sends what a netdev receives, or with `egress` what is sent on it, to a shaper first. If it does so already, the
/// kernel answers `NOSPC`: the number of the filter's rule is taken.
///
/// A frame goes there once: what an `ifb` gives back skips the filters where it was redirected (`tc_skip_classify` in
/// `ifb_ri_tasklet`, which `__netif_receive_skb_core` and `tcf_action_exec` honour).
pub(crate) fn shape(batch: &mut Batch, index: u32, egress: bool, shaper: u32) {
    let header = tcm(index, ONLY_NODE, parent_of_filter(egress), every_frame(REDIRECT_PRIORITY));
    put_redirect(batch, NEW, &header, shaper);
}

/// Removes what [`shape`] has added.
pub(crate) fn unshape(batch: &mut Batch, index: u32, egress: bool) {
    batch.push(RTM_DELTFILTER, NONE, |to| {
        to.raw(&tcm(index, 0, parent_of_filter(egress), every_frame(REDIRECT_PRIORITY)));
    });
}

/// `struct tc_htb_opt`.
fn htb_opt(class: &Class) -> [u8; TC_HTB_OPT] {
    let rate = |rate: u64| u32::try_from(rate).unwrap_or(u32::MAX);
    let mut opt = [0; TC_HTB_OPT];
    for (at, of) in [(0, class.rate), (12, class.ceil)] {
        // cell_log, linklayer, overhead, cell_align, mpu, rate
        opt[at + 1] = TC_LINKLAYER_ETHERNET;
        opt[at + 8..at + 12].copy_from_slice(&rate(of).to_ne_bytes());
    }
    // buffer, cbuffer, quantum, level, prio
    let rest = [burst_ticks(class.rate), burst_ticks(class.ceil), class.quantum, 0, class.priority];
    opt[24..].copy_from_slice(rest.map(u32::to_ne_bytes).as_flattened());
    opt
}

/// The length of a burst at a rate, in the kernel's ticks of 64 ns: what is sent in 10 ms, so that a timer that is late
/// loses nothing, and two frames at least.
fn burst_ticks(rate: u64) -> u32 {
    const NS_PER_TICK: u64 = 64;
    let two_frames = 2 * 1514 * 1_000_000_000 / rate.max(1);
    u32::try_from(two_frames.max(10_000_000) / NS_PER_TICK).unwrap_or(u32::MAX)
}

/// The classes of a shaper, by minor number. How long their queues are is not known.
///
/// # Errors
/// The kernel cannot be queried.
pub(crate) fn classes(socket: &mut Socket, index: u32) -> io::Result<Vec<(u16, Class)>> {
    let body = |to: &mut netlink::Builder| {
        to.raw(&tcm(index, 0, 0, 0));
    };
    socket.dump(RTM_GETTCLASS, body, read_class)
}

fn read_class(message: &Message<'_>) -> Option<(u16, Class)> {
    if message.header.kind != RTM_NEWTCLASS {
        return None;
    }
    let (handle, parent) = (u32_at(message.payload(), 8)?, u32_at(message.payload(), 12)?);
    if handle & 0xffff_0000 != SHAPER {
        return None;
    }
    let mut class = Class { parent: if parent == TC_H_ROOT { 0 } else { parent as u16 }, ..Class::default() };
    let options = attributes(message.after(TCMSG)?).flatten().find(|attribute| attribute.kind == TCA_OPTIONS)?;
    for attribute in options.nested().flatten() {
        let number = || Some(u64::from_ne_bytes(*attribute.value.first_chunk()?));
        match attribute.kind {
            TCA_HTB_PARMS => {
                let at = |n: usize| u32_at(attribute.value, n);
                (class.rate, class.ceil) = (at(8)?.into(), at(20)?.into());
                (class.quantum, class.priority) = (at(32)?, at(40)?);
            }
            TCA_HTB_RATE64 => class.rate = number()?,
            TCA_HTB_CEIL64 => class.ceil = number()?,
            _ => {}
        }
    }
    Some((handle as u16, class))
}
