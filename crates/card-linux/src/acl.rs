//! What the ports of the legacy switch let pass: the spoof check and the VLAN of a function.
//!
//! Both are filters at the card's end of the function's netdev, where the function cannot take them away. The spoof check
//! is a classic BPF program in the filter, which anyone who has the namespace may add. The kernel's action for VLAN tags is
//! not everywhere, and a bridge that knows VLANs is not either; so a tag is pushed and popped by two small eBPF programs.
//! To load these takes CAP_BPF: a card without root refuses a VLAN as mlx5 does where the firmware cannot insert tags
//! (`modify_esw_vport_cvlan`).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

use eswitch::Vport;
use eswitch::card::{Acl, CardError, Resource, Tag};
use eswitch::datapath;
use eswitch::vf::ETH_P_8021Q;
use flow::Port;
use netlink::Errno;
use netlink::tc::{TC_ACT_SHOT, TC_ACT_STOLEN, TC_ACT_UNSPEC};

use crate::books::{Books, slot_of};
use crate::layout::Slot;
use crate::operation::Operation;
use crate::program::{EXIT, call, keep_bits, load, set, skip_if, skip_unless};
use crate::refused::{refused, refused_io};
use crate::request::acl::{self as request, Place};
use crate::socket::{Batch, Failure};
use crate::sys::{self, Instruction};

/// An access list whose programs are loaded. The filters keep them when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    acl: Acl,
    push_and_pop: Option<[OwnedFd; 2]>,
}

impl Loaded {
    /// Loads the programs of an access list.
    ///
    /// # Errors
    /// This process may not, or the kernel has no eBPF.
    pub(crate) fn new(acl: Acl) -> Result<Self, CardError> {
        let load = |tag| Ok([sys::load_classifier(&push(tag))?, sys::load_classifier(&pop(tag))?]);
        let push_and_pop = acl.tag.map(load).transpose().map_err(|error: io::Error| not_here(&error))?;
        Ok(Self { acl, push_and_pop })
    }

    /// Adds the filters of the list to a netdev. What is there already is replaced.
    pub(crate) fn push(&self, batch: &mut Batch, index: u32) {
        if let Some(mac) = self.acl.source {
            request::only_source(batch, index, mac);
        }
        if let Some([push, pop]) = &self.push_and_pop {
            request::decide(batch, index, Place::Push, push);
            request::decide(batch, index, Place::Pop, pop);
        }
    }
}

/// The error for a program that the kernel has not loaded: VLANs are not supported if it never would.
fn not_here(error: &io::Error) -> CardError {
    match refused_io("loading what pushes and pops VLAN tags", error) {
        CardError::Kernel { call, errno: libc::EPERM | libc::EACCES | libc::ENOSYS, text, .. } => CardError::Kernel {
            call,
            errno: Errno::OPNOTSUPP.raw_os_error(),
            text,
            hint: "; a VF's VLAN needs CAP_BPF, as root has it, and CONFIG_BPF_SYSCALL".to_owned(),
        },
        other => other,
    }
}

/// Offsets in `struct __sk_buff`.
const VLAN_PRESENT: i16 = 20;
const VLAN_TCI: i16 = 24;
/// BPF_FUNC_*.
const SKB_VLAN_PUSH: u32 = 18;
const SKB_VLAN_POP: u32 = 19;

/// Gives a frame the tag, and drops it if it has one: mlx5's ACL asks for frames without (`vst_check_cvlan`).
fn push(tag: Tag) -> [Instruction; 10] {
    [
        load(0, VLAN_PRESENT),
        skip_unless(0, 0, 6),
        set(2, u32::from(ETH_P_8021Q.to_be())),
        set(3, u32::from(tag.vlan) | u32::from(tag.priority) << 13),
        call(SKB_VLAN_PUSH),
        skip_unless(0, 0, 2),
        set(0, TC_ACT_UNSPEC),
        EXIT,
        set(0, TC_ACT_SHOT),
        EXIT,
    ]
}

/// Takes the tag from a frame of the VLAN, and drops others. It drops them without counting: the kernel counts what the
/// filters of a netdev drop for both directions together, and that number is to be what the function has sent.
fn pop(tag: Tag) -> [Instruction; 11] {
    [
        load(0, VLAN_PRESENT),
        skip_if(0, 0, 7),
        load(2, VLAN_TCI),
        // The number without priority and DEI.
        keep_bits(2, 0xfff),
        skip_unless(2, tag.vlan.into(), 4),
        call(SKB_VLAN_POP),
        skip_unless(0, 0, 2),
        set(0, TC_ACT_UNSPEC),
        EXIT,
        set(0, TC_ACT_STOLEN),
        EXIT,
    ]
}

impl Books {
    /// What a slot's port lets pass.
    pub(crate) fn acl(&self, slot: Slot) -> Acl {
        self.resources.get(&Resource::Port(slot.pf, slot.vport)).map(|entry| entry.acl).unwrap_or_default()
    }

    /// Removes those filters of a list from all ports that have none of them in the books: a dead process may have set
    /// them. `with_rules`: the ports whose rules are carried out, where there is no tcx, by a filter that stays.
    pub(crate) fn push_no_acls(&self, batch: &mut Batch, with_rules: &BTreeSet<Port>) {
        for (slot, ends) in &self.ends {
            if ends.port && !with_rules.contains(&datapath::port(slot.pf, slot.vport)) {
                request::remove(batch, slot.port(), Place::Rules);
            }
            if ends.port && matches!(slot.vport, Vport::Vf(_)) {
                push_absent(batch, slot.port(), self.acl(*slot));
            }
        }
    }
}

/// Removes the filters that a list does not have.
fn push_absent(batch: &mut Batch, index: u32, acl: Acl) {
    if acl.source.is_none() {
        request::remove(batch, index, Place::Source);
    }
    if acl.tag.is_none() {
        request::remove(batch, index, Place::Push);
        request::remove(batch, index, Place::Pop);
    }
}

impl Operation<'_> {
    /// Has a port let pass what a list lets pass.
    pub(crate) fn set_acl(&mut self, port: &Resource, acl: Acl) -> Result<(), CardError> {
        let slot = slot_of(port);
        let before = self.books().acl(slot);
        let loaded = Loaded::new(acl)?;
        if self.books().ends(slot).port {
            let failures = self.run_built(|_, batch| loaded.push(batch, slot.port()));
            let failure =
                failures.first().filter(|failure| failure.errno != Errno::NODEV || !self.has_gone(slot.port()));
            if let Some(failure) = failure {
                self.restore_acl(slot, before);
                return Err(refused_acl(&format!("setting what {port} lets pass"), failure));
            }
            // If there is no such filter, that is as good.
            self.run_built(|_, batch| push_absent(batch, slot.port(), acl));
        }
        let mut books = self.books();
        match books.resources.get_mut(port) {
            Some(entry) => entry.acl = acl,
            None => books.complaints.push(format!("{port} given an access list and was not there")),
        }
        Ok(())
    }

    /// Makes the filters of a port as they were, as far as the kernel lets that happen.
    fn restore_acl(&mut self, slot: Slot, acl: Acl) {
        self.run_built(|_, batch| push_absent(batch, slot.port(), acl));
        if let Ok(loaded) = Loaded::new(acl) {
            self.run_built(|_, batch| loaded.push(batch, slot.port()));
        }
    }
}

/// The error for a filter that the kernel has refused.
pub(crate) fn refused_acl(call: &str, failure: &Failure) -> CardError {
    match refused(call, failure, None) {
        CardError::Kernel { call, errno, text, .. } if errno == Errno::NOENT.raw_os_error() => CardError::Kernel {
            call,
            errno: Errno::OPNOTSUPP.raw_os_error(),
            text,
            hint: "; the kernel needs CONFIG_NET_CLS_BPF (`modprobe cls_bpf`)".to_owned(),
        },
        error => error,
    }
}
