//! Ties: what sends every frame that a port receives out of the inner end of its representor, and back.
//!
//! The numbers of the two ends follow from each other ([`Inside`]), so one small eBPF program ties all of them, without a
//! table: it sends a frame to the end that belongs to the one where it was received. It is a filter at each end. The kernel
//! has no action for each tie then, of which it looks at all whenever a netdev is deleted (`mirred_device_event`).
//!
//! To load the program takes CAP_BPF. Without it a tie is a filter with the action `mirred`.

use std::os::fd::OwnedFd;

use crate::layout::Inside;
use crate::program::{EXIT, call, flip_bits, load, set};
use crate::request;
use crate::request::acl::{self, Place};
use crate::socket::{Batch, Socket};
use crate::sys::{self, Instruction};

/// How a card ties.
#[derive(Debug, Default)]
pub(crate) struct Ties {
    program: Option<OwnedFd>,
}

/// Sends a frame out of the end that belongs to the one where it was received: the numbers of a port and of the inner end
/// differ in their kinds.
fn program() -> [Instruction; 5] {
    /// The offset of `ifindex` in `struct __sk_buff`.
    const IFINDEX: i16 = 40;
    /// BPF_FUNC_redirect.
    const REDIRECT: u32 = 23;
    [load(1, IFINDEX), flip_bits(1, Inside::PORT_OR_INNER), set(2, 0), call(REDIRECT), EXIT]
}

impl Ties {
    /// The ties of a card that is to be made: by the program, if the kernel accepts it at `probe`, a netdev with an ingress
    /// qdisc.
    pub(crate) fn new(inside: &mut Socket, probe: u32) -> Self {
        let accepted =
            |program: &OwnedFd| inside.run_one(|batch| acl::decide(batch, probe, Place::Tie, program)).is_ok();
        Self { program: sys::load_classifier(&program()).ok().filter(accepted) }
    }

    /// The ties of a card that is taken over.
    pub(crate) fn of_found() -> Self {
        Self { program: sys::load_classifier(&program()).ok() }
    }

    /// Whether they are made by the program.
    pub(crate) fn has_program(&self) -> bool {
        self.program.is_some()
    }

    /// Ties an end to the other one of its slot. `is_found`: it may be tied already.
    pub(crate) fn tie(&self, batch: &mut Batch, index: u32, to: u32, is_found: bool) {
        match &self.program {
            Some(program) => acl::decide(batch, index, Place::Tie, program),
            None if is_found => request::tie_again(batch, index, to),
            None => request::tie(batch, index, to),
        }
    }

    /// Unties an end. The qdisc stays, as adding it is what is slow.
    pub(crate) fn untie(&self, batch: &mut Batch, index: u32) {
        match self.program {
            Some(_) => acl::remove(batch, index, Place::Tie),
            None => request::untie(batch, index),
        }
    }

    /// Removes a tie of the other kind from an end that was found: of a process with other rights.
    pub(crate) fn remove_other(&self, batch: &mut Batch, index: u32) {
        match self.program {
            Some(_) => request::untie(batch, index),
            None => acl::remove(batch, index, Place::Tie),
        }
    }
}

#[cfg(test)]
mod tests {
    use eswitch::{PfIndex, Vport};

    use super::*;
    use crate::layout::Slot;

    #[test]
    fn the_number_of_an_end_is_flipped_into_that_of_the_other() {
        for vport in [Vport::Uplink, Vport::HostPf, Vport::Vf(0), Vport::Vf(31_999), Vport::Sf(7)] {
            let slot = Slot { pf: PfIndex(3), vport };
            assert_eq!(slot.port() ^ Inside::PORT_OR_INNER, slot.inner());
            assert_eq!(slot.inner() ^ Inside::PORT_OR_INNER, slot.port());
        }
    }
}
