//! Network namespaces of devlink instances. A program sees the instances of the network namespace of its socket, and moves
//! one to another namespace with `devlink dev reload DEV netns NAME`.

use std::os::fd::OwnedFd;

use ::netlink::{Errno, GENL_HEADER, Message, attributes, errno_of, find, nlmsgerr_attr, row};
use devlink::numbers::{attribute, command, own};
use devlink::view::DeviceName;

use super::{End, Relay};
use crate::cards::Views;
use crate::lock_order::Cx;
use crate::network::NetworkId;
use crate::{process, sys};

/// The network namespace to which a request moves a devlink instance, if it does (`devlink_netns_get` in
/// `net/devlink/dev.c`). The numbers in a request are those of the program.
///
/// # Errors
/// The answer to a request that names a namespace which the program does not have, or to which it may move nothing.
pub(super) fn target(relay: &Relay, request: &Message<'_>) -> Result<Option<OwnedFd>, End> {
    if request.payload().first() != Some(&command::RELOAD) {
        return Ok(None);
    }
    let number = |kind| find(request.after(GENL_HEADER).unwrap_or_default(), kind)?.u32();
    let sender = relay.sender.process;
    let named = match [attribute::NETNS_PID, attribute::NETNS_FD, attribute::NETNS_ID].map(number) {
        [Some(pid), None, None] => process::open_network(pid).map(OwnedFd::from),
        [None, Some(fd), None] => process::take_fd(sender, fd),
        // An id of the program's own namespace for another one is not looked up.
        [None, None, Some(_)] => Err(Errno::INVAL.into()),
        // There is none, or several: the server refuses several.
        _ => return Ok(None),
    };
    let netns = named.ok().filter(|netns| NetworkId::of_namespace(netns).is_ok_or_forbidden());
    let Some(netns) = netns else {
        return Err(refusal(Errno::INVAL, "Unknown network namespace"));
    };
    // A capability in a user namespace counts in those below it, and the request has one in the lab's.
    match sys::owner_of_namespace(&netns) {
        Ok(_) => Ok(Some(netns)),
        Err(error) if errno_of(&error) == Errno::PERM => Err(End::bare(Err(Errno::PERM))),
        Err(_) => Err(refusal(Errno::INVAL, "Unknown network namespace")),
    }
}

/// Whether a descriptor is one of a network namespace, be it one that this process may not enter.
trait IsNamespace {
    fn is_ok_or_forbidden(&self) -> bool;
}

impl IsNamespace for std::io::Result<NetworkId> {
    fn is_ok_or_forbidden(&self) -> bool {
        self.as_ref().err().is_none_or(|error| errno_of(error) == Errno::PERM)
    }
}

fn refusal(errno: Errno, why: &str) -> End {
    let extended = row(|to| {
        to.text(nlmsgerr_attr::MSG, why);
    });
    End { extended: extended.unwrap_or_default(), ..End::bare(Err(errno)) }
}

/// The device whose instance a message is about.
fn device_of(message: &Message<'_>) -> Option<DeviceName> {
    let content = message.after(GENL_HEADER)?;
    let text = |kind| find(content, kind)?.string();
    DeviceName::parse(text(attribute::BUS_NAME)?, text(attribute::DEV_NAME)?)
}

/// Whether the instance that a message is about is in a network namespace. A message that is about none is for all.
fn is_in(relay: &Relay, views: &Views, message: &Message<'_>, network: NetworkId) -> bool {
    let Some(device) = device_of(message) else { return true };
    match views.owner(device) {
        Some(card) => relay.cards.is_instance_in(views, card, device, network),
        // It is gone, and was where its card's netdevs appear: else the card would have said where.
        None => views.each().any(|(card, _)| relay.cards.is_home_of(card, network)),
    }
}

/// Keeps those messages of a dump that are about instances in the network namespace of the program's socket.
pub(super) fn keep_those_here(cx: Cx<'_, '_>, relay: &Relay, answers: &mut Vec<Vec<u8>>) {
    let Ok(network) = NetworkId::of_socket(&relay.socket.kernel) else { return answers.clear() };
    let views = relay.cards.now(cx);
    answers.retain(|bytes| Message::first(bytes).is_some_and(|message| is_in(relay, &views, &message, network)));
}

/// Those notifications of a card that are for programs in the network namespace of the program's socket, without the
/// attribute that says so.
pub(super) fn for_this_one<'a>(
    cx: Cx<'_, '_>,
    relay: &Relay,
    published: impl Iterator<Item = Message<'a>>,
) -> Vec<Vec<u8>> {
    let Ok(network) = NetworkId::of_socket(&relay.socket.kernel) else { return Vec::new() };
    let views = relay.cards.now(cx);
    let mut here = Vec::new();
    for message in published {
        let place = message.after(GENL_HEADER).and_then(|content| find(content, own::NETNS)?.u64());
        match place {
            Some(place) if network.is(place) => here.extend(without_place(&message)),
            Some(_) => {}
            None => {
                let card = device_of(&message).and_then(|device| views.owner(device));
                let is_home = |card| relay.cards.is_home_of(card, network);
                if card.map_or_else(|| views.each().any(|(card, _)| is_home(card)), is_home) {
                    here.push(message.bytes().to_vec());
                }
            }
        }
    }
    here
}

/// A notification without the attribute that says for whom it is. `None`: it cannot be built.
fn without_place(message: &Message<'_>) -> Option<Vec<u8>> {
    let content = message.after(GENL_HEADER)?;
    let built = netlink::message(message.header, |to| {
        to.raw(&message.payload()[..GENL_HEADER]);
        for attribute in attributes(content).flatten().filter(|attribute| attribute.kind != own::NETNS) {
            to.copy(&attribute);
        }
    });
    built.ok()
}
