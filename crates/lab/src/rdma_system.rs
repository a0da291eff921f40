//! What the RDMA core of a machine's kernel decides about the devices of all cards together
//! (`drivers/infiniband/core/device.c`). What it knows of each device, the cards keep: see [`devlink::RdmaChange`].

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::BorrowedFd;

use devlink::RdmaChange;
use devlink::view::{self, RdmaDevice};
use netlink::Errno;

use crate::cards::{Cards, Views};
use crate::network::NetworkId;
use crate::{mounts, process};

/// Whether a device of a card is seen in a network namespace (`rdma_dev_access_netns`). `view`: that of the card. `network`:
/// `None` if it cannot be identified.
pub(crate) fn is_seen(
    cards: &Cards,
    card: usize,
    view: &view::Card,
    device: &RdmaDevice,
    network: Option<NetworkId>,
) -> bool {
    match (device.netns, network) {
        _ if !view.rdma_exclusive => true,
        (_, None) => false,
        (Some(netns), Some(network)) => network.is(netns),
        (None, Some(network)) => cards.is_home_of(card, network),
    }
}

/// Whether network namespaces share the devices.
pub(crate) fn is_shared(views: &Views) -> bool {
    views.each().all(|(_, view)| !view.card.rdma_exclusive)
}

/// Sets whether network namespaces share the devices (`rdma_compatdev_set`). `process`: the one that asks.
///
/// # Errors
/// EBUSY: there is another network namespace than the lab's own. Or a card refuses.
pub(crate) fn set_shared(cards: &Cards, views: &Views, shared: bool, process: u32) -> Result<(), Errno> {
    let differs = |exclusive: bool| shared == exclusive;
    let differing: Vec<usize> =
        views.each().filter(|(_, view)| differs(view.card.rdma_exclusive)).map(|(card, _)| card).collect();
    if differing.is_empty() {
        return Ok(());
    }
    if has_other_network(cards, process) {
        return Err(Errno::BUSY);
    }
    for (at, card) in differing.iter().enumerate() {
        if let Err(errno) = change(cards, *card, &RdmaChange::Shared(shared), None) {
            // All have the same mode, as they are devices of one machine.
            for before in &differing[..at] {
                let _ = change(cards, *before, &RdmaChange::Shared(!shared), None);
            }
            return Err(errno);
        }
    }
    Ok(())
}

/// Renames a device (`ib_device_rename`).
///
/// # Errors
/// EEXIST: a device of another card has the name. Or the card refuses.
pub(crate) fn rename(cards: &Cards, views: &Views, device: (usize, u32), name: &str) -> Result<(), Errno> {
    let (card, index) = device;
    let mut others = views.each().filter(|(other, _)| *other != card).flat_map(|(_, view)| &view.card.rdma);
    if others.any(|other| other.name == name) {
        return Err(Errno::EXIST);
    }
    change(cards, card, &RdmaChange::Rename { index, name: name.to_owned() }, None)
}

/// Has a card change what it keeps of its devices.
///
/// # Errors
/// It refuses, or is gone.
pub(crate) fn change(
    cards: &Cards,
    card: usize,
    change: &RdmaChange,
    network: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let card = cards.card(card).ok_or(Errno::NODEV)?;
    card.change_rdma(change, network).map_err(|refusal| refusal.errno)
}

/// Whether this machine has another network namespace than the lab's own, which stands for the initial one. Of the machine
/// are the namespaces that have a name where a process is (`ip netns`), and those of the processes there and of the
/// processes that these have started. The cards' own namespaces are not: they are inside the cards.
fn has_other_network(cards: &Cards, process: u32) -> bool {
    let Some(own) = process::network("thread-self") else { return false };
    let inside = cards.each().filter_map(|card| card.network());
    let inside = inside.filter_map(|network| Some(format!("net:[{}]", rustix::fs::fstat(&*network).ok()?.st_ino)));
    let inside: HashSet<Vec<u8>> = inside.map(String::into_bytes).collect();
    let is_other = |network: &[u8]| network != own && !inside.contains(network);
    is_any_named(process, &is_other) || is_any_used(process, &is_other)
}

/// Whether a network namespace that `is_other` is mounted where a process is.
fn is_any_named(process: u32, is_other: &dyn Fn(&[u8]) -> bool) -> bool {
    // The card of another daemon.
    let is_cards = |point: &str| point.rsplit('/').next().is_some_and(|name| name.starts_with("esw-"));
    let mounts = mounts::of(&process.to_string()).unwrap_or_default();
    let mut named = mounts.iter().filter(|mount| mount.kind == "nsfs" && mount.root.starts_with("net:["));
    named.any(|mount| is_other(mount.root.as_bytes()) && !is_cards(&mount.point))
}

/// Whether a process that is in the same mount namespace as `process`, or has a parent there, is in a network namespace that
/// `is_other`.
fn is_any_used(process: u32, is_other: &dyn Fn(&[u8]) -> bool) -> bool {
    let mounts = |process: u32| rustix::fs::readlink(format!("/proc/{process}/ns/mnt"), [0; 64]).ok();
    let Some(here) = mounts(process) else { return false };
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers: Vec<u32> = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let parents: HashMap<u32, u32> =
        numbers.iter().filter_map(|number| Some((*number, process::parent_of(*number).ok()?))).collect();
    let is_here = |first: u32| {
        let ancestors = std::iter::successors(Some(first), |number| parents.get(number).copied());
        // More than that are a circle of numbers that were given again meanwhile.
        ancestors.take(numbers.len()).any(|number| mounts(number).as_ref() == Some(&here))
    };
    let is_in_other = |number: &u32| process::network(&number.to_string()).is_some_and(|network| is_other(&network));
    numbers.iter().any(|number| is_in_other(number) && is_here(*number))
}
