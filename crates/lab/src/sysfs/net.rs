//! Netdevs: the files in `/sys/class/net/NAME` that are the card's. The netdev is the kernel's, and so are most files
//! in its directory.

use netlink::Errno;

use super::bus::AddedCard;
use super::text::line;
use super::tree::{
    Attribute, AttributeContext, EMPTY, LowerPath, LowerTree, NetdevNames, Subject, Template, Text, Tree,
};

static NETDEV: Template = Template::of(&[&[
    Attribute::ro("dev_port", |s| line(s.netdev()?.dev_port)),
    // The kernel's netdev is one end of a veth pair, the card's is not: its `iflink` is its own index.
    Attribute::ro("iflink", |s| s.kernel.read(&format!("{}/ifindex", kernels(s.name()))).ok_or(Errno::NODEV)),
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

/// Adds those of a card's netdevs to the tree that are in the network namespace which `/sys` shows, under their names
/// there.
pub(super) fn add(tree: &mut Tree, added: &AddedCard<'_>, names: &NetdevNames<'_>) {
    for (at, netdev) in added.card.netdevs.iter().enumerate() {
        let Some(device) = added.device(netdev.parent) else { continue };
        let above = format!("{device}/net");
        // It exists as long as the netdev does, and is empty while that is in another network namespace.
        tree.make(&above, &EMPTY, Subject::Nothing);
        let Some(name) = names(added.at, netdev) else { continue };
        let path = format!("{above}/{name}");
        let dir = tree.make(&path, &NETDEV, Subject::Netdev(added.at, at));
        dir.lower = Some(LowerPath { base: LowerTree::Sys, path: kernels(&name) });
        tree.link("class/net", &name, &path);
        tree.link(&path, "device", device);
        tree.link(&path, "subsystem", "class/net");
        tree.netdev_is_at(&name, &path);
    }
}
