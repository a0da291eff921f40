//! Requests of traffic control: what sends every frame that one netdev receives out of another.

use netlink::Flags;
use netlink::tc::{
    RTM_DELTFILTER, RTM_NEWQDISC, RTM_NEWTFILTER, TC_ACT_STOLEN, TC_H_FILTER_INGRESS, TC_H_INGRESS, TC_U32_TERMINAL,
    TCA_ACT_KIND, TCA_ACT_OPTIONS, TCA_EGRESS_REDIR, TCA_KIND, TCA_MIRRED_PARMS, TCA_OPTIONS, TCA_U32_ACT, TCA_U32_SEL,
    TCMSG,
};

use super::{NEW, NONE};
use crate::socket::Batch;

/// The ingress qdisc's own handle.
const INGRESS_HANDLE: u32 = 0xffff_0000;

/// `struct tcmsg`.
pub(super) fn tcm(index: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut header = [0; TCMSG];
    for (place, number) in header[4..].chunks_mut(4).zip([index, handle, parent, info]) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
    header
}

/// The priority of ties that are u32 filters: before any other filter but flow rules ([`super::acl::Place`]).
const TIE_PRIORITY: u32 = 2;

/// A priority and "every protocol", as `tcm_info` has them.
pub(super) fn every_frame(priority: u32) -> u32 {
    priority << 16 | u32::from((libc::ETH_P_ALL as u16).to_be())
}

/// Adds the ingress qdisc to a netdev, which takes its ties. On a netdev that is up this waits for a grace period.
pub(crate) fn ingress(batch: &mut Batch, index: u32) {
    batch.push(RTM_NEWQDISC, NEW, |to| {
        to.raw(&tcm(index, INGRESS_HANDLE, TC_H_INGRESS, 0)).text(TCA_KIND, "ingress");
    });
}

/// The same, with a place for filters of what is sent, too.
pub(crate) fn ingress_and_egress(batch: &mut Batch, index: u32) {
    batch.push(RTM_NEWQDISC, NEW, |to| {
        to.raw(&tcm(index, INGRESS_HANDLE, TC_H_INGRESS, 0)).text(TCA_KIND, "clsact");
    });
}

/// Ties a netdev to another: what it receives is sent out of that one. The tie is a filter that matches
/// every frame, and takes it before a bridge receives it.
pub(crate) fn tie(batch: &mut Batch, index: u32, to: u32) {
    push_tie(batch, NEW, 0, index, to);
}

/// The handles of the first rule of the first and of the second table of a netdev, which the kernel gives to a rule without
/// one. The tie is in the second if what limits rates was there before it ([`super::rates::shape`]).
const FIRST_NODES: [u32; 2] = [0x8000_0800, 0x8010_0800];

fn push_tie(batch: &mut Batch, flags: Flags, handle: u32, index: u32, to_index: u32) {
    put_redirect(batch, flags, &tcm(index, handle, TC_H_FILTER_INGRESS, every_frame(TIE_PRIORITY)), to_index);
}

/// A filter that matches every frame and sends it out of a netdev. `header`: where the filter is.
pub(super) fn put_redirect(batch: &mut Batch, flags: Flags, header: &[u8; TCMSG], to_index: u32) {
    batch.push(RTM_NEWTFILTER, flags, |to| {
        to.raw(header).text(TCA_KIND, "u32").nest(TCA_OPTIONS, |options| {
            options.nest(TCA_U32_ACT, |actions| {
                actions.nest(1, |action| {
                    action.text(TCA_ACT_KIND, "mirred").nest(TCA_ACT_OPTIONS, |options| {
                        // index, capab, action, refcnt, bindcnt, eaction, ifindex
                        let parms = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to_index];
                        options.put(TCA_MIRRED_PARMS, parms.map(u32::to_ne_bytes).as_flattened());
                    });
                });
            });
            let mut no_keys = [0; 16];
            no_keys[0] = TC_U32_TERMINAL;
            options.put(TCA_U32_SEL, &no_keys);
        });
    });
}

/// Ties a netdev that may be tied already, perhaps to one that does not exist any more: the new tie replaces the old
/// one at once.
pub(crate) fn tie_again(batch: &mut Batch, index: u32, to: u32) {
    let [first, second] = FIRST_NODES;
    // In the wrong table there is no such rule, and none can be added (`u32_change`).
    batch.push_either(
        |batch| push_tie(batch, Flags::CREATE, first, index, to),
        |batch| push_tie(batch, Flags::CREATE, second, index, to),
    );
}

/// Removes the tie from a netdev. The qdisc stays, as adding it is what is slow.
pub(crate) fn untie(batch: &mut Batch, index: u32) {
    batch.push(RTM_DELTFILTER, NONE, |to| {
        to.raw(&tcm(index, 0, TC_H_FILTER_INGRESS, every_frame(TIE_PRIORITY)));
    });
}
