//! Netdevs: the files in `/sys/class/net/NAME` that are the card's. The netdev is the kernel's, and so are most files
//! in its directory.

use devlink::view::{self, Role};
use eswitch::MacAddr;
use netlink::Errno;

use crate::limits;

use super::bus::AddedCard;
use super::text::{event, line};
use super::tree::{Act, Attribute, AttributeContext, EMPTY, LowerPath, LowerTree, Subject, Template, Text, Tree};

static NETDEV: Template = Template::of(&[&[
    Attribute::ro("addr_assign_type", addr_assign_type),
    Attribute::ro("carrier_changes", |s| without_first(s, "carrier_changes")),
    Attribute::ro("carrier_down_count", |s| without_first(s, "carrier_down_count")),
    Attribute::ro("dev_port", |s| line(s.netdev()?.dev_port)),
    Attribute::ro("duplex", |s| line(if link(s)? { "full" } else { "unknown" })),
    // The kernel's netdev is one end of a veth pair, the card's is not: its `iflink` is its own index.
    Attribute::ro("iflink", |s| s.kernel.read(&format!("{}/ifindex", kernels(s.name()))).ok_or(Errno::NODEV)),
    Attribute::rw("mtu", |s| line(of_kernel(s, "mtu")?), set_mtu),
    // NET_NAME_RENAMED: the driver asks for `eth%d`, and udev gives the name. The card made it with this name.
    Attribute::ro("name_assign_type", |_| line(4)),
    Attribute::ro("phys_port_id", |_| Err(Errno::OPNOTSUPP)),
    Attribute::ro("phys_port_name", |s| line(s.netdev()?.port_name.as_ref().ok_or(Errno::OPNOTSUPP)?)),
    Attribute::ro("phys_switch_id", phys_switch_id),
    Attribute::rw(
        "uevent",
        |s| s.kernel.read(&format!("{}/uevent", kernels(s.name()))).ok_or(Errno::NODEV),
        |_, text| event(text),
    ),
    // SPEED_UNKNOWN is -1.
    Attribute::ro("speed", |s| if link(s)? { line(s.card()?.profile.speed) } else { line(-1) }),
]]);

/// Reads a file in the kernel's directory of the netdev, without the newline.
fn of_kernel(context: &AttributeContext<'_>, file: &str) -> Result<String, Errno> {
    let path = format!("{}/{file}", kernels(context.name()));
    let text = context.kernel.read(&path).ok_or(Errno::NODEV)?;
    Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
}

/// `addr_assign_type`: NET_ADDR_PERM (0) as long as the netdev has its permanent address, NET_ADDR_SET (3) after it has
/// been given another, and for a representor NET_ADDR_RANDOM (1): the driver has no way to set another.
fn addr_assign_type(context: &AttributeContext<'_>) -> Text {
    let Some(permanent) = context.netdev()?.permanent else { return line(1) };
    let is = of_kernel(context, "address")?;
    line(if is == MacAddr(permanent).to_string() { 0 } else { 3 })
}

/// A count of the kernel's without the one that is the veth's (see `of_mlx5` in `relay/link.rs`).
fn without_first(context: &AttributeContext<'_>, file: &str) -> Text {
    let count: u64 = of_kernel(context, file)?.parse().map_err(|_| Errno::IO)?;
    line(count.saturating_sub(1))
}

/// `mtu`: what is beyond mlx5's limit is refused, and the kernel does the rest.
fn set_mtu(_: &AttributeContext<'_>, text: &str) -> Result<Act, Errno> {
    let number = match text.trim().strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.trim().parse(),
    };
    let is_too_large = number.is_ok_and(|mtu| mtu > limits::MAX_MTU.into());
    if is_too_large { Err(Errno::INVAL) } else { Ok(Act::Kernel) }
}

/// Whether the netdev has a link, as `speed` and `duplex` show it (`speed_show`): EINVAL while it is down, and for a
/// representor, whose driver has no `get_link_ksettings`.
fn link(context: &AttributeContext<'_>) -> Result<bool, Errno> {
    if context.netdev()?.role == Role::Representor {
        return Err(Errno::INVAL);
    }
    // The kernel refuses to read `carrier` while the netdev is down.
    of_kernel(context, "carrier").map(|text| text == "1").map_err(|_| Errno::INVAL)
}

fn phys_switch_id(context: &AttributeContext<'_>) -> Text {
    if context.netdev()?.has_switch_id() { line(context.card()?.switch_id) } else { Err(Errno::OPNOTSUPP) }
}

/// The path of a netdev in the kernel's `/sys`.
pub(super) fn kernels(name: &str) -> String {
    format!("class/net/{name}")
}

/// Adds those of a card's netdevs to the tree that are in the network namespace which `/sys` shows, under their names
/// there.
pub(super) fn add(tree: &mut Tree, added: &AddedCard<'_>, names: &dyn Fn(usize, &view::Netdev) -> Option<String>) {
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
