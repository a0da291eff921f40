//! The netdev that devlink names for a port: as it is called in the network namespace of the program, and only if it is
//! there (`devlink_nl_port_fill`). A card does not know that namespace, and the name that it knows may be older than
//! the last rename.

use ::netlink::{GENL_HEADER, Message, attributes, find};
use devlink::numbers::{attribute, command};
use devlink::view::DeviceName;
use eswitch::{PortHandle, PortIndex};

use crate::cards::Views;
use crate::lock_order::Cx;
use crate::network::Peer;
use crate::relay::Relay;

/// DEVLINK_PORT_TYPE_ETH.
const ETH: u16 = 2;

/// Names the netdevs in messages that describe ports. Other messages stay as they are.
pub(super) fn name_netdevs(cx: Cx<'_, '_>, relay: &mut Relay, mut sent: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    if !sent.iter().any(|bytes| Message::first(bytes).is_some_and(|message| has_netdev(&message))) {
        return sent;
    }
    let views = relay.cards.now(cx);
    let Some(network) = relay.network(cx) else { return sent };
    network.look(cx, &relay.cards, |table| {
        for bytes in &mut sent {
            let Some(message) = Message::first(bytes).filter(has_netdev) else { continue };
            let Some(peer) = peer_of(&views, &message) else { continue };
            // A message that cannot be built stays as the card has sent it.
            if let Ok(Some(renamed)) = with_netdev(&message, table.netdev(peer)) {
                *bytes = renamed;
            }
        }
    });
    sent
}

/// Whether a message describes a port with a netdev, wherever that is.
fn has_netdev(message: &Message<'_>) -> bool {
    // In a dump the kernel sends ports as DEVLINK_CMD_NEW.
    let is_ports = message.payload().first().is_some_and(|is| [command::PORT_NEW, command::NEW].contains(is));
    let content = message.after(GENL_HEADER).filter(|_| is_ports);
    let port_type = content.and_then(|content| find(content, attribute::PORT_TYPE)?.u16());
    port_type == Some(ETH)
}

/// The peer of the netdev of the port that a message describes.
fn peer_of(views: &Views, message: &Message<'_>) -> Option<Peer> {
    let content = message.after(GENL_HEADER)?;
    let text = |kind| find(content, kind)?.string();
    let name = DeviceName::parse(text(attribute::BUS_NAME)?, text(attribute::DEV_NAME)?)?;
    let index = PortIndex(find(content, attribute::PORT_INDEX)?.u32()?);
    let card = views.owner(name)?;
    let view = views.view(card)?;
    let of_pf = match name {
        DeviceName::Pci(device) => view.netdev_of_port(PortHandle { device, index }),
        DeviceName::Auxiliary(_) => None,
    };
    let netdev = of_pf.or_else(|| view.netdev_of_function(name))?;
    Some(Peer { card, index: netdev.peer? })
}

/// The message with another netdev: its interface index and its name. `Ok(None)`: it is the same.
fn with_netdev(message: &Message<'_>, netdev: Option<(u32, &str)>) -> Result<Option<Vec<u8>>, netlink::BuildError> {
    let content = message.after(GENL_HEADER).unwrap_or_default();
    let index = find(content, attribute::PORT_NETDEV_IFINDEX).and_then(|index| index.u32());
    let name = find(content, attribute::PORT_NETDEV_NAME).and_then(|name| name.string());
    if (index, name) == netdev.unzip() {
        return Ok(None);
    }
    let built = netlink::message(message.header, |to| {
        to.raw(&message.payload()[..GENL_HEADER]);
        for attribute in attributes(content).flatten() {
            match (attribute.kind, netdev) {
                (attribute::PORT_NETDEV_IFINDEX | attribute::PORT_NETDEV_NAME, _) => {}
                (attribute::PORT_TYPE, Some((index, name))) => {
                    to.copy(&attribute);
                    to.u32(attribute::PORT_NETDEV_IFINDEX, index).text(attribute::PORT_NETDEV_NAME, name);
                }
                _ => {
                    to.copy(&attribute);
                }
            }
        }
    });
    built.map(Some)
}
