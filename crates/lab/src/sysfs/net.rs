//! Netdevs: the files in `/sys/class/net/NAME` that are the card's. The netdev is the kernel's, and so are most files
//! in its directory.

use netlink::Errno;

use super::bus::AddedCard;
use super::text::line;
use super::tree::{Attribute, AttributeContext, EMPTY, LowerPath, LowerTree, Subject, Template, Text, Tree};

static NETDEV: Template = Template::of(&[&[
    Attribute::ro("dev_port", |s| line(s.netdev()?.dev_port)),
    // The kernel's netdev is one end of a veth pair, the card's is not: its `iflink` is its own index.
    Attribute::ro("iflink", |s| {
        let name = &s.netdev()?.name;
        s.kernel.read(&format!("class/net/{name}/ifindex")).ok_or(Errno::NODEV)
    }),
    Attribute::ro("phys_port_id", |_| Err(Errno::OPNOTSUPP)),
    Attribute::ro("phys_port_name", |s| line(s.netdev()?.port_name.as_ref().ok_or(Errno::OPNOTSUPP)?)),
    Attribute::ro("phys_switch_id", phys_switch_id),
]]);

fn phys_switch_id(context: &AttributeContext<'_>) -> Text {
    if context.netdev()?.in_switch { line(context.card()?.switch_id) } else { Err(Errno::OPNOTSUPP) }
}

/// The path of a netdev in the kernel's `/sys`.
pub(super) fn kernels(name: &str) -> String {
    format!("class/net/{name}")
}

/// Adds a card's netdevs to the tree. They are shown if they are in the lab's network namespace.
pub(super) fn add(tree: &mut Tree, added: &AddedCard<'_>) {
    for (at, netdev) in added.card.netdevs.iter().enumerate() {
        let Some(device) = added.device(netdev.parent) else { continue };
        let above = format!("{device}/net");
        // This directory stays when the kernel moves the netdev to another namespace.
        tree.make(&above, &EMPTY, Subject::Nothing);
        if netdev.elsewhere {
            continue;
        }
        let path = format!("{above}/{}", netdev.name);
        let dir = tree.make(&path, &NETDEV, Subject::Netdev(added.at, at));
        dir.lower = Some(LowerPath { base: LowerTree::Sys, path: kernels(&netdev.name) });
        dir.needs = Some(kernels(&netdev.name));
        tree.link("class/net", &netdev.name, &path);
        tree.link(&path, "device", device);
        tree.link(&path, "subsystem", "class/net");
        tree.netdev_is_at(&netdev.name, &path);
    }
}
